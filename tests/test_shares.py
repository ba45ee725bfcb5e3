"""Shares of a prediction and of an evaluation, each by a command of its own, and merged."""

import json
import shutil

import cv2
import numpy as np
import pytest
import tifffile
from absl.testing import flagsaver
from helpers.program import TINY, check_refused, write_slices

from unet_core import door as door_of_program

SHARES = 3
PREDICT = ["--mode=predict", "--outputs=mask,probabilities", "--instances=components"]
PREDICT += ["--object_class=cell", "--objects=csv,coco"]
EVALUATE = ["--mode=evaluate", "--object_class=cell", "--instances=watershed"]


def succeeds(result):
    code, out, err = result
    assert code == 0, err
    return out


def files_in(folder):
    """What the files of a folder hold, by name; of the lists, who made what of which file."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = str(path.relative_to(folder))
            found[name] = path.read_bytes() if path.suffix != ".jsonl" else lines_of(path)
    return found


def lines_of(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    # Which run it was, and when.
    return [{k: v for k, v in line.items() if k not in ("run", "at")} for line in lines]


def without_parts(files):
    return {name: content for name, content in files.items() if f"-of-{SHARES}" not in name}


@pytest.fixture(scope="module")
def program():
    """Runs the program in this process, before what a test itself is for."""

    def run(*args):
        with flagsaver.flagsaver():
            assert door_of_program.main(door_of_program._parse_flags(["train_loop", *args])) == 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unet_core.reports.page.missing_packages", lambda: ["matplotlib"])
        yield run


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    return write_slices(tmp_path_factory.mktemp("slices"))


@pytest.fixture(scope="module")
def run_dir(program, slices, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    program(f"--data_dir={slices}", f"--run_dir={folder}", *TINY, "--train_steps=2")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two pictures and a stack of three pages, of different sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    pages = random.integers(0, 256, (3, 40, 48)).astype(np.uint8)
    tifffile.imwrite(folder / "2.tif", pages, photometric="minisblack")
    for name in ("1.png", "10.png"):
        noise = random.integers(0, 256, (48, 40)).astype(np.uint8)
        cv2.imwrite(str(folder / name), cv2.GaussianBlur(noise, (0, 0), 2))
    return folder


def predicting(run_dir, source, out, *more):
    return [*PREDICT, f"--run_dir={run_dir}", f"--input={source}", f"--output_dir={out}", *more]


def scoring(run_dir, data, out, *more):
    return [*EVALUATE, f"--run_dir={run_dir}", f"--data_dir={data}", f"--output_dir={out}", *more]


def whole_and_in_shares(program, folder, command, *args):
    """Does what `command` says to folder/whole, and in three shares to folder/out."""
    program(*command(*args, folder / "whole"))
    for number in (3, 1, 2):
        program(*command(*args, folder / "out", f"--shard={number}/3"))
    return folder


@pytest.fixture(scope="module")
def predicted(program, run_dir, pictures, tmp_path_factory):
    """The pictures predicted whole, and to another folder in three shares."""
    folder = tmp_path_factory.mktemp("predicted")
    return whole_and_in_shares(program, folder, predicting, run_dir, pictures)


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Seven slices that the run does not know; of one a part, and one lacks a class."""
    folder = write_slices(tmp_path_factory.mktemp("others"))
    for kind in ("image", "label"):
        path = folder / "train" / kind / "1.png"
        cropped = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[:40, 8:]
        cv2.imwrite(str(folder / "train" / kind / "6.png"), cropped)
    cv2.imwrite(str(folder / "train" / "label" / "2.png"), np.full((64, 64), 255, np.uint8))
    return folder


@pytest.fixture(scope="module")
def scored(program, run_dir, others, tmp_path_factory):
    """These scored whole, and to another folder in three shares."""
    folder = tmp_path_factory.mktemp("scored")
    return whole_and_in_shares(program, folder, scoring, run_dir, others)


@pytest.fixture
def merge(door, tmp_path):
    return lambda: door("--mode=merge", f"--output_dir={tmp_path / 'out'}")


class TestPredict:
    @pytest.fixture
    def out(self, predicted, tmp_path):
        """The folder of three shares that are finished."""
        return shutil.copytree(predicted / "out", tmp_path / "out")

    @pytest.fixture
    def one(self, door, run_dir, pictures, tmp_path):
        """Predicts one share."""

        def predict(shard, *more, source=pictures):
            return door(*predicting(run_dir, source, tmp_path / "out", f"--shard={shard}", *more))

        return predict

    def test_shares_are_disjoint_and_merged_are_the_files_of_one_process(
        self, predicted, out, merge
    ):
        # By number: 1, the pages 0, 1 and 2 of 2, and 10.
        expected = {1: ["1", "2_002"], 2: ["2_000", "10"], 3: ["2_001"]}
        for number, names in expected.items():
            lines = lines_of(out / f"predicted-{number}-of-3.jsonl")
            assert [each["begun"] for each in lines if each.get("begun")] == names
        parts = files_in(out)
        assert not {"objects_coco.json", "predicted.jsonl"} & set(parts)
        assert "5 image(s) of 3 shares" in succeeds(merge())
        merged, whole = files_in(out), files_in(predicted / "whole")
        assert {name: merged[name] for name in parts} == parts
        assert json.loads(merged["objects_coco.json"])["annotations"]
        lists = [files.pop("predicted.jsonl") for files in (merged, whole)]
        assert without_parts(merged) == whole
        of_pictures = [[line for line in each if line.get("source")] for each in lists]
        assert of_pictures[0] == of_pictures[1]
        assert lists[0][0] == lists[1][0]
        # Again it changes nothing.
        succeeds(merge())
        again = files_in(out)
        del again["predicted.jsonl"]
        assert again == merged

    def test_what_shares_have_finished_stays_for_all_and_for_other_shares(
        self, door, one, out, run_dir, pictures, merge, tmp_path
    ):
        assert "2 of 2 image(s) were finished before" in succeeds(one("1/3"))
        (out / "predicted-3-of-3.jsonl").rename(tmp_path / "moved.jsonl")
        for path in out.glob("2_001_*"):
            path.unlink()
        text = succeeds(door(*predicting(run_dir, pictures, out)))
        assert "4 of 5 image(s) were finished before" in text
        for shard, count in (("1/2", 3), ("2/2", 2)):
            assert f"{count} of {count} image(s) were finished before" in succeeds(one(shard))
        check_refused(merge(), "shares of 2 and of 3", "predicted-*-of-2.jsonl")
        for path in out.glob("predicted-*-of-3.jsonl"):
            path.unlink()
        assert "5 image(s) of 2 shares" in succeeds(merge())

    def test_missing_and_unfinished_shares_are_named(self, one, merge, out):
        lists = [out / f"predicted-{number}-of-3.jsonl" for number in (1, 2, 3)]
        contents = [path.read_text() for path in lists]
        lists[0].unlink()
        lists[2].unlink()
        check_refused(merge(), "1/3, 3/3 are missing", "--shard (1/3)")
        lists[0].write_text(contents[0])
        # Killed before its end.
        lists[2].write_text("".join(contents[2].splitlines(True)[:-1]))
        check_refused(merge(), "3/3 is not finished", "--shard (3/3)")
        assert not (out / "objects_coco.json").exists()
        succeeds(one("3/3"))
        succeeds(merge())

    def test_share_of_no_picture_is_done_at_once(self, one, merge, tmp_path):
        check_refused(merge(), "no share was predicted or scored there")
        assert "share 6/6, 0 of 5 image(s)" in succeeds(one("6/6"))
        check_refused(merge(), "1/6, 2/6, 3/6, 4/6, 5/6 are missing")

    def test_shares_of_other_settings_or_pictures_are_named(self, one, out, pictures, merge):
        succeeds(one("2/3", "--threshold=cell:0.4", "--overwrite"))
        check_refused(merge(), "1/3 and 2/3 differ in threshold (", "cell:0.4 in 2/3)")
        more = shutil.copytree(pictures, out.parent / "more")
        shutil.copy(more / "1.png", more / "3.png")
        succeeds(one("2/3", "--overwrite", source=more))
        check_refused(merge(), "1/3 and 2/3 differ in inputs")

    def test_pictures_predicted_anew_by_others_since_are_noticed(
        self, door, one, out, run_dir, pictures, merge
    ):
        flags = predicting(run_dir, pictures / "1.png", out, "--threshold=cell:0.4", "--overwrite")
        succeeds(door(*flags))
        check_refused(merge(), "1_predict.png: was predicted anew")
        # Nor is the share taken for finished by what its own list says.
        check_refused(one("1/3"), "1_predict.png: was made otherwise", "threshold")
        succeeds(one("1/3", "--overwrite"))
        succeeds(merge())
        (out / "1_predict.png").unlink()
        check_refused(merge(), "1_predict.png: was predicted, and is gone")

    def test_picture_that_cannot_be_read_is_told_and_the_others_are_merged(
        self, one, out, pictures, merge
    ):
        broken = shutil.copytree(pictures, out.parent / "broken")
        (broken / "10.png").write_bytes(b"no picture")
        result = one("2/3", "--overwrite", source=broken)
        check_refused(result, "1 of 2 image(s) could not be predicted")
        result = merge()
        check_refused(result, "1 of 5 image(s)", "the others are merged", broken / "10.png")
        coco = json.loads((out / "objects_coco.json").read_text())
        names = [(each["id"], each["file_name"], each["page"]) for each in coco["images"]]
        assert names == [(1, "1.png", 0), (2, "2.tif", 0), (3, "2.tif", 1), (4, "2.tif", 2)]

    def test_damaged_part_is_one_message(self, merge, out):
        path = out / "objects_coco-2-of-3.json"
        content = json.loads(path.read_text())
        content["images"].pop()
        for damaged in (json.dumps(content), '{"images": 5}', "["):
            path.write_text(damaged)
            check_refused(merge(), path, "the COCO JSON of a share")

    def test_file_of_somebody_else_stays(self, merge, out):
        (out / "objects_coco.json").write_text("mine")
        check_refused(merge(), "objects_coco.json: there already")
        assert (out / "objects_coco.json").read_text() == "mine"

    def test_folder_of_the_run_is_written_by_all_and_merged(
        self, door, run_dir, pictures, tmp_path
    ):
        run = shutil.copytree(run_dir, tmp_path / "run")
        shutil.rmtree(run / "predictions")
        flags = [*PREDICT, f"--run_dir={run}", f"--input={pictures}"]
        for number in (1, 2, 3):
            succeeds(door(*flags, f"--shard={number}/3"))
        succeeds(door("--mode=merge", f"--run_dir={run}"))
        owned = set(json.loads((run / "written.json").read_text())["files"])
        there = {path.relative_to(run).as_posix() for path in (run / "predictions").iterdir()}
        assert there <= owned
        assert "predictions/objects_coco.json" in there

    def test_predictions_beside_their_pictures_are_no_pictures(
        self, door, run_dir, pictures, tmp_path
    ):
        folder = shutil.copytree(pictures, tmp_path / "out")
        for number, count in ((1, 3), (2, 2)):
            flags = predicting(run_dir, folder, folder, f"--shard={number}/2")
            assert f"share {number}/2, {count} of 5 image(s)" in succeeds(door(*flags))

    def test_video_and_wrong_numbers_are_refused(self, door, run_dir, tmp_path):
        flags = ["--mode=predict", f"--run_dir={run_dir}", f"--output_dir={tmp_path / 'out'}"]
        for text in ("0/16", "17/16", "3", "a/b", "-1/3", "3/16/2"):
            result = door(*flags, f"--shard={text}")
            check_refused(result, f"--shard ('{text}')", "from 1 to the count", "--array=1-16")
        (tmp_path / "a.mp4").touch()
        result = door(*flags, f"--input={tmp_path / 'a.mp4'}", "--shard=1/2")
        check_refused(result, "--shard (1/2)", "one video")
        assert not (tmp_path / "out").exists()


class TestEvaluate:
    @pytest.fixture
    def out(self, scored, tmp_path):
        """The folder of three shares that are scored."""
        return shutil.copytree(scored / "out", tmp_path / "out")

    def test_merged_are_the_files_of_one_process(self, scored, out, merge):
        parts = files_in(out)
        counts = [len(json.loads(parts[f"scores-{n}-of-3.json"])["images"]) for n in (1, 2, 3)]
        assert counts == [3, 2, 2]
        assert "scores.json" not in parts
        assert "Scores on 7 held-out image(s)" in succeeds(merge())
        merged, whole = files_in(out), files_in(scored / "whole")
        assert {name: merged[name] for name in parts} == parts
        assert without_parts(merged) == whole
        scores = json.loads(whole["scores.json"])
        assert scores["objects"]["0.50"] is not None
        assert scores["best_threshold"]["cell"]["dice"] > 0

    def test_images_that_the_run_held_out_have_the_thresholds_that_share_1_chose(
        self, door, run_dir, slices, merge, tmp_path
    ):
        whole, out = tmp_path / "whole", tmp_path / "out"
        succeeds(door(*scoring(run_dir, slices, whole)))
        for shard in ("2/3", "1/3", "3/3"):
            text = succeeds(door(*scoring(run_dir, slices, out, f"--shard={shard}")))
            assert f"share {shard}, {int(shard != '3/3')} of 2 image(s)" in text
        succeeds(merge())
        merged, whole = files_in(out), files_in(whole)
        assert without_parts(merged) == whole
        assert json.loads(whole["scores.json"])["segments"]["chosen"]

    def test_missing_and_differing_shares_are_named(
        self, door, run_dir, others, out, merge, tmp_path
    ):
        second = (out / "scores-2-of-3.json").rename(tmp_path / "moved.json")
        check_refused(merge(), "2/3 is missing", "--shard (2/3)")
        second.rename(out / "scores-2-of-3.json")
        succeeds(door(*scoring(run_dir, others, out, "--shard=3/3", "--boundary_px=3")))
        check_refused(merge(), "boundary_px (2.0 in 1/3, 3.0 in 3/3)")
        succeeds(door(*scoring(run_dir, others, out, "--shard=3/3", "--nosegment_scores")))
        check_refused(merge(), "segment_scores (on in 1/3, off in 3/3)")
        fewer = shutil.copytree(others, tmp_path / "data")
        for kind in ("image", "label"):
            (fewer / "train" / kind / "6.png").unlink()
        succeeds(door(*scoring(run_dir, fewer, out, "--shard=3/3")))
        check_refused(merge(), "images (7 in 1/3, 6 in 3/3)", "data")
        assert not (out / "scores.json").exists()

    def test_output_folder_of_its_own_and_one_fold_are_needed(self, door, run_dir):
        flags = [*EVALUATE, f"--run_dir={run_dir}", "--shard=1/2"]
        check_refused(door(*flags), "--shard (1/2) needs --output_dir")
        check_refused(door(*flags, "--fold=all", "--folds=3"), "--shard (1/2)", "--fold all")

    def test_damaged_part_is_one_message(self, merge, out):
        path = out / "scores-1-of-3.json"
        whole = json.loads(path.read_text())
        first, *_ = whole["images"]
        for change in (
            {"shard": "2/3"},
            {"format": 2},
            {"confusion": [[1, 2]]},
            {"confusion": [[1, -2], [3, 4]]},
            {"precision_recall": []},
            {"calibration": {}},
            {"objects": {"hits": [1]}},
            {"baseline": 5},
            {"images": [{**first, "name": "../x"}]},
            {"images": [{**first, "confidence": [[1.0]]}]},
            {"images": [{**first, "curves": {}}]},
            {"images": whole["images"] * 2},
        ):
            path.write_text(json.dumps(whole | change))
            check_refused(merge(), out / "scores-1-of-3.json")
        for path in out.glob("scores-*"):
            content = json.loads(path.read_text()) | {"settings": {"classes": "0:one"}}
            path.write_text(json.dumps(whole | content))
        check_refused(merge(), "scores-1-of-3.json", "at least two classes")
        assert not (out / "scores.json").exists()
