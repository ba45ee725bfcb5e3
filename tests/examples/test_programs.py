"""Every program trains what the same training written by hand does, and few lines of it are
training code.
"""

import itertools
import pathlib
import re
import sys

import numpy as np
import pytest
import tensorflow as tf
from helpers import forked

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))

import foreign_programs

ROOT = pathlib.Path(__file__).parents[2]
NAMES = list(foreign_programs.BY_NAME)
# What each program shows beside the mean loss: a word before it, and its decimals.
LOSS = {"gan": (r"critic ", 3), "vae": (r"bound ", 2), "two_heads": (r"both ", 4)}
LOSS |= {"policy_gradient": (r"mean reward ", 3)}


def assert_same_weights(models, others, tolerance):
    for model, other in zip(models, others, strict=True):
        for one, two in zip(model.variables, other.variables, strict=True):
            np.testing.assert_allclose(one.numpy(), two.numpy(), rtol=0, atol=tolerance)


class TestPrograms:
    def test_are_those_of_the_folder(self):
        assert {path.stem for path in foreign_programs.FOLDER.glob("*.py")} == set(NAMES)

    @pytest.mark.parametrize("name", NAMES)
    def test_trains_the_weights_of_the_same_by_hand(self, name):
        every = 16 if name == "own_epochs" else 2
        both = foreign_programs.run_both(name, rounds=4, every=every)
        assert_same_weights(*both.models, 1e-5)
        word, decimals = LOSS.get(name, ("loss ", 3))
        shown = [float(re.search(rf"{word}(-?[\d.]+)", text)[1]) for text in both.shown]
        assert shown == pytest.approx(both.losses, rel=1e-4, abs=0.51 * 10**-decimals)

    def test_have_at_most_115_lines_of_training_code(self):
        lines = {name: foreign_programs.training_lines(name) for name in NAMES}
        assert min(lines.values()) >= 3  # Each is marked.
        assert sum(lines.values()) <= 115

    @pytest.mark.parametrize("name", NAMES)
    def test_mark_every_line_that_names_the_loop(self, name):
        inside = False
        for line in (foreign_programs.FOLDER / f"{name}.py").read_text().splitlines():
            if "# training" in line or "# end of training" in line:
                inside = "# training" in line
            names = re.search(r"\btraining\.[A-Z]|\bloop\.\w+\(|\bcheckpoints\.\w+\(", line)
            assert inside or not names, line


class TestResumedRun:
    def test_ends_like_one_that_was_never_stopped(self, tmp_path):
        main = foreign_programs.load("resumed_run").main
        options = {"every": 2, "show": lambda text: None}
        main(tmp_path / "stopped", steps=4, **options)
        resumed = main(tmp_path / "stopped", steps=8, **options)
        whole = main(tmp_path / "whole", steps=8, **options)
        assert_same_weights([resumed], [whole], 0)

    def test_event_files_hold_each_step_once(self, tmp_path):
        main = foreign_programs.load("resumed_run").main
        for steps in (4, 8):
            main(tmp_path, steps=steps, every=2, show=lambda text: None)
        steps = [
            event.step
            for path in sorted((tmp_path / "events").iterdir())
            for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
            for event in [tf.compat.v1.Event.FromString(record)]
            for value in event.summary.value
            if value.tag == "loss"
        ]
        assert sorted(steps) == [2, 4, 6, 8]


class TestOwnEpochs:
    def test_goes_on_after_the_last_epoch(self, tmp_path):
        main = foreign_programs.load("own_epochs").main
        shown = []
        main(tmp_path / "stopped", epochs=2, show=shown.append)
        resumed = main(tmp_path / "stopped", epochs=4, show=shown.append)
        whole = main(tmp_path / "whole", epochs=4, show=lambda text: None)
        assert_same_weights([resumed], [whole], 0)
        epochs = [match[1] for text in shown if (match := re.match(r"epoch (\d+)", text))]
        assert epochs == ["1", "2", "3", "4"]

    def test_stops_when_no_epoch_of_the_last_was_the_best(self, tmp_path):
        main = foreign_programs.load("own_epochs").main
        shown = []
        main(tmp_path, epochs=200, patience=1, show=shown.append)
        *epochs, last = shown
        scores = [float(text.rpartition(" ")[2]) for text in epochs]
        # Each was better than the one before it, but for the last.
        improves = [two < one for one, two in itertools.pairwise(scores)]
        assert improves == [True] * (len(scores) - 2) + [False]
        assert f"best was epoch {len(epochs) - 1}:" in last


# What each script shows last: a pattern, and the bounds of the number in it.
RESULTS = {
    "fine_tuning": (r"all layers, step 400: loss ([\d.]+)", 0, 0.1),
    "gan": (r"(\d) of 8 places", 7, 8),
    "tf_module": (r"step 2000: loss ([\d.]+)", 0, 0.001),
    "two_heads": (r"step 2000: price ([\d.]+)", 0, 0.01),
    # By chance it is log(31) = 3.43; what cannot be known is the first period of a pattern.
    "masked_tokens": (r"step 200: loss ([\d.]+)", 0, 0.9),
    "vae": (r"step 2000: .* bound ([\d.]+)", 0, 50),
    "distillation": (r"student ([\d.]+)%", 97, 100),
    "policy_gradient": (r"game 300: mean reward (-[\d.]+)", -0.18, 0),
    "own_epochs": (r"the best was epoch \d+: held out ([\d.]+)", 0.08, 0.12),
    "resumed_run": (r"started again\n(?:.*\n)*step 1000: loss ([\d.]+)", 0, 1),
    "mean_teacher": (r"teacher: ([\d.]+)%", 88, 100),
    "mobile_net": (r"step 40: loss ([\d.]+)", 0, 0.5),
}


@pytest.mark.slow
class TestScripts:
    @pytest.mark.parametrize("name", NAMES)
    def test_runs_alone_and_shows_a_good_result(self, name):
        code, out = forked.run_file(ROOT / "examples" / "programs" / f"{name}.py")
        assert code == 0, out
        pattern, least, most = RESULTS[name]
        assert least <= float(re.search(pattern, out)[1]) <= most
        assert "Traceback" not in out
