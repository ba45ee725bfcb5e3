"""The update of one part.

Its loss is differentiated on each replica; gradients are reduced once, checked, clipped and
applied, with weight decay and moving averages.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from typing import Any, TypeAlias

import tensorflow as tf

from unet_core.errors import UserError
from unet_core.training import optimizers
from unet_core.training.autograph import converted, not_converted
from unet_core.training.means import Sum, noted, read_loss
from unet_core.training.parts import Forward, Part
from unet_core.training.replicas import check_losses_of_calls, reductions
from unet_core.training.variables import (
    AddedLosses,
    key_of,
    layers_of,
    name_of,
    names_of,
    of_tensorflow,
    trainable_variables_of,
    variables_of,
    without_frozen,
)

NO_ROWS = (
    "the last batch is too small for every replica to have rows of it, and what reduces over "
    "replicas (such as synchronised batch normalisation) needs some on each. Drop the remainder "
    "of the dataset, or repeat it."
)
Gradient: TypeAlias = tf.Tensor | tf.IndexedSlices

# How many sums of the loss there are before those of the named values, and the places of the
# weights that the two groups of gradients are divided by.
SUMS = 4
_WEIGHTS = (1, 3)

# Of all loops of this process: one may train what the loss of another depends on.
_updates: weakref.WeakSet[Update] = weakref.WeakSet()


class Update:
    """The updates of one part.

    Args:
        part: What is updated.
        name: What reports and checkpoints call it.
        strategy: Where its model and optimizer were made.
        step: Counts the global batches of the loop.
        loss_scaling: Whether the loss is scaled.
        micro_batches: Batches whose gradients are summed before one update.
        jit_compile: Whether to compile the loss and its gradient with XLA.
        forward: The model call of the short form, if `part.loss` makes it.
        refused: Takes what is refused while tracing.
    """

    def __init__(
        self,
        part: Part,
        name: str,
        strategy: tf.distribute.Strategy,
        step: tf.Variable,
        *,
        loss_scaling: bool,
        micro_batches: int,
        jit_compile: bool,
        forward: Forward | None,
        refused: list[UserError],
    ):
        self.part = part
        self.name = name
        self._of = f" of {name!r}" if forward is None else ""
        self.names: list[str] = []
        self.averages: dict[str, tf.Variable] = {}
        self.trained: list[Any] = []
        self._strategy = strategy
        self._step = step
        self._loss_scaling = loss_scaling
        self._micro_batches = micro_batches
        self._batches = strategy.num_replicas_in_sync * micro_batches
        self._jit_compile = jit_compile
        self._forward = forward
        self._refused = refused
        self._gradient_sums: list[tf.Variable] = []
        self._signature: list[Any] = []
        self._seen: list[Any] = []
        self._flags: list[bool] = []
        self._check_scope(variables_of(part.model), "model")
        self._check_scope(part.optimizer.variables, "optimizer")
        _updates.add(self)

    @property
    def variables(self) -> list[tf.Variable]:
        """The variables that are trained now."""
        return [of_tensorflow(variable) for variable in self.trained]

    def refresh(self) -> bool:
        """Takes over what is trainable in the model now and returns whether that has changed.

        New variables get slots and averages; those of frozen ones are kept.

        Raises:
            UserError: If nothing is trainable, or the model is of another strategy.
        """
        trained = trainable_variables_of(self.part.model)
        # A layer without variables may behave in another way when it is frozen.
        layers = layers_of(self.part.model)
        signature = [*map(key_of, trained), *(layer.trainable for layer in layers)]
        if signature == self._signature:
            return False
        if not trained:
            raise UserError(
                f"Nothing in the model{self._of} is trainable: set `trainable = True` where "
                "it is to be trained, or, if it has no variables yet, call it once on a batch "
                "inside the scope of the strategy."
            )
        self._check_scope(trained, "model")
        for variable in trained:
            if getattr(variable, "overwrite_with_gradient", False):
                raise UserError(
                    f"{name_of(variable)} takes its gradient for its value (float8 scales of "
                    "Keras), which the loop cannot do; train in another precision."
                )
        self._rate_factors = [self.part.rate_factor_of(variable) for variable in trained]
        with self._strategy.scope():
            optimizers.build(self.part.optimizer, trained)
            if self.part.ema_decay is not None:
                self._add_averages(trained)
            # What one replica has summed up of the global batch so far; not needed between steps.
            self._gradient_sums = [
                _own_of_replica(v.shape, tf.float32 if v.dtype.size < 4 else v.dtype)
                for v in map(of_tensorflow, trained)
                if self._micro_batches > 1
            ]
        self._decays = [optimizers.decay_of(self.part.optimizer, v) for v in trained]
        self._constraints = [getattr(v, "constraint", None) for v in trained]
        self._connected: list[bool] | None = None
        # What is found while tracing.
        self._groups = 1
        self._divided = self._may_divide = self._adds = self._apart = False
        self._added_losses = AddedLosses(self.part.model)
        self._compiled = tf.function(self._differentiate, jit_compile=True)
        if self._forward is not None:
            self._forward.forget()
        self.trained, self._signature = trained, signature
        self._seen = [*layers, *variables_of(self.part.model)]
        self._flags = [each.trainable for each in self._seen]
        return True

    def is_as_seen(self) -> bool:
        """Returns whether all that `refresh` has seen is trainable, or not, as it was then.

        This is quicker than to look at the whole model again.
        """
        return self._flags == [each.trainable for each in self._seen]

    def average_of(self, variable: Any) -> tf.Variable | None:
        """Returns the moving average of `variable`, None if there is none."""
        return self.averages.get(key_of(variable))

    def reset_averages(self) -> None:
        """Lets the averages begin with the weights as they are now, those of frozen ones too."""
        for variable in variables_of(self.part.model):
            if (average := self.average_of(variable)) is not None:
                with self._strategy.scope():
                    self._strategy.extended.update(
                        average,
                        lambda a, v: a.assign(v),
                        args=(of_tensorflow(variable),),
                        group=False,
                    )

    # What follows runs in the graph, on one replica unless said otherwise.

    def whole(self, batch, present, rate, loss_scale, ok, *, static: bool):
        """Trains on this replica's share of a global batch; returns what `_reduce_and_update` does.

        Args:
            batch: This replica's batch.
            present: Whether there is one; None if there always is.
            rate: Learning rate.
            loss_scale: Factor on the loss.
            ok: Whether the parts before this one could be updated; None for the first.
            static: Whether all replicas have batches of the shapes known while tracing.
        """
        gradients, own, divisors = self._gradients(batch, present, loss_scale, static)
        sums = _sum_over_replicas(own)
        shares = [None] * self._groups
        if not self._divided and self._apart:
            shares = [
                tf.math.divide_no_nan(divisors[number], sums[place])
                for number, place in enumerate(_WEIGHTS[: self._groups])
            ]
        gradients = self._sum_of_groups(gradients, shares)
        return self._reduce_and_update(gradients, sums, rate, loss_scale, ok)

    def add(self, batch, present, loss_scale, first, *, static: bool):
        """Adds the gradients of one micro-batch to those of this replica; returns its sums."""
        gradients, sums, divisors = self._gradients(batch, present, loss_scale, static)
        if self._groups > 1:
            with noted(self._refused):
                raise UserError(
                    "The loss is a `Mean` and the model adds losses of its own (regularisers, "
                    "`add_loss`), which divide by other numbers: `micro_batches` cannot sum the "
                    "two. Leave it out, or take `model.losses` into the loss."
                )
        for total, gradient in zip(self._connected_of(self._gradient_sums), gradients, strict=True):
            gradient = tf.cast(tf.convert_to_tensor(gradient), total.dtype)
            if not self._divided:
                gradient *= tf.cast(divisors[0], gradient.dtype)
            total.assign(tf.where(first, gradient, total + gradient))
        return sums

    def summed(self, sums, rate, loss_scale, ok):
        """Updates by what has been added; `sums` are those of all replicas."""
        gradients = [tf.convert_to_tensor(v) for v in self._connected_of(self._gradient_sums)]
        if not self._divided:
            share = tf.math.divide_no_nan(tf.constant(1.0, tf.float64), sums[_WEIGHTS[0]])
            gradients = [_scaled(gradient, share) for gradient in gradients]
        return self._reduce_and_update(gradients, sums, rate, loss_scale, ok)

    def _gradients(self, batch, present, loss_scale, static):
        """Returns what `_differentiate` does, zeros if there is no batch."""
        # A compiled function may be one of an earlier trace, with other rows. A replica that may
        # have no rows makes their number unknown.
        self._may_divide = static and present is None and not self._jit_compile
        several = self._strategy.num_replicas_in_sync > 1
        self._apart = several and (present is not None or self._jit_compile)
        differentiate = self._compiled if self._jit_compile else self._differentiate
        try:
            if present is None:
                return differentiate(batch, loss_scale)
            return tf.cond(present, lambda: _dense(differentiate(batch, loss_scale)), self._nothing)
        except RuntimeError as error:
            if "merge_call" not in str(error):
                raise
            return self._gradients_of_shared_loss(batch, present, loss_scale, error)

    def _gradients_of_shared_loss(self, batch, present, loss_scale, error):
        """As `_gradients`, for a loss that reduces over replicas.

        Such a loss cannot be inside XLA or a condition; the model of the short form may be.
        """
        self._apart = False
        try:
            if self._forward is None:
                raise error
            self._forward.jit_compile, self._forward.present = self._jit_compile, present
            return self._differentiate(batch, loss_scale)
        except RuntimeError as shared:
            if "merge_call" not in str(shared):
                raise
            if self._jit_compile:
                with noted(self._refused):
                    raise UserError(
                        f"The model or the loss{self._of} reduces over replicas (such as "
                        "synchronised batch normalisation), which XLA cannot compile on several "
                        "replicas. Leave `jit_compile` out; dropout by rows alone can be compiled "
                        "if the dataset says that it is endless, so that all replicas have "
                        "equally many."
                    ) from shared
            with tf.control_dependencies([tf.debugging.Assert(present, [NO_ROWS])]):
                batch = tf.nest.map_structure(tf.identity, batch, expand_composites=True)
            if self._forward is not None:
                self._forward.present = None
            return self._differentiate(batch, loss_scale)
        finally:
            if self._forward is not None:
                self._forward.jit_compile, self._forward.present = False, None

    def _differentiate(self, batch, loss_scale):
        """Returns (gradients, sums, divisors) of this replica's scaled loss.

        The loss is divided before it is differentiated, or 16-bit gradients would overflow: by the
        rows of the global batch if they are known while tracing (`_divided`), else by what is
        counted in the batches of all replicas, or, where replicas cannot ask one another
        (`_apart`), in that of this one, times the number of batches in a global one.

        A loss that divides by weights, beside losses of the model, which divide by rows, has two
        groups of gradients (`_groups`). The sums are float64 [loss, its weight, losses of the model
        times rows, rows, named value, its weight, ...]; the divisors those of each group.
        """
        with noted(self._refused):
            return self._loss_and_gradients(batch, loss_scale)

    def _loss_and_gradients(self, batch, loss_scale):
        with tf.GradientTape(persistent=True) as tape:
            before = reductions()
            with self._added_losses:
                loss, named = read_loss(converted(self.part.loss)(batch))
            check_losses_of_calls(self._added_losses, before)
            left = self._added_losses.left()
            self._adds = bool(left)
            added = loss.sum_of(left) if left else 0
            self._groups = 2 if left and loss.is_weighted else 1
            divisor = self._divisor(loss.static_weight)
            self._divided = divisor is not None
            dtype = loss.total.dtype
            scale = tf.cast(loss_scale, dtype)
            totals = [loss.total]
            if left:
                of_rows = added * tf.cast(loss.rows, dtype)
                totals = [loss.total, of_rows] if self._groups > 1 else [loss.total + of_rows]
            divisors = tf.zeros([2], tf.float64)
            if self._divided:
                means = [totals[0] / divisor]
            else:
                divisors = self._counted(loss)
                means = [
                    tf.math.divide_no_nan(total, tf.cast(divisors[number], dtype))
                    for number, total in enumerate(totals)
                ]
            targets = [mean * scale for mean in means]
        self._check_watched(tape.watched_variables())
        groups = [tape.gradient(target, self.variables) for target in targets]
        del tape
        connected = [any(g is not None for g in each) for each in zip(*groups, strict=True)]
        self._note_connected(connected)
        self.names = list(named)
        sums = [loss.total, loss.weight, 0, 0]
        if left:
            sums[2:] = [tf.cast(added, tf.float64) * loss.rows, loss.rows]
        for value in named.values():
            sums += [value.total, value.weight]
        sums = tf.stack([tf.cast(value, tf.float64) for value in sums])
        variables = self._connected_of(self.variables)
        gradients = [
            tf.zeros_like(variable) if gradient is None else self._as_taken(gradient)
            for group in groups
            for variable, gradient in zip(variables, self._connected_of(group), strict=True)
        ]
        return gradients, sums, divisors

    def _counted(self, loss: Sum) -> tf.Tensor:
        """Returns what the groups of gradients are divided by, before they are summed."""
        counted = tf.stack([loss.weight, loss.rows])
        if self._apart:
            return counted * self._batches
        return _sum_over_replicas(counted) * self._micro_batches

    def _nothing(self):
        """Returns what `_differentiate` does for a replica without rows."""
        gradients = [tf.zeros_like(v) for v in self._connected_of(self.variables)]
        sums = tf.zeros([SUMS + 2 * len(self.names)], tf.float64)
        return gradients * self._groups, sums, tf.zeros([2], tf.float64)

    def _sum_of_groups(self, gradients, shares):
        """Returns one gradient of each variable, each group multiplied by its share."""
        size = len(gradients) // len(shares)
        groups = [gradients[n * size : (n + 1) * size] for n in range(len(shares))]
        groups = [
            group if share is None else [_scaled(gradient, share) for gradient in group]
            for group, share in zip(groups, shares, strict=True)
        ]
        if len(groups) == 1:
            return groups[0]
        return [
            tf.add_n(list(map(tf.convert_to_tensor, each))) for each in zip(*groups, strict=True)
        ]

    def _divisor(self, rows: int | None) -> float | None:
        """Returns the rows of a global batch, if those of a replica's batch are known."""
        if not rows or not self._may_divide:
            return None
        return float(rows * self._batches)

    def _as_taken(self, gradient: Gradient) -> Gradient:
        keeps = self._micro_batches == 1 and optimizers.takes_slices(self.part.optimizer)
        return gradient if keeps else tf.convert_to_tensor(gradient)

    def _reduce_and_update(self, gradients, sums, rate, loss_scale, ok):
        """Returns the sums of the global batch, whether all is finite, and the gradient's norm.

        The norm is the global one; loss and gradient are what must be finite.
        """
        context = tf.distribute.get_replica_context()
        gradients = _reduced(gradients)
        # Everything below sees the reduced gradient, so an inf of any replica is seen by all.
        scaled_norm = _global_norm(gradients)
        factor = 1 / tf.cast(loss_scale, scaled_norm.dtype)
        loss = sums[0] + sums[2] if self._adds else sums[0]
        finite = tf.math.is_finite(scaled_norm) & tf.math.is_finite(loss)
        norm = scaled_norm * factor
        clip_norm = self.part.clip_norm
        if clip_norm is not None:
            factor *= tf.cast(clip_norm, norm.dtype) / tf.maximum(norm, clip_norm)
        if clip_norm is not None or self._loss_scaling:
            gradients = [_scaled(gradient, factor) for gradient in gradients]
        applies = finite if ok is None else finite & ok
        context.merge_call(self._apply, args=(gradients, applies, rate))
        return sums, finite, tf.cast(norm, tf.float32)

    def _apply(self, strategy, gradients, applies, rate):
        """Updates every replica's variables by the reduced gradients if that applies."""
        applies, rate = (strategy.experimental_local_results(value)[0] for value in (applies, rate))
        optimizer = self.part.optimizer

        def update_variable(variable, gradient, factor, decay, constraint, average, ema_decay):
            variable_rate = tf.cast(rate if factor == 1 else rate * factor, variable.dtype)
            if decay is not None:
                variable.assign_sub(variable * decay * variable_rate)
            converted(optimizer.update_step)(gradient, variable, variable_rate)
            if constraint is not None:
                variable.assign(converted(constraint)(variable))
            if average is not None:
                difference = variable - average
                average.assign_add(difference * tf.cast(1 - ema_decay, difference.dtype))

        def apply():
            optimizers.before_updates(optimizer)
            step = tf.cast(self._step, tf.float32)
            ema_decay = tf.minimum(self.part.ema_decay or 0.0, (1 + step) / (10 + step))
            for place, variable in enumerate(self._connected_of(self.variables)):
                strategy.extended.update(
                    variable,
                    update_variable,
                    args=(
                        gradients[place],
                        self._connected_of(self._rate_factors)[place],
                        self._connected_of(self._decays)[place],
                        self._connected_of(self._constraints)[place],
                        self.averages.get(key_of(variable)),
                        ema_decay,
                    ),
                    group=False,
                )
            optimizer.iterations.assign_add(1)
            return tf.constant(True)

        tf.cond(applies, apply, lambda: tf.constant(False))

    # What follows looks while the graph is traced.

    @not_converted
    def _check_watched(self, watched: Sequence[Any]) -> None:
        """Refuses a loss of variables that nobody trains."""
        trained = set(map(key_of, trainable_variables_of(self.part.model)))
        if trained != set(map(key_of, self.trained)):
            new = [
                v
                for v in trainable_variables_of(self.part.model)
                if key_of(v) not in set(map(key_of, self.trained))
            ]
            raise UserError(
                f"The model{self._of} made variables while it was trained "
                f"({names_of(new)}). Call it once on a batch, inside the scope of the strategy, "
                "before the loop is made."
            )
        own = set(map(key_of, variables_of(self.part.model)))
        strangers = [v for v in watched if key_of(v) not in own and not _is_trained(v)]
        if strangers := without_frozen(strangers):
            raise UserError(
                f"The loss{self._of} depends on the trainable variables "
                f"{names_of(strangers)}, which nothing trains. Give them to the loop (add the "
                "layer to the model, or a Part of their own), or make them not trainable."
            )

    @not_converted
    def _note_connected(self, connected: list[bool]) -> None:
        if not any(connected):
            raise UserError(
                f"The loss{self._of} does not depend on any trainable variable of the "
                f"model ({names_of(self.trained)}); nothing would be trained."
            )
        if self._connected is None and not all(connected):
            left_out = [v for v, has in zip(self.trained, connected, strict=True) if not has]
            warnings.warn(
                f"The loss{self._of} does not depend on {names_of(left_out)}; like in "
                "Keras, they are not updated, and do not decay.",
                stacklevel=2,
            )
        self._connected = connected

    def _connected_of(self, items: Sequence[Any]) -> list[Any]:
        return [item for item, has in zip(items, self._connected or (), strict=True) if has]

    def _add_averages(self, trained: Sequence[Any]) -> None:
        part = self.part
        taken = {}
        if part.average_into is not None:
            pairs = zip(variables_of(part.model), variables_of(part.average_into), strict=True)
            taken = {key_of(variable): of_tensorflow(other) for variable, other in pairs}
        for variable in trained:
            key = key_of(variable)
            if key in self.averages:
                continue
            if key in taken:
                self.averages[key] = taken[key]
            else:
                self.averages[key] = tf.Variable(of_tensorflow(variable), trainable=False)

    def _check_scope(self, variables: Sequence[Any], what: str) -> None:
        extended = self._strategy.extended
        for variable in map(of_tensorflow, variables):
            if not extended.variable_created_in_scope(variable):
                raise UserError(
                    f"The {what}{self._of} was not made in the scope of the loop's "
                    f"strategy ({type(self._strategy).__name__} of "
                    f"{self._strategy.num_replicas_in_sync}). Make model and optimizer inside "
                    "`with strategy.scope():`, and give that strategy to the loop."
                )


def _is_trained(variable: Any) -> bool:
    """Returns whether a part of any loop trains `variable`, as the other one of two loops may."""
    key = key_of(variable)
    return any(key == key_of(other) for update in list(_updates) for other in update.trained)


def _reduced(gradients: Sequence[Gradient]) -> list[Gradient]:
    """Returns the gradients summed over replicas; slices of one row are summed to one slice."""
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync > 1:
        gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, list(gradients))
    return [_without_repeats(g) if isinstance(g, tf.IndexedSlices) else g for g in gradients]


def _without_repeats(slices: tf.IndexedSlices) -> tf.IndexedSlices:
    """Returns the same gradient with each row once: Adam squares it."""
    indices, places = tf.unique(slices.indices)
    values = tf.math.unsorted_segment_sum(slices.values, places, tf.size(indices))
    return tf.IndexedSlices(values, indices, slices.dense_shape)


def _global_norm(gradients: Sequence[Gradient]) -> tf.Tensor:
    """Returns the global norm in float32, or float64 if there are such gradients.

    16-bit squares would overflow.
    """
    dtypes = {gradient.dtype for gradient in gradients}
    if dtypes != {tf.float32}:
        wide = tf.float64 if tf.float64 in dtypes else tf.float32
        gradients = [
            tf.cast(g.values if isinstance(g, tf.IndexedSlices) else g, wide) for g in gradients
        ]
    return tf.linalg.global_norm(gradients)


def _scaled(gradient: Gradient, factor: tf.Tensor) -> Gradient:
    factor = tf.cast(factor, gradient.dtype)
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(gradient.values * factor, gradient.indices, gradient.dense_shape)
    return gradient * factor


def _dense(result):
    gradients, *others = result
    return [tf.convert_to_tensor(gradient) for gradient in gradients], *others


def _sum_over_replicas(values):
    context = tf.distribute.get_replica_context()
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
