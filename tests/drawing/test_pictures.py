import numpy as np
import pytest

from unet_core.conventions import IGNORED
from unet_core.data.classes import ClassMap
from unet_core.drawing import pictures

CLASSES = ClassMap.parse(",".join(f"{n}:c{n}" for n in range(12)))
COLOURS = CLASSES.palette()


class TestErrors:
    def test_missed_pixels_are_blue_invented_ones_red_and_others_dimmed(self):
        image = np.full((1, 4), 100, np.uint8)
        truth = np.array([[1, 1, 0, 0]])
        predicted = np.array([[1, 0, 1, 0]])
        found = pictures.errors(image, truth, predicted, clear=0)
        # 100 / 2 + 64 = 114.
        assert found.tolist() == [
            [
                [114, 114, 114],
                list(pictures.MISSED_BGR),
                list(pictures.INVENTED_BGR),
                [114, 114, 114],
            ]
        ]
        blue, red = pictures.MISSED_BGR, pictures.INVENTED_BGR
        assert blue.index(max(blue)) == 0
        assert red.index(max(red)) == 2

    def test_of_several_classes_missed_invented_and_confused_differ(self):
        image = np.full((1, 5), 100, np.uint8)
        truth = np.array([[2, 0, 1, 1, IGNORED]])
        found = pictures.errors(image, truth, np.array([[0, 2, 2, 1, 1]]), clear=0)
        colours = [pictures.MISSED_BGR, pictures.INVENTED_BGR, pictures.CONFUSED_BGR]
        assert found[0].tolist() == [*map(list, colours), [114] * 3, [114] * 3]

    def test_brightest_grey_stays_within_range(self):
        image = np.full((1, 1), 255, np.uint8)
        ids = np.array([[0]])
        # 255 // 2 + 64 = 191.
        assert pictures.errors(image, ids, ids, clear=0).tolist() == [[[191, 191, 191]]]


class TestOverlay:
    def test_one_class_is_clear_whatever_its_share_and_others_are_blended(self):
        image, classes = np.full((1, 3), 100, np.uint8), ClassMap.parse("0:a,1:b", clear="b")
        found = pictures.overlay(image, np.array([[1, 0, 1]]), classes, alpha=0.5)
        assert (pictures.overlay(image, np.array([[1, 1, 1]]), classes) == 100).all()
        # Class 0 is vermilion, (0, 94, 213) in BGR: half of it and half of 100.
        assert found[0, 0].tolist() == found[0, 2].tolist() == [100, 100, 100]
        np.testing.assert_allclose(found[0, 1], [50, 97, 156.5], atol=0.5)

    def test_classes_have_different_colours(self):
        image = np.full((1, 10), 100, np.uint8)
        found = pictures.overlay(image, np.array([[0, 0, 0, 1, 2, 3, 4, 5, 6, 7]]), CLASSES)
        assert len({tuple(pixel) for pixel in found[0].tolist()}) == 8

    def test_classes_beyond_eight_have_colours_of_their_own(self):
        image = np.full((1, 5), 100, np.uint8)
        found = pictures.overlay(image, np.array([[0, 0, 0, 1, 9]]), CLASSES)
        assert found[0, 3].tolist() != found[0, 4].tolist() != [100, 100, 100]

    def test_colours_are_those_of_the_class_map(self):
        classes = ClassMap.parse("#000000:a,#ff8000:b")
        found = pictures.overlay(
            np.zeros((1, 3), np.uint8), np.array([[0, 0, 1]]), classes, alpha=1
        )
        assert found[0].tolist() == [[0, 0, 0], [0, 0, 0], [0, 128, 255]]

    def test_image_is_not_changed(self):
        image = np.full((1, 3), 100, np.uint8)
        pictures.overlay(image, np.array([[1, 0, 1]]), CLASSES)
        assert (image == 100).all()


class TestLegend:
    def test_names_all_but_the_clear_class_below_the_picture(self):
        picture = np.full((50, 200, 3), 7, np.uint8)
        found = pictures.with_legend(picture, ClassMap.parse("0:background,1:cell,2:core"))
        np.testing.assert_array_equal(found[:50], picture)
        strip = found[50:]
        for number, colour in enumerate(COLOURS[:3]):
            assert (strip == colour[::-1]).all(-1).any() == (number > 0)

    def test_names_that_do_not_fit_go_to_further_lines(self):
        classes = ClassMap.parse(",".join(f"{n}:name_{n}" for n in range(5)))
        wide, narrow = (
            pictures.with_legend(np.zeros((5, width, 3), np.uint8), classes) for width in (2000, 70)
        )
        # Four names: in one line, in four.
        size = 2000 // 40
        assert wide.shape == (5 + 2 * size, 2000, 3)
        assert narrow.shape == (5 + 4 * 22, 70, 3)


class TestSideBySide:
    def test_letters_grow_with_the_pictures(self):
        found = pictures.side_by_side([np.zeros((10, 4000), np.uint8)], ["one"])
        # A fortieth of the width, in a line twice as high.
        assert found.shape == (200 + 10 + 4, 4008, 3)
        letters = np.argwhere((found[:200] < 100).all(-1))
        assert np.ptp(letters[:, 0]) > 40

    def test_pictures_stand_in_frames_under_their_titles(self):
        grey = np.full((10, 60), 80, np.uint8)
        colour = np.full((10, 70, 3), (1, 2, 3), np.uint8)
        found = pictures.side_by_side([grey, colour], ["one", "two"])
        # Frames add 22 above, 4 below and 4 on either side.
        assert found.shape == (36, 68 + 78, 3)
        assert (found[22:32, 4:64] == 80).all()
        assert (found[22:32, 72:142] == (1, 2, 3)).all()
        assert (found[32:] == 255).all()
        for title in (found[:22, :68], found[:22, 68:]):
            assert title.min() < 100

    def test_titles_must_be_as_many_as_pictures(self):
        with pytest.raises(ValueError, match="zip"):
            pictures.side_by_side([np.zeros((4, 4), np.uint8)], [])


class TestPanelsOf:
    def test_are_the_pictures_that_were_put_in_a_row(self):
        shown = [np.full((5, 6, 3), value, np.uint8) for value in (10, 20, 30)]
        row = pictures.side_by_side(shown, ["a", "b", "c"])
        for found, expected in zip(pictures.panels_of(row, 3), shown, strict=True):
            np.testing.assert_array_equal(found, expected)

    def test_of_another_picture_are_none(self):
        assert pictures.panels_of(np.zeros((40, 41, 3), np.uint8), 4) is None
        assert pictures.panels_of(np.zeros((26, 64, 3), np.uint8), 4) is None


class TestMaskPicture:
    @pytest.mark.parametrize("text", ["0:a,255:b", "0:a,1:b", "0:a,40000:b"])
    def test_two_classes_are_black_and_white_and_ignored_pixels_grey(self, text):
        ids = np.array([[0, 1, IGNORED]], np.uint8)
        found = pictures.mask_picture(ids, ClassMap.parse(text))
        assert found.tolist() == [[[0] * 3, [255] * 3, [128] * 3]]
        other = ",".join(reversed(text.split(",")))
        found = pictures.mask_picture(ids, ClassMap.parse(other))
        assert found.tolist() == [[[255] * 3, [0] * 3, [128] * 3]]

    def test_more_classes_show_their_colours(self):
        classes = ClassMap.parse("#000000:a,#ff8000:b,#0000ff:c")
        found = pictures.mask_picture(np.array([[1, 2]], np.uint8), classes)
        assert found.tolist() == [[[0, 128, 255], [255, 0, 0]]]


class TestDisplayable:
    def test_floats_are_rounded_and_clipped_and_rgb_becomes_bgr(self):
        image = np.array([[[-5.0, 100.4, 300.0]]], np.float32)
        assert pictures.displayable(image).tolist() == [[[255, 100, 0]]]

    def test_faint_image_of_16_bits_is_shown_by_its_own_range(self):
        # 12 bits in 16: 0..255 is filled up to 16.
        image = np.linspace(0, 15.9, 100, dtype=np.float32).reshape(10, 10)
        found = pictures.displayable(image)
        assert (found.min(), found.max()) == (0, 255)
        assert abs(int(found[5, 0, 0]) - 128) < 3


class TestOutlines:
    def test_pixels_at_the_edge_of_a_class_get_its_colour_and_the_inside_stays(self):
        image = np.full((9, 9), 100, np.uint8)
        ids = np.zeros((9, 9), np.uint8)
        ids[2:7, 2:7] = 1
        found = pictures.outlines(image, ids, CLASSES)
        edge = ids.astype(bool)
        edge[3:6, 3:6] = False
        # Class 1 is blue, (178, 114, 0) in BGR.
        assert (found[edge] == (178, 114, 0)).all()
        assert (found[~edge] == 100).all()

    def test_class_at_the_border_of_the_picture_has_no_line_there(self):
        image = np.full((3, 9), 100, np.uint8)
        ids = np.repeat([[1, 1, 1, 0, 0, 0, 0, 0, 0]], 3, 0)
        coloured = (pictures.outlines(image, ids, CLASSES) != 100).any(-1)
        np.testing.assert_array_equal(coloured, [[0, 0, 1, 0, 0, 0, 0, 0, 0]] * 3)

    def test_classes_that_touch_have_different_colours(self):
        image = np.full((1, 7), 100, np.uint8)
        found = pictures.outlines(image, np.array([[0, 0, 0, 0, 1, 2, 3]]), CLASSES)
        assert len({tuple(pixel) for pixel in found[0, 4:].tolist()}) == 3

    def test_ignored_pixels_are_hatched_in_black_and_white_and_nothing_else_is(self):
        image = np.full((16, 16), 100, np.uint8)
        ids = np.zeros((16, 16), np.uint8)
        ids[:, 8:] = IGNORED
        found = pictures.outlines(image, ids, CLASSES)
        assert (found[:, :8] == 100).all()
        # One pixel in eight of every row is white, and one black.
        for level in (0, 255):
            assert ((found[:, 8:] == level).all(-1).sum(1) == 1).all()

    def test_mask_may_be_ignored_as_a_whole(self):
        found = pictures.outlines(
            np.zeros((8, 8), np.uint8), np.full((8, 8), IGNORED, np.uint8), CLASSES
        )
        assert (found == 255).any()

    def test_colour_image_is_kept_and_not_changed(self):
        image = np.full((4, 4, 3), (1, 2, 3), np.uint8)
        found = pictures.outlines(image, np.eye(4, dtype=np.uint8), CLASSES)
        # RGB became BGR.
        assert (found[0, 3] == (3, 2, 1)).all()
        assert (image == (1, 2, 3)).all()


class TestContactSheet:
    def test_last_row_is_filled_with_white(self):
        tiles = [np.full((10, 20), 10 * number, np.uint8) for number in range(3)]
        sheet = pictures.contact_sheet(tiles, ["", "", ""], columns=2)
        # A tile has 4 px around it, and 22 above.
        assert sheet.shape == (2 * 36, 2 * 28, 3)
        assert sheet[25, 30].tolist() == [255] * 3
        assert sheet[25, 35].tolist() == [10] * 3
        assert (sheet[36:, 28:] == 255).all()

    def test_of_none_says_so(self):
        sheet = pictures.contact_sheet([], [])
        # One white tile of 32 x 64 under its title.
        assert sheet.shape == (32 + 26, 64 + 8, 3)
        assert (sheet[22:] == 255).all()
        assert (sheet[:22] < 255).any()
