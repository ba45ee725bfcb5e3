"""TensorBoard and checkpoints: a run is stopped half-way, started again, and goes on.

The second start restores weights, slots, averages and the step, opens the data at that step, and
cuts the event files there, so that nothing appears twice. It ends with the weights of a run that
was never stopped.

    python examples/programs/resumed_run.py my_run && tensorboard --logdir=my_run
"""

import pathlib
import sys
import tempfile

import keras
import tensorflow as tf
from keras import layers

from unet_core import training


def dataset(start_step, context):
    """Sums of digits: ids [64, 4] and sums [64, 1]."""

    def batch(step):
        digits = tf.random.stateless_uniform([64, 4], [1, step], 0, 10, tf.int32)
        return digits, tf.cast(tf.reduce_sum(digits, 1, keepdims=True), tf.float32)

    return tf.data.Dataset.range(start_step, tf.int64.max).map(batch).prefetch(2)


def make_model():
    hidden = [layers.Embedding(10, 16), layers.Flatten(), layers.Dense(128, "relu")]
    dropout = layers.Dropout(0.1, seed=3)
    return keras.Sequential([keras.Input((4,), dtype="int32"), *hidden, dropout, layers.Dense(1)])


def squared_error(outputs, batch):
    return tf.square(outputs - batch[1])[:, 0]


def main(directory, steps=1000, every=100, show=print):
    """Trains up to `steps`, from where the run in `directory` has ended; returns the model."""
    keras.utils.set_random_seed(0)
    model, directory = make_model(), pathlib.Path(directory)
    schedule = training.schedules.cosine(1e-2, total_steps=1000, warmup_steps=50)
    # training
    loop = training.Loop(model, keras.optimizers.Adam(), loss=squared_error, schedule=schedule)
    checkpoints = training.Checkpoints(directory / "checkpoints", loop)
    start = checkpoints.restore()
    with training.SummaryWriter(directory / "events", resumed_at=start) as writer:
        for report in loop.train(dataset, until_step=steps, report_every_steps=every):
            writer.scalars(report.step, {"loss": report.loss, "rate": report.rate})
            writer.flush()
            checkpoints.save()
            show(f"step {report.step}: loss {report.loss:.3f}")
    # end of training
    return model


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        run = sys.argv[1] if len(sys.argv) > 1 else temporary
        main(run, steps=500)
        print("stopped, and started again")
        main(run)
