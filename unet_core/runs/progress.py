"""Progress on the screen."""

from __future__ import annotations

import functools
from collections.abc import Callable

import tqdm


def progress_bar(title: str) -> Callable:
    """Returns a wrapper for sequences that shows the progress, and clears it at the end."""
    return functools.partial(tqdm.tqdm, desc=title, leave=False, dynamic_ncols=True)


def pixel_bar(title: str) -> Callable:
    """Returns a maker of bars that count pixels, given their `total`, and leave no trace."""
    kind = dict(desc=title, leave=False, dynamic_ncols=True)
    return functools.partial(tqdm.tqdm, unit="px", unit_scale=True, **kind)
