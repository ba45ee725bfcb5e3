"""What the loop reads out when it pauses, and the clock behind it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any


class NonFiniteError(ArithmeticError):
    """The loss or a gradient is not finite; no variable has been changed by that step.

    Attributes:
        step: The step, which is also the index of its global batch.
        part: Name of the part of the loop whose loss it is.
    """

    def __init__(self, step: int, *, part: str | None = None, skipped: int = 0):
        of_part = f" of {part!r}" if part else ""
        what = f"Step {step}: the loss or a gradient{of_part} is not finite"
        if skipped:
            what += f", as in the {skipped} steps before it, at the smallest loss scale, 1"
        super().__init__(f"{what}; the weights are those before it.")
        self.step = step
        self.part = part


@dataclasses.dataclass(frozen=True)
class Report:
    """What the loop read out at one step.

    Attributes:
        step: Global batches consumed so far.
        due: Whether the step is one that `report_every_steps` asks for; else it was stopped for
            another reason.
        stopping: Whether the loop ends here because it was asked to, on this worker or another.
        exhausted: Whether the loop ends here because the data have ended.
        loss: Mean loss since the last step that was due, per example or per weight of a `Mean`,
            regularisers and `add_loss` included; of the first part, if there are several.
        means: The same of what the losses have named, and of each part's loss if there are several.
        rate: Learning rate of the last step.
        gradient_norm: Global norm of the last step's reduced gradient, before clipping.
        rates: The learning rates of all parts, by name.
        gradient_norms: The norms of all parts, by name.
        loss_scale: Factor on a float16 loss; 1 without loss scaling.
        skipped_steps: Updates skipped so far because a float16 gradient overflowed.
        step_ms: Mean milliseconds per step since the last report, compilation left out; NaN if
            nothing was timed.
        examples_per_sec: Examples (weights of a `Mean`) per second over the same steps.
        data_wait_share: Share of that time spent waiting for data, 0 to 1; NaN under
            `tf.config.experimental.enable_op_determinism`, which forbids to ask the time.
    """

    step: int
    due: bool
    stopping: bool
    exhausted: bool
    loss: float
    means: Mapping[str, float]
    rate: float
    gradient_norm: float
    rates: Mapping[str, float]
    gradient_norms: Mapping[str, float]
    loss_scale: float
    skipped_steps: int
    step_ms: float
    examples_per_sec: float
    data_wait_share: float


class Stopwatch:
    """Times the compiled calls of one window, leaving out the first call, which compiles."""

    def __init__(self):
        self._step_seconds: float | None = None
        self._compiled = False
        self.start_window()

    def start_window(self) -> None:
        """Begins the sums anew."""
        self._seconds = self._wait = self._examples = 0.0
        self._steps = 0

    def start_over(self) -> None:
        """Leaves out the next call too: it compiles again."""
        self._compiled = False

    def add(self, seconds: float, steps: int, wait: float, examples: float) -> None:
        """Counts one call."""
        if not self._compiled:
            self._compiled = True
            return
        if steps:
            self._step_seconds = seconds / steps
        self._seconds += seconds
        self._steps += steps
        self._wait += wait
        self._examples += examples

    def steps_in(self, seconds: float) -> int:
        """Returns how many steps about fill `seconds`, at least 1; 1 while that is not known."""
        if self._step_seconds is None:
            return 1
        return max(1, int(seconds / max(self._step_seconds, 1e-9)))

    def figures(self) -> dict[str, Any]:
        """Returns the figures of a report over the window."""
        if not self._steps:
            names = ("step_ms", "examples_per_sec", "data_wait_share")
            return dict.fromkeys(names, float("nan"))
        return {
            "step_ms": 1000 * self._seconds / self._steps,
            "examples_per_sec": float(self._examples / self._seconds),
            "data_wait_share": float(self._wait / self._seconds),
        }


def make_report(
    result: Any, names: Sequence[Sequence[str]], watch: Stopwatch, **of_the_loop: Any
) -> Report:
    """Returns the report of a call.

    Args:
        result: A `Result` of it.
        names: Of each part its own name, then those of the values its loss has named.
        watch: What has timed it.
        of_the_loop: step, due, stopping, exhausted.
    """
    losses, means, place = {}, {}, 0
    for part, *named in names:
        loss, weight, added, rows = result.sums[place : place + 4]
        losses[part] = _ratio(loss, weight) + (_ratio(added, rows) if rows else 0.0)
        place += 4
        for name in named:
            means[name] = _ratio(*result.sums[place : place + 2])
            place += 2
    parts = [part for part, *_ in names]
    rates = dict(zip(parts, result.figures[:, 0].tolist(), strict=True))
    norms = dict(zip(parts, result.figures[:, 1].tolist(), strict=True))
    return Report(
        **of_the_loop,
        loss=losses[parts[0]],
        means=losses | means if len(parts) > 1 else means,
        rate=rates[parts[0]],
        gradient_norm=norms[parts[0]],
        rates=rates,
        gradient_norms=norms,
        loss_scale=result.loss_scale,
        skipped_steps=result.skipped,
        **watch.figures(),
    )


def _ratio(total: float, weight: float) -> float:
    return float(total / weight) if weight else float("nan")
