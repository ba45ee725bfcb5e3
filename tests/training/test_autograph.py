"""What others give the loop is converted by AutoGraph; the loop's own code is not."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from unet_core import training
from unet_core.training.autograph import converted, not_converted


class Halved(tf.Module):
    """A linear model that looks at the values of its inputs."""

    def __init__(self):
        super().__init__()
        self.weight = tf.Variable([[1.0]])

    def __call__(self, inputs):
        if tf.reduce_max(inputs) > 2:
            inputs = inputs / 2
        return inputs @ self.weight


def loss_with_a_condition(outputs, batch):
    if tf.reduce_sum(batch[1]) > 0:
        return (outputs - batch[1])[:, 0] ** 2
    return tf.abs(outputs - batch[1])[:, 0]


def sums_with_a_loop(outputs, _):
    total = tf.constant(0.0)
    for row in outputs:
        total += row[0]
    return {"outputs": total}


def half_after_ten(step):
    if step < 10:
        return 0.1
    return 0.05


class Least(keras.constraints.Constraint):
    """Weights of at least 1."""

    def __call__(self, weights):
        if tf.reduce_min(weights) < 1:
            weights = tf.maximum(weights, 1.0)
        return weights


def batches(inputs, targets):
    pair = (np.float32(inputs)[:, None], np.float32(targets)[:, None])
    return tf.data.Dataset.from_tensors(pair)


class ConvertedTest(tf.test.TestCase):
    def test_model_loss_metrics_and_schedule_may_look_at_tensors(self):
        loop = training.Loop(
            Halved(),
            keras.optimizers.SGD(0.1),
            loss=loss_with_a_condition,
            metrics=sums_with_a_loop,
            schedule=half_after_ten,
        )
        sums = loop.evaluate(batches([2, 4], [1, 0]))
        # 4 is more than 2, so both are halved: outputs 1 and 2, squares of 0 and 2.
        self.assertAllClose([sums["outputs"], sums["loss"]], [3, 4])
        (report,) = loop.train(batches([2, 4], [1, 0]), until_step=1, report_every_steps=1)
        self.assertAllClose([report.loss, report.rate], [2, 0.1])
        # The gradient of (0^2 + 2^2) / 2 is 2 * 2 * 2 / 2 = 4.
        self.assertAllClose(loop.model.weight, [[1 - 0.1 * 4]])

    def test_a_constraint_may_look_at_tensors(self):
        inputs = keras.Input([1])
        layer = keras.layers.Dense(
            1, use_bias=False, kernel_initializer="ones", kernel_constraint=Least()
        )
        model = keras.Model(inputs, layer(inputs))
        loop = training.Loop(model, keras.optimizers.SGD(0.1), loss=loss_with_a_condition)
        list(loop.train(batches([1], [-1]), until_step=1, report_every_steps=1))
        self.assertAllClose(model.weights[0], [[1]])

    def test_an_error_of_a_loss_names_its_line(self):
        def loss(outputs, _):
            return outputs[:, 0] + tf.zeros([7])

        loop = training.Loop(Halved(), keras.optimizers.SGD(0.1), loss=loss)
        with pytest.raises(ValueError, match=r"(?s)in user code:.*test_autograph\.py.*in loss"):
            list(loop.train(batches([1, 2], [0, 0]), until_step=1))

    def test_the_loops_own_code_is_not_converted(self):
        found = []

        @not_converted
        def loss(outputs, batch):
            found.extend(frame.function for frame in inspect.stack())
            return (outputs - batch[1])[:, 0] ** 2

        loop = training.Loop(Halved(), keras.optimizers.SGD(0.1), loss=loss)
        list(loop.train(batches([1], [0]), until_step=1, report_every_steps=1))
        loop.evaluate(batches([1], [0]))
        assert "_loss_and_gradients" in found
        assert {name for name in found if name.startswith("tf__")} == {"tf___call"}

    def test_in_eager_mode_a_function_is_called_as_it_is(self):
        names = converted(lambda: [frame.function for frame in inspect.stack()])()
        assert not [name for name in names if name.startswith("tf__")]


if __name__ == "__main__":
    tf.test.main()
