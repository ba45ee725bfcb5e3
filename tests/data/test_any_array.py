"""Whatever array is written, `read_image` gives that array or refuses it by name."""

import tempfile
import warnings

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from unet_core.data import images
from unet_core.errors import UserError

READ = ("bool", "u1", "i1", "u2", "i2", "f2", "f4")
DTYPES = (*READ, *READ, "u4", "i4", "u8", "i8", "f8")
LOSSLESS = ("zlib", "lzw", "packbits", "zstd", "lzma", "png", "lerc", "deflate")
EXAMPLES = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@st.composite
def choosers(draw):
    """A function that picks one of several, each as often; Hypothesis would repeat few of them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return lambda options: options[rng.integers(len(options))]


@st.composite
def arrays(draw, pick, dtypes, channels):
    """[H, W] or, for several channels, [H, W, C] of random numbers over all of the type."""
    count = pick(channels)
    shape = (*draw(st.tuples(st.integers(1, 40), st.integers(1, 40))), *([count] * (count > 1)))
    dtype = np.dtype(pick(dtypes))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    if dtype.kind in "fb":
        numbers = rng.normal(size=shape)
        return numbers.astype(dtype) if dtype.kind == "f" else numbers > 0
    return rng.integers(0, 256, (*shape, dtype.itemsize), np.uint8).view(dtype)[..., 0]


def check(path, array, page=0):
    """Asserts that the file at `path` holds `array`, or that it is refused by its name."""
    try:
        read = images.read_image(path, page)
    except UserError as error:
        message = str(error)
        # No more is refused than is said to be.
        bits_of_channels = array.dtype == bool and array.ndim == 3
        is_refused = array.dtype.itemsize >= 4 and array.dtype != np.float32
        is_refused |= "LERC" in message
        if str(path) in message and (bits_of_channels or is_refused):
            return
        raise
    assert read.dtype in (np.uint8, np.uint16, np.float32)
    assert read.dtype.isnative
    expected = array * np.uint8(255) if array.dtype == bool else array
    np.testing.assert_array_equal(read, expected)


def save(write, *arguments, **options):
    """Writes a file, unless the library cannot hold that array so."""
    try:
        with warnings.catch_warnings(action="ignore"):
            if write(*arguments, **options) is False:
                assume(False)
    except Exception:
        assume(False)


class TestReadImage:
    @pytest.mark.parametrize("compressed", [False, True])
    @EXAMPLES
    @given(data=st.data())
    def test_gives_what_tifffile_wrote(self, compressed, data):
        pick = data.draw(choosers())
        array = data.draw(arrays(pick, DTYPES, (1, 1, 2, 3, 4, 5)))
        several = array.ndim == 3
        separate = several and pick((False, True))
        colours = several and array.shape[2] in (3, 4) and pick((False, True))
        greys = ("minisblack", "miniswhite")
        how = {
            "photometric": "rgb" if colours else pick(greys),
            "compression": pick(LOSSLESS) if compressed else None,
            "byteorder": pick("<>"),
            "bigtiff": pick((False, True)),
            "predictor": (compressed and pick((False, True))) or None,
            "metadata": pick([None, {}]),
        }
        if several:
            how["planarconfig"] = "separate" if separate else "contig"
        if pick((False, True)):
            how["tile"] = pick([(16, 16), (32, 16)])
        else:
            how["rowsperstrip"] = data.draw(st.integers(1, 40))
        # Of an axis of one tifffile makes no pages.
        pages = 1 if several or min(array.shape) == 1 else data.draw(st.integers(1, 3))
        whole = np.stack([np.roll(array, page, 0) for page in range(pages)])
        stored = np.moveaxis(array, -1, 0) if separate else whole if pages > 1 else array
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/a.tif"
            save(tifffile.imwrite, path, stored, **how)
            for page in range(pages):
                check(path, whole[page], page)
            with pytest.raises(UserError):
                images.read_header(path, pages)

    @EXAMPLES
    @given(data=st.data())
    def test_gives_what_pillow_wrote(self, data):
        pick = data.draw(choosers())
        array = data.draw(arrays(pick, ("bool", "u1", "u1", "u2", "i4", "f4"), (1, 1, 2, 3, 4)))
        suffix = pick([".png", ".tif", ".bmp"])
        options = {}
        if suffix == ".tif":
            kinds = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "group4", "tiff_ccitt")
            options["compression"] = pick(kinds)
            options["big_tiff"] = pick((False, True))
        mode = "LA" if array.ndim == 3 and array.shape[2] == 2 else None
        assume(mode is None or array.dtype == np.uint8)
        try:
            picture = Image.fromarray(array, mode) if mode else Image.fromarray(array)
        except TypeError:
            assume(False)
        # Pillow 13.0 writes 32-bit integers to PNG as 16 bits.
        assume(not (suffix != ".tif" and array.dtype == np.int32))
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/a{suffix}"
            save(picture.save, path, **options)
            check(path, array)

    @EXAMPLES
    @given(data=st.data())
    def test_gives_what_opencv_wrote(self, data):
        pick = data.draw(choosers())
        array = data.draw(arrays(pick, ("u1", "i1", "u2", "i2", "i4", "f4", "f8"), (1, 3, 4)))
        suffix = pick([".png", ".tif", ".bmp"])
        # OpenCV 5.0 stores others than these as 8 bits.
        kinds = {".png": ("uint8", "uint16"), ".bmp": ("uint8",)}
        assume(array.dtype.name in kinds.get(suffix, (array.dtype.name,)))
        options = []
        if suffix == ".tif":
            codes = (1, 5, 8, 32946, 32773)
            options = [cv2.IMWRITE_TIFF_COMPRESSION, pick(codes)]
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/a{suffix}"
            in_order = array if array.ndim == 2 else array[..., [2, 1, 0, 3][: array.shape[2]]]
            save(cv2.imwrite, path, np.ascontiguousarray(in_order), options)
            check(path, array)

    @EXAMPLES
    @given(data=st.data())
    def test_gives_what_numpy_wrote(self, data):
        pick = data.draw(choosers())
        array = data.draw(arrays(pick, DTYPES, (1, 2, 3, 4)))
        stored = array.astype(array.dtype.newbyteorder(pick("<>")))
        stored = np.asarray(stored, order=pick("CF"))
        pages = data.draw(st.integers(0, 2))
        if pages:
            stored = np.stack([stored] * pages)
            stored = stored if stored.ndim == 4 else stored[..., None]
        with tempfile.TemporaryDirectory() as folder:
            write = pick([np.save, np.savez, np.savez_compressed])
            path = f"{folder}/a.np{'y' if write is np.save else 'z'}"
            write(path, stored)
            check(path, array, max(0, pages - 1))
