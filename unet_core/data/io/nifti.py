"""NIfTI volumes, whose headers nibabel reads: slices along the last axes are pages.

Rows and columns are those of the file: a picture is [second axis, first axis]. Where they run on
the body is said, and compared between image and mask, but nothing is turned.
"""

from __future__ import annotations

import gzip
import math
import os
import threading
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from unet_core.data.io import limits
from unet_core.data.io.page import MOST_PAGES, Page
from unet_core.errors import UserError

GZIP = b"\x1f\x8b"
_SIZES = (348, 540)
_ORDERS: tuple[Any, ...] = ("little", "big")
_UM = {"meter": 1e6, "mm": 1e3, "micron": 1.0}
_RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])


def is_nifti(start: bytes) -> bool:
    """Returns whether a file that starts so is a NIfTI file that is not compressed."""
    return any(start[:4] == size.to_bytes(4, order) for size in _SIZES for order in _ORDERS)


def open_nifti(where: str, file: BinaryIO, page: int) -> Page:
    """Returns slice `page` of a volume, compressed or not; later axes go on counting.

    Raises:
        UserError: If nibabel is not installed, or the file is of a kind that is not read.
    """
    is_packed = file.read(2) == GZIP
    file.seek(0)
    stream: Any = gzip.GzipFile(fileobj=file) if is_packed else file
    start = stream.read(8)
    if not is_nifti(start):
        raise UserError(f"{where}: is no NIfTI file, packed by gzip; unpack it, or remove it.")
    stream.seek(0)
    header = _header(where, stream)
    shape, dtype = _shape(where, header), header.get_data_dtype()
    width, height = shape[:2]
    offset, count = int(header["vox_offset"]), math.prod(shape) * dtype.itemsize
    if offset < _SIZES[0]:
        raise ValueError(f"its volume begins at byte {offset}, in its header")
    if not is_packed and offset + count > file.seek(0, os.SEEK_END):
        raise UserError(f"{where}: is cut short, as not all of its volume is there; copy it again.")
    if is_packed:
        what = f"a volume {list(shape)} of {dtype.name}, packed,"
        limits.check_bytes(where, count, what)
    row = width * dtype.itemsize

    def read_rows(first: int, last: int) -> np.ndarray:
        place = offset + (page * height + first) * row
        if is_packed:
            data: Any = _unpacked(where, file, offset + count)[place : place + (last - first) * row]
        else:
            file.seek(place)
            data = file.read((last - first) * row)
        rows = np.frombuffer(data, dtype).reshape(last - first, width)
        return scaled(rows.view("u1").reshape(*rows.shape, 3) if dtype == _RGB else rows)

    scaled, found = _scaling(header, dtype)
    along = _directions(header)
    return Page(
        where,
        "NIfTI",
        math.prod(shape[2:]),
        height,
        width,
        3 if dtype == _RGB else 1,
        found,
        read_rows,
        8 * found.itemsize,
        in_bands=not is_packed,
        is_measured=True,
        pixel_size_um=_pixel_size_um(header),
        directions=along,
        notes=(f"columns run to {along[0]}, rows to {along[1]}, as stored",) if along else (),
    )


def _header(where: str, stream: BinaryIO) -> Any:
    try:
        import nibabel  # Not always installed.
    except ImportError:
        raise UserError(
            f"{where}: NIfTI files need nibabel: pip install 'unet_core[medical]'."
        ) from None
    start = stream.read(4)
    stream.seek(0)
    is_second = _SIZES[1] in (int.from_bytes(start, order) for order in _ORDERS)
    made = nibabel.Nifti2Header if is_second else nibabel.Nifti1Header
    # Its own check only writes to the log.
    header = made.from_fileobj(stream, check=False)
    if bytes(header["magic"])[:2] != b"n+":
        raise UserError(
            f"{where}: is a NIfTI header whose volume is in a file of its own (.img), which is not "
            "read. Save both as one .nii file."
        )
    return header


def _shape(where: str, header: Any) -> tuple[int, ...]:
    """Returns the sides of the volume, two at least.

    Raises:
        UserError: If they make no pictures, or too many, or of numbers that are none.
    """
    shape, dtype = header.get_data_shape(), header.get_data_dtype()
    if len(shape) < 2 or min(shape) < 1:
        raise UserError(f"{where}: holds an array {list(shape)}; it must have two axes or more.")
    if math.prod(shape[2:]) > MOST_PAGES:
        raise UserError(
            f"{where}: has {math.prod(shape[2:])} slices; at most {MOST_PAGES} are read. Split it."
        )
    is_number = dtype.kind in "uif" and dtype.itemsize <= 8
    if not is_number and dtype != _RGB:
        raise UserError(
            f"{where}: holds numbers of the kind {dtype}; whole ones and floats are read, and RGB. "
            "Save it as one of these."
        )
    return shape


def _scaling(header: Any, dtype: np.dtype) -> tuple[Callable[[np.ndarray], np.ndarray], np.dtype]:
    """Returns from stored numbers to what they mean, and the dtype of that."""
    slope, offset = header.get_slope_inter()
    if dtype == _RGB:
        return lambda stored: stored, np.dtype(np.uint8)
    own = dtype.newbyteorder("=")
    if slope is None or (slope, offset or 0) == (1, 0):
        return lambda stored: stored.astype(own), own
    return lambda stored: (stored * slope + (offset or 0)).astype(np.float32), np.dtype(np.float32)


def _directions(header: Any) -> str:
    """Returns to which side of the body the axes run, such as "RAS"; empty if it is not said."""
    import nibabel

    if not (header["qform_code"] or header["sform_code"]):
        return ""
    codes = nibabel.aff2axcodes(header.get_best_affine())
    return "" if None in codes else "".join(codes)


def _pixel_size_um(header: Any) -> tuple[float, float] | None:
    unit = _UM.get(header.get_xyzt_units()[0])
    across, down = (float(each) for each in header["pixdim"][1:3])
    return (across * unit, down * unit) if unit and across > 0 and down > 0 else None


def _unpacked(where: str, file: BinaryIO, size: int) -> bytes:
    """Returns the first `size` bytes of what a file packs; those of the last files are kept."""
    status = os.fstat(file.fileno()) if hasattr(file, "raw") else None
    key = status and (where, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    with _lock:
        content = _kept.pop(key, None)
        if content is None:
            file.seek(0)
            content = gzip.GzipFile(fileobj=file).read(size)
        if len(content) < size:
            raise ValueError(f"{len(content)} bytes of {size}, cut short")
        if key is not None:
            _kept[key] = content
        while sum(map(len, _kept.values())) > limits.most_bytes():
            del _kept[next(iter(_kept))]
    return content


_kept: dict[tuple | None, bytes] = {}
_lock = threading.Lock()
