"""What a tile needs around it, for any functional network, from its layers.

    tile_geometry(model)     # TileGeometry(halo=94, stride=16, cut=0, remainder=0)

How far each class of layers looks is in `unet_core.models.layer_rules`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import keras

from unet_core.models.layer_rules import rule_of
from unet_core.models.reach import Line, join
from unet_core.models.walk import calls


@dataclasses.dataclass(frozen=True)
class TileGeometry:
    """What a tile needs around it so that it gives the same logits as the whole image.

    That is for a network without padding and cropping layers; all lengths are in pixels.

    Attributes:
        halo: Output pixels at each edge that depend on what is outside of the tile, if it begins
            at a multiple of `stride` and its size is `remainder` more than one; all others are
            those of the whole image. None if all may depend on it.
        stride: A tile's origin must be a multiple of it; with "valid" convolutions, the origin of
            the output must.
        cut: Pixels that the output is smaller than the tile, on each side.
        remainder: By how much the size of a tile is more than a multiple of `stride`.
    """

    halo: int | None
    stride: int
    cut: int
    remainder: int = 0

    def padding(self) -> tuple[int, int]:
        """Returns the pixels to add before and after an axis of a multiple of `stride`.

        The logits then begin where it begins, and end where it ends or later.
        """
        before = self.cut
        return before, before + (self.remainder - 2 * before) % self.stride


def tile_geometry(model: keras.Model) -> TileGeometry:
    """Returns the geometry of a functional or sequential network.

    The network has one input [B, H, W, C] and one output of the same resolution. Layers that pad
    the image or crop the logits, as `MirrorPad` and `CropLike` do, count as left out.

    Raises:
        ValueError: If `model` is no such network, or no size of a tile fits it.
    """
    lines = [_line_of_output(model, axis) for axis in (0, 1)]
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(
            f"Expected a network of one input and one output. Received {model.name!r} with "
            f"{len(model.inputs)} and {len(model.outputs)}."
        )
    stride, remainder = _size_that_fits(model, frozenset().union(*(x.sizes for x in lines)))
    cuts = {_cut(model, line) for line in lines}
    if len(cuts) != 1:
        raise ValueError(
            "Expected a network that takes as much off the height as off the width. "
            f"{model.name!r} takes {' and '.join(map(str, sorted(cuts)))} pixels off each side."
        )
    unbounded = any(line.unbounded for line in lines)
    halo = None if unbounded else max(n for line in lines for n in (line.before, line.after))
    return TileGeometry(halo, stride, cuts.pop(), remainder)


def _line_of_output(model: keras.Model, axis: int) -> Line:
    found = calls(model)
    lines = {id(tensor): Line() for tensor in model.inputs}
    for call in found:
        inputs = [lines[id(tensor)] for tensor in call.inputs]
        rule = rule_of(call.layer).reach
        if rule is not None and _is_usual(call.layer):
            line = rule(call.layer, axis, inputs)
        else:
            # Of a layer that is not known, only what its inputs need is.
            line = join(inputs).nowhere()
        lines.update({id(tensor): line for tensor in call.outputs})
    return lines[id(model.outputs[0])]


def _is_usual(layer: keras.Layer) -> bool:
    """Whether `layer` has the usual axes and an activation that looks at one pixel.

    The axes are [B, H, W, C]; the activations of Keras look at one pixel each.
    """
    activation = getattr(layer, "activation", None)
    name = getattr(activation, "__name__", "")
    usual = activation is None or getattr(keras.activations, name, None) is activation
    return usual and getattr(layer, "data_format", "channels_last") == "channels_last"


def _size_that_fits(model: keras.Model, sizes: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """Returns (stride, remainder): the sizes that are r modulo m for each (m, r) of `sizes`."""
    stride, remainder = 1, 0
    for modulus, rest in sizes:
        both = math.lcm(stride, modulus)
        fitting = [n for n in range(remainder, both, stride) if n % modulus == rest]
        if not fitting:
            raise ValueError(
                f"No size of a tile fits {model.name!r}: its poolings need both {stride} n + "
                f"{remainder} and {modulus} n + {rest} pixels."
            )
        stride, remainder = both, fitting[0]
    return stride, remainder


def _cut(model: keras.Model, line: Line) -> int:
    if line.step is None:
        # Not known; whoever runs the network sees it.
        return 0
    cut = -line.excess / 2
    if line.step != 1 or cut < 0 or cut.denominator != 1:
        raise ValueError(
            "Expected a network that gives a value for each pixel, or takes as many off all sides. "
            f"{model.name!r} gives (L{int(line.excess):+d}) / {line.step} for L pixels."
        )
    return int(cut)
