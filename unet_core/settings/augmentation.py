"""Settings of the augmentation."""

from __future__ import annotations

import dataclasses
from typing import Any

from unet_core.settings.fields import check_fields, check_own, setting
from unet_core.settings.modes import SAMPLES


@dataclasses.dataclass(frozen=True)
class AugmentationSettings:
    """How training crops are changed at random. None leaves a value as the recipe has it."""

    augment: str = setting(
        "none",
        "The recipe; each value below can be overridden.",
        modes=SAMPLES,
        binds=True,
        choices=("none", "keras", "paper", "nnunet"),
    )
    rotation_degrees: float | None = setting(
        None,
        "Largest random rotation either way; 180 is any.",
        modes=SAMPLES,
        binds=True,
        least=0,
        most=180,
    )
    rotation_share: float | None = setting(
        None, "Share of samples that are rotated.", modes=SAMPLES, binds=True, least=0, most=1
    )
    scale: tuple[float, float] | None = setting(
        None, "Range of the random magnification.", modes=SAMPLES, binds=True, least=0.01, most=100
    )
    scale_share: float | None = setting(
        None, "Share of samples that are magnified.", modes=SAMPLES, binds=True, least=0, most=1
    )
    flips: bool | None = setting(None, "Mirror both ways at random.", modes=SAMPLES, binds=True)
    horizontal_flip: bool | None = setting(
        None, "Mirror left-right at random.", modes=SAMPLES, binds=True
    )
    vertical_flip: bool | None = setting(
        None, "Mirror up-down at random.", modes=SAMPLES, binds=True
    )
    quarter_turns: bool | None = setting(
        None, "Turn by 0, 90, 180 or 270 degrees at random.", modes=SAMPLES, binds=True
    )
    width_shift: float | None = setting(
        None,
        "Largest shift left or right, as a share of the width.",
        modes=SAMPLES,
        binds=True,
        least=0,
        most=1,
    )
    height_shift: float | None = setting(
        None,
        "Largest shift up or down, as a share of the height.",
        modes=SAMPLES,
        binds=True,
        least=0,
        most=1,
    )
    shear_degrees: float | None = setting(
        None, "Largest shear either way.", modes=SAMPLES, binds=True, least=0, most=80
    )
    zoom: tuple[float, float] | None = setting(
        None,
        "Range of the zoom of each axis, as in Keras: 2 shows twice as much.",
        modes=SAMPLES,
        binds=True,
        least=0.01,
        most=100,
    )
    elastic_grid: int | None = setting(
        None,
        "Control points a side of the elastic deformation.",
        modes=SAMPLES,
        binds=True,
        least=2,
        most=256,
    )
    elastic_px: float | None = setting(
        None,
        "Standard deviation of the control points' displacement, in pixels.",
        modes=SAMPLES,
        binds=True,
        least=0,
        most=1000,
    )
    fill_mode: str | None = setting(
        None,
        "What lies outside the image.",
        modes=SAMPLES,
        binds=True,
        choices=("mirror", "reflect", "nearest", "wrap", "constant"),
    )
    cval: float | None = setting(
        None,
        "Grey value there with --fill_mode=constant; such pixels are ignored.",
        modes=SAMPLES,
        binds=True,
        least=0,
        most=255,
    )
    channel_shift: float | None = setting(
        None,
        "Largest shift of grey values either way, of 255.",
        modes=SAMPLES,
        binds=True,
        least=0,
        most=255,
    )
    brightness_factor: tuple[float, float] | None = setting(
        None,
        "Range of the factor on grey values.",
        modes=SAMPLES,
        binds=True,
        least=0.001,
        most=1000,
    )
    brightness_share: float | None = setting(
        None, "Share of samples that get it.", modes=SAMPLES, binds=True, least=0, most=1
    )
    contrast: tuple[float, float] | None = setting(
        None, "Range of the random contrast.", modes=SAMPLES, binds=True, least=0.001, most=1000
    )
    contrast_share: float | None = setting(
        None, "Share of samples that get it.", modes=SAMPLES, binds=True, least=0, most=1
    )
    contrast_keeps_range: bool | None = setting(
        None, "Clip contrast to the crop's range.", modes=SAMPLES, binds=True
    )
    brightness: float | None = setting(
        None,
        "Largest shift of brightness; 1 is the whole range.",
        modes=SAMPLES,
        binds=True,
        least=0,
        most=1,
    )
    gamma: tuple[float, float] | None = setting(
        None, "Range of the random gamma.", modes=SAMPLES, binds=True, least=0.01, most=100
    )
    gamma_share: float | None = setting(
        None, "Share of samples that get it.", modes=SAMPLES, binds=True, least=0, most=1
    )
    inverted_gamma_share: float | None = setting(
        None,
        "Share of samples that get a gamma of the inverted image.",
        modes=SAMPLES,
        binds=True,
        least=0,
        most=1,
    )
    noise: float | None = setting(
        None,
        "Largest standard deviation of added noise; 1 is the whole range.",
        modes=SAMPLES,
        binds=True,
        least=0,
        most=10,
    )
    noise_variance: float | None = setting(
        None,
        "Largest variance of added noise; 1 is that of the crop.",
        modes=SAMPLES,
        binds=True,
        least=0,
        most=100,
    )
    noise_share: float | None = setting(
        None, "Share of samples with noise.", modes=SAMPLES, binds=True, least=0, most=1
    )
    blur_share: float | None = setting(
        None, "Share of samples with blur.", modes=SAMPLES, binds=True, least=0, most=1
    )
    blur_px: tuple[float, float] | None = setting(
        None,
        "Range of the blur's standard deviation, in pixels.",
        modes=SAMPLES,
        binds=True,
        least=0.01,
        most=100,
    )
    low_resolution: tuple[float, float] | None = setting(
        None,
        "Range of the factor that lowers the resolution.",
        modes=SAMPLES,
        binds=True,
        least=0.01,
        most=1,
    )
    low_resolution_share: float | None = setting(
        None, "Share of samples that get it.", modes=SAMPLES, binds=True, least=0, most=1
    )
    cutout_holes: int | None = setting(
        None,
        "Squares of the image that are filled with its mean.",
        modes=SAMPLES,
        binds=True,
        least=0,
        most=1000,
    )
    cutout_px: int | None = setting(
        None, "Pixels a side of such a square.", modes=SAMPLES, binds=True, least=0, most=16384
    )

    augmentation: str = setting(
        "",
        "Augmentation of your own, after the recipe: my_module:my_augmentation (docs/hooks.md).",
        modes=SAMPLES,
        binds=True,
    )

    def __post_init__(self):
        check_fields(self)
        check_own("augmentation", self.augmentation)

    def overrides(self) -> dict[str, Any]:
        """Returns the values given, by name, that override those of the recipe `augment`."""
        values = {n: v for n, v in vars(self).items() if v is not None}
        del values["augment"], values["augmentation"]
        return values
