"""The loop trains the weights that `model.fit` does, whatever the model and the optimizer, and two
replicas those of one.

By default each model and each optimizer is tried once; `-m slow` tries all of them with all.
`pytest -s` prints one line per comparison: what, largest deviation, bound.

A deviation is relative to max(1, |weight|).
"""

import dataclasses
import functools
import itertools
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from training.foreign_models import HALF, OPTIMIZERS, PROBLEMS

from unet_core import training
from unet_core.errors import UserError

ROWS = 12
STEPS = 5
FIT_BOUND = 1e-6
REPLICA_BOUND = 1e-5
HALF_BOUND = 2.0**-11  # Of one rounding to float16.
DECAY = 0.9


@dataclasses.dataclass(frozen=True)
class Feature:
    """A way to train that leads to the weights of one replica.

    Attributes:
        shares: How many rows each replica has of each micro-batch, to one another.
        finite: Whether the dataset ends, so that the loop looks for replicas without a batch.
        rows: Of a global batch.
        loop: Arguments of the loop.
    """

    shares: tuple[int, ...] = (1, 1)
    finite: bool = True
    rows: int = ROWS
    loop: dict[str, Any] = dataclasses.field(default_factory=dict)


FEATURES = {
    "plain": Feature(finite=False),
    "uneven": Feature(shares=(2, 1)),
    "clip_norm": Feature(loop=dict(clip_norm=0.3)),
    "micro_batches": Feature(shares=(1,) * 4, rows=2 * ROWS, loop=dict(micro_batches=2)),
    "ema_decay": Feature(loop=dict(ema_decay=DECAY)),
    "loss_scaling": Feature(loop=dict(loss_scaling=True)),
}


def dataset(make_batch, *, rows=ROWS, shares=(1,), finite=True):
    """Returns a dataset of the global batches of all steps, in contiguous shares of their rows.

    Args:
        make_batch: (step, rows) -> batch.
        rows: Of a global batch.
        shares: How many rows each micro-batch of each replica has, to one another.
        finite: Whether it ends after the last step, or is repeated.
    """
    ends = [rows * total // sum(shares) for total in itertools.accumulate(shares)]
    batches = []
    for step in range(STEPS):
        whole = make_batch(step, rows)
        for start, end in zip([0, *ends], ends, strict=False):
            share = slice(start, end)
            batches.append(tf.nest.map_structure(lambda a, s=share: a[s], whole))
    if len(set(shares)) == 1:
        columns = tf.nest.map_structure(lambda *arrays: np.stack(arrays), *batches)
        made = tf.data.Dataset.from_tensor_slices(columns)
    else:
        signature = tf.nest.map_structure(
            lambda a: tf.TensorSpec([None, *a.shape[1:]], a.dtype), batches[0]
        )
        made = tf.data.Dataset.from_generator(lambda: iter(batches), output_signature=signature)
    return made if finite else made.repeat()


def make_optimizer(name, problem):
    if problem.weight_decay is None:
        return OPTIMIZERS[name]()
    return OPTIMIZERS[name](weight_decay=problem.weight_decay)


def values(variables):
    return [variable.numpy() for variable in variables]


def by_fit(problem, optimizer):
    """Returns all variables as Keras trains them, and how far each of the trainable ones went."""
    model = problem.make_reference()
    model(problem.make_batch(0, ROWS)[0])
    before = values(model.trainable_variables)
    model.compile(make_optimizer(optimizer, problem), jit_compile=False, **problem.compiled)
    model.fit(dataset(problem.make_batch), epochs=1, shuffle=False, verbose=0)
    after = values(model.trainable_variables)
    moved = [np.abs(a - b).max() for a, b in zip(after, before, strict=True)]
    return values(model.variables), moved


def by_loop(problem, optimizer, strategy=None, feature=None):
    """Returns all variables and then the averages as the loop trains them, each [replicas, ...]."""
    strategy = strategy or tf.distribute.get_strategy()
    feature = feature or Feature(shares=(1,))
    with strategy.scope():
        model, made = problem.make(), make_optimizer(optimizer, problem)
    loop = training.Loop(model, made, loss=problem.loss, strategy=strategy, **feature.loop)
    batches = dataset(
        problem.make_batch, rows=feature.rows, shares=feature.shares, finite=feature.finite
    )
    reports = list(loop.train(lambda step, _: batches.skip(step), until_step=STEPS))
    assert (loop.step, reports[-1].skipped_steps) == (STEPS, 0)
    averages = [v for name, v in loop.state.items() if name.startswith("average_")]
    variables = [*(variable.value for variable in model.variables), *averages]
    return [np.stack(values(strategy.experimental_local_results(v))) for v in variables]


@functools.cache
def on_one_replica(model, optimizer, rows=ROWS, clip_norm=None):
    """Returns all variables, then their averages."""
    loop = dict(clip_norm=clip_norm, ema_decay=DECAY)
    feature = Feature(shares=(1,), rows=rows, loop=loop)
    return [copies[0] for copies in by_loop(PROBLEMS[model], optimizer, feature=feature)]


def deviation(found, expected):
    """Returns the largest deviation of any variable on any replica from `expected`."""
    largest = 0.0
    for one, other in zip(found, expected, strict=True):
        assert one.shape[1:] == other.shape
        other = other.astype(np.float64)
        relative = np.abs(one - other) / np.maximum(1, np.abs(other))
        largest = np.maximum(largest, relative.max(initial=0))  # NaN stays NaN.
    return largest


def check(what, found, bound):
    print(f"\n{what:<42} deviation {found:.2e}  bound {bound:.2e}", end=" ")
    assert found <= bound


def cell(*names, fast=False):
    """Returns a parameter that reads as its names, slow unless it is said to be fast."""
    marks = [] if fast else [pytest.mark.slow]
    return pytest.param(*names, id="-".join(names), marks=marks)


def fit_cells():
    for i, model in enumerate(PROBLEMS):
        for j, optimizer in enumerate(OPTIMIZERS):
            # A diagonal; there is one optimizer less.
            yield cell(model, optimizer, fast=i % len(OPTIMIZERS) == j)


def replica_cells():
    for i, model in enumerate(PROBLEMS):
        for j, optimizer in enumerate(("momentum", "adamw")):
            for k, feature in enumerate(FEATURES):
                divides_twice = model == "weighted_activity"
                if feature == "micro_batches" and (PROBLEMS[model].by_batch or divides_twice):
                    continue
                fast = i % 3 == 0 and (i // 3) % 6 == k and i % 2 == j
                yield cell(model, optimizer, feature, fast=fast)


class TestAgainstFit:
    @pytest.mark.parametrize(("model", "optimizer"), list(fit_cells()))
    def test_trains_the_weights_that_keras_does(self, model, optimizer):
        problem = PROBLEMS[model]
        expected, moved = by_fit(problem, optimizer)
        found = by_loop(problem, optimizer)
        check(f"{model}-{optimizer}", deviation(found, expected), FIT_BOUND)
        assert min(moved) > 100 * FIT_BOUND


class TestFrozen:
    @pytest.mark.parametrize("optimizer", [cell(o, fast=o == "adamw") for o in OPTIMIZERS])
    def test_variables_keep_their_bits_though_the_others_decay(self, optimizer):
        problem = PROBLEMS["frozen"]
        model = problem.make()
        before = dict(zip((v.path for v in model.variables), values(model.variables), strict=True))
        found = by_loop(problem, optimizer)
        trained = {variable.path for variable in model.trainable_variables}
        assert 0 < len(trained) < len(before)
        for (path, value), (copy,) in zip(before.items(), found, strict=True):
            assert np.array_equal(copy, value) == (path not in trained), path


class TestReplicas:
    @pytest.mark.parametrize(("model", "optimizer", "feature"), list(replica_cells()))
    def test_two_train_the_weights_of_one(self, mirrored, model, optimizer, feature):
        how = FEATURES[feature]
        expected = on_one_replica(model, optimizer, how.rows, how.loop.get("clip_norm"))
        found = by_loop(PROBLEMS[model], optimizer, mirrored(2), how)
        if feature != "ema_decay":
            assert len(expected) > len(found)
            expected = expected[: len(found)]
        check(f"{model}-{optimizer}-{feature}", deviation(found, expected), REPLICA_BOUND)

    def test_mean_beside_losses_of_the_model_cannot_be_summed_over_micro_batches(self):
        how = FEATURES["micro_batches"]
        with pytest.raises(UserError, match=r"take `model\.losses` into"):
            by_loop(PROBLEMS["weighted_activity"], "momentum", feature=how)

    @pytest.mark.parametrize(
        ("optimizer", "length"),
        [
            cell(
                optimizer,
                length,
                fast=optimizer == "momentum",
            )
            for optimizer in ("momentum", "adamw")
            for length in ("endless", "finite")
        ],
    )
    def test_float16_rounds_like_one_that_takes_the_same_halves(self, mirrored, optimizer, length):
        # Each replica rounds the gradient of its rows to 16 bits. One replica that takes the same
        # halves of the rows one after the other does so too, and is equal; that of the whole batch
        # is rounded once.
        plain = Feature(finite=length == "finite", loop=dict(loss_scaling=True))
        halves = dataclasses.replace(plain, loop=dict(loss_scaling=True, micro_batches=2))
        (same, whole) = (
            [copies[0] for copies in by_loop(HALF, optimizer, feature=feature)]
            for feature in (halves, dataclasses.replace(plain, shares=(1,)))
        )
        found = by_loop(HALF, optimizer, mirrored(2), plain)
        name = f"float16-{optimizer}-{length}"
        check(name, deviation(found, same), REPLICA_BOUND)
        check(name, deviation(found, whole), HALF_BOUND)
