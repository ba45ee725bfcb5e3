"""Optimizers and learning rate schedules by name, as the settings choose them.

Keras and TensorFlow are imported when one is made, so that the names can be read at once. To add
one, write its line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from unet_core.errors import UserError

if TYPE_CHECKING:
    import keras

    from unet_core.training.schedules import Schedule


def _adamw(settings: Any) -> keras.optimizers.Optimizer:
    import keras

    return keras.optimizers.AdamW(
        settings.learning_rate, weight_decay=settings.weight_decay, epsilon=settings.adam_epsilon
    )


def _sgd(settings: Any) -> keras.optimizers.Optimizer:
    import keras

    return keras.optimizers.SGD(
        settings.learning_rate,
        momentum=settings.momentum,
        nesterov=settings.momentum > 0,
        weight_decay=settings.weight_decay or None,
    )


OPTIMIZERS: dict[str, Callable[[Any], keras.optimizers.Optimizer]] = {
    "adamw": _adamw,
    "sgd": _sgd,
}
"""Name -> function of the `OptimizationSettings`."""


def _constant(settings: Any) -> Schedule:
    from unet_core.training import schedules

    return schedules.constant(settings.learning_rate)


def _step(settings: Any) -> Schedule:
    from unet_core.training import schedules

    return schedules.step_decay(
        settings.learning_rate,
        every_steps=settings.decay_every_steps,
        factor=settings.decay_factor,
    )


def _cosine(settings: Any) -> Schedule:
    from unet_core.training import schedules

    return schedules.cosine(
        settings.learning_rate,
        total_steps=settings.schedule_steps,
        warmup_steps=settings.warmup_steps,
    )


def _polynomial(settings: Any) -> Schedule:
    from unet_core.training import schedules

    return schedules.polynomial(
        settings.learning_rate,
        total_steps=settings.schedule_steps,
        power=settings.polynomial_power,
    )


SCHEDULES: dict[str, Callable[[Any], Schedule]] = {
    "constant": _constant,
    "step": _step,
    "cosine": _cosine,
    "polynomial": _polynomial,
}
"""Name -> function of the `OptimizationSettings`, whose `schedule_steps` is a number."""


def make_optimizer(settings: Any) -> keras.optimizers.Optimizer:
    """Returns the optimizer of `OptimizationSettings`.

    The loop sets its rate; its decay is that of kernels only.
    """
    optimizer = OPTIMIZERS[settings.optimizer](settings)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def make_schedule(settings: Any) -> Schedule:
    """Returns the learning rate by step of `OptimizationSettings`.

    Raises:
        UserError: If the warm-up does not end before the schedule does.
    """
    if settings.schedule == "cosine" and settings.warmup_steps >= settings.schedule_steps:
        raise UserError(
            f"`warmup_steps` ({settings.warmup_steps}) must be less than the schedule's "
            f"{settings.schedule_steps} steps; lower it, or give a longer `schedule_steps`."
        )
    return SCHEDULES[settings.schedule](settings)
