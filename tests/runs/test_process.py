"""Signals, tried on a small program; `test_interruptions` tries them on the whole one."""

import fcntl
import os
import pathlib
import pty
import signal
import subprocess
import sys
import termios
import time

import pytest

from unet_core.runs.process import StopRequest, stop_signals

pytestmark = pytest.mark.usefixtures("default_hang_up")
ROOT = pathlib.Path(__file__).parents[2]
NOTICE = "\nStopping: finishing the current call and saving.\n"
# Shows its progress until it is asked to stop, then "saves"; the exit code is that of train_loop.
PROGRAM = """
import pathlib, sys, time
from unet_core.runs.process import StopRequest, stop_signals
folder, stopped = pathlib.Path(sys.argv[1]), StopRequest()
with stop_signals(stopped):
    stopped.listen()  # as after TensorFlow
    (folder / "ready").touch()
    while not stopped() and not (folder / "end").exists():
        print("progress", file=sys.stderr, flush=True)
        time.sleep(0.01)
    for _ in range(20):
        print("progress", flush=True)
        print("progress", file=sys.stderr, flush=True)
    (folder / "saved").touch()
sys.exit(128 + stopped.signal if stopped.signal else 0)
"""


def start(folder, *before, **options):
    process = subprocess.Popen(
        [*before, sys.executable, "-c", PROGRAM, folder], cwd=ROOT, text=True, **options
    )
    wait_for(folder / "ready")
    return process


def wait_for(path):
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


def listening(folder, **options):
    return start(folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


class TestStopSignals:
    @pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"])
    def test_signal_asks_to_stop_says_so_and_is_in_the_exit_code(self, tmp_path, name):
        process = listening(tmp_path)
        process.send_signal(getattr(signal, name))
        _, shown = process.communicate(timeout=240)
        assert process.returncode == 128 + getattr(signal, name)
        assert shown.count(NOTICE) == 1
        assert "Traceback" not in shown
        assert (tmp_path / "saved").exists()

    def test_hang_up_under_nohup_is_ignored_and_other_signals_are_not(self, tmp_path):
        process = start(tmp_path, "nohup", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.5)
        process.send_signal(signal.SIGUSR1)
        _, shown = process.communicate(timeout=240)
        assert process.returncode == 128 + signal.SIGUSR1
        assert shown.count(NOTICE) == 1

    def test_lost_terminal_stops_and_saves(self, tmp_path):
        terminal, inner = pty.openpty()
        process = start(
            tmp_path,
            stdin=inner,
            stdout=inner,
            stderr=inner,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(inner)
        os.close(terminal)
        assert process.wait(timeout=240) == 128 + signal.SIGHUP
        assert (tmp_path / "saved").exists()

    def test_reader_of_the_output_that_is_hung_up_too_does_not_hinder_saving(self, tmp_path):
        reader = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        process = start(tmp_path, stdout=reader.stdin, stderr=reader.stdin)
        reader.stdin.close()
        process.send_signal(signal.SIGHUP)
        reader.send_signal(signal.SIGHUP)
        assert process.wait(timeout=240) == 128 + signal.SIGHUP
        assert reader.wait(timeout=240) == -signal.SIGHUP
        assert (tmp_path / "saved").exists()

    @pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
    def test_notice_that_cannot_be_shown_is_no_error(self, name):
        program = """
import os, signal, sys
from unet_core.runs.process import StopRequest
stopped = StopRequest()
stopped.listen()
reader, writer = os.pipe()
os.close(reader)
os.dup2(writer, 2)
signal.raise_signal(getattr(signal, sys.argv[1]))
print("asked" if stopped() else "not asked")
"""
        done = subprocess.run(
            [sys.executable, "-c", program, name], cwd=ROOT, capture_output=True, text=True
        )
        assert (done.returncode, done.stdout) == (0, "asked\n")

    def test_second_interrupt_stops_at_once(self, tmp_path):
        program = """
import signal
from unet_core.runs.process import StopRequest
stopped = StopRequest()
stopped.listen()
signal.raise_signal(signal.SIGUSR1)
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print(stopped.signal == signal.SIGUSR1)
"""
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
        )
        assert done.stdout == "True\n"

    def test_handlers_of_before_are_back_afterwards(self):
        numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP]
        before = [signal.getsignal(number) for number in numbers]
        with stop_signals(StopRequest()):
            assert all(signal.getsignal(n) != b for n, b in zip(numbers, before, strict=True))
        assert [signal.getsignal(number) for number in numbers] == before

    def test_handler_that_is_not_of_python_is_no_error_afterwards(self, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(signal, "getsignal", lambda number: None)
            with stop_signals(StopRequest()):
                pass
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="malloc of glibc")
def test_freed_memory_is_given_out_again():
    program = """
import ctypes, resource
from unet_core.runs.process import keep_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def pages_of_a_block():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(16 << 20)
    libc.memset(block, 1, 16 << 20)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
keep_freed_memory()
print(pages_of_a_block() > 1000, pages_of_a_block())
"""
    # 16 MB are 4096 pages of 4 KB; the second block lies where the first lay, so none is new.
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "True 0\n", done.stdout + done.stderr


def test_keras_is_loaded_without_what_it_would_load_beside_and_that_can_be_loaded_later():
    program = """
import sys
from unet_core.runs.process import import_libraries
import_libraries()
print([name for name in sys.modules if name.partition(".")[0] in ("sklearn", "matplotlib")])
import matplotlib.pyplot
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stdout + done.stderr
