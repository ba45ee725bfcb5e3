"""The probability above which a pixel is of a class, chosen by a score.

    counts = ThresholdCounts(class_id)                  # additive over images
    for probabilities, mask in predictions:
        counts.add(probabilities, mask)
    found = counts.best("dice/cell", ["membrane", "cell"])

The images must be others than those that are scored with it: those trained on, or out of fold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from unet_core import metrics
from unet_core.conventions import IGNORED, has_class

THRESHOLDS = np.arange(1, 100, dtype=np.float32) / np.float32(100)
"""The thresholds that are tried: 0.01, 0.02 ... 0.99."""


class BestThreshold(NamedTuple):
    """A threshold and its score."""

    value: float
    score: float


class ThresholdCounts:
    """Pixels by truth and by how many of `THRESHOLDS` their probability exceeds.

    Memory does not grow with the number of images.

    Args:
        class_id: The class whose probability it is: 0 or 1, or one of those that may overlap.
        overlapping: Whether classes may overlap. A pixel is then of the class or not, whatever
            else it is of.
    """

    def __init__(self, class_id: int, overlapping: bool = False):
        self.class_id, self._overlapping = class_id, overlapping
        # Not of the class, of the class.
        self._counts = np.zeros((2, len(THRESHOLDS) + 1), np.int64)

    def add(self, probabilities: np.ndarray, truth: np.ndarray) -> None:
        """Counts one image.

        Args:
            probabilities: [H, W, C] float32; C is 2 unless classes may overlap.
            truth: [H, W] class ids, or `IGNORED`.
        """
        kept = truth != IGNORED
        # The number of thresholds that are less, compared as `predicted_ids` compares.
        exceeded = np.searchsorted(THRESHOLDS, probabilities[..., self.class_id][kept])
        is_own = has_class(truth, self.class_id, self._overlapping)[kept]
        index = is_own * self._counts.shape[1] + exceeded
        counts = np.bincount(index, minlength=self._counts.size)
        self._counts += counts.reshape(self._counts.shape)

    def __add__(self, other: ThresholdCounts) -> ThresholdCounts:
        """Returns the counts of the images of both."""
        total = ThresholdCounts(self.class_id, self._overlapping)
        total._counts = self._counts + other._counts
        return total

    def confusion(self, value: float) -> np.ndarray:
        """Returns the confusion matrix [2, 2] int64, true classes in rows, at one threshold.

        Where classes may overlap, rows and columns are without and with the class.

        Args:
            value: One of `THRESHOLDS`, rounded to hundredths.
        """
        least = round(value * 100)
        own = 1 if self._overlapping else self.class_id
        other = 1 - own
        confusion = np.zeros((2, 2), np.int64)
        for row, counts in ((other, self._counts[0]), (own, self._counts[1])):
            confusion[row, own] = counts[least:].sum()
            confusion[row, other] = counts[:least].sum()
        return confusion

    def best(self, monitor: str, names: Sequence[str]) -> BestThreshold:
        """Returns the threshold with the best score; of equals that nearest to 1/2.

        Args:
            monitor: A score of `metrics.scores`, see `score_by`. Where classes may overlap, it is
                that of the class, see `score_of_class`.
            names: The names of all classes.
        """
        by = monitor
        if self._overlapping:
            by, names = score_of_class(monitor, names, self.class_id), [names[self.class_id]]
        found = []
        for value in (number / 100 for number in range(1, 100)):
            confusion = self.confusion(value)
            matrix = confusion[None] if self._overlapping else confusion
            found.append(BestThreshold(value, score_of(matrix, by, names)))
        defined = [each for each in found if each.score == each.score]
        if not defined:
            return BestThreshold(0.5, float("nan"))
        return max(defined, key=lambda each: (each.score, -abs(each.value - 0.5)))


def score_by(monitor: str, names: Sequence[str]) -> str:
    """Returns the score to choose by: `monitor`, where a mask has it and a choice means something.

    Precision and recall alone are best where nothing or all is predicted, so the Dice of the class
    takes their place; that of the mean takes the place of the loss, and of what masks do not have.
    """
    score, _, name = monitor.partition("/")
    if score in ("precision", "recall") and name in names:
        return f"dice/{name}"
    known = set(metrics.scores(np.zeros([len(names)] * 2), names)) - {"majority_baseline"}
    return monitor if monitor in known else "dice/mean"


def score_of_class(monitor: str, names: Sequence[str], class_id: int) -> str:
    """Returns the score of one of the classes that may overlap that is like `score_by`.

    It is the Dice of cells where the Dice of another class or the mean one is monitored.
    """
    score, _, of_class = score_by(monitor, names).partition("/")
    return f"{score}/{names[class_id]}" if of_class else score


def score_of(confusion: np.ndarray, monitor: str, names: Sequence[str]) -> float:
    """Returns the score by `score_by` of a confusion matrix; NaN where it is not defined."""
    return metrics.scores(confusion, names)[score_by(monitor, names)]
