"""`--mode=export`: the network of a run, or the mean of folds, in forms other programs read."""

from __future__ import annotations

from unet_core import console
from unet_core.data.intensities import Scaling
from unet_core.errors import UserError
from unet_core.export.export import export as write_export
from unet_core.export.onnx_int8 import INT8_FILE
from unet_core.inference.masks import threshold_as_flag
from unet_core.inference.post_processing import KINDS
from unet_core.models.ensemble import make_ensemble
from unet_core.runs.calibration import LEAST_AGREEMENT, check_int8, open_known_images
from unet_core.runs.finished_run import open_runs, output_folder
from unet_core.runs.masks import check_masks, describe_post_processing, rule_of_finished_run
from unet_core.runs.process import StopRequest
from unet_core.runs.score import make_predictor
from unet_core.settings import RunConfig


def export(config: RunConfig, stop: StopRequest) -> None:
    """Writes the network in forms that other programs read; of folds, one that is their mean."""
    config, run, trained = open_runs(config, stop)
    first = trained[0]
    check_masks(config, first.classes)
    known = open_known_images(config, run, trained)
    output_dir = output_folder(config, run.path / "export")
    precision = None if config.network.precision == "auto" else config.network.precision
    # What is exported averages over no mirrored copies, so the threshold is chosen without them.
    left_out = describe_post_processing(config.prediction)
    nothing: dict[str, tuple[str, ...]] = dict.fromkeys(KINDS, ())
    plain = config.replace(tta="none", **nothing)
    rule = rule_of_finished_run(plain, run, trained, lambda: make_predictor(plain, trained), stop)
    settings = first.config.stored()
    settings["threshold"] = threshold_as_flag(rule, first.classes)
    # What was chosen for folds is taken over by what predicts with the export.
    settings |= {name: config.stored()[name] for name in ("weights", "tta", *KINDS)}
    model = make_ensemble([each.model for each in trained], first.classes.overlapping)
    write_export(
        model,
        output_dir,
        classes=first.classes,
        scaling=Scaling.parse(first.config.data.intensities),
        settings=settings,
        step=first.step,
        formats=config.prediction.formats,
        precision=precision,
        threshold=rule.threshold,
        networks=len(trained),
        calibration=known.calibration if known else (),
    )
    if first.config.data.resize:
        print(
            f"Images are resized (--resize={first.config.data.resize}) by this package alone: give "
            "the SavedModel and the ONNX files pictures of that scale."
        )
    formats = ", ".join(config.prediction.formats)
    steps = ", ".join(str(each.step) for each in trained)
    what = f"step {steps}" if len(trained) == 1 else f"{len(trained)} networks (steps {steps})"
    if left_out:
        print(f"The run's post-processing ({left_out}) is no part of these files.")
    print(f"Exported {what} as {formats} to {output_dir}.")
    if known:
        try:
            text, agreement = check_int8(output_dir / INT8_FILE, model, known, rule.threshold)
        except UserError as error:
            console.warn(f"{output_dir / INT8_FILE}: was not compared with float32: {error}")
            return
        print(text)
        if agreement < LEAST_AGREEMENT:
            console.warn(
                f"{output_dir / INT8_FILE}: differs from the float32 network in more than "
                f"{100 * (1 - LEAST_AGREEMENT):.0f} % of the pixels. Compare the Dice, or use "
                "onnx, which is float32 (`formats`)."
            )
