"""What a person adds by name, as my_module:my_function: a loss, a metric, augmentation, a control.

The contracts
-------------
`my_loss(masks, logits) -> [B]`, a value of each example. `masks` are [B, H, W] class ids, 255 where
    nothing counts, `logits` [B, H, W, K] float32, K = 1 for two classes. With `heads` sigmoid masks
    hold the sum of 2^c over the classes c of a pixel, and each class has a logit. TensorFlow
    functions alone; it is traced once. Pixel weights do not act on it.
`my_metric(masks, logits) -> {name: (value, weight)}`, scalars of a batch. The score of all held-out
    images is sum(value * weight) / sum(weight), over all batches and replicas.
`my_augmentation(image, mask, rng) -> (image, mask)`, after the recipe: arrays [crop, crop(, C)] and
    [crop, crop], to be given back in the same shapes and types. All that is random comes from
    `rng`, a `numpy.random.Generator`, so that a resumed run sees the same crops.
`make_my_control(monitor) -> control`, see `unet_core.training.controls`: an object with `name`,
    `state`, `stopped` and `decide(evaluation)`.

Each is called once on made-up data when the run begins, so that mistakes are found at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from unet_core.conventions import number_of_logits
from unet_core.own_code import OwnFunction, described
from unet_core.settings import RunConfig
from unet_core.training.autograph import converted
from unet_core.training.controls import Control

OF_LOSS = "my_loss(masks, logits)"
OF_METRIC = "my_metric(masks, logits)"
OF_AUGMENTATION = "my_augmentation(image, mask, rng)"
OF_CONTROL = "make_my_control(monitor)"
_ROWS, _SIZE = 2, 16

Sums = Mapping[str, tuple[tf.Tensor, tf.Tensor]]


def make_own_loss(name: str, classes: int, overlapping: bool = False) -> Callable[..., tf.Tensor]:
    """Returns the loss that module:function names, for `unet_core.losses.parse`.

    `overlapping` is whether the classes may overlap.

    Raises:
        UserError: If it breaks its contract.
    """
    masks, logits = _made_up(classes, overlapping)
    own = OwnFunction.load("loss", name, OF_LOSS, masks, logits)
    found = own(masks, logits)
    if not tf.is_tensor(found) or found.shape != (_ROWS,) or not found.dtype.is_floating:
        raise own.refusal(
            f"must return one float for each example, shape [B], such as ({_ROWS},) here. "
            f"Received {_shown(found)}; take the mean over the other axes."
        )
    return lambda masks, logits, _=None: tf.cast(converted(own)(masks, logits), tf.float32)


class OwnMetric:
    """A metric of one's own.

    Args:
        name: "module:function".
        classes: The number of classes.
        overlapping: Whether they may overlap.

    Attributes:
        names: The names of its scores.

    Raises:
        UserError: If it breaks its contract.
    """

    def __init__(self, name: str, classes: int, overlapping: bool = False):
        masks, logits = _made_up(classes, overlapping)
        self._own = OwnFunction.load("metric", name, OF_METRIC, masks, logits)
        found = self._own(masks, logits)
        if not isinstance(found, dict) or not found:
            raise self._own.refusal(f"must return a dict of scores. Received {_shown(found)}.")
        for key, pair in found.items():
            scalars = isinstance(pair, (tuple, list)) and len(pair) == 2
            scalars = scalars and all(np.shape(each) == () for each in pair)
            if not isinstance(key, str) or not scalars:
                raise self._own.refusal(
                    "must return {name: (value, weight)}, both numbers of the whole batch. "
                    f"Received {key!r}: {_shown(pair)}."
                )
        self.names = list(found)

    def sums(self, masks: tf.Tensor, logits: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns what is summed over batches and replicas."""
        found = {}
        for name, (value, weight) in converted(self._own)(masks, logits).items():
            weight = tf.cast(weight, tf.float64)
            found[f"own/{name}/weight"] = weight
            found[f"own/{name}/total"] = tf.cast(value, tf.float64) * weight
        return found

    def scores(self, sums: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Returns the scores by name; NaN where nothing has a weight."""
        found = {}
        for name in self.names:
            total, weight = (float(sums[f"own/{name}/{of}"]) for of in ("total", "weight"))
            found[name] = total / weight if weight else float("nan")
        return found


def make_own_augmentation(
    name: str, channels: int
) -> Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]:
    """Returns the augmentation that module:function names.

    Raises:
        UserError: If it breaks its contract.
    """
    rng = np.random.default_rng(0)
    shape = (_SIZE, _SIZE, channels) if channels > 1 else (_SIZE, _SIZE)
    image, mask = np.zeros(shape, np.uint8), np.zeros((_SIZE, _SIZE), np.uint8)
    own = OwnFunction.load("augmentation", name, OF_AUGMENTATION, image, mask, rng)

    def augment(image, mask, rng):
        found = own(image.copy(), mask.copy(), rng)
        if not isinstance(found, tuple) or len(found) != 2:
            raise own.refusal(f"must return (image, mask). Received {_shown(found)}.")
        for what, given, got in zip(("image", "mask"), (image, mask), found, strict=True):
            if np.shape(got) != given.shape or np.asarray(got).dtype != given.dtype:
                raise own.refusal(
                    f"must give back the {what} as {given.shape} {given.dtype}. Received "
                    f"{np.shape(got)} {np.asarray(got).dtype}."
                )
        return found

    augment(image, mask, rng)
    return augment


def make_own_control(config: RunConfig) -> Control | None:
    """Returns the control of one's own, if one is asked for.

    Raises:
        UserError: If it breaks its contract.
    """
    name, monitor = config.controls.control, config.training.monitor
    if not name:
        return None
    own = OwnFunction.load("control", name, OF_CONTROL, monitor)
    control = own(monitor)
    lacking = [
        each for each in ("name", "state", "stopped", "decide") if not hasattr(control, each)
    ]
    if lacking:
        raise own.refusal(
            f"must return a control. Received {_shown(control)}, which has no {lacking[0]}; see "
            "unet_core.training.controls."
        )
    if not all(isinstance(variable, tf.Variable) for variable in control.state.values()):
        raise own.refusal("must return a control whose `state` are variables by name.")
    return control


def _made_up(classes: int, overlapping: bool) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns masks and logits of a batch."""
    rng = np.random.default_rng(0)
    shape = (_ROWS, _SIZE, _SIZE)
    masks = rng.integers(0, 2**classes if overlapping else classes, shape).astype(np.uint8)
    number = number_of_logits(classes, overlapping)
    logits = rng.standard_normal((*shape, number), np.float32)
    return tf.constant(masks), tf.constant(logits)


def _shown(value: Any) -> str:
    try:
        shape = getattr(value, "shape", None)
        return f"{type(value).__name__}{'' if shape is None else f' of shape {tuple(shape)}'}"
    except Exception as error:
        return described(error)
