"""Which pictures of a file are pages: all but reduced copies and masks of transparency."""

import struct

import numpy as np
import pytest
import tifffile

from unet_core.data import images
from unet_core.data.io import tiff
from unet_core.errors import UserError

STACK = np.random.default_rng(0).integers(0, 256, (5, 12, 20)).astype(np.uint8)


def pages_of(path):
    count = images.read_header(path).pages
    return np.stack([images.read_image(path, page) for page in range(count)])


def directories(count, last=0):
    """A TIFF of `count` directories of one pixel, 7, of which the last leads to place `last`."""
    size = 2 + 6 * 12 + 4
    content = bytearray(b"II*\0" + struct.pack("<I", 16) + b"\7" + bytes(7))
    for number in range(count):
        tags = [(256, 1), (257, 1), (258, 8), (262, 1), (273, 8), (279, 1)]
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        after = 16 + size * (number + 1) if number + 1 < count else last
        content += struct.pack("<H", 6) + entries + struct.pack("<I", after)
    return bytes(content)


class TestPages:
    def test_levels_of_a_pyramid_and_masks_are_none(self, tmp_path):
        with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
            how = {"photometric": "minisblack", "metadata": None}
            writer.write(STACK[0], **how)
            writer.write(STACK[0, ::2, ::2], subfiletype=1, **how)
            # As GDAL writes what is valid.
            writer.write(np.ones((12, 20), bool), subfiletype=4, metadata=None, photometric=4)
            writer.write(STACK[1], **how)
        np.testing.assert_array_equal(pages_of(tmp_path / "a.tif"), STACK[:2])

    def test_only_picture_is_a_page_whatever_it_says(self, tmp_path):
        tifffile.imwrite(tmp_path / "a.tif", STACK[0], subfiletype=1, photometric="minisblack")
        np.testing.assert_array_equal(pages_of(tmp_path / "a.tif"), STACK[:1])

    @pytest.mark.parametrize(
        "description",
        ["ImageJ=1.53t\nimages=5\nslices=5\n", '{"shape": [5, 12, 20], "truncated": true}'],
        ids=["imagej", "tifffile"],
    )
    def test_planes_behind_one_directory_are(self, tmp_path, description):
        # ImageJ writes stacks of more than 4 GB so.
        path = tmp_path / "a.tif"
        tag = [(270, 2, len(description) + 1, description, True)]
        tifffile.imwrite(path, STACK[0], photometric="minisblack", metadata=None, extratags=tag)
        content = path.read_bytes()
        assert content.endswith(STACK[0].tobytes())
        path.write_bytes(content + STACK[1:].tobytes())
        np.testing.assert_array_equal(pages_of(path), STACK)
        path.write_bytes(content + STACK[1:3].tobytes())
        with pytest.raises(UserError, match=r"a\.tif: .*(5 planes, but not|metadata invalid)"):
            images.read_header(path)

    def test_pages_may_differ_and_one_that_is_not_read_leaves_the_others(self, tmp_path):
        with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
            for page in (STACK[0], STACK[1].astype(np.float64), STACK[2, :3].astype(np.uint16)):
                writer.write(page, photometric="minisblack", metadata=None)
        assert images.read_header(tmp_path / "a.tif").pages == 3
        np.testing.assert_array_equal(images.read_image(tmp_path / "a.tif"), STACK[0])
        with pytest.raises(UserError, match="numbers of the kind float64"):
            images.read_image(tmp_path / "a.tif", 1)
        np.testing.assert_array_equal(images.read_image(tmp_path / "a.tif", 2), STACK[2, :3])
        header = images.read_header(tmp_path / "a.tif", 2)
        assert (header.height, header.dtype) == (3, "uint16")

    def test_are_looked_for_once_while_the_file_stays(self, tmp_path, monkeypatch):
        path, looked = tmp_path / "a.tif", []
        find = tiff._find_pages
        monkeypatch.setattr(tiff, "_find_pages", lambda *of: looked.append(of) or find(*of))
        tifffile.imwrite(path, STACK, photometric="minisblack")
        np.testing.assert_array_equal(pages_of(path), STACK)
        assert len(looked) == 1
        tifffile.imwrite(path, STACK[:3], photometric="minisblack")
        np.testing.assert_array_equal(pages_of(path), STACK[:3])
        assert len(looked) == 2

    def test_page_is_found_without_reading_those_before(self, tmp_path, monkeypatch):
        tifffile.imwrite(tmp_path / "a.tif", STACK, photometric="minisblack", metadata=None)
        images.read_header(tmp_path / "a.tif")
        read, init = [], tifffile.TiffPage.__init__

        def spied(self, parent, /, index, **options):
            read.append(index)
            init(self, parent, index, **options)

        monkeypatch.setattr(tifffile.TiffPage, "__init__", spied)
        images.read_image(tmp_path / "a.tif", 4)
        assert read == [0, 4]

    @pytest.mark.parametrize(
        ("count", "last"), [(3, 16), (300, 16 + 78 * 40), (tiff.MOST_PAGES + 1, 0)]
    )
    def test_too_many_and_circles_are_refused(self, tmp_path, count, last):
        (tmp_path / "a.tif").write_bytes(directories(count, last))
        with pytest.raises(UserError, match=r"a\.tif: has more than 65536 pages, or its list"):
            images.read_header(tmp_path / "a.tif")

    def test_many_are_read(self, tmp_path):
        (tmp_path / "a.tif").write_bytes(directories(500))
        assert images.read_header(tmp_path / "a.tif").pages == 500
        assert images.read_image(tmp_path / "a.tif", 499) == 7


class TestNumpyFiles:
    def test_pages_are_the_first_of_four_axes(self, tmp_path):
        np.save(tmp_path / "a.npy", STACK[..., None])
        np.testing.assert_array_equal(pages_of(tmp_path / "a.npy"), STACK)

    def test_python_objects_are_never_read(self, tmp_path):
        np.save(tmp_path / "a.npy", np.array([{}, {}]), allow_pickle=True)
        with pytest.raises(UserError, match=r"a\.npy: holds an array of object.*could run code"):
            images.read_image(tmp_path / "a.npy")

    @pytest.mark.parametrize(
        ("shape", "words"),
        [((5,), r"an array \[5\]"), ((3, 12, 20), "np.moveaxis"), ((0, 4), r"an array \[0, 4\]")],
    )
    def test_other_shapes_are_refused(self, tmp_path, shape, words):
        np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
        with pytest.raises(UserError, match=rf"a\.npy: .*{words}"):
            images.read_header(tmp_path / "a.npy")

    def test_several_arrays_are_refused_by_their_names(self, tmp_path):
        np.savez(tmp_path / "a.npz", image=STACK[0], mask=STACK[1])
        with pytest.raises(UserError, match=r"a\.npz: holds image, mask; .* one array"):
            images.read_image(tmp_path / "a.npz")

    def test_cut_array_is_refused(self, tmp_path):
        np.save(tmp_path / "a.npy", STACK[0])
        (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-1])
        with pytest.raises(UserError, match=r"a\.npy: is cut short \(239 bytes of 240"):
            images.read_header(tmp_path / "a.npy")

    @pytest.mark.parametrize("dtype", [np.int64, np.uint32, np.float64, bool])
    def test_masks_may_have_every_kind_of_number(self, tmp_path, dtype):
        np.save(tmp_path / "a.npy", (STACK[0] % 3).astype(dtype))
        expected = STACK[0] % 3 if dtype is not bool else (STACK[0] % 3 > 0) * 255
        np.testing.assert_array_equal(images.read_mask(tmp_path / "a.npy"), expected)

    def test_numbers_of_masks_beyond_32_bits_are_refused(self, tmp_path):
        np.save(tmp_path / "a.npy", np.array([[0, 2**31]]))
        with pytest.raises(UserError, match=r"1 pixel\(s\) of the mask hold a number beyond 32"):
            images.read_mask(tmp_path / "a.npy")
