import numpy as np
import pytest

from unet_core.data.annotations.drawing import (
    Area,
    Dots,
    Ellipse,
    Line,
    Pixels,
    draw,
    is_outside,
    rectangle,
    runs,
    turned,
)

SIZE = (40, 50)


def drawn(geometry, size=SIZE):
    return draw([(geometry, 1)], size)


class TestArea:
    def test_square_covers_its_area_and_holes_do_not(self):
        outer, hole = rectangle(5, 3, 20, 10), rectangle(10, 5, 6, 4)
        mask = drawn(Area([[outer, hole]]))
        # 20 * 10 - 6 * 4, pixel (row, column) from column to column + 1.
        assert mask.sum() == 176
        assert (mask[3:13, 5:25].sum(), mask[5:9, 10:16].sum()) == (176, 0)

    def test_polygons_that_overlap_cover_what_one_of_them_does(self):
        mask = drawn(Area([[rectangle(0, 0, 10, 10)], [rectangle(5, 0, 10, 10)]]))
        assert mask.sum() == 150

    def test_pixel_is_inside_if_its_middle_is(self):
        # x from 0.6 to 3.4: the middles 1.5 and 2.5; y from 0.4 to 2.6: 0.5, 1.5 and 2.5.
        mask = drawn(Area([[rectangle(0.6, 0.4, 2.8, 2.2)]]))
        np.testing.assert_array_equal(np.argwhere(mask), [[y, x] for y in range(3) for x in (1, 2)])

    def test_parts_beside_the_picture_are_cut_off(self):
        assert drawn(Area([[rectangle(-5, -5, 10, 12)]])).sum() == 5 * 7
        assert drawn(Area([[rectangle(45, 35, 100, 100)]])).sum() == 5 * 5
        assert drawn(Area([[rectangle(-20, 3, 200, 2)]])).sum() == 50 * 2
        assert drawn(Area([[rectangle(60, 3, 5, 5)]])).sum() == 0

    def test_polygons_are_those_of_point_in_polygon(self):
        random = np.random.default_rng(0)
        for _ in range(5):
            ring = random.uniform(-10, 60, (12, 2))  # It crosses itself, and the border.
            mask = drawn(Area([[ring]]))
            y, x = np.indices(SIZE) + 0.5
            inside = np.zeros(SIZE, bool)
            for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, 0), strict=True):
                crosses = (y0 <= y) != (y1 <= y)
                inside ^= crosses & (x >= x0 + (y - y0) / (y1 - y0) * (x1 - x0))
            np.testing.assert_array_equal(mask, inside)

    def test_triangles_that_share_a_side_share_no_pixel(self):
        corners = [[3.3, 1.7], [44.1, 9.2], [20.5, 37.9], [1.2, 30.4]]
        first, second = (drawn(Area([[[corners[n] for n in at]]])) for at in ((0, 1, 2), (0, 2, 3)))
        assert (first + second).max() == 1
        np.testing.assert_array_equal(first + second, drawn(Area([[corners]])))

    def test_million_points_are_drawn(self):
        angle = np.linspace(0, 2 * np.pi, 1_000_000, endpoint=False)
        ring = np.stack([500 + 400 * np.cos(angle), 500 + 400 * np.sin(angle)], 1)
        # pi * 400^2 = 502,655; the outline passes some 3,000 pixels.
        assert abs(int(drawn(Area([[ring]]), (1000, 1000)).sum()) - 502_655) < 500

    def test_many_long_sides_are_drawn_in_blocks(self, monkeypatch):
        ring = np.stack([np.arange(400) / 8, np.arange(400) % 2 * 40], 1)
        whole = drawn(Area([[ring]]))
        monkeypatch.setattr("unet_core.data.annotations.drawing._BLOCK", 64)
        np.testing.assert_array_equal(drawn(Area([[ring]])), whole)
        assert 0 < whole.sum() < whole.size

    @pytest.mark.parametrize(
        ("ring", "words"),
        [
            ([[0, 0], [1, 1]], "needs 3 points or more, and has 2"),
            ([], "needs 3 points"),
            ([[0, 0], [1, float("nan")], [1, 0]], "no coordinates"),
            ([[0, 0], [1e9, 1], [1, 0]], "no coordinates"),
            ([[0, 0, 7], [1, 1, 7], [1, 0, 7]], "no pairs"),
            (np.stack([np.arange(200), np.arange(200) % 2 * 1e6], 1), "crosses more than"),
        ],
    )
    def test_that_is_none_is_refused(self, ring, words):
        with pytest.raises(ValueError, match=words):
            Area([[ring]])


class TestEllipse:
    def test_covers_its_area_turned_or_not(self):
        # pi * 15 * 6 = 283.
        for degrees in (0, 30, 90):
            mask = drawn(Ellipse(25, 20, 15, 6, degrees))
            assert abs(int(mask.sum()) - 283) < 6
        rows, columns = np.nonzero(mask)
        assert (np.ptp(columns) + 1, np.ptp(rows) + 1) == (12, 30)

    def test_turns_clockwise(self):
        mask = drawn(Ellipse(25, 20, 15, 3, 45))
        assert mask[28, 33] == 1
        assert mask[12, 33] == 0

    @pytest.mark.parametrize("values", [(1, 1, 0, 1), (1, float("nan"), 1, 1), (1, 1, 1e9, 1)])
    def test_that_is_none_is_refused(self, values):
        with pytest.raises(ValueError, match=r"radius|coordinates"):
            Ellipse(*values)


class TestOthers:
    def test_lines_and_dots_are_as_wide_as_those_of_labelme(self):
        line = drawn(Line([[10, 20], [30, 20]]))
        assert (line[15:25, 10:30] == 1).all()
        assert line[:14].sum() + line[26:].sum() == 0
        # A disc of radius 5 has 79 pixels' area.
        assert abs(int(drawn(Dots([[20, 20], [40, 20]])).sum()) - 2 * 79) < 24

    def test_pixels_are_cut_at_each_border(self):
        inside = np.ones((6, 8), bool)
        for left, top, area in (
            (10, 10, 48),
            (-3, 10, 30),
            (46, 10, 24),
            (10, -9, 0),
            (10, 38, 16),
        ):
            assert drawn(Pixels(inside, left, top)).sum() == area

    def test_rectangle_turns_about_a_point_clockwise(self):
        ring = turned(rectangle(10, 10, 4, 2), (10, 10), 90)
        np.testing.assert_allclose(ring, [[10, 10], [10, 14], [8, 14], [8, 10]], atol=1e-9)

    def test_later_shapes_cover_earlier_ones(self):
        first, second = Area([[rectangle(0, 0, 10, 10)]]), Area([[rectangle(5, 5, 10, 10)]])
        mask = draw([(first, 1), (second, 2)], SIZE)
        assert np.bincount(mask.ravel()).tolist() == [2000 - 175, 75, 100]

    def test_outside_is_what_has_no_part_in_the_picture(self):
        assert is_outside(Area([[rectangle(50, 0, 5, 5)]]), SIZE)
        assert is_outside(Ellipse(-6, 20, 5, 5), SIZE)
        assert is_outside(Pixels(np.ones((2, 2), bool), 0, 40), SIZE)
        assert not is_outside(Area([[rectangle(49, 39, 5, 5)]]), SIZE)
        assert not is_outside(Dots([[-2, -2]]), SIZE)


class TestRuns:
    def test_are_outside_and_inside_by_turns_row_by_row(self):
        expected = [[0, 0, 1], [1, 0, 1]]
        np.testing.assert_array_equal(runs([2, 2, 1, 1], (2, 3)), np.array(expected, bool))
        np.testing.assert_array_equal(runs([0, 6], (2, 3)), np.ones((2, 3), bool))

    @pytest.mark.parametrize(
        ("counts", "size"),
        [
            ([2, 2], (2, 3)),
            ([-1, 7], (2, 3)),
            ([1.5, 4.5], (2, 3)),
            ([2**62, 2**62], (2, 3)),
            ("06", (2, 3)),
            ([10**12], (10**6, 10**6)),
            ([0], (0, 3)),
        ],
    )
    def test_that_do_not_fit_are_refused(self, counts, size):
        with pytest.raises(ValueError, match=r"run lengths|pixels"):
            runs(counts, size)
