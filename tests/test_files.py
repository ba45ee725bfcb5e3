import pathlib

import pytest

from unet_core.files import write_whole


class TestWriteWhole:
    def test_content_is_all_that_is_left(self, tmp_path):
        write_whole(tmp_path / "a.bin", b"old and long")
        write_whole(tmp_path / "a.bin", b"new")
        assert (tmp_path / "a.bin").read_bytes() == b"new"
        assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]

    def test_full_disk_leaves_the_old_file_and_no_part_and_names_the_file(
        self, tmp_path, monkeypatch
    ):
        write_whole(tmp_path / "a.bin", b"old")

        def fill_disk(path, content):
            with path.open("wb") as file:
                file.write(content[:1])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(pathlib.Path, "write_bytes", fill_disk)
        with pytest.raises(OSError, match="No space left on device") as error:
            write_whole(tmp_path / "a.bin", b"new")
        assert error.value.filename == str(tmp_path / "a.bin")
        assert (tmp_path / "a.bin").read_bytes() == b"old"
        assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]

    def test_missing_folder_names_the_file(self, tmp_path):
        with pytest.raises(FileNotFoundError) as error:
            write_whole(tmp_path / "none" / "a.bin", b"new")
        assert error.value.filename == str(tmp_path / "none" / "a.bin")
