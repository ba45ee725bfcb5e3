"""Floating-point operations of a network, by formula from its layers.

    forward_flops(model, 1, 572, 572)      # of one forward pass
    training_flops(model, 4, 256, 256)     # of one training step: three times that

A multiply-add is two operations. Counted are the products of convolutions and dense layers, where
nearly all the time goes, as if no kernel saved any: with those of the zeros that "same" pads with.
Everything else counts 0: biases, activations, normalisations, poolings, resizing, sums.

A class whose layers hold more than vectors (scales and offsets) and that has no formula in
`FORMULAS` is named, not passed over. A file that brings such a class adds its formula, once:

    FORMULAS[MyConvolution] = lambda layer, inputs, outputs: 2 * math.prod(outputs) * 9
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import keras

from unet_core.models.walk import Call, calls

Shape = tuple[int | None, ...]


@dataclasses.dataclass(frozen=True)
class CallWork:
    """What one call of a layer computes.

    Attributes:
        call: The call.
        inputs: Shapes of what it is given, in order.
        outputs: Shapes of what it gives.
        flops: Floating-point operations; None where its class has no formula.
    """

    call: Call
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]
    flops: int | None


def work_of(model: keras.Model, batch: int, height: int, width: int) -> list[CallWork]:
    """Returns what each call of a forward pass of `model` computes, in order.

    Args:
        model: A functional or sequential network from [B, H, W, C].
        batch: Images.
        height: Pixels of each.
        width: Pixels of each.

    Raises:
        ValueError: If `model` is neither functional nor sequential, or has several inputs.
    """
    if len(model.inputs) != 1:
        raise ValueError(
            f"Expected a network of one input. Received {model.name!r} with {len(model.inputs)}."
        )
    return _work_of(model, (batch, height, width, *model.inputs[0].shape[3:]))


def forward_flops(model: keras.Model, batch: int, height: int, width: int) -> int:
    """Returns the floating-point operations of one forward pass; arguments as for `work_of`.

    Raises:
        ValueError: As `work_of`, or if a class of layers has no formula; the message names it.
    """
    found = work_of(model, batch, height, width)
    missing = uncounted(found)
    if missing:
        raise ValueError(
            f"The operations of {', '.join(missing)} in {model.name!r} are not known: add their "
            "formulas to `unet_core.models.flops.FORMULAS`."
        )
    return sum(work.flops or 0 for work in found)


def training_flops(model: keras.Model, batch: int, height: int, width: int) -> int:
    """Returns the floating-point operations of one training step: 3 x `forward_flops`.

    Each product of the forward pass has one for the gradient of the layer's input and one for that
    of its weights. The convention is kept simple: the first layer needs no gradient of its input
    and a frozen one none of its weights, yet both are counted; the optimizer is not.

    Raises:
        ValueError: As `forward_flops`.
    """
    return 3 * forward_flops(model, batch, height, width)


def uncounted(found: list[CallWork]) -> list[str]:
    """Returns the names of the classes that have no formula, each once."""
    names = [type(work.call.layer).__name__ for work in found if work.flops is None]
    return list(dict.fromkeys(names))


def _work_of(model: keras.Model, shape: Shape) -> list[CallWork]:
    found = calls(model)
    tensors = {id(tensor): tensor for call in found for tensor in call.outputs}
    # With all tensors as outputs, one symbolic pass gives the sizes of all.
    whole = keras.Model(model.inputs, [*model.inputs, *tensors.values()])
    specs = whole.compute_output_spec(keras.KerasTensor(shape, dtype=model.inputs[0].dtype))
    given = [id(tensor) for tensor in model.inputs]
    shapes = dict(zip([*given, *tensors], (tuple(spec.shape) for spec in specs), strict=True))
    work = []
    for call in found:
        inputs = tuple(shapes[id(tensor)] for tensor in call.inputs)
        outputs = tuple(shapes[id(tensor)] for tensor in call.outputs)
        work.append(CallWork(call, inputs, outputs, _flops_of(call.layer, inputs, outputs)))
    return work


def _flops_of(
    layer: keras.Operation, inputs: tuple[Shape, ...], outputs: tuple[Shape, ...]
) -> int | None:
    if isinstance(layer, keras.Model) and getattr(layer, "outputs", None) and len(inputs) == 1:
        parts = [work.flops for work in _work_of(layer, inputs[0])]
        return None if None in parts else sum(part or 0 for part in parts)
    formula = FORMULAS.get(type(layer))
    if formula is not None:
        return formula(layer, inputs[0], outputs[0])
    weights = layer.weights if isinstance(layer, keras.Layer) else []
    # Scales and offsets, such as those of normalisations, have one axis that is not 1.
    only_vectors = all(sum(size != 1 for size in weight.shape) <= 1 for weight in weights)
    return 0 if only_vectors else None


def _products(outputs: Shape, each: int) -> int:
    """Returns the operations of `each` multiply-adds for every element of `outputs`."""
    if None in outputs:
        raise ValueError(f"Expected a layer whose output has a known size. Received {outputs}.")
    return 2 * math.prod(size or 0 for size in outputs) * each


def _of_convolution(layer: keras.layers.Conv2D, inputs: Shape, outputs: Shape) -> int:
    """Dilation spreads the products and changes none; each group sees its share of the channels."""
    return _products(outputs, math.prod(layer.kernel_size) * ((inputs[-1] or 0) // layer.groups))


def _of_transposed(layer: keras.layers.Conv2DTranspose, inputs: Shape, _: Shape) -> int:
    """Each element that goes in is multiplied with the whole kernel, those cropped off too."""
    return _products(inputs, math.prod(layer.kernel_size) * layer.filters)


def _of_depthwise(layer: keras.layers.DepthwiseConv2D, _: Shape, outputs: Shape) -> int:
    return _products(outputs, math.prod(layer.kernel_size))


def _of_separable(layer: keras.layers.SeparableConv2D, inputs: Shape, outputs: Shape) -> int:
    between = (inputs[-1] or 0) * layer.depth_multiplier
    depthwise = _products((*outputs[:-1], between), math.prod(layer.kernel_size))
    return depthwise + _products(outputs, between)


def _of_dense(_: keras.layers.Dense, inputs: Shape, outputs: Shape) -> int:
    return _products(outputs, inputs[-1] or 0)


FORMULAS: dict[type[keras.Operation], Callable[..., int]] = {
    keras.layers.Conv2D: _of_convolution,
    keras.layers.Conv2DTranspose: _of_transposed,
    keras.layers.DepthwiseConv2D: _of_depthwise,
    keras.layers.SeparableConv2D: _of_separable,
    keras.layers.Dense: _of_dense,
}
"""(layer, shape of its input, shape of its output) -> floating-point operations, by class."""
