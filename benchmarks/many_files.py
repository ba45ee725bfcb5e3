"""How long a data set of many files takes to start, and how much memory it takes to read.

    python benchmarks/many_files.py --files=100000

The files are links to a few small PNGs in a temporary folder. "start" is what a run does before its
first batch: find the pairs and read all headers. Then crops are drawn for a while with a cache
smaller than the set; "growth" is how much memory the second half of that adds, which would show a
leak.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import resource
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import cv2
import numpy as np

from unet_core.data.augment import Recipe
from unet_core.data.stream import SampleStream, SamplingConfig
from unet_core.drawing import tables
from unet_core.runs.dataset import DataSet
from unet_core.settings import RunConfig


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=100_000, help="pairs of image and mask")
    parser.add_argument("--crops", type=int, default=4000)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        write(pathlib.Path(folder), args.files)
        before = memory_mb()
        start = time.perf_counter()
        data = DataSet.open(
            RunConfig.of(data_dir=folder, classes="0:a,1:b", cache_mb=16).data,
            progress=lambda _: iter,
        )
        data.check()
        training, _ = data.split()
        seconds = time.perf_counter() - start
        rows = [["start", f"{seconds:.1f} s, {memory_mb() - before:.0f} MB"]]
        sampling = SamplingConfig(seed=0, crop_size=64, recipe=Recipe(flips=True))
        stream = SampleStream(training, data.read, sampling)
        image, mask = np.empty((2, 64, 64), np.uint8)
        start = time.perf_counter()
        for index in range(args.crops):
            if index == args.crops // 2:
                half = memory_mb()
            stream.write(index, image, mask)
        rate = args.crops / (time.perf_counter() - start)
        rows.append(["crops read from disk", f"{rate:.0f} a second on one thread"])
        rows.append(["growth", f"{memory_mb() - half:.1f} MB"])
    print(f"{args.files} pairs")
    print(tables.table(["", ""], rows))


def write(folder: pathlib.Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for name in ("image", "label"):
        (folder / "train" / name).mkdir(parents=True)
    for number in range(count):
        for name, levels in (("image", 256), ("label", 2)):
            path = folder / "train" / name / f"{number}.png"
            if number < 8:
                cv2.imwrite(str(path), rng.integers(0, levels, (128, 128)).astype(np.uint8))
            else:
                os.link(path.with_name(f"{number % 8}.png"), path)


def memory_mb() -> float:
    """Returns the largest memory this process has taken so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
