"""The layers of a network in stages: those that follow one another at one resolution.

    for stage in stages_of(model, work_of(model, 1, 256, 256)):
        stage.name, stage.level, stage.shape, stage.sources

They are what a U-Net is drawn as: one for each level on the way down and one on the way up.
"""

from __future__ import annotations

import collections
import dataclasses
import math

import keras

from unet_core.models.flops import CallWork, Shape
from unet_core.models.layer_rules import rule_of
from unet_core.models.layers import CropLike

_KEEP_LEVEL = (keras.layers.Cropping2D, keras.layers.ZeroPadding2D)


@dataclasses.dataclass
class Stage:
    """Layers that follow one another at one resolution.

    Attributes:
        name: The first word of the names of the layers that do most of its work; if no word does,
            those of its first and last layer with weights.
        level: Halvings from the image to here.
        sources: The stages that it takes tensors from, by their numbers; -1 is the image.
        work: What its calls compute, in order.
    """

    name: str
    level: int
    sources: list[int]
    work: list[CallWork]

    @property
    def main_word(self) -> str:
        """The first word of the names of the layers that do most of its work, if one word does."""
        counts: collections.Counter[str] = collections.Counter()
        for work in self.work:
            counts[_word(work.call.layer)] += work.flops or 0
        word, most = counts.most_common(1)[0]
        return word if 2 * most > self.flops else ""

    @property
    def shape(self) -> Shape:
        """The shape of what it gives: of the last of the layers that do most of its work.

        If there are none, of its last layer that does not pad for the next stage.
        """
        padding = keras.layers.ZeroPadding2D
        last = [work for work in self.work if not isinstance(work.call.layer, padding)]
        main = [work for work in last if _word(work.call.layer) == self.main_word]
        return (main or last or self.work)[-1].outputs[-1]

    @property
    def flops(self) -> int:
        """Floating-point operations, of the classes that have a formula."""
        return sum(work.flops or 0 for work in self.work)

    @property
    def layers_with_weights(self) -> list[keras.Layer]:
        """Its layers that hold weights, each once."""
        layers = [work.call.layer for work in self.work if getattr(work.call.layer, "weights", ())]
        return list({id(layer): layer for layer in layers}.values())


def stages_of(model: keras.Model, work: list[CallWork]) -> tuple[list[Stage], list[int]]:
    """Returns the stages in order, and for each output of `model` the number of its stage.

    Args:
        model: A functional or sequential network.
        work: That of `work_of`, at the size of image to look at.
    """
    stages: list[Stage] = []
    levels = {id(tensor): 0 for tensor in model.inputs}
    owners = {id(tensor): -1 for tensor in model.inputs}
    for each in work:
        call = each.call
        found = _levels(each, [levels[id(tensor)] for tensor in call.inputs])
        if not stages or stages[-1].level != found[-1]:
            stages.append(Stage("", found[-1], [], []))
        stage, number = stages[-1], len(stages) - 1
        stage.work.append(each)
        # The second input of `CropLike` gives its size only.
        used = call.inputs[:1] if isinstance(call.layer, CropLike) else call.inputs
        for source in (owners[id(tensor)] for tensor in used):
            if source != number and source not in stage.sources:
                stage.sources.append(source)
        levels.update(zip(map(id, call.outputs), found, strict=True))
        owners.update((id(tensor), number) for tensor in call.outputs)
    for stage in stages:
        stage.name = _name(stage)
    return stages, [owners[id(tensor)] for tensor in model.outputs]


def _levels(work: CallWork, of_inputs: list[int]) -> list[int]:
    """Returns the level of each output; without a place, as after global pooling, the input's."""
    placed = [
        (level, shape[1])
        for level, shape in zip(of_inputs, work.inputs, strict=True)
        if _has_place(shape)
    ]
    if not placed:
        return [of_inputs[0] if of_inputs else 0] * len(work.outputs)
    level, size = placed[0]
    return [
        level + _halvings(work.call.layer, size, shape[1]) if _has_place(shape) else level
        for shape in work.outputs
    ]


def _has_place(shape: Shape) -> bool:
    return len(shape) == 4 and None not in shape[1:3] and shape[1:3] != (1, 1)


def _halvings(layer: keras.Operation, before: int | None, after: int | None) -> int:
    """Returns how often `layer` halves `before` pixels to `after`, or doubles if it is negative.

    By its strides where it has some: without padding, sizes are not whole multiples.
    """
    if not before or not after or rule_of(layer).left_out or isinstance(layer, _KEEP_LEVEL):
        return 0
    strides = getattr(layer, "strides", None)
    if isinstance(strides, tuple):
        halvings = round(math.log2(strides[0]))
        return halvings if after < before else -halvings
    return round(math.log2(before / after))


def _name(stage: Stage) -> str:
    main = stage.main_word
    if main:
        return main
    layers = stage.layers_with_weights or [work.call.layer for work in stage.work]
    first, last = (_word(layer) for layer in (layers[0], layers[-1]))
    return first if first == last else f"{first} – {last}"  # noqa: RUF001 (A range.)


def _word(layer: keras.Operation) -> str:
    return layer.name.partition("_")[0]
