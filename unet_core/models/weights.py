"""Weights from elsewhere, taken over into a network or its encoder by the names of layers.

taken = fit_file("resnet50_notop.h5", model, part="encoder")
taken.apply(model)
taken.rows                  # which layers were loaded, which were left out, and why

A source is {name of a layer: its arrays}, in the order of the layer's variables. It may be that of
a file, whose arrays are read only if their shapes fit, or `layers_of` another network.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from unet_core.errors import UserError
from unet_core.models.encoders.applications import IMAGENET_DEVIATION
from unet_core.models.layers import RowDropout
from unet_core.models.parts import layers_matching
from unet_core.models.weights_file import open_weights

Source = Mapping[str, Sequence[Any]]
"""The arrays of each layer; each has `shape` and `dtype`, and `array[...]` reads it."""

_MOST_NAMED = 4
_NEW_CLASSES = "its classes are new"


@dataclasses.dataclass(frozen=True)
class Row:
    """What became of one layer.

    Attributes:
        layer: Its name.
        loaded: Whether its weights were taken over.
        reason: Why not, or what was changed.
        wanted: Whether it is a layer that was to be loaded; or else only the source has it.
    """

    layer: str
    loaded: bool
    reason: str = ""
    wanted: bool = True


@dataclasses.dataclass(frozen=True)
class Taken:
    """Weights that fit a network.

    Attributes:
        arrays: Those of each layer, in the order of its variables.
        rows: A row for each layer that was to be loaded and for each other one of the source.
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


def fit(
    source: Source,
    model: keras.Model,
    where: str,
    *,
    part: str | None = None,
    classes: Sequence[int | None] | None = None,
    overlapping: bool = False,
) -> Taken:
    """Returns the weights of `source` that fit the layers of `model`.

    Args:
        source: The arrays of each layer.
        model: A network of `unet_core.models.build`; it is not changed.
        where: What to call the source.
        part: "encoder" for its layers alone; None is the whole network.
        classes: For each class of the network the class of the source that it is, None for a new
            one. Heads are then taken over class by class; new classes keep what they begin with.
        overlapping: Whether the classes of both may overlap, so that each has a logit.

    Raises:
        UserError: If no layer fits, or values are not finite.
    """
    ours = {layer.name: layer for layer in model.layers if _has_weights(layer)}
    wanted = {x.name: x for x in layers_matching(model, part or "*") if _has_weights(x)}
    what = f"the {part} {model.name!r}" if part else "the network"
    arrays: dict[str, list[np.ndarray]] = {}
    rows, used = [], set()
    for name, layer in wanted.items():
        theirs = _name_in(source, layer)
        if theirs is None:
            rows.append(Row(name, False, "not in the file"))
            continue
        used.add(theirs)
        found = source[theirs]
        reason = ""
        if classes is not None and _is_head(layer) and _may_be_heads(found, layer):
            found, reason = _of_classes(found, layer, classes, overlapping)
        problem = _misfit(found, layer)
        if not problem:
            arrays[name] = [_read(array, name, where) for array in found]
            if isinstance(layer, keras.layers.Normalization):
                reason = _correct(arrays[name])
        rows.append(Row(name, name in arrays, problem or reason))
    # Without the encoder the rest would be that of other features.
    if not arrays.keys() & {layer.name for layer in layers_matching(model, "encoder")}:
        raise UserError(
            f"{where}: no weights of it fit {what}. It holds the layers {_listed(source)}; {what} "
            f"has {_listed(wanted)}{_first_reason(rows)}. Give weights of this kind of network, or "
            "choose the `encoder` and `decoder` that they are of."
        )
    silent = {layer.name for layer in model.layers if not _has_weights(layer)}
    for name in source:
        if name not in used and name not in silent:
            reason = f"not of the {part}" if name in ours else "not in the network"
            rows.append(Row(name, False, reason, wanted=False))
    return Taken(arrays, rows)


def fit_file(path: str | os.PathLike, model: keras.Model, *, part: str | None = None) -> Taken:
    """Returns the weights of a file of Keras that fit the layers of `model`.

    Args:
        path: The file; see `unet_core.models.weights_file` for its kinds.
        model: As for `fit`.
        part: As for `fit`.

    Raises:
        UserError: If the file cannot be read, or as `fit`.
    """
    with open_weights(path) as source:
        return fit(source, model, os.fspath(path), part=part)


def _is_head(layer: keras.Layer) -> bool:
    """Whether a layer makes the logits of the classes; see `Blocks.head`."""
    return layer.name == "head" or layer.name.startswith("head_")


def _may_be_heads(arrays: Sequence[Any], layer: keras.Layer) -> bool:
    """Whether two heads differ at most in their last axis, that of the classes."""
    there, here = ([tuple(a.shape)[:-1] for a in each] for each in (arrays, layer.variables))
    return there == here


def _of_classes(
    arrays: Sequence[Any],
    layer: keras.Layer,
    classes: Sequence[int | None],
    overlapping: bool,
) -> tuple[Sequence[Any], str]:
    """Returns the arrays of a head with the classes of the network, and what was done.

    One logit for two classes is that of the second, the first having 0: the sigmoid of z is the
    softmax of (0, z). Where classes may overlap, there is one for each.
    """
    found = []
    for array, variable in zip(arrays, layer.variables, strict=True):
        there, here = np.asarray(array[...]), keras.ops.convert_to_numpy(variable.value).copy()
        if there.shape[-1] == 1 and not overlapping:
            there = np.concatenate([np.zeros_like(there), there], -1)
        if max((old for old in classes if old is not None), default=0) >= there.shape[-1]:
            return arrays, ""
        if here.shape[-1] == 1 and None not in classes and not overlapping:
            here[..., 0] = there[..., classes[1]] - there[..., classes[0]]
        elif here.shape[-1] == len(classes):
            for new, old in enumerate(classes):
                if old is not None:
                    here[..., new] = there[..., old]
        else:
            return [keras.ops.convert_to_numpy(v.value) for v in layer.variables], _NEW_CLASSES
        found.append(here)
    loaded = sum(old is not None for old in classes)
    if not loaded:
        return found, _NEW_CLASSES
    return found, "" if loaded == len(
        classes
    ) else f"{loaded} of {len(classes)} classes; the others are new"


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
