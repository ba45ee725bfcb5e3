"""The controls of a run, made of its settings, and what is done with their decisions."""

from __future__ import annotations

import sys
from collections.abc import Callable

from unet_core import console, training
from unet_core.settings import RunConfig
from unet_core.training import controls, host_controls
from unet_core.training.controls import Control, Decision


class Steering:
    """The controls of a run.

    They are asked in this order: a score that is not a number, early stopping, plateau, dwell,
    others, time, a person.

    Args:
        config: The settings.
        workers: Of several, the first decides what depends on the time or a person.
        others: More controls.

    Attributes:
        controls: All of them.
    """

    def __init__(self, config: RunConfig, workers: training.Workers, *others: Control | None):
        settings, monitor = config.controls, config.training.monitor
        found: list[Control] = [controls.StopOnNan(*dict.fromkeys(("loss", monitor)))]
        if settings.early_stopping_patience:
            patience = settings.early_stopping_patience
            found.append(
                controls.EarlyStopping(monitor, patience=patience, min_delta=settings.min_delta)
            )
        if settings.plateau_patience:
            found.append(
                controls.ReduceOnPlateau(
                    monitor,
                    patience=settings.plateau_patience,
                    factor=settings.plateau_factor,
                    min_delta=settings.min_delta,
                    cooldown=settings.plateau_cooldown,
                    least_rate=settings.plateau_least_rate,
                )
            )
        if settings.dwell_factor:
            found.append(controls.Dwell(monitor, factor=settings.dwell_factor))
        found += [control for control in others if control is not None]
        self._budget = None
        if settings.max_minutes:
            self._budget = host_controls.TimeBudget(settings.max_minutes, workers=workers)
            found.append(self._budget)
        if settings.ask_every_steps:
            found.append(
                host_controls.Ask(
                    settings.ask_every_steps,
                    ask=_terminal(),
                    show=console.say,
                    workers=workers,
                )
            )
        self.controls = training.Controls(found)
        self._workers = workers

    def begin(self) -> None:
        """Starts the clock of the time budget."""
        if self._budget:
            self._budget.begin()

    def time_is_up(self) -> bool:
        """Whether it is time for the last evaluation, on this worker."""
        return self._budget is not None and self._budget.is_over()

    def ends_now(self, stop: Callable[[], bool]) -> bool:
        """Whether a loop that was told to stop ends because time is up; all workers must call it.

        Args:
            stop: Whether this worker has been asked to stop for another reason.
        """
        found = self._workers.gather([int(stop()), int(self.time_is_up())])
        return not found[:, 0].any() and bool(found[0, 1])

    def evaluating(self) -> None:
        """Tells that an evaluation begins."""
        if self._budget:
            self._budget.evaluating()

    def how_to_go_on(self) -> str:
        """Returns what to do to train on after a control has ended training."""
        return {
            "stop_on_nan": "Lower --learning_rate or set --clip_norm, or choose a --monitor whose "
            "class is in the held-out images, in a new --run_dir.",
            "early_stopping": "To train on, raise --early_stopping_patience.",
            "time_budget": "To train on, raise --max_minutes.",
            "ask": "To train on, leave --ask_every_steps out.",
        }.get(self.controls.stopped_by or "", "To train on, leave --control out.")


def text_of(decision: Decision) -> str:
    """Returns what was decided, as one sentence for the screen; "" if it is to go on as before."""
    if decision.stop:
        return f"training ends here: {'; '.join(decision.reasons)}"
    return "; ".join(decision.reasons)


def _terminal() -> Callable[[str], str] | None:
    """Returns what asks on the terminal; None without one."""
    return input if sys.stdin is not None and sys.stdin.isatty() else None
