"""From the settings of a run to its data: samples, a reader, a split, and how crops are drawn.

data = DataSet.open(config.data, seed=config.training.seed, progress=progress_bar)
data.check()                                  # every problem in one UserError
training_samples, held_out = data.split()
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from unet_core.data import balance, images, splits, survey, synthetic, weight_maps
from unet_core.data.augment import Recipe
from unet_core.data.intensities import Scaling
from unet_core.data.layouts.find import find_images, find_samples
from unet_core.data.reader import Reader
from unet_core.data.samples import Sample
from unet_core.data.stream import SamplingConfig, draw_pairs
from unet_core.drawing import preview
from unet_core.errors import UserError
from unet_core.inference.trained import make_classes, make_resize
from unet_core.runs import hooks
from unet_core.settings import RunConfig
from unet_core.settings.augmentation import AugmentationSettings
from unet_core.settings.data import SYNTHETIC_DIR, DataSettings
from unet_core.settings.loss import LossSettings
from unet_core.settings.network import NetworkSettings

Progress = Callable[[str], Callable]


@dataclasses.dataclass(frozen=True)
class DataSet:
    """What `data_dir` holds, as the settings read it.

    Attributes:
        settings: The settings of the data.
        seed: Seed of random splits.
        read: Decodes samples; `read.classes` are the classes.
        samples: All samples.
        headers: What their files' headers say.
        problems: Everything wrong so far, as complete sentences.
        memory: What masks are known to hold.
        progress: Title -> wrapper of a list that takes long to work through.
        ranges: Least and greatest values of the images by dtype, if they were looked at.
    """

    settings: DataSettings
    seed: int
    read: Reader
    samples: tuple[Sample, ...]
    headers: survey.Headers
    problems: tuple[str, ...]
    memory: survey.Memory
    progress: Progress
    ranges: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

    @classmethod
    def open(
        cls,
        settings: DataSettings,
        *,
        seed: int = 0,
        progress: Progress,
        memory_path: pathlib.Path | None = None,
        of_new_run: bool = False,
    ) -> DataSet:
        """Finds the samples of `data_dir`, says what is not used there, and reads their headers.

        Args:
            settings: The settings of the data.
            seed: Seed of random splits.
            progress: Title -> wrapper of a list that takes long to work through.
            memory_path: File to remember in what masks hold; None forgets.
            of_new_run: Whether `intensities` are resolved by the range of the images, which is
                said, and stands in the `settings` then. Finished runs have done so.

        Raises:
            UserError: If a setting is wrong.
        """
        if settings.data_dir is None:
            raise UserError("`data_dir` is missing; it names the folder of images and masks.")
        classes, resize = make_classes(settings), make_resize(settings)
        scaling = Scaling.parse(settings.intensities)
        found = find_samples(
            settings.data_dir,
            settings.layout,
            image_folder=settings.image_folder,
            mask_folder=settings.mask_folder,
            mask_suffix=settings.mask_suffix,
            group_pattern=settings.group_pattern,
            outside_paths=settings.outside_paths,
        )
        print_notes(found.notes)
        headers = survey.read_headers(
            found.samples,
            scaling,
            classes,
            channels=settings.channels,
            use_channels=settings.use_channels,
            resize=resize,
            progress=progress("Reading headers"),
        )
        ranges: dict[str, tuple[float, float]] = {}
        if of_new_run:
            ranges, looked_at = survey.read_ranges(
                headers.shapes, settings.use_channels, progress=progress("Looking at intensities")
            )
            scaling = scaling.resolved(ranges)
            settings = dataclasses.replace(settings, intensities=str(scaling))
            print(survey.describe_ranges(ranges, looked_at, scaling), end="")
        read = Reader(
            classes,
            scaling,
            channels=settings.channels,
            dtype=headers.dtype,
            use_channels=settings.use_channels,
            resize=resize,
            cache_mb=settings.cache_mb,
        )
        problems = (*found.problems, *headers.problems)
        memory = survey.Memory(memory_path, classes, resize)
        return cls(settings, seed, read, found.samples, headers, problems, memory, progress, ranges)

    def check(self, *, to_train: bool = True) -> None:
        """Checks headers and, if all samples fit into memory decoded, pixels too.

        A larger set is checked as it is decoded.

        Args:
            to_train: Whether each class must occur, as in training; to be scored, none need.

        Raises:
            UserError: If anything is wrong; the message lists every problem.
        """
        problems = self.problems
        if self.headers.decoded_bytes(self.read.channels) <= self.settings.cache_mb << 20:
            pixels = self.pixels()
            problems += pixels.problems + (pixels.missing if to_train else ())
        elif found := Scaling.parse(self.settings.intensities).problem(self.ranges):
            problems += (f"Its images hold {found}",)
        if problems:
            raise UserError(survey.list_problems(str(self.settings.data_dir), problems))

    def pixels(self) -> survey.Pixels:
        """Decodes all images and masks and returns what they hold."""
        return survey.read_pixels(
            self.headers.shapes,
            self.read,
            memory=self.memory,
            progress=self.progress("Reading images"),
        )

    def split(self) -> tuple[list[Sample], list[Sample]]:
        """Returns (training samples, held-out samples).

        Raises:
            UserError: If the split cannot be made, or an image is in both parts.
        """
        settings = self.settings
        has_val = any(sample.split == "val" for sample in self.samples)
        splits_itself = settings.split == "fixed" or settings.folds or settings.held_out_share
        if has_val and not splits_itself:
            raise UserError(
                f"{settings.data_dir}: has a part marked val, which `split` ({settings.split}) "
                "would train on. Set `split` to fixed to hold it out, or give `folds` or "
                "`held_out_share`."
            )
        if settings.fold == "all":
            raise UserError("`fold` (all) cannot be used here; name one fold.")
        presence = None
        if settings.split == "stratified":
            counts = self.count_classes(self.samples)
            presence = lambda sample: frozenset(np.flatnonzero(counts[sample]).tolist())  # noqa: E731
        training, held_out = splits.split(
            self.samples,
            settings.split,
            folds=settings.folds,
            fold=int(settings.fold),
            held_out_share=settings.held_out_share,
            seed=self.seed,
            presence=presence,
        )
        if not training:
            raise UserError(
                f"{settings.data_dir}: there is no sample to train on; all are held out or marked "
                "test. Put some into the part train."
            )
        leaks = splits.leaks(training, held_out)
        if leaks:
            raise UserError(survey.list_problems(str(settings.data_dir), leaks))
        return training, held_out

    def weigh(self, loss: LossSettings, class_weights: Sequence[float]) -> None:
        """Has the reader make weight maps, if the settings ask for them.

        Args:
            loss: The settings of the loss.
            class_weights: One factor per class, or none; part of the maps.
        """
        if loss.border_weight:
            self.read.make_weights = functools.partial(
                weight_maps.border_weights,
                w0=loss.border_weight,
                sigma=loss.border_sigma,
                class_weights=class_weights or None,
            )

    def count_classes(self, samples: Sequence[Sample]) -> dict[Sample, np.ndarray]:
        """Returns the pixels of each class [C] for each sample."""
        return survey.count_classes(
            samples, self.read, memory=self.memory, progress=self.progress("Counting classes")
        )

    def known_counts(self, samples: Sequence[Sample]) -> np.ndarray | None:
        """Returns the pixels of each class [C] in `samples`; None if masks are yet to be read."""
        if not all(survey.is_known(sample, self.read, self.memory) for sample in samples):
            return None
        counts = survey.count_classes(samples, self.read, memory=self.memory)
        return np.sum([*counts.values()], axis=0) if counts else None

    def shapes(self, samples: Sequence[Sample]) -> dict[Sample, tuple[int, int]]:
        """Returns height and width of each of `samples`, resized."""
        return {sample: self.headers.shapes[sample] for sample in samples}

    def describe_small(self, training_samples: Sequence[Sample]) -> str:
        """Returns a line about those that are smaller than the crop; nothing if there are none."""
        crop_size = self.settings.crop_size
        small = [s for s in self.shapes(training_samples).values() if min(s) < crop_size]
        if not small:
            return ""
        height, width = min(small, key=min)
        once = "once resized " if self.read.resize.is_on else ""
        return (
            f"{len(small)} of the {len(training_samples)} images to train on are {once}smaller "
            f"than --crop_size ({crop_size}), the smallest {width}x{height} pixels: they are "
            "continued at their edges, which the loss leaves out. "
            f"--crop_size={min(height, width)} fits into all.\n"
        )

    def fingerprint(self) -> str:
        """Returns what tells this data set from another."""
        return survey.fingerprint(self.samples)

    def describe(self, values: dict) -> str:
        """Returns what the set holds as text; `values` are the pixels of each mask value."""
        return survey.describe(self.samples, self.headers, values, self.read.classes)


def print_notes(notes: Sequence[str]) -> None:
    """Says what was found and is not used."""
    for note in notes:
        print(note)


def with_synthetic(config: RunConfig, progress: Progress) -> RunConfig:
    """Returns the config with a folder of synthetic micrographs if they are what is asked for.

    They are drawn if the folder does not exist. Into a folder that the user has named, nothing is.
    """
    if config.data.data_dir or not config.data.synthetic_data:
        return config
    if not os.path.lexists(SYNTHETIC_DIR):
        print(f"Writing synthetic membrane slices to {SYNTHETIC_DIR}.")
        synthetic.write_dataset(pathlib.Path(SYNTHETIC_DIR), progress=progress("Drawing slices"))
    return config.replace(data_dir=SYNTHETIC_DIR)


def check_crop_size(data: DataSettings, network: NetworkSettings) -> None:
    """Checks that a crop covers at least one pixel of the deepest features.

    Raises:
        UserError: If the encoder needs more pixels than the crop has.
    """
    stride = 2**network.depth * network.stem_stride
    if data.crop_size < stride:
        stem = f" and `stem_stride` {network.stem_stride}" if network.stem_stride > 1 else ""
        raise UserError(
            f"`crop_size` ({data.crop_size}) is too small for the encoder: with `depth` "
            f"{network.depth}{stem}, one pixel of its deepest features stands for "
            f"{stride}x{stride} of the image. Give a `crop_size` of at least {stride}, or a "
            "smaller `depth`."
        )


def make_sampling(
    settings: DataSettings, augmentation: AugmentationSettings, *, seed: int
) -> SamplingConfig:
    """Returns how training crops are drawn.

    Raises:
        UserError: If a foreground class is unknown, or augmentation of one's own cannot be used.
    """
    classes = make_classes(settings)
    own = augmentation.augmentation
    foreground = settings.foreground_classes or classes.names[not classes.overlapping :]
    return SamplingConfig(
        seed=seed,
        crop_size=settings.crop_size,
        recipe=dataclasses.replace(Recipe.preset(augmentation.augment), **augmentation.overrides()),
        equal_groups=settings.equal_groups,
        foreground_share=settings.foreground_share,
        foreground_classes=tuple(classes.index(name) for name in foreground),
        then=hooks.make_own_augmentation(own, settings.channels) if own else None,
    )


def balanced_class_weights(kind: str, counts: dict[Sample, np.ndarray]) -> tuple[float, ...]:
    """Returns one factor per class, by `class_balance`, of the classes' pixel counts."""
    total = np.sum(list(counts.values()), axis=0)
    return tuple(float(w) for w in balance.class_weights(total, kind))


def write_preview(
    folder: str, data: DataSet, samples: Sequence[Sample], sampling: SamplingConfig
) -> None:
    """Writes a sheet of augmented training crops to `folder` and says where it is."""
    path = pathlib.Path(folder) / "augmented.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    pairs = draw_pairs(samples, data.read, sampling, count=24)
    images.write_png(path, preview.contact_sheet(pairs, data.read.classes))
    print(f"{path}: training crops as the network will see them.")


def test_folder(settings: DataSettings) -> pathlib.Path | None:
    """Returns the folder of the test images in `data_dir`, if there is one with pictures."""
    if not settings.data_dir:
        return None
    for folder in (
        pathlib.Path(settings.data_dir, "test", settings.image_folder),
        pathlib.Path(settings.data_dir, "test"),
    ):
        with contextlib.suppress(UserError):
            find_images(folder)
            return folder
    return None
