"""Whether a layer is called for the first time on a batch, or again to recompute its features.

    with passes.first(kept):        # the forward pass
        y = layer(x)
    with passes.second(kept):       # the backward pass, which needs what lies inside once more
        y = layer(x)

A layer that changes something when it is called, or that counts its calls, asks here, so that the
second call gives what the first gave and changes nothing. The replicas of a strategy trace in
threads of their own.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import tensorflow as tf

_of_thread = threading.local()


@contextlib.contextmanager
def first(kept: list[tf.Tensor]) -> Iterator[None]:
    """A context in which `kept` takes what layers have to use again."""
    with _entered(kept, None):
        yield


@contextlib.contextmanager
def second(kept: list[tf.Tensor]) -> Iterator[None]:
    """A context in which the layers that were called in `first` are called again, in order."""
    with _entered(None, iter(kept)):
        yield


def is_second() -> bool:
    """Returns whether this call must change nothing, because an earlier one has."""
    return getattr(_of_thread, "of_first", None) is not None


def same_in_both(make: Callable[[], tf.Tensor]) -> tf.Tensor:
    """Returns what `make` gives, in the second call what it gave in the first."""
    if is_second():
        return next(_of_thread.of_first)
    value = make()
    if getattr(_of_thread, "kept", None) is not None:
        _of_thread.kept.append(value)
    return value


@contextlib.contextmanager
def _entered(kept: list[tf.Tensor] | None, of_first: Iterator[tf.Tensor] | None) -> Iterator[None]:
    before = getattr(_of_thread, "kept", None), getattr(_of_thread, "of_first", None)
    _of_thread.kept, _of_thread.of_first = kept, of_first
    try:
        yield
    finally:
        _of_thread.kept, _of_thread.of_first = before
