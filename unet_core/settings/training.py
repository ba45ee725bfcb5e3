"""Settings of the training loop and of the devices it runs on."""

from __future__ import annotations

import dataclasses

from unet_core.settings.fields import check_fields, check_own, setting
from unet_core.settings.modes import BUILD, EVERY, RUN, SPLIT, TRAIN


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """Steps, batch size, intervals, reproducibility, devices."""

    train_steps: int = setting(1000, "Step to train up to.", modes=TRAIN, least=1, most=10**9)
    epochs: float | None = setting(
        None,
        "Epochs to train for, in place of --train_steps: passes over the training images, of each "
        "of which an epoch draws one crop.",
        modes=TRAIN,
        least=1e-3,
        most=1e6,
    )
    global_batch_size: int = setting(
        4,
        "Batch size: examples per update, over all devices.",
        modes=BUILD,
        binds=True,
        least=1,
        most=65536,
    )
    micro_batches: int = setting(
        1,
        "Gradient accumulation: micro-batches per optimizer update, computed one after another to "
        "need less memory.",
        modes=BUILD,
        binds=True,
        least=1,
        most=65536,
    )
    seed: int = setting(
        0,
        "Seed of weights, samples, splits and dropout, for reproducible runs.",
        modes=SPLIT,
        binds=True,
        least=0,
        most=2**31,
    )
    deterministic: bool = setting(
        False,
        "Let TensorFlow use only deterministic kernels: reproducible bit for bit on one machine.",
        modes=EVERY,
        of_run=False,
    )
    report_every_steps: int = setting(
        20, "Steps between two rows of history.csv.", modes=TRAIN, least=1, most=10**9
    )
    eval_every_steps: int = setting(
        250,
        "Steps between two evaluations of the held-out images.",
        modes=TRAIN,
        least=1,
        most=10**9,
    )
    monitor: str = setting(
        "dice/mean",
        "Held-out score that chooses the best checkpoint, such as dice/membrane.",
        modes=TRAIN,
    )
    metric: str = setting(
        "",
        "A metric of your own for the held-out images: my_module:my_metric (docs/hooks.md).",
        modes=TRAIN,
    )
    checkpoint_every_steps: int = setting(
        250, "Steps between two checkpoints.", modes=TRAIN, least=1, most=10**9
    )
    keep_checkpoints: int = setting(
        3, "Latest checkpoints to keep, beside the best.", modes=TRAIN, least=1, most=10**6
    )
    jit_compile: bool = setting(
        False,
        "Compile the network with XLA, for GPUs; costs on CPUs, and draws other dropout masks.",
        modes=BUILD,
        binds=True,
    )
    recompute: bool = setting(
        False,
        "Gradient checkpointing: keep what passes between the stages of the network and compute "
        "the features within them again in the backward pass, which needs less memory and more "
        "time.",
        modes=BUILD,
    )
    log_format: str = setting(
        "text",
        "What goes to standard output: text, or json, one object a line for each report, "
        "evaluation and message, and no progress bar.",
        modes=EVERY,
        of_run=False,
        choices=("text", "json"),
    )
    tracker: str = setting(
        "",
        "A tracker of your own, for MLflow, Weights & Biases and the like: "
        "my_module:make_my_tracker (docs/hooks.md).",
        modes=("train", "sweep"),
    )
    histograms_every_evaluations: int = setting(
        0,
        "Histograms of weights, and of the gradients of one training batch, for TensorBoard, at "
        "every so many evaluations; 0 is off. They change nothing of the training.",
        modes=("train", "sweep"),
        of_run=False,
        least=0,
        most=10**6,
    )
    profile: bool = setting(
        False,
        "TensorFlow's profile of steps 10 to 20, for the profile plugin of TensorBoard.",
        modes=("train", "sweep"),
        of_run=False,
    )
    strategy: str = setting(
        "none",
        "One device, one copy of the network on each (MirroredStrategy), or that on all workers of "
        "TF_CONFIG (MultiWorkerMirroredStrategy).",
        modes=TRAIN,
        choices=("none", "mirrored", "multi_worker"),
    )
    devices: tuple[int, ...] = setting(
        (),
        "Numbers of the devices to use with --strategy=mirrored; all by default.",
        modes=TRAIN,
        least=0,
        most=1023,
    )
    logical_devices: int = setting(
        1,
        "Split the first GPU, or the CPU, into this many devices, to try things out.",
        modes=RUN,
        of_run=False,
        least=1,
        most=64,
    )
    memory_growth: bool = setting(
        False,
        "Take GPU memory as it is needed, not all at once; for shared GPUs.",
        modes=RUN,
        of_run=False,
    )
    memory_limit_mb: int = setting(
        0,
        "Megabytes to take of each GPU or part of a split one; 0 is all.",
        modes=RUN,
        of_run=False,
        least=0,
        most=10_000_000,
    )

    def __post_init__(self):
        check_fields(self)
        check_own("metric", self.metric)
        check_own("tracker", self.tracker)
