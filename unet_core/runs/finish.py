"""The end of a training: scores of held-out images, predictions of test images, the report."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from unet_core import training
from unet_core.data.layouts.find import find_images
from unet_core.inference.masks import MaskRule
from unet_core.inference.predictor import Predictor
from unet_core.reports.final_events import write_final
from unet_core.runs import dataset
from unet_core.runs.finished_run import output_folder
from unet_core.runs.masks import rule_of_training
from unet_core.runs.plan import Plan
from unet_core.runs.predict import predict_images
from unet_core.runs.process import StopRequest
from unet_core.runs.report import write_if_possible
from unet_core.runs.score import predictor_of, score
from unet_core.settings.prediction import parse_weights

if TYPE_CHECKING:
    from unet_core.runs.train import Session


def finish(plan: Plan, session: Session, stop: StopRequest) -> None:
    """Scores held-out images and predicts test images, unless that was done at this step."""
    config, run, loop = plan.config, plan.run, session.loop
    if run.is_finished(loop.step):
        print(
            f"{run.path}: finished at step {loop.step}. To train longer, raise --train_steps and "
            "--schedule_steps."
        )
        return
    step = loop.step
    with contextlib.ExitStack() as stack:
        best, averaged = parse_weights(config.prediction.weights)
        if best and plan.held_out:
            step = training.load_weights(
                run.checkpoints, session.model, best=True, averaged=averaged
            )
        elif averaged:
            stack.enter_context(loop.averaged_weights())
        session.network.refresh()
        predictor = predictor_of(config, session.network)
        make_mask = rule_of_training(
            config, run, predictor, step, plan.training_samples, plan.data.read, stop
        )
        if plan.held_out:
            score(
                run,
                config.prediction,
                predictor,
                plan.held_out,
                plan.data.read,
                run.path,
                step=step,
                training_samples=plan.training_samples,
                make_mask=make_mask,
                stop=stop,
                ends_training=True,
            )
        if not stop():
            _predict_tests(plan, predictor, make_mask, stop)
    if stop():
        print("Stopped; training is done. Start the same command again for what is missing.")
    else:
        _mark_finished(plan, session)


def _mark_finished(plan: Plan, session: Session) -> None:
    """Writes what is made of the scores, notes that all is done, and says where it is."""
    run = plan.run
    if plan.held_out:
        write_final(run)
    run.mark_finished(session.loop.step)
    session.noted(ended="finished")
    write_if_possible(run)
    print(
        f"Everything is in {run.path}; watch the curves with: tensorboard --logdir={run.events}"
        "\nPredict new images with: python train_loop.py --mode=predict "
        f"--run_dir={run.path} --input=FOLDER --output_dir=MASKS"
    )


def _predict_tests(
    plan: Plan, predictor: Predictor, make_mask: MaskRule, stop: StopRequest
) -> None:
    """Predicts the test images, if there is a folder of them."""
    config, run = plan.config, plan.run
    test = dataset.test_folder(config.data)
    if test is None:
        return
    notes: list[str] = []
    problems: list[str] = []
    sources = find_images(test, notes=notes, problems=problems)
    dataset.print_notes(notes)
    elsewhere = config.prediction.output_dir
    failures = predict_images(
        config.prediction,
        predictor,
        make_mask,
        sources,
        output_folder(config, run.predictions),
        stop,
        overwrite=config.prediction.overwrite or not elsewhere,
        # In the run's folder only what the run has written is replaced.
        claim=None if elsewhere else run.claim,
        pixel_size_um=config.data.pixel_size_um,
    )
    for failure in [*problems, *failures]:
        print(f"WARNING: {failure}", file=sys.stderr)
