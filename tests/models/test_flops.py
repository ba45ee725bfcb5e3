import math

import keras
import pytest
import tensorflow as tf
from tensorflow.python.framework import convert_to_constants

from unet_core.models.build import make_network
from unet_core.models.flops import FORMULAS, forward_flops, training_flops, uncounted, work_of

layers = keras.layers


def network(*chain, channels=6):
    """Returns a network of layers one after another, from [B, H, W, channels]."""
    images = x = keras.Input((None, None, channels))
    for layer in chain:
        x = layer(x)
    return keras.Model(images, x)


def profiled(model, shape):
    """Returns what TensorFlow's own profiler counts in a forward pass."""
    traced = tf.function(lambda x: model(x, training=False)).get_concrete_function(
        tf.TensorSpec(shape)
    )
    frozen = convert_to_constants.convert_variables_to_constants_v2(traced)
    option = tf.compat.v1.profiler.ProfileOptionBuilder
    options = {**option.float_operation(), "output": "none"}
    return tf.compat.v1.profiler.profile(frozen.graph, options=options).total_float_ops


class TestForwardFlops:
    def test_paper_network_is_the_sum_of_its_convolutions(self):
        # Ronneberger et al. 2015, figure 1: outputs of 3x3 convolutions a side, channels in, out.
        sides = [570, 568, 282, 280, 138, 136, 66, 64, 30, 28]
        sides += [54, 52, 102, 100, 198, 196, 390, 388]
        outputs = [64, 64, 128, 128, 256, 256, 512, 512, 1024, 1024]
        outputs += [512, 512, 256, 256, 128, 128, 64, 64]
        inputs = [1, *outputs[:9], 1024, 512, 512, 256, 256, 128, 128, 64]
        products = sum(
            side**2 * 9 * before * after
            for side, before, after in zip(sides, inputs, outputs, strict=True)
        )
        # 2x2 transposed convolutions, at the side of their input, and the 1x1 head of two classes,
        # which share one logit here.
        for side, before in ((28, 1024), (52, 512), (100, 256), (196, 128)):
            products += side**2 * 4 * before * before // 2
        products += 388**2 * 64
        model = make_network(classes=2, padding="valid")
        assert forward_flops(model, 1, 388, 388) == 2 * products

    def test_agrees_with_the_profiler_of_tensorflow(self):
        model = make_network(classes=3, depth=2, base_filters=8, decoder="upsample")
        # The profiler counts biases, poolings and scaling too: less than 2 % here.
        assert profiled(model, [2, 32, 32, 1]) == pytest.approx(
            forward_flops(model, 2, 32, 32), rel=0.02
        )

    @pytest.mark.parametrize(
        ("layer", "expected"),
        [
            # Images of 10x12 and 6 channels; a multiply-add is two operations.
            (layers.Conv2D(4, 3, padding="same"), 2 * 120 * 9 * 6 * 4),
            (layers.Conv2D(4, (3, 1), padding="valid"), 2 * 8 * 12 * 3 * 6 * 4),
            (layers.Conv2D(4, 3, strides=2, padding="same"), 2 * 5 * 6 * 9 * 6 * 4),
            (layers.Conv2D(4, 3, groups=2, padding="same"), 2 * 120 * 9 * 3 * 4),
            (layers.Conv2D(4, 3, dilation_rate=4, padding="same"), 2 * 120 * 9 * 6 * 4),
            (layers.Conv2DTranspose(4, 2, strides=2), 2 * 120 * 4 * 6 * 4),
            (layers.DepthwiseConv2D(3, depth_multiplier=2), 2 * 8 * 10 * 9 * 12),
            (
                layers.SeparableConv2D(4, 3, depth_multiplier=2, padding="same"),
                2 * 120 * (9 * 12 + 12 * 4),
            ),
            (layers.Dense(5), 2 * 120 * 6 * 5),
            (layers.BatchNormalization(), 0),
            (layers.GroupNormalization(2), 0),
            (layers.PReLU(shared_axes=(1, 2)), 0),
            (layers.MaxPooling2D(2), 0),
        ],
        ids=lambda value: getattr(value, "name", None),
    )
    def test_of_one_layer_matches_its_formula(self, layer, expected):
        assert forward_flops(network(layer), 3, 10, 12) == 3 * expected

    def test_layer_that_is_called_twice_counts_twice(self):
        layer = layers.Conv2D(6, 1)
        assert forward_flops(network(layer, layer), 1, 4, 4) == 2 * 2 * 16 * 36

    def test_network_inside_of_a_network_counts(self):
        inner = network(layers.Conv2D(6, 1))
        assert forward_flops(network(inner, inner), 1, 4, 4) == 2 * 2 * 16 * 36

    def test_of_keras_resnet50_matches_its_published_figure(self):
        # He et al. 2015 (arXiv:1512.03385), table 1: 3.8e9 multiply-adds for 224x224, where the
        # strides of Keras are theirs.
        model = keras.applications.ResNet50(weights=None)
        assert forward_flops(model, 1, 224, 224) == pytest.approx(2 * 3.8e9, rel=0.02)


class TestClassWithoutFormula:
    class Mixing(layers.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(shape=(shape[-1], shape[-1]))

        def call(self, x):
            return x @ self.kernel

        def compute_output_spec(self, x):
            return keras.KerasTensor(x.shape, x.dtype)

    def test_is_named(self):
        model = network(self.Mixing(), self.Mixing(), layers.Conv2D(1, 1))
        assert uncounted(work_of(model, 1, 4, 4)) == ["Mixing"]
        with pytest.raises(ValueError, match="Mixing"):
            forward_flops(model, 1, 4, 4)

    def test_counts_by_a_formula_that_is_added(self, monkeypatch):
        monkeypatch.setitem(FORMULAS, self.Mixing, lambda _, x, y: 2 * math.prod(y) * x[-1])
        assert forward_flops(network(self.Mixing()), 1, 4, 4) == 2 * 16 * 36


class TestTrainingFlops:
    def test_is_three_times_the_forward_pass(self):
        model = make_network(classes=2, depth=1, base_filters=2)
        assert training_flops(model, 4, 16, 16) == 3 * 4 * forward_flops(model, 1, 16, 16)


class TestWorkOf:
    def test_padding_to_a_multiple_is_counted(self):
        model = make_network(classes=2, depth=2, base_filters=2)
        assert forward_flops(model, 1, 29, 30) == forward_flops(model, 1, 32, 32)

    def test_gives_the_shapes_of_every_call(self):
        model = make_network(classes=3, depth=1, base_filters=2)
        shapes = {work.call.layer.name: work.outputs[0] for work in work_of(model, 2, 15, 16)}
        assert shapes["pad"] == (2, 16, 16, 1)
        assert shapes["down0_pool"] == (2, 8, 8, 2)
        assert shapes["logits"] == (2, 15, 16, 3)

    def test_several_inputs_are_refused(self):
        one, two = keras.Input((4, 4, 1)), keras.Input((4, 4, 1))
        with pytest.raises(ValueError, match="one input"):
            work_of(keras.Model([one, two], layers.Add()([one, two])), 1, 4, 4)
