"""A mean teacher: few labelled points, many without labels, and a moving average that teaches.

Two streams make one batch. After each update the averages of the student's weights are written into
the teacher, a network of its own that nothing else trains.

Source: Tarvainen and Valpola 2017, Mean teachers, arXiv:1703.01780.
"""

import keras
import tensorflow as tf
from keras import layers

from unet_core import training


def moons(seed, rows):
    """Points [rows, 2] on two half circles, and which one, [rows]."""
    seeds = tf.random.split(seed, 3)
    which = tf.random.stateless_uniform([rows], seeds[0], 0, 2, tf.int32)
    angle = tf.random.stateless_uniform([rows], seeds[1], 0, 3.1416)
    upper = tf.stack([tf.cos(angle), tf.sin(angle)], 1)
    points = tf.where(which[:, None] == 0, upper, [1.0, 0.5] - upper)
    return points + tf.random.stateless_normal([rows, 2], seeds[2], 0, 0.1), which


def dataset(start_step, context):
    """Pairs of a labelled batch, always the same 8 points, and one without labels, always new.

    The latter is a pair itself: the points [256, 2] with noise, twice.
    """

    def noisy_twice(step):
        points, _ = moons([2, step], 256)
        noise = tf.random.stateless_normal([2, 256, 2], [4, step], 0, 0.2)
        return points + noise[0], points + noise[1]

    labelled = tf.data.Dataset.from_tensors(moons([7, 0], 8)).repeat()
    unlabelled = tf.data.Dataset.range(start_step, tf.int64.max).map(noisy_twice)
    return tf.data.Dataset.zip(labelled, unlabelled).prefetch(2)


def make_network():
    hidden = [layers.Dense(64, "relu"), layers.Dense(64, "relu")]
    return keras.Sequential([keras.Input((2,)), *hidden, layers.Dense(2)])


def make_loss(student, teacher):
    """Returns the loss of the student, `batch -> [1]`: supervised mean and consistency."""

    def loss(batch):
        (points, classes), (once, again) = batch
        entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(classes, student(points))
        inconsistency = tf.nn.softmax(student(once)) - tf.nn.softmax(teacher(again))
        return tf.reduce_mean(entropy)[None] + 20 * tf.reduce_mean(tf.square(inconsistency))

    return loss


def main(steps=2000, every=500, show=print):
    """Trains the student and shows how both score; returns student and teacher."""
    keras.utils.set_random_seed(0)
    student, teacher = make_network(), make_network()
    teacher.trainable = False
    # training
    part = training.Part(
        student,
        keras.optimizers.Adam(2e-3),
        make_loss(student, teacher),
        ema_decay=0.99,
        average_into=teacher,
    )
    loop = training.Loop([part])
    for report in loop.train(dataset, until_step=steps, report_every_steps=every):
        show(f"step {report.step}: loss {report.loss:.4f}")
    # end of training
    points, classes = moons([3, 0], 2000)
    for name, network in (("student", student), ("teacher", teacher)):
        right = tf.argmax(network(points), 1, tf.int32) == classes
        show(f"{name}: {float(tf.reduce_mean(tf.cast(right, tf.float32))):.1%} of new points right")
    return student, teacher


if __name__ == "__main__":
    main()
