"""From files of annotations to a VOC folder of images and index masks.

done = convert("my_json", "data/voc", ["background", "cell"])
"""

from __future__ import annotations

import collections
import dataclasses
import io
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
import tifffile

from unet_core.conventions import IGNORED
from unet_core.data import images
from unet_core.data.annotations import Annotated
from unet_core.data.annotations.drawing import Shape, draw, is_outside
from unet_core.data.annotations.find_images import NotFoundError, find_by_name, find_named
from unet_core.data.annotations.opening import MOST_BYTES, find_files, open_annotations
from unet_core.errors import UserError, reason_of
from unet_core.files import local_path, os_errors, printable, read_bytes, write_whole

IGNORE_LABELS = ("__ignore__", "ignore")
_BACKGROUND = ("_background_", "background")
_SUFFIXES = {
    b"\xff\xd8\xff": ".jpg",
    b"BM": ".bmp",
    b"II": ".tif",
    b"MM": ".tif",
    b"\x93NUMPY": ".npy",
    b"PK": ".npz",
}
# Of many things alike, so many are named, and all counted.
_MOST_NAMED = 10
_CANNOT_DRAW = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, cv2.error)


class Tally:
    """What was found of several kinds of things: how often, and which ones."""

    def __init__(self) -> None:
        self._found: dict[str, list[str]] = {}

    def add(self, kind: str, name: str) -> None:
        """Counts a thing of a kind, such as "picture(s) without shapes"."""
        self._found.setdefault(kind, []).append(name)

    def sentences(self) -> Iterator[str]:
        """Gives a sentence for each kind."""
        for kind, names in self._found.items():
            distinct = list(dict.fromkeys(names))
            listed = ", ".join(distinct[:_MOST_NAMED])
            more = f" and {len(distinct) - _MOST_NAMED} more" if len(distinct) > _MOST_NAMED else ""
            yield f"{len(names)} {kind}: {listed}{more}."


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What was done.

    Attributes:
        formats: The files that were read, by the title of their format.
        pictures: How many have their masks now, and had not before.
        notes: Sentences about what was left out, or left as it was.
    """

    formats: dict[str, int]
    pictures: int
    notes: tuple[str, ...]


def convert(
    source: str | os.PathLike,
    output_dir: str | os.PathLike,
    class_names: Sequence[str],
    *,
    image_dir: str | os.PathLike | None = None,
    progress: Callable = iter,
) -> Conversion:
    """Writes a VOC folder of files of annotations.

    Shapes are drawn in the order of the file, later ones over earlier ones; so a hole may be a
    shape of the first class drawn after what it is a hole in.

    Args:
        source: A file of annotations, or a folder of them.
        output_dir: Gets `JPEGImages/<name>.<as it was>`, `SegmentationClass/<name>.png` with class
            numbers (255 for what is labelled ignore), a TIFF if the picture has several pages, and
            `class_names.txt`. Nothing in it is overwritten.
        class_names: The classes; the first is the background.
        image_dir: Where the pictures lie, if it is not beside the files; see `find_images`.
        progress: Wraps the list of files, and the pictures of a file that has several.

    Raises:
        UserError: If `output_dir` holds masks of other classes; or if anything is wrong with the
            files: the message then lists every problem, and what is sound has been converted.
    """
    source, folder = local_path(source), local_path(output_dir)
    files = find_files(source)
    work = _Conversion(class_names, folder, local_path(image_dir) if image_dir else None)
    names_path, names = folder / "class_names.txt", "".join(f"{n}\n" for n in class_names)
    with os_errors(names_path, "cannot be read", "Convert to an empty folder."):
        before = read_bytes(names_path) if os.path.lexists(names_path) else None
    if before not in (None, names.encode()):
        raise UserError(
            f"{names_path}: lists other classes than {', '.join(class_names)}, so that old and new "
            "masks would differ in meaning. Convert to an empty folder, or with the old classes."
        )
    with os_errors(folder, "cannot be written", "Make room, or name another `output_dir`."):
        for each in (work.image_dir, work.mask_dir):
            each.mkdir(parents=True, exist_ok=True)
        for path in files if len(files) == 1 else progress(files):
            work.convert_file(path, progress if len(files) == 1 else iter)
        if before is None:
            write_whole(names_path, names.encode())
    problems = [*work.problems, *work.tally_of_problems.sentences()]
    notes = tuple(work.notes.sentences())
    if problems:
        lines = [f"  {number}. {problem}" for number, problem in enumerate(problems, 1)]
        told = [f"  {note}" for note in notes]
        done = f"  {work.pictures} picture(s) were converted."
        raise UserError("\n".join([f"{source}: {len(problems)} problem(s):", *lines, *told, done]))
    return Conversion(dict(work.formats), work.pictures, notes)


def propose_classes(source: str | os.PathLike) -> UserError:
    """Returns that `classes` is missing, with the labels there are and a line to begin with.

    Raises:
        UserError: If a file cannot be read.
    """
    source = local_path(source)
    counts: collections.Counter[str] = collections.Counter()
    for path in find_files(source):
        for picture in open_annotations(path, lambda *_: None)[1]:
            try:
                counts.update(" or ".join(shape.labels) for shape in picture.shapes)
            except _CANNOT_DRAW as error:
                raise UserError(f"{path}: a shape cannot be read ({error}).") from error
    listed = ", ".join(f"{label or 'no label'} ({n})" for label, n in sorted(counts.items()))
    apart = {"", *_BACKGROUND, *IGNORE_LABELS}
    names = sorted(label for label in counts if label not in apart) or ["object"]
    line = ",".join(f"{number}:{name}" for number, name in enumerate(["background", *names]))
    return UserError(
        f"`classes` is missing. The shapes of {source} are labelled: {listed}. Begin with "
        f"--classes='{line}', the first being what no shape covers."
    )


class _Conversion:
    """The work of `convert`."""

    def __init__(
        self, class_names: Sequence[str], folder: pathlib.Path, images_of: pathlib.Path | None
    ):
        self.image_dir, self.mask_dir = folder / "JPEGImages", folder / "SegmentationClass"
        self.problems: list[str] = []
        self.tally_of_problems, self.notes = Tally(), Tally()
        self.formats: collections.Counter[str] = collections.Counter()
        self.pictures = 0
        self._names = tuple(class_names)
        self._ids = {name: number for number, name in enumerate(class_names)}
        self._ids |= {"_background_": 0, **dict.fromkeys(IGNORE_LABELS, IGNORED)}
        self._images_of = images_of
        self._taken: dict[str, pathlib.Path] = {}
        self._sources: dict[pathlib.Path, pathlib.Path] = {}

    def convert_file(self, path: pathlib.Path, progress: Callable) -> None:
        """Converts the pictures of a file of annotations."""

        def left_out(kind: str, name: str) -> None:
            self.notes.add(f"{kind} left out of {path}", name)

        try:
            title, found = open_annotations(path, left_out)
        except UserError as error:
            self.problems.append(str(error))
            return
        self.formats[title] += 1
        stems = collections.Counter(_stem(picture.image) for picture in found)
        for picture in progress(found):
            try:
                self._convert(path, picture, stems[_stem(picture.image)] > 1)
            except NotFoundError as error:
                where = f"in {self._images_of}" if self._images_of else "beside their annotations"
                kind = f"picture(s) are not {where}; name their folder with `images`"
                self.tally_of_problems.add(kind, f"{str(error)!r} of {path.name}")
            except UserError as error:
                message = str(error)
                self.problems.append(message if str(path) in message else f"{path}: {message}")

    def _convert(self, path: pathlib.Path, picture: Annotated, is_ambiguous: bool) -> None:
        source, content = self._picture(path, picture)
        name = picture.name or (_whole_name(picture.image) if is_ambiguous else source.stem)
        name = printable(name)
        if name in self._taken:
            raise UserError(
                f"{path}: {source} would be called {name}, as {self._taken[name]} is. Rename one, "
                "or convert them to folders of their own."
            )
        if not picture.name and source in self._sources:
            raise UserError(
                f"{path}: {source} is annotated twice, here and in {self._sources[source]}. Leave "
                "one of them out, or convert them to folders of their own."
            )
        self._taken[name], self._sources[source] = source, path
        there = [self.mask_dir / f"{name}{suffix}" for suffix in (".png", ".tif")]
        if any(map(os.path.lexists, there)):
            self.notes.add(f"mask(s) in {self.mask_dir} left as they were", name)
            return
        shapes = self._shapes(path, picture, source)
        if shapes is None:
            return
        masks = self._masks(path, picture, source, content, shapes)
        suffix, encoded = _encoded(masks)
        image_path = self.image_dir / f"{name}{_suffix(content)}"
        try:
            if not os.path.lexists(image_path):
                write_whole(image_path, content)
            elif not _holds(image_path, content):
                self.notes.add("picture(s) left out as another is there already", str(image_path))
                return
            write_whole(self.mask_dir / f"{name}{suffix}", encoded, flushed=False)
        except OSError as error:
            kind = f"picture(s) cannot be written to {self.image_dir.parent} ({reason_of(error)})"
            self.tally_of_problems.add(kind, name)
            return
        self.pictures += 1
        if not shapes:
            self.notes.add("picture(s) without shapes, which are background alone", str(source))

    def _picture(self, path: pathlib.Path, picture: Annotated) -> tuple[pathlib.Path, bytes]:
        """Returns the file and the content of a picture."""
        if picture.content is not None:
            return path, picture.content
        if picture.image is None:
            source = find_by_name(path, self._images_of)
        else:
            source = find_named(picture.image, path, self._images_of)
        with os_errors(source, "cannot be read", "Put the picture there."):
            return source, read_bytes(source, most_bytes=MOST_BYTES)

    def _shapes(
        self, path: pathlib.Path, picture: Annotated, source: pathlib.Path
    ) -> list[Shape] | None:
        """Returns the shapes of a picture; None if one is of no class."""
        shapes: list[Shape] = []
        try:
            for shape in picture.shapes:
                shapes.append(shape)  # So that the number of one that fails is known.
        except _CANNOT_DRAW as error:
            raise UserError(
                f"{path}: shape {len(shapes)} of {source.name} cannot be drawn ({error})."
            ) from error
        wrong = [shape for shape in shapes if self._class_of(shape) is None]
        for shape in wrong:
            label = " or ".join(map(repr, dict.fromkeys(shape.labels))) or "without a label"
            self.tally_of_problems.add(
                f"shape(s) labelled {label}, which is none of the classes "
                f"{', '.join(self._names)}; list it in `classes`. They are in",
                source.name,
            )
        return None if wrong else shapes

    def _class_of(self, shape: Shape) -> int | None:
        """Returns the class id of a shape; None if none of its labels, or more than one, has one.

        A shape without a label is of the class beside the background, if there is one alone.
        """
        if not shape.labels:
            return 1 if len(self._names) == 2 else None
        found = {self._ids[label] for label in shape.labels if label in self._ids}
        return found.pop() if len(found) == 1 else None

    def _masks(
        self,
        path: pathlib.Path,
        picture: Annotated,
        source: pathlib.Path,
        content: bytes,
        shapes: Sequence[Shape],
    ) -> Iterator[np.ndarray]:
        """Returns the masks of the pages of a picture, drawn when they are asked for."""
        where = f"{path}: its image" if source == path else str(source)
        sizes = _sizes(where, content)
        _check_size(path, source, picture.size, sizes[0])
        of_page: list[list[Shape]] = [[] for _ in sizes]
        for number, shape in enumerate(shapes):
            page = 0 if shape.page is None and len(sizes) == 1 else shape.page
            if page is None or not 0 <= page < len(sizes):
                said = "does not say on which" if page is None else f"lies on page {page + 1}"
                raise UserError(
                    f"{path}: {source.name} has {len(sizes)} page(s), and shape {number} {said}."
                )
            of_page[page].append(shape)
            if is_outside(shape.geometry, sizes[page]):
                self.notes.add("shape(s) outside of their pictures left out", source.name)
            if not shape.labels:
                self.notes.add(f"shape(s) without a label taken for {self._names[1]}", source.name)
        return (
            draw([(shape.geometry, self._class_of(shape) or 0) for shape in page], size)
            for page, size in zip(of_page, sizes, strict=True)
        )


def _stem(image: str | None) -> str:
    return pathlib.PurePosixPath((image or "").replace("\\", "/")).stem


def _whole_name(image: str | None) -> str:
    """Returns a name for a picture of which the file's name is not enough: with its folders."""
    path = pathlib.PurePosixPath((image or "").replace("\\", "/"))
    folders = [part.replace(":", "") for part in path.parent.parts if part not in ("/", "..")]
    return "_".join([*filter(None, folders), path.stem])


def _suffix(content: bytes) -> str:
    """Returns the usual suffix of the kind of file that `content` is of."""
    return next((suffix for mark, suffix in _SUFFIXES.items() if content.startswith(mark)), ".png")


def _holds(path: pathlib.Path, content: bytes) -> bool:
    try:
        return read_bytes(path, most_bytes=MOST_BYTES) == content
    except OSError:
        return False  # Whatever it is, it is not that image.


def _sizes(where: str, content: bytes) -> list[tuple[int, int]]:
    """Returns (H, W) of each page of a picture as it is shown.

    Raises:
        UserError: If it cannot be read.
    """
    first = images.read_header(where, content=content)
    pages = [images.read_header(where, n, content=content) for n in range(1, first.pages)]
    return [(page.height, page.width) for page in (first, *pages)]


def _check_size(
    path: pathlib.Path,
    source: pathlib.Path,
    said: tuple[int | None, int | None],
    size: tuple[int, int],
) -> None:
    """Raises UserError if a picture is not of the size that its shapes were drawn on."""
    height, width = said[0] or size[0], said[1] or size[1]
    if (height, width) != size:
        image = "its image" if source == path else f"its image {source}"
        raise UserError(
            f"{path}: {image} has {size[1]}x{size[0]} pixels, and its shapes were drawn on "
            f"{width}x{height}, so that they would lie elsewhere. Was the image turned or "
            "resized? Put back the one that was labelled."
        )


def _encoded(masks: Iterator[np.ndarray]) -> tuple[str, bytes]:
    """Returns suffix and content of a file of masks: a PNG, or a TIFF of several pages."""
    first, second = next(masks), next(masks, None)
    if second is None:
        return ".png", cv2.imencode(".png", first)[1].tobytes()
    content = io.BytesIO()
    with tifffile.TiffWriter(content) as file:
        for mask in itertools.chain((first, second), masks):
            file.write(mask, photometric="minisblack", compression="zlib", metadata=None)
    return ".tif", content.getvalue()
