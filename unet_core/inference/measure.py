"""The objects of a picture, measured.

objects = measure(labels, pixels, "cell", pixel_size_um=(0.25, 0.25))
objects.columns["area_px"]      # one number for each object
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np

from unet_core.errors import UserError
from unet_core.inference.outlines import Outline, outlines_of

Size = tuple[float, float]
_SHAPE = ("label", "area", "centroid", "bbox", "perimeter", "eccentricity")
_SQUARE = 1e-3


@dataclasses.dataclass(frozen=True)
class Objects:
    """What was measured of the objects of one picture.

    Attributes:
        class_name: What all of them are.
        height: Rows of the picture.
        width: Columns of it.
        columns: By name, one value for each object; None where it is not known.
        outlines: Of each object those of its parts, which touch in corners alone.
    """

    class_name: str
    height: int
    width: int
    columns: dict[str, list[Any]]
    outlines: list[list[Outline]]

    def rows(self) -> list[dict[str, Any]]:
        """Returns the columns as one dictionary for each object."""
        return [
            dict(zip(self.columns, row, strict=True))
            for row in zip(*self.columns.values(), strict=True)
        ]


def check_installed() -> None:
    """Raises UserError if scikit-image is not installed."""
    if importlib.util.find_spec("skimage") is None:
        raise UserError("`objects` needs scikit-image: pip install 'unet_core[objects]'.")


def measure(
    labels: np.ndarray,
    pixels: np.ndarray,
    class_name: str,
    *,
    pixel_size_um: Size | None = None,
) -> Objects:
    """Returns the measures of scikit-image's `regionprops_table` and the outlines.

    Coordinates are counted from the top left corner of the picture, as in ImageJ and QuPath: the
    middle of the first pixel is (0.5, 0.5).

    Args:
        labels: [H, W] integer; each object is 8-connected and has a number from 1 on.
        pixels: [H, W, C] as in the file, C being 1 to 4: grey or RGB, perhaps with opacity, which
            is left out.
        class_name: What the objects are.
        pixel_size_um: Width and height of a pixel; None leaves the columns in micrometres empty.

    Raises:
        UserError: If scikit-image is not installed.
    """
    check_installed()
    from skimage.measure import regionprops_table

    found = regionprops_table(labels, properties=_SHAPE)
    top, left, bottom, right = (found[f"bbox-{place}"].astype(int) for place in range(4))
    height, width = labels.shape
    lengths = {
        "centroid_x": found["centroid-1"] + 0.5,
        "centroid_y": found["centroid-0"] + 0.5,
        "bbox_x": left,
        "bbox_y": top,
        "bbox_width": right - left,
        "bbox_height": bottom - top,
        "perimeter": found["perimeter"],
    }
    area = found["area"].astype(int)
    columns = {
        "id": found["label"].astype(int),
        "area_px": area,
        **{f"{name}_px": values for name, values in lengths.items()},
        "eccentricity": found["eccentricity"],
        **_intensities(labels, pixels),
        "touches_edge": ((top == 0) | (left == 0) | (bottom == height) | (right == width)) * 1,
        **_micrometres(lengths, area, pixel_size_um),
    }
    outlines = [
        outlines_of(labels[y0:y1, x0:x1] == number, corner=(x0, y0))
        for number, y0, x0, y1, x1 in zip(columns["id"], top, left, bottom, right, strict=True)
    ]
    plain = {name: np.asarray(values).tolist() for name, values in columns.items()}
    named = {"id": plain.pop("id"), "class": [class_name] * len(area), **plain}
    return Objects(class_name, height, width, named, outlines)


def _intensities(labels: np.ndarray, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Returns mean and standard deviation of the intensities in each object."""
    from skimage.measure import regionprops_table

    found: dict[str, np.ndarray] = {}
    names = ("intensity",) if pixels.shape[-1] < 3 else ("red", "green", "blue")
    for channel, name in enumerate(names):
        image = pixels[..., channel].astype(np.float64)
        how = ("intensity_mean", "intensity_std")
        measured = regionprops_table(labels, image, properties=how)
        found |= {f"mean_{name}": measured[how[0]], f"sd_{name}": measured[how[1]]}
    return found


def _micrometres(
    lengths: dict[str, np.ndarray], area: np.ndarray, size: Size | None
) -> dict[str, Sequence[Any] | np.ndarray]:
    """Returns area and lengths in micrometres, and the size of a pixel.

    A perimeter runs in all directions, so that it is known only if pixels are square.
    """
    unknown = [None] * len(area)
    names = [f"{name}_um" for name in lengths]
    if size is None:
        return dict.fromkeys(["area_um2", *names, "pixel_width_um", "pixel_height_um"], unknown)
    across, down = size
    found: dict[str, Sequence[Any] | np.ndarray] = {"area_um2": area * across * down}
    for name, values in lengths.items():
        is_vertical = name in ("centroid_y", "bbox_y", "bbox_height")
        found[f"{name}_um"] = values * (down if is_vertical else across)
    if abs(across - down) > _SQUARE * across:
        found["perimeter_um"] = unknown
    return found | {
        "pixel_width_um": [across] * len(area),
        "pixel_height_um": [down] * len(area),
    }
