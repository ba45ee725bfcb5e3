"""What a program says while it works: bars on a terminal, lines in a log, JSON for machines.

bar = console.bar(total=100, desc="Training")   # a line now and then where there is no terminal
console.emit("report", step=20, loss=0.5)       # a JSON object, under --log_format=json alone
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys
from collections.abc import Iterator
from typing import Any, TextIO

import tqdm

_SECONDS_BETWEEN_LINES = 30
_LINE = "{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


class _Lines:
    """A stream for tqdm that makes a line of each status, without carriage returns."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> None:
        """Writes what is there to be read."""
        text = text.replace("\x1b[A", "").strip()
        if text:
            self._stream.write(f"{text}\n")

    def flush(self) -> None:
        """Hands what was written to the operating system."""
        self._stream.flush()


def bar(*args: Any, **kwargs: Any) -> tqdm.tqdm:
    """Returns a bar on standard error, as `tqdm.tqdm` takes it.

    Where there is no terminal it writes a line at most every 30 seconds and at each `refresh`; if
    standard output is JSON it is silent.
    """
    if isinstance(sys.stdout, JsonOutput):
        return tqdm.tqdm(*args, **kwargs, disable=True)
    if sys.stderr.isatty():
        return tqdm.tqdm(*args, **kwargs, dynamic_ncols=True)
    seconds = _SECONDS_BETWEEN_LINES
    how = {"file": _Lines(sys.stderr), "mininterval": seconds, "delay": seconds, "leave": False}
    # No drawn bar, which costs the end of the line, and no second line from tqdm's own thread.
    how |= {"bar_format": _LINE, "maxinterval": 10**9}
    # A moving average would move every 30 seconds alone, and first hold the time of compiling.
    how |= {"smoothing": 0}
    return tqdm.tqdm(*args, **{**kwargs, **how})


def say(text: str) -> None:
    """Prints a line that a bar does not run into."""
    if isinstance(sys.stdout, JsonOutput):
        print(text)
    else:
        tqdm.tqdm.write(text)


def warn(text: str) -> None:
    """Prints a warning that a bar does not run into, on standard error or as a JSON message."""
    if isinstance(sys.stdout, JsonOutput):
        print(f"WARNING: {text}")
    else:
        tqdm.tqdm.write(f"WARNING: {text}", file=sys.stderr)


def emit(event: str, **values: Any) -> None:
    """Writes a JSON object to standard output if that is what it holds; else nothing."""
    if isinstance(sys.stdout, JsonOutput):
        sys.stdout.emit(event, **values)


class JsonOutput(io.TextIOBase):
    """Standard output of which each line is a JSON object with the key "event".

    What is printed becomes events "message", a line each.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._pending = ""

    def writable(self) -> bool:
        """Says that it can be written to."""
        return True

    def write(self, text: str) -> int:
        """Takes text; whole lines are written."""
        *lines, self._pending = (self._pending + text).split("\n")
        for line in lines:
            if line.strip():
                self.emit("message", text=line)
        return len(text)

    def flush(self) -> None:
        """Hands what was written to the operating system."""
        self._stream.flush()

    def emit(self, event: str, **values: Any) -> None:
        """Writes one object; numbers that JSON has not (NaN, infinity) become null."""
        self._stream.write(f"{to_json({'event': event, **values})}\n")
        self._stream.flush()


def to_json(values: dict[str, Any]) -> str:
    """Returns an object in one line; numbers that JSON has not (NaN, infinity) become null."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
    return json.dumps(finite, default=float, allow_nan=False)


@contextlib.contextmanager
def json_output() -> Iterator[None]:
    """Makes standard output JSON while the block runs."""
    output = JsonOutput(sys.stdout)
    with contextlib.redirect_stdout(output):
        try:
            yield
        finally:
            # A line that was not ended.
            output.write("\n")
