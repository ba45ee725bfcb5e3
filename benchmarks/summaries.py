"""Share of a training's time that its reports take: history, summaries, progress, alarms.

    python benchmarks/summaries.py

Trains `membrane.flags` on synthetic slices with all summaries at their defaults, measures the time
between one step and the next in which reports are handled, and divides it by the whole. Evaluations
and checkpoints come at the end alone and are not counted. Further flags are those of the training.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from rounds import machine

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = """
import json, pathlib, time
from unet_core import door
from unet_core.runs import train

handle, times = train._handle, []

def timed(*args):
    start = time.perf_counter()
    try:
        return handle(*args)
    finally:
        times.append((start, time.perf_counter()))

train._handle = timed
try:
    door.console()
finally:
    pathlib.Path("times.json").write_text(json.dumps(times))
"""


def handled(steps: int, more: list[str]) -> list[tuple[float, float]]:
    """Trains in a folder of its own; returns when each report began and ended to be handled."""
    flags = [f"--flagfile={ROOT / 'membrane.flags'}", "--mode=train", f"--train_steps={steps}"]
    flags += ["--warmup_steps=0", f"--eval_every_steps={steps}"]
    with tempfile.TemporaryDirectory() as folder:
        flags += [f"--checkpoint_every_steps={steps}", f"--run_dir={folder}/run"]
        subprocess.run(
            [sys.executable, "-c", PROGRAM, *flags, *more],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=True,
            capture_output=True,
        )
        return json.loads((pathlib.Path(folder) / "times.json").read_text())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200, help="training steps")
    args, more = parser.parse_known_args(argv)
    times = handled(args.steps, more)
    # The first makes files and traces, the last evaluates and saves.
    between = times[1:-1]
    spent = sum(end - start for start, end in between)
    whole = times[-1][0] - between[0][0]
    print(machine())
    print(
        f"{len(between)} reports: {1000 * spent / len(between):.1f} ms each, "
        f"{100 * spent / whole:.2f} % of {whole:.1f} s"
    )


if __name__ == "__main__":
    main()
