"""The networks of `keras.applications` as encoders: VGG, ResNet, EfficientNet, MobileNet, ConvNeXt.

They are taken from there, not written anew: the network is built without its classifier, cut at the
deepest feature that is needed, and each of its layers is made again from its settings under the
same name, by which weights are found (`unet_core.models.weights`). Normalisation, activations and
initial weights are Keras', with these exceptions:

- Layers compute in the network's precision, and draw from the network's seed.
- Batch norm is `FusedBatchNorm`, and stochastic depth `RowDropout`, so that both are exact on
  several replicas.
- Batch norm and stochastic depth stand at their Keras settings whatever the network's normalisation
  and dropout are; the network's dropout follows the deepest features.

Each brings the input scaling that its ImageNet weights were trained with. A grey image is repeated
on three channels, which comes to the same as its first kernel summed over channels, the mean of
each channel included, and leaves the pretrained weights as they are. For other numbers of channels
the image is scaled as for the package's own encoders, and the first kernel has that many channels;
pretrained weights have none for it.

Sources: Simonyan and Zisserman 2014 (VGG, arXiv:1409.1556), He et al. 2015 (ResNet,
arXiv:1512.03385), Tan and Le 2019 (EfficientNet, arXiv:1905.11946), Sandler et al. 2018
(MobileNetV2, arXiv:1801.04381), Liu et al. 2022 (ConvNeXt, arXiv:2201.03545).
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable, Sequence

import keras

from unet_core.models.blocks import Blocks, scale_pixels
from unet_core.models.encoders import Application, Encoder
from unet_core.models.layers import FusedBatchNorm, LayerScale, PickChannels, RowDropout
from unet_core.models.walk import Call, calls

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Of the red, green and blue values in 0..1 of ImageNet's images."""
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
_BGR_MEAN = (103.939, 116.779, 123.68)

_Features = Sequence[tuple[int, str]]


def make_features(
    x: keras.KerasTensor,
    blocks: Blocks,
    *,
    application: Application,
    features: _Features,
) -> dict[int, keras.KerasTensor]:
    """Returns the features of a network of `keras.applications`, down to stride 2**depth.

    Args:
        x: The scaled image, [B, H, W, 3] or of another number of channels that is not 1.
        blocks: What all parts of the network share.
        application: Which network.
        features: (stride, name of the layer that gives it), from the first to the deepest.
    """
    deepest = 2**blocks.depth
    with warnings.catch_warnings():
        # Keras warns of numbers of channels other than 1 and 3.
        warnings.simplefilter("ignore", UserWarning)
        model = getattr(keras.applications, application.name)(
            include_top=False, weights=None, input_shape=(None, None, x.shape[-1])
        )
    given = {_name(call): call.outputs[0] for call in calls(model)}
    wanted = [(stride, given[name]) for stride, name in features if stride <= deepest]
    cut = keras.Model(model.input, [tensor for _, tensor in wanted])
    made = {id(model.input): x}
    for call in calls(cut):
        inputs = [made[id(tensor)] for tensor in call.inputs]
        made[id(call.outputs[0])] = _apply(call, inputs, blocks)
    found = {stride: made[id(tensor)] for stride, tensor in wanted}
    found[deepest] = blocks.drop(found[deepest], "bottom_dropout")
    return found


def _name(call: Call) -> str:
    """Returns the name of a layer, which is the same whatever else this process has built."""
    name = call.layer.name
    if isinstance(call.layer, keras.layers.Rescaling | keras.layers.Normalization):
        # Keras numbers layers to which nobody gave a name.
        return re.sub(r"_\d+$", "", name)
    if isinstance(call.layer, keras.Layer):
        return name
    # ConvNeXt adds with "+"; the branch that it adds ends with "..._identity".
    return _name_of_sum(call)


def _name_of_sum(call: Call) -> str:
    branch = call.inputs[-1]._keras_history.operation.name
    if type(call.layer).__name__ != "Add" or not branch.endswith("_identity"):
        raise ValueError(f"{call.layer.name!r} ({type(call.layer).__name__}) is no layer of Keras.")
    return f"{branch.removesuffix('_identity')}_add"


def _apply(call: Call, inputs: list[keras.KerasTensor], blocks: Blocks) -> keras.KerasTensor:
    """Returns what a layer like that of `call` gives of `inputs`."""
    layer, name = call.layer, _name(call)
    if not isinstance(layer, keras.Layer):
        return keras.layers.Add(dtype=blocks.policy, name=name)(inputs)
    if isinstance(layer, keras.layers.Rescaling | keras.layers.Normalization):
        return _preprocess(layer, name, inputs[0])
    if isinstance(layer, keras.Sequential):
        (x,) = inputs
        for part in layer.layers:
            x = _made_anew(part, part.name, blocks)(x)
        return x
    if isinstance(layer, keras.layers.Activation) and layer.activation is keras.activations.linear:
        return inputs[0]
    return _made_anew(layer, name, blocks)(inputs if len(inputs) > 1 else inputs[0])


def _preprocess(layer: keras.Layer, name: str, x: keras.KerasTensor) -> keras.KerasTensor:
    """Returns x scaled by a layer of Keras' network, in float32."""
    if x.shape[-1] != len(IMAGENET_MEAN):
        # It is scaled already.
        return x
    config = {**layer.get_config(), "name": name, "dtype": "float32"}
    made = layer.__class__.from_config(config)
    y = made(x)
    if made.variables:
        squares = [deviation**2 for deviation in IMAGENET_DEVIATION]
        for variable, values in zip(made.variables, (IMAGENET_MEAN, squares), strict=False):
            variable.assign(values)
        made.finalize_state()
    return y


def _made_anew(layer: keras.Layer, name: str, blocks: Blocks) -> keras.Layer:
    """Returns a layer like `layer`, in the network's precision and from its seed."""
    config = layer.get_config()
    common = {"name": name, "dtype": blocks.policy}
    if isinstance(layer, keras.layers.BatchNormalization):
        return FusedBatchNorm(momentum=layer.momentum, epsilon=layer.epsilon, **common)
    if isinstance(layer, keras.layers.Dropout):
        seed = blocks.seed_of(name)
        return RowDropout(layer.rate, seed=seed, whole=layer.noise_shape is not None, **common)
    if type(layer).__name__ == "LayerScale":
        return LayerScale(config["init_values"], **common)
    for key, value in config.items():
        if key.endswith("_initializer") and value and "seed" in value["config"]:
            config[key] = {**value, "config": {**value["config"], "seed": blocks.seed_of(name)}}
    return layer.__class__.from_config({**config, **common})


_Scale = Callable[[keras.KerasTensor], keras.KerasTensor]


def _as_trained(scale: _Scale, order: Sequence[int] = (0, 1, 2)) -> _Scale:
    """Returns `scale` for images of one or three channels, and the package's for others.

    Args:
        scale: From [B, H, W, 3] pixel values, the channels in `order`, to what a network wants.
        order: Which channels of RGB.
    """

    def scaled(images):
        channels = images.shape[-1]
        if channels not in (1, 3):
            return scale_pixels(images)
        picked = [0, 0, 0] if channels == 1 else list(order)
        if picked != [0, 1, 2]:
            images = PickChannels(picked, dtype="float32", name="scale_channels")(images)
        return scale(images)

    return scaled


def _rescale(factor: float, offset: float | list[float]) -> _Scale:
    return lambda images: keras.layers.Rescaling(factor, offset, dtype="float32", name="scale")(
        images
    )


_CAFFE = _as_trained(_rescale(1.0, [-mean for mean in _BGR_MEAN]), order=(2, 1, 0))
_MINUS_ONE_TO_ONE = _as_trained(_rescale(1 / 127.5, -1.0))
# The first layers of the network scale.
_BY_ITSELF = _as_trained(lambda images: images)


def _encoder(application: Application, scale: _Scale, *layers: str) -> Encoder:
    """Returns the encoder of the layers that give the strides 32, 16, ..., the deepest last."""
    strides = [32 >> places for places in reversed(range(len(layers)))]
    return Encoder(
        functools.partial(
            make_features,
            application=application,
            features=list(zip(strides, layers, strict=True)),
        ),
        scale,
        depths=tuple(stride.bit_length() - 1 for stride in strides if stride > 1),
        pads_only=True,
        batch_norm=application.name not in ("VGG16", "ConvNeXtTiny"),
        application=application,
    )


def _efficientnet(size: int) -> Encoder:
    layers = [f"block{number}a_expand_activation" for number in (2, 3, 4, 6)]
    application = Application(f"EfficientNetB{size}", f"efficientnetb{size}_notop.h5")
    return _encoder(application, _BY_ITSELF, *layers, "top_activation")


VGG16 = _encoder(
    Application("VGG16", "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"),
    _CAFFE,
    "block1_conv2",
    "block2_conv2",
    "block3_conv3",
    "block4_conv3",
    "block5_conv3",
    "block5_pool",
)
RESNET50 = _encoder(
    Application("ResNet50", "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"),
    _CAFFE,
    "conv1_relu",
    "conv2_block3_out",
    "conv3_block4_out",
    "conv4_block6_out",
    "conv5_block3_out",
)
EFFICIENTNET_B0 = _efficientnet(0)
EFFICIENTNET_B1 = _efficientnet(1)
EFFICIENTNET_B2 = _efficientnet(2)
EFFICIENTNET_B3 = _efficientnet(3)
EFFICIENTNET_B4 = _efficientnet(4)
EFFICIENTNET_B5 = _efficientnet(5)
EFFICIENTNET_B6 = _efficientnet(6)
EFFICIENTNET_B7 = _efficientnet(7)
MOBILENET_V2 = _encoder(
    Application("MobileNetV2", "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5"),
    _MINUS_ONE_TO_ONE,
    "block_1_expand_relu",
    "block_3_expand_relu",
    "block_6_expand_relu",
    "block_13_expand_relu",
    "out_relu",
)
CONVNEXT_TINY = _encoder(
    Application("ConvNeXtTiny", "convnext_tiny_notop.h5"),
    _BY_ITSELF,
    *(f"convnext_tiny_stage_{stage}_block_{block}_add" for stage, block in enumerate((2, 2, 8, 2))),
)
