"""What a run will do: everything that can be wrong is found before its folder is touched."""

from __future__ import annotations

import dataclasses
import functools
import math
import os

import numpy as np
import tensorflow as tf

from unet_core import losses, training
from unet_core.data import pipeline
from unet_core.data.classes import BACKGROUND, ClassMap
from unet_core.data.instance_masks import object_class
from unet_core.data.intensities import Scaling
from unet_core.data.samples import Sample
from unet_core.data.stream import SamplingConfig
from unet_core.errors import UserError
from unet_core.inference.trained import make_classes
from unet_core.models.encoders import ENCODERS
from unet_core.models.weights import Taken
from unet_core.outputs.objects import check_objects
from unet_core.reports.training_logger import score_names
from unet_core.run_directory import RunDirectory
from unet_core.runs import dataset, fine_tuning, initial_weights, process
from unet_core.runs.finished_run import required
from unet_core.runs.hooks import OwnMetric, make_own_loss
from unet_core.runs.masks import check_masks
from unet_core.runs.process import StopRequest
from unet_core.runs.progress import progress_bar
from unet_core.settings import RunConfig
from unet_core.training import devices

# Masks that tell which class is the most frequent.
_LOOKED_AT = 32


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run will do, checked.

    Attributes:
        config: The settings, with nothing left to choose.
        run: The run's folder, not touched yet.
        classes: The classes.
        data: The samples and their reader.
        training_samples: Those to train on.
        held_out: Those held out for validation.
        sampling: How training crops are drawn.
        metric: The metric of one's own, if there is one.
        loss: (masks, logits, pixel weights) -> the loss of each example.
        schedule: The learning rate by step.
        fingerprint: What tells the data from others.
        strategy: Over which devices the loop is distributed.
        workers: This process among the workers.
        initial_weights: What the network begins with; None is what is drawn, or a checkpoint.
    """

    config: RunConfig
    run: RunDirectory
    classes: ClassMap
    data: dataset.DataSet
    training_samples: list[Sample]
    held_out: list[Sample]
    sampling: SamplingConfig
    metric: OwnMetric | None
    loss: losses.Loss
    schedule: training.schedules.Schedule
    fingerprint: str
    strategy: tf.distribute.Strategy
    workers: training.Workers
    initial_weights: Taken | None


def prepare(config: RunConfig, stop: StopRequest) -> Plan:
    """Checks settings, data and devices, and decides what was left to choose.

    Raises:
        UserError: If anything is wrong.
    """
    run = RunDirectory(required(config, "run_dir"))
    classes = make_classes(config.data)
    check_settings(config)
    check_masks(config, classes)
    seed = config.training.seed
    sampling = dataset.make_sampling(config.data, config.augmentation, seed=seed)
    config = dataset.with_synthetic(config, progress_bar)
    required(config, "data_dir")
    config = _intensities_of_run(config, run)
    data = dataset.DataSet.open(
        config.data,
        seed=seed,
        progress=progress_bar,
        memory_path=run.known_masks,
        of_new_run=not run.holds_run(),
    )
    config = config.replace(intensities=data.settings.intensities)
    data.check()
    training_samples, held_out = data.split()
    _check_held_out(config, held_out)
    config = _count_epochs(config, len(training_samples))
    fine_tuning.check_settings(config)
    print(data.describe_small(training_samples), end="")
    if config.data.preview:
        dataset.write_preview(config.data.preview, data, training_samples, sampling)
    fingerprint = data.fingerprint()
    strategy = process.prepare_devices(config.training, stop)
    _check_replicas(config, strategy.num_replicas_in_sync)
    config, reason = _resolve(config, run, data, training_samples, fingerprint)
    classes = data.read.classes = make_classes(config.data)
    data.weigh(config.loss, config.loss.class_weights)
    workers = training.Workers(strategy)
    epoch = len(training_samples) / config.training.global_batch_size
    print(
        f"{len(training_samples)} images to train on, {len(held_out)} held out; classes {classes}. "
        f"An epoch is {epoch:g} step{'s' if epoch != 1 else ''}."
    )
    print(f"Precision {config.network.precision}: {reason}. {devices.describe_devices(strategy)}.")
    if not workers.is_chief:
        print(
            f"Worker {workers.number} of {workers.count}: worker 0 shows the progress and writes."
        )
    return Plan(
        config=config,
        run=run,
        classes=classes,
        data=data,
        training_samples=training_samples,
        held_out=held_out,
        sampling=sampling,
        metric=_make_metric(config, classes),
        loss=_make_loss(config, classes),
        schedule=fine_tuning.make_schedule(config),
        fingerprint=fingerprint,
        strategy=strategy,
        workers=workers,
        initial_weights=initial_weights.prepare(config, run),
    )


def check_settings(config: RunConfig) -> None:
    """Checks what settings of several rooms, and the classes, must have in common.

    Raises:
        UserError: If they do not fit one another.
    """
    classes = make_classes(config.data)
    dataset.check_crop_size(config.data, config.network)
    if config.training.epochs is None:
        fine_tuning.check_settings(config)
    weights, balance = config.loss.class_weights, config.loss.class_balance
    if weights and balance != "none":
        raise UserError(
            f"`class_weights` ({weights}) and `class_balance` ({balance}) both weigh the classes; "
            "leave one of them out."
        )
    _make_loss(config, classes)
    metric = _make_metric(config, classes)
    names = [*score_names(classes), *(metric.names if metric else ())]
    if config.training.monitor not in names:
        raise UserError(
            f"`monitor` ({config.training.monitor!r}) must be one of {', '.join(names)}."
        )
    prediction = config.prediction
    if prediction.object_class:
        classes.index(prediction.object_class)
    name = object_class(classes, prediction.object_class)
    check_objects(prediction.objects, prediction.instances, name, classes)


def _intensities_of_run(config: RunConfig, run: RunDirectory) -> RunConfig:
    """Returns the config with what a run that is there has made of `intensities`."""
    if not run.holds_run():
        return config
    stored = run.read()[0].data.intensities
    if Scaling.parse(stored).is_asked_for_by(Scaling.parse(config.data.intensities)):
        return config.replace(intensities=stored)
    return config


def _check_held_out(config: RunConfig, held_out: list[Sample]) -> None:
    """Checks that there are scores for the controls to decide by.

    Raises:
        UserError: If there are none, and a control is asked for.
    """
    asked = [
        name
        for name in (
            "early_stopping_patience",
            "plateau_patience",
            "dwell_factor",
            "max_minutes",
            "ask_every_steps",
            "control",
        )
        if config[name]
    ]
    if asked and not held_out:
        raise UserError(
            f"`{asked[0]}` ({config[asked[0]]}) decides at evaluations of held-out images, and "
            "none are held out. Hold some out by `folds` or `held_out_share`, or leave it out."
        )


def _count_epochs(config: RunConfig, images: int) -> RunConfig:
    """Returns the config with `train_steps` of so many epochs, if they are given in epochs.

    What is given on the command line has precedence over a flag file.

    Raises:
        UserError: If both are given in one place.
    """
    epochs, given = config.training.epochs, {"epochs", "train_steps"} & config.given
    if epochs is None:
        return config
    typed = given - config.from_file
    if len(given) == 2 and len(typed) != 1:
        raise UserError(
            f"`epochs` ({epochs:g}) and `train_steps` ({config.training.train_steps}) both say how "
            "long to train; leave one of them out."
        )
    if typed == {"train_steps"}:
        return config
    steps = max(1, math.ceil(epochs * images / config.training.global_batch_size))
    return config.replace(train_steps=steps)


def _check_replicas(config: RunConfig, replicas: int) -> None:
    """Checks what depends on the number of replicas."""
    settings = config.training
    for size in (settings.global_batch_size, config.fine_tuning.unfrozen_batch_size):
        if size is not None:
            pipeline.check_global_batch_size(size, replicas, settings.micro_batches)
    network = config.network
    has_batch_norm = network.normalization == "batch" or ENCODERS[network.encoder].batch_norm
    if settings.jit_compile and has_batch_norm and replicas > 1:
        raise UserError(
            "`jit_compile` cannot be combined with batch norm (`normalization` 'batch', or that of "
            f"the `encoder` {network.encoder}) on several replicas: XLA cannot compile statistics "
            "that replicas share. Leave one of them out."
        )
    if settings.jit_compile and settings.deterministic:
        raise UserError(
            "`jit_compile` cannot be combined with `deterministic`: XLA has no deterministic "
            "gradient of max pooling. Leave one of them out."
        )


def _resolve(
    config: RunConfig,
    run: RunDirectory,
    data: dataset.DataSet,
    training_samples: list[Sample],
    fingerprint: str,
) -> tuple[RunConfig, str]:
    """Returns the config with nothing left to choose, and why its precision is what it is."""
    precision, reason = config.network.precision, "as asked"
    if precision == "auto" and run.holds_run():
        reason = "as this run began"
    elif precision == "auto":
        precision, reason = devices.choose_precision()
    class_weights = config.loss.class_weights
    if config.loss.class_balance != "none":
        counts = data.count_classes(training_samples)
        class_weights = dataset.balanced_class_weights(config.loss.class_balance, counts)
    clear_class = config.data.clear_class
    found = data.read.classes
    if not (clear_class or found.overlapping or BACKGROUND in found.names):
        counts = data.count_classes(training_samples[:_LOOKED_AT])
        shares = np.sum(list(counts.values()), axis=0)
        clear_class = found.names[int(shares.argmax())]
    resolved = config.replace(
        clear_class=clear_class,
        precision=precision,
        class_weights=class_weights,
        # Stored whole, so that the run can be used from any folder.
        data_dir=os.path.abspath(required(config, "data_dir")),
    )
    resolved = run.resolve_for_resume(resolved, fingerprint)
    if config.task.mode not in ("find_rate", "overfit"):  # They have schedules of their own.
        _check_schedule_lasts(resolved)
    return resolved, reason


def _check_schedule_lasts(config: RunConfig) -> None:
    """Checks that the learning rate is not 0 before training ends.

    Raises:
        UserError: If it is.
    """
    end, last = config.optimization.schedule_steps, config.training.train_steps
    rate = config.optimization.learning_rate
    schedule = fine_tuning.make_schedule(config)
    if end is not None and end < last and rate and float(schedule(tf.constant(end, tf.int64))) == 0:
        raise UserError(
            f"`train_steps` ({last}) goes on past the end of the `schedule` "
            f"{config.optimization.schedule}, which ends at step {end} with a learning rate of 0: "
            "nothing would be learned from there. Lay it out anew by `schedule_steps` "
            f"({last}), or begin a new run from this one, with a schedule of its own, by "
            "`init_from`."
        )


def _make_metric(config: RunConfig, classes: ClassMap) -> OwnMetric | None:
    """Returns the metric of one's own, if one is asked for.

    Raises:
        UserError: If it cannot be used.
    """
    name = config.training.metric
    metric = OwnMetric(name, len(classes), classes.overlapping) if name else None
    taken = sorted(set(metric.names) & set(score_names(classes))) if metric else []
    if taken:
        raise UserError(
            f"`metric` ({name}) has a score {taken[0]!r}, as the package has one; give it another "
            "name."
        )
    return metric


def _make_loss(config: RunConfig, classes: ClassMap) -> losses.Loss:
    """Returns the loss of (masks, logits, pixel weights).

    Raises:
        UserError: If the loss, a class or the number of class weights is wrong.
    """
    settings = config.loss
    if settings.class_weights and len(settings.class_weights) != len(classes):
        raise UserError(
            f"`class_weights` ({settings.class_weights}) must be one number for each of the "
            f"{len(classes)} classes {', '.join(classes.names)}."
        )
    loss = losses.parse(
        settings.loss,
        own=functools.partial(make_own_loss, classes=len(classes), overlapping=classes.overlapping),
        # Weight maps hold them already.
        class_weights=None if settings.border_weight else settings.class_weights or None,
        overlap_classes=[classes.index(name) for name in settings.overlap_classes] or None,
        focal_gamma=settings.focal_gamma,
        tversky_alpha=settings.tversky_alpha,
        tversky_beta=settings.tversky_beta,
        overlapping=classes.overlapping,
    )
    return losses.deeply_supervised(loss) if config.network.deep_supervision else loss
