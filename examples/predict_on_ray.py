"""Predicts a folder of pictures by Ray Data: a pool of processes, here or on a cluster.

    pip install '.[ray]'
    python examples/predict_on_ray.py runs/membrane my_slices my_masks --actors=4

It writes the masks of `--mode=predict --outputs=mask`, by the threshold 0.5 and without
post-processing. Each process holds the network for as long as it lives. On a cluster, start it on a
node of it; all three folders must be on storage that every node sees under one path. With GPUs,
`--gpus=1` gives each process one.
"""

import argparse
import pathlib
import sys

import ray
import ray.data

from unet_core.data.layouts.find import find_images
from unet_core.errors import UserError
from unet_core.inference import Predictor
from unet_core.inference.masks import usual_rule, write_mask
from unet_core.outputs.wanted import stems


class Segmenter:
    """Holds a network, and writes the masks of the pictures it is given."""

    def __init__(self, run_dir: str, output_dir: str):
        self._predictor = Predictor(run_dir)
        self._output_dir = pathlib.Path(output_dir)

    def __call__(self, batch: dict) -> dict:
        """Takes columns, `path` and `name`, and adds `problem`, empty if a mask was written."""
        pairs = zip(batch["path"], batch["name"], strict=True)
        return batch | {"problem": [self._write(str(path), str(name)) for path, name in pairs]}

    def _write(self, path: str, name: str) -> str:
        classes = self._predictor.classes
        try:
            ids = usual_rule(classes)(self._predictor(path))
        except UserError as error:
            return str(error)
        write_mask(self._output_dir / name, ids, classes, "values")
        return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run_dir", help="folder of a run, of folds or of an export")
    parser.add_argument("input", help="a folder of pictures, or a glob in quotes")
    parser.add_argument("output_dir", help="where the masks go")
    parser.add_argument("--actors", type=int, default=2, help="processes that hold the network")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each, such as 1 or 0.5")
    given = parser.parse_args()
    notes: list[str] = []
    problems: list[str] = []
    try:
        sources = find_images(given.input, notes=notes, problems=problems)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    for note in notes:
        print(note)
    if stacks := {str(source.path) for source in sources if source.page}:
        print(f"{min(stacks)}: has several pages; use train_loop.py --shard.", file=sys.stderr)
        return 2
    run_dir, output_dir = (
        pathlib.Path(each).resolve() for each in (given.run_dir, given.output_dir)
    )
    output_dir.mkdir(parents=True, exist_ok=True)
    pictures = ray.data.from_items(
        [
            {"path": str(source.path.resolve()), "name": name}
            for source, name in zip(sources, stems(sources), strict=True)
        ]
    )
    masks = pictures.map_batches(
        Segmenter,
        fn_constructor_args=(str(run_dir), str(output_dir)),
        compute=ray.data.ActorPoolStrategy(size=given.actors),
        num_gpus=given.gpus or None,
    )
    failures = [row["problem"] for row in masks.iter_rows() if row["problem"]]
    print(f"{len(sources) - len(failures)} of {len(sources)} masks are in {output_dir}.")
    problems += failures
    for problem in problems:
        print(problem, file=sys.stderr)
    return 2 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
