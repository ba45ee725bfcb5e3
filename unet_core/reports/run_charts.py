"""The charts of a run, made of what its folder holds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unet_core.drawing.charts import COLOURS, Chart, Line
from unet_core.reports.run_files import SPEEDS, RunFiles
from unet_core.reports.scores_file import Scores, class_names

HELD_OUT, TRAINING = "held out", "training"
_BLUE, _GREY = COLOURS.index("#0072b2"), COLOURS.index("#7f7f7f")
_TITLES = {"dice": "Dice (= F1)", "iou": "IoU", "precision": "Precision", "recall": "Recall"}
# Bins of a reliability curve of one class.
_RELIABILITY_BINS = 20


def learning_curves(files: RunFiles) -> list[Chart]:
    """Returns loss and every score by step, of held-out images and of training batches.

    F1 is left out, which is the Dice of pixels.
    """
    names = files.score_names()
    groups = _groups(names, files.classes.names)
    charts = []
    for title, group in groups.items():
        lines = [
            line
            for place, (label, name) in enumerate(group)
            for line in _pair(files, label, name, _BLUE - place)
        ]
        if title == "Accuracy":
            steps, values = files.column("held_out/majority_baseline")
            baseline = Line("most frequent class", steps, values, _GREY, dashed=True)
            lines += [baseline] if steps else []
        charts.append(Chart(title, lines, mark=files.best_step(), last_x=files.last_step))
    return [chart for chart in charts if chart.lines]


def per_class_curves(files: RunFiles) -> list[Chart]:
    """Returns Dice, IoU, precision and recall of each class by step."""
    names, classes = files.score_names(), files.classes.names
    charts = []
    for kind, title in _TITLES.items():
        lines = [
            line
            for place, each in enumerate(classes)
            if f"{kind}/{each}" in names
            for line in _pair(files, each, f"{kind}/{each}", place)
        ]
        charts.append(Chart(title, lines, mark=files.best_step(), last_x=files.last_step))
    return [chart for chart in charts if chart.lines]


def training_charts(files: RunFiles) -> list[Chart]:
    """Returns learning rate, gradient norm, images per second and data wait by step."""
    of_history = {"Learning rate": "train/rate", "Gradient norm": "train/gradient_norm"}
    series = {title: files.column(name) for title, name in of_history.items()}
    speed, wait = (files.speeds[tag] for tag in SPEEDS)
    series["Images per second"] = speed
    series["Data wait, share of the time"] = wait
    return [
        Chart(title, [Line(title, steps, values)], from_zero=True, last_x=files.last_step)
        for title, (steps, values) in series.items()
        if steps
    ]


def precision_recall(scores: Scores) -> Chart:
    """Returns precision by recall of each class."""
    lines = [
        Line(name, _numbers(curve.recall), _numbers(curve.precision), place)
        for place, name in enumerate(class_names(scores.scores))
        if (curve := scores.precision_recall.get(name))
    ]
    return Chart("Precision and recall", lines, x_title="recall", y_title="precision", is_unit=True)


def reliability(scores: Scores) -> Chart:
    """Returns how often predictions are right by how sure they are, also for each class."""
    bins = [each for each in scores.calibration if each.pixels]
    confidences = _numbers([each.confidence for each in bins])
    accuracies = _numbers([each.accuracy for each in bins])
    lines = [Line("predicted class", confidences, accuracies, _GREY)]
    for place, name in _told_apart(scores):
        of_class, of_others = _histogram(scores, name)
        counts = np.stack([of_class, of_class + of_others])
        counts = counts.reshape(2, _RELIABILITY_BINS, -1).sum(-1)
        centres = (np.arange(_RELIABILITY_BINS) + 0.5) / _RELIABILITY_BINS
        kept = counts[1] > 0
        shares = counts[0][kept] / counts[1][kept]
        lines.append(Line(name, centres[kept].tolist(), shares.tolist(), place))
    return Chart(
        "Calibration (reliability)",
        lines,
        x_title="predicted probability",
        y_title="share that is right",
        is_unit=True,
        has_diagonal=True,
    )


def probabilities(scores: Scores) -> Chart:
    """Returns the pixels of each class, and of the others, by the probability of the class."""
    lines = []
    for place, name in _told_apart(scores):
        for label, counts, dashed in zip(
            (name, f"not {name}"), _histogram(scores, name), (False, True), strict=True
        ):
            centres = (np.arange(len(counts)) + 0.5) / len(counts)
            kept = counts > 0
            lines.append(
                Line(label, centres[kept].tolist(), counts[kept].tolist(), place, dashed=dashed)
            )
    return Chart(
        "Pixels by probability",
        lines,
        x_title="predicted probability",
        y_title="pixels",
        is_log=True,
    )


def _groups(names: Sequence[str], classes: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """Returns (label, score) of each chart by its title, those of single classes left out."""
    groups: dict[str, list[tuple[str, str]]] = {}
    of_classes = {f"{kind}/{each}" for kind in (*_TITLES, "f1") for each in classes}
    means = {"dice/mean": "mean Dice", "iou/mean": "mean IoU"}
    for name in names:
        if name in means:
            groups.setdefault("Mean Dice and IoU", []).append((means[name], name))
        elif name in ("loss", "accuracy"):
            groups[name.capitalize()] = [("", name)]
        elif name not in of_classes and name != "majority_baseline":
            groups[name] = [("", name)]
    return groups


def _pair(files: RunFiles, label: str, name: str, colour: int) -> list[Line]:
    """Returns the lines of held-out images and of training batches that have the score."""
    lines = []
    for part, prefix in ((HELD_OUT, "held_out"), (TRAINING, "train")):
        steps, values = files.column(f"{prefix}/{name}")
        if steps:
            of = f"{label}, {part}" if label else part
            lines.append(Line(of, steps, values, colour, dashed=part == TRAINING))
    return lines


def _told_apart(scores: Scores) -> list[tuple[int, str]]:
    """Returns number and name of the classes with histograms; of two the second says all."""
    names = class_names(scores.scores)
    numbered = [(place, name) for place, name in enumerate(names) if name in scores.probabilities]
    return numbered[1:] if len(names) == 2 else numbered


def _histogram(scores: Scores, name: str) -> tuple[np.ndarray, np.ndarray]:
    found = scores.probabilities[name]
    return np.array(found.of_class, np.float64), np.array(found.of_others, np.float64)


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]
