"""How much is decoded at once: a share of the machine's memory, asked for before decoding."""

from __future__ import annotations

import functools
import os
import pathlib

from unet_core.errors import UserError

_SHARE = 8
"""Of the memory: pixels are copied when they become floats, and several threads read at once."""
_WHERE_NOT_TOLD = 2**33
_LIMITS_OF_CONTAINERS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)


@functools.cache
def memory_bytes() -> int:
    """Returns the memory of this machine, or of the container that this process runs in."""
    try:
        found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, ValueError, OSError):
        found = [_WHERE_NOT_TOLD]
    for path in _LIMITS_OF_CONTAINERS:
        try:
            found.append(int(pathlib.Path(path).read_text()))
        except (OSError, ValueError):  # There is none, or it is "max".
            continue
    return min(found)


def most_bytes() -> int:
    """Returns how many bytes of pixels are decoded at once, at most."""
    return memory_bytes() // _SHARE


def check_bytes(where: str, wanted: int, what: str) -> None:
    """Raises UserError if `wanted` bytes are too many to be decoded at once.

    Args:
        where: What is read, for the message.
        wanted: The bytes once they are decoded.
        what: What they are, such as "20000x20000 pixels of 3 channel(s), uint16".
    """
    if wanted > most_bytes():
        raise UserError(
            f"{where}: has {what}, {wanted / 2**30:.1f} GiB once decoded; at most "
            f"{most_bytes() / 2**30:.1f} GiB, an eighth of this machine's memory, are decoded at "
            "once. Cut it into parts, or remove it if it is no picture of yours. A TIFF in small "
            "strips or tiles is predicted whatever its size."
        )
