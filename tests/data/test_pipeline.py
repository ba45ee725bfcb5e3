import itertools

import numpy as np
import pytest
import tensorflow as tf
from helpers.array_samples import ArrayReader, named, random_reader

from unet_core.data import pipeline
from unet_core.data.augment import Recipe
from unet_core.data.stream import SampleStream, SamplingConfig
from unet_core.errors import UserError

RECIPE = Recipe(rotation_degrees=45, flips=True, elastic_px=2.0, noise=0.1, noise_share=0.5)
CROP = 16
READ = random_reader([(24, 24)] * 5)


def make_sampling(seed=7):
    return SamplingConfig(seed=seed, crop_size=CROP, recipe=RECIPE)


def make_dataset(start_step=0, of=None, seed=7, read=READ, **kwargs):
    settings = {"generators": 2, "global_batch_size": 4, **kwargs}
    return pipeline.make_train_dataset(
        list(read.arrays), read, make_sampling(seed), start_step, of or context(), **settings
    )


def context(replicas=1, pipelines=1, number=0):
    return tf.distribute.InputContext(
        num_input_pipelines=pipelines,
        input_pipeline_id=number,
        num_replicas_in_sync=replicas,
    )


def elements(count, *args, **kwargs):
    """Returns the first `count` elements of the training dataset."""
    return list(itertools.islice(make_dataset(*args, **kwargs).as_numpy_iterator(), count))


def joined(parts):
    """Returns per-replica batches as one global batch."""
    images, masks = zip(*parts, strict=True)
    return np.concatenate(images), np.concatenate(masks)


def assert_equal_batches(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


@pytest.fixture
def short_chunks(monkeypatch):
    """Chunks of about two steps of a single machine, so that few batches cross many of them."""
    monkeypatch.setattr(pipeline, "_CHUNK_BYTES", 2 * 2 * 4 * CROP**2)


class TestShares:
    """One global batch, cut by micro-batches, then workers, then replicas."""

    @pytest.mark.parametrize(
        ("micro_batches", "pipelines", "replicas"),
        [(1, 2, 2), (1, 2, 4), (2, 1, 1), (2, 2, 2), (4, 1, 2), (2, 2, 4)],
    )
    def test_union_is_the_batch_of_one_machine_sample_for_sample(
        self, micro_batches, pipelines, replicas
    ):
        settings = dict(global_batch_size=8)
        whole = elements(3, start_step=5, **settings)
        per_worker = [
            elements(
                3 * micro_batches * replicas // pipelines,
                start_step=5,
                of=context(replicas, pipelines, number),
                micro_batches=micro_batches,
                **settings,
            )
            for number in range(pipelines)
        ]
        local = replicas // pipelines
        for step in range(3):
            parts = []
            for micro in range(micro_batches):
                first = (step * micro_batches + micro) * local
                for worker in per_worker:
                    parts += worker[first : first + local]
            assert all(len(images) == 8 // micro_batches // replicas for images, _ in parts)
            assert_equal_batches([joined(parts)], [whole[step]])

    def test_each_pipeline_draws_only_its_own_rows(self, monkeypatch):
        written = []
        monkeypatch.setattr(SampleStream, "write", lambda self, index, *_: written.append(index))
        monkeypatch.setattr(pipeline, "_CHUNK_BYTES", 1)
        elements(1, of=context(2, 2, 1), generators=1)
        assert {index % 4 for index in written} == {2, 3}

    def test_batch_that_does_not_divide_is_refused_with_the_nearest(self):
        with pytest.raises(
            UserError, match=r"2 replicas x 3 micro-batches; nearest valid: 6 or 12"
        ):
            pipeline.check_global_batch_size(8, 2, 3)


class TestTrainBatches:
    def test_row_of_a_batch_is_the_sample_at_its_place_in_the_stream(self):
        stream = SampleStream(list(READ.arrays), READ, make_sampling())
        expected = np.empty((2, CROP, CROP), np.uint8)
        # Chunks hold 32 steps: batch 35 comes of the second generator.
        for step, (images, masks) in enumerate(elements(36)):
            assert images.shape == (4, CROP, CROP, 1)
            assert masks.shape == (4, CROP, CROP)
            assert images.dtype == masks.dtype == np.uint8
            for row in range(4):
                stream.write(4 * step + row, *expected)
                np.testing.assert_array_equal(images[row, :, :, 0], expected[0])
                np.testing.assert_array_equal(masks[row], expected[1])

    @pytest.mark.parametrize("start_step", [1, 2, 5])
    def test_run_from_step_k_sees_the_batches_of_the_run_from_0(self, short_chunks, start_step):
        whole = elements(9 + start_step)
        assert_equal_batches(elements(9, start_step), whole[start_step:])

    def test_run_from_a_step_within_a_long_chunk_sees_the_same(self):
        assert_equal_batches(elements(3, start_step=31), elements(34)[31:])

    def test_batches_of_another_size_go_on_where_the_others_have_ended(self):
        # Two steps of 4 are the samples 0 to 7. Batch 0 of 2 would begin at 2 x 4 - 2 x 2.
        before = joined(elements(4))
        after = joined(elements(3, start_step=2, global_batch_size=2, first_sample=4))
        for one, other in zip(before, after, strict=True):
            np.testing.assert_array_equal(one[8:14], other)

    @pytest.mark.parametrize("generators", [1, 3, 0])
    def test_number_of_generators_does_not_matter(self, short_chunks, generators):
        assert_equal_batches(elements(13, generators=generators), elements(13))

    def test_length_of_chunks_does_not_matter(self, monkeypatch):
        expected = elements(9)
        monkeypatch.setattr(pipeline, "_CHUNK_BYTES", 1)
        assert_equal_batches(elements(9), expected)

    def test_seeds_give_different_batches(self):
        ((one, _),), ((other, _),) = elements(1), elements(1, seed=8)
        assert not np.array_equal(one, other)

    def test_channels_and_type_are_those_of_the_images(self):
        read = random_reader([(24, 24)] * 5, channels=3, dtype=np.float32)
        ((images, _),) = elements(1, read=read)
        assert images.shape == (4, CROP, CROP, 3)
        assert images.dtype == np.float32

    def test_weights_are_a_third_part(self):
        read = random_reader([(24, 24)], make_weights=lambda mask: np.full(mask.shape, 2.5, "f4"))
        ((_, _, weights),) = elements(1, read=read)
        assert weights.shape == (4, CROP, CROP)
        np.testing.assert_allclose(weights, 2.5)

    def test_what_a_generator_raises_is_kept(self):
        class Failing(ArrayReader):
            def __call__(self, sample):
                raise UserError(f"{sample.name}: cannot be read")

        failures = []
        with pytest.raises(tf.errors.OpError):
            elements(1, read=Failing(READ.arrays), failures=failures)
        assert "cannot be read" in str(failures[0])


class TestReplicas:
    @pytest.mark.parametrize("replicas", [2, 4])
    def test_successive_elements_make_up_the_global_batch(self, short_chunks, replicas):
        parts = elements(7 * replicas, start_step=3, of=context(replicas))
        assert parts[0][0].shape == (4 // replicas, CROP, CROP, 1)
        found = [joined(parts[i : i + replicas]) for i in range(0, len(parts), replicas)]
        assert_equal_batches(found, elements(7, start_step=3))

    @pytest.mark.parametrize("replicas", [2, 4])
    def test_two_machines_together_make_the_batches_of_one(self, short_chunks, replicas):
        local = replicas // 2
        machines = [elements(7 * local, of=context(replicas, 2, number)) for number in (0, 1)]
        found = [
            joined([part for parts in machines for part in parts[local * k : local * (k + 1)]])
            for k in range(7)
        ]
        assert_equal_batches(found, elements(7))

    def test_mirrored_strategy_hands_each_replica_its_rows(self, mirrored):
        strategy = mirrored(2)
        dataset = strategy.distribute_datasets_from_function(lambda c: make_dataset(3, c))
        images, masks = next(iter(dataset))
        parts = zip(
            (t.numpy() for t in strategy.experimental_local_results(images)),
            (t.numpy() for t in strategy.experimental_local_results(masks)),
            strict=True,
        )
        assert_equal_batches([joined(parts)], elements(1, start_step=3))

    @pytest.mark.parametrize(
        ("size", "replicas", "valid"), [(6, 4, "4 or 8"), (3, 4, "4"), (5, 2, "4 or 6")]
    )
    def test_batch_that_does_not_divide_names_the_nearest_that_do(self, size, replicas, valid):
        with pytest.raises(
            UserError,
            match=rf"`global_batch_size` \({size}\).*{replicas} replicas; nearest valid: {valid}\.",
        ):
            make_dataset(of=context(replicas), global_batch_size=size)


class TestImageDataset:
    def batches(self, read, of=None, size=4):
        shapes = {sample: image.shape[:2] for sample, (image, _) in read.arrays.items()}
        dataset = pipeline.make_image_dataset(shapes, read, of or context(), global_batch_size=size)
        return list(dataset.as_numpy_iterator())

    def test_images_of_one_size_are_batched_in_order_and_the_last_batch_is_ragged(self):
        read = random_reader([(10, 14)] * 7)
        batches = self.batches(read)
        assert [len(images) for images, _ in batches] == [4, 3]
        images, masks = joined(batches)
        np.testing.assert_array_equal(images[..., 0], [image for image, _ in read.arrays.values()])
        np.testing.assert_array_equal(masks, [mask for _, mask in read.arrays.values()])

    def test_images_of_several_sizes_are_batches_of_one(self):
        read = random_reader([(10, 14), (8, 8), (10, 14)], channels=3)
        batches = self.batches(read)
        assert [images.shape for images, _ in batches] == [
            (1, 10, 14, 3),
            (1, 8, 8, 3),
            (1, 10, 14, 3),
        ]
        np.testing.assert_array_equal(batches[1][1][0], read.arrays[named("1")][1])

    def test_replicas_share_the_batch_size(self):
        batches = self.batches(random_reader([(8, 8)] * 5), context(replicas=2))
        assert [len(images) for images, _ in batches] == [2, 2, 1]

    def test_batch_smaller_than_the_replicas_is_one_image_each(self):
        batches = self.batches(random_reader([(8, 8)] * 3), context(replicas=4), size=2)
        assert [len(images) for images, _ in batches] == [1, 1, 1]

    def test_two_machines_see_every_image_once(self):
        read = random_reader([(8, 8)] * 5)
        parts = [joined(self.batches(read, context(2, 2, number)))[0] for number in (0, 1)]
        assert sorted(map(len, parts)) == [2, 3]
        found = {image.tobytes() for part in parts for image in part}
        assert found == {image.tobytes() for image, _ in read.arrays.values()}

    def test_carries_the_weights_of_pixels_as_training_batches_do(self):
        read = random_reader([(24, 24)] * 3, make_weights=lambda mask: mask + np.float32(0.5))
        shapes = dict.fromkeys(read.arrays, (24, 24))
        dataset = pipeline.make_image_dataset(shapes, read, context(), global_batch_size=2)
        for batch in dataset:
            np.testing.assert_array_equal(batch.weights, batch.mask.numpy() + np.float32(0.5))

    def test_has_no_weights_if_the_reader_makes_none(self):
        shapes = dict.fromkeys(READ.arrays, (24, 24))
        dataset = pipeline.make_image_dataset(shapes, READ, context(), global_batch_size=2)
        assert {batch.weights for batch in dataset} == {None}


class TestUsableCores:
    def test_are_those_that_the_process_may_use(self, tmp_path, monkeypatch):
        quota = tmp_path / "cpu.max"
        monkeypatch.setattr("os.cpu_count", lambda: 64)
        monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)), raising=False)
        assert pipeline.usable_cores(quota) == 6
        quota.write_text("max 100000\n")
        assert pipeline.usable_cores(quota) == 6
        # Two and a half cores' time.
        quota.write_text("250000 100000\n")
        assert pipeline.usable_cores(quota) == 3
        quota.write_text("1000000 100000\n")
        assert pipeline.usable_cores(quota) == 6
