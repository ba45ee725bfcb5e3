"""Output for logs and for machines: lines without carriage returns, JSON objects."""

import contextlib
import io
import json

import pytest
from helpers import forked
from helpers.program import TINY, check_refused, write_slices

from unet_core import console


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    return write_slices(tmp_path_factory.mktemp("slices"))


class TestBar:
    def test_off_a_terminal_it_writes_lines(self):
        screen = io.StringIO()
        screen.isatty = lambda: False
        with contextlib.redirect_stderr(screen), console.bar(total=5, desc="Reading") as bar:
            for _ in range(5):
                bar.update()
                bar.refresh()
        lines = screen.getvalue().splitlines()
        assert "\r" not in screen.getvalue()
        # Not where it begins, and nothing where it ends: only as it was asked to.
        shares = [line.partition("%")[0].split() for line in lines]
        assert shares == [["Reading:", f"{share}"] for share in (20, 40, 60, 80, 100)]

    def test_time_left_is_by_all_steps_and_not_by_the_first(self):
        screen, now = io.StringIO(), [0]
        screen.isatty = lambda: False
        with contextlib.redirect_stderr(screen), console.bar(total=100, desc="Training") as bar:
            bar.start_t, bar.last_print_t, bar._time = 0, 0, lambda: now[0]
            # Two steps in the 60 s of compiling, 78 in the next 4: the last 20 take 64 / 80 * 20.
            for now[0], step in ((60, 2), (64, 80)):
                bar.update(step - bar.n)
                bar.refresh()
        assert screen.getvalue().splitlines()[-1] == "Training:  80% 80/100 [01:04<00:16]"

    def test_on_a_terminal_it_is_tqdms(self):
        screen = io.StringIO()
        screen.isatty = lambda: True
        with contextlib.redirect_stderr(screen):
            list(console.bar(range(3), desc="Reading"))
        assert "\r" in screen.getvalue()


class TestJson:
    def test_printed_lines_and_events_become_objects(self):
        stream = io.StringIO()
        with contextlib.redirect_stdout(stream), console.json_output():
            print("two\nlines", end="")
            console.emit("report", step=2, loss=float("nan"))
        console.emit("report", step=3)
        found = [json.loads(line) for line in stream.getvalue().splitlines()]
        assert found == [
            {"event": "message", "text": "two"},
            {"event": "report", "step": 2, "loss": None},
            {"event": "message", "text": "lines"},
        ]

    def test_whole_run_is_json_line_by_line(self, slices, door, tmp_path):
        run = tmp_path / "run"
        flags = f"--data_dir={slices}", f"--run_dir={run}", *TINY, "--train_steps=4"
        code, out, err = door(*flags, "--log_format=json")
        assert code == 0, err
        events = [json.loads(line) for line in out.splitlines()]
        assert all(isinstance(each, dict) and "event" in each for each in events)
        assert "Training:" not in err
        of_loop = [each for each in events if each["event"] in ("report", "evaluation")]
        assert [each["step"] for each in of_loop] == [2, 4]
        texts = [each["text"] for each in events if each["event"] == "message"]
        assert texts[0] == f"Mode train: images of {slices}, run folder {run}, up to step 4."
        assert texts[1] == "Loading TensorFlow, which takes some seconds."
        assert sum(text.startswith("A training step needs about") for text in texts) == 1
        assert sum("ms a step the other 2 take about" in text for text in texts) == 1
        assert any("Everything is in" in text for text in texts)
        # The same numbers lie in the run's folder.
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for line, event in zip(lines, of_loop, strict=True):
            assert {**line, "event": event["event"]} == event
        history = (run / "history.csv").read_text().splitlines()
        header, last = history[0].split(","), history[-1].split(",")
        for name, cell in zip(header, last, strict=True):
            if cell and name != "note":
                assert float(cell) == pytest.approx(lines[-1][name], rel=1e-6)

    def test_resumed_run_has_each_step_once(self, slices, door, tmp_path):
        args = f"--data_dir={slices}", f"--run_dir={tmp_path / 'run'}", *TINY
        metrics = tmp_path / "run" / "metrics.jsonl"
        assert door(*args, "--train_steps=2")[0] == 0
        # As if a step beyond the checkpoint had been written, and another cut short by a kill.
        metrics.write_text(metrics.read_text() + '{"step": 4, "train/loss": 1}\n{"step": 6, "tr')
        assert door(*args, "--train_steps=4", "--schedule_steps=4")[0] == 0
        steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
        assert steps == [2, 4]

    def test_other_content_is_refused_and_stays(self, slices, door, tmp_path):
        args = f"--data_dir={slices}", f"--run_dir={tmp_path / 'run'}", *TINY
        metrics = tmp_path / "run" / "metrics.jsonl"
        assert door(*args, "--train_steps=2")[0] == 0
        metrics.write_text("mine\n")
        result = door(*args, "--train_steps=4", "--schedule_steps=4")
        check_refused(result, "metrics.jsonl, line 1", "stays")
        assert metrics.read_text() == "mine\n"


class TestLog:
    def test_log_of_a_run_without_a_terminal_has_no_carriage_return(self, slices, tmp_path):
        flags = f"--data_dir={slices}", f"--run_dir={tmp_path / 'run'}", *TINY
        code, text = forked.program(*flags, "--train_steps=4").finish()
        assert code == 0, text
        assert "\r" not in text
        assert "\x1b" not in text
        # A line for each report.
        reports = [
            line for line in text.splitlines() if line.startswith("Training:") and "loss" in line
        ]
        assert [line.split()[2] for line in reports] == ["2/4", "4/4"]
        # Whole, with what stands at its end.
        assert all("data wait" in line and line.endswith("]") for line in reports)
