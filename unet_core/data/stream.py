"""Which sample, crop and random draw belong to position i: a pure function of (seed, i).

Epoch e is the positions e*N ... (e+1)*N - 1, in the order of (seed, e). Nothing here remembers
where it is, so a run may start at any step and see exactly the batches it would have seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from unet_core.data import balance
from unet_core.data.augment import Augmenter, Recipe
from unet_core.data.reader import Reader
from unet_core.data.samples import Sample

# Keys of the counter-based generator: samples count up from 0, the orders of epochs from here.
_EPOCHS = 2**62


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How samples are drawn.

    Attributes:
        seed: Seed of everything drawn, >= 0.
        crop_size: Pixels a side of the square crops.
        recipe: The augmentation.
        equal_groups: Whether each epoch repeats and trims samples so that all groups weigh alike.
        foreground_share: Share of the crops that must contain a pixel of `foreground_classes`, if
            their image has one.
        foreground_classes: Class ids.
        then: What is done after the recipe: (image, mask, generator) -> (image, mask), all that is
            random out of the generator.
    """

    seed: int
    crop_size: int
    recipe: Recipe
    equal_groups: bool = False
    foreground_share: float = 0.0
    foreground_classes: tuple[int, ...] = ()
    then: Callable[[np.ndarray, np.ndarray, np.random.Generator], Sequence[np.ndarray]] | None = (
        None
    )


class SampleStream:
    """The endless stream of augmented training samples.

    One stream belongs to one thread (its augmenter has scratch memory); streams made with equal
    arguments give equal samples.

    Args:
        samples: The training samples, at least one.
        read: Decodes them.
        sampling: How they are drawn.
    """

    def __init__(self, samples: Sequence[Sample], read: Reader, sampling: SamplingConfig):
        self._order = _Order(samples, sampling)
        self._read = read
        self._sampling = sampling
        self._augment = Augmenter(
            sampling.crop_size, sampling.recipe, channels=read.channels, dtype=read.dtype
        )

    def write(
        self,
        index: int,
        image_out: np.ndarray,
        mask_out: np.ndarray,
        weights_out: np.ndarray | None = None,
    ) -> None:
        """Writes what stands at position `index` of the stream.

        That is an image [crop, crop(, C)], a mask [crop, crop] uint8 and, if the reader makes them,
        pixel weights [crop, crop] float32.

        Raises:
            UserError: If the sample cannot be read.
        """
        sampling = self._sampling
        sample = self._order.sample_at(index)
        pair = self._read(sample)
        rng = _generator(sampling.seed, index)
        contain = None
        if balance.is_forced(index, sampling.foreground_share):
            foreground, overlapping = sampling.foreground_classes, self._read.classes.overlapping
            contain = balance.pixel_of(pair.mask, foreground, rng, overlapping)
        self._augment(
            rng,
            pair.image,
            pair.mask,
            image_out,
            mask_out,
            weights=self._read.weights(sample),
            weights_out=weights_out,
            contain=contain,
        )
        if sampling.then is not None:
            image_out[...], mask_out[...] = sampling.then(image_out, mask_out, rng)


def names_of_batch(
    samples: Sequence[Sample], sampling: SamplingConfig, *, first: int, size: int
) -> list[str]:
    """Returns the names of the samples at `size` positions of the stream, from `first` on."""
    order = _Order(samples, sampling)
    return [order.sample_at(index).name for index in range(first, first + size)]


def draw_pairs(
    samples: Sequence[Sample], read: Reader, sampling: SamplingConfig, *, count: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns images and masks of the first `count` crops, as `SampleStream.write` writes them."""
    stream = SampleStream(samples, read, sampling)
    crop = sampling.crop_size
    channels = (read.channels,) if read.channels > 1 else ()
    weights = None if read.make_weights is None else np.empty((crop, crop), np.float32)
    pairs = []
    for index in range(count):
        image = np.empty((crop, crop, *channels), read.dtype)
        mask = np.empty((crop, crop), np.uint8)
        stream.write(index, image, mask, weights)
        pairs.append((image, mask))
    return pairs


class _Order:
    """In which order samples come; keeps that of the epoch asked for last."""

    def __init__(self, samples: Sequence[Sample], sampling: SamplingConfig):
        self._samples = samples
        self._sampling = sampling
        self._epoch = -1
        self._order = np.empty(0, np.int64)

    def sample_at(self, index: int) -> Sample:
        epoch, position = divmod(index, len(self._samples))
        if epoch != self._epoch:
            rng = _generator(self._sampling.seed, _EPOCHS + epoch)
            if self._sampling.equal_groups:
                groups = [sample.group for sample in self._samples]
                self._order = balance.order_with_equal_groups(groups, rng=rng)
            else:
                self._order = rng.permutation(len(self._samples))
            self._epoch = epoch
        return self._samples[self._order[position]]


def _generator(seed: int, key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, key]))
