"""Memory of a training step: the estimate beside what was measured, for networks of several kinds.

    python benchmarks/step_memory.py

Each network is summarised by the command, in a process of its own, which prints both. Then
`--mode=find_batch` draws its line through batches of 4 and 8, and a step of 16 is measured.
Further flags are added to those of each network.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from rounds import machine

from unet_core.drawing import tables

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = "from unet_core import door; door.console()"
NETWORKS = {
    "membrane.flags": [f"--flagfile={ROOT / 'membrane.flags'}"],
    "plain, 16 filters": ["--base_filters=16", "--global_batch_size=4", "--crop_size=256"],
    "mobilenet_v2": ["--encoder=mobilenet_v2", "--global_batch_size=2", "--crop_size=256"],
    "resnet50": ["--encoder=resnet50", "--global_batch_size=2", "--crop_size=192"],
    "residual, deep supervision": [
        *("--encoder=residual", "--deep_supervision", "--base_filters=24"),
        *("--global_batch_size=3", "--crop_size=224"),
    ],
    "efficientnet_b0": ["--encoder=efficientnet_b0", "--global_batch_size=4", "--crop_size=192"],
    # The constants of the estimate were not fitted on these two.
    "attention, group norm": [
        *("--decoder=attention", "--normalization=group", "--base_filters=24"),
        *("--global_batch_size=4", "--crop_size=192"),
    ],
    "vgg16": ["--encoder=vgg16", "--global_batch_size=2", "--crop_size=160"],
}
OF_LINE = ["membrane.flags", "plain, 16 filters", "mobilenet_v2"]


def printed(mode: str, flags: list[str]) -> str:
    """Returns what the command prints in a process of its own."""
    command = [sys.executable, "-c", PROGRAM, f"--mode={mode}", *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise SystemExit(f"{' '.join(flags)}: {done.stderr}")
    return done.stdout


def numbers(pattern: str, text: str) -> list[int]:
    """Returns the numbers that the groups of `pattern` match in `text`."""
    found = re.search(pattern, text)
    if not found:
        raise SystemExit(f"{pattern!r} is not in:\n{text}")
    return [int(number.replace(",", "")) for number in found.groups()]


def summarised(flags: list[str]) -> tuple[int, int]:
    """Returns the megabytes of a training step, (estimated, measured)."""
    text = printed("summary", flags)
    (estimated,) = numbers(r"Estimated: ([\d,]+) MB", text)
    (measured,) = numbers(r"Measured: ([\d,]+) MB", text)
    return estimated, measured


def line_at(rows: int, flags: list[str]) -> int:
    """Returns the megabytes of a step of so many examples by the line of `--mode=find_batch`."""
    flags = [flag for flag in flags if not flag.startswith("--global_batch_size")]
    each, fixed = numbers(r"takes ([\d,]+) MB beside (-?[\d,]+) MB", printed("find_batch", flags))
    return fixed + rows * each


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="networks whose name has this in it")
    parser.add_argument("--no_line", action="store_true", help="leave out --mode=find_batch")
    args, more = parser.parse_known_args(argv)
    chosen = {name: flags for name, flags in NETWORKS.items() if (args.only or "") in name}
    rows: list[list[str]] = []
    for name, flags in chosen.items():
        for precision in ("float32", "bfloat16"):
            estimated, measured = summarised([*flags, f"--precision={precision}", *more])
            row = [name, precision, f"{estimated:,}", f"{measured:,}"]
            rows.append([*row, f"{estimated / measured:.2f}"])
            print(" ".join(rows[-1]), flush=True)
    lines = []
    for name in OF_LINE if not args.no_line else []:
        flags = [*NETWORKS[name], "--precision=float32", *more]
        by_line = line_at(16, flags)
        _, measured = summarised([*flags, "--global_batch_size=16"])
        lines.append([name, f"{by_line:,}", f"{measured:,}", f"{by_line / measured:.2f}"])
    print(machine())
    print(tables.table(["network", "precision", "estimated MB", "measured MB", "ratio"], rows))
    if lines:
        print(tables.table(["network", "16 by the line, MB", "measured MB", "ratio"], lines))


if __name__ == "__main__":
    main()
