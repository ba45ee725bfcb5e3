"""The list of what predictions have written; `tests/outputs/test_files.py` shows it at work."""

import pytest

from unet_core.data.predicted import NAME, Predicted
from unet_core.errors import UserError

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
