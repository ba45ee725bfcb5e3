import collections
import pathlib

import cv2
import numpy as np
import PIL.Image
import pytest

from unet_core.data import splits
from unet_core.data.samples import Sample, Source
from unet_core.errors import UserError


def make(number, group="", part=""):
    source = Source(pathlib.Path(f"{number}.png"))
    return Sample(str(number), source, (source,), group, part)


SAMPLES = [make(n) for n in range(10)]


GROUPED = [
    make(f"{group}{number}", group)
    for group, count in zip("abcde", (6, 3, 2, 2, 1), strict=True)
    for number in range(count)
]


def classes_of(number):
    """Class 0 is in every sample, 1 in half of them, 2 in ten of a hundred, 3 in five."""
    found = {0: True, 1: number % 2, 2: number < 10, 3: 40 <= number < 45}
    return frozenset(c for c, present in found.items() if present)


PRESENCE = {make(number): classes_of(number) for number in range(100)}


def names(samples):
    return [sample.name for sample in samples]


class TestContiguous:
    def test_folds_are_blocks_that_cover_everything_once(self):
        held_out = [splits.split(SAMPLES, "contiguous", folds=3, fold=f)[1] for f in range(3)]
        assert [names(part) for part in held_out] == [
            ["0", "1", "2"],
            ["3", "4", "5"],
            ["6", "7", "8", "9"],
        ]

    def test_rest_is_for_training_in_order(self):
        training, _ = splits.split(SAMPLES, "contiguous", folds=5, fold=1)
        assert names(training) == ["0", "1", *map(str, range(4, 10))]

    def test_share_is_the_last_block(self):
        training, held_out = splits.split(SAMPLES, "contiguous", held_out_share=0.25)
        assert names(held_out) == ["8", "9"]
        assert len(training) == 8

    def test_without_folds_and_share_nothing_is_held_out(self):
        assert splits.split(SAMPLES, "contiguous") == (SAMPLES, [])

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            (dict(folds=11), r"`folds` \(11\) must be 0, or from 2 to the number of samples, 10"),
            (dict(folds=1), r"`folds` \(1\)"),
            (dict(folds=3, fold=3), r"`fold` \(3\) must be from 0 to `folds` - 1 = 2"),
            (dict(folds=3, fold=-1), r"`fold` \(-1\)"),
            (dict(folds=2, held_out_share=0.5), "both hold out"),
        ],
    )
    def test_numbers_that_do_not_fit_are_refused(self, settings, words):
        with pytest.raises(UserError, match=words):
            splits.split(SAMPLES, "contiguous", **settings)


class TestRandom:
    def test_folds_cover_everything_once_and_seeds_differ(self):
        held_out = [splits.split(SAMPLES, "random", folds=3, fold=f)[1] for f in range(3)]
        assert sorted(name for part in held_out for name in names(part)) == sorted(names(SAMPLES))
        others = {
            tuple(names(splits.split(SAMPLES, "random", held_out_share=0.3, seed=s)[1]))
            for s in range(10)
        }
        assert len(others) > 5
        assert {len(part) for part in others} == {3}


class TestStratified:
    def test_every_fold_has_its_share_of_every_class(self):
        for fold in range(5):
            _, held_out = splits.split(
                list(PRESENCE), "stratified", folds=5, fold=fold, presence=PRESENCE.get
            )
            counts = collections.Counter(c for s in held_out for c in PRESENCE[s])
            assert len(held_out) == 20
            assert (counts[2], counts[3]) == (2, 1)
            assert abs(counts[1] - 10) <= 1

    def test_share_is_stratified_too(self):
        _, held_out = splits.split(
            list(PRESENCE), "stratified", held_out_share=0.4, presence=PRESENCE.get
        )
        counts = collections.Counter(c for s in held_out for c in PRESENCE[s])
        assert len(held_out) == 40
        assert (counts[2], counts[3]) == (4, 2)

    def test_small_share_holds_out_one(self):
        two = [make(number) for number in range(2)]
        training, held_out = splits.split(
            two, "stratified", held_out_share=0.2, presence=lambda sample: frozenset([0])
        )
        assert (len(training), len(held_out)) == (1, 1)


class TestTestSamples:
    @pytest.mark.parametrize("how", ["contiguous", "random", "stratified", "group"])
    @pytest.mark.parametrize("settings", [{}, {"folds": 2}, {"held_out_share": 0.5}])
    def test_no_split_uses_them(self, how, settings):
        samples = [make(n, "ab"[n % 2], "test" if n >= 4 else "") for n in range(8)]
        parts = splits.split(samples, how, presence=lambda sample: frozenset([0]), **settings)
        assert sorted(names(parts[0] + parts[1])) == ["0", "1", "2", "3"]


class TestGroup:
    @pytest.mark.parametrize("seed", range(3))
    def test_no_group_is_torn_apart_and_parts_are_even(self, seed):
        parts = [
            splits.split(GROUPED, "group", folds=2, fold=fold, seed=seed)[1] for fold in (0, 1)
        ]
        groups = [{sample.group for sample in part} for part in parts]
        assert not groups[0] & groups[1]
        assert sorted(map(len, parts)) == [7, 7]

    def test_share_smaller_than_any_group_holds_out_one(self):
        two = [make(f"{group}{number}", group) for group in "ab" for number in range(10)]
        training, held_out = splits.split(two, "group", held_out_share=0.2)
        assert (len(training), len(held_out)) == (10, 10)

    def test_samples_without_groups_are_refused_with_the_way_out(self):
        with pytest.raises(UserError, match="`group_pattern`"):
            splits.split(SAMPLES, "group", folds=2)

    def test_fewer_groups_than_folds_are_refused(self):
        with pytest.raises(UserError, match="at least 6 groups; there are 5"):
            splits.split(GROUPED, "group", folds=6)


class TestFixed:
    def test_parts_are_those_of_the_layout_and_test_is_in_neither(self):
        samples = [make(0, part="train"), make(1, part="val"), make(2, part="test")]
        assert splits.split(samples, "fixed") == (samples[:1], samples[1:2])

    def test_layout_without_val_is_refused(self):
        with pytest.raises(UserError, match="needs samples marked val"):
            splits.split(SAMPLES, "fixed")

    def test_folds_beside_it_are_refused(self):
        with pytest.raises(UserError, match="leave `folds`"):
            splits.split([make(1, part="val")], "fixed", folds=2)


class TestLeaks:
    PICTURE = np.random.default_rng(0).integers(0, 256, (9, 9)).astype(np.uint8)

    def sample(self, folder, name, pixels, suffix=".png", **kwargs):
        PIL.Image.fromarray(pixels).save(folder / f"{name}{suffix}", **kwargs)
        source = Source(folder / f"{name}{suffix}")
        return Sample(name, source, (source,))

    def test_equal_bytes_are_found(self, tmp_path):
        a, b = (self.sample(tmp_path, name, self.PICTURE) for name in "ab")
        other = self.sample(tmp_path, "c", self.PICTURE[::-1].copy())
        (found,) = splits.leaks([a, other], [b])
        assert "b.png: is held out, and equal to" in found
        assert "a.png, which is trained on" in found
        assert splits.leaks([other], [b]) == []

    def test_equal_pixels_in_other_files_are_found_by_decoding(self, tmp_path):
        a = self.sample(tmp_path, "a", self.PICTURE)
        b = self.sample(tmp_path, "b", self.PICTURE, ".tif")
        assert splits.leaks([a], [b]) == []
        assert len(splits.leaks([a], [b], decoded=True)) == 1

    def test_pages_of_one_stack_are_different_images(self, tmp_path):
        path = tmp_path / "s.tif"
        cv2.imwritemulti(str(path), [self.PICTURE, self.PICTURE.T.copy()])
        a, b = (Sample(str(p), Source(path, p), (Source(path, p),)) for p in (0, 1))
        assert splits.leaks([a], [b]) == splits.leaks([a], [b], decoded=True) == []
