import itertools

import numpy as np
import pytest
import tifffile
from PIL import Image

from unet_core.data import images
from unet_core.data.io import limits
from unet_core.data.tiff_bands import open_rows
from unet_core.errors import UserError

HEIGHT, WIDTH = 70, 53
NOISE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
GREY = NOISE[..., 0]
TILES = {"tile": (16, 32)}
STRIPS = {"rowsperstrip": 9}


def read_in_bands(path, step, page=0):
    """The whole picture, read `step` rows at a time."""
    with open_rows(path, page) as opened:
        bands = [
            opened.read(first, min(first + step, opened.height))
            for first in range(0, opened.height, step)
        ]
        assert all(band.shape[1:] == (opened.width, opened.channels) for band in bands)
        assert all(band.dtype == opened.dtype for band in bands)
        return np.concatenate(bands)


@pytest.fixture
def decoded(monkeypatch):
    """The numbers of the strips and tiles that are decoded while the test runs."""
    numbers = []
    decode = tifffile.TiffPage.decode.func

    def spied(page):
        function = decode(page)

        def call(data, index, **options):
            numbers.append(index)
            return function(data, index, **options)

        return call

    monkeypatch.setattr(tifffile.TiffPage, "decode", property(spied))
    return numbers


class TestWhatBandsHold:
    @pytest.mark.parametrize(
        "how",
        [
            {},
            {**STRIPS, "compression": "lzw", "predictor": True},
            {**TILES, "compression": "zstd", "byteorder": ">"},
            {**TILES, "compression": "adobe_deflate", "planarconfig": "separate"},
            {**STRIPS, "planarconfig": "separate", "bigtiff": True},
        ],
        ids=lambda how: "-".join(map(str, how.values())) or "raw",
    )
    @pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
    def test_rows_are_those_that_were_written(self, tmp_path, how, dtype):
        pixels = NOISE.astype(dtype) / np.dtype(dtype).type(255 if dtype == "float32" else 1)
        pixels = pixels.astype(dtype)
        written = np.moveaxis(pixels, -1, 0) if how.get("planarconfig") == "separate" else pixels
        tifffile.imwrite(tmp_path / "a.tif", written, photometric="rgb", **how)
        for step in (7, 1000):
            np.testing.assert_array_equal(read_in_bands(tmp_path / "a.tif", step), pixels)

    def test_pyramid_of_jpeg_tiles_is_read_as_tifffile_reads_it(self, tmp_path):
        with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
            how = {"photometric": "rgb", "compression": "jpeg", "tile": (32, 32), "metadata": None}
            writer.write(NOISE, **how)
            writer.write(NOISE[::2, ::2], subfiletype=1, **how)
        whole = tifffile.imread(tmp_path / "a.tif", key=0)
        np.testing.assert_array_equal(read_in_bands(tmp_path / "a.tif", 11), whole)
        assert images.read_header(tmp_path / "a.tif").pages == 1

    def test_palette_becomes_its_colours_and_bits_are_spread(self, tmp_path):
        colours = np.arange(768, dtype=np.uint16).reshape(3, 256) * 85
        tifffile.imwrite(tmp_path / "a.tif", GREY, photometric="palette", colormap=colours)
        expected = (colours >> 8).T[GREY]
        np.testing.assert_array_equal(read_in_bands(tmp_path / "a.tif", 7), expected)
        tifffile.imwrite(tmp_path / "a.tif", GREY > 99, **STRIPS)
        expected = np.where(GREY > 99, 255, 0)[..., None]
        np.testing.assert_array_equal(read_in_bands(tmp_path / "a.tif", 7), expected)

    def test_other_formats_and_turned_pictures_are_decoded_whole(self, tmp_path):
        images.write_png(tmp_path / "a.png", GREY)
        np.testing.assert_array_equal(read_in_bands(tmp_path / "a.png", 7)[..., 0], GREY)
        tifffile.imwrite(tmp_path / "a.tif", GREY, extratags=[(274, 3, 1, 6, True)])
        turned = np.rot90(GREY, -1)
        np.testing.assert_array_equal(read_in_bands(tmp_path / "a.tif", 7)[..., 0], turned)

    def test_parts_that_a_program_left_out_hold_what_it_says(self, tmp_path):
        # As GDAL writes sparse files: the tag 42113 is the value of what is left out.
        seven = np.full((16, 16), 7, np.uint8)
        tiles = iter([seven, None, None, seven])
        tag = (42113, 2, 2, "9", True)
        tifffile.imwrite(
            tmp_path / "a.tif", tiles, shape=(32, 32), dtype="uint8", tile=(16, 16),
            photometric="minisblack", extratags=[tag], compression="zlib",
        )  # fmt: skip
        expected = np.full((32, 32, 1), 9)
        expected[:16, :16] = expected[16:, 16:] = 7
        np.testing.assert_array_equal(read_in_bands(tmp_path / "a.tif", 7), expected)

    def test_rows_of_an_array_of_numpy_are_read(self, tmp_path):
        np.save(tmp_path / "a.npy", NOISE.astype(">u2"))
        np.testing.assert_array_equal(read_in_bands(tmp_path / "a.npy", 7), NOISE)

    @pytest.mark.parametrize("span", [(0, 0), (5, 4), (-1, 3), (0, HEIGHT + 1)])
    def test_rows_beyond_the_picture_are_refused(self, tmp_path, span):
        tifffile.imwrite(tmp_path / "a.tif", GREY)
        with open_rows(tmp_path / "a.tif") as rows, pytest.raises(ValueError, match="must rise"):
            rows.read(*span)


class TestWhatIsDecoded:
    def test_only_tiles_that_are_touched_and_once_if_bands_overlap(self, tmp_path, decoded):
        # 70 x 53 pixels are 5 rows of 2 tiles of 16 x 32.
        tifffile.imwrite(tmp_path / "a.tif", GREY, compression="zlib", **TILES)
        with open_rows(tmp_path / "a.tif") as rows:
            rows.read(20, 40)
            assert sorted(decoded) == [2, 3, 4, 5]
            rows.read(35, 60)
            assert sorted(decoded) == [2, 3, 4, 5, 6, 7]

    def test_of_one_raw_strip_only_the_rows_are_read(self, tmp_path, monkeypatch):
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, GREY, rowsperstrip=HEIGHT)
        # 4 rows of 53 bytes fit, the picture does not.
        monkeypatch.setattr(limits, "memory_bytes", lambda: 8 * 4 * WIDTH)
        np.testing.assert_array_equal(read_in_bands(path, 4)[..., 0], GREY)
        with pytest.raises(UserError, match=r"a\.tif: has 53x70 pixels"):
            images.read_image(path)

    def test_what_must_be_decoded_at_once_is_limited(self, tmp_path, monkeypatch):
        tifffile.imwrite(tmp_path / "a.tif", GREY, compression="zlib", **TILES)
        # A row of tiles is 2 x 16 x 32 bytes.
        monkeypatch.setattr(limits, "memory_bytes", lambda: 8 * 1024)
        np.testing.assert_array_equal(read_in_bands(tmp_path / "a.tif", 4)[..., 0], GREY)
        monkeypatch.setattr(limits, "memory_bytes", lambda: 8 * 1023)
        with pytest.raises(UserError, match=r"a\.tif: has strips or tiles of 32x16 .* 2 side by"):
            read_in_bands(tmp_path / "a.tif", 4)


class TestDamagedFiles:
    @pytest.mark.parametrize(("how", "share"), itertools.product((TILES, STRIPS), (0.4, 0.8)))
    def test_rows_that_are_cut_off_are_named(self, tmp_path, how, share):
        path = tmp_path / "a.tif"
        # The directory lies before the pixels.
        tifffile.imwrite(path, NOISE, compression="zlib", photometric="rgb", **how)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        with pytest.raises(UserError, match=r"a\.tif, rows \d+ to \d+ of 70: .* cut short"):
            read_in_bands(path, 10)

    def test_strip_that_cannot_be_decoded_is_named_by_its_rows(self, tmp_path):
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, GREY, compression="zlib", **STRIPS)
        with tifffile.TiffFile(path) as tiff:
            offset = tiff.pages.first.dataoffsets[2]
        content = bytearray(path.read_bytes())
        content[offset + 20 : offset + 60] = bytes(40)
        path.write_bytes(bytes(content))
        with open_rows(path) as rows:
            np.testing.assert_array_equal(rows.read(0, 18)[..., 0], GREY[:18])
            with pytest.raises(UserError, match=r"a\.tif, rows 19 to 27 of 70: cannot be decoded"):
                rows.read(18, 19)

    def test_no_more_is_read_of_a_strip_than_it_can_need(self, tmp_path, monkeypatch):
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, GREY, compression="zlib", rowsperstrip=HEIGHT)
        content = path.read_bytes() + bytes(2**20)
        with tifffile.TiffFile(path) as tiff:
            tag = tiff.pages.first.tags["StripByteCounts"]
        content = bytearray(content)
        content[tag.valueoffset : tag.valueoffset + 4] = (2**20).to_bytes(4, "little")
        path.write_bytes(bytes(content))
        read = []
        decode = tifffile.TiffPage.decode.func

        def spied(page):
            return lambda data, index: read.append(len(data)) or decode(page)(data, index)

        monkeypatch.setattr(tifffile.TiffPage, "decode", property(spied))
        np.testing.assert_array_equal(images.read_image(path), GREY)
        # 8 bytes for each of 70 x 53 pixels, and 2^16 for tables.
        assert read == [8 * HEIGHT * WIDTH + 2**16]

    def test_page_beyond_the_stack_and_integers_of_32_bits_are_refused(self, tmp_path):
        Image.fromarray(GREY.astype(np.int32)).save(tmp_path / "a.tif")
        with pytest.raises(UserError, match="holds numbers of the kind int32"):
            open_rows(tmp_path / "a.tif")
        with pytest.raises(UserError, match="there is no page 2, counted from 1"):
            open_rows(tmp_path / "a.tif", 1)
        with pytest.raises(UserError, match=r"b\.tif: cannot be read \(No such file"):
            open_rows(tmp_path / "b.tif")
