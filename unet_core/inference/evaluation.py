"""Scores of a network on samples with known masks, with pictures of truth beside prediction."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from unet_core import metrics, scores
from unet_core.conventions import IGNORED
from unet_core.data import images
from unet_core.data.classes import ClassMap
from unet_core.data.reader import Reader
from unet_core.data.samples import Sample
from unet_core.errors import UserError
from unet_core.inference.files import predicted_ids
from unet_core.inference.predictor import Predictor
from unet_core.reports import pictures, tables


def score_samples(
    predictor: Predictor,
    samples: Sequence[Sample],
    read: Reader,
    picture_dir: pathlib.Path,
    *,
    progress: Callable = iter,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any] | None:
    """Predicts `samples` whole, writes `<name>_errors.png` for each, and returns the scores.

    Returns:
        A dict for `scores.json`: `scores` over all pixels of all samples, `per_image`, `confusion`,
        and, for grey 8-bit images, `best_threshold` per class. Ignored pixels count nowhere. None
        if `should_stop()` became true.

    Raises:
        UserError: If a sample cannot be read, or a picture cannot be written.
    """
    classes = read.classes
    total = np.zeros((len(classes), len(classes)), np.int64)
    per_image = {}
    baseline = None
    if read.channels == 1 and read.dtype == np.uint8:
        baseline = scores.ThresholdBaseline(len(classes))
    try:
        picture_dir.mkdir(parents=True, exist_ok=True)
        for sample in progress(samples):
            if should_stop():
                return None
            pair = read(sample)
            if baseline:
                baseline.add(pair.image, pair.mask)
            ids = predicted_ids(predictor(pair.image))
            kept = pair.mask != IGNORED
            confusion = np.bincount(
                pair.mask[kept].astype(np.int64) * len(classes) + ids[kept],
                minlength=len(classes) ** 2,
            ).reshape(len(classes), len(classes))
            total += confusion
            per_image[sample.name] = metrics.scores(confusion, classes.names)
            rarest = int(np.argmin(total.sum(1))) if len(classes) == 2 else None
            row = pictures.comparison(pair.image, pair.mask, ids, classes, of_class=rarest)
            images.write_png(picture_dir / f"{sample.name}_errors.png", row)
    except OSError as error:
        raise UserError(f"{picture_dir}: pictures cannot be written ({error.strerror}).") from error
    thresholds = {}
    for number, name in enumerate(classes.names if baseline else ()):
        dice, how = baseline.best(number)
        thresholds[name] = {"dice": dice, "how": how}
    return {
        "scores": metrics.scores(total, classes.names),
        "best_threshold": thresholds,
        "confusion": total.tolist(),
        "per_image": per_image,
    }


def describe_scores(result: dict[str, Any], classes: ClassMap) -> str:
    """Returns the scores of `score_samples` as text for the screen."""
    found = result["scores"]
    lines = [
        f"Scores on {len(result['per_image'])} held-out image(s)",
        tables.class_scores(found, classes.names),
        f"accuracy {tables.number(found['accuracy'])} "
        f"(always naming the most frequent class: {tables.number(found['majority_baseline'])})",
    ]
    for name, baseline in result["best_threshold"].items():
        lines.append(
            f"{name}: Dice {tables.number(found[f'dice/{name}'])}; the best threshold reaches "
            f"{tables.number(baseline['dice'])} ({baseline['how']})"
        )
    return "\n".join(lines)
