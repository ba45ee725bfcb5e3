"""Settings of the network."""

from __future__ import annotations

import dataclasses

from unet_core.models.decoders import DECODERS
from unet_core.models.encoders import ENCODERS
from unet_core.settings.fields import check_fields, setting
from unet_core.settings.modes import NETWORK, TRAIN


@dataclasses.dataclass(frozen=True)
class NetworkSettings:
    """The network: encoder, decoder, their size, and what they compute in."""

    encoder: str = setting(
        "unet",
        "The network's contracting part (backbone).",
        modes=TRAIN,
        binds=True,
        choices=ENCODERS,
    )
    encoder_weights: str = setting(
        "none",
        "What the encoder begins with: drawn from the seed (none), weights trained on ImageNet "
        "(imagenet; downloaded by Keras, or from its folder), or those of a file (.weights.h5, "
        ".keras, Keras 2's .h5) or of the folder of a run or export, by the names of layers.",
        modes=TRAIN,
        binds=True,
    )
    decoder: str = setting(
        "transpose",
        "The network's expanding part: the U-Net's with transposed convolutions (transpose), or "
        "with upsampling and convolution (upsample).",
        modes=TRAIN,
        binds=True,
        choices=DECODERS,
    )
    depth: int = setting(
        4, "Number of poolings of the U-Net.", modes=TRAIN, binds=True, least=1, most=8
    )
    base_filters: int = setting(
        32,
        "Channels of the first level, doubled by each pooling.",
        modes=TRAIN,
        binds=True,
        least=1,
        most=1024,
    )
    max_filters: int = setting(
        65536,
        "Most channels of a level.",
        modes=TRAIN,
        binds=True,
        least=1,
        most=65536,
    )
    padding: str = setting(
        "same",
        "Convolution padding; valid is the paper's, with the image mirrored around.",
        modes=TRAIN,
        binds=True,
        choices=("same", "valid"),
    )
    normalization: str = setting(
        "none",
        "Normalization after every 3x3 convolution; batch norm is synchronized over devices. "
        "Encoders of keras.applications keep their own.",
        modes=TRAIN,
        binds=True,
        choices=("none", "batch", "group", "instance"),
    )
    activation: str = setting(
        "relu",
        "Activation after every 3x3 convolution. Encoders of keras.applications keep their own.",
        modes=TRAIN,
        binds=True,
        choices=("relu", "leaky_relu", "silu"),
    )
    dropout: float = setting(
        0.0,
        "Dropout at the end of the contracting path.",
        modes=TRAIN,
        binds=True,
        least=0,
        most=0.99,
    )
    stem_stride: int = setting(
        1,
        "Stem for speed: begin with space-to-depth and end with depth-to-space by 2 or 4 pixels, "
        "for a quarter or a sixteenth of the operations.",
        modes=TRAIN,
        binds=True,
        least=1,
        most=4,
    )
    deep_supervision: bool = setting(
        False,
        "Deep supervision: a head at each level of the decoder in training, weights 1/2^i.",
        modes=TRAIN,
        binds=True,
    )
    precision: str = setting(
        "auto",
        "Mixed precision: what the network computes in. auto: bfloat16 where the hardware has it, "
        "float16 on older GPUs.",
        modes=NETWORK,
        binds=True,
        choices=("auto", "float32", "bfloat16", "float16"),
    )

    def __post_init__(self):
        check_fields(self)
