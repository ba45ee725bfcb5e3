"""`--mode=merge`: predictions and scores of all shares, put together."""

from __future__ import annotations

import pathlib

from unet_core.errors import UserError
from unet_core.outputs.merge import MergedPredictions, merge_predictions
from unet_core.reports.evaluation import describe_scores, write_overview
from unet_core.reports.shares import merge_scores
from unet_core.run_directory import RunDirectory, write_scores
from unet_core.runs.finished_run import check_used, required
from unet_core.runs.process import StopRequest
from unet_core.settings import RunConfig

_MOST_NAMED = 5


def merge(config: RunConfig, stop: StopRequest) -> None:  # noqa: ARG001
    """Puts together what the processes with a `shard` have left in a folder.

    Raises:
        UserError: If there is nothing, a share is missing, or shares do not go together.
    """
    check_used(config)
    claim = None
    if config.prediction.output_dir:
        folder = pathlib.Path(config.prediction.output_dir)
    else:
        run = RunDirectory(required(config, "run_dir"))
        folder, claim = run.predictions, run.claim
    scored = merge_scores(folder)
    predicted = merge_predictions(folder, claim=claim)
    if scored is None and predicted is None:
        raise UserError(
            f"{folder}: no share was predicted or scored there. Start `mode` predict or evaluate "
            "for each `shard` with this `output_dir` first."
        )
    if scored is not None:
        write_overview(folder, scored.result, scored.classes)
        write_scores(folder, {**scored.how, **scored.result})
        print(f"\n{describe_scores(scored.result, scored.classes)}\n")
        print(f"Scores of {scored.shares} shares together: {folder / 'scores.json'}")
    if predicted is not None:
        _tell(folder, predicted)


def _tell(folder: pathlib.Path, merged: MergedPredictions) -> None:
    """Says what was merged.

    Raises:
        UserError: If pictures could not be predicted, as the command for one share does.
    """
    print(f"{merged.pictures} image(s) of {merged.shares} shares together: {folder}")
    if merged.failed:
        named = ", ".join(merged.failed[:_MOST_NAMED]) + ", ..." * (
            len(merged.failed) > _MOST_NAMED
        )
        raise UserError(
            f"{len(merged.failed)} of {merged.pictures} image(s) could not be predicted, as their "
            f"shares have told; the others are merged: {named}"
        )
