"""A generative adversarial network: two parts of one loop, each with its own optimizer and loss.

At each step the critic learns first, and the generator then learns from the critic as it is now.
The points to imitate lie around eight places on a circle.
"""

import keras
import tensorflow as tf
from keras import layers

from unet_core import training

ANGLES = tf.range(8, dtype=tf.float32) * 0.785398
PLACES = tf.stack([tf.cos(ANGLES), tf.sin(ANGLES)], 1)


def dataset(start_step, context):
    """Dicts of real points [256, 2] and noise [256, 8]."""

    def batch(step):
        seeds = tf.random.split([1, step], 3)
        places = tf.random.stateless_uniform([256], seeds[0], 0, 8, tf.int32)
        spread = tf.random.stateless_normal([256, 2], seeds[1], 0, 0.05)
        noise = tf.random.stateless_normal([256, 8], seeds[2])
        return {"real": tf.gather(PLACES, places) + spread, "noise": noise}

    return tf.data.Dataset.range(start_step, tf.int64.max).map(batch).prefetch(2)


def make_network(inputs, outputs):
    hidden = [layers.Dense(128, "leaky_relu") for _ in range(2)]
    return keras.Sequential([keras.Input((inputs,)), *hidden, layers.Dense(outputs)])


def make_losses(generator, critic):
    """Returns the losses of critic and generator, `batch -> [B]`."""

    def tell(batch):
        real, fake = critic(batch["real"]), critic(generator(batch["noise"]))
        return (tf.nn.softplus(-real) + tf.nn.softplus(fake))[:, 0]

    def fool(batch):
        return tf.nn.softplus(-critic(generator(batch["noise"])))[:, 0]

    return tell, fool


def main(steps=3000, every=500, show=print):
    """Trains both and shows how many of the places are found; returns the two networks."""
    keras.utils.set_random_seed(0)
    generator, critic = make_network(8, 2), make_network(2, 1)
    tell, fool = make_losses(generator, critic)
    # training
    loop = training.Loop(
        [
            training.Part(critic, keras.optimizers.Adam(1e-3, beta_1=0.5), tell, name="critic"),
            training.Part(generator, keras.optimizers.Adam(1e-3, beta_1=0.5), fool, name="fool"),
        ]
    )
    for report in loop.train(dataset, until_step=steps, report_every_steps=every):
        critics, generators = report.means["critic"], report.means["fool"]
        show(f"step {report.step}: critic {critics:.3f}, generator {generators:.3f}")
    # end of training
    points = generator(tf.random.stateless_normal([1000, 8], [2, 0]))
    near = tf.norm(points[:, None] - PLACES, axis=2) < 0.2
    found = int(tf.reduce_sum(tf.cast(tf.reduce_any(near, 0), tf.int32)))
    good = float(tf.reduce_mean(tf.cast(tf.reduce_any(near, 1), tf.float32)))
    show(f"{found} of 8 places found; {good:.0%} of the points are near one")
    return generator, critic


if __name__ == "__main__":
    main()
