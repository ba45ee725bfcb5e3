import cv2
import numpy as np
import pytest

from unet_core.data import images
from unet_core.errors import UserError

PICTURE = np.arange(12 * 20, dtype=np.uint8).reshape(12, 20)


class TestReadGrey:
    def test_written_picture_is_read_back(self, tmp_path):
        images.write_png(tmp_path / "a.png", PICTURE)
        read = images.read_grey(tmp_path / "a.png")
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, PICTURE)

    @pytest.mark.parametrize("share", [0.3, 0.7, 0.99])
    def test_truncated_png_is_refused_with_its_size(self, tmp_path, share):
        noise = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
        images.write_png(tmp_path / "a.png", noise)
        content = (tmp_path / "a.png").read_bytes()
        length = int(len(content) * share)
        (tmp_path / "a.png").write_bytes(content[:length])
        with pytest.raises(UserError, match=rf"a\.png: the PNG is cut short \({length} bytes"):
            images.read_grey(tmp_path / "a.png")

    @pytest.mark.parametrize("content", [b"", b"not a picture at all"])
    def test_file_that_is_no_picture_is_refused(self, tmp_path, content):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(UserError, match=r"a\.png: cannot be decoded as a picture"):
            images.read_grey(tmp_path / "a.png")

    def test_missing_file_is_refused(self, tmp_path):
        with pytest.raises(UserError, match=r"a\.png: cannot be read \(No such file"):
            images.read_grey(tmp_path / "a.png")

    @pytest.mark.parametrize(
        ("pixels", "found"),
        [
            (PICTURE.astype(np.uint16) * 200, r"1 channel\(s\) of uint16"),
            (np.dstack([PICTURE] * 3), r"3 channel\(s\) of uint8"),
            (np.dstack([PICTURE] * 4), r"4 channel\(s\) of uint8"),
        ],
    )
    def test_other_depth_or_colour_is_refused_with_what_was_found(self, tmp_path, pixels, found):
        images.write_png(tmp_path / "a.png", pixels)
        with pytest.raises(UserError, match=rf"a\.png: has {found}; expected one channel of uint8"):
            images.read_grey(tmp_path / "a.png")


class TestWritePng:
    def test_sixteen_bits_survive(self, tmp_path):
        pixels = np.array([[0, 1, 65535], [256, 257, 4660]], np.uint16)
        images.write_png(tmp_path / "a.png", pixels)
        read = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED)
        assert read.dtype == np.uint16
        np.testing.assert_array_equal(read, pixels)

    def test_nothing_but_the_picture_is_left(self, tmp_path):
        images.write_png(tmp_path / "a.png", PICTURE)
        assert [path.name for path in tmp_path.iterdir()] == ["a.png"]

    def test_interrupted_write_leaves_the_old_picture(self, tmp_path, monkeypatch):
        images.write_png(tmp_path / "a.png", PICTURE)

        def fill_disk(path, content):
            with open(path, "wb") as file:
                file.write(content[:40])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(images.pathlib.Path, "write_bytes", fill_disk)
        with pytest.raises(OSError, match="No space left"):
            images.write_png(tmp_path / "a.png", 255 - PICTURE)
        np.testing.assert_array_equal(images.read_grey(tmp_path / "a.png"), PICTURE)

    def test_missing_folder_raises(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            images.write_png(tmp_path / "none" / "a.png", PICTURE)
