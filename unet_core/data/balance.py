"""Making classes and groups weigh alike: class weights, crops with foreground, even groups."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from unet_core.conventions import has_class

METHODS = ("inverse", "median_frequency", "effective_number")


def class_weights(counts: Sequence[int], how: str, *, beta: float = 0.999999) -> np.ndarray:
    """Returns one weight per class [C] float64 from the pixels of each class.

    A class that never occurs contributes nothing and has the weight 0.

    Args:
        counts: Pixels of each class over all training masks.
        how: "inverse": all / (C * pixels of the class), so that the mean weight of a pixel is 1.
            "median_frequency": median share / share of the class (Eigen and Fergus 2015,
            arXiv:1411.4734, with shares of all pixels). "effective_number": (1 - beta) / (1 -
            beta^pixels), scaled to the mean 1 over the classes (Cui et al. 2019, arXiv:1901.05555).
        beta: Of the last one: how fast further pixels stop to count.

    Raises:
        ValueError: If `how` is unknown.
    """
    pixels = np.asarray(counts, np.float64)
    present = pixels > 0
    some = pixels[present]
    if how == "inverse":
        weights = some.sum() / (len(some) * some)
    elif how == "median_frequency":
        weights = np.median(some) / some
    elif how == "effective_number":
        # expm1, because beta^pixels is near 1 for rare classes.
        weights = (1 - beta) / -np.expm1(some * math.log(beta))
        weights /= weights.mean()
    else:
        raise ValueError(f"`how` ({how!r}) must be one of {', '.join(METHODS)}.")
    result = np.zeros(len(pixels))
    result[present] = weights
    return result


def order_with_equal_groups(groups: Sequence[str], *, rng: np.random.Generator) -> np.ndarray:
    """Returns an order of N entries for N samples in which all groups come equally often (to one).

    A group of too many samples is trimmed to a random part, one of too few repeats, each sample
    as often as the next (to one).

    Args:
        groups: The group of each sample.
        rng: Draws parts and order.

    Returns:
        [N] int64 numbers of samples.
    """
    members: dict[str, list[int]] = {}
    for number, group in enumerate(groups):
        members.setdefault(group, []).append(number)
    share, rest = divmod(len(groups), len(members))
    extra = set(rng.permutation(len(members))[:rest].tolist())
    chosen = []
    for place, numbers in enumerate(members.values()):
        wanted = share + (place in extra)
        while wanted > 0:
            chosen.append(rng.permutation(numbers)[:wanted])
            wanted -= len(numbers)
    return rng.permutation(np.concatenate(chosen))


def is_forced(index: int, share: float) -> bool:
    """Returns whether the crop at position `index` must contain foreground.

    `share` of all crops must, spread so evenly that any run of B positions has within one of
    share * B.
    """
    return math.floor((index + 1) * share) > math.floor(index * share)


def pixel_of(
    mask: np.ndarray,
    classes: Sequence[int],
    rng: np.random.Generator,
    overlapping: bool = False,
) -> tuple[int, int] | None:
    """Returns row and column of a random pixel of `mask` [H, W] that is of one of `classes`.

    Every class that is present is equally likely. None if no class is. `overlapping` is whether
    classes may overlap.
    """
    for number in rng.permutation(np.asarray(classes, np.int64)):
        found = np.flatnonzero(has_class(mask, int(number), overlapping))
        if found.size:
            row, column = divmod(int(found[rng.integers(found.size)]), mask.shape[1])
            return row, column
    return None
