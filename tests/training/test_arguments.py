"""Mistakes of a caller are told in one sentence, before anything is trained."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.tiny_loop import batches, make_batch, make_loop, run, squared_error

from unet_core import training
from unet_core.errors import UserError
from unet_core.training import Loop, Part

ARRAYS = make_batch(0)


class FiveNumbers:
    """A dataset of other kind."""

    def __len__(self):
        return 5


class TestLoop:
    @pytest.mark.parametrize(
        "setting",
        [
            dict(micro_batches=0),
            dict(micro_batches=2.0),
            dict(ema_decay=1.0),
            dict(ema_decay=-1),
            dict(clip_norm=0.0),
            dict(clip_norm=-1.0),
            dict(clip_norm=float("nan")),
            dict(clip_norm="1"),
            dict(seconds_per_call=0),
            dict(schedule=0.1),
            dict(schedule=lambda step: tf.ones([2])),
            dict(schedule=lambda step: -1.0),
            dict(loss=keras.losses.MeanSquaredError()),
            dict(loss=keras.losses.mean_squared_error),
            dict(loss="mse"),
            dict(loss=None),
            dict(loss=lambda outputs: outputs),
            dict(metrics=keras.metrics.Mean()),
            dict(metrics=lambda outputs: outputs),
        ],
        ids=lambda setting: next(iter(setting)),
    )
    def test_setting_that_is_wrong_is_named(self, setting):
        with pytest.raises(UserError, match=next(iter(setting))):
            make_loop(**setting)

    @pytest.mark.parametrize(
        "optimizer",
        ["adam", tf.compat.v1.train.AdamOptimizer(0.1), 0.1, None],
        ids=["text", "version 1", "number", "none"],
    )
    def test_optimizer_of_another_kind_is_refused(self, optimizer):
        with pytest.raises(UserError, match="Keras optimizer"):
            Loop(make_loop().model, optimizer, loss=squared_error)

    @pytest.mark.parametrize(
        "model",
        [lambda x: x, "unet", [], [1.0], tf.Variable(1.0)],
        ids=["function", "text", "nothing", "numbers", "variable"],
    )
    def test_model_of_another_kind_is_refused(self, model):
        with pytest.raises(UserError, match="model"):
            Loop(model, keras.optimizers.SGD(0.1), loss=squared_error)

    @pytest.mark.parametrize(
        ("model_in", "optimizer_in", "given"),
        [(False, True, True), (True, False, True), (True, True, False)],
    )
    def test_scope_of_another_strategy_is_refused(self, mirrored, model_in, optimizer_in, given):
        strategy, none = mirrored(2), tf.distribute.get_strategy()
        with (strategy if model_in else none).scope():
            model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        with (strategy if optimizer_in else none).scope():
            optimizer = keras.optimizers.Adam(0.1)
        with pytest.raises(UserError, match="scope"):
            Loop(model, optimizer, loss=squared_error, strategy=strategy if given else None)

    def test_model_of_keras_2_is_refused(self):
        old = type("Model", (tf.Module,), {"__module__": "tf_keras.src.engine.training"})
        with pytest.raises(UserError, match="Keras 3 model"):
            Part(old(), keras.optimizers.SGD(0.1), lambda batch: batch)

    def test_model_is_not_its_own_teacher(self):
        model = make_loop().model
        with pytest.raises(UserError, match="another model"):
            Part(
                model,
                keras.optimizers.SGD(0.1),
                lambda batch: batch,
                ema_decay=0.9,
                average_into=model,
            )

    def test_schedules_of_loop_and_optimizer_together_are_refused(self):
        def optimizer():
            return keras.optimizers.SGD(keras.optimizers.schedules.PolynomialDecay(1.0, 10))

        with pytest.raises(UserError, match="leave one of them out"):
            make_loop(optimizer=optimizer, schedule=lambda step: 0.1)

    def test_options_beside_parts_are_refused(self):
        loop = make_loop()
        part = Part(loop.model, keras.optimizers.SGD(0.1), lambda batch: batch[0])
        with pytest.raises(UserError, match="leave those of the loop out"):
            Loop([part], clip_norm=1.0)

    def test_second_loop_takes_the_optimizer_and_the_first_is_refused(self):
        first = make_loop()
        second = Loop(first.model, first.optimizer, loss=squared_error)
        run(second, batches, 2)
        with pytest.raises(UserError, match="given to another loop"):
            run(first, batches, 2)

    def test_optimizer_of_another_model_is_refused(self):
        first = make_loop(optimizer=lambda: keras.optimizers.Adam(0.1))
        with pytest.raises(UserError, match="another model"):
            Loop(make_loop().model, first.optimizer, loss=squared_error)


class TestTrain:
    @pytest.mark.parametrize(
        "arguments",
        [
            dict(until_step=5.0),
            dict(until_step="5"),
            dict(report_every_steps=2.5),
            dict(report_every_steps=0),
            dict(pause_every_steps=2),
            dict(pause_every_steps=[0]),
            dict(should_stop=False),
        ],
        ids=lambda arguments: next(iter(arguments)),
    )
    def test_wrong_argument_is_named_at_the_call(self, arguments):
        with pytest.raises(UserError, match=next(iter(arguments))):
            make_loop().train(batches, **{"until_step": 5, **arguments})

    @pytest.mark.parametrize(
        "dataset",
        [
            [ARRAYS],
            ARRAYS,
            FiveNumbers(),
            keras.utils.PyDataset,
            lambda: tf.data.Dataset.from_tensors(ARRAYS),
            lambda start: tf.data.Dataset.from_tensors(ARRAYS),
            lambda start, context: [ARRAYS],
        ],
        ids=["list", "arrays", "object", "class", "no argument", "one argument", "returns a list"],
    )
    def test_dataset_of_another_kind_is_refused(self, dataset):
        with pytest.raises(UserError, match=r"dataset"):
            list(make_loop().train(dataset, until_step=1))

    def test_dict_batch_says_how_to_map_it(self):
        data = tf.data.Dataset.from_tensors({"image": ARRAYS[0], "label": ARRAYS[1]})
        with pytest.raises(UserError, match=r"batch\['image'\], batch"):
            run(make_loop(), data, 1)

    @pytest.mark.parametrize("kind", ["unbatched", "other width"])
    def test_batch_that_the_model_cannot_take_is_told_with_its_shape(self, kind):
        x, y = ARRAYS
        data = tf.data.Dataset.from_tensor_slices((x, y))
        if kind == "other width":
            data = tf.data.Dataset.from_tensors((x[:, :2], y))
        shape = r"\(3,\)" if kind == "unbatched" else r"\(4, 2\)"
        with pytest.raises(UserError, match=f"of shape {shape}"):
            run(make_loop(), data, 1)

    @pytest.mark.parametrize("method", ["train", "save", "restore", "averaged_weights"])
    def test_inside_averaged_weights_is_refused(self, tmp_path, method):
        loop = make_loop(ema_decay=0.9)
        run(loop, batches, 2)
        checkpoints = training.Checkpoints(tmp_path, loop)
        calls = {
            "train": lambda: run(loop, batches, 4),
            "save": checkpoints.save,
            "restore": checkpoints.restore,
            "averaged_weights": loop.averaged_weights().__enter__,
        }
        with loop.averaged_weights(), pytest.raises(UserError, match="outside of it"):
            calls[method]()


class TestProcess:
    def test_many_loops_warn_of_no_retracing(self, caplog):
        for _ in range(7):
            loop = make_loop()
            run(loop, batches, 2)
            loop.evaluate(tf.data.Dataset.from_tensors(ARRAYS))
        assert "retracing" not in caplog.text

    def test_calls_of_one_step_are_made_at_the_beginning_of_a_loop_only(self):
        loop = make_loop()
        calls = []
        feed = loop.feed(batches)
        advance = feed.advance
        feed.advance = lambda steps: (calls.append(steps), advance(steps))
        for until in (1000, 1500, 2000):
            list(loop.train(feed, until_step=until, report_every_steps=500))
        # The first compiles, the second is timed; later calls of `train` know how long steps take.
        assert calls[:2] == [1, 1]
        assert 1 not in calls[2:]

    @pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
    @pytest.mark.parametrize(
        "setting", [{}, dict(clip_norm=1.0), dict(micro_batches=2), dict(ema_decay=0.9)], ids=str
    )
    def test_variables_of_every_float_type_train_as_float32_does(self, dtype, setting):
        def train(dtype):
            layer = keras.layers.Dense(1, use_bias=False, dtype=dtype, kernel_initializer="zeros")
            model = keras.Sequential([keras.Input((3,), dtype=dtype), layer])
            loop = Loop(
                model,
                keras.optimizers.SGD(0.05),
                loss=lambda o, b: tf.reduce_sum(tf.square(o - tf.cast(b[1], o.dtype)), -1),
                **setting,
            )
            run(loop, batches, 3)
            return model.get_weights()[0].astype(np.float64)

        tolerance = {"float64": 1e-6, "bfloat16": 3e-2, "float16": 4e-3}[dtype]
        np.testing.assert_allclose(train(dtype), train("float32"), atol=tolerance)


class TestLayersOfKeras:
    def test_that_act_on_one_replica_are_named_in_one_warning(self, mirrored):
        strategy = mirrored(2)
        with strategy.scope():
            layers = [
                keras.layers.BatchNormalization(name="norm"),
                keras.layers.Dropout(0.5, name="drop"),
                keras.layers.Dense(1),
            ]
            model = keras.Sequential([keras.Input((3,)), *layers])
            optimizer = keras.optimizers.SGD(0.001)
        with pytest.warns(UserWarning, match="norm, drop act on the rows of one replica"):
            loop = Loop(model, optimizer, loss=squared_error, strategy=strategy)
        run(loop, batches, 5)
        # The moving statistics are the same on both all the same: those of Keras' momentum 0.99
        # over the means of both halves.
        expected = np.zeros(3)
        for step in range(5):
            x, _ = make_batch(step)
            expected = 0.99 * expected + 0.01 * x.mean(0)
        copies = strategy.experimental_local_results(model.get_layer("norm").moving_mean.value)
        for copy in copies:
            np.testing.assert_allclose(copy.numpy(), expected, atol=1e-6)

    def test_recurrent_ones_without_dropout_are_not(self, mirrored, recwarn):
        strategy = mirrored(2)
        with strategy.scope():
            model = keras.Sequential(
                [keras.Input((5, 3)), keras.layers.LSTM(2), keras.layers.Dense(1)]
            )
            optimizer = keras.optimizers.SGD(0.1)
        Loop(model, optimizer, loss=squared_error, strategy=strategy)
        assert not [w for w in recwarn if "one replica" in str(w.message)]

    def test_synchronised_batch_norm_trains_as_on_one_replica(self, mirrored):
        found = []
        for replicas in (1, 2, 4):
            strategy = mirrored(replicas)
            with strategy.scope():
                layers = [
                    keras.layers.BatchNormalization(synchronized=True, momentum=0.5),
                    keras.layers.Dense(1, kernel_initializer="ones"),
                ]
                model = keras.Sequential([keras.Input((3,)), *layers])
                optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
            loop = Loop(model, optimizer, loss=squared_error, strategy=strategy)
            run(loop, functools.partial(batches, rows=8), 6)
            found.append([variable.numpy() for variable in model.variables])
        for many in found[1:]:
            for one, other in zip(found[0], many, strict=True):
                np.testing.assert_allclose(one, other, atol=1e-5)
