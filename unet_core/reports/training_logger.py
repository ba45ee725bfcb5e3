"""The log of a training run: progress bar, history.csv, metrics.jsonl, TensorBoard, a tracker.

with TrainingLogger(run, classes, settings, held_out=True, resumed_at=0) as logger:
    logger.write(report, scores)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorboard.plugins.hparams import api as hparams

from unet_core import console, metrics
from unet_core.data.classes import ClassMap
from unet_core.data.reader import Reader
from unet_core.data.samples import Sample
from unet_core.drawing import pictures
from unet_core.drawing.network import draw_network
from unet_core.files import write_whole
from unet_core.inference.masks import usual_rule
from unet_core.inference.sliding_window import SlidingWindow
from unet_core.run_directory import RunDirectory
from unet_core.settings import RunConfig
from unet_core.settings.training import TrainingSettings
from unet_core.training import Report, SummaryWriter
from unet_core.training.history import NOTE, History, JsonLines

_IN_HISTORY = ("loss", "rate", "gradient_norm", "loss_scale", "skipped_steps")
_SPEEDS = ("step_ms", "examples_per_sec", "data_wait_share")
# Not drawn: the first is dice by another name, the other does not change.
_NOT_DRAWN = ("f1/", "majority_baseline")


class TrainingLogger:
    """Writes what the loop reports.

    Every tag and column is written once per step, also after a resume.

    Only what is the same in every repetition goes to the history; speeds go to TensorBoard and the
    bar.

    Args:
        run: The folder of the run.
        classes: Its classes.
        settings: Those of training: the step it is trained up to, the monitor.
        held_out: Whether images are held out.
        more_scores: Names of scores beside those of `score_names`.
        resumed_at: The step the run goes on from, 0 for a new one.
        track: Also takes the step and the numbers of each row.
    """

    def __init__(
        self,
        run: RunDirectory,
        classes: ClassMap,
        settings: TrainingSettings,
        *,
        held_out: bool,
        more_scores: Sequence[str] = (),
        resumed_at: int,
        track: Callable[[int, Mapping[str, float]], None] = lambda *_: None,
    ):
        self._batch_scores = ["accuracy", *(f"dice/{name}" for name in classes.names)]
        columns = ["step", *(f"train/{name}" for name in (*_IN_HISTORY, *self._batch_scores))]
        if held_out:
            columns += [f"held_out/{name}" for name in (*score_names(classes), *more_scores)]
        self._classes = classes
        self._picture = run.network
        columns.append(NOTE)
        self._monitor = settings.monitor
        self._history = History(run.history, columns, resumed_at=resumed_at)
        self._lines = JsonLines(run.metrics, resumed_at=resumed_at)
        self._track = track
        self._summaries = SummaryWriter(run.events, resumed_at=resumed_at)
        # Two runs to TensorBoard, so that it draws what they share in one chart.
        self._train = SummaryWriter(run.events / "train", resumed_at=resumed_at)
        self._held_out = SummaryWriter(run.events / "held_out", resumed_at=resumed_at)
        self._bar = console.bar(
            total=settings.train_steps,
            initial=resumed_at,
            desc="Training",
            unit="step",
        )

    def __enter__(self) -> TrainingLogger:
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()
        with contextlib.ExitStack() as stack:
            for writer in (self._summaries, self._train, self._held_out):
                stack.push(writer)

    def show(self, report: Report) -> None:
        """Moves the progress bar."""
        share = report.data_wait_share
        waiting = f"{share:.1%}" if share == share else "not timed"
        speed = f"{report.examples_per_sec:.1f} images/s, data wait {waiting}"
        text = f"loss {report.loss:.4f}, rate {report.rate:.2g}, {speed}"
        self._bar.set_postfix_str(text, refresh=False)
        if not self._bar.update(report.step - self._bar.n):
            self._bar.refresh()

    def say_scores(
        self,
        step: int,
        scores: Mapping[str, float],
        *,
        best_before: float | None,
        is_best: bool,
        seconds: float,
        decided: str,
    ) -> None:
        """Prints one line of an evaluation.

        Args:
            step: The step that was evaluated.
            scores: Its scores by name.
            best_before: The best monitored score of the evaluations before.
            is_best: Whether this one is better.
            seconds: How long it took.
            decided: What the controls have decided; "" if nothing.
        """
        monitored = scores[self._monitor]
        text = f"{self._monitor} {monitored:.4f}"
        if best_before is not None:
            text += f" ({monitored - best_before:+.4f})"
        text += ", the best so far, saved" if is_best else ""
        others = [name for name in ("loss", "dice/mean") if name != self._monitor]
        text += "".join(f"; {name} {scores[name]:.4f}" for name in others)
        text += f"; {seconds:.1f} s"
        # Not `capitalize`, which makes the rest small, names of classes too.
        then = f" {decided[0].upper()}{decided[1:]}." if decided else ""
        console.say(f"Step {step}: {text}.{then}")

    def write(self, report: Report, scores: Mapping[str, float], note: str = "") -> None:
        """Writes a row of the history and the scalars.

        Args:
            report: What the loop has reported; the scores of its training batches among it.
            scores: Those of held-out images, by name; they may be empty.
            note: What the controls have decided or a person has said, for the history alone.
        """
        trained = {name: getattr(report, name) for name in _IN_HISTORY}
        trained |= {name: report.means[name] for name in self._batch_scores}
        row = {f"train/{name}": value for name, value in trained.items()}
        row |= {f"held_out/{name}": value for name, value in scores.items()}
        noted = {NOTE: note} if note else {}
        self._history.append({"step": report.step, **row, **noted})
        speeds = {f"speed/{name}": getattr(report, name) for name in _SPEEDS}
        console.emit(
            "evaluation" if scores else "report", step=report.step, **row, **speeds, **noted
        )
        self._lines.append({"step": report.step, **row, **speeds, **noted})
        self._track(report.step, row | speeds)
        self._train.scalars(report.step, trained | speeds)
        drawn = {name: v for name, v in scores.items() if not name.startswith(_NOT_DRAWN)}
        self._held_out.scalars(report.step, drawn)

    def write_pictures(
        self, step: int, window: SlidingWindow, samples: Sequence[Sample], read: Reader
    ) -> None:
        """Writes input, ground truth, prediction and errors of `samples`."""
        for sample in samples:
            pair = read(sample)
            ids = usual_rule(self._classes)(window(pair.image))
            panels = {
                "input": pictures.displayable(pair.image),
                "truth": pictures.mask_picture(pair.mask, self._classes),
                "prediction": pictures.mask_picture(ids, self._classes),
                "errors": pictures.errors(pair.image, pair.mask, ids, clear=self._classes.clear),
            }
            for name, panel in panels.items():
                in_rgb = panel[None, ..., ::-1]
                self._summaries.images(step, f"held_out_{sample.name}/{name}", in_rgb)

    def write_description(
        self, config: RunConfig, command: str, model: keras.Model, crop_size: int
    ) -> None:
        """Writes the settings and the command as text, the graph of the network, and a picture.

        The settings that are not the defaults are also the hyperparameters of the HParams tab. The
        picture, the run's `network.svg`, shows sizes for crops of `crop_size` pixels a side.
        """
        text = "\n".join(f"    {name} = {value}" for name, value in config.values().items())
        self._summaries.text(0, "config", text)
        self._summaries.text(0, "command", f"    {command}")
        chosen = {
            name: value if isinstance(value, bool | int | float | str) else _as_text(value)
            for name, value in config.changed().items()
        }
        self._summaries.raw(0, hparams.hparams_pb(chosen).SerializeToString())
        spec = tf.TensorSpec([None, None, None, model.input_shape[-1]], tf.uint8)
        self._summaries.graph(lambda images: model(images, training=False), spec)
        write_whole(self._picture, draw_network(model, crop_size, crop_size).encode())

    def write_histograms(self, step: int, values: Mapping[str, tf.Tensor]) -> None:
        """Writes how the numbers of each tensor are distributed."""
        self._summaries.histograms(step, values)

    def flush(self) -> None:
        """Hands everything to the operating system.

        It is then not older than a checkpoint saved next.
        """
        self._summaries.flush()


def score_names(classes: ClassMap) -> list[str]:
    """Returns the names of the held-out scores."""
    return ["loss", *metrics.scores(np.zeros([len(classes)] * 2), classes.names)]


def _as_text(value: Any) -> str:
    """Returns a setting of several values, or of none, as text."""
    return "none" if value is None else ",".join(map(str, value))
