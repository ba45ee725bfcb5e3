import numpy as np
import pytest

from unet_core.conventions import IGNORED
from unet_core.data.classes import ClassMap
from unet_core.drawing import pictures, preview

CLASSES = ClassMap.parse("0:a,1:b,2:c")


def pair(grey, size=30):
    return np.full((size, size), grey, np.uint8), np.zeros((size, size), np.uint8)


class TestContactSheet:
    def test_tiles_stand_in_rows_under_their_numbers(self):
        sheet = preview.contact_sheet([pair(10 * k) for k in range(1, 6)], CLASSES, columns=3)
        # Frames add 22 above, 4 below and 4 on either side.
        assert sheet.shape == (2 * 56, 3 * 38, 3)
        assert sheet.dtype == np.uint8
        titles = []
        for k in range(5):
            top, left = 56 * (k // 3), 38 * (k % 3)
            tile = sheet[top : top + 56, left : left + 38]
            assert (tile[22:52, 4:34] == 10 * (k + 1)).all()
            titles.append(tile[:22])
            assert titles[-1].min() < 100
        assert len({title.tobytes() for title in titles}) == 5
        # There is no sixth.
        assert (sheet[56:, 76:] == 255).all()

    def test_sheet_of_few_pairs_is_no_wider_than_they_are(self):
        assert preview.contact_sheet([pair(1), pair(2)], CLASSES).shape == (56, 2 * 38, 3)

    def test_default_is_six_in_a_row(self):
        assert preview.contact_sheet([pair(1)] * 7, CLASSES).shape == (2 * 56, 6 * 38, 3)

    def test_classes_are_outlined_and_ignored_pixels_hatched(self):
        image, mask = pair(100)
        mask[10:20, 10:20] = 1
        mask[:, 25:] = IGNORED
        tile = preview.contact_sheet([(image, mask)], CLASSES)[22:52, 4:34]
        np.testing.assert_array_equal(tile, pictures.outlines(image, mask, CLASSES))
        assert (tile[:, 25:] == 255).any()

    @pytest.mark.parametrize(
        ("image", "expected"),
        [
            (np.full((30, 30), 7, np.uint8), (7, 7, 7)),
            # RGB becomes BGR.
            (np.full((30, 30, 3), (1, 2, 3), np.uint8), (3, 2, 1)),
            (np.full((30, 30), 99.6, np.float32), (100, 100, 100)),
            (np.full((30, 30, 3), (-20, 128, 300), np.float32), (255, 128, 0)),
        ],
    )
    def test_any_image_of_the_augmenter_can_be_shown(self, image, expected):
        sheet = preview.contact_sheet([(image, pair(0)[1])], CLASSES)
        assert (sheet[22:52, 4:34] == expected).all()

    def test_arguments_are_not_changed(self):
        image, mask = np.full((30, 30, 3), 50, np.uint8), np.eye(30, dtype=np.uint8)
        preview.contact_sheet([(image, mask)], CLASSES)
        assert (image == 50).all()
        np.testing.assert_array_equal(mask, np.eye(30))
