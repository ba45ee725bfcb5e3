"""Encoders alone, for other tasks."""

import keras
import numpy as np
import pytest

from unet_core.errors import UserError
from unet_core.models.build import make_backbone, make_network
from unet_core.models.encoders.applications import IMAGENET_DEVIATION, IMAGENET_MEAN


def pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.float32)


class TestBackbone:
    def test_gives_the_deepest_features_of_the_network(self):
        network = make_network(classes=2, channels=3, depth=3, base_filters=4, seed=5)
        backbone = make_backbone("unet", depth=3, base_filters=4, seed=5)
        names = [layer.name for layer in backbone.layers if layer.variables]
        deepest = keras.Model(network.input, network.get_layer(names[-1]).output)
        # 20 x 13 are padded to 24 x 16: 3 x 2 at the stride 8; 4 * 2**3 channels.
        found = backbone(pixels(1, 20, 13, 3)).numpy()
        assert found.shape == (1, 3, 2, 32)
        np.testing.assert_array_equal(found, deepest(pixels(1, 20, 13, 3)).numpy())

    def test_is_as_deep_as_it_can_be(self):
        assert make_backbone("unet", base_filters=1).output.shape[-1] == 2**4
        # That of Keras without its classifier has 1280 channels at the stride 32.
        backbone = make_backbone("mobilenet_v2")
        assert backbone(pixels(1, 64, 64, 3)).shape == (1, 2, 2, 1280)

    def test_has_the_features_of_keras_with_its_weights(self, tmp_path):
        theirs = keras.applications.EfficientNetB0(
            include_top=False, weights=None, input_shape=(None, None, 3)
        )
        normalization = next(
            layer for layer in theirs.layers if isinstance(layer, keras.layers.Normalization)
        )
        normalization.adapt_mean.assign(np.reshape(IMAGENET_MEAN, normalization.adapt_mean.shape))
        # The files hold the deviation, and Keras divides by its root once more.
        shape = normalization.adapt_variance.shape
        normalization.adapt_variance.assign(np.reshape(IMAGENET_DEVIATION, shape))
        theirs.save_weights(tmp_path / "b0.weights.h5")
        normalization.adapt_variance.assign(np.square(np.reshape(IMAGENET_DEVIATION, shape)))
        normalization.finalize_state()
        ours = make_backbone("efficientnet_b0", weights=tmp_path / "b0.weights.h5")
        image = pixels(1, 64, 64, 3)
        expected = theirs(image).numpy()
        np.testing.assert_allclose(
            ours(image).numpy(), expected, rtol=0, atol=1e-5 * np.abs(expected).max()
        )

    def test_weights_must_be_there_for_every_layer(self, tmp_path):
        make_backbone("unet", depth=1, base_filters=2).save_weights(tmp_path / "one.weights.h5")
        with pytest.raises(UserError, match="has no weights for 4 layers"):
            make_backbone("unet", depth=2, base_filters=2, weights=tmp_path / "one.weights.h5")

    def test_unknown_or_impossible_ones_are_refused(self):
        with pytest.raises(UserError, match="`encoder` \\('vgg'\\) must be one of"):
            make_backbone("vgg")
        with pytest.raises(UserError, match="`depth` \\(7\\)"):
            make_backbone("mobilenet_v2", depth=7)
