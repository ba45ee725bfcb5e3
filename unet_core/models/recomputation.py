"""Training that needs less memory: features are computed again in the backward pass, not kept.

    loop = training.Loop(Recomputed(model, size=256), optimizer, loss=my_loss)

This is gradient checkpointing (Chen et al. 2016, arXiv:1604.06174) by the stages of the network,
the layers that follow one another at one resolution: what passes from one stage to another is
kept, what lies within is computed once more when its gradient is due. Gradients, statistics and
dropout are those without it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import keras
import tensorflow as tf

from unet_core.errors import UserError
from unet_core.models import passes
from unet_core.models.flops import work_of
from unet_core.models.stages import stages_of
from unet_core.models.walk import Call

# What an operation with a state may be that nothing is changed by: it reads, checks, or adds up
# over replicas.
_HARMLESS = ("ReadVariableOp", "Assert", "Collective", "Nccl")


@dataclasses.dataclass(frozen=True)
class _Segment:
    """A stage as a network of its own, which shares the layers.

    Attributes:
        inputs: The tensors of the whole network that it needs.
        outputs: The tensors of the whole network that others need of it.
        network: From the first to the second.
        is_last: Whether its gradient comes first, so that nothing is gained by recomputing it.
    """

    inputs: list[keras.KerasTensor]
    outputs: list[keras.KerasTensor]
    network: keras.Model
    is_last: bool


class Recomputed(keras.layers.Layer):
    """A network whose training recomputes the features within its stages.

    It has the variables of the network, in their order, so that checkpoints are those of the
    network. Outside training it is the network.

    Args:
        model: A functional or sequential network of one input, [B, H, W, C].
        size: Height and width of its images in training, in pixels.

    Raises:
        ValueError: If `model` is neither functional nor sequential, or has several inputs.
        UserError: If a layer is called in several stages. In training, if a layer changes a
            variable, draws numbers, or adds a loss when it is called, other than those of
            `unet_core.models.layers`; or if it is not within a `tf.function`.
    """

    def __init__(self, model: keras.Model, *, size: int):
        # Functional networks take inputs as they are, whatever the policy.
        super().__init__(name=f"{model.name}_recomputed", autocast=False)
        self.network = model
        self._segments = _segments_of(model, size)
        self.built = True

    def call(self, images, training=False):
        """Returns what the network does."""
        if not training:
            return self.network(images, training=False)
        if not tf.inside_function():
            raise UserError(
                "`Recomputed` trains within a `tf.function` alone, as the loop does: elsewhere it "
                "cannot be checked that its layers change nothing when they are called again."
            )
        given = self.network.inputs[0]
        known = {id(given): tf.cast(images, given.dtype)}
        for segment in self._segments:
            given = [known[id(tensor)] for tensor in segment.inputs]
            made = _plain(segment, given) if segment.is_last else _recomputed(segment, given)
            known.update(zip(map(id, segment.outputs), made, strict=True))
        outputs = [known[id(tensor)] for tensor in self.network.outputs]
        if len(outputs) == 1:
            return outputs[0]
        return tf.nest.pack_sequence_as(self.network.output, outputs)


def _plain(segment: _Segment, given: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    return tf.nest.flatten(segment.network(list(given), training=True))


def _recomputed(segment: _Segment, given: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    kept: list[tf.Tensor] = []
    is_first = True

    def compute(*given):
        nonlocal is_first
        if is_first:
            is_first = False
            with passes.first(kept):
                made = _plain(segment, given)
            _check_losses(segment)
            return made
        with passes.second(kept):
            before = _operations()
            made = _plain(segment, given)
            _check_operations(_operations()[len(before) :])
            return made

    return tf.nest.flatten(tf.recompute_grad(compute)(*given))


def _segments_of(model: keras.Model, size: int) -> list[_Segment]:
    stages, _ = stages_of(model, work_of(model, 1, size, size))
    groups: list[list[Call]] = []
    with_weights = [number for number, stage in enumerate(stages) if stage.layers_with_weights]
    last = with_weights[-1] if with_weights else 0
    for number, stage in enumerate(stages):
        of_stage = [work.call for work in stage.work]
        if number > last:
            groups[-1] += of_stage
        else:
            groups.append(of_stage)
    segments: list[_Segment] = []
    needed = {id(tensor) for tensor in model.outputs}
    for group in reversed(groups):
        made = {id(tensor): tensor for call in group for tensor in call.outputs}
        read = {id(tensor): tensor for call in group for tensor in call.inputs}
        inputs = [tensor for key, tensor in read.items() if key not in made]
        outputs = [tensor for key, tensor in made.items() if key in needed]
        needed.update(map(id, inputs))
        try:
            network = keras.Model(inputs, outputs)
        except ValueError as error:
            # Keras (3.15) cannot cut a network where a layer is shared.
            raise UserError(
                f"`recompute` takes the network {model.name!r} apart where its resolution changes, "
                "which fails where a layer is called in several stages. Give each stage layers of "
                "its own, or leave `recompute` out."
            ) from error
        segments.append(_Segment(inputs, outputs, network, is_last=not segments))
    return segments[::-1]


def _operations() -> list[tf.Operation]:
    if not tf.inside_function():
        return []
    return tf.compat.v1.get_default_graph().get_operations()


def _check_operations(operations: Sequence[tf.Operation]) -> None:
    """Raises UserError if one of them changes a variable or draws numbers."""
    for operation in operations:
        if operation.op_def.is_stateful and not operation.type.startswith(_HARMLESS):
            raise UserError(
                f"`recompute` calls every layer twice on a batch, and {operation.name} "
                f"({operation.type}) changes a variable or draws numbers each time, so that "
                "gradients would be wrong. Take `FusedBatchNorm` and `RowDropout` of "
                "`unet_core.models.layers`, which know of it, freeze the layer, or leave "
                "`recompute` out."
            )


def _check_losses(segment: _Segment) -> None:
    """Raises UserError if a layer has added a loss when it was called."""
    for layer in segment.network._flatten_layers():
        if layer._get_own_losses():
            raise UserError(
                f"The layer {layer.name} adds a loss when it is called (`add_loss`, an activity "
                "regulariser), which `recompute` would add twice and leave out of the gradient. "
                "Take it into the loss, or leave `recompute` out."
            )
