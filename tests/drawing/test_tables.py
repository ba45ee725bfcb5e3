import numpy as np

from unet_core import metrics
from unet_core.drawing import tables


class TestTable:
    def test_first_column_is_flush_left_and_the_others_flush_right(self):
        found = tables.table(["class", "n"], [["a", "1000"], ["longer", "7"]])
        assert found == "class      n\n------  ----\na       1000\nlonger     7"

    def test_empty_last_cell_leaves_no_blanks(self):
        assert tables.table(["a", "b"], [["x", ""]]).splitlines()[-1] == "x"

    def test_table_without_rows_is_its_header(self):
        assert tables.table(["a", "bb"], []) == "a  bb\n-  --"


class TestNumber:
    def test_value_has_four_decimals(self):
        assert tables.number(2 / 3) == "0.6667"

    def test_value_that_is_not_defined_is_a_dash(self):
        assert tables.number(float("nan")) == "-"


class TestClassScores:
    def test_scores_stand_by_class_with_the_means_below(self):
        # Class a: TP 6, FN 2, FP 4: dice 12/18, iou 6/12, precision 6/10, recall 6/8.
        # Class b: TP 8, FN 4, FP 2: dice 16/22, iou 8/14, precision 8/10, recall 8/12.
        # Class c is neither there nor predicted.
        confusion = np.array([[6, 2, 0], [4, 8, 0], [0, 0, 0]])
        text = tables.class_scores(metrics.scores(confusion, ["a", "b", "c"]), ["a", "b", "c"])
        header, _, *rows = (line.split() for line in text.splitlines())
        assert header == ["class", "dice", "iou", "precision", "recall"]
        assert rows == [
            ["a", "0.6667", "0.5000", "0.6000", "0.7500"],
            ["b", "0.7273", "0.5714", "0.8000", "0.6667"],
            ["c", "-", "-", "-", "-"],
            ["mean", "0.6970", "0.5357"],
        ]
