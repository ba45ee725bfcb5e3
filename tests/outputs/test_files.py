import dataclasses
import errno
import gc
import json
import os
import pathlib
import pwd
import subprocess
import tempfile
import threading
import weakref

import cv2
import numpy as np
import PIL.Image
import pytest
import tifffile
from helpers import forked
from helpers.brightness import make_brightness

from unet_core.conventions import IGNORED
from unet_core.data import images
from unet_core.data.layouts.find import find_images
from unet_core.data.samples import Source
from unet_core.errors import UserError
from unet_core.inference.masks import MaskRule, Threshold, predicted_ids, write_mask
from unet_core.inference.post_processing import Step
from unet_core.inference.predictor import Predictor
from unet_core.outputs import files, picture, reduced
from unet_core.outputs.files import PredictionOutputs, predict_files
from unet_core.temporary import leftovers


@pytest.fixture(scope="module")
def predictor():
    """Says cell where the grey value is above 100, with the logit (grey - 100.5) / 20."""
    return Predictor(make_brightness(clear_class="cell"))


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("10", "9"):
        cv2.imwrite(str(folder / f"{name}.png"), rng.integers(0, 256, (12, 17)).astype(np.uint8))
    return folder


def written_in(folder):
    """The names of what lies in a folder, but for the list of what was predicted."""
    return {path.name for path in folder.iterdir()} - {"predicted.jsonl"}


def read(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


class TestPredictFiles:
    def test_writes_masks_and_probabilities_of_native_size(self, predictor, folder, tmp_path):
        wanted = PredictionOutputs(outputs=("mask", "probabilities"))
        done = predict_files(predictor, find_images(folder), tmp_path / "out", wanted)
        image = read(folder / "9.png")
        mask = read(tmp_path / "out" / "9_predict.png")
        levels = read(tmp_path / "out" / "9_probability.png")
        np.testing.assert_array_equal(mask, np.where(image > 100, 255, 0))
        expected = 65535 / (1 + np.exp(-(image - 100.5) / 20))
        assert levels.dtype == np.uint16
        np.testing.assert_allclose(levels, expected, atol=1)
        assert done.warnings == done.failures == ()
        assert done.megapixels == pytest.approx(2 * 12 * 17 / 1e6)
        share = f"{(image > 100).mean():.3f}"
        assert share in next(line for line in done.table.splitlines() if line.startswith("9.png"))
        assert not (tmp_path / "out" / "9_overlay.png").exists()

    def test_index_and_palette_masks_hold_class_numbers(self, predictor, folder, tmp_path):
        sources = [Source(folder / "9.png")]
        expected = read(folder / "9.png") > 100
        for mask_format, mode in (("index", "L"), ("palette", "P")):
            out = tmp_path / mask_format
            predict_files(predictor, sources, out, PredictionOutputs(mask_format=mask_format))
            with PIL.Image.open(out / "9_predict.png") as mask:
                assert mask.mode == mode
                np.testing.assert_array_equal(np.asarray(mask), expected)

    def test_names_of_classes_lead_to_no_other_folder(self, folder, tmp_path):
        predictor = Predictor(make_brightness(classes="0:a,1:left/right,2:left_right,3:../up"))
        sources = [Source(folder / "9.png")]
        wanted = PredictionOutputs(outputs=("probabilities",))
        predict_files(predictor, sources, tmp_path / "out", wanted)
        assert written_in(tmp_path / "out") == {
            "9_probability_a.png",
            "9_probability_left_right_1.png",
            "9_probability_left_right_2.png",
            "9_probability_.._up.png",
        }

    def test_pages_of_a_stack_have_masks_of_their_own(self, predictor, tmp_path):
        pages = [np.full((8, 9), value, np.uint8) for value in (20, 200)]
        cv2.imwritemulti(str(tmp_path / "s.tif"), pages)
        sources = find_images(tmp_path / "s.tif")
        done = predict_files(predictor, sources, tmp_path / "out", PredictionOutputs())
        for page, value in enumerate((0, 255)):
            assert (read(tmp_path / "out" / f"s_{page:03d}_predict.png") == value).all()
        assert "s_001" in done.table

    def test_names_that_would_collide_are_told_apart(self, predictor, folder, tmp_path):
        image = read(folder / "9.png")
        cv2.imwrite(str(folder / "9.tif"), 255 - image)
        predict_files(
            predictor, find_images(folder), tmp_path / "out", PredictionOutputs(outputs=("mask",))
        )
        names = written_in(tmp_path / "out")
        assert names == {"10_predict.png", "9_png_predict.png", "9_tif_predict.png"}
        np.testing.assert_array_equal(
            read(tmp_path / "out" / "9_tif_predict.png") == 255, 255 - image > 100
        )

    @pytest.mark.parametrize("alpha", [0.0, 0.45, 1.0])
    def test_overlay_colours_all_but_the_clear_class_as_strongly_as_asked(
        self, predictor, folder, tmp_path, alpha
    ):
        predict_files(
            predictor, [Source(folder / "9.png")], tmp_path / "out", PredictionOutputs(alpha=alpha)
        )
        image = read(folder / "9.png")
        # The legend stands below.
        overlay = read(tmp_path / "out" / "9_overlay.png")[: len(image)].astype(float)
        grey = image[..., None].astype(float)
        assert (overlay == grey)[image > 100].all()
        # Class 0 is vermillion, BGR 0, 94, 213.
        expected = grey * (1 - alpha) + np.array([0, 94, 213]) * alpha
        np.testing.assert_allclose(overlay[image <= 100], expected[image <= 100], atol=1)

    def test_outlines_leave_the_inside_as_it_is(self, predictor, tmp_path):
        image = np.full((20, 20), 200, np.uint8)
        image[5:15, 5:15] = 50
        cv2.imwrite(str(tmp_path / "a.png"), image)
        predict_files(
            predictor,
            [Source(tmp_path / "a.png")],
            tmp_path / "out",
            PredictionOutputs(("outlines",)),
        )
        outlined = read(tmp_path / "out" / "a_outlines.png")[:20]
        changed = (outlined != image[..., None]).any(-1)
        frame = np.zeros((20, 20), bool)
        frame[5:15, 5:15] = True
        frame[6:14, 6:14] = False
        np.testing.assert_array_equal(changed, frame)

    def test_objects_are_numbered(self, predictor, tmp_path):
        image = np.zeros((20, 40), np.uint8)
        image[2:8, 2:8] = image[2:8, 20:30] = image[12:18, 5:9] = 220
        cv2.imwrite(str(tmp_path / "a.png"), image)
        wanted = PredictionOutputs(("mask",), instances="components", object_class="cell")
        predict_files(predictor, [Source(tmp_path / "a.png")], tmp_path / "out", wanted)
        labels = read(tmp_path / "out" / "a_instances.png")
        assert labels.dtype == np.uint16
        assert sorted(np.unique(labels)) == [0, 1, 2, 3]
        assert labels[5, 5] != labels[5, 25] != labels[15, 7]
        coloured = read(tmp_path / "out" / "a_instances_overlay.png")
        assert len(np.unique(coloured[image > 0], axis=0)) == 3

    def test_objects_need_a_class_that_is_there(self, predictor, folder, tmp_path):
        for name, message in (("", "needs `object_class`, one of membrane, cell"), ("x", "x")):
            wanted = PredictionOutputs(instances="components", object_class=name)
            with pytest.raises(UserError, match=message):
                predict_files(predictor, find_images(folder), tmp_path / "out", wanted)
        assert not (tmp_path / "out").exists()

    def test_unreadable_image_among_good_ones_is_listed_and_the_good_are_done(
        self, predictor, folder, tmp_path
    ):
        for name in ("5.png", "6.tif"):
            (folder / name).write_bytes(b"no picture")
        done = predict_files(predictor, find_images(folder), tmp_path / "out", PredictionOutputs())
        assert len(done.failures) == 2
        for name, failure in zip(("5.png", "6.tif"), done.failures, strict=True):
            assert f"{name}: cannot be decoded" in failure
        assert (tmp_path / "out" / "10_predict.png").exists()

    def test_file_that_no_prediction_has_written_is_never_replaced(
        self, predictor, folder, tmp_path
    ):
        out = tmp_path / "out"
        out.mkdir()
        (out / "9_overlay.png").write_bytes(b"mine")
        for overwrite in (False, True):
            with pytest.raises(UserError, match=r"9_overlay\.png: there already, and not in the"):
                predict_files(
                    predictor, find_images(folder), out, PredictionOutputs(), overwrite=overwrite
                )
        assert {path.name for path in out.iterdir()} == {"9_overlay.png"}
        assert (out / "9_overlay.png").read_bytes() == b"mine"

    def test_constant_prediction_is_a_warning_that_names_the_class(self, predictor, tmp_path):
        cv2.imwrite(str(tmp_path / "flat.png"), np.full((8, 8), 3, np.uint8))
        done = predict_files(
            predictor, [Source(tmp_path / "flat.png")], tmp_path / "out", PredictionOutputs()
        )
        assert "flat.png: the prediction is constant, membrane everywhere" in done.warnings[0]

    def test_file_in_place_of_the_folder_is_one_message(self, predictor, folder):
        with pytest.raises(UserError, match="cannot be written"):
            predict_files(
                predictor, [Source(folder / "9.png")], folder / "10.png", PredictionOutputs()
            )

    def test_stop_request_ends_between_images(self, predictor, folder, tmp_path):
        done = predict_files(
            predictor,
            find_images(folder),
            tmp_path / "out",
            PredictionOutputs(),
            should_stop=lambda: True,
        )
        assert "9.png" not in done.table
        assert list((tmp_path / "out").iterdir()) == []


def make_pair():
    """Networks with the logits (grey - 100.5) / 20 and, the second, 2 more."""
    networks = [make_brightness(), make_brightness()]
    bias = networks[1].model.get_layer("head").bias
    bias.assign(np.asarray(bias) + 2)
    return Predictor(networks, window_px=32)


def of_pair(image):
    """The probabilities of cell by each network of `make_pair`, [2, H, W]."""
    logits = (image.astype(float) - 100.5) / 20
    return 1 / (1 + np.exp(-np.stack([logits, logits + 2])))


class TestUncertainty:
    @pytest.mark.parametrize(("most_pixels", "kind"), [(2**26, "png"), (100, "tif")])
    def test_entropy_of_the_mean_and_deviation_of_the_networks_in_16_bits(
        self, folder, tmp_path, monkeypatch, most_pixels, kind
    ):
        monkeypatch.setattr(picture, "MOST_PIXELS_WHOLE", most_pixels)
        wanted = PredictionOutputs(("probabilities", "uncertainty", "disagreement"))
        sources, out = find_images(folder), tmp_path / "out"
        predict_files(make_pair(), sources, out, wanted)
        first, second = of_pair(read(folder / "9.png"))
        mean = (first + second) / 2
        expected = {
            "probability": mean,
            "uncertainty": -(mean * np.log2(mean) + (1 - mean) * np.log2(1 - mean)),
            # The deviation of two numbers is half of their difference.
            "disagreement": abs(first - second) / 2,
        }
        for name, share in expected.items():
            levels = read(out / f"9_{name}.{kind}")
            assert levels.dtype == np.uint16
            np.testing.assert_allclose(levels, 65535 * share, atol=2)
        assert written_in(out) == {
            f"{number}_{name}.{kind}"
            for number in (9, 10)
            for name in ("probability", "uncertainty", "disagreement")
        }

    def test_disagreement_of_one_network_is_refused(self, predictor, folder, tmp_path):
        wanted = PredictionOutputs(("uncertainty", "disagreement"))
        with pytest.raises(UserError, match=r"`outputs` disagreement.*folder of folds"):
            predict_files(predictor, find_images(folder), tmp_path / "out", wanted)
        assert not (tmp_path / "out").exists()


class TestMakeMask:
    def test_masks_follow_threshold_and_steps_and_probabilities_do_not(self, predictor, tmp_path):
        image = np.zeros((20, 20), np.uint8)
        image[2:8, 2:8] = 200
        image[4:6, 4:6] = 120
        image[15, 15] = 200
        cv2.imwrite(str(tmp_path / "a.png"), image)
        # Grey 120 has the probability 1 / (1 + exp(-0.975)) = 0.73.
        expected = np.zeros((20, 20), np.uint8)
        expected[2:8, 2:8] = 255
        expected[4:6, 4:6] = 0
        expected[15, 15] = 255
        for steps in ([], [Step("drop_smaller", 1, 2)]):
            rule = MaskRule(Threshold(1, 0.8), steps)
            wanted = PredictionOutputs(("mask", "probabilities"), make_mask=rule)
            out = tmp_path / f"out{len(steps)}"
            predict_files(predictor, [Source(tmp_path / "a.png")], out, wanted)
            if steps:
                expected[15, 15] = 0
            np.testing.assert_array_equal(read(out / "a_predict.png"), expected)
            assert read(out / "a_probability.png")[15, 15] > 60000

    def test_steps_need_the_whole_picture(self, predictor, folder, tmp_path, monkeypatch):
        monkeypatch.setattr(picture, "MOST_PIXELS_WHOLE", 100)
        rule = MaskRule(None, [Step("keep_largest", 1)])
        sources = [Source(folder / "9.png")]
        done = predict_files(
            predictor, sources, tmp_path / "out", PredictionOutputs(make_mask=rule)
        )
        assert "leave `keep_largest` out" in done.failures[0]
        # A threshold does not.
        rule = MaskRule(Threshold(1, 0.9))
        done = predict_files(
            predictor, sources, tmp_path / "out2", PredictionOutputs(make_mask=rule)
        )
        assert done.failures == ()


class TestGoingOn:
    """What becomes of the pictures "9" and "10" when the same command is started again."""

    MASKS = PredictionOutputs(outputs=("mask",))

    def stopped_after_one(self, predictor, folder, out, wanted=MASKS, **kwargs):
        asked = iter([False, True])
        return predict_files(
            predictor, find_images(folder), out, wanted, should_stop=lambda: next(asked), **kwargs
        )

    def test_the_rest_is_done_and_what_is_finished_stays(self, predictor, folder, tmp_path):
        out = tmp_path / "out"
        self.stopped_after_one(predictor, folder, out)
        assert written_in(out) == {"9_predict.png"}
        before = (out / "9_predict.png").stat()
        done = predict_files(predictor, find_images(folder), out, self.MASKS)
        assert done.finished_before == 1
        assert "10.png" in done.table
        assert "9.png" not in done.table
        after = (out / "9_predict.png").stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
        assert read(out / "10_predict.png").shape == (12, 17)

    def test_killed_while_writing_one_replaces_that(self, predictor, folder, tmp_path, monkeypatch):
        # The mask is there, the overlay not yet.
        out = tmp_path / "out"

        def die(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(picture.pictures, "with_legend", die)
            with pytest.raises(KeyboardInterrupt):
                predict_files(predictor, find_images(folder), out, PredictionOutputs())
        with open(out / "predicted.jsonl", "ab") as file:
            file.write(b'{"run": "cut')
        assert (out / "9_predict.png").exists()
        for before in (0, 2):
            done = predict_files(predictor, find_images(folder), out, PredictionOutputs())
            assert done.finished_before == before
        assert len(list(out.glob("*_overlay.png"))) == 2
        (out / "9_overlay.png").unlink()
        done = predict_files(predictor, find_images(folder), out, PredictionOutputs())
        assert done.finished_before == 1

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"alpha": 0.9}, r"`alpha` \(0\.45 there, 0\.9 here\)"),
            (
                {"make_mask": MaskRule(Threshold(1, 0.4))},
                r"`threshold` \(0\.5 there, cell:0\.4 here",
            ),
            (
                {"make_mask": MaskRule(None, [Step("drop_smaller", 1, 9)])},
                r"`drop_smaller` .*cell:9",
            ),
            ({"outputs": ("mask", "overlay")}, r"`outputs` \(mask there, mask,overlay here\)"),
        ],
    )
    def test_other_settings_are_named_and_refused(self, predictor, folder, tmp_path, change, words):
        out = tmp_path / "out"
        self.stopped_after_one(predictor, folder, out)
        other = dataclasses.replace(self.MASKS, **change)
        with pytest.raises(UserError, match=rf"9_predict\.png: .*{words}.*`overwrite`"):
            predict_files(predictor, find_images(folder), out, other)
        assert not (out / "10_predict.png").exists()

    def test_other_weights_are_refused_and_replace_if_asked(self, folder, tmp_path):
        out = tmp_path / "out"
        pair = make_pair()
        first, second = (
            Predictor.of_window(window, classes=pair.classes, scaling=pair._scaling)
            for window in pair.window.windows
        )
        self.stopped_after_one(first, folder, out)
        before = read(out / "9_predict.png")
        with pytest.raises(UserError, match=r"made otherwise: other weights\. Give"):
            predict_files(second, find_images(folder), out, self.MASKS)
        self.stopped_after_one(second, folder, out, overwrite=True)
        assert (read(out / "9_predict.png") != before).any()
        # That was stopped, too: with the same flag it goes on.
        done = predict_files(second, find_images(folder), out, self.MASKS, overwrite=True)
        assert done.finished_before == 1
        # And once it has ended, the flag does all again.
        done = predict_files(second, find_images(folder), out, self.MASKS, overwrite=True)
        assert done.finished_before == 0

    def test_picture_that_has_changed_is_done_again(self, predictor, folder, tmp_path):
        out = tmp_path / "out"
        predict_files(predictor, find_images(folder), out, self.MASKS)
        cv2.imwrite(str(folder / "9.png"), np.full((5, 6), 255, np.uint8))
        done = predict_files(predictor, find_images(folder), out, self.MASKS)
        assert done.finished_before == 1
        assert (read(out / "9_predict.png") == np.full((5, 6), 255)).all()

    def test_picture_of_the_same_name_elsewhere_is_not_taken_for_it(
        self, predictor, folder, tmp_path
    ):
        out, other = tmp_path / "out", tmp_path / "other" / "9.png"
        predict_files(predictor, find_images(folder), out, self.MASKS)
        other.parent.mkdir()
        cv2.imwrite(str(other), np.zeros((3, 3), np.uint8))
        with pytest.raises(UserError, match=r"is the prediction of .*images/9\.png, and would be"):
            predict_files(predictor, [Source(other)], out, self.MASKS)
        assert read(out / "9_predict.png").shape == (12, 17)

    def test_predictions_that_were_removed_bind_nobody(self, predictor, folder, tmp_path):
        out = tmp_path / "out"
        predict_files(predictor, find_images(folder), out, self.MASKS)
        for path in out.glob("*.png"):
            path.unlink()
        other = dataclasses.replace(self.MASKS, alpha=0.9)
        assert predict_files(predictor, find_images(folder), out, other).finished_before == 0

    def test_file_about_the_objects_of_all_pictures_knows_the_finished_ones(
        self, predictor, folder, tmp_path
    ):
        wanted = PredictionOutputs(
            ("mask",), instances="components", object_class="cell", objects=("coco",)
        )
        stopped, whole = tmp_path / "stopped", tmp_path / "whole"
        self.stopped_after_one(predictor, folder, stopped, wanted)
        for out in (stopped, whole):
            predict_files(predictor, find_images(folder), out, wanted)
        first, second = (
            json.loads((out / "objects_coco.json").read_text()) for out in (stopped, whole)
        )
        assert len(first["images"]) == 2
        assert first["annotations"] == second["annotations"]

    def test_predictions_beside_their_images_are_no_images(self, predictor, folder):
        # But what a user has called so is one.
        cv2.imwrite(str(folder / "well_overlay.png"), np.zeros((4, 4), np.uint8))
        notes = []
        for _ in range(2):
            sources = find_images(folder, notes=notes)
            names = [source.path.name for source in sources]
            assert names == ["9.png", "10.png", "well_overlay.png"]
            predict_files(predictor, sources, folder, self.MASKS)
        (note,) = notes
        assert "3 earlier prediction(s) there are left out" in note


def test_name_that_the_file_system_refuses_is_a_failure_and_the_others_are_done(
    predictor, folder, tmp_path, monkeypatch
):
    write = picture.write_mask

    def refuse(stem, *args):
        if stem.name == "9":
            raise OSError(errno.ENAMETOOLONG, "File name too long", str(stem))
        write(stem, *args)

    monkeypatch.setattr(picture, "write_mask", refuse)
    done = predict_files(
        predictor, find_images(folder), tmp_path / "out", PredictionOutputs(("mask",))
    )
    (failure,) = done.failures
    assert "9.png: its files cannot be named after it (File name too long" in failure
    assert written_in(tmp_path / "out") == {"10_predict.png"}


class TestMetadata:
    @pytest.fixture
    def sources(self, tmp_path):
        # 0.5 m a pixel, its first corner at 500000 E, 4500000 N; 4 pixels a centimetre.
        geo = [(33550, 12, 3, (0.5, 0.5, 0.0), True)]
        geo += [(33922, 12, 6, (0.0, 0.0, 0.0, 500000.0, 4500000.0, 0.0), True)]
        tifffile.imwrite(
            tmp_path / "a.tif", np.full((20, 30), 200, np.uint8), extratags=geo,
            resolution=(4, 4), resolutionunit="CENTIMETER", metadata=None,
        )  # fmt: skip
        return [Source(tmp_path / "a.tif")]

    def test_of_large_images_is_in_every_tiff(self, predictor, sources, tmp_path, monkeypatch):
        monkeypatch.setattr(picture, "MOST_PIXELS_WHOLE", 100)
        wanted = PredictionOutputs(("mask", "probabilities"))
        done = predict_files(predictor, sources, tmp_path / "out", wanted)
        assert not [each for each in done.warnings if "georeference" in each]
        names = written_in(tmp_path / "out")
        assert len(names) == 2
        for path in (tmp_path / "out" / name for name in names):
            with tifffile.TiffFile(path) as tiff:
                tags = tiff.pages.first.tags
                assert tags[33550].value == (0.5, 0.5, 0.0)
                assert tags[33922].value[3:] == (500000.0, 4500000.0, 0.0)
                assert (tags[282].value, tags[296].value) == ((4, 1), 3)

    def test_of_small_images_is_a_resolution_and_a_warning(self, predictor, sources, tmp_path):
        wanted = PredictionOutputs(("mask", "overlay"))
        done = predict_files(predictor, sources, tmp_path / "out", wanted)
        assert "1 image(s) have a georeference" in done.warnings[-1]
        for path in (tmp_path / "out" / name for name in written_in(tmp_path / "out")):
            with PIL.Image.open(path) as picture:
                # 4 pixels a centimetre are 10.16 an inch.
                assert picture.info["dpi"] == pytest.approx((10.16, 10.16))


class TestClaim:
    @pytest.mark.parametrize("classes", ["0:a,1:b", "0:a,1:left/right,2:c"])
    @pytest.mark.parametrize("most_pixels", [2**26, 100])
    def test_takes_the_files_that_are_written(
        self, folder, tmp_path, monkeypatch, classes, most_pixels
    ):
        monkeypatch.setattr(picture, "MOST_PIXELS_WHOLE", most_pixels)
        predictor = Predictor(make_brightness(classes=classes), window_px=32)
        sources, out, claimed = find_images(folder), tmp_path / "out", []
        whole = most_pixels > 100
        wanted = PredictionOutputs(
            ("mask", "overlay", "outlines", "probabilities", "uncertainty"),
            instances="components",
            object_class="a",
            objects=("csv", "roi", "geojson", "coco") if whole else (),
        )
        done = predict_files(
            predictor, sources, out, wanted, claim=lambda *paths: claimed.extend(paths)
        )
        assert done.failures == ()
        assert sorted(claimed) == sorted(out.iterdir())


class TestPredictedIds:
    def test_second_of_two_classes_needs_more_than_half(self):
        found = predicted_ids(np.array([[[0.5, 0.5], [0.4, 0.6], [0.6, 0.4]]], np.float32))
        np.testing.assert_array_equal(found, [[0, 1, 0]])
        assert found.dtype == np.uint8

    def test_largest_of_several_is_the_class_and_nan_is_none(self):
        nan = np.nan
        found = predicted_ids(np.array([[[0.2, 0.5, 0.3], [nan] * 3, [0.1, nan, 0.9]]], np.float32))
        np.testing.assert_array_equal(found, [[1, IGNORED, IGNORED]])
        found = predicted_ids(np.array([[[nan, nan], [0.4, 0.6]]], np.float32))
        np.testing.assert_array_equal(found, [[IGNORED, 1]])


def make_infinite():
    """A network of an infinite weight: the grey value 0 gives 0 * inf = NaN, others infinity."""
    trained = make_brightness()
    head = trained.model.get_layer("head")
    head.kernel.assign(np.full(head.kernel.shape, np.inf))
    return trained


class TestOutputThatIsNotFinite:
    def test_image_is_a_failure_without_a_mask_and_the_others_are_done(self, tmp_path):
        for name, grey in (("a", 7), ("b", 0), ("c", 8)):
            cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((12, 17), grey, np.uint8))
        sources = [Source(tmp_path / f"{name}.png") for name in "abc"]
        wanted = PredictionOutputs(("mask", "overlay", "outlines", "probabilities"))
        done = predict_files(Predictor(make_infinite()), sources, tmp_path / "out", wanted)
        (failure,) = done.failures
        assert failure.startswith(
            f"{tmp_path / 'b.png'}: The network's output is not finite in 204"
        )
        assert (read(tmp_path / "out" / "a_predict.png") == 255).all()
        assert {name[0] for name in written_in(tmp_path / "out")} == {"a", "c"}

    def test_large_picture_whose_last_rows_fail_leaves_nothing(self, tmp_path, monkeypatch):
        monkeypatch.setattr(picture, "MOST_PIXELS_WHOLE", 1000)
        image = np.full((101, 67), 9, np.uint8)
        image[100, 3] = 0
        cv2.imwrite(str(tmp_path / "large.tif"), image)
        done = predict_files(
            Predictor(make_infinite(), window_px=32),
            [Source(tmp_path / "large.tif")],
            tmp_path / "out",
            PredictionOutputs(("mask", "probabilities")),
        )
        assert "large.tif: The network's output is not finite in 1 of" in done.failures[0]
        assert written_in(tmp_path / "out") == set()


class TestBands:
    def test_pictures_longer_than_a_png_may_be_are_written_so_too(
        self, predictor, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(images, "MOST_PNG_SIDE", 40)
        grey = np.repeat(np.uint8([[0, 200]]), 25, axis=1).repeat(8, axis=0)
        tifffile.imwrite(tmp_path / "a.tif", grey)
        monkeypatch.setattr("unet_core.outputs.reduced.LARGEST_PX", 30)
        done = predict_files(
            predictor, [Source(tmp_path / "a.tif")], tmp_path / "out", PredictionOutputs()
        )
        assert done.failures == ()
        assert written_in(tmp_path / "out") == {"a_predict.tif", "a_overlay.png"}
        found = tifffile.imread(tmp_path / "out" / "a_predict.tif")
        np.testing.assert_array_equal(found, 255 * (grey > 100))

    """Pictures too large to hold, here by lowering what that means."""

    @pytest.fixture
    def large(self, tmp_path, monkeypatch):
        monkeypatch.setattr(picture, "MOST_PIXELS_WHOLE", 1000)
        image = np.random.default_rng(1).integers(0, 256, (101, 67)).astype(np.uint8)
        cv2.imwrite(str(tmp_path / "large.tif"), image)
        return image, [Source(tmp_path / "large.tif")]

    def predictor(self, **settings):
        return Predictor(make_brightness(**settings), window_px=32)

    @pytest.mark.parametrize("how", ["components", "watershed"])
    def test_objects_are_those_of_the_whole(self, tmp_path, monkeypatch, how):
        if how == "watershed":
            pytest.importorskip("skimage", reason="the extra `scores` is not installed")
        # Two discs that overlap, across the rows of several bands, and one smaller object.
        y, x = np.mgrid[:101, :67]
        inside = np.hypot(x - 20, y - 50) < 16
        inside |= np.hypot(x - 47, y - 50) < 16
        inside[2:4, 2:4] = True
        cv2.imwrite(str(tmp_path / "a.tif"), np.where(inside, 200, 10).astype(np.uint8))
        sources, found = [Source(tmp_path / "a.tif")], []
        wanted = PredictionOutputs(
            ("mask",), instances=how, object_class="cell", least_object_px=10
        )
        for most in (2**26, 1000):
            monkeypatch.setattr(picture, "MOST_PIXELS_WHOLE", most)
            predictor, out = self.predictor(), tmp_path / str(most)
            assert predict_files(predictor, sources, out, wanted).failures == ()
            found.append(read(out / f"a_instances.{'tif' if most == 1000 else 'png'}"))
        np.testing.assert_array_equal(found[0], found[1])
        assert found[0].dtype == found[1].dtype == np.uint16
        assert found[0].max() == (2 if how == "watershed" else 1)
        inside[2:4, 2:4] = False
        np.testing.assert_array_equal(found[1] > 0, inside)

    @pytest.mark.parametrize("mask_format", ["values", "index", "palette"])
    def test_masks_and_probabilities_are_those_of_the_whole(self, large, tmp_path, mask_format):
        image, sources = large
        wanted = PredictionOutputs(("mask", "probabilities"), mask_format=mask_format)
        done = predict_files(self.predictor(), sources, tmp_path / "out", wanted)
        with PIL.Image.open(tmp_path / "out" / "large_predict.tif") as mask:
            assert mask.mode == ("P" if mask_format == "palette" else "L")
            values = np.asarray(mask)
        factor = 255 if mask_format == "values" else 1
        np.testing.assert_array_equal(values, (image > 100) * factor)
        levels = read(tmp_path / "out" / "large_probability.tif")
        np.testing.assert_allclose(levels, 65535 / (1 + np.exp(-(image - 100.5) / 20)), atol=3)
        assert f"{(image > 100).mean():.3f}" in done.table
        assert written_in(tmp_path / "out") == {
            "large_predict.tif",
            "large_probability.tif",
        }

    def test_overlay_is_reduced(self, large, tmp_path, monkeypatch):
        monkeypatch.setattr(reduced, "LARGEST_PX", 40)
        _, sources = large
        predict_files(self.predictor(), sources, tmp_path / "out", PredictionOutputs(("overlay",)))
        # 101 rows by a factor of 3: rows 0, 3 ... 99; and a legend of one line of 22.
        assert read(tmp_path / "out" / "large_overlay.png").shape == (34 + 22, 23, 3)

    def test_stopped_half_way_leaves_nothing(self, large, tmp_path):
        _, sources = large
        asked = iter([False, False, False, True])
        predict_files(
            self.predictor(),
            sources,
            tmp_path / "out",
            PredictionOutputs(),
            should_stop=lambda: next(asked),
        )
        assert written_in(tmp_path / "out") == set()

    def test_failing_half_way_leaves_nothing(self, large, tmp_path, monkeypatch):
        _, sources = large
        written = []

        def fail(*_):
            written.extend(leftovers(tmp_path / "out"))
            assert not list((tmp_path / "out").glob("*.tif"))
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(picture.Reduced, "add", fail)
        with pytest.raises(UserError, match="No space left on device"):
            predict_files(self.predictor(), sources, tmp_path / "out", PredictionOutputs())
        assert len(written) == 1
        assert written_in(tmp_path / "out") == set()

    def test_files_about_objects_are_refused(self, large, tmp_path):
        pytest.importorskip("skimage", reason="the extra `objects` is not installed")
        _, sources = large
        how = {"instances": "components", "object_class": "cell", "objects": ("csv",)}
        wanted = PredictionOutputs(**how)
        done = predict_files(self.predictor(), sources, tmp_path / "out", wanted)
        assert "objects are measured and filled in pictures of up to" in done.failures[0]


class TestTogether:
    def test_files_are_written_while_the_network_sees_the_next_image(
        self, predictor, folder, tmp_path, monkeypatch
    ):
        seen, second = [], threading.Event()
        bands = predictor.window.bands

        def counted(*args):
            seen.append(1)
            if len(seen) == 2:
                second.set()
            return bands(*args)

        def write_when_the_second_is_seen(*args):
            assert second.wait(timeout=60)
            return write_mask(*args)

        monkeypatch.setattr(predictor.window, "bands", counted)
        monkeypatch.setattr(picture, "write_mask", write_when_the_second_is_seen)
        done = predict_files(predictor, find_images(folder), tmp_path / "out", PredictionOutputs())
        assert not done.failures
        assert len(seen) == 2

    def test_a_picture_is_let_go_when_it_is_written(self, predictor, folder, tmp_path, monkeypatch):
        monkeypatch.setattr(files, "_MOST_PIXELS_WRITTEN_BESIDE", 0)
        before, predict_whole = [], picture._Picture.predict_whole

        def predict_alone(one):
            gc.collect()
            assert all(kept() is None for kept in before)
            pixels, band = predict_whole(one)
            before.append(weakref.ref(band.probabilities))
            return pixels, band

        monkeypatch.setattr(picture._Picture, "predict_whole", predict_alone)
        done = predict_files(predictor, find_images(folder), tmp_path / "out", PredictionOutputs())
        assert not done.failures
        assert len(before) == 2

    def test_what_is_wrong_is_told_in_the_order_of_the_images(
        self, predictor, folder, tmp_path, monkeypatch
    ):
        def refuse_one(stem, *args):
            if stem.name == "10":
                raise OSError(errno.ENAMETOOLONG, "File name too long", str(stem))
            return write_mask(stem, *args)

        monkeypatch.setattr(picture, "write_mask", refuse_one)
        for name in ("1.png", "11.png"):
            (folder / name).write_bytes(b"no picture")
        sources = [Source(folder / name) for name in ("1.png", "10.png", "11.png", "9.png")]
        done = predict_files(predictor, sources, tmp_path / "out", PredictionOutputs())
        found = [failure.partition(":")[0] for failure in done.failures]
        assert found == [str(source) for source in sources[:3]]
        assert "9_predict.png" in written_in(tmp_path / "out")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a disk and become another user")
class TestUnwritable:
    def test_full_disk_is_one_message_and_what_is_there_is_whole(self, predictor, tmp_path):
        disk = tmp_path / "disk"
        disk.mkdir()
        options = ["-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)]
        if subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
            pytest.skip("no small disk can be mounted here")
        try:
            rng = np.random.default_rng(0)
            for number in range(3):
                noise = rng.integers(0, 256, (250, 250)).astype(np.uint8)
                cv2.imwrite(str(tmp_path / f"{number}.png"), noise)
            sources = [Source(tmp_path / f"{number}.png") for number in range(3)]
            wanted = PredictionOutputs(("mask", "probabilities"))
            with pytest.raises(UserError, match=r"No space left.*make room or choose another"):
                predict_files(predictor, sources, disk, wanted)
            left = written_in(disk)
            assert left
            assert leftovers(disk) == []
            for name in left:
                assert read(disk / name).shape == (250, 250)
        finally:
            subprocess.run(["umount", str(disk)], check=True)

    def test_folder_an_unprivileged_user_may_not_write_is_one_message(self):
        code = """
import os, pathlib, sys
sys.path[:0] = sys.argv[1:3]
from helpers.brightness import make_brightness
from unet_core.data.samples import Source
from unet_core.errors import UserError
from unet_core.outputs.files import PredictionOutputs, predict_files
from unet_core.inference.predictor import Predictor
predictor = Predictor(make_brightness())
# Whatever is loaded late is loaded now: the user to come may not be allowed to read it.
source = Source(pathlib.Path(sys.argv[4], "a.png"))
predict_files(predictor, [source], sys.argv[5], PredictionOutputs())
os.setuid(int(sys.argv[3]))
folder = pathlib.Path(sys.argv[4])
try:
    predict_files(predictor, [Source(folder / "a.png")], folder, PredictionOutputs())
except UserError as error:
    print(error)
    sys.exit(2)
"""
        root = pathlib.Path(__file__).parents[2]
        nobody = str(pwd.getpwnam("nobody").pw_uid)
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as before:
            os.chmod(folder, 0o755)
            cv2.imwrite(f"{folder}/a.png", np.zeros((9, 9), np.uint8))
            os.chmod(f"{folder}/a.png", 0o644)
            paths = [str(root), str(root / "tests"), nobody, folder, before]
            found, out = forked.run_code(code, *paths)
            assert found == 2, out
            assert "Permission denied" in out
            assert os.listdir(folder) == ["a.png"]


class TestResize:
    def test_files_have_the_size_of_the_image_and_large_ones_are_refused(
        self, tmp_path, monkeypatch
    ):
        # Halved, the network sees the means of blocks: 150 in the left half, 0 in the right one.
        image = np.zeros((20, 40), np.uint8)
        image[:, :20] = 100 * (np.indices((20, 20)).sum(0) % 2) + 100
        cv2.imwrite(str(tmp_path / "a.png"), image)
        predictor = Predictor(make_brightness(resize="0.5"))
        wanted = PredictionOutputs(
            ("mask", "probabilities", "uncertainty", "overlay"),
            instances="components",
            object_class="cell",
        )
        sources = [Source(tmp_path / "a.png")]
        assert predict_files(predictor, sources, tmp_path / "out", wanted).failures == ()
        mask = read(tmp_path / "out" / "a_predict.png")
        # Between the last dark and the first light centre of the network's pixels, at 19 and 21,
        # probabilities are interpolated.
        np.testing.assert_array_equal(mask[:, :19], 255)
        np.testing.assert_array_equal(mask[:, 21:], 0)
        assert read(tmp_path / "out" / "a_instances.png").shape == (20, 40)
        assert read(tmp_path / "out" / "a_probability.png").shape == (20, 40)
        monkeypatch.setattr(picture, "MOST_PIXELS_WHOLE", 100)
        failures = predict_files(predictor, sources, tmp_path / "large", wanted).failures
        assert len(failures) == 1
        assert "a.png: has 40x20 pixels" in failures[0]
        assert "(`resize`)" in failures[0]
