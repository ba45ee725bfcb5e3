"""All settings of a run, composed of those of each room."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

import msgspec

from unet_core.conventions import names_overlapping
from unet_core.errors import UserError
from unet_core.settings.augmentation import AugmentationSettings
from unet_core.settings.controls import ControlSettings
from unet_core.settings.data import DataSettings
from unet_core.settings.fields import PAIR_RULE, check_fields, kinds_of, setting
from unet_core.settings.fine_tuning import FineTuningSettings
from unet_core.settings.loss import LossSettings
from unet_core.settings.modes import EVERY, MODES, RUN
from unet_core.settings.network import NetworkSettings
from unet_core.settings.optimization import OptimizationSettings
from unet_core.settings.prediction import PredictionSettings
from unet_core.settings.search import SearchSettings
from unet_core.settings.training import TrainingSettings


@dataclasses.dataclass(frozen=True)
class TaskSettings:
    """What to do, and where the run is."""

    mode: str = setting("train", "What to do.", modes=EVERY, of_run=False, choices=tuple(MODES))
    run_dir: str | None = setting(
        None,
        "Folder of the run: checkpoints, history, scores, pictures.",
        modes=(*RUN, "merge", "report", "check_data"),
        of_run=False,
        is_path=True,
    )
    compare: tuple[str, ...] = setting(
        (),
        "With --mode=report: folders of runs to put side by side, on a page of their own.",
        modes=("report",),
        of_run=False,
        is_path=True,
    )

    def __post_init__(self):
        check_fields(self)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The settings of one run, by room. Only the code that composes a run sees it whole.

    Attributes:
        given: Names of the settings that were given; the others have their defaults.
        from_file: Those of them that stand in a flag file and not on the command line.
    """

    task: TaskSettings = dataclasses.field(default_factory=TaskSettings)
    data: DataSettings = dataclasses.field(default_factory=DataSettings)
    augmentation: AugmentationSettings = dataclasses.field(default_factory=AugmentationSettings)
    network: NetworkSettings = dataclasses.field(default_factory=NetworkSettings)
    loss: LossSettings = dataclasses.field(default_factory=LossSettings)
    optimization: OptimizationSettings = dataclasses.field(default_factory=OptimizationSettings)
    fine_tuning: FineTuningSettings = dataclasses.field(default_factory=FineTuningSettings)
    training: TrainingSettings = dataclasses.field(default_factory=TrainingSettings)
    controls: ControlSettings = dataclasses.field(default_factory=ControlSettings)
    search: SearchSettings = dataclasses.field(default_factory=SearchSettings)
    prediction: PredictionSettings = dataclasses.field(default_factory=PredictionSettings)
    given: frozenset[str] = dataclasses.field(default=frozenset(), compare=False)
    from_file: frozenset[str] = dataclasses.field(default=frozenset(), compare=False)

    def __post_init__(self):
        _check_heads(self)

    @classmethod
    def of(cls, **values: Any) -> RunConfig:
        """Returns the config with these settings, by their names, and the defaults of the others.

        Raises:
            UserError: If there is no such setting, a value breaks its rule, or `heads` and others
                contradict each other.
        """
        return cls(given=frozenset(values)).replace(**values)

    def replace(self, **values: Any) -> RunConfig:
        """Returns a copy with other values of these settings.

        Raises:
            UserError: As `of`.
        """
        unknown = sorted(set(values) - set(FIELDS))
        if unknown:
            nearest = difflib.get_close_matches(unknown[0], FIELDS, n=3, cutoff=0)
            raise UserError(f"`{unknown[0]}` is not a setting; perhaps {' or '.join(nearest)}.")
        by_room: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            by_room.setdefault(ROOM_OF[name], {})[name] = value
        rooms: dict[str, Any] = {}
        problems: list[str] = []
        for room, changed in by_room.items():
            before = getattr(self, room)
            try:
                rooms[room] = _checked(type(before), vars(before) | changed)
            except UserError as error:
                problems += error.problems
        if problems:
            raise UserError(*problems)
        return dataclasses.replace(self, **rooms)

    def values(self) -> dict[str, Any]:
        """Returns every setting by its name."""
        return {name: self[name] for name in FIELDS}

    def changed(self) -> dict[str, Any]:
        """Returns the settings of the run that do not have their defaults, by name."""
        return {
            name: self[name]
            for name, field in FIELDS.items()
            if field.metadata["of_run"] and self[name] != field.default
        }

    def __getitem__(self, name: str) -> Any:
        """Returns one setting by its name."""
        return getattr(getattr(self, ROOM_OF[name]), name)

    def names_own_code(self) -> bool:
        """Returns whether a setting names a function of one's own, as my_module:my_function."""
        own = ("network", "loss", "metric", "augmentation", "control", "tracker")
        return any(":" in self[name] for name in own)

    def differences(self, other: RunConfig) -> list[str]:
        """Returns the names of the binding settings in which two configs differ."""
        return [name for name in binding_settings() if self[name] != other[name]]

    def stored(self) -> dict[str, Any]:
        """Returns the settings as they are stored in JSON."""
        return msgspec.to_builtins(self.values())

    @classmethod
    def from_stored(cls, settings: Mapping[str, Any]) -> RunConfig:
        """Returns the config whose settings were stored by `stored`.

        A setting that is not there has its default. Runs of before had the switch `batch_norm` in
        place of `normalization`.

        Raises:
            UserError: If there is an unknown setting, or a value breaks its rule.
        """
        settings = dict(settings)
        if "batch_norm" in settings:
            settings["normalization"] = "batch" if settings.pop("batch_norm") else "none"
        return cls.of(**settings)


def _check_heads(config: RunConfig) -> None:
    """Checks that classes are written as `heads` needs them, and that nothing else excludes them.

    Raises:
        UserError: If not.
    """
    heads, classes = config.network.heads, config.data.classes
    if classes is None:
        return
    if heads == "softmax" and names_overlapping(classes):
        raise UserError(
            f"`classes` ({classes}) must be value:name,value:name. Names alone are classes that "
            "may overlap; for these set `heads` to sigmoid."
        )
    if heads == "softmax":
        return
    if not names_overlapping(classes):
        raise UserError(
            f"`classes` ({classes}) must be names alone with `heads` sigmoid, such as "
            "cells,nuclei, one for each folder of `mask_folder`: these masks have no values, and "
            "what no mask claims is of no class."
        )
    for name in ("border_weight", "stray_values", "mask_format"):
        if config[name] != FIELDS[name].default:
            raise UserError(
                f"`{name}` ({config[name]}) is for classes that exclude one another, and those of "
                "`heads` sigmoid may overlap. Leave one of them out."
            )


def _checked(room: type, values: Mapping[str, Any]) -> Any:
    """Returns the settings of a room, types checked too.

    Raises:
        UserError: If a value has another type or breaks its rule.
    """
    try:
        return msgspec.convert(dict(values), room)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        text, _, place = str(error).partition(" - at `$.")
        name = place.rstrip("`")
        if name in kinds_of(room) and kinds_of(room)[name].is_pair:
            raise UserError(PAIR_RULE.format(name=name, value=values[name])) from None
        raise UserError(f"`{name}` ({values.get(name.partition('[')[0])!r}): {text}.") from None


ROOMS: dict[str, type] = {
    "task": TaskSettings,
    "data": DataSettings,
    "augmentation": AugmentationSettings,
    "network": NetworkSettings,
    "loss": LossSettings,
    "optimization": OptimizationSettings,
    "fine_tuning": FineTuningSettings,
    "training": TrainingSettings,
    "controls": ControlSettings,
    "search": SearchSettings,
    "prediction": PredictionSettings,
}
"""The settings of each room, in the order in which a person needs them."""
FIELDS = {field.name: field for room in ROOMS.values() for field in dataclasses.fields(room)}
"""Every setting by its name, in the order of the rooms."""
ROOM_OF = {field.name: name for name, room in ROOMS.items() for field in dataclasses.fields(room)}
"""The room of each setting by its name."""
KINDS = {name: kinds_of(ROOMS[room])[name] for name, room in ROOM_OF.items()}
"""What the values of each setting are, by its name."""


def binding_settings() -> list[str]:
    """Returns the names of the settings that change the weights a run ends with."""
    return [name for name, field in FIELDS.items() if field.metadata["binds"]]
