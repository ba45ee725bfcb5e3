"""`--mode=train`: trains, or goes on with, a run; scores held-out images; predicts test images.

prepare   see `unet_core.runs.plan`
build     the network, the loop, the checkpoints
run       the loop, with evaluations, the log and checkpoints
finish    scores and predictions, see `unet_core.runs.finish`
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import signal
import time
from collections.abc import Iterator

import keras
import tensorflow as tf

from unet_core import metrics, optimizers, training
from unet_core.data import pipeline, stream
from unet_core.errors import UserError
from unet_core.inference.network import InferenceNetwork
from unet_core.inference.sliding_window import SlidingWindow
from unet_core.inference.trained import as_trained, build_network
from unet_core.models.build import full_size
from unet_core.reports.about import RunNote
from unet_core.reports.training_logger import TrainingLogger
from unet_core.runs import (
    fine_tuning,
    folds,
    hooks,
    initial_weights,
    steering,
    step_profile,
)
from unet_core.runs.about import begin_note, command_of
from unet_core.runs.finish import finish
from unet_core.runs.finished_run import check_used
from unet_core.runs.plan import Plan, prepare
from unet_core.runs.process import StopRequest
from unet_core.runs.report import report_files
from unet_core.runs.score import claim_pictures
from unet_core.runs.tracking import Tracking
from unet_core.runs.watch import Watch
from unet_core.settings import RunConfig, binding_settings
from unet_core.training import Report
from unet_core.training.autograph import not_converted
from unet_core.training.controls import Control, Decision


def train(config: RunConfig, stop: StopRequest) -> None:
    """Trains, or goes on with, one run or one for each fold."""
    check_used(config)
    folds.for_each(config, stop, train_one)


def train_one(
    config: RunConfig, stop: StopRequest, *, control: Control | None = None, finishes: bool = True
) -> float | None:
    """Trains one run, scores its held-out images and predicts the test images.

    Args:
        config: The settings.
        stop: Whether it has been asked to stop.
        control: One more control.
        finishes: Whether to score and predict.

    Returns:
        The best monitored score, None if there is none.
    """
    plan = prepare(config, stop)
    workers = plan.workers
    with contextlib.ExitStack() as stack:
        stack.enter_context(workers.watched())
        if workers.is_chief:
            stack.enter_context(plan.run.locked())
        session = build(plan, config, control)
        tracking = None
        if workers.is_chief:
            tracking = stack.enter_context(Tracking(plan.config, plan.run.path))
        stopping = run_loop(plan, session, stop, command_of(config), tracking)
        session.noted(ended="stopped" if stopping else "trained")
        if stopping:
            # Perhaps it was another worker that was asked to stop.
            stop.signal = stop.signal or signal.SIGTERM
            step = session.loop.step
            print(f"Stopped and saved at step {step}. Start the same command again to go on.")
        elif workers.is_chief and finishes:
            finish(plan, session, stop)
            if tracking:
                tracking.artifacts(*plan.run.results())
        elif finishes:
            print(f"Trained to step {session.loop.step}; worker 0 scores and predicts.")
        return session.checkpoints.best_score


@dataclasses.dataclass(frozen=True)
class Session:
    """What a run is made of, restored from its last checkpoint.

    Attributes:
        model: The network.
        loop: The loop that trains it.
        checkpoints: Where it is saved.
        steering: What may end training early, or change how it goes on.
        stages: What of it is trained at which step.
        network: Its copy for inference, which pictures, scores and predictions share.
        start: The step it goes on from, 0 for a new run.
        failures: What the generators of samples have raised.
        note: What is kept of this start of the program; of worker 0, while there is work to do.
        watch: What is looked at beside the scores; of worker 0.
    """

    model: keras.Model
    loop: training.Loop
    checkpoints: training.Checkpoints
    steering: steering.Steering
    stages: fine_tuning.Stages
    network: InferenceNetwork
    start: int
    failures: list[UserError]
    note: RunNote | None
    watch: Watch | None

    def noted(self, *, ended: str = "") -> None:
        """Notes how far the run has come."""
        if self.note:
            self.note.update(self.loop.step, ended=ended)


def build(plan: Plan, given: RunConfig, control: Control | None = None) -> Session:
    """Stores the settings, builds the network and the loop, and restores the last checkpoint.

    `given` are the settings as they were given, `control` is one more control.

    Raises:
        UserError: If the workers differ, or a checkpoint does not fit.
    """
    config, workers = plan.config, plan.workers
    settings = {name: config[name] for name in binding_settings()}
    workers.check_same(
        settings=json.dumps(settings),
        data=plan.fingerprint,
        initial_weights=plan.initial_weights.digest if plan.initial_weights else "",
    )
    workers.check_folder(plan.run.path)
    with plan.strategy.scope():
        # Before the folder is touched: an encoder may not be able to do what is asked of it.
        model = build_network(config)
        optimizer = optimizers.make_optimizer(config.optimization)
    stages = fine_tuning.Stages(model, config)
    if workers.is_chief:
        plan.run.store(config, plan.fingerprint)
        claim_pictures(plan.run, plan.held_out, plan.classes)
        plan.run.claim(plan.run.network, plan.run.about, *report_files(plan.run))
        plan.data.memory.store()
    if plan.initial_weights:
        table = plan.run if workers.is_chief else None
        initial_weights.take_over(plan.initial_weights, model, config, table)
    steered = steering.Steering(config, workers, control, hooks.make_own_control(config))
    loop = make_loop(plan, model, optimizer, steered.controls.scaled(plan.schedule))
    checkpoints = training.Checkpoints(
        plan.run.checkpoints,
        loop,
        keep=config.training.keep_checkpoints,
        higher_is_better=training.controls.higher_is_better(config.training.monitor),
        monitor=config.training.monitor,
        metadata={"config": config.stored(), "classes": str(plan.classes)},
        controls=steered.controls,
    )
    for leftover in checkpoints.unfinished():
        print(f"{leftover}: skipped, a save that was interrupted.")
    start = checkpoints.restore()
    workers.check_same(checkpoints=str(start))
    if start:
        print(f"Going on from step {start} of {plan.run.path}.")
    print(stages.begin(start))
    network = InferenceNetwork(full_size(model), overlapping=plan.classes.overlapping)
    ended = start >= config.training.train_steps or steered.controls.stopped_by
    is_done = ended and plan.run.is_finished(start)
    note = begin_note(plan, model, given, start) if workers.is_chief and not is_done else None
    watch = None
    if workers.is_chief:
        batches = functools.partial(_batches_from, plan)
        watch = Watch(plan, model, loop, network, batches, start)
    return Session(model, loop, checkpoints, steered, stages, network, start, [], note, watch)


def run_loop(
    plan: Plan, session: Session, stop: StopRequest, command: str, tracking: Tracking | None
) -> bool:
    """Trains until `train_steps` or a control ends it, evaluating, logging and saving.

    Returns whether it was interrupted.

    Raises:
        UserError: If a sample cannot be read, the loss is not finite, or memory runs out.
    """
    settings, steered = plan.config.training, session.steering
    if session.loop.step < settings.train_steps and (ended := steered.controls.stopped_by):
        print(f"Training ended at step {session.loop.step} ({ended}). {steered.how_to_go_on()}")
        return False
    steered.begin()
    reports = session.stages.train(
        session.loop,
        train_data(plan, session.failures, at_step=0),
        unfrozen=_unfrozen_data(plan, session),
        until_step=settings.train_steps,
        report_every_steps=settings.report_every_steps,
        pause_every_steps=[
            *(settings.eval_every_steps, settings.checkpoint_every_steps),
            *([step_profile.FIRST] if settings.profile else []),
        ],
        should_stop=lambda: stop() or steered.time_is_up(),
        opened=session.watch.opened if session.watch else None,
    )
    interrupted = False
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(reports))
        logger = None
        if plan.workers.is_chief:
            logger = stack.enter_context(
                TrainingLogger(
                    plan.run,
                    plan.classes,
                    plan.config.training,
                    held_out=bool(plan.held_out),
                    more_scores=plan.metric.names if plan.metric else (),
                    resumed_at=session.start,
                    **({"track": tracking.scalars} if tracking else {}),
                )
            )
            if not session.start:
                size = plan.config.data.crop_size
                logger.write_description(plan.config, command, session.model, size)
        if session.watch and session.loop.step < settings.train_steps:
            stack.enter_context(contextlib.closing(session.watch)).begin()
        stack.enter_context(explained(plan, session.failures))
        for report in reports:
            interrupted = report.stopping and not steered.ends_now(stop)
            if _handle(report, plan, session, logger, interrupted):
                break
    return interrupted


def make_loop(
    plan: Plan,
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    schedule: training.schedules.Schedule,
) -> training.Loop:
    """Returns the loop of a run, with `schedule` in place of the plan's."""
    settings, optimization = plan.config.training, plan.config.optimization
    names, overlapping = plan.classes.names, plan.classes.overlapping

    @not_converted
    def sums(logits, batch):
        full = tf.nest.flatten(logits)[0]
        own = plan.metric.sums(batch.mask, full) if plan.metric else {}
        return {"confusion": metrics.confusion_matrix(batch.mask, full, overlapping), **own}

    @not_converted
    def loss(logits, batch):
        scores = metrics.batch_scores(batch.mask, tf.nest.flatten(logits)[0], names, overlapping)
        named = {name: training.Mean(*pair) for name, pair in scores.items()}
        return plan.loss(batch.mask, logits, batch.weights), named

    return training.Loop(
        as_trained(model, plan.config),
        optimizer,
        loss=loss,
        metrics=sums,
        strategy=plan.strategy,
        schedule=schedule,
        clip_norm=optimization.clip_norm or None,
        loss_scaling=plan.config.network.precision == "float16",
        micro_batches=settings.micro_batches,
        ema_decay=optimization.ema_decay or None,
        rate_factor=fine_tuning.make_rate_factor(plan.config, model),
        jit_compile=settings.jit_compile,
    )


def train_data(plan: Plan, failures: list[UserError], *, at_step: int) -> functools.partial:
    """Returns the training data of the stage at a step.

    `failures` takes what its generators raise.
    """
    size, first = fine_tuning.batches_at(plan.config, at_step)
    return functools.partial(
        pipeline.make_train_dataset,
        plan.training_samples,
        plan.data.read,
        plan.sampling,
        global_batch_size=size,
        micro_batches=plan.config.training.micro_batches,
        first_sample=first,
        generators=plan.config.data.generators,
        failures=failures,
    )


def _batches_from(plan: Plan, step: int) -> tf.data.Dataset:
    """Returns whole global batches, or their micro-batches, from that of `step` on."""
    return train_data(plan, [], at_step=step)(step, tf.distribute.InputContext())


def _unfrozen_data(plan: Plan, session: Session) -> functools.partial | None:
    settings = plan.config.fine_tuning
    if settings.unfrozen_batch_size is None or settings.unfreeze_at_step is None:
        return None
    return train_data(plan, session.failures, at_step=settings.unfreeze_at_step)


def _held_out_data(plan: Plan, session: Session) -> functools.partial:
    return functools.partial(
        pipeline.make_image_dataset,
        plan.data.shapes(plan.held_out),
        plan.data.read,
        global_batch_size=plan.config.training.global_batch_size,
        failures=session.failures,
    )


def _handle(
    report: Report,
    plan: Plan,
    session: Session,
    logger: TrainingLogger | None,
    interrupted: bool,
) -> bool:
    """Evaluates, decides, logs and saves as is due after a report; returns whether to end.

    `logger` is that of the chief.
    """
    settings, steered, checkpoints = plan.config.training, session.steering, session.checkpoints
    last = report.step >= settings.train_steps or (report.stopping and not interrupted)
    evaluates = last or report.step % settings.eval_every_steps == 0
    saves = last or interrupted or report.step % settings.checkpoint_every_steps == 0
    scores: dict[str, float] = {}
    decision, seconds = Decision(), 0.0
    if logger:
        logger.show(report)
    if logger and session.watch:
        session.watch.reported(report, logger, evaluates=evaluates)
    if plan.held_out and evaluates:
        started = time.perf_counter()
        steered.evaluating()
        scores = _evaluate(report.step, plan, session, logger)
        decision = steered.controls.decide(report.step, scores, rate=report.rate)
        if decision.restore_best:
            session.stages.note_restored(checkpoints.restore_best_weights(), session.loop)
        seconds = time.perf_counter() - started
    if logger and (report.due or scores or last):
        logger.write(report, scores, decision.note)
    if logger and (saves or scores):
        logger.flush()
        best_before = checkpoints.best_score
        # A score is not that of the weights that have replaced those it was computed with.
        checkpoints.save(score=None if decision.restore_best else scores.get(settings.monitor))
        session.noted()
        if scores:
            logger.say_scores(
                report.step,
                scores,
                best_before=best_before,
                is_best=checkpoints.best_step == report.step,
                seconds=seconds,
                decided=steering.text_of(decision),
            )
    return decision.stop or (last and report.step < settings.train_steps)


def _evaluate(
    step: int, plan: Plan, session: Session, logger: TrainingLogger | None
) -> dict[str, float]:
    """Returns the scores of the held-out images; pictures of some go to the log."""
    with session.loop.averaged_weights():
        sums = session.loop.evaluate(_held_out_data(plan, session))
        scores = metrics.held_out_scores(sums, plan.classes.names)
        if plan.metric:
            scores |= plan.metric.scores(sums)
        if logger:
            session.network.refresh()
            if session.watch:
                session.watch.alarms.check(step, sums["confusion"])
            window = SlidingWindow(session.network)
            logger.write_pictures(step, window, plan.held_out[:2], plan.data.read)
    return scores


@contextlib.contextmanager
def explained(plan: Plan, failures: list[UserError]) -> Iterator[None]:
    """Says of the loop's errors what a user can do about them."""
    config = plan.config
    try:
        yield
    except training.NonFiniteError as error:
        size, first = fine_tuning.batches_at(config, error.step)
        first += error.step * size
        names = stream.names_of_batch(plan.training_samples, plan.sampling, first=first, size=size)
        raise UserError(
            f"{error} Its samples {first} to {first + len(names) - 1} were drawn from "
            f"{', '.join(names)}. Lower `learning_rate`, set `clip_norm`, or try `precision` "
            "float32; the run goes on from its last checkpoint."
        ) from error
    except (UserError, tf.errors.OpError) as error:
        # The loop and TensorFlow say less of what a generator has raised.
        if failures:
            raise failures[0] from error
        if not isinstance(error, tf.errors.ResourceExhaustedError):
            raise
        more = "" if config.training.recompute else "; `recompute` needs less, too"
        raise UserError(
            f"The device ran out of memory ({error.message.splitlines()[0]}). Lower "
            f"`global_batch_size` ({config.training.global_batch_size}), `crop_size` "
            f"({config.data.crop_size}) or `base_filters` ({config.network.base_filters}), or "
            f"raise `micro_batches` ({config.training.micro_batches}){more}."
        ) from error
