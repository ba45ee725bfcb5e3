"""Interleaved rounds: variants are measured in turn, in one process, so drift hits all alike."""

from __future__ import annotations

import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping

from unet_core.runs import process

# As the command does; peers in the same process gain by it as well.
process.keep_freed_memory()


def seconds_per_round(
    variants: Mapping[str, Callable[[], None]], *, rounds: int
) -> dict[str, list[float]]:
    """Runs every variant once unmeasured, then `rounds` times in turn; returns the seconds of each.

    The order is reversed in every other round. Standard error shows how far it is.
    """
    begun = time.perf_counter()

    def say(what: str) -> None:
        print(f"{what}: {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)

    for name, run in variants.items():
        run()
        say(f"unmeasured, {name}")
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds):
        order = list(variants.items())
        for name, run in order if number % 2 == 0 else reversed(order):
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
        say(f"round {number + 1} of {rounds}")
    return seconds


def median_ratio(slower: list[float], faster: list[float]) -> float:
    """Returns the median over the rounds of `slower` / `faster`."""
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))


def machine() -> str:
    """Returns one line about the machine and the versions in use."""
    import keras
    import tensorflow as tf

    cpu = platform.processor()
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(
            line.partition(":")[2].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        pass
    gpus = len(tf.config.list_physical_devices("GPU"))
    return (
        f"{cpu}, {os.cpu_count()} cores, {gpus} GPUs; "
        f"TensorFlow {tf.__version__}, Keras {keras.__version__}"
    )
