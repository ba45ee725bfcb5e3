import numpy as np
import pytest
from helpers.array_samples import ArrayReader, named, random_reader

from unet_core.data.augment import Recipe
from unet_core.data.stream import (
    SampleStream,
    SamplingConfig,
    check_crop_size,
    draw_pairs,
    names_of_batch,
)
from unet_core.errors import UserError

RECIPE = Recipe(rotation_degrees=45, flips=True, elastic_px=2.0, noise=0.1, noise_share=0.5)


def make_sampling(seed=0, recipe=RECIPE, **kwargs):
    return SamplingConfig(seed=seed, crop_size=16, recipe=recipe, **kwargs)


def make_stream(seed=0, count=5, recipe=RECIPE, **kwargs):
    read = random_reader([(24, 24)] * count)
    return SampleStream(list(read.arrays), read, make_sampling(seed, recipe, **kwargs))


def pair_at(stream, index):
    out = np.empty((2, 16, 16), np.uint8)
    stream.write(index, *out)
    return out


def names_of_epoch(epoch, count, seed=0, samples=None, **kwargs):
    samples = samples or list(random_reader([(24, 24)] * count).arrays)
    return names_of_batch(
        samples, make_sampling(seed, **kwargs), first=epoch * len(samples), size=len(samples)
    )


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

    def test_identity_recipe_writes_a_crop_of_the_sample(self):
        read = random_reader([(16, 16)] * 5)
        samples = list(read.arrays)
        stream = SampleStream(samples, read, make_sampling(recipe=Recipe()))
        by_name = {sample.name: arrays for sample, arrays in read.arrays.items()}
        for epoch in range(2):
            for position, name in enumerate(names_of_epoch(epoch, 5, samples=samples)):
                image, mask = pair_at(stream, 5 * epoch + position)
                np.testing.assert_array_equal(image, by_name[name][0])
                np.testing.assert_array_equal(mask, by_name[name][1])

    @pytest.mark.parametrize(("classes", "value"), [("0:a,1:b", 1), ("a,b", 3)])
    def test_forced_share_of_the_crops_contains_the_class(self, classes, value):
        # One pixel of 64x64 is of class 1: a crop of 16x16 has it once in 16 or so by chance.
        image, mask = np.zeros((2, 64, 64), np.uint8)
        mask[60, 3] = value
        read = ArrayReader({named("a"): (image, mask)}, classes)
        settings = dict(foreground_share=0.5, foreground_classes=(1,))
        stream = SampleStream(list(read.arrays), read, make_sampling(recipe=Recipe(), **settings))
        found = [pair_at(stream, index)[1].any() for index in range(200)]
        forced = [index for index in range(200) if found[index]]
        assert 100 <= len(forced) <= 130

    def test_image_without_the_class_gives_any_crop(self):
        read = ArrayReader({named("a"): np.zeros((2, 64, 64), np.uint8)})
        settings = dict(foreground_share=1.0, foreground_classes=(1,))
        stream = SampleStream(list(read.arrays), read, make_sampling(**settings))
        assert not pair_at(stream, 0)[1].any()

    def test_weights_move_with_the_mask(self):
        read = random_reader([(16, 16)], make_weights=lambda mask: 1 + 3 * mask.astype(np.float32))
        recipe = Recipe(flips=True)
        stream = SampleStream(list(read.arrays), read, make_sampling(recipe=recipe))
        for index in range(8):
            image, mask = np.empty((2, 16, 16), np.uint8)
            weights = np.empty((16, 16), np.float32)
            stream.write(index, image, mask, weights)
            np.testing.assert_allclose(weights, 1 + 3 * mask, rtol=1e-5)


class TestOrder:
    def test_every_epoch_visits_every_sample_once(self):
        for epoch in range(4):
            assert sorted(names_of_epoch(epoch, 7)) == [str(n) for n in range(7)]

    def test_epochs_and_seeds_differ_in_order(self):
        orders = {tuple(names_of_epoch(epoch, 12, seed)) for seed in range(3) for epoch in range(3)}
        assert len(orders) == 9

    def test_far_positions_are_reached_at_once(self):
        assert sorted(names_of_epoch(10**15, 3)) == ["0", "1", "2"]

    def test_equal_groups_weigh_alike(self):
        samples = [named(f"a{n}", "a") for n in range(9)] + [named(f"b{n}", "b") for n in range(3)]
        for epoch in range(3):
            names = names_of_epoch(epoch, 12, samples=samples, equal_groups=True)
            assert sum(name.startswith("a") for name in names) == 6
            assert sorted(name for name in names if name.startswith("b")) == sorted(
                2 * ["b0", "b1", "b2"]
            )


class TestDrawPairs:
    def test_crops_are_those_of_the_stream(self):
        read = random_reader([(24, 24)] * 5)
        pairs = draw_pairs(list(read.arrays), read, make_sampling(), count=3)
        stream = make_stream()
        for index, (image, mask) in enumerate(pairs):
            np.testing.assert_array_equal((image, mask), pair_at(stream, index))


class TestCheckCropSize:
    def test_crop_larger_than_an_image_names_it_and_the_largest_that_fits(self):
        shapes = {named("0"): (40, 40), named("small"): (20, 30)}
        with pytest.raises(
            UserError, match=r"`crop_size` \(21\).*'small' \(30x20 pixels\); choose at most 20"
        ):
            check_crop_size(shapes, 21)
        check_crop_size(shapes, 20)

    def test_no_samples_are_refused(self):
        with pytest.raises(UserError, match="no training samples"):
            check_crop_size({}, 16)
