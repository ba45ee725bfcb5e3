"""The example of a network of one's own, from training to an export, through the program."""

import json
import sys

import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
from helpers.program import MEMBRANE, ROOT, check_refused, write_slices

from unet_core.inference import Predictor
from unet_core.inference.trained import build_network
from unet_core.models.geometry import tile_geometry
from unet_core.run_directory import RunDirectory
from unet_core.settings import RunConfig

NETWORK = "examples.own_network:make_network"
TRAIN = [
    MEMBRANE,
    "--train_steps=4",
    "--crop_size=32",
    "--precision=float32",
    "--folds=3",
    "--fold=2",
]


@pytest.fixture
def path(monkeypatch):
    """The current folder is that of the project, and what is imported from it is forgotten."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(ROOT))])
    forget = [name for name in sys.modules if name.partition(".")[0] == "examples"]
    for name in forget:
        monkeypatch.delitem(sys.modules, name)


def check_done(result):
    code, out, err = result
    assert code == 0, err
    return out


class TestOwnNetwork:
    @pytest.mark.slow
    def test_trains_resumes_evaluates_predicts_and_exports(self, door, tmp_path, path):
        data, run = write_slices(tmp_path), tmp_path / "run"
        own = f"--network={NETWORK}"
        check_done(door(f"--run_dir={run}", f"--data_dir={data}", *TRAIN, own))
        resumed = [*TRAIN, "--train_steps=6", "--schedule_steps=6", own]
        out = check_done(door(f"--run_dir={run}", f"--data_dir={data}", *resumed))
        assert "Going on from step 4" in out
        before = json.loads((run / "scores.json").read_text())
        check_done(door("--mode=evaluate", f"--run_dir={run}", own))
        assert json.loads((run / "scores.json").read_text()) == before
        masks, exported = tmp_path / "masks", tmp_path / "exported"
        check_done(door("--mode=predict", f"--run_dir={run}", own, f"--output_dir={masks}"))
        assert list(masks.glob("*_predict.png"))
        export = [f"--output_dir={exported}", "--formats=saved_model,keras,onnx"]
        check_done(door("--mode=export", f"--run_dir={run}", own, *export))
        self.check_export(run, exported)

    def check_export(self, run, exported):
        image = np.random.default_rng(0).integers(0, 256, (80, 75)).astype(np.uint8)
        expected = Predictor(run, network=NETWORK)(image)
        np.testing.assert_array_equal(Predictor(exported, network=NETWORK)(image), expected)
        serve = tf.saved_model.load(str(exported / "saved_model")).signatures["serving_default"]
        served = serve(images=tf.constant(image[None, ..., None]))["probabilities"][0].numpy()
        session = onnxruntime.InferenceSession(exported / "model.onnx")
        (of_onnx,) = session.run(["probabilities"], {"images": image[None, ..., None]})
        np.testing.assert_allclose(of_onnx[0], served, atol=1e-5)
        # 33 pixels, the halo, from the edge: exports mirror the image there.
        inside = np.s_[33:-33, 33:-33]
        np.testing.assert_allclose(served[inside], expected[inside], atol=1e-5)

    def test_is_not_run_because_a_file_names_it(self, door, tmp_path, path):
        run = RunDirectory(tmp_path / "run")
        run.path.mkdir()
        run.store(
            RunConfig.of(classes="0:membrane,255:cell", network=NETWORK, precision="float32"),
            "fingerprint",
        )
        for mode in ("evaluate", "predict", "export"):
            refused = door(f"--mode={mode}", f"--run_dir={run.path}")
            check_refused(refused, run.path, f"give --network={NETWORK}")
            refused = door(f"--mode={mode}", f"--run_dir={run.path}", "--network=other:make")
            check_refused(refused, NETWORK, "not by other:make")
        data = write_slices(tmp_path)
        refused = door(f"--run_dir={run.path}", f"--data_dir={data}", *TRAIN)
        check_refused(refused, run.path, f"give --network={NETWORK}")
        assert not [name for name in sys.modules if name.startswith("examples")]

    def test_flag_that_it_makes_useless_is_refused(self, door, tmp_path, path):
        data, run = f"--data_dir={tmp_path}", f"--run_dir={tmp_path / 'run'}"
        refused = door(data, run, MEMBRANE, f"--network={NETWORK}", "--depth=3")
        check_refused(refused, "--depth", NETWORK)

    def test_run_without_one_refuses_it(self, door, tmp_path, path):
        run = RunDirectory(tmp_path / "run")
        run.path.mkdir()
        run.store(RunConfig.of(classes="0:membrane,255:cell", precision="float32"), "fingerprint")
        refused = door("--mode=export", f"--run_dir={run.path}", f"--network={NETWORK}")
        check_refused(refused, NETWORK, "Leave it out")

    def test_example_keeps_the_contract(self, path, monkeypatch):
        monkeypatch.syspath_prepend(ROOT)
        config = RunConfig.of(
            classes="0:membrane,255:cell", network=NETWORK, precision="bfloat16", channels=3
        )
        model = build_network(config)
        assert model.output_shape == (None, None, None, 1)
        assert tile_geometry(model).halo == 33
        kernels = [layer.compute_dtype for layer in model.layers if "context" in layer.name]
        assert set(kernels) == {"bfloat16"}
        other = build_network(config.replace(seed=1))
        same = build_network(config)
        name = "context0"
        assert (model.get_layer(name).kernel == same.get_layer(name).kernel).numpy().all()
        assert not (model.get_layer(name).kernel == other.get_layer(name).kernel).numpy().any()
