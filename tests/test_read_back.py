"""Every file that is read back is checked: it is read, or one message names it."""

import base64
import copy
import csv
import functools
import hashlib
import json
import os

import cv2
import keras
import numpy as np
import pytest
from helpers.tiny_loop import batches, make_loop, run

from unet_core import files, metrics, scores, training
from unet_core.data.annotations.convert import convert
from unet_core.data.classes import ClassMap
from unet_core.data.survey import Memory
from unet_core.errors import UserError
from unet_core.inference.trained import open_trained
from unet_core.outputs.objects.coco import merge_coco
from unet_core.reports import folds
from unet_core.reports.about import Part, RunNote, SampleOf, Session, read_about
from unet_core.reports.evaluation import Scored
from unet_core.reports.shares import Head, merge_scores, write_share
from unet_core.reports.totals import Totals
from unet_core.run_directory import RunDirectory
from unet_core.runs.masks import read_thresholds
from unet_core.settings import RunConfig
from unet_core.shards import Shard
from unet_core.training.checkpoints import folder_of
from unet_core.training.history import History

ABSENT = object()
# What a number, a text, a list or a dict may turn into; the two last are no JSON to be had of
# `json.dumps`.
OTHERS = (None, True, "text", -1, 2.5, 2**70, 10**400, [], [1], {}, {"a": 1}, "1e400", "NaN")


class Kind:
    """A kind of file that is read back.

    Args:
        make: Makes a sound one in a folder and returns its path.
        read: Reads the one in that folder.
    """

    def __init__(self, make, read):
        self.make, self.read = make, read


def make_config(folder):
    run_dir = RunDirectory(folder)
    with run_dir.locked():
        run_dir.store(RunConfig(), "abc")
    return folder / "config.json"


def make_written(folder):
    make_config(folder)
    return folder / "written.json"


def make_finished(folder):
    RunDirectory(folder).mark_finished(5)
    return folder / "finished"


def make_scores(folder):
    found = metrics.scores(np.array([[8, 2], [0, 10]]), ["a", "b"])
    curves = {"x": {name: [0.5] * 11 for name in ("v_rand", "v_info")}}
    chosen = {"v_rand": 0.5, "v_info": 0.5}
    for number in range(2):
        run_dir = folder / f"fold-{number}"
        (run_dir / "held_out").mkdir(parents=True)
        cv2.imwrite(str(run_dir / "held_out" / "x_errors.png"), np.zeros((9, 9, 3), np.uint8))
        RunDirectory(run_dir).write_scores(
            {
                "scores": found | scores.stack_scores(curves, {"x": chosen}),
                "confusion": [[8, 2], [0, 10]],
                "per_image": {"x": found},
                "segments": {"chosen": chosen, "per_image": curves},
            }
        )
    return folder / "fold-1" / "scores.json"


def read_scores(folder):
    # The table takes the numbers in whatever size; what is asked here is what is read.
    with np.errstate(all="ignore"):
        folds.write([folder / "fold-0", folder / "fold-1"], folder)


def make_memory(folder):
    path = folder / "known_masks.json"
    stored = {"format": 1, "classes": "0:a,1:b", "masks": {"m.png": [[7, 8], {"0": 3, "1": 4}]}}
    path.write_text(json.dumps(stored))
    return path


def make_export(folder):
    path = folder / "unet_core.json"
    path.write_text(json.dumps({"format": 1, "settings": {"seed": 5}, "step": 7}))
    return path


def make_annotation(folder):
    _, content = cv2.imencode(".png", np.zeros((20, 30), np.uint8))
    square = [[5, 5], [9.5, 5], [9, 9], [5, 9]]
    path = folder / "a.json"
    path.write_text(
        json.dumps(
            {
                "shapes": [
                    {"label": "b", "points": square, "shape_type": "polygon"},
                    {"label": "b", "points": [[5, 5], [9, 9]], "shape_type": "circle"},
                    {
                        **{"label": "b", "points": [[2, 3]], "shape_type": "mask"},
                        "mask": base64.b64encode(content.tobytes()).decode(),
                    },
                ],
                "imageData": base64.b64encode(content.tobytes()).decode(),
                **{"imagePath": "a.png", "imageHeight": 20, "imageWidth": 30},
            }
        )
    )
    return path


def make_checkpoint(folder):
    loop = make_loop()
    run(loop, batches, 1)
    checkpoints = training.Checkpoints(folder, loop, metadata={"a": [1, None]}, monitor="dice")
    return checkpoints.save(score=0.5) / "manifest.json"


@functools.cache
def some_model():
    return make_loop().model


def read_checkpoint(folder):
    training.load_weights(folder, some_model())


def make_thresholds(folder):
    chosen = {"class": "b", "score_by": "dice/b", "tta": "none", "steps": [5], "threshold": 0.4}
    path = folder / "threshold.json"
    files.write_json(path, {"format": 1, "thresholds": [{**chosen, "score": None, "images": 3}]})
    return path


def make_about(folder):
    part = Part(samples=[SampleOf(name="x", width=3, height=2, group="g")], class_pixels={"a": 6})
    words = {"a": "b"}
    session = Session(
        **{"command": "c", "began": "now", "versions": words, "hardware": words},
        **{"first_step": 0, "last_step": 2},
    )
    RunNote(folder / "about.json", session, training=part, held_out=part, network=words)
    return folder / "about.json"


def make_share(folder):
    classes = ClassMap.parse("a")
    total = Totals.of(classes, objects=True, segments=True)
    total.confusion += [[[3, 1], [0, 4]]]
    total.per_image["x"] = metrics.scores(total.confusion, classes.names)
    total.calibrated("x", [[0.5] * 15])
    total.curves["x"] = {name: [0.5] * 11 for name in ("v_rand", "v_info")}
    scored = Scored(total, {"v_rand": 0.5, "v_info": 0.5})
    head = Head({"weights": "a"}, RunConfig.of(classes="a", heads="sigmoid"), {"step": 5})
    return write_share(folder, Shard(1, 1), scored, head)


def read_share(folder):
    with np.errstate(all="ignore"):
        return merge_scores(folder)


def make_objects(folder):
    ring = [1, 1, 1, 3, 3, 3, 3, 1]
    image = {"id": 1, "file_name": "a.png", "page": 0, "width": 5, "height": 5}
    found = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [ring], "area": 4}
    found |= {"bbox": [1, 1, 2, 2], "iscrowd": 0, "object": 1}
    path = folder / "objects_coco-1-of-1.json"
    categories = [{"id": 1, "name": "b"}]
    content = {"images": [image], "annotations": [found], "categories": categories}
    path.write_text(json.dumps(content))
    return path


KINDS = {
    "about": Kind(make_about, lambda folder: read_about(folder / "about.json")),
    "config": Kind(make_config, lambda folder: RunDirectory(folder).read()),
    "written": Kind(make_written, lambda folder: RunDirectory(folder).claim(folder / "new")),
    "finished": Kind(make_finished, lambda folder: RunDirectory(folder).is_finished(5)),
    "scores": Kind(make_scores, read_scores),
    "share": Kind(make_share, read_share),
    "objects": Kind(make_objects, lambda f: merge_coco({f / "objects_coco-1-of-1.json": [0]})),
    "thresholds": Kind(make_thresholds, lambda f: read_thresholds(f / "threshold.json")),
    "known_masks": Kind(
        make_memory, lambda folder: Memory(folder / "known_masks.json", ClassMap.parse("0:a,1:b"))
    ),
    "export": Kind(make_export, lambda folder: open_trained(folder)),
    "annotation": Kind(make_annotation, lambda folder: convert(folder, folder / "voc", ["a", "b"])),
    "manifest": Kind(make_checkpoint, read_checkpoint),
}
JSON_KINDS = [name for name in KINDS if name != "finished"]


def places_in(value, place=()):
    """Gives the place of every part of a JSON value, itself included."""
    yield place
    items = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, list) else items
    # Of many parts alike, the first tell.
    for key, item in list(items)[:14]:
        yield from places_in(item, (*place, key))


def changed(document, place, other):
    """Returns `document` with `other` at `place`."""
    if not place:
        return other
    document = copy.deepcopy(document)
    *way, last = place
    parent = document
    for key in way:
        parent = parent[key]
    if other is ABSENT:
        del parent[last]
    else:
        parent[last] = other
    return document


def raw_versions(content):
    """Gives names and contents of files that are damaged as a text."""
    first_key = content[content.index(b'"') :].partition(b":")[0]
    yield "empty", b""
    yield "cut", content[: len(content) // 2]
    yield "binary", bytes(range(256)) * 8
    yield "zeros", bytes(100)
    yield "utf16", content.decode().encode("utf-16")
    yield "latin1", content.replace(b'"', b'"\xe9', 1)
    yield "lists_100000_deep", b"[" * 100_000
    yield "dicts_100000_deep", b'{"a":' * 100_000
    yield (
        "deep_inside",
        content.replace(b"{", b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b",", 1),
    )
    yield "key_twice", content.replace(b"{", b"{" + first_key + b": 1, ", 1)
    yield "number_of_5000_digits", content.replace(b"{", b'{"x": ' + b"9" * 5000 + b", ", 1)
    yield "number_beyond_64_bits", content.replace(b"{", b'{"x": 1e400, ', 1)
    yield "half_a_surrogate", content.replace(b"{", b'{"x": "\\ud800", ', 1)
    yield "two_documents", content + content
    yield "newer_format", content.replace(b'"format": ', b'"format": 9', 1)


@pytest.fixture(scope="module", autouse=True)
def _quick():
    # Building a network for every version that is read would take minutes.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unet_core.inference.trained.make_network", lambda *_: keras.Sequential())
        yield


def read_or_message(kind, folder, path):
    """Returns the message with which the file is refused, None if it is read."""
    message = message_of(lambda: kind.read(folder))
    # Of an export and a checkpoint, some errors name the folder.
    assert message is None or str(path) in message or str(path.parent) in message
    return message


def message_of(read):
    try:
        read()
    except UserError as error:
        return str(error)
    return None


class TestJson:
    @pytest.mark.parametrize("name", KINDS)
    def test_sound_file_is_read(self, tmp_path, name):
        path = KINDS[name].make(tmp_path)
        message = read_or_message(KINDS[name], tmp_path, path)
        # The export has settings alone.
        assert message is None or (name == "export" and "holds no model.keras" in message)

    @pytest.mark.parametrize("name", JSON_KINDS)
    def test_whatever_a_part_turns_into_is_read_or_named(self, tmp_path, name):
        kind = KINDS[name]
        path = kind.make(tmp_path)
        document = json.loads(path.read_text())
        refused = 0
        for place in places_in(document):
            for other in (ABSENT, *OTHERS) if place else OTHERS:
                text = json.dumps(changed(document, place, other))
                for word in ("1e400", "NaN"):
                    text = text.replace(f'"{word}"', word)
                path.write_text(text)
                refused += read_or_message(kind, tmp_path, path) is not None
        # At least the wrong types of the outermost part, of which there are 11.
        assert refused > 11

    @pytest.mark.parametrize("name", JSON_KINDS)
    def test_damaged_text_is_refused_by_name(self, tmp_path, name):
        kind = KINDS[name]
        path = kind.make(tmp_path)
        for version, content in raw_versions(path.read_bytes()):
            if version == "newer_format" and name in ("annotation", "objects"):
                continue
            path.write_bytes(content)
            message = read_or_message(kind, tmp_path, path)
            assert message is not None, version
            assert str(path) in message, version
            assert len(message) < 2000, version
            if version == "newer_format":
                assert "has format 9" in message
                assert "a newer version" in message

    @pytest.mark.parametrize("name", JSON_KINDS)
    def test_byte_order_mark_is_read_over(self, tmp_path, name):
        path = KINDS[name].make(tmp_path)
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        message = read_or_message(KINDS[name], tmp_path, path)
        assert message is None or "holds no model.keras" in message

    @pytest.mark.parametrize("name", KINDS)
    @pytest.mark.parametrize(
        ("make", "reason"),
        [
            (os.mkdir, "Is a directory"),
            (os.mkfifo, "is not a regular file"),
            (lambda path: os.symlink("/dev/zero", path), "is not a regular file"),
            (lambda path: os.symlink(path, path), "Too many levels of symbolic links"),
        ],
        ids=["folder", "pipe", "device", "circle"],
    )
    def test_what_is_no_file_is_refused_by_name(self, tmp_path, name, make, reason):
        path = KINDS[name].make(tmp_path)
        path.unlink()
        make(path)
        message = read_or_message(KINDS[name], tmp_path, path)
        if name == "export" and message and "holds no run" in message:
            return  # Not an export's settings, so it is looked for a run.
        assert reason in message
        assert str(path) in message

    @pytest.mark.parametrize("name", JSON_KINDS)
    def test_link_to_a_file_is_read(self, tmp_path, name):
        path = KINDS[name].make(tmp_path)
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
        message = read_or_message(KINDS[name], tmp_path, path)
        assert message is None or "holds no model.keras" in message

    def test_larger_than_any_is_refused_by_name(self, tmp_path, monkeypatch):
        path = make_config(tmp_path)
        with path.open("ab") as file:
            file.truncate(files.MOST_BYTES + 1)
        with pytest.raises(UserError, match=r"config\.json.*has more than 67108864 bytes"):
            RunDirectory(tmp_path).read()

    def test_place_and_value_are_in_the_message(self, tmp_path):
        path = make_checkpoint(tmp_path)
        document = json.loads(path.read_text())
        document["parts"]["model"]["variables"][0][1] = [3, "one"]
        path.write_text(json.dumps(document))
        with pytest.raises(UserError) as error:
            read_checkpoint(tmp_path)
        where = "$.parts.model.variables[0][1][1]: expected `int`, got `str`, here 'one'"
        assert where in str(error.value)

    def test_place_of_a_number_beyond_64_bits_is_in_the_message(self, tmp_path):
        path = make_memory(tmp_path)
        path.write_text(path.read_text().replace("[7, 8]", f"[7, {2**64}]"))
        with pytest.raises(UserError, match=r"\$\.masks\.m\.png\[0\]\[1\]: the number 1844674"):
            Memory(path, ClassMap.parse("0:a,1:b"))

    def test_largest_number_is_read(self, tmp_path):
        path = make_memory(tmp_path)
        path.write_text(path.read_text().replace("[7, 8]", f"[7, {2**64 - 1}]"))
        memory = Memory(path, ClassMap.parse("0:a,1:b"))
        memory.store()
        assert json.loads(path.read_text())["masks"]["m.png"][0] == [7, 2**64 - 1]


class TestFinished:
    @pytest.mark.parametrize(
        "content", [b"", b"x", b"-5\n", b"5", b"5\n5\n", b"\xff\n", b"9" * 10_000 + b"\n", b"\0"]
    )
    def test_other_content_is_refused_by_name(self, tmp_path, content):
        path = make_finished(tmp_path)
        path.write_bytes(content)
        with pytest.raises(UserError, match="finished: cannot be read as the mark"):
            RunDirectory(tmp_path).is_finished(5)


def agreeing(folder, name, content):
    """Changes a file of a checkpoint, and its manifest so that it agrees."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    digest = hashlib.sha256(content).hexdigest()
    manifest["files"][name] = {"bytes": len(content), "sha256": digest}
    (folder / "manifest.json").write_text(json.dumps(manifest))


class TestCheckpointFiles:
    @pytest.mark.parametrize("name", ["state.index", "state.data-00000-of-00001"])
    def test_files_that_do_not_fit_a_manifest_made_to_agree_are_read_or_named(self, tmp_path, name):
        folder = make_checkpoint(tmp_path).parent
        sound = (folder / name).read_bytes()
        rng = np.random.default_rng(0)
        versions = [b"", b"\0" * len(sound), sound[:-1], sound[: len(sound) // 2], sound + b"x"]
        versions += [rng.bytes(len(sound)), sound[::-1]]
        for at in rng.integers(0, len(sound), 40):
            flipped = bytearray(sound)
            flipped[at] ^= 1 << rng.integers(8)
            versions.append(bytes(flipped))
        refused = 0
        for content in versions:
            agreeing(folder, name, content)
            for read in (
                lambda: training.load_weights(tmp_path, make_loop().model),
                lambda: training.Checkpoints(tmp_path, make_loop()).restore(),
            ):
                message = message_of(read)
                refused += message is not None
                assert message is None or str(folder) in message
        assert refused > 20

    def test_index_of_another_network_is_refused_by_name(self, tmp_path):
        folder = make_checkpoint(tmp_path / "a").parent
        model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(2)])
        loop = training.Loop(model, keras.optimizers.SGD(0.1), loss=lambda y, _: y[:, 0])
        other = training.Checkpoints(tmp_path / "b", loop).save()
        for name in ("state.index", "state.data-00000-of-00001"):
            agreeing(folder, name, (other / name).read_bytes())
        for read in (
            lambda: training.load_weights(tmp_path / "a", make_loop().model),
            lambda: training.Checkpoints(tmp_path / "a", make_loop()).restore(),
        ):
            with pytest.raises(UserError, match="step-00000001: the checkpoint"):
                read()

    @pytest.mark.parametrize("listed", [[], ["state.index"], ["state.data-00000-of-00001"]])
    def test_manifest_that_does_not_list_its_files_is_refused(self, tmp_path, listed):
        path = make_checkpoint(tmp_path)
        manifest = json.loads(path.read_text())
        manifest["files"] = {name: manifest["files"][name] for name in listed}
        path.write_text(json.dumps(manifest))
        with pytest.raises(UserError, match=r"damaged \(its manifest lists"):
            read_checkpoint(tmp_path)

    def test_manifest_of_another_step_is_refused(self, tmp_path):
        folder = make_checkpoint(tmp_path).parent
        folder.rename(folder_of(tmp_path, 3))
        with pytest.raises(UserError, match=r"damaged \(its manifest is that of step 1"):
            read_checkpoint(tmp_path)


class TestHistory:
    COLUMNS = ("step", "loss")
    SOUND = "step,loss\n1,0.5\n2,0.25\n"

    @pytest.mark.parametrize(
        ("content", "line"),
        [
            ("loss,step\n", 1),
            ("step,loss,loss\n", 1),
            ("\n", 1),
            ("my notes\nof today\n", 1),
            (SOUND + "x,1\n3,1\n", 4),
            (SOUND + "3\n4,1\n", 4),
            (SOUND + "3,1,2\n", 4),
            (SOUND + "3,about 1\n", 4),
            (SOUND + "-3,1\n", 4),
            (SOUND + "3.5,1\n", 4),
            (SOUND + "\u0663,1\n", 4),
            (SOUND + "9" * 30 + ",1\n", 4),
            (SOUND + "\n3,1\n", 4),
            (SOUND + '3,"1\n4,1\n', 5),
            (SOUND + "\0\n", 4),
        ],
    )
    def test_foreign_row_is_named_by_its_line_and_nothing_is_lost(self, tmp_path, content, line):
        path = tmp_path / "history.csv"
        path.write_text(content, newline="")
        with pytest.raises(UserError) as error:
            History(path, self.COLUMNS, resumed_at=2)
        assert str(error.value).startswith(f"{path}, line {line}: ")
        assert path.read_bytes() == content.encode()

    def test_other_encoding_is_named_by_its_line_and_nothing_is_lost(self, tmp_path):
        path = tmp_path / "history.csv"
        content = self.SOUND.encode() + b"3,\xe9\n"
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"history\.csv, line 4: holds bytes that are no UTF-8"):
            History(path, self.COLUMNS, resumed_at=2)
        assert path.read_bytes() == content

    @pytest.mark.parametrize(
        "make",
        [os.mkdir, os.mkfifo, lambda path: os.symlink("/dev/zero", path)],
        ids=["folder", "pipe", "device"],
    )
    def test_what_is_no_file_is_refused_by_name(self, tmp_path, make):
        make(tmp_path / "history.csv")
        with pytest.raises(UserError, match=r"history\.csv: the history of the run cannot be read"):
            History(tmp_path / "history.csv", self.COLUMNS)

    def test_numbers_that_are_none_are_read(self, tmp_path):
        path = tmp_path / "history.csv"
        path.write_text("step,loss\n1,nan\n2,inf\n3,\n")
        History(path, self.COLUMNS, resumed_at=3)
        with path.open(newline="") as file:
            assert list(csv.reader(file))[1:] == [["1", "nan"], ["2", "inf"], ["3", ""]]


class TestEventFile:
    def test_records_damaged_anywhere_are_cut_or_named(self, tmp_path):
        with training.SummaryWriter(tmp_path / "sound") as writer:
            writer.scalars(1, {"loss": 1.0})
        (path,) = (tmp_path / "sound").iterdir()
        sound = path.read_bytes()
        rng = np.random.default_rng(0)
        for number, at in enumerate(rng.integers(0, len(sound), 30)):
            flipped = bytearray(sound)
            flipped[at] ^= 1 << rng.integers(8)
            folder = tmp_path / str(number)
            folder.mkdir()
            (folder / path.name).write_bytes(flipped)
            message = message_of(lambda at=folder: training.SummaryWriter(at, resumed_at=1))
            assert message is None or str(folder / path.name) in message


def test_places_name_every_part():
    assert list(places_in({"a": [1, {"b": 2}]})) == [
        *((), ("a",), ("a", 0), ("a", 1)),
        ("a", 1, "b"),
    ]
    assert changed({"a": [1, {"b": 2}]}, ("a", 1, "b"), ABSENT) == {"a": [1, {}]}
