"""The classifier of class folders: what it writes, how it resumes, and what it refuses."""

import csv
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import cv2
import keras
import numpy as np
import pytest

from examples.classifier import __main__ as classifier
from examples.classifier import folders
from unet_core.training import load_weights

ROOT = pathlib.Path(__file__).parents[2]
COLOURS = {"blue": (200, 60, 40), "green": (40, 190, 60), "red": (50, 40, 210)}
TINY = ["--network=small", "--size=8", "--batch_size=6", "--valid_share=0.2", "--test_share=0.2"]
TINY += ["--rate=0.01", "--l1=0.0001", "--l2=0.0001"]
WRITTEN = ["curves.png", "confusion.png", "confusion.csv", "report.csv", "misclassified.csv"]


def write_colours(folder, each=10):
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(each):
            pixels = np.clip(rng.normal(colour, 25, (12, 10, 3)), 0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / name / f"{number:02d}.png"), pixels)
    return folder


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def check_refused(capsys, *args, holds):
    assert classifier.main(list(args)) == 2
    message = capsys.readouterr().err
    # Behind the progress bars.
    _, _, message = message.rpartition("classifier: ")
    assert holds in message
    assert message.count("\n") == 1
    assert "Traceback" not in message


def check_list_is_that_of_the_saved_model(run, data, size):
    """Predicts every test image anew, by OpenCV and the saved model alone."""
    stored = json.loads((run / "results.json").read_text())
    model = keras.models.load_model(run / stored["model"])
    args = classifier.parse(["--run_dir=x", "--data_dir=x", *TINY])
    test = folders.split(folders.scan(data, "*/*", print), args)[2]
    expected = {}
    for sample in test:
        image = cv2.cvtColor(cv2.imread(str(sample.image.path)), cv2.COLOR_BGR2RGB)
        image = cv2.resize(image.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
        logits = model.predict(np.rint(image)[None], verbose=0)[0].astype(np.float64)
        shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        guess = stored["classes"][shares.argmax()]
        if guess != sample.group:
            expected[sample.name] = (sample.group, guess, shares.max())
    listed = {row["file"]: row for row in rows_of(run / "misclassified.csv")}
    assert listed.keys() == expected.keys()
    for name, (truth, guess, share) in expected.items():
        assert (listed[name]["truth"], listed[name]["predicted"]) == (truth, guess)
        assert float(listed[name]["probability"]) == pytest.approx(share, abs=1e-5)
    accuracy = 1 - len(expected) / len(test)
    assert stored["scores"]["accuracy"] == pytest.approx(accuracy)
    return accuracy


class TestColours:
    def test_interrupted_run_ends_as_one_that_was_not_and_predicts(self, tmp_path, capsys):
        data = write_colours(tmp_path / "data")
        (data / "red" / "cut.png").write_bytes((data / "red" / "00.png").read_bytes()[:60])
        shown = []

        def stop_at_2(text):
            shown.append(text)
            if text.startswith("epoch 2:"):
                raise KeyboardInterrupt

        def flags(name):
            return [f"--data_dir={data}", f"--run_dir={tmp_path / name}", "--epochs=4", *TINY]

        assert classifier.main(flags("stopped"), show=stop_at_2) == 130
        assert "1 of 31 files cannot be read" in shown[0]
        assert "cut.png" in shown[0]
        shown.clear()
        assert classifier.main(flags("stopped"), show=shown.append) == 0
        assert "Going on from epoch 2" in shown
        assert classifier.main(flags("whole")) == 0
        capsys.readouterr()
        stopped, whole = tmp_path / "stopped", tmp_path / "whole"
        assert (stopped / "history.csv").read_text() == (whole / "history.csv").read_text()
        models = []
        for run in (stopped, whole):
            models.append(classifier.make_network(classifier.parse(flags(run.name)), 3))
            load_weights(run / "checkpoints", models[-1])
        for one, other in zip(*(model.variables for model in models), strict=True):
            np.testing.assert_array_equal(one, other)
        assert all((stopped / name).stat().st_size for name in [*WRITTEN, "misclassified.png"])
        assert [row["support"] for row in rows_of(stopped / "report.csv")] == ["2"] * 3
        check_list_is_that_of_the_saved_model(stopped, data, 8)
        assert classifier.main([f"--run_dir={stopped}", f"--predict={data / 'blue'}"]) == 0
        found = rows_of(stopped / "predictions.csv")
        assert len(found) == 10
        for row in found:
            shares = [float(row[name]) for name in COLOURS]
            assert sum(shares) == pytest.approx(1, abs=1e-5)
            assert row["predicted"] == list(COLOURS)[int(np.argmax(shares))]

    def test_a_person_is_asked_and_stops_the_run(self, tmp_path, capsys):
        data = write_colours(tmp_path / "data")
        flags = [f"--data_dir={data}", f"--run_dir={tmp_path / 'run'}", *TINY, "--ask_every=1"]
        flags += ["--balance=weights", "--most=4"]
        assert classifier.main(flags, ask=lambda _: "stop") == 0
        (row,) = rows_of(tmp_path / "run" / "history.csv")
        assert row["note"] == "as you have answered"
        capsys.readouterr()
        check_refused(capsys, *flags, "--seed=7", holds="the run has other seed")

    def test_wrong_input_is_one_message(self, tmp_path, capsys):
        data, run = write_colours(tmp_path / "data", each=4), f"--run_dir={tmp_path / 'run'}"
        check_refused(capsys, run, f"--data_dir={tmp_path / 'none'}", holds="no image")
        check_refused(capsys, run, f"--data_dir={data}", "--epochs=0", holds="--epochs (0)")
        check_refused(capsys, run, f"--data_dir={data}", "--epochs=x", holds="--epochs")
        check_refused(capsys, run, holds="--data_dir")
        check_refused(capsys, run, f"--predict={data}", holds="Train with this")
        (tmp_path / "weights.h5").write_bytes(b"no weights")
        wrong = f"--weights={tmp_path / 'weights.h5'}"
        check_refused(capsys, run, f"--data_dir={data}", *TINY, wrong, holds="cannot be loaded")
        assert not list((tmp_path / "run").glob("checkpoints"))


class TestBatches:
    class Context:
        def __init__(self, replicas, pipelines=1, pipeline=0):
            self.num_replicas_in_sync, self.num_input_pipelines = replicas, pipelines
            self.input_pipeline_id = pipeline

    def batches(self, tmp_path, start, count, context, *flags):
        data = tmp_path / "data"
        if not data.exists():
            write_colours(data, each=5)
        args = classifier.parse([f"--data_dir={data}", "--run_dir=x", *TINY, *flags])
        found = folders.shuffled(folders.scan(data, "*/*", print), args, start, context)
        return [next(found) for _ in range(count)]

    def test_from_a_later_step_are_those_of_the_whole_run(self, tmp_path):
        whole = self.batches(tmp_path, 0, 6, self.Context(1), "--flip")
        later = self.batches(tmp_path, 4, 2, self.Context(1), "--flip")
        for (images, names), (others, other_names) in zip(whole[4:], later, strict=True):
            np.testing.assert_array_equal(images, others)
            assert names == other_names

    def test_replicas_share_the_rows_of_one(self, tmp_path):
        (whole,) = self.batches(tmp_path, 3, 1, self.Context(1))
        halves = [self.batches(tmp_path, 3, 1, self.Context(2, 2, n))[0] for n in range(2)]
        np.testing.assert_array_equal(np.concatenate([half[0] for half in halves]), whole[0])


class TestDigits:
    @pytest.mark.slow
    def test_interrupted_and_resumed_reaches_97_percent(self, tmp_path):
        datasets = pytest.importorskip("sklearn.datasets", reason="needs scikit-learn")
        digits, data, run = datasets.load_digits(), tmp_path / "digits", tmp_path / "run"
        for number, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
            (data / f"{digit}").mkdir(parents=True, exist_ok=True)
            large = cv2.resize(np.uint8(pixels * 15), (16, 16), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(data / f"{digit}" / f"{number:04d}.png"), large)
        flags = [*TINY, "--size=16", "--batch_size=32", "--epochs=12", "--rate=0.003"]
        flags += [f"--data_dir={data}", f"--run_dir={run}"]
        command = [sys.executable, "-m", "examples.classifier", *flags]
        first = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
        while not list(run.glob("checkpoints/step-*")):
            assert first.poll() is None
            time.sleep(0.1)
        first.send_signal(signal.SIGKILL)
        first.wait()
        shown = []
        assert classifier.main(flags, show=shown.append) == 0
        assert any(text.startswith("Going on from epoch") for text in shown)
        assert not any(text.startswith("epoch 1:") for text in shown)
        assert check_list_is_that_of_the_saved_model(run, data, 16) > 0.97
