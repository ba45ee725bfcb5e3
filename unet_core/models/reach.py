"""How far the surroundings of a tile reach into it, layer by layer, along one axis.

A network without padding and cropping layers is given a tile of L pixels, whose origin and size fit
its poolings. A `Line` says of a tensor in it how many elements there are, and how many at each end
differ from those of the whole image, because a layer before has seen the zeros it pads with, or has
missed a neighbour. A rule makes the line of a layer's output of those of its inputs:

    rule(layer, axis, lines) -> Line        # axis 0 is height, 1 is width

Rules are exact for weights of no special values.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Self

import keras


@dataclasses.dataclass(frozen=True)
class Line:
    """One axis of a tensor.

    Attributes:
        step: Pixels of the image from one element to the next; None where elements have no place
            along the axis, or it is not known.
        excess: Pixels; there are (L + excess) / step elements.
        before: Elements at the beginning that depend on what is outside of the tile.
        after: Those at the end.
        unbounded: Whether every element may depend on every pixel.
        sizes: (m, r): L must be r modulo m, so that a pooling sees a multiple of what it needs.
    """

    step: Fraction | None = Fraction(1)
    excess: Fraction = Fraction(0)
    before: int = 0
    after: int = 0
    unbounded: bool = False
    sizes: frozenset[tuple[int, int]] = frozenset()

    def window(self, size: int, stride: int = 1, dilation: int = 1, padding: str = "valid") -> Self:
        """Returns the line after a convolution or pooling that looks at `size` elements."""
        if self.step is None:
            return self
        if stride > 1 and self.excess.denominator != 1:
            # Elements smaller than a pixel, and no whole number of pixels of them.
            return self.nowhere()
        extent = dilation * (size - 1) + 1
        pad = max(extent - stride, 0) // 2 if padding == "same" else 0
        rest = self._rest(stride)
        if rest and padding == "same":
            return self.nowhere()
        gained = 0 if padding == "same" else 1 - math.ceil((extent - rest) / stride)
        fitting = self.fitting(self.step * stride) if stride > 1 and not rest else self
        return dataclasses.replace(
            fitting,
            step=self.step * stride,
            excess=self.excess + (gained * stride - rest) * self.step,
            before=max(math.ceil((self.before + pad) / stride), 0),
            after=max(gained + (self.after + extent - 1 - pad - rest) // stride, 0),
        )

    def _rest(self, stride: int) -> int:
        """Returns the number of elements modulo `stride` that the sizes so far leave; or else 0."""
        if self.step is None or stride == 1:
            return 0
        for modulus, size in self.sizes:
            elements = (size + self.excess) / self.step
            if modulus % (self.step * stride) == 0 and elements.denominator == 1:
                return int(elements) % stride
        return 0

    def transposed(self, size: int, stride: int, padding: str = "valid") -> Self:
        """Returns the line after a transposed convolution."""
        if self.step is None:
            return self
        overlap = max(size - stride, 0)
        pad, gained = (overlap // 2, 0) if padding == "same" else (0, overlap)
        step = self.step / stride
        return dataclasses.replace(
            self,
            step=step,
            excess=self.excess + gained * step,
            before=max(stride * (self.before - 1) + size - pad, 0),
            after=max(gained + stride * self.after + pad, 0),
        )

    def repeated(self, times: int) -> Self:
        """Returns the line after each element has been repeated."""
        if self.step is None:
            return self
        return dataclasses.replace(
            self,
            step=self.step / times,
            before=self.before * times,
            after=self.after * times,
        )

    def interpolated(self, times: int) -> Self:
        """Returns the line after linear interpolation between the middles of elements."""
        # Up to the first middle, the edge is repeated in place of a neighbour.
        more, repeated = math.ceil((times - 1) / 2), self.repeated(times)
        return dataclasses.replace(
            repeated, before=repeated.before + more, after=repeated.after + more
        )

    def padded(self, first: int, last: int) -> Self:
        """Returns the line with zeros added at its ends; with some cropped if negative."""
        if self.step is None:
            return self
        return dataclasses.replace(
            self,
            excess=self.excess + self.step * (first + last),
            before=max(self.before + first, 0),
            after=max(self.after + last, 0),
        )

    def fitting(self, pixels: Fraction) -> Self:
        """Returns the line, given that what it covers is a multiple of `pixels`."""
        # Where elements are smaller than a pixel, multiples of whole pixels are enough.
        modulus = pixels.numerator
        return dataclasses.replace(
            self, sizes=self.sizes | {(modulus, int(-self.excess) % modulus)}
        )

    def everywhere(self) -> Self:
        """Returns the line of a layer whose elements all depend on all pixels."""
        return dataclasses.replace(self, unbounded=True)

    def nowhere(self) -> Self:
        """Returns the line of a layer whose elements have no place along the axis."""
        return dataclasses.replace(self, step=None, unbounded=True)


Rule = Callable[[keras.Layer, int, Sequence[Line]], Line]


def join(lines: Sequence[Line]) -> Line:
    """Returns the line of what is computed of `lines` element by element.

    Those that have no place are repeated along the others.
    """
    sizes = frozenset().union(*(line.sizes for line in lines))
    placed = [line for line in lines if line.step is not None]
    if len({(line.step, line.excess) for line in placed}) != 1:
        return dataclasses.replace(Line().nowhere(), sizes=sizes)
    return dataclasses.replace(
        placed[0],
        before=max(line.before for line in placed),
        after=max(line.after for line in placed),
        unbounded=any(line.unbounded for line in lines),
        sizes=sizes,
    )


def of_pointwise(_: keras.Layer, _axis: int, lines: Sequence[Line]) -> Line:
    """The rule of layers that look at one pixel of each of their inputs."""
    return join(lines)


def of_global(_: keras.Layer, _axis: int, lines: Sequence[Line]) -> Line:
    """The rule of layers after which nothing has a place: global pooling, flattening."""
    return join(lines).nowhere()


def of_statistics(_: keras.Layer, _axis: int, lines: Sequence[Line]) -> Line:
    """The rule of layers that keep the size and look at all pixels, such as instance norm."""
    return join(lines).everywhere()


def of_convolution(layer: keras.Layer, axis: int, lines: Sequence[Line]) -> Line:
    """The rule of convolutions."""
    (line,) = lines
    return line.window(
        layer.kernel_size[axis], layer.strides[axis], layer.dilation_rate[axis], layer.padding
    )


def of_pooling(layer: keras.Layer, axis: int, lines: Sequence[Line]) -> Line:
    """The rule of poolings."""
    (line,) = lines
    return line.window(layer.pool_size[axis], layer.strides[axis], padding=layer.padding)


def of_transposed(layer: keras.layers.Conv2DTranspose, axis: int, lines: Sequence[Line]) -> Line:
    """The rule of transposed convolutions."""
    (line,) = lines
    if layer.dilation_rate[axis] != 1 or layer.output_padding is not None:
        return line.nowhere()
    return line.transposed(layer.kernel_size[axis], layer.strides[axis], layer.padding)


def of_upsampling(layer: keras.layers.UpSampling2D, axis: int, lines: Sequence[Line]) -> Line:
    """The rule of repetition and of bilinear interpolation."""
    (line,) = lines
    if layer.interpolation == "nearest":
        return line.repeated(layer.size[axis])
    if layer.interpolation == "bilinear":
        return line.interpolated(layer.size[axis])
    return line.nowhere()


def of_cropping(layer: keras.layers.Cropping2D, axis: int, lines: Sequence[Line]) -> Line:
    """The rule of cropping."""
    (line,) = lines
    first, last = layer.cropping[axis]
    return line.padded(-first, -last)


def of_zero_padding(layer: keras.layers.ZeroPadding2D, axis: int, lines: Sequence[Line]) -> Line:
    """The rule of padding by zeros."""
    (line,) = lines
    return line.padded(*layer.padding[axis])


def of_first(_: keras.Layer, _axis: int, lines: Sequence[Line]) -> Line:
    """The rule of layers that stand for their first input."""
    return lines[0]


def of_concatenation(layer: keras.layers.Concatenate, _: int, lines: Sequence[Line]) -> Line:
    """The rule of joining channels."""
    return join(lines) if layer.axis in (-1, 3) else join(lines).nowhere()
