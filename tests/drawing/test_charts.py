"""Charts show the numbers they are given, and texts as they are."""

import re
import subprocess
import sys

import cv2
import numpy as np
import pytest

from unet_core.drawing.charts import Chart, Line, confusion_png, png, svg

pytest.importorskip("matplotlib", reason="the extra `report` is not installed")


def path_points(markup, colour):
    """The points of the line of a colour, [N, 2], in the units of the picture."""
    (path,) = re.findall(rf'd="([^"]*)"[^>]*style="fill: none; stroke: var\(--c{colour},', markup)
    return np.array([list(map(float, pair.split()[1:])) for pair in path.strip().split("\n")])


class TestSvg:
    def test_lines_are_where_their_numbers_are(self):
        x, y = [0, 10, 20, 40], [0.5, 0.2, 0.9, 0.4]
        drawn = path_points(svg(Chart("loss", [Line("a", x, y)])), 1)
        # One scale for each axis, the vertical one pointing down.
        across, up = np.polyfit(x, drawn[:, 0], 1), np.polyfit(y, drawn[:, 1], 1)
        np.testing.assert_allclose(np.polyval(across, x), drawn[:, 0], atol=1e-3)
        np.testing.assert_allclose(np.polyval(up, y), drawn[:, 1], atol=1e-3)
        assert across[0] > 0 > up[0]

    def test_what_is_not_finite_is_left_out(self):
        nan, inf = float("nan"), float("inf")
        line = Line("a", [0, 1, 2, 3, 4], [1, nan, 2, inf, 3], 1)
        assert len(path_points(svg(Chart("loss", [line])), 1)) == 3

    def test_texts_are_escaped_and_no_formulas(self):
        chart = Chart("", [Line("a", [1, 2], [1, 2])], x_title="<b>&", y_title="$x^2$")
        markup = svg(chart)
        assert "&lt;b&gt;&amp;" in markup
        assert ">$x^2$<" in markup

    def test_texts_and_grid_have_the_colours_of_the_page(self):
        markup = svg(Chart("", [Line("a", [1, 2], [1, 2], 9)]))
        assert "fill: currentColor" in markup
        assert "var(--grid," in markup
        # Colour 9 is the second again, told apart by its marker.
        assert "var(--c1," in markup
        assert Line("a", (), (), 9).marker != Line("a", (), (), 1).marker

    def test_log_axis_is_written_in_plain_numbers(self):
        markup = svg(Chart("", [Line("a", [1, 2, 3], [1, 1000, 10**6])], is_log=True))
        assert "$" not in markup
        assert ">1k<" in markup

    def test_a_chart_is_drawn_alike_each_time(self):
        chart = Chart("", [Line("a", [1, 2], [1, 2])], mark=1)
        assert svg(chart) == svg(chart)


class TestPng:
    def test_grid_of_charts_with_any_names(self):
        charts = [
            Chart(f"{n}", [Line("_a", [1, 2], [1, n]), Line("$b$", [1], [2], 1)]) for n in "5"
        ]
        charts = [Chart("t", [Line("_a", [1, 2], [1, 3]), Line("$b$", [1], [2], 1)])] * 3
        picture = cv2.imdecode(np.frombuffer(png(charts, columns=2), np.uint8), cv2.IMREAD_COLOR)
        # Two in a row of 4.4 inches, 110 pixels each.
        assert picture.shape[1] == round(2 * 4.4 * 110)

    def test_confusion_of_any_names(self):
        counts, names = np.array([[8, 2], [0, 0]]), ["_a", "$b$"]
        content = confusion_png(counts, counts / 10, names, names)
        assert cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) is not None


class TestStyle:
    def test_nothing_global_is_changed(self):
        import matplotlib

        before = dict(matplotlib.rcParams)
        svg(Chart("", [Line("a", [1, 2], [1, 2])]))
        assert dict(matplotlib.rcParams) == before
        # The part of Matplotlib that is a program's window and its global state.
        code = (
            "import sys; from unet_core.drawing.charts import *; "
            "svg(Chart('', [Line('a', [1, 2], [1, 2])])); print('matplotlib.pyplot' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout == "False\n", done.stderr
