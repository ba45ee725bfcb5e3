"""`--encoder_weights` and `--init_from`: what a new run begins with."""

import csv
import shutil

import cv2
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

MEMBRANES = {"classes": "0:membrane,255:cell"}


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    return write_slices(tmp_path_factory.mktemp("slices"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The weights of a network like that of the runs, from another seed, by Keras."""
    path = tmp_path_factory.mktemp("weights") / "other.weights.h5"
    model = build_network(RunConfig.of(seed=7, **MEMBRANES, **NETWORK))
    model.save_weights(path)
    return path, model


def begin(slices, run_dir, **kwargs):
    """Returns the session of a run before its first step, or where it goes on."""
    settings = {**NETWORK, "crop_size": 32, "folds": 3, "fold": "2", **kwargs}
    config = RunConfig.of(data_dir=str(slices), run_dir=str(run_dir), **{**MEMBRANES, **settings})
    plan = prepare(config, StopRequest())
    with plan.run.locked():
        return train.build(plan, config)


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


@pytest.fixture(scope="module")
def other_run(slices, tmp_path_factory):
    """A run of one checkpoint, whose weights are none of the initial ones."""
    run = tmp_path_factory.mktemp("other") / "run"
    session = begin(slices, run, seed=3, ema_decay=0.0)
    rng = np.random.default_rng(0)
    for variable in session.model.variables:
        if variable.dtype == "float32":
            variable.assign(variable.numpy() + rng.uniform(0, 0.1, variable.shape))
    session.checkpoints.save()
    return run, {v.path: v.numpy() for v in session.model.variables}


def outcomes_in(run):
    with open(run / "init_from.csv") as file:
        return {row["layer"]: (row["outcome"], row["reason"]) for row in csv.DictReader(file)}


class TestInitFrom:
    def test_network_of_one_kind_is_taken_over_bit_for_bit(self, slices, other_run, tmp_path):
        run, theirs = other_run
        session = begin(slices, tmp_path / "run", init_from=str(run), ema_decay=0.9)
        for variable in session.model.variables:
            if "calls" not in variable.path:  # Of dropout, which counts.
                np.testing.assert_array_equal(variable, theirs[variable.path], variable.path)
        assert session.loop.step == 0
        assert {outcome for outcome, _ in outcomes_in(tmp_path / "run").values()} == {"loaded"}

    def test_classes_of_one_name_keep_their_logits_and_new_ones_begin_anew(
        self, slices, other_run, tmp_path
    ):
        run, theirs = other_run
        data = shutil.copytree(slices, tmp_path / "data")
        first = min((data / "train" / "label").iterdir())
        mask = cv2.imread(str(first), cv2.IMREAD_UNCHANGED)
        mask[:8] = 7
        cv2.imwrite(str(first), mask)
        classes = "255:cell,7:vesicle,0:membrane"
        session = begin(data, tmp_path / "run", init_from=str(run), classes=classes, seed=5)
        fresh = begin(data, tmp_path / "fresh", classes=classes, seed=5)
        for name in ("kernel", "bias"):
            found, new = (
                getattr(s.model.get_layer("head"), name).numpy() for s in (session, fresh)
            )
            # Two classes have one logit, that of the cell where the membrane's is 0.
            np.testing.assert_array_equal(found[..., 0], theirs[f"head/{name}"][..., 0])
            np.testing.assert_array_equal(found[..., 1], new[..., 1])
            np.testing.assert_array_equal(found[..., 2], 0)
        assert outcomes_in(tmp_path / "run")["head"] == (
            "loaded",
            "2 of 3 classes; the others are new",
        )

    @pytest.mark.parametrize(
        ("settings", "left_out"),
        [
            (dict(channels=3), {"down0_conv1": "(3, 3, 1, 4) in the file, (3, 3, 3, 4)"}),
            # A deeper network has one level more; what was the bottom is not its bottom.
            (dict(depth=3), {"bottom_conv1": "(3, 3, 8, 16)", "up2_conv1": "not in the file"}),
        ],
    )
    def test_what_does_not_fit_is_named_and_the_rest_is_equal(
        self, slices, other_run, tmp_path, settings, left_out
    ):
        run, theirs = other_run
        session = begin(slices, tmp_path / "run", init_from=str(run), **settings)
        outcomes = outcomes_in(tmp_path / "run")
        for layer, reason in left_out.items():
            assert outcomes[layer][0] == "left out"
            assert reason in outcomes[layer][1]
        loaded = {layer for layer, (outcome, _) in outcomes.items() if outcome == "loaded"}
        assert {"down1_conv1", "up0_conv2", "head"} <= loaded
        for variable in session.model.variables:
            if variable.path.split("/")[0] in loaded:
                np.testing.assert_array_equal(variable, theirs[variable.path], variable.path)

    def test_wrong_sources_are_refused_by_name(self, door, slices, other_run, tmp_path):
        args = [f"--data_dir={slices}", f"--run_dir={tmp_path / 'run'}", *SMALL]
        nothing = tmp_path / "nothing"
        for value, words in (
            (nothing, [f"--init_from ('{nothing}')", "is there"]),
            (tmp_path, [tmp_path, "holds no run"]),
        ):
            check_refused(door(*args, f"--init_from={value}"), *words)
        both = ["--encoder_weights=imagenet", f"--init_from={other_run[0]}"]
        check_refused(door(*args, *both), "--init_from", "--encoder_weights (imagenet)")
        other = ["--encoder=mobilenet_v2", "--decoder=fpn", f"--init_from={other_run[0]}"]
        check_refused(door(*args, *other), "no weights of it fit the network", "down0_conv1")
        assert not (tmp_path / "run").exists()
