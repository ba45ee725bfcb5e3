"""Ways to make masks compared out of fold: weights, threshold, post-processing.

    tally = Tally(classes, folds=5, object_class="cell")
    for fold, probabilities, pair in out_of_fold_predictions:
        tally.add(fold, make_mask(probabilities), pair)
    rows = [Row("last", "", (), tally.result("dice/cell"))]
    text = write(rows, chosen=0, ...)                       # also choice.csv, choice.json

Every image is predicted by the one network that has not been trained on it.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from unet_core import scores
from unet_core.conventions import IGNORED
from unet_core.data.classes import ClassMap
from unet_core.data.instance_masks import object_class as class_of_objects
from unet_core.data.reader import Pair
from unet_core.drawing import tables
from unet_core.files import os_errors, write_json
from unet_core.inference.instances import number_objects
from unet_core.inference.post_processing import KINDS, Step
from unet_core.reports.evaluation import confusion_of, true_objects
from unet_core.reports.thresholds import BestThreshold, ThresholdCounts, score_of
from unet_core.settings.prediction import parse_weights

FILES = ("choice.csv", "choice.json")
_FORMAT = 1
SIZES = (10, 30, 100, 300)
"""Pixels of which objects that have fewer are tried to be dropped."""


class Result(NamedTuple):
    """The score of one way to make masks.

    Attributes:
        score: Of the pixels of all images together.
        by_fold: Of those of each fold.
        object_f1: F1 of the objects at an overlap (IoU) of 0.5; NaN if there is no class of them.
        v_rand: V_Rand, each fold at the threshold that is best on the others; NaN if not scored.
    """

    score: float
    by_fold: tuple[float, ...]
    object_f1: float = math.nan
    v_rand: float = math.nan

    def is_better_than(self, other: Result) -> bool:
        """Returns whether the score is higher, and in more folds higher than lower."""
        pairs = zip(self.by_fold, other.by_fold, strict=True)
        signs = [float(np.sign(own - others)) for own, others in pairs]
        return self.score > other.score and sum(sign for sign in signs if sign == sign) > 0


@dataclasses.dataclass(frozen=True)
class Row:
    """One way to make masks.

    Attributes:
        weights: Which checkpoint.
        threshold: As the flag has it, "cell:0.4"; empty is the usual mask.
        steps: Of post-processing.
        result: Its score.
    """

    weights: str
    threshold: str
    steps: tuple[Step, ...]
    result: Result


class Together(NamedTuple):
    """Scores in the chosen way on images with masks that no network was trained on.

    Attributes:
        images: Their number.
        alone: The score of each network by itself.
        all: That of their mean.
    """

    images: int
    alone: tuple[float, ...]
    all: float


class Tally:
    """What masks made in one way have right, fold by fold; images are added one by one.

    Args:
        classes: The classes.
        folds: Their number.
        object_class: As for `Evaluation`.
        instances: As for `Evaluation`.
        least_object_px: As for `Evaluation`.
    """

    def __init__(
        self,
        classes: ClassMap,
        folds: int,
        object_class: str = "",
        *,
        instances: str = "none",
        least_object_px: int = 0,
    ):
        self._classes = classes
        self._names = classes.names
        number = len(classes)
        shape = (number, 2, 2) if classes.overlapping else (number, number)
        self.confusion = np.zeros((folds, *shape), np.int64)
        self._object_class = class_of_objects(classes, object_class)
        self._how: dict[str, Any] = {"how": instances, "least_px": least_object_px}
        self._objects = scores.ObjectCounts()

    def add(self, fold: int, ids: np.ndarray, pair: Pair) -> None:
        """Counts one image of a fold: the class ids [H, W] of its mask, and image and truth."""
        self.confusion[fold] += confusion_of(pair.mask, ids, self._classes)
        if self._object_class:
            own, kept = self._classes.index(self._object_class), pair.mask != IGNORED
            predicted = number_objects(ids, self._classes, self._object_class, **self._how)
            self._objects.add(predicted, true_objects(pair, self._classes, own), kept)

    def result(self, monitor: str, v_rand: float = math.nan) -> Result:
        """Returns the scores by `monitor`, see `thresholds.score_by`."""
        object_f1 = math.nan if not self._object_class else min(self._objects.f1().items())[1]
        return result_of(self.confusion, monitor, self._names)._replace(
            object_f1=object_f1, v_rand=v_rand
        )


def result_of(confusion: np.ndarray, monitor: str, names: Sequence[str]) -> Result:
    """Returns the scores of the confusion matrices of each fold, see `metrics.scores`."""
    by_fold = tuple(score_of(each, monitor, names) for each in confusion)
    return Result(score_of(confusion.sum(0), monitor, names), by_fold)


def fitted_thresholds(
    counts: Sequence[ThresholdCounts], monitor: str, names: Sequence[str]
) -> list[BestThreshold]:
    """Returns for each fold the threshold that is best on all the other folds together.

    So none is scored on what it was chosen on.
    """
    found = []
    for fold in range(len(counts)):
        others = [each for number, each in enumerate(counts) if number != fold]
        found.append(sum(others[1:], start=others[0]).best(monitor, names))
    return found


def fitted_v_rand(curves: Sequence[Mapping[str, Mapping[str, Sequence[float]]]]) -> float:
    """Returns V_Rand of all images, each at the threshold that is best on the other folds.

    Args:
        curves: For each fold, its images and their curves, as `scores.stack_scores` takes them.
    """
    everything, chosen = {}, {}
    for fold, images in enumerate(curves):
        others = {
            f"{number}/{name}": curve
            for number, each in enumerate(curves)
            if number != fold
            for name, curve in each.items()
        }
        best = scores.stack_scores(others)
        thresholds = {key: best[f"{key}/threshold"] for key in ("v_rand", "v_info")}
        if any(value != value for value in thresholds.values()):
            return math.nan
        for name, curve in images.items():
            everything[f"{fold}/{name}"], chosen[f"{fold}/{name}"] = curve, thresholds
    return scores.stack_scores(everything, chosen).get("v_rand/chosen", math.nan)


def candidates(classes: ClassMap, *, fills_holes: bool) -> list[Step]:
    """Returns the steps of post-processing that are tried, each by itself.

    `fills_holes` is whether scipy is there, with which holes are filled.
    """
    ids = range(len(classes))
    return [
        *(Step("fill_holes", each) for each in ids if fills_holes),
        *(Step("drop_smaller", each, pixels) for each in ids for pixels in SIZES),
        *(Step("keep_largest", each) for each in ids),
    ]


def helpful(tried: Mapping[Step, Result], before: Result) -> list[Step]:
    """Returns the steps that raise the score, the best of each kind and class, best first."""
    best: dict[tuple[str, int], Step] = {}
    for step, result in tried.items():
        key = step.kind, step.class_id
        if result.is_better_than(before) and (
            key not in best or result.score > tried[best[key]].score
        ):
            best[key] = step
    return sorted(best.values(), key=lambda step: -tried[step].score)


def combinations(steps: Sequence[Step]) -> list[tuple[Step, ...]]:
    """Returns the first two of `steps`, the first three ... and all, each in the usual order."""
    return [
        tuple(sorted(steps[:number], key=lambda step: KINDS.index(step.kind)))
        for number in range(2, len(steps) + 1)
    ]


def flags_of(steps: Sequence[Step], classes: ClassMap) -> dict[str, str]:
    """Returns the flags that ask for `steps`, by name."""
    found: dict[str, list[str]] = {}
    for step in steps:
        size = f":{step.pixels}" if step.pixels else ""
        found.setdefault(step.kind, []).append(classes.names[step.class_id] + size)
    return {name: ",".join(values) for name, values in found.items()}


def write(
    rows: Sequence[Row],
    chosen: Row,
    output_dir: pathlib.Path,
    *,
    classes: ClassMap,
    score_by: str,
    images: int,
    use: Mapping[str, Any],
    command: str,
    together: Together | None = None,
) -> str:
    """Writes choice.csv and choice.json and returns the table for the screen.

    Args:
        rows: All ways that were compared.
        chosen: One of them.
        output_dir: The folder to write to.
        classes: The classes.
        score_by: The name of the score.
        images: The number of images.
        use: What other modes take over, for JSON: settings and steps.
        command: What predicts in the chosen way.
        together: What was scored of all networks together, if anything.

    Raises:
        UserError: If a file cannot be written.
    """
    told = [_told(row, classes) | {"chosen": row is chosen} for row in rows]
    with os_errors(output_dir, "the comparison cannot be written", "Make room."):
        stored = {"score_by": score_by, "images": images, "rows": told, "command": command}
        stored |= {"chosen": use, "test": together and together._asdict()}
        write_json(output_dir / "choice.json", {"format": _FORMAT, **stored})
        table = {}
        for row in rows:
            result = row.result
            table[_named(row, classes)] = {
                score_by: result.score,
                **{f"fold {number}": value for number, value in enumerate(result.by_fold)},
                "object_f1/0.50": result.object_f1,
                "v_rand": result.v_rand,
                "chosen": float(row is chosen),
            }
        tables.write_csv(output_dir / "choice.csv", "masks", table)
    lines = [
        [
            _named(row, classes),
            *map(tables.number, (row.result.score, _spread(row.result.by_fold))),
            *map(tables.number, (row.result.object_f1, row.result.v_rand)),
            "<" if row is chosen else "",
        ]
        for row in rows
    ]
    return tables.table(["masks", score_by, "spread", "object F1", "V_Rand", "chosen"], lines)


def _told(row: Row, classes: ClassMap) -> dict:
    """Returns a row for JSON."""
    result = {
        name: None if value != value else value for name, value in row.result._asdict().items()
    }
    result["by_fold"] = [None if value != value else value for value in row.result.by_fold]
    flags = {"weights": row.weights, "threshold": row.threshold or "0.5"}
    return {**flags, **flags_of(row.steps, classes), **result}


def _named(row: Row, classes: ClassMap) -> str:
    flags = [f"{name}={value}" for name, value in flags_of(row.steps, classes).items()]
    return " ".join([row.weights, row.threshold or "0.5", *flags])


def _spread(by_fold: Sequence[float]) -> float:
    """Returns the standard deviation over the folds that are defined."""
    defined = [value for value in by_fold if value == value]
    return float(np.std(defined, ddof=1)) if len(defined) > 1 else math.nan


def is_better_weights(weights: str, own: Result, best: Result) -> bool:
    """Returns whether a way with `weights` is better than the best before it.

    Of the best checkpoint beyond doubt, as it was chosen by these very images.
    """
    if parse_weights(weights)[0]:
        return _beats_although_chosen_here(own, best)
    return own.is_better_than(best)


def _beats_although_chosen_here(best: Result, other: Result) -> bool:
    """Returns whether weights that were chosen by these very images are better beyond doubt.

    They must be so by more than the spread of the other's score over the folds.
    """
    spread = _spread(other.by_fold)
    return best.is_better_than(other) and best.score - other.score > (
        spread if spread == spread else 0
    )
