import json
import re

import pytest

from unet_core.errors import UserError
from unet_core.reports.choice import Together
from unet_core.run_directory import RunDirectory
from unet_core.runs import choose
from unet_core.runs.chosen import is_of, read_chosen
from unet_core.settings import RunConfig

USE = {"weights": "best", "tta": "none", "threshold": "cell:0.4", "steps": [3, 6]}
USE |= {"fill_holes": ["cell"]}


@pytest.fixture
def run(tmp_path):
    write(tmp_path, {"format": 1, "chosen": USE, "rows": []})
    return RunDirectory(tmp_path)


def write(folder, content):
    (folder / "choice.json").write_text(json.dumps(content))


def config(mode="predict", **given):
    return RunConfig.of(mode=mode, **given)


class TestReadChosen:
    def test_takes_the_place_of_what_is_not_given(self, run, capsys):
        given = config(threshold="0.7")
        found = read_chosen(run, given).applied(given.replace(tta="flips"))
        # What the run has in place of `tta` is not given.
        names = ("weights", "tta", "threshold", "fill_holes", "keep_largest")
        assert [found[name] for name in names] == ["best", "none", "0.7", ("cell",), ()]
        assert "--weights=best --tta=none --fill_holes=cell\n" in capsys.readouterr().out

    @pytest.mark.parametrize("given", [{"weights": "last"}, {"tta": "dihedral"}])
    def test_is_left_aside_with_other_weights_or_copies(self, run, capsys, given):
        assert read_chosen(run, config(**given)) is None
        ((name, value),) = given.items()
        assert f"not chosen with --{name}={value}" in capsys.readouterr().out

    def test_same_weights_may_be_given(self, run):
        assert read_chosen(run, config(weights="best")).threshold == "cell:0.4"

    def test_modes_that_choose_or_train_do_without(self, run):
        assert read_chosen(run, config("choose")) is None
        assert read_chosen(run, config("train")) is None

    def test_of_a_version_before_or_none_there_is_nothing(self, run):
        write(run.path, {"format": 1, "rows": []})
        assert read_chosen(run, config()) is None
        (run.path / "choice.json").unlink()
        assert read_chosen(run, config()) is None

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"weights": "worst"}, "`weights`"),
            ({"threshold": "much"}, "`threshold`"),
            ({"steps": "3"}, "steps"),
            ({"run_dir": "/elsewhere"}, "run_dir"),
        ],
    )
    def test_what_is_no_choice_is_named(self, run, change, words):
        write(run.path, {"format": 1, "chosen": USE | change})
        with pytest.raises(UserError, match=rf"choice\.json.*{words}.*choose again"):
            read_chosen(run, config())

    def test_export_averages_no_copies_so_it_takes_no_threshold_of_them(self, run):
        write(run.path, {"format": 1, "chosen": USE | {"tta": "flips"}})
        given = config("export")
        found = read_chosen(run, given).applied(given)
        assert (found["weights"], found["threshold"]) == ("best", "0.5")


class TestIsOf:
    def test_other_networks_are_said(self, run, capsys):
        chosen = read_chosen(run, config())
        assert is_of(chosen, [3, 6])
        assert not is_of(chosen, [3, 9])
        assert "steps 3, 6, and these are of 3, 9" in capsys.readouterr().err


class TestToldTogether:
    def test_without_images_that_no_fold_was_trained_on_there_is_no_number(self):
        text = choose._told_together(None, "dice/cell")
        assert text.startswith("All networks together cannot be scored on these images")
        assert not re.search(r"[0-9]", text)

    def test_networks_alone_stand_beside_their_mean(self):
        text = choose._told_together(Together(2, (0.5, 0.7), 0.8), "dice/cell")
        assert "one network alone 0.6000 on average (0.5000 to 0.7000)" in text
        assert "the mean of all 2 networks 0.8000" in text
