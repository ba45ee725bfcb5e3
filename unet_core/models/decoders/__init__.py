"""Decoders by name. Adding one takes its file here and one line in `DECODERS`.

The contract
------------
An entry is a function (features, blocks) -> logits. `features` are those of any encoder, by their
stride (see `unet_core.models.encoders`): the deepest, of stride 2**`blocks.depth`, is there, any
other may be missing; a decoder that cannot do without raises UserError. The logits, too, are by
their stride: {1: [B, H, W, K], 2: [B, H/2, W/2, K], ...}, K = `blocks.logits`. Those of stride 1
must be there, whatever the strides of the features. The others are for deep supervision: of the
levels that the one of stride 1 is computed of; a decoder that has no levels gives none.

- Head: `blocks.head(x, stride)` makes logits of the features x of a level. Where these are coarser
  than the logits are to be, it comes first and `blocks.interpolate` after it: the result is the
  same, as a 1x1 convolution and interpolation may change places, and it costs less.
- Padding: with "same" the logits of stride s have exactly 1/s of the padded image's height and
  width; with "valid" they may be smaller by as many pixels on each side. A decoder that needs
  "same" calls `blocks.need_same_padding`.
- Names start with "up" and the level, log2 of the stride, where there is one: "up3_...". Seeds,
  types and rules of layers are as for encoders; what begins with no random numbers has no seed.

The suite in tests/models/test_registries.py holds every entry to this, with every encoder.

Importing this module imports neither TensorFlow nor NumPy.
"""

from unet_core.registry import Registry

DECODERS = Registry(
    {
        "transpose": "unet_core.models.decoders.unet:transpose",
        "upsample": "unet_core.models.decoders.unet:upsample",
        "unet_plus_plus": "unet_core.models.decoders.unet_plus_plus:unet_plus_plus",
        "attention": "unet_core.models.decoders.attention:attention",
        "fcn32s": "unet_core.models.decoders.fcn:fcn32s",
        "fcn16s": "unet_core.models.decoders.fcn:fcn16s",
        "fcn8s": "unet_core.models.decoders.fcn:fcn8s",
        "fpn": "unet_core.models.decoders.fpn:fpn",
        "deeplab": "unet_core.models.decoders.deeplab:deeplab",
    }
)
