"""How much memory and time it takes to predict a picture larger than memory allows at once.

    python benchmarks/large_image.py --size=20000
    python benchmarks/large_image.py --size=20000 --kill_after=60

A grey TIFF of that size is drawn in a temporary folder (or --folder) and predicted in a process of
its own, by a network of random weights with the default layers: masks are written as TIFF, the
overlay reduced. "above the network" is the largest memory of that process beyond what it takes once
the network is loaded. With --kill_after the process is killed (SIGKILL) after so many seconds, and
the table lists what it has left: only names that end in .unet_core-tmp and -lock.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import cv2
import numpy as np

from unet_core.data.samples import Source
from unet_core.data.tiff_writer import TiffWriter
from unet_core.drawing import tables


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=20_000, help="pixels a side")
    parser.add_argument("--base_filters", type=int, default=32)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--kill_after", type=float, default=0, help="seconds; 0 never")
    parser.add_argument("--folder", help="where to write; a temporary folder by default")
    parser.add_argument("--in_process", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.in_process:
        predict(args)
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        draw(pathlib.Path(folder, "large.tif"), args.size)
        command = [sys.executable, __file__, "--in_process", f"--folder={folder}"]
        command += [f"--base_filters={args.base_filters}", f"--precision={args.precision}"]
        process = subprocess.Popen(command)
        try:
            process.wait(args.kill_after or None)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            out = pathlib.Path(folder, "out")
            rows = [[p.name, f"{p.stat().st_size}"] for p in sorted(out.iterdir())]
            print(tables.table([f"left after {args.kill_after:g} s", "bytes"], rows))
        if process.returncode > 0:
            sys.exit(process.returncode)


def draw(path: pathlib.Path, size: int) -> None:
    """Writes a grey TIFF of blurred noise, size x size, band by band."""
    rng = np.random.default_rng(0)
    with TiffWriter(path, size, size) as writer:
        for first in range(0, size, 500):
            coarse = rng.integers(0, 256, (63, size // 8 + 1)).astype(np.uint8)
            rows = min(500, size - first)
            writer.write(cv2.resize(coarse, (size, 500), interpolation=cv2.INTER_CUBIC)[:rows])


def predict(args: argparse.Namespace) -> None:
    """Predicts `large.tif` in the folder and prints what it took."""
    from unet_core.inference.predictor import Predictor
    from unet_core.inference.trained import Trained, build_network
    from unet_core.outputs.files import PredictionOutputs, predict_files
    from unet_core.runs import process
    from unet_core.runs.progress import pixel_bar
    from unet_core.settings import RunConfig
    from unet_core.training import devices

    process.import_libraries()
    precision = devices.choose_precision()[0] if args.precision == "auto" else args.precision
    config = RunConfig.of(
        classes="0:membrane,255:cell", base_filters=args.base_filters, precision=precision
    )
    predictor = Predictor(Trained(build_network(config), config, 0))
    loaded = memory_mb("VmRSS")
    start = time.perf_counter()
    folder = pathlib.Path(args.folder)
    sources = [Source(folder / "large.tif")]
    done = predict_files(
        predictor, sources, folder / "out", PredictionOutputs(), progress=pixel_bar("Predicting")
    )
    seconds = time.perf_counter() - start
    rows = [
        ["megapixels", f"{done.megapixels:.0f}"],
        ["seconds, reading and writing included", f"{seconds:.0f}"],
        ["megapixels/s", f"{done.megapixels / seconds:.2f}"],
        ["memory with the network loaded, MB", f"{loaded:.0f}"],
        ["largest memory above the network, MB", f"{memory_mb('VmHWM') - loaded:.0f}"],
    ]
    rows += [[p.name, f"{p.stat().st_size} bytes"] for p in sorted((folder / "out").iterdir())]
    print(tables.table([f"base {args.base_filters}, {precision}", ""], rows))


def memory_mb(name: str) -> float:
    """Returns a figure of this process's memory as Linux reports it."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) / 1024


if __name__ == "__main__":
    main()
