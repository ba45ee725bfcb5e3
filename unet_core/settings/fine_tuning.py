"""Settings of fine-tuning: what is trained, from when on, and how fast."""

from __future__ import annotations

import dataclasses

from unet_core.settings.fields import check_fields, setting
from unet_core.settings.modes import BUILD, TRAIN


@dataclasses.dataclass(frozen=True)
class FineTuningSettings:
    """Frozen layers, when they are unfrozen, the learning rate of parts."""

    init_from: str | None = setting(
        None,
        "Begin a new run with the weights of another: the folder of a run or export, or a file "
        "(.weights.h5, .keras, Keras 2's .h5), by the names of layers. What does not fit begins "
        "anew; of the head, the classes of one name are taken over.",
        modes=TRAIN,
        binds=True,
        is_path=True,
    )
    freeze: tuple[str, ...] = setting(
        (),
        "Layers that are not trained: encoder, decoder, or names and patterns such as down0_*.",
        modes=BUILD,
        binds=True,
    )
    unfreeze_at_step: int | None = setting(
        None,
        "Step from which on all layers are trained. The optimizer begins anew there. Default: "
        "frozen layers stay frozen.",
        modes=TRAIN,
        binds=True,
        least=1,
        most=10**9,
    )
    unfrozen_learning_rate: float | None = setting(
        None,
        "Highest learning rate from --unfreeze_at_step on: the schedule goes on, multiplied by "
        "this over --learning_rate. Default: --learning_rate.",
        modes=TRAIN,
        binds=True,
        least=0,
        most=1e6,
    )
    unfrozen_batch_size: int | None = setting(
        None,
        "Batch size from --unfreeze_at_step on. Default: --global_batch_size.",
        modes=TRAIN,
        binds=True,
        least=1,
        most=65536,
    )
    encoder_learning_rate_factor: float = setting(
        1.0,
        "Factor on the learning rate of the encoder, for fine-tuning pretrained weights.",
        modes=TRAIN,
        binds=True,
        least=0,
        most=1e6,
    )

    def __post_init__(self):
        check_fields(self)
