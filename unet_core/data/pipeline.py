"""From samples to `tf.data`: interleaved Python generators that yield whole batches.

    dataset_fn = partial(make_train_dataset, samples, read, sampling, global_batch_size=4)
    dataset = dataset_fn(start_step, tf.distribute.InputContext())
    # elements: Batch(image [B, crop, crop, C], mask [B, crop, crop] uint8), those of one replica

Several generators run at once; each yields chunks of many batches, because handing over one element
costs about as much as augmenting one sample (measured by `benchmarks/input_pipeline.py`).
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from unet_core.data.reader import Reader
from unet_core.data.samples import Sample
from unet_core.data.stream import SampleStream, SamplingConfig
from unet_core.errors import UserError

_CHUNK_BYTES = 8 << 20


class Batch(NamedTuple):
    """The examples of one replica.

    Attributes:
        image: [B, H, W, C] uint8 or float32 pixel values in 0..255.
        mask: [B, H, W] uint8 class ids, or `IGNORED`.
    """

    image: tf.Tensor
    mask: tf.Tensor

    @property
    def weights(self) -> None:
        """None: all pixels weigh alike. No field, as a distributed dataset takes no None."""


class WeightedBatch(NamedTuple):
    """A `Batch` whose pixels have weights in the loss.

    Attributes:
        image: As there.
        mask: As there.
        weights: [B, H, W] float32.
    """

    image: tf.Tensor
    mask: tf.Tensor
    weights: tf.Tensor


def usable_cores(quota: pathlib.Path = pathlib.Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Returns how many cores this process may use: `taskset`, Slurm and containers allow fewer.

    Args:
        quota: Where Linux says how much processor time a container has, and of which period.
    """
    usable = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        usable = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        allowed, period = quota.read_text().split()
        usable = min(usable, math.ceil(int(allowed) / int(period)))
    return max(1, usable)


def make_train_dataset(
    samples: Sequence[Sample],
    read: Reader,
    sampling: SamplingConfig,
    start_step: int,
    context: tf.distribute.InputContext,
    *,
    global_batch_size: int,
    micro_batches: int = 1,
    first_sample: int = 0,
    generators: int = 0,
    failures: list[UserError] | None = None,
) -> tf.data.Dataset:
    """Returns the endless dataset of training batches for one input pipeline.

    It begins at `start_step`; its elements are of `Batch`.

    Row r of global batch k is position first_sample + k * global_batch_size + r of the stream,
    whatever the number of replicas and micro-batches: an element is the micro-batch of one replica,
    successive elements go to successive replicas, and a pipeline makes only the rows of its own
    replicas.

    Args:
        samples: The training samples.
        read: Decodes them. If it makes weights, batches have them.
        sampling: How they are drawn.
        start_step: The first global batch.
        context: Which pipeline of how many this is, and the number of replicas.
        global_batch_size: Examples per step over all replicas and micro-batches.
        micro_batches: Parts of a global batch that come one after another.
        first_sample: Where in the stream batch 0 begins, or would begin; it may be negative.
        generators: Python generators at work at once; 0 is one more than `usable_cores`.
        failures: Takes what a generator raised, which TensorFlow hands on only as text.

    Raises:
        UserError: If the global batch does not divide by the replicas times the micro-batches.
    """
    check_global_batch_size(global_batch_size, context.num_replicas_in_sync, micro_batches)
    # A step of several micro-batches reads the stream as that many steps of smaller batches.
    start_step *= micro_batches
    global_batch_size //= micro_batches
    rows = global_batch_size // context.num_replicas_in_sync
    replicas = context.num_replicas_in_sync // context.num_input_pipelines
    generators = generators or usable_cores() + 1
    crop = sampling.crop_size
    parts = [((crop, crop, read.channels), read.dtype), ((crop, crop), np.dtype(np.uint8))]
    if read.make_weights is not None:
        parts.append(((crop, crop), np.dtype(np.float32)))
    bytes_per_step = rows * replicas * sum(math.prod(s) * dtype.itemsize for s, dtype in parts)
    steps_per_chunk = max(1, min(32, _CHUNK_BYTES // bytes_per_step))
    make_chunks = functools.partial(
        _chunks,
        samples=samples,
        read=read,
        sampling=sampling,
        start_step=start_step,
        steps_per_chunk=steps_per_chunk,
        generators=generators,
        global_batch_size=global_batch_size,
        first_row=first_sample + context.input_pipeline_id * replicas * rows,
        replicas=replicas,
        rows=rows,
        parts=parts,
        failures=[] if failures is None else failures,
    )
    signature = tuple(
        tf.TensorSpec([steps_per_chunk * replicas, rows, *shape], tf.as_dtype(dtype))
        for shape, dtype in parts
    )
    batches = _interleaved(make_chunks, signature, generators).unbatch()
    batches = batches.map(_batch_type(read)).prefetch(2 * replicas)
    # Said to be endless, batches keep their static shape under every strategy, and workers need not
    # ask one another at each step whether there are more.
    return batches.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))


def _interleaved(
    make_elements: Callable[[int], Iterator[Any]], signature: Any, generators: int
) -> tf.data.Dataset:
    """Returns what `generators` generators yield, one of each in turn; they run at once."""

    def from_generator(number):
        return tf.data.Dataset.from_generator(
            make_elements, output_signature=signature, args=(number,)
        )

    return tf.data.Dataset.range(generators).interleave(
        from_generator,
        cycle_length=generators,
        block_length=1,
        num_parallel_calls=generators,
        deterministic=True,
    )


def make_image_dataset(
    shapes: Mapping[Sample, tuple[int, int]],
    read: Reader,
    context: tf.distribute.InputContext,
    *,
    global_batch_size: int,
    failures: list[UserError] | None = None,
) -> tf.data.Dataset:
    """Returns the finite dataset of whole images for one input pipeline.

    They come in order, each element a `Batch`.

    Images of one size are batched, the last batch being what is left over; if sizes differ, every
    image is a batch.

    Args:
        shapes: Height and width of each sample.
        read: Decodes them.
        context: Which pipeline of how many this is.
        global_batch_size: Images per batch over all replicas.
        failures: Takes what the generator raised.
    """
    rows = max(1, global_batch_size // context.num_replicas_in_sync)
    if len(set(shapes.values())) > 1:
        rows = 1
    signature: tuple[tf.TensorSpec, ...] = (
        tf.TensorSpec([None, None, read.channels], tf.as_dtype(read.dtype)),
        tf.TensorSpec([None, None], tf.uint8),
    )
    if read.make_weights is not None:
        signature += (tf.TensorSpec([None, None], tf.float32),)
    own = list(shapes)[context.input_pipeline_id :: context.num_input_pipelines]
    whole = functools.partial(
        _whole, samples=own, read=read, failures=[] if failures is None else failures
    )
    dataset = tf.data.Dataset.from_generator(whole, output_signature=signature)
    return dataset.batch(rows).map(_batch_type(read)).prefetch(1)


def _batch_type(read: Reader) -> type[Batch] | type[WeightedBatch]:
    return Batch if read.make_weights is None else WeightedBatch


def check_global_batch_size(global_batch_size: int, replicas: int, micro_batches: int = 1) -> None:
    """Raises UserError unless the global batch divides by the replicas times the micro-batches."""
    parts = replicas * micro_batches
    if global_batch_size % parts:
        low = global_batch_size // parts * parts
        valid = f"{low} or {low + parts}" if low else f"{parts}"
        of = f"{replicas} replicas" + f" x {micro_batches} micro-batches" * (micro_batches > 1)
        raise UserError(
            f"`global_batch_size` ({global_batch_size}) must be a multiple of the {of}; nearest "
            f"valid: {valid}."
        )


def _chunks(
    number: int,
    *,
    samples: Sequence[Sample],
    read: Reader,
    sampling: SamplingConfig,
    start_step: int,
    steps_per_chunk: int,
    generators: int,
    global_batch_size: int,
    first_row: int,
    replicas: int,
    rows: int,
    parts: Sequence[tuple[tuple[int, ...], np.dtype]],
    failures: list[UserError],
) -> Iterator[tuple[np.ndarray, ...]]:
    """Yields every `generators`-th chunk from chunk `number` on.

    A chunk has for each of `parts` an array [batches, rows, *shape].
    """
    stream = SampleStream(samples, read, sampling)
    first = start_step + int(number) * steps_per_chunk
    while True:
        # TensorFlow may keep the memory of an array it was given, so every chunk is a new one.
        arrays = [
            _aligned((steps_per_chunk, replicas * rows, *shape), dtype) for shape, dtype in parts
        ]
        images = arrays[0][..., 0] if read.channels == 1 else arrays[0]
        outputs = [images, *arrays[1:]]
        try:
            for step in range(steps_per_chunk):
                for row in range(replicas * rows):
                    index = (first + step) * global_batch_size + first_row + row
                    stream.write(index, *(output[step, row] for output in outputs))
        except UserError as error:
            failures.append(error)
            raise
        yield tuple(
            array.reshape(steps_per_chunk * replicas, rows, *shape)
            for array, (shape, _) in zip(arrays, parts, strict=True)
        )
        first += generators * steps_per_chunk


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Returns a new array at a multiple of 64 bytes, which TensorFlow takes over without a copy."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def _whole(
    *, samples: Sequence[Sample], read: Reader, failures: list[UserError]
) -> Iterator[tuple[np.ndarray, ...]]:
    for sample in samples:
        try:
            pair, weights = read(sample), read.weights(sample)
        except UserError as error:
            failures.append(error)
            raise
        image = pair.image.reshape(*pair.image.shape[:2], read.channels)
        yield (image, pair.mask) if weights is None else (image, pair.mask, weights)
