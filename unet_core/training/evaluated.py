"""Training with an evaluation every so many steps, by which controls decide and the best is kept.

checkpoints = Checkpoints(directory, loop, monitor="loss", controls=controls, ...)
checkpoints.restore()
for row in train_evaluated(
    loop, dataset, until_step=10_000, every_steps=100, evaluate=my_scores, monitor="loss",
    controls=controls, checkpoints=checkpoints, history="run/history.csv",
):
    print(row)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from unet_core.errors import UserError
from unet_core.training.checkpoints import Checkpoints
from unet_core.training.history import NOTE, History
from unet_core.training.loop import Loop


def train_evaluated(
    loop: Loop,
    dataset: Any,
    checkpoints: Checkpoints,
    evaluate: Callable[[], Mapping[str, float]],
    *,
    until_step: int,
    every_steps: int,
    history: str | os.PathLike,
) -> Iterator[dict[str, float | str]]:
    """Trains, and every so many steps evaluates, asks the controls, writes a row, and saves.

    It ends at `until_step`, with the data, or when a control stops it; at once if one had stopped
    the run that was restored.

    Args:
        loop: The loop, restored if it is to go on.
        dataset: As for `Loop.train`.
        checkpoints: Of the loop, with its controls and the score that the best is chosen by.
        evaluate: Returns the held-out scores by name.
        until_step: The step to train up to.
        every_steps: Steps between evaluations.
        history: The file of the rows, see `unet_core.training.history`.

    Yields:
        Each row once it is saved: "step"; "train/loss", and what the loss has named;
        "held_out/..." for each score; and "note", what was decided.

    Raises:
        UserError: If `checkpoints` monitors none of the scores; and as the parts.
    """
    controls, monitor = checkpoints.controls, checkpoints.monitor
    if controls.stopped_by:
        return
    rows, start = None, loop.step
    for report in loop.train(dataset, until_step=until_step, report_every_steps=every_steps):
        scores = evaluate()
        if monitor is None or monitor not in scores:
            raise UserError(
                f"`monitor` ({monitor!r}) must be one of the scores {', '.join(scores)}."
            )
        decision = controls.decide(report.step, scores, rate=report.rate)
        if decision.restore_best:
            checkpoints.restore_best_weights()
        row: dict[str, float | str] = {"step": report.step, "train/loss": report.loss}
        row |= {f"train/{name}": value for name, value in report.means.items()}
        row |= {f"held_out/{name}": value for name, value in scores.items()}
        row[NOTE] = decision.note
        # The row first: one beyond the checkpoint that a run goes on from is cut off.
        rows = rows or History(history, list(row), resumed_at=start)
        rows.append(row)
        # A score is not that of the weights that have replaced those it was computed with.
        checkpoints.save(score=None if decision.restore_best else scores[monitor])
        yield row
        if decision.stop:
            return
