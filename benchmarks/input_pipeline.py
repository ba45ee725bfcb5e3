"""Augmented 256x256 grey pairs per second, beside Keras and albumentations; the time waited.

    pip install '.[benchmarks]'
    python benchmarks/input_pipeline.py

All draw from the same slices in one process, in turn, with like transforms: any rotation, scale
0.8-1.25, flips, elastic deformation, contrast, brightness, gamma, noise and blur (Keras' generator
can only rotate, shift, shear, zoom and flip). The last lines train a network of about 20 ms per
step on this pipeline and show the share of the time that it waited for data.
"""

from __future__ import annotations

import argparse
import functools
import os
import pathlib
import statistics
import sys
import threading
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import cv2
import keras
import numpy as np
import tensorflow as tf
from rounds import machine, median_ratio, seconds_per_round

from unet_core import losses, training
from unet_core.data import folders, pipeline
from unet_core.data.augment import Recipe
from unet_core.data.classes import ClassMap
from unet_core.data.folders import Sample
from unet_core.data.stream import SampleStream
from unet_core.data.synthetic import Volume
from unet_core.models.unet import make_unet
from unet_core.reports import tables

CLASSES = ClassMap.parse("0:membrane,255:cell")
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


def load_samples(data_dir: str | None) -> list[Sample]:
    """Returns the pairs of `data_dir`, or 24 synthetic ones of 512x512."""
    if data_dir:
        return list(folders.load(data_dir, CLASSES).samples)
    volume = Volume(seed=0)
    drawn = [volume.slice_at(z) for z in range(24)]
    return [Sample(str(z), image, CLASSES.ids(mask)) for z, (image, mask) in enumerate(drawn)]


def through_tf_data(samples: list[Sample], size: int, pairs: int) -> Callable[[], None]:
    dataset = pipeline.make_train_dataset(
        samples,
        0,
        tf.distribute.InputContext(),
        seed=0,
        crop_size=size,
        recipe=RECIPE,
        global_batch_size=4,
    )

    def run():
        # Consumed in the graph, as in training; a new iterator each round, because one left open
        # would fill its buffers while others are timed.
        dataset.take(pairs // 4).reduce(np.int64(0), lambda count, *_: count + 1).numpy()

    return run


def bare_threads(samples: list[Sample], size: int, pairs: int, threads: int) -> Callable[[], None]:
    def work(number):
        stream = SampleStream(samples, seed=0, crop_size=size, recipe=RECIPE)
        image, mask = np.empty((2, size, size), np.uint8)
        for index in range(number, pairs, threads):
            stream.write(index, image, mask)

    def run():
        workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    return run


def keras_generator(samples: list[Sample], size: int, pairs: int) -> Callable[[], None]:
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


def albumentations_thread(samples: list[Sample], size: int, pairs: int) -> Callable[[], None]:
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


def data_wait(samples: list[Sample], size: int, steps: int) -> tuple[float, float]:
    """Returns (milliseconds per step, share of the time waited for data) of a small network."""
    model = make_unet(classes=2, depth=1, base_filters=2)
    loop = training.Loop(
        model,
        keras.optimizers.AdamW(1e-3),
        loss=lambda logits, batch: losses.cross_entropy(batch[1], logits),
    )
    dataset = functools.partial(
        pipeline.make_train_dataset,
        samples,
        seed=0,
        crop_size=size,
        recipe=RECIPE,
        global_batch_size=4,
    )
    *_, report = loop.train(dataset, until_step=2 * steps, report_every_steps=steps)
    return report.step_ms, report.data_wait_share


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", help="a data folder; by default slices are drawn")
    parser.add_argument("--size", type=int, default=256, help="pixels a side of a crop")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--pairs", type=int, default=8000, help="pairs per round")
    parser.add_argument("--peer_pairs", type=int, default=200, help="pairs per round of the peers")
    parser.add_argument("--wait_steps", type=int, default=300)
    args = parser.parse_args(argv)
    cv2.setNumThreads(1)
    samples = load_samples(args.data_dir)
    pairs = {"unet_core, through tf.data": args.pairs, "unet_core, two bare threads": args.pairs}
    try:
        variants = {
            "unet_core, through tf.data": through_tf_data(samples, args.size, args.pairs),
            "unet_core, two bare threads": bare_threads(samples, args.size, args.pairs, 2),
            "Keras ImageDataGenerator": keras_generator(samples, args.size, args.peer_pairs),
            "albumentations, one thread": albumentations_thread(
                samples, args.size, args.peer_pairs
            ),
        }
    except ImportError as error:
        print(f"{error}. The peers come with: pip install '.[benchmarks]'", file=sys.stderr)
        sys.exit(2)
    seconds = seconds_per_round(variants, rounds=args.rounds)
    per_pair = {
        name: [s / pairs.get(name, args.peer_pairs) for s in times]
        for name, times in seconds.items()
    }
    rows = [
        [
            name,
            f"{1 / statistics.median(times):.0f}",
            f"{1 / max(times):.0f}-{1 / min(times):.0f}",
            f"{median_ratio(per_pair['Keras ImageDataGenerator'], times):.1f}",
        ]
        for name, times in per_pair.items()
    ]
    print(machine())
    print(tables.table(["pipeline", "pairs/s", "range", "x ImageDataGenerator"], rows))
    del variants
    step_ms, share = data_wait(samples, args.size, args.wait_steps)
    print(f"\na network of {step_ms:.1f} ms per step waits for data {share:.1%} of the time")


if __name__ == "__main__":
    main()
