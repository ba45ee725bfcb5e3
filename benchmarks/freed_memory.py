"""Milliseconds of a training step with malloc as the command sets it and as glibc has it.

    python benchmarks/freed_memory.py

Trains `membrane.flags` on synthetic slices, each time in a process of its own, in turn, and reads
the time of a step from its `metrics.jsonl`. Further flags are those of the training.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from rounds import machine, median_ratio

from unet_core.drawing import tables

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = "from unet_core import door; door.console()"
AS_GLIBC_HAS_IT = f"from unet_core.runs import process; process.keep_freed_memory = int; {PROGRAM}"
VARIANTS = {"freed memory is kept": PROGRAM, "as glibc has it": AS_GLIBC_HAS_IT}


def step_ms(program: str, folder: pathlib.Path, steps: int, more: list[str]) -> float:
    """Trains in `folder`; returns the median milliseconds of a step of the second half.

    The first half traces and fills the heap.
    """
    flags = [f"--train_steps={steps}", "--warmup_steps=0", f"--eval_every_steps={steps}"]
    flags += [f"--run_dir={folder / 'run'}", f"--checkpoint_every_steps={steps}", "--mode=train"]
    command = [
        sys.executable,
        "-c",
        program,
        f"--flagfile={ROOT / 'membrane.flags'}",
        *flags,
        *more,
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    reports = [json.loads(line) for line in lines]
    return statistics.median(
        report["speed/step_ms"] for report in reports if report["step"] > steps / 2
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40, help="training steps per process")
    args, more = parser.parse_known_args(argv)
    found: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for number in range(args.rounds):
        for name, program in VARIANTS.items():
            with tempfile.TemporaryDirectory() as folder:
                found[name].append(step_ms(program, pathlib.Path(folder), args.steps, more))
            print(f"round {number}, {name}: {found[name][-1]:.0f} ms", flush=True)
    plain = found["as glibc has it"]
    rows = [
        [name, f"{statistics.median(times):.0f}", f"{median_ratio(plain, times):.2f}"]
        for name, times in found.items()
    ]
    print(machine())
    print(tables.table(["malloc", "ms/step", "times as fast"], rows))


if __name__ == "__main__":
    main()
