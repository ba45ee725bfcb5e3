"""The history of a run as CSV: one row per report, the same whether or not the run was interrupted.

history = History(run_dir / "history.csv", columns, resumed_at=step)
history.append({"step": 20, "train/loss": 0.7})
"""

from __future__ import annotations

import csv
import io
import os
import pathlib
from collections.abc import Mapping, Sequence

from unet_core.files import write_whole


class History:
    """Appends rows to a CSV file, first dropping those beyond the step a run goes on from.

    Args:
        path: The file; made if it does not exist.
        columns: The names of the columns, "step" the first.
        resumed_at: The last step whose row stays.
    """

    def __init__(self, path: str | os.PathLike, columns: Sequence[str], *, resumed_at: int = 0):
        self._path = pathlib.Path(path)
        self._columns = list(columns)
        kept = []
        if self._path.exists():
            rows = list(csv.reader(self._path.read_text().splitlines()))
            # A row cut short by a kill is the last one, and lies beyond every checkpoint.
            kept = [
                row for row in rows[1:] if len(row) == len(columns) and int(row[0]) <= resumed_at
            ]
        write_whole(self._path, _as_csv([self._columns, *kept]).encode())

    def append(self, row: Mapping[str, float]) -> None:
        """Appends one row and flushes it to disk; a column that `row` lacks stays empty.

        Raises:
            KeyError: If `row` has a column that the history has not.
            OSError: If it cannot be written.
        """
        unknown = set(row) - set(self._columns)
        if unknown:
            raise KeyError(f"The history has no column {', '.join(sorted(unknown))}.")
        cells = ["" if name not in row else _cell(row[name]) for name in self._columns]
        try:
            with self._path.open("a") as file:
                file.write(_as_csv([cells]))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error


def _cell(value: float) -> str:
    return str(value) if isinstance(value, int) else format(float(value), ".9g")


def _as_csv(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
