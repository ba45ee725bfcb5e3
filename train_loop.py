"""Trains, evaluates and serves segmentation networks.

    python train_loop.py --flagfile=membrane.flags
    python train_loop.py --mode=predict --run_dir=runs/membrane --input=my_slices
    python train_loop.py --mode=check_data --data_dir=my_data --classes=0:background,255:nucleus

Flags may stand in a file, one a line: --flagfile=FILE. A mode that works with a finished run takes
from it what is not given.

Exit codes: 0 done; 2 something is wrong, as one message says; 128 and the number of the signal
(130 Ctrl-C, 143 SIGTERM, 138 SIGUSR1, 129 SIGHUP) stopped by it, and saved.
"""

from __future__ import annotations

import dataclasses
import re
import signal
import sys
from collections.abc import Sequence
from typing import Any

from absl import app, flags

from unet_core.errors import UserError
from unet_core.runs import process
from unet_core.settings import FIELDS, KINDS, RunConfig
from unet_core.settings.describe import help_text
from unet_core.settings.modes import MODES

FLAGS = flags.FLAGS


def main(argv: Sequence[str]) -> int:
    """Runs what the flags ask for and returns the exit code."""
    stop = process.StopRequest()
    try:
        config = _config(argv)
        process.import_libraries()
        if config.names_own_code():
            process.find_modules_here()
        with process.stop_signals(stop):
            MODES[config.task.mode](config, stop)
        return 128 + stop.signal if stop.signal else 0
    except UserError as error:
        return _refuse(_with_flags(str(error)))
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


def _refuse(message: str) -> int:
    print(f"train_loop: {message}", file=sys.stderr)
    return 2


def _with_flags(message: str) -> str:
    """Returns a message of the library with its settings written as flags."""
    return re.sub(r"`(\w+)`", lambda m: f"--{m[1]}" if m[1] in FIELDS else m[0], message)


def _define_flags() -> None:
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


def _config(argv: Sequence[str]) -> RunConfig:
    """Returns the settings of the flags, and which of them were given, and where."""
    given = {name: _value(name) for name in FIELDS if FLAGS[name].present}
    typed = {token.lstrip("-").partition("=")[0] for token in argv[1:] if token.startswith("-")}
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


def _parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the flags; answers `--help` (0) and mistakes (2) itself, in place of absl."""
    if {"--help", "-h", "-help", "--helpfull"} & set(argv[1:]):
        print(f"{__doc__}\n{help_text()}")
        sys.exit(0)
    try:
        rest = FLAGS(argv)
    except (flags.Error, OSError) as error:
        sys.exit(_refuse(f"{error} See --help."))
    if rest[1:]:
        sys.exit(_refuse(f"unexpected argument {rest[1]!r}; flags begin with --. See --help."))
    return list(argv)


def console() -> None:
    """The console command."""
    app.run(main, flags_parser=_parse_flags)


_define_flags()

if __name__ == "__main__":
    console()
