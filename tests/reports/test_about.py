"""`about.json` keeps each start of a run, and how far it came."""

import pytest

from unet_core.errors import UserError
from unet_core.reports.about import Part, RunNote, SampleOf, Session, read_about


def begin(path, *times, step=0):
    session = Session(
        command=f"start at {step}",
        began="2026-01-31 12:00:00",
        first_step=step,
        last_step=step,
        versions={"Python": "3.11"},
        hardware={},
    )
    parts = {"training": Part(samples=[SampleOf(name="a", width=4, height=3)], class_pixels=None)}
    parts["held_out"] = Part(samples=[], class_pixels={"cell": 5})
    return RunNote(path, session, **parts, network={}, clock=iter(times).__next__)


def states(path):
    return [(s.first_step, s.last_step, s.seconds, s.ended) for s in read_about(path).sessions]


class TestRunNote:
    def test_is_written_when_a_run_begins_and_at_every_update(self, tmp_path):
        path = tmp_path / "about.json"
        note = begin(path, 10.0, 10.5, 13.0, 17.25)
        assert states(path) == [(0, 0, 0.5, "")]
        note.update(3)
        assert states(path) == [(0, 3, 3.0, "")]
        note.update(6, ended="finished")
        # Rounded to tenths: 7.25 is 7.2.
        assert states(path) == [(0, 6, 7.2, "finished")]
        about = read_about(path)
        assert about.training.samples[0].name == "a"
        assert about.training.class_pixels is None
        assert about.held_out.class_pixels == {"cell": 5}

    def test_earlier_starts_stay(self, tmp_path):
        path = tmp_path / "about.json"
        begin(path, 0.0, 0.0, 1.0).update(4)
        begin(path, 0.0, 0.0, 2.0, step=4).update(9, ended="stopped")
        assert states(path) == [(0, 4, 1.0, ""), (4, 9, 2.0, "stopped")]
        assert [s.command for s in read_about(path).sessions] == ["start at 0", "start at 4"]

    def test_a_file_that_holds_something_else_stays(self, tmp_path):
        path = tmp_path / "about.json"
        path.write_text('{"format": 9}')
        with pytest.raises(UserError, match="has format 9"):
            begin(path, 0.0)
        assert path.read_text() == '{"format": 9}'


class TestReadAbout:
    def test_run_without_one_has_none(self, tmp_path):
        assert read_about(tmp_path / "about.json") is None
