"""Files written whole or not at all, and numbers as JSON can hold them."""

from __future__ import annotations

import contextlib
import os
import pathlib
from typing import Any


def write_whole(path: str | os.PathLike, content: bytes) -> None:
    """Writes `content` beside `path` and renames it, so that a file of that name is whole.

    Raises:
        OSError: If it cannot be written; the error names the file.
    """
    path = pathlib.Path(path)
    partial = path.with_name(path.name + ".part")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error


def without_nan(value: Any) -> Any:
    """Returns nested dicts and lists with None in place of every NaN."""
    if isinstance(value, dict):
        return {name: without_nan(item) for name, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value
