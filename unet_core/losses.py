"""Losses for segmentation, from logits.

Every loss takes class ids [B, H, W] and logits [B, H, W, K] and returns float32 [B], one value per
example. K = 1 stands for two classes that share one logit, that of class 1. None averages over the
batch: the train step divides once, by the global batch size.

With `overlapping` a pixel may be of none, one or several of K classes, each with a logit of its own
sigmoid. Its mask holds the sum of 2^c over its classes c, or `IGNORED`, and cross entropy and focal
loss are binary ones, averaged over the classes.

Pixels whose mask is `IGNORED` count nowhere. Weights of pixels and classes, and that 0 of an
ignored pixel, stand in the numerator alone: a mean is over all pixels of the example, so it does
not depend on what else is in the batch or on the replica.

A mask that holds an id which is neither a class nor `IGNORED` is refused: by a ValueError, or in a
`tf.function`, where values are not known before it runs, by a `tf.errors.InvalidArgumentError`. A
function that XLA compiles leaves such checks out; there the loss and its gradient are NaN.

    loss = losses.cross_entropy(masks, logits) + losses.soft_dice(masks, logits, batchwise=True)
    # [B]
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unet_core.conventions import IGNORED, has_class
from unet_core.errors import UserError
from unet_core.own_code import is_name
from unet_core.registry import LazyModule

if TYPE_CHECKING:
    import tensorflow as tf
else:
    # The names of the losses are read where TensorFlow is not loaded: for `--help`.
    tf = LazyModule("tensorflow")

Loss = Callable[..., "tf.Tensor"]
"""(masks, logits, pixel_weights=None) -> [B] float32."""


def probabilities(logits: tf.Tensor, overlapping: bool = False) -> tf.Tensor:
    """Returns class probabilities [..., C] float32 of logits [..., K].

    K = 1 gives C = 2, unless classes may overlap.
    """
    logits = tf.cast(logits, tf.float32)
    if overlapping:
        return tf.sigmoid(logits)
    if logits.shape[-1] == 1:
        return tf.concat([tf.sigmoid(-logits), tf.sigmoid(logits)], -1)
    return tf.nn.softmax(logits)


def cross_entropy(
    masks: tf.Tensor,
    logits: tf.Tensor,
    *,
    class_weights: Sequence[float] | None = None,
    pixel_weights: tf.Tensor | None = None,
    overlapping: bool = False,
) -> tf.Tensor:
    """Returns the mean cross entropy of each example's pixels, in nats.

    Args:
        masks: [B, H, W] integer or bool class ids, or `IGNORED`.
        logits: [B, H, W, K] float; binary cross entropy for K = 1, categorical for more.
        class_weights: One factor per class, >= 0, on its pixels' terms; of overlapping classes, on
            all terms of the class.
        pixel_weights: [B, H, W] float, one factor per pixel.
        overlapping: Whether classes may overlap, see the head of this module.

    Returns:
        [B] float32. The weighted sum is divided by the number of pixels of the example, ignored
        ones too, never by the sum of the weights.

    Raises:
        ValueError: If the shapes do not fit, masks are not integers, an id is no class, or a class
            weight is negative or not finite.
    """
    ids, counted, valid = _checked_ids(masks, logits, overlapping)
    ids, terms = _cross_entropy_terms(ids, counted, logits, overlapping)
    return valid * _mean_of_terms(terms, ids, logits, class_weights, pixel_weights, overlapping)


def focal(
    masks: tf.Tensor,
    logits: tf.Tensor,
    *,
    gamma: float = 2.0,
    class_weights: Sequence[float] | None = None,
    pixel_weights: tf.Tensor | None = None,
    overlapping: bool = False,
) -> tf.Tensor:
    """Returns the focal loss: the mean over pixels of -(1 - p)^gamma ln p.

    p is the probability of what is true: of the class, or of an overlapping one's being there or
    not. Arguments and result are those of `cross_entropy`;
    `gamma` >= 0, and 0 gives cross entropy itself.

    Source: Lin et al. 2017, arXiv:1708.02002.
    """
    _check_number("gamma", gamma)
    ids, counted, valid = _checked_ids(masks, logits, overlapping)
    ids, terms = _cross_entropy_terms(ids, counted, logits, overlapping)
    # Kept off 0, where the derivative of a power below 1 has no bound.
    miss = tf.maximum(-tf.math.expm1(-terms), 1e-7)
    terms = miss**gamma * terms
    return valid * _mean_of_terms(terms, ids, logits, class_weights, pixel_weights, overlapping)


def tversky(
    masks: tf.Tensor,
    logits: tf.Tensor,
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    classes: Sequence[int] | None = None,
    smooth: float = 1.0,
    batchwise: bool = False,
    overlapping: bool = False,
) -> tf.Tensor:
    """Returns one minus the Tversky index TP / (TP + alpha FP + beta FN), averaged over `classes`.

    Args:
        masks: [B, H, W] integer or bool class ids, or `IGNORED`.
        logits: [B, H, W, K] float.
        alpha: Weight of false positives, >= 0.
        beta: Weight of false negatives, >= 0.
        classes: Ids of the classes that count; all by default.
        smooth: Pixels added to numerator and denominator, > 0: a class that is neither there nor
            predicted then scores about 0, not NaN.
        batchwise: Whether TP, FP and FN are summed over the global batch, all replicas included,
            before the ratio is taken. Every example then gets the value of the batch.
        overlapping: Whether classes may overlap, see the head of this module.

    Returns:
        [B] float32 in [0, 1]; 0 is perfect overlap.

    Raises:
        ValueError: If the shapes do not fit, masks are not integers, an id in `masks` or `classes`
            is no class, or a number is out of its range or not finite.

    Source: Salehi et al. 2017, arXiv:1706.05721, with probabilities for counts.
    """
    _check_number("alpha", alpha)
    _check_number("beta", beta)
    _check_number("smooth", smooth, above_zero=True)
    ids, counted, valid = _checked_ids(masks, logits, overlapping)
    if classes is not None:
        _check_classes(classes, _number_of_classes(logits, overlapping))
    predicted = probabilities(logits, overlapping) * tf.cast(counted, tf.float32)[..., None]
    # An ignored pixel's row is all zeros here: its id is no class.
    number = predicted.shape[-1]
    truth = _presence(ids, number) if overlapping else tf.one_hot(ids, number)
    hit = tf.reduce_sum(predicted * truth, (1, 2))
    false_positive = tf.reduce_sum(predicted, (1, 2)) - hit
    false_negative = tf.reduce_sum(truth, (1, 2)) - hit
    sums = tf.stack([hit, false_positive, false_negative])  # [3, B, C]
    if batchwise:
        sums = _sum_over_replicas(tf.reduce_sum(sums, 1, keepdims=True))
    hit, false_positive, false_negative = tf.unstack(sums)
    index = (hit + smooth) / (hit + alpha * false_positive + beta * false_negative + smooth)
    if classes is not None:
        index = tf.gather(index, list(classes), axis=-1)
    loss = valid * (1 - tf.reduce_mean(index, -1))
    return tf.repeat(loss, tf.shape(ids)[0]) if batchwise else loss


def soft_dice(
    masks: tf.Tensor,
    logits: tf.Tensor,
    *,
    classes: Sequence[int] | None = None,
    smooth: float = 1.0,
    batchwise: bool = False,
    overlapping: bool = False,
) -> tf.Tensor:
    """Returns one minus the soft Dice overlap (2 TP + s) / (2 TP + FP + FN + s).

    It is averaged over `classes`. It is the Tversky loss with both weights 1/2; arguments and
    result are as there.

    Source: Milletari et al. 2016, V-Net, arXiv:1606.04797, with plain sums in the denominator.
    """
    _check_number("smooth", smooth, above_zero=True)
    how: dict[str, Any] = dict(classes=classes, batchwise=batchwise, overlapping=overlapping)
    return tversky(masks, logits, alpha=0.5, beta=0.5, smooth=smooth / 2, **how)


def weighted_sum(terms: Sequence[tuple[float, Loss]]) -> Loss:
    """Returns the sum of `weight * loss(masks, logits, pixel_weights)` over `terms`, as a loss."""

    def total(masks: tf.Tensor, logits: tf.Tensor, pixel_weights=None) -> tf.Tensor:
        return tf.add_n([weight * loss(masks, logits, pixel_weights) for weight, loss in terms])

    return total


def deeply_supervised(loss: Loss) -> Loss:
    """Returns `loss` for a list of logits, those of full size first (deep supervision).

    The logits i are [B, ceil(H / s), ceil(W / s), K] with s = 2**i; of masks and pixel weights they
    are given the middle pixel of each s x s block. The weights are 1 / 2**i, over their sum.

    Source: Lee et al. 2015, arXiv:1409.5185, with the weights of nnU-Net (Isensee et al. 2021).
    """

    def total(masks: tf.Tensor, logits: Sequence[tf.Tensor], pixel_weights=None) -> tf.Tensor:
        weights = [0.5**level for level in range(len(logits))]
        terms = []
        for level, (weight, of_level) in enumerate(zip(weights, logits, strict=True)):
            truth, factors = (_shrunk(each, 2**level) for each in (masks, pixel_weights))
            terms.append(weight / sum(weights) * loss(truth, of_level, factors))
        return tf.add_n(terms)

    return total


def _shrunk(values: tf.Tensor | None, stride: int) -> tf.Tensor | None:
    """Returns of [B, H, W] the middle of each block of pixels; at the end the last pixel."""
    if values is None or stride == 1:
        return values
    for axis in (1, 2):
        size = tf.shape(values)[axis]
        places = tf.minimum(tf.range(0, size, stride) + stride // 2, size - 1)
        values = tf.gather(values, places, axis=axis)
    return values


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """What the losses of `LOSSES` may be given.

    Attributes:
        class_weights: One factor per class in `cross_entropy` and `focal`; None is 1 for all.
        overlap_classes: Ids of the classes that count in Dice and Tversky losses; None is all.
        focal_gamma: Exponent of `focal`.
        tversky_alpha: Weight of false positives in `tversky`.
        tversky_beta: Weight of false negatives in `tversky`.
        overlapping: Whether classes may overlap.
    """

    class_weights: Sequence[float] | None = None
    overlap_classes: Sequence[int] | None = None
    focal_gamma: float = 2.0
    tversky_alpha: float = 0.3
    tversky_beta: float = 0.7
    overlapping: bool = False


def _cross_entropy(masks, logits, pixel_weights, options: LossOptions) -> tf.Tensor:
    return cross_entropy(
        masks,
        logits,
        class_weights=options.class_weights,
        pixel_weights=pixel_weights,
        overlapping=options.overlapping,
    )


def _focal(masks, logits, pixel_weights, options: LossOptions) -> tf.Tensor:
    return focal(
        masks,
        logits,
        gamma=options.focal_gamma,
        class_weights=options.class_weights,
        pixel_weights=pixel_weights,
        overlapping=options.overlapping,
    )


def _dice(masks, logits, _, options: LossOptions, *, batchwise: bool = False) -> tf.Tensor:
    return soft_dice(
        masks,
        logits,
        classes=options.overlap_classes,
        batchwise=batchwise,
        overlapping=options.overlapping,
    )


def _tversky(masks, logits, _, options: LossOptions, *, batchwise: bool = False) -> tf.Tensor:
    return tversky(
        masks,
        logits,
        alpha=options.tversky_alpha,
        beta=options.tversky_beta,
        classes=options.overlap_classes,
        batchwise=batchwise,
        overlapping=options.overlapping,
    )


LOSSES: Mapping[str, Loss] = {
    "cross_entropy": _cross_entropy,
    "focal": _focal,
    "dice": _dice,
    "batch_dice": functools.partial(_dice, batchwise=True),
    "tversky": _tversky,
    "batch_tversky": functools.partial(_tversky, batchwise=True),
}
"""Name -> function of (masks, logits, pixel_weights, options), with `options` a `LossOptions`."""


def parse(text: str, *, own: Callable[[str], Loss] | None = None, **options: Any) -> Loss:
    """Returns the loss written as `name:weight,name:weight`, a bare name having the weight 1.

    Args:
        text: A sum of the names of `LOSSES`, and of losses of one's own as module:function. Pixel
            weights act on cross_entropy and focal.
        own: Returns the loss that module:function names; by default there are none.
        **options: Those of `LossOptions`.

    Raises:
        UserError: If a name is not one of these, or a weight not a finite number.
    """
    chosen = LossOptions(**options)
    terms: list[tuple[float, Loss]] = []
    for entry in map(str.strip, text.split(",")):
        name, factor = _weighted(entry)
        if name in LOSSES and math.isfinite(factor):
            terms.append((factor, functools.partial(LOSSES[name], options=chosen)))
        elif own is not None and is_name(name) and math.isfinite(factor):
            terms.append((factor, own(name)))
        else:
            raise UserError(
                f"`loss`: {entry!r} is not of the form name or name:weight with a name out of "
                f"{', '.join(LOSSES)}, or a function of your own as my_module:my_loss."
            )
    return weighted_sum(terms)


def _weighted(entry: str) -> tuple[str, float]:
    """Returns name and weight of an entry; the weight is NaN if it is no number."""
    name, _, weight = entry.rpartition(":")
    try:
        return (name, float(weight)) if name else (entry, 1.0)
    except ValueError:
        return (entry, 1.0) if is_name(entry) else (name, math.nan)


def _cross_entropy_terms(ids, counted, logits, overlapping) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns ids and cross entropy, [B, H, W] int64 and float32, both 0 where nothing counts.

    Of overlapping classes the cross entropy is [B, H, W, C].
    """
    logits = tf.cast(logits, tf.float32)
    ids = tf.where(counted, ids, tf.zeros_like(ids))
    if overlapping:
        terms = tf.nn.sigmoid_cross_entropy_with_logits(
            labels=_presence(ids, logits.shape[-1]), logits=logits
        )
        return ids, tf.where(counted[..., None], terms, 0.0)
    if logits.shape[-1] == 1:
        per_pixel = tf.nn.sigmoid_cross_entropy_with_logits(
            labels=tf.cast(ids, tf.float32), logits=logits[..., 0]
        )
    else:
        per_pixel = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=ids, logits=logits)
    return ids, tf.where(counted, per_pixel, 0.0)


def _mean_of_terms(terms, ids, logits, class_weights, pixel_weights, overlapping) -> tf.Tensor:
    if class_weights is not None:
        _check_class_weights(class_weights, _number_of_classes(logits, overlapping))
        factors = tf.constant(class_weights, tf.float32)
        terms *= factors if overlapping else tf.gather(factors, ids)
    per_pixel = tf.reduce_mean(terms, -1) if overlapping else terms
    if pixel_weights is not None:
        pixel_weights = tf.convert_to_tensor(pixel_weights)
        _check_pixel_weights(pixel_weights, ids)
        per_pixel *= tf.cast(pixel_weights, tf.float32)
    return tf.reduce_mean(per_pixel, (1, 2))


def _sum_over_replicas(sums: tf.Tensor) -> tf.Tensor:
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return sums
    return context.all_reduce(tf.distribute.ReduceOp.SUM, sums)


def _number_of_classes(logits: tf.Tensor, overlapping: bool) -> int:
    return logits.shape[-1] if overlapping else max(2, logits.shape[-1])


def _presence(ids: tf.Tensor, classes: int) -> tf.Tensor:
    """Returns where each class is, [B, H, W, C] float32, of the masks of overlapping classes."""
    found = [has_class(ids, class_id, overlapping=True) for class_id in range(classes)]
    return tf.cast(tf.stack(found, -1), tf.float32)


def _checked_ids(
    masks: tf.Tensor, logits: tf.Tensor, overlapping: bool
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns ids [B, H, W] int64, whether a pixel counts [B, H, W] bool, and a factor.

    The loss is multiplied by the factor: 1, or NaN if an id is neither a class nor `IGNORED`. Such
    an id is an error. The factor stands in for it where XLA leaves assertions out, and it keeps an
    update from using the loss while the assertion is under way, as nothing waits for that.
    """
    masks = tf.convert_to_tensor(masks)
    _check_shapes(masks, tf.TensorShape(logits.shape))
    if not (masks.dtype.is_integer or masks.dtype.is_bool):
        raise ValueError(
            f"Expected masks of class ids, integer or bool. Received {masks.dtype.name}. A pixel "
            "is of one class, not of shares of several (soft labels). Whole numbers, which Keras' "
            "`fit` makes floats of, are cast by tf.cast(masks, tf.int32)."
        )
    # TensorFlow compares int32 on the host even if it is on a GPU, int64 not (seen on 2.21,
    # tensorflow#16106).
    ids = tf.cast(masks, tf.int64)
    classes = _number_of_classes(logits, overlapping)
    ids_end = 2**classes if overlapping else classes
    ignored = tf.equal(ids, IGNORED)
    counted = (ids >= 0) & (ids < ids_end) & ~ignored
    valid = tf.reduce_all(counted | ignored)
    message = (
        f"Class ids in masks must be from 0 to {ids_end - 1} (logits {logits.shape}: {classes} "
        f"{'overlapping ' * overlapping}classes) or {IGNORED} "
        "(`IGNORED`). Make class ids of the values that mask files hold, or give the network more "
        "classes. Lowest and highest id found:"
    )

    def found():
        lowest = tf.reduce_min(tf.where(ignored, ids.dtype.max, ids))
        return lowest, tf.reduce_max(tf.where(ignored, ids.dtype.min, ids))

    if not tf.executing_eagerly():
        # Lowest and highest are looked for only where an id is wrong.
        tf.cond(valid, lambda: True, lambda: _fail(message, *found()))
    elif not valid:
        raise ValueError("{} {} and {}.".format(message, *found()))
    return ids, counted, tf.where(valid, 1.0, math.nan)


def _fail(*data) -> bool:
    tf.debugging.Assert(False, data)
    return False


def _check_shapes(masks: tf.Tensor, logits_shape: tf.TensorShape) -> None:
    if (
        logits_shape.rank != 4
        or logits_shape[-1] is None
        or masks.shape.rank != 3
        or not masks.shape.is_compatible_with(logits_shape[:3])
    ):
        raise ValueError(
            f"Expected masks [B, H, W] and logits [B, H, W, K], K known. Received {masks.shape} "
            f"and {logits_shape}."
        )


def _check_pixel_weights(weights: tf.Tensor, ids: tf.Tensor) -> None:
    message = "`pixel_weights` must have the shape of the masks, [B, H, W]."
    if weights.shape.rank != 3 or not weights.shape.is_compatible_with(ids.shape):
        raise ValueError(f"{message} Received {weights.shape} for masks {ids.shape}.")
    if not (weights.shape.is_fully_defined() and ids.shape.is_fully_defined()):
        # An axis of 1 would be broadcast.
        tf.debugging.assert_equal(tf.shape(weights), tf.shape(ids), message)


def _check_number(name: str, value: float, *, above_zero: bool = False) -> None:
    if not math.isfinite(value) or value < 0 or (above_zero and value == 0):
        rule = "greater than 0" if above_zero else "at least 0"
        raise ValueError(f"`{name}` ({value}) must be {rule} and finite.")


def _check_classes(chosen: Sequence[int], classes: int) -> None:
    chosen = list(chosen)
    if not chosen or not all(each in range(classes) for each in chosen):
        raise ValueError(
            f"`classes` ({chosen}) must be one or more ids from 0 to {classes - 1}, those of the "
            f"{classes} classes; None counts all."
        )


def _check_class_weights(weights: Sequence[float], classes: int) -> None:
    try:
        values = [float(weight) for weight in weights]
    except TypeError:
        values = []
    if len(values) != classes or not all(math.isfinite(v) and v >= 0 for v in values):
        raise ValueError(
            f"`class_weights` ({weights}) must be one finite number of at least 0 for each of the "
            f"{classes} classes."
        )
