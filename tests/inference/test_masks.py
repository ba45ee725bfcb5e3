import cv2
import numpy as np

from unet_core.conventions import IGNORED
from unet_core.data.classes import ClassMap
from unet_core.inference.masks import (
    MaskRule,
    Threshold,
    Thresholds,
    predicted_ids,
    threshold_as_flag,
    usual_rule,
    write_mask,
)
from unet_core.inference.post_processing import Step

SECOND = np.array([[0.2, 0.5, 0.51, 0.9]], np.float32)
TWO = np.stack([1 - SECOND, SECOND], -1)


class TestPredictedIds:
    def test_of_two_classes_the_second_needs_more_than_a_half(self):
        assert predicted_ids(TWO).tolist() == [[0, 0, 1, 1]]

    def test_threshold_of_the_second_class(self):
        assert predicted_ids(TWO, Threshold(1, 0.6)).tolist() == [[0, 0, 0, 1]]
        assert predicted_ids(TWO, Threshold(1, 0.1)).tolist() == [[1, 1, 1, 1]]

    def test_threshold_of_the_first_class(self):
        # Its probabilities are 0.8, 0.5, 0.49, 0.1.
        assert predicted_ids(TWO, Threshold(0, 0.3)).tolist() == [[0, 0, 0, 1]]

    def test_probability_at_the_threshold_is_not_above_it(self):
        # 0.9 in float32 is not the 0.9 of float64: both are compared in float32.
        assert predicted_ids(TWO, Threshold(1, 0.9)).tolist() == [[0, 0, 0, 0]]

    def test_pixel_with_nan_is_of_no_class(self):
        broken = TWO.copy()
        broken[0, 0] = np.nan
        assert predicted_ids(broken, Threshold(1, 0.6)).tolist() == [[IGNORED, 0, 0, 1]]


class TestOverlapping:
    def test_id_is_the_sum_over_the_classes_above_the_threshold_of_each(self):
        # Of none, of the first, of the second, of both; at the threshold is not above it.
        p = np.array([[[0.4, 0.1], [0.41, 0.4], [0.2, 0.9], [1, 1]]], np.float32)
        assert predicted_ids(p, Thresholds((0.4, 0.4))).tolist() == [[0, 1, 2, 3]]
        assert predicted_ids(p, Thresholds((0.4, 0.95))).tolist() == [[0, 1, 0, 3]]
        assert usual_rule(ClassMap.parse("x,y"))(p).tolist() == [[0, 0, 2, 3]]

    def test_seven_classes_fit(self):
        p = np.ones((1, 1, 7), np.float32)
        assert usual_rule(ClassMap.parse("a,b,c,d,e,f,g"))(p).tolist() == [[127]]

    def test_pixel_with_nan_is_of_no_class(self):
        p = np.array([[[np.nan, 1], [0, 1]]], np.float32)
        assert usual_rule(ClassMap.parse("x,y"))(p).tolist() == [[IGNORED, 2]]

    def test_files_are_of_each_class(self, tmp_path):
        ids = np.array([[0, 1, 2, 3, IGNORED]], np.uint8)
        write_mask(tmp_path / "a", ids, ClassMap.parse("x/y,z"), "values")
        found = {p.name: cv2.imread(str(p), cv2.IMREAD_UNCHANGED) for p in tmp_path.iterdir()}
        assert found.keys() == {"a_predict_x_y.png", "a_predict_z.png"}
        assert found["a_predict_x_y.png"].tolist() == [[0, 255, 0, 255, 0]]
        assert found["a_predict_z.png"].tolist() == [[0, 0, 255, 255, 0]]


class TestThresholdAsFlag:
    def test_is_read_back_by_the_flag(self):
        two, both = ClassMap.parse("0:x,1:y"), ClassMap.parse("x,y")
        assert threshold_as_flag(MaskRule(), two) == "0.5"
        assert threshold_as_flag(MaskRule(Threshold(0, 0.1234567)), two) == "x:0.1234567"
        assert threshold_as_flag(MaskRule(Thresholds((0.4, 0.4))), both) == "0.4"
        assert threshold_as_flag(MaskRule(Thresholds((0.4, 0.6))), both) == "x:0.4,y:0.6"


class TestMaskRule:
    def test_steps_follow_the_threshold(self):
        # Above 0.1 all four pixels are one object; above 0.6 it is a single pixel.
        steps = [Step("drop_smaller", 1, 2)]
        assert MaskRule(Threshold(1, 0.1), steps)(TWO).tolist() == [[1, 1, 1, 1]]
        assert MaskRule(Threshold(1, 0.6), steps)(TWO).tolist() == [[0, 0, 0, 0]]
