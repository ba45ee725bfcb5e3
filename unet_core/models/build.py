"""Networks for images of any size, of input scaling, an encoder, a decoder and a head.

    model = make_network(classes=2)
    logits = model(images)     # [B, H, W, 1] pixel values, any H and W -> [B, H, W, 1]

With deep supervision it has logits of several sizes; `full_size(model)` has the first alone.

Precision is a property of the model: its layers carry their own dtype policy, the variables are
float32 and so are the logits.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping

import keras

from unet_core.conventions import number_of_logits
from unet_core.errors import UserError
from unet_core.models.blocks import ACTIVATIONS, NORMALIZATIONS, Blocks, scale_pixels
from unet_core.models.decoders import DECODERS
from unet_core.models.encoders import ENCODERS
from unet_core.models.layers import CropLike, MirrorPad
from unet_core.models.stem import DepthToSpace, SpaceToDepth
from unet_core.models.weights import fit_file

PADDINGS = ("same", "valid")
_POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}
PRECISIONS = tuple(_POLICIES)
HEADS = ("softmax", "sigmoid")


def make_network(
    *,
    classes: int,
    channels: int = 1,
    encoder: str = "unet",
    decoder: str = "transpose",
    depth: int = 4,
    base_filters: int = 64,
    max_filters: int = 2**16,
    padding: str = "same",
    normalization: str = "none",
    activation: str = "relu",
    dropout: float = 0.0,
    stem_stride: int = 1,
    deep_supervision: bool = False,
    heads: str = "softmax",
    precision: str = "float32",
    seed: int = 0,
) -> keras.Model:
    """Returns a network from 8-bit pixel values to logits of the same height and width.

    The network scales 0..255 to -2..2 itself, or as its encoder wants it, so nothing outside it
    scales, and it pads by mirroring and crops, so that every image size will do. Convolutions are
    initialised by He et al. 2015 and have no bias where a normalisation follows; dropout stands at
    the end of the encoder.

    Args:
        classes: Number of classes, >= 2. Two classes share one logit, that of class 1. With the
            heads "sigmoid" >= 1, each with a logit of its own.
        channels: Channels of the image.
        encoder: A name in `ENCODERS`; "unet" is that of Ronneberger et al. 2015 (arXiv:1505.04597).
        decoder: A name in `DECODERS`; "transpose" is the U-Net's, which grows by 2x2 transposed
            convolutions, "upsample" by repetition and a 2x2 convolution.
        depth: Number of halvings; the paper's is 4.
        base_filters: Channels of the first level, doubled by every halving; the paper's is 64.
        max_filters: Most channels of a level.
        padding: "same", or "valid" as in the paper, with the image mirrored around by 92 pixels
            (for depth 4).
        normalization: What follows every 3x3 convolution: "none", "batch", "group" (8 groups of
            channels), "instance". An encoder with weights of its own keeps its own.
        activation: "relu", "leaky_relu" or "silu", as for `normalization`.
        dropout: Share of values dropped at the end of the encoder.
        stem_stride: A power of 2. The network begins with space-to-depth and ends with
            depth-to-space by so many pixels, so that it costs 1 / stem_stride**2 as much.
        deep_supervision: Whether each level of the decoder has a head of its own for training
            (Lee et al. 2015, arXiv:1409.5185); see `losses.deeply_supervised`.
        heads: "softmax" for classes of which a pixel has one, "sigmoid" for those that may overlap.
        precision: "float32", "bfloat16" or "float16": what the layers compute in.
        seed: Seed of the initial weights and of dropout.

    Returns:
        A `keras.Model` from [B, H, W, channels], uint8 or float pixel values in 0..255, to float32
        logits [B, H, W, 1] for two classes of which a pixel has one, else [B, H, W, classes]. With
        deep supervision a list of them, of sizes [H, W], [ceil(H / 2), ceil(W / 2)], ...

    Raises:
        UserError: If an argument is outside its range, or the encoder or decoder cannot do it.
    """
    _check_choice("encoder", encoder, ENCODERS)
    _check_choice("decoder", decoder, DECODERS)
    _check_choice("padding", padding, PADDINGS)
    _check_choice("normalization", normalization, NORMALIZATIONS)
    _check_choice("activation", activation, ACTIVATIONS)
    _check_choice("precision", precision, PRECISIONS)
    _check_choice("heads", heads, HEADS)
    _check_least("classes", classes, 1 if heads == "sigmoid" else 2)
    _check_least("channels", channels, 1)
    _check_least("depth", depth, 1)
    _check_least("base_filters", base_filters, 1)
    check_encoder(encoder, depth, padding)
    _check_least("max_filters", max_filters, base_filters)
    _check_stem(stem_stride, encoder, padding)
    blocks = Blocks(
        depth=depth,
        base_filters=base_filters,
        max_filters=max_filters,
        padding=padding,
        normalization=normalization,
        activation=activation,
        dropout=dropout,
        logits=number_of_logits(classes, heads == "sigmoid") * stem_stride**2,
        policy=keras.DTypePolicy(_POLICIES[precision]),
        seed=seed,
    )
    images = keras.Input((None, None, channels), name="images")
    levels = DECODERS[decoder](_encode(images, encoder, blocks, stem_stride), blocks)
    strides = _supervised(decoder, levels, padding) if deep_supervision else [1]
    logits = [_finish(levels[stride], images, stride, stem_stride, blocks) for stride in strides]
    return keras.Model(images, logits if deep_supervision else logits[0], name=encoder)


def make_backbone(
    encoder: str,
    *,
    channels: int = 3,
    depth: int | None = None,
    base_filters: int = 64,
    precision: str = "float32",
    seed: int = 0,
    weights: str | os.PathLike | None = None,
) -> keras.Model:
    """Returns an encoder alone, to put the head of another task on, such as classification.

        backbone = make_backbone("efficientnet_b3")
        x = keras.layers.GlobalAveragePooling2D()(backbone.output)
        model = keras.Model(backbone.input, keras.layers.Dense(10)(x))

    Args:
        encoder: As for `make_network`.
        channels: Channels of the image.
        depth: Number of halvings; None is the most that it has, or 4 if it has any number.
        base_filters: As for `make_network`.
        precision: As for `make_network`.
        seed: As for `make_network`.
        weights: A file of Keras with weights of all its layers, such as those of ImageNet; see
            `unet_core.models.weights`.

    Returns:
        A `keras.Model` from [B, H, W, channels], uint8 or float pixel values in 0..255 of any H
        and W, to the deepest features [B, ceil(H / 2**depth), ceil(W / 2**depth), F].

    Raises:
        UserError: As `make_network`; if `weights` cannot be read, or lack a layer.
    """
    _check_choice("encoder", encoder, ENCODERS)
    _check_choice("precision", precision, PRECISIONS)
    if depth is None:
        depth = max(ENCODERS[encoder].depths, default=4)
    _check_least("channels", channels, 1)
    _check_least("depth", depth, 1)
    _check_least("base_filters", base_filters, 1)
    check_encoder(encoder, depth, "same")
    policy = keras.DTypePolicy(_POLICIES[precision])
    blocks = Blocks(depth=depth, base_filters=base_filters, policy=policy, seed=seed)
    images = keras.Input((None, None, channels), name="images")
    model = keras.Model(images, _encode(images, encoder, blocks)[2**depth], name=encoder)
    if weights:
        taken = fit_file(weights, model, part="encoder")
        if lacking := [row for row in taken.rows if row.wanted and not row.loaded]:
            raise UserError(
                f"{weights}: has no weights for {len(lacking)} layers of the `encoder` {encoder}, "
                f"such as {lacking[0].layer} ({lacking[0].reason}). Give a file of all of them."
            )
        taken.apply(model)
    return model


def _encode(
    images: keras.KerasTensor, encoder: str, blocks: Blocks, stem_stride: int = 1
) -> Mapping[int, keras.KerasTensor]:
    """Returns the features of `images`, scaled and padded, by stride."""
    x = (ENCODERS[encoder].scale or scale_pixels)(images)
    halvings, valid = blocks.depth + stem_stride.bit_length() - 1, blocks.padding == "valid"
    x = MirrorPad(depth=halvings, valid=valid, dtype="float32", name="pad")(x)
    if stem_stride > 1:
        x = SpaceToDepth(stem_stride, dtype=blocks.policy, name="stem")(x)
    return ENCODERS[encoder].make_features(x, blocks)


def full_size(model: keras.Model) -> keras.Model:
    """Returns the network with the first of its outputs alone; the layers are shared."""
    if len(model.outputs) == 1:
        return model
    return keras.Model(model.input, model.outputs[0], name=model.name)


def _finish(
    x: keras.KerasTensor, images: keras.KerasTensor, stride: int, stem_stride: int, blocks: Blocks
) -> keras.KerasTensor:
    """Returns the logits x of this stride, of the size of the image over the stride."""
    suffix = f"_{stride}" if stride > 1 else ""
    if stem_stride > 1:
        x = DepthToSpace(stem_stride, dtype=blocks.policy, name=f"unstem{suffix}")(x)
    x = CropLike(stride, dtype=blocks.policy, name=f"crop{suffix}")([x, images])
    return keras.layers.Activation("linear", dtype="float32", name=f"logits{suffix}")(x)


def _supervised(decoder: str, levels: Mapping[int, keras.KerasTensor], padding: str) -> list[int]:
    """Returns the strides of the levels that get a head each, 1 first."""
    if padding == "valid":
        raise UserError("`deep_supervision` needs `padding` 'same': levels of one extent.")
    if len(levels) == 1:
        raise UserError(
            "`deep_supervision` needs two levels or more, as the decoder transpose has at `depth` "
            f"2; `decoder` {decoder!r} has one at this depth. Leave one of them out, or go deeper."
        )
    return sorted(levels)


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


def _check_stem(stem_stride: int, encoder: str, padding: str) -> None:
    _check_least("stem_stride", stem_stride, 1)
    if stem_stride & (stem_stride - 1):
        raise UserError(f"`stem_stride` ({stem_stride}) must be a power of 2.")
    if stem_stride == 1:
        return
    if padding == "valid":
        raise UserError("`stem_stride` needs `padding` 'same'.")
    if ENCODERS[encoder].scale is not None:
        raise UserError(
            f"`stem_stride` needs an encoder of this package; `encoder` {encoder!r} begins with "
            "images as its weights were trained with."
        )
