"""Devices, strategies and the precision a machine is good at.

Each function here changes or asks the whole process.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence

import tensorflow as tf

from unet_core.errors import UserError
from unet_core.training import rendezvous

_MB_OF_A_SPLIT_GPU = 2048


def limit_devices(
    *, logical_devices: int = 1, memory_growth: bool = False, memory_limit_mb: int = 0
) -> None:
    """Splits devices and limits their memory.

    Must be called before anything runs on a device. Without a GPU only `logical_devices` has an
    effect.

    Args:
        logical_devices: Into how many parts to split the first GPU, or the CPU if there is none, to
            try out several replicas.
        memory_growth: Whether each GPU's memory is taken as it is needed rather than all at once.
        memory_limit_mb: Megabytes to take of each GPU, or of each part of a split one; 0 is all.

    Raises:
        UserError: If memory is to grow on a GPU that is limited or split, which TensorFlow cannot.
    """
    if memory_growth and (memory_limit_mb or logical_devices > 1):
        raise UserError(
            "`memory_growth` cannot be combined with `memory_limit_mb` or `logical_devices`: "
            "TensorFlow gives parts of a GPU a fixed size. Leave one of them out."
        )
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        if memory_growth:
            tf.config.experimental.set_memory_growth(gpu, True)
    for number, device in enumerate(gpus or tf.config.list_physical_devices("CPU")):
        parts = logical_devices if number == 0 else 1
        limit = memory_limit_mb or (_MB_OF_A_SPLIT_GPU if parts > 1 else 0)
        if parts > 1 or (gpus and limit):
            part = tf.config.LogicalDeviceConfiguration(memory_limit=limit if gpus else None)
            tf.config.set_logical_device_configuration(device, [part] * parts)


def make_strategy(
    name: str,
    devices: Sequence[int] = (),
    *,
    should_stop: Callable[[], bool] = lambda: False,
) -> tf.distribute.Strategy:
    """Returns the strategy called `name`.

    Args:
        name: "none" for one device, "mirrored" for one copy of the network per device,
            "multi_worker" for the same on all devices of the processes that the environment
            variable TF_CONFIG lists. The last waits for all of them, up to ten minutes.
        devices: Numbers of the devices for "mirrored": of GPUs, or of logical CPUs if there is no
            GPU. Empty is all.
        should_stop: Asked about every second while the other workers are waited for.

    Raises:
        UserError: If a device does not exist (the message lists those that do), if TF_CONFIG is
            wrong, or if a worker does not come.
        KeyboardInterrupt: If `should_stop()` is true while waiting.
    """
    if devices and name != "mirrored":
        raise UserError(
            f"`devices` ({','.join(map(str, devices))}) needs `strategy` mirrored; received "
            f"{name}. To hide GPUs from a worker, set CUDA_VISIBLE_DEVICES."
        )
    if name == "none":
        return tf.distribute.get_strategy()
    if name == "multi_worker":
        return rendezvous.connect(should_stop)
    kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    available = tf.config.list_logical_devices(kind)
    missing = [number for number in devices if not 0 <= number < len(available)]
    if missing:
        listed = ", ".join(f"{number} ({device.name})" for number, device in enumerate(available))
        raise UserError(f"`devices`: there is no device {missing[0]}. There are: {listed}.")
    names = [f"{kind}:{number}" for number in devices or range(len(available))]
    # Collective operations on CPUs fail once a process has had strategies of two sizes (seen on
    # 2.21, tensorflow#62790).
    reduction = tf.distribute.ReductionToOneDevice() if kind == "CPU" else None
    return tf.distribute.MirroredStrategy(names, cross_device_ops=reduction)


def describe_devices(strategy: tf.distribute.Strategy) -> str:
    """Returns one line about what the strategy computes on."""
    replicas = strategy.num_replicas_in_sync
    gpus = len(tf.config.list_physical_devices("GPU"))
    kind = f"{gpus} GPU(s) here" if gpus else "no GPU found, so it computes on the CPU"
    return f"{replicas} replica(s); {kind}"


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
