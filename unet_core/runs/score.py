"""What training and the modes of a finished run share: the predictor, and scores on the screen."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from unet_core.data.intensities import Scaling
from unet_core.data.reader import Reader
from unet_core.data.samples import Sample
from unet_core.inference.network import InferenceNetwork
from unet_core.inference.predictor import Predictor
from unet_core.inference.sliding_window import SlidingWindow
from unet_core.inference.trained import Trained, make_classes
from unet_core.reports.evaluation import describe_scores, score_samples
from unet_core.run_directory import RunDirectory
from unet_core.runs.process import StopRequest
from unet_core.runs.progress import progress_bar
from unet_core.settings import RunConfig
from unet_core.settings.prediction import PredictionSettings


def make_predictor(config: RunConfig, trained: Trained) -> Predictor:
    """Returns the predictor that the settings ask for."""
    precision = None if config.network.precision == "auto" else config.network.precision
    return predictor_of(config, InferenceNetwork(trained.model, precision=precision))


def predictor_of(config: RunConfig, network: InferenceNetwork) -> Predictor:
    """Returns the predictor by a network that is there already, with the weights it has."""
    settings = config.prediction
    return Predictor.of_window(
        SlidingWindow(network, tta=settings.tta, window_px=settings.window_px),
        classes=make_classes(config.data),
        scaling=Scaling.parse(config.data.intensities),
    )


def claim_pictures(run: RunDirectory, samples: Sequence[Sample]) -> None:
    """Notes that the run writes the pictures of its held-out samples.

    Raises:
        UserError: If one of them is there and the run has not written it.
    """
    folder = run.path / "held_out"
    run.claim(*(folder / f"{s.name}_{kind}.png" for s in samples for kind in ("predict", "errors")))


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
    stop: StopRequest,
) -> None:
    """Scores `samples`, writes scores and pictures to `output_dir` and shows a table.

    If stopped, it writes no scores and shows no table.
    """
    if output_dir == run.path:
        claim_pictures(run, samples)
    result = score_samples(
        predictor.window,
        samples,
        read,
        output_dir,
        object_class=settings.object_class,
        boundary_px=settings.boundary_px,
        training_samples=training_samples,
        mask_format=settings.mask_format,
        progress=progress_bar,
        should_stop=stop,
    )
    if result is not None:
        how = {"step": step, "weights": settings.weights, "tta": settings.tta}
        run.write_scores({**how, **result}, output_dir)
        print(f"\n{describe_scores(result, read.classes)}\n")
