"""Attention U-Net (Oktay et al. 2018, arXiv:1804.03999): gates on the skip connections."""

from __future__ import annotations

from collections.abc import Mapping

import keras

from unet_core.models.blocks import Blocks
from unet_core.models.decoders.unet import decode, transposed


def attention(
    features: Mapping[int, keras.KerasTensor], blocks: Blocks
) -> dict[int, keras.KerasTensor]:
    """Returns the logits by stride of the U-Net's decoder, its skip connections gated.

    The additive gate multiplies the skip x, [B, H, W, F], by a factor alpha in 0..1 for each pixel,
    made of x and of the decoder's g, [B, H/2, W/2, G], from the level below:

        alpha = sigmoid(w . activation(W_x x + W_g g + b_g) + b)

    W_x is a 2x2 convolution of stride 2 to F / 2 channels, as in the authors' program, W_g a 1x1
    convolution to as many; the sigmoid is interpolated bilinearly to the size of x.

    Raises:
        UserError: If the padding is "valid".
    """
    blocks.need_same_padding("attention")

    def gate(skip, below, name):
        filters = max(skip.shape[-1] // 2, 1)
        of_skip = blocks.convolve(skip, filters, 2, f"{name}_skip", strides=2, use_bias=False)
        of_below = blocks.convolve(below, filters, 1, f"{name}_signal")
        x = keras.layers.Add(dtype=blocks.policy, name=f"{name}_add")([of_skip, of_below])
        x = blocks.activate(x, name)
        x = blocks.convolve(x, 1, 1, f"{name}_alpha", activation="sigmoid")
        x = blocks.interpolate(x, 2, f"{name}_interpolate")
        return keras.layers.Multiply(dtype=blocks.policy, name=f"{name}_multiply")([skip, x])

    return decode(features, blocks, transposed(blocks), gate)
