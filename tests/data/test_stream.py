import hashlib

import numpy as np
import pytest
from helpers.array_samples import ArrayReader, named, random_reader

from unet_core.conventions import IGNORED
from unet_core.data.augment import Recipe
from unet_core.data.stream import (
    SampleStream,
    SamplingConfig,
    draw_pairs,
    names_of_batch,
)

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


class TestSize:
    def test_large_enough_images_are_drawn_as_ever(self):
        # Made by the version before images smaller than the crop could be trained on; flips and
        # quarter turns take pixels as they are, so that no machine rounds them otherwise. What is
        # drawn of the generator afterwards tells that everything else was drawn as well.
        drawn = []

        def then(image, mask, rng):
            drawn.append(int(rng.integers(2**32)))
            return image, mask

        def digest(recipe):
            shapes = [(24, 24), (16, 40), (31, 16)]
            read = random_reader(shapes, make_weights=lambda mask: 1 + mask.astype(np.float32))
            sampling = make_sampling(
                3, recipe, foreground_share=0.5, foreground_classes=(1,), then=then
            )
            stream = SampleStream(list(read.arrays), read, sampling)
            sha = hashlib.sha256()
            for index in range(12):
                pair = np.empty((2, 16, 16), np.uint8)
                weights = np.empty((16, 16), np.float32)
                stream.write(index, *pair, weights)
                sha.update(pair.tobytes() + weights.tobytes())
            return sha.hexdigest()[:16]

        assert digest(Recipe(flips=True, quarter_turns=True)) == "e0c3822a5c253760"
        drawn.clear()
        digest(Recipe.preset("nnunet"))
        assert hashlib.sha256(str(drawn).encode()).hexdigest()[:16] == "b63ae81607eaab70"

    def test_smaller_image_lies_whole_in_the_crop_and_counts_alone(self):
        # 9x7 of 9s in crops of 16: it may lie at 8 x 10 places.
        image = np.full((9, 7), 9, np.uint8)
        read = ArrayReader({named("a"): (image, np.ones_like(image))})
        stream = SampleStream(list(read.arrays), read, make_sampling(recipe=Recipe()))
        places = set()
        for index in range(200):
            found, mask = pair_at(stream, index)
            inside = mask != IGNORED
            rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
            places.add((rows[0], columns[0]))
            assert (len(rows), len(columns), inside.sum()) == (9, 7, 63)
            assert (mask[inside] == 1).all()
            assert (found == 9).all()
        assert {place[0] for place in places} == set(range(8))
        assert {place[1] for place in places} == set(range(10))

    def test_smaller_image_is_mirrored_around(self):
        image = np.array([[10, 20, 30]], np.uint8).repeat(16, 0)
        read = ArrayReader({named("a"): (image, np.zeros_like(image))})
        found, mask = pair_at(
            SampleStream(list(read.arrays), read, make_sampling(recipe=Recipe())), 0
        )
        start = np.flatnonzero(mask[0] != IGNORED)[0]
        # 30 20 10 20 30 20 10 ...: around the middle one all is symmetric, with a period of 4.
        cycle = [10, 20, 30, 20]
        np.testing.assert_array_equal(found[0], [cycle[(x - start) % 4] for x in range(16)])

    @pytest.mark.parametrize("pixel", [(0, 0), (8, 6), (4, 30)])
    def test_forced_class_is_shown_of_smaller_images(self, pixel):
        # Shorter than the crop along one axis, or both; turned, shifted and bent too.
        mask = np.zeros((9, pixel[1] + 1), np.uint8)
        mask[pixel] = 1
        read = ArrayReader({named("a"): (mask, mask)})
        settings = dict(foreground_share=1.0, foreground_classes=(1,))
        for recipe in (Recipe(), Recipe.preset("paper")):
            stream = SampleStream(list(read.arrays), read, make_sampling(recipe=recipe, **settings))
            assert all((pair_at(stream, index)[1] == 1).any() for index in range(20))


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
