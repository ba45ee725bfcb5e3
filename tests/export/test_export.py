import json
import subprocess
import sys
from importlib.util import find_spec

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.program import ROOT
from tensorflow.core.protobuf import config_pb2

from unet_core.data.classes import ClassMap
from unet_core.data.intensities import Scaling
from unet_core.errors import UserError
from unet_core.export import onnx_file
from unet_core.export.export import export
from unet_core.export.saved_model import scaled
from unet_core.inference.masks import Threshold, predicted_ids
from unet_core.inference.network import InferenceNetwork
from unet_core.inference.predictor import Predictor
from unet_core.inference.sliding_window import SlidingWindow
from unet_core.inference.trained import build_network
from unet_core.models.ensemble import make_ensemble
from unet_core.models.layers import FusedBatchNorm, LayerScale
from unet_core.settings import RunConfig

THREE = "0:background,127:myelin,255:axon"
# Settings of the run, and the type of the image.
CASES = {
    "uint8": (dict(), "uint8"),
    "uint16": (dict(), "uint16"),
    "float32": (dict(), "float32"),
    "colour_norm_three": (
        dict(channels=3, normalization="batch", classes=THREE, dropout=0.5),
        "uint8",
    ),
    "valid_upsample": (dict(padding="valid", decoder="upsample", classes=THREE), "uint8"),
    "bfloat16": (dict(precision="bfloat16"), "uint8"),
    "stem_group_silu": (dict(stem_stride=2, normalization="group", activation="silu"), "uint8"),
    "residual_instance_leaky": (
        dict(encoder="residual", normalization="instance", activation="leaky_relu"),
        "uint8",
    ),
    "percentile": (dict(intensities="percentile:2,97.5", channels=3), "uint16"),
    "zscore": (dict(intensities="zscore", channels=3), "uint16"),
    "fixed": (dict(intensities="fixed:120,40"), "uint8"),
}


SMALL = {
    "classes": "0:membrane,255:cell",
    "precision": "float32",
    "depth": 2,
    "base_filters": 4,
}


def make_config(**kwargs):
    return RunConfig.of(**{**SMALL, **kwargs})


def make_model(config):
    """The network of `config`, with biases and statistics that are none of the initial ones."""
    model = build_network(config)
    rng = np.random.default_rng(1)
    for variable in model.variables:
        if variable.name in ("beta", "bias", "moving_mean"):
            variable.assign(rng.normal(0, 0.3, variable.shape))
        elif variable.name in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.5, 2, variable.shape))
    return model


def write(model, config, folder, **kwargs):
    """Exports `model` as `config` says."""
    export(
        model,
        folder,
        classes=ClassMap.parse(config.data.classes),
        scaling=Scaling.parse(config.data.intensities),
        settings=config.stored(),
        **{"step": 1, **kwargs},
    )


def make_image(config, dtype, height=37, width=53):
    levels = np.random.default_rng(2).random((height, width, config.data.channels), np.float32)
    return levels if dtype == "float32" else (levels * np.iinfo(dtype).max).astype(dtype)


def expected_probabilities(model, config, image):
    return SlidingWindow(InferenceNetwork(model))(Scaling.parse(config.data.intensities)(image))


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """For each case: model, settings, image, and the outputs of the SavedModel in a process that
    has neither this package nor Keras.
    """
    folder = tmp_path_factory.mktemp("served")
    cases, exported, places = {}, {}, []
    for name, (settings, dtype) in CASES.items():
        config = make_config(**settings)
        if config not in exported:
            exported[config] = name, make_model(config)
            write(
                exported[config][1],
                config,
                folder / name,
                step=7,
                formats=["saved_model"],
            )
        place, model = exported[config]
        places.append(f"{name}={place}")
        cases[name] = (model, config, make_image(config, dtype))
        np.save(folder / f"{name}.npy", cases[name][-1])
    code = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
sys.modules["unet_core"] = sys.modules["keras"] = None
try:
    import unet_core
    raise SystemExit("the package can be imported")
except ImportError:
    pass
import numpy as np, tensorflow as tf
folder, places = sys.argv[1], sys.argv[2:]
for name, place in (pair.split("=") for pair in places):
    image = np.load(f"{folder}/{name}.npy")
    signatures = tf.saved_model.load(f"{folder}/{place}/saved_model").signatures
    key = {"uint8": "serving_default"}.get(image.dtype.name, f"serving_{image.dtype.name}")
    two = np.stack([image, image[::-1]])
    found = signatures[key](images=tf.constant(two))
    classes = signatures["classes"]()
    classes["names"] = classes["names"].numpy().astype("S")
    np.savez(f"{folder}/{name}_found.npz", **found, **classes)
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(folder), *places],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {
        name: (*case, dict(np.load(folder / f"{name}_found.npz"))) for name, case in cases.items()
    }


@pytest.fixture(scope="module")
def one_channel(tmp_path_factory):
    folder, config = tmp_path_factory.mktemp("one_channel") / "e", make_config()
    write(make_model(config), config, folder, formats=["saved_model"])
    return folder / "saved_model"


class TestSavedModel:
    @pytest.mark.parametrize("name", CASES)
    def test_outputs_are_those_of_the_package_in_a_process_without_it(self, served, name):
        model, config, image, found = served[name]
        tolerance = 0.05 if name == "bfloat16" else 1e-4
        assert found["probabilities"].dtype == np.float32
        assert found["masks"].dtype == np.uint8
        for row, one in enumerate((image, image[::-1])):
            expected = expected_probabilities(model, config, one)
            np.testing.assert_allclose(found["probabilities"][row], expected, atol=tolerance)
            differs = found["masks"][row] != predicted_ids(expected)
            # Only pixels that are nearly undecided may fall to the other side.
            first, second = np.sort(expected, -1)[..., :-3:-1].transpose(2, 0, 1)
            assert (first - second)[differs].max(initial=0) < 2 * tolerance
            assert len(np.unique(found["masks"][row])) > 1

    def test_classes_are_told_by_a_signature(self, served):
        found = served["colour_norm_three"][-1]
        assert found["names"].tolist() == [b"background", b"myelin", b"axon"]
        assert found["mask_values"].tolist() == [0, 127, 255]

    def test_classes_are_an_asset_even_after_the_folder_has_moved(self, tmp_path):
        config = make_config(classes="#000000:road,#ff0000:car", channels=3)
        write(make_model(config), config, tmp_path / "a", formats=["saved_model"])
        (tmp_path / "a").rename(tmp_path / "b")
        loaded = tf.saved_model.load(tmp_path / "b" / "saved_model")
        asset = tmp_path / "b" / "saved_model" / "assets" / "classes.json"
        assert loaded.described.asset_path.numpy().decode() == str(asset)
        for path in (asset, tmp_path / "b" / "classes.json"):
            assert json.loads(path.read_text()) == [
                {"id": 0, "name": "road", "mask_value": [0, 0, 0]},
                {"id": 1, "name": "car", "mask_value": [255, 0, 0]},
            ]

    @pytest.mark.parametrize("shape", [(1, 9, 9, 3), (9, 9, 1), (1, 1, 9, 9, 1), ()])
    def test_image_of_another_shape_is_an_error_in_the_graph(self, one_channel, shape):
        # As servers do: fed without the look at the placeholder's shape that Python takes.
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            found = tf.compat.v1.saved_model.load(session, ["serve"], str(one_channel))
            signature = found.signature_def["serving_default"]
            names = [signature.inputs["images"].name], [signature.outputs["masks"].name]
            options = config_pb2.CallableOptions(feed=names[0], fetch=names[1])
            serve = session._make_callable_from_options(options)
            assert serve(np.zeros((1, 9, 9, 1), np.uint8))[0].shape == (1, 9, 9)
            with pytest.raises(tf.errors.InvalidArgumentError, match="is not compatible"):
                serve(np.zeros(shape, np.uint8))

    def test_precision_can_be_chosen_and_variables_are_of_it(self, tmp_path):
        config = make_config()
        write(
            make_model(config),
            config,
            tmp_path / "e",
            formats=["saved_model"],
            precision="bfloat16",
        )
        loaded = tf.saved_model.load(tmp_path / "e" / "saved_model")
        assert {weight.dtype for weight in loaded.weights} == {tf.bfloat16}


class TestScaled:
    @pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
    @pytest.mark.parametrize(
        "text", ["range", "percentile:1,99", "percentile:0,100", "zscore", "fixed:0.3,2.5"]
    )
    def test_every_form_is_that_of_the_data_pipeline(self, text, dtype):
        scaling, config = Scaling.parse(text), make_config(channels=3)
        images = np.stack([make_image(config, dtype), make_image(config, dtype) // 3])
        images[1, ..., 2] = 1  # A channel that does not vary.
        expected = np.stack([scaling(image).astype(np.float32) for image in images])
        found = scaled(tf.constant(images), scaling)
        assert found.dtype == tf.float32
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-4)


class TestKeras:
    def test_network_comes_back_with_its_layers_and_logits(self, tmp_path):
        config = make_config(normalization="batch", dropout=0.5, precision="bfloat16")
        model, image = make_model(config), make_image(config, "uint8")[None]
        write(model, config, tmp_path / "e", formats=["keras"])
        loaded = keras.saving.load_model(tmp_path / "e" / "model.keras", safe_mode=True)
        np.testing.assert_array_equal(loaded(image), model(image))
        assert [layer.name for layer in loaded.layers] == [layer.name for layer in model.layers]
        assert not (tmp_path / "e" / "saved_model").exists()

    def test_settings_and_weights_rebuild_the_network(self, tmp_path):
        config = make_config(normalization="batch", classes=THREE, decoder="upsample")
        model, image = make_model(config), make_image(config, "uint8")[None]
        write(model, config, tmp_path / "e", step=12, formats=["keras"])
        stored = json.loads((tmp_path / "e" / "unet_core.json").read_text())
        assert (stored["format"], stored["step"]) == (1, 12)
        assert RunConfig.from_stored(stored["settings"]) == config
        rebuilt = build_network(RunConfig.from_stored(stored["settings"]))
        rebuilt.set_weights(keras.saving.load_model(tmp_path / "e" / "model.keras").get_weights())
        np.testing.assert_array_equal(rebuilt(image), model(image))


class TestOnnx:
    @pytest.mark.parametrize("name", [name for name in CASES if name != "bfloat16"])
    def test_outputs_are_those_of_the_package(self, tmp_path, name):
        pytest.importorskip("onnx", reason="the package onnx is not installed")
        runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
        settings, dtype = CASES[name]
        config = make_config(**settings)
        if config.data.intensities == "range":
            dtype = "uint8"
        model = make_model(config)
        write(model, config, tmp_path / "e", formats=["onnx"])
        session = runtime.InferenceSession(
            tmp_path / "e" / "model.onnx", providers=["CPUExecutionProvider"]
        )
        names = session.get_modelmeta().custom_metadata_map["class_names"].split("\n")
        assert tuple(names) == ClassMap.parse(config.data.classes).names
        for height, width in ((37, 53), (1, 9), (64, 32)):
            image = make_image(config, dtype, height, width)
            fed = image if config.data.intensities == "range" else image.astype(np.float32)
            probabilities, masks = session.run(None, {"images": np.stack([fed, fed[:, ::-1]])})
            expected = expected_probabilities(model, config, image)
            np.testing.assert_allclose(probabilities[0], expected, atol=1e-4)
            np.testing.assert_array_equal(masks, predicted_ids(probabilities))
            flipped = expected_probabilities(model, config, image[:, ::-1])
            np.testing.assert_allclose(probabilities[1], flipped, atol=1e-4)

    def test_layers_that_no_convolution_takes_over_are_written_too(self):
        pytest.importorskip("onnx", reason="the package onnx is not installed")
        runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
        inputs = keras.Input((None, None, 3))
        norm = keras.layers.Normalization(mean=[120, 100, 90], variance=[900, 400, 100])
        x = FusedBatchNorm(epsilon=0.1)(norm(inputs))
        gate = keras.layers.Activation("sigmoid")(LayerScale(0.5)(x))
        x = keras.layers.Multiply()([keras.layers.ReLU(max_value=6)(x), gate])
        x = keras.layers.LayerNormalization()(x)
        x = keras.layers.Activation("gelu")(x)
        model = keras.Model(inputs, keras.layers.Conv2D(1, 1)(x))
        rng = np.random.default_rng(1)
        for variable in model.variables:
            variable.assign(rng.uniform(0.5, 2, variable.shape))
        proto = onnx_file.make_onnx(model, Scaling.parse("range"), ["a", "b"])
        session = runtime.InferenceSession(
            proto.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        images = rng.integers(0, 256, (2, 9, 7, 3)).astype(np.uint8)
        probabilities, _ = session.run(None, {"images": images})
        expected = tf.sigmoid(model(images))[..., 0]
        np.testing.assert_allclose(probabilities[..., 1], expected, atol=1e-5)

    def test_missing_package_is_named_before_anything_is_written(self, tmp_path, monkeypatch):
        monkeypatch.setattr(onnx_file.importlib.util, "find_spec", lambda name: None)
        config = make_config()
        with pytest.raises(UserError, match=r"unet_core\[onnx\]"):
            write(make_model(config), config, tmp_path / "e", formats=["onnx"])
        assert list(tmp_path.iterdir()) == []


class TestThreshold:
    """Masks are those of the probability of one class, and probabilities are as they are."""

    @pytest.mark.parametrize("class_id", [0, 1])
    def test_masks_are_those_of_the_package(self, tmp_path, class_id):
        config, threshold = make_config(), Threshold(class_id, 0.55)
        model = make_model(config)
        formats = ["saved_model", *(["onnx"] if find_spec("onnx") else [])]
        write(model, config, tmp_path / "e", formats=formats, threshold=threshold)
        image = make_image(config, "uint8")
        loaded = tf.saved_model.load(tmp_path / "e" / "saved_model")
        found = loaded.signatures["serving_default"](images=tf.constant(image[None]))
        probabilities = found["probabilities"].numpy()
        expected = predicted_ids(probabilities[0], threshold)
        assert (expected != predicted_ids(probabilities[0])).any()
        np.testing.assert_array_equal(found["masks"][0], expected)
        runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
        session = runtime.InferenceSession(tmp_path / "e" / "model.onnx")
        probabilities, masks = session.run(None, {"images": image[None]})
        np.testing.assert_array_equal(masks, predicted_ids(probabilities, threshold))


class TestSeveralNetworks:
    @pytest.mark.parametrize("name", ["uint8", "colour_norm_three", "residual_instance_leaky"])
    def test_every_format_gives_the_mean_of_their_probabilities(self, tmp_path, name):
        config = make_config(**CASES[name][0])
        models = [make_model(config), build_network(config.replace(seed=5))]
        formats = ["saved_model", "keras", *(["onnx"] if find_spec("onnx") else [])]
        write(make_ensemble(models), config, tmp_path / "e", formats=formats, networks=2)
        image = make_image(config, "uint8")
        expected = np.mean([expected_probabilities(each, config, image) for each in models], 0)
        loaded = tf.saved_model.load(tmp_path / "e" / "saved_model")
        found = loaded.signatures["serving_default"](images=tf.constant(image[None]))
        np.testing.assert_allclose(found["probabilities"][0], expected, atol=1e-4)
        # The package reads it again: a file of several networks has a format of its own.
        stored = json.loads((tmp_path / "e" / "unet_core.json").read_text())
        assert (stored["format"], stored["networks"]) == (2, 2)
        np.testing.assert_allclose(Predictor(tmp_path / "e")(image), expected, atol=1e-5)
        runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
        session = runtime.InferenceSession(tmp_path / "e" / "model.onnx")
        probabilities, _ = session.run(None, {"images": image[None]})
        np.testing.assert_allclose(probabilities[0], expected, atol=1e-4)


class TestKerasFile:
    def test_is_loaded_with_the_import_that_the_page_names(self, tmp_path):
        config = make_config(stem_stride=2, normalization="group", decoder="upsample")
        write(make_model(config), config, tmp_path / "e", formats=["keras"])
        code = (
            "import unet_core.models.build, keras;"
            f"print(keras.saving.load_model({str(tmp_path / 'e' / 'model.keras')!r}).output_shape)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout == "(None, None, None, 1)\n", done.stderr
        assert "import unet_core.models.build" in (ROOT / "docs" / "production.md").read_text()


class TestEdges:
    @pytest.mark.parametrize("padding", ["same", "valid"])
    def test_probabilities_are_those_of_the_model_up_to_the_edges(self, tmp_path, padding):
        config = make_config(padding=padding, depth=3)
        model, image = make_model(config), make_image(config, "uint8", 16, 24)
        write(model, config, tmp_path / "e", formats=["saved_model"])
        loaded = tf.saved_model.load(tmp_path / "e" / "saved_model")
        found = loaded.signatures["serving_default"](images=tf.constant(image[None]))
        expected = tf.sigmoid(model(image[None]))[0, ..., 0]
        np.testing.assert_allclose(found["probabilities"][0, ..., 1], expected, atol=1e-5)


class TestFolder:
    def test_existing_folder_is_left_alone(self, tmp_path):
        config = make_config()
        (tmp_path / "e").mkdir()
        with pytest.raises(UserError, match=f"{tmp_path / 'e'}: exists"):
            write(make_model(config), config, tmp_path / "e")
        assert list(tmp_path.rglob("*")) == [tmp_path / "e"]

    def test_failure_leaves_nothing_behind(self, tmp_path, monkeypatch):
        def fail(*args, **kwargs):
            raise OSError(28, "No space left on device", "model.keras")

        config = make_config()
        model = make_model(config)
        monkeypatch.setattr(model, "save", fail)
        with pytest.raises(UserError, match="No space left on device"):
            write(model, config, tmp_path / "e", formats=["keras"])
        assert list(tmp_path.iterdir()) == []

    def test_folder_in_the_way_of_a_parent_is_a_user_error(self, tmp_path):
        (tmp_path / "file").write_text("")
        config = make_config()
        with pytest.raises(UserError, match="cannot be written"):
            write(make_model(config), config, tmp_path / "file" / "e")

    def test_unknown_format_is_named(self, tmp_path):
        config = make_config()
        with pytest.raises(UserError, match="tflite cannot be exported"):
            write(make_model(config), config, tmp_path / "e", formats=["tflite"])
        with pytest.raises(UserError, match="nothing cannot"):
            write(make_model(config), config, tmp_path / "e", formats=[])

    def test_model_of_other_classes_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="3 logits"):
            write(make_model(make_config()), make_config(classes=THREE), tmp_path / "e")
