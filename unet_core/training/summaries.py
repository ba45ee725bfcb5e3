"""TensorBoard event files in which nothing appears twice after a resume.

with SummaryWriter(run_dir / "events", resumed_at=checkpoints.restore()) as writer:
    writer.scalars(step, {"train/loss": 0.3})
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import tensorflow as tf


class SummaryWriter:
    """Writes scalars, text, images and a graph to one new event file.

    Args:
        directory: The folder of the event files.
        resumed_at: The step the run goes on from. What earlier files hold beyond it is dropped; 0
            begins anew.

    Raises (and so do the methods):
        OSError: If the file cannot be written.
    """

    def __init__(self, directory: str | os.PathLike, *, resumed_at: int = 0):
        directory = pathlib.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for earlier in directory.glob("events.out.tfevents.*"):
            _cut(earlier, resumed_at or -1)
        self._directory = directory
        self._writer = tf.summary.create_file_writer(str(directory))

    def __enter__(self) -> SummaryWriter:
        return self

    def __exit__(self, *_) -> None:
        with self._writing():
            self._writer.close()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes each value under its tag, NaN included."""
        with self._writing():
            for tag, value in values.items():
                tf.summary.scalar(tag, value, step=step)

    def text(self, step: int, tag: str, markdown: str) -> None:
        """Writes one text."""
        with self._writing():
            tf.summary.text(tag, markdown, step=step)

    def images(self, step: int, tag: str, images: np.ndarray) -> None:
        """Writes `images`, [N, H, W, 1 or 3] uint8 in RGB order."""
        with self._writing():
            tf.summary.image(tag, images, step=step, max_outputs=len(images))

    def graph(self, function: Callable, *specs: tf.TensorSpec) -> None:
        """Writes the graph that `function` makes of inputs like `specs`."""
        with self._writing():
            tf.summary.graph(tf.function(function).get_concrete_function(*specs).graph)

    def flush(self) -> None:
        """Hands everything written so far to the operating system."""
        with self._writing():
            self._writer.flush()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Writes to this file; what TensorFlow says of a full disk becomes an OSError."""
        try:
            with self._writer.as_default():
                yield
        except tf.errors.OpError as error:
            reason = error.message.strip().splitlines()[0].rpartition("; ")[2]
            raise OSError(errno.EIO, reason, str(self._directory)) from error


def _cut(path: pathlib.Path, last_step: int) -> None:
    """Drops what `path` holds beyond `last_step`, and a record cut short by a kill.

    TensorBoard's own way, a SessionLog.START event, is not honoured by all of its readers
    (tensorboard 2.21), and `tf.summary` cannot write one.
    """
    kept, whole = [], True
    try:
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(record)
            if event.step <= last_step or event.HasField("file_version"):
                kept.append(record)
            else:
                whole = False
    except tf.errors.DataLossError:
        whole = False
    if whole:
        return
    partial = path.with_name("." + path.name)
    with tf.io.TFRecordWriter(str(partial)) as file:
        for record in kept:
            file.write(record)
    partial.replace(path)
