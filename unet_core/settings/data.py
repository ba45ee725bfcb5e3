"""Settings of the data: where they are, what they mean, which are held out, how crops are drawn."""

from __future__ import annotations

import dataclasses
import math

from unet_core.data.layouts import LAYOUTS
from unet_core.errors import UserError
from unet_core.settings.fields import check_fields, setting
from unet_core.settings.modes import IMAGES, NETWORK, NO_DATA, SAMPLES, SCORE, SPLIT, TRAIN

SYNTHETIC_DIR = "data/synthetic"


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Images, masks (the ground truth), classes, and the split into training and held-out data."""

    data_dir: str | None = setting(
        None,
        "Folder (or CSV file) of the images and masks; see --layout.",
        modes=(*NETWORK, "choose", "check_data"),
        is_path=True,
    )
    synthetic_data: bool = setting(
        False,
        f"Without --data_dir: train on synthetic membrane slices, drawn into {SYNTHETIC_DIR} if "
        "they are not there yet.",
        modes=TRAIN,
        of_run=False,
    )
    layout: str = setting(
        "folders",
        "How --data_dir is laid out: train/image and train/label (or image and label), a VOC "
        "folder, a samples.csv, TIFF stacks, or a folder for each image with images and masks, one "
        "file for each object (objects).",
        modes=(*NETWORK, "choose", "check_data"),
        choices=LAYOUTS,
    )
    image_folder: str = setting(
        "image",
        "Name of the folders (or stack) of images.",
        modes=(*NETWORK, "choose", "check_data"),
    )
    mask_folder: str = setting(
        "label",
        "Name of the folders (or stack) of masks, the ground truth; several, one per class, with "
        "commas.",
        modes=(*NETWORK, "choose", "check_data"),
    )
    mask_suffix: str = setting(
        "",
        "What a mask's name adds to its image's, such as _mask.",
        modes=(*NETWORK, "choose", "check_data"),
    )
    outside_paths: bool = setting(
        False,
        "Let samples.csv name files outside of its folder: by absolute paths, .. and links.",
        modes=(*NETWORK, "choose", "check_data"),
    )
    group_pattern: str = setting(
        "",
        "Regular expression that finds the group (patient, animal) in a sample's name.",
        modes=(*NETWORK, "choose", "check_data"),
    )
    classes: str | None = setting(
        None,
        "Mask values and their classes, numbered in this order: 0:background,127|128:myelin, or "
        "#ff0000:car; a class called ignore counts nowhere. Two classes share one logit, the "
        "second's. With --heads sigmoid names alone, one for each of --mask_folder: cells,nuclei.",
        modes=(*SPLIT, *NO_DATA),
        binds=True,
    )
    masks: str = setting(
        "classes",
        "What the numbers in masks are: classes, or instances, that is one number for each object "
        "(or one file, see --layout=objects). --classes then names what is outside, the objects "
        "and, if wanted, the border between those that touch: 0:background,1:nucleus,2:border.",
        modes=(*SAMPLES, *NO_DATA),
        binds=True,
        choices=("classes", "instances"),
    )
    border_px: int = setting(
        0,
        "With --masks=instances: pixels within this distance of two objects are the border between "
        "them, of the third class, or outside without one. 0 is no border.",
        modes=(*SAMPLES, *NO_DATA),
        binds=True,
        least=0,
        most=100,
    )
    clear_class: str = setting(
        "",
        "Class that overlays, outlines and pictures of errors leave clear; by default that called "
        "background, or else the most frequent one of the training masks. With --heads sigmoid it "
        "is what no class covers.",
        modes=(*IMAGES, "check_data"),
    )
    stray_values: str = setting(
        "refuse",
        "What becomes of mask values not listed: an error, or the class of the nearest listed one.",
        modes=SAMPLES,
        binds=True,
        choices=("refuse", "nearest"),
    )
    channels: int = setting(
        1,
        "Channels of the network's images. For 1 or 3 pictures are converted; others must have as "
        "many, or --use_channels.",
        modes=(*SAMPLES, *NO_DATA),
        binds=True,
        least=1,
        most=128,
    )
    use_channels: tuple[int, ...] = setting(
        (),
        "Which channels of the image files to take, from 0, such as 2,0; as many as --channels. By "
        "default all.",
        modes=SAMPLES,
        binds=True,
        least=0,
        most=65_535,
    )
    intensities: str = setting(
        "range",
        "How pixel values are scaled: range (of their type, or of the data set if that is less "
        "than a quarter of it, as with 12 bits in 16), range:LOW,HIGH, percentile:1,99, zscore, or "
        "fixed:mean,std.",
        modes=SAMPLES,
        binds=True,
    )
    resize: str = setting(
        "",
        "Resize images and masks for the network: by a factor such as 0.5, or to a size of pixels "
        "such as 0.65um, for which each file says the size of its own, or --pixel_size_um. Masks, "
        "objects and scores are of the size of the files.",
        modes=SAMPLES,
        binds=True,
    )
    pixel_size_um: float = setting(
        0.0,
        "Width and height of a pixel in micrometres, for --objects and --resize. 0 is as each file "
        "says.",
        modes=(*SCORE, "predict", "check_data"),
        binds=True,
        least=0,
        most=1e6,
    )
    split: str = setting(
        "contiguous",
        "How samples are held out for validation: in blocks (for slices and video), at random, so "
        "that every part has all classes, whole groups, or as the layout says.",
        modes=SPLIT,
        binds=True,
        choices=("contiguous", "random", "stratified", "group", "fixed"),
    )
    folds: int = setting(
        0,
        "Number of folds for cross-validation; 0 makes none.",
        modes=SPLIT,
        binds=True,
        least=0,
        most=1000,
    )
    fold: str = setting(
        "0",
        "Which fold is held out, from 0; all trains each in turn, in a folder of its own.",
        modes=SPLIT,
        binds=True,
    )
    held_out_share: float = setting(
        0.0,
        "Without folds: share of the samples to hold out.",
        modes=SPLIT,
        binds=True,
        least=0,
        most=0.99,
    )
    equal_groups: bool = setting(
        False, "Repeat and trim samples so that all groups weigh alike.", modes=SAMPLES, binds=True
    )
    foreground_share: float = setting(
        0.0,
        "Share of crops that must contain one of --foreground_classes.",
        modes=SAMPLES,
        binds=True,
        least=0,
        most=1,
    )
    foreground_classes: tuple[str, ...] = setting(
        (),
        "Those classes; by default all but the first, with --heads sigmoid all.",
        modes=SAMPLES,
        binds=True,
    )
    crop_size: int = setting(
        256,
        "Pixels a side of a training crop.",
        modes=(*SAMPLES, *NO_DATA),
        binds=True,
        least=1,
        most=16384,
    )
    preview: str | None = setting(
        None,
        "Folder to write a sheet of augmented training crops to, before anything else.",
        modes=SAMPLES,
        of_run=False,
        is_path=True,
    )
    cache_mb: int = setting(
        1024,
        "Megabytes of decoded images and masks to keep in memory.",
        modes=(*SCORE, "check_data"),
        of_run=False,
        least=0,
        most=10_000_000,
    )
    generators: int = setting(
        0,
        "Python generators that make samples at once; 0 is one more than the cores that "
        "this process may use.",
        modes=TRAIN,
        of_run=False,
        least=0,
        most=1024,
    )

    def __post_init__(self):
        check_fields(self)
        parse_resize(self.resize)
        if self.use_channels and len(self.use_channels) != self.channels:
            raise UserError(
                f"`use_channels` ({','.join(map(str, self.use_channels))}) names "
                f"{len(self.use_channels)} channel(s), and `channels` is {self.channels}. Name as "
                "many."
            )
        if self.masks == "classes" and (self.border_px or self.layout == "objects"):
            name = "border_px" if self.border_px else "layout"
            raise UserError(
                f"`{name}` ({getattr(self, name)}) is for masks that tell objects apart: set "
                "`masks` to instances, or leave it out."
            )
        if self.masks == "instances" and self.stray_values == "nearest":
            raise UserError(
                "`stray_values` (nearest) is for masks of classes; with `masks` instances every "
                "number that is not listed is an object. Leave one of them out."
            )
        if self.fold != "all" and not (self.fold.isascii() and self.fold.isdecimal()):
            raise UserError(f"`fold` ({self.fold}) must be all, or a number from 0.")
        if self.fold == "all" and self.folds < 2:
            raise UserError(f"`fold` (all) needs `folds`, at least 2 (received {self.folds}).")


def parse_resize(text: str) -> tuple[float, float]:
    """Returns the factor of `resize`, and the size of pixels in micrometres, one of them 0.

    Without a text the factor is 1.

    Raises:
        UserError: If it is none.
    """
    number = text.removesuffix("um")
    try:
        value = float(number or "nan") if text else 1.0
    except ValueError:
        value = math.nan
    if number != text:
        least, most, found = 1e-4, 1e6, (0.0, value)
    else:
        least, most, found = 0.01, 16.0, (value, 0.0)
    if not least <= value <= most:
        raise UserError(
            f"`resize` ({text!r}) must be a factor from 0.01 to 16, such as 0.5, or a size of "
            "pixels in micrometres, such as 0.65um."
        )
    return found
