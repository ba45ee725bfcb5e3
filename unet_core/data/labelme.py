"""From labelme's JSON files to a VOC folder of images and index masks."""

from __future__ import annotations

import base64
import binascii
import math
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import msgspec
import numpy as np

from unet_core.conventions import IGNORED
from unet_core.data import images
from unet_core.data.layouts.listing import numeric_order
from unet_core.errors import UserError
from unet_core.files import os_errors, printable, read_bytes, read_json, write_whole

IGNORE_LABELS = ("__ignore__", "ignore")
# As labelme draws them, in pixels.
_LINE_WIDTH, _POINT_RADIUS = 10, 5
_FEWEST_POINTS = {"polygon": 3, "rectangle": 2, "circle": 2, "line": 2, "linestrip": 2}
# OpenCV takes coordinates in 2^-4 pixels.
_SHIFT = 4
_SUFFIXES = {b"\xff\xd8\xff": ".jpg", b"BM": ".bmp", b"II": ".tif", b"MM": ".tif"}
# The image may lie in the document.
_MOST_BYTES = 2**30


class _Document(msgspec.Struct):
    shapes: list[dict[str, Any]]
    imageData: str | None = None
    imagePath: str | None = None
    imageHeight: int | None = None
    imageWidth: int | None = None


def convert(
    json_dir: str | pathlib.Path,
    output_dir: str | pathlib.Path,
    class_names: Sequence[str],
    *,
    progress: Callable = iter,
) -> list[str]:
    """Writes a VOC folder of the JSON files in `json_dir`.

    Shapes are drawn in the order of the file, later ones over earlier ones; so a hole is a shape of
    the first class, or labelled `_background_`, drawn after what it is a hole in. Polygons,
    rectangles, circles, lines, line strips, points and labelme's own masks are drawn.

    Args:
        json_dir: The folder of the JSON files.
        output_dir: Gets `JPEGImages/<name>.<as it was>`, `SegmentationClass/<name>.png` with class
            numbers (255 for `__ignore__`), and `class_names.txt`. Nothing in it is overwritten.
        class_names: The classes; the first is the background.
        progress: Wraps the list of files to show progress.

    Returns:
        Sentences about files that were there already and so were left alone.

    Raises:
        UserError: If `output_dir` holds masks of other classes; or if anything is wrong with the
            files: the message then lists every problem, and what is sound has been converted.
    """
    json_dir, output_dir = pathlib.Path(json_dir), pathlib.Path(output_dir)
    paths = sorted(json_dir.glob("*.json"), key=numeric_order)
    if not paths:
        raise UserError(f"{json_dir}: holds no JSON files.")
    names_path, names = output_dir / "class_names.txt", "".join(f"{n}\n" for n in class_names)
    with os_errors(names_path, "cannot be read", "Convert to an empty folder."):
        before = read_bytes(names_path) if os.path.lexists(names_path) else None
    if before not in (None, names.encode()):
        raise UserError(
            f"{names_path}: lists other classes than {', '.join(class_names)}, so that old and new "
            "masks would differ in meaning. Convert to an empty folder, or with the old classes."
        )
    image_dir, mask_dir = output_dir / "JPEGImages", output_dir / "SegmentationClass"
    for folder in (image_dir, mask_dir):
        folder.mkdir(parents=True, exist_ok=True)
    warnings, problems = [], []
    for path in progress(paths):
        mask_path = mask_dir / f"{printable(path.stem)}.png"
        if os.path.lexists(mask_path):
            warnings.append(f"{mask_path}: is there already and was left as it is.")
            continue
        try:
            document = _read(path)
            suffix, content = _image(path, document)
            size = _size(path, content, document)
            mask = draw({"shapes": document.shapes}, class_names, size)
        except UserError as error:
            message = str(error)
            problems.append(message if str(path) in message else f"{path}: {message}")
            continue
        image_path = image_dir / f"{printable(path.stem)}{suffix}"
        if not os.path.lexists(image_path):
            write_whole(image_path, content)
        elif not _holds(image_path, content):
            warnings.append(
                f"{image_path}: another image is there already; {path.name} was left out."
            )
            continue
        images.write_png(mask_path, mask)
    if before is None:
        write_whole(names_path, names.encode())
    if problems:
        lines = [f"  {number}. {problem}" for number, problem in enumerate(problems, 1)]
        raise UserError("\n".join([f"{json_dir}: {len(problems)} problem(s):", *lines]))
    return warnings


def draw(document: dict[str, Any], class_names: Sequence[str], size: tuple[int, int]) -> np.ndarray:
    """Returns the class ids [H, W] uint8 that a labelme document draws.

    `size` is that of the image, (H, W).

    Raises:
        UserError: If a shape is of an unknown kind or class, or malformed.
    """
    ids = {name: number for number, name in enumerate(class_names)}
    ids |= {"_background_": 0, **dict.fromkeys(IGNORE_LABELS, IGNORED)}
    mask = np.zeros(size, np.uint8)
    for number, shape in enumerate(document.get("shapes", ())):
        label = shape.get("label") if isinstance(shape, dict) else None
        if not isinstance(label, str) or label not in ids:
            raise UserError(
                f"shape {number} is labelled {label!r}, which is none of the classes "
                f"{', '.join(class_names)}; list it in `classes`."
            )
        try:
            _draw_shape(mask, shape, ids[label])
        except (
            ArithmeticError,
            LookupError,
            TypeError,
            ValueError,
            cv2.error,
        ) as error:
            raise UserError(f"shape {number} ({label}) cannot be drawn ({error}).") from error
    return mask


def _draw_shape(mask: np.ndarray, shape: dict[str, Any], value: int) -> None:
    kind = shape.get("shape_type") or "polygon"
    points = np.asarray(shape["points"], np.float64).reshape(-1, 2)
    if not np.isfinite(points).all() or np.abs(points).max(initial=0) > 1e6:
        raise ValueError("its points are no coordinates")
    if len(points) < _FEWEST_POINTS.get(kind, 1):
        raise ValueError(f"a {kind} needs {_FEWEST_POINTS.get(kind, 1)} points or more")
    fixed = np.rint(points * 2**_SHIFT).astype(np.int32)
    if kind == "polygon":
        cv2.fillPoly(mask, [fixed], value, shift=_SHIFT)
    elif kind == "rectangle":
        (left, top), (right, bottom) = fixed.min(0), fixed.max(0)
        corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
        cv2.fillPoly(mask, [corners], value, shift=_SHIFT)
    elif kind == "circle":
        radius = round(math.dist(points[0], points[1]) * 2**_SHIFT)
        centre = tuple(int(v) for v in fixed[0])
        cv2.circle(mask, centre, radius, value, cv2.FILLED, shift=_SHIFT)
    elif kind in ("line", "linestrip"):
        cv2.polylines(mask, [fixed], False, value, _LINE_WIDTH, shift=_SHIFT)
    elif kind in ("point", "points"):
        for centre in fixed:
            radius = _POINT_RADIUS << _SHIFT
            cv2.circle(mask, tuple(map(int, centre)), radius, value, cv2.FILLED, shift=_SHIFT)
    elif kind == "mask":
        content = base64.b64decode(shape["mask"], validate=True)
        inside = images.to_channels(images.read_image("its mask", content=content), 1)[..., 0] > 0
        left, top = (round(float(v)) for v in points[0])
        part = mask[max(0, top) : top + inside.shape[0], max(0, left) : left + inside.shape[1]]
        inside = inside[max(0, -top) :, max(0, -left) :][: part.shape[0], : part.shape[1]]
        part[inside] = value
    else:
        raise ValueError(f"shapes of type {kind!r} are not known")


def _read(path: pathlib.Path) -> _Document:
    what = "an annotation of labelme"
    way = "Save it again in labelme, or remove it."
    return read_json(path, _Document, what=what, way=way, most_bytes=_MOST_BYTES)


def _image(path: pathlib.Path, document: _Document) -> tuple[str, bytes]:
    """Returns suffix and content of the document's image: the one inside, or the file it names."""
    if document.imageData:
        try:
            content = base64.b64decode(document.imageData, validate=True)
        except (binascii.Error, ValueError) as error:
            raise UserError(f"{path}: its imageData cannot be decoded ({error}).") from error
        return _suffix(content), content
    named = (document.imagePath or "").replace("\\", "/")
    file = path.parent / named
    if not named or "\0" in named or path.parent.resolve() not in file.resolve().parents:
        raise UserError(f"{path}: its imagePath ({named!r}) is not inside {path.parent}.")
    with os_errors(path, f"its image {file} cannot be read", "Put it there."):
        content = read_bytes(file, most_bytes=_MOST_BYTES)
    return _suffix(content), content


def _suffix(content: bytes) -> str:
    """Returns the usual suffix of the kind of file that `content` is of."""
    return next((suffix for mark, suffix in _SUFFIXES.items() if content.startswith(mark)), ".png")


def _holds(path: pathlib.Path, content: bytes) -> bool:
    try:
        return read_bytes(path, most_bytes=_MOST_BYTES) == content
    except OSError:
        return False  # Whatever it is, it is not that image.


def _size(path: pathlib.Path, content: bytes, document: _Document) -> tuple[int, int]:
    """Returns (H, W) of the image as it is shown, which must be what the document says.

    Raises:
        UserError: If it is not, or the image cannot be read.
    """
    header = images.read_header(f"{path}: its image", content=content)
    height, width = header.height, header.width
    said = document.imageHeight or height, document.imageWidth or width
    if said != (height, width):
        raise UserError(
            f"{path}: its image has {width}x{height} pixels, and its shapes were drawn on "
            f"{said[1]}x{said[0]}, so that they would lie elsewhere. Was the image turned or "
            "resized? Put back the one that was labelled."
        )
    return height, width
