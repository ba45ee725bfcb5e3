"""What can be said of the flags before TensorFlow is loaded: every mistake at once."""

from __future__ import annotations

import os

from unet_core.data.classes import CLASSES_MISSING, ClassMap
from unet_core.errors import UserError
from unet_core.files import printable
from unet_core.settings import FIELDS, RunConfig
from unet_core.settings.modes import TRAIN
from unet_core.settings.prediction import parse_threshold

_SCORES_OF_A_CLASS = ("dice", "iou", "precision", "recall", "f1")


def check_flags(config: RunConfig) -> None:
    """Checks what a training needs, that the data are there, and the names of classes.

    Raises:
        UserError: If anything is wrong; the message lists every problem.
    """
    if config.task.mode not in TRAIN:
        return
    data, mode = config.data, config.task.mode
    typed = config.given - config.from_file
    problems = [
        unused(name, mode) for name in sorted(typed) if mode not in FIELDS[name].metadata["modes"]
    ]
    problems += [
        f"`{name}` ({printable(path)}) is not text in UTF-8, as what a run stores must be. Rename "
        "the folder."
        for name, path in config.values().items()
        if FIELDS[name].metadata["is_path"] and isinstance(path, str) and not _is_text(path)
    ]
    if mode in ("train", "sweep") and not config.task.run_dir:
        problems.append("`run_dir` is missing; it names the folder that the run is kept in.")
    if not (data.data_dir or data.synthetic_data):
        problems.append("`data_dir` is missing; it names the folder of images and masks.")
    if data.data_dir and not os.path.exists(data.data_dir):
        problems.append(f"`data_dir` ({data.data_dir}): there is no such folder.")
    if data.data_dir and "synthetic_data" in typed and data.synthetic_data:
        problems.append(
            f"`synthetic_data` and `data_dir` ({data.data_dir}) were both given; slices are not "
            "drawn into a folder of yours. Leave one of them out."
        )
    try:
        if data.classes is None:
            raise UserError(CLASSES_MISSING)
        problems += _names_of_no_class(config, ClassMap.parse(data.classes))
    except UserError as error:
        problems += error.problems
    if problems:
        raise UserError(*problems)


def unused(name: str, mode: str) -> str:
    """Returns that a setting is not used with a mode."""
    users = ", ".join(sorted(FIELDS[name].metadata["modes"]))
    return f"`{name}` is not used with `mode` {mode}, but with {users}. Leave it out."


def _names_of_no_class(config: RunConfig, classes: ClassMap) -> list[str]:
    """Returns one problem with all settings that name a class which there is not, or none."""
    prediction = config.prediction
    score, _, of_class = config.training.monitor.partition("/")
    named = {
        "overlap_classes": config.loss.overlap_classes,
        "clear_class": (config.data.clear_class,),
        "foreground_classes": config.data.foreground_classes,
        "monitor": (of_class,) if score in _SCORES_OF_A_CLASS and of_class != "mean" else (),
        "threshold": tuple(parse_threshold(prediction.threshold)),
        "object_class": (prediction.object_class,),
        "fill_holes": prediction.fill_holes,
        "drop_smaller": tuple(item.partition(":")[0] for item in prediction.drop_smaller),
        "keep_largest": prediction.keep_largest,
    }
    wrong = {
        name: ",".join(unknown)
        for name, given in named.items()
        if (unknown := [each for each in given if each and each not in classes.names])
    }
    if not wrong:
        return []
    listed = ", ".join(f"`{name}` ({text})" for name, text in wrong.items())
    return [
        f"{listed}: no class of this name is in `classes`, which has {', '.join(classes.names)}. "
        "Name one of these, or leave the flag out."
    ]


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:  # Bytes of a name that Python could not decode.
        return False
    return True
