"""Warnings at evaluations about a network that gives one class everywhere, or has dead units.

alarms = Alarms(plan, network)
alarms.check(step, sums["confusion"])      # once the weights of `network` are those evaluated
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np

from unet_core import console
from unet_core.inference.network import InferenceNetwork
from unet_core.models.walk import calls
from unet_core.runs.plan import Plan

MANY = 8
"""Images that are looked at for a cause."""
_MOST_DEAD = 0.5
# A class of whose pixels less is found counts as not found.
_FOUND = 0.005
_FAINT = 26


class Alarms:
    """What is said of bad signs, each at most once by one start of the program.

    Args:
        plan: What the run does.
        network: The copy of the network for inference.
    """

    def __init__(self, plan: Plan, network: InferenceNetwork):
        self._plan = plan
        self._network = network
        self._looked_at_units = False
        self._said_constant = False

    def check(self, step: int, confusion: np.ndarray) -> None:
        """Looks at the predictions of an evaluation, and at the first one also at the units."""
        if not self._said_constant:
            found = constant_prediction(confusion, self._plan.classes.names)
            if found is not None:
                self._said_constant = True
                images = [self._plan.data.read(each).image for each in self._plan.held_out[:MANY]]
                console.warn(
                    f"step {step}: the network predicts {found} (nearly) everywhere on the "
                    "held-out images. If later evaluations do not change that: "
                    f"{likely_cause(images)}"
                )
        if not self._looked_at_units:
            self._looked_at_units = True
            sample = self._plan.held_out[0]
            crop = middle(self._plan.data.read(sample).image, self._plan.config.data.crop_size)
            if text := _of_dead(dead_shares(self._network, crop)):
                console.warn(
                    f"step {step}: {text} on the middle of {sample.name}, so that no gradient "
                    "passes them there. Try a lower --learning_rate, --normalization=batch, or "
                    "other --intensities."
                )


def constant_prediction(confusion: np.ndarray, names: Sequence[str]) -> str | None:
    """Returns what is predicted (nearly) everywhere, None if there are different predictions.

    Of classes that exclude one another that is so if at most one has a recall above 0.005. None too
    if the truth is as constant.

    Args:
        confusion: [K, K], pixels by true (row) and predicted class; of classes that may overlap
            [K, 2, 2], of each whether it is there and whether it is predicted.
        names: Those of the classes.
    """
    if confusion.ndim == 2:
        true = confusion.sum(1)
        found = np.diag(confusion) > _FOUND * true
        constant = np.count_nonzero(found) <= 1 < np.count_nonzero(true)
        return names[int(confusion.sum(0).argmax())] if constant else None
    predicted, true = confusion.sum(1) > 0, confusion.sum(2) > 0
    if predicted.all(1).any() or not true.all(1).any():
        return None
    everywhere = [name for name, (_, is_there) in zip(names, predicted, strict=True) if is_there]
    return " and ".join(everywhere) or "no class"


def likely_cause(images: Sequence[np.ndarray]) -> str:
    """Returns in a sentence why a network may have learned nothing, by what it was given."""
    if text := faint(images):
        return text
    return (
        "too few steps (--train_steps), a learning rate that is too high or too low "
        "(--mode=find_rate), a rare class (--class_balance=inverse, --loss=batch_dice), or masks "
        "that do not belong to their images (--preview)."
    )


def faint(images: Sequence[np.ndarray]) -> str | None:
    """Returns what to do about images that fill less than a tenth of 0..255, None of others."""
    low = min(float(np.percentile(image, 0.1)) for image in images)
    high = max(float(np.percentile(image, 99.9)) for image in images)
    if high - low >= _FAINT:
        return None
    return (
        f"as they are scaled now, the images fill only {low:.3g} to {high:.3g} of 0 to 255. Train "
        "with --intensities=percentile:1,99."
    )


def middle(image: np.ndarray, size: int) -> np.ndarray:
    """Returns the middle of `image`, [H, W] or [H, W, C], of at most `size` pixels a side."""
    starts = [max(0, (length - size) // 2) for length in image.shape[:2]]
    return image[starts[0] : starts[0] + size, starts[1] : starts[1] + size]


def dead_shares(network: InferenceNetwork, image: np.ndarray) -> dict[str, tuple[int, int]]:
    """Returns of each layer with a ReLU how many of its channels are 0 on all of `image`.

    Beside it stands how many it has. Nothing of the network is changed.

    Args:
        network: The network.
        image: [H, W] or [H, W, C], as it is predicted; cut, or mirrored, to a size that it takes.
    """
    found = [
        call for call in calls(network.layers) if _is_relu(call.layer) and _is_image(call.outputs)
    ]
    if not found:
        return {}
    highest = {
        str(number): keras.ops.max(call.outputs[0], axis=(0, 1, 2))
        for number, call in enumerate(found)
    }
    values = keras.Model(network.layers.inputs[0], highest)(_fitted(network, image), training=False)
    shares = {}
    for number, call in enumerate(found):
        each = np.asarray(values[str(number)])
        shares[call.layer.name] = int((each <= 0).sum()), len(each)
    return shares


def _of_dead(shares: dict[str, tuple[int, int]]) -> str | None:
    """Returns what to say of the shares of dead channels, None if they are not large."""
    whole = [name for name, (dead, channels) in shares.items() if dead == channels]
    dead, channels = (sum(pair[n] for pair in shares.values()) for n in (0, 1))
    if whole:
        return f"all channels of {', '.join(whole[:3])} are 0 (ReLU)"
    if channels and dead > _MOST_DEAD * channels:
        return f"{dead} of {channels} channels behind a ReLU are 0 everywhere"
    return None


def _is_relu(layer: keras.Operation) -> bool:
    if isinstance(layer, keras.layers.ReLU):
        return not layer.negative_slope
    return getattr(layer, "activation", None) in (keras.activations.relu, keras.activations.relu6)


def _is_image(outputs: Sequence[keras.KerasTensor]) -> bool:
    return len(outputs) == 1 and len(outputs[0].shape) == 4


def _fitted(network: InferenceNetwork, image: np.ndarray) -> np.ndarray:
    """Returns `image` as a batch of a size that the network takes."""
    stride, padding = network.geometry.stride, network.geometry.padding()
    height, width = (max(length // stride * stride, stride) for length in image.shape[:2])
    image = image[:height, :width].reshape(*image[:height, :width].shape[:2], network.channels)
    missing = [(height - image.shape[0], 0), (width - image.shape[1], 0), (0, 0)]
    around = [padding, padding, (0, 0)]
    return np.pad(np.pad(image, missing, "symmetric"), around, "symmetric")[None]
