import numpy as np
import pytest

from unet_core.data import balance


class TestClassWeights:
    def test_inverse_weighs_all_classes_alike(self):
        # 100 pixels, 2 classes: 100 / (2 * 80) and 100 / (2 * 20).
        np.testing.assert_allclose(balance.class_weights([80, 20], "inverse"), [0.625, 2.5])

    def test_median_frequency_leaves_the_median_class_at_1(self):
        found = balance.class_weights([10, 40, 50], "median_frequency")
        np.testing.assert_allclose(found, [4, 1, 0.8])

    def test_effective_number_matches_its_formula_and_has_mean_1(self):
        counts = np.array([10, 1000, 10**7])
        raw = (1 - 0.999) / (1 - 0.999 ** counts.astype(float))
        found = balance.class_weights(counts, "effective_number", beta=0.999)
        np.testing.assert_allclose(found, raw / raw.mean(), rtol=1e-9)

    @pytest.mark.parametrize("how", balance.METHODS)
    def test_class_that_never_occurs_weighs_nothing_and_does_not_count(self, how):
        found = balance.class_weights([30, 0, 70], how)
        assert found[1] == 0
        np.testing.assert_allclose(found[[0, 2]], balance.class_weights([30, 70], how))


class TestOrderWithEqualGroups:
    def order(self, groups, seed=0):
        return balance.order_with_equal_groups(groups, rng=np.random.default_rng(seed))

    def test_large_group_is_trimmed_and_small_one_repeats_evenly(self):
        groups = ["a"] * 10 + ["b"] * 2
        order = self.order(groups)
        counts = np.bincount(order, minlength=12)
        assert len(order) == 12
        assert counts[:10].sum() == counts[10:].sum() == 6
        assert counts[:10].max() == 1
        assert counts[10:].tolist() == [3, 3]

    def test_remainder_goes_to_some_of_the_groups(self):
        groups = ["a"] * 5 + ["b"] * 2 + ["c"]
        for seed in range(5):
            names = [groups[n] for n in self.order(groups, seed)]
            assert sorted(names.count(name) for name in "abc") == [2, 3, 3]

    def test_trimmed_part_differs_from_epoch_to_epoch(self):
        groups = ["a"] * 10 + ["b"] * 2
        assert len({tuple(sorted(self.order(groups, seed))) for seed in range(10)}) > 5

    def test_same_generator_gives_the_same_order(self):
        groups = ["a"] * 10 + ["b"] * 2
        np.testing.assert_array_equal(self.order(groups, 3), self.order(groups, 3))


class TestIsForced:
    @pytest.mark.parametrize("share", [0, 0.1, 1 / 3, 0.5, 0.75, 1])
    @pytest.mark.parametrize("size", [1, 4, 7])
    def test_every_batch_has_its_share_to_within_one(self, share, size):
        for first in range(0, 200, size):
            forced = sum(balance.is_forced(n, share) for n in range(first, first + size))
            assert abs(forced - share * size) <= 1

    def test_large_positions_work_too(self):
        assert sum(balance.is_forced(10**12 + n, 0.25) for n in range(400)) == 100


class TestPixelOf:
    def test_pixel_is_of_one_of_the_classes_each_equally_likely(self):
        mask = np.zeros((20, 20), np.uint8)
        mask[3, 4] = 1
        mask[10:] = 2
        rng = np.random.default_rng(0)
        found = [mask[balance.pixel_of(mask, (1, 2), rng)] for _ in range(1000)]
        assert set(found) == {1, 2}
        # 500 expected, a standard deviation of 16.
        assert abs(found.count(1) - 500) < 80

    def test_all_pixels_of_a_class_occur(self):
        mask = np.eye(4, dtype=np.uint8)
        rng = np.random.default_rng(0)
        assert {balance.pixel_of(mask, (1,), rng) for _ in range(200)} == {(n, n) for n in range(4)}

    def test_pixel_of_a_class_that_overlaps_others_counts(self):
        # Only the last is of the second class, 2 or 3; 255 is of none.
        mask = np.array([[0, 1, 255, 3]], np.uint8)
        rng = np.random.default_rng(0)
        found = {balance.pixel_of(mask, (1,), rng, overlapping=True) for _ in range(50)}
        assert found == {(0, 3)}

    def test_mask_without_the_classes_has_none(self):
        rng = np.random.default_rng(0)
        assert balance.pixel_of(np.zeros((3, 3), np.uint8), (1, 2), rng) is None
