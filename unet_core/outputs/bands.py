"""The prediction of a picture, band by band or whole, with what is written of it in 16 bits.

bands = Bands(predictor, outputs)
for band in bands.of(read, height, width):      # top to bottom
    ...
band = bands.of_whole(image, size)              # by the network at another size
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

import numpy as np

from unet_core.data.resizing import resized
from unet_core.inference import uncertainty
from unet_core.inference.ensemble import Ensemble
from unet_core.inference.predictor import Predictor, check_finite
from unet_core.outputs.wanted import class_of_level


class Band(NamedTuple):
    """The prediction of some rows: the first, probabilities [h, W, C], 16-bit files by suffix."""

    first: int
    probabilities: np.ndarray
    levels: dict[str, np.ndarray]


class Bands:
    """Predicts a picture in bands.

    Args:
        predictor: The network.
        outputs: See `PredictionOutputs`; of "disagreement" it must be of several networks.
    """

    def __init__(self, predictor: Predictor, outputs: Collection[str]):
        self._predictor = predictor
        self._outputs = outputs

    def of(self, read: Callable[[int, int], np.ndarray], height: int, width: int) -> Iterator[Band]:
        """Gives the prediction of one band after another, of the rows that `read` gives.

        Raises:
            UserError: If the output of the network is not finite.
        """
        for first, probabilities, shares in self._predicted(read, height, width):
            yield self._band(first, probabilities, shares)

    def of_whole(self, image: np.ndarray, size: tuple[int, int]) -> Band:
        """Returns the prediction of an image [H, W, channels] as one band.

        Args:
            image: Its scaled pixels.
            size: The height and width that the network is to see; what it makes of them is brought
                back to the image's own.

        Raises:
            UserError: As `of`.
        """
        small, own = resized(image, size), image.shape[:2]

        def read(first: int, last: int) -> np.ndarray:
            return small[first:last]

        found = list(self._predicted(read, *size))
        probabilities = np.concatenate([of_band for _, of_band, _ in found])
        shares = {
            suffix: resized(np.concatenate([of_band[suffix] for _, _, of_band in found]), own)
            for suffix in found[0][2]
        }
        return self._band(0, resized(probabilities, own), shares)

    def _predicted(
        self, read: Callable[[int, int], np.ndarray], height: int, width: int
    ) -> Iterator[tuple[int, np.ndarray, dict[str, np.ndarray]]]:
        """Gives first rows, probabilities, and by suffix what else comes of the networks."""
        window = self._predictor.window
        if "disagreement" in self._outputs:
            assert isinstance(window, Ensemble)  # `predict_files` has made sure.
            for first, of_networks in window.bands_of_networks(read, height, width):
                check_finite(of_networks.mean(0))
                yield (
                    first,
                    of_networks.mean(0),
                    {"disagreement": uncertainty.disagreement(of_networks)},
                )
        else:
            for first, probabilities in window.bands(read, height, width):
                check_finite(probabilities)
                yield first, probabilities, {}

    def _band(self, first: int, probabilities: np.ndarray, shares: dict[str, np.ndarray]) -> Band:
        classes = self._predictor.classes
        if "uncertainty" in self._outputs:
            shares["uncertainty"] = uncertainty.entropy(probabilities, classes.overlapping)
        if "probabilities" in self._outputs:
            for suffix, number in class_of_level(classes).items():
                shares[suffix] = probabilities[..., number]
        return Band(first, probabilities, {suffix: _levels(of) for suffix, of in shares.items()})


def _levels(shares: np.ndarray) -> np.ndarray:
    """Returns numbers from 0 to 1 as 16-bit levels, 65535 being 1."""
    return np.rint(np.clip(shares, 0, 1) * 65535).astype(np.uint16)
