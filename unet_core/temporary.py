"""Files and folders that are being written, each beside its place until it is whole.

    new = NewFile(path)
    new.file.write(content)
    new.commit()           # takes the name `path`; or `new.discard()`

It lies there as `.<32 hexadecimal digits>.unet_core-tmp`, made exclusively and under a name nobody
can guess, so that no link leads it elsewhere. Until it is done, its process holds a lock on a file
of the same digits, `.unet_core-lock`, and lets go of it in dying. The next process that writes into
the folder removes what nobody holds.

File systems that cannot lock keep what was left: nothing proves there that it is needed no more. On
some mounts (NFS with `local_lock`) the locks of other machines are not seen; therefore what another
machine has begun is removed only if it was begun more than a day ago.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from typing import BinaryIO

from filelock import lock_descriptor

from unet_core.errors import reason_of

# Windows has neither of the first two, and is the only one to have the third.
NO_LINK = getattr(os, "O_NOFOLLOW", 0)
NO_WAIT = getattr(os, "O_NONBLOCK", 0)
_AS_BYTES = getattr(os, "O_BINARY", 0)

_TMP, _LOCK = ".unet_core-tmp", ".unet_core-lock"
_TMP_NAME = re.compile(r"\.[0-9a-f]{32}" + re.escape(_TMP))
_LOCK_NAME = re.compile(r"\.[0-9a-f]{32}" + re.escape(_LOCK))
_MARK = b"unet_core is writing on "
_OTHER_MACHINES_SECONDS = 24 * 3600

_swept: set[str] = set()


class _Temporary:
    """The place of something under way, locked for as long as this process works on it."""

    def __init__(self, final: pathlib.Path):
        self._final = final
        remove_leftovers(final.parent, once=True)
        digits = secrets.token_hex(16)
        self.path = final.parent / f".{digits}{_TMP}"
        self._lock_path = final.parent / f".{digits}{_LOCK}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | NO_LINK
        self._lock: int | None = os.open(self._lock_path, flags, 0o666)
        # What could not be locked gets no mark, and so is never removed.
        with contextlib.suppress(OSError):
            if lock_descriptor(self._lock, blocking=False):
                os.write(self._lock, _mark())

    def _let_go(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
            with contextlib.suppress(OSError):
                self._lock_path.unlink()


class NewFile(_Temporary):
    """A file that is being written; it takes its name by `commit`.

    Args:
        path: Its name. A file that has it is replaced, and so is a link, not what it points to.

    Attributes:
        file: To write to. Its mode is that of the file it replaces, or follows the umask.

    Raises (and so do the methods):
        OSError: If it cannot be written, or a folder, a pipe or a device has that name; the error
            names `path`.
    """

    def __init__(self, path: str | os.PathLike):
        path = pathlib.Path(path)
        with naming(path):
            mode = _mode_of(path)
            super().__init__(path)
            try:
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | NO_LINK | _AS_BYTES
                self.file: BinaryIO = os.fdopen(os.open(self.path, flags, 0o666), "wb")
                if mode is not None:
                    with contextlib.suppress(OSError, AttributeError):  # FAT; Windows.
                        os.fchmod(self.file.fileno(), mode)
            except BaseException:
                self._let_go()
                raise

    def commit(self, *, flushed: bool = True) -> None:
        """Gives the file its name.

        Args:
            flushed: Whether it is handed to the disk before, so that a power cut does not leave an
                empty file of that name.
        """
        try:
            with naming(self._final):
                self.file.flush()
                if flushed:
                    os.fsync(self.file.fileno())
                self.file.close()
                os.replace(self.path, self._final)
        finally:
            self.discard()

    def discard(self) -> None:
        """Removes what has not been committed."""
        with contextlib.suppress(OSError):
            self.file.close()
        with contextlib.suppress(OSError):
            self.path.unlink()
        self._let_go()


class NewFolder(_Temporary):
    """A folder that is being filled; it takes its name by `commit`.

    Args:
        path: Its name; its parent must be there.

    Attributes:
        path: Where it lies until then.

    Raises (and so does `commit`):
        OSError: If it cannot be written; the error names `path`.
    """

    def __init__(self, path: str | os.PathLike):
        path = pathlib.Path(path)
        with naming(path):
            super().__init__(path)
            try:
                os.mkdir(self.path)
            except BaseException:
                self._let_go()
                raise

    def commit(self) -> None:
        """Gives the folder its name, which nothing else may have."""
        with naming(self._final):
            # `rename` takes the place of an empty folder.
            if os.path.lexists(self._final):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            os.rename(self.path, self._final)
        self._let_go()

    def discard(self) -> None:
        """Removes what has not been committed."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._let_go()


def leftovers(folder: str | os.PathLike) -> list[pathlib.Path]:
    """Returns what is being written in `folder`, or was when its process died, by name."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        names = sorted(filter(_TMP_NAME.fullmatch, os.listdir(folder)))
        return [pathlib.Path(folder, name) for name in names]
    return []


def remove_leftovers(folder: str | os.PathLike, *, once: bool = False) -> None:
    """Removes from `folder` what processes that are dead had begun to write.

    Args:
        folder: Not looked at is what lies deeper.
        once: Whether to look only if this process has not looked before.
    """
    key = os.path.abspath(folder)
    if once and key in _swept:
        return
    _swept.add(key)
    with contextlib.suppress(OSError):
        for name in filter(_LOCK_NAME.fullmatch, os.listdir(folder)):
            with contextlib.suppress(OSError):
                _remove_if_nobody_holds(pathlib.Path(folder, name))


def _remove_if_nobody_holds(lock: pathlib.Path) -> None:
    descriptor = os.open(lock, os.O_RDWR | NO_LINK | NO_WAIT)
    try:
        found = os.fstat(descriptor)
        mark = os.read(descriptor, 512)
        if not stat.S_ISREG(found.st_mode) or not mark.startswith(_MARK):
            return
        is_recent = time.time() - found.st_mtime < _OTHER_MACHINES_SECONDS
        if mark != _mark() and is_recent:
            return
        if lock_descriptor(descriptor, blocking=False):
            left = lock.with_name(lock.name.removesuffix(_LOCK) + _TMP)
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
            else:
                left.unlink(missing_ok=True)
            lock.unlink()
    finally:
        os.close(descriptor)


def _mark() -> bytes:
    return _MARK + socket.gethostname().encode(errors="replace")[:200]


def _mode_of(path: pathlib.Path) -> int | None:
    """Returns the mode of the file that is to be replaced, None if there is none or a link."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
        raise OSError(errno.EINVAL, "is not a regular file")
    return stat.S_IMODE(mode) & 0o777 if stat.S_ISREG(mode) else None


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Makes an OSError of the block name `path`, and not what lies beside it."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno or errno.EIO, reason_of(error), str(path)) from error
