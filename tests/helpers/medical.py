"""DICOM files as a scanner writes them."""

import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian


def write_dicom(path, stored, *, bits=None, syntax=ExplicitVRLittleEndian, **elements):
    """Writes [H, W], frames [N, H, W] or RGB [H, W, 3] uint8 as they are to be stored."""
    stored = np.asarray(stored)
    is_rgb = stored.ndim == 3 and stored.shape[-1] == 3
    found = pydicom.Dataset()
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = syntax
    found.file_meta.MediaStorageSOPClassUID = CTImageStorage
    found.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    found.SOPClassUID, found.SOPInstanceUID = CTImageStorage, "1.2.3"
    found.Rows, found.Columns = stored.shape[:2] if is_rgb else stored.shape[-2:]
    if stored.ndim == 3 and not is_rgb:
        found.NumberOfFrames = len(stored)
    found.SamplesPerPixel = 3 if is_rgb else 1
    found.PhotometricInterpretation = "RGB" if is_rgb else "MONOCHROME2"
    if is_rgb:
        found.PlanarConfiguration = 0
    found.BitsAllocated = 8 * stored.dtype.itemsize
    found.BitsStored = bits or found.BitsAllocated
    found.HighBit = found.BitsStored - 1
    found.PixelRepresentation = int(stored.dtype.kind == "i")
    found.PixelData = stored.tobytes()
    for name, value in elements.items():
        setattr(found, name, value)
    found.save_as(path, enforce_file_format=True)
    return path
