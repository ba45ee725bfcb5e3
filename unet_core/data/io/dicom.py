"""DICOM files, by pydicom: frames are pages, numbers those that the modality means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from unet_core.data.io.page import MOST_PAGES, Page
from unet_core.errors import UserError

MARK_AT, MARK = 128, b"DICM"
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_SLIDE, _SEGMENTS = "1.2.840.10008.5.1.4.1.1.77.1.6", "1.2.840.10008.5.1.4.1.1.66.4"
# Transfer syntaxes that change values: JPEG of 8 and 12 bits, near-lossless JPEG-LS, JPEG 2000.
_LOSSY = {f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 81, 91, 93, 203)}
_GREY, _PALETTE = ("MONOCHROME1", "MONOCHROME2"), "PALETTE COLOR"
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_BYTES_OF_HEAD = 2**12


def open_dicom(where: str, file: BinaryIO, page: int) -> Page:
    """Returns frame `page` of a DICOM file.

    Raises:
        UserError: If pydicom is not installed, or the file is of a kind that is not read.
    """
    if _DEFLATED in file.read(_BYTES_OF_HEAD):
        raise UserError(f"{where}: is a deflated DICOM file, which is not read; save it unpacked.")
    file.seek(0)
    try:
        import pydicom  # Not always installed.
    except ImportError:
        raise UserError(
            f"{where}: DICOM files need pydicom: pip install 'unet_core[medical]'."
        ) from None
    found = pydicom.dcmread(file, stop_before_pixels=True)
    _check_kind(where, found)
    samples = int(found.SamplesPerPixel)
    bits, stored = int(found.BitsAllocated), int(found.BitsStored)
    kind = "i" if found.PixelRepresentation else "u"
    raw = np.dtype(bool if bits == 1 else f"{kind}{bits // 8}")
    is_grey = found.PhotometricInterpretation in _GREY and bits > 1
    modality = _Modality(found, page) if is_grey else None
    dtype = raw if modality is None or modality.is_none else modality.dtype
    inverted = None
    if found.PhotometricInterpretation == "MONOCHROME1" and bits > 1:
        ends = np.iinfo(raw).min >> (bits - stored), np.iinfo(raw).max >> (bits - stored)
        inverted = float(sum(ends) if modality is None else modality.ends(*ends))
    notes = [] if modality is None or modality.is_none else ["rescaled as its modality says"]
    return Page(
        where,
        "DICOM",
        int(found.get("NumberOfFrames") or 1),
        int(found.Rows),
        int(found.Columns),
        samples,
        dtype,
        _reader(file, page, raw, modality),
        1 if bits == 1 else 8 * dtype.itemsize,
        lossy=str(found.file_meta.TransferSyntaxUID) in _LOSSY,
        palette=_palette(found) if found.PhotometricInterpretation == _PALETTE else None,
        white_is_zero=found.PhotometricInterpretation == "MONOCHROME1" and bits == 1,
        inverted_about=inverted,
        is_measured=True,
        pixel_size_um=_pixel_size_um(found, page),
        notes=tuple(notes),
    )


def _check_kind(where: str, found: Any) -> None:
    """Raises UserError if a file holds no picture, or one of a kind that is not read."""
    names = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored")
    lacking = [name for name in (*names, "PhotometricInterpretation") if name not in found]
    if lacking or "PixelRepresentation" not in found:
        raise UserError(
            f"{where}: is a DICOM file without a picture of whole numbers (it lacks "
            f"{(lacking or ['PixelRepresentation'])[0]}). Remove it."
        )
    sop = str(found.get("SOPClassUID", ""))
    if sop in (_SLIDE, _SEGMENTS):
        what = "a slide in tiles" if sop == _SLIDE else "a DICOM segmentation of several layers"
        raise UserError(f"{where}: is {what}, which is not read. Save it as TIFF or NIfTI.")
    samples, shown = found.SamplesPerPixel, found.PhotometricInterpretation
    if shown not in {1: (*_GREY, _PALETTE), 3: _COLOURS}.get(samples, ()):
        raise UserError(
            f"{where}: holds {samples} sample(s) a pixel of the kind {shown}; it must be grey, RGB "
            "or a palette. Save it as one of these."
        )
    bits, stored = found.BitsAllocated, found.BitsStored
    most = 32 if shown in _GREY else 16
    # pydicom takes what lies in other bits away, if they are those above.
    lies_low = found.get("HighBit", stored - 1) == stored - 1
    place = "" if lies_low else ", not the lower ones"
    if bits not in (1, 8, 16, 32) or bits > most or not 1 <= stored <= bits or not lies_low:
        raise UserError(
            f"{where}: holds numbers of {stored} bits in {bits}{place}; grey of 1, 8, 16 or 32 "
            "bits and colours of 8 or 16 are read. Save it as one of these."
        )
    frames = int(found.get("NumberOfFrames") or 1)
    if not 1 <= frames <= MOST_PAGES:
        raise UserError(f"{where}: has {frames} frames; 1 to {MOST_PAGES} are read. Split it.")
    if found.Rows < 1 or found.Columns < 1:
        raise ValueError(f"{found.Columns}x{found.Rows} pixels")


def _reader(
    file: BinaryIO, page: int, raw: np.dtype, modality: _Modality | None
) -> Callable[[int, int], np.ndarray]:
    def read_rows(first: int, last: int) -> np.ndarray:
        from pydicom.pixels import pixel_array

        pixels = pixel_array(file, index=page)[first:last]
        if raw.kind == "b":
            return pixels != 0
        pixels = pixels.astype(raw, copy=False)
        return pixels if modality is None or modality.is_none else modality(pixels)

    return read_rows


def _palette(header: Any) -> np.ndarray:
    """Returns the colours [n, 3] uint8 of all numbers that pixels may have."""
    from pydicom.pixels import apply_color_lut

    numbers = np.arange(2 ** int(header.BitsStored)).astype(f"u{header.BitsAllocated // 8}")
    colours = apply_color_lut(numbers[None], header)[0]
    return (colours >> 8 if colours.dtype.itemsize > 1 else colours).astype(np.uint8)


class _Modality:
    """From stored numbers to those that the modality means, such as Hounsfield units."""

    def __init__(self, header: Any, page: int):
        of_frame = _of_frame(header, page, "PixelValueTransformationSequence") or header
        self._slope = float(of_frame.get("RescaleSlope") or 1)
        self._offset = float(of_frame.get("RescaleIntercept") or 0)
        self._header = header if header.get("ModalityLUTSequence") else None
        self.is_none = self._header is None and (self._slope, self._offset) == (1, 0)
        self.dtype = np.dtype(np.float32)

    def __call__(self, stored: np.ndarray) -> np.ndarray:
        if self._header is None:
            return (stored * self._slope + self._offset).astype(np.float32)
        from pydicom.pixels import apply_modality_lut

        return apply_modality_lut(stored, self._header).astype(np.float32)

    def ends(self, least: int, most: int) -> float:
        """Returns the sum of what the least and the greatest stored number mean."""
        return float(self(np.array([least, most], np.int64)).astype(np.float64).sum())


def _of_frame(header: Any, page: int, name: str) -> Any:
    """Returns what an enhanced file says of a frame, of it or of all; None if it does not."""
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
    shared = header.get("SharedFunctionalGroupsSequence") or []
    for group in (*per_frame[page : page + 1], *shared):
        if group.get(name):
            return group[name].value[0]
    return None


def _pixel_size_um(header: Any, page: int) -> tuple[float, float] | None:
    """Returns width and height of a pixel; files have millimetres, the height first."""
    of_frame = _of_frame(header, page, "PixelMeasuresSequence") or header
    for name in ("PixelSpacing", "NominalScannedPixelSpacing", "ImagerPixelSpacing"):
        spacing = of_frame.get(name)
        if spacing is not None and len(spacing) == 2:
            down, across = (1000 * float(each) for each in spacing)
            return (across, down) if across > 0 and down > 0 else None
    return None
