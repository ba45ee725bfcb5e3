import itertools
import os
import pathlib
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest

from unet_core.data.classes import ClassMap
from unet_core.errors import UserError
from unet_core.inference.masks import MaskRule, Threshold
from unet_core.outputs import video
from unet_core.outputs.video import (
    camera_number,
    choose_codec,
    describe,
    is_video,
    make_window,
    open_video,
    predict_video,
)

CLASSES = ClassMap.parse("0:ground,255:cell")


def disc_at(number, size):
    """[H, W] bool: a disc of radius 9 that moves 4 pixels to the right each frame."""
    width, height = size
    rows, columns = np.indices((height, width))
    return (rows - 30) ** 2 + (columns - 15 - 4 * number) ** 2 <= 81


def write_cells(path, *, size=(96, 64), frames=12, rate=10.0):
    """Grey 200 where the disc is and 40 elsewhere, as Motion JPEG, which keeps odd sizes."""
    fourcc = cv2.VideoWriter_fourcc(*"MJPG")
    writer = cv2.VideoWriter(str(path), cv2.CAP_OPENCV_MJPEG, fourcc, rate, size)
    for number in range(frames):
        grey = np.where(disc_at(number, size), 200, 40).astype(np.uint8)
        writer.write(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR))
    writer.release()
    return str(path)


def frames_of(path):
    """All frames of a video, [N, H, W, 3] in BGR order, and its rate."""
    capture = cv2.VideoCapture(str(path))
    frames = [frame for _, frame in iter(capture.read, (False, None))]
    return np.array(frames), capture.get(cv2.CAP_PROP_FPS)


def bright_is_cell(image):
    cell = (image if image.ndim == 2 else image[..., 1]) > 120
    return np.stack([~cell, cell], -1).astype(np.float32)


def run(source, stem, predict=bright_is_cell, **kwargs):
    settings = {"classes": CLASSES, "channels": 1, "alpha": 0.5} | kwargs
    return predict_video(predict, source, stem, **settings)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


class TestNames:
    def test_video_is_told_by_its_suffix_whatever_its_case(self):
        assert is_video("a/b.MP4")
        assert is_video(pathlib.Path("b.webm"))
        assert not is_video("b.png")

    def test_camera_is_a_number_after_the_word(self):
        assert camera_number("camera:0") == 0
        assert camera_number("camera:12") == 12
        assert camera_number("camera:") is None
        assert camera_number("camera:-1") is None
        assert camera_number("cells.mp4") is None


class TestOpenVideo:
    def test_tells_size_count_and_rate_and_gives_rgb_frames(self, tmp_path):
        path = str(tmp_path / "red.avi")
        writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 12.5, (32, 16))
        for _ in range(3):
            writer.write(np.full((16, 32, 3), (0, 0, 250), np.uint8))
        writer.release()
        with open_video(path) as opened:
            assert (opened.width, opened.height, opened.frames) == (32, 16, 3)
            assert opened.frames_per_sec == pytest.approx(12.5)
            frames = list(opened)
            assert opened.problem is None
        assert len(frames) == 3
        # Red comes first; JPEG changes it by a few levels.
        assert frames[0].dtype == np.uint8
        np.testing.assert_allclose(frames[0].mean((0, 1)), (250, 0, 0), atol=6)

    def test_colon_in_a_name_is_no_protocol(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        write_cells("cells.avi", frames=3)
        write_cells("file:cells.avi", frames=2)
        with open_video("file:cells.avi") as opened:
            assert len(list(opened)) == 2

    @pytest.mark.parametrize(
        "content",
        [np.random.default_rng(0).bytes(5000), b"", b"0 1 2\n" * 200],
        ids=["random", "empty", "text"],
    )
    def test_what_is_no_video_is_one_message_and_no_noise(self, tmp_path, capfd, content):
        path = tmp_path / "bad_01.mp4"
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"bad_01\.mp4: .*decoded.*convert"):
            open_video(path).__enter__()
        assert capfd.readouterr() == ("", "")

    def test_missing_file_names_the_kinds(self, tmp_path):
        with pytest.raises(UserError, match=r"none\.mp4: cannot be read .*No such file.*camera:0"):
            open_video(tmp_path / "none.mp4").__enter__()

    def test_folder_is_no_video(self, tmp_path):
        with pytest.raises(UserError, match="cannot be read as a video"):
            open_video(tmp_path).__enter__()

    def test_video_without_a_frame_is_one_message(self, tmp_path, capfd):
        write_cells(tmp_path / "none.avi", frames=0)
        with pytest.raises(UserError, match=r"none\.avi"):
            open_video(tmp_path / "none.avi").__enter__()
        assert capfd.readouterr() == ("", "")

    def test_camera_that_is_not_there_is_one_message_and_no_noise(self, capfd):
        with pytest.raises(UserError, match="camera:99: there is no such camera"):
            open_video("camera:99").__enter__()
        assert capfd.readouterr() == ("", "")

    def test_frame_of_another_size_ends_the_video_with_a_sentence(self, monkeypatch):
        sizes = iter([(4, 6, 3), (4, 6, 3), (8, 6, 3)])
        opened = video.Video("a.mkv", cv2.VideoCapture(), np.zeros(next(sizes), np.uint8))
        monkeypatch.setattr(video, "_read", lambda *_: np.zeros(next(sizes), np.uint8))
        assert len(list(opened)) == 2
        assert "frame 3 is 6x8 and the frames before it are 6x4" in opened.problem

    def test_standard_error_is_as_before_afterwards(self, tmp_path, capfd):
        with open_video(write_cells(tmp_path / "a.avi", frames=2)) as opened:
            list(opened)
        os.write(2, b"native ")
        print("python", file=sys.stderr)
        assert capfd.readouterr().err == "native python\n"

    def test_import_leaves_log_levels_and_environment_alone(self):
        code = (
            "import os, unet_core.outputs.files; from cv2.utils import logging;"
            "before = dict(os.environ), logging.getLogLevel();"
            "import unet_core.outputs.video;"
            "assert (dict(os.environ), logging.getLogLevel()) == before"
        )
        subprocess.run([sys.executable, "-c", code], check=True)


class TestChooseCodec:
    @pytest.mark.parametrize("size", [(96, 64), (97, 65), (97, 64), (1, 1)])
    @pytest.mark.parametrize("rate", [10.0, 30000 / 1001, 7.5])
    def test_codec_keeps_size_count_and_rate(self, tmp_path, capfd, size, rate):
        codec = choose_codec(".mp4", tmp_path, size=size, frames_per_sec=rate)
        assert names_in(tmp_path) == []
        assert capfd.readouterr() == ("", "")
        path = tmp_path / f"a{codec.suffix}"
        writer = video._Writer(path, codec, size, rate)
        for _ in range(4):
            writer.write(np.zeros((size[1], size[0], 3), np.uint8))
        writer.close()
        frames, found_rate = frames_of(path)
        assert frames.shape == (4, size[1], size[0], 3)
        assert found_rate == pytest.approx(rate, rel=1e-3)

    def test_odd_sizes_and_unknown_suffixes_become_avi(self, tmp_path):
        odd = choose_codec(".mp4", tmp_path, size=(97, 65), frames_per_sec=10)
        assert (odd.suffix, odd.fourcc) == (".avi", "MJPG")
        unknown = choose_codec(".gif", tmp_path, size=(96, 64), frames_per_sec=10)
        assert (unknown.suffix, unknown.fourcc) == (".avi", "MJPG")

    def test_no_codec_is_one_message(self, tmp_path, monkeypatch):
        monkeypatch.setattr(video, "_keeps", lambda *args, **kwargs: False)
        with pytest.raises(UserError, match=r"writes no video of 96x64 pixels at 10 frames/s"):
            choose_codec(".mp4", tmp_path, size=(96, 64), frames_per_sec=10)


class TestPredictVideo:
    @pytest.mark.parametrize("size", [(96, 64), (97, 65)], ids=["even", "odd"])
    def test_masks_follow_the_disc_and_outputs_keep_count_size_and_rate(
        self, tmp_path, capfd, size
    ):
        width, height = size
        result = run(write_cells(tmp_path / "cells.avi", size=size), tmp_path / "out" / "cells")
        overlay, masks = sorted(result.outputs, key=lambda path: "masks" in path.name)
        frames, rate = frames_of(overlay)
        assert frames.shape == (12, height, width, 3)
        assert rate == pytest.approx(10)
        assert overlay.name == "cells_overlay.avi"
        if masks.is_dir():
            found = [
                cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in sorted(masks.iterdir())
            ]
        else:
            found, rate = frames_of(masks)
            assert rate == pytest.approx(10)
            assert (found[..., :1] == found).all()
            found = found[..., 0]
        expected = [np.where(disc_at(number, size), 255, 0) for number in range(12)]
        np.testing.assert_array_equal(found, expected)
        assert (result.frames, result.width, result.height) == (12, width, height)
        assert result.video_frames_per_sec == pytest.approx(10)
        assert result.warnings == ()
        assert names_in(tmp_path / "out") == sorted([overlay.name, masks.name])
        assert capfd.readouterr() == ("", "")

    def test_overlay_blends_the_cell_and_leaves_the_ground(self, tmp_path):
        source = write_cells(tmp_path / "cells.avi")
        result = run(source, tmp_path / "o", outputs={"overlay"}, alpha=0.5)
        frames, _ = frames_of(result.outputs[0])
        # Class 1 is (178, 114, 0) in BGR; half of it and half of 200 are (189, 157, 100).
        np.testing.assert_allclose(frames[3][30, 15 + 12], (189, 157, 100), atol=12)
        np.testing.assert_allclose(frames[3][5, 80], (40, 40, 40), atol=12)

    def test_masks_are_made_as_asked(self, tmp_path):
        # The probability of cell is 1 in the disc; above 1 there is none.
        source = write_cells(tmp_path / "cells.avi", frames=2)
        none = MaskRule(Threshold(1, 1.0))
        result = run(source, tmp_path / "o", outputs={"mask"}, make_mask=none)
        (masks,) = result.outputs
        found = (
            [cv2.imread(str(path)) for path in masks.iterdir()]
            if masks.is_dir()
            else frames_of(masks)[0]
        )
        assert len(found) == 2
        assert not np.any(found)

    def test_network_of_three_channels_gets_rgb(self, tmp_path):
        seen = []

        def predict(image):
            seen.append(image.shape)
            return bright_is_cell(image)

        run(write_cells(tmp_path / "a.avi", frames=2), tmp_path / "o", predict, channels=3)
        assert seen == [(64, 96, 3)] * 2

    def test_mp4_stays_mp4(self, tmp_path):
        source = str(tmp_path / "a.mp4")
        writer = cv2.VideoWriter(source, cv2.VideoWriter_fourcc(*"mp4v"), 10, (96, 64))
        if not writer.isOpened():
            pytest.skip("This OpenCV writes no MPEG-4.")
        for _ in range(3):
            writer.write(np.full((64, 96, 3), 200, np.uint8))
        writer.release()
        result = run(source, tmp_path / "o", outputs={"overlay"})
        assert [path.name for path in result.outputs] == ["o_overlay.mp4"]
        assert len(frames_of(result.outputs[0])[0]) == 3

    def test_values_above_255_are_png_of_16_bits(self, tmp_path):
        classes = ClassMap.parse("0:ground,1000:cell")
        source = write_cells(tmp_path / "a.avi", frames=2)
        result = run(source, tmp_path / "o", outputs={"mask"}, classes=classes)
        mask = cv2.imread(str(result.outputs[0] / "000001.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(mask, np.where(disc_at(1, (96, 64)), 1000, 0))

    def test_codec_that_changes_pixels_is_not_used_for_masks(self, tmp_path, monkeypatch):
        monkeypatch.setattr(video, "_LOSSLESS_CODECS", [video.Codec(".avi", "MJPG")])
        source = write_cells(tmp_path / "a.avi", frames=2)
        result = run(source, tmp_path / "o", outputs={"mask"})
        assert names_in(result.outputs[0]) == ["000000.png", "000001.png"]

    def test_coloured_classes_keep_their_colours(self, tmp_path):
        classes = ClassMap.parse("#000000:ground,#ff8001:cell")
        source = write_cells(tmp_path / "a.avi", frames=2)
        result = run(source, tmp_path / "o", outputs={"mask"}, classes=classes)
        masks, _ = frames_of(result.outputs[0])
        np.testing.assert_array_equal(masks[0][30, 15], (0x01, 0x80, 0xFF))

    def test_video_that_breaks_off_is_predicted_so_far_with_a_warning(self, tmp_path, capfd):
        source = write_cells(tmp_path / "cells.avi")
        content = pathlib.Path(source).read_bytes()
        pathlib.Path(source).write_bytes(content[: len(content) // 2])
        result = run(source, tmp_path / "o")
        assert 1 <= result.frames < 12
        assert len(frames_of(next(p for p in result.outputs if "overlay" in p.name))[0]) == (
            result.frames
        )
        (warning,) = result.warnings
        assert f"names 12 frames and {result.frames} could be decoded" in warning
        assert capfd.readouterr() == ("", "")

    def test_damaged_frames_are_left_out_with_a_warning_and_no_noise(self, tmp_path, capfd):
        path = tmp_path / "a.mp4"
        rng = np.random.default_rng(0)
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, (96, 64))
        if not writer.isOpened():
            pytest.skip("This OpenCV writes no MPEG-4.")
        for _ in range(30):
            writer.write(rng.integers(0, 256, (64, 96, 3), np.uint8))
        writer.release()
        content = bytearray(path.read_bytes())
        middle, length = len(content) // 2, len(content) // 8
        content[middle : middle + length] = rng.bytes(length)
        path.write_bytes(content)
        capfd.readouterr()
        result = run(str(path), tmp_path / "o")
        # An eighth of the bytes are about four frames; those behind them are predicted, too.
        assert 20 < result.frames < 30
        assert f"names 30 frames and {result.frames} could be decoded" in result.warnings[0]
        assert capfd.readouterr() == ("", "")

    def test_most_frames_ends_the_run_without_a_warning(self, tmp_path):
        lengths = []

        def progress(steps):
            lengths.append(len(steps))
            return iter(steps)

        source = write_cells(tmp_path / "a.avi")
        result = run(source, tmp_path / "o", most_frames=5, progress=progress)
        assert (result.frames, result.warnings, lengths) == (5, (), [5])

    def test_stop_request_keeps_what_is_done(self, tmp_path):
        asked = iter([False] * 4 + [True])
        source = write_cells(tmp_path / "a.avi")
        result = run(source, tmp_path / "o", outputs={"overlay"}, should_stop=lambda: next(asked))
        assert result.frames == 4
        assert "stopped after 4 frame(s), as asked" in result.warnings[0]
        assert len(frames_of(tmp_path / "o_overlay.avi")[0]) == 4

    def test_stop_request_before_the_first_frame_leaves_nothing(self, tmp_path):
        source = write_cells(tmp_path / "a.avi")
        result = run(source, tmp_path / "o", should_stop=lambda: True)
        assert (result.frames, result.outputs) == (0, ())
        assert names_in(tmp_path) == ["a.avi"]
        assert "-" in describe(result)

    def test_window_gets_each_overlay_and_can_end_the_run(self, tmp_path):
        shown = []

        def show(picture):
            shown.append(picture)
            return len(shown) < 3

        result = run(write_cells(tmp_path / "a.avi"), tmp_path / "o", outputs=(), show=show)
        assert (result.frames, result.outputs) == (3, ())
        assert shown[0].shape == (64, 96, 3)
        np.testing.assert_allclose(shown[0][30, 15], (189, 157, 100), atol=12)
        assert names_in(tmp_path) == ["a.avi"]

    def test_existing_output_is_replaced_only_if_asked(self, tmp_path):
        source = write_cells(tmp_path / "a.avi", size=(97, 65))
        for frames in (4, 2):
            with_room = {"overwrite": frames == 2, "most_frames": frames}
            overlay_and_masks = sorted(run(source, tmp_path / "o", **with_room).outputs)
        assert len(frames_of(tmp_path / "o_overlay.avi")[0]) == 2
        assert names_in(tmp_path / "o_masks") == ["000000.png", "000001.png"]
        assert len(overlay_and_masks) == 2
        with pytest.raises(UserError, match=r"exists already.*`overwrite`"):
            run(source, tmp_path / "o")
        assert len(frames_of(tmp_path / "o_overlay.avi")[0]) == 2

    def test_folder_with_other_things_is_not_replaced(self, tmp_path):
        source = write_cells(tmp_path / "a.avi", size=(97, 65), frames=2)
        (tmp_path / "o_masks").mkdir()
        (tmp_path / "o_masks" / "thesis.txt").write_text("mine")
        with pytest.raises(UserError, match=r"o_masks: holds thesis\.txt"):
            run(source, tmp_path / "o", overwrite=True)
        assert names_in(tmp_path / "o_masks") == ["thesis.txt"]

    def test_source_is_never_replaced(self, tmp_path):
        source = write_cells(tmp_path / "a_overlay.avi", frames=2)
        with pytest.raises(UserError, match="is the video to predict"):
            run(source, tmp_path / "a", overwrite=True)
        assert len(frames_of(source)[0]) == 2

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [({"outputs": {"gif"}}, "holds gif"), ({"most_frames": 0}, r"`most_frames` \(0\)")],
    )
    def test_wrong_request_is_one_message(self, tmp_path, kwargs, message):
        with pytest.raises(UserError, match=message):
            run(write_cells(tmp_path / "a.avi", frames=1), tmp_path / "o", **kwargs)

    def test_file_in_place_of_the_folder_is_one_message(self, tmp_path):
        source = write_cells(tmp_path / "a.avi", frames=2)
        (tmp_path / "out").write_bytes(b"")
        with pytest.raises(UserError, match="out: predictions cannot be written"):
            run(source, tmp_path / "out" / "a")

    @pytest.mark.parametrize("size", [(96, 64), (97, 65)], ids=["even", "odd"])
    def test_failing_network_leaves_no_part(self, tmp_path, size):
        numbers = itertools.count()

        def predict(image):
            if next(numbers) == 3:
                raise RuntimeError("out of memory")
            return bright_is_cell(image)

        source = write_cells(tmp_path / "a.avi", size=size)
        with pytest.raises(RuntimeError, match="out of memory"):
            run(source, tmp_path / "o", predict)
        assert names_in(tmp_path) == ["a.avi"]

    def test_output_that_is_not_finite_is_told_with_its_frame_and_leaves_no_part(self, tmp_path):
        numbers = itertools.count(1)

        def predict(image):
            probabilities = bright_is_cell(image)
            if next(numbers) == 4:
                probabilities[10, 20] = np.nan
            return probabilities

        source = write_cells(tmp_path / "a.avi")
        message = r"a\.avi, frame 4: The network's output is not finite in 1 of 6144 pixels"
        with pytest.raises(UserError, match=message):
            run(source, tmp_path / "o", predict)
        assert names_in(tmp_path) == ["a.avi"]

    def test_while_running_nothing_has_its_name(self, tmp_path):
        seen = set()

        def predict(image):
            seen.update(names_in(tmp_path / "out"))
            return bright_is_cell(image)

        run(write_cells(tmp_path / "a.avi", size=(97, 65)), tmp_path / "out" / "o", predict)
        assert {name.rpartition(".")[2] for name in seen} == {"unet_core-tmp", "unet_core-lock"}
        assert names_in(tmp_path / "out") == ["o_masks", "o_overlay.avi"]

    def test_disk_that_fills_up_is_one_message_and_leaves_no_part(self, tmp_path, monkeypatch):
        looks = itertools.count()

        def fill_up(_):
            if next(looks) == 2:
                raise OSError(28, "No space left on device")

        monkeypatch.setattr(video, "_check_room", fill_up)
        source = write_cells(tmp_path / "a.avi", frames=20)
        with pytest.raises(UserError, match=r"No space left on device.*Make room"):
            run(source, tmp_path / "o")
        assert names_in(tmp_path) == ["a.avi"]

    def test_frames_that_were_lost_in_writing_are_one_message(self, tmp_path, monkeypatch):
        numbers = itertools.count()
        write = video._Writer.write

        def lose_the_last(writer, picture):
            # Six go into the two trial files of the codecs and are left whole.
            if next(numbers) < 10:
                write(writer, picture)

        monkeypatch.setattr(video._Writer, "write", lose_the_last)
        source = write_cells(tmp_path / "a.avi", frames=5)
        with pytest.raises(UserError, match=r"[0-4] of its 5 frames could be read back"):
            run(source, tmp_path / "o")
        assert names_in(tmp_path) == ["a.avi"]

    def test_really_full_disk_is_one_message_and_leaves_no_part(self, tmp_path, capfd):
        disk = tmp_path / "disk"
        disk.mkdir()
        mount = shutil.which("mount")
        options = ["-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)]
        if mount is None or subprocess.run([mount, *options], capture_output=True).returncode:
            pytest.skip("No small disk can be mounted here; that takes root.")
        rng = np.random.default_rng(0)

        def predict(_):
            return rng.random((64, 96, 2)).astype(np.float32)

        try:
            with pytest.raises(UserError, match="No space left on device"):
                run(write_cells(tmp_path / "a.avi", frames=300), disk / "o", predict)
            assert names_in(disk) == []
        finally:
            subprocess.run(["umount", str(disk)], check=True)
        assert capfd.readouterr() == ("", "")

    def test_odd_video_ends_before_its_avi_grows_too_large(self, tmp_path, monkeypatch):
        monkeypatch.setattr(video, "_MOST_AVI_BYTES", -1)
        source = write_cells(tmp_path / "a.avi", size=(97, 65))
        result = run(source, tmp_path / "o", outputs={"overlay"})
        assert result.frames == 1
        assert len(frames_of(result.outputs[0])[0]) == 1
        assert "reached the 2 GiB" in result.warnings[0]

    def test_unknown_rate_is_said(self, tmp_path, monkeypatch):
        source = write_cells(tmp_path / "a.avi", frames=3)
        make = video.Video.__init__

        def forget_rate(self, name, capture, first):
            make(self, name, capture, first)
            if name == source:
                self.frames_per_sec = None

        monkeypatch.setattr(video.Video, "__init__", forget_rate)
        result = run(source, tmp_path / "o", outputs={"overlay"})
        assert frames_of(result.outputs[0])[1] == pytest.approx(25)
        assert "does not tell its frame rate" in result.warnings[0]

    def test_times_are_summed_apart_without_the_first_frame(self, tmp_path):
        # Decode takes 1 s, the network 4 s, encoding 3 s, and the first frame 100 s each.
        ticks = [0, 100, 200, 300]
        for _ in range(2):
            ticks += [ticks[-1], ticks[-1] + 1, ticks[-1] + 5, ticks[-1] + 8]
        clock = iter([*ticks, ticks[-1], ticks[-1]])
        source = write_cells(tmp_path / "a.avi", frames=3)
        result = run(source, tmp_path / "o", outputs=(), clock=lambda: next(clock))
        assert result.decode_frames_per_sec == 2 / 2
        assert result.network_frames_per_sec == 2 / 8
        assert result.encode_frames_per_sec == pytest.approx(2 / 6)
        assert result.frames_per_sec == 2 / 16
        lines = describe(result).splitlines()
        assert lines[0].startswith("3 frame(s) of 96x64")
        assert lines[2].split() == ["decode", "1.0"]
        assert lines[-1].split()[-1] == "10.0"

    def test_camera_ends_with_a_sentence_and_has_no_count(self, tmp_path, monkeypatch):
        file = write_cells(tmp_path / "a.avi", frames=3)
        capture = video._capture
        monkeypatch.setattr(
            video, "_capture", lambda source: capture(file if source == 0 else source)
        )
        with open_video("camera:0") as opened:
            assert opened.frames is None
        result = run("camera:0", tmp_path / "o", outputs={"overlay"})
        assert result.frames == 3
        assert any("gave no more frames after 3" in warning for warning in result.warnings)


class TestMakeWindow:
    def test_opencv_without_windows_is_one_message(self, monkeypatch, capfd):
        def fail(*_):
            raise cv2.error("The function is not implemented.")

        monkeypatch.setenv("DISPLAY", ":0")
        monkeypatch.setattr(cv2, "namedWindow", fail)
        with pytest.raises(UserError, match="Install opencv-python in its place"):
            make_window("cells")
        assert capfd.readouterr() == ("", "")

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="DISPLAY is of Linux.")
    def test_no_screen_is_one_message(self, monkeypatch):
        monkeypatch.delenv("DISPLAY", raising=False)
        monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
        with pytest.raises(UserError, match="needs a screen"):
            make_window("cells")

    @pytest.mark.parametrize(
        ("key", "visible", "goes_on"),
        [(-1, 1, True), (ord("a"), 1, True), (ord("q"), 1, False), (27, 1, False), (-1, 0, False)],
    )
    def test_q_esc_and_closing_end_it(self, monkeypatch, key, visible, goes_on):
        monkeypatch.setenv("DISPLAY", ":0")
        for name, result in {
            "namedWindow": None,
            "imshow": None,
            "waitKey": key,
            "getWindowProperty": visible,
            "destroyWindow": None,
        }.items():
            monkeypatch.setattr(cv2, name, lambda *_, result=result: result, raising=False)
        assert make_window("cells")(np.zeros((4, 4, 3), np.uint8)) is goes_on
