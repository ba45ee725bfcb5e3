"""Which image, crop and random draw belong to sample i: a pure function of (seed, i).

Epoch e is the samples e*N ... (e+1)*N - 1, in the permutation of (seed, e). Nothing here remembers
where it is, so a run may start at any step and see exactly the batches it would have seen.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unet_core.data.augment import Augmenter, Recipe
from unet_core.data.folders import Sample
from unet_core.errors import UserError

# Keys of the counter-based generator: samples count up from 0, the permutations of epochs from
# here.
_EPOCHS = 2**62


class SampleStream:
    """The endless stream of augmented training samples.

    One stream belongs to one thread (its augmenter has scratch memory); streams made with equal
    arguments give equal samples.

    Args:
        samples: The training samples.
        seed: The seed of everything drawn, >= 0.
        crop_size: Pixels a side of the square crops.
        recipe: The augmentation.

    Raises:
        UserError: If there are no samples, or the crop is larger than one of the images.
    """

    def __init__(self, samples: Sequence[Sample], *, seed: int, crop_size: int, recipe: Recipe):
        check_crop_size(samples, crop_size)
        self._samples = samples
        self._seed = seed
        self._augment = Augmenter(crop_size, recipe)
        self._epoch = -1
        self._order = np.empty(0, np.int64)

    def sample_at(self, index: int) -> Sample:
        """Returns the sample that position `index` of the stream is drawn from."""
        epoch, position = divmod(index, len(self._samples))
        if epoch != self._epoch:
            self._order = _order_of(epoch, seed=self._seed, count=len(self._samples))
            self._epoch = epoch
        return self._samples[self._order[position]]

    def write(self, index: int, image_out: np.ndarray, mask_out: np.ndarray) -> None:
        """Writes the image and the mask of sample `index` to two [crop, crop] uint8 arrays."""
        sample = self.sample_at(index)
        self._augment(_generator(self._seed, index), sample.image, sample.mask, image_out, mask_out)


def names_of_batch(samples: Sequence[Sample], *, seed: int, step: int, size: int) -> list[str]:
    """Returns the names of the samples that global batch `step` of `size` examples is drawn from,
    row by row.
    """
    names = []
    for index in range(step * size, (step + 1) * size):
        epoch, position = divmod(index, len(samples))
        names.append(samples[_order_of(epoch, seed=seed, count=len(samples))[position]].name)
    return names


def check_crop_size(samples: Sequence[Sample], crop_size: int) -> None:
    """Raises UserError if there are no samples, or the crop is larger than one of the images."""
    if not samples:
        raise UserError("There are no training samples.")
    for sample in samples:
        if crop_size > min(sample.image.shape):
            height, width = sample.image.shape
            raise UserError(
                f"`crop_size` ({crop_size}) is larger than image {sample.name!r} "
                f"({width}x{height} pixels); "
                f"choose at most {min(min(s.image.shape) for s in samples)}."
            )


def _order_of(epoch: int, *, seed: int, count: int) -> np.ndarray:
    return _generator(seed, _EPOCHS + epoch).permutation(count)


def _generator(seed: int, key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, key]))
