import itertools
import os
import pathlib
import signal
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
from helpers.full_disk import full_disk
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from unet_core.data import images, tiff_bands
from unet_core.data.tiff_bands import TiffWriter, open_rows
from unet_core.errors import UserError
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


def read_in_bands(path, step, page=0):
    """The whole picture, read `step` rows at a time."""
    with open_rows(path, page) as opened:
        bands = [
            opened.read(first, min(first + step, opened.height))
            for first in range(0, opened.height, step)
        ]
        band_shape = (opened.width, opened.channels)
        assert all(band.shape[1:] == band_shape for band in bands)
        assert all(band.dtype == opened.dtype for band in bands)
        pixels = np.concatenate(bands)
        assert pixels.shape == (opened.height, opened.width, opened.channels)
    return pixels


def assert_reads_as_whole(path, page=0):
    """Asserts that bands of any height hold what `images.read_image` returns."""
    whole = images.read_image(path, page)
    whole = whole.reshape(*whole.shape[:2], -1)
    for step in (1, 7, 16, 1000):
        read = read_in_bands(path, step, page)
        assert read.dtype == whole.dtype
        assert read.dtype.isnative
        np.testing.assert_array_equal(read, whole)


def tiff(tags, parts=(), order="<", big=False, tiled=False):
    """A TIFF by hand: header, the strips or tiles `parts` (bytes), directory; numbers of 32 bits,
    offsets of 64 in a BigTIFF. `tags` may replace what follows from the parts.
    """
    head = struct.pack(order + ("HHHQ" if big else "HI"), *((43, 8, 0, 0) if big else (42, 0)))
    content = bytearray((b"II" if order == "<" else b"MM") + head)
    offsets = []
    for part in parts:
        offsets.append(len(content))
        content += part
    places, lengths = (324, 325) if tiled else (273, 279)
    tags = {places: offsets, lengths: [len(part) for part in parts], **tags}
    entries = []
    for tag, values in sorted(tags.items()):
        values = values if isinstance(values, list) else [values]
        kind, code = (16, "Q") if big and tag == places else (4, "I")
        packed = struct.pack(f"{order}{len(values)}{code}", *values)
        if len(packed) > (8 if big else 4):
            place = len(content)
            content += packed
            packed = struct.pack(order + ("Q" if big else "I"), place)
        entry = struct.pack(order + ("HHQ" if big else "HHI"), tag, kind, len(values))
        entries.append(entry + packed.ljust(8 if big else 4, b"\0"))
    directory = struct.pack(order + ("Q" if big else "I"), len(content))
    content[4 + 4 * big : 4 + 4 * big + len(directory)] = directory
    content += struct.pack(order + ("Q" if big else "H"), len(entries)) + b"".join(entries)
    return bytes(content + bytes(8 if big else 4))


def describe(pixels, compression=1):
    """The tags of a TIFF of `pixels` that say nothing of strips or tiles."""
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    tags = {
        256: pixels.shape[1],
        257: pixels.shape[0],
        258: [pixels.dtype.itemsize * 8] * channels,
        259: compression,
        262: 1 if channels == 1 else 2,
        277: channels,
        339: [3 if pixels.dtype.kind == "f" else 1] * channels,
    }
    return {**tags, 338: 2} if channels == 4 else tags


def in_strips(pixels, height, pack=bytes, order="<"):
    stored = pixels.astype(pixels.dtype.newbyteorder(order))
    return [pack(stored[y : y + height].tobytes()) for y in range(0, len(stored), height)]


def in_tiles(pixels, height, width, pack=bytes, order="<"):
    stored = pixels.astype(pixels.dtype.newbyteorder(order))
    below, right = -len(stored) % height, -stored.shape[1] % width
    stored = np.pad(stored, ((0, below), (0, right)) + ((0, 0),) * (pixels.ndim - 2))
    return [
        pack(stored[y : y + height, x : x + width].tobytes())
        for y, x in itertools.product(
            range(0, len(stored), height), range(0, stored.shape[1], width)
        )
    ]


def striped_tiff(pixels, height, *, deflate=False, order="<", big=False, **changes):
    parts = in_strips(pixels, height, zlib.compress if deflate else bytes, order)
    more = {int(tag[1:]): value for tag, value in changes.items()}
    tags = {**describe(pixels, 8 if deflate else 1), 278: height, **more}
    return tiff(tags, parts, order, big)


def tiled_tiff(pixels, height, width, *, deflate=False, order="<", big=False, **changes):
    parts = in_tiles(pixels, height, width, zlib.compress if deflate else bytes, order)
    more = {int(tag[1:]): value for tag, value in changes.items()}
    tags = {**describe(pixels, 8 if deflate else 1), 322: width, 323: height, **more}
    return tiff(tags, parts, order, big, tiled=True)


@pytest.fixture
def decoded(monkeypatch):
    """The sizes of all that is decoded while the test runs, in order."""
    sizes = []
    decode = images.image_pixels

    def spy(picture, *args):
        sizes.append(picture.size)
        return decode(picture, *args)

    monkeypatch.setattr(images, "image_pixels", spy)
    return sizes


class TestWhatBandsHold:
    @pytest.mark.parametrize("height", [8, 13, 50, 100])
    @pytest.mark.parametrize("deflate", [False, True])
    @pytest.mark.parametrize("name", STORED)
    def test_strips_hold_what_was_stored(self, tmp_path, name, deflate, height):
        (tmp_path / "a.tif").write_bytes(striped_tiff(STORED[name], height, deflate=deflate))
        expected = STORED[name].reshape(HEIGHT, WIDTH, -1)
        np.testing.assert_array_equal(read_in_bands(tmp_path / "a.tif", 7), expected)
        assert_reads_as_whole(tmp_path / "a.tif")

    # Pillow 13.0 does not read a BigTIFF that is big-endian.
    @pytest.mark.parametrize(("order", "big"), [("<", False), (">", False), ("<", True)])
    @pytest.mark.parametrize("deflate", [False, True])
    @pytest.mark.parametrize("name", STORED)
    def test_tiles_that_do_not_divide_the_picture_hold_what_was_stored(
        self, tmp_path, name, deflate, big, order
    ):
        content = tiled_tiff(STORED[name], 16, 32, deflate=deflate, order=order, big=big)
        (tmp_path / "a.tif").write_bytes(content)
        expected = STORED[name].reshape(HEIGHT, WIDTH, -1)
        np.testing.assert_array_equal(read_in_bands(tmp_path / "a.tif", 7), expected)
        assert_reads_as_whole(tmp_path / "a.tif")

    # Pillow 13.0 does not read a BigTIFF that is big-endian.
    @pytest.mark.parametrize(("order", "big"), [("<", False), (">", False), ("<", True)])
    @pytest.mark.parametrize("name", STORED)
    def test_both_byte_orders_and_bigtiff_are_read(self, tmp_path, name, big, order):
        content = striped_tiff(STORED[name], 8, deflate=True, order=order, big=big)
        assert content[2:4] in (b"\x2a\0", b"\0\x2a", b"\x2b\0", b"\0\x2b")
        (tmp_path / "a.tif").write_bytes(content)
        expected = STORED[name].reshape(HEIGHT, WIDTH, -1)
        np.testing.assert_array_equal(read_in_bands(tmp_path / "a.tif", 7), expected)

    @pytest.mark.parametrize(
        ("compression", "name"),
        [
            *itertools.product(
                ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd", "lzma"),
                ("grey", "rgb", "rgba", "deep", "floats"),
            ),
            ("jpeg", "grey"),
            ("jpeg", "rgb"),
        ],
    )
    def test_every_compression_of_pillow_is_read(self, tmp_path, decoded, compression, name):
        path = tmp_path / "a.tif"
        tags = {278: 16}
        try:
            Image.fromarray(STORED[name]).save(path, compression=compression, tiffinfo=tags)
        except (OSError, RuntimeError) as error:
            if compression != "zstd":
                raise
            # Pillow 11 and 12 come with a TIFF library that has none.
            pytest.skip(f"this Pillow writes no TIFF with zstd ({error})")
        assert_reads_as_whole(path)
        if compression != "raw":
            assert (WIDTH, 16) in decoded

    @pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt", "tiff_lzw", "raw"])
    def test_single_bits_are_spread(self, tmp_path, compression):
        bits = GREY % 7 > 2
        Image.fromarray(bits).save(tmp_path / "a.tif", compression=compression, tiffinfo={278: 16})
        expected = np.where(bits, 255, 0)[..., None]
        np.testing.assert_array_equal(read_in_bands(tmp_path / "a.tif", 7), expected)
        assert_reads_as_whole(tmp_path / "a.tif")

    def test_fax_code_of_two_dimensions_is_read(self, tmp_path, decoded):
        bits = GREY % 7 > 2
        tags = {278: 16, 292: 1}
        Image.fromarray(bits).save(tmp_path / "a.tif", compression="group3", tiffinfo=tags)
        expected = np.where(bits, 255, 0)[..., None]
        np.testing.assert_array_equal(read_in_bands(tmp_path / "a.tif", 7), expected)
        assert decoded == [(WIDTH, 16)] * 3 + [(WIDTH, 2)]

    @pytest.mark.parametrize("fill_order", [1, 2])
    @pytest.mark.parametrize("bits", [1, 2, 4])
    def test_raw_grey_of_few_bits_is_spread(self, tmp_path, bits, fill_order):
        # 5 columns: the rows end within a byte.
        per_byte = 8 // bits
        stored = np.random.default_rng(0).integers(0, 256, (9, -(-5 // per_byte)), np.uint8)
        parts = [stored[y : y + 4].tobytes() for y in (0, 4, 8)]
        tags = {256: 5, 257: 9, 258: bits, 259: 1, 262: 1, 266: fill_order, 277: 1, 278: 4}
        (tmp_path / "a.tif").write_bytes(tiff(tags, parts))
        assert_reads_as_whole(tmp_path / "a.tif")

    @pytest.mark.parametrize("name", ["grey", "rgb", "deep", "deep_rgb"])
    def test_differences_of_neighbours_are_added_up(self, tmp_path, name):
        stored = STORED[name].copy()
        stored[:, 1:] -= STORED[name][:, :-1]
        content = striped_tiff(stored, 16, deflate=True, t317=2)
        (tmp_path / "a.tif").write_bytes(content)
        expected = STORED[name].reshape(HEIGHT, WIDTH, -1)
        np.testing.assert_array_equal(read_in_bands(tmp_path / "a.tif", 7), expected)
        assert_reads_as_whole(tmp_path / "a.tif")

    @pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
    def test_palette_becomes_its_colours(self, tmp_path, compression):
        picture = Image.fromarray(GREY % 3)
        picture.putpalette([level for colour in PALETTE for level in colour])
        picture.save(tmp_path / "a.tif", compression=compression, tiffinfo={278: 16})
        expected = np.array(PALETTE)[GREY % 3]
        np.testing.assert_array_equal(read_in_bands(tmp_path / "a.tif", 7), expected)
        assert_reads_as_whole(tmp_path / "a.tif")

    @pytest.mark.parametrize("name", ["rgb", "deep_rgb", "deep_rgba", "floats"])
    def test_files_of_opencv_are_read(self, tmp_path, name):
        pixels = STORED[name]
        swapped = pixels if pixels.ndim == 2 else pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
        cv2.imwrite(str(tmp_path / "a.tif"), swapped, [cv2.IMWRITE_TIFF_ROWSPERSTRIP, 8])
        expected = pixels.reshape(HEIGHT, WIDTH, -1)
        np.testing.assert_array_equal(read_in_bands(tmp_path / "a.tif", 7), expected)
        assert_reads_as_whole(tmp_path / "a.tif")

    def test_jpeg_with_sampled_colours_is_read(self, tmp_path, decoded):
        tags = [cv2.IMWRITE_TIFF_COMPRESSION, 7, cv2.IMWRITE_TIFF_ROWSPERSTRIP, 16]
        cv2.imwrite(str(tmp_path / "a.tif"), RGB, tags)
        assert_reads_as_whole(tmp_path / "a.tif")
        assert (WIDTH, 16) in decoded

    @pytest.mark.parametrize("page", [0, 1, 2])
    @pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
    def test_each_page_of_a_stack_is_read(self, tmp_path, compression, page):
        pages = [Image.fromarray(GREY + i) for i in range(3)]
        pages[0].save(
            tmp_path / "a.tif", save_all=True, append_images=pages[1:], compression=compression
        )
        read = read_in_bands(tmp_path / "a.tif", 7, page)
        np.testing.assert_array_equal(read[..., 0], GREY + page)

    @pytest.mark.parametrize("page", [0, 1])
    def test_page_of_deep_colours_is_read(self, tmp_path, page):
        cv2.imwritemulti(str(tmp_path / "a.tif"), [DEEP_RGB, DEEP_RGB + 1])
        read = read_in_bands(tmp_path / "a.tif", 7, page)
        np.testing.assert_array_equal(read[..., ::-1], DEEP_RGB + page)

    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
    def test_other_formats_are_decoded_once(self, tmp_path, decoded, suffix):
        Image.fromarray(RGB).save(tmp_path / f"a{suffix}")
        read = read_in_bands(tmp_path / f"a{suffix}", 7)
        assert decoded == [(WIDTH, HEIGHT)]
        np.testing.assert_array_equal(read, images.read_image(tmp_path / f"a{suffix}"))

    def test_channels_in_planes_are_decoded_once(self, tmp_path, decoded):
        planes = [plane for channel in np.moveaxis(RGB, 2, 0) for plane in in_strips(channel, 50)]
        tags = {**describe(RGB), 278: 50, 284: 2}
        (tmp_path / "a.tif").write_bytes(tiff(tags, planes))
        np.testing.assert_array_equal(read_in_bands(tmp_path / "a.tif", 7), RGB)
        assert decoded == [(WIDTH, HEIGHT)]

    def test_jpeg_of_tiff_6_is_decoded_once(self, tmp_path, decoded):
        Image.fromarray(RGB).save(tmp_path / "a.jpg", subsampling=0)
        jpeg = (tmp_path / "a.jpg").read_bytes()
        # Tags 513 and 514 are place and length of the JPEG, 530 is how the colours are sampled.
        tags = {262: 6, 278: 50, 513: 8, 514: len(jpeg), 530: [1, 1]}
        (tmp_path / "a.tif").write_bytes(tiff({**describe(RGB, 6), **tags}, [jpeg]))
        read_in_bands(tmp_path / "a.tif", 7)
        assert decoded == [(WIDTH, HEIGHT)]
        assert_reads_as_whole(tmp_path / "a.tif")

    def test_lengths_that_are_not_listed_are_not_needed(self, tmp_path):
        for deflate in (False, True):
            content = striped_tiff(GREY, 50, deflate=deflate).replace(
                struct.pack("<HHI", 279, 4, 1), struct.pack("<HHI", 65000, 4, 1)
            )
            (tmp_path / "a.tif").write_bytes(content)
            np.testing.assert_array_equal(read_in_bands(tmp_path / "a.tif", 7)[..., 0], GREY)

    @pytest.mark.parametrize("deflate", [False, True])
    def test_strips_in_any_order_are_read(self, tmp_path, deflate):
        # The strips lie from bottom to top.
        parts = in_strips(GREY, 10, zlib.compress if deflate else bytes)[::-1]
        offsets = [8 + sum(map(len, parts[:i])) for i in range(5)][::-1]
        lengths = [len(part) for part in parts][::-1]
        tags = {**describe(GREY, 8 if deflate else 1), 278: 10, 273: offsets, 279: lengths}
        (tmp_path / "a.tif").write_bytes(tiff(tags, parts))
        np.testing.assert_array_equal(read_in_bands(tmp_path / "a.tif", 7)[..., 0], GREY)

    @pytest.mark.parametrize("suffix", [".png", ".tif"])
    def test_bands_may_be_written_to(self, tmp_path, suffix):
        Image.fromarray(GREY).save(tmp_path / f"a{suffix}")
        with open_rows(tmp_path / f"a{suffix}") as opened:
            opened.read(0, 5)[:] = 0
            np.testing.assert_array_equal(opened.read(0, 5)[..., 0], GREY[:5])

    @pytest.mark.parametrize("span", [(-1, 3), (3, 3), (4, 3), (0, 51)])
    def test_rows_beyond_the_picture_are_refused(self, tmp_path, span):
        Image.fromarray(GREY).save(tmp_path / "a.tif")
        with (
            open_rows(tmp_path / "a.tif") as opened,
            pytest.raises(ValueError, match=r"must rise within 0 to 50"),
        ):
            opened.read(*span)


class TestWhatIsDecoded:
    def test_only_strips_that_are_touched(self, tmp_path, decoded):
        (tmp_path / "a.tif").write_bytes(striped_tiff(GREY, 8, deflate=True))
        with open_rows(tmp_path / "a.tif") as opened:
            opened.read(15, 17)
        assert decoded == [(WIDTH, 8)] * 2

    def test_only_tiles_that_are_touched(self, tmp_path, decoded):
        # 37 columns are 3 tiles of 16.
        (tmp_path / "a.tif").write_bytes(tiled_tiff(GREY, 16, 16, deflate=True))
        with open_rows(tmp_path / "a.tif") as opened:
            opened.read(16, 32)
        assert decoded == [(16, 16)] * 3

    def test_bands_that_overlap_decode_everything_once(self, tmp_path, decoded):
        # 50 rows are 7 strips of 8 rows, the last of 2.
        (tmp_path / "a.tif").write_bytes(striped_tiff(GREY, 8, deflate=True))
        with open_rows(tmp_path / "a.tif") as opened:
            for first in range(0, 40, 4):
                band = opened.read(first, first + 14)
                np.testing.assert_array_equal(band[..., 0], GREY[first : first + 14])
        assert decoded == [(WIDTH, 8)] * 6 + [(WIDTH, 2)]

    def test_going_back_within_the_last_band_decodes_nothing(self, tmp_path, decoded):
        (tmp_path / "a.tif").write_bytes(striped_tiff(GREY, 8, deflate=True))
        with open_rows(tmp_path / "a.tif") as opened:
            opened.read(8, 32)
            del decoded[:]
            np.testing.assert_array_equal(opened.read(20, 32)[..., 0], GREY[20:32])
            assert not decoded

    def test_what_the_last_band_did_not_touch_is_let_go(self, tmp_path, decoded):
        (tmp_path / "a.tif").write_bytes(striped_tiff(GREY, 8, deflate=True))
        with open_rows(tmp_path / "a.tif") as opened:
            opened.read(0, 8)
            opened.read(8, 16)
            opened.read(0, 8)
        assert len(decoded) == 3

    def test_only_the_rows_wanted_of_one_raw_strip(self, tmp_path, decoded):
        # 2^20 bytes are 262 rows of 4000: the rows 262 to 523 hold 300 to 400.
        pixels = (np.arange(1500)[:, None] + np.arange(4000)).astype(np.uint8)
        (tmp_path / "a.tif").write_bytes(striped_tiff(pixels, 1500))
        with open_rows(tmp_path / "a.tif") as opened:
            np.testing.assert_array_equal(opened.read(300, 400)[..., 0], pixels[300:400])
        assert decoded == [(4000, 262)]
        np.testing.assert_array_equal(read_in_bands(tmp_path / "a.tif", 499)[..., 0], pixels)

    def test_raw_strips_apart_are_cut_where_they_divide(self, tmp_path, decoded, monkeypatch):
        # A strip of 10 rows apart from the next; 4 rows would fit, and 2 divide 10.
        monkeypatch.setattr(tiff_bands, "_STRIP_TARGET", 4 * WIDTH)
        parts = [part + b"apart" for part in in_strips(GREY[:45], 10)]
        tags = {**describe(GREY[:45]), 278: 10}
        (tmp_path / "a.tif").write_bytes(tiff(tags, parts))
        np.testing.assert_array_equal(read_in_bands(tmp_path / "a.tif", 45)[..., 0], GREY[:45])
        # The last of the 23 has the one row that is left.
        assert decoded == [(WIDTH, 2)] * 22 + [(WIDTH, 1)]

    @pytest.mark.parametrize("tiled", [False, True])
    def test_large_compressed_segment_is_decoded_once(self, tmp_path, decoded, monkeypatch, tiled):
        monkeypatch.setattr(tiff_bands, "_LARGEST_SEGMENT", 48 * 25 - 1)
        content = tiled_tiff(GREY, 32, 48, deflate=True) if tiled else None
        content = content or striped_tiff(GREY, 40, deflate=True)
        (tmp_path / "a.tif").write_bytes(content)
        np.testing.assert_array_equal(read_in_bands(tmp_path / "a.tif", 7)[..., 0], GREY)
        assert decoded == [(WIDTH, HEIGHT)]

    def test_picture_too_large_to_be_decoded_whole_is_read(self, tmp_path):
        # 600 million pixels, of which the disk holds none but the last.
        tags = {256: 30000, 257: 20000, 258: 8, 259: 1, 262: 1, 273: 4096, 277: 1, 278: 20000}
        with open(tmp_path / "a.tif", "wb") as file:
            file.write(tiff({**tags, 279: 30000 * 20000}))
            file.seek(4096 + 30000 * 20000 - 1)
            file.write(b"\7")
        with pytest.raises(UserError, match=r"a\.tif: has 30000x20000 pixels; at most"):
            images.read_image(tmp_path / "a.tif")
        with open_rows(tmp_path / "a.tif") as opened:
            band = opened.read(19990, 20000)
            assert opened.read(0, 1).shape == (1, 30000, 1)
        assert band[-1, -1, 0] == 7
        assert np.count_nonzero(band) == 1


class TestDamagedFiles:
    def refuse(self, tmp_path, content, message, span=(0, 1)):
        (tmp_path / "a.tif").write_bytes(content)
        with (
            pytest.raises(UserError, match=rf"a\.tif.*{message}"),
            open_rows(tmp_path / "a.tif") as opened,
        ):
            opened.read(*span)

    @pytest.mark.parametrize("deflate", [False, True])
    @pytest.mark.parametrize("offset", [2**32 - 1, 10**6])
    def test_strip_outside_the_file_is_named_by_its_rows(self, tmp_path, offset, deflate):
        # The second of three strips.
        content = striped_tiff(GREY, 20, deflate=deflate, t273=[8, offset, 8])
        self.refuse(tmp_path, content, r"does not hold its rows 21 to 40 of 50 \(\d+ bytes")

    def test_offset_of_64_bits_outside_the_file_is_refused(self, tmp_path):
        content = striped_tiff(GREY, 20, deflate=True, big=True, t273=[16, 2**64 - 1, 16])
        self.refuse(tmp_path, content, "does not hold its rows 21 to 40 of 50")

    @pytest.mark.parametrize("length", [0, 10**6, 2**32 - 1])
    def test_absurd_length_of_a_strip_is_refused(self, tmp_path, length):
        content = striped_tiff(GREY, 20, deflate=True, t279=[20, 20, length])
        self.refuse(tmp_path, content, "does not hold its rows 41 to 50 of 50")

    @pytest.mark.parametrize("tag", [273, 278, 279, 317])
    @pytest.mark.parametrize("kind", [5, 12])
    def test_fractions_in_place_of_whole_numbers_are_refused(self, tmp_path, tag, kind):
        # Kind 5 is a fraction, 12 a float of 64 bits.
        content = striped_tiff(GREY, 20, deflate=True, big=True, t317=1)
        at = content.index(struct.pack("<HH", tag, 16 if tag == 273 else 4), len(content) - 300)
        content = content[: at + 2] + struct.pack("<H", kind) + content[at + 4 :]
        self.refuse(tmp_path, content, "cannot be decoded as a picture .* damaged")

    @pytest.mark.parametrize("tag", [322, 323, 324, 325])
    def test_fractions_in_the_place_of_tiles_are_refused(self, tmp_path, tag):
        content = tiled_tiff(GREY, 16, 32, deflate=True, big=True)
        at = content.index(struct.pack("<HH", tag, 16 if tag == 324 else 4), len(content) - 300)
        content = content[: at + 2] + struct.pack("<H", 12) + content[at + 4 :]
        self.refuse(tmp_path, content, "cannot be decoded as a picture .* damaged")

    def test_no_more_is_read_of_a_strip_than_it_can_need(self, tmp_path, monkeypatch):
        # Rows of 37 bytes: at most 8 * 37 * 20 + 2^16 are read of the 10^6 that are named.
        taken, small = [], tiff_bands._small_tiff
        monkeypatch.setattr(
            tiff_bands,
            "_small_tiff",
            lambda tags, data, order: taken.append(len(data)) or small(tags, data, order),
        )
        parts = in_strips(GREY, 20, zlib.compress)
        tags = {**describe(GREY, 8), 278: 20, 279: [10**6, *(len(part) for part in parts[1:])]}
        (tmp_path / "a.tif").write_bytes(tiff(tags, parts) + bytes(10**6))
        with open_rows(tmp_path / "a.tif") as opened:
            np.testing.assert_array_equal(opened.read(0, 20)[..., 0], GREY[:20])
        assert taken == [8 * 37 * 20 + 2**16]

    def test_tile_outside_the_file_is_named_by_its_rows(self, tmp_path):
        # Of 2 tiles side by side and 4 down, the sixth begins in row 33.
        content = tiled_tiff(GREY, 16, 32, t324=[8, 8, 8, 8, 8, 10**6, 8, 8])
        self.refuse(tmp_path, content, "does not hold its rows 33 to 48 of 50")

    @pytest.mark.parametrize("tag", ["t256", "t257"])
    def test_raw_picture_smaller_than_its_header_says_is_refused(self, tmp_path, tag):
        content = striped_tiff(GREY, 50, **{tag: 2**32 - 1, "t278": 2**32 - 1})
        self.refuse(tmp_path, content, r"does not hold its rows 1 to ")

    def test_more_rows_than_the_strips_hold_are_refused(self, tmp_path):
        # 4294967295 / 20, rounded up.
        content = striped_tiff(GREY, 20, deflate=True, t257=2**32 - 1)
        self.refuse(tmp_path, content, "lists 3 strips or tiles, but .* are 214748365")

    def test_more_columns_than_the_tiles_hold_are_refused(self, tmp_path):
        content = tiled_tiff(GREY, 16, 32, t256=320)
        self.refuse(tmp_path, content, "lists 8 strips or tiles, but its 320x50 pixels are 40")

    def test_wide_rows_of_compressed_strips_are_refused(self, tmp_path):
        content = striped_tiff(GREY, 20, deflate=True, t256=2**30)
        (tmp_path / "a.tif").write_bytes(content)
        with pytest.raises(UserError, match=r"a\.tif: has 1073741824x50 pixels; at most"):
            open_rows(tmp_path / "a.tif")

    def test_too_many_pixels_in_one_row_of_tiles_are_refused(self, tmp_path):
        # Each tile of 2^24 pixels is the same few bytes; 33 have more than 2^29.
        tags = {**describe(GREY, 8), 256: 33 * 4096, 257: 4096, 322: 4096, 323: 4096}
        content = tiff({**tags, 324: [8] * 33, 325: [9] * 33}, [b"too small"], tiled=True)
        self.refuse(tmp_path, content, "has tiles of 4096x4096 pixels, 33 side by side; at most")

    @pytest.mark.parametrize("size", [{"t322": 0}, {"t323": 0}])
    def test_tiles_without_pixels_are_refused(self, tmp_path, size):
        self.refuse(tmp_path, tiled_tiff(GREY, 16, 32, deflate=True, **size), "must be damaged")

    def test_strips_without_rows_are_refused(self, tmp_path):
        self.refuse(tmp_path, striped_tiff(GREY, 20, deflate=True, t278=0), "must be damaged")

    @pytest.mark.parametrize("name", ["grey", "rgb", "deep", "deep_rgb", "floats"])
    @pytest.mark.parametrize("what", ["noise", "short"])
    def test_strip_that_cannot_be_decoded_is_named_by_its_rows(self, tmp_path, name, what):
        pixels = STORED[name]
        parts = in_strips(pixels, 20, zlib.compress)
        parts[1] = b"\x55" * 60 if what == "noise" else zlib.compress(pixels[:3].tobytes())
        content = tiff({**describe(pixels, 8), 278: 20}, parts)
        (tmp_path / "a.tif").write_bytes(content)
        with open_rows(tmp_path / "a.tif") as opened:
            np.testing.assert_array_equal(opened.read(0, 20), pixels[:20].reshape(20, WIDTH, -1))
            with pytest.raises(UserError, match=r"a\.tif, rows 21 to 40 of 50: .*damaged"):
                opened.read(10, 30)
            np.testing.assert_array_equal(opened.read(40, 50), pixels[40:].reshape(10, WIDTH, -1))

    def test_file_cut_after_it_was_opened_is_refused(self, tmp_path):
        (tmp_path / "a.tif").write_bytes(striped_tiff(GREY, 20))
        with open_rows(tmp_path / "a.tif") as opened:
            os.truncate(tmp_path / "a.tif", 100)
            with pytest.raises(UserError, match=r"a\.tif, rows 1 to 50 of 50: .*cut short"):
                opened.read(0, 50)

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
    @pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_cut_file_is_refused(self, tmp_path, suffix, share):
        path = tmp_path / f"a{suffix}"
        Image.fromarray(GREY).save(path)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        with pytest.raises(UserError, match=rf"a\{suffix}: .*cut short"), open_rows(path) as opened:
            opened.read(0, HEIGHT)

    def test_integers_of_32_bits_are_refused(self, tmp_path):
        Image.fromarray(GREY.astype(np.int32)).save(tmp_path / "a.tif")
        with pytest.raises(UserError, match=r"a\.tif: holds 32-bit integers"):
            open_rows(tmp_path / "a.tif")

    def test_tiff_that_asks_to_be_turned_is_refused(self, tmp_path):
        tags = ImageFileDirectory_v2()
        tags[274] = 6
        Image.fromarray(GREY).save(tmp_path / "a.tif", tiffinfo=tags)
        with pytest.raises(UserError, match=r"a\.tif: asks to be turned .* orientation 6"):
            open_rows(tmp_path / "a.tif")

    def test_page_beyond_the_stack_is_refused(self, tmp_path):
        Image.fromarray(GREY).save(tmp_path / "a.tif")
        with pytest.raises(UserError, match=r"a\.tif: there is no page 2, counted from 1"):
            open_rows(tmp_path / "a.tif", 1)

    def test_missing_file_is_named(self, tmp_path):
        with pytest.raises(UserError, match=r"none\.tif: cannot be read \(No such file"):
            open_rows(tmp_path / "none.tif")


class TestTiffWriter:
    @pytest.mark.parametrize("step", [1, 7, 50])
    @pytest.mark.parametrize("strip", [1, 1000, 2**20])
    @pytest.mark.parametrize("name", STORED)
    def test_written_pixels_are_read_back_by_all(self, tmp_path, monkeypatch, name, strip, step):
        monkeypatch.setattr(tiff_bands, "_STRIP_TARGET", strip)
        pixels, path = STORED[name], tmp_path / "a.tif"
        channels = 1 if pixels.ndim == 2 else pixels.shape[2]
        with TiffWriter(path, HEIGHT, WIDTH, channels, pixels.dtype) as writer:
            for first in range(0, HEIGHT, step):
                writer.write(pixels[first : first + step])
        assert [file.name for file in tmp_path.iterdir()] == ["a.tif"]
        read = read_in_bands(path, 13)
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
        np.testing.assert_array_equal(read_in_bands(path, 7), colours)
        with Image.open(path) as picture:
            assert picture.mode == "P"
            np.testing.assert_array_equal(np.array(picture), GREY % 4)
        by_opencv = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(by_opencv[..., ::-1], colours)

    @pytest.mark.parametrize("name", ["rgb", "deep", "floats"])
    def test_what_may_not_fit_in_32_bits_becomes_a_bigtiff(self, tmp_path, monkeypatch, name):
        pixels, path = STORED[name], tmp_path / "a.tif"
        monkeypatch.setattr(tiff_bands, "_LARGEST_CLASSIC", pixels.nbytes - 1)
        monkeypatch.setattr(tiff_bands, "_STRIP_TARGET", 500)
        channels = 1 if pixels.ndim == 2 else 3
        with TiffWriter(path, HEIGHT, WIDTH, channels, pixels.dtype) as writer:
            writer.write(pixels)
        assert path.read_bytes()[:4] == b"II+\0"
        np.testing.assert_array_equal(read_in_bands(path, 7), pixels.reshape(HEIGHT, WIDTH, -1))
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
            "from unet_core.data.tiff_bands import TiffWriter\n"
            f"with TiffWriter({str(tmp_path / 'a.tif')!r}, 3, 5) as writer:\n"
            "    writer.write(np.zeros((3, 5), np.uint8))\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        root = pathlib.Path(tiff_bands.__file__).parents[2]
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
