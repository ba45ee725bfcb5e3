"""Complete, atomic, verified checkpoints of a loop.

    checkpoints = Checkpoints(directory, loop, keep=3)
    step = checkpoints.restore()           # 0 if there is none
    checkpoints.save(score=0.81)           # the best score's checkpoint is kept beside the latest 3

A checkpoint is a folder `step-00000500` with TensorFlow's checkpoint files and `manifest.json`:
step, scores, the caller's metadata, the model's variables, and size and SHA-256 of each file. It is
written under another name, flushed to disk, and renamed: a folder of that name is whole. Nothing in
    it is executed when it is read.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import pathlib
import re
import shutil
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from unet_core.errors import UserError
from unet_core.training.loop import Loop

_MANIFEST = "manifest.json"
_PREFIX = "state"
_INCOMPLETE = ".incomplete"
_NAME = re.compile(r"step-(\d{8,})")


class Checkpoints:
    """Saves and restores one loop in one folder.

    Args:
        directory: The folder of the checkpoints; made by the first save.
        loop: What is saved: its model, its optimizer, its own state.
        keep: How many of the latest to keep, >= 1. The best one is kept besides.
        higher_is_better: Whether the best score is the highest.
        metadata: JSON values stored in every checkpoint, such as a config and a class map.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        loop: Loop,
        *,
        keep: int = 3,
        higher_is_better: bool = True,
        metadata: Mapping[str, Any] | None = None,
    ):
        if keep < 1:
            raise UserError(f"`keep` ({keep}) must be at least 1.")
        self._directory = pathlib.Path(directory)
        self._loop = loop
        self._keep = keep
        self._higher_is_better = higher_is_better
        self._metadata = dict(metadata or {})
        self._state = tf.train.Checkpoint(
            model=loop.model, optimizer=loop.optimizer, loop=tf.train.Checkpoint(**loop.state)
        )
        self.best_step: int | None = None
        self.best_score: float | None = None

    def steps(self) -> list[int]:
        """Returns the steps of all whole checkpoints, ascending."""
        return steps_in(self._directory)

    def unfinished(self) -> list[pathlib.Path]:
        """Returns the folders of saves that were interrupted; `restore` passes them over."""
        return sorted(self._directory.glob(f"step-*{_INCOMPLETE}"))

    def save(self, *, score: float | None = None) -> pathlib.Path:
        """Saves the loop as it is now and returns the checkpoint's folder; does nothing if this
        step is saved.

        Args:
            score: The monitored value at this step. The step with the best one so far is kept.

        Raises:
            UserError: If it cannot be written; the checkpoints before it are untouched.
        """
        step = self._loop.step
        final = folder_of(self._directory, step)
        if final.exists():
            return final
        if score is not None and self._is_better(score):
            self.best_step, self.best_score = step, score
        partial = final.with_name(final.name + _INCOMPLETE)
        try:
            if partial.exists():
                shutil.rmtree(partial)
            partial.mkdir(parents=True)
            self._state.write(str(partial / _PREFIX))
            manifest = {
                "step": step,
                "score": score,
                "best_step": self.best_step,
                "best_score": self.best_score,
                "metadata": self._metadata,
                "variables": _variable_shapes(self._loop.model),
                "files": {path.name: _describe(path) for path in sorted(partial.iterdir())},
            }
            (partial / _MANIFEST).write_text(json.dumps(manifest, indent=1))
            for path in partial.iterdir():
                _flush(path)
            _flush(partial)
            partial.rename(final)
            _flush(self._directory)
        except (OSError, tf.errors.OpError) as error:
            reason = _reason(error)
            last = max(self.steps(), default=None)
            kept = (
                "There is no earlier checkpoint."
                if last is None
                else f"The checkpoint of step {last} is whole."
            )
            raise UserError(
                f"{final}: the checkpoint cannot be written ({reason}). {kept} "
                "Make room or permit writing, and start the same command again."
            ) from error
        self._prune()
        return final

    def restore(self) -> int:
        """Restores the latest checkpoint into the loop and returns its step; 0 if there is none.

        Raises:
            UserError: If it does not pass its verification, or is of another network.
        """
        step = max(self.steps(), default=None)
        if step is None:
            return 0
        folder = folder_of(self._directory, step)
        manifest = _verify(folder)
        _check_network(folder, manifest, self._loop.model)
        try:
            self._state.read(str(folder / _PREFIX)).assert_consumed()
        except (AssertionError, ValueError) as error:
            raise UserError(
                f"{folder}: the checkpoint does not fit the optimizer or the loop it is restored "
                f"into ({str(error).splitlines()[0]}). Build them as they were when it was saved."
            ) from error
        self.best_step, self.best_score = manifest["best_step"], manifest["best_score"]
        self._loop.resumed_at = step
        return step

    def _is_better(self, score: float) -> bool:
        if self.best_score is None:
            return score == score  # A NaN is never the best.
        return score > self.best_score if self._higher_is_better else score < self.best_score

    def _prune(self) -> None:
        """Removes what this class has written and needs no more; a file of anybody else's keeps its
        folder alive.
        """
        kept = {*self.steps()[-self._keep :], self.best_step}
        for step in self.steps():
            if step not in kept:
                _remove(folder_of(self._directory, step))
        for partial in self.unfinished():
            shutil.rmtree(partial)


def steps_in(directory: str | os.PathLike) -> list[int]:
    """Returns the steps of the whole checkpoints in `directory`, ascending."""
    directory = pathlib.Path(directory)
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    return sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))


def folder_of(directory: str | os.PathLike, step: int) -> pathlib.Path:
    """Returns the folder of the checkpoint of `step`."""
    return pathlib.Path(directory) / f"step-{step:08d}"


def load_weights(directory: str | os.PathLike, model: keras.Model, *, best: bool = False) -> int:
    """Loads the latest or the best checkpoint's weights into `model` and returns its step.

    If the loop kept a moving average of the weights, it is that which is loaded.

    Raises:
        UserError: If there is none, it does not pass its verification, or it is of another network.
    """
    steps = steps_in(directory)
    if not steps:
        raise UserError(f"{directory}: holds no checkpoint; train first.")
    step = steps[-1]
    manifest = _verify(folder_of(directory, step))
    if best and manifest["best_step"] not in (None, step):
        step = manifest["best_step"]
        manifest = _verify(folder_of(directory, step))
    folder = folder_of(directory, step)
    _check_network(folder, manifest, model)
    status = tf.train.Checkpoint(model=model).read(str(folder / _PREFIX))
    status.assert_existing_objects_matched().expect_partial()
    reader = tf.train.load_checkpoint(str(folder / _PREFIX))
    for number, variable in enumerate(model.trainable_variables):
        average = f"loop/average_{number}/.ATTRIBUTES/VARIABLE_VALUE"
        if reader.has_tensor(average):
            variable.assign(reader.get_tensor(average))
    return step


def _verify(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the manifest of `folder`, all of whose files are as they were written.

    Raises:
        UserError: If a file is missing, changed or cut short.
    """
    problem = None
    manifest: dict[str, Any] = {}
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        for name, expected in manifest["files"].items():
            path = folder / pathlib.PurePath(name).name
            found = _describe(path)
            if found != expected:
                problem = f"{name} has {found['bytes']} bytes, {expected['bytes']} were written"
                if found["bytes"] == expected["bytes"]:
                    problem = f"{name} has changed since it was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"{_MANIFEST} or a file it lists cannot be read: {error}"
    if problem is None:
        return manifest
    earlier = [step for step in steps_in(folder.parent) if folder_of(folder.parent, step) < folder]
    way_out = (
        f"The one before it is {folder_of(folder.parent, earlier[-1]).name}: to go on from there, "
        f"move "
        f"{folder.name} out of the folder."
        if earlier
        else "There is none before it: to begin anew, choose another run folder."
    )
    raise UserError(f"{folder}: the checkpoint is damaged ({problem}). {way_out}")


def _check_network(folder: pathlib.Path, manifest: dict[str, Any], model: keras.Model) -> None:
    # By place, not by name: Keras numbers the layers of one process.
    pairs = itertools.zip_longest(manifest["variables"], _variable_shapes(model))
    differing = [(there, here) for there, here in pairs if (there or [0])[-1] != (here or [0])[-1]]
    if differing:
        listed = "; ".join(
            f"{_name_and_shape(there)} there, {_name_and_shape(here)} here"
            for there, here in differing[:3]
        )
        more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UserError(
            f"{folder}: the checkpoint is of another network ({listed}{more}). Build the network "
            "it was made with."
        )


def _variable_shapes(model: keras.Model) -> list[list[Any]]:
    return [[variable.path, list(variable.shape)] for variable in model.variables]


def _name_and_shape(variable: list[Any] | None) -> str:
    return f"{variable[0]} {variable[1]}" if variable else "nothing"


def _reason(error: OSError | tf.errors.OpError) -> str:
    """Returns what the system said, out of what TensorFlow made of it."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    first_line = error.message.strip().splitlines()[0]
    return re.sub(r" \[Op:\w+\]$", "", first_line.rpartition("; ")[2])


def _describe(path: pathlib.Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def _flush(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(folder: pathlib.Path) -> None:
    for path in folder.iterdir():
        if path.name == _MANIFEST or path.name.startswith(_PREFIX) or path.name == "checkpoint":
            path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()
