"""An encoder of the package with a head for classes, and how it is trained."""

import sys
from functools import partial

import keras
import numpy as np
import tensorflow as tf
from keras import layers, regularizers
from sklearn.utils.class_weight import compute_class_weight

from examples.classifier.folders import batches, shuffled, slices
from unet_core import metrics, training
from unet_core.models.build import make_backbone
from unet_core.training import controls, schedules
from unet_core.training.host_controls import Ask


def make_network(args, names):
    """Returns a network from pixel values 0..255 to logits of the classes `names`."""
    keras.utils.set_random_seed(args.seed)
    backbone = make_backbone(args.encoder, base_filters=16, seed=args.seed, weights=args.weights)
    l1, l2 = regularizers.L1(args.l1), regularizers.L2(args.l2)
    how = {"kernel_regularizer": l2, "activity_regularizer": l1, "bias_regularizer": l1}
    x = layers.GlobalMaxPooling2D()(backbone.output)
    x = layers.BatchNormalization(momentum=0.9)(x)
    x = layers.Dense(256, activation="relu", **how)(x)
    x = layers.Dropout(0.45, seed=args.seed)(x)
    return keras.Model(backbone.input, layers.Dense(len(names), name="logits")(x))


def fit(model, run, train, valid, names, args):
    """Trains, or goes on; returns the steps of an epoch and the best step."""
    weights = "balanced" if args.balance == "weights" else None
    weights = compute_class_weight(weights, classes=np.unique(train[1]), y=train[1])

    def loss(logits, batch):
        values = tf.nn.sparse_softmax_cross_entropy_with_logits(batch[1], logits)
        is_hit = tf.cast(tf.argmax(logits, -1) == batch[1], tf.float32)
        return values * tf.gather(np.float32(weights), batch[1]), {"accuracy": is_hit}

    def scores():
        return metrics.held_out_scores(loop.evaluate(batches(slices(valid), args)), names)

    steps, ask = -(-len(train[1]) // args.batch_size), input if sys.stdin.isatty() else None
    asked = [controls.EarlyStopping("loss", patience=args.patience), controls.Dwell("loss")]
    asked += [Ask(args.ask_every * steps, ask=ask, show=print)] if args.ask_every else []
    steering = training.Controls(asked)
    how = {"schedule": steering.scaled(schedules.constant(args.rate))}
    how |= {"metrics": lambda y, batch: {"confusion": metrics.confusion_matrix(batch[1], y)}}
    loop = training.Loop(model, keras.optimizers.Adamax(), loss=loss, **how)
    how = {"monitor": "loss", "higher_is_better": False, "controls": steering}
    checkpoints = training.Checkpoints(run.checkpoints, loop, **how)
    print(f"Going on from epoch {checkpoints.restore() // steps}")
    how = {"until_step": args.epochs * steps, "every_steps": steps, "history": run.history}
    data = partial(shuffled, train, args)
    for row in training.train_evaluated(loop, data, checkpoints, scores, **how):
        scored = "loss {held_out/loss:.4f}, accuracy {held_out/accuracy:.4f} {note}".format(**row)
        print(f"epoch {row['step'] // steps}:", scored)
    return steps, checkpoints.best_step
