"""From a trained network and an image, as files hold it, to class probabilities.

predictor = Predictor("runs/membrane", tta="dihedral")     # a run, an export, a folder of folds
probabilities = predictor(image)        # [H, W] or [H, W, channels] -> [H, W, C] float32
predictor(batch), predictor("slice.png"), predictor(["a.tif", "b.tif"])
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import overload

import numpy as np

from unet_core.data.classes import ClassMap
from unet_core.data.images import read_channels, to_channels
from unet_core.data.intensities import WHITE, Scaling
from unet_core.data.resizing import AS_THEY_ARE, Resize, resized
from unet_core.data.samples import Source
from unet_core.data.tiff_bands import Rows
from unet_core.errors import UserError
from unet_core.inference.ensemble import Ensemble, open_networks
from unet_core.inference.network import InferenceNetwork
from unet_core.inference.sliding_window import SlidingWindow
from unet_core.inference.trained import Trained, make_resize

Window = SlidingWindow | Ensemble
"""Scaled pixels -> probabilities, by one network or several."""
Images = np.ndarray | str | os.PathLike


class Predictor:
    """Predicts images of any size, depth and number of channels.

    They are converted, scaled and resized as in training; what comes out is of their own size.

    Args:
        source: Folder of a run, of an export or of folds, whose probabilities are averaged; or what
            `open_trained` or `open_networks` has made of one.
        weights: Which weights of a run: "last", "best", "last_raw" or "best_raw"; of a run that
            kept a moving average, raw are those that are no average.
        tta: "none"; "flips" averages over 4 mirrored copies, "dihedral" over 8 mirrored and turned
            ones.
        window_px: Pixels a side of the windows, see `SlidingWindow`.
        precision: "float32", "bfloat16" or "float16"; None is as it was trained.
        pixel_size_um: Width and height of a pixel in micrometres, where the run's `resize` is to a
            size of pixels. None is as in the run: as given there, or as each file says.
        network: "module:function" that made the network, if it is one of your own.

    Attributes:
        classes: The classes of the last axis of the probabilities.
        channels: Channels of the network's images; others are converted.
        window: Scaled pixels, of the size that the network is to see -> probabilities.
        resize: What that size is.

    Raises:
        UserError: If there is no network at `source`, it is damaged, or `tta` or `precision` is
            none of these.
    """

    def __init__(
        self,
        source: str | os.PathLike | Trained | Sequence[Trained],
        *,
        weights: str = "last",
        tta: str = "none",
        window_px: int = 0,
        precision: str | None = None,
        pixel_size_um: float | None = None,
        network: str = "",
    ):
        if isinstance(source, str | os.PathLike):
            source = open_networks(source, weights=weights, network=network)
        networks = [source] if isinstance(source, Trained) else source
        first = networks[0]
        overlapping = first.classes.overlapping
        windows = [
            SlidingWindow(
                InferenceNetwork(each.model, precision=precision, overlapping=overlapping),
                tta=tta,
                window_px=window_px,
            )
            for each in networks
        ]
        window = windows[0] if len(windows) == 1 else Ensemble(windows)
        data = first.config.data
        resize = make_resize(data)
        if pixel_size_um is not None:
            resize = dataclasses.replace(resize, pixel_size_um=pixel_size_um)
        scaling = Scaling.parse(data.intensities)
        self._set(window, first.classes, scaling, data.use_channels, resize)

    @classmethod
    def of_window(
        cls,
        window: Window,
        *,
        classes: ClassMap,
        scaling: Scaling,
        use_channels: Sequence[int] = (),
        resize: Resize = AS_THEY_ARE,
    ) -> Predictor:
        """Returns a predictor by a sliding window that is there already, with the weights it has.

        Args:
            window: Scaled pixels -> probabilities.
            classes: The classes of the last axis of the probabilities.
            scaling: How the images of files were scaled in training.
            use_channels: Which channels of files were taken in training; empty is all.
            resize: How images were resized in training.
        """
        predictor = cls.__new__(cls)
        predictor._set(window, classes, scaling, use_channels, resize)
        return predictor

    def _set(
        self,
        window: Window,
        classes: ClassMap,
        scaling: Scaling,
        use_channels: Sequence[int],
        resize: Resize,
    ) -> None:
        self.window, self.classes, self._scaling = window, classes, scaling
        self._use_channels, self.resize = use_channels, resize
        self.channels = window.network.channels

    @overload
    def __call__(self, images: Images) -> np.ndarray: ...
    @overload
    def __call__(self, images: list[Images] | tuple[Images, ...]) -> list[np.ndarray]: ...
    def __call__(self, images):
        """Returns the class probabilities of images: [H, W, C] float32 of one.

        Args:
            images: One image: [H, W], or [H, W, c] with the channels of the network or of the
                files it was trained on, or in RGB order with c from 1 to 4 (alpha is dropped); or
                the path of a file, of which the first page is read. A batch [B, H, W, c], which
                gives [B, H, W, C]. A list of images or paths, of any sizes, which gives a list.
                Arrays are uint8, uint16, or float32 in the range that `intensities` expects, of any
                byte order.

        Raises:
            UserError: If an image has another shape or dtype, cannot be read, or cannot be scaled:
                it holds NaN, or floats out of range. If the size of its pixels is needed and not
                known. If the network's output is not finite.
        """
        if isinstance(images, str | os.PathLike):
            pixels = read_channels(images, 0, self.channels, use=self._use_channels)
            return self._of_scaled(self._scaling(pixels), Source(pathlib.Path(images)))
        if isinstance(images, list | tuple):
            return [self(each) for each in images]
        if np.ndim(images) == 4:
            return np.stack([self._of_one(image) for image in images])
        return self._of_one(images)

    def _of_one(self, image: np.ndarray) -> np.ndarray:
        shape = list(np.shape(image))
        dtype = getattr(image, "dtype", None)
        if len(shape) not in (2, 3) or 0 in shape or dtype is None or dtype.name not in WHITE:
            raise UserError(
                f"Expected an image [H, W] or [H, W, c] of {', '.join(WHITE)}, a batch [B, H, W, "
                f"c], a path, or a list. Received {shape} of {dtype or type(image).__name__}. "
                "Convert it with `astype`, to numbers in the range of that dtype."
            )
        most = max(4, self.channels, *(each + 1 for each in self._use_channels))
        if len(shape) == 3 and shape[2] > most:
            way = "a stack of grey images is given as a list, or as [B, H, W, 1]"
            if shape[0] <= most:
                way = "if the channels come first, np.moveaxis(image, 0, -1)"
            raise UserError(
                f"Expected the channels last, at most {most}. Received {shape}, which may be "
                f"channels or a stack: {way}."
            )
        image = np.asarray(image).astype(dtype.newbyteorder("="), copy=False)
        chosen = [*shape, 1][2] == self.channels
        pixels = to_channels(image, self.channels, use=() if chosen else self._use_channels)
        return self._of_scaled(self._scaling(pixels))

    def _of_scaled(self, pixels: np.ndarray, source: Source | None = None) -> np.ndarray:
        height, width = pixels.shape[:2]
        probabilities = self.window(resized(pixels, self.resize.size(height, width, source)))
        check_finite(probabilities)
        return resized(probabilities, (height, width))

    def reader(self, rows: Rows) -> Callable[[int, int], np.ndarray]:
        """Returns a function (first, last) -> those rows as the network expects them.

        They are [last-first, W, channels], uint8 or float32 in 0..255.

        Raises:
            UserError: If the picture cannot be read; its intensities may be measured first.
        """

        def read(first: int, last: int) -> np.ndarray:
            band = rows.read(first, last)
            return to_channels(band, self.channels, alpha=rows.alpha, use=self._use_channels)

        step = max(1, 2**22 // rows.width)
        bands = (read(y, min(y + step, rows.height)) for y in range(0, rows.height, step))
        scale = self._scaling.fit(bands)
        return lambda first, last: scale(read(first, last))


def check_finite(probabilities: np.ndarray, source: str = "") -> None:
    """Raises UserError if probabilities [H, W, C] hold NaN, of which no class can be made.

    `source` is what they are of, for the message.

    Raises:
        UserError: If they do.
    """
    # A sum is NaN if one of its terms is, and needs no memory of its own.
    if np.isfinite(probabilities.sum()):
        return
    lost = np.count_nonzero(~np.isfinite(probabilities).all(-1))
    raise UserError(
        f"{source}{': ' if source else ''}The network's output is not finite in {lost} of "
        f"{probabilities[..., 0].size} pixels, so these have no class. Its weights or what it "
        "computes with them overflow: predict with `precision` float32 or with other `weights`, or "
        "train anew with a lower `learning_rate`."
    )
