"""`--encoder_weights`: what the encoder of a new run begins with."""

import csv

import numpy as np
import pytest
from helpers.program import SMALL, check_refused, write_slices

from unet_core.inference.trained import build_network, open_trained
from unet_core.settings import RunConfig

TINY = [*SMALL, "--precision=float32", "--train_steps=2", "--warmup_steps=0"]
# Weights that do not move: what a run ends with is what it began with.
STILL = ["--learning_rate=1e-12", "--weight_decay=0"]


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    return write_slices(tmp_path_factory.mktemp("slices"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The weights of a network like that of the runs, from another seed, by Keras."""
    path = tmp_path_factory.mktemp("weights") / "other.weights.h5"
    settings = dict(depth=2, base_filters=4, batch_norm=True, dropout=0.3, precision="float32")
    model = build_network(RunConfig.of(seed=7, **settings))
    model.save_weights(path)
    return path, model


def kernels_of(model):
    return {v.path: v.numpy() for v in model.trainable_variables if v.name == "kernel"}


class TestTrain:
    def test_run_begins_with_the_weights_of_a_file_and_resumes_without_it(
        self, slices, weights, door, tmp_path
    ):
        path, other = weights
        mine = tmp_path / "mine.weights.h5"
        mine.write_bytes(path.read_bytes())
        args = [f"--data_dir={slices}", f"--run_dir={tmp_path / 'run'}", *TINY, *STILL]
        args += [f"--encoder_weights={mine}"]
        code, out, err = door(*args)
        assert code == 0, err
        assert "Encoder weights: 12 of 12 layers of unet from" in out
        with open(tmp_path / "run" / "encoder_weights.csv") as file:
            rows = list(csv.DictReader(file))
        assert {row["outcome"] for row in rows if row["layer"].startswith("down")} == {"loaded"}
        assert {row["reason"] for row in rows if row["layer"].startswith("up")} == {
            "not of the encoder"
        }
        begun = kernels_of(open_trained(tmp_path / "run").model)
        for name, kernel in kernels_of(other).items():
            same = np.allclose(begun[name], kernel, atol=1e-6)
            assert same == name.startswith(("down", "bottom")), name
        mine.unlink()
        code, out, err = door(*args, "--train_steps=4")
        assert code == 0, err
        assert "Going on from step 2" in out
        assert "Encoder weights" not in out

    def test_folder_of_a_run_is_a_source(self, slices, door, tmp_path):
        args = [f"--data_dir={slices}", *TINY, *STILL]
        code, _, err = door(*args, f"--run_dir={tmp_path / 'one'}")
        assert code == 0, err
        code, out, err = door(
            *args,
            f"--run_dir={tmp_path / 'two'}",
            f"--encoder_weights={tmp_path / 'one'}",
            "--seed=5",
        )
        assert code == 0, err
        assert "12 of 12 layers" in out
        one, two = (kernels_of(open_trained(tmp_path / name).model) for name in ("one", "two"))
        for name in one:
            same = np.allclose(one[name], two[name], atol=1e-6)
            assert same == name.startswith(("down", "bottom")), name


class TestRefusals:
    @pytest.mark.parametrize(
        ("args", "words"),
        [
            (["--encoder_weights=missing.h5"], ["`encoder_weights` ('missing.h5')", "imagenet"]),
            (["--encoder_weights=imagenet"], ["--encoder_weights", "unet", "vgg16"]),
            (["--encoder=vgg16", "--encoder_weights={path}"], ["fit the encoder 'vgg16'", "down0"]),
            (["--encoder_weights={data}"], ["holds no run"]),
            (["--encoder_weights={image}"], ["neither HDF5"]),
            (["--encoder=convnext_tiny", "--depth=1"], ["--depth", "convnext_tiny"]),
        ],
    )
    def test_is_one_message_before_the_run_folder_is_touched(
        self, slices, weights, door, tmp_path, args, words
    ):
        image = next(path for path in slices.rglob("*") if path.is_file())
        places = {"path": weights[0], "data": slices, "image": image}
        args = [arg.format(**places) for arg in args]
        run = tmp_path / "run"
        check_refused(door(f"--data_dir={slices}", f"--run_dir={run}", *TINY, *args), *words)
        assert not run.exists()
