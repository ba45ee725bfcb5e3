"""Fine-tuning in two stages: a new head on a frozen backbone first, then all layers.

One loop trains both stages: what is trainable is looked at again at each call of `train`, and the
optimizer's slots of the head are kept. A frozen batch normalisation infers, as in Keras.
"""

import keras
import tensorflow as tf
from keras import layers

from unet_core import training


def dataset(start_step, context):
    """Waves in four directions, in noise: images [32, 32, 32, 1] and classes [32]."""
    y, x = tf.meshgrid(*[tf.range(32, dtype=tf.float32)] * 2, indexing="ij")

    def batch(step):
        seeds = tf.random.split([1, step], 3)
        classes = tf.random.stateless_uniform([32], seeds[0], 0, 4, tf.int32)
        angle = tf.cast(classes, tf.float32)[:, None, None] * 0.785
        phase = tf.random.stateless_uniform([32, 1, 1], seeds[1], 0, 6.28)
        waves = tf.sin(0.9 * (tf.cos(angle) * x + tf.sin(angle) * y) + phase)
        noise = tf.random.stateless_normal([32, 32, 32], seeds[2], 0, 0.5)
        return (waves + noise)[..., None], classes

    return tf.data.Dataset.range(start_step, tf.int64.max).map(batch).prefetch(2)


def make_networks():
    """Returns (backbone, the whole model); the weights of a real backbone would be loaded."""
    backbone = keras.Sequential([keras.Input((32, 32, 1))], name="backbone")
    for filters in (16, 32):
        backbone.add(layers.Conv2D(filters, 5, strides=2, use_bias=False))
        backbone.add(layers.BatchNormalization())
        backbone.add(layers.ReLU())
    backbone.add(layers.GlobalAveragePooling2D())
    return backbone, keras.Sequential([backbone, layers.Dense(4, name="head")])


def cross_entropy(logits, batch):
    return tf.nn.sparse_softmax_cross_entropy_with_logits(batch[1], logits)


def main(steps=400, every=100, show=print):
    """Trains half of the steps each; returns the model."""
    keras.utils.set_random_seed(0)
    backbone, model = make_networks()
    # training
    loop = training.Loop(model, keras.optimizers.Adam(1e-2), loss=cross_entropy)
    backbone.trainable = False
    for report in loop.train(dataset, until_step=steps // 2, report_every_steps=every):
        show(f"head alone, step {report.step}: loss {report.loss:.3f}")
    backbone.trainable = True
    loop.optimizer.learning_rate = 1e-3
    for report in loop.train(dataset, until_step=steps, report_every_steps=every):
        show(f"all layers, step {report.step}: loss {report.loss:.3f}")
    # end of training
    return model


if __name__ == "__main__":
    main()
