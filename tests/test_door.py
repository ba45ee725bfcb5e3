"""The command: help, version, recipes found from any folder, every mistake listed at once."""

import json

import cv2
import numpy as np
import pytest
from helpers.program import TINY, check_refused, in_a_process

import unet_core
from unet_core.errors import UserError
from unet_core.runs import process


@pytest.fixture
def masks(tmp_path):
    """Three pairs whose masks hold 0, 90 (a quarter of the pixels) and 200 (an eighth)."""
    for part in ("image", "label"):
        (tmp_path / "data" / part).mkdir(parents=True)
    mask = np.zeros((16, 16), np.uint8)
    mask[:4] = 90
    mask[4:6] = 200
    for name in "abc":
        cv2.imwrite(str(tmp_path / "data" / "image" / f"{name}.png"), mask // 2)
        cv2.imwrite(str(tmp_path / "data" / "label" / f"{name}.png"), mask)
    return tmp_path / "data"


class TestHelp:
    def test_of_one_mode_lists_its_flags_alone(self, door):
        code, out, _ = door("--help=predict")
        assert code == 0
        assert "--tta" in out
        assert "--learning_rate" not in out
        assert "Optimizer" not in out

    def test_of_an_unknown_mode_names_the_modes(self, door):
        check_refused(door("--help=fly"), "fly", "predict", "check_data")

    def test_mode_of_an_earlier_version_goes_by_its_name_of_today(self, door):
        result = door("--mode=convert_labelme")
        check_refused(result, "--input is missing")
        assert "WARNING: --mode=convert_labelme is now called --mode=convert." in result[2]

    def test_version(self, door):
        assert door("--version") == (0, f"unet_core {unet_core.__version__}\n", "")


class TestRecipes:
    def test_are_found_from_any_folder(self, tmp_path):
        done = in_a_process("--flagfile=membrane.flags", "--train_steps=0", cwd=tmp_path)
        assert done.returncode == 2
        assert "--train_steps (0)" in done.stderr

    def test_file_of_the_same_name_here_comes_first(self, door, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "membrane.flags").write_text("--depth=99\n")
        check_refused(door("--flagfile=membrane.flags"), "--depth (99)")


class TestMistakes:
    def test_all_flags_that_cannot_be_read_are_listed_at_once(self, door):
        result = door("--no_such=1", "--train_steps=many", "--precision=float8", "stray")
        check_refused(result, "4 things", "no_such", "many", "float8", "'stray'")

    def test_all_values_that_break_a_rule_are_listed_at_once(self, door):
        result = door("--train_steps=-5", "--depth=99", "--scale=2,1", "--fold=-1")
        check_refused(result, "--train_steps (-5)", "--depth (99)", "--scale", "--fold (-1)")

    def test_copied_recipe_names_all_that_must_change(self, door, masks, tmp_path):
        # As one who has copied membrane.flags and changed folder and classes.
        result = door(
            "--flagfile=membrane.flags",
            f"--data_dir={masks}",
            f"--run_dir={tmp_path / 'run'}",
            "--classes=0:background,90:nucleus",
        )
        check_refused(
            result,
            "--overlap_classes (membrane)",
            "--monitor (membrane)",
            "--object_class (cell)",
            "background, nucleus",
        )
        assert not (tmp_path / "run").exists()

    def test_all_that_is_missing_is_listed_without_tensorflow(self, tmp_path):
        done = in_a_process(
            "--monitor=dice/x",
            f"--data_dir={tmp_path / 'none'}",
            env={"PYTHONPROFILEIMPORTTIME": "1"},
        )
        assert done.returncode == 2
        for words in ("3 things", "--run_dir is missing", "no such folder", "--classes is missing"):
            assert words in done.stderr
        assert "tensorflow" not in done.stderr

    def test_run_without_classes_is_refused(self, door, masks, tmp_path):
        flags = [flag for flag in TINY if not flag.startswith("--classes")]
        result = door(f"--data_dir={masks}", f"--run_dir={tmp_path / 'run'}", *flags)
        check_refused(result, "--classes is missing", "check_data")


class TestProposedClasses:
    def test_check_data_lists_values_and_a_map_that_it_then_accepts(self, door, masks):
        code, out, _ = door("--mode=check_data", f"--data_dir={masks}")
        assert code == 0
        proposed = "0:background,90:class_1,200:class_2"
        assert f"--classes='{proposed}'" in out
        # Of 3 x 16 x 16 = 768 pixels.
        for words in ("0           480   62.50%", "90           192   25.00%", "200            96"):
            assert words in out
        code, out, _ = door("--mode=check_data", f"--data_dir={masks}", f"--classes={proposed}")
        assert (code, "No problems found." in out) == (0, True)

    def test_of_colours(self, door, masks):
        for path in (masks / "label").iterdir():
            grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
            cv2.imwrite(str(path), np.stack([0 * grey, 0 * grey, grey], -1))
        out = door("--mode=check_data", f"--data_dir={masks}")[1]
        assert "--classes='#000000:background,#5a0000:class_1,#c80000:class_2'" in out

    def test_masks_of_many_values_are_no_classes(self, door, masks):
        for path in (masks / "label").iterdir():
            cv2.imwrite(str(path), np.arange(256, dtype=np.uint8).reshape(16, 16))
        code, out, _ = door("--mode=check_data", f"--data_dir={masks}")
        assert code == 0
        assert "256 value(s)" in out
        assert "and 236 more" in out
        assert "--classes='" not in out


class TestBeginning:
    def test_is_said_before_libraries_are_loaded(self, door, masks, tmp_path, monkeypatch):
        def refuse():
            raise UserError("stopped here")

        monkeypatch.setattr(process, "import_libraries", refuse)
        where = f"--data_dir={masks}", f"--run_dir={tmp_path / 'run'}", TINY[0]
        _, out, err = door(*where, "--train_steps=30")
        assert out.splitlines() == [
            f"Mode train: images of {masks}, run folder {tmp_path / 'run'}, up to step 30.",
            "Loading TensorFlow, which takes some seconds.",
        ]
        assert "stopped here" in err
        out = door(*where, "--epochs=2", "--log_format=json")[1]
        first = json.loads(out.splitlines()[0])
        assert first["event"] == "message"
        assert first["text"].endswith("for 2 epochs.")
        # Modes that do not train print what was asked for alone.
        assert door("--mode=predict", where[1], "--input=x")[1] == ""
