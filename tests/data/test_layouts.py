"""The same slices in every layout are the same samples."""

import os
import sys
from typing import ClassVar

import cv2
import numpy as np
import pytest
import tifffile

from unet_core.data import survey, synthetic
from unet_core.data.io import limits
from unet_core.data.layouts.find import find_images, find_samples
from unet_core.data.layouts.voc import write_voc_lists
from unet_core.data.samples import Source
from unet_core.errors import UserError
from unet_core.runs.dataset import DataSet
from unet_core.settings import RunConfig

SIZE = 48
PICTURE = np.zeros((4, 5), np.uint8)


def write(path, pixels=PICTURE):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels)
    return path


def find(folder, layout="folders", **kwargs):
    return find_samples(folder, layout, **kwargs)


def names(samples):
    return [sample.name for sample in samples]


@pytest.fixture(scope="module")
def slices():
    volume = synthetic.Volume(size=SIZE, seed=1)
    return [volume.slice_at(depth) for depth in range(3)]


def decoded(folder, **settings):
    settings = RunConfig.of(data_dir=str(folder), **{"classes": "0:membrane,255:cell", **settings})
    data = DataSet.open(settings.data, progress=lambda title: iter)
    data.check()
    return [data.read(sample) for sample in data.samples]


class TestEveryLayout:
    def check(self, pairs, slices):
        assert len(pairs) == len(slices)
        for pair, (image, mask) in zip(pairs, slices, strict=True):
            np.testing.assert_array_equal(pair.image, image)
            np.testing.assert_array_equal(pair.mask, mask // 255)

    def test_folders(self, slices, tmp_path):
        for number, (image, mask) in enumerate(slices):
            write(tmp_path / "train" / "image" / f"{number}.png", image)
            write(tmp_path / "train" / "label" / f"{number}.png", mask)
        self.check(decoded(tmp_path), slices)

    def test_masks_beside_their_images_with_a_suffix(self, slices, tmp_path):
        for number, (image, mask) in enumerate(slices):
            write(tmp_path / "scans" / f"{number}.tif", image)
            write(tmp_path / "scans" / f"{number}_mask.png", mask)
        names = dict(image_folder="scans", mask_folder="scans", mask_suffix="_mask")
        self.check(decoded(tmp_path, **names), slices)

    def test_one_binary_folder_per_class(self, slices, tmp_path):
        for number, (image, mask) in enumerate(slices):
            write(tmp_path / "image" / f"{number}.png", image)
            write(tmp_path / "cells" / f"{number}.png", (mask > 0).astype(np.uint8))
            write(tmp_path / "membranes" / f"{number}.png", 255 - mask)
        self.check(decoded(tmp_path, mask_folder="cells", classes="0:membrane,1:cell"), slices)
        both = dict(mask_folder="membranes,cells", classes="0:membrane,1:cell")
        self.check(decoded(tmp_path, **both), slices)

    def test_voc_with_and_without_lists(self, slices, tmp_path):
        for number, (image, mask) in enumerate(slices):
            write(tmp_path / "JPEGImages" / f"{number}.png", image)
            write(tmp_path / "SegmentationClass" / f"{number}.png", mask)
        self.check(decoded(tmp_path, layout="voc"), slices)
        found = find(tmp_path, "voc").samples
        write_voc_lists(tmp_path, found[:2], found[2:])
        self.check(decoded(tmp_path, layout="voc"), slices)
        assert [s.split for s in find(tmp_path, "voc").samples] == ["train", "train", "val"]

    def test_csv(self, slices, tmp_path):
        lines = ["image,mask,group,split"]
        for number, (image, mask) in enumerate(slices):
            write(tmp_path / "a" / f"x{number}.png", image)
            write(tmp_path / "b" / f"y{number}.png", mask)
            lines.append(f"a/x{number}.png,b/y{number}.png,rat{number},train")
        (tmp_path / "samples.csv").write_text("\n".join(lines))
        self.check(decoded(tmp_path, layout="csv"), slices)
        self.check(decoded(tmp_path / "samples.csv", layout="csv"), slices)
        assert [s.group for s in find(tmp_path, "csv").samples] == ["rat0", "rat1", "rat2"]

    def test_stacks(self, slices, tmp_path):
        cv2.imwritemulti(str(tmp_path / "volume.tif"), [image for image, _ in slices])
        cv2.imwritemulti(str(tmp_path / "labels.tif"), [mask for _, mask in slices])
        stacks = dict(layout="stack", image_folder="volume", mask_folder="labels")
        self.check(decoded(tmp_path, **stacks), slices)


class TestNotUsed:
    """What is found and not used is named and counted; nothing is wrong with it."""

    def test_other_kinds_hidden_files_and_folders_of_a_data_folder(self, tmp_path):
        for folder in ("image", "label"):
            write(tmp_path / "train" / folder / "0.png")
            (tmp_path / "train" / folder / "._0.png").write_bytes(b"Mac OS X")
        for name in ("Thumbs.db", "a.gif", "b.gif", "README"):
            (tmp_path / "train" / "image" / name).write_bytes(b"")
        for name in ("image/old", "weights", "a", "b", "c", "d", "e"):
            (tmp_path / "train" / name).mkdir()
        (tmp_path / "trian").mkdir()
        (tmp_path / "train" / "image" / "folder.png").mkdir()
        os.mkfifo(tmp_path / "train" / "image" / "pipe.png")
        (tmp_path / "train" / "image" / "device.png").symlink_to("/dev/null")
        write(tmp_path / "loose.tif")
        write(tmp_path / "train" / "loose.png")
        found = find(tmp_path)
        assert (names(found.samples), found.problems) == (["0"], ())
        assert list(found.notes) == [
            f"{tmp_path}: not read: 1 .tif, 1 folder(s) (trian).",
            f"{tmp_path}/train: not read: 1 .png, 6 folder(s) (a, b, c, d, e, ...).",
            f"{tmp_path}/train/image: not read: 2 .gif, 2 pipe(s), socket(s) or device(s), 1 .db, "
            "1 hidden, 1 without a suffix, 2 folder(s) (folder.png, old).",
            f"{tmp_path}/train/label: not read: 1 hidden.",
        ]

    def test_folder_of_images_may_be_the_data_folder_itself(self, tmp_path):
        for name in ("0.png", "0_mask.png"):
            write(tmp_path / name)
        here = {"image_folder": ".", "mask_folder": ".", "mask_suffix": "_mask"}
        found = find(tmp_path, **here)
        assert (names(found.samples), found.problems, found.notes) == (["0"], (), ())

    def test_masks_without_the_suffix(self, tmp_path):
        write(tmp_path / "image" / "0.png")
        for name in ("0_mask.png", "0.png", "1.png"):
            write(tmp_path / "label" / name)
        assert find(tmp_path, mask_suffix="_mask").notes == (
            f"{tmp_path}/label: not read: 2 without _mask.",
        )

    def test_pictures_of_a_voc_folder_in_no_list(self, tmp_path):
        for name in ("a", "b"):
            write(tmp_path / "JPEGImages" / f"{name}.png")
            write(tmp_path / "SegmentationClass" / f"{name}.png")
        (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
        (tmp_path / "ImageSets" / "Segmentation" / "train.txt").write_text("a")
        assert find(tmp_path, "voc").notes == (
            f"{tmp_path}/JPEGImages: 1 picture(s) are in no list, such as b.png.",
        )

    def test_of_images_to_predict(self, tmp_path):
        for name in ("a.png", ".b.png", "c.gif"):
            write(tmp_path / "a.png").rename(tmp_path / name)
        write(tmp_path / "a.png")
        os.mkfifo(tmp_path / "pipe.png")
        for path in (tmp_path, tmp_path / "*"):
            notes = []
            assert find_images(path, notes=notes) == [Source(tmp_path / "a.png")]
            assert notes == [
                f"{path}: not read: 1 .gif, 1 hidden, 1 pipe(s), socket(s) or device(s)."
            ]


class TestHeldOutFolder:
    @pytest.mark.parametrize("name", ["val", "valid", "validation"])
    def test_beside_train_is_the_part_val(self, tmp_path, name):
        for part in ("train", name):
            for folder in ("image", "label"):
                write(tmp_path / part / folder / f"{part}.png")
        found = find(tmp_path)
        assert [(s.name, s.split) for s in found.samples] == [("train", "train"), (name, "val")]
        assert (found.problems, found.notes) == ((), ())


class TestFolders:
    def test_ome_tiff_pairs_with_a_mask_of_its_name(self, tmp_path):
        write(tmp_path / "image" / "x.ome.tif")
        write(tmp_path / "image" / "y.a.tif")
        write(tmp_path / "label" / "x.png")
        write(tmp_path / "label" / "y.a.OME.TIFF")
        found = find(tmp_path)
        assert found.problems == ()
        assert names(found.samples) == ["x", "y.a"]

    def test_order_is_numeric(self, tmp_path):
        for name in ("10", "9", "1"):
            write(tmp_path / "train" / "image" / f"{name}.png")
            write(tmp_path / "train" / "label" / f"{name}.png")
        assert names(find(tmp_path).samples) == ["1", "9", "10"]

    def test_val_and_test_with_masks_are_parts(self, tmp_path):
        for part in ("train", "val", "test"):
            write(tmp_path / part / "image" / f"{part}1.png")
            write(tmp_path / part / "label" / f"{part}1.png")
        found = find(tmp_path).samples
        assert [(s.name, s.split) for s in found] == [
            ("train1", "train"),
            ("val1", "val"),
            ("test1", "test"),
        ]

    def test_test_images_without_masks_are_no_samples(self, tmp_path):
        write(tmp_path / "train" / "image" / "1.png")
        write(tmp_path / "train" / "label" / "1.png")
        write(tmp_path / "test" / "2.png")
        found = find(tmp_path)
        assert names(found.samples) == ["1"]
        assert found.samples[0].split == ""
        assert found.problems == ()

    def test_every_problem_is_listed_at_once(self, tmp_path):
        for name in ("1.png", "2.png", "2.bmp", "3.png"):
            write(tmp_path / "train" / "image" / name)
        for name in ("1.png", "2.png", "4.png"):
            write(tmp_path / "train" / "label" / name)
        problems = "\n".join(find(tmp_path).problems)
        assert "2.*: 2 images share this stem; rename one." in problems
        assert "3.png: there is no mask of the same name" in problems
        assert "4.png: there is no image of the same name" in problems

    def test_missing_folder_is_a_problem_that_names_it(self, tmp_path):
        (problem, _) = find(tmp_path).problems
        assert f"{tmp_path}/train/image: there is no such folder" in problem

    def test_folder_without_pictures_is_a_problem(self, tmp_path):
        for name in ("image", "label"):
            (tmp_path / "train" / name).mkdir(parents=True)
        assert "holds no pictures" in find(tmp_path).problems[0]


class TestNames:
    def test_in_several_parts_are_told_apart(self, tmp_path):
        for part in ("train", "val", "test"):
            for name in ("0", f"{part}1"):
                write(tmp_path / part / "image" / f"{name}.png")
                write(tmp_path / part / "label" / f"{name}.png")
        found = [(s.name, s.image.path.parts[-3]) for s in find(tmp_path).samples]
        assert found == [
            ("train_0", "train"),
            ("train1", "train"),
            ("val_0", "val"),
            ("val1", "val"),
            ("test_0", "test"),
            ("test1", "test"),
        ]

    def test_that_look_the_same_are_pairs_whoever_wrote_them(self, tmp_path):
        # On a Mac "\u00e4" is "a" and two dots.
        write(tmp_path / "image" / "Pr\u00e4parat.png")
        write(tmp_path / "label" / "Pra\u0308parat.png")
        for layout, text in (("folders", ""), ("csv", "image,mask\nimage/{0},label/{0}\n")):
            (tmp_path / "samples.csv").write_text(text.format("Pr\u00e4parat.png"))
            found = find(tmp_path, layout)
            assert found.problems == ()
            assert names(found.samples) == ["Pr\u00e4parat"]
            assert found.samples[0].mask[0].path.exists()

    def test_two_that_look_the_same_are_a_problem(self, tmp_path):
        for name in ("\u00e4", "a\u0308"):
            write(tmp_path / "image" / f"{name}.png")
        write(tmp_path / "label" / "\u00e4.png")
        assert "2 images share this stem" in find(tmp_path).problems[0]

    @pytest.mark.skipif(sys.platform != "linux", reason="Other systems have no such names.")
    def test_that_are_no_text_are_written_as_text(self, tmp_path):
        # As an old archive leaves them, in Latin-1; and one with a line break.
        for name in (b"zelle_\xe4_0.png", b"a\nb.png"):
            for folder in ("image", "label"):
                write(tmp_path / folder / "x.png")
                (tmp_path / folder / "x.png").rename(tmp_path / folder / os.fsdecode(name))
        found = find(tmp_path)
        assert found.problems == ()
        assert sorted(names(found.samples)) == ["a%0Ab", "zelle_%E4_0"]
        assert all(sample.image.path.exists() for sample in found.samples)
        survey.fingerprint(found.samples)

    def test_that_are_long_leave_room_for_what_is_put_behind_them(self, tmp_path):
        # Of 240 bytes each, and different at the end alone.
        for number in ("000", "001"):
            for folder in ("image", "label"):
                write(tmp_path / folder / ("\u7d30" * 79 + number + ".png"))
        found = names(find(tmp_path).samples)
        assert len(set(found)) == 2
        assert all(name.startswith("\u7d30" * 40) for name in found)
        assert all(len(name.encode()) <= 160 for name in found)

    def test_links_that_lead_nowhere_are_one_problem(self, tmp_path):
        write(tmp_path / "label" / "0.png")
        write(tmp_path / "image" / "0.png")
        for number in (1, 2):
            (tmp_path / "image" / f"{number}.png").symlink_to(tmp_path / "none.png")
        (problem,) = find(tmp_path).problems
        assert "2 link(s) there lead to no file, such as 1.png" in problem


class TestOneFolder:
    def test_without_a_suffix_an_image_is_not_taken_for_its_own_mask(self, tmp_path):
        write(tmp_path / "x" / "a.png")
        found = find(tmp_path, image_folder="x", mask_folder="x")
        assert found.samples == ()
        assert "be its own mask" in found.problems[0]


class TestPagesOfFiles:
    STACK = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)

    @pytest.fixture(params=["folders", "voc", "csv"])
    def folder(self, request, tmp_path):
        """A layout and a data folder of it with a stack of 3 pages and a single picture."""
        image_dir, mask_dir = {"voc": ("JPEGImages", "SegmentationClass")}.get(
            request.param, ("image", "label")
        )
        for name, pixels in (("vol", self.STACK), ("one", self.STACK[0])):
            for each in (image_dir, mask_dir):
                (tmp_path / each).mkdir(exist_ok=True)
                tifffile.imwrite(tmp_path / each / f"{name}.tif", pixels, photometric="minisblack")
        table = "image,mask\nimage/one.tif,label/one.tif\nimage/vol.tif,label/vol.tif\n"
        (tmp_path / "samples.csv").write_text(table)
        return request.param, tmp_path, tmp_path / mask_dir

    def test_are_samples_of_one_group(self, folder):
        layout, data_dir, _ = folder
        found = find(data_dir, layout)
        assert found.problems == ()
        assert names(found.samples) == ["one", "vol_000", "vol_001", "vol_002"]
        assert [sample.group for sample in found.samples] == ["", "vol", "vol", "vol"]
        assert [sample.image.page for sample in found.samples] == [0, 0, 1, 2]
        assert [sample.mask[0].page for sample in found.samples] == [0, 0, 1, 2]

    def test_of_image_and_mask_must_be_equally_many(self, folder):
        layout, data_dir, mask_dir = folder
        tifffile.imwrite(mask_dir / "vol.tif", self.STACK[:2], photometric="minisblack")
        found = find(data_dir, layout)
        assert names(found.samples) == ["one"]
        assert len(found.problems) == 1
        assert "vol.tif: has 3 page(s), its mask 2; they must" in found.problems[0]

    def test_table_may_name_one(self, tmp_path):
        tifffile.imwrite(tmp_path / "vol.tif", self.STACK, photometric="minisblack")
        (tmp_path / "samples.csv").write_text("image,mask,page\nvol.tif,vol.tif,1\n")
        found = find(tmp_path, "csv")
        assert names(found.samples) == ["vol_001"]
        assert found.samples[0].mask == (Source(tmp_path / "vol.tif", 1),)


class TestGroups:
    def test_first_group_of_the_pattern_is_the_group(self, tmp_path):
        for name in ("sub-rat1_a", "sub-rat12_b"):
            write(tmp_path / "image" / f"{name}.png")
            write(tmp_path / "label" / f"{name}.png")
        found = find(tmp_path, group_pattern=r"sub-(rat\d+)_").samples
        assert [sample.group for sample in found] == ["rat1", "rat12"]
        found = find(tmp_path, group_pattern=r"rat\d+").samples
        assert [sample.group for sample in found] == ["rat1", "rat12"]

    def test_name_without_it_is_a_problem_and_a_bad_pattern_an_error(self, tmp_path):
        write(tmp_path / "image" / "a.png")
        write(tmp_path / "label" / "a.png")
        assert "is not in its name" in find(tmp_path, group_pattern="rat").problems[0]
        with pytest.raises(UserError, match="is no regular expression"):
            find(tmp_path, group_pattern="(")

    def test_optional_group_that_is_absent_is_a_problem(self, tmp_path):
        for name in ("a_1", "1"):
            write(tmp_path / "image" / f"{name}.png")
            write(tmp_path / "label" / f"{name}.png")
        found = find(tmp_path, group_pattern=r"(a_)?\d")
        assert [sample.group for sample in found.samples] == ["a_"]
        assert "1.png: `group_pattern`" in found.problems[0]


class TestVoc:
    def make(self, folder, *stems, **lists):
        for stem in stems:
            write(folder / "JPEGImages" / f"{stem}.png")
            write(folder / "SegmentationClass" / f"{stem}.png")
        sets = folder / "ImageSets" / "Segmentation"
        for part, text in lists.items():
            sets.mkdir(parents=True, exist_ok=True)
            (sets / f"{part}.txt").write_bytes(text)

    def test_names_with_spaces_are_read_back_from_lists(self, tmp_path):
        self.make(tmp_path, "slice 1", "slice 2")
        first, second = find(tmp_path, "voc").samples
        write_voc_lists(tmp_path, [first], [second])
        found = find(tmp_path, "voc")
        assert found.problems == ()
        assert [(s.name, s.split) for s in found.samples] == [
            ("slice 1", "train"),
            ("slice 2", "val"),
        ]

    def test_name_in_two_lists_is_a_problem(self, tmp_path):
        self.make(tmp_path, "a", train=b"a\n", val=b"a\n")
        found = find(tmp_path, "voc")
        assert [(s.name, s.split) for s in found.samples] == [("a", "train")]
        (problem,) = found.problems
        assert "val.txt: 'a' is in train.txt already" in problem

    def test_list_that_is_no_text_is_a_problem(self, tmp_path):
        self.make(tmp_path, "a", train=b"\xff\xfe")
        assert "train.txt: cannot be read as text" in find(tmp_path, "voc").problems[0]

    def test_name_in_a_list_without_pictures_is_a_problem(self, tmp_path):
        write(tmp_path / "JPEGImages" / "a.png")
        write(tmp_path / "SegmentationClass" / "a.png")
        lists = tmp_path / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True)
        (lists / "train.txt").write_text("a\nb\n")
        found = find(tmp_path, "voc")
        assert names(found.samples) == ["a"]
        assert "'b' has no picture" in found.problems[0]

    def test_names_in_lists_may_have_their_suffixes(self, tmp_path):
        for folder in ("JPEGImages", "SegmentationClass"):
            write(tmp_path / folder / "a.png")
            write(tmp_path / folder / "b.jpg.png")
        lists = tmp_path / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True)
        # The picture of the second is called so with its suffix.
        (lists / "train.txt").write_text("a.png\nb.jpg\n")
        found = find(tmp_path, "voc")
        assert found.problems == found.notes == ()
        assert names(found.samples) == ["a", "b.jpg"]

    def test_lists_that_are_there_stay(self, tmp_path):
        lists = tmp_path / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True)
        (lists / "train.txt").write_text("mine\n")
        write_voc_lists(tmp_path, [], [])
        assert (lists / "train.txt").read_text() == "mine\n"
        assert (lists / "val.txt").exists()


class TestCsv:
    def problems(self, folder, *rows, header="image,mask,split,page"):
        (folder / "samples.csv").write_text("\n".join([header, *rows]))
        return "\n".join(find(folder, "csv").problems)

    @pytest.mark.parametrize("path", ["../a.png", "/etc/hostname", "x/../../a.png"])
    def test_path_that_leaves_the_folder_is_refused(self, tmp_path, path):
        write(tmp_path / "a.png")
        (tmp_path / "data").mkdir()
        assert f"{path!r} leaves the data folder" in self.problems(
            tmp_path / "data", f"{path},{path}"
        )

    def test_path_outside_is_taken_if_asked(self, tmp_path):
        write(tmp_path / "cache" / "a.png")
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "link.png").symlink_to(tmp_path / "cache" / "a.png")
        for cell in ("link.png", "../cache/a.png", tmp_path / "cache" / "a.png"):
            row = f"{cell},{cell}"
            assert "leaves the data folder" in self.problems(tmp_path / "data", row)
            found = find(tmp_path / "data", "csv", outside_paths=True)
            assert found.problems == ()
            assert found.samples[0].image.path.samefile(tmp_path / "cache" / "a.png")

    def test_what_leads_nowhere_or_in_a_circle_is_named_by_its_line(self, tmp_path):
        write(tmp_path / "a.png")
        for name, target in (("x", "y"), ("y", "x"), ("z", "none")):
            (tmp_path / f"{name}.png").symlink_to(tmp_path / f"{target}.png")
        rows = ("x.png,a.png", "z.png,a.png", "a\0b.png,a.png", f"{'n' * 5000}.png,a.png")
        found = self.problems(tmp_path, *rows, f"a.png,a.png,,{'9' * 5000}").splitlines()
        words = ("'x.png'", "link that leads to no file", "NUL", "'nnn", "page '9999")
        for number, (problem, word) in enumerate(zip(found, words, strict=True), 2):
            assert f"line {number}: " in problem
            assert word in problem
            assert len(problem) < 800

    @pytest.mark.parametrize(
        "text",
        [
            "\ufeffimage;mask;split\r\nx/a.png;x/m.png;val\r\n",
            "image\tmask\tsplit\nx/a.png\tx/m.png\tval\n",
            "Image, Mask , SPLIT\nx/a.png, x/m.png , Validation\n",
            ",image,mask,split\n0,x\\a.png,x\\m.png,val\n",
            "image,mask,split,page\n\nx/a.png,x/m.png,val,0.0\n",
        ],
        ids=["excel", "tabs", "capitals", "windows", "pandas"],
    )
    def test_is_read_as_programs_write_it(self, tmp_path, text):
        for name in "am":
            write(tmp_path / "x" / f"{name}.png")
        (tmp_path / "samples.csv").write_text(text, newline="")
        found = find(tmp_path, "csv")
        assert found.problems == ()
        assert [(s.image.path, s.split) for s in found.samples] == [
            (tmp_path / "x" / "a.png", "val")
        ]

    def test_lines_are_those_of_the_file_also_after_empty_ones(self, tmp_path):
        assert "line 4: there is no file" in self.problems(tmp_path, "", "", "a.png,a.png")

    def test_wrong_rows_are_named_by_their_line(self, tmp_path):
        write(tmp_path / "a.png")
        found = self.problems(tmp_path, "a.png,b.png", "a.png,a.png,new", "a.png,a.png,,x")
        assert "line 2: there is no file" in found
        assert "line 3: split 'new' is none of train, val, valid" in found
        assert "line 4: page 'x' is no number" in found

    def test_missing_columns_and_files_are_said(self, tmp_path):
        found = self.problems(tmp_path, "1,2", header="a,b")
        assert "needs the columns image and mask" in found
        assert "It has 1 row(s); its columns are 'a', 'b'." in found
        assert "cannot be read" in find(tmp_path / "none.csv", "csv").problems[0]

    def test_names_that_repeat_are_told_apart(self, tmp_path):
        for folder in "xy":
            write(tmp_path / folder / "a.png")
        (tmp_path / "samples.csv").write_text("image,mask\nx/a.png,x/a.png\ny/a.png,y/a.png\n")
        assert names(find(tmp_path, "csv").samples) == ["a", "a_2"]

    def test_numbered_name_that_another_row_has_is_not_given_twice(self, tmp_path):
        for name in ("a", "a_2", "x/a"):
            write(tmp_path / f"{name}.png")
        rows = "a.png,a.png\na_2.png,a.png\nx/a.png,a.png\n"
        (tmp_path / "samples.csv").write_text(f"image,mask\n{rows}")
        assert names(find(tmp_path, "csv").samples) == ["a", "a_2", "a_3"]

    def test_empty_cell_is_said_to_be_empty(self, tmp_path):
        write(tmp_path / "a.png")
        found = self.problems(tmp_path, ",a.png", "a.png,", "a.png,a.png|")
        assert found.count("is empty; name a file") == 3


class TestStack:
    def test_other_numbers_of_pages_are_a_problem(self, tmp_path):
        cv2.imwritemulti(str(tmp_path / "image.tif"), [PICTURE] * 3)
        cv2.imwritemulti(str(tmp_path / "label.tif"), [PICTURE] * 2)
        (problem,) = find(tmp_path, "stack").problems
        assert "has 3 page(s), its masks 2" in problem

    def test_missing_stack_is_a_problem_that_names_those_there_are(self, tmp_path):
        cv2.imwrite(str(tmp_path / "volume.tif"), PICTURE)
        (problem,) = find(tmp_path, "stack", image_folder="volume").problems
        assert "label: there is no stack of this name" in problem
        assert "there are: volume.tif. Name one of them in `mask_folder`" in problem

    @pytest.mark.parametrize("suffix", ["", ".TIF"])
    def test_suffix_may_be_written_in_capitals_and_be_given_or_not(self, tmp_path, suffix):
        for name in ("image", "label"):
            cv2.imwritemulti(str(tmp_path / "x.tif"), [PICTURE] * 2)
            (tmp_path / "x.tif").rename(tmp_path / f"{name}.TIF")
        names = dict(image_folder=f"image{suffix}", mask_folder=f"label{suffix}")
        found = find(tmp_path, "stack", **names)
        assert found.problems == ()
        assert [sample.name for sample in found.samples] == ["0", "1"]


class TestObjects:
    """A folder for each image, with a mask for each object."""

    FLAGS: ClassVar = {
        "layout": "objects",
        "masks": "instances",
        "classes": "0:background,255:nucleus",
    }

    def test_masks_are_the_objects_of_their_image(self, tmp_path):
        image = np.arange(20, dtype=np.uint8).reshape(4, 5)
        for name, columns in (("10", [0]), ("9", [1, 3])):
            write(tmp_path / name / "images" / f"{name}.png", image)
            for column in columns:
                mask = np.zeros((4, 5), np.uint8)
                mask[:, column] = 255
                write(tmp_path / name / "masks" / f"{column}f.png", mask)
        nine, ten = decoded(tmp_path, **self.FLAGS)
        assert (nine.name, ten.name) == ("9", "10")
        np.testing.assert_array_equal(nine.image, image)
        np.testing.assert_array_equal(nine.instances[0], [0, 1, 0, 2, 0])
        np.testing.assert_array_equal(nine.mask[0], [0, 1, 0, 1, 0])
        # A single mask is one object, whatever its number.
        np.testing.assert_array_equal(ten.instances[0] > 0, [True, False, False, False, False])

    def test_parts_are_those_of_their_folders_and_test_images_need_no_masks(self, tmp_path):
        for place in ("train/a/images", "train/a/masks", "val/b/images", "val/b/masks"):
            write(tmp_path / place / "x.png")
        write(tmp_path / "test/c/images/x.png")
        found = find(tmp_path, "objects")
        assert found.problems == ()
        assert [(s.name, s.split) for s in found.samples] == [("a", "train"), ("b", "val")]

    def test_every_problem_is_listed_at_once(self, tmp_path):
        write(tmp_path / "a" / "images" / "1.png")
        write(tmp_path / "b" / "masks" / "1.png")
        for name in ("1.png", "2.png"):
            write(tmp_path / "c" / "images" / name)
        write(tmp_path / "c" / "masks" / "1.png")
        write(tmp_path / "d" / "images" / "1.png")
        (tmp_path / "d" / "masks").mkdir()
        found = find(tmp_path, "objects")
        assert found.samples == ()
        expected = ["a/masks: there", "b/images: there", "c/images: holds 2", "d/masks: holds no"]
        for problem, words in zip(found.problems, expected, strict=True):
            assert f"{tmp_path}/{words}" in problem
        (problem,) = find(tmp_path / "d" / "masks", "objects").problems
        assert "holds no folders" in problem


class TestFindImages:
    def test_folder_in_numeric_order(self, tmp_path):
        for name in ("10.png", "9.bmp"):
            write(tmp_path / name)
        assert [source.path.name for source in find_images(tmp_path)] == ["9.bmp", "10.png"]

    def test_link_that_leads_nowhere_is_told(self, tmp_path):
        write(tmp_path / "a.png")
        for name in ("b.png", "c.png"):
            (tmp_path / name).symlink_to(tmp_path / "none" / name)
        problems = []
        assert len(find_images(tmp_path, problems=problems)) == 1
        assert "2 link(s) there lead to no file, such as b.png" in problems[0]
        (tmp_path / "a.png").unlink()
        with pytest.raises(UserError, match=r"2 link\(s\)"):
            find_images(tmp_path / "*.png")

    def test_damaged_stack_is_told_of_when_its_turn_comes(self, tmp_path):
        (tmp_path / "a.tif").write_bytes(b"II*\0damaged")
        write(tmp_path / "b.png")
        names = [source.path.name for source in find_images(tmp_path)]
        assert names == ["a.tif", "b.png"]

    def test_file_glob_and_pages(self, tmp_path):
        write(tmp_path / "a1.png")
        write(tmp_path / "b1.png")
        cv2.imwritemulti(str(tmp_path / "s.tif"), [PICTURE] * 2)
        assert find_images(tmp_path / "a1.png") == [Source(tmp_path / "a1.png")]
        assert find_images(f"{tmp_path}/*1.png") == [
            Source(tmp_path / "a1.png"),
            Source(tmp_path / "b1.png"),
        ]
        pages = find_images(tmp_path / "s.tif")
        assert [source.page for source in pages] == [0, 1]

    def test_folder_with_brackets_in_its_name_is_a_folder(self, tmp_path):
        write(tmp_path / "set[1]" / "a.png")
        assert len(find_images(tmp_path / "set[1]")) == 1

    def test_glob_passes_over_what_is_no_picture(self, tmp_path):
        write(tmp_path / "a.png")
        (tmp_path / "notes.txt").write_text("x")
        (tmp_path / "old.tif").mkdir()
        assert find_images(tmp_path / "*") == [Source(tmp_path / "a.png")]

    def test_two_stars_are_folders_at_any_depth_and_brackets_may_be_a_name(self, tmp_path):
        for name in ("set[1]/a.png", "set[1]/b/c/a.png", "set[1]/b/.a.png"):
            write(tmp_path / name)
        # A circle: b/c/loop is the whole again.
        (tmp_path / "set[1]" / "b" / "c" / "loop").symlink_to(tmp_path)
        notes = []
        found = find_images(f"{tmp_path}/set[1]/**/*.png", notes=notes)
        paths = [str(source.path.relative_to(tmp_path)) for source in found]
        assert sorted(paths) == ["set[1]/a.png", "set[1]/b/c/a.png"]
        assert "1 link(s) to folders are not followed" in notes[0]

    def test_nothing_to_predict_is_refused(self, tmp_path):
        with pytest.raises(UserError, match="holds no pictures"):
            find_images(tmp_path)
        with pytest.raises(UserError, match="no such folder"):
            find_images(tmp_path / "none")

    def test_tiff_larger_than_is_read_at_once_is_an_image(self, tmp_path, monkeypatch):
        write(tmp_path / "a.tif")
        monkeypatch.setattr(limits, "memory_bytes", lambda: 1)
        assert find_images(tmp_path) == [Source(tmp_path / "a.tif")]

    def test_damaged_tiff_is_left_to_its_reader(self, tmp_path):
        write(tmp_path / "a.png")
        (tmp_path / "b.tif").write_bytes(b"no picture")
        assert len(find_images(tmp_path)) == 2

    def test_globs_are_recursive_and_folders_with_brackets_are_taken_as_called(self, tmp_path):
        paths = [tmp_path / "exp [1]" / name for name in ("a.png", "b/c.png", "b/d/e.png")]
        for path in paths:
            write(path)
        assert find_images(tmp_path / "exp [1]" / "*.png") == [Source(paths[0])]
        assert find_images(tmp_path / "exp [1]" / "**" / "*.png") == list(map(Source, paths))
        assert find_images(tmp_path / "**" / "[ce].png") == list(map(Source, paths[1:]))

    @pytest.mark.skipif(sys.version_info >= (3, 13), reason="then it is taken for *.png")
    def test_glob_that_is_none_is_refused(self, tmp_path):
        with pytest.raises(UserError, match="is no pattern of names"):
            find_images(tmp_path / "**.png")
