"""Which optimizers the loop can update with exactly, and what it refuses."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.tiny_loop import batches, make_batch, make_loop, run, squared_error, weights

from unet_core.errors import UserError
from unet_core.training import Loop, optimizers


def fitted(optimizer, steps):
    """Returns the weights after Keras' own steps."""
    model = make_loop().model
    model.compile(
        optimizer(), loss=lambda y, p: tf.reduce_sum(tf.square(p - y), -1), jit_compile=False
    )
    for step in range(steps):
        model.train_on_batch(*make_batch(step))
    return model.get_weights()[0].ravel()


class TestKnownOverrides:
    @pytest.mark.parametrize(
        "optimizer",
        [
            lambda: keras.optimizers.Nadam(0.01, weight_decay=0.05),
            lambda: keras.optimizers.Muon(0.01, weight_decay=0.1, adam_weight_decay=0.0),
            lambda: keras.optimizers.Muon(0.01, weight_decay=0.1, exclude_layers=["dense"]),
        ],
        ids=["nadam", "muon", "muon by adam"],
    )
    @pytest.mark.parametrize("replicas", [1, 2])
    def test_equal_keras_own_fit(self, mirrored, optimizer, replicas):
        loop = make_loop(mirrored(replicas), optimizer=optimizer)
        run(loop, batches, 8)
        np.testing.assert_allclose(weights(loop), fitted(optimizer, 8), atol=1e-6)

    def test_nadam_keeps_its_product_in_a_skipped_step(self):
        def poisoned(step, rows):
            x, y = make_batch(step, rows)
            return (x * np.float32("inf"), y) if step == 1 else (x, y)

        loop = make_loop(optimizer=lambda: keras.optimizers.Nadam(0.01), loss_scaling=True)

        def data(start, context):
            return batches(start, context, make=poisoned)

        products = [
            float(loop.optimizer._u_product.numpy())
            for _ in loop.train(data, until_step=3, report_every_steps=1)
        ]
        assert products[1] == products[0] != products[2]


class TestRefusals:
    @pytest.mark.parametrize(
        ("optimizer", "instead"),
        [
            (lambda o: o.LossScaleOptimizer(o.Adam(0.1)), "loss_scaling=True"),
            (lambda o: o.MultiOptimizer(lambda variable: o.SGD(0.1)), "one `Part`"),
            (lambda o: o.ScheduleFreeAdamW(0.1), "AdamW"),
        ],
        ids=["loss scale", "multi", "schedule free"],
    )
    def test_name_the_optimizer_and_what_to_use(self, optimizer, instead):
        made = optimizer(keras.optimizers)
        with pytest.raises(UserError, match=rf"{type(made).__name__}.*{instead}"):
            Loop(make_loop().model, made, loss=squared_error)

    @pytest.mark.parametrize(
        "method", ["apply", "_apply_weight_decay", "_backend_update_step", "_clip_gradients"]
    )
    def test_one_that_overrides_what_surrounds_the_update(self, method):
        own = type("Own", (keras.optimizers.SGD,), {method: lambda self, *args: None})
        with pytest.raises(UserError, match=f"Own overrides `{method}`"):
            Loop(make_loop().model, own(0.1), loss=squared_error)

    def test_not_one_that_overrides_its_update_alone(self):
        class Sign(keras.optimizers.SGD):
            def update_step(self, gradient, variable, learning_rate):
                variable.assign_sub(learning_rate * tf.sign(gradient))

        loop = make_loop(optimizer=lambda: Sign(0.25))
        before = weights(loop)
        run(loop, batches, 1)
        np.testing.assert_allclose(np.abs(weights(loop) - before), 0.25, rtol=1e-6)


class TestSlices:
    """Gradients of embeddings stay slices, each row once."""

    @staticmethod
    def ids(step, rows):
        rng = np.random.default_rng(step)
        # Five rows for twenty ids: most occur several times in a batch.
        return rng.integers(0, 5, (rows, 5)).astype(np.int32), rng.standard_normal(
            (rows, 1)
        ).astype(np.float32)

    @pytest.mark.parametrize("replicas", [1, 2])
    @pytest.mark.parametrize("name", ["SGD", "Adam", "RMSprop", "Adagrad", "Adamax"])
    def test_train_as_the_dense_gradient_does(self, mirrored, name, replicas):
        def train(lookup, replicas=1):
            strategy = mirrored(replicas)
            with strategy.scope():
                start = keras.initializers.RandomUniform(seed=1)
                if lookup == "embedding":
                    layer = keras.layers.Embedding(5, 2, embeddings_initializer=start)
                    layers = [layer]
                else:
                    layer = keras.layers.Dense(2, use_bias=False, kernel_initializer=start)
                    one_hot = keras.layers.Lambda(lambda ids: tf.one_hot(ids, 5))
                    layers = [one_hot, layer]
                pool = keras.layers.Lambda(lambda x: tf.reduce_sum(x, (1, 2))[:, None])
                model = keras.Sequential([keras.Input((5,), dtype="int32"), *layers, pool])
                optimizer = getattr(keras.optimizers, name)(0.05)
                if name == "SGD":
                    optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
            loop = Loop(model, optimizer, loss=squared_error, strategy=strategy, clip_norm=1.0)
            run(loop, lambda start, context: batches(start, context, make=self.ids), 5)
            return model.get_weights()[0]

        np.testing.assert_allclose(train("embedding", replicas), train("one hot"), atol=1e-5)


class TestSlots:
    def test_are_known_by_variable_name_and_number(self):
        layers = [keras.layers.Dense(2, name="a"), keras.layers.Dense(2, name="a_kernel")]
        model = keras.Sequential([keras.Input((3,)), *layers])
        optimizer = keras.optimizers.Adam(0.1)
        optimizer.build(model.trainable_variables)
        assert list(optimizers.slots(optimizer)) == [
            (None, "iteration", 0),
            (None, "learning_rate", 0),
            (0, "momentum", 0),
            (0, "velocity", 0),
            (1, "momentum", 0),
            (1, "velocity", 0),
            (2, "momentum", 0),
            (2, "velocity", 0),
            (3, "momentum", 0),
            (3, "velocity", 0),
        ]

    @pytest.mark.parametrize("name", ["Adam", "Adafactor", "Nadam", "Muon", "SGD"])
    def test_of_variables_that_join_later_leave_the_others(self, name):
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3), keras.layers.Dense(1)])
        optimizer = getattr(keras.optimizers, name)(0.1)
        optimizers.build(optimizer, model.trainable_variables[2:])
        for number, variable in enumerate(optimizer.variables):
            variable.assign(tf.ones_like(variable) * (number + 1))
        before = {key: v.numpy() for key, v in optimizers.slots(optimizer).items()}
        optimizers.build(optimizer, model.trainable_variables)
        after = {key: v.numpy() for key, v in optimizers.slots(optimizer).items()}
        for key, value in before.items():
            np.testing.assert_array_equal(after[key], value)
        joined = len(model.trainable_variables)
        assert len(optimizer._trainable_variables) == joined
