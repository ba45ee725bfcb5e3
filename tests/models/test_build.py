import hashlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from unet_core.errors import UserError
from unet_core.inference.network import InferenceNetwork
from unet_core.models import build
from unet_core.models.blocks import Blocks
from unet_core.models.build import make_network
from unet_core.models.decoders import DECODERS
from unet_core.models.encoders import Encoder
from unet_core.models.geometry import tile_geometry
from unet_core.models.layers import padding_for


def picture(height, width, *, rows=1, channels=1, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (rows, height, width, channels)).astype(np.uint8)


def make_small(**kwargs):
    return make_network(**{"classes": 2, "depth": 2, "base_filters": 2, **kwargs})


class TestShape:
    @pytest.mark.parametrize("padding", ["same", "valid"])
    @pytest.mark.parametrize("decoder", ["transpose", "upsample"])
    def test_logits_have_the_size_of_the_image_whatever_it_is(self, padding, decoder):
        binary = make_small(padding=padding, decoder=decoder)
        ternary = make_small(classes=3, channels=3, padding=padding, decoder=decoder)
        for height, width in ((37, 53), (5, 7), (1, 1), (16, 20)):
            images = picture(height, width, rows=2)
            assert binary(images).shape == (2, height, width, 1)
            images = picture(height, width, rows=2, channels=3)
            assert ternary(images).shape == (2, height, width, 3)

    def test_static_shape_of_a_crop_is_known_in_a_graph(self):
        function = tf.function(make_small()).get_concrete_function(
            tf.TensorSpec([4, 24, 24, 1], tf.uint8)
        )
        assert function.output_shapes == (4, 24, 24, 1)

    def test_float_pixels_give_the_logits_of_uint8_ones(self):
        model, images = make_small(), picture(8, 8)
        np.testing.assert_array_equal(model(images), model(images.astype(np.float32)))


class TestPrecision:
    @pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
    def test_variables_and_logits_are_float32_whatever_the_layers_compute_in(self, precision):
        model = make_small(precision=precision, normalization="batch", dropout=0.5)
        assert model(picture(9, 9), training=True).dtype == tf.float32
        assert model.get_layer("down0_conv1").compute_dtype == precision
        floats = [v for v in model.variables if v.name != "calls"]
        assert {v.dtype for v in floats} == {"float32"}
        assert {v.dtype for v in model.variables if v.name == "calls"} == {"int64"}

    def test_global_policy_stays_as_it_was(self):
        make_small(precision="float16")
        assert keras.config.dtype_policy().name == "float32"

    @pytest.mark.parametrize("precision", ["bfloat16", "float16"])
    def test_half_precision_is_near_float32(self, precision):
        images = picture(16, 16)
        exact, rough = make_small()(images), make_small(precision=precision)(images)
        assert not np.array_equal(exact, rough)
        # bfloat16 has 8 bits: some layers of rounding by 0.4 %.
        np.testing.assert_allclose(rough, exact, atol=0.05 * np.abs(exact).max())


class TestParameters:
    def test_count_of_a_small_network_is_that_of_its_kernels_and_biases(self):
        # depth 1, 2 filters: 3*3*1*2+2 = 20, 3*3*2*2+2 = 38; bottom 3*3*2*4+4 = 76,
        # 3*3*4*4+4 = 148; grow 2*2*4*2+2 = 34; joined 3*3*4*2+2 = 74, 38; head 2+1 = 3.
        assert make_small(depth=1).count_params() == 20 + 38 + 76 + 148 + 34 + 74 + 38 + 3

    def test_network_of_the_paper_has_its_31_030_658_parameters(self):
        # Two classes share one logit here; the paper's softmax has two: 64 weights and a bias more.
        model = make_network(classes=2, padding="valid")
        assert model.count_params() + 64 + 1 == 31_030_658
        # 572 x 572 pixels give 388 x 388.
        assert 572 - 2 * tile_geometry(model).cut == 388

    def test_network_of_the_keras_seed_has_its_31_031_685_parameters_with_one_more_layer(self):
        # zhixuhao/unet has a 3x3 convolution to two channels before the last: 64 * 9 * 2 + 2, and
        # the last then has 2 + 1 in place of 64 + 1.
        model = make_network(classes=2, decoder="upsample")
        assert model.count_params() + 64 * 9 * 2 + 2 + (2 + 1) - (64 + 1) == 31_031_685

    def test_batch_norm_replaces_biases(self):
        # As above, less the biases of six 3x3 convolutions, 2+2+4+4+2+2 = 16, plus gamma, beta,
        # moving mean and variance of the same 16 channels.
        assert make_small(depth=1, normalization="batch").count_params() == 431 - 16 + 4 * 16

    @pytest.mark.parametrize("normalization", ["none", "batch", "group", "instance"])
    def test_convolutions_have_a_bias_unless_a_norm_follows(self, normalization):
        model = make_small(normalization=normalization)
        convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
        biased = {layer.name for layer in convolutions if layer.use_bias}
        three_wide = {c.name for c in convolutions if c.kernel_size == (3, 3)}
        # Two at each of two levels down, at the bottom, and at each of two levels up.
        assert len(three_wide) == 10
        assert three_wide & biased == (three_wide if normalization == "none" else set())
        assert "head" in biased

    def test_decoder_of_repetition_convolves_and_has_no_transposed_kernel(self):
        model = make_small(decoder="upsample")
        kinds = [type(layer).__name__ for layer in model.layers]
        assert "Conv2DTranspose" not in kinds
        assert kinds.count("UpSampling2D") == 2
        assert model.get_layer("up0_grow").kernel.shape == (2, 2, 4, 2)

    def test_kernels_are_initialised_by_he(self):
        kernel = make_network(classes=2, depth=1, base_filters=32).get_layer("bottom_conv2").kernel
        # Variance 2 / fan-in, which is 9 * 64.
        assert kernel.numpy().std() == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.03)

    def test_seed_decides_the_weights(self):
        one, same, other = (make_small(seed=seed).get_weights() for seed in (4, 4, 5))
        kernels = [number for number, w in enumerate(one) if w.ndim == 4]
        for number in kernels:
            np.testing.assert_array_equal(one[number], same[number])
            assert not np.array_equal(one[number], other[number])

    def test_kernels_of_one_shape_differ_within_a_network(self):
        model = make_small()
        first, last = (model.get_layer(n).kernel.numpy() for n in ("down0_conv2", "up0_conv2"))
        assert first.shape == last.shape
        assert not np.array_equal(first, last)


class TestSeeds:
    def make_blocks(self, **kwargs):
        settings = dict(depth=3, base_filters=4, padding="same", normalization="none", dropout=0.0)
        policy = keras.DTypePolicy("float32")
        return Blocks(**{**settings, "policy": policy, "seed": 2, **kwargs})

    def test_layers_of_the_unet_are_counted(self):
        # Two at each of 3 levels; 2 at the bottom; 3 at each level up.
        blocks = self.make_blocks()
        names = ("down0_conv1", "bottom_conv1", "up2_grow", "up0_conv2", "head")
        assert [blocks.seed_of(name) for name in names] == [2000, 2006, 2008, 2016, 2017]
        # Dropout has a number between the bottom and the way up.
        blocks = self.make_blocks(dropout=0.1)
        names = ("bottom_conv2", "bottom_dropout", "up2_grow", "head")
        assert [blocks.seed_of(name) for name in names] == [2007, 2008, 2009, 2018]

    def test_seed_of_another_name_depends_on_the_name_and_the_seed_only(self):
        one = self.make_blocks().seed_of("stem")
        assert one == self.make_blocks(depth=5, dropout=0.5, base_filters=9).seed_of("stem")
        assert one != self.make_blocks(seed=3).seed_of("stem")
        assert one != self.make_blocks().seed_of("stem2")
        # The first 8 digits of the SHA-256 of "2/stem", halved.
        assert one == int(hashlib.sha256(b"2/stem").hexdigest()[:8], 16) // 2


def make_strided_features(x, blocks):
    """Features from stride 2 on, as those of a ResNet: 5x5 convolutions of stride 2."""
    features = {}
    for level in range(1, blocks.depth + 1):
        name = f"stage{level}"
        x = blocks.convolve(
            x, blocks.filters(level), 5, name, strides=2, padding="same", activation="relu"
        )
        features[2**level] = x
    return features


def scale_as_it_was_trained(images):
    return keras.layers.Rescaling(1 / 255, dtype="float32", name="scale_of_its_own")(images)


class TestAnotherEncoder:
    @pytest.fixture
    def encoders(self, monkeypatch):
        strided = Encoder(make_strided_features, scale_as_it_was_trained)
        monkeypatch.setattr(build, "ENCODERS", {"strided": strided})

    @pytest.mark.usefixtures("encoders")
    @pytest.mark.parametrize("decoder", DECODERS)
    def test_features_from_stride_2_on_and_a_scaling_of_its_own_will_do(self, decoder):
        model = make_small(encoder="strided", decoder=decoder, depth=3, channels=3)
        assert model.name == "strided"
        names = [layer.name for layer in model.layers]
        assert "scale_of_its_own" in names
        assert "scale" not in names
        assert model(picture(37, 21, channels=3)).shape == (1, 37, 21, 1)
        assert tile_geometry(model).stride == 8
        network = InferenceNetwork(model)
        images = picture(16, 24, channels=3)
        np.testing.assert_allclose(network.layers(images), model(images), atol=1e-5)

    @pytest.mark.usefixtures("encoders")
    def test_unet_joins_the_features_that_are_there(self):
        names = [layer.name for layer in make_small(encoder="strided", depth=3).layers]
        # At the strides 4 and 2, and not at 1.
        assert [name for name in names if "join" in name] == ["up2_join", "up1_join"]

    @pytest.mark.usefixtures("encoders")
    def test_halo_is_what_is_measured(self):
        model = make_small(encoder="strided", depth=2, base_filters=4)
        network = InferenceNetwork(model)
        images = picture(256, 256)
        whole, part = (network.layers(x).numpy()[0, ..., 0] for x in (images, images[:, 64:192]))
        differs = ~np.isclose(part, whole[64:192], atol=1e-6)
        rows = np.flatnonzero(differs.any(1))
        assert max(rows[rows < 64].max() + 1, 128 - rows[rows >= 64].min()) == (
            network.geometry.halo
        )


class TestScale:
    def test_pixel_values_become_minus_two_to_two(self):
        model = make_small()
        scaled = keras.Model(model.input, model.get_layer("scale").output)
        images = np.array([0, 51, 255], np.uint8).reshape(1, 1, 3, 1)
        # 51 is a fifth of 255: -2 + 4 / 5.
        np.testing.assert_allclose(np.ravel(scaled(images)), [-2, -1.2, 2], atol=1e-6)


class TestForward:
    """Against the network written out with TensorFlow's own operations."""

    def by_hand(self, model, images, *, depth, padding):
        def weights(name):
            layer = model.get_layer(name)
            return layer.kernel.value, layer.bias.value

        def convolve(x, name):
            kernel, bias = weights(name)
            return tf.nn.conv2d(x, kernel, 1, padding.upper()) + bias

        def level(x, name):
            return tf.nn.relu(convolve(tf.nn.relu(convolve(x, f"{name}_conv1")), f"{name}_conv2"))

        def grow(x, name):
            kernel, bias = weights(name)
            shape = tf.shape(x)
            size = [shape[0], 2 * shape[1], 2 * shape[2], kernel.shape[2]]
            return tf.nn.conv2d_transpose(x, kernel, size, 2) + bias

        height, width = images.shape[1:3]
        pads = [padding_for(size, depth, padding == "valid") for size in (height, width)]
        padded = np.pad(images, ((0, 0), *pads, (0, 0)), mode="reflect")
        x, skips = tf.constant(padded / 255 * 4 - 2, tf.float32), []
        for number in range(depth):
            x = level(x, f"down{number}")
            skips.append(x)
            x = tf.nn.max_pool2d(x, 2, 2, "VALID")
        x = level(x, "bottom")
        for number in reversed(range(depth)):
            x = grow(x, f"up{number}_grow")
            rows, columns = x.shape[1:3]
            top, left = (
                (skips[number].shape[1] - rows) // 2,
                (skips[number].shape[2] - columns) // 2,
            )
            skip = skips[number][:, top : top + rows, left : left + columns]
            x = level(tf.concat([skip, x], -1), f"up{number}")
        return convolve(x, "head")[:, :height, :width]

    @pytest.mark.parametrize("padding", ["same", "valid"])
    @pytest.mark.parametrize("depth", [1, 3])
    def test_logits_equal_those_of_the_network_by_hand(self, padding, depth):
        model = make_small(depth=depth, base_filters=3, padding=padding)
        for variable in model.trainable_variables:
            if variable.name == "bias":
                variable.assign(np.linspace(-0.5, 0.5, variable.shape[0]))
        images = picture(21, 14, rows=2)
        expected = self.by_hand(model, images, depth=depth, padding=padding)
        np.testing.assert_allclose(model(images), expected, rtol=1e-3, atol=1e-4)

    def test_pixel_beyond_the_margin_does_not_reach_a_valid_prediction(self):
        # Depth 1, an even pixel p = 2k: two 3x3 convolutions see p - 2 ... p + 2, which grow from
        # the coarse k - 1 ... k + 1; two more there see k - 3 ... k + 3, pooled from p - 6 ...
        # p + 7; and the first two see p - 8 ... p + 9. An odd one sees p - 9 ... p + 8. So pixel
        # 16 (24 with the 8 mirrored before it) is seen by 16 - 8 ... 16 + 9.
        model = make_small(depth=1, base_filters=4, padding="valid")
        images = picture(33, 33)
        before = model(images).numpy()
        images[0, 16, 16] = 255 - images[0, 16, 16]
        changed = np.argwhere(model(images).numpy()[0, ..., 0] != before[0, ..., 0])
        assert len(changed) > 0
        assert changed.min() >= 16 - 8
        assert changed.max() <= 16 + 9


class TestDropout:
    def test_training_drops_and_inference_does_not(self):
        model, images = make_small(dropout=0.5, base_filters=8), picture(16, 16)
        plain = make_small(base_filters=8)
        plain.set_weights([w for w in model.get_weights() if w.ndim])
        np.testing.assert_allclose(model(images), plain(images), atol=1e-5)
        dropped = model(images, training=True)
        assert not np.allclose(dropped, plain(images), atol=1e-3)

    def test_seeds_drop_different_values(self):
        masks = []
        for seed in (0, 1):
            model = make_small(dropout=0.5, seed=seed)
            layer = model.get_layer("bottom_dropout")
            masks.append(layer(np.ones((1, 4, 4, 8), np.float32), training=True).numpy())
        assert not np.array_equal(*masks)


class TestArguments:
    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            (dict(padding="full"), r"`padding` \('full'\) must be one of same, valid"),
            (dict(decoder="x"), r"`decoder` \('x'\) must be one of transpose, upsample"),
            (dict(encoder="x"), r"`encoder` \('x'\) must be one of unet"),
            (dict(precision="int8"), r"`precision` \('int8'\) must be one of float32, "),
            (dict(classes=1), r"`classes` \(1\) must be at least 2"),
            (dict(classes=0, heads="sigmoid"), r"`classes` \(0\) must be at least 1"),
            (dict(heads="tanh"), "`heads` .*must be one of softmax, sigmoid"),
            (dict(channels=0), r"`channels` \(0\) must be at least 1"),
            (dict(depth=0), r"`depth` \(0\) must be at least 1"),
            (dict(base_filters=0), r"`base_filters` \(0\) must be at least 1"),
        ],
    )
    def test_value_out_of_range_is_named_with_its_rule(self, setting, message):
        with pytest.raises(UserError, match=message):
            make_small(**setting)


class TestSaving:
    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_saved_network_loads_in_safe_mode_and_predicts_the_same(self, tmp_path, precision):
        model = make_small(padding="valid", normalization="batch", dropout=0.5, precision=precision)
        model.save(tmp_path / "unet.keras")
        loaded = keras.models.load_model(tmp_path / "unet.keras", safe_mode=True)
        images = picture(11, 13)
        np.testing.assert_allclose(loaded(images), model(images), atol=1e-6)
        policies = [[layer.dtype_policy.name for layer in m.layers] for m in (model, loaded)]
        assert policies[0] == policies[1]
