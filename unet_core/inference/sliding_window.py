"""Probabilities of images of any size, by one pass or by overlapping windows.

    network = InferenceNetwork(model)
    window = SlidingWindow(network, tta="dihedral")
    probabilities = window(image)                      # [H, W] -> [H, W, C]
    window.refresh()                                   # after the weights of the model have changed
    for first_row, probabilities in window.bands(read_rows, height, width):
        ...                                            # [h, W, C], top to bottom

Windows lie within the image, which is continued by mirroring only as far as the network's layers
need: to a multiple of its stride, and around by what unpadded convolutions take off. At the edge of
the image a network so sees what it saw at the edges of its training crops. Windows start at
multiples of the stride, so that every pooling falls as it would in one pass. A window that is
larger than what the network looks at gives only its inside, and up to the edges of the image: the
result is that of one pass (Ronneberger et al. 2015, figure 2, the overlap-tile strategy). A smaller
one, and any one of a network that looks everywhere, is weighted by a Gaussian and overlaps its
neighbours by half (Isensee et al. 2021, nnU-Net).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np

from unet_core.conventions import mirrored
from unet_core.errors import UserError
from unet_core.inference.network import InferenceNetwork
from unet_core.models.geometry import TileGeometry

MOST_PIXELS_AT_ONCE = 2**21
"""An image is done in one pass up to this size (1448 x 1448), if no size of windows is given."""
WINDOW_PX = 1024
_PIXELS_OF_A_BATCH = 2**20

# Ways to lay an image: (quarter turns, mirrored).
_COPIES = {
    "none": [(0, False)],
    "flips": [(0, False), (0, True), (2, False), (2, True)],
    "dihedral": [(turns, mirrored) for turns in range(4) for mirrored in (False, True)],
}


class SlidingWindow:
    """Runs a network on images of any size.

    Args:
        network: What all windows are run through. Sliding windows of different settings may share
            one; it is compiled once.
        tta: "none"; "flips" averages over 4 mirrored copies, "dihedral" over 8 mirrored and turned
            ones.
        window_px: Pixels a side of a window, brought to the nearest size the network can take. 0 is
            one pass for images up to `MOST_PIXELS_AT_ONCE`, and windows of `WINDOW_PX` above.

    Attributes:
        network, tta, window_px: As given.

    Raises:
        UserError: If `tta` is none of these.
    """

    def __init__(self, network: InferenceNetwork, *, tta: str = "none", window_px: int = 0):
        if tta not in _COPIES:
            raise UserError(f"`tta` ({tta!r}) must be one of {', '.join(_COPIES)}.")
        self.network = network
        self.tta = tta
        self.window_px = window_px
        self._copies = _COPIES[tta]
        self._around = network.geometry

    def refresh(self) -> None:
        """Takes over the weights that the model has now; nothing is compiled anew.

        That holds for all sliding windows of this network.
        """
        self.network.refresh()

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Returns the class probabilities [H, W, C] float32 of `image`.

        `image` is [H, W] or [H, W, channels], uint8 or float32 in 0..255.
        """
        height, width = image.shape[:2]
        image = image.reshape(height, width, self.network.channels)
        bands = self.bands(lambda first, last: image[first:last], height, width)
        return np.concatenate([probabilities for _, probabilities in bands])

    def bands(
        self, read: Callable[[int, int], np.ndarray], height: int, width: int
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Gives the first row and the probabilities of one band after another, top to bottom.

        The class probabilities are [h, W, C] float32. No more than the rows of a window are held.

        Args:
            read: (first, last) -> rows first..last-1, [last-first, W, channels], uint8 or float32
                in 0..255.
            height: Rows of the image.
            width: Its columns.
        """
        window_px = self.window_px
        if not window_px and height * width > MOST_PIXELS_AT_ONCE:
            window_px = WINDOW_PX
        down = _Axis.over(height, window_px, self._around)
        across = _Axis.over(width, window_px, self._around)
        batch = max(1, _PIXELS_OF_A_BATCH // (down.size * across.size))
        column_weights = across.total_weights()
        row_weights = down.total_weights()
        columns = across.sources()
        # The rows from `done` on, as far as a window reaches; those above are yielded already.
        done = 0
        held: np.ndarray | None = None
        for number, start in enumerate(down.starts):
            rows = mirrored(np.arange(start, start + down.size), height, np)
            first = int(rows.min())
            strip = read(first, int(rows.max()) + 1)[rows - first]
            top, bottom, inner_rows = down.output(number)
            for group in range(0, len(across.starts), batch):
                numbers = range(group, min(group + batch, len(across.starts)))
                found = self._run(np.stack([strip[:, columns[n]] for n in numbers]))
                if held is None:
                    held = np.zeros((0, width, found.shape[-1]), np.float32)
                held = _with_rows(held, bottom - done)
                for n, probabilities in zip(numbers, found, strict=True):
                    left, right, inner_columns = across.output(n)
                    part = probabilities[self._kept(inner_rows), self._kept(inner_columns)]
                    weights = (
                        down.weights(number)[inner_rows][:, None] * across.weights(n)[inner_columns]
                    )
                    held[top - done : bottom - done, left:right] += part * weights[..., None]
            after = down.output(number + 1)[0] if number + 1 < len(down.starts) else height
            if held is not None and after > done:
                band, held = held[: after - done], held[after - done :]
                band /= (row_weights[done:after, None] * column_weights)[..., None]
                yield done, band if self.network.overlapping else _of_all_classes(band)
                done = after

    def _kept(self, part: slice) -> slice:
        """Returns where the pixels `part` of a window are in what the network makes of it."""
        return slice(part.start - self._around.cut, part.stop - self._around.cut)

    def _run(self, windows: np.ndarray) -> np.ndarray:
        """Returns the probabilities [B, h, w, K] of [B, H, W, channels], averaged over copies."""
        first, *others = self._copies
        total = self._run_copy(windows, *first).copy()
        for copy in others:
            total += self._run_copy(windows, *copy)
        expected = tuple(size - 2 * self._around.cut for size in windows.shape[1:3])
        if total.shape[1:3] != expected:
            raise ValueError(
                f"Expected logits of {expected} pixels for windows of {windows.shape[1:3]}. "
                f"{self.network.model.name!r} gave {total.shape[1:3]}; a layer that is not in "
                "`layer_rules.RULES` changes the size."
            )
        return total / len(self._copies)

    def _run_copy(self, windows: np.ndarray, turns: int, flipped: bool) -> np.ndarray:
        """Returns the probabilities [B, h, w, K] by one copy, laid back."""
        copy = np.rot90(windows, turns, (1, 2))
        copy = copy[:, :, ::-1] if flipped else copy
        result = self.network(np.ascontiguousarray(copy))
        result = result[:, :, ::-1] if flipped else result
        return np.rot90(result, -turns, (1, 2))


@dataclasses.dataclass(frozen=True)
class _Axis:
    """The windows along one axis of an image.

    Attributes:
        length: Pixels of the image.
        starts: First pixel of each window; negative ones are mirrored.
        given: [size], how much each pixel of a window counts, away from the edges of the image.
        at_start: The same of the first window.
        at_end: The same of the last window.
    """

    length: int
    starts: tuple[int, ...]
    given: np.ndarray
    at_start: np.ndarray
    at_end: np.ndarray

    @classmethod
    def over(cls, length: int, window_px: int, around: TileGeometry) -> _Axis:
        """Lays windows of about `window_px` over `length` pixels; 0 is one for all of them."""
        stride, halo = around.stride, around.halo
        before, after = around.padding()
        whole = _up(length, stride)
        room = window_px - before - after
        if not window_px or room // stride * stride >= whole:
            return cls._of_insides(length, whole, 0, around)
        side = 0 if halo is None else _up(halo, stride)
        inner = room // stride * stride - 2 * side
        if halo is not None and (inner >= stride or around.cut):
            return cls._of_insides(length, max(inner, stride), side, around)
        return cls._blended(length, max(_up(room, stride), 2 * stride), around)

    @classmethod
    def _of_insides(cls, length: int, inner: int, side: int, around: TileGeometry) -> _Axis:
        """Windows that give their `inner` pixels, and `side` more at an edge of the image."""
        size = min(inner + 2 * side, _up(length, around.stride))
        place = np.arange(size)
        early, late = place < size - side, place >= side
        return cls._laid(length, inner, (early & late, early, late), around)

    @classmethod
    def _blended(cls, length: int, size: int, around: TileGeometry) -> _Axis:
        """Windows that overlap by half, weighted by a Gaussian."""
        size = min(size, _up(length, around.stride))
        offsets = np.arange(size) - (size - 1) / 2
        weights = np.exp(-0.5 * np.square(offsets / (size / 8)))
        step = max(size // 2 // around.stride * around.stride, around.stride)
        return cls._laid(length, step, (weights,) * 3, around)

    @classmethod
    def _laid(
        cls, length: int, step: int, weights: tuple[np.ndarray, ...], around: TileGeometry
    ) -> _Axis:
        """Windows every `step` pixels, the last of which ends with the image."""
        size, (before, after) = len(weights[0]), around.padding()
        last = _up(length, around.stride) - size
        starts = (*range(-before, last - before, step), last - before)
        given, at_start, at_end = (
            np.pad(each.astype(np.float32), (before, after)) for each in weights
        )
        if len(starts) == 1:
            at_start = at_end = np.maximum(at_start, at_end)
        return cls(length, starts, given, at_start, at_end)

    @property
    def size(self) -> int:
        """Pixels of a window."""
        return len(self.given)

    def weights(self, number: int) -> np.ndarray:
        """Returns how much each pixel of window `number` counts, [size]."""
        if number == 0:
            return self.at_start
        return self.at_end if number == len(self.starts) - 1 else self.given

    def output(self, number: int) -> tuple[int, int, slice]:
        """Returns the part of the image that window `number` contributes to.

        That is its first pixel, its last + 1, and the same part as a slice of the window.
        """
        counted = np.flatnonzero(self.weights(number))
        start = self.starts[number]
        first = max(start + int(counted[0]), 0)
        last = min(start + int(counted[-1]) + 1, self.length)
        return first, last, slice(first - start, last - start)

    def total_weights(self) -> np.ndarray:
        """Returns the sum of the weights of all windows at each pixel, [length]."""
        total = np.zeros(self.length, np.float32)
        for number in range(len(self.starts)):
            first, last, part = self.output(number)
            total[first:last] += self.weights(number)[part]
        return total

    def sources(self) -> list[np.ndarray]:
        """Returns the pixels of the image that each window looks at, [size]."""
        return [mirrored(np.arange(s, s + self.size), self.length, np) for s in self.starts]


def _of_all_classes(probabilities: np.ndarray) -> np.ndarray:
    """Returns [h, W, C] of [h, W, K]; two classes are stored as the probability of the second."""
    if probabilities.shape[-1] > 1:
        return probabilities
    return np.concatenate([1 - probabilities, probabilities], axis=-1)


def _with_rows(held: np.ndarray, rows: int) -> np.ndarray:
    """Returns `held` [h, W, K], continued by zeros if it has fewer than `rows` rows."""
    if len(held) >= rows:
        return held
    grown = np.zeros((rows, *held.shape[1:]), np.float32)
    grown[: len(held)] = held
    return grown


def _up(value: int, step: int) -> int:
    return math.ceil(value / step) * step
