"""What is trained is what the model says now, and what the loss depends on."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.tiny_loop import batches, make_batch, make_loop, run, squared_error, weights

from unet_core import training
from unet_core.errors import UserError
from unet_core.training import Loop


def two_layers(**kwargs):
    kernel = keras.initializers.HeNormal
    layers = [
        keras.layers.Dense(3, name="back", kernel_initializer=kernel(seed=1)),
        keras.layers.Dense(1, name="head", kernel_initializer=kernel(seed=2)),
    ]
    model = keras.Sequential([keras.Input((3,)), *layers])
    optimizer = keras.optimizers.Adam(0.01, weight_decay=0.1)
    return Loop(model, optimizer, loss=squared_error, **kwargs)


def kernel_of(loop, name):
    return loop.model.get_layer(name).kernel.numpy()


class TestFreezing:
    def test_between_two_calls_of_train_holds_from_then_on(self):
        loop = two_layers(ema_decay=0.9)
        run(loop, batches, 3)
        loop.model.get_layer("back").trainable = False
        before, head = kernel_of(loop, "back"), kernel_of(loop, "head")
        run(loop, batches, 6)
        np.testing.assert_array_equal(kernel_of(loop, "back"), before)
        assert not np.array_equal(kernel_of(loop, "head"), head)

    def test_unfreezing_makes_slots_and_keeps_the_old_ones(self):
        model = two_layers().model
        model.get_layer("back").trainable = False
        loop = Loop(model, keras.optimizers.Adam(0.01), loss=squared_error)
        run(loop, batches, 3)
        before = {variable.name: variable.numpy() for variable in loop.optimizer.variables}
        model.get_layer("back").trainable = True
        reports = loop.train(batches, until_step=5, report_every_steps=1)
        # Nothing has been trained anew when the first step begins.
        loop._prepare(None)
        after = {variable.name: variable.numpy() for variable in loop.optimizer.variables}
        for name, value in before.items():
            np.testing.assert_array_equal(after[name], value)
        assert (len(before), len(after)) == (6, 10)
        next(reports)
        made = [name for name in after if name not in before]
        assert all("back" in name for name in made)
        assert all(not after[name].any() for name in made)

    def test_and_unfreezing_retraces_once_each(self):
        loop = two_layers()
        for step, trainable in ((2, True), (4, False), (6, True), (8, True)):
            loop.model.get_layer("back").trainable = trainable
            run(loop, batches, step)
        assert loop.traces["train"] == 3

    def test_of_the_whole_model_is_refused(self):
        loop = two_layers()
        loop.model.trainable = False
        with pytest.raises(UserError, match="trainable = True"):
            run(loop, batches, 1)
        with pytest.raises(UserError, match="trainable = True"):
            Loop(loop.model, keras.optimizers.SGD(0.1), loss=squared_error)

    def test_later_resumes_bit_for_bit(self, tmp_path):
        def stages(loop, until):
            loop.model.get_layer("back").trainable = False
            run(loop, batches, min(until, 3))
            loop.model.get_layer("back").trainable = True
            if until > 3:
                run(loop, batches, until)

        whole, first, second = (two_layers(ema_decay=0.9) for _ in range(3))
        stages(whole, 6)
        stages(first, 4)
        training.Checkpoints(tmp_path, first).save()
        training.Checkpoints(tmp_path, second).restore()
        run(second, batches, 6)
        np.testing.assert_array_equal(weights(second), weights(whole))

    def test_other_layers_than_at_the_save_is_refused(self, tmp_path):
        def loop_without(name):
            model = keras.Sequential(
                [
                    keras.Input((3,)),
                    keras.layers.Dense(3, use_bias=False, name="a"),
                    keras.layers.Dense(3, use_bias=False, name="b"),
                ]
            )
            model.get_layer(name).trainable = False
            return Loop(
                model, keras.optimizers.Adam(0.1), loss=lambda o, b: tf.reduce_sum(o * o, -1)
            )

        loop = loop_without("a")
        run(loop, batches, 1)
        training.Checkpoints(tmp_path, loop).save()
        with pytest.raises(UserError, match=r"variables 1.*variables 0"):
            training.Checkpoints(tmp_path, loop_without("b")).restore()

    @pytest.mark.parametrize("replicas", [1, pytest.param(2, marks=pytest.mark.slow)])
    def test_leaves_no_trace_of_decay_clipping_and_averages(self, mirrored, replicas):
        # Once with frozen layers, and once with what is behind them alone, on the features that
        # they make.
        def make(strategy, freezes):
            with strategy.scope():
                x = keras.Input((3,), name="x")
                back = keras.layers.Dense(3, name="back")
                back.build((None, 3))
                back.set_weights([np.eye(3, dtype=np.float32) * 2, np.ones(3, np.float32)])
                head = keras.layers.Dense(1, name="head")
                # Exact in float32: the frozen layer doubles and adds 1.
                features = back(x) if freezes else keras.layers.Rescaling(2.0, 1.0)(x)
                model = keras.Model(x, head(features))
                head.set_weights([np.full((3, 1), 0.5, np.float32), np.zeros(1, np.float32)])
                optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.5, epsilon=1e-5)
            how = {"clip_norm": 0.3, "ema_decay": 0.5, "strategy": strategy}
            loop = Loop(model, optimizer, loss=squared_error, **how)
            back.trainable = False
            return loop, back, head

        frozen, back, head = make(mirrored(replicas), True)
        alone, _, expected = make(mirrored(replicas), False)
        before = back.get_weights()
        reports = [run(loop, batches, 4)[-1] for loop in (frozen, alone)]
        assert reports[0].gradient_norm == pytest.approx(reports[1].gradient_norm, rel=1e-6)
        for inside in (False, True):
            with frozen.averaged_weights() if inside else contextlib.nullcontext():
                for found, value in zip(back.get_weights(), before, strict=True):
                    np.testing.assert_array_equal(found, value)
        for found, value in zip(head.get_weights(), expected.get_weights(), strict=True):
            np.testing.assert_allclose(found, value, atol=1e-6)

    def test_averages_of_weights_loaded_into_frozen_layers_are_these(self):
        loop = two_layers(ema_decay=0.9)
        back = loop.model.get_layer("back")
        back.trainable = False
        loaded = [np.full((3, 3), 7, np.float32), np.full(3, 8, np.float32)]
        back.set_weights(loaded)
        run(loop, batches, 2)
        with loop.averaged_weights():
            for found, value in zip(back.get_weights(), loaded, strict=True):
                np.testing.assert_array_equal(found, value)

    def test_low_rank_adaptation_enabled_after_the_loop_is_trained(self):
        loop = two_layers()
        layer = loop.model.get_layer("back")
        layer.enable_lora(2)
        kernel, low_rank = layer._kernel.numpy(), layer.lora_kernel_b.numpy()
        run(loop, batches, 5)
        np.testing.assert_array_equal(layer._kernel.numpy(), kernel)
        assert not np.array_equal(layer.lora_kernel_b.numpy(), low_rank)


class Lazy(keras.Model):
    """A model whose head has no variables until it is called."""

    def __init__(self, strategy=None):
        super().__init__()
        self.back = make_loop(strategy).model
        self.head = keras.layers.Dense(1, kernel_initializer="ones")

    def call(self, inputs):
        return self.head(self.back(inputs))


class TestUnbuiltModels:
    @pytest.mark.parametrize("replicas", [1, 2])
    def test_are_built_by_the_first_batch_and_trained_whole(self, mirrored, replicas):
        strategy = mirrored(replicas)
        with strategy.scope():
            lazy, built = Lazy(strategy), Lazy(strategy)
            built(tf.zeros([1, 3]))
            optimizers = [keras.optimizers.Adam(0.01) for _ in range(2)]
        for model, optimizer in zip((lazy, built), optimizers, strict=True):
            run(Loop(model, optimizer, loss=squared_error, strategy=strategy), batches, 5)
        assert not np.array_equal(lazy.head.kernel.numpy(), np.ones((1, 1)))
        for one, other in zip(lazy.variables, built.variables, strict=True):
            np.testing.assert_array_equal(one.numpy(), other.numpy())

    def test_are_neither_saved_nor_restored(self, tmp_path):
        model = keras.Sequential([keras.layers.Dense(1)])
        loop = Loop(model, keras.optimizers.SGD(0.1), loss=squared_error)
        for call in (lambda c: c.save(), lambda c: c.restore()):
            with pytest.raises(UserError, match="Call it once on a batch"):
                call(training.Checkpoints(tmp_path, loop))

    def test_in_a_part_are_refused(self):
        part = training.Part(Lazy(), keras.optimizers.SGD(0.1), lambda b: squared_error(b[0], b))
        lazy = part.model
        part.loss = lambda batch: squared_error(lazy(batch[0]), batch)
        with pytest.raises(UserError, match="Call it once on a batch"):
            run(Loop([part]), batches, 1)


class TestStrangers:
    def test_variable_in_a_loss_that_nothing_trains_is_refused(self):
        scale = tf.Variable(1.0, name="scale")
        loop = make_loop(loss=lambda outputs, batch: scale * squared_error(outputs, batch))
        with pytest.raises(UserError, match="scale, which nothing trains"):
            run(loop, batches, 1)

    def test_it_may_be_a_part_of_its_own(self):
        log_variance = tf.Variable(0.0, name="log_variance")
        loop = make_loop()

        def loss(batch):
            error = squared_error(loop.model(batch[0]), batch)
            return tf.exp(-log_variance) * error + log_variance

        part = training.Part([log_variance], keras.optimizers.SGD(0.01), loss)
        run(Loop([part]), batches, 1)
        x, y = make_batch(0)
        kernel = np.array([[0.1], [0.2], [0.3]], np.float32)
        # d/ds of exp(-s) e + s at s = 0 is 1 - e.
        error = float(np.mean((x @ kernel - y) ** 2))
        assert float(log_variance.numpy()) == pytest.approx(-0.01 * (1 - error), rel=1e-4)

    def test_frozen_teacher_may_take_part(self):
        teacher = make_loop().model
        teacher.trainable = False
        loop = make_loop(
            loss=lambda outputs, batch: squared_error(outputs, (None, teacher(batch[0]) + 1.0))
        )
        before = teacher.get_weights()[0]
        run(loop, batches, 3)
        np.testing.assert_array_equal(teacher.get_weights()[0], before)

    def test_layer_that_the_loss_makes_is_refused(self):
        layer = keras.layers.Dense(1)
        loop = make_loop(loss=lambda outputs, batch: squared_error(layer(outputs), batch))
        with pytest.raises(UserError, match="which nothing trains"):
            run(loop, batches, 1)

    def test_variable_that_the_loss_does_not_reach_is_named_and_left_alone(self):
        loop = two_layers()
        unused = loop.model.get_layer("head")
        inner = keras.Model(loop.model.inputs, loop.model.get_layer("back").output)
        part = training.Part(
            loop.model,
            keras.optimizers.AdamW(0.01, weight_decay=0.5),
            lambda batch: tf.reduce_sum(tf.square(inner(batch[0])), -1),
        )
        before = unused.kernel.numpy()
        with pytest.warns(UserWarning, match=r"does not depend on .*head/kernel"):
            run(Loop([part]), batches, 2)
        np.testing.assert_array_equal(unused.kernel.numpy(), before)

    def test_loss_of_no_variable_at_all_is_refused(self):
        loop = make_loop(loss=lambda outputs, batch: tf.reduce_sum(batch[0], -1))
        with pytest.raises(UserError, match="does not depend on any trainable variable"):
            run(loop, batches, 1)
