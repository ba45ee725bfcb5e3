"""The scores of all folds as one table.

text = write([run_dir / "fold-0", run_dir / "fold-1"], run_dir)     # also folds.csv, folds.json
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import cv2
import msgspec
import numpy as np

from unet_core import metrics, scores
from unet_core.data import images
from unet_core.drawing import pictures, tables
from unet_core.errors import UserError
from unet_core.files import os_errors, write_json
from unet_core.reports.scores_file import class_names, read_scores

_SHOWN = ("dice/", "iou/mean", "accuracy", "v_rand", "v_info", "unet_medical_dice", "boundary_f1/")
_WORST = 3
FILES = ("folds.csv", "folds.json", "worst.png")


def write(run_dirs: Sequence[pathlib.Path], output_dir: pathlib.Path) -> str:
    """Writes `folds.csv`, `folds.json` and `worst.png` and returns the table for the screen.

    Each fold counts once in mean and spread (standard deviation, n - 1). Pooled are the scores of
    all out-of-fold predictions together: overlaps of all pixels, V_Rand and V_Info of all slices
    with one best threshold, and means over all images.

    Args:
        run_dirs: The run folder of each fold, or where else it was scored; `scores.json` is read.
        output_dir: The folder to write to.

    Raises:
        UserError: If a fold has not been scored, its pictures are gone, or a file cannot be
            written.
    """
    results = [_read(run_dir / "scores.json") for run_dir in run_dirs]
    _check_same_classes(results, run_dirs)
    columns = {f"fold {n}": result["scores"] for n, result in enumerate(results)}
    names = list(results[0]["scores"])
    by_fold = {name: [_number(c.get(name)) for c in columns.values()] for name in names}
    columns["mean"] = {name: float(np.mean(values)) for name, values in by_fold.items()}
    columns["spread"] = {name: float(np.std(values, ddof=1)) for name, values in by_fold.items()}
    columns["pooled"] = pooled(results)
    with os_errors(output_dir, "the scores of all folds cannot be written", "Make room."):
        tables.write_csv(output_dir / "folds.csv", "fold", _without_none(columns))
        write_json(output_dir / "folds.json", columns)
        images.write_png(output_dir / "worst.png", _worst(results, run_dirs))
    shown = [name for name in names if name.startswith(_SHOWN)]
    rows = [
        [name, *(tables.number(_number(column.get(name))) for column in columns.values())]
        for name in shown
    ]
    return tables.table(["score", *columns], rows)


def pooled(results: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Returns the scores of the out-of-fold predictions of all folds together.

    They are those that can be computed from the parts in `results`, which `Evaluation.result` has
    made.
    """
    names = class_names(results[0]["scores"])
    total = metrics.scores(np.sum([result["confusion"] for result in results], axis=0), names)
    per_image = [found for result in results for found in result["per_image"].values()]
    for key in per_image[0]:
        if key not in total:
            values = [_number(found.get(key)) for found in per_image]
            defined = [value for value in values if value == value]
            total[key] = float(np.mean(defined)) if defined else float("nan")
    if all("segments" in result for result in results):
        curves, chosen = {}, {}
        for fold, result in enumerate(results):
            for name, curve in result["segments"]["per_image"].items():
                curves[f"{fold}/{name}"] = {
                    score: [_number(value) for value in values] for score, values in curve.items()
                }
                chosen[f"{fold}/{name}"] = result["segments"]["chosen"]
        total |= scores.stack_scores(curves, chosen)
    return total


def _read(path: pathlib.Path) -> dict[str, Any]:
    way = "Start the same command again."
    if not os.path.lexists(path):
        raise UserError(f"{path}: the fold has not been scored. {way}")
    way = "Remove it, and score the fold again with `mode` evaluate."
    return msgspec.to_builtins(read_scores(path, what="the scores of a fold", way=way))


def _check_same_classes(results: Sequence[dict[str, Any]], run_dirs: Sequence[pathlib.Path]):
    first = class_names(results[0]["scores"])
    for result, run_dir in zip(results, run_dirs, strict=True):
        found = class_names(result["scores"])
        if found != first:
            raise UserError(
                f"{run_dir / 'scores.json'}: has scores of {', '.join(found)}, and the first fold "
                f"of {', '.join(first)}. Score all folds again with the same classes."
            )


def _worst(results: Sequence[dict[str, Any]], run_dirs: Sequence[pathlib.Path]) -> np.ndarray:
    """Returns the error pictures of the images with the lowest mean Dice of all folds."""
    found = sorted(
        (_number(image["dice/mean"]), fold, name)
        for fold, result in enumerate(results)
        for name, image in result["per_image"].items()
    )
    rows = []
    for dice, fold, name in found[:_WORST]:
        path = run_dirs[fold] / "held_out" / f"{name}_errors.png"
        picture = cv2.imread(str(path))
        if picture is None:
            raise UserError(
                f"{path}: cannot be read. Score the folds anew with `mode` evaluate and `fold` all."
            )
        rows.append((f"fold {fold}, {name}: mean Dice {dice:.4f}", picture))
    return pictures.stacked(rows)


def _number(value: float | None) -> float:
    """Returns a number as it was before it went to JSON, which has no NaN."""
    return float("nan") if value is None else value


def _without_none(columns: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    return {n: {k: _number(v) for k, v in column.items()} for n, column in columns.items()}
