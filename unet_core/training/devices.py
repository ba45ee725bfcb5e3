"""Devices, strategies and the precision a machine is good at. Each function here acts on the whole
process or asks it.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import tensorflow as tf

from unet_core.errors import UserError


def split_device(parts: int) -> None:
    """Splits the first GPU, or the CPU if there is none, into `parts` logical devices, to try out
    several replicas.

    Must be called before anything runs on a device.
    """
    if parts == 1:
        return
    gpus = tf.config.list_physical_devices("GPU")
    device = gpus[0] if gpus else tf.config.list_physical_devices("CPU")[0]
    limit = 2048 if gpus else None
    tf.config.set_logical_device_configuration(
        device, [tf.config.LogicalDeviceConfiguration(memory_limit=limit) for _ in range(parts)]
    )


def make_strategy(name: str, devices: Sequence[int] = ()) -> tf.distribute.Strategy:
    """Returns the strategy called `name`.

    Args:
        name: "none" for one device, "mirrored" for one copy of the network per device.
        devices: Numbers of the devices for "mirrored": of GPUs, or of logical CPUs if there is no
            GPU. Empty is all.

    Raises:
        UserError: If a device does not exist; the message lists those that do.
    """
    if name == "none":
        return tf.distribute.get_strategy()
    kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    available = tf.config.list_logical_devices(kind)
    missing = [number for number in devices if not 0 <= number < len(available)]
    if missing:
        listed = ", ".join(f"{number} ({device.name})" for number, device in enumerate(available))
        raise UserError(f"`devices`: there is no device {missing[0]}. There are: {listed}.")
    names = [f"{kind}:{number}" for number in devices or range(len(available))]
    # Collective operations on CPUs fail once a process has had strategies of two sizes (TF 2.21).
    reduction = tf.distribute.ReductionToOneDevice() if kind == "CPU" else None
    return tf.distribute.MirroredStrategy(names, cross_device_ops=reduction)


def choose_precision() -> tuple[str, str]:
    """Returns the fastest precision this machine trains well in, and the reason."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        capability = tf.config.experimental.get_device_details(gpus[0]).get(
            "compute_capability", (0, 0)
        )
        dotted = ".".join(map(str, capability))
        if capability >= (8, 0):
            return "bfloat16", f"the GPU has compute capability {dotted}, at least 8.0"
        if capability >= (7, 0):
            return (
                "float16",
                f"the GPU has compute capability {dotted}, tensor cores but no bfloat16",
            )
        return "float32", f"the GPU has compute capability {dotted}, no tensor cores"
    features = _cpu_features()
    for feature in ("amx_bf16", "avx512_bf16"):
        if feature in features:
            return "bfloat16", f"no GPU, and the CPU has {feature}"
    return "float32", "no GPU, and the CPU has neither amx_bf16 nor avx512_bf16"


def _cpu_features() -> frozenset[str]:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())
