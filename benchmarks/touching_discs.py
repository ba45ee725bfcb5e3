"""What a border class is worth where objects touch: discs with known numbers, three ways.

    python benchmarks/touching_discs.py
    python benchmarks/touching_discs.py --steps=300 --runs=/tmp/discs

Pictures of discs that touch, each a little brighter or darker than its neighbours, and masks that
hold their numbers. One network is trained with a class for the border between them, and objects are
flooded from what it leaves; another without one, and its objects are parted at their necks, or not
at all. The figures are F1 against the true discs of held-out pictures; the first three rows are of
masks in which every pixel is right, so that they show what each way can reach at best. A run that
is finished under `--runs` is not done again; `--steps=0` trains none.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
import tempfile
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import cv2
import numpy as np
from rounds import machine

from unet_core.data import images
from unet_core.data.classes import ClassMap
from unet_core.data.instance_masks import numbered, of_objects
from unet_core.drawing import tables
from unet_core.inference.instances import number_objects
from unet_core.runs.process import StopRequest
from unet_core.scores import ObjectCounts
from unet_core.settings import RunConfig
from unet_core.settings.modes import MODES

PLAIN = "0:background,1:disc"
KINDS: dict[str, dict[str, Any]] = {
    "border": {"classes": PLAIN + ",2:border", "border_px": 2},
    "plain": {"classes": PLAIN, "border_px": 0},
}
LEAST_PX = 20
"""Of an object; the smallest disc has about 110."""
RECIPE: dict[str, Any] = {
    **{"masks": "instances", "folds": 4, "fold": "3", "crop_size": 96, "flips": True},
    **{"base_filters": 8, "depth": 3, "normalization": "batch", "global_batch_size": 4},
    **{"learning_rate": 3e-3, "loss": "cross_entropy,batch_dice", "monitor": "dice/disc"},
    **{"precision": "float32", "outputs": ("mask",), "generators": 1},
}
ROWS = {
    "border class, flooded": ("border", "watershed"),
    "no border class, parted at necks": ("plain", "watershed"),
    "no border class, components": ("plain", "components"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--runs", type=pathlib.Path, help="default: a temporary folder")
    args = parser.parse_args()
    rows = at_best(args.pictures)
    if args.steps:
        with tempfile.TemporaryDirectory() as folder:
            rows |= scored(args.runs or pathlib.Path(folder), args.pictures, args.steps)
    print(machine())
    header = ["objects", "F1 at IoU 0.5", "mean of 0.5 to 0.95", "Dice of discs"]
    print(tables.table(header, [[name, *cells] for name, cells in rows.items()]))


def at_best(pictures: int) -> dict[str, list[str]]:
    """Returns the cells of each row of `ROWS` if every pixel of a mask is right."""
    found = {}
    for name, (kind, how) in ROWS.items():
        classes = of_objects(ClassMap.parse(KINDS[kind]["classes"]), KINDS[kind]["border_px"])
        counts = ObjectCounts()
        for seed in range(pictures):
            mask = numbered([draw_discs(seed)[1]], classes)
            ids = mask.ids(classes)
            labels = number_objects(ids, classes, "", how=how, least_px=LEAST_PX)
            counts.add(labels, mask.numbers)
        figures = [min(counts.f1().items())[1], counts.mean_f1(), 1.0]
        found[f"every pixel right, {name}"] = [f"{figure:.4f}" for figure in figures]
    return found


def scored(runs: pathlib.Path, pictures: int, steps: int) -> dict[str, list[str]]:
    """Trains both networks and returns the cells of each row of `ROWS`."""
    data_dir = runs / "data"
    if not data_dir.exists():
        write_discs(data_dir, pictures)
    found = {}
    for name, (kind, how) in ROWS.items():
        run = runs / kind
        settings = {**RECIPE, **KINDS[kind], "data_dir": str(data_dir), "run_dir": str(run)}
        settings |= {"train_steps": steps, "warmup_steps": steps // 10}
        settings |= dict.fromkeys(("eval_every_steps", "checkpoint_every_steps"), steps)
        if not (run / "scores.json").exists():
            MODES["train"](RunConfig.of(**settings), StopRequest())
        out = runs / f"{kind}_{how}"
        how_scored = {"run_dir": str(run), "output_dir": str(out), "instances": how}
        how_scored |= {"least_object_px": LEAST_PX}
        config = RunConfig.of(mode="evaluate", data_dir=str(data_dir), **how_scored)
        MODES["evaluate"](config, StopRequest())
        scores = json.loads((out / "scores.json").read_text())["scores"]
        keys = ("object_f1/0.50", "object_f1/mean", "dice/disc")
        found[name] = [f"{scores[key]:.4f}" for key in keys]
    return found


def write_discs(data_dir: pathlib.Path, pictures: int, *, size: int = 96) -> None:
    """Writes `train/image` and `train/label`; labels hold the numbers of the discs, 0 outside."""
    for folder in ("image", "label"):
        (data_dir / "train" / folder).mkdir(parents=True)
    for seed in range(pictures):
        image, numbers = draw_discs(seed, size=size)
        images.write_png(data_dir / "train" / "image" / f"{seed}.png", image)
        images.write_png(data_dir / "train" / "label" / f"{seed}.png", numbers)


def draw_discs(seed: int, *, size: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """Returns a picture [size, size] uint8 of discs and their numbers, uint16, 0 outside.

    All but the first touch another: their middles are 0.85 to 1 times the sum of the radii apart.
    A pixel of two is of that in which it lies deeper.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    discs: list[tuple[float, float, float]] = []
    for _ in range(400):
        radius = rng.uniform(6, 11)
        if not discs:
            discs.append((size / 2, size / 2, radius))
            continue
        beside = discs[rng.integers(len(discs))]
        reach, angle = rng.uniform(0.85, 1) * (beside[2] + radius), rng.uniform(0, 2 * np.pi)
        middle = beside[0] + reach * np.cos(angle), beside[1] + reach * np.sin(angle)
        apart = [np.hypot(middle[0] - d[0], middle[1] - d[1]) / (radius + d[2]) for d in discs]
        if min(middle) > radius and max(middle) < size - radius and min(apart) >= 0.84:
            discs.append((*middle, radius))
    depth = np.stack([1 - np.hypot(x - left, y - top) / r for left, top, r in discs])
    numbers = np.where(depth.max(0) > 0, depth.argmax(0) + 1, 0)
    # Bright in the middle, dark at the rim, each disc with a light of its own.
    light = np.concatenate([[0], rng.uniform(90, 150, len(discs))])[numbers]
    image = 40 + light * (0.6 + 0.4 * np.sqrt(np.clip(depth.max(0), 0, 1)))
    image = cv2.GaussianBlur(image, (0, 0), 1) + rng.normal(0, 10, image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), numbers.astype(np.uint16)


if __name__ == "__main__":
    main()
