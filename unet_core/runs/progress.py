"""Progress on the screen."""

from __future__ import annotations

import functools
from collections.abc import Callable

from unet_core import console


def progress_bar(title: str) -> Callable:
    """Returns a wrapper for sequences that shows the progress, and clears it at the end."""
    return functools.partial(console.bar, desc=title, leave=False)


def pixel_bar(title: str) -> Callable:
    """Returns a maker of bars that count pixels, given their `total`, and leave no trace."""
    return functools.partial(console.bar, desc=title, leave=False, unit="px", unit_scale=True)
