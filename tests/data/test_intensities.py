import numpy as np
import pytest

from unet_core.data import intensities
from unet_core.data.intensities import Scaling
from unet_core.errors import UserError

FORMS = ["range", "zscore", "percentile:1,99", "percentile:0.5,99.9", "fixed:1200,340.25"]
FORMS += ["range:-20,4095.5", "percentile:1,99,min-max"]


def column(values, dtype):
    """An image [N, 1, 1] of the values."""
    return np.array(values, dtype)[:, None, None]


class TestParse:
    @pytest.mark.parametrize("text", FORMS)
    def test_text_of_a_scaling_parses_to_the_same_scaling(self, text):
        scaling = Scaling.parse(text)
        assert str(scaling) == text
        assert Scaling.parse(str(scaling)) == scaling

    def test_spaces_do_not_matter(self):
        assert Scaling.parse(" percentile: 1, 99 ") == Scaling("percentile", (1.0, 99.0))

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "minmax",
            "range:1",
            "range:1,2,min-max",
            "zscore:",
            "percentile",
            "percentile:1",
            "percentile:1,2,3",
            "percentile:a,b",
            "fixed:",
        ],
    )
    def test_other_text_is_refused_with_the_forms(self, text):
        with pytest.raises(UserError, match=r"range .*percentile:1,99, zscore, or fixed") as error:
            Scaling.parse(text)
        assert repr(text) in str(error.value)

    @pytest.mark.parametrize("numbers", ["99,1", "5,5", "-1,99", "1,101", "nan,99"])
    def test_percentiles_must_rise_within_0_and_100(self, numbers):
        with pytest.raises(UserError, match="percentiles must rise, from 0 to 100"):
            Scaling.parse(f"percentile:{numbers}")

    @pytest.mark.parametrize("numbers", ["1,0", "5,5", "nan,1", "0,inf"])
    def test_range_must_rise(self, numbers):
        with pytest.raises(UserError, match="the range must rise"):
            Scaling.parse(f"range:{numbers}")

    @pytest.mark.parametrize("numbers", ["1,0", "1,-2", "nan,1", "inf,1", "1,inf", "1,nan"])
    def test_mean_and_deviation_must_be_usable(self, numbers):
        with pytest.raises(UserError, match="standard deviation finite and above 0"):
            Scaling.parse(f"fixed:{numbers}")


class TestRange:
    def test_bytes_are_returned_themselves(self):
        image = column([0, 7, 255], np.uint8)
        assert Scaling.parse("range")(image) is image

    def test_bytes_become_floats_among_others(self):
        scaled = Scaling.parse("range")(column([0, 7, 255], np.uint8), np.dtype(np.float32))
        assert scaled.dtype == np.float32
        np.testing.assert_array_equal(scaled.ravel(), [0, 7, 255])

    def test_sixteen_bits_are_brought_to_255(self):
        scaled = Scaling.parse("range")(column([0, 257, 65535], np.uint16))
        assert scaled.dtype == np.float32
        np.testing.assert_allclose(scaled.ravel(), [0, 1, 255], rtol=1e-6)

    def test_floats_are_brought_to_255(self):
        scaled = Scaling.parse("range")(column([0, 0.2, 1], np.float32))
        assert scaled.dtype == np.float32
        np.testing.assert_allclose(scaled.ravel(), [0, 51, 255], rtol=1e-6)

    @pytest.mark.parametrize("values", [[0, 1.5], [-0.1, 1]])
    def test_floats_beyond_0_and_1_are_refused_with_a_way_out(self, values):
        with pytest.raises(UserError, match=rf"{values[0]} to {values[1]};.*percentile:1,99, or"):
            Scaling.parse("range")(column(values, np.float32))


class TestPercentile:
    def test_percentiles_become_0_and_255_and_the_rest_is_clipped(self):
        # Of 0, 10, ..., 100 the percentiles 10 and 90 are 10 and 90.
        image = column(range(0, 101, 10), np.uint16)
        scaled = Scaling.parse("percentile:10,90")(image)
        assert scaled.dtype == np.float32
        np.testing.assert_allclose(
            scaled.ravel()[[0, 1, 5, 9, 10]], [0, 0, 127.5, 255, 255], rtol=1e-6
        )

    def test_each_channel_has_its_own(self):
        image = np.dstack([column([0, 100], np.float32), column([-7, 3], np.float32)])
        scaled = Scaling.parse("percentile:0,100")(image)
        np.testing.assert_allclose(scaled[:, 0], [[0, 0], [255, 255]], rtol=1e-6)

    def test_bytes_are_scaled_too(self):
        scaled = Scaling.parse("percentile:0,100")(column([10, 20], np.uint8))
        np.testing.assert_allclose(scaled.ravel(), [0, 255], rtol=1e-6)


class TestZscore:
    def test_network_sees_mean_0_and_deviation_1(self):
        # 2 and 6 have the mean 4 and the deviation 2; 10 and 30 the mean 20 and the deviation 10.
        image = np.dstack([column([2, 6], np.uint8), column([10, 30], np.uint8)])
        scaled = Scaling.parse("zscore")(image)
        assert scaled.dtype == np.float32
        np.testing.assert_allclose(scaled / 255 * 4 - 2, [[[-1, -1]], [[1, 1]]], atol=1e-6)


class TestFixed:
    def test_network_sees_distances_from_the_mean_in_deviations(self):
        scaled = Scaling.parse("fixed:1200,400")(column([1200, 1600, 400], np.uint16))
        assert scaled.dtype == np.float32
        np.testing.assert_allclose(scaled.ravel() / 255 * 4 - 2, [0, 1, -2], atol=1e-6)


class TestResolved:
    """What a new run makes of what it is asked for, by the values of its data set."""

    @pytest.mark.parametrize(
        ("asked", "ranges", "expected"),
        [
            ("range", {"uint16": (640.0, 3520.0)}, "range:640,3520"),
            # 14 bits are less than a quarter of 16, 15 bits are more.
            ("range", {"uint16": (0.0, 16_383.0)}, "range:0,16383"),
            ("range", {"uint16": (0.0, 32_767.0)}, "range"),
            ("range", {"float32": (0.0, 0.1)}, "range:0,0.1"),
            ("range", {"float32": (-3.0, 3.0)}, "range"),
            ("range", {"uint8": (0.0, 20.0)}, "range"),
            ("range", {"uint8": (0.0, 20.0), "uint16": (0.0, 20.0)}, "range"),
            ("range", {"uint16": (7.0, 7.0)}, "range"),
            ("range:0,65535", {"uint16": (640.0, 3520.0)}, "range:0,65535"),
            ("percentile:1,99", {}, "percentile:1,99,min-max"),
            ("zscore", {"uint16": (640.0, 3520.0)}, "zscore"),
        ],
    )
    def test_by_the_range_of_the_data_set(self, asked, ranges, expected):
        assert str(Scaling.parse(asked).resolved(ranges)) == expected

    @pytest.mark.parametrize(
        ("stored", "asked", "expected"),
        [
            ("range:640,3520", "range", True),
            ("range:640,3520", "range:640,3520", True),
            ("range:640,3520", "range:0,3520", False),
            ("range", "range:0,65535", False),
            ("percentile:1,99,min-max", "percentile:1,99", True),
            ("percentile:1,99", "percentile:1,99", True),
            ("percentile:1,99,min-max", "percentile:2,99", False),
            ("zscore", "range", False),
        ],
    )
    def test_run_goes_on_with_what_it_was_asked_for(self, stored, asked, expected):
        assert Scaling.parse(stored).is_asked_for_by(Scaling.parse(asked)) is expected


class TestFindRanges:
    def test_a_hot_and_a_dead_pixel_in_two_hundred_thousand_do_not_count(self):
        image = np.full(200_000, 1000, np.uint16)
        image[:9], image[9:18] = 700, 3000
        image[20], image[21] = 0, 65_535
        assert intensities.find_ranges([image]) == {"uint16": (700, 3000)}

    def test_kinds_of_numbers_are_told_apart(self):
        images = [np.array([[3, 9]], np.uint8), np.array([[0.5, 2.5]], np.float32)]
        images.append(np.array([[1, 7]], np.uint8))
        found = intensities.find_ranges(images)
        assert found == {"uint8": (1, 9), "float32": (0.5, 2.5)}

    def test_floats_are_found_to_a_step_of_sixteen_bits(self):
        low, high = intensities.find_ranges([np.array([0.01, 0.08], np.float32)])["float32"]
        assert low == pytest.approx(0.01, abs=1e-5)
        assert high == pytest.approx(0.08, abs=1e-5)


class TestRangeOfTheDataSet:
    def test_lowest_becomes_0_and_highest_255_and_more_is_not_clipped(self):
        # 255 / (3000 - 1000) a step.
        scaled = Scaling.parse("range:1000,3000")(column([1000, 2000, 3000, 4000], np.uint16))
        np.testing.assert_allclose(scaled.ravel(), [0, 127.5, 255, 382.5])
        assert scaled.dtype == np.float32

    def test_bytes_are_scaled_too(self):
        scaling = Scaling.parse("range:0,51")
        assert scaling.dtype_for({"uint8"}) == np.float32
        np.testing.assert_allclose(scaling(column([51], np.uint8)).ravel(), [255])


class TestSparse:
    """Few pixels that are not 0: the percentiles are one value."""

    @pytest.mark.parametrize("dtype", [np.uint16, np.float32])
    def test_least_and_greatest_stand_for_percentiles_that_are_equal(self, dtype):
        # Of 1000 pixels two are not 0; 1000 is a quarter of 4000.
        image = column([0] * 998 + [1000, 4000], np.uint16).astype(dtype)
        scaling = Scaling.parse("percentile:1,99,min-max")
        for scaled in (scaling(image), scaling.fit(np.split(image, 4))(image)):
            np.testing.assert_allclose(scaled.ravel()[-3:], [0, 63.75, 255])

    def test_percentiles_that_differ_are_taken_as_ever(self):
        image = column(np.arange(1000), np.uint16)
        with_fallback = Scaling.parse("percentile:1,99,min-max")(image)
        np.testing.assert_array_equal(with_fallback, Scaling.parse("percentile:1,99")(image))

    def test_runs_of_before_keep_their_meaning(self):
        # Both percentiles are 0, so that a step is 255 and all else is clipped.
        image = column([0] * 998 + [1000, 4000], np.uint16)
        scaled = Scaling.parse("percentile:1,99")(image)
        np.testing.assert_array_equal(scaled.ravel()[-3:], [0, 255, 255])


class TestAnyScaling:
    @pytest.mark.parametrize("text", FORMS)
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
    @pytest.mark.filterwarnings("error")
    def test_constant_image_stays_finite(self, text, dtype):
        assert np.isfinite(Scaling.parse(text)(np.ones((3, 4, 2), dtype))).all()

    @pytest.mark.parametrize("text", FORMS)
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_values_that_are_no_numbers_are_refused_with_their_count(self, text, value):
        with pytest.raises(UserError, match=r"holds 2 pixel value\(s\) that are NaN or infinite"):
            Scaling.parse(text)(column([0, value, value], np.float32))

    @pytest.mark.parametrize("text", FORMS)
    def test_image_handed_in_stays_as_it_is(self, text):
        image = column([0, 300, 65535], np.uint16)
        Scaling.parse(text)(image)
        np.testing.assert_array_equal(image.ravel(), [0, 300, 65535])


def noise(dtype):
    """An image [40, 30, 2] whose channels differ in brightness and contrast."""
    levels = np.random.default_rng(0).normal((0.3, 0.6), (0.02, 0.1), (40, 30, 2))
    white = {"uint8": 255, "uint16": 65535, "float32": 1}[np.dtype(dtype).name]
    return (levels.clip(0, 1) * white).astype(dtype)


class TestFit:
    @pytest.mark.parametrize("ends", [[], [20], [1, 2, 9, 39]])
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
    @pytest.mark.parametrize("text", [*FORMS, "percentile:0,100", "percentile:12.3,45.6"])
    def test_bands_are_scaled_as_the_whole(self, text, dtype, ends):
        image, scaling = noise(dtype), Scaling.parse(text)
        bands = np.split(image, ends)
        scale = scaling.fit(iter(bands))
        scaled = np.concatenate([scale(band) for band in bands])
        expected = scaling(image)
        assert scaled.dtype == expected.dtype
        np.testing.assert_allclose(scaled, expected, rtol=1e-6, atol=255e-6)

    @pytest.mark.parametrize("text", ["range", "fixed:1200,340"])
    def test_nothing_is_looked_at_if_nothing_is_measured(self, text):
        bands = iter([column([1, 2], np.uint8)])
        Scaling.parse(text).fit(bands)
        assert len(list(bands)) == 1

    def test_bytes_are_returned_themselves_by_range(self):
        image = column([0, 7, 255], np.uint8)
        assert Scaling.parse("range").fit([image])(image) is image

    def test_deviation_is_that_of_all_bands_together(self):
        # 60002 and three times 60006 have the mean 60005 and the deviation sqrt(3).
        values = [60002, 60006, 60006, 60006]
        bands = [column(values[:1], np.uint16), column(values[1:], np.uint16)]
        scaled = Scaling.parse("zscore").fit(bands)(column(values, np.uint16))
        expected = np.array([-3, 1, 1, 1]) / np.sqrt(3)
        np.testing.assert_allclose(scaled.ravel() / 255 * 4 - 2, expected, rtol=1e-5)

    def test_deviation_survives_a_bright_background(self):
        # Sums of squares in float64 would keep 3 digits: (3e6)^2 * 1e5 pixels is about 1e18.
        image = np.full((100, 1000, 1), 3e6, np.float32)
        image[::2] += 1
        scaled = Scaling.parse("zscore").fit(np.split(image, 10))(image)
        np.testing.assert_allclose(scaled[:2, 0, 0] / 255 * 4 - 2, [1, -1], rtol=1e-6)

    @pytest.mark.parametrize("ends", [[], [1], [5], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]])
    def test_many_floats_are_sampled_at_even_distances(self, monkeypatch, ends):
        # Of 12 pixels every 2nd would be 6, every 4th is 3: 0, 4 and 8.
        monkeypatch.setattr(intensities, "_LARGEST_SAMPLE", 5)
        image = column(range(12), np.float32)
        scaled = Scaling.parse("percentile:0,100").fit(np.split(image, ends))(image)
        np.testing.assert_allclose(scaled.ravel()[[0, 2, 4, 8, 11]], [0, 63.75, 127.5, 255, 255])

    def test_integers_are_all_counted(self, monkeypatch):
        monkeypatch.setattr(intensities, "_LARGEST_SAMPLE", 5)
        image = column(range(12), np.uint8)
        scaled = Scaling.parse("percentile:0,100").fit([image])(image)
        np.testing.assert_allclose(scaled.ravel()[[0, 11]], [0, 255])

    @pytest.mark.parametrize("text", ["zscore", "percentile:1,99"])
    def test_values_that_are_no_numbers_are_refused_as_they_are_measured(self, text):
        bands = [column([0, 1], np.float32), column([0, np.nan], np.float32)]
        with pytest.raises(UserError, match=r"holds 1 pixel value\(s\) that are NaN or infinite"):
            Scaling.parse(text).fit(bands)

    @pytest.mark.parametrize("text", FORMS)
    def test_values_that_are_no_numbers_are_refused_as_they_are_scaled(self, text):
        scale = Scaling.parse(text).fit([column([0, 1], np.float32)])
        with pytest.raises(UserError, match=r"holds 1 pixel value\(s\) that are NaN or infinite"):
            scale(column([0, np.nan], np.float32))

    @pytest.mark.parametrize("text", ["zscore", "percentile:1,99"])
    def test_no_bands_are_refused(self, text):
        with pytest.raises(ValueError, match="at least one row of pixels"):
            Scaling.parse(text).fit([])


class TestDtypeFor:
    @pytest.mark.parametrize(
        ("text", "found", "expected"),
        [
            ("range", {"uint8"}, np.uint8),
            ("range", {"uint8", "uint16"}, np.float32),
            ("range", {"float32"}, np.float32),
            ("zscore", {"uint8"}, np.float32),
            ("percentile:1,99", {"uint8"}, np.float32),
            ("fixed:1,2", {"uint8"}, np.float32),
        ],
    )
    def test_bytes_are_kept_only_where_nothing_is_scaled(self, text, found, expected):
        assert Scaling.parse(text).dtype_for(found) == expected
