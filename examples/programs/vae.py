"""A variational autoencoder: a layer adds its own loss by `add_loss`, and the loop counts it.

The layer draws with a `SeedGenerator` of Keras, whose state is a variable of the model: it is saved
in checkpoints, so that a resumed run draws what it would have drawn.
"""

import keras
import tensorflow as tf
from keras import layers

from unet_core import training


def dataset(start_step, context):
    """Round spots anywhere in 16 x 16 pixels: [64, 256], 0 to 1."""
    y, x = tf.meshgrid(*[tf.linspace(0.0, 1.0, 16)] * 2, indexing="ij")

    def batch(step):
        center = tf.random.stateless_uniform([64, 2, 1, 1], [1, step], 0.2, 0.8)
        spots = tf.exp(-30 * ((x - center[:, 0]) ** 2 + (y - center[:, 1]) ** 2))
        return tf.reshape(spots, [64, 256])

    return tf.data.Dataset.range(start_step, tf.int64.max).map(batch).prefetch(2)


class Latent(layers.Layer):
    """Draws from the normal distribution it is given, and adds its divergence from the standard."""

    def __init__(self):
        super().__init__()
        self.seed = keras.random.SeedGenerator(5)

    def call(self, inputs):
        mean, log_variance = tf.split(inputs, 2, axis=1)
        divergence = 0.5 * (tf.exp(log_variance) + mean**2 - 1 - log_variance)
        self.add_loss(tf.reduce_mean(tf.reduce_sum(divergence, 1)))
        noise = keras.random.normal(tf.shape(mean), seed=self.seed)
        return mean + tf.exp(log_variance / 2) * noise


def make_model():
    encoder = [layers.Dense(128, "relu"), layers.Dense(2 * 4), Latent()]
    decoder = [layers.Dense(128, "relu"), layers.Dense(256)]
    return keras.Sequential([keras.Input((256,)), *encoder, *decoder])


def reconstruction(logits, batch):
    return tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(batch, logits), 1)


def main(steps=2000, every=500, show=print):
    """Trains the model and returns it."""
    keras.utils.set_random_seed(0)
    model = make_model()
    # training
    loop = training.Loop(model, keras.optimizers.Adam(2e-3), loss=reconstruction)
    for report in loop.train(dataset, until_step=steps, report_every_steps=every):
        show(f"step {report.step}: negative evidence lower bound {report.loss:.2f} nats")
    # end of training
    return model


if __name__ == "__main__":
    main()
