import numpy as np
import pytest

from unet_core.conventions import IGNORED
from unet_core.data.classes import ClassMap
from unet_core.errors import UserError

AXONS = "0:background,127|128:myelin,255:axon"
CARS = "#000000:background,#ff0000|#fe0000:car,#0000ff:sky,#808080:ignore"


def colours(*rows):
    """A mask [H, W, 3] of colours written as 0xrrggbb."""
    return np.array([[(v >> 16, v >> 8 & 255, v & 255) for v in row] for row in rows], np.uint8)


class TestParse:
    def test_classes_are_numbered_in_the_order_written(self):
        classes = ClassMap.parse("255:cell, 0:membrane,7: nucleus ")
        assert classes.mask_values == (255, 0, 7)
        assert classes.names == ("cell", "membrane", "nucleus")
        assert len(classes) == 3

    def test_class_may_have_several_values(self):
        classes = ClassMap.parse("0:background, 127 | 128 :myelin")
        assert classes.listed == ((0,), (127, 128))
        assert classes.mask_values == (0, 127)

    def test_ignored_values_are_no_class_wherever_they_stand(self):
        classes = ClassMap.parse("0:a,11|12:ignore,1:b")
        assert classes.names == ("a", "b")
        assert classes.ignored == (11, 12)

    def test_colours_are_told_from_numbers(self):
        classes = ClassMap.parse(CARS)
        assert classes.is_colour
        assert not ClassMap.parse(AXONS).is_colour
        assert classes.mask_values == ((0, 0, 0), (255, 0, 0), (0, 0, 255))

    @pytest.mark.parametrize(
        ("text", "written"),
        [
            (" 0:membrane , 255:cell", "0:membrane,255:cell"),
            (AXONS, AXONS),
            ("11 | 12:ignore,0:a,65535:b", "0:a,65535:b,11|12:ignore"),
            (CARS.upper().replace("IGNORE", "ignore"), None),
            (CARS, CARS),
        ],
    )
    def test_text_of_a_map_parses_to_the_same_map(self, text, written):
        classes = ClassMap.parse(text)
        assert written in (None, str(classes))
        assert ClassMap.parse(str(classes)) == classes

    @pytest.mark.parametrize(
        "entry",
        [
            "65536:b",
            "-1:b",
            "x:b",
            "1",
            "1:",
            ":b",
            "",
            "1.0:b",
            "²:b",
            "1|:b",
            "|:b",
            "#ff000:b",
            "#ff00000:b",
            "#gg0000:b",
        ],
    )
    def test_malformed_entry_is_named(self, entry):
        with pytest.raises(UserError, match="value:name with a value from 0 to 65535") as error:
            ClassMap.parse(f"0:a,{entry}")
        assert repr(entry) in str(error.value)

    @pytest.mark.parametrize(
        ("text", "twice"),
        [
            ("0:a,0:b", "value once; 0 occurs"),
            ("0:a,1|1:b", "value once; 1 occurs"),
            ("0:a,1:b,1:ignore", "value once; 1 occurs"),
            ("#ff0000:a,#FF0000:b", "value once; #ff0000 occurs"),
            ("0:a,1:a", "name once; a occurs"),
            ("0:a,1:b,2:ignore,3:ignore", "name once; ignore occurs"),
        ],
    )
    def test_repetition_is_named(self, text, twice):
        with pytest.raises(UserError, match=twice):
            ClassMap.parse(text)

    @pytest.mark.parametrize("text", ["0:a", "0:a,1:ignore"])
    def test_one_class_is_too_few(self, text):
        with pytest.raises(UserError, match=r"at least two classes and at most 255.* names 1"):
            ClassMap.parse(text)

    def test_ignored_id_leaves_room_for_255_classes(self):
        entries = [f"{value}:c{value}" for value in range(256)]
        assert len(ClassMap.parse(",".join(entries[:255]))) == 255
        with pytest.raises(UserError, match=r"at most 255.* names 256"):
            ClassMap.parse(",".join(entries))

    def test_numbers_and_colours_do_not_mix(self):
        with pytest.raises(UserError, match="mixes numbers and colours"):
            ClassMap.parse("0:a,#ff0000:b")


class TestOverlapping:
    CLASSES = ClassMap.parse("cells, nuclei")

    def test_names_alone_are_classes_that_may_overlap(self):
        assert self.CLASSES.overlapping
        assert not ClassMap.parse(AXONS).overlapping
        assert self.CLASSES.names == ("cells", "nuclei")
        assert self.CLASSES.mask_values == (255, 255)

    @pytest.mark.parametrize("text", ["cells", "cells,nuclei", "a,b,ignore"])
    def test_text_of_a_map_parses_to_the_same_map(self, text):
        assert str(ClassMap.parse(text)) == text
        assert ClassMap.parse(str(ClassMap.parse(text))) == ClassMap.parse(text)

    @pytest.mark.parametrize("text", ["", "a,", "a,b,c,d,e,f,g,h", "ignore", "ignore,a"])
    def test_other_than_one_to_seven_names_are_refused(self, text):
        with pytest.raises(UserError, match=r"1 to 7 names.*last `ignore`"):
            ClassMap.parse(text)

    def test_seven_classes_and_what_is_ignored_are_enough_for_a_byte(self):
        ids = ClassMap.parse("a,b,c,d,e,f,g").ids_of_binary([np.ones((1, 1), np.uint8)] * 7)
        assert ids.dtype == np.uint8
        assert ids[0, 0] == 127

    def test_id_is_the_sum_of_two_to_the_power_of_each_class(self):
        cells = np.array([[0, 255, 0, 1]], np.uint8)
        nuclei = np.array([[0, 0, 7, 255]], np.uint8)
        ids = self.CLASSES.ids_of_binary([cells, nuclei])
        np.testing.assert_array_equal(ids, [[0, 1, 2, 3]])
        np.testing.assert_array_equal(self.CLASSES.has(ids, 0), [[False, True, False, True]])
        np.testing.assert_array_equal(self.CLASSES.has(ids, 1), [[False, False, True, True]])
        np.testing.assert_array_equal(self.CLASSES.count(ids), [2, 2])

    def test_last_mask_may_say_what_is_ignored(self):
        classes = ClassMap.parse("cells,ignore")
        ids = classes.ids_of_binary([np.array([[255, 255, 0]]), np.array([[0, 255, 255]])])
        np.testing.assert_array_equal(ids, [[1, IGNORED, IGNORED]])
        np.testing.assert_array_equal(classes.has(ids, 0), [[True, False, False]])
        np.testing.assert_array_equal(classes.count(ids), [1])

    @pytest.mark.parametrize("number", [1, 3])
    def test_each_class_needs_a_mask(self, number):
        with pytest.raises(UserError, match=rf"{number} binary mask.*cells, nuclei.*mask_folder"):
            self.CLASSES.ids_of_binary([np.zeros((1, 1), np.uint8)] * number)

    def test_names_of_an_id_are_those_of_its_classes(self):
        found = [self.CLASSES.name_of(value) for value in (0, 1, 3, IGNORED)]
        assert found == ["no class", "cells", "cells + nuclei", "ignore"]

    def test_where_classes_overlap_their_colours_are_mixed(self):
        # The mean of (213, 94, 0) and (0, 114, 178), halves rounded to even.
        first, second = self.CLASSES.palette()
        assert self.CLASSES.colours() == [(0, 0, 0), first, second, (106, 104, 89)]
        assert ClassMap.parse(AXONS).colours() == ClassMap.parse(AXONS).palette()


class TestIds:
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
    def test_values_become_ids_in_the_order_of_the_map(self, dtype):
        classes = ClassMap.parse("255:cell,0:membrane,7:nucleus")
        ids = classes.ids(np.array([[0, 255], [7, 0]], dtype))
        assert ids.dtype == np.uint8
        np.testing.assert_array_equal(ids, [[1, 0], [2, 1]])

    def test_all_values_of_a_class_become_its_id(self):
        ids = ClassMap.parse(AXONS).ids(np.array([[0, 127, 128, 255]], np.uint8))
        np.testing.assert_array_equal(ids, [[0, 1, 1, 2]])

    def test_numbers_above_255_are_told_apart(self):
        ids = ClassMap.parse("0:a,256:b,65535:c").ids(np.array([[0, 256, 65535]], np.uint16))
        np.testing.assert_array_equal(ids, [[0, 1, 2]])

    def test_ignored_values_become_the_ignored_id(self):
        ids = ClassMap.parse("0:a,1:b,11|12:ignore").ids(np.array([[11, 1, 12]], np.uint8))
        np.testing.assert_array_equal(ids, [[IGNORED, 1, IGNORED]])

    def test_colours_become_ids(self):
        ids = ClassMap.parse(CARS).ids(colours([0x000000, 0xFE0000], [0x0000FF, 0x808080]))
        assert ids.dtype == np.uint8
        np.testing.assert_array_equal(ids, [[0, 1], [2, IGNORED]])

    def test_value_outside_the_map_is_named(self):
        with pytest.raises(UserError, match=r"map 0:a,1:b: 3 \(2 px\), 9 \(1 px\)\. Correct"):
            ClassMap.parse("0:a,1:b").ids(np.array([[0, 9], [3, 3]], np.uint8))

    def test_colour_outside_the_map_is_named(self):
        with pytest.raises(UserError, match=r": #00ff00 \(2 px\)\. Correct"):
            ClassMap.parse(CARS).ids(colours([0x00FF00, 0x00FF00]))

    @pytest.mark.parametrize("value", [-1, 70000])
    def test_number_that_no_map_can_list_is_unknown(self, value):
        with pytest.raises(UserError, match=rf": {value} \(1 px\)"):
            ClassMap.parse("0:a,1:b").ids(np.array([[0, value]], np.int32))

    def test_of_many_values_outside_the_map_eight_are_named(self):
        with pytest.raises(UserError, match=r": 2 \(1 px\), .*, 9 \(1 px\) and 40 more"):
            ClassMap.parse("0:a,1:b").ids(np.arange(50, dtype=np.uint16)[None])

    def test_last_of_255_classes_is_no_ignored_pixel(self):
        classes = ClassMap.parse(",".join(f"{value}:c{value}" for value in range(255)))
        np.testing.assert_array_equal(classes.ids(np.array([[0, 254]], np.uint8)), [[0, 254]])


class TestNearest:
    def test_stray_numbers_go_to_the_nearest_listed_and_ties_to_the_smaller(self):
        classes = ClassMap.parse("20:b,0:a,10:ignore", nearest=True)
        ids = classes.ids(np.array([[0, 5, 6, 15, 16, 255]], np.uint8))
        np.testing.assert_array_equal(ids, [[1, 1, IGNORED, IGNORED, 0, 0]])

    @pytest.mark.parametrize("dtype", [np.int32, np.int64])
    def test_numbers_beyond_all_listed_go_to_the_last(self, dtype):
        classes = ClassMap.parse("0:a,10:b", nearest=True)
        bounds = np.iinfo(np.int32)
        ids = classes.ids(np.array([[bounds.min, -1, 70000, bounds.max]], dtype))
        np.testing.assert_array_equal(ids, [[0, 0, 1, 1]])

    def test_stray_colours_go_to_the_nearest_in_space(self):
        # #a00000 is 160 from black and 94 from #fe0000; #7f0000 is 127 from both.
        # #900070: squares 33280 from black, 24644 from #fe0000, 41185 from blue, 16896 from grey.
        classes = ClassMap.parse(CARS, nearest=True)
        ids = classes.ids(colours([0xA00000, 0x7F0000, 0x900070, 0x0000F0]))
        np.testing.assert_array_equal(ids, [[1, 0, IGNORED, 2]])

    def test_stray_values_are_still_told_as_unknown(self):
        classes = ClassMap.parse("0:a,10:b", nearest=True)
        assert classes.unknown_values(np.array([[0, 4, 4]], np.uint8)) == {4: 2}


class TestKindsOfMasks:
    def test_grey_stored_as_rgb_fits_a_map_of_numbers(self):
        mask = np.dstack([np.array([[0, 128, 255]], np.uint8)] * 3)
        np.testing.assert_array_equal(ClassMap.parse(AXONS).ids(mask), [[0, 1, 2]])

    @pytest.mark.parametrize("method", ["ids", "count_values", "unknown_values"])
    def test_coloured_mask_is_refused_by_a_map_of_numbers(self, method):
        with pytest.raises(UserError, match=r"coloured \(1 pixel\(s\).*such as #000000:backgr"):
            getattr(ClassMap.parse(AXONS), method)(colours([0x000000, 0xFF00FF]))

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_grey_fits_a_map_of_colours(self, dtype):
        ids = ClassMap.parse(CARS).ids(np.array([[0, 128]], dtype))
        np.testing.assert_array_equal(ids, [[0, IGNORED]])

    def test_indices_of_a_palette_are_hinted_at(self):
        with pytest.raises(UserError, match=r"#010101 \(1 px\)\. The mask is grey, or a palette"):
            ClassMap.parse(CARS).ids(np.array([[0, 1]], np.uint8))

    def test_large_numbers_are_refused_by_a_map_of_colours(self):
        with pytest.raises(UserError, match=r"numbers from 0 to 300, and the class map .* colours"):
            ClassMap.parse(CARS).ids(np.array([[0, 300]], np.uint16))


class TestValues:
    @pytest.mark.parametrize("text", ["255:cell,0:membrane,7:nucleus", "255:a,0:b,7:ignore"])
    def test_values_of_ids_give_the_mask_back(self, text):
        classes = ClassMap.parse(text)
        mask = np.array([[0, 255], [7, 0]], np.uint8)
        restored = classes.values(classes.ids(mask))
        assert restored.dtype == np.uint8
        np.testing.assert_array_equal(restored, mask)

    def test_first_of_several_values_is_taken(self):
        values = ClassMap.parse(AXONS + ",3|4:ignore").values(np.array([[1, IGNORED]], np.uint8))
        np.testing.assert_array_equal(values, [[127, 3]])

    @pytest.mark.parametrize("text", ["0:a,300:b", "0:a,1:b,300:ignore"])
    def test_numbers_above_255_take_sixteen_bits(self, text):
        classes = ClassMap.parse(text)
        mask = np.array([[0, 300]], np.uint16)
        restored = classes.values(classes.ids(mask))
        assert restored.dtype == np.uint16
        np.testing.assert_array_equal(restored, mask)

    def test_colours_come_as_rgb(self):
        classes = ClassMap.parse(CARS)
        values = classes.values(np.array([[0, 1, 2, IGNORED]], np.uint8))
        assert values.dtype == np.uint8
        np.testing.assert_array_equal(values, colours([0x000000, 0xFF0000, 0x0000FF, 0x808080]))

    def test_ignored_pixel_without_a_value_is_refused(self):
        with pytest.raises(UserError, match=r"1 pixel\(s\) are to be ignored.*254:ignore"):
            ClassMap.parse(AXONS).values(np.array([[0, IGNORED]], np.uint8))


class TestCountValues:
    def test_values_come_in_rising_order_with_their_pixel_counts(self):
        mask = np.array([[9, 300, 9], [3, 1, 9]], np.uint16)
        assert list(ClassMap.parse("0:a,1:b").count_values(mask).items()) == [
            (1, 1),
            (3, 1),
            (9, 3),
            (300, 1),
        ]

    def test_colours_come_as_people_write_them(self):
        mask = colours([0x0A0B0C, 0xFF0000, 0x0A0B0C])
        assert ClassMap.parse(CARS).count_values(mask) == {"#0a0b0c": 2, "#ff0000": 1}


class TestUnknownValues:
    def test_values_come_with_their_pixel_counts(self):
        mask = np.array([[0, 9, 9], [3, 1, 9]], np.uint8)
        assert ClassMap.parse("0:a,1:b").unknown_values(mask) == {3: 1, 9: 3}

    def test_sound_mask_has_none(self):
        assert ClassMap.parse("0:a,1:b,2:ignore").unknown_values(np.array([[0, 1, 2]])) == {}

    def test_colours_come_as_people_write_them(self):
        mask = colours([0xFF0000, 0x00FF00, 0xFE0000, 0x808080])
        assert ClassMap.parse(CARS).unknown_values(mask) == {"#00ff00": 1}


class TestNameOf:
    def test_any_value_of_a_class_gives_its_name(self):
        classes = ClassMap.parse(AXONS + ",3:ignore")
        assert [classes.name_of(v) for v in (0, 128, 3, 4)] == [
            "background",
            "myelin",
            "ignore",
            None,
        ]

    def test_colour_gives_its_name(self):
        classes = ClassMap.parse(CARS)
        assert [classes.name_of(v) for v in ("#fe0000", "#808080", "#010101", 0)] == [
            "car",
            "ignore",
            None,
            None,
        ]


class TestPalette:
    def test_colours_of_the_map_are_kept(self):
        assert ClassMap.parse(CARS).palette() == [(0, 0, 0), (255, 0, 0), (0, 0, 255)]

    def test_up_to_eight_classes_are_told_apart_by_all(self):
        assert ClassMap.parse(AXONS).palette() == [(213, 94, 0), (0, 114, 178), (0, 158, 115)]

    def test_all_of_255_classes_differ(self):
        text = ",".join(f"{value}:c{value}" for value in range(255))
        palette = ClassMap.parse(text).palette()
        assert len(set(palette)) == 255
        assert {type(level) for colour in palette for level in colour} == {int}
        assert np.min(palette) >= 0
        assert np.max(palette) <= 255


class TestIdsOfBinary:
    CLASSES = ClassMap.parse(AXONS)
    MYELIN = np.array([[0, 255, 0]], np.uint8)
    AXON = np.array([[0, 0, 1]], np.uint16)

    def test_what_no_mask_claims_is_of_the_first_class(self):
        ids = self.CLASSES.ids_of_binary([self.MYELIN, self.AXON])
        assert ids.dtype == np.uint8
        np.testing.assert_array_equal(ids, [[0, 1, 2]])

    def test_first_class_may_have_its_mask_too(self):
        ids = self.CLASSES.ids_of_binary([np.array([[9, 0, 0]]), self.MYELIN, self.AXON])
        np.testing.assert_array_equal(ids, [[0, 1, 2]])

    def test_grey_stored_as_rgb_is_a_mask_too(self):
        ids = self.CLASSES.ids_of_binary([np.dstack([self.MYELIN] * 3), self.AXON])
        np.testing.assert_array_equal(ids, [[0, 1, 2]])

    def test_pixels_claimed_twice_are_counted(self):
        with pytest.raises(UserError, match=r"2 pixel\(s\) are claimed by several"):
            self.CLASSES.ids_of_binary([np.array([[1, 1, 0]]), np.array([[1, 1, 1]])])

    def test_pixels_claimed_by_none_are_counted(self):
        with pytest.raises(UserError, match=r"1 pixel\(s\) are claimed by none of the 3 .*'backgr"):
            self.CLASSES.ids_of_binary([0 * self.MYELIN, self.MYELIN, self.AXON])

    @pytest.mark.parametrize("count", [1, 4])
    def test_other_numbers_of_masks_are_refused(self, count):
        with pytest.raises(UserError, match=rf"{count} binary mask\(s\) for 3 classes"):
            self.CLASSES.ids_of_binary([self.MYELIN] * count)

    def test_masks_of_several_sizes_are_refused(self):
        with pytest.raises(UserError, match=r"several sizes: 3x1, 1x3\."):
            self.CLASSES.ids_of_binary([self.MYELIN, self.AXON.T])

    def test_coloured_mask_is_refused(self):
        with pytest.raises(UserError, match="The mask is coloured"):
            self.CLASSES.ids_of_binary([colours([0xFF0000, 0, 0]), self.AXON])


class TestIndex:
    def test_name_gives_its_id(self):
        assert ClassMap.parse("0:membrane,255:cell").index("cell") == 1

    def test_unknown_name_lists_those_there_are(self):
        with pytest.raises(UserError, match="'axon'; the classes are membrane, cell"):
            ClassMap.parse("0:membrane,255:cell").index("axon")
