"""The map from the values found in mask files to class ids, and back.

classes = ClassMap.parse("0:background,127|128:myelin,255:axon,11:ignore")
ids = classes.ids(mask)          # [H, W] values -> [H, W] uint8 class ids 0, 1, 2, or IGNORED
values = classes.values(ids)     # and back, to the first value of each class

Names alone are classes that may overlap, each with binary masks of its own; what else is of none:

classes = ClassMap.parse("cells,nuclei")
ids = classes.ids_of_binary(masks)    # [H, W] each -> [H, W] uint8, 1 cells, 2 nuclei, 3 both
"""

from __future__ import annotations

import collections
import colorsys
import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from unet_core.conventions import IGNORED, MOST_OVERLAPPING, has_class, names_overlapping
from unet_core.errors import UserError

BACKGROUND = "background"
"""The name of a class that pictures leave clear unless they are told another."""
IGNORE = "ignore"
"""The name in a class map of the values whose pixels count nowhere."""

_EXAMPLES = (
    "write for example 0:membrane,255:cell or 0:background,127|128:myelin,255:axon,11:ignore or "
    "#000000:background,#ff0000:car"
)
CLASSES_MISSING = (
    "`classes` is missing; it says which mask value is which class: " + _EXAMPLES + ". The mode "
    "check_data lists the values that your masks hold, and proposes it."
)
_LARGEST_NUMBER = 65535
_LARGEST_COLOUR = 0xFFFFFF
# Distinct for people who do not tell red from green (Okabe and Ito 2008), in RGB.
_PALETTE = (
    (213, 94, 0),
    (0, 114, 178),
    (0, 158, 115),
    (240, 228, 66),
    (86, 180, 233),
    (230, 159, 0),
    (204, 121, 167),
    (153, 153, 153),
)


@dataclasses.dataclass(frozen=True)
class ClassMap:
    """Class `i` is called `names[i]` and stands in mask files as any of `listed[i]`.

    Attributes:
        names: The names of the classes.
        listed: The values of each class: numbers from 0 to 65535, or colours as 0xrrggbb.
        ignored: The values whose pixels are no class and count nowhere.
        is_colour: Whether the values are colours.
        clear: The "class id" that pictures leave clear: what is no object of interest.
        nearest: Whether a value that is not listed stands for what the nearest listed value stands
            for, the smaller of two; otherwise it is an error.
        overlapping: Whether a pixel may be of none, one or several classes. "Class ids" are then
            sums of 2^i over its classes i, and each class has files of its own, with 255 where it
            is; `ignored` tells of one more such file.
        border_px: Where masks hold the numbers of objects in place of values of classes, see
            `unet_core.data.instance_masks`: the pixels within which two objects have a border
            between them, 0 being no border. None where masks hold classes.
    """

    names: tuple[str, ...]
    listed: tuple[tuple[int, ...], ...]
    ignored: tuple[int, ...] = ()
    is_colour: bool = False
    nearest: bool = False
    clear: int = 0
    overlapping: bool = False
    border_px: int | None = None

    @classmethod
    def parse(cls, text: str, *, nearest: bool = False, clear: str = "") -> ClassMap:
        """Returns the map written as `value:name,value:name`, classes numbered in that order.

        A value is a number from 0 to 65535 or a colour `#rrggbb`; `127|128:myelin` gives a class
        several. The entry named `ignore` is no class: its pixels become IGNORED. `clear` names the
        class that pictures leave clear: by default that called background, or else the first.
        Names alone, `name,name`, are classes that may overlap; `ignore` is the last of them.

        Raises:
            UserError: If an entry has another form, numbers and colours are mixed, a value or name
                occurs twice, or there are fewer than 2 or more than 255 classes; of classes that
                may overlap, none or more than 7.
        """
        if names_overlapping(text):
            return cls._overlapping(text)
        names, listed = [], []
        for entry in text.split(","):
            values, _, name = entry.strip().partition(":")
            names.append(name.strip())
            listed.append([_parse_value(entry, value.strip()) for value in values.split("|")])
            if not names[-1]:
                raise _malformed(entry)
        if len({is_colour for values in listed for _, is_colour in values}) > 1:
            raise UserError(
                f"`classes` ({text!r}) mixes numbers and colours; masks hold either. List the "
                "values of one kind."
            )
        is_colour = listed[0][0][1]
        numbers = [tuple(number for number, _ in values) for values in listed]
        _check_once(text, "value", [_written(n, is_colour) for found in numbers for n in found])
        _check_once(text, "name", names)
        ignored = numbers[names.index(IGNORE)] if IGNORE in names else ()
        classes = [pair for pair in zip(names, numbers, strict=True) if pair[0] != IGNORE]
        if not 2 <= len(classes) <= IGNORED:
            raise UserError(
                f"`classes` ({text!r}) must name at least two classes and at most {IGNORED}, "
                f"`{IGNORE}` not counted; it names {len(classes)}. Also, {_EXAMPLES}."
            )
        kept, values_of = zip(*classes, strict=True)
        clear = clear or (BACKGROUND if BACKGROUND in kept else kept[0])
        if clear not in kept:
            raise UserError(f"`clear_class` ({clear}) must be one of {', '.join(kept)}.")
        return cls(kept, values_of, ignored, is_colour, nearest, kept.index(clear))

    @classmethod
    def _overlapping(cls, text: str) -> ClassMap:
        names = [name.strip() for name in text.split(",")]
        _check_once(text, "name", names)
        has_ignored = names[-1] == IGNORE
        kept = tuple(names[:-1] if has_ignored else names)
        if not 1 <= len(kept) <= MOST_OVERLAPPING or not all(kept) or IGNORE in kept:
            raise UserError(
                f"`classes` ({text!r}) without values are classes that may overlap: give 1 to "
                f"{MOST_OVERLAPPING} names, in the order of their masks (`mask_folder`), and last "
                f"`{IGNORE}` if there are masks of pixels that count nowhere. Or, for classes that "
                f"exclude one another, {_EXAMPLES}."
            )
        one_file = (255,)
        return cls(kept, (one_file,) * len(kept), one_file * has_ignored, overlapping=True)

    def __len__(self) -> int:
        return len(self.names)

    def __str__(self) -> str:
        if self.overlapping:
            return ",".join([*self.names, *[IGNORE] * len(self.ignored)])
        entries = list(zip(self.names, self.listed, strict=True))
        if self.ignored:
            entries.append((IGNORE, self.ignored))
        return ",".join(
            "|".join(str(_written(value, self.is_colour)) for value in values) + f":{name}"
            for name, values in entries
        )

    @property
    def mask_values(self) -> tuple[int | tuple[int, int, int], ...]:
        """The first value of each class, a number or (red, green, blue)."""
        return tuple(self._unpacked(values[0]) for values in self.listed)

    def index(self, name: str) -> int:
        """Returns the id of the class called `name`.

        Raises:
            UserError: If there is none.
        """
        if name not in self.names:
            raise UserError(
                f"No class is called {name!r}; the classes are {', '.join(self.names)}."
            )
        return self.names.index(name)

    def name_of(self, value: int | str) -> str | None:
        """Returns the name of the class that has `value`, a number or "#rrggbb".

        It is "ignore" for a value to ignore, and None for one that is not listed. Where classes may
        overlap, it is the names of those of an id.
        """
        if self.overlapping:
            found = [name for i, name in enumerate(self.names) if self.has(np.array(value), i)]
            return IGNORE if value == IGNORED else " + ".join(found) or "no class"
        for written, class_id in self._ids_of_written().items():
            if written == value:
                return IGNORE if class_id == IGNORED else self.names[class_id]
        return None

    def count_values(self, mask: np.ndarray) -> dict[int | str, int]:
        """Returns the values of `mask`, numbers or "#rrggbb", with their pixel counts.

        They are in rising order.

        Args:
            mask: [H, W] of integers or [H, W, 3] uint8 in RGB order. A map of numbers takes
                colours that are all grey; to a map of colours, grey v is (v, v, v).

        Raises:
            UserError: If the mask is coloured and the map is of numbers, or the map is of colours
                and the mask holds numbers outside 0 to 255.
        """
        values, counts = _counted(self.packed(mask))
        return {
            _written(int(value), self.is_colour): int(count)
            for value, count in zip(values, counts, strict=True)
        }

    def unknown_values(self, mask: np.ndarray) -> dict[int | str, int]:
        """Returns the values of `mask` that are not in the map, as `count_values` does."""
        known = self._ids_of_written()
        return {v: count for v, count in self.count_values(mask).items() if v not in known}

    def ids(self, mask: np.ndarray) -> np.ndarray:
        """Returns the class ids of `mask`, [H, W] uint8, IGNORED where its value is to be ignored.

        Args:
            mask: As in `count_values`.

        Raises:
            UserError: As `count_values`; and if the mask holds values that are not in the map and
                `nearest` is off.
        """
        packed = self.packed(mask)
        if self.nearest and packed.dtype.itemsize > 2:
            packed = packed.clip(0, _LARGEST_COLOUR)
        values, _ = _counted(packed)
        nearest, distance = self._nearest(values)
        if not self.nearest and distance.any():
            raise UserError(self._describe_unknown(mask))
        table = np.empty(int(values[-1]) + 1, np.uint8)
        table[values] = nearest
        return table[packed]

    def values(self, ids: np.ndarray) -> np.ndarray:
        """Returns the first mask value of each of the class `ids` ([H, W] uint8).

        It is [H, W] uint8, or uint16 if a value is above 255; for colours [H, W, 3] uint8 in RGB
        order.

        Raises:
            UserError: If a pixel is IGNORED and the map has no value to ignore.
        """
        hidden = ids == IGNORED
        if not self.ignored and hidden.any():
            raise UserError(
                f"{np.count_nonzero(hidden)} pixel(s) are to be ignored, and the class map {self} "
                f"has no value for them. Add an entry such as 254:{IGNORE}."
            )
        firsts = [*self.mask_values, *(self._unpacked(value) for value in self.ignored[:1])]
        dtype = np.uint8 if np.max(firsts) <= 255 else np.uint16
        return np.asarray(firsts, dtype)[np.where(hidden, len(self), ids)]

    def palette(self) -> list[tuple[int, int, int]]:
        """Returns a colour (red, green, blue) for each class, all different.

        They are the map's own, or for up to eight classes colours that are safe for colour-blind
        readers.
        """
        if self.is_colour:
            return [_rgb_of(values[0]) for values in self.listed]
        return [_PALETTE[i] if i < len(_PALETTE) else _generated(i) for i in range(len(self))]

    def colours(self) -> list[tuple[int, int, int]]:
        """Returns the colour of each id: that of the class, or the mean of those that overlap.

        Pixels of none are black.
        """
        if not self.overlapping:
            return self.palette()
        palette = np.array(self.palette())
        ids = np.arange(2 ** len(self))
        chosen = np.stack([self.has(ids, number) for number in range(len(self))], -1)
        mixed = np.rint(chosen @ palette / np.maximum(chosen.sum(-1, keepdims=True), 1))
        return [(int(red), int(green), int(blue)) for red, green, blue in mixed]

    def has(self, ids: np.ndarray, class_id: int) -> np.ndarray:
        """Returns where `ids`, those of this map, have a class, as bool of their shape."""
        return has_class(ids, class_id, self.overlapping)

    def count(self, ids: np.ndarray) -> np.ndarray:
        """Returns the pixels of each class in `ids` [H, W], [C] int64."""
        if not self.overlapping:
            return np.bincount(ids[ids != IGNORED], minlength=len(self)).astype(np.int64)
        return np.array([np.count_nonzero(self.has(ids, each)) for each in range(len(self))])

    def ids_of_binary(self, masks: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the class ids, [H, W] uint8, of one binary mask per class.

        A mask is other than 0 where a pixel belongs to its class.

        Args:
            masks: [H, W] each, in the order of the classes. The first class may be left out: what
                no mask claims is then of this class.

        Raises:
            UserError: If there are more or fewer masks, they differ in size or are coloured, a
                pixel is claimed by several, or, with a mask for each class, by none.
        """
        if self.overlapping:
            return self._ids_of_overlapping(masks)
        first = len(self) - len(masks)
        if first not in (0, 1):
            raise UserError(
                f"There are {len(masks)} binary mask(s) for {len(self)} classes "
                f"({', '.join(self.names)}); there must be one for each, or for each but the "
                "first. Add or remove masks, or change the classes."
            )
        claims = _claims(masks)
        claimed = np.sum(claims, axis=0, dtype=np.uint8)
        several = np.count_nonzero(claimed > 1)
        if several:
            raise UserError(
                f"{several} pixel(s) are claimed by several of the binary masks; a pixel has one "
                "class. Clear them in all masks but one."
            )
        none = np.count_nonzero(claimed == 0)
        if none and not first:
            raise UserError(
                f"{none} pixel(s) are claimed by none of the {len(masks)} binary masks. Mark them "
                f"in one, or leave out the masks of {self.names[0]!r}, which then takes the rest."
            )
        ids = np.zeros(claimed.shape, np.uint8)
        for class_id, claim in enumerate(claims, first):
            ids[claim] = class_id
        return ids

    def _ids_of_overlapping(self, masks: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the ids of one binary mask per class, and of one more of what is ignored."""
        wanted = [*self.names, *[IGNORE] * len(self.ignored)]
        if len(masks) != len(wanted):
            raise UserError(
                f"There are {len(masks)} binary mask(s) for {', '.join(wanted)}; classes that may "
                "overlap have one each. Name a folder of masks for each (`mask_folder`), in the "
                "order of `classes`."
            )
        claims = _claims(masks)
        ids = np.zeros(claims[0].shape, np.uint8)
        for class_id, claim in enumerate(claims[: len(self)]):
            ids[claim] += 2**class_id
        if self.ignored:
            ids[claims[-1]] = IGNORED
        return ids

    def _ids_of_values(self) -> dict[int, int]:
        """Returns the class id, or IGNORED, of each listed value, values rising."""
        ids = {value: i for i, values in enumerate(self.listed) for value in values}
        return dict(sorted((ids | dict.fromkeys(self.ignored, IGNORED)).items()))

    def _ids_of_written(self) -> dict[int | str, int]:
        """Returns the class id, or IGNORED, of each listed value as people write it."""
        return {_written(v, self.is_colour): i for v, i in self._ids_of_values().items()}

    def packed(self, mask: np.ndarray) -> np.ndarray:
        """Returns the values of `mask` as [H, W] integers of the kind that `listed` holds."""
        if not self.is_colour:
            return _grey(mask)
        if mask.ndim == 3:
            red, green, blue = np.moveaxis(mask.astype(np.uint32), -1, 0)
            return red << 16 | green << 8 | blue
        if mask.dtype != np.uint8 and (mask.min() < 0 or mask.max() > 255):
            raise UserError(
                f"The mask holds numbers from {mask.min()} to {mask.max()}, and the class map "
                f"{self} holds colours. List the numbers instead, such as 0:background,300:cell."
            )
        return mask.astype(np.uint32) * 0x010101

    def _unpacked(self, value: int) -> int | tuple[int, int, int]:
        """Returns `value`, or (red, green, blue) if it is a colour."""
        return _rgb_of(value) if self.is_colour else value

    def _nearest(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ids [N] uint8 of the listed values that are nearest to `values` [N].

        The second result is the square of their distance, [N].
        """
        ids = np.zeros(len(values), np.uint8)
        least = np.full(len(values), np.iinfo(np.int64).max)
        values = values.astype(np.int64)
        for value, class_id in self._ids_of_values().items():
            if self.is_colour:
                parts = [(values >> k & 255) - (value >> k & 255) for k in (16, 8, 0)]
            else:
                parts = [values - value]
            distance = np.sum([part**2 for part in parts], axis=0)
            closer = distance < least
            ids[closer] = class_id
            least[closer] = distance[closer]
        return ids, least

    def _describe_unknown(self, mask: np.ndarray) -> str:
        """Returns a message that names the values of `mask` that are not in the map."""
        unknown = self.unknown_values(mask)
        some = ", ".join(f"{value} ({count} px)" for value, count in list(unknown.items())[:8])
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        hint = (
            " The mask is grey, or a palette whose indices count: list these numbers."
            if self.is_colour and mask.ndim == 2
            else ""
        )
        return (
            f"The mask holds values that are not in the class map {self}: {some}{more}.{hint} "
            "Correct the mask, or list the values."
        )


def _claims(masks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns where each of binary masks is not 0, [H, W] bool.

    Raises:
        UserError: If they differ in size or are coloured.
    """
    claims = [_grey(mask) != 0 for mask in masks]
    sizes = {claim.shape for claim in claims}
    if len(sizes) > 1:
        listed = ", ".join(f"{width}x{height}" for height, width in sorted(sizes))
        raise UserError(
            f"The binary masks of one image have several sizes: {listed}. Bring them to one."
        )
    return claims


def _grey(mask: np.ndarray) -> np.ndarray:
    """Returns `mask` as [H, W].

    Raises:
        UserError: If it is coloured.
    """
    if mask.ndim == 2:
        return mask
    coloured = np.count_nonzero((mask != mask[..., :1]).any(axis=-1))
    if coloured:
        raise UserError(
            f"The mask is coloured ({coloured} pixel(s) are not grey), and the class map holds "
            "numbers. List the colours, such as #000000:background,#ff0000:car, or save the mask "
            "as grey."
        )
    return mask[..., 0]


def _counted(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the values of `packed` in rising order, and the pixels of each."""
    if packed.dtype not in (np.uint8, np.uint16):
        return np.unique(packed, return_counts=True)
    counts = np.bincount(packed.ravel())
    values = np.flatnonzero(counts)
    return values, counts[values]


def _parse_value(entry: str, value: str) -> tuple[int, bool]:
    """Returns the number, or the colour as 0xrrggbb, that `value` is, and whether it is a colour.

    Raises:
        UserError: If it is neither; the message names `entry`, where it stands.
    """
    if re.fullmatch("#[0-9a-fA-F]{6}", value):
        return int(value[1:], 16), True
    if re.fullmatch("[0-9]+", value) and int(value) <= _LARGEST_NUMBER:
        return int(value), False
    raise _malformed(entry)


def _malformed(entry: str) -> UserError:
    """Returns the error that says how `entry` should have been written."""
    return UserError(
        f"`classes`: {entry!r} is not of the form value:name with a value from 0 to "
        f"{_LARGEST_NUMBER} or a colour #rrggbb, or several separated by |; {_EXAMPLES}."
    )


def _check_once(text: str, what: str, found: Sequence[int | str]) -> None:
    """Raises UserError if something occurs twice in `found`."""
    twice = [str(item) for item, count in collections.Counter(found).items() if count > 1]
    if twice:
        raise UserError(
            f"`classes` ({text!r}) must list each {what} once; {', '.join(twice)} occurs more than "
            "once. Values of one class go into one entry, such as 127|128:myelin."
        )


def _written(value: int, is_colour: bool) -> int | str:
    """Returns `value` as people write it."""
    return f"#{value:06x}" if is_colour else value


def _rgb_of(value: int) -> tuple[int, int, int]:
    return value >> 16, value >> 8 & 255, value & 255


def _generated(number: int) -> tuple[int, int, int]:
    """Returns colour `number` of a series whose hues are spread by the golden ratio."""
    rgb = colorsys.hsv_to_rgb(number * 0.6180339887 % 1, 0.85, 1)
    red, green, blue = (round(255 * level) for level in rgb)
    return red, green, blue
