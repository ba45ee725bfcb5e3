"""The program, as a person or a script starts it; the fixture `door` runs it in this process."""

import pathlib
import subprocess
import sys

from unet_core.data import synthetic

ROOT = pathlib.Path(__file__).parents[2]
MEMBRANE = "--classes=0:membrane,255:cell"
SMALL = [
    MEMBRANE,
    "--crop_size=32",
    "--base_filters=4",
    "--depth=1",
    "--global_batch_size=4",
    "--warmup_steps=3",
    "--folds=3",
    "--fold=2",
    "--rotation_degrees=180",
    "--dropout=0.3",
    "--normalization=batch",
    "--weight_decay=1e-3",
    "--clip_norm=1",
    "--deterministic",
]
"""A small run in which everything that depends on the step takes part."""
TINY = [
    MEMBRANE,
    "--crop_size=32",
    "--base_filters=2",
    "--depth=1",
    "--global_batch_size=2",
    "--precision=float32",
    "--eval_every_steps=2",
    "--checkpoint_every_steps=2",
    "--report_every_steps=2",
    "--folds=3",
    "--fold=2",
]
"""The smallest run that is evaluated and saved every two steps."""


def write_slices(folder, *, test_slices=1):
    """Writes six slices of 64x64 with masks, and some to predict, to a new folder; returns it."""
    synthetic.write_dataset(folder / "data", train_slices=6, test_slices=test_slices, size=64)
    return folder / "data"


def in_a_process(*args, cwd=ROOT, **kwargs):
    """Runs the program in a process of its own and returns what became of it."""
    return subprocess.run(
        [sys.executable, str(ROOT / "train_loop.py"), *map(str, args)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        **kwargs,
    )


def check_refused(result, *words):
    """Checks for one message with all of `words`, exit code 2 and no traceback."""
    code, _, err = result
    message = err[err.index("train_loop: ") :]
    assert code == 2
    assert "Traceback" not in err
    for word in words:
        assert str(word) in message
