"""Weights from elsewhere, taken over into the encoder of a network by the names of layers.

with open_weights("resnet50_notop.h5") as source:        # `unet_core.models.weights_file`
    taken = fit(source, model, "resnet50_notop.h5")
taken.apply(model)
taken.rows                  # which layers were loaded, which were left out, and why

A source is {name of a layer: its arrays}, in the order of the layer's variables. It may be that of
a file, whose arrays are read only if their shapes fit, or `layers_of` another network.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from unet_core.errors import UserError
from unet_core.models.encoders.applications import IMAGENET_DEVIATION
from unet_core.models.layers import RowDropout
from unet_core.models.parts import layers_matching

Source = Mapping[str, Sequence[Any]]
"""The arrays of each layer; each has `shape` and `dtype`, and `array[...]` reads it."""

_MOST_NAMED = 4


@dataclasses.dataclass(frozen=True)
class Row:
    """What became of one layer.

    Attributes:
        layer: Its name.
        loaded: Whether its weights were taken over.
        reason: Why not, or what was changed.
        of_encoder: Whether the encoder has this layer; or else only the source has it.
    """

    layer: str
    loaded: bool
    reason: str = ""
    of_encoder: bool = True


@dataclasses.dataclass(frozen=True)
class Taken:
    """Weights that fit a network.

    Attributes:
        arrays: Those of each layer, in the order of its variables.
        rows: A row for each layer of the encoder and for each of the source.
    """

    arrays: Mapping[str, Sequence[np.ndarray]]
    rows: Sequence[Row]

    def apply(self, model: keras.Model) -> None:
        """Gives them to a network like the one that they were fitted to."""
        for name, arrays in self.arrays.items():
            layer = model.get_layer(name)
            for variable, array in zip(layer.variables, arrays, strict=True):
                variable.assign(array)
            if isinstance(layer, keras.layers.Normalization):
                # It computes with constants made of its variables (Keras 3.15).
                layer.finalize_state()

    @functools.cached_property
    def digest(self) -> str:
        """What tells these weights from others."""
        digest = hashlib.sha256()
        for name, arrays in self.arrays.items():
            digest.update(name.encode())
            for array in arrays:
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def layers_of(model: keras.Model) -> dict[str, list[np.ndarray]]:
    """Returns the weights of a network as a source, those of models inside it too."""
    found: dict[str, list[np.ndarray]] = {}
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            found |= layers_of(layer)
        elif layer.variables and not isinstance(layer, RowDropout):
            found[layer.name] = [keras.ops.convert_to_numpy(v.value) for v in layer.variables]
    return found


def fit(source: Source, model: keras.Model, where: str) -> Taken:
    """Returns the weights of `source` that fit the layers of the encoder of `model`.

    Args:
        source: The arrays of each layer.
        model: A network of `unet_core.models.build.make_network`; it is not changed.
        where: What to call the source.

    Raises:
        UserError: If no layer fits, or values are not finite.
    """
    ours = {layer.name: layer for layer in model.layers if _has_weights(layer)}
    encoders = {x.name: x for x in layers_matching(model, "encoder") if _has_weights(x)}
    arrays: dict[str, list[np.ndarray]] = {}
    rows, used = [], set()
    for name, layer in encoders.items():
        theirs = _name_in(source, layer)
        if theirs is None:
            rows.append(Row(name, False, "not in the file"))
            continue
        used.add(theirs)
        reason = _misfit(source[theirs], layer)
        if not reason:
            arrays[name] = [_read(array, name, where) for array in source[theirs]]
            if isinstance(layer, keras.layers.Normalization):
                reason = _correct(arrays[name])
        rows.append(Row(name, name in arrays, reason))
    if not arrays:
        raise UserError(
            f"{where}: no weights of it fit the encoder {model.name!r}. It holds the layers "
            f"{_listed(source)}; the encoder has {_listed(encoders)}"
            f"{_first_reason(rows)}. Give the weights of this encoder, or choose the `encoder` "
            "that they are of."
        )
    silent = {layer.name for layer in model.layers if not _has_weights(layer)}
    for name in source:
        if name not in used and name not in silent:
            reason = "not of the encoder" if name in ours else "not in the network"
            rows.append(Row(name, False, reason, of_encoder=False))
    return Taken(arrays, rows)


def _has_weights(layer: keras.Layer) -> bool:
    # The count of calls of dropout is none.
    return bool(layer.variables) and not isinstance(layer, RowDropout)


def _name_in(source: Source, layer: keras.Layer) -> str | None:
    """Returns the name that a layer has in `source`, or None."""
    if layer.name in source:
        return layer.name
    if isinstance(layer, keras.layers.Normalization):
        # Keras numbers layers to which nobody gave a name, through all networks of a process.
        numbered = [name for name in source if re.fullmatch(rf"{layer.name}_\d+", name)]
        return numbered[0] if len(numbered) == 1 else None
    return None


def _misfit(arrays: Sequence[Any], layer: keras.Layer) -> str:
    """Returns why `arrays` cannot be the variables of `layer`; "" if they can."""
    there, here = (
        " ".join(str(tuple(each.shape)) for each in several)
        for several in (arrays, layer.variables)
    )
    if there != here:
        return f"{there} in the file, {here} in the network"
    kinds = [str(array.dtype) for array in arrays if array.dtype.kind not in "fiu"]
    return f"of type {kinds[0]} in the file" if kinds else ""


def _read(array: Any, layer: str, where: str) -> np.ndarray:
    values = np.asarray(array[...])
    if not np.isfinite(values).all():
        raise UserError(f"{where}: the weights of the layer {layer!r} are not all finite numbers.")
    return values


def _correct(arrays: list[np.ndarray]) -> str:
    """Corrects the statistics of EfficientNet's ImageNet files; returns what it has done.

    They hold the standard deviation in place of the variance; Keras divides by its square root once
    more, in a layer of its own that stands only where it loads such a file itself
    (https://github.com/tensorflow/tensorflow/issues/49930).
    """
    _, variance, *_ = arrays
    if not np.allclose(variance, IMAGENET_DEVIATION, rtol=1e-3):
        return ""
    arrays[1] = np.square(variance)
    return "its variance was ImageNet's standard deviation, and has been squared"


def _listed(names: Mapping[str, Any]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(list(names)[:_MOST_NAMED]) + more


def _first_reason(rows: Sequence[Row]) -> str:
    """Returns the first misfit of a layer that both sides have."""
    misfits = [row for row in rows if row.reason != "not in the file"]
    return f" (of {misfits[0].layer}: {misfits[0].reason})" if misfits else ""
