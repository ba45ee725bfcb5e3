"""Decoders by name. Adding one takes its file here and one line in `DECODERS`.

The contract
------------
An entry is a function (features, blocks) -> levels. `features` are those of any encoder, by their
stride (see `unet_core.models.encoders`): the deepest, of stride 2**`blocks.depth`, is there, any
other may be missing. The levels, too, are by their stride: {1: [B, H, W, F1], 2: [B, H/2, W/2, F2],
...}. That of stride 1 must be there, whatever the strides of the features; a convolution of size 1,
named "head", makes logits of it. The others are for deep supervision: those that the one of stride
1 is computed of; a decoder that has none gives none.

- Padding: with "same" the level of stride s has exactly 1/s of the padded image's height and width;
  with "valid" it may be smaller by as many pixels on each side. A decoder that needs "same" raises
  UserError.
- Names start with "up" and the level, log2 of the stride: "up3_...". Seeds, types and rules of
  layers are as for encoders.

The suite in tests/models/test_registries.py holds every entry to this, with every encoder.

Importing this module imports neither TensorFlow nor NumPy.
"""

from unet_core.registry import Registry

DECODERS = Registry(
    {
        "transpose": "unet_core.models.decoders.unet:transpose",
        "upsample": "unet_core.models.decoders.unet:upsample",
    }
)
