"""README.md and docs: links lead somewhere, and the files of a run are described."""

import fnmatch
import json
import pathlib
import re

import numpy as np
import pytest

from unet_core.data.classes import ClassMap
from unet_core.data.reader import Pair
from unet_core.reports.evaluation import Evaluation
from unet_core.reports.scores_file import Scores

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"!?\[[^\]]*\]\(([^()\s]+)\)")
# Code: what stands in it is no link and no heading.
FENCE = re.compile(r"^```.*?^```", re.M | re.S)


def named(path):
    return str(path.relative_to(ROOT))


def anchors(text):
    """Returns those that GitHub and Python-Markdown make of the headings of a page."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.M):
        heading = re.sub(r"[^\w\- ]", "", heading.lower())
        found.add(re.sub(r"[- ]+", "-", heading.strip()))
    return found


def wrong_links(page):
    """Returns the links of a page to files or headings that are not there."""
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        if not path.is_file() or (anchor and anchor not in anchors(path.read_text())):
            yield target


class TestLinks:
    @pytest.mark.parametrize("page", PAGES, ids=named)
    def test_lead_to_files_and_headings_that_are_there(self, page):
        assert not list(wrong_links(page))

    def test_that_lead_nowhere_are_found(self, tmp_path):
        (tmp_path / "a.md").write_text("# A `b.json` and more\n\n```\n# c\n[d](e.md)\n```\n")
        page = tmp_path / "page.md"
        page.write_text(
            "[1](a.md) [2](a.md#a-bjson-and-more) [3](a.md#c) ![4](no.jpg) [5](#no) [6](http://x)"
        )
        assert list(wrong_links(page)) == ["a.md#c", "no.jpg", "#no"]

    def test_of_the_pages_stay_among_them(self):
        """So that they lead somewhere on the site too."""
        pages = (ROOT / "docs").rglob("*.md")
        found = {named(page): LINK.findall(page.read_text()) for page in pages}
        assert not {
            name: target for name, all_ in found.items() for target in all_ if "../" in target
        }

    def test_pages_named_in_code_are_there(self):
        code = [path for room in ("unet_core", "examples") for path in (ROOT / room).rglob("*.py")]
        assert len(code) > 50
        wrong = [
            f"{named(path)}: {name}"
            for path in [*code, *ROOT.glob("*.flags"), *PAGES]
            for name in re.findall(r"\bdocs/[\w/]+\.\w+", path.read_text())
            if not (ROOT / name).is_file()
        ]
        assert not wrong

    def test_every_page_can_be_reached_from_the_readme_and_the_site(self):
        readme, site = (ROOT / "README.md").read_text(), (ROOT / "mkdocs.yml").read_text()
        for path in (ROOT / "docs").rglob("*.md"):
            name = path.relative_to(ROOT / "docs").as_posix()
            assert f" {name}\n" in site
            assert f"(docs/{name})" in readme or name == "index.md" or name.startswith("api/")


class TestFilesOfARun:
    PAGE = (ROOT / "docs" / "files.md").read_text()

    def test_every_key_of_the_scores_is_described(self):
        for name in Scores.__struct_fields__:
            assert re.search(rf"^\| .*`{name}`.* \| .+ \|", self.PAGE, re.M), name

    def test_every_score_is_described(self):
        classes = ClassMap.parse("0:membrane,255:cell")
        evaluation = Evaluation(classes, object_class="cell", baseline=True)
        mask = np.zeros((8, 8), np.uint8)
        mask[2:6, 2:6] = 1
        image = mask * 200
        probabilities = np.stack([1 - mask, mask], -1).astype(np.float32)
        evaluation.add(Pair("a", image, mask), probabilities)
        found = evaluation.result({"v_rand": 0.5, "v_info": 0.5})["scores"]
        assert "v_rand/chosen" in found
        for name in found:
            name = re.sub("/(membrane|cell)$", "/<class>", name)
            assert f"`{name}`" in self.PAGE, name


class TestDockerfile:
    """It cannot be built here: that its commands are those of the README is what is checked."""

    TEXT = (ROOT / "Dockerfile").read_text()

    def commands(self):
        """Returns the commands of its stages: what is run to build one, and then in it."""
        for stage in re.split(r"^FROM ", self.TEXT, flags=re.M)[2:]:
            extras = re.search(r"^ARG EXTRAS=(.*)$", stage, re.M)
            install = re.search(r"^RUN (.*)$", stage, re.M)[1].replace('"', "'")
            words = re.findall(r"^(?:ENTRYPOINT|CMD) (\[.*\])$", stage, re.M)
            run = " ".join(word for part in words for word in json.loads(part))
            yield f"{install} && {run}".replace("$EXTRAS", extras[1] if extras else "")

    def test_its_commands_are_the_two_of_the_readme(self):
        readme = (ROOT / "README.md").read_text()
        commands = list(self.commands())
        assert len(commands) == 2
        for command in commands:
            assert f"\n    {command}\n" in readme

    def test_context_has_what_git_has_and_nothing_that_git_ignores(self):
        """Patterns of .gitignore and .dockerignore differ in their slashes alone."""
        left_out = {line.strip("/") for line in (ROOT / ".gitignore").read_text().split()}
        docker = (ROOT / ".dockerignore").read_text().split()
        for name in left_out:
            assert any(fnmatch.fnmatch(name, pattern.removeprefix("**/")) for pattern in docker), (
                name
            )
