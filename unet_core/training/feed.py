"""Where a loop's batches come from: a dataset that is opened at a step and goes on from there.

feed = loop.feed(dataset)             # opened once ...
for _ in range(100):
    list(loop.train(feed, until_step=loop.step + 5))    # ... goes on where it was left
    list(other_loop.train(other_feed, until_step=other_loop.step + 1))
"""

from __future__ import annotations

import atexit
import gc
import inspect
import re
import weakref
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from unet_core.errors import UserError

DatasetFn = Callable[[int, tf.distribute.InputContext], tf.data.Dataset]

_open_feeds: weakref.WeakSet[Feed] = weakref.WeakSet()


class Feed:
    """A dataset distributed over the replicas of a strategy.

    Args:
        dataset: `(start_step, InputContext) -> tf.data.Dataset` of the batches of one replica, or a
            `tf.data.Dataset` of global batches.
        strategy: Whose replicas take the batches.
        micro_batches: Batches of the dataset to one global batch.

    Attributes:
        from_function: Whether it can be opened at any step.
        is_marked: Whether its elements are `marked`.
        is_static: Whether all replicas have batches of the shapes known while tracing.
        element_spec: What a batch looks like.
    """

    def __init__(
        self,
        dataset: DatasetFn | tf.data.Dataset,
        strategy: tf.distribute.Strategy,
        *,
        micro_batches: int = 1,
    ):
        self.from_function = not isinstance(dataset, tf.data.Dataset)
        if self.from_function:
            check_dataset_function(dataset, "(start_step, tf.distribute.InputContext)", 2)
        self.is_marked = self.is_static = False
        self.element_spec: Any = None
        self._dataset = dataset
        self._strategy = strategy
        self._micro_batches = micro_batches
        self._iterator: Any = None
        self._at = 0
        self._steps: int | None = None
        _open_feeds.add(self)
        # Once only, whatever the number of feeds.
        atexit.unregister(_close_all)
        atexit.register(_close_all)

    def iterator_at(self, step: int) -> Any:
        """Returns the iterator whose next global batch is that of `step`.

        Raises:
            UserError: If a plain dataset has gone on from another step, or it is no dataset.
        """
        if self._iterator is not None and self._at == step:
            return self._iterator
        if self._iterator is not None and not self.from_function:
            raise UserError(
                f"The loop is at step {step}, but its dataset has gone on to step {self._at}, and "
                "a plain tf.data.Dataset cannot be wound back. Give a callable (start_step, "
                "tf.distribute.InputContext) -> tf.data.Dataset instead."
            )
        self.close()
        if self.from_function:
            made = self._strategy.distribute_datasets_from_function(
                lambda context: self._made(self._dataset(step, context), context)
            )
        else:
            made = self._strategy.experimental_distribute_dataset(self._shared(self._dataset))
        self._iterator, self._at = iter(made), step
        return self._iterator

    def advance(self, steps: int) -> None:
        """Notes that so many global batches have been taken."""
        self._at += steps
        if self._steps is not None:
            self._steps -= steps

    @property
    def is_used_up(self) -> bool:
        """Whether it is known that no global batch is left."""
        return self._steps == 0

    def close(self) -> None:
        """Lets go of the iterator, which ends the threads behind it."""
        self._iterator = None

    def _made(self, dataset: Any, context: tf.distribute.InputContext) -> tf.data.Dataset:
        check_dataset(dataset)
        replicas = context.num_replicas_in_sync // context.num_input_pipelines
        self._note(dataset, replicas)
        return marked(dataset) if self.is_marked else dataset

    def _shared(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        self._note(dataset, 1)
        replicas = self._strategy.num_replicas_in_sync
        if replicas > 1:
            check_can_be_shared(dataset, replicas)
        return marked(dataset, rows=True) if self.is_marked else dataset

    def _note(self, dataset: tf.data.Dataset, replicas: int) -> None:
        length = int(dataset.cardinality())
        endless = length == tf.data.INFINITE_CARDINALITY
        one_replica = self._strategy.num_replicas_in_sync == 1
        self.is_marked = not (endless or one_replica)
        self.is_static = one_replica or (endless and self.from_function)
        self.element_spec = dataset.element_spec
        known = not endless and length != tf.data.UNKNOWN_CARDINALITY
        # The last batches may not be enough for all replicas, but must be for all micro-batches.
        self._steps = -(-length // replicas) // self._micro_batches if known else None


def check_dataset(dataset: Any) -> None:
    """Raises UserError unless `dataset` is a `tf.data.Dataset`."""
    if not isinstance(dataset, tf.data.Dataset):
        raise UserError(
            "A dataset must be a tf.data.Dataset, or a function that returns one. Received a "
            f"{type(dataset).__module__.partition('.')[0]}.{type(dataset).__name__}; arrays become "
            "one by tf.data.Dataset.from_tensor_slices(arrays).batch(n), generators by "
            "from_generator."
        )


def check_dataset_function(dataset: Any, form: str, arguments: int) -> None:
    """Raises UserError unless `dataset` can be called with so many arguments."""
    if not callable(dataset) or isinstance(dataset, type):
        check_dataset(dataset)
    try:
        inspect.signature(dataset).bind(*range(arguments))
    except TypeError as error:
        raise UserError(
            f"A function that makes a dataset is called with {form}; this one cannot be: {error}."
        ) from None


def check_can_be_shared(dataset: tf.data.Dataset, replicas: int) -> None:
    """Raises UserError unless every part of a batch can be cut by rows, the same ones.

    TensorFlow cuts each tensor of a batch along its first axis, whatever that is.
    """
    specs = tf.nest.flatten(dataset.element_spec)
    shapes = [getattr(spec, "shape", None) for spec in specs]
    rows = {shape[0] if shape is not None and shape.rank else "none" for shape in shapes}
    if len(rows) > 1 or rows & {"none"}:
        raise UserError(
            f"A batch of this dataset has parts of shapes {', '.join(map(str, shapes))}, which "
            f"cannot be shared among {replicas} replicas by rows. Give a callable (start_step, "
            "tf.distribute.InputContext) -> tf.data.Dataset of the batches of one replica instead."
        )


def marked(dataset: tf.data.Dataset, *, rows: bool = False) -> tf.data.Dataset:
    """Returns `dataset` with a mark beside each batch.

    TensorFlow gives a replica that has no batch left one of zeros, whose mark is 0 or of no rows.

    Args:
        dataset: Any dataset.
        rows: Whether the mark has as many rows as the first tensor, to be cut with it.
    """
    # `map` takes tuples apart, but not those with names.
    is_taken_apart = type(dataset.element_spec) is tuple

    def mark(*parts):
        batch = parts if is_taken_apart else parts[0]
        if not rows:
            return batch, tf.constant(1)
        tensors = tf.nest.flatten(batch)
        counts = [_rows_of(tensor) for tensor in tensors]
        with tf.control_dependencies(
            [
                tf.debugging.assert_equal(
                    count, counts[0], "The parts of a batch have different numbers of rows."
                )
                for count in counts[1:]
            ]
        ):
            return batch, tf.ones([counts[0]], tf.int32)

    return dataset.map(mark, num_parallel_calls=1)


def unmarked(element: Any, is_marked: bool) -> tuple[Any, tf.Tensor | None]:
    """Returns (batch, whether there is one on this replica, None if there always is)."""
    if not is_marked:
        return element, None
    batch, mark = element
    return batch, tf.reduce_sum(mark) > 0


def reason_of(error: tf.errors.OpError) -> str | None:
    """Returns in one line what a Python generator behind a dataset has raised.

    Likewise what an assertion about a batch says; None if `error` is neither.
    """
    message = error.message
    if "assertion failed: [" in message:
        said = message.partition("assertion failed: ")[2].partition("\n")[0]
        return " ".join(re.findall(r"\[([^]]*)\]", said))
    if "generator" not in message and "PyFunc" not in message:
        return None
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    for line in lines:
        if line.startswith(("Traceback", "{{", "[[", "File")):
            break
        if ": " in line and "{{" not in line:
            return line
    return lines[0] if lines else None


def _rows_of(tensor: Any) -> tf.Tensor:
    if isinstance(tensor, tf.RaggedTensor):
        return tf.cast(tensor.nrows(), tf.int32)
    if isinstance(tensor, tf.SparseTensor):
        return tf.cast(tensor.dense_shape[0], tf.int32)
    return tf.shape(tensor)[0]


def _close_all() -> None:
    """Ends all pipelines before the process ends.

    TensorFlow aborts a process that ends while a parallel generator is alive (seen on 2.21,
    tensorflow#56634).
    """
    for feed in list(_open_feeds):
        feed.close()
    gc.collect()
