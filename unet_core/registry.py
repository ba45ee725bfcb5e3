"""Names of choices, written once: flags, help texts and tables read them here.

ENCODERS = Registry({"unet": "unet_core.models.encoders.unet:make_features"})
list(ENCODERS)                     # the names; nothing is imported
make_features = ENCODERS["unet"]   # imports the module
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any


class Registry(Mapping[str, Any]):
    """What each name stands for, imported when it is asked for.

    Args:
        entries: Name -> "module:attribute".
    """

    def __init__(self, entries: Mapping[str, str]):
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> Any:
        module, _, attribute = self._entries[name].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def __contains__(self, name: object) -> bool:
        # That of `Mapping` would import what the name stands for.
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


class LazyModule:
    """A module that is imported when one of its attributes is first asked for.

    Args:
        name: Its full name.
    """

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)
