"""Settings of the controls, which are asked with the scores of each evaluation of a run."""

from __future__ import annotations

import dataclasses

from unet_core.settings.fields import check_fields, check_own, setting
from unet_core.settings.modes import TRAIN


@dataclasses.dataclass(frozen=True)
class ControlSettings:
    """When to stop, lower the learning rate, go back to the best weights, or ask a person."""

    early_stopping_patience: int = setting(
        0,
        "Early stopping: evaluations without an improvement of --monitor after which training "
        "ends; 0 is off.",
        modes=TRAIN,
        least=0,
        most=10**6,
    )
    min_delta: float = setting(
        0.0,
        "By how much --monitor must be better than the best so far to count as improved, for early "
        "stopping and plateaus.",
        modes=TRAIN,
        binds=True,
        least=0,
        most=1e6,
    )
    plateau_patience: int = setting(
        0,
        "Evaluations without an improvement of --monitor after which the learning rate is reduced; "
        "0 is off.",
        modes=TRAIN,
        binds=True,
        least=0,
        most=10**6,
    )
    plateau_factor: float = setting(
        0.5,
        "Factor on the learning rate on a plateau, less than 1.",
        modes=TRAIN,
        binds=True,
        least=1e-6,
        most=1,
    )
    plateau_cooldown: int = setting(
        0,
        "Evaluations after a reduction that do not count for the next one.",
        modes=TRAIN,
        binds=True,
        least=0,
        most=10**6,
    )
    plateau_least_rate: float = setting(
        0.0,
        "Learning rate below which a plateau does not reduce it.",
        modes=TRAIN,
        binds=True,
        least=0,
        most=1e6,
    )
    dwell_factor: float = setting(
        0.0,
        "Whenever --monitor is worse than its best, take back the best weights, optimizer state "
        "and averages, and multiply the learning rate by this; 0 is off.",
        modes=TRAIN,
        binds=True,
        least=0,
        most=1,
    )
    max_minutes: float = setting(
        0.0,
        "Time for training and its evaluations, all parts of an interrupted run together; training "
        "ends in time for a last evaluation; 0 is no limit.",
        modes=TRAIN,
        least=0,
        most=1e7,
    )
    control: str = setting(
        "",
        "A control of your own: my_module:make_my_control (docs/hooks.md).",
        modes=TRAIN,
        binds=True,
    )
    ask_every_steps: int = setting(
        0,
        "Ask on the terminal whether and how to go on, at the first evaluation after so many "
        "steps; 0 does not ask.",
        modes=TRAIN,
        of_run=False,
        least=0,
        most=10**9,
    )

    def __post_init__(self):
        check_fields(self)
        check_own("control", self.control)
