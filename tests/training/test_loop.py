import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.tiny_loop import batches, make_batch, make_loop, run, weights

from unet_core import losses, training
from unet_core.errors import UserError
from unet_core.models.build import make_network
from unet_core.training import schedules


class TestUpdate:
    def test_sgd_step_matches_hand_formula(self):
        loop = make_loop()
        run(loop, batches, 1)
        x, y = make_batch(0)
        kernel = np.array([[0.1], [0.2], [0.3]], np.float32)
        # d/dw mean((xw - y)^2) = 2/4 x'(xw - y); the rate is 0.1.
        expected = kernel - 0.1 * 2 / 4 * x.T @ (x @ kernel - y)
        np.testing.assert_allclose(weights(loop), expected.ravel(), rtol=1e-5)

    def test_clipping_scales_the_gradient_to_the_norm(self):
        loop = make_loop(clip_norm=0.5)
        before = weights(loop)
        (report,) = run(loop, batches, 1)
        assert report.gradient_norm > 0.5
        # The update is rate times a gradient of norm 0.5.
        np.testing.assert_allclose(np.linalg.norm(weights(loop) - before), 0.05, rtol=1e-5)

    def test_small_gradient_is_not_clipped(self):
        plain, clipped = make_loop(), make_loop(clip_norm=1e6)
        run(plain, batches, 3)
        run(clipped, batches, 3)
        np.testing.assert_array_equal(weights(plain), weights(clipped))

    def test_adamw_equals_keras_own_fit(self):
        def optimizer():
            return keras.optimizers.AdamW(0.01, weight_decay=0.1)

        loop = make_loop(optimizer=optimizer)
        run(loop, batches, 5)
        model = make_loop().model
        model.compile(
            optimizer(), loss=lambda y, p: tf.reduce_sum(tf.square(p - y), -1), jit_compile=False
        )
        for step in range(5):
            model.train_on_batch(*make_batch(step))
        np.testing.assert_allclose(weights(loop), model.get_weights()[0].ravel(), rtol=1e-5)

    def test_excluded_variable_does_not_decay(self):
        def optimizer():
            made = keras.optimizers.SGD(0.1, weight_decay=0.5)
            made.exclude_from_weight_decay(var_names=["kernel"])
            return made

        excluded, plain = make_loop(optimizer=optimizer), make_loop()
        run(excluded, batches, 2)
        run(plain, batches, 2)
        np.testing.assert_array_equal(weights(excluded), weights(plain))

    def test_schedule_sets_the_rate_of_each_step(self):
        loop = make_loop(schedule=lambda step: tf.where(step < 2, 0.0, 0.1))
        before = weights(loop)
        reports = list(loop.train(batches, until_step=3, report_every_steps=1))
        assert [round(r.rate, 6) for r in reports] == [0.0, 0.0, 0.1]
        assert not np.array_equal(weights(loop), before)

    @pytest.mark.parametrize(
        "setting",
        [
            dict(clipnorm=1.0),
            dict(global_clipnorm=1.0),
            dict(use_ema=True),
            dict(loss_scale_factor=2.0),
        ],
    )
    def test_optimizer_that_acts_before_the_sum_is_refused(self, setting):
        with pytest.raises(ValueError, match=next(iter(setting))):
            make_loop(optimizer=lambda: keras.optimizers.SGD(0.1, **setting))

    def test_loss_of_wrong_shape_is_refused(self):
        loop = make_loop(loss=lambda outputs, batch: tf.reduce_mean(outputs))
        with pytest.raises(ValueError, match=r"shape \[B\]"):
            run(loop, batches, 1)


class TestReplicas:
    def test_batches_whose_size_is_known_beforehand_match_too(self, mirrored):
        def endless(start_step, context):
            rows = 4 // context.num_replicas_in_sync
            slices = tf.data.Dataset.from_tensor_slices(make_batch(0))
            return slices.batch(rows, drop_remainder=True).repeat()

        one, two = make_loop(), make_loop(mirrored(2))
        run(one, endless, 5)
        run(two, endless, 5)
        np.testing.assert_allclose(weights(two), weights(one), atol=1e-6)

    @pytest.mark.parametrize("rows", [5, 7])
    @pytest.mark.parametrize("replicas", [1, 2, 4])
    def test_evaluation_of_ragged_batches_matches_numpy(self, mirrored, replicas, rows):
        x, y = make_batch(0, rows)

        def dataset(context):
            return tf.data.Dataset.from_tensor_slices((x, y)).batch(
                4 // context.num_replicas_in_sync
            )

        loop = make_loop(
            mirrored(replicas),
            metrics=lambda outputs, batch: {
                "positive": tf.reduce_sum(tf.cast(outputs > 0, tf.int64))
            },
        )
        sums = loop.evaluate(dataset)
        outputs = x @ np.array([[0.1], [0.2], [0.3]], np.float32)
        assert sums["examples"] == rows
        assert sums["positive"] == (outputs > 0).sum()
        assert sums["loss"] == pytest.approx(((outputs - y) ** 2).sum(), rel=1e-5)

    def test_evaluation_with_a_convolution_on_an_empty_replica(self, mirrored):
        images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 1)).astype(np.uint8)
        masks = (images[..., 0] > 99).astype(np.uint8)
        found = []
        for replicas in (1, 2, 4):
            strategy = mirrored(replicas)
            with strategy.scope():
                model = make_network(classes=2, depth=1, base_filters=2)
                optimizer = keras.optimizers.SGD()
            loop = training.Loop(
                model,
                optimizer,
                loss=lambda logits, batch: losses.cross_entropy(batch[1], logits),
                strategy=strategy,
            )
            found.append(
                loop.evaluate(
                    lambda context: tf.data.Dataset.from_tensor_slices((images, masks)).batch(
                        4 // context.num_replicas_in_sync
                    )
                )
            )
        assert [int(sums["examples"]) for sums in found] == [5, 5, 5]
        np.testing.assert_allclose([float(s["loss"]) for s in found], found[0]["loss"], rtol=1e-5)


class TestNonFinite:
    def test_nan_in_float32_stops_naming_the_step_and_keeps_the_weights(self):
        def poisoned(step, rows):
            x, y = make_batch(step, rows)
            return (x * np.float32("nan"), y) if step == 3 else (x, y)

        loop, clean = make_loop(), make_loop()
        with pytest.raises(training.NonFiniteError, match="Step 3") as error:
            run(loop, functools.partial(batches, make=poisoned), 10)
        run(clean, batches, 3)
        assert error.value.step == 3
        assert loop.step == 3
        np.testing.assert_array_equal(weights(loop), weights(clean))

    @pytest.mark.parametrize("poisoned_row", [0, 3])
    def test_overflow_on_any_replica_skips_the_step_on_all(self, mirrored, poisoned_row):
        def poisoned(step, rows):
            x, y = make_batch(step, rows)
            if step == 1:
                x[poisoned_row] = np.inf
            return x, y

        loop = make_loop(mirrored(2), loss_scaling=True)
        dataset = functools.partial(batches, make=poisoned)
        reports = loop.train(dataset, until_step=3, report_every_steps=1)
        first = next(reports)
        before = weights(loop)
        second = next(reports)
        np.testing.assert_array_equal(weights(loop), before)
        assert (second.loss_scale, second.skipped_steps) == (first.loss_scale / 2, 1)
        third = next(reports)
        assert (third.step, third.skipped_steps) == (3, 1)
        assert not np.array_equal(weights(loop), before)
        locals_ = loop.strategy.experimental_local_results(loop.model.trainable_variables[0].value)
        np.testing.assert_array_equal(locals_[0].numpy(), locals_[1].numpy())

    def test_loss_scale_does_not_change_the_update(self):
        scaled, plain = make_loop(loss_scaling=True), make_loop()
        run(scaled, batches, 5)
        run(plain, batches, 5)
        np.testing.assert_allclose(weights(scaled), weights(plain), rtol=1e-6)


class TestPauses:
    def test_reports_come_at_every_multiple_and_at_the_end(self):
        reports = list(
            make_loop().train(batches, until_step=11, report_every_steps=4, pause_every_steps=[5])
        )
        assert [(r.step, r.due) for r in reports] == [
            (4, True),
            (5, False),
            (8, True),
            (10, False),
            (11, False),
        ]

    def test_reported_loss_is_the_mean_since_the_last_report_that_was_due(self):
        # A rate of 0 keeps the weights, so that every loss can be computed here.
        loop = make_loop(schedule=schedules.constant(0.0))
        kernel = np.array([[0.1], [0.2], [0.3]], np.float32)
        per_step = [float(np.mean((x @ kernel - y) ** 2)) for x, y in map(make_batch, range(6))]
        reports = list(
            loop.train(batches, until_step=6, report_every_steps=3, pause_every_steps=[2])
        )
        found = {report.step: report.loss for report in reports}
        assert found[2] == pytest.approx(np.mean(per_step[:2]), rel=1e-5)
        assert found[3] == pytest.approx(np.mean(per_step[:3]), rel=1e-5)
        assert found[4] == pytest.approx(np.mean(per_step[3:4]), rel=1e-5)
        assert found[6] == pytest.approx(np.mean(per_step[3:]), rel=1e-5)

    def test_stop_request_ends_after_the_call(self):
        loop = make_loop()
        reports = list(
            loop.train(
                batches, until_step=10**6, report_every_steps=10**6, should_stop=lambda: True
            )
        )
        # The first call is of one step, to time it.
        assert [report.step for report in reports] == [1]

    def test_used_up_data_are_a_clean_end(self):
        dataset = functools.partial(batches, count=7)
        reports = list(make_loop().train(dataset, until_step=100, report_every_steps=5))
        assert [report.step for report in reports] == [5, 7]

    def test_interval_below_one_is_refused(self):
        with pytest.raises(UserError, match="at least 1"):
            list(make_loop().train(batches, until_step=3, report_every_steps=0))

    def test_data_wait_is_a_share(self):
        *_, report = make_loop().train(batches, until_step=30, report_every_steps=10)
        assert 0 < report.data_wait_share < 1
        assert report.step_ms > 0
        assert report.examples_per_sec == pytest.approx(4000 / report.step_ms)


class TestTraces:
    @pytest.mark.parametrize("replicas", [1, 2])
    def test_fifty_steps_in_many_calls_and_three_evaluations_trace_once_each(
        self, mirrored, replicas
    ):
        loop = make_loop(mirrored(replicas))
        x, y = make_batch(0, 6)

        def held_out(context):
            return tf.data.Dataset.from_tensor_slices((x, y)).batch(4 // replicas)

        for report in loop.train(batches, until_step=25, report_every_steps=3):
            if report.step % 9 == 0:
                loop.evaluate(held_out)
        list(loop.train(batches, until_step=50, report_every_steps=7))
        assert loop.traces == {"train": 1, "update": 0, "evaluate": 1}

    def test_images_of_every_size_are_evaluated_by_one_trace(self):
        model = make_network(classes=2, depth=1, base_filters=2)
        loop = training.Loop(
            model,
            keras.optimizers.SGD(),
            loss=lambda logits, batch: losses.cross_entropy(batch[1], logits),
        )

        def generate():
            for size in (8, 9, 13):
                yield np.zeros((1, size, size, 1), np.uint8), np.zeros((1, size, size), np.uint8)

        signature = (
            tf.TensorSpec([None, None, None, 1], tf.uint8),
            tf.TensorSpec([None, None, None], tf.uint8),
        )
        sums = loop.evaluate(tf.data.Dataset.from_generator(generate, output_signature=signature))
        assert sums["examples"] == 3
        assert loop.traces["evaluate"] == 1


class TestPlainDataset:
    def test_trains(self):
        loop = make_loop()
        before = weights(loop)
        dataset = tf.data.Dataset.from_tensor_slices(make_batch(0, 8)).repeat().batch(4)
        (report,) = run(loop, dataset, 5)
        assert report.step == 5
        assert not np.array_equal(weights(loop), before)

    def test_ragged_batches_divide_by_their_own_size(self, mirrored):
        # Five rows over two replicas with an unknown batch size: 3 and 2 rows.
        x, y = make_batch(0, 5)
        dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(5)
        one, two = make_loop(), make_loop(mirrored(2))
        run(one, dataset, 1)
        run(two, dataset, 1)
        np.testing.assert_allclose(weights(two), weights(one), rtol=1e-5)

    def test_restored_loop_refuses_it_with_the_way_out(self, tmp_path):
        loop = make_loop()
        run(loop, batches, 2)
        training.Checkpoints(tmp_path, loop).save()
        other = make_loop()
        training.Checkpoints(tmp_path, other).restore()
        with pytest.raises(UserError, match="InputContext"):
            run(other, tf.data.Dataset.from_tensor_slices(make_batch(0, 8)).batch(4), 5)
