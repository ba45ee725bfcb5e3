"""`--mode=choose`: which weights, threshold and post-processing are best, scored out of fold."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from unet_core import scores
from unet_core.data.classes import ClassMap
from unet_core.data.reader import Pair
from unet_core.errors import UserError
from unet_core.inference.ensemble import fold_folders
from unet_core.inference.masks import MOST_PROBABLE, MaskRule, Threshold
from unet_core.inference.natively import predict_sample
from unet_core.inference.post_processing import KINDS, Step
from unet_core.inference.trained import open_trained
from unet_core.reports import choice
from unet_core.reports.choice import Result, Row, Tally
from unet_core.reports.thresholds import ThresholdCounts, score_by
from unet_core.run_directory import RunDirectory
from unet_core.runs.dataset import DataSet
from unet_core.runs.finished_run import open_runs, required
from unet_core.runs.masks import foreground, held_out_of, open_data_of
from unet_core.runs.process import StopRequest
from unet_core.runs.progress import progress_bar
from unet_core.runs.score import make_predictor
from unet_core.settings import FIELDS, RunConfig

_NOTES = """\
Each image is predicted by the one network that has not been trained on it, and a threshold is
scored on other folds than those it is chosen on. The mean of all networks cannot be scored on these
images, as all but one were trained on each; new images are predicted with it. The weights `best`
were chosen by these very images, so their score flatters them: they are chosen only if they are
better by more than the spread. Post-processing is chosen only if it raises the score, and in more
folds than it lowers it."""


def choose(config: RunConfig, stop: StopRequest) -> None:
    """Compares, out of fold, the ways to make masks with the networks of a folder of folds."""
    run = RunDirectory(required(config, "run_dir"))
    folders = fold_folders(run.path)
    if len(folders) < 2:
        raise UserError(
            f"{run.path}: holds no folds to choose by. Train with `folds` and `fold` all, and give "
            "that `run_dir`."
        )
    config, run, trained = open_runs(config, stop)
    if trained[0].classes.overlapping:
        raise UserError(
            f"{run.path}: `mode` choose compares masks of classes that exclude one another, and "
            "those of `heads` sigmoid may overlap. Compare thresholds by `mode` evaluate."
        )
    comparison = _Comparison(config, run, trained[0].classes, stop)
    del trained
    rows, chosen = comparison.compare()
    run.claim(*(run.path / name for name in choice.FILES))
    command = _command(config, run, chosen, comparison.classes)
    text = choice.write(
        rows,
        chosen,
        run.path,
        classes=comparison.classes,
        score_by=comparison.score_by,
        images=comparison.images,
        command=command,
    )
    print(f"\n{comparison.images} images of {len(folders)} folds, out of fold\n{text}\n\n{_NOTES}")
    print(f"\nchoice.csv and choice.json are in {run.path}. To predict so:\n\n    {command}\n")


class _Scored(NamedTuple):
    """Out-of-fold predictions by one kind of weights: most probable classes, and all thresholds."""

    weights: str
    result: Result
    counts: list[ThresholdCounts]


class _Comparison:
    """Predictions of all folds, image by image, and what is counted of them."""

    def __init__(self, config: RunConfig, run: RunDirectory, classes: ClassMap, stop: StopRequest):
        self.classes = classes
        self.score_by = score_by(config.training.monitor, classes.names)
        self.images = 0
        self._config = config
        self._stop = stop
        self._folders = fold_folders(run.path)
        self._data: DataSet = open_data_of(config, [RunDirectory(each) for each in self._folders])
        self._class_id = foreground(config.training.monitor, classes)
        name = config.prediction.object_class
        of_two = len(classes) == 2 and classes.border_px is None
        scored = name and of_two and scores.can_score_segments()
        self._segments = classes.index(name) if scored else None

    def compare(self) -> tuple[list[Row], Row]:
        """Returns all ways that were compared, and the one to choose."""
        rows, best = self._compare_weights()
        found = self._compare_steps(best)
        rows += [row for row in found if row.steps]
        # Now its objects are known too.
        place = rows.index(best)
        rows[place] = found[0]
        chosen = max(
            (row for row in found if not row.steps or row.result.is_better_than(found[0].result)),
            key=lambda row: (row.result.score, -len(row.steps)),
        )
        return rows, chosen

    def _compare_weights(self) -> tuple[list[Row], Row]:
        """Compares the checkpoints, each with and without a threshold."""
        rows: list[Row] = []
        best: Row | None = None
        self._counts: dict[str, list[ThresholdCounts]] = {}
        for scored in self._score_weights():
            self._counts[scored.weights] = scored.counts
            found = [Row(scored.weights, "", (), scored.result)]
            if scored.counts:
                found.append(self._with_threshold(scored))
            rows += found
            own = found[-1] if found[-1].result.is_better_than(found[0].result) else found[0]
            if best is None or (
                choice.beats_although_chosen_here(own.result, best.result)
                if own.weights == "best"
                else own.result.is_better_than(best.result)
            ):
                best = own
        assert best is not None  # There is a last checkpoint.
        return rows, best

    def _score_weights(self) -> Iterator[_Scored]:
        """Gives the scores of each kind of weights that is not the same as one before."""
        seen: set[tuple[int, ...]] = set()
        for weights in FIELDS["weights"].metadata["choices"]:
            steps = tuple(self._trained(folder, weights).step for folder in self._folders)
            if steps in seen:
                print(f"The {weights} weights are the same as those above in every fold.")
                continue
            seen.add(steps)
            yield self._scored(weights)

    def _scored(self, weights: str) -> _Scored:
        folds, monitor = len(self._folders), self._config.training.monitor
        tally, self.images = self._tally(), 0
        counts = [ThresholdCounts(self._class_id) for _ in range(folds)]
        curves: list[dict[str, Any]] = [{} for _ in range(folds)]
        for fold, pair, probabilities in self._predictions(weights):
            self.images += 1
            tally.add(fold, MOST_PROBABLE(probabilities), pair)
            if len(self.classes) == 2:
                counts[fold].add(probabilities, pair.mask)
            if self._segments is not None:
                v_rand, v_info = scores.segment_curve(
                    probabilities[..., self._segments], pair.mask == self._segments
                )
                curves[fold][pair.name] = {"v_rand": v_rand.tolist(), "v_info": v_info.tolist()}
        fitted = choice.fitted_v_rand(curves) if self._segments is not None else float("nan")
        result = tally.result(monitor, fitted)
        return _Scored(weights, result, counts if len(self.classes) == 2 else [])

    def _with_threshold(self, scored: _Scored) -> Row:
        monitor, names = self._config.training.monitor, self.classes.names
        fitted = choice.fitted_thresholds(scored.counts, monitor, names)
        pairs = zip(scored.counts, fitted, strict=True)
        confusion = np.stack([counts.confusion(found.value) for counts, found in pairs])
        total = sum(scored.counts[1:], start=scored.counts[0]).best(monitor, names)
        text = f"{names[self._class_id]}:{total.value:g}"
        return Row(scored.weights, text, (), choice.result_of(confusion, monitor, names))

    def _compare_steps(self, best: Row) -> list[Row]:
        """Compares `best` with each step of post-processing, and those that help together."""
        has_scipy = importlib.util.find_spec("scipy") is not None
        if not has_scipy:
            print("Filling holes needs scipy: pip install 'unet_core[scores]'. It is left out.")
        steps = choice.candidates(self.classes, fills_holes=has_scipy)
        plain, *tried = self._score_steps(best, [(), *((step,) for step in steps)])
        found = choice.helpful(
            {step: row.result for step, row in zip(steps, tried, strict=True)}, plain.result
        )
        together = self._score_steps(best, choice.combinations(found)) if len(found) > 1 else []
        return [plain, *tried, *together]

    def _score_steps(self, best: Row, ways: Sequence[tuple[Step, ...]]) -> list[Row]:
        monitor = self._config.training.monitor
        thresholds: list[Threshold | None] = [None] * len(self._folders)
        if best.threshold:
            fitted = choice.fitted_thresholds(
                self._counts[best.weights], monitor, self.classes.names
            )
            thresholds = [Threshold(self._class_id, each.value) for each in fitted]
        tallies = [self._tally() for _ in ways]
        for fold, pair, probabilities in self._predictions(best.weights):
            for steps, tally in zip(ways, tallies, strict=True):
                make_mask = MaskRule(thresholds[fold], steps)
                tally.add(fold, make_mask(probabilities), pair)
        return [
            Row(
                best.weights,
                best.threshold,
                steps,
                tally.result(monitor, float("nan") if steps else best.result.v_rand),
            )
            for steps, tally in zip(ways, tallies, strict=True)
        ]

    def _tally(self) -> Tally:
        settings = self._config.prediction
        return Tally(
            self.classes,
            len(self._folders),
            settings.object_class,
            instances=settings.instances,
            least_object_px=settings.least_object_px,
        )

    def _trained(self, folder, weights: str):
        return open_trained(folder, weights=weights, network=self._config.network.network)

    def _predictions(self, weights: str) -> Iterator[tuple[int, Pair, np.ndarray]]:
        """Gives fold, image with truth and probabilities, one network and image at a time."""
        for fold, folder in enumerate(self._folders):
            trained = self._trained(folder, weights)
            window = make_predictor(self._config, trained).window
            title = f"Fold {fold}, {weights} weights"
            for sample in progress_bar(title)(held_out_of(self._data, trained)):
                if self._stop():
                    # Nothing is written yet.
                    raise KeyboardInterrupt
                yield fold, *predict_sample(window, sample, self._data.read)


def _command(config: RunConfig, run: RunDirectory, chosen: Row, classes: ClassMap) -> str:
    """Returns the command that predicts new images in the chosen way."""
    flags = {
        "mode": "predict",
        "run_dir": str(run.path),
        "input": "FOLDER",
        "output_dir": "MASKS",
        "weights": chosen.weights,
        "tta": config.prediction.tta,
        "threshold": chosen.threshold or "0.5",
        **choice.flags_of(chosen.steps, classes),
    }
    # What the runs were trained with would be taken from them if it were not named.
    flags |= {name: "" for name in KINDS if name not in flags and config[name]}
    for name in ("network", "precision", "window_px"):
        if name in config.given - config.from_file:
            flags[name] = str(config[name])
    return shlex.join(
        ["python", "train_loop.py", *(f"--{name}={value}" for name, value in flags.items())]
    )
