"""Objects as a table, CSV: a row for each, with its measures."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from unet_core.outputs.objects import ObjectFormat, Picture


def make_table(pictures: Sequence[Picture]) -> bytes:
    """Returns the rows of all objects, under one header; what is not known is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(pictures[0].objects.columns)
    for picture in pictures:
        rows = zip(*picture.objects.columns.values(), strict=True)
        writer.writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue().encode()


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if value != value else format(value, ".9g")
    return "" if value is None else str(value)


CSV = ObjectFormat("objects.csv", make_table)
