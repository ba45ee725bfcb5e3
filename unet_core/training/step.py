"""One step: what happens to one global batch, in the graph and across replicas.

The parts are updated in order. If one of them cannot be, because its loss or gradient is not
finite, every variable is put back to what it was before the step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from unet_core.errors import UserError
from unet_core.training.autograph import converted, not_converted
from unet_core.training.feed import unmarked
from unet_core.training.means import noted
from unet_core.training.replicas import quick_all_reduce
from unet_core.training.update import SUMS, Update
from unet_core.training.variables import copies_of, of_tensorflow, variables_of

_LOSS_SCALE_START = 2.0**15
_LOSS_SCALE_GROWTH_STEPS = 2000
_LOSS_SCALE_MAX = 2.0**24
SKIPS_AT_SCALE_1 = 20


class Outcome(NamedTuple):
    """What one step has done.

    Attributes:
        failed: Number of the part whose loss or gradient is not finite, -1 if all are.
        sums: [n] float64: for each part its loss and the weight that divides it, the losses of the
            model times rows and the rows, then the named values and their weights; of the global
            batch, 0 for a part that was left out.
        figures: [2 parts] float32: rate and gradient norm of each.
    """

    failed: tf.Tensor
    sums: tf.Tensor
    figures: tf.Tensor


class Step:
    """The step of some parts.

    Args:
        updates: The parts, in order.
        strategy: Where they were made.
        step: Counts the global batches.
        micro_batches: Batches to one global batch.
        loss_scaling: Whether to scale the loss for float16.
        refused: Takes what is refused while tracing.
    """

    def __init__(
        self,
        updates: Sequence[Update],
        strategy: tf.distribute.Strategy,
        step: tf.Variable,
        *,
        micro_batches: int,
        loss_scaling: bool,
        refused: list[UserError],
    ):
        self._refused = refused
        self._updates = updates
        self._strategy = strategy
        self.step = step
        self._micro_batches = micro_batches
        self._loss_scaling = loss_scaling
        make = functools.partial(tf.Variable, trainable=False)
        self.loss_scale = make(_LOSS_SCALE_START if loss_scaling else 1.0, name="loss_scale")
        self.good_steps = make(0, dtype=tf.int64, name="good_steps")
        self.skipped = make(0, dtype=tf.int64, name="skipped_steps")
        self.skipped_at_scale_1 = make(0, dtype=tf.int64, name="skipped_at_scale_1")

    def on_batch(self, element: Any, *, is_marked: bool, static: bool) -> Outcome:
        """Makes one step on one element of a dataset, marked or not."""

        def train(update: Update, rate, ok):
            def run(element, rate, loss_scale, ok):
                batch, present = unmarked(element, is_marked)
                with quick_all_reduce():
                    return update.whole(batch, present, rate, loss_scale, ok, static=static)

            scale = tf.identity(self.loss_scale)
            return self._strategy.run(run, args=(element, rate, scale, ok))

        return self._all_parts(train)

    def on_micro_batches(
        self, next_element: Callable, wait: tf.Tensor, after: tf.Tensor, *, is_marked, static
    ) -> tuple[tf.Tensor, tf.Tensor, Callable[[], Outcome]]:
        """Sums the gradients of one global batch on each replica; nothing is reduced yet.

        Args:
            next_element: (wait, after) -> (optional element, whether there is one, wait).
            wait: Seconds waited for data so far.
            after: What must be done before.
            is_marked: Whether elements are marked.
            static: Whether all replicas have batches of the shapes known while tracing.

        Returns:
            (whether all micro-batches were there, seconds waited, what makes the step of them).
        """
        (update,) = self._updates

        def more(number, ready, *_):
            return tf.logical_and(number < self._micro_batches, ready)

        def one(number, ready, wait, sums):
            item, ready, wait = next_element(wait, sums)

            def add():
                def run(element, loss_scale, first):
                    batch, present = unmarked(element, is_marked)
                    with quick_all_reduce():
                        return update.add(batch, present, loss_scale, first, static=static)

                args = (item.get_value(), tf.identity(self.loss_scale), number == 0)
                added = self._strategy.run(run, args=args)
                return sums + self._strategy.reduce(tf.distribute.ReduceOp.SUM, added, axis=None)

            # Before the first is traced it is not known how many sums there are.
            return number + 1, ready, wait, tf.cond(ready, add, lambda: sums)

        # The sum of nothing, which waits for what must be done before.
        zero = tf.cast(after, tf.float64) * 0
        start = (tf.constant(0), tf.constant(True), wait, zero)
        shapes = (*(value.shape for value in start[:3]), tf.TensorShape(None))
        _, ready, wait, sums = tf.while_loop(
            more, one, start, shape_invariants=shapes, parallel_iterations=1
        )

        def train(update: Update, rate, ok):
            known = tf.ensure_shape(sums, [SUMS + 2 * len(update.names)])
            scale = tf.identity(self.loss_scale)
            return self._strategy.run(update.summed, args=(known, rate, scale, ok))

        return ready, wait, lambda: self._all_parts(train)

    def _all_parts(self, train: Callable) -> Outcome:
        put_back = self._remember()
        sums, figures = [], []
        failed = ok = None
        for number, update in enumerate(self._updates):
            rate = tf.cast(self._rate(update), tf.float32)
            results = functools.partial(self._train_one, train, update, rate, ok)
            if update.part.every > 1:
                due = self.step % update.part.every == 0
                skipped = functools.partial(self._leave_out, update)
                part_sums, finite, norm = tf.cond(due, results, skipped)
            else:
                part_sums, finite, norm = results()
            if number == 0:
                failed, ok = tf.where(finite, -1, 0), finite
            else:
                failed, ok = tf.where(ok & ~finite, number, failed), ok & finite
            sums.append(part_sums)
            figures += [rate, norm]
        with noted(self._refused):
            self._check_names()
        with tf.control_dependencies([ok]):
            if put_back is not None:
                tf.cond(ok, lambda: tf.constant(True), put_back)
            if self._loss_scaling:
                self.step.assign_add(1)
                tf.cond(ok, self._note_good_step, self._note_skip)
            else:
                self.step.assign_add(tf.cast(ok, tf.int64))
        all_sums = sums[0] if len(sums) == 1 else tf.concat(sums, 0)
        return Outcome(failed, tf.where(ok, all_sums, 0), tf.stack(figures))

    @not_converted
    def _check_names(self) -> None:
        names = [name for update in self._updates for name in (update.name, *update.names)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(
                f"Two values to report have the name {twice[0]!r}: parts and the values that "
                "their losses name need names of their own."
            )

    def _train_one(self, train, update, rate, ok):
        results = train(update, rate, ok)
        return tuple(self._strategy.experimental_local_results(value)[0] for value in results)

    def _leave_out(self, update):
        sums = tf.zeros([SUMS + 2 * len(update.names)], tf.float64)
        return sums, tf.constant(True), tf.constant(0.0)

    def _rate(self, update: Update):
        if update.part.schedule is None:
            return converted(_rate_of)(update.part.optimizer)
        return converted(update.part.schedule)(self.step)

    def _remember(self) -> Callable | None:
        """Returns what restores every variable that a step may change although it is not applied.

        Those are what the models write themselves, and with several parts all variables of the
        parts before the last. None if there are none.
        """
        changing = {}
        for update in self._updates:
            models = [update.part.model, update.part.average_into]
            for model in models:
                for variable in variables_of(model) if model is not None else ():
                    if not variable.trainable:
                        changing[_key(variable)] = variable
        for update in self._updates[:-1]:
            optimizer = update.part.optimizer
            for variable in (*update.variables, *optimizer.variables, *update.averages.values()):
                changing[_key(variable)] = variable
        if not changing:
            return None
        copies = [c for v in changing.values() for c in copies_of(self._strategy, v)]
        before = []
        for copy in copies:
            with tf.device(copy.device):
                before.append(tf.identity(copy))

        def put_back():
            for copy, value in zip(copies, before, strict=True):
                with tf.device(copy.device):
                    copy.assign(value)
            return tf.constant(False)

        return put_back

    def _note_good_step(self):
        self.good_steps.assign_add(1)
        grows = self.good_steps % _LOSS_SCALE_GROWTH_STEPS == 0
        grown = tf.minimum(self.loss_scale * 2, _LOSS_SCALE_MAX)
        self.loss_scale.assign(tf.where(grows, grown, self.loss_scale))
        self.skipped_at_scale_1.assign(0)
        return tf.constant(True)

    def _note_skip(self):
        self.good_steps.assign(0)
        self.skipped.assign_add(1)
        self.skipped_at_scale_1.assign_add(tf.cast(self.loss_scale <= 1, tf.int64))
        self.loss_scale.assign(tf.maximum(self.loss_scale / 2, 1.0))
        return tf.constant(False)


def next_element(iterator, wait, after):
    """Returns (optional element, whether there is one, `wait` and the seconds waited for it)."""
    now = tf.timestamp if _may_ask_the_time() else lambda: tf.constant(np.nan, tf.float64)
    # Each time stamp hangs on what came before it, or TensorFlow would take both at once.
    with tf.control_dependencies([after]):
        asked = now()
    with tf.control_dependencies([asked]):
        item = iterator.get_next_as_optional()
        has_value = item.has_value()
    with tf.control_dependencies([has_value]):
        wait += now() - asked
    with tf.control_dependencies([wait]):
        return item, tf.identity(has_value), wait


def _may_ask_the_time() -> bool:
    try:
        with tf.init_scope():
            tf.timestamp()
    except tf.errors.FailedPreconditionError:
        return False
    return True


def _rate_of(optimizer: keras.optimizers.Optimizer):
    # It may be a schedule of Keras, which a property calls.
    return optimizer.learning_rate


def _key(variable: Any) -> str:
    return of_tensorflow(variable)._unique_id
