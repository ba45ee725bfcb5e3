"""From the settings of a run to its data: samples, a reader, a split, and how crops are drawn.

data = DataSet.open(config, progress=progress_bar)
data.check()                                  # every problem in one UserError
training_samples, held_out = data.split()
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from unet_core.config import RunConfig
from unet_core.data import balance, images, layouts, splits, survey, weight_maps
from unet_core.data.augment import Recipe
from unet_core.data.classes import ClassMap
from unet_core.data.intensities import Scaling
from unet_core.data.reader import Reader
from unet_core.data.samples import Sample, Source
from unet_core.data.stream import SamplingConfig
from unet_core.errors import UserError

Progress = Callable[[str], Callable]


@dataclasses.dataclass(frozen=True)
class DataSet:
    """What `config.data_dir` holds, as the settings read it.

    Attributes:
        config: The settings.
        read: Decodes samples; `read.classes` are the classes.
        samples: All samples.
        headers: What their files' headers say.
        problems: Everything wrong so far, as complete sentences.
        memory: What masks are known to hold.
        progress: Title -> wrapper of a list that is gone through slowly.
    """

    config: RunConfig
    read: Reader
    samples: tuple[Sample, ...]
    headers: survey.Headers
    problems: tuple[str, ...]
    memory: survey.Memory
    progress: Progress

    @classmethod
    def open(
        cls, config: RunConfig, *, progress: Progress, memory_path: pathlib.Path | None = None
    ) -> DataSet:
        """Finds the samples of `config.data_dir` and reads their headers.

        Args:
            config: The settings.
            progress: Title -> wrapper of a list that is gone through slowly.
            memory_path: File to remember in what masks hold; None forgets.

        Raises:
            UserError: If a setting is wrong.
        """
        classes = make_classes(config)
        scaling = Scaling.parse(config.intensities)
        found = layouts.find_samples(
            config.data_dir,
            config.layout,
            image_folder=config.image_folder,
            mask_folder=config.mask_folder,
            mask_suffix=config.mask_suffix,
            group_pattern=config.group_pattern,
        )
        headers = survey.read_headers(
            found.samples, scaling, channels=config.channels, progress=progress("Reading headers")
        )
        read = Reader(
            classes,
            scaling,
            channels=config.channels,
            dtype=headers.dtype,
            cache_mb=config.cache_mb,
        )
        problems = (*found.problems, *headers.problems)
        memory = survey.Memory(memory_path, classes)
        return cls(config, read, found.samples, headers, problems, memory, progress)

    def check(self) -> None:
        """Checks headers and, if all samples fit into memory decoded, pixels too.

        A larger set is checked as it is decoded.

        Raises:
            UserError: If anything is wrong; the message lists every problem.
        """
        problems = self.problems
        if self.headers.decoded_bytes(self.read.channels) <= self.config.cache_mb << 20:
            problems += self.pixels().problems
        if problems:
            raise UserError(survey.list_problems(self.config.data_dir, problems))

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
        config = self.config
        has_val = any(sample.split == "val" for sample in self.samples)
        splits_itself = config.split == "fixed" or config.folds or config.held_out_share
        if has_val and not splits_itself:
            raise UserError(
                f"{config.data_dir}: has a part marked val, which --split={config.split} would "
                "train on. Give --split=fixed to hold it out, or --folds or --held_out_share."
            )
        if config.fold == "all":
            raise UserError(f"--fold=all cannot be used with --mode={config.mode}; name one fold.")
        presence = None
        if config.split == "stratified":
            counts = self.count_classes(self.samples)
            presence = lambda sample: frozenset(np.flatnonzero(counts[sample]).tolist())  # noqa: E731
        training, held_out = splits.split(
            self.samples,
            config.split,
            folds=config.folds,
            fold=int(config.fold),
            held_out_share=config.held_out_share,
            seed=config.seed,
            presence=presence,
        )
        leaks = splits.leaks(training, held_out)
        if leaks:
            raise UserError(survey.list_problems(config.data_dir, leaks))
        return training, held_out

    def weigh(self, class_weights: Sequence[float]) -> None:
        """Has the reader make weight maps, if the settings ask for them.

        Args:
            class_weights: One factor per class, or none; part of the maps.
        """
        if self.config.border_weight:
            self.read.make_weights = functools.partial(
                weight_maps.border_weights,
                w0=self.config.border_weight,
                sigma=self.config.border_sigma,
                class_weights=class_weights or None,
            )

    def count_classes(self, samples: Sequence[Sample]) -> dict[Sample, np.ndarray]:
        """Returns the pixels of each class [C] for each sample."""
        return survey.count_classes(
            samples, self.read, memory=self.memory, progress=self.progress("Counting classes")
        )

    def shapes(self, samples: Sequence[Sample]) -> dict[Sample, tuple[int, int]]:
        """Returns height and width of each of `samples`."""
        return {sample: self.headers.shapes[sample] for sample in samples}

    def fingerprint(self) -> str:
        """Returns what tells this data set from another."""
        return survey.fingerprint(self.samples)

    def describe(self, values: dict) -> str:
        """Returns what the set holds as text; `values` are the pixels of each mask value."""
        return survey.describe(self.samples, self.headers, values, self.read.classes)


def make_classes(config: RunConfig) -> ClassMap:
    """Returns the class map."""
    return ClassMap.parse(config.classes, nearest=config.stray_values == "nearest")


def make_sampling(config: RunConfig, recipe: Recipe) -> SamplingConfig:
    """Returns how training crops are drawn.

    Raises:
        UserError: If a foreground class is unknown.
    """
    classes = make_classes(config)
    foreground = config.foreground_classes or classes.names[1:]
    return SamplingConfig(
        seed=config.seed,
        crop_size=config.crop_size,
        recipe=recipe,
        equal_groups=config.equal_groups,
        foreground_share=config.foreground_share,
        foreground_classes=tuple(classes.index(name) for name in foreground),
    )


def balanced_class_weights(
    config: RunConfig, counts: dict[Sample, np.ndarray]
) -> tuple[float, ...]:
    """Returns one factor per class, by `config.class_balance`, of the classes' pixel counts."""
    total = np.sum(list(counts.values()), axis=0)
    return tuple(float(w) for w in balance.class_weights(total, config.class_balance))


def make_reader_for(config: RunConfig, sources: Sequence[Source]) -> Reader:
    """Returns a reader of images to predict, scaled as those of the run `config` belongs to."""
    scaling = Scaling.parse(config.intensities)
    dtypes = set()
    for source in sources:
        # One that cannot be read is told of when its turn comes.
        with contextlib.suppress(UserError):
            dtypes.add(images.read_header(source.path).dtype)
    return Reader(
        make_classes(config),
        scaling,
        channels=config.channels,
        dtype=scaling.dtype_for(dtypes),
        cache_mb=0,
    )


def test_folder(config: RunConfig) -> pathlib.Path | None:
    """Returns the folder of the test images in `config.data_dir`, if there is one with pictures."""
    for folder in (
        pathlib.Path(config.data_dir, "test", config.image_folder),
        pathlib.Path(config.data_dir, "test"),
    ):
        with contextlib.suppress(UserError):
            layouts.find_images(folder)
            return folder
    return None
