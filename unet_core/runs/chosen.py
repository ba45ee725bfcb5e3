"""What `--mode=choose` has chosen for a folder of folds, as other modes take it over.

    chosen = read_chosen(run, config)             # None if there is nothing to take over
    config = chosen.applied(config)

It holds for the weights and the test-time augmentation that it was chosen with.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec

from unet_core.console import warn
from unet_core.errors import UserError
from unet_core.files import read_json
from unet_core.inference.post_processing import KINDS
from unet_core.run_directory import RunDirectory
from unet_core.settings import RunConfig

_FORMAT = 1
_WITH = ("weights", "tta")
SETTINGS = (*_WITH, "threshold", *KINDS)
"""The settings that are chosen."""
MODES = ("evaluate", "predict", "export")
"""The modes that take them over."""


class Chosen(msgspec.Struct, forbid_unknown_fields=True):
    """What is taken over.

    Attributes:
        weights: As the flag has it, as all of these.
        tta: Likewise.
        threshold: Likewise.
        steps: The step of the chosen weights of each network.
        fill_holes: As the flag has it.
        drop_smaller: Likewise.
        keep_largest: Likewise.
    """

    weights: str
    tta: str
    threshold: str
    steps: list[int]
    fill_holes: tuple[str, ...] = ()
    drop_smaller: tuple[str, ...] = ()
    keep_largest: tuple[str, ...] = ()

    def applied(self, config: RunConfig) -> RunConfig:
        """Returns `config` with what was chosen in place of what was not given, and says so."""
        taken = {name: getattr(self, name) for name in SETTINGS if name not in config.given}
        if config.task.mode == "export" and self.tta != "none":
            # An export averages over no copies, and thresholds are of probabilities as they are.
            taken.pop("threshold", None)
        told = {
            name: value if isinstance(value, str) else ",".join(value)
            for name, value in taken.items()
        }
        flags = " ".join(f"--{name}={text}" for name, text in told.items() if text)
        print(f"As --mode=choose has found best (choice.json): {flags}")
        return config.replace(**taken)


class _Choice(msgspec.Struct):
    format: int = 0
    chosen: Chosen | None = None


def read_chosen(run: RunDirectory, config: RunConfig) -> Chosen | None:
    """Returns what was chosen for the folds in the folder of `run`, if it is to be taken over.

    It is not if other weights or test-time augmentation are given, which is said.

    Raises:
        UserError: If it cannot be read.
    """
    path = run.path / "choice.json"
    if config.task.mode not in MODES or not os.path.lexists(path):
        return None
    what, way = "what `mode` choose has chosen", "Move it away, or choose again."
    chosen = read_json(path, _Choice, what=what, way=way, formats=(_FORMAT,)).chosen
    if chosen is None:
        return None
    try:
        config.replace(**{name: getattr(chosen, name) for name in SETTINGS})
    except UserError as error:
        raise UserError(f"{path}: cannot be read as {what} ({error}). {way}") from error
    other = [
        f"--{name}={config[name]}"
        for name in _WITH
        if name in config.given and config[name] != getattr(chosen, name)
    ]
    if other:
        print(f"{path.name} is left aside, as it was not chosen with {' '.join(other)}.")
        return None
    return chosen


def is_of(chosen: Chosen, steps: Sequence[int]) -> bool:
    """Returns whether networks of `steps` are those that were chosen with; warns if not."""
    if chosen.steps == list(steps):
        return True
    warn(
        f"choice.json is of networks of steps {_listed(chosen.steps)}, and these are of "
        f"{_listed(steps)}, so it is left aside. Choose again by --mode=choose."
    )
    return False


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps))
