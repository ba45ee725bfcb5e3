"""A dataset is a list of samples: each an image, a mask, and the group it belongs to.

Nothing is read here; a sample says where its pixels are.
"""

from __future__ import annotations

import dataclasses
import pathlib


@dataclasses.dataclass(frozen=True, order=True)
class Source:
    """One picture on disk: a file, and which page of it if it has several."""

    path: pathlib.Path
    page: int = 0

    def __str__(self) -> str:
        return f"{self.path}" + (f", page {self.page + 1}" if self.page else "")


@dataclasses.dataclass(frozen=True)
class Sample:
    """Where one image and its truth are.

    Attributes:
        name: Identifies it in tables and file names.
        image: Its pixels.
        mask: Its mask; or, in the order of the classes, one binary mask for each.
        group: What must not be torn apart by a split: a patient, an animal, a volume.
        split: The part its layout puts it in, "train", "val" or "test"; empty if it names none.
    """

    name: str
    image: Source
    mask: tuple[Source, ...]
    group: str = ""
    split: str = ""


def naming(source: Source, error: Exception) -> str:
    """Returns what an error says about a picture, with its file and page named."""
    text, path = str(error), str(source.path)
    if path not in text:
        return f"{source}: {text}"
    is_told = not source.page or f"page {source.page + 1}" in text
    return text if is_told else text.replace(path, str(source), 1)
