"""How a setting is declared: its default, help, range, choices, and what uses it."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import typing
from collections.abc import Iterable
from typing import Any

from unet_core.errors import UserError
from unet_core.own_code import is_name

# Smaller ones are 0 in float32, or make a division by 0 of what follows.
_SMALLEST = 1e-12
PAIR_RULE = "`{name}` ({value}) must be two numbers low,high with 0 < low <= high."


def setting(
    default: Any,
    help: str,
    *,
    modes: Iterable[str] = (),
    binds: bool = False,
    of_run: bool = True,
    is_path: bool = False,
    choices: Iterable[str] = (),
    least: float | None = None,
    most: float | None = None,
) -> Any:
    """Declares one setting of a frozen dataclass.

    Args:
        default: Its value if it is not given.
        help: One or more sentences for `--help`.
        modes: The modes that use it; given to another one it is refused. A program of one's own
            has none.
        binds: Whether it changes the weights that a run ends with; a resumed run must have it
            equal.
        of_run: Whether a mode that works with a finished run takes it from there if it is not
            given.
        is_path: Whether it names files or folders: `~` is the home folder in it, which shells do
            not expand behind "--flag=".
        choices: The texts that it may be, or that its items may be.
        least: The lower bound of a number or of each number of several; every number has one.
        most: The upper bound.
    """
    metadata = dict(
        help=help,
        modes=frozenset(modes),
        binds=binds,
        of_run=of_run,
        is_path=is_path,
        choices=tuple(choices),
        least=least,
        most=most,
    )
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a setting's values are.

    Attributes:
        item: bool, int, float or str.
        is_list: Whether it is several of them.
        is_pair: Whether it is exactly two numbers, low and high.
        is_optional: Whether it may be None.
    """

    item: type
    is_list: bool
    is_pair: bool
    is_optional: bool


@functools.cache
def kinds_of(room: type) -> dict[str, Kind]:
    """Returns the kind of each setting of a room by its name."""
    return {name: _kind(hint) for name, hint in typing.get_type_hints(room).items()}


def _kind(hint: Any) -> Kind:
    options = [option for option in typing.get_args(hint) if option is not type(None)]
    is_optional = type(None) in typing.get_args(hint)
    hint = options[0] if is_optional else hint
    if typing.get_origin(hint) is tuple:
        items = typing.get_args(hint)
        return Kind(items[0], True, items[-1] is not Ellipsis, is_optional)
    return Kind(hint, False, False, is_optional)


def check_fields(room: Any) -> None:
    """Checks every setting of a room by itself, and puts the home folder for `~` in paths.

    Raises:
        UserError: If a value breaks its rule; the message names the setting, the value and the
            rule.
    """
    kinds = kinds_of(type(room))  # type: ignore[arg-type]  # mypy 2.4: classes are hashable.
    problems = []
    for field in dataclasses.fields(room):
        value = getattr(room, field.name)
        if value is None or not field.metadata:
            continue
        kind = kinds[field.name]
        if field.metadata["is_path"]:
            value = _at_home(value)
            object.__setattr__(room, field.name, value)
        if kind.is_pair and not (len(value) == 2 and 0 < value[0] <= value[1]):
            problems.append(PAIR_RULE.format(name=field.name, value=value))
            continue
        try:
            for item in value if kind.is_list else (value,):
                _check_item(field, item, kind.item)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*problems)


def _at_home(value: Any) -> Any:
    """Returns a path, or several, with the home folder in place of `~`."""
    if isinstance(value, tuple):
        return tuple(map(_at_home, value))
    return os.path.expanduser(value)


def binding_values(room: Any) -> dict[str, Any]:
    """Returns by name the settings of a room that a resumed run must have equal."""
    fields = [field for field in dataclasses.fields(room) if field.metadata["binds"]]
    return {field.name: getattr(room, field.name) for field in fields}


def check_own(name: str, value: str) -> None:
    """Checks that the value of a setting is empty or names a function of one's own.

    Raises:
        UserError: If it is not.
    """
    if value and not is_name(value):
        raise UserError(
            f"`{name}` ({value!r}) must name a module and a function in it, such as "
            "my_module:my_function."
        )


def _check_item(field: dataclasses.Field, item: Any, kind: type) -> None:
    choices, least, most = (field.metadata[key] for key in ("choices", "least", "most"))
    if field.metadata["is_path"] and "\0" in item:
        raise UserError(f"`{field.name}` ({item!r}) holds a NUL character, which no path can.")
    if choices and item not in choices:
        raise UserError(f"`{field.name}` ({item!r}) must be one of {', '.join(choices)}.")
    if kind not in (int, float):
        return
    if not item >= least:
        raise UserError(f"`{field.name}` ({item}) must be at least {least:g}.")
    if not item <= most:
        raise UserError(f"`{field.name}` ({item}) must be at most {most:g}.")
    if kind is float and 0 < abs(item) < _SMALLEST and math.isfinite(item):
        raise UserError(f"`{field.name}` ({item}) must be 0 or at least {_SMALLEST:g}.")
