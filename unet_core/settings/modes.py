"""The modes of `train_loop.py` by name, and groups of them that settings are used by."""

from __future__ import annotations

from unet_core.registry import Registry

MODES = Registry(
    {
        "train": "unet_core.runs.train:train",
        "evaluate": "unet_core.runs.evaluate:evaluate",
        "predict": "unet_core.runs.predict:predict",
        "export": "unet_core.runs.export:export",
        "choose": "unet_core.runs.choose:choose",
        "summary": "unet_core.runs.summary:summary",
        "check_data": "unet_core.runs.check_data:check_data",
        "convert_labelme": "unet_core.runs.convert_labelme:convert_labelme",
    }
)

EVERY = tuple(MODES)
TRAIN = ("train",)
NETWORK = ("train", "evaluate", "predict", "export")
BUILD = ("train", "summary")
RUN = (*NETWORK, "choose", "summary")
SCORE = ("train", "evaluate", "choose")
IMAGES = ("train", "evaluate", "predict")
MASKS = ("train", "evaluate", "predict", "export")
SAMPLES = ("train", "check_data")
SPLIT = ("train", "check_data", "convert_labelme")
