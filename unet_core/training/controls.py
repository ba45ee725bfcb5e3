"""Controls: asked with the scores of each evaluation, they answer whether and how to go on.

    controls = Controls([EarlyStopping("loss", patience=5), ReduceOnPlateau("loss", patience=2)])
    loop = Loop(model, optimizer, loss=..., schedule=controls.scaled(schedules.cosine(...)))
    checkpoints = Checkpoints(directory, loop, controls=controls)
    checkpoints.restore()
    if not controls.stopped_by:
        for report in loop.train(dataset, until_step=10_000, report_every_steps=100):
            decision = controls.decide(report.step, my_scores(), rate=report.rate)
            if decision.restore_best:
                checkpoints.restore_best_weights()
            checkpoints.save(score=...)     # after it: what was decided is in the checkpoint
            if decision.stop:
                break

A control is any object with `name`, `state` (variables by name, saved in checkpoints), `stopped`
(whether its state says that training has ended) and `decide(evaluation) -> Decision`. All of them
are asked in the order of the list, until one stops. Factors on the rate are multiplied; the weights
are restored once. A stop restores nothing and changes no rate.

What these decide is a function of their state and the scores, which are the same on all workers.
What depends on the time or on a person is in `host_controls`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import tensorflow as tf

from unet_core.errors import UserError
from unet_core.training.schedules import Schedule

LOWER_IS_BETTER = ("loss", "error", "distance", "hausdorff", "calibration")


def higher_is_better(monitor: str) -> bool:
    """Returns whether the better value of a score is the higher one, by what its name holds."""
    return not any(word in monitor for word in LOWER_IS_BETTER)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a control decides by.

    Attributes:
        step: The step that was evaluated.
        scores: The held-out scores by name.
        rate: The learning rate of the last step.
    """

    step: int
    scores: Mapping[str, float]
    rate: float


@dataclasses.dataclass(frozen=True)
class Decision:
    """How to go on.

    Attributes:
        rate_factor: Factor on the learning rate from now on.
        restore_best: Whether to take back the weights, optimizer slots and averages of the best
            checkpoint. Step, data and controls go on.
        stop: Whether training ends here.
        reasons: One sentence for everything that was decided, for people.
        comment: What a person has said.
    """

    rate_factor: float = 1.0
    restore_best: bool = False
    stop: bool = False
    reasons: tuple[str, ...] = ()
    comment: str = ""

    @property
    def note(self) -> str:
        """Everything that was decided and said, as one text for the history."""
        return "; ".join(filter(None, (*self.reasons, self.comment)))


class Control(Protocol):
    """What `Controls` needs of each."""

    name: str

    @property
    def state(self) -> Mapping[str, tf.Variable]:
        """Its variables by name."""

    @property
    def stopped(self) -> bool:
        """Whether its state says that training has ended."""

    def decide(self, evaluation: Evaluation, /) -> Decision:
        """Answers with what to do, and changes the state."""


class Controls:
    """The controls of a run, and the factor on the learning rate that they have made.

    Args:
        controls: They are asked in this order.

    Raises:
        UserError: If two have one name.
    """

    def __init__(self, controls: Sequence[Control] = ()):
        self._controls = tuple(controls)
        names = [control.name for control in self._controls]
        if len(set(names)) < len(names) or "rate" in names:
            raise UserError(
                f"Controls need names of their own, other than 'rate'. Received {', '.join(names)}."
            )
        self._rate_scale = variable(1.0)

    @property
    def state(self) -> dict[str, Mapping[str, tf.Variable]]:
        """The variables of each control by its name, and of the factor on the rate by "rate"."""
        return {
            "rate": {"scale": self._rate_scale},
            **{control.name: control.state for control in self._controls},
        }

    @property
    def stopped_by(self) -> str | None:
        """The name of the control by whose state training has ended, if it has."""
        return next((control.name for control in self._controls if control.stopped), None)

    @property
    def rate_scale(self) -> float:
        """The product of the factors on the learning rate so far."""
        return float(self._rate_scale.numpy())

    def scaled(self, schedule: Schedule) -> Schedule:
        """Returns `schedule` multiplied by the factor on the rate, whatever it is at that step."""
        return lambda step: schedule(step) * tf.cast(self._rate_scale, tf.float32)

    def decide(self, step: int, scores: Mapping[str, float], *, rate: float) -> Decision:
        """Asks every control and returns what all of them want together.

        Args:
            step: The step that was evaluated.
            scores: Its scores by name.
            rate: The learning rate of the last step.

        Raises:
            UserError: If the score that a control monitors is not among them.
        """
        evaluation, total = Evaluation(step, scores, rate), Decision()
        for control in self._controls:
            found = control.decide(evaluation)
            reasons, comment = total.reasons + found.reasons, found.comment or total.comment
            if found.stop:
                return Decision(stop=True, reasons=found.reasons, comment=comment)
            total = Decision(
                rate_factor=total.rate_factor * found.rate_factor,
                restore_best=total.restore_best or found.restore_best,
                reasons=reasons,
                comment=comment,
            )
            # A later control sees the rate as the earlier ones have left it.
            evaluation = dataclasses.replace(evaluation, rate=evaluation.rate * found.rate_factor)
        self._rate_scale.assign(self._rate_scale * total.rate_factor)
        return total


class StopOnNan:
    """Stops when one of some scores is not a number.

    Args:
        monitors: The names of the scores.
    """

    name = "stop_on_nan"

    def __init__(self, *monitors: str):
        self._monitors = monitors
        self._stopped = count(0)
        self.state = {"stopped": self._stopped}

    @property
    def stopped(self) -> bool:
        """Whether one was."""
        return bool(self._stopped.numpy())

    def decide(self, evaluation: Evaluation, /) -> Decision:
        """Stops if one of the scores is NaN."""
        for monitor in self._monitors:
            if math.isnan(_score(evaluation, monitor)):
                self._stopped.assign(1)
                return Decision(stop=True, reasons=(f"{monitor} is not a number",))
        return Decision()


class EarlyStopping:
    """Stops when a score has not improved for some evaluations.

    Args:
        monitor: The name of the score; whether lower is better follows from it.
        patience: Evaluations in a row without an improvement after which to stop, >= 1.
        min_delta: By how much a score must be better than the best so far, >= 0.

    Raises:
        UserError: If an argument is not what it must be.
    """

    name = "early_stopping"

    def __init__(self, monitor: str, *, patience: int, min_delta: float = 0.0):
        _check_patience(patience)
        self._best, self._monitor, self._patience = _Best(monitor, min_delta), monitor, patience
        self._waited = count(0)
        self.state = {"waited": self._waited, "best": self._best.value}

    @property
    def stopped(self) -> bool:
        """Whether the patience is at its end; a greater patience lets training go on."""
        return int(self._waited.numpy()) >= self._patience

    def decide(self, evaluation: Evaluation, /) -> Decision:
        """Counts evaluations without an improvement."""
        improved = self._best.improves(_score(evaluation, self._monitor))
        self._waited.assign(0 if improved else self._waited + 1)
        if not self.stopped:
            return Decision()
        since = f"{self._monitor} has not improved in {_evaluations(int(self._waited.numpy()))}"
        return Decision(stop=True, reasons=(since,))


class ReduceOnPlateau:
    """Multiplies the learning rate when a score has not improved for some evaluations.

    Args:
        monitor: The name of the score; whether lower is better follows from it.
        patience: Evaluations in a row without an improvement after which to reduce, >= 1.
        factor: Factor on the rate, > 0 and < 1.
        min_delta: By how much a score must be better than the best so far, >= 0.
        cooldown: Evaluations after a reduction that do not count, >= 0.
        least_rate: The rate below which it is not reduced, >= 0.

    Raises:
        UserError: If an argument is not what it must be.
    """

    name = "reduce_on_plateau"

    def __init__(
        self,
        monitor: str,
        *,
        patience: int,
        factor: float = 0.5,
        min_delta: float = 0.0,
        cooldown: int = 0,
        least_rate: float = 0.0,
    ):
        _check_patience(patience)
        _check_factor(factor)
        if cooldown < 0 or least_rate < 0:
            raise UserError(
                f"`cooldown` ({cooldown}) and `least_rate` ({least_rate}) must be at least 0."
            )
        self._best, self._monitor, self._patience = _Best(monitor, min_delta), monitor, patience
        self._factor, self._cooldown, self._least_rate = factor, cooldown, least_rate
        self._waited, self._resting = count(0), count(0)
        self.state = {"waited": self._waited, "resting": self._resting, "best": self._best.value}

    stopped = False

    def decide(self, evaluation: Evaluation, /) -> Decision:
        """Counts evaluations without an improvement, except while it rests."""
        improved = self._best.improves(_score(evaluation, self._monitor))
        if int(self._resting.numpy()):
            self._resting.assign_sub(1)
            self._waited.assign(0)
            return Decision()
        self._waited.assign(0 if improved else self._waited + 1)
        waited = int(self._waited.numpy())
        if waited < self._patience:
            return Decision()
        self._waited.assign(0)
        self._resting.assign(self._cooldown)
        factor = self._factor
        if evaluation.rate > 0:
            factor = min(1.0, max(factor, self._least_rate / evaluation.rate))
        if factor == 1:
            return Decision()
        reason = (
            f"{self._monitor} has not improved in {_evaluations(waited)}: learning rate times "
            f"{factor:g}, now {evaluation.rate * factor:.3g}"
        )
        return Decision(rate_factor=factor, reasons=(reason,))


class Dwell:
    """Takes back the best weights and lowers the rate whenever a score is worse than its best.

    Args:
        monitor: The name of the score; whether lower is better follows from it. The best weights
            are those of the best checkpoint, so it should be the score that chooses that.
        factor: Factor on the rate, > 0 and <= 1.

    Raises:
        UserError: If an argument is not what it must be.
    """

    name = "dwell"

    def __init__(self, monitor: str, *, factor: float = 0.5):
        if factor != 1:
            _check_factor(factor)
        self._best, self._monitor, self._factor = _Best(monitor, 0.0), monitor, factor
        self.state = {"best": self._best.value}

    stopped = False

    def decide(self, evaluation: Evaluation, /) -> Decision:
        """Compares with the best score so far."""
        score, best = _score(evaluation, self._monitor), self._best.score
        if self._best.improves(score) or score == best or math.isnan(best):
            return Decision()
        reason = (
            f"{self._monitor} ({score:.4f}) is worse than {best:.4f}: back to the best weights, "
            f"learning rate times {self._factor:g}, now {evaluation.rate * self._factor:.3g}"
        )
        return Decision(rate_factor=self._factor, restore_best=True, reasons=(reason,))


class _Best:
    """The best value of a score so far, in a variable; NaN as long as there is none."""

    def __init__(self, monitor: str, min_delta: float):
        if not min_delta >= 0:
            raise UserError(f"`min_delta` ({min_delta}) must be at least 0.")
        self.value = variable(math.nan)
        self._sign = 1.0 if higher_is_better(monitor) else -1.0
        self._min_delta = min_delta

    @property
    def score(self) -> float:
        return float(self.value.numpy())

    def improves(self, score: float) -> bool:
        """Takes a score; returns whether it is better than the best before it. NaN never is."""
        if math.isnan(score):
            return False
        gain = self._sign * (score - self.score)
        if math.isnan(self.score) or gain > self._min_delta:
            self.value.assign(score)
            return True
        return False


def _score(evaluation: Evaluation, monitor: str) -> float:
    if monitor not in evaluation.scores:
        raise UserError(
            f"A control monitors {monitor!r}, which is none of the scores "
            f"{', '.join(evaluation.scores)}."
        )
    return float(evaluation.scores[monitor])


def _evaluations(number: int) -> str:
    return "1 evaluation" if number == 1 else f"{number} evaluations"


def _check_patience(patience: Any) -> None:
    if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
        raise UserError(f"`patience` ({patience!r}) must be a whole number of at least 1.")


def _check_factor(factor: float) -> None:
    if not 0 < factor < 1:
        raise UserError(f"`factor` ({factor}) must be greater than 0 and less than 1.")


def variable(value: float) -> tf.Variable:
    """Returns a variable of a control that holds a real number."""
    return tf.Variable(value, dtype=tf.float64, trainable=False)


def count(value: int) -> tf.Variable:
    """Returns a variable of a control that holds a whole number."""
    return tf.Variable(value, dtype=tf.int64, trainable=False)
