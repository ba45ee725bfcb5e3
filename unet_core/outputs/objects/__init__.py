"""The objects of predictions as files that other programs open.

Formats by name; adding one takes its file here and one line in `OBJECT_FILES` of
`unet_core.settings.prediction`, from where its flag has the names.

The contract
------------
An entry is an `ObjectFormat`. Its `make(pictures)` returns the content of a file about the objects
of pictures: of one, for a file beside each prediction, or of all, if it has a `merge`. That returns
what `make` would make of the pictures of several shares, of the files of these and of the places
that their pictures have among all. Coordinates are those of
`unet_core.inference.outlines`; a format that counts otherwise converts them.
`check_installed()` raises UserError if a package that is not always there is missing; it is called
before anything is predicted.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from unet_core.data.classes import ClassMap
from unet_core.data.pixel_size import pixel_size_um
from unet_core.data.samples import Source
from unet_core.errors import UserError
from unet_core.files import write_whole
from unet_core.inference.measure import Objects, check_installed, measure
from unet_core.settings.prediction import OBJECT_FILES
from unet_core.shards import Shard


@dataclasses.dataclass(frozen=True)
class Picture:
    """The objects of one predicted picture.

    Attributes:
        source: Its file and page.
        objects: What was measured.
    """

    source: Source
    objects: Objects


def _needs_nothing() -> None:
    """Raises nothing."""


@dataclasses.dataclass(frozen=True)
class ObjectFormat:
    """One kind of file; see the contract above.

    Attributes:
        name: Of the file, whole if it is of a folder, else behind the name of the picture and "_".
        make: Its content.
        merge: Of one file for all pictures, the content for those of several shares; None if each
            picture has a file.
        check_installed: Raises UserError if a package is missing.
    """

    name: str
    make: Callable[[Sequence[Picture]], bytes]
    merge: Callable[[Mapping[pathlib.Path, Sequence[int]]], bytes] | None = None
    check_installed: Callable[[], None] = _needs_nothing

    @property
    def of_folder(self) -> bool:
        """Whether one file tells of all pictures."""
        return self.merge is not None


def check_objects(
    formats: Collection[str], instances: str, object_class: str, classes: ClassMap
) -> None:
    """Checks, before anything is predicted, that files about objects can be written.

    Args:
        formats: Names in `OBJECT_FILES`.
        instances: How objects are numbered, or "none".
        object_class: The class they are of.
        classes: All classes.

    Raises:
        UserError: If they cannot.
    """
    if not formats:
        return
    if instances == "none" or not object_class:
        raise UserError(
            f"`objects` ({','.join(formats)}) needs `object_class`, one of "
            f"{', '.join(classes.names)}, and `instances` components or watershed."
        )
    check_installed()
    for name in formats:
        OBJECT_FILES[name].check_installed()


class ObjectFiles:
    """The files about the objects of a folder of predictions.

    Args:
        formats: Names in `OBJECT_FILES`.
        output_dir: The folder.
        object_class: The class of the objects.
        pixel_size_um: Width and height of a pixel; 0 is as each file says.
        shard: The share that the pictures are, for the names of files about all of them.
    """

    def __init__(
        self,
        formats: Collection[str],
        output_dir: str | os.PathLike,
        object_class: str = "",
        pixel_size_um: float = 0.0,
        shard: Shard | None = None,
    ):
        self._formats: list[ObjectFormat] = [OBJECT_FILES[name] for name in formats]
        self._output_dir = pathlib.Path(output_dir)
        self._object_class = object_class
        self._pixel_size_um = pixel_size_um
        self._shard = shard
        self._pictures: list[Picture] = []

    def paths(self, stems: Sequence[str]) -> list[pathlib.Path]:
        """Returns the files that are written for pictures whose files begin with `stems`."""
        return [
            self._output_dir / name
            for each in self._formats
            for name in (
                [self._of_folder(each)] if each.of_folder else [f"{s}_{each.name}" for s in stems]
            )
        ]

    def _of_folder(self, each: ObjectFormat) -> str:
        return self._shard.named(each.name) if self._shard else each.name

    def add(self, stem: str, source: Source, labels: np.ndarray, pixels: np.ndarray) -> None:
        """Measures the objects of a picture and writes the files beside its prediction.

        Args:
            stem: What the names of its files begin with.
            source: The picture.
            labels: [H, W], the numbers of the objects.
            pixels: [H, W, C] as in the file.

        Raises:
            OSError: If one cannot be written.
        """
        if not self._formats:
            return
        given = self._pixel_size_um
        size = (given, given) if given else pixel_size_um(source.path, source.page)
        objects = measure(labels, pixels, self._object_class, pixel_size_um=size)
        picture = Picture(source, objects)
        for each in self._formats:
            if not each.of_folder:
                write_whole(self._output_dir / f"{stem}_{each.name}", each.make([picture]))
        if any(each.of_folder for each in self._formats):
            self._pictures.append(picture)

    def finish(self) -> None:
        """Writes the files about all pictures that were added.

        Raises:
            OSError: If one cannot be written.
        """
        for each in self._formats:
            if each.of_folder:
                write_whole(self._output_dir / self._of_folder(each), each.make(self._pictures))
