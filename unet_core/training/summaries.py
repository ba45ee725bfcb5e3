"""TensorBoard event files in which nothing appears twice after a resume.

with SummaryWriter(run_dir / "events", resumed_at=checkpoints.restore()) as writer:
    writer.scalars(step, {"train/loss": 0.3})
curves = read_scalars(run_dir / "events", ["train/loss"])

The folder may hold event files of other programs, which stay as they are: those of this class are
known by the end of their names.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import BinaryIO

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from unet_core.errors import reason_of
from unet_core.files import NewFile, local_path, naming, open_to_read, os_errors

_SUFFIX = ".unet_core"
# Around the content of a record: its length, and two checksums.
_HEAD_BYTES, _TAIL_BYTES = 12, 4
_READ_ERRORS = (OSError, tf.errors.OpError, DecodeError)
_WAY = "Move it away; the run goes on without what it shows."


class SummaryWriter:
    """Writes scalars, text, images, histograms and a graph to one new event file.

    Args:
        directory: The folder of the event files. One writer at a time uses it.
        resumed_at: The step the run goes on from. What this class has written there beyond it is
            dropped; 0 begins anew.

    Raises (and so do the methods):
        UserError: If `directory` is not a path of this machine, or a file that has a name of this
            class's files cannot be read as one.
        OSError: If a file cannot be written; the error names it.
    """

    def __init__(self, directory: str | os.PathLike, *, resumed_at: int = 0):
        self._directory = local_path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        for name in sorted(os.listdir(self._directory)):
            if name.startswith("events.out.tfevents.") and name.endswith(_SUFFIX):
                _cut(self._directory / name, resumed_at or -1)
        with _os_error(self._directory):
            self._writer = tf.summary.create_file_writer(
                str(self._directory), filename_suffix=_SUFFIX
            )

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

    def histograms(self, step: int, values: Mapping[str, tf.Tensor]) -> None:
        """Writes how the numbers of each tensor are distributed, under its tag."""
        with self._writing():
            for tag, value in values.items():
                tf.summary.histogram(tag, value, step=step)

    def raw(self, step: int, summary: bytes) -> None:
        """Writes a serialised `Summary`, as plugins of TensorBoard make them."""
        with self._writing():
            tf.summary.experimental.write_raw_pb(summary, step=step)

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
        """Writes to this file."""
        with _os_error(self._directory), self._writer.as_default():
            yield


def read_scalars(
    directory: str | os.PathLike, tags: Sequence[str]
) -> dict[str, list[tuple[int, float]]]:
    """Returns (step, value), steps rising, of each of `tags` that `SummaryWriter` has written.

    A tag that is nowhere has an empty list.

    Raises:
        UserError: If a file of this class cannot be read.
    """
    directory = local_path(directory)
    found: dict[str, dict[int, float]] = {tag: {} for tag in tags}
    names = sorted(os.listdir(directory)) if directory.is_dir() else []
    for name in names:
        if not (name.startswith("events.out.tfevents.") and name.endswith(_SUFFIX)):
            continue
        path = directory / name
        # `make_ndarray` raises TypeError and ValueError for a tensor of another kind.
        kinds = (*_READ_ERRORS, TypeError, ValueError)
        with os_errors(path, "cannot be read as an event file", _WAY, kinds=kinds):
            for event, _ in _events(path):
                for value in event.summary.value:
                    if value.tag in found:
                        found[value.tag][event.step] = float(tf.make_ndarray(value.tensor))
    return {tag: sorted(values.items()) for tag, values in found.items()}


@contextlib.contextmanager
def _os_error(path: pathlib.Path) -> Iterator[None]:
    """Makes an OSError that names `path` of what TensorFlow says of a full disk and the like."""
    try:
        yield
    except tf.errors.OpError as error:
        raise OSError(errno.EIO, reason_of(error), str(path)) from error


def _cut(path: pathlib.Path, last_step: int) -> None:
    """Drops what `path` holds beyond `last_step`, and a record cut short by a kill.

    TensorBoard's own way, a SessionLog.START event, is not honoured by all of its readers
    (tensorboard 2.21), and `tf.summary` cannot write one.
    """
    with contextlib.ExitStack() as stack:
        with os_errors(path, "cannot be read as an event file", _WAY, kinds=_READ_ERRORS):
            file = stack.enter_context(open_to_read(path))
            spans = _spans_until(path, last_step)
        if sum(length for _, length in spans) < os.fstat(file.fileno()).st_size:
            _replace(path, file, spans)


def _spans_until(path: pathlib.Path, last_step: int) -> list[tuple[int, int]]:
    """Returns start and length of the whole records of `path` up to `last_step`."""
    spans, start = [], 0
    for event, length in _events(path):
        if event.step <= last_step or event.HasField("file_version"):
            spans.append((start, length))
        start += length
    return spans


def _events(path: pathlib.Path) -> Iterator[tuple[tf.compat.v1.Event, int]]:
    """Gives each whole event of `path`, and the bytes of its record."""
    with contextlib.suppress(tf.errors.DataLossError):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(record)
            yield event, _HEAD_BYTES + len(record) + _TAIL_BYTES


def _replace(path: pathlib.Path, file: BinaryIO, spans: Iterable[tuple[int, int]]) -> None:
    """Puts a file with these parts of `file` in the place of `path`, which may be a link."""
    new = NewFile(path)
    try:
        with naming(path):
            for start, length in spans:
                file.seek(start)
                new.file.write(file.read(length))
        new.commit()
    finally:
        new.discard()
