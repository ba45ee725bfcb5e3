import pathlib

from unet_core.settings import FIELDS
from unet_core.settings.describe import (
    BEGIN,
    END,
    help_text,
    markdown_table,
    overview,
    write_documentation,
)

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

    def test_page_holds_the_table_of_these_settings(self):
        assert markdown_table() in (ROOT / "docs" / "flags.md").read_text()

    def test_readme_holds_the_overview_of_these_settings(self):
        text = (ROOT / "README.md").read_text()
        assert text.partition(BEGIN)[2].partition(END)[0].strip() == overview()

    def test_writing_changes_nothing_but_the_tables(self, tmp_path):
        (tmp_path / "docs").mkdir()
        (tmp_path / "README.md").write_text(f"a\n{BEGIN}\nold\n{END}\nb\n")
        write_documentation(tmp_path)
        assert (tmp_path / "README.md").read_text() == (f"a\n{BEGIN}\n\n{overview()}\n\n{END}\nb\n")
