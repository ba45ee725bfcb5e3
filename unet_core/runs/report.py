"""`--mode=report`: a run on one page, `report.html`; or several runs side by side."""

from __future__ import annotations

import os
import pathlib

from unet_core.errors import UserError
from unet_core.files import local_path
from unet_core.inference.ensemble import fold_folders
from unet_core.reports import comparison, page
from unet_core.run_directory import RunDirectory
from unet_core.runs.finished_run import check_used, required
from unet_core.runs.process import StopRequest
from unet_core.settings import RunConfig

_INSTALL = "pip install '.[report]'"


def report(config: RunConfig, stop: StopRequest) -> None:  # noqa: ARG001
    """Writes the report of a run, finished or not; of folds or several runs, their comparison."""
    check_used(config)
    if missing := page.missing_packages():
        raise UserError(
            f"`mode` report needs {' and '.join(missing)}, which is not installed. Install the "
            f"extra report: {_INSTALL}."
        )
    if config.task.compare:
        _compare([RunDirectory(path) for path in config.task.compare], _page_path(config))
        return
    run = RunDirectory(required(config, "run_dir"))
    if folds := fold_folders(run.path):
        path = run.path / comparison.NAME
        run.claim(path)
        _compare([RunDirectory(folder) for folder in folds], path)
        return
    page.write_report(run)
    print(f"{run.report}: the run on one page; its charts are in {run.plots}.")


def _compare(runs: list[RunDirectory], path: pathlib.Path) -> None:
    comparison.write_comparison(runs, path)
    print(f"{path}: {len(runs)} runs side by side.")


def _page_path(config: RunConfig) -> pathlib.Path:
    """Returns where the comparison of runs goes.

    Raises:
        UserError: If there is one run alone, `run_dir` is given too, or a file is in the way.
    """
    given = config.task.compare
    if len(given) < 2:
        raise UserError(f"`compare` ({','.join(given)}) must name two runs or more.")
    if "run_dir" in config.given - config.from_file:
        raise UserError(
            "`run_dir` cannot be combined with `compare`, which names all runs. Leave it out, or "
            "put it into the list."
        )
    path = local_path(config.prediction.output_dir or ".") / comparison.NAME
    if os.path.lexists(path) and not config.prediction.overwrite:
        raise UserError(
            f"{path}: exists, and is not replaced unless `overwrite` is given. Move it, or choose "
            "another `output_dir`."
        )
    return path


def report_files(run: RunDirectory) -> list[pathlib.Path]:
    """Returns what the report of a run may write in its folder; nothing without the extra."""
    return [] if page.missing_packages() else page.report_files(run)


def write_if_possible(run: RunDirectory) -> None:
    """Writes the report of a run, or says in one line how to get it."""
    if page.missing_packages():
        print(
            f"For a report on one page: {_INSTALL}, then train_loop.py --mode=report "
            f"--run_dir={run.path}"
        )
        return
    page.write_report(run)
    print(f"The run on one page: {run.report}")
