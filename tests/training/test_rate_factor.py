"""Factors on the learning rate of single variables, against NumPy."""

import keras
import numpy as np
import pytest
from helpers.tiny_loop import batches, make_batch, run, squared_error

from unet_core import training
from unet_core.errors import UserError
from unet_core.training import Loop, Part, schedules

RATE, DECAY, FACTOR, STEPS, ROWS = 0.05, 0.2, 0.1, 5, 8
KERNEL = np.array([[0.1], [0.2], [0.3]])
BIAS = np.array([0.5])


def factor_of(variable):
    return FACTOR if variable.path.endswith("kernel") else 1.0


def make_loop(strategy, optimizer, **kwargs):
    """A linear model with a bias; `factor_of` slows its kernel down."""
    with strategy.scope():
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        model.set_weights([KERNEL, BIAS])
        made = optimizer()
    kwargs = {"rate_factor": factor_of, "schedule": schedules.constant(RATE), **kwargs}
    return Loop(model, made, loss=squared_error, strategy=strategy, **kwargs)


def sgd():
    return keras.optimizers.SGD(1.0, momentum=0.9, weight_decay=DECAY)


def adamw():
    return keras.optimizers.AdamW(1.0, weight_decay=DECAY, epsilon=1e-3)


def sgd_update(state, gradient, rate, step):
    """Momentum as Keras has it: velocity = 0.9 velocity - rate * gradient."""
    state["velocity"] = 0.9 * state.get("velocity", 0) - rate * gradient
    return state["velocity"]


def adam_update(state, gradient, rate, step):
    """Kingma and Ba 2015, arXiv:1412.6980, the form before section 2.1, epsilon hat."""
    state["m"] = 0.9 * state.get("m", 0) + 0.1 * gradient
    state["v"] = 0.999 * state.get("v", 0) + 0.001 * gradient**2
    rate = rate * np.sqrt(1 - 0.999 ** (step + 1)) / (1 - 0.9 ** (step + 1))
    return -rate * state["m"] / (np.sqrt(state["v"]) + 1e-3)


def by_hand(update):
    """Returns kernel and bias after the same steps: decoupled decay and update by rate x factor."""
    weights, states = [KERNEL, BIAS], [{}, {}]
    for step in range(STEPS):
        x, y = (array.astype(np.float64) for array in make_batch(step, ROWS))
        errors = x @ weights[0] + weights[1] - y
        gradients = [2 * x.T @ errors / ROWS, 2 * errors.mean(0)]
        for place, factor in enumerate((FACTOR, 1.0)):
            rate = RATE * factor
            decayed = weights[place] * (1 - DECAY * rate)
            weights[place] = decayed + update(states[place], gradients[place], rate, step)
    return weights


class TestRateFactor:
    @pytest.mark.parametrize(("optimizer", "update"), [(sgd, sgd_update), (adamw, adam_update)])
    @pytest.mark.parametrize("replicas", [1, 2])
    @pytest.mark.parametrize("micro_batches", [1, 2])
    def test_scales_update_and_decay_of_its_variable(
        self, mirrored, replicas, micro_batches, optimizer, update
    ):
        def share(index, rows):
            step, place = divmod(index, micro_batches)
            return tuple(a[place * rows : (place + 1) * rows] for a in make_batch(step, ROWS))

        def data(start_step, context):
            rows = ROWS // micro_batches
            return batches(start_step * micro_batches, context, rows=rows, make=share)

        loop = make_loop(mirrored(replicas), optimizer, micro_batches=micro_batches)
        run(loop, data, STEPS)
        for found, expected in zip(loop.model.get_weights(), by_hand(update), strict=True):
            np.testing.assert_allclose(found, expected, atol=2e-6)

    def test_zero_moves_its_variable_by_no_bit_and_none_is_one(self, mirrored):
        still = make_loop(mirrored(1), adamw, rate_factor=lambda v: factor_of(v) - FACTOR)
        run(still, batches, 3)
        np.testing.assert_array_equal(still.model.get_weights()[0], KERNEL.astype(np.float32))
        assert still.model.get_weights()[1] != BIAS.astype(np.float32)
        one, none = (make_loop(mirrored(1), sgd, rate_factor=f) for f in (lambda _: 1, None))
        for loop in (one, none):
            run(loop, batches, 3)
        for a, b in zip(one.model.get_weights(), none.model.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)

    def test_is_asked_again_when_other_layers_are_trained(self, mirrored):
        loop = make_loop(mirrored(1), adamw)
        run(loop, batches, 1)
        asked = []
        loop.parts["model"].rate_factor = lambda v: asked.append(v.path) or 0.0
        loop.model.layers[-1].trainable = False
        with pytest.raises(UserError, match="trainable = True"):
            run(loop, batches, 2)
        loop.model.layers[-1].trainable = True
        loop.model.layers[-1].bias.trainable = False
        before = loop.model.get_weights()
        run(loop, batches, 2)
        assert [path.rpartition("/")[2] for path in asked] == ["kernel"]
        np.testing.assert_array_equal(loop.model.get_weights()[0], before[0])

    @pytest.mark.parametrize("factor", [-1.0, float("nan"), float("inf"), "fast", None, True])
    def test_of_another_value_is_refused_and_names_the_variable(self, mirrored, factor):
        with pytest.raises(UserError, match=r"`rate_factor\(.*kernel\)` .* must be a number at le"):
            make_loop(mirrored(1), sgd, rate_factor=lambda _: factor)

    @pytest.mark.parametrize("factor", [0.1, lambda: 1.0, lambda variable, more: 1.0])
    def test_that_is_no_function_of_a_variable_is_refused(self, mirrored, factor):
        with pytest.raises(UserError, match=r"must be a function rate_factor\(variable\)"):
            make_loop(mirrored(1), sgd, rate_factor=factor)

    def test_beside_parts_is_refused(self, mirrored):
        loop = make_loop(mirrored(1), sgd)
        part = Part(loop.model, sgd(), lambda batch: squared_error(loop.model(batch[0]), batch))
        with pytest.raises(UserError, match=r"each `Part` has its own .* rate_factor"):
            Loop([part], rate_factor=factor_of)

    def test_is_no_part_of_a_checkpoint_as_the_schedule_is_not(self, mirrored, tmp_path):
        first, second = make_loop(mirrored(1), sgd), make_loop(mirrored(1), sgd, rate_factor=None)
        run(first, batches, 2)
        training.Checkpoints(tmp_path, first).save()
        assert training.Checkpoints(tmp_path, second).restore() == 2
