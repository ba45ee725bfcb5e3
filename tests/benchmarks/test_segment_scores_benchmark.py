"""The benchmark of V_Rand and V_Info on a tiny stack: a row per threshold, and figures in it."""

import pathlib
import re
import subprocess
import sys

import pytest

from unet_core.scores import SEGMENT_THRESHOLDS

pytest.importorskip("skimage", reason="V_Rand and V_Info need scikit-image")
ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
class TestSegmentScores:
    def test_every_threshold_has_a_row_of_positive_figures(self):
        done = subprocess.run(
            [sys.executable, "benchmarks/segment_scores.py", "--slices=2", "--size=96"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        rule = next(number for number, line in enumerate(lines) if line.startswith("---"))
        rows = [re.split(r"\s{2,}", line) for line in lines[rule + 1 :]]
        assert [row[0] for row in rows[:-1]] == [f"{t:g}" for t in SEGMENT_THRESHOLDS[:-1]]
        assert rows[-1][0] == "just below 1"
        for _, v_rand, v_info, milliseconds, spread in rows:
            low, high = map(float, spread.split("-"))
            assert 0 < float(v_rand) <= 1
            assert 0 <= float(v_info) <= 1
            assert 0 < low <= float(milliseconds) <= high
