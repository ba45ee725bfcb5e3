"""Learning rates as functions of the step.

A schedule is a callable from the step (int64 scalar tensor: updates done before) to the rate
(float32 scalar tensor). After its last step a schedule stays at its final rate.

    rate = schedules.cosine(1e-3, total_steps=10_000, warmup_steps=200)
"""

from __future__ import annotations

import math
from collections.abc import Callable

import tensorflow as tf

Schedule = Callable[[tf.Tensor], tf.Tensor]


def constant(rate: float) -> Schedule:
    """Returns the schedule that is always `rate`."""
    return lambda _: tf.constant(rate, tf.float32)


def step_decay(rate: float, *, every_steps: int, factor: float = 0.1) -> Schedule:
    """Returns `rate` times `factor` for every `every_steps` steps done.

    Raises:
        ValueError: If `every_steps` < 1.
    """
    if every_steps < 1:
        raise ValueError(f"`every_steps` ({every_steps}) must be at least 1.")
    return lambda step: (
        rate * tf.cast(factor, tf.float32) ** tf.cast(step // every_steps, tf.float32)
    )


def polynomial(
    rate: float, *, total_steps: int, power: float = 0.9, final: float = 0.0
) -> Schedule:
    """Returns the fall from `rate` to `final` as (1 - step / total_steps) ** power.

    Raises:
        ValueError: If `total_steps` < 1.
    """
    share = _share_done(0, total_steps)
    return lambda step: final + (rate - final) * (1 - share(step)) ** power


def cosine(rate: float, *, total_steps: int, warmup_steps: int = 0, final: float = 0.0) -> Schedule:
    """Returns a linear warm-up to `rate`, then half a cosine down to `final` at `total_steps`.

    The warm-up takes `warmup_steps`.

    Raises:
        ValueError: If `warmup_steps` is negative or not below `total_steps`.

    Source: Loshchilov and Hutter 2017, SGDR, arXiv:1608.03983, without restarts.
    """
    share = _share_done(warmup_steps, total_steps)

    def schedule(step):
        falling = final + (rate - final) * 0.5 * (1 + tf.cos(math.pi * share(step)))
        rising = rate * (tf.cast(step, tf.float32) + 1) / max(warmup_steps, 1)
        return tf.where(step < warmup_steps, rising, falling)

    return schedule


def scaled_from(schedule: Schedule, *, step: int, factor: float) -> Schedule:
    """Returns `schedule`, multiplied by `factor` from `step` on."""
    return lambda now: schedule(now) * tf.where(now < step, 1.0, factor)


def _share_done(first_step: int, last_step: int) -> Schedule:
    if not 0 <= first_step < last_step:
        raise ValueError(
            f"The warm-up ({first_step} steps) must be at least 0 and end before the schedule "
            f"does ({last_step})."
        )
    length = last_step - first_step
    return lambda step: tf.clip_by_value(tf.cast(step - first_step, tf.float32) / length, 0.0, 1.0)
