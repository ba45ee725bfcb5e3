"""How much memory and time it takes to predict a picture larger than memory allows at once.

    python benchmarks/large_image.py --size=20000
    python benchmarks/large_image.py --size=20000 --kinds tiles pyramid jpeg zstd
    python benchmarks/large_image.py --size=20000 --kill_after=60

A TIFF of that size is drawn in a temporary folder (or --folder), one kind after another: "grey" in
strips; and colours in tiles of 512 by Deflate ("tiles"), the same with reduced copies ("pyramid"),
that by JPEG ("jpeg"), and tiles by Zstandard ("zstd"). It is read in one process, in bands, and
predicted in another, by a network of random weights with the default layers: masks are written as
TIFF, the overlay reduced. Memory is the largest of that process beyond what it takes with all
libraries, and the network, loaded. With --kill_after the process that predicts is killed (SIGKILL)
after so many seconds, and the table lists what it has left: only names that end in .unet_core-tmp
and -lock.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import cv2
import numpy as np
import tifffile

from unet_core.data.samples import Source
from unet_core.data.tiff_bands import open_rows
from unet_core.data.tiff_writer import TiffWriter
from unet_core.drawing import tables

KINDS = {
    "grey": {},
    "tiles": {"tile": (512, 512), "compression": "zlib"},
    "pyramid": {"tile": (512, 512), "compression": "zlib", "levels": 3},
    "jpeg": {"tile": (512, 512), "compression": "jpeg", "levels": 3},
    "zstd": {"tile": (512, 512), "compression": "zstd"},
}
_BAND_PX = 512


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=20_000, help="pixels a side")
    parser.add_argument("--kinds", nargs="+", default=["grey"], choices=list(KINDS))
    parser.add_argument("--base_filters", type=int, default=32)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--kill_after", type=float, default=0, help="seconds; 0 never")
    parser.add_argument("--folder", help="where to write; a temporary folder by default")
    parser.add_argument("--in_process", choices=list(IN_PROCESS), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.in_process:
        IN_PROCESS[args.in_process](args)
        return
    for kind in args.kinds:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            draw(pathlib.Path(folder, "large.tif"), args.size, kind)
            measure(args, kind, folder)


def measure(args: argparse.Namespace, kind: str, folder: str) -> None:
    """Reads and predicts the picture of a kind in `folder`, each in a process of its own."""
    command = [sys.executable, __file__, f"--kinds={kind}", f"--folder={folder}"]
    command += [f"--base_filters={args.base_filters}", f"--precision={args.precision}"]
    subprocess.run([*command, "--in_process=read"], check=True)
    process = subprocess.Popen([*command, "--in_process=predict"])
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


def draw(path: pathlib.Path, size: int, kind: str) -> None:
    """Writes a TIFF of blurred noise, size x size, band by band."""
    how = dict(KINDS[kind])
    if not how:
        with TiffWriter(path, size, size) as writer:
            for band in bands(size, 1, 500):
                writer.write(band[..., 0])
        return
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for level in range(how.pop("levels", 0) + 1):
            side = size >> level
            file.write(
                tiles(side, *how["tile"]),
                shape=(side, side, 3),
                dtype=np.uint8,
                photometric="rgb",
                subfiletype=int(level > 0),
                metadata=None,
                **how,
            )


def bands(size: int, channels: int, rows: int) -> Iterator[np.ndarray]:
    """Gives a picture of blurred noise, size x size, `rows` at a time."""
    rng = np.random.default_rng(0)
    for first in range(0, size, rows):
        coarse = rng.integers(0, 256, (rows // 8 + 1, size // 8 + 1, channels)).astype(np.uint8)
        band = cv2.resize(coarse, (size, rows), interpolation=cv2.INTER_CUBIC)
        yield band.reshape(rows, size, channels)[: size - first]


def tiles(size: int, height: int, width: int) -> Iterator[np.ndarray]:
    """Gives the same in tiles, of which those at the edges are filled up."""
    for band in bands(size, 3, height):
        wide = np.pad(band, ((0, height - len(band)), (0, -size % width), (0, 0)), mode="edge")
        yield from np.split(wide, wide.shape[1] // width, axis=1)


def read(args: argparse.Namespace) -> None:
    """Reads `large.tif` in the folder in bands and prints what it took."""
    with open_rows(pathlib.Path(args.folder, "large.tif")) as rows:
        loaded = memory_mb("VmRSS")
        start = time.perf_counter()
        for first in range(0, rows.height, _BAND_PX):
            rows.read(first, min(first + _BAND_PX, rows.height))
        seconds = time.perf_counter() - start
        megapixels = rows.height * rows.width / 1e6
    table = [
        ["megapixels/s", f"{megapixels / seconds:.2f}"],
        ["largest memory above the libraries, MB", f"{memory_mb('VmHWM') - loaded:.0f}"],
    ]
    print(f"{tables.table([f'{args.kinds[0]}, reading alone', ''], table)}\n", flush=True)


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
        classes="0:membrane,255:cell",
        channels=1 if args.kinds == ["grey"] else 3,
        base_filters=args.base_filters,
        precision=precision,
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
    print(
        f"{tables.table([f'{args.kinds[0]}, base {args.base_filters}, {precision}', ''], rows)}\n"
    )


def memory_mb(name: str) -> float:
    """Returns a figure of this process's memory as Linux reports it."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) / 1024


IN_PROCESS = {"read": read, "predict": predict}


if __name__ == "__main__":
    main()
