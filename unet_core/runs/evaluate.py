"""`--mode=evaluate`: scores of a finished run on images with ground truth."""

from __future__ import annotations

import contextlib
import dataclasses

from unet_core.data.samples import Sample
from unet_core.errors import UserError
from unet_core.runs import folds, progress
from unet_core.runs.dataset import DataSet
from unet_core.runs.finished_run import open_run, output_folder
from unet_core.runs.masks import check_masks, rule_of_finished_run, rule_of_training
from unet_core.runs.process import StopRequest
from unet_core.runs.score import make_predictor, score
from unet_core.settings import RunConfig


def evaluate(config: RunConfig, stop: StopRequest) -> None:
    """Scores the network of a run, or of each fold, on the images it held out.

    With another data folder, scores that of a run on all images of it.
    """
    folds.for_each(config, stop, _evaluate)


def _evaluate(config: RunConfig, stop: StopRequest) -> None:
    config, run, trained = open_run(config, stop)
    check_masks(config, trained.classes)
    data = DataSet.open(
        config.data,
        seed=config.training.seed,
        progress=progress.progress_bar,
        memory_path=run.known_masks,
    )
    data.check()
    elsewhere = config.prediction.output_dir
    training_samples: list[Sample] = []
    samples = list(data.samples)
    if data.fingerprint() == run.read()[1]:
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
    with contextlib.nullcontext() if elsewhere else run.locked():
        if training_samples:
            read = data.read
            rule = rule_of_training(
                config, run, predictor, trained.step, training_samples, read, stop
            )
        else:
            # A threshold is never chosen on what is scored, but on what the run was trained on.
            own = dataclasses.replace(config, data=trained.config.data)
            rule = rule_of_finished_run(own, run, [trained], lambda: predictor, stop)
        score(
            run,
            config.prediction,
            predictor,
            samples,
            data.read,
            output_folder(config, run.path),
            step=trained.step,
            training_samples=training_samples,
            make_mask=rule,
            stop=stop,
        )
