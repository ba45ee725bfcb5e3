"""Networks from pixel values 0..255 to the logits of the classes, with the notebook's head."""

from argparse import Namespace

import keras
import numpy as np
from keras import layers, regularizers

from unet_core.files import os_errors

DEVIATION = (0.229, 0.224, 0.225)


def make_network(args: Namespace, classes: int) -> keras.Model:
    """Returns EfficientNetB3, "b3", or a "small" body, with a head for so many classes."""
    keras.utils.set_random_seed(args.seed)
    images = keras.Input((args.size, args.size, 3), name="images")
    if args.network == "b3":
        how = {"include_top": False, "pooling": "max", "weights": None}
        body = keras.applications.EfficientNetB3(input_tensor=images, **how)
    else:
        x = layers.Rescaling(1 / 127.5, -1)(images)
        for filters in (16, 32, 64):
            x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
            x = layers.MaxPooling2D(padding="same")(x)
        body = keras.Model(images, layers.Flatten()(x), name="small")
    if args.weights:
        load(body, args.weights)
    x = layers.BatchNormalization(momentum=0.9)(body.output)
    x = layers.Dense(
        256,
        activation="relu",
        kernel_regularizer=regularizers.L2(args.l2),
        activity_regularizer=regularizers.L1(args.l1),
        bias_regularizer=regularizers.L1(args.l1),
    )(x)
    x = layers.Dropout(args.dropout, seed=args.seed)(x)
    return keras.Model(images, layers.Dense(classes, name="logits")(x), name=args.network)


def load(body: keras.Model, path: str) -> None:
    """Loads a file of Keras' weights, such as efficientnetb3_notop.h5."""
    way, kinds = f"Give weights of {body.name} without a top.", (OSError, ValueError, KeyError)
    with os_errors(path, "the weights cannot be loaded", way, kinds=kinds):
        body.load_weights(path)
    for layer in body.layers:
        # ImageNet files hold the deviation in place of the variance (tensorflow#49930).
        is_first = isinstance(layer, layers.Normalization)
        if is_first and np.allclose(layer.adapt_variance, DEVIATION, rtol=1e-3):
            layer.adapt_variance.assign(np.square(DEVIATION))
            layer.finalize_state()
