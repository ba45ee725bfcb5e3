"""Settings of predictions, scores and exports."""

from __future__ import annotations

import dataclasses
import math

from unet_core.data.annotations import ANNOTATIONS
from unet_core.errors import UserError
from unet_core.registry import Registry
from unet_core.settings.fields import check_fields, setting
from unet_core.settings.modes import IMAGES, NETWORK, TRAIN
from unet_core.shards import Shard

FORMATS = Registry(
    {
        "saved_model": "unet_core.export.saved_model:SAVED_MODEL",
        "keras": "unet_core.export.keras_file:KERAS",
        "onnx": "unet_core.export.onnx_file:ONNX",
        "onnx_int8": "unet_core.export.onnx_int8:ONNX_INT8",
    }
)
"""The formats of exports by name; `unet_core.export` says what an entry is."""

OBJECT_FILES = Registry(
    {
        "csv": "unet_core.outputs.objects.table:CSV",
        "roi": "unet_core.outputs.objects.roi:ROI",
        "geojson": "unet_core.outputs.objects.geojson:GEOJSON",
        "coco": "unet_core.outputs.objects.coco:COCO",
    }
)
"""Files about objects by name; `unet_core.outputs.objects` says what an entry is."""

WEIGHTS = ("last", "best", "last_raw", "best_raw")
"""What a run can be predicted with: the last or best checkpoint, averaged or raw."""

_WRITES = (*TRAIN, "predict")


@dataclasses.dataclass(frozen=True)
class PredictionSettings:
    """What is predicted, with which weights, and what is written."""

    input: str | None = setting(
        None,
        "What to predict: a picture, a folder, a glob, a TIFF stack, a video, camera:0. Default: "
        "test in the data folder. With --mode=convert: a file of annotations or a folder of them "
        f"({', '.join(ANNOTATIONS)}; which it is, is seen from what is in it).",
        modes=("predict", "convert"),
        of_run=False,
        is_path=True,
    )
    images: str | None = setting(
        None,
        "With --mode=convert: the folder of the pictures that annotations name, if they are not "
        "where these say.",
        modes=("convert",),
        of_run=False,
        is_path=True,
    )
    output_dir: str | None = setting(
        None,
        "Where predictions, scores, exports, converted data, the picture of a network or the "
        "comparison of runs go. Default: a place in the run folder; of a comparison, the current "
        "folder.",
        modes=(*NETWORK, "merge", "summary", "report", "convert"),
        of_run=False,
        is_path=True,
    )
    shard: str = setting(
        "",
        "Predict or score only one share of the images, for several processes or machines: 3/16 is "
        "every 16th image from the third on, shares being counted from 1. Pages of a file are "
        "images of their own. --mode=merge then puts all shares in --output_dir together.",
        modes=("evaluate", "predict"),
        of_run=False,
    )
    overwrite: bool = setting(
        False,
        "Let predictions replace earlier ones of other weights or settings, and the picture of a "
        "network or a comparison the file that is there.",
        modes=(*_WRITES, "summary", "report"),
        of_run=False,
    )
    weights: str = setting(
        "last",
        "Which checkpoint to evaluate and predict with. Of a run with --ema_decay it is the moving "
        "average of the weights; last_raw and best_raw are the weights themselves.",
        modes=NETWORK,
        choices=WEIGHTS,
    )
    tta: str = setting(
        "none",
        "Test-time augmentation: predictions averaged over mirrored (flips) or mirrored and "
        "turned (dihedral) copies.",
        modes=(*IMAGES, "choose"),
        choices=("none", "flips", "dihedral"),
    )
    window_px: int = setting(
        0,
        "Sliding window: pixels a side of the windows an image is predicted in. 0 predicts images "
        "of up to 2 megapixels in one pass and larger ones by windows of 1024.",
        modes=(*IMAGES, "choose"),
        least=0,
        most=65536,
    )
    outputs: tuple[str, ...] = setting(
        ("mask", "overlay"),
        "What to write of a prediction: mask, overlay, outlines, probabilities; uncertainty "
        "(entropy of the probabilities; 1 is even odds), and of several folds their disagreement "
        "(standard deviation of the probability). The last three have 16 bits, 65535 being 1.",
        modes=_WRITES,
        choices=("mask", "overlay", "outlines", "probabilities", "uncertainty", "disagreement"),
    )
    threshold: str = setting(
        "0.5",
        "Of two classes: the probability above which a pixel is of one of them, which is the class "
        "in --monitor, or else the second, or the one named before it (cell:0.4). auto: that with "
        "the best score --monitor on the training images (of folds: out of fold), kept in the run. "
        "With --heads sigmoid: of each class, or of those named (cells:0.4,nuclei:auto), the "
        "others having 0.5; auto then goes by that score of each class.",
        modes=NETWORK,
    )
    fill_holes: tuple[str, ...] = setting(
        (),
        "Post-processing of masks: classes whose holes are filled, whatever is in them.",
        modes=IMAGES,
    )
    drop_smaller: tuple[str, ...] = setting(
        (),
        "Post-processing, after that: CLASS:PIXELS drops the objects of a class that have fewer "
        "pixels; they become of the most probable other class.",
        modes=IMAGES,
    )
    keep_largest: tuple[str, ...] = setting(
        (),
        "Post-processing, after that: classes of which only the largest object of an image stays.",
        modes=IMAGES,
    )
    mask_format: str = setting(
        "values",
        "Predicted masks hold the mask values of --classes, class numbers, or class numbers that "
        "show in colours.",
        modes=IMAGES,
        choices=("values", "index", "palette"),
    )
    alpha: float = setting(
        0.45,
        "How strongly overlays cover the picture: 0 not at all, 1 completely.",
        modes=_WRITES,
        least=0,
        most=1,
    )
    object_class: str = setting(
        "",
        "Class whose connected regions are objects, such as cells between membranes; they are "
        "scored as objects, with two classes also by V_Rand and V_Info. With --masks=instances it "
        "is the second of --classes, and true objects are those of the masks.",
        modes=(*IMAGES, "choose"),
    )
    instances: str = setting(
        "none",
        "Also number the objects of --object_class (instance segmentation): connected components, "
        "or these separated by watershed: at their necks, or where --classes has a border between "
        "objects (--masks=instances), there. Scores number them so too; with none by watershed "
        "where there is a border, and else by components.",
        modes=(*IMAGES, "choose"),
        choices=("none", "components", "watershed"),
    )
    least_object_px: int = setting(
        0,
        "Objects of fewer pixels are none: by watershed those they touch take their pixels, by "
        "components they are left out.",
        modes=(*IMAGES, "choose"),
        least=0,
        most=2**31 - 1,
    )
    objects: tuple[str, ...] = setting(
        (),
        "Files about the objects that --instances numbers: their measures (csv), ImageJ's regions "
        "of interest (roi), polygons for QuPath and QGIS (geojson), and COCO JSON, one for all "
        "pictures (coco).",
        modes=_WRITES,
        choices=OBJECT_FILES,
    )
    segment_scores: bool = setting(
        True,
        "Score segments by V_Rand and V_Info too (of two classes, with --object_class), at eleven "
        "thresholds: most of the time that scoring takes.",
        modes=("train", "evaluate", "choose"),
    )
    boundary_px: float = setting(
        2.0,
        "How far a boundary may be off to count as right in boundary F1, in pixels.",
        modes=("train", "evaluate"),
        least=0,
        most=1000,
    )
    show: bool = setting(
        False,
        "Show the video or camera in a window while it is predicted.",
        modes=("predict",),
        of_run=False,
    )
    formats: tuple[str, ...] = setting(
        ("saved_model", "keras"),
        f"What --mode=export writes: {', '.join(FORMATS)}. onnx_int8 computes in 8-bit "
        "integers; it is calibrated on training images, which must be there.",
        modes=("export",),
        of_run=False,
        choices=FORMATS,
    )

    def __post_init__(self):
        check_fields(self)
        parse_shard(self.shard)
        parse_threshold(self.threshold)
        for text in self.drop_smaller:
            parse_size(text)


def parse_shard(text: str) -> Shard | None:
    """Returns the share that `shard` names; None if it is empty, which is all.

    Raises:
        UserError: If it is none.
    """
    return Shard.parse(text) if text else None


def parse_threshold(text: str) -> dict[str, float | None]:
    """Returns the probabilities of `threshold` by class.

    The class is empty if none is named; a probability is None if it is to be chosen.

    Raises:
        UserError: If it is none, a class is named twice, or one of several is not named.
    """
    found: dict[str, float | None] = {}
    parts = text.split(",")
    for part in parts:
        name, _, number = part.rpartition(":")
        try:
            value = None if number == "auto" else float(number)
        except ValueError:
            value = math.nan
        if value is not None and not 0 <= value <= 1:
            raise UserError(
                f"`threshold` ({text!r}) must be auto or a probability from 0 to 1, such as 0.4 or "
                "cell:0.4, or of classes that may overlap several, such as cells:0.4,nuclei:auto."
            )
        if name in found or (len(parts) > 1 and not name):
            raise UserError(
                f"`threshold` ({text!r}) must name a class before each probability, each class "
                "once, such as cells:0.4,nuclei:0.6."
            )
        found[name] = value
    return found


def parse_weights(text: str) -> tuple[bool, bool]:
    """Returns of one of `WEIGHTS` whether it is the best checkpoint, and whether averaged."""
    return text.startswith("best"), not text.endswith("_raw")


def parse_size(text: str) -> tuple[str, int]:
    """Returns the class and the pixels of one of `drop_smaller`.

    Raises:
        UserError: If it is none.
    """
    name, _, number = text.rpartition(":")
    if not name or not number.isascii() or not number.isdecimal() or not 0 < int(number) < 2**31:
        raise UserError(
            f"`drop_smaller` ({text!r}) must be CLASS:PIXELS with a number of pixels from 1 on, "
            "such as cell:50."
        )
    return name, int(number)
