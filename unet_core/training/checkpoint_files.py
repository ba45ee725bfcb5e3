"""A checkpoint as a folder of files: its name, its manifest, and whether it is whole.

A checkpoint is a folder `step-00000500` with TensorFlow's checkpoint files and `manifest.json`:
step, scores, the caller's metadata, what each part of the loop consists of, and size and SHA-256 of
each file.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import itertools
import json
import math
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import tensorflow as tf

from unet_core import files
from unet_core.errors import UserError, reason_of
from unet_core.training.variables import name_of, variables_of

FORMAT = 2
MANIFEST = "manifest.json"
PREFIX = "state"
_NAME = re.compile(r"step-(\d{8,18})")
_Count = Annotated[int, msgspec.Meta(ge=0)]

Variable = tuple[str, list[_Count], str]
"""Name, shape and dtype."""
Slot = tuple[_Count | None, str, _Count, list[_Count]]
"""Place of the model variable it was made for, its name, its number, its shape."""


class PartEntry(msgspec.Struct):
    """What a part of the loop consists of."""

    variables: list[Variable]
    optimizer: str
    slots: list[Slot]


class Monitor(msgspec.Struct):
    """The score that tells which checkpoint is the best."""

    name: str | None
    higher_is_better: bool


class FileEntry(msgspec.Struct):
    """What a file was when it was written."""

    bytes: _Count
    sha256: str


class Manifest(msgspec.Struct):
    """What is known of a checkpoint beside its variables."""

    format: int
    step: _Count
    score: float | None
    best_step: _Count | None
    best_score: float | None
    monitor: Monitor
    metadata: dict[str, Any]
    parts: dict[str, PartEntry]
    averages: list[str]
    loss_scaling: bool
    also: list[str]
    window: list[float]
    files: dict[str, FileEntry]


def steps_in(directory: str | os.PathLike) -> list[int]:
    """Returns the steps of the whole checkpoints in `directory`, ascending."""
    directory = files.local_path(directory)
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    return sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))


def folder_of(directory: str | os.PathLike, step: int) -> pathlib.Path:
    """Returns the folder of the checkpoint of `step`."""
    return files.local_path(directory) / f"step-{step:08d}"


def find(directory: pathlib.Path, *, step: int | None, best: bool) -> tuple[pathlib.Path, Manifest]:
    """Returns the folder and manifest of the checkpoint of `step`, or the best, or the latest.

    Raises:
        UserError: If there is none, or it is damaged.
    """
    steps = steps_in(directory)
    if best and step is None and steps:
        step = verify(folder_of(directory, steps[-1])).best_step
        if step is None:
            step = steps[-1]
        elif step not in steps:
            raise UserError(
                f"{directory}: the best checkpoint, of step {step}, is not there any more; there "
                f"are {', '.join(map(str, steps))}."
            )
    if step is None and steps:
        step = steps[-1]
    if step not in steps:
        there = f"there are {', '.join(map(str, steps))}" if steps else "there is none"
        raise UserError(f"{directory}: holds no checkpoint of step {step}; {there}.")
    folder = folder_of(directory, step)
    return folder, verify(folder)


def verify(folder: pathlib.Path) -> Manifest:
    """Returns the manifest of `folder`, all of whose files are as they were written.

    Raises:
        UserError: If a file is missing, changed or cut short; it names the checkpoint before.
    """
    manifest = files.read_json(
        folder / MANIFEST,
        Manifest,
        what="the manifest of a checkpoint",
        way=f"The checkpoint is damaged. {_way_on(folder)}",
        formats=(FORMAT,),
        # A loss, of which the window holds sums, need not be finite.
        not_a_number=True,
    )
    if folder_of(folder.parent, manifest.step) != folder:
        raise damaged(folder, f"its manifest is that of step {manifest.step}")
    if manifest.best_score is not None and math.isnan(manifest.best_score):
        raise damaged(folder, "the best score in its manifest is no number")
    has_data = any(name.startswith(f"{PREFIX}.data-") for name in manifest.files)
    if f"{PREFIX}.index" not in manifest.files or not has_data:
        raise damaged(folder, f"its manifest lists {', '.join(manifest.files) or 'no files'}")
    for name, expected in manifest.files.items():
        try:
            found = describe(folder / pathlib.PurePath(name).name)
        except OSError as error:
            raise damaged(folder, f"{name} cannot be read: {reason_of(error)}") from error
        if found.bytes != expected.bytes:
            raise damaged(folder, f"{name} has {found.bytes} bytes, {expected.bytes} were written")
        if found != expected:
            raise damaged(folder, f"{name} has changed since it was written")
    return manifest


def damaged(folder: pathlib.Path, problem: str) -> UserError:
    """Returns the error that the checkpoint in `folder` cannot be used."""
    return UserError(f"{folder}: the checkpoint is damaged ({problem}). {_way_on(folder)}")


@contextlib.contextmanager
def reading(folder: pathlib.Path) -> Iterator[None]:
    """Makes of whatever TensorFlow raises in the block the UserError that `folder` is damaged.

    Index and data can contradict each other in many ways if somebody has made the manifest agree.
    """
    try:
        yield
    except (UserError, MemoryError, tf.errors.ResourceExhaustedError):
        raise
    except Exception as error:
        raise damaged(folder, reason_of(error)) from error


def owners_in(folder: pathlib.Path) -> collections.Counter[str]:
    """Returns how many variables of each owner the checkpoint holds, such as of "loop"."""
    reader = tf.train.load_checkpoint(str(folder / PREFIX))
    keys = [key for key in reader.get_variable_to_shape_map() if "/.ATTRIBUTES/" in key]
    return collections.Counter(key.partition("/")[0] for key in keys)


def check_network(folder: pathlib.Path, saved: list[Variable], model: Any) -> None:
    """Raises UserError unless the variables that a checkpoint has `saved` are those of `model`."""
    # By place, not by name: Keras numbers the layers of one process.
    pairs = itertools.zip_longest(saved, variable_shapes(model))
    differing = [
        (there, here) for there, here in pairs if (there or (0,))[1:] != (here or (0,))[1:]
    ]
    if differing:
        listed = "; ".join(
            f"{_name_and_shape(there)} there, {_name_and_shape(here)} here"
            for there, here in differing[:3]
        )
        more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UserError(
            f"{folder}: the checkpoint is of another network ({listed}{more}). Build the network "
            "it was made with; if layers have no variables yet, call it once on a batch first."
        )


def variable_shapes(model: Any) -> list[Variable]:
    """Returns what the manifest says of the variables of `model`."""
    return [(name_of(v), list(v.shape), tf.as_dtype(v.dtype).name) for v in variables_of(model)]


def write_manifest(folder: pathlib.Path, manifest: Manifest) -> None:
    """Writes the manifest of a checkpoint that is being made."""
    files.write_whole(folder / MANIFEST, _as_json(msgspec.to_builtins(manifest)))


def add_score(
    folder: pathlib.Path, *, score: float, best_step: int | None, best_score: float | None
) -> None:
    """Adds to a checkpoint what has come to be known of its score.

    Raises:
        UserError: If it is damaged, or cannot be written.
    """
    verify(folder)
    # As it is there: what a later version has added stays.
    path, way = folder / MANIFEST, "Make room or permit writing, and start the same command again."
    manifest = files.read_json(
        path, dict[str, Any], what="the manifest of a checkpoint", way=way, not_a_number=True
    )
    manifest |= {"score": score, "best_step": best_step, "best_score": best_score}
    with files.os_errors(folder, "the score cannot be added", way):
        files.write_whole(path, _as_json(manifest))


def describe(path: pathlib.Path) -> FileEntry:
    """Returns size and digest of a file.

    Raises:
        OSError: If it cannot be read.
    """
    with files.open_to_read(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(os.fstat(file.fileno()).st_size, digest)


def remove(folder: pathlib.Path) -> None:
    """Removes a checkpoint; a file of anybody else keeps its folder alive."""
    for path in folder.iterdir():
        if path.name == MANIFEST or path.name.startswith(PREFIX) or path.name == "checkpoint":
            path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def _name_and_shape(variable: Variable | None) -> str:
    return f"{variable[0]} {variable[1]} {variable[2]}" if variable else "nothing"


def _way_on(folder: pathlib.Path) -> str:
    earlier = [step for step in steps_in(folder.parent) if folder_of(folder.parent, step) < folder]
    if not earlier:
        return "There is none before it: to begin anew, choose another run folder."
    before = folder_of(folder.parent, earlier[-1]).name
    return (
        f"The one before it is {before}: to go on from there, move {folder.name} out of the folder."
    )


def _as_json(content: Any) -> bytes:
    return json.dumps(content, indent=1).encode()
