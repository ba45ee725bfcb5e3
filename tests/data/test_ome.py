"""Channels, planes and sizes of pixels as OME says them, in TIFF files and in Zarr folders."""

import numpy as np
import pytest
import tifffile
import zarr

from unet_core.data import images, survey
from unet_core.data.io import limits
from unet_core.data.layouts.find import find_images, find_samples
from unet_core.data.pixel_size import pixel_size_um
from unet_core.data.predicted import Predicted
from unet_core.data.stamps import size_and_time
from unet_core.data.tiff_bands import open_rows
from unet_core.errors import UserError

# Of these axes Z, C, Y and X.
PLANES = np.random.default_rng(0).integers(0, 60_000, (2, 3, 20, 30)).astype(np.uint16)


def check_planes(path):
    """Checks for two pages of three channels, and that some rows are those of the whole."""
    header = images.read_header(path, 1)
    assert (header.pages, header.channels, header.height, header.width) == (2, 3, 20, 30)
    for page in range(2):
        np.testing.assert_array_equal(
            images.read_image(path, page), np.moveaxis(PLANES[page], 0, -1)
        )
    with open_rows(path, 1) as rows:
        np.testing.assert_array_equal(rows.read(7, 12), np.moveaxis(PLANES[1, :, 7:12], 0, -1))


class TestTiff:
    @pytest.mark.parametrize("axes", ["ZCYX", "CTYX"])
    def test_channels_are_channels_and_others_are_pages(self, tmp_path, axes):
        path = tmp_path / "a.ome.tif"
        planes = PLANES if axes == "ZCYX" else np.ascontiguousarray(PLANES.swapaxes(0, 1))
        tifffile.imwrite(
            path,
            planes,
            metadata={"axes": axes, "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25},
            photometric="minisblack",
            tile=(16, 16),
            compression="zlib",
        )
        check_planes(path)
        assert pixel_size_um(path, 1) == (0.5, 0.25)
        np.testing.assert_array_equal(
            images.read_channels(path, 0, 1, use=[2])[..., 0], PLANES[0, 2]
        )

    def test_reduced_levels_are_left_out(self, tmp_path):
        path = tmp_path / "a.ome.tif"
        with tifffile.TiffWriter(path) as file:
            metadata = {"axes": "ZCYX"}
            file.write(PLANES, subifds=1, metadata=metadata, photometric="minisblack")
            file.write(PLANES[..., ::2, ::2], subfiletype=1, photometric="minisblack")
        check_planes(path)

    def test_images_of_other_channels_and_absent_ones_are_refused(self, tmp_path):
        path = tmp_path / "a.ome.tif"
        with tifffile.TiffWriter(path) as file:
            for channels in (3, 2):
                planes = PLANES[0, :channels]
                file.write(planes, metadata={"axes": "CYX"}, photometric="minisblack")
        with pytest.raises(UserError, match=r"a\.ome\.tif: holds images of 2 and 3 channels"):
            images.read_header(path)

    def test_channel_in_another_file_is_refused_and_that_file_not_opened(self, tmp_path):
        parts = [
            f'<TiffData FirstC="{n}" IFD="{n % 2}"><UUID FileName="{name}.ome.tif">urn:uuid:{name}'
            "</UUID></TiffData>"
            for n, name in enumerate("aab")
        ]
        xml = (
            '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:a">'
            '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" '
            'SizeX="30" SizeY="20" SizeC="3" SizeZ="1" SizeT="1">'
            f"{''.join(parts)}</Pixels></Image></OME>"
        )
        path = tmp_path / "a.ome.tif"
        how = {"description": xml, "metadata": None, "photometric": "minisblack"}
        (tmp_path / "b.ome.tif").mkdir()
        for directories in (1, 2):
            tifffile.imwrite(path, PLANES[0, :directories], **how)
            with pytest.raises(UserError, match=r"a\.ome\.tif: says by its OME-XML that some"):
                images.read_header(path)

    def test_broken_xml_leaves_a_page_for_each_directory(self, tmp_path):
        path = tmp_path / "a.ome.tif"
        tifffile.imwrite(path, PLANES, metadata={"axes": "ZCYX"}, photometric="minisblack")
        path.write_bytes(path.read_bytes().replace(b"<Pixels", b"<Pxiels"))
        assert images.read_header(path).pages == 6
        np.testing.assert_array_equal(images.read_image(path, 4), PLANES[1, 1])


def write_zarr(path, array, axes="zcyx", *, version=3, scale=None, place="0", **of_root):
    """Writes OME-Zarr 0.5, or 0.4 in Zarr's format 2, with a level of half the size."""
    root = zarr.create_group(str(path), zarr_format=version)
    for level, data in enumerate((array, array[..., ::2, ::2])):
        made = root.create_array(
            str(level), shape=data.shape, dtype=data.dtype, chunks=(1,) * (data.ndim - 2) + (8, 16)
        )
        made[...] = data
    kinds = {"t": "time", "c": "channel"}
    listed = [
        {"name": axis, "type": kinds.get(axis, "space")}
        | ({"unit": "nanometer"} if axis in "zyx" else {})
        for axis in axes
    ]
    sets = [
        {
            "path": place if level == 0 else "1",
            "coordinateTransformations": [{"type": "scale", "scale": scale or [1.0] * len(axes)}],
        }
        for level in range(2)
    ]
    ome = {"multiscales": [{"axes": listed, "datasets": sets}], **of_root}
    root.attrs.update({"ome": {"version": "0.5", **ome}} if version == 3 else ome)
    return path


class TestZarr:
    @pytest.mark.parametrize("version", [2, 3])
    def test_channels_are_channels_and_others_are_pages_of_the_full_size(self, tmp_path, version):
        path = write_zarr(
            tmp_path / "a.ome.zarr", PLANES, version=version, scale=[1, 1, 250.0, 500.0]
        )
        check_planes(path)
        # 500 nanometres across, 250 down.
        assert pixel_size_um(path) == (0.5, 0.25)

    def test_axes_in_any_order_and_none_of_channels(self, tmp_path):
        path = write_zarr(tmp_path / "a.zarr", PLANES.transpose(1, 0, 2, 3), "ctyx")
        check_planes(path)
        flat = write_zarr(tmp_path / "b.zarr", PLANES[0, 0].astype(np.uint8), "yx")
        np.testing.assert_array_equal(images.read_mask(flat), PLANES[0, 0].astype(np.uint8))

    def test_folder_counts_as_one_file(self, tmp_path):
        for name in ("image", "label"):
            (tmp_path / name).mkdir()
        write_zarr(tmp_path / "image" / "a.ome.zarr", PLANES[:, :1])
        labels = write_zarr(tmp_path / "label" / "a.zarr", PLANES[:, 0] % 2, "zyx")
        listing = find_samples(tmp_path, "folders")
        assert (listing.problems, listing.notes) == ((), ())
        assert [sample.name for sample in listing.samples] == ["a_000", "a_001"]
        assert len(find_images(tmp_path / "image")) == 2
        assert len(find_images(f"{tmp_path}/image/a.ome.zarr/")) == 2
        # A chunk that changes changes what is known of the folder.
        before = survey.fingerprint(listing.samples), size_and_time(labels)
        chunk = next(p for p in (labels / "0").rglob("*") if p.is_file() and p.name != "zarr.json")
        chunk.write_bytes(chunk.read_bytes() + b"1")
        assert survey.fingerprint(listing.samples) != before[0]
        assert size_and_time(labels) != before[1]
        assert Predicted(tmp_path / "image").unfinished(
            {"a": find_images(labels)[0]}, {}, again=False
        )

    def test_what_is_no_single_image_is_refused_by_name(self, tmp_path, monkeypatch):
        outside = write_zarr(tmp_path / "a.zarr", PLANES, place="../b.zarr/0")
        with pytest.raises(UserError, match=r"a\.zarr: names '\.\./b\.zarr/0' as its array"):
            images.read_header(outside)
        plate = write_zarr(tmp_path / "b.zarr", PLANES, plate={})
        with pytest.raises(UserError, match=r"b\.zarr: is a plate of wells"):
            images.read_header(plate)
        zarr.create_group(str(tmp_path / "c.zarr"))
        with pytest.raises(UserError, match=r"c\.zarr: holds 0 image\(s\)"):
            images.read_header(tmp_path / "c.zarr")
        (tmp_path / "d.zarr").mkdir()
        with pytest.raises(UserError, match=r"d\.zarr: cannot be"):
            images.read_header(tmp_path / "d.zarr")
        large = write_zarr(tmp_path / "e.zarr", PLANES)
        monkeypatch.setattr(limits, "most_bytes", lambda: 1000)
        with pytest.raises(UserError, match=r"e\.zarr: has 30x20 pixels of 3 channel\(s\)"):
            images.read_image(large)
        # A row of chunks is 8 x 32 pixels of 3 channels, 1536 bytes.
        with open_rows(large) as rows, pytest.raises(UserError, match=r"chunks \[1, 1, 8, 16\]"):
            rows.read(0, 1)
