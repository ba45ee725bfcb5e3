"""What a run leaves for TensorBoard, each thing once, and nothing of it changes the training."""

import csv

import numpy as np
import pytest
import tensorflow as tf
from helpers.program import TINY, write_slices
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.plugins.hparams import metadata
from tensorboard.util import tensor_util

from unet_core.reports.training_logger import TrainingLogger
from unet_core.training.checkpoint_files import folder_of

STEPS = 12
# All that has a state or depends on the step takes part, and accumulation.
FLAGS = [
    *TINY,
    "--eval_every_steps=6",
    "--checkpoint_every_steps=6",
    "--global_batch_size=4",
    "--micro_batches=2",
    "--dropout=0.3",
    "--normalization=batch",
    "--ema_decay=0.9",
    f"--schedule_steps={STEPS}",
    "--deterministic",
]


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    return write_slices(tmp_path_factory.mktemp("slices"), test_slices=0)


def state(run):
    reader = tf.train.load_checkpoint(str(folder_of(run / "checkpoints", STEPS) / "state"))
    names = reader.get_variable_to_shape_map()
    return {
        name: reader.get_tensor(name) for name in names if name != "_CHECKPOINTABLE_OBJECT_GRAPH"
    }


def read(folder):
    events = event_accumulator.EventAccumulator(str(folder), {"tensors": 0})
    events.Reload()
    return events


def test_resumed_run_has_everything_once_and_the_weights_of_one_without(slices, door, tmp_path):
    plain, watched = tmp_path / "plain", tmp_path / "watched"
    data = f"--data_dir={slices}"
    assert door(data, f"--run_dir={plain}", *FLAGS, f"--train_steps={STEPS}")[0] == 0
    watching = "--histograms_every_evaluations=1", "--profile"
    for steps in (6, STEPS):
        run = f"--run_dir={watched}"
        result = door(data, run, *FLAGS, *watching, f"--train_steps={steps}")
        assert result[0] == 0, result[2]

    found, expected = state(watched), state(plain)
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert (watched / "history.csv").read_text() == (plain / "history.csv").read_text()

    events = read(watched / "events")
    once = {"config": [0], "command": [0], metadata.SESSION_START_INFO_TAG: [0]}
    for tag, steps in once.items():
        assert [event.step for event in events.Tensors(tag)] == steps
    tags = events.Tags()["tensors"]
    weights = {tag.partition("/")[2] for tag in tags if tag.startswith("weights/")}
    gradients = {tag.partition("/")[2] for tag in tags if tag.startswith("gradients/")}
    assert len(weights) > 10
    assert gradients == weights
    for tag in (f"{kind}/{name}" for kind in ("weights", "gradients") for name in weights):
        assert [event.step for event in events.Tensors(tag)] == [6, 12]
    check_histograms(events, watched, weights)
    (text,) = events.Tensors("command")
    command = tensor_util.make_ndarray(text.tensor_proto).item().decode()
    assert command.strip().startswith("python train_loop.py --run_dir=")
    assert "--train_steps=6" in command
    check_hyperparameters(events)
    assert [event.step for event in read(watched / "events" / "final").Tensors("dice/mean")] == [12]
    assert list((watched / "events" / "plugins" / "profile").glob("*/*.xplane.pb"))
    assert not (plain / "events" / "plugins").exists()


def test_gradients_are_those_of_the_next_step(slices, door, tmp_path, monkeypatch):
    found = {}
    monkeypatch.setattr(
        TrainingLogger, "write_histograms", lambda self, step, values: found.update({step: values})
    )
    run = tmp_path / "run"
    flags = "--report_every_steps=1", "--dropout=0.3", "--normalization=batch", "--train_steps=3"
    asked = f"--data_dir={slices}", f"--run_dir={run}", "--histograms_every_evaluations=1"
    assert door(*asked, *TINY, *flags)[0] == 0
    gradients = [value for tag, value in found[2].items() if tag.startswith("gradients/")]
    with (run / "history.csv").open() as file:
        norms = {row["step"]: float(row["train/gradient_norm"]) for row in csv.DictReader(file)}
    # The third step's batch and dropout; statistics of batch norm are those of the batch.
    assert float(tf.linalg.global_norm(gradients)) == pytest.approx(norms["3"], rel=1e-4)
    assert norms["2"] != pytest.approx(norms["3"], rel=1e-2)


def check_histograms(events, run, names):
    """Checks that those of weights hold all numbers of the variable, which are as in the state."""
    sizes = sorted(value.size for name, value in state(run).items() if "model" in name)
    for name in names:
        rows = tensor_util.make_ndarray(events.Tensors(f"weights/{name}")[-1].tensor_proto)
        assert rows[:, 2].sum() in sizes
        slope = tensor_util.make_ndarray(events.Tensors(f"gradients/{name}")[-1].tensor_proto)
        assert np.isfinite(slope).all()
        assert slope[:, 2].sum() == rows[:, 2].sum()


def check_hyperparameters(events):
    found = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data
    assert found.plugin_name == metadata.PLUGIN_NAME
    chosen = metadata.parse_session_start_info_plugin_data(found.content).hparams
    assert chosen["crop_size"].number_value == 32
    assert chosen["normalization"].string_value == "batch"
    # Those of the default and those of this start alone are left out.
    assert not {"optimizer", "profile", "histograms_every_evaluations", "run_dir"} & set(chosen)
