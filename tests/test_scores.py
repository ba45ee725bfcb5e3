import collections
import math
import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest

from unet_core import scores
from unet_core.conventions import IGNORED
from unet_core.errors import UserError


def best(images, masks, class_id):
    baseline = scores.ThresholdBaseline(2)
    for image, mask in zip(images, masks, strict=True):
        baseline.add(image, mask)
    return baseline.best(class_id)


class TestThresholdBaseline:
    def test_dark_side_matches_the_hand_value(self):
        # Three pixels of grey 10, all of class 0; two of 20, one of each class; four of 30, all of
        # class 1. Class 0 as grey <= 10 is 2 * 3 / (3 + 4) = 6/7, as grey <= 20 it is
        # 2 * 4 / (5 + 4) = 8/9. The row is its own mirror image, so that no blur tells one 20 from
        # the other.
        image = np.array([[10, 30, 20, 30, 10, 30, 20, 30, 10]] * 3, np.uint8)
        mask = np.array([[0, 1, 0, 1, 0, 1, 1, 1, 0]] * 3, np.uint8)
        dice, how = best([image], [mask], 0)
        assert dice == pytest.approx(8 / 9)
        assert how == "grey <= 20"

    def test_bright_side_is_tried_too(self):
        image = np.array([[200, 200], [50, 40]], np.uint8)
        mask = np.array([[1, 1], [0, 0]], np.uint8)
        dice, how = best([image], [mask], 1)
        assert dice == 1
        assert how == "grey > 50"

    def test_one_threshold_serves_all_images(self):
        # Each image alone could be divided exactly, but grey 100 is class 1 in one of them and
        # class 0 in the other. Class 1: 4 + 4 of 16 pixels; above 50 are the 12 of grey 100 and
        # 150 (dice 16/20), above 100 the 4 of grey 150 (dice 8/12).
        first = np.repeat(np.array([[50, 100]], np.uint8), 2, 1).repeat(2, 0)
        second = np.repeat(np.array([[100, 150]], np.uint8), 2, 1).repeat(2, 0)
        mask = np.array([[0, 0, 1, 1]] * 2, np.uint8)
        for image in (first, second):
            assert best([image], [mask], 1)[0] == 1
        dice, how = best([first, second], [mask, mask], 1)
        assert dice == pytest.approx(0.8)
        assert how.startswith("grey > ")

    def test_blur_helps_against_noise(self):
        rng = np.random.default_rng(0)
        mask = np.zeros((64, 64), np.uint8)
        mask[:, 32:] = 1
        image = np.clip(100 + 40 * mask + rng.normal(0, 30, mask.shape), 0, 255).astype(np.uint8)
        dice, how = best([image], [mask], 1)
        assert dice > 0.95
        assert "after a blur of" in how

    def test_class_that_is_not_there_has_none(self):
        image = np.array([[1, 2]], np.uint8)
        assert best([image], [np.zeros((1, 2), np.uint8)], 1) is None

    def test_ignored_pixels_do_not_count(self):
        # Without the pixel of grey 40 the classes part exactly at 50.
        image = np.array([[200, 40], [50, 40]], np.uint8)
        mask = np.array([[1, IGNORED], [0, 0]], np.uint8)
        assert best([image], [mask], 1) == (1.0, "grey > 50")


# Cells of 3 and 4 pixels with a membrane of one pixel between them.
TWO_CELLS = np.array([[1, 1, 1, 0, 1, 1, 1, 1]], np.uint8)


def entropy(*shares):
    return -sum(share * math.log(share) for share in shares)


def near(value):
    return pytest.approx(value, rel=0, abs=1e-12)


def one_threshold(probability, truth, threshold=0.5):
    pytest.importorskip("skimage", reason="V_Rand and V_Info need scikit-image")
    return scores.segment_scores(np.asarray(probability, np.float32), truth, threshold)


class TestSegmentScores:
    def test_perfect_prediction_scores_one(self):
        # The membrane becomes a dam, and is left out: c = diag(3, 4), a = b = (3, 4), z = 0.
        assert one_threshold(TWO_CELLS, TWO_CELLS) == near((1, 1))

    def test_all_merged_matches_the_hand_value(self):
        # c = (3, 4) in one column: A = AB = 9 + 16 = 25, B = 7^2 = 49; V_Rand = 50 / 74. One
        # segment has no entropy.
        assert one_threshold(np.ones((1, 8)), TWO_CELLS) == near((25 / 37, 0))

    def test_empty_prediction_is_one_segment(self):
        assert one_threshold(np.zeros((1, 8)), TWO_CELLS) == near((25 / 37, 0))

    def test_split_cells_match_the_hand_value_with_every_dam_pixel_a_segment(self):
        # Segments of 1, 1, 1 and 2 pixels; dams at 1, 3 and 5, of which 3 is membrane: z = 2.
        # A = 9 + 16, B = AB = 1 + 1 + 1 + 4 + 2 = 9: V_Rand = 18 / 34. S refines T, so H_TS = H_S =
        # 5/7 ln 7 + 2/7 ln(7/2), and I = H_T.
        found = one_threshold([[1, 0, 1, 0, 1, 0, 1, 1]], TWO_CELLS)
        h_t = entropy(3 / 7, 4 / 7)
        h_s = entropy(*[1 / 7] * 5, 2 / 7)
        assert found == near((9 / 17, 2 * h_t / (h_t + h_s)))

    def test_every_pixel_its_own_segment_matches_the_hand_value(self):
        # Two cells of 3; four segments of one pixel and dams at 1, 3 and 5: A = 18, B = AB = 6:
        # V_Rand = 12 / 24. H_T = I = ln 2, H_S = ln 6; V_Info = 2 ln 2 / ln 12.
        truth = np.array([[1, 1, 1, 0, 1, 1, 1]])
        found = one_threshold([[1, 0, 1, 0, 1, 0, 1]], truth)
        assert found == near((0.5, 2 * math.log(2) / math.log(12)))

    def test_one_broken_membrane_matches_the_hand_value(self):
        # Three cells of 6 pixels; a hole joins the first two. a = (6, 6, 6), b = (12, 6): A = AB =
        # 108, B = 180: V_Rand = 216 / 288. T refines S: I = H_S.
        truth = np.array([[1, 1, 0, 1, 1, 0, 1, 1]] * 3)
        broken = truth.copy()
        broken[1, 2] = 1
        h_s = entropy(2 / 3, 1 / 3)
        assert one_threshold(broken, truth) == near((3 / 4, 2 * h_s / (math.log(3) + h_s)))

    def test_cells_that_touch_at_a_corner_are_two(self):
        # a = (1, 1), b = 2: A = AB = 2, B = 4: V_Rand = 4 / 6.
        truth = np.eye(2)
        assert one_threshold(np.ones((2, 2)), truth) == near((2 / 3, 0))
        assert one_threshold(truth, truth) == near((1, 1))

    def test_dam_is_in_the_middle_whatever_the_probability_there(self):
        # Grown one pixel at a time from both ends, the segments meet at 4, where the membrane is.
        # On the probability as a relief they would meet at its lowest, 5.
        truth = np.array([[1, 1, 1, 1, 0, 1, 1, 1, 1]])
        probability = [[0.9, 0.45, 0.4, 0.35, 0.3, 0.1, 0.2, 0.3, 0.9]]
        assert one_threshold(probability, truth) == near((1, 1))

    def test_one_true_cell_has_no_information(self):
        assert one_threshold(np.ones((1, 4)), np.ones((1, 4))) == near((1, 0))

    def test_image_without_true_cells_is_not_defined(self):
        found = one_threshold(np.ones((1, 4)), np.zeros((1, 4)))
        assert np.isnan(found).all()

    def test_ignored_pixels_are_left_out_like_membrane(self):
        # Cells of 2 and 4 pixels, all merged: A = AB = 4 + 16 = 20, B = 36; V_Rand = 40 / 56.
        truth = TWO_CELLS.copy()
        truth[0, 0] = IGNORED
        assert one_threshold(np.ones((1, 8)), truth) == near((5 / 7, 0))

    def test_different_shapes_are_refused(self):
        with pytest.raises(ValueError, match=r"`probability` \[1, 7\], `truth` \[1, 8\]"):
            scores.segment_scores(np.ones((1, 7)), TWO_CELLS, 0.5)

    def test_missing_scikit_image_names_the_way_out(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
        with pytest.raises(UserError, match=r"pip install 'unet_core\[scores\]'"):
            scores.segment_scores(np.ones((1, 8)), TWO_CELLS, 0.5)


class TestSegmentCurve:
    @pytest.fixture(autouse=True)
    def needs_scikit_image(self):
        pytest.importorskip("skimage", reason="V_Rand and V_Info need scikit-image")

    def test_constant_half_is_one_segment_at_every_threshold(self):
        # Below 0.5 everything exceeds the threshold, from there on nothing does.
        v_rand, v_info = scores.segment_curve(np.full((1, 8), 0.5), TWO_CELLS)
        assert v_rand == near(np.full(11, 25 / 37))
        assert v_info == near(np.zeros(11))

    def test_certain_float32_cells_exceed_the_last_threshold(self):
        # 0.95 on the membrane joins the cells up to 0.9; only above that do 1 and 0.95 differ.
        probability = np.where(TWO_CELLS, 1, 0.95).astype(np.float32)
        v_rand, v_info = scores.segment_curve(probability, TWO_CELLS)
        assert v_rand == near(np.array([25 / 37] * 10 + [1]))
        assert v_info == near(np.array([0] * 10 + [1]))

    def test_noisy_membranes_agree_with_the_formula_written_out(self):
        truth, probability = noisy_membranes()
        v_rand, v_info = scores.segment_curve(probability, truth)
        expected = [direct_scores(probability, truth, t) for t in scores.SEGMENT_THRESHOLDS]
        assert v_rand == near(np.array([pair[0] for pair in expected]))
        assert v_info == near(np.array([pair[1] for pair in expected]))
        assert v_rand.max() == near(max(pair[0] for pair in expected))
        # The picture is one where the threshold matters, and no trivial one is the best.
        assert 0 < v_rand.argmax() < 10
        assert v_rand.max() > 0.8 > 0.4 > v_rand.min()


def noisy_membranes():
    """Returns cells [80, 80] bool around random centres, and their probabilities, float32.

    Membranes of about 3 pixels separate the cells; the probabilities are blurred and noisy.
    """
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:80, :80]
    centres = rng.uniform(0, 80, (14, 2, 1, 1))
    nearest = np.sort(np.hypot(y - centres[:, 0], x - centres[:, 1]), 0)
    truth = nearest[1] - nearest[0] > 3
    blurred = cv2.GaussianBlur(truth.astype(np.float32), (0, 0), 1.2)
    noisy = blurred + rng.normal(0, 0.12, truth.shape)
    return truth, np.clip(noisy, 0, 1).astype(np.float32)


def flooded(mask):
    """Returns {pixel: id} of the 4-connected components of nested lists of bools."""
    ids = {}
    for start in ((y, x) for y, row in enumerate(mask) for x, inside in enumerate(row) if inside):
        if start in ids:
            continue
        ids[start] = number = max(ids.values(), default=0) + 1
        edge = [start]
        while edge:
            y, x = edge.pop()
            for near_y, near_x in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                inside = 0 <= near_y < len(mask) and 0 <= near_x < len(mask[0])
                if inside and mask[near_y][near_x] and (near_y, near_x) not in ids:
                    ids[near_y, near_x] = number
                    edge.append((near_y, near_x))
    return ids


def direct_scores(probability, truth, threshold):
    """V_Rand and V_Info straight from the formula, pixel by pixel."""
    from skimage.segmentation import watershed

    above = [[value > threshold for value in row] for row in probability.tolist()]
    cells, seeds = flooded(truth.tolist()), flooded(above)
    if seeds:
        markers = np.zeros(truth.shape, int)
        for pixel, number in seeds.items():
            markers[pixel] = number
        relief = np.where(above, 0, 1)
        grown = watershed(relief, markers, connectivity=1, watershed_line=True).tolist()
    else:
        grown = np.ones(truth.shape, int).tolist()

    a, b, c = collections.Counter(), collections.Counter(), collections.Counter()
    for (y, x), cell in cells.items():
        # A dam pixel is a segment of its own, named after its place.
        segment = grown[y][x] or (y, x)
        a[cell] += 1
        b[segment] += 1
        c[cell, segment] += 1
    n = len(cells)
    squares = [sum(count**2 for count in counter.values()) for counter in (a, b, c)]
    h_t, h_s, h_ts = (entropy(*(count / n for count in each.values())) for each in (a, b, c))
    v_info = 2 * (h_t + h_s - h_ts) / (h_t + h_s) if h_t and h_s else 0
    return 2 * squares[2] / (squares[0] + squares[1]), v_info


class TestLegacyRandF1:
    def test_perfect_prediction_scores_one(self):
        assert scores.legacy_rand_f1(TWO_CELLS, TWO_CELLS, 0.5) == 1

    def test_merged_cells_match_the_hand_value(self):
        # True pairs 3 + 6 = 9, all of them predicted; predicted pairs 7 * 6 / 2 = 21; 18 / 30.
        assert scores.legacy_rand_f1(np.ones((1, 8)), TWO_CELLS, 0.5) == near(0.6)

    def test_pixels_below_the_threshold_are_in_no_pair(self):
        # Segments of 3 and 2 pixels, not grown: 3 + 1 = 4 predicted pairs, all true; 8 / (9 + 4).
        probability = np.array([[1, 1, 1, 0, 0, 0.5, 1, 1]])
        assert scores.legacy_rand_f1(probability, TWO_CELLS, 0.5) == near(8 / 13)

    def test_empty_prediction_scores_zero(self):
        assert scores.legacy_rand_f1(np.zeros((1, 8)), TWO_CELLS, 0.5) == 0

    def test_no_pairs_at_all_are_not_defined(self):
        assert math.isnan(scores.legacy_rand_f1(np.zeros((1, 8)), np.zeros((1, 8)), 0.5))

    def test_ignored_pixels_are_left_out(self):
        # Cells of 2 and 4, merged: 1 + 6 = 7 true pairs, 15 predicted; 14 / 22.
        truth = TWO_CELLS.copy()
        truth[0, 0] = IGNORED
        assert scores.legacy_rand_f1(np.ones((1, 8)), truth, 0.5) == near(7 / 11)


class TestPixelError:
    def test_half_wrong_is_a_half(self):
        # 0.5 does not exceed 0.5.
        truth = np.array([[1, 1], [0, 0]])
        assert scores.pixel_error(np.array([[0.6, 0.5], [0.4, 0.7]]), truth, 0.5) == 0.5

    def test_ignored_pixels_do_not_count(self):
        truth = np.array([[1, IGNORED], [0, 0]])
        found = scores.pixel_error(np.array([[0.6, 0.9], [0.4, 0.7]]), truth, 0.5)
        assert found == near(1 / 3)

    def test_no_pixels_are_not_defined(self):
        assert math.isnan(scores.pixel_error(np.ones((2, 2)), np.full((2, 2), IGNORED), 0.5))

    def test_truth_may_be_bool(self):
        assert scores.pixel_error(np.array([[1.0, 0.0]]), np.array([[True, False]]), 0.5) == 0


def columns(first, last, *, width=20, height=1):
    """Returns a mask [height, width] of the columns `first` to `last`."""
    mask = np.zeros((height, width), bool)
    mask[:, first : last + 1] = True
    return mask


class TestBoundaryF1:
    def test_shift_within_the_tolerance_scores_one(self):
        assert scores.boundary_f1(columns(5, 9), columns(7, 11)) == 1

    def test_shift_beyond_the_tolerance_scores_zero(self):
        # Boundaries 5, 9 and 12, 16: the least distance is 3.
        assert scores.boundary_f1(columns(5, 9), columns(12, 16)) == 0
        assert scores.boundary_f1(columns(5, 9), columns(12, 16), tolerance_px=3) > 0

    def test_precision_and_recall_match_the_hand_value(self):
        # Predicted boundary 2, 4 and 10, 12; true 2, 4: precision 2/4, recall 1; 2 * 0.5 / 1.5.
        predicted = columns(2, 4) | columns(10, 12)
        assert scores.boundary_f1(predicted, columns(2, 4)) == near(2 / 3)
        assert scores.boundary_f1(columns(2, 4), predicted) == near(2 / 3)

    def test_distance_is_euclidean(self):
        # Single pixels 2 apart in both directions: sqrt 8 = 2.83.
        predicted, truth = np.zeros((2, 9, 9), bool)
        predicted[3, 3] = truth[5, 5] = True
        assert scores.boundary_f1(predicted, truth, tolerance_px=2.8) == 0
        assert scores.boundary_f1(predicted, truth, tolerance_px=2.9) == 1

    def test_inner_pixels_are_no_boundary(self):
        # Boundary of 7x7: 24 pixels; of the true 5x5 inside it: 16. With no tolerance none agree,
        # though all true pixels are predicted.
        predicted, truth = np.zeros((2, 11, 11), bool)
        predicted[2:9, 2:9] = truth[3:8, 3:8] = True
        assert scores.boundary_f1(predicted, truth, tolerance_px=0) == 0

    def test_edge_of_the_image_is_no_boundary(self):
        # The true class ends at 9, the predicted one at 4; 0 is the edge for both.
        assert scores.boundary_f1(columns(0, 4), columns(0, 9)) == 0

    def test_pixels_that_do_not_count_make_no_boundary(self):
        # From 10 on nothing is known, so that the truth has no end at 9; the prediction begins at 5
        # for certain. A truth that begins at 6 has its one boundary pixel there.
        predicted, truth, kept = columns(5, 14), columns(0, 9), columns(0, 9)
        assert scores.boundary_f1(predicted, truth, kept=kept) == 0
        assert scores.boundary_f1(predicted, columns(6, 9), kept=kept) == 1

    def test_neither_has_a_boundary_is_not_defined(self):
        nothing, everything = columns(0, -1), columns(0, 19)
        assert math.isnan(scores.boundary_f1(nothing, nothing))
        assert math.isnan(scores.boundary_f1(everything, everything))

    def test_only_one_has_a_boundary_scores_zero(self):
        nothing = columns(0, -1)
        assert scores.boundary_f1(nothing, columns(5, 9)) == 0
        assert scores.boundary_f1(columns(5, 9), nothing) == 0


class TestHausdorff95:
    def test_equal_masks_are_zero_apart(self):
        assert scores.hausdorff95(columns(5, 9), columns(5, 9)) == 0

    def test_greater_of_two_percentiles_matches_the_hand_value_either_way(self):
        # Rows of one pixel, all of it boundary: 0..20 and 0 alone. Distances 0, 1 ... 20, whose
        # 95th percentile is rank 19 of 0..20; the other way 0.
        first, second = np.zeros((2, 3, 40), bool)
        first[1, :21] = second[1, 0] = True
        assert scores.hausdorff95(first, second) == near(19)
        assert scores.hausdorff95(second, first) == near(19)

    def test_one_far_pixel_in_fifty_does_not_matter(self):
        # 49 pixels of the row agree; the 95th percentile of 49 zeros and one 30 is 0.
        first = np.zeros((40, 49), bool)
        first[5] = True
        second = first.copy()
        second[35, 20] = True
        assert scores.hausdorff95(first, second) == 0

    def test_class_that_fills_the_image_ends_at_its_edge(self):
        # One row: every pixel is at the edge. Predicted 0..19, truth 0..9: distances ten times 0,
        # then 1 ... 10; rank 0.95 * 19 = 18.05 lies between 9 and 10.
        found = scores.hausdorff95(columns(0, 19), columns(0, 9))
        assert found == pytest.approx(9.05)
        assert scores.hausdorff95(columns(0, 19), columns(0, 19)) == 0

    def test_neither_has_pixels_is_not_defined(self):
        assert math.isnan(scores.hausdorff95(columns(0, -1), columns(0, -1)))

    def test_only_one_has_pixels_is_the_diagonal(self):
        # 3-4-5: [3, 4] pixels.
        nothing, everything = np.zeros((3, 4), bool), np.ones((3, 4), bool)
        assert scores.hausdorff95(nothing, everything) == 5
        assert scores.hausdorff95(everything, nothing) == 5

    def test_pixels_that_do_not_count_are_left_out(self):
        kept = columns(0, 9)
        assert scores.hausdorff95(columns(5, 9) | columns(15, 19), columns(5, 9), kept) == 0
        assert math.isnan(scores.hausdorff95(columns(15, 19), columns(15, 19), kept))


def two_classes(*foreground):
    """Returns probabilities [1, W, 2] of two classes, from those of the second."""
    foreground = np.array([foreground])
    return np.stack([1 - foreground, foreground], -1)


class TestCalibration:
    def test_two_bins_match_the_hand_value(self):
        # Of ten bins: (0.6, 0.7] has 0.65 twice, one right: |1 - 1.3| = 0.3; (0.8, 0.9] has 0.9
        # right and 0.85 right: |2 - 1.75| = 0.25. Over 4 pixels: 0.55 / 4.
        calibration = scores.Calibration(bins=10)
        calibration.add(two_classes(0.65, 0.35, 0.9, 0.15), np.array([[1, 1, 1, 0]]))
        assert calibration.error() == near(0.55 / 4)
        table = calibration.table()
        assert len(table) == 10
        assert (table[6].low, table[6].high, table[6].pixels) == (0.6, 0.7, 2)
        assert table[6].confidence == near(0.65)
        assert table[6].accuracy == 0.5
        assert (table[8].pixels, table[8].accuracy) == (2, 1)
        assert table[8].confidence == near(0.875)

    def test_over_and_under_confidence_of_two_bins_do_not_cancel(self):
        # Bins (0.5, 0.75] and (0.75, 1]: 0.75 and right, 1 and wrong: |1 - 0.75| + |0 - 1|, halved.
        calibration = scores.Calibration(bins=4)
        calibration.add(two_classes(0.75, 1), np.array([[1, 0]]))
        assert calibration.error() == 0.625

    def test_bin_holds_its_upper_bound(self):
        calibration = scores.Calibration(bins=4)
        calibration.add(two_classes(0.5, 0.75, 1), np.array([[0, 1, 1]]))
        assert [row.pixels for row in calibration.table()] == [0, 1, 1, 1]

    def test_images_add_up(self):
        # Alone each is 0.4 or 0.6 off; together both lie in one bin: |1 - 1.2| / 2.
        calibration = scores.Calibration(bins=5)
        calibration.add(two_classes(0.6), np.array([[1]]))
        assert calibration.error() == near(0.4)
        calibration.add(two_classes(0.6), np.array([[0]]))
        assert calibration.error() == near(0.1)

    def test_ignored_pixels_do_not_count(self):
        calibration = scores.Calibration()
        calibration.add(two_classes(1, 0.6), np.array([[1, IGNORED]]))
        assert calibration.error() == 0

    def test_no_pixels_are_not_defined(self):
        calibration = scores.Calibration()
        calibration.add(two_classes(0.7), np.array([[IGNORED]]))
        assert math.isnan(calibration.error())
        assert all(row.pixels == 0 and math.isnan(row.accuracy) for row in calibration.table())

    def test_without_bins_is_refused(self):
        with pytest.raises(ValueError, match=r"`bins` \(0\)"):
            scores.Calibration(bins=0)


class TestPrecisionRecall:
    def test_curve_matches_the_hand_value(self):
        # Falling: 0.9 right (1/1, 1/2), 0.6 wrong (1/2, 1/2), 0.4 right (2/3, 2/2), 0.1 wrong
        # (2/4, 2/2). AP = 1/2 * 1 + 0 + 1/2 * 2/3 = 5/6.
        found = scores.PrecisionRecall()
        found.add(np.array([[0.9, 0.6], [0.4, 0.1]]), np.array([[1, 0], [1, 0]], bool))
        precision, recall, thresholds = found.curve()
        assert precision == near(np.array([1, 1 / 2, 2 / 3, 1 / 2]))
        assert recall == near(np.array([1 / 2, 1 / 2, 1, 1]))
        assert thresholds == near(np.array([0.9, 0.6, 0.4, 0.1]))
        assert found.average_precision() == near(5 / 6)

    def test_equal_probabilities_are_one_threshold(self):
        found = scores.PrecisionRecall()
        found.add(np.full((1, 4), 0.5), np.array([[1, 0, 0, 0]], bool))
        precision, recall, thresholds = found.curve()
        assert (precision, recall, thresholds) == ([0.25], [1], [0.5])
        assert found.average_precision() == 0.25

    def test_histogram_counts_by_hand(self):
        # Two bins: 0.1 and 0.499 in the first, 0.5 and 1 in the second.
        found = scores.PrecisionRecall()
        found.add(np.array([[0.1, 0.499], [0.5, 1.0]]), np.array([[0, 1], [1, 1]], bool))
        np.testing.assert_array_equal(found.histogram(2), [[1, 0], [1, 2]])
        with pytest.raises(ValueError, match="must divide the 1000 levels"):
            found.histogram(3)

    def test_images_add_up(self):
        # Each alone is perfect. Together: 0.9 right, 0.8 wrong, 0.3 right: 1/2 + 1/2 * 2/3.
        found = scores.PrecisionRecall()
        found.add(np.array([[0.9, 0.8]]), np.array([[True, False]]))
        assert found.average_precision() == 1
        found.add(np.array([[0.3, 0.2]]), np.array([[True, False]]))
        assert found.average_precision() == near(5 / 6)

    def test_probabilities_are_rounded_to_the_nearest_level(self):
        # Of 10 levels 0.26 and 0.34 are both 0.3.
        found = scores.PrecisionRecall(levels=10)
        found.add(np.array([[0.26, 0.34, 1]]), np.array([[True, False, False]]))
        _, _, thresholds = found.curve()
        assert thresholds == near(np.array([1, 0.3]))
        assert found.average_precision() == near(1 / 3)

    def test_pixels_that_do_not_count_are_left_out(self):
        found = scores.PrecisionRecall()
        found.add(np.array([[0.9, 1.0]]), np.array([[True, False]]), kept=np.array([[True, False]]))
        assert found.average_precision() == 1

    def test_class_that_is_nowhere_is_not_defined(self):
        found = scores.PrecisionRecall()
        assert math.isnan(found.average_precision())
        assert [values.size for values in found.curve()] == [0, 0, 0]
        found.add(np.array([[0.9]]), np.array([[False]]))
        assert math.isnan(found.average_precision())
        precision, recall, _ = found.curve()
        assert precision == [0]
        assert np.isnan(recall).all()

    def test_without_levels_is_refused(self):
        with pytest.raises(ValueError, match=r"`levels` \(0\)"):
            scores.PrecisionRecall(levels=0)


class TestObjects:
    def test_overlaps_match_at_the_thresholds_they_exceed(self):
        # Object 1: 8 of 10 pixels, IoU 0.8, which exceeds 0.5 ... 0.75 (six). Object 2: 7 predicted
        # of 7 true, IoU 1, all ten. 7 is invented.
        true = np.array([[1] * 10 + [0] + [2] * 7 + [0] * 3])
        predicted = np.array([[5] * 8 + [0] * 3 + [9] * 7 + [0] + [7] * 2])
        found = scores.object_scores(predicted, true)
        assert found.hits.tolist() == [2] * 6 + [1] * 4
        assert (found.predicted, found.true) == (3, 2)

    def test_two_halves_of_an_object_match_nothing(self):
        # IoU just 0.5 twice: each would do at the threshold 0.5, were it enough to reach it.
        found = scores.object_scores(np.array([[1, 1, 2, 2]]), np.array([[3, 3, 3, 3]]))
        assert found.hits.tolist() == [0] * 10
        assert (found.predicted, found.true) == (2, 1)

    def test_f1_is_made_of_the_sums(self):
        # First image: one of one, perfect. Second: 2 predicted, 1 true, no match. TP 1 of 3
        # predicted and 2 true: 2 / 5 at every threshold; the mean of the images would be 1/2.
        counts = scores.ObjectCounts()
        counts.add(np.array([[1, 1, 0, 0]]), np.array([[4, 4, 0, 0]]))
        counts.add(np.array([[1, 1, 2, 2]]), np.array([[3, 3, 3, 3]]))
        assert counts.f1() == dict.fromkeys(
            (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95), 0.4
        )
        assert counts.mean_f1() == near(0.4)

    def test_mean_is_over_the_thresholds(self):
        # IoU 3/5 = 0.6 exceeds 0.5 and 0.55: F1 is 1 twice, 0 eight times.
        counts = scores.ObjectCounts()
        counts.add(np.array([[1, 1, 1, 0, 0]]), np.array([[1, 1, 1, 1, 1]]))
        assert counts.mean_f1() == near(0.2)

    def test_only_missed_or_only_invented_objects_score_zero(self):
        for labels in ([[1, 0]], [[0, 0]]), ([[0, 0]], [[1, 0]]):
            counts = scores.ObjectCounts()
            counts.add(*map(np.array, labels))
            assert counts.mean_f1() == 0

    def test_no_objects_are_not_defined(self):
        counts = scores.ObjectCounts()
        counts.add(np.zeros((2, 2), int), np.zeros((2, 2), int))
        assert math.isnan(counts.mean_f1())

    def test_pixels_that_do_not_count_are_cut_off_both(self):
        # What is left of object 1 agrees; object 2 is gone.
        kept = np.array([[True, True, False, False]])
        found = scores.object_scores(np.array([[1, 1, 1, 2]]), np.array([[1, 1, 0, 0]]), kept)
        assert found.hits.tolist() == [1] * 10
        assert (found.predicted, found.true) == (1, 1)


class TestUnetMedicalDice:
    def test_constant_half_matches_the_hand_value(self):
        # N = 388^2. Truth all 1: class 0 (1e-6) / (N/4 + 1e-6), class 1 2 N/2 / (N/4 + N) = 0.8.
        found = scores.unet_medical_dice(np.full((50, 50, 2), 0.5), np.ones((50, 50), np.uint8))
        assert found == pytest.approx(0.4, abs=1e-9)

    def test_perfect_prediction_scores_one(self):
        # 776 is twice 388: linearly halved, every pixel is the mean of four equal ones.
        truth = np.zeros((776, 776), np.uint8)
        truth[:, 388:] = 1
        probabilities = np.stack([truth == 0, truth == 1], -1).astype(np.float32)
        assert scores.unet_medical_dice(probabilities, truth) == near(1)

    def test_class_that_is_not_there_and_not_predicted_scores_one(self):
        probabilities = np.zeros((10, 10, 2))
        probabilities[..., 0] = 1
        assert scores.unet_medical_dice(probabilities, np.zeros((10, 10), np.uint8)) == near(1)

    def test_label_of_a_half_is_one(self):
        # Columns 0, 1, 0, 1 ...: halved, all labels are 0.5 and so become 1, as is predicted.
        truth = np.tile(np.array([0, 1], np.uint8), (776, 388))
        probabilities = np.zeros((776, 776, 2))
        probabilities[..., 1] = 1
        assert scores.unet_medical_dice(probabilities, truth) == near(1)

    def test_ignored_pixels_are_left_out(self):
        # The left half is certain and right, the right half certain, wrong and unknown.
        truth = np.zeros((776, 776), np.uint8)
        truth[:, 388:] = IGNORED
        probabilities = np.zeros((776, 776, 2), np.float32)
        probabilities[:, :388, 0] = probabilities[:, 388:, 1] = 1
        assert scores.unet_medical_dice(probabilities, truth) == near(1)

    def test_probabilities_of_another_shape_are_refused(self):
        with pytest.raises(ValueError, match=r"Expected `probabilities` \[4, 4, 2\]"):
            scores.unet_medical_dice(np.zeros((4, 4, 1)), np.zeros((4, 4)))


class TestAlone:
    def test_no_score_needs_tensorflow(self):
        code = "import sys, unet_core.scores; print({'tensorflow', 'skimage'} & set(sys.modules))"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=pathlib.Path(__file__).parent.parent,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == "set()\n"
