"""One GPU or CPU split into four logical devices, so that several replicas can be tried."""

import os
import signal

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import cv2
import pytest
import tensorflow as tf
from absl.testing import flagsaver
from tensorflow.python.framework import config

from unet_core import door as program
from unet_core.training import devices

cv2.setNumThreads(1)
_gpus = tf.config.list_physical_devices("GPU")
tf.config.set_logical_device_configuration(
    (_gpus or tf.config.list_physical_devices("CPU"))[0],
    [tf.config.LogicalDeviceConfiguration(memory_limit=1024 if _gpus else None)] * 4,
)
# Its 10 bits are no equality.
tf.config.experimental.enable_tensor_float_32_execution(False)


@pytest.fixture
def mirrored():
    """A factory of strategies: `mirrored(n)` has n replicas on n logical CPUs; 1 is no strategy."""

    def make(replicas: int) -> tf.distribute.Strategy:
        if replicas == 1:
            return devices.make_strategy("none")
        return devices.make_strategy("mirrored", range(replicas))

    return make


@pytest.fixture
def door(capfd):
    """Runs the program in this process; returns (exit code, standard output, standard error)."""

    def run(*args):
        with flagsaver.flagsaver():
            try:
                code = program.main(program._parse_flags(["train_loop", *map(str, args)]))
            except SystemExit as error:
                code = error.code
            finally:
                # `--deterministic` is for the whole process, and binds what other tests compile.
                config.disable_op_determinism()
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(autouse=True)
def no_report(request, monkeypatch):
    """Spares every run the seconds that its report takes, except in tests that are about it."""
    if "report" not in request.node.path.name and "page" not in request.node.path.name:
        monkeypatch.setattr("unet_core.reports.page.missing_packages", lambda: ["matplotlib"])


@pytest.fixture
def default_hang_up():
    """SIGHUP ends the programs that a test starts, even if the tests run under `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
