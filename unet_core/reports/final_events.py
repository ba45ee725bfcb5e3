"""What TensorBoard shows of a finished run: its scores, and curves of precision and recall.

write_final(run)        # once its scores.json is written

The scores have the tags of the evaluations in `events/held_out`, so they are points in the same
charts, and the metrics of the HParams tab.
"""

from __future__ import annotations

import numpy as np
from tensorboard.plugins.pr_curve import summary as pr_curve

from unet_core.reports.scores_file import BINS, Histogram, read_scores
from unet_core.run_directory import RunDirectory
from unet_core.training import SummaryWriter


def write_final(run: RunDirectory) -> None:
    """Writes the scores of a run to `events/final`, in place of what an earlier call has written.

    Raises:
        UserError: If its `scores.json` cannot be read.
    """
    what, way = "the scores of this run", "Move it away and start the same command again."
    scores = read_scores(run.path / "scores.json", what=what, way=way)
    step = scores.step or 0
    with SummaryWriter(run.events / "final") as writer:
        found = {name: value for name, value in scores.scores.items() if value is not None}
        writer.scalars(step, found)
        for name, histogram in scores.probabilities.items():
            counts, precision, recall = precision_recall(histogram)
            summary = pr_curve.raw_data_pb(
                f"precision_recall/{name}",
                *counts,
                precision=precision,
                recall=recall,
                num_thresholds=BINS + 1,
            )
            writer.raw(step, summary.SerializeToString())


def precision_recall(histogram: Histogram) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Returns what is found at the thresholds 0, 1 / BINS, ..., 1, a pixel at or above being found.

    The first are the pixels found rightly, found wrongly, left out rightly and left out wrongly,
    then come precision and recall. Both are 0 where they are not defined, as TensorBoard has them.
    """
    of_class, of_others = (
        np.append(np.cumsum(np.array(counts, np.float64)[::-1])[::-1], 0.0)
        for counts in (histogram.of_class, histogram.of_others)
    )
    counts = [of_class, of_others, of_others[0] - of_others, of_class[0] - of_class]
    precision = of_class / np.maximum(of_class + of_others, 1)
    recall = of_class / max(of_class[0], 1)
    return counts, precision, recall
