"""Predictions as files: masks, overlays and probabilities, named after their images."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from unet_core.data import images
from unet_core.data.classes import ClassMap
from unet_core.data.reader import Reader
from unet_core.data.samples import Source
from unet_core.errors import UserError
from unet_core.inference.predictor import Predictor
from unet_core.reports import pictures, tables


def predict_files(
    predictor: Predictor,
    sources: Sequence[Source],
    output_dir: str | pathlib.Path,
    read: Reader,
    *,
    mask_format: str = "values",
    save_probabilities: bool = False,
    progress: Callable = iter,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[str, list[str]]:
    """Predicts each image and writes its mask at native size, `<name>_predict.png`, and
    `<name>_overlay.png`.

    Args:
        predictor: The network.
        sources: The images; pages of a stack are told apart by their number in the name.
        output_dir: The folder to write to; made if need be.
        read: Decodes them as the network expects, and knows the classes.
        mask_format: "values" writes the mask values of the class map, "index" the class numbers,
            "palette" a PNG of class numbers that shows in colours.
        save_probabilities: Whether to write `<name>_probability.png` too: for two classes the
            probability of the second, for more one file per class with its name; 16 bit, 65535
            being 1.
        progress: Wraps the list of sources while it is gone through.
        should_stop: Asked before every image.

    Returns:
        A table of what was predicted, and complete sentences about everything that looks wrong:
        images that could not be read (the others are done), predictions of one class only.

    Raises:
        UserError: If `output_dir` cannot be written.
    """
    output_dir = pathlib.Path(output_dir)
    classes = read.classes
    several_pages = {source.path for source in sources if source.page}
    rows, warnings = [], []
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        for source in progress(sources):
            if should_stop():
                break
            try:
                image = read.image(source)
            except UserError as error:
                warnings.append(str(error))
                continue
            probabilities = predictor(image)
            ids = predicted_ids(probabilities)
            page = f"_{source.page:03d}" if source.path in several_pages else ""
            stem = source.path.stem + page
            _write_mask(output_dir / f"{stem}_predict.png", ids, classes, mask_format)
            images.write_png(output_dir / f"{stem}_overlay.png", pictures.overlay(image, ids))
            if save_probabilities:
                _write_probabilities(output_dir, stem, probabilities, classes)
            shares = np.bincount(ids.ravel(), minlength=len(classes)) / ids.size
            # Of two classes the probability of the second says all; of more, that of the class
            # predicted.
            shown = probabilities[..., 1] if len(classes) == 2 else probabilities.max(-1)
            figures = (shown.min(), shown.mean(), shown.max(), *shares)
            rows.append([stem + source.path.suffix, *(f"{value:.3f}" for value in figures)])
            if shares.max() == 1:
                warnings.append(
                    f"{source}: the prediction is constant, {classes.names[shares.argmax()]} "
                    f"everywhere. The network has "
                    "not learned this kind of image: train longer, or check that images and masks "
                    "belong together."
                )
    except OSError as error:
        raise UserError(
            f"{output_dir}: predictions cannot be written ({error.strerror}). Those already there "
            f"are whole; make room "
            "or choose another --output_dir."
        ) from error
    shown = f"p({classes.names[1]})" if len(classes) == 2 else "p(predicted)"
    header = ["image", f"min {shown}", "mean", "max", *(f"share {name}" for name in classes.names)]
    return tables.table(header, rows), warnings


def predicted_ids(probabilities: np.ndarray) -> np.ndarray:
    """Returns the class ids [H, W] uint8 of probabilities [H, W, C]; of two classes the second
    needs more than 1/2.
    """
    return probabilities.argmax(-1).astype(np.uint8)


def _write_mask(path: pathlib.Path, ids: np.ndarray, classes: ClassMap, mask_format: str) -> None:
    if mask_format == "palette":
        images.write_palette_png(path, ids, classes.palette())
    elif mask_format == "index":
        images.write_png(path, ids)
    else:
        values = classes.values(ids)
        images.write_png(path, values[..., ::-1] if classes.is_colour else values)


def _write_probabilities(
    output_dir: pathlib.Path, stem: str, probabilities: np.ndarray, classes: ClassMap
) -> None:
    numbers = range(1, 2) if len(classes) == 2 else range(len(classes))
    for number in numbers:
        suffix = "" if len(classes) == 2 else f"_{classes.names[number]}"
        levels = np.rint(probabilities[..., number] * 65535).astype(np.uint16)
        images.write_png(output_dir / f"{stem}_probability{suffix}.png", levels)
