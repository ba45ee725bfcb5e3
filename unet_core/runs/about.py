"""What a run is and runs on, gathered for its `about.json`."""

from __future__ import annotations

import datetime
import os
import pathlib
import platform
import shlex
from collections.abc import Sequence
from typing import Any

import cv2
import keras
import numpy as np
import tensorflow as tf

import unet_core
from unet_core.data.pipeline import usable_cores
from unet_core.data.samples import Sample
from unet_core.models.flops import work_of
from unet_core.reports.about import Part, RunNote, SampleOf, Session
from unet_core.runs.dataset import DataSet
from unet_core.runs.plan import Plan
from unet_core.runs.summary import network_figures
from unet_core.settings import KINDS, RunConfig
from unet_core.training import devices


def begin_note(plan: Plan, model: keras.Model, given: RunConfig, start: int) -> RunNote:
    """Returns the note of a run that goes on from step `start`, written once.

    Args:
        plan: What the run will do.
        model: Its network.
        given: The settings as they were given.
        start: The step it goes on from.

    Raises:
        UserError: If its folder holds another `about.json`.
    """
    size = plan.config.data.crop_size
    now = datetime.datetime.now(datetime.UTC)
    session = Session(
        command=command_of(given),
        began=f"{now:%Y-%m-%d %H:%M:%S}",
        first_step=start,
        last_step=start,
        versions=versions(),
        hardware={**hardware(), "Devices": devices.describe_devices(plan.strategy)},
    )
    return RunNote(
        plan.run.about,
        session,
        training=_part(plan.data, plan.training_samples),
        held_out=_part(plan.data, plan.held_out),
        network=network_figures(model, work_of(model, 1, size, size), plan.config),
    )


def command_of(config: RunConfig) -> str:
    """Returns the command that gives the settings that were given, of flag files too."""
    flags = [_flag(name, config[name]) for name in KINDS if name in config.given]
    return shlex.join(["python", "train_loop.py", *flags])


def versions() -> dict[str, str]:
    """Returns the versions of the programs that matter, by name."""
    return {
        "unet_core": unet_core.__version__,
        "Python": platform.python_version(),
        "TensorFlow": tf.__version__,
        "Keras": keras.__version__,
        "NumPy": np.__version__,
        "OpenCV": cv2.__version__,
    }


def hardware() -> dict[str, str]:
    """Returns the machine in words, by title; what the system does not tell is left out."""
    found = {"System": platform.platform(), "Processor": _processor(), "Memory": _memory()}
    found["Cores"] = str(usable_cores())
    names = [
        tf.config.experimental.get_device_details(gpu).get("device_name", "unknown")
        for gpu in tf.config.list_physical_devices("GPU")
    ]
    found["GPUs"] = ", ".join(names)
    return {title: text for title, text in found.items() if text}


def _part(data: DataSet, samples: Sequence[Sample]) -> Part:
    shapes, counts = data.shapes(samples), data.known_counts(samples)
    return Part(
        samples=[
            SampleOf(name=each.name, width=width, height=height, group=each.group)
            for each, (height, width) in shapes.items()
        ],
        class_pixels=None
        if counts is None
        else dict(zip(data.read.classes.names, map(int, counts), strict=True)),
    )


def _flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no{name}"
    if isinstance(value, tuple):
        return f"--{name}={','.join(map(str, value))}"
    return f"--{name}={'' if value is None else value}"


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _memory() -> str:
    try:
        count = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return ""
    return f"{count / 2**30:.0f} GiB"
