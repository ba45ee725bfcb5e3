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
