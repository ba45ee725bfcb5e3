import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.util import tensor_util

from unet_core.training import SummaryWriter


def read(directory):
    events = event_accumulator.EventAccumulator(str(directory), size_guidance={"tensors": 0})
    events.Reload()
    return events


def scalars(directory, tag):
    # By step: files of one process and one second need not be read in the order they were made.
    found = read(directory).Tensors(tag)
    return sorted((e.step, float(tensor_util.make_ndarray(e.tensor_proto))) for e in found)


class TestSummaryWriter:
    def test_holds_what_was_written(self, tmp_path):
        picture = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
        with SummaryWriter(tmp_path) as writer:
            writer.scalars(3, {"a": 0.5, "b": float("nan")})
            writer.text(0, "config", "x = 1")
            writer.images(3, "pictures", picture)
            writer.graph(lambda x: x * 2, tf.TensorSpec([None], tf.float32))
        events = read(tmp_path)
        assert scalars(tmp_path, "a") == [(3, 0.5)]
        assert np.isnan(scalars(tmp_path, "b")[0][1])
        assert tensor_util.make_ndarray(events.Tensors("config")[0].tensor_proto).item() == b"x = 1"
        encoded = tensor_util.make_ndarray(events.Tensors("pictures")[0].tensor_proto)[2]
        np.testing.assert_array_equal(tf.io.decode_png(encoded).numpy(), picture[0])
        assert "Mul" in {node.op for node in events.Graph().node} | {
            node.op for f in events.Graph().library.function for node in f.node_def
        }

    @pytest.mark.parametrize("resumed_at", [0, 2])
    def test_nothing_appears_twice_after_a_resume(self, tmp_path, resumed_at):
        with SummaryWriter(tmp_path) as writer:
            for step in (1, 2, 3, 4):
                writer.scalars(step, {"loss": float(step)})
        with SummaryWriter(tmp_path, resumed_at=resumed_at) as writer:
            for step in range(resumed_at + 1, 6):
                writer.scalars(step, {"loss": 10.0 + step})
        expected = [(s, float(s) if s <= resumed_at else 10.0 + s) for s in range(1, 6)]
        assert scalars(tmp_path, "loss") == expected

    def test_three_sessions_in_one_second_leave_each_step_once(self, tmp_path):
        for session in range(3):
            with SummaryWriter(tmp_path, resumed_at=session) as writer:
                writer.scalars(session + 1, {"loss": float(session)})
                writer.scalars(session + 2, {"loss": -1.0})
        assert [step for step, _ in scalars(tmp_path, "loss")] == [1, 2, 3, 4]

    def test_record_cut_short_by_a_kill_is_dropped(self, tmp_path):
        with SummaryWriter(tmp_path) as writer:
            writer.scalars(1, {"loss": 1.0})
            writer.scalars(2, {"loss": 2.0})
        (path,) = tmp_path.iterdir()
        path.write_bytes(path.read_bytes()[:-5])
        with SummaryWriter(tmp_path, resumed_at=2) as writer:
            writer.scalars(3, {"loss": 3.0})
        assert scalars(tmp_path, "loss") == [(1, 1.0), (3, 3.0)]
