"""Makes a golden run folder of the present version: python tests/golden/make.py NAME"""

import pathlib
import shutil
import subprocess
import sys

FOLDER = pathlib.Path(__file__).parent
ROOT = FOLDER.parents[1]
FLAGS = [
    "--classes=0:membrane,255:cell",
    "--folds=3",
    "--fold=2",
    "--crop_size=16",
    "--base_filters=2",
    "--depth=1",
    "--normalization=batch",
    "--dropout=0.2",
    "--ema_decay=0.9",
    "--loss=cross_entropy,batch_dice",
    "--augment=paper",
    "--global_batch_size=2",
    "--precision=float32",
    "--train_steps=4",
    "--warmup_steps=1",
    "--eval_every_steps=2",
    "--checkpoint_every_steps=2",
    "--report_every_steps=2",
    "--schedule_steps=8",
    "--deterministic",
]
"""What every later version must understand."""


def main(name: str) -> None:
    run = FOLDER / name
    command = [sys.executable, "train_loop.py", *FLAGS, f"--run_dir={run}"]
    subprocess.run([*command, f"--data_dir={FOLDER / 'data'}"], cwd=ROOT, check=True)
    for extra in ("events", "held_out", "predictions"):
        shutil.rmtree(run / extra)
    for picture in run.glob("*.png"):
        picture.unlink()
    # The paths of the machine it was made on tell nothing.
    for path in run.rglob("*.json"):
        path.write_text(path.read_text().replace(f"{ROOT}/", ""))


if __name__ == "__main__":
    main(sys.argv[1])
