"""The scores and the curves of a finished run, read back as TensorBoard reads them."""

import numpy as np
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.util import tensor_util

from unet_core.reports.final_events import precision_recall, write_final
from unet_core.reports.scores_file import BINS, Histogram
from unet_core.run_directory import RunDirectory


def counts(**by_bin):
    found = [0] * BINS
    for name, count in by_bin.items():
        found[int(name[1:])] = count
    return found


CURVE = "precision_recall/a/pr_curves"
# Of the class 3 pixels have a probability in [0.20, 0.21), 5 in [0.90, 0.91); of the others 4 in
# [0.20, 0.21) and 8 in [0, 0.01).
HISTOGRAM = Histogram(of_class=counts(b20=3, b90=5), of_others=counts(b0=8, b20=4))


def test_curve_has_the_counts_at_every_threshold():
    found, precision, recall = precision_recall(HISTOGRAM)
    right, wrong, left_out, missed = found
    assert {len(each) for each in (*found, precision, recall)} == {BINS + 1}
    # Threshold: found rightly, found wrongly, left out rightly, left out wrongly.
    for threshold, expected in {
        0: (8, 12, 0, 0),
        1: (8, 4, 8, 0),
        20: (8, 4, 8, 0),
        21: (5, 0, 12, 3),
        90: (5, 0, 12, 3),
        91: (0, 0, 12, 8),
        100: (0, 0, 12, 8),
    }.items():
        assert tuple(each[threshold] for each in (right, wrong, left_out, missed)) == expected
    np.testing.assert_allclose(precision[[0, 20, 21, 91]], [8 / 20, 8 / 12, 1, 0])
    np.testing.assert_allclose(recall[[0, 20, 21, 91]], [1, 1, 5 / 8, 0])


def write(run, dice):
    scores = {"dice/a": dice, "dice/b": None, "dice/mean": dice}
    lists = {"of_class": HISTOGRAM.of_class, "of_others": HISTOGRAM.of_others}
    run.write_scores(
        {
            "step": 12,
            "scores": scores,
            "confusion": [[1, 0], [0, 1]],
            "per_image": {"x": {"dice/mean": dice}},
            "probabilities": {"a": lists},
        }
    )
    write_final(run)


def test_files_hold_scores_and_curves_of_the_last_call_alone(tmp_path):
    run = RunDirectory(tmp_path)
    write(run, 0.25)
    write(run, 0.75)
    events = event_accumulator.EventAccumulator(str(run.events / "final"), {"tensors": 0})
    events.Reload()
    # A score that is not defined has no point.
    tags = {"dice/a", "dice/mean", CURVE}
    assert set(events.Tags()["tensors"]) == tags
    (score,) = events.Tensors("dice/a")
    assert (score.step, float(tensor_util.make_ndarray(score.tensor_proto))) == (12, 0.75)
    (curve,) = events.Tensors(CURVE)
    rows = tensor_util.make_ndarray(curve.tensor_proto)
    # TensorBoard's order: found rightly, found wrongly, left out rightly and wrongly, the two.
    assert rows.shape == (6, BINS + 1)
    np.testing.assert_allclose(rows[:, 20], [8, 4, 8, 0, 8 / 12, 1], rtol=1e-6)
    assert events.SummaryMetadata(CURVE).plugin_data.plugin_name == "pr_curves"
