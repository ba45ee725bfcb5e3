import os
import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from helpers.full_disk import full_disk
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from unet_core.data import images
from unet_core.data.images import Header
from unet_core.data.io import limits
from unet_core.errors import UserError

PICTURE = np.arange(12 * 20, dtype=np.uint8).reshape(12, 20)
RGB = np.dstack([PICTURE, 255 - PICTURE, PICTURE // 2])
ALPHA = np.full_like(PICTURE, 200)
DEEP = PICTURE.astype(np.uint16) * 257
DEEP_RGB = RGB.astype(np.uint16) * 257
FLOATS = PICTURE.astype(np.float32) / 256
INDICES = PICTURE % 3
PALETTE = [10, 20, 30, 40, 50, 60, 70, 80, 90]
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)


def paletted():
    picture = Image.fromarray(INDICES)
    picture.putpalette(PALETTE)
    return picture


def png(width, height, depth, kind, rows):
    """A PNG of the depth and colour type given, its rows without filter bytes."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def tiff_of_deep_rgb(pixels, planar=1):
    """An uncompressed TIFF whose directory comes before its pixels ([H, W, 3] uint16)."""
    height, width, _ = pixels.shape
    data = pixels.astype("<u2").tobytes()
    counts = 8 + 2 + 10 * 12 + 4
    entries = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 3, counts),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, counts + 6),
        (277, 3, 1, 3),
        (278, 4, 1, height),
        (279, 4, 1, len(data)),
        (284, 3, 1, planar),
    ]
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return (
        b"II*\0"
        + struct.pack("<IH", 8, 10)
        + directory
        + struct.pack("<I", 0)
        + struct.pack("<HHH", 16, 16, 16)
        + data
    )


def big_endian_tiff(pixels, compressed):
    """A TIFF of one channel, [H, W], with its directory before its pixels."""
    height, width = pixels.shape
    data = pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
    data = zlib.compress(data) if compressed else data
    tags = {
        256: width,
        257: height,
        258: 8 * pixels.itemsize,
        259: 8 if compressed else 1,
        262: 1,
        273: 8 + 2 + 10 * 12 + 4,
        277: 1,
        278: height,
        279: len(data),
        339: {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind],
    }
    directory = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"MM\0*" + struct.pack(">IH", 8, 10) + directory + struct.pack(">I", 0) + data


def save_all_kinds(folder):
    """Writes one file of each kind; returns {name: (pixels as an image, header)}."""

    def kind(name, pixels, form, palette=b"", alpha=False):
        channels = 1 if pixels.ndim == 2 else pixels.shape[2]
        header = Header(20, 12, channels, pixels.dtype.name, palette, alpha, 1, form)
        return {name: (pixels, header)}

    kinds = {}
    grey_alpha = Image.merge("LA", [Image.fromarray(PICTURE), Image.fromarray(ALPHA)])
    rgba = np.dstack([RGB, ALPHA])
    bits = np.where(PICTURE > 99, 255, 0).astype(np.uint8)
    colours = np.array(PALETTE, np.uint8).reshape(3, 3)[INDICES]
    for suffix, form in ((".png", "PNG"), (".tif", "TIFF"), (".bmp", "BMP")):
        Image.fromarray(PICTURE).save(folder / f"grey{suffix}")
        kinds |= kind(f"grey{suffix}", PICTURE, form)
        Image.fromarray(RGB).save(folder / f"rgb{suffix}")
        kinds |= kind(f"rgb{suffix}", RGB, form)
        Image.fromarray(PICTURE > 99).save(folder / f"bits{suffix}")
        kinds |= kind(f"bits{suffix}", bits, form)
        paletted().save(folder / f"palette{suffix}")
        # A TIFF has 256 colours always; the others are black.
        palette = bytes(PALETTE).ljust(768 if form == "TIFF" else 9, b"\0")
        kinds |= kind(f"palette{suffix}", colours, form, palette=palette)
    for suffix, form in ((".png", "PNG"), (".tif", "TIFF")):
        Image.fromarray(rgba).save(folder / f"rgba{suffix}")
        kinds |= kind(f"rgba{suffix}", rgba, form, alpha=True)
        grey_alpha.save(folder / f"la{suffix}")
        kinds |= kind(f"la{suffix}", np.dstack([PICTURE, ALPHA]), form, alpha=True)
        Image.fromarray(DEEP).save(folder / f"deep{suffix}")
        kinds |= kind(f"deep{suffix}", DEEP, form)
        cv2.imwrite(str(folder / f"deep_rgb{suffix}"), DEEP_RGB[..., ::-1])
        kinds |= kind(f"deep_rgb{suffix}", DEEP_RGB, form)
        bgra = np.dstack([DEEP_RGB[..., ::-1], ALPHA.astype(np.uint16) * 257])
        cv2.imwrite(str(folder / f"deep_rgba{suffix}"), bgra)
        kinds |= kind(
            f"deep_rgba{suffix}",
            np.dstack([DEEP_RGB, ALPHA.astype(np.uint16) * 257]),
            form,
            alpha=True,
        )
    deep_la = np.dstack([DEEP, DEEP[::-1]])
    rows = [row.astype(">u2").tobytes() for row in deep_la]
    (folder / "deep_la.png").write_bytes(png(20, 12, 16, 4, rows))
    kinds |= kind("deep_la.png", deep_la, "PNG", alpha=True)
    Image.fromarray(FLOATS).save(folder / "floats.tif")
    kinds |= kind("floats.tif", FLOATS, "TIFF")
    Image.fromarray(DEEP).save(folder / "lzw.tif", compression="tiff_lzw")
    kinds |= kind("lzw.tif", DEEP, "TIFF")
    return kinds


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    return folder, save_all_kinds(folder)


KINDS = [
    *(f"{k}{s}" for k in ("grey", "rgb", "bits", "palette") for s in (".png", ".tif", ".bmp")),
    *(f"{k}{s}" for k in ("rgba", "la", "deep", "deep_rgb", "deep_rgba") for s in (".png", ".tif")),
    "deep_la.png",
    "floats.tif",
    "lzw.tif",
]


class TestReadHeader:
    @pytest.mark.parametrize("name", KINDS)
    def test_header_says_what_the_file_holds(self, kinds, name):
        folder, expected = kinds
        assert images.read_header(folder / name) == expected[name][1]

    def test_jpeg_is_described(self, tmp_path):
        Image.fromarray(RGB).save(tmp_path / "a.jpg")
        expected = Header(20, 12, 3, "uint8", b"", False, 1, "JPEG")
        assert images.read_header(tmp_path / "a.jpg") == expected

    def test_pages_of_a_stack_are_counted(self, tmp_path):
        save_stack(tmp_path / "a.tif", [PICTURE, PICTURE + 1, PICTURE + 2])
        assert images.read_header(tmp_path / "a.tif").pages == 3

    def test_frames_of_an_animation_are_no_pages(self, tmp_path):
        frames = [Image.fromarray(PICTURE + i) for i in range(2)]
        frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
        assert images.read_header(tmp_path / "a.png").pages == 1

    def test_integers_of_32_bits_are_told(self, tmp_path):
        Image.fromarray(PICTURE.astype(np.int32)).save(tmp_path / "a.tif")
        assert images.read_header(tmp_path / "a.tif").dtype == "int32"

    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp"])
    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_file_cut_in_its_header_is_refused(self, tmp_path, suffix):
        Image.fromarray(PICTURE).save(tmp_path / f"a{suffix}")
        cut_to(tmp_path / f"a{suffix}", 20)
        with pytest.raises(UserError, match=rf"a\{suffix}: .* cut short"):
            images.read_header(tmp_path / f"a{suffix}")

    def test_cut_png_is_seen_without_decoding_it(self, tmp_path):
        images.write_png(tmp_path / "a.png", NOISE)
        cut_to(tmp_path / "a.png", 4000)
        with pytest.raises(UserError, match=r"a\.png: the PNG is cut short \(4000 bytes"):
            images.read_header(tmp_path / "a.png")

    def test_other_formats_are_refused_whatever_they_are_called(self, tmp_path):
        Image.fromarray(PICTURE).save(tmp_path / "a.png", format="GIF")
        match = r"a\.png: .* a PNG, JPEG, BMP, TIFF, NumPy, DICOM or NIfTI file does"
        with pytest.raises(UserError, match=match):
            images.read_header(tmp_path / "a.png")

    def test_folder_is_refused(self, tmp_path):
        with pytest.raises(UserError, match=r"cannot be read \(Is a directory"):
            images.read_header(tmp_path)

    def test_inks_are_refused_by_name(self, tmp_path):
        Image.fromarray(np.dstack([PICTURE] * 4), "CMYK").save(tmp_path / "a.jpg")
        with pytest.raises(UserError, match=r"a\.jpg: .* the kind CMYK.*Save it as RGB"):
            images.read_header(tmp_path / "a.jpg")

    def test_floats_of_64_bits_are_refused_with_a_way_out(self, tmp_path):
        cv2.imwrite(str(tmp_path / "a.tif"), FLOATS.astype(np.float64))
        with pytest.raises(
            UserError, match=r"a\.tif: holds numbers of the kind float64.*Save it as one of"
        ):
            images.read_image(tmp_path / "a.tif")

    @pytest.mark.parametrize(("sides", "taken"), [((3000, 2000), True), ((3000, 2001), False)])
    def test_what_is_decoded_at_once_follows_the_memory(self, tmp_path, monkeypatch, sides, taken):
        # 3000 x 2000 pixels of 4 channels of 16 bits are 48,000,000 bytes.
        monkeypatch.setattr(limits, "memory_bytes", lambda: 8 * 48_000_000)
        rows = [bytes(sides[0] * 8)] * sides[1]
        (tmp_path / "a.png").write_bytes(png(*sides, 16, 6, rows))
        if taken:
            assert images.read_header(tmp_path / "a.png").width == 3000
            return
        with pytest.raises(UserError, match=r"a\.png: has 3000x2001 pixels of 4 .* uint16, 0\.0"):
            images.read_header(tmp_path / "a.png")
        assert images.read_header(tmp_path / "a.png", of_any_size=True).height == 2001

    def test_pipe_is_refused_before_it_is_opened(self, tmp_path, monkeypatch):
        os.mkfifo(tmp_path / "a.png")
        with pytest.raises(UserError, match=r"a\.png: cannot be read \(is not a regular file"):
            images.read_header(tmp_path / "a.png")


class TestReadImage:
    @pytest.mark.parametrize("name", KINDS)
    def test_pixels_are_as_stored(self, kinds, name):
        folder, expected = kinds
        read = images.read_image(folder / name)
        assert read.dtype == expected[name][0].dtype
        assert read.dtype.isnative
        np.testing.assert_array_equal(read, expected[name][0])

    def test_written_png_is_read_back(self, tmp_path):
        images.write_png(tmp_path / "a.png", PICTURE)
        np.testing.assert_array_equal(images.read_image(tmp_path / "a.png"), PICTURE)

    def test_pixels_may_be_written_to(self, tmp_path):
        images.write_png(tmp_path / "a.png", PICTURE)
        pixels = images.read_image(tmp_path / "a.png")
        pixels[0, 0] = 1
        assert (pixels[0, 0] == 1).all()

    def test_jpeg_is_read_in_rgb_order(self, tmp_path):
        Image.new("RGB", (20, 12), (250, 120, 10)).save(tmp_path / "a.jpg", quality=95)
        read = images.read_image(tmp_path / "a.jpg")
        np.testing.assert_allclose(read.reshape(-1, 3), [[250, 120, 10]] * 240, atol=3)

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
    def test_picture_lies_as_viewers_show_it(self, tmp_path, suffix, orientation):
        exif = Image.Exif()
        exif[274] = orientation
        smooth = cv2.resize(PICTURE[:3, :5] * 4, (20, 12), interpolation=cv2.INTER_CUBIC)
        options = {"exif": exif} if suffix != ".tif" else {"tiffinfo": {274: orientation}}
        Image.fromarray(smooth).save(tmp_path / f"a{suffix}", **options)
        # Pillow 13.0 turns a TIFF, but not its width and height.
        Image.fromarray(smooth).save(tmp_path / "b.png", exif=exif)
        shown_by = tmp_path / ("b.png" if suffix == ".tif" else f"a{suffix}")
        with Image.open(shown_by) as picture:
            shown = np.array(ImageOps.exif_transpose(picture))
        read = images.read_image(tmp_path / f"a{suffix}")
        np.testing.assert_array_equal(read, shown)
        header = images.read_header(tmp_path / f"a{suffix}")
        assert (header.height, header.width) == shown.shape
        assert header.turned == (orientation != 1)

    def test_damaged_exif_data_turn_nothing(self, tmp_path):
        Image.fromarray(PICTURE).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
        assert images.read_image(tmp_path / "a.jpg").shape == (12, 20)

    def test_deep_channels_in_planes_are_read(self, tmp_path):
        planes = np.moveaxis(DEEP_RGB, -1, 0)
        tifffile.imwrite(tmp_path / "a.tif", planes, photometric="rgb", planarconfig="separate")
        np.testing.assert_array_equal(images.read_image(tmp_path / "a.tif"), DEEP_RGB)

    @pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "bool"])
    def test_values_are_as_stored_where_white_is_zero(self, tmp_path, dtype):
        # ImageJ writes masks so, and shows their 255 in black; tifffile writes bits so.
        stored = (PICTURE > 99).astype(dtype)
        tifffile.imwrite(tmp_path / "a.tif", stored, photometric="miniswhite")
        factor = 255 if dtype == "bool" else 1
        np.testing.assert_array_equal(images.read_image(tmp_path / "a.tif"), stored * factor)
        np.testing.assert_array_equal(images.read_mask(tmp_path / "a.tif"), stored * factor)
        assert images.read_header(tmp_path / "a.tif").white_is_zero

    @pytest.mark.parametrize("dtype", ["int8", "int16", "float16"])
    def test_numbers_with_a_sign_keep_it(self, tmp_path, dtype):
        stored = (PICTURE.astype(np.int16) - 100).astype(dtype)
        tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack")
        read = images.read_image(tmp_path / "a.tif")
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, stored)
        np.testing.assert_array_equal(images.read_mask(tmp_path / "a.tif"), stored)
        assert images.read_header(tmp_path / "a.tif").dtype == dtype

    def test_sound_png_with_bytes_after_its_end_is_read(self, tmp_path):
        images.write_png(tmp_path / "a.png", PICTURE)
        with open(tmp_path / "a.png", "ab") as file:
            file.write(b"\r\n" + bytes(100))
        np.testing.assert_array_equal(images.read_image(tmp_path / "a.png"), PICTURE)

    def test_long_text_in_a_png_is_passed_over(self, tmp_path):
        # Pillow refuses more than 2^20 bytes of one text.
        text = PngInfo()
        text.add_text("log", "x" * (2**20 + 1), zip=True)
        Image.fromarray(PICTURE).save(tmp_path / "a.png", pnginfo=text)
        np.testing.assert_array_equal(images.read_image(tmp_path / "a.png"), PICTURE)

    def test_bigtiff_is_read(self, tmp_path):
        Image.fromarray(DEEP).save(tmp_path / "a.tif", big_tiff=True)
        assert (tmp_path / "a.tif").read_bytes()[2] == 43
        np.testing.assert_array_equal(images.read_image(tmp_path / "a.tif"), DEEP)

    def test_tiff_is_read_beyond_the_limit_of_pil(self, tmp_path, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        for compression in ("raw", "tiff_lzw"):
            Image.fromarray(PICTURE).save(tmp_path / "a.tif", compression=compression)
            np.testing.assert_array_equal(images.read_image(tmp_path / "a.tif"), PICTURE)

    @pytest.mark.parametrize("compressed", [False, True])
    def test_big_endian_floats_are_read(self, tmp_path, compressed):
        content = big_endian_tiff(FLOATS, compressed)
        (tmp_path / "a.tif").write_bytes(content)
        read = images.read_image(tmp_path / "a.tif")
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, FLOATS)

    def test_directory_before_deep_pixels_is_read(self, tmp_path):
        (tmp_path / "a.tif").write_bytes(tiff_of_deep_rgb(DEEP_RGB))
        np.testing.assert_array_equal(images.read_image(tmp_path / "a.tif"), DEEP_RGB)

    @pytest.mark.parametrize("page", [0, 1, 2])
    def test_page_of_a_stack_is_read(self, tmp_path, page):
        save_stack(tmp_path / "a.tif", [PICTURE, PICTURE + 1, PICTURE + 2])
        read = images.read_image(tmp_path / "a.tif", page)
        np.testing.assert_array_equal(read, PICTURE + page)

    def test_page_of_a_stack_of_deep_colours_is_read(self, tmp_path):
        cv2.imwritemulti(str(tmp_path / "a.tif"), [DEEP_RGB, DEEP_RGB + 1])
        read = images.read_image(tmp_path / "a.tif", 1)
        np.testing.assert_array_equal(read, DEEP_RGB[..., ::-1] + 1)

    @pytest.mark.parametrize("page", [2, -1])
    def test_page_beyond_the_stack_is_refused(self, tmp_path, page):
        save_stack(tmp_path / "a.tif", [PICTURE, PICTURE + 1])
        with pytest.raises(
            UserError, match=rf"a\.tif: there is no page {page + 1}, counted from 1"
        ):
            images.read_image(tmp_path / "a.tif", page)

    def test_page_of_a_png_is_refused(self, tmp_path):
        images.write_png(tmp_path / "a.png", PICTURE)
        with pytest.raises(UserError, match=r"a\.png: there is no page 2, counted from 1"):
            images.read_image(tmp_path / "a.png", 1)

    def test_integers_of_32_bits_are_refused(self, tmp_path):
        Image.fromarray(PICTURE.astype(np.int32)).save(tmp_path / "a.tif")
        with pytest.raises(UserError, match=r"a\.tif: holds numbers of the kind int32"):
            images.read_image(tmp_path / "a.tif")

    @pytest.mark.parametrize("share", [0.3, 0.7, 0.99])
    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif"])
    def test_cut_file_is_refused(self, tmp_path, suffix, share):
        path = tmp_path / f"a{suffix}"
        Image.fromarray(NOISE).save(path)
        cut_to(path, int(path.stat().st_size * share))
        with pytest.raises(UserError, match=rf"a\{suffix}[:,] .*cut short"):
            images.read_image(path)

    @pytest.mark.parametrize("share", [0.3, 0.7, 0.99])
    @pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "jpeg"])
    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_cut_compressed_tiff_is_refused(self, tmp_path, compression, share):
        path = tmp_path / "a.tif"
        Image.fromarray(NOISE).save(path, compression=compression)
        cut_to(path, int(path.stat().st_size * share))
        with pytest.raises(UserError, match=r"a\.tif[:,] .*cut short"):
            images.read_image(path)

    @pytest.mark.parametrize("share", [0.5, 0.999])
    def test_cut_tiff_of_deep_colours_is_refused(self, tmp_path, share):
        content = tiff_of_deep_rgb(DEEP_RGB)
        (tmp_path / "a.tif").write_bytes(content[: int(len(content) * share)])
        with pytest.raises(UserError, match=r"a\.tif[:,] .*cut short"):
            images.read_image(tmp_path / "a.tif")

    def test_jpeg_without_its_end_mark_is_refused(self, tmp_path):
        Image.fromarray(NOISE).save(tmp_path / "a.jpg")
        cut_to(tmp_path / "a.jpg", (tmp_path / "a.jpg").stat().st_size - 2)
        with pytest.raises(UserError, match=r"a\.jpg: .*cut short"):
            images.read_image(tmp_path / "a.jpg")

    @pytest.mark.parametrize("pixels", [NOISE, np.dstack([NOISE.astype(np.uint16)] * 3) * 257])
    def test_png_damaged_in_the_middle_is_refused(self, tmp_path, pixels):
        images.write_png(tmp_path / "a.png", pixels)
        content = bytearray((tmp_path / "a.png").read_bytes())
        middle = len(content) // 2
        content[middle : middle + 20] = bytes(20)
        (tmp_path / "a.png").write_bytes(bytes(content))
        with pytest.raises(UserError, match=r"a\.png: cannot be decoded .* damaged"):
            images.read_image(tmp_path / "a.png")

    def test_png_with_another_check_sum_is_refused(self, tmp_path):
        images.write_png(tmp_path / "a.png", PICTURE)
        content = bytearray((tmp_path / "a.png").read_bytes())
        content[content.index(b"IEND") - 8] ^= 1  # The first byte of that of the pixels.
        (tmp_path / "a.png").write_bytes(bytes(content))
        with pytest.raises(UserError, match=r"a\.png: .*check sum of its part IDAT"):
            images.read_image(tmp_path / "a.png")

    @pytest.mark.parametrize("content", [b"", b"not a picture at all"])
    def test_file_that_is_no_picture_is_refused(self, tmp_path, content):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(UserError, match=rf"a\.png: cannot be decoded .*\({len(content)} bytes"):
            images.read_image(tmp_path / "a.png")

    def test_missing_file_is_refused(self, tmp_path):
        with pytest.raises(UserError, match=r"a\.png: cannot be read \(No such file"):
            images.read_image(tmp_path / "a.png")


class TestReadMask:
    @pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
    def test_palette_gives_its_indices(self, tmp_path, suffix):
        paletted().save(tmp_path / f"a{suffix}")
        read = images.read_mask(tmp_path / f"a{suffix}")
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, INDICES)

    @pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
    def test_bits_become_0_and_255(self, tmp_path, suffix):
        Image.fromarray(PICTURE > 99).save(tmp_path / f"a{suffix}")
        read = images.read_mask(tmp_path / f"a{suffix}")
        np.testing.assert_array_equal(read, np.where(PICTURE > 99, 255, 0))

    @pytest.mark.parametrize("name", ["deep.png", "deep.tif", "deep_la.png"])
    def test_sixteen_bits_stay(self, kinds, name):
        read = images.read_mask(kinds[0] / name)
        assert read.dtype == np.uint16
        np.testing.assert_array_equal(read, DEEP)

    @pytest.mark.parametrize("name", ["la.png", "la.tif", "grey.bmp"])
    def test_alpha_is_dropped_from_grey(self, kinds, name):
        np.testing.assert_array_equal(images.read_mask(kinds[0] / name), PICTURE)

    @pytest.mark.parametrize("name", ["rgb.png", "rgba.png", "rgba.tif"])
    def test_colours_come_as_rgb(self, kinds, name):
        np.testing.assert_array_equal(images.read_mask(kinds[0] / name), RGB)

    def test_grey_stored_as_rgb_stays_rgb(self, tmp_path):
        images.write_png(tmp_path / "a.png", np.dstack([PICTURE] * 3))
        assert images.read_mask(tmp_path / "a.png").shape == (12, 20, 3)

    def test_integers_of_32_bits_stay(self, tmp_path):
        values = PICTURE.astype(np.int32) * 1000 - 5
        Image.fromarray(values).save(tmp_path / "a.tif")
        np.testing.assert_array_equal(images.read_mask(tmp_path / "a.tif"), values)

    @pytest.mark.parametrize("compressed", [False, True])
    @pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32])
    def test_big_endian_integers_stay(self, tmp_path, dtype, compressed):
        values = PICTURE.astype(dtype) * 120 + (0 if dtype == np.uint16 else -300)
        (tmp_path / "a.tif").write_bytes(big_endian_tiff(values, compressed))
        np.testing.assert_array_equal(images.read_mask(tmp_path / "a.tif"), values)

    def test_whole_floats_become_integers(self, tmp_path):
        Image.fromarray(PICTURE.astype(np.float32)).save(tmp_path / "a.tif")
        read = images.read_mask(tmp_path / "a.tif")
        assert read.dtype == np.int32
        np.testing.assert_array_equal(read, PICTURE)

    @pytest.mark.parametrize("value", [0.5, np.nan, np.inf, 2.0**31])
    def test_other_floats_are_refused_with_their_count(self, tmp_path, value):
        values = np.zeros((4, 5), np.float32)
        values[1, :3] = value
        Image.fromarray(values).save(tmp_path / "a.tif")
        with pytest.raises(UserError, match=rf"a\.tif: 3 pixel\(s\) .* such as {value}"):
            images.read_mask(tmp_path / "a.tif")

    @pytest.mark.parametrize("name", ["deep_rgb.png", "deep_rgba.tif"])
    def test_colours_of_16_bits_are_refused(self, kinds, name):
        with pytest.raises(UserError, match=rf"{name}: holds colours of 16 bits"):
            images.read_mask(kinds[0] / name)

    @pytest.mark.parametrize(
        ("name", "form"), [("a.jpg", "JPEG"), ("a.png", "JPEG"), ("a.tif", "TIFF")]
    )
    def test_jpeg_is_refused_whatever_holds_it(self, tmp_path, name, form):
        options = {"compression": "jpeg"} if form == "TIFF" else {}
        Image.fromarray(PICTURE).save(tmp_path / name, form, **options)
        with pytest.raises(UserError, match=r"changes the values of pixels.*save the mask as PNG"):
            images.read_mask(tmp_path / name)

    def test_page_of_a_stack_is_read(self, tmp_path):
        save_stack(tmp_path / "a.tif", [PICTURE, PICTURE + 1])
        np.testing.assert_array_equal(images.read_mask(tmp_path / "a.tif", 1), PICTURE + 1)

    def test_cut_mask_is_refused(self, tmp_path):
        images.write_png(tmp_path / "a.png", NOISE)
        cut_to(tmp_path / "a.png", 4000)
        with pytest.raises(UserError, match="cut short"):
            images.read_mask(tmp_path / "a.png")


class TestToChannels:
    def test_grey_gets_a_channel(self):
        np.testing.assert_array_equal(images.to_channels(PICTURE, 1)[..., 0], PICTURE)

    def test_grey_is_repeated(self):
        np.testing.assert_array_equal(images.to_channels(DEEP, 3), np.dstack([DEEP] * 3))

    def test_alpha_is_dropped(self):
        grey_alpha, rgba = np.dstack([PICTURE, ALPHA]), np.dstack([RGB, ALPHA])
        np.testing.assert_array_equal(images.to_channels(grey_alpha, 1)[..., 0], PICTURE)
        np.testing.assert_array_equal(images.to_channels(grey_alpha, 3), np.dstack([PICTURE] * 3))
        np.testing.assert_array_equal(images.to_channels(rgba, 3), RGB)
        np.testing.assert_array_equal(images.to_channels(rgba, 1), images.to_channels(RGB, 1))

    @pytest.mark.parametrize(
        ("white", "expected"),
        # 0.299 red + 0.587 green + 0.114 blue; OpenCV is off by one level of 65535.
        [
            (np.uint8(255), (76, 150, 29)),
            (np.uint16(65535), (19595, 38469, 7471)),
            (np.float32(1), (0.299, 0.587, 0.114)),
        ],
    )
    def test_colours_become_luma_of_their_type(self, white, expected):
        pure = np.eye(3, dtype=white.dtype)[None] * white
        grey = images.to_channels(pure, 1)
        assert grey.dtype == white.dtype
        assert grey.shape == (1, 3, 1)
        np.testing.assert_allclose(grey[0, :, 0], expected, rtol=2e-4)


class TestDescribeConversion:
    @pytest.mark.parametrize(
        ("stored", "palette", "alpha", "channels", "expected"),
        [
            (1, b"", False, 1, None),
            (3, b"", False, 3, None),
            (1, b"", False, 3, "grey to RGB"),
            (3, b"", False, 1, "RGB to grey"),
            (2, b"", True, 1, "alpha dropped"),
            (2, b"", True, 3, "alpha dropped, grey to RGB"),
            (4, b"", True, 3, "alpha dropped"),
            (4, b"", True, 1, "alpha dropped, RGB to grey"),
            (4, b"", True, 4, None),
            (3, bytes(3), False, 3, "palette to RGB"),
            (3, bytes(3), False, 1, "palette to RGB, RGB to grey"),
        ],
    )
    def test_every_step_is_named(self, stored, palette, alpha, channels, expected):
        header = Header(20, 12, stored, "uint8", palette, alpha, 1, "PNG")
        assert images.describe_conversion(header, channels) == expected


class TestWritePng:
    def test_side_longer_than_libpng_writes_is_refused(self, tmp_path):
        line = np.zeros((1, images.MOST_PNG_SIDE + 1), np.uint8)
        images.write_png(tmp_path / "a.png", line[:, :-1])
        with pytest.raises(UserError, match=r"b.png: would have 1000001x1 pixels"):
            images.write_png(tmp_path / "b.png", line)
        assert [path.name for path in tmp_path.iterdir()] == ["a.png"]

    def test_sixteen_bits_survive(self, tmp_path):
        pixels = np.array([[0, 1, 65535], [256, 257, 4660]], np.uint16)
        images.write_png(tmp_path / "a.png", pixels)
        read = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED)
        assert read.dtype == np.uint16
        np.testing.assert_array_equal(read, pixels)

    @pytest.mark.parametrize(
        # 300 dots per inch are 11811 per metre; 2 per centimetre are 200.
        ("unit", "per_metre", "of_unit"),
        [(2, 11811, 1), (3, 30000, 1), (1, 300, 0)],
    )
    def test_resolution_of_the_image_is_taken_over(self, tmp_path, unit, per_metre, of_unit):
        tags = {282: (282, 5, 1, (600, 2)), 283: (283, 5, 1, (300, 1)), 296: (296, 3, 1, unit)}
        images.write_png(tmp_path / "a.png", PICTURE, tags)
        content = (tmp_path / "a.png").read_bytes()
        place = content.index(b"pHYs") + 4
        assert struct.unpack(">IIB", content[place : place + 9]) == (per_metre, per_metre, of_unit)
        np.testing.assert_array_equal(images.read_image(tmp_path / "a.png"), PICTURE)

    def test_nothing_but_the_picture_is_left(self, tmp_path):
        images.write_png(tmp_path / "a.png", PICTURE)
        assert [path.name for path in tmp_path.iterdir()] == ["a.png"]

    def test_interrupted_write_leaves_the_old_picture(self, tmp_path):
        images.write_png(tmp_path / "a.png", PICTURE)
        with full_disk(), pytest.raises(OSError, match="No space left"):
            images.write_png(tmp_path / "a.png", 255 - PICTURE)
        np.testing.assert_array_equal(images.read_image(tmp_path / "a.png"), PICTURE)

    def test_missing_folder_raises(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            images.write_png(tmp_path / "none" / "a.png", PICTURE)


class TestWritePalettePng:
    def test_ids_and_their_colours_survive(self, tmp_path):
        ids = np.array([[0, 1], [2, 0]], np.uint8)
        images.write_palette_png(tmp_path / "a.png", ids, [[1, 2, 3], [4, 5, 6], [255, 0, 9]])
        np.testing.assert_array_equal(images.read_mask(tmp_path / "a.png"), ids)
        np.testing.assert_array_equal(
            images.read_image(tmp_path / "a.png"),
            [[[1, 2, 3], [4, 5, 6]], [[255, 0, 9], [1, 2, 3]]],
        )

    def test_ids_beyond_the_palette_survive_in_black(self, tmp_path):
        ids = np.array([[0, 255]], np.uint8)
        images.write_palette_png(tmp_path / "a.png", ids, [[1, 2, 3], [4, 5, 6]])
        np.testing.assert_array_equal(images.read_mask(tmp_path / "a.png"), ids)
        np.testing.assert_array_equal(
            images.read_image(tmp_path / "a.png"), [[[1, 2, 3], [0, 0, 0]]]
        )

    def test_interrupted_write_leaves_the_old_picture(self, tmp_path):
        images.write_palette_png(tmp_path / "a.png", INDICES, [[0, 0, 0]])
        with full_disk(), pytest.raises(OSError, match="No space left"):
            images.write_palette_png(tmp_path / "a.png", INDICES + 1, [[0, 0, 0]])
        np.testing.assert_array_equal(images.read_mask(tmp_path / "a.png"), INDICES)


def save_stack(path, pages):
    pictures = [Image.fromarray(page) for page in pages]
    pictures[0].save(path, save_all=True, append_images=pictures[1:])


def cut_to(path, length):
    path.write_bytes(path.read_bytes()[:length])


class TestReadable:
    def test_tells_what_can_be_decoded_and_why_not(self, tmp_path):
        good, cut = tmp_path / "good.png", tmp_path / "cut.png"
        cv2.imwrite(str(good), np.zeros((40, 40), np.uint8))
        cut.write_bytes(good.read_bytes()[:60])
        asked = []

        def progress(paths):
            asked.extend(paths)
            return paths

        found, problems = images.readable([cut, good], progress=progress)
        assert found == [good]
        assert len(problems) == 1
        assert str(cut) in problems[0]
        assert asked == [cut, good]
