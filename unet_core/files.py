"""Folders of this machine, files written whole or not at all, and numbers as JSON can hold them."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import re
import warnings
from typing import Any

from unet_core.errors import UserError

# `scheme://`, which `pathlib` shortens to `scheme:/`; chained as in fsspec's `simplecache::s3://`.
# One letter is a drive.
_SCHEME = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.:-]+:/")
# What file systems answer that cannot open or flush a folder (CIFS, FUSE, Windows).
_CANNOT_FLUSH_FOLDER = {
    errno.EINVAL,
    errno.EBADF,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.EACCES,
    errno.EISDIR,
}
_warned: set[str] = set()


def local_path(path: str | os.PathLike) -> pathlib.Path:
    """Returns `path` as an absolute path, so that a later change of the current folder does not
    move it; `~` is the home folder, links are not followed.

    Raises:
        UserError: If it is not a path of this machine.
    """
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str):
        raise UserError(
            f"{path!r} is of type {type(path).__name__}, but a path must be a str or an "
            "os.PathLike of one, so give it as text."
        )
    if "\0" in text:
        raise UserError(f"{text!r} holds a NUL character, which no path can, so remove it.")
    if _SCHEME.match(text):
        raise UserError(
            f"{text} is an address, but it must be a folder of this machine or a mounted one, "
            "because a checkpoint is renamed into place in one step, which object stores cannot "
            "do: mount it, or write to a local folder and copy that."
        )
    return pathlib.Path(os.path.abspath(os.path.expanduser(text)))


def flush(path: str | os.PathLike) -> None:
    """Hands a file or the list of names in a folder to the disk, so that a power cut keeps it.

    Where a folder cannot be flushed, it warns once per process and goes on.

    Raises:
        OSError: If it cannot be flushed; the error names it.
    """
    is_folder = os.path.isdir(path)
    # Windows flushes only what is open for writing.
    flags = os.O_RDWR if os.name == "nt" and not is_folder else os.O_RDONLY
    try:
        descriptor = os.open(path, flags)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if not (is_folder and error.errno in _CANNOT_FLUSH_FOLDER):
            raise OSError(error.errno, error.strerror, str(path)) from error
        warn_once(
            "flush",
            f"{path}: the file system cannot flush a folder ({error.strerror}), so a power cut "
            "may lose the newest save.",
        )


def warn_once(kind: str, message: str, *, stacklevel: int = 3) -> None:
    """Warns, unless this process has warned of this kind before, whatever the message.

    Args:
        kind: What is warned of, for this function alone.
        message: What is shown.
        stacklevel: Whose line is named, as in `warnings.warn`; 3 is the caller of the caller.
    """
    if kind not in _warned:
        _warned.add(kind)
        warnings.warn(message, RuntimeWarning, stacklevel=stacklevel)


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
