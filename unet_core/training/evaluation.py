"""Sums over a finite dataset, exact for batches of any sizes on any number of replicas."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from unet_core.errors import UserError
from unet_core.training.autograph import converted, not_converted
from unet_core.training.feed import (
    check_can_be_shared,
    check_dataset,
    check_dataset_function,
    marked,
    unmarked,
)
from unet_core.training.means import RESERVED, noted, read_loss
from unet_core.training.parts import Forward
from unet_core.training.replicas import check_losses_of_calls, quick_all_reduce, reductions
from unet_core.training.variables import AddedLosses


class Evaluation:
    """What is summed over batches: loss and metrics of a model's outputs, or metrics of the batch.

    Args:
        strategy: Whose replicas evaluate.
        refused: Takes what is refused while tracing.
        model: What is called with the first item of a batch; None if `metrics` takes the batch.
        loss: `(outputs, batch) -> [B]` or what else a loss may return.
        metrics: `(outputs, batch) -> dict`, or `batch -> dict`, of additive tensors.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        refused: list[UserError],
        *,
        model: Any = None,
        loss: Callable | None = None,
        metrics: Callable | None = None,
    ):
        self._strategy = strategy
        self._refused = refused
        self._model = model
        self._loss: Any = loss
        self._metrics: Any = metrics
        self._forward = Forward(model, training=False) if model is not None else None
        self._added_losses = AddedLosses(model)
        self._functions: list[tuple[Any, Any]] = []
        self._replaced_traces = 0

    @property
    def traces(self) -> int:
        """How often the compiled functions have been traced so far."""
        now = sum(f.experimental_get_tracing_count() for _, f in self._functions)
        return self._replaced_traces + now

    def run(self, dataset: Any) -> dict[str, np.ndarray]:
        """Returns the sums over `dataset`; see `Loop.evaluate`."""
        if self._model is None and self._metrics is None:
            raise UserError(
                "There is nothing to evaluate: give the loop `metrics`, a function of the batch."
            )
        distributed, is_marked = self._distribute(dataset)
        evaluate = self._function_for(distributed.element_spec, is_marked)
        totals: dict[str, np.ndarray] = {}
        for batch in distributed:
            for name, value in evaluate(batch).items():
                totals[name] = totals.get(name, 0) + value.numpy()
        if not totals:
            raise UserError("The dataset to evaluate has no batches.")
        return totals

    def _distribute(self, dataset):
        replicas = self._strategy.num_replicas_in_sync

        def prepared(dataset, *, rows):
            check_dataset(dataset)
            if int(dataset.cardinality()) == tf.data.INFINITE_CARDINALITY:
                raise UserError(
                    "The dataset to evaluate is endless; end it, such as by dataset.take(100)."
                )
            if replicas == 1:
                return dataset
            if rows:
                check_can_be_shared(dataset, replicas)
            return marked(dataset, rows=rows)

        if isinstance(dataset, tf.data.Dataset):
            dataset = prepared(dataset, rows=True)
            return self._strategy.experimental_distribute_dataset(dataset), replicas > 1
        check_dataset_function(dataset, "(tf.distribute.InputContext)", 1)
        return self._strategy.distribute_datasets_from_function(
            lambda context: prepared(dataset(context), rows=False)
        ), replicas > 1

    def _function_for(self, spec, is_marked):
        """Returns the compiled function for batches of `spec`.

        Datasets that differ in sizes alone share one that knows none of those.
        """
        if is_marked:
            spec = tf.nest.map_structure(_with_any_rows, spec)
        for number, (known, function) in enumerate(self._functions):
            if _covers(known, spec):
                return function
            if (common := _common(known, spec)) is not None:
                spec = common
                self._replaced_traces += function.experimental_get_tracing_count()
                del self._functions[number]
                break
        step = functools.partial(self._step, is_marked=is_marked)
        function = tf.function(step, input_signature=[spec])
        self._functions.append((spec, function))
        return function

    @not_converted
    def _step(self, element, *, is_marked):
        def replica_step(element):
            batch, present = unmarked(element, is_marked)
            with noted(self._refused), quick_all_reduce():
                return self._sums_if_present(batch, present)

        per_replica = self._strategy.run(replica_step, args=(element,))
        return {
            name: self._strategy.reduce(tf.distribute.ReduceOp.SUM, value, axis=None)
            for name, value in per_replica.items()
        }

    def _sums_if_present(self, batch, present):
        if present is None:
            return self._sums(batch)
        traced = {}

        def sums():
            traced.update(self._sums(batch))
            return dict(traced)

        def nothing():
            return {name: tf.zeros(v.shape, v.dtype) for name, v in traced.items()}

        try:
            return tf.cond(present, sums, nothing)
        except RuntimeError as error:
            if "merge_call" not in str(error) or self._forward is None:
                raise
        # What reduces over replicas cannot be inside a condition; the model can.
        self._forward.present = present
        try:
            return self._sums(batch)
        finally:
            self._forward.present = None

    def _sums(self, batch):
        """Returns all sums of one batch, int64 or float64."""
        if self._forward is None:
            return _in_64_bits(converted(self._metrics)(batch))
        added, before = self._added_losses, reductions()
        with added:
            outputs = self._forward(batch)
            loss, _ = read_loss(converted(self._loss)(outputs, batch), wide=True)
        check_losses_of_calls(added, before)
        total = loss.total_with(added.left())
        sums = _in_64_bits(converted(self._metrics)(outputs, batch)) if self._metrics else {}
        for name in sums:
            if name in RESERVED:
                raise UserError(
                    f"`metrics` has named a sum {name!r}, which is the loop's own; choose another "
                    "name."
                )
        count = loss.weight if loss.is_weighted else tf.cast(loss.weight, tf.int64)
        return {**sums, **_in_64_bits({"loss": total, "examples": count})}


def _in_64_bits(sums: Any) -> dict[str, tf.Tensor]:
    if not isinstance(sums, dict):
        raise UserError(
            f"`metrics` must return a dict of tensors. Received a {type(sums).__name__}."
        )
    wide = {}
    for name, value in sums.items():
        value = tf.convert_to_tensor(value)
        if value.shape.num_elements() is None:
            raise UserError(
                f"The metric {name!r} must be a sum of one shape, whatever the batch. Received "
                f"shape {value.shape}."
            )
        kind = tf.float64 if value.dtype.is_floating else tf.int64
        wide[name] = tf.cast(value, kind)
    return wide


def _with_any_rows(spec: Any) -> Any:
    """Returns the spec of what TensorFlow (2.21) gives a replica that has no batch left.

    Where all sizes are known, the first is 0.
    """
    if hasattr(spec, "_value_specs"):
        return type(spec)(*map(_with_any_rows, spec._value_specs))
    if isinstance(spec, tf.TensorSpec) and spec.shape.rank and spec.shape.is_fully_defined():
        return tf.TensorSpec([None, *spec.shape[1:]], spec.dtype)
    return spec


def _covers(known: Any, spec: Any) -> bool:
    try:
        tf.nest.assert_same_structure(known, spec, expand_composites=False)
    except (TypeError, ValueError):
        return False
    pairs = zip(tf.nest.flatten(known), tf.nest.flatten(spec), strict=True)
    return all(found.is_subtype_of(general) for general, found in pairs)


def _common(known: Any, spec: Any) -> Any:
    """Returns the spec of both, None if they differ in more than sizes."""
    try:
        return tf.nest.map_structure(
            lambda a, b: _checked(a.most_specific_common_supertype([b])), known, spec
        )
    except (TypeError, ValueError):
        return None


def _checked(common: Any) -> Any:
    if common is None:
        raise TypeError
    return common
