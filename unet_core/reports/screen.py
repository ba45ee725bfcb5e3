"""Progress on the screen."""

from __future__ import annotations

import functools
from collections.abc import Callable

import tqdm


def progress_bar(title: str) -> Callable:
    """Returns a wrapper for sequences that shows how far they have been gone through, and leaves no
    trace.
    """
    return functools.partial(tqdm.tqdm, desc=title, leave=False, dynamic_ncols=True)
