"""The variables of whatever a person calls a model.

That is a Keras model or layer, a `tf.Module`, or a list of variables.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from unet_core.errors import UserError
from unet_core.training.autograph import converted

Model = Any
Variable = Any
"""A `keras.Variable` or a `tf.Variable`."""


def check_model(model: Model) -> None:
    """Raises UserError unless `model` is something whose variables can be known."""
    if isinstance(model, (list, tuple)) and model and all(map(_is_variable, model)):
        return
    # A model of Keras 2 is a tf.Module too, but what it adds to a loss would be lost.
    is_old = any(kind.__module__.startswith("tf_keras.") for kind in type(model).__mro__)
    if is_old or not isinstance(model, (keras.layers.Layer, tf.Module)) or _is_variable(model):
        kind = f"{type(model).__module__.partition('.')[0]}.{type(model).__name__}"
        raise UserError(
            "A model must be a Keras 3 model or layer, a tf.Module, or a list of variables, so "
            f"that what it trains is known. Received {model!r:.60}, a {kind}."
        )


def variables_of(model: Model) -> list[Variable]:
    """Returns every variable of `model`, random seeds and statistics included, in a fixed order."""
    return _unique(model if isinstance(model, (list, tuple)) else model.variables)


def trainable_variables_of(model: Model) -> list[Variable]:
    """Returns the variables of `model` that are trainable now."""
    if isinstance(model, (list, tuple)):
        return [variable for variable in _unique(model) if variable.trainable]
    return _unique(model.trainable_variables)


def of_tensorflow(variable: Variable) -> tf.Variable:
    """Returns the `tf.Variable` that a Keras variable is kept in, or `variable` itself."""
    return variable.value if isinstance(variable, keras.Variable) else variable


def name_of(variable: Variable) -> str:
    """Returns the name to show to a person."""
    return getattr(variable, "path", None) or variable.name.partition(":")[0]


def names_of(variables: Sequence[Variable], *, most: int = 4) -> str:
    """Returns the first names of `variables`, and how many more there are."""
    more = f" and {len(variables) - most} more" if len(variables) > most else ""
    return ", ".join(map(name_of, variables[:most])) + more


def key_of(variable: Variable) -> str:
    """Returns what identifies a variable, on whichever replica it is seen."""
    return of_tensorflow(variable)._unique_id


def without_frozen(watched: Sequence[tf.Variable]) -> list[tf.Variable]:
    """Returns the variables but for those that a Keras layer has frozen.

    Keras (3.15) freezes its own variable, and TensorFlow's, which a tape watches, knows nothing of
    it; nor does it know its owner, who is looked for among all objects.
    """
    if not watched:
        return []
    frozen = {
        key_of(item)
        for item in gc.get_objects()
        if issubclass(type(item), keras.Variable) and not item.trainable
        if isinstance(getattr(item, "_value", None), tf.Variable)
    }
    return [variable for variable in watched if key_of(variable) not in frozen]


def copies_of(strategy: tf.distribute.Strategy, variable: Variable) -> list[tf.Variable]:
    """Returns the copy that each replica of this worker holds."""
    return list(strategy.experimental_local_results(of_tensorflow(variable)))


class AddedLosses(Sequence):
    """What a model adds to a loss: regularisers, activity regularisers, `add_loss`.

    The last two are those of its last call. This is a context, in which the loss is computed.

    Some losses add `model.losses` themselves, as custom loops must. So in the context this stands
    in for them, and knows whether they have been asked for. The replicas of a strategy share one:
    they compute the same loss in turn, so that what one asks for all do.

    Args:
        model: Any model.
    """

    def __init__(self, model: Model):
        self._model = model
        self._is_layer = isinstance(model, keras.layers.Layer)
        self._asked_for = False

    def __enter__(self) -> AddedLosses:
        if self._is_layer:
            # What an earlier call has added may belong to another graph. Keras (3.15) does this
            # at each outermost call.
            self._model._clear_losses()
            self._model._losses_override = self
        return self

    def __exit__(self, *_) -> None:
        if self._is_layer:
            self._model._losses_override = []

    def left(self) -> list[tf.Tensor]:
        """Returns those that the loss has not added itself; call it after the context."""
        return [] if self._asked_for else self._all()

    def of_calls(self) -> bool:
        """Returns whether layers have added losses when they were called."""
        return any(layer._get_own_losses() for layer in layers_of(self._model))

    def __len__(self) -> int:
        return len(self._taken())

    def __getitem__(self, index):
        return self._taken()[index]

    def __bool__(self) -> bool:
        # Asked by Keras, to know whether something stands in.
        return True

    def _taken(self) -> list[tf.Tensor]:
        self._asked_for = True
        return self._all()

    def _all(self) -> list[tf.Tensor]:
        if not self._is_layer:
            regularised = [v for v in variables_of(self._model) if getattr(v, "regularizer", None)]
            return [tf.convert_to_tensor(converted(v.regularizer)(v)) for v in regularised]
        # Another replica may be in the context just now.
        standing_in, self._model._losses_override = self._model._losses_override, []
        try:
            return [tf.convert_to_tensor(loss) for loss in converted(_losses_of)(self._model)]
        finally:
            self._model._losses_override = standing_in


def _losses_of(layer: keras.layers.Layer) -> list[Any]:
    # Asked for here, because a property cannot be wrapped.
    return layer.losses


def layers_of(model: Model) -> list[keras.layers.Layer]:
    """Returns all layers of a Keras model, the inner ones of layers too; none of anything else."""
    return model._flatten_layers() if isinstance(model, keras.layers.Layer) else []


def finalise(model: Model) -> None:
    """Lets layers take over what they compute from variables that have just been loaded."""
    for layer in layers_of(model):
        # Normalization keeps mean and variance once more, as constants (Keras 3.15).
        if isinstance(layer, keras.layers.Normalization) and layer.built:
            layer.finalize_state()


def draws_for_one_replica(layer: keras.layers.Layer) -> bool:
    """Returns whether a layer of Keras draws numbers, which are the same on every replica."""
    if getattr(layer, "seed_generator", None) is None:
        return False
    names = ("rate", "stddev", "dropout", "recurrent_dropout")
    rates = [getattr(layer, name) for name in names if hasattr(layer, name)]
    return any(rates) or not rates


def replica_wise_statistics(model: Model) -> list[Variable]:
    """Returns the moving statistics that each replica makes of its own rows.

    Those are the ones of Keras' batch normalisation unless it is synchronised.
    """
    return [
        variable
        for layer in layers_of(model)
        if isinstance(layer, keras.layers.BatchNormalization)
        if layer.built and layer.trainable and not layer.synchronized
        for variable in layer.non_trainable_variables
    ]


def check_equal_on_replicas(strategy: tf.distribute.Strategy, variables: Sequence[Variable]):
    """Checks that all replicas of this worker hold the same values.

    Raises:
        UserError: If one does not: a checkpoint holds one value of each.
    """
    for variable in variables:
        first, *others = (copy.numpy() for copy in copies_of(strategy, variable))
        if any(not np.array_equal(first, other, equal_nan=_is_float(first)) for other in others):
            raise UserError(
                f"The variable {name_of(variable)} differs between replicas, and a checkpoint "
                "holds one value of each variable. Let the layer share it (Keras: "
                "aggregation='mean' or synchronized=True), or train on one replica."
            )


def _is_float(array: np.ndarray) -> bool:
    return np.issubdtype(array.dtype, np.floating)


def _is_variable(value: Any) -> bool:
    return isinstance(value, (keras.Variable, tf.Variable))


def _unique(variables: Sequence[Variable]) -> list[Variable]:
    return list({key_of(variable): variable for variable in variables}.values())
