"""Shares of a list of inputs, each for a process of its own, on whatever machine.

share = Shard.parse("3/16")
mine = share.of(images)                          # every 16th image, from the third on
interleaved([Shard(n, 16).of(images) for n in range(1, 17)]) == images
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

from unet_core.errors import UserError

Item = TypeVar("Item")
# Of a text that is named in a message; a digest is longer.
_MOST_SHOWN = 40
_TEXT = re.compile(r"([0-9]{1,6})/([0-9]{1,6})")


@dataclasses.dataclass(frozen=True, order=True)
class Shard:
    """One share of several.

    Attributes:
        number: Which it is, counted from 1.
        count: How many shares there are.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Returns the share that is written as 3/16.

        Raises:
            UserError: If it is none.
        """
        found = _TEXT.fullmatch(text)
        shard = cls(*map(int, found.groups())) if found else cls(0, 0)
        if not 1 <= shard.number <= shard.count:
            raise UserError(
                f"`shard` ({text!r}) must be NUMBER/COUNT with a number from 1 to the count, such "
                "as 3/16: shares are counted from 1, as in a Slurm array of --array=1-16."
            )
        return shard

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """Returns every `count`-th item, so that sizes differ by one at most."""
        return items[self.number - 1 :: self.count]

    def named(self, name: str) -> str:
        """Returns the name of this share's file: `a.json` gives `a-3-of-16.json`."""
        stem, dot, suffix = name.partition(".")
        return f"{stem}-{self.number}-of-{self.count}{dot}{suffix}"


def is_named(name: str, file_name: str) -> bool:
    """Returns whether `file_name` is what `Shard.named` makes of `name` for some share."""
    return _shard_of(name, file_name) is not None


def files_of(folder: pathlib.Path, name: str) -> dict[Shard, pathlib.Path]:
    """Returns the files in a folder that `Shard.named` has named, by share, in their order."""
    found: dict[Shard, pathlib.Path] = {}
    if folder.is_dir():
        for file_name in os.listdir(folder):
            shard = _shard_of(name, file_name)
            if shard is not None:
                found[shard] = folder / file_name
    return dict(sorted(found.items()))


def _shard_of(name: str, file_name: str) -> Shard | None:
    stem, dot, suffix = name.partition(".")
    pattern = rf"{re.escape(stem)}-([0-9]{{1,6}})-of-([0-9]{{1,6}}){re.escape(dot + suffix)}"
    found = re.fullmatch(pattern, file_name)
    if not found:
        return None
    shard = Shard(*map(int, found.groups()))
    return shard if 1 <= shard.number <= shard.count and shard.named(name) == file_name else None


def interleaved(parts: Sequence[Sequence[Item]]) -> list[Item]:
    """Returns the items of all shares, in the order of their numbers, as they were before."""
    longest = max(map(len, parts), default=0)
    return [part[row] for row in range(longest) for part in parts if row < len(part)]


def check_complete(
    folder: pathlib.Path, name: str, shards: Collection[Shard], unfinished: Collection[Shard] = ()
) -> None:
    """Checks that all shares of one count are there, and finished.

    Args:
        folder: Where their files are.
        name: The name that each file is made of.
        shards: Those whose files are there, at least one.
        unfinished: Those of them that are not done.

    Raises:
        UserError: If there are several counts, or one is missing or not finished; all are named.
    """
    counts = sorted({shard.count for shard in shards})
    if len(counts) > 1:
        files = Shard(1, counts[0]).named(name).replace("-1-", "-*-", 1)
        raise UserError(
            f"{folder}: holds shares of {' and of '.join(map(str, counts))}, which cannot be "
            f"merged. Move the files of those that are not meant elsewhere, such as {files}."
        )
    missing = [Shard(n, counts[0]) for n in range(1, counts[0] + 1)]
    missing = [shard for shard in missing if shard not in shards]
    found = {"missing": missing, "not finished": sorted(unfinished)}
    told = [f"{_listed(group)} {word}" for word, group in found.items() if group]
    if told:
        first = min([*missing, *unfinished])
        raise UserError(
            f"{folder}: of {counts[0]} share(s), {'; '.join(told)}. Start the same command for "
            f"each, with its `shard` ({first}), and merge then."
        )


def check_same(folder: pathlib.Path, made_by: Mapping[Shard, Mapping[str, str]]) -> None:
    """Checks that all shares were made by the same weights and settings, of the same inputs.

    Args:
        folder: Where their files are.
        made_by: Of each share what it was made by, as text, by name.

    Raises:
        UserError: If not; the message names what differs, and between which.
    """
    (first, expected), *others = made_by.items()
    for shard, found in others:
        told = []
        for key in dict.fromkeys([*expected, *found]):
            there, here = expected.get(key), found.get(key)
            if there != here:
                is_long = max(len(text or "") for text in (there, here)) > _MOST_SHOWN
                told.append(key if is_long else f"{key} ({there} in {first}, {here} in {shard})")
        if told:
            raise UserError(
                f"{folder}: shares {first} and {shard} differ in {'; '.join(told)}, so they cannot "
                "be merged. Start that which is not meant again, with the command of the others."
            )


def _listed(shards: Sequence[Shard]) -> str:
    return f"{', '.join(map(str, shards))} {'is' if len(shards) == 1 else 'are'}"
