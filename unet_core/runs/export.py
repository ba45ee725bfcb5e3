"""`--mode=export`: the network of a run in forms that other programs read."""

from __future__ import annotations

from unet_core.data.intensities import Scaling
from unet_core.export.export import export as write_export
from unet_core.runs.finished_run import open_run, output_folder
from unet_core.runs.process import StopRequest
from unet_core.settings import RunConfig


def export(config: RunConfig, stop: StopRequest) -> None:
    """Writes the network in forms that other programs read."""
    config, run, trained = open_run(config, stop)
    output_dir = output_folder(config, run.path / "export")
    precision = None if config.network.precision == "auto" else config.network.precision
    write_export(
        trained.model,
        output_dir,
        classes=trained.classes,
        scaling=Scaling.parse(trained.config.data.intensities),
        settings=trained.config.stored(),
        step=trained.step,
        formats=config.prediction.formats,
        precision=precision,
    )
    formats = ", ".join(config.prediction.formats)
    print(f"Exported step {trained.step} as {formats} to {output_dir}.")
