"""What the loop promises about overflow, averages, micro-batches, clipping, XLA and stopping."""

import contextlib
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.tiny_loop import batches, make_batch, make_loop, run, weights

from unet_core import losses, training
from unet_core.models.build import make_network
from unet_core.training import devices

ROWS = 8
START = np.array([[0.1], [0.2], [0.3]], np.float32)


def in_micro_batches(start_step, context, *, number, make=make_batch, rows=ROWS, count=None):
    """A dataset callable: each global batch in `number` micro-batches, of which there are `count`
    in all.
    """

    def part(index, size):
        step, place = divmod(index, number)
        return tuple(array[place * size : (place + 1) * size] for array in make(step, rows))

    return batches(start_step * number, context, rows=rows // number, count=count, make=part)


def split(number, **kwargs):
    return functools.partial(in_micro_batches, number=number, **kwargs)


def loop_on(mirrored, replicas, **kwargs):
    return make_loop(mirrored(replicas) if replicas > 1 else None, **kwargs)


def on_all_replicas(loop):
    """Returns model variables, optimizer variables and averages as each replica holds them."""
    variables = [v.value for v in (*loop.model.variables, *loop.optimizer.variables)]
    variables += [v for name, v in loop.state.items() if name.startswith("average_")]
    local = [loop.strategy.experimental_local_results(variable) for variable in variables]
    return [copy.numpy() for copies in local for copy in copies]


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def poisoned(step, rows, *, at_step, row, value):
    x, y = make_batch(step, rows)
    if step == at_step:
        x[row] = value
    return x, y


def gradient(x, y, kernel=START):
    return 2 / len(x) * x.T @ (x @ kernel - y)


def averages(loop):
    return loop.state["average_0"].numpy()


def pictures(step, rows):
    rng = np.random.default_rng(step)
    images = rng.integers(0, 256, (rows, 16, 16, 1)).astype(np.uint8)
    return images, (images[..., 0] > 128).astype(np.uint8)


class TestOverflow:
    @pytest.mark.parametrize("replica", [0, 1])
    @pytest.mark.parametrize(("micro_batches", "place"), [(1, 0), (2, 0), (2, 1)])
    def test_inf_in_one_micro_batch_of_one_replica_skips_that_step_everywhere(
        self, mirrored, micro_batches, place, replica
    ):
        row = (place * 2 + replica) * ROWS // (2 * micro_batches)
        make = functools.partial(poisoned, at_step=1, row=row, value=np.inf)
        loop = make_loop(
            mirrored(2),
            optimizer=lambda: keras.optimizers.AdamW(0.01, epsilon=1e-5),
            loss_scaling=True,
            micro_batches=micro_batches,
            ema_decay=0.9,
        )
        reports = loop.train(split(micro_batches, make=make), until_step=3, report_every_steps=1)
        first = next(reports)
        before = on_all_replicas(loop)
        second = next(reports)
        assert_same(on_all_replicas(loop), before)
        assert second.step == 2
        assert (first.skipped_steps, second.skipped_steps) == (0, 1)
        assert second.loss_scale == first.loss_scale / 2
        third = next(reports)
        assert (third.step, third.skipped_steps) == (3, 1)
        assert third.loss_scale == second.loss_scale

        without = make_loop(optimizer=lambda: keras.optimizers.AdamW(0.01, epsilon=1e-5))
        run(without, split(1, make=lambda step, rows: make_batch(2 * step, rows)), 2)
        np.testing.assert_allclose(weights(loop), weights(without), atol=1e-6)

    @pytest.mark.parametrize("replica", [0, 1])
    @pytest.mark.parametrize("micro_batches", [1, 2])
    def test_nan_in_float32_names_the_step_and_changes_nothing(
        self, mirrored, micro_batches, replica
    ):
        row = replica * ROWS // (2 * micro_batches)
        make = functools.partial(poisoned, at_step=3, row=row, value=np.nan)
        loop = make_loop(mirrored(2), micro_batches=micro_batches, ema_decay=0.9)
        list(loop.train(split(micro_batches, make=make), until_step=3, report_every_steps=1))
        before = on_all_replicas(loop)
        with pytest.raises(training.NonFiniteError, match="Step 3") as error:
            run(loop, split(micro_batches, make=make), 10)
        assert (error.value.step, loop.step) == (3, 3)
        assert_same(on_all_replicas(loop), before)

    @pytest.mark.parametrize("loss_scaling", [False, True])
    def test_moving_statistics_are_left_alone_too(self, loss_scaling):
        def make(step, rows):
            images, masks = pictures(step, rows)
            return images.astype(np.float32) + np.float32(np.inf if step == 2 else 0), masks

        loop = training.Loop(
            make_network(classes=2, depth=1, base_filters=2, normalization="batch"),
            keras.optimizers.SGD(0.1),
            loss=lambda logits, batch: losses.cross_entropy(batch[1], logits),
            loss_scaling=loss_scaling,
        )
        dataset = functools.partial(batches, make=make)
        run(loop, dataset, 2)
        before = [variable.numpy() for variable in loop.model.variables]
        with contextlib.suppress(training.NonFiniteError):
            run(loop, dataset, 3)
        assert_same([variable.numpy() for variable in loop.model.variables], before)

    def test_nan_within_one_call_of_many_steps_names_the_step(self):
        make = functools.partial(poisoned, at_step=300, row=0, value=np.nan)
        loop = make_loop()
        with pytest.raises(training.NonFiniteError) as error:
            run(loop, split(1, make=make), 1000)
        assert (error.value.step, loop.step) == (300, 300)


class TestAverages:
    @pytest.mark.parametrize("replicas", [1, 2])
    def test_equal_the_recursion_in_numpy(self, mirrored, replicas):
        # The decay is (1 + step) / (10 + step) = 0.1, 0.18, 0.25 in the first three steps.
        loop = loop_on(mirrored, replicas, ema_decay=0.3)
        expected = START.astype(np.float64)
        reports = loop.train(batches, until_step=8, report_every_steps=1)
        for step, _ in enumerate(reports):
            decay = min(0.3, (1 + step) / (10 + step))
            expected += (weights(loop)[:, None] - expected) * (1 - decay)
            np.testing.assert_allclose(averages(loop), expected, rtol=1e-6)

    @pytest.mark.parametrize("replicas", [1, 2])
    def test_swap_in_and_out_bit_for_bit(self, mirrored, replicas):
        loop = loop_on(mirrored, replicas, ema_decay=0.9)
        run(loop, batches, 3)
        before, average = on_all_replicas(loop), averages(loop)
        assert not np.array_equal(weights(loop), average.ravel())
        with loop.averaged_weights():
            inside = loop.strategy.experimental_local_results(loop.model.variables[0].value)
            assert_same([copy.numpy() for copy in inside], [average] * replicas)
        assert_same(on_all_replicas(loop), before)

    def test_swap_out_after_an_error(self):
        loop = make_loop(ema_decay=0.9)
        run(loop, batches, 3)
        before = on_all_replicas(loop)
        with pytest.raises(KeyError), loop.averaged_weights():
            raise KeyError
        assert_same(on_all_replicas(loop), before)

    def test_training_goes_on_as_if_nothing_had_been_swapped(self):
        swapped, plain = make_loop(ema_decay=0.9), make_loop(ema_decay=0.9)
        for _ in swapped.train(batches, until_step=6, report_every_steps=2):
            with swapped.averaged_weights():
                swapped.evaluate(tf.data.Dataset.from_tensors(make_batch(0)))
        run(plain, batches, 6)
        assert_same(on_all_replicas(swapped), on_all_replicas(plain))

    def test_without_decay_the_weights_stay_in_place(self):
        loop = make_loop()
        before = on_all_replicas(loop)
        with loop.averaged_weights():
            assert_same(on_all_replicas(loop), before)

    def test_stand_still_in_a_skipped_step(self):
        make = functools.partial(poisoned, at_step=2, row=0, value=np.inf)
        loop = make_loop(loss_scaling=True, ema_decay=0.9)
        found = [
            averages(loop)
            for _ in loop.train(split(1, make=make), until_step=4, report_every_steps=1)
        ]
        np.testing.assert_array_equal(found[2], found[1])
        assert not np.array_equal(found[3], found[2])

    @pytest.mark.parametrize("replicas", [1, 2])
    def test_resumed_run_keeps_them_bit_for_bit(self, mirrored, replicas, tmp_path):
        whole, first, second = (loop_on(mirrored, replicas, ema_decay=0.9) for _ in range(3))
        run(whole, batches, 8)
        run(first, batches, 5)
        training.Checkpoints(tmp_path, first).save()
        training.Checkpoints(tmp_path, second).restore()
        assert_same(on_all_replicas(second), on_all_replicas(first))
        run(second, batches, 8)
        assert_same(on_all_replicas(second), on_all_replicas(whole))

    @pytest.mark.parametrize("replicas", [1, 2])
    def test_are_what_load_weights_loads(self, mirrored, replicas, tmp_path):
        loop = loop_on(mirrored, replicas, ema_decay=0.9)
        run(loop, batches, 5)
        training.Checkpoints(tmp_path, loop).save()
        model = make_loop().model
        assert training.load_weights(tmp_path, model) == 5
        np.testing.assert_array_equal(model.get_weights()[0], averages(loop))
        training.load_weights(tmp_path, model, averaged=False)
        np.testing.assert_array_equal(model.get_weights()[0], on_all_replicas(loop)[0])
        assert (model.get_weights()[0] != averages(loop)).any()

    def test_of_a_network_with_moving_statistics_load_to_the_right_variables(self, tmp_path):
        model = make_network(classes=2, depth=1, base_filters=2, normalization="batch")
        loop = training.Loop(
            model,
            keras.optimizers.SGD(0.1),
            loss=lambda logits, batch: tf.reduce_mean(tf.square(logits), (1, 2, 3)),
            ema_decay=0.9,
        )
        images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1)).astype(np.uint8)
        run(loop, lambda start, context: tf.data.Dataset.from_tensors((images,)).repeat(), 3)
        training.Checkpoints(tmp_path, loop).save()
        other = make_network(classes=2, depth=1, base_filters=2, normalization="batch", seed=1)
        training.load_weights(tmp_path, other)
        with loop.averaged_weights():
            assert_same(other.get_weights(), model.get_weights())


def ragged(*sizes):
    """A plain dataset of batches of these sizes, unknown while tracing, from the same examples."""
    x, y = make_batch(0, sum(sizes))
    ends = np.cumsum(sizes)

    def generate():
        for size, end in zip(sizes, ends, strict=True):
            yield x[end - size : end], y[end - size : end]

    signature = tf.TensorSpec([None, 3], tf.float32), tf.TensorSpec([None, 1], tf.float32)
    return tf.data.Dataset.from_generator(generate, output_signature=signature)


class TestMicroBatches:
    @pytest.mark.parametrize("sizes", [(3, 5), (5, 3)])
    def test_of_unknown_sizes_divide_by_all_their_examples(self, sizes):
        loop = make_loop(micro_batches=2)
        (report,) = run(loop, ragged(*sizes), 1)
        x, y = make_batch(0, 8)
        expected = gradient(x, y)
        np.testing.assert_allclose(weights(loop)[:, None], START - 0.1 * expected, rtol=1e-5)
        assert report.gradient_norm == pytest.approx(np.linalg.norm(expected), rel=1e-5)
        assert report.loss == pytest.approx(np.mean((x @ START - y) ** 2), rel=1e-5)

    @pytest.mark.parametrize("replicas", [1, 2, 4])
    def test_of_a_plain_dataset_with_a_remainder_do_too(self, mirrored, replicas):
        loop = loop_on(mirrored, replicas, micro_batches=2)
        x, y = make_batch(0, 8)
        run(loop, tf.data.Dataset.from_tensor_slices((x, y)).batch(5), 1)
        np.testing.assert_allclose(weights(loop)[:, None], START - 0.1 * gradient(x, y), rtol=1e-5)

    def test_of_unknown_sizes_that_differ_between_replicas_do_too(self, mirrored):
        loop = make_loop(mirrored(2), micro_batches=2)
        run(loop, lambda start, context: ragged(1, 4, 2, 1), 1)
        x, y = make_batch(0, 8)
        np.testing.assert_allclose(weights(loop)[:, None], START - 0.1 * gradient(x, y), rtol=1e-5)

    def test_incomplete_last_group_is_dropped(self):
        loop = make_loop(micro_batches=2)
        list(loop.train(ragged(4, 4, 4), until_step=10))
        x, y = make_batch(0, 12)
        expected = START - 0.1 * gradient(x[:8], y[:8])
        assert loop.step == 1
        np.testing.assert_allclose(weights(loop)[:, None], expected, rtol=1e-5)

    @pytest.mark.parametrize("replicas", [1, 2])
    def test_data_that_end_in_a_step_end_before_it(self, mirrored, replicas):
        loop, whole = loop_on(mirrored, replicas, micro_batches=4), make_loop()
        reports = list(
            loop.train(split(4, count=4 * replicas * 3 - 1), until_step=10, report_every_steps=10)
        )
        expected = run(whole, split(1), loop.step)
        assert [report.step for report in reports] == [loop.step]
        np.testing.assert_allclose(weights(loop), weights(whole), atol=1e-6)
        assert reports[0].loss == pytest.approx(expected[0].loss, rel=1e-5)

    @pytest.mark.parametrize("replicas", [1, 2])
    def test_dropped_group_leaves_nothing_in_the_next_run(self, mirrored, replicas):
        loop, whole = loop_on(mirrored, replicas, micro_batches=2), make_loop()
        list(loop.train(split(2, count=5), until_step=10))
        assert loop.step == 2
        run(loop, split(2), 5)
        run(whole, split(1), 5)
        np.testing.assert_allclose(weights(loop), weights(whole), atol=1e-6)

    def test_rate_and_averages_move_once_per_step(self):
        def schedule(step):
            return 0.1 / (1 + tf.cast(step, tf.float32))

        summed = make_loop(micro_batches=4, schedule=schedule, ema_decay=0.9)
        whole = make_loop(schedule=schedule, ema_decay=0.9)
        (one,), (other,) = run(summed, split(4), 5), run(whole, split(1), 5)
        assert one.rate == other.rate
        np.testing.assert_allclose(averages(summed), averages(whole), atol=1e-6)

    @pytest.mark.parametrize("replicas", [1, 2])
    def test_traced_once(self, mirrored, replicas):
        loop = loop_on(mirrored, replicas, micro_batches=2)
        list(loop.train(split(2), until_step=30, report_every_steps=7))
        assert loop.traces["train"] == 1


class TestClipping:
    @pytest.mark.parametrize("replicas", [1, 2])
    @pytest.mark.parametrize("micro_batches", [1, 2])
    def test_acts_on_the_summed_gradient(self, mirrored, micro_batches, replicas):
        loop = loop_on(mirrored, replicas, micro_batches=micro_batches, clip_norm=0.5)
        (report,) = run(loop, split(micro_batches), 1)
        whole = gradient(*make_batch(0, ROWS))
        norm = np.linalg.norm(whole)
        assert norm > 0.5
        assert report.gradient_norm == pytest.approx(norm, rel=1e-5)
        np.testing.assert_allclose(
            weights(loop)[:, None], START - 0.1 * 0.5 / norm * whole, rtol=1e-5
        )

    @pytest.mark.parametrize("scaled", [False, True])
    def test_norm_between_that_of_the_parts_and_that_of_the_whole_is_not_clipped(
        self, mirrored, scaled
    ):
        def opposed(step, rows):
            x, y = make_batch(step, rows)
            half = rows // 2
            return np.concatenate([x[:half], x[:half]]), np.concatenate([y[:half] + 9, y[:half]])

        x, y = opposed(0, ROWS)
        parts = [np.linalg.norm(gradient(x[part], y[part])) for part in (slice(4), slice(4, 8))]
        norm = np.linalg.norm(gradient(x, y))
        limit = norm * 1.1
        assert max(parts) / 2 > limit or max(parts) > limit
        loop = make_loop(mirrored(2), clip_norm=float(limit), loss_scaling=scaled)
        run(loop, split(1, make=opposed), 1)
        np.testing.assert_allclose(weights(loop)[:, None], START - 0.1 * gradient(x, y), rtol=1e-5)

    def test_of_ragged_micro_batches_sees_the_mean(self):
        loop = make_loop(micro_batches=2, clip_norm=0.5, loss_scaling=True)
        (report,) = run(loop, ragged(3, 5), 1)
        whole = gradient(*make_batch(0, 8))
        norm = np.linalg.norm(whole)
        assert report.gradient_norm == pytest.approx(norm, rel=1e-5)
        np.testing.assert_allclose(
            weights(loop)[:, None], START - 0.1 * 0.5 / norm * whole, rtol=1e-5
        )


@functools.cache
def train_unet(replicas=1, *, jit_compile, dropout):
    """Returns the variables of a U-Net after five steps on batch-wise Dice and cross entropy, as
    each replica holds them.
    """
    strategy = tf.distribute.get_strategy()
    if replicas > 1:
        strategy = devices.make_strategy("mirrored", range(replicas))
    with strategy.scope():
        model = make_network(classes=2, depth=1, base_filters=4, dropout=dropout)
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9)

    def loss(logits, batch):
        dice = losses.soft_dice(batch[1], logits, batchwise=True)
        return losses.cross_entropy(batch[1], logits) + dice

    loop = training.Loop(model, optimizer, loss=loss, strategy=strategy, jit_compile=jit_compile)
    run(loop, functools.partial(batches, rows=ROWS, make=pictures), 5)
    return on_all_replicas(loop)


class TestXla:
    @pytest.mark.parametrize("replicas", [1, 2])
    # With dropout they are not: stateless_uniform draws other floats in XLA (TensorFlow 2.21,
    # tensorflow#121243).
    def test_weights_are_those_without_it(self, replicas):
        expected = train_unet(jit_compile=False, dropout=0.0)
        found = train_unet(replicas, jit_compile=True, dropout=0.0)
        assert len(found) == replicas * len(expected)
        for number, value in enumerate(found):
            np.testing.assert_allclose(value, expected[number // replicas], atol=1e-5)

    def test_dropout_on_two_replicas_is_that_on_one(self):
        one, two = (train_unet(n, jit_compile=True, dropout=0.3) for n in (1, 2))
        without = train_unet(jit_compile=True, dropout=0.0)
        for number, value in enumerate(two):
            np.testing.assert_allclose(value, one[number // 2], atol=1e-5)
        assert np.abs(one[0] - without[0]).max() > 1e-3


class TestStopping:
    @pytest.mark.parametrize("micro_batches", [1, 2])
    def test_is_told_only_if_it_was_asked_for(self, micro_batches):
        loop = make_loop(micro_batches=micro_batches)
        dataset = split(micro_batches, count=5 * micro_batches)
        reports = list(
            loop.train(dataset, until_step=9, report_every_steps=2, pause_every_steps=[3])
        )
        assert [(r.step, r.stopping) for r in reports] == [
            (2, False),
            (3, False),
            (4, False),
            (5, False),
        ]

    def test_is_told_not_at_the_last_step(self):
        reports = run(make_loop(), batches, 3)
        assert [(r.step, r.stopping) for r in reports] == [(3, False)]

    def test_is_told_once_asked_and_ends_there(self):
        asked = iter([False, False, True])
        reports = list(
            make_loop().train(
                batches, until_step=9, report_every_steps=1, should_stop=lambda: next(asked)
            )
        )
        assert [(r.step, r.stopping) for r in reports] == [(1, False), (2, False), (3, True)]


class TestTrace:
    @pytest.mark.parametrize("replicas", [1, 2])
    def test_is_the_graph_that_train_runs_and_changes_nothing(self, mirrored, replicas):
        loop, plain = loop_on(mirrored, replicas, ema_decay=0.9), loop_on(mirrored, replicas)
        feed = loop.feed(batches)
        for until in (3, 5):
            loop.trace(feed)
            list(loop.train(feed, until_step=until, report_every_steps=2))
        assert loop.traces["train"] == 1
        run(plain, batches, 5)
        np.testing.assert_array_equal(weights(loop), weights(plain))
