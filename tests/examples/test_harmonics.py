import pathlib
import re

from helpers import forked

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "harmonics.py"


class TestHarmonics:
    def test_is_at_most_25_lines_and_learns(self):
        assert len(EXAMPLE.read_text().splitlines()) <= 25
        code, out = forked.run_file(EXAMPLE)
        assert code == 0, out
        losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", out)]
        assert len(losses) == 5
        # The variance of sin(x) + 0.3 sin(2x) on [-3, 3] is about 0.6.
        assert losses[-1] < 0.01 < losses[0]
