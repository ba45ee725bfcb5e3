import csv
import json

import cv2
import numpy as np
import pytest

from unet_core import scores
from unet_core.errors import UserError
from unet_core.reports import folds


def result_of(confusion, v_rand, chosen, boundary, name):
    """A scored fold of one image of two classes; `v_rand` at each threshold."""
    from unet_core import metrics

    found = metrics.scores(np.array(confusion), ["a", "b"]) | {"boundary_f1/a": boundary}
    curves = {name: {"v_rand": v_rand, "v_info": v_rand}}
    thresholds = {"v_rand": chosen, "v_info": chosen}
    chosen_for = {name: thresholds}
    return {
        "scores": found | scores.stack_scores(curves, chosen_for),
        "confusion": confusion,
        "per_image": {name: found},
        "segments": {"chosen": thresholds, "per_image": curves},
    }


def curve(**values):
    """Zeros at all thresholds but those named by their number."""
    return [values.get(f"t{number}", 0.0) for number in range(11)]


@pytest.fixture
def run_dirs(tmp_path):
    results = [
        result_of([[8, 2], [0, 10]], curve(t5=0.9, t6=0.6), 0.5, 0.5, "x"),
        result_of([[10, 0], [10, 0]], curve(t5=0.2, t6=0.8), 0.6, float("nan"), "y"),
    ]
    run_dirs = []
    for number, result in enumerate(results):
        run_dir = tmp_path / f"fold-{number}"
        (run_dir / "held_out").mkdir(parents=True)
        name = "xy"[number]
        picture = np.full((20, 30, 3), 80 * number, np.uint8)
        cv2.imwrite(str(run_dir / "held_out" / f"{name}_errors.png"), picture)
        stored = json.dumps(result).replace("NaN", "null")
        (run_dir / "scores.json").write_text(stored)
        run_dirs.append(run_dir)
    return run_dirs


class TestWrite:
    def test_mean_spread_and_pooled_match_hand_values(self, run_dirs, tmp_path):
        text = folds.write(run_dirs, tmp_path)
        with (tmp_path / "folds.csv").open() as file:
            table = {row["fold"]: row for row in csv.DictReader(file)}
        # Accuracy 18/20 and 10/20; all pixels together 28/40, as the folds are of one size.
        assert float(table["mean"]["accuracy"]) == pytest.approx(0.7)
        assert float(table["spread"]["accuracy"]) == pytest.approx(0.4 / 2**0.5)
        assert float(table["pooled"]["accuracy"]) == pytest.approx(0.7)
        # Class a: 8 hits of 10 true and 8 predicted (16/18); 10 hits of 10 and 20 (20/30).
        # Pooled: 18 hits, 20 true, 28 predicted: 36/48.
        assert float(table["mean"]["dice/a"]) == pytest.approx((16 / 18 + 20 / 30) / 2)
        assert float(table["pooled"]["dice/a"]) == pytest.approx(36 / 48)
        assert "dice/a" in text

    def test_pooled_segments_have_one_threshold_and_each_slice_its_chosen_one(
        self, run_dirs, tmp_path
    ):
        folds.write(run_dirs, tmp_path)
        pooled = json.loads((tmp_path / "folds.json").read_text())["pooled"]
        # Means over both slices: 0.55 at 0.5, 0.7 at 0.6. Each fold alone would reach 0.9 and 0.8.
        assert pooled["v_rand"] == pytest.approx(0.7)
        assert pooled["v_rand/threshold"] == 0.6
        assert pooled["v_rand/chosen"] == pytest.approx((0.9 + 0.8) / 2)

    def test_what_is_not_defined_does_not_count(self, run_dirs, tmp_path):
        folds.write(run_dirs, tmp_path)
        pooled = json.loads((tmp_path / "folds.json").read_text())["pooled"]
        assert pooled["boundary_f1/a"] == 0.5

    def test_worst_image_comes_first(self, run_dirs, tmp_path):
        folds.write(run_dirs, tmp_path)
        sheet = cv2.imread(str(tmp_path / "worst.png"))
        # Mean Dice of y is lower: class b is never found. Its picture is grey 80.
        assert (sheet[30, 15] == 80).all()
        assert (sheet[76, 15] == 0).all()

    def test_fold_without_scores_is_named(self, run_dirs, tmp_path):
        (run_dirs[1] / "scores.json").unlink()
        with pytest.raises(UserError, match=r"fold-1/scores\.json: the fold has not been scored"):
            folds.write(run_dirs, tmp_path)

    def test_slice_without_true_cells_does_not_count(self, run_dirs, tmp_path):
        path = run_dirs[1] / "scores.json"
        result = json.loads(path.read_text())
        result["segments"]["per_image"]["y"]["v_rand"] = [None] * 11
        path.write_text(json.dumps(result))
        folds.write(run_dirs, tmp_path)
        pooled = json.loads((tmp_path / "folds.json").read_text())["pooled"]
        assert (pooled["v_rand"], pooled["v_rand/threshold"]) == (0.9, 0.5)

    def test_picture_that_is_gone_is_named_with_the_way_out(self, run_dirs, tmp_path):
        (run_dirs[1] / "held_out" / "y_errors.png").unlink()
        with pytest.raises(UserError, match=r"y_errors\.png: cannot be read.*`mode` evaluate"):
            folds.write(run_dirs, tmp_path)
