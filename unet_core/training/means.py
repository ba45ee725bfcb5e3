"""What a loss returns: one value per example, or values with weights, and more of them by name.

return tf.square(outputs - targets)[:, 0]                   # [B]: divided by the rows
return Mean(per_token, is_token)                            # divided by the tokens
return total, {"cross_entropy": entropy, "overlap": dice}   # named ones are reported too
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from unet_core.errors import UserError

RESERVED = ("loss", "examples")


class Mean(NamedTuple):
    """sum(values * weights) / sum(weights) over the whole global batch.

    That is over all replicas and, with gradient accumulation, all micro-batches.

    Attributes:
        values: Floats of any shape, such as [B, T] for tokens.
        weights: Of the same shape; constants to the gradient. Where all are 0 the mean is 0.
    """

    values: Any
    weights: Any


class Sum(NamedTuple):
    """What one replica adds to a mean.

    Attributes:
        total: Scalar, float32 or float64.
        weight: Scalar, float64: there may be more pixels than float32 can count.
        static_weight: The weight, if it is known while tracing.
        rows: Scalar, float64: how many rows it is of, the size of the first axis.
        is_weighted: Whether it is that of a `Mean` and not a number of rows.
    """

    total: tf.Tensor
    weight: tf.Tensor
    static_weight: int | None
    rows: tf.Tensor
    is_weighted: bool

    def total_with(self, added: Sequence[tf.Tensor]) -> tf.Tensor:
        """Returns the total with losses added to the mean of this replica.

        Each counts by this replica's share of the weight: a mean over its rows then makes that of
        the global batch, and a regulariser, which is the same everywhere, counts once.
        """
        return self.total + self.sum_of(added) * tf.cast(self.weight, self.total.dtype)

    def sum_of(self, added: Sequence[tf.Tensor]) -> tf.Tensor:
        """Returns the sum of losses, of the type of the total."""
        total = tf.zeros([], self.total.dtype)
        for loss in added:
            total += tf.cast(tf.reduce_sum(loss), total.dtype)
        return total


def read_loss(result: Any, *, wide: bool = False) -> tuple[Sum, dict[str, Sum]]:
    """Returns the loss and the named values out of what a loss has returned.

    Args:
        result: What it has returned.
        wide: Whether to sum in float64, as where nothing is differentiated.

    Raises:
        UserError: If it is not of one of the forms above.
    """
    named: dict[str, Any] = {}
    if isinstance(result, tuple) and not isinstance(result, Mean):
        if len(result) != 2 or not isinstance(result[1], dict):
            raise UserError(
                "The loss must return a tensor [B], a `Mean`, or a pair of one of them and a dict "
                f"of more by name. Received a tuple of {len(result)}."
            )
        result, named = result
    for name in named:
        if not isinstance(name, str) or name in RESERVED:
            raise UserError(
                f"The loss has named a value {name!r}; names are texts other than "
                f"{' and '.join(RESERVED)}."
            )
    return _sum("The loss", result, wide), {
        name: _sum(f"The loss's value {name!r}", value, wide) for name, value in named.items()
    }


def _sum(what: str, result: Any, wide: bool) -> Sum:
    if isinstance(result, Mean):
        values, weights = (
            _as_float(what, result.values),
            _as_float(what, result.weights, exact=False),
        )
        weights = tf.stop_gradient(tf.cast(weights, values.dtype))
        if not values.shape.is_compatible_with(weights.shape):
            raise UserError(
                f"{what} is a Mean whose values have shape {values.shape} and whose weights have "
                f"shape {weights.shape}; the two must be equal."
            )
        if wide:
            values, weights = tf.cast(values, tf.float64), tf.cast(weights, tf.float64)
        # Where the weight is 0 the value does not matter, not even if it is not finite.
        values = tf.where(weights != 0, values, tf.zeros_like(values))
        weight = tf.reduce_sum(tf.cast(weights, tf.float64))
        rows = tf.shape(values)[0] if values.shape.rank else 1
        total = tf.reduce_sum(values * weights)
        return Sum(total, weight, None, tf.cast(rows, tf.float64), True)
    per_example = _as_float(what, result)
    if per_example.shape.rank != 1:
        raise UserError(
            f"{what} must have one value per example, shape [B]. Received shape "
            f"{per_example.shape}. Take the mean over the other axes, such as "
            "tf.reduce_mean(x, [1, 2]), or return Mean(values, weights) for what is divided by "
            "something else than the examples."
        )
    if wide:
        per_example = tf.cast(per_example, tf.float64)
    rows = per_example.shape[0]
    counted = tf.cast(tf.shape(per_example)[0], tf.float64)
    return Sum(tf.reduce_sum(per_example), counted, rows, counted, False)


def _as_float(what: str, value: Any, *, exact: bool = True) -> tf.Tensor:
    """Returns a float32 or float64 tensor; sums of 16-bit floats would lose or overflow."""
    if not tf.is_tensor(value) or not hasattr(value, "shape"):
        raise UserError(
            f"{what} must be a float tensor [B] or a `Mean` of tensors. Received "
            f"{value!r:.60}, a {type(value).__name__}."
        )
    if isinstance(value, (tf.RaggedTensor, tf.SparseTensor, tf.IndexedSlices)):
        raise UserError(
            f"{what} must be a dense tensor. Received a {type(value).__name__}; reduce it to one "
            "value per example, or give its flat values to a `Mean`."
        )
    value = tf.convert_to_tensor(value)
    if exact and not value.dtype.is_floating:
        raise UserError(f"{what} must be a float tensor. Received {value.dtype.name}.")
    return value if value.dtype == tf.float64 else tf.cast(value, tf.float32)


@contextlib.contextmanager
def noted(refused: list[UserError]) -> Iterator[None]:
    """Adds to `refused` what the block refuses: traced code hands it on as text among others."""
    try:
        yield
    except UserError as error:
        refused.append(error)
        raise
