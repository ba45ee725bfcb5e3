"""Samples that lie in memory, and a reader of them."""

import pathlib

import numpy as np

from unet_core.data.classes import ClassMap
from unet_core.data.reader import Pair
from unet_core.data.resizing import AS_THEY_ARE
from unet_core.data.samples import Sample, Source


class ArrayReader:
    """Reads `arrays`, {sample: (image, mask)}, as `unet_core.data.reader.Reader` does files."""

    def __init__(self, arrays, classes="0:background,1:cell", make_weights=None):
        self.arrays = arrays
        self.classes = ClassMap.parse(classes)
        image = next(iter(arrays.values()))[0] if arrays else np.zeros((1, 1), np.uint8)
        self.dtype = image.dtype
        self.channels = 1 if image.ndim == 2 else image.shape[2]
        self.make_weights = make_weights
        self.resize = AS_THEY_ARE

    def __call__(self, sample):
        return Pair(sample.name, *self.arrays[sample])

    def weights(self, sample):
        return self.make_weights(self.arrays[sample][1]) if self.make_weights else None


def named(name, group=""):
    source = Source(pathlib.Path(f"{name}.png"))
    return Sample(name, source, (source,), group)


def random_reader(shapes, channels=1, seed=0, dtype=np.uint8, **kwargs):
    """A reader of samples "0", "1", ... of random images and masks of 0 and 1."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for number, shape in enumerate(shapes):
        full = shape if channels == 1 else (*shape, channels)
        image = rng.integers(0, 256, full).astype(dtype)
        arrays[named(str(number))] = image, rng.integers(0, 2, shape).astype(np.uint8)
    return ArrayReader(arrays, **kwargs)
