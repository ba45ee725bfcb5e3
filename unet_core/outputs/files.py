"""Predictions as files named after their images.

Masks, overlays, outlines, probabilities, uncertainty and numbered objects.

Pictures of up to `MOST_PIXELS_WHOLE` give PNG files. Larger ones are read, predicted and written in
bands of rows; their masks, probabilities and numbers are TIFF files, their overlays are reduced.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tqdm

from unet_core.data import images
from unet_core.data.classes import ClassMap
from unet_core.data.instance_masks import object_class
from unet_core.data.pixel_size import GEOREFERENCE, kept_metadata
from unet_core.data.samples import Source
from unet_core.data.tiff_bands import Rows, open_rows
from unet_core.data.tiff_writer import TiffWriter
from unet_core.drawing import pictures, tables
from unet_core.errors import UserError
from unet_core.files import os_errors
from unet_core.inference import uncertainty
from unet_core.inference.ensemble import Ensemble
from unet_core.inference.instances import number_objects
from unet_core.inference.masks import (
    MaskRule,
    mask_pixels,
    mask_suffixes,
    suffixes_of_classes,
    usual_rule,
    write_mask,
)
from unet_core.inference.post_processing import check_installed
from unet_core.inference.predictor import Predictor, check_finite
from unet_core.outputs import numbered
from unet_core.outputs.figures import Figures, describe_lost
from unet_core.outputs.objects import ObjectFiles, check_objects
from unet_core.outputs.reduced import Reduced
from unet_core.settings.prediction import OBJECT_FILES

MOST_PIXELS_WHOLE = 2**26
_UNCERTAIN = ("uncertainty", "disagreement")
_SILENT = functools.partial(tqdm.tqdm, disable=True)


@dataclasses.dataclass(frozen=True)
class PredictionOutputs:
    """What to write of each prediction.

    Attributes:
        outputs: Out of "mask" (one file, or of classes that may overlap one per class), "overlay",
            "outlines", "probabilities" (for two classes the second's, for more or overlapping ones
            one file per class with its name, "/" being "_"), "uncertainty" and, of several
            networks, "disagreement", see `unet_core.inference.uncertainty`. The last three have 16
            bits, 65535 being 1.
        mask_format: "values" writes the mask values of the class map, "index" the class numbers,
            "palette" class numbers that show in colours.
        alpha: How strongly an overlay covers the picture, 0..1.
        instances: "none", "components" or "watershed": how touching objects are separated.
        object_class: The class they are of; by default that which numbered masks are of.
        least_object_px: Objects of fewer pixels are none.
        objects: Files about them, out of `OBJECT_FILES`.
        pixel_size_um: Width and height of a pixel in them; 0 is as each file says.
        make_mask: From probabilities to the mask, which all but the 16-bit files show; None is the
            usual.
    """

    outputs: Collection[str] = ("mask", "overlay")
    mask_format: str = "values"
    alpha: float = 0.45
    instances: str = "none"
    object_class: str = ""
    least_object_px: int = 0
    objects: Collection[str] = ()
    pixel_size_um: float = 0.0
    make_mask: MaskRule | None = None


@dataclasses.dataclass(frozen=True)
class PredictionSummary:
    """What `predict_files` has done.

    Attributes:
        table: One row per image.
        warnings: Complete sentences about predictions that look wrong.
        failures: The same about images that could not be predicted; the others are done.
        megapixels: Of all images that were predicted.
        seconds: That it took, from reading to writing.
    """

    table: str
    warnings: tuple[str, ...]
    failures: tuple[str, ...]
    megapixels: float
    seconds: float


def predict_files(
    predictor: Predictor,
    sources: Sequence[Source],
    output_dir: str | pathlib.Path,
    wanted: PredictionOutputs,
    *,
    overwrite: bool = False,
    claim: Callable[..., None] | None = None,
    progress: Callable = _SILENT,
    should_stop: Callable[[], bool] = lambda: False,
) -> PredictionSummary:
    """Predicts each image and writes its files, at native size.

    They are `<name>_predict`, `<name>_overlay` and what else is wanted.

    Args:
        predictor: The network.
        sources: The images; pages of a stack have their number in the name.
        output_dir: The folder to write to; made if need be.
        wanted: What to write.
        overwrite: Whether files that are there may be replaced.
        claim: Called with all files that may be written, before any is; it may refuse.
        progress: Makes a bar of the pixels, given their `total`, as `tqdm.tqdm` does.
        should_stop: Asked before every image and band.

    Raises:
        UserError: If `output_dir` cannot be written, a file is there already, the class of objects
            is unknown, or disagreement is wanted of one network.
    """
    output_dir = pathlib.Path(output_dir)
    classes = predictor.classes
    _check_wanted(wanted, predictor)
    stems = _stems(sources)
    if not overwrite:
        _check_free(output_dir, stems, classes)
    if claim is not None:
        claim(*output_paths(sources, output_dir, wanted, classes))
    total = sum(map(_pixels, sources))
    object_files = ObjectFiles(
        wanted.objects,
        output_dir,
        object_class(classes, wanted.object_class),
        wanted.pixel_size_um,
    )
    rows, warnings, failures = [], [], []
    predicted, lost, start = 0, 0, time.perf_counter()
    advice = "Those already there are whole; make room or choose another `output_dir`."
    with os_errors(output_dir, "predictions cannot be written", advice):
        output_dir.mkdir(parents=True, exist_ok=True)
        with progress(total=total) as bar:
            for source, stem in zip(sources, stems, strict=True):
                if should_stop():
                    break
                try:
                    figures = _predict_one(
                        predictor,
                        source,
                        output_dir / stem,
                        wanted,
                        object_files,
                        bar.update,
                        should_stop,
                    )
                except UserError as error:
                    named = str(source.path) in str(error)
                    failures.append(str(error) if named else f"{source}: {error}")
                    continue
                if figures is None:
                    break
                predicted += figures.pixels
                lost += figures.lost_georeference
                rows.append([stem + source.path.suffix, *figures.cells()])
                warnings += figures.warnings(source)
        object_files.finish()
    warnings += describe_lost(lost)
    seconds = time.perf_counter() - start
    table = tables.table(Figures(classes).header(), rows)
    return PredictionSummary(table, tuple(warnings), tuple(failures), predicted / 1e6, seconds)


def output_paths(
    sources: Sequence[Source],
    output_dir: str | pathlib.Path,
    wanted: PredictionOutputs,
    classes: ClassMap,
) -> list[pathlib.Path]:
    """Returns the files that `predict_files` writes, for those who must know them before.

    Raises:
        UserError: If two images would write one file.
    """
    suffixes = {"mask": mask_suffixes(classes), "probabilities": list(_class_of_level(classes))}
    suffixes |= {name: [name] for name in _UNCERTAIN}
    paths = []
    for source, stem in zip(sources, _stems(sources), strict=True):
        is_large = _pixels(source) > MOST_PIXELS_WHOLE
        for output in ("mask", "overlay", "outlines", "probabilities", *_UNCERTAIN):
            if output in wanted.outputs:
                is_tiff = output in suffixes and is_large
                kind = ".tif" if is_tiff else ".png"
                names = suffixes.get(output, [output])
                paths += [pathlib.Path(output_dir, f"{stem}_{name}{kind}") for name in names]
        if wanted.instances != "none":
            paths += numbered.paths(pathlib.Path(output_dir, stem), is_large=is_large)
    return paths + ObjectFiles(wanted.objects, output_dir).paths(_stems(sources))


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
        image = _Image(predictor, rows, stem, wanted, metadata)
        if rows.height * rows.width <= MOST_PIXELS_WHOLE:
            labels = image.write_whole()
            if labels is not None:
                object_files.add(stem.name, source, labels, rows.read(0, rows.height))
            update(rows.height * rows.width)
            return image.figures
        return image.figures if image.write_in_bands(update, should_stop) else None


class _Band(NamedTuple):
    """The prediction of some rows: the first, probabilities [h, W, C], 16-bit files by suffix."""

    first: int
    probabilities: np.ndarray
    levels: dict[str, np.ndarray]


class _Image:
    """One picture on its way to its files."""

    def __init__(
        self,
        predictor: Predictor,
        rows: Rows,
        stem: pathlib.Path,
        wanted: PredictionOutputs,
        metadata: Mapping[int, tuple],
    ):
        self.figures = Figures(predictor.classes)
        self._predictor = predictor
        self._classes = predictor.classes
        self._rows = rows
        self._stem = stem
        self._wanted = wanted
        self._metadata = metadata
        self._make_mask = wanted.make_mask or usual_rule(predictor.classes)
        self._read = predictor.reader(rows)

    def write_whole(self) -> np.ndarray | None:
        """Writes PNG files; returns the numbers of the objects [H, W], if they are wanted."""
        height, width, wanted = self._rows.height, self._rows.width, self._wanted
        image = self._read(0, height)
        bands = list(self._bands(lambda first, last: image[first:last], height, width))
        probabilities = np.concatenate([band.probabilities for band in bands])
        ids = self._make_mask(probabilities)
        self.figures.add(probabilities, ids)
        if "mask" in wanted.outputs:
            write_mask(self._stem, ids, self._classes, wanted.mask_format, self._metadata)
        self.figures.lost_georeference = not GEOREFERENCE.isdisjoint(self._metadata)
        self._write_pictures(image, ids, self._metadata)
        for suffix in bands[0].levels:
            levels = np.concatenate([band.levels[suffix] for band in bands])
            images.write_png(self._path(suffix), levels, self._metadata)
        return None if wanted.instances == "none" else self._write_instances(image, ids)

    def write_in_bands(
        self, update: Callable[[int], object], should_stop: Callable[[], bool]
    ) -> bool:
        """Writes TIFF files band by band; returns False, leaving none, if stopped before."""
        height, width = self._rows.height, self._rows.width
        outputs = self._wanted.outputs
        steps = dict.fromkeys(step.kind for step in self._make_mask.steps)
        for setting in [*(["objects"] if self._wanted.objects else []), *steps]:
            raise UserError(
                f"has {width}x{height} pixels; objects are measured and filled in pictures of up "
                f"to {MOST_PIXELS_WHOLE} pixels. Cut it into parts, or leave `{setting}` out."
            )
        reduced = Reduced(height, width)
        numbers = self._wanted.instances != "none"
        draws = bool({"overlay", "outlines"} & set(outputs)) or numbers
        # Objects are of the whole: a byte a pixel, and four for their numbers.
        whole = np.empty((height, width), np.uint8) if numbers else None
        with contextlib.ExitStack() as stack:
            tiffs = self._open_tiffs(stack)
            for band in self._bands(self._read, height, width):
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
            kinds |= {suffix: {"dtype": np.uint16} for suffix in _class_of_level(self._classes)}
        uncertain = set(_UNCERTAIN) & set(self._wanted.outputs)
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

    def _bands(
        self, read: Callable[[int, int], np.ndarray], height: int, width: int
    ) -> Iterator[_Band]:
        """Gives the prediction band by band, of the rows that `read` gives."""
        window, outputs = self._predictor.window, self._wanted.outputs
        if "disagreement" in outputs:
            assert isinstance(window, Ensemble)  # `predict_files` has made sure.
            for first, of_networks in window.bands_of_networks(read, height, width):
                found = {"disagreement": _levels(uncertainty.disagreement(of_networks))}
                yield self._band(first, of_networks.mean(0), found)
        else:
            for first, probabilities in window.bands(read, height, width):
                yield self._band(first, probabilities, {})

    def _band(self, first: int, probabilities: np.ndarray, levels: dict[str, np.ndarray]) -> _Band:
        check_finite(probabilities)
        if "uncertainty" in self._wanted.outputs:
            entropy = uncertainty.entropy(probabilities, self._classes.overlapping)
            levels["uncertainty"] = _levels(entropy)
        if "probabilities" in self._wanted.outputs:
            for suffix, number in _class_of_level(self._classes).items():
                levels[suffix] = _levels(probabilities[..., number])
        return _Band(first, probabilities, levels)

    def _write_instances(self, image: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Numbers the objects of a mask and writes them; `image` may be a reduced one."""
        wanted = self._wanted
        how: dict[str, Any] = {"how": wanted.instances, "least_px": wanted.least_object_px}
        labels = number_objects(ids, self._classes, wanted.object_class, **how)
        more: dict[str, Any] = {"alpha": wanted.alpha, "is_large": ids.size > MOST_PIXELS_WHOLE}
        numbered.write_numbered(self._stem, labels, image, self._metadata, **more)
        return labels


def _levels(shares: np.ndarray) -> np.ndarray:
    """Returns numbers from 0 to 1 as 16-bit levels, 65535 being 1."""
    return np.rint(shares * 65535).astype(np.uint16)


def _stems(sources: Sequence[Source]) -> list[str]:
    """Returns the name of each source's files.

    It is that of the image, with its page and, where two would be called the same, its suffix and
    its folder.
    """
    several_pages = {source.path for source in sources if source.page}

    def named(source: Source, stem: str) -> str:
        return stem + (f"_{source.page:03d}" if source.path in several_pages else "")

    stems = [named(source, source.path.stem) for source in sources]
    for qualify in (
        lambda path: f"{path.stem}_{path.suffix[1:]}",
        lambda path: f"{path.parent.name}_{path.stem}_{path.suffix[1:]}",
    ):
        count = collections.Counter(stems)
        stems = [
            named(source, qualify(source.path)) if count[stem] > 1 else stem
            for source, stem in zip(sources, stems, strict=True)
        ]
    repeated = [stem for stem, count in collections.Counter(stems).items() if count > 1]
    if repeated:
        raise UserError(
            f"Several images would write {repeated[0]}_predict; predict them into folders of their "
            "own, with `output_dir`."
        )
    return stems


def _class_of_level(classes: ClassMap) -> dict[str, int]:
    """Returns the suffixes of the files of probabilities and the class that each is of."""
    if len(classes) == 2 and not classes.overlapping:
        return {"probability": 1}
    return {suffix: n for n, suffix in enumerate(suffixes_of_classes("probability", classes))}


def _check_free(output_dir: pathlib.Path, stems: Sequence[str], classes: ClassMap) -> None:
    """Raises UserError if a file that may be written is there."""
    suffixes = [*mask_suffixes(classes), "overlay", "outlines", *numbered.SUFFIXES]
    suffixes += [*_UNCERTAIN, *_class_of_level(classes)]
    taken = [
        path
        for stem in stems
        for suffix in suffixes
        for kind in (".png", ".tif")
        if (path := output_dir / f"{stem}_{suffix}{kind}").exists()
    ]
    taken += filter(pathlib.Path.exists, ObjectFiles(OBJECT_FILES, output_dir).paths(stems))
    if taken:
        more = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
        raise UserError(
            f"{taken[0]}{more}: there already. Set `overwrite` to replace what is there, or "
            "choose another `output_dir`."
        )


def _pixels(source: Source) -> int:
    """Returns the pixels of a page; 0 if it cannot be read.

    Predicting it tells what is wrong with it.
    """
    with contextlib.suppress(UserError):
        header = images.read_header(source.path, source.page, of_any_size=True)
        return header.height * header.width
    return 0
