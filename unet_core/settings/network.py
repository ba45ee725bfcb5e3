"""Settings of the network."""

from __future__ import annotations

import dataclasses

from unet_core.errors import UserError
from unet_core.models.decoders import DECODERS
from unet_core.models.encoders import ENCODERS
from unet_core.own_code import is_name
from unet_core.settings.fields import check_fields, setting
from unet_core.settings.modes import BUILD, RUN, TRAIN

OF_EVERY_NETWORK = ("network", "heads", "precision")
"""The settings that also count for a network of one's own."""


@dataclasses.dataclass(frozen=True)
class NetworkSettings:
    """The network: encoder, decoder, their size, and what they compute in."""

    network: str = setting(
        "",
        "A network of your own, in place of encoder and decoder: my_package.my_module:make_network,"
        " a function that returns a Keras model (docs/own_network.md). A finished run with one "
        "needs it again.",
        modes=RUN,
        binds=True,
    )
    encoder: str = setting(
        "unet",
        "The network's contracting part (backbone).",
        modes=BUILD,
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
        is_path=True,
    )
    decoder: str = setting(
        "transpose",
        "The network's expanding part: the U-Net's with transposed convolutions (transpose), with "
        "upsampling and convolution (upsample), or with attention gates (attention); U-Net++ "
        "(unet_plus_plus), FCN-32s, 16s and 8s, a feature pyramid (fpn), or DeepLabV3+ (deeplab).",
        modes=BUILD,
        binds=True,
        choices=DECODERS,
    )
    depth: int = setting(
        4, "Number of poolings of the U-Net.", modes=BUILD, binds=True, least=1, most=8
    )
    base_filters: int = setting(
        32,
        "Channels of the first level, doubled by each pooling.",
        modes=BUILD,
        binds=True,
        least=1,
        most=1024,
    )
    max_filters: int = setting(
        65536,
        "Most channels of a level.",
        modes=BUILD,
        binds=True,
        least=1,
        most=65536,
    )
    padding: str = setting(
        "same",
        "Convolution padding; valid is the paper's, with the image mirrored around.",
        modes=BUILD,
        binds=True,
        choices=("same", "valid"),
    )
    normalization: str = setting(
        "none",
        "Normalization after every 3x3 convolution; batch norm is synchronized over devices. "
        "Encoders of keras.applications keep their own.",
        modes=BUILD,
        binds=True,
        choices=("none", "batch", "group", "instance"),
    )
    activation: str = setting(
        "relu",
        "Activation after every 3x3 convolution. Encoders of keras.applications keep their own.",
        modes=BUILD,
        binds=True,
        choices=("relu", "leaky_relu", "silu"),
    )
    dropout: float = setting(
        0.0,
        "Dropout at the end of the contracting path.",
        modes=BUILD,
        binds=True,
        least=0,
        most=0.99,
    )
    stem_stride: int = setting(
        1,
        "Stem for speed: begin with space-to-depth and end with depth-to-space by 2 or 4 pixels, "
        "for a quarter or a sixteenth of the operations.",
        modes=BUILD,
        binds=True,
        least=1,
        most=4,
    )
    deep_supervision: bool = setting(
        False,
        "Deep supervision: a head at each level of the decoder in training, weights 1/2^i.",
        modes=BUILD,
        binds=True,
    )
    heads: str = setting(
        "softmax",
        "Whether a pixel has one class (softmax), or may have none, one or several of up to 7 "
        "(sigmoid): --mask_folder then names a folder of binary masks for each class, in the order "
        "of --classes, and there is a file for each class of a prediction.",
        modes=(*BUILD, "check_data"),
        binds=True,
        choices=("softmax", "sigmoid"),
    )
    precision: str = setting(
        "auto",
        "Mixed precision: what the network computes in. auto: bfloat16 where the hardware has it, "
        "float16 on older GPUs.",
        modes=RUN,
        binds=True,
        choices=("auto", "float32", "bfloat16", "float16"),
    )

    def __post_init__(self):
        check_fields(self)
        if self.network and not is_name(self.network):
            raise UserError(
                f"`network` ({self.network!r}) must name a module and a function in it, such as "
                "my_package.my_module:make_network."
            )
        if self.network and self.deep_supervision:
            raise UserError(
                f"`deep_supervision` cannot be combined with `network` ({self.network}), which has "
                "one output. Leave one of them out."
            )


def check_same_network(where: object, of_run: str, given: str) -> None:
    """Checks that a person asks for the code that makes the network of a run or an export.

    What a file names is not executed because the file names it.

    Args:
        where: The folder, for the message.
        of_run: The setting `network` that is stored there.
        given: The one that was given.

    Raises:
        UserError: If they differ.
    """
    if of_run == given:
        return
    if not of_run:
        raise UserError(
            f"{where}: its network is not made by `network` ({given}), but of an encoder and a "
            "decoder. Leave it out."
        )
    given = f"not by {given}" if given else "and the name in a file alone runs no code"
    raise UserError(
        f"{where}: its network is made by {of_run}, {given}. If you trust that code, give "
        f"`network`={of_run}."
    )
