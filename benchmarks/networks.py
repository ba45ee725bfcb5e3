"""Which network and recipe is best, at equal compute: candidates on folds of the membrane slices.

    python benchmarks/networks.py --data_dir=data/membrane --tflop=10,40 --folds=0
    python benchmarks/networks.py --data_dir=data/membrane --rows=base,stem --folds=0,1,2,3

Every candidate is `membrane.flags` with the settings of `PLAIN`, a plain U-Net in a plain recipe,
and those of its row in `CANDIDATES`. It trains for as many steps as its compute allows:
floating-point operations of all training steps, counted by formula (`unet_core.models.flops`), so
that the figure does not depend on the machine. Each run is a process of its own, in a folder of its
own under `--runs`; one that is finished there is not done again. Scores are those of the held-out
slices, one pass, thresholds as `scores.json` has them.

Fold 4 is not for choosing: it confirms the choice.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from rounds import machine

from unet_core.drawing import tables
from unet_core.inference.trained import build_network
from unet_core.models.flops import training_flops
from unet_core.settings import RunConfig

ROOT = pathlib.Path(__file__).parent.parent
SLOW_START = 0.1
"""Share of the steps in which the learning rate rises."""

PLAIN: dict[str, Any] = {
    "stem_stride": 1,
    "normalization": "none",
    "global_batch_size": 4,
    "learning_rate": 1e-3,
}
"""Where all candidates start from."""

_STEM = {"stem_stride": 2, "global_batch_size": 2}
_BATCH_NORM = {**_STEM, "normalization": "batch"}
_AVERAGED = {**_BATCH_NORM, "learning_rate": 3e-3, "ema_decay": 0.99}

CANDIDATES: dict[str, dict[str, Any]] = {
    "base": {},
    "width16": {"base_filters": 16},
    "width8": {"base_filters": 8},
    "depth3": {"depth": 3},
    "depth5": {"depth": 5, "max_filters": 512},
    "stem": {"stem_stride": 2},
    "stem_width48": {"stem_stride": 2, "base_filters": 48},
    "stem_width64": {"stem_stride": 2, "base_filters": 64},
    "stem_depth3_width64": {"stem_stride": 2, "base_filters": 64, "depth": 3},
    "stem_batch": {"stem_stride": 2, "normalization": "batch"},
    "stem_deep": {"stem_stride": 2, "deep_supervision": True},
    "stem_residual": {"stem_stride": 2, "encoder": "residual", "normalization": "batch"},
    "stem_batch1": {"stem_stride": 2, "global_batch_size": 1},
    "stem_batch2": _STEM,
    "stem_batch2_norm": _BATCH_NORM,
    "stem_batch2_norm_rate3e-3": {**_BATCH_NORM, "learning_rate": 3e-3},
    "stem_batch2_norm_rate1e-2": {**_BATCH_NORM, "learning_rate": 1e-2},
    "stem_batch2_norm_average": _AVERAGED,
    "stem_batch2_norm_average_rate6e-3": {**_AVERAGED, "learning_rate": 6e-3},
    "stem_batch2_residual": {**_AVERAGED, "encoder": "residual"},
    "stem_batch2_deep": {**_AVERAGED, "deep_supervision": True},
    "stem_batch2_silu": {**_AVERAGED, "activation": "silu"},
    "stem_batch2_width48": {**_AVERAGED, "base_filters": 48},
    "stem_batch2_width64": {**_AVERAGED, "base_filters": 64},
    "stem_batch2_crop384": {**_AVERAGED, "crop_size": 384},
    "stem_batch2_border": {**_AVERAGED, "border_weight": 5},
    "stem_batch2_turns": {
        **_AVERAGED,
        "rotation_share": 0.0,
        "scale_share": 0.0,
        "elastic_px": 0.0,
        "quarter_turns": True,
    },
    "stem_batch2_some": {
        **_AVERAGED,
        "rotation_share": 0.3,
        "scale_share": 0.3,
        "quarter_turns": True,
    },
    "stem_batch2_attention": {**_AVERAGED, "decoder": "attention"},
    "width16_batch2_norm": {**_AVERAGED, "stem_stride": 1, "base_filters": 16},
    "stem_crop384": {"stem_stride": 2, "global_batch_size": 2, "crop_size": 384},
    "residual": {"encoder": "residual", "normalization": "batch"},
    "deep": {"deep_supervision": True},
    "batch": {"normalization": "batch"},
    "group": {"normalization": "group"},
    "instance_leaky": {"normalization": "instance", "activation": "leaky_relu"},
    "silu": {"activation": "silu"},
    "batch1": {"global_batch_size": 1},
    "batch2": {"global_batch_size": 2},
    "crop128": {"crop_size": 128},
    "rate3e-3": {"learning_rate": 3e-3},
    "rate3e-4": {"learning_rate": 3e-4},
    "average": {"ema_decay": 0.99},
    "upsample": {"decoder": "upsample"},
}
"""What each candidate changes in that."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", type=pathlib.Path, required=True)
    parser.add_argument("--rows", type=_names, default=list(CANDIDATES), metavar="NAME,...")
    parser.add_argument("--tflop", type=_numbers, default=[10.0, 40.0], metavar="N,...")
    parser.add_argument("--folds", type=_folds, default=[0], metavar="N,...", help="0 to 3")
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/networks"))
    parser.add_argument("--flags", nargs="*", default=[], help="more flags, for all candidates")
    args = parser.parse_args()
    print(machine())
    rows = []
    for tflop in args.tflop:
        for name in args.rows:
            settings = {**_settings_of_file(), **PLAIN, **CANDIDATES[name]}
            steps = steps_within(settings, tflop * 1e12)
            found = [_scored(args, name, steps, tflop, fold) for fold in args.folds]
            dice, v_rand, seconds = (
                statistics.mean(run[key] for run in found)
                for key in ("dice/membrane", "v_rand", "seconds")
            )
            rows.append(
                [name, f"{tflop:g}", str(steps), f"{dice:.4f}", f"{v_rand:.4f}", f"{seconds:.0f}"]
            )
            print(" ".join(map(str, rows[-1])), flush=True)
    header = ["candidate", "TFLOP", "steps", "membrane Dice", "V_Rand", "training s"]
    print(tables.table(header, rows))


def steps_within(settings: dict[str, Any], operations: float) -> int:
    """Returns how many steps of these settings take so many floating-point operations, >= 1."""
    config = RunConfig.of(**{"classes": "0:membrane,255:cell", **settings})
    crop = config.data.crop_size
    step = training_flops(build_network(config), config.training.global_batch_size, crop, crop)
    return max(round(operations / step), 1)


def _scored(
    args: argparse.Namespace,
    name: str,
    steps: int,
    tflop: float,
    fold: int,
) -> dict[str, float]:
    """Trains one candidate on one fold, unless it is done, and returns its scores and seconds."""
    run = args.runs / f"{name}-{tflop:g}-fold{fold}"
    took = run.with_suffix(".seconds")
    if not took.exists():
        flags = {
            **PLAIN,
            **CANDIDATES[name],
            "data_dir": _training_slices(args).resolve(),
            "run_dir": run.resolve(),
            "fold": fold,
            "train_steps": steps,
            "warmup_steps": int(steps * SLOW_START),
            "eval_every_steps": steps,
            "checkpoint_every_steps": steps,
            "tta": "none",
        }
        command = [sys.executable, "train_loop.py", "--flagfile=membrane.flags"]
        command += ["--nosynthetic_data", *(f"--{key}={value}" for key, value in flags.items())]
        run.parent.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        done = subprocess.run(
            [*command, *args.flags], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"{name}: {done.stderr[-3000:]}")
        took.write_text(f"{time.perf_counter() - start:.1f}\n")
    scores = json.loads((run / "scores.json").read_text())["scores"]
    return {**scores, "seconds": float(took.read_text())}


def _training_slices(args: argparse.Namespace) -> pathlib.Path:
    """Returns a folder of the training slices alone, so that no test slices are predicted."""
    folder = args.runs / "data"
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "train"
    if not link.exists():
        link.symlink_to((args.data_dir / "train").resolve(), target_is_directory=True)
    return folder


def _settings_of_file() -> dict[str, Any]:
    """Returns the settings of `membrane.flags` that decide how much a step computes."""
    lines = (ROOT / "membrane.flags").read_text().splitlines()
    given = dict(line[2:].split("=", 1) for line in lines if "=" in line and line[:2] == "--")
    numbers = ("depth", "base_filters", "crop_size")
    fixed = {"classes": given["classes"], "precision": "float32"}
    return {**fixed, **{key: int(given[key]) for key in numbers}}


def _names(text: str) -> list[str]:
    names = text.split(",")
    unknown = sorted(set(names) - set(CANDIDATES))
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(CANDIDATES)}")
    return names


def _numbers(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


def _folds(text: str) -> list[int]:
    folds = [int(fold) for fold in text.split(",")]
    if not set(folds) <= set(range(4)):
        raise argparse.ArgumentTypeError("folds to choose by are 0 to 3")
    return folds


if __name__ == "__main__":
    main()
