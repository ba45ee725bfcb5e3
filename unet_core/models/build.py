"""Networks for images of any size, of input scaling, an encoder, a decoder and a head.

    model = make_network(classes=2)
    logits = model(images)     # [B, H, W, 1] pixel values, any H and W -> [B, H, W, 1]

Precision is a property of the model: its layers carry their own dtype policy, the variables are
float32 and so are the logits.
"""

from __future__ import annotations

from collections.abc import Collection

import keras

from unet_core.errors import UserError
from unet_core.models.blocks import Blocks, scale_pixels
from unet_core.models.decoders import DECODERS
from unet_core.models.encoders import ENCODERS
from unet_core.models.layers import CropLike, MirrorPad

PADDINGS = ("same", "valid")
_POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}
PRECISIONS = tuple(_POLICIES)


def make_network(
    *,
    classes: int,
    channels: int = 1,
    encoder: str = "unet",
    decoder: str = "transpose",
    depth: int = 4,
    base_filters: int = 64,
    padding: str = "same",
    batch_norm: bool = False,
    dropout: float = 0.0,
    precision: str = "float32",
    seed: int = 0,
) -> keras.Model:
    """Returns a network from 8-bit pixel values to logits of the same height and width.

    The network scales 0..255 to -2..2 itself, or as its encoder wants it, so nothing outside it
    scales, and it pads by mirroring and crops, so that every image size will do. Convolutions are
    initialised by He et al. 2015 and have no bias where batch norm follows; dropout stands at the
    end of the encoder.

    Args:
        classes: Number of classes, >= 2. Two classes share one logit, that of class 1.
        channels: Channels of the image.
        encoder: A name in `ENCODERS`; "unet" is that of Ronneberger et al. 2015 (arXiv:1505.04597).
        decoder: A name in `DECODERS`; "transpose" grows by 2x2 transposed convolutions, "upsample"
            by repetition and a 2x2 convolution.
        depth: Number of halvings; the paper's is 4.
        base_filters: Channels of the first level, doubled by every halving; the paper's is 64.
        padding: "same", or "valid" as in the paper, with the image mirrored around by 92 pixels
            (for depth 4).
        batch_norm: Whether a batch norm follows every 3x3 convolution.
        dropout: Share of values dropped at the end of the encoder.
        precision: "float32", "bfloat16" or "float16": what the layers compute in.
        seed: Seed of the initial weights and of dropout.

    Returns:
        A `keras.Model` from [B, H, W, channels], uint8 or float pixel values in 0..255, to float32
        logits [B, H, W, 1] for two classes and [B, H, W, classes] for more.

    Raises:
        UserError: If an argument is outside its range, or the encoder or decoder cannot do it.
    """
    _check_choice("encoder", encoder, ENCODERS)
    _check_choice("decoder", decoder, DECODERS)
    _check_choice("padding", padding, PADDINGS)
    _check_choice("precision", precision, PRECISIONS)
    _check_least("classes", classes, 2)
    _check_least("channels", channels, 1)
    _check_least("depth", depth, 1)
    _check_least("base_filters", base_filters, 1)
    check_encoder(encoder, depth, padding)
    blocks = Blocks(
        depth=depth,
        base_filters=base_filters,
        padding=padding,
        batch_norm=batch_norm,
        dropout=dropout,
        policy=keras.DTypePolicy(_POLICIES[precision]),
        seed=seed,
    )
    images = keras.Input((None, None, channels), name="images")
    x = (ENCODERS[encoder].scale or scale_pixels)(images)
    x = MirrorPad(depth=depth, valid=padding == "valid", dtype="float32", name="pad")(x)
    x = DECODERS[decoder](ENCODERS[encoder].make_features(x, blocks), blocks)
    x = blocks.convolve(x, 1 if classes == 2 else classes, 1, "head")
    x = CropLike(dtype=blocks.policy, name="crop")([x, images])
    logits = keras.layers.Activation("linear", dtype="float32", name="logits")(x)
    return keras.Model(images, logits, name=encoder)


def check_encoder(encoder: str, depth: int, padding: str) -> None:
    """Checks that an encoder can have this depth and padding, without building it.

    Raises:
        UserError: If it cannot.
    """
    has = ENCODERS[encoder]
    if has.depths and depth not in has.depths:
        raise UserError(
            f"`depth` ({depth}) must be one of {', '.join(map(str, has.depths))} with the "
            f"`encoder` {encoder}."
        )
    if has.pads_only and padding != "same":
        raise UserError(
            f"`padding` ({padding}) must be same with the `encoder` {encoder}: its layers pad."
        )


def _check_choice(name: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise UserError(f"`{name}` ({value!r}) must be one of {', '.join(choices)}.")


def _check_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"`{name}` ({value}) must be at least {least}.")
