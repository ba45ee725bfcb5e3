"""What predictions have written in a folder, by their own list, `predicted.jsonl`.

A prediction that was stopped or killed goes on by it, and an input folder leaves out by it what an
earlier prediction has put there.

predicted = Predicted(folder)
left = predicted.unfinished(pictures, made_by, again=False)     # may refuse
for name in left:
    predicted.start(name, source, paths)
    ...                                                         # writes `paths`, each whole
    predicted.finish(name)
predicted.end()

Each line is a JSON object, appended and never changed: a run with what it was made by, a picture
that is begun with its files, a picture that is finished, and the end of a run. A line that was cut
by a crash counts as not written.

Each share of a prediction (`unet_core.shards`) appends to a list of its own, such as
`predicted-3-of-16.jsonl`, so that none waits for another. All lists of a folder are read as one: of
a picture that stands in several, what was begun last counts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from unet_core.data.samples import Source
from unet_core.data.stamps import size_and_time
from unet_core.errors import UserError
from unet_core.files import open_to_append, os_errors, printable, read_bytes
from unet_core.shards import Shard, files_of, is_named

NAME = "predicted.jsonl"
_FORMAT = 1
_MOST_BYTES = 2**31


class _Line(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A line of the list; which keys it has tells what it says.

    Attributes:
        run: Of which run it is.
        format: That of the list; with it, the run begins.
        made_by: The settings of the run that begins.
        names: Of the run of a share, the names of its pictures, in their order.
        inputs: Of the run of a share, a digest of the pictures of all shares.
        begun: The name of a picture.
        at: When it was begun, in nanoseconds since 1970; 0 in lists of versions before.
        source: Its file and page.
        stamp: Its size and time of change.
        files: Names of the files that are written of it.
        finished: The name of a picture.
        ended: Whether the run has come to its end.
    """

    run: str
    format: int | None = None
    made_by: dict[str, str] | None = None
    names: list[str] = []
    inputs: str = ""
    begun: str | None = None
    at: int = 0
    source: str = ""
    stamp: str = ""
    files: list[str] = []
    finished: str | None = None
    ended: bool = False


@dataclasses.dataclass
class _Picture:
    run: str
    source: str
    stamp: str
    files: Sequence[str]
    at: int = 0
    finished: bool = False


_NONE = _Picture("", "", "", ())


class _List:
    """What one list says.

    Attributes:
        runs: The line that each run begins with, in their order.
        pictures: What was last begun of each name.
        files: The names of all files.
        ended: The runs that have come to their end.
        is_cut: Whether its last line is not whole.
    """

    def __init__(self, path: pathlib.Path):
        self.runs: dict[str, _Line] = {}
        self.pictures: dict[str, _Picture] = {}
        self.files: set[str] = set()
        self.ended: set[str] = set()
        self.is_cut = False
        if os.path.lexists(path):
            self._read(path)

    def take(self, line: _Line) -> None:
        """Adds what a line says."""
        if line.made_by is not None:
            self.runs[line.run] = line
        if line.begun is not None:
            picture = _Picture(line.run, line.source, line.stamp, line.files, line.at)
            self.pictures[line.begun] = picture
            self.files.update(line.files)
        if line.finished in self.pictures:
            self.pictures[line.finished].finished = True
        if line.ended:
            self.ended.add(line.run)

    @property
    def last(self) -> str:
        """The last run, empty if there is none."""
        return next(reversed(self.runs), "")

    def _read(self, path: pathlib.Path) -> None:
        way = "Move it away; what it lists then counts as yours."
        with os_errors(path, "cannot be read as the list of what was predicted", way):
            content = read_bytes(path, most_bytes=_MOST_BYTES)
        self.is_cut = not content.endswith(b"\n")
        for number, text in enumerate(content.split(b"\n"), 1):
            if not text:
                continue
            try:
                line = msgspec.json.decode(text, type=_Line)
            except (msgspec.DecodeError, ValueError, RecursionError) as error:
                # Of a crash in writing; what came later is in a line of its own.
                if "truncated" in str(error):
                    continue
                raise UserError(
                    f"{path}, line {number}: cannot be read as the list of what was predicted "
                    f"({error}). {way}"
                ) from error
            if line.format not in (None, _FORMAT):
                raise UserError(
                    f"{path}: has format {line.format}, and this version reads format "
                    f"{_FORMAT}. It was written by a newer version of unet_core: use that one."
                )
            self.take(line)


@dataclasses.dataclass(frozen=True)
class ShareRun:
    """The last run of a share.

    Attributes:
        made_by: The settings and weights, as text, that decide what is written.
        names: Its pictures, in their order.
        inputs: A digest of the pictures of all shares.
        has_ended: Whether it has come to its end.
    """

    made_by: Mapping[str, str]
    names: Sequence[str]
    inputs: str
    has_ended: bool


class Predicted:
    """The list of a folder; nothing is written before the first picture is begun.

    Args:
        folder: The folder, there or not.
        shard: The share that is predicted; None is all.

    Attributes:
        path: The list that is written.
        shard: As given.

    Raises:
        UserError: If there is a list that cannot be read.
    """

    def __init__(self, folder: str | os.PathLike, shard: Shard | None = None):
        folder = pathlib.Path(folder)
        self.path = folder / (shard.named(NAME) if shard else NAME)
        self.shard = shard
        self._own = _List(self.path)
        self._shares = {each: _List(path) for each, path in files_of(folder, NAME).items()}
        if shard:
            self._shares[shard] = self._own
        whole = _List(folder / NAME) if shard else self._own
        # Of all lists: what was begun last of each name, what runs were made by, and all files.
        self._newest: dict[str, _Picture] = {}
        self._made_by: dict[str, Mapping[str, str]] = {}
        self._files: set[str] = set()
        others = [each for each in (whole, *self._shares.values()) if each is not self._own]
        # Of two that were begun at the same time, one being a copy, its own.
        for each in (*others, self._own):
            self._add(each)
        self._run = ""
        self._begins: _Line | None = None
        self._inputs = ""
        self._done_elsewhere: list[str] = []

    def owns(self, path: pathlib.Path) -> bool:
        """Returns whether a file in the folder was written by a prediction."""
        return path.name in self._files or is_list(path.name)

    def check_free(self, paths: Iterable[pathlib.Path]) -> None:
        """Checks that no file in the folder is of somebody else.

        Raises:
            UserError: If one of them is there and no prediction has written it.
        """
        foreign = [path for path in paths if os.path.lexists(path) and not self.owns(path)]
        if foreign:
            more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
            raise UserError(
                f"{foreign[0]}{more}: there already, and not in the list of what predictions have "
                f"written there ({NAME}). Move it, or choose another `output_dir`."
            )

    def unfinished(
        self,
        pictures: Mapping[str, Source],
        made_by: Mapping[str, str],
        *,
        again: bool,
        inputs: str = "",
    ) -> list[str]:
        """Returns the names of those pictures that are not finished, and begins a run with them.

        One is finished if all its files are there, made by the same, of a file of the same size and
        time of change.

        Args:
            pictures: By name.
            made_by: The settings and weights, as text, that decide what is written.
            again: Whether finished pictures are replaced: all but those of a run of the same
                settings that was stopped or killed, which goes on.
            inputs: Of a share, a digest of the pictures of all shares.

        Raises:
            UserError: If one is finished by other settings, or is that of another file of the same
                name, and `again` is not set.
        """
        last, own = self._own.last, self._own.runs
        goes_on = bool(last) and last not in self._own.ended
        goes_on = goes_on and (own[last].made_by, own[last].inputs) == (made_by, inputs)
        self._run = last if goes_on else secrets.token_hex(4)
        self._inputs = inputs
        if not goes_on:
            self._begins = _Line(run=self._run, format=_FORMAT, made_by=dict(made_by))
        if self.shard and self._begins:
            self._begins.names, self._begins.inputs = list(pictures), inputs
        left = []
        for name, source in pictures.items():
            found = self._last(name)
            there = [(self.path.parent / file).is_file() for file in found.files]
            if not found.finished or not any(there):
                left.append(name)
                continue
            is_same = found.stamp == _stamp(source)
            if again:
                is_done = is_same and goes_on and found.run == self._run
            else:
                self._check(name, source, found, made_by, is_same)
                is_done = is_same
            if not is_done or not all(there):
                left.append(name)
            elif found is not self._own.pictures.get(name):
                self._done_elsewhere.append(name)
        return left

    def begin(self) -> None:
        """Notes what other lists say of pictures that are finished, and the run of a share.

        The list then tells of all its pictures, and that of a share of it if nothing is left to do.

        Raises:
            OSError: If the list cannot be written.
        """
        if self.shard is None and not self._done_elsewhere:
            return
        lines = []
        for name in self._done_elsewhere:
            found = self._last(name)
            lines += self._lines_of(name, found)
        self._done_elsewhere = []
        self._append(*lines)

    def is_finished(self, name: str) -> bool:
        """Returns whether what was begun under a name, by whatever settings, was finished.

        Of a share it must have been begun with the same pictures.
        """
        found = self._own.pictures.get(name, _NONE)
        begun = self._own.runs.get(found.run)
        return found.finished and (not begun or begun.inputs == self._inputs)

    def start(self, name: str, source: Source | None, paths: Iterable[pathlib.Path]) -> None:
        """Notes, before they are written, the files of a picture; of all, if `source` is None.

        Raises:
            OSError: If the list cannot be written.
        """
        files = [path.name for path in paths]
        # Later than what was begun before, also by a machine whose clock is ahead.
        at = max(time.time_ns(), self._last(name).at + 1)
        line = _Line(run=self._run, begun=name, files=files, at=at)
        if source is not None:
            line.source, line.stamp = printable(str(source)), _stamp(source)
        self._append(line)

    def finish(self, name: str) -> None:
        """Notes that a picture is finished.

        Raises:
            OSError: If the list cannot be written.
        """
        self._append(_Line(run=self._run, finished=name))

    def end(self) -> None:
        """Notes that the run has come to its end.

        Raises:
            OSError: If the list cannot be written.
        """
        if self._begins is None:
            self._append(_Line(run=self._run, ended=True))

    def _check(
        self,
        name: str,
        source: Source,
        found: _Picture,
        made_by: Mapping[str, str],
        is_same: bool,
    ) -> None:
        """Raises UserError if a finished picture may not be taken as it is, nor replaced."""
        before = self._made_by.get(found.run, {})
        differing = []
        for key, here in made_by.items():
            there = before.get(key)
            if there != here:
                pair = f"`{key}` ({there} there, {here} here)"
                differing.append("other weights" if key == "weights" else pair)
        first = found.files[0] if found.files else name
        if differing:
            raise UserError(
                f"{self.path.parent / first}: was made otherwise: {'; '.join(differing)}."
                " Give the same to go on with what is there, set `overwrite` to replace it, or "
                "choose another `output_dir`."
            )
        if not is_same and found.source != printable(str(source)):
            raise UserError(
                f"{self.path.parent / first}: is the prediction of {found.source}, and would be "
                f"replaced by that of {source}. Set `overwrite`, or choose another `output_dir`."
            )

    def shares(self) -> dict[Shard, ShareRun]:
        """Returns the last run of each share whose list is there, in the order of their numbers."""
        found = {}
        for shard, each in self._shares.items():
            if each.last:
                line = each.runs[each.last]
                has_ended = each.last in each.ended
                found[shard] = ShareRun(line.made_by or {}, line.names, line.inputs, has_ended)
        return found

    def is_made(self, name: str, made_by: Mapping[str, str]) -> bool:
        """Returns whether a picture is finished by these settings.

        Raises:
            UserError: If it was finished by others since, or a file of it is gone.
        """
        found = self._last(name)
        if not found.finished:
            return False
        gone = [file for file in found.files if not (self.path.parent / file).is_file()]
        if gone:
            raise UserError(
                f"{self.path.parent / gone[0]}: was predicted, and is gone. Start the command of "
                "its share again, which predicts it anew."
            )
        if self._made_by.get(found.run, {}) != made_by:
            raise UserError(
                f"{self.path.parent / found.files[0]}: was predicted anew by other weights or "
                "settings than its share. Start the shares again with `overwrite`, or choose "
                "another `output_dir`."
            )
        return True

    def source_of(self, name: str) -> str:
        """Returns the file and page that a picture was made of, or its name if it was not begun."""
        return self._last(name).source or name

    def merge(self, made_by: Mapping[str, str], names: Iterable[str]) -> None:
        """Puts finished pictures of shares on the list of the folder, as one run has made them.

        Args:
            made_by: The settings of all shares.
            names: The pictures, in their order.

        Raises:
            OSError: If the list cannot be written.
        """
        names = [name for name in names if self._last(name) is not self._own.pictures.get(name)]
        self.unfinished({}, made_by, again=False)
        self._append(*(line for name in names for line in self._lines_of(name, self._last(name))))

    def _last(self, name: str) -> _Picture:
        """Returns what was last begun of a name, in whichever list."""
        return self._newest.get(name, _NONE)

    def _add(self, found: _List) -> None:
        """Adds what a list says to what all say."""
        for name, picture in found.pictures.items():
            self._see(name, picture)
        for run, line in found.runs.items():
            self._made_by[run] = line.made_by or {}
        self._files |= found.files

    def _see(self, name: str, picture: _Picture) -> None:
        if picture.at >= self._newest.get(name, _NONE).at:
            self._newest[name] = picture
        self._files.update(picture.files)

    def _lines_of(self, name: str, found: _Picture) -> list[_Line]:
        """Returns the lines by which the run says that it has a finished picture."""
        begun = _Line(run=self._run, begun=name, files=list(found.files), at=found.at)
        begun.source, begun.stamp = found.source, found.stamp
        return [begun, _Line(run=self._run, finished=name)]

    def _append(self, *lines: _Line) -> None:
        lines = lines if self._begins is None else (self._begins, *lines)
        if not lines:
            return
        content = b"".join(msgspec.json.encode(each) + b"\n" for each in lines)
        with open_to_append(self.path) as file:
            file.write((b"\n" if self._own.is_cut else b"") + content)
        self._begins, self._own.is_cut = None, False
        for each in lines:
            self._own.take(each)
            if each.begun is not None:
                self._see(each.begun, self._own.pictures[each.begun])
            if each.made_by is not None:
                self._made_by[each.run] = each.made_by


def is_list(name: str) -> bool:
    """Returns whether a file has the name of a list, of a folder or of a share."""
    return name == NAME or is_named(NAME, name)


def digest_of(pictures: Mapping[str, Source]) -> str:
    """Returns a digest of the names of pictures, and of their files and pages, in their order."""
    lines = (f"{name}\t{printable(str(of.path.name))}\t{of.page}" for name, of in pictures.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _stamp(source: Source) -> str:
    """Returns what changes when a file does; empty if it cannot be seen."""
    try:
        size, time_ns = size_and_time(source.path)
    except OSError:
        return ""
    return f"{size} bytes, {time_ns} ns"
