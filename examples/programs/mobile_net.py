"""A network of `keras.applications` on this project's data pipeline: augmented crops and masks.

Synthetic micrographs are written as PNG files, found and decoded, and cut into augmented crops by
`unet_core.data`. The encoder is MobileNetV2 down to an eighth of the size, with random weights.
"""

import functools
import tempfile

import keras
from keras import layers

from unet_core import losses, training
from unet_core.data import pipeline, synthetic
from unet_core.data.augment import Recipe
from unet_core.data.stream import SamplingConfig
from unet_core.runs.dataset import DataSet
from unet_core.settings import RunConfig

CROP = 96


def make_dataset(folder):
    """Writes slices into `folder` and returns the dataset function of batches of four crops."""
    synthetic.write_dataset(f"{folder}/slices", train_slices=8, test_slices=0, size=192)
    data = DataSet.open(
        RunConfig.of(data_dir=f"{folder}/slices", classes="0:membrane,255:cell").data,
        progress=lambda _: iter,
    )
    recipe = Recipe(rotation_degrees=180, flips=True, noise=0.06)
    sampling = SamplingConfig(seed=0, crop_size=CROP, recipe=recipe)
    return functools.partial(
        pipeline.make_train_dataset, data.samples, data.read, sampling, global_batch_size=4
    )


def make_model():
    network = keras.applications.MobileNetV2((CROP, CROP, 1), 0.5, weights=None, include_top=False)
    eighth = keras.Model(network.input, network.get_layer("block_6_expand_relu").output)
    images = keras.Input((CROP, CROP, 1))
    features = eighth(layers.Rescaling(1 / 127.5, -1)(images))
    logits = layers.Conv2D(1, 1)(features)
    return keras.Model(images, layers.UpSampling2D(8, interpolation="bilinear")(logits))


def cross_entropy(logits, batch):
    return losses.cross_entropy(batch.mask, logits)


def main(steps=40, every=10, show=print):
    """Trains the model and returns it."""
    keras.utils.set_random_seed(0)
    model = make_model()
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_dataset(folder)
        # training
        loop = training.Loop(model, keras.optimizers.Adam(1e-3), loss=cross_entropy)
        for report in loop.train(dataset, until_step=steps, report_every_steps=every):
            waited = report.data_wait_share
            show(f"step {report.step}: loss {report.loss:.3f}, waited for data {waited:.1%}")
        # end of training
    return model


if __name__ == "__main__":
    main()
