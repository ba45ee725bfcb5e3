"""`--mode=sweep`: many runs over ranges of settings, chosen by Optuna; each is a run folder.

`sweep.journal` in the folder of the sweep is Optuna's; `sweep.csv` is the table. An interrupted
sweep goes on, the run that was interrupted from its last checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import warnings
from typing import Any

import tensorflow as tf

from unet_core.drawing import tables
from unet_core.errors import UserError
from unet_core.run_directory import RunDirectory
from unet_core.runs.finished_run import check_used, required
from unet_core.runs.process import StopRequest
from unet_core.runs.train import train_one
from unet_core.settings import FIELDS, KINDS, RunConfig
from unet_core.training.controls import Decision, Evaluation, higher_is_better

_FILES = ("sweep.journal", "sweep.csv")
_FOLDER, _BINDING = "folder", "sweep"
# Runs that are never stopped early: the median of fewer says little.
_UNPRUNED = 4


@dataclasses.dataclass(frozen=True)
class Range:
    """What is tried of one setting.

    Attributes:
        name: The setting.
        low: The least number; with `high` instead of `values`.
        high: The greatest.
        values: Texts to choose from.
    """

    name: str
    low: float = 0.0
    high: float = 0.0
    values: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Range:
        """Returns the range written as NAME=LOW..HIGH or NAME=A|B|C.

        Raises:
            UserError: If it is not of these forms, or a value breaks the rule of its setting.
        """
        name, _, values = text.partition("=")
        if name not in FIELDS or not values:
            raise _refused(text, "the name of a setting comes first")
        if "train" not in FIELDS[name].metadata["modes"] or name in ("mode", "run_dir", "fold"):
            raise _refused(text, f"{name} cannot be varied")
        low, dots, high = values.partition("..")
        if not dots:
            choice = cls(name, values=tuple(values.split("|")))
            for value in choice.values:
                RunConfig().replace(**{name: choice.read(value)})
            return choice
        try:
            found = cls(name, float(low), float(high))
        except ValueError:
            raise _refused(text, "LOW and HIGH are numbers") from None
        if KINDS[name].item not in (int, float) or KINDS[name].is_list:
            raise _refused(text, f"{name} is no number; write its values as A|B|C")
        if not found.low < found.high:
            raise _refused(text, "LOW is less than HIGH")
        for bound in (found.low, found.high):
            RunConfig().replace(**{name: found.read(bound)})
        return found

    def read(self, value: Any) -> Any:
        """Returns a value of the setting's own type."""
        kind = KINDS[self.name]
        if kind.is_list:
            return tuple(kind.item(item) for item in str(value).split("+") if item)
        if kind.item is bool:
            if value not in ("true", "false"):
                raise _refused(f"{self.name}={value}", "its values are true and false")
            return value == "true"
        try:
            return kind.item(value)
        except ValueError:
            raise _refused(f"{self.name}={value}", f"{value!r} is no number") from None

    def suggest(self, trial: Any) -> Any:
        """Asks a trial for a value; over a factor of 10 or more it is spread by the logarithm."""
        if self.values:
            return trial.suggest_categorical(self.name, self.values)
        log = self.low > 0 and self.high / self.low >= 10
        if KINDS[self.name].item is int:
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=log)
        return trial.suggest_float(self.name, self.low, self.high, log=log)


class _Prune:
    """Ends a run whose monitored score is worse than the median of the runs before it.

    Args:
        trial: Optuna's trial.
        monitor: The name of the score.
    """

    name = "prune"

    def __init__(self, trial: Any, monitor: str):
        self._trial, self._monitor = trial, monitor
        self._stopped = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.state = {"stopped": self._stopped}

    @property
    def stopped(self) -> bool:
        """Whether it has ended the run."""
        return bool(self._stopped.numpy())

    def decide(self, evaluation: Evaluation, /) -> Decision:
        """Reports the score and asks whether to go on."""
        score = evaluation.scores[self._monitor]
        if not math.isnan(score):
            with warnings.catch_warnings():
                # A resumed run may report a step twice.
                warnings.simplefilter("ignore")
                self._trial.report(score, evaluation.step)
        if not self._trial.should_prune():
            return Decision()
        self._stopped.assign(1)
        return Decision(stop=True, reasons=("it is worse than the median of the runs before it",))


def sweep(config: RunConfig, stop: StopRequest) -> None:
    """Trains `trials` runs, and writes and shows the table of their scores."""
    check_used(config)
    optuna = _import_optuna()
    ranges = [Range.parse(text) for text in config.search.sweep]
    if not ranges:
        raise UserError(
            "`sweep` is missing: what to vary, such as learning_rate=1e-4..1e-2,base_filters=16|32."
        )
    run = RunDirectory(required(config, "run_dir"))
    if run.holds_run():
        raise UserError(f"{run.path}: holds a run; choose another `run_dir` for the sweep.")
    with run.locked():
        run.claim(*(run.path / name for name in _FILES))
        study = _open_study(optuna, run.path / _FILES[0], config, ranges)
        states = optuna.trial.TrialState
        while len(_ended(study, states)) < config.search.trials and not stop():
            _run_trial(study, states, config, ranges, run.path, stop)
        _show(study, states, config, ranges, run.path)


def _run_trial(
    study: Any,
    states: Any,
    config: RunConfig,
    ranges: list[Range],
    folder: pathlib.Path,
    stop: StopRequest,
) -> None:
    trial = study.ask()
    values = {each.name: each.suggest(trial) for each in ranges}
    name = trial.user_attrs.get(_FOLDER) or f"trial-{trial.number:04d}"
    trial.set_user_attr(_FOLDER, name)
    print(f"\nRun {name}: " + ", ".join(f"{key}={_text(value)}" for key, value in values.items()))
    settings = {each.name: each.read(values[each.name]) for each in ranges}
    control = _Prune(trial, config.training.monitor)
    try:
        one = config.replace(run_dir=str(folder / name), mode="train", **settings)
        score = train_one(one, stop, control=control, finishes=False)
    except UserError as error:
        print(f"Run {name} has failed: {error}")
        trial.set_user_attr("problem", str(error))
        study.tell(trial, state=states.FAIL)
        return
    if stop():
        return  # It is still running, and goes on next time.
    if control.stopped:
        study.tell(trial, state=states.PRUNED)
    elif score is None:
        trial.set_user_attr("problem", "no score")
        study.tell(trial, state=states.FAIL)
    else:
        study.tell(trial, score)


def _open_study(optuna: Any, path: pathlib.Path, config: RunConfig, ranges: list[Range]) -> Any:
    """Returns the study at `path`, whose interrupted runs come first.

    Raises:
        UserError: If it is of other settings, or cannot be read.
    """
    searched = {each.name for each in ranges}
    binding = {n: v for n, v in config.stored().items() if FIELDS[n].metadata["binds"]}
    binding = {n: v for n, v in binding.items() if n not in searched}
    text = json.dumps({"ranges": sorted(config.search.sweep), **binding}, sort_keys=True)
    try:
        storage = optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(path))
        )
        study = optuna.create_study(
            storage=storage,
            study_name="sweep",
            sampler=optuna.samplers.TPESampler(seed=config.training.seed),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=_UNPRUNED),
            direction="maximize" if higher_is_better(config.training.monitor) else "minimize",
            load_if_exists=True,
        )
        trials = study.get_trials(deepcopy=False)
    except Exception as error:  # Optuna raises anything for a file that is not its own.
        raise UserError(
            f"{path}: cannot be read as the journal of a sweep ({type(error).__name__}: {error}). "
            "Put it back, or choose another `run_dir`."
        ) from error
    before = study.user_attrs.get(_BINDING)
    if before is not None and before != text:
        there, here = json.loads(before), json.loads(text)
        names = [name for name in here if there.get(name) != here[name]]
        raise UserError(
            f"{path.parent}: holds a sweep of other settings: {', '.join(names)}. Give the same "
            "ones to go on with it, or another `run_dir`."
        )
    study.set_user_attr(_BINDING, text)
    if trials:
        # Or a sweep that goes on would draw again what it has drawn.
        study.sampler.reseed_rng()
    for trial in trials:
        if trial.state == optuna.trial.TrialState.RUNNING:
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            study.enqueue_trial(trial.params, user_attrs={_FOLDER: trial.user_attrs.get(_FOLDER)})
    return study


def _ended(study: Any, states: Any) -> list[Any]:
    """Returns the trials that have ended by themselves; an interrupted one stands for its rest."""
    trials = study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED, states.FAIL))
    return [t for t in trials if t.state != states.FAIL or "problem" in t.user_attrs]


def _show(
    study: Any, states: Any, config: RunConfig, ranges: list[Range], folder: pathlib.Path
) -> None:
    """Writes `sweep.csv`, prints the table, the best first, and how to go on with the best."""
    monitor, trials = config.training.monitor, _ended(study, states)
    names = {states.COMPLETE: "done", states.PRUNED: "stopped early", states.FAIL: "failed"}

    def rank(trial):
        score = trial.value if trial.state == states.COMPLETE else None
        sign = -1 if higher_is_better(monitor) else 1
        return (score is None, sign * (score or 0.0), trial.number)

    trials.sort(key=rank)
    header = ["run", *(each.name for each in ranges), monitor, "outcome"]
    rows = [
        [
            trial.user_attrs[_FOLDER],
            *(_text(trial.params.get(each.name, "")) for each in ranges),
            f"{trial.value:.4f}" if trial.state == states.COMPLETE else "",
            trial.user_attrs.get("problem") or names[trial.state],
        ]
        for trial in trials
    ]
    tables.write_texts(folder / _FILES[1], header, rows)
    print(f"\n{tables.table(header, rows)}\n")
    if trials and trials[0].state == states.COMPLETE:
        best = folder / trials[0].user_attrs[_FOLDER]
        print(f"Best: {best}. Score it by: --mode=evaluate --run_dir={best}")
    left = config.search.trials - len(trials)
    if left > 0:
        print(f"{left} runs are left. Start the same command again to go on.")


def _import_optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise UserError(
            f"`mode` sweep needs Optuna, which is not installed ({error}). Install the extra "
            "sweep: pip install '.[sweep]'."
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _refused(text: str, rule: str) -> UserError:
    return UserError(f"`sweep` ({text}) is not of the form NAME=LOW..HIGH or NAME=A|B|C: {rule}.")
