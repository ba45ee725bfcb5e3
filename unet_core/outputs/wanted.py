"""What is wanted of predictions: what is written, under which names, and what it was made by."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import pathlib
from collections.abc import Collection, Sequence

import numpy as np

from unet_core.data.classes import ClassMap
from unet_core.data.layouts import listing
from unet_core.data.samples import Source
from unet_core.files import safe_name
from unet_core.inference.ensemble import Ensemble
from unet_core.inference.masks import (
    MaskRule,
    mask_suffixes,
    suffixes_of_classes,
    threshold_as_flag,
    usual_rule,
)
from unet_core.inference.post_processing import KINDS
from unet_core.inference.predictor import Predictor
from unet_core.outputs import numbered

UNCERTAIN = ("uncertainty", "disagreement")
_WHOLE_ONLY = ("overlay", "outlines")


@dataclasses.dataclass(frozen=True)
class PredictionOutputs:
    """What to write of each prediction.

    Attributes:
        outputs: Out of "mask" (one file, or of classes that may overlap one per class), "overlay",
            "outlines", "probabilities" (for two classes the second's, for more or overlapping ones
            one file per class with its name, "/" being "_"), "uncertainty" and, of several
            networks, "disagreement", see `unet_core.inference.uncertainty`. The last three have 16
            bits, 65535 being 1.
        mask_format: "values" writes the mask values of the class map, "index" the class numbers,
            "palette" class numbers that show in colours.
        alpha: How strongly an overlay covers the picture, 0..1.
        instances: "none", "components" or "watershed": how touching objects are separated.
        object_class: The class they are of; by default that which numbered masks are of.
        least_object_px: Objects of fewer pixels are none.
        objects: Files about them, out of `OBJECT_FILES`.
        pixel_size_um: Width and height of a pixel in them; 0 is as each file says.
        make_mask: From probabilities to the mask, which all but the 16-bit files show; None is the
            usual.
    """

    outputs: Collection[str] = ("mask", "overlay")
    mask_format: str = "values"
    alpha: float = 0.45
    instances: str = "none"
    object_class: str = ""
    least_object_px: int = 0
    objects: Collection[str] = ()
    pixel_size_um: float = 0.0
    make_mask: MaskRule | None = None


def stems(sources: Sequence[Source]) -> list[str]:
    """Returns the name of each source's files.

    It is that of the image, as every file system takes it, with its page and, where two would be
    called the same, its suffix, its folder, and a number.
    """
    several_pages = {source.path for source in sources if source.page}

    def named(source: Source, stem: str) -> str:
        return safe_name(stem) + (f"_{source.page:03d}" if source.path in several_pages else "")

    names = [named(source, listing.stem_of(source.path)) for source in sources]
    for qualify in (
        lambda path: f"{path.stem}_{path.suffix[1:]}",
        lambda path: f"{path.parent.name}_{path.stem}_{path.suffix[1:]}",
    ):
        count = collections.Counter(names)
        names = [
            named(source, qualify(source.path)) if count[name] > 1 else name
            for source, name in zip(sources, names, strict=True)
        ]
    return listing.numbered(names)


def class_of_level(classes: ClassMap) -> dict[str, int]:
    """Returns the suffixes of the files of probabilities and the class that each is of."""
    if len(classes) == 2 and not classes.overlapping:
        return {"probability": 1}
    return {suffix: n for n, suffix in enumerate(suffixes_of_classes("probability", classes))}


def paths_of(
    stem: pathlib.Path, wanted: PredictionOutputs, classes: ClassMap, is_whole: bool
) -> list[pathlib.Path]:
    """Returns the files of a picture, but for those about its objects.

    Args:
        stem: What their paths begin with.
        wanted: What is written.
        classes: The classes.
        is_whole: Whether the picture is predicted whole, not in bands.
    """
    suffixes = {"mask": mask_suffixes(classes), "probabilities": list(class_of_level(classes))}
    paths = []
    for output in ("mask", *_WHOLE_ONLY, "probabilities", *UNCERTAIN):
        if output in wanted.outputs:
            kind = ".png" if is_whole or output in _WHOLE_ONLY else ".tif"
            names = suffixes.get(output, [output])
            paths += [stem.with_name(f"{stem.name}_{name}{kind}") for name in names]
    if wanted.instances != "none":
        paths += numbered.paths(stem, is_large=not is_whole)
    return paths


def made_by(predictor: Predictor, wanted: PredictionOutputs) -> dict[str, str]:
    """Returns as text, by name, what decides the content of the files of a prediction."""
    window, rule = predictor.window, wanted.make_mask or usual_rule(predictor.classes)
    windows = window.windows if isinstance(window, Ensemble) else [window]
    weights = hashlib.sha256()
    for each in windows:
        for variable in each.network.model.weights:
            weights.update(np.asarray(variable).tobytes())
    types = {layer.compute_dtype for each in windows for layer in each.network.layers.layers}
    found = {"weights": weights.hexdigest(), "precision": ",".join(sorted(types))}
    found |= {"tta": windows[0].tta, "window_px": str(windows[0].window_px)}
    found["threshold"] = threshold_as_flag(rule, predictor.classes)
    for kind in KINDS:
        steps = [step for step in rule.steps if step.kind == kind]
        names = [f"{predictor.classes.names[s.class_id]}:{s.pixels}" for s in steps]
        found[kind] = ",".join(names)
    found |= {"outputs": ",".join(sorted(wanted.outputs)), "mask_format": wanted.mask_format}
    found |= {"alpha": str(wanted.alpha), "pixel_size_um": str(wanted.pixel_size_um)}
    found |= {"instances": wanted.instances, "object_class": wanted.object_class}
    if predictor.resize.is_on:
        found["resize"] = str(predictor.resize)
    found["least_object_px"] = str(wanted.least_object_px)
    found["objects"] = ",".join(sorted(wanted.objects))
    return found
