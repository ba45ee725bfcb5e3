"""`scores.json`, read back: what `Evaluation.result` has left of one run.

scores = read_scores(run_dir / "scores.json", what="the scores of a fold", way="Score it again.")
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np

from unet_core import scores
from unet_core.errors import UserError
from unet_core.files import read_json

BINS = 100
"""Of the histograms of probabilities."""
_FORMAT = 1
Numbers = dict[str, float | None]
"""Scores by name; None is one that is not defined."""
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Counts = Annotated[list[_Count], msgspec.Meta(min_length=BINS, max_length=BINS)]
_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Segments(msgspec.Struct):
    """V_Rand and V_Info of each image at each threshold, and the thresholds chosen."""

    chosen: dict[str, float]
    per_image: dict[str, dict[str, list[float | None]]]


class Baseline(msgspec.Struct):
    """The best Dice that a threshold of the grey values reaches, and how."""

    dice: float
    how: str


class Bin(msgspec.Struct):
    """A `CalibrationBin`."""

    low: _Share
    high: _Share
    pixels: _Count
    confidence: float | None
    accuracy: float | None


class Curve(msgspec.Struct):
    """Points of a curve of precision and recall."""

    recall: list[_Share | None]
    precision: list[_Share | None]


class Histogram(msgspec.Struct):
    """Pixels by the probability of one class, in bins of equal width from 0 to 1.

    Attributes:
        of_class: Those that are of the class.
        of_others: Those that are not.
    """

    of_class: _Counts
    of_others: _Counts


class Threshold(msgspec.Struct):
    """The probability above which a pixel was of a class.

    Attributes:
        name: That of the class; empty, as a version of before has it, is each that may overlap.
        value: The probability.
    """

    value: float
    name: str = msgspec.field(name="class", default="")


class Scores(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What `scores.json` holds; a version of before has left out what has a default here."""

    format: int = 0
    step: _Count | None = None
    weights: str = ""
    tta: str = ""
    threshold: Threshold | None = None
    thresholds: dict[str, float] = {}
    instances: str = "none"
    least_object_px: int = 0
    fill_holes: list[str] = []
    drop_smaller: list[str] = []
    keep_largest: list[str] = []
    scores: Numbers
    best_threshold: dict[str, Baseline] = {}
    # Rows of numbers; of classes that may overlap, two rows of two for each.
    confusion: list[list[_Count | list[_Count]]]
    per_image: dict[str, Numbers]
    calibration: list[Bin] = []
    precision_recall: dict[str, Curve] = {}
    probabilities: dict[str, Histogram] = {}
    objects: Numbers = {}
    segments: Segments | None = None
    left_out: str = ""


def read_scores(path: pathlib.Path, *, what: str, way: str) -> Scores:
    """Returns what the `scores.json` at `path` holds.

    Raises:
        UserError: If it cannot be read or contradicts itself; it is worded as by `read_json`.
    """
    result = read_json(path, Scores, what=what, way=way, formats=(0, _FORMAT))
    problem = _problem_of(result) or _problem_of_curves(result)
    if problem:
        raise UserError(f"{path}: cannot be read as {what} ({problem}). {way}")
    return result


class Matrix(NamedTuple):
    """The confusion matrix as it is shown.

    Of classes that exclude one another it is that of true classes (rows) and predicted ones. Of
    classes that may overlap its columns are the pixels found, missed and invented.

    Attributes:
        columns: The titles of the columns.
        counts: [classes, columns], pixels.
        totals: [classes], pixels that are of the class.
        right: [classes], the column of what is right.
    """

    columns: list[str]
    counts: np.ndarray
    totals: np.ndarray
    right: list[int]

    @classmethod
    def of(cls, found: Scores) -> Matrix:
        """Returns that of scores."""
        names, counts = class_names(found.scores), np.array(found.confusion)
        if counts.ndim == 2:
            return cls(names, counts, counts.sum(1), list(range(len(names))))
        shown = np.stack([counts[:, 1, 1], counts[:, 1, 0], counts[:, 0, 1]], 1)
        return cls(["found", "missed", "invented"], shown, shown[:, :2].sum(1), [0] * len(names))

    @property
    def shares(self) -> np.ndarray:
        """[classes, columns], of the pixels that are of the class."""
        return self.counts / np.maximum(self.totals, 1)[:, None]


def class_names(found: Mapping[str, Any]) -> list[str]:
    """Returns the names of the classes that scores are of, in their order."""
    names = [key[5:] for key in found if key.startswith("dice/")]
    return [name for name in names if name != "mean"]


def _problem_of(result: Scores) -> str | None:
    """Returns what contradicts itself in the scores of a run, if anything does."""
    number = len(class_names(result.scores))
    exclusive = [[int] * number] * number
    overlapping = [[[int] * 2] * 2] * number
    found = _kinds(result.confusion)
    if "dice/mean" not in result.scores or number < (1 if found == overlapping else 2):
        return "$.scores: names no Dice of two classes and their mean"
    if found not in (exclusive, overlapping):
        return f"$.confusion: must have {number} rows of {number} numbers"
    if not result.per_image:
        return "$.per_image: names no image"
    for name, found in result.per_image.items():
        if "dice/mean" not in found or {"/", "\\", "\0"} & set(name):
            return f"$.per_image.{name:.80}: is no name of an image with its mean Dice"
    if result.segments is None:
        return None
    chosen, thresholds = result.segments.chosen, scores.SEGMENT_THRESHOLDS
    if not all(value in thresholds for value in chosen.values()):
        return f"$.segments.chosen: must hold thresholds out of {', '.join(map(str, thresholds))}"
    for name, curve in result.segments.per_image.items():
        lengths = [len(curve.get(score, ())) for score in ("v_rand", "v_info")]
        if lengths != [len(thresholds)] * 2:
            return f"$.segments.per_image.{name:.80}: must have {len(thresholds)} numbers each"
    return None


def _kinds(value: Any) -> Any:
    """Returns lists of lists with the types of what they hold in its place."""
    return [_kinds(each) for each in value] if isinstance(value, list) else type(value)


def _problem_of_curves(result: Scores) -> str | None:
    names = set(class_names(result.scores))
    for name in (*result.precision_recall, *result.probabilities):
        if name not in names:
            return f"$.precision_recall or $.probabilities: {name:.80} is no class"
    for name, curve in result.precision_recall.items():
        if len(curve.recall) != len(curve.precision):
            return f"$.precision_recall.{name:.80}: must have two lists of one length"
    return None
