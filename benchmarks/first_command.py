"""Where the time of a command goes: loading, data, first step, training, scoring, predicting.

    python benchmarks/first_command.py
    python benchmarks/first_command.py --flagfile=own_data.flags --data_dir=/data/mine

Runs `train_loop.py` with the given flags, by default those of the README's first command, in a
folder that is removed afterwards, shows its output with the second at which each line came, and
sums the seconds by part. A part ends where the line that ends it is printed.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from unet_core.drawing import tables

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Each part, and what the line that ends it matches.
PARTS = {
    "start Python, read the flags": r"Loading TensorFlow",
    "load TensorFlow": r"Writing synthetic|Intensities:|\d+ images to train on",
    "draw or read the data": r"\d+ images to train on",
    "build the network and trace a step": r"A training step needs",
    "compile and run the first steps": r"Step \d+: at|Training: ",
    "train, evaluations but the last included": r"Training: 100%",
    "evaluate, score and draw the held-out slices": r"Scores on",
    "predict the test slices": r"Predictions in",
    "write the report": r"The run on one page",
    "the rest": r"(?!)",
}


def run(command: list[str]) -> list[tuple[float, str]]:
    """Runs a command in a folder of its own; returns (seconds since its start, line) of each."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        start, lines = time.perf_counter(), []
        with subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append((time.perf_counter() - start, line.rstrip()))
                print(f"{lines[-1][0]:7.1f} s  {lines[-1][1]}", flush=True)
        lines.append((time.perf_counter() - start, ""))
    if process.returncode:
        sys.exit(process.returncode)
    return lines


def by_part(lines: list[tuple[float, str]]) -> dict[str, float]:
    """Returns the seconds of each part; of one whose end is not seen nothing."""
    seconds, begin, names = {}, 0.0, list(PARTS)
    for at, line in lines:
        for name in names:
            if re.match(PARTS[name], line):
                seconds[name] = at - begin
                begin, names = at, names[names.index(name) + 1 :]
                break
    seconds[names[-1]] = lines[-1][0] - begin
    return seconds


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flagfile", default="membrane.flags")
    args, more = parser.parse_known_args(argv)
    flagfile = pathlib.Path(args.flagfile)
    flagfile = ROOT / flagfile if (ROOT / flagfile).exists() else flagfile.resolve()
    command = [sys.executable, str(ROOT / "train_loop.py"), f"--flagfile={flagfile}"]
    command += more or ["--train_steps=400"]
    lines = run(command)
    total = lines[-1][0]
    rows = [[name, f"{s:.1f}", f"{s / total:.0%}"] for name, s in by_part(lines).items()]
    rows.append(["all", f"{total:.1f}", ""])
    print(f"\n{tables.table(['part', 'seconds', 'share'], rows)}")


if __name__ == "__main__":
    main()
