"""A part of a loop: one set of variables, the optimizer that owns them, and their loss.

Most loops have one part, which the short form of `Loop` makes. Several are updated in order, each
with what the ones before it have left:

    Loop([Part(judge, judge_optimizer, judge_loss), Part(painter, painter_optimizer, fool_loss)])
"""

from __future__ import annotations

import inspect
import math
import numbers
import re
from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from unet_core.errors import UserError
from unet_core.training import optimizers
from unet_core.training.autograph import converted
from unet_core.training.schedules import Schedule
from unet_core.training.variables import check_model, name_of, variables_of


class Part:
    """Variables that are trained by one optimizer on one loss.

    Args:
        model: A Keras model or layer, a `tf.Module`, or a list of variables. What is trainable in
            it is trained; regularisers, `add_loss` and constraints of a Keras model count.
        optimizer: A Keras optimizer.
        loss: `batch -> [B]`, or `Mean(values, weights)`, or a pair of one of them and a dict of
            more by name; called on each replica with its own batch, of any structure.
        name: What reports and checkpoints call it; by default `part` and its number.
        schedule: Step -> learning rate. None leaves the optimizer its own.
        clip_norm: Largest global norm of the reduced gradient, > 0; None does not clip.
        every: Update at every so many steps only, at step 0 first.
        ema_decay: Decay of an exponential moving average of the weights, 0 <= decay < 1; None
            keeps none. While the run is young the decay is (1 + step) / (10 + step).
        average_into: A model of the same variables that takes the averages, such as the teacher
            of a mean teacher; needs `ema_decay`. Its trainable variables alone are written.
        rate_factor: Variable -> factor, >= 0, on the learning rate of that variable, and so on its
            decoupled weight decay; asked when what is trainable has changed. None is 1 for all.

    Raises:
        UserError: If an argument is not what it must be; the message says what it must be.
    """

    def __init__(
        self,
        model: Any,
        optimizer: keras.optimizers.Optimizer,
        loss: Callable[[Any], Any],
        *,
        name: str | None = None,
        schedule: Schedule | None = None,
        clip_norm: float | None = None,
        every: int = 1,
        ema_decay: float | None = None,
        average_into: Any = None,
        rate_factor: Callable[[Any], float] | None = None,
    ):
        check_model(model)
        optimizers.check(optimizer)
        check_callable("loss", loss, "loss(batch)", 1)
        if clip_norm is not None:
            check_number("clip_norm", clip_norm, above=0)
        check_count("every", every)
        if ema_decay is not None:
            check_number("ema_decay", ema_decay, least=0, below=1)
        if schedule is not None:
            _check_schedule(schedule, optimizer)
        if rate_factor is not None:
            check_callable("rate_factor", rate_factor, "rate_factor(variable)", 1)
        if average_into is not None:
            check_model(average_into)
            if ema_decay is None:
                raise UserError("`average_into` needs `ema_decay`, such as 0.999.")
            if average_into is model:
                raise UserError("`average_into` must be another model than the one it averages.")
            _check_alike(model, average_into)
        if name is not None and (not isinstance(name, str) or not name or "/" in name):
            raise UserError(f"`name` must be a text without slashes. Received {name!r}.")
        self.model = model
        self.optimizer = optimizer
        self.loss = loss
        self.name = name
        self.schedule = schedule
        self.clip_norm = clip_norm
        self.every = every
        self.ema_decay = ema_decay
        self.average_into = average_into
        self.rate_factor = rate_factor

    def rate_factor_of(self, variable: Any) -> float:
        """Returns the factor on the learning rate of one variable.

        Raises:
            UserError: If `rate_factor` returns something else than a finite number of at least 0.
        """
        if self.rate_factor is None:
            return 1.0
        factor = self.rate_factor(variable)
        check_number(f"rate_factor({name_of(variable)})", factor, least=0)
        return float(factor)


class Forward:
    """The model of the short form, called on the inputs in a batch.

    Those are the first item of a batch that is a tuple or list, or a batch that is one tensor.

    Attributes:
        present: While tracing: whether this replica has a batch, a scalar bool tensor; None if it
            always has. Without one, the outputs have 0 wherever a size is unknown.
        jit_compile: Whether to compile the model alone with XLA.
    """

    def __init__(self, model: Callable, *, training: bool):
        self.call = _with_training(model, training)
        self.forget()
        self.present: tf.Tensor | None = None
        self.jit_compile = False

    def forget(self) -> None:
        """Lets the model be compiled anew, because its layers have changed."""
        self._compiled = tf.function(self.call, jit_compile=True)

    def __call__(self, batch: Any) -> Any:
        """Returns what the model makes of the inputs in `batch`."""
        inputs = inputs_of(batch)

        def call(inputs):
            model = self._compiled if self.jit_compile else self.call
            try:
                return model(inputs)
            except (TypeError, ValueError) as error:
                if isinstance(error, UserError):
                    raise
                shapes = tf.nest.map_structure(lambda t: getattr(t, "shape", t), inputs)
                raise UserError(
                    "The model cannot be called with what the dataset gives it, of shape "
                    f"{shapes}: {_reason(error)}"
                ) from error

        if self.present is None:
            return call(inputs)
        specs = []

        def call_it():
            outputs = call(inputs)
            specs.append(tf.nest.map_structure(tf.TensorSpec.from_tensor, outputs))
            return outputs

        def no_rows():
            return tf.nest.map_structure(
                lambda spec: tf.zeros([size or 0 for size in spec.shape], spec.dtype), specs[-1]
            )

        return tf.cond(self.present, call_it, no_rows)


def inputs_of(batch: Any) -> Any:
    """Returns what the model of the short form is called with.

    Raises:
        UserError: If the batch is a dict, of which it is not known what goes into the model.
    """
    if isinstance(batch, Mapping):
        raise UserError(
            f"The batch is a dict ({', '.join(map(str, batch))}), and the short form of the loop "
            "calls the model with the first item of a tuple. Map the dataset, such as "
            "dataset.map(lambda batch: (batch['image'], batch)), or give the loop a "
            "Part(model, optimizer, loss) whose loss takes the batch."
        )
    return batch[0] if isinstance(batch, (tuple, list)) else batch


def check_callable(name: str, value: Any, form: str, arguments: int) -> None:
    """Raises UserError unless `value` can be called with so many arguments.

    Keras' own losses and metrics are refused too, because they average by themselves.
    """
    kind = type(value).__name__
    module = getattr(value, "__module__", None) or ""
    if isinstance(value, (str, keras.losses.Loss, keras.metrics.Metric)) or (
        module.startswith("keras.") and not inspect.ismethod(value)
    ):
        shown = repr(value) if isinstance(value, str) else getattr(value, "__name__", kind)
        raise UserError(
            f"`{name}` must be a function {form}. Received {shown}, Keras' own, which takes "
            "targets and outputs and may average by itself: write a function that calls it, for "
            "a loss such as lambda outputs, batch: keras.losses.mean_squared_error(batch[1], "
            "outputs), and for metrics one that returns a dict of sums."
        )
    if not callable(value):
        raise UserError(f"`{name}` must be a function {form}. Received {value!r:.60}, a {kind}.")
    try:
        inspect.signature(value).bind(*range(arguments))
    except TypeError as error:
        raise UserError(
            f"`{name}` must be a function {form}; it cannot be called so: {error}."
        ) from None
    except ValueError:
        return  # Built-in functions may have no signature to look at.


def check_count(name: str, value: Any) -> None:
    """Raises UserError unless `value` is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise UserError(f"`{name}` ({value!r}) must be a whole number of at least 1.")


def check_number(
    name: str, value: Any, *, least=-math.inf, above: float = -math.inf, below: float = math.inf
) -> None:
    """Raises UserError unless `value` is a finite number within the bounds."""
    ok = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (ok and math.isfinite(value) and least <= value and above < value < below):
        bounds = [f"at least {least}"] if least > -math.inf else []
        bounds += [f"greater than {above}"] if above > -math.inf else []
        bounds += [f"less than {below}"] if below < math.inf else []
        raise UserError(f"`{name}` ({value!r}) must be a number {' and '.join(bounds)}.")


def _reason(error: Exception) -> str:
    """Returns the line of a message of Keras that says what is wrong."""
    lines = [re.sub("\x1b\\[[0-9;]*m", "", line).strip() for line in str(error).splitlines()]
    around = ("Exception encountered", "in user code", "File ", "Arguments received", "Call arg")
    return next((line for line in lines if line and not line.startswith(around)), repr(error))


def _check_schedule(schedule: Any, optimizer: keras.optimizers.Optimizer) -> None:
    if not callable(schedule):
        raise UserError(
            f"`schedule` must be a function of the step, such as schedules.constant(0.1). "
            f"Received {schedule!r:.60}."
        )
    if not isinstance(optimizer._learning_rate, keras.Variable):
        raise UserError(
            "The optimizer has a schedule of its own and `schedule` is given too; leave one of "
            "them out."
        )
    try:
        in_graph = tf.function(lambda step: tf.cast(schedule(step), tf.float32))
        rate = float(in_graph(tf.constant(0, tf.int64)))
    except (TypeError, ValueError, tf.errors.OpError) as error:
        raise UserError(
            "`schedule` must return the learning rate of a step, one number, by operations of "
            f"TensorFlow such as tf.where(step < 1000, 0.1, 0.01); it fails: {_reason(error)}"
        ) from error
    check_number("schedule(0)", rate, least=0)


def _check_alike(model: Any, other: Any) -> None:
    shapes = [[tuple(v.shape) for v in variables_of(m)] for m in (model, other)]
    if shapes[0] != shapes[1] or not shapes[0]:
        raise UserError(
            f"`average_into` must have the variables of the model. It has {len(shapes[1])}, the "
            f"model {len(shapes[0])}, or their shapes differ; build both in the same way."
        )


def _with_training(model: Callable, training: bool) -> Callable[[Any], Any]:
    """Returns a call of `model` that says whether it trains, if the model wants to know."""
    if not callable(model):
        raise UserError(
            f"`model` ({type(model).__name__}) cannot be called; give the loop a "
            "Part(model, optimizer, loss) whose loss takes the batch."
        )
    if not isinstance(model, keras.layers.Layer):
        try:
            inspect.signature(model).bind(None, training=training)
        except TypeError:
            return lambda inputs: converted(model)(inputs)
    return lambda inputs: converted(model)(inputs, training=training)
