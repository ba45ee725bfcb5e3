"""What a run folder holds, read for its report; the data are not needed.

files = RunFiles.read(RunDirectory("runs/membrane"))
steps, values = files.column("held_out/loss")
files.missing                              # sentences about what is not there
"""

from __future__ import annotations

import dataclasses
import math
import os

from unet_core.data.classes import ClassMap
from unet_core.inference.trained import make_classes
from unet_core.reports.about import About, Session, read_about
from unet_core.reports.scores_file import Scores, read_scores
from unet_core.run_directory import RunDirectory
from unet_core.settings import RunConfig
from unet_core.training.controls import higher_is_better
from unet_core.training.history import NOTE, read_history
from unet_core.training.summaries import read_scalars

SPEEDS = ("speed/examples_per_sec", "speed/data_wait_share")
Series = tuple[list[int], list[float]]
"""Steps and the values there."""


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """What a run folder holds.

    Attributes:
        run: The folder.
        config: The settings.
        classes: The classes.
        about: What the run is and ran on; None if it began with a version that did not keep it.
        columns: The columns of its history.
        rows: Its rows, as texts by column.
        speeds: The series of each of `SPEEDS`.
        scores: What `scores.json` holds; None if it was not scored.
        missing: What is not there and why, as sentences.
    """

    run: RunDirectory
    config: RunConfig
    classes: ClassMap
    about: About | None
    columns: list[str]
    rows: list[dict[str, str]]
    speeds: dict[str, Series]
    scores: Scores | None
    missing: list[str]

    @classmethod
    def read(cls, run: RunDirectory) -> RunFiles:
        """Reads what the folder of a run holds.

        Raises:
            UserError: If there is no run, or a file of it cannot be read.
        """
        config, _ = run.read()
        missing: list[str] = []
        about = read_about(run.about)
        if about is None:
            missing.append(
                "about.json is not there: the run began with a version that did not keep it. "
                "Samples, class frequencies, network, versions, hardware, duration and command "
                "are not known."
            )
        columns: list[str] = []
        rows: list[dict[str, str]] = []
        if os.path.lexists(run.history):
            columns, rows = read_history(run.history)
        if not rows:
            missing.append("history.csv has no rows yet, so there are no curves.")
        speeds = _read_speeds(run)
        if not speeds[SPEEDS[0]][0]:
            missing.append("The folder events holds no speeds: it was removed, or none is timed.")
        scores = _read_own_scores(run)
        if scores is None:
            missing.append(
                "scores.json is not there: the run has not been scored yet. Train it to its end, "
                "or score it by --mode=evaluate."
            )
        elif not scores.probabilities:
            missing.append(
                "scores.json is of a version that kept no histograms of the probabilities. Score "
                "the run again by --mode=evaluate."
            )
        classes = make_classes(config.data)
        return cls(run, config, classes, about, columns, rows, speeds, scores, missing)

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.run.path.name

    @property
    def last_step(self) -> int:
        """The step of the last row of the history."""
        return int(self.rows[-1]["step"]) if self.rows else 0

    def column(self, name: str) -> Series:
        """Returns a column of the history where it has a number; empty if it is not there."""
        found = [(int(row["step"]), float(row[name])) for row in self.rows if row.get(name)]
        return [step for step, _ in found], [value for _, value in found]

    def best_step(self) -> int | None:
        """Returns the step with the best monitored score; None if there is none."""
        monitor = self.config.training.monitor
        steps, values = self.column(f"held_out/{monitor}")
        sign = 1 if higher_is_better(monitor) else -1
        known = [
            (sign * v, -step) for step, v in zip(steps, values, strict=True) if math.isfinite(v)
        ]
        return -max(known)[1] if known else None

    def score_names(self) -> list[str]:
        """Returns the names of the scores in the history, of training batches or held out."""
        left_out = {"rate", "gradient_norm", "loss_scale", "skipped_steps"}
        names = [
            name.partition("/")[2]
            for name in self.columns
            if name.startswith(("train/", "held_out/"))
        ]
        return [name for name in dict.fromkeys(names) if name not in left_out]

    def notes(self) -> list[tuple[str, str]]:
        """Returns step and text of what the controls decided and a person said."""
        return [(row["step"], row[NOTE]) for row in self.rows if row.get(NOTE)]

    def session(self) -> Session | None:
        """Returns the last start of the program, if it is known."""
        return self.about.sessions[-1] if self.about and self.about.sessions else None

    def seconds(self) -> float | None:
        """Returns how long the run took in all, if that is known."""
        return sum(each.seconds for each in self.about.sessions) if self.about else None

    def state(self) -> str:
        """Returns how far the run has come, in words."""
        session, target = self.session(), self.config.training.train_steps
        if session is None:
            done = self.run.is_finished(self.last_step)
            return (
                f"Finished at step {self.last_step}"
                if done
                else f"At step {self.last_step} of {target}"
            )
        step = session.last_step
        if session.ended == "finished":
            early = f" of {target}" if step < target else ""
            return f"Finished at step {step}{early}"
        if session.ended == "stopped":
            return f"Stopped at step {step} of {target}"
        if session.ended == "trained":
            return f"Trained to step {step}; scores and predictions are not complete"
        return f"Running or killed: saved at step {step} of {target}"


def _read_speeds(run: RunDirectory) -> dict[str, Series]:
    # Versions of before have written all to one folder.
    train = run.events / "train"
    found = read_scalars(train if train.is_dir() else run.events, SPEEDS)
    return {
        tag: (
            [s for s, v in series if math.isfinite(v)],
            [v for _, v in series if math.isfinite(v)],
        )
        for tag, series in found.items()
    }


def _read_own_scores(run: RunDirectory) -> Scores | None:
    path = run.path / "scores.json"
    if not os.path.lexists(path):
        return None
    way = "Move it away, and score the run again by `mode` evaluate."
    return read_scores(path, what="the scores of a run", way=way)
