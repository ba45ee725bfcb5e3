"""Every setting of a run, once: its default, its rule, its help, and whether it binds a run
directory.

`train_loop.py` makes a flag of each field; the library sees only the frozen `RunConfig`. Importing
this module imports neither TensorFlow nor NumPy, so that `--help` and mistakes in flags are
answered at once.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from unet_core.errors import UserError


def _setting(
    default: Any,
    help: str,
    *,
    binds: bool = False,
    choices: tuple[str, ...] = (),
    least: float | None = None,
    most: float | None = None,
) -> Any:
    return dataclasses.field(
        default=default,
        metadata=dict(help=help, binds=binds, choices=choices, least=least, most=most),
    )


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The settings of one run.

    Raises:
        UserError: If a value breaks its rule; the message names the setting, the value and the
            rule.
    """

    # What to do.
    mode: str = _setting(
        "train", "What to do.", choices=("train", "evaluate", "predict", "check_data")
    )
    data_dir: str | None = _setting(
        None, "Folder with train/image, train/label and, for predictions, test."
    )
    synthetic_data: bool = _setting(
        False, "Write synthetic membrane slices to --data_dir first if that folder does not exist."
    )
    run_dir: str | None = _setting(
        None, "Folder of the run: checkpoints, history, scores, pictures."
    )
    input: str | None = _setting(
        None, "With --mode=predict: a PNG or a folder of PNGs. Default: test in the data folder."
    )
    output_dir: str | None = _setting(
        None, "Where predictions go. Default: predictions in the run folder."
    )
    weights: str = _setting(
        "last", "Which checkpoint to evaluate and predict with.", choices=("last", "best")
    )
    tta: str = _setting(
        "none",
        "Predictions averaged over mirrored (flips) or mirrored and turned (dihedral) copies.",
        choices=("none", "flips", "dihedral"),
    )
    save_probabilities: bool = _setting(
        False, "Also write the class probabilities as 16-bit PNG, 65535 being 1."
    )

    # Data.
    classes: str = _setting(
        "0:membrane,255:cell",
        "Mask values and their classes, numbered in this order. Two classes share one logit, the "
        "second's.",
        binds=True,
    )
    folds: int = _setting(
        0, "Number of contiguous folds; 0 holds nothing out.", binds=True, least=0
    )
    fold: int = _setting(0, "Which fold is held out, from 0.", binds=True, least=0)
    crop_size: int = _setting(256, "Pixels a side of a training crop.", binds=True, least=1)
    generators: int = _setting(
        0,
        "Python generators that make samples at once; 0 is one more than there are cores.",
        least=0,
    )

    # Augmentation.
    rotation_degrees: float = _setting(
        0.0, "Largest random rotation either way; 180 is any.", binds=True, least=0, most=180
    )
    scale: tuple[float, float] = _setting(
        (1.0, 1.0), "Range of the random magnification.", binds=True
    )
    flips: bool = _setting(False, "Mirror at random.", binds=True)
    elastic_grid: int = _setting(
        5, "Control points a side of the elastic deformation.", binds=True, least=2
    )
    elastic_px: float = _setting(
        0.0,
        "Standard deviation of the control points' displacement, in pixels.",
        binds=True,
        least=0,
    )
    contrast: tuple[float, float] = _setting(
        (1.0, 1.0), "Range of the random contrast.", binds=True
    )
    brightness: float = _setting(
        0.0,
        "Largest random shift of brightness; 1 is the whole range.",
        binds=True,
        least=0,
        most=1,
    )
    gamma: tuple[float, float] = _setting((1.0, 1.0), "Range of the random gamma.", binds=True)
    noise: float = _setting(
        0.0, "Largest standard deviation of added noise; 1 is the whole range.", binds=True, least=0
    )
    noise_share: float = _setting(0.0, "Share of samples with noise.", binds=True, least=0, most=1)
    blur_share: float = _setting(0.0, "Share of samples with blur.", binds=True, least=0, most=1)

    # Network.
    depth: int = _setting(4, "Number of poolings of the U-Net.", binds=True, least=1, most=8)
    base_filters: int = _setting(
        32, "Channels of the first level, doubled by each pooling.", binds=True, least=1
    )
    padding: str = _setting(
        "same",
        "Convolution padding; valid is the paper's, with the image mirrored around.",
        binds=True,
        choices=("same", "valid"),
    )
    decoder: str = _setting(
        "transpose",
        "How the decoder grows: transposed or upsampled convolution.",
        binds=True,
        choices=("transpose", "upsample"),
    )
    batch_norm: bool = _setting(False, "Batch norm after every 3x3 convolution.", binds=True)
    dropout: float = _setting(
        0.0, "Dropout at the end of the contracting path.", binds=True, least=0, most=0.99
    )
    precision: str = _setting(
        "auto",
        "What the network computes in. auto: bfloat16 where the hardware has it, float16 on older "
        "GPUs.",
        binds=True,
        choices=("auto", "float32", "bfloat16", "float16"),
    )

    # Loss.
    loss: str = _setting(
        "cross_entropy",
        "Sum of name:weight out of cross_entropy, focal, dice, batch_dice, tversky, batch_tversky.",
        binds=True,
    )
    overlap_classes: tuple[str, ...] = _setting(
        (), "Classes that count in Dice and Tversky losses; all by default.", binds=True
    )
    class_weights: tuple[float, ...] = _setting(
        (), "One factor per class in cross entropy and focal loss.", binds=True
    )
    focal_gamma: float = _setting(2.0, "Exponent of the focal loss.", binds=True, least=0)
    tversky_alpha: float = _setting(0.3, "Tversky weight of false positives.", binds=True, least=0)
    tversky_beta: float = _setting(0.7, "Tversky weight of false negatives.", binds=True, least=0)

    # Optimizer.
    optimizer: str = _setting(
        "adamw", "How weights are updated.", binds=True, choices=("adamw", "sgd")
    )
    learning_rate: float = _setting(1e-3, "Highest learning rate.", binds=True, least=0)
    schedule: str = _setting(
        "cosine",
        "How the rate falls; all but constant reach their end at --schedule_steps.",
        binds=True,
        choices=("constant", "step", "cosine", "polynomial"),
    )
    schedule_steps: int | None = _setting(
        None, "Steps the schedule is laid out for. Default: the first --train_steps.", least=1
    )
    warmup_steps: int = _setting(0, "Steps of linear warm-up (cosine).", binds=True, least=0)
    decay_every_steps: int = _setting(
        1000, "Steps between two falls of the step schedule.", binds=True, least=1
    )
    decay_factor: float = _setting(
        0.1, "Factor of each fall of the step schedule.", binds=True, least=0, most=1
    )
    polynomial_power: float = _setting(
        0.9, "Exponent of the polynomial schedule.", binds=True, least=0
    )
    weight_decay: float = _setting(0.0, "Decoupled weight decay of kernels.", binds=True, least=0)
    momentum: float = _setting(0.99, "Nesterov momentum (sgd).", binds=True, least=0, most=1)
    adam_epsilon: float = _setting(
        1e-5,
        "Epsilon of AdamW; smaller ones amplify rounding, so that replica counts drift apart.",
        binds=True,
        least=1e-12,
    )
    clip_norm: float = _setting(
        0.0, "Largest global norm of the gradient; 0 does not clip.", binds=True, least=0
    )

    ema_decay: float = _setting(
        0.0,
        "Decay of a moving average of the weights, which is then evaluated and predicted with; 0 "
        "keeps none.",
        binds=True,
        least=0,
        most=0.99999,
    )

    # Steps and devices.
    train_steps: int = _setting(1000, "Step to train up to.", least=1)
    global_batch_size: int = _setting(
        4, "Examples per update, over all devices.", binds=True, least=1
    )
    micro_batches: int = _setting(
        1,
        "Parts of a global batch computed one after another before the one update, to need less "
        "memory.",
        binds=True,
        least=1,
    )
    seed: int = _setting(
        0, "Seed of weights, samples and dropout.", binds=True, least=0, most=2**31
    )
    deterministic: bool = _setting(False, "Let TensorFlow use only deterministic kernels.")
    jit_compile: bool = _setting(
        False, "Compile the network with XLA; pays on GPUs, costs on CPUs."
    )
    strategy: str = _setting(
        "none",
        "One device, one copy of the network on each, or that on all workers of TF_CONFIG.",
        choices=("none", "mirrored", "multi_worker"),
    )
    devices: tuple[int, ...] = _setting(
        (), "Numbers of the devices to use with --strategy=mirrored; all by default."
    )
    logical_devices: int = _setting(
        1, "Split the first GPU, or the CPU, into this many devices, to try things out.", least=1
    )
    memory_growth: bool = _setting(
        False, "Take GPU memory as it is needed, not all at once; for shared GPUs."
    )
    memory_limit_mb: int = _setting(
        0, "Megabytes to take of each GPU or part of a split one; 0 is all.", least=0
    )

    # Intervals.
    report_every_steps: int = _setting(20, "Steps between two rows of history.csv.", least=1)
    eval_every_steps: int = _setting(
        250, "Steps between two evaluations of the held-out images.", least=1
    )
    checkpoint_every_steps: int = _setting(250, "Steps between two checkpoints.", least=1)
    keep_checkpoints: int = _setting(3, "Latest checkpoints to keep, beside the best.", least=1)
    monitor: str = _setting(
        "dice/mean", "Held-out score by which the best checkpoint is chosen, such as dice/membrane."
    )

    def __post_init__(self):
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name))

    def differences(self, other: RunConfig) -> list[str]:
        """Returns the names of the binding settings in which two configs differ."""
        return [name for name in binding_settings() if getattr(self, name) != getattr(other, name)]


def binding_settings() -> list[str]:
    """Returns the names of the settings that change the weights a run ends with."""
    return [field.name for field in dataclasses.fields(RunConfig) if field.metadata["binds"]]


def _check(field: dataclasses.Field, value: Any) -> None:
    rule = field.metadata
    if rule["choices"] and value not in rule["choices"]:
        raise UserError(f"`{field.name}` ({value!r}) must be one of {', '.join(rule['choices'])}.")
    if rule["least"] is not None and value is not None and not value >= rule["least"]:
        raise UserError(f"`{field.name}` ({value}) must be at least {rule['least']:g}.")
    if rule["most"] is not None and value is not None and not value <= rule["most"]:
        raise UserError(f"`{field.name}` ({value}) must be at most {rule['most']:g}.")
    if field.name in ("scale", "contrast", "gamma") and not (
        len(value) == 2 and 0 < value[0] <= value[1]
    ):
        raise UserError(
            f"`{field.name}` ({value}) must be two numbers low,high with 0 < low <= high."
        )
