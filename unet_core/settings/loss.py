"""Settings of the loss."""

from __future__ import annotations

import dataclasses

from unet_core.losses import LOSSES
from unet_core.settings.fields import check_fields, setting
from unet_core.settings.modes import TRAIN


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """The loss and what its pixels and classes weigh."""

    loss: str = setting(
        "cross_entropy",
        f"Sum of name:weight out of {', '.join(LOSSES)}, or of your own as my_module:my_loss "
        "(docs/hooks.md).",
        modes=TRAIN,
        binds=True,
    )
    overlap_classes: tuple[str, ...] = setting(
        (),
        "Classes that count in Dice and Tversky losses; all by default.",
        modes=TRAIN,
        binds=True,
    )
    class_weights: tuple[float, ...] = setting(
        (),
        "One factor per class in cross entropy and focal loss: of its pixels, or with "
        "--heads sigmoid of all its terms.",
        modes=TRAIN,
        binds=True,
        least=0,
        most=1e6,
    )
    class_balance: str = setting(
        "none",
        "Take those factors from how often the classes occur.",
        modes=TRAIN,
        binds=True,
        choices=("none", "inverse", "median_frequency", "effective_number"),
    )
    border_weight: float = setting(
        0.0,
        "Weight w0 of the pixels between neighbouring objects (the weight map of the U-Net paper), "
        "in cross entropy and focal loss; the paper's is 10.",
        modes=TRAIN,
        binds=True,
        least=0,
        most=1e6,
    )
    border_sigma: float = setting(
        5.0, "How far that reaches, in pixels.", modes=TRAIN, binds=True, least=0.1, most=1000
    )
    focal_gamma: float = setting(
        2.0, "Exponent of the focal loss.", modes=TRAIN, binds=True, least=0, most=100
    )
    tversky_alpha: float = setting(
        0.3, "Tversky weight of false positives.", modes=TRAIN, binds=True, least=0, most=1000
    )
    tversky_beta: float = setting(
        0.7, "Tversky weight of false negatives.", modes=TRAIN, binds=True, least=0, most=1000
    )

    def __post_init__(self):
        check_fields(self)
