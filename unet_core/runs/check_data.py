"""`--mode=check_data`: what a data folder holds, and every problem with it."""

from __future__ import annotations

import dataclasses

from unet_core.data import proposal, splits, survey
from unet_core.data.layouts.find import find_samples
from unet_core.data.samples import Sample
from unet_core.errors import UserError
from unet_core.run_directory import RunDirectory
from unet_core.runs import folds
from unet_core.runs.dataset import DataSet, make_sampling, print_notes, write_preview
from unet_core.runs.finished_run import check_used, required
from unet_core.runs.process import StopRequest
from unet_core.runs.progress import progress_bar
from unet_core.settings import RunConfig


def check_data(config: RunConfig, _: StopRequest) -> None:
    """Shows what a data folder holds and lists every problem."""
    check_used(config)
    data_dir = required(config, "data_dir")
    if config.data.classes is None:
        propose_classes(data_dir, config)
        return
    run = RunDirectory(config.task.run_dir) if config.task.run_dir else None
    data = DataSet.open(
        config.data,
        seed=config.training.seed,
        progress=progress_bar,
        memory_path=run.known_masks if run else None,
        of_new_run=True,
    )
    pixels = data.pixels()
    print(data.describe(pixels.values))
    if pixels.objects:
        print(pixels.objects)
    problems = [*data.problems, *pixels.problems, *pixels.missing]
    if not problems:
        sampling = make_sampling(config.data, config.augmentation, seed=config.training.seed)
        training_samples: list[Sample] = []
        for fold in folds.configs(config) if config.data.fold == "all" else [config]:
            training_samples, held_out = dataclasses.replace(data, settings=fold.data).split()
            progress = progress_bar("Looking for leaks")
            problems += splits.leaks(training_samples, held_out, decoded=True, progress=progress)
            number = f"Fold {fold.data.fold}: " if config.data.fold == "all" else ""
            print(
                f"{number}{len(training_samples)} sample(s) to train on, {len(held_out)} held out."
            )
            print(data.describe_small(training_samples), end="")
        if config.data.preview:
            write_preview(config.data.preview, data, training_samples, sampling)
    if run and (run.path.is_dir() or not problems):
        run.path.mkdir(parents=True, exist_ok=True)
        run.claim(run.known_masks)
        data.memory.store()
    if problems:
        raise UserError(survey.list_problems(data_dir, problems))
    print("No problems found.")


def propose_classes(data_dir: str, config: RunConfig) -> None:
    """Shows the values that the masks hold, and a class map to begin with.

    Raises:
        UserError: If there are no masks, or one cannot be read.
    """
    settings = config.data
    found = find_samples(
        data_dir,
        settings.layout,
        image_folder=settings.image_folder,
        mask_folder=settings.mask_folder,
        mask_suffix=settings.mask_suffix,
        group_pattern=settings.group_pattern,
        outside_paths=settings.outside_paths,
    )
    print_notes(found.notes)
    if not found.samples:
        raise UserError(survey.list_problems(data_dir, found.problems))
    if config.network.heads == "sigmoid":
        print(f"Name a class for each folder of masks:\n  --classes={settings.mask_folder}")
        return
    counts = proposal.count_values(found.samples, progress_bar("Reading masks"))
    print(proposal.describe(counts))
    if found.problems:
        raise UserError(survey.list_problems(data_dir, found.problems))
