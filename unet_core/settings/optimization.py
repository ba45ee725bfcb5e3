"""Settings of the optimizer, the learning rate and what becomes of gradients and weights."""

from __future__ import annotations

import dataclasses

from unet_core.optimizers import OPTIMIZERS, SCHEDULES
from unet_core.settings.fields import check_fields, setting
from unet_core.settings.modes import BUILD, TRAIN


@dataclasses.dataclass(frozen=True)
class OptimizationSettings:
    """Optimizer, learning rate schedule, weight decay, clipping, averages of the weights."""

    optimizer: str = setting(
        "adamw", "How weights are updated.", modes=BUILD, binds=True, choices=OPTIMIZERS
    )
    learning_rate: float = setting(
        1e-3, "Highest learning rate.", modes=TRAIN, binds=True, least=0, most=1e6
    )
    schedule: str = setting(
        "cosine",
        "How the learning rate changes; cosine, polynomial and one_cycle reach --final_rate at "
        "--schedule_steps.",
        modes=TRAIN,
        binds=True,
        choices=SCHEDULES,
    )
    schedule_steps: int | None = setting(
        None,
        "Steps that cosine, polynomial and one_cycle are laid out for. Default: the first "
        "--train_steps.",
        modes=TRAIN,
        least=1,
        most=10**9,
    )
    warmup_steps: int = setting(
        0,
        "Steps of linear warm-up; of one_cycle the steps of its rise, by default 3 tenths.",
        modes=TRAIN,
        binds=True,
        least=0,
        most=10**9,
    )
    final_rate: float = setting(
        0.0,
        "Learning rate that cosine, polynomial and one_cycle end with, and below which time, step "
        "and exponential do not fall.",
        modes=TRAIN,
        binds=True,
        least=0,
        most=1e6,
    )
    decay_every_steps: int = setting(
        1000,
        "Steps between two falls of step; steps in which exponential falls by --decay_factor.",
        modes=TRAIN,
        binds=True,
        least=1,
        most=10**9,
    )
    decay_factor: float = setting(
        0.1,
        "Factor of each fall of step and exponential.",
        modes=TRAIN,
        binds=True,
        least=0,
        most=1,
    )
    decay_rate: float = setting(
        1e-3,
        "The k of time: the rate at step t is --learning_rate / (1 + k t).",
        modes=TRAIN,
        binds=True,
        least=0,
        most=1e6,
    )
    polynomial_power: float = setting(
        0.9, "Exponent of the polynomial schedule.", modes=TRAIN, binds=True, least=0, most=100
    )
    restarts: int = setting(
        0,
        "Warm restarts of cosine: how often it begins anew, in parts of one length.",
        modes=TRAIN,
        binds=True,
        least=0,
        most=10**6,
    )
    rate_from_step: tuple[str, ...] = setting(
        (),
        "The rates of piecewise as STEP:FACTOR,...: from each step on --learning_rate times that.",
        modes=TRAIN,
        binds=True,
    )
    weight_decay: float = setting(
        0.0, "Decoupled weight decay of kernels.", modes=TRAIN, binds=True, least=0, most=100
    )
    momentum: float = setting(
        0.99, "Nesterov momentum (sgd).", modes=BUILD, binds=True, least=0, most=1
    )
    adam_epsilon: float = setting(
        1e-5,
        "Epsilon of AdamW; smaller ones amplify rounding, so that replica counts drift apart.",
        modes=TRAIN,
        binds=True,
        least=1e-12,
        most=1,
    )
    clip_norm: float = setting(
        0.0,
        "Gradient clipping: largest global norm of the gradient; 0 does not clip.",
        modes=TRAIN,
        binds=True,
        least=0,
        most=1e9,
    )
    ema_decay: float = setting(
        0.0,
        "Decay of an exponential moving average (EMA) of the weights, which is then evaluated and "
        "predicted with; 0 keeps none.",
        modes=BUILD,
        binds=True,
        least=0,
        most=0.99999,
    )

    def __post_init__(self):
        check_fields(self)
