"""Fits a sum of sines with `unet_core.training`: its own model, data and loss, and no images."""

import keras
import tensorflow as tf

from unet_core import training


def dataset(start_step, context):
    def batch(step):
        x = tf.random.stateless_uniform([32, 1], [7, step], -3.0, 3.0)
        return x, tf.sin(x) + 0.3 * tf.sin(2 * x)

    return tf.data.Dataset.range(start_step, tf.int64.max).map(batch)


def squared_error(outputs, batch):
    return tf.square(outputs - batch[1])[:, 0]


layers = [keras.layers.Dense(64, "relu"), keras.layers.Dense(64, "relu"), keras.layers.Dense(1)]
model = keras.Sequential([keras.Input((1,)), *layers])
loop = training.Loop(model, keras.optimizers.Adam(3e-3), loss=squared_error)
for report in loop.train(dataset, until_step=2000, report_every_steps=400):
    print(f"step {report.step}: loss {report.loss:.5f}, {report.examples_per_sec:.0f} examples/s")
