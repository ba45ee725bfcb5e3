"""DICOM files and NIfTI volumes as images and masks."""

import struct
import sys

import nibabel
import numpy as np
import pydicom
import pytest
from helpers.medical import write_dicom

from unet_core.data import images, survey
from unet_core.data.classes import ClassMap
from unet_core.data.intensities import Scaling
from unet_core.data.io import limits
from unet_core.data.layouts.find import find_images, find_samples
from unet_core.data.pixel_size import pixel_size_um
from unet_core.data.tiff_bands import open_rows
from unet_core.errors import UserError

STORED = np.arange(12, dtype=np.uint16).reshape(3, 4) * 300  # 0 to 3300.


class TestDicom:
    def test_numbers_are_those_of_the_modality(self, tmp_path):
        # Hounsfield units: 2 * stored - 1024.
        path = write_dicom(
            tmp_path / "a.dcm",
            STORED,
            bits=12,
            RescaleSlope="2",
            RescaleIntercept="-1024",
            PixelSpacing=[0.5, 0.25],
        )
        header = images.read_header(path)
        assert (header.width, header.height, header.dtype, header.pages) == (4, 3, "float32", 1)
        assert "rescaled as its modality says" in images.describe_conversion(header, 1)
        np.testing.assert_array_equal(images.read_image(path), 2.0 * STORED - 1024)
        np.testing.assert_array_equal(images.read_mask(path), 2 * STORED.astype(int) - 1024)
        # Rows are 0.5 mm apart, columns 0.25 mm.
        assert pixel_size_um(path) == (250, 500)

    def test_what_is_to_be_shown_inverted_is(self, tmp_path):
        # Of 12 bits 0 becomes 4095; with the modality 2 * s - 1024 it becomes that of 4095.
        path = write_dicom(
            tmp_path / "a.dcm", STORED, bits=12, PhotometricInterpretation="MONOCHROME1"
        )
        np.testing.assert_array_equal(images.read_image(path), 4095 - STORED)
        assert images.read_image(path).dtype == np.uint16
        np.testing.assert_array_equal(images.read_mask(path), STORED)
        with open_rows(path) as rows:
            np.testing.assert_array_equal(rows.read(1, 3)[..., 0], 4095 - STORED[1:])
        scaled = write_dicom(
            tmp_path / "b.dcm",
            STORED,
            bits=12,
            PhotometricInterpretation="MONOCHROME1",
            RescaleSlope="2",
            RescaleIntercept="-1024",
        )
        np.testing.assert_array_equal(images.read_image(scaled), 2.0 * (4095 - STORED) - 1024)

    def test_signs_and_bits_that_are_not_used_are_told_apart(self, tmp_path):
        # Twelve bits with a sign, of which 0xF above are something else: -1 is 0xFFF.
        stored = np.array([[0x7FFF, 0x8001], [0xFFFF, 5]], np.uint16).view(np.int16)
        path = write_dicom(tmp_path / "a.dcm", stored, bits=12)
        np.testing.assert_array_equal(images.read_image(path), [[-1, 1], [-1, 5]])

    def test_frames_are_pages_and_colours_are_channels(self, tmp_path):
        frames = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
        path = write_dicom(tmp_path / "frames.dcm", frames)
        assert [source.page for source in find_images(tmp_path)] == [0, 1]
        np.testing.assert_array_equal(images.read_image(path, 1), frames[1])
        with pytest.raises(UserError, match="there is no page 3"):
            images.read_image(path, 2)
        for dtype in (np.uint8, np.uint16):
            colours = np.arange(36, dtype=dtype).reshape(3, 4, 3)
            rgb = write_dicom(tmp_path / "rgb.dcm", colours)
            np.testing.assert_array_equal(images.read_image(rgb), colours)

    def test_lookup_table_of_the_modality_is_applied(self, tmp_path):
        table = pydicom.Dataset()
        table.LUTDescriptor, table.ModalityLUTType = [4, 0, 16], "US"
        table.LUTData = np.array([7, 1000, 5, 65535], np.uint16).tobytes()
        table["LUTData"].VR = "OW"
        stored = np.array([[0, 1], [2, 3]], np.uint8)
        path = write_dicom(tmp_path / "a.dcm", stored, ModalityLUTSequence=[table])
        np.testing.assert_array_equal(images.read_image(path), [[7, 1000], [5, 65535]])

    def test_palettes_are_colours_of_images_and_numbers_of_masks(self, tmp_path):
        stored = np.array([[0, 1], [1, 0]], np.uint8)
        tables = {}
        for colour, levels in (("Red", (0, 1)), ("Green", (0, 128)), ("Blue", (7, 255))):
            tables[f"{colour}PaletteColorLookupTableDescriptor"] = [2, 0, 16]
            # Of 16 bits the upper eight are the colour.
            data = (np.array(levels, np.uint16) << 8).tobytes()
            tables[f"{colour}PaletteColorLookupTableData"] = data
        path = write_dicom(
            tmp_path / "a.dcm", stored, PhotometricInterpretation="PALETTE COLOR", **tables
        )
        assert images.read_image(path)[0].tolist() == [[0, 0, 7], [1, 128, 255]]
        np.testing.assert_array_equal(images.read_mask(path), stored)

    def test_file_is_known_whatever_stands_before_its_mark(self, tmp_path):
        path = write_dicom(tmp_path / "a", STORED)
        path.write_bytes(b"II*\0" + path.read_bytes()[4:])
        np.testing.assert_array_equal(images.read_image(path), STORED)

    def test_what_is_no_picture_is_refused_by_name(self, tmp_path, monkeypatch):
        path = write_dicom(tmp_path / "a.dcm", STORED, PhotometricInterpretation="HSV")
        with pytest.raises(UserError, match=r"a\.dcm: holds 1 sample\(s\) a pixel of the kind HSV"):
            images.read_header(path)
        path = write_dicom(tmp_path / "a.dcm", STORED, bits=12, HighBit=15)
        with pytest.raises(UserError, match="12 bits in 16, not the lower ones"):
            images.read_header(path)
        path = write_dicom(tmp_path / "b.dcm", STORED, NumberOfFrames=10**6)
        with pytest.raises(UserError, match=r"b\.dcm: has 1000000 frames"):
            images.read_header(path)
        path = write_dicom(tmp_path / "c.dcm", STORED)
        path.write_bytes(path.read_bytes()[:-5])
        with pytest.raises(UserError, match=r"c\.dcm: cannot be decoded"):
            images.read_image(path)
        monkeypatch.setattr(limits, "most_bytes", lambda: 10)
        with pytest.raises(UserError, match=r"c\.dcm: has 4x3 pixels of 1 channel"):
            images.read_header(path)


def write_nifti(path, array, *, affine=None):
    made = nibabel.Nifti1Image(array, np.diag([2, 3, 4, 1]) if affine is None else affine)
    made.header.set_xyzt_units("mm")
    nibabel.save(made, path)
    return path


class TestNifti:
    @pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
    def test_slices_along_the_last_axes_are_pages(self, tmp_path, ending):
        # Axes x, y, z and time: the picture of page z + 2 * time is [y, x].
        volume = np.arange(4 * 3 * 2 * 2, dtype=np.int16).reshape(4, 3, 2, 2) - 5
        path = write_nifti(tmp_path / f"a{ending}", volume)
        header = images.read_header(path)
        assert (header.width, header.height, header.pages) == (4, 3, 4)
        assert len(find_images(tmp_path)) == 4
        np.testing.assert_array_equal(images.read_image(path, 3), volume[:, :, 1, 1].T)
        np.testing.assert_array_equal(images.read_mask(path, 1), volume[:, :, 1, 0].T)
        with open_rows(path, 2) as rows:
            np.testing.assert_array_equal(rows.read(1, 3)[..., 0], volume[:, 1:, 0, 1].T)
        assert pixel_size_um(path) == (2000, 3000)
        assert "columns run to R, rows to A" in images.describe_conversion(header, 1)

    def test_numbers_are_scaled_as_the_header_says(self, tmp_path):
        path = write_nifti(tmp_path / "a.nii", np.full((2, 2, 1), 2, np.int16))
        content = bytearray(path.read_bytes())
        content[112:120] = struct.pack("<ff", 1.5, 0.5)  # scl_slope and scl_inter.
        path.write_bytes(content)
        np.testing.assert_array_equal(images.read_image(path), [[3.5, 3.5]] * 2)
        np.testing.assert_array_equal(nibabel.load(path).dataobj[..., 0], [[3.5, 3.5]] * 2)

    def test_quantities_become_float32_and_labels_stay_whole(self, tmp_path):
        path = write_nifti(tmp_path / "a.nii", np.full((2, 2, 1), 0.1))
        assert "float64 to float32" in images.read_header(path).notes
        assert images.read_image(path)[0, 0] == np.float32(0.1)
        labels = write_nifti(tmp_path / "b.nii", np.full((2, 2, 1), 2**24 + 1, np.int32))
        assert images.read_mask(labels)[0, 0] == 2**24 + 1

    def test_colours_are_channels(self, tmp_path):
        colours = np.zeros((4, 3, 1), [("R", "u1"), ("G", "u1"), ("B", "u1")])
        colours["G"][2, 1, 0] = 9
        path = write_nifti(tmp_path / "a.nii", colours)
        found = images.read_image(path)
        assert found.shape == (3, 4, 3)
        assert found[1, 2].tolist() == [0, 9, 0]

    def test_volumes_pair_and_one_mirrored_against_its_mask_is_a_problem(self, tmp_path):
        for folder in ("image", "label"):
            (tmp_path / folder).mkdir()
        volume = np.zeros((4, 3, 5), np.uint8)
        write_nifti(tmp_path / "image" / "a.nii.gz", volume)
        write_nifti(tmp_path / "label" / "a.nii", volume, affine=np.diag([-2, 3, 4, 1]))
        listing = find_samples(tmp_path, "folders")
        assert [sample.name for sample in listing.samples] == [f"a_{n:03d}" for n in range(5)]
        assert {sample.group for sample in listing.samples} == {"a"}
        found = survey.read_headers(
            listing.samples[:1], Scaling("range"), ClassMap.parse("0:a,1:b"), channels=1
        )
        assert "its axes run to RAS, those of its mask to LAS" in found.problems[0]

    def test_damage_is_refused_by_name(self, tmp_path):
        path = write_nifti(tmp_path / "a.nii", np.zeros((4, 3, 2), np.uint8))
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(UserError, match=r"a\.nii: is cut short"):
            images.read_header(path)
        packed = write_nifti(tmp_path / "b.nii.gz", np.zeros((4, 3, 2), np.uint8))
        packed.write_bytes(packed.read_bytes()[:60])
        with pytest.raises(UserError, match=r"b\.nii\.gz: cannot be decoded"):
            images.read_image(packed, 1)
        (tmp_path / "c.nii.gz").write_bytes(b"\x1f\x8b" + bytes(200))
        with pytest.raises(UserError, match=r"c\.nii\.gz: cannot be decoded"):
            images.read_image(tmp_path / "c.nii.gz")


@pytest.mark.parametrize(
    ("package", "name", "extra"),
    [("pydicom", "a.dcm", "medical"), ("nibabel", "a.nii", "medical"), ("zarr", "a.zarr", "zarr")],
)
def test_missing_package_is_one_message_that_names_the_extra(
    tmp_path, monkeypatch, package, name, extra
):
    if package == "pydicom":
        write_dicom(tmp_path / name, STORED)
    elif package == "nibabel":
        write_nifti(tmp_path / name, STORED[..., None])
    else:
        (tmp_path / name).mkdir()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"{name}.* {package}: pip install 'unet_core\[{extra}\]'"):
        images.read_header(tmp_path / name)
