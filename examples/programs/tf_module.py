"""A `tf.Module` with variables of its own: a field of two coordinates, fitted to a picture.

The loop calls it with the first item of a batch; there is no Keras layer in it.
"""

import itertools
import math

import keras
import tensorflow as tf

from unet_core import training


class Field(tf.Module):
    """A network on random Fourier features: [B, 2] -> [B, 1].

    Source: Tancik et al. 2020, Fourier Features, arXiv:2006.10739.
    """

    def __init__(self, features=64, hidden=128):
        super().__init__()
        normal = tf.random.Generator.from_seed(3).normal
        self.waves = tf.constant(3 * normal([2, features]))
        sizes = [2 * features, hidden, hidden, 1]
        self.kernels = [
            tf.Variable(normal([rows, columns]) * math.sqrt(2 / rows), name=f"kernel_{place}")
            for place, (rows, columns) in enumerate(itertools.pairwise(sizes))
        ]
        self.biases = [
            tf.Variable(tf.zeros([size]), name=f"bias_{place}")
            for place, size in enumerate(sizes[1:])
        ]

    def __call__(self, points):
        angles = points @ self.waves
        values = tf.concat([tf.sin(angles), tf.cos(angles)], 1)
        for kernel, bias in zip(self.kernels[:-1], self.biases[:-1], strict=True):
            values = tf.nn.relu(values @ kernel + bias)
        return values @ self.kernels[-1] + self.biases[-1]


def picture(points):
    """Rings that get finer to the right."""
    x, y = points[:, :1], points[:, 1:]
    return tf.sin((4 + 4 * x) * tf.sqrt(x**2 + y**2 + 0.1))


def dataset(start_step, context):
    def batch(step):
        points = tf.random.stateless_uniform([512, 2], [1, step], -1, 1)
        return points, picture(points)

    return tf.data.Dataset.range(start_step, tf.int64.max).map(batch).prefetch(2)


def squared_error(outputs, batch):
    return tf.square(outputs - batch[1])[:, 0]


def main(steps=2000, every=500, show=print):
    """Fits the field and returns it."""
    field = Field()
    # training
    loop = training.Loop(field, keras.optimizers.Adam(1e-3), loss=squared_error)
    for report in loop.train(dataset, until_step=steps, report_every_steps=every):
        show(f"step {report.step}: loss {report.loss:.5f}")
    # end of training
    return field


if __name__ == "__main__":
    main()
