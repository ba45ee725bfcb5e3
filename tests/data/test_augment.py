import dataclasses

import cv2
import numpy as np
import pytest

from unet_core.conventions import IGNORED
from unet_core.data import augment as augmentation
from unet_core.data.augment import FILL_MODES, PRESETS, Augmenter, Recipe, _cubic_weights
from unet_core.errors import UserError

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


# Every transform at once.
EVERYTHING = dataclasses.replace(
    STRONG,
    rotation_share=0.7,
    scale_share=0.7,
    quarter_turns=True,
    width_shift=0.1,
    height_shift=0.1,
    shear_degrees=20,
    zoom=(0.8, 1.3),
    channel_shift=30,
    brightness_factor=(0.7, 1.3),
    brightness_share=0.5,
    contrast_share=0.5,
    contrast_keeps_range=True,
    gamma_share=0.5,
    inverted_gamma_share=0.5,
    noise_variance=0.1,
    low_resolution=(0.4, 1.0),
    low_resolution_share=0.5,
    cutout_holes=3,
    cutout_px=7,
)


# SciPy's names of what OpenCV does: its `wrap` and `constant` do not interpolate between the edge
# and what lies beyond.
SCIPY_MODES = {
    "mirror": "mirror",
    "reflect": "reflect",
    "nearest": "nearest",
    "wrap": "grid-wrap",
    "constant": "grid-constant",
}


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


def smooth(seed=0, shape=(48, 48)):
    """Returns grey values that vary by few levels a pixel and fill 0..255."""
    blurred = cv2.GaussianBlur(texture(seed, shape).astype(np.float32), (0, 0), 5)
    return cv2.normalize(blurred, None, 0, 255, cv2.NORM_MINMAX).reshape(shape)


def augmenter_for(recipe, image, crop_size):
    channels = image.shape[2] if image.ndim == 3 else 1
    return Augmenter(crop_size, recipe, channels=channels, dtype=image.dtype)


def augment(recipe, image, mask, *, crop_size, rng):
    image_out = np.empty((crop_size, crop_size, *image.shape[2:]), image.dtype)
    mask_out = np.empty((crop_size, crop_size), np.uint8)
    augmenter_for(recipe, image, crop_size)(rng, image, mask, image_out, mask_out)
    return image_out, mask_out


def graded(recipe, image, rng=None):
    """Returns `image` after the intensities of `recipe`, by default at the upper ends of their
    ranges.
    """
    mask = np.zeros(image.shape[:2], np.uint8)
    return augment(recipe, image, mask, crop_size=len(image), rng=rng or HighestDraws())[0]


def without_intensities(recipe):
    return dataclasses.replace(
        recipe,
        contrast=(1.0, 1.0),
        brightness=0.0,
        brightness_factor=(1.0, 1.0),
        gamma=(1.0, 1.0),
        noise_share=0.0,
        blur_share=0.0,
        low_resolution=(1.0, 1.0),
    )


def keys_kernel(distance):
    """Cubic convolution of Keys 1981 with a = -1/2."""
    d = np.abs(distance)
    inner = (1.5 * d - 2.5) * d * d + 1
    outer = ((-0.5 * d + 2.5) * d - 4) * d + 2
    return np.select([d <= 1, d < 2], [inner, outer], 0.0)


def expected_map(recipe, rng, crop_size, shape):
    """The inverse map [2, crop, crop] (x, y), put together of 2x2 matrices and, for the elastic
    part, of every control point's kernel; draws in the order of the code.
    """

    def uniform(low, high):
        return low if low == high else rng.uniform(low, high)

    def happens(share):
        return share == 1 or rng.random() < share

    degrees = recipe.rotation_degrees
    angle = np.deg2rad(uniform(-degrees, degrees)) if happens(recipe.rotation_share) else 0.0
    magnification = np.exp(uniform(*np.log(recipe.scale))) if happens(recipe.scale_share) else 1.0
    signs = np.ones(2)
    if recipe.flips or recipe.horizontal_flip or recipe.vertical_flip:
        allowed = np.array([recipe.horizontal_flip, recipe.vertical_flip]) | recipe.flips
        signs = np.where((rng.random(2) < 0.5) & allowed, -1, 1)
    quarters = rng.integers(0, 4) if recipe.quarter_turns else 0
    shift = np.array(
        [
            uniform(-recipe.width_shift, recipe.width_shift) * shape[1],
            uniform(-recipe.height_shift, recipe.height_shift) * shape[0],
        ]
    )
    slant = np.deg2rad(uniform(-recipe.shear_degrees, recipe.shear_degrees))
    zoom = np.array([uniform(*recipe.zoom), uniform(*recipe.zoom)])
    top = rng.integers(0, shape[0] - crop_size + 1)
    left = rng.integers(0, shape[1] - crop_size + 1)

    def turn(radians):
        return np.array([[np.cos(radians), -np.sin(radians)], [np.sin(radians), np.cos(radians)]])

    shear = np.array([[1, -np.sin(slant)], [0, np.cos(slant)]])
    matrix = turn(angle) @ shear @ np.diag(zoom * signs) @ turn(quarters * np.pi / 2)
    half = (crop_size - 1) / 2
    y, x = np.mgrid[:crop_size, :crop_size] - half
    centre = np.array([left, top]) + half + turn(angle) @ shift
    mapped = np.tensordot(matrix / magnification, np.stack([x, y]), 1) + centre[:, None, None]
    if recipe.elastic_px:
        grid = recipe.elastic_grid
        points = rng.standard_normal((2, grid, grid), np.float32) * recipe.elastic_px
        padded = np.pad(points, [(0, 0), (2, 2), (2, 2)], mode="edge")
        place = np.arange(crop_size) / (crop_size - 1) * (grid - 1)
        kernel = keys_kernel(place[:, None] - np.arange(-2, grid + 2))
        mapped += kernel @ padded @ kernel.T
    return mapped


def folded(coordinate, count, fill_mode):
    """Returns where in 0..count - 1 a coordinate outside finds its grey value."""
    if fill_mode == "nearest":
        return np.clip(coordinate, 0, count - 1)
    period = 2 * (count - 1)
    coordinate = coordinate % period
    return np.minimum(coordinate, period - coordinate)


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
    @pytest.mark.parametrize(
        "recipe",
        [
            Recipe(rotation_degrees=180),
            Recipe(scale=(0.5, 2.0)),
            Recipe(flips=True),
            Recipe(rotation_degrees=30, scale=(0.8, 1.2), flips=True),
            Recipe(horizontal_flip=True, shear_degrees=30),
            Recipe(vertical_flip=True, width_shift=0.2, height_shift=0.1),
            Recipe(quarter_turns=True, zoom=(0.5, 2.0)),
            EVERYTHING,
        ],
    )
    def test_map_is_the_inverse_put_together_of_matrices(self, recipe):
        augmenter = Augmenter(21, recipe)
        for seed in range(8):
            drawn = augmenter.draw_map(np.random.default_rng(seed), (40, 60))
            expected = expected_map(recipe, np.random.default_rng(seed), 21, (40, 60))
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
            drawn = np.stack(augmenter.draw_map(rng, (33, 33))) - at_rest
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
        x, _ = augmenter.draw_map(np.random.default_rng(1), (33, 33))
        bends = np.diff(x, n=2, axis=1)
        # A cubic over 8 pixels between points that differ by about 3 * sqrt(2) bends by at most
        # some 6 * 4.2 * 2 / 64; independent shifts of pixels would bend by 3 * sqrt(6) = 7.
        assert np.abs(bends).max() < 1.5


class TestPresets:
    @pytest.mark.parametrize("name", PRESETS)
    def test_every_pixel_of_image_and_mask_shows_the_same_place(self, name):
        # The image tells a pixel's column and row by its grey values, linear between pixels; the
        # mask tells them modulo 16 and 15. So every pixel is a labelled point.
        recipe = without_intensities(Recipe.preset(name))
        height, width, crop_size = 80, 96, 64
        y, x = np.mgrid[:height, :width]
        image = np.stack([x, y], axis=-1).astype(np.float32)
        mask = (y % 15 * 16 + x % 16).astype(np.uint8)
        augmenter = augmenter_for(recipe, image, crop_size)
        image_out = np.empty((crop_size, crop_size, 2), np.float32)
        mask_out = np.empty((crop_size, crop_size), np.uint8)
        for seed in range(1000):
            augmenter(np.random.default_rng(seed), image, mask, image_out, mask_out)
            place = expected_map(recipe, np.random.default_rng(seed), crop_size, (height, width))
            expected = [
                folded(place[0], width, recipe.fill_mode),
                folded(place[1], height, recipe.fill_mode),
            ]
            # OpenCV may sample at multiples of 1/32 pixel.
            np.testing.assert_allclose(np.moveaxis(image_out, -1, 0), expected, atol=0.02)
            columns, rows = mask_out % 16, mask_out // 16
            off_x = (columns - image_out[..., 0] + 8) % 16 - 8
            off_y = (rows - image_out[..., 1] + 7.5) % 15 - 7.5
            assert np.abs(off_x).max() <= 0.53
            assert np.abs(off_y).max() <= 0.53

    @pytest.mark.parametrize("name", PRESETS)
    def test_mask_holds_no_value_that_was_not_there(self, name):
        image, mask = texture(1, (80, 96)), (texture(2, (80, 96)) // 64 * 50).astype(np.uint8)
        augmenter = Augmenter(64, Recipe.preset(name))
        image_out, mask_out = np.empty((2, 64, 64), np.uint8)
        for seed in range(1000):
            augmenter(np.random.default_rng(seed), image, mask, image_out, mask_out)
            assert set(np.unique(mask_out)) <= {0, 50, 100, 150}

    def test_none_changes_nothing(self):
        assert Recipe.preset("none") == Recipe()

    @pytest.mark.parametrize("name", ["keras", "paper", "nnunet"])
    def test_other_presets_change_image_and_mask(self, name):
        image, mask = texture(), texture(1)
        found = [
            augment(Recipe.preset(name), image, mask, crop_size=48, rng=np.random.default_rng(seed))
            for seed in range(20)
        ]
        assert any(not np.array_equal(out[0], image) for out in found)
        assert any(not np.array_equal(out[1], mask) for out in found)

    def test_fields_of_a_preset_can_be_replaced(self):
        recipe = dataclasses.replace(Recipe.preset("keras"), rotation_degrees=7)
        assert (recipe.rotation_degrees, recipe.width_shift) == (7, 0.05)

    def test_unknown_preset_is_refused_and_the_known_are_named(self):
        with pytest.raises(UserError, match=r"'karas'.*none, keras, paper, nnunet"):
            Recipe.preset("karas")

    def test_unknown_fill_mode_is_refused_and_the_known_are_named(self):
        with pytest.raises(UserError, match=r"'zeros'.*mirror, reflect, nearest, wrap, constant"):
            Recipe(fill_mode="zeros")


class TestLikeKeras:
    """Against `scipy.ndimage.affine_transform` with the matrices of Keras' ImageDataGenerator."""

    def keras_transform(
        self, image, *, order, mode, cval, theta=0.0, tx=0.0, ty=0.0, shear=0.0, zx=1.0, zy=1.0
    ):
        """As `apply_affine_transform`: tx, ty, zx and zy belong to the columns and rows."""
        ndimage = pytest.importorskip("scipy.ndimage")
        theta, shear = np.deg2rad([theta, shear])
        rotation = [[np.cos(theta), -np.sin(theta), 0], [np.sin(theta), np.cos(theta), 0]]
        matrix = (
            np.array([*rotation, [0, 0, 1]])
            @ np.array([[1, 0, tx], [0, 1, ty], [0, 0, 1]])
            @ np.array([[1, -np.sin(shear), 0], [0, np.cos(shear), 0], [0, 0, 1]])
            @ np.diag([zx, zy, 1])
        )
        centre = len(image) / 2 - 0.5
        to_centre = np.array([[1, 0, centre], [0, 1, centre], [0, 0, 1]])
        matrix = to_centre @ matrix @ np.linalg.inv(to_centre)
        matrix = matrix[[1, 0, 2]][:, [1, 0, 2]]
        return ndimage.affine_transform(
            image, matrix[:2, :2], matrix[:2, 2], order=order, mode=mode, cval=cval
        )

    @pytest.mark.parametrize("fill_mode", FILL_MODES)
    @pytest.mark.parametrize(
        ("recipe", "parameters"),
        [
            (Recipe(rotation_degrees=25), dict(theta=25)),
            (Recipe(width_shift=0.2), dict(tx=0.2 * 48)),
            (Recipe(height_shift=0.13), dict(ty=0.13 * 48)),
            (Recipe(shear_degrees=20), dict(shear=20)),
            (Recipe(zoom=(0.7, 1.4)), dict(zx=1.4, zy=1.4)),
            (Recipe(zoom=(0.7, 0.7)), dict(zx=0.7, zy=0.7)),
            (
                Recipe(
                    rotation_degrees=-33,
                    width_shift=0.1,
                    height_shift=0.2,
                    shear_degrees=15,
                    zoom=(1, 1.2),
                ),
                dict(theta=-33, tx=4.8, ty=9.6, shear=15, zx=1.2, zy=1.2),
            ),
        ],
    )
    def test_image_is_that_of_scipy(self, recipe, parameters, fill_mode):
        image = smooth()
        recipe = dataclasses.replace(recipe, fill_mode=fill_mode, cval=70)
        mode = SCIPY_MODES[fill_mode]
        found = graded(recipe, image)
        expected = self.keras_transform(image, order=1, mode=mode, cval=70, **parameters)
        # OpenCV may sample at multiples of 1/32 pixel: an error of up to 1/64 of the difference
        # between neighbours in either direction. These differ by up to 40 levels within the image,
        # and by up to 255 where it meets what lies outside.
        error = np.abs(found - expected)
        assert error.max() <= 2 * 255 / 64
        assert np.median(error) <= 0.3
        assert np.quantile(error, 0.95) <= 2 * 40 / 64

    def test_mask_is_that_of_scipy(self):
        mask = (smooth(4) > 128).astype(np.uint8)
        recipe = Recipe(rotation_degrees=25, shear_degrees=20, fill_mode="constant")
        _, found = augment(recipe, texture(), mask, crop_size=48, rng=HighestDraws())
        expected = self.keras_transform(
            mask, order=0, mode="grid-constant", cval=IGNORED, theta=25, shear=20
        )
        assert set(np.unique(found)) == {0, 1, IGNORED}
        # They may round coordinates half-way between two pixels differently.
        assert (found != expected).mean() < 0.005

    def test_zoom_is_drawn_for_each_axis(self):
        augmenter = Augmenter(17, Recipe(zoom=(0.5, 2.0)))
        steps = []
        for seed in range(300):
            x, y = augmenter.draw_map(np.random.default_rng(seed), (17, 17))
            steps.append((x[0, 1] - x[0, 0], y[1, 0] - y[0, 0]))
        steps = np.array(steps)
        assert 0.5 <= steps.min() < 0.55
        assert 1.95 < steps.max() <= 2.0
        assert abs(np.corrcoef(steps.T)[0, 1]) < 0.2
        # Uniform, not in the logarithm: the mean is 1.25, of 600 draws with a standard error of
        # 0.018.
        assert steps.mean() == pytest.approx(1.25, abs=0.07)

    @pytest.mark.parametrize(
        ("recipe", "expected"),
        [
            (Recipe(horizontal_flip=True), {(1, 1), (1, -1)}),
            (Recipe(vertical_flip=True), {(1, 1), (-1, 1)}),
            (Recipe(flips=True), {(1, 1), (1, -1), (-1, 1), (-1, -1)}),
        ],
    )
    def test_flips_mirror_the_named_axis_half_of_the_time(self, recipe, expected):
        image = texture()
        found = []
        for seed in range(200):
            out, _ = augment(recipe, image, image, crop_size=48, rng=np.random.default_rng(seed))
            (signs,) = (
                (y, x) for y in (1, -1) for x in (1, -1) if np.array_equal(out, image[::y, ::x])
            )
            found.append(signs)
        assert set(found) == expected
        # Of 200 draws with probability 1/2 or 1/4 the standard deviation is 7 or 6.
        for sign in expected:
            assert found.count(sign) == pytest.approx(200 / len(expected), abs=28)

    def test_quarter_turns_are_those_of_numpy_and_equally_frequent(self):
        image = texture()
        counts = np.zeros(4)
        for seed in range(400):
            out = augment(
                Recipe(quarter_turns=True),
                *(image, image),
                crop_size=48,
                rng=np.random.default_rng(seed),
            )
            (turns,) = (k for k in range(4) if np.array_equal(out[0], np.rot90(image, k)))
            np.testing.assert_array_equal(out[0], out[1])
            counts[turns] += 1
        # The standard deviation is sqrt(400 * 1/4 * 3/4) = 8.7.
        assert np.abs(counts - 100).max() < 35

    def test_outside_of_the_image_is_ignored_in_the_mask_and_weighs_nothing(self):
        image, mask = np.full((2, 33, 33), 100, np.uint8)
        weights, weights_out = np.ones((2, 33, 33), np.float32)
        image_out, mask_out = np.empty((2, 33, 33), np.uint8)
        recipe = Recipe(scale=(0.5, 0.5), fill_mode="constant", cval=30)
        Augmenter(33, recipe)(
            np.random.default_rng(0),
            *(image, mask, image_out, mask_out),
            weights=weights,
            weights_out=weights_out,
        )
        # Steps of two pixels from the centre, 16: crop pixels 8 to 24 are the image.
        inside = np.zeros((33, 33), bool)
        inside[8:25, 8:25] = True
        np.testing.assert_array_equal(image_out, np.where(inside, 100, 30))
        np.testing.assert_array_equal(mask_out, np.where(inside, 100, IGNORED))
        np.testing.assert_array_equal(weights_out, inside)


class TestChannelsAndWeights:
    @pytest.mark.parametrize("dtype", [np.uint8, np.float32])
    @pytest.mark.parametrize("channels", [2, 3, 5])
    def test_channels_get_the_geometry_of_a_grey_image(self, channels, dtype):
        recipe = without_intensities(dataclasses.replace(STRONG, fill_mode="constant", cval=9))
        image = np.stack([smooth(seed) for seed in range(channels)], axis=-1).astype(dtype)
        mask = texture()
        found, found_mask = augment(recipe, image, mask, crop_size=32, rng=np.random.default_rng(3))
        for channel in range(channels):
            grey = np.ascontiguousarray(image[..., channel])
            alone, mask_alone = augment(
                recipe, grey, mask, crop_size=32, rng=np.random.default_rng(3)
            )
            # OpenCV may sample some numbers of channels at multiples of 1/32 pixel: an error of up
            # to 1/64 of the difference between neighbours, at most 255, in either direction.
            np.testing.assert_allclose(found[..., channel], alone.astype(float), atol=2 * 255 / 64)
            np.testing.assert_array_equal(found_mask, mask_alone)

    def test_one_channel_may_have_an_axis(self):
        image = texture()[..., None]
        found = augment(STRONG, image, image[..., 0], crop_size=32, rng=np.random.default_rng(3))
        plain = augment(
            STRONG, image[..., 0], image[..., 0], crop_size=32, rng=np.random.default_rng(3)
        )
        np.testing.assert_array_equal(found[0][..., 0], plain[0])

    def test_weights_follow_the_map_of_the_image(self):
        image = smooth()
        weights, mask = image.copy(), texture()
        recipe = without_intensities(STRONG)
        image_out, weights_out = np.empty((2, 32, 32), np.float32)
        mask_out = np.empty((32, 32), np.uint8)
        Augmenter(32, recipe, dtype=np.float32)(
            np.random.default_rng(0),
            *(image, mask, image_out, mask_out),
            weights=weights,
            weights_out=weights_out,
        )
        np.testing.assert_array_equal(weights_out, image_out)
        assert weights_out.std() > 5

    def test_weights_change_nothing_else(self):
        image, mask = texture(), texture(1)
        plain = augment(EVERYTHING, image, mask, crop_size=32, rng=np.random.default_rng(0))
        out = np.empty((2, 32, 32), np.uint8)
        weights = np.ones((48, 48), np.float32)
        Augmenter(32, EVERYTHING)(
            np.random.default_rng(0),
            *(image, mask, *out),
            weights=weights,
            weights_out=np.empty((32, 32), np.float32),
        )
        np.testing.assert_array_equal(out, plain)

    @pytest.mark.parametrize(
        ("name", "change"),
        [
            ("image", dict(image=np.zeros((48, 48), np.float32))),
            ("image", dict(image=np.zeros((48, 48, 3), np.uint8))),
            ("mask", dict(mask=np.zeros((48, 47), np.uint8))),
            ("image_out", dict(image_out=np.zeros((31, 32), np.uint8))),
            ("mask_out", dict(mask_out=np.zeros((32, 32), np.int32))),
            ("weights", dict(weights=np.zeros((48, 48)))),
            ("weights_out", dict(weights_out=np.zeros((32, 32)))),
        ],
    )
    def test_wrong_array_is_refused_by_name(self, name, change):
        arrays = dict(
            image=texture(),
            mask=texture(),
            image_out=np.empty((32, 32), np.uint8),
            mask_out=np.empty((32, 32), np.uint8),
            weights=np.zeros((48, 48), np.float32),
            weights_out=np.zeros((32, 32), np.float32),
        )
        with pytest.raises(UserError, match=f"`{name}` is"):
            Augmenter(32, Recipe())(np.random.default_rng(0), **(arrays | change))


class TestContain:
    SHAPE = (50, 70)

    def pixels(self):
        """Corners, edges, and places in between."""
        ends = [(y, x) for y in (0, 25, 49) for x in (0, 35, 69)]
        inner = np.random.default_rng(7).integers(0, self.SHAPE, (1000 - len(ends), 2))
        return [*ends, *map(tuple, inner.tolist())]

    @pytest.mark.parametrize(
        "recipe",
        [
            Recipe(),
            Recipe(rotation_degrees=180),
            Recipe(rotation_degrees=180, scale=(0.7, 2.0), flips=True),
            Recipe.preset("keras"),
            Recipe.preset("paper"),
            EVERYTHING,
        ],
    )
    def test_crop_shows_the_pixel(self, recipe):
        image = np.zeros(self.SHAPE, np.uint8)
        augmenter = Augmenter(24, recipe)
        image_out, mask_out = np.empty((2, 24, 24), np.uint8)
        for seed, pixel in enumerate(self.pixels()):
            mask = np.zeros(self.SHAPE, np.uint8)
            mask[pixel] = 1
            augmenter(np.random.default_rng(seed), image, mask, image_out, mask_out, contain=pixel)
            assert mask_out.any()

    def test_unturned_crop_lies_within_the_image_and_anywhere_around_the_pixel(self):
        augmenter = Augmenter(24, Recipe())
        for seed, pixel in enumerate(self.pixels()):
            x, y = augmenter.draw_map(np.random.default_rng(seed), self.SHAPE, pixel)
            np.testing.assert_array_equal([x[0], y[:, 0]], np.rint([x[0], y[:, 0]]))
            assert x.min() >= 0
            assert x.max() <= 69
            assert y.min() >= 0
            assert y.max() <= 49
        places = set()
        for seed in range(3000):
            x, y = augmenter.draw_map(np.random.default_rng(seed), self.SHAPE, (25, 35))
            places.add((25 - y[0, 0], 35 - x[0, 0]))
        # Rows 0 to 26 and columns 0 to 46 are crops' first: all 24 * 24 places but for chance, by
        # which one is missed with probability exp(-3000 / 576) = 0.5 %.
        assert len(places) > 560

    def test_turned_crop_stays_where_it_was_if_it_shows_the_pixel(self):
        # A pixel in the middle of an image of the crop's size is always shown.
        recipe = Recipe(rotation_degrees=180)
        augmenter = Augmenter(25, recipe)
        for seed in range(50):
            plain = np.array(augmenter.draw_map(np.random.default_rng(seed), (25, 25)))
            moved = np.array(augmenter.draw_map(np.random.default_rng(seed), (25, 25), (12, 15)))
            # The pixel comes to lie at a whole one, by half the diagonal of a pixel at most.
            assert np.abs(moved - plain).max() <= np.sqrt(0.5)
            np.testing.assert_allclose(np.diff(moved), np.diff(plain), atol=1e-4)

    def test_all_else_is_drawn_alike(self):
        recipe = dataclasses.replace(EVERYTHING, elastic_px=0.0)
        augmenter = Augmenter(32, recipe)
        plain = np.array(augmenter.draw_map(np.random.default_rng(2), (90, 90)))
        moved = np.array(augmenter.draw_map(np.random.default_rng(2), (90, 90), (80, 3)))
        np.testing.assert_allclose(np.diff(moved), np.diff(plain), atol=1e-4)
        assert np.abs(moved - plain).max() > 1


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

    @pytest.mark.parametrize("dtype", [np.uint8, np.float32])
    def test_brightness_factor_multiplies(self, dtype):
        image = np.array([[0, 100], [150, 200]], dtype)
        found = graded(Recipe(brightness_factor=(0.5, 1.5)), image)
        # Only uint8 ends at 255.
        top = 255 if dtype == np.uint8 else 300
        np.testing.assert_array_equal(found, [[0, 150], [225, top]])

    @pytest.mark.parametrize("dtype", [np.uint8, np.float32])
    def test_channel_shift_is_clipped_to_the_range_of_the_image(self, dtype):
        image = np.array([[20, 100], [150, 200]], dtype)
        found = graded(Recipe(channel_shift=60), image)
        np.testing.assert_array_equal(found, [[80, 160], [200, 200]])

    @pytest.mark.parametrize("dtype", [np.uint8, np.float32])
    def test_contrast_may_keep_the_range_of_the_image(self, dtype):
        image = smooth(shape=(32, 32)).astype(dtype) // 2 + 50
        mean = image[::8, ::8].mean()
        wide = (image.astype(float) - mean) * 2 + mean
        recipe = Recipe(contrast=(2.0, 2.0), contrast_keeps_range=True)
        expected = np.clip(wide, image.min(), image.max())
        np.testing.assert_allclose(graded(recipe, image), expected, atol=0.51)
        assert (wide > image.max()).any()
        free = graded(dataclasses.replace(recipe, contrast_keeps_range=False), image)
        np.testing.assert_allclose(
            free, np.clip(wide, 0, 255) if dtype == np.uint8 else wide, atol=0.51
        )

    def test_float_images_are_not_clipped_to_grey_values(self):
        image = smooth() * 3 - 400
        found = graded(Recipe(contrast=(2.0, 2.0), brightness=0.2), image)
        mean = image[::8, ::8].mean()
        np.testing.assert_allclose(found, (image - mean) * 2 + mean + 51, atol=1e-2)
        assert found.min() < -400
        assert found.max() > 365

    def test_gamma_of_float_images_is_between_their_lowest_and_highest(self):
        image = np.array([[-100, 0], [100, 300]], np.float32)
        found = graded(Recipe(gamma=(2.0, 2.0)), image)
        # Fractions 0, 1/4, 1/2 and 1 of the range of 400.
        np.testing.assert_allclose(found, [[-100, -75], [0, 300]], atol=1e-3)

    @pytest.mark.parametrize("dtype", [np.uint8, np.float32])
    def test_inverted_gamma_bends_from_white(self, dtype):
        image = np.array([[0, 51], [204, 255]], dtype)
        recipe = Recipe(gamma=(2.0, 2.0), gamma_share=0.0, inverted_gamma_share=1.0)
        # 255 (1 - 0.8^2) = 91.8 and 255 (1 - 0.2^2) = 244.8.
        np.testing.assert_allclose(graded(recipe, image), [[0, 91.8], [244.8, 255]], atol=0.5)

    def test_gamma_of_a_constant_float_image_changes_nothing(self):
        image = np.full((8, 8), 300, np.float32)
        np.testing.assert_array_equal(graded(Recipe(gamma=(2.0, 2.0)), image), image)

    @pytest.mark.parametrize("dtype", [np.uint8, np.float32])
    def test_curves_follow_one_another_as_documented(self, dtype):
        image = np.round(smooth()).astype(dtype)
        recipe = Recipe(
            channel_shift=10,
            brightness_factor=(0.5, 0.9),
            contrast=(0.5, 0.8),
            brightness=0.05,
            gamma=(0.7, 1.3),
            inverted_gamma_share=1.0,
        )
        values = np.clip(image.astype(float) + 10, image.min(), image.max()) * 0.9
        mean = (image[::8, ::8].mean() + 10) * 0.9
        values = (values - mean) * 0.8 + mean + 0.05 * 255
        black, white = (0, 255) if dtype == np.uint8 else (values.min(), values.max())
        unit = (values - black) / (white - black)
        unit = (1 - (1 - unit) ** 1.3) ** 1.3
        expected = unit * (white - black) + black
        np.testing.assert_allclose(graded(recipe, image), expected, atol=0.51)

    @pytest.mark.parametrize("dtype", [np.uint8, np.float32])
    def test_noise_variance_is_in_units_of_the_variance_of_the_crop(self, dtype):
        # Grey 90 and 130 by turns: the deviation is 20, its square 400.
        image = np.where(np.indices((128, 128)).sum(0) % 2, 90, 130).astype(dtype)
        found = graded(Recipe(noise_variance=0.25, noise_share=1.0), image)
        noise = found.astype(float) - image
        # Rounding to levels adds a variance of 1/12.
        assert noise.std() == pytest.approx(10, rel=0.03)

    def test_two_noises_add_up_in_variance(self):
        image = np.where(np.indices((128, 128)).sum(0) % 2, 90, 130).astype(np.float32)
        found = graded(Recipe(noise=0.1, noise_variance=0.25, noise_share=1.0), image)
        assert (found - image).std() == pytest.approx(np.hypot(25.5, 10), rel=0.03)

    def test_channels_have_noise_of_their_own(self):
        image = np.full((64, 64, 3), 128, np.float32)
        noise = graded(Recipe(noise=0.1, noise_share=1.0), image) - image
        assert np.abs(np.corrcoef(noise.reshape(-1, 3).T) - np.eye(3)).max() < 0.1

    @pytest.mark.parametrize("dtype", [np.uint8, np.float32])
    def test_blur_has_its_standard_deviation(self, dtype):
        # A column of 200 spreads as the Gaussian does: its height is the density at 0.
        image = np.zeros((33, 33), dtype)
        image[:, 16] = 200
        row = graded(Recipe(blur_share=1.0, blur_px=(0.5, 1.0)), image)[16].astype(float)
        expected = np.exp(-((np.arange(33) - 16.0) ** 2) / 2)
        np.testing.assert_allclose(row, 200 * expected / expected.sum(), atol=1.5)

    @pytest.mark.parametrize("channels", [(), (3,)])
    @pytest.mark.parametrize("dtype", [np.uint8, np.float32])
    def test_low_resolution_takes_nearest_pixels_and_enlarges_linearly(self, dtype, channels):
        image = texture(5, (32, 32, *channels)).astype(dtype)
        found = graded(Recipe(low_resolution=(0.5, 0.5)), image)
        # Pixel i of 16 lies at (i + 1/2) * 2 of 32, the edge between pixels 2i and 2i + 1.
        small = image[1::2, 1::2].astype(float)
        place = (np.arange(32) + 0.5) / 2 - 0.5
        weights = np.maximum(0, 1 - np.abs(np.clip(place, 0, 15)[:, None] - np.arange(16)))
        expected = np.einsum("yi,xj,ij...->yx...", weights, weights, small)
        # OpenCV may round uint8 values between and after the two directions.
        np.testing.assert_allclose(found, expected, atol=1)

    @pytest.mark.parametrize("dtype", [np.uint8, np.float32])
    def test_cutout_fills_squares_with_the_mean_and_leaves_the_mask(self, dtype):
        image = np.stack([smooth(1), smooth(2)], axis=-1).astype(dtype)
        recipe = Recipe(cutout_holes=2, cutout_px=6)
        mask = texture()
        counts = []
        for seed in range(100):
            found, mask_out = augment(
                recipe, image, mask, crop_size=48, rng=np.random.default_rng(seed)
            )
            np.testing.assert_array_equal(mask_out, mask)
            changed = (found != image).any(axis=-1)
            expected = image[::8, ::8].astype(float).mean(axis=(0, 1))
            if changed.any():
                np.testing.assert_allclose(
                    found[changed], np.tile(expected, (changed.sum(), 1)), atol=0.51
                )
            counts.append(changed.sum())
        # Two squares of 36 pixels, which may overlap each other, the edge, or pixels of the mean.
        assert max(counts) == 72
        assert min(counts) >= 9
        assert np.mean(counts) > 55

    @pytest.mark.parametrize(
        ("recipe", "share"),
        [
            (Recipe(rotation_degrees=180, rotation_share=0.2), 0.2),
            (Recipe(scale=(0.5, 0.7), scale_share=0.2), 0.2),
            (Recipe(brightness_factor=(0.5, 0.7), brightness_share=0.15), 0.15),
            (Recipe(contrast=(0.5, 0.7), contrast_share=0.15), 0.15),
            (Recipe(gamma=(1.5, 2.0), gamma_share=0.3), 0.3),
            (Recipe(gamma=(1.5, 2.0), gamma_share=0.0, inverted_gamma_share=0.1), 0.1),
            (Recipe(noise=1.0, noise_share=0.1), 0.1),
            (Recipe(noise_variance=1.0, noise_share=0.1), 0.1),
            (Recipe(blur_share=0.2), 0.2),
            (Recipe(low_resolution=(0.5, 0.7), low_resolution_share=0.25), 0.25),
        ],
    )
    def test_shares_of_samples_are_changed(self, recipe, share):
        image = texture(shape=(16, 16))
        augmenter = Augmenter(16, recipe)
        out, mask_out = np.empty((2, 16, 16), np.uint8)
        changed = 0
        for seed in range(2000):
            augmenter(np.random.default_rng(seed), image, image, out, mask_out)
            changed += not np.array_equal(out, image)
        # Four standard deviations.
        assert changed == pytest.approx(2000 * share, abs=4 * np.sqrt(2000 * share * (1 - share)))


class TestScratch:
    def test_equal_draws_give_equal_crops_whatever_came_before(self):
        image, mask = texture(), texture(1)
        fresh = augment(STRONG, image, mask, crop_size=32, rng=np.random.default_rng(5))
        used = Augmenter(32, STRONG)
        out = np.empty((2, 32, 32), np.uint8)
        for seed in (1, 2, 5):
            used(np.random.default_rng(seed), image, mask, *out)
        np.testing.assert_array_equal(out, fresh)

    @pytest.mark.parametrize("recipe", [*PRESETS.values(), EVERYTHING])
    @pytest.mark.parametrize("dtype", [np.uint8, np.float32])
    @pytest.mark.parametrize("channels", [(), (3,)])
    def test_every_recipe_depends_on_nothing_but_its_draws(self, recipe, dtype, channels):
        image, mask = texture(0, (48, 48, *channels)).astype(dtype), texture(1)
        used = augmenter_for(recipe, image, 32)
        for seed in range(30):
            out = np.full((32, 32, *channels), seed, dtype), np.full((32, 32), seed, np.uint8)
            used(np.random.default_rng(seed), image, mask, *out)
            fresh = augment(recipe, image, mask, crop_size=32, rng=np.random.default_rng(seed))
            np.testing.assert_array_equal(out[0], fresh[0])
            np.testing.assert_array_equal(out[1], fresh[1])

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
        # The near ones weigh 1.5 / 8 - 2.5 / 4 + 1 = 9/16, the far ones
        # -0.5 * 27/8 + 2.5 * 9/4 - 4 * 3/2 + 2 = -1/16.
        np.testing.assert_allclose(
            _cubic_weights(33, 5)[:, 12], np.array([-1, 9, 9, -1, 0]) / 16, atol=1e-12
        )


class TestLongSides:
    @pytest.mark.parametrize("fill_mode", FILL_MODES)
    @pytest.mark.parametrize("corner", [0, 70, 139])
    def test_crops_of_a_window_are_those_of_the_whole(self, monkeypatch, fill_mode, corner):
        # A side of 140 is long here; crops of 32 turned and scaled reach over the edges.
        image = np.random.default_rng(0).integers(0, 256, (140, 40), np.uint8)
        mask = (image > 99).astype(np.uint8)
        weights = image.astype(np.float32)
        recipe = Recipe(rotation_degrees=180, scale=(0.5, 2), elastic_px=3.0, fill_mode=fill_mode)
        found = []
        for longest in (10**6, 140):
            monkeypatch.setattr(augmentation, "_LONGEST_SIDE", longest)
            out = [np.empty((32, 32), dtype) for dtype in (np.uint8, np.uint8, np.float32)]
            augmenter = Augmenter(32, recipe)
            for seed in range(4):
                augmenter(
                    np.random.default_rng(seed), image, mask, *out[:2],
                    weights=weights, weights_out=out[2], contain=(corner, 22),
                )  # fmt: skip
                found.append([each.astype(np.float64) for each in out])
        for whole, window in zip(found[:4], found[4:], strict=True):
            # OpenCV rounds places to 1/32 of a pixel, so a place may round the other way.
            assert np.mean(abs(whole[0] - window[0])) < 0.2
            assert np.mean(whole[1] != window[1]) < 0.01
            assert np.mean(abs(whole[2] - window[2])) < 0.2

    def test_image_longer_than_opencv_samples_gives_crops(self):
        image = np.zeros((40_000, 20), np.uint8)
        image[-40:] = 7
        out = np.empty((16, 16), np.uint8), np.empty((16, 16), np.uint8)
        rng = np.random.default_rng(0)
        Augmenter(16, Recipe())(rng, image, image // 7, *out, contain=(39_990, 10))
        assert (out[0] == 7).all()
        assert (out[1] == 1).all()


class TestCopies:
    @pytest.mark.parametrize("fill_mode", FILL_MODES)
    @pytest.mark.parametrize("shape", [(96, 80), (30, 200), (200, 170)])
    @pytest.mark.parametrize("channels", [(), (1,), (3,), (4,)])
    def test_samples_are_those_of_the_image_itself(self, fill_mode, shape, channels):
        # 48 px: the first two shapes are of at most 8 crops, the last is not.
        recipe = dataclasses.replace(
            without_intensities(STRONG), fill_mode=fill_mode, cval=7.0, width_shift=0.3
        )
        image, mask = texture(1, (*shape, *channels)), texture(2, shape)
        augmenter = augmenter_for(recipe, image, 48)
        sampled = np.zeros((48, 48, *channels), np.uint8)
        classes = np.zeros((48, 48), np.uint8)
        border = FILL_MODES[fill_mode]
        outer = cv2.BORDER_CONSTANT if min(shape) < 48 else border
        for seed in range(4):
            augmenter(np.random.default_rng(seed), image, mask, sampled, classes)
            x, y = augmenter.draw_map(np.random.default_rng(seed), shape)
            expected = cv2.remap(
                image, x, y, cv2.INTER_LINEAR, borderMode=border, borderValue=(7.0,) * 4
            )
            np.testing.assert_array_equal(sampled, expected.reshape(sampled.shape))
            np.testing.assert_array_equal(
                classes,
                cv2.remap(mask, x, y, cv2.INTER_NEAREST, borderMode=outer, borderValue=IGNORED),
            )
