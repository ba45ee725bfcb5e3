"""Scores of a network on samples with known masks, with pictures of truth beside prediction.

evaluation = Evaluation(classes, object_class="cell")
for sample in samples:
    evaluation.add(*predict_sample(window, sample, read))
result = evaluation.result(chosen)                 # for scores.json
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from unet_core import metrics, scores
from unet_core.conventions import IGNORED
from unet_core.data import images
from unet_core.data.classes import ClassMap
from unet_core.data.instance_masks import OBJECT
from unet_core.data.instance_masks import object_class as class_of_objects
from unet_core.data.reader import Pair, Reader
from unet_core.data.samples import Sample
from unet_core.drawing import pictures, plots, tables
from unet_core.files import os_errors
from unet_core.inference.instances import components, number_objects
from unet_core.inference.masks import MaskRule, usual_rule, write_mask
from unet_core.inference.natively import predict_sample
from unet_core.reports.scores_file import BINS

_WORST = 6
_MOST_TO_CHOOSE_ON = 6


class Evaluation:
    """Adds up what is scored, image by image; memory does not grow with the images' sizes.

    Args:
        classes: The classes.
        object_class: The class whose connected regions are objects; empty scores none, or where
            masks number objects, these. True objects are then those of the masks.
        instances: How predicted objects are numbered, see `instances.number_objects`.
        least_object_px: Predicted objects of fewer pixels are none.
        segment_scores: Whether V_Rand and V_Info are wanted.
        boundary_px: Tolerance of the boundary F1.
        baseline: Whether to find the best threshold of the grey values for comparison; for grey
            8-bit images.
        make_mask: From probabilities to the mask that is scored. Calibration, precision and recall
            at every threshold, V_Rand and V_Info are those of the probabilities. None is the usual.

    Attributes:
        scores_segments: Whether V_Rand and V_Info are scored: if wanted, of two classes that
            exclude one another, one of them objects, where scikit-image is installed.
        make_mask: As given.

    Raises:
        UserError: If there is no such class.
    """

    def __init__(
        self,
        classes: ClassMap,
        *,
        object_class: str = "",
        instances: str = "none",
        least_object_px: int = 0,
        segment_scores: bool = True,
        boundary_px: float = 2.0,
        baseline: bool = False,
        make_mask: MaskRule | None = None,
    ):
        number = len(classes)
        self._classes = classes
        # Scores of a class and its complement.
        self._of_two = number == 2 and not classes.overlapping
        self._object_class = class_of_objects(classes, object_class)
        self._object = classes.index(self._object_class) if self._object_class else None
        self._how: dict[str, Any] = {"how": instances, "least_px": least_object_px}
        # V_Rand and V_Info are scores of two classes, one of them objects between membranes.
        self._has_segments = self._object is not None and self._of_two and classes.border_px is None
        self._lacks_scikit_image = (
            self._has_segments and segment_scores and not scores.can_score_segments()
        )
        self.scores_segments = (
            self._has_segments and segment_scores and not self._lacks_scikit_image
        )
        self._boundary_px = boundary_px
        self.make_mask = make_mask or usual_rule(classes)
        shape = (number, 2, 2) if classes.overlapping else (number, number)
        self._confusion = np.zeros(shape, np.int64)
        self._per_image: dict[str, dict[str, float]] = {}
        self._curves: dict[str, dict[str, list[float]]] = {}
        self._baseline = scores.ThresholdBaseline(number) if baseline else None
        self._precision_recall = [scores.PrecisionRecall() for _ in classes.names]
        self._calibration = scores.Calibration()
        self._objects = scores.ObjectCounts()

    def add(self, pair: Pair, probabilities: np.ndarray) -> dict[str, float]:
        """Adds one image and returns its own scores by name.

        Args:
            pair: Image and truth.
            probabilities: [H, W, C].

        Raises:
            ValueError: If one of this name was added before, whose scores it would replace.
        """
        if pair.name in self._per_image:
            raise ValueError(
                f"Two images are called {pair.name!r}; scores are kept by name. Rename one."
            )
        truth, ids = pair.mask, self.make_mask(probabilities)
        kept = truth != IGNORED
        confusion = confusion_of(truth, ids, self._classes)
        self._confusion += confusion
        found = metrics.scores(confusion, self._classes.names)
        for each, name in enumerate(self._classes.names):
            predicted, true = self._classes.has(ids, each), self._classes.has(truth, each)
            found[f"boundary_f1/{name}"] = scores.boundary_f1(
                predicted, true, tolerance_px=self._boundary_px, kept=kept
            )
            found[f"hausdorff95/{name}"] = scores.hausdorff95(predicted, true, kept=kept)
            self._precision_recall[each].add(probabilities[..., each], true, kept)
            if self._classes.overlapping:
                of_class = probabilities[..., each]
                both = np.stack([1 - of_class, of_class], -1)
                self._calibration.add(both, np.where(kept, true, IGNORED))
        if not self._classes.overlapping:
            self._calibration.add(probabilities, truth)
        if self._of_two:
            found["unet_medical_dice"] = scores.unet_medical_dice(probabilities, truth)
            found["unet_medical_dice/soft_labels"] = scores.unet_medical_dice(
                probabilities, truth, hard_labels=False
            )
        if self._object is not None:
            predicted = number_objects(ids, self._classes, self._object_class, **self._how)
            self._objects.add(predicted, true_objects(pair, self._classes, self._object), kept)
        if self._has_segments:
            probability = probabilities[..., self._object]
            if self.scores_segments:
                v_rand, v_info = scores.segment_curve(probability, truth == self._object)
                self._curves[pair.name] = {"v_rand": v_rand.tolist(), "v_info": v_info.tolist()}
            found["rand_f1"] = scores.legacy_rand_f1(probability, truth == self._object, 0.5)
            inside = np.where(kept, truth == self._object, IGNORED)
            found["pixel_error"] = scores.pixel_error(probability, inside, 0.5)
        if self._baseline:
            self._baseline.add(pair.image, truth)
        self._per_image[pair.name] = found
        return found

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
        names = self._classes.names
        total = metrics.scores(self._confusion, names)
        others = {key for found in self._per_image.values() for key in found} - set(total)
        for key in sorted(others):
            total[key] = _mean([found[key] for found in self._per_image.values()])
        for name, curve in zip(names, self._precision_recall, strict=True):
            total[f"average_precision/{name}"] = curve.average_precision()
        total["calibration_error"] = self._calibration.error()
        result: dict[str, Any] = {
            "scores": total,
            "best_threshold": {},
            "confusion": self._confusion.tolist(),
            "per_image": self._per_image,
            "calibration": [dataclasses.asdict(each) for each in self._calibration.table()],
            "precision_recall": {
                name: _thinned(*curve.curve())
                for name, curve in zip(names, self._precision_recall, strict=True)
            },
        }
        result["probabilities"] = {
            name: dict(zip(("of_others", "of_class"), curve.histogram(BINS).tolist(), strict=True))
            for name, curve in zip(names, self._precision_recall, strict=True)
        }
        if self._baseline is not None:
            for number, name in enumerate(names):
                if found := self._baseline.best(number):
                    result["best_threshold"][name] = dict(zip(("dice", "how"), found, strict=True))
        if self._object is not None:
            f1 = self._objects.f1()
            result["objects"] = {f"{iou:.2f}": value for iou, value in f1.items()}
            total["object_f1/mean"] = self._objects.mean_f1()
            total["object_f1/0.50"] = f1[min(f1)]
        if self.scores_segments:
            result["segments"] = {"chosen": chosen or {}, "per_image": self._curves}
            chosen_for = dict.fromkeys(self._curves, chosen or {})
            total |= scores.stack_scores(self._curves, chosen_for)
        elif self._lacks_scikit_image:
            result["left_out"] = scores.SEGMENTS_NEED
        return result


def true_objects(pair: Pair, classes: ClassMap, object_id: int) -> np.ndarray:
    """Returns the true objects of a class, [H, W] numbers: those of the mask if it has them."""
    if pair.instances is not None and object_id == OBJECT:
        return pair.instances
    return components(classes.has(pair.mask, object_id))


def choose_thresholds(
    window: Callable[[np.ndarray], np.ndarray],
    samples: Sequence[Sample],
    read: Reader,
    object_class: str,
    *,
    progress: Callable = iter,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Returns the thresholds with the best V_Rand and V_Info on `samples`; empty if stopped."""
    curves = {}
    number = read.classes.index(object_class)
    for sample in progress(samples):
        if should_stop():
            return {}
        pair, probabilities = predict_sample(window, sample, read)
        probability = probabilities[..., number]
        v_rand, v_info = scores.segment_curve(probability, pair.mask == number)
        curves[sample.name] = {"v_rand": v_rand.tolist(), "v_info": v_info.tolist()}
    if not curves:
        return {}
    total = scores.stack_scores(curves)
    return {key: total[f"{key}/threshold"] for key in ("v_rand", "v_info")}


def score_samples(
    window: Callable[[np.ndarray], np.ndarray],
    samples: Sequence[Sample],
    read: Reader,
    output_dir: pathlib.Path,
    *,
    object_class: str = "",
    instances: str = "none",
    least_object_px: int = 0,
    segment_scores: bool = True,
    boundary_px: float = 2.0,
    training_samples: Sequence[Sample] = (),
    mask_format: str = "values",
    make_mask: MaskRule | None = None,
    progress: Callable[[str], Callable] = lambda _: iter,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any] | None:
    """Predicts `samples` and returns their scores.

    It writes, for each, `held_out/<name>_predict.png` (see `write_mask`) and
    `held_out/<name>_errors.png`, and
    `per_image.csv`, `worst.png` (the images with the lowest mean Dice) and `precision_recall.png`.

    Args:
        window: [H, W] or [H, W, C] scaled and resized pixels -> probabilities [H, W, C].
        samples: What to score.
        read: Decodes them and knows the classes.
        output_dir: The folder to write to.
        object_class: See `Evaluation`.
        instances: See `Evaluation`.
        least_object_px: See `Evaluation`.
        segment_scores: See `Evaluation`.
        boundary_px: See `Evaluation`.
        training_samples: Images on which the threshold of V_Rand and V_Info is chosen; of more than
            6, every n-th.
        mask_format: As for `predict_files`.
        make_mask: See `Evaluation`.
        progress: Title -> wrapper of a list that takes long to work through.
        should_stop: Asked before every image.

    Returns:
        A dict for `scores.json`, see `Evaluation.result`. None if `should_stop()` became true.

    Raises:
        UserError: If a sample cannot be read, a picture cannot be written, or the network's output
            is not finite.
    """
    evaluation = Evaluation(
        read.classes,
        object_class=object_class,
        instances=instances,
        least_object_px=least_object_px,
        segment_scores=segment_scores,
        boundary_px=boundary_px,
        # One threshold makes classes that exclude one another.
        baseline=read.channels == 1 and read.dtype == np.uint8 and not read.classes.overlapping,
        make_mask=make_mask,
    )
    picture_dir = output_dir / "held_out"
    worst: list[_Row] = []
    advice = "Make room, permit writing, or choose another folder."
    with os_errors(output_dir, "scores and pictures cannot be written", advice):
        picture_dir.mkdir(parents=True, exist_ok=True)
        for sample in progress("Scoring held-out images")(samples):
            if should_stop():
                return None
            worst.append(_score_one(window, sample, read, evaluation, picture_dir, mask_format))
            worst = sorted(worst, key=lambda row: (row.dice, row.title))[:_WORST]
        chosen = {}
        if evaluation.scores_segments and training_samples:
            step = -(-len(training_samples) // _MOST_TO_CHOOSE_ON)
            chosen = choose_thresholds(
                window,
                training_samples[::step],
                read,
                object_class,
                progress=progress("Choosing thresholds on training images"),
                should_stop=should_stop,
            )
            if should_stop():
                return None
        result = evaluation.result(chosen)
        _write_overview(output_dir, result, worst, read.classes)
    return result


class _Row(NamedTuple):
    """One image among the worst: its mean Dice, the title of its picture, and the picture."""

    dice: float
    title: str
    picture: np.ndarray


def _score_one(
    window: Callable[[np.ndarray], np.ndarray],
    sample: Sample,
    read: Reader,
    evaluation: Evaluation,
    picture_dir: pathlib.Path,
    mask_format: str,
) -> _Row:
    """Predicts a sample, adds it to `evaluation` and writes its mask and its errors."""
    pair, probabilities = predict_sample(window, sample, read)
    dice = evaluation.add(pair, probabilities)["dice/mean"]
    ids, classes = evaluation.make_mask(probabilities), read.classes
    write_mask(picture_dir / sample.name, ids, classes, mask_format)
    picture = pictures.comparison(pair.image, pair.mask, ids, classes)
    images.write_png(picture_dir / f"{sample.name}_errors.png", picture)
    return _Row(dice, f"{sample.name}: mean Dice {dice:.4f}", picture)


def _write_overview(
    output_dir: pathlib.Path, result: dict[str, Any], worst: Sequence[_Row], classes: ClassMap
) -> None:
    """Writes the worst images, the curves of precision and recall, and the table of images."""
    sheet = pictures.stacked([(row.title, row.picture) for row in worst])
    images.write_png(output_dir / "worst.png", sheet)
    curves = {
        name: (curve["recall"], curve["precision"])
        for name, curve in result["precision_recall"].items()
    }
    images.write_png(
        output_dir / "precision_recall.png",
        plots.curves(curves, classes.palette(), x_title="recall", y_title="precision"),
    )
    tables.write_csv(output_dir / "per_image.csv", "image", result["per_image"])


def describe_scores(result: dict[str, Any], classes: ClassMap) -> str:
    """Returns the scores of `score_samples` as text for the screen."""
    found = result["scores"]
    lines = [
        f"Scores on {len(result['per_image'])} held-out image(s)",
        tables.class_scores(found, classes.names),
        f"accuracy {tables.number(found['accuracy'])} "
        f"(always naming the most frequent class: {tables.number(found['majority_baseline'])}), "
        f"calibration error {tables.number(found['calibration_error'])}",
    ]
    absent = [name for name in classes.names if np.isnan(found[f"recall/{name}"])]
    if absent:
        lines.append(f"No mask has a pixel of {', '.join(absent)}.")
    for name, baseline in result["best_threshold"].items():
        lines.append(
            f"{name}: Dice {tables.number(found[f'dice/{name}'])}; the best threshold reaches "
            f"{tables.number(baseline['dice'])} ({baseline['how']})"
        )
    if "objects" in result:
        lines.append(
            f"objects: F1 {tables.number(found['object_f1/0.50'])} at IoU 0.5, "
            f"{tables.number(found['object_f1/mean'])} on average from 0.5 to 0.95"
        )
    if "left_out" in result:
        lines.append(result["left_out"])
    for key, name in (("v_rand", "V_Rand"), ("v_info", "V_Info")):
        if key in found:
            text = f"{name} {tables.number(found[key])} at its best threshold, "
            text += f"{found[f'{key}/threshold']:.3g}"
            if f"{key}/chosen" in found:
                text += (
                    f"; {tables.number(found[f'{key}/chosen'])} at "
                    f"{result['segments']['chosen'][key]:.3g}, chosen on training images"
                )
            lines.append(text)
    return "\n".join(lines)


def confusion_of(truth: np.ndarray, ids: np.ndarray, classes: ClassMap) -> np.ndarray:
    """Returns the confusion matrix of one image, as `metrics.confusion_matrix`."""
    kept, number = truth != IGNORED, len(classes)
    if not classes.overlapping:
        pairs = truth[kept].astype(np.int64) * number + ids[kept]
        return np.bincount(pairs, minlength=number**2).reshape(number, number)
    of_each = [2 * classes.has(truth, n) + classes.has(ids, n) for n in range(number)]
    counts = [np.bincount(pairs[kept], minlength=4) for pairs in of_each]
    return np.reshape(counts, (number, 2, 2))


def _mean(values: Sequence[float]) -> float:
    """Returns the mean of those that are defined."""
    defined = [value for value in values if value == value]
    return float(np.mean(defined)) if defined else float("nan")


def _thinned(precision: np.ndarray, recall: np.ndarray, _: np.ndarray) -> dict[str, list[float]]:
    """Returns at most a hundred points of a curve."""
    last = max(len(precision) - 1, 0)
    taken = np.unique(np.linspace(0, last, 100).round().astype(int))[: len(precision)]
    return {"recall": recall[taken].tolist(), "precision": precision[taken].tolist()}
