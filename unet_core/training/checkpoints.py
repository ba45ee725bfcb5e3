"""Complete, atomic, verified checkpoints of a loop.

    checkpoints = Checkpoints(directory, loop, keep=3)
    step = checkpoints.restore()           # 0 if there is none
    checkpoints.save(score=0.81)           # the best score's checkpoint is kept beside the latest 3

A checkpoint is a folder `step-00000500` with TensorFlow's checkpoint files and `manifest.json`:
step, scores, the caller's metadata, what each part of the loop consists of, and size and SHA-256 of
each file. It is written under another name, flushed to disk, and renamed: a folder of that name is
whole. Nothing in it is executed when it is read.

Each owner has its own part of the checkpoint: of every part of the loop the variables of the model
by place, the optimizer's, the averages by the place of their variable; the loop's own; and those of
the host (`also`).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import pathlib
import re
import shutil
import warnings
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from unet_core import files
from unet_core.errors import UserError
from unet_core.training import optimizers
from unet_core.training.loop import Loop
from unet_core.training.parts import Part
from unet_core.training.variables import (
    check_equal_on_replicas,
    finalise,
    key_of,
    name_of,
    of_tensorflow,
    variables_of,
)

_FORMAT = 2
_MANIFEST = "manifest.json"
_PREFIX = "state"
_INCOMPLETE = ".incomplete"
_NAME = re.compile(r"step-(\d{8,})")


class Checkpoints:
    """Saves and restores one loop in one folder.

    Args:
        directory: The folder of the checkpoints, on this machine or mounted; made by the first
            save.
        loop: What is saved: its models, its optimizers, its own state.
        keep: How many of the latest to keep, >= 1. The best one is kept besides.
        higher_is_better: Whether the best score is the highest.
        monitor: The name of the score. If a resumed run has another one, its best starts anew.
        metadata: JSON values stored in every checkpoint, such as a config and a class map.
        also: The host's own variables by name, saved and restored with the rest.

    Attributes:
        best_step: The step with the best score so far, None if none has been given.
        best_score: That score.

    Raises:
        UserError: If an argument is not what it must be.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        loop: Loop,
        *,
        keep: int = 3,
        higher_is_better: bool = True,
        monitor: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        also: Mapping[str, Any] | None = None,
    ):
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
            raise UserError(f"`keep` ({keep!r}) must be a whole number of at least 1.")
        self._directory = files.local_path(directory)
        self._loop = loop
        self._keep = keep
        self._monitor = {"name": monitor, "higher_is_better": bool(higher_is_better)}
        self._metadata = _as_json(metadata)
        self._also = dict(also or {})
        for name, variable in self._also.items():
            if not isinstance(variable, (tf.Variable, keras.Variable)):
                raise UserError(
                    f"`also` takes variables, such as tf.Variable(0). Received "
                    f"{type(variable).__name__} for {name!r}."
                )
        # Steps whose checkpoints this loop has come from or made; None if it has begun anew.
        self._lineage: set[int] | None = None
        self.best_step: int | None = None
        self.best_score: float | None = None

    def steps(self) -> list[int]:
        """Returns the steps of all whole checkpoints, ascending."""
        return steps_in(self._directory)

    def unfinished(self) -> list[pathlib.Path]:
        """Returns the folders of saves that were interrupted; `restore` passes them over."""
        return sorted(self._directory.glob(f"step-*{_INCOMPLETE}"))

    def save(self, *, score: float | None = None) -> pathlib.Path:
        """Saves the loop as it is now and returns the checkpoint's folder.

        If this step is saved already, only its score is added. After `restore` to an earlier step,
        the checkpoints of the steps that are trained anew are replaced.

        Args:
            score: The monitored value at this step, any real number. The step with the best one so
                far is kept.

        Raises:
            UserError: If it cannot be written; the checkpoints before it are untouched. If the
                folder holds the checkpoints of another run, which a new one would replace. Inside
                `averaged_weights`. If a variable differs between replicas.
        """
        score = _as_score(score)
        self._loop.check_may_save()
        step = self._loop.step
        final = folder_of(self._directory, step)
        if self._lineage is None:
            if self.steps():
                raise UserError(
                    f"{self._directory}: holds checkpoints up to step {self.steps()[-1]} of a run "
                    "that this loop has not been restored from, so saving would mix the two. Call "
                    "`restore()` first to go on with that run, or choose another folder."
                )
            self._lineage = set()
        if score is not None and self._is_better(score, step):
            self.best_step, self.best_score = step, score
        if step in self._lineage and final.exists():
            if score is not None:
                self._add_score(final, score)
            return final
        for part in self._loop.parts.values():
            check_equal_on_replicas(self._loop.strategy, _own_writing(part))
        try:
            self._write(final, step, score)
        except (OSError, tf.errors.OpError) as error:
            reason = _reason(error)
            last = max(self._lineage & set(self.steps()), default=None)
            kept = (
                "There is no earlier checkpoint."
                if last is None
                else f"The checkpoint of step {last} is whole."
            )
            raise UserError(
                f"{final}: the checkpoint cannot be written ({reason}). {kept} "
                "Make room or permit writing, and start the same command again."
            ) from error
        self._lineage.add(step)
        self._prune()
        return final

    def restore(self, *, step: int | None = None, best: bool = False) -> int:
        """Restores a checkpoint into the loop and returns its step; 0 if there is none.

        Weights, slots, averages, loss scale, step, the host's variables: everything is as it was
        at that step. Inside the body of `train` the loop goes on from there.

        Args:
            step: The step to restore; by default the latest.
            best: Whether to restore the one with the best score instead.

        Raises:
            UserError: If there is no such checkpoint, it does not pass its verification, or it is
                of another network, optimizer or kind of loop.
        """
        self._loop.check_may_save()
        steps = self.steps()
        if not steps and step is None and not best:
            self._lineage = set()
            return 0
        folder, manifest = _find(self._directory, step=step, best=best)
        step = manifest["step"]
        self._check_fits(folder, manifest)
        asked = {name: _rate(part.optimizer) for name, part in self._loop.parts.items()}
        try:
            self._state().read(str(folder / _PREFIX)).assert_consumed()
        except (AssertionError, ValueError) as error:
            raise UserError(
                f"{folder}: the checkpoint does not fit the loop it is restored into "
                f"({str(error).splitlines()[0]}). Build it as it was when it was saved."
            ) from error
        for name, part in self._loop.parts.items():
            finalise(part.model)
            _say_rate(name, part, asked[name])
        self._loop.window = manifest["window"]
        self.best_step, self.best_score = manifest["best_step"], manifest["best_score"]
        if manifest["monitor"] != self._monitor:
            warnings.warn(
                f"{folder.name} was saved with the best of {_monitored(manifest['monitor'])}, and "
                f"now it is that of {_monitored(self._monitor)}: the best score starts anew.",
                stacklevel=2,
            )
            self.best_step = self.best_score = None
        self._lineage = {earlier for earlier in steps if earlier <= step}
        self._loop.note_restore()
        return step

    def _write(self, final: pathlib.Path, step: int, score: float | None) -> None:
        partial = final.with_name(final.name + _INCOMPLETE)
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        self._state().write(str(partial / _PREFIX))
        manifest = {
            "format": _FORMAT,
            "step": step,
            "score": score,
            "best_step": self.best_step,
            "best_score": self.best_score,
            "monitor": self._monitor,
            "metadata": self._metadata,
            **self._description(),
            "window": self._loop.window,
            "files": {path.name: _describe(path) for path in sorted(partial.iterdir())},
        }
        (partial / _MANIFEST).write_text(json.dumps(manifest, indent=1))
        for path in partial.iterdir():
            files.flush(path)
        files.flush(partial)
        if final.exists():
            # Of a step that is trained anew after a restore to an earlier one.
            _remove(final)
        partial.rename(final)
        files.flush(self._directory)

    def _add_score(self, folder: pathlib.Path, score: float) -> None:
        manifest = _verify(folder)
        manifest |= {"score": score, "best_step": self.best_step, "best_score": self.best_score}
        try:
            files.write_whole(folder / _MANIFEST, json.dumps(manifest, indent=1).encode())
        except OSError as error:
            raise UserError(
                f"{folder}: the score cannot be added ({_reason(error)}). Make room or permit "
                "writing, and start the same command again."
            ) from error

    def _description(self) -> dict[str, Any]:
        """Returns what a checkpoint must have in common with the loop it is restored into."""
        state = self._loop.state
        parts = {
            name: {
                "variables": _variable_shapes(part.model),
                "optimizer": type(part.optimizer).__name__,
                "slots": _slots(part),
            }
            for name, part in self._loop.parts.items()
        }
        return {
            "parts": parts,
            "averages": sorted(name for name in state if "average_" in name),
            "loss_scaling": self._loop.loss_scaling,
            "also": sorted(self._also),
        }

    def _check_fits(self, folder: pathlib.Path, manifest: dict[str, Any]) -> None:
        here, there = self._description(), manifest
        if list(here["parts"]) != list(there["parts"]):
            raise UserError(
                f"{folder}: the checkpoint has the parts {', '.join(there['parts'])}, the loop "
                f"has {', '.join(here['parts'])}. Make the loop as it was when it was saved."
            )
        for name, part in self._loop.parts.items():
            saved = there["parts"][name]
            _check_network(folder, saved["variables"], part.model)
            found = type(part.optimizer).__name__
            if saved["optimizer"] != found:
                raise UserError(
                    f"{folder}: the checkpoint was saved with the optimizer {saved['optimizer']}, "
                    f"and the loop has {found}. Make the one it was saved with; to go on with "
                    "another, load the weights alone by `load_weights` and begin a new run."
                )
            slots = here["parts"][name]["slots"]
            if saved["slots"] != slots:
                raise UserError(
                    f"{folder}: the optimizer {found} has other variables there "
                    f"({len(saved['slots'])}, {_places(saved['slots'])}) than here "
                    f"({len(slots)}, {_places(slots)}): it was set differently, or other layers "
                    "were frozen. Make the optimizer, and freeze, as when it was "
                    "saved; freeze or unfreeze after `restore`."
                )
        for what, name in (
            ("averages", "averages of the weights (`ema_decay`)"),
            ("loss_scaling", "`loss_scaling`"),
            ("also", "variables in `also`"),
        ):
            if here[what] != there[what]:
                raise UserError(
                    f"{folder}: the {name} differ: {there[what]} there, {here[what]} here. Make "
                    "the loop as it was when it was saved."
                )

    def _state(self) -> tf.train.Checkpoint:
        group = tf.train.Checkpoint
        parts = {
            name: group(
                model=[of_tensorflow(v) for v in variables_of(part.model)],
                optimizer=[of_tensorflow(v) for v in part.optimizer.variables],
            )
            for name, part in self._loop.parts.items()
        }
        teachers = {
            name: group(model=[of_tensorflow(v) for v in variables_of(part.average_into)])
            for name, part in self._loop.parts.items()
            if part.average_into is not None
        }
        also = {name: of_tensorflow(variable) for name, variable in self._also.items()}
        return group(
            parts=group(**parts),
            teachers=group(**teachers),
            loop=group(**self._loop.state),
            also=group(**also),
        )

    def _is_better(self, score: float, step: int) -> bool:
        if score != score:
            return False  # A NaN is never the best.
        if self.best_score is None or self.best_step == step:
            return True
        if self._monitor["higher_is_better"]:
            return score > self.best_score
        return score < self.best_score

    def _prune(self) -> None:
        """Removes what this class has written and needs no more; a file of anybody else's keeps its
        folder alive.
        """
        own = [step for step in self.steps() if step in self._lineage]
        kept = {*own[-self._keep :], self.best_step}
        for step in self.steps():
            # What is not of the lineage lies beyond a step that was restored, and is trained anew.
            if step not in kept:
                _remove(folder_of(self._directory, step))
        for partial in self.unfinished():
            shutil.rmtree(partial)


def steps_in(directory: str | os.PathLike) -> list[int]:
    """Returns the steps of the whole checkpoints in `directory`, ascending."""
    directory = files.local_path(directory)
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    return sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))


def folder_of(directory: str | os.PathLike, step: int) -> pathlib.Path:
    """Returns the folder of the checkpoint of `step`."""
    return files.local_path(directory) / f"step-{step:08d}"


def load_weights(
    directory: str | os.PathLike,
    model: Any,
    *,
    best: bool = False,
    step: int | None = None,
    part: str | None = None,
) -> int:
    """Loads a checkpoint's weights into `model` and returns its step.

    If the loop kept a moving average of the weights, it is that which is loaded. Whether layers of
    `model` are frozen makes no difference.

    Args:
        directory: The folder of the checkpoints.
        model: A model of the same variables.
        best: Whether to load the one with the best score instead of the latest.
        step: The step to load.
        part: The part of the loop, if it has several.

    Raises:
        UserError: If there is none, it does not pass its verification, or it is of another network.
    """
    if not steps_in(directory):
        raise UserError(f"{directory}: holds no checkpoint; train first.")
    folder, manifest = _find(files.local_path(directory), step=step, best=best)
    names = list(manifest["parts"])
    if part is None and len(names) == 1:
        part = names[0]
    if part not in names:
        raise UserError(f"{folder}: `part` ({part!r}) must be one of {', '.join(names)}.")
    _check_network(folder, manifest["parts"][part]["variables"], model)
    variables = variables_of(model)
    reader = tf.train.load_checkpoint(str(folder / _PREFIX))
    prefix = "" if len(names) == 1 else f"{part}_"
    for place, variable in enumerate(variables):
        key = f"parts/{part}/model/{place}/.ATTRIBUTES/VARIABLE_VALUE"
        average = f"loop/{prefix}average_{place}/.ATTRIBUTES/VARIABLE_VALUE"
        variable.assign(reader.get_tensor(average if reader.has_tensor(average) else key))
    finalise(model)
    return manifest["step"]


def _find(
    directory: pathlib.Path, *, step: int | None, best: bool
) -> tuple[pathlib.Path, dict[str, Any]]:
    """Returns the folder and manifest of the checkpoint of `step`, or the best, or the latest."""
    steps = steps_in(directory)
    if best and step is None and steps:
        step = _verify(folder_of(directory, steps[-1]))["best_step"]
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
    return folder, _verify(folder)


def _verify(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the manifest of `folder`, all of whose files are as they were written.

    Raises:
        UserError: If a file is missing, changed or cut short.
    """
    problem = None
    manifest: dict[str, Any] = {}
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        written_by = manifest.get("format", 1)
        if written_by != _FORMAT:
            raise UserError(
                f"{folder}: the checkpoint has format {written_by}, and this version reads format "
                f"{_FORMAT}. Go on with the version it was saved by, or begin a new run."
            )
        for name, expected in manifest["files"].items():
            path = folder / pathlib.PurePath(name).name
            found = _describe(path)
            if found != expected:
                problem = f"{name} has {found['bytes']} bytes, {expected['bytes']} were written"
                if found["bytes"] == expected["bytes"]:
                    problem = f"{name} has changed since it was written"
    except UserError:
        raise
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


def _check_network(folder: pathlib.Path, saved: list[list[Any]], model: Any) -> None:
    # By place, not by name: Keras numbers the layers of one process.
    pairs = itertools.zip_longest(saved, _variable_shapes(model))
    differing = [(there, here) for there, here in pairs if (there or [0])[1:] != (here or [0])[1:]]
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


def _variable_shapes(model: Any) -> list[list[Any]]:
    return [[name_of(v), list(v.shape), tf.as_dtype(v.dtype).name] for v in variables_of(model)]


def _slots(part: Part) -> list[list[Any]]:
    """Returns [place of the model variable, name, number, shape] of each optimizer variable."""
    places = {key_of(v): place for place, v in enumerate(variables_of(part.model))}
    built_for = part.optimizer._trainable_variables
    return [
        [
            None if place is None else places.get(key_of(built_for[place])),
            name,
            number,
            list(variable.shape),
        ]
        for (place, name, number), variable in optimizers.slots(part.optimizer).items()
    ]


def _places(slots: list[list[Any]]) -> str:
    places = sorted({slot[0] for slot in slots if slot[0] is not None})
    return f"for the model's variables {', '.join(map(str, places))}" if places else "no slots"


def _name_and_shape(variable: list[Any] | None) -> str:
    return f"{variable[0]} {variable[1]} {variable[2]}" if variable else "nothing"


def _own_writing(part: Part) -> list[Any]:
    """Returns the variables that the model writes itself, and not the update."""
    return [variable for variable in variables_of(part.model) if not variable.trainable]


def _as_score(score: Any) -> float | None:
    """Returns any real number as a float."""
    if score is None:
        return None
    try:
        array = np.asarray(score)
        if array.size != 1 or array.dtype.kind not in "fiub":
            raise TypeError
        return float(array.reshape(()))
    except (TypeError, ValueError):
        raise UserError(f"`score` ({score!r:.60}) must be one real number.") from None


def _as_json(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(dict(metadata or {})))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"`metadata` must hold JSON values alone: texts, int, float, bool, None, lists and "
            f"dicts of them ({error})."
        ) from None


def _rate(optimizer: keras.optimizers.Optimizer) -> float | None:
    """Returns the learning rate that is a variable of the optimizer."""
    rate = optimizer._learning_rate
    return float(rate.numpy()) if isinstance(rate, keras.Variable) else None


def _say_rate(name: str, part: Part, asked: float | None) -> None:
    restored = _rate(part.optimizer)
    if part.schedule is None and restored != asked:
        warnings.warn(
            f"The learning rate of {name!r} is {restored:.6g}, as in the checkpoint, and not "
            f"{asked:.6g}, as the optimizer was made with. To change it, set "
            "`optimizer.learning_rate` after `restore`.",
            stacklevel=3,
        )


def _monitored(monitor: dict[str, Any]) -> str:
    direction = "higher" if monitor["higher_is_better"] else "lower"
    return f"{monitor['name'] or 'a score'} ({direction} is better)"


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


def _remove(folder: pathlib.Path) -> None:
    for path in folder.iterdir():
        if path.name == _MANIFEST or path.name.startswith(_PREFIX) or path.name == "checkpoint":
            path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()
