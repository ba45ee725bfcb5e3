"""Steps per second of this loop against `model.fit`, on the same network and the same data.

    python benchmarks/steps_per_second.py
    python benchmarks/steps_per_second.py --rows tiny-unet tiny-pixel --rounds=15
    python benchmarks/steps_per_second.py --peers torch

Both train a U-Net with AdamW on binary cross entropy from one batch that lies in memory and
repeats, in one process, in turn. "like for like" is fit's time over the loop's with the same layers
and precision; "keras norm" is the same with `keras.layers.BatchNormalization` in fit's network, and
"float32 fit" is fit in float32, with that layer where there is normalisation. Each is the median
of the rounds' ratios; above 1 the loop is faster. The rows "tiny" are networks so small that the
steps' own cost matters: a U-Net of 6 convolutions on 32x32 pixels, and a classifier of single
pixels on 8x8. They stand against fit at its default settings, and with 32 steps per execution. The
rows "+xla" (--rows float32+xla) compile the loop's network with XLA; fit stays without it. With
`--peers torch` a process beside trains the same U-Net by PyTorch (`torch_unet.py`), in turn with
these; "torch" is its time over the loop's.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import keras
import numpy as np
import tensorflow as tf
from rounds import machine, median_ratio, seconds_per_round

from unet_core import losses, training
from unet_core.drawing import tables
from unet_core.models import build
from unet_core.models.layers import FusedBatchNorm

ROWS = ("float32", "float32+norm", "bfloat16", "bfloat16+norm", "tiny-unet", "tiny-pixel")
XLA_ROWS = ("float32+xla", "bfloat16+xla")


def make_network(args: argparse.Namespace, row: str, *, keras_norm: bool = False) -> keras.Model:
    if row == "tiny-pixel":
        layers = keras.layers
        scale, hidden = layers.Rescaling(1 / 255), layers.Conv2D(4, 1, activation="relu")
        return keras.Sequential([keras.Input((None, None, 1)), scale, hidden, layers.Conv2D(1, 1)])
    precision, _, kind = row.partition("+")
    settings = dict(depth=4, base_filters=args.base_filters, precision=precision)
    if row == "tiny-unet":
        settings = dict(depth=1, base_filters=2)
    model = build.make_network(
        classes=2, normalization="batch" if kind == "norm" else "none", **settings
    )

    def with_keras_norm(layer):
        if isinstance(layer, FusedBatchNorm):
            policy = layer.dtype_policy
            return keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-3, dtype=policy)
        return layer.__class__.from_config(layer.get_config())

    return keras.models.clone_model(model, clone_function=with_keras_norm) if keras_norm else model


def make_batch(args: argparse.Namespace, row: str) -> tuple[np.ndarray, np.ndarray]:
    size = {"tiny-unet": 32, "tiny-pixel": 8}.get(row, args.size)
    images = np.random.default_rng(0).integers(0, 256, (args.batch, size, size, 1)).astype(np.uint8)
    return images, (images[..., 0] > 127).astype(np.uint8)


def loop_round(args: argparse.Namespace, row: str, steps: int):
    """Returns a function that trains `steps` steps by the loop."""
    batch = make_batch(args, row)
    loop = training.Loop(
        make_network(args, row),
        keras.optimizers.AdamW(1e-4),
        loss=lambda logits, batch: losses.cross_entropy(batch[1], logits),
        jit_compile=row in XLA_ROWS,
    )
    reports = loop.train(
        lambda *_: tf.data.Dataset.from_tensors(batch).repeat().prefetch(2),
        until_step=10**9,
        report_every_steps=steps,
    )
    return lambda: next(reports)


def fit_round(
    args: argparse.Namespace, row: str, steps: int, *, keras_norm: bool = False, per_call: int = 1
):
    """Returns a function that trains `steps` steps by `model.fit`."""
    model = make_network(args, row, keras_norm=keras_norm)
    model.compile(
        keras.optimizers.AdamW(1e-4),
        # Keras would squeeze one of two shapes that differ in rank, and makes floats of the ids.
        loss=lambda masks, logits: losses.cross_entropy(tf.cast(masks[..., 0], tf.int32), logits),
        jit_compile=False,
        steps_per_execution=per_call,
    )
    images, masks = make_batch(args, row)
    data = tf.data.Dataset.from_tensors((images, masks[..., None])).repeat().prefetch(2)
    return lambda: model.fit(data, steps_per_epoch=steps, epochs=1, verbose=0, shuffle=False)


def torch_round(args: argparse.Namespace, row: str, steps: int):
    """Returns a function that trains `steps` steps by PyTorch, in a process that waits between."""
    precision, _, kind = row.partition("+")
    script = pathlib.Path(__file__).parent / "torch_unet.py"
    command = [sys.executable, str(script), f"--precision={precision}", f"--steps={steps}"]
    command += [f"--batch={args.batch}", f"--size={args.size}"]
    command += [f"--base_filters={args.base_filters}", *(["--norm"] if kind == "norm" else [])]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdin is not None
    assert process.stdout is not None
    to, of = process.stdin, process.stdout
    if not of.readline().startswith("ready"):
        sys.exit("the process of PyTorch has ended; what it said is above")

    def run() -> None:
        print(file=to)
        of.readline()

    return run


def measure(args: argparse.Namespace) -> list[list[str]]:
    """Returns the rows of the table, everything measured in the same rounds."""
    variants = {}
    for row in args.rows if args.peers else ():
        if row in ROWS and not row.startswith("tiny"):
            variants[f"torch {row}"] = torch_round(args, row, args.steps)
    for row in args.rows:
        steps = args.tiny_steps if row.startswith("tiny") else args.steps
        variants[f"loop {row}"] = loop_round(args, row, steps)
        variants[f"fit {row}"] = fit_round(args, row, steps)
        if row.endswith("+norm"):
            variants[f"keras norm {row}"] = fit_round(args, row, steps, keras_norm=True)
        if row.startswith("tiny"):
            variants[f"fit 32 {row}"] = fit_round(args, row, steps, per_call=32)
    seconds = seconds_per_round(variants, rounds=args.rounds)

    def ratio(name: str, loop: list[float]) -> str:
        return f"{median_ratio(seconds[name], loop):.2f}" if name in seconds else ""

    rows = []
    for row in args.rows:
        steps = args.tiny_steps if row.startswith("tiny") else args.steps
        loop, fit = seconds[f"loop {row}"], seconds[f"fit {row}"]
        base = "keras norm float32+norm" if row.endswith("+norm") else "fit float32"
        rows.append(
            [
                row,
                *(f"{1000 * statistics.median(times) / steps:.2f}" for times in (loop, fit)),
                f"{args.batch * steps / statistics.median(loop):.1f}",
                f"{median_ratio(fit, loop):.2f}",
                ratio(f"keras norm {row}", loop),
                "" if row.startswith("tiny") else ratio(base, loop),
                *([ratio(f"torch {row}", loop)] if args.peers else []),
                f"{min(loop) / max(loop):.2f}",
            ]
        )
        if row.startswith("tiny"):
            many = seconds[f"fit 32 {row}"]
            rows.append(
                [
                    f"{row}, fit 32/call",
                    f"{1000 * statistics.median(loop) / steps:.2f}",
                    f"{1000 * statistics.median(many) / steps:.2f}",
                    f"{args.batch * steps / statistics.median(loop):.1f}",
                    f"{median_ratio(many, loop):.2f}",
                    *[""] * (4 if args.peers else 3),
                ]
            )
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", choices=ROWS + XLA_ROWS, default=list(ROWS))
    parser.add_argument("--peers", nargs="+", choices=["torch"], default=[])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="steps per round")
    parser.add_argument(
        "--tiny_steps", type=int, default=400, help="steps per round of the tiny one"
    )
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=256, help="pixels a side")
    parser.add_argument("--base_filters", type=int, default=32)
    args = parser.parse_args(argv)
    print(machine())
    print(f"batch {args.batch}, {args.size} px, base {args.base_filters}, {args.rounds} rounds")
    header = ["network", "loop ms/step", "fit ms/step", "loop images/s"]
    header += ["like for like", "keras norm", "float32 fit"]
    header += [*args.peers, "fastest/slowest round"]
    print(tables.table(header, measure(args)))


if __name__ == "__main__":
    main()
