import keras
import numpy as np
import pytest
import tensorflow as tf

from unet_core.errors import UserError
from unet_core.inference.network import InferenceNetwork
from unet_core.models.build import make_network
from unet_core.models.layer_rules import RULES, Affine, LayerRule
from unet_core.models.layers import CropLike, FusedBatchNorm, LayerScale, MirrorPad, RowDropout
from unet_core.models.reach import of_pointwise


def picture(height, width, *, rows=2, channels=1):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (rows, height, width, channels)).astype(np.uint8)


def make_trained(**kwargs):
    """A network whose weights and statistics are none of the initial ones."""
    model = make_network(**{"classes": 3, "depth": 2, "base_filters": 4, **kwargs})
    rng = np.random.default_rng(1)
    for variable in model.variables:
        name = variable.name
        if name in ("beta", "bias", "moving_mean"):
            variable.assign(rng.normal(0, 0.3, variable.shape))
        elif name in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.5, 2, variable.shape))
    return model


SHAPES = [
    dict(padding=padding, decoder=decoder, normalization=norm)
    for padding in ("same", "valid")
    for decoder in ("transpose", "upsample")
    for norm in ("none", "batch")
]


class TestInferenceNetwork:
    @pytest.mark.parametrize("kwargs", SHAPES)
    def test_logits_of_an_image_given_its_surroundings_are_those_of_the_model(self, kwargs):
        model = make_trained(dropout=0.5, **kwargs)
        network = InferenceNetwork(model)
        # Depth 2: unpadded convolutions take off 4 * 3 + 2 * 4 = 20 pixels a side.
        cut = 20 if kwargs["padding"] == "valid" else 0
        around = ((0, 0), (cut, cut), (cut, cut), (0, 0))
        for images in (picture(24, 16), picture(8, 32).astype(np.float32)):
            logits = network.layers(np.pad(images, around, mode="reflect"))
            expected = model(images, training=False)
            np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("classes", [2, 3])
    def test_call_gives_probabilities(self, classes):
        model = make_trained(classes=classes)
        found, logits = InferenceNetwork(model)(picture(8, 8)), model(picture(8, 8))
        expected = keras.ops.sigmoid(logits) if classes == 2 else keras.ops.softmax(logits)
        np.testing.assert_allclose(found, expected, atol=1e-5)

    def test_batch_norm_relu_and_dropout_layers_are_gone(self):
        network = InferenceNetwork(make_trained(normalization="batch", dropout=0.5)).layers
        kinds = {type(layer) for layer in network.layers}
        gone = {FusedBatchNorm, RowDropout, keras.layers.ReLU, MirrorPad, CropLike}
        assert not kinds & gone

    @pytest.mark.parametrize("precision", ["bfloat16", "float16"])
    def test_weights_are_stored_in_the_type_computed_in(self, precision):
        model = make_trained(normalization="batch")
        network = InferenceNetwork(model, precision=precision).layers
        assert {v.dtype for v in network.variables} == {precision}
        logits = network(picture(16, 16))
        assert logits.dtype == tf.float32
        expected = model(picture(16, 16)).numpy()
        np.testing.assert_allclose(logits, expected, atol=0.05 * np.abs(expected).max())

    def test_precision_is_that_of_the_model_if_none_is_given(self):
        network = InferenceNetwork(make_trained(precision="bfloat16", normalization="batch")).layers
        assert {v.dtype for v in network.variables} == {"bfloat16"}
        network = InferenceNetwork(make_trained(precision="bfloat16"), precision="float32").layers
        assert {v.dtype for v in network.variables} == {"float32"}

    def test_model_stays_as_it_was_and_shares_nothing(self):
        model = make_trained(normalization="batch", precision="bfloat16")
        before = [v.numpy() for v in model.variables]
        network = InferenceNetwork(model).layers
        for variable in network.variables:
            variable.assign(keras.ops.zeros_like(variable))
        for variable, value in zip(model.variables, before, strict=True):
            np.testing.assert_array_equal(variable.numpy(), value)
        assert model.get_layer("down0_conv1").compute_dtype == "bfloat16"

    def test_unknown_precision_is_a_user_error(self):
        with pytest.raises(UserError, match="int8"):
            InferenceNetwork(make_trained(), precision="int8")


class TestOtherModels:
    def test_functional_model_gives_the_same_outputs(self):
        inputs = keras.Input((None, None, 1))
        x = keras.layers.Conv2D(3, 3, padding="same")(keras.layers.Rescaling(1 / 255)(inputs))
        x = keras.layers.BatchNormalization()(x) * 2.0
        model = keras.Model(inputs, keras.layers.Conv2D(2, 1)(keras.layers.ReLU(max_value=1.0)(x)))
        images = picture(9, 7)
        for precision in (None, "bfloat16"):
            network = InferenceNetwork(model, precision=precision).layers
            assert network(images).dtype == tf.float32
            np.testing.assert_allclose(network(images), model(images), atol=0.05)

    def test_normalisations_are_folded_into_depthwise_and_dense_layers_too(self):
        rng = np.random.default_rng(1)
        inputs = keras.Input((None, None, 2))
        x = keras.layers.DepthwiseConv2D(3, depth_multiplier=3, use_bias=False)(inputs)
        x = FusedBatchNorm()(x)
        x = keras.layers.ReLU(max_value=6)(x)
        x = keras.layers.Dense(4)(x)
        x = LayerScale(0.5)(x)
        x = keras.layers.Activation("gelu")(x)
        model = keras.Model(inputs, keras.layers.Conv2D(1, 1)(x))
        for variable in model.variables:
            variable.assign(rng.uniform(0.2, 2, variable.shape))
        images = rng.normal(0, 2, (2, 9, 7, 2)).astype(np.float32)
        network = InferenceNetwork(model).layers
        kinds = [type(layer).__name__ for layer in network.layers]
        assert kinds == ["InputLayer", "DepthwiseConv2D", "Dense", "Conv2D"]
        np.testing.assert_allclose(network(images), model(images), rtol=1e-4, atol=1e-4)

    def test_statistics_of_a_normalization_are_taken_over(self):
        inputs = keras.Input((None, None, 1))
        norm = keras.layers.Normalization()
        model = keras.Model(inputs, keras.layers.Conv2D(1, 1)(norm(inputs)))
        norm.set_weights([np.array([100.0]), np.array([25.0]), np.array(0)])
        norm.finalize_state()
        images = picture(9, 7)
        np.testing.assert_allclose(InferenceNetwork(model).layers(images), model(images), atol=1e-5)

    def test_convolution_that_others_read_too_keeps_its_own_output(self):
        inputs = keras.Input((None, None, 1))
        x = keras.layers.Conv2D(2, 3, padding="same")(inputs)
        y = keras.layers.ReLU()(x)
        model = keras.Model(inputs, keras.layers.Concatenate()([x, y]))
        images = picture(9, 7)
        network = InferenceNetwork(model).layers
        np.testing.assert_allclose(network(images), model(images), rtol=1e-5)

    def test_layer_called_twice_is_copied_once(self):
        inputs = keras.Input((None, None, 2))
        shared = keras.layers.Conv2D(2, 3, padding="same")
        model = keras.Model(inputs, shared(keras.layers.ReLU()(shared(inputs))))
        network = InferenceNetwork(model).layers
        images = picture(9, 7, channels=2)
        assert len(network.variables) == 2
        np.testing.assert_allclose(network(images), model(images), rtol=1e-5)

    def test_sequential_model_is_copied(self):
        sequential = keras.Sequential([keras.Input((None, None, 1)), keras.layers.Conv2D(2, 3)])
        images = picture(9, 7)
        network = InferenceNetwork(sequential).layers
        assert network.variables[0] is not sequential.variables[0]
        np.testing.assert_allclose(network(images), sequential(images), rtol=1e-5)

    def test_subclassed_model_is_refused(self):
        class Twice(keras.Model):
            def call(self, images):
                return 2 * tf.cast(images, tf.float32)

        with pytest.raises(ValueError, match="functional or sequential"):
            InferenceNetwork(Twice())

    def test_layer_of_ones_own_takes_part_once_it_is_in_the_table(self, monkeypatch):
        @keras.saving.register_keras_serializable(package="tests")
        class Doubled(keras.layers.Layer):
            def call(self, x):
                return 2 * x

        def doubling(layer):
            return Affine(*(np.array([n], np.float32) for n in (0, 2, 0)))

        images = keras.Input((None, None, 1))
        x = Doubled()(keras.layers.Conv2D(1, 3, padding="same")(images))
        model = keras.Model(images, keras.layers.ReLU()(x))
        expected = model(picture(9, 7))
        network = InferenceNetwork(model)
        assert any(isinstance(layer, Doubled) for layer in network.layers.layers)
        np.testing.assert_allclose(network.layers(picture(9, 7)), expected, rtol=1e-5)

        rule = LayerRule(reach=of_pointwise, affine=doubling)
        monkeypatch.setitem(RULES, Doubled, rule)
        network = InferenceNetwork(model)
        kinds = [type(layer) for layer in network.layers.layers]
        assert kinds == [keras.layers.InputLayer, keras.layers.Conv2D]
        np.testing.assert_allclose(network.layers(picture(9, 7)), expected, rtol=1e-5)
