"""A loop small enough to compute by hand: a linear model, its data a pure function of the step."""

import itertools

import keras
import numpy as np
import tensorflow as tf

from unet_core import training


def squared_error(outputs, batch):
    return tf.reduce_sum(tf.square(outputs - batch[1]), -1)


def make_batch(step, rows=4, seed=0):
    """Returns batch `step` of a linear problem: x [rows, 3] and y [rows, 1]."""
    rng = np.random.default_rng([seed, step])
    x = rng.standard_normal((rows, 3), np.float32)
    return x, x @ np.array([[1.0], [-2.0], [0.5]], np.float32)


def batches(start_step, context, *, rows=4, count=None, make=make_batch):
    """A dataset callable: the share of one replica of every batch from `start_step` on."""
    replicas = context.num_replicas_in_sync

    def generate():
        for step in itertools.count(start_step) if count is None else range(start_step, count):
            arrays = make(step, rows)
            for replica in range(replicas):
                share = slice(replica * rows // replicas, (replica + 1) * rows // replicas)
                yield tuple(array[share] for array in arrays)

    arrays = make(0, rows)
    signature = tuple(
        tf.TensorSpec([rows // replicas, *a.shape[1:]], tf.as_dtype(a.dtype)) for a in arrays
    )
    dataset = tf.data.Dataset.from_generator(generate, output_signature=signature)
    if count is None:
        dataset = dataset.apply(
            tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
        )
    return dataset


def make_loop(strategy=None, optimizer=None, loss=squared_error, **kwargs):
    strategy = strategy or tf.distribute.get_strategy()
    with strategy.scope():
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False)])
        model.layers[-1].kernel.assign([[0.1], [0.2], [0.3]])
        optimizer = optimizer() if optimizer else keras.optimizers.SGD(0.1)
    return training.Loop(model, optimizer, loss=loss, strategy=strategy, **kwargs)


def weights(loop):
    return np.concatenate([variable.numpy().ravel() for variable in loop.model.variables])


def run(loop, dataset, steps, **kwargs):
    return list(loop.train(dataset, until_step=steps, report_every_steps=steps, **kwargs))
