"""TensorBoard event files in which nothing appears twice after a resume.

with SummaryWriter(run_dir / "events", resumed_at=checkpoints.restore()) as writer:
    writer.scalars(step, {"train/loss": 0.3})
"""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf


class SummaryWriter:
    """Writes scalars, text, images and a graph to one new event file.

    Args:
        directory: The folder of the event files.
        resumed_at: The step the run goes on from. What earlier files hold beyond it, TensorBoard
            then drops.
    """

    def __init__(self, directory: str | os.PathLike, *, resumed_at: int = 0):
        directory = pathlib.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.glob("events.out.tfevents.*")):
            _write_restart(directory, resumed_at + 1)
        self._writer = tf.summary.create_file_writer(str(directory))

    def __enter__(self) -> SummaryWriter:
        return self

    def __exit__(self, *_) -> None:
        self._writer.close()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes each value under its tag, NaN included."""
        with self._writer.as_default():
            for tag, value in values.items():
                tf.summary.scalar(tag, value, step=step)

    def text(self, step: int, tag: str, markdown: str) -> None:
        """Writes one text."""
        with self._writer.as_default():
            tf.summary.text(tag, markdown, step=step)

    def images(self, step: int, tag: str, images: np.ndarray) -> None:
        """Writes `images`, [N, H, W, 1 or 3] uint8 in RGB order."""
        with self._writer.as_default():
            tf.summary.image(tag, images, step=step, max_outputs=len(images))

    def graph(self, function: Callable, *specs: tf.TensorSpec) -> None:
        """Writes the graph that `function` makes of inputs like `specs`."""
        with self._writer.as_default():
            tf.summary.graph(tf.function(function).get_concrete_function(*specs).graph)

    def flush(self) -> None:
        """Hands everything written so far to the operating system."""
        self._writer.flush()


def _write_restart(directory: pathlib.Path, step: int) -> None:
    """Writes an event file that only says: what came before, from `step` on, is void.

    `tf.summary` (seen on 2.21) cannot say that. Readers take the files in the order of their names,
    and the second dot puts this one before a file begun in the same second.
    """
    now = time.time()
    path = directory / f"events.out.tfevents.{int(now):010d}..{os.getpid()}.restart.v2"
    with tf.io.TFRecordWriter(str(path)) as file:
        file.write(
            tf.compat.v1.Event(wall_time=now, file_version="brain.Event:2").SerializeToString()
        )
        restart = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
        file.write(
            tf.compat.v1.Event(wall_time=now, step=step, session_log=restart).SerializeToString()
        )
