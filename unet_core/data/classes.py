"""The map from the values found in mask files to class ids, and back.

classes = ClassMap.parse("0:membrane,255:cell")
ids = classes.ids(mask)          # [H, W] uint8 values -> [H, W] uint8 class ids 0, 1
values = classes.values(ids)     # and back
"""

from __future__ import annotations

import dataclasses

import numpy as np

from unet_core.errors import UserError


@dataclasses.dataclass(frozen=True)
class ClassMap:
    """Class `i` is called `names[i]` and stands in mask files as the value `mask_values[i]`, 0 to
    255.
    """

    mask_values: tuple[int, ...]
    names: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> ClassMap:
        """Returns the map written as `value:name,value:name`, classes numbered in that order.

        Raises:
            UserError: If an entry has another form, a value or name occurs twice, a value is
                outside 0..255, or fewer than two classes are named.
        """
        values, names = [], []
        for entry in text.split(","):
            value, _, name = entry.strip().partition(":")
            if not value.isdecimal() or not 0 <= int(value) <= 255 or not name.strip():
                raise UserError(
                    f"`classes`: {entry!r} is not of the form value:name with a value from 0 to "
                    f"255; "
                    "write for example 0:membrane,255:cell."
                )
            values.append(int(value))
            names.append(name.strip())
        if len(values) < 2 or len(set(values)) < len(values) or len(set(names)) < len(names):
            raise UserError(
                f"`classes` ({text!r}) must name at least two classes, each value and each name "
                f"once; "
                "write for example 0:membrane,255:cell."
            )
        return cls(tuple(values), tuple(names))

    def __len__(self) -> int:
        return len(self.names)

    def __str__(self) -> str:
        return ",".join(
            f"{value}:{name}" for value, name in zip(self.mask_values, self.names, strict=True)
        )

    def index(self, name: str) -> int:
        """Returns the id of the class called `name`.

        Raises:
            UserError: If there is none.
        """
        if name not in self.names:
            raise UserError(
                f"No class is called {name!r}; the classes are {', '.join(self.names)}."
            )
        return self.names.index(name)

    def unknown_values(self, mask: np.ndarray) -> dict[int, int]:
        """Returns the values of `mask` (uint8) that are not in the map, with their pixel counts."""
        counts = np.bincount(mask.ravel(), minlength=256)
        return {
            int(v): int(counts[v]) for v in np.flatnonzero(counts) if int(v) not in self.mask_values
        }

    def ids(self, mask: np.ndarray) -> np.ndarray:
        """Returns the class ids (uint8) of `mask` (uint8 values), of the same shape.

        Raises:
            UserError: If the mask holds values outside the map.
        """
        unknown = self.unknown_values(mask)
        if unknown:
            raise UserError(
                f"A mask holds the values {sorted(unknown)}, which are not in the class map {self}."
            )
        table = np.zeros(256, np.uint8)
        table[list(self.mask_values)] = np.arange(len(self))
        return table[mask]

    def values(self, ids: np.ndarray) -> np.ndarray:
        """Returns the mask values (uint8) of class `ids`, of the same shape."""
        return np.asarray(self.mask_values, np.uint8)[ids]
