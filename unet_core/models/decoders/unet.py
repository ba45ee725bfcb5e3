"""The expansive path of Ronneberger et al. 2015 (arXiv:1505.04597)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import keras

from unet_core.models.blocks import MARGIN_PX, Blocks

Grow = Callable[[keras.KerasTensor, int, str], keras.KerasTensor]
"""(x, filters, name) -> x at twice the size."""
Gate = Callable[[keras.KerasTensor, keras.KerasTensor, str], keras.KerasTensor]
"""(skip, the level below, name) -> what the level is joined with in place of the skip."""


def transpose(
    features: Mapping[int, keras.KerasTensor], blocks: Blocks
) -> dict[int, keras.KerasTensor]:
    """Returns the logits by stride; each level grows by a 2x2 transposed convolution."""
    return decode(features, blocks, transposed(blocks))


def transposed(blocks: Blocks) -> Grow:
    """Returns what doubles by a 2x2 transposed convolution."""

    def grow(x, filters, name):
        return keras.layers.Conv2DTranspose(
            filters,
            2,
            strides=2,
            kernel_initializer=blocks.initialiser(name),
            dtype=blocks.policy,
            name=name,
        )(x)

    return grow


def upsample(
    features: Mapping[int, keras.KerasTensor], blocks: Blocks
) -> dict[int, keras.KerasTensor]:
    """Returns the logits by stride; each level grows by repetition and a 2x2 convolution."""

    def grow(x, filters, name):
        x = keras.layers.UpSampling2D(2, dtype=blocks.policy, name=f"{name}_repeat")(x)
        x = blocks.convolve(x, filters, 2, name, padding="same")
        return blocks.activate(x, name)

    return decode(features, blocks, grow)


def decode(
    features: Mapping[int, keras.KerasTensor],
    blocks: Blocks,
    grow: Grow,
    gate: Gate = lambda skip, *_: skip,
) -> dict[int, keras.KerasTensor]:
    """Returns the logits by stride.

    The deepest features are grown level by level, and joined with those of each stride after
    `gate`.
    """
    levels, x, lost = {}, features[2**blocks.depth], MARGIN_PX
    for level in reversed(range(blocks.depth)):
        name = f"up{level}"
        skip, below = features.get(2**level), x
        x = grow(x, blocks.filters(level), f"{name}_grow")
        # What unpadded convolutions below have taken off each side, in pixels of this level: 4, 16,
        # 40 and 88 in the paper. Those of the encoder and of the decoder take the same.
        lost *= 2
        if skip is not None:
            if blocks.padding == "valid":
                crop = keras.layers.Cropping2D(lost, dtype=blocks.policy, name=f"{name}_crop")
                skip = crop(skip)
            skip = gate(skip, below, f"{name}_gate")
            x = keras.layers.Concatenate(dtype=blocks.policy, name=f"{name}_join")([skip, x])
        x = blocks.double_convolution(x, blocks.filters(level), name)
        levels[2**level] = blocks.head(x, 2**level)
        lost += 2 * MARGIN_PX
    return levels
