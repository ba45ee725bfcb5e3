"""What the loop needs to know of a Keras optimizer to make its updates exactly.

The loop reduces the gradients once and then calls the optimizer's `update_step` for each variable
on each replica. That is all an optimizer does unless it overrides what surrounds `update_step`;
such an optimizer is known here, or refused by name.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from unet_core.errors import UserError

# What Keras (seen on 3.15) does around `update_step`.
_AROUND_THE_STEP = (
    "apply",
    "apply_gradients",
    "_apply_weight_decay",
    "_backend_apply_gradients",
    "_backend_update_step",
    "_clip_gradients",
    "_distributed_tf_update_step",
    "finalize_variable_values",
)
_OWN_OF_THE_LOOP = {
    "clipnorm": "clip_norm",
    "clipvalue": "clip_norm",
    "global_clipnorm": "clip_norm",
    "use_ema": "ema_decay",
    "loss_scale_factor": "loss_scaling",
    "gradient_accumulation_steps": "micro_batches",
}
_INSTEAD = {
    "LossScaleOptimizer": "Give the inner optimizer, and `loss_scaling=True` to the loop.",
    "MultiOptimizer": "Give the loop one `Part` for each of the optimizers.",
    "ScheduleFreeAdamW": "Use AdamW with `schedule` and `ema_decay`.",
}
# Their `update_step` was seen to give the same bits from slices as from the dense gradient.
_TAKE_SLICES = ("SGD", "Adam", "AdamW", "RMSprop", "Adagrad")
_owners: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def check(optimizer: Any) -> None:
    """Checks that the loop can make the updates of `optimizer` exactly.

    Raises:
        UserError: If it is no Keras optimizer, is set to act on each replica before the sum, or
            overrides what surrounds its `update_step`.
    """
    name = type(optimizer).__name__
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise UserError(
            f"`optimizer` must be a Keras optimizer such as keras.optimizers.Adam(1e-3). "
            f"Received {optimizer!r:.80}, a {name}."
        )
    for setting, instead in _OWN_OF_THE_LOOP.items():
        if getattr(optimizer, setting, None) and name not in _INSTEAD:
            raise UserError(
                f"The optimizer has `{setting}` set ({getattr(optimizer, setting)}), which is the "
                f"loop's to do, once for all replicas; give `{instead}` to the loop instead."
            )
    overridden = [
        method
        for method in _AROUND_THE_STEP
        if getattr(type(optimizer), method) is not getattr(keras.optimizers.Optimizer, method)
        and getattr(type(optimizer), method) not in _known_overrides()
    ]
    known_to_differ = isinstance(optimizer, _class("ScheduleFreeAdamW"))
    if overridden or known_to_differ:
        does = (
            f"overrides `{overridden[0]}`" if overridden else "keeps other weights than it trains"
        )
        instead = _INSTEAD.get(
            name, "Use one that overrides `build` and `update_step` alone, as Keras advises."
        )
        raise UserError(
            f"The optimizer {name} {does}, which the loop cannot do exactly over replicas and "
            f"skipped steps. {instead}"
        )


def build(optimizer: keras.optimizers.Optimizer, variables: Sequence[Any]) -> None:
    """Makes the slots of `variables` that the optimizer lacks; slots that it has keep their values.

    Call it in the scope of the strategy.

    Raises:
        UserError: If it was built for other variables only, so that it belongs to another model.
    """
    known = list(getattr(optimizer, "_trainable_variables", ()))
    if optimizer.built and known and not {id(v) for v in known} & {id(v) for v in variables}:
        raise UserError(
            f"The optimizer {type(optimizer).__name__} was built for the variables of another "
            "model. Make a new optimizer for each."
        )
    names = {id(v) for v in known}
    wanted = [*known, *(v for v in variables if id(v) not in names)]
    if optimizer.built and len(wanted) == len(known):
        return
    kept = {}
    if optimizer.built:
        kept = {key: variable.numpy() for key, variable in slots(optimizer).items()}
        # Keras (3.15) builds once; to it, this is an optimizer that has not been built.
        optimizer.built = False
        optimizer._tracker.unlock()
        for variable in optimizer.variables:
            optimizer._untrack_variable(variable)
        optimizer._trainable_variables_indices.clear()
        for variable in (optimizer._iterations, optimizer._learning_rate):
            if isinstance(variable, keras.Variable):
                optimizer._track_variable(variable)
    try:
        optimizer.build(wanted)
    except AttributeError as error:
        raise UserError(
            f"The optimizer {type(optimizer).__name__} needs Keras variables ({error}); give the "
            "loop a Keras model, or use another optimizer."
        ) from error
    for key, variable in slots(optimizer).items():
        if key in kept:
            variable.assign(kept[key])


def slots(optimizer: keras.optimizers.Optimizer) -> dict[tuple[int | None, str, int], Any]:
    """Returns the optimizer's variables, in its order, by what identifies each.

    That is (place of the model variable that it was made for, name of the slot, number among those
    of the same name). The place is None for what is of the whole optimizer, or named after no model
    variable.
    """
    stems: dict[str, list[int]] = {}
    for place, variable in enumerate(optimizer._trainable_variables):
        stems.setdefault(_stem(variable), []).append(place)
    found: dict[tuple[int | None, str, int], Any] = {}
    for variable in optimizer.variables:
        name = variable.name
        # The longest stem: `dense_kernel_momentum` is of `dense_kernel`, not of `dense`.
        stem = max((s for s in stems if name.startswith(s + "_")), key=len, default=None)
        places: Sequence[int | None]
        if stem is None:
            # Keras numbers what has no name in the order it was made in one process.
            places, slot = [None], re.sub(r"_\d+$", "", name)
        else:
            places, slot = stems[stem], name[len(stem) + 1 :]
        number = 0
        # Model variables of one name have their slots in their order.
        while all((place, slot, number) in found for place in places):
            number += 1
        free = next(place for place in places if (place, slot, number) not in found)
        found[free, slot, number] = variable
    return found


def claim(optimizer: keras.optimizers.Optimizer, owner: Any) -> None:
    """Notes that `owner` updates with `optimizer` from now on."""
    _owners[optimizer] = weakref.ref(owner)


def is_claimed_by(optimizer: keras.optimizers.Optimizer, owner: Any) -> bool:
    """Returns whether nobody else has claimed `optimizer` since `owner` did."""
    return _owners[optimizer]() is owner


def decay_of(optimizer: keras.optimizers.Optimizer, variable: Any) -> float | None:
    """Returns the weight decay of one variable; None if it does not decay."""
    decay = optimizer.weight_decay
    if isinstance(optimizer, _class("Muon")) and optimizer._should_use_adamw(variable):
        decay = optimizer.adam_weight_decay
    # Keras has no public way to ask what `exclude_from_weight_decay` was told (seen on 3.15).
    return decay if decay and optimizer._use_weight_decay(variable) else None


def before_updates(optimizer: keras.optimizers.Optimizer) -> None:
    """Does what the optimizer does once per step before its `update_step`s, in the graph."""
    if isinstance(optimizer, _class("Nadam")):
        # Nadam's running product of momenta (Dozat 2016), as its `_backend_update_step` has it.
        product = optimizer._u_product
        step = tf.cast(tf.identity(optimizer.iterations.value) + 1, product.dtype)
        factor = optimizer.beta_1 * (1.0 - 0.5 * tf.pow(tf.cast(0.96, product.dtype), step))
        product.value.assign(tf.identity(product.value) * factor)


def takes_slices(optimizer: keras.optimizers.Optimizer) -> bool:
    """Returns whether `update_step` may be given `tf.IndexedSlices` of different rows."""
    return type(optimizer) in [_class(name) for name in _TAKE_SLICES]


def _known_overrides() -> list[Any]:
    return [
        getattr(_class("Nadam"), "_backend_update_step", None),
        getattr(_class("Muon"), "_apply_weight_decay", None),
    ]


def _class(name: str) -> Any:
    """Returns a class of `keras.optimizers`, one of no instances if this Keras has it not."""
    return getattr(keras.optimizers, name, type(name, (), {}))


def _stem(variable: Any) -> str:
    """Returns what Keras (3.15) begins the names of a variable's slots with."""
    path = getattr(variable, "path", None)
    return path.replace("/", "_") if path else re.sub("[/:]", "_", str(variable.name))
