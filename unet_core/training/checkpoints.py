"""Complete, atomic, verified checkpoints of a loop.

    checkpoints = Checkpoints(directory, loop, keep=3)
    step = checkpoints.restore()           # 0 if there is none
    checkpoints.save(score=0.81)           # the best score's checkpoint is kept beside the latest 3

A checkpoint is a folder `step-00000500`, see `checkpoint_files`. It is written under another name,
flushed to disk, and renamed: a folder of that name is whole. Nothing in it is executed when it is
read.

Each owner has its own part of the checkpoint: of every part of the loop the variables of the model
by place, the optimizer's, the averages by the place of their variable; the loop's own; those of the
host (`also`); and those of each control.
"""

from __future__ import annotations

import json
import os
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from unet_core import files
from unet_core.errors import UserError, reason_of
from unet_core.temporary import NewFolder, leftovers, remove_leftovers
from unet_core.training import checkpoint_files, optimizers
from unet_core.training.checkpoint_files import (
    PREFIX,
    Manifest,
    Monitor,
    PartEntry,
    Slot,
    folder_of,
    steps_in,
)
from unet_core.training.controls import Controls
from unet_core.training.loop import Loop
from unet_core.training.parts import Part
from unet_core.training.variables import (
    check_equal_on_replicas,
    finalise,
    key_of,
    of_tensorflow,
    variables_of,
)

_CONTROL = "control_"

__all__ = ["Checkpoints", "folder_of", "steps_in"]


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
        controls: The controls of the run, saved and restored with the rest. One that a checkpoint
            does not hold begins anew.

    Attributes:
        best_step: The step with the best score so far, None if none has been given.
        best_score: That score.
        monitor, controls: As given; without controls those that decide nothing.

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
        controls: Controls | None = None,
    ):
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
            raise UserError(f"`keep` ({keep!r}) must be a whole number of at least 1.")
        self._directory = files.local_path(directory)
        self._loop = loop
        self._keep = keep
        self.monitor, self.controls = monitor, controls or Controls()
        self._monitor = Monitor(monitor, bool(higher_is_better))
        self._metadata = _as_json(metadata)
        self._controls = controls.state if controls else {}
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
        """Returns the folders of saves that are interrupted, or under way.

        `restore` removes those whose process is dead.
        """
        return leftovers(self._directory)

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
                checkpoint_files.add_score(
                    final, score=score, best_step=self.best_step, best_score=self.best_score
                )
            return final
        for part in self._loop.parts.values():
            check_equal_on_replicas(self._loop.strategy, _own_writing(part))
        try:
            self._write(final, step, score)
        except (OSError, tf.errors.OpError) as error:
            last = max(self._lineage & set(self.steps()), default=None)
            kept = (
                "There is no earlier checkpoint."
                if last is None
                else f"The checkpoint of step {last} is whole."
            )
            raise UserError(
                f"{final}: the checkpoint cannot be written ({reason_of(error)}). {kept} "
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
        remove_leftovers(self._directory)
        steps = self.steps()
        if not steps and step is None and not best:
            self._lineage = set()
            return 0
        folder, manifest = checkpoint_files.find(self._directory, step=step, best=best)
        step = manifest.step
        self._check_fits(folder, manifest)
        asked = {name: _rate(part.optimizer) for name, part in self._loop.parts.items()}
        with checkpoint_files.reading(folder):
            there = self._check_owners(folder)
            self._state(there).read(str(folder / PREFIX)).assert_existing_objects_matched()
        for name, part in self._loop.parts.items():
            finalise(part.model)
            _say_rate(name, part, asked[name])
        self._loop.window = manifest.window
        self.best_step, self.best_score = manifest.best_step, manifest.best_score
        if manifest.monitor != self._monitor:
            warnings.warn(
                f"{folder.name} was saved with the best of {_monitored(manifest.monitor)}, and "
                f"now it is that of {_monitored(self._monitor)}: the best score starts anew.",
                stacklevel=2,
            )
            self.best_step = self.best_score = None
        self._lineage = {earlier for earlier in steps if earlier <= step}
        self._loop.note_restore()
        return step

    def restore_best_weights(self) -> int:
        """Takes back weights, optimizer slots and averages of the best checkpoint.

        The loop goes on at its present step: the data, the schedule, the loss scale, the host's
        variables and the controls are not changed.

        Returns the step of that checkpoint; it is the latest one if none has a score.

        Raises:
            UserError: As `restore`, and if there is none.
        """
        self._loop.check_may_save()
        folder, manifest = checkpoint_files.find(self._directory, step=None, best=True)
        self._check_fits(folder, manifest)
        loop = self._loop.state
        averages = {name: loop[name] for name in loop if "average_" in name}
        state = tf.train.Checkpoint(**self._parts(), loop=tf.train.Checkpoint(**averages))
        with checkpoint_files.reading(folder):
            self._check_owners(folder)
            state.read(str(folder / PREFIX)).assert_existing_objects_matched().expect_partial()
        for part in self._loop.parts.values():
            finalise(part.model)
        return manifest.step

    def _write(self, final: pathlib.Path, step: int, score: float | None) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        new = NewFolder(final)
        try:
            self._state().write(str(new.path / PREFIX))
            manifest = Manifest(
                format=checkpoint_files.FORMAT,
                step=step,
                score=score,
                best_step=self.best_step,
                best_score=self.best_score,
                monitor=self._monitor,
                metadata=self._metadata,
                window=[float(each) for each in self._loop.window],
                files={
                    path.name: checkpoint_files.describe(path)
                    for path in sorted(new.path.iterdir())
                },
                **self._description(),
            )
            checkpoint_files.write_manifest(new.path, manifest)
            for path in new.path.iterdir():
                files.flush(path)
            files.flush(new.path)
            if final.exists():
                # Of a step that is trained anew after a restore to an earlier one.
                checkpoint_files.remove(final)
            new.commit()
            files.flush(self._directory)
        finally:
            new.discard()

    def _description(self) -> dict[str, Any]:
        """Returns what a checkpoint must have in common with the loop it is restored into."""
        state = self._loop.state
        parts = {
            name: PartEntry(
                variables=checkpoint_files.variable_shapes(part.model),
                optimizer=type(part.optimizer).__name__,
                slots=_slots(part),
            )
            for name, part in self._loop.parts.items()
        }
        return {
            "parts": parts,
            "averages": sorted(name for name in state if "average_" in name),
            "loss_scaling": self._loop.loss_scaling,
            "also": sorted(self._also),
        }

    def _check_fits(self, folder: pathlib.Path, there: Manifest) -> None:
        here = self._description()
        if list(here["parts"]) != list(there.parts):
            raise UserError(
                f"{folder}: the checkpoint has the parts {', '.join(there.parts)}, the loop "
                f"has {', '.join(here['parts'])}. Make the loop as it was when it was saved."
            )
        for name, part in self._loop.parts.items():
            saved = there.parts[name]
            checkpoint_files.check_network(folder, saved.variables, part.model)
            found = type(part.optimizer).__name__
            if saved.optimizer != found:
                raise UserError(
                    f"{folder}: the checkpoint was saved with the optimizer {saved.optimizer}, "
                    f"and the loop has {found}. Make the one it was saved with; to go on with "
                    "another, load the weights alone by `load_weights` and begin a new run."
                )
            slots = here["parts"][name].slots
            if saved.slots != slots:
                raise UserError(
                    f"{folder}: the optimizer {found} has other variables there "
                    f"({len(saved.slots)}, {_places(saved.slots)}) than here "
                    f"({len(slots)}, {_places(slots)}): it was set differently, or other layers "
                    "were frozen. Make the optimizer, and freeze, as when it was "
                    "saved; freeze or unfreeze after `restore`."
                )
        for what, name in (
            ("averages", "averages of the weights (`ema_decay`)"),
            ("loss_scaling", "`loss_scaling`"),
            ("also", "variables in `also`"),
        ):
            saved, own = getattr(there, what), here[what]
            if saved != own:
                raise UserError(
                    f"{folder}: the {name} differ: {saved} there, {own} here. Make the loop as it "
                    "was when it was saved."
                )

    def _check_owners(self, folder: pathlib.Path) -> set[str]:
        """Checks that the checkpoint holds exactly the variables of the loop; returns its owners.

        Of the owners that the loop has, no variable may be missing and none may be left over, but
        for controls that were not there. It warns of owners that the loop has not, such as those of
        a later version.
        """
        saved = checkpoint_files.owners_in(folder)
        own = self._owners()
        new = {name for name in own if name.startswith(_CONTROL) and not saved[name]}
        own = {name: variables for name, variables in own.items() if name not in new}
        lacking = [name for name, variables in own.items() if variables and not saved[name]]
        if lacking:
            raise UserError(
                f"{folder}: the checkpoint has no state of {', '.join(lacking)}, which the loop "
                "has. Build the loop as it was when it was saved."
            )
        here = len({id(variable) for variables in own.values() for variable in variables})
        there = sum(saved[name] for name in own)
        if here != there:
            raise UserError(
                f"{folder}: the checkpoint does not fit the loop it is restored into ({there} "
                f"variables there, {here} here). Build it as it was when it was saved."
            )
        unknown = sorted(set(saved) - set(own))
        if unknown:
            warnings.warn(
                f"{folder.name} holds the state of {', '.join(unknown)}, which this loop has not: "
                "it is left out. Perhaps a later version has saved it, or a control that is not "
                "used any more.",
                stacklevel=3,
            )
        return set(saved)

    def _owners(self) -> dict[str, list[tf.Variable]]:
        """Returns the variables of each part of a checkpoint."""
        parts = self._loop.parts.values()
        teachers = [part.average_into for part in parts if part.average_into is not None]
        found = {
            "parts": [v for p in parts for v in (*variables_of(p.model), *p.optimizer.variables)],
            "teachers": [v for teacher in teachers for v in variables_of(teacher)],
            "loop": self._loop.state.values(),
            "also": self._also.values(),
            **{f"{_CONTROL}{name}": v.values() for name, v in self._controls.items()},
        }
        return {name: list(map(of_tensorflow, variables)) for name, variables in found.items()}

    def _state(self, there: set[str] | None = None) -> tf.train.Checkpoint:
        """Returns what is saved, or what of it is restored where the owners `there` were saved."""
        group = tf.train.Checkpoint
        controls = {
            f"{_CONTROL}{name}": group(**variables)
            for name, variables in self._controls.items()
            if variables and (there is None or f"{_CONTROL}{name}" in there)
        }
        also = {name: of_tensorflow(variable) for name, variable in self._also.items()}
        return group(
            **self._parts(), loop=group(**self._loop.state), also=group(**also), **controls
        )

    def _parts(self) -> dict[str, tf.train.Checkpoint]:
        """Returns weights and slots of the parts, and the weights of their teachers."""
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
        return {"parts": group(**parts), "teachers": group(**teachers)}

    def _is_better(self, score: float, step: int) -> bool:
        if score != score:
            return False  # A NaN is never the best.
        if self.best_score is None or self.best_step == step:
            return True
        if self._monitor.higher_is_better:
            return score > self.best_score
        return score < self.best_score

    def _prune(self) -> None:
        """Removes what this class has written and needs no more.

        A file that it has not written keeps its folder alive.
        """
        own = [step for step in self.steps() if step in (self._lineage or ())]
        kept = {*own[-self._keep :], self.best_step}
        for step in self.steps():
            # What is not of the lineage lies beyond a step that was restored, and is trained anew.
            if step not in kept:
                checkpoint_files.remove(folder_of(self._directory, step))


def _slots(part: Part) -> list[Slot]:
    places = {key_of(v): place for place, v in enumerate(variables_of(part.model))}
    built_for = part.optimizer._trainable_variables
    return [
        (
            None if place is None else places.get(key_of(built_for[place])),
            name,
            number,
            list(variable.shape),
        )
        for (place, name, number), variable in optimizers.slots(part.optimizer).items()
    ]


def _places(slots: list[Slot]) -> str:
    places = sorted({slot[0] for slot in slots if slot[0] is not None})
    return f"for the model's variables {', '.join(map(str, places))}" if places else "no slots"


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


def _monitored(monitor: Monitor) -> str:
    direction = "higher" if monitor.higher_is_better else "lower"
    return f"{monitor.name or 'a score'} ({direction} is better)"
