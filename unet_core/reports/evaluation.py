"""Scores of a network on samples with known masks, with pictures of truth beside prediction.

evaluation = Evaluation(classes, object_class="cell")
for sample in samples:
    evaluation.add(*predict_sample(window, sample, read))
result = evaluation.result(chosen)                 # for scores.json
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
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
from unet_core.errors import UserError
from unet_core.files import os_errors, read_bytes
from unet_core.inference.instances import components, number_objects
from unet_core.inference.masks import MaskRule, usual_rule, write_mask
from unet_core.inference.natively import predict_sample
from unet_core.reports.totals import Totals

_WORST = 6
_MOST_TO_CHOOSE_ON = 6
_MOST_BYTES = 2**31
_CANNOT_WRITE = "scores and pictures cannot be written"
_ADVICE = "Make room, permit writing, or choose another folder."


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
        totals: What is added up.

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
        self._boundary_px = boundary_px
        wanted = self._has_segments and segment_scores
        self.scores_segments = wanted and scores.can_score_segments()
        self.make_mask = make_mask or usual_rule(classes)
        self.totals = Totals.of(
            classes,
            baseline=baseline,
            objects=self._object is not None,
            segments=self.scores_segments if wanted else None,
        )

    def add(self, pair: Pair, probabilities: np.ndarray) -> dict[str, float]:
        """Adds one image and returns its own scores by name.

        Args:
            pair: Image and truth.
            probabilities: [H, W, C].

        Raises:
            ValueError: If one of this name was added before, whose scores it would replace.
        """
        total = self.totals
        if pair.name in total.per_image:
            raise ValueError(
                f"Two images are called {pair.name!r}; scores are kept by name. Rename one."
            )
        truth, ids = pair.mask, self.make_mask(probabilities)
        kept = truth != IGNORED
        confusion = confusion_of(truth, ids, self._classes)
        total.confusion += confusion
        found = metrics.scores(confusion, self._classes.names)
        for each, name in enumerate(self._classes.names):
            predicted, true = self._classes.has(ids, each), self._classes.has(truth, each)
            found[f"boundary_f1/{name}"] = scores.boundary_f1(
                predicted, true, tolerance_px=self._boundary_px, kept=kept
            )
            found[f"hausdorff95/{name}"] = scores.hausdorff95(predicted, true, kept=kept)
            total.precision_recall[each].add(probabilities[..., each], true, kept)
            if self._classes.overlapping:
                of_class = probabilities[..., each]
                both = np.stack([1 - of_class, of_class], -1)
                total.calibrate(pair.name, both, np.where(kept, true, IGNORED))
        if not self._classes.overlapping:
            total.calibrate(pair.name, probabilities, truth)
        if self._of_two:
            found["unet_medical_dice"] = scores.unet_medical_dice(probabilities, truth)
            found["unet_medical_dice/soft_labels"] = scores.unet_medical_dice(
                probabilities, truth, hard_labels=False
            )
        if self._object is not None and total.objects is not None:
            predicted = number_objects(ids, self._classes, self._object_class, **self._how)
            total.objects.add(predicted, true_objects(pair, self._classes, self._object), kept)
        if self._has_segments:
            probability = probabilities[..., self._object]
            if self.scores_segments:
                v_rand, v_info = scores.segment_curve(probability, truth == self._object)
                total.curves[pair.name] = {"v_rand": v_rand.tolist(), "v_info": v_info.tolist()}
            found["rand_f1"] = scores.legacy_rand_f1(probability, truth == self._object, 0.5)
            inside = np.where(kept, truth == self._object, IGNORED)
            found["pixel_error"] = scores.pixel_error(probability, inside, 0.5)
        if total.baseline:
            total.baseline.add(pair.image, truth)
        total.per_image[pair.name] = found
        return found

    def result(self, chosen: dict[str, float] | None = None) -> dict[str, Any]:
        """Returns what goes into `scores.json`, see `Totals.result`."""
        return self.totals.result(chosen)


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


class Scored(NamedTuple):
    """What scored images have added up to, and the thresholds that were chosen elsewhere."""

    totals: Totals
    chosen: dict[str, float]


def score_samples(
    window: Callable[[np.ndarray], np.ndarray],
    samples: Sequence[Sample],
    read: Reader,
    output_dir: pathlib.Path,
    **how: Any,
) -> dict[str, Any] | None:
    """Predicts `samples` and returns their scores.

    Beside what `add_up` writes, it writes `per_image.csv`, `worst.png` (the images with the lowest
    mean Dice) and `precision_recall.png`.

    Args:
        window: See `add_up`, and so all others.
        samples: What to score.
        read: Decodes them and knows the classes.
        output_dir: The folder to write to.
        **how: The others.

    Returns:
        A dict for `scores.json`, see `Totals.result`. None if `should_stop()` became true.

    Raises:
        UserError: As `add_up`.
    """
    scored = add_up(window, samples, read, output_dir, **how)
    if scored is None:
        return None
    result = scored.totals.result(scored.chosen)
    write_overview(output_dir, result, read.classes)
    return result


def add_up(
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
) -> Scored | None:
    """Predicts `samples` and returns what their scores are made of.

    It writes, for each, `held_out/<name>_predict.png` (see `write_mask`) and
    `held_out/<name>_errors.png`.

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
        None if `should_stop()` became true.

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
    with os_errors(output_dir, _CANNOT_WRITE, _ADVICE):
        picture_dir.mkdir(parents=True, exist_ok=True)
        for sample in progress("Scoring held-out images")(samples):
            if should_stop():
                return None
            _score_one(window, sample, read, evaluation, picture_dir, mask_format)
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
    return Scored(evaluation.totals, chosen)


def _score_one(
    window: Callable[[np.ndarray], np.ndarray],
    sample: Sample,
    read: Reader,
    evaluation: Evaluation,
    picture_dir: pathlib.Path,
    mask_format: str,
) -> None:
    """Predicts a sample, adds it to `evaluation` and writes its mask and its errors."""
    pair, probabilities = predict_sample(window, sample, read)
    evaluation.add(pair, probabilities)
    ids, classes = evaluation.make_mask(probabilities), read.classes
    write_mask(picture_dir / sample.name, ids, classes, mask_format)
    picture = pictures.comparison(pair.image, pair.mask, ids, classes)
    images.write_png(_errors_of(picture_dir, sample.name), picture)


def write_overview(output_dir: pathlib.Path, result: dict[str, Any], classes: ClassMap) -> None:
    """Writes the worst images, the curves of precision and recall, and the table of images.

    Args:
        output_dir: The folder, which holds what `add_up` has written of each image.
        result: See `Totals.result`.
        classes: The classes.

    Raises:
        UserError: If a picture is not there any more, or a file cannot be written.
    """
    with os_errors(output_dir, _CANNOT_WRITE, _ADVICE):
        sheet = pictures.stacked(_worst(output_dir / "held_out", result["per_image"]))
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


def _worst(
    picture_dir: pathlib.Path, per_image: Mapping[str, Mapping[str, float]]
) -> list[tuple[str, np.ndarray]]:
    """Returns titles and pictures of errors of the images with the lowest mean Dice."""
    found = sorted((image["dice/mean"], name) for name, image in per_image.items())
    rows = []
    for dice, name in found[:_WORST]:
        path = _errors_of(picture_dir, name)
        content = read_bytes(path, most_bytes=_MOST_BYTES)
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        if picture is None:
            raise UserError(f"{path}: cannot be read as a picture. Score its image again.")
        rows.append((f"{name}: mean Dice {dice:.4f}", picture))
    return rows


def _errors_of(picture_dir: pathlib.Path, name: str) -> pathlib.Path:
    return picture_dir / f"{name}_errors.png"


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
