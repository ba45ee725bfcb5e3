"""Images in class folders: found and checked, split, trimmed, and read in batches.

The group of a sample is its class, the name of its folder. `args` are the flags.
"""

import functools
import itertools
import pathlib
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
import tensorflow as tf
import tqdm

from unet_core.data import balance, splits
from unet_core.data.images import read_image, to_channels
from unet_core.data.samples import Sample, Source
from unet_core.errors import UserError


def scan(folder: str, pattern: str, show: Callable[[str], None]) -> list[Sample]:
    """Returns the images that can be read, and shows which files cannot."""
    root, found, problems = pathlib.Path(folder), [], []
    paths = [path for path in sorted(root.glob(pattern)) if path.is_file()]
    for path in tqdm.tqdm(paths, desc="images", leave=False, dynamic_ncols=True):
        try:
            read_image(path)
            name = path.relative_to(root).as_posix()
            found.append(Sample(name, Source(path), (), group=path.parent.name))
        except UserError as error:
            problems.append(f"  {error}")
    if problems:
        show(f"{len(problems)} of {len(paths)} files cannot be read:\n" + "\n".join(problems))
    if not found:
        raise UserError(f"{folder}: holds no image that can be read at {pattern}.")
    return found


def split(samples: Sequence[Sample], args: Namespace) -> list[list[Sample]]:
    """Returns samples to train, validate and test, each with its share of every class."""
    how = {"how": "stratified", "seed": args.seed, "presence": lambda s: frozenset([s.group])}
    held_out = args.valid_share + args.test_share
    train, rest = splits.split(samples, held_out_share=held_out, **how)
    return [train, *splits.split(rest, held_out_share=args.test_share / held_out, **how)]


def trim(samples: Sequence[Sample], args: Namespace) -> list[Sample]:
    """Returns at most so many of each class, drawn by the seed; 0 is all of them."""
    by_class: dict[str, list[Sample]] = {}
    for number in np.random.default_rng(args.seed).permutation(len(samples)):
        by_class.setdefault(samples[number].group, []).append(samples[number])
    return [sample for members in by_class.values() for sample in members[: args.most or None]]


def read(sample: Sample, size: int) -> np.ndarray:
    """Returns an image [size, size, 3] uint8."""
    image = to_channels(read_image(sample.image.path), 3)
    image = (image / 257 if image.dtype == np.uint16 else image).astype(np.float32)
    image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def in_order(samples: Sequence[Sample], args: Namespace) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Yields images [B, size, size, 3] and their classes; the last batch may be smaller."""
    for first in range(0, len(samples), args.batch_size):
        rows = samples[first : first + args.batch_size]
        yield np.stack([read(sample, args.size) for sample in rows]), [s.group for s in rows]


def shuffled(samples, args, start_step, context) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Yields one replica's batches from a step on: a pure function of the seed and the step.

    Every epoch has its own order; with --balance=repeat all classes come equally often in it.
    """

    @functools.lru_cache(maxsize=2)
    def order(epoch):
        rng, groups = np.random.default_rng([args.seed, epoch]), [s.group for s in samples]
        if args.balance == "repeat":
            return balance.order_with_equal_groups(groups, rng=rng)
        return rng.permutation(len(groups))

    replicas = context.num_replicas_in_sync
    rows, own = args.batch_size // replicas, replicas // context.num_input_pipelines
    for element in itertools.count(start_step * own):
        step, replica = divmod(element, own)
        first = step * args.batch_size + (context.input_pipeline_id * own + replica) * rows
        places = [divmod(position, len(samples)) for position in range(first, first + rows)]
        chosen = [samples[order(epoch)[place]] for epoch, place in places]
        images = np.stack([read(sample, args.size) for sample in chosen])
        if args.flip:
            mirrored = np.random.default_rng([args.seed, first, 1]).random(rows) < 0.5
            images[mirrored] = images[mirrored, :, ::-1]
        yield images, [sample.group for sample in chosen]


def dataset(batches, classes: Sequence[str], samples, args: Namespace, *when) -> tf.data.Dataset:
    """Returns what `batches` yields as images and class ids [B]; `when` is a step and a context."""
    specs = (
        tf.TensorSpec([None, args.size, args.size, 3], tf.uint8),
        tf.TensorSpec([None], tf.int32),
    )

    def generate():
        return (
            (x, [classes.index(y) for y in names]) for x, names in batches(samples, args, *when)
        )

    return tf.data.Dataset.from_generator(generate, output_signature=specs).prefetch(4)
