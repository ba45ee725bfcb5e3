import numpy as np

from unet_core.drawing import plots

COLOURS = [(213, 94, 0), (0, 114, 178)]


def drawn(picture, number):
    return np.argwhere((picture == COLOURS[number][::-1]).all(-1))


class TestCurves:
    def test_each_line_is_where_its_numbers_are(self):
        picture = plots.curves(
            {"low": ([0, 1], [0.25, 0.25]), "high": ([0, 1], [0.75, 0.75])},
            COLOURS,
            x_title="recall",
            y_title="precision",
        )
        # 400 px high under a head of 30: 0.25 is at row 330, 0.75 at row 130. The key is to the
        # right of column 470.
        for number, row in ((0, 330), (1, 130)):
            places = drawn(picture, number)
            places = places[places[:, 1] < 465]
            assert abs(places[:, 0].mean() - row) < 1.5
            assert np.ptp(places[:, 1]) > 390

    def test_what_is_not_defined_is_left_out(self):
        nan = float("nan")
        picture = plots.curves({"a": ([nan, nan], [0.5, 0.5])}, COLOURS, x_title="x", y_title="y")
        assert (drawn(picture, 0)[:, 1] > 465).all()


class TestPanels:
    def test_marks_the_place_and_keeps_the_colour_of_a_name(self):
        series = {"loss": {"train": [4, 2, 1], "valid": [3, 3, 3]}, "f1": {"valid": [0, 1, 1]}}
        picture = plots.panels([1, 2, 3], series, x_title="epoch", mark=("best", 2))
        # Each plot is 60 + 400 + 200 px wide; epoch 2 of 3 is at column 60 + 200 of it.
        assert picture.shape == (474, 2 * 660, 3)
        for first in (0, 660):
            plot = picture[30:431, first + 55 : first + 465]
            line = np.argwhere((plot == plots._GREY).all(-1))
            assert abs(line[:, 1].mean() - 205) < 1.5
            assert (plot == plots._COLOURS[1][::-1]).all(-1).any()
        # The highest loss is 4, so that a valid loss of 3 is at 3/4: row 30 + 400 / 4.
        valid = np.argwhere((picture[:, 60:250] == plots._COLOURS[1][::-1]).all(-1))
        assert abs(valid[:, 0].mean() - 130) < 1.5

    def test_one_value_and_none_that_is_finite_are_drawn(self):
        assert plots.panels([1], {"f1": {"valid": [float("nan")]}}, x_title="x").size


class TestHistory:
    def test_has_a_plot_for_each_score_with_its_parts_over_epochs(self):
        columns = {"step": [4, 8, 12], "train/loss": [4, 2, 1], "held_out/loss": [3, 3, 3]}
        columns |= {"held_out/dice/mean": [0, 1, 1], "held_out/iou": [0, 0, 0]}
        found = plots.history(
            columns, {"loss": "loss", "F1": "dice/mean"}, epoch_steps=4, best_step=8
        )
        series = {"loss": {"train": [4, 2, 1], "held_out": [3, 3, 3]}}
        series |= {"F1": {"held_out": [0, 1, 1]}}
        expected = plots.panels([1, 2, 3], series, x_title="epoch", mark=("best epoch", 2))
        np.testing.assert_array_equal(found, expected)


class TestConfusion:
    def test_cells_are_as_dark_as_their_share_of_the_row(self):
        picture = plots.confusion(np.array([[3, 1], [0, 0]]), ["a", "b"])
        # Cells of 64 px from row 50 and column 160; 255 - 130 * 3/4 = 157.5, 255 - 130 / 4 = 222.5.
        corners = picture[52:180:64, 162:290:64, 0]
        np.testing.assert_allclose(corners, [[157.5, 222.5], [255, 255]], atol=0.5)
