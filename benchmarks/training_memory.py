"""Memory of training beside `fit` and PyTorch, by size of the crops; what recomputing costs.

    python benchmarks/training_memory.py
    python benchmarks/training_memory.py --sizes 256 --precision=float32 --norm

Each program trains the same U-Net on one batch in memory, in a process of its own. Those in
TensorFlow keep freed memory, as the command does; PyTorch is as its users have it. "MB" is the
growth of the process's peak resident memory over what it had with its libraries loaded (Linux);
"ms" the median time of a step after the first two. The programs take turns, and the ratios are
medians of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from unet_core.runs import process

PROGRAMS = {
    "loop": "unet_core",
    "recompute": "unet_core with recomputation",
    "fit": "model.fit",
    "torch": "PyTorch",
}
STEPS = 5


def torch_step(args: argparse.Namespace) -> tuple[int, Callable[[], object]]:
    """Returns the bytes resident before the network is made, and what trains a step."""
    import torch_unet

    args.depth, args.valid = 4, False
    return process.begin_peak(), torch_unet.make_step(args, "cpu")


def tensorflow_step(args: argparse.Namespace) -> tuple[int, Callable[[], object]]:
    """As `torch_step`, for the programs in TensorFlow."""
    import steps_per_second
    import tensorflow as tf

    from unet_core import losses, training
    from unet_core.models.recomputation import Recomputed

    row = f"{args.precision}+norm" if args.norm else args.precision
    tf.zeros([1])
    before = process.begin_peak()
    if args.program == "fit":
        return before, steps_per_second.fit_round(args, row, 1)
    model = steps_per_second.make_network(args, row)
    loop = training.Loop(
        Recomputed(model, size=args.size) if args.program == "recompute" else model,
        steps_per_second.keras.optimizers.AdamW(1e-4),
        loss=lambda logits, batch: losses.cross_entropy(batch[1], logits),
    )
    batch = steps_per_second.make_batch(args, row)
    reports = loop.train(
        lambda *_: tf.data.Dataset.from_tensors(batch).repeat().prefetch(2),
        until_step=10**9,
        report_every_steps=1,
    )
    return before, lambda: next(reports)


def train(args: argparse.Namespace) -> None:
    """Trains by one program and prints what it took."""
    before, step = (torch_step if args.program == "torch" else tensorflow_step)(args)
    seconds = []
    for _ in range(STEPS):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    taken = process.resident("VmHWM") - before
    print(json.dumps({"mb": taken / 1e6, "ms": 1e3 * statistics.median(seconds[2:])}))


def measured(args: argparse.Namespace, program: str, size: int) -> dict[str, float]:
    """Returns what one program took, in a process of its own."""
    command = [sys.executable, __file__, f"--program={program}", f"--size={size}"]
    command += [f"--batch={args.batch}", f"--base_filters={args.base_filters}"]
    command += [f"--precision={args.precision}", *(["--norm"] if args.norm else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--base_filters", type=int, default=32)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--norm", action="store_true", help="with batch norm")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--program", choices=PROGRAMS, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.program:
        train(args)
        return
    rows = []
    for size in args.sizes:
        found: dict[str, list[dict[str, float]]] = {program: [] for program in args.programs}
        for number in range(args.rounds):
            for program, taken in found.items():
                taken.append(measured(args, program, size))
            print(f"{size} pixels, round {number + 1} of {args.rounds}", file=sys.stderr)
        own = found[args.programs[0]]
        for program, taken in found.items():
            row = [str(size), PROGRAMS[program]]
            for unit in ("mb", "ms"):
                median = statistics.median(each[unit] for each in taken)
                ratios = [a[unit] / b[unit] for a, b in zip(taken, own, strict=True)]
                row += [f"{median:,.0f}", f"{statistics.median(ratios):.2f}"]
            rows.append(row)
    from rounds import machine

    from unet_core.drawing import tables

    print(machine())
    print(tables.table(["pixels", "program", "MB", "ratio", "ms/step", "ratio"], rows))


if __name__ == "__main__":
    main()
