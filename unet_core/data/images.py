"""Reading and writing 8-bit grey pictures, with errors that name the file."""

from __future__ import annotations

import os
import pathlib

import cv2
import numpy as np

from unet_core.errors import UserError
from unet_core.files import write_whole


def read_grey(path: str | os.PathLike) -> np.ndarray:
    """Returns the 8-bit grey picture at `path`, [H, W] uint8.

    Raises:
        UserError: If the file cannot be read, is cut short, or is not 8-bit grey.
    """
    try:
        content = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    if content.startswith(b"\x89PNG") and content[-8:-4] != b"IEND":
        # OpenCV 5.0 returns the rows it could decode of a cut PNG, and says nothing.
        raise UserError(
            f"{path}: the PNG is cut short ({len(content)} bytes, no end mark); copy it again."
        )
    pixels = (
        cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED) if content else None
    )
    if pixels is None:
        raise UserError(
            f"{path}: cannot be decoded as a picture ({len(content)} bytes); replace or remove it."
        )
    if pixels.ndim != 2 or pixels.dtype != np.uint8:
        channels = 1 if pixels.ndim == 2 else pixels.shape[2]
        raise UserError(
            f"{path}: has {channels} channel(s) of {pixels.dtype}; expected one channel of uint8. "
            "Convert it to 8-bit grey."
        )
    return pixels


def write_png(path: str | os.PathLike, pixels: np.ndarray) -> None:
    """Writes `pixels` ([H, W] or [H, W, 3] in BGR order, uint8 or uint16) as PNG, whole or not at
    all.

    Raises:
        OSError: If the file cannot be written.
    """
    _, encoded = cv2.imencode(".png", pixels)
    write_whole(path, encoded.tobytes())
