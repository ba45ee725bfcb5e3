"""`--mode=evaluate`: scores of a finished run on images with ground truth."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from unet_core.data.samples import Sample
from unet_core.errors import UserError
from unet_core.inference.ensemble import fold_folders
from unet_core.run_directory import RunDirectory
from unet_core.runs import folds, progress
from unet_core.runs.dataset import DataSet
from unet_core.runs.finished_run import open_runs, output_folder, required
from unet_core.runs.masks import check_masks, rule_of_finished_run, rule_of_training
from unet_core.runs.process import StopRequest
from unet_core.runs.report import report_files, write_if_possible
from unet_core.runs.score import make_predictor, score, score_share
from unet_core.settings import RunConfig
from unet_core.settings.prediction import parse_shard


def evaluate(config: RunConfig, stop: StopRequest) -> None:
    """Scores the network of a run, or of each fold, on the images it held out.

    With another data folder, scores that of a run, or the mean of all folds, on all images of it.
    """
    shard = parse_shard(config.prediction.shard)
    if shard and config.data.fold == "all":
        raise UserError(
            f"`shard` ({shard}) cannot be combined with `fold` all, which scores one run after "
            "another. Give the `run_dir` and the number of one `fold` at a time."
        )
    if shard and not config.prediction.output_dir:
        raise UserError(
            f"`shard` ({shard}) needs `output_dir`, a folder for all shares, so that the run's own "
            "scores stay until all are merged."
        )
    folds.for_each(config, stop, _evaluate)


def _evaluate(config: RunConfig, stop: StopRequest) -> None:
    folders = fold_folders(required(config, "run_dir"))
    config, run, trained = open_runs(config, stop)
    check_masks(config, trained[0].classes)
    data = DataSet.open(
        config.data,
        seed=config.training.seed,
        progress=progress.progress_bar,
        memory_path=None if folders else run.known_masks,
    )
    data.check(to_train=False)
    elsewhere = config.prediction.output_dir
    training_samples: list[Sample] = []
    samples = list(data.samples)
    fingerprints = {RunDirectory(folder).read()[1] for folder in folders or [run.path]}
    if data.fingerprint() in fingerprints:
        _check_one_run(run, folders)
        training_samples, samples = data.split()
        if not samples:
            raise UserError(
                f"{config.data.data_dir}: the run has trained on all of these images; give another "
                "`data_dir`."
            )
    elif not elsewhere:
        raise UserError(
            f"{config.data.data_dir}: is not what the run was trained and scored on; give "
            "`output_dir`, so that the run's own scores stay."
        )
    predictor = make_predictor(config, trained)
    shard = parse_shard(config.prediction.shard)
    reports = not elsewhere and not folders
    with contextlib.nullcontext() if elsewhere else run.locked():
        if reports:
            run.claim(*report_files(run))
        if training_samples:
            step, read = trained[0].step, data.read
            rule = rule_of_training(config, run, predictor, step, training_samples, read, stop)
        else:
            # A threshold is never chosen on what is scored, but on what the run was trained on.
            own = dataclasses.replace(config, data=trained[0].config.data)
            rule = rule_of_finished_run(own, run, trained, lambda: predictor, stop)
        output_dir = output_folder(config, run.path)
        how: dict[str, Any] = {
            "step": trained[0].step,
            "training_samples": training_samples,
            "make_mask": rule,
            "stop": stop,
        }
        if shard:
            score_share(config, shard, predictor, samples, data.read, output_dir, **how)
        else:
            score(run, config.prediction, predictor, samples, data.read, output_dir, **how)
    if reports and not stop():
        write_if_possible(run)


def _check_one_run(run: RunDirectory, folders: Sequence[pathlib.Path]) -> None:
    """Raises UserError if all folds together were to be scored on what they were trained on."""
    if folders:
        raise UserError(
            f"{run.path}: a folder of {len(folders)} folds, which together have trained on all of "
            "these images. Give `fold` all and their number (`folds`) to score each on what it "
            f"held out, the `run_dir` of one, such as {folders[0]}, or another `data_dir`."
        )
