"""What a finished run gains and loses by int8: time of one image, and Dice of held-out images.

    pip install '.[benchmarks]'
    python benchmarks/int8.py --run_dir=runs/membrane

The run is exported by `--mode=export --formats=onnx,onnx_int8`. "unet_core bfloat16" is this
package's own prediction, in one pass. All take one held-out image as a NumPy array, pixel values as
in its file, to probabilities as a NumPy array, in one process, in turn, on all cores. "speed" is
the median over the rounds of that variant's speed over "unet_core bfloat16"'s; above 1, it is
faster. OpenVINO, if it is installed, reads the same files; what is not quantized it computes in the
type named last. Dice is of all held-out images, at most 30, as the export checks them.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import numpy as np
from rounds import machine, median_ratio, seconds_per_round

from unet_core import metrics
from unet_core.drawing import tables
from unet_core.errors import UserError
from unet_core.export.onnx_int8 import INT8_FILE
from unet_core.inference.masks import predicted_ids, usual_rule
from unet_core.inference.network import InferenceNetwork
from unet_core.inference.sliding_window import SlidingWindow
from unet_core.inference.trained import open_trained
from unet_core.reports.evaluation import confusion_of
from unet_core.run_directory import RunDirectory
from unet_core.runs.calibration import KnownImages, open_known_images
from unet_core.runs.export import export
from unet_core.runs.finished_run import settings_of_run
from unet_core.runs.process import StopRequest
from unet_core.settings import RunConfig

OURS = "unet_core bfloat16"

Run = Callable[[np.ndarray], np.ndarray]


def onnxruntime_variants(folder: pathlib.Path) -> dict[str, Run]:
    """Returns what ONNX Runtime computes by the files of an export."""
    import onnxruntime

    def variant(name: str) -> Run:
        options = onnxruntime.SessionOptions()
        # Its threads would otherwise spin on while the next variant is measured.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = onnxruntime.InferenceSession(
            folder / name, options, providers=["CPUExecutionProvider"]
        )
        return lambda image: session.run(["probabilities"], {"images": image[np.newaxis]})[0][0]

    return {
        "ONNX Runtime float32": variant("model.onnx"),
        "ONNX Runtime int8": variant(INT8_FILE),
    }


def openvino_variants(folder: pathlib.Path) -> dict[str, Run]:
    """Returns what OpenVINO computes by the files of an export; nothing if it is not installed."""
    if importlib.util.find_spec("openvino") is None:
        print("Left out: openvino is not installed; `pip install '.[benchmarks]'`.")
        return {}
    import openvino

    core = openvino.Core()

    def variant(name: str, precision: str) -> Run:
        hint = {"INFERENCE_PRECISION_HINT": precision}
        compiled = core.compile_model(core.read_model(str(folder / name)), "CPU", hint)
        return lambda image: compiled(image[np.newaxis])["probabilities"][0]

    return {
        "OpenVINO bfloat16": variant("model.onnx", "bf16"),
        "OpenVINO int8, float32": variant(INT8_FILE, "f32"),
        "OpenVINO int8, bfloat16": variant(INT8_FILE, "bf16"),
    }


def dice_of(run: Run, known: KnownImages) -> list[float]:
    """Returns the Dice of each class over all held-out images, and their mean."""
    classes, threshold = known.classes, usual_rule(known.classes).threshold
    counts = [
        confusion_of(known.truth(s), predicted_ids(run(known.as_served(s)), threshold), classes)
        for s in known.held_out
    ]
    found = metrics.scores(np.sum(counts, axis=0), classes.names)
    return [found[f"dice/{name}"] for name in (*classes.names, "mean")]


def measure(variants: dict[str, Run], known: KnownImages, rounds: int) -> list[list[str]]:
    """Returns the rows of the table."""
    image = known.as_served(known.held_out[0])
    seconds = seconds_per_round(
        {name: lambda run=run: run(image) for name, run in variants.items()}, rounds=rounds
    )
    return [
        [
            name,
            f"{1000 * statistics.median(seconds[name]):.1f}",
            f"{1000 * min(seconds[name]):.1f}-{1000 * max(seconds[name]):.1f}",
            f"{median_ratio(seconds[OURS], seconds[name]):.2f}",
            *(f"{value:.4f}" for value in dice_of(run, known)),
        ]
        for name, run in variants.items()
    ]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run_dir", required=True, help="a finished run, with its images")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args(argv)
    asked = RunConfig.of(mode="export", run_dir=args.run_dir, formats=("onnx", "onnx_int8"))
    with tempfile.TemporaryDirectory() as folder:
        exported = pathlib.Path(folder, "exported")
        export(asked.replace(output_dir=str(exported)), StopRequest())
        trained = open_trained(args.run_dir)
        config = settings_of_run(asked, trained.config)
        known = open_known_images(config, RunDirectory(args.run_dir), [trained])
        if known is None or not known.held_out:
            raise UserError(f"{args.run_dir}: has held out no images, which are scored here.")
        overlapping = known.classes.overlapping
        network = InferenceNetwork(trained.model, precision="bfloat16", overlapping=overlapping)
        window, scale = SlidingWindow(network), known.scaling
        variants: dict[str, Run] = {OURS: lambda image: window(scale(image))}
        variants |= onnxruntime_variants(exported) | openvino_variants(exported)
        rows = measure(variants, known, args.rounds)
        megabytes = [(exported / name).stat().st_size / 1e6 for name in ("model.onnx", INT8_FILE)]
    print(machine())
    height, width = known.as_served(known.held_out[0]).shape[:2]
    print(f"{width}x{height} pixels, {args.rounds} rounds, {len(known.held_out)} held-out image(s)")
    print(f"The files have {megabytes[0]:.1f} MB in float32 and {megabytes[1]:.1f} MB in int8.")
    names = [f"Dice {name}" for name in (*known.classes.names, "mean")]
    print(tables.table(["variant", "median ms", "range", "speed", *names], rows))


if __name__ == "__main__":
    main()
