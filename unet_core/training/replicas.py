"""What layers do on several replicas: the sums they share, and what they keep to themselves."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from unet_core.errors import UserError
from unet_core.training.variables import (
    AddedLosses,
    copies_of,
    draws_for_one_replica,
    layers_of,
    of_tensorflow,
    replica_wise_statistics,
)


@contextlib.contextmanager
def quick_all_reduce() -> Iterator[None]:
    """Makes `all_reduce` of the current replica context quick to trace, for the block.

    TensorFlow (2.21) looks for the variables behind each result by walking backwards through the
    graph, and leaves the replica it began in: a network with 49 synchronised batch norms took 264 s
    to trace. Here the gradient is attached to the result itself, so that there is no way to walk.
    """
    context = tf.distribute.get_replica_context()
    if context is None or not _merges(context.strategy) or "all_reduce" in vars(context):
        yield
        return
    context.reductions = 0
    context.all_reduce = functools.partial(_all_reduce, context, context.all_reduce)
    try:
        yield
    finally:
        del context.all_reduce


def reductions() -> int:
    """Returns how often the current replica context has reduced in `quick_all_reduce`."""
    return getattr(tf.distribute.get_replica_context(), "reductions", 0)


def check_losses_of_calls(added: AddedLosses, reductions_before: int) -> None:
    """Raises UserError if layers have added losses while replicas took turns.

    Keras (3.15) keeps them in the layers, for all replicas together: where a reduction hands over
    to another replica in between, they would be mixed up.
    """
    if reductions() > reductions_before and added.of_calls():
        raise UserError(
            "Layers of the model add losses when they are called (`add_loss`, activity "
            "regularisers), and the model or the loss reduces over replicas (synchronised batch "
            "normalisation, a batch-wise loss): Keras would mix up those of several replicas. "
            "Compute them in the loss, or train on one replica."
        )


def _merges(strategy: tf.distribute.Strategy) -> bool:
    merges = getattr(strategy.extended, "_use_merge_call", lambda: False)()
    return strategy.num_replicas_in_sync > 1 and merges


def _all_reduce(context, in_general, reduce_op, value, options=None):
    """As `ReplicaContext.all_reduce`, with its gradient: the reduction of the gradients."""
    context.reductions += 1
    flat = tf.nest.flatten(value)
    if options is not None or not all(map(_is_dense, flat)):
        return in_general(reduce_op, value, options)
    if isinstance(reduce_op, str):
        reduce_op = tf.distribute.ReduceOp(reduce_op.upper())

    def reduce(strategy, *values):
        pairs = [(each, each) for each in values]
        return strategy.extended.batch_reduce_to(reduce_op, pairs)

    def without_gradient(values):
        values = [tf.stop_gradient(each) for each in values]
        return [tf.stop_gradient(each) for each in context.merge_call(reduce, args=values)]

    @tf.custom_gradient
    def attach(_, reduced):
        def gradient(*upstream):
            return without_gradient(upstream), [None] * len(reduced)

        return [tf.identity(each) for each in reduced], gradient

    flat = [tf.convert_to_tensor(each) for each in flat]
    reduced = without_gradient(flat)
    if any(each.dtype.is_floating for each in flat):
        reduced = attach(flat, reduced)
    return tf.nest.pack_sequence_as(value, reduced)


def _is_dense(value: Any) -> bool:
    return not isinstance(value, (tf.IndexedSlices, tf.RaggedTensor, tf.SparseTensor))


class ReplicaWise:
    """What the layers of some models make of the rows of one replica alone.

    Args:
        strategy: Where the models were made.
        models: The models.
    """

    def __init__(self, strategy: tf.distribute.Strategy, models: Sequence[Any]):
        self._strategy = strategy
        self._models = models
        self._has_warned = False
        self.refresh()

    def refresh(self) -> None:
        """Looks at the layers as they are now, and warns once of those that differ."""
        self._statistics: list[Any] = []
        if self._strategy.num_replicas_in_sync == 1:
            return
        self._statistics = [v for model in self._models for v in replica_wise_statistics(model)]
        self._average = tf.function(self._average_in_graph)
        differing = [
            layer
            for model in self._models
            for layer in layers_of(model)
            if draws_for_one_replica(layer) or _normalises_alone(layer)
        ]
        if differing and not self._has_warned:
            self._has_warned = True
            names = ", ".join(layer.name for layer in differing[:4])
            more = f" and {len(differing) - 4} more" if len(differing) > 4 else ""
            warnings.warn(
                f"The layers {names}{more} act on the rows of one replica, so "
                f"{self._strategy.num_replicas_in_sync} replicas do not train exactly what one "
                "does: BatchNormalization normalises by its own rows (its moving statistics are "
                "averaged), Dropout and noise are the same on all. `FusedBatchNorm` and "
                "`RowDropout` of unet_core.models.layers are exact.",
                stacklevel=4,
            )

    def average_statistics(self) -> None:
        """Averages over replicas the moving statistics that each makes of its own rows.

        They are linear in what is averaged and only inference reads them, so it need not be done
        at every step.
        """
        if self._statistics:
            self._average()

    def _average_in_graph(self):
        def average():
            context = tf.distribute.get_replica_context()
            values = [tf.identity(of_tensorflow(v)) for v in self._statistics]
            return context.all_reduce(tf.distribute.ReduceOp.MEAN, values)

        means = self._strategy.run(average)
        for variable, mean in zip(self._statistics, means, strict=True):
            copies = copies_of(self._strategy, variable)
            values = self._strategy.experimental_local_results(mean)
            for copy, value in zip(copies, values, strict=True):
                copy.assign(value)


def _normalises_alone(layer: keras.layers.Layer) -> bool:
    is_norm = isinstance(layer, keras.layers.BatchNormalization)
    return is_norm and layer.trainable and not layer.synchronized
