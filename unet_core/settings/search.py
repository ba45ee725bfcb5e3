"""Settings of the search for a learning rate, and for other settings over many runs."""

from __future__ import annotations

import dataclasses

from unet_core.settings.fields import check_fields, setting


@dataclasses.dataclass(frozen=True)
class SearchSettings:
    """How many steps or runs to search by, and over what."""

    find_rate_steps: int = setting(
        100,
        "Steps over which --mode=find_rate raises the learning rate from 1e-6 to 1.",
        modes=("find_rate",),
        of_run=False,
        least=10,
        most=10**6,
    )
    overfit_steps: int = setting(
        500,
        "Steps in which --mode=overfit must have learned one batch by heart.",
        modes=("overfit",),
        of_run=False,
        least=1,
        most=10**6,
    )
    sweep: tuple[str, ...] = setting(
        (),
        "What --mode=sweep varies: NAME=LOW..HIGH, a number in a range, or NAME=A|B|C, one of "
        "several values; such as learning_rate=1e-4..1e-2,normalization=none|batch.",
        modes=("sweep",),
        of_run=False,
    )
    trials: int = setting(
        20,
        "Runs of a sweep, those of an interrupted one included.",
        modes=("sweep",),
        of_run=False,
        least=1,
        most=10**5,
    )

    def __post_init__(self):
        check_fields(self)
