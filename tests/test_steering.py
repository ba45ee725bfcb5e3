"""Controls, epochs and schedules as flags of the program."""

import csv
import json
import os
import pty
import re
import shutil
import subprocess
import sys

import cv2
import pytest
from helpers import forked
from helpers.program import ROOT, TINY, check_refused, write_slices

from unet_core.training import Checkpoints

SMALL = [*TINY, "--train_steps=12", "--deterministic"]
# At a rate of 0 no score ever improves.
STILL = ["--learning_rate=0", "--early_stopping_patience=3"]


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    return write_slices(tmp_path_factory.mktemp("slices"), test_slices=0)


def history(run):
    with (run / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


class TestEarlyStopping:
    def test_ends_training_and_the_same_command_does_not_train_on(self, door, slices, tmp_path):
        same = [f"--data_dir={slices}", f"--run_dir={tmp_path / 'run'}", *SMALL, *STILL]
        code, out, err = door(*same)
        # The first of the evaluations at 2, 4, 6, 8 is the best; three without improvement.
        assert code == 0, err
        assert "Training ends here: dice/mean has not improved in 3 evaluations." in out
        assert [row["step"] for row in history(tmp_path / "run")] == ["2", "4", "6", "8"]
        assert "not improved in 3" in history(tmp_path / "run")[-1]["note"]
        assert (tmp_path / "run" / "scores.json").exists()
        code, out, err = door(*same)
        assert code == 0, err
        assert "Training ended at step 8 (early_stopping)" in out
        assert "raise --early_stopping_patience" in out
        assert "finished at step 8" in out
        code, out, err = door(*same, "--early_stopping_patience=5")
        assert code == 0, err
        assert [row["step"] for row in history(tmp_path / "run")] == [
            "2",
            "4",
            "6",
            "8",
            "10",
            "12",
        ]

    def test_a_run_killed_inside_the_patience_decides_as_the_undisturbed_one(
        self, door, slices, tmp_path, monkeypatch
    ):
        def same(name):
            return [f"--data_dir={slices}", f"--run_dir={tmp_path / name}", *SMALL, *STILL]

        assert door(*same("whole"))[0] == 0
        save = Checkpoints.save

        def killed_after(checkpoints, **kwargs):
            folder = save(checkpoints, **kwargs)
            if folder.name.endswith("6"):
                raise KeyboardInterrupt
            return folder

        monkeypatch.setattr(Checkpoints, "save", killed_after)
        assert door(*same("parts"))[0] == 130
        monkeypatch.setattr(Checkpoints, "save", save)
        assert door(*same("parts"))[0] == 0
        assert history(tmp_path / "parts") == history(tmp_path / "whole")


class TestPlateauAndDwell:
    def test_rates_go_down_and_the_history_says_why(self, door, slices, tmp_path):
        args = ["--schedule=constant", "--learning_rate=1e-9", "--plateau_patience=2"]
        args += ["--min_delta=0.5", "--plateau_factor=0.1"]
        code, _, err = door(f"--data_dir={slices}", f"--run_dir={tmp_path / 'run'}", *SMALL, *args)
        assert code == 0, err
        rows = history(tmp_path / "run")
        # The first evaluation, at 2, is the best; without improvement are 4, 6 and again 8, 10.
        rates = [float(row["train/rate"]) for row in rows]
        assert rates == pytest.approx([1e-9, 1e-9, 1e-9, 1e-10, 1e-10, 1e-11])
        assert ["times 0.1" in row["note"] for row in rows] == [
            False,
            False,
            True,
            False,
            True,
            False,
        ]

    def test_dwell_takes_back_the_best_weights(self, door, slices, tmp_path):
        args = ["--schedule=constant", "--learning_rate=0.3", "--dwell_factor=0.5"]
        args += ["--monitor=loss", "--keep_checkpoints=20"]
        code, out, err = door(
            f"--data_dir={slices}", f"--run_dir={tmp_path / 'run'}", *SMALL, *args
        )
        assert code == 0, err
        losses = [float(row["held_out/loss"]) for row in history(tmp_path / "run")]
        worse = sum(loss > min(losses[:place]) for place, loss in enumerate(losses) if place)
        assert worse
        assert out.count("back to the best weights") == worse


class TestMaxMinutes:
    def test_time_that_is_up_ends_with_an_evaluation_and_scores(self, door, slices, tmp_path):
        args = ["--max_minutes=0.0001", "--train_steps=100000"]
        same = [f"--data_dir={slices}", f"--run_dir={tmp_path / 'run'}", *SMALL, *args]
        code, out, err = door(*same)
        assert code == 0, err
        assert "the 0.0001 minutes are used up" in out
        rows = history(tmp_path / "run")
        assert rows[-1]["held_out/loss"]
        assert (tmp_path / "run" / "scores.json").exists()
        code, out, _ = door(*same)
        assert code == 0
        assert "raise --max_minutes" in out
        assert history(tmp_path / "run") == rows


class TestWithoutHeldOutImages:
    @pytest.mark.parametrize(
        "flag", ["--early_stopping_patience=2", "--dwell_factor=0.5", "--max_minutes=1"]
    )
    def test_control_that_would_never_be_asked_is_refused(self, door, slices, tmp_path, flag):
        where = [f"--data_dir={slices}", f"--run_dir={tmp_path / 'run'}"]
        name = flag.partition("=")[0]
        check_refused(door(*where, *SMALL, "--folds=0", "--fold=0", flag), name, "--folds")
        assert not (tmp_path / "run").exists()


class TestNan:
    def test_a_monitored_class_that_is_nowhere_ends_training_with_a_word(
        self, door, slices, tmp_path
    ):
        data = shutil.copytree(slices, tmp_path / "data")
        # One pixel, in a slice that is trained on; at a rate of 0 it is predicted nowhere.
        first = min((data / "train" / "label").iterdir())
        mask = cv2.imread(str(first), cv2.IMREAD_UNCHANGED)
        mask[0, 0] = 7
        cv2.imwrite(str(first), mask)
        args = ["--classes=0:membrane,255:cell,7:vesicle", "--monitor=iou/vesicle"]
        args += ["--learning_rate=0", "--seed=4"]
        _, out, _ = door(f"--data_dir={data}", f"--run_dir={tmp_path / 'run'}", *SMALL, *args)
        rows = history(tmp_path / "run")
        assert rows[0]["held_out/iou/vesicle"] == "nan"
        assert "iou/vesicle is not a number" in out
        assert len(rows) == 1


class TestEpochs:
    def test_are_so_many_passes_over_the_training_images(self, door, slices, tmp_path):
        # Four of six slices to train on, two a step: an epoch is 2 steps.
        flags = tmp_path / "my.flags"
        flags.write_text("\n".join(SMALL))
        where = [f"--data_dir={slices}", f"--run_dir={tmp_path / 'run'}"]
        code, out, err = door(f"--flagfile={flags}", *where, "--epochs=3")
        assert code == 0, err
        assert "An epoch is 2 steps." in out
        assert history(tmp_path / "run")[-1]["step"] == "6"
        stored = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
        assert stored["train_steps"] == 6

    def test_beside_steps_are_refused(self, door, slices, tmp_path):
        where = [f"--data_dir={slices}", f"--run_dir={tmp_path / 'run'}"]
        check_refused(door(*where, *SMALL, "--epochs=3"), "--epochs (3)", "--train_steps (12)")
        assert not (tmp_path / "run").exists()


class TestSchedule:
    def test_past_its_end_at_0_is_refused_with_the_ways_out(self, door, slices, tmp_path):
        same = [f"--data_dir={slices}", f"--run_dir={tmp_path / 'run'}", *SMALL]
        assert door(*same, "--train_steps=2")[0] == 0
        check_refused(
            door(*same, "--train_steps=4"),
            *("--train_steps (4)", "step 2", "--schedule_steps (4)", "--init_from"),
        )
        code, _, err = door(*same, "--train_steps=4", "--schedule_steps=4")
        assert code == 0, err
        assert float(history(tmp_path / "run")[-1]["train/rate"]) > 0

    @pytest.mark.parametrize(
        ("args", "words"),
        [
            (["--schedule=cosine", "--decay_factor=0.5"], ["decay_factor (0.5)", "cosine", "step"]),
            (["--schedule=constant", "--final_rate=1e-5"], ["final_rate (1e-05)", "constant"]),
            (["--schedule=piecewise"], ["piecewise", "rate_from_step"]),
            (
                ["--schedule=piecewise", "--rate_from_step=5"],
                ["rate_from_step ('5')", "STEP:FACTOR"],
            ),
            (["--schedule=piecewise", "--rate_from_step=a:1"], ["rate_from_step ('a:1')"]),
            (["--schedule=piecewise", "--rate_from_step=0:1"], ["rate_from_step ('0:1')"]),
            (["--schedule=polynomial", "--warmup_steps=12"], ["warmup_steps (12)", "12 steps"]),
        ],
    )
    def test_setting_that_it_does_not_use_is_named(self, door, slices, tmp_path, args, words):
        where = [f"--data_dir={slices}", f"--run_dir={tmp_path / 'run'}"]
        check_refused(door(*where, *SMALL, *args), *words)
        assert not (tmp_path / "run").exists()


class TestAsk:
    def test_a_person_at_a_terminal(self, slices, tmp_path):
        args = [f"--data_dir={slices}", f"--run_dir={tmp_path / 'run'}", *SMALL]
        args += ["--schedule=constant", "--learning_rate=0.001", "--ask_every_steps=2"]
        command = [sys.executable, str(ROOT / "train_loop.py"), *args, "--train_steps=20"]
        here, there = pty.openpty()
        program = subprocess.Popen(
            command, cwd=ROOT, stdin=there, stdout=there, stderr=there, close_fds=True
        )
        os.close(there)
        # At 2: nonsense, a rate, a comment, 6 more steps. At 8: stop.
        answers = iter(["nonsense", "rate 0.0001", "say it learns", "6", "stop"])
        seen, asked = "", 0
        while True:
            try:
                chunk = os.read(here, 65536).decode(errors="replace")
            except OSError:  # Linux says so of a terminal that nobody has open any more.
                break
            if not chunk:
                break
            seen += chunk
            while seen.count("\n> ") > asked:
                asked += 1
                os.write(here, (next(answers) + "\n").encode())
        assert program.wait(timeout=300) == 0, seen
        os.close(here)
        assert next(answers, None) is None
        assert re.search(r"'nonsense' cannot be read", seen)
        assert "Training ends here: as you have answered." in seen
        rows = history(tmp_path / "run")
        assert [row["step"] for row in rows] == ["2", "4", "6", "8"]
        rates = [float(row["train/rate"]) for row in rows]
        assert rates == pytest.approx([1e-3, 1e-4, 1e-4, 1e-4])
        assert "it learns" in rows[0]["note"]

    def test_without_a_terminal_training_goes_on(self, slices, tmp_path):
        args = [f"--data_dir={slices}", f"--run_dir={tmp_path / 'run'}", *SMALL]
        # The standard input of a forked process is no terminal.
        flags = "--train_steps=4", "--ask_every_steps=2"
        code, out = forked.program(*args, *flags).finish()
        assert code == 0, out
        assert out.count("There is no terminal to ask at") == 1
