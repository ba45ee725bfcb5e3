"""`--mode=sweep`: many runs over ranges of settings."""

import csv

import pytest
from helpers.program import TINY, check_refused, write_slices

from unet_core.errors import UserError
from unet_core.runs import sweep, train
from unet_core.runs.sweep import Range

pytest.importorskip("optuna", reason="the package optuna is not installed")

SMALL = [
    *TINY,
    "--mode=sweep",
    "--depth=1",
    "--train_steps=4",
    "--sweep=learning_rate=1e-4..1e-1,normalization=none|batch",
]


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    return write_slices(tmp_path_factory.mktemp("slices"), test_slices=0)


def table(folder):
    with (folder / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


class TestRange:
    def test_numbers_and_values(self):
        assert Range.parse("learning_rate=1e-4..1e-2") == Range("learning_rate", 1e-4, 1e-2)
        assert Range.parse("encoder=unet|residual") == Range("encoder", values=("unet", "residual"))
        assert Range.parse("base_filters=16|32").read("32") == 32
        assert Range.parse("flips=true|false").read("false") is False
        assert Range.parse("freeze=encoder+head|encoder").read("encoder+head") == (
            "encoder",
            "head",
        )

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("speed=1..2", "the name of a setting"),
            ("learning_rate", "the name of a setting"),
            ("run_dir=a|b", "run_dir cannot be varied"),
            ("input=a|b", "input cannot be varied"),
            ("learning_rate=a..b", "LOW and HIGH are numbers"),
            ("learning_rate=2..1", "LOW is less than HIGH"),
            ("encoder=1..2", "encoder is no number"),
            ("encoder=unet|resnet", "`encoder` ('resnet') must be one of"),
            ("dropout=0..2", "`dropout`"),
            ("base_filters=few|many", "'few' is no number"),
        ],
    )
    def test_mistakes_are_named(self, text, words):
        with pytest.raises(UserError) as error:
            Range.parse(text)
        assert words in str(error.value)


class TestSweep:
    def test_interrupted_one_goes_on_with_the_run_that_was_interrupted(
        self, door, slices, tmp_path, monkeypatch
    ):
        same = [f"--data_dir={slices}", f"--run_dir={tmp_path / 'sweep'}", *SMALL, "--trials=3"]
        calls = []

        def interrupted(config, stop, **kwargs):
            calls.append(config.task.run_dir)
            if len(calls) == 2:
                train.train_one(config.replace(train_steps=2, schedule_steps=4), stop, **kwargs)
                stop.signal = 15
                return None
            return train.train_one(config, stop, **kwargs)

        monkeypatch.setattr(sweep, "train_one", interrupted)
        code, out, err = door(*same)
        assert code == 128 + 15, err
        assert "2 runs are left" in out
        assert [row["run"] for row in table(tmp_path / "sweep")] == ["trial-0000"]
        code, out, err = door(*same)
        assert code == 0, err
        assert "Going on from step 2" in out
        assert calls[2] == calls[1]
        rows = table(tmp_path / "sweep")
        assert len(rows) == 3
        assert {row["run"] for row in rows} >= {"trial-0000", "trial-0001"}
        scores = [float(row["dice/mean"]) for row in rows if row["dice/mean"]]
        assert scores == sorted(scores, reverse=True)
        assert f"--run_dir={tmp_path / 'sweep' / rows[0]['run']}" in out
        # Done: the same command shows the table and trains nothing.
        code, out, _ = door(*same)
        assert code == 0
        assert len(calls) == 4
        other = [arg for arg in same if "--sweep" not in arg] + ["--sweep=dropout=0..0.5"]
        check_refused(door(*other), "sweep of other settings", "ranges")

    def test_run_that_fails_is_listed_and_the_others_are_done(
        self, door, slices, tmp_path, monkeypatch
    ):
        def fails_once(config, stop, **kwargs):
            if config.task.run_dir.endswith("0000"):
                raise UserError("something is wrong")
            return train.train_one(config, stop, **kwargs)

        monkeypatch.setattr(sweep, "train_one", fails_once)
        where = [f"--data_dir={slices}", f"--run_dir={tmp_path / 'sweep'}"]
        code, _, err = door(*where, *SMALL, "--trials=2")
        assert code == 0, err
        assert [row["outcome"] for row in table(tmp_path / "sweep")] == [
            "done",
            "something is wrong",
        ]

    def test_without_ranges_is_refused(self, door, slices, tmp_path):
        args = [arg for arg in SMALL if "--sweep" not in arg]
        check_refused(door(f"--data_dir={slices}", f"--run_dir={tmp_path}", *args), "--sweep")
