"""The page of a run says what its files say, and nothing in them is believed."""

import base64
import csv
import json
import re
import shutil

import cv2
import numpy as np
import pytest
from helpers.pages import Page, make_run, numbers, stored
from helpers.program import ROOT

from unet_core.errors import UserError
from unet_core.reports import page, run_charts
from unet_core.reports.run_files import RunFiles
from unet_core.run_directory import RunDirectory

pytest.importorskip("jinja2", reason="the extra `report` is not installed")
pytest.importorskip("matplotlib", reason="the extra `report` is not installed")

GOLDEN = ROOT / "tests" / "golden" / "format-1"
# No name of a file can hold a slash; one of a class can.
EVIL_CLASS = "<script>alert(1)</script>"
EVIL_IMAGE = """"><img src=x onerror=alert(1)>'{{ 7 * 7 }}&amp;"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    made = make_run(tmp_path_factory.mktemp("runs") / "one")
    page.write_report(made)
    return made


@pytest.fixture(scope="module")
def shown(run):
    return Page(run.report.read_text())


@pytest.fixture(scope="module")
def scores(run):
    return stored(run)


class TestNumbers:
    def test_every_score_is_that_of_scores_json(self, shown, scores):
        rows = shown.rows("all-scores")
        # A hyphen stands for what is not defined.
        assert {name: numbers(cells) for name, cells in rows.items()} == {
            name: [] if value is None else [value] for name, value in scores["scores"].items()
        }

    def test_classes_have_their_scores_and_true_pixels(self, shown, scores):
        keys = [key for key in page._COLUMNS if f"{key}/sky" in scores["scores"]]
        assert keys == list(page._COLUMNS)
        for number, name in enumerate(("sky", "road", "tree")):
            expected = [scores["scores"][f"{key}/{name}"] for key in keys]
            assert numbers(shown.rows("classes")[name]) == [
                *expected,
                sum(scores["confusion"][number]),
            ]
        means = [scores["scores"][name] for name in ("dice/mean", "iou/mean")]
        # 4 images of 12 x 16 pixels.
        assert numbers(shown.rows("classes")["mean"]) == [*means, 768]

    def test_confusion_has_shares_and_counts(self, shown, scores):
        rows = zip(shown.tables["matrix"][1:], scores["confusion"], strict=True)
        for row, (cells, counts) in enumerate(rows):
            assert cells[0] == [("sky", "road", "tree")[row]]
            found = [cell[0] for cell in cells[1:]], [cell[-1] for cell in cells[1:]]
            assert found[1] == counts
            assert found[0] == [count / sum(counts) for count in counts]

    def test_history_is_that_of_history_csv(self, run, shown):
        with run.history.open() as file:
            rows = list(csv.DictReader(file))
        head, *body = shown.tables["history"]
        names = [cell[0] for cell in head]
        assert names == list(rows[0])
        assert [["".join(cell) for cell in row] for row in body] == [list(r.values()) for r in rows]

    def test_worst_images_come_first_with_their_scores(self, shown, scores):
        dice = {name: found["dice/mean"] for name, found in scores["per_image"].items()}
        rows = shown.rows("worst")
        assert list(rows) == sorted(dice, key=dice.get)
        for name, cells in rows.items():
            found = scores["per_image"][name]
            wanted = ["dice/mean", "iou/mean", "accuracy", "dice/sky", "dice/road", "dice/tree"]
            assert numbers(cells) == [found[key] for key in wanted]

    def test_calibration_is_that_of_scores_json(self, shown, scores):
        for cells, each in zip(shown.tables["calibration"][1:], scores["calibration"], strict=True):
            assert numbers(cells) == [value for value in each.values() if value is not None]

    def test_frequencies_are_those_of_the_masks(self, shown, scores):
        # 100, 101 and 102 pixels to train on; those held out as the rows of the confusion matrix.
        held_out = [sum(row) for row in scores["confusion"]]
        for number, cells in enumerate(shown.rows("frequencies").values()):
            count, total = held_out[number], 768
            expected = [100 + number, (100 + number) / 303, count, count / total]
            assert numbers(cells) == expected

    def test_best_step_has_the_best_monitored_score(self, run):
        steps, values = RunFiles.read(run).column("held_out/dice/mean")
        assert RunFiles.read(run).best_step() == steps[int(np.argmax(values))]

    def test_machine_duration_command_and_samples_are_those_noted(self, shown):
        text = " ".join(shown.text)
        # 3725 s are an hour, two minutes and five seconds.
        for part in (
            "python train_loop.py --folds=2",
            "abacus",
            "3.11.0",
            "1 h 2 min",
            "16 \u00d7 12",
        ):
            assert part in text
        assert "Finished at step 40" in text


class TestCharts:
    def test_curves_have_the_numbers_of_the_history(self, run):
        files = RunFiles.read(run)
        charts = {c.title: c for c in run_charts.learning_curves(files)}
        charts |= {c.title: c for c in run_charts.per_class_curves(files)}
        held_out, training = charts["Loss"].lines
        assert (held_out.x, held_out.y) == files.column("held_out/loss")
        assert (training.x, training.y) == files.column("train/loss")
        assert [held_out.dashed, training.dashed] == [False, True]
        assert len(held_out.x) == 2
        assert len(training.x) == 4
        lines = {line.name: line for line in charts["Dice (= F1)"].lines}
        assert lines["road, held out"].y == files.column("held_out/dice/road")[1]
        assert lines["road, held out"].colour == lines["road, training"].colour == 1
        assert all(chart.mark == files.best_step() for chart in charts.values())

    def test_speeds_are_those_of_the_event_files(self, run):
        charts = {c.title: c for c in run_charts.training_charts(RunFiles.read(run))}
        (line,) = charts["Images per second"].lines
        assert (line.x, line.y) == ([10, 20, 30, 40], [1.25, 2.5, 3.75, 5.0])
        (line,) = charts["Data wait, share of the time"].lines
        np.testing.assert_allclose(line.y, [0.1, 0.05, 1 / 30, 0.025], rtol=1e-6)

    def test_curves_of_probabilities_are_those_of_scores_json(self, run, scores):
        files = RunFiles.read(run)
        for line in run_charts.precision_recall(files.scores).lines:
            curve = scores["precision_recall"][line.name]
            assert (line.x, line.y) == (curve["recall"], curve["precision"])
        predicted, sky, *_ = run_charts.reliability(files.scores).lines
        bins = [each for each in scores["calibration"] if each["pixels"]]
        assert predicted.y == [each["accuracy"] for each in bins]
        # The bins of 0.95 to 1 together.
        counts = scores["probabilities"]["sky"]
        true, false = sum(counts["of_class"][-5:]), sum(counts["of_others"][-5:])
        assert dict(zip(sky.x, sky.y, strict=True))[0.975] == true / (true + false)

    def test_every_chart_is_on_the_page_and_in_plots(self, run, shown):
        names = {path.name for path in run.plots.iterdir()}
        assert names == set(page.PLOTS)
        # 3 of all classes, 2 of each, 4 of training, 3 of probabilities.
        assert [tag for tag, _ in shown.tags].count("svg") == 12


class TestPictures:
    def test_best_median_and_worst_have_four_panels_each(self, run, shown, scores):
        dice = {name: found["dice/mean"] for name, found in scores["per_image"].items()}
        ranked = sorted(dice, key=dice.get)
        pictures = [a for tag, a in shown.tags if tag == "img" and "of" in a["alt"].split()]
        expected = [
            f"{panel} of {name}"
            for name in (ranked[-1], ranked[2], ranked[0])
            for panel in ("image", "truth", "prediction", "errors")
        ]
        assert [a["alt"] for a in pictures] == expected

    def test_panels_are_parts_of_the_picture_that_is_there(self, run):
        files = RunFiles.read(run)
        whole = cv2.imread(str(run.path / "held_out" / "a_errors.png"))
        # Four pictures 16 wide and 12 high, each in a frame of 4, titles above.
        assert whole.shape == (12 + 22 + 4, 4 * (16 + 8), 3)
        (_, _), (_, uri), *_ = page._panels(files, "a")
        content = np.frombuffer(base64.b64decode(uri.partition(",")[2]), np.uint8)
        truth = cv2.imdecode(content, cv2.IMREAD_COLOR)
        np.testing.assert_array_equal(truth, whole[22:34, 28:44])

    def test_picture_that_is_gone_or_damaged_is_said(self, run, tmp_path):
        copy = RunDirectory(shutil.copytree(run.path, tmp_path / "copy"))
        ranked = page._ranked(stored(copy)["per_image"])
        (copy.path / "held_out" / f"{ranked[0]}_errors.png").unlink()
        (copy.path / "held_out" / f"{ranked[-1]}_errors.png").write_bytes(b"no picture")
        page.write_report(copy)
        text = " ".join(Page(copy.report.read_text()).text)
        for name in (ranked[0], ranked[-1]):
            assert f"held_out/{name}_errors.png cannot be read" in text


class TestTrust:
    def test_hostile_names_are_text(self, tmp_path):
        settings = {"monitor": f"dice/{EVIL_CLASS}"}
        run = make_run(
            tmp_path / "<b>run&",
            classes=(EVIL_CLASS, "_b", "$c$"),
            images=(EVIL_IMAGE, "y"),
            **settings,
        )
        about = stored(run, "about.json")
        about["sessions"][0] |= {"command": EVIL_IMAGE, "hardware": {EVIL_CLASS: EVIL_IMAGE}}
        run.about.write_text(json.dumps(about))
        page.write_report(run)
        shown = Page(run.report.read_text())
        tags = {tag for tag, _ in shown.tags}
        assert not tags & {"script", "b>", "iframe", "object", "embed", "base", "form", "link"}
        assert not [name for _, a in shown.tags for name in a if name.startswith("on")]
        text = "\n".join(shown.text)
        for part in (EVIL_CLASS, EVIL_IMAGE, "$c$", "_b", "<b>run&"):
            assert part in text
        assert "49" not in [part.strip() for part in shown.text]
        links = [a["href"] for tag, a in shown.tags if tag == "a"]
        places = [link for link in links if "held_out/" in link]
        assert any(link.startswith("./held_out/%22%3E%3Cimg") for link in places)

    def test_page_asks_for_nothing(self, run, shown):
        text = run.report.read_text()
        for tag, attributes in shown.tags:
            for name in ("src", "href", "xlink:href", "data", "action", "srcset", "poster"):
                place = attributes.get(name)
                assert place is None or place.startswith(("data:image/", "#", "./")), (tag, place)
        assert not re.search(r"url\((?!#)", text)
        assert "@import" not in text
        (policy,) = [a["content"] for t, a in shown.tags if "http-equiv" in a]
        assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

    def test_links_lead_to_what_is_there(self, run, shown):
        links = [a["href"] for tag, a in shown.tags if tag == "a" and a["href"][0] != "#"]
        assert links
        for link in links:
            assert (run.path / link).exists(), link

    @pytest.mark.parametrize("name", ["scores.json", "about.json", "config.json", "history.csv"])
    def test_damaged_file_is_one_message(self, run, tmp_path, name):
        copy = RunDirectory(shutil.copytree(run.path, tmp_path / "copy"))
        (copy.path / name).write_text("{")
        with pytest.raises(UserError, match=re.escape(str(copy.path / name))):
            page.write_report(copy)

    def test_file_that_the_run_has_not_written_stays(self, run, tmp_path):
        for name in ("report.html", "plots/curves.png"):
            copy = RunDirectory(shutil.copytree(run.path, tmp_path / name.replace("/", "")))
            listed = stored(copy, "written.json")
            listed["files"].remove(name)
            (copy.path / "written.json").write_text(json.dumps(listed))
            (copy.path / name).write_text("mine")
            with pytest.raises(UserError, match="not written by this run"):
                page.write_report(copy)
            assert (copy.path / name).read_text() == "mine"


class TestEarlierRuns:
    def test_of_a_version_before_says_what_is_missing(self, tmp_path):
        run = RunDirectory(shutil.copytree(GOLDEN, tmp_path / "run"))
        page.write_report(run)
        shown = Page(run.report.read_text())
        text = " ".join(shown.text)
        for words in ("about.json is not there", "holds no speeds", "no histograms"):
            assert words in text
        assert "Finished at step 4" in text
        found = {name: numbers(cells) for name, cells in shown.rows("all-scores").items()}
        for name, value in stored(run)["scores"].items():
            assert found[name] == ([] if value is None else [value])

    def test_of_a_run_that_has_only_begun(self, run, tmp_path):
        copy = RunDirectory(tmp_path / "new")
        with copy.locked():
            copy.store(RunFiles.read(run).config, "abc")
        page.write_report(copy)
        text = " ".join(Page(copy.report.read_text()).text)
        for words in ("no rows yet", "has not been scored", "At step 0 of 40"):
            assert words in text


class TestWords:
    def test_durations(self):
        found = [page.duration(seconds) for seconds in (0, 59.6, 3599, 3600, 90_061)]
        assert found == ["0 s", "1 min 0 s", "59 min 59 s", "1 h 0 min", "25 h 1 min"]

    def test_numbers(self):
        found = [page.number(v) for v in (None, float("nan"), 1234567, 0.12345, 1234.5)]
        assert found == ["-", "-", "1,234,567", "0.1235", "1,234"]
