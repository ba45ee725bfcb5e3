"""Additive counts in the graph, and the scores they make.

Counts are summed over batches and replicas first; scores are made of the sums once, on the host. So
they are exact for ragged and empty batches, where a mean of per-batch scores is not.

    sums = {"confusion": metrics.confusion_matrix(masks, logits)}         # in the graph, additive
    table = metrics.scores(total["confusion"], class_names)               # on the host
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from unet_core.conventions import IGNORED

_MOST_PIXELS = 2**31 - 1


def predicted_classes(logits: tf.Tensor) -> tf.Tensor:
    """Returns the class ids [...] int32 that logits [..., K] predict.

    One logit predicts class 1 above 0. The id is -1, which is no class, where a logit is NaN.
    """
    if logits.shape[-1] == 1:
        ids = tf.cast(logits[..., 0] > 0, tf.int32)
    else:
        ids = tf.argmax(logits, -1, tf.int32)
    return tf.where(tf.reduce_any(tf.math.is_nan(logits), -1), -1, ids)


def confusion_matrix(masks: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns the pixel counts [C, C] int64 by true class (rows) and predicted class (columns).

    A pixel with a NaN among its logits counts as wrong, never as a hit: as if the class after the
    true one, (true + 1) mod C, had been predicted.

    Args:
        masks: [B, H, W] integer or bool class ids below C; a pixel with `IGNORED` is not counted.
        logits: [B, H, W, K] float, where C = 2 for K = 1 and C = K otherwise.

    Raises:
        ValueError: If the shapes do not fit, masks are not integers, or an id is no class.
        tf.errors.InvalidArgumentError: If there are more than 2^31 - 1 pixels; in a `tf.function`,
            also if an id is no class, unless XLA compiles it, which leaves that check out.
    """
    masks, logits = tf.convert_to_tensor(masks), tf.convert_to_tensor(logits)
    if not masks.shape.is_compatible_with(logits.shape[:-1]):
        raise ValueError(
            f"Expected masks [B, H, W] and logits [B, H, W, K]. Received {masks.shape} and "
            f"{logits.shape}."
        )
    if not (masks.dtype.is_integer or masks.dtype.is_bool):
        raise ValueError(
            f"Expected masks of class ids, integer or bool. Received {masks.dtype.name}; cast "
            "whole numbers with tf.cast(masks, tf.int32)."
        )
    # bincount counts in 32 bits, which would wrap.
    message = "One batch may have 2^31 - 1 pixels at most; evaluate in smaller ones."
    tf.debugging.assert_less_equal(tf.size(masks, tf.int64), np.int64(_MOST_PIXELS), message)
    classes = max(2, logits.shape[-1])
    # TensorFlow compares int32 on the host even if it is on a GPU, int64 not (seen on 2.21,
    # tensorflow#16106).
    ids = tf.cast(masks, tf.int64)
    counted = _are_classes(ids, classes)
    predicted = tf.cast(predicted_classes(logits), tf.int64)
    predicted = tf.where(predicted < 0, (ids + 1) % classes, predicted)
    # Beyond the last pair: left out of the count.
    pairs = tf.where(counted, ids * classes + predicted, tf.constant(classes**2, tf.int64))
    counts = tf.math.bincount(tf.reshape(pairs, [-1]), minlength=classes**2, maxlength=classes**2)
    return tf.cast(tf.reshape(counts, [classes, classes]), tf.int64)


def batch_scores(
    masks: tf.Tensor, logits: tf.Tensor, class_names: Sequence[str]
) -> dict[str, tuple[tf.Tensor, tf.Tensor]]:
    """Returns accuracy and Dice of a training batch by name, each as (value, weight), float32.

    sum(value * weight) / sum(weight) over batches is the score of all their pixels together: the
    weight of the accuracy is the number of pixels, that of the Dice of a class the number of pixels
    that are or are predicted as it.

    Args:
        masks: As for `confusion_matrix`.
        logits: As for `confusion_matrix`.
        class_names: The names of the classes.
    """
    # By comparisons, which XLA compiles; it has no `bincount` of what is not constant (2.21).
    ids = tf.cast(masks, tf.int32)
    predicted = tf.cast(predicted_classes(tf.stop_gradient(logits)), tf.int32)
    counted = tf.logical_and(ids >= 0, ids < len(class_names))

    def pixels(chosen):
        return tf.reduce_sum(tf.cast(tf.logical_and(counted, chosen), tf.float32))

    total = pixels(counted)
    found = {"accuracy": (tf.math.divide_no_nan(pixels(ids == predicted), total), total)}
    for place, name in enumerate(class_names):
        truth, guess = ids == place, predicted == place
        both = pixels(truth) + pixels(guess)
        hits = pixels(tf.logical_and(truth, guess))
        found[f"dice/{name}"] = (tf.math.divide_no_nan(2 * hits, both), both)
    return found


def scores(confusion: np.ndarray, class_names: Sequence[str]) -> dict[str, float]:
    """Returns the scores of a confusion matrix by name, NaN where a score is not defined.

    Args:
        confusion: [C, C] pixel counts, true classes in rows.
        class_names: The C names.

    Returns:
        For each class `<score>/<class>`, with dice = F1 = 2 TP / (2 TP + FP + FN), iou = TP / (TP +
        FP + FN), precision = TP / (TP + FP) and recall = TP / (TP + FN); `dice/mean` and `iou/mean`
        over the classes that are defined; `accuracy`; and `majority_baseline`, the accuracy of
        always naming the most frequent class.
    """
    confusion = np.asarray(confusion, np.float64)
    hit = np.diag(confusion)
    truth, predicted = confusion.sum(1), confusion.sum(0)
    total = confusion.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        dice = 2 * hit / (truth + predicted)
        per_class = {
            "dice": dice,
            "iou": hit / (truth + predicted - hit),
            "precision": hit / predicted,
            "recall": hit / truth,
            "f1": dice,
        }
    result = {
        f"{score}/{name}": float(value)
        for score, values in per_class.items()
        for name, value in zip(class_names, values, strict=True)
    }
    for score in ("dice", "iou"):
        defined = per_class[score][~np.isnan(per_class[score])]
        result[f"{score}/mean"] = float(defined.mean()) if defined.size else float("nan")
    result["accuracy"] = float(hit.sum() / total) if total else float("nan")
    result["majority_baseline"] = float(truth.max() / total) if total else float("nan")
    return result


def held_out_scores(sums: Mapping[str, np.ndarray], class_names: Sequence[str]) -> dict[str, float]:
    """Returns the mean loss and the `scores` of what `Loop.evaluate` returns.

    Args:
        sums: They hold "loss", "examples", and the matrix "confusion".
        class_names: As for `scores`.
    """
    loss = float(sums["loss"]) / int(sums["examples"])
    return {"loss": loss, **scores(sums["confusion"], class_names)}


def _are_classes(ids: tf.Tensor, classes: int) -> tf.Tensor:
    """Returns whether each of `ids` is that of a class; what is not must be `IGNORED`."""
    ignored = tf.equal(ids, IGNORED)
    counted = (ids >= 0) & (ids < classes) & ~ignored
    valid = tf.reduce_all(counted | ignored)
    message = (
        f"Class ids in masks must be from 0 to {classes - 1} ({classes} classes) or {IGNORED} "
        "(`IGNORED`). Make class ids of the values that mask files hold, or give the network more "
        "classes. Lowest and highest id found:"
    )

    def found():
        lowest = tf.reduce_min(tf.where(ignored, ids.dtype.max, ids))
        return lowest, tf.reduce_max(tf.where(ignored, ids.dtype.min, ids))

    def fail():
        tf.debugging.Assert(False, [message, *found()])
        return False

    if not tf.executing_eagerly():
        # Lowest and highest are looked for only where an id is wrong.
        tf.cond(valid, lambda: True, fail)
    elif not valid:
        raise ValueError("{} {} and {}.".format(message, *found()))
    return counted
