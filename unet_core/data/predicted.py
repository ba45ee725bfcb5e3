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
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import secrets
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from unet_core.data.samples import Source
from unet_core.data.stamps import size_and_time
from unet_core.errors import UserError
from unet_core.files import open_to_append, os_errors, printable, read_bytes

NAME = "predicted.jsonl"
_FORMAT = 1
_MOST_BYTES = 2**31


class _Line(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A line of the list; which keys it has tells what it says.

    Attributes:
        run: Of which run it is.
        format: That of the list; with it, the run begins.
        made_by: The settings of the run that begins.
        begun: The name of a picture.
        source: Its file and page.
        stamp: Its size and time of change.
        files: Names of the files that are written of it.
        finished: The name of a picture.
        ended: Whether the run has come to its end.
    """

    run: str
    format: int | None = None
    made_by: dict[str, str] | None = None
    begun: str | None = None
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
    finished: bool = False


_NONE = _Picture("", "", "", ())


class Predicted:
    """The list of a folder; nothing is written before the first picture is begun.

    Args:
        folder: The folder, there or not.

    Raises:
        UserError: If there is a list that cannot be read.
    """

    def __init__(self, folder: str | os.PathLike):
        self.path = pathlib.Path(folder, NAME)
        self._made_by: dict[str, dict[str, str]] = {}
        self._pictures: dict[str, _Picture] = {}
        self._files: set[str] = set()
        self._ended: set[str] = set()
        self._run = ""
        self._begins: _Line | None = None
        self._is_cut = False
        if os.path.lexists(self.path):
            self._read()

    def owns(self, path: pathlib.Path) -> bool:
        """Returns whether a file in the folder was written by a prediction."""
        return path == self.path or path.name in self._files

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
        self, pictures: Mapping[str, Source], made_by: Mapping[str, str], *, again: bool
    ) -> list[str]:
        """Returns the names of those pictures that are not finished, and begins a run with them.

        One is finished if all its files are there, made by the same, of a file of the same size and
        time of change.

        Args:
            pictures: By name.
            made_by: The settings and weights, as text, that decide what is written.
            again: Whether finished pictures are replaced: all but those of a run of the same
                settings that was stopped or killed, which goes on.

        Raises:
            UserError: If one is finished by other settings, or is that of another file of the same
                name, and `again` is not set.
        """
        last = next(reversed(self._made_by), "")
        goes_on = bool(last) and last not in self._ended and self._made_by[last] == made_by
        self._run = last if goes_on else secrets.token_hex(4)
        if not goes_on:
            self._begins = _Line(run=self._run, format=_FORMAT, made_by=dict(made_by))
        left = []
        for name, source in pictures.items():
            found = self._pictures.get(name, _NONE)
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
        return left

    def is_finished(self, name: str) -> bool:
        """Returns whether what was begun under a name, by whatever settings, was finished."""
        return name in self._pictures and self._pictures[name].finished

    def start(self, name: str, source: Source | None, paths: Iterable[pathlib.Path]) -> None:
        """Notes, before they are written, the files of a picture; of all, if `source` is None.

        Raises:
            OSError: If the list cannot be written.
        """
        line = _Line(run=self._run, begun=name, files=[path.name for path in paths])
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

    def _append(self, line: _Line) -> None:
        lines = [line] if self._begins is None else [self._begins, line]
        content = b"".join(msgspec.json.encode(each) + b"\n" for each in lines)
        with open_to_append(self.path) as file:
            file.write((b"\n" if self._is_cut else b"") + content)
        self._begins, self._is_cut = None, False
        for each in lines:
            self._take(each)

    def _read(self) -> None:
        way = "Move it away; what it lists then counts as yours."
        with os_errors(self.path, "cannot be read as the list of what was predicted", way):
            content = read_bytes(self.path, most_bytes=_MOST_BYTES)
        self._is_cut = not content.endswith(b"\n")
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
                    f"{self.path}, line {number}: cannot be read as the list of what was predicted "
                    f"({error}). {way}"
                ) from error
            if line.format not in (None, _FORMAT):
                raise UserError(
                    f"{self.path}: has format {line.format}, and this version reads format "
                    f"{_FORMAT}. It was written by a newer version of unet_core: use that one."
                )
            self._take(line)

    def _take(self, line: _Line) -> None:
        """Adds what a line says."""
        if line.made_by is not None:
            self._made_by[line.run] = line.made_by
        if line.begun is not None:
            self._pictures[line.begun] = _Picture(line.run, line.source, line.stamp, line.files)
            self._files.update(line.files)
        if line.finished in self._pictures:
            self._pictures[line.finished].finished = True
        if line.ended:
            self._ended.add(line.run)


def _stamp(source: Source) -> str:
    """Returns what changes when a file does; empty if it cannot be seen."""
    try:
        size, time_ns = size_and_time(source.path)
    except OSError:
        return ""
    return f"{size} bytes, {time_ns} ns"
