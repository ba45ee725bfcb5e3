"""Encoders by name. Adding one takes its file here and one line in `ENCODERS`.

The contract
------------
An entry is an `Encoder`. Its `make_features(x, blocks)` gets the scaled image x [B, H, W, C],
float32, H and W multiples of 2**`blocks.depth`, and `blocks`, what all parts of the network share
(`unet_core.models.blocks.Blocks`). It returns its features by their stride:
{1: [B, H, W, F1], 2: [B, H/2, W/2, F2], ..., 2**depth: ...}. The deepest, of stride 2**depth, must
be there; of the others each may be missing, as stride 1 is in a ResNet. Numbers of channels are
free.

- Strides: `blocks.depth` poolings or strided layers. An encoder that does not have features at
  every stride 2**depth lists its `depths`; others are refused before it is asked.
- Padding: the feature of stride s has exactly 1/s of the image's height and width. With
  `blocks.padding` "valid" no layer pads: one `blocks.double_convolution` stands at each stride,
  which takes `blocks.MARGIN_PX` off each side, and nothing else takes off any. An encoder that
  cannot do so says so by `pads_only`, and is not asked to.
- Names: every layer has a name of its own, unique in the network and the same at every depth. Names
  that start with "up", "scale", "head", "crop" and "logits", and "pad", "stem" and "unstem", belong
  to others. Weights are found by these names, and seeds follow them.
- Seeds: every random initialiser, and every layer that draws, takes `blocks.seed_of(its name)`, so
  that a new layer does not reseed the others.
- Types: every layer takes `dtype=blocks.policy`.
- Scaling: the image comes as `unet_core.models.blocks.scale_pixels` scales it, -2..2 for 0..255. An
  encoder whose weights were trained with another scaling brings its own `scale`: pixel values
  0..255, uint8 or float [B, H, W, C], to what its `make_features` wants, [B, H, W, any number], by
  layers named "scale...". It may leave the scaling to the first layers of `make_features`.
- Layers of classes that `unet_core.models.layer_rules` does not know are not wrong, but the network
  is then predicted in overlapping windows that are blended, and cannot be written as ONNX. An entry
  of its table for each class, in the encoder's file if the class is its own, tells how.

The suite in tests/models/test_registries.py holds every entry to this.

Importing this module imports neither TensorFlow nor NumPy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from unet_core.registry import Registry

if TYPE_CHECKING:
    import keras

    from unet_core.models.blocks import Blocks


@dataclasses.dataclass(frozen=True)
class Application:
    """A network of `keras.applications`.

    Attributes:
        name: Its name there.
        weights_file: The name of the file of its ImageNet weights without the classifier.
    """

    name: str
    weights_file: str


@dataclasses.dataclass(frozen=True)
class Encoder:
    """One way from a scaled image to features; see the contract above.

    Attributes:
        make_features: (scaled image, blocks) -> features by stride.
        scale: Pixel values 0..255 -> scaled image; None is the package's -2..2.
        depths: The depths that it has; () is any.
        pads_only: Whether it knows no padding but "same".
        batch_norm: Whether it has batch norm whatever the network's normalisation is.
        application: The network of `keras.applications` that it is, whose weights fit; None for
            the package's own.
    """

    make_features: Callable[[keras.KerasTensor, Blocks], Mapping[int, keras.KerasTensor]]
    scale: Callable[[keras.KerasTensor], keras.KerasTensor] | None = None
    depths: tuple[int, ...] = ()
    pads_only: bool = False
    batch_norm: bool = False
    application: Application | None = None


_APPLICATIONS = (
    "vgg16",
    "resnet50",
    *(f"efficientnet_b{size}" for size in range(8)),
    "mobilenet_v2",
    "convnext_tiny",
)

ENCODERS = Registry(
    {
        "unet": "unet_core.models.encoders.unet:UNET",
        "residual": "unet_core.models.encoders.residual:RESIDUAL",
    }
    | {name: f"unet_core.models.encoders.applications:{name.upper()}" for name in _APPLICATIONS}
)
