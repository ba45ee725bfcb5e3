"""Dicts in, dicts out: two losses with sample weights, each reported by its name.

A batch is (inputs, targets, weights). `Mean` divides by the weights of the whole batch.
"""

import keras
import tensorflow as tf
from keras import layers

from unet_core import training


def dataset(start_step, context):
    """Houses: size, age and district; their prices, and whether they were sold."""

    def batch(step):
        seeds = tf.random.split([1, step], 4)
        numbers = tf.random.stateless_normal([128, 2], seeds[0])
        districts = tf.random.stateless_uniform([128], seeds[1], 0, 10, tf.int32)
        value = numbers[:, :1] - 0.5 * numbers[:, 1:] ** 2
        price = value + tf.sin(tf.cast(districts, tf.float32))[:, None]
        luck = tf.random.stateless_normal([128, 1], seeds[2], 0, 0.5)
        inputs = {"numbers": numbers, "district": districts}
        targets = {"price": price, "sold": tf.cast(value + luck > 0, tf.float32)}
        return inputs, targets, tf.random.stateless_uniform([128], seeds[3], 0, 2)

    return tf.data.Dataset.range(start_step, tf.int64.max).map(batch).prefetch(2)


def make_model():
    numbers = keras.Input((2,), name="numbers")
    district = keras.Input((), dtype="int32", name="district")
    joined = layers.Concatenate()([numbers, layers.Embedding(10, 8)(district)])
    hidden = layers.Dense(128, "relu")(layers.Dense(128, "relu")(joined))
    outputs = {"price": layers.Dense(1)(hidden), "sold": layers.Dense(1)(hidden)}
    return keras.Model({"numbers": numbers, "district": district}, outputs)


def errors(outputs, targets):
    """Returns the error in the price and the cross entropy of the sale, [B] each."""
    price = tf.square(outputs["price"] - targets["price"])
    sold = tf.nn.sigmoid_cross_entropy_with_logits(targets["sold"], outputs["sold"])
    return price[:, 0], sold[:, 0]


def main(steps=2000, every=500, show=print):
    """Trains the model and returns it."""
    keras.utils.set_random_seed(0)
    model = make_model()

    # training
    def loss(outputs, batch):
        _, targets, weights = batch
        price, sold = (training.Mean(error, weights) for error in errors(outputs, targets))
        total = training.Mean(price.values + 0.5 * sold.values, weights)
        return total, {"price": price, "sold": sold}

    loop = training.Loop(model, keras.optimizers.Adam(3e-3), loss=loss)
    for report in loop.train(dataset, until_step=steps, report_every_steps=every):
        price, sold = report.means["price"], report.means["sold"]
        show(f"step {report.step}: price {price:.4f}, sold {sold:.3f}, both {report.loss:.4f}")
    # end of training
    return model


if __name__ == "__main__":
    main()
