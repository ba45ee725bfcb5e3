"""The folder of one run: what lies where, who may write there, what a resumed run must keep.

run = RunDirectory(path)
config = run.resolve_for_resume(config, data_fingerprint)
with run.locked():
    run.store(config, data_fingerprint)
    run.claim(run.path / "mine.png")       # refused if there is one that the run has not written
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from filelock import lock_descriptor

from unet_core.errors import UserError
from unet_core.files import (
    CANNOT_LOCK,
    Schema,
    local_path,
    open_to_lock,
    os_errors,
    read_bytes,
    read_json,
    warn_once,
    write_json,
    write_whole,
)
from unet_core.settings import RunConfig
from unet_core.settings.network import check_same_network

_CONFIG_FORMAT = _SCORES_FORMAT = _WRITTEN_FORMAT = 1
# What versions without `written.json` have called their files.
_FILES = (
    *("config.json", "finished", "history.csv", "known_masks.json", "metrics.jsonl", "scores.json"),
    *("per_image.csv", "worst.png", "precision_recall.png"),
)
_OLD_NAMES = re.compile(
    "|".join(
        [
            *map(re.escape, _FILES),
            r"folds\.(csv|json)",
            r"held_out/[^/]+_(predict|errors)\.png",
            r"predictions/[^/]+_(predict|overlay|outlines|instances|probability[^/]*)\.(png|tif)",
            r"predictions/[^/]+_(instances_overlay\.png|masks|(masks|overlay)\.[a-z0-9]+)",
        ]
    )
)


class _Config(msgspec.Struct, kw_only=True):
    format: int = 0
    settings: dict[str, Any]
    data: str


class _Files(msgspec.Struct):
    format: int
    files: list[str]


@contextlib.contextmanager
def _lock(descriptor: int, path: pathlib.Path, *, blocking: bool = False) -> Iterator[bool]:
    """Locks what was opened at `path`, gives whether it is held, and closes it.

    Where the file system cannot lock, it warns and goes on.

    Raises:
        OSError: If the lock fails otherwise; the error names `path`.
    """
    try:
        is_held = True
        try:
            is_held = lock_descriptor(descriptor, blocking=blocking)
        except OSError as error:
            if error.errno not in CANNOT_LOCK:
                raise OSError(error.errno, error.strerror, str(path)) from error
            warn_once(
                "lock",
                f"{path.parent}: the file system cannot lock ({error.strerror}), so see to it "
                "that no second process uses this run folder.",
                stacklevel=6,  # `contextlib` stands between, twice.
            )
        yield is_held
    finally:
        os.close(descriptor)


class RunDirectory:
    """The paths in a run's folder. Making one touches nothing.

    Attributes:
        path: The folder, absolute.
        checkpoints, events, history, metrics, predictions, known_masks, network, about, report,
            plots: Where each of these lies.

    Raises:
        UserError: If `path` is not a path of this machine.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = local_path(path)
        self._written = Written(self.path)
        self.checkpoints = self.path / "checkpoints"
        self.events = self.path / "events"
        self.history = self.path / "history.csv"
        self.metrics = self.path / "metrics.jsonl"
        self.predictions = self.path / "predictions"
        self.known_masks = self.path / "known_masks.json"
        self.network = self.path / "network.svg"
        self.about = self.path / "about.json"
        self.report = self.path / "report.html"
        self.plots = self.path / "plots"
        self._config = self.path / "config.json"
        self._bound = self.path / "settings.json"
        self._finished = self.path / "finished"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder and holds it for this process alone.

        It is held until the block or the process ends. Where the file system cannot lock, it warns
        and goes on.

        Raises:
            UserError: If the folder cannot be written, or another process holds it.
            OSError: If the lock fails otherwise; the error names it.
        """
        way = "Choose another `run_dir`."
        with os_errors(self.path, "the run folder cannot be written", way):
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = open_to_lock(self.path / "lock")
        with _lock(descriptor, self.path / "lock") as is_held:
            if not is_held:
                raise UserError(
                    f"{self.path}: another process is using this run folder. Wait for it, or "
                    "choose another `run_dir`."
                )
            yield

    def holds_run(self) -> bool:
        """Returns whether a run has begun in this folder."""
        return os.path.lexists(self._config)

    def resolve_for_resume(self, config: RunConfig, data_fingerprint: str) -> RunConfig:
        """Returns the config to run with; touches nothing.

        A folder that already holds a run goes on with it: what was resolved then (precision, the
        schedule's horizon) still holds, and everything else that changes the weights must be equal.

        Args:
            config: The config asked for. Its precision may be `auto` only if the folder holds a
                run.
            data_fingerprint: Identifies the training images and masks.

        Raises:
            UserError: If settings or data differ; the message names them.
        """
        if not self.holds_run():
            first = config.optimization.schedule_steps or config.training.train_steps
            return config.replace(schedule_steps=first)
        before, fingerprint = self.read()
        check_same_network(self.path, before.network.network, config.network.network)
        if config.network.precision == "auto":
            config = config.replace(precision=before.network.precision)
        steps = config.optimization.schedule_steps or before.optimization.schedule_steps
        config = config.replace(schedule_steps=steps)
        differing = [
            f"{name} ({before[name]} there, {config[name]} here)"
            for name in before.differences(config)
        ]
        if fingerprint != data_fingerprint:
            differing.append("the training data (other images or masks)")
        self._refuse(differing)
        return config

    def bind(self, settings: Mapping[str, Any]) -> None:
        """Stores in `settings.json` what a run of a program of one's own must have to go on.

        Args:
            settings: JSON values by name.

        Raises:
            UserError: If the run in the folder has a checkpoint and was begun with others; if there
                is such a file that the run has not written.
        """
        self.claim(self._bound)
        if any(self.checkpoints.glob("step-*")):
            there = self.bound(dict[str, Any])
            self._refuse([name for name in settings if there.get(name) != settings[name]])
        write_json(self._bound, settings)

    def bound(self, schema: type[Schema]) -> Schema:
        """Returns what `bind` has stored, checked against `schema` as by `read_json`.

        Raises:
            UserError: If it has stored nothing, or something else.
        """
        way = "Train in this `run_dir` first, or choose another."
        return read_json(self._bound, schema, what="the settings of a run", way=way)

    def _refuse(self, differing: Sequence[str]) -> None:
        """Raises UserError if a setting differs from that which a run was begun with."""
        if differing:
            raise UserError(
                f"{self.path}: holds a run with other settings: {'; '.join(differing)}. "
                "Give the same ones to go on with it, or another `run_dir` to begin a new run."
            )

    def claim(self, *paths: str | os.PathLike) -> None:
        """Notes that the run writes these files in its folder; call it before they are written.

        Raises:
            UserError: If one of them is there and the run has not written it.
            OSError: If the note cannot be written.
        """
        self._written.claim(paths)

    def store(self, config: RunConfig, data_fingerprint: str) -> None:
        """Stores the config that `resolve_for_resume` has returned.

        It also claims the files that every run writes.

        Raises:
            UserError: If one of these is there and the run has not written it.
        """
        self.claim(*(self.path / name for name in _FILES))
        stored = {"format": _CONFIG_FORMAT, "settings": config.stored(), "data": data_fingerprint}
        write_json(self._config, stored)

    def read(self) -> tuple[RunConfig, str]:
        """Returns the config of the run in this folder and the fingerprint of its data.

        Raises:
            UserError: If there is no run, or its config cannot be read.
        """
        if not self.holds_run():
            raise UserError(
                f"{self.path}: holds no run. Train first, or give the `run_dir` of one."
            )
        what = "the config of a run"
        way = "Put back what the run has written, or choose another `run_dir`."
        formats = (0, _CONFIG_FORMAT)
        stored = read_json(self._config, _Config, what=what, way=way, formats=formats)
        return checked_config(self._config, stored.settings, what=what, way=way), stored.data

    def write_scores(self, scores: dict[str, Any], folder: pathlib.Path | None = None) -> None:
        """Writes `scores.json` in the run's folder or in `folder`, whole or not at all.

        NaN becomes null.

        Raises:
            UserError: If one is in the run's folder that the run has not written.
        """
        folder = folder or self.path
        if folder == self.path:
            self.claim(folder / "scores.json")
        write_scores(folder, scores)

    def results(self) -> list[pathlib.Path]:
        """Returns the files at the top of the folder that the run has written for people."""
        names = [name for name in self._written.files() if "/" not in name]
        kept = [name for name in names if name not in ("lock", "finished", "known_masks.json")]
        return [self.path / name for name in sorted(kept)]

    def is_finished(self, step: int) -> bool:
        """Returns whether everything after training was done at `step`.

        Raises:
            UserError: If what is there says something else.
        """
        if not os.path.lexists(self._finished):
            return False
        way = "Move it away; the run is scored again then."
        with os_errors(self._finished, "cannot be read as the mark of a finished run", way):
            content = read_bytes(self._finished)
        if not re.fullmatch(rb"[0-9]{1,18}\n", content):
            raise UserError(
                f"{self._finished}: cannot be read as the mark of a finished run (expected the "
                f"number of a step, here {content[:40]!r}). {way}"
            )
        return int(content) == step

    def mark_finished(self, step: int) -> None:
        """Remembers that everything after training is done at `step`.

        Raises:
            UserError: If there is a file of this name that the run has not written.
        """
        self.claim(self._finished)
        write_whole(self._finished, f"{step}\n".encode())


def write_scores(folder: pathlib.Path, scores: Mapping[str, Any]) -> None:
    """Writes `scores.json` in a folder of no run, whole or not at all; NaN becomes null.

    Raises:
        OSError: If it cannot be written.
    """
    write_json(folder / "scores.json", {"format": _SCORES_FORMAT, **scores})


class Written:
    """What a run has written in its folder, by its own list, `written.json`.

    It is read anew by every call, because one process may train while another predicts.

    Args:
        folder: The folder; nothing is done to it here.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._path = folder / "written.json"

    def claim(self, paths: Iterable[str | os.PathLike]) -> None:
        """Puts files on the list.

        Args:
            paths: Files in the folder, at any depth, there or not.

        Raises:
            UserError: If one of them is there and not on the list; nothing is put on it then.
            ValueError: If one lies outside the folder.
            OSError: If the list cannot be written.
        """
        names = [local_path(path).relative_to(self._folder).as_posix() for path in paths]
        lock = self._folder / "written.lock"
        # Where nobody has claimed anything, nothing is written before a file is refused.
        if not os.path.lexists(lock):
            self._new(names)
        if self._path.exists() and self.files().keys() >= set(names):
            return
        # Shares of one prediction put their files on the list at the same time.
        with _lock(open_to_lock(lock), lock, blocking=True):
            new = self._new(names)
            content = {"format": _WRITTEN_FORMAT, "files": [*self.files(), *new]}
            write_json(self._path, content)

    def _new(self, names: Iterable[str]) -> list[str]:
        """Returns those of the names that are not on the list; UserError if one is there."""
        listed = self.files()
        new = [name for name in dict.fromkeys(names) if name not in listed]
        foreign = [name for name in new if os.path.lexists(self._folder / name)]
        if foreign:
            more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
            raise UserError(
                f"{self._folder / foreign[0]}{more}: there already, and not written by this run, "
                "which would replace it. Move it elsewhere, or choose another `run_dir`."
            )
        return new

    def files(self) -> dict[str, None]:
        """Returns the list: paths from the folder with "/", in the order they were claimed.

        In a folder that holds a run but no list, the files are of a version before it, and those
        of its names count as written by the run.

        Raises:
            UserError: If the list cannot be read.
        """
        if os.path.lexists(self._path):
            stored = read_json(
                self._path,
                _Files,
                what="the list of what a run has written",
                way="Put it back, or choose another `run_dir`.",
                formats=(_WRITTEN_FORMAT,),
            )
            return dict.fromkeys(stored.files)
        configs = (self._folder / "config.json", self._folder / "fold-0" / "config.json")
        if not any(map(_is_config, configs)):
            return {}
        found = [
            path.relative_to(self._folder).as_posix()
            for folder in (".", "held_out", "predictions")
            for path in sorted((self._folder / folder).glob("*"))
        ]
        return dict.fromkeys(filter(_OLD_NAMES.fullmatch, found))


def _is_config(path: pathlib.Path) -> bool:
    try:
        read_json(path, _Config, what="", way="", formats=(0, _CONFIG_FORMAT))
    except UserError:
        return False
    return True


def checked_config(
    path: pathlib.Path, settings: dict[str, Any], *, what: str, way: str
) -> RunConfig:
    """Returns the config whose fields were stored as JSON in the file at `path`.

    Raises:
        UserError: If they are none; it is worded as by `read_json`.
    """
    try:
        return RunConfig.from_stored(settings)
    except UserError as error:
        raise UserError(f"{path}: cannot be read as {what} ({error}). {way}") from error
