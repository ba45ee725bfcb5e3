"""The list of what predictions have written; `tests/outputs/test_files.py` shows it at work."""

import pathlib

import pytest

from unet_core.data.predicted import NAME, Predicted
from unet_core.data.samples import Source
from unet_core.errors import UserError
from unet_core.shards import Shard

RUN = b'{"run": "a", "format": 1, "made_by": {"alpha": "0.45"}}\n'


class TestRead:
    @pytest.mark.parametrize(
        ("line", "words"),
        [
            (b"no list", "line 2"),
            (b"[]", "line 2"),
            (b'{"run": 5}', "line 2.*run"),
            (b'{"run": "a", "begun": "x", "files": [1]}', "line 2.*files"),
            (b'{"run": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "line 2"),
            (b'{"run": "\xe4"}', "line 2"),
            (b'{"run": "a", "format": ' + b"9" * 5000 + b"}", "line 2"),
            (b'{"run": "a", "format": 2}', "has format 2, and this version reads format 1"),
        ],
    )
    def test_what_is_no_such_list_is_one_message(self, tmp_path, line, words):
        (tmp_path / NAME).write_bytes(RUN + line + b"\n")
        with pytest.raises(UserError, match=rf"predicted\.jsonl.*{words}"):
            Predicted(tmp_path)

    def test_line_that_a_crash_has_cut_counts_as_not_written(self, tmp_path):
        begun = b'{"run": "a", "begun": "x", "files": ["x_predict.png"]}\n'
        (tmp_path / NAME).write_bytes(RUN + begun + b'{"run": "a", "finis')
        predicted = Predicted(tmp_path)
        assert predicted.owns(tmp_path / "x_predict.png")
        assert not predicted.is_finished("x")
        # What comes later stands in a line of its own.
        predicted.unfinished({}, {"alpha": "0.45"}, again=False)
        predicted.finish("x")
        assert Predicted(tmp_path).is_finished("x")

    def test_folder_of_its_name_is_one_message(self, tmp_path):
        (tmp_path / NAME).mkdir()
        with pytest.raises(UserError, match=r"predicted\.jsonl: cannot be read"):
            Predicted(tmp_path)


class TestListsOfShares:
    SOURCE = Source(pathlib.Path("none.png"))

    def predict(self, folder, shard, alpha, **how):
        """Predicts the picture x; returns whether there was something to do."""
        predicted = Predicted(folder, shard)
        left = predicted.unfinished({"x": self.SOURCE}, {"alpha": alpha}, again=True, **how)
        for name in left:
            predicted.start(name, self.SOURCE, [folder / "x_predict.png"])
            (folder / "x_predict.png").touch()
            predicted.finish(name)
        predicted.end()
        return bool(left)

    def test_what_was_begun_last_counts_whichever_clock_is_ahead(self, tmp_path, monkeypatch):
        whole, share = None, Shard(1, 2)
        for shard, alpha, now in ((share, "1", 300), (whole, "2", 200), (share, "1", 100)):
            monkeypatch.setattr("time.time_ns", lambda now=now: now)
            assert self.predict(tmp_path, shard, alpha)
            assert Predicted(tmp_path).is_made("x", {"alpha": alpha})
            with pytest.raises(UserError, match=r"x_predict\.png: was predicted anew"):
                Predicted(tmp_path).is_made("x", {"alpha": "0"})

    def test_files_of_every_list_are_its_own(self, tmp_path):
        assert self.predict(tmp_path, Shard(2, 3), "1")
        for predicted in (Predicted(tmp_path), Predicted(tmp_path, Shard(1, 3))):
            for name in ("x_predict.png", NAME, "predicted-2-of-3.jsonl"):
                assert predicted.owns(tmp_path / name)
            assert not predicted.owns(tmp_path / "predicted-4-of-3.jsonl")

    def test_same_share_of_other_inputs_does_not_go_on(self, tmp_path):
        made_by = {"alpha": "1"}
        first = Predicted(tmp_path, Shard(1, 2))
        first.unfinished({"x": self.SOURCE}, made_by, again=False, inputs="a")
        first.start("x", self.SOURCE, [])
        again = Predicted(tmp_path, Shard(1, 2))
        again.unfinished({"y": self.SOURCE}, made_by, again=False, inputs="b")
        again.begin()
        run = Predicted(tmp_path).shares()[Shard(1, 2)]
        assert (run.names, run.inputs, run.has_ended) == (["y"], "b", False)
