"""Fine-tuning: frozen layers, the step at which they are unfrozen, and the rates of parts."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import keras
import tensorflow as tf

from unet_core import optimizers, training
from unet_core.errors import UserError
from unet_core.models.parts import PARTS, layers_matching, layers_with_variables
from unet_core.settings import RunConfig
from unet_core.training import Report
from unet_core.training.feed import DatasetFn, Feed

# Of the names of layers in a message.
_SHOWN_NAMES = 12


def check_settings(config: RunConfig) -> None:
    """Checks that the settings of fine-tuning make sense together.

    Raises:
        UserError: If they do not.
    """
    settings, train_steps = config.fine_tuning, config.training.train_steps
    step, rate = settings.unfreeze_at_step, settings.unfrozen_learning_rate
    if step is not None and not settings.freeze:
        raise UserError(
            f"`unfreeze_at_step` ({step}) needs something that is frozen before; give `freeze`, "
            "such as encoder, or leave it out."
        )
    if step is not None and step >= train_steps:
        raise UserError(
            f"`unfreeze_at_step` ({step}) must be less than `train_steps` ({train_steps}), or "
            "nothing would ever be unfrozen."
        )
    if rate is not None and step is None:
        raise UserError(
            f"`unfrozen_learning_rate` ({rate:g}) needs `unfreeze_at_step`, the step from which on "
            "it holds; give both or neither."
        )
    if settings.unfrozen_batch_size is not None and step is None:
        raise UserError(
            f"`unfrozen_batch_size` ({settings.unfrozen_batch_size}) needs `unfreeze_at_step`, the "
            "step from which on it holds; give both or neither."
        )
    if rate is not None and not config.optimization.learning_rate:
        raise UserError(
            f"`unfrozen_learning_rate` ({rate:g}) needs a `learning_rate` greater than 0, whose "
            "schedule it goes on with."
        )


def frozen_layers(model: keras.Model, patterns: tuple[str, ...]) -> list[keras.layers.Layer]:
    """Returns the layers that `freeze` names.

    Raises:
        UserError: If one of the patterns matches none.
    """
    found = []
    for pattern in patterns:
        layers = layers_matching(model, pattern)
        if not layers:
            names = [layer.name for layer in layers_with_variables(model)]
            more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
            raise UserError(
                f"`freeze` ({pattern!r}) matches no layer of the network; it may be "
                f"{' or '.join(PARTS)}, or match one of the layers that have weights: "
                f"{', '.join(names[:_SHOWN_NAMES])}{more}."
            )
        found += layers
    return found


def batches_at(config: RunConfig, step: int) -> tuple[int, int]:
    """Returns the global batch size at a step, and where in the stream its batch 0 would begin."""
    size, until = config.training.global_batch_size, config.fine_tuning.unfreeze_at_step
    later = config.fine_tuning.unfrozen_batch_size
    if until is None or later is None or step < until:
        return size, 0
    return later, until * (size - later)


def make_schedule(config: RunConfig) -> training.schedules.Schedule:
    """Returns the learning rate by step.

    Raises:
        UserError: If the schedule's settings do not fit one another.
    """
    schedule = optimizers.make_schedule(config.optimization)
    step, rate = config.fine_tuning.unfreeze_at_step, config.fine_tuning.unfrozen_learning_rate
    if step is None or rate is None:
        return schedule
    factor = rate / config.optimization.learning_rate
    return training.schedules.scaled_from(schedule, step=step, factor=factor)


def make_rate_factor(config: RunConfig, model: keras.Model) -> Callable[[Any], float] | None:
    """Returns the factor on the learning rate of a variable; None if it is 1 for all."""
    factor = config.fine_tuning.encoder_learning_rate_factor
    if factor == 1:
        return None
    paths = {v.path for layer in layers_matching(model, "encoder") for v in layer.variables}
    return lambda variable: factor if variable.path in paths else 1.0


class Stages:
    """What of a network is trained at which step.

    Layers that are frozen for good are so from the start, so that the loop, which is made next,
    keeps no slots and no averages of them. Those that will be unfrozen are frozen by `begin` only:
    the loop then has slots of all from the start, and checkpoints of both stages are alike.

    Args:
        model: The network, everything in it trainable.
        config: The settings.

    Raises:
        UserError: If a pattern of `freeze` matches no layer, or nothing is left to train, or
            nothing of what `encoder_learning_rate_factor` is about.
    """

    def __init__(self, model: keras.Model, config: RunConfig):
        self._model = model
        self._name = f"{config.network.encoder}/{config.network.decoder}"
        self._until = config.fine_tuning.unfreeze_at_step
        self._layers = frozen_layers(model, config.fine_tuning.freeze)
        self._parameters = _count(model)
        _set_trainable(self._layers, False)
        _check_trains(model, config)
        if self._until is not None:
            _set_trainable(self._layers, True)

    def begin(self, step: int) -> str:
        """Freezes what is to be frozen when training goes on at `step`; returns what is trained."""
        if self._until is not None and step <= self._until:
            _set_trainable(self._layers, False)
        text = f"Network {self._name}: {self._parameters:,} parameters"
        if frozen := self._parameters - _count(self._model):
            text += f", {frozen:,} frozen"
            text += f" until step {self._until}" if self._until is not None else ""
        return f"{text}."

    def train(
        self,
        loop: training.Loop,
        dataset: DatasetFn,
        *,
        until_step: int,
        unfrozen: DatasetFn | None = None,
        show: Callable[[str], None] = print,
        opened: Callable[[Feed], None] | None = None,
        **options: Any,
    ) -> Generator[Report, None, None]:
        """As `loop.train`, unfreezing when the step has come.

        Args:
            loop: The loop.
            dataset: As for `loop.train`.
            until_step: The step to end at.
            unfrozen: The dataset from then on, if it is another.
            show: Shows a line.
            opened: Takes the feed of each stage before its first step.
            options: Those of `loop.train`.
        """
        step = self._until
        feed = loop.feed(dataset)
        try:
            if step is not None and loop.step <= step:
                if opened and loop.step < step:
                    opened(feed)
                for report in loop.train(feed, until_step=step, **options):
                    yield report
                    if report.stopping:
                        return
                _set_trainable(self._layers, True)
                restart(loop.optimizer)
                show(f"Step {step}: unfrozen, all {self._parameters:,} parameters are trained.")
            if step is not None and unfrozen is not None:
                feed.close()
                feed = loop.feed(unfrozen)
            if opened and loop.step < until_step:
                opened(feed)
            yield from loop.train(feed, until_step=until_step, **options)
        finally:
            feed.close()

    def note_restored(self, step: int, loop: training.Loop) -> None:
        """Lets the optimizer begin anew if the weights of `step` are those of an earlier stage."""
        if self._until is not None and step <= self._until < loop.step:
            restart(loop.optimizer)


def restart(optimizer: keras.optimizers.Optimizer) -> None:
    """Lets the optimizer begin anew, as when a Keras model is compiled again to fine-tune it.

    Adam's bias correction (Kingma and Ba 2015, arXiv:1412.6980) is by the steps of the whole
    optimizer: the first updates of variables that are trained later would be up to 6.6 times too
    large. All slots of the optimizers in `unet_core.optimizers` begin with 0.
    """
    for variable in optimizer.variables:
        if variable is not optimizer._learning_rate:
            variable.assign(tf.zeros(variable.shape, variable.dtype))


def _check_trains(model: keras.Model, config: RunConfig) -> None:
    """Checks that the frozen layers leave something to train."""
    settings = config.fine_tuning
    names, factor = ",".join(settings.freeze), settings.encoder_learning_rate_factor
    if not model.trainable_variables:
        raise UserError(f"`freeze` ({names}) leaves nothing to train; freeze fewer layers.")
    if settings.unfreeze_at_step is not None or factor == 1:
        return
    if not any(layer.trainable_variables for layer in layers_matching(model, "encoder")):
        raise UserError(
            f"`encoder_learning_rate_factor` ({factor:g}) is about the encoder, of which `freeze` "
            f"({names}) leaves nothing to train; leave one of them out."
        )


def _set_trainable(layers: list[keras.layers.Layer], trainable: bool) -> None:
    for layer in layers:
        layer.trainable = trainable


def _count(model: keras.Model) -> int:
    """Returns how many parameters of `model` are trained."""
    return sum(variable.shape.num_elements() for variable in model.trainable_variables)
