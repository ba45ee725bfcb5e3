"""Any number of replicas trains the same weights, whatever the model and whichever feature is on.

U-Nets are tried with all that this package trains them with; small models of many kinds with what
they have of their own. By default most features are tried on two replicas alone, and few of the
small models; `-m exhaustive` tries the others. `pytest -s` prints one line per comparison: what,
largest deviation, bound.

The bound of 1e-5 is one on rounding, and no network with ReLUs keeps it on all data: an activation
within rounding of zero passes its gradient in one run and not in the other, which AdamW turns into
1e-5 to 1e-3 of a weight. In ten steps that happens to every sixth seed, with batch norm to every
second, and to a permutation of the rows on one replica just as well. It does not to the seeds here,
with the kernels of oneDNN for AVX512 and for AVX2 (ONEDNN_MAX_CPU_ISA=AVX2) or without oneDNN.

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
from training import model_runs
from training.foreign_models import HALF as HALF_MODEL
from training.foreign_models import PROBLEMS
from training.model_runs import by_loop, cell, check, deviation

from unet_core import losses, training
from unet_core.errors import UserError
from unet_core.models.build import make_network
from unet_core.training import devices

ROWS = 16
STEPS = 10
BOUND = 1e-5
HALF_BOUND = 2.0**-11  # Of one rounding to float16.
PERMUTATIONS = 5
DECAY = 0.9


def cross_entropy(logits, batch):
    return losses.cross_entropy(batch[1], logits)


def class_weighted(logits, batch):
    return losses.cross_entropy(batch[1], logits, class_weights=[0.5, 1.0, 3.0])


def pixel_weighted(logits, batch):
    return losses.cross_entropy(batch[1], logits, pixel_weights=batch[2])


def batch_dice(logits, batch):
    return losses.soft_dice(batch[1], logits, batchwise=True)


def dice_of_background(logits, batch):
    dice = losses.soft_dice(batch[1], logits, classes=[0], batchwise=True)
    return losses.cross_entropy(batch[1], logits) + dice


def overlapping(logits, batch):
    # Of none, of the first, of the first and the second class.
    masks = tf.where(batch[1] == 2, tf.constant(3, tf.uint8), batch[1])
    entropy = losses.cross_entropy(masks, logits, overlapping=True)
    return entropy + losses.soft_dice(masks, logits, batchwise=True, overlapping=True)


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
    seed: int = 5
    network: dict[str, Any] = dataclasses.field(default_factory=dict)
    loop: dict[str, Any] = dataclasses.field(default_factory=dict)


FLOAT32 = {
    "plain": Feature(),
    "clipping": Feature(loop=dict(clip_norm=0.1)),
    "accumulation": Feature(loop=dict(micro_batches=4)),
    "batch norm": Feature(network=dict(normalization="batch")),
    "batch dice": Feature(loss=batch_dice),
    "pixel weights": Feature(loss=pixel_weighted, ignored=True),
    "class weights": Feature(loss=class_weighted),
    "overlapping classes": Feature(loss=overlapping, ignored=True, network=dict(heads="sigmoid")),
    "dropout": Feature(network=dict(dropout=0.3)),
    "adamw": Feature(optimizer=decaying_adamw),
    "nesterov": Feature(optimizer=nesterov),
    "averages": Feature(loop=dict(ema_decay=DECAY)),
    "together": Feature(
        loss=dice_of_background,
        optimizer=decaying_adamw,
        network=dict(dropout=0.3),
        loop=dict(clip_norm=1.0),
    ),
    "together with batch norm": Feature(
        loss=dice_of_background,
        optimizer=decaying_adamw,
        seed=10,
        network=dict(dropout=0.3, normalization="batch"),
        loop=dict(clip_norm=1.0),
    ),
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
    """Returns, for each permutation of the rows, what training with feature `name` leaves.

    That is what `copies_of_all` finds, and the last report.
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
        (report,) = loop.train(rows, until_step=STEPS, report_every_steps=STEPS)
        assert loop.step == STEPS
        found.append((copies_of_all(loop), report))
    return found


def first_of(copies):
    return [values[0] for values in copies]


def marks_of(name, replicas=2):
    """By default each kind of arithmetic is tried on two replicas, and two of them on four."""
    if replicas == 4:
        is_fast = name in ("accumulation", "together with batch norm")
    else:
        # The others are in "together with batch norm" or among the small models.
        is_fast = name not in ("class weights", "adamw", "nesterov", "averages", "together")
    return () if is_fast else pytest.mark.exhaustive


def on_two_and_four(names):
    for name in names:
        for replicas in (2, 4):
            marks = marks_of(name, replicas)
            yield pytest.param(name, replicas, id=f"{name}-{replicas}", marks=marks)


def those_that_change_the_weights():
    for name in sorted(set(FLOAT32) - {"plain", "accumulation", "averages"}):
        yield pytest.param(name, marks=marks_of(name))


class TestUNets:
    @pytest.mark.parametrize(("name", "replicas"), list(on_two_and_four(FLOAT32)))
    def test_replicas_train_the_weights_of_one(self, name, replicas):
        ((one, first),), ((many, second),) = train(name), train(name, replicas)
        check(f"{name}-{replicas}", deviation(many, first_of(one)), BOUND)
        assert second.loss == pytest.approx(first.loss, rel=1e-5)
        assert second.gradient_norm == pytest.approx(first.gradient_norm, rel=1e-3)

    @pytest.mark.parametrize(("name", "replicas"), list(on_two_and_four(HALF)))
    def test_half_precision_deviates_about_as_much_as_another_order_of_rows(self, name, replicas):
        (one, _), *permuted = train(name, permutations=(None, *range(PERMUTATIONS)))
        ((many, _),) = train(name, replicas)
        largest = max(deviation(copies, first_of(one)) for copies, _ in permuted)
        check(f"{name}-{replicas}", deviation(many, first_of(one)), 1.5 * largest)

    @pytest.mark.parametrize("replicas", [1, 2, 4])
    def test_four_micro_batches_train_the_weights_of_one_batch(self, replicas):
        ((whole, _),), ((summed, _),) = train("plain"), train("accumulation", replicas)
        check(f"accumulation-{replicas}", deviation(summed, first_of(whole)), BOUND)

    @pytest.mark.parametrize("name", list(those_that_change_the_weights()))
    def test_feature_trains_other_weights_than_none(self, name):
        ((plain, _),), ((one, _),) = train("plain"), train(name)
        assert deviation(one[:1], first_of(plain[:1])) > 2 * BOUND


# How small models are trained on two replicas.
WAYS = {
    "plain": model_runs.Feature(finite=False),
    "uneven": model_runs.Feature(shares=(2, 1)),
    "clip_norm": model_runs.Feature(loop=dict(clip_norm=0.3)),
    "micro_batches": model_runs.Feature(
        shares=(1,) * 4, rows=2 * model_runs.ROWS, loop=dict(micro_batches=2)
    ),
    "ema_decay": model_runs.Feature(loop=dict(ema_decay=DECAY)),
    "loss_scaling": model_runs.Feature(loop=dict(loss_scaling=True)),
}


@functools.cache
def on_one_replica(model, optimizer, rows, clip_norm):
    """Returns all variables, then their averages."""
    loop = dict(clip_norm=clip_norm, ema_decay=DECAY)
    way = model_runs.Feature(shares=(1,), rows=rows, loop=loop)
    return first_of(by_loop(PROBLEMS[model], optimizer, feature=way))


def cells():
    """Each model with each way to train, the optimizers taking turns along both."""
    for i, model in enumerate(PROBLEMS):
        for k, way in enumerate(WAYS):
            divides_twice = model == "weighted_activity"
            if way == "micro_batches" and (PROBLEMS[model].by_batch or divides_twice):
                continue
            optimizer = ("momentum", "adamw")[(i + k) % 2]
            yield cell(model, optimizer, way, fast=i % 3 == 0 and (i // 3) % 6 == k)


class TestModels:
    @pytest.mark.parametrize(("model", "optimizer", "way"), list(cells()))
    def test_two_replicas_train_the_weights_of_one(self, mirrored, model, optimizer, way):
        how = WAYS[way]
        expected = on_one_replica(model, optimizer, how.rows, how.loop.get("clip_norm"))
        found = by_loop(PROBLEMS[model], optimizer, mirrored(2), how)
        if way != "ema_decay":
            assert len(expected) > len(found)
            expected = expected[: len(found)]
        check(f"{model}-{optimizer}-{way}", deviation(found, expected), BOUND)

    def test_mean_beside_losses_of_the_model_cannot_be_summed_over_micro_batches(self):
        with pytest.raises(UserError, match=r"take `model\.losses` into"):
            by_loop(PROBLEMS["weighted_activity"], "momentum", feature=WAYS["micro_batches"])

    @pytest.mark.parametrize("optimizer", [cell("momentum", fast=True), cell("adamw")])
    @pytest.mark.parametrize("length", ["endless", "finite"])
    def test_float16_rounds_like_one_that_takes_the_same_halves(self, mirrored, optimizer, length):
        # Each replica rounds the gradient of its rows to 16 bits. One replica that takes the same
        # halves of the rows one after the other does so too, and is equal; that of the whole batch
        # is rounded once.
        plain = model_runs.Feature(finite=length == "finite", loop=dict(loss_scaling=True))
        halves = dataclasses.replace(plain, loop=dict(loss_scaling=True, micro_batches=2))
        (same, whole) = (
            first_of(by_loop(HALF_MODEL, optimizer, feature=way))
            for way in (halves, dataclasses.replace(plain, shares=(1,)))
        )
        found = by_loop(HALF_MODEL, optimizer, mirrored(2), plain)
        name = f"float16-{optimizer}-{length}"
        check(name, deviation(found, same), BOUND)
        check(name, deviation(found, whole), HALF_BOUND)
