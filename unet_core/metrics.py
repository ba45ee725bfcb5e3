"""Additive counts in the graph, and the scores they make.

Counts are summed over batches and replicas first; scores are made of the sums once, on the host. So
they are exact for ragged and empty batches, where a mean of per-batch scores is not.

    sums = {"confusion": metrics.confusion_matrix(masks, logits)}         # in the graph, additive
    table = metrics.scores(total["confusion"], class_names)               # on the host
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from unet_core.conventions import IGNORED


def predicted_classes(logits: tf.Tensor) -> tf.Tensor:
    """Returns the class ids [...] int32 that logits [..., K] predict; one logit predicts class 1
    above 0.
    """
    if logits.shape[-1] == 1:
        return tf.cast(logits[..., 0] > 0, tf.int32)
    return tf.argmax(logits, -1, tf.int32)


def confusion_matrix(masks: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns the pixel counts [C, C] int64 by true class (rows) and predicted class (columns).

    Args:
        masks: [B, H, W] integer class ids below C; a pixel with `IGNORED` is not counted.
        logits: [B, H, W, K] float, where C = 2 for K = 1 and C = K otherwise.
    """
    classes = max(2, logits.shape[-1])
    ids = tf.cast(masks, tf.int32)
    # Beyond the last pair: left out of the count.
    ids = tf.where(tf.equal(ids, IGNORED), classes, ids)
    pairs = ids * classes + predicted_classes(logits)
    counts = tf.math.bincount(tf.reshape(pairs, [-1]), minlength=classes**2, maxlength=classes**2)
    return tf.cast(tf.reshape(counts, [classes, classes]), tf.int64)


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
