"""The benchmark of other people's programs on few steps: the rows are all there and the figures are
figures.
"""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def run(*args):
    return subprocess.run(
        [sys.executable, "benchmarks/foreign_programs.py", *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
class TestForeignPrograms:
    def test_every_program_asked_for_has_a_row_of_positive_figures(self):
        done = run("--rounds=2", "--steps=2", "--programs", "fine_tuning", "vae", "resumed_run")
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        rule = next(number for number, line in enumerate(lines) if line.startswith("---"))
        rows = {name: cells for name, *cells in (re.split(r"\s{2,}", i) for i in lines[rule + 1 :])}
        assert list(rows) == ["fine_tuning", "vae", "resumed_run", "all"]
        (total,) = rows.pop("all")
        assert int(total) == sum(int(cells[0]) for cells in rows.values())
        for _, *figures, spread in rows.values():
            low, high = map(float, spread.split("-"))
            assert all(float(figure) > 0 for figure in figures)
            assert low <= float(figures[-1]) <= high

    def test_unknown_program_is_refused(self):
        done = run("--programs", "autoencoder")
        assert done.returncode == 2
        assert "autoencoder" in done.stderr
        assert "Traceback" not in done.stderr
