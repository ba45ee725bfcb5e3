import collections
import json

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from unet_core.data import survey
from unet_core.data.classes import ClassMap
from unet_core.data.intensities import Scaling
from unet_core.data.reader import Reader
from unet_core.data.samples import Sample, Source
from unet_core.errors import UserError

RANGE = Scaling.parse("range")
CLASSES = ClassMap.parse("0:a,1|2:b,9:ignore")


def write(folder, name, image, mask, mask_suffix=".png"):
    cv2.imwrite(str(folder / f"{name}.png"), image)
    cv2.imwrite(str(folder / f"{name}_mask{mask_suffix}"), mask)
    mask_source = Source(folder / f"{name}_mask{mask_suffix}")
    return Sample(name, Source(folder / f"{name}.png"), (mask_source,))


def picture(value=0, size=(6, 8), dtype=np.uint8):
    return np.full(size, value, dtype)


def memory(path=None, classes=CLASSES):
    return survey.Memory(path, classes)


class TestReadHeaders:
    def headers(self, *samples, scaling=RANGE, channels=1):
        return survey.read_headers(samples, scaling, CLASSES, channels=channels)

    def test_sound_samples_have_shapes_and_kinds(self, tmp_path):
        a = write(tmp_path, "a", picture(), picture())
        b = write(tmp_path, "b", picture(size=(5, 4, 3)), picture(size=(5, 4)))
        found = self.headers(a, b)
        assert found.shapes == {a: (6, 8), b: (5, 4)}
        assert dict(found.kinds) == {
            "8x6 PNG uint8, 1 channel(s)": 1,
            "4x5 PNG uint8, 3 channel(s): RGB to grey": 1,
        }
        assert found.problems == ()

    def test_bytes_are_kept_unless_an_image_or_the_scaling_needs_more(self, tmp_path):
        a = write(tmp_path, "a", picture(), picture())
        b = write(tmp_path, "b", picture(dtype=np.uint16), picture())
        assert self.headers(a).dtype == np.uint8
        assert self.headers(a, b).dtype == np.float32
        assert self.headers(a, scaling=Scaling.parse("zscore")).dtype == np.float32

    def test_memory_needed_is_that_of_images_and_masks(self, tmp_path):
        a = write(tmp_path, "a", picture(), picture())
        assert self.headers(a).decoded_bytes(1) == 6 * 8 * 2
        assert self.headers(a, scaling=Scaling.parse("zscore")).decoded_bytes(3) == 6 * 8 * 13

    def test_images_that_training_would_refuse_are_told_by_their_headers(self, tmp_path):
        numbers = {"a": np.int32, "b": np.float64}
        samples = [write(tmp_path, name, picture(), picture()) for name in "abcd"]
        for name, dtype in numbers.items():
            tifffile.imwrite(tmp_path / f"{name}.png", picture(dtype=dtype))
        several = {"photometric": "minisblack", "planarconfig": "contig"}
        tifffile.imwrite(tmp_path / "c.png", picture(size=(6, 8, 2)), **several)
        tifffile.imwrite(tmp_path / "d.png", picture(dtype=np.int16))
        found = self.headers(*samples)
        assert list(found.shapes) == [samples[3]]
        assert "holds numbers of the kind int32" in found.problems[0]
        assert "holds numbers of the kind float64" in found.problems[1]
        assert "has 2 channel(s), and the network takes 1 (`channels`)" in found.problems[2]
        assert dict(found.kinds) == {"8x6 TIFF int16, 1 channel(s): to float32": 1}
        assert found.dtype == np.float32

    def test_page_that_is_not_read_is_named_and_the_others_are_sound(self, tmp_path):
        path = tmp_path / "stack.tif"
        with tifffile.TiffWriter(path) as file:
            for kind in (np.uint8, np.uint8, np.float64):
                file.write(picture(dtype=kind), photometric="minisblack", metadata=None)
        pages = [Sample(f"{n}", Source(path, n), (Source(path, n),)) for n in range(3)]
        found = self.headers(*pages)
        assert list(found.shapes) == pages[:2]
        (problem,) = found.problems
        assert problem.startswith(f"{path}, page 3: holds numbers of the kind float64")

    def test_every_problem_is_listed_and_the_sound_are_left(self, tmp_path):
        good = write(tmp_path, "good", picture(), picture())
        sizes = write(tmp_path, "sizes", picture(), picture(size=(6, 7)))
        jpeg = write(tmp_path, "jpeg", picture(), picture(), ".jpg")
        broken = write(tmp_path, "broken", picture(), picture())
        (tmp_path / "broken.png").write_bytes(b"no")
        paged = Sample("paged", Source(tmp_path / "good.png", 3), good.mask)
        found = self.headers(good, sizes, jpeg, broken, paged)
        problems = "\n".join(found.problems)
        assert list(found.shapes) == [good]
        assert len(found.problems) == 4
        assert "sizes.png: is 8x6 pixels, its mask 7x6; both must have one size." in problems
        assert "jpeg_mask.jpg: is a JPEG; its compression changes class values" in problems
        assert "broken.png: cannot be decoded" in problems
        assert "good.png: there is no page 4, counted from 1; the file has fewer." in problems


class TestPalettes:
    """Masks that show the same picture by other numbers."""

    def samples(self, tmp_path, palettes, image=None):
        found = []
        for number, palette in enumerate(palettes):
            index = np.zeros((6, 8), np.uint8)
            index[:2] = 1
            if palette[:3] == [255, 0, 0]:
                index = 1 - index
            mask = Image.fromarray(index)
            mask.putpalette(palette)
            mask.save(tmp_path / f"{number}_mask.png")
            cv2.imwrite(str(tmp_path / f"{number}.png"), picture())
            source = Source(tmp_path / f"{number}_mask.png")
            found.append(Sample(str(number), Source(tmp_path / f"{number}.png"), (source,)))
        return found

    def headers(self, samples, classes):
        return survey.read_headers(samples, RANGE, ClassMap.parse(classes), channels=1)

    BLACK_RED, RED_BLACK = [0, 0, 0, 255, 0, 0], [255, 0, 0, 0, 0, 0]

    def test_that_differ_are_a_problem_where_numbers_are_classes(self, tmp_path):
        samples = self.samples(tmp_path, [self.BLACK_RED, self.BLACK_RED, self.RED_BLACK])
        found = self.headers(samples, "0:background,1:cell")
        assert len(found.problems) == 1
        assert "2_mask.png: shows 0 in #ff0000 by its palette, and" in found.problems[0]
        assert "0_mask.png in #000000" in found.problems[0]

    def test_are_read_through_where_colours_are_classes(self, tmp_path):
        samples = self.samples(tmp_path, [self.BLACK_RED, self.RED_BLACK])
        classes = ClassMap.parse("#000000:background,#ff0000:cell")
        assert self.headers(samples, str(classes)).problems == ()
        read = Reader(classes, RANGE)
        for sample in samples:
            # Two rows of 8 are red.
            assert read.mask(sample).sum() == 16
            assert (read.mask(sample)[:2] == 1).all()

    def test_may_differ_in_what_no_class_is(self, tmp_path):
        longer = [*self.BLACK_RED, 9, 9, 9]
        other = [*self.BLACK_RED, 7, 7, 7]
        found = self.headers(self.samples(tmp_path, [longer, other]), "0:background,1:cell")
        assert found.problems == ()


class TestReadPixels:
    def pixels(self, *samples):
        return survey.read_pixels(samples, Reader(CLASSES, RANGE), memory=memory())

    def test_values_and_classes_are_counted_without_the_ignored(self, tmp_path):
        mask = np.array([[0, 1, 2, 9, 9]], np.uint8)
        a = write(tmp_path, "a", picture(size=(1, 5)), mask)
        found = self.pixels(a)
        assert dict(found.values) == {0: 1, 1: 1, 2: 1, 9: 2}
        assert found.counts[a].tolist() == [1, 2]
        assert found.problems == ()

    def test_files_for_single_classes_are_counted_by_class_and_not_by_their_values(self, tmp_path):
        sample = write(
            tmp_path, "a", picture(size=(1, 5)), np.array([[255, 255, 0, 0, 0]], np.uint8)
        )
        second = tmp_path / "second.png"
        cv2.imwrite(str(second), np.array([[0, 0, 0, 0, 255]], np.uint8))
        sample = Sample("a", sample.image, (*sample.mask, Source(second)))
        classes = ClassMap.parse("0:ground,1:cell,2:nucleus")
        read, known = Reader(classes, RANGE), memory(classes=classes)
        found = survey.read_pixels([sample], read, memory=known)
        assert (found.problems, found.missing) == ((), ())
        headers = survey.read_headers([sample], RANGE, classes, channels=1)
        text = survey.describe([sample], headers, found.values, classes)
        assert [line.split() for line in text.splitlines()[-4:]] == [
            ["5", "mask", "pixel(s)"],
            ["ground", "2", "40.00%"],
            ["cell", "2", "40.00%"],
            ["nucleus", "1", "20.00%"],
        ]

    def test_unknown_values_are_listed_with_counts_and_the_way_out(self, tmp_path):
        a = write(tmp_path, "a", picture(size=(1, 5)), np.array([[0, 0, 1, 1, 7]], np.uint8))
        (problem,) = self.pixels(a).problems
        assert (
            "a_mask.png: holds values outside the class map 0:a,1|2:b,9:ignore: 7 (1 px)" in problem
        )
        # 7 lies nearer to 9, the value to ignore, than to 2.
        assert "With `stray_values` nearest they count: 7 as ignore." in problem

    def test_coloured_mask_where_numbers_are_classes_is_named(self, tmp_path):
        mask = np.zeros((6, 8, 3), np.uint8)
        mask[2, 3] = (0, 0, 9)
        (problem,) = self.pixels(write(tmp_path, "a", picture(), mask)).problems
        assert "a_mask.png: The mask is coloured (1 pixel(s) are not grey)" in problem

    def test_values_of_many_objects_are_named_as_such(self, tmp_path):
        mask = np.arange(48, dtype=np.uint8).reshape(6, 8)
        (problem,) = self.pixels(write(tmp_path, "a", picture(), mask)).problems[:1]
        assert "and 36 more" in problem
        assert "numbers of single objects, set `masks` to instances" in problem

    def test_as_many_pixels_as_the_classes_have_are_not_taken_for_strays(self, tmp_path):
        # Five objects of 4 px on a ground of 28, one of them numbered as class b: the nearest value
        # to 3 and 4 would be 2, to 8 and 12 it would be 9, which counts nowhere.
        mask = np.repeat([0] * 7 + [1, 3, 4, 8, 12], 4).astype(np.uint8).reshape(6, 8)
        (problem,) = self.pixels(write(tmp_path, "a", picture(), mask)).problems[:1]
        assert "`stray_values`" not in problem
        assert "list their values in `classes`" in problem
        assert "set `masks` to instances" in problem

    def test_class_that_never_occurs_is_told_apart_from_problems(self, tmp_path):
        found = self.pixels(write(tmp_path, "a", picture(), picture(0)))
        assert found.problems == ()
        (problem,) = found.missing
        assert "No mask has a pixel of class b" in problem

    def test_undecodable_image_is_a_problem_and_others_are_counted(self, tmp_path):
        a = write(tmp_path, "a", picture(), picture(0))
        b = write(tmp_path, "b", picture(), picture(1))
        content = (tmp_path / "a.png").read_bytes()
        (tmp_path / "a.png").write_bytes(content[:-9])
        found = self.pixels(a, b)
        assert list(found.counts) == [b]
        assert any("a.png: " in problem for problem in found.problems)


class TestMemory:
    def test_mask_is_counted_once_until_it_changes(self, tmp_path, monkeypatch):
        sample = write(tmp_path, "a", picture(), picture(1))
        read, path = Reader(CLASSES, RANGE), tmp_path / "known.json"
        first = memory(path)
        expected = survey.count_classes([sample], read, memory=first)[sample].tolist()
        first.store()
        assert expected == [0, 48]

        with monkeypatch.context() as patch:
            patch.setattr(survey.images, "read_mask", None)
            again = survey.count_classes([sample], read, memory=memory(path))
            assert again[sample].tolist() == expected
        write(tmp_path, "a", picture(), np.eye(6, 8, dtype=np.uint8))
        changed = survey.count_classes([sample], read, memory=memory(path))
        assert changed[sample].tolist() == [42, 6]

    def test_under_another_class_map_it_is_counted_again(self, tmp_path):
        sample = write(tmp_path, "a", picture(), picture(1))
        path = tmp_path / "known.json"
        first = memory(path)
        survey.count_classes([sample], Reader(CLASSES, RANGE), memory=first)
        first.store()
        assert memory(path, ClassMap.parse("0:x,1:y")).get(sample.mask[0]) is None

    def test_file_of_somebody_else_is_refused_and_stays(self, tmp_path):
        path = tmp_path / "known.json"
        path.write_text('{"mine": 1}')
        with pytest.raises(UserError, match=r"known\.json: cannot be read as .* `classes`"):
            memory(path)
        assert path.read_text() == '{"mine": 1}'

    def test_what_was_stored_without_a_format_is_read(self, tmp_path):
        sample = write(tmp_path, "a", picture(), picture(1))
        first = memory(tmp_path / "known.json")
        survey.count_classes([sample], Reader(CLASSES, RANGE), memory=first)
        first.store()
        stored = json.loads((tmp_path / "known.json").read_text())
        assert stored.pop("format") == 1
        (tmp_path / "known.json").write_text(json.dumps(stored))
        assert memory(tmp_path / "known.json").get(sample.mask[0]) == {1: 48}

    def test_colours_and_values_below_zero_come_back_as_they_were(self, tmp_path):
        sample = write(tmp_path, "a", picture(), picture(1))
        first = memory(tmp_path / "known.json")
        first.put(sample.mask[0], {"#00ff10": 5, -3: 2, 7: 1})
        first.store()
        found = memory(tmp_path / "known.json").get(sample.mask[0])
        assert found == {"#00ff10": 5, -3: 2, 7: 1}


class TestCountClasses:
    def test_stray_values_count_for_the_nearest_class(self, tmp_path):
        classes = ClassMap.parse("0:a,10:b", nearest=True)
        sample = write(tmp_path, "a", picture(size=(1, 3)), np.array([[0, 9, 10]], np.uint8))
        found = survey.count_classes(
            [sample], Reader(classes, RANGE), memory=memory(classes=classes)
        )
        assert found[sample].tolist() == [1, 2]

    def test_unknown_value_is_an_error(self, tmp_path):
        sample = write(tmp_path, "a", picture(), picture(7))
        with pytest.raises(UserError, match="7 \\(48 px\\)"):
            survey.count_classes([sample], Reader(CLASSES, RANGE), memory=memory())


class TestFingerprint:
    def test_contents_names_and_order_count_and_places_do_not(self, tmp_path):
        (tmp_path / "other").mkdir()
        a = write(tmp_path, "a", picture(), picture())
        same = write(tmp_path / "other", "a", picture(), picture())
        b = write(tmp_path, "b", picture(), picture(1))
        base = survey.fingerprint([a, b])
        assert survey.fingerprint([same, b]) == base
        assert survey.fingerprint([b, a]) != base
        assert survey.fingerprint([a]) != base
        write(tmp_path, "a", picture(), picture(1))
        assert survey.fingerprint([a, b]) != base

    def test_of_large_sets_size_and_time_count(self, tmp_path, monkeypatch):
        monkeypatch.setattr(survey, "_HASHED_BYTES", 1)
        a = write(tmp_path, "a", picture(), picture())
        base = survey.fingerprint([a])
        assert survey.fingerprint([a]) == base
        write(tmp_path, "a", picture(), picture(size=(60, 80)))
        assert survey.fingerprint([a]) != base


class TestDescribe:
    def test_values_that_are_not_listed_are_counted_by_what_becomes_of_them(self, tmp_path):
        # Of 2 to 40, those to 20 are nearer to 0, or as near; 21 to 40 are nearer to 40.
        classes = ClassMap.parse("0:a,40:b", nearest=True)
        headers = survey.Headers({}, np.dtype(np.uint8), collections.Counter(), ())
        text = survey.describe([], headers, dict.fromkeys(range(41), 1), classes)
        assert text.splitlines()[-1] == "  39 values that are not listed in all: 20 as a, 19 as b"
        # Beside that line, those of both classes and twelve more tell of values.
        assert sum(line.startswith("  value") for line in text.splitlines()) == 14

    def test_table_shows_parts_groups_kinds_and_values(self, tmp_path):
        a = write(tmp_path, "a", picture(), picture(1))
        samples = [Sample(a.name, a.image, a.mask, "rat1", "train")]
        headers = survey.read_headers(samples, RANGE, CLASSES, channels=1)
        text = survey.describe(samples, headers, {1: 36, 9: 12}, CLASSES)
        assert "1 sound pair(s)" in text
        assert "1 in train" in text
        assert "1 group(s): rat1 (1)" in text
        assert "8x6 PNG uint8, 1 channel(s)" in text
        assert [line.split() for line in text.splitlines()[-2:]] == [
            ["value", "1", "b", "36", "75.00%"],
            ["value", "9", "ignore", "12", "25.00%"],
        ]


class TestListProblems:
    def test_one_cause_is_one_line_with_a_count(self):
        problems = [f"{n}.png: is {n}x{n} pixels, its mask 9x9." for n in range(1, 6)]
        text = survey.list_problems("data", [*problems, "z.png: cannot be decoded."])
        assert text.splitlines() == [
            "data: 6 problem(s) with the data:",
            "  1. 1.png: is 1x1 pixels, its mask 9x9.",
            "     So also with 4 more: 2.png, 3.png, 4.png, ...",
            "  2. z.png: cannot be decoded.",
        ]

    def test_causes_have_their_first_problem_and_the_files_of_others(self):
        found = survey.by_cause(["a 1: is 3 px.", "b.png: is gone.", "a 2: is 4 px."])
        assert found == [
            ("a 1: is 3 px.", "So also with 1 more: a 2", 2),
            ("b.png: is gone.", "", 1),
        ]

    def test_has_at_most_20_lines(self):
        words = [f"{a}{b}" for a in "abcdefgh" for b in "abcd"]
        problems = [f"{name}.png: has {word}" for word in words for name in "xyz"]
        lines = survey.list_problems("data", problems).splitlines()
        assert len(lines) == 20
        # 32 causes of three problems each, of which 9 are shown.
        assert lines[-1] == "  and 69 more, of 23 other causes"


class TestRanges:
    def test_are_those_of_the_files_and_said_with_the_scaling(self, tmp_path):
        # 3000 of 65535 are 4.6 %.
        for name, values in (("a", [100, 200]), ("b", [150, 3100])):
            pixels = np.array(values, np.uint16).repeat(24).reshape(6, 8)
            tifffile.imwrite(tmp_path / f"{name}.tif", pixels)
        samples = [Sample(name, Source(tmp_path / f"{name}.tif"), ()) for name in "ab"]
        samples.append(Sample("gone", Source(tmp_path / "gone.tif"), ()))
        found, count = survey.read_ranges(samples)
        assert (found, count) == ({"uint16": (100, 3100)}, 3)
        assert survey.describe_ranges(found, 2, RANGE.resolved(found)) == (
            "Intensities: uint16 from 100 to 3100, 4.6% of 0 to 65535, in 2 image(s); scaled by "
            "--intensities=range:100,3100.\n"
        )

    def test_beyond_the_type_are_no_share_of_it(self):
        text = survey.describe_ranges({"float32": (-840.0, 1220.0)}, 4, RANGE)
        assert text.startswith("Intensities: float32 from -840 to 1220, in 4 image(s);")

    def test_of_many_every_kth_is_looked_at(self, tmp_path):
        cv2.imwrite(str(tmp_path / "a.png"), picture())
        samples = [Sample(str(n), Source(tmp_path / "a.png"), ()) for n in range(401)]
        # Every third: 401 / 3, rounded up.
        assert survey.read_ranges(samples)[1] == 134
