"""Memory of a training step: estimated by formula, and measured by running one on random data."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re

import keras
import numpy as np
import tensorflow as tf

from unet_core import losses, optimizers, training
from unet_core.models.flops import CallWork
from unet_core.settings import RunConfig

_STATUS = pathlib.Path("/proc/self/status")
_CLEAR = pathlib.Path("/proc/self/clear_refs")


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes that a training step needs, by formula.

    Attributes:
        weights: All variables of the network.
        gradients: One number for each trainable one.
        optimizer: What the optimizer keeps beside them, and the moving average of the weights.
        activations: The output of each layer once, kept for the gradient. Kernels need room of
            their own beside it, and a layer whose output is not needed may free it.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.gradients + self.optimizer + self.activations


def estimate(
    model: keras.Model,
    work: list[CallWork],
    config: RunConfig,
    optimizer: keras.optimizers.Optimizer | None = None,
) -> Estimate:
    """Returns what a training step needs by formula.

    Args:
        model: The network.
        work: Its work on the images of one micro-batch.
        config: The settings of the training.
        optimizer: That of the training, built; if None, one like it is made.
    """
    trainable = _bytes(model.trainable_variables)
    if optimizer is None:
        optimizer = optimizers.make_optimizer(config.optimization)
        optimizer.build(model.trainable_variables)
    averages = _bytes(model.variables) if config.optimization.ema_decay else 0
    activations = sum(
        math.prod(size or 1 for size in shape) * tf.as_dtype(tensor.dtype).size
        for each in work
        for shape, tensor in zip(each.outputs, each.call.outputs, strict=True)
    )
    return Estimate(
        _bytes(model.variables), trainable, _bytes(optimizer.variables) + averages, activations
    )


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
            # Linux 4.0 and later: the peak begins anew at what is resident now.
            _CLEAR.write_text("5")
            self._before = _resident("VmRSS")
        except OSError:
            return
        self.of = "growth of the peak resident memory of this process"

    def peak(self) -> int:
        """Returns the peak in bytes, less what was in use when the meter was made."""
        if self._gpu:
            peak = tf.config.experimental.get_memory_info(self._gpu)["peak"]
        else:
            peak = _resident("VmHWM")
        return max(peak - self._before, 0)


def _resident(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    if not found:
        raise OSError(f"{_STATUS} has no {name}")
    return 1024 * int(found[1])


def in_use() -> tuple[int, str] | None:
    """Returns the bytes in use and what they are; None if this system does not tell.

    They are the peak of TensorFlow's allocator on the first GPU, or what this process has resident.
    """
    gpus = tf.config.list_logical_devices("GPU")
    if gpus:
        peak = tf.config.experimental.get_memory_info(gpus[0].name)["peak"]
        return peak, "peak of TensorFlow's allocator on the GPU"
    try:
        return _resident("VmRSS"), "resident memory of this process"
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


def run_step(model: keras.Model, config: RunConfig) -> None:
    """Trains `model` two steps on random images with cross-entropy, compiling included.

    The second step has what the first has left, such as the optimizer's slots.
    """
    size, channels = config.data.crop_size, config.data.channels
    rows = config.training.global_batch_size // config.training.micro_batches
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (rows, size, size, channels)).astype(np.uint8)
    masks = rng.integers(0, 2, (rows, size, size)).astype(np.uint8)

    loss = losses.parse("cross_entropy", overlapping=config.network.heads == "sigmoid")
    if len(model.outputs) > 1:
        loss = losses.deeply_supervised(loss)
    loop = training.Loop(
        model,
        optimizers.make_optimizer(config.optimization),
        loss=lambda logits, batch: loss(batch[1], logits),
        loss_scaling=config.network.precision == "float16",
        micro_batches=config.training.micro_batches,
        ema_decay=config.optimization.ema_decay or None,
        jit_compile=config.training.jit_compile,
    )

    def data(*_):
        return tf.data.Dataset.from_tensors((images, masks)).repeat()

    for _ in loop.train(data, until_step=2, report_every_steps=1):
        pass


def megabytes(count: int) -> str:
    """Returns bytes as text."""
    return f"{count / 1e6:,.0f} MB"


def _bytes(variables: list[keras.Variable]) -> int:
    return sum(math.prod(v.shape) * tf.as_dtype(v.dtype).size for v in variables)
