"""Any number of replicas trains the same weights, whichever feature is on.

`pytest -s` prints one line per comparison: feature, replicas, largest deviation, bound.

The bound of 1e-5 is one on rounding, and no network with ReLUs keeps it on all data: an activation
within rounding of zero passes its gradient in one run and not in the other, which AdamW turns into
1e-5 to 1e-3 of a weight. In ten steps that happens to every sixth seed, with batch norm to every
second, and to a permutation of the rows on one replica just as well. It does not to the seed here.

The largest of five deviations is one that a sixth of the same kind exceeds one time in six, on one
processor or another; the bound of the 16-bit types is one and a half times that.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from unet_core import losses, training
from unet_core.models.build import make_network
from unet_core.training import devices

ROWS = 16
STEPS = 10
BOUND = 1e-5
PERMUTATIONS = 5


def cross_entropy(logits, batch):
    return losses.cross_entropy(batch[1], logits)


def class_weighted(logits, batch):
    return losses.cross_entropy(batch[1], logits, class_weights=[0.5, 1.0, 3.0])


def pixel_weighted(logits, batch):
    return losses.cross_entropy(batch[1], logits, pixel_weights=batch[2])


def batch_dice(logits, batch):
    return losses.soft_dice(batch[1], logits, batchwise=True)


def adamw():
    return keras.optimizers.AdamW(1e-3, epsilon=1e-5)


def decaying_adamw():
    return keras.optimizers.AdamW(1e-3, epsilon=1e-5, weight_decay=1e-2)


def nesterov():
    return keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True)


@dataclasses.dataclass(frozen=True)
class Feature:
    loss: Callable = cross_entropy
    optimizer: Callable = adamw
    ignored: bool = False
    seed: int = 73
    network: dict[str, Any] = dataclasses.field(default_factory=dict)
    loop: dict[str, Any] = dataclasses.field(default_factory=dict)


FLOAT32 = {
    "plain": Feature(),
    "clipping": Feature(loop=dict(clip_norm=0.1)),
    "accumulation": Feature(loop=dict(micro_batches=4)),
    "batch norm": Feature(network=dict(batch_norm=True)),
    "batch dice": Feature(loss=batch_dice),
    "pixel weights": Feature(loss=pixel_weighted, ignored=True),
    "class weights": Feature(loss=class_weighted),
    "dropout": Feature(network=dict(dropout=0.3)),
    "adamw": Feature(optimizer=decaying_adamw),
    "nesterov": Feature(optimizer=nesterov),
    "averages": Feature(loop=dict(ema_decay=0.9)),
}
HALF = {
    "bfloat16": Feature(seed=10, network=dict(precision="bfloat16")),
    "float16": Feature(seed=10, network=dict(precision="float16"), loop=dict(loss_scaling=True)),
}
FEATURES = FLOAT32 | HALF


def make_examples(feature, step):
    """Returns images, masks of three classes and pixel weights of global batch `step`.

    Rows differ in brightness, contrast, classes, weights and share of ignored pixels, so that a
    replica's share is unlike the whole.
    """
    rng = np.random.default_rng([feature.seed, step])
    brightness, contrast, balance, weight, hidden = rng.random((5, ROWS, 1, 1))
    noise = rng.standard_normal((ROWS, 16, 16))
    images = np.clip(60 + 140 * brightness + (5 + 50 * contrast) * noise, 0, 255)
    masks = np.digitize(noise + balance, [0.0, 1.0]).astype(np.uint8)
    if feature.ignored:
        masks[rng.random(masks.shape) < 0.8 * hidden] = losses.IGNORED
    weights = (0.1 + 2 * weight) * rng.random(masks.shape)
    return images[..., None].astype(np.uint8), masks, weights.astype(np.float32)


def dataset(start_step, context, *, feature, permutation):
    """A dataset callable: contiguous rows for each micro-batch, and of those for each replica."""
    batches = []
    for step in range(start_step, STEPS):
        rows = np.arange(ROWS)
        if permutation is not None:
            rows = np.random.default_rng([permutation, step]).permutation(ROWS)
        batches.append([array[rows] for array in make_examples(feature, step)])
    columns = tuple(np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    share = ROWS // feature.loop.get("micro_batches", 1) // context.num_replicas_in_sync
    return tf.data.Dataset.from_tensor_slices(columns).batch(share, drop_remainder=True)


def copies_of_all(loop):
    """Returns of each model variable and average the values on all replicas, [replicas, ...]."""
    averages = [v for name, v in loop.state.items() if name.startswith("average_")]
    variables = [variable.value for variable in loop.model.variables] + averages
    return [
        np.stack([copy.numpy() for copy in loop.strategy.experimental_local_results(variable)])
        for variable in variables
    ]


@functools.cache
def train(name, replicas=1, permutations=(None,)):
    """Returns, for each permutation of the rows, what `copies_of_all` finds after training with
    feature `name`.
    """
    feature = FEATURES[name]
    strategy = tf.distribute.get_strategy()
    if replicas > 1:
        strategy = devices.make_strategy("mirrored", range(replicas))
    with strategy.scope():
        model = make_network(classes=3, depth=2, base_filters=4, **feature.network)
        optimizer = feature.optimizer()
    loop = training.Loop(model, optimizer, loss=feature.loss, strategy=strategy, **feature.loop)
    everything = [*model.variables, *optimizer.variables, *loop.state.values()]
    beginning = [variable.numpy() for variable in everything]
    found = []
    for permutation in permutations:
        for variable, value in zip(everything, beginning, strict=True):
            variable.assign(value)
        rows = functools.partial(dataset, feature=feature, permutation=permutation)
        list(loop.train(rows, until_step=STEPS, report_every_steps=STEPS))
        assert loop.step == STEPS
        found.append(copies_of_all(loop))
    return found


def deviation(copies, reference):
    """Returns the largest difference of any variable on any replica from the first replica of
    `reference`.
    """
    return max(
        np.abs(a.astype(np.float64) - b[0].astype(np.float64)).max()
        for a, b in zip(copies, reference, strict=True)
    )


def check(name, replicas, found, bound):
    print(f"\n{name:<16} {replicas} replicas  deviation {found:.2e}  bound {bound:.2e}", end=" ")
    assert found <= bound


class TestReplicas:
    @pytest.mark.parametrize("replicas", [2, 4])
    @pytest.mark.parametrize("name", FLOAT32)
    def test_weights_equal_those_of_one_replica(self, name, replicas):
        (one,), (many,) = train(name), train(name, replicas)
        check(name, replicas, deviation(many, one), BOUND)

    @pytest.mark.parametrize("replicas", [2, 4])
    @pytest.mark.parametrize("name", HALF)
    def test_half_precision_deviates_about_as_much_as_another_order_of_rows(self, name, replicas):
        one, *permuted = train(name, permutations=(None, *range(PERMUTATIONS)))
        (many,) = train(name, replicas)
        largest = max(deviation(p, one) for p in permuted)
        check(name, replicas, deviation(many, one), 1.5 * largest)


class TestAccumulation:
    @pytest.mark.parametrize("replicas", [1, 2, 4])
    def test_four_micro_batches_train_the_weights_of_one_batch(self, replicas):
        (whole,), (summed,) = train("plain"), train("accumulation", replicas)
        check("K=4 against K=1", replicas, deviation(summed, whole), BOUND)


class TestFeatures:
    @pytest.mark.parametrize("name", sorted(set(FLOAT32) - {"plain", "accumulation", "averages"}))
    def test_feature_trains_other_weights_than_none(self, name):
        (plain,), (one,) = train("plain"), train(name)
        assert deviation(one[:1], plain[:1]) > 2 * BOUND
