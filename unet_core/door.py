"""The command: flags to settings, settings to a mode, errors to one message and an exit code.

`train_loop.py` and the installed `unet-train` start it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import io
import os
import pathlib
import re
import signal
import sys
from collections.abc import Sequence
from typing import Any

from absl import app, flags

import unet_core
from unet_core.console import json_output
from unet_core.errors import UserError
from unet_core.runs import process
from unet_core.settings import FIELDS, KINDS, RunConfig
from unet_core.settings.command_line import with_flags
from unet_core.settings.describe import help_text
from unet_core.settings.modes import FORMER, MODES, TRAIN

FLAGS = flags.FLAGS
USAGE = """\
Trains, evaluates and serves segmentation networks.

    python train_loop.py --flagfile=membrane.flags
    python train_loop.py --mode=predict --run_dir=runs/membrane --input=my_slices
    python train_loop.py --mode=check_data --data_dir=my_data --classes=0:background,255:nucleus

Flags may stand in a file, one a line: --flagfile=FILE. The recipes that come with the package, such
as membrane.flags, are found from any folder. A mode that works with a finished run takes from it
what is not given. --help=predict shows the flags of one mode, --version the version.

Exit codes: 0 done; 2 something is wrong, as one message says; 128 and the number of the signal
(130 Ctrl-C, 143 SIGTERM, 138 SIGUSR1, 129 SIGHUP) stopped by it, and saved.
"""


def main(argv: Sequence[str]) -> int:
    """Runs what the flags ask for and returns the exit code."""
    stop = process.StopRequest()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names of files need not be text, nor what the terminal can show.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        config = _config(argv)
        from unet_core.runs.flags import check_flags  # It loads NumPy, which --help does without.

        check_flags(config)
        as_json = config.training.log_format == "json"
        with json_output() if as_json else contextlib.nullcontext():
            _say_what_begins(config)
            process.import_libraries()
            if config.names_own_code():
                process.find_modules_here()
            with process.stop_signals(stop):
                MODES[config.task.mode](config, stop)
        return 128 + stop.signal if stop.signal else 0
    except UserError as error:
        return _refuse(with_flags(str(error), FIELDS))
    except OSError as error:
        return _refuse(
            f"{error.filename or 'a file'}: {error.strerror or error}. Make room or permit access, "
            "and start the same command again: a run goes on from its last checkpoint."
        )
    except Exception as error:
        # By name: TensorFlow may not be loaded yet.
        if type(error).__name__ not in ("ResourceExhaustedError", "MemoryError"):
            raise
        reason = str(error).splitlines()[0] if str(error) else "host"
        return _refuse(
            f"memory ran out ({reason}). Use smaller windows, such as --window_px=512, or a "
            "machine with more."
        )
    except KeyboardInterrupt:
        _refuse("stopped at once; the run goes on from its last checkpoint.")
        return 128 + (stop.signal or signal.SIGINT)


def _say_what_begins(config: RunConfig) -> None:
    """Prints what will happen, before libraries are loaded; of modes that train alone."""
    mode, steps = config.task.mode, f"up to step {config.training.train_steps}"
    if mode not in TRAIN:
        return
    if config.training.epochs is not None:
        steps = f"for {config.training.epochs:g} epochs"
    parts = [f"images of {config.data.data_dir}" if config.data.data_dir else "synthetic slices"]
    if config.task.run_dir and mode != "overfit":  # It writes nothing.
        parts.append(f"run folder {config.task.run_dir}")
    parts += [steps] if mode == "train" else []
    print(f"Mode {mode}: {', '.join(parts)}.")
    print("Loading TensorFlow, which takes some seconds.", flush=True)


def _refuse(message: str) -> int:
    print(f"train_loop: {message}", file=sys.stderr)
    return 2


def _config(argv: Sequence[str]) -> RunConfig:
    """Returns the settings of the flags, and which of them were given, and where."""
    given = {name: _value(name) for name in FIELDS if FLAGS[name].present}
    typed = {_name(token) for token in argv[1:]}
    typed |= {name.removeprefix("no") for name in typed}
    return dataclasses.replace(RunConfig.of(**given), from_file=frozenset(given) - typed)


def _value(name: str) -> Any:
    value, kind = FLAGS[name].value, KINDS[name]
    if value is None or not kind.is_list:
        return value
    try:
        return tuple(kind.item(item) for item in value)
    except ValueError:
        raise UserError(
            f"`{name}` ({','.join(value)}) must be numbers separated by commas."
        ) from None


def _define_flags() -> None:
    if "mode" in FLAGS:
        return
    for name, field in FIELDS.items():
        kind, choices = KINDS[name], field.metadata["choices"]
        if kind.is_list:
            default = [str(value) for value in RunConfig()[name] or ()] or None
            flags.DEFINE_list(name, default, field.metadata["help"])
        elif choices:
            flags.DEFINE_enum(name, field.default, list(choices), field.metadata["help"])
        else:
            define = {
                bool: flags.DEFINE_boolean,
                int: flags.DEFINE_integer,
                float: flags.DEFINE_float,
                str: flags.DEFINE_string,
            }[kind.item]
            define(name, field.default, field.metadata["help"])


def _parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the flags; answers `--help` (0) and mistakes (2) itself, in place of absl.

    All mistakes are listed at once.
    """
    _define_flags()
    asked = set(argv[1:])
    if "--version" in asked:
        print(f"unet_core {unet_core.__version__}")
        sys.exit(0)
    if {"--help", "-h", "-help", "--helpfull"} & asked:
        print(f"{USAGE}\n{help_text()}")
        sys.exit(0)
    for mode in (arg.removeprefix("--help=") for arg in argv if arg.startswith("--help=")):
        if mode not in MODES:
            sys.exit(_refuse(f"--help={mode}: no mode is called so; there are {', '.join(MODES)}."))
        print(help_text(mode))
        sys.exit(0)
    problems = []
    try:
        left = FLAGS.read_flags_from_files([_found(arg) for arg in argv], force_gnu=True)
    except (flags.Error, OSError) as error:
        sys.exit(_refuse(f"{error} See --help."))
    left = [_present_mode(arg) for arg in left]
    while True:
        try:
            rest = FLAGS(left)
            break
        except flags.Error as error:
            problems.append(str(error))
            name = re.search(r"flag '?-*(\w+)", problems[-1])
            without = [arg for arg in left if not name or _name(arg) != name[1]]
            if len(without) == len(left):
                sys.exit(_refuse(f"{UserError(*problems)} See --help."))
            left = without
    problems += [f"unexpected argument {arg!r}; flags begin with --." for arg in rest[1:]]
    if problems:
        sys.exit(_refuse(f"{UserError(*problems)} See --help."))
    return list(argv)


def _present_mode(arg: str) -> str:
    """Returns an argument that gives a mode by the name it had in earlier versions with its own."""
    flag, _, name = arg.partition("=")
    if flag not in ("--mode", "-mode") or name not in FORMER:
        return arg
    print(f"WARNING: {arg} is now called {flag}={FORMER[name]}.", file=sys.stderr)
    return f"{flag}={FORMER[name]}"


def _name(arg: str) -> str:
    """Returns the name of the flag that `arg` gives, "" if it is no flag."""
    return arg.lstrip("-").partition("=")[0] if arg.startswith("-") else ""


def _found(arg: str) -> str:
    """Returns --flagfile=NAME with the recipe's path if no such file is here."""
    flag, _, name = arg.partition("=")
    if flag not in ("--flagfile", "-flagfile") or os.path.dirname(name) or os.path.exists(name):
        return arg
    places = [pathlib.Path(__file__).parents[1] / name]
    try:
        installed = importlib.metadata.files("unet_core") or []
    except importlib.metadata.PackageNotFoundError:
        installed = []
    places += [pathlib.Path(str(file.locate())) for file in installed if file.name == name]
    return next((f"{flag}={path}" for path in places if path.is_file()), arg)


def console() -> None:
    """The console command."""
    app.run(main, flags_parser=_parse_flags)
