import concurrent.futures
import errno
import fcntl
import json
import os
import pathlib
import subprocess
import sys
import time
import warnings

import pytest

from unet_core import files
from unet_core.errors import UserError
from unet_core.run_directory import RunDirectory
from unet_core.settings import RunConfig

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = RunConfig.of(
    classes="0:membrane,255:cell",
    precision="bfloat16",
    train_steps=500,
    scale=(0.8, 1.2),
    class_weights=(1.0, 2.0),
)


@pytest.fixture
def run(tmp_path):
    """The folder of a run that was begun with CONFIG on data with the fingerprint "abc"."""
    directory = RunDirectory(tmp_path / "run")
    with directory.locked():
        directory.store(directory.resolve_for_resume(CONFIG, "abc"), "abc")
    return directory


@pytest.fixture
def flock_error(monkeypatch):
    """A function after which `flock` fails with the given number."""
    monkeypatch.setattr(files, "_warned", set())

    def fail(number):
        def flock(descriptor, operation):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", flock)

    return fail


class TestConstructor:
    def test_making_one_touches_nothing(self, tmp_path):
        directory = RunDirectory(tmp_path / "run")
        assert not directory.holds_run()
        assert list(tmp_path.iterdir()) == []

    def test_everything_stays_where_it_was_after_a_change_of_folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        directory = RunDirectory("run")
        monkeypatch.chdir("/")
        with directory.locked():
            directory.store(CONFIG, "abc")
        assert {path.name for path in (tmp_path / "run").iterdir()} == {
            *("lock", "config.json", "written.json", "written.lock")
        }
        assert directory.checkpoints == tmp_path / "run" / "checkpoints"

    def test_address_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UserError, match=r"^gs://bucket/run is an address"):
            RunDirectory("gs://bucket/run")
        assert list(tmp_path.iterdir()) == []


class TestResolveForResume:
    def test_new_folder_takes_the_config_and_lays_the_schedule_out_for_its_steps(self, tmp_path):
        directory = RunDirectory(tmp_path / "run")
        agreed = directory.resolve_for_resume(CONFIG, "abc")
        assert agreed == CONFIG.replace(schedule_steps=500)
        assert not (tmp_path / "run").exists()

    def test_new_folder_keeps_a_schedule_that_was_asked_for(self, tmp_path):
        config = CONFIG.replace(schedule_steps=70)
        agreed = RunDirectory(tmp_path).resolve_for_resume(config, "abc")
        assert agreed["schedule_steps"] == 70

    def test_equal_settings_go_on(self, run):
        agreed = run.resolve_for_resume(CONFIG, "abc")
        assert agreed == CONFIG.replace(schedule_steps=500)

    def test_schedule_stays_laid_out_for_the_first_steps(self, run):
        agreed = run.resolve_for_resume(CONFIG.replace(train_steps=900), "abc")
        assert agreed["train_steps"] == 900
        assert agreed["schedule_steps"] == 500

    def test_automatic_precision_is_the_one_resolved_then(self, run):
        agreed = run.resolve_for_resume(CONFIG.replace(precision="auto"), "abc")
        assert agreed["precision"] == "bfloat16"

    def test_every_differing_setting_is_named_with_both_values(self, run):
        other = CONFIG.replace(seed=7, flips=True, precision="float32")
        with pytest.raises(UserError) as error:
            run.resolve_for_resume(other, "abc")
        message = str(error.value)
        assert message.startswith(f"{run.path}: holds a run with other settings: ")
        for part in (
            "seed (0 there, 7 here)",
            "flips (None there, True here)",
            "precision (bfloat16 there, float32 here)",
        ):
            assert part in message
        assert message.count(" there, ") == 3
        assert "training data" not in message

    def test_other_data_are_named(self, run):
        with pytest.raises(UserError, match="the training data"):
            run.resolve_for_resume(CONFIG, "abd")

    @pytest.mark.parametrize(
        "setting",
        [
            dict(data_dir="elsewhere"),
            dict(run_dir="elsewhere"),
            dict(output_dir="elsewhere"),
            dict(train_steps=2000),
            dict(report_every_steps=7),
            dict(eval_every_steps=7),
            dict(checkpoint_every_steps=7),
            dict(keep_checkpoints=7),
            dict(strategy="mirrored"),
            dict(devices=(0, 1)),
            dict(logical_devices=4),
            dict(generators=5),
            dict(weights="best"),
        ],
        ids=lambda setting: next(iter(setting)),
    )
    def test_paths_intervals_and_devices_may_change(self, run, setting):
        agreed = run.resolve_for_resume(CONFIG.replace(**setting), "abc")
        assert agreed == CONFIG.replace(schedule_steps=500, **setting)


class TestRead:
    def test_stored_config_comes_back_equal_tuples_included(self, run):
        config, fingerprint = run.read()
        assert config == CONFIG.replace(schedule_steps=500)
        assert fingerprint == "abc"

    def test_setting_that_the_file_lacks_has_its_default(self, run):
        path = run.path / "config.json"
        stored = json.loads(path.read_text())
        path.write_text(json.dumps({**stored, "settings": {"seed": 5}}))
        assert run.read()[0] == RunConfig.of(seed=5)

    def test_folder_without_a_run_says_so(self, tmp_path):
        with pytest.raises(UserError, match="holds no run"):
            RunDirectory(tmp_path).read()

    @pytest.mark.parametrize(
        "content",
        [
            "",
            "{",
            "[]",
            "{}",
            '{"settings": [], "data": "abc"}',
            '{"settings": {"no_such_setting": 1}, "data": "abc"}',
            '{"settings": {"seed": -1}, "data": "abc"}',
            '{"settings": {}}',
        ],
    )
    def test_config_that_cannot_be_read_is_named(self, run, content):
        (run.path / "config.json").write_text(content)
        with pytest.raises(UserError, match=r"config\.json: cannot be read as the config"):
            run.read()


class TestLocked:
    def test_second_holder_is_refused_until_the_first_lets_go(self, tmp_path):
        first, second = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "run")
        with (
            first.locked(),
            pytest.raises(UserError, match="another process is using this run"),
            second.locked(),
        ):
            pass
        with second.locked():
            assert (tmp_path / "run").is_dir()

    def test_another_process_is_refused(self, tmp_path):
        code = (
            "import sys\n"
            "from unet_core.run_directory import RunDirectory\n"
            "with RunDirectory(sys.argv[1]).locked(): pass"
        )
        command = [sys.executable, "-c", code, tmp_path / "run"]
        with RunDirectory(tmp_path / "run").locked():
            refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert refused.returncode == 1
        assert "another process is using this run folder" in refused.stderr
        assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0

    def test_lock_is_let_go_when_the_block_fails(self, tmp_path):
        directory = RunDirectory(tmp_path / "run")
        with pytest.raises(ZeroDivisionError), directory.locked():
            raise ZeroDivisionError
        with directory.locked():
            assert directory.path.is_dir()

    @pytest.mark.parametrize("name", ["ENOSYS", "ENOLCK", "ENOTSUP", "EOPNOTSUPP", "EINVAL"])
    def test_file_system_that_cannot_lock_is_one_warning(self, tmp_path, flock_error, name):
        flock_error(getattr(errno, name))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for run in ("a", "a", "b"):
                with RunDirectory(tmp_path / run).locked():
                    assert (tmp_path / run).is_dir()
        (warning,) = caught
        assert str(warning.message).startswith(f"{tmp_path / 'a'}: the file system cannot lock (")
        assert warning.filename == __file__

    @pytest.mark.parametrize("name", ["EAGAIN", "EWOULDBLOCK"])
    def test_lock_of_another_is_no_file_system_that_cannot_lock(self, tmp_path, flock_error, name):
        flock_error(getattr(errno, name))
        with (
            pytest.raises(UserError, match="another process is using this run"),
            RunDirectory(tmp_path).locked(),
        ):
            pass

    def test_lock_that_fails_otherwise_is_an_error_that_names_it(self, tmp_path, flock_error):
        flock_error(errno.EIO)
        with pytest.raises(OSError, match="error") as error, RunDirectory(tmp_path).locked():
            pass
        assert (error.value.errno, error.value.filename) == (errno.EIO, str(tmp_path / "lock"))

    @pytest.mark.parametrize("path", ["file", "file/run"])
    def test_file_in_place_of_the_folder_is_an_error_that_names_it(self, tmp_path, path):
        (tmp_path / "file").write_text("mine")
        with (
            pytest.raises(UserError, match=rf"{path}: the run folder cannot be written"),
            RunDirectory(tmp_path / path).locked(),
        ):
            pass
        assert (tmp_path / "file").read_text() == "mine"


class TestClaim:
    def listed(self, run):
        return json.loads((run.path / "written.json").read_text())["files"]

    def test_none_of_several_at_once_is_lost(self, run, monkeypatch):
        def slowly(*args):
            time.sleep(0.05)
            files.write_json(*args)

        monkeypatch.setattr("unet_core.run_directory.write_json", slowly)
        names = [f"predictions/{number}.png" for number in range(4)]
        with concurrent.futures.ThreadPoolExecutor() as pool:
            claims = [pool.submit(RunDirectory(run.path).claim, run.path / name) for name in names]
        assert [each.result() for each in claims] == [None] * 4
        assert set(names) <= set(self.listed(run))

    def test_what_was_claimed_may_be_replaced_by_a_later_process(self, run):
        run.claim(run.path / "held_out" / "a.png")
        (run.path / "held_out").mkdir()
        (run.path / "held_out" / "a.png").touch()
        RunDirectory(run.path).claim(run.path / "held_out" / "a.png")
        assert self.listed(run).count("held_out/a.png") == 1

    @pytest.mark.parametrize("name", ["mine.png", "held_out/mine.png"])
    def test_file_of_somebody_else_is_refused_and_nothing_is_claimed(self, run, name):
        path = run.path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
        before = self.listed(run)
        with pytest.raises(UserError) as error:
            run.claim(run.path / "other.png", path)
        assert str(error.value).startswith(f"{path}: there already, and not written by this run")
        assert "Move it elsewhere, or choose another `run_dir`." in str(error.value)
        assert self.listed(run) == before

    def test_link_to_nothing_and_folders_are_somebody_elses_too(self, run):
        (run.path / "a").symlink_to("nothing")
        (run.path / "b").mkdir()
        with pytest.raises(UserError, match=r"/a and 1 more: there already"):
            run.claim(run.path / "a", run.path / "b")

    @pytest.mark.parametrize(
        "name",
        [
            *("finished", "history.csv", "known_masks.json", "scores.json"),
            *("per_image.csv", "worst.png", "precision_recall.png"),
        ],
    )
    def test_new_run_refuses_a_folder_with_files_of_these_names(self, tmp_path, name):
        (tmp_path / name).write_text("mine")
        run = RunDirectory(tmp_path)
        with pytest.raises(UserError, match=f"{name}: there already"), run.locked():
            run.store(CONFIG, "abc")
        assert (tmp_path / name).read_text() == "mine"
        assert {path.name for path in tmp_path.iterdir()} == {name, "lock"}

    def test_scores_and_mark_of_somebody_else_stay(self, tmp_path):
        for name in ("scores.json", "finished"):
            (tmp_path / name).write_text("mine")
        run = RunDirectory(tmp_path)
        with pytest.raises(UserError, match=r"scores\.json: there already"):
            run.write_scores({"a": 1.0})
        with pytest.raises(UserError, match="finished: there already"):
            run.mark_finished(5)
        assert {path.read_text() for path in tmp_path.iterdir()} == {"mine"}

    def test_path_outside_the_folder_is_an_error_of_the_program(self, run, tmp_path):
        with pytest.raises(ValueError, match="is not in the subpath"):
            run.claim(tmp_path / "a.png")

    @pytest.fixture
    def old_run(self, run):
        """The folder of a run of a version that kept no list."""
        (run.path / "written.json").unlink()
        for folder in ("held_out", "predictions"):
            (run.path / folder).mkdir()
        for name in (
            *("scores.json", "worst.png", "held_out/a_errors.png", "held_out/my_note.png"),
            *("predictions/a_predict.png", "predictions/a_probability_b.tif", "my_note.txt"),
            *("predictions/a_instances_overlay.png", "predictions/v_masks.avi", "mine.png"),
        ):
            (run.path / name).write_text("x")
        return run

    def test_run_without_a_list_owns_the_files_of_its_names(self, old_run):
        old_run.claim(
            old_run.path / "scores.json",
            old_run.path / "held_out" / "a_errors.png",
            old_run.path / "predictions" / "a_predict.png",
        )
        assert set(self.listed(old_run)) == {
            *("config.json", "scores.json", "worst.png", "held_out/a_errors.png"),
            *("predictions/a_predict.png", "predictions/a_probability_b.tif"),
            *("predictions/a_instances_overlay.png", "predictions/v_masks.avi"),
        }

    @pytest.mark.parametrize("name", ["mine.png", "my_note.txt", "held_out/my_note.png"])
    def test_run_without_a_list_does_not_own_files_of_other_names(self, old_run, name):
        with pytest.raises(UserError, match="there already"):
            old_run.claim(old_run.path / name)

    def test_folder_of_folds_without_a_list_owns_their_table(self, run, tmp_path):
        run.path.rename(tmp_path / "fold-0")
        (tmp_path / "folds.csv").touch()
        RunDirectory(tmp_path).claim(tmp_path / "folds.csv")
        owned = json.loads((tmp_path / "written.json").read_text())["files"]
        assert "folds.csv" in owned

    def test_config_that_is_none_of_a_run_makes_nothing_its_own(self, tmp_path):
        for name in ("config.json", "scores.json"):
            (tmp_path / name).write_text("{}")
        with pytest.raises(UserError, match=r"scores\.json: there already"):
            RunDirectory(tmp_path).claim(tmp_path / "scores.json")


class TestFormats:
    @pytest.mark.parametrize("name", ["config.json", "scores.json", "written.json"])
    def test_number_is_in_every_file(self, run, name):
        run.write_scores({"a": 1.0})
        assert json.loads((run.path / name).read_text())["format"] == 1

    def test_config_without_a_number_is_read(self, run):
        path = run.path / "config.json"
        stored = json.loads(path.read_text())
        del stored["format"]
        path.write_text(json.dumps(stored))
        assert run.read()[1] == "abc"

    def test_newer_config_is_refused_by_its_number(self, run):
        path = run.path / "config.json"
        path.write_text(json.dumps({"format": 2, "other": True}))
        with pytest.raises(UserError, match=r"config\.json: has format 2, .* reads format 0 and 1"):
            run.read()


class TestWriteScores:
    def test_nan_becomes_null_at_any_depth_and_the_rest_stays(self, run):
        nan = float("nan")
        run.write_scores({"a": nan, "b": {"c": [1.5, nan], "d": "x"}, "e": 3})
        text = (run.path / "scores.json").read_text()
        assert "NaN" not in text
        assert json.loads(text) == {
            **{"format": 1, "a": None},
            **{"b": {"c": [1.5, None], "d": "x"}, "e": 3},
        }

    def test_scores_may_go_to_another_folder(self, run, tmp_path):
        run.write_scores({"a": 1.0}, tmp_path)
        assert json.loads((tmp_path / "scores.json").read_text()) == {"format": 1, "a": 1.0}
        assert not (run.path / "scores.json").exists()

    def test_nothing_but_the_scores_is_left(self, run, tmp_path):
        (tmp_path / "out").mkdir()
        run.write_scores({"a": 1.0}, tmp_path / "out")
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["scores.json"]


class TestFinished:
    def test_run_is_finished_at_the_step_it_was_marked_at_only(self, run):
        assert not run.is_finished(500)
        run.mark_finished(500)
        assert run.is_finished(500)
        assert not run.is_finished(900)


class TestBind:
    """Settings of a program of one's own."""

    def test_are_stored_until_a_checkpoint_is_there_and_bind_from_then_on(self, tmp_path):
        run = RunDirectory(tmp_path / "run")
        run.path.mkdir()
        run.bind({"seed": 1, "classes": ["a"]})
        run.bind({"seed": 2, "classes": ["a"]})
        assert run.bound(dict[str, object]) == {"seed": 2, "classes": ["a"]}
        (run.checkpoints / "step-00000010").mkdir(parents=True)
        run.bind({"seed": 2, "classes": ["a"]})
        with pytest.raises(UserError, match="holds a run with other settings: seed; more"):
            run.bind({"seed": 3, "classes": ["a"], "more": 0})
        assert run.bound(dict[str, object])["seed"] == 2

    def test_what_is_missing_or_foreign_is_one_message(self, tmp_path):
        run = RunDirectory(tmp_path / "run")
        with pytest.raises(UserError, match="Train in this `run_dir` first"):
            run.bound(dict[str, object])
        run.path.mkdir()
        (run.path / "settings.json").write_text("mine")
        with pytest.raises(UserError, match="not written by this run"):
            run.bind({"seed": 1})
        assert (run.path / "settings.json").read_text() == "mine"
