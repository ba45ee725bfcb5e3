import numpy as np
import pytest

from unet_core.data.augment import Recipe
from unet_core.data.folders import Sample
from unet_core.data.stream import SampleStream, names_of_batch
from unet_core.errors import UserError

RECIPE = Recipe(rotation_degrees=45, flips=True, elastic_px=2.0, noise=0.1, noise_share=0.5)


def make_samples(count, side=24):
    rng = np.random.default_rng(0)
    return [
        Sample(str(n), *rng.integers(0, 256, (2, side, side)).astype(np.uint8))
        for n in range(count)
    ]


def make_stream(seed=0, count=5, crop_size=16, recipe=RECIPE):
    return SampleStream(make_samples(count), seed=seed, crop_size=crop_size, recipe=recipe)


def pair_at(stream, index):
    out = np.empty((2, 16, 16), np.uint8)
    stream.write(index, *out)
    return out


class TestSampleStream:
    def test_sample_depends_on_seed_and_position_alone(self):
        forward, backward = make_stream(), make_stream()
        first = {index: pair_at(forward, index) for index in range(13)}
        second = {index: pair_at(backward, index) for index in (12, 3, 3, *reversed(range(12)))}
        for index in range(13):
            np.testing.assert_array_equal(first[index], second[index])

    def test_positions_have_draws_of_their_own(self):
        # One image only, so that a difference can only come of the draws.
        stream = make_stream(count=1)
        pairs = [pair_at(stream, index).tobytes() for index in range(20)]
        assert len(set(pairs)) == 20

    def test_seeds_have_draws_of_their_own(self):
        streams = [make_stream(seed, count=1) for seed in range(10)]
        assert len({pair_at(stream, 3).tobytes() for stream in streams}) == 10

    def test_every_epoch_visits_every_sample_once(self):
        stream = make_stream(count=7)
        for epoch in range(4):
            names = [stream.sample_at(7 * epoch + position).name for position in range(7)]
            assert sorted(names) == [str(n) for n in range(7)]

    def test_epochs_and_seeds_differ_in_order(self):
        def order(seed, epoch):
            stream = make_stream(seed, count=12)
            return tuple(stream.sample_at(12 * epoch + n).name for n in range(12))

        assert len({order(seed, epoch) for seed in range(3) for epoch in range(3)}) == 9

    def test_identity_recipe_writes_a_crop_of_the_sample(self):
        samples = make_samples(5, side=16)
        stream = SampleStream(samples, seed=0, crop_size=16, recipe=Recipe())
        for index in range(10):
            image, mask = pair_at(stream, index)
            np.testing.assert_array_equal(image, stream.sample_at(index).image)
            np.testing.assert_array_equal(mask, stream.sample_at(index).mask)

    def test_far_positions_are_reached_at_once(self):
        stream = make_stream()
        assert stream.sample_at(10**15).name in {str(n) for n in range(5)}

    def test_crop_larger_than_an_image_names_it_and_the_largest_that_fits(self):
        samples = [*make_samples(2, side=40), Sample("small", *np.zeros((2, 20, 30), np.uint8))]
        with pytest.raises(
            UserError, match=r"`crop_size` \(21\).*'small' \(30x20 pixels\); choose at most 20"
        ):
            SampleStream(samples, seed=0, crop_size=21, recipe=Recipe())

    def test_crop_as_large_as_the_image_will_do(self):
        stream = SampleStream(make_samples(1, side=16), seed=0, crop_size=16, recipe=Recipe())
        assert stream.sample_at(0).name == "0"

    def test_no_samples_are_refused(self):
        with pytest.raises(UserError, match="no training samples"):
            SampleStream([], seed=0, crop_size=16, recipe=Recipe())


class TestNamesOfBatch:
    def test_names_are_those_of_the_stream_across_epochs(self):
        stream = make_stream(seed=3, count=5)
        for step in range(6):
            expected = [stream.sample_at(4 * step + row).name for row in range(4)]
            assert names_of_batch(make_samples(5), seed=3, step=step, size=4) == expected
