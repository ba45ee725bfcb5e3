"""The one error a person can do something about, and what the system says of files."""

from __future__ import annotations

import re


class UserError(ValueError):
    """A wrong flag, file, mask or checkpoint; the message is complete in itself.

    It says what is wrong, with which value, the rule, and what to do; of several things, each in a
    line of its own. `train_loop.py` prints it and exits with code 2; a host program may catch it as
    a `ValueError`.
    """

    def __init__(self, *problems: str):
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return self.problems[0]
        return "\n  ".join([f"{len(self.problems)} things are wrong:", *self.problems])


def reason_of(error: BaseException) -> str:
    """Returns in one line what the operating system said.

    It is taken out of what Python, TensorFlow or HDF5 made of it.
    """
    text = getattr(error, "strerror", None)
    if not text:
        # TensorFlow puts the name of a file before it, and that of an operation behind.
        text = str(getattr(error, "message", None) or error).strip().partition("\n")[0]
        text = re.sub(r" \[Op:\w+\]$", "", text.rpartition("; ")[2])
    return text or type(error).__name__
