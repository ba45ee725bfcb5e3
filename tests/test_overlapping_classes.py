"""`--heads=sigmoid`: discs of two kinds that overlap, from the check of the data to the export."""

import json
import shutil

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import flagsaver
from helpers.program import MEMBRANE, TINY, check_refused

from unet_core import door
from unet_core.data import images
from unet_core.inference.predictor import Predictor
from unet_core.inference.trained import open_trained
from unet_core.outputs import picture

NAMES = ("cells", "nuclei")
SMALLEST = [flag for flag in TINY if flag != MEMBRANE]
CLASSES = ("--mask_folder=cells,nuclei", "--classes=cells,nuclei", "--heads=sigmoid")
TRAIN = (
    *SMALLEST,
    "--base_filters=8",
    "--global_batch_size=4",
    "--loss=cross_entropy,batch_dice",
    "--train_steps=80",
    "--learning_rate=1e-2",
    "--warmup_steps=5",
    "--eval_every_steps=40",
    "--checkpoint_every_steps=40",
    "--report_every_steps=40",
    "--monitor=dice/nuclei",
    "--object_class=nuclei",
)


def write_discs(folder):
    """Writes six images of two kinds of discs with masks of each kind, and two to predict."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:64, :64]
    for number in range(8):
        part = "test" if number > 5 else "train"
        image = rng.integers(40, 60, (64, 64))
        written = {}
        for name, radius, brightness in (("cells", 12, 60), ("nuclei", 8, 100)):
            # The first disc of each kind at one place, so that they overlap in every image.
            places = [(32, 32), *rng.integers(8, 56, (2, 2))]
            mask = np.any([np.hypot(rows - y, columns - x) <= radius for y, x in places], axis=0)
            image += brightness * mask
            written[name] = np.uint8(255) * mask
        for name, pixels in {"image": image.astype(np.uint8), **written}.items():
            if part == "train" or name == "image":
                path = folder / part / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), pixels)
    return folder


def read_of_each(folder, number, suffix="_predict_{}"):
    """Returns the masks or probabilities of both classes, [H, W, 2]."""
    paths = [folder / f"{number}{suffix.format(name)}.png" for name in NAMES]
    return np.stack([cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in paths], -1)


def truth_of(data_dir, number):
    paths = [data_dir / "train" / name / f"{number}.png" for name in NAMES]
    return np.stack([cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in paths], -1) > 0


@pytest.fixture(scope="module")
def discs(tmp_path_factory):
    return write_discs(tmp_path_factory.mktemp("discs") / "data")


@pytest.fixture(scope="module")
def finished(discs, tmp_path_factory):
    """The folder of a run that has learned both kinds of discs."""
    run = tmp_path_factory.mktemp("finished") / "run"
    flags = ["train_loop", f"--data_dir={discs}", f"--run_dir={run}", *CLASSES, *TRAIN]
    with flagsaver.flagsaver():
        door.main(door._parse_flags(flags))
    return run


class TestCheckData:
    def test_shares_of_every_overlap_are_shown(self, discs, door):
        code, out, err = door("--mode=check_data", f"--data_dir={discs}", *CLASSES)
        assert code == 0, err
        truth = np.stack([truth_of(discs, number) for number in range(6)])
        both = np.count_nonzero(truth.all(-1))
        assert both > 0
        assert f"cells + nuclei {both:14d}  {both / truth[..., 0].size:7.2%}" in out
        assert f"no class {np.count_nonzero(~truth.any(-1)):20d}" in out

    def test_without_classes_the_folders_of_masks_are_proposed(self, discs, door):
        args = f"--data_dir={discs}", "--heads=sigmoid", "--mask_folder=cells,nuclei"
        code, out, _ = door("--mode=check_data", *args)
        assert code == 0
        assert "--classes=cells,nuclei" in out

    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            (["--classes=0:a,1:b", "--heads=sigmoid"], ["--classes", "names alone", "--heads"]),
            (["--classes=cells,nuclei"], ["--classes", "value:name", "--heads", "sigmoid"]),
            (["--classes=a,b,c,d,e,f,g,h", "--heads=sigmoid"], ["--classes", "1 to 7 names"]),
            (["--classes=cells", "--heads=sigmoid", "--mask_folder=cells,nuclei"], ["2 binary"]),
            (["--stray_values=nearest", *CLASSES], ["--stray_values", "exclude", "sigmoid"]),
        ],
    )
    def test_contradictions_are_refused(self, discs, door, flags, words):
        check_refused(door("--mode=check_data", f"--data_dir={discs}", *flags), *words)


class TestTrain:
    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            (["--border_weight=10"], ["--border_weight", "10", "exclude one another"]),
            (["--mask_format=index"], ["--mask_format", "index", "exclude one another"]),
            (["--threshold=cell:0.4"], ["--threshold", "cell", "cells, nuclei"]),
            (["--threshold=0.4,cells:0.3"], ["--threshold", "must name a class before each"]),
            (["--threshold=cells:0.4,cells:0.3"], ["--threshold", "each class once"]),
            (["--class_weights=1,2,3"], ["--class_weights", "2 classes cells, nuclei"]),
        ],
    )
    def test_what_has_no_meaning_is_refused(self, discs, door, tmp_path, flags, words):
        args = [f"--data_dir={discs}", f"--run_dir={tmp_path / 'run'}", *CLASSES, *TRAIN]
        check_refused(door(*args, *flags), *words)
        assert not (tmp_path / "run").exists()

    def test_two_classes_have_a_logit_each_and_one_has_one(self, finished, discs, door, tmp_path):
        assert open_trained(finished).model.output_shape[-1] == 2
        args = ["--mask_folder=nuclei", "--classes=nuclei", "--heads=sigmoid", *SMALLEST]
        args += ["--train_steps=2", "--foreground_share=0.5", "--class_balance=inverse"]
        run = tmp_path / "run"
        code, _, err = door(f"--data_dir={discs}", f"--run_dir={run}", *args)
        assert code == 0, err
        assert open_trained(run).model.output_shape[-1] == 1
        assert {path.name for path in (run / "predictions").glob("*.png")} == {
            f"{number}_{kind}.png" for number in (6, 7) for kind in ("predict_nuclei", "overlay")
        }

    def test_scores_are_those_of_the_files(self, finished, discs):
        stored = json.loads((finished / "scores.json").read_text())
        assert stored["scores"]["dice/mean"] > 0.7
        numbers = sorted(stored["per_image"])
        predicted = np.stack([read_of_each(finished / "held_out", n) for n in numbers]) == 255
        truth = np.stack([truth_of(discs, n) for n in numbers])
        confusion = []
        for place, name in enumerate(NAMES):
            p, y = predicted[..., place], truth[..., place]
            dice = 2 * (p & y).sum() / (p.sum() + y.sum())
            assert stored["scores"][f"dice/{name}"] == pytest.approx(dice)
            confusion.append([[(~p & ~y).sum(), (p & ~y).sum()], [(~p & y).sum(), (p & y).sum()]])
        assert stored["confusion"] == np.array(confusion).tolist()
        assert stored["scores"]["accuracy"] == pytest.approx((predicted == truth).mean())
        assert "unet_medical_dice" not in stored["scores"]
        assert "v_rand" not in stored["scores"]
        assert "object_f1/0.50" in stored["scores"]

    def test_held_out_scores_of_the_history_are_about_those_of_the_files(self, finished):
        header, *rows = [
            line.split(",") for line in (finished / "history.csv").read_text().splitlines()
        ]
        last = dict(zip(header, rows[-1], strict=True))
        stored = json.loads((finished / "scores.json").read_text())["scores"]
        # The history counts without a mirrored margin, so the two agree only about.
        for name in ("dice/cells", "dice/nuclei", "accuracy"):
            assert float(last[f"held_out/{name}"]) == pytest.approx(stored[name], abs=0.1)
            assert 0 <= float(last[f"train/{name}"]) <= 1

    def test_resumed_run_ends_like_the_undisturbed_one(self, discs, door, tmp_path):
        args = [f"--data_dir={discs}", *CLASSES, *SMALLEST, "--deterministic"]
        args += ["--loss=focal,batch_tversky", "--augment=nnunet"]
        for run, steps in (("whole", 4), ("parts", 2), ("parts", 4)):
            flags = [f"--run_dir={tmp_path / run}", f"--train_steps={steps}", "--schedule_steps=4"]
            code, _, err = door(*args, *flags)
            assert code == 0, err
        whole, parts = ((tmp_path / run / "history.csv").read_text() for run in ("whole", "parts"))
        assert whole == parts

    def test_begun_from_classes_that_exclude_one_another_the_head_is_new(
        self, discs, door, tmp_path
    ):
        first, second = tmp_path / "first", tmp_path / "second"
        common = [f"--data_dir={discs}", *SMALLEST, "--train_steps=2"]
        flags = ["--mask_folder=nuclei", "--classes=0:cells,255:nuclei"]
        code, _, err = door(*common, *flags, f"--run_dir={first}")
        assert code == 0, err
        code, _, err = door(*common, *CLASSES, f"--run_dir={second}", f"--init_from={first}")
        assert code == 0, err
        rows = (second / "init_from.csv").read_text().splitlines()
        assert [row for row in rows if row.startswith("head")] == [
            "head,loaded,its classes are new"
        ]


class TestFinishedRun:
    def test_evaluation_repeats_the_scores(self, finished, door, tmp_path):
        code, _, err = door("--mode=evaluate", f"--run_dir={finished}", f"--output_dir={tmp_path}")
        assert code == 0, err
        for name in ("scores", "confusion", "per_image"):
            first, second = (
                json.loads((folder / "scores.json").read_text())[name]
                for folder in (finished, tmp_path)
            )
            assert first == second

    def test_predicted_files_hold_each_class_and_their_overlap(self, finished, door, tmp_path):
        flags = ["--threshold=0.3", "--outputs=mask,outlines,probabilities,uncertainty"]
        flags += ["--instances=components", "--window_px=32", "--tta=flips"]
        code, _, err = door(
            "--mode=predict", f"--run_dir={finished}", f"--output_dir={tmp_path}", *flags
        )
        assert code == 0, err
        for number in (6, 7):
            masks = read_of_each(tmp_path, number)
            levels = read_of_each(tmp_path, number, "_probability_{}").astype(float)
            near = np.abs(levels - 0.3 * 65535) < 1
            np.testing.assert_array_equal((masks == 255)[~near], (levels > 0.3 * 65535)[~near])
            assert set(np.unique(masks)) == {0, 255}
            assert (masks == 255).all(-1).any()
            assert (masks == 0).all(-1).any()
            p = np.clip(levels / 65535, 1e-9, 1 - 1e-9)
            entropy = np.max(-p * np.log2(p) - (1 - p) * np.log2(1 - p), -1)
            found = cv2.imread(str(tmp_path / f"{number}_uncertainty.png"), cv2.IMREAD_UNCHANGED)
            np.testing.assert_allclose(found / 65535, entropy, atol=1e-3)

    def test_large_pictures_have_the_same_masks_as_tiff(
        self, finished, door, tmp_path, monkeypatch
    ):
        args = ["--mode=predict", f"--run_dir={finished}", "--window_px=32"]
        code, _, err = door(*args, f"--output_dir={tmp_path / 'whole'}")
        assert code == 0, err
        monkeypatch.setattr(picture, "MOST_PIXELS_WHOLE", 64)
        code, _, err = door(*args, f"--output_dir={tmp_path / 'bands'}")
        assert code == 0, err
        for name in NAMES:
            whole, bands = (
                cv2.imread(str(tmp_path / path), cv2.IMREAD_UNCHANGED)
                for path in (f"whole/6_predict_{name}.png", f"bands/6_predict_{name}.tif")
            )
            assert set(np.unique(whole)) == {0, 255}
            np.testing.assert_array_equal(bands, whole)

    def test_post_processing_touches_its_class_alone(self, finished, door, tmp_path):
        folders = [tmp_path / "plain", tmp_path / "processed"]
        common = ["--mode=predict", f"--run_dir={finished}", "--outputs=mask", "--threshold=0.3"]
        for folder, flags in zip(folders, ([], ["--drop_smaller=nuclei:4096"]), strict=True):
            code, _, err = door(*common, f"--output_dir={folder}", *flags)
            assert code == 0, err
        plain, processed = (read_of_each(folder, 6) for folder in folders)
        assert plain[..., 1].any()
        np.testing.assert_array_equal(processed[..., 0], plain[..., 0])
        # An image has 4096 pixels, and no object as many.
        assert not processed[..., 1].any()

    def test_thresholds_of_each_class_are_chosen_kept_scored_with_and_exported(
        self, finished, discs, door, tmp_path
    ):
        run = shutil.copytree(finished, tmp_path / "run")
        (run / "threshold.json").unlink(missing_ok=True)
        code, out, err = door("--mode=evaluate", f"--run_dir={run}", "--threshold=auto")
        assert code == 0, err
        kept = json.loads((run / "threshold.json").read_text())["thresholds"]
        # Four of six images are trained on.
        assert [(each["class"], each["score_by"], each["images"]) for each in kept] == [
            ("cells", "dice/cells", 4),
            ("nuclei", "dice/nuclei", 4),
        ]
        values = [each["threshold"] for each in kept]
        assert json.loads((run / "scores.json").read_text())["thresholds"] == dict(
            zip(NAMES, values, strict=True)
        )
        assert f"cells where its probability is above {values[0]:g}, chosen on training" in out
        # One class is named and the other has 1/2; what was chosen is there.
        code, out, err = door(
            "--mode=export",
            f"--run_dir={run}",
            f"--output_dir={tmp_path / 'export'}",
            "--threshold=nuclei:auto",
            "--formats=saved_model",
        )
        assert code == 0, err
        assert "cells where" not in out
        stored = json.loads((tmp_path / "export" / "unet_core.json").read_text())
        assert stored["settings"]["threshold"] == f"cells:0.5,nuclei:{values[1]}"
        image = images.read_image(discs / "test" / "image" / "6.png", 0)[None, ..., None]
        serve = tf.saved_model.load(tmp_path / "export" / "saved_model").signatures
        found = serve["serving_default"](tf.constant(image))
        above = found["probabilities"].numpy() > np.float32([0.5, values[1]])
        np.testing.assert_array_equal(found["masks"], above)

    def test_video_has_masks_of_each_class(self, finished, discs, door, tmp_path):
        path = tmp_path / "video.avi"
        image = cv2.imread(str(discs / "test" / "image" / "6.png"))
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"FFV1"), 10, (64, 64))
        writer.write(image)
        writer.release()
        args = ["--mode=predict", f"--run_dir={finished}", f"--output_dir={tmp_path / 'out'}"]
        code, _, err = door(*args, f"--input={path}", "--threshold=cells:0.3,nuclei:0.6")
        assert code == 0, err
        assert {each.name for each in (tmp_path / "out").glob("video*")} == {
            *("video_masks_cells.mkv", "video_masks_nuclei.mkv", "video_overlay.mp4")
        }
        above = Predictor(finished)(image[..., 0]) > np.float32([0.3, 0.6])
        for place, name in enumerate(NAMES):
            _, mask = cv2.VideoCapture(str(tmp_path / "out" / f"video_masks_{name}.mkv")).read()
            np.testing.assert_array_equal(mask[..., 0], np.uint8(255) * above[..., place])

    def test_exports_give_what_the_predictor_gives(self, finished, discs, door, tmp_path):
        runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
        folder = tmp_path / "export"
        args = ["--mode=export", f"--run_dir={finished}", f"--output_dir={folder}"]
        code, _, err = door(*args, "--formats=saved_model,keras,onnx", "--threshold=0.4")
        assert code == 0, err
        image = images.read_image(discs / "test" / "image" / "6.png", 0)[..., None]
        expected = Predictor(finished)(image)
        serve = tf.saved_model.load(folder / "saved_model").signatures
        named = serve["classes"]()
        assert [name.decode() for name in named["names"].numpy()] == list(NAMES)
        session = runtime.InferenceSession(folder / "model.onnx")
        assert session.get_modelmeta().custom_metadata_map["class_names"] == "cells\nnuclei"
        outputs = session.run(["probabilities", "masks"], {"images": image[None]})
        for found in (serve["serving_default"](tf.constant(image[None])), outputs):
            values = found.values() if isinstance(found, dict) else found
            by_type = {value.dtype.kind: value[0] for value in map(np.asarray, values)}
            np.testing.assert_allclose(by_type["f"], expected, atol=1e-4)
            near = np.abs(expected - 0.4) < 1e-3
            np.testing.assert_array_equal(by_type["u"][~near], (expected > 0.4)[~near])
        np.testing.assert_allclose(Predictor(folder)(image), expected, atol=1e-5)
        logits = keras.saving.load_model(folder / "model.keras")(image[None])
        assert logits.shape == (1, 64, 64, 2)

    def test_summary_shows_its_network(self, finished, door, tmp_path):
        code, out, err = door("--mode=summary", f"--run_dir={finished}", f"--output_dir={tmp_path}")
        assert code == 0, err
        assert "head" in out


class TestFolds:
    def test_scores_of_folds_are_pooled_and_their_mean_exported(self, discs, door, tmp_path):
        run, folder = tmp_path / "run", tmp_path / "export"
        args = [f"--data_dir={discs}", *CLASSES, *SMALLEST, "--train_steps=2", "--fold=all"]
        args.append("--folds=2")
        code, _, err = door(*args, f"--run_dir={run}")
        assert code == 0, err
        folds = [json.loads((run / f"fold-{n}" / "scores.json").read_text()) for n in range(2)]
        counts = np.sum([fold["confusion"] for fold in folds], 0)
        assert counts.shape == (2, 2, 2)
        pooled = json.loads((run / "folds.json").read_text())["pooled"]
        assert pooled["accuracy"] == pytest.approx(counts.trace(0, 1, 2).sum() / counts.sum())
        code, _, err = door("--mode=choose", f"--run_dir={run}")
        assert code == 0, err
        choice = json.loads((run / "choice.json").read_text())
        thresholds = [row["threshold"] for row in choice["rows"]]
        assert choice["rows"][0]["score"] == pytest.approx(pooled["dice/mean"])
        assert [thresholds[n].partition(":")[0] for n in range(3)] == ["0.5", *NAMES]
        steps = {name for row in choice["rows"] for name in row.get("drop_smaller", "").split(",")}
        assert {"cells:10", "nuclei:300"} <= steps
        (run / "choice.json").unlink()
        code, _, err = door("--mode=export", f"--run_dir={run}", f"--output_dir={folder}")
        assert code == 0, err
        image = images.read_image(discs / "test" / "image" / "6.png", 0)[..., None]
        expected = np.mean([Predictor(run / f"fold-{n}")(image) for n in range(2)], 0)
        np.testing.assert_allclose(Predictor(run)(image), expected, atol=1e-6)
        np.testing.assert_allclose(Predictor(folder)(image), expected, atol=1e-5)
