import errno
import json
import os
import pathlib
import stat
import subprocess
import sys
import warnings

import pytest
from helpers.full_disk import full_disk

from unet_core import files
from unet_core.errors import UserError
from unet_core.files import flush, local_path, printable, safe_name, write_whole

ROOT = pathlib.Path(__file__).parents[1]


class TestLocalPath:
    def test_relative_path_stays_where_it_was_after_a_change_of_folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        path = local_path("a/../run")
        monkeypatch.chdir("/")
        assert path == tmp_path / "run"
        assert isinstance(path, pathlib.Path)

    @pytest.mark.parametrize("kind", [str, pathlib.Path])
    def test_tilde_is_the_home_folder(self, monkeypatch, kind):
        monkeypatch.setenv("HOME", "/home/somebody")
        assert local_path(kind("~/run")) == pathlib.Path("/home/somebody/run")
        assert local_path(kind("~")) == pathlib.Path("/home/somebody")

    def test_links_are_not_followed(self, tmp_path):
        (tmp_path / "there").mkdir()
        (tmp_path / "link").symlink_to("there")
        assert local_path(tmp_path / "link") == tmp_path / "link"

    @pytest.mark.parametrize(
        "address",
        [
            "gs://bucket/run",
            "s3://bucket",
            "S3a://bucket",
            "hdfs:///run",
            "memory://run",
            "file:///tmp/run",
            "abfs+secure://run",
            "simplecache::s3://bucket/run",
            " gs://bucket/run",
        ],
    )
    @pytest.mark.parametrize("kind", [str, pathlib.Path])
    def test_address_is_refused_with_its_name_the_rule_and_the_way_out(
        self, tmp_path, monkeypatch, address, kind
    ):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UserError) as error:
            local_path(kind(address))
        message = str(error.value)
        assert message.startswith(str(kind(address)))
        for part in ("a folder of this machine or a mounted one", "renamed", "mount it", "copy"):
            assert part in message
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        "name", ["run:1", "2026-11-25T12:30:00/run", "C:/run", "a:b/c", "run:"]
    )
    def test_colon_in_a_name_is_no_address(self, name):
        assert local_path(name) == pathlib.Path.cwd() / name

    @pytest.mark.parametrize("path", [b"run", None, 3, ["run"], os.DirEntry])
    def test_other_types_are_refused_by_name(self, path):
        with pytest.raises(UserError, match=f"of type {type(path).__name__}, but a path must be"):
            local_path(path)

    def test_path_like_of_bytes_is_refused(self, tmp_path):
        (tmp_path / "a").touch()
        (entry,) = os.scandir(os.fsencode(tmp_path))
        with pytest.raises(UserError, match="of type DirEntry"):
            local_path(entry)

    def test_nul_is_refused(self):
        with pytest.raises(UserError, match="holds a NUL character"):
            local_path("run\0")

    def test_needs_no_tensorflow(self):
        code = "import sys, unet_core.files; sys.exit('tensorflow' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.fixture
def fsync_error(monkeypatch):
    """A function after which `os.fsync` of folders (or of files) fails with the given number."""
    monkeypatch.setattr(files, "_warned", set())
    real = os.fsync

    def fail(number, *, folders):
        def fsync(descriptor):
            if stat.S_ISDIR(os.fstat(descriptor).st_mode) == folders:
                raise OSError(number, os.strerror(number))
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)

    return fail


class TestFlush:
    def test_file_and_folder_are_flushed_once_each_and_closed(self, tmp_path, monkeypatch):
        flushed = []
        monkeypatch.setattr(os, "fsync", lambda fd: flushed.append((fd, os.fstat(fd).st_ino)))
        path = tmp_path / "a"
        path.touch()
        flush(path)
        flush(str(tmp_path))
        assert [number for _, number in flushed] == [path.stat().st_ino, tmp_path.stat().st_ino]
        for descriptor, _ in flushed:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(descriptor)

    @pytest.mark.parametrize(
        "name", ["EINVAL", "EBADF", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EACCES", "EISDIR"]
    )
    def test_folder_that_cannot_be_flushed_is_one_warning_per_process(
        self, tmp_path, fsync_error, name
    ):
        fsync_error(getattr(errno, name), folders=True)
        (tmp_path / "b").mkdir()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            flush(tmp_path)
            flush(tmp_path)
            flush(tmp_path / "b")
        (warning,) = caught
        assert str(warning.message).startswith(f"{tmp_path}: ")
        assert "a power cut may lose the newest save" in str(warning.message)
        assert warning.filename == __file__

    def test_folder_that_cannot_be_opened_is_a_warning(self, tmp_path, monkeypatch):
        monkeypatch.setattr(files, "_warned", set())

        def refuse(path, flags):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

        monkeypatch.setattr(os, "open", refuse)
        with pytest.warns(RuntimeWarning, match=r"cannot flush a folder \(Permission denied\)"):
            flush(tmp_path)

    @pytest.mark.parametrize("name", ["ENOSPC", "EIO", "EDQUOT", "EINVAL", "EACCES"])
    def test_error_of_a_file_is_raised_and_names_it(self, tmp_path, fsync_error, name):
        (tmp_path / "a").touch()
        fsync_error(getattr(errno, name), folders=False)
        with pytest.raises(OSError, match=r"a'$") as error:
            flush(tmp_path / "a")
        assert error.value.errno == getattr(errno, name)
        assert error.value.filename == str(tmp_path / "a")

    @pytest.mark.parametrize("name", ["ENOSPC", "EIO", "EDQUOT"])
    def test_full_or_broken_disk_under_a_folder_is_raised(self, tmp_path, fsync_error, name):
        fsync_error(getattr(errno, name), folders=True)
        with pytest.raises(OSError, match=tmp_path.name) as error:
            flush(tmp_path)
        assert error.value.errno == getattr(errno, name)

    def test_missing_file_is_raised(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            flush(tmp_path / "none")


class TestOsErrors:
    def message(self, error, kinds=(OSError,)):
        def fail():
            with files.os_errors("/run", "cannot be written", "Make room.", kinds=kinds):
                raise error

        with pytest.raises(UserError) as caught:
            fail()
        return str(caught.value)

    def test_says_path_reason_and_what_to_do(self):
        error = OSError(28, "No space left on device", "/run")
        assert (
            self.message(error) == "/run: cannot be written (No space left on device). Make room."
        )

    def test_names_the_file_if_it_is_another(self):
        error = OSError(28, "No space left on device", "/run/a")
        assert "(No space left on device: /run/a)" in self.message(error)

    def test_reason_of_hdf5_is_its_first_line(self):
        assert "(unable to write). Make" in self.message(OSError("unable to write\nat 3"))

    def test_reason_of_tensorflow_is_what_the_system_said(self):
        class OpError(Exception):
            message = "/run/a; No space left on device [Op:SaveV2]\nmore"

        assert "(No space left on device). Make" in self.message(OpError("x"), (OpError,))

    def test_other_errors_pass(self):
        with (
            pytest.raises(ZeroDivisionError),
            files.os_errors("/run", "cannot be written", "Make room."),
        ):
            raise ZeroDivisionError


class TestWriteJson:
    def test_what_json_lacks_becomes_null_at_any_depth(self, tmp_path):
        inf = float("inf")
        files.write_json(tmp_path / "a.json", {"a": [inf, (-inf, 1.5)], "b": float("nan")})
        assert json.loads((tmp_path / "a.json").read_text()) == {
            "a": [None, [None, 1.5]],
            "b": None,
        }


class TestWriteWhole:
    def test_content_is_all_that_is_left(self, tmp_path):
        write_whole(tmp_path / "a.bin", b"old and long")
        write_whole(tmp_path / "a.bin", b"new")
        assert (tmp_path / "a.bin").read_bytes() == b"new"
        assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]

    def test_full_disk_leaves_the_old_file_and_nothing_else_and_names_the_file(self, tmp_path):
        write_whole(tmp_path / "a.bin", b"old")

        with full_disk(), pytest.raises(OSError, match="No space left on device") as error:
            write_whole(tmp_path / "a.bin", b"new")
        assert error.value.filename == str(tmp_path / "a.bin")
        assert (tmp_path / "a.bin").read_bytes() == b"old"
        assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]

    def test_missing_folder_names_the_file(self, tmp_path):
        with pytest.raises(FileNotFoundError) as error:
            write_whole(tmp_path / "none" / "a.bin", b"new")
        assert error.value.filename == str(tmp_path / "none" / "a.bin")


class TestNames:
    def test_printable_writes_what_is_no_text_as_its_byte(self):
        assert printable("ab c.png") == "ab c.png"
        # As `os.fsdecode` gives Latin-1's a with dots, on Linux.
        assert printable("zelle_\udce4\n") == "zelle_%E4%0A"

    def test_safe_names_are_composed_and_short_and_differ_where_the_long_ones_do(self):
        assert safe_name("a\u0308") == "\u00e4"
        assert safe_name("n" * 160) == "n" * 160
        first, second = safe_name("n" * 200 + "1"), safe_name("n" * 200 + "2")
        assert len(first) == len(second) == 160
        assert first != second
        # Two bytes each: a character is not cut in half.
        assert len(safe_name("\u00e4" * 100).encode()) in (159, 160)
