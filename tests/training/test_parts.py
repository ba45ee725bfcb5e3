"""Loops of several parts, means over weights, named values, batches in hand."""

import functools
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.tiny_loop import batches, make_batch, make_loop, run, squared_error, weights

from unet_core import training
from unet_core.errors import UserError
from unet_core.training import Loop, Mean, Part


def dataset_of(make, start_step, context, *, rows=4):
    """A dataset callable of dicts of arrays: the rows of one replica of each batch."""
    replicas = context.num_replicas_in_sync

    def generate():
        for step in itertools.count(start_step):
            arrays = make(step, rows)
            for replica in range(replicas):
                share = slice(replica * rows // replicas, (replica + 1) * rows // replicas)
                yield {name: array[share] for name, array in arrays.items()}

    signature = {
        name: tf.TensorSpec([rows // replicas, *array.shape[1:]], array.dtype)
        for name, array in make(0, rows).items()
    }
    data = tf.data.Dataset.from_generator(generate, output_signature=signature)
    return data.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))


def noise_and_truth(step, rows):
    rng = np.random.default_rng(step)
    return {
        "noise": rng.standard_normal((rows, 2)).astype(np.float32),
        "real": rng.standard_normal((rows, 1)).astype(np.float32) + 3,
    }


def dense(units, inputs, seed):
    kernel = keras.initializers.HeNormal(seed=seed)
    layer = keras.layers.Dense(units, kernel_initializer=kernel)
    return keras.Sequential([keras.Input((inputs,)), layer])


def entropy(logits, label):
    labels = tf.fill(tf.shape(logits), float(label))
    return tf.nn.sigmoid_cross_entropy_with_logits(logits=logits, labels=labels)[:, 0]


class Game:
    """A judge that tells real values from painted ones, and a painter."""

    def __init__(self, strategy=None, poisoned_step=None, **options):
        strategy = strategy or tf.distribute.get_strategy()
        self.poisoned_step = poisoned_step
        with strategy.scope():
            self.judge, self.painter = dense(1, 1, seed=1), dense(1, 2, seed=2)
            self.optimizers = keras.optimizers.SGD(0.1, momentum=0.9), keras.optimizers.Adam(0.01)
        self.loop = Loop(
            [
                Part(self.judge, self.optimizers[0], self.tell, name="judge"),
                Part(self.painter, self.optimizers[1], self.fool, name="painter", **options),
            ],
            strategy=strategy,
        )

    def tell(self, batch):
        real = self.judge(batch["real"])
        right = tf.cast(real[:, 0] > 0, tf.float32)
        return entropy(real, 1) + entropy(self.judge(self.painter(batch["noise"])), 0), {
            "right": right
        }

    def fool(self, batch):
        return entropy(self.judge(self.painter(batch["noise"])), 1)

    def data(self, start_step, context):
        def make(step, rows):
            arrays = noise_and_truth(step, rows)
            if step == self.poisoned_step:
                arrays["noise"] = arrays["noise"] * np.float32("nan")
            return arrays

        return dataset_of(make, start_step, context)

    def everything(self):
        models = [*self.judge.variables, *self.painter.variables]
        slots = [v for optimizer in self.optimizers for v in optimizer.variables]
        return [np.asarray(v.numpy()) for v in (*models, *slots, *self.loop.state.values())]


def by_hand(steps):
    """Returns the weights of judge and painter after the same steps by tapes and Keras' apply."""
    game = Game()
    for step in range(steps):
        batch = noise_and_truth(step, 4)
        for model, optimizer, loss in (
            (game.judge, game.optimizers[0], lambda batch: game.tell(batch)[0]),
            (game.painter, game.optimizers[1], game.fool),
        ):
            with tf.GradientTape() as tape:
                mean = tf.reduce_mean(loss(batch))
            optimizer.apply(tape.gradient(mean, model.trainable_variables))
    return [*game.judge.get_weights(), *game.painter.get_weights()]


class TestParts:
    @pytest.mark.parametrize("replicas", [1, 2])
    def test_are_updated_in_order_as_by_hand(self, mirrored, replicas):
        game = Game(mirrored(replicas))
        reports = list(game.loop.train(game.data, until_step=5, report_every_steps=5))
        found = [*game.judge.get_weights(), *game.painter.get_weights()]
        for one, other in zip(found, by_hand(5), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)
        assert set(reports[0].means) == {"judge", "painter", "right"}
        assert reports[0].loss == reports[0].means["judge"]
        assert reports[0].rates == pytest.approx({"judge": 0.1, "painter": 0.01})
        assert game.loop.traces["train"] == 1

    def test_every_two_updates_at_steps_0_and_2(self):
        game = Game(every=2)
        assert len(list(game.loop.train(game.data, until_step=4, report_every_steps=1))) == 4
        assert [int(o.iterations.numpy()) for o in game.optimizers] == [4, 2]

    @pytest.mark.parametrize("replicas", [1, 2])
    def test_step_whose_second_part_is_not_finite_changes_nothing(self, mirrored, replicas):
        game = Game(mirrored(replicas))
        # The judge sees real values alone, so that its own loss is finite.
        game.loop.parts["judge"].loss = lambda batch: entropy(game.judge(batch["real"]), 1)
        list(game.loop.train(game.data, until_step=3, report_every_steps=3))
        before = game.everything()
        game.poisoned_step = 3
        with pytest.raises(training.NonFiniteError, match=r"Step 3: .*'painter'"):
            list(game.loop.train(game.data, until_step=9))
        for one, other in zip(game.everything(), before, strict=True):
            np.testing.assert_array_equal(one, other)

    @pytest.mark.parametrize("replicas", [1, 2])
    def test_resumed_game_ends_like_the_uninterrupted_one(self, mirrored, replicas, tmp_path):
        whole, first, second = (Game(mirrored(replicas)) for _ in range(3))
        run(whole.loop, whole.data, 6)
        run(first.loop, first.data, 3)
        training.Checkpoints(tmp_path, first.loop).save()
        training.Checkpoints(tmp_path, second.loop).restore()
        run(second.loop, second.data, 6)
        for one, other in zip(second.everything(), whole.everything(), strict=True):
            np.testing.assert_array_equal(one, other)

    def test_with_micro_batches_are_refused(self):
        game = Game()
        with pytest.raises(UserError, match="for one part"):
            Loop(list(game.loop.parts.values()), micro_batches=2)

    def test_of_one_optimizer_are_refused(self):
        optimizer = keras.optimizers.SGD(0.1)
        parts = [Part(dense(1, 1, seed=s), optimizer, lambda batch: batch) for s in (1, 2)]
        with pytest.raises(UserError, match="one optimizer object"):
            Loop(parts)

    def test_load_weights_takes_the_named_one(self, tmp_path):
        game = Game()
        run(game.loop, game.data, 2)
        training.Checkpoints(tmp_path, game.loop).save()
        model = dense(1, 2, seed=9)
        training.load_weights(tmp_path, model, part="painter")
        np.testing.assert_array_equal(model.get_weights()[0], game.painter.get_weights()[0])
        with pytest.raises(UserError, match="judge, painter"):
            training.load_weights(tmp_path, model)


class TestMean:
    def test_divides_by_the_weights_of_the_whole_batch(self, mirrored):
        # Rows 0, 1 weigh 1 and 3 on the first replica; rows 2, 3 weigh 0 and 4 on the second.
        factors = np.array([1, 3, 0, 4], np.float32)
        x, y = make_batch(0)

        def data(start_step, context):
            rows = 4 // context.num_replicas_in_sync
            return tf.data.Dataset.from_tensor_slices((x, y, factors)).batch(rows).repeat()

        def loss(outputs, batch):
            return Mean(squared_error(outputs, batch), batch[2])

        kernel = np.array([[0.1], [0.2], [0.3]], np.float32)
        errors = x @ kernel - y
        gradient = 2 * x.T @ (errors * factors[:, None]) / 8
        for replicas in (1, 2):
            loop = make_loop(mirrored(replicas), loss=loss)
            (report,) = run(loop, data, 1)
            np.testing.assert_allclose(weights(loop)[:, None], kernel - 0.1 * gradient, rtol=1e-5)
            assert report.loss == pytest.approx((errors[:, 0] ** 2 * factors).sum() / 8, rel=1e-5)

    def test_without_any_weight_is_zero_and_moves_nothing(self):
        def loss(outputs, batch):
            return Mean(squared_error(outputs, batch), tf.zeros([4]))

        loop = make_loop(loss=loss)
        before = weights(loop)
        run(loop, batches, 1)
        np.testing.assert_array_equal(weights(loop), before)

    def test_value_of_weight_zero_may_be_anything(self):
        def loss(outputs, batch):
            values = tf.concat([squared_error(outputs, batch)[:3], [np.float32("inf")]], 0)
            return Mean(values, tf.constant([1.0, 1, 1, 0]))

        loop = make_loop(loss=loss)
        assert np.isfinite(run(loop, batches, 2)[0].loss)

    def test_of_two_shapes_names_both(self):
        def loss(outputs, batch):
            return Mean(tf.ones([4, 2]), tf.ones([4]))

        with pytest.raises(UserError, match=r"\(4, 2\).*\(4,\)"):
            run(make_loop(loss=loss), batches, 1)

    def test_evaluation_gives_its_sum_and_weight(self):
        def loss(outputs, batch):
            return Mean(tf.ones([4]), tf.constant([0.5, 0.5, 1, 0]))

        sums = make_loop(loss=loss).evaluate(tf.data.Dataset.from_tensors(make_batch(0)))
        assert (sums["loss"], sums["examples"]) == (2.0, 2.0)


class TestNamedValues:
    def test_are_averaged_over_the_window(self):
        def loss(outputs, batch):
            return squared_error(outputs, batch), {"first": batch[0][:, 0]}

        reports = make_loop(loss=loss).train(batches, until_step=4, report_every_steps=2)
        means = [report.means["first"] for report in reports]
        firsts = [float(np.mean(make_batch(step)[0][:, 0])) for step in range(4)]
        assert means == pytest.approx([np.mean(firsts[:2]), np.mean(firsts[2:])], rel=1e-5)

    @pytest.mark.parametrize("name", ["loss", "examples"])
    def test_with_a_reserved_name_are_refused(self, name):
        loop = make_loop(loss=lambda outputs, batch: (squared_error(outputs, batch), {name: 1.0}))
        with pytest.raises(UserError, match=name):
            run(loop, batches, 1)
        metrics = {name: tf.constant(1)}
        loop = make_loop(metrics=lambda outputs, batch: metrics)
        with pytest.raises(UserError, match=name):
            loop.evaluate(tf.data.Dataset.from_tensors(make_batch(0)))


class TestRows:
    """The divisor is the number of values that the loss has, whatever the batch looks like."""

    @pytest.mark.parametrize("known", [True, False])
    @pytest.mark.parametrize(
        "loss",
        [
            lambda o, b: tf.reduce_mean(tf.square(o - b[1]), (1, 2, 3)),
            lambda o, b: tf.reshape(tf.square(o - b[1]), [-1]),
            lambda o, b: tf.boolean_mask(tf.square(o - b[1])[..., 0], b[0][..., 0] < 99),
            lambda o, b: tf.repeat(tf.reduce_mean(tf.square(o - b[1]), (1, 2, 3)), 2),
            lambda o, b: tf.cast(tf.reduce_mean(tf.square(o - b[1]), (1, 2, 3)), tf.float64),
        ],
        ids=["per example", "per pixel", "masked", "two views", "float64"],
    )
    def test_of_any_loss_are_counted(self, loss, known):
        x = np.random.default_rng(0).standard_normal((4, 8, 8, 1)).astype(np.float32)
        model = keras.Sequential(
            [keras.Input((8, 8, 1)), keras.layers.Conv2D(1, 1, use_bias=False)]
        )
        model.set_weights([np.full((1, 1, 1, 1), 0.5, np.float32)])
        loop = Loop(model, keras.optimizers.SGD(0.1), loss=loss)
        data = tf.data.Dataset.from_tensor_slices((x, 2 * x)).batch(4, drop_remainder=known)
        run(loop, data, 1)
        # d/dw of the mean of (w x - 2 x)^2 is 2 (w - 2) mean(x^2), w = 0.5.
        expected = 0.5 + 0.1 * 3 * np.mean(x.astype(np.float64) ** 2)
        assert float(model.get_weights()[0].item()) == pytest.approx(expected, rel=1e-5)

    def test_constant_that_comes_first_is_not_taken_for_them(self):
        class Scaled(keras.Model):
            def __init__(self):
                super().__init__()
                self.inner = make_loop().model

            def call(self, inputs):
                return self.inner(inputs["x"])

        def with_anchors(x, y):
            return {"anchors": tf.ones([7, 1]), "x": x}, y

        loop = Loop(Scaled(), keras.optimizers.SGD(0.1), loss=squared_error)
        x, y = make_batch(0)
        data = tf.data.Dataset.from_tensor_slices((x, y)).batch(4, drop_remainder=True)
        (report,) = run(loop, data.map(with_anchors), 1)
        kernel = np.array([[0.1], [0.2], [0.3]], np.float32)
        gradient = 2 / 4 * x.T @ (x @ kernel - y)
        assert report.gradient_norm == pytest.approx(np.linalg.norm(gradient), rel=1e-5)

    @pytest.mark.parametrize(
        ("result", "said"),
        [
            (tf.ones([4, 2, 2]), r"\(4, 2, 2\)"),
            (tf.constant(1.0), r"shape \(\)"),
            (tf.ones([4], tf.int32), "int32"),
            (None, "NoneType"),
            ([1.0], "list"),
            ((tf.ones([4]), tf.ones([4])), "dict"),
        ],
        ids=["per pixel", "scalar", "whole numbers", "none", "list", "pair"],
    )
    def test_loss_that_has_none_is_refused(self, result, said):
        with pytest.raises(UserError, match=said):
            run(make_loop(loss=lambda outputs, batch: result), batches, 1)


class TestAddedLosses:
    """What a model adds to its loss counts once, on any number of replicas."""

    @pytest.mark.parametrize("adds", ["the loop", "the loss"])
    @pytest.mark.parametrize("replicas", [1, 2])
    def test_regulariser_counts_once(self, mirrored, replicas, adds):
        strategy = mirrored(replicas)
        with strategy.scope():
            layer = keras.layers.Dense(
                1, use_bias=False, kernel_regularizer=keras.regularizers.L2(0.5)
            )
            model = keras.Sequential([keras.Input((3,)), layer])
            layer.kernel.assign([[0.1], [0.2], [0.3]])
            optimizer = keras.optimizers.SGD(0.1)

        def loss(outputs, batch):
            error = squared_error(outputs, batch)
            return error + tf.add_n(model.losses) if adds == "the loss" else error

        loop = Loop(model, optimizer, loss=loss, strategy=strategy)
        (report,) = run(loop, batches, 1)
        x, y = make_batch(0)
        kernel = np.array([[0.1], [0.2], [0.3]], np.float32)
        # 0.5 |w|^2 adds w to the gradient and 0.5 * 0.14 to the loss.
        gradient = 2 / 4 * x.T @ (x @ kernel - y) + kernel
        np.testing.assert_allclose(weights(loop)[:, None], kernel - 0.1 * gradient, rtol=1e-5)
        assert report.loss == pytest.approx(float(np.mean((x @ kernel - y) ** 2)) + 0.07, rel=1e-5)

    def test_mean_over_uneven_rows_counts_by_their_share(self, mirrored):
        """Five rows on two replicas: 3 + 2."""

        class Penalty(keras.layers.Layer):
            def call(self, inputs):
                self.add_loss(0.5 * tf.reduce_mean(tf.square(inputs)))
                return inputs

        found = []
        x, y = make_batch(0, 5)
        for replicas in (1, 2):
            strategy = mirrored(replicas)
            with strategy.scope():
                layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
                model = keras.Sequential([keras.Input((3,)), layer, Penalty()])
                optimizer = keras.optimizers.SGD(0.1)
            loop = Loop(model, optimizer, loss=squared_error, strategy=strategy)
            run(loop, tf.data.Dataset.from_tensor_slices((x, y)).batch(5), 1)
            found.append(model.get_weights()[0])
        # 0.5 mean((xw)^2) adds x'(xw) / 5 to the gradient of mean((xw - y)^2).
        kernel = np.ones((3, 1), np.float32)
        gradient = (2 * x.T @ (x @ kernel - y) + x.T @ (x @ kernel)) / 5
        for kernel_found in found:
            np.testing.assert_allclose(kernel_found, kernel - 0.1 * gradient, rtol=1e-5)

    @pytest.mark.parametrize("kind", ["kernel", "activity"])
    def test_beside_layers_that_replicas_share(self, mirrored, kind):
        """Replicas take turns in such layers: regularisers are right, losses of calls refused."""
        found = []
        for replicas in (1, 2):
            strategy = mirrored(replicas)
            with strategy.scope():
                penalty = {f"{kind}_regularizer": keras.regularizers.L2(0.5)}
                layers = [
                    keras.layers.Dense(2, kernel_initializer="ones", **penalty),
                    keras.layers.BatchNormalization(synchronized=True),
                    keras.layers.Dense(1, kernel_initializer="ones", **penalty),
                ]
                model = keras.Sequential([keras.Input((3,)), *layers])
                optimizer = keras.optimizers.SGD(0.05)
            loop = Loop(model, optimizer, loss=squared_error, strategy=strategy)
            if kind == "activity" and replicas == 2:
                with pytest.raises(UserError, match="Compute them in the loss"):
                    run(loop, batches, 1)
                return
            (report,) = run(loop, batches, 3)
            found.append([*model.get_weights(), report.loss])
        for one, other in zip(*found, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)

    def test_evaluation_has_them_for_every_example(self):
        layer = keras.layers.Dense(1, use_bias=False, kernel_regularizer=keras.regularizers.L2(1.0))
        model = keras.Sequential([keras.Input((3,)), layer])
        loop = Loop(model, keras.optimizers.SGD(0.1), loss=squared_error)
        x, y = make_batch(0, 6)
        sums = loop.evaluate(tf.data.Dataset.from_tensor_slices((x, y)).batch(4))
        kernel = model.get_weights()[0]
        expected = ((x @ kernel - y) ** 2).sum() + 6 * (kernel**2).sum()
        assert sums["loss"] == pytest.approx(expected, rel=1e-5)

    def test_constraint_acts_after_the_update(self):
        layer = keras.layers.Dense(
            1, use_bias=False, kernel_constraint=keras.constraints.MaxNorm(0.5)
        )
        model = keras.Sequential([keras.Input((3,)), layer])
        loop = Loop(model, keras.optimizers.SGD(0.1), loss=squared_error)
        run(loop, batches, 5)
        assert np.linalg.norm(model.get_weights()[0]) == pytest.approx(0.5, rel=1e-5)


class TestUpdate:
    def test_of_batches_in_hand_trains_what_train_does(self):
        one, other = make_loop(), make_loop()
        reports = [one.update(make_batch(step)) for step in range(4)]
        run(other, batches, 4)
        np.testing.assert_array_equal(weights(one), weights(other))
        x, y = make_batch(0)
        kernel = np.array([[0.1], [0.2], [0.3]], np.float32)
        assert reports[0].loss == pytest.approx(float(np.mean((x @ kernel - y) ** 2)), rel=1e-5)
        assert [report.step for report in reports] == [1, 2, 3, 4]

    def test_of_many_sizes_traces_twice(self):
        loop = make_loop()
        for rows in (4, 5, 6, 7):
            loop.update(make_batch(0, rows))
        assert loop.traces["update"] == 2

    def test_takes_per_replica_values_and_refuses_a_whole_batch(self, mirrored):
        strategy = mirrored(2)
        loop, one = make_loop(strategy), make_loop()

        def shared(array):
            return strategy.experimental_distribute_values_from_function(
                lambda context: tf.constant(array[2 * context.replica_id_in_sync_group :][:2])
            )

        for step in range(3):
            loop.update(tuple(map(shared, make_batch(step))))
        run(one, batches, 3)
        np.testing.assert_allclose(weights(loop), weights(one), atol=1e-6)
        with pytest.raises(UserError, match="each of the 2 replicas"):
            loop.update(make_batch(0))

    @pytest.mark.parametrize("kind", ["ragged", "sparse", "none"])
    def test_takes_parts_of_every_kind(self, kind):
        x, y = make_batch(0)
        part = {
            "ragged": tf.RaggedTensor.from_row_lengths(tf.range(6.0), [1, 2, 0, 3]),
            "sparse": tf.sparse.eye(4),
            "none": None,
        }[kind]
        one, other = make_loop(), make_loop()
        one.update((x, y, part))
        run(other, batches, 1)
        np.testing.assert_array_equal(weights(one), weights(other))

    def test_sees_that_a_layer_has_been_frozen(self):
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), keras.layers.Dense(1)])
        loop = Loop(model, keras.optimizers.SGD(0.1), loss=squared_error)
        loop.update(make_batch(0))
        model.layers[0].trainable = False
        before = model.layers[0].kernel.numpy()
        loop.update(make_batch(1))
        np.testing.assert_array_equal(model.layers[0].kernel.numpy(), before)

    def test_nan_names_the_step(self):
        loop = make_loop()
        loop.update(make_batch(0))
        x, y = make_batch(1)
        with pytest.raises(training.NonFiniteError, match="Step 1"):
            loop.update((x * np.float32("nan"), y))
        assert loop.step == 1


class TestModels:
    def test_module_trains_as_a_keras_model_does(self):
        class Linear(tf.Module):
            def __init__(self):
                super().__init__()
                self.kernel = tf.Variable([[0.1], [0.2], [0.3]])

            def __call__(self, x):
                return x @ self.kernel

        module, loop = Linear(), make_loop()
        run(Loop(module, keras.optimizers.SGD(0.1), loss=squared_error), batches, 3)
        run(loop, batches, 3)
        np.testing.assert_array_equal(module.kernel.numpy().ravel(), weights(loop))

    def test_list_of_variables_with_its_regularisers(self):
        layer = keras.layers.Dense(1, use_bias=False, kernel_regularizer=keras.regularizers.L2(0.5))
        layer.build((None, 3))
        layer.kernel.assign([[0.1], [0.2], [0.3]])
        part = Part(
            [layer.kernel], keras.optimizers.SGD(0.1), lambda b: squared_error(layer(b[0]), b)
        )
        run(Loop([part]), batches, 1)
        x, y = make_batch(0)
        kernel = np.array([[0.1], [0.2], [0.3]], np.float32)
        gradient = 2 / 4 * x.T @ (x @ kernel - y) + kernel
        np.testing.assert_allclose(layer.kernel.numpy(), kernel - 0.1 * gradient, rtol=1e-5)

    @pytest.mark.parametrize("compiled", [False, True])
    def test_recurrent_layer_trains_under_xla_as_without(self, compiled):
        def make(step, rows):
            rng = np.random.default_rng(step)
            x = rng.standard_normal((rows, 5, 3)).astype(np.float32)
            return x, x.sum((1, 2))[:, None]

        found = []
        for jit_compile in (False, compiled):
            keras.utils.set_random_seed(1)
            layers = [keras.layers.LSTM(4), keras.layers.Dense(1, activity_regularizer="l2")]
            model = keras.Sequential([keras.Input((5, 3)), *layers])
            loop = Loop(
                model, keras.optimizers.SGD(0.05), loss=squared_error, jit_compile=jit_compile
            )
            run(loop, functools.partial(batches, make=make), 3)
            found.append(model.get_weights())
        for one, other in zip(*found, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)

    def test_mean_teacher_takes_the_averages(self):
        student, teacher = make_loop().model, make_loop().model
        teacher.trainable = False

        def loss(batch):
            agreement = tf.square(student(batch[0]) - teacher(batch[0]))[:, 0]
            return squared_error(student(batch[0]), batch) + agreement

        part = Part(student, keras.optimizers.SGD(0.05), loss, ema_decay=0.3, average_into=teacher)
        loop = Loop([part])
        expected = teacher.get_weights()[0].astype(np.float64)
        for step, _ in enumerate(loop.train(batches, until_step=4, report_every_steps=1)):
            decay = min(0.3, (1 + step) / (10 + step))
            expected += (student.get_weights()[0] - expected) * (1 - decay)
            np.testing.assert_allclose(teacher.get_weights()[0], expected, rtol=1e-5)
