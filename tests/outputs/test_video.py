import fractions
import itertools
import pathlib
import re
import shutil
import subprocess
import sys

import av
import cv2
import numpy as np
import pytest

from unet_core.data import videos
from unet_core.data.classes import ClassMap
from unet_core.data.videos import camera_number, is_video, open_video
from unet_core.errors import UserError
from unet_core.inference.masks import MaskRule, Threshold
from unet_core.outputs.video import describe, make_window, predict_video

CLASSES = ClassMap.parse("0:ground,255:cell")


def disc_at(number, size=(96, 64)):
    """[H, W] bool: a disc of radius 9 that moves 4 pixels to the right each frame."""
    width, height = size
    rows, columns = np.indices((height, width))
    return (rows - 30) ** 2 + (columns - 15 - 4 * number) ** 2 <= 81


def write_video(path, frames, *, times=None, kind="yuv444p", turned=None):
    """Frames [N, H, W, 3] RGB as H.264, at `times` in ms, else 10 a second."""
    times = [100 * n for n in range(len(frames))] if times is None else times
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "1", "bf": "0"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = kind
        stream.codec_context.time_base = fractions.Fraction(1, 1000)
        if turned is not None:
            stream.set_display_rotation(turned)
        for frame, time in zip(frames, times, strict=True):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts, picture.time_base = time, fractions.Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return str(path)


def write_cells(path, *, size=(96, 64), frames=12, **kwargs):
    """Grey 200 where the disc is and 40 elsewhere."""
    grey = [np.where(disc_at(n, size), 200, 40).astype(np.uint8) for n in range(frames)]
    return write_video(path, [np.dstack([each] * 3) for each in grey], **kwargs)


def frames_of(path, kind="rgb24"):
    """All frames of a video, and the milliseconds at which they are shown."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    pixels = np.array([frame.to_ndarray(format=kind) for frame in frames])
    return pixels, [round(1000 * frame.time) for frame in frames]


def milliseconds_of(path):
    """How long a video is, according to its header."""
    with av.open(str(path)) as container:
        return round(container.duration / 1000)


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
        red = np.full((16, 32, 3), (250, 0, 0), np.uint8)
        with open_video(write_video(tmp_path / "red.mp4", [red] * 3)) as opened:
            assert (opened.width, opened.height, opened.frames) == (32, 16, 3)
            assert opened.frames_per_sec == pytest.approx(10)
            frames = list(opened)
            assert opened.problem is None
        assert [float(frame.start) for frame in frames] == pytest.approx([0, 0.1, 0.2])
        assert float(frames[2].duration) == pytest.approx(0.1)
        # The codec changes it by a few levels.
        np.testing.assert_allclose(frames[0].pixels.mean((0, 1)), (250, 0, 0), atol=6)

    @pytest.mark.parametrize("degrees", [0, 90, 180, -90])
    def test_turned_as_players_turn_it(self, tmp_path, degrees):
        # Red lies at the top left, and goes to the bottom left by 90 degrees counterclockwise.
        picture = np.zeros((16, 32, 3), np.uint8)
        picture[:8, :8] = (250, 0, 0)
        path = write_video(tmp_path / "phone.mp4", [picture], turned=degrees)
        with open_video(path) as opened:
            (frame,) = opened
        expected = np.rot90(picture, degrees // 90)
        assert (opened.height, opened.width) == expected.shape[:2]
        np.testing.assert_allclose(frame.pixels, expected, atol=20)

    def test_mirrored_as_players_mirror_it(self, tmp_path):
        picture = np.zeros((16, 32, 3), np.uint8)
        picture[:8, :8] = (250, 0, 0)
        path = tmp_path / "selfie.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=10, options={"crf": "1"})
            stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv444p"
            stream.set_display_rotation(0, hflip=True)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        with open_video(path) as opened:
            (frame,) = opened
        np.testing.assert_allclose(frame.pixels, picture[:, ::-1], atol=20)

    def test_colon_in_a_name_is_no_protocol(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        pathlib.Path(write_cells("two.mp4", frames=2)).rename("file:cells.mp4")
        with open_video("file:cells.mp4") as opened:
            assert len(list(opened)) == 2

    def test_list_of_other_files_opens_none_of_them(self, tmp_path):
        write_cells(tmp_path / "secret.mp4", frames=2)
        path = tmp_path / "list.mp4"
        path.write_text("ffconcat version 1.0\nfile secret.mp4\n")
        with pytest.raises(UserError, match=r"list\.mp4: "):
            open_video(path).__enter__()

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

    def test_sound_alone_is_one_message(self, tmp_path):
        path = tmp_path / "voice.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=8000, layout="mono")
            sound = np.zeros((1, 1024), np.float32)
            frame = av.AudioFrame.from_ndarray(sound, format="fltp", layout="mono")
            frame.sample_rate = 8000
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
        with pytest.raises(UserError, match=r"voice\.mp4: holds sound or text and no pictures"):
            open_video(path).__enter__()

    def test_camera_that_is_not_there_is_one_message_and_no_noise(self, capfd):
        with pytest.raises(UserError, match="camera:99: there is no such camera"):
            open_video("camera:99").__enter__()
        assert capfd.readouterr() == ("", "")

    def test_frame_of_another_size_ends_the_video_with_a_sentence(self):
        seconds = fractions.Fraction(0), fractions.Fraction(1)
        frames = [videos.Frame(np.zeros((rows, 6, 3), np.uint8), *seconds) for rows in (4, 4, 8)]
        opened = videos.Video("a.mkv", iter(frames[1:]), frames[0])
        assert len(list(opened)) == 2
        assert "frame 3 is 6x8 and the frames before it are 6x4" in opened.problem


class TestPredictVideo:
    @pytest.mark.parametrize("size", [(96, 64), (97, 65)], ids=["even", "odd"])
    def test_masks_follow_the_disc_and_outputs_keep_count_size_and_rate(
        self, tmp_path, capfd, size
    ):
        source = write_cells(tmp_path / "cells.mov", size=size)
        result = run(source, tmp_path / "out" / "cells")
        expected_times = [100 * number for number in range(12)]
        frames, times = frames_of(tmp_path / "out" / "cells_overlay.mp4")
        assert frames.shape == (12, *size[::-1], 3)
        assert times == expected_times
        masks, times = frames_of(tmp_path / "out" / "cells_masks.mkv", "gray")
        assert times == expected_times
        np.testing.assert_array_equal(
            masks, [np.where(disc_at(number, size), 255, 0) for number in range(12)]
        )
        assert (result.frames, result.width, result.height) == (12, *size)
        assert result.video_frames_per_sec == pytest.approx(10)
        assert result.warnings == ()
        assert names_in(tmp_path / "out") == ["cells_masks.mkv", "cells_overlay.mp4"]
        assert capfd.readouterr() == ("", "")

    def test_overlay_is_h264(self, tmp_path):
        run(write_cells(tmp_path / "a.mp4", frames=1), tmp_path / "o", outputs={"overlay"})
        with av.open(str(tmp_path / "o_overlay.mp4")) as container:
            stream = container.streams.video[0].codec_context
            # 4:2:0 is what every player shows.
            assert (stream.name, stream.pix_fmt) == ("h264", "yuv420p")

    def test_varying_rate_keeps_its_times_and_its_length(self, tmp_path):
        times = [0, 40, 80, 1080, 2100]
        source = write_cells(tmp_path / "cells.mp4", frames=5, times=times)
        run(source, tmp_path / "o")
        # The last frame is shown for a tenth of a second.
        for path in (tmp_path / "o_overlay.mp4", tmp_path / "o_masks.mkv"):
            assert frames_of(path)[1] == times
            assert milliseconds_of(path) == 2200

    def test_turned_video_is_predicted_as_it_is_shown(self, tmp_path):
        run(write_cells(tmp_path / "a.mp4", frames=1, turned=90), tmp_path / "o")
        masks, _ = frames_of(tmp_path / "o_masks.mkv", "gray")
        np.testing.assert_array_equal(masks[0], np.rot90(np.where(disc_at(0), 255, 0)))

    def test_overlay_blends_the_cell_and_leaves_the_ground(self, tmp_path):
        source = write_cells(tmp_path / "cells.mp4", frames=4)
        result = run(source, tmp_path / "o", outputs={"overlay"}, alpha=0.5)
        frames, _ = frames_of(result.outputs[0])
        # Class 1 is (0, 114, 178); half of it and half of 200 are (100, 157, 189).
        np.testing.assert_allclose(frames[3][30, 15 + 12], (100, 157, 189), atol=12)
        np.testing.assert_allclose(frames[3][5, 80], (40, 40, 40), atol=12)

    def test_masks_are_made_as_asked(self, tmp_path):
        # The probability of cell is 1 in the disc; above 1 there is none.
        source = write_cells(tmp_path / "cells.mp4", frames=2)
        none = MaskRule(Threshold(1, 1.0))
        run(source, tmp_path / "o", outputs={"mask"}, make_mask=none)
        masks, _ = frames_of(tmp_path / "o_masks.mkv")
        assert len(masks) == 2
        assert not masks.any()

    def test_network_of_three_channels_gets_rgb(self, tmp_path):
        seen = []

        def predict(image):
            seen.append(image[5, 80].tolist())
            return bright_is_cell(image)

        red = np.full((64, 96, 3), (250, 0, 0), np.uint8)
        source = write_video(tmp_path / "a.mp4", [red] * 2)
        run(source, tmp_path / "o", predict, channels=3)
        np.testing.assert_allclose(seen, [(250, 0, 0)] * 2, atol=6)

    def test_values_above_255_have_16_bits(self, tmp_path):
        classes = ClassMap.parse("0:ground,1000:cell")
        source = write_cells(tmp_path / "a.mp4", frames=2)
        run(source, tmp_path / "o", outputs={"mask"}, classes=classes)
        masks, _ = frames_of(tmp_path / "o_masks.mkv", "gray16le")
        np.testing.assert_array_equal(masks[1], np.where(disc_at(1), 1000, 0))

    def test_other_programs_read_the_same_class_numbers(self, tmp_path):
        # Grey of a limited range would give 7 for 6.
        classes = ClassMap.parse("0:ground,6:cell")
        run(write_cells(tmp_path / "a.mp4", frames=1), tmp_path / "o", classes=classes)
        _, frame = cv2.VideoCapture(str(tmp_path / "o_masks.mkv")).read()
        np.testing.assert_array_equal(frame[..., 0], np.where(disc_at(0), 6, 0))

    def test_coloured_classes_keep_their_colours(self, tmp_path):
        classes = ClassMap.parse("#000000:ground,#ff8001:cell")
        source = write_cells(tmp_path / "a.mp4", frames=2)
        run(source, tmp_path / "o", outputs={"mask"}, classes=classes)
        masks, _ = frames_of(tmp_path / "o_masks.mkv")
        np.testing.assert_array_equal(masks[0][30, 15], (0xFF, 0x80, 0x01))

    def test_damaged_frames_are_left_out_with_a_warning_and_no_noise(self, tmp_path, capfd):
        rng = np.random.default_rng(0)
        frames = rng.integers(0, 256, (30, 64, 96, 3), np.uint8)
        path = pathlib.Path(write_video(tmp_path / "a.mp4", frames))
        content = bytearray(path.read_bytes())
        middle, length = len(content) // 2, len(content) // 8
        content[middle : middle + length] = rng.bytes(length)
        path.write_bytes(content)
        result = run(str(path), tmp_path / "o")
        # An eighth of the bytes are about four frames; those behind them are predicted, too.
        assert 20 < result.frames < 30
        assert f"names 30 frames and {result.frames} could be decoded" in result.warnings[0]
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize(
        ("suffix", "names"), [("avi", "12 frames and"), ("mkv", r"1\.2 s and 0\.\d s")]
    )
    def test_video_that_breaks_off_is_predicted_so_far_with_a_warning(
        self, tmp_path, suffix, names
    ):
        noise = np.random.default_rng(0).integers(0, 256, (12, 64, 96, 3), np.uint8)
        path = tmp_path / f"a.{suffix}"
        if suffix == "avi":
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (96, 64))
            for frame in noise:
                writer.write(frame)
            writer.release()
        else:
            write_video(path, noise)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        result = run(str(path), tmp_path / "o")
        assert 1 <= result.frames < 12
        assert len(frames_of(tmp_path / "o_overlay.mp4")[0]) == result.frames
        (warning,) = result.warnings
        assert re.search(names, warning)
        assert "copy it again" in warning

    def test_avi_that_counts_the_ticks_of_its_clock_is_whole(self, tmp_path):
        with open_video(write_cells(tmp_path / "a.avi", frames=12)) as opened:
            # Its header names 1,200 frames: those of 1.2 s of milliseconds.
            assert opened.frames is None
            assert opened.frames_per_sec == 10
            assert len(list(opened)) == 12
            assert opened.problem is None

    def test_most_frames_ends_the_run_without_a_warning(self, tmp_path):
        lengths = []

        def progress(steps):
            lengths.append(len(steps))
            return iter(steps)

        source = write_cells(tmp_path / "a.mp4")
        result = run(source, tmp_path / "o", most_frames=5, progress=progress)
        assert (result.frames, result.warnings, lengths) == (5, (), [5])

    def test_stop_request_keeps_what_is_done(self, tmp_path):
        asked = iter([False] * 4 + [True])
        source = write_cells(tmp_path / "a.mp4")
        result = run(source, tmp_path / "o", outputs={"overlay"}, should_stop=lambda: next(asked))
        assert result.frames == 4
        assert "stopped after 4 frame(s), as asked" in result.warnings[0]
        assert len(frames_of(tmp_path / "o_overlay.mp4")[0]) == 4

    def test_stop_request_before_the_first_frame_leaves_nothing(self, tmp_path):
        source = write_cells(tmp_path / "a.mp4")
        result = run(source, tmp_path / "o", should_stop=lambda: True)
        assert (result.frames, result.outputs) == (0, ())
        assert names_in(tmp_path) == ["a.mp4"]
        assert "-" in describe(result)

    def test_window_gets_each_overlay_and_can_end_the_run(self, tmp_path):
        shown = []

        def show(picture):
            shown.append(picture)
            return len(shown) < 3

        result = run(write_cells(tmp_path / "a.mp4"), tmp_path / "o", outputs=(), show=show)
        assert (result.frames, result.outputs) == (3, ())
        assert shown[0].shape == (64, 96, 3)
        # In the order that OpenCV's windows take: blue, green, red.
        np.testing.assert_allclose(shown[0][30, 15], (189, 157, 100), atol=12)
        assert names_in(tmp_path) == ["a.mp4"]

    def test_existing_output_is_replaced_only_if_asked(self, tmp_path):
        source = write_cells(tmp_path / "a.mp4")
        for frames in (4, 2):
            run(source, tmp_path / "o", overwrite=frames == 2, most_frames=frames)
        for name in ("o_overlay.mp4", "o_masks.mkv"):
            assert len(frames_of(tmp_path / name)[0]) == 2
        with pytest.raises(UserError, match=r"exists already.*`overwrite`"):
            run(source, tmp_path / "o")
        assert len(frames_of(tmp_path / "o_overlay.mp4")[0]) == 2

    def test_source_is_never_replaced(self, tmp_path):
        source = write_cells(tmp_path / "a_overlay.mp4", frames=2)
        with pytest.raises(UserError, match="is the video to predict"):
            run(source, tmp_path / "a", overwrite=True)
        assert len(frames_of(source)[0]) == 2

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [({"outputs": {"gif"}}, "holds gif"), ({"most_frames": 0}, r"`most_frames` \(0\)")],
    )
    def test_wrong_request_is_one_message(self, tmp_path, kwargs, message):
        with pytest.raises(UserError, match=message):
            run(write_cells(tmp_path / "a.mp4", frames=1), tmp_path / "o", **kwargs)

    def test_file_in_place_of_the_folder_is_one_message(self, tmp_path):
        source = write_cells(tmp_path / "a.mp4", frames=2)
        (tmp_path / "out").write_bytes(b"")
        with pytest.raises(UserError, match="out: predictions cannot be written"):
            run(source, tmp_path / "out" / "a")

    def test_failing_network_leaves_no_part(self, tmp_path):
        numbers = itertools.count()

        def predict(image):
            if next(numbers) == 3:
                raise RuntimeError("out of memory")
            return bright_is_cell(image)

        source = write_cells(tmp_path / "a.mp4")
        with pytest.raises(RuntimeError, match="out of memory"):
            run(source, tmp_path / "o", predict)
        assert names_in(tmp_path) == ["a.mp4"]

    def test_output_that_is_not_finite_is_told_with_its_frame_and_leaves_no_part(self, tmp_path):
        numbers = itertools.count(1)

        def predict(image):
            probabilities = bright_is_cell(image)
            if next(numbers) == 4:
                probabilities[10, 20] = np.nan
            return probabilities

        source = write_cells(tmp_path / "a.mp4")
        message = r"a\.mp4, frame 4: The network's output is not finite in 1 of 6144 pixels"
        with pytest.raises(UserError, match=message):
            run(source, tmp_path / "o", predict)
        assert names_in(tmp_path) == ["a.mp4"]

    def test_while_running_nothing_has_its_name(self, tmp_path):
        seen = set()

        def predict(image):
            seen.update(names_in(tmp_path / "out"))
            return bright_is_cell(image)

        run(write_cells(tmp_path / "a.mp4"), tmp_path / "out" / "o", predict)
        assert {name.rpartition(".")[2] for name in seen} == {"unet_core-tmp", "unet_core-lock"}
        assert names_in(tmp_path / "out") == ["o_masks.mkv", "o_overlay.mp4"]

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
                run(write_cells(tmp_path / "a.mp4", frames=300), disk / "o", predict)
            assert names_in(disk) == []
        finally:
            subprocess.run(["umount", str(disk)], check=True)
        assert capfd.readouterr() == ("", "")

    def test_times_are_summed_apart_without_the_first_frame(self, tmp_path):
        # Decode takes 1 s, the network 4 s, encoding 3 s, and the first frame 100 s each.
        ticks = [0, 100, 200, 300]
        for _ in range(2):
            ticks += [ticks[-1], ticks[-1] + 1, ticks[-1] + 5, ticks[-1] + 8]
        clock = iter([*ticks, ticks[-1], ticks[-1]])
        source = write_cells(tmp_path / "a.mp4", frames=3)
        result = run(source, tmp_path / "o", outputs=(), clock=lambda: next(clock))
        assert result.decode_frames_per_sec == 2 / 2
        assert result.network_frames_per_sec == 2 / 8
        assert result.encode_frames_per_sec == pytest.approx(2 / 6)
        assert result.frames_per_sec == 2 / 16
        lines = describe(result).splitlines()
        assert lines[0].startswith("3 frame(s) of 96x64")
        assert lines[2].split() == ["decode", "1.0"]
        assert lines[-1].split()[-1] == "10.0"

    def test_camera_keeps_the_times_at_which_it_saw(self, tmp_path, monkeypatch):
        pictures = iter(range(4))

        class Camera:
            def read(self):
                number = next(pictures, None)
                return (False, None) if number is None else (True, np.zeros((4, 6, 3), np.uint8))

            def get(self, _):
                return 30.0

            def release(self):
                pass

        monkeypatch.setattr(cv2, "VideoCapture", lambda _: Camera())
        ticks = iter([10.0, 10.5, 10.6, 12.0])
        with open_video("camera:0", clock=lambda: next(ticks)) as opened:
            assert opened.frames is None
            seen = [float(frame.start) for frame in opened]
        assert seen == pytest.approx([0, 0.5, 0.6, 2.0])
        assert "gave no more frames after 4" in opened.problem


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
