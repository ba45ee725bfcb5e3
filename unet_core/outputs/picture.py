"""One image on its way to its files: whole, or in bands of rows if it is large.

write = predict_picture(predictor, source, stem, wanted, object_files, update, should_stop)
figures = write()       # may run in another thread, while the network sees the next image
"""

from __future__ import annotations

import contextlib
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from unet_core.data import images
from unet_core.data.pixel_size import GEOREFERENCE, kept_metadata
from unet_core.data.samples import Source
from unet_core.data.tiff_bands import Rows, open_rows
from unet_core.data.tiff_writer import TiffWriter
from unet_core.drawing import pictures
from unet_core.errors import UserError
from unet_core.inference.instances import number_objects
from unet_core.inference.masks import mask_pixels, usual_rule, write_mask
from unet_core.inference.predictor import Predictor
from unet_core.outputs import numbered
from unet_core.outputs.bands import Band, Bands
from unet_core.outputs.figures import Figures
from unet_core.outputs.objects import ObjectFiles
from unet_core.outputs.reduced import Reduced
from unet_core.outputs.wanted import UNCERTAIN, PredictionOutputs, class_of_level

MOST_PIXELS_WHOLE = 2**26


def is_whole(height: int, width: int) -> bool:
    """Returns whether a picture is predicted whole, and written as PNG."""
    return height * width <= MOST_PIXELS_WHOLE and max(height, width) <= images.MOST_PNG_SIDE


def predict_picture(
    predictor: Predictor,
    source: Source,
    stem: pathlib.Path,
    wanted: PredictionOutputs,
    object_files: ObjectFiles,
    update: Callable[[int], object],
    should_stop: Callable[[], bool],
) -> Callable[[], Figures | None]:
    """Predicts an image; returns what writes its files and gives its figures.

    That gives None, leaving no files, if it was stopped before. A large image is written already.

    Args:
        predictor: The network.
        source: The image.
        stem: What the paths of its files begin with.
        wanted: What to write.
        object_files: Takes its objects.
        update: Takes how many more pixels are done.
        should_stop: Asked before every band.
    """
    with open_rows(source.path, source.page) as rows:
        metadata = kept_metadata(source.path, source.page, rows.metadata)
        size = predictor.resize.size(rows.height, rows.width, source)
        picture = _Picture(predictor, rows, stem, wanted, metadata, size)
        if not is_whole(rows.height, rows.width):
            figures = picture.figures if picture.write_in_bands(update, should_stop) else None
            return lambda: figures
        pixels, band = picture.predict_whole()
        numbers = wanted.instances != "none"
        own_pixels = rows.read(0, rows.height) if numbers else np.empty([0])

    def write() -> Figures:
        labels = picture.write_whole(pixels, band)
        if labels is not None:
            object_files.add(stem.name, source, labels, own_pixels)
        update(math.prod(pixels.shape[:2]))
        return picture.figures

    return write


class _Picture:
    """One picture on its way to its files."""

    def __init__(
        self,
        predictor: Predictor,
        rows: Rows,
        stem: pathlib.Path,
        wanted: PredictionOutputs,
        metadata: Mapping[int, tuple],
        size: tuple[int, int],
    ):
        self.figures = Figures(predictor.classes)
        self._bands = Bands(predictor, wanted.outputs)
        self._size = size
        self._classes = predictor.classes
        self._rows = rows
        self._stem = stem
        self._wanted = wanted
        self._metadata = metadata
        self._make_mask = wanted.make_mask or usual_rule(predictor.classes)
        self._read = predictor.reader(rows)

    def predict_whole(self) -> tuple[np.ndarray, Band]:
        """Returns the scaled pixels [H, W, channels], and what the network makes of them."""
        image = self._read(0, self._rows.height)
        return image, self._bands.of_whole(image, self._size)

    def write_whole(self, image: np.ndarray, band: Band) -> np.ndarray | None:
        """Writes PNG files; returns the numbers of the objects [H, W], if they are wanted."""
        wanted = self._wanted
        ids = self._make_mask(band.probabilities)
        self.figures.add(band.probabilities, ids)
        if "mask" in wanted.outputs:
            write_mask(self._stem, ids, self._classes, wanted.mask_format, self._metadata)
        self.figures.lost_georeference = not GEOREFERENCE.isdisjoint(self._metadata)
        self._write_pictures(image, ids, self._metadata)
        for suffix, levels in band.levels.items():
            images.write_png(self._path(suffix), levels, self._metadata)
        return None if wanted.instances == "none" else self._write_instances(image, ids)

    def write_in_bands(
        self, update: Callable[[int], object], should_stop: Callable[[], bool]
    ) -> bool:
        """Writes TIFF files band by band; returns False, leaving none, if stopped before."""
        height, width = self._rows.height, self._rows.width
        outputs = self._wanted.outputs
        self._check_bands()
        reduced = Reduced(height, width)
        numbers = self._wanted.instances != "none"
        draws = bool({"overlay", "outlines"} & set(outputs)) or numbers
        # Objects are of the whole: a byte a pixel, and four for their numbers.
        whole = np.empty((height, width), np.uint8) if numbers else None
        with contextlib.ExitStack() as stack:
            tiffs = self._open_tiffs(stack)
            for band in self._bands.of(self._read, height, width):
                if should_stop():
                    for tiff in tiffs.values():
                        tiff.abandon()
                    return False
                ids = self._make_mask(band.probabilities)
                self.figures.add(band.probabilities, ids)
                if "mask" in outputs:
                    for suffix, pixels in self._mask_pixels(ids).items():
                        tiffs[suffix].write(pixels)
                for suffix, levels in band.levels.items():
                    tiffs[suffix].write(levels)
                if whole is not None:
                    whole[band.first : band.first + len(ids)] = ids
                if draws:
                    rows = self._read(band.first, band.first + len(ids))
                    reduced.add(band.first, rows, ids)
                update(ids.size)
        if draws:
            image, ids = reduced.pictures()
            self._write_pictures(image, ids)
            if whole is not None:
                self._write_instances(image, whole)
        return True

    def _check_bands(self) -> None:
        """Raises UserError if something is wanted that needs the whole picture at once."""
        height, width = self._rows.height, self._rows.width
        most = f"{MOST_PIXELS_WHOLE} pixels, {images.MOST_PNG_SIDE} a side"
        if self._size != (height, width):
            raise UserError(
                f"has {width}x{height} pixels; only pictures of up to {most}, can be resized "
                "(`resize`). Cut it into parts, or predict it with a run without `resize`."
            )
        steps = dict.fromkeys(step.kind for step in self._make_mask.steps)
        for setting in [*(["objects"] if self._wanted.objects else []), *steps]:
            raise UserError(
                f"has {width}x{height} pixels; objects are measured and filled in pictures of up "
                f"to {most}. Cut it into parts, or leave `{setting}` out."
            )

    def _open_tiffs(self, stack: contextlib.ExitStack) -> dict[str, TiffWriter]:
        """Opens a file for the mask and for each class's probabilities, by suffix."""
        kinds: dict[str, dict[str, Any]] = {}
        if "mask" in self._wanted.outputs:
            indexed = self._wanted.mask_format == "palette"
            for suffix, sample in self._mask_pixels(np.zeros((1, 1), np.uint8)).items():
                kinds[suffix] = {
                    "channels": sample.shape[2] if sample.ndim == 3 else 1,
                    "dtype": sample.dtype,
                    "palette": self._classes.palette() if indexed else None,
                }
        if "probabilities" in self._wanted.outputs:
            kinds |= {suffix: {"dtype": np.uint16} for suffix in class_of_level(self._classes)}
        uncertain = set(UNCERTAIN) & set(self._wanted.outputs)
        kinds |= {suffix: {"dtype": np.uint16} for suffix in uncertain}
        size = self._rows.height, self._rows.width
        return {
            suffix: stack.enter_context(
                TiffWriter(self._path(suffix, ".tif"), *size, **kind, metadata=self._metadata)
            )
            for suffix, kind in kinds.items()
        }

    def _path(self, suffix: str, kind: str = ".png") -> pathlib.Path:
        return self._stem.with_name(f"{self._stem.name}_{suffix}{kind}")

    def _mask_pixels(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        return mask_pixels(ids, self._classes, self._wanted.mask_format)

    def _write_pictures(
        self, image: np.ndarray, ids: np.ndarray, metadata: Mapping[int, tuple] | None = None
    ) -> None:
        image = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
        drawn = {}
        if "overlay" in self._wanted.outputs:
            drawn["overlay"] = pictures.overlay(image, ids, self._classes, alpha=self._wanted.alpha)
        if "outlines" in self._wanted.outputs:
            drawn["outlines"] = pictures.outlines(image, ids, self._classes)
        for suffix, picture in drawn.items():
            picture = pictures.with_legend(picture, self._classes)
            images.write_png(self._path(suffix), picture, metadata)

    def _write_instances(self, image: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Numbers the objects of a mask and writes them; `image` may be a reduced one."""
        wanted = self._wanted
        how: dict[str, Any] = {"how": wanted.instances, "least_px": wanted.least_object_px}
        labels = number_objects(ids, self._classes, wanted.object_class, **how)
        more: dict[str, Any] = {"alpha": wanted.alpha, "is_large": not is_whole(*ids.shape)}
        numbered.write_numbered(self._stem, labels, image, self._metadata, **more)
        return labels
