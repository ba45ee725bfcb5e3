"""The expansive path of Ronneberger et al. 2015 (arXiv:1505.04597)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import keras

from unet_core.models.blocks import MARGIN_PX, Blocks

_Grow = Callable[[keras.KerasTensor, int, str], keras.KerasTensor]


def transpose(
    features: Mapping[int, keras.KerasTensor], blocks: Blocks
) -> dict[int, keras.KerasTensor]:
    """Returns the levels by stride; each is of the next by a 2x2 transposed convolution."""

    def grow(x, filters, name):
        return keras.layers.Conv2DTranspose(
            filters,
            2,
            strides=2,
            kernel_initializer=blocks.initialiser(name),
            dtype=blocks.policy,
            name=name,
        )(x)

    return _decode(features, blocks, grow)


def upsample(
    features: Mapping[int, keras.KerasTensor], blocks: Blocks
) -> dict[int, keras.KerasTensor]:
    """Returns the levels by stride; each is of the next by repetition and a 2x2 convolution."""

    def grow(x, filters, name):
        x = keras.layers.UpSampling2D(2, dtype=blocks.policy, name=f"{name}_repeat")(x)
        x = blocks.convolve(x, filters, 2, name, padding="same")
        return blocks.activate(x, name)

    return _decode(features, blocks, grow)


def _decode(
    features: Mapping[int, keras.KerasTensor], blocks: Blocks, grow: _Grow
) -> dict[int, keras.KerasTensor]:
    """Returns the deepest features, grown level by level and joined with those of each stride."""
    levels, x, lost = {}, features[2**blocks.depth], MARGIN_PX
    for level in reversed(range(blocks.depth)):
        name = f"up{level}"
        x = grow(x, blocks.filters(level), f"{name}_grow")
        skip = features.get(2**level)
        # What unpadded convolutions below have taken off each side, in pixels of this level: 4, 16,
        # 40 and 88 in the paper. Those of the encoder and of the decoder take the same.
        lost *= 2
        if skip is not None:
            if blocks.padding == "valid":
                crop = keras.layers.Cropping2D(lost, dtype=blocks.policy, name=f"{name}_crop")
                skip = crop(skip)
            x = keras.layers.Concatenate(dtype=blocks.policy, name=f"{name}_join")([skip, x])
        x = levels[2**level] = blocks.double_convolution(x, blocks.filters(level), name)
        lost += 2 * MARGIN_PX
    return levels
