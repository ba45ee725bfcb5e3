"""Scores of one share of the images, kept so that those of all shares are put together exactly.

write_share(folder, shard, scored, head)       # scores-3-of-16.json
merged = merge_scores(folder)                  # None if no share was scored there

What is kept are the sums of `Totals` and the numbers of each image; the scores that are made of all
of them, in the order of the images, are those of one process to the last digit.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np

from unet_core import scores
from unet_core.data.classes import ClassMap
from unet_core.errors import UserError
from unet_core.files import os_errors, read_json, write_json
from unet_core.inference.trained import make_classes
from unet_core.reports.evaluation import Scored
from unet_core.reports.scores_file import Numbers
from unet_core.reports.totals import Totals
from unet_core.settings import RunConfig
from unet_core.shards import Shard, check_complete, check_same, files_of, interleaved

NAME = "scores.json"
"""What the name of a share's file is made of."""
_FORMAT = 1
_MOST_BYTES = 2**31
_OF_CLASSES = ("classes", "heads", "stray_values", "clear_class", "masks", "border_px")
# Whether a share has V_Rand and V_Info, which one machine may lack the package for.
_SEGMENTS = {True: "on", False: "on, without scikit-image", None: "off"}
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_Finite = Annotated[float, msgspec.Meta(ge=0)]


class _Image(msgspec.Struct, kw_only=True):
    name: str
    scores: Numbers
    confidence: list[list[_Finite]]
    curves: dict[str, list[float | None]] = {}


class _Share(msgspec.Struct, kw_only=True):
    """What the file of a share holds.

    Attributes:
        format: That of the file.
        shard: The share, as 3/16.
        made_by: What decides the scores, as text, by name.
        settings: Those that make the classes.
        how: What `scores.json` says of how the scores were made.
        chosen: Thresholds of V_Rand and V_Info, of the first share.
        segments: See `Totals`, and so the others.
        images: Those of the share, in their order.
    """

    format: int
    shard: str
    made_by: dict[str, str]
    settings: dict[str, Any]
    how: dict[str, Any]
    chosen: dict[str, float]
    segments: bool | None
    confusion: list[Any]
    precision_recall: list[Any]
    calibration: dict[str, list[_Count]]
    baseline: list[Any] | None
    objects: dict[str, Any] | None
    images: list[_Image]


@dataclasses.dataclass(frozen=True)
class Head:
    """What all shares have in common.

    Attributes:
        made_by: Weights, settings and images, as text, by name.
        config: The settings; those of classes are kept.
        how: What stands in `scores.json` before the scores.
    """

    made_by: Mapping[str, str]
    config: RunConfig
    how: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class MergedScores:
    """The scores of all shares.

    Attributes:
        shares: How many there are.
        classes: The classes.
        how: What stands in `scores.json` before the scores.
        result: See `Totals.result`.
    """

    shares: int
    classes: ClassMap
    how: Mapping[str, Any]
    result: dict[str, Any]


def write_share(folder: pathlib.Path, shard: Shard, scored: Scored, head: Head) -> pathlib.Path:
    """Writes what the images of a share have added up to and returns where it is.

    Raises:
        UserError: If it cannot be written.
    """
    total = scored.totals
    calibration, objects = total.calibration, total.objects
    content = {
        "format": _FORMAT,
        "shard": str(shard),
        "made_by": dict(head.made_by),
        "settings": {name: head.config[name] for name in _OF_CLASSES},
        "how": dict(head.how),
        "chosen": scored.chosen,
        "segments": total.segments,
        "confusion": total.confusion.tolist(),
        "precision_recall": [curve.counts.tolist() for curve in total.precision_recall],
        "calibration": {
            "pixels": calibration.pixels.tolist(),
            "hits": calibration.hits.tolist(),
        },
        "baseline": total.baseline and total.baseline.counts.tolist(),
        "objects": objects and {"hits": objects.hits.tolist(), "objects": objects.objects},
        "images": [
            {
                "name": name,
                "scores": found,
                "confidence": total.confidence[name],
                "curves": total.curves.get(name, {}),
            }
            for name, found in total.per_image.items()
        ],
    }
    path = folder / shard.named(NAME)
    with os_errors(path, "the scores of a share cannot be written", "Make room."):
        write_json(path, content)
    return path


def merge_scores(folder: pathlib.Path) -> MergedScores | None:
    """Puts together what the shares have left in a folder; None if there are none.

    Raises:
        UserError: If a share is missing, cannot be read, or was made by other weights or settings
            or of other images.
    """
    paths = files_of(folder, NAME)
    if not paths:
        return None
    check_complete(folder, NAME, paths)
    shares = {shard: _read(path, shard) for shard, path in paths.items()}
    told = {
        shard: {
            **share.made_by,
            **_texts(share.settings),
            **_texts(share.how),
            "segment_scores": _SEGMENTS[share.segments],
        }
        for shard, share in shares.items()
    }
    check_same(folder, told)
    first = shares[min(shares)]
    try:
        classes = make_classes(RunConfig.from_stored(first.settings).data)
    except UserError as error:
        raise _unreadable(paths[min(paths)], f"$.settings: {error}") from error
    total = _added_up({paths[shard]: share for shard, share in shares.items()}, classes)
    result = total.result(first.chosen)
    return MergedScores(len(shares), classes, first.how, result)


_WHAT, _WAY = "the scores of a share", "Score that share again."


def _read(path: pathlib.Path, shard: Shard) -> _Share:
    formats = (_FORMAT,)
    share = read_json(path, _Share, what=_WHAT, way=_WAY, formats=formats, most_bytes=_MOST_BYTES)
    if share.shard != str(shard):
        raise _unreadable(path, f"$.shard: expected {shard}, as it is called, here {share.shard}")
    if not set(share.chosen.values()) <= set(scores.SEGMENT_THRESHOLDS):
        listed = ", ".join(map(str, scores.SEGMENT_THRESHOLDS))
        raise _unreadable(path, f"$.chosen: must hold thresholds out of {listed}")
    return share


def _added_up(shares: Mapping[pathlib.Path, _Share], classes: ClassMap) -> Totals:
    first = next(iter(shares.values()))
    total = Totals.of(
        classes,
        baseline=first.baseline is not None,
        objects=first.objects is not None,
        segments=first.segments,
    )
    for path, share in shares.items():
        _add_counts(path, total, share)
    for image in interleaved([share.images for share in shares.values()]):
        if image.name in total.per_image:
            raise UserError(f"{next(iter(shares))}: {image.name} is in two shares. {_WAY}")
        total.per_image[image.name] = {key: _number(v) for key, v in image.scores.items()}
        total.calibrated(image.name, image.confidence)
        if total.segments:
            curves = {key: [_number(v) for v in values] for key, values in image.curves.items()}
            total.curves[image.name] = curves
    return total


def _add_counts(path: pathlib.Path, total: Totals, share: _Share) -> None:
    """Adds the counts of a share.

    Raises:
        UserError: If one is of another shape, or is no count.
    """
    sums = {
        "confusion": (total.confusion, share.confusion),
        "calibration.pixels": (total.calibration.pixels, share.calibration.get("pixels")),
        "calibration.hits": (total.calibration.hits, share.calibration.get("hits")),
    }
    for number, curve in enumerate(total.precision_recall):
        found = share.precision_recall[number] if number < len(share.precision_recall) else None
        sums[f"precision_recall[{number}]"] = (curve.counts, found)
    if total.baseline is not None:
        sums["baseline"] = (total.baseline.counts, share.baseline)
    if total.objects is not None:
        objects = share.objects or {}
        sums["objects.hits"] = (total.objects.hits, objects.get("hits"))
        more = _counts(path, "objects.objects", objects.get("objects"), ())
        total.objects.objects += int(more)
    for name, (counts, found) in sums.items():
        counts += _counts(path, name, found, counts.shape)
    bins, thresholds = total.calibration.pixels.size, len(scores.SEGMENT_THRESHOLDS)
    for image in share.images:
        if any(len(each) != bins for each in image.confidence):
            raise _unreadable(path, f"$.images, {image.name:.80}: must have {bins} bins")
        lengths = [len(image.curves.get(key, ())) for key in ("v_rand", "v_info")]
        if share.segments and lengths != [thresholds] * 2:
            raise _unreadable(path, f"$.images, {image.name:.80}: must have {thresholds} numbers")
        if "dice/mean" not in image.scores or {"/", "\\", "\0"} & set(image.name):
            raise _unreadable(path, f"$.images, {image.name:.80}: is no image with its mean Dice")


def _counts(path: pathlib.Path, name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Returns counts of a shape that were read, int64."""
    kind: Any = _Count
    for _ in shape:
        kind = list[kind]
    try:
        found = np.array(msgspec.convert(value, kind), np.int64)
    except (msgspec.ValidationError, ValueError) as error:
        raise _unreadable(path, f"$.{name}: {error}") from error
    if found.shape != shape:
        raise _unreadable(path, f"$.{name}: expected the shape {shape}, here {found.shape}")
    return found


def _unreadable(path: pathlib.Path, problem: str) -> UserError:
    return UserError(f"{path}: cannot be read as {_WHAT} ({problem}). {_WAY}")


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: _text(value) for name, value in values.items()}


def _text(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ",".join(map(str, value))
    return str(value)


def _number(value: float | None) -> float:
    """Returns a number as it was before it went to JSON, which has no NaN."""
    return math.nan if value is None else value
