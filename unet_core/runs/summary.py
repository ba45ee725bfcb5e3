"""`--mode=summary`: what a network is and costs, without data, and a picture of it."""

from __future__ import annotations

import math
import pathlib

import keras

from unet_core.data.pipeline import check_global_batch_size
from unet_core.drawing.network import draw_network
from unet_core.drawing.tables import table
from unet_core.errors import UserError
from unet_core.files import os_errors, write_whole
from unet_core.inference.trained import build_network, stored_config
from unet_core.models.build import full_size
from unet_core.models.flops import CallWork, uncounted, work_of
from unet_core.models.geometry import tile_geometry
from unet_core.run_directory import RunDirectory
from unet_core.runs import fine_tuning, process, step_memory
from unet_core.runs.finished_run import check_used, settings_of_run
from unet_core.runs.process import StopRequest
from unet_core.runs.step_memory import megabytes
from unet_core.settings import FIELDS, ROOM_OF, RunConfig
from unet_core.settings.network import check_same_network
from unet_core.training import devices

_PICTURE = "network.svg"
_SIDE = 1024


def summary(config: RunConfig, stop: StopRequest) -> None:
    """Shows layers, parameters, operations, reach and memory of a network, and draws it.

    It is that of the settings, or that of the run or export at `run_dir`. A flag file may name the
    folder of a run that is yet to begin.
    """
    folder = config.task.run_dir
    if folder and "run_dir" in config.from_file and not pathlib.Path(folder).exists():
        config = config.replace(run_dir=None)
    config = _config(config if config.task.run_dir else with_classes(config))
    process.prepare_devices(config.training, stop, strategy="none")
    picture = _picture_path(config)
    size, rows = config.data.crop_size, config.training.global_batch_size
    check_global_batch_size(rows, 1, config.training.micro_batches)
    if config.network.precision == "auto":
        config = config.replace(precision=devices.choose_precision()[0])
    meter = step_memory.Meter()
    model = build_network(config)
    for layer in fine_tuning.frozen_layers(model, config.fine_tuning.freeze):
        layer.trainable = False
    work = work_of(model, 1, size, size)
    print(f"{_layer_table(work)}\n")
    figures = network_figures(model, work, config)
    print("\n".join(f"{name + ':':<17}{text}" for name, text in figures.items()) + "\n")
    with os_errors(picture, "cannot be written", "Choose another `output_dir`."):
        picture.parent.mkdir(parents=True, exist_ok=True)
        write_whole(picture, draw_network(model, size, size).encode())
    print(f"Drawn in {picture}.\n", flush=True)
    trial = step_memory.Trial(model, config)
    needed = trial.estimate()
    print(_estimated(needed, config), flush=True)
    free = step_memory.available()
    if not meter.of:
        print("Measured: not on this system, which does not tell a process its peak.")
    elif free is not None and needed.total > free:
        print(f"Measured: not tried, {megabytes(free)} are available.")
    else:
        trial.run()
        print(
            f"Measured: {megabytes(meter.peak())}, the {meter.of} while the network was built and "
            "trained two steps on random images."
        )


def with_classes(config: RunConfig) -> RunConfig:
    """Returns the config with two classes if none were given, and says so."""
    if config.data.classes is not None:
        return config
    print("Of two classes, as none are given by --classes.\n")
    may_overlap = config.network.heads == "sigmoid"
    return config.replace(classes="one,other" if may_overlap else "0:background,1:foreground")


def _config(config: RunConfig) -> RunConfig:
    """Returns the settings to go by, those of the run if one was given.

    Raises:
        UserError: If a setting was given that is not used, or is not that of the run's network.
    """
    if not config.task.run_dir:
        check_used(config)
        return config
    path = RunDirectory(config.task.run_dir).path
    of_run, _ = stored_config(path)
    check_same_network(path, of_run.network.network, config.network.network)
    for name in FIELDS:
        of_network = ROOM_OF[name] == "network" or name in ("classes", "channels")
        if name in config.given and of_network and config[name] != of_run[name]:
            raise UserError(
                f"`{name}` ({config[name]}) differs from that of the run ({of_run[name]}), whose "
                "network is shown. Leave it out, or leave out `run_dir`."
            )
    return settings_of_run(config, of_run)


def _picture_path(config: RunConfig) -> pathlib.Path:
    """Returns where to draw: in `output_dir`, else in the run's folder, else in the current one.

    In a run's folder it replaces what the run has written, elsewhere a file only if `overwrite` is
    given.

    Raises:
        UserError: If there is another file.
    """
    folder = config.prediction.output_dir or config.task.run_dir or "."
    path = pathlib.Path(folder) / _PICTURE
    run = RunDirectory(config.task.run_dir) if config.task.run_dir else None
    if run and run.path == path.parent.absolute() and run.holds_run():
        run.claim(path)
    elif path.exists() and not config.prediction.overwrite:
        raise UserError(
            f"{path}: exists, and is not replaced unless `overwrite` is given. Move it, or choose "
            "another `output_dir`."
        )
    return path


def _layer_table(work: list[CallWork]) -> str:
    total = sum(each.flops or 0 for each in work)
    rows = []
    seen: set[int] = set()
    for each in work:
        layer = each.call.layer
        parameters = layer.count_params() if isinstance(layer, keras.Layer) else 0
        # A layer that is called twice has its parameters once.
        shown = f"{parameters:,}" if parameters and id(layer) not in seen else ""
        seen.add(id(layer))
        share = "not known" if each.flops is None else ""
        if each.flops and total:
            share = f"{each.flops / total:.1%}"
        shape = " x ".join("?" if n is None else str(n) for n in each.outputs[-1][1:])
        rows.append([layer.name, type(layer).__name__, shape, shown, share])
    return table(["layer", "kind", "output", "parameters", "operations"], rows)


def network_figures(model: keras.Model, work: list[CallWork], config: RunConfig) -> dict[str, str]:
    """Returns what a network is and costs, in words, each under its title.

    Args:
        model: The network.
        work: The work of one crop of the settings.
        config: The settings.
    """
    size, rows = config.data.crop_size, config.training.global_batch_size
    trainable = sum(math.prod(v.shape) for v in model.trainable_variables)
    parameters = model.count_params()
    predicting = full_size(model)
    inference = sum(each.flops or 0 for each in work_of(predicting, 1, _SIDE, _SIDE))
    step = 3 * rows * sum(each.flops or 0 for each in work)
    found = tile_geometry(predicting)
    reach = "the whole image"
    if found.halo is not None:
        pixels = 2 * (found.halo + found.cut) + 1
        reach = f"at most {pixels} x {pixels} pixels for one of the output"
    figures = {
        "Parameters": f"{parameters:,}: {trainable:,} trainable, {parameters - trainable:,} not",
        "Inference": f"{inference / _SIDE**2 / 1e3:,.3g} GFLOP a megapixel",
        "Training step": (
            f"{step / 1e9:,.4g} GFLOP: three times forward, {rows} crops of {size} x {size}"
        ),
        "Receptive field": reach,
        "Halo": "unbounded" if found.halo is None else f"{found.halo} pixels",
        "Stride": f"{found.stride} pixels",
        "Precision": config.network.precision,
    }
    missing = uncounted(work)
    if missing:
        figures["Not counted"] = f"the operations of {', '.join(missing)}, not known"
    return figures


def _estimated(needed: step_memory.Estimate, config: RunConfig) -> str:
    parts = {
        "weights": needed.weights,
        f"what {config.optimization.optimizer} and averages keep": needed.optimizer,
        "activations and gradients": needed.tensors,
        "that allocators lose": needed.slack,
        "for the program and its graph": needed.program,
    }
    listed = ", ".join(f"{megabytes(count)} {name}" for name, count in parts.items())
    return (
        "Memory of a training step\n"
        f"Estimated: {megabytes(needed.total)} on a CPU, "
        f"{megabytes(needed.on_device)} on a GPU: {listed}."
    )
