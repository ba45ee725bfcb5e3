"""The history of a run as CSV: one row per report, the same whether or not the run was interrupted.

All cells are numbers, except those of a column "note", which are text.

history = History(run_dir / "history.csv", columns, resumed_at=step)
history.append({"step": 20, "train/loss": 0.7})
columns, rows = read_history(run_dir / "history.csv")
"""

from __future__ import annotations

import csv
import io
import os
import pathlib
import re
from collections.abc import Mapping, Sequence

import msgspec

from unet_core.console import to_json
from unet_core.errors import UserError
from unet_core.files import open_to_append, os_errors, read_bytes, write_whole

NOTE = "note"
_STEP = "step"
_MOST_BYTES = 2**30
_WAY = "Put back the history of the run, or move the file away."


class History:
    """Appends rows to a CSV file, first dropping those beyond the step a run goes on from.

    A file that has other columns keeps them: rows are matched by the names of the columns.

    Args:
        path: The file; made if it does not exist.
        columns: The names of the columns, "step" the first.
        resumed_at: The last step whose row stays.

    Raises:
        UserError: If the file is not the history of a run; it stays as it is.
        OSError: If it cannot be written; the error names it.
    """

    def __init__(self, path: str | os.PathLike, columns: Sequence[str], *, resumed_at: int = 0):
        self._path = pathlib.Path(path)
        rows: list[dict[str, str]] = []
        there: list[str] = []
        if os.path.lexists(self._path):
            there, rows = read_history(self._path)
        kept = [row for row in rows if int(row[_STEP]) <= resumed_at]
        self._columns = list(dict.fromkeys([*columns, *(there if kept else ())]))
        cells = [[row.get(name, "") for name in self._columns] for row in kept]
        write_whole(self._path, _as_csv([self._columns, *cells]).encode())

    def append(self, row: Mapping[str, float | str]) -> None:
        """Appends one row and flushes it to disk; a column that `row` lacks stays empty.

        Raises:
            KeyError: If `row` has a column that the history has not.
            OSError: If it cannot be written.
        """
        unknown = set(row) - set(self._columns)
        if unknown:
            raise KeyError(f"The history has no column {', '.join(sorted(unknown))}.")
        cells = ["" if name not in row else _cell(row[name]) for name in self._columns]
        with open_to_append(self._path) as file:
            file.write(_as_csv([cells]).encode())
            file.flush()
            os.fsync(file.fileno())


class JsonLines:
    """Appends JSON objects to a file, a line each, first dropping those beyond the resumed step.

    For programs that read along; speeds may be in it, which no repetition has alike.

    Args:
        path: The file; made if it does not exist.
        resumed_at: The last step whose lines stay.

    Raises:
        UserError: If the file holds something else; it stays as it is.
        OSError: If it cannot be written; the error names it.
    """

    def __init__(self, path: str | os.PathLike, *, resumed_at: int = 0):
        self._path = pathlib.Path(path)
        kept = []
        if os.path.lexists(self._path):
            with os_errors(self._path, "cannot be read", _WAY):
                content = read_bytes(self._path, most_bytes=_MOST_BYTES)
            # A line that a kill has cut short lies beyond every checkpoint.
            for number, line in enumerate(content.split(b"\n")[:-1], 1):
                try:
                    step = msgspec.json.decode(line, type=_Line).step
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    rule = f"must be a JSON object with a step ({error})"
                    raise _foreign(self._path, number, rule) from error
                if step <= resumed_at:
                    kept.append(line + b"\n")
        write_whole(self._path, b"".join(kept))

    def append(self, row: Mapping[str, float | str]) -> None:
        """Appends one object; what is not finite becomes null.

        Raises:
            OSError: If it cannot be written.
        """
        with open_to_append(self._path) as file:
            file.write(f"{to_json(dict(row))}\n".encode())


class _Line(msgspec.Struct):
    step: int


def read_columns(path: str | os.PathLike) -> dict[str, list[float]]:
    """Returns the numbers of a history by column, NaN where a cell is empty; not those of "note".

    Raises:
        UserError: If the file is not the history of a run.
    """
    names, rows = read_history(path)
    return {name: [float(row[name] or "nan") for row in rows] for name in names if name != NOTE}


def read_history(path: str | os.PathLike) -> tuple[list[str], list[dict[str, str]]]:
    """Returns the columns and the rows of a history.

    Raises:
        UserError: If it is none; the message names the line.
    """
    path = pathlib.Path(path)
    with os_errors(path, "the history of the run cannot be read", _WAY):
        content = read_bytes(path, most_bytes=_MOST_BYTES)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _foreign(path, line, f"holds bytes that are no UTF-8 ({error.reason})") from error
    # A row that a kill has cut short is the last one, and lies beyond every checkpoint.
    cut_line = 0 if text.endswith("\n") else text.count("\n") + 1
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: list[str] = []
    rows = []
    try:
        for cells in reader:
            if not columns:
                columns = cells
                if cells[:1] != [_STEP] or len(set(cells)) < len(cells):
                    rule = f"must name the columns once each, {_STEP!r} the first"
                    raise _foreign(path, reader.line_num, rule)
                continue
            problem = _problem_of(cells, columns)
            if problem and reader.line_num != cut_line:
                raise _foreign(path, reader.line_num, problem)
            if not problem:
                rows.append(dict(zip(columns, cells, strict=True)))
    except csv.Error as error:
        if reader.line_num != cut_line:
            raise _foreign(path, reader.line_num, f"is no CSV ({error})") from error
    return columns, rows


def _problem_of(cells: Sequence[str], columns: Sequence[str]) -> str | None:
    """Returns what is wrong with a row, if anything is."""
    if len(cells) != len(columns):
        return f"has {len(cells)} cells, and the first line names {len(columns)} columns"
    if not re.fullmatch(r"[0-9]{1,18}", cells[0]):
        return f"must begin with a step, a whole number from 0. Here it is {cells[0]:.40}"
    for name, cell in zip(columns[1:], cells[1:], strict=True):
        try:
            float("nan" if name == NOTE else cell or "nan")
        except ValueError:
            return f"must hold a number in the column {name:.40}. Here it is {cell:.40}"
    return None


def _foreign(path: pathlib.Path, line: int, problem: str) -> UserError:
    return UserError(
        f"{path}, line {line}: {problem}. So this is not what the run has written, and it stays as "
        f"it is. {_WAY}"
    )


def _cell(value: float | str) -> str:
    return str(value) if isinstance(value, (int, str)) else format(float(value), ".9g")


def _as_csv(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
