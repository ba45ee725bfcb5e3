"""Folds that predict and are exported together, and what is chosen of them, by the program."""

import json
import shutil

import cv2
import numpy as np
import pytest
import tensorflow as tf
from helpers import forked
from helpers.program import MEMBRANE, check_refused, write_slices

from unet_core.inference import Predictor
from unet_core.inference.masks import MaskRule, Threshold
from unet_core.inference.post_processing import KINDS, Step

TINY = [
    MEMBRANE,
    "--crop_size=32",
    "--base_filters=2",
    "--depth=1",
    "--global_batch_size=2",
    "--precision=float32",
    "--train_steps=6",
    "--eval_every_steps=3",
    "--checkpoint_every_steps=3",
    "--folds=2",
    "--monitor=dice/membrane",
    "--object_class=cell",
    "--learning_rate=0.01",
    "--ema_decay=0.9",
]


def read(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def pooled_dice(folder, slices, weights):
    """Returns the Dice of membranes out of fold: of six slices each fold has held out three."""
    hits = both = 0
    for fold in range(2):
        predict = Predictor(folder / f"fold-{fold}", weights=weights)
        for number in range(3 * fold, 3 * fold + 3):
            found = predict(read(slices / "train" / "image" / f"{number}.png"))[..., 1] <= 0.5
            truth = read(slices / "train" / "label" / f"{number}.png") == 0
            hits, both = hits + (found & truth).sum(), both + found.sum() + truth.sum()
    return 2 * hits / both


def rule_of(use):
    """Returns how masks are made as was chosen."""
    names = ("membrane", "cell")
    name, _, value = use["threshold"].rpartition(":")
    steps = []
    for kind in KINDS:
        for text in use.get(kind, []):
            of_class, _, pixels = text.partition(":")
            steps.append(Step(kind, names.index(of_class), int(pixels or 0)))
    return MaskRule(Threshold(names.index(name), float(value)) if name else None, steps)


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    """Six slices to train on, and two with masks of others as the part test."""
    folder = write_slices(tmp_path_factory.mktemp("slices"), test_slices=2)
    for kind in ("image", "label"):
        (folder / "test" / kind).mkdir()
    for number in range(2):
        name = f"{number}.png"
        (folder / "test" / name).rename(folder / "test" / "image" / name)
        shutil.copy(folder / "train" / "label" / name, folder / "test" / "label" / name)
    return folder


@pytest.fixture(scope="module")
def trained(slices, tmp_path_factory):
    """A folder of two folds."""
    folder = tmp_path_factory.mktemp("trained") / "cv"
    flags = [f"--data_dir={slices}", f"--run_dir={folder}", *TINY, "--fold=all"]
    code, out = forked.program(*flags).finish()
    assert code == 0, out
    return folder


@pytest.fixture
def cv_dir(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "cv")


class TestPredict:
    def test_probabilities_are_the_mean_of_those_of_the_folds(
        self, trained, slices, door, tmp_path
    ):
        wanted = "--outputs=mask,probabilities,uncertainty,disagreement"
        code, out, err = door(
            "--mode=predict", f"--run_dir={trained}", f"--output_dir={tmp_path}", wanted
        )
        assert code == 0, err
        assert "the mean of 2 folds, steps 6, 6" in out
        image = read(slices / "test" / "image" / "0.png")
        each = [Predictor(trained / f"fold-{fold}")(image)[..., 1] for fold in range(2)]
        mean = np.mean(each, 0)
        np.testing.assert_allclose(read(tmp_path / "0_probability.png"), mean * 65535, atol=1)
        spread = abs(each[0] - each[1]) / 2
        np.testing.assert_allclose(read(tmp_path / "0_disagreement.png"), spread * 65535, atol=1)
        assert spread.max() > 0
        np.testing.assert_array_equal(
            read(tmp_path / "0_predict.png"), np.where(mean > 0.5, 255, 0)
        )

    def test_flag_file_of_one_fold_and_no_output_folder_will_do(
        self, cv_dir, slices, door, tmp_path
    ):
        flags = [f"--data_dir={slices}", *TINY, "--fold=1"]
        (tmp_path / "run.flags").write_text("\n".join(flags))
        code, _, err = door(
            f"--flagfile={tmp_path / 'run.flags'}", "--mode=predict", f"--run_dir={cv_dir}"
        )
        assert code == 0, err
        assert (cv_dir / "predictions" / "1_overlay.png").exists()

    def test_fold_that_is_not_trained_is_one_message(self, cv_dir, door):
        shutil.rmtree(cv_dir / "fold-1" / "checkpoints")
        for mode in ("predict", "export", "choose"):
            result = door(f"--mode={mode}", f"--run_dir={cv_dir}")
            check_refused(result, "2 folds, of which fold-1 is not trained", "--run_dir")

    def test_folds_that_differ_are_named(self, cv_dir, door):
        path = cv_dir / "fold-1" / "config.json"
        path.write_text(path.read_text().replace('"range"', '"zscore"'))
        result = door("--mode=predict", f"--run_dir={cv_dir}")
        check_refused(result, "fold-1 has --intensities zscore (not range)")


class TestEvaluate:
    def test_what_the_folds_have_trained_on_is_refused_with_ways_that_are_honest(
        self, trained, door
    ):
        result = door("--mode=evaluate", f"--run_dir={trained}")
        check_refused(result, "a folder of 2 folds", "--fold all", "--folds", "--data_dir")

    def test_mean_of_all_folds_is_scored_on_other_data(self, trained, door, tmp_path):
        other, out = write_slices(tmp_path), tmp_path / "out"
        # Slices of the same seed are the same; these are not.
        for path in (other / "train" / "image").iterdir():
            cv2.imwrite(str(path), 255 - read(path))
        code, _, err = door(
            "--mode=evaluate",
            f"--run_dir={trained}",
            f"--data_dir={other}",
            f"--output_dir={out}",
        )
        assert code == 0, err
        assert len(json.loads((out / "scores.json").read_text())["per_image"]) == 6
        mask = read(out / "held_out" / "0_predict.png")
        mean = Predictor(trained)(read(other / "train" / "image" / "0.png"))[..., 1]
        np.testing.assert_array_equal(mask, np.where(mean > 0.5, 255, 0))


class TestExport:
    def test_one_file_holds_all_networks_and_gives_what_predict_gives(
        self, trained, slices, door, tmp_path
    ):
        code, out, err = door(
            "--mode=export",
            f"--run_dir={trained}",
            f"--output_dir={tmp_path / 'e'}",
            "--threshold=cell:0.6",
        )
        assert code == 0, err
        assert "Exported 2 networks (steps 6, 6)" in out
        image = read(slices / "test" / "image" / "0.png")
        expected = Predictor(trained)(image)
        loaded = tf.saved_model.load(tmp_path / "e" / "saved_model")
        found = loaded.signatures["serving_default"](images=tf.constant(image[None, ..., None]))
        np.testing.assert_allclose(found["probabilities"][0], expected, atol=1e-5)
        ids = found["probabilities"][0, ..., 1] > 0.6
        np.testing.assert_array_equal(found["masks"][0], ids)
        # The export is predicted with, at its threshold, as a run is.
        code, out, err = door(
            "--mode=predict",
            f"--run_dir={tmp_path / 'e'}",
            f"--input={slices / 'test' / 'image'}",
            f"--output_dir={tmp_path / 'p'}",
            "--tta=none",
        )
        assert code == 0, err
        assert "Threshold: cell where its probability is above 0.6, as given." in out
        np.testing.assert_array_equal(
            read(tmp_path / "p" / "0_predict.png"), np.where(expected[..., 1] > 0.6, 255, 0)
        )


class TestThreshold:
    def test_of_folds_it_is_chosen_out_of_fold_once_and_kept(self, cv_dir, door, tmp_path):
        same = "--mode=predict", f"--run_dir={cv_dir}", "--threshold=auto"
        code, out, err = door(*same, f"--output_dir={tmp_path / 'a'}")
        assert code == 0, err
        assert "chosen out of fold (6 of them, dice/membrane" in out
        (kept,) = json.loads((cv_dir / "threshold.json").read_text())["thresholds"]
        assert (kept["class"], kept["steps"], kept["images"]) == ("membrane", [6, 6], 6)
        mask, written = read(tmp_path / "a" / "0_predict.png"), (cv_dir / "threshold.json").stat()
        code, _, err = door(*same, f"--output_dir={tmp_path / 'b'}")
        assert code == 0, err
        assert (cv_dir / "threshold.json").stat().st_mtime_ns == written.st_mtime_ns
        np.testing.assert_array_equal(read(tmp_path / "b" / "0_predict.png"), mask)
        # With other copies averaged it is another one.
        code, _, err = door(*same, f"--output_dir={tmp_path / 'c'}", "--tta=flips")
        assert code == 0, err
        assert len(json.loads((cv_dir / "threshold.json").read_text())["thresholds"]) == 2

    def test_of_a_run_it_is_chosen_on_training_images_and_scored_with(self, slices, door, tmp_path):
        run = tmp_path / "run"
        args = [f"--data_dir={slices}", f"--run_dir={run}", *TINY, "--folds=3", "--fold=1"]
        code, out, err = door(*args, "--threshold=auto", "--drop_smaller=membrane:4")
        assert code == 0, err
        # Four of six slices are trained on, two are held out.
        assert "chosen on training images (4 of them, dice/membrane" in out
        scored = json.loads((run / "scores.json").read_text())
        kept = json.loads((run / "threshold.json").read_text())["thresholds"][0]
        assert scored["threshold"] == {"class": "membrane", "value": kept["threshold"]}
        assert scored["drop_smaller"] == ["membrane:4"]
        # The same masks are scored again, and the file says no more of what is not asked for.
        code, _, err = door("--mode=evaluate", f"--run_dir={run}")
        assert code == 0, err
        assert json.loads((run / "scores.json").read_text()) == scored
        code, _, err = door("--mode=evaluate", f"--run_dir={run}", "--threshold=0.5")
        assert code == 0, err
        assert "threshold" not in json.loads((run / "scores.json").read_text())

    def test_other_data_are_scored_with_what_training_images_gave(self, cv_dir, door, tmp_path):
        other = write_slices(tmp_path)
        (other / "train" / "image" / "5.png").unlink()
        (other / "train" / "label" / "5.png").unlink()
        code, _, err = door(
            "--mode=evaluate",
            f"--run_dir={cv_dir / 'fold-0'}",
            f"--data_dir={other}",
            f"--output_dir={tmp_path / 'scores'}",
            "--threshold=auto",
        )
        assert code == 0, err
        assert (cv_dir / "fold-0" / "threshold.json").exists()

    @pytest.mark.parametrize(
        ("args", "words"),
        [
            (["--threshold=much"], ["--threshold", "'much'", "auto"]),
            (["--threshold=1.5"], ["--threshold", "'1.5'", "from 0 to 1"]),
            (["--threshold=nucleus:0.4"], ["nucleus", "membrane, cell"]),
            (["--fill_holes=nucleus"], ["nucleus", "membrane, cell"]),
            (["--drop_smaller=cell"], ["--drop_smaller", "'cell'", "CLASS:PIXELS"]),
            (["--drop_smaller=cell:0"], ["--drop_smaller", "cell:0"]),
        ],
    )
    def test_what_it_cannot_be_is_refused(self, trained, door, tmp_path, args, words):
        out = tmp_path / "out"
        result = door("--mode=predict", f"--run_dir={trained}", f"--output_dir={out}", *args)
        check_refused(result, *words)
        assert not out.exists()

    def test_three_classes_have_none(self, slices, door, tmp_path):
        classes = "--classes=0:membrane,128:other,255:cell"
        result = door(
            f"--data_dir={slices}", f"--run_dir={tmp_path / 'r'}", *TINY, classes, "--threshold=0.4"
        )
        check_refused(result, "--threshold (0.4)", "two classes", "3")
        assert not (tmp_path / "r").exists()

    def test_export_of_an_unknown_run_chooses_nothing(self, trained, slices, door, tmp_path):
        door("--mode=export", f"--run_dir={trained}", f"--output_dir={tmp_path / 'e'}")
        result = door(
            "--mode=predict",
            f"--run_dir={tmp_path / 'e'}",
            f"--input={slices / 'test' / 'image'}",
            f"--output_dir={tmp_path / 'p'}",
            "--threshold=auto",
        )
        check_refused(result, "--threshold (auto)", "is an export", "--run_dir")


class TestChoose:
    def test_table_files_and_a_command_that_predicts_so(self, cv_dir, slices, door, tmp_path):
        pytest.importorskip("skimage", reason="the extra `scores` is not installed")
        code, out, err = door("--mode=choose", f"--run_dir={cv_dir}")
        assert code == 0, err
        stored = json.loads((cv_dir / "choice.json").read_text())
        assert stored["images"] == 6
        assert "Each image is predicted by the one network that has not been trained" in out
        assert stored["command"] in out
        plain = stored["rows"][0]
        assert (plain["weights"], plain["threshold"]) == ("last", "0.5")
        # The scores out of fold are those of the table of all folds.
        pooled = json.loads((cv_dir / "folds.json").read_text())["pooled"]
        assert plain["score"] == pytest.approx(pooled["dice/membrane"])
        raw = next(row for row in stored["rows"] if row["weights"] == "last_raw")
        assert raw["score"] == pytest.approx(pooled_dice(cv_dir, slices, "last_raw"))
        assert raw["score"] != plain["score"]
        (chosen,) = (row for row in stored["rows"] if row["chosen"])
        assert chosen["score"] >= plain["score"]
        use = stored["chosen"]
        assert (use["weights"], use["threshold"]) == (chosen["weights"], chosen["threshold"])
        assert use["steps"] == [6, 6] or use["weights"].startswith("best")
        flags = stored["command"].split(" ")[2:]
        flags = [flag.replace("FOLDER", str(slices / "test" / "image")) for flag in flags]
        flags = [flag.replace("MASKS", str(tmp_path / "masks")) for flag in flags]
        code, _, err = door(*flags)
        assert code == 0, err
        # One network and all are scored on the part test, which no network was trained on.
        rule, right = rule_of(use), []
        for path in (cv_dir, cv_dir / "fold-0", cv_dir / "fold-1"):
            predict, hits, both = Predictor(path, weights=use["weights"]), 0, 0
            for number in range(2):
                found = rule(predict(read(slices / "test" / "image" / f"{number}.png"))) == 0
                truth = read(slices / "test" / "label" / f"{number}.png") == 0
                hits, both = hits + (found & truth).sum(), both + found.sum() + truth.sum()
            right.append(2 * hits / both)
        test = stored["test"]
        assert [test["images"], test["all"], *test["alone"]] == pytest.approx([2, *right])
        assert f"the mean of all 2 networks {right[0]:.4f}" in out
        # The folder goes by it of itself.
        code, out, err = door(
            "--mode=predict", f"--run_dir={cv_dir}", f"--output_dir={tmp_path / 'same'}"
        )
        assert code == 0, err
        assert f"--weights={use['weights']} --tta=none" in out
        np.testing.assert_array_equal(
            read(tmp_path / "same" / "0_predict.png"), read(tmp_path / "masks" / "0_predict.png")
        )

    def test_what_is_stored_is_predicted_and_exported_with(self, cv_dir, slices, door, tmp_path):
        use = {"weights": "last_raw", "tta": "flips", "threshold": "cell:0.7", "steps": [6, 6]}
        use |= {"drop_smaller": ["cell:9"]}
        (cv_dir / "choice.json").write_text(json.dumps({"format": 1, "chosen": use}))
        flags = f"--run_dir={cv_dir}", "--mode=predict", f"--output_dir={tmp_path / 'a'}"
        code, out, err = door(*flags, "--outputs=mask,probabilities")
        assert code == 0, err
        assert "--weights=last_raw --tta=flips --threshold=cell:0.7 --drop_smaller=cell:9" in out
        expected = Predictor(cv_dir, weights="last_raw", tta="flips")(
            read(slices / "test" / "image" / "0.png")
        )
        levels = read(tmp_path / "a" / "0_probability.png")
        np.testing.assert_allclose(levels, expected[..., 1] * 65535, atol=1)
        ids = rule_of(use)(expected)
        np.testing.assert_array_equal(read(tmp_path / "a" / "0_predict.png") > 0, ids == 1)
        # No copies are averaged in an export, so the threshold is not taken over; weights are.
        code, out, err = door(
            "--mode=export", f"--run_dir={cv_dir}", f"--output_dir={tmp_path / 'e'}"
        )
        assert code == 0, err
        settings = json.loads((tmp_path / "e" / "unet_core.json").read_text())["settings"]
        assert (settings["threshold"], settings["drop_smaller"]) == ("0.5", ["cell:9"])
        np.testing.assert_allclose(
            Predictor(tmp_path / "e")(read(slices / "test" / "image" / "0.png")),
            Predictor(cv_dir, weights="last_raw")(read(slices / "test" / "image" / "0.png")),
            atol=1e-5,
        )

    def test_command_takes_back_what_the_runs_had(self, cv_dir, door):
        # Membranes that are dropped altogether are never chosen, and stay out of the command.
        for fold in range(2):
            path = cv_dir / f"fold-{fold}" / "config.json"
            stored = json.loads(path.read_text())
            stored["settings"] |= {"keep_largest": ["cell"], "drop_smaller": ["membrane:99999"]}
            path.write_text(json.dumps(stored))
        code, out, err = door("--mode=choose", f"--run_dir={cv_dir}")
        assert code == 0, err
        assert "membrane:99999" not in out
        assert "--drop_smaller=" in out
        assert "--keep_largest=" in out

    def test_a_run_is_no_folder_of_folds(self, trained, door):
        result = door("--mode=choose", f"--run_dir={trained / 'fold-0'}")
        check_refused(result, "holds no folds to choose by", "--folds", "--fold all")
