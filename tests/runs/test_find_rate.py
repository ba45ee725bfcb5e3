"""`--mode=find_rate`."""

import csv

import cv2
import pytest
from helpers.program import MEMBRANE, check_refused, write_slices

from unet_core.runs.find_rate import smoothed, suggestion

SMALL = [
    MEMBRANE,
    "--crop_size=32",
    "--base_filters=4",
    "--depth=1",
    "--global_batch_size=2",
    "--precision=float32",
    "--normalization=batch",
    "--folds=3",
    "--fold=2",
]


class TestSmoothed:
    def test_is_the_mean_with_weights_that_fall_by_a_tenth(self):
        # 1; (0.9 + 2) / 1.9; (0.81 + 1.8 + 4) / 2.71.
        assert smoothed([1, 2, 4]) == pytest.approx([1, 2.9 / 1.9, 6.61 / 2.71])


class TestSuggestion:
    def test_is_a_tenth_of_the_rate_where_the_loss_stops_falling(self):
        # It falls fastest at 1e-3 (from 4 to 1) and on to 0.9 at 1e-1, and is not lower at the next
        # three. 0.5 at the end is noise, and so is the little fall at the beginning.
        rates = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0]
        losses = [4.2, 4, 2.5, 1, 0.9, 3, 3, 3, 0.5]
        assert suggestion(rates, losses) == pytest.approx(1e-2)

    @pytest.mark.parametrize("losses", [[1, 2, 3, 4], [1, 1, 1], [1]])
    def test_is_none_if_the_loss_never_falls(self, losses):
        assert suggestion([1e-3] * len(losses), losses) is None


class TestProgram:
    def test_writes_curve_and_suggestion_and_leaves_the_run_as_it_is(self, door, tmp_path):
        data, run = write_slices(tmp_path, test_slices=0), tmp_path / "run"
        same = [f"--data_dir={data}", f"--run_dir={run}", *SMALL]
        code, out, err = door("--mode=find_rate", *same, "--find_rate_steps=10")
        assert code == 0, err
        assert "Suggested: --learning_rate=" in out
        with (run / "find_rate.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        # From 1e-6 to 1 in 9 equal factors.
        assert float(rows[0]["rate"]) == pytest.approx(1e-6)
        assert float(rows[1]["rate"]) == pytest.approx(1e-6 * 1e6 ** (1 / 9), rel=1e-5)
        assert cv2.imread(str(run / "find_rate.png")) is not None
        # The folder holds no run yet, and may hold one.
        code, _, err = door(*same, "--train_steps=2")
        assert code == 0, err
        before = {p: p.read_bytes() for p in (run / "checkpoints").rglob("*") if p.is_file()}
        code, out, err = door("--mode=find_rate", *same, "--find_rate_steps=10")
        assert code == 0, err
        assert f"With the weights of step 2 of {run}" in out
        after = {p: p.read_bytes() for p in (run / "checkpoints").rglob("*") if p.is_file()}
        assert after == before

    def test_settings_of_other_modes_are_refused(self, door, tmp_path):
        check_refused(
            door(
                f"--data_dir={tmp_path}", f"--run_dir={tmp_path}", MEMBRANE, "--find_rate_steps=20"
            ),
            "find_rate_steps",
        )
