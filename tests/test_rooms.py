"""Who may import whom, and that importing does nothing."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
MODULES = sorted((ROOT / "unet_core").rglob("*.py"))
# Rooms that use nothing of the package besides themselves and what belongs to no room.
ALONE = {"data", "models", "training", "losses", "metrics", "scores", "config"}


def room_of(path):
    return path.relative_to(ROOT / "unet_core").parts[0].removesuffix(".py")


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("unet_core."))


class TestRooms:
    @pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
    def test_room_imports_only_what_it_may(self, path):
        room = room_of(path)
        if room in ALONE:
            assert set(imported_rooms(path)) <= {room, "errors", "files", "conventions", "registry"}

    def test_every_guarded_room_exists(self):
        assert {room_of(path) for path in MODULES} >= ALONE

    def test_flags_stop_at_the_door(self):
        for path in MODULES:
            assert "absl.flags" not in path.read_text()
            assert "import flags" not in path.read_text()


class TestImport:
    def test_package_does_not_import_tensorflow(self):
        imported = "sys, unet_core.config, unet_core.runs.process"
        code = f"import {imported}; print('tensorflow' in sys.modules)"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert done.stdout == "False\n"

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
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) == len(names)
