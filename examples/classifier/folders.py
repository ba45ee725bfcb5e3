"""Class folders as (files [N], class ids [N]): found, split, and read in batches for one device."""

import os
import pathlib

import cv2
import numpy as np
import tensorflow as tf
from sklearn.model_selection import train_test_split

from unet_core.data.images import read_image, readable, to_channels
from unet_core.data.intensities import Scaling
from unet_core.errors import UserError
from unet_core.files import os_errors
from unet_core.runs.progress import progress_bar

slices = tf.data.Dataset.from_tensor_slices


def scan(folder, pattern):
    """Returns the files [N] that can be read and their classes, and prints which cannot."""
    paths = sorted(path for path in pathlib.Path(folder).glob(pattern) if path.is_file())
    found, problems = readable(paths, progress=progress_bar("Reading images"))
    if problems:
        print(f"{len(problems)} of {len(paths)} files cannot be read:", *problems, sep="\n  ")
    if not found:
        raise UserError(f"{folder}: holds no image that can be read at {pattern}.")
    return np.array([str(path) for path in found]), [path.parent.name for path in found]


def split(files, ids, args):
    """Returns examples to train on, to validate and to test, each with its share of every class."""
    how = {"test_size": round(args.held_out * len(ids)), "random_state": args.seed}
    with os_errors(args.data_dir, "cannot be split", "Add images.", kinds=(ValueError,)):
        files, test, ids, test_ids = train_test_split(files, ids, stratify=ids, **how)
        files, valid, ids, valid_ids = train_test_split(files, ids, stratify=ids, **how)
    kept = np.concatenate([np.flatnonzero(ids == c)[: args.trim or None] for c in np.unique(ids)])
    return (files[kept], ids[kept]), (valid, valid_ids), (test, test_ids)


def read(path, size):
    """Returns an image [size, size, 3] float32 in 0..255."""
    image = Scaling("range")(to_channels(read_image(path), 3))
    return cv2.resize(np.float32(image), (size, size), interpolation=cv2.INTER_AREA)


def batches(examples, args):
    """Returns batches of images [B, size, size, 3] and class ids [B] of a dataset of examples."""

    def load(file, class_id):
        image = tf.numpy_function(lambda f: read(os.fsdecode(f), args.size), [file], tf.float32)
        return tf.ensure_shape(image, [args.size, args.size, 3]), class_id

    return examples.map(load, tf.data.AUTOTUNE).batch(args.batch_size).prefetch(2)


def shuffled(examples, args, start_step, _):
    """Returns the endless batches from a step on, which depend on the seed and the step alone.

    With --balance=repeat they hold all classes equally often.
    """
    files, ids = examples
    parts = [ids == n for n in np.unique(ids)] if args.balance == "repeat" else [ids >= 0]
    parts = [slices((files[part], ids[part])) for part in parts]
    parts = [part.shuffle(len(part), seed=args.seed).repeat() for part in parts]
    drawn = tf.data.Dataset.choose_from_datasets(parts, tf.data.Dataset.range(len(parts)).repeat())
    return batches(drawn.skip(start_step * args.batch_size), args)
