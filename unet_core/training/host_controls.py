"""Controls that depend on the time or on a person; of several workers the first decides.

    budget = TimeBudget(minutes=50, workers=workers)
    controls = Controls([budget, Ask(1000, ask=input, show=print, workers=workers)])
    loop.train(dataset, until_step=10_000, should_stop=budget.is_over)

Their state is in the checkpoint, as that of all controls.
"""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Callable

from unet_core.errors import UserError
from unet_core.training.controls import Decision, Evaluation, count, variable
from unet_core.training.workers import Workers


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
        self._used = variable(0.0)
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
        self._next, self._stopped = count(after_steps), count(0)
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
