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
        "train",
        "What to do.",
        choices=("train", "evaluate", "predict", "export", "check_data", "convert_labelme"),
    )
    data_dir: str | None = _setting(
        None, "Folder (or CSV file) of the images and masks; see --layout."
    )
    synthetic_data: bool = _setting(
        False, "Write synthetic membrane slices to --data_dir first if that folder does not exist."
    )
    run_dir: str | None = _setting(
        None, "Folder of the run: checkpoints, history, scores, pictures."
    )
    input: str | None = _setting(
        None,
        "What to predict: a picture, a folder, a glob, a TIFF stack, a video, camera:0. Default: "
        "test in the data folder. With --mode=convert_labelme: the folder of JSON files.",
    )
    output_dir: str | None = _setting(
        None,
        "Where predictions, scores, exports or converted data go. Default: a place in the run "
        "folder.",
    )
    overwrite: bool = _setting(False, "Let predictions replace files that are there.")
    weights: str = _setting(
        "last", "Which checkpoint to evaluate and predict with.", choices=("last", "best")
    )
    tta: str = _setting(
        "none",
        "Predictions averaged over mirrored (flips) or mirrored and turned (dihedral) copies.",
        choices=("none", "flips", "dihedral"),
    )
    window_px: int = _setting(
        0,
        "Pixels a side of the windows an image is predicted in. 0 predicts images of up to 2 "
        "megapixels in one pass and larger ones by windows of 1024.",
        least=0,
    )
    outputs: tuple[str, ...] = _setting(
        ("mask", "overlay"),
        "What to write of a prediction: mask, overlay, outlines, probabilities (16 bit, 65535 "
        "being 1).",
        choices=("mask", "overlay", "outlines", "probabilities"),
    )
    alpha: float = _setting(
        0.45, "How strongly overlays cover the picture: 0 not at all, 1 wholly.", least=0, most=1
    )
    instances: str = _setting(
        "none",
        "Also number the objects of --object_class: connected components, or these parted at "
        "their necks by watershed.",
        choices=("none", "components", "watershed"),
    )
    object_class: str = _setting(
        "",
        "Class whose connected regions are objects, such as cells between membranes; they are "
        "scored as objects, with two classes also by V_Rand and V_Info.",
    )
    boundary_px: float = _setting(
        2.0, "How far a boundary may be off to count as right in boundary F1, in pixels.", least=0
    )
    show: bool = _setting(False, "Show the video or camera in a window while it is predicted.")
    formats: tuple[str, ...] = _setting(
        ("saved_model", "keras"),
        "What --mode=export writes.",
        choices=("saved_model", "keras", "onnx"),
    )
    mask_format: str = _setting(
        "values",
        "Predicted masks hold the mask values of --classes, class numbers, or class numbers that "
        "show in colours.",
        choices=("values", "index", "palette"),
    )
    preview: str | None = _setting(
        None, "Folder to write a sheet of augmented training crops to, before anything else."
    )

    # Data.
    classes: str = _setting(
        "0:membrane,255:cell",
        "Mask values and their classes, numbered in this order: 0:background,127|128:myelin, or "
        "#ff0000:car; a class called ignore counts nowhere. Two classes share one logit, the "
        "second's.",
        binds=True,
    )
    stray_values: str = _setting(
        "refuse",
        "What becomes of mask values not listed: an error, or the class of the nearest listed one.",
        binds=True,
        choices=("refuse", "nearest"),
    )
    layout: str = _setting(
        "folders",
        "How --data_dir is laid out: train/image and train/label (or image and label), a VOC "
        "folder, a samples.csv, or TIFF stacks.",
        choices=("folders", "voc", "csv", "stack"),
    )
    image_folder: str = _setting("image", "Name of the folders (or stack) of images.")
    mask_folder: str = _setting(
        "label", "Name of the folders (or stack) of masks; several, one per class, with commas."
    )
    mask_suffix: str = _setting("", "What a mask's name adds to its image's, such as _mask.")
    group_pattern: str = _setting(
        "", "Regular expression that finds the group (patient, animal) in a sample's name."
    )
    channels: int = _setting(
        1,
        "Channels of the network's images, 1 or 3; pictures are converted.",
        binds=True,
        least=1,
        most=3,
    )
    intensities: str = _setting(
        "range",
        "How pixel values are scaled: range (of their type), percentile:1,99, zscore, or "
        "fixed:mean,std.",
        binds=True,
    )
    split: str = _setting(
        "contiguous",
        "How samples are held out: in blocks (for slices and video), at random, so that every part "
        "has all classes, whole groups, or as the layout says.",
        binds=True,
        choices=("contiguous", "random", "stratified", "group", "fixed"),
    )
    folds: int = _setting(0, "Number of folds; 0 makes none.", binds=True, least=0)
    fold: str = _setting(
        "0",
        "Which fold is held out, from 0; all trains each in turn, in a folder of its own.",
        binds=True,
    )
    held_out_share: float = _setting(
        0.0, "Without folds: share of the samples to hold out.", binds=True, least=0, most=0.99
    )
    equal_groups: bool = _setting(
        False, "Repeat and trim samples so that all groups weigh alike.", binds=True
    )
    foreground_share: float = _setting(
        0.0,
        "Share of crops that must contain one of --foreground_classes.",
        binds=True,
        least=0,
        most=1,
    )
    foreground_classes: tuple[str, ...] = _setting(
        (), "Those classes; all but the first by default.", binds=True
    )
    cache_mb: int = _setting(
        1024, "Megabytes of decoded images and masks to keep in memory.", least=0
    )
    crop_size: int = _setting(256, "Pixels a side of a training crop.", binds=True, least=1)
    generators: int = _setting(
        0,
        "Python generators that make samples at once; 0 is one more than there are cores.",
        least=0,
    )

    # Augmentation. None leaves a value as the recipe has it.
    augment: str = _setting(
        "none",
        "The recipe; each value can be overridden.",
        binds=True,
        choices=("none", "keras", "paper", "nnunet"),
    )
    rotation_degrees: float | None = _setting(
        None, "Largest random rotation either way; 180 is any.", binds=True, least=0, most=180
    )
    rotation_share: float | None = _setting(
        None, "Share of samples that are rotated.", binds=True, least=0, most=1
    )
    scale: tuple[float, float] | None = _setting(
        None, "Range of the random magnification.", binds=True
    )
    scale_share: float | None = _setting(
        None, "Share of samples that are magnified.", binds=True, least=0, most=1
    )
    flips: bool | None = _setting(None, "Mirror both ways at random.", binds=True)
    horizontal_flip: bool | None = _setting(None, "Mirror left-right at random.", binds=True)
    vertical_flip: bool | None = _setting(None, "Mirror up-down at random.", binds=True)
    quarter_turns: bool | None = _setting(
        None, "Turn by 0, 90, 180 or 270 degrees at random.", binds=True
    )
    width_shift: float | None = _setting(
        None, "Largest shift left or right, as a share of the width.", binds=True, least=0, most=1
    )
    height_shift: float | None = _setting(
        None, "Largest shift up or down, as a share of the height.", binds=True, least=0, most=1
    )
    shear_degrees: float | None = _setting(
        None, "Largest shear either way.", binds=True, least=0, most=80
    )
    zoom: tuple[float, float] | None = _setting(
        None, "Range of the zoom of each axis, as in Keras: 2 shows twice as much.", binds=True
    )
    elastic_grid: int | None = _setting(
        None, "Control points a side of the elastic deformation.", binds=True, least=2
    )
    elastic_px: float | None = _setting(
        None,
        "Standard deviation of the control points' displacement, in pixels.",
        binds=True,
        least=0,
    )
    fill_mode: str | None = _setting(
        None,
        "What lies outside the image.",
        binds=True,
        choices=("mirror", "reflect", "nearest", "wrap", "constant"),
    )
    cval: float | None = _setting(
        None,
        "Grey value there with --fill_mode=constant; such pixels are ignored.",
        binds=True,
        least=0,
        most=255,
    )
    channel_shift: float | None = _setting(
        None, "Largest shift of grey values either way, of 255.", binds=True, least=0, most=255
    )
    brightness_factor: tuple[float, float] | None = _setting(
        None, "Range of the factor on grey values.", binds=True
    )
    brightness_share: float | None = _setting(
        None, "Share of samples that get it.", binds=True, least=0, most=1
    )
    contrast: tuple[float, float] | None = _setting(
        None, "Range of the random contrast.", binds=True
    )
    contrast_share: float | None = _setting(
        None, "Share of samples that get it.", binds=True, least=0, most=1
    )
    contrast_keeps_range: bool | None = _setting(
        None, "Clip contrast to the crop's range.", binds=True
    )
    brightness: float | None = _setting(
        None, "Largest shift of brightness; 1 is the whole range.", binds=True, least=0, most=1
    )
    gamma: tuple[float, float] | None = _setting(None, "Range of the random gamma.", binds=True)
    gamma_share: float | None = _setting(
        None, "Share of samples that get it.", binds=True, least=0, most=1
    )
    inverted_gamma_share: float | None = _setting(
        None,
        "Share of samples that get a gamma of the inverted image.",
        binds=True,
        least=0,
        most=1,
    )
    noise: float | None = _setting(
        None,
        "Largest standard deviation of added noise; 1 is the whole range.",
        binds=True,
        least=0,
    )
    noise_variance: float | None = _setting(
        None, "Largest variance of added noise; 1 is that of the crop.", binds=True, least=0
    )
    noise_share: float | None = _setting(
        None, "Share of samples with noise.", binds=True, least=0, most=1
    )
    blur_share: float | None = _setting(
        None, "Share of samples with blur.", binds=True, least=0, most=1
    )
    blur_px: tuple[float, float] | None = _setting(
        None, "Range of the blur's standard deviation, in pixels.", binds=True
    )
    low_resolution: tuple[float, float] | None = _setting(
        None, "Range of the factor by which resolution is lowered.", binds=True
    )
    low_resolution_share: float | None = _setting(
        None, "Share of samples that get it.", binds=True, least=0, most=1
    )
    cutout_holes: int | None = _setting(
        None, "Squares of the image that are filled with its mean.", binds=True, least=0
    )
    cutout_px: int | None = _setting(None, "Pixels a side of such a square.", binds=True, least=0)

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
    class_balance: str = _setting(
        "none",
        "Take those factors from how often the classes occur.",
        binds=True,
        choices=("none", "inverse", "median_frequency", "effective_number"),
    )
    border_weight: float = _setting(
        0.0,
        "Weight w0 of the pixels between neighbouring objects, in cross entropy and focal loss; "
        "the paper's is 10.",
        binds=True,
        least=0,
    )
    border_sigma: float = _setting(5.0, "How far that reaches, in pixels.", binds=True, least=0.1)
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
        False,
        "Compile the network with XLA, for GPUs; costs on CPUs, and draws other dropout masks.",
        binds=True,
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
        if self.fold != "all" and not self.fold.isdecimal():
            raise UserError(f"`fold` ({self.fold}) must be all, or a number from 0.")

    def differences(self, other: RunConfig) -> list[str]:
        """Returns the names of the binding settings in which two configs differ."""
        return [name for name in binding_settings() if getattr(self, name) != getattr(other, name)]


def binding_settings() -> list[str]:
    """Returns the names of the settings that change the weights a run ends with."""
    return [field.name for field in dataclasses.fields(RunConfig) if field.metadata["binds"]]


def _check(field: dataclasses.Field, value: Any) -> None:
    rule = field.metadata
    if value is None:
        return
    for each in value if isinstance(value, tuple) else (value,):
        if rule["choices"] and each not in rule["choices"]:
            listed = ", ".join(rule["choices"])
            raise UserError(f"`{field.name}` ({each!r}) must be one of {listed}.")
    if rule["least"] is not None and not value >= rule["least"]:
        raise UserError(f"`{field.name}` ({value}) must be at least {rule['least']:g}.")
    if rule["most"] is not None and not value <= rule["most"]:
        raise UserError(f"`{field.name}` ({value}) must be at most {rule['most']:g}.")
    if field.type.startswith("tuple[float, float]") and not (
        len(value) == 2 and 0 < value[0] <= value[1]
    ):
        raise UserError(
            f"`{field.name}` ({value}) must be two numbers low,high with 0 < low <= high."
        )
