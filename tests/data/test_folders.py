import pathlib

import numpy as np
import pytest

from unet_core.data import folders, images
from unet_core.data.classes import ClassMap
from unet_core.errors import UserError

CLASSES = ClassMap.parse("0:membrane,255:cell")


def picture(number, height=8, width=10):
    return np.random.default_rng(number).integers(0, 256, (height, width)).astype(np.uint8)


def mask_of(number, height=8, width=10):
    """Returns a mask of the values 0 and 255, of which its first two pixels have one each."""
    mask = np.where(picture(number + 1000, height, width) > 128, 255, 0).astype(np.uint8)
    mask[0, :2] = 0, 255
    return mask


def write(folder, stem, pixels):
    images.write_png(folder / f"{stem}.png", pixels)


@pytest.fixture
def data_dir(tmp_path):
    """A sound data folder of three pairs: 0, 1 and 2."""
    for part in ("image", "label"):
        (tmp_path / "train" / part).mkdir(parents=True)
    for number in range(3):
        write(tmp_path / "train" / "image", number, picture(number))
        write(tmp_path / "train" / "label", number, mask_of(number))
    return tmp_path


class TestLoad:
    def test_sound_folder_gives_images_and_class_ids(self, data_dir):
        found = folders.load(data_dir, CLASSES)
        assert [sample.name for sample in found.samples] == ["0", "1", "2"]
        np.testing.assert_array_equal(found.samples[1].image, picture(1))
        np.testing.assert_array_equal(found.samples[1].mask, mask_of(1) // 255)
        assert sum(found.value_counts.values()) == 3 * 80
        assert found.value_counts[0] == sum(int((mask_of(n) == 0).sum()) for n in range(3))

    def test_names_sort_by_number(self, data_dir):
        for name in ("10", "slice 2", "slice 11"):
            write(data_dir / "train" / "image", name, picture(3))
            write(data_dir / "train" / "label", name, mask_of(3))
        names = [sample.name for sample in folders.load(data_dir, CLASSES).samples]
        assert names == ["0", "1", "2", "10", "slice 2", "slice 11"]

    def test_superscript_in_a_name_sorts_as_a_letter(self):
        paths = [pathlib.Path(name) for name in ("².png", "10.png", "2.png")]
        assert [p.stem for p in sorted(paths, key=folders.numeric_order)] == ["2", "10", "²"]

    def test_progress_wraps_the_pairs(self, data_dir):
        seen = []
        folders.load(data_dir, CLASSES, progress=lambda pairs: seen.extend(pairs) or pairs)
        assert [path.name for path in seen] == ["0.png", "1.png", "2.png"]

    def test_files_that_are_no_png_are_left_alone(self, data_dir):
        (data_dir / "train" / "image" / "notes.txt").write_text("x")
        (data_dir / "train" / "image" / "old.png").mkdir()
        assert len(folders.load(data_dir, CLASSES).samples) == 3


class TestProblems:
    def problems(self, data_dir, classes=CLASSES):
        """Returns the lines of the one error."""
        with pytest.raises(UserError) as error:
            folders.load(data_dir, classes)
        first, *lines = str(error.value).splitlines()
        assert first == f"{data_dir}: {len(lines)} problem(s) with the data:"
        return lines

    def test_both_missing_folders_are_named_at_once(self, tmp_path):
        lines = self.problems(tmp_path)
        assert len(lines) == 2
        assert "train/image: there is no such folder" in lines[0]
        assert "train/label: there is no such folder" in lines[1]

    def test_missing_mask_folder_is_one_problem_not_one_per_image(self, data_dir):
        (data_dir / "train" / "label").rename(data_dir / "elsewhere")
        (line,) = self.problems(data_dir)
        assert "train/label: there is no such folder" in line

    def test_empty_folder_is_a_problem(self, tmp_path):
        for part in ("image", "label"):
            (tmp_path / "train" / part).mkdir(parents=True)
        (line,) = self.problems(tmp_path)
        assert "train/image: holds no PNG pictures" in line

    def test_every_problem_is_listed_in_one_error(self, data_dir):
        image_dir, mask_dir = data_dir / "train" / "image", data_dir / "train" / "label"
        write(image_dir, "lone image", picture(3))
        write(mask_dir, "lone mask", mask_of(3))
        write(mask_dir, "1", mask_of(1, height=9))
        (image_dir / "0.png").write_bytes((image_dir / "0.png").read_bytes()[:-20])
        (mask_dir / "0.png").write_bytes(b"")
        odd = mask_of(2)
        odd[3, :4] = 7
        odd[4, 0] = 9
        write(mask_dir, "2", odd)

        lines = self.problems(data_dir)
        assert len(lines) == 6
        assert [line.split(". ")[0].strip() for line in lines] == list("123456")
        for line, path, text in zip(
            lines,
            (
                image_dir / "lone image.png",
                mask_dir / "lone mask.png",
                image_dir / "0.png",
                mask_dir / "0.png",
                image_dir / "1.png",
                mask_dir / "2.png",
            ),
            (
                f"there is no mask of the same name in {mask_dir}",
                f"there is no image of the same name in {image_dir}",
                "is cut short",
                "cannot be decoded",
                "is 10x8 pixels, its mask 10x9",
                "outside the class map 0:membrane,255:cell: 7 (4 px), 9 (1 px)",
            ),
            strict=True,
        ):
            assert str(path) in line
            assert text in line

    def test_many_unknown_values_are_cut_to_eight(self, data_dir):
        odd = mask_of(1)
        odd[1:3, :5] = np.arange(1, 11).reshape(2, 5)
        write(data_dir / "train" / "label", "1", odd)
        (line,) = self.problems(data_dir)
        assert "8 (1 px) and 2 more" in line
        assert "9 (1 px)" not in line

    def test_data_of_a_single_class_name_the_missing_one(self, data_dir):
        for number in range(3):
            write(data_dir / "train" / "label", number, np.full((8, 10), 255, np.uint8))
        (line,) = self.problems(data_dir)
        assert "no mask has a pixel of class membrane (values found: 255" in line

    def test_class_in_one_mask_only_is_enough(self, data_dir):
        for number in range(2):
            write(data_dir / "train" / "label", number, np.full((8, 10), 255, np.uint8))
        assert len(folders.load(data_dir, CLASSES).samples) == 3

    @pytest.mark.parametrize(("part", "word"), [("image", "images"), ("label", "masks")])
    def test_two_files_of_one_stem_are_a_problem(self, data_dir, part, word):
        folder = data_dir / "train" / part
        (folder / "1.PNG").write_bytes((folder / "1.png").read_bytes())
        if len({path.name for path in folder.iterdir()}) == 3:
            pytest.skip("the file system does not tell 1.PNG from 1.png")
        lines = self.problems(data_dir)
        assert f"{folder / '1'}.*: 2 {word} share this stem" in lines[0]

    def test_survey_returns_the_sound_pairs_beside_the_problems(self, data_dir):
        (data_dir / "train" / "image" / "1.png").write_bytes(b"junk")
        found = folders.survey(data_dir, CLASSES)
        assert [sample.name for sample in found.samples] == ["0", "2"]
        assert len(found.problems) == 1


class TestFingerprint:
    def fingerprint(self, data_dir, classes=CLASSES):
        return folders.load(data_dir, classes).fingerprint

    def test_same_files_have_the_same_one(self, data_dir):
        assert self.fingerprint(data_dir) == self.fingerprint(data_dir)

    def test_one_pixel_of_an_image_changes_it(self, data_dir):
        before = self.fingerprint(data_dir)
        changed = picture(1)
        changed[4, 4] ^= 1
        write(data_dir / "train" / "image", "1", changed)
        assert self.fingerprint(data_dir) != before

    def test_one_pixel_of_a_mask_changes_it(self, data_dir):
        before = self.fingerprint(data_dir)
        changed = mask_of(1)
        changed[4, 4] = 255 - changed[4, 4]
        write(data_dir / "train" / "label", "1", changed)
        assert self.fingerprint(data_dir) != before

    def test_order_of_the_classes_changes_it(self, data_dir):
        swapped = ClassMap.parse("255:cell,0:membrane")
        assert self.fingerprint(data_dir, swapped) != self.fingerprint(data_dir)


class TestDescribe:
    def test_counts_sizes_and_value_shares_are_told(self, data_dir):
        for number in range(3):
            mask = np.full((8, 10), 255, np.uint8)
            mask[:2] = 0
            write(data_dir / "train" / "label", number, mask)
        text = folders.describe(folders.load(data_dir, CLASSES), CLASSES)
        assert "3 sound pair(s)" in text
        assert "3 of 10x8 uint8" in text
        # 3 masks of 80 pixels, of which two rows of 10 in each are 0: 60 of 240, a quarter.
        assert "240 mask pixel(s)" in text
        (line,) = (line for line in text.splitlines() if "membrane" in line)
        assert line.split() == ["value", "0", "membrane", "60", "25.00%"]


THIRTY = [folders.Sample(str(n), picture(n), mask_of(n)) for n in range(30)]


class TestSplit:
    def test_last_of_five_folds_holds_out_the_last_six_of_thirty(self):
        train, held_out = folders.split(THIRTY, folds=5, fold=4)
        assert [s.name for s in held_out] == [str(n) for n in range(24, 30)]
        assert [s.name for s in train] == [str(n) for n in range(24)]

    def test_middle_fold_is_one_block(self):
        train, held_out = folders.split(THIRTY, folds=3, fold=1)
        assert [s.name for s in held_out] == [str(n) for n in range(10, 20)]
        assert [s.name for s in train] == [str(n) for n in (*range(10), *range(20, 30))]

    def test_folds_that_do_not_divide_hold_out_every_sample_once(self):
        blocks = [folders.split(THIRTY, folds=7, fold=fold)[1] for fold in range(7)]
        assert [s.name for block in blocks for s in block] == [str(n) for n in range(30)]
        # 30 = 4 * 7 + 2.
        assert sorted(map(len, blocks)) == [4, 4, 4, 4, 4, 5, 5]

    def test_no_folds_hold_nothing_out(self):
        train, held_out = folders.split(THIRTY, folds=0, fold=0)
        assert len(train) == 30
        assert held_out == []

    @pytest.mark.parametrize("fold", [-1, 5])
    def test_fold_out_of_range_names_the_range(self, fold):
        with pytest.raises(UserError, match=rf"`fold` \({fold}\) must be from 0 to .* = 4"):
            folders.split(THIRTY, folds=5, fold=fold)

    @pytest.mark.parametrize("folds", [1, 31])
    def test_folds_out_of_range_name_the_range(self, folds):
        with pytest.raises(UserError, match=rf"`folds` \({folds}\).* from 2 to .* 30"):
            folders.split(THIRTY, folds=folds, fold=0)
