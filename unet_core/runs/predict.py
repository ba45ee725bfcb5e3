"""`--mode=predict`: masks for images without ground truth, for a video, for what a camera sees."""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Callable, Sequence

from unet_core.data import survey
from unet_core.data.layouts.find import find_images
from unet_core.data.predicted import Predicted
from unet_core.data.samples import Source
from unet_core.data.videos import camera_number, is_video
from unet_core.errors import UserError
from unet_core.files import safe_name
from unet_core.inference.masks import MaskRule
from unet_core.inference.predictor import Predictor
from unet_core.inference.trained import Trained
from unet_core.outputs import video
from unet_core.outputs.files import predict_files
from unet_core.outputs.wanted import PredictionOutputs, made_by
from unet_core.runs.dataset import test_folder
from unet_core.runs.finished_run import open_runs, output_folder
from unet_core.runs.masks import check_masks, rule_of_finished_run
from unet_core.runs.process import StopRequest
from unet_core.runs.progress import pixel_bar, progress_bar
from unet_core.runs.score import make_predictor
from unet_core.settings import RunConfig
from unet_core.settings.prediction import PredictionSettings, parse_shard


def predict(config: RunConfig, stop: StopRequest) -> None:
    """Writes masks for images without truth, for a video or for what a camera sees."""
    config, run, trained = open_runs(config, stop)
    check_masks(config, trained[0].classes)
    source = config.prediction.input or test_folder(config.data)
    if source is None:
        raise UserError("`input` is missing: the data folder holds no test images.")
    output_dir = output_folder(config, run.predictions)
    how = f"with the {config.prediction.weights} weights ({_steps(trained)})"
    predictor = make_predictor(config, trained)
    shard = parse_shard(config.prediction.shard)
    if is_video(source) or camera_number(str(source)) is not None:
        if shard:
            raise UserError(
                f"`shard` ({shard}) is a share of pictures or pages, and {source} is one video. "
                "Leave it out, or give the videos to several commands."
            )
        print(f"Predicting {source} {how}.")
        rule = rule_of_finished_run(config, run, trained, lambda: predictor, stop)
        _predict_video(config.prediction, predictor, rule, str(source), output_dir, stop)
        return
    notes: list[str] = []
    problems: list[str] = []
    sources = find_images(source, notes=notes, problems=problems)
    count = len(shard.of(sources) if shard else sources)
    which = f"share {shard}, {count} of {len(sources)} image(s)" if shard else f"{count} image(s)"
    print("\n".join([f"Predicting {which} of {source} {how}.", *notes]))
    failures = predict_images(
        config.prediction,
        predictor,
        rule_of_finished_run(config, run, trained, lambda: predictor, stop),
        sources,
        output_dir,
        stop,
        claim=None if config.prediction.output_dir else run.claim,
        pixel_size_um=config.data.pixel_size_um,
    )
    if failures or problems:
        found = f"{len(failures)} of {count} image(s) could not be predicted"
        found = found if failures else f"{source}: not all that is named there is there"
        found += "; the others are done." if len(failures) < count else "."
        lines = [found]
        for first, others, _ in survey.by_cause([*problems, *failures]):
            lines += [f"  {first}", *([f"    {others}"] if others else [])]
        raise UserError("\n".join(lines))


def _steps(trained: Sequence[Trained]) -> str:
    steps = ", ".join(str(each.step) for each in trained)
    if len(trained) == 1:
        return f"step {steps}"
    return f"the mean of {len(trained)} folds, steps {steps}"


def predict_images(
    settings: PredictionSettings,
    predictor: Predictor,
    make_mask: MaskRule,
    sources: Sequence[Source],
    output_dir: pathlib.Path,
    stop: StopRequest,
    *,
    overwrite: bool | None = None,
    claim: Callable[..., None] | None = None,
    pixel_size_um: float = 0.0,
) -> Sequence[str]:
    """Writes predictions and returns a sentence for each image that could not be predicted.

    Args:
        settings: What to write.
        predictor: The network.
        make_mask: How masks are made of its probabilities.
        sources: The images, of all shares.
        output_dir: The folder to write to.
        stop: Asked before every image.
        overwrite: Whether files that are there may be replaced; None is as the settings say.
        claim: As for `predict_files`.
        pixel_size_um: Width and height of a pixel, for files about objects; 0 is as each file says.
    """
    shard = parse_shard(settings.shard)
    count = len(shard.of(sources) if shard else sources)
    done = predict_files(
        predictor,
        sources,
        output_dir,
        PredictionOutputs(
            outputs=settings.outputs,
            mask_format=settings.mask_format,
            alpha=settings.alpha,
            instances=settings.instances,
            object_class=settings.object_class,
            least_object_px=settings.least_object_px,
            objects=settings.objects,
            pixel_size_um=pixel_size_um,
            make_mask=make_mask,
        ),
        overwrite=settings.overwrite if overwrite is None else overwrite,
        shard=shard,
        claim=claim,
        progress=pixel_bar("Predicting"),
        should_stop=stop,
    )
    if done.finished_before:
        print(
            f"\n{done.finished_before} of {count} image(s) were finished before, by the "
            f"same weights and settings, and stay as they are in {output_dir}."
        )
    if done.finished_before == count:
        return done.failures
    print(f"\nPredictions in {output_dir}\n{done.table}")
    print(
        f"{done.megapixels:.1f} megapixels in {done.seconds:.1f} s, reading and writing included: "
        f"{done.megapixels / done.seconds:.2f} megapixels/s\n"
    )
    for first, others, _ in survey.by_cause(done.warnings):
        print(f"WARNING: {first} {others}".rstrip(), file=sys.stderr)
    return done.failures


def _predict_video(
    settings: PredictionSettings,
    predictor: Predictor,
    make_mask: MaskRule,
    source: str,
    output_dir: pathlib.Path,
    stop: StopRequest,
) -> None:
    if settings.instances != "none" or settings.objects or settings.mask_format != "values":
        raise UserError(
            "`instances`, `objects` and `mask_format` are for pictures; leave them out of a video."
        )
    stem = output_dir / safe_name(pathlib.Path(source.replace(":", "_")).stem)
    paths = video.output_paths(stem, settings.outputs, predictor.classes).values()
    wanted = PredictionOutputs(settings.outputs, alpha=settings.alpha, make_mask=make_mask)
    # What a camera sees is never finished.
    of_file = Source(pathlib.Path(source)) if is_video(source) else None
    predicted = Predicted(output_dir)
    predicted.check_free(paths)
    made = made_by(predictor, wanted)
    again = settings.overwrite or of_file is None
    left = predicted.unfinished({stem.name: of_file or Source(stem)}, made, again=again)
    if not left:
        print("It was finished before, by the same weights and settings, and stays as it is.")
        return
    result = video.predict_video(
        predictor,
        source,
        stem,
        classes=predictor.classes,
        channels=predictor.channels,
        alpha=settings.alpha,
        outputs=settings.outputs,
        make_mask=make_mask,
        show=video.make_window(source) if settings.show else None,
        overwrite=True,
        claim=lambda: predicted.start(stem.name, of_file, paths),
        progress=progress_bar("Predicting frames"),
        should_stop=stop,
    )
    if result.is_whole:
        predicted.finish(stem.name)
        predicted.end()
    print(f"\n{video.describe(result)}\n")
    for path in result.outputs:
        print(os.fspath(path))
    for warning in result.warnings:
        print(f"WARNING: {warning}", file=sys.stderr)
