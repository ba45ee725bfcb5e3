"""What a mode that works with a finished run does: settings that were not given are the run's."""

from __future__ import annotations

import os
import pathlib
import sys
from typing import Any

from unet_core.data.intensities import Scaling
from unet_core.errors import UserError
from unet_core.inference.ensemble import fold_folders, open_networks
from unet_core.inference.trained import Trained
from unet_core.run_directory import RunDirectory
from unet_core.runs import process
from unet_core.runs.chosen import is_of, read_chosen
from unet_core.runs.flags import unused
from unet_core.settings import FIELDS, ROOM_OF, RunConfig
from unet_core.settings.network import OF_EVERY_NETWORK


def open_runs(
    config: RunConfig, stop: process.StopRequest
) -> tuple[RunConfig, RunDirectory, list[Trained]]:
    """Returns the settings to go by, the folder, and the networks of a run or of all folds.

    The settings of folds are those of the first, and what `--mode=choose` has chosen for them.

    Raises:
        UserError: If there is no run, it is damaged, a setting was given that the mode does not
            use, folds cannot be averaged, or what was chosen cannot be read.
    """
    run = RunDirectory(required(config, "run_dir"))
    process.prepare_devices(config.training, stop, strategy="none")
    own, folders = config.network.network, fold_folders(run.path)
    chosen = read_chosen(run, config) if folders else None
    given = config.prediction.weights if "weights" in config.given else None
    trained = open_networks(run.path, weights=chosen.weights if chosen else given, network=own)
    if chosen and not is_of(chosen, [each.step for each in trained]):
        chosen = None
        trained = open_networks(run.path, weights=given, network=own)
    of_run = trained[0].config
    if len(trained) > 1:
        # All folds take part, whichever was named where they were trained.
        config = config.replace(fold=of_run.data.fold, folds=of_run.data.folds)
        for folder, each in zip(folders, trained, strict=True):
            if each.step < each.config.training.train_steps and not _is_finished(folder):
                print(f"WARNING: {folder.name} is not trained to its end.", file=sys.stderr)
    given_or_of_run = settings_of_run(config, of_run)
    return chosen.applied(given_or_of_run) if chosen else given_or_of_run, run, trained


def _is_finished(folder: pathlib.Path) -> bool:
    return os.path.lexists(folder / "finished")


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
                raise UserError(unused(name, mode))
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
            raise UserError(unused(name, mode))
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


def _same(name: str, ours: Any, theirs: Any) -> bool:
    if name == "data_dir" and ours and theirs:
        return os.path.abspath(ours) == os.path.abspath(theirs)
    if name == "intensities":
        return Scaling.parse(theirs).is_asked_for_by(Scaling.parse(ours))
    return ours == theirs


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
