"""Runs that are killed or stopped at chosen and at random moments end like one that never was."""

import fcntl
import os
import pty
import random
import signal
import subprocess
import sys
import termios
import time

import numpy as np
import pytest
import tensorflow as tf
from helpers.program import ROOT, SMALL, write_slices

from unet_core.temporary import leftovers
from unet_core.training.checkpoints import folder_of

pytestmark = pytest.mark.usefixtures("default_hang_up")
FLAGS = [
    *SMALL,
    "--train_steps=14",
    "--eval_every_steps=4",
    "--checkpoint_every_steps=3",
    "--report_every_steps=2",
    "--elastic_px=3",
    "--noise=0.1",
    "--noise_share=0.5",
]

# Starts the program in a process that kills itself at the n-th call of one of its functions.
KILLED = """
import importlib, os, signal, sys
sys.path.insert(0, sys.argv.pop(1))
owner, name, count = sys.argv.pop(1), sys.argv.pop(1), int(sys.argv.pop(1))
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
from unet_core import door
door.console()
"""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_slices(tmp_path_factory.mktemp("slices"))


def start(data_dir, run_dir, *args, command=("train_loop.py",), **options):
    return subprocess.Popen(
        [
            sys.executable,
            *command,
            f"--data_dir={data_dir}",
            f"--run_dir={run_dir}",
            *FLAGS,
            *args,
        ],
        cwd=ROOT,
        text=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **options},
    )


def finish(process):
    out, _ = process.communicate(timeout=600)
    return process.returncode, out


def final_state(run_dir):
    reader = tf.train.load_checkpoint(str(folder_of(run_dir / "checkpoints", 14) / "state"))
    names = reader.get_variable_to_shape_map()
    return {
        name: reader.get_tensor(name) for name in names if name != "_CHECKPOINTABLE_OBJECT_GRAPH"
    }


def check_like_uninterrupted(run_dir, uninterrupted):
    found, expected = final_state(run_dir), final_state(uninterrupted)
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    history = (run_dir / "history.csv").read_text()
    assert history == (uninterrupted / "history.csv").read_text()


@pytest.fixture(scope="module")
def uninterrupted(data_dir, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("uninterrupted") / "run"
    code, out = finish(start(data_dir, run_dir))
    assert code == 0, out
    return run_dir


class TestKill:
    def test_run_killed_five_times_ends_like_the_uninterrupted_one(
        self, data_dir, tmp_path, uninterrupted
    ):
        moment = random.Random(str(tmp_path))
        kills = [
            ("unet_core.training.loop", "make_report", 1),  # before the first save
            ("unet_core.files", "flush", 2),  # inside a save
            ("unet_core.training.evaluation:Evaluation", "_step", 1),  # in an evaluation
            ("unet_core.data.stream:SampleStream", "write", moment.randint(1, 40)),
            ("unet_core.training.history:History", "append", moment.randint(1, 3)),
        ]
        run_dir = tmp_path / "run"
        for owner, name, count in kills:
            command = ("-c", KILLED, str(ROOT), owner, name, str(count))
            code, out = finish(start(data_dir, run_dir, command=command))
            assert code == -signal.SIGKILL, out
        code, out = finish(start(data_dir, run_dir))
        assert code == 0, out
        assert "Going on from step" in out
        check_like_uninterrupted(run_dir, uninterrupted)
        assert leftovers(run_dir / "checkpoints") == []

    def test_nothing_appears_twice_in_the_event_files(self, data_dir, tmp_path):
        from tensorboard.backend.event_processing import event_accumulator

        run_dir = tmp_path / "run"
        command = ("-c", KILLED, str(ROOT), "unet_core.training.history:History", "append", "5")
        finish(start(data_dir, run_dir, command=command))
        finish(start(data_dir, run_dir))
        # Reports every two steps, evaluations every four, both at the end; scores at the end.
        steps_of = {
            "train": [2, 4, 6, 8, 10, 12, 14],
            "held_out": [4, 8, 12, 14],
            "final": [],
            "": [],
        }
        for part, steps_of_loss in steps_of.items():
            path = str(run_dir / "events" / part)
            events = event_accumulator.EventAccumulator(path, {"tensors": 0})
            events.Reload()
            if steps_of_loss:
                assert [e.step for e in events.Tensors("loss")] == steps_of_loss
            for tag in events.Tags()["tensors"]:
                steps = [event.step for event in events.Tensors(tag)]
                assert len(steps) == len(set(steps)), tag


class TestStopSignal:
    @pytest.mark.parametrize(
        "number",
        [
            signal.SIGINT,
            signal.SIGTERM,
            pytest.param(signal.SIGUSR1, marks=pytest.mark.slow),
            pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
        ],
    )
    def test_saves_says_how_to_go_on_and_ends_like_the_uninterrupted_one(
        self, data_dir, tmp_path, uninterrupted, number
    ):
        run_dir = tmp_path / "run"
        process = start(data_dir, run_dir)
        _wait_for(run_dir / "checkpoints" / "step-00000003")
        os.kill(process.pid, number)
        code, out = finish(process)
        assert code == 128 + number, out
        assert "Start the same command again" in out
        assert "Traceback" not in out
        code, out = finish(start(data_dir, run_dir))
        assert code == 0, out
        check_like_uninterrupted(run_dir, uninterrupted)

    def test_lost_terminal_saves(self, data_dir, tmp_path):
        terminal, inner = pty.openpty()
        process = start(
            data_dir,
            tmp_path / "run",
            "--train_steps=100000",
            "--checkpoint_every_steps=100000",
            "--eval_every_steps=100000",
            stdin=inner,
            stdout=inner,
            stderr=inner,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(inner)
        _wait_for_row(tmp_path / "run" / "history.csv")
        os.close(terminal)
        assert process.wait(timeout=600) == 128 + signal.SIGHUP
        (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
        assert (checkpoint / "manifest.json").exists()

    @pytest.mark.slow
    @pytest.mark.parametrize("way", ["end", "mistake", "SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"])
    def test_every_way_out_has_its_exit_code_twenty_times(self, data_dir, tmp_path, way):
        codes = []
        for number in range(20):
            run_dir = tmp_path / f"run{number}"
            args = ["--train_steps=100000"] if way.startswith("SIG") else ["--train_steps=4"]
            process = start(data_dir, run_dir, *args, *(["--crop_size=99"] * (way == "mistake")))
            if way.startswith("SIG"):
                _wait_for(run_dir / "checkpoints" / "step-00000003")
                time.sleep(random.random())
                process.send_signal(getattr(signal, way))
            codes.append(finish(process)[0])
        expected = {"end": 0, "mistake": 2, "SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 138}
        expected["SIGHUP"] = 129
        assert codes == [expected[way]] * 20


def _wait_for_row(path):
    _wait_for(path)
    deadline = time.monotonic() + 400
    while path.read_text().count("\n") < 2:
        assert time.monotonic() < deadline, f"{path} got no row"
        time.sleep(0.01)


def _wait_for(path):
    deadline = time.monotonic() + 400
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)
