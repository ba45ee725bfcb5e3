"""Augmented 256x256 grey pairs per second, beside Keras and albumentations; the time waited.

    pip install '.[benchmarks]'
    python benchmarks/input_pipeline.py

All draw from the same slices in one process, in turn, with like transforms: any rotation, scale
0.8-1.25, flips, elastic deformation, contrast, brightness, gamma, noise and blur (Keras' generator
can only rotate, shift, shear, zoom and flip). Rows that begin with the name of a recipe follow that
one; RGB images are the slices thrice. The second table shows where the time of one thread goes. The
last line trains a network of about 20 ms per step on this pipeline and shows the share of the time
that it waited for data.
"""

from __future__ import annotations

import argparse
import functools
import os
import pathlib
import statistics
import sys
import threading
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import cv2
import keras
import numpy as np
import tensorflow as tf
from rounds import machine, median_ratio, seconds_per_round

from unet_core import losses, training
from unet_core.data import pipeline
from unet_core.data.augment import FILL_MODES, Augmenter, Recipe
from unet_core.data.reader import Pair
from unet_core.data.samples import Sample, Source
from unet_core.data.stream import SampleStream, SamplingConfig
from unet_core.data.synthetic import Volume
from unet_core.drawing import tables
from unet_core.models.build import make_network
from unet_core.runs.dataset import DataSet
from unet_core.settings import RunConfig

# That of membrane.flags.
RECIPE = Recipe(
    rotation_degrees=180,
    scale=(0.8, 1.25),
    flips=True,
    elastic_grid=5,
    elastic_px=6,
    contrast=(0.75, 1.25),
    brightness=0.15,
    gamma=(0.7, 1.4),
    noise=0.06,
    noise_share=0.3,
    blur_share=0.2,
)
RECIPES = {
    "membrane": RECIPE,
    "paper": Recipe.preset("paper"),
    "nnunet": Recipe.preset("nnunet"),
}


class InMemory:
    """Pairs in the place of a `Reader`, all decoded, as its cache holds them after one epoch."""

    channels, dtype, make_weights = 1, np.dtype(np.uint8), None

    def __init__(self, pairs: list[Pair]):
        source = Source(pathlib.Path())
        self.pairs = {Sample(pair.name, source, (source,)): pair for pair in pairs}

    def __call__(self, sample: Sample) -> Pair:
        return self.pairs[sample]

    def weights(self, _: Sample) -> None:
        return None


def load_pairs(data_dir: str | None) -> list[Pair]:
    """Returns the pairs of `data_dir`, or 24 synthetic ones of 512x512."""
    if data_dir:
        data = DataSet.open(
            RunConfig.of(data_dir=data_dir, classes="0:membrane,255:cell").data,
            progress=lambda _: iter,
        )
        return [data.read(sample) for sample in data.samples]
    volume = Volume(seed=0)
    drawn = [volume.slice_at(z) for z in range(24)]
    return [Pair(str(z), image, mask // 255) for z, (image, mask) in enumerate(drawn)]


def drawing_of(recipe: Recipe, size: int) -> SamplingConfig:
    return SamplingConfig(seed=0, crop_size=size, recipe=recipe)


def through_tf_data(
    read: InMemory, size: int, pairs: int, recipe: Recipe = RECIPE
) -> Callable[[], None]:
    dataset = pipeline.make_train_dataset(
        list(read.pairs),
        read,
        drawing_of(recipe, size),
        0,
        tf.distribute.InputContext(),
        global_batch_size=4,
    )

    def run():
        # Consumed in the graph, as in training; a new iterator each round, because one left open
        # would fill its buffers while others are timed.
        dataset.take(pairs // 4).reduce(np.int64(0), lambda count, *_: count + 1).numpy()

    return run


def bare_threads(read: InMemory, size: int, pairs: int, threads: int) -> Callable[[], None]:
    def work(number):
        stream = SampleStream(list(read.pairs), read, drawing_of(RECIPE, size))
        image, mask = np.empty((2, size, size), np.uint8)
        for index in range(number, pairs, threads):
            stream.write(index, image, mask)

    return lambda: in_threads(work, threads)


def bare_augmenters(
    images: list[np.ndarray],
    masks: list[np.ndarray],
    size: int,
    pairs: int,
    threads: int,
    recipe: Recipe,
) -> Callable[[], None]:
    def work(number):
        augmenter = augmenter_of(images[0], size, recipe)
        image_out = np.empty((size, size, *images[0].shape[2:]), np.uint8)
        mask_out = np.empty((size, size), np.uint8)
        for index in range(number, pairs, threads):
            which = index % len(images)
            augmenter(generator(index), images[which], masks[which], image_out, mask_out)

    return lambda: in_threads(work, threads)


def in_threads(work: Callable[[int], None], threads: int) -> None:
    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def augmenter_of(image: np.ndarray, size: int, recipe: Recipe) -> Augmenter:
    return Augmenter(size, recipe, channels=image.shape[2] if image.ndim == 3 else 1)


def generator(index: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[0, index]))


def stage_times(
    images: list[np.ndarray], masks: list[np.ndarray], size: int, pairs: int, recipe: Recipe
) -> dict[str, float]:
    """Returns the mean microseconds of one pair by stage, on one thread."""
    augmenter = augmenter_of(images[0], size, recipe)
    image_out = np.empty((size, size, *images[0].shape[2:]), np.uint8)
    mask_out = np.empty((size, size), np.uint8)
    border = FILL_MODES[recipe.fill_mode]
    marks = np.empty((pairs, 6))
    for index in range(pairs):
        image, mask = images[index % len(images)], masks[index % len(images)]
        marks[index, 0] = time.perf_counter()
        rng = generator(index)
        marks[index, 1] = time.perf_counter()
        x, y = augmenter.draw_map(rng, mask.shape)
        marks[index, 2] = time.perf_counter()
        augmenter._sample(image, x, y, image_out, recipe.cval)
        marks[index, 3] = time.perf_counter()
        near = augmenter._copied(mask)
        cv2.remap(near, x, y, cv2.INTER_NEAREST, mask_out, borderMode=border)
        marks[index, 4] = time.perf_counter()
        # Another image, which is no more in the cache than that of the stages was.
        other = (index + len(images) // 2) % pairs
        image, mask = images[other % len(images)], masks[other % len(images)]
        augmenter(generator(other), image, mask, image_out, mask_out)
        marks[index, 5] = time.perf_counter()
    # Medians would hide the transforms of few samples.
    seeding, drawing, image_remap, mask_remap, whole = np.diff(marks).mean(axis=0) * 1e6
    known = seeding + drawing + image_remap + mask_remap
    return {
        "generator": seeding,
        "map": drawing,
        "image": image_remap,
        "mask": mask_remap,
        "intensities": whole - known,
        "whole": whole,
    }


def keras_generator(samples: list[Pair], size: int, pairs: int) -> Callable[[], None]:
    generator = tf.keras.preprocessing.image.ImageDataGenerator
    settings = dict(
        rotation_range=180,
        width_shift_range=0.1,
        height_shift_range=0.1,
        shear_range=5,
        zoom_range=(0.8, 1.25),
        horizontal_flip=True,
        vertical_flip=True,
        fill_mode="reflect",
    )
    images = np.stack([s.image[:size, :size, None] for s in samples]).astype(np.float32)
    masks = np.stack([s.mask[:size, :size, None] for s in samples]).astype(np.float32)
    flows = [
        generator(**settings, interpolation_order=order).flow(x, batch_size=4, seed=0)
        for x, order in ((images, 1), (masks, 0))
    ]

    def run():
        for _ in range(pairs // 4):
            for flow in flows:
                next(flow)

    return run


def albumentations_thread(samples: list[Pair], size: int, pairs: int) -> Callable[[], None]:
    import albumentations as A

    transform = A.Compose(
        [
            A.RandomCrop(size, size),
            A.HorizontalFlip(p=0.5),
            A.VerticalFlip(p=0.5),
            A.Affine(
                scale=(0.8, 1.25), rotate=(-180, 180), border_mode=cv2.BORDER_REFLECT_101, p=1
            ),
            # By its blur of 20 px a displacement of alpha px shrinks to about alpha / 300: 6 px.
            A.ElasticTransform(alpha=1800, sigma=20, p=1),
            A.RandomBrightnessContrast(0.15, 0.25, p=1),
            A.RandomGamma((70, 140), p=1),
            A.GaussNoise(std_range=(0.0, 0.06), p=0.3),
            A.GaussianBlur(sigma_limit=(0.5, 1.5), p=0.2),
        ]
    )

    def run():
        for number in range(pairs):
            sample = samples[number % len(samples)]
            transform(image=sample.image, mask=sample.mask)

    return run


def data_wait(read: InMemory, size: int, steps: int) -> tuple[float, float]:
    """Returns (milliseconds per step, share of the time waited for data) of a small network."""
    model = make_network(classes=2, depth=1, base_filters=2)
    loop = training.Loop(
        model,
        keras.optimizers.AdamW(1e-3),
        loss=lambda logits, batch: losses.cross_entropy(batch[1], logits),
    )
    dataset = functools.partial(
        pipeline.make_train_dataset,
        list(read.pairs),
        read,
        drawing_of(RECIPE, size),
        global_batch_size=4,
    )
    *_, report = loop.train(dataset, until_step=2 * steps, report_every_steps=steps)
    return report.step_ms, report.data_wait_share


def own_variants(
    read: InMemory,
    images: dict[str, list[np.ndarray]],
    masks: list[np.ndarray],
    args: argparse.Namespace,
) -> dict[str, Callable[[], None]]:
    variants = {
        "unet_core, through tf.data": through_tf_data(read, args.size, args.pairs),
        "unet_core, two bare threads": bare_threads(read, args.size, args.pairs, 2),
    }
    for name in ("paper", "nnunet"):
        variants[f"{name}, grey, through tf.data"] = through_tf_data(
            read, args.size, args.pairs, RECIPES[name]
        )
    for name, recipe in RECIPES.items():
        for kind in images:
            variants[f"{name}, {kind}, two bare threads"] = bare_augmenters(
                images[kind], masks, args.size, args.pairs, 2, recipe
            )
    return variants


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", help="a data folder; by default slices are drawn")
    parser.add_argument("--size", type=int, default=256, help="pixels a side of a crop")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=2000, help="pairs per round")
    parser.add_argument("--peer_pairs", type=int, default=200, help="pairs per round of the peers")
    parser.add_argument("--wait_steps", type=int, default=300)
    args = parser.parse_args(argv)
    cv2.setNumThreads(1)
    samples = load_pairs(args.data_dir)
    read = InMemory(samples)
    masks = [sample.mask for sample in samples]
    images = {
        "grey": [sample.image for sample in samples],
        "RGB": [np.dstack([sample.image] * 3) for sample in samples],
    }
    variants = own_variants(read, images, masks, args)
    pairs = dict.fromkeys(variants, args.pairs)
    try:
        variants["Keras ImageDataGenerator"] = keras_generator(samples, args.size, args.peer_pairs)
        variants["albumentations, one thread"] = albumentations_thread(
            samples, args.size, args.peer_pairs
        )
    except ImportError as error:
        print(f"{error}. Left out; pip install '.[benchmarks]' brings all peers.", file=sys.stderr)
    seconds = seconds_per_round(variants, rounds=args.rounds)
    per_pair = {
        name: [s / pairs.get(name, args.peer_pairs) for s in times]
        for name, times in seconds.items()
    }
    peer = per_pair.get("Keras ImageDataGenerator")
    rows = [
        [
            name,
            f"{1 / statistics.median(times):.0f}",
            f"{1 / max(times):.0f}-{1 / min(times):.0f}",
            f"{median_ratio(peer, times):.1f}" if peer else "",
        ]
        for name, times in per_pair.items()
    ]
    print(machine())
    print(tables.table(["pipeline", "pairs/s", "range", "x ImageDataGenerator"], rows))
    del variants
    stages = {
        f"{name}, {kind}": stage_times(images[kind], masks, args.size, args.pairs, recipe)
        for name, recipe in RECIPES.items()
        for kind in images
    }
    header = ["us a pair, one thread", *next(iter(stages.values()))]
    rows = [[name, *(f"{us:.1f}" for us in times.values())] for name, times in stages.items()]
    print(f"\n{tables.table(header, rows)}")
    step_ms, share = data_wait(read, args.size, args.wait_steps)
    print(f"\na network of {step_ms:.1f} ms per step waits for data {share:.1%} of the time")


if __name__ == "__main__":
    main()
