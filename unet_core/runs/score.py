"""What training and the modes of a finished run share: the predictor, and scores on the screen."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from unet_core import console
from unet_core.data.classes import ClassMap
from unet_core.data.intensities import Scaling
from unet_core.data.reader import Reader
from unet_core.data.samples import Sample
from unet_core.data.survey import fingerprint
from unet_core.inference.masks import MaskRule, Threshold, Thresholds, mask_suffixes, usual_rule
from unet_core.inference.network import InferenceNetwork
from unet_core.inference.post_processing import KINDS
from unet_core.inference.predictor import Predictor
from unet_core.inference.sliding_window import SlidingWindow
from unet_core.inference.trained import Trained, make_classes, make_resize
from unet_core.outputs.wanted import PredictionOutputs, made_by
from unet_core.reports.evaluation import add_up, describe_scores, score_samples
from unet_core.reports.shares import Head, write_share
from unet_core.run_directory import RunDirectory
from unet_core.runs import alarms
from unet_core.runs.process import StopRequest
from unet_core.runs.progress import progress_bar
from unet_core.settings import FIELDS, RunConfig
from unet_core.settings.prediction import PredictionSettings
from unet_core.shards import Shard


def make_predictor(config: RunConfig, trained: Trained | Sequence[Trained]) -> Predictor:
    """Returns the predictor that the settings ask for; of several networks, of their mean."""
    return Predictor(
        trained,
        tta=config.prediction.tta,
        window_px=config.prediction.window_px,
        precision=None if config.network.precision == "auto" else config.network.precision,
        pixel_size_um=config.data.pixel_size_um,
    )


def predictor_of(config: RunConfig, network: InferenceNetwork) -> Predictor:
    """Returns the predictor by a network that is there already, with the weights it has."""
    settings = config.prediction
    return Predictor.of_window(
        SlidingWindow(network, tta=settings.tta, window_px=settings.window_px),
        classes=make_classes(config.data),
        scaling=Scaling.parse(config.data.intensities),
        use_channels=config.data.use_channels,
        resize=make_resize(config.data),
    )


def claim_pictures(run: RunDirectory, samples: Sequence[Sample], classes: ClassMap) -> None:
    """Notes that the run writes the pictures of its held-out samples.

    Raises:
        UserError: If one of them is there and the run has not written it.
    """
    folder, kinds = run.path / "held_out", [*mask_suffixes(classes), "errors"]
    run.claim(*(folder / f"{s.name}_{kind}.png" for s in samples for kind in kinds))


def score(
    run: RunDirectory,
    settings: PredictionSettings,
    predictor: Predictor,
    samples: Sequence[Sample],
    read: Reader,
    output_dir: pathlib.Path,
    *,
    step: int,
    training_samples: Sequence[Sample],
    make_mask: MaskRule,
    stop: StopRequest,
    ends_training: bool = False,
) -> None:
    """Scores `samples`, writes scores and pictures to `output_dir` and shows a table.

    If stopped, it writes no scores and shows no table. At the end of training it warns of a network
    that has learned nothing; elsewhere there may be nothing to find.
    """
    if output_dir == run.path:
        claim_pictures(run, samples, read.classes)
    result = score_samples(
        predictor.window,
        samples,
        read,
        output_dir,
        training_samples=training_samples,
        **_how(settings, make_mask, stop),
    )
    if result is not None:
        how = _described(make_mask, settings, read.classes, step)
        run.write_scores({**how, **result}, output_dir)
        print(f"\n{describe_scores(result, read.classes)}\n")
        confusion = np.array(result["confusion"])
        if ends_training and (warning := nothing_learned(confusion, samples, read)):
            console.warn(warning)


def score_share(
    config: RunConfig,
    shard: Shard,
    predictor: Predictor,
    samples: Sequence[Sample],
    read: Reader,
    output_dir: pathlib.Path,
    *,
    step: int,
    training_samples: Sequence[Sample],
    make_mask: MaskRule,
    stop: StopRequest,
) -> None:
    """Scores the share of `samples`, and keeps what it adds up to in `output_dir`.

    The thresholds of V_Rand and V_Info are chosen by the first share, for all.
    """
    settings = config.prediction
    mine = shard.of(samples)
    print(f"Scoring share {shard}, {len(mine)} of {len(samples)} image(s).")
    scored = add_up(
        predictor.window,
        mine,
        read,
        output_dir,
        training_samples=training_samples if shard.number == 1 else (),
        **_how(settings, make_mask, stop),
    )
    if scored is None:
        return
    outputs = PredictionOutputs(
        outputs=("mask",),
        mask_format=settings.mask_format,
        instances=settings.instances,
        object_class=settings.object_class,
        least_object_px=settings.least_object_px,
        make_mask=make_mask,
    )
    decides = made_by(predictor, outputs) | {"boundary_px": str(settings.boundary_px)}
    decides |= {"images": str(len(samples)), "data": fingerprint(samples)}
    how = _described(make_mask, settings, read.classes, step)
    path = write_share(output_dir, shard, scored, Head(decides, config, how))
    print(
        f"{path}: what this share adds up to. Once all {shard.count} are there, "
        f"--mode=merge --output_dir={output_dir} makes the scores of all images."
    )


def _how(settings: PredictionSettings, make_mask: MaskRule, stop: StopRequest) -> dict[str, Any]:
    """Returns how samples are scored, as `add_up` takes it."""
    return {
        "object_class": settings.object_class,
        "instances": settings.instances,
        "least_object_px": settings.least_object_px,
        "segment_scores": settings.segment_scores,
        "boundary_px": settings.boundary_px,
        "mask_format": settings.mask_format,
        "make_mask": make_mask,
        "progress": progress_bar,
        "should_stop": stop,
    }


def nothing_learned(confusion: np.ndarray, samples: Sequence[Sample], read: Reader) -> str | None:
    """Returns what to say of a network that predicts one class everywhere, None of any other.

    `confusion` is as for `alarms.constant_prediction`.
    """
    found = alarms.constant_prediction(confusion, read.classes.names)
    if found is None:
        return None
    cause = alarms.likely_cause([read(sample).image for sample in samples[: alarms.MANY]])
    return (
        f"the network has learned nothing: it predicts {found} (nearly) everywhere. Likely: {cause}"
    )


def _described(
    make_mask: MaskRule, settings: PredictionSettings, classes: ClassMap, step: int
) -> dict[str, Any]:
    """Returns what was scored, and how masks were made if not in the usual way."""
    found: dict[str, Any] = {"step": step, "weights": settings.weights, "tta": settings.tta}
    threshold = make_mask.threshold
    if isinstance(threshold, Threshold):
        found["threshold"] = {"class": classes.names[threshold.class_id], "value": threshold.value}
    elif isinstance(threshold, Thresholds) and threshold != usual_rule(classes).threshold:
        found["thresholds"] = dict(zip(classes.names, threshold.values, strict=True))
    for name in ("instances", "least_object_px"):
        if getattr(settings, name) != FIELDS[name].default:
            found[name] = getattr(settings, name)
    for name in KINDS:
        if settings_of_step := getattr(settings, name):
            found[name] = list(settings_of_step)
    return found
