import cv2
import numpy as np
import pytest

from unet_core.data.augment import Augmenter, Recipe, _cubic_weights

STRONG = Recipe(
    rotation_degrees=180,
    scale=(0.7, 1.4),
    flips=True,
    elastic_px=4.0,
    contrast=(0.6, 1.6),
    brightness=0.2,
    gamma=(0.6, 1.6),
    noise=0.1,
    noise_share=0.7,
    blur_share=0.5,
)


class HighestDraws:
    """Stands for a generator: ranges give their upper end, `random` 0, places the first one."""

    def uniform(self, low, high):
        return high

    def random(self, size=None):
        return 0.0 if size is None else np.zeros(size)

    def integers(self, low, high, size=None):
        return low if size is None else np.full(size, low)


def texture(seed=0, shape=(48, 48)):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def augment(recipe, image, mask, *, crop_size, rng):
    image_out, mask_out = np.empty((2, crop_size, crop_size), np.uint8)
    Augmenter(crop_size, recipe)(rng, image, mask, image_out, mask_out)
    return image_out, mask_out


def graded(recipe, image):
    """Returns `image` after the intensities of `recipe` at the upper ends of their ranges."""
    return augment(recipe, image, image, crop_size=len(image), rng=HighestDraws())[0]


class TestIdentity:
    def test_crop_is_cut_out_of_image_and_mask_exactly(self):
        image, mask = texture(0, (40, 56)), texture(1, (40, 56))
        found = set()
        augmenter = Augmenter(16, Recipe())
        image_out, mask_out = np.empty((2, 16, 16), np.uint8)
        for seed in range(200):
            augmenter(np.random.default_rng(seed), image, mask, image_out, mask_out)
            places = [
                (y, x)
                for y, x in np.argwhere(image[:25, :41] == image_out[0, 0])
                if np.array_equal(image[y : y + 16, x : x + 16], image_out)
            ]
            ((y, x),) = places
            np.testing.assert_array_equal(mask_out, mask[y : y + 16, x : x + 16])
            found.add((y, x))
        # 40 - 16 and 56 - 16 are the last places; 200 draws of 25 rows miss an end with
        # probability (24/25)^200 = 0.0003 at most, and the seeds are fixed.
        assert min(y for y, _ in found) == 0
        assert max(y for y, _ in found) == 24
        assert min(x for _, x in found) <= 1
        assert max(x for _, x in found) >= 39

    def test_crop_as_large_as_the_image_is_the_image(self):
        image, mask = texture(0), texture(1)
        out = augment(Recipe(), image, mask, crop_size=48, rng=np.random.default_rng(0))
        np.testing.assert_array_equal(out[0], image)
        np.testing.assert_array_equal(out[1], mask)


class TestGeometry:
    def expected_map(self, recipe, rng, crop_size, shape):
        """The inverse map, put together of 2x2 matrices; draws in the order of the code."""
        angle = np.deg2rad(rng.uniform(-recipe.rotation_degrees, recipe.rotation_degrees))
        magnification = np.exp(rng.uniform(*np.log(recipe.scale)))
        signs = np.where(rng.random(2) < 0.5, -1, 1) if recipe.flips else np.ones(2)
        top = rng.integers(0, shape[0] - crop_size + 1)
        left = rng.integers(0, shape[1] - crop_size + 1)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        matrix = turn @ np.diag(signs) / magnification
        half = (crop_size - 1) / 2
        y, x = np.mgrid[:crop_size, :crop_size] - half
        mapped = np.tensordot(matrix, np.stack([x, y]), 1)
        return mapped[0] + left + half, mapped[1] + top + half

    @pytest.mark.parametrize(
        "recipe",
        [
            Recipe(rotation_degrees=180),
            Recipe(scale=(0.5, 2.0)),
            Recipe(flips=True),
            Recipe(rotation_degrees=30, scale=(0.8, 1.2), flips=True),
        ],
    )
    def test_map_is_the_inverse_of_rotation_scale_and_flip(self, recipe):
        augmenter = Augmenter(21, recipe)
        for seed in range(8):
            drawn = augmenter._draw_map(np.random.default_rng(seed), (40, 60))
            expected = self.expected_map(recipe, np.random.default_rng(seed), 21, (40, 60))
            np.testing.assert_allclose(drawn, expected, atol=1e-4)

    def test_quarter_turn_is_that_of_numpy(self):
        image = texture()
        out = augment(Recipe(rotation_degrees=90), image, image, crop_size=48, rng=HighestDraws())
        np.testing.assert_array_equal(out[0], np.rot90(image))
        np.testing.assert_array_equal(out[1], np.rot90(image))

    def test_both_flips_turn_the_picture_round(self):
        image = texture()
        # `random` gives 0, which is below 1/2: both axes are mirrored.
        out = augment(Recipe(flips=True), image, image, crop_size=48, rng=HighestDraws())
        np.testing.assert_array_equal(out[0], image[::-1, ::-1])

    def test_magnification_of_two_halves_the_slope_of_a_ramp(self):
        ramp = np.tile(np.arange(0, 132, 4, dtype=np.uint8), (33, 1))
        out, _ = augment(Recipe(scale=(2.0, 2.0)), ramp, ramp, crop_size=33, rng=HighestDraws())
        # The centre, column 16, keeps its grey 64; the slope of 4 a pixel becomes 2.
        np.testing.assert_array_equal(out[5], 64 + 2 * (np.arange(33) - 16))

    def test_outside_of_the_image_is_mirrored(self):
        ramp = np.tile(np.arange(0, 132, 4, dtype=np.uint8), (33, 1))
        out, _ = augment(Recipe(scale=(0.5, 0.5)), ramp, ramp, crop_size=33, rng=HighestDraws())
        # Column c shows column 16 + 2 (c - 16); column 7 shows -2, the mirror of 2, with grey 8.
        assert out[16, 8] == 0
        assert out[16, 7] == 8
        assert out[16, 6] == 16

    def test_control_points_move_with_the_standard_deviation(self):
        # 33 pixels and 5 control points: these lie on the pixels 0, 8, 16, 24 and 32.
        augmenter = Augmenter(33, Recipe(elastic_px=3.0))
        rng = np.random.default_rng(0)
        at_rest = np.mgrid[:33, :33][::-1]
        shifts = []
        for _ in range(300):
            drawn = np.stack(augmenter._draw_map(rng, (33, 33))) - at_rest
            shifts.append(drawn[:, ::8, ::8].copy())
        shifts = np.stack(shifts)
        # 300 * 2 * 25 normal draws: the standard error is 1 / sqrt(30000) = 0.6 %.
        assert shifts.std() == pytest.approx(3.0, rel=0.03)
        assert abs(shifts.mean()) < 0.1
        # Every point has its own draw, in x as in y.
        assert shifts.std(axis=0).min() > 2.4
        assert abs(np.corrcoef(shifts[:, 0].ravel(), shifts[:, 1].ravel())[0, 1]) < 0.05

    def test_elastic_map_is_smooth_between_control_points(self):
        augmenter = Augmenter(33, Recipe(elastic_px=3.0))
        x, _ = augmenter._draw_map(np.random.default_rng(1), (33, 33))
        bends = np.diff(x, n=2, axis=1)
        # A cubic over 8 pixels between points that differ by about 3 * sqrt(2) bends by at most
        # some 6 * 4.2 * 2 / 64; independent shifts of pixels would bend by 3 * sqrt(6) = 7.
        assert np.abs(bends).max() < 1.5


class TestMask:
    def test_mask_holds_only_values_that_were_there(self):
        mask = np.where(texture(2) > 128, 200, 100).astype(np.uint8)
        augmenter = Augmenter(32, STRONG)
        image_out, mask_out = np.empty((2, 32, 32), np.uint8)
        for seed in range(20):
            augmenter(np.random.default_rng(seed), texture(), mask, image_out, mask_out)
            assert set(np.unique(mask_out)) == {100, 200}

    def test_image_and_mask_move_together(self):
        # Blobs of class 1 are grey 200, the rest 0: a grey of exactly 200 or 0 after linear
        # sampling comes of pixels of one class only, and the nearest is one of them.
        blurred = cv2.GaussianBlur(texture(3, (96, 96)), (0, 0), 6)
        mask = (blurred > np.median(blurred)).astype(np.uint8)
        recipe = Recipe(rotation_degrees=180, scale=(0.7, 1.4), flips=True, elastic_px=5.0)
        augmenter = Augmenter(64, recipe)
        image_out, mask_out = np.empty((2, 64, 64), np.uint8)
        for seed in range(20):
            augmenter(np.random.default_rng(seed), mask * 200, mask, image_out, mask_out)
            pure = (image_out == 0) | (image_out == 200)
            assert pure.mean() > 0.7
            np.testing.assert_array_equal(mask_out[pure], image_out[pure] // 200)


class TestIntensities:
    def test_brightness_adds_to_every_level(self):
        # 0.2 * 255 = 51.
        image = np.array([[0, 100], [204, 250]], np.uint8)
        np.testing.assert_array_equal(graded(Recipe(brightness=0.2), image), [[51, 151], [255] * 2])

    def test_contrast_stretches_about_the_mean(self):
        # Halves of 100 and 200, mean 150: 150 -/+ 2 * 50.
        image = np.repeat(np.array([[100, 200]], np.uint8), 8, 1).repeat(16, 0)
        np.testing.assert_array_equal(
            np.unique(graded(Recipe(contrast=(2.0, 2.0)), image)), [50, 250]
        )

    def test_gamma_is_an_exponent_on_levels_of_one(self):
        # 51 = 0.2 * 255; 0.2^2 * 255 = 10.2; and black and white stay.
        image = np.array([[0, 51], [255, 51]], np.uint8)
        np.testing.assert_array_equal(graded(Recipe(gamma=(2.0, 2.0)), image), [[0, 10], [255, 10]])

    def test_strong_settings_saturate_and_never_wrap(self):
        image = np.linspace(0, 255, 32 * 32).reshape(32, 32).astype(np.uint8)
        # The mean, taken of every eighth row and column, is about 396 / 1023 * 255 = 98. Levels
        # become 4 (v - 98) + 98 + 127.5: 0 below v = 41.6 and 255 above v = 105.4.
        out = graded(Recipe(contrast=(4.0, 4.0), brightness=0.5), image)
        assert (out[image <= 40] == 0).all()
        assert (out[image >= 107] == 255).all()
        assert (np.diff(out.ravel().astype(int)) >= 0).all()

    def test_noise_has_its_standard_deviation(self):
        image = np.full((128, 128), 128, np.uint8)
        noise = graded(Recipe(noise=0.1, noise_share=1.0), image).astype(float) - 128
        # 0.1 * 255 = 25.5; of 16384 values the standard error is 0.6 %.
        assert noise.std() == pytest.approx(25.5, rel=0.03)
        assert abs(noise.mean()) < 1

    def test_noise_on_white_never_wraps_to_black(self):
        out = graded(Recipe(noise=0.1, noise_share=1.0), np.full((64, 64), 255, np.uint8))
        # Five standard deviations of 25.5 below white is 127.
        assert out.min() > 127
        assert out.min() < 255

    def test_share_of_zero_adds_no_noise(self):
        image = texture()
        np.testing.assert_array_equal(graded(Recipe(noise=0.5, noise_share=0.0), image), image)

    def test_blur_smooths_and_keeps_the_mean(self):
        image = np.where(np.indices((32, 32)).sum(0) % 2, 200, 100).astype(np.uint8)
        out = graded(Recipe(blur_share=1.0), image)
        assert out[8:-8, 8:-8].std() < 2
        assert out.mean() == pytest.approx(150, abs=2)

    def test_mask_keeps_its_values_while_the_image_changes(self):
        image = texture()
        out, mask = augment(Recipe(brightness=0.2), image, image, crop_size=48, rng=HighestDraws())
        np.testing.assert_array_equal(mask, image)
        assert not np.array_equal(out, image)


class TestScratch:
    def test_equal_draws_give_equal_crops_whatever_came_before(self):
        image, mask = texture(), texture(1)
        fresh = augment(STRONG, image, mask, crop_size=32, rng=np.random.default_rng(5))
        used = Augmenter(32, STRONG)
        out = np.empty((2, 32, 32), np.uint8)
        for seed in (1, 2, 5):
            used(np.random.default_rng(seed), image, mask, *out)
        np.testing.assert_array_equal(out, fresh)

    def test_image_is_not_written_to(self):
        image, mask = texture(), texture(1)
        augment(STRONG, image, mask, crop_size=32, rng=np.random.default_rng(0))
        np.testing.assert_array_equal(image, texture())
        np.testing.assert_array_equal(mask, texture(1))


class TestCubicWeights:
    @pytest.mark.parametrize(("size", "grid"), [(33, 5), (64, 5), (20, 2), (7, 9)])
    def test_weights_of_every_pixel_sum_to_one(self, size, grid):
        weights = _cubic_weights(size, grid)
        assert weights.shape == (grid, size)
        np.testing.assert_allclose(weights.sum(0), 1, atol=1e-12)

    def test_pixel_on_a_control_point_takes_its_value(self):
        np.testing.assert_allclose(_cubic_weights(33, 5)[:, ::8], np.eye(5), atol=1e-12)

    def test_pixel_half_way_has_keys_weights(self):
        # Between the inner points 1 and 2: distances 3/2, 1/2, 1/2 and 3/2.
        # near: 1.5 / 8 - 2.5 / 4 + 1 = 9/16; far: -0.5 * 27/8 + 2.5 * 9/4 - 4 * 3/2 + 2 = -1/16.
        np.testing.assert_allclose(
            _cubic_weights(33, 5)[:, 12], np.array([-1, 9, 9, -1, 0]) / 16, atol=1e-12
        )
