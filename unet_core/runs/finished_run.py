"""What a mode that works with a finished run does: settings that were not given are the run's."""

from __future__ import annotations

import os
import pathlib
from typing import Any

from unet_core.errors import UserError
from unet_core.inference.trained import Trained, open_trained
from unet_core.run_directory import RunDirectory
from unet_core.runs import process
from unet_core.settings import FIELDS, ROOM_OF, RunConfig
from unet_core.settings.network import OF_EVERY_NETWORK


def open_run(
    config: RunConfig, stop: process.StopRequest
) -> tuple[RunConfig, RunDirectory, Trained]:
    """Returns the settings to go by, the run's folder and its network.

    Raises:
        UserError: If there is no run, it is damaged, or a setting was given that the mode does not
            use.
    """
    run = RunDirectory(required(config, "run_dir"))
    process.prepare_devices(config.training, stop, strategy="none")
    weights = config.prediction.weights if "weights" in config.given else None
    network = config.network.network
    trained = open_trained(run.path, weights=weights, network=network)
    return settings_of_run(config, trained.config), run, trained


def settings_of_run(config: RunConfig, of_run: RunConfig) -> RunConfig:
    """Returns `config` with the run's settings in place of those that were not given.

    Raises:
        UserError: If a setting was given that the mode does not use, and that differs from the
            run's. Of a flag file, which describes the training too, only those count that decide
            what the run has learned.
    """
    mode = config.task.mode
    values = {}
    for name, field in FIELDS.items():
        used = mode in field.metadata["modes"]
        if name in config.given and used:
            continue
        if name in config.given and not _same(name, config[name], of_run[name]):
            if field.metadata["binds"]:
                raise UserError(
                    f"`{name}` ({_text(config[name])}) differs from that of the run "
                    f"({_text(of_run[name])}), which holds for `mode` {mode}. Leave it out, or "
                    "give the `run_dir` of another run."
                )
            if name not in config.from_file:
                raise UserError(_unused(name, mode))
        if field.metadata["of_run"]:
            values[name] = of_run[name]
    return config.replace(**values)


def check_used(config: RunConfig) -> None:
    """Checks the settings of a mode that does not work with a finished run.

    Raises:
        UserError: If one was given on the command line that the mode does not use, or that does
            nothing with a network of one's own.
    """
    mode, own = config.task.mode, config.network.network
    for name in sorted(config.given - config.from_file):
        if mode not in FIELDS[name].metadata["modes"]:
            raise UserError(_unused(name, mode))
        if own and ROOM_OF[name] == "network" and name not in OF_EVERY_NETWORK:
            raise UserError(
                f"`{name}` does nothing with `network` ({own}), which makes the whole network. "
                "Leave one of them out."
            )


def required(config: RunConfig, name: str) -> str:
    """Returns a setting that must be given.

    Raises:
        UserError: If it was not.
    """
    if not config[name]:
        raise UserError(f"`{name}` is missing; it is needed for `mode` {config.task.mode}.")
    return config[name]


def output_folder(config: RunConfig, default: pathlib.Path) -> pathlib.Path:
    """Returns `output_dir`, or the place in the run folder if it was not given."""
    return pathlib.Path(config.prediction.output_dir or default)


def _unused(name: str, mode: str) -> str:
    users = ", ".join(sorted(FIELDS[name].metadata["modes"]))
    return f"`{name}` is not used with `mode` {mode}, but with {users}. Leave it out."


def _same(name: str, ours: Any, theirs: Any) -> bool:
    if name == "data_dir" and ours and theirs:
        return os.path.abspath(ours) == os.path.abspath(theirs)
    return ours == theirs


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
