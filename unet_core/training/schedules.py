"""Learning rates as functions of the step.

A schedule is a callable from the step (int64 scalar tensor: updates done before) to the rate
(float32 scalar tensor). After its last step a schedule stays at its final rate.

    rate = schedules.cosine(1e-3, total_steps=10_000, warmup_steps=200)
    rate = schedules.warmed_up(schedules.exponential(1e-3, every_steps=1000), warmup_steps=200)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

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


def exponential(rate: float, *, every_steps: int, factor: float = 0.1) -> Schedule:
    """Returns `rate` times `factor` ** (step / every_steps), a smooth fall.

    Raises:
        ValueError: If `every_steps` < 1.
    """
    if every_steps < 1:
        raise ValueError(f"`every_steps` ({every_steps}) must be at least 1.")
    return lambda step: rate * tf.cast(factor, tf.float32) ** (_as_float(step) / every_steps)


def time_based(rate: float, *, decay: float) -> Schedule:
    """Returns `rate` / (1 + decay * step)."""
    return lambda step: rate / (1 + decay * _as_float(step))


def piecewise(rates: Mapping[int, float]) -> Schedule:
    """Returns the rate of the last of some steps that has come.

    Args:
        rates: From which step on which rate holds; one of them from step 0.

    Raises:
        ValueError: If none holds from step 0 on.
    """
    if 0 not in rates or min(rates) < 0:
        raise ValueError(f"`rates` (from steps {sorted(rates)}) must have one from step 0 on.")
    steps = sorted(rates)

    def schedule(step):
        begun = tf.reduce_sum(tf.cast(steps <= tf.cast(step, tf.int64), tf.int32))
        return tf.gather(tf.constant([rates[each] for each in steps], tf.float32), begun - 1)

    return schedule


def polynomial(
    rate: float, *, total_steps: int, power: float = 0.9, final: float = 0.0
) -> Schedule:
    """Returns the fall from `rate` to `final` as (1 - step / total_steps) ** power.

    Raises:
        ValueError: If `total_steps` < 1.
    """
    share = _share_done(0, total_steps)
    return lambda step: final + (rate - final) * (1 - share(step)) ** power


def cosine(
    rate: float,
    *,
    total_steps: int,
    warmup_steps: int = 0,
    final: float = 0.0,
    restarts: int = 0,
) -> Schedule:
    """Returns a linear warm-up to `rate`, then half a cosine down to `final` at `total_steps`.

    The warm-up takes `warmup_steps`. With restarts what follows it is cut into `restarts` + 1 parts
    of one length, and each begins with `rate`.

    Raises:
        ValueError: If `warmup_steps` is negative or not below `total_steps`.

    Source: Loshchilov and Hutter 2017, SGDR, arXiv:1608.03983, T_mult = 1.
    """
    share = _share_done(warmup_steps, total_steps)

    def of_its_part(done):
        if not restarts:
            return done
        # The last step of all ends the last part and begins none.
        return tf.where(done < 1, tf.math.floormod(done * (restarts + 1), 1.0), 1.0)

    def schedule(step):
        done = of_its_part(share(step))
        falling = final + (rate - final) * 0.5 * (1 + tf.cos(math.pi * done))
        rising = rate * (tf.cast(step, tf.float32) + 1) / max(warmup_steps, 1)
        return tf.where(step < warmup_steps, rising, falling)

    return schedule


def one_cycle(
    rate: float,
    *,
    total_steps: int,
    rise_steps: int | None = None,
    first: float | None = None,
    final: float = 0.0,
) -> Schedule:
    """Returns half a cosine up from `first` to `rate`, then one down to `final` at `total_steps`.

    Args:
        rate: The highest rate.
        total_steps: The end of the fall.
        rise_steps: The steps of the rise; by default 3 tenths of all.
        first: The rate at step 0; by default a 25th of `rate`.
        final: The rate at the end.

    Raises:
        ValueError: If `rise_steps` is negative or not below `total_steps`.

    Source: Smith and Topin 2018, Super-Convergence, arXiv:1708.07120; cosines, tenths and the 25th
    as in PyTorch's OneCycleLR.
    """
    rise_steps = total_steps * 3 // 10 if rise_steps is None else rise_steps
    first = rate / 25 if first is None else first
    share = _share_done(rise_steps, total_steps)

    def schedule(step):
        risen = tf.minimum(_as_float(step) / max(rise_steps, 1), 1.0)
        rising = rate + (first - rate) * 0.5 * (1 + tf.cos(math.pi * risen))
        falling = final + (rate - final) * 0.5 * (1 + tf.cos(math.pi * share(step)))
        return tf.where(step < rise_steps, rising, falling)

    return schedule


def warmed_up(schedule: Schedule, *, warmup_steps: int) -> Schedule:
    """Returns `schedule` after a linear rise to what it is at `warmup_steps`."""
    if not warmup_steps:
        return schedule

    def warmed(step):
        there = schedule(tf.constant(warmup_steps, tf.int64))
        rising = there * (_as_float(step) + 1) / warmup_steps
        return tf.where(step < warmup_steps, rising, schedule(step))

    return warmed


def at_least(schedule: Schedule, final: float) -> Schedule:
    """Returns `schedule` where it is above `final`, and `final` where it is not."""
    return lambda step: tf.maximum(schedule(step), final)


def scaled_from(schedule: Schedule, *, step: int, factor: float) -> Schedule:
    """Returns `schedule`, multiplied by `factor` from `step` on."""
    return lambda now: schedule(now) * tf.where(now < step, 1.0, factor)


def _as_float(step: tf.Tensor) -> tf.Tensor:
    return tf.cast(step, tf.float32)


def _share_done(first_step: int, last_step: int) -> Schedule:
    if not 0 <= first_step < last_step:
        raise ValueError(
            f"The warm-up ({first_step} steps) must be at least 0 and end before the schedule "
            f"does ({last_step})."
        )
    length = last_step - first_step
    return lambda step: tf.clip_by_value(tf.cast(step - first_step, tf.float32) / length, 0.0, 1.0)
