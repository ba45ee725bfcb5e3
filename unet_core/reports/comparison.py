"""`compare.html`: several runs side by side, with the settings in which they differ.

write_comparison([RunDirectory("runs/a"), RunDirectory("runs/b")], pathlib.Path("compare.html"))
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from unet_core.drawing.charts import Chart, Line
from unet_core.files import os_errors, write_whole
from unet_core.reports.page import duration, how_scored, render, setting_text
from unet_core.reports.run_charts import HELD_OUT, TRAINING
from unet_core.reports.run_files import RunFiles
from unet_core.run_directory import RunDirectory
from unet_core.settings import FIELDS
from unet_core.training.controls import higher_is_better

NAME = "compare.html"
_MAIN = ("dice/", "iou/mean", "accuracy", "majority_baseline", "object_f1/", "v_rand", "v_info")
_CURVES = ("loss", "accuracy", "dice/mean", "iou/mean")
# They rank no network.
_UNRANKED = ("majority_baseline", "v_rand/threshold", "v_info/threshold")


def write_comparison(runs: Sequence[RunDirectory], path: pathlib.Path) -> None:
    """Writes a page of runs side by side; what has its name is replaced.

    Args:
        runs: Two or more.
        path: The page.

    Raises:
        UserError: If one of them is no run, or has a file that cannot be read.
    """
    found = [RunFiles.read(run) for run in runs]
    names = _names(found)
    monitors = [files.config.training.monitor for files in found]
    curves = dict.fromkeys((*_CURVES, *monitors))
    charts = [_curve(found, names, score) for score in curves]
    scores = _score_rows(found)
    context = {
        "title": f"{len(found)} runs side by side",
        "names": names,
        "links": [_link(files.run.report, path.parent) for files in found],
        "keys": [Line(name, (), (), place) for place, name in enumerate(names)],
        "facts": _facts(found),
        "main": [row for row in scores if row["name"].startswith(_MAIN)],
        "scores": scores,
        "settings": _differing(found),
        "charts": [chart for chart in charts if chart.lines],
    }
    with os_errors(path, "the comparison cannot be written", "Choose another `output_dir`."):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, render(NAME, context).encode())


def _names(found: Sequence[RunFiles]) -> list[str]:
    """Returns what to call the runs: their folders, with those above where they are alike."""
    names = [files.name for files in found]
    if len(set(names)) < len(names):
        names = ["/".join(files.run.path.parts[-2:]) for files in found]
    if len(set(names)) < len(names):
        names = [str(files.run.path) for files in found]
    return names


def _curve(found: Sequence[RunFiles], names: Sequence[str], score: str) -> Chart:
    lines = []
    for place, (files, name) in enumerate(zip(found, names, strict=True)):
        for part, prefix in ((HELD_OUT, "held_out"), (TRAINING, "train")):
            steps, values = files.column(f"{prefix}/{score}")
            if steps:
                dashed = part == TRAINING
                lines.append(Line(f"{name}, {part}", steps, values, place, dashed=dashed))
    return Chart(score, lines)


def _facts(found: Sequence[RunFiles]) -> list[tuple[str, list[str]]]:
    """Returns what the runs are, in words, by title; what is known of none is left out."""
    facts: list[tuple[str, Callable[[RunFiles], str]]] = [
        ("State", RunFiles.state),
        ("Best step", _best),
        ("Scored", lambda files: how_scored(files.scores) if files.scores else ""),
        ("Duration", lambda f: "" if (s := f.seconds()) is None else duration(s)),
        ("Training images", lambda f: str(len(f.about.training.samples)) if f.about else ""),
        ("Parameters", lambda f: f.about.network.get("Parameters", "") if f.about else ""),
        ("Processor", lambda f: s.hardware.get("Processor", "") if (s := f.session()) else ""),
        ("GPUs", lambda f: s.hardware.get("GPUs", "") if (s := f.session()) else ""),
        ("Versions", _versions),
    ]
    rows = [(title, [text_of(files) for files in found]) for title, text_of in facts]
    return [(title, texts) for title, texts in rows if any(texts)]


def _best(files: RunFiles) -> str:
    step, monitor = files.best_step(), files.config.training.monitor
    if step is None:
        return ""
    steps, values = files.column(f"held_out/{monitor}")
    return f"{step}: {monitor} {values[steps.index(step)]:.4f}"


def _versions(files: RunFiles) -> str:
    session = files.session()
    return ", ".join(f"{n} {v}" for n, v in session.versions.items()) if session else ""


def _score_rows(found: Sequence[RunFiles]) -> list[dict[str, Any]]:
    """Returns the name of each score, its value of each run, and whether that is the best."""
    by_run = [files.scores.scores if files.scores else {} for files in found]
    rows = []
    for name in dict.fromkeys(name for scores in by_run for name in scores):
        values = [scores.get(name) for scores in by_run]
        known = [value for value in values if value is not None]
        best = None
        if len(known) > 1 and name not in _UNRANKED and len(set(known)) > 1:
            # Not what a class may be called.
            kind = name.partition("/")[0]
            best = max(known) if higher_is_better(kind) else min(known)
        cells = [(value, best is not None and value == best) for value in values]
        rows.append({"name": name, "cells": cells})
    return rows


def _differing(found: Sequence[RunFiles]) -> list[tuple[str, list[str]]]:
    """Returns the settings that are not alike in all runs, and their values."""
    return [
        (name, [setting_text(files.config[name]) for files in found])
        for name in FIELDS
        if name not in ("mode", "run_dir")
        and len({setting_text(files.config[name]) for files in found}) > 1
    ]


def _link(report: pathlib.Path, folder: pathlib.Path) -> str:
    """Returns the place of the report of a run from `folder`; empty if there is none."""
    return os.path.relpath(report, folder) if report.is_file() else ""
