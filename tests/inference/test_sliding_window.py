import itertools

import cv2
import keras
import numpy as np
import pytest

from unet_core.inference import sliding_window
from unet_core.inference.network import InferenceNetwork
from unet_core.inference.sliding_window import SlidingWindow
from unet_core.models.build import make_network
from unet_core.models.geometry import TileGeometry, tile_geometry

# The smallest window that is larger than twice the halo and a stride: 94 px, rounded up to 96, on
# each side for four levels.
EXACT_PX = 2 * 96 + 16


def image_of(height, width, channels=None, seed=0):
    shape = (height, width) if channels is None else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def window_of(model, *, precision=None, **settings):
    return SlidingWindow(InferenceNetwork(model, precision=precision), **settings)


def in_one_pass(model, image, **settings):
    return window_of(model, window_px=0, **settings)(image)


@pytest.fixture
def traces(monkeypatch):
    """The types of pixels for which a network has been traced, one for each trace."""
    found = []
    probabilities = InferenceNetwork._probabilities

    def counted(self, images):
        found.append(images.dtype.name)
        return probabilities(self, images)

    monkeypatch.setattr(InferenceNetwork, "_probabilities", counted)
    return found


class TestWindowsAreOnePass:
    @pytest.mark.parametrize("decoder", ["transpose", "upsample"])
    @pytest.mark.parametrize("shape", [(301, 417), (256, 500)])
    def test_windows_larger_than_the_halo_equal_one_pass(self, shape, decoder):
        model = make_network(classes=2, base_filters=4, decoder=decoder, normalization="batch")
        image = image_of(*shape)
        # 109 px, rounded up to 112, with the upsampling decoder.
        px = EXACT_PX if decoder == "transpose" else 2 * 112 + 16
        found = window_of(model, window_px=px)(image)
        assert found.shape == (*shape, 2)
        np.testing.assert_allclose(found, in_one_pass(model, image), atol=1e-4)

    def test_a_smaller_margin_would_not_do(self):
        model = make_network(classes=2, base_filters=4)
        image = image_of(301, 417)
        expected = in_one_pass(model, image)
        network = InferenceNetwork(model)
        network.geometry = TileGeometry(halo=48, stride=16, cut=0)
        found = SlidingWindow(network, window_px=160)(image)
        assert np.abs(found - expected).max() > 1e-4

    @pytest.mark.parametrize("shape", [(301, 417), (33, 500)])
    def test_valid_network_in_windows_equals_one_pass_and_the_layers_of_the_model(self, shape):
        model = make_network(classes=2, base_filters=4, padding="valid")
        image = image_of(*shape)
        whole = model(image[None, ..., None], training=False).numpy()[0, ..., 0]
        found = window_of(model, window_px=300)(image)[..., 1]
        np.testing.assert_allclose(found, in_one_pass(model, image)[..., 1], atol=1e-4)
        np.testing.assert_allclose(found, 1 / (1 + np.exp(-whole)), atol=1e-4)

    @pytest.mark.parametrize("tta", ["flips", "dihedral"])
    def test_averages_over_copies_are_equal_too(self, tta):
        model = make_network(classes=3, channels=3, base_filters=4, depth=2)
        # Halo of two levels: 22 px, rounded up to 24.
        assert tile_geometry(model).halo == 22
        image = image_of(75, 101, 3)
        found = window_of(model, tta=tta, window_px=52)(image)
        np.testing.assert_allclose(found, in_one_pass(model, image, tta=tta), atol=1e-4)

    def test_bands_are_the_whole_from_top_to_bottom_and_reading_stays_near(self):
        model = make_network(classes=2, base_filters=2, depth=2)
        image = image_of(211, 60)
        reads = []

        def read(first, last):
            reads.append((first, last))
            return image[first:last, :, None]

        window = window_of(model, window_px=64)
        firsts, bands = zip(*window.bands(read, *image.shape), strict=True)
        assert firsts == tuple(np.cumsum([0, *map(len, bands)])[:-1])
        np.testing.assert_array_equal(np.concatenate(bands), window(image))
        assert max(last - first for first, last in reads) <= 64
        assert max(map(len, bands)) <= 64


def steps(probability, axis):
    """Mean absolute step between neighbours along `axis`, at each of the places between them."""
    return np.abs(np.diff(probability, axis=axis)).mean(1 - axis)


class TestSmallWindows:
    def seam(self, probability, axis_of_windows, stride):
        """Steps across edges of windows over those elsewhere, at the same phase of the poolings."""
        length = axis_of_windows.length
        edges = {
            edge - 1
            for start in axis_of_windows.starts
            for edge in (start, start + axis_of_windows.size)
            if 0 < edge < length
        }
        same_phase = set(range(stride - 1, length - 1, stride))
        elsewhere = sorted(same_phase - edges)
        assert len(edges) >= 8
        assert edges < same_phase
        found = np.stack([steps(probability, axis) for axis in (0, 1)]).mean(0)
        return found[sorted(edges)].mean() / found[elsewhere].mean()

    def test_no_seam_where_windows_meet(self):
        # Random weights, and windows of half of what the network looks at.
        model = make_network(classes=2, base_filters=8, seed=3)
        image = cv2.GaussianBlur(image_of(720, 720), (0, 0), 3)
        image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX)
        axis = sliding_window._Axis.over(720, 96, tile_geometry(model))
        assert axis.starts[1] - axis.starts[0] == 48
        found = window_of(model, window_px=96)(image)[..., 1]
        assert self.seam(found, axis, 16) == pytest.approx(1, abs=0.05)

        # Windows side by side, each pixel from one of them: their zero borders show.
        around = TileGeometry(halo=0, stride=16, cut=0)
        axis = sliding_window._Axis.over(720, 96, around)
        network = InferenceNetwork(model)
        network.geometry = around
        abutting = SlidingWindow(network, window_px=96)(image)[..., 1]
        edges = np.array(axis.starts[1:]) - 1
        elsewhere = np.setdiff1d(np.arange(15, 719, 16), edges)
        found = np.stack([steps(abutting, axis) for axis in (0, 1)]).mean(0)
        assert abs(found[edges].mean() / found[elsewhere].mean() - 1) > 0.1

    def test_weights_cover_every_pixel(self):
        around = TileGeometry(halo=94, stride=16, cut=0)
        for length in (1, 15, 64, 333):
            for px in (1, 32, 100, 207):
                axis = sliding_window._Axis.over(length, px, around)
                assert axis.total_weights().min() > 1e-4


class TestAxis:
    @pytest.mark.parametrize("cut", [0, 92])
    @pytest.mark.parametrize("px", [0, 208, 300, 572])
    def test_insides_lie_side_by_side_at_multiples_of_the_stride(self, px, cut):
        around = TileGeometry(0 if cut else 94, 16, cut, 12 if cut else 0)
        axis = sliding_window._Axis.over(1000, px, around)
        # The last one ends with the image, so it overlaps the one before.
        assert set(axis.total_weights()) <= {1, 2}
        counted = [axis.output(number)[:2] for number in range(len(axis.starts))]
        for (_, end), (begin, _) in itertools.pairwise(counted[:-1]):
            assert begin == end
        assert (counted[0][0], counted[-1][1]) == (0, 1000)
        assert all((start + cut) % 16 == 0 for start in axis.starts)
        assert axis.starts[0] == -cut
        # As far as the layers need, 1000 pixels make 63 times 16.
        assert axis.starts[-1] + axis.size <= 1008 + 2 * cut + 15
        if cut:
            # 572 is 16 * 32 + 60: unpadded convolutions see even sizes at each pooling.
            assert (axis.size - 60) % 16 == 0
        else:
            assert axis.size % 16 == 0

    def test_paper_window_of_572_gives_384_of_its_388_pixels(self):
        around = TileGeometry(halo=0, stride=16, cut=92, remainder=12)
        axis = sliding_window._Axis.over(2000, 572, around)
        assert axis.size == 572
        assert np.diff(axis.starts)[:-1].tolist() == [384] * (len(axis.starts) - 2)
        assert axis.starts[0] == -92


class TestSlidingWindow:
    def test_probabilities_are_those_of_the_model(self):
        # Up to the edges, where a network that has seen crops knows zeros beyond them.
        model = make_network(classes=3, base_filters=4, depth=2)
        image = image_of(94, 97)
        expected = keras.ops.softmax(model(image[None, ..., None], training=False))[0]
        found = window_of(model)(image)
        np.testing.assert_allclose(found, np.asarray(expected), atol=1e-5)
        np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)

    @pytest.mark.parametrize(("tta", "symmetric"), [("none", False), ("dihedral", True)])
    def test_dihedral_average_turns_with_the_image(self, tta, symmetric):
        # Sizes are multiples of the stride, so that a turned image meets the same poolings.
        model = make_network(classes=2, base_filters=4, depth=1)
        window = window_of(model, tta=tta)
        image = image_of(32, 64)
        straight = window(image)
        turned = np.rot90(window(np.rot90(image).copy()), -1)
        mirrored = window(image[:, ::-1].copy())[:, ::-1]
        assert np.allclose(turned, straight, atol=1e-5) == symmetric
        assert np.allclose(mirrored, straight, atol=1e-5) == symmetric

    def test_flips_average_mirrors_with_the_image_and_does_not_turn(self):
        window = window_of(make_network(classes=2, base_filters=4, depth=1), tta="flips")
        image = image_of(32, 64)
        straight = window(image)
        np.testing.assert_allclose(window(image[::-1].copy())[::-1], straight, atol=1e-5)
        np.testing.assert_allclose(window(image[:, ::-1].copy())[:, ::-1], straight, atol=1e-5)
        assert not np.allclose(np.rot90(window(np.rot90(image).copy()), -1), straight, atol=1e-5)

    def test_every_size_and_setting_is_one_trace_even_one_pixel(self, traces):
        network = InferenceNetwork(make_network(classes=3, depth=2, base_filters=2))
        for settings in (dict(window_px=64), dict(window_px=32), dict(tta="dihedral")):
            window = SlidingWindow(network, **settings)
            for shape in ((1, 1), (7, 30), (65, 64), (200, 3)):
                assert window(np.zeros(shape, np.uint8)).shape == (*shape, 3)
        assert traces == ["uint8"]

    def test_float_images_are_those_of_bytes(self):
        window = window_of(make_network(classes=3, channels=3, depth=2, base_filters=2))
        image = image_of(20, 30, 3)
        np.testing.assert_allclose(window(image), window(image.astype(np.float32)), atol=1e-6)

    def test_precision_can_be_chosen(self):
        model = make_network(classes=2, base_filters=8, depth=2)
        image = image_of(64, 64)
        exact = window_of(model)(image)
        rounded = window_of(model, precision="bfloat16")(image)
        deviation = np.abs(exact - rounded).max()
        assert 0 < deviation < 0.05


class TestRefresh:
    @pytest.mark.parametrize("precision", [None, "bfloat16"])
    def test_weights_that_have_changed_are_taken_over_without_a_new_trace(self, traces, precision):
        model = make_network(classes=3, depth=2, base_filters=4, normalization="batch", dropout=0.2)
        window = window_of(model, precision=precision)
        images = image_of(37, 53), image_of(37, 53).astype(np.float32)
        found = [window(image) for image in images]
        rng = np.random.default_rng(0)
        for _ in range(3):
            for variable in model.variables:
                if variable.name != "calls":
                    variable.assign(np.abs(variable.numpy() + rng.normal(0, 0.2, variable.shape)))
            for image, before in zip(images, found, strict=True):
                np.testing.assert_array_equal(window(image), before)
            window.refresh()
            found = [window(image) for image in images]
        assert traces == ["uint8", "float32"]
        fresh = window_of(model, precision=precision)
        for image, probabilities in zip(images, found, strict=True):
            np.testing.assert_array_equal(fresh(image), probabilities)

    def test_all_windows_of_a_network_have_its_new_weights(self):
        model = make_network(classes=2, depth=1, base_filters=2)
        network, image = InferenceNetwork(model), image_of(20, 20)
        one, other = SlidingWindow(network), SlidingWindow(network, tta="flips")
        before = other(image)
        model.get_layer("head").bias.assign([3.0])
        one.refresh()
        assert (other(image)[..., 1] > before[..., 1]).all()


def looking_everywhere(*, valid=False):
    """A network that adds the mean of the image to what each pixel sees."""
    layers = keras.layers
    images = keras.Input((None, None, 1))
    x = layers.Rescaling(1 / 255)(images)
    for _ in range(2):
        x = layers.Conv2D(2, 3, padding="valid" if valid else "same", kernel_initializer="ones")(x)
    x = layers.UpSampling2D(2)(layers.MaxPooling2D(2)(x))
    x = layers.Add()([x, layers.GlobalAveragePooling2D(keepdims=True)(x)])
    constant = keras.initializers.Constant(0.02)
    return keras.Model(images, layers.Conv2D(1, 1, kernel_initializer=constant)(x))


class TestNetworkThatLooksEverywhere:
    def test_small_image_is_one_pass(self):
        model, image = looking_everywhere(), image_of(64, 50)
        expected = keras.ops.sigmoid(model(image[None, ..., None]))[0, ..., 0]
        for window_px in (0, 64, 200):
            found = window_of(model, window_px=window_px)(image)[..., 1]
            np.testing.assert_allclose(found, expected, atol=1e-6)

    @pytest.mark.parametrize("valid", [False, True])
    def test_windows_overlap_by_half_and_are_blended(self, valid):
        model = looking_everywhere(valid=valid)
        geometry = tile_geometry(model)
        assert (geometry.halo, geometry.cut) == (None, 2 * valid)
        axis = sliding_window._Axis.over(200, 64, geometry)
        inside = axis.given[geometry.cut : axis.size - geometry.cut]
        np.testing.assert_array_equal(axis.given[: geometry.cut], 0)
        assert (inside > 0).all()
        assert inside.argmax() in (len(inside) // 2 - 1, len(inside) // 2)
        assert set(np.diff(axis.starts)[:-1]) == {len(inside) // 2 // 2 * 2}
        assert axis.total_weights().min() > 1e-4
        # Of an image of one grey value every window has the mean of the whole.
        found = window_of(model, window_px=64)(np.full((200, 150), 90, np.uint8))
        assert found.shape == (200, 150, 2)
        inner = found[8:-8, 8:-8, 1]
        np.testing.assert_allclose(inner, inner.mean(), atol=0.02)

    def test_network_whose_size_is_not_known_is_refused_if_it_is_another(self):
        @keras.saving.register_keras_serializable(package="tests")
        class Cut(keras.layers.Layer):
            def call(self, x):
                return x[:, 1:-1, 1:-1]

            def compute_output_spec(self, x):
                return keras.KerasTensor((None, None, None, x.shape[-1]), dtype=x.dtype)

        images = keras.Input((None, None, 1))
        model = keras.Model(images, keras.layers.Conv2D(1, 1)(Cut()(images)))
        with pytest.raises(ValueError, match=r"logits of \(8, 8\) pixels .* gave \(6, 6\)"):
            window_of(model)(image_of(8, 8))
