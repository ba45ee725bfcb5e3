"""`--mode=convert`: a VOC folder of the annotations of other programs."""

from __future__ import annotations

import sys

from unet_core.conventions import IGNORED
from unet_core.data.annotations.convert import convert as convert_annotations
from unet_core.data.annotations.convert import propose_classes
from unet_core.data.layouts.voc import write_voc_lists
from unet_core.inference.trained import make_classes
from unet_core.runs.dataset import DataSet
from unet_core.runs.finished_run import check_used, required
from unet_core.runs.process import StopRequest
from unet_core.runs.progress import progress_bar
from unet_core.settings import RunConfig


def convert(config: RunConfig, _: StopRequest) -> None:
    """Makes a VOC folder of files of annotations."""
    check_used(config)
    source, output_dir = required(config, "input"), required(config, "output_dir")
    if config.data.classes is None:
        raise propose_classes(source)
    names = make_classes(config.data).names
    done = convert_annotations(
        source,
        output_dir,
        names,
        image_dir=config.prediction.images,
        progress=progress_bar("Converting"),
    )
    for note in done.notes:
        print(f"WARNING: {note}", file=sys.stderr)
    read = ", ".join(f"{count} file(s) of {title}" for title, count in done.formats.items())
    print(f"Read {read}; converted {done.pictures} picture(s).")
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
