"""What of a training step is spent in which kernels of oneDNN, by its own log.

    python benchmarks/kernels.py
    python benchmarks/kernels.py --rows float32 bfloat16+norm --steps=10

For each row of `steps_per_second.py` a process trains some steps as they are, one with an operation
at a time, and one does so with oneDNN's log of what it runs (ONEDNN_VERBOSE=profile_exec), because
kernels that run at once, on the same cores, would both count. Milliseconds are of one step: "step"
and "one at a time" are medians, "convolutions" is the sum of their kernels, backward ones included,
"other kernels" the rest of the log. Only on CPUs.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

MARK = "steps begin"
WARM = 3


def train(args: argparse.Namespace) -> None:
    """Trains one row and prints the median time of a step."""
    import steps_per_second

    if args.one_at_a_time:
        steps_per_second.tf.config.threading.set_inter_op_parallelism_threads(1)
    step = steps_per_second.loop_round(args, args.row, 1)
    for _ in range(WARM):
        step()
    print(MARK, flush=True)
    seconds = []
    for _ in range(args.steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"ms": 1e3 * statistics.median(seconds)}), flush=True)


def trained(args: argparse.Namespace, row: str, *, one_at_a_time: bool, log: bool = False) -> str:
    """Returns what the process of a row prints after its first steps."""
    command = [sys.executable, __file__, f"--row={row}", f"--steps={args.steps}"]
    command += [f"--batch={args.batch}", f"--size={args.size}"]
    command += [f"--base_filters={args.base_filters}"]
    command += ["--one_at_a_time"] * one_at_a_time
    environment = {**os.environ, "ONEDNN_VERBOSE": "profile_exec" if log else "none"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return done.stdout.partition(MARK)[2]


def kernels(printed: str) -> collections.Counter[str]:
    """Returns the milliseconds of each kind of kernel in a log, those of convolutions by pass."""
    found: collections.Counter[str] = collections.Counter()
    for line in printed.splitlines():
        cells = line.split(",")
        if cells[0] == "onednn_verbose" and "exec" in cells:
            at = cells.index("exec")
            kind, way = cells[at + 2], cells[at + 4]
            name = f"{kind} {way}" if kind in ("convolution", "deconvolution") else kind
            found[name] += float(cells[-1])
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", default=["bfloat16", "bfloat16+norm"])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--base_filters", type=int, default=32)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--one_at_a_time", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.row:
        train(args)
        return
    rows = []
    for row in args.rows:
        step, alone = (
            json.loads(trained(args, row, one_at_a_time=each))["ms"] for each in (False, True)
        )
        found = kernels(trained(args, row, one_at_a_time=True, log=True))
        of_step = {name: t / args.steps for name, t in found.items()}
        convolutions = sum(t for name, t in of_step.items() if "convolution" in name)
        others = sum(of_step.values()) - convolutions
        cells = [f"{x:.1f}" for x in (step, alone, convolutions, others)]
        rows.append([row, *cells, f"{step / convolutions:.3f}", f"{alone / convolutions:.3f}"])
        for name, t in sorted(of_step.items(), key=lambda item: -item[1]):
            print(f"{row}: {name} {t:.1f} ms", flush=True)
    from rounds import machine

    from unet_core.drawing import tables

    print(machine())
    columns = ["row", "step", "one at a time", "convolutions", "other kernels"]
    columns += ["step / convolutions", "one at a time / convolutions"]
    print(tables.table(columns, rows))


if __name__ == "__main__":
    main()
