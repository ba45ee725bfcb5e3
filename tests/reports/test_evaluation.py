import csv

import cv2
import numpy as np
import pytest
from helpers.array_samples import ArrayReader, named
from helpers.brightness import make_brightness

from unet_core import scores
from unet_core.conventions import IGNORED
from unet_core.data.classes import ClassMap
from unet_core.data.instance_masks import numbered, of_objects
from unet_core.data.reader import Pair
from unet_core.errors import UserError
from unet_core.inference.predictor import Predictor
from unet_core.reports.evaluation import (
    Evaluation,
    choose_thresholds,
    describe_scores,
    score_samples,
)

CLASSES = ClassMap.parse("0:membrane,255:cell")


@pytest.fixture(scope="module")
def window():
    """Says cell where the grey value is above 100."""
    return Predictor(make_brightness()).window


def reader(*shifts):
    """One noisy image for each of `shifts`; its truth is where the grey value is above 100 + it."""
    arrays = {}
    for number, shift in enumerate(shifts):
        rng = np.random.default_rng(shift)
        image = rng.integers(0, 256, (16, 16)).astype(np.uint8)
        arrays[named("ab"[number])] = image, (image > 100 + shift).astype(np.uint8)
    return ArrayReader(arrays, "0:membrane,255:cell")


def score(window, read, folder, **kwargs):
    return score_samples(window, list(read.arrays), read, folder, **kwargs)


class TestTrueObjects:
    """Objects are scored against the numbers of masks, not against regions of one class."""

    # Three true objects in two regions.
    INSTANCES = np.repeat([[4, 4, 4, 4, 9, 9, 9, 0, 0, 2, 2, 2]], 3, 0)

    def evaluated(self, text, border_px, predicted, **settings):
        classes = of_objects(ClassMap.parse(text), border_px)
        ids = numbered([self.INSTANCES], classes).ids(classes)
        pair = Pair("a", np.zeros(ids.shape, np.uint8), ids, self.INSTANCES)
        evaluation = Evaluation(classes, **settings)
        evaluation.add(pair, np.eye(len(classes), dtype=np.float32)[predicted(ids)])
        return evaluation.result()

    def test_what_is_one_region_of_two_objects_is_wrong_though_every_pixel_is_right(self):
        found = self.evaluated("0:background,1:cell", 0, lambda ids: ids)
        assert found["scores"]["dice/cell"] == 1
        # The first region has 7 columns, and covers 4 / 7 of its larger object: a match at 0.5 and
        # 0.55. Both regions are matched, of 2 + 3.
        assert found["objects"]["0.50"] == found["objects"]["0.55"] == pytest.approx(4 / 5)
        assert found["objects"]["0.60"] == pytest.approx(2 / 5)
        assert "v_rand" not in found["scores"]

    def test_border_class_tells_them_apart(self):
        pytest.importorskip("skimage", reason="the extra `scores` is not installed")
        text = "0:background,1:cell,2:border"
        found = self.evaluated(text, 1, lambda ids: ids)
        assert set(found["objects"].values()) == {1.0}
        # Components leave the border out: 3/4, 2/3 and 1 of the three.
        found = self.evaluated(text, 1, lambda ids: ids, instances="components")
        assert found["objects"]["0.70"] == pytest.approx(2 / 3)

    def test_small_predicted_objects_are_none(self):
        found = self.evaluated("0:background,1:cell", 0, lambda ids: ids, least_object_px=10)
        # The region of 9 pixels is gone.
        assert found["objects"]["0.50"] == pytest.approx(2 / 4)


def test_two_images_of_one_name_are_refused():
    # Scores are kept by name; one would take the place of the other.
    read = reader(0)
    evaluation = Evaluation(CLASSES)
    pair = read(named("a"))
    probabilities = np.stack([pair.mask == 0, pair.mask == 1], -1).astype(np.float32)
    evaluation.add(pair, probabilities)
    with pytest.raises(ValueError, match="Two images are called 'a'"):
        evaluation.add(pair, probabilities)


class TestScoreSamples:
    def test_scores_are_those_of_all_pixels_together(self, window, tmp_path):
        read = reader(0, 60)
        result = score(window, read, tmp_path)
        truth = np.concatenate([mask.ravel() for _, mask in read.arrays.values()])
        found = np.concatenate([image.ravel() > 100 for image, _ in read.arrays.values()])
        both = (truth & found).sum()
        assert result["scores"]["dice/cell"] == pytest.approx(
            2 * both / (truth.sum() + found.sum())
        )
        assert result["confusion"][1][1] == both
        assert result["per_image"]["a"]["accuracy"] == 1
        assert "v_rand" not in result["scores"]

    def test_probabilities_are_counted_by_truth(self, window, tmp_path):
        read = reader(0, 60)
        found = score(window, read, tmp_path)["probabilities"]
        truth = np.concatenate([mask.ravel() for _, mask in read.arrays.values()])
        for name, is_class in (("membrane", truth == 0), ("cell", truth == 1)):
            assert len(found[name]["of_class"]) == len(found[name]["of_others"]) == 100
            assert sum(found[name]["of_class"]) == is_class.sum()
            assert sum(found[name]["of_others"]) == (~is_class).sum()
        # Where the network is sure of cells there are more of them than where it is not.
        cell = found["cell"]["of_class"]
        assert sum(cell[50:]) > sum(cell[:50])

    def test_each_score_is_that_of_its_function(self, window, tmp_path):
        read = reader(0, 60)
        found = score(window, read, tmp_path, boundary_px=1.0)["scores"]
        calibration, curve = scores.Calibration(), scores.PrecisionRecall()
        boundary, hausdorff, medical = [], [], []
        for image, mask in read.arrays.values():
            probabilities = window(image)
            calibration.add(probabilities, mask)
            curve.add(probabilities[..., 1], mask == 1)
            both = image > 100, mask == 1
            boundary.append(scores.boundary_f1(*both, tolerance_px=1.0))
            hausdorff.append(scores.hausdorff95(*both))
            medical.append(scores.unet_medical_dice(probabilities, mask))
        assert found["calibration_error"] == calibration.error() > 0
        assert found["average_precision/cell"] == curve.average_precision() < 1
        assert found["boundary_f1/cell"] == pytest.approx(np.mean(boundary))
        assert found["hausdorff95/cell"] == pytest.approx(np.mean(hausdorff))
        assert found["unet_medical_dice"] == pytest.approx(np.mean(medical))

    def test_files_are_masks_pictures_and_a_row_per_image(self, window, tmp_path):
        read = reader(0, 60)
        result = score(window, read, tmp_path)
        assert {p.name for p in (tmp_path / "held_out").iterdir()} == {
            "a_errors.png",
            "a_predict.png",
            "b_errors.png",
            "b_predict.png",
        }
        image = next(iter(read.arrays.values()))[0]
        mask = cv2.imread(str(tmp_path / "held_out" / "a_predict.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(mask, np.where(image > 100, 255, 0))
        with (tmp_path / "per_image.csv").open() as file:
            rows = {row["image"]: row for row in csv.DictReader(file)}
        for name in "ab":
            assert float(rows[name]["dice/cell"]) == pytest.approx(
                result["per_image"][name]["dice/cell"]
            )
        errors = cv2.imread(str(tmp_path / "held_out" / "b_errors.png"))
        worst = cv2.imread(str(tmp_path / "worst.png"))
        # The worst image is the first, under its title.
        np.testing.assert_array_equal(worst[22 : 22 + len(errors), 4 : 4 + errors.shape[1]], errors)
        assert cv2.imread(str(tmp_path / "precision_recall.png")) is not None

    def test_ignored_pixels_count_nowhere(self, window, tmp_path):
        read = reader(60)
        ((image, mask),) = read.arrays.values()
        wrong = (image > 100) != (mask == 1)
        mask[wrong] = IGNORED
        result = score(window, read, tmp_path, object_class="cell")
        assert result["scores"]["accuracy"] == 1
        assert np.sum(result["confusion"]) == (~wrong).sum()
        assert result["scores"]["average_precision/cell"] == pytest.approx(1)
        assert result["scores"]["pixel_error"] == 0

    def test_object_found_where_nothing_counts_is_none(self, window, tmp_path):
        image = np.zeros((16, 16), np.uint8)
        image[2:7, 2:7] = image[9:14, 9:14] = 255
        mask = (image > 100).astype(np.uint8)
        mask[9:14, 9:14] = IGNORED
        read = ArrayReader({named("a"): (image, mask)}, "0:membrane,255:cell")
        result = score(window, read, tmp_path, object_class="cell")
        assert result["scores"]["object_f1/mean"] == 1

    def test_nothing_but_ignored_pixels_and_no_cells_are_no_scores(self, window, tmp_path):
        pytest.importorskip("skimage", reason="the extra `scores` is not installed")
        read = reader(60)
        ((_, mask),) = read.arrays.values()
        mask[:] = IGNORED
        result = score(window, read, tmp_path, object_class="cell")
        assert np.isnan(result["scores"]["accuracy"])
        assert np.isnan(result["scores"]["v_rand"])

    def test_colour_images_have_no_threshold_baseline(self, window, tmp_path):
        read = reader(0)
        read.dtype = np.dtype(np.float32)
        result = score(window, read, tmp_path)
        assert result["best_threshold"] == {}
        assert "threshold" not in describe_scores(result, CLASSES)

    def test_class_that_no_mask_has_is_named_and_has_no_baseline(self, window, tmp_path):
        # No grey value is above 300.
        result = score(window, reader(200), tmp_path)
        text = describe_scores(result, CLASSES)
        assert "No mask has a pixel of cell." in text
        assert "cell: Dice" not in text
        assert result["best_threshold"].keys() == {"membrane"}
        assert "No mask" not in describe_scores(score(window, reader(0), tmp_path), CLASSES)

    def test_description_shows_baselines_beside_the_scores(self, window, tmp_path):
        text = describe_scores(score(window, reader(0), tmp_path), CLASSES)
        assert "best threshold reaches 1.0000 (grey <= 100)" in text
        assert "always naming the most frequent class" in text

    def test_stop_request_gives_no_scores(self, window, tmp_path):
        assert score(window, reader(0), tmp_path, should_stop=lambda: True) is None

    def test_file_in_place_of_the_folder_is_one_message(self, window, tmp_path):
        (tmp_path / "held_out").write_text("")
        with pytest.raises(UserError, match="scores and pictures cannot be written"):
            score(window, reader(0), tmp_path)


class TestWithoutScikitImage:
    def test_what_needs_it_is_left_out_and_said(self, window, tmp_path, monkeypatch):
        monkeypatch.setattr(scores, "can_score_segments", lambda: False)
        read = reader(0, 60)
        samples = list(read.arrays)
        result = score(window, read, tmp_path, object_class="cell", training_samples=samples)
        assert "v_rand" not in result["scores"]
        assert 0 < result["scores"]["object_f1/mean"] < 1
        assert "pip install 'unet_core[scores]'" in describe_scores(result, CLASSES)


class TestObjects:
    @pytest.fixture(autouse=True)
    def _needs_scikit_image(self):
        pytest.importorskip("skimage", reason="the extra `scores` is not installed")

    def two_cells(self, name="a"):
        """Two cells of 6x8 separated by a column that the image shows only half as dark."""
        mask = np.zeros((8, 17), np.uint8)
        mask[1:7, 0:8] = mask[1:7, 9:17] = 1
        image = np.where(mask == 1, 200, 0).astype(np.uint8)
        image[1:7, 8] = 120
        return ArrayReader({named(name): (image, mask)}, "0:membrane,255:cell")

    def test_segments_are_those_of_the_scores_and_the_best_threshold_parts_the_cells(
        self, window, tmp_path
    ):
        read = self.two_cells()
        result = score(window, read, tmp_path, object_class="cell")
        ((image, mask),) = read.arrays.values()
        v_rand, v_info = scores.segment_curve(window(image)[..., 1], mask == 1)
        assert result["segments"]["per_image"]["a"] == {
            "v_rand": v_rand.tolist(),
            "v_info": v_info.tolist(),
        }
        # The column has a probability of 1 / (1 + exp(-0.975)) = 0.73, the cells of 0.99.
        assert result["scores"]["v_rand/threshold"] == 0.8
        assert result["scores"]["v_rand"] == v_rand[8] > v_rand[5]
        assert "v_rand/chosen" not in result["scores"]

    def test_segments_may_be_left_out_and_nothing_else_changes(self, window, tmp_path):
        read = self.two_cells()
        training = {"object_class": "cell", "training_samples": list(read.arrays)}
        whole = score(window, read, tmp_path / "whole", **training)
        result = score(window, read, tmp_path / "part", segment_scores=False, **training)
        assert "segments" not in result
        assert "V_Rand" not in describe_scores(result, CLASSES)
        segments = [key for key in whole["scores"] if key.startswith(("v_rand", "v_info"))]
        assert len(segments) == 6
        assert {**result["scores"], **{key: whole["scores"][key] for key in segments}} == (
            whole["scores"]
        )

    def test_objects_are_counted(self, window, tmp_path):
        # At 1/2 the two cells are one object: none of its pairs overlaps by more than a half
        # (48 of 102 pixels).
        result = score(window, self.two_cells(), tmp_path, object_class="cell")
        assert result["objects"]["0.50"] == 0
        perfect = score(window, reader(0), tmp_path, object_class="cell")
        assert perfect["scores"]["object_f1/mean"] == 1

    def test_threshold_is_chosen_on_training_images(self, window, tmp_path):
        read = self.two_cells("trained_on")
        samples = list(read.arrays)
        chosen = choose_thresholds(window, samples, read, "cell")
        assert chosen["v_rand"] == 0.8
        held_out = reader(0)
        held_out.arrays |= read.arrays
        result = score_samples(
            window,
            list(held_out.arrays)[:1],
            held_out,
            tmp_path,
            object_class="cell",
            training_samples=samples,
        )
        assert result["segments"]["chosen"] == chosen
        assert result["scores"]["v_rand/threshold"] != 0.8
        curve = result["segments"]["per_image"]["a"]["v_rand"]
        assert result["scores"]["v_rand/chosen"] == curve[8]
        assert "chosen on training images" in describe_scores(result, CLASSES)

    def test_output_that_is_not_finite_is_told_with_the_image(self, window, tmp_path):
        def broken(image):
            probabilities = window(image)
            probabilities[3, 4] = np.nan
            return probabilities

        read = reader(0)
        message = r"a\.png: The network's output is not finite in 1 of 256 pixels"
        with pytest.raises(UserError, match=message):
            score(broken, read, tmp_path)
        with pytest.raises(UserError, match=message):
            choose_thresholds(broken, list(read.arrays), read, "cell")

    def test_class_that_is_not_there_is_named(self):
        with pytest.raises(UserError, match="nucleus"):
            Evaluation(CLASSES, object_class="nucleus")
