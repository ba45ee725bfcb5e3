"""The U-Net of Ronneberger et al. 2015 (arXiv:1505.04597), for images of any size.

    model = make_unet(classes=2)
    logits = model(images)     # [B, H, W, 1] pixel values, any H and W -> [B, H, W, 1]

Precision is a property of the model: its layers carry their own dtype policy, the variables are
float32 and so are the logits.
"""

from __future__ import annotations

import dataclasses

import keras

from unet_core.errors import UserError
from unet_core.models.layers import CropLike, FusedBatchNorm, MirrorPad, RowDropout

PADDINGS = ("same", "valid")
DECODERS = ("transpose", "upsample")
_POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


def make_unet(
    *,
    classes: int,
    channels: int = 1,
    depth: int = 4,
    base_filters: int = 64,
    padding: str = "same",
    decoder: str = "transpose",
    batch_norm: bool = False,
    dropout: float = 0.0,
    precision: str = "float32",
    seed: int = 0,
) -> keras.Model:
    """Returns a U-Net from 8-bit pixel values to logits of the same height and width.

    The network scales 0..255 to -2..2 itself, so nothing outside it scales, and it pads by
    mirroring and crops, so that every image size will do. Convolutions are initialised by He et al.
    2015 and have no bias where batch norm follows; dropout stands at the end of the contracting
    path.

    Args:
        classes: Number of classes, >= 2. Two classes share one logit, that of class 1.
        channels: Channels of the image.
        depth: Number of poolings; the paper's is 4.
        base_filters: Channels of the first level, doubled by every pooling; the paper's is 64.
        padding: "same", or "valid" as in the paper, with the image mirrored around by 92 pixels
            (for depth 4).
        decoder: "transpose" for a 2x2 transposed convolution; "upsample" for doubling by repetition
            and a 2x2 convolution.
        batch_norm: Whether a batch norm follows every 3x3 convolution.
        dropout: Share of values dropped at the end of the contracting path.
        precision: "float32", "bfloat16" or "float16": what the layers compute in.
        seed: Seed of the initial weights and of dropout.

    Returns:
        A `keras.Model` from [B, H, W, channels], uint8 or float pixel values in 0..255, to float32
        logits [B, H, W, 1] for two classes and [B, H, W, classes] for more.

    Raises:
        UserError: If an argument is outside its range.
    """
    for name, value, choices in (
        ("padding", padding, PADDINGS),
        ("decoder", decoder, DECODERS),
        ("precision", precision, tuple(_POLICIES)),
    ):
        if value not in choices:
            raise UserError(f"`{name}` ({value!r}) must be one of {', '.join(choices)}.")
    for name, value, minimum in (
        ("classes", classes, 2),
        ("channels", channels, 1),
        ("depth", depth, 1),
        ("base_filters", base_filters, 1),
    ):
        if value < minimum:
            raise UserError(f"`{name}` ({value}) must be at least {minimum}.")
    layers = keras.layers
    policy = keras.DTypePolicy(_POLICIES[precision])
    seeds = iter(range(seed * 1000, (seed + 1) * 1000))

    def initialiser():
        return keras.initializers.HeNormal(seed=next(seeds))

    def convolve(x, filters, size, name, **kwargs):
        return layers.Conv2D(
            filters, size, kernel_initializer=initialiser(), dtype=policy, name=name, **kwargs
        )(x)

    def level(x, filters, name):
        for number in (1, 2):
            part = f"{name}_conv{number}"
            if batch_norm:
                x = convolve(x, filters, 3, part, padding=padding, use_bias=False)
                x = FusedBatchNorm(dtype=policy, name=f"{part}_norm")(x)
                x = layers.ReLU(dtype=policy, name=f"{part}_relu")(x)
            else:
                x = convolve(x, filters, 3, part, padding=padding, activation="relu")
        return x

    def upsample(x, filters, name):
        if decoder == "transpose":
            return layers.Conv2DTranspose(
                filters, 2, strides=2, kernel_initializer=initialiser(), dtype=policy, name=name
            )(x)
        x = layers.UpSampling2D(2, dtype=policy, name=f"{name}_repeat")(x)
        return convolve(x, filters, 2, name, padding="same", activation="relu")

    images = keras.Input((None, None, channels), name="images")
    x = layers.Rescaling(4 / 255, -2.0, dtype="float32", name="scale")(images)
    x = MirrorPad(depth=depth, valid=padding == "valid", dtype="float32", name="pad")(x)
    skips = []
    for number in range(depth):
        x = level(x, base_filters * 2**number, f"down{number}")
        skips.append(x)
        x = layers.MaxPooling2D(2, dtype=policy, name=f"down{number}_pool")(x)
    x = level(x, base_filters * 2**depth, "bottom")
    if dropout:
        x = RowDropout(dropout, seed=next(seeds), dtype=policy, name="bottom_dropout")(x)
    excess = 4
    for number in reversed(range(depth)):
        x = upsample(x, base_filters * 2**number, f"up{number}_grow")
        skip = skips[number]
        if padding == "valid":
            # What unpadded convolutions below have taken off each side: 4, 16, 40 and 88 in the
            # paper.
            skip = layers.Cropping2D(excess, dtype=policy, name=f"up{number}_crop")(skip)
            excess = 2 * (excess + 4)
        x = layers.Concatenate(dtype=policy, name=f"up{number}_join")([skip, x])
        x = level(x, base_filters * 2**number, f"up{number}")
    x = convolve(x, 1 if classes == 2 else classes, 1, "head")
    x = CropLike(dtype=policy, name="crop")([x, images])
    logits = layers.Activation("linear", dtype="float32", name="logits")(x)
    return keras.Model(images, logits, name="unet")


@dataclasses.dataclass(frozen=True)
class TileGeometry:
    """What a tile needs around it so that a U-Net without padding and cropping layers sees the
    whole image in it, in pixels.

    Attributes:
        halo: Output pixels at each edge that depend on the zeros that convolutions pad with, if the
            tile begins and ends at multiples of `stride`; all others are those of the whole image.
        stride: A tile's origin and size must be multiples of it; with "valid" convolutions, the
            origin and the size of the output must.
        cut: Pixels by which the output is smaller than the tile, on each side.
    """

    halo: int
    stride: int
    cut: int

    def padding(self, margin: int) -> tuple[int, int]:
        """Returns the pixels to add before and after an axis whose length is a multiple of
        `stride`, so that the logits begin `margin` pixels before it and end `margin` or more after.
        """
        before = margin + self.cut
        # Unpadded convolutions need even numbers at every pooling.
        wanted = 4 * (self.stride - 1) if self.cut else 0
        return before, before + (wanted - 2 * before) % self.stride


def tile_geometry(model: keras.Model) -> TileGeometry:
    """Returns the surroundings of a network of `make_unet`.

    Raises:
        ValueError: If `model` is no such network.
    """
    pads = [layer for layer in model.layers if isinstance(layer, MirrorPad)]
    if len(pads) != 1:
        raise ValueError(
            f"Expected a network of `make_unet`, with one MirrorPad layer. Received {model.name!r} "
            f"with {len(pads)}."
        )
    depth, stride = pads[0].depth, 2 ** pads[0].depth
    # The 2x2 convolution after doubling pads one zero below and right, whatever the others do.
    doubled = any(isinstance(layer, keras.layers.UpSampling2D) for layer in model.layers)
    if pads[0].valid:
        return TileGeometry(
            halo=stride - 1 if doubled else 0, stride=stride, cut=4 * (stride - 1) + 2 * stride
        )
    # Each level's two 3x3 convolutions carry the zeros two pixels further in.
    halo = 0
    for _ in range(depth):
        halo = -(-(halo + 2) // 2)
    halo += 2
    for _ in range(depth):
        halo = 2 * halo + doubled + 2
    return TileGeometry(halo=halo, stride=stride, cut=0)
