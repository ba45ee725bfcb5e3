"""What of a training step is spent in which kernels of oneDNN, by its own log.

    python benchmarks/kernels.py
    python benchmarks/kernels.py --rows float32 bfloat16+norm --steps=10

For each row of `steps_per_second.py` a process of its own trains some steps as they are, then some
with oneDNN's log of what it runs (ONEDNN_VERBOSE=profile_exec). Milliseconds are of one step:
"step" is the median without the log, "convolutions" the sum of their kernels, backward ones
included, "other kernels" the rest of the log. Where two kernels run at once, each on some of the
cores, both count, so that the sum can exceed the time of the step. Only on CPUs.
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


def trained(args: argparse.Namespace, row: str, *, log: bool) -> str:
    """Returns what the process of a row prints after its first steps."""
    command = [sys.executable, __file__, f"--row={row}", f"--steps={args.steps}"]
    command += [f"--batch={args.batch}", f"--size={args.size}"]
    command += [f"--base_filters={args.base_filters}"]
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
    args = parser.parse_args(argv)
    if args.row:
        train(args)
        return
    rows = []
    for row in args.rows:
        step = json.loads(trained(args, row, log=False))["ms"]
        of_step = {
            name: t / args.steps for name, t in kernels(trained(args, row, log=True)).items()
        }
        convolutions = sum(t for name, t in of_step.items() if "convolution" in name)
        others = sum(of_step.values()) - convolutions
        cells = [f"{x:.1f}" for x in (step, convolutions, others)]
        rows.append([row, *cells, f"{step / convolutions:.3f}"])
        for name, t in sorted(of_step.items(), key=lambda item: -item[1]):
            print(f"{row}: {name} {t:.1f} ms", flush=True)
    from rounds import machine

    from unet_core.drawing import tables

    print(machine())
    columns = ["row", "step, ms", "convolutions, ms", "other kernels, ms", "step / convolutions"]
    print(tables.table(columns, rows))


if __name__ == "__main__":
    main()
