"""Cross-validation: one run for each fold, and one table of their scores."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable

from unet_core.errors import UserError
from unet_core.runs.finished_run import required
from unet_core.runs.process import StopRequest
from unet_core.settings import RunConfig


def for_each(
    config: RunConfig, stop: StopRequest, run_one: Callable[[RunConfig, StopRequest], object]
) -> None:
    """Runs one fold, or with `fold` all each in turn and then writes the table of their scores."""
    if config.data.fold != "all":
        run_one(config, stop)
        return
    required(config, "run_dir")
    folds = configs(config)
    for fold in folds:
        print(f"Fold {fold.data.fold} of 0 to {len(folds) - 1}: {fold.task.run_dir}")
        run_one(fold, stop)
        if stop():
            return
    _write_table(config, folds)


def configs(config: RunConfig) -> list[RunConfig]:
    """Returns the config of each fold, in a folder of its own.

    Raises:
        UserError: If several workers are to train them.
    """
    if config.training.strategy == "multi_worker":
        raise UserError(
            "`fold` (all) cannot be combined with `strategy` multi_worker: start each fold by its "
            "number, with a `run_dir` of its own."
        )
    output_dir = config.prediction.output_dir
    return [
        config.replace(
            fold=str(fold),
            run_dir=os.path.join(config.task.run_dir or "", f"fold-{fold}"),
            output_dir=output_dir and os.path.join(output_dir, f"fold-{fold}"),
        )
        for fold in range(config.data.folds)
    ]


def _write_table(config: RunConfig, folds: list[RunConfig]) -> None:
    from unet_core.reports import folds as table
    from unet_core.run_directory import RunDirectory

    # Where the scores are: training leaves them in the run folder, `evaluate` where it is told to.
    elsewhere = config.task.mode == "evaluate" and config.prediction.output_dir
    where = "output_dir" if elsewhere else "run_dir"
    output_dir = pathlib.Path(config[where])
    if where == "run_dir":
        run = RunDirectory(output_dir)
        run.claim(*(run.path / name for name in table.FILES))
    text = table.write([pathlib.Path(fold[where]) for fold in folds], output_dir)
    print(f"\n{len(folds)} folds, each scored on what it held out\n{text}\n")
    print(f"folds.csv, folds.json and worst.png are in {output_dir}.")
