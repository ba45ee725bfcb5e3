import numpy as np
import pytest

from unet_core.data.classes import ClassMap
from unet_core.errors import UserError


class TestParse:
    def test_classes_are_numbered_in_the_order_written(self):
        classes = ClassMap.parse("255:cell, 0:membrane,7: nucleus ")
        assert classes.mask_values == (255, 0, 7)
        assert classes.names == ("cell", "membrane", "nucleus")
        assert len(classes) == 3

    def test_text_of_a_map_parses_to_the_same_map(self):
        classes = ClassMap.parse(" 0:membrane , 255:cell")
        assert str(classes) == "0:membrane,255:cell"
        assert ClassMap.parse(str(classes)) == classes

    @pytest.mark.parametrize("entry", ["256:b", "-1:b", "x:b", "1", "1:", ":b", "", "1.0:b", "²:b"])
    def test_malformed_entry_is_named(self, entry):
        with pytest.raises(UserError, match="value:name with a value from 0 to 255") as error:
            ClassMap.parse(f"0:a,{entry}")
        assert repr(entry) in str(error.value)

    @pytest.mark.parametrize("text", ["0:a", "0:a,0:b", "0:a,1:a"])
    def test_too_few_or_repeated_classes_are_refused(self, text):
        with pytest.raises(UserError, match="at least two classes, each value and each name once"):
            ClassMap.parse(text)


class TestIds:
    def test_values_become_ids_in_the_order_of_the_map(self):
        classes = ClassMap.parse("255:cell,0:membrane,7:nucleus")
        mask = np.array([[0, 255], [7, 0]], np.uint8)
        ids = classes.ids(mask)
        assert ids.dtype == np.uint8
        np.testing.assert_array_equal(ids, [[1, 0], [2, 1]])

    def test_values_of_ids_give_the_mask_back(self):
        classes = ClassMap.parse("255:cell,0:membrane,7:nucleus")
        mask = np.array([[0, 255], [7, 0]], np.uint8)
        restored = classes.values(classes.ids(mask))
        assert restored.dtype == np.uint8
        np.testing.assert_array_equal(restored, mask)

    def test_value_outside_the_map_is_named(self):
        with pytest.raises(UserError, match=r"values \[3, 9\].*0:a,1:b"):
            ClassMap.parse("0:a,1:b").ids(np.array([[0, 9], [3, 3]], np.uint8))

    def test_map_of_all_256_values_knows_the_last(self):
        classes = ClassMap.parse(",".join(f"{value}:c{value}" for value in range(256)))
        np.testing.assert_array_equal(classes.ids(np.array([[0, 255]], np.uint8)), [[0, 255]])


class TestUnknownValues:
    def test_values_come_with_their_pixel_counts(self):
        mask = np.array([[0, 9, 9], [3, 1, 9]], np.uint8)
        assert ClassMap.parse("0:a,1:b").unknown_values(mask) == {3: 1, 9: 3}

    def test_sound_mask_has_none(self):
        assert ClassMap.parse("0:a,1:b").unknown_values(np.array([[0, 1]], np.uint8)) == {}


class TestIndex:
    def test_name_gives_its_id(self):
        assert ClassMap.parse("0:membrane,255:cell").index("cell") == 1

    def test_unknown_name_lists_those_there_are(self):
        with pytest.raises(UserError, match="'axon'; the classes are membrane, cell"):
            ClassMap.parse("0:membrane,255:cell").index("axon")
