import dataclasses
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from unet_core.inference.network import InferenceNetwork
from unet_core.models import layer_rules
from unet_core.models.build import make_network
from unet_core.models.geometry import TileGeometry, tile_geometry
from unet_core.models.layers import MirrorPad
from unet_core.models.reach import Line, of_pointwise
from unet_core.models.resampling import Interpolate

layers = keras.layers


def picture(height, width, *, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (1, height, width, 1)).astype(np.uint8)


def make_small(**kwargs):
    return make_network(**{"classes": 2, "depth": 2, "base_filters": 2, **kwargs})


def reach_of_the_outside(model, tile, around):
    """Returns how many pixels deep an image of `tile` pixels a side feels a change right around it,
    by the network without padding and cropping layers; up and left, down and right.
    """
    network, inside = InferenceNetwork(model), slice(around, around + tile)
    changed = np.zeros(tile, bool)
    for seed in range(3):
        one = picture(tile + 2 * around, tile + 2 * around, seed=seed).astype(np.float32)
        other = picture(*one.shape[1:3], seed=seed + 9).astype(np.float32)
        other[:, inside, inside] = one[:, inside, inside]
        outputs = [network.layers(images).numpy() for images in (one, other)]
        start = around - network.geometry.cut
        differs = (outputs[0] != outputs[1])[0, start : start + tile, start : start + tile, 0]
        # Along the middle of the upper and lower edges, beyond the reach of the other two.
        changed |= differs[:, tile // 2 - 4 : tile // 2 + 4].any(1)
    half = tile // 2
    return int(changed[:half].sum()), int(changed[half:].sum())


class TestSurroundings:
    def test_figures_of_the_paper_depth(self):
        # Transposed: 2, 1+2, 2+2, 2+2, 2+2 on the way down (halved and rounded up between), then
        # 2*4+2 = 10, 22, 46, 94. Doubling and a 2x2 convolution: 2*4+1+2 = 11, 25, 53, 109.
        for kwargs, expected in (
            (dict(), TileGeometry(halo=94, stride=16, cut=0)),
            (dict(decoder="upsample"), TileGeometry(halo=109, stride=16, cut=0)),
            (dict(padding="valid"), TileGeometry(halo=0, stride=16, cut=92, remainder=12)),
            # 1, 3, 7, 15: doubled four times and one more.
            (
                dict(padding="valid", decoder="upsample"),
                TileGeometry(halo=15, stride=16, cut=92, remainder=12),
            ),
        ):
            assert tile_geometry(make_small(depth=4, **kwargs)) == expected

    @pytest.mark.parametrize(
        ("depth", "decoder"),
        [
            *itertools.product([1, 2, 3], ["transpose", "upsample"]),
            *itertools.product([2], ["unet_plus_plus", "attention", "fcn16s", "fcn8s", "fpn"]),
        ],
    )
    def test_halo_is_how_far_the_outside_reaches_into_a_tile(self, depth, decoder):
        model = make_network(classes=2, depth=depth, base_filters=4, decoder=decoder)
        found = tile_geometry(model)
        tile = found.stride * -(-(2 * found.halo + 16) // found.stride)
        reach = reach_of_the_outside(model, tile, 64)
        assert max(reach) == found.halo

    @pytest.mark.parametrize("decoder", ["transpose", "upsample"])
    def test_valid_network_takes_off_the_cut_and_feels_zeros_no_deeper_than_the_halo(self, decoder):
        model = make_network(classes=2, depth=2, base_filters=4, padding="valid", decoder=decoder)
        network = InferenceNetwork(model)
        found, bare = network.geometry, network.layers
        big = picture(128, 128)
        whole = bare(big).numpy()[0]
        assert whole.shape[0] == 128 - 2 * found.cut
        # A tile from 8 to 96 gives the output from 8 + cut on.
        part = bare(big[:, 8:96, 8:96]).numpy()[0]
        same = np.isclose(part, whole[8:][: len(part), 8:][:, : len(part)], atol=1e-5)[..., 0]
        rows = same[:, : len(part) - found.halo].all(1)
        assert (~rows).sum() == found.halo
        assert rows[: len(part) - found.halo].all()

    @pytest.mark.parametrize("depth", [1, 2, 3])
    @pytest.mark.parametrize("padding", ["same", "valid"])
    def test_padding_leads_to_a_size_the_bare_network_takes(self, depth, padding):
        model = make_small(depth=depth, padding=padding)
        network = InferenceNetwork(model)
        bare, found = network.layers, network.geometry
        before, after = found.padding()
        assert before == found.cut
        assert before <= after < before + found.stride
        height = 2 * found.stride + before + after
        logits = bare(np.zeros((1, height, height, 1), np.uint8))
        assert logits.shape[1] == height - 2 * found.cut

    @pytest.mark.parametrize("depth", range(1, 7))
    @pytest.mark.parametrize("padding", ["same", "valid"])
    @pytest.mark.parametrize("decoder", ["transpose", "upsample"])
    def test_figures_of_every_depth_are_those_of_the_formulas_of_the_unet(
        self, depth, padding, decoder
    ):
        stride, doubled = 2**depth, decoder == "upsample"
        found = tile_geometry(make_small(depth=depth, padding=padding, decoder=decoder))
        if padding == "valid":
            # Two 3x3 convolutions at each level: 4 (2**depth - 1) pixels down and as many up, and 2
            # at the bottom. One zero of the 2x2 convolution, doubled and one more at each level.
            cut, halo = 4 * (stride - 1) + 2 * stride, (stride - 1) * doubled
            # 572 is 16 * 35 + 12.
            expected = TileGeometry(halo, stride, cut, 4 * (stride - 1) % stride)
        else:
            halo = 0
            for _ in range(depth):
                halo = -(-(halo + 2) // 2)
            halo += 2
            for _ in range(depth):
                halo = 2 * halo + doubled + 2
            expected = TileGeometry(halo, stride, 0)
        assert found == expected


def network_of(*stack):
    """A network of the layers `stack`, one after the other, down to one channel."""
    images = keras.Input((None, None, 1))
    x = layers.Rescaling(1 / 255)(images)
    for layer in stack:
        x = layer(x)
    return keras.Model(images, layers.Conv2D(1, 1)(x))


def conv(size, **kwargs):
    return layers.Conv2D(2, size, kernel_initializer=keras.initializers.HeNormal(1), **kwargs)


def grow(size, stride=2, **kwargs):
    initialiser = keras.initializers.HeNormal(2)
    return layers.Conv2DTranspose(2, size, strides=stride, kernel_initializer=initialiser, **kwargs)


def down_and_up(down, up):
    """A residual branch at half the resolution."""
    images = keras.Input((None, None, 1))
    x = conv(3, padding="same")(layers.Rescaling(1 / 255)(images))
    y = x
    for layer in (*down, *up):
        y = layer(y)
    return keras.Model(images, layers.Conv2D(1, 1)(layers.Add()([x, y])))


# Networks of one branch, and halo, stride and cut by hand.
STACKS = {
    "one pixel": ([], (0, 1, 0)),
    "3x3": ([conv(3, padding="same")], (1, 1, 0)),
    "3x3 dilated by 4": ([conv(3, padding="same", dilation_rate=4)], (4, 1, 0)),
    # TensorFlow pads the odd zero of an even kernel below and right.
    "4x4": ([conv(4, padding="same")], (2, 1, 0)),
    "unpadded 5x5": ([conv(5)], (0, 1, 2)),
    # 2 zeros above, 4 - 2 = 2 elements fewer: only the zeros are left.
    "zeros and an unpadded 5x5": ([layers.ZeroPadding2D(2), conv(5)], (2, 1, 0)),
    "depthwise 5x5": ([layers.DepthwiseConv2D(5, padding="same")], (2, 1, 0)),
    "cropped": ([conv(5, padding="same"), layers.Cropping2D(1)], (1, 1, 1)),
    # Stride 2, 3x3 same: nothing above, one zero below; 1 element, grown to 2.
    "strided 3x3 and 2x2 transposed": ([conv(3, padding="same", strides=2), grow(2)], (2, 2, 0)),
    # As ResNet begins: 3 zeros, 7x7 of stride 2: 2 elements above, 2 below (0 ... L + 5, the last
    # at L - 2 - 2 sees up to L + 2); grown to 4.
    "padded and strided 7x7": ([layers.ZeroPadding2D(3), conv(7, strides=2), grow(2)], (4, 2, 0)),
    # As MobileNet pads: a zero at the end, and no padding. Of an even number of pixels the last
    # element sees the zero, as with "same".
    "padded below and strided 3x3": (
        [
            MirrorPad(depth=1, valid=False),
            layers.ZeroPadding2D(((0, 1), (0, 1))),
            conv(3, strides=2),
            grow(2),
        ],
        (2, 2, 0),
    ),
    # 3x3 transposed, same: a zero at the end does not reach the first, 1 above misses a neighbour.
    "pooled and 3x3 transposed": ([layers.MaxPooling2D(2), grow(3, padding="same")], (1, 2, 0)),
    "pooled and 4x4 transposed": ([layers.MaxPooling2D(2), grow(4, padding="same")], (1, 2, 0)),
    "averaged by 3 and repeated": (
        [layers.AveragePooling2D(3), conv(3, padding="same"), layers.UpSampling2D(3)],
        (3, 3, 0),
    ),
    # The middle of a doubled element lies a quarter from that of the one before: one sees it.
    "pooled and interpolated": (
        [layers.MaxPooling2D(2), layers.UpSampling2D(2, interpolation="bilinear")],
        (1, 2, 0),
    ),
    # As the layer of Keras.
    "pooled and interpolated by the layer of decoders": (
        [layers.MaxPooling2D(2), Interpolate(2)],
        (1, 2, 0),
    ),
    "pooled by 4, interpolated by 4": (
        [layers.MaxPooling2D(4), layers.UpSampling2D(4, interpolation="bilinear")],
        (2, 4, 0),
    ),
}


def measured_reach(model, geometry):
    """Returns how many logits at the edges of a tile are not those of the whole image."""
    stride, cut = geometry.stride, geometry.cut
    around = stride * -(-64 // stride)
    _, after = geometry.padding()
    inside = stride * -(-112 // stride)
    reach = 0
    for seed in range(3):
        images = picture(cut + inside + 2 * around + after, cut + inside + 2 * around + after)
        images = np.random.default_rng(seed).permutation(images.ravel()).reshape(images.shape)
        tile = slice(around, around + cut + inside + after)
        whole, part = (model(x).numpy()[0, ..., 0] for x in (images, images[:, tile, tile]))
        assert part.shape == (inside + after - cut,) * 2
        in_whole = slice(around, around + len(part))
        differs = ~np.isclose(part, whole[in_whole, in_whole], atol=1e-6)
        depth = [np.flatnonzero(differs[:, 40:-40].any(1)), np.flatnonzero(differs[40:-40].any(0))]
        for places in depth:
            first = places[places < len(part) // 2]
            last = len(part) - 1 - places[places >= len(part) // 2]
            reach = max(reach, *(first + 1), *(last + 1), 0)
    return reach


class TestAnyNetwork:
    @pytest.mark.parametrize("name", STACKS)
    def test_halo_is_what_is_measured_and_the_hand_value(self, name):
        stack, (halo, stride, cut) = STACKS[name]
        model = network_of(*stack)
        found = tile_geometry(model)
        assert (found.halo, found.stride, found.cut) == (halo, stride, cut)
        assert measured_reach(model, found) == halo

    def test_branches_that_are_added_reach_as_far_as_the_farther_one(self):
        model = down_and_up(
            [layers.MaxPooling2D(3, strides=2, padding="same"), conv(3, padding="same")], [grow(2)]
        )
        found = tile_geometry(model)
        # 1 of the first 3x3; below: (1 + 1) / 2 = 1, 1 + 1 = 2, 4; above: 1 / 2 -> 1, 2, 4.
        assert (found.halo, found.stride, found.cut) == (4, 2, 0)
        assert measured_reach(model, found) == 4

    def test_layer_called_twice_counts_twice(self):
        images = keras.Input((None, None, 1))
        shared = layers.Conv2D(1, 3, padding="same")
        assert tile_geometry(keras.Model(images, shared(shared(images)))).halo == 2

    def test_sequential_network_is_one_too(self):
        model = keras.Sequential([keras.Input((None, None, 1)), layers.Conv2D(1, 3)])
        assert tile_geometry(model) == TileGeometry(halo=0, stride=1, cut=1)


@keras.saving.register_keras_serializable(package="tests")
class Negative(keras.layers.Layer):
    def call(self, x):
        return -x


class Narrow(keras.layers.Conv2D):
    """A subclass may compute anything."""


def squeezed_and_excited():
    images = keras.Input((None, None, 1))
    x = conv(3, padding="same")(layers.Rescaling(1 / 255)(images))
    x = layers.MaxPooling2D(2)(x)
    weights = layers.Dense(2, activation="sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    return keras.Model(images, layers.Conv2D(1, 1)(grow(2)(layers.Multiply()([x, weights]))))


class TestUnbounded:
    def test_squeeze_and_excitation_looks_everywhere_and_keeps_stride_and_cut(self):
        assert tile_geometry(squeezed_and_excited()) == TileGeometry(halo=None, stride=2, cut=0)

    @pytest.mark.parametrize(
        "layer",
        [
            Negative(),
            Narrow(2, 3, padding="same"),
            layers.GroupNormalization(2),
            layers.UpSampling2D(1, interpolation="bicubic"),
            layers.Conv2D(2, 3, padding="same", activation=lambda x: x - tf.reduce_mean(x)),
        ],
        ids=lambda layer: type(layer).__name__,
    )
    def test_layer_that_is_not_known_or_looks_at_all_pixels_has_no_halo(self, layer):
        stack = [conv(3, padding="same"), layers.MaxPooling2D(2), grow(2), layer]
        assert tile_geometry(network_of(*stack)) == TileGeometry(halo=None, stride=2, cut=0)

    def test_class_is_known_once_it_is_in_the_table(self, monkeypatch):
        model = network_of(conv(3, padding="same"), Negative())
        assert tile_geometry(model).halo is None
        rule = layer_rules.LayerRule(reach=of_pointwise)
        monkeypatch.setitem(layer_rules.RULES, Negative, rule)
        assert tile_geometry(model).halo == 1


class TestRefused:
    def test_subclassed_model_is_refused(self):
        class Twice(keras.Model):
            def call(self, images):
                return 2 * images

        with pytest.raises(ValueError, match="functional or sequential"):
            tile_geometry(Twice())

    @pytest.mark.parametrize(
        ("stack", "message"),
        [
            ([layers.MaxPooling2D(2)], "a value for each pixel"),
            ([conv((3, 1))], "takes 0 and 1 pixels off"),
            ([conv(2)], "a value for each pixel"),
        ],
    )
    def test_network_whose_logits_do_not_lie_on_the_pixels_is_refused(self, stack, message):
        with pytest.raises(ValueError, match=message):
            tile_geometry(network_of(*stack))

    def test_poolings_that_no_size_fits_are_named(self):
        # L must be even for the one and L - 1 for the other.
        images = keras.Input((None, None, 1))
        one = layers.UpSampling2D(2)(layers.MaxPooling2D(2)(images))
        other = layers.Conv2D(1, 2, padding="valid")(images)
        other = layers.ZeroPadding2D(((0, 1), (0, 1)))(grow(2)(layers.MaxPooling2D(2)(other)))
        model = keras.Model(images, layers.Concatenate()([one, other]))
        with pytest.raises(ValueError, match="No size of a tile fits"):
            tile_geometry(model)


class TestLine:
    def test_pooling_of_a_line_with_an_excess_needs_the_sizes_that_fit(self):
        # L - 4 must be even, and half of it, less 4, too: L - 12 a multiple of 4.
        line = Line().window(3).window(3).window(2, 2).window(3).window(3).window(2, 2)
        assert line.sizes == {(2, 0), (4, 0)}
        assert (line.step, line.excess) == (4, -12)

    def test_sizes_asked_for_before_say_what_a_stride_leaves_over(self):
        # L a multiple of 4 and 1 more element: (L + 1 - 3) / 2, rounded down, and 1, is L / 2.
        line = Line().fitting(4).padded(0, 1).window(3, 2)
        assert (line.step, line.excess, line.after) == (2, 0, 1)
        # And again: L / 2 + 1 elements give L / 4.
        line = line.padded(0, 1).window(3, 2)
        assert (line.step, line.excess, line.sizes) == (4, 0, {(4, 0)})
        # An odd number of elements: what "same" pads depends on it.
        assert Line().fitting(4).padded(0, 1).window(3, 2, padding="same").step is None

    def test_lines_of_different_sizes_do_not_join(self):
        found = of_pointwise(None, 0, [Line(), Line().window(3)])
        assert found.step is None
        assert found.unbounded

    def test_nothing_is_changed_in_place(self):
        line = Line()
        line.window(3, padding="same")
        assert line == Line()
        with pytest.raises(dataclasses.FrozenInstanceError):
            line.before = 1
