"""Classifies the images of class folders, data/CLASS/*.png or *.jpg; needs scikit-learn.

python -m examples.classifier --data_dir=data --run_dir=run --weights=efficientnetb3_notop.h5
python -m examples.classifier --run_dir=run --predict=new_images

The first goes on with what was stopped if it is given again; the second writes predictions.csv.
Slices of one patient resemble one another: without a split by patient the scores flatter.
"""

import dataclasses
import sys

import keras
import msgspec
import numpy as np
from sklearn.metrics import classification_report, confusion_matrix

from examples.classifier import folders
from examples.classifier.network import fit, make_network
from unet_core import metrics, training
from unet_core.data.images import write_png
from unet_core.drawing import pictures, plots, tables
from unet_core.errors import UserError
from unet_core.models.encoders import ENCODERS
from unet_core.run_directory import RunDirectory
from unet_core.settings import command_line
from unet_core.settings.fields import binding_values, setting
from unet_core.training.history import read_columns

PICTURES = ["curves.png", "confusion.png", "misclassified.png"]
TEXTS = ["history.csv", "report.txt", "misclassified.csv"]
Stored = msgspec.defstruct("Stored", [("encoder", str), ("size", int), ("classes", list[str])])


@dataclasses.dataclass(frozen=True)
class Flags:
    run_dir: str = setting("", "Folder of the run.", is_path=True)
    data_dir: str = setting("", "Class folders to train on.", is_path=True)
    predict: str = setting("", "Folder of images to predict.", is_path=True)
    weights: str = setting("", "File of Keras with weights of the encoder.", is_path=True)
    encoder: str = setting("efficientnet_b3", "unet is small.", binds=True, choices=ENCODERS)
    balance: str = setting("repeat", "Classes.", binds=True, choices=("repeat", "weights", "none"))
    trim: int = setting(0, "Most images a class; 0: all.", binds=True, least=0, most=10**9)
    held_out: float = setting(0.1, "To validate, and to test.", binds=True, least=0.001, most=0.4)
    size: int = setting(224, "Pixels a side.", binds=True, least=8, most=2048)
    batch_size: int = setting(20, "Images a step.", binds=True, least=1, most=4096)
    seed: int = setting(123, "Of all that is random.", binds=True, least=0, most=2**32 - 1)
    l1: float = setting(0.006, "On outputs of the head.", binds=True, least=0, most=1)
    l2: float = setting(0.016, "On weights of the head.", binds=True, least=0, most=1)
    rate: float = setting(0.001, "The first learning rate.", least=1e-9, most=1)
    epochs: int = setting(40, "At most.", least=1, most=10**6)
    patience: int = setting(8, "Epochs without a lower loss to stop after.", least=1, most=10**6)
    ask_every: int = setting(0, "Epochs after which to ask how to go on.", least=0, most=10**6)


def main(args):
    if not args.run_dir or bool(args.data_dir) == bool(args.predict):
        raise UserError("Give --run_dir, and either --data_dir or --predict.")
    run = RunDirectory(args.run_dir)
    with run.locked():
        predict(run, args) if args.predict else train(run, args)


def train(run, args):
    files, classes = folders.scan(args.data_dir, "*/*")
    names, ids = np.unique(classes, return_inverse=True)
    if not 2 <= len(names) < 255:
        raise UserError(f"{args.data_dir}: has {len(names)} class(es), not 2 to 254.")
    *parts, test = folders.split(files, ids, args)
    print("Images to train, validate, test:", *(len(ids) for _, ids in (*parts, test)))
    model = make_network(args, names)
    run.bind(binding_values(args) | {"classes": names.tolist(), "images": files.tolist()})
    run.claim(*(run.path / name for name in PICTURES + TEXTS))
    steps, best = fit(model, run, *parts, names, args)
    shown = {"loss": "loss", "accuracy": "accuracy", "F1": "dice/mean"}
    curves = plots.history(read_columns(run.history), shown, epoch_steps=steps, best_step=best)
    write_png(run.path / "curves.png", curves)
    report(run, model, *test, names, args)


def guess(run, model, files, names, args):
    """Returns the most probable class of each image by the best weights, and its probability."""
    training.load_weights(run.checkpoints, model, best=True)
    images = folders.batches(folders.slices((files, np.zeros(len(files)))), args)
    shares = np.asarray(keras.ops.softmax(model.predict(images)))
    return np.array(names)[shares.argmax(1)], shares.max(1)


def report(run, model, files, ids, names, args):
    """Saves the model under its score, and tells what it gets wrong, the surest first."""
    (guesses, sure), truth = guess(run, model, files, names, args), names[ids]
    counts = confusion_matrix(truth, guesses, labels=names)
    text = classification_report(truth, guesses, labels=names, digits=4, zero_division=0)
    wrong = [n for n in np.argsort(-sure, kind="stable") if truth[n] != guesses[n]]
    rows = [[files[n], truth[n], guesses[n], f"{sure[n]:.6f}"] for n in wrong]
    tiles = [pictures.displayable(folders.read(files[n], 160)) for n in wrong[:48]]
    titles = [f"{truth[n][:9]} > {guesses[n][:9]}" for n in wrong[:48]]
    (run.path / "report.txt").write_text(text)
    write_png(run.path / "confusion.png", plots.confusion(counts, names))
    header = ["file", "truth", "predicted", "probability"]
    tables.write_texts(run.path / "misclassified.csv", header, rows)
    write_png(run.path / "misclassified.png", pictures.contact_sheet(tiles, titles))
    scores = metrics.scores(counts, names)
    name = f"{args.encoder}-accuracy-{scores['accuracy']:.4f}-f1-{scores['dice/mean']:.4f}.keras"
    run.claim(run.path / name)
    model.save(run.path / name)
    print(text, run.path / name, sep="\n")


def predict(run, args):
    stored, path = run.bound(Stored), run.path / "predictions.csv"
    args = dataclasses.replace(args, encoder=stored.encoder, size=stored.size)
    model, (files, _) = make_network(args, stored.classes), folders.scan(args.predict, "**/*")
    guesses, sure = guess(run, model, files, stored.classes, args)
    rows = list(zip(files, guesses, map("{:.6f}".format, sure), strict=True))
    run.claim(path)
    tables.write_texts(path, ["file", "predicted", "probability"], rows)
    print(f"{len(files)} images: {path}")


if __name__ == "__main__":
    sys.exit(command_line.run(main, Flags, name="classifier", description=__doc__))
