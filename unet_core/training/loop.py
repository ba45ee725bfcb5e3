"""The training loop: many steps per compiled call, exact on any number of replicas.

    loop = Loop(model, optimizer, loss=my_loss, strategy=strategy)
    for report in loop.train(dataset_fn, until_step=1000, report_every_steps=100):
        print(report.step, report.loss)     # the caller keeps control: break, evaluate, save

In this short form a batch is a tuple whose first item goes into the model, or one tensor, and
`loss` and `metrics` are plain callables of (outputs, batch). In the general form a loop has one or
more parts, and their losses take batches of any structure:

    loop = Loop([Part(judge, judge_optimizer, judge_loss), Part(painter, ...)], strategy=strategy)
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from unet_core.errors import UserError
from unet_core.training import optimizers
from unet_core.training.autograph import converted, not_converted
from unet_core.training.calls import Calls, Result
from unet_core.training.evaluation import Evaluation
from unet_core.training.feed import DatasetFn, Feed, reason_of
from unet_core.training.parts import (
    Forward,
    Part,
    check_callable,
    check_count,
    check_number,
    inputs_of,
)
from unet_core.training.replicas import ReplicaWise
from unet_core.training.report import NonFiniteError, Report, Stopwatch, make_report
from unet_core.training.schedules import Schedule
from unet_core.training.step import SKIPS_AT_SCALE_1, Step
from unet_core.training.update import NO_ROWS, Update
from unet_core.training.variables import (
    copies_of,
    layers_of,
    of_tensorflow,
    variables_of,
)
from unet_core.training.workers import Workers


class Loop:
    """Trains and evaluates one model, or several parts that belong together.

    Args:
        model: A Keras model, a layer, or a `tf.Module`; called with the first item of a batch, and
            `training=...` if it takes that. Or a list of `Part`, and then no optimizer.
        optimizer: A Keras optimizer.
        loss: `(outputs, batch) -> [B]`, one value per example; or `Mean(values, weights)`; or a
            pair of one of them and a dict of more to report by name. The step divides once, by the
            rows (or weights) of the global batch; nothing else averages. Regularisers, `add_loss`
            and constraints of the model count as in Keras.
        metrics: `(outputs, batch) -> dict` of additive tensors, summed over batches and replicas in
            evaluation, in 64 bits; with a list of parts `batch -> dict`.
        strategy: Where model and optimizer were made; by default the current one.
        schedule: Of the one part; see `Part`, as for the next three.
        clip_norm: Of the one part.
        ema_decay: Of the one part.
        rate_factor: Of the one part.
        loss_scaling: Whether to scale the loss, for mixed precision in float16. An overflow on any
            replica then skips the update on all and halves the scale. Without it a gradient that is
            not finite stops the training.
        micro_batches: Gradient accumulation: micro-batches per optimizer update. So many batches of
            the dataset make up one global batch; their gradients are summed before the one update,
            so that memory is that of one of them. What uses statistics of the batch (batch norm, a
            batch-wise loss) sees one micro-batch. Only for one part.
        jit_compile: Whether to compile model, loss and gradient with XLA. A loss that reduces over
            several replicas stays outside; layers that do may not be compiled on several replicas.
            Dropout then draws other masks than without (TensorFlow 2.21, tensorflow#121243).
        seconds_per_call: How long one compiled call may take, about: a request to stop is seen
            after that.

    Raises:
        UserError: If an argument is not what it must be; the message says what it must be.
    """

    def __init__(
        self,
        model: Any,
        optimizer: keras.optimizers.Optimizer | None = None,
        *,
        loss: Callable[[Any, Any], Any] | None = None,
        metrics: Callable[..., dict[str, tf.Tensor]] | None = None,
        strategy: tf.distribute.Strategy | None = None,
        schedule: Schedule | None = None,
        clip_norm: float | None = None,
        ema_decay: float | None = None,
        rate_factor: Callable[[Any], float] | None = None,
        loss_scaling: bool = False,
        micro_batches: int = 1,
        jit_compile: bool = False,
        seconds_per_call: float = 2.0,
    ):
        check_count("micro_batches", micro_batches)
        check_number("seconds_per_call", seconds_per_call, above=0)
        self.strategy = strategy or tf.distribute.get_strategy()
        if not isinstance(self.strategy, tf.distribute.Strategy):
            raise UserError(f"`strategy` must be a tf.distribute.Strategy. Received {strategy!r}.")
        self._refused: list[UserError] = []
        options: dict[str, Any] = {"schedule": schedule, "rate_factor": rate_factor}
        options |= {"clip_norm": clip_norm, "ema_decay": ema_decay}
        self.parts, forward = _parts_of(model, optimizer, loss, metrics, micro_batches, **options)
        self._is_short_form = forward is not None
        seen = {"model": model, "loss": loss} if self._is_short_form else {}
        self._evaluation = Evaluation(self.strategy, self._refused, metrics=metrics, **seen)
        self._micro_batches = micro_batches
        self._seconds_per_call = seconds_per_call
        self._workers = Workers(self.strategy)
        self._step = tf.Variable(0, dtype=tf.int64, trainable=False, name="step")
        how: dict[str, Any] = {"micro_batches": micro_batches, "loss_scaling": loss_scaling}
        own: dict[str, Any] = {"forward": forward, "jit_compile": jit_compile}
        self._updates = [
            Update(part, name, self.strategy, self._step, refused=self._refused, **own, **how)
            for name, part in self.parts.items()
        ]
        self._one_step = Step(
            self._updates, self.strategy, self._step, refused=self._refused, **how
        )
        self._calls = Calls(self._one_step, self.strategy, parts=len(self.parts), **how)
        self._loss_scaling = loss_scaling
        self._window_is_new = True
        self._watch = Stopwatch()
        self._steps_per_call = 1
        self._has_begun = False
        self._inside_averages = False
        self._replica_wise = ReplicaWise(
            self.strategy, [part.model for part in self.parts.values()]
        )
        self.resumed_at = 0
        self._restores = 0
        if not self._is_short_form or _is_built(self.model):
            self._prepare(None)
        for update in self._updates:
            optimizers.claim(update.part.optimizer, self)

    @property
    def model(self) -> Any:
        """The model of the first part."""
        return self._updates[0].part.model

    @property
    def optimizer(self) -> keras.optimizers.Optimizer:
        """The optimizer of the first part."""
        return self._updates[0].part.optimizer

    @property
    def step(self) -> int:
        """Global batches consumed so far."""
        return int(self._step.numpy())

    @property
    def state(self) -> dict[str, tf.Variable]:
        """The loop's own variables by name, for a checkpoint.

        The name of an average has the place of its variable among those of the model.
        """
        found = {}
        for update in self._updates:
            prefix = "" if len(self._updates) == 1 else f"{update.name}_"
            for place, variable in enumerate(variables_of(update.part.model)):
                if (average := update.average_of(variable)) is not None:
                    found[f"{prefix}average_{place}"] = average
        step = self._one_step
        return {
            **found,
            "step": self._step,
            "loss_scale": step.loss_scale,
            "good_steps": step.good_steps,
            "skipped_steps": step.skipped,
            "skipped_at_scale_1": step.skipped_at_scale_1,
        }

    @property
    def traces(self) -> dict[str, int]:
        """How often each compiled function has been traced so far."""
        return {
            "train": self._calls.traces_of_steps,
            "update": self._calls.traces_of_batch,
            "evaluate": self._evaluation.traces,
        }

    @property
    def _variables(self) -> list[tf.Variable]:
        """The variables that are trained now."""
        return [variable for update in self._updates for variable in update.variables]

    @property
    def loss_scaling(self) -> bool:
        """Whether the loss is scaled."""
        return self._loss_scaling

    def train(
        self,
        dataset: DatasetFn | tf.data.Dataset | Feed,
        *,
        until_step: int,
        report_every_steps: int = 100,
        pause_every_steps: Sequence[int] = (),
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Generator[Report, None, None]:
        """Trains up to `until_step`, yielding a report whenever the loop pauses.

        It pauses at every multiple of `report_every_steps` and of each of `pause_every_steps`, at
        the end, when the data are used up, and when `should_stop()` is true after a call. While it
        pauses, the caller may evaluate, save, restore, or leave the loop.

        Args:
            dataset: `(start_step, InputContext) -> tf.data.Dataset` of per-replica batches, from
                the global batch `start_step` on; or a plain dataset of global batches; or what
                `feed` returned. With `micro_batches`, each global batch is that many of them.
            until_step: The step to end at.
            report_every_steps: Steps over which the reported loss is averaged.
            pause_every_steps: Further intervals, for evaluation and checkpoints.
            should_stop: Asked after every compiled call. If it is true on one worker, all stop at
                the same step.

        Raises (when it is iterated, but for wrong arguments):
            NonFiniteError: If a loss or gradient is not finite and there is no loss scaling, or at
                the smallest loss scale again and again.
            UserError: If an argument is wrong, the dataset fails, its batches do not suit the
                loop, or a plain dataset is given to a restored loop, which could not find its
                place in it.
        """
        if isinstance(pause_every_steps, int):
            raise UserError(
                f"`pause_every_steps` must be a list of intervals, such as [{pause_every_steps}]."
            )
        check_count("report_every_steps", report_every_steps)
        for interval in pause_every_steps:
            check_count("pause_every_steps", interval)
        if isinstance(until_step, bool) or not isinstance(until_step, (int, np.integer)):
            raise UserError(f"`until_step` ({until_step!r}) must be a whole number.")
        check_callable("should_stop", should_stop, "should_stop()", 0)
        feed = dataset if isinstance(dataset, Feed) else self.feed(dataset)
        intervals = [report_every_steps, *pause_every_steps]
        return self._train(feed, feed is dataset, int(until_step), intervals, should_stop)

    def feed(self, dataset: DatasetFn | tf.data.Dataset) -> Feed:
        """Returns the dataset for several calls of `train`.

        Each call goes on in it where the one before has left it.
        """
        return Feed(dataset, self.strategy, micro_batches=self._micro_batches)

    def trace(self, feed: Feed) -> tf.Graph:
        """Returns the graph of the compiled call of `train` on `feed`, and runs nothing.

        It is the one that `train` then runs: nothing is traced twice.

        Args:
            feed: What `feed` returned; it is opened at the step of the loop.

        Raises:
            UserError: As `train`.
        """
        self._check_free()
        with self._own_errors(self.step):
            iterator = feed.iterator_at(self.step)
            self._prepare(feed.element_spec)
            how = {"is_marked": feed.is_marked, "static": feed.is_static}
            return self._calls.graph_of_steps(iterator, **how)

    def update(self, batch: Any) -> Report:
        """Makes one step on a given batch and returns its report; `loss` is that of the batch.

        Args:
            batch: Any structure of tensors or arrays; with several replicas, per-replica values as
                `strategy.experimental_distribute_values_from_function` makes them.

        Raises:
            NonFiniteError: As in `train`.
            UserError: If the loop accumulates gradients, or the batch is not shared among replicas.
        """
        if self._micro_batches > 1:
            raise UserError(
                f"`update` makes one step of one batch, and this loop accumulates gradients over "
                f"{self._micro_batches} micro-batches; make a loop without `micro_batches`."
            )
        leaves = tf.nest.flatten(batch)
        shared = [isinstance(leaf, tf.distribute.DistributedValues) for leaf in leaves]
        if self.strategy.num_replicas_in_sync > 1 and not all(shared):
            raise UserError(
                f"A given batch must hold one part for each of the "
                f"{self.strategy.num_replicas_in_sync} replicas: make it with "
                "strategy.experimental_distribute_values_from_function."
            )
        self._check_free()
        if not any(shared):
            batch = tf.nest.map_structure(_as_tensor, batch)
        if not (self._has_begun and all(update.is_as_seen() for update in self._updates)):
            if not self._updates[0].trained:
                self._build(tf.nest.map_structure(tf.type_spec_from_value, batch))
            self._prepare(None)
            self._has_begun = True
        with self._own_errors(None):
            result = self._calls.batch(batch)
        self._check_finite(result, result.steps)
        self._watch.start_over()
        how = {"step": result.steps, "due": True, "stopping": False, "exhausted": False}
        return make_report(result, self._names, Stopwatch(), **how)

    def evaluate(
        self,
        dataset: Callable[[tf.distribute.InputContext], tf.data.Dataset] | tf.data.Dataset,
    ) -> dict[str, np.ndarray]:
        """Returns the sums over a finite dataset: `loss`, `examples` and what `metrics` returns.

        The last batch may be smaller, and missing on some replicas. No variable is changed.
        `examples` is what the loss divides by: rows, or weights of a `Mean`. With a list of parts
        there is what `metrics` returns alone.

        Args:
            dataset: `InputContext -> tf.data.Dataset` of per-replica batches, or a plain dataset of
                global batches.

        Raises:
            UserError: If the dataset is endless or empty, or fails.
        """
        with self._own_errors(None), self._unchanged():
            return self._evaluation.run(dataset)

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Puts the moving average in place of the model's weights, to evaluate or predict with.

        Without `ema_decay` this does nothing. Training and saving inside are refused.

        Raises:
            UserError: If it is entered twice.
        """
        self._check_free()
        if self.step == 0:
            for update in self._updates:
                update.reset_averages()
        self._exchange_weights()
        self._inside_averages = any(update.averages for update in self._updates)
        try:
            yield
        finally:
            self._inside_averages = False
            self._exchange_weights()

    # For checkpoints.

    @property
    def window(self) -> list[float]:
        """The sums since the last report that was due."""
        return [] if self._window_is_new else self._calls.window

    @window.setter
    def window(self, sums: Sequence[float]) -> None:
        self._window_is_new = not sums
        if sums:
            self._calls.window = sums

    def note_restore(self) -> None:
        """Notes that all state is that of another step now."""
        self.resumed_at = self.step
        self._restores += 1

    def check_may_save(self) -> None:
        """Raises UserError unless all state is as it is between two steps."""
        self._check_free()
        if not self._variables:
            raise UserError(
                "The model has no variables yet. Call it once on a batch, inside the scope of the "
                "strategy, before it is saved or restored."
            )

    # On the host.

    def _train(
        self, feed, keep_open, until_step, intervals, should_stop
    ) -> Generator[Report, None, None]:
        step = self.step
        if step >= until_step:
            return
        self._check_free()
        if self.resumed_at and not feed.from_function:
            raise UserError(
                f"The loop was restored at step {self.resumed_at}, and a plain tf.data.Dataset "
                "cannot be entered there. Give a callable (start_step, "
                "tf.distribute.InputContext) -> tf.data.Dataset instead."
            )
        restored = self._restores
        unprepared, reported = True, step
        self._watch.start_window()
        try:
            while step < until_step:
                with self._own_errors(step):
                    iterator = feed.iterator_at(step)
                    if unprepared:
                        self._prepare(feed.element_spec)
                        unprepared = False
                pause = min([until_step, *((step // every + 1) * every for every in intervals)])
                result, exhausted, stopping = self._call(feed, iterator, step, pause, should_stop)
                step += result.steps
                ended = stopping or exhausted
                if (step == pause or ended) and step != reported:
                    due = step % intervals[0] == 0
                    report = make_report(
                        result,
                        self._names,
                        self._watch,
                        step=step,
                        due=due,
                        stopping=stopping,
                        exhausted=exhausted and step < until_step,
                    )
                    self._watch.start_window()
                    # Before the caller may save: a checkpoint holds the window as it goes on.
                    self._window_is_new = self._window_is_new or due
                    self._replica_wise.average_statistics()
                    reported = step
                    yield report
                    if self._restores != restored or self.step != step:
                        # Restored or trained by the caller: the feed goes to that step, or refuses.
                        step, restored = self.step, self._restores
                        reported = step
                        continue
                elif exhausted and step < until_step:
                    warnings.warn(
                        f"The data ended at step {step}, before `until_step` ({until_step}).",
                        stacklevel=2,
                    )
                if ended:
                    return
        finally:
            if not keep_open:
                feed.close()

    def _call(self, feed, iterator, step, pause, should_stop) -> tuple[Result, bool, bool]:
        """Makes one compiled call, from `step` to `pause` at most.

        Returns:
            Its result, whether the data have ended, and whether this or another worker is to stop.
        """
        before = time.perf_counter()
        with self._own_errors(step):
            result = self._calls.steps(
                iterator,
                min(pause - step, self._steps_per_call),
                new_window=self._window_is_new,
                is_marked=feed.is_marked,
                static=feed.is_static,
            )
        if result.steps:
            self._window_is_new = False
        feed.advance(result.steps)
        seconds = time.perf_counter() - before
        self._watch.add(seconds, result.steps, result.wait, result.examples)
        self._check_finite(result, step + result.steps)
        # Workers run equally many steps per call, or their sums would not find one another.
        wishes = self._workers.gather(
            [self._watch.steps_in(self._seconds_per_call), int(should_stop())]
        )
        self._steps_per_call = int(wishes[:, 0].min())
        return result, result.exhausted or feed.is_used_up, bool(wishes[:, 1].any())

    def _check_free(self) -> None:
        if self._inside_averages:
            raise UserError(
                "Inside `averaged_weights()` the averages stand in place of the weights: train, "
                "save and restore outside of it."
            )
        for update in self._updates:
            if not optimizers.is_claimed_by(update.part.optimizer, self):
                raise UserError(
                    f"The {type(update.part.optimizer).__name__} of this loop has been given to "
                    "another loop, and two would count steps together. Make one for each loop."
                )

    def _prepare(self, element_spec: Any) -> None:
        """Takes over what is trainable now, after building what has not been built."""
        if element_spec is not None and self._is_short_form and not _is_built(self.model):
            self._build(element_spec)
        if any([update.refresh() for update in self._updates]):
            self._calls.forget()
            self._watch.start_over()
            self._steps_per_call = 1
            self._replica_wise.refresh()
        if self.step == 0:
            for update in self._updates:
                update.reset_averages()

    def _build(self, element_spec: Any) -> None:
        """Calls the model once, so that its layers make their variables."""
        specs = inputs_of(element_spec)
        inputs = tf.nest.map_structure(
            lambda spec: tf.zeros([size or 1 for size in spec.shape], spec.dtype), specs
        )
        with self.strategy.scope():
            Forward(self.model, training=False).call(inputs)

    def _exchange_weights(self) -> None:
        def exchange(variable, average):
            value = tf.identity(variable)
            variable.assign(average)
            average.assign(value)

        for update in self._updates:
            for variable in variables_of(update.part.model):
                if (average := update.average_of(variable)) is not None:
                    with self.strategy.scope():
                        self.strategy.extended.update(
                            of_tensorflow(variable), exchange, args=(average,), group=False
                        )

    @contextlib.contextmanager
    def _unchanged(self) -> Iterator[None]:
        """Puts back what the models write themselves, such as the state of a stateful layer."""
        copies = [
            copy
            for part in self.parts.values()
            for variable in variables_of(part.model)
            if not variable.trainable
            for copy in copies_of(self.strategy, variable)
        ]
        before = [tf.identity(copy) for copy in copies]
        try:
            yield
        finally:
            for copy, value in zip(copies, before, strict=True):
                copy.assign(value)

    @contextlib.contextmanager
    def _own_errors(self, step: int | None) -> Iterator[None]:
        """Raises what was refused while tracing, or by a generator, as it was said."""
        self._refused.clear()
        try:
            yield
        except tf.errors.OpError as error:
            reason = NO_ROWS if NO_ROWS in error.message else reason_of(error)
            if reason is None:
                raise
            where = "" if step is None else f" (the loop was at step {step})"
            raise UserError(f"The dataset failed{where}: {reason}") from error
        except Exception:
            if self._refused:
                # Autograph hands on only its text, among its own.
                refusal = self._refused[-1]
                raise refusal.with_traceback(None) from refusal.__cause__
            raise

    @property
    def _names(self) -> list[list[str]]:
        """Of each part its own name, then those of the values its loss has named."""
        return [[update.name, *update.names] for update in self._updates]

    def _check_finite(self, result: Result, step: int) -> None:
        if result.failed >= 0 and not self._loss_scaling:
            part = self._updates[result.failed].name if len(self._updates) > 1 else None
            raise NonFiniteError(step, part=part)
        if result.stuck >= SKIPS_AT_SCALE_1:
            raise NonFiniteError(step - 1, skipped=result.stuck - 1)


def _as_tensor(value: Any) -> Any:
    """Returns a tensor of an array or number; composite tensors and None as they are."""
    if value is None or tf.is_tensor(value):
        return value
    return tf.convert_to_tensor(value)


def _parts_of(
    model: Any,
    optimizer: keras.optimizers.Optimizer | None,
    loss: Any,
    metrics: Any,
    micro_batches: int,
    **options: Any,
) -> tuple[dict[str, Part], Forward | None]:
    """Returns the parts by name, and how the model of the short form is called."""
    if isinstance(model, (list, tuple)) and model and isinstance(model[0], Part):
        parts = _checked_parts(model, (optimizer, loss, *options.values()), micro_batches)
        if metrics is not None:
            check_callable("metrics", metrics, "metrics(batch)", 1)
        return parts, None
    check_callable("loss", loss, "loss(outputs, batch)", 2)
    if metrics is not None:
        check_callable("metrics", metrics, "metrics(outputs, batch)", 2)
    forward = Forward(model, training=True)

    @not_converted
    def loss_of_batch(batch):
        return converted(loss)(forward(batch), batch)

    return {"model": Part(model, optimizer, loss_of_batch, name="model", **options)}, forward


def _checked_parts(
    parts: Sequence[Part], options: Sequence[Any], micro_batches: int
) -> dict[str, Part]:
    if not all(isinstance(part, Part) for part in parts):
        raise UserError("A list of parts must hold `Part`s alone.")
    if any(option is not None for option in options):
        raise UserError(
            "With a list of parts, each `Part` has its own optimizer, loss, schedule, clip_norm, "
            "ema_decay and rate_factor; leave those of the loop out."
        )
    if len(parts) > 1 and micro_batches > 1:
        raise UserError(
            f"`micro_batches` ({micro_batches}) is for one part: of several, each would need the "
            "whole global batch before the next one is updated. Leave it out, or make a loop for "
            "each part."
        )
    named = {part.name or f"part{number}": part for number, part in enumerate(parts)}
    if len(named) < len(parts):
        raise UserError("Two parts have one name; give each a `name` of its own.")
    if len({id(part.optimizer) for part in parts}) < len(parts):
        raise UserError("Two parts have one optimizer object; make one for each.")
    return named


def _is_built(model: Any) -> bool:
    return all(layer.built for layer in layers_of(model))
