"""Latency and throughput of inference: this package, Keras, PyTorch, ONNX Runtime and OpenVINO.

    python benchmarks/inference.py
    python benchmarks/inference.py --size=256 --batches 1 --rounds=20

All compute the logits of one U-Net with the same random weights, from uint8 images as a NumPy array
to logits as a NumPy array, in one process, in turn. "unet_core" is `InferenceNetwork` in a
`tf.function`; "predict" is `model.predict` on the network as it is trained; the PyTorch module is
written as its users write it, in channels-last memory, in inference mode, its bfloat16 variant with
weights in bfloat16; ONNX Runtime and OpenVINO read this package's ONNX file. "ours/it" is the
median over the rounds of "unet_core bfloat16"'s speed over that variant's; above 1, this package
is faster. Before anything is timed, all outputs are compared with those of unet_core float32.
Variants whose packages are missing are left out.

OpenMP's and TBB's threads wait for each other after every layer, so that PyTorch and OpenVINO lose
far more than TensorFlow where other processes want the same cores. On a machine that is not idle,
one core tells more: `taskset -c 0 python benchmarks/inference.py`.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import pathlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import keras
import numpy as np
import tensorflow as tf
from rounds import machine, median_ratio, seconds_per_round

from unet_core.data.intensities import Scaling
from unet_core.drawing import tables
from unet_core.export import onnx_file
from unet_core.inference.network import InferenceNetwork
from unet_core.models.build import make_network

if TYPE_CHECKING:
    import torch

OURS = "unet_core bfloat16"
REFERENCE = "unet_core float32"
DEPTH = 4
# Largest difference of a logit, as a share of the largest logit.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05}

Run = Callable[[np.ndarray], np.ndarray]


def make_models(base_filters: int) -> dict[str, keras.Model]:
    """Returns the network by its precision, with the same weights."""
    models = {
        precision: make_network(classes=2, base_filters=base_filters, precision=precision)
        for precision in ("float32", "bfloat16")
    }
    rng = np.random.default_rng(0)
    for variable in models["float32"].variables:
        if variable.name == "bias":
            variable.assign(rng.normal(0, 0.1, variable.shape))
    models["bfloat16"].set_weights(models["float32"].get_weights())
    return models


def tensorflow_variants(models: dict[str, keras.Model]) -> dict[str, Run]:
    spec = tf.TensorSpec([None, None, None, 1], tf.uint8)
    variants = {}
    for precision, model in models.items():
        network = InferenceNetwork(model).layers
        run = tf.function(
            lambda images, network=network: network(images, training=False), input_signature=[spec]
        )
        variants[f"unet_core {precision}"] = lambda images, run=run: run(images).numpy()
    for precision, model in models.items():
        variants[f"predict {precision}"] = lambda images, model=model: model.predict(
            images, batch_size=len(images), verbose=0
        )
    return variants


def torch_variants(model: keras.Model) -> dict[str, Run]:
    import torch

    def variant(dtype) -> Run:
        network = torch_unet(model).eval().to(dtype=dtype, memory_format=torch.channels_last)

        @torch.inference_mode()
        def run(images):
            # [B, H, W, C] in memory is [B, C, H, W] in channels-last memory.
            x = torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.float32)
            logits = network((x * (4 / 255) - 2).to(dtype))
            return logits.permute(0, 2, 3, 1).to(torch.float32).numpy()

        return run

    return {"PyTorch float32": variant(torch.float32), "PyTorch bfloat16": variant(torch.bfloat16)}


def torch_unet(model: keras.Model) -> torch.nn.Module:
    """Returns the network of `model` in PyTorch, with its weights."""
    import torch
    from torch_unet import UNet

    network = UNet(DEPTH, model.get_layer("down0_conv1").filters)
    for name, part in network.parts.items():
        kernel, bias = map(keras.ops.convert_to_numpy, model.get_layer(name).weights)
        part.weight.data = torch.tensor(kernel.transpose(3, 2, 0, 1).copy())
        part.bias.data = torch.tensor(bias)
    return network


def logits_onnx(model: keras.Model) -> bytes:
    """Returns this package's ONNX file, without a margin, cut off at the logits."""
    import onnx

    proto = onnx_file.make_onnx(model, Scaling("range"), ("0", "1"))
    graph = proto.graph
    maker = {output: node for node in graph.node for output in node.output}
    logits = maker[maker["probabilities"].input[1]].input[0]
    last = list(graph.node).index(maker[logits])
    del graph.node[last + 1 :], graph.output[:]
    graph.output.append(
        onnx.helper.make_tensor_value_info(logits, onnx.TensorProto.FLOAT, [None, None, None, 1])
    )
    return proto.SerializeToString()


def onnxruntime_variants(model: keras.Model) -> dict[str, Run]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Its threads would otherwise spin on while the next variant is measured.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(
        logits_onnx(model), options, providers=["CPUExecutionProvider"]
    )
    return {"ONNX Runtime float32": lambda images: session.run(None, {"images": images})[0]}


def openvino_variants(model: keras.Model) -> dict[str, Run]:
    import openvino

    core = openvino.Core()
    loaded = core.read_model(logits_onnx(model))

    def variant(precision: str) -> Run:
        compiled = core.compile_model(loaded, "CPU", {"INFERENCE_PRECISION_HINT": precision})
        return lambda images: compiled(images)[0]

    return {"OpenVINO float32": variant("f32"), "OpenVINO bfloat16": variant("bf16")}


PEERS = (
    (("torch",), torch_variants),
    (("onnx", "onnxruntime"), onnxruntime_variants),
    (("onnx", "openvino"), openvino_variants),
)


def make_variants(models: dict[str, keras.Model]) -> tuple[dict[str, Run], list[str]]:
    """Returns what is measured, and a line about each peer that is not installed."""
    variants, missing = tensorflow_variants(models), []
    for packages, make in PEERS:
        absent = [name for name in packages if importlib.util.find_spec(name) is None]
        if absent:
            missing.append(
                f"Left out: {', '.join(absent)} not installed; `pip install '.[benchmarks]'`."
            )
        else:
            variants.update(make(models["float32"]))
    return variants, missing


def check_outputs(variants: dict[str, Run], images: np.ndarray) -> list[str]:
    """Returns a line on each precision's agreement with the reference.

    Raises:
        RuntimeError: If a variant computes something else.
    """
    expected = variants[REFERENCE](images)
    worst = dict.fromkeys(TOLERANCE, 0.0)
    for name, run in variants.items():
        precision = name.rpartition(" ")[2]
        difference = float(np.abs(run(images) - expected).max() / np.abs(expected).max())
        if not difference <= TOLERANCE[precision]:
            raise RuntimeError(
                f"{name} differs from {REFERENCE} by {difference:.2e} of the largest logit; "
                f"expected at most {TOLERANCE[precision]:g}."
            )
        worst[precision] = max(worst[precision], difference)
    return [
        f"all {precision} outputs agree with {REFERENCE}: largest difference "
        f"{worst[precision]:.1e} of the largest logit (tolerance {limit:g})"
        for precision, limit in TOLERANCE.items()
    ]


def measure(variants: dict[str, Run], images: np.ndarray, rounds: int) -> list[list[str]]:
    """Returns the rows of the table for one batch."""
    seconds = seconds_per_round(
        {name: lambda run=run: run(images) for name, run in variants.items()}, rounds=rounds
    )
    pixels = images.size / 1e6
    rows = []
    for name, times in seconds.items():
        p50, p90, p99 = np.percentile(times, (50, 90, 99))
        rows.append(
            [
                name,
                str(len(images)),
                f"{pixels / p50:.3g}",
                *(f"{1000 * value:.1f}" for value in (p50, p90, p99)),
                f"{median_ratio(times, seconds[OURS]):.3g}",
            ]
        )
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512, help="pixels a side, a multiple of 16")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--base_filters", type=int, default=32)
    args = parser.parse_args(argv)
    variants, missing = make_variants(make_models(args.base_filters))
    print(machine())
    print(f"{args.size} px, base {args.base_filters}, {args.rounds} rounds")
    print("\n".join(missing), end="\n" * bool(missing))
    shape = (max(args.batches), args.size, args.size, 1)
    images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    print("\n".join(check_outputs(variants, images[:1])))
    rows = [row for batch in args.batches for row in measure(variants, images[:batch], args.rounds)]
    header = ["variant", "batch", "Mpixel/s", "p50 ms", "p90 ms", "p99 ms", "ours/it"]
    print(tables.table(header, rows))


if __name__ == "__main__":
    main()
