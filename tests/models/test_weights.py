"""Weights read from files and taken over by the names of layers."""

import os
import zipfile

import h5py
import keras
import numpy as np
import pytest

from unet_core.errors import UserError
from unet_core.models import imagenet, weights_file
from unet_core.models.build import make_network
from unet_core.models.imagenet import imagenet_weights
from unet_core.models.weights import fit, layers_of
from unet_core.models.weights_file import open_weights


def make_small(**kwargs):
    return make_network(**{"classes": 2, "depth": 1, "base_filters": 2, **kwargs})


def make_nested():
    """Returns a network in which a layer stands alone and two stand in a model of their own."""
    stem = keras.Sequential(
        [keras.layers.Conv2D(3, 2, name="stem_conv"), keras.layers.BatchNormalization(name="norm")],
        name="stem",
    )
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Dropout(0.5, name="drop")(stem(inputs))
    return keras.Model(inputs, keras.layers.Conv2D(2, 1, name="conv")(x))


def save(model, path):
    (model.save_weights if path.name.endswith(".weights.h5") else model.save)(path)
    return path


def arrays_in(path):
    with open_weights(path) as layers:
        return {name: [np.asarray(array) for array in arrays] for name, arrays in layers.items()}


def write_keras_2(path, layers, *, group="/"):
    """Writes {layer: {weight: array}} as Keras 2 does."""
    with h5py.File(path, "w") as file:
        root = file.require_group(group)
        root.attrs["layer_names"] = [name.encode() for name in layers]
        for name, arrays in layers.items():
            layer = root.create_group(name)
            layer.attrs["weight_names"] = [weight.encode() for weight in arrays]
            for weight, array in arrays.items():
                layer[weight] = array
    return path


def conv(seed=0, channels=1):
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=(3, 3, channels, 2)).astype(np.float32)
    return {
        "down0_conv1/kernel:0": kernel,
        "down0_conv1/bias:0": np.array([seed, 2], np.float32),
    }


class TestOpenWeights:
    @pytest.mark.parametrize("kind", [".weights.h5", ".keras", ".h5"])
    def test_every_kind_gives_the_arrays_of_each_layer_by_name(self, kind, tmp_path):
        model = make_nested()
        # Its variables are in the files too.
        model.compile(optimizer="adam")
        model.optimizer.build(model.trainable_variables)
        found = arrays_in(save(model, tmp_path / f"w{kind}"))
        stem, last = model.get_layer("stem"), model.get_layer("conv")
        layers = {"stem_conv": stem.layers[0], "norm": stem.layers[1], "conv": last}
        assert found.keys() == layers.keys()
        for name, layer in layers.items():
            for array, expected in zip(found[name], layer.get_weights(), strict=True):
                np.testing.assert_array_equal(array, expected)

    @pytest.mark.parametrize("group", ["/", "model_weights"])
    def test_file_of_keras_2_with_names_split_over_attributes(self, group, tmp_path):
        path = write_keras_2(tmp_path / "old_notop.h5", {"a": conv(), "b": {}}, group=group)
        with h5py.File(path, "a") as file:
            root = file[group]
            del root.attrs["layer_names"]
            root.attrs["layer_names0"], root.attrs["layer_names1"] = [b"a"], [b"b"]
        found = arrays_in(path)
        assert found.keys() == {"a"}
        for array, expected in zip(found["a"], conv().values(), strict=True):
            np.testing.assert_array_equal(array, expected)

    def test_layers_of_a_model_inside_a_file_of_keras_2_have_their_own_names(self, tmp_path):
        inner = {"stem/conv/kernel:0": np.ones(2), "stem/norm/gamma:0": np.zeros(3)}
        found = arrays_in(write_keras_2(tmp_path / "old.h5", {"stem": inner}))
        assert {name: [a.shape for a in arrays] for name, arrays in found.items()} == {
            "conv": [(2,)],
            "norm": [(3,)],
        }


class TestRefusedFiles:
    def check(self, path, *words):
        with pytest.raises(UserError) as caught:
            arrays_in(path)
        for word in (path, *words):
            assert str(word) in str(caught.value)

    def test_missing(self, tmp_path):
        self.check(tmp_path / "none.h5", "No such file")

    def test_pipe(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        self.check(tmp_path / "pipe", "not a regular file")

    @pytest.mark.parametrize(
        "content", [b"", b"hello", b"PK\x03\x04 and more", b"\x89HDF and more"]
    )
    def test_something_else(self, content, tmp_path):
        path = tmp_path / "w.h5"
        path.write_bytes(content)
        self.check(path, ".weights.h5")

    @pytest.mark.parametrize("kind", [".weights.h5", ".keras"])
    @pytest.mark.parametrize("share", [0.3, 0.9])
    def test_cut_off(self, kind, share, tmp_path):
        path = save(make_nested(), tmp_path / f"w{kind}")
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        self.check(path, "cannot be read as a file of weights")

    def test_archive_without_weights(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "w.keras", "w") as archive:
            archive.writestr("config.json", "{}")
        self.check(tmp_path / "w.keras", "model.weights.h5")

    def test_archive_of_more_than_the_most_bytes(self, tmp_path, monkeypatch):
        path = save(make_nested(), tmp_path / "w.keras")
        monkeypatch.setattr(weights_file, "MOST_BYTES", 1000)
        self.check(path, "at most 1000")

    def test_no_names(self, tmp_path):
        # As Keras 3 wrote them at first: by the class of a layer.
        with h5py.File(tmp_path / "w.weights.h5", "w") as file:
            file["layers/conv2d/vars/0"] = np.ones(2)
        self.check(tmp_path / "w.weights.h5", "no weights of layers with names")

    @pytest.mark.parametrize("link", [h5py.SoftLink("/a"), h5py.ExternalLink("other.h5", "/a")])
    def test_link(self, link, tmp_path):
        path = write_keras_2(tmp_path / "w.h5", {"a": conv()})
        with h5py.File(path, "a") as file:
            file.attrs["layer_names"] = [b"a", b"b"]
            file["b"] = link
        self.check(path, "link", "'b'")
        with h5py.File(path, "w") as file:
            file["layers/b"] = link
        self.check(path, "link", "'b'")

    def test_values_in_another_file(self, tmp_path):
        path, secret = tmp_path / "w.h5", tmp_path / "secret"
        secret.write_bytes(bytes(8))
        write_keras_2(path, {"a": {}})
        with h5py.File(path, "a") as file:
            file["a"].attrs["weight_names"] = [b"kernel:0"]
            file["a"].create_dataset("kernel:0", (2,), "f4", external=[(str(secret), 0, 8)])
        self.check(path, "/a/kernel:0", "another file")
        with h5py.File(path, "a") as file:
            del file["a"]["kernel:0"]
            layout = h5py.VirtualLayout((2,), "f4")
            layout[:] = h5py.VirtualSource("other.h5", "x", (2,))
            file["a"].create_virtual_dataset("kernel:0", layout)
        self.check(path, "/a/kernel:0", "another file")

    def test_groups_without_end(self, tmp_path):
        with h5py.File(tmp_path / "w.weights.h5", "w") as file:
            group = file.create_group("layers")
            # Both lead back.
            group["one"], group["two"] = group, group
        self.check(tmp_path / "w.weights.h5", "more groups than a network has")

    def test_two_layers_of_one_name(self, tmp_path):
        with h5py.File(tmp_path / "w.weights.h5", "w") as file:
            for number in range(2):
                file[f"layers/conv_{number}/vars/0"] = np.ones(2)
                file[f"layers/conv_{number}/vars"].attrs["name"] = "conv"
        self.check(tmp_path / "w.weights.h5", "two layers of the name 'conv'")

    def test_name_that_is_no_text(self, tmp_path):
        path = write_keras_2(tmp_path / "w.h5", {"a\x1b[2J": conv()})
        self.check(path, r"a\x1b[2J")


class TestFit:
    def test_layers_of_equal_shapes_are_loaded_and_others_left_out_with_the_reason(self, tmp_path):
        layers = {
            "down0_conv1": conv(channels=3),
            "down0_conv2": conv(1, channels=2),
            "bottom_conv1": {"kernel": np.ones((3, 3, 2, 4), "S1"), "bias": np.ones(4)},
            "up0_grow": conv(),
            "predictions": conv(),
        }
        path = write_keras_2(tmp_path / "w.h5", layers)
        model = make_small()
        before = {layer.name: layer.get_weights() for layer in model.layers}
        with open_weights(path) as source:
            taken = fit(source, model, "w.h5", part="encoder")
        taken.apply(model)
        for array, expected in zip(
            model.get_layer("down0_conv2").get_weights(),
            layers["down0_conv2"].values(),
            strict=True,
        ):
            np.testing.assert_array_equal(array, expected)
        for name in before.keys() - {"down0_conv2"}:
            for array, expected in zip(
                model.get_layer(name).get_weights(), before[name], strict=True
            ):
                np.testing.assert_array_equal(array, expected)
        rows = {row.layer: (row.loaded, row.reason, row.wanted) for row in taken.rows}
        assert rows == {
            "down0_conv1": (
                False,
                "(3, 3, 3, 2) (2,) in the file, (3, 3, 1, 2) (2,) in the network",
                True,
            ),
            "down0_conv2": (True, "", True),
            "bottom_conv1": (False, "of type |S1 in the file", True),
            "bottom_conv2": (False, "not in the file", True),
            "up0_grow": (False, "not of the encoder", False),
            "predictions": (False, "not in the network", False),
        }

    def test_nothing_that_fits_names_both_sides(self, tmp_path):
        path = write_keras_2(tmp_path / "w.h5", {"fc1": conv(), "down0_conv1": conv(channels=3)})
        with (
            open_weights(path) as source,
            pytest.raises(
                UserError, match=r"w\.h5: no weights of it fit the encoder 'unet'\."
            ) as e,
        ):
            fit(source, make_small(), "w.h5", part="encoder")
        for word in ("fc1", "down0_conv2", "(3, 3, 3, 2) (2,) in the file"):
            assert word in str(e.value)

    def test_values_that_are_not_finite_are_refused(self):
        source = layers_of(make_small())
        source["bottom_conv1"][1][0] = np.nan
        with pytest.raises(
            UserError, match=r"other\.h5: the weights of the layer 'bottom_conv1' are"
        ):
            fit(source, make_small(), "other.h5", part="encoder")

    def test_large_array_of_another_shape_is_not_read(self, tmp_path):
        path = write_keras_2(
            tmp_path / "w.h5", {"down0_conv1": {}, "down0_conv2": conv(channels=2)}
        )
        with h5py.File(path, "a") as file:
            file["down0_conv1"].attrs["weight_names"] = [b"kernel"]
            # 4 TiB of zeros that take no room in the file.
            file["down0_conv1"].create_dataset("kernel", (2**40,), "f4", chunks=(2**20,))
        with open_weights(path) as source:
            taken = fit(source, make_small(), "w.h5", part="encoder")
        assert taken.arrays.keys() == {"down0_conv2"}

    def test_digest_tells_weights_apart(self):
        source = layers_of(make_small())
        one, same = (fit(source, make_small(), "x", part="encoder").digest for _ in range(2))
        other = fit(layers_of(make_small(seed=1)), make_small(), "x", part="encoder").digest
        assert one == same != other


class TestOverlappingClasses:
    @pytest.mark.parametrize("before", [1, 3])
    def test_classes_of_one_name_keep_their_logits_and_new_ones_begin_anew(self, before):
        old = make_small(classes=before, heads="sigmoid")
        new = make_small(classes=2, heads="sigmoid", seed=1)
        for layer in (old.get_layer("head"), new.get_layer("head")):
            layer.bias.assign(np.arange(1.0, 1 + layer.bias.shape[0]))
        given = dict(classes=[None, before - 1], overlapping=True)
        found = fit(layers_of(old), new, "x", **given).arrays["head"]
        for array, ours, theirs in zip(
            found, new.get_layer("head").variables, old.get_layer("head").variables, strict=True
        ):
            np.testing.assert_array_equal(array[..., 0], ours.numpy()[..., 0])
            np.testing.assert_array_equal(array[..., 1], theirs.numpy()[..., before - 1])

    def test_one_class_keeps_its_logit(self):
        old, new = (make_small(classes=1, heads="sigmoid", seed=seed) for seed in (0, 1))
        found = fit(layers_of(old), new, "x", classes=[0], overlapping=True).arrays["head"]
        np.testing.assert_array_equal(found[0], old.get_layer("head").kernel)


class TestLayersOf:
    def test_dropout_has_no_weights_to_take(self):
        model = make_small(dropout=0.5)
        assert "bottom_dropout" not in layers_of(model)
        assert fit(layers_of(model), model, "itself", part="encoder").rows[-1].layer == "head"

    def test_layers_of_models_inside_are_there(self):
        assert layers_of(make_nested()).keys() >= {"stem_conv", "norm", "conv"}


class TestImageNet:
    def test_file_in_the_folder_of_keras_is_read(self, tmp_path, monkeypatch):
        monkeypatch.setenv("KERAS_HOME", str(tmp_path))
        imagenet.folder().mkdir()
        name = "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
        write_keras_2(imagenet.folder() / name, {"block1_conv1": conv()})
        with imagenet_weights("vgg16") as source:
            assert list(source) == ["block1_conv1"]

    def test_without_a_network_the_file_and_its_folder_are_named(
        self, tmp_path, monkeypatch, capfd
    ):
        def fail(**kwargs):
            print("Downloading data from https://storage.example/x.h5")
            raise Exception("URL fetch failure on https://storage.example/x.h5: None -- no route")

        monkeypatch.setenv("KERAS_HOME", str(tmp_path))
        monkeypatch.setattr(keras.applications, "ResNet50", fail)
        with pytest.raises(UserError) as caught, imagenet_weights("resnet50"):
            pass
        message = str(caught.value)
        for word in (
            "(no route)",
            "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
            str(tmp_path / "models"),
            "`encoder_weights`",
        ):
            assert word in message
        assert capfd.readouterr().out == ""

    def test_what_keras_downloads_is_taken(self, tmp_path, monkeypatch):
        monkeypatch.setenv("KERAS_HOME", str(tmp_path))
        monkeypatch.setattr(keras.applications, "ResNet50", lambda **kwargs: make_nested())
        with imagenet_weights("resnet50") as source:
            assert "stem_conv" in source

    def test_encoder_that_keras_does_not_have_is_refused(self):
        message = r"`encoder_weights` cannot be imagenet with the `encoder` unet.*vgg16"
        with pytest.raises(UserError, match=message), imagenet_weights("unet"):
            pass
