import keras
import numpy as np
import pytest
import tensorflow as tf

from unet_core import losses
from unet_core.models.build import make_network
from unet_core.models.ensemble import make_ensemble
from unet_core.models.geometry import tile_geometry
from unet_core.models.layers import MeanOfNetworks

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 21, 34, 1)).astype(np.uint8)


def networks(**kwargs):
    kwargs = {"classes": 2, "depth": 2, "base_filters": 2, **kwargs}
    found = [make_network(seed=seed, **kwargs) for seed in range(3)]
    for seed, model in enumerate(found):
        rng = np.random.default_rng(seed)
        for variable in model.variables:
            if variable.name in ("beta", "bias", "moving_mean"):
                variable.assign(rng.normal(0, 0.5, variable.shape))
    return found


class TestMeanOfNetworks:
    def test_one_logit_is_that_of_the_mean_probability(self):
        # Probabilities 0.8 and 0.3: their mean is 0.55, its logit ln(0.55 / 0.45).
        logits = [np.full((1, 1, 1, 1), np.log(p / (1 - p)), np.float32) for p in (0.8, 0.3)]
        found = MeanOfNetworks()(logits)
        np.testing.assert_allclose(found, np.full((1, 1, 1, 1), np.log(0.55 / 0.45)), rtol=1e-5)

    def test_several_logits_are_those_of_the_mean_probabilities(self):
        p = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]], np.float32)
        found = MeanOfNetworks()([np.log(row)[None, None, None] + 3 for row in p])
        np.testing.assert_allclose(tf.nn.softmax(found)[0, 0, 0], [0.4, 0.25, 0.35], rtol=1e-5)

    def test_logit_of_each_overlapping_class_is_that_of_its_mean_probability(self):
        # 0.8 and 0.3 as above, 0.6 and 0.2: mean 0.4.
        p = np.array([[0.8, 0.6], [0.3, 0.2]], np.float32)
        found = MeanOfNetworks(overlapping=True)([np.log(row / (1 - row))[None] for row in p])
        np.testing.assert_allclose(tf.sigmoid(found)[0], [0.55, 0.4], rtol=1e-5)

    def test_networks_that_are_very_certain_stay_finite(self):
        logits = [np.full((1, 1, 1, 1), x, np.float32) for x in (500.0, 500.0, 500.0)]
        np.testing.assert_allclose(MeanOfNetworks()(logits), np.full((1, 1, 1, 1), 500.0))
        opposed = [np.full((1, 1, 1, 1), x, np.float32) for x in (-500.0, 500.0)]
        np.testing.assert_allclose(MeanOfNetworks()(opposed), np.zeros((1, 1, 1, 1)), atol=1e-4)


class TestMakeEnsemble:
    @pytest.mark.parametrize(
        "kwargs",
        [
            {},
            {"classes": 3, "normalization": "batch", "dropout": 0.5},
            {"padding": "valid", "depth": 1},
            {"encoder": "residual", "stem_stride": 2, "normalization": "group"},
        ],
    )
    def test_probabilities_are_the_mean_of_those_of_the_networks(self, kwargs):
        models = networks(**kwargs)
        model = make_ensemble(models)
        expected = np.mean([losses.probabilities(each(IMAGES)) for each in models], 0)
        np.testing.assert_allclose(losses.probabilities(model(IMAGES)), expected, atol=1e-6)
        assert tile_geometry(model) == tile_geometry(models[0])

    def test_weights_are_copies(self):
        models = networks()
        model = make_ensemble(models)
        before = model(IMAGES).numpy()
        for variable in models[1].variables:
            variable.assign(np.zeros(variable.shape))
        np.testing.assert_array_equal(model(IMAGES), before)

    def test_file_comes_back_equal(self, tmp_path):
        model = make_ensemble(networks(classes=3))
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
        np.testing.assert_array_equal(loaded(IMAGES), model(IMAGES))

    def test_one_network_is_returned_as_it_is(self):
        model = networks()[0]
        assert make_ensemble([model]) is model

    def test_networks_of_different_classes_are_refused(self):
        with pytest.raises(ValueError, match=r"one number of channels.*\(1, 1\) and \(1, 3\)"):
            make_ensemble([networks()[0], networks(classes=3)[0]])
