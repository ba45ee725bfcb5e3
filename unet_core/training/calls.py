"""The compiled calls of a loop: many steps on a dataset, or one on a given batch.

What they return comes to the host in one transfer.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from unet_core.training.autograph import not_converted
from unet_core.training.step import SKIPS_AT_SCALE_1, Step, next_element

_HEAD = ("steps", "failed", "exhausted", "wait", "examples", "loss_scale", "skipped", "stuck")


class Result(NamedTuple):
    """What one call has done.

    Attributes:
        steps: Steps that counted.
        failed: Number of the part whose loss or gradient is not finite, -1 if all are.
        exhausted: Whether the data have ended.
        wait: Seconds spent waiting for data.
        examples: Examples of the first part's loss.
        loss_scale: Factor on the loss.
        skipped: Updates skipped so far.
        stuck: Updates skipped in a row at the smallest loss scale.
        figures: [parts, 2]: rate and gradient norm of each in the last step.
        sums: [n]: the window's sums, in the order of `Outcome.sums`.
    """

    steps: int
    failed: int
    exhausted: bool
    wait: float
    examples: float
    loss_scale: float
    skipped: int
    stuck: int
    figures: np.ndarray
    sums: np.ndarray


class Calls:
    """The compiled functions of a loop.

    Args:
        step: What one step does.
        strategy: Whose replicas it runs on.
        parts: Number of parts.
        micro_batches: Batches to one global batch.
        loss_scaling: Whether the loss is scaled.
    """

    def __init__(
        self,
        step: Step,
        strategy: tf.distribute.Strategy,
        *,
        parts: int,
        micro_batches: int,
        loss_scaling: bool,
    ):
        self._step = step
        self._strategy = strategy
        self._parts = parts
        self._micro_batches = micro_batches
        self._loss_scaling = loss_scaling
        # Sums since the last report that was due; how many there are is known once it is traced.
        self._window = tf.Variable(
            0.0, dtype=tf.float64, shape=tf.TensorShape(None), trainable=False
        )
        self._earlier_traces = 0
        self._compile()

    def forget(self) -> None:
        """Lets everything be traced anew, because what is trained has changed."""
        self._earlier_traces = self.traces_of_steps
        self._compile()

    @property
    def traces_of_steps(self) -> int:
        """How often the call of many steps has been traced so far."""
        return self._earlier_traces + self._run_steps.experimental_get_tracing_count()

    @property
    def traces_of_batch(self) -> int:
        """How often the call of one batch has been traced since the last change."""
        return self._run_batch.experimental_get_tracing_count()

    @property
    def window(self) -> list[float]:
        """The sums since the last report that was due."""
        return self._window.numpy().ravel().tolist()

    @window.setter
    def window(self, sums: Sequence[float]) -> None:
        self._window.assign(np.asarray(sums, np.float64))

    def steps(
        self, iterator: Any, count: int, *, new_window: bool, is_marked: bool, static: bool
    ) -> Result:
        """Runs up to `count` steps; fewer if data end or a step is not finite.

        Args:
            iterator: Of the dataset, marked or not.
            count: How many steps at the most.
            new_window: Whether the sums begin anew.
            is_marked: Whether the elements are `marked`.
            static: Whether all replicas have batches of the shapes known while tracing.
        """
        plan = tf.constant([count, int(new_window)], tf.int64)
        return self._read(self._run_steps(iterator, plan, is_marked=is_marked, static=static))

    def graph_of_steps(self, iterator: Any, *, is_marked: bool, static: bool) -> tf.Graph:
        """Returns the graph of `steps`, which is traced if it has not been, and runs nothing."""
        plan = tf.constant([0, 0], tf.int64)
        how = {"is_marked": is_marked, "static": static}
        return self._run_steps.get_concrete_function(iterator, plan, **how).graph

    def batch(self, batch: Any) -> Result:
        """Makes one step on a given batch.

        The sums are those of the batch, and `steps` are those of the loop.
        """
        return self._read(self._run_batch(batch))

    def _compile(self) -> None:
        # TensorFlow (2.21) counts traces by code object, those of all loops together, and warns of
        # retracing; a partial has none.
        self._run_steps = tf.function(functools.partial(self._steps))
        self._run_batch = tf.function(functools.partial(self._one_batch), reduce_retracing=True)

    def _read(self, packed: tf.Tensor) -> Result:
        values = packed.numpy()
        head, rest = values[: len(_HEAD)].tolist(), values[len(_HEAD) :]
        steps, failed, exhausted, wait, examples, loss_scale, skipped, stuck = head
        figures = rest[: 2 * self._parts].reshape(-1, 2)
        return Result(
            int(steps),
            int(failed),
            bool(exhausted),
            wait,
            examples,
            loss_scale,
            int(skipped),
            int(stuck),
            figures,
            rest[2 * self._parts :],
        )

    # What follows runs in the graph.

    @not_converted
    def _steps(self, iterator, plan, *, is_marked, static):
        """Runs up to `plan[0]` steps on the device.

        It stops early when the data end or a step is not finite. `plan[1]` is 1 if the sums of the
        window begin anew.
        """
        count, next_of = plan[0], functools.partial(next_element, iterator)

        def more(done, failed, exhausted, stuck, *_):
            goes_on = tf.constant(True) if self._loss_scaling else failed < 0
            goes_on = (done < count) & goes_on & ~exhausted
            return goes_on & (stuck < SKIPS_AT_SCALE_1) if self._loss_scaling else goes_on

        def one(done, failed, _, stuck, wait, examples, figures, window):
            after = figures[1]
            if self._micro_batches == 1:
                item, ready, wait = next_of(wait, after)

                def train():
                    return self._step.on_batch(item.get_value(), is_marked=is_marked, static=static)

            else:
                ready, wait, train = self._step.on_micro_batches(
                    next_of, wait, after, is_marked=is_marked, static=static
                )

            def step():
                outcome = train()
                counted = 1 if self._loss_scaling else tf.cast(outcome.failed < 0, tf.int64)
                return (
                    done + counted,
                    outcome.failed,
                    self._stuck(),
                    examples + outcome.sums[1],
                    outcome.figures,
                    window + outcome.sums,
                )

            unchanged = (done, failed, stuck, examples, figures, window)
            done, failed, stuck, examples, figures, window = tf.cond(ready, step, lambda: unchanged)
            return done, failed, ~ready, stuck, wait, examples, figures, window

        # Before a step is traced it is not known how many sums there are: 0 of any number.
        window = self._window * tf.cast(1 - plan[1], tf.float64)
        start = (
            tf.constant(0, tf.int64),
            tf.constant(-1),
            tf.constant(False),
            self._stuck(),
            tf.constant(0.0, tf.float64),
            tf.constant(0.0, tf.float64),
            tf.zeros([2 * self._parts]),
            window,
        )
        shapes = (*(value.shape for value in start[:-1]), tf.TensorShape(None))
        done, failed, exhausted, stuck, wait, examples, figures, window = tf.while_loop(
            more, one, start, shape_invariants=shapes, parallel_iterations=1
        )
        self._window.assign(window)
        return self._packed(done, failed, exhausted, stuck, wait, examples, figures, window)

    def _stuck(self):
        """Returns the updates skipped in a row at the smallest loss scale."""
        if self._loss_scaling:
            return tf.identity(self._step.skipped_at_scale_1)
        return tf.constant(0, tf.int64)

    @not_converted
    def _one_batch(self, batch):
        outcome = self._step.on_batch(
            batch, is_marked=False, static=self._strategy.num_replicas_in_sync == 1
        )
        zero, stuck = tf.constant(0.0), self._stuck()
        with tf.control_dependencies([outcome.failed, outcome.sums]):
            step = tf.identity(self._step.step)
        return self._packed(
            step, outcome.failed, zero, stuck, zero, zero, outcome.figures, outcome.sums
        )

    def _packed(self, done, failed, exhausted, stuck, wait, examples, figures, sums):
        """Returns all in one float64 tensor, which is one transfer to the host.

        The order is that of `_HEAD`, figures, sums.
        """
        step = self._step
        head = (done, failed, exhausted, wait, examples, step.loss_scale, step.skipped, stuck)
        with tf.control_dependencies([done, failed]):
            head = tf.stack([tf.cast(tf.identity(value), tf.float64) for value in head])
        return tf.concat([head, tf.cast(figures, tf.float64), tf.reshape(sums, [-1])], 0)
