"""A causal Transformer on sequences of different lengths: the mean loss of all tokens.

Padding is 0. The loss has one value per place, [B, T], and `Mean` divides by the tokens that the
batch has, not by its rows.
"""

import keras
import tensorflow as tf
from keras import layers

from unet_core import training

WORDS, LENGTH = 32, 24


def dataset(start_step, context):
    """Ids [32, 24] and those that come next; each sequence repeats a pattern of 2 to 4 words."""

    def batch(step):
        seeds = tf.random.split([1, step], 3)
        patterns = tf.random.stateless_uniform([32, 4], seeds[0], 1, WORDS, tf.int32)
        periods = tf.random.stateless_uniform([32, 1], seeds[1], 2, 5, tf.int32)
        lengths = tf.random.stateless_uniform([32, 1], seeds[2], 8, LENGTH + 2, tf.int32)
        places = tf.range(LENGTH + 1)[None]
        words = tf.gather(patterns, places % periods, batch_dims=1)
        words = tf.where(places < lengths, words, 0)
        return words[:, :-1], words[:, 1:]

    return tf.data.Dataset.range(start_step, tf.int64.max).map(batch).prefetch(2)


class Places(layers.Layer):
    """Adds a trained vector to each place of a sequence."""

    supports_masking = True

    def build(self, shape):
        self.vectors = self.add_weight(shape=shape[1:], initializer="uniform", name="vectors")

    def call(self, inputs):
        return inputs + self.vectors


def make_model(size=64, blocks=2):
    words = keras.Input((LENGTH,), dtype="int32")
    values = Places()(layers.Embedding(WORDS, size, mask_zero=True)(words))
    for _ in range(blocks):
        inputs = layers.LayerNormalization()(values)
        attention = layers.MultiHeadAttention(4, size // 4)
        values += attention(inputs, inputs, use_causal_mask=True)
        inputs = layers.LayerNormalization()(values)
        values += layers.Dense(size)(layers.Dense(4 * size, "gelu")(inputs))
    return keras.Model(words, layers.Dense(WORDS)(layers.LayerNormalization()(values)))


def cross_entropy(logits, following):
    return tf.nn.sparse_softmax_cross_entropy_with_logits(following, logits)


def main(steps=200, every=50, show=print):
    """Trains the model and returns it."""
    keras.utils.set_random_seed(0)
    model = make_model()

    # training
    def loss(logits, batch):
        return training.Mean(cross_entropy(logits, batch[1]), batch[1] > 0)

    loop = training.Loop(model, keras.optimizers.Adam(2e-3), loss=loss, clip_norm=1.0)
    for report in loop.train(dataset, until_step=steps, report_every_steps=every):
        show(f"step {report.step}: loss {report.loss:.3f} per token")
    # end of training
    return model


if __name__ == "__main__":
    main()
