"""The door: exit codes and messages. Runs in this process where it can, for speed."""

import functools
import json
import os
import pathlib
import pwd
import resource
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import tensorflow as tf
from helpers import forked
from helpers.program import MEMBRANE, ROOT, check_refused, in_a_process, write_slices
from helpers.program import TINY as SMALLEST

from unet_core.data import synthetic

TINY = [*SMALLEST, "--train_steps=4", "--dropout=0.2", "--normalization=batch"]
# Those of them that `--mode=check_data` uses.
CHECK = [MEMBRANE, "--crop_size=32", "--folds=3", "--fold=2"]


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    return write_slices(tmp_path_factory.mktemp("slices"), test_slices=2)


@pytest.fixture
def data_dir(slices, tmp_path):
    return shutil.copytree(slices, tmp_path / "data")


class TestFlags:
    @pytest.mark.parametrize("flag", ["--help", "-h", "--helpfull"])
    def test_help_lists_our_flags_and_exits_0_without_tensorflow(self, flag):
        done = in_a_process(flag, env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"})
        assert done.returncode == 0
        for name in ("--flagfile", "--data_dir", "--outputs", "--train_steps"):
            assert name in done.stdout
        assert "tensorflow" not in done.stderr
        assert "numpy" not in done.stderr

    def test_module_and_installed_script_list_our_flags_too(self):
        for code in ("-m train_loop --help", "-c from unet_core import door;door.console() --help"):
            start, *rest = code.split(" ", 1)
            argument, *flags = rest[0].rsplit(" ", 1)
            done = subprocess.run(
                [sys.executable, start, argument, *flags],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=240,
                check=False,
            )
            assert done.returncode == 0
            assert "--checkpoint_every_steps" in done.stdout

    @pytest.mark.parametrize(
        ("args", "words"),
        [
            (["--no_such_flag"], ["no_such_flag"]),
            (["--train_steps=many"], ["train_steps", "many"]),
            (["--precision=float8"], ["precision", "float8", "bfloat16"]),
            (["--mode=fly"], ["mode", "fly", "predict"]),
            (["stray"], ["stray"]),
            (["--flagfile=no/such.flags"], ["no/such.flags"]),
            (["--train_steps=-5"], ["train_steps", "-5", "at least 1"]),
            (["--scale=2,1"], ["scale", "low <= high"]),
            (["--scale=a,b"], ["scale", "a,b"]),
            (["--fold=-1"], ["fold", "-1"]),
        ],
    )
    def test_mistake_is_one_message_and_exit_2(self, door, args, words):
        check_refused(door(*args), *words)

    def test_mistakes_are_answered_without_tensorflow(self):
        env = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
        for flag in ("--no_such_flag", "--train_steps=-5"):
            done = in_a_process(flag, env=env)
            assert done.returncode == 2
            assert "tensorflow" not in done.stderr

    def test_other_keras_backend_is_one_message(self):
        done = in_a_process("--mode=check_data", env={**os.environ, "KERAS_BACKEND": "jax"})
        assert done.returncode == 2
        assert done.stderr.startswith("train_loop: KERAS_BACKEND is 'jax'")
        assert len(done.stderr.splitlines()) == 1


class TestBadData:
    def run(self, door, data_dir, tmp_path, *args, settings=TINY):
        """Trains on a broken folder: nothing may be written."""
        before = sorted(str(path) for path in tmp_path.rglob("*"))
        run_dir = tmp_path / "run"
        result = door(f"--data_dir={data_dir}", f"--run_dir={run_dir}", *settings, *args)
        assert sorted(str(path) for path in tmp_path.rglob("*")) == before
        return result

    def test_missing_folder(self, door, tmp_path):
        result = self.run(door, tmp_path / "none", tmp_path)
        check_refused(result, tmp_path / "none", "no such folder")

    def test_missing_flag(self, door, tmp_path):
        check_refused(door(f"--run_dir={tmp_path}"), "--data_dir is missing")

    def test_empty_folder(self, door, data_dir, tmp_path):
        for path in (data_dir / "train").rglob("*.png"):
            path.unlink()
        check_refused(self.run(door, data_dir, tmp_path), "holds no pictures")

    def test_every_problem_is_listed_at_once(self, door, data_dir, tmp_path):
        image, label = data_dir / "train" / "image", data_dir / "train" / "label"
        (label / "0.png").unlink()
        (image / "1.png").unlink()
        cv2.imwrite(str(label / "2.png"), np.zeros((64, 63), np.uint8))
        content = (image / "3.png").read_bytes()
        (image / "3.png").write_bytes(content[: len(content) // 2])
        (image / "4.png").write_bytes(b"this is no picture")
        mask = cv2.imread(str(label / "5.png"), cv2.IMREAD_UNCHANGED)
        mask[:2, :3] = 128
        cv2.imwrite(str(label / "5.png"), mask)
        for result in (
            self.run(door, data_dir, tmp_path),
            self.run(door, data_dir, tmp_path, "--mode=check_data", settings=CHECK),
        ):
            check_refused(
                result, "6 problem(s)", "0.png: there is no mask", "1.png: there is no image"
            )
            check_refused(result, "64x64 pixels, its mask 63x64", "cut short", "cannot be decoded")
            check_refused(result, "5.png: holds values outside the class map", "128 (6 px)")

    def test_one_class_only(self, door, data_dir, tmp_path):
        for path in (data_dir / "train" / "label").iterdir():
            cv2.imwrite(str(path), np.full((64, 64), 255, np.uint8))
        check_refused(self.run(door, data_dir, tmp_path), "No mask has a pixel of class membrane")

    @pytest.mark.parametrize(
        ("args", "words"),
        [
            (["--folds=3", "--fold=3"], ["fold", "3", "2"]),
            (["--object_class=nucleus"], ["nucleus", "membrane, cell"]),
            (["--folds=7"], ["folds", "7", "6"]),
            (
                ["--strategy=mirrored", "--devices=0,1", "--global_batch_size=3"],
                ["2 replicas", "2 or 4"],
            ),
            (["--strategy=mirrored", "--devices=0,9"], ["no device 9", "There are"]),
            (["--devices=0"], ["--devices", "--strategy", "mirrored"]),
            (["--strategy=multi_worker"], ["TF_CONFIG", "host0:2222"]),
            (["--micro_batches=3"], ["3 micro-batches", "3"]),
            (
                ["--strategy=mirrored", "--devices=0,1", "--jit_compile"],
                ["jit_compile", "normalization"],
            ),
            (["--memory_growth", "--memory_limit_mb=9"], ["memory_growth", "memory_limit_mb"]),
            (["--classes=0:a"], ["classes", "at least two"]),
            (["--loss=hinge"], ["loss", "hinge", "cross_entropy"]),
            (["--class_weights=1,2,3"], ["class_weights", "2 classes"]),
            (["--overlap_classes=axon"], ["axon", "membrane, cell"]),
            (["--monitor=luck"], ["monitor", "luck", "dice/mean"]),
            (["--warmup_steps=4"], ["warmup_steps", "4"]),
        ],
    )
    def test_setting_that_does_not_fit(self, door, data_dir, tmp_path, args, words):
        check_refused(self.run(door, data_dir, tmp_path, *args), *words)


class TestRunFolder:
    def test_file_in_its_place(self, door, data_dir, tmp_path):
        (tmp_path / "run").write_text("mine")
        result = door(f"--data_dir={data_dir}", f"--run_dir={tmp_path / 'run'}", *TINY)
        check_refused(result, tmp_path / "run", "cannot be written")
        assert (tmp_path / "run").read_text() == "mine"

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can become an unprivileged user")
    def test_folder_an_unprivileged_user_may_not_write(self, tmp_path):
        # In a process of its own: a user given up does not come back.
        code = (
            "import os, sys; sys.path.insert(0, sys.argv[2])\n"
            "from unet_core.run_directory import RunDirectory\n"
            "from unet_core.errors import UserError\n"
            "os.setuid(int(sys.argv[1]))\n"
            "try:\n    RunDirectory(sys.argv[3] + '/run').locked().__enter__()\n"
            "except UserError as error:\n    print(error); sys.exit(2)\n"
        )
        nobody = str(pwd.getpwnam("nobody").pw_uid)
        tmp_path.chmod(0o755)
        done = subprocess.run(
            [sys.executable, "-c", code, nobody, str(ROOT), str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 2
        assert "Permission denied" in done.stdout
        assert "Choose another `run_dir`" in done.stdout

    def test_full_disk_while_saving_is_one_message_and_mending_it_goes_on(self, slices, tmp_path):
        args = [f"--data_dir={slices}", f"--run_dir={tmp_path / 'run'}", *TINY, "--base_filters=16"]
        limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (200_000, 200_000))
        code, out = forked.program(*args, before=limit).finish()
        check_refused((code, "", out), "step-00000002", "File too large", "Make room")
        assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
        code, out = forked.program(*args).finish()
        assert code == 0, out

    def test_without_a_run_predict_and_evaluate_say_so(self, door, tmp_path):
        for mode in ("predict", "evaluate"):
            result = door(f"--mode={mode}", f"--run_dir={tmp_path / 'none'}")
            check_refused(result, "holds no run")
        assert not (tmp_path / "none").exists()


@pytest.fixture(scope="module")
def finished(slices, tmp_path_factory):
    """A run of four steps, made by the program as a person would start it."""
    folder = tmp_path_factory.mktemp("finished")
    done = in_a_process(
        f"--data_dir={slices}",
        f"--run_dir={folder / 'run'}",
        *TINY,
        "--outputs=mask,overlay,probabilities",
    )
    assert done.returncode == 0, done.stderr
    return folder / "run", done


class TestSettingsOfAFinishedRun:
    @pytest.mark.parametrize("mode", ["evaluate", "predict", "export"])
    @pytest.mark.parametrize(
        "flag", ["--classes=0:cell,255:membrane", "--intensities=zscore", "--stray_values=nearest"]
    )
    def test_what_the_run_has_learned_with_is_refused_if_it_differs(
        self, finished, slices, door, tmp_path, mode, flag
    ):
        common = [f"--mode={mode}", f"--run_dir={finished[0]}", f"--output_dir={tmp_path / 'out'}"]
        name = flag.partition("=")[0]
        check_refused(door(*common, flag), name, "differs from that of the run")
        # In a flag file too.
        (tmp_path / "run.flags").write_text(flag)
        check_refused(door(*common, f"--flagfile={tmp_path / 'run.flags'}"), name, "differs")
        assert not (tmp_path / "out").exists()

    def test_flag_that_the_mode_does_not_use_is_refused_by_name(self, finished, door, tmp_path):
        same = "--mode=predict", f"--run_dir={finished[0]}"
        check_refused(door(*same, "--train_steps=9"), "--train_steps", "not used", "predict")
        check_refused(door("--mode=train", "--formats=onnx"), "--formats", "not used", "export")
        check_refused(door("--mode=check_data", "--loss=dice"), "--loss", "not used", "train")

    def test_flag_file_of_the_training_is_taken_by_every_mode(
        self, finished, slices, door, tmp_path
    ):
        flags = "\n".join([f"--run_dir={finished[0]}", f"--data_dir={slices}", *TINY])
        (tmp_path / "run.flags").write_text(flags)
        same = f"--flagfile={tmp_path / 'run.flags'}"
        code, _, err = door(same, "--mode=evaluate", f"--output_dir={tmp_path / 'scores'}")
        assert code == 0, err
        code, _, err = door(same, "--mode=predict", f"--output_dir={tmp_path / 'predictions'}")
        assert code == 0, err
        code, _, err = door(same, "--mode=check_data")
        assert code == 0, err

    def test_what_is_not_given_is_taken_from_the_run(self, slices, door, tmp_path):
        run = tmp_path / "run"
        more = ["--tta=flips", "--object_class=cell", "--weights=best", "--outputs=outlines"]
        code, _, err = door(f"--data_dir={slices}", f"--run_dir={run}", *TINY, *more)
        assert code == 0, err
        before = (run / "scores.json").read_bytes()
        code, _, err = door("--mode=evaluate", f"--run_dir={run}")
        assert code == 0, err
        assert (run / "scores.json").read_bytes() == before
        code, _, err = door("--mode=evaluate", f"--run_dir={run}", "--tta=none")
        assert code == 0, err
        assert json.loads((run / "scores.json").read_text())["tta"] == "none"
        out = tmp_path / "out"
        code, _, err = door(
            "--mode=predict", f"--run_dir={run}", f"--data_dir={slices}", f"--output_dir={out}"
        )
        assert code == 0, err
        assert {path.name for path in out.glob("*.png")} == {"0_outlines.png", "1_outlines.png"}


class TestRun:
    def test_leaves_everything_promised(self, finished):
        run, _ = finished
        names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
        assert {"config.json", "history.csv", "network.svg", "scores.json"} <= names
        for stem in ("0", "1"):
            for kind in ("predict", "overlay", "probability"):
                assert f"predictions/{stem}_{kind}.png" in names
        assert "held_out/4_errors.png" in names
        assert "held_out/5_errors.png" in names

    def test_masks_are_0_and_255_at_native_size_and_probabilities_have_16_bits(self, finished):
        run, _ = finished
        mask = cv2.imread(str(run / "predictions" / "0_predict.png"), cv2.IMREAD_UNCHANGED)
        levels = cv2.imread(str(run / "predictions" / "0_probability.png"), cv2.IMREAD_UNCHANGED)
        assert mask.shape == levels.shape == (64, 64)
        assert set(np.unique(mask)) <= {0, 255}
        assert levels.dtype == np.uint16
        np.testing.assert_array_equal(mask == 255, levels > 32767)

    def test_screen_shows_scores_and_no_start_up_noise(self, finished):
        _, done = finished
        for word in ("membrane", "best threshold", "most frequent class", "Predictions in"):
            assert word in done.stdout
        for noise in ("oneDNN", "cuda", "WARNING: All log", "tensorflow/core"):
            assert noise not in done.stderr

    def test_scores_hold_the_last_row_of_the_history(self, finished):
        run, _ = finished
        scores = json.loads((run / "scores.json").read_text())
        header, *rows = [line.split(",") for line in (run / "history.csv").read_text().splitlines()]
        assert [row[0] for row in rows] == ["2", "4"]
        assert scores["step"] == 4
        assert set(scores["per_image"]) == {"4", "5"}
        assert sum(map(sum, scores["confusion"])) == 2 * 64 * 64
        last = dict(zip(header, rows[-1], strict=True))
        # The history counts without a mirrored margin, so the two agree only about.
        assert float(last["held_out/majority_baseline"]) == pytest.approx(
            scores["scores"]["majority_baseline"]
        )

    def test_event_file_holds_every_tag(self, finished):
        from tensorboard.backend.event_processing import event_accumulator
        from tensorboard.util import tensor_util

        run, _ = finished
        of = {}
        for part in ("train", "held_out", ""):
            path = str(run / "events" / part)
            of[part] = event_accumulator.EventAccumulator(path, {"tensors": 0})
            of[part].Reload()

        def values(tag, part=""):
            return {
                event.step: tensor_util.make_ndarray(event.tensor_proto)
                for event in of[part].Tensors(tag)
            }

        header, *rows = [line.split(",") for line in (run / "history.csv").read_text().splitlines()]
        assert header[-1] == "note"
        for column, name in enumerate(header[1:-1], 1):
            part, _, tag = name.partition("/")
            if tag.startswith("f1/") or tag == "majority_baseline":
                assert tag not in of[part].Tags()["tensors"]
                continue
            # Train and held-out loss have one tag, so TensorBoard draws them in one chart.
            found = values(tag, part)
            assert list(found) == [2, 4]
            for row in rows:
                assert float(found[int(row[0])]) == pytest.approx(
                    float(row[column] or "nan"), rel=1e-6, nan_ok=True
                )
        for name in ("step_ms", "examples_per_sec", "data_wait_share"):
            assert list(values(f"speed/{name}", "train")) == [2, 4]
        assert 0 <= values("speed/data_wait_share", "train")[4] <= 1
        assert b"crop_size = 32" in values("config")[0].item()
        for sample in ("4", "5"):
            for panel in ("input", "truth", "prediction", "errors"):
                pictures = values(f"held_out_{sample}/{panel}")
                assert list(pictures) == [2, 4]
        encoded = values("held_out_4/truth")[4][2]
        truth = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
        config = json.loads((run / "config.json").read_text())
        label = pathlib.Path(config["settings"]["data_dir"]) / "train" / "label" / "4.png"
        expected = cv2.imread(str(label), cv2.IMREAD_UNCHANGED)
        for channel in range(3):
            np.testing.assert_array_equal(truth[..., channel], expected)
        assert any(node.op.startswith("FusedBatchNorm") for node in _nodes(of[""].Graph()))

    def test_started_again_trains_nothing(self, finished, slices, door):
        run, _ = finished
        history = (run / "history.csv").read_bytes()
        code, out, _ = door(f"--data_dir={slices}", f"--run_dir={run}", *TINY)
        assert code == 0
        assert "finished at step 4" in out
        assert (run / "history.csv").read_bytes() == history

    def test_other_settings_are_refused_by_name_and_others_do_not_bind(
        self, finished, slices, door
    ):
        run, _ = finished
        same = [f"--data_dir={slices}", f"--run_dir={run}", *TINY]
        result = door(*same, "--seed=7", "--dropout=0.3", "--loss=focal")
        check_refused(result, "seed (0 there, 7 here)", "dropout", "loss", "another --run_dir")
        code, *_ = door(*same, "--report_every_steps=1", "--keep_checkpoints=9", "--precision=auto")
        assert code == 0

    def test_other_data_are_refused(self, finished, data_dir, door):
        run, _ = finished
        path = data_dir / "train" / "image" / "0.png"
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        image[0, 0] ^= 1
        cv2.imwrite(str(path), image)
        check_refused(door(f"--data_dir={data_dir}", f"--run_dir={run}", *TINY), "training data")

    def test_raised_train_steps_need_a_schedule_that_is_laid_out_anew(
        self, finished, slices, door, tmp_path
    ):
        run = shutil.copytree(finished[0], tmp_path / "run")
        same = [f"--data_dir={slices}", f"--run_dir={run}", *TINY]
        check_refused(door(*same, "--train_steps=8"), "step 4", "--schedule_steps (8)")
        code, *_ = door(*same, "--train_steps=8", "--schedule_steps=8")
        rows = [line.split(",") for line in (run / "history.csv").read_text().splitlines()[1:]]
        assert code == 0
        assert [row[0] for row in rows] == ["2", "4", "6", "8"]
        assert float(rows[-1][2]) > 0

    def test_truncated_checkpoint_is_one_message(self, finished, slices, door, tmp_path):
        run = shutil.copytree(finished[0], tmp_path / "run")
        path = run / "checkpoints" / "step-00000004" / "state.data-00000-of-00001"
        path.write_bytes(path.read_bytes()[:-100])
        for args in (TINY, ["--mode=predict"]):
            result = door(f"--data_dir={slices}", f"--run_dir={run}", *args)
            check_refused(result, "step-00000004", "damaged", "step-00000002")

    def test_checkpoint_of_another_network_is_one_message(self, finished, slices, door, tmp_path):
        run = shutil.copytree(finished[0], tmp_path / "run")
        config = json.loads((run / "config.json").read_text())
        config["settings"]["base_filters"] = 3
        (run / "config.json").write_text(json.dumps(config))
        result = door("--mode=predict", f"--run_dir={run}", f"--input={slices / 'test'}")
        check_refused(
            result, "another network", "[3, 3, 1, 2] float32 there", "[3, 3, 1, 3] float32 here"
        )

    def test_predict_takes_network_and_classes_from_the_run(self, finished, slices, door, tmp_path):
        run, _ = finished
        one = slices / "test" / "1.png"
        code, out, _ = door(
            "--mode=predict",
            f"--run_dir={run}",
            f"--input={one}",
            f"--output_dir={tmp_path / 'out'}",
            "--outputs=mask,overlay",
        )
        assert code == 0
        assert "1.png" in out
        written = {path.name for path in (tmp_path / "out").glob("*.png")}
        assert written == {"1_predict.png", "1_overlay.png"}
        again = (tmp_path / "out" / "1_predict.png").read_bytes()
        assert again == (run / "predictions" / "1_predict.png").read_bytes()

    def test_scores_of_other_data_go_elsewhere(self, finished, data_dir, door, tmp_path):
        mask = data_dir / "train" / "label" / "0.png"
        mask.write_bytes((data_dir / "train" / "label" / "1.png").read_bytes())
        run, _ = finished
        before = (run / "scores.json").read_bytes()
        same = "--mode=evaluate", f"--run_dir={run}", f"--data_dir={data_dir}"
        check_refused(door(*same), data_dir, "--output_dir")
        assert door(*same, f"--output_dir={tmp_path / 'out'}")[0] == 0
        scored = json.loads((tmp_path / "out" / "scores.json").read_text())
        assert sorted(scored["per_image"]) == ["0", "1", "2", "3", "4", "5"]
        assert (run / "scores.json").read_bytes() == before

    @pytest.mark.parametrize(
        "error", [MemoryError(), tf.errors.ResourceExhaustedError(None, None, "OOM")]
    )
    def test_memory_that_runs_out_is_one_message(self, door, monkeypatch, tmp_path, error):
        def fail(*_):
            raise error

        monkeypatch.setattr("unet_core.door.MODES", {"predict": fail})
        check_refused(door("--mode=predict", f"--run_dir={tmp_path}"), "memory", "--window_px")

    def test_class_of_objects_is_remembered(self, slices, door, tmp_path):
        run = f"--run_dir={tmp_path / 'run'}"
        flags = [f"--data_dir={slices}", run, *TINY, "--object_class=cell"]
        check_refused(door(*flags, "--objects=csv"), "--objects (csv) needs", "--instances")
        assert not (tmp_path / "run").exists()
        assert door(*flags)[0] == 0
        before = json.loads((tmp_path / "run" / "scores.json").read_text())["scores"]
        assert "object_f1/mean" in before
        assert door("--mode=evaluate", run, f"--output_dir={tmp_path}")[0] == 0
        assert json.loads((tmp_path / "scores.json").read_text())["scores"] == before
        out = f"--output_dir={tmp_path / 'out'}"
        assert door("--mode=predict", run, "--instances=components", out)[0] == 0
        assert (tmp_path / "out" / "0_instances.png").exists()
        out = f"--output_dir={tmp_path / 'measured'}"
        flags = ["--mode=predict", run, out, "--objects=csv,coco"]
        check_refused(door(*flags), "--objects (csv,coco) needs", "--instances components")
        assert door(*flags, "--instances=components", "--pixel_size_um=0.5")[0] == 0
        names = {path.name for path in (tmp_path / "measured").iterdir()}
        assert {"0_objects.csv", "objects_coco.json"} <= names

    def test_evaluate_repeats_the_scores(self, finished, door, tmp_path):
        run, _ = finished
        code, *_ = door("--mode=evaluate", f"--run_dir={run}", f"--output_dir={tmp_path}")
        again = json.loads((tmp_path / "scores.json").read_text())
        assert code == 0
        assert again["scores"] == json.loads((run / "scores.json").read_text())["scores"]

    def test_constant_prediction_is_warned_of(self, finished, slices, door, tmp_path):
        cv2.imwrite(str(tmp_path / "flat.png"), np.full((40, 40), 128, np.uint8))
        code, _, err = door(
            "--mode=predict",
            f"--run_dir={finished[0]}",
            f"--input={tmp_path}",
            f"--output_dir={tmp_path / 'out'}",
        )
        mask = cv2.imread(str(tmp_path / "out" / "flat_predict.png"), cv2.IMREAD_UNCHANGED)
        assert code == 0
        assert ("is constant" in err) == (len(np.unique(mask)) == 1)

    def test_undecodable_image_among_good_ones_is_listed_and_the_good_are_done(
        self, finished, slices, door, tmp_path
    ):
        shutil.copytree(slices / "test", tmp_path / "in")
        (tmp_path / "in" / "0.png").write_bytes(b"no picture")
        out = tmp_path / "out"
        result = door(
            "--mode=predict",
            f"--run_dir={finished[0]}",
            f"--input={tmp_path / 'in'}",
            f"--output_dir={out}",
            "--outputs=mask,overlay",
        )
        check_refused(result, "1 of 2 image(s) could not be predicted", "0.png", "decoded")
        assert {path.name for path in out.glob("*.png")} == {"1_predict.png", "1_overlay.png"}

    def test_predictions_replace_nothing_unless_asked(self, finished, slices, door, tmp_path):
        same = "--mode=predict", f"--run_dir={finished[0]}", f"--input={slices / 'test' / '1.png'}"
        out = f"--output_dir={tmp_path}"
        assert door(*same, out)[0] == 0
        mask = tmp_path / "1_predict.png"
        mask.write_bytes(b"mine")
        # It is finished; what became of it since is left alone.
        code, text, _ = door(*same, out)
        assert code == 0
        assert "1 of 1 image(s) were finished before" in text
        assert mask.read_bytes() == b"mine"
        check_refused(door(*same, out, "--alpha=0.7"), mask, "--alpha (0.45 there", "--overwrite")
        assert door(*same, out, "--overwrite")[0] == 0
        assert mask.read_bytes() != b"mine"

    def test_windows_and_whole_images_give_the_same_masks(self, finished, slices, door, tmp_path):
        # Two poolings: the halo is 22 pixels, a window of 52 gives the 4 in its middle.
        for name, px in (("whole", 0), ("windows", 52)):
            code, out, _ = door(
                "--mode=predict",
                f"--run_dir={finished[0]}",
                f"--input={slices / 'test'}",
                f"--output_dir={tmp_path / name}",
                f"--window_px={px}",
            )
            assert code == 0
            assert "megapixels/s" in out
        for name in ("0_predict.png", "1_overlay.png"):
            whole, windows = (tmp_path / folder / name for folder in ("whole", "windows"))
            assert whole.read_bytes() == windows.read_bytes()

    def test_video_is_predicted_frame_by_frame(self, finished, slices, door, tmp_path):
        frame = cv2.imread(str(slices / "test" / "0.png"))
        writer = cv2.VideoWriter(
            str(tmp_path / "v.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 64)
        )
        for shift in range(5):
            writer.write(np.roll(frame, shift, 1))
        writer.release()
        code, out, err = door(
            "--mode=predict",
            f"--run_dir={finished[0]}",
            f"--input={tmp_path / 'v.avi'}",
            f"--output_dir={tmp_path / 'out'}",
            "--outputs=mask,overlay",
        )
        assert code == 0, err
        assert "network" in out
        capture = cv2.VideoCapture(str(tmp_path / "out" / "v_overlay.mp4"))
        assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 5
        assert capture.get(cv2.CAP_PROP_FPS) == 10
        result = door(
            "--mode=predict",
            f"--run_dir={finished[0]}",
            "--input=camera:97",
            "--outputs=mask",
            f"--output_dir={tmp_path}",
        )
        check_refused(result, "camera:97")
        more = f"--input={tmp_path / 'v.avi'}", "--mask_format=index", f"--output_dir={tmp_path}"
        result = door("--mode=predict", f"--run_dir={finished[0]}", *more)
        check_refused(result, "--mask_format", "video")

    def test_export_is_read_by_the_package_again(self, finished, slices, door, tmp_path):
        from unet_core.inference.predictor import Predictor

        run, _ = finished
        same = "--mode=export", f"--run_dir={run}", f"--output_dir={tmp_path / 'e'}"
        code, out, err = door(*same)
        assert code == 0, err
        assert "Exported step 4" in out
        image = cv2.imread(str(slices / "test" / "0.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(Predictor(tmp_path / "e")(image), Predictor(run)(image))
        check_refused(door(*same), tmp_path / "e", "exists")

    def test_second_process_in_one_run_folder_is_refused(self, finished, slices, door):
        from unet_core.run_directory import RunDirectory

        run, _ = finished
        with RunDirectory(run).locked():
            result = door(f"--data_dir={slices}", f"--run_dir={run}", *TINY)
        check_refused(result, "another process is using this run folder")

    def test_labelme_files_become_a_voc_folder_that_trains(self, slices, door, tmp_path):
        (tmp_path / "json").mkdir()
        square = [[5, 5], [30, 5], [30, 30], [5, 30]]
        for path in (slices / "train" / "image").iterdir():
            shutil.copy(path, tmp_path / "json")
            shape = {"label": "cell", "points": square, "shape_type": "polygon"}
            document = {"imagePath": path.name, "imageData": None, "shapes": [shape]}
            (tmp_path / "json" / f"{path.stem}.json").write_text(json.dumps(document))
        voc, classes = tmp_path / "voc", "--classes=0:background,1:cell"
        convert = ["--mode=convert", f"--input={tmp_path / 'json'}", classes]
        code, out, _ = door(*convert, f"--output_dir={voc}", "--held_out_share=0.34")
        assert code == 0
        assert "--layout=voc" in out
        assert "--split=fixed" in out
        assert len((voc / "ImageSets" / "Segmentation" / "val.txt").read_text().split()) == 2
        settings = ["--layout=voc", "--split=fixed", classes, "--folds=0"]
        code, out, err = door(f"--data_dir={voc}", "--mode=check_data", *settings)
        assert code == 0, err
        assert "4 sample(s) to train on, 2 held out" in out

    def test_not_finite_step_names_its_samples(self, slices, door, tmp_path):
        args = [
            "--optimizer=sgd",
            "--learning_rate=1e6",
            "--depth=2",
            "--schedule=constant",
            "--normalization=none",
        ]
        result = door(f"--data_dir={slices}", f"--run_dir={tmp_path / 'run'}", *TINY, *args)
        check_refused(result, "not finite", "Its samples ", "were drawn from ")

    def test_averaged_weights_are_evaluated_predicted_with_and_kept(self, slices, door, tmp_path):
        run = tmp_path / "run"
        several = ["--strategy=mirrored", "--devices=0,1", "--global_batch_size=4"]
        more = [
            *several,
            "--micro_batches=2",
            "--ema_decay=0.9",
            "--normalization=none",
            "--jit_compile",
        ]
        code, _, err = door(f"--data_dir={slices}", f"--run_dir={run}", *TINY, *more)
        assert code == 0, err
        scores = json.loads((run / "scores.json").read_text())["scores"]
        code, *_ = door("--mode=evaluate", f"--run_dir={run}", f"--output_dir={tmp_path}")
        assert code == 0
        assert json.loads((tmp_path / "scores.json").read_text())["scores"] == scores

    def test_deep_supervision_and_stem_train_score_and_resume(self, slices, door, tmp_path):
        args = [f"--data_dir={slices}", f"--run_dir={tmp_path / 'run'}", *TINY]
        more = ["--depth=2", "--deep_supervision", "--stem_stride=2", "--encoder=residual"]
        more += ["--normalization=group", "--activation=leaky_relu", "--ema_decay=0.9"]
        code, _, err = door(*args, *more)
        assert code == 0, err
        first = json.loads((tmp_path / "run" / "scores.json").read_text())["scores"]
        code, _, err = door("--mode=evaluate", *args[1:2], f"--output_dir={tmp_path / 'again'}")
        assert code == 0, err
        assert json.loads((tmp_path / "again" / "scores.json").read_text())["scores"] == first
        code, out, err = door(*args, *more, "--train_steps=6", "--schedule_steps=6")
        assert code == 0, err
        assert "Going on from step 4" in out

    def test_recomputation_trains_the_same_and_may_be_left_out_later(
        self, finished, slices, door, tmp_path
    ):
        run = tmp_path / "run"
        args = [f"--data_dir={slices}", f"--run_dir={run}", *TINY]
        code, _, err = door(*args, "--recompute")
        assert code == 0, err
        found, expected = (
            json.loads((folder / "scores.json").read_text())["scores"]
            for folder in (run, finished[0])
        )
        assert found == pytest.approx(expected, rel=1e-5)
        assert json.loads((run / "config.json").read_text())["settings"]["recompute"]
        code, out, err = door(*args, "--train_steps=6", "--schedule_steps=6")
        assert code == 0, err
        assert "Going on from step 4" in out

    @pytest.mark.parametrize(
        ("args", "words"),
        [
            (["--stem_stride=3"], ["--stem_stride", "3", "power of 2"]),
            (["--stem_stride=2", "--padding=valid"], ["--stem_stride", "--padding", "'same'"]),
            (["--deep_supervision", "--padding=valid"], ["--deep_supervision", "'same'"]),
            (["--encoder=residual", "--padding=valid"], ["--encoder", "residual", "same"]),
            (["--base_filters=4", "--max_filters=2"], ["--max_filters", "at least 4"]),
        ],
    )
    def test_network_that_cannot_be_is_refused_before_the_folder_is_made(
        self, slices, door, tmp_path, args, words
    ):
        run = tmp_path / "run"
        check_refused(door(f"--data_dir={slices}", f"--run_dir={run}", *TINY, *args), *words)
        assert not (run / "config.json").exists()

    def test_deterministic_xla_is_refused(self, slices, door, tmp_path):
        args = [f"--data_dir={slices}", f"--run_dir={tmp_path / 'run'}", *TINY]
        result = door(*args, "--jit_compile", "--deterministic")
        check_refused(result, "--jit_compile", "--deterministic", "Leave one of them out.")

    def test_second_seed_gives_other_weights(self, finished, slices, door, tmp_path):
        code, *_ = door(f"--data_dir={slices}", f"--run_dir={tmp_path / 'run'}", *TINY, "--seed=1")
        first = (finished[0] / "history.csv").read_text()
        assert code == 0
        assert (tmp_path / "run" / "history.csv").read_text() != first


class TestSyntheticData:
    def test_are_drawn_into_a_folder_of_their_own(self, door, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(
            synthetic.write_dataset,
            "__kwdefaults__",
            {
                **synthetic.write_dataset.__kwdefaults__,
                "train_slices": 3,
                "test_slices": 1,
                "size": 64,
            },
        )
        code, out, _ = door(
            f"--run_dir={tmp_path / 'run'}",
            "--synthetic_data",
            *TINY,
        )
        assert code == 0
        assert "Writing synthetic membrane slices to data/synthetic" in out
        drawn = tmp_path / "data" / "synthetic" / "train" / "image"
        assert len(list(drawn.iterdir())) == 3
        assert (tmp_path / "run" / "predictions" / "0_predict.png").exists()

    def test_are_never_drawn_into_a_folder_that_the_user_named(self, door, tmp_path):
        (tmp_path / "recipe.flags").write_text("--synthetic_data\n")
        mistyped, run = f"--data_dir={tmp_path / 'dta'}", f"--run_dir={tmp_path / 'run'}"
        recipe = f"--flagfile={tmp_path / 'recipe.flags'}"
        check_refused(door(recipe, mistyped, run, *TINY), "--data_dir", "dta", "no such folder")
        check_refused(
            door("--synthetic_data", f"--data_dir={tmp_path}", run, *TINY),
            "--synthetic_data",
            "Leave one",
        )
        assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.flags"]


def _nodes(graph):
    return [
        *graph.node,
        *(node for function in graph.library.function for node in function.node_def),
    ]


class TestFolds:
    def test_undecodable_test_image_keeps_no_fold_from_its_turn(self, data_dir, door, tmp_path):
        (data_dir / "test" / "0.png").write_bytes(b"no picture")
        run = tmp_path / "cv"
        code, _, err = door(f"--data_dir={data_dir}", f"--run_dir={run}", *TINY, "--fold=all")
        assert code == 0
        assert err.count("0.png: cannot be decoded") == 3
        assert (run / "folds.csv").exists()

    def test_each_fold_has_a_run_of_its_own_and_all_one_table(self, slices, door, tmp_path):
        same = f"--data_dir={slices}", f"--run_dir={tmp_path / 'cv'}", *TINY, "--fold=all"
        code, out, err = door(*same)
        assert code == 0, err
        run = tmp_path / "cv"
        scores = [
            json.loads((run / f"fold-{fold}" / "scores.json").read_text()) for fold in range(3)
        ]
        # Six slices, two held out in turn.
        assert [sorted(each["per_image"]) for each in scores] == [
            ["0", "1"],
            ["2", "3"],
            ["4", "5"],
        ]
        table = json.loads((run / "folds.json").read_text())
        dice = [each["scores"]["dice/mean"] for each in scores]
        assert table["mean"]["dice/mean"] == pytest.approx(np.mean(dice))
        assert (run / "worst.png").exists()
        assert "pooled" in out

        # Finished folds are left as they are; one that is not is made up for.
        (run / "fold-1" / "finished").unlink()
        before = (run / "fold-0" / "scores.json").stat().st_mtime_ns
        code, out, _ = door(*same)
        assert code == 0
        assert out.count("finished at step 4") == 2
        assert (run / "fold-0" / "scores.json").stat().st_mtime_ns == before
        code, out, _ = door("--mode=evaluate", *same[1:])
        assert code == 0
        assert (run / "fold-0" / "scores.json").stat().st_mtime_ns > before

    def test_folds_have_folders_of_their_own_elsewhere_too(self, slices, door, tmp_path):
        cv, out = tmp_path / "cv", tmp_path / "out"
        same = f"--run_dir={cv}", f"--output_dir={out}", *TINY, "--fold=all"
        code, _, err = door(f"--data_dir={slices}", *same)
        assert code == 0, err
        assert len(list((out / "fold-2").glob("*_predict.png"))) == 2
        before = (cv / "folds.json").read_bytes()
        code, _, err = door("--mode=evaluate", *same, "--tta=flips")
        assert code == 0, err
        scored = json.loads((out / "fold-1" / "scores.json").read_text())
        table = json.loads((out / "folds.json").read_text())
        assert table["fold 1"] == scored["scores"]
        assert (cv / "folds.json").read_bytes() == before

    def test_a_fold_trains_as_it_would_alone(self, slices, door, tmp_path):
        door(f"--data_dir={slices}", f"--run_dir={tmp_path / 'cv'}", *TINY, "--fold=all")
        door(f"--data_dir={slices}", f"--run_dir={tmp_path / 'one'}", *TINY, "--fold=1")
        together, alone = (tmp_path / name / "history.csv" for name in ("cv/fold-1", "one"))
        assert together.read_bytes() == alone.read_bytes()

    @pytest.mark.parametrize(
        ("args", "words"),
        [
            (["--folds=0"], ["--fold (all) needs --folds"]),
            (["--strategy=multi_worker"], ["--fold (all)", "multi_worker"]),
            (["--fold=some"], ["fold", "some", "all"]),
        ],
    )
    def test_what_cannot_be_folds_is_refused(self, slices, door, tmp_path, args, words):
        same = f"--data_dir={slices}", f"--run_dir={tmp_path / 'run'}", *TINY, "--fold=all"
        check_refused(door(*same, *args), *words)
        assert not (tmp_path / "run").exists()

    def test_data_are_checked_fold_by_fold(self, slices, door):
        code, out, _ = door("--mode=check_data", f"--data_dir={slices}", *CHECK, "--fold=all")
        assert code == 0
        assert "Fold 2: 4 sample(s) to train on, 2 held out." in out
