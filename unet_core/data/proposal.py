"""What masks hold, for someone who does not know it yet, and a class map made of that."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from unet_core.data import images
from unet_core.data.samples import Sample

# More values than this are numbers of objects, or blurred edges, and not classes.
_MOST_CLASSES = 24
_MOST_SHOWN = 20


def count_values(
    samples: Sequence[Sample], progress: Callable = iter
) -> collections.Counter[int | str]:
    """Returns the pixels of each value in the masks of `samples`; colours as "#rrggbb".

    Raises:
        UserError: If a mask cannot be read.
    """
    total: collections.Counter[int | str] = collections.Counter()
    for source in progress([source for sample in samples for source in sample.mask]):
        mask = images.read_mask(source.path, source.page)
        if mask.ndim == 3:
            mask = mask.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
            for value, count in zip(*np.unique(mask, return_counts=True), strict=True):
                total[f"#{value:06x}"] += int(count)
        else:
            for value, count in zip(*np.unique(mask, return_counts=True), strict=True):
                total[int(value)] += int(count)
    return total


def class_map(values: Iterable[int | str]) -> str | None:
    """Returns `--classes` with names to be replaced, or None if these are no values of classes."""
    values = sorted(values, key=lambda value: (isinstance(value, str), value))
    if not 2 <= len(values) <= _MOST_CLASSES or len({type(value) for value in values}) > 1:
        return None
    if values[0] not in (0, "#000000"):
        return ",".join(f"{value}:class_{n}" for n, value in enumerate(values))
    if len(values) == 2:
        return f"{values[0]}:background,{values[1]}:foreground"
    rest = [f"{value}:class_{n}" for n, value in enumerate(values[1:], 1)]
    return ",".join([f"{values[0]}:background", *rest])


def describe(counts: Mapping[int | str, int]) -> str:
    """Returns the values with their shares, the most frequent first, and what to do next."""
    total = sum(counts.values())
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    lines = [f"The masks hold {len(counts)} value(s) in {total} pixels:"]
    for value, count in ranked[:_MOST_SHOWN]:
        lines.append(f"  value {value!s:>7}  {count:12d}  {count / total:7.2%}")
    if len(ranked) > _MOST_SHOWN:
        lines.append(f"  and {len(ranked) - _MOST_SHOWN} more")
    proposed = class_map(counts)
    if proposed:
        lines.append(
            "Name them by --classes, `ignore` being the name of pixels that count nowhere, and "
            f"check again with it:\n  --classes='{proposed}'"
        )
    elif len(counts) < 2:
        lines.append("One value alone is nothing to learn; see whether these are the masks.")
    else:
        lines.append(
            "So many are hardly classes: rather the numbers of single objects, edges blurred by "
            "resizing or compression, or not masks at all. Of objects, give\n  --masks=instances "
            "--classes=0:background,1:object\nOthers must have one value per class."
        )
    return "\n".join(lines)
