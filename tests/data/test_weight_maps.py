import numpy as np
import pytest

from unet_core.conventions import IGNORED
from unet_core.data.weight_maps import border_weights


def components(cells):
    """Returns 4-connected components by flooding, numbered from 1."""
    labels = np.zeros(cells.shape, int)
    count = 0
    for start in zip(*np.nonzero(cells), strict=True):
        if labels[start]:
            continue
        count += 1
        todo = [start]
        while todo:
            row, column = todo.pop()
            inside = 0 <= row < cells.shape[0] and 0 <= column < cells.shape[1]
            if inside and cells[row, column] and not labels[row, column]:
                labels[row, column] = count
                todo += [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
    return labels


def by_formula(labels, background, w0, sigma):
    """The paper's second term, every distance of every pixel to every cell."""
    numbers = [number for number in np.unique(labels) if number]
    result = np.zeros(labels.shape)
    if len(numbers) < 2:
        return result
    for row, column in zip(*np.nonzero(background), strict=True):
        nearest = sorted(
            min(
                np.hypot(row - r, column - c) for r, c in zip(*np.nonzero(labels == n), strict=True)
            )
            for n in numbers
        )
        result[row, column] = w0 * np.exp(-((nearest[0] + nearest[1]) ** 2) / (2 * sigma**2))
    return result


class TestBorderWeights:
    @pytest.mark.parametrize("share", [0.03, 0.15, 0.5])
    @pytest.mark.parametrize("seed", range(5))
    def test_random_masks_match_the_formula(self, share, seed):
        mask = (np.random.default_rng(seed).random((15, 19)) < share).astype(np.uint8)
        expected = 1 + by_formula(components(mask == 1), mask == 0, 10, 5)
        np.testing.assert_allclose(border_weights(mask), expected, atol=1e-5)

    def test_pixel_between_two_cells_matches_the_hand_value(self):
        # Cells at columns 0 and 4: the middle is 2 from both, exp(-(2 + 2)^2 / (2 * 3^2)).
        mask = np.array([[1, 0, 0, 0, 1]], np.uint8)
        found = border_weights(mask, w0=7, sigma=3)
        assert found[0, 2] == pytest.approx(1 + 7 * np.exp(-16 / 18), abs=1e-5)
        assert found[0, 0] == 1

    @pytest.mark.parametrize("cells", [[], [(3, 3)]])
    def test_fewer_than_two_cells_have_nothing_between_them(self, cells):
        mask = np.zeros((8, 8), np.uint8)
        for cell in cells:
            mask[cell] = 1
        np.testing.assert_array_equal(border_weights(mask), 1)

    def test_instances_part_cells_that_touch(self):
        instances = np.array([[1, 1, 2, 2, 0, 0]], np.uint16)
        mask = (instances > 0).astype(np.uint8)
        np.testing.assert_array_equal(border_weights(mask), 1)
        found = border_weights(mask, instances=instances)
        # Column 4 is 1 from cell 2 and 3 from cell 1.
        assert found[0, 4] == pytest.approx(1 + 10 * np.exp(-16 / 50), abs=1e-5)

    def test_instances_of_any_number_match_the_formula(self):
        instances = np.zeros((14, 14), np.uint16)
        for number, (row, column) in enumerate([(1, 1), (1, 9), (8, 3), (9, 10)]):
            instances[row : row + 3, column : column + 3] = 500 * number + 7
        mask = (instances > 0).astype(np.uint8)
        expected = 1 + by_formula(instances, mask == 0, 10, 5)
        np.testing.assert_allclose(border_weights(mask, instances=instances), expected, atol=1e-5)

    def test_classes_have_their_weights_beside(self):
        mask = np.array([[1, 0, 2, IGNORED]], np.uint8)
        found = border_weights(mask, w0=0, class_weights=[0.5, 2, 3])
        np.testing.assert_allclose(found, [[2, 0.5, 3, 1]])

    def test_another_class_may_be_the_background(self):
        mask = np.array([[0, 1, 0]], np.uint8)
        found = border_weights(mask, background=1)
        # One pixel from both cells: exp(-4 / 50).
        np.testing.assert_allclose(found, [[1, 1 + 10 * np.exp(-4 / 50), 1]], atol=1e-5)

    def test_ignored_pixels_are_no_cell(self):
        mask = np.array([[1, 0, IGNORED, 0, 0]], np.uint8)
        np.testing.assert_array_equal(border_weights(mask), 1)
