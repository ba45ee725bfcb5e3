"""Trains small models by the loop, on any number of replicas, and compares variables.

A deviation is relative to max(1, |weight|).
"""

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from training.foreign_models import OPTIMIZERS

from unet_core import training

ROWS = 12
STEPS = 5


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
    """Returns a parameter that reads as its names, tried by default if it is said to be fast."""
    marks = [] if fast else [pytest.mark.exhaustive]
    return pytest.param(*names, id="-".join(names), marks=marks)
