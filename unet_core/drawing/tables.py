"""Tables of scores, as text for the screen and as CSV."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence

from unet_core.files import write_whole


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table whose first column is flush left and whose others are flush right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(
            [
                cells[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True)),
            ]
        ).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, rows)])


def class_scores(scores: Mapping[str, float], class_names: Sequence[str]) -> str:
    """Returns the per-class scores of `metrics.scores` as a table, with the means below.

    F1 is not among them: it is the Dice.
    """
    columns = ("dice", "iou", "precision", "recall")
    rows = [
        [name, *(number(scores[f"{column}/{name}"]) for column in columns)] for name in class_names
    ]
    rows.append(
        ["mean", *(number(scores[f"{c}/mean"]) if f"{c}/mean" in scores else "" for c in columns)]
    )
    return table(["class", *columns], rows)


def number(value: float) -> str:
    """Returns `value` with four decimals, or a dash if it is not defined."""
    return "-" if value != value else f"{value:.4f}"


def write_csv(
    path: str | os.PathLike, first_column: str, rows: Mapping[str, Mapping[str, float]]
) -> None:
    """Writes one row per key of `rows`, whole or not at all; what is not defined stays empty.

    Raises:
        OSError: If the file cannot be written.
    """
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    cells = []
    for name, row in rows.items():
        values = (row.get(column, float("nan")) for column in columns)
        cells.append([name, *("" if v != v else format(v, ".9g") for v in values)])
    write_texts(path, [first_column, *columns], cells)


def write_texts(
    path: str | os.PathLike, header: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """Writes rows of texts as CSV, whole or not at all.

    Raises:
        OSError: If the file cannot be written.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_whole(path, text.getvalue().encode())
