"""U-Net++ (Zhou et al. 2018, arXiv:1807.10165): nested, dense skip connections."""

from __future__ import annotations

from collections.abc import Mapping

import keras

from unet_core.models.blocks import Blocks
from unet_core.models.decoders.unet import transposed


def unet_plus_plus(
    features: Mapping[int, keras.KerasTensor], blocks: Blocks
) -> dict[int, keras.KerasTensor]:
    """Returns the logits by stride, each of the last node of its level.

    The node X[i, 0] is the encoder's feature of stride 2**i. X[i, j] is two convolutions of what
    the level has before it, X[i, 0] ... X[i, j - 1], joined with X[i + 1, j - 1] grown to its size;
    X[i, depth - i] is the last. A feature that is missing is left out of the joins, and so are
    nodes that would have nothing below to grow.

    The paper supervises the nodes X[0, j], all of full size; here supervision is that of the levels
    i, as for the other decoders.

    Raises:
        UserError: If the padding is "valid".
    """
    blocks.need_same_padding("unet_plus_plus")
    grow = transposed(blocks)
    # The nodes of each level, by j.
    nodes = [{0: features[2**i]} if 2**i in features else {} for i in range(blocks.depth + 1)]
    for j in range(1, blocks.depth + 1):
        for i in range(blocks.depth + 1 - j):
            if j - 1 not in nodes[i + 1]:
                continue
            name, filters = f"up{i}_{j}", blocks.filters(i)
            parts = [*nodes[i].values(), grow(nodes[i + 1][j - 1], filters, f"{name}_grow")]
            x = parts[0]
            if len(parts) > 1:
                x = keras.layers.Concatenate(dtype=blocks.policy, name=f"{name}_join")(parts)
            nodes[i][j] = blocks.double_convolution(x, filters, name)
    return {2**i: blocks.head(nodes[i][blocks.depth - i], 2**i) for i in range(blocks.depth)}
