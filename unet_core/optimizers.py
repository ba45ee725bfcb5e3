"""Optimizers and learning rate schedules by name, as the settings choose them.

Keras and TensorFlow are imported when one is made, so that the names can be read at once. To add
one, write its line.
"""

from __future__ import annotations

import dataclasses
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


def _time(settings: Any) -> Schedule:
    from unet_core.training import schedules

    falling = schedules.time_based(settings.learning_rate, decay=settings.decay_rate)
    return schedules.at_least(falling, settings.final_rate)


def _step(settings: Any) -> Schedule:
    from unet_core.training import schedules

    falls = dict(every_steps=settings.decay_every_steps, factor=settings.decay_factor)
    falling = schedules.step_decay(settings.learning_rate, **falls)
    return schedules.at_least(falling, settings.final_rate)


def _exponential(settings: Any) -> Schedule:
    from unet_core.training import schedules

    falls = dict(every_steps=settings.decay_every_steps, factor=settings.decay_factor)
    falling = schedules.exponential(settings.learning_rate, **falls)
    return schedules.at_least(falling, settings.final_rate)


def _cosine(settings: Any) -> Schedule:
    from unet_core.training import schedules

    return schedules.cosine(
        settings.learning_rate,
        total_steps=settings.schedule_steps,
        warmup_steps=settings.warmup_steps,
        final=settings.final_rate,
        restarts=settings.restarts,
    )


def _polynomial(settings: Any) -> Schedule:
    from unet_core.training import schedules

    return schedules.polynomial(
        settings.learning_rate,
        total_steps=settings.schedule_steps,
        power=settings.polynomial_power,
        final=settings.final_rate,
    )


def _one_cycle(settings: Any) -> Schedule:
    from unet_core.training import schedules

    return schedules.one_cycle(
        settings.learning_rate,
        total_steps=settings.schedule_steps,
        rise_steps=settings.warmup_steps or None,
        final=settings.final_rate,
    )


def _piecewise(settings: Any) -> Schedule:
    from unet_core.training import schedules

    rates = {0: settings.learning_rate}
    for item in settings.rate_from_step:
        step, _, factor = item.partition(":")
        try:
            rates[int(step)] = settings.learning_rate * float(factor)
        except ValueError:
            rates = {}
        if not rates or int(step) < 1 or not 0 <= float(factor) < float("inf"):
            raise UserError(
                f"`rate_from_step` ({item!r}) must be STEP:FACTOR, a step of at least 1 and a "
                "factor of at least 0, such as 500:0.1."
            )
    if len(rates) == 1:
        raise UserError(
            "`schedule` piecewise needs `rate_from_step`, such as 500:0.1,800:0.01; give it, or "
            "choose constant."
        )
    return schedules.piecewise(rates)


SCHEDULES: dict[str, Callable[[Any], Schedule]] = {
    "constant": _constant,
    "time": _time,
    "step": _step,
    "exponential": _exponential,
    "cosine": _cosine,
    "polynomial": _polynomial,
    "one_cycle": _one_cycle,
    "piecewise": _piecewise,
}
"""Name -> function of the `OptimizationSettings`, whose `schedule_steps` is a number."""

_USED_BY = {
    "final_rate": ("time", "step", "exponential", "cosine", "polynomial", "one_cycle"),
    "decay_every_steps": ("step", "exponential"),
    "decay_factor": ("step", "exponential"),
    "decay_rate": ("time",),
    "polynomial_power": ("polynomial",),
    "restarts": ("cosine",),
    "rate_from_step": ("piecewise",),
}
"""Which schedules use a setting that is not for all of them."""


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
        UserError: If the warm-up does not end before the schedule does, or a setting is not one of
            this schedule.
    """
    name, warmup_steps = settings.schedule, settings.warmup_steps
    defaults = {field.name: field.default for field in dataclasses.fields(settings)}
    for setting, used_by in _USED_BY.items():
        value = getattr(settings, setting)
        if name not in used_by and value != defaults[setting]:
            raise UserError(
                f"`{setting}` ({value}) is not used by the `schedule` {name}, but by "
                f"{', '.join(used_by)}; leave it out, or choose another schedule."
            )
    if name in ("cosine", "polynomial", "one_cycle") and warmup_steps >= settings.schedule_steps:
        raise UserError(
            f"`warmup_steps` ({warmup_steps}) must be less than the schedule's "
            f"{settings.schedule_steps} steps; lower it, or give a longer `schedule_steps`."
        )
    schedule = SCHEDULES[name](settings)
    if name in ("cosine", "one_cycle"):
        return schedule  # Their rise is their own.
    from unet_core.training import schedules

    return schedules.warmed_up(schedule, warmup_steps=warmup_steps)
