"""Predictions of samples with known masks, at the size of their files, where they are scored.

pair, probabilities = predict_sample(window, sample, read)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from unet_core.data.reader import Pair, Reader
from unet_core.data.resizing import resized
from unet_core.data.samples import Sample
from unet_core.inference.predictor import check_finite


def predict_sample(
    window: Callable[[np.ndarray], np.ndarray], sample: Sample, read: Reader
) -> tuple[Pair, np.ndarray]:
    """Returns a sample and its probabilities [H, W, C], both of the size of its files.

    Args:
        window: [H, W] or [H, W, C] scaled and resized pixels -> probabilities.
        sample: What to predict.
        read: Decodes it.

    Raises:
        UserError: If it cannot be read, or the network's output is not finite.
    """
    pair = read(sample)
    probabilities = window(pair.image)
    check_finite(probabilities, str(sample.image))
    if not read.resize.is_on:
        return pair, probabilities
    pair = read.at_own_size(sample)
    height, width = pair.mask.shape
    return pair, resized(probabilities, (height, width))
