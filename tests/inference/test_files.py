import cv2
import keras
import numpy as np
import PIL.Image
import pytest
from array_samples import ArrayReader, named

from unet_core.conventions import IGNORED
from unet_core.data.classes import ClassMap
from unet_core.data.intensities import Scaling
from unet_core.data.layouts import find_images
from unet_core.data.reader import Reader
from unet_core.data.samples import Source
from unet_core.errors import UserError
from unet_core.inference.evaluation import describe_scores, score_samples
from unet_core.inference.files import predict_files
from unet_core.inference.predictor import Predictor

CLASSES = ClassMap.parse("0:membrane,255:cell")
READ = Reader(CLASSES, Scaling.parse("range"), cache_mb=0)


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


class TestPredictFiles:
    def test_writes_masks_and_probabilities_of_native_size(self, predictor, folder, tmp_path):
        table, warnings = predict_files(
            predictor, find_images(folder), tmp_path / "out", READ, save_probabilities=True
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

    def test_index_and_palette_masks_hold_class_numbers(self, predictor, folder, tmp_path):
        sources = [Source(folder / "9.png")]
        expected = cv2.imread(str(folder / "9.png"), cv2.IMREAD_UNCHANGED) > 100
        for mask_format, mode in (("index", "L"), ("palette", "P")):
            out = tmp_path / mask_format
            predict_files(predictor, sources, out, READ, mask_format=mask_format)
            with PIL.Image.open(out / "9_predict.png") as mask:
                assert mask.mode == mode
                np.testing.assert_array_equal(np.asarray(mask), expected)

    def test_pages_of_a_stack_have_masks_of_their_own(self, predictor, tmp_path):
        pages = [np.full((8, 9), value, np.uint8) for value in (20, 200)]
        cv2.imwritemulti(str(tmp_path / "s.tif"), pages)
        sources = find_images(tmp_path / "s.tif")
        table, _ = predict_files(predictor, sources, tmp_path / "out", READ)
        for page, value in enumerate((0, 255)):
            path = tmp_path / "out" / f"s_{page:03d}_predict.png"
            assert (cv2.imread(str(path), cv2.IMREAD_UNCHANGED) == value).all()
        assert "s_001" in table

    def test_overlay_colours_the_rarer_class_only(self, predictor, folder, tmp_path):
        predict_files(predictor, [Source(folder / "9.png")], tmp_path / "out", READ)
        image = cv2.imread(str(folder / "9.png"), cv2.IMREAD_UNCHANGED)
        overlay = cv2.imread(str(tmp_path / "out" / "9_overlay.png"), cv2.IMREAD_UNCHANGED)
        grey = (overlay == image[..., None]).all(-1)
        assert grey[image > 100].all()
        assert not grey[image <= 100].any()

    def test_unreadable_image_among_good_ones_is_listed_and_the_good_are_done(
        self, predictor, folder, tmp_path
    ):
        (folder / "5.png").write_bytes(b"no picture")
        _, warnings = predict_files(predictor, find_images(folder), tmp_path / "out", READ)
        assert len(warnings) == 1
        assert "5.png: cannot be decoded" in warnings[0]
        assert (tmp_path / "out" / "10_predict.png").exists()

    def test_constant_prediction_is_a_warning_that_names_the_class(self, predictor, tmp_path):
        cv2.imwrite(str(tmp_path / "flat.png"), np.full((8, 8), 3, np.uint8))
        _, warnings = predict_files(
            predictor, [Source(tmp_path / "flat.png")], tmp_path / "out", READ
        )
        assert "flat.png: the prediction is constant, membrane everywhere" in warnings[0]

    def test_file_in_place_of_the_folder_is_one_message(self, predictor, folder):
        with pytest.raises(UserError, match="cannot be written"):
            predict_files(predictor, [Source(folder / "9.png")], folder / "10.png", READ)

    def test_stop_request_ends_between_images(self, predictor, folder, tmp_path):
        table, _ = predict_files(
            predictor, find_images(folder), tmp_path / "out", READ, should_stop=lambda: True
        )
        assert "9.png" not in table
        assert list((tmp_path / "out").iterdir()) == []


class TestScoreSamples:
    def reader(self, *shifts):
        arrays = {}
        for number, shift in enumerate(shifts):
            rng = np.random.default_rng(shift)
            image = rng.integers(0, 256, (16, 16)).astype(np.uint8)
            arrays[named("ab"[number])] = image, (image > 100 + shift).astype(np.uint8)
        return ArrayReader(arrays, "0:membrane,255:cell")

    def score(self, predictor, read, folder, **kwargs):
        return score_samples(predictor, list(read.arrays), read, folder, **kwargs)

    def test_scores_are_those_of_all_pixels_together(self, predictor, tmp_path):
        read = self.reader(0, 60)
        result = self.score(predictor, read, tmp_path / "pictures")
        truth = np.concatenate([mask.ravel() for _, mask in read.arrays.values()])
        found = np.concatenate([image.ravel() > 100 for image, _ in read.arrays.values()])
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

    def test_ignored_pixels_count_nowhere(self, predictor, tmp_path):
        read = self.reader(60)
        ((image, mask),) = read.arrays.values()
        wrong = (image > 100) != (mask == 1)
        mask[wrong] = IGNORED
        result = self.score(predictor, read, tmp_path)
        assert result["scores"]["accuracy"] == 1
        assert np.sum(result["confusion"]) == (~wrong).sum()

    def test_colour_images_have_no_threshold_baseline(self, predictor, tmp_path):
        read = self.reader(0)
        read.dtype = np.dtype(np.float32)
        result = self.score(predictor, read, tmp_path)
        assert result["best_threshold"] == {}
        assert "threshold" not in describe_scores(result, CLASSES)

    def test_description_shows_baselines_beside_the_scores(self, predictor, tmp_path):
        text = describe_scores(self.score(predictor, self.reader(0), tmp_path), CLASSES)
        assert "best threshold reaches 1.0000 (grey <= 100)" in text
        assert "always naming the most frequent class" in text

    def test_stop_request_gives_no_scores(self, predictor, tmp_path):
        read = self.reader(0)
        assert self.score(predictor, read, tmp_path, should_stop=lambda: True) is None
