import cv2
import keras
import numpy as np
import pytest

from unet_core.inference import sliding_window
from unet_core.inference.sliding_window import SlidingWindow
from unet_core.models.unet import make_unet, tile_geometry

# The smallest window that is larger than twice the halo and a stride: 94 px, rounded up to 96, on
# each side for four levels.
EXACT_PX = 2 * 96 + 16


def image_of(height, width, channels=None, seed=0):
    shape = (height, width) if channels is None else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def in_one_pass(model, image, **settings):
    return SlidingWindow(model, window_px=0, **settings)(image)


class TestWindowsAreOnePass:
    @pytest.mark.parametrize("decoder", ["transpose", "upsample"])
    @pytest.mark.parametrize("shape", [(301, 417), (256, 500)])
    def test_windows_larger_than_the_halo_equal_one_pass(self, shape, decoder):
        model = make_unet(classes=2, base_filters=4, decoder=decoder, batch_norm=True)
        image = image_of(*shape)
        # 109 px, rounded up to 112, with the upsampling decoder.
        px = EXACT_PX if decoder == "transpose" else 2 * 112 + 16
        found = SlidingWindow(model, window_px=px)(image)
        assert found.shape == (*shape, 2)
        np.testing.assert_allclose(found, in_one_pass(model, image), atol=1e-4)

    def test_a_smaller_margin_would_not_do(self, monkeypatch):
        model = make_unet(classes=2, base_filters=4)
        image = image_of(301, 417)
        expected = in_one_pass(model, image)
        around = sliding_window.unet.TileGeometry(halo=48, stride=16, cut=0)
        monkeypatch.setattr(sliding_window.unet, "tile_geometry", lambda _: around)
        found = SlidingWindow(model, window_px=160)(image)
        assert np.abs(found - expected).max() > 1e-4

    @pytest.mark.parametrize("shape", [(301, 417), (33, 500)])
    def test_valid_network_in_windows_equals_one_pass_and_the_layers_of_the_model(self, shape):
        model = make_unet(classes=2, base_filters=4, padding="valid")
        image = image_of(*shape)
        whole = model(image[None, ..., None], training=False).numpy()[0, ..., 0]
        found = SlidingWindow(model, window_px=300)(image)[..., 1]
        np.testing.assert_allclose(found, in_one_pass(model, image)[..., 1], atol=1e-4)
        np.testing.assert_allclose(found, 1 / (1 + np.exp(-whole)), atol=1e-4)

    @pytest.mark.parametrize("tta", ["flips", "dihedral"])
    def test_averages_over_copies_are_equal_too(self, tta):
        model = make_unet(classes=3, channels=3, base_filters=4, depth=2)
        # Halo of two levels: 22 px, rounded up to 24.
        assert tile_geometry(model).halo == 22
        image = image_of(75, 101, 3)
        found = SlidingWindow(model, tta=tta, window_px=52)(image)
        np.testing.assert_allclose(found, in_one_pass(model, image, tta=tta), atol=1e-4)

    def test_bands_are_the_whole_from_top_to_bottom_and_reading_stays_near(self):
        model = make_unet(classes=2, base_filters=2, depth=2)
        image = image_of(211, 60)
        reads = []

        def read(first, last):
            reads.append((first, last))
            return image[first:last, :, None]

        window = SlidingWindow(model, window_px=64)
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

    def test_no_seam_where_windows_meet(self, monkeypatch):
        # Random weights, and windows of half of what the network looks at.
        model = make_unet(classes=2, base_filters=8, seed=3)
        image = cv2.GaussianBlur(image_of(720, 720), (0, 0), 3)
        image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX)
        axis = sliding_window._Axis.over(720, 96, tile_geometry(model))
        assert axis.starts[1] - axis.starts[0] == 48
        found = SlidingWindow(model, window_px=96)(image)[..., 1]
        assert self.seam(found, axis, 16) == pytest.approx(1, abs=0.05)

        # Windows side by side, each pixel from one of them: their zero borders show.
        around = sliding_window.unet.TileGeometry(halo=0, stride=16, cut=0)
        axis = sliding_window._Axis.over(720, 96, around)
        monkeypatch.setattr(sliding_window.unet, "tile_geometry", lambda _: around)
        abutting = SlidingWindow(model, window_px=96)(image)[..., 1]
        edges = np.array(axis.starts[1:]) - 1
        elsewhere = np.setdiff1d(np.arange(15, 719, 16), edges)
        found = np.stack([steps(abutting, axis) for axis in (0, 1)]).mean(0)
        assert abs(found[edges].mean() / found[elsewhere].mean() - 1) > 0.1

    def test_weights_cover_every_pixel(self):
        around = sliding_window.unet.TileGeometry(halo=94, stride=16, cut=0)
        for length in (1, 15, 64, 333):
            for px in (1, 32, 100, 207):
                axis = sliding_window._Axis.over(length, px, around)
                assert axis.total_weights().min() > 0.1


class TestAxis:
    @pytest.mark.parametrize("cut", [0, 92])
    @pytest.mark.parametrize("px", [0, 208, 300, 572])
    def test_insides_lie_side_by_side_at_multiples_of_the_stride(self, px, cut):
        around = sliding_window.unet.TileGeometry(halo=0 if cut else 94, stride=16, cut=cut)
        axis = sliding_window._Axis.over(1000, px, around)
        np.testing.assert_array_equal(axis.total_weights(), 1)
        margin = cut or 96
        assert all((start + margin) % 16 == 0 for start in axis.starts)
        if cut:
            # 572 is 16 * 32 + 60: unpadded convolutions see even sizes at each pooling.
            assert (axis.size - 60) % 16 == 0
        else:
            assert axis.size % 16 == 0

    def test_paper_window_of_572_gives_384_of_its_388_pixels(self):
        around = sliding_window.unet.TileGeometry(halo=0, stride=16, cut=92)
        axis = sliding_window._Axis.over(2000, 572, around)
        assert axis.size == 572
        assert np.diff(axis.starts).tolist() == [384] * (len(axis.starts) - 1)
        assert axis.starts[0] == -92


class TestSlidingWindow:
    def test_probabilities_are_those_of_the_model(self):
        # Far from the border one pass sees what the model sees.
        model = make_unet(classes=3, base_filters=4, depth=2)
        image = image_of(96, 96)
        expected = keras.ops.softmax(model(image[None, ..., None], training=False))[0]
        found = SlidingWindow(model)(image)
        inside = np.s_[24:-24, 24:-24]
        np.testing.assert_allclose(found[inside], np.asarray(expected)[inside], atol=1e-5)
        np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)

    @pytest.mark.parametrize(("tta", "symmetric"), [("none", False), ("dihedral", True)])
    def test_dihedral_average_turns_with_the_image(self, tta, symmetric):
        # Sizes are multiples of the stride, so that a turned image meets the same poolings.
        model = make_unet(classes=2, base_filters=4, depth=1)
        window = SlidingWindow(model, tta=tta)
        image = image_of(32, 64)
        straight = window(image)
        turned = np.rot90(window(np.rot90(image).copy()), -1)
        mirrored = window(image[:, ::-1].copy())[:, ::-1]
        assert np.allclose(turned, straight, atol=1e-5) == symmetric
        assert np.allclose(mirrored, straight, atol=1e-5) == symmetric

    def test_flips_average_mirrors_with_the_image_and_does_not_turn(self):
        window = SlidingWindow(make_unet(classes=2, base_filters=4, depth=1), tta="flips")
        image = image_of(32, 64)
        straight = window(image)
        np.testing.assert_allclose(window(image[::-1].copy())[::-1], straight, atol=1e-5)
        np.testing.assert_allclose(window(image[:, ::-1].copy())[:, ::-1], straight, atol=1e-5)
        assert not np.allclose(np.rot90(window(np.rot90(image).copy()), -1), straight, atol=1e-5)

    def test_every_size_is_one_trace_even_one_pixel(self):
        window = SlidingWindow(make_unet(classes=3, depth=2, base_filters=2), window_px=64)
        for shape in ((1, 1), (7, 30), (65, 64), (200, 3)):
            assert window(np.zeros(shape, np.uint8)).shape == (*shape, 3)
        (run,) = window._runs.values()
        assert run.experimental_get_tracing_count() == 1

    def test_float_images_are_those_of_bytes(self):
        window = SlidingWindow(make_unet(classes=3, channels=3, depth=2, base_filters=2))
        image = image_of(20, 30, 3)
        np.testing.assert_allclose(window(image), window(image.astype(np.float32)), atol=1e-6)

    def test_precision_can_be_chosen(self):
        model = make_unet(classes=2, base_filters=8, depth=2)
        image = image_of(64, 64)
        exact = SlidingWindow(model)(image)
        rounded = SlidingWindow(model, precision="bfloat16")(image)
        deviation = np.abs(exact - rounded).max()
        assert 0 < deviation < 0.05
