"""From a sample on disk to arrays, kept in memory up to a budget.

read = Reader(classes, Scaling.parse("range"), channels=1, dtype=np.uint8, cache_mb=1024)
pair = read(sample)          # pair.image [H, W], pair.mask [H, W]
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from unet_core.data import images, instance_masks
from unet_core.data.classes import ClassMap
from unet_core.data.intensities import Scaling
from unet_core.data.resizing import AS_THEY_ARE, Resize, nearest, resized
from unet_core.data.samples import Sample, Source, naming
from unet_core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Pair:
    """One decoded sample.

    Attributes:
        name: That of the sample.
        image: [H, W] or, for several channels, [H, W, C]; uint8 or float32, scaled to 0..255.
        mask: [H, W] uint8 class ids, or `IGNORED`.
        instances: [H, W] numbers of the true objects, 0 outside; None where masks hold classes.
        claimed_twice: Pixels that several of them claim.
    """

    name: str
    image: np.ndarray
    mask: np.ndarray
    instances: np.ndarray | None = None
    claimed_twice: int = 0


class Reader:
    """Decodes samples; may be called by several threads.

    Args:
        classes: What the values of the masks mean.
        scaling: How intensities become 0..255.
        channels: Channels of the images; grey and colours are converted.
        dtype: uint8 if all images allow it, else float32; see `Scaling.dtype_for`.
        use_channels: Which channels of the files to take, from 0; empty takes all.
        resize: How images and masks are resized.
        cache_mb: Megabytes of decoded samples to keep. Once they are full nothing is replaced: an
            epoch passes every sample once, so what is read next is as good as any.

    Attributes:
        make_weights: Mask ids [H, W] -> pixel weights [H, W] float32; where masks number objects,
            it is given their numbers [H, W] too, as `instances`. At first None: no weights.
    """

    def __init__(
        self,
        classes: ClassMap,
        scaling: Scaling,
        *,
        channels: int = 1,
        dtype: np.dtype | type = np.uint8,
        use_channels: Sequence[int] = (),
        resize: Resize = AS_THEY_ARE,
        cache_mb: int = 1024,
    ):
        self.classes = classes
        self.channels = channels
        self.dtype = np.dtype(dtype)
        self.make_weights: Callable[..., np.ndarray] | None = None
        self.use_channels = tuple(use_channels)
        self.resize = resize
        self._scaling = scaling
        self._free_bytes = cache_mb << 20
        self._kept: dict[Sample, Pair] = {}
        self._kept_weights: dict[Sample, np.ndarray] = {}
        self._lock = threading.Lock()

    def __call__(self, sample: Sample) -> Pair:
        """Returns the decoded sample.

        Raises:
            UserError: If it cannot be read, its mask holds unknown values, or sizes differ.
        """
        pair = self._kept.get(sample)
        if pair is None:
            pair = self._read(sample, self.resize)
            self._keep(self._kept, sample, pair, _size_of(pair))
        return pair

    def at_own_size(self, sample: Sample) -> Pair:
        """Returns the decoded sample as it is stored, not resized and not kept.

        Raises:
            UserError: As calling it.
        """
        return self._read(sample, AS_THEY_ARE)

    def weights(self, sample: Sample) -> np.ndarray | None:
        """Returns the pixel weights [H, W] float32 of a sample, computed once for what is kept.

        Raises:
            UserError: If the sample cannot be read.
        """
        if self.make_weights is None:
            return None
        weights = self._kept_weights.get(sample)
        if weights is None:
            pair = self(sample)
            more = {}
            if pair.instances is not None:
                # The border between objects is of none of them.
                inside = pair.mask == instance_masks.OBJECT
                more["instances"] = np.where(inside, pair.instances, 0)
            weights = self.make_weights(pair.mask, **more)
            self._keep(self._kept_weights, sample, weights, weights.nbytes)
        return weights

    def _image(self, source: Source) -> np.ndarray:
        """Returns one image as `Pair.image`, of its own size.

        Raises:
            UserError: If it cannot be read.
        """
        try:
            pixels = images.read_channels(
                source.path, source.page, self.channels, use=self.use_channels
            )
            pixels = self._scaling(pixels, self.dtype)
        except UserError as error:
            raise UserError(naming(source, error)) from error
        return pixels if self.channels > 1 else pixels[..., 0]

    def mask(self, sample: Sample) -> np.ndarray:
        """Returns the class ids of one sample, [H, W] uint8, resized and not kept.

        Raises:
            UserError: If it cannot be read, or holds values that are not in the class map.
        """
        files = self._files(sample)
        height, width = files[0].shape[:2]
        return self._truth(sample, files, self.resize.size(height, width, sample.image))[0]

    def _files(self, sample: Sample) -> list[np.ndarray]:
        colours = self.classes.is_colour
        return [images.read_mask(each.path, each.page, colours=colours) for each in sample.mask]

    def _truth(
        self, sample: Sample, files: Sequence[np.ndarray], size: tuple[int, int]
    ) -> tuple[np.ndarray, instance_masks.Numbered | None]:
        """Returns the class ids of one sample and, where masks number objects, these.

        Args:
            sample: It.
            files: Its masks as stored.
            size: The height and width to bring them to, before borders are made of them.
        """
        try:
            if len({each.shape[:2] for each in files}) == 1:
                files = [nearest(each, size) for each in files]
            if self.classes.border_px is not None:
                found = instance_masks.numbered(files, self.classes)
                return found.ids(self.classes), found
            if len(files) == 1 and not self.classes.overlapping:
                return self.classes.ids(files[0]), None
            return self.classes.ids_of_binary(files), None
        except UserError as error:
            raise UserError(naming(sample.mask[0], error)) from error

    def _read(self, sample: Sample, resize: Resize) -> Pair:
        image, files = self._image(sample.image), self._files(sample)
        height, width = image.shape[:2]
        if (height, width) != files[0].shape[:2]:
            raise UserError(
                f"{sample.image}: is {width}x{height} pixels, its mask {files[0].shape[1]}x"
                f"{files[0].shape[0]}; both must have one size."
            )
        size = resize.size(height, width, sample.image)
        image, (mask, found) = resized(image, size), self._truth(sample, files, size)
        if found is None:
            return Pair(sample.name, image, mask)
        largest = int(found.numbers.max(initial=0))
        instances = found.numbers.astype(np.min_scalar_type(largest))
        return Pair(sample.name, image, mask, instances, found.claimed_twice)

    def _keep(self, kept: dict, sample: Sample, value: Any, size: int) -> None:
        with self._lock:
            if sample not in kept and size <= self._free_bytes:
                kept[sample] = value
                self._free_bytes -= size


def _size_of(pair: Pair) -> int:
    arrays = (pair.image, pair.mask, pair.instances)
    return sum(each.nbytes for each in arrays if each is not None)
