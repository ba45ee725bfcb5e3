import pathlib
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest
import tifffile
from helpers.full_disk import full_disk
from PIL import Image

from unet_core.data import images, tiff_writer
from unet_core.data.tiff_bands import open_rows
from unet_core.data.tiff_writer import TiffWriter
from unet_core.temporary import leftovers

HEIGHT, WIDTH = 50, 37
GREY = (np.arange(HEIGHT)[:, None] * 5 + np.arange(WIDTH)).astype(np.uint8)
RGB = np.dstack([GREY, 255 - GREY, GREY // 2])
RGBA = np.dstack([RGB, GREY // 3 + 90])
DEEP = GREY.astype(np.uint16) * 200 + 7
DEEP_RGB = RGB.astype(np.uint16) * 200 + 7
DEEP_RGBA = RGBA.astype(np.uint16) * 200 + 7
FLOATS = GREY.astype(np.float32) / 256
PALETTE = [[10, 20, 30], [40, 50, 60], [70, 80, 90]]
STORED = {
    "grey": GREY,
    "rgb": RGB,
    "rgba": RGBA,
    "deep": DEEP,
    "deep_rgb": DEEP_RGB,
    "deep_rgba": DEEP_RGBA,
    "floats": FLOATS,
}


def read_rows(path):
    with open_rows(path) as rows:
        return rows.read(0, rows.height)


class TestTiffWriter:
    @pytest.mark.parametrize("step", [1, 7, 50])
    @pytest.mark.parametrize("strip", [1, 1000, 2**20])
    @pytest.mark.parametrize("name", STORED)
    def test_written_pixels_are_read_back_by_all(self, tmp_path, monkeypatch, name, strip, step):
        monkeypatch.setattr(tiff_writer, "_STRIP_TARGET", strip)
        pixels, path = STORED[name], tmp_path / "a.tif"
        channels = 1 if pixels.ndim == 2 else pixels.shape[2]
        with TiffWriter(path, HEIGHT, WIDTH, channels, pixels.dtype) as writer:
            for first in range(0, HEIGHT, step):
                writer.write(pixels[first : first + step])
        assert [file.name for file in tmp_path.iterdir()] == ["a.tif"]
        read = read_rows(path)
        assert read.dtype == pixels.dtype
        np.testing.assert_array_equal(read, pixels.reshape(HEIGHT, WIDTH, -1))
        if not name.startswith("deep_rgb"):
            with Image.open(path) as picture:
                np.testing.assert_array_equal(np.array(picture), pixels)
        else:
            with Image.open(path) as picture:
                np.testing.assert_array_equal(np.array(picture), pixels >> 8)
        by_opencv = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if channels > 1:
            by_opencv = by_opencv[..., [2, 1, 0, 3][:channels]]
        if name == "rgba":
            # OpenCV multiplies by the opacity.
            np.testing.assert_array_equal(by_opencv[..., 3], pixels[..., 3])
        else:
            np.testing.assert_array_equal(by_opencv, pixels)

    def test_rows_may_have_an_axis_for_one_channel(self, tmp_path):
        with TiffWriter(tmp_path / "a.tif", HEIGHT, WIDTH) as writer:
            writer.write(GREY[:20, :, None])
            writer.write(GREY[20:])
        np.testing.assert_array_equal(images.read_image(tmp_path / "a.tif"), GREY)

    def test_last_of_four_channels_is_told_to_be_alpha(self, tmp_path):
        with TiffWriter(tmp_path / "a.tif", HEIGHT, WIDTH, 4) as writer:
            writer.write(RGBA)
        with Image.open(tmp_path / "a.tif") as picture:
            # Extra samples: 2 is opacity by which the colours are not multiplied.
            assert picture.tag_v2[338] == (2,)

    def test_array_may_be_filled_anew_for_each_band(self, tmp_path):
        band = np.empty((25, WIDTH), np.uint8)
        with TiffWriter(tmp_path / "a.tif", HEIGHT, WIDTH) as writer:
            for half in (GREY[:25], GREY[25:]):
                band[:] = half
                writer.write(band)
        np.testing.assert_array_equal(images.read_image(tmp_path / "a.tif"), GREY)

    def test_palette_shows_and_indices_stay(self, tmp_path):
        path = tmp_path / "a.tif"
        with TiffWriter(path, HEIGHT, WIDTH, palette=PALETTE) as writer:
            writer.write(GREY % 4)
        # Index 3 is beyond the palette: black.
        colours = np.array([*PALETTE, [0, 0, 0]])[GREY % 4]
        np.testing.assert_array_equal(images.read_mask(path), GREY % 4)
        np.testing.assert_array_equal(read_rows(path), colours)
        with Image.open(path) as picture:
            assert picture.mode == "P"
            np.testing.assert_array_equal(np.array(picture), GREY % 4)
        by_opencv = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(by_opencv[..., ::-1], colours)

    @pytest.mark.parametrize("name", ["rgb", "deep", "floats"])
    def test_what_may_not_fit_in_32_bits_becomes_a_bigtiff(self, tmp_path, monkeypatch, name):
        pixels, path = STORED[name], tmp_path / "a.tif"
        monkeypatch.setattr(tiff_writer, "_LARGEST_CLASSIC", pixels.nbytes - 1)
        monkeypatch.setattr(tiff_writer, "_STRIP_TARGET", 500)
        channels = 1 if pixels.ndim == 2 else 3
        with TiffWriter(path, HEIGHT, WIDTH, channels, pixels.dtype) as writer:
            writer.write(pixels)
        assert path.read_bytes()[:4] == b"II+\0"
        np.testing.assert_array_equal(read_rows(path), pixels.reshape(HEIGHT, WIDTH, -1))
        np.testing.assert_array_equal(images.read_image(path), pixels)
        by_opencv = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(by_opencv[..., ::-1] if channels == 3 else by_opencv, pixels)

    def test_strips_have_about_a_mebibyte(self, tmp_path):
        # 2^20 bytes are 524 rows of 1000 pixels of 2 bytes.
        with TiffWriter(tmp_path / "a.tif", 2000, 1000, 1, np.uint16) as writer:
            writer.write(np.zeros((2000, 1000), np.uint16))
        with Image.open(tmp_path / "a.tif") as picture:
            assert picture.tag_v2[278] == 524
            assert len(picture.tag_v2[273]) == 4

    def test_nothing_has_the_name_until_the_end(self, tmp_path):
        with TiffWriter(tmp_path / "a.tif", HEIGHT, WIDTH) as writer:
            writer.write(GREY)
            assert len(leftovers(tmp_path)) == 1
            assert not (tmp_path / "a.tif").exists()
        assert [file.name for file in tmp_path.iterdir()] == ["a.tif"]

    def test_missing_rows_are_refused_and_nothing_is_left(self, tmp_path):
        with (
            pytest.raises(ValueError, match=r"a\.tif takes 50 rows, of which 20 were written"),
            TiffWriter(tmp_path / "a.tif", HEIGHT, WIDTH) as writer,
        ):
            writer.write(GREY[:20])
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("count", [20, 50])
    def test_abandoned_file_is_not_left(self, tmp_path, count):
        with TiffWriter(tmp_path / "a.tif", HEIGHT, WIDTH) as writer:
            writer.write(GREY[:count])
            writer.abandon()
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("count", [20, 50])
    def test_error_in_the_block_passes_and_nothing_is_left(self, tmp_path, count):
        def write():
            with TiffWriter(tmp_path / "a.tif", HEIGHT, WIDTH) as writer:
                writer.write(GREY[:count])
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write()
        assert not list(tmp_path.iterdir())

    def test_unfinished_file_leaves_the_old_one(self, tmp_path):
        images.write_png(tmp_path / "a.tif", GREY)
        with TiffWriter(tmp_path / "a.tif", HEIGHT, WIDTH) as writer:
            writer.abandon()
        np.testing.assert_array_equal(images.read_image(tmp_path / "a.tif"), GREY)

    def test_finished_file_replaces_the_old_one(self, tmp_path):
        images.write_png(tmp_path / "a.tif", 255 - GREY)
        with TiffWriter(tmp_path / "a.tif", HEIGHT, WIDTH) as writer:
            writer.write(GREY)
        np.testing.assert_array_equal(images.read_image(tmp_path / "a.tif"), GREY)

    def test_what_a_killed_process_leaves_is_removed_by_the_next_write(self, tmp_path):
        program = (
            "import os, signal, numpy as np\n"
            "from unet_core.data.tiff_writer import TiffWriter\n"
            f"with TiffWriter({str(tmp_path / 'a.tif')!r}, 3, 5) as writer:\n"
            "    writer.write(np.zeros((3, 5), np.uint8))\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        root = pathlib.Path(tiff_writer.__file__).parents[2]
        ended = subprocess.run([sys.executable, "-c", program], cwd=root, check=False)
        assert ended.returncode == -signal.SIGKILL
        assert len(leftovers(tmp_path)) == 1
        assert not (tmp_path / "a.tif").exists()
        images.write_png(tmp_path / "b.png", GREY)
        assert [file.name for file in tmp_path.iterdir()] == ["b.png"]

    @pytest.mark.parametrize("height", [50, 1500])
    def test_full_disk_is_told_of_the_final_file(self, tmp_path, height):
        # 50 rows stay in the buffer until the end, 1500 noisy ones do not.
        noise = np.random.default_rng(0).integers(0, 256, (height, height), np.uint8)
        with (
            full_disk(),
            pytest.raises(OSError, match=r"No space left on device: '.*/a\.tif'"),
            TiffWriter(tmp_path / "a.tif", height, height) as writer,
        ):
            writer.write(noise)
        assert not list(tmp_path.iterdir())

    def test_name_of_a_folder_is_told(self, tmp_path):
        (tmp_path / "a.tif").mkdir()
        with (
            pytest.raises(OSError, match=r"Is a directory: '.*/a\.tif'"),
            TiffWriter(tmp_path / "a.tif", HEIGHT, WIDTH) as writer,
        ):
            writer.write(GREY)
        assert [file.name for file in tmp_path.iterdir()] == ["a.tif"]

    def test_missing_folder_is_told_of_the_final_file(self, tmp_path):
        with (
            pytest.raises(FileNotFoundError, match=r"'.*/none/a\.tif'"),
            TiffWriter(tmp_path / "none" / "a.tif", HEIGHT, WIDTH),
        ):
            pass

    def test_writer_that_is_not_entered_makes_no_file(self, tmp_path):
        TiffWriter(tmp_path / "a.tif", HEIGHT, WIDTH)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        "band", [GREY[:, 1:], RGB, DEEP, GREY[0], GREY[None], np.zeros((5, WIDTH, 1, 1), np.uint8)]
    )
    def test_rows_of_another_shape_or_type_are_refused(self, tmp_path, band):
        with TiffWriter(tmp_path / "a.tif", HEIGHT, WIDTH) as writer:
            with pytest.raises(ValueError, match=r"Expected rows \[h, 37, 1\] of uint8. Received"):
                writer.write(band)
            writer.abandon()

    def test_too_many_rows_are_refused(self, tmp_path):
        with TiffWriter(tmp_path / "a.tif", HEIGHT, WIDTH) as writer:
            writer.write(GREY)
            with pytest.raises(ValueError, match=r"takes 50 rows. Received 1 after 50"):
                writer.write(GREY[:1])
        np.testing.assert_array_equal(images.read_image(tmp_path / "a.tif"), GREY)

    @pytest.mark.parametrize(
        ("shape", "options"),
        [
            ((0, 5), {}),
            ((5, 0), {}),
            ((5, 5), {"channels": 2}),
            ((5, 5), {"channels": 3, "dtype": np.float32}),
            ((5, 5), {"dtype": np.int32}),
            ((5, 5), {"dtype": np.uint16, "palette": PALETTE}),
            ((5, 5), {"channels": 3, "palette": PALETTE}),
            ((5, 5), {"palette": [[0, 0, 0]] * 257}),
        ],
    )
    def test_what_no_file_can_hold_is_refused(self, tmp_path, shape, options):
        with pytest.raises(ValueError, match=r"a\.tif: cannot hold .*channels 1, or 3 or 4"):
            TiffWriter(tmp_path / "a.tif", *shape, **options)

    def test_tags_of_the_image_are_taken_over(self, tmp_path):
        tags = {
            282: (282, 5, 1, (300, 1)),
            283: (283, 5, 1, (151, 2)),
            296: (296, 3, 1, 3),
            33550: (33550, 12, 3, (0.5, 0.5, 0.0)),
            34737: (34737, 2, 8, "WGS 84|"),
        }
        with TiffWriter(tmp_path / "a.tif", HEIGHT, WIDTH, metadata=tags) as writer:
            writer.write(GREY)
        with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
            found = tiff.pages.first.tags
            assert {code: found[code].value for code in tags} == {n: t[3] for n, t in tags.items()}
