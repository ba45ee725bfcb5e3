"""The predictions of all shares of a folder, put together.

merged = merge_predictions("my_masks")          # None if no share has predicted there

The files of pictures are there already; what is written is what one process writes for all of
them: the list of the folder, and the files about the objects of all pictures. The files of the
shares stay.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence

from unet_core.data.predicted import NAME, Predicted, ShareRun
from unet_core.errors import UserError
from unet_core.files import os_errors, write_whole
from unet_core.outputs.objects import ObjectFormat
from unet_core.settings.prediction import OBJECT_FILES
from unet_core.shards import Shard, check_complete, check_same, interleaved

Merge = Callable[[Mapping[pathlib.Path, Sequence[int]]], bytes]


@dataclasses.dataclass(frozen=True)
class MergedPredictions:
    """What `merge_predictions` has done.

    Attributes:
        shares: How many there are.
        pictures: The pictures of all.
        failed: Those of them that could not be predicted, as files and pages.
    """

    shares: int
    pictures: int
    failed: Sequence[str]


def merge_predictions(
    folder: str | os.PathLike, *, claim: Callable[..., None] | None = None
) -> MergedPredictions | None:
    """Puts together what the shares have left in a folder; None if there are none.

    Args:
        folder: The folder that all shares were predicted to.
        claim: Called with all files that are written, before any is; it may refuse.

    Raises:
        UserError: If a share is missing or not finished, they were made by different weights or
            settings or of different inputs, pictures were predicted anew since, or a file is there
            that no prediction has written.
    """
    folder = pathlib.Path(folder)
    predicted = Predicted(folder)
    shares = predicted.shares()
    if not shares:
        return None
    unfinished = [shard for shard, run in shares.items() if not run.has_ended]
    check_complete(folder, NAME, shares, unfinished)
    told = {shard: {**run.made_by, "inputs": run.inputs} for shard, run in shares.items()}
    check_same(folder, told)
    made_by = next(iter(shares.values())).made_by
    names = interleaved([run.names for run in shares.values()])
    finished = [name for name in names if predicted.is_made(name, made_by)]
    parts = _parts_of_objects(folder, shares, finished, made_by)
    of_all = [folder / name for name in parts]
    predicted.check_free(of_all)
    with os_errors(folder, "the shares cannot be merged", "Make room, or permit writing."):
        if claim is not None:
            claim(predicted.path, *of_all)
        predicted.merge(made_by, finished)
        if of_all:
            predicted.start("", None, of_all)
        for name, (merge, places) in parts.items():
            write_whole(folder / name, merge(places))
        if of_all:
            predicted.finish("")
        predicted.end()
    failed = set(names).difference(finished)
    sources = [predicted.source_of(name) for name in names if name in failed]
    return MergedPredictions(len(shares), len(names), sources)


def _parts_of_objects(
    folder: pathlib.Path,
    shares: Mapping[Shard, ShareRun],
    finished: Sequence[str],
    made_by: Mapping[str, str],
) -> dict[str, tuple[Merge, dict[pathlib.Path, list[int]]]]:
    """Returns of each file about all pictures how it is merged, and the files of the shares.

    Raises:
        UserError: If the settings name a format that there is not.
    """
    wanted = [name for name in made_by.get("objects", "").split(",") if name]
    unknown = [name for name in wanted if name not in OBJECT_FILES]
    if unknown:
        raise UserError(
            f"{folder / NAME}: the shares were predicted with `objects` {unknown[0]}, and this "
            f"version has {', '.join(OBJECT_FILES)}. Merge with the version that predicted."
        )
    place_of = {name: place for place, name in enumerate(finished)}
    formats: list[ObjectFormat] = [OBJECT_FILES[name] for name in wanted]
    found = {}
    for each in formats:
        if each.merge is not None:
            places = {
                folder / shard.named(each.name): [place_of[n] for n in run.names if n in place_of]
                for shard, run in shares.items()
            }
            found[each.name] = each.merge, places
    return found
