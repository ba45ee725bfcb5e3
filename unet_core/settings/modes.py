"""The modes of `train_loop.py` by name, and groups of them that settings are used by."""

from __future__ import annotations

from unet_core.registry import Registry

MODES = Registry(
    {
        "train": "unet_core.runs.train:train",
        "find_rate": "unet_core.runs.find_rate:find_rate",
        "overfit": "unet_core.runs.overfit:overfit",
        "find_batch": "unet_core.runs.find_batch:find_batch",
        "sweep": "unet_core.runs.sweep:sweep",
        "evaluate": "unet_core.runs.evaluate:evaluate",
        "predict": "unet_core.runs.predict:predict",
        "merge": "unet_core.runs.merge:merge",
        "export": "unet_core.runs.export:export",
        "choose": "unet_core.runs.choose:choose",
        "report": "unet_core.runs.report:report",
        "summary": "unet_core.runs.summary:summary",
        "check_data": "unet_core.runs.check_data:check_data",
        "convert": "unet_core.runs.convert:convert",
    }
)

FORMER = {"convert_labelme": "convert"}
"""What modes were called in earlier versions, and are called now."""

EVERY = tuple(MODES)
TRAIN = ("train", "find_rate", "overfit", "sweep")
NETWORK = (*TRAIN, "evaluate", "predict", "export")
NO_DATA = ("find_batch", "summary")
BUILD = (*TRAIN, *NO_DATA)
RUN = (*NETWORK, "choose", *NO_DATA)
SCORE = (*TRAIN, "evaluate", "choose")
IMAGES = (*TRAIN, "evaluate", "predict")
SAMPLES = (*TRAIN, "check_data")
SPLIT = (*TRAIN, "check_data", "convert")
