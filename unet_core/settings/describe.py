"""The settings as text: `--help` and docs/flags.md.

`python -m unet_core.settings.describe`, started in the root of the project, writes the latter.
"""

from __future__ import annotations

import dataclasses
import pathlib
import textwrap
from typing import Any

from unet_core.settings.fields import Kind
from unet_core.settings.run_config import KINDS, ROOMS

TITLES = {
    "task": "What to do",
    "data": "Data",
    "augmentation": "Augmentation (data augmentation of training crops)",
    "network": "Network",
    "loss": "Loss",
    "optimization": "Optimizer, learning rate, averages",
    "fine_tuning": "Fine-tuning: frozen layers, learning rates of parts",
    "training": "Training, batch size, reproducibility, devices",
    "controls": "Controls: early stopping, plateaus, time, asking",
    "search": "Search for a learning rate or other settings",
    "prediction": "Prediction, scores, export",
}
_HEAD = """# All flags

By room, in the order a person needs them. `--help` shows all of them with ranges, defaults and a
sentence each, by group, `--help=predict` those of one mode.

A flag that a mode does not use is refused by name. A mode that works with a finished run
(`evaluate`, `predict`, `export`, `choose`) takes from it what is not given; a flag file that
describes the training may be given to it too.
"""


def help_text(mode: str | None = None) -> str:
    """Returns the flags with their ranges, defaults and help, by room, for the screen.

    Args:
        mode: Only those that this mode uses; all by default.
    """
    blocks = []
    for room, settings in ROOMS.items():
        lines = [TITLES[room], "-" * len(TITLES[room])]
        fields = dataclasses.fields(settings)
        used = [each for each in fields if mode is None or mode in each.metadata["modes"]]
        if not used:
            continue
        for field in used:
            lines += _wrapped(f"{_flag(field)}  {_default(field)}".rstrip(), "  ")
            lines += _wrapped(field.metadata["help"], "      ")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _wrapped(text: str, indent: str) -> list[str]:
    """Returns lines of at most 96 letters; a list of choices may be broken between two."""
    lines = textwrap.wrap(
        text.replace("|", "| "), 96, initial_indent=indent, subsequent_indent="      "
    )
    return [line.replace("| ", "|") for line in lines]


def overview() -> str:
    """Returns one row of a Markdown table for each room: its flags, with their choices."""
    rows = ["| group | flags |", "|---|---|"]
    for room, settings in ROOMS.items():
        flags = []
        for field in dataclasses.fields(settings):
            choices = ", ".join(f"`{choice}`" for choice in field.metadata["choices"])
            flags.append(f"`--{field.name}`" + (f" ({choices})" if choices else ""))
        rows.append(f"| {TITLES[room]} | {', '.join(flags)} |")
    return "\n".join(rows)


def markdown_table() -> str:
    """Returns all flags by room as Markdown tables."""
    blocks = []
    for room, settings in ROOMS.items():
        rows = ["| flag | default | what |", "|---|---|---|"]
        for field in dataclasses.fields(settings):
            flag = _flag(field).replace("|", "\\|")
            help_ = field.metadata["help"].replace("|", "\\|")
            rows.append(f"| `{flag}` | {_shown(field.default)} | {help_} |")
        blocks.append(f"### {TITLES[room]}\n\n" + "\n".join(rows))
    return "\n\n".join(blocks)


def _flag(field: dataclasses.Field) -> str:
    """Returns a flag as it is written, with what it takes: `--depth=1..8`."""
    kind = KINDS[field.name]
    if kind.item is bool:
        return f"--[no]{field.name}"
    return f"--{field.name}={_taken(field, kind)}"


def _taken(field: dataclasses.Field, kind: Kind) -> str:
    choices = field.metadata["choices"]
    if choices:
        return ",".join(choices) if kind.is_list else "|".join(choices)
    if kind.item is str:
        return "TEXT,TEXT,..." if kind.is_list else "TEXT"
    span = f"{field.metadata['least']:g}..{field.metadata['most']:g}"
    if kind.is_pair:
        return f"LOW,HIGH in {span}"
    return f"{span},..." if kind.is_list else span


def _default(field: dataclasses.Field) -> str:
    shown = _shown(field.default)
    return f"(default {shown})" if shown else ""


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return "on" if value else "off"
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def write_documentation(root: pathlib.Path) -> None:
    """Writes docs/flags.md: what holds for all flags, the overview, and the table of each room."""
    text = "\n\n".join([_HEAD.rstrip("\n"), overview(), markdown_table()])
    (root / "docs" / "flags.md").write_text(text + "\n")


if __name__ == "__main__":
    write_documentation(pathlib.Path())
