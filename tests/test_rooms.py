"""Functions and files are short, flags stay in the program, and importing does nothing.

Who may import whom is a contract in `.importlinter`.
"""

import ast
import pathlib
import subprocess
import sys

import pytest
from helpers import forked

ROOT = pathlib.Path(__file__).parent.parent
MODULES = sorted((ROOT / "unet_core").rglob("*.py"))
PROGRAMS = [ROOT / "train_loop.py", *sorted((ROOT / "benchmarks").glob("*.py"))]
PROGRAMS += sorted((ROOT / "examples").rglob("*.py"))

# Lines of a function, its docstring not counted.
MOST_LINES = 60
# Lines of a file.
MOST_LINES_OF_A_FILE = 500
# What is longer, and why.
LONGER_FILES = {
    "unet_core/data/augment.py": "one class: all random draws of a sample, in their order",
    "unet_core/data/survey.py": "all that is looked at before a training, and how it is told",
    "unet_core/files.py": "what is read and written is checked in one place",
    "unet_core/scores.py": "one function or class for each score",
    "unet_core/training/loop.py": "the public class is mostly the docstrings of its methods",
    "unet_core/training/update.py": "the order of one update, from reducing to averaging",
}


def long_functions(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            docstring = ast.get_docstring(node) is not None
            lines = node.end_lineno - node.lineno + 1
            lines -= docstring * (first.end_lineno - first.lineno + 1)
            if lines > MOST_LINES:
                yield f"{path.relative_to(ROOT)}:{node.name}"


class TestFunctions:
    @pytest.mark.parametrize(
        "path", [*MODULES, *PROGRAMS], ids=lambda path: str(path.relative_to(ROOT))
    )
    def test_are_short(self, path):
        assert not list(long_functions(path))


class TestFiles:
    @pytest.mark.parametrize(
        "path", [*MODULES, *PROGRAMS], ids=lambda path: str(path.relative_to(ROOT))
    )
    def test_are_short_or_say_why_not(self, path):
        lines = len(path.read_text().splitlines())
        assert lines <= MOST_LINES_OF_A_FILE or str(path.relative_to(ROOT)) in LONGER_FILES

    def test_that_are_short_now_leave_the_list(self):
        lines = {name: len((ROOT / name).read_text().splitlines()) for name in LONGER_FILES}
        assert all(count > MOST_LINES_OF_A_FILE for count in lines.values()), lines


class TestFlags:
    def test_stop_at_the_door(self):
        for path in MODULES:
            assert "absl.flags" not in path.read_text()
            assert "import flags" not in path.read_text()


class TestImport:
    def test_package_does_not_import_tensorflow(self):
        imported = "sys, unet_core.settings, unet_core.runs.process"
        code = f"import {imported}; print('tensorflow' in sys.modules)"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert done.stdout == "False\n"

    def test_nothing_of_posix_alone_is_needed_to_import(self):
        # As on Windows, where these are missing.
        code = """
import os, select, sys
import tensorflow, keras, cv2, tqdm, PIL.Image
sys.modules["fcntl"] = None
for owner, names in ((os, ("O_NONBLOCK", "O_NOFOLLOW", "fchmod", "mkfifo")), (select, ("poll",))):
    for name in names:
        delattr(owner, name)
import unet_core.inference, unet_core.inference.trained, unet_core.outputs.files, unet_core.door
import unet_core.reports.folds, unet_core.training, unet_core.run_directory, unet_core.data.survey
"""
        found, out = forked.run_code(code)
        assert found == 0, out

    def test_importing_every_module_changes_nothing_of_the_process(self):
        names = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in MODULES]
        names = [name.removesuffix(".__init__") for name in names]
        code = f"""
import os, random, signal, logging
import cv2, keras, numpy as np, tensorflow as tf
from absl import logging as absl_logging
def state():
    return (
        dict(os.environ), random.getstate(), str(np.random.get_state()),
        keras.config.dtype_policy().name, keras.config.floatx(),
        cv2.getNumThreads(), logging.getLogger().level, absl_logging.get_verbosity(),
        signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM),
        tf.config.get_logical_device_configuration(tf.config.list_physical_devices("CPU")[0]),
    )
before = state()
import importlib
for name in {names!r}:
    importlib.import_module(name)
assert state() == before
print(len({names!r}))
"""
        found, out = forked.run_code(code)
        assert found == 0, out
        assert int(out.splitlines()[-1]) == len(names)
