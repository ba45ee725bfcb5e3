"""Files of this machine: written whole or not at all, and read back against a schema.

write_whole(path, content)             # replaces what has that name; a link is not followed
with new_folder(path) as folder: ...   # is there, and whole, once the block has ended
stored = read_json(path, Schema, what="the settings of a run", way="Restore it.", formats=(1,))

with os_errors(path, "the scores cannot be written", "Make room."):
    ...                                # an OSError becomes one message
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import pathlib
import re
import reprlib
import stat
import types
import typing
import unicodedata
import warnings
from collections.abc import Collection, Iterator
from typing import Any, BinaryIO, TypeVar

import msgspec

from unet_core.errors import UserError, reason_of
from unet_core.temporary import NO_LINK, NO_WAIT, NewFile, NewFolder, naming

Schema = TypeVar("Schema")

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
# What file systems answer that cannot lock (Lustre without -o flock, NFS without lockd).
CANNOT_LOCK = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
# File systems take 255, and names of classes, pages and kinds follow.
_MOST_BYTES_OF_A_NAME = 160
MOST_BYTES = 2**26
"""No file of this package that is read back whole is larger, unless it says so."""

_warned: set[str] = set()


def local_path(path: str | os.PathLike) -> pathlib.Path:
    """Returns `path` as an absolute path, so that changing the current folder does not move it.

    `~` is the home folder; links are not followed.

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


@contextlib.contextmanager
def os_errors(
    path: str | os.PathLike,
    what: str,
    way: str,
    *,
    kinds: tuple[type[BaseException], ...] = (OSError,),
) -> Iterator[None]:
    """Makes one message of an OSError of the block: "<path>: <what> (<reason>). <way>".

    Args:
        path: What the caller was told to read or write.
        what: Such as "the run folder cannot be written".
        way: What to do about it, as sentences.
        kinds: The errors, if others than OSError report problems of files too.

    Raises:
        UserError: In place of each of `kinds`.
    """
    try:
        yield
    except kinds as error:
        named = getattr(error, "filename", None)
        where = f": {named}" if named and str(named) != str(path) else ""
        raise UserError(f"{path}: {what} ({reason_of(error)}{where}). {way}") from error


def printable(text: str) -> str:
    """Returns a name that every program can write in a line, of one that need not be text.

    Control characters, and bytes that are no UTF-8, as old archives leave them, become `%E4`.
    """
    not_text = "[\x00-\x1f\x7f\udc80-\udcff]"
    return re.sub(not_text, lambda match: f"%{ord(match[0]) & 0xFF:02X}", text)


def safe_name(name: str) -> str:
    """Returns a name for files made of one, which leaves room for what is put behind it.

    It is printable, in the composed form of Unicode (NFC), and of at most 160 bytes; what is longer
    ends in a digest of the whole.
    """
    name = unicodedata.normalize("NFC", printable(name))
    content = name.encode()
    if len(content) <= _MOST_BYTES_OF_A_NAME:
        return name
    digest = hashlib.sha256(content).hexdigest()[:8]
    return content[: _MOST_BYTES_OF_A_NAME - 9].decode(errors="ignore") + "-" + digest


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


def open_to_lock(path: str | os.PathLike) -> int:
    """Returns a descriptor of the regular file at `path`, made if need be, for `lock_descriptor`.

    Raises:
        OSError: If it cannot be opened, is a link, or no regular file.
    """
    flags = os.O_RDWR | os.O_CREAT | NO_LINK | NO_WAIT
    descriptor = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return descriptor


def write_whole(path: str | os.PathLike, content: bytes, *, flushed: bool = True) -> None:
    """Writes `content`, so that a file of the name `path` is whole at every moment; see `NewFile`.

    Raises:
        OSError: If it cannot be written; the error names the file.
    """
    new = NewFile(path)
    try:
        with naming(path):
            new.file.write(content)
        new.commit(flushed=flushed)
    finally:
        new.discard()


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Writes `content` as JSON, whole or not at all; NaN and infinities become null.

    Raises:
        OSError: If it cannot be written; the error names the file.
    """
    text = json.dumps(without_nan(content), indent=1, allow_nan=False)
    write_whole(path, (text + "\n").encode())


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Gives an empty folder to fill, which appears as `path` once it is complete.

    It is flushed to the disk and renamed to `path` when the block ends without an error, and
    removed if not. The parents of `path` are made.

    Raises:
        OSError: If it cannot be written, or something has come to have the name; it names `path`.
    """
    path = pathlib.Path(path)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    new = NewFolder(path)
    try:
        yield new.path
        with naming(path):
            for folder, _, names in os.walk(new.path):
                for name in names:
                    flush(os.path.join(folder, name))
                flush(folder)
            new.commit()
            flush(path.parent)
    finally:
        new.discard()


@contextlib.contextmanager
def scratch_folder(parent: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Gives an empty folder in `parent`, which is removed with all it holds.

    Raises:
        OSError: If it cannot be made; the error names `parent`.
    """
    new = NewFolder(pathlib.Path(parent, "scratch"))
    try:
        yield new.path
    finally:
        new.discard()


@contextlib.contextmanager
def open_to_read(path: str | os.PathLike) -> Iterator[io.BufferedReader]:
    """Gives the file at `path`, or the one a link leads to, open for reading.

    Raises:
        OSError: If it cannot be read, or is no regular file (a pipe is not waited for); it names
            `path`.
    """

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | NO_WAIT)

    with naming(path):
        # To open a device may move it.
        _check_regular(os.stat(path))
        with open(path, "rb", opener=opener) as file:
            _check_regular(os.fstat(file.fileno()))
            yield file


def _check_regular(status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "is not a regular file")


@contextlib.contextmanager
def open_to_append(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Gives the file at `path`, made if need be, open for appending.

    Raises:
        OSError: If it cannot be written, is a link, or no regular file; it names `path`.
    """

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | NO_WAIT | NO_LINK, 0o666)

    with naming(path), open(path, "ab", opener=opener) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "is not a regular file")
        yield file


def read_bytes(path: str | os.PathLike, *, most_bytes: int = MOST_BYTES) -> bytes:
    """Returns what the file at `path` holds; see `open_to_read`.

    Raises:
        OSError: If it cannot be read, or has more than `most_bytes`.
    """
    with open_to_read(path) as file:
        content = file.read(most_bytes + 1)
        if len(content) > most_bytes:
            raise OSError(errno.EFBIG, f"has more than {most_bytes} bytes")
        return content


def read_json(
    path: str | os.PathLike,
    schema: type[Schema],
    *,
    what: str,
    way: str,
    formats: Collection[int] = (),
    most_bytes: int = MOST_BYTES,
    not_a_number: bool = False,
) -> Schema:
    """Returns what the JSON file at `path` holds, checked against `schema`.

    Args:
        path: The file.
        schema: A `msgspec.Struct`, or another type that msgspec converts to.
        what: What it is, such as "the settings of a run".
        way: What to do if it is not, as sentences.
        formats: The values of its key "format" that can be read, 0 if that may be missing; empty
            if it has no such key.
        most_bytes: No file is larger.
        not_a_number: Whether NaN and Infinity, which JSON does not have, are read.

    Raises:
        UserError: If it cannot be read, is no JSON in UTF-8, has another format, or anything in it
            does not fit; the message names the place.
    """
    value: Any = None
    try:
        value = _json_of(read_bytes(path, most_bytes=most_bytes), not_a_number)
        if formats:
            _check_format(path, value, formats)
        return msgspec.convert(value, schema)
    except UserError:
        raise
    except RecursionError:
        problem = "it is nested too deeply"
    except OSError as error:
        problem = reason_of(error)
    except msgspec.ValidationError as error:
        place, found = _first_misfit(value, schema)
        rule = str(error).partition(" - at ")[0].lower()
        problem = f"{place}: {rule}, here {reprlib.repr(found)}"
    except ValueError as error:  # Of the text: its encoding, its syntax, a number in it.
        problem = str(error)
    raise UserError(f"{path}: cannot be read as {what} ({problem}). {way}")


def without_nan(value: Any) -> Any:
    """Returns nested dicts and lists with None in place of NaN and infinities, which JSON lacks."""
    if isinstance(value, dict):
        return {name: without_nan(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _Refused:
    """Stands for a part of a JSON text that is not read."""

    def __init__(self, why: str):
        self.why = why


def _json_of(content: bytes, not_a_number: bool) -> Any:
    """Returns what a JSON text holds.

    Raises:
        ValueError: If it is none; or a number is beyond what 64 bits hold, or a key there twice.
    """
    refused: list[_Refused] = []

    def refuse(why: str) -> _Refused:
        refused.append(_Refused(why))
        return refused[-1]

    def whole(digits: str) -> int | _Refused:
        # The longest texts take Python minutes, or are refused by it.
        if len(digits) > 20 or not -(2**63) <= int(digits) < 2**64:
            return refuse(f"the number {digits:.24} is beyond 64 bits")
        return int(digits)

    def fraction(digits: str) -> float | _Refused:
        value = float(digits)
        return (
            value if math.isfinite(value) else refuse(f"the number {digits:.24} is beyond 64 bits")
        )

    def constant(name: str) -> float | _Refused:
        return float(name) if not_a_number else refuse(f"{name} is no number in JSON")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any] | _Refused:
        found = dict(items)
        if len(found) == len(items):
            return found
        names = [name for name, _ in items]
        twice = next(name for name in names if names.count(name) > 1)
        return refuse(f"the key {twice!r:.80} is there twice")

    value = json.loads(
        content.decode("utf-8-sig"),
        parse_int=whole,
        parse_float=fraction,
        parse_constant=constant,
        object_pairs_hook=pairs,
    )
    if refused:
        raise ValueError(_describe_refused(value))
    if b"\\ud" in content.lower():
        # Half of a pair of surrogates is no character, and could be written nowhere.
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _describe_refused(value: Any) -> str:
    """Returns the place of the first `_Refused` in `value`, and why it is."""
    waiting = [("$", value)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, _Refused):
            return f"{place}: {value.why}"
        if isinstance(value, dict):
            waiting += [(f"{place}.{name:.80}", item) for name, item in reversed(value.items())]
        elif isinstance(value, list):
            waiting += reversed([(f"{place}[{n}]", item) for n, item in enumerate(value)])
    raise AssertionError("Nothing in the value was refused.")


def _check_format(path: str | os.PathLike, value: Any, formats: Collection[int]) -> None:
    found = value.get("format", 0) if isinstance(value, dict) else 0
    # What is no number at all is left to the schema.
    if isinstance(found, int) and not isinstance(found, bool) and found not in formats:
        read = " and ".join(map(str, sorted(formats)))
        what = f"has format {found}" if found else "has no format number"
        newer = "a newer" if found > max(formats) else "another"
        raise UserError(
            f"{path}: {what}, and this version reads format {read}. It was written by {newer} "
            "version of unet_core: use that one."
        )


def _first_misfit(value: Any, kind: Any, place: str = "$") -> tuple[str, Any]:
    """Returns the place and the value of the innermost part that does not fit its type `kind`."""
    for part_place, part, part_kind in _typed_parts(value, kind):
        try:
            msgspec.convert(part, part_kind)
        except msgspec.ValidationError:
            return _first_misfit(part, part_kind, place + part_place)
    return place, value


def _typed_parts(value: Any, kind: Any) -> Iterator[tuple[str, Any, Any]]:
    """Gives place, value and type of each part of `value`, so far as the type `kind` has parts."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        yield from _typed_parts(value, args[0])
    elif origin in (typing.Union, types.UnionType):
        others = [each for each in args if each is not type(None)]
        if len(others) == 1 and value is not None:
            yield from _typed_parts(value, others[0])
    elif isinstance(value, dict):
        yield from _parts_of_object(value, kind)
    elif isinstance(value, list) and origin is list:
        for number, item in enumerate(value):
            yield f"[{number}]", item, args[0]
    elif isinstance(value, list) and origin is tuple and len(value) == len(args):
        for number, item in enumerate(value):
            yield f"[{number}]", item, args[number]


def _parts_of_object(value: dict, kind: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        for field in msgspec.structs.fields(kind):
            if field.encode_name in value:
                yield f".{field.encode_name}", value[field.encode_name], field.type
    elif typing.get_origin(kind) is dict:
        for name, item in value.items():
            yield f".{name:.80}", item, typing.get_args(kind)[1]
