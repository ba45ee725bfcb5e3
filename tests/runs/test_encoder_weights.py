"""`--encoder_weights`: what the encoder of a new run begins with."""

import csv

import numpy as np
import pytest
from helpers.program import SMALL, check_refused, write_slices

from unet_core.inference.trained import build_network
from unet_core.runs import train
from unet_core.runs.plan import prepare
from unet_core.runs.process import StopRequest
from unet_core.settings import RunConfig

NETWORK = dict(
    depth=2, base_filters=4, normalization="batch", dropout=0.3, precision="float32", ema_decay=0.9
)


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    return write_slices(tmp_path_factory.mktemp("slices"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The weights of a network like that of the runs, from another seed, by Keras."""
    path = tmp_path_factory.mktemp("weights") / "other.weights.h5"
    model = build_network(RunConfig.of(seed=7, **NETWORK))
    model.save_weights(path)
    return path, model


def begin(slices, run_dir, **kwargs):
    """Returns the session of a run before its first step, or where it goes on."""
    settings = {**NETWORK, "crop_size": 32, "folds": 3, "fold": "2", **kwargs}
    config = RunConfig.of(data_dir=str(slices), run_dir=str(run_dir), **settings)
    plan = prepare(config, StopRequest())
    with plan.run.locked():
        return train.build(plan)


def kernels_of(model):
    return {v.path: v.numpy() for v in model.trainable_variables if v.name == "kernel"}


def check_encoder_is_that_of(model, other):
    """Checks that the kernels of the encoders are equal, and the others are not."""
    theirs = kernels_of(other)
    for name, kernel in kernels_of(model).items():
        same = np.array_equal(kernel, theirs[name])
        assert same == name.startswith(("down", "bottom")), name


class TestTrain:
    def test_run_begins_with_the_weights_of_a_file_and_resumes_without_it(
        self, slices, weights, tmp_path, capsys
    ):
        path, other = weights
        mine = tmp_path / "mine.weights.h5"
        mine.write_bytes(path.read_bytes())
        session = begin(slices, tmp_path / "run", encoder_weights=str(mine))
        check_encoder_is_that_of(session.model, other)
        with session.loop.averaged_weights():
            check_encoder_is_that_of(session.model, other)
        assert "Encoder weights: 12 of 12 layers of unet from" in capsys.readouterr().out
        with open(tmp_path / "run" / "encoder_weights.csv") as file:
            outcomes = {
                row["layer"]: (row["outcome"], row["reason"]) for row in csv.DictReader(file)
            }
        assert outcomes["down0_conv1_norm"] == ("loaded", "")
        assert outcomes["up1_conv1"] == ("left out", "not of the encoder")
        variable = session.model.trainable_variables[0]
        variable.assign(variable.numpy() + 1)
        session.checkpoints.save()
        mine.unlink()
        resumed = begin(slices, tmp_path / "run", encoder_weights=str(mine))
        np.testing.assert_array_equal(resumed.model.trainable_variables[0], variable)
        assert "Encoder weights" not in capsys.readouterr().out

    def test_folder_of_a_run_is_a_source(self, slices, tmp_path, capsys):
        one = begin(slices, tmp_path / "one", weights="last")
        one.checkpoints.save()
        given = str(tmp_path / "one")
        two = begin(slices, tmp_path / "two", encoder_weights=given, seed=5)
        assert f"12 of 12 layers of unet from {given}" in capsys.readouterr().out
        check_encoder_is_that_of(two.model, one.model)

    def test_what_is_left_out_is_shown_in_short(self, slices, weights, tmp_path, capsys):
        path, _ = weights
        begin(slices, tmp_path / "run", encoder_weights=str(path), depth=3)
        out = capsys.readouterr().out
        # Of the third level, two convolutions and norms are new; the bottom is twice as wide.
        assert "8 of 16 layers of unet" in out
        assert "left out: down2_conv1 (not in the file)" in out
        assert "and 3 more; all are in encoder_weights.csv." in out

    def test_replicas_begin_alike(self, slices, weights, tmp_path):
        path, other = weights
        session = begin(
            slices,
            tmp_path / "run",
            encoder_weights=str(path),
            strategy="mirrored",
            devices=(0, 1),
            global_batch_size=2,
        )
        kernel = session.model.get_layer("down0_conv1").kernel.value
        expected = other.get_layer("down0_conv1").kernel.numpy()
        for copy in session.loop.strategy.experimental_local_results(kernel):
            np.testing.assert_array_equal(copy, expected)


class TestRefusals:
    @pytest.mark.parametrize(
        ("args", "words"),
        [
            (["--encoder_weights=missing.h5"], ["--encoder_weights ('missing.h5')", "imagenet"]),
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
        check_refused(door(f"--data_dir={slices}", f"--run_dir={run}", *SMALL, *args), *words)
        assert not run.exists()
