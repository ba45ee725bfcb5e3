import numpy as np
import pytest

from unet_core.inference.uncertainty import disagreement, entropy


class TestEntropy:
    @pytest.mark.parametrize("classes", [2, 3, 7])
    def test_certain_is_0_and_even_odds_are_1(self, classes):
        certain, even = np.eye(classes)[0], np.full(classes, 1 / classes)
        np.testing.assert_allclose(entropy(np.stack([certain, even])), [0, 1], atol=1e-6)

    def test_two_classes_match_the_hand_value(self):
        # -(0.25 ln 0.25 + 0.75 ln 0.75) / ln 2 = 0.5 + 0.75 * log2(4 / 3) = 0.811278.
        assert entropy(np.array([[0.25, 0.75]]))[0] == pytest.approx(0.811278, abs=1e-6)


class TestDisagreement:
    def test_half_for_and_half_against_is_a_half(self):
        found = disagreement(np.array([[[1.0, 0.0]], [[0.0, 1.0]]]))
        np.testing.assert_allclose(found, [0.5])

    def test_networks_that_agree_are_0_however_uncertain(self):
        assert disagreement(np.full((5, 1, 2), 0.5))[0] == 0

    def test_class_that_differs_most_counts(self):
        # Class 0: 0.2 and 0.4, deviation 0.1. Class 1: equal. Class 2: 0.5 and 0.3, 0.1.
        # Class 1 would shrink a mean to 0.0667.
        found = disagreement(np.array([[[0.2, 0.3, 0.5]], [[0.4, 0.3, 0.3]]]))
        np.testing.assert_allclose(found, [0.1], rtol=1e-6)
