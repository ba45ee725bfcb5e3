"""A tracker of one's own: what it is handed, and what its failures do."""

import csv
import sys
import types

import pytest
from helpers.program import TINY, check_refused, write_slices


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    return write_slices(tmp_path_factory.mktemp("slices"))


@pytest.fixture
def calls(monkeypatch):
    """What trackers of the module `mine` are called with, in order."""
    found = []

    class Tracker:
        def __init__(self, config, run_dir):
            found.append(("begin", config["crop_size"], run_dir))

        def scalars(self, step, values):
            found.append(("scalars", step, values))

        def artifact(self, path):
            found.append(("artifact", path))

        def close(self):
            found.append(("close",))

    class Failing(Tracker):
        def scalars(self, step, values):
            raise OSError("the server is away")

    module = types.ModuleType("mine")
    module.make, module.failing, module.nothing = Tracker, Failing, lambda *_: object()
    monkeypatch.setitem(sys.modules, "mine", module)
    return found


def run(door, slices, tmp_path, *args):
    return door(f"--data_dir={slices}", f"--run_dir={tmp_path / 'run'}", *TINY, *args)


class TestTracker:
    def test_gets_settings_numbers_and_files_and_is_closed(self, door, slices, tmp_path, calls):
        code, _, err = run(door, slices, tmp_path, "--train_steps=4", "--tracker=mine:make")
        assert code == 0, err
        assert calls[0] == ("begin", 32, str(tmp_path / "run"))
        assert calls[-1] == ("close",)
        scalars = [call for call in calls if call[0] == "scalars"]
        assert [call[1] for call in scalars] == [2, 4]
        with (tmp_path / "run" / "history.csv").open(newline="") as file:
            last = list(csv.DictReader(file))[-1]
        for name in ("train/loss", "held_out/dice/mean"):
            assert scalars[-1][2][name] == pytest.approx(float(last[name]), rel=1e-6)
        assert "speed/examples_per_sec" in scalars[-1][2]
        artifacts = {call[1].rpartition("/")[2] for call in calls if call[0] == "artifact"}
        assert {"scores.json", "history.csv", "worst.png", "network.svg"} <= artifacts

    def test_failing_one_is_warned_of_once_and_training_goes_on(
        self, door, slices, tmp_path, calls
    ):
        code, _, err = run(door, slices, tmp_path, "--train_steps=4", "--tracker=mine:failing")
        assert code == 0, err
        assert err.count("the server is away") == 1
        assert "Training goes on" in err
        assert calls[-1] == ("close",)

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("mine:nothing", ["no scalars"]),
            ("mine:missing", ["missing", "make_my_tracker(config, run_dir)"]),
            ("no_such_module:make", ["cannot be imported"]),
            ("mine", ["--tracker", "module"]),
        ],
    )
    def test_wrong_one_is_refused_by_name(self, door, slices, tmp_path, calls, name, words):
        result = run(door, slices, tmp_path, "--train_steps=2", f"--tracker={name}")
        check_refused(result, "--tracker", *words)


class TestExample:
    def test_mlflow_keeps_one_run_that_goes_on(self, door, slices, tmp_path, monkeypatch):
        pytest.importorskip("mlflow", reason="needs mlflow")
        from mlflow.tracking import MlflowClient

        monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        for steps in ("2", "4"):
            args = f"--train_steps={steps}", "--schedule_steps=4"
            code, _, err = run(door, slices, tmp_path, *args, "--tracker=examples.trackers:mlflow")
            assert code == 0, err
            assert "WARNING: --tracker" not in err
        client = MlflowClient()
        known = client.get_experiment_by_name(tmp_path.name).experiment_id
        (found,) = client.search_runs([known])
        assert found.data.params["crop_size"] == "32"
        steps = [m.step for m in client.get_metric_history(found.info.run_id, "train/loss")]
        assert steps == [2, 4]
        files = {each.path for each in client.list_artifacts(found.info.run_id)}
        assert "scores.json" in files

    @pytest.mark.slow
    def test_weights_and_biases_keeps_numbers_and_files_without_a_network(
        self, door, slices, tmp_path, monkeypatch
    ):
        pytest.importorskip("wandb", reason="needs wandb")
        monkeypatch.setenv("WANDB_MODE", "offline")
        monkeypatch.setenv("WANDB_DIR", str(tmp_path))
        tracker = "--tracker=examples.trackers:wandb"
        code, _, err = run(door, slices, tmp_path, "--train_steps=4", tracker)
        assert code == 0, err
        assert "WARNING: --tracker" not in err
        (kept,) = (tmp_path / "wandb").glob("offline-run-*")
        assert (kept / "files" / "scores.json").read_bytes() == (
            tmp_path / "run" / "scores.json"
        ).read_bytes()
        # The database of the run, whose records hold names and values as text.
        (database,) = kept.glob("run-*.wandb")
        assert b"held_out/dice/mean" in database.read_bytes()
