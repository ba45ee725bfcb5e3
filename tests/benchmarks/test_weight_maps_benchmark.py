"""The benchmark of border weights on tiny masks: the rows are all there and the figures are
figures.
"""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
class TestWeightMaps:
    def test_every_kind_of_mask_has_a_row_of_positive_figures(self):
        done = subprocess.run(
            [sys.executable, "benchmarks/weight_maps.py", "--rounds=2", "--size=96"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        rule = next(number for number, line in enumerate(lines) if line.startswith("---"))
        rows = {name: cells for name, *cells in (re.split(r"\s{2,}", i) for i in lines[rule + 1 :])}
        assert list(rows) == [
            "membranes",
            "membranes, instance ids",
            "nuclei",
            "nuclei, instance ids",
        ]
        for cells, seconds, spread in rows.values():
            low, high = map(float, spread.split("-"))
            assert int(cells) > 0
            assert 0 < low <= float(seconds) <= high
