"""The classifier of class folders: what it writes, how it resumes, and what it refuses."""

import builtins
import csv
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import cv2
import keras
import numpy as np
import pytest
from sklearn import datasets

from examples.classifier import __main__ as classifier
from examples.classifier import folders
from unet_core.settings import command_line
from unet_core.training import load_weights

ROOT = pathlib.Path(__file__).parents[2]
COLOURS = {"blue": (200, 60, 40), "green": (40, 190, 60), "red": (50, 40, 210)}
TINY = ["--encoder=unet", "--size=8", "--batch_size=6", "--held_out=0.2", "--rate=0.01"]
TINY += ["--l1=0.0001", "--l2=0.0001"]
WRITTEN = ["curves.png", "confusion.png", "report.txt", "misclassified.csv", "misclassified.png"]


def run(*flags):
    how = {"name": "classifier", "description": classifier.__doc__}
    return command_line.run(classifier.main, classifier.Flags, list(flags), **how)


def parse(*flags):
    how = {"name": "classifier", "description": ""}
    return command_line.parse(classifier.Flags, list(flags), **how)


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


def check_refused(capsys, *flags, holds):
    capsys.readouterr()
    assert run(*flags) == 2
    # Behind the progress bars.
    message = capsys.readouterr().err.rpartition("classifier: ")[2]
    assert holds in message
    assert message.count("\n") == 1
    assert "Traceback" not in message


def check_list_is_that_of_the_saved_model(folder, data, flags, size):
    """Predicts every test image anew, by OpenCV and the saved model alone; returns the accuracy."""
    (path,) = folder.glob("*.keras")
    model = keras.models.load_model(path)
    files, truth = folders.scan(data, "*/*")
    names, ids = np.unique(truth, return_inverse=True)
    files, ids = folders.split(files, ids, parse(*flags))[2]
    expected = {}
    for file, truth in zip(files, names[ids], strict=True):
        image = cv2.cvtColor(cv2.imread(file), cv2.COLOR_BGR2RGB).astype(np.float32)
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
        logits = model.predict(image[None], verbose=0)[0].astype(np.float64)
        shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        if names[shares.argmax()] != truth:
            expected[file] = (truth, names[shares.argmax()], shares.max())
    listed = {row["file"]: row for row in rows_of(folder / "misclassified.csv")}
    assert listed.keys() == expected.keys()
    for file, (truth, guess, share) in expected.items():
        assert (listed[file]["truth"], listed[file]["predicted"]) == (truth, guess)
        assert float(listed[file]["probability"]) == pytest.approx(share, abs=1e-5)
    accuracy = 1 - len(expected) / len(files)
    assert f"-accuracy-{accuracy:.4f}-" in path.name
    return accuracy


class TestExample:
    def test_is_less_than_250_lines(self):
        files = [path for path in (ROOT / "examples/classifier").iterdir() if path.is_file()]
        assert sum(len(path.read_text().splitlines()) for path in files) < 250


class TestColours:
    def test_interrupted_run_ends_as_one_that_was_not_and_predicts(
        self, tmp_path, capsys, monkeypatch
    ):
        data = write_colours(tmp_path / "data")
        (data / "red" / "cut.png").write_bytes((data / "red" / "00.png").read_bytes()[:60])
        stopped, whole = tmp_path / "stopped", tmp_path / "whole"

        def flags(folder):
            return [f"--data_dir={data}", f"--run_dir={folder}", "--epochs=4", *TINY]

        def stop_at_2(*texts, shown=builtins.print, **kwargs):
            shown(*texts, **kwargs)
            if str(texts[0]).startswith("epoch 2:"):
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(builtins, "print", stop_at_2)
            assert run(*flags(stopped)) == 130
        shown = capsys.readouterr().out
        assert "1 of 31 files cannot be read:" in shown
        assert "cut.png" in shown
        # 30 images: a fifth to validate, a fifth to test.
        assert "Images to train, validate, test: 18 6 6" in shown
        assert run(*flags(stopped)) == 0
        shown = capsys.readouterr().out
        assert "Going on from epoch 2" in shown
        assert "epoch 2:" not in shown
        assert run(*flags(whole)) == 0
        assert (stopped / "history.csv").read_text() == (whole / "history.csv").read_text()
        models = []
        for folder in (stopped, whole):
            models.append(classifier.make_network(parse(*flags(folder)), list(COLOURS)))
            load_weights(folder / "checkpoints", models[-1])
        for one, other in zip(*(model.variables for model in models), strict=True):
            np.testing.assert_array_equal(one, other)
        assert all((stopped / name).stat().st_size for name in WRITTEN)
        report = (stopped / "report.txt").read_text()
        supports = [line.split()[-1] for line in report.splitlines() if line.split()[:1]]
        # Of each class 2 of the 6 test images; then those of the three totals.
        assert supports[1:4] == ["2"] * 3
        check_list_is_that_of_the_saved_model(stopped, data, TINY, 8)
        assert run(f"--run_dir={stopped}", f"--predict={data / 'blue'}") == 0
        found = rows_of(stopped / "predictions.csv")
        assert len(found) == 10
        # The better of three classes has at least a third.
        assert all(float(row["probability"]) >= 1 / 3 for row in found)
        assert {row["predicted"] for row in found} <= set(COLOURS)

    def test_a_person_is_asked_and_stops_the_run(self, tmp_path, capsys, monkeypatch):
        data = write_colours(tmp_path / "data")
        flags = [f"--data_dir={data}", f"--run_dir={tmp_path / 'run'}", *TINY, "--ask_every=1"]
        flags += ["--balance=weights", "--trim=4"]
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
        monkeypatch.setattr(builtins, "input", lambda _: "stop")
        assert run(*flags) == 0
        (row,) = rows_of(tmp_path / "run" / "history.csv")
        assert row["note"] == "as you have answered"
        assert "test: 12 6 6" in capsys.readouterr().out
        check_refused(capsys, *flags, "--seed=7", holds="holds a run with other settings: seed")

    def test_wrong_input_is_one_message(self, tmp_path, capsys):
        data, folder = write_colours(tmp_path / "data", each=4), tmp_path / "run"
        flags = [f"--run_dir={folder}", f"--data_dir={data}", *TINY, "--held_out=0.3"]
        none = f"--data_dir={tmp_path / 'none'}"
        check_refused(capsys, *flags, none, holds="holds no image that can be read")
        check_refused(capsys, *flags, "--epochs=0", holds="--epochs (0) must be at least 1")
        check_refused(capsys, *flags, "--epochs=x", holds="--epochs")
        check_refused(capsys, *flags, "--epoch=3", holds="--epoch=3")
        check_refused(capsys, *flags, "--held_out=0.01", holds="cannot be split")
        check_refused(capsys, f"--run_dir={folder}", holds="--data_dir")
        check_refused(capsys, f"--run_dir={folder}", f"--predict={data}", holds="Train in this")
        (tmp_path / "weights.h5").write_bytes(b"no weights")
        wrong = f"--weights={tmp_path / 'weights.h5'}"
        check_refused(capsys, *flags, wrong, holds="weights.h5: is no file of weights")
        assert not list(folder.glob("checkpoints"))

    def test_a_file_of_the_users_is_not_overwritten(self, tmp_path, capsys):
        data = write_colours(tmp_path / "data")
        (tmp_path / "report.txt").write_text("mine")
        check_refused(capsys, f"--run_dir={tmp_path}", f"--data_dir={data}", *TINY, holds="report")
        assert (tmp_path / "report.txt").read_text() == "mine"


class TestBatches:
    def batches(self, tmp_path, start, count, *flags):
        data = tmp_path / "data"
        if not data.exists():
            write_colours(data, each=5)
        files, classes = folders.scan(data, "*/*")
        ids = np.unique(classes, return_inverse=True)[1]
        keep = np.r_[0:5, 5:7, 10:12]  # 5 blue ones, 2 green and 2 red.
        examples = (files[keep], ids[keep])
        dataset = folders.shuffled(examples, parse(*TINY, *flags), start, None)
        return list(dataset.take(count).as_numpy_iterator())

    def test_from_a_later_step_are_those_of_the_whole_run(self, tmp_path):
        whole, later = self.batches(tmp_path, 0, 6), self.batches(tmp_path, 4, 2)
        for (images, ids), (others, other_ids) in zip(whole[4:], later, strict=True):
            np.testing.assert_array_equal(images, others)
            np.testing.assert_array_equal(ids, other_ids)

    def test_hold_each_class_equally_often_if_they_repeat(self, tmp_path):
        for _, ids in self.batches(tmp_path, 0, 5):
            assert np.bincount(ids).tolist() == [2, 2, 2]

    def test_hold_every_image_once_an_epoch_if_not(self, tmp_path):
        # 9 images in 3 batches of 3.
        batches = self.batches(tmp_path, 0, 3, "--balance=none", "--batch_size=3")
        ids = np.concatenate([ids for _, ids in batches])
        assert np.bincount(ids).tolist() == [5, 2, 2]
        images = np.concatenate([images for images, _ in batches])
        assert len(np.unique(images, axis=0)) == 9


class TestDigits:
    @pytest.mark.slow
    def test_interrupted_and_resumed_reaches_97_percent(self, tmp_path, capsys):
        digits, data, folder = datasets.load_digits(), tmp_path / "digits", tmp_path / "run"
        for number, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
            (data / f"{digit}").mkdir(parents=True, exist_ok=True)
            large = cv2.resize(np.uint8(pixels * 15), (16, 16), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(data / f"{digit}" / f"{number:04d}.png"), large)
        flags = [*TINY, "--size=16", "--batch_size=32", "--epochs=12", "--rate=0.003"]
        flags += [f"--data_dir={data}", f"--run_dir={folder}"]
        command = [sys.executable, "-m", "examples.classifier", *flags]
        first = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
        while not list(folder.glob("checkpoints/step-*")):
            assert first.poll() is None
            time.sleep(0.1)
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert run(*flags) == 0
        shown = capsys.readouterr().out
        assert int(re.search(r"Going on from epoch (\d+)", shown)[1]) >= 1
        assert "epoch 1:" not in shown
        assert check_list_is_that_of_the_saved_model(folder, data, flags, 16) > 0.97
