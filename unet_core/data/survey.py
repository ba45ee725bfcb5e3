"""Checks a data set: headers always, pixels where it is asked for; every problem at once.

headers = read_headers(samples, scaling)          # seconds, whatever the size of the set
pixels = read_pixels(samples, read)               # decodes everything
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated

import msgspec
import numpy as np

from unet_core.conventions import IGNORED
from unet_core.data import images
from unet_core.data.classes import ClassMap
from unet_core.data.instance_masks import ObjectsFound
from unet_core.data.intensities import WHITE, Scaling, find_ranges
from unet_core.data.reader import Reader
from unet_core.data.resizing import AS_THEY_ARE, Resize
from unet_core.data.samples import Sample, Source, naming
from unet_core.data.stamps import digest_of, size_and_time
from unet_core.errors import UserError
from unet_core.files import printable, read_json, write_whole

# Beyond this much, files are compared by size and time, not by what they hold.
_HASHED_BYTES = 1 << 30
_MEMORY_FORMAT = 1
_MOST_MEMORY_BYTES = 2**30
# Images whose range of intensities is looked at.
_LOOKED_AT = 200
# Values of masks that are listed nowhere, which are shown.
_MOST_STRAYS = 12
# Each may take two lines, beside the first and the last.
_MOST_CAUSES = 9
# A grey value, or a colour.
_Value = Annotated[str, msgspec.Meta(pattern="^(-?[0-9]{1,10}|#[0-9a-f]{6})$")]
_Count = Annotated[int, msgspec.Meta(ge=0)]


class _Known(msgspec.Struct, kw_only=True):
    """Of each mask the size and time of its file, and the pixels of each value."""

    format: int = 0
    classes: str
    masks: dict[str, tuple[list[int], dict[_Value, _Count]]]


@dataclasses.dataclass(frozen=True)
class Headers:
    """What the headers of a data set's files say.

    Attributes:
        shapes: Height and width of each sound sample, resized.
        dtype: uint8 or float32: what its images become.
        kinds: How many images there are of each kind, in words.
        problems: Everything wrong, as complete sentences.
    """

    shapes: dict[Sample, tuple[int, int]]
    dtype: np.dtype
    kinds: collections.Counter[str]
    problems: tuple[str, ...]

    def decoded_bytes(self, channels: int) -> int:
        """Returns how much memory all samples take once they are decoded."""
        per_pixel = self.dtype.itemsize * channels + 1
        return sum(height * width for height, width in self.shapes.values()) * per_pixel


@dataclasses.dataclass(frozen=True)
class Pixels:
    """What the pixels of a data set hold.

    Attributes:
        values: Pixels of each value in the masks; colours as `#rrggbb`. Where classes may overlap,
            of each id; where masks are files for single classes or number objects, of the first
            value of each class.
        counts: Pixels of each class [C] int64, for each sample.
        problems: Everything wrong, as complete sentences.
        missing: A sentence about classes that occur nowhere, which is wrong for training alone.
        objects: What is said of objects, empty where masks do not number them.
    """

    values: collections.Counter[int | str]
    counts: dict[Sample, np.ndarray]
    problems: tuple[str, ...]
    missing: tuple[str, ...]
    objects: str = ""


class Memory:
    """Remembers what masks hold by path, size and time, so that a large set is counted once.

    Args:
        path: A JSON file, or None to remember nothing beyond this process.
        classes: Counts under another class map are other counts.
        resize: Likewise of masks of another size.

    Raises:
        UserError: If there is a file of this name that holds something else; it stays as it is.
    """

    def __init__(self, path: pathlib.Path | None, classes: ClassMap, resize: Resize = AS_THEY_ARE):
        self._path = path
        of_objects = "" if classes.border_px is None else f"; objects, border {classes.border_px}"
        self._key = f"{classes}{of_objects}" + f"; resized, {resize}" * resize.is_on
        self._known: dict[str, tuple[list[int], dict[str, int]]] = {}
        if path and os.path.lexists(path):
            stored = read_json(
                path,
                _Known,
                what="what is remembered of the masks",
                way="Move it away; the masks are counted again then.",
                formats=(0, _MEMORY_FORMAT),
                most_bytes=_MOST_MEMORY_BYTES,
            )
            if stored.classes == self._key:
                self._known = stored.masks

    def get(self, source: Source) -> dict[int | str, int] | None:
        """Returns the value counts of a mask that has not changed since it was counted."""
        entry = self._known.get(printable(str(source)))
        if not entry or entry[0] != size_and_time(source.path):
            return None
        return {v if v.startswith("#") else int(v): count for v, count in entry[1].items()}

    def put(self, source: Source, values: Mapping[int | str, int]) -> None:
        """Remembers the value counts of a mask."""
        counts = {str(value): int(count) for value, count in values.items()}
        self._known[printable(str(source))] = (size_and_time(source.path), counts)

    def get_classes(self, sample: Sample, number: int) -> np.ndarray | None:
        """Returns the pixels of each of `number` classes of a sample that has not changed.

        Where masks hold no values of classes, or are resized, only all files of a sample tell.
        """
        key, stamp = _of_sample(sample)
        entry = self._known.get(key)
        if not entry or entry[0] != stamp:
            return None
        return np.array([entry[1].get(str(n), 0) for n in range(number)], np.int64)

    def put_classes(self, sample: Sample, counts: np.ndarray) -> None:
        """Remembers the pixels of each class of a sample."""
        key, stamp = _of_sample(sample)
        self._known[key] = (stamp, {str(n): int(count) for n, count in enumerate(counts)})

    def store(self) -> None:
        """Writes what is remembered, if there is a file for it."""
        if self._path:
            stored = _Known(format=_MEMORY_FORMAT, classes=self._key, masks=self._known)
            write_whole(self._path, msgspec.json.encode(stored))


def _of_sample(sample: Sample) -> tuple[str, list[int]]:
    """Returns under which name the classes of a sample are remembered, and its size and time."""
    found = [size_and_time(source.path) for source in (sample.image, *sample.mask)]
    stamp = [sum(size for size, _ in found), max(time for _, time in found), len(found)]
    return f"classes of {printable(str(sample.mask[0]))}", stamp


def read_headers(
    samples: Sequence[Sample],
    scaling: Scaling,
    classes: ClassMap,
    *,
    channels: int,
    use_channels: Sequence[int] = (),
    resize: Resize = AS_THEY_ARE,
    progress: Callable = iter,
) -> Headers:
    """Reads the headers of all files of `samples`.

    Args:
        samples: Where the files are.
        scaling: How intensities will be scaled.
        classes: What the values of the masks mean.
        channels: Channels that images will have.
        use_channels: Which channels of the files they are; empty is all.
        resize: How they will be resized.
        progress: Wraps the list of samples to show progress, such as `tqdm.tqdm`.
    """
    shapes: dict[Sample, tuple[int, int]] = {}
    kinds: collections.Counter[str] = collections.Counter()
    dtypes: set[str] = set()
    problems: list[str] = []
    palettes = _Palettes(classes)

    def header_of(source: Source, is_image: bool) -> images.Header | None:
        try:
            header = images.read_header(source.path, source.page)
            if is_image:
                images.check_header(source, header, channels, use_channels)
            return header
        except UserError as error:
            problems.append(naming(source, error))
            return None

    for sample in progress(samples):
        image = header_of(sample.image, True)
        masks = [header_of(source, False) for source in sample.mask]
        if image is not None:
            dtypes.add(image.dtype)
            conversion = images.describe_conversion(image, channels, use_channels)
            kind = (
                f"{image.width}x{image.height} {image.format} {image.dtype}, "
                f"{image.channels} channel(s)" + (f": {conversion}" if conversion else "")
            )
            try:
                size = resize.size(image.height, image.width, sample.image)
            except UserError as error:
                problems.append(str(error))
                continue
            kinds[kind + f", resized to {size[1]}x{size[0]}" * resize.is_on] += 1
        read_masks = [mask for mask in masks if mask is not None]
        if image is None or len(read_masks) < len(masks):
            continue
        wrong: list[str] = []
        for source, mask in zip(sample.mask, read_masks, strict=True):
            wrong += filter(None, [_mask_problem(sample, source, image, mask)])
            wrong += filter(None, [palettes.problem(source, mask)])
        problems += wrong
        if not wrong:
            shapes[sample] = size
    return Headers(shapes, scaling.dtype_for(dtypes), kinds, tuple(problems))


def _mask_problem(
    sample: Sample, source: Source, image: images.Header, mask: images.Header
) -> str | None:
    if mask.format == "JPEG":
        return f"{source}: is a JPEG; its compression changes class values. Save masks as PNG."
    if (mask.width, mask.height) != (image.width, image.height):
        return (
            f"{sample.image}: is {image.width}x{image.height} pixels, its mask {mask.width}x"
            f"{mask.height}; both must have one size."
        )
    if image.directions != mask.directions and image.directions and mask.directions:
        return (
            f"{sample.image}: its axes run to {image.directions}, those of its mask to "
            f"{mask.directions}, so that the one is mirrored or turned against the other. Save "
            "both in one orientation."
        )
    return None


class _Palettes:
    """The colours that the numbers of classes have in the palettes of masks."""

    def __init__(self, classes: ClassMap):
        numbers = {number for values in (*classes.listed, classes.ignored) for number in values}
        self._numbers = numbers if _holds_values(classes) and not classes.is_colour else set()
        self._first: dict[int, tuple[str, Source]] = {}

    def problem(self, source: Source, mask: images.Header) -> str | None:
        """Returns what is wrong with a mask whose colours are others than those of one before."""
        for number in sorted(self._numbers):
            colour = mask.palette[3 * number : 3 * number + 3]
            if len(colour) < 3:
                continue
            written = f"#{colour.hex()}"
            first, before = self._first.setdefault(number, (written, source))
            if written != first:
                return (
                    f"{source}: shows {number} in {written} by its palette, and {before} in "
                    f"{first}, so that numbers of one class are those of another. Name colours in "
                    f"`classes`, such as {first}:name, or save the masks without palettes."
                )
        return None


def read_pixels(
    samples: Iterable[Sample], read: Reader, *, memory: Memory, progress: Callable = iter
) -> Pixels:
    """Decodes all images and masks of `samples`."""
    values: collections.Counter[int | str] = collections.Counter()
    counts: dict[Sample, np.ndarray] = {}
    problems: list[str] = []
    objects = ObjectsFound(read.classes)
    for sample in progress(list(samples)):
        is_binary = len(sample.mask) > 1
        try:
            if _holds_values(read.classes) and not is_binary:
                values.update(_values_of(sample, read, memory))
            pair = read(sample)
        except UserError as error:
            problems.append(str(error))
            continue
        if read.classes.overlapping:
            ids, pixels = np.unique(pair.mask, return_counts=True)
            values.update(dict(zip(ids.tolist(), pixels.tolist(), strict=True)))
        elif is_binary or pair.instances is not None:
            values.update(read.classes.count_values(read.classes.values(pair.mask)))
        if pair.instances is not None:
            objects.add(pair.instances, pair.mask, pair.claimed_twice)
        counts[sample] = read.classes.count(pair.mask)
        if _needs_whole(read):
            memory.put_classes(sample, counts[sample])
    missing = tuple(_missing_classes(counts, read.classes, values))
    found = "" if read.classes.border_px is None else objects.describe()
    return Pixels(values, counts, tuple(problems), missing, found)


def read_ranges(
    samples: Iterable[Sample], use_channels: Sequence[int] = (), *, progress: Callable = iter
) -> tuple[dict[str, tuple[float, float]], int]:
    """Returns `intensities.find_ranges` of the images, and how many were looked at.

    Of more than 200, those of every k-th sample are; what cannot be read is left to `read_pixels`.
    """
    samples = list(samples)
    chosen = samples[:: math.ceil(len(samples) / _LOOKED_AT) or 1]

    def pixels():
        for sample in progress(chosen):
            with contextlib.suppress(UserError):
                image = images.read_image(sample.image.path, sample.image.page)
                has_channels = use_channels and image.ndim == 3
                yield image[..., list(use_channels)] if has_channels else image

    return find_ranges(pixels()), len(chosen)


def describe_ranges(
    ranges: Mapping[str, tuple[float, float]], looked_at: int, scaling: Scaling
) -> str:
    """Returns lines about the range of intensities, and how they will be scaled."""
    lines = []
    for dtype, (low, high) in ranges.items():
        white = WHITE[dtype]
        share = (
            f", {(high - low) / white:.1%} of 0 to {white:g}" if 0 <= low <= high <= white else ""
        )
        lines.append(f"Intensities: {dtype} from {low:g} to {high:g}{share}")
    ending = f", in {looked_at} image(s); scaled by --intensities={scaling}.\n"
    return "\n".join(lines) + ending if lines else ""


def count_classes(
    samples: Iterable[Sample], read: Reader, *, memory: Memory, progress: Callable = iter
) -> dict[Sample, np.ndarray]:
    """Returns the pixels of each class, [C] int64, for each sample.

    Only masks are decoded, and only those not remembered.

    Raises:
        UserError: If a mask cannot be read or holds values outside the class map.
    """
    counts = {}
    for sample in progress(list(samples)):
        if _needs_whole(read):
            known = memory.get_classes(sample, len(read.classes))
            if known is None:
                known = read.classes.count(read.mask(sample))
                memory.put_classes(sample, known)
            counts[sample] = known
            continue
        by_name: collections.Counter[str | None] = collections.Counter()
        for value, count in _values_of(sample, read, memory).items():
            by_name[read.classes.name_of(value)] += count
        if len(sample.mask) > 1 or None in by_name:
            # Binary files, or values that the map assigns by nearness: the ids tell.
            counts[sample] = read.classes.count(read.mask(sample))
        else:
            counts[sample] = np.array([by_name[name] for name in read.classes.names], np.int64)
    return counts


def is_known(sample: Sample, read: Reader, memory: Memory) -> bool:
    """Returns whether the classes of a sample can be counted without reading all its files."""
    if _needs_whole(read):
        return memory.get_classes(sample, len(read.classes)) is not None
    return all(memory.get(mask) for mask in sample.mask)


def _needs_whole(read: Reader) -> bool:
    """Returns whether values of single files do not tell how many pixels each class has."""
    return not _holds_values(read.classes) or read.resize.is_on


def fingerprint(samples: Iterable[Sample]) -> str:
    """Returns a fingerprint of the data set: of names, and of what the files hold.

    Of data sets of more than a gigabyte, the sizes and times of the files stand for their content.
    """
    samples = list(samples)
    paths = dict.fromkeys(
        source.path for sample in samples for source in (sample.image, *sample.mask)
    )
    hashes_content = sum(size_and_time(path)[0] for path in paths) <= _HASHED_BYTES
    digest = hashlib.sha256()
    for sample in samples:
        pages = [source.page for source in (sample.image, *sample.mask)]
        digest.update(f"{sample.name} {pages} {printable(sample.group)} {sample.split}\n".encode())
    for path in paths:
        if hashes_content:
            digest.update(digest_of(path))
        else:
            digest.update(f"{printable(path.name)} {size_and_time(path)}\n".encode())
    return digest.hexdigest()[:16]


def describe(
    samples: Sequence[Sample], headers: Headers, values: Mapping[int | str, int], classes: ClassMap
) -> str:
    """Returns what a data set holds as text.

    It lists samples, parts, groups, kinds of images, and mask values with their shares.
    """
    lines = [f"{len(headers.shapes)} sound pair(s) of image and mask"]
    parts = collections.Counter(sample.split for sample in samples if sample.split)
    lines += [f"  {count:6d} in {part}" for part, count in parts.items()]
    lines += [f"  {count:6d} of {kind}" for kind, count in headers.kinds.most_common(12)]
    if len(headers.kinds) > 12:
        lines.append(f"  and {len(headers.kinds) - 12} more kinds")
    groups = collections.Counter(sample.group for sample in samples if sample.group)
    if groups:
        listed = ", ".join(f"{name} ({count})" for name, count in groups.most_common(12))
        lines.append(f"{len(groups)} group(s): {listed}" + ", ..." * (len(groups) > 12))
    total = sum(values.values())
    lines.append(f"{total} mask pixel(s)")
    in_files = _holds_values(classes) and not any(len(sample.mask) > 1 for sample in samples)
    lines += _values_with_shares(values, classes, in_files)
    return "\n".join(lines)


def _values_with_shares(
    values: Mapping[int | str, int], classes: ClassMap, in_files: bool
) -> list[str]:
    """Returns a line for each value; of those that are not listed, for the first ones.

    Values are shown if they are those `in_files`.
    """
    total = sum(values.values())
    strays = [value for value in values if classes.name_of(value) is None]
    nearest = _nearest_names(strays, classes) if classes.nearest else {}
    lines, not_shown = [], collections.Counter[str]()
    for value, count in sorted(values.items(), key=lambda item: (str(type(item[0])), item[0])):
        name = classes.name_of(value)
        if name is None:
            name = f"as {nearest[value]}" if classes.nearest else "not in the map"
            not_shown[name] += 1
            if not_shown.total() > _MOST_STRAYS:
                continue
        written = f"value {value!s:>7}  " if in_files else ""
        lines.append(f"  {written}{name:16s} {count:12d}  {count / total:7.2%}")
    if not_shown.total() > _MOST_STRAYS:
        listed = ", ".join(f"{count} {name}" for name, count in not_shown.items())
        lines.append(f"  {len(strays)} values that are not listed in all: {listed}")
    return lines


def _holds_values(classes: ClassMap) -> bool:
    """Returns whether masks hold values of classes: no file for each, no numbers of objects."""
    return not classes.overlapping and classes.border_px is None


def list_problems(data_dir: str | pathlib.Path, problems: Sequence[str]) -> str:
    """Returns one message of all problems of a data set, in at most 20 lines.

    Problems with one cause, which differ in file and numbers alone, share a line: it gives the
    first, how many more there are, and some of their files.
    """
    causes = by_cause(problems)
    lines = [f"{data_dir}: {len(problems)} problem(s) with the data:"]
    for number, (first, others, _) in enumerate(causes[:_MOST_CAUSES], 1):
        lines.append(f"  {number}. {first}")
        if others:
            lines.append(f"     {others}")
    hidden = sum(count for *_, count in causes[_MOST_CAUSES:])
    if hidden:
        lines.append(f"  and {hidden} more, of {len(causes) - _MOST_CAUSES} other causes")
    return "\n".join(lines)


def by_cause(problems: Sequence[str]) -> list[tuple[str, str, int]]:
    """Returns for each cause its first problem, a sentence about others, and how many there are.

    Problems with one cause differ in file and numbers alone.
    """
    causes: dict[str, list[str]] = {}
    for problem in problems:
        _, _, text = problem.partition(": ")
        causes.setdefault(re.sub(r"[0-9]+", "0", text or problem), []).append(problem)
    found = []
    for first, *others in causes.values():
        files = [each.partition(": ")[0] for each in others[:3]]
        more = ", ..." if len(others) > len(files) else ""
        told = f"So also with {len(others)} more: {', '.join(files)}{more}" if others else ""
        found.append((first, told, 1 + len(others)))
    return found


def _values_of(sample: Sample, read: Reader, memory: Memory) -> collections.Counter[int | str]:
    """Returns the value counts of a sample's mask files.

    Raises:
        UserError: If one cannot be read, or holds values that are not in the class map.
    """
    total: collections.Counter[int | str] = collections.Counter()
    for source in sample.mask:
        found = memory.get(source)
        if found is None:
            mask = images.read_mask(source.path, source.page, colours=read.classes.is_colour)
            try:
                found = read.classes.count_values(mask)
            except UserError as error:
                raise UserError(naming(source, error)) from error
            memory.put(source, found)
        total.update(found)
    if len(sample.mask) == 1 and not read.classes.nearest:
        unknown = {v: n for v, n in total.items() if read.classes.name_of(v) is None}
        if unknown:
            listed = ", ".join(
                f"{value} ({count} px)" for value, count in list(unknown.items())[:8]
            )
            more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
            raise UserError(
                f"{sample.mask[0]}: holds values outside the class map {read.classes}: "
                f"{listed}{more}. {_what_to_do(total, read.classes)}"
            )
    return total


def _what_to_do(found: Mapping[int | str, int], classes: ClassMap) -> str:
    """Returns what to do about values of a mask that are not listed.

    To take the nearest one keeps what strays by blur or compression; it would erase objects that
    have numbers of their own. So it is named only where less strays than there is of the listed
    values beside the most frequent, which is the ground.
    """
    unknown = [value for value in found if classes.name_of(value) is None]
    listed = [count for value, count in found.items() if value not in unknown]
    if sum(found[value] for value in unknown) >= sum(listed) - max(listed, default=0):
        text = "So many pixels are not stray ones: list their values in `classes`."
        if classes.is_colour or len(unknown) < 2:
            return text
        return f"{text} If they are the numbers of single objects, set `masks` to instances."
    of_class: dict[str, list[str]] = {}
    for value, name in _nearest_names(unknown, classes).items():
        of_class.setdefault(name, []).append(str(value))
    written = "; ".join(
        f"{', '.join(values[:4])}{', ...' * (len(values) > 4)} as {name}"
        for name, values in of_class.items()
    )
    return (
        "Correct the mask, or list the values in `classes`. With `stray_values` nearest they "
        f"count: {written}."
    )


def _nearest_names(values: Sequence[int | str], classes: ClassMap) -> dict[int | str, str]:
    """Returns for what class each of `values` counts if the nearest listed one does."""
    if not values:
        return {}
    if classes.is_colour:
        mask = np.array([[[int(str(v)[k : k + 2], 16) for k in (1, 3, 5)] for v in values]])
    else:
        mask = np.array([values])
    ids = dataclasses.replace(classes, nearest=True).ids(mask)[0]
    names = ("ignore" if number == IGNORED else classes.names[number] for number in ids)
    return dict(zip(values, names, strict=True))


def _missing_classes(
    counts: Mapping[Sample, np.ndarray], classes: ClassMap, values: Mapping[int | str, int]
) -> list[str]:
    if not counts:
        return []
    total = np.sum(list(counts.values()), axis=0)
    missing = [name for name, count in zip(classes.names, total, strict=True) if not count]
    if not missing:
        return []
    shown = classes.name_of if classes.overlapping else str
    present = ", ".join(str(shown(value)) for value in sorted(values, key=str))
    return [
        f"No mask has a pixel of class {', '.join(missing)} (values found: {present}; class map: "
        f"{classes}). A network cannot learn a class that never occurs."
    ]
