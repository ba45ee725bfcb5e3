"""Damaged files are refused, or give what the library that knows them makes of them."""

import gzip
import io
import resource
import signal
import warnings

import nibabel
import numpy as np
import pytest
import tifffile
from helpers.medical import write_dicom
from PIL import Image, ImageOps

from unet_core.data import images
from unet_core.errors import UserError

GREY = np.random.default_rng(0).integers(0, 256, (45, 37)).astype(np.uint8)
SMOOTH = (np.arange(45)[:, None] * 3 + np.arange(37) * 2).astype(np.uint8)
RGB = np.dstack([SMOOTH, 255 - SMOOTH, GREY])
DEEP_RGB = RGB.astype(np.uint16) * 257
FLOATS = GREY.astype(np.float32) / 255
STACK = np.stack([GREY, 255 - GREY, SMOOTH])


def of_pillow(array, form, **options):
    content = io.BytesIO()
    Image.fromarray(array).save(content, form, **options)
    return content.getvalue()


def of_tifffile(array, **options):
    content = io.BytesIO()
    photometric = "rgb" if array.shape[-1] == 3 else "minisblack"
    tifffile.imwrite(content, array, photometric=photometric, **options)
    return content.getvalue()


def of_numpy(array, write):
    content = io.BytesIO()
    write(content, array)
    return content.getvalue()


def of_pydicom(array, **elements):
    content = io.BytesIO()
    write_dicom(content, array, **elements)
    return content.getvalue()


def sound_files():
    """One file of each kind, by the names of their formats."""
    exif = Image.Exif()
    exif[274] = 6
    palette = Image.fromarray(GREY % 3)
    palette.putpalette([1, 2, 3, 4, 5, 6, 7, 8, 9])
    tiles = {"tile": (16, 16)}
    return [
        ("PNG", of_pillow(SMOOTH, "PNG")),
        ("PNG", of_pillow(RGB, "PNG", dpi=(300, 300))),
        ("PNG", images.cv2.imencode(".png", DEEP_RGB)[1].tobytes()),
        ("JPEG", of_pillow(RGB, "JPEG", exif=exif)),
        ("JPEG", of_pillow(SMOOTH, "JPEG", progressive=True)),
        ("BMP", of_pillow(RGB, "BMP")),
        ("BMP", of_pillow(np.asarray(palette), "BMP")),
        ("TIFF", of_tifffile(GREY, rowsperstrip=10)),
        ("TIFF", of_tifffile(DEEP_RGB, compression="zlib", predictor=True, rowsperstrip=20)),
        ("TIFF", of_tifffile(RGB, compression="lzw", **tiles)),
        ("TIFF", of_tifffile(RGB, compression="jpeg", **tiles)),
        ("TIFF", of_tifffile(FLOATS, compression="zstd", bigtiff=True, byteorder=">")),
        ("TIFF", of_tifffile(STACK, compression="packbits", metadata=None)),
        ("TIFF", of_tifffile(STACK, imagej=True, metadata={"axes": "ZYX"})),
        ("TIFF", of_tifffile(GREY > 99)),
        ("NumPy", of_numpy(DEEP_RGB, np.save)),
        ("zip", of_numpy(DEEP_RGB, np.savez_compressed)),
        ("OME-TIFF", of_tifffile(STACK, ome=True, metadata={"axes": "CYX"})),
        ("DICOM", of_pydicom(DEEP_RGB[..., 0], bits=12, RescaleSlope="2", RescaleIntercept="-9")),
        ("DICOM", of_pydicom(STACK)),
        ("NIfTI", nibabel.Nifti1Image(STACK.T, np.eye(4)).to_bytes()),
        ("NIfTI", gzip.compress(nibabel.Nifti2Image(STACK.T, np.eye(4)).to_bytes())),
    ]  # fmt: skip


def damaged(rng, content):
    """Returns `content` with something wrong: bits, numbers, parts that are missing or repeated."""
    content = bytearray(content)
    # What a file says of itself stands at its start, or at its end.
    span = int(rng.choice([16, 200, len(content)]))
    start = int(rng.choice([0, 0, max(0, len(content) - span)]))
    at = min(start + int(rng.integers(span)), len(content) - 1)
    kind = rng.integers(5)
    if kind == 0:
        content[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        number = int(rng.choice([0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1]))
        order = "little" if rng.integers(2) else "big"
        content[at : at + 4] = number.to_bytes(4, order)[: len(content) - at]
    elif kind == 2:
        del content[at:]
    elif kind == 3:
        del content[at : at + int(rng.integers(1, 9))]
    else:
        content[at:at] = content[at : at + int(rng.integers(1, 20))]
    return bytes(content)


def reference(form, content, page):
    """What the library that knows the format makes of it, or None."""
    try:
        with warnings.catch_warnings(action="ignore"):
            if form == "TIFF":
                return tifffile.imread(io.BytesIO(content), key=page)
            if form in ("OME-TIFF", "DICOM", "NIfTI"):
                return None
            if form == "NumPy":
                return np.load(io.BytesIO(content), allow_pickle=False)
            return np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    except Exception:
        return None


def read(path):
    """The pixels of the first pages of a file, or None if it is refused by name."""
    found = []
    try:
        for page in range(min(3, images.read_header(path).pages)):
            found.append(images.read_image(path, page))
            images.read_mask(path, page)
    except UserError as error:
        if str(path) not in str(error):
            raise
    return found


def check_damaged_files(count, folder):
    rng = np.random.default_rng(count)
    sound = sound_files()
    originals = []
    for number, (_, content) in enumerate(sound):
        (folder / f"{number}").write_bytes(content)
        originals.append(images.read_image(folder / f"{number}"))
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("hangs"))
    before, refused = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    for number in range(count):
        kind = number % len(sound)
        form, content = sound[kind]
        content = damaged(rng, content)
        path = folder / "a"
        path.write_bytes(content)
        signal.alarm(20)
        with warnings.catch_warnings(action="ignore"):
            found = read(path)
        signal.alarm(0)
        refused += not found
        for page, pixels in enumerate(found):
            if form in ("PNG", "zip"):
                # Check sums stand over all that pixels depend on.
                np.testing.assert_array_equal(pixels, originals[kind])
                continue
            expected = reference(form, content, page)
            if expected is not None and expected.shape == pixels.shape:
                factor = 255 if expected.dtype == bool else 1
                np.testing.assert_array_equal(pixels, expected * factor, f"{number}: {form}")
    # Pages of 1 KiB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20
    return refused


class TestDamagedFiles:
    def test_are_refused_by_name_or_read_as_the_library_reads_them(self, tmp_path):
        # Most are refused, and the others must not all be.
        assert 100 < check_damaged_files(340, tmp_path) < 320

    @pytest.mark.slow
    def test_of_thousands_too(self, tmp_path):
        check_damaged_files(5000, tmp_path)
