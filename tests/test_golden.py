"""Run folders of earlier versions go on in this one."""

import csv
import importlib.util
import json
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf

FOLDER = pathlib.Path(__file__).parent / "golden"
DATA = FOLDER / "data"
RUNS = sorted(path.name for path in FOLDER.iterdir() if (path / "config.json").exists())


def flags():
    spec = importlib.util.spec_from_file_location("make", FOLDER / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.FLAGS


@pytest.fixture(params=RUNS)
def run(request, tmp_path):
    """A copy of a golden run folder."""
    return shutil.copytree(FOLDER / request.param, tmp_path / "run")


def history(run):
    with (run / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_there_is_a_run_folder():
    assert RUNS


class TestGoldenRun:
    def test_goes_on_from_its_last_step_with_its_weights_and_keeps_its_history(self, run, door):
        before = history(run)
        saved = tf.train.load_checkpoint(str(run / "checkpoints" / "step-00000004" / "state"))
        saved = {
            n: saved.get_tensor(n) for n in saved.get_variable_to_shape_map() if "/model/" in n
        }
        code, out, err = door(f"--data_dir={DATA}", f"--run_dir={run}", *flags(), "--train_steps=6")
        assert code == 0, err
        assert f"Going on from step 4 of {run}." in out
        *rows, last = history(run)
        # Later versions have more columns.
        assert [{name: row[name] for name in before[0]} for row in rows] == before
        assert last["step"] == "6"
        later = tf.train.load_checkpoint(str(run / "checkpoints" / "step-00000006" / "state"))
        # Two steps of a small rate: near the weights it has gone on from, and not equal.
        saved = {name: value for name, value in saved.items() if value.dtype == np.float32}
        for name, value in saved.items():
            assert np.abs(later.get_tensor(name) - value).max() < 0.5, name
        assert any((later.get_tensor(name) != value).any() for name, value in saved.items())

    def test_is_scored_as_it_was(self, run, door, tmp_path):
        out_dir = tmp_path / "scores"
        code, _, err = door(
            "--mode=evaluate", f"--run_dir={run}", f"--data_dir={DATA}", f"--output_dir={out_dir}"
        )
        assert code == 0, err
        scores = json.loads((out_dir / "scores.json").read_text())["scores"]
        # As in its history: its scores.json is of the image mirrored around, as versions of before
        # have predicted. Another CPU adds in another order.
        expected = history(run)[-1]
        for name in ("dice/mean", "accuracy"):
            assert scores[name] == pytest.approx(float(expected[f"held_out/{name}"]), abs=1e-3)

    def test_predicts_and_is_exported(self, run, door, tmp_path):
        out_dir = tmp_path / "out"
        code, _, err = door(
            "--mode=predict",
            f"--run_dir={run}",
            f"--input={DATA / 'test'}",
            f"--output_dir={out_dir}",
        )
        assert code == 0, err
        assert (out_dir / "0_predict.png").exists()
        code, _, err = door("--mode=export", f"--run_dir={run}", f"--output_dir={tmp_path / 'e'}")
        assert code == 0, err
