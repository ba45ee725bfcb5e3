"""How masks are made of probabilities: the threshold, chosen if it is to be, and post-processing.

rule = rule_of_finished_run(config, run, trained, lambda: predictor, stop)
ids = rule(probabilities)

A threshold that was chosen is kept in `threshold.json` of the run, by what it was chosen for.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import msgspec

from unet_core.data.classes import ClassMap
from unet_core.data.reader import Reader
from unet_core.data.samples import Sample
from unet_core.errors import UserError
from unet_core.files import read_json, write_json
from unet_core.inference.ensemble import Ensemble, fold_folders
from unet_core.inference.masks import MaskRule, Threshold, Thresholds
from unet_core.inference.natively import predict_sample
from unet_core.inference.post_processing import KINDS, Step, check_installed
from unet_core.inference.predictor import Predictor, Window
from unet_core.inference.trained import EXPORT_SETTINGS, Trained
from unet_core.reports.thresholds import BestThreshold, ThresholdCounts, score_by, score_of_class
from unet_core.run_directory import RunDirectory
from unet_core.runs.dataset import DataSet
from unet_core.runs.process import StopRequest
from unet_core.runs.progress import progress_bar
from unet_core.settings import RunConfig
from unet_core.settings.prediction import (
    PredictionSettings,
    parse_size,
    parse_threshold,
    parse_weights,
)

_FORMAT = 1
_MOST_TO_CHOOSE_ON = 30
_Probability = Annotated[float, msgspec.Meta(ge=0, le=1)]
Choose = Callable[[Sequence[int]], tuple[list[BestThreshold], int]]


class _Chosen(msgspec.Struct, kw_only=True):
    """One threshold, and what it was chosen for."""

    class_name: str = msgspec.field(name="class")
    score_by: str
    tta: str
    steps: list[int]
    threshold: _Probability
    score: float | None
    images: int
    raw: bool = False


class _Stored(msgspec.Struct, kw_only=True):
    format: int = 0
    thresholds: list[_Chosen]


def check_masks(config: RunConfig, classes: ClassMap) -> None:
    """Checks what the settings say of masks, before anything is read or trained.

    Raises:
        UserError: If there is no such class, a package is missing, or a threshold is given for
            more than two classes that exclude one another, or for both of two.
    """
    check_installed(post_processing(config.prediction, classes))
    _wanted_thresholds(config, classes)


def post_processing(settings: PredictionSettings, classes: ClassMap) -> list[Step]:
    """Returns the steps that the settings ask for: holes first, then small objects, then others.

    Raises:
        UserError: If there is no such class.
    """
    sizes = [parse_size(text) for text in settings.drop_smaller]
    return [
        *(Step("fill_holes", classes.index(name)) for name in settings.fill_holes),
        *(Step("drop_smaller", classes.index(name), pixels) for name, pixels in sizes),
        *(Step("keep_largest", classes.index(name)) for name in settings.keep_largest),
    ]


def describe_post_processing(settings: PredictionSettings) -> str:
    """Returns the flags of post-processing that are set, as text."""
    found = {name: getattr(settings, name) for name in KINDS}
    return " ".join(f"{name}={','.join(values)}" for name, values in found.items() if values)


def foreground(monitor: str, classes: ClassMap) -> int:
    """Returns the class that a threshold is of: that of the monitor, or else the second."""
    name = monitor.partition("/")[2]
    return classes.names.index(name) if name in classes.names else 1


def _wanted_thresholds(config: RunConfig, classes: ClassMap) -> dict[int, float | None]:
    """Returns the thresholds that are asked for by class, None where one is to be chosen.

    None of two classes that exclude one another is that each pixel has the more probable one.
    """
    text = config.prediction.threshold
    given = {
        classes.index(name) if name else None: value
        for name, value in parse_threshold(text).items()
    }
    if classes.overlapping:
        others = given.get(None, 0.5)
        return {number: given.get(number, others) for number in range(len(classes))}
    if len(given) > 1:
        raise UserError(
            f"`threshold` ({text}) must name one class: of {' and '.join(classes.names)} a pixel "
            "has one, and what is not of the one is of the other."
        )
    ((own, value),) = given.items()
    if value == 0.5:
        return {}
    if len(classes) != 2:
        raise UserError(
            f"`threshold` ({text}) is for two classes, and there are {len(classes)}: "
            f"{', '.join(classes.names)}. Leave it out; each pixel has its most probable class."
        )
    return {foreground(config.training.monitor, classes) if own is None else own: value}


def threshold_of(values: Mapping[int, float], classes: ClassMap) -> Threshold | Thresholds | None:
    """Returns the threshold with these values by class; of overlapping ones the others have 0.5."""
    if classes.overlapping:
        return Thresholds(tuple(values.get(number, 0.5) for number in range(len(classes))))
    return next((Threshold(*pair) for pair in values.items()), None)


def mask_rule(
    config: RunConfig,
    run: RunDirectory,
    classes: ClassMap,
    *,
    steps: Sequence[int],
    choose: Choose,
) -> MaskRule:
    """Returns how masks are made, and says it if it is not the usual way.

    Args:
        config: All settings.
        run: Where thresholds that were chosen are kept.
        classes: The classes.
        steps: The step of each network's weights.
        choose: Classes -> the best threshold of each and the number of images that they were
            chosen on; called if one is not kept.

    Raises:
        UserError: As `check_masks`; if what is kept cannot be read.
    """
    made_by = post_processing(config.prediction, classes)
    if made_by:
        print(f"Post-processing: {describe_post_processing(config.prediction)}.")
    values: dict[int, float] = {}
    wanted = _wanted_thresholds(config, classes)
    auto = [class_id for class_id, value in wanted.items() if value is None]
    chosen = _kept_or_chosen(config, run, classes, auto, steps, choose)
    where = "out of fold" if len(steps) > 1 else "on training images"
    for class_id, value in wanted.items():
        how = "as given"
        if value is None:
            found = chosen[class_id]
            value = found.threshold
            score = "not defined" if found.score is None else f"{found.score:.4f}"
            how = f"chosen {where} ({found.images} of them, {found.score_by} {score})"
        values[class_id] = value
        if value != 0.5 or class_id in chosen:
            name = classes.names[class_id]
            print(f"Threshold: {name} where its probability is above {value:g}, {how}.")
    return MaskRule(threshold_of(values, classes), made_by)


def _kept_or_chosen(
    config: RunConfig,
    run: RunDirectory,
    classes: ClassMap,
    class_ids: Sequence[int],
    steps: Sequence[int],
    choose: Choose,
) -> dict[int, _Chosen]:
    """Returns the chosen thresholds of classes; what is not kept is chosen and then kept."""
    if not class_ids:
        return {}
    path, monitor = run.path / "threshold.json", config.training.monitor
    keys: dict[int, dict[str, Any]] = {
        class_id: {
            "class_name": classes.names[class_id],
            "score_by": score_of_class(monitor, classes.names, class_id)
            if classes.overlapping
            else score_by(monitor, classes.names),
            "tta": config.prediction.tta,
            "steps": list(steps),
            "raw": not parse_weights(config.prediction.weights)[1],
        }
        for class_id in class_ids
    }
    kept = read_thresholds(path)
    found = {
        class_id: each
        for class_id, key in keys.items()
        for each in kept
        if all(getattr(each, name) == value for name, value in key.items())
    }
    missing = [class_id for class_id in class_ids if class_id not in found]
    if missing:
        best, images = choose(missing)
        for class_id, (value, score) in zip(missing, best, strict=True):
            known = score if score == score else None
            found[class_id] = _Chosen(**keys[class_id], threshold=value, score=known, images=images)
        run.claim(path)
        new = [found[class_id] for class_id in missing]
        stored = {"format": _FORMAT, "thresholds": msgspec.to_builtins([*kept, *new])}
        write_json(path, stored)
    return found


def read_thresholds(path: os.PathLike) -> list[_Chosen]:
    """Returns the thresholds that were chosen and are kept in a file; none if it is not there.

    Raises:
        UserError: If it cannot be read.
    """
    if not os.path.lexists(path):
        return []
    what, way = "the chosen thresholds of a run", "Move it away; they are chosen again then."
    return read_json(path, _Stored, what=what, way=way, formats=(_FORMAT,)).thresholds


def rule_of_finished_run(
    config: RunConfig,
    run: RunDirectory,
    trained: Sequence[Trained],
    make_predictor: Callable[[], Predictor],
    stop: StopRequest,
) -> MaskRule:
    """Returns how masks are made with the networks of a finished run or of folds.

    `make_predictor` is called if a threshold must be chosen.

    A threshold is chosen on the images that the run was trained on; of folds, on the images that
    each held out, predicted by its network.

    Raises:
        UserError: As `mask_rule`; if a threshold is to be chosen and the training images are not
            there.
    """
    classes = trained[0].classes

    def choose(class_ids: Sequence[int]) -> tuple[list[BestThreshold], int]:
        total, images, predictor = counts_of(class_ids, classes), 0, make_predictor()
        for window, samples, read in _images_to_choose_on(config, run, trained, predictor):
            count_thresholds(total, window, samples, read, stop)
            images += len(samples)
        names = classes.names
        return [each.best(config.training.monitor, names) for each in total], images

    steps = [each.step for each in trained]
    return mask_rule(config, run, classes, steps=steps, choose=choose)


def rule_of_training(
    config: RunConfig,
    run: RunDirectory,
    predictor: Predictor,
    step: int,
    samples: Sequence[Sample],
    read: Reader,
    stop: StopRequest,
) -> MaskRule:
    """Returns how masks are made at the end of training; a threshold is chosen on `samples`.

    Raises:
        UserError: As `mask_rule`.
    """
    classes = predictor.classes

    def choose(class_ids: Sequence[int]) -> tuple[list[BestThreshold], int]:
        few, counts = few_of(samples), counts_of(class_ids, classes)
        count_thresholds(counts, predictor.window, few, read, stop)
        return [each.best(config.training.monitor, classes.names) for each in counts], len(few)

    return mask_rule(config, run, classes, steps=[step], choose=choose)


def counts_of(class_ids: Sequence[int], classes: ClassMap) -> list[ThresholdCounts]:
    """Returns what counts the pixels of each of these classes, with nothing counted yet."""
    return [ThresholdCounts(class_id, classes.overlapping) for class_id in class_ids]


def few_of(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Returns the training images to choose on: of more than 30, every n-th."""
    return samples[:: max(1, -(-len(samples) // _MOST_TO_CHOOSE_ON))]


def count_thresholds(
    counts: Sequence[ThresholdCounts],
    window: Window,
    samples: Sequence[Sample],
    read: Reader,
    stop: StopRequest,
) -> None:
    """Predicts `samples` and adds their pixels to each of `counts`.

    Raises:
        UserError: If one cannot be read, or the output is not finite.
        KeyboardInterrupt: If it was stopped.
    """
    for sample in progress_bar("Choosing a threshold")(samples):
        if stop():
            # Nothing is written yet, and nothing can be without the threshold.
            raise KeyboardInterrupt
        pair, probabilities = predict_sample(window, sample, read)
        for each in counts:
            each.add(probabilities, pair.mask)


def _images_to_choose_on(
    config: RunConfig, run: RunDirectory, trained: Sequence[Trained], predictor: Predictor
) -> Iterator[tuple[Window, Sequence[Sample], Reader]]:
    """Gives networks and the images that a threshold is chosen on with them."""
    if (run.path / EXPORT_SETTINGS).is_file():
        raise UserError(
            f"`threshold` (auto) is chosen on training images, and {run.path} is an export. Give a "
            "probability, or the `run_dir` of the run."
        )
    folders, window = fold_folders(run.path), predictor.window
    data = open_data_of(config, [RunDirectory(each) for each in folders] or [run])
    if not folders:
        yield window, few_of(data.split()[0]), data.read
        return
    windows = window.windows if isinstance(window, Ensemble) else [window]
    for window, each in zip(windows, trained, strict=True):
        yield window, held_out_of(data, each), data.read


def open_data_of(
    config: RunConfig,
    runs: Sequence[RunDirectory],
    *,
    what: str = "chosen",
    way: str = "a number in place of auto (`threshold`)",
) -> DataSet:
    """Returns the data that all of `runs` were trained on.

    `what` must be done on them, and `way` does without; both are for the message.

    Raises:
        UserError: If they are not there, something is wrong with them, or they are others.
    """
    data = DataSet.open(config.data, seed=config.training.seed, progress=progress_bar)
    data.check()
    for run in runs:
        if data.fingerprint() != run.read()[1]:
            raise UserError(
                f"{config.data.data_dir}: is not what {run.path} was trained on, and on that must "
                f"be {what}. Give its `data_dir`, or {way}."
            )
    return data


def held_out_of(data: DataSet, trained: Trained) -> list[Sample]:
    """Returns the samples that the run of one fold has held out."""
    settings: Any = dataclasses.replace(
        data.settings, fold=trained.config.data.fold, folds=trained.config.data.folds
    )
    return dataclasses.replace(data, settings=settings).split()[1]
