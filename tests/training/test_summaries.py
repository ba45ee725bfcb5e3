import os
import re
import socket
import stat

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.util import tensor_util

from unet_core.errors import UserError
from unet_core.training import SummaryWriter
from unet_core.training.summaries import read_scalars


def read(directory):
    events = event_accumulator.EventAccumulator(str(directory), size_guidance={"tensors": 0})
    events.Reload()
    return events


def scalars(directory, tag):
    # By step: files of one process and one second need not be read in the order they were made.
    found = read(directory).Tensors(tag)
    return sorted((e.step, float(tensor_util.make_ndarray(e.tensor_proto))) for e in found)


def write(directory, steps, *, resumed_at=0):
    """Writes the loss of `steps` and returns the new file."""
    before = set(directory.iterdir())
    with SummaryWriter(directory, resumed_at=resumed_at) as writer:
        for step in steps:
            writer.scalars(step, {"loss": float(step)})
    (path,) = {p for p in directory.iterdir() if p.name not in {q.name for q in before}}
    return path


def state(path):
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_mode, path.read_bytes()


class TestReadScalars:
    def test_are_those_written_of_the_tags_asked_for_by_step(self, tmp_path):
        with SummaryWriter(tmp_path) as writer:
            writer.scalars(2, {"a": 0.5, "b": 7.0})
            writer.scalars(4, {"a": 0.25})
            writer.text(0, "config", "x = 1")
        # A resumed run: another file, of which the step 4 is written anew.
        with SummaryWriter(tmp_path, resumed_at=2) as writer:
            writer.scalars(4, {"a": 0.75})
        found = read_scalars(tmp_path, ["a", "c"])
        assert found == {"a": [(2, 0.5), (4, 0.75)], "c": []}

    def test_record_that_a_kill_has_cut_is_left_out(self, tmp_path):
        path = write(tmp_path, (1, 2))
        path.write_bytes(path.read_bytes()[:-3])
        assert read_scalars(tmp_path, ["loss"]) == {"loss": [(1, 1.0)]}

    def test_folder_that_is_not_there_has_none(self, tmp_path):
        assert read_scalars(tmp_path / "none", ["loss"]) == {"loss": []}

    def test_what_is_no_scalar_is_named(self, tmp_path):
        with SummaryWriter(tmp_path) as writer:
            writer.text(0, "loss", "high")
        with pytest.raises(UserError, match="cannot be read as an event file"):
            read_scalars(tmp_path, ["loss"])


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

    @pytest.mark.parametrize("cut", [1, 3, 4, 11, 12, 13])
    def test_last_record_cut_anywhere_is_dropped(self, tmp_path, cut):
        path = write(tmp_path, [1])
        whole = path.read_bytes()
        # A record is 8 bytes of length, 4 of checksum, the content, 4 of checksum.
        (tmp_path / "two").mkdir()
        longer = write(tmp_path / "two", [1, 2]).read_bytes()
        path.write_bytes(longer[: len(whole) + cut])
        write(tmp_path, [3], resumed_at=2)
        assert path.stat().st_size == len(whole)
        assert scalars(tmp_path, "loss") == [(1, 1.0), (3, 3.0)]

    def test_file_in_which_nothing_is_dropped_is_not_touched(self, tmp_path):
        path = write(tmp_path, [1, 2])
        before = state(path)
        write(tmp_path, [3], resumed_at=2)
        assert state(path) == before

    def test_relative_folder_stays_where_it_was(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with SummaryWriter("events") as writer:
            monkeypatch.chdir("/")
            writer.scalars(1, {"loss": 1.0})
        assert scalars(tmp_path / "events", "loss") == [(1, 1.0)]

    def test_address_is_refused_and_makes_nothing(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UserError, match=r"^gs://bucket/events is an address"):
            SummaryWriter("gs://bucket/events")
        assert list(tmp_path.iterdir()) == []

    def test_folder_that_cannot_be_written_is_an_error_that_names_it(self):
        # Nobody, root included, makes files there.
        with pytest.raises(OSError, match="/proc/self"):
            SummaryWriter("/proc/self")


class TestFilesOfOthers:
    @pytest.mark.parametrize("suffix", [None, "", ".other"])
    @pytest.mark.parametrize("resumed_at", [0, 2])
    def test_files_of_other_writers_stay_as_they_are(self, tmp_path, suffix, resumed_at):
        theirs = tf.summary.create_file_writer(str(tmp_path), filename_suffix=suffix)
        with theirs.as_default():
            for step in (1, 2, 3, 4):
                tf.summary.scalar("theirs", float(step), step=step)
        theirs.close()
        (path,) = tmp_path.iterdir()
        before = state(path)
        ours = write(tmp_path, [1, 2, 3])
        write(tmp_path, [3], resumed_at=resumed_at)
        assert state(path) == before
        assert len(list(tf.data.TFRecordDataset(str(ours)))) == 1 + resumed_at
        assert len(scalars(tmp_path, "theirs")) == 4

    def test_writer_that_is_open_goes_on(self, tmp_path):
        theirs = tf.summary.create_file_writer(str(tmp_path))
        with theirs.as_default():
            tf.summary.scalar("theirs", 5.0, step=5)
            theirs.flush()
            write(tmp_path, [1])
            tf.summary.scalar("theirs", 6.0, step=6)
        theirs.close()
        assert scalars(tmp_path, "theirs") == [(5, 5.0), (6, 6.0)]

    def test_file_without_the_end_of_our_names_is_left_alone_damaged_or_not(self, tmp_path):
        path = tmp_path / "events.out.tfevents.1.host.1.0.v2"
        path.write_bytes(b"damaged")
        (tmp_path / "notes.unet_core").write_bytes(b"mine")
        write(tmp_path, [1])
        assert path.read_bytes() == b"damaged"
        assert (tmp_path / "notes.unet_core").read_bytes() == b"mine"


class TestReplacedFile:
    def test_link_is_replaced_and_its_target_stays(self, tmp_path):
        events = tmp_path / "events"
        events.mkdir()
        path = write(events, [1, 2, 3])
        target = tmp_path / "target"
        path.rename(target)
        path.symlink_to(target)
        content = target.read_bytes()
        write(events, [2], resumed_at=1)
        assert target.read_bytes() == content
        assert not path.is_symlink()
        assert scalars(events, "loss") == [(1, 1.0), (2, 2.0)]

    def test_link_under_a_name_that_can_be_guessed_is_not_written_through(self, tmp_path):
        victim, events = tmp_path / "victim", tmp_path / "events"
        victim.write_text("mine")
        events.mkdir()
        path = write(events, [1, 2])
        for name in (f".{path.name}", f"{path.name}.part", f"{path.name}.tmp", ".cut-"):
            (events / name).symlink_to(victim)
        write(events, [2], resumed_at=1)
        assert victim.read_text() == "mine"
        assert len(list(events.iterdir())) == 2 + 4

    def test_mode_stays_and_nothing_else_is_left(self, tmp_path):
        path = write(tmp_path, [1, 2])
        path.chmod(0o640)
        new = write(tmp_path, [2], resumed_at=1)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        assert set(tmp_path.iterdir()) == {path, new}

    def test_full_disk_leaves_the_old_file_and_nothing_else_and_names_it(
        self, tmp_path, monkeypatch
    ):
        path = write(tmp_path, [1, 2])
        content = path.read_bytes()

        def fsync(_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="No space left on device") as error:
            SummaryWriter(tmp_path, resumed_at=1)
        assert error.value.filename == str(path)
        assert path.read_bytes() == content
        assert list(tmp_path.iterdir()) == [path]


class TestUnreadableFile:
    NAME = "events.out.tfevents.1.host.1.0.unet_core"

    def refused(self, folder):
        with pytest.raises(UserError) as error:
            SummaryWriter(folder)
        start, reason, way = re.split(r"[()]", str(error.value))
        assert start == f"{folder / self.NAME}: cannot be read as an event file "
        assert "Move it away" in way
        assert [path.name for path in folder.iterdir()] == [self.NAME]
        return reason

    def test_folder_is_an_error_that_names_it(self, tmp_path):
        (tmp_path / self.NAME).mkdir()
        assert self.refused(tmp_path) == "Is a directory"

    def test_pipe_is_an_error_that_names_it_and_is_not_waited_for(self, tmp_path):
        os.mkfifo(tmp_path / self.NAME)
        assert self.refused(tmp_path) == "is not a regular file"

    def test_link_to_a_device_is_an_error_that_names_it(self, tmp_path):
        (tmp_path / self.NAME).symlink_to("/dev/zero")
        assert self.refused(tmp_path) == "is not a regular file"

    def test_socket_is_an_error_that_names_it(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)  # The path of a socket is short.
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(self.NAME)
            assert self.refused(tmp_path) == "is not a regular file"

    def test_link_to_nothing_is_an_error_that_names_it(self, tmp_path):
        (tmp_path / self.NAME).symlink_to("nothing")
        assert self.refused(tmp_path) == "No such file or directory"

    @pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
    def test_file_without_permission_is_an_error_that_names_it(self, tmp_path):
        (tmp_path / self.NAME).touch(mode=0)
        assert self.refused(tmp_path) == "Permission denied"

    def test_records_that_are_no_events_are_an_error_that_names_it(self, tmp_path):
        with tf.io.TFRecordWriter(str(tmp_path / self.NAME)) as file:
            file.write(b"\xff\xff no event")
        assert "Error parsing message" in self.refused(tmp_path)
