"""Seconds that the border weights of one mask take.

    python benchmarks/weight_maps.py

The masks are a synthetic micrograph, whose large cells lie between thin membranes, and 1000 small
nuclei at random places; both as they are, where nuclei that touch are one component, and with the
instance id of every cell.
"""

from __future__ import annotations

import argparse
import functools
import os
import pathlib
import statistics
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import cv2
import numpy as np
from rounds import machine, seconds_per_round

from unet_core.data.synthetic import Volume
from unet_core.data.weight_maps import border_weights
from unet_core.drawing import tables


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--size", type=int, default=512, help="pixels a side")
    args = parser.parse_args(argv)

    _, slice_mask = Volume(size=args.size, seed=0).slice_at(0)
    membranes = components((slice_mask > 0).astype(np.uint8))
    nuclei = discs(1000, args.size)
    masks = {
        "membranes": (membranes, False),
        "membranes, instance ids": (membranes, True),
        "nuclei": (components((nuclei > 0).astype(np.uint8)), False),
        "nuclei, instance ids": (nuclei, True),
    }
    variants = {
        name: functools.partial(
            border_weights,
            (ids > 0).astype(np.uint8),
            instances=ids if given else None,
        )
        for name, (ids, given) in masks.items()
    }
    found = seconds_per_round(variants, rounds=args.rounds)
    rows = [
        [
            name,
            str(np.unique(masks[name][0]).size - 1),
            f"{statistics.median(seconds):.4f}",
            f"{min(seconds):.4f}-{max(seconds):.4f}",
        ]
        for name, seconds in found.items()
    ]
    print(machine())
    print(f"{args.size}x{args.size} pixels, w0 10, sigma 5, median of {args.rounds} rounds")
    print(tables.table(["", "cells", "seconds", "least-most"], rows))


def components(cells: np.ndarray) -> np.ndarray:
    """Returns the ids [H, W] uint16 of the 4-connected components of a mask of 0 and 1."""
    return cv2.connectedComponents(cells, connectivity=4, ltype=cv2.CV_16U)[1]


def discs(count: int, size: int) -> np.ndarray:
    """Returns the ids [size, size] uint16 of `count` nuclei of about 9 pixels across.

    Later ones lie over earlier ones.
    """
    rng = np.random.default_rng(0)
    ids = np.zeros((size, size), np.uint16)
    for number in range(count):
        x, y = rng.integers(0, size, 2).tolist()
        cv2.circle(ids, (x, y), int(rng.integers(3, 6)), number + 1, cv2.FILLED)
    return ids


if __name__ == "__main__":
    main()
