"""What a run leaves behind: curves, a report of each class, and the images it gets wrong."""

import csv
import pathlib
from argparse import Namespace
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tqdm

from examples.classifier import folders
from unet_core import metrics
from unet_core.data.images import write_png
from unet_core.data.samples import Sample
from unet_core.drawing import pictures, plots, tables


def probabilities_of(model: keras.Model, samples: Sequence[Sample], args: Namespace) -> np.ndarray:
    """Returns the probabilities [N, C] of the classes."""
    batches = tqdm.tqdm(folders.in_order(samples, args), desc="predict", leave=False)
    logits = np.concatenate([np.asarray(model(images, training=False)) for images, _ in batches])
    return np.asarray(keras.ops.softmax(logits))


def draw_curves(run: pathlib.Path, best_epoch: float) -> None:
    """Draws loss, accuracy and F1 by history.csv, and marks the best epoch."""
    with (run / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    series: dict[str, dict[str, list[float]]] = {"loss": {}, "accuracy": {}, "f1": {}}
    for column in rows[0]:
        kind, _, score = column.partition("/")
        if score:
            series[score][kind] = [float(row[column] or "nan") for row in rows]
    epochs, mark = [float(row["epoch"]) for row in rows], ("best epoch", best_epoch)
    write_png(run / "curves.png", plots.panels(epochs, series, x_title="epoch", mark=mark))


def report(
    run: pathlib.Path, confusion: np.ndarray, classes: Sequence[str], show: Callable[[str], None]
) -> dict[str, float]:
    """Writes and shows the scores of each class; returns all scores."""
    scores, columns = metrics.scores(confusion, classes), ("precision", "recall", "f1")
    rows = {name: {each: scores[f"{each}/{name}"] for each in columns} for name in classes}
    for name, support in zip(classes, confusion.sum(1), strict=True):
        rows[name]["support"] = int(support)
    cells = [
        [n, *(tables.number(r[c]) for c in columns), f"{r['support']}"] for n, r in rows.items()
    ]
    show(tables.table(["class", *columns, "support"], cells))
    tables.write_csv(run / "report.csv", "class", rows)
    counts = [[name, *map(str, row)] for name, row in zip(classes, confusion, strict=True)]
    tables.write_texts(run / "confusion.csv", ["truth", *classes], counts)
    write_png(run / "confusion.png", plots.confusion(confusion, classes))
    return scores


def list_misclassified(
    run: pathlib.Path, samples: Sequence[Sample], guesses: Sequence[str], sure: np.ndarray
) -> int:
    """Lists what is wrong, the surest first, and shows the first 48; returns how many are."""
    wrong = [n for n in np.argsort(-sure, kind="stable") if samples[n].group != guesses[n]]
    rows = [[samples[n].name, samples[n].group, guesses[n], f"{sure[n]:.6f}"] for n in wrong]
    header = ["file", "truth", "predicted", "probability"]
    tables.write_texts(run / "misclassified.csv", header, rows)
    tiles = [pictures.displayable(folders.read(samples[n], 160)) for n in wrong[:48]]
    titles = [f"{row[1][:9]} > {row[2][:9]}" for row in rows[:48]] or ["none is wrong"]
    blank = np.full((160, 160, 3), 255, np.uint8)
    write_png(run / "misclassified.png", pictures.contact_sheet(tiles or [blank], titles))
    return len(wrong)
