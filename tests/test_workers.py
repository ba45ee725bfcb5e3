"""Two processes that train one network: equal to one process, and stopped, lost and resumed
together.
"""

import csv
import json
import signal
import socket
import time

import numpy as np
import pytest
import tensorflow as tf
from helpers import forked
from helpers.program import SMALL, write_slices

from unet_core.training.checkpoints import folder_of, steps_in

FLAGS = [
    *SMALL,
    "--eval_every_steps=200",
    "--report_every_steps=50",
    "--checkpoint_every_steps=50",
    "--loss=cross_entropy,batch_dice",
    "--ema_decay=0.9",
    "--precision=float32",
]
LONG = "--train_steps=200"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_slices(tmp_path_factory.mktemp("slices"))


def start(data_dir, run_dir, *args, tf_config=None):
    env = {"TF_CONFIG": tf_config} if tf_config else {}
    return forked.program(f"--data_dir={data_dir}", f"--run_dir={run_dir}", *FLAGS, *args, env=env)


def two_workers(data_dir, run_dir, *args, of_second=()):
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    pair = []
    for index in range(2):
        task = {"type": "worker", "index": index}
        tf_config = json.dumps({"cluster": {"worker": addresses}, "task": task})
        all_args = ["--strategy=multi_worker", *args, *(of_second if index else ())]
        pair.append(start(data_dir, run_dir, *all_args, tf_config=tf_config))
    return pair


@pytest.fixture
def start_two(data_dir):
    """A factory of two workers; those still running at the end are killed."""
    processes = []

    def make(*args, **kwargs):
        processes.extend(two_workers(data_dir, *args, **kwargs))
        return processes[-2:]

    yield make
    for program in processes:
        program.kill()


def finish(program, timeout=600):
    code, out = program.finish(timeout)
    assert "Traceback" not in out, out
    return code, out


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def variables(run_dir, step):
    """Returns everything the checkpoint of `step` holds, by name."""
    reader = tf.train.load_checkpoint(str(folder_of(run_dir / "checkpoints", step) / "state"))
    names = reader.get_variable_to_shape_map()
    return {n: reader.get_tensor(n) for n in names if n != "_CHECKPOINTABLE_OBJECT_GRAPH"}


@pytest.fixture(scope="module")
def undisturbed(data_dir, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    both = [finish(program) for program in two_workers(data_dir, run_dir, LONG)]
    assert [code for code, _ in both] == [0, 0], both
    return run_dir


class TestTwoWorkers:
    # With batch norm, rounding of 1e-7 tips single activations within some ten steps.
    @pytest.mark.parametrize(
        ("norm", "steps"),
        [
            pytest.param("--normalization=none", 20, marks=pytest.mark.slow),
            ("--normalization=batch", 5),
        ],
    )
    def test_end_with_the_weights_of_one_process(self, data_dir, start_two, tmp_path, norm, steps):
        args = (f"--train_steps={steps}", norm)
        code, out = finish(start(data_dir, tmp_path / "one", *args))
        assert code == 0, out
        both = [finish(program) for program in start_two(tmp_path / "two", *args)]
        assert [code for code, _ in both] == [0, 0], both
        one, two = variables(tmp_path / "one", steps), variables(tmp_path / "two", steps)
        kinds = ("parts/model/model/", "loop/average", "parts/model/optimizer/")
        names = [name for name in one if name.startswith(kinds)]
        assert len(names) > 40
        deviation = max(np.abs(one[name] - two[name]).max() for name in names)
        print(f"{norm}, {steps} steps: largest deviation {deviation:.2g}")
        assert deviation <= 1e-5
        assert "worker 0 shows the progress" in both[1][1]
        assert (tmp_path / "two" / "scores.json").exists()
        files = [path for path in (tmp_path / "two" / "events").rglob("*") if path.is_file()]
        assert len(files) == 4
        assert not list((tmp_path / "two").glob("seen-by*"))

    @pytest.mark.parametrize(
        ("way", "lost"),
        [
            ("SIGKILL", 1),
            pytest.param("SIGSTOP", 0, marks=pytest.mark.slow),
            pytest.param("SIGKILL", 0, marks=pytest.mark.exhaustive),
            pytest.param("SIGSTOP", 1, marks=pytest.mark.exhaustive),
        ],
    )
    def test_one_lost_ends_the_other_and_both_resume(
        self, start_two, tmp_path, undisturbed, way, lost
    ):
        run_dir = tmp_path / "run"
        pair = start_two(run_dir, LONG)
        pair[0].wait_for(run_dir / "checkpoints" / "step-00000050")
        pair[lost].send_signal(getattr(signal, way))
        began = time.monotonic()
        code, out = finish(pair[1 - lost], timeout=240)
        print(f"worker {1 - lost} ended {time.monotonic() - began:.0f} s after {way} of {lost}")
        assert code == 2
        assert f"Lost worker {lost} (127.0.0.1:" in out
        assert "goes on from its last checkpoint" in out
        pair[lost].kill()
        pair[lost].wait()
        assert max(steps_in(run_dir / "checkpoints")) < 200
        resumed = [finish(program) for program in start_two(run_dir, LONG)]
        assert [code for code, _ in resumed] == [0, 0], resumed
        assert "Going on from step" in resumed[0][1]
        found, expected = variables(run_dir, 200), variables(undisturbed, 200)
        assert set(found) == set(expected)
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)

    @pytest.mark.parametrize("asked", [pytest.param(0, marks=pytest.mark.slow), 1])
    def test_stop_signal_on_one_stops_both_at_the_same_step_saved(self, start_two, tmp_path, asked):
        run_dir = tmp_path / "run"
        pair = start_two(run_dir, "--train_steps=100000", "--schedule=constant")
        pair[0].wait_for(run_dir / "checkpoints" / "step-00000050")
        pair[asked].send_signal(signal.SIGTERM)
        both = [finish(program) for program in pair]
        assert [code for code, _ in both] == [143, 143], both
        step = max(steps_in(run_dir / "checkpoints"))
        for _, out in both:
            assert f"Stopped and saved at step {step}." in out


class TestDisagreement:
    def test_run_folder_that_one_cannot_see_is_named(self, start_two, tmp_path):
        elsewhere = tmp_path / "elsewhere"
        pair = start_two(tmp_path / "run", LONG, of_second=[f"--run_dir={elsewhere}"])
        for code, out in map(finish, pair):
            assert code == 2
            assert "worker 1 (127.0.0.1:" in out
            assert "cannot see what worker 0" in out
        assert not elsewhere.exists()
        assert not list((tmp_path / "run").glob("seen-by*"))

    def test_other_settings_are_named_with_the_worker(self, start_two, tmp_path):
        pair = start_two(tmp_path / "run", LONG, of_second=["--learning_rate=0.5"])
        for code, out in map(finish, pair):
            assert code == 2
            assert "The settings of worker 1 (127.0.0.1:" in out
        assert not (tmp_path / "run" / "config.json").exists()


class TestConfiguration:
    @pytest.mark.parametrize(
        "tf_config",
        [
            None,
            "{",
            "[]",
            '{"cluster": {"worker": ["a:1"]}}',
            '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
            '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": -1}}',
            '{"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}',
            '{"cluster": {"worker": ["a:1"], "ps": []}, "task": {"type": "worker", "index": 0}}',
        ],
    )
    def test_wrong_tf_config_is_shown_with_an_example(self, monkeypatch, tf_config):
        from unet_core.errors import UserError
        from unet_core.training import devices

        monkeypatch.delenv("TF_CONFIG", raising=False)
        if tf_config:
            monkeypatch.setenv("TF_CONFIG", tf_config)
        with pytest.raises(UserError, match=r"TF_CONFIG, such as \{\"cluster\""):
            devices.make_strategy("multi_worker")

    def test_port_in_use_is_said(self, data_dir, tmp_path):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            task = {"type": "worker", "index": 0}
            tf_config = json.dumps({"cluster": {"worker": [address, address]}, "task": task})
            args = ("--strategy=multi_worker", LONG)
            code, out = finish(start(data_dir, tmp_path / "run", *args, tf_config=tf_config))
        assert code == 2
        assert f"Worker 0 ({address}) cannot start (Address already in use" in out

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_wait_for_a_worker_that_does_not_come_can_be_stopped(self, data_dir, tmp_path, number):
        addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
        task = {"type": "worker", "index": 0}
        tf_config = json.dumps({"cluster": {"worker": addresses}, "task": task})
        args = ("--strategy=multi_worker", LONG)
        program = start(data_dir, tmp_path / "run", *args, tf_config=tf_config)
        waits = "Waiting for all workers"
        program.wait_until(lambda: waits in program.output(), "It does not say that it waits.")
        time.sleep(3)
        program.send_signal(number)
        code, out = finish(program, timeout=120)
        assert code == 128 + number, out
        assert not (tmp_path / "run").exists()


class TestControls:
    @pytest.mark.slow
    def test_two_workers_decide_as_one_process_does(self, data_dir, start_two, tmp_path):
        args = ["--train_steps=40", "--eval_every_steps=4", "--warmup_steps=0"]
        args += ["--schedule=constant", "--learning_rate=1e-9", "--min_delta=0.5"]
        args += ["--plateau_patience=2", "--early_stopping_patience=4"]
        one = finish(start(data_dir, tmp_path / "one", *args))
        pair = [finish(program) for program in start_two(tmp_path / "two", *args)]
        # The evaluation at 4 is the best; 12 and 20 reduce the rate, and 20 ends it.
        assert [code for code, _ in (one, *pair)] == [0, 0, 0], (one, pair)
        assert "Trained to step 20; worker 0" in pair[1][1]
        for name in ("one", "two"):
            with (tmp_path / name / "history.csv").open(newline="") as file:
                rows = list(csv.DictReader(file))
            assert rows[-1]["step"] == "20"
            notes = {row["step"]: row["note"] for row in rows if row["note"]}
            assert list(notes) == ["12", "20"]
            assert "learning rate times 0.5" in notes["12"]
            assert "has not improved in 4 evaluations" in notes["20"]

    @pytest.mark.slow
    def test_time_that_is_up_ends_both_at_one_step(self, start_two, tmp_path):
        run_dir = tmp_path / "run"
        args = ["--train_steps=100000", "--schedule=constant", "--max_minutes=0.05"]
        pair = [finish(program) for program in start_two(run_dir, *args)]
        assert [code for code, _ in pair] == [0, 0], pair
        step = max(steps_in(run_dir / "checkpoints"))
        assert "minutes are used up" in pair[0][1]
        assert f"Trained to step {step}; worker 0" in pair[1][1]
