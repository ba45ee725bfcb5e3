"""Classifies the images of class folders, data/CLASS/*.png or *.jpg.

python -m examples.classifier --data_dir=data --run_dir=run --weights=efficientnetb3_notop.h5
python -m examples.classifier --run_dir=run --predict=new_images

The first goes on with what was stopped if it is given again; the second writes predictions.csv.
Slices of one patient resemble one another: without a split by patient the scores flatter.
"""

import argparse
import pathlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from examples.classifier import folders, results
from examples.classifier.network import make_network
from unet_core import files, metrics, training
from unet_core.data import balance, survey
from unet_core.drawing import tables
from unet_core.errors import UserError
from unet_core.run_directory import RunDirectory
from unet_core.training import controls, history, schedules
from unet_core.training.checkpoints import steps_in
from unet_core.training.host_controls import Ask

TEXTS = {"data_dir": "class folders", "predict": "images to predict", "weights": "of the body"}
CHOICES = {
    "network": ("b3", "small"),
    "balance": ("repeat", "weights", "none"),
    "monitor": ("loss", "accuracy", "f1"),
}
# Default, lowest and highest value. Above: what a run cannot change when it goes on.
FIXED = {
    "size": (224, 8, 2048),
    "batch_size": (20, 1, 4096),
    "seed": (123, 0, 2**31),
    "most": (0, 0, 10**9),
    "valid_share": (0.1, 0.001, 0.49),
    "test_share": (0.1, 0.001, 0.49),
    "dropout": (0.45, 0.0, 0.99),
    "l1": (0.006, 0.0, 1.0),
    "l2": (0.016, 0.0, 1.0),
}
FREE = {
    "epochs": (40, 1, 10**6),
    "rate": (0.001, 1e-9, 1.0),
    "patience": (8, 1, 10**6),
    "dwell_factor": (0.5, 0.01, 1.0),
    "ask_every": (0, 0, 10**6),
}
COLUMNS = ["step", "epoch", "train/loss", "valid/loss", "train/accuracy", "valid/accuracy"]
COLUMNS += ["valid/f1", "note"]


class Flags(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UserError(f"{message}. See --help.")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    flags = Flags("classifier", description=__doc__, allow_abbrev=False, formatter_class=raw)
    flags.add_argument("--run_dir", required=True, help="folder of the run")
    flags.add_argument("--flip", action="store_true", help="mirror half of the training images")
    for name, text in TEXTS.items():
        flags.add_argument(f"--{name}", help=text)
    for name, choices in CHOICES.items():
        flags.add_argument(f"--{name}", choices=choices, default=choices[0])
    for name, (default, low, high) in {**FIXED, **FREE}.items():
        text = f"{default} unless given; {low} to {high}"
        flags.add_argument(f"--{name}", type=type(default), default=default, help=text)
    args = flags.parse_args(argv)
    for name, (_, low, high) in {**FIXED, **FREE}.items():
        if not low <= getattr(args, name) <= high:
            raise UserError(f"--{name} ({getattr(args, name)}) must be from {low} to {high}.")
    if not (args.data_dir or args.predict):
        raise UserError("Give --data_dir to train, or --predict to predict.")
    return args


def train(args: argparse.Namespace, ask: Any, show: Callable[[str], None]) -> None:
    samples = folders.scan(args.data_dir, "*/*", show)
    classes = sorted({sample.group for sample in samples})
    if not 2 <= len(classes) < 255:
        raise UserError(f"{args.data_dir}: has {len(classes)} class(es) of images, not 2 to 254.")
    chosen, valid, test = folders.split(samples, args)
    chosen, run = folders.trim(chosen, args), RunDirectory(args.run_dir)
    show(f"{len(chosen)} images to train, {len(valid)} to validate, {len(test)} to test")
    with run.locked():
        settings = {name: getattr(args, name) for name in ("network", "balance", "flip", *FIXED)}
        settings |= {"classes": classes, "images": survey.fingerprint(samples)}
        stored, way = run.path / "settings.json", "Choose another --run_dir."
        model = make_network(args, len(classes))
        if steps_in(run.checkpoints):
            there = files.read_json(stored, dict, what="settings of a run", way=way)
            if changed := [name for name in settings if there.get(name) != settings[name]]:
                raise UserError(f"{stored}: the run has other {', '.join(changed)}. {way}")
        files.write_json(stored, settings)
        best_epoch = fit(model, run, chosen, valid, classes, args, ask, show)
        training.load_weights(run.checkpoints, model, best=True)
        finish(model, run.path, test, classes, best_epoch, args, show)


def fit(model, run, chosen, valid, classes, args, ask, show) -> float:
    """Trains, or goes on; returns the best epoch."""
    steps = -(-len(chosen) // args.batch_size)
    counts = [sum(sample.group == name for sample in chosen) for name in classes]
    weighs = balance.class_weights(counts, "inverse") if args.balance == "weights" else None
    weighs = tf.constant(np.ones(len(classes)) if weighs is None else weighs, tf.float32)

    def loss(logits, batch):
        values = tf.nn.sparse_softmax_cross_entropy_with_logits(batch[1], logits)
        is_hit = metrics.predicted_classes(logits) == batch[1]
        return values * tf.gather(weighs, batch[1]), {"accuracy": tf.cast(is_hit, tf.float32)}

    def confusion(logits, batch):
        return {"confusion": metrics.confusion_matrix(batch[1], logits)}

    asked: list[Any] = [controls.EarlyStopping(args.monitor, patience=args.patience)]
    asked += [controls.Dwell(args.monitor, factor=args.dwell_factor)]
    asked += [Ask(args.ask_every * steps, ask=ask, show=show)] if args.ask_every else []
    steering = controls.Controls(asked)
    rate, how = steering.scaled(schedules.constant(args.rate)), {"metrics": confusion}
    loop = training.Loop(model, keras.optimizers.Adamax(), loss=loss, schedule=rate, **how)
    how = {"higher_is_better": controls.higher_is_better(args.monitor), "monitor": args.monitor}
    checkpoints = training.Checkpoints(run.checkpoints, loop, controls=steering, **how)
    step = checkpoints.restore()
    show(f"Going on from epoch {step // steps}" if step else "A new run")
    rows = history.History(run.history, COLUMNS, resumed_at=step)
    batches = partial(folders.dataset, folders.shuffled, classes, chosen, args)
    held_out = folders.dataset(folders.in_order, classes, valid, args)
    until = 0 if steering.stopped_by else args.epochs * steps
    for seen in loop.train(batches, until_step=until, report_every_steps=steps):
        sums = loop.evaluate(held_out)
        found = metrics.scores(sums["confusion"], classes)
        scores = {"loss": sums["loss"] / sums["examples"], "f1": found["dice/mean"]}
        scores["accuracy"] = found["accuracy"]
        decision = steering.decide(seen.step, scores, rate=seen.rate)
        if decision.restore_best:
            checkpoints.restore_best_weights()
        note = "; ".join([*decision.reasons, *filter(None, [decision.comment])])
        row = {"step": seen.step, "epoch": seen.step // steps, "note": note}
        row |= {"train/loss": seen.loss, "train/accuracy": seen.means["accuracy"]}
        rows.append(row | {f"valid/{name}": value for name, value in scores.items()})
        checkpoints.save(score=scores[args.monitor])
        texts = [f"{name} {value:.4f}" for name, value in scores.items()]
        show(f"epoch {row['epoch']}: train loss {seen.loss:.4f}, valid {', '.join(texts)} {note}")
        if decision.stop:
            break
    return checkpoints.best_step / steps


def finish(model, run, test, classes, best_epoch, args, show) -> None:
    """Saves the model under its score, and what the saved one says of the test images."""
    model.save(run / "model.keras")
    model = keras.models.load_model(run / "model.keras")
    probabilities = results.probabilities_of(model, test, args)
    ids, confusion = probabilities.argmax(1), np.zeros([len(classes)] * 2, np.int64)
    np.add.at(confusion, ([classes.index(sample.group) for sample in test], ids), 1)
    scores = results.report(run, confusion, classes, show)
    name = f"{args.network}-accuracy-{scores['accuracy']:.4f}-f1-{scores['dice/mean']:.4f}.keras"
    (run / "model.keras").replace(run / name)
    results.draw_curves(run, best_epoch)
    guesses, sure = [classes[n] for n in ids], probabilities.max(1)
    wrong = results.list_misclassified(run, test, guesses, sure)
    how = {"model": name, "classes": classes, "size": args.size, "scores": scores}
    files.write_json(run / "results.json", how)
    show(
        f"accuracy {scores['accuracy']:.4f}, {wrong} of {len(test)} wrong, best epoch "
        f"{best_epoch:g}: {run / name}"
    )


def predict(args: argparse.Namespace, show: Callable[[str], None]) -> None:
    run, way = pathlib.Path(args.run_dir), "Train with this --run_dir first."
    stored = files.read_json(run / "results.json", dict, what="results of a run", way=way)
    with files.os_errors(
        run, "its model cannot be read", way, kinds=(OSError, ValueError, KeyError)
    ):
        model, args.size = keras.models.load_model(run / stored["model"]), stored["size"]
    samples = folders.scan(args.predict, "**/*", show)
    found = results.probabilities_of(model, samples, args)
    header, rows = ["file", "predicted", "probability", *stored["classes"]], []
    for sample, row in zip(samples, found, strict=True):
        shares = [f"{value:.6f}" for value in (row.max(), *row)]
        rows.append([sample.name, stored["classes"][row.argmax()], *shares])
    tables.write_texts(run / "predictions.csv", header, rows)
    show(f"{len(rows)} images: {run / 'predictions.csv'}")


def main(argv: Sequence[str] | None = None, *, ask: Any = None, show: Any = print) -> int:
    """Trains or predicts; `ask` shows a text and returns an answer. Returns the exit code."""
    try:
        args = parse(argv)
        predict(args, show) if args.predict else train(args, ask, show)
    except (UserError, OSError, training.NonFiniteError) as error:
        print(f"classifier: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("classifier: stopped; the same command goes on from its last epoch", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(ask=input if sys.stdin.isatty() else None))
