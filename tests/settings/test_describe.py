import pathlib

from unet_core.settings import FIELDS
from unet_core.settings.describe import help_text, markdown_table, overview, write_documentation

ROOT = pathlib.Path(__file__).parents[2]


class TestHelpText:
    def test_every_flag_stands_once_with_range_default_and_help(self):
        text = help_text()
        for name in FIELDS:
            assert (
                sum(
                    line.split("=")[0].strip()
                    in (
                        f"--{name}",
                        f"--[no]{name}  (default off)",
                        f"--[no]{name}  (default on)",
                        f"--[no]{name}",
                    )
                    for line in text.splitlines()
                )
                == 1
            ), name
        assert "  --depth=1..8  (default 4)\n      Number of poolings" in text
        assert "  --scale=LOW,HIGH in 0.01..100\n" in text
        assert "  --tta=none|flips|dihedral  (default none)\n" in text

    def test_words_that_people_search_for_are_there(self):
        text = " ".join(help_text().lower().split())
        for word in (
            "gradient accumulation",
            "mixed precision",
            "test-time augmentation",
            "sliding window",
            "ground truth",
            "batch size",
            "exponential moving average",
            "reproducible",
            "cross-validation",
            "mirroredstrategy",
        ):
            assert word in text, word

    def test_lines_fit_a_terminal_of_a_hundred_columns(self):
        assert max(map(len, help_text().splitlines())) <= 100


class TestDocumentation:
    """If one fails: python -m unet_core.settings.describe"""

    def test_page_holds_the_tables_of_these_settings(self, tmp_path):
        (tmp_path / "docs").mkdir()
        write_documentation(tmp_path)
        written = (tmp_path / "docs" / "flags.md").read_text()
        assert written == (ROOT / "docs" / "flags.md").read_text()
        assert overview() in written
        assert markdown_table() in written
