import keras
import numpy as np
import pytest
import tensorflow as tf

from unet_core.models.normalization import GroupNorm


def with_gradients(layer, images, upstream):
    """Returns the outputs of a built layer and its gradients: of the images and variables."""
    with tf.GradientTape() as tape:
        tape.watch(images)
        outputs = layer(images)
    sources = [images, *(v.value for v in layer.trainable_variables)]
    return outputs, *tape.gradient(outputs, sources, upstream)


class TestGroupNorm:
    @pytest.mark.parametrize("groups", [1, 2, 6])
    def test_values_and_gradients_are_those_of_keras(self, groups):
        rng = np.random.default_rng(groups)
        images, upstream = (
            tf.constant(rng.normal(3, 2, (3, 5, 7, 6)).astype(np.float32)) for _ in range(2)
        )
        ours = GroupNorm(groups, epsilon=1e-3)
        theirs = keras.layers.GroupNormalization(groups, epsilon=1e-3)
        for layer in (ours, theirs):
            layer.build(images.shape)
            layer.gamma.assign(np.linspace(0.5, 2, 6))
            layer.beta.assign(np.linspace(-1, 1, 6))
        found, expected = (with_gradients(each, images, upstream) for each in (ours, theirs))
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)

    def test_each_image_is_normalised_by_itself(self):
        images = np.random.default_rng(0).normal(0, 1, (2, 4, 4, 4)).astype(np.float32)
        layer = GroupNorm(2)
        both = layer(images)
        np.testing.assert_allclose(both[1:], layer(images[1:]), atol=1e-6)
        grouped = np.reshape(both, (2, 16, 2, 2))
        np.testing.assert_allclose(grouped.mean((1, 3)), 0, atol=1e-6)
        np.testing.assert_allclose(grouped.std((1, 3)), 1, atol=1e-4)

    def test_bright_images_lose_no_digits(self):
        images = np.random.default_rng(0).normal(0, 1, (1, 16, 16, 2)).astype(np.float32)
        layer = GroupNorm(2)
        np.testing.assert_allclose(layer(images + 1000), layer(images), atol=1e-3)

    def test_statistics_are_float32_whatever_it_computes_in(self):
        images = np.random.default_rng(0).normal(100, 1, (1, 64, 64, 2)).astype(np.float32)
        rounded = tf.cast(images, "bfloat16")
        layer = GroupNorm(2, dtype=keras.DTypePolicy("mixed_bfloat16"))
        outputs = layer(rounded)
        assert outputs.dtype == tf.bfloat16
        expected = GroupNorm(2)(tf.cast(rounded, "float32"))
        np.testing.assert_allclose(tf.cast(outputs, "float32"), expected, rtol=0.01, atol=0.01)

    def test_channels_that_are_no_multiple_are_refused(self):
        with pytest.raises(ValueError, match="6 channels are no multiple of 4 groups"):
            GroupNorm(4)(np.zeros((1, 2, 2, 6), np.float32))

    def test_layer_is_made_again_from_its_settings(self):
        layer = GroupNorm(3, epsilon=0.1)
        again = GroupNorm.from_config(layer.get_config())
        assert (again.groups, again.epsilon) == (3, 0.1)
