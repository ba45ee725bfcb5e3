"""The training loop: many steps per compiled call, exact on any number of replicas.

    loop = Loop(model, optimizer, loss=my_loss, strategy=strategy)
    for report in loop.train(dataset_fn, until_step=1000, report_every_steps=100):
        print(report.step, report.loss)     # the caller keeps control: break, evaluate, save

A batch is a tuple whose first item goes into the model. `loss` and `metrics` are plain callables of
(outputs, batch).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from unet_core.errors import UserError
from unet_core.training.schedules import Schedule
from unet_core.training.workers import Workers

Batch = tuple[Any, ...]
DatasetFn = Callable[[int, tf.distribute.InputContext], tf.data.Dataset]

_LOSS_SCALE_START = 2.0**15
_LOSS_SCALE_GROWTH_STEPS = 2000
_LOSS_SCALE_MAX = 2.0**24


class NonFiniteError(ArithmeticError):
    """The loss or a gradient is not finite; no weight has been changed by that step.

    Attributes:
        step: The step, which is also the index of its global batch.
    """

    def __init__(self, step: int):
        super().__init__(
            f"Step {step}: the loss or a gradient is not finite; the weights are those before it."
        )
        self.step = step


@dataclasses.dataclass(frozen=True)
class Report:
    """What the loop read out at one step.

    Attributes:
        step: Global batches consumed so far.
        due: Whether the step is one that `report_every_steps` asks for; else it was stopped for
            another reason.
        stopping: Whether the loop ends here because it was asked to, on this worker or another.
        loss: Mean loss per example since the last step that was due.
        rate: Learning rate of the last step.
        gradient_norm: Global norm of the last step's reduced gradient, before clipping.
        loss_scale: Factor on a float16 loss; 1 without loss scaling.
        skipped_steps: Updates skipped so far because a float16 gradient overflowed.
        step_ms: Mean milliseconds per step since the last report, compilation left out; NaN if
            nothing was timed.
        examples_per_sec: Examples per second over the same steps.
        data_wait_share: Share of that time spent waiting for data, 0 to 1; NaN under
            `tf.config.experimental.enable_op_determinism`, which forbids to ask the time.
    """

    step: int
    due: bool
    stopping: bool
    loss: float
    rate: float
    gradient_norm: float
    loss_scale: float
    skipped_steps: int
    step_ms: float
    examples_per_sec: float
    data_wait_share: float


class Loop:
    """Trains and evaluates one model.

    Args:
        model: A Keras model; called as `model(batch[0], training=...)`.
        optimizer: A Keras optimizer. Its `update_step` and `weight_decay` are used; its slots are
            built here.
        loss: `(outputs, batch) -> [B]` float32, one value per example. The step divides their sum
            once, by the global batch size; nothing else averages.
        metrics: `(outputs, batch) -> dict` of additive tensors, summed over batches and replicas in
            evaluation.
        strategy: Where model and optimizer were made; by default the current one.
        schedule: Step -> learning rate. None leaves the optimizer its own.
        clip_norm: Largest global norm of the reduced gradient; None does not clip.
        loss_scaling: Whether to scale the loss for float16. An overflow on any replica then skips
            the update on all and halves the scale. Without it a gradient that is not finite stops
            the training.
        micro_batches: How many batches of the dataset make up one global batch. Their gradients are
            summed before the one update, so that memory is that of one of them. What uses
            statistics of the batch (batch norm, a batch-wise loss) sees one micro-batch.
        ema_decay: Decay of an exponential moving average of the weights, for `averaged_weights`;
            None keeps none. While the run is young the decay is (1 + step) / (10 + step).
        jit_compile: Whether to compile forward and backward pass of the model with XLA. The loss
            stays outside, so it may reduce over replicas; layers that do may not be compiled on
            several replicas. Dropout then draws other masks than without (TensorFlow 2.21).
        seconds_per_call: How long one compiled call may take, about: a request to stop is seen
            after that.

    Raises:
        ValueError: If the optimizer is set to clip, average, scale or accumulate, which Keras (seen
            on 3.15) does on each replica before the sum.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        *,
        loss: Callable[[Any, Batch], tf.Tensor],
        metrics: Callable[[Any, Batch], dict[str, tf.Tensor]] | None = None,
        strategy: tf.distribute.Strategy | None = None,
        schedule: Schedule | None = None,
        clip_norm: float | None = None,
        loss_scaling: bool = False,
        micro_batches: int = 1,
        ema_decay: float | None = None,
        jit_compile: bool = False,
        seconds_per_call: float = 2.0,
    ):
        _refuse_replica_wise(optimizer)
        self.model = model
        self.optimizer = optimizer
        self.strategy = strategy or tf.distribute.get_strategy()
        self._loss = loss
        self._metrics = metrics
        self._schedule = schedule
        self._clip_norm = clip_norm
        self._micro_batches = micro_batches
        self._ema_decay = ema_decay
        self._seconds_per_call = seconds_per_call
        with self.strategy.scope():
            optimizer.build(model.trainable_variables)
        self._decays = [_decays(optimizer, variable) for variable in model.trainable_variables]
        self._variables = [variable.value for variable in model.trainable_variables]
        self._workers = Workers(self.strategy)
        self._predict_to_train = functools.partial(model, training=True)
        if jit_compile:
            self._predict_to_train = tf.function(self._predict_to_train, jit_compile=True)
        with self.strategy.scope():
            self._averages = [tf.Variable(v, trainable=False) for v in self._variables if ema_decay]
            # What one replica has summed up of the global batch so far; never needed between steps.
            self._gradient_sums = [
                _own_of_replica(v.shape, v.dtype) for v in self._variables if micro_batches > 1
            ]
            self._sums = _own_of_replica([2], tf.float64)

        # Everything that a resumed run must know; `Checkpoints` saves it beside model and
        # optimizer.
        self._step = tf.Variable(0, dtype=tf.int64, trainable=False, name="step")
        self._window_loss = tf.Variable(0.0, dtype=tf.float64, trainable=False, name="window_loss")
        self._window_examples = tf.Variable(
            0, dtype=tf.int64, trainable=False, name="window_examples"
        )
        self._loss_scale = tf.Variable(
            _LOSS_SCALE_START if loss_scaling else 1.0, trainable=False, name="loss_scale"
        )
        self._good_steps = tf.Variable(0, dtype=tf.int64, trainable=False, name="good_steps")
        self._skipped = tf.Variable(0, dtype=tf.int64, trainable=False, name="skipped_steps")
        self._loss_scaling = loss_scaling
        self.resumed_at = 0

        self._run_steps = tf.function(self._steps)
        self._evaluate_batch: dict[Any, Any] = {}

    @property
    def step(self) -> int:
        """Global batches consumed so far."""
        return int(self._step.numpy())

    @property
    def state(self) -> dict[str, tf.Variable]:
        """The loop's own variables by name, for a checkpoint."""
        averages = {f"average_{number}": v for number, v in enumerate(self._averages)}
        return {
            **averages,
            "step": self._step,
            "window_loss": self._window_loss,
            "window_examples": self._window_examples,
            "loss_scale": self._loss_scale,
            "good_steps": self._good_steps,
            "skipped_steps": self._skipped,
        }

    @property
    def traces(self) -> dict[str, int]:
        """How often each compiled function has been traced so far."""
        return {
            "train": self._run_steps.experimental_get_tracing_count(),
            "evaluate": sum(
                f.experimental_get_tracing_count() for f in self._evaluate_batch.values()
            ),
        }

    def train(
        self,
        dataset: DatasetFn | tf.data.Dataset,
        *,
        until_step: int,
        report_every_steps: int = 100,
        pause_every_steps: Sequence[int] = (),
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[Report]:
        """Trains up to `until_step`, yielding a report whenever the loop pauses.

        It pauses at every multiple of `report_every_steps` and of each of `pause_every_steps`, at
        the end, when the data are used up, and when `should_stop()` is true after a call. While it
        pauses, the caller may evaluate, save, or leave the loop.

        Args:
            dataset: `(start_step, InputContext) -> tf.data.Dataset` of per-replica batches, from
                the global batch `start_step` on; or a plain dataset of global batches. With
                `micro_batches`, each global batch is that many of them.
            until_step: The step to end at.
            report_every_steps: Steps over which the reported loss is averaged.
            pause_every_steps: Further intervals, for evaluation and checkpoints.
            should_stop: Asked after every compiled call. If it is true on one worker, all stop at
                the same step.

        Raises:
            NonFiniteError: If a loss or gradient is not finite and there is no loss scaling.
            UserError: If an interval is below 1, or a plain dataset is given to a restored loop,
                which could not find its place in it.
        """
        intervals = [report_every_steps, *pause_every_steps]
        if min(intervals) < 1:
            raise UserError(f"Intervals in steps must be at least 1. Received {intervals}.")
        if self.step >= until_step:
            return
        iterator = iter(self._distribute(dataset))
        watch = _Stopwatch()
        try:
            step, steps_per_call = self.step, 1
            while step < until_step:
                pause = min([until_step, *((step // every + 1) * every for every in intervals)])
                count = min(pause - step, steps_per_call)
                before = time.perf_counter()
                result = self._run_steps(iterator, tf.constant(count, tf.int64))
                result = {name: value.numpy() for name, value in result.items()}
                done, step = int(result["steps"]), step + int(result["steps"])
                watch.add(time.perf_counter() - before, result, done)
                if not result["finite"]:
                    raise NonFiniteError(step)
                exhausted = done < count
                # Workers run equally many steps per call, or their sums would not find one another.
                wishes = self._workers.gather(
                    [watch.steps_in(self._seconds_per_call), int(should_stop())]
                )
                steps_per_call, stopping = int(wishes[:, 0].min()), bool(wishes[:, 1].any())
                if step == pause or stopping or exhausted:
                    due = step % report_every_steps == 0
                    report = self._report(step, due, stopping, result, watch)
                    watch.start_window()
                    if report.due:
                        # Before the caller may save: a checkpoint holds the window as it goes on.
                        self._window_loss.assign(0.0)
                        self._window_examples.assign(0)
                    yield report
                if stopping or exhausted:
                    return
        finally:
            # A process that ends while a parallel generator pipeline is alive is aborted by
            # TensorFlow (seen on 2.21).
            del iterator
            gc.collect()

    def evaluate(
        self,
        dataset: Callable[[tf.distribute.InputContext], tf.data.Dataset] | tf.data.Dataset,
    ) -> dict[str, np.ndarray]:
        """Returns the sums over a finite dataset: `loss`, `examples` and what `metrics` returns.

        The last batch may be ragged, and empty on some replicas.

        Args:
            dataset: `InputContext -> tf.data.Dataset` of per-replica batches, or a plain dataset of
                global batches.
        """
        if isinstance(dataset, tf.data.Dataset):
            distributed = self.strategy.experimental_distribute_dataset(dataset)
        else:
            distributed = self.strategy.distribute_datasets_from_function(dataset)
        spec = distributed.element_spec
        key = tuple(tf.nest.flatten(spec))
        if key not in self._evaluate_batch:
            self._evaluate_batch[key] = tf.function(self._evaluation_step, input_signature=[spec])
        totals: dict[str, np.ndarray] = {}
        iterator = iter(distributed)
        try:
            for batch in iterator:
                for name, value in self._evaluate_batch[key](batch).items():
                    totals[name] = totals.get(name, 0) + value.numpy()
        finally:
            del iterator
            gc.collect()
        return totals

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Puts the moving average in place of the model's weights, to evaluate or predict with.

        Without `ema_decay` this does nothing. Do not save or train inside.
        """
        self._exchange_weights()
        try:
            yield
        finally:
            self._exchange_weights()

    def _exchange_weights(self) -> None:
        def exchange(variable, average):
            value = tf.identity(variable)
            variable.assign(average)
            average.assign(value)

        for variable, average in zip(self._variables, self._averages, strict=False):
            with self.strategy.scope():
                self.strategy.extended.update(variable, exchange, args=(average,), group=False)

    def _distribute(self, dataset):
        start_step = self.step
        if not isinstance(dataset, tf.data.Dataset):
            return self.strategy.distribute_datasets_from_function(
                lambda context: dataset(start_step, context)
            )
        if self.resumed_at:
            raise UserError(
                f"The loop was restored at step {self.resumed_at}, and a plain tf.data.Dataset "
                f"cannot be entered "
                "there. Give a callable (start_step, tf.distribute.InputContext) -> "
                "tf.data.Dataset instead."
            )
        return self.strategy.experimental_distribute_dataset(dataset)

    def _report(
        self, step: int, due: bool, stopping: bool, result: dict[str, Any], watch: _Stopwatch
    ) -> Report:
        examples = int(self._window_examples.numpy())
        return Report(
            step=step,
            due=due,
            stopping=stopping,
            loss=float(self._window_loss.numpy()) / examples if examples else float("nan"),
            rate=float(result["rate"]),
            gradient_norm=float(result["gradient_norm"]),
            loss_scale=float(self._loss_scale.numpy()),
            skipped_steps=int(self._skipped.numpy()),
            **watch.figures(),
        )

    # What follows runs in the graph.

    def _steps(self, iterator, count):
        """Runs up to `count` steps on the device; leaves early when data end or a step is not
        finite.
        """

        def more(done, finite, exhausted, *_):
            return tf.logical_and(done < count, tf.logical_and(finite, tf.logical_not(exhausted)))

        def one(done, finite, exhausted, wait, norm, rate):
            if self._micro_batches == 1:
                item, ready, wait = self._next(iterator, wait, after=norm)

                def train(rate):
                    batch = item.get_value()
                    step = functools.partial(self._whole_step, divisor=self._divisor(batch))
                    return self.strategy.run(step, args=(batch, rate))

            else:
                divisor, ready, wait = self._sum_micro_batches(iterator, wait, after=norm)

                def train(rate):
                    step = functools.partial(self._summed_step, divisor=divisor)
                    return self.strategy.run(step, args=(rate,))

            def step():
                new_rate = tf.cast(self._rate(), tf.float32)
                sums, is_finite, new_norm = (
                    self.strategy.experimental_local_results(value)[0] for value in train(new_rate)
                )
                counted = tf.logical_or(is_finite, self._loss_scaling)
                self._step.assign_add(tf.cast(counted, tf.int64))
                sums = tf.where(is_finite, sums, 0)
                self._window_loss.assign_add(sums[0])
                self._window_examples.assign_add(tf.cast(sums[1], tf.int64))
                return done + tf.cast(counted, tf.int64), counted, new_norm, new_rate

            done, finite, norm, rate = tf.cond(ready, step, lambda: (done, finite, norm, rate))
            return done, finite, tf.logical_not(ready), wait, norm, rate

        start = (
            tf.constant(0, tf.int64),
            tf.constant(True),
            tf.constant(False),
            tf.constant(0.0, tf.float64),
            tf.constant(0.0),
            tf.constant(0.0),
        )
        examples_before = tf.identity(self._window_examples)
        with tf.control_dependencies([examples_before]):
            done, finite, _, wait, norm, rate = tf.while_loop(
                more, one, start, parallel_iterations=1
            )
        with tf.control_dependencies([done]):
            examples = self._window_examples - examples_before
        return {
            "steps": done,
            "finite": finite,
            "wait_seconds": wait,
            "examples": examples,
            "gradient_norm": norm,
            "rate": rate,
        }

    def _next(self, iterator, wait, *, after):
        """Returns (optional batch, whether there is one, `wait` and the seconds waited for it)."""
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

    def _divisor(self, batch) -> float | None:
        """Returns the examples of a global batch if that is known while tracing, else None."""
        first = self.strategy.experimental_local_results(tf.nest.flatten(batch)[0])[0]
        if first.shape[0] is None:
            return None
        return float(first.shape[0] * self.strategy.num_replicas_in_sync * self._micro_batches)

    def _sum_micro_batches(self, iterator, wait, *, after):
        """Sums the gradients of one global batch on each replica; nothing is reduced yet.

        Returns (divisor, whether all micro-batches were there, `wait` and the seconds waited).
        """
        divisor = None

        def more(number, ready, *_):
            return tf.logical_and(number < self._micro_batches, ready)

        def one(number, ready, wait, after):
            item, ready, wait = self._next(iterator, wait, after=after)

            def add():
                nonlocal divisor
                batch = item.get_value()
                divisor = self._divisor(batch)
                add = functools.partial(self._add_gradients, divisor=divisor)
                added = self.strategy.run(add, args=(batch, number == 0))
                return self.strategy.experimental_local_results(added)[0]

            return number + 1, ready, wait, tf.cond(ready, add, lambda: after)

        start = (tf.constant(0), tf.constant(True), wait, after)
        _, ready, wait, _ = tf.while_loop(more, one, start, parallel_iterations=1)
        return divisor, ready, wait

    def _whole_step(self, batch, rate, *, divisor):
        """Trains one replica on its share of a global batch; returns what `_reduce_and_update`
        does.
        """
        gradients, sums = self._differentiate(batch, divisor)
        return self._reduce_and_update(gradients, sums, rate, divisor)

    def _add_gradients(self, batch, first, *, divisor):
        """Adds one micro-batch to what this replica has summed; returns a float32 to wait for."""
        gradients, sums = self._differentiate(batch, divisor)
        totals = [*self._gradient_sums, self._sums]
        for total, value in zip(totals, [*gradients, sums], strict=True):
            total.assign(tf.where(first, value, total + value))
        return tf.cast(sums[1], tf.float32)

    def _summed_step(self, rate, *, divisor):
        """Updates by what has been summed; returns what `_reduce_and_update` does."""
        gradients = [tf.convert_to_tensor(total) for total in self._gradient_sums]
        return self._reduce_and_update(gradients, tf.convert_to_tensor(self._sums), rate, divisor)

    def _differentiate(self, batch, divisor):
        """Returns the gradients of one replica's scaled loss sum, divided by `divisor` if that is
        known, and float64 [loss sum, examples].
        """
        with tf.GradientTape() as tape:
            per_example = self._loss(self._predict_to_train(batch[0]), batch)
            _check_per_example(per_example)
            loss_sum = tf.reduce_sum(per_example)
            scaled = loss_sum / (divisor or 1.0) * self._loss_scale
        gradients = tape.gradient(
            scaled, self._variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        rows = tf.shape(per_example)[0]
        sums = tf.stack([tf.cast(loss_sum, tf.float64), tf.cast(rows, tf.float64)])
        return [tf.convert_to_tensor(g) for g in gradients], sums

    def _reduce_and_update(self, gradients, sums, rate, divisor):
        """Returns float64 [loss sum, examples] of the global batch, whether its gradient is finite,
        and that gradient's global norm.
        """
        context = tf.distribute.get_replica_context()
        sums = _sum_over(context, sums)
        gradients = _sum_over(context, gradients)
        # Everything below sees the reduced gradient, so an inf of any replica is seen by all.
        factor = 1 / self._loss_scale
        if divisor is None:
            # Replicas may have different numbers of rows, so the global batch had to be counted.
            factor /= tf.cast(sums[1], tf.float32)
        scaled_norm = tf.linalg.global_norm(gradients)
        finite = tf.math.is_finite(scaled_norm)
        norm = scaled_norm * factor
        if self._clip_norm is not None:
            factor *= self._clip_norm / tf.maximum(norm, self._clip_norm)
        if self._clip_norm is not None or self._loss_scaling or divisor is None:
            gradients = [gradient * tf.cast(factor, gradient.dtype) for gradient in gradients]
        context.merge_call(self._update, args=(gradients, finite, rate))
        return sums, finite, norm

    def _update(self, strategy, gradients, finite, rate):
        """Updates every replica's variables by the reduced gradients, unless they are not
        finite.
        """
        finite, rate = (strategy.experimental_local_results(value)[0] for value in (finite, rate))

        averages = self._averages or [None] * len(self._variables)
        step = tf.cast(self._step, tf.float32)
        ema_decay = tf.minimum(self._ema_decay or 0.0, (1 + step) / (10 + step))

        def update_variable(variable, gradient, decays, average):
            variable_rate = tf.cast(rate, variable.dtype)
            if decays:
                variable.assign_sub(variable * self.optimizer.weight_decay * variable_rate)
            self.optimizer.update_step(gradient, variable, variable_rate)
            if average is not None:
                difference = variable - average
                average.assign_add(difference * tf.cast(1 - ema_decay, difference.dtype))

        def apply():
            for variable, *args in zip(
                self._variables, gradients, self._decays, averages, strict=True
            ):
                strategy.extended.update(variable, update_variable, args=args, group=False)
            self.optimizer.iterations.assign_add(1)
            if self._loss_scaling:
                self._good_steps.assign_add(1)
                grows = self._good_steps % _LOSS_SCALE_GROWTH_STEPS == 0
                grown = tf.minimum(self._loss_scale * 2, _LOSS_SCALE_MAX)
                self._loss_scale.assign(tf.where(grows, grown, self._loss_scale))
            return tf.constant(True)

        def skip():
            if self._loss_scaling:
                self._good_steps.assign(0)
                self._skipped.assign_add(1)
                self._loss_scale.assign(tf.maximum(self._loss_scale / 2, 1.0))
            return tf.constant(False)

        tf.cond(finite, apply, skip)

    def _rate(self):
        if self._schedule is None:
            return self.optimizer.learning_rate
        return self._schedule(self._step)

    def _evaluation_step(self, batch):
        def replica_step(batch):
            rows = tf.shape(tf.nest.flatten(batch)[0])[0]
            batch = tf.nest.map_structure(_at_least_one_row, batch)
            outputs = self.model(batch[0], training=False)
            outputs, batch = tf.nest.map_structure(lambda tensor: tensor[:rows], (outputs, batch))
            per_example = self._loss(outputs, batch)
            _check_per_example(per_example)
            sums = dict(self._metrics(outputs, batch)) if self._metrics else {}
            sums["loss"] = tf.reduce_sum(tf.cast(per_example, tf.float64))
            sums["examples"] = tf.shape(per_example, tf.int64)[0]
            return sums

        per_replica = self.strategy.run(replica_step, args=(batch,))
        return {
            name: self.strategy.reduce(tf.distribute.ReduceOp.SUM, value, axis=None)
            for name, value in per_replica.items()
        }


class _Stopwatch:
    """Times the compiled calls of one window, leaving out the first call, which compiles."""

    def __init__(self):
        self._step_seconds: float | None = None
        self._compiled = False
        self.start_window()

    def start_window(self) -> None:
        self._seconds = self._wait = 0.0
        self._steps = self._examples = 0

    def add(self, seconds: float, result: dict[str, Any], steps: int) -> None:
        if not self._compiled:
            self._compiled = True
            return
        if steps:
            self._step_seconds = seconds / steps
        self._seconds += seconds
        self._steps += steps
        self._wait += float(result["wait_seconds"])
        self._examples += int(result["examples"])

    def steps_in(self, seconds: float) -> int:
        """Returns how many steps about fill `seconds`, at least 1; 1 while that is not known."""
        if self._step_seconds is None:
            return 1
        return max(1, int(seconds / max(self._step_seconds, 1e-9)))

    def figures(self) -> dict[str, float]:
        if not self._steps:
            return dict(
                step_ms=float("nan"), examples_per_sec=float("nan"), data_wait_share=float("nan")
            )
        return dict(
            step_ms=1000 * self._seconds / self._steps,
            examples_per_sec=self._examples / self._seconds,
            data_wait_share=self._wait / self._seconds,
        )


def _may_ask_the_time() -> bool:
    try:
        with tf.init_scope():
            tf.timestamp()
    except tf.errors.FailedPreconditionError:
        return False
    return True


def _sum_over(context, values):
    if context.num_replicas_in_sync == 1:
        return values
    return context.all_reduce(tf.distribute.ReduceOp.SUM, values)


def _own_of_replica(shape, dtype) -> tf.Variable:
    """Returns a variable of zeros of which each replica reads and writes its own copy."""
    return tf.Variable(
        tf.zeros(shape, dtype),
        trainable=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.SUM,
    )


def _at_least_one_row(tensor: tf.Tensor) -> tf.Tensor:
    """Returns `tensor`, or one row of zeros if it has none: oneDNN's fused convolution fails on no
    rows (TF 2.21).
    """
    if tensor.shape[0] is not None:
        return tensor
    shape = tf.shape(tensor)
    filled = tf.cond(
        shape[0] > 0, lambda: tensor, lambda: tf.zeros(tf.maximum(shape, 1), tensor.dtype)
    )
    filled.set_shape(tensor.shape)
    return filled


def _check_per_example(per_example: tf.Tensor) -> None:
    if per_example.shape.rank != 1 or per_example.dtype != tf.float32:
        raise ValueError(
            "The loss must return one float32 value per example, shape [B]. "
            f"Received shape {per_example.shape} and dtype {per_example.dtype.name}."
        )


def _decays(optimizer: keras.optimizers.Optimizer, variable) -> bool:
    # Keras has no public way to ask what `exclude_from_weight_decay` was told (seen on 3.15).
    return bool(optimizer.weight_decay) and optimizer._use_weight_decay(variable)


def _refuse_replica_wise(optimizer: keras.optimizers.Optimizer) -> None:
    refused = {
        "clipnorm": "give `clip_norm` to the loop",
        "clipvalue": "give `clip_norm` to the loop",
        "global_clipnorm": "give `clip_norm` to the loop",
        "use_ema": "give `ema_decay` to the loop",
        "loss_scale_factor": "give `loss_scaling` to the loop",
        "gradient_accumulation_steps": "give `micro_batches` to the loop",
    }
    for name, way_out in refused.items():
        if getattr(optimizer, name, None):
            raise ValueError(
                f"The optimizer has `{name}` set ({getattr(optimizer, name)}), which Keras "
                f"applies on each replica "
                f"before the sum; {way_out} instead."
            )
