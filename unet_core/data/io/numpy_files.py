"""Arrays of NumPy: .npy files, and .npz files of one array. Nothing in them is executed."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from typing import IO, BinaryIO

import numpy as np

from unet_core.data.io import limits
from unet_core.data.io.page import Page
from unet_core.errors import UserError

NPY, NPZ = b"\x93NUMPY", b"PK\x03\x04"
_SHAPES = "[H, W], [H, W, C], or [N, H, W, C] for N pictures"


def open_npy(where: str, file: BinaryIO, page: int) -> Page:
    """Returns page `page` of the array in an .npy file.

    Raises:
        UserError: If the array has another shape, or holds Python objects.
    """
    shape, in_columns, dtype = _header(where, file)
    start = file.tell()
    size = file.seek(0, 2) - start
    count = int(np.prod(shape, dtype=np.float64))
    if size < count * dtype.itemsize:
        raise UserError(
            f"{where}: is cut short ({size} bytes of {count * dtype.itemsize} of its array); copy "
            "it again."
        )
    if in_columns:
        limits.check_bytes(where, count * dtype.itemsize, f"an array {list(shape)} of {dtype}")

    def read_rows(first: int, last: int) -> np.ndarray:
        row = int(np.prod(shape[-2:] if len(shape) > 2 else shape[1:]))
        if in_columns:
            file.seek(start)
            whole = np.frombuffer(file.read(count * dtype.itemsize), dtype).reshape(
                shape, order="F"
            )
            return _native((whole[page] if len(shape) == 4 else whole)[first:last])
        skipped = (page * shape[1] if len(shape) == 4 else 0) + first
        file.seek(start + skipped * row * dtype.itemsize)
        data = file.read((last - first) * row * dtype.itemsize)
        rows = np.frombuffer(data, dtype)
        return _native(rows.reshape(last - first, *(shape[2:] if len(shape) == 4 else shape[1:])))

    return _page(where, shape, dtype, read_rows, in_bands=not in_columns)


def open_npz(where: str, file: BinaryIO, page: int) -> Page:
    """Returns page `page` of the only array in an .npz file.

    Raises:
        UserError: As `open_npy`; if it holds several arrays, or too much.
    """
    archive = zipfile.ZipFile(file)
    names = archive.namelist()
    if len(names) != 1 or not names[0].endswith(".npy"):
        listed = ", ".join(name.removesuffix(".npy") for name in names[:8]) or "nothing"
        raise UserError(
            f"{where}: holds {listed}; an .npz file of a picture must hold one array. Save each "
            "with np.save, in a file of its own."
        )
    with archive.open(names[0]) as member:
        shape, in_columns, dtype = _header(where, member)
    size = int(np.prod(shape, dtype=np.float64)) * dtype.itemsize
    limits.check_bytes(where, size, f"an array {list(shape)} of {dtype}")

    def read_rows(first: int, last: int) -> np.ndarray:
        with archive.open(names[0]) as member:
            _header(where, member)
            data = member.read(size)
        whole = np.frombuffer(data, dtype).reshape(shape, order="F" if in_columns else "C")
        return _native((whole[page] if len(shape) == 4 else whole)[first:last])

    return _page(where, shape, dtype, read_rows)


def _header(where: str, file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Returns shape, whether columns come first in memory, and dtype of an array."""
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise UserError(
            f"{where}: is of version {version} of NumPy's format; save it with np.save."
        )
    shape, in_columns, dtype = read(file)
    if dtype.hasobject or dtype.kind not in "buif":
        raise UserError(
            f"{where}: holds an array of {dtype}; it must be of numbers, as Python objects could "
            "run code when they are read. Save it as numbers, such as uint8."
        )
    if len(shape) not in (2, 3, 4) or min(shape) < 1:
        raise UserError(f"{where}: holds an array {list(shape)}; it must be {_SHAPES}.")
    return shape, in_columns, dtype


def _page(
    where: str,
    shape: tuple[int, ...],
    dtype: np.dtype,
    read_rows: Callable[[int, int], np.ndarray],
    in_bands: bool = False,
) -> Page:
    height, width = shape[1:3] if len(shape) == 4 else shape[:2]
    samples = shape[-1] if len(shape) > 2 else 1
    if len(shape) == 3 and samples > 4 and shape[0] < min(shape[1:]):
        raise UserError(
            f"{where}: holds an array {list(shape)}, whose first axis seems to be channels or "
            f"pages; it must be {_SHAPES}. Move channels last with np.moveaxis(array, 0, -1), give "
            "pages an axis for their channel with array[..., None]; or if the last axis is of "
            "channels, say so by an axis for pages: array[None]."
        )

    def rows(first: int, last: int) -> np.ndarray:
        found = read_rows(first, last)
        return found[..., 0] if samples == 1 and found.ndim == 3 else found

    return Page(
        where,
        "NumPy",
        shape[0] if len(shape) == 4 else 1,
        height,
        width,
        samples,
        dtype.newbyteorder("="),
        rows,
        1 if dtype.kind == "b" else 8 * dtype.itemsize,
        in_bands=in_bands,
    )


def _native(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(pixels.dtype.newbyteorder("="))
