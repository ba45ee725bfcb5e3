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
from unet_core.inference.masks import MaskRule, usual_rule
from unet_core.inference.natively import predict_sample
from unet_core.inference.post_processing import KINDS, Step
from unet_core.inference.trained import open_trained
from unet_core.reports import choice
from unet_core.reports.choice import Result, Row, Tally, Together
from unet_core.reports.thresholds import ThresholdCounts, score_by
from unet_core.run_directory import RunDirectory
from unet_core.runs.dataset import DataSet
from unet_core.runs.finished_run import open_runs, required
from unet_core.runs.masks import counts_of, foreground, held_out_of, open_data_of, threshold_of
from unet_core.runs.process import StopRequest
from unet_core.runs.progress import progress_bar
from unet_core.runs.score import make_predictor
from unet_core.settings import RunConfig
from unet_core.settings.prediction import WEIGHTS, parse_threshold, parse_weights
from unet_core.training import checkpoint_files

_NOTES = """\
Each image is predicted by the one network that has not been trained on it, and a threshold is
scored on other folds than those it is chosen on. The best weights were chosen by these very images,
so their score flatters them: they are chosen only if they are better by more than the spread.
Weights without the moving average, thresholds and post-processing are chosen only if they raise the
score, and in more folds than they lower it."""

_NOT_TOGETHER = """\
All networks together cannot be scored on these images, as all but one were trained on each. The
scores above are what one network alone does on new images; the mean of all is usually better, but
by how much only images with masks tell that no network was trained on: mark them as the part test,
or give them to --mode=evaluate as another --data_dir."""


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
    comparison = _Comparison(config, run, trained[0].classes, stop)
    del trained
    rows, chosen = comparison.compare()
    together = comparison.score_together(chosen)
    run.claim(*(run.path / name for name in choice.FILES))
    command = _command(config, run, chosen, comparison.classes)
    text = choice.write(
        rows,
        chosen,
        run.path,
        classes=comparison.classes,
        score_by=comparison.score_by,
        images=comparison.images,
        use=_use(config, chosen, comparison.classes, comparison.steps(chosen.weights)),
        command=command,
        together=together,
    )
    print(f"\n{comparison.images} images of {len(folders)} folds, out of fold\n{text}\n\n{_NOTES}")
    print(f"\n{_told_together(together, comparison.score_by)}")
    print(
        f"\nchoice.csv and choice.json are in {run.path}; --mode=predict, evaluate and export of "
        "this folder\ngo by them where nothing else is given. To predict so with all networks, or "
        f"with one\n(--run_dir={folders[0]}):\n\n    {command}\n"
    )


class _Scored(NamedTuple):
    """Out-of-fold predictions by one kind of weights: the usual masks, and all thresholds.

    Attributes:
        weights: One of `WEIGHTS`.
        result: The score of the usual masks.
        counts: For each fold, its pixels by the probability of each class that may have a
            threshold.
    """

    weights: str
    result: Result
    counts: list[list[ThresholdCounts]]


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
        of_two = len(classes) == 2 and not classes.overlapping
        # The classes that may have a threshold.
        self._class_ids = [foreground(config.training.monitor, classes)] if of_two else []
        if classes.overlapping:
            self._class_ids = list(range(len(classes)))
        name = config.prediction.object_class
        has_segments = name and of_two and classes.border_px is None
        scored = config.prediction.segment_scores and scores.can_score_segments()
        self._segments = classes.index(name) if has_segments and scored else None
        # By weights and class: the threshold of each fold, chosen on the others, and that of all.
        self._thresholds: dict[tuple[str, int], tuple[list[float], float]] = {}

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

    def steps(self, weights: str) -> list[int]:
        """Returns the step of the checkpoint of each fold."""
        best, _ = parse_weights(weights)
        found = (RunDirectory(folder).checkpoints for folder in self._folders)
        return [checkpoint_files.find(each, step=None, best=best)[1].step for each in found]

    def score_together(self, chosen: Row) -> Together | None:
        """Returns the scores of each network and of all on the part test; None without masks."""
        samples = [sample for sample in self._data.samples if sample.split == "test"]
        if not samples:
            return None
        networks = [self._trained(folder, chosen.weights) for folder in self._folders]
        windows = [make_predictor(self._config, each).window for each in networks]
        values = {number: total for number, _, total in self._of_row(chosen)}
        rule = MaskRule(threshold_of(values, self.classes), chosen.steps)
        alone, together = self._tally(), self._tally()
        for sample in progress_bar("Test images, all networks")(samples):
            self._check_stop()
            each = [predict_sample(window, sample, self._data.read) for window in windows]
            for fold, (pair, probabilities) in enumerate(each):
                alone.add(fold, rule(probabilities), pair)
            together.add(0, rule(np.mean([found for _, found in each], 0)), pair)
        monitor = self._config.training.monitor
        scored = alone.result(monitor).by_fold
        return Together(len(samples), scored, together.result(monitor).score)

    def _compare_weights(self) -> tuple[list[Row], Row]:
        """Compares the checkpoints, each with and without thresholds."""
        rows: list[Row] = []
        best: Row | None = None
        for scored in self._score_weights():
            found = [Row(scored.weights, "", (), scored.result)]
            found += self._with_thresholds(scored)
            rows += found
            own = found[0]
            for row in found[1:]:
                if row.result.is_better_than(found[0].result) and (
                    row.result.score > own.result.score
                ):
                    own = row
            if best is None or choice.is_better_weights(own.weights, own.result, best.result):
                best = own
        assert best is not None  # There is a last checkpoint.
        return rows, best

    def _score_weights(self) -> Iterator[_Scored]:
        """Gives the scores of each kind of weights that is not the same as one before."""
        configs = [RunDirectory(folder).read()[0] for folder in self._folders]
        has_averages = any(config.optimization.ema_decay for config in configs)
        seen: set[tuple[bool, tuple[int, ...]]] = set()
        # Those that were not chosen by these images come first.
        for weights in sorted(WEIGHTS, key=lambda each: parse_weights(each)[0]):
            averaged = parse_weights(weights)[1]
            if not averaged and not has_averages:
                continue
            of_steps = averaged, tuple(self.steps(weights))
            if of_steps in seen:
                print(f"The {weights} weights are the same as those above in every fold.")
                continue
            seen.add(of_steps)
            yield self._scored(weights)

    def _scored(self, weights: str) -> _Scored:
        folds, monitor = len(self._folders), self._config.training.monitor
        tally, self.images = self._tally(), 0
        usual = usual_rule(self.classes)
        counts = [counts_of(self._class_ids, self.classes) for _ in range(folds)]
        curves: list[dict[str, Any]] = [{} for _ in range(folds)]
        for fold, pair, probabilities in self._predictions(weights):
            self.images += 1
            tally.add(fold, usual(probabilities), pair)
            for each in counts[fold]:
                each.add(probabilities, pair.mask)
            if self._segments is not None:
                v_rand, v_info = scores.segment_curve(
                    probabilities[..., self._segments], pair.mask == self._segments
                )
                curves[fold][pair.name] = {"v_rand": v_rand.tolist(), "v_info": v_info.tolist()}
        fitted = choice.fitted_v_rand(curves) if self._segments is not None else float("nan")
        return _Scored(weights, tally.result(monitor, fitted), counts)

    def _with_thresholds(self, scored: _Scored) -> list[Row]:
        """Returns a row for the threshold of each class, and one for those that help together."""
        monitor, names = self._config.training.monitor, self.classes.names
        for place, number in enumerate(self._class_ids):
            of_class = [counts[place] for counts in scored.counts]
            fitted = choice.fitted_thresholds(of_class, monitor, names)
            total = sum(of_class[1:], start=of_class[0]).best(monitor, names)
            self._thresholds[scored.weights, number] = [each.value for each in fitted], total.value
        found = [self._threshold_row(scored, [number]) for number in self._class_ids]
        helpful = [
            number
            for number, row in zip(self._class_ids, found, strict=True)
            if row.result.is_better_than(scored.result)
        ]
        return [*found, self._threshold_row(scored, helpful)] if len(helpful) > 1 else found

    def _threshold_row(self, scored: _Scored, class_ids: Sequence[int]) -> Row:
        monitor, names = self._config.training.monitor, self.classes.names
        of_each = {number: self._thresholds[scored.weights, number] for number in class_ids}
        confusion = []
        for fold, counts in enumerate(scored.counts):
            values = {number: fitted[fold] for number, (fitted, _) in of_each.items()}
            matrices = [each.confusion(values.get(each.class_id, 0.5)) for each in counts]
            confusion.append(np.stack(matrices) if self.classes.overlapping else matrices[0])
        text = ",".join(f"{names[number]}:{total:g}" for number, (_, total) in of_each.items())
        return Row(scored.weights, text, (), choice.result_of(np.stack(confusion), monitor, names))

    def _of_row(self, row: Row) -> list[tuple[int, list[float], float]]:
        """Returns the classes that have thresholds, those of the folds, and that of all."""
        named = parse_threshold(row.threshold) if row.threshold else {}
        numbers = map(self.classes.index, named)
        return [(number, *self._thresholds[row.weights, number]) for number in numbers]

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
        monitor, of_row = self._config.training.monitor, self._of_row(best)
        thresholds = [
            threshold_of({number: fitted[fold] for number, fitted, _ in of_row}, self.classes)
            for fold in range(len(self._folders))
        ]
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

    def _check_stop(self) -> None:
        if self._stop():
            # Nothing is written yet.
            raise KeyboardInterrupt

    def _predictions(self, weights: str) -> Iterator[tuple[int, Pair, np.ndarray]]:
        """Gives fold, image with truth and probabilities, one network and image at a time."""
        for fold, folder in enumerate(self._folders):
            trained = self._trained(folder, weights)
            window = make_predictor(self._config, trained).window
            title = f"Fold {fold}, {weights} weights"
            for sample in progress_bar(title)(held_out_of(self._data, trained)):
                self._check_stop()
                yield fold, *predict_sample(window, sample, self._data.read)


def _use(config: RunConfig, chosen: Row, classes: ClassMap, steps: Sequence[int]) -> dict[str, Any]:
    """Returns what other modes take over, as `chosen.Chosen` reads it."""
    flags = choice.flags_of(chosen.steps, classes)
    return {
        "weights": chosen.weights,
        "tta": config.prediction.tta,
        "threshold": chosen.threshold or "0.5",
        "steps": list(steps),
        **{name: text.split(",") for name, text in flags.items()},
    }


def _told_together(together: Together | None, by: str) -> str:
    """Returns what is known of all networks together, in words."""
    if together is None:
        return _NOT_TOGETHER
    alone = np.array(together.alone)
    return (
        f"{together.images} test image(s) that no network was trained on, in the chosen way, have "
        f"{by}:\none network alone {np.mean(alone):.4f} on average ({alone.min():.4f} to "
        f"{alone.max():.4f}), the mean of all {len(alone)} networks {together.all:.4f}.\nNothing "
        "was chosen by these, so they are what to expect of new images like them."
    )


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
