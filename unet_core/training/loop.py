"""The training loop: many steps per compiled call, exact on any number of replicas.

    loop = Loop(model, optimizer, loss=my_loss, strategy=strategy)
    for report in loop.train(dataset_fn, until_step=1000, report_every_steps=100):
        print(report.step, report.loss)     # the caller keeps control: break, evaluate, save

A batch is a tuple whose first item goes into the model. `loss` and `metrics` are plain callables of
(outputs, batch).
"""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from unet_core.errors import UserError
from unet_core.training.schedules import Schedule

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
        self._seconds_per_call = seconds_per_call
        with self.strategy.scope():
            optimizer.build(model.trainable_variables)
        self._decays = [_decays(optimizer, variable) for variable in model.trainable_variables]
        self._variables = [variable.value for variable in model.trainable_variables]

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
        return {
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
                the global batch `start_step` on; or a plain dataset of global batches.
            until_step: The step to end at.
            report_every_steps: Steps over which the reported loss is averaged.
            pause_every_steps: Further intervals, for evaluation and checkpoints.
            should_stop: Asked after every compiled call.

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
            step = self.step
            while step < until_step:
                pause = min([until_step, *((step // every + 1) * every for every in intervals)])
                count = min(pause - step, watch.steps_in(self._seconds_per_call))
                before = time.perf_counter()
                result = self._run_steps(iterator, tf.constant(count, tf.int64))
                result = {name: value.numpy() for name, value in result.items()}
                done, step = int(result["steps"]), step + int(result["steps"])
                watch.add(time.perf_counter() - before, result, done)
                if not result["finite"]:
                    raise NonFiniteError(step)
                exhausted = done < count
                stopping = exhausted or should_stop()
                if step == pause or stopping:
                    report = self._report(step, step % report_every_steps == 0, result, watch)
                    watch.start_window()
                    if report.due:
                        # Before the caller may save: a checkpoint holds the window as it goes on.
                        self._window_loss.assign(0.0)
                        self._window_examples.assign(0)
                    yield report
                if stopping:
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

    def _report(self, step: int, due: bool, result: dict[str, Any], watch: _Stopwatch) -> Report:
        examples = int(self._window_examples.numpy())
        return Report(
            step=step,
            due=due,
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

        now = tf.timestamp if _may_ask_the_time() else lambda: tf.constant(np.nan, tf.float64)

        def more(done, finite, exhausted, *_):
            return tf.logical_and(done < count, tf.logical_and(finite, tf.logical_not(exhausted)))

        def one(done, finite, exhausted, wait, norm, rate):
            # Each time stamp hangs on what came before it, or TensorFlow would take both at once.
            with tf.control_dependencies([norm]):
                asked = now()
            with tf.control_dependencies([asked]):
                item = iterator.get_next_as_optional()
                has_value = item.has_value()
            with tf.control_dependencies([has_value]):
                wait += now() - asked
            with tf.control_dependencies([wait]):
                has_value = tf.identity(has_value)

            def step():
                new_rate = tf.cast(self._rate(), tf.float32)
                per_replica = self.strategy.run(
                    self._replica_step, args=(item.get_value(), new_rate)
                )
                loss_sum, examples = (
                    self.strategy.reduce(tf.distribute.ReduceOp.SUM, value, axis=None)
                    for value in per_replica[:2]
                )
                is_finite, new_norm = (
                    self.strategy.experimental_local_results(value)[0] for value in per_replica[2:]
                )
                counted = tf.logical_or(is_finite, self._loss_scaling)
                self._step.assign_add(tf.cast(counted, tf.int64))
                self._window_loss.assign_add(tf.where(is_finite, loss_sum, 0))
                self._window_examples.assign_add(tf.where(is_finite, examples, 0))
                return done + tf.cast(counted, tf.int64), counted, new_norm, new_rate

            done, finite, norm, rate = tf.cond(has_value, step, lambda: (done, finite, norm, rate))
            return done, finite, tf.logical_not(has_value), wait, norm, rate

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

    def _replica_step(self, batch, rate):
        """Returns (loss sum float64, examples int64, finite, global gradient norm) of one replica's
        share.
        """
        context = tf.distribute.get_replica_context()
        replicas = context.num_replicas_in_sync
        with tf.GradientTape() as tape:
            outputs = self.model(batch[0], training=True)
            per_example = self._loss(outputs, batch)
            _check_per_example(per_example)
            rows = per_example.shape[0]
            if rows is None:
                # Replicas may have different numbers of rows, so the global batch size must be
                # counted.
                rows = tf.shape(per_example)[0]
                global_rows = _sum_over(context, tf.cast(rows, tf.float32))
            else:
                global_rows = float(rows * replicas)
            loss_sum = tf.reduce_sum(per_example)
            scaled = loss_sum / global_rows * self._loss_scale
        gradients = tape.gradient(
            scaled, self._variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        gradients = _sum_over(context, [tf.convert_to_tensor(g) for g in gradients])
        # Everything below sees the reduced gradient, so an inf of any replica is seen by all.
        scaled_norm = tf.linalg.global_norm(gradients)
        norm = scaled_norm / self._loss_scale
        finite = tf.math.is_finite(scaled_norm)
        factor = 1 / self._loss_scale
        if self._clip_norm is not None:
            factor *= self._clip_norm / tf.maximum(norm, self._clip_norm)
        if self._clip_norm is not None or self._loss_scaling:
            gradients = [gradient * tf.cast(factor, gradient.dtype) for gradient in gradients]
        context.merge_call(self._update, args=(gradients, finite, rate))
        return tf.cast(loss_sum, tf.float64), tf.cast(rows, tf.int64), finite, norm

    def _update(self, strategy, gradients, finite, rate):
        """Updates every replica's variables by the reduced gradients, unless they are not
        finite.
        """
        finite, rate = (strategy.experimental_local_results(value)[0] for value in (finite, rate))

        def update_variable(variable, gradient, decays):
            variable_rate = tf.cast(rate, variable.dtype)
            if decays:
                variable.assign_sub(variable * self.optimizer.weight_decay * variable_rate)
            self.optimizer.update_step(gradient, variable, variable_rate)

        def apply():
            for variable, gradient, decays in zip(
                self._variables, gradients, self._decays, strict=True
            ):
                strategy.extended.update(
                    variable, update_variable, args=(gradient, decays), group=False
                )
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
        "use_ema": "keep averages outside the optimizer",
        "loss_scale_factor": "give `loss_scaling` to the loop",
        "gradient_accumulation_steps": "use a larger batch",
    }
    for name, way_out in refused.items():
        if getattr(optimizer, name, None):
            raise ValueError(
                f"The optimizer has `{name}` set ({getattr(optimizer, name)}), which Keras "
                f"applies on each replica "
                f"before the sum; {way_out} instead."
            )
