import cv2
import keras
import numpy as np
import pytest

from unet_core.data.classes import ClassMap
from unet_core.data.folders import Sample
from unet_core.errors import UserError
from unet_core.inference.evaluation import describe_scores, score_samples
from unet_core.inference.files import find_images, predict_files
from unet_core.inference.predictor import Predictor

CLASSES = ClassMap.parse("0:membrane,255:cell")


@pytest.fixture
def predictor():
    """Says cell where the grey value is above 100, with the logit (grey - 100) / 20."""
    inputs = keras.Input((None, None, 1))
    outputs = keras.layers.Rescaling(1 / 20, -5.0, dtype="float32")(inputs)
    return Predictor(keras.Model(inputs, outputs), margin=2)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("10", "9"):
        cv2.imwrite(str(folder / f"{name}.png"), rng.integers(0, 256, (12, 17)).astype(np.uint8))
    return folder


class TestFindImages:
    def test_folder_in_numeric_order_without_earlier_predictions(self, folder):
        for suffix in ("predict", "overlay", "probability"):
            cv2.imwrite(str(folder / f"9_{suffix}.png"), np.zeros((2, 2), np.uint8))
        assert [path.name for path in find_images(folder)] == ["9.png", "10.png"]

    def test_one_file(self, folder):
        assert find_images(folder / "9.png") == [folder / "9.png"]

    def test_empty_folder_is_refused(self, tmp_path):
        with pytest.raises(UserError, match="holds no PNG"):
            find_images(tmp_path)


class TestPredictFiles:
    def test_writes_masks_and_probabilities_of_native_size(self, predictor, folder, tmp_path):
        table, warnings = predict_files(
            predictor, find_images(folder), tmp_path / "out", CLASSES, save_probabilities=True
        )
        image = cv2.imread(str(folder / "9.png"), cv2.IMREAD_UNCHANGED)
        mask = cv2.imread(str(tmp_path / "out" / "9_predict.png"), cv2.IMREAD_UNCHANGED)
        levels = cv2.imread(str(tmp_path / "out" / "9_probability.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(mask, np.where(image > 100, 255, 0))
        expected = 65535 / (1 + np.exp(-(image - 100.0) / 20))
        assert levels.dtype == np.uint16
        np.testing.assert_allclose(levels, expected, atol=1)
        assert warnings == []
        share = f"{(image > 100).mean():.3f}"
        assert share in next(line for line in table.splitlines() if line.startswith("9.png"))

    def test_overlay_colours_the_rarer_class_only(self, predictor, folder, tmp_path):
        predict_files(predictor, [folder / "9.png"], tmp_path / "out", CLASSES)
        image = cv2.imread(str(folder / "9.png"), cv2.IMREAD_UNCHANGED)
        overlay = cv2.imread(str(tmp_path / "out" / "9_overlay.png"), cv2.IMREAD_UNCHANGED)
        grey = (overlay == image[..., None]).all(-1)
        assert grey[image > 100].all()
        assert not grey[image <= 100].any()

    def test_unreadable_image_among_good_ones_is_listed_and_the_good_are_done(
        self, predictor, folder, tmp_path
    ):
        (folder / "5.png").write_bytes(b"no picture")
        _, warnings = predict_files(predictor, find_images(folder), tmp_path / "out", CLASSES)
        assert len(warnings) == 1
        assert "5.png: cannot be decoded" in warnings[0]
        assert (tmp_path / "out" / "10_predict.png").exists()

    def test_constant_prediction_is_a_warning_that_names_the_class(self, predictor, tmp_path):
        cv2.imwrite(str(tmp_path / "flat.png"), np.full((8, 8), 3, np.uint8))
        _, warnings = predict_files(predictor, [tmp_path / "flat.png"], tmp_path / "out", CLASSES)
        assert "flat.png: the prediction is constant, membrane everywhere" in warnings[0]

    def test_file_in_place_of_the_folder_is_one_message(self, predictor, folder):
        with pytest.raises(UserError, match="cannot be written"):
            predict_files(predictor, [folder / "9.png"], folder / "10.png", CLASSES)

    def test_stop_request_ends_between_images(self, predictor, folder, tmp_path):
        table, _ = predict_files(
            predictor, find_images(folder), tmp_path / "out", CLASSES, should_stop=lambda: True
        )
        assert "9.png" not in table
        assert list((tmp_path / "out").iterdir()) == []


class TestScoreSamples:
    def make(self, name, shift):
        rng = np.random.default_rng(shift)
        image = rng.integers(0, 256, (16, 16)).astype(np.uint8)
        return Sample(name, image, (image > 100 + shift).astype(np.uint8))

    def test_scores_are_those_of_all_pixels_together(self, predictor, tmp_path):
        samples = [self.make("a", 0), self.make("b", 60)]
        result = score_samples(predictor, samples, CLASSES, tmp_path / "pictures")
        truth = np.concatenate([sample.mask.ravel() for sample in samples])
        found = np.concatenate([sample.image.ravel() > 100 for sample in samples])
        both = (truth & found).sum()
        assert result["scores"]["dice/cell"] == pytest.approx(
            2 * both / (truth.sum() + found.sum())
        )
        assert result["confusion"][1][1] == both
        assert result["per_image"]["a"]["accuracy"] == 1
        assert {p.name for p in (tmp_path / "pictures").iterdir()} == {
            "a_errors.png",
            "b_errors.png",
        }

    def test_description_shows_baselines_beside_the_scores(self, predictor, tmp_path):
        result = score_samples(predictor, [self.make("a", 0)], CLASSES, tmp_path)
        text = describe_scores(result, CLASSES)
        assert "best threshold reaches 1.0000 (grey <= 100)" in text
        assert "always naming the most frequent class" in text

    def test_stop_request_gives_no_scores(self, predictor, tmp_path):
        samples = [self.make("a", 0)]
        stopped = score_samples(predictor, samples, CLASSES, tmp_path, should_stop=lambda: True)
        assert stopped is None
