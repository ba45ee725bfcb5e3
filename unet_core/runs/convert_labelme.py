"""`--mode=convert_labelme`: a VOC folder of labelme's JSON files."""

from __future__ import annotations

import sys

from unet_core.conventions import IGNORED
from unet_core.data import labelme
from unet_core.data.layouts.voc import write_voc_lists
from unet_core.inference.trained import make_classes
from unet_core.runs.dataset import DataSet
from unet_core.runs.finished_run import check_used, required
from unet_core.runs.process import StopRequest
from unet_core.runs.progress import progress_bar
from unet_core.settings import RunConfig


def convert_labelme(config: RunConfig, _: StopRequest) -> None:
    """Makes a VOC folder of labelme's JSON files."""
    check_used(config)
    names = make_classes(config.data).names
    output_dir = required(config, "output_dir")
    warnings = labelme.convert(
        required(config, "input"), output_dir, names, progress=progress_bar("Converting")
    )
    for warning in warnings:
        print(f"WARNING: {warning}", file=sys.stderr)
    listed = ",".join(f"{number}:{name}" for number, name in enumerate(names))
    command = f"--layout=voc --data_dir={output_dir} --classes={listed}"
    if config.data.folds or config.data.held_out_share:
        voc = config.replace(
            data_dir=output_dir, layout="voc", classes=f"{listed},{IGNORED}:ignore"
        )
        data = DataSet.open(voc.data, seed=config.training.seed, progress=progress_bar)
        write_voc_lists(output_dir, *data.split())
        command += " --split=fixed"
    print(f"Train with {command}")
