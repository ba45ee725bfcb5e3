import contextlib
import dataclasses
import shutil

import cv2
import numpy as np
import pytest
import tifffile

from unet_core.data.augment import Recipe
from unet_core.errors import UserError
from unet_core.run_directory import RunDirectory
from unet_core.runs import dataset, finished_run, plan
from unet_core.settings import RunConfig
from unet_core.settings.loss import LossSettings


@pytest.fixture
def folder(tmp_path):
    for number in range(4):
        image = np.full((20, 24), 10 * number, np.uint8)
        mask = np.zeros((20, 24), np.uint8)
        mask[: 5 * number] = 1
        for name, pixels in (("image", image), ("label", mask)):
            (tmp_path / "train" / name).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / "train" / name / f"rat{number // 2}_{number}.png"), pixels)
    return tmp_path


def opened(folder, *, of_new_run=False, **settings):
    settings = {"classes": "0:background,1:cell", **settings}
    config = RunConfig.of(data_dir=str(folder), **{"classes": "0:membrane,255:cell", **settings})
    return dataset.DataSet.open(config.data, progress=lambda title: iter, of_new_run=of_new_run)


class TestCheck:
    def test_sound_folder_passes(self, folder):
        data = opened(folder)
        data.check()
        assert data.problems == ()

    def test_names_headers_and_values_are_told_of_at_once(self, folder):
        (folder / "train" / "image" / "more.png").write_bytes(b"")
        cv2.imwrite(str(folder / "train" / "label" / "rat0_1.png"), np.full((20, 24), 7, np.uint8))
        cv2.imwrite(str(folder / "train" / "label" / "rat1_2.png"), np.zeros((2, 2), np.uint8))
        with pytest.raises(UserError) as error:
            opened(folder).check()
        for words in ("3 problem(s)", "more.png: there is no mask", "7 (480 px)", "its mask 2x2"):
            assert words in str(error.value)

    def test_every_class_must_occur_to_train_on_and_none_to_be_scored(self, folder):
        for path in (folder / "train" / "label").iterdir():
            cv2.imwrite(str(path), np.zeros((20, 24), np.uint8))
        with pytest.raises(UserError, match="No mask has a pixel of class cell"):
            opened(folder).check()
        opened(folder).check(to_train=False)

    def test_set_beyond_the_cache_is_checked_by_headers_alone(self, folder):
        cv2.imwrite(str(folder / "train" / "label" / "rat0_1.png"), np.full((20, 24), 7, np.uint8))
        opened(folder, cache_mb=0).check()
        with pytest.raises(UserError, match=r"7 \(480 px\)"):
            opened(folder).check()


class TestSplit:
    def test_group_split_goes_by_the_pattern(self, folder):
        settings = dict(group_pattern=r"rat\d+", split="group", folds=2)
        parts = [opened(folder, **settings, fold=str(fold)).split() for fold in (0, 1)]
        for training, held_out in parts:
            assert len({sample.group for sample in training}) == 1
            assert not {s.group for s in training} & {s.group for s in held_out}

    def test_stratified_split_goes_by_the_classes_in_the_masks(self, folder):
        # Of the four masks one is empty: it cannot be in both parts.
        for fold in (0, 1):
            training, held_out = opened(folder, split="stratified", folds=2, fold=str(fold)).split()
            assert len(training) == len(held_out) == 2
            assert sum(sample.name == "rat0_0" for sample in [*training, *held_out]) == 1

    def test_val_folder_is_not_trained_on_silently(self, folder):
        shutil.copytree(folder / "train", folder / "val")
        for path in (folder / "val").rglob("*.png"):
            cv2.imwrite(str(path), 7 + 0 * cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
        with pytest.raises(UserError, match="Set `split` to fixed to hold it out"):
            opened(folder).split()
        training, held_out = opened(folder, split="fixed").split()
        assert len(training) == len(held_out) == 4

    def test_image_in_both_parts_is_refused(self, folder):
        first = folder / "train" / "image" / "rat0_0.png"
        (folder / "train" / "image" / "rat1_3.png").write_bytes(first.read_bytes())
        with pytest.raises(UserError, match="is held out, and equal to"):
            opened(folder, folds=2).split()

    def test_nothing_to_train_on_is_refused(self, folder):
        (folder / "train").rename(folder / "val")
        (folder / "samples.csv").write_text(
            "image,mask,split\nval/image/rat0_0.png,val/label/rat0_0.png,val\n"
        )
        with pytest.raises(UserError, match="there is no sample to train on"):
            opened(folder, layout="csv", split="fixed").split()


class TestIntensities:
    @pytest.fixture
    def of_12_bits(self, folder):
        # Files of the values 1000, 2000, 3000 and 4000.
        for number in range(4):
            path = folder / "train" / "image" / f"rat{number // 2}_{number}.png"
            cv2.imwrite(str(path), np.full((20, 24), 1000 * (number + 1), np.uint16))
        return folder

    def test_new_run_scales_by_the_range_of_the_set_and_says_so(self, of_12_bits, capsys):
        data = opened(of_12_bits, of_new_run=True)
        assert data.settings.intensities == "range:1000,4000"
        # 2000 is a third of the way from 1000 to 4000.
        pixels = [data.read(sample).image[0, 0] for sample in data.samples]
        np.testing.assert_allclose(pixels, [0, 85, 170, 255], rtol=1e-6)
        assert "uint16 from 1000 to 4000, 4.6% of 0 to 65535, in 4" in capsys.readouterr().out

    def test_floats_beyond_the_range_of_the_type_are_refused_before_a_set_is_decoded(self, folder):
        for path in (folder / "train" / "image").iterdir():
            path.unlink()
            tifffile.imwrite(path.with_suffix(".tif"), np.full((20, 24), -7, np.int16))
        of_new_run = {"of_new_run": True, "cache_mb": 0}
        words = (
            r"Its images hold floats from -7 to -7; `intensities` .range. takes floats from 0 to 1"
        )
        with pytest.raises(UserError, match=words):
            opened(folder, **of_new_run).check()
        opened(folder, intensities="zscore", **of_new_run).check()

    def test_run_of_before_keeps_the_range_of_the_type(self, of_12_bits):
        data = opened(of_12_bits)
        assert data.settings.intensities == "range"
        assert data.read(data.samples[3]).image[0, 0] == pytest.approx(4000 * 255 / 65535)

    def test_run_goes_on_with_what_it_has_stored(self, tmp_path):
        run = RunDirectory(tmp_path)
        run.store(RunConfig.of(classes="0:a,1:b", intensities="range:1000,4000"), "0" * 16)
        for given, expected in (("range", "range:1000,4000"), ("zscore", "zscore")):
            config = RunConfig.of(classes="0:a,1:b", intensities=given)
            assert plan._intensities_of_run(config, run).data.intensities == expected

    def test_flag_file_of_the_training_fits_what_the_run_has_stored(self):
        of_run = RunConfig.of(classes="0:a,1:b", intensities="range:1000,4000")
        for given, fits in (("range", True), ("zscore", False)):
            config = RunConfig.of(mode="predict", intensities=given)
            with contextlib.nullcontext() if fits else pytest.raises(UserError, match="differs"):
                found = finished_run.settings_of_run(config, of_run)
                assert found.data.intensities == "range:1000,4000"


class TestDescribeSmall:
    def test_images_smaller_than_the_crop_are_counted_with_a_crop_that_fits(self, folder):
        for name in ("image", "label"):
            small = np.zeros((30, 9), np.uint8)
            cv2.imwrite(str(folder / "train" / name / "rat0_1.png"), small)
        data = opened(folder, crop_size=20)
        assert "1 of the 4 images" in (line := data.describe_small(data.samples))
        assert "the smallest 9x30 pixels" in line
        assert "--crop_size=9 fits" in line
        assert opened(folder, crop_size=9).describe_small(data.samples) == ""


class TestWeights:
    def test_class_weights_come_of_the_training_masks(self, folder):
        data = opened(folder)
        weights = dataset.balanced_class_weights("inverse", data.count_classes(data.samples))
        # 30 of 80 rows are cells: 80 / (2 * 50) and 80 / (2 * 30).
        np.testing.assert_allclose(weights, [0.8, 4 / 3])

    def test_weight_maps_hold_the_class_weights(self, folder):
        data = opened(folder)
        data.weigh(LossSettings(border_weight=10.0), (0.5, 2.0))
        weights = data.read.weights(data.samples[1])
        assert weights[0, 0] == 2
        assert weights[19, 0] == 0.5

    def test_without_a_border_weight_there_are_no_maps(self, folder):
        data = opened(folder)
        data.weigh(LossSettings(), (0.5, 2.0))
        assert data.read.weights(data.samples[0]) is None


def sampling(**settings):
    config = RunConfig.of(**{"classes": "0:membrane,255:cell", **settings})
    return dataset.make_sampling(config.data, config.augmentation, seed=3)


class TestMakeSampling:
    def test_foreground_is_all_but_the_first_class_by_default(self):
        found = sampling(classes="0:a,1:b,2:c", foreground_share=0.3)
        assert found.foreground_classes == (1, 2)

    def test_foreground_classes_are_named(self):
        found = sampling(classes="0:a,1:b,2:c", foreground_classes=("c",))
        assert found.foreground_classes == (2,)
        with pytest.raises(UserError, match="No class is called 'd'"):
            sampling(foreground_classes=("d",))

    def test_recipe_is_the_preset_with_what_was_given_in_its_place(self):
        found = sampling(augment="paper", rotation_degrees=7.0, seed=5)
        assert found.recipe == dataclasses.replace(Recipe.preset("paper"), rotation_degrees=7.0)
        assert found.seed == 3


class TestTestFolder:
    def test_folder_of_images_below_test_or_test_itself(self, folder):
        config = RunConfig.of(data_dir=str(folder), classes="0:membrane,255:cell")
        assert dataset.test_folder(config.data) is None
        (folder / "test").mkdir()
        cv2.imwrite(str(folder / "test" / "a.png"), np.zeros((2, 2), np.uint8))
        assert dataset.test_folder(config.data) == folder / "test"
        (folder / "test" / "image").mkdir()
        cv2.imwrite(str(folder / "test" / "image" / "a.png"), np.zeros((2, 2), np.uint8))
        assert dataset.test_folder(config.data) == folder / "test" / "image"
