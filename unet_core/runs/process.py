"""What acts on the whole process: loading libraries quietly, devices and seeds, signals.

Only `train_loop.py` calls it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pathlib
import re
import select
import signal
import sys
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

from absl import logging

from unet_core.errors import UserError
from unet_core.settings.training import TrainingSettings

if TYPE_CHECKING:
    import tensorflow as tf


# SIGUSR1 is Slurm's warning before the time limit (--signal=USR1@60), SIGHUP a lost terminal.
_STOP_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
    if hasattr(signal, name)
)

# Keras (3.15) loads them if they are installed, for wrappers of its models and galleries that this
# program has no use for, and takes almost a second for it.
_KERAS_WOULD_LOAD = ("sklearn", "matplotlib")


def import_libraries() -> None:
    """Imports TensorFlow, Keras and OpenCV; shows their start-up noise only if one fails."""
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    if backend != "tensorflow":
        raise UserError(f"KERAS_BACKEND is {backend!r}; this program needs tensorflow. Unset it.")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    keep_freed_memory()
    with _held_back_noise():
        try:
            import cv2
        except ImportError as error:
            raise UserError(
                f"OpenCV cannot be loaded ({error}). On a machine without a screen, install "
                "opencv-python-headless in place of opencv-python."
            ) from error
        with _left_out(*_KERAS_WOULD_LOAD):
            import keras
        import PIL.Image
        import tensorflow as tf

        tf.config.list_physical_devices()
    if keras.backend.backend() != "tensorflow":
        raise UserError(
            f"Keras is set up for {keras.backend.backend()!r}; run with KERAS_BACKEND=tensorflow."
        )
    # Samples are made in several threads already; OpenCV's own would stand in their way.
    cv2.setNumThreads(1)
    # Micrographs are larger than what Pillow takes for an attack; `images` has a limit of its own.
    PIL.Image.MAX_IMAGE_PIXELS = None
    logging.set_verbosity(logging.WARNING)
    tf.get_logger().setLevel("ERROR")


@contextlib.contextmanager
def _left_out(*names: str) -> Iterator[None]:
    """Lets the modules `names` be missing within the block, unless they are loaded already.

    What is None in `sys.modules` cannot be imported; after the block they can.
    """
    names = tuple(name for name in names if name not in sys.modules)
    sys.modules.update(dict.fromkeys(names))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)


def resident(name: str = "VmRSS") -> int:
    """Returns the bytes of this process that are resident, or "VmHWM", their peak; on Linux.

    Raises:
        OSError: If this system does not tell.
    """
    status = pathlib.Path("/proc/self/status")
    found = re.search(rf"^{name}:\s+(\d+) kB", status.read_text(), re.MULTILINE)
    if not found:
        raise OSError(f"{status} has no {name}")
    return 1024 * int(found[1])


def begin_peak() -> int:
    """Lets the peak begin anew at what is resident now, on Linux 4.0 and later; returns that.

    Raises:
        OSError: If this system cannot.
    """
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    return resident()


def keep_freed_memory() -> None:
    """Tells glibc's malloc to keep what is freed and to give it out again; elsewhere nothing.

    By default each tensor of more than 128 KB is mapped afresh and given back, so that every step
    faults all its pages in anew, which takes two fifths of a step on a CPU (docs/results.md).
    The names are those of mallopt(3): no block is mapped by itself, the heap is never trimmed and
    grows by 64 MB at a time.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # Another C library, such as musl.
        return
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, -1)
    mallopt(m_top_pad, 64 << 20)


@contextlib.contextmanager
def _held_back_noise() -> Iterator[None]:
    """Sends what native code writes to standard error to a file, shown only if the block fails.

    TF_CPP_MIN_LOG_LEVEL does not silence the lines written before logging is set up (TensorFlow
    2.21).
    """
    sys.stderr.flush()
    screen = os.dup(2)
    with tempfile.TemporaryFile() as noise:
        os.dup2(noise.fileno(), 2)
        try:
            yield
        except UserError:
            raise
        except BaseException:
            noise.seek(0)
            os.write(screen, noise.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(screen, 2)
            os.close(screen)


def find_modules_here() -> None:
    """Lets modules of the current folder be imported, before others, as `python -m` does."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def prepare_devices(
    settings: TrainingSettings, stop: StopRequest, *, strategy: str | None = None
) -> tf.distribute.Strategy:
    """Sets up devices, seeds and determinism for the whole process; returns the strategy.

    It is `strategy`, or that of the settings if None.
    """
    import keras
    import tensorflow as tf

    from unet_core.training import devices

    devices.limit_devices(
        logical_devices=settings.logical_devices,
        memory_growth=settings.memory_growth,
        memory_limit_mb=settings.memory_limit_mb,
    )
    keras.utils.set_random_seed(settings.seed)
    if settings.deterministic:
        tf.config.experimental.enable_op_determinism()
    name = strategy or settings.strategy
    if name == "multi_worker":
        print("Waiting for all workers of TF_CONFIG.")
    chosen = settings.devices if strategy is None else ()
    made = devices.make_strategy(name, chosen, should_stop=stop)
    stop.listen()
    return made


class StopRequest:
    """Whether the run has been asked to stop, and with which signal."""

    signal = 0

    def __call__(self) -> bool:
        """Whether it has been asked to stop."""
        return bool(self.signal)

    def listen(self) -> None:
        """Takes the signals; again after TensorFlow, whose workers take SIGTERM (seen on 2.21).

        A SIGHUP that is ignored, as under `nohup`, stays ignored.
        """
        for number in _STOP_SIGNALS:
            ignored = signal.getsignal(number) is signal.SIG_IGN
            if not (ignored and number.name == "SIGHUP"):
                signal.signal(number, self._request)

    def _request(self, number: int, _) -> None:
        self.signal = number
        if signal.Signals(number).name == "SIGHUP":
            _drop_output_nobody_reads()
        # Not `print`, which must not enter a buffer that was being written to when the signal came.
        with contextlib.suppress(OSError, ValueError):
            os.write(sys.stderr.fileno(), b"\nStopping: finishing the current call and saving.\n")
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _drop_output_nobody_reads() -> None:
    """Sends standard output and error nowhere if nobody reads them any more.

    That is so if their terminal, or the `| tee` that read them, is gone. The progress bar could not
    be shown and would end the run before it has saved.
    """
    for descriptor in (1, 2):
        poll = select.poll()
        poll.register(descriptor, 0)
        # 0.5 s, because a `tee` may need a moment to end of the same signal.
        if any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(500)):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)


@contextlib.contextmanager
def stop_signals(stop: StopRequest) -> Iterator[None]:
    """Turns the first Ctrl-C, SIGTERM, SIGUSR1 or SIGHUP into a request to stop.

    A Ctrl-C after it stops at once.
    """
    before = {number: signal.getsignal(number) for number in _STOP_SIGNALS}
    stop.listen()
    try:
        yield
    finally:
        for number, handler in before.items():
            # None is a handler in C, which cannot be put back from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
