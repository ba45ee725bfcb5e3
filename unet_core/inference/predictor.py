"""From a network and an image to class probabilities.

predictor = Predictor(model, tta="dihedral")
probabilities = predictor(image)        # [H, W] uint8 -> [H, W, C] float32
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from unet_core import losses

# Ways to lay an image: (quarter turns, mirrored).
_COPIES = {
    "none": [(0, False)],
    "flips": [(0, False), (0, True), (2, False), (2, True)],
    "dihedral": [(turns, mirrored) for turns in range(4) for mirrored in (False, True)],
}


class Predictor:
    """Predicts whole images, one compiled trace for all sizes and each type of pixel.

    Args:
        model: [B, H, W, channels] pixel values to logits [B, H, W, K].
        tta: "none"; "flips" averages over 4 mirrored copies, "dihedral" over 8 mirrored and turned
            ones.
        margin: Pixels mirrored around the image first and cut off afterwards, so that its border is
            seen in context.
    """

    def __init__(self, model: keras.Model, *, tta: str = "none", margin: int = 64):
        self._copies = _COPIES[tta]
        self._margin = margin
        self._channels = model.input_shape[-1]
        self._model = model
        self._runs: dict[np.dtype, Callable] = {}

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Returns the class probabilities [H, W, C] float32 of `image`, [H, W] or [H, W, channels],
        uint8 or float32 in 0..255.
        """
        run = self._runs.get(image.dtype) or self._compile(image.dtype)
        margin = self._margin
        height, width = image.shape[:2]
        image = image.reshape(height, width, self._channels)
        around = ((margin, margin), (margin, margin), (0, 0))
        padded = np.pad(image, around, mode="reflect" if min(height, width) > 1 else "edge")
        total = None
        for turns, mirrored in self._copies:
            copy = np.rot90(padded, turns)
            copy = copy[:, ::-1] if mirrored else copy
            result = run(np.ascontiguousarray(copy)[None]).numpy()[0]
            result = result[:, ::-1] if mirrored else result
            result = np.rot90(result, -turns)
            total = result.copy() if total is None else np.add(total, result, out=total)
        return total[margin : margin + height, margin : margin + width] / len(self._copies)

    def _compile(self, dtype: np.dtype) -> Callable:
        spec = tf.TensorSpec([None, None, None, self._channels], tf.as_dtype(dtype))
        self._runs[dtype] = tf.function(
            lambda images: losses.probabilities(self._model(images, training=False)),
            input_signature=[spec],
        )
        return self._runs[dtype]
