"""The layers of a functional network in the order in which they compute."""

from __future__ import annotations

import dataclasses

import keras


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of one layer.

    Attributes:
        layer: The layer, or another operation of Keras.
        inputs: What it is given, its tensors in order.
        outputs: What it gives.
    """

    layer: keras.Operation
    inputs: tuple[keras.KerasTensor, ...]
    outputs: tuple[keras.KerasTensor, ...]


def calls(model: keras.Model) -> list[Call]:
    """Returns the calls that compute the outputs of `model`, each after those it depends on.

    Inputs are no calls. A layer that is called twice is there twice.

    Raises:
        ValueError: If `model` is neither functional nor sequential.
    """
    if not getattr(model, "outputs", None):
        raise ValueError(
            f"Expected a functional or sequential model. Received {model.name!r} "
            f"({type(model).__name__}), of which the layers' connections are not known."
        )
    given = {id(tensor) for tensor in model.inputs}
    found: dict[int, Call] = {}
    waiting = [tensor for tensor in reversed(model.outputs) if id(tensor) not in given]
    while waiting:
        node = _node(waiting[-1])
        missing = [
            tensor
            for tensor in node.input_tensors
            if id(tensor) not in given and id(_node(tensor)) not in found
        ]
        if missing:
            waiting.extend(reversed(missing))
            continue
        waiting.pop()
        found.setdefault(
            id(node), Call(node.operation, tuple(node.input_tensors), tuple(node.output_tensors))
        )
    return list(found.values())


def _node(tensor: keras.KerasTensor):
    # `Layer.input` knows a layer's first call only; Keras (3.15) has no public name for the others.
    history = tensor._keras_history
    return history.operation._inbound_nodes[history.node_index]
