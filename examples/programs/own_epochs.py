"""A host with a loop of its own: epochs, early stopping, the best weights, and its own counter.

`feed` opens the data once, and each epoch goes on where the one before has ended. Started again in
the same folder, the program goes on after the last epoch, with the same weights.
"""

import sys
import tempfile

import keras
import tensorflow as tf
from keras import layers

from unet_core import training

ROWS, BATCH = 512, 32
STEPS = ROWS // BATCH


def samples(first, count):
    """A dataset of noisy points on a curve."""
    x = tf.random.stateless_uniform([count, 1], [first, 1], -3, 3)
    y = tf.sin(2 * x) + tf.random.stateless_normal([count, 1], [first, 2], 0, 0.3)
    return tf.data.Dataset.from_tensor_slices((x, y))


def dataset(start_step, context):
    """All rows in another order each epoch."""
    shuffled = samples(0, ROWS).shuffle(ROWS, seed=1).repeat()
    return shuffled.batch(BATCH, drop_remainder=True).skip(start_step).prefetch(2)


def make_model():
    hidden = [layers.Dense(128, "relu") for _ in range(3)]
    return keras.Sequential([keras.Input((1,)), *hidden, layers.Dense(1)])


def squared_error(outputs, batch):
    return tf.square(outputs - batch[1])[:, 0]


def main(directory, epochs=60, patience=8, show=print):
    """Trains until no epoch of the last `patience` was the best; returns the best model."""
    keras.utils.set_random_seed(0)
    model, held_out = make_model(), samples(1, 256).batch(64)
    # training
    loop = training.Loop(model, keras.optimizers.Adam(3e-3), loss=squared_error)
    epoch, feed = tf.Variable(0), loop.feed(dataset)
    checkpoints = training.Checkpoints(
        directory, loop, higher_is_better=False, also={"epoch": epoch}
    )
    checkpoints.restore()
    while epoch < epochs and loop.step - (checkpoints.best_step or 0) < patience * STEPS:
        epoch.assign_add(1)
        *_, report = loop.train(feed, until_step=loop.step + STEPS, report_every_steps=STEPS)
        sums = loop.evaluate(held_out)
        score = sums["loss"] / sums["examples"]
        checkpoints.save(score=score)
        show(f"epoch {int(epoch)}: loss {report.loss:.4f}, held out {score:.4f}")
    checkpoints.restore(best=True)
    # end of training
    show(f"the best was epoch {int(epoch)}: held out {checkpoints.best_score:.4f}")
    return model


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(sys.argv[1] if len(sys.argv) > 1 else temporary)
