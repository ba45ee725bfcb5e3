"""The folder of one run: what lies where, who may write there, and whether a resumed run is the
same run.

run = RunDirectory(path)
config = run.resolve_for_resume(config, data_fingerprint)
with run.locked():
    run.store(config, data_fingerprint)
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from unet_core.errors import UserError
from unet_core.files import local_path, warn_once, without_nan, write_whole
from unet_core.settings import RunConfig

# What file systems answer that cannot lock (Lustre without -o flock, NFS without lockd).
_CANNOT_LOCK = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}


class RunDirectory:
    """The paths in a run's folder. Making one touches nothing.

    Attributes:
        path: The folder, absolute.
        checkpoints, events, history, predictions, known_masks: Where each of these lies.

    Raises:
        UserError: If `path` is not a path of this machine.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = local_path(path)
        self.checkpoints = self.path / "checkpoints"
        self.events = self.path / "events"
        self.history = self.path / "history.csv"
        self.predictions = self.path / "predictions"
        self.known_masks = self.path / "known_masks.json"
        self._config = self.path / "config.json"
        self._finished = self.path / "finished"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder and holds it for this process alone, until the block or the process
        ends. Where the file system cannot lock, it warns and goes on.

        Raises:
            UserError: If the folder cannot be written, or another process holds it.
            OSError: If the lock fails otherwise; the error names it.
        """
        lock = self.path / "lock"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise UserError(
                f"{self.path}: the run folder cannot be written ({error.strerror}: "
                f"{error.filename}). "
                "Choose another --run_dir."
            ) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"{self.path}: another process is using this run folder. Wait for it, or "
                    f"choose another --run_dir."
                ) from error
            except OSError as error:
                if error.errno not in _CANNOT_LOCK:
                    raise OSError(error.errno, error.strerror, str(lock)) from error
                warn_once(
                    "lock",
                    f"{self.path}: the file system cannot lock ({error.strerror}), so see to it "
                    "that no second process uses this run folder.",
                    stacklevel=4,  # `contextlib` stands between.
                )
            yield
        finally:
            os.close(descriptor)

    def holds_run(self) -> bool:
        """Returns whether a run has begun in this folder."""
        return self._config.exists()

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
            steps = config.optimization.schedule_steps or config.training.train_steps
            return config.replace(schedule_steps=steps)
        before, fingerprint = self.read()
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
        if differing:
            raise UserError(
                f"{self.path}: holds a run with other settings: {'; '.join(differing)}. "
                "Give the same ones to go on with it, or another --run_dir to begin a new run."
            )
        return config

    def store(self, config: RunConfig, data_fingerprint: str) -> None:
        """Stores the config that `resolve_for_resume` has returned."""
        stored = {"settings": config.stored(), "data": data_fingerprint}
        write_whole(self._config, (json.dumps(stored, indent=1) + "\n").encode())

    def read(self) -> tuple[RunConfig, str]:
        """Returns the config of the run in this folder and the fingerprint of its data.

        Raises:
            UserError: If there is no run, or its config cannot be read.
        """
        try:
            stored = json.loads(self._config.read_text())
            return RunConfig.from_stored(stored["settings"]), stored["data"]
        except FileNotFoundError as error:
            raise UserError(
                f"{self.path}: holds no run. Train first, or give the --run_dir of one."
            ) from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self._config}: cannot be read as the config of a run ({error})."
            ) from error

    def write_scores(self, scores: dict[str, Any], folder: pathlib.Path | None = None) -> None:
        """Writes `scores.json` in the run's folder or in `folder`, whole or not at all; NaN becomes
        null.
        """
        write_whole(
            (folder or self.path) / "scores.json",
            (json.dumps(without_nan(scores), indent=1) + "\n").encode(),
        )

    def is_finished(self, step: int) -> bool:
        """Returns whether everything after training was done at `step`."""
        try:
            return self._finished.read_text() == f"{step}\n"
        except OSError:
            return False

    def mark_finished(self, step: int) -> None:
        """Remembers that everything after training is done at `step`."""
        write_whole(self._finished, f"{step}\n".encode())
