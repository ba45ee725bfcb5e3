"""Seconds that V_Rand and V_Info of a stack take, at all thresholds of the ISBI 2012 challenge.

    pip install '.[scores]'
    python benchmarks/segment_scores.py

The truth is a synthetic micrograph; its probabilities are the truth blurred, with noise, so that
the segments are as many as an early, poor network makes.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import cv2
import numpy as np
from rounds import machine

from unet_core import scores
from unet_core.data.synthetic import Volume
from unet_core.drawing import tables


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, default=30)
    parser.add_argument("--size", type=int, default=512, help="pixels a side")
    args = parser.parse_args(argv)

    volume = Volume(size=args.size, seed=0)
    truths = [volume.slice_at(z)[1] > 0 for z in range(args.slices)]
    probabilities = [probability_of(truth, seed=z) for z, truth in enumerate(truths)]

    # Once unmeasured: the import of scikit-image.
    scores.segment_curve(probabilities[0], truths[0])
    rows, total = [], 0.0
    for threshold in scores.SEGMENT_THRESHOLDS:
        found, seconds = [], []
        for probability, truth in zip(probabilities, truths, strict=True):
            start = time.perf_counter()
            found.append(scores.segment_scores(probability, truth, threshold))
            seconds.append(time.perf_counter() - start)
        v_rand, v_info = np.mean(found, 0)
        total += sum(seconds)
        rows.append(
            [
                f"{threshold:g}" if threshold < 0.95 else "just below 1",
                f"{v_rand:.4f}",
                f"{v_info:.4f}",
                f"{1000 * statistics.median(seconds):.1f}",
                f"{1000 * min(seconds):.1f}-{1000 * max(seconds):.1f}",
            ]
        )
    print(machine())
    start = time.perf_counter()
    for probability, truth in zip(probabilities, truths, strict=True):
        scores.segment_curve(probability, truth)
    curves = time.perf_counter() - start
    print(
        f"{args.slices} slices of {args.size}x{args.size} pixels, all thresholds: {total:.1f} s; "
        f"in threads, as segment_curve does: {curves:.1f} s"
    )
    print(tables.table(["threshold", "V_Rand", "V_Info", "ms per slice", "least-most"], rows))


def probability_of(truth: np.ndarray, *, seed: int) -> np.ndarray:
    """Returns probabilities [H, W] float32 of the true cells, blurred and noisy."""
    noise = np.random.default_rng(seed).normal(0, 0.15, truth.shape)
    return np.clip(cv2.GaussianBlur(truth.astype(np.float32), (0, 0), 1.5) + noise, 0, 1).astype(
        np.float32
    )


if __name__ == "__main__":
    main()
