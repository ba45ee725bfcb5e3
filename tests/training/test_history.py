import csv
import math

import pytest

from unet_core.training.history import History, read_columns

COLUMNS = ["step", "train/loss", "held_out/dice"]


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


@pytest.fixture
def path(tmp_path):
    """A history of the steps 10, 20 and 30."""
    history = History(tmp_path / "history.csv", COLUMNS)
    for step in (10, 20, 30):
        history.append({"step": step, "train/loss": 1 / step})
    return tmp_path / "history.csv"


class TestHistory:
    def test_new_history_has_a_header(self, tmp_path):
        History(tmp_path / "history.csv", COLUMNS)
        assert (tmp_path / "history.csv").read_text() == "step,train/loss,held_out/dice\n"

    def test_rows_are_written_in_the_order_of_the_columns(self, path):
        History(path, COLUMNS).append({"held_out/dice": 0.5, "step": 10, "train/loss": 1 / 3})
        assert rows_of(path) == [COLUMNS, ["10", "0.333333333", "0.5"]]

    def test_missing_column_stays_empty(self, path):
        assert rows_of(path)[1] == ["10", "0.1", ""]

    def test_unknown_column_is_named_and_nothing_is_written(self, path):
        before = path.read_text()
        history = History(path, COLUMNS, resumed_at=30)
        with pytest.raises(KeyError, match="no column train/los, z"):
            history.append({"step": 40, "z": 1.0, "train/los": 1.0})
        assert path.read_text() == before

    def test_resume_drops_the_rows_beyond_its_step(self, path):
        history = History(path, COLUMNS, resumed_at=20)
        assert [row[0] for row in rows_of(path)] == ["step", "10", "20"]
        history.append({"step": 30, "train/loss": 7.0})
        assert rows_of(path)[-1] == ["30", "7", ""]

    def test_resumed_history_equals_the_uninterrupted_one(self, path):
        before = path.read_bytes()
        history = History(path, COLUMNS, resumed_at=10)
        for step in (20, 30):
            history.append({"step": step, "train/loss": 1 / step})
        assert path.read_bytes() == before

    @pytest.mark.parametrize("cut", [1, 3, 9, 13, 16])
    def test_row_cut_by_a_kill_is_dropped(self, path, cut):
        # The last row is "30,0.0333333333,\n", of 17 characters.
        path.write_text(path.read_text()[:-cut])
        History(path, COLUMNS, resumed_at=20)
        assert [row[0] for row in rows_of(path)] == ["step", "10", "20"]

    def test_added_column_keeps_all_earlier_rows(self, path):
        wider = ["step", "train/loss", "train/rate", "held_out/dice"]
        history = History(path, wider, resumed_at=20)
        history.append({"step": 30, "train/loss": 3.0, "train/rate": 0.5})
        assert rows_of(path) == [
            wider,
            ["10", "0.1", "", ""],
            ["20", "0.05", "", ""],
            ["30", "3", "0.5", ""],
        ]

    def test_column_that_is_there_no_more_keeps_its_values(self, path):
        history = History(path, ["step", "held_out/dice"], resumed_at=20)
        history.append({"step": 30, "held_out/dice": 0.5})
        assert rows_of(path) == [
            ["step", "held_out/dice", "train/loss"],
            ["10", "", "0.1"],
            ["20", "", "0.05"],
            ["30", "0.5", ""],
        ]

    def test_columns_in_another_order_are_matched_by_name(self, path):
        History(path, ["step", "held_out/dice", "train/loss"], resumed_at=10)
        assert rows_of(path)[1] == ["10", "", "0.1"]

    def test_last_row_without_a_line_end_is_kept_if_it_is_whole(self, path):
        path.write_text(path.read_text().rstrip("\n"))
        History(path, COLUMNS, resumed_at=30)
        assert [row[0] for row in rows_of(path)] == ["step", "10", "20", "30"]

    def test_link_laid_in_its_place_is_not_written_through(self, path, tmp_path):
        history = History(path, COLUMNS, resumed_at=30)
        victim = tmp_path / "victim"
        victim.write_text("mine")
        path.unlink()
        path.symlink_to(victim)
        with pytest.raises(OSError, match=r"history\.csv") as error:
            history.append({"step": 40})
        assert error.value.filename == str(path)
        assert victim.read_text() == "mine"

    def test_new_run_begins_anew(self, path):
        History(path, COLUMNS)
        assert rows_of(path) == [COLUMNS]

    def test_nothing_but_the_history_is_left(self, path):
        History(path, COLUMNS, resumed_at=20)
        assert [p.name for p in path.parent.iterdir()] == ["history.csv"]


class TestReadColumns:
    def test_are_numbers_with_nan_for_empty_cells_and_without_notes(self, tmp_path):
        history = History(tmp_path / "history.csv", ["step", "a", "b", "note"])
        history.append({"step": 10, "a": 0.5, "note": "better, so"})
        history.append({"step": 20, "b": 0.25})
        found = read_columns(tmp_path / "history.csv")
        assert list(found) == ["step", "a", "b"]
        assert found["step"] == [10, 20]
        assert found["a"][0] == 0.5
        assert math.isnan(found["a"][1])
        assert math.isnan(found["b"][0])
