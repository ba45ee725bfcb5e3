"""Predictions as files named after their images.

Masks, overlays, outlines, probabilities, uncertainty and numbered objects.

Pictures of up to `MOST_PIXELS_WHOLE` give PNG files. Larger ones, and those longer than a PNG may
be, are read, predicted and written in bands of rows; their masks and probabilities are TIFF files,
and their overlays are reduced.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import errno
import functools
import math
import pathlib
import time
from collections.abc import Callable, Sequence

import tqdm

from unet_core.data import images
from unet_core.data.instance_masks import object_class
from unet_core.data.predicted import Predicted, digest_of
from unet_core.data.samples import Source, naming
from unet_core.data.tiff_bands import open_rows
from unet_core.drawing import tables
from unet_core.errors import UserError, reason_of
from unet_core.files import os_errors
from unet_core.inference.ensemble import Ensemble
from unet_core.inference.post_processing import check_installed
from unet_core.inference.predictor import Predictor
from unet_core.outputs import numbered
from unet_core.outputs.figures import Figures, describe_lost
from unet_core.outputs.objects import ObjectFiles, check_objects
from unet_core.outputs.picture import is_whole, predict_picture
from unet_core.outputs.wanted import (
    PredictionOutputs,
    made_by,
    paths_of,
    stems,
)
from unet_core.shards import Shard

# Of larger ones two at a time would need too much memory.
_MOST_PIXELS_WRITTEN_BESIDE = 2**22
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
        self._being_written: tuple[str, Source, concurrent.futures.Future] | None = None
        self._is_cut_short = False

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
        # The files of one picture are written while the network sees the next.
        with concurrent.futures.ThreadPoolExecutor(1) as writer:
            try:
                if not self._predict_each(writer, update, should_stop):
                    return
            finally:
                self._wait_for_files()
        if self._is_cut_short:
            return
        if of_all:
            self._objects.finish()
            self._predicted.finish("")
        self._predicted.end()

    def _predict_each(
        self,
        writer: concurrent.futures.Executor,
        update: Callable[[int], object],
        should_stop: Callable[[], bool],
    ) -> bool:
        """Predicts what is left; returns False if it was stopped. The last may not be written."""
        measures = bool(self._objects.paths([]))
        for name, source in self._sources.items():
            if should_stop():
                return False
            if name not in self._left and not measures:
                continue
            is_small = math.prod(self._shapes[name]) <= _MOST_PIXELS_WRITTEN_BESIDE
            if name not in self._left or not is_small:
                self._wait_for_files()
            try:
                if name not in self._left:
                    self._measure_again(name, source)
                    continue
                self._predicted.start(name, source, self._paths(name))
                write = predict_picture(
                    self._predictor,
                    source,
                    self._dir / name,
                    self._wanted,
                    self._objects,
                    update,
                    should_stop,
                )
            except (UserError, OSError) as error:
                self._wait_for_files()
                self._note_failure(source, error)
                continue
            self._wait_for_files()
            self._being_written = name, source, writer.submit(write)
            # It holds the picture.
            del write
            if not is_small:
                self._wait_for_files()
        return True

    def _wait_for_files(self) -> None:
        """Takes up what has become of the picture that is being written, if there is one."""
        if self._being_written is None:
            return
        (name, source, written), self._being_written = self._being_written, None
        try:
            figures = written.result()
        except (UserError, OSError) as error:
            self._note_failure(source, error)
            return
        if figures is None:
            self._is_cut_short = True
            return
        self._predicted.finish(name)
        self.predicted += figures.pixels
        self.lost_georeference += figures.lost_georeference
        self.rows.append([name + source.path.suffix, *figures.cells()])
        self.warnings += figures.warnings(source)

    def _note_failure(self, source: Source, error: UserError | OSError) -> None:
        """Keeps what is wrong with one picture; raises what stands in the way of all."""
        if isinstance(error, UserError):
            self.failures.append(naming(source, error))
            return
        if error.errno not in _NAME_REFUSED:
            raise error
        self.failures.append(
            f"{source}: its files cannot be named after it ({reason_of(error)}: "
            f"{error.filename}). Rename it, or choose another `output_dir`."
        )

    def _measure_again(self, name: str, source: Source) -> None:
        """Takes the objects of a finished picture from its file, for the files about all."""
        labels = images.read_mask(self._dir / f"{name}_instances.png")
        with open_rows(source.path, source.page) as rows:
            self._objects.add(name, source, labels, rows.read(0, rows.height))

    def _paths(self, name: str) -> list[pathlib.Path]:
        whole = is_whole(*self._shapes[name])
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


def _shape(source: Source) -> tuple[int, int]:
    """Returns height and width of a page; 0 if it cannot be read, of which predicting it tells."""
    with contextlib.suppress(UserError):
        header = images.read_header(source.path, source.page, of_any_size=True)
        return header.height, header.width
    return 0, 0
