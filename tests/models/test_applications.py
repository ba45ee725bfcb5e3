"""The networks of `keras.applications` as encoders, against those of Keras."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from unet_core.errors import UserError
from unet_core.models.build import make_network
from unet_core.models.encoders import ENCODERS
from unet_core.models.encoders.applications import IMAGENET_DEVIATION, IMAGENET_MEAN
from unet_core.models.layers import FusedBatchNorm, RowDropout
from unet_core.models.weights import fit, layers_of
from unet_core.models.weights_file import open_weights

# The deepest features of each, and how Keras scales its images.
NETWORKS = {
    "vgg16": ("block5_pool", keras.applications.vgg16.preprocess_input),
    "resnet50": ("conv5_block3_out", keras.applications.resnet50.preprocess_input),
    "efficientnet_b0": ("top_activation", np.asarray),
    "mobilenet_v2": ("out_relu", keras.applications.mobilenet_v2.preprocess_input),
    "convnext_tiny": ("convnext_tiny_stage_3_block_2_add", np.asarray),
}


def picture(channels=3, *, rows=1, size=64):
    shape = (rows, size, size, channels)
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.float32)


def make_ours(encoder, *, channels=3, depth=5, **kwargs):
    settings = {"classes": 2, "base_filters": 2, **kwargs}
    return make_network(encoder=encoder, channels=channels, depth=depth, **settings)


def make_theirs(encoder):
    """Returns the network of Keras with random values for all its variables."""
    application = getattr(keras.applications, ENCODERS[encoder].application.name)
    model = application(include_top=False, weights=None, input_shape=(None, None, 3))
    rng = np.random.default_rng(1)
    for variable in model.variables:
        if variable.dtype != "float32":
            continue
        if variable.name in ("gamma", "moving_variance", "variance"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        else:
            variable.assign(variable.numpy() + rng.normal(0, 0.02, variable.shape))
    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()
    return model


def deepest_of_theirs(encoder, model, images):
    name, scale = NETWORKS[encoder]
    # What ConvNeXt adds has no name there; a normalisation follows it.
    tensor = model.layers[-1].input if encoder == "convnext_tiny" else model.get_layer(name).output
    return keras.Model(model.input, tensor)(scale(images.copy())).numpy()


def output_of(model, name, images):
    return keras.Model(model.input, model.get_layer(name).output)(images).numpy()


def check_equal(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


SLOW = pytest.mark.exhaustive


class TestFeatures:
    @pytest.mark.parametrize(
        ("encoder", "kind"),
        [
            pytest.param(name, kind, marks=[SLOW] * ((name, kind) != ("vgg16", ".h5")))
            for name in NETWORKS
            for kind in (".weights.h5", ".keras", ".h5")
        ],
    )
    def test_weights_by_file_give_the_features_of_keras(self, encoder, kind, tmp_path):
        theirs, path = make_theirs(encoder), tmp_path / f"weights{kind}"
        (theirs.save_weights if kind == ".weights.h5" else theirs.save)(path)
        ours, images = make_ours(encoder), picture()
        name = NETWORKS[encoder][0]
        expected = deepest_of_theirs(encoder, theirs, images)
        before = output_of(ours, name, images)
        assert np.abs(before - expected).max() > 0.01 * np.abs(expected).max()
        with open_weights(path) as source:
            taken = fit(source, ours, path.name, part="encoder")
        taken.apply(ours)
        check_equal(output_of(ours, name, images), expected)
        assert [row for row in taken.rows if row.wanted and not row.loaded] == []

    def test_nothing_deeper_than_needed_is_built(self):
        names = {layer.name for layer in make_ours("vgg16", depth=2, base_filters=1).layers}
        assert "block3_conv3" in names
        assert "block3_pool" not in names

    @pytest.mark.exhaustive
    @pytest.mark.parametrize("encoder", NETWORKS)
    def test_it_says_whether_it_has_batch_norm(self, encoder):
        kinds = {type(layer) for layer in make_ours(encoder, depth=2).layers}
        assert ENCODERS[encoder].batch_norm == (FusedBatchNorm in kinds)

    @pytest.mark.exhaustive
    def test_layers_are_those_of_keras_but_for_batch_norm(self):
        ours, theirs = make_ours("mobilenet_v2"), make_theirs("mobilenet_v2")
        for layer in theirs.layers[1:]:
            made = ours.get_layer(layer.name)
            assert [v.shape for v in made.variables] == [v.shape for v in layer.variables]
            if isinstance(layer, keras.layers.BatchNormalization):
                assert type(made) is FusedBatchNorm
                assert (made.momentum, made.epsilon) == (layer.momentum, layer.epsilon)
            else:
                assert type(made) is type(layer)

    @pytest.mark.exhaustive
    def test_stochastic_depth_drops_whole_images_at_the_rates_of_keras(self):
        theirs = make_theirs("efficientnet_b0")
        rates = {x.name: x.rate for x in theirs.layers if isinstance(x, keras.layers.Dropout)}
        ours = make_ours("efficientnet_b0")
        found = {x.name: x.rate for x in ours.layers if isinstance(x, RowDropout)}
        assert found == rates
        assert all(ours.get_layer(name).whole for name in rates)

    @pytest.mark.exhaustive
    def test_largest_efficientnet_has_the_parameters_of_keras(self):
        ours = make_ours("efficientnet_b7", base_filters=1)
        theirs = keras.applications.EfficientNetB7(
            include_top=False, weights=None, input_shape=(None, None, 3)
        )
        found = {x.name: x.count_params() for x in ours.layers if not isinstance(x, RowDropout)}
        for layer in theirs.layers:
            if layer.variables and not isinstance(layer, keras.layers.Dropout):
                name = re.sub(r"^normalization_\d+$", "normalization", layer.name)
                assert found[name] == layer.count_params()
        assert ours(picture(size=32)).shape == (1, 32, 32, 1)


class TestChannels:
    @pytest.mark.parametrize(
        "encoder", [pytest.param(name, marks=[SLOW] * (name != "vgg16")) for name in NETWORKS]
    )
    def test_grey_image_feeds_the_first_kernel_summed_over_channels(self, encoder):
        grey, colour = make_ours(encoder, channels=1, depth=2), make_ours(encoder, depth=2)
        assert fit(layers_of(colour), grey, "colour", part="encoder").arrays.keys() == {
            row.layer
            for row in fit(layers_of(grey), grey, "grey", part="encoder").rows
            if row.wanted
        }
        images = picture(1)
        name = next(layer.name for layer in grey.layers if "_grow" in layer.name)
        deepest = grey.get_layer(name).input
        found = keras.Model(grey.input, deepest)(images)
        same = keras.Model(colour.input, colour.get_layer(name).input)(np.repeat(images, 3, -1))
        np.testing.assert_array_equal(found, same)

    def test_first_convolution_of_a_grey_image_by_hand(self):
        grey = make_ours("vgg16", channels=1, depth=1)
        layer = grey.get_layer("block1_conv1")
        images = picture(1, size=8)
        # Blue, green, red less their means, times their kernels, is the sum of the kernels times
        # the grey value less the sum of the kernels times the means.
        kernel = layer.kernel.numpy()
        means = np.array([103.939, 116.779, 123.68], np.float32)[:, None]
        grey_part = tf.nn.conv2d(images, kernel.sum(2, keepdims=True), 1, "SAME")
        constant = tf.nn.conv2d(
            np.ones_like(images), (kernel * means).sum(2, keepdims=True), 1, "SAME"
        )
        expected = tf.nn.relu(grey_part - constant).numpy()
        check_equal(output_of(grey, "block1_conv1", images), expected)

    @pytest.mark.parametrize(
        "encoder", [pytest.param(name, marks=[SLOW] * (name != "vgg16")) for name in NETWORKS]
    )
    def test_other_channels_are_scaled_as_usual_and_have_a_first_kernel_of_their_own(self, encoder):
        model = make_ours(encoder, channels=4, depth=2)
        images = np.full((1, 8, 8, 4), 255, np.float32)
        np.testing.assert_allclose(output_of(model, "scale", images), 2, rtol=1e-6)
        kinds = (keras.layers.Normalization, keras.layers.Rescaling)
        assert [x.name for x in model.layers if isinstance(x, kinds)] == ["scale"]
        taken = fit(layers_of(make_ours(encoder, depth=2)), model, "colour", part="encoder")
        (left,) = [row for row in taken.rows if row.wanted and not row.loaded]
        assert re.match(r"\(\d, \d, 3, \d+\).* in the file, \(\d, \d, 4, \d+\).*", left.reason)


class TestEfficientNetStatistics:
    @pytest.fixture
    def model(self):
        return make_ours("efficientnet_b0", depth=1)

    def test_begin_at_those_of_imagenet(self, model):
        images = picture(size=8)
        expected = (images / 255 - IMAGENET_MEAN) / IMAGENET_DEVIATION
        found = output_of(model, "normalization", images)
        np.testing.assert_allclose(found, expected, atol=1e-5)

    def test_file_with_the_deviation_for_the_variance_is_corrected_as_by_keras(self, model):
        source = layers_of(model)
        mean, _, count = source["normalization"]
        source["normalization"] = [mean, np.array(IMAGENET_DEVIATION, np.float32), count]
        taken = fit(source, model, "efficientnetb0_notop.h5", part="encoder")
        (row,) = [row for row in taken.rows if row.layer == "normalization"]
        assert row.loaded
        assert "squared" in row.reason
        taken.apply(model)
        images = picture(size=8)
        # Keras: the square root of the deviation divides in the layer, and again in a Rescaling.
        root = np.sqrt(IMAGENET_DEVIATION)
        expected = (images / 255 - IMAGENET_MEAN) / root / root
        np.testing.assert_allclose(output_of(model, "normalization", images), expected, atol=1e-5)


class TestRefusals:
    @pytest.mark.parametrize(
        ("encoder", "setting", "message"),
        [
            ("vgg16", {"depth": 6}, r"`depth` \(6\) must be one of 1, 2, 3, 4, 5 with the `enc"),
            ("convnext_tiny", {"depth": 1}, r"`depth` \(1\) must be one of 2, 3, 4, 5 with .*conv"),
            ("resnet50", {"padding": "valid"}, r"`padding` \(valid\) must be same with the .*50"),
        ],
    )
    def test_what_an_encoder_cannot_do_is_one_message(self, encoder, setting, message):
        with pytest.raises(UserError, match=message):
            make_ours(encoder, **setting)


@pytest.mark.exhaustive
class TestReplicas:
    @pytest.mark.parametrize("encoder", ["resnet50", "efficientnet_b0", "mobilenet_v2"])
    def test_statistics_and_stochastic_depth_are_those_of_one_replica(self, encoder, mirrored):
        images = picture(rows=4, size=32)
        outputs, statistics = [], []
        for replicas in (1, 2):
            strategy = mirrored(replicas)
            with strategy.scope():
                model = make_ours(encoder, depth=2)

            def call(model=model, replicas=replicas):
                context = tf.distribute.get_replica_context()
                share = 4 // replicas
                first = context.replica_id_in_sync_group * share
                return model(tf.constant(images)[first : first + share], training=True)

            found = tf.function(lambda call=call, s=strategy: s.run(call))()
            parts = strategy.experimental_local_results(found)
            outputs.append(np.concatenate([part.numpy() for part in parts]))
            statistics.append([v.numpy() for v in model.non_trainable_variables])
        check_equal(outputs[1], outputs[0])
        for one, two in zip(*statistics, strict=True):
            np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-4)
