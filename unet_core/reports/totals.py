"""What is scored of images, added up: whole numbers for all of them, and a few numbers for each.

total = Totals.of(classes)                # `Evaluation` adds to it, image by image
result = total.result(chosen)             # for scores.json
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from unet_core import metrics, scores
from unet_core.data.classes import ClassMap
from unet_core.reports.scores_file import BINS


@dataclasses.dataclass
class Totals:
    """What is added up.

    Sums of fractions depend on their order, so these are kept image by image: those of several
    shares, added in the order of all images, are to the last digit those of one process.

    Attributes:
        names: The classes.
        confusion: Pixel counts, as `metrics.confusion_matrix`.
        per_image: The scores of each image, in their order.
        confidence: Of each image what it adds to the sums of `calibration`, a list of one of its
            bins for each time that it is counted.
        curves: V_Rand and V_Info of each image at all thresholds, if they are scored.
        precision_recall: For each class.
        calibration: Of all pixels.
        baseline: Of the grey values, if it is looked for.
        objects: If there is a class of them.
        segments: Whether V_Rand and V_Info are scored; None if they are not wanted, or there is no
            reason to.
    """

    names: Sequence[str]
    confusion: np.ndarray
    precision_recall: list[scores.PrecisionRecall]
    calibration: scores.Calibration = dataclasses.field(default_factory=scores.Calibration)
    baseline: scores.ThresholdBaseline | None = None
    objects: scores.ObjectCounts | None = None
    segments: bool | None = None
    per_image: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    confidence: dict[str, list[list[float]]] = dataclasses.field(default_factory=dict)
    curves: dict[str, dict[str, list[float]]] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls,
        classes: ClassMap,
        *,
        baseline: bool = False,
        objects: bool = False,
        segments: bool | None = None,
    ) -> Totals:
        """Returns those of no images yet.

        Args:
            classes: The classes.
            baseline: Whether there is one.
            objects: Whether they are counted.
            segments: See the attribute.
        """
        number = len(classes)
        shape = (number, 2, 2) if classes.overlapping else (number, number)
        return cls(
            classes.names,
            np.zeros(shape, np.int64),
            [scores.PrecisionRecall() for _ in classes.names],
            baseline=scores.ThresholdBaseline(number) if baseline else None,
            objects=scores.ObjectCounts() if objects else None,
            segments=segments,
        )

    def calibrate(self, name: str, probabilities: np.ndarray, truth: np.ndarray) -> None:
        """Counts the pixels of an image, as `scores.Calibration.add`."""
        counted = scores.Calibration()
        counted.add(probabilities, truth)
        self.calibration.pixels += counted.pixels
        self.calibration.hits += counted.hits
        self.calibrated(name, [counted.confidence.tolist()])

    def calibrated(self, name: str, confidence: Sequence[list[float]]) -> None:
        """Adds what an image adds to the sums of the confidence, [times][bins]."""
        for each in confidence:
            self.calibration.confidence += each
            self.confidence.setdefault(name, []).append(each)

    def result(self, chosen: dict[str, float] | None = None) -> dict[str, Any]:
        """Returns what goes into `scores.json`.

        Args:
            chosen: Thresholds for "v_rand" and "v_info" chosen on training images.

        Returns:
            A dict of `scores`: overlap scores over all pixels of all images, the others as means
            over the images; `per_image`; `confusion`; `best_threshold` per class, of the grey
            values, if there is a baseline; `precision_recall` and `calibration`; `probabilities`,
            for each class the pixels that are of it and those that are not, by its probability in
            100 bins; `objects` and `segments` if there is a class of objects.
        """
        total = metrics.scores(self.confusion, self.names)
        others = {key for found in self.per_image.values() for key in found} - set(total)
        for key in sorted(others):
            total[key] = _mean([found[key] for found in self.per_image.values()])
        for name, curve in zip(self.names, self.precision_recall, strict=True):
            total[f"average_precision/{name}"] = curve.average_precision()
        total["calibration_error"] = self.calibration.error()
        result: dict[str, Any] = {
            "scores": total,
            "best_threshold": {},
            "confusion": self.confusion.tolist(),
            "per_image": self.per_image,
            "calibration": [dataclasses.asdict(each) for each in self.calibration.table()],
            "precision_recall": {
                name: _thinned(*curve.curve())
                for name, curve in zip(self.names, self.precision_recall, strict=True)
            },
        }
        result["probabilities"] = {
            name: dict(zip(("of_others", "of_class"), curve.histogram(BINS).tolist(), strict=True))
            for name, curve in zip(self.names, self.precision_recall, strict=True)
        }
        if self.baseline is not None:
            for number, name in enumerate(self.names):
                if best := self.baseline.best(number):
                    result["best_threshold"][name] = dict(zip(("dice", "how"), best, strict=True))
        if self.objects is not None:
            f1 = self.objects.f1()
            result["objects"] = {f"{iou:.2f}": value for iou, value in f1.items()}
            total["object_f1/mean"] = self.objects.mean_f1()
            total["object_f1/0.50"] = f1[min(f1)]
        if self.segments:
            result["segments"] = {"chosen": chosen or {}, "per_image": self.curves}
            chosen_for = dict.fromkeys(self.curves, chosen or {})
            total |= scores.stack_scores(self.curves, chosen_for)
        elif self.segments is False:
            result["left_out"] = scores.SEGMENTS_NEED
        return result


def _mean(values: Sequence[float]) -> float:
    """Returns the mean of those that are defined."""
    defined = [value for value in values if value == value]
    return float(np.mean(defined)) if defined else float("nan")


def _thinned(precision: np.ndarray, recall: np.ndarray, _: np.ndarray) -> dict[str, list[float]]:
    """Returns at most a hundred points of a curve."""
    last = max(len(precision) - 1, 0)
    taken = np.unique(np.linspace(0, last, 100).round().astype(int))[: len(precision)]
    return {"recall": recall[taken].tolist(), "precision": precision[taken].tolist()}
