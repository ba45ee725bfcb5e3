"""Small models of many kinds, as other people's projects have them, and every optimizer of Keras.

problem = PROBLEMS["subclass"]
model = problem.make()                          # the same weights each time
batch = problem.make_batch(step, rows)          # a pure function of the step: inputs, targets, ...
model.compile(optimizer, **problem.compiled)    # for Keras; `problem.loss` is for the loop
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import constraints, layers, regularizers

from unet_core import training

FEATURES = 4
WORDS = 6
TIMES = 3


def rng_of(step):
    return np.random.default_rng([12, step])


def vectors(step, rows):
    """Returns inputs [rows, 4] and targets [rows, 2]."""
    x = rng_of(step).standard_normal((rows, FEATURES), np.float32)
    return x, np.stack([np.sin(x[:, 0] - x[:, 1]), x[:, 2] * 0.5 + 0.3], 1).astype(np.float32)


def classes(step, rows):
    """Returns inputs [rows, 4] and class ids [rows] of 0, 1 and 2."""
    x, _ = vectors(step, rows)
    return x, np.digitize(x[:, 0] + x[:, 3], [-0.5, 0.5]).astype(np.int32)


def dicts(step, rows):
    x, y = vectors(step, rows)
    return {"left": x[:, :2], "right": x[:, 2:]}, {"sum": y[:, :1], "difference": y[:, 1:]}


def pairs(step, rows):
    x, y = vectors(step, rows)
    return (x, np.roll(x, 1, axis=1)), y


def weighted(step, rows):
    """Returns inputs, targets and sample weights, some of them 0, that differ much along the rows.

    The targets have 2 and 1 columns, and weights of their own.
    """
    x, y = vectors(step, rows)
    random = rng_of(step + 1000)
    first = np.linspace(0.1, 3, rows) * random.random(rows)
    second = random.integers(0, 3, rows)
    weights = first.astype(np.float32), second.astype(np.float32)
    return x, (y, y[:, :1] - y[:, 1:]), weights


def weighted_once(step, rows):
    x, (y, _), (weights, _) = weighted(step, rows)
    return x, y, weights


def words(step, rows):
    """Returns ids of words [rows, 3], each of them many times in a batch, and targets [rows, 2]."""
    ids = rng_of(step).integers(0, WORDS - 1, (rows, TIMES)).astype(np.int32)
    return ids, np.stack([ids.mean(1) / 3 - 1, (ids == 2).sum(1)], 1).astype(np.float32)


def sequences(step, rows):
    """Returns inputs [rows, 3, 4] and targets [rows, 3, 2]."""
    x = rng_of(step).standard_normal((rows, TIMES, FEATURES), np.float32)
    return x, np.tanh(np.cumsum(x, axis=1))[..., :2]


def squared_error(outputs, batch):
    return keras.losses.mean_squared_error(batch[1], outputs)


def cross_entropy(logits, batch):
    return keras.losses.sparse_categorical_crossentropy(
        batch[1], tf.cast(logits, tf.float32), from_logits=True
    )


def squared_error_over_time(outputs, batch):
    return tf.reduce_mean(squared_error(outputs, batch), 1)


def errors_by_name(outputs, batch):
    return sum(
        keras.losses.mean_squared_error(target, outputs[name]) for name, target in batch[1].items()
    )


def two_weighted_errors(outputs, batch):
    _, targets, weights = batch
    errors = map(keras.losses.mean_squared_error, targets, outputs)
    # The weights of the two losses, times those of the samples.
    return sum(
        share * weight * error
        for share, weight, error in zip((0.7, 0.2), weights, errors, strict=True)
    )


def mean_of_weighted(outputs, batch):
    return training.Mean(squared_error(outputs, batch), batch[2])


def make_functional(dtype=None):
    inputs = keras.Input((FEATURES,))
    hidden = layers.Dense(6, activation="tanh", dtype=dtype)(inputs)
    skipped = layers.Concatenate(dtype=dtype)([inputs, hidden])
    return keras.Model(inputs, layers.Dense(3, dtype=dtype)(skipped))


class Subclass(keras.Model):
    """Layers in a list, one inside another, and a weight of its own; built by its first batch."""

    def __init__(self):
        super().__init__()
        self.blocks = [layers.Dense(5, activation="tanh"), layers.Dense(4, activation="gelu")]
        self.head = keras.Sequential([layers.LayerNormalization(), layers.Dense(2)])

    def build(self, shape):
        self.scale = self.add_weight(shape=(2,), initializer="ones", name="scale")
        for block, units in zip(self.blocks, (5, 4), strict=True):
            block.build(shape)
            shape = (shape[0], units)
        self.head.build(shape)

    def call(self, inputs, training=False):
        outputs = inputs
        for block in self.blocks:
            outputs = block(outputs)
        return self.head(outputs, training=training) * self.scale


def make_with_dicts():
    inputs = {name: keras.Input((2,), name=name) for name in ("left", "right")}
    left = layers.Dense(4, activation="tanh")(inputs["left"])
    right = layers.Dense(4, activation="tanh")(inputs["right"])
    return keras.Model(
        inputs,
        {
            "sum": layers.Dense(1)(layers.Add()([left, right])),
            "difference": layers.Dense(1)(layers.Subtract()([left, right])),
        },
    )


def make_two_outputs():
    inputs = keras.Input((FEATURES,))
    hidden = layers.Dense(5, activation="tanh")(inputs)
    return keras.Model(inputs, (layers.Dense(2)(hidden), layers.Dense(1)(hidden)))


def make_network(*hidden):
    return keras.Sequential([keras.Input((FEATURES,)), *hidden, layers.Dense(2)])


def make_weight_regularisers():
    return make_network(
        layers.Dense(
            5,
            activation="tanh",
            kernel_regularizer=regularizers.L1L2(0.05, 0.1),
            bias_regularizer=regularizers.L2(0.3),
        ),
        layers.Dense(3, kernel_regularizer=regularizers.OrthogonalRegularizer(0.1)),
    )


def make_activity_regularisers():
    return make_network(
        layers.Dense(5, activation="tanh", activity_regularizer=regularizers.L2(0.3)),
        layers.ActivityRegularization(l1=0.1),
    )


class Penalty(layers.Layer):
    """Adds a loss of the batch, and one of a weight."""

    def build(self, shape):
        self.center = self.add_weight(shape=(shape[-1],), initializer="ones", name="center")

    def call(self, inputs):
        self.add_loss(0.4 * tf.reduce_mean(tf.square(inputs - self.center)))
        self.add_loss(0.1 * tf.reduce_sum(tf.square(self.center)))
        return inputs


def make_constraints():
    return make_network(
        layers.Dense(
            5,
            activation="tanh",
            kernel_constraint=constraints.MaxNorm(0.7),
            bias_constraint=constraints.NonNeg(),
        ),
        layers.Dense(3, kernel_constraint=constraints.UnitNorm()),
    )


def make_batch_norm():
    # The moving statistics of Keras need `synchronized`, or replicas average those of their rows.
    # A bias before it would have a gradient of rounding alone.
    return make_network(
        layers.Dense(5, use_bias=False),
        layers.BatchNormalization(momentum=0.8, epsilon=1e-2, synchronized=True),
        layers.Activation("tanh"),
    )


def make_lstm():
    return keras.Sequential(
        [
            keras.Input((TIMES, FEATURES)),
            layers.LSTM(3, return_sequences=True, recurrent_regularizer=regularizers.L2(0.01)),
            layers.Dense(2),
        ]
    )


class OneHot(layers.Layer):
    """What `Embedding` does, by a product of matrices, whose gradient is dense.

    The name of the layer is that of `Embedding` because Muon looks at names.
    """

    def __init__(self):
        super().__init__(name="embedding")

    def build(self, _):
        self.embeddings = self.add_weight(
            shape=(WORDS, 3), initializer="uniform", name="embeddings"
        )

    def call(self, ids):
        return tf.one_hot(ids, WORDS) @ self.embeddings


def make_embedding(*, dense=False):
    inputs = keras.Input((TIMES,), dtype="int32")
    looked_up = (OneHot() if dense else layers.Embedding(WORDS, 3))(inputs)
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(looked_up)))


def make_shared_layers():
    inputs = [keras.Input((FEATURES,)), keras.Input((FEATURES,))]
    shared = layers.Dense(
        5,
        activation="tanh",
        kernel_regularizer=regularizers.L2(0.1),  # Counts once ...
        activity_regularizer=regularizers.L2(0.1),  # ... and this one twice.
    )
    once, twice = map(shared, inputs)
    return keras.Model(inputs, layers.Dense(2)(layers.Subtract()([once, twice])))


def make_frozen():
    model = make_network(
        layers.Dense(5, activation="tanh", kernel_regularizer=regularizers.L2(0.1)),
        layers.BatchNormalization(),
        layers.Dense(4, activation="tanh", kernel_constraint=constraints.MaxNorm(0.1)),
        layers.Dense(3, activation="tanh"),
    )
    for layer in model.layers[:3]:
        layer.trainable = False
    return model


@dataclasses.dataclass(frozen=True)
class Problem:
    """A model, its data, and its loss as the loop and as Keras take it.

    Attributes:
        make_model: Makes the model.
        make_batch: (step, rows) -> (inputs, targets, and sample weights if any).
        loss: Of the loop.
        compiled: Arguments of `compile`.
        weight_decay: Of the optimizer, whichever it is; None leaves it its own.
        by_batch: Whether it uses statistics of the batch, so that micro-batches differ.
        reference: Makes the model that Keras trains, if that is another.
    """

    make_model: Callable[[], keras.Model]
    make_batch: Callable[[int, int], tuple] = vectors
    loss: Callable = squared_error
    compiled: dict[str, Any] = dataclasses.field(default_factory=lambda: {"loss": "mse"})
    weight_decay: float | None = None
    by_batch: bool = False
    reference: Callable[[], keras.Model] | None = None

    def make(self) -> keras.Model:
        """Returns the model with the same weights each time."""
        keras.utils.set_random_seed(5)
        return self.make_model()

    def make_reference(self) -> keras.Model:
        """Returns what Keras trains, with the same weights."""
        keras.utils.set_random_seed(5)
        return (self.reference or self.make_model)()


WEIGHTED_MEAN = {"loss": keras.losses.MeanSquaredError(reduction="mean_with_sample_weight")}
PROBLEMS = {
    "functional": Problem(
        make_functional,
        classes,
        cross_entropy,
        {"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True)},
    ),
    "subclass": Problem(Subclass),
    "dicts": Problem(
        make_with_dicts, dicts, errors_by_name, {"loss": {"sum": "mse", "difference": "mse"}}
    ),
    "two_outputs": Problem(
        make_two_outputs,
        weighted,
        two_weighted_errors,
        {"loss": ["mse", "mse"], "loss_weights": [0.7, 0.2]},
    ),
    "weighted_mean": Problem(
        lambda: make_network(layers.Dense(5, activation="tanh")),
        weighted_once,
        mean_of_weighted,
        WEIGHTED_MEAN,
    ),
    "weighted_activity": Problem(
        make_activity_regularisers, weighted_once, mean_of_weighted, WEIGHTED_MEAN
    ),
    "weight_regularisers": Problem(make_weight_regularisers),
    "activity_regularisers": Problem(make_activity_regularisers),
    "add_loss": Problem(lambda: make_network(layers.Dense(4, activation="tanh"), Penalty())),
    "constraints": Problem(make_constraints),
    "batch_norm": Problem(make_batch_norm, by_batch=True),
    "dropout_of_0": Problem(
        lambda: make_network(layers.Dense(5, activation="tanh"), layers.Dropout(0.0))
    ),
    # Keras (3.15) squares each of the slices of a row that is in a batch several times, and not
    # their sum, so its reference has a dense gradient.
    "embedding": Problem(
        make_embedding, words, reference=functools.partial(make_embedding, dense=True)
    ),
    "lstm": Problem(make_lstm, sequences, squared_error_over_time),
    "shared_layers": Problem(make_shared_layers, pairs),
    "frozen": Problem(make_frozen, weight_decay=0.3),
}

# It keeps float32 weights and computes in 16 bits.
HALF = dataclasses.replace(
    PROBLEMS["functional"], make_model=functools.partial(make_functional, "mixed_float16")
)

# Epsilons are such that a gradient of nothing but rounding does not become a step.
OPTIMIZERS = {
    "sgd": functools.partial(keras.optimizers.SGD, 0.1),
    "momentum": functools.partial(keras.optimizers.SGD, 0.05, momentum=0.9),
    "nesterov": functools.partial(keras.optimizers.SGD, 0.05, momentum=0.9, nesterov=True),
    "adam": functools.partial(keras.optimizers.Adam, 0.01, epsilon=1e-4),
    "adamw": functools.partial(keras.optimizers.AdamW, 0.01, epsilon=1e-4, weight_decay=0.1),
    "rmsprop": functools.partial(
        keras.optimizers.RMSprop, 0.01, epsilon=1e-4, momentum=0.5, centered=True
    ),
    "adagrad": functools.partial(keras.optimizers.Adagrad, 0.05),
    "adadelta": functools.partial(keras.optimizers.Adadelta, 1.0, epsilon=1e-4),
    "adamax": functools.partial(keras.optimizers.Adamax, 0.01, epsilon=1e-4),
    "nadam": functools.partial(keras.optimizers.Nadam, 0.01, epsilon=1e-4),
    "lion": functools.partial(keras.optimizers.Lion, 0.003),
    "adafactor": functools.partial(keras.optimizers.Adafactor, 0.1, epsilon_1=1e-8),
    "ftrl": functools.partial(
        keras.optimizers.Ftrl, 0.05, l1_regularization_strength=0.01, beta=0.1
    ),
    "lamb": functools.partial(keras.optimizers.Lamb, 0.01, epsilon=1e-4),
    "muon": functools.partial(keras.optimizers.Muon, 0.01, epsilon=1e-4),
}
