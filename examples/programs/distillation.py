"""Distillation, and two loops in one process: a teacher is trained, then frozen, and teaches.

The loss of the student's loop calls the teacher, whose variables are frozen, so that nothing trains
them. Both loops stay usable.
"""

import keras
import tensorflow as tf
from keras import layers

from unet_core import training

TEMPERATURE = 2.0


def dataset(start_step, context):
    """Points on three arms of a spiral: [128, 2] and the arms [128]."""

    def batch(step):
        seeds = tf.random.split([1, step], 3)
        arms = tf.random.stateless_uniform([128], seeds[0], 0, 3, tf.int32)
        radius = tf.random.stateless_uniform([128], seeds[1], 0.1, 1)
        angle = 4 * radius + 2.0944 * tf.cast(arms, tf.float32)
        angle += tf.random.stateless_normal([128], seeds[2], 0, 0.25)
        return tf.stack([radius * tf.cos(angle), radius * tf.sin(angle)], 1), arms

    return tf.data.Dataset.range(start_step, tf.int64.max).map(batch).prefetch(2)


def make_network(units):
    hidden = [layers.Dense(units, "relu") for _ in range(3)]
    return keras.Sequential([keras.Input((2,)), *hidden, layers.Dense(3)])


def cross_entropy(logits, batch):
    return tf.nn.sparse_softmax_cross_entropy_with_logits(batch[1], logits)


def count_right(logits, batch):
    right = tf.argmax(logits, 1, tf.int32) == batch[1]
    return {"right": tf.reduce_sum(tf.cast(right, tf.int32))}


def make_distillation(teacher):
    """Returns the loss that compares a student with the softened probabilities of `teacher`."""

    def distillation(logits, batch):
        taught = tf.nn.softmax(teacher(batch[0]) / TEMPERATURE)
        return tf.nn.softmax_cross_entropy_with_logits(taught, logits / TEMPERATURE)

    return distillation


def main(steps=2000, every=500, show=print):
    """Trains half of the steps each and compares the two; returns teacher and student."""
    keras.utils.set_random_seed(0)
    teacher, student = make_network(256), make_network(16)
    held_out = dataset(10**9, tf.distribute.InputContext()).take(20)
    # training
    options = {"until_step": steps // 2, "report_every_steps": every}
    first = training.Loop(
        teacher, keras.optimizers.Adam(1e-3), loss=cross_entropy, metrics=count_right
    )
    for report in first.train(dataset, **options):
        show(f"teacher, step {report.step}: loss {report.loss:.3f}")
    teacher.trainable = False
    second = training.Loop(
        student,
        keras.optimizers.Adam(3e-3),
        loss=make_distillation(teacher),
        metrics=count_right,
    )
    for report in second.train(dataset, **options):
        show(f"student, step {report.step}: loss {report.loss:.3f}")
    sums = [loop.evaluate(held_out) for loop in (first, second)]
    # end of training
    rights = [scores["right"] / scores["examples"] for scores in sums]
    show("right on new points: teacher {:.1%}, student {:.1%}".format(*rights))
    return teacher, student


if __name__ == "__main__":
    main()
