"""The command line of a program of one's own: a flag for each setting of a frozen dataclass.

@dataclasses.dataclass(frozen=True)
class Settings:
    epochs: int = setting(40, "Passes over the data.", least=1, most=10**6)

if __name__ == "__main__":
    sys.exit(run(main, Settings, name="my_program", description=__doc__))
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Callable, Container, Sequence
from typing import Any, NoReturn, TypeVar

from unet_core.errors import UserError
from unet_core.settings.fields import check_fields, kinds_of

Settings = TypeVar("Settings")


def run(
    program: Callable[[Settings], object],
    settings: type[Settings],
    argv: Sequence[str] | None = None,
    *,
    name: str,
    description: str,
) -> int:
    """Runs a program with the settings of the command line, and returns its exit code.

    That is 0; 2 after one message if something is wrong with flags, files or data, or the loss is
    not finite; 130 if it was interrupted.

    Args:
        program: Takes the settings.
        settings: As for `parse`.
        argv: As for `parse`.
        name: The name of the program.
        description: As for `parse`.
    """
    # The program has imported it, or does not train.
    from unet_core.training.report import NonFiniteError

    try:
        program(parse(settings, argv, name=name, description=description))
    except (UserError, OSError, NonFiniteError) as error:
        names = {field.name for field in dataclasses.fields(settings)}  # type: ignore[arg-type]
        print(f"{name}: {with_flags(str(error), names)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: stopped; what is saved is whole.", file=sys.stderr)
        return 130
    return 0


def parse(
    settings: type[Settings], argv: Sequence[str] | None = None, *, name: str, description: str
) -> Settings:
    """Returns what the command line says; `--help` shows it and ends the program.

    Args:
        settings: A dataclass of fields of `unet_core.settings.fields.setting`, each a bool, a
            number or a text.
        argv: The arguments; None is those of the process.
        name: The name of the program.
        description: What `--help` says before the flags.

    Raises:
        UserError: If there is no such flag, or a value breaks its rule.
    """
    parser = _Parser(
        name,
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        kind: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
        item = kinds_of(settings)[field.name].item  # type: ignore[arg-type]
        if item is not bool:
            kind = {"type": item, "metavar": "|".join(field.metadata["choices"]) or item.__name__}
        text = field.metadata["help"].replace("%", "%%") + f" Default: {field.default!r}."
        parser.add_argument(f"--{field.name}", default=field.default, help=text, **kind)
    found = settings(**vars(parser.parse_args(argv)))
    check_fields(found)
    return found


def with_flags(message: str, names: Container[str]) -> str:
    """Returns a message of the library with the settings of these names written as flags."""
    return re.sub(r"`(\w+)`", lambda m: f"--{m[1]}" if m[1] in names else m[0], message)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. See --help.")
