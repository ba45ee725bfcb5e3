"""`--mode=report`, and the report that training and evaluation leave."""

import csv
import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from helpers.pages import Page, make_run, numbers, stored
from helpers.program import ROOT, TINY, check_refused, write_slices

from unet_core.reports import page
from unet_core.reports.about import read_about
from unet_core.run_directory import RunDirectory
from unet_core.runs.about import command_of
from unet_core.settings import RunConfig
from unet_core.training.history import History

needs_extra = pytest.mark.skipif(
    bool(page.missing_packages()), reason="the extra `report` is not installed"
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_slices(tmp_path_factory.mktemp("slices"))


@pytest.fixture
def trained(data_dir, door, tmp_path):
    """Trains up to a step, or goes on; returns the run and what was shown."""

    def run(steps, *args):
        flags = [*TINY, "--schedule=constant", f"--train_steps={steps}", *args]
        result = door(f"--data_dir={data_dir}", f"--run_dir={tmp_path / 'run'}", *flags)
        return RunDirectory(tmp_path / "run"), result

    return run


@needs_extra
class TestTraining:
    def test_leaves_a_page_and_says_where_and_a_resumed_run_tells_of_both_starts(
        self, trained, data_dir, door
    ):
        run, (code, out, err) = trained(2)
        assert code == 0, err
        assert f"The run on one page: {run.report}" in out
        listed = stored(run, "written.json")["files"]
        assert {"report.html", "about.json", "plots/curves.png"} <= set(listed)
        run, (code, _, err) = trained(4, "--keep_checkpoints=2")
        assert code == 0, err
        about = read_about(run.about)
        assert [(s.first_step, s.last_step, s.ended) for s in about.sessions] == [
            *((0, 2, "finished"), (2, 4, "finished")),
        ]
        # Six slices of 64 x 64 in three folds.
        assert [len(about.training.samples), len(about.held_out.samples)] == [4, 2]
        assert sum(about.training.class_pixels.values()) == 4 * 64 * 64
        assert "GFLOP" in about.network["Inference"]
        shown = Page(run.report.read_text())
        assert shown.rows("starts").keys() == {session.began for session in about.sessions}
        text = " ".join(shown.text)
        assert "Finished at step 4." in text
        assert "--keep_checkpoints=2" in text
        with run.history.open() as file:
            rows = list(csv.DictReader(file))
        head, *body = shown.tables["history"]
        names = [cell[0] for cell in head]
        # Nothing was noted, and what is empty is left out.
        assert names == [name for name in rows[0] if name != "note"]
        assert [["".join(c) for c in row] for row in body] == [[r[n] for n in names] for r in rows]
        # Scored anew in another way, the page says so.
        code, out, err = door("--mode=evaluate", f"--run_dir={run.path}", "--tta=flips")
        assert code == 0, err
        shown = Page(run.report.read_text())
        assert "test-time augmentation flips" in " ".join(shown.text)
        scores = stored(run)["scores"]
        found = {name: numbers(cells) for name, cells in shown.rows("all-scores").items()}
        assert found == {n: [] if v is None else [v] for n, v in scores.items()}

    def test_a_killed_run_has_a_report_and_goes_on(self, trained, door, tmp_path, monkeypatch):
        append, calls = History.append, []

        def die(*args):
            calls.append(1)
            if len(calls) == 2:
                raise SystemError("killed")
            append(*args)

        monkeypatch.setattr(History, "append", die)
        with pytest.raises(SystemError):
            trained(4)
        monkeypatch.undo()
        run = RunDirectory(tmp_path / "run")
        code, _out, err = door("--mode=report", f"--run_dir={run.path}")
        assert code == 0, err
        text = " ".join(Page(run.report.read_text()).text)
        assert "Running or killed: saved at step 2 of 4" in text
        assert "has not been scored yet" in text
        run, (code, _, err) = trained(4)
        assert code == 0, err
        ends = [session.ended for session in read_about(run.about).sessions]
        assert ends == ["", "finished"]
        shown = Page(run.report.read_text())
        assert "killed" in str(next(iter(shown.rows("starts").values())))

    def test_report_of_the_users_own_is_refused_before_training(self, trained, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "report.html").write_text("mine")
        run, result = trained(2)
        check_refused(result, run.report, "not written by this run")
        assert run.report.read_text() == "mine"
        assert not run.checkpoints.exists()


class TestWithoutTheExtra:
    def test_training_ends_as_usual_with_one_line(self, trained, monkeypatch, door):
        monkeypatch.setattr(page, "missing_packages", lambda: ["matplotlib"])
        run, (code, out, err) = trained(2)
        assert code == 0, err
        (line,) = [line for line in out.splitlines() if "report" in line]
        assert "pip install '.[report]'" in line
        assert f"--mode=report --run_dir={run.path}" in line
        assert not run.report.exists()
        result = door("--mode=report", f"--run_dir={run.path}")
        check_refused(result, "--mode report needs matplotlib", "pip install '.[report]'")


@needs_extra
class TestReport:
    def test_other_settings_and_no_run_are_refused(self, door, tmp_path):
        check_refused(door("--mode=report"), "--run_dir is missing")
        check_refused(door("--mode=report", f"--run_dir={tmp_path}"), tmp_path, "holds no run")
        given = "--mode=report", f"--run_dir={tmp_path}", "--tta=flips"
        check_refused(door(*given), "--tta is not used with --mode report")


@needs_extra
class TestCompare:
    @pytest.fixture(scope="class")
    @classmethod
    def runs(cls, tmp_path_factory):
        folder = tmp_path_factory.mktemp("compared")
        one = make_run(folder / "one", learning_rate=0.01)
        two = make_run(folder / "two", images=("a", "b"), seed=3)
        page.write_report(one)
        return one, two

    def test_scores_and_settings_stand_side_by_side(self, runs, door, tmp_path):
        one, two = runs
        given = "--mode=report", f"--compare={one.path},{two.path}", f"--output_dir={tmp_path}"
        code, _out, err = door(*given)
        assert code == 0, err
        shown = Page((tmp_path / "compare.html").read_text())
        rows, scores = shown.rows("all-scores"), [stored(run)["scores"] for run in runs]
        for name in scores[0]:
            values = [each[name] for each in scores if each[name] is not None]
            assert numbers(rows[name]) == values, name
        differing = shown.rows("settings-that-differ")
        assert differing.keys() == {"learning_rate", "seed"}
        default = RunConfig()
        assert differing["learning_rate"] == [["0.01"], [str(default["learning_rate"])]]
        # The report that is there is linked, from where the page lies.
        (link,) = {a["href"] for t, a in shown.tags if t == "a" and "report.html" in a["href"]}
        assert (tmp_path / link).resolve() == one.report
        check_refused(door(*given), "compare.html", "--overwrite")
        code, _, err = door(*given, "--overwrite")
        assert code == 0, err

    def test_the_better_of_a_row_is_marked_by_its_direction(self, runs):
        from unet_core.reports.comparison import _score_rows
        from unet_core.reports.run_files import RunFiles

        found = [RunFiles.read(run) for run in runs]
        rows = {row["name"]: row["cells"] for row in _score_rows(found)}
        for name, better in (("dice/mean", max), ("calibration_error", min)):
            values = [value for value, _ in rows[name]]
            assert [best for _, best in rows[name]] == [v == better(values) for v in values]
        assert not any(best for _, best in rows["majority_baseline"])

    def test_folds_are_compared_in_their_folder(self, runs, door, tmp_path):
        for number, run in enumerate(runs):
            shutil.copytree(run.path, tmp_path / f"fold-{number}")
        code, _, err = door("--mode=report", f"--run_dir={tmp_path}")
        assert code == 0, err
        assert "fold-0, fold-1" in (tmp_path / "compare.html").read_text()
        assert stored(RunDirectory(tmp_path), "written.json")["files"][-1] == "compare.html"

    def test_what_cannot_be_compared_is_refused(self, runs, door, tmp_path):
        one, two = (run.path for run in runs)
        check_refused(door("--mode=report", f"--compare={one}"), "--compare", "two runs or more")
        both = f"--compare={one},{two}"
        check_refused(door("--mode=report", both, f"--run_dir={one}"), "--run_dir", "--compare")
        result = door("--mode=report", f"--compare={one},{tmp_path}", f"--output_dir={tmp_path}")
        check_refused(result, tmp_path, "holds no run")
        assert not (tmp_path / "compare.html").exists()


class TestCommand:
    def test_gives_the_settings_that_were_given(self):
        from absl.testing import flagsaver

        from unet_core import door

        given = {
            **{"data_dir": "my data", "folds": 3, "flips": False, "scale": (0.5, 2.0)},
            **{"outputs": ("mask", "outlines"), "learning_rate": 1e-5},
        }
        config = RunConfig.of(**given)
        with flagsaver.flagsaver():
            _, program, *flags = shlex.split(command_of(config))
            argv = door._parse_flags([program, *flags])
            again = door._config(argv)
        assert again.values() == config.values()
        assert again.given == config.given


class TestImport:
    def test_package_and_help_load_no_plotting_library(self):
        code = (
            "import sys, unet_core; from unet_core import door; door.help_text(); "
            "print([n for n in ('matplotlib', 'jinja2') if n in sys.modules])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.stdout == "[]\n", done.stderr

    def test_no_module_imports_it_before_it_draws(self):
        # Keras imports Matplotlib itself if it is there, so the sources are asked.
        early = re.compile("^(import|from) (matplotlib|jinja2|markupsafe)", re.MULTILINE)
        for path in (ROOT / "unet_core").rglob("*.py"):
            assert not early.search(path.read_text()), path


def test_about_of_another_program_is_named(tmp_path):
    from unet_core.errors import UserError

    path = tmp_path / "about.json"
    for content in ("{", "[]", json.dumps({"format": 1, "sessions": 3}), '{"format": 2}'):
        path.write_text(content)
        with pytest.raises(UserError, match=re.escape(str(path))):
            read_about(path)
