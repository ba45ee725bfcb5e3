"""What encoder, decoder and head of one network share: convolutions, normalisation, types, seeds.

blocks = Blocks(depth=4, base_filters=64, padding="same", batch_norm=False, dropout=0.0,
                policy=keras.DTypePolicy("float32"), seed=0)
x = blocks.double_convolution(x, blocks.filters(0), "down0")
"""

from __future__ import annotations

import dataclasses
import hashlib

import keras

from unet_core.conventions import MIDDLE, SPREAD
from unet_core.models.layers import FusedBatchNorm, RowDropout

MARGIN_PX = 2
"""Pixels that `Blocks.double_convolution` takes off each side with the padding "valid"."""


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The parts that networks are built of, with the settings of one network.

    Attributes:
        depth: Number of halvings; the deepest features have the stride 2**depth.
        base_filters: Channels of the first level.
        padding: "same" or "valid".
        batch_norm: Whether a batch norm follows every 3x3 convolution.
        dropout: Share of values that `drop` drops; 0 is no dropout.
        policy: What every layer computes in.
        seed: Seed of the network, from which that of every layer is made.
    """

    depth: int
    base_filters: int
    padding: str
    batch_norm: bool
    dropout: float
    policy: keras.DTypePolicy
    seed: int

    def filters(self, level: int) -> int:
        """Returns the channels of a level: `base_filters`, doubled by each halving."""
        return self.base_filters * 2**level

    def seed_of(self, name: str) -> int:
        """Returns the seed of the layer `name`.

        The layers of the U-Net have the numbers seed * 1000 + 0, 1, 2, ... in the order in which
        `_unet_names` lists them, and keep them in every version, so that a run's initial weights
        stay what they were. Any other name is hashed with the seed, to a number below 2**31.
        """
        names = _unet_names(self.depth, bool(self.dropout))
        if name in names:
            return self.seed * 1000 + names.index(name)
        return int(hashlib.sha256(f"{self.seed}/{name}".encode()).hexdigest()[:8], 16) >> 1

    def initialiser(self, name: str) -> keras.initializers.Initializer:
        """Returns the initialiser of the kernel of the layer `name`: He et al. 2015."""
        return keras.initializers.HeNormal(seed=self.seed_of(name))

    def convolve(
        self, x: keras.KerasTensor, filters: int, size: int, name: str, **kwargs
    ) -> keras.KerasTensor:
        """Returns x convolved with a `size` x `size` kernel; `kwargs` are those of `Conv2D`."""
        return keras.layers.Conv2D(
            filters,
            size,
            kernel_initializer=self.initialiser(name),
            dtype=self.policy,
            name=name,
            **kwargs,
        )(x)

    def convolution_unit(self, x: keras.KerasTensor, filters: int, name: str) -> keras.KerasTensor:
        """Returns x after a 3x3 convolution, the normalisation if there is one, and ReLU.

        The convolution has no bias where a normalisation follows.
        """
        if not self.batch_norm:
            return self.convolve(x, filters, 3, name, padding=self.padding, activation="relu")
        x = self.convolve(x, filters, 3, name, padding=self.padding, use_bias=False)
        x = FusedBatchNorm(dtype=self.policy, name=f"{name}_norm")(x)
        return keras.layers.ReLU(dtype=self.policy, name=f"{name}_relu")(x)

    def double_convolution(
        self, x: keras.KerasTensor, filters: int, name: str
    ) -> keras.KerasTensor:
        """Returns x after two `convolution_unit`, named after the level `name`."""
        for number in (1, 2):
            x = self.convolution_unit(x, filters, f"{name}_conv{number}")
        return x

    def drop(self, x: keras.KerasTensor, name: str) -> keras.KerasTensor:
        """Returns x after dropout; x itself if there is none."""
        if not self.dropout:
            return x
        return RowDropout(self.dropout, seed=self.seed_of(name), dtype=self.policy, name=name)(x)


def scale_pixels(images: keras.KerasTensor) -> keras.KerasTensor:
    """Returns pixel values 0..255 scaled to -2..2, in float32."""
    return keras.layers.Rescaling(1 / SPREAD, -MIDDLE / SPREAD, dtype="float32", name="scale")(
        images
    )


def _unet_names(depth: int, dropout: bool) -> list[str]:
    """Returns the layers of the U-Net that draw numbers, in the order of their seeds."""
    levels = [f"down{level}" for level in range(depth)] + ["bottom"]
    names = [f"{level}_conv{number}" for level in levels for number in (1, 2)]
    names += ["bottom_dropout"] * dropout
    for level in reversed(range(depth)):
        names += [f"up{level}_{part}" for part in ("grow", "conv1", "conv2")]
    return [*names, "head"]
