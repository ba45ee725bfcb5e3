"""Runs that are killed or stopped at chosen and at random moments end like one that never was."""

import fcntl
import functools
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
from helpers.forked import kill_itself_at, program
from helpers.program import ROOT, SMALL, write_slices
from tensorboard.backend.event_processing import event_accumulator

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


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_slices(tmp_path_factory.mktemp("slices"))


@pytest.fixture
def start(data_dir):
    """A factory of programs that train in a run folder; those still running at the end are killed.

    `kill` names the call that kills it: owner, function, number.
    """
    programs = []

    def make(run_dir, *args, kill=None):
        before = functools.partial(kill_itself_at, *kill) if kill else None
        flags = [f"--data_dir={data_dir}", f"--run_dir={run_dir}", *FLAGS, *args]
        programs.append(program(*flags, before=before))
        return programs[-1]

    yield make
    for process in programs:
        process.kill()


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


def check_events(folder):
    """Checks that nothing of the run is twice in its event files, and nothing is missing."""
    # Reports every two steps, evaluations every four, both at the end; scores at the end.
    steps_of = {"train": [2, 4, 6, 8, 10, 12, 14], "held_out": [4, 8, 12, 14], "final": [], "": []}
    for part, steps_of_loss in steps_of.items():
        events = event_accumulator.EventAccumulator(str(folder / part), {"tensors": 0})
        events.Reload()
        if steps_of_loss:
            assert [event.step for event in events.Tensors("loss")] == steps_of_loss
        for tag in events.Tags()["tensors"]:
            steps = [event.step for event in events.Tensors(tag)]
            assert len(steps) == len(set(steps)), tag


@pytest.fixture(scope="module")
def uninterrupted(data_dir, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("uninterrupted") / "run"
    code, out = program(f"--data_dir={data_dir}", f"--run_dir={run_dir}", *FLAGS).finish()
    assert code == 0, out
    return run_dir


class TestKill:
    def test_run_killed_five_times_ends_like_the_uninterrupted_one(
        self, start, tmp_path, uninterrupted
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
        for kill in kills:
            code, out = start(run_dir, kill=kill).finish()
            assert code == -signal.SIGKILL, out
        code, out = start(run_dir).finish()
        assert code == 0, out
        assert "Going on from step" in out
        check_like_uninterrupted(run_dir, uninterrupted)
        assert leftovers(run_dir / "checkpoints") == []
        check_events(run_dir / "events")


class TestStopSignal:
    @pytest.mark.parametrize(
        "number",
        [
            signal.SIGTERM,
            pytest.param(signal.SIGINT, marks=pytest.mark.slow),
            pytest.param(signal.SIGUSR1, marks=pytest.mark.slow),
            pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
        ],
    )
    def test_saves_says_how_to_go_on_and_ends_like_the_uninterrupted_one(
        self, start, tmp_path, uninterrupted, number
    ):
        run_dir = tmp_path / "run"
        process = start(run_dir)
        process.wait_for(run_dir / "checkpoints" / "step-00000003")
        process.send_signal(number)
        code, out = process.finish()
        assert code == 128 + number, out
        assert "Start the same command again" in out
        assert "Traceback" not in out
        code, out = start(run_dir).finish()
        assert code == 0, out
        check_like_uninterrupted(run_dir, uninterrupted)

    def test_lost_terminal_saves(self, data_dir, tmp_path):
        terminal, inner = pty.openpty()
        command = [sys.executable, "train_loop.py", f"--data_dir={data_dir}", *FLAGS]
        command += [
            f"--run_dir={tmp_path / 'run'}",
            "--train_steps=100000",
            "--checkpoint_every_steps=100000",
            "--eval_every_steps=100000",
        ]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
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
    def test_every_way_out_has_its_exit_code(self, start, tmp_path, way):
        codes = []
        for number in range(3):
            run_dir = tmp_path / f"run{number}"
            args = ["--train_steps=100000"] if way.startswith("SIG") else ["--train_steps=4"]
            process = start(run_dir, *args, *(["--folds=99"] * (way == "mistake")))
            if way.startswith("SIG"):
                process.wait_for(run_dir / "checkpoints" / "step-00000003")
                time.sleep(random.random())
                process.send_signal(getattr(signal, way))
            codes.append(process.wait())
        expected = {"end": 0, "mistake": 2, "SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 138}
        expected["SIGHUP"] = 129
        assert codes == [expected[way]] * 3


def _wait_for_row(path):
    deadline = time.monotonic() + 400
    while not path.exists() or path.read_text().count("\n") < 2:
        assert time.monotonic() < deadline, f"{path} got no row"
        time.sleep(0.01)
