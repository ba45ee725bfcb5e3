"""What each decoder computes, against NumPy; what all of them are held to is in test_registries.py.

A decoder is given features of a fixed size, so that it is tested alone.
"""

import keras
import numpy as np
import pytest

from unet_core.errors import UserError
from unet_core.models.blocks import Blocks
from unet_core.models.decoders import DECODERS
from unet_core.models.layer_rules import rule_of
from unet_core.models.reach import Line
from unet_core.models.resampling import BilinearKernel, BroadcastLike
from unet_core.models.walk import calls

FCN = ("fcn32s", "fcn16s", "fcn8s")
NEED_SAME = ("unet_plus_plus", "attention", *FCN, "fpn", "deeplab")
SIZE = 32


def make(decoder, channels, *, depth=3, size=SIZE, **settings):
    """Returns a model from features, a dict by stride, to the logits of stride 1.

    `channels` are those of the features by stride; all weights and biases are random.
    """
    blocks = Blocks(
        **{
            "depth": depth,
            "base_filters": 4,
            "policy": keras.DTypePolicy("float32"),
            "logits": 3,
            **settings,
        }
    )
    features = {s: keras.Input((size // s, size // s, n), name=str(s)) for s, n in channels.items()}
    levels = DECODERS[decoder](features, blocks)
    model = keras.Model(features, levels[1])
    rng = np.random.default_rng(1)
    for variable in model.variables:
        variable.assign(rng.normal(0, 0.5, variable.shape))
    return model


def random_features(channels, *, rows=2, size=SIZE):
    rng = np.random.default_rng(2)
    return {
        stride: rng.normal(size=(rows, size // stride, size // stride, n)).astype(np.float32)
        for stride, n in channels.items()
    }


def output_of(model, name, features):
    return keras.Model(model.input, model.get_layer(name).output)(features).numpy()


def relu(x):
    return np.maximum(x, 0)


def convolve(model, name, x, *, rate=1, stride=1):
    """A convolution by the weights of the layer `name`, padded with zeros as "same" is."""
    kernel, *bias = (weight.astype(float) for weight in model.get_layer(name).get_weights())
    size = len(kernel)
    around = (rate * (size - 1) + 1 - stride) // 2
    padded = np.pad(x, ((0, 0), *[(around, around)] * 2, (0, 0)))
    height, width = (n // stride for n in x.shape[1:3])
    result = np.zeros((len(x), height, width, kernel.shape[3]))
    for row in range(size):
        for column in range(size):
            rows = slice(row * rate, row * rate + height * stride, stride)
            columns = slice(column * rate, column * rate + width * stride, stride)
            result += padded[:, rows, columns] @ kernel[row, column]
    return result + (bias[0] if bias else 0)


def transposed(model, name, x):
    """A transposed convolution of size 4 and stride 2: each element adds a patch of 4 x 4."""
    (kernel,) = model.get_layer(name).get_weights()
    rows, height, width, _ = x.shape
    result = np.zeros((rows, 2 * height + 2, 2 * width + 2, kernel.shape[2]))
    for row in range(height):
        for column in range(width):
            patch = np.einsum("bi,hwoi->bhwo", x[:, row, column], kernel)
            result[:, 2 * row : 2 * row + 4, 2 * column : 2 * column + 4] += patch
    return result[:, 1:-1, 1:-1]


def interpolate(x, times):
    """Bilinear interpolation between the middles of elements; the edge goes on beyond the last."""
    for axis in (1, 2):
        middles = np.arange(x.shape[axis])
        places = (np.arange(times * len(middles)) + 0.5) / times - 0.5
        x = np.apply_along_axis(lambda line: np.interp(places, middles, line), axis, x)  # noqa: B023
    return x


def repeat(x, times):
    return x.repeat(times, 1).repeat(times, 2)


def assert_close(model, features, expected):
    found = model(features).numpy()
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


class TestFcn:
    @pytest.mark.parametrize("deepest", [4, 32])
    @pytest.mark.parametrize(("decoder", "fused"), [("fcn32s", 1), ("fcn16s", 2), ("fcn8s", 3)])
    def test_logits_equal_numpy(self, decoder, fused, deepest):
        depth = deepest.bit_length() - 1
        channels = {deepest // 4: 3, deepest // 2: 5, deepest: 7}
        model = make(decoder, channels, depth=depth, size=96)
        features = random_features(channels, size=96)
        expected = convolve(model, f"up{depth}_score", features[deepest])
        for level in range(depth - 1, depth - fused, -1):
            score = convolve(model, f"up{level}_score", features[2**level])
            expected = score + transposed(model, f"up{level}_grow", expected)
        assert_close(model, features, interpolate(expected, deepest // 2 ** (fused - 1)))

    def test_first_weights_interpolate_a_ramp(self):
        channels = {2: 1, 4: 1, 8: 1}
        model = make("fcn8s", channels, logits=1)
        for level, factor in ((3, 1), (2, 0), (1, 0)):
            model.get_layer(f"up{level}_score").set_weights(
                [np.full((1, 1, 1, 1), factor), np.zeros(1)]
            )
            if level < 3:
                grow = model.get_layer(f"up{level}_grow")
                grow.set_weights([BilinearKernel()(grow.kernel.shape)])
        features = random_features(channels, rows=1)
        features[8][:] = np.arange(4)[None, None, :, None]
        ramp = (np.arange(SIZE) + 0.5) / 8 - 0.5
        # Transposed convolutions see zeros outside: 1 element more at each doubling, 3 of 2 pixels,
        # and 1 more pixel.
        inside = slice(7, -7)
        found = model(features).numpy()[0, inside, inside, 0]
        np.testing.assert_allclose(found, np.tile(ramp[inside], (len(found), 1)), atol=1e-5)

    def test_features_that_are_missing_are_named(self):
        for decoder, depth, channels in (
            ("fcn8s", 1, {1: 1, 2: 1}),
            ("fcn16s", 3, {1: 1, 2: 1, 8: 1}),
        ):
            with pytest.raises(UserError, match=f"'{decoder}'.*has features at 1, 2.*`depth`"):
                make(decoder, channels, depth=depth)


class TestBilinearKernel:
    @pytest.mark.parametrize("stride", [2, 4])
    def test_interpolates_each_channel_by_itself(self, stride):
        size = 2 * stride
        kernel = BilinearKernel()((size, size, 2, 2), "float32")
        layer = keras.layers.Conv2DTranspose(2, size, strides=stride, padding="same")
        x = np.random.default_rng(0).normal(size=(1, 5, 6, 2)).astype(np.float32)
        layer.build(x.shape)
        layer.set_weights([kernel, np.zeros(2)])
        inside = slice(stride, -stride)
        expected = interpolate(x, stride)[:, inside, inside]
        np.testing.assert_allclose(layer(x)[:, inside, inside], expected, atol=1e-5)

    def test_weights_of_stride_2(self):
        line = np.array([0.25, 0.75, 0.75, 0.25])
        kernel = BilinearKernel()((4, 4, 2, 3))
        np.testing.assert_allclose(kernel[..., 1, 1], np.outer(line, line))
        assert not np.any(kernel[..., 1, 0])


class TestUnetPlusPlus:
    @staticmethod
    def inputs(channels, **settings):
        """Returns the names of what is given to each layer, by the name of the layer."""
        model = make("unet_plus_plus", channels, **settings)
        found = calls(model)
        makers = {id(call.outputs[0]): call.layer.name for call in found}
        return {
            call.layer.name: [makers.get(id(x), f"x{x.shape[3]}_0") for x in call.inputs]
            for call in found
        }

    def test_nodes_and_their_connections(self):
        # Features are told by their channels: 10, 11, 12 and 13.
        inputs = self.inputs({1: 10, 2: 11, 4: 12, 8: 13})
        nodes = {name.removesuffix("_conv2") for name in inputs if name.endswith("_conv2")}
        # A triangle: 3 + 2 + 1.
        assert nodes == {"up0_1", "up1_1", "up2_1", "up0_2", "up1_2", "up0_3"}
        for node in nodes:
            i, j = int(node[2]), int(node[4])
            same = [f"x1{i}_0", *(f"up{i}_{k}_conv2" for k in range(1, j))]
            assert inputs[f"{node}_join"] == [*same, f"{node}_grow"]
            below = f"up{i + 1}_{j - 1}_conv2" if j > 1 else f"x1{i + 1}_0"
            assert inputs[f"{node}_grow"] == [below]
        assert inputs["head"] == ["up0_3_conv2"]

    def test_missing_features_leave_out_what_would_grow_of_them(self):
        inputs = self.inputs({2: 11, 8: 13})
        nodes = {name.removesuffix("_conv2") for name in inputs if name.endswith("_conv2")}
        # X[0, 0] and X[2, 0] are missing, so X[1, 1] is, so X[0, 2] is.
        assert nodes == {"up0_1", "up2_1", "up1_2", "up0_3"}
        assert inputs["up1_2_join"] == ["x11_0", "up1_2_grow"]
        assert inputs["up0_3_join"] == ["up0_1_conv2", "up0_3_grow"]
        assert inputs["up0_1_conv1"] == ["up0_1_grow"]

    def test_every_level_has_logits(self):
        features = {s: keras.Input((SIZE // s, SIZE // s, 2)) for s in (1, 2, 4, 8)}
        blocks = Blocks(depth=3, base_filters=2, policy=keras.DTypePolicy("float32"), logits=3)
        for decoder in ("unet_plus_plus", "attention"):
            levels = DECODERS[decoder](features, blocks)
            assert {s: x.shape for s, x in levels.items()} == {
                s: (None, SIZE // s, SIZE // s, 3) for s in (1, 2, 4)
            }


class TestAttention:
    def test_gated_skip_equals_numpy(self):
        channels = {1: 6, 2: 5}
        model, features = make("attention", channels, depth=1), random_features(channels)
        of_skip = convolve(model, "up0_gate_skip", features[1], stride=2)
        of_signal = convolve(model, "up0_gate_signal", features[2])
        assert of_skip.shape == of_signal.shape == (2, SIZE // 2, SIZE // 2, 3)
        score = convolve(model, "up0_gate_alpha", relu(of_skip + of_signal))
        alpha = interpolate(1 / (1 + np.exp(-score)), 2)
        assert np.ptp(alpha) > 0.2
        found = output_of(model, "up0_gate_multiply", features)
        np.testing.assert_allclose(found, features[1] * alpha, atol=1e-5)

    def test_only_skips_that_are_there_are_gated(self):
        names = {layer.name for layer in make("attention", {2: 3, 8: 3}).layers}
        assert {name for name in names if name.endswith("_multiply")} == {"up1_gate_multiply"}


class TestFpn:
    def test_logits_equal_numpy(self):
        channels = {1: 2, 2: 2, 4: 3, 8: 4, 16: 5}
        model, features = make("fpn", channels, depth=4), random_features(channels)
        below, total = None, 0
        for level in (4, 3, 2):
            x = convolve(model, f"up{level}_lateral", features[2**level])
            below = x if below is None else x + repeat(below, 2)
            x = convolve(model, f"up{level}_smooth", below)
            for number in range(1, max(level - 2, 1) + 1):
                x = relu(convolve(model, f"up{level}_conv{number}", x))
                x = interpolate(x, 2 if level > 2 else 1)
            total = total + x
        assert_close(model, features, interpolate(convolve(model, "head", total), 4))

    @pytest.mark.parametrize(
        ("channels", "levels"),
        [
            ({1: 1, 2: 1}, {0, 1}),
            ({1: 1, 2: 1, 4: 1}, {1, 2}),
            ({1: 1, 2: 1, 4: 1, 8: 1}, {2, 3}),
            ({2: 1, 16: 1}, {4}),
            ({1: 1, 8: 1, 32: 1}, {3, 5}),
        ],
    )
    def test_levels_are_those_from_stride_4_on_or_the_two_deepest(self, channels, levels):
        model = make("fpn", channels, depth=max(channels).bit_length() - 1)
        found = {layer.name for layer in model.layers if layer.name.endswith("_lateral")}
        assert found == {f"up{level}_lateral" for level in levels}


class TestDeepLab:
    def test_logits_equal_numpy(self):
        # At stride 32 all three rates are less than the 10 elements of 320 pixels.
        channels = {4: 3, 32: 4}
        model = make("deeplab", channels, depth=5, size=320)
        features = random_features(channels, rows=1, size=320)
        deep = features[32]
        branches = [relu(convolve(model, "up_pyramid0", deep))]
        for number, rate in ((1, 3), (2, 6), (3, 9)):
            branches.append(relu(convolve(model, f"up_pyramid{number}", deep, rate=rate)))
        pooled = relu(convolve(model, "up_pool_conv", deep.mean((1, 2), keepdims=True)))
        branches.append(np.broadcast_to(pooled, branches[0].shape))
        x = relu(convolve(model, "up_pyramid", np.concatenate(branches, 3)))
        low = relu(convolve(model, "up_low", features[4]))
        x = np.concatenate([low, interpolate(x, 8)], 3)
        for number in (1, 2):
            x = relu(convolve(model, f"up_conv{number}", x))
        assert_close(model, features, interpolate(convolve(model, "head", x), 4))

    @pytest.mark.parametrize(
        ("depth", "rates"), [(3, (12, 24, 36)), (4, (6, 12, 18)), (5, (3, 6, 9))]
    )
    def test_rates_are_those_of_the_papers(self, depth, rates):
        model = make("deeplab", {2**depth: 1}, depth=depth)
        layers = [model.get_layer(f"up_pyramid{number}") for number in (1, 2, 3)]
        assert [layer.dilation_rate for layer in layers] == [(rate, rate) for rate in rates]

    @pytest.mark.parametrize(
        ("strides", "low"),
        [((1, 2, 4, 8), 2), ((1, 2, 4, 8, 16), 4), ((1, 16), None), ((2,), None)],
    )
    def test_low_level_features_are_of_stride_4_or_a_fourth_of_the_deepest(self, strides, low):
        # Channels are the strides.
        model = make("deeplab", {s: s for s in strides}, depth=max(strides).bit_length() - 1)
        layers = {layer.name: layer for layer in model.layers}
        assert ("up_low" in layers) == (low is not None)
        if low:
            assert layers["up_low"].kernel.shape[2] == low


class TestBroadcastLike:
    def test_repeats_over_the_image_and_sums_gradients_in_float32(self):
        import tensorflow as tf

        layer = BroadcastLike(dtype=keras.DTypePolicy("mixed_float16"))
        x = tf.constant([[[[1.0, 2.0]]]], tf.float16)
        # 300 * 300 ones are more than float16 holds; a hundredth of each is 900.
        like = tf.zeros((1, 300, 300, 5), tf.float16)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer([x, like])
            loss = tf.reduce_sum(tf.cast(y, tf.float32) / 100)
        assert y.shape == (1, 300, 300, 2)
        np.testing.assert_array_equal(y[0, 17, 299], [1, 2])
        np.testing.assert_allclose(tape.gradient(loss, x)[0, 0, 0], [900, 900], rtol=1e-2)

    def test_looks_everywhere(self):
        line = rule_of(BroadcastLike()).reach(None, 0, [Line().nowhere(), Line()])
        assert (line.step, line.unbounded) == (1, True)


class TestRefused:
    @pytest.mark.parametrize("decoder", NEED_SAME)
    def test_valid_padding_is_refused_by_name(self, decoder):
        with pytest.raises(UserError, match=f"`decoder` '{decoder}' needs `padding` 'same'"):
            make(decoder, {1: 1, 2: 1, 4: 1, 8: 1}, padding="valid")


class TestStrides:
    @pytest.mark.parametrize("decoder", DECODERS)
    @pytest.mark.parametrize("strides", [(2, 4, 8), (8,), (1, 8)])
    def test_logits_have_stride_1_whatever_the_features_have(self, decoder, strides):
        try:
            model = make(decoder, {stride: 2 for stride in strides})
        except UserError:
            assert decoder in ("fcn16s", "fcn8s")
            assert strides != (2, 4, 8)
            return
        assert model.output_shape == (None, SIZE, SIZE, 3)
