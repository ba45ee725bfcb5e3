"""A disk on which there is no room for what the package writes."""

import contextlib
import io
import os

import pytest


class _FullFile(io.FileIO):
    def write(self, content):
        super().write(content[:1])
        raise OSError(28, "No space left on device")


@contextlib.contextmanager
def full_disk():
    """Lets every new file take one byte, and then tell that the disk is full."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fdopen", lambda fd, mode: io.BufferedWriter(_FullFile(fd, mode)))
        yield
