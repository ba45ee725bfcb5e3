"""A network of one's own for `train_loop.py`: dilated convolutions in place of poolings.

    python train_loop.py --flagfile=membrane.flags --run_dir=runs/dilated \
        --network=examples.own_network:make_network
    python train_loop.py --mode=predict --run_dir=runs/dilated --input=my_slices \
        --network=examples.own_network:make_network

It is the context module of Yu and Koltun 2015 (arXiv:1511.07122): each 3x3 convolution looks twice
as far as the one before, so that a pixel sees 67x67 without a loss of resolution, and images of
every size fit without padding. docs/own_network.md says what such a function must return.
"""

import keras


def make_network(*, classes, channels, precision, seed):
    """Returns a network from [B, H, W, channels] in 0..255 to float32 logits."""
    policy = precision if precision == "float32" else f"mixed_{precision}"
    images = keras.Input((None, None, channels), name="images")
    x = keras.layers.Rescaling(1 / 64, -2, dtype="float32", name="scale")(images)
    for number, dilation in enumerate((1, 1, 2, 4, 8, 16, 1)):
        x = keras.layers.Conv2D(
            16,
            3,
            padding="same",
            dilation_rate=dilation,
            activation="relu",
            kernel_initializer=keras.initializers.HeNormal(seed=seed * 100 + number),
            dtype=policy,
            name=f"context{number}",
        )(x)
    logits = keras.layers.Conv2D(
        1 if classes == 2 else classes,
        1,
        kernel_initializer=keras.initializers.HeNormal(seed=seed * 100 + 99),
        dtype="float32",
        name="head",
    )(x)
    return keras.Model(images, logits, name="dilated")
