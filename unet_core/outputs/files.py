"""Predictions as files named after their images.

Masks, overlays, outlines, probabilities, uncertainty and numbered objects.

Pictures of up to `MOST_PIXELS_WHOLE` give PNG files. Larger ones, and those longer than a PNG may
be, are read, predicted and written in bands of rows; their masks and probabilities are TIFF files,
and their overlays are reduced.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tqdm

from unet_core.data import images
from unet_core.data.instance_masks import object_class
from unet_core.data.pixel_size import GEOREFERENCE, kept_metadata
from unet_core.data.predicted import Predicted, digest_of
from unet_core.data.samples import Source, naming
from unet_core.data.tiff_bands import Rows, open_rows
from unet_core.data.tiff_writer import TiffWriter
from unet_core.drawing import pictures, tables
from unet_core.errors import UserError, reason_of
from unet_core.files import os_errors
from unet_core.inference.ensemble import Ensemble
from unet_core.inference.instances import number_objects
from unet_core.inference.masks import (
    mask_pixels,
    usual_rule,
    write_mask,
)
from unet_core.inference.post_processing import check_installed
from unet_core.inference.predictor import Predictor
from unet_core.outputs import numbered
from unet_core.outputs.bands import Bands
from unet_core.outputs.figures import Figures, describe_lost
from unet_core.outputs.objects import ObjectFiles, check_objects
from unet_core.outputs.reduced import Reduced
from unet_core.outputs.wanted import (
    UNCERTAIN,
    PredictionOutputs,
    class_of_level,
    made_by,
    paths_of,
    stems,
)
from unet_core.shards import Shard

MOST_PIXELS_WHOLE = 2**26
# What file systems answer to a name that is too long for them, or has characters they do not take.
_NAME_REFUSED = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)
_SILENT = functools.partial(tqdm.tqdm, disable=True)


@dataclasses.dataclass(frozen=True)
class PredictionSummary:
    """What `predict_files` has done.

    Attributes:
        table: One row per image.
        warnings: Complete sentences about predictions that look wrong.
        failures: The same about images that could not be predicted; the others are done.
        finished_before: How many images were finished already, and are left as they are.
        megapixels: Of all images that were predicted.
        seconds: That it took, from reading to writing.
    """

    table: str
    warnings: tuple[str, ...]
    failures: tuple[str, ...]
    finished_before: int
    megapixels: float
    seconds: float


def predict_files(
    predictor: Predictor,
    sources: Sequence[Source],
    output_dir: str | pathlib.Path,
    wanted: PredictionOutputs,
    *,
    overwrite: bool = False,
    shard: Shard | None = None,
    claim: Callable[..., None] | None = None,
    progress: Callable = _SILENT,
    should_stop: Callable[[], bool] = lambda: False,
) -> PredictionSummary:
    """Predicts each image and writes its files, at native size.

    They are `<name>_predict`, `<name>_overlay` and what else is wanted. What is finished is noted
    in the folder, see `unet_core.data.predicted`: pictures that the same weights and settings have
    finished there are left as they are.

    Args:
        predictor: The network.
        sources: The images; pages of a stack have their number in the name.
        output_dir: The folder to write to; made if need be.
        wanted: What to write.
        overwrite: Whether earlier predictions may be replaced, by other weights or settings too.
        shard: The share of the images that is predicted, all being named for the names of their
            files; `unet_core.outputs.merge` puts the shares of a folder together. None is all.
        claim: Called with all files that may be written, before any is; it may refuse. Without it,
            only what a prediction has written is ever replaced.
        progress: Makes a bar of the pixels, given their `total`, as `tqdm.tqdm` does.
        should_stop: Asked before every image and band.

    Raises:
        UserError: If `output_dir` cannot be written, a file is there that no prediction has
            written, or that other weights or settings have and `overwrite` is not set; if the
            class of objects is unknown, or disagreement is wanted of one network.
    """
    output_dir = pathlib.Path(output_dir)
    _check_wanted(wanted, predictor)
    run = _Run(predictor, wanted, output_dir, sources, shard)
    run.prepare(overwrite, claim)
    start = time.perf_counter()
    advice = "Those already there are whole; make room or choose another `output_dir`."
    with os_errors(output_dir, "predictions cannot be written", advice):
        output_dir.mkdir(parents=True, exist_ok=True)
        with progress(total=run.pixels_left()) as bar:
            run.predict(bar.update, should_stop)
    run.warnings += describe_lost(run.lost_georeference)
    seconds = time.perf_counter() - start
    return PredictionSummary(
        tables.table(Figures(predictor.classes).header(), run.rows),
        tuple(run.warnings),
        tuple(run.failures),
        run.finished_before,
        run.predicted / 1e6,
        seconds,
    )


class _Run:
    """Some pictures on their way to their files.

    Attributes:
        rows, warnings, failures, finished_before: See `PredictionSummary`.
        predicted: Pixels.
        lost_georeference: How many pictures have one that their files do not.
    """

    def __init__(
        self,
        predictor: Predictor,
        wanted: PredictionOutputs,
        output_dir: pathlib.Path,
        sources: Sequence[Source],
        shard: Shard | None,
    ):
        self.rows: list[list[str]] = []
        self.warnings: list[str] = []
        self.failures: list[str] = []
        self.finished_before = self.predicted = self.lost_georeference = 0
        self._predictor = predictor
        self._wanted = wanted
        self._dir = output_dir
        named = list(zip(stems(sources), sources, strict=True))
        self._inputs = digest_of(dict(named)) if shard else ""
        self._sources = dict(shard.of(named) if shard else named)
        self._predicted = Predicted(output_dir, shard)
        self._objects = ObjectFiles(
            wanted.objects,
            output_dir,
            object_class(predictor.classes, wanted.object_class),
            wanted.pixel_size_um,
            shard,
        )
        self._shapes = {name: _shape(source) for name, source in self._sources.items()}
        self._left: set[str] = set()

    def prepare(self, overwrite: bool, claim: Callable[..., None] | None) -> None:
        """Finds out what is left to do.

        Raises:
            UserError: If a file may not be replaced.
        """
        paths = {name: self._paths(name) for name in self._sources}
        of_all = self._objects.paths([])
        every = [path for of_one in paths.values() for path in of_one] + of_all
        # What earlier versions have written in a run's folder is not in the list, but its own.
        if claim is None or not overwrite:
            self._predicted.check_free(every)
        made = made_by(self._predictor, self._wanted)
        left = self._predicted.unfinished(self._sources, made, again=overwrite, inputs=self._inputs)
        self._left = set(left)
        self.finished_before = len(self._sources) - len(left)
        if claim is not None:
            claim(self._predicted.path, *every)

    def pixels_left(self) -> int:
        """Returns how many pixels are to be predicted."""
        return sum(math.prod(self._shapes[name]) for name in self._left)

    def predict(self, update: Callable[[int], object], should_stop: Callable[[], bool]) -> None:
        """Predicts what is left, and writes the files about all pictures.

        Args:
            update: Takes how many more pixels are done.
            should_stop: Asked before every image and band.

        Raises:
            OSError: If one cannot be written.
        """
        of_all = self._objects.paths([])
        self._predicted.begin()
        if not self._left and (not of_all or self._predicted.is_finished("")):
            self._predicted.end()
            return
        if of_all:
            self._predicted.start("", None, of_all)
        for name, source in self._sources.items():
            if should_stop():
                return
            try:
                if name not in self._left:
                    if of_all:
                        self._measure_again(name, source)
                    continue
                self._predicted.start(name, source, self._paths(name))
                figures = _predict_one(
                    self._predictor,
                    source,
                    self._dir / name,
                    self._wanted,
                    self._objects,
                    update,
                    should_stop,
                )
            except UserError as error:
                self.failures.append(naming(source, error))
                continue
            except OSError as error:
                if error.errno not in _NAME_REFUSED:
                    raise
                self.failures.append(
                    f"{source}: its files cannot be named after it ({reason_of(error)}: "
                    f"{error.filename}). Rename it, or choose another `output_dir`."
                )
                continue
            if figures is None:
                return
            self._predicted.finish(name)
            self.predicted += figures.pixels
            self.lost_georeference += figures.lost_georeference
            self.rows.append([name + source.path.suffix, *figures.cells()])
            self.warnings += figures.warnings(source)
        if of_all:
            self._objects.finish()
            self._predicted.finish("")
        self._predicted.end()

    def _measure_again(self, name: str, source: Source) -> None:
        """Takes the objects of a finished picture from its file, for the files about all."""
        labels = images.read_mask(self._dir / f"{name}_instances.png")
        with open_rows(source.path, source.page) as rows:
            self._objects.add(name, source, labels, rows.read(0, rows.height))

    def _paths(self, name: str) -> list[pathlib.Path]:
        whole = _is_whole(*self._shapes[name])
        of_picture = paths_of(self._dir / name, self._wanted, self._predictor.classes, whole)
        of_all = set(self._objects.paths([]))
        return of_picture + [p for p in self._objects.paths([name]) if p not in of_all]


def _check_wanted(wanted: PredictionOutputs, predictor: Predictor) -> None:
    """Raises UserError if something is wanted that cannot be made."""
    classes = predictor.classes
    if wanted.make_mask is not None:
        check_installed(wanted.make_mask.steps)
    if "disagreement" in wanted.outputs and not isinstance(predictor.window, Ensemble):
        raise UserError(
            "`outputs` disagreement is that of several networks; give the `run_dir` of a folder of "
            "folds, or leave it out. uncertainty is there for one network too."
        )
    own = object_class(classes, wanted.object_class)
    check_objects(wanted.objects, wanted.instances, own, classes)
    numbered.check_numbering(wanted.instances, own, classes)


def _predict_one(
    predictor: Predictor,
    source: Source,
    stem: pathlib.Path,
    wanted: PredictionOutputs,
    object_files: ObjectFiles,
    update: Callable[[int], object],
    should_stop: Callable[[], bool],
) -> Figures | None:
    """Predicts an image and writes its files; returns None, leaving none, if stopped before.

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
        image = _Image(predictor, rows, stem, wanted, metadata, size)
        if _is_whole(rows.height, rows.width):
            labels = image.write_whole()
            if labels is not None:
                object_files.add(stem.name, source, labels, rows.read(0, rows.height))
            update(rows.height * rows.width)
            return image.figures
        return image.figures if image.write_in_bands(update, should_stop) else None


class _Image:
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

    def write_whole(self) -> np.ndarray | None:
        """Writes PNG files; returns the numbers of the objects [H, W], if they are wanted."""
        wanted = self._wanted
        image = self._read(0, self._rows.height)
        band = self._bands.of_whole(image, self._size)
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
        more: dict[str, Any] = {"alpha": wanted.alpha, "is_large": not _is_whole(*ids.shape)}
        numbered.write_numbered(self._stem, labels, image, self._metadata, **more)
        return labels


def _shape(source: Source) -> tuple[int, int]:
    """Returns height and width of a page; 0 if it cannot be read, of which predicting it tells."""
    with contextlib.suppress(UserError):
        header = images.read_header(source.path, source.page, of_any_size=True)
        return header.height, header.width
    return 0, 0


def _is_whole(height: int, width: int) -> bool:
    """Returns whether a picture is predicted whole, and written as PNG."""
    return height * width <= MOST_PIXELS_WHOLE and max(height, width) <= images.MOST_PNG_SIDE
