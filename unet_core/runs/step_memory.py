"""Memory of a training step: estimated from its graph, and measured by running one on random data.

meter = Meter()
trial = Trial(model, config)
trial.estimate()               # traces the step
trial.run()                    # runs it twice
meter.peak()
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re

import keras
import numpy as np
import tensorflow as tf

from unet_core import losses, optimizers, training
from unet_core.inference.trained import as_trained
from unet_core.runs import liveness, process
from unet_core.settings import RunConfig

# Measured with TensorFlow 2.21 and glibc by benchmarks/step_memory.py, see docs/results.md.
_PROGRAM = 40_000_000
_EACH_OP = 28_000
_SLACK = 0.2


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes that a training step needs.

    Attributes:
        weights: All variables of the network.
        optimizer: What the optimizer keeps beside them, the moving average of the weights, and the
            sums of the gradients of micro-batches.
        tensors: The most that activations, gradients and everything between take at once, see
            `unet_core.runs.liveness`.
        slack: What allocators lose: they give out larger blocks than they are asked for, and keep
            some that are too small for what comes next.
        program: The graph of the step, in Python and in TensorFlow, and the code that it loads, in
            the memory of the machine.
    """

    weights: int
    optimizer: int
    tensors: int
    slack: int
    program: int

    @property
    def on_device(self) -> int:
        """What the device needs that runs the step."""
        return self.weights + self.optimizer + self.tensors + self.slack

    @property
    def total(self) -> int:
        """All of it: what a process needs whose device is the CPU."""
        return self.on_device + self.program


def estimate(
    graph: tf.Graph,
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    config: RunConfig,
    *,
    replicas: int = 1,
) -> Estimate:
    """Returns what a training step needs on one GPU, or on this machine, whose replicas share it.

    Args:
        graph: The graph that `Loop.trace` returned.
        model: The network.
        optimizer: That of the loop, built.
        config: The settings of the training.
        replicas: Those of this machine.
    """
    on_gpu = bool(tf.config.list_logical_devices("GPU"))
    tensors = liveness.peak_bytes(graph, unfolds=not on_gpu and not has_onednn())
    if not on_gpu:
        tensors *= replicas
    beside = _bytes(optimizer.variables)
    if config.optimization.ema_decay:
        beside += _bytes(model.variables)
    if config.training.micro_batches > 1:
        beside += _bytes(model.trainable_variables)
    slack = round(_SLACK * tensors)
    program = _PROGRAM + _EACH_OP * liveness.count_ops(graph)
    return Estimate(_bytes(model.variables), beside, tensors, slack, program)


def has_onednn() -> bool:
    """Whether oneDNN computes convolutions, as TensorFlow decides by the processor.

    Its allocator for CPUs tells what it has given out; that without oneDNN does not.
    """
    try:
        tf.config.experimental.get_memory_info("CPU:0")
    except ValueError:
        return False
    return True


class Meter:
    """The peak of memory since it was made: of the first GPU, or of this process on Linux.

    Attributes:
        of: What it measures; empty if this system does not tell.
    """

    def __init__(self):
        gpus = tf.config.list_logical_devices("GPU")
        self._gpu = gpus[0].name if gpus else ""
        self.of = ""
        if self._gpu:
            self.of = "peak of TensorFlow's allocator on the GPU"
            tf.config.experimental.reset_memory_stats(self._gpu)
            self._before = tf.config.experimental.get_memory_info(self._gpu)["current"]
            return
        try:
            self._before = process.begin_peak()
        except OSError:
            return
        self.of = "growth of the peak resident memory of this process"

    def peak(self) -> int:
        """Returns the peak in bytes, less what was in use when the meter was made."""
        if self._gpu:
            peak = tf.config.experimental.get_memory_info(self._gpu)["peak"]
        else:
            peak = process.resident("VmHWM")
        return max(peak - self._before, 0)


def in_use() -> tuple[int, str] | None:
    """Returns the bytes in use and what they are; None if this system does not tell.

    They are the peak of TensorFlow's allocator on the first GPU, or what this process has resident.
    """
    gpus = tf.config.list_logical_devices("GPU")
    if gpus:
        peak = tf.config.experimental.get_memory_info(gpus[0].name)["peak"]
        return peak, "peak of TensorFlow's allocator on the GPU"
    try:
        return process.resident("VmRSS"), "resident memory of this process"
    except OSError:
        return None


def available() -> int | None:
    """Returns the bytes of memory that this machine has to spare; None if it does not tell."""
    try:
        text = pathlib.Path("/proc/meminfo").read_text()
    except OSError:
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    return 1024 * int(found[1]) if found else None


def room() -> int | None:
    """Returns the bytes that a training may take: of the first GPU, or of this machine."""
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return available()
    # The only place where TensorFlow 2.21 tells it.
    from tensorflow.python.client import device_lib

    return next(d.memory_limit for d in device_lib.list_local_devices() if d.device_type == "GPU")


class Trial:
    """Two training steps on random images with cross-entropy.

    The second has what the first has left.

    Args:
        model: The network.
        config: The settings of the training.
    """

    def __init__(self, model: keras.Model, config: RunConfig):
        loss = losses.parse("cross_entropy", overlapping=config.network.heads == "sigmoid")
        if len(model.outputs) > 1:
            loss = losses.deeply_supervised(loss)
        self._model = model
        self._config = config
        self._loop = training.Loop(
            as_trained(model, config),
            optimizers.make_optimizer(config.optimization),
            loss=lambda logits, batch: loss(batch[1], logits),
            loss_scaling=config.network.precision == "float16",
            micro_batches=config.training.micro_batches,
            ema_decay=config.optimization.ema_decay or None,
            jit_compile=config.training.jit_compile,
        )
        size, channels = config.data.crop_size, config.data.channels
        rows = config.training.global_batch_size // config.training.micro_batches
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (rows, size, size, channels)).astype(np.uint8)
        masks = rng.integers(0, 2, (rows, size, size)).astype(np.uint8)
        self._feed = self._loop.feed(
            lambda *_: tf.data.Dataset.from_tensors((images, masks)).repeat()
        )

    def estimate(self) -> Estimate:
        """Returns what a step needs, before it runs."""
        graph = self._loop.trace(self._feed)
        return estimate(graph, self._model, self._loop.optimizer, self._config)

    def run(self) -> None:
        """Runs the steps, compiling included."""
        for _ in self._loop.train(self._feed, until_step=2, report_every_steps=1):
            pass
        self._feed.close()


def megabytes(count: int) -> str:
    """Returns bytes as text."""
    return f"{count / 1e6:,.0f} MB"


def _bytes(variables: list[keras.Variable]) -> int:
    return sum(math.prod(v.shape) * tf.as_dtype(v.dtype).size for v in variables)
