"""Images per second of a training step: each encoder with the U-Net decoder, each normalisation.

    python benchmarks/models.py
    python benchmarks/models.py --rows unet unet+group residual --rounds=15

The loop trains each network with AdamW on cross-entropy from one batch that lies in memory and
repeats, all in one process, in turn. It computes in bfloat16 where the CPU or GPU has it, else in
float32; the first line says which. A row is an encoder of `ENCODERS`, or the encoder unet with a
normalisation (unet+batch). "of unet" is the images per second over those of the plain U-Net, the
median of the rounds' ratios; the last column counts the floating-point operations of a step as
`unet_core.models.flops` does, per second.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
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
from unet_core.models.blocks import NORMALIZATIONS
from unet_core.models.encoders import ENCODERS
from unet_core.models.flops import training_flops
from unet_core.training import devices

PLAIN = "unet"
NORMALISED = tuple(f"{PLAIN}+{name}" for name in NORMALIZATIONS if name != "none")
ROWS = (*ENCODERS, *NORMALISED)


def make_network(args: argparse.Namespace, row: str, precision: str) -> keras.Model:
    encoder, _, normalization = row.partition("+")
    return build.make_network(
        classes=2,
        channels=args.channels,
        encoder=encoder,
        decoder="transpose",
        depth=args.depth,
        base_filters=args.base_filters,
        normalization=normalization or "none",
        precision=precision,
    )


def make_round(args: argparse.Namespace, model: keras.Model):
    """Returns a function that trains `args.steps` steps by the loop."""
    shape = (args.batch, args.size, args.size, args.channels)
    images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    batch = images, (images[..., 0] > 127).astype(np.uint8)
    reports = training.Loop(
        model,
        keras.optimizers.AdamW(1e-4),
        loss=lambda logits, batch: losses.cross_entropy(batch[1], logits),
    ).train(
        lambda *_: tf.data.Dataset.from_tensors(batch).repeat().prefetch(2),
        until_step=10**9,
        report_every_steps=args.steps,
    )
    return lambda: next(reports)


def measure(args: argparse.Namespace, precision: str) -> list[list[str]]:
    """Returns the rows of the table, everything measured in the same rounds."""
    names = list(dict.fromkeys([PLAIN, *args.rows]))
    networks = {name: make_network(args, name, precision) for name in names}
    variants = {name: make_round(args, model) for name, model in networks.items()}
    seconds = seconds_per_round(variants, rounds=args.rounds)
    rows = []
    for name, model in networks.items():
        step = statistics.median(seconds[name]) / args.steps
        flops = training_flops(model, args.batch, args.size, args.size)
        rows.append(
            [
                name,
                f"{model.count_params() / 1e6:.2f}",
                f"{1000 * step:.1f}",
                f"{args.batch / step:.2f}",
                f"{median_ratio(seconds[PLAIN], seconds[name]):.2f}",
                f"{flops / 1e9 / step:.1f}",
            ]
        )
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2, help="steps per round")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=256, help="pixels a side")
    parser.add_argument("--channels", type=int, default=1, help="1 or 3")
    parser.add_argument("--depth", type=int, default=4, help="halvings")
    parser.add_argument("--base_filters", type=int, default=32)
    args = parser.parse_args(argv)
    precision, reason = devices.choose_precision()
    print(machine())
    print(f"{precision}: {reason}")
    print(
        f"batch {args.batch}, {args.size} px, depth {args.depth}, base {args.base_filters}, "
        f"{args.rounds} rounds of {args.steps} step(s)"
    )
    header = ["network", "million weights", "ms/step", "images/s", "of unet", "GFLOP/s"]
    print(tables.table(header, measure(args, precision)))


if __name__ == "__main__":
    main()
