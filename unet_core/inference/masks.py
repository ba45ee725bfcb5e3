"""From probabilities to class ids, and to the file that holds them.

make_mask = MaskRule(Threshold(class_id=1, value=0.4), steps=[Step("fill_holes", 1)])
ids = make_mask(probabilities)            # [H, W, C] -> [H, W] uint8
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from unet_core.conventions import IGNORED
from unet_core.data import images
from unet_core.data.classes import ClassMap
from unet_core.inference.post_processing import Step, post_process


@dataclasses.dataclass(frozen=True)
class Threshold:
    """The probability above which a pixel is of one of two classes.

    Attributes:
        class_id: That class, 0 or 1; else the pixel is of the other.
        value: The probability, in [0, 1].
    """

    class_id: int
    value: float


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """The probabilities above which a pixel is of each of the classes that may overlap.

    Attributes:
        values: One probability in [0, 1] for each class.
    """

    values: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class MaskRule:
    """How a mask is made of probabilities.

    Attributes:
        threshold: None gives each pixel its most probable class.
        steps: What is done to the mask after that, in this order.
    """

    threshold: Threshold | Thresholds | None = None
    steps: Sequence[Step] = ()

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """Returns the class ids [H, W] uint8 of probabilities [H, W, C] of a whole image."""
        ids = predicted_ids(probabilities, self.threshold)
        if not self.steps:
            return ids
        overlapping = isinstance(self.threshold, Thresholds)
        return post_process(ids, probabilities, self.steps, overlapping=overlapping)


MOST_PROBABLE = MaskRule()
"""Each pixel has its most probable class."""


def usual_rule(classes: ClassMap) -> MaskRule:
    """Returns how masks are made if nothing else is asked for.

    Of classes that may overlap, each pixel has all that are more probable than not.
    """
    return MaskRule(Thresholds((0.5,) * len(classes))) if classes.overlapping else MOST_PROBABLE


def threshold_as_flag(rule: MaskRule, classes: ClassMap) -> str:
    """Returns the threshold of a rule as the flag has it, such as "cell:0.4"."""
    threshold = rule.threshold
    if threshold is None:
        return "0.5"
    if isinstance(threshold, Threshold):
        return f"{classes.names[threshold.class_id]}:{threshold.value}"
    if len(set(threshold.values)) == 1:
        return str(threshold.values[0])
    pairs = zip(classes.names, threshold.values, strict=True)
    return ",".join(f"{name}:{value}" for name, value in pairs)


def predicted_ids(
    probabilities: np.ndarray, threshold: Threshold | Thresholds | None = None
) -> np.ndarray:
    """Returns the class ids [H, W] uint8 of probabilities [H, W, C].

    Of two classes the second needs more than 1/2, or the class of `threshold` more than its value,
    compared in float32; of those that may overlap, each. A pixel with NaN is of no class:
    `IGNORED`.
    """
    if isinstance(threshold, Thresholds):
        above = probabilities > np.asarray(threshold.values, np.float32)
        ids = np.packbits(above, axis=-1, bitorder="little")[..., 0]
    elif threshold is not None:
        own = threshold.class_id
        above = probabilities[..., own] > np.float32(threshold.value)
        ids = np.where(above, np.uint8(own), np.uint8(1 - own))
    elif probabilities.shape[-1] == 2:
        ids = (probabilities[..., 1] > probabilities[..., 0]).astype(np.uint8)
    else:
        ids = probabilities.argmax(-1).astype(np.uint8)
    if np.isnan(probabilities.sum()):
        ids[np.isnan(probabilities).any(-1)] = IGNORED
    return ids


def suffixes_of_classes(what: str, classes: ClassMap) -> list[str]:
    """Returns what the names of the files of each class end in: `what` and the name of the class.

    A name must not lead to another folder, nor two classes to one file.
    """
    plain = [name.replace("/", "_") for name in classes.names]
    return [
        f"{what}_{name}" + (f"_{number}" if plain.count(name) > 1 else "")
        for number, name in enumerate(plain)
    ]


def mask_suffixes(classes: ClassMap) -> list[str]:
    """Returns what the names of the files of a mask end in: one, or one for each class."""
    return suffixes_of_classes("predict", classes) if classes.overlapping else ["predict"]


def mask_pixels(ids: np.ndarray, classes: ClassMap, mask_format: str) -> dict[str, np.ndarray]:
    """Returns the pixels of each file of a mask by its suffix, [h, W] or [h, W, 3] in RGB order.

    Args:
        ids: [h, W] class ids.
        classes: Their meaning.
        mask_format: "values" (those of the class map), "index" (class numbers) or "palette" (class
            numbers that show in colours). Of classes that may overlap there are values alone.
    """
    if classes.overlapping:
        return {
            suffix: np.where(classes.has(ids, number), np.uint8(255), np.uint8(0))
            for number, suffix in enumerate(mask_suffixes(classes))
        }
    return {"predict": classes.values(ids) if mask_format == "values" else ids}


def write_mask(
    stem: pathlib.Path,
    ids: np.ndarray,
    classes: ClassMap,
    mask_format: str,
    metadata: Mapping[int, tuple] | None = None,
) -> None:
    """Writes class `ids` [H, W] as `<stem>_predict.png`, or one such file for each class.

    `mask_pixels` says what they hold; of `metadata` of the image they take over the resolution.

    Raises:
        OSError: If a file cannot be written.
    """
    for suffix, pixels in mask_pixels(ids, classes, mask_format).items():
        path = stem.with_name(f"{stem.name}_{suffix}.png")
        if mask_format == "palette":
            images.write_palette_png(path, pixels, classes.palette(), metadata)
        else:
            in_order = pixels[..., ::-1] if pixels.ndim == 3 else pixels
            images.write_png(path, in_order, metadata)
