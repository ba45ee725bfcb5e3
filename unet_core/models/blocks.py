"""What encoder, decoder and head of one network share: convolutions, normalisation, types, seeds.

blocks = Blocks(depth=4, base_filters=64, policy=keras.DTypePolicy("float32"))
x = blocks.double_convolution(x, blocks.filters(0), "down0")
"""

from __future__ import annotations

import dataclasses
import hashlib
import math

import keras

from unet_core.conventions import MIDDLE, SPREAD
from unet_core.errors import UserError
from unet_core.models.layers import FusedBatchNorm, RowDropout
from unet_core.models.normalization import GroupNorm
from unet_core.models.resampling import Interpolate

MARGIN_PX = 2
"""Pixels that `Blocks.double_convolution` takes off each side with the padding "valid"."""
NORMALIZATIONS = ("none", "batch", "group", "instance")
ACTIVATIONS = ("relu", "leaky_relu", "silu")
GROUPS = 8
"""Groups of channels of the normalisation "group", or their largest common divisor with those."""
LEAKY_SLOPE = 0.01
"""Slope of leaky ReLU below 0, that of Maas et al. 2013 and of nnU-Net."""


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The parts that networks are built of, with the settings of one network.

    Attributes:
        depth: Number of halvings; the deepest features have the stride 2**depth.
        base_filters: Channels of the first level.
        policy: What every layer computes in.
        max_filters: Most channels of a level.
        padding: "same" or "valid".
        normalization: What follows every 3x3 convolution, of `NORMALIZATIONS`: nothing, batch norm
            (Ioffe and Szegedy 2015, arXiv:1502.03167), group norm (Wu and He 2018,
            arXiv:1803.08494) or instance norm (Ulyanov et al. 2016, arXiv:1607.08022).
        activation: What follows that, of `ACTIVATIONS`.
        dropout: Share of values that `drop` drops; 0 is no dropout.
        logits: Channels that `head` gives.
        seed: Seed of the network, from which that of every layer is made.
    """

    depth: int
    base_filters: int
    policy: keras.DTypePolicy
    max_filters: int = 2**16
    padding: str = "same"
    normalization: str = "none"
    activation: str = "relu"
    dropout: float = 0.0
    logits: int = 1
    seed: int = 0

    def filters(self, level: int) -> int:
        """Returns the channels of a level: `base_filters`, doubled by each halving, up to most."""
        return min(self.base_filters * 2**level, self.max_filters)

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
        """Returns x after a 3x3 convolution, the normalisation if there is one, and activation.

        The convolution has no bias where a normalisation follows.
        """
        if self.normalization == "none" and self.activation != "leaky_relu":
            activation = self.activation
            return self.convolve(x, filters, 3, name, padding=self.padding, activation=activation)
        return self.activate(self.normalized_convolution(x, filters, 3, name), name)

    def normalized_convolution(
        self, x: keras.KerasTensor, filters: int, size: int, name: str, **kwargs
    ) -> keras.KerasTensor:
        """Returns x after a convolution and the normalisation if there is one.

        `kwargs` are those of `Conv2D`.
        """
        kwargs = {"padding": self.padding, "use_bias": self.normalization == "none", **kwargs}
        return self.normalize(self.convolve(x, filters, size, name, **kwargs), name)

    def normalize(self, x: keras.KerasTensor, name: str) -> keras.KerasTensor:
        """Returns x after the normalisation, named after the convolution `name` before it."""
        if self.normalization == "none":
            return x
        layer = {"dtype": self.policy, "name": f"{name}_norm"}
        if self.normalization == "batch":
            return FusedBatchNorm(**layer)(x)
        channels = x.shape[-1]
        groups = math.gcd(channels, GROUPS) if self.normalization == "group" else channels
        return GroupNorm(groups, **layer)(x)

    def activate(self, x: keras.KerasTensor, name: str) -> keras.KerasTensor:
        """Returns x after the activation, named after the convolution `name` before it."""
        layer = {"dtype": self.policy, "name": f"{name}_{self.activation}"}
        if self.activation == "relu":
            return keras.layers.ReLU(**layer)(x)
        if self.activation == "leaky_relu":
            return keras.layers.LeakyReLU(negative_slope=LEAKY_SLOPE, **layer)(x)
        return keras.layers.Activation(self.activation, **layer)(x)

    def double_convolution(
        self, x: keras.KerasTensor, filters: int, name: str
    ) -> keras.KerasTensor:
        """Returns x after two `convolution_unit`, named after the level `name`."""
        for number in (1, 2):
            x = self.convolution_unit(x, filters, f"{name}_conv{number}")
        return x

    def head(self, x: keras.KerasTensor, stride: int = 1) -> keras.KerasTensor:
        """Returns the logits of the level of this stride, made of x by a 1x1 convolution."""
        return self.convolve(x, self.logits, 1, f"head_{stride}" if stride > 1 else "head")

    def interpolate(self, x: keras.KerasTensor, times: int, name: str) -> keras.KerasTensor:
        """Returns x, `times` as high and wide by bilinear interpolation; x itself for 1."""
        if times == 1:
            return x
        return Interpolate(times, dtype=self.policy, name=name)(x)

    def need_same_padding(self, decoder: str) -> None:
        """Raises UserError if the padding is "valid", with the name of the decoder."""
        if self.padding != "same":
            raise UserError(
                f"`decoder` {decoder!r} needs `padding` 'same': it joins features of one extent. "
                "The decoders transpose and upsample take 'valid', too."
            )

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
