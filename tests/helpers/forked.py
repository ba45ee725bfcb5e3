"""Processes forked from one that has imported TensorFlow and has run nothing of it.

To import TensorFlow takes longer than most of what the tests do in a process of its own.
"""

import atexit
import importlib
import multiprocessing
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import tempfile
import time

from .program import ROOT

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tensorflow", "keras", "cv2"])


class Forked:
    """A process that calls `call(*args)`, much as `subprocess.Popen`; its output goes to a file."""

    def __init__(self, call, *args, env=None):
        self._output = pathlib.Path(tempfile.mkdtemp()) / "output"
        self._process = _context.Process(
            target=_in_child, args=(self._output, env or {}, call, args), daemon=True
        )
        self._process.start()
        self.pid = self._process.pid

    def output(self):
        """All that it has written so far, on standard output and standard error."""
        return self._output.read_text() if self._output.exists() else ""

    def poll(self):
        return self._process.exitcode

    def wait(self, timeout=600):
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired("a forked process", timeout, self.output())
        return self.poll()

    def finish(self, timeout=600):
        """Waits for its end; returns (exit code, output)."""
        return self.wait(timeout), self.output()

    def wait_for(self, path, timeout=400):
        """Waits until there is a file or folder `path`; fails if the process ends before."""
        self.wait_until(lambda: pathlib.Path(path).exists(), f"{path} did not appear", timeout)

    def wait_until(self, condition, otherwise, timeout=400):
        """Waits until `condition()` is true; fails if the process ends before."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert self.poll() is None, self.output()
            assert time.monotonic() < deadline, otherwise
            time.sleep(0.01)

    def send_signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        if self.poll() is None:
            self.send_signal(signal.SIGKILL)


def program(*args, env=None, before=None):
    """Starts the program, which writes no report; `before` is called in its process first."""
    return Forked(_door, [str(arg) for arg in args], before, env=env)


def run_code(code, *argv):
    """Runs Python code with `sys.argv[1:]`; returns (exit code, output)."""
    return Forked(_execute, code, [str(arg) for arg in argv]).finish()


def run_file(path):
    """Runs a Python file as a program; returns (exit code, output)."""
    return Forked(runpy.run_path, str(path), None, "__main__").finish()


def kill_itself_at(owner, name, count):
    """From now on the n-th call of function `name` of a module, or of "module:class", kills."""
    module, _, attribute = owner.partition(":")
    owner = importlib.import_module(module)
    owner = getattr(owner, attribute) if attribute else owner
    whole, calls = getattr(owner, name), [0]

    def killing(*args, **kwargs):
        calls[0] += 1
        if calls[0] == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*args, **kwargs)

    setattr(owner, name, killing)


def _in_child(output, environment, call, args):
    with output.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(ROOT)
    os.environ.update(environment)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # Also where the tests run under `nohup`.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        call(*args)
    finally:
        atexit._run_exitfuncs()  # What `multiprocessing` leaves out.


def _door(flags, before):
    from unet_core import door
    from unet_core.reports import page

    page.missing_packages = lambda: ["matplotlib"]  # A report takes seconds.
    sys.argv = ["train_loop.py", *flags]
    if before is not None:
        before()
    door.console()


def _execute(code, argv):
    sys.argv = ["-c", *argv]
    exec(code, {"__name__": "__main__"})
