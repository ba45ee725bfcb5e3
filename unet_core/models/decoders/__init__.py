"""Decoders by name. Adding one takes its file here and one line in `DECODERS`.

The contract
------------
An entry is a function (features, blocks) -> [B, H, W, F]. `features` are those of any encoder, by
their stride (see `unet_core.models.encoders`): the deepest, of stride 2**`blocks.depth`, is there,
any other may be missing. The result has stride 1, whatever the strides of the features; a
convolution of size 1, named "head", makes logits of it.

- Padding: with "same" the result has the height and width of the padded image; with "valid" it may
  be smaller by as many pixels on each side.
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
