"""Where batches come from: datasets that go on, end early, are shared among replicas, or fail."""

import functools
import warnings
from typing import NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.tiny_loop import batches, make_batch, make_loop, run, squared_error, weights

from unet_core import training
from unet_core.errors import UserError
from unet_core.training import Loop


def plain(count, rows=4):
    x, y = make_batch(0, count * rows)
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(rows)


class TestFeed:
    def test_goes_on_where_it_was_left(self):
        pieces, whole = make_loop(), make_loop()
        feed = pieces.feed(plain(6))
        for until in (1, 2, 6):
            list(pieces.train(feed, until_step=until))
        run(whole, plain(6), 6)
        np.testing.assert_array_equal(weights(pieces), weights(whole))

    def test_of_a_function_opens_anew_after_a_restore(self, tmp_path):
        loop, whole = make_loop(), make_loop()
        checkpoints = training.Checkpoints(tmp_path, loop)
        feed = loop.feed(batches)
        list(loop.train(feed, until_step=2))
        checkpoints.save()
        list(loop.train(feed, until_step=5))
        checkpoints.restore()
        list(loop.train(feed, until_step=6))
        run(whole, batches, 6)
        np.testing.assert_array_equal(weights(loop), weights(whole))

    def test_two_loops_may_take_turns(self):
        one, other, alone = make_loop(), make_loop(), make_loop()
        for _ in zip(
            one.train(batches, until_step=6, report_every_steps=2),
            other.train(batches, until_step=6, report_every_steps=2),
            strict=True,
        ):
            pass
        run(alone, batches, 6)
        np.testing.assert_array_equal(weights(one), weights(alone))
        np.testing.assert_array_equal(weights(other), weights(alone))

    def test_loop_trained_inside_its_own_body_goes_on_from_there(self):
        loop, whole = make_loop(), make_loop()
        steps = []
        for report in loop.train(batches, until_step=8, report_every_steps=2):
            steps.append(report.step)
            if report.step == 2:
                list(loop.train(batches, until_step=5))
        run(whole, batches, 8)
        assert steps == [2, 6, 8]
        np.testing.assert_array_equal(weights(loop), weights(whole))


class TestRestoreInsideTheBody:
    def test_rewinds_exactly(self, tmp_path):
        loop, whole = make_loop(), make_loop()
        checkpoints = training.Checkpoints(tmp_path, loop, keep=9)
        steps = []
        for report in loop.train(batches, until_step=9, report_every_steps=3):
            steps.append(report.step)
            if steps == [3, 6]:
                checkpoints.restore(step=3)
            else:
                checkpoints.save()
        run(whole, batches, 9)
        assert steps == [3, 6, 6, 9]
        np.testing.assert_array_equal(weights(loop), weights(whole))
        assert checkpoints.steps() == [3, 6, 9]

    def test_of_a_plain_dataset_is_refused(self, tmp_path):
        loop = make_loop()
        checkpoints = training.Checkpoints(tmp_path, loop)
        reports = loop.train(plain(9), until_step=9, report_every_steps=3)
        next(reports)
        checkpoints.save()
        next(reports)
        checkpoints.restore()
        with pytest.raises(UserError, match="wound back"):
            next(reports)


class TestEndOfData:
    @pytest.mark.parametrize(
        "dataset", [plain(10), functools.partial(batches, count=10)], ids=["plain", "generator"]
    )
    def test_at_a_report_gives_one_report(self, dataset):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            reports = list(make_loop().train(dataset, until_step=99, report_every_steps=5))
        assert [report.step for report in reports] == [5, 10]
        # Of a generator it is not known beforehand that nothing follows.
        assert reports[-1].exhausted != any("ended at step 10" in str(s.message) for s in said)

    def test_between_reports_is_told(self):
        reports = list(make_loop().train(plain(7), until_step=99, report_every_steps=5))
        assert [(r.step, r.due, r.exhausted) for r in reports] == [
            (5, True, False),
            (7, False, True),
        ]

    def test_at_the_step_asked_for_is_none(self):
        (report,) = run(make_loop(), plain(5), 5)
        assert not report.exhausted

    def test_before_the_first_step_gives_no_report(self):
        with pytest.warns(UserWarning, match="ended at step 0"):
            assert list(make_loop().train(plain(1).take(0), until_step=3)) == []

    @pytest.mark.parametrize("rows", [5, 6, 7])
    @pytest.mark.parametrize("replicas", [2, 4])
    def test_rows_that_are_not_enough_for_all_replicas_count(self, mirrored, replicas, rows):
        """A last batch of 1 to 3 rows: some replicas have one row, some none."""

        def conv():
            kernel = keras.initializers.HeNormal(seed=1)
            layers = [
                keras.layers.Conv2D(2, 3, activation="relu", kernel_initializer=kernel),
                keras.layers.GlobalAveragePooling2D(),
                keras.layers.Dense(1, kernel_initializer=kernel),
            ]
            return keras.Sequential([keras.Input((4, 4, 1)), *layers])

        rng = np.random.default_rng(0)
        x = rng.standard_normal((rows, 4, 4, 1)).astype(np.float32)
        data = tf.data.Dataset.from_tensor_slices((x, x.sum((1, 2)))).batch(4)
        found = []
        for count in (1, replicas):
            strategy = mirrored(count)
            with strategy.scope():
                model, optimizer = conv(), keras.optimizers.SGD(0.1, momentum=0.9)
            loop = Loop(model, optimizer, loss=squared_error, strategy=strategy)
            reports = list(loop.train(data, until_step=9, report_every_steps=1))
            found.append([*model.get_weights(), reports[-1].loss])
            assert loop.step == 2
        for one, other in zip(*found, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)

    def test_what_reduces_over_replicas_says_that_it_needs_rows(self, mirrored):
        strategy = mirrored(2)
        with strategy.scope():
            layers = [keras.layers.BatchNormalization(synchronized=True), keras.layers.Dense(1)]
            model = keras.Sequential([keras.Input((3,)), *layers])
            optimizer = keras.optimizers.SGD(0.1)
        loop = Loop(model, optimizer, loss=squared_error, strategy=strategy)
        x, y = make_batch(0, 5)
        with pytest.raises(UserError, match="Drop the remainder"):
            run(loop, tf.data.Dataset.from_tensor_slices((x, y)).batch(4), 9)


class TestSharing:
    def test_of_parts_that_have_no_common_rows_is_refused(self, mirrored):
        data = plain(4).map(lambda x, y: (x, y, tf.range(1.0, 6.0)))
        with pytest.raises(UserError, match="cannot be shared among 2 replicas"):
            run(make_loop(mirrored(2)), data, 1)

    def test_of_rows_that_turn_out_to_differ_is_refused(self, mirrored):
        def unlike():
            for _ in range(3):
                x, y = make_batch(0)
                yield x, y, np.ones(3, np.float32)

        signature = tuple(tf.TensorSpec([None, *tail], tf.float32) for tail in ([3], [1], []))
        data = tf.data.Dataset.from_generator(unlike, output_signature=signature)
        with pytest.raises((UserError, tf.errors.InvalidArgumentError), match="numbers of rows"):
            run(make_loop(mirrored(2)), data, 1)

    def test_constants_in_the_batches_of_replicas_are_left_whole(self, mirrored):
        factors = tf.range(1.0, 6.0)

        def data(start_step, context):
            share = batches(start_step, context)
            return share.map(lambda x, y: (x, y, factors))

        def loss(outputs, batch):
            return squared_error(outputs, batch) * tf.reduce_sum(batch[2]) / 15

        one, two = make_loop(loss=loss), make_loop(mirrored(2), loss=loss)
        run(one, data, 3)
        run(two, data, 3)
        np.testing.assert_allclose(weights(two), weights(one), atol=1e-6)


class Named(NamedTuple):
    x: tf.Tensor
    y: tf.Tensor


class TestNamedBatches:
    @pytest.mark.parametrize("replicas", [1, 2])
    @pytest.mark.parametrize("plain", [False, True])
    def test_keep_their_names_in_training_and_evaluation(self, mirrored, replicas, plain):
        def finite(start_step, context):
            return batches(start_step, context, count=4).map(Named)

        def loss(outputs, batch):
            assert isinstance(batch, Named)
            return tf.reduce_sum(tf.square(outputs - batch.y), -1)

        dataset = finite(0, tf.distribute.InputContext()) if plain else finite
        loop = make_loop(mirrored(replicas), loss=loss)
        other = make_loop()
        run(loop, dataset, 3)
        run(other, batches, 3)
        np.testing.assert_allclose(weights(loop), weights(other), atol=1e-6)
        sums = loop.evaluate(functools.partial(finite, 0))
        assert int(sums["examples"]) == 16


class TestFailingGenerators:
    def test_say_what_they_raised_and_leave_a_loop_that_goes_on(self):
        def broken(step, rows):
            if step == 5:
                raise ValueError("sample 17 of patient 3 is corrupt")
            return make_batch(step, rows)

        loop, whole = make_loop(), make_loop()
        with pytest.raises(UserError, match="ValueError: sample 17 of patient 3 is corrupt"):
            run(loop, functools.partial(batches, make=broken), 9)
        run(loop, batches, 9)
        run(whole, batches, 9)
        np.testing.assert_array_equal(weights(loop), weights(whole))


class TestEvaluation:
    """Sums are those of the data, whatever stands first and however the batches fall."""

    def test_of_outputs_with_the_time_first(self):
        """[time, batch, 3]: a reduction over time gives one value per example."""
        x = np.random.default_rng(0).standard_normal((5, 4, 3)).astype(np.float32)

        def loss(outputs, batch):
            return tf.reduce_sum(tf.square(outputs[..., 0]), 0)

        layer = keras.layers.Dense(1, use_bias=False)
        model = keras.Sequential([keras.Input((None, 3)), layer])
        loop = Loop(model, keras.optimizers.SGD(0.1), loss=loss)
        sums = loop.evaluate(tf.data.Dataset.from_tensors((x,)))
        kernel = layer.kernel.numpy()[:, 0]
        assert sums["examples"] == 4
        assert sums["loss"] == pytest.approx(float(((x @ kernel) ** 2).sum()), rel=1e-5)

    @pytest.mark.parametrize("replicas", [1, 2])
    def test_of_batches_with_scalars_constants_and_ragged_parts(self, mirrored, replicas):
        x, y = make_batch(0, 6)
        ragged = tf.RaggedTensor.from_row_lengths(tf.range(9.0), [1, 2, 0, 3, 1, 2])

        def data(context):
            rows = 4 // context.num_replicas_in_sync
            slices = tf.data.Dataset.from_tensor_slices((x, y, ragged)).batch(rows)
            return slices.map(lambda x, y, r: (x, y, r, tf.constant(0.5), tf.range(5.0)))

        def metrics(outputs, batch):
            return {
                "ragged": tf.reduce_sum(batch[2]),
                "half rows": batch[3] * tf.cast(tf.shape(batch[0])[0], tf.float32),
            }

        sums = make_loop(mirrored(replicas), metrics=metrics).evaluate(data)
        assert (sums["examples"], sums["ragged"], sums["half rows"]) == (6, 36.0, 3.0)

    def test_counts_beyond_32_bits(self):
        loop = make_loop(metrics=lambda outputs, batch: {"pixels": tf.constant(2**30)})
        sums = loop.evaluate(plain(4))
        assert sums["pixels"] == 2**32

    def test_of_an_endless_dataset_is_refused(self):
        with pytest.raises(UserError, match="endless"):
            make_loop().evaluate(plain(1).repeat())
        with pytest.raises(UserError, match="endless"):
            make_loop().evaluate(lambda context: plain(1).repeat())

    def test_of_no_batch_is_refused(self):
        with pytest.raises(UserError, match="no batches"):
            make_loop().evaluate(plain(1).take(0))

    def test_leaves_the_state_of_a_stateful_layer(self):
        layer = keras.layers.LSTM(2, stateful=True)
        model = keras.Sequential([keras.Input((5, 3), batch_size=4), layer, keras.layers.Dense(1)])
        loop = Loop(model, keras.optimizers.SGD(0.1), loss=squared_error)

        def make(step, rows):
            x = np.random.default_rng(step).standard_normal((rows, 5, 3)).astype(np.float32)
            return x, x.sum((1, 2))[:, None]

        run(loop, functools.partial(batches, make=make), 2)
        before = [variable.numpy() for variable in model.variables]
        loop.evaluate(tf.data.Dataset.from_tensors(make(9, 4)))
        for one, other in zip(model.variables, before, strict=True):
            np.testing.assert_array_equal(one.numpy(), other)

    def test_of_many_sizes_traces_twice(self):
        loop = make_loop()
        for rows in range(4, 12):
            loop.evaluate(tf.data.Dataset.from_tensors(make_batch(0, rows)))
        assert loop.traces["evaluate"] == 2


class TestSharedLosses:
    @pytest.mark.parametrize("known", ["finite", "endless"])
    @pytest.mark.parametrize("rows", [5, 7])
    def test_of_uneven_rows_are_differentiated_through_the_sum(self, mirrored, known, rows):
        """A batch-wise loss of 3 + 2 or 4 + 3 rows: each row has the loss of the whole batch."""

        def loss(outputs, batch):
            sums = tf.stack([tf.reduce_sum(outputs * batch[1]), tf.reduce_sum(outputs**2)])
            context = tf.distribute.get_replica_context()
            if context.num_replicas_in_sync > 1:
                sums = context.all_reduce("SUM", sums)
            return tf.fill([tf.shape(outputs)[0]], sums[0] / (1.0 + sums[1]))

        x, y = make_batch(0, rows)
        data = tf.data.Dataset.from_tensor_slices((x, y)).batch(rows)
        if known == "endless":
            data = data.repeat()
        found = []
        for replicas in (1, 2):
            loop = make_loop(mirrored(replicas), loss=loss, loss_scaling=True)
            run(loop, data, 1)
            found.append(weights(loop))
        assert not np.allclose(found[0], [0.1, 0.2, 0.3])
        np.testing.assert_allclose(found[1], found[0], atol=1e-6)
