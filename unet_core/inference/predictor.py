"""From a network and an image to class probabilities.

predictor = Predictor(model, tta="dihedral")
probabilities = predictor(image)        # [H, W] uint8 -> [H, W, C] float32
"""

from __future__ import annotations

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
    """Predicts whole images, one compiled trace for all sizes.

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
        self._run = tf.function(
            lambda images: losses.probabilities(model(images, training=False)),
            input_signature=[tf.TensorSpec([None, None, None, model.input_shape[-1]], tf.uint8)],
        )

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Returns the class probabilities [H, W, C] float32 of `image`, [H, W] uint8."""
        margin = self._margin
        padded = np.pad(image, margin, mode="reflect" if min(image.shape) > 1 else "edge")
        total = None
        for turns, mirrored in self._copies:
            copy = np.rot90(padded, turns)
            copy = copy[:, ::-1] if mirrored else copy
            result = self._run(np.ascontiguousarray(copy)[None, ..., None]).numpy()[0]
            result = result[:, ::-1] if mirrored else result
            result = np.rot90(result, -turns)
            total = result.copy() if total is None else np.add(total, result, out=total)
        height, width = image.shape
        return total[margin : margin + height, margin : margin + width] / len(self._copies)
