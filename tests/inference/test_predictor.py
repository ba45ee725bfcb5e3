import numpy as np
import pytest
import tifffile
from helpers.brightness import make_brightness

from unet_core.data import images, tiff_bands
from unet_core.data.intensities import Scaling
from unet_core.errors import UserError
from unet_core.inference.network import InferenceNetwork
from unet_core.inference.predictor import Predictor
from unet_core.inference.sliding_window import SlidingWindow


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (21, 34)).astype(np.uint8)


def expected(grey):
    return 1 / (1 + np.exp(-(grey.astype(float) - 100.5) / 20))


class TestPredictor:
    def test_probabilities_are_of_the_pixels_they_stand_at(self, image):
        found = Predictor(make_brightness())(image)
        assert found.shape == (21, 34, 2)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found[..., 1], expected(image), rtol=1e-5)
        np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-6)

    @pytest.mark.parametrize("tta", ["none", "flips", "dihedral"])
    @pytest.mark.parametrize("window_px", [0, 16])
    def test_copies_and_windows_change_nothing_of_a_pixelwise_network(self, image, tta, window_px):
        predictor = Predictor(make_brightness(), tta=tta, window_px=window_px)
        np.testing.assert_allclose(predictor(image)[..., 1], expected(image), rtol=1e-4)

    def test_three_classes_are_a_softmax(self, image):
        trained = make_brightness(classes="0:a,1:b,2:c")
        found = Predictor(trained)(image)
        # Logits 0, 0 and (grey - 100.5) / 20.
        third = np.exp((image - 100.5) / 20)
        np.testing.assert_allclose(found[..., 2], third / (2 + third), rtol=1e-4)
        assert Predictor(trained).classes.names == ("a", "b", "c")

    def test_images_are_converted_and_scaled_as_in_training(self, image):
        predictor = Predictor(make_brightness())
        # 16 bits: 257 is one level of 255. Grey repeated as RGB has the luma of the grey.
        np.testing.assert_allclose(
            predictor(image.astype(np.uint16) * 257)[..., 1], expected(image), rtol=1e-4
        )
        np.testing.assert_allclose(
            predictor(np.repeat(image[..., None], 3, -1))[..., 1], expected(image), rtol=1e-5
        )
        with pytest.raises(UserError, match=r"floats from 0 to 255"):
            predictor(image.astype(np.float32))

    def test_batches_lists_and_paths_are_taken(self, image, tmp_path):
        predictor = Predictor(make_brightness())
        one = predictor(image)
        images.write_png(tmp_path / "a.png", image)
        np.testing.assert_array_equal(predictor(tmp_path / "a.png"), one)
        np.testing.assert_array_equal(predictor(str(tmp_path / "a.png")), one)
        batch = predictor(np.stack([image, image[::-1]])[..., None])
        np.testing.assert_allclose(batch, [one, one[::-1]], rtol=1e-6)
        several = predictor([image, tmp_path / "a.png", image[:5]])
        assert [each.shape for each in several] == [(21, 34, 2), (21, 34, 2), (5, 34, 2)]

    def test_channels_of_files_are_those_of_training(self, image, tmp_path):
        trained = make_brightness(channels=1, use_channels=(3,))
        several = np.dstack([image[::-1]] * 3 + [image, image[::-1]])
        np.save(tmp_path / "a.npy", several)
        expected_of_one = Predictor(make_brightness())(image)
        np.testing.assert_array_equal(Predictor(trained)(tmp_path / "a.npy"), expected_of_one)
        np.testing.assert_array_equal(Predictor(trained)(several[..., :4]), expected_of_one)
        np.testing.assert_array_equal(Predictor(trained)(image), expected_of_one)
        with pytest.raises(UserError, match=r"a\.npy: has 5 channel\(s\).*takes 1"):
            Predictor(make_brightness())(tmp_path / "a.npy")

    def test_byte_order_does_not_matter(self, image):
        predictor = Predictor(make_brightness())
        deep = np.repeat(image[..., None], 3, -1).astype(np.uint16) * 257
        np.testing.assert_array_equal(predictor(deep.astype(">u2")), predictor(deep))

    @pytest.mark.parametrize(
        ("shape", "words"),
        [
            ((5, 20, 30), "a stack of grey images is given as a list"),
            ((3, 20, 30), "np.moveaxis"),
            ((20, 30, 7), "at most 4"),
            ((20,), "Expected an image"),
            ((1, 2, 20, 30, 1), "Expected an image"),
        ],
    )
    def test_axes_it_cannot_know_are_refused(self, shape, words):
        with pytest.raises(UserError, match=words):
            Predictor(make_brightness())(np.zeros(shape, np.uint8))

    def test_fixed_scaling_is_applied(self, image):
        predictor = Predictor(make_brightness(intensities="fixed:50,10"))
        grey = 127.5 + 63.75 * (image.astype(float) - 50) / 10
        clipped = np.maximum(grey, 0)  # ReLU after the shift by 2.
        np.testing.assert_allclose(predictor(image)[..., 1], expected(clipped), rtol=1e-3)

    @pytest.mark.parametrize("intensities", ["range", "percentile:1,99", "zscore"])
    def test_rows_of_a_file_are_scaled_as_the_whole(self, image, tmp_path, intensities):
        images.write_png(tmp_path / "a.png", image)
        predictor = Predictor(make_brightness(intensities=intensities))
        whole = predictor(image)
        with tiff_bands.open_rows(tmp_path / "a.png") as opened:
            bands = predictor.window.bands(predictor.reader(opened), *image.shape)
            found = np.concatenate([probabilities for _, probabilities in bands])
        np.testing.assert_allclose(found, whole, atol=1e-5)


class TestOfWindow:
    def test_predictor_of_a_window_is_that_of_the_network(self, image):
        trained = make_brightness(intensities="fixed:50,10")
        window = SlidingWindow(InferenceNetwork(trained.model), tta="flips")
        found = Predictor.of_window(
            window, classes=trained.classes, scaling=Scaling.parse("fixed:50,10")
        )
        assert found.window is window
        assert (found.channels, found.classes) == (1, trained.classes)
        np.testing.assert_array_equal(found(image), Predictor(trained, tta="flips")(image))


class TestOutputThatIsNotFinite:
    """An infinite weight of the head: the grey value 0 gives 0 * inf = NaN, others p = 1."""

    @pytest.mark.parametrize("classes", ["0:a,255:b", "0:a,1:b,2:c"])
    @pytest.mark.parametrize("tta", ["none", "flips"])
    def test_predictor_says_so_and_in_how_many_pixels(self, image, classes, tta):
        trained = make_brightness(classes=classes)
        head = trained.model.get_layer("head")
        head.kernel.assign(np.full(head.kernel.shape, np.inf))
        predictor = Predictor(trained, tta=tta)
        dark = np.zeros_like(image)
        with pytest.raises(
            UserError, match=r"^The network's output is not finite in 714 of 714 pi"
        ):
            predictor(dark)
        if classes == "0:a,255:b":
            light = np.maximum(image, 1)
            assert (predictor(light)[..., 1] == 1).all()
            light[3, 4] = light[20, 33] = 0
            with pytest.raises(UserError, match=r"in 2 of 714 pixels.*`precision` float32"):
                predictor(light)


class TestWrongArguments:
    @pytest.mark.parametrize(
        ("shape", "dtype"),
        [((4, 4), "float64"), ((4, 4, 3), "int64"), ((4,), "uint8"), ((0, 4), "uint8")],
    )
    def test_image_of_another_kind_is_one_message(self, shape, dtype):
        with pytest.raises(UserError, match=f"uint8, uint16, float32.*Received .* of {dtype}"):
            Predictor(make_brightness())(np.zeros(shape, dtype))

    def test_unknown_averaging_is_named(self):
        with pytest.raises(UserError, match=r"`tta` \('mirror'\) must be one of none, flips"):
            Predictor(make_brightness(), tta="mirror")


class TestResize:
    """Of a checkerboard of 0 and 200, halved, the network sees 100 everywhere."""

    @pytest.fixture
    def checks(self):
        return (200 * (np.indices((12, 18)).sum(0) % 2)).astype(np.uint8)

    def test_network_sees_means_and_probabilities_have_the_size_of_the_image(self, checks):
        found = Predictor(make_brightness(resize="0.5"))(checks)
        assert found.shape == (12, 18, 2)
        np.testing.assert_allclose(found[..., 1], expected(np.full((12, 18), 100)), rtol=1e-5)

    def test_size_of_pixels_is_given_or_that_of_the_file(self, checks, tmp_path):
        trained = make_brightness(resize="1um", pixel_size_um=0.5)
        half = expected(np.full((12, 18), 100))
        np.testing.assert_allclose(Predictor(trained)(checks)[..., 1], half, rtol=1e-5)
        own = Predictor(trained, pixel_size_um=1.0)
        np.testing.assert_allclose(own(checks)[..., 1], expected(checks), rtol=1e-4)
        of_files = Predictor(trained, pixel_size_um=0.0)
        with pytest.raises(UserError, match="an array or a frame does not say"):
            of_files(checks)
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, checks, resolution=(2e4, 2e4), resolutionunit="CENTIMETER")
        np.testing.assert_allclose(of_files(path)[..., 1], half, rtol=1e-5)
