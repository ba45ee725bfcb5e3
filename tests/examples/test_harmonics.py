import pathlib
import re
import subprocess
import sys

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "harmonics.py"


class TestHarmonics:
    def test_is_at_most_25_lines_and_learns(self):
        assert len(EXAMPLE.read_text().splitlines()) <= 25
        done = subprocess.run(
            [sys.executable, str(EXAMPLE)],
            cwd=EXAMPLE.parents[1],
            env={"PYTHONPATH": str(EXAMPLE.parents[1]), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=400,
            check=True,
        )
        losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", done.stdout)]
        assert len(losses) == 5
        # The variance of sin(x) + 0.3 sin(2x) on [-3, 3] is about 0.6.
        assert losses[-1] < 0.01 < losses[0]
