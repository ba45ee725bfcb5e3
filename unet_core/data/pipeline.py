"""From samples to `tf.data`: Python generators bound with `functools.partial`, interleaved, in
whole batches.

    dataset_fn = partial(make_train_dataset, samples, seed=0, crop_size=256, recipe=recipe,
    global_batch_size=4) dataset = dataset_fn(start_step, tf.distribute.InputContext())
    # elements: (images [B, crop, crop, 1] uint8, masks [B, crop, crop] uint8), the batch of one
    replica

Several generators run at once; each yields chunks of many batches, because handing over one element
costs about as much as augmenting one sample (measured by `benchmarks/input_pipeline.py`).
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from unet_core.data.augment import Recipe
from unet_core.data.folders import Sample
from unet_core.data.stream import SampleStream
from unet_core.errors import UserError

_CHUNK_BYTES = 8 << 20


def make_train_dataset(
    samples: Sequence[Sample],
    start_step: int,
    context: tf.distribute.InputContext,
    *,
    seed: int,
    crop_size: int,
    recipe: Recipe,
    global_batch_size: int,
    micro_batches: int = 1,
    generators: int = 0,
) -> tf.data.Dataset:
    """Returns the endless dataset of training batches from `start_step` on, for one input pipeline.

    Row r of global batch k is sample k * global_batch_size + r of the stream, whatever the number
    of replicas and micro-batches: an element is the micro-batch of one replica, successive elements
    go to successive replicas, and a pipeline makes only the rows of its own replicas.

    Args:
        samples: The training samples.
        start_step: The first global batch.
        context: Which pipeline of how many this is, and the number of replicas.
        seed: The seed of the stream.
        crop_size: Pixels a side of the square crops.
        recipe: The augmentation.
        global_batch_size: Examples per step over all replicas and micro-batches.
        micro_batches: Parts of a global batch that come one after another.
        generators: Python generators at work at once; 0 is one more than there are cores.

    Raises:
        UserError: If the global batch does not divide by the replicas times the micro-batches, or a
            crop does not fit.
    """
    check_global_batch_size(global_batch_size, context.num_replicas_in_sync, micro_batches)
    # A step of several micro-batches reads the stream as that many steps of smaller batches.
    start_step *= micro_batches
    global_batch_size //= micro_batches
    rows = global_batch_size // context.num_replicas_in_sync
    replicas = context.num_replicas_in_sync // context.num_input_pipelines
    generators = generators or (os.cpu_count() or 1) + 1
    steps_per_chunk = max(1, min(32, _CHUNK_BYTES // (2 * rows * replicas * crop_size**2)))
    make_chunks = functools.partial(
        _chunks,
        samples=samples,
        seed=seed,
        crop_size=crop_size,
        recipe=recipe,
        start_step=start_step,
        steps_per_chunk=steps_per_chunk,
        generators=generators,
        global_batch_size=global_batch_size,
        first_row=context.input_pipeline_id * replicas * rows,
        replicas=replicas,
        rows=rows,
    )
    SampleStream(
        samples, seed=seed, crop_size=crop_size, recipe=recipe
    )  # Raises here rather than in a thread.
    shape = [steps_per_chunk * replicas, rows, crop_size, crop_size]
    signature = (tf.TensorSpec([*shape, 1], tf.uint8), tf.TensorSpec(shape, tf.uint8))

    def from_generator(number):
        return tf.data.Dataset.from_generator(
            make_chunks, output_signature=signature, args=(number,)
        )

    chunks = tf.data.Dataset.range(generators).interleave(
        from_generator,
        cycle_length=generators,
        block_length=1,
        num_parallel_calls=generators,
        deterministic=True,
    )
    batches = chunks.unbatch().prefetch(2 * replicas)
    # Said to be endless, batches keep their static shape under every strategy, and workers need not
    # ask one another at each step whether there are more.
    return batches.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))


def make_image_dataset(
    samples: Sequence[Sample], context: tf.distribute.InputContext, *, global_batch_size: int
) -> tf.data.Dataset:
    """Returns the finite dataset of whole images and masks, in order, for one input pipeline.

    Images of one size are batched, the last batch being what is left over; if sizes differ, every
    image is a batch.
    """
    rows = max(1, global_batch_size // context.num_replicas_in_sync)
    if len({sample.image.shape for sample in samples}) > 1:
        rows = 1
    signature = (tf.TensorSpec([None, None, 1], tf.uint8), tf.TensorSpec([None, None], tf.uint8))
    dataset = tf.data.Dataset.from_generator(
        functools.partial(
            _whole, samples[context.input_pipeline_id :: context.num_input_pipelines]
        ),
        output_signature=signature,
    )
    return dataset.batch(rows).prefetch(1)


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
    seed: int,
    crop_size: int,
    recipe: Recipe,
    start_step: int,
    steps_per_chunk: int,
    generators: int,
    global_batch_size: int,
    first_row: int,
    replicas: int,
    rows: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields every `generators`-th chunk from chunk `number` on, [batches, rows, crop, crop(, 1)]
    uint8 twice.
    """
    stream = SampleStream(samples, seed=seed, crop_size=crop_size, recipe=recipe)
    shape = (steps_per_chunk, replicas * rows, crop_size, crop_size)
    batches = (steps_per_chunk * replicas, rows, crop_size, crop_size)
    first = start_step + int(number) * steps_per_chunk
    while True:
        # TensorFlow may keep the memory of an array it was given, so every chunk is a new one.
        images, masks = _aligned(shape), _aligned(shape)
        for step in range(steps_per_chunk):
            for row in range(replicas * rows):
                index = (first + step) * global_batch_size + first_row + row
                stream.write(index, images[step, row], masks[step, row])
        yield images.reshape(*batches, 1), masks.reshape(batches)
        first += generators * steps_per_chunk


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Returns a new uint8 array at a multiple of 64 bytes, which TensorFlow takes over without a
    copy.
    """
    size = math.prod(shape)
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].reshape(shape)


def _whole(samples: Sequence[Sample]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for sample in samples:
        yield sample.image[..., None], sample.mask
