"""Additive counts in the graph, and the scores they make.

Counts are summed over batches and replicas first; scores are made of the sums once, on the host. So
they are exact for ragged and empty batches, where a mean of per-batch scores is not.

    sums = {"confusion": metrics.confusion_matrix(masks, logits)}         # in the graph, additive
    table = metrics.scores(total["confusion"], class_names)               # on the host

Of classes that may overlap, see `unet_core.losses`, there are two counts by two for each class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from unet_core.conventions import IGNORED, has_class

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


def confusion_matrix(masks: tf.Tensor, logits: tf.Tensor, overlapping: bool = False) -> tf.Tensor:
    """Returns the pixel counts [C, C] int64 by true class (rows) and predicted class (columns).

    Of overlapping classes [C, 2, 2]: for each the pixels without and with it, in truth (rows) and
    predicted (columns), which is where its logit is above 0.

    A pixel with a NaN among its logits counts as wrong, never as a hit: as if the class after the
    true one, (true + 1) mod C, had been predicted. An overlapping class is wrong where its own
    logit is NaN.

    Args:
        masks: [B, H, W] integer or bool class ids below C; a pixel with `IGNORED` is not counted.
        logits: [B, H, W, K] float, where C = 2 for K = 1 and C = K otherwise.
        overlapping: Whether classes may overlap; then C = K, and masks are below 2^C.

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
    if overlapping:
        return _confusion_of_each(masks, logits)
    classes = max(2, logits.shape[-1])
    # TensorFlow compares int32 on the host even if it is on a GPU, int64 not (seen on 2.21,
    # tensorflow#16106).
    ids = tf.cast(masks, tf.int64)
    counted = _are_classes(ids, classes)
    predicted = tf.cast(predicted_classes(logits), tf.int64)
    predicted = tf.where(predicted < 0, (ids + 1) % classes, predicted)
    return _counts(ids * classes + predicted, counted, [classes, classes])


def _confusion_of_each(masks: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    ids, classes = tf.cast(masks, tf.int64), logits.shape[-1]
    counted = _are_classes(ids, classes, overlapping=True)
    places = []
    for class_id in range(classes):
        truth, logit = has_class(ids, class_id, overlapping=True), logits[..., class_id]
        guess = tf.where(tf.math.is_nan(logit), ~truth, logit > 0)
        places.append(4 * class_id + 2 * tf.cast(truth, tf.int64) + tf.cast(guess, tf.int64))
    return _counts(tf.stack(places, -1), counted[..., None], [classes, 2, 2])


def _counts(places: tf.Tensor, counted: tf.Tensor, shape: Sequence[int]) -> tf.Tensor:
    """Returns how often each place of a table of a shape occurs where it is counted, int64."""
    size = int(np.prod(shape))
    # Beyond the last place: left out of the count.
    places = tf.where(counted, places, tf.constant(size, tf.int64))
    counts = tf.math.bincount(tf.reshape(places, [-1]), minlength=size, maxlength=size)
    return tf.cast(tf.reshape(counts, shape), tf.int64)


def batch_scores(
    masks: tf.Tensor, logits: tf.Tensor, class_names: Sequence[str], overlapping: bool = False
) -> dict[str, tuple[tf.Tensor, tf.Tensor]]:
    """Returns accuracy and Dice of a training batch by name, each as (value, weight), float32.

    sum(value * weight) / sum(weight) over batches is the score of all their pixels together: the
    weight of the accuracy is the number of pixels, that of the Dice of a class the number of pixels
    that are or are predicted as it. The accuracy of overlapping classes is the mean of theirs.

    Args:
        masks: As for `confusion_matrix`.
        logits: As for `confusion_matrix`.
        class_names: The names of the classes.
        overlapping: As for `confusion_matrix`.
    """
    # By comparisons, which XLA compiles; it has no `bincount` of what is not constant (2.21).
    ids, logits = tf.cast(masks, tf.int32), tf.stop_gradient(logits)
    classes = range(len(class_names))
    ids_end = 2 ** len(class_names) if overlapping else len(class_names)
    counted = tf.logical_and(ids >= 0, ids < ids_end)
    truths = [has_class(ids, each, overlapping) for each in classes]
    if overlapping:
        guesses = [logits[..., each] > 0 for each in classes]
        right = [truth == guess for truth, guess in zip(truths, guesses, strict=True)]
    else:
        predicted = tf.cast(predicted_classes(logits), tf.int32)
        guesses = [predicted == each for each in classes]
        right = [ids == predicted]

    def pixels(chosen):
        return tf.reduce_sum(tf.cast(tf.logical_and(counted, chosen), tf.float32))

    total = pixels(counted)
    accuracy = tf.math.divide_no_nan(tf.add_n([*map(pixels, right)]) / len(right), total)
    found = {"accuracy": (accuracy, total)}
    for name, truth, guess in zip(class_names, truths, guesses, strict=True):
        both = pixels(truth) + pixels(guess)
        hits = pixels(tf.logical_and(truth, guess))
        found[f"dice/{name}"] = (tf.math.divide_no_nan(2 * hits, both), both)
    return found


def scores(confusion: np.ndarray, class_names: Sequence[str]) -> dict[str, float]:
    """Returns the scores of a confusion matrix by name, NaN where a score is not defined.

    Args:
        confusion: [C, C] pixel counts, true classes in rows; of overlapping classes [C, 2, 2].
        class_names: The C names.

    Returns:
        For each class `<score>/<class>`, with dice = F1 = 2 TP / (2 TP + FP + FN), iou = TP / (TP +
        FP + FN), precision = TP / (TP + FP) and recall = TP / (TP + FN); `dice/mean` and `iou/mean`
        over the classes that are defined; `accuracy`; and `majority_baseline`, the accuracy of
        always naming the most frequent class. Of overlapping classes the last two are means over
        the classes, of which each is there or not.
    """
    confusion = np.asarray(confusion, np.float64)
    total = confusion.sum()
    if confusion.ndim == 3:
        hit, truth, predicted = confusion[:, 1, 1], confusion[:, 1].sum(1), confusion[..., 1].sum(1)
        right, usual = confusion.trace(axis1=1, axis2=2).sum(), confusion.sum(2).max(1).sum()
    else:
        hit, truth, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
        right, usual = hit.sum(), truth.max()
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
    result["accuracy"] = float(right / total) if total else float("nan")
    result["majority_baseline"] = float(usual / total) if total else float("nan")
    return result


def held_out_scores(sums: Mapping[str, np.ndarray], class_names: Sequence[str]) -> dict[str, float]:
    """Returns the mean loss and the `scores` of what `Loop.evaluate` returns.

    Args:
        sums: They hold "loss", "examples", and the matrix "confusion".
        class_names: As for `scores`.
    """
    loss = float(sums["loss"]) / int(sums["examples"])
    return {"loss": loss, **scores(sums["confusion"], class_names)}


def _are_classes(ids: tf.Tensor, classes: int, overlapping: bool = False) -> tf.Tensor:
    """Returns whether each of `ids` is that of a class; what is not must be `IGNORED`."""
    ids_end = 2**classes if overlapping else classes
    ignored = tf.equal(ids, IGNORED)
    counted = (ids >= 0) & (ids < ids_end) & ~ignored
    valid = tf.reduce_all(counted | ignored)
    message = (
        f"Class ids in masks must be from 0 to {ids_end - 1} ({classes} "
        f"{'overlapping ' * overlapping}classes) or {IGNORED} (`IGNORED`). Make "
        "class ids of the values that mask files hold, or give the network more classes. Lowest "
        "and highest id found:"
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
