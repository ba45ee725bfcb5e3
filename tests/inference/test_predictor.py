import keras
import numpy as np
import pytest
import tensorflow as tf

from unet_core.inference.predictor import Predictor
from unet_core.models.unet import make_unet


def brightness_model():
    """Logits that are the pixel values over 100, so that each pixel can be reckoned by hand."""
    inputs = keras.Input((None, None, 1))
    return keras.Model(inputs, keras.layers.Rescaling(0.01, dtype="float32")(inputs))


def corner_model():
    """Logits of a convolution that looks to the right and below only."""
    inputs = keras.Input((None, None, 1))
    layer = keras.layers.Conv2D(1, 3, padding="same", use_bias=False)
    model = keras.Model(inputs, layer(keras.layers.Rescaling(1 / 255)(inputs)))
    layer.kernel.assign(np.array([0, 0, 0, 0, 1, 2, 0, 3, 5], np.float32).reshape(3, 3, 1, 1))
    return model


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (21, 34)).astype(np.uint8)


class TestPredictor:
    def test_probabilities_are_of_the_pixels_they_stand_at(self, image):
        found = Predictor(brightness_model(), margin=5)(image)
        expected = 1 / (1 + np.exp(-image.astype(float) / 100))
        assert found.shape == (21, 34, 2)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found[..., 1], expected, rtol=1e-5)
        np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-6)

    @pytest.mark.parametrize("tta", ["none", "flips", "dihedral"])
    def test_averaging_copies_of_a_pixelwise_network_changes_nothing(self, image, tta):
        expected = Predictor(brightness_model(), margin=3)(image)
        found = Predictor(brightness_model(), tta=tta, margin=3)(image)
        np.testing.assert_allclose(found, expected, rtol=1e-5)

    @pytest.mark.parametrize(("tta", "symmetric"), [("none", False), ("dihedral", True)])
    def test_dihedral_average_turns_with_the_image(self, image, tta, symmetric):
        predictor = Predictor(corner_model(), tta=tta, margin=4)
        turned = np.rot90(predictor(np.rot90(image)), -1)
        mirrored = predictor(image[:, ::-1])[:, ::-1]
        straight = predictor(image)
        assert np.allclose(turned, straight, atol=1e-5) == symmetric
        assert np.allclose(mirrored, straight, atol=1e-5) == symmetric

    def test_flips_average_mirrors_with_the_image_and_does_not_turn(self, image):
        predictor = Predictor(corner_model(), tta="flips", margin=4)
        straight = predictor(image)
        np.testing.assert_allclose(predictor(image[::-1])[::-1], straight, atol=1e-5)
        np.testing.assert_allclose(predictor(image[:, ::-1])[:, ::-1], straight, atol=1e-5)
        assert not np.allclose(np.rot90(predictor(np.rot90(image)), -1), straight, atol=1e-5)

    def test_every_size_is_one_trace_even_one_pixel(self):
        predictor = Predictor(make_unet(classes=3, depth=2, base_filters=2))
        for shape in ((1, 1), (7, 30), (65, 64)):
            assert predictor(np.zeros(shape, np.uint8)).shape == (*shape, 3)
        (run,) = predictor._runs.values()
        assert run.experimental_get_tracing_count() == 1

    def test_colour_and_float_images_are_taken(self):
        predictor = Predictor(make_unet(classes=3, channels=3, depth=2, base_filters=2))
        image = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
        np.testing.assert_allclose(predictor(image), predictor(image.astype(np.float32)), atol=1e-6)

    def test_margin_is_a_mirror(self):
        seen = []

        class Spy(keras.layers.Layer):
            def call(self, inputs):
                tf.py_function(lambda x: seen.append(x.numpy()), [inputs], [])
                return tf.cast(inputs, tf.float32)

        inputs = keras.Input((None, None, 1))
        image = np.arange(12, dtype=np.uint8).reshape(3, 4)
        Predictor(keras.Model(inputs, Spy()(inputs)), margin=2)(image)
        np.testing.assert_array_equal(seen[-1][0, ..., 0], np.pad(image, 2, mode="reflect"))
