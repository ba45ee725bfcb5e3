"""Which samples are held out."""

from __future__ import annotations

import collections
import functools
import hashlib
from collections.abc import Callable, Collection, Sequence

import numpy as np

from unet_core.data import images
from unet_core.data.samples import Sample
from unet_core.data.stamps import digest_of, size_and_time
from unet_core.errors import UserError

METHODS = ("contiguous", "random", "stratified", "group", "fixed")


def split(
    samples: Sequence[Sample],
    how: str,
    *,
    folds: int = 0,
    fold: int = 0,
    held_out_share: float = 0.0,
    seed: int = 0,
    presence: Callable[[Sample], frozenset[int]] | None = None,
) -> tuple[list[Sample], list[Sample]]:
    """Returns (training samples, held-out samples), each in the order of `samples`.

    Args:
        samples: All samples; those that the layout puts in "test" are in neither part.
        how: "contiguous": blocks, because neighbouring slices of a volume and frames of a video
            resemble one another, and any other split would leak. "random": by the seed.
            "stratified": by the seed, every part with its share of each class's samples (Sechidis
            et al. 2011). "group": whole groups, parts as equal as whole groups allow. "fixed": as
            the layout says: "val" is held out.
        folds: Number of parts, of which `fold` is held out; 0 makes no folds.
        fold: Which part, from 0.
        held_out_share: Without folds, the share of the samples to hold out, at least one if it is
            above 0; of "contiguous" the last ones.
        seed: Of what is random.
        presence: Sample -> ids of the classes in it; for "stratified".

    Raises:
        UserError: If the numbers do not fit, or the samples have no groups or parts to go by.
    """
    samples = [sample for sample in samples if sample.split != "test"]
    if how == "fixed":
        return _fixed(samples, folds=folds, held_out_share=held_out_share)
    if folds and held_out_share:
        raise UserError(
            f"`folds` ({folds}) and `held_out_share` ({held_out_share}) both hold out samples; "
            "leave one of them out."
        )
    if folds == 1 or folds > len(samples):
        raise UserError(
            f"`folds` ({folds}) must be 0, or from 2 to the number of samples, {len(samples)}."
        )
    if folds and not 0 <= fold < folds:
        raise UserError(f"`fold` ({fold}) must be from 0 to `folds` - 1 = {folds - 1}.")
    if not folds and not held_out_share:
        return list(samples), []
    shares = [1 / folds] * folds if folds else [1 - held_out_share, held_out_share]
    part = fold if folds else 1
    rng = np.random.Generator(np.random.Philox(key=[seed, 2**63]))
    if how == "group":
        parts = _by_group(samples, shares, rng)
    elif how == "stratified":
        assert presence is not None
        parts = _stratified([presence(sample) for sample in samples], shares, rng)
    else:
        order = np.arange(len(samples)) if how == "contiguous" else rng.permutation(len(samples))
        parts = _in_blocks(order, folds, held_out_share)
    training = [sample for sample, p in zip(samples, parts, strict=True) if p != part]
    held_out = [sample for sample, p in zip(samples, parts, strict=True) if p == part]
    if not training or not held_out:
        raise UserError(
            f"The split leaves {len(training)} sample(s) to train on and {len(held_out)} held out; "
            "change `folds` or `held_out_share`."
        )
    return training, held_out


def _in_blocks(order: np.ndarray, folds: int, held_out_share: float) -> np.ndarray:
    """Returns the part of each sample, parts being blocks of `order`."""
    count = len(order)
    parts = np.empty(count, np.int64)
    if folds:
        for number in range(folds):
            first, last = (count * n // folds for n in (number, number + 1))
            parts[order[first:last]] = number
    else:
        held_out = max(1, round(held_out_share * count))
        parts[order] = np.arange(count) >= count - held_out
    return parts


def leaks(
    training: Sequence[Sample],
    held_out: Sequence[Sample],
    *,
    decoded: bool = False,
    progress: Callable = iter,
) -> list[str]:
    """Returns a sentence for every held-out image that is a training image too.

    Args:
        training: Samples to train on.
        held_out: Samples held out.
        decoded: Whether images are compared pixel by pixel; otherwise byte by byte, for which only
            files of equal size are read.
        progress: Wraps the list of samples that are read.
    """
    if decoded:

        def digest(sample: Sample) -> bytes:
            pixels = images.read_image(sample.image.path, sample.image.page)
            kind = f"{pixels.shape} {pixels.dtype}".encode()
            return hashlib.sha256(kind + pixels.tobytes()).digest()

        candidates = [*training, *held_out] if held_out else []
    else:
        content_of = functools.cache(digest_of)

        def digest(sample: Sample) -> bytes:
            return content_of(sample.image.path) + str(sample.image.page).encode()

        training_sizes, held_out_sizes = (
            {sample: size_and_time(sample.image.path)[0] for sample in part}
            for part in (training, held_out)
        )
        common = set(training_sizes.values()) & set(held_out_sizes.values())
        sizes = training_sizes | held_out_sizes
        candidates = [sample for sample, size in sizes.items() if size in common]
    digests = {sample: digest(sample) for sample in progress(candidates)}
    known = {digests[sample]: sample for sample in training if sample in digests}
    return [
        f"{sample.image}: is held out, and equal to {known[digests[sample]].image}, which is "
        "trained on. Remove one of them."
        for sample in held_out
        if digests.get(sample) in known
    ]


def _fixed(
    samples: Sequence[Sample], *, folds: int, held_out_share: float
) -> tuple[list[Sample], list[Sample]]:
    if folds or held_out_share:
        raise UserError(
            "`split` fixed takes the parts of the layout; leave `folds` and `held_out_share` out."
        )
    held_out = [sample for sample in samples if sample.split == "val"]
    if not held_out:
        raise UserError(
            "`split` fixed needs samples marked val: a val folder, a val.txt, or a column named "
            "split."
        )
    return [sample for sample in samples if sample.split != "val"], held_out


def _by_group(
    samples: Sequence[Sample], shares: Sequence[float], rng: np.random.Generator
) -> np.ndarray:
    """Returns the part of each sample: groups, the largest first, go where most is missing."""
    sizes = collections.Counter(sample.group for sample in samples)
    if "" in sizes or len(sizes) < len(shares):
        raise UserError(
            f"`split` group needs a group for every sample and at least {len(shares)} groups; "
            f"there are {len(sizes) - ('' in sizes)}. Give `group_pattern`, or a column named "
            "group."
        )
    names = sorted(sizes)
    names = [names[n] for n in rng.permutation(len(names))]
    names.sort(key=lambda name: -sizes[name])
    missing = np.array(shares) * len(samples)
    part_of: dict[str, int] = {}
    for done, name in enumerate(names):
        part = max(
            _open_parts(len(shares), part_of.values(), len(names) - done), key=missing.__getitem__
        )
        part_of[name] = part
        missing[part] -= sizes[name]
    return np.array([part_of[sample.group] for sample in samples])


def _open_parts(count: int, filled: Collection[int], left: int) -> Sequence[int]:
    """Returns the parts of `count` that may get the next of `left` items.

    Those are all, or only the empty ones if there is no item to spare.
    """
    empty = [part for part in range(count) if part not in filled]
    return empty if len(empty) >= left else range(count)


def _stratified(
    presence: Sequence[frozenset[int]], shares: Sequence[float], rng: np.random.Generator
) -> np.ndarray:
    """Returns the part of each sample, by iterative stratification.

    The rarest class comes first; each of its samples goes where most of that class, and then of
    all, is missing.
    """
    parts = np.full(len(presence), -1)
    wanted = np.array(shares)
    missing = wanted * len(presence)
    classes = sorted(set[int]().union(*presence))
    missing_of = {c: wanted * sum(c in found for found in presence) for c in classes}
    order = rng.permutation(len(presence)).tolist()
    filled: set[int] = set()
    assigned = 0
    while order:
        left = {c: sum(c in presence[n] for n in order) for c in classes}
        rarest = min((c for c in classes if left[c]), key=left.__getitem__, default=None)
        chosen = [n for n in order if rarest is None or rarest in presence[n]]
        for number in chosen:
            wish = missing_of[rarest] if rarest is not None else missing
            open_parts = _open_parts(len(shares), filled, len(presence) - assigned)
            part = max(open_parts, key=lambda p: (wish[p], missing[p]))
            parts[number] = part
            filled.add(part)
            assigned += 1
            missing[part] -= 1
            for c in presence[number]:
                missing_of[c][part] -= 1
        taken = set(chosen)
        order = [n for n in order if n not in taken]
    return parts
