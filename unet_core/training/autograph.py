"""AutoGraph for what others give the loop: a model, a loss, metrics, a schedule.

Their Python `if` and `for` over tensors become conditions and loops of the graph, as within any
`tf.function`. The loop's own code has none of them and is not converted, which takes most of the
time of tracing a step; its compiled functions are marked by `not_converted`.

    @not_converted
    def step(batch):
        return converted(loss)(batch)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

not_converted = tf.autograph.experimental.do_not_convert


def converted(function: Callable) -> Callable:
    """Returns `function` as AutoGraph converts it, whatever calls it; in eager mode as it is.

    It is converted when it is called, with all that it calls. What AutoGraph leaves alone, such as
    layers of Keras and what is marked by `not_converted`, is called as it is.
    """

    @functools.wraps(function, updated=())
    def call(*args: Any, **kwargs: Any) -> Any:
        if tf.executing_eagerly():
            return function(*args, **kwargs)
        return _converted_call()(function, args, kwargs)

    return not_converted(call)


def _call(function: Callable, args: Any, kwargs: Any) -> Any:
    return function(*args, **kwargs)


@functools.cache
def _converted_call() -> Callable:
    # In this one function's converted code, the call of any other is AutoGraph's.
    return tf.autograph.to_graph(_call)
