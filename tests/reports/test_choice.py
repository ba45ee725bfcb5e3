import csv
import json
import math

import numpy as np
import pytest

from unet_core.conventions import IGNORED
from unet_core.data.classes import ClassMap
from unet_core.data.instance_masks import of_objects
from unet_core.data.reader import Pair
from unet_core.inference.post_processing import Step
from unet_core.reports import choice
from unet_core.reports.choice import Result, Row, Tally
from unet_core.reports.thresholds import ThresholdCounts

CLASSES = ClassMap.parse("0:membrane,255:cell")
NAMES = CLASSES.names
FILL, KEEP = Step("fill_holes", 1), Step("keep_largest", 1)


def drop(pixels):
    return Step("drop_smaller", 1, pixels)


def pair(mask, instances=None):
    """An image and its truth, of which the image does not matter."""
    instances = None if instances is None else np.array(instances)
    return Pair("a", np.zeros(np.shape(mask), np.uint8), np.array(mask), instances)


class TestResult:
    @pytest.mark.parametrize(
        ("by_fold", "expected"),
        [
            ((0.6, 0.6, 0.4), True),
            # Higher in all pixels together, but in as many folds lower as higher.
            ((0.9, 0.4, 0.5), False),
            ((0.9, math.nan, math.nan), True),
        ],
    )
    def test_better_is_a_higher_score_in_more_folds_than_lower(self, by_fold, expected):
        before = Result(0.5, (0.5, 0.5, 0.5))
        assert Result(0.51, by_fold).is_better_than(before) is expected
        assert not Result(0.5, by_fold).is_better_than(before)


class TestTally:
    def test_scores_are_those_of_all_pixels_together_and_of_each_fold(self):
        tally = Tally(CLASSES, 2, "cell")
        tally.add(0, np.array([[1, 1, 0]]), pair([[1, 0, 0]]))
        tally.add(1, np.array([[1, 0, 1]]), pair([[1, 0, IGNORED]]))
        found = tally.result("dice/cell")
        # Fold 0: 1 hit of 2 predicted and 1 true, 2/3. Fold 1 is right. Together 2 hits of 3 and 2.
        assert found.by_fold == pytest.approx((2 / 3, 1.0))
        assert found.score == pytest.approx(4 / 5)
        # The first object overlaps by just a half, which is no match; what is ignored is none.
        assert found.object_f1 == pytest.approx(2 * 1 / (2 + 2))

    def test_true_objects_are_those_that_the_mask_numbers(self):
        tally = Tally(of_objects(ClassMap.parse("0:background,1:cell"), 0), 1)
        tally.add(
            0, np.array([[1, 1, 1, 1, 0, 1]]), pair([[1, 1, 1, 1, 0, 1]], [[1, 1, 2, 2, 0, 3]])
        )
        # Of three true objects and two predicted ones, the last is found: the first covers no more
        # than half of what is taken for both.
        assert tally.result("dice/cell").object_f1 == pytest.approx(2 * 1 / (3 + 2))

    def test_classes_that_may_overlap_are_counted_each(self):
        tally = Tally(ClassMap.parse("cells,nuclei"), 1, "nuclei")
        # Cells: one right, one missed; nuclei: one right, one invented, beside what is ignored.
        tally.add(0, np.array([[3, 0, 2, 3]], np.uint8), pair([[3, 1, 0, IGNORED]]))
        assert tally.confusion.tolist() == [[[[1, 0], [1, 1]], [[1, 1], [0, 1]]]]
        found = tally.result("dice/mean")
        # 2 / 3 of each; of nuclei one of two objects that are predicted is there.
        assert found.score == pytest.approx(2 / 3)
        assert found.object_f1 == pytest.approx(2 * 1 / (1 + 2))

    def test_objects_are_not_scored_unless_asked(self):
        tally = Tally(CLASSES, 1)
        tally.add(0, np.array([[1, 0]]), pair([[1, 0]]))
        assert math.isnan(tally.result("accuracy").object_f1)


class TestFittedThresholds:
    def test_each_fold_has_that_of_the_others(self):
        # The classes are separated at 0.2, 0.6 and 0.8: of two folds, the range that is right in
        # both. Of 0 and 1 that is [0.2, 0.3) and [0.6, 0.7).
        counts = []
        for low, high in ((0.2, 0.305), (0.2, 0.805), (0.7, 0.905)):
            each = ThresholdCounts(1)
            second = np.array([[low, high]], np.float32)
            each.add(np.stack([1 - second, second], -1), np.array([[0, 1]], np.uint8))
            counts.append(each)
        found = choice.fitted_thresholds(counts, "accuracy", NAMES)
        # Of folds 1 and 2: from 0.7 to 0.8. Of 0 and 2: no threshold is right for all four pixels;
        # three of four are right below 0.3 (not 0.7) and from 0.7 on (not 0.305), and 0.7 is
        # nearest to 1/2 after 0.5, where 0.305 and 0.7 are wrong. Of 0 and 1: 0.2 to 0.3.
        assert [each.value for each in found] == [0.7, 0.7, 0.3]


class TestFittedVRand:
    def curve(self, **values):
        points = [values.get(f"t{number}", 0.0) for number in range(11)]
        return {"v_rand": points, "v_info": points}

    def test_each_fold_is_scored_at_the_threshold_of_the_others(self):
        curves = [
            {"a": self.curve(t3=0.9, t5=0.7)},
            {"a": self.curve(t3=0.2, t5=0.8)},
        ]
        # The first at 0.5, the best of the second: 0.7; the second at 0.3: 0.2.
        assert choice.fitted_v_rand(curves) == pytest.approx(0.45)

    def test_folds_without_cells_have_none(self):
        empty = {"v_rand": [math.nan] * 11, "v_info": [math.nan] * 11}
        assert math.isnan(choice.fitted_v_rand([{"a": empty}, {"a": self.curve(t3=1.0)}]))


class TestHelpful:
    def test_steps_that_raise_the_score_come_best_first_and_one_of_a_kind(self):
        before = Result(0.5, (0.5, 0.5))
        tried = {
            FILL: Result(0.6, (0.6, 0.6)),
            drop(10): Result(0.61, (0.6, 0.6)),
            drop(30): Result(0.7, (0.7, 0.7)),
            KEEP: Result(0.5, (0.5, 0.5)),
            Step("keep_largest", 0): Result(0.4, (0.4, 0.4)),
        }
        assert choice.helpful(tried, before) == [drop(30), FILL]


class TestCombinations:
    def test_are_the_best_two_three_and_so_on_in_the_order_they_are_done(self):
        assert choice.combinations([KEEP, drop(30), FILL]) == [
            (drop(30), KEEP),
            (FILL, drop(30), KEEP),
        ]
        assert choice.combinations([KEEP]) == []


class TestCandidates:
    def test_are_every_step_for_every_class(self):
        found = choice.candidates(CLASSES, fills_holes=True)
        assert len(found) == len(set(found)) == 2 * (1 + len(choice.SIZES) + 1)
        kinds = {step.kind for step in choice.candidates(CLASSES, fills_holes=False)}
        assert kinds == {"drop_smaller", "keep_largest"}


class TestFlagsOf:
    def test_are_those_of_the_settings(self):
        steps = [FILL, Step("drop_smaller", 0, 5), drop(30)]
        assert choice.flags_of(steps, CLASSES) == {
            "fill_holes": "cell",
            "drop_smaller": "membrane:5,cell:30",
        }


class TestIsBetterWeights:
    def test_best_ones_must_be_better_by_more_than_the_spread(self):
        # The deviation of 0.4 and 0.6 is 0.1414.
        other = Result(0.5, (0.4, 0.6))
        for weights in ("best", "best_raw"):
            assert not choice.is_better_weights(weights, Result(0.6, (0.5, 0.7)), other)
            assert choice.is_better_weights(weights, Result(0.65, (0.55, 0.75)), other)

    def test_last_ones_were_not_chosen_by_these_images(self):
        other = Result(0.5, (0.4, 0.6))
        assert choice.is_better_weights("last_raw", Result(0.6, (0.5, 0.7)), other)
        assert not choice.is_better_weights("last_raw", Result(0.6, (0.3, 0.9)), other)


class TestWrite:
    def test_table_and_files_hold_every_way_and_the_chosen_one(self, tmp_path):
        rows = [
            Row("last", "", (), Result(0.5, (0.4, math.nan))),
            Row("last", "cell:0.4", (FILL, drop(30)), Result(0.6, (0.5, 0.7), 0.8, 0.9)),
        ]
        text = choice.write(
            rows,
            rows[1],
            tmp_path,
            classes=CLASSES,
            score_by="dice/cell",
            images=7,
            use={"weights": "last"},
            command="python train_loop.py",
        )
        assert text.splitlines()[-1].startswith(
            "last cell:0.4 fill_holes=cell drop_smaller=cell:30"
        )
        assert text.splitlines()[-1].endswith("0.6000  0.1414     0.8000  0.9000       <")
        stored = json.loads((tmp_path / "choice.json").read_text())
        assert (stored["format"], stored["images"]) == (1, 7)
        assert stored["rows"][0] == {
            "weights": "last",
            "threshold": "0.5",
            "score": 0.5,
            "by_fold": [0.4, None],
            "object_f1": None,
            "v_rand": None,
            "chosen": False,
        }
        assert stored["rows"][1]["drop_smaller"] == "cell:30"
        assert (stored["chosen"], stored["test"]) == ({"weights": "last"}, None)
        with (tmp_path / "choice.csv").open() as file:
            table = list(csv.DictReader(file))
        assert [row["chosen"] for row in table] == ["0", "1"]
        assert table[1]["fold 1"] == "0.7"
