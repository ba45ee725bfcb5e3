import cv2
import numpy as np
import pytest
import tifffile

from unet_core.data import survey
from unet_core.data.classes import ClassMap
from unet_core.data.instance_masks import of_objects
from unet_core.data.intensities import Scaling
from unet_core.data.reader import Reader
from unet_core.data.resizing import Resize, nearest, resized
from unet_core.data.samples import Sample, Source
from unet_core.errors import UserError
from unet_core.settings.data import DataSettings, parse_resize


def write(folder, image, mask, **how):
    tifffile.imwrite(folder / "a.tif", image, **how)
    cv2.imwrite(str(folder / "a.png"), mask)
    return Sample("a", Source(folder / "a.tif"), (Source(folder / "a.png"),))


class TestResize:
    def test_text_is_a_factor_or_a_size_of_pixels(self):
        assert parse_resize("") == (1, 0)
        assert parse_resize("0.5") == (0.5, 0)
        assert parse_resize("0.65um") == (0, 0.65)
        for text in ("0", "-1", "nan", "um", "17", "half", "0.5mm"):
            with pytest.raises(UserError, match=r"`resize` \(.*must be a factor from 0.01 to 16"):
                DataSettings(resize=text)

    def test_size_follows_what_the_file_says_of_each_axis(self, tmp_path):
        # 20,000 and 40,000 dots per cm are pixels of 0.5 and 0.25 micrometres: 40 rows of 0.25 are
        # 10 um, which are 10 pixels of 1 um; 60 columns of 0.5 are 30 um.
        sample = write(
            tmp_path,
            np.zeros((40, 60), np.uint8),
            np.zeros((40, 60), np.uint8),
            resolution=(20_000, 40_000),
            resolutionunit="CENTIMETER",
        )
        assert Resize(um=1.0).size(40, 60, sample.image) == (10, 30)
        # What is given counts instead: 40 * 2 / 1.
        assert Resize(um=1.0, pixel_size_um=2.0).size(40, 60, sample.image) == (80, 120)

    def test_unknown_size_of_pixels_is_refused_by_name(self, tmp_path):
        sample = write(tmp_path, np.zeros((4, 6), np.uint8), np.zeros((4, 6), np.uint8))
        found = survey.read_headers(
            [sample], Scaling("range"), ClassMap.parse("0:a,1:b"), channels=1, resize=Resize(um=1.0)
        )
        assert len(found.problems) == 1
        assert f"{sample.image}: the file does not say the size" in found.problems[0]
        assert "`pixel_size_um`" in found.problems[0]
        with pytest.raises(UserError, match="an array or a frame does not say"):
            Resize(um=1.0).size(4, 6)

    def test_absurd_factor_is_refused(self):
        with pytest.raises(UserError, match=r"resized by 50 \(`resize` 0.01um\)"):
            Resize(um=0.01, pixel_size_um=0.5).size(4, 4)


class TestPixels:
    def test_shrinking_is_the_mean_of_areas_and_enlarging_linear(self):
        # 2 x 2 blocks 0, 10, 20, 30 have the mean 15.
        blocks = np.tile(np.array([[0, 10], [20, 30]], np.float32), (2, 3))
        np.testing.assert_array_equal(resized(blocks, (2, 3)), np.full((2, 3), 15))
        # Centres of the new pixels at -0.25, 0.25, 0.75 and 1.25 of the old ones, 0 and 8.
        line = np.array([[0, 8]], np.float32)
        np.testing.assert_array_equal(resized(line, (1, 4)), [[0, 2, 6, 8]])

    @pytest.mark.parametrize("channels", [1, 130])
    def test_any_number_of_channels_and_long_sides_are_kept(self, channels):
        pixels = np.full((70_000 // channels, 2, channels), 7, np.uint8)
        pixels[..., -1] = 9
        found = resized(pixels, (len(pixels) // 2, 1))
        assert found.shape == (len(pixels) // 2, 1, channels)
        assert (found[..., -1] == 9).all()
        assert (found[..., :-1] == 7).all()

    def test_nearest_takes_the_value_at_the_centre(self):
        # Centres of 3 pixels over 6 are at 1, 3 and 5; of 4 over 2 at 0.25, 0.75, 1.25 and 1.75.
        values = np.array([[5, 6, 7, 8, 9, 70_000]], np.int32)
        np.testing.assert_array_equal(nearest(values, (1, 3)), [[6, 8, 70_000]])
        np.testing.assert_array_equal(nearest(values[:, 4:], (2, 4)), [[9, 9, 70_000, 70_000]] * 2)


class TestReader:
    def test_network_sees_means_and_scores_see_the_file(self, tmp_path):
        checks = np.indices((8, 8)).sum(0) % 2
        mask = np.zeros((8, 8), np.uint8)
        mask[:4] = 1
        sample = write(tmp_path, (200 * checks).astype(np.uint8), mask)
        read = Reader(ClassMap.parse("0:a,1:b"), Scaling("range"), resize=Resize(0.5))
        pair = read(sample)
        np.testing.assert_array_equal(pair.image, np.full((4, 4), 100))
        np.testing.assert_array_equal(pair.mask, mask[::2, ::2])
        np.testing.assert_array_equal(read.mask(sample), mask[::2, ::2])
        own = read.at_own_size(sample)
        np.testing.assert_array_equal(own.image, 200 * checks)
        np.testing.assert_array_equal(own.mask, mask)
        counts = survey.count_classes([sample], read, memory=survey.Memory(None, read.classes))
        assert counts[sample].tolist() == [8, 8]

    def test_objects_keep_their_numbers_and_borders_are_of_the_network_s_pixels(self, tmp_path):
        # Objects 300 and 7 meet at column 8; at half the size at column 4, with a border of 1 pixel
        # to each side: columns 3 and 4.
        mask = np.full((16, 16), 300, np.uint16)
        mask[:, 8:] = 7
        classes = of_objects(ClassMap.parse("0:ground,1:cell,2:border"), 1)
        read = Reader(classes, Scaling("range"), resize=Resize(0.5))
        pair = read(write(tmp_path, np.zeros((16, 16), np.uint8), mask))
        np.testing.assert_array_equal(pair.instances[0], [300] * 4 + [7] * 4)
        np.testing.assert_array_equal(pair.mask[0], [1, 1, 1, 2, 2, 1, 1, 1])
