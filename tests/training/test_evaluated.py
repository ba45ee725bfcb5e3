"""Training with evaluations, controls, a history and checkpoints in one loop."""

import csv
import itertools
import json

import pytest
from helpers.tiny_loop import batches, make_loop, weights

from unet_core import training
from unet_core.errors import UserError
from unet_core.training import controls, schedules


def make(folder, *asked):
    """Returns loop and checkpoints of a run, restored if it has begun."""
    steering = training.Controls(asked)
    loop = make_loop(schedule=steering.scaled(schedules.constant(0.01)))
    checkpoints = training.Checkpoints(folder / "c", loop, monitor="dice", controls=steering)
    checkpoints.restore()
    return loop, checkpoints


def train(folder, run, scores, until=100):
    """Gives the rows of a run whose dice scores are `scores` from its first evaluation on."""
    loop, checkpoints = run
    values = iter(scores[loop.step // 10 :])
    how = {"until_step": until, "every_steps": 10, "history": folder / "history.csv"}
    evaluate = lambda: {"dice": next(values)}  # noqa: E731
    return training.train_evaluated(loop, batches, checkpoints, evaluate, **how)


def rows_of(folder):
    with (folder / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


class TestTrainEvaluated:
    def test_writes_and_yields_a_row_for_each_evaluation(self, tmp_path):
        run = make(tmp_path)
        found = list(train(tmp_path, run, [0.5, 0.75], until=20))
        assert [(row["step"], row["held_out/dice"], row["note"]) for row in found] == [
            (10, 0.5, ""),
            (20, 0.75, ""),
        ]
        assert list(rows_of(tmp_path)[0]) == ["step", "train/loss", "held_out/dice", "note"]
        assert [row["held_out/dice"] for row in rows_of(tmp_path)] == ["0.5", "0.75"]
        assert (run[1].best_step, run[1].best_score) == (20, 0.75)

    def test_worse_score_brings_back_the_best_weights_and_is_saved_without_a_score(self, tmp_path):
        loop, checkpoints = run = make(tmp_path, controls.Dwell("dice", factor=0.5))
        seen = []
        for row in train(tmp_path, run, [0.5, 0.75, 0.25], until=30):
            seen.append((weights(loop).tolist(), row["note"]))
        # The third is worse than the second, whose weights come back; the rate is 0.01 / 2.
        assert seen[2][0] == seen[1][0]
        assert seen[0][0] != seen[1][0]
        assert seen[2][1].endswith("learning rate times 0.5, now 0.005")
        assert checkpoints.best_step == 20
        manifest = json.loads((tmp_path / "c" / "step-00000030" / "manifest.json").read_text())
        assert manifest["score"] is None

    def test_control_ends_it_and_the_run_stays_ended(self, tmp_path):
        stopping = controls.EarlyStopping("dice", patience=2)
        found = list(train(tmp_path, make(tmp_path, stopping), [0.5, 0.4, 0.3, 0.2]))
        assert [row["step"] for row in found] == [10, 20, 30]
        assert found[-1]["note"] == "dice has not improved in 2 evaluations"
        again = make(tmp_path, controls.EarlyStopping("dice", patience=2))
        assert again[0].step == 30
        assert list(train(tmp_path, again, [0.1] * 10)) == []

    def test_interrupted_run_has_the_history_and_weights_of_one_that_was_not(self, tmp_path):
        stopped, whole = tmp_path / "stopped", tmp_path / "whole"
        scores = [0.5, 0.4, 0.6, 0.55, 0.7]
        for folder in (stopped, whole):
            folder.mkdir()
        dwell = lambda: controls.Dwell("dice", factor=0.5)  # noqa: E731
        run = make(stopped, dwell())
        list(itertools.islice(train(stopped, run, scores), 3))
        # A kill between the row and its checkpoint leaves a row too many.
        with (stopped / "history.csv").open("a") as file:
            file.write("40,9,9,\n")
        resumed, undisturbed = make(stopped, dwell()), make(whole, dwell())
        assert resumed[0].step == 30
        list(train(stopped, resumed, scores, until=50))
        list(train(whole, undisturbed, scores, until=50))
        assert (stopped / "history.csv").read_text() == (whole / "history.csv").read_text()
        assert weights(resumed[0]).tolist() == weights(undisturbed[0]).tolist()

    def test_monitor_must_be_a_score(self, tmp_path):
        loop = make_loop()
        checkpoints = training.Checkpoints(tmp_path / "c", loop, monitor="f1")
        with pytest.raises(UserError, match=r"'f1'.* must be one of the scores dice"):
            list(train(tmp_path, (loop, checkpoints), [0.5]))
