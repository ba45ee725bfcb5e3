import errno
import os
import pathlib
import signal
import stat
import subprocess
import sys
import time

import pytest
from filelock import lock_descriptor

from unet_core import temporary
from unet_core.files import new_folder, scratch_folder, write_whole
from unet_core.temporary import NewFile, leftovers, remove_leftovers

ROOT = pathlib.Path(__file__).parents[1]
KILLED = """
import os, signal, sys
from unet_core import temporary
new = getattr(temporary, sys.argv[1])(sys.argv[2])
if sys.argv[1] == "NewFolder":
    (new.path / "inside").write_text("x")
os.kill(os.getpid(), signal.SIGKILL)
"""
WAITING = """
import sys
from unet_core.temporary import NewFile
new = NewFile(sys.argv[1])
print("begun", flush=True)
sys.stdin.readline()
new.file.write(b"whole")
new.commit()
"""


@pytest.fixture(autouse=True)
def _looks_anew(monkeypatch):
    monkeypatch.setattr(temporary, "_swept", set())


@pytest.fixture
def umask():
    """A function that sets the umask for one test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def kill_while_writing(kind, path):
    command = [sys.executable, "-c", KILLED, kind, str(path)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


class TestNewFile:
    def test_name_cannot_be_guessed(self, tmp_path):
        first, second = NewFile(tmp_path / "a"), NewFile(tmp_path / "a")
        assert first.path != second.path
        # 128 random bits.
        assert len(first.path.name.split(".")[1]) == 32
        first.discard()
        second.discard()
        assert names_in(tmp_path) == []

    def test_link_under_the_name_is_not_followed(self, tmp_path, monkeypatch):
        (tmp_path / "victim").write_text("mine")
        monkeypatch.setattr(temporary.secrets, "token_hex", lambda _: "0" * 32)
        for kind in ("tmp", "lock"):
            link = tmp_path / f".{'0' * 32}.unet_core-{kind}"
            link.symlink_to("victim")
            with pytest.raises(FileExistsError) as error:
                NewFile(tmp_path / "a")
            assert error.value.filename == str(tmp_path / "a")
            link.unlink()
        assert (tmp_path / "victim").read_text() == "mine"
        assert names_in(tmp_path) == ["victim"]

    def test_link_in_its_place_is_replaced_and_its_target_stays(self, tmp_path):
        (tmp_path / "victim").write_text("mine")
        (tmp_path / "a").symlink_to("victim")
        write_whole(tmp_path / "a", b"new")
        assert not (tmp_path / "a").is_symlink()
        assert (tmp_path / "a").read_bytes() == b"new"
        assert (tmp_path / "victim").read_text() == "mine"

    def test_hard_link_in_its_place_leaves_the_other_name_alone(self, tmp_path):
        (tmp_path / "victim").write_text("mine")
        os.link(tmp_path / "victim", tmp_path / "a")
        write_whole(tmp_path / "a", b"new")
        assert (tmp_path / "victim").read_text() == "mine"

    @pytest.mark.parametrize(
        ("make", "reason"),
        [
            (os.mkdir, "Is a directory"),
            (os.mkfifo, "is not a regular file"),
            (lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3)), "is not a"),
        ],
        ids=["folder", "pipe", "device"],
    )
    def test_what_is_no_file_is_one_error_and_stays(self, tmp_path, make, reason):
        try:
            make(tmp_path / "a")
        except PermissionError:
            pytest.skip("no device can be made here")
        before = os.lstat(tmp_path / "a")
        with pytest.raises(OSError, match=reason) as error:
            write_whole(tmp_path / "a", b"new")
        assert error.value.filename == str(tmp_path / "a")
        assert os.lstat(tmp_path / "a").st_mode == before.st_mode
        assert names_in(tmp_path) == ["a"]

    @pytest.mark.parametrize("mask", [0o022, 0o027, 0o002])
    def test_new_file_follows_the_umask(self, tmp_path, umask, mask):
        umask(mask)
        write_whole(tmp_path / "a", b"new")
        assert mode_of(tmp_path / "a") == 0o666 & ~mask

    def test_replaced_file_keeps_its_mode(self, tmp_path, umask):
        (tmp_path / "a").touch()
        (tmp_path / "a").chmod(0o646)
        write_whole(tmp_path / "a", b"new")
        assert mode_of(tmp_path / "a") == 0o646

    def test_longest_name_can_be_written(self, tmp_path):
        write_whole(tmp_path / ("a" * 255), b"new")
        assert names_in(tmp_path) == ["a" * 255]

    def test_discarded_file_leaves_the_old_one(self, tmp_path):
        (tmp_path / "a").write_text("old")
        new = NewFile(tmp_path / "a")
        new.file.write(b"new")
        new.discard()
        assert (tmp_path / "a").read_text() == "old"
        assert names_in(tmp_path) == ["a"]


class TestNewFolder:
    def test_is_there_as_a_whole_or_not_at_all(self, tmp_path):
        with new_folder(tmp_path / "deep" / "a") as folder:
            (folder / "b").mkdir()
            (folder / "b" / "c").write_text("x")
            assert not (tmp_path / "deep" / "a").exists()
        assert (tmp_path / "deep" / "a" / "b" / "c").read_text() == "x"
        assert names_in(tmp_path / "deep") == ["a"]

    def test_error_in_the_block_leaves_nothing(self, tmp_path):
        def fill():
            with new_folder(tmp_path / "a") as folder:
                (folder / "b").write_text("x")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fill()
        assert names_in(tmp_path) == []

    @pytest.mark.parametrize(
        "make",
        [os.mkdir, pathlib.Path.touch, lambda path: path.symlink_to("nothing")],
        ids=["empty_folder", "file", "link_to_nothing"],
    )
    def test_what_came_to_have_the_name_stays(self, tmp_path, make):
        def fill():
            with new_folder(tmp_path / "a"):
                make(tmp_path / "a")

        with pytest.raises(FileExistsError) as error:
            fill()
        assert error.value.filename == str(tmp_path / "a")
        assert names_in(tmp_path) == ["a"]

    def test_follows_the_umask(self, tmp_path, umask):
        umask(0o027)
        with new_folder(tmp_path / "a"):
            pass
        assert mode_of(tmp_path / "a") == 0o750

    def test_files_are_flushed_before_the_folder_has_its_name(self, tmp_path, monkeypatch):
        flushed = []

        def flush(path):
            flushed.append((os.path.basename(path), (tmp_path / "a").exists()))

        monkeypatch.setattr("unet_core.files.flush", flush)
        with new_folder(tmp_path / "a") as folder:
            (folder / "b").mkdir()
            (folder / "b" / "c").write_text("x")
            inner = folder.name
        assert sorted(flushed[:-1]) == sorted([("c", False), ("b", False), (inner, False)])
        assert flushed[-1] == (tmp_path.name, True)

    def test_scratch_folder_is_removed_with_all_it_holds(self, tmp_path):
        with scratch_folder(tmp_path) as folder:
            (folder / "a").write_text("x")
            assert len(names_in(tmp_path)) == 2
        assert names_in(tmp_path) == []


class TestLeftovers:
    @pytest.mark.parametrize("kind", ["NewFile", "NewFolder"])
    def test_ten_kills_leave_nothing_after_the_next_write(self, tmp_path, kind):
        for _ in range(10):
            kill_while_writing(kind, tmp_path / "a")
        # Each has removed what the one before it left.
        assert len(leftovers(tmp_path)) == 1
        write_whole(tmp_path / "b", b"new")
        assert names_in(tmp_path) == ["b"]

    def test_what_a_living_process_writes_stays(self, tmp_path):
        writing = subprocess.Popen(
            [sys.executable, "-c", WAITING, str(tmp_path / "a")],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writing.stdout.readline() == "begun\n"
        (path,) = leftovers(tmp_path)
        remove_leftovers(tmp_path)
        write_whole(tmp_path / "b", b"new")
        assert path.exists()
        writing.communicate("go on\n")
        assert writing.returncode == 0
        assert (tmp_path / "a").read_bytes() == b"whole"
        assert names_in(tmp_path) == ["a", "b"]

    def left(self, folder, *, mark=None, age=0):
        """Makes what a killed process leaves, and returns it and its lock."""
        new = NewFile(folder / "a")
        lock = folder / new.path.name.replace("-tmp", "-lock")
        os.close(new._lock)
        if mark is not None:
            lock.write_bytes(mark)
        then = time.time() - age
        os.utime(lock, (then, then))
        return new.path, lock

    def test_what_is_not_certainly_ours_stays(self, tmp_path):
        path, lock = self.left(tmp_path, mark=b"a note of mine", age=2 * 24 * 3600)
        (tmp_path / f".{'1' * 32}.unet_core-tmp").write_text("without a lock")
        (tmp_path / ".mine.unet_core-lock").write_bytes(temporary._mark())
        (tmp_path / ".mine.unet_core-tmp").write_text("mine")
        (tmp_path / "victim").write_bytes(temporary._mark())
        (tmp_path / f".{'2' * 32}.unet_core-lock").symlink_to("victim")
        before = names_in(tmp_path)
        remove_leftovers(tmp_path)
        assert names_in(tmp_path) == before
        assert path.exists()
        assert lock.exists()

    def test_link_in_the_place_of_a_leftover_is_removed_and_not_followed(self, tmp_path):
        path, _ = self.left(tmp_path)
        path.unlink()
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "note").write_text("mine")
        path.symlink_to("mine")
        remove_leftovers(tmp_path)
        assert names_in(tmp_path) == ["mine"]
        assert (tmp_path / "mine" / "note").read_text() == "mine"

    @pytest.mark.parametrize(("hours", "stays"), [(23, True), (25, False)])
    def test_what_another_machine_left_is_removed_after_a_day(self, tmp_path, hours, stays):
        mark = temporary._MARK + b"another-machine"
        path, _ = self.left(tmp_path, mark=mark, age=3600 * hours)
        remove_leftovers(tmp_path)
        assert path.exists() == stays

    def test_file_system_that_cannot_lock_keeps_it(self, tmp_path, monkeypatch):
        path, _ = self.left(tmp_path)

        def refuse(*_, **__):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(temporary, "lock_descriptor", refuse)
        remove_leftovers(tmp_path)
        write_whole(tmp_path / "b", b"new")
        assert (tmp_path / "b").read_bytes() == b"new"
        assert path.exists()

    def test_what_could_not_be_locked_is_never_removed(self, tmp_path, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(temporary, "lock_descriptor", lambda *_, **__: False)
            path, _ = self.left(tmp_path)
        remove_leftovers(tmp_path)
        assert path.exists()

    def test_folder_is_looked_through_once_by_a_process(self, tmp_path):
        write_whole(tmp_path / "b", b"new")
        path, _ = self.left(tmp_path)
        write_whole(tmp_path / "b", b"new")
        assert path.exists()
        remove_leftovers(tmp_path)
        assert not path.exists()

    def test_lock_of_the_run_is_none_of_them(self, tmp_path):
        descriptor = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
        lock_descriptor(descriptor, blocking=False)
        os.close(descriptor)
        remove_leftovers(tmp_path)
        assert names_in(tmp_path) == ["lock"]
