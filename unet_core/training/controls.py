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

What a control decides is a function of its state and the scores, which are the same on all workers.
What is not (the time, a person) is decided by worker 0 and told to the others.
"""

from __future__ import annotations

import dataclasses
import math
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import tensorflow as tf

from unet_core.errors import UserError
from unet_core.training.schedules import Schedule
from unet_core.training.workers import Workers

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
        self._rate_scale = _variable(1.0)

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
        self._stopped = _count(0)
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
        self._waited = _count(0)
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
        self._waited, self._resting = _count(0), _count(0)
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


class TimeBudget:
    """Stops when training has taken its time, all parts of an interrupted run together.

    Between evaluations `is_over()` tells that it is time for the last one: give it to the loop as
    `should_stop`, or in one.

    Args:
        minutes: Time for training and evaluations, > 0.
        workers: Of several, the first decides.
        clock: Returns seconds.

    Raises:
        UserError: If `minutes` is not greater than 0.
    """

    name = "time_budget"

    def __init__(
        self,
        minutes: float,
        *,
        workers: Workers | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        if not minutes > 0:
            raise UserError(f"`minutes` ({minutes}) must be greater than 0.")
        self._seconds, self._workers, self._clock = 60 * minutes, workers, clock
        self._used = _variable(0.0)
        self._since: float | None = None
        self._evaluated_at: float | None = None
        self._evaluation_takes = 0.0
        self.state = {"seconds": self._used}

    @property
    def stopped(self) -> bool:
        """Whether the time was used up at the last evaluation; more minutes let it go on."""
        return float(self._used.numpy()) >= self._seconds

    def begin(self) -> None:
        """Starts the clock; before that `is_over` and `decide` do."""
        if self._since is None:
            self._since = self._clock()

    def is_over(self) -> bool:
        """Whether what is left is only enough for an evaluation as long as the longest so far."""
        return self._used_now() + self._evaluation_takes >= self._seconds

    def evaluating(self) -> None:
        """Tells that an evaluation begins, so that its time is known; it ends with `decide`."""
        self._evaluated_at = self._clock()

    def decide(self, _: Evaluation, /) -> Decision:
        """Stops if there is no time for more."""
        if self._evaluated_at is not None:
            took = self._clock() - self._evaluated_at
            self._evaluation_takes = max(self._evaluation_takes, took)
            self._evaluated_at = None
        used = self._used_now()
        is_over = used + self._evaluation_takes >= self._seconds
        if self._workers is not None:
            used, over = _from_chief(self._workers, used, float(is_over))
            is_over = bool(over)
        self._since = self._clock()
        # What is left would not do for one more evaluation.
        self._used.assign(max(used, self._seconds) if is_over else used)
        if not is_over:
            return Decision()
        reason = f"the {self._seconds / 60:g} minutes are used up"
        return Decision(stop=True, reasons=(reason,))

    def _used_now(self) -> float:
        self.begin()
        assert self._since is not None
        return float(self._used.numpy()) + self._clock() - self._since


class Ask:
    """Asks a person, at chosen evaluations, whether and how to go on.

    The answers: a number of steps to go on for before asking again; `stop`; `rate` and a number, a
    new learning rate; `say` and a comment for the history; an empty line, which goes on. What is
    none of these is asked again. At the end of the input training goes on without asking.

    Args:
        after_steps: The steps at whose evaluation, or the next after them, to ask first.
        ask: Shows a text and returns a line that was typed; None is that nobody can be asked.
            It raises EOFError at the end of the input.
        show: Shows a line.
        workers: Of several, the first is asked.

    Raises:
        UserError: If `after_steps` is less than 1.
    """

    name = "ask"
    HELP = (
        "Type a number of steps to go on for before you are asked again, stop, rate NUMBER, "
        "say COMMENT, or nothing to go on."
    )
    _NEVER = 2**62

    def __init__(
        self,
        after_steps: int,
        *,
        ask: Callable[[str], str] | None,
        show: Callable[[str], None],
        workers: Workers | None = None,
    ):
        if after_steps < 1:
            raise UserError(f"`after_steps` ({after_steps}) must be at least 1.")
        self._every, self._ask, self._show, self._workers = after_steps, ask, show, workers
        self._next, self._stopped = _count(after_steps), _count(0)
        self._said_nobody = False
        self.state = {"next": self._next, "stopped": self._stopped}

    @property
    def stopped(self) -> bool:
        """Whether a person has stopped the run."""
        return bool(self._stopped.numpy())

    def decide(self, evaluation: Evaluation, /) -> Decision:
        """Asks, if it is time to."""
        if evaluation.step < int(self._next.numpy()):
            return Decision()
        stop, after, factor, comment = False, evaluation.step + self._every, 1.0, ""
        if self._workers is None or self._workers.is_chief:
            stop, after, factor, comment = self._answer(evaluation)
        if self._workers is not None:
            found = _from_chief(self._workers, float(stop), float(after), factor)
            stop, after, factor = bool(found[0]), int(found[1]), found[2]
        self._next.assign(after)
        self._stopped.assign(int(stop))
        if stop:
            return Decision(stop=True, reasons=("as you have answered",), comment=comment)
        reasons = () if factor == 1 else (f"learning rate {evaluation.rate * factor:.3g}",)
        return Decision(rate_factor=factor, reasons=reasons, comment=comment)

    def _answer(self, evaluation: Evaluation) -> tuple[bool, int, float, str]:
        """Returns whether to stop, when to ask again, the factor on the rate, and a comment."""
        again, factor = evaluation.step + self._every, 1.0
        comments: list[str] = []
        if self._ask is None:
            if not self._said_nobody:
                self._show("There is no terminal to ask at, so training goes on.")
            self._said_nobody = True
            return False, again, factor, ""
        self._show(f"Step {evaluation.step}. {self.HELP}")
        while True:
            try:
                line = self._ask("> ").strip()
            except EOFError:
                self._show("The input has ended, so training goes on, and nothing more is asked.")
                return False, self._NEVER, factor, " ".join(comments)
            word, _, rest = line.partition(" ")
            if not line:
                return False, again, factor, " ".join(comments)
            if line == "stop":
                return True, again, 1.0, " ".join(comments)
            if line.isascii() and line.isdigit() and 0 < int(line) < 10**9:
                return False, evaluation.step + int(line), factor, " ".join(comments)
            if word == "rate" and (rate := _rate(rest)) and evaluation.rate > 0:
                factor = rate / evaluation.rate
                self._show(
                    f"From here on the learning rate is {rate:g}, falling as the schedule does."
                )
            elif word == "say" and rest.strip():
                comments.append(rest.strip())
                self._show("The history will keep that.")
            else:
                self._show(f"{line!r} cannot be read. {self.HELP}")


class _Best:
    """The best value of a score so far, in a variable; NaN as long as there is none."""

    def __init__(self, monitor: str, min_delta: float):
        if not min_delta >= 0:
            raise UserError(f"`min_delta` ({min_delta}) must be at least 0.")
        self.value = _variable(math.nan)
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


def _from_chief(workers: Workers, *values: float) -> list[float]:
    """Returns the values of worker 0, bit for bit; every worker must call it."""
    packed = struct.unpack(f"<{len(values)}q", struct.pack(f"<{len(values)}d", *values))
    found = [int(each) for each in workers.gather(packed)[0]]
    return list(struct.unpack(f"<{len(values)}d", struct.pack(f"<{len(values)}q", *found)))


def _rate(text: str) -> float | None:
    try:
        rate = float(text)
    except ValueError:
        return None
    return rate if 0 < rate < math.inf else None


def _evaluations(number: int) -> str:
    return "1 evaluation" if number == 1 else f"{number} evaluations"


def _check_patience(patience: Any) -> None:
    if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
        raise UserError(f"`patience` ({patience!r}) must be a whole number of at least 1.")


def _check_factor(factor: float) -> None:
    if not 0 < factor < 1:
        raise UserError(f"`factor` ({factor}) must be greater than 0 and less than 1.")


def _variable(value: float) -> tf.Variable:
    return tf.Variable(value, dtype=tf.float64, trainable=False)


def _count(value: int) -> tf.Variable:
    return tf.Variable(value, dtype=tf.int64, trainable=False)
