"""HTML pages, read as a browser would, and a run folder that holds all that a report shows."""

import html.parser
import json

import cv2
import numpy as np

from unet_core.data.classes import ClassMap
from unet_core.data.reader import Pair
from unet_core.drawing import pictures
from unet_core.reports.about import Part, RunNote, SampleOf, Session
from unet_core.reports.evaluation import Evaluation
from unet_core.run_directory import RunDirectory
from unet_core.settings import RunConfig
from unet_core.training import SummaryWriter
from unet_core.training.history import History

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(html.parser.HTMLParser):
    """A page: its tags with their attributes, its text, and its tables by id.

    A cell is its text, or the exact values of the `<data>` in it.
    """

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.tables, self.open = [], [], {}, []
        self._table = None
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            name = dict(attributes).get("id", f"table {len(self.tables)}")
            self._table = self.tables.setdefault(name, [])
        elif tag == "tr":
            self._table.append([])
        elif tag in ("td", "th") and self._table is not None:
            self._table[-1].append([])
        elif tag == "data" and self._table:
            self._table[-1][-1].append(float(dict(attributes)["value"]))

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "table":
            self._table = None

    def handle_data(self, data):
        self.text.append(data)
        if self._table and self._table[-1] and "data" not in self.open and data.strip():
            self._table[-1][-1].append(data.strip())

    def rows(self, name, *, heads=1):
        """The rows of a table below its heads: {first cell: the others}."""
        return {" ".join(map(str, row[0])): row[1:] for row in self.tables[name][heads:]}


def numbers(cells):
    """The numbers of cells that have one."""
    return [cell[0] for cell in cells if cell and isinstance(cell[0], float)]


def make_run(folder, *, classes=("sky", "road", "tree"), images=("a", "b", "c", "d"), **settings):
    """Makes a run folder as training and evaluation leave it, with random predictions."""
    run = RunDirectory(folder)
    listed = ",".join(f"{number}:{name}" for number, name in enumerate(classes))
    config = RunConfig.of(classes=listed, folds=2, train_steps=40, **settings)
    names = ClassMap.parse(listed)
    with run.locked():
        run.store(config, "abc")
    random = np.random.default_rng(0)
    scores = [f"dice/{name}" for name in classes]
    held_out = ["loss", *scores, *(f"iou/{name}" for name in classes), "dice/mean", "accuracy"]
    columns = ["train/loss", "train/rate", "train/gradient_norm", *(f"train/{s}" for s in scores)]
    columns += [f"held_out/{name}" for name in held_out]
    history = History(run.history, ["step", *columns, "note"])
    with SummaryWriter(run.events) as events:
        for step in (10, 20, 30, 40):
            evaluated = step % 20 == 0
            shown = [name for name in columns if evaluated or name.startswith("train/")]
            row = {name: float(random.uniform()) for name in shown}
            history.append({"step": step, **row, **({"note": "lower"} if step == 40 else {})})
            speeds = {"speed/examples_per_sec": step / 8, "speed/data_wait_share": 1 / step}
            events.scalars(step, row | speeds)
    evaluation = Evaluation(names)
    run.claim(*(run.path / "held_out" / f"{name}_errors.png" for name in images))
    (run.path / "held_out").mkdir()
    for number, name in enumerate(images):
        mask = random.integers(0, len(classes), (12, 16)).astype(np.uint8)
        wrong = random.integers(0, len(classes), (12, 16))
        right = random.uniform(size=(12, 16)) < 0.3 + number / 10
        likely = np.eye(len(classes))[np.where(right, mask, wrong)]
        noise = random.dirichlet(np.ones(len(classes)), (12, 16))
        probabilities = (0.6 * likely + 0.4 * noise).astype(np.float32)
        image = random.integers(0, 255, (12, 16, 3)).astype(np.uint8)
        evaluation.add(Pair(name, image, mask), probabilities)
        ids = probabilities.argmax(-1).astype(np.uint8)
        picture = pictures.comparison(image, mask, ids, names)
        cv2.imwrite(str(run.path / "held_out" / f"{name}_errors.png"), picture)
    how = {"step": 40, "weights": "last", "tta": "none"}
    run.write_scores({**how, **evaluation.result()})
    session = Session(
        command="python train_loop.py --folds=2",
        began="2026-01-31 12:00:00",
        first_step=0,
        last_step=0,
        versions={"Python": "3.11.0"},
        hardware={"Processor": "abacus"},
    )
    pixels = dict(zip(classes, range(100, 100 + len(classes)), strict=True))
    training = Part(samples=[SampleOf(name="x", width=16, height=12)], class_pixels=pixels)
    held = Part(samples=[SampleOf(name=name, width=16, height=12) for name in images])
    run.claim(run.about)
    clock = iter((0.0, 0.0, 3725.0)).__next__
    note = RunNote(
        run.about,
        session,
        training=training,
        held_out=held,
        network={"Parameters": "12"},
        clock=clock,
    )
    run.mark_finished(40)
    note.update(40, ended="finished")
    return run


def stored(run, name="scores.json"):
    """What a JSON file of a run holds."""
    return json.loads((run.path / name).read_text())
