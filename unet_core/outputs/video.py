"""Videos and cameras, predicted frame by frame by means of OpenCV.

with open_video("cells.mp4") as video:
    for frame in video: ...                 # [H, W, 3] uint8, RGB
result = predict_video(
    predictor, "cells.mp4", "out/cells",    # -> out/cells_overlay.mp4 and out/cells_masks.avi
    classes=classes, channels=1, alpha=0.45, outputs={"mask", "overlay"},
)
"""

from __future__ import annotations

import contextlib
import dataclasses
import fractions
import itertools
import math
import os
import pathlib
import re
import shutil
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping

import cv2
import numpy as np

from unet_core.data import images
from unet_core.data.classes import ClassMap
from unet_core.drawing import pictures, tables
from unet_core.errors import UserError
from unet_core.files import NewFolder, open_to_read, os_errors, scratch_folder
from unet_core.inference.masks import predicted_ids
from unet_core.inference.predictor import check_finite

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
OUTPUTS = ("mask", "overlay")

_ASSUMED_FRAMES_PER_SEC = 25.0
# What claims more is a clock's tick, not a rate of frames.
_MOST_FRAMES_PER_SEC = 1000.0
# In a row; that many reads beyond the end of a video take no time to speak of.
_MOST_DAMAGED_FRAMES = 1000
_FRAMES_BETWEEN_LOOKS_AT_THE_DISK = 16
# Beyond 2 GiB, readers of an AVI without OpenDML, which is what OpenCV itself writes, differ.
_MOST_AVI_BYTES = 2**31 - 2**26
_FOURCCS = {
    ".mp4": ("avc1", "mp4v"),
    ".m4v": ("avc1", "mp4v"),
    ".mov": ("avc1", "mp4v"),
    ".mkv": ("H264", "mp4v", "MJPG"),
    ".webm": ("VP80", "VP90"),
    ".mpg": ("mpg2", "mpg1"),
    ".mpeg": ("mpg2", "mpg1"),
    ".avi": ("MJPG", "XVID"),
}
_SCREEN = threading.RLock()


@dataclasses.dataclass(frozen=True)
class Codec:
    """A kind of video that the OpenCV at hand writes.

    Attributes:
        suffix: Of the file, such as ".avi".
        fourcc: The four letters of the codec.
        backend: OpenCV's number of the library that writes it.
    """

    suffix: str
    fourcc: str
    backend: int = cv2.CAP_FFMPEG


# OpenCV 5.0 cuts a row and a column off odd sizes with FFmpeg; its own writer keeps them.
_OWN_CODEC = Codec(".avi", "MJPG", cv2.CAP_OPENCV_MJPEG)
_LAST_CODECS = (Codec(".avi", "MJPG"), _OWN_CODEC)
_LOSSLESS_CODECS = (Codec(".avi", "FFV1"), Codec(".mkv", "FFV1"))


@dataclasses.dataclass(frozen=True)
class VideoResult:
    """What became of a video.

    Rates are in frames/s and leave out the first frame, for which codecs are set up and the network
    is compiled; NaN if there was no other.

    Attributes:
        frames: Frames predicted.
        width: Columns of each.
        height: Rows of each.
        video_frames_per_sec: The rate at which the written videos play.
        frames_per_sec: The rate of the whole run.
        decode_frames_per_sec: The rate of decoding alone; of a camera, waiting for it.
        network_frames_per_sec: The rate of converting the pixels and predicting alone.
        encode_frames_per_sec: The rate of drawing and writing alone.
        outputs: The finished files and folders.
        warnings: Complete sentences about all that a person would not expect.
    """

    frames: int
    width: int
    height: int
    video_frames_per_sec: float
    frames_per_sec: float
    decode_frames_per_sec: float
    network_frames_per_sec: float
    encode_frames_per_sec: float
    outputs: tuple[pathlib.Path, ...]
    warnings: tuple[str, ...]


class Video:
    """An open video or camera; iterating gives its frames once, [H, W, 3] uint8, RGB.

    Attributes:
        source: Its path, or `camera:0`.
        width: Columns of a frame.
        height: Rows of a frame.
        frames: How many there are according to its header; None if that is not known.
        frames_per_sec: Its rate; None if it is not known.
        problem: A complete sentence, once the frames have ended before they should; else None.
    """

    def __init__(self, source: str, capture: cv2.VideoCapture, first: np.ndarray):
        self.source = source
        self.height, self.width = first.shape[:2]
        self.frames = _frame_count(source, capture)
        rate = capture.get(cv2.CAP_PROP_FPS)
        self.frames_per_sec = float(rate) if 0 < rate <= _MOST_FRAMES_PER_SEC else None
        self.problem: str | None = None
        self._capture = capture
        self._next: np.ndarray | None = first

    def __iter__(self) -> Iterator[np.ndarray]:
        for given in itertools.count(1):
            if self._next is None:
                return
            yield cv2.cvtColor(self._next, cv2.COLOR_BGR2RGB)
            self._next = _read(self._capture, self.frames)
            if self._next is None:
                self._tell_if_cut_short(given)
            elif self._next.shape[:2] != (self.height, self.width):
                height, width = self._next.shape[:2]
                self.problem = (
                    f"{self.source}: frame {given + 1} is {width}x{height} and the frames before "
                    f"it are {self.width}x{self.height}; the {given} before it are predicted. Cut "
                    "the video there, and predict the rest apart."
                )
                self._next = None

    def _tell_if_cut_short(self, given: int) -> None:
        if camera_number(self.source) is not None:
            self.problem = (
                f"{self.source}: gave no more frames after {given}; look at its cable, and whether "
                "another program has taken it."
            )
        elif self.frames is not None and given < self.frames:
            self.problem = (
                f"{self.source}: its header names {self.frames} frames and {given} could be "
                "decoded; these are predicted. If a player shows more, the file is damaged there: "
                "copy it again or convert it anew."
            )


def is_video(path: str | os.PathLike) -> bool:
    """Whether the name of `path` is that of a video."""
    return pathlib.Path(path).suffix.lower() in VIDEO_SUFFIXES


def camera_number(text: str) -> int | None:
    """Returns the number in `camera:0`, or None if `text` is of another form."""
    match = re.fullmatch(r"camera:(\d{1,4})", text)
    return int(match[1]) if match else None


@contextlib.contextmanager
def open_video(source: str | os.PathLike) -> Iterator[Video]:
    """Opens a video file, or a camera by `camera:0`.

    Raises:
        UserError: If the file cannot be read, is no video that can be decoded, or holds no frame;
            if there is no such camera, or it gives no picture.
    """
    source = os.fspath(source)
    camera = camera_number(source)
    if camera is None:
        size = _readable_size(source)
        # As an absolute path, so that FFmpeg takes no part of the name for a protocol.
        capture = _capture(os.path.abspath(source))
    else:
        capture = _capture(camera)
    try:
        first = _read(capture, _frame_count(source, capture))
        if first is None and camera is not None:
            raise UserError(
                f"{source}: there is no such camera, or it gives no picture. Plug it in, close "
                "other programs that use it, or try another number, such as camera:0."
            )
        if first is None and capture.isOpened():
            raise UserError(
                f"{source}: holds no frame that can be decoded ({size} bytes). Copy it again, or "
                "convert it to MP4 or AVI."
            )
        if first is None:
            raise UserError(
                f"{source}: cannot be decoded as a video ({size} bytes): it is damaged, cut short, "
                "or of a kind that this OpenCV does not read. Copy it again, or convert it to MP4 "
                "or AVI."
            )
        yield Video(source, capture, first)
    finally:
        with _quiet():
            capture.release()


def choose_codec(
    suffix: str, folder: str | os.PathLike, *, size: tuple[int, int], frames_per_sec: float
) -> Codec:
    """Returns a codec that was seen to keep size and rate.

    It is found by writing a short video into `folder` and reading it back: for files ending in
    `suffix` if there is one, else for ".avi".

    Args:
        suffix: Of the file to write, such as ".mp4"; unknown ones become ".avi".
        folder: Where there is room for a few frames; nothing is left in it.
        size: (width, height) in pixels.
        frames_per_sec: The rate to keep, > 0.

    Raises:
        UserError: If there is no such codec, or the folder cannot be written.
    """
    suffix = suffix.lower()
    wanted = [Codec(suffix, fourcc) for fourcc in _FOURCCS.get(suffix, ())]
    for codec in (*wanted, *_LAST_CODECS):
        if _keeps(codec, folder, size, frames_per_sec):
            return codec
    with _written_to(folder):
        _check_room(folder)
    raise UserError(
        f"{folder}: this OpenCV ({cv2.__version__}) writes no video of {size[0]}x{size[1]} pixels "
        f"at {frames_per_sec:g} frames/s, neither as {suffix} nor as .avi. Install "
        "opencv-python-headless from PyPI, which can, or ask for masks only."
    )


def predict_video(
    predict: Callable[[np.ndarray], np.ndarray],
    source: str,
    output_path_stem: str | os.PathLike,
    *,
    classes: ClassMap,
    channels: int,
    alpha: float,
    outputs: Collection[str] = OUTPUTS,
    make_mask: Callable[[np.ndarray], np.ndarray] = predicted_ids,
    show: Callable[[np.ndarray], bool] | None = None,
    most_frames: int | None = None,
    overwrite: bool = False,
    progress: Callable = iter,
    should_stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.perf_counter,
) -> VideoResult:
    """Predicts each frame of a video and writes `<stem>_overlay.<suffix>` and its masks.

    The overlay has the suffix of the source if OpenCV can write that, else ".avi"; ".mp4" for a
    camera. Masks hold the mask values of the class map and lose nothing: they are
    `<stem>_masks.avi` (FFV1, or ".mkv"), or `<stem>_masks/000000.png` and so on where this OpenCV
    reads no such video back exactly, for odd sizes and for values above 255. Nothing has these
    names before it is finished.

    Args:
        predict: [H, W] (one channel) or [H, W, 3] (RGB) uint8 to probabilities [H, W, C] float32.
        source: A video file, or `camera:0`.
        output_path_stem: Where to write; the folder is made if need be.
        classes: The meaning of the C probabilities.
        channels: 1 or 3, as the network expects.
        alpha: Opacity of the classes in the overlay, from 0 to 1.
        outputs: Any of "mask" and "overlay".
        make_mask: [H, W, C] probabilities to [H, W] class ids, a `MaskRule` for example.
        show: Takes each overlay, [H, W, 3] uint8 in BGR order, and returns whether to go on.
        most_frames: Frames after which to end; None for all.
        overwrite: Whether finished outputs of that name may be replaced.
        progress: Wraps the numbers of the frames; their count has a length if it is known.
        should_stop: Asked before every frame. What is done by then is finished and kept.
        clock: Tells the seconds.

    Raises:
        UserError: As `open_video`; if an output exists and `overwrite` is not set, or cannot be
            written or is not whole when read back, or what `predict` returns is not finite, of
            which nothing is left then; or if `outputs` or `most_frames` is wrong.
    """
    _check_request(outputs, most_frames)
    stem = pathlib.Path(output_path_stem)
    warnings = []
    with contextlib.ExitStack() as stack:
        video = stack.enter_context(open_video(source))
        rate = video.frames_per_sec or _ASSUMED_FRAMES_PER_SEC
        targets = _open_targets(stack, stem, video, classes, rate, outputs, overwrite)
        run = _Run(predict, video, targets, stem.parent, classes, channels, alpha, show, clock)
        run.make_mask = make_mask
        for _ in progress(_Steps(video.frames, most_frames)):
            if should_stop():
                warnings.append(
                    f"{source}: stopped after {run.done} frame(s), as asked; what was done is kept."
                )
                break
            if not run.next_frame():
                break
        ended = clock()
        written = []
        if run.done:
            for target in targets.values():
                with _written_to(stem.parent):
                    target.finish(run.done)
                written.append(target.path)
    warnings += run.warnings
    if video.problem:
        warnings.append(video.problem)
    overall = _rate(run.done - 1, ended - run.begun)
    warnings += _rate_warnings(video, rate, overall)
    decode, network, encode = (_rate(run.done - 1, spent) for spent in run.seconds)
    return VideoResult(
        frames=run.done,
        width=video.width,
        height=video.height,
        video_frames_per_sec=rate,
        frames_per_sec=overall,
        decode_frames_per_sec=decode,
        network_frames_per_sec=network,
        encode_frames_per_sec=encode,
        outputs=tuple(written),
        warnings=tuple(warnings),
    )


def _open_targets(
    stack: contextlib.ExitStack,
    stem: pathlib.Path,
    video: Video,
    classes: ClassMap,
    rate: float,
    outputs: Collection[str],
    overwrite: bool,
) -> dict[str, _VideoTarget | _FolderTarget]:
    """Opens what `outputs` names; `stack` removes what is not finished."""
    if outputs:
        with _written_to(stem.parent):
            stem.parent.mkdir(parents=True, exist_ok=True)
            _check_room(stem.parent)
    targets: dict[str, _VideoTarget | _FolderTarget] = {}
    for output in OUTPUTS:
        if output in outputs:
            make_target = _make_mask_target if output == "mask" else _make_overlay_target
            target = targets[output] = make_target(stem, video, classes, rate)
            _check_free(target.path, video.source, overwrite)
            stack.callback(target.discard)
            with _written_to(stem.parent):
                target.open()
    return targets


class _Run:
    """Predicts and writes one frame after another.

    Attributes:
        make_mask: From probabilities to class ids.
        done: Frames so far.
        begun: When the first frame was done; NaN before.
        seconds: Of decoding, predicting and writing, all frames but the first.
        warnings: Complete sentences.
    """

    def __init__(
        self,
        predict: Callable[[np.ndarray], np.ndarray],
        video: Video,
        targets: Mapping[str, _VideoTarget | _FolderTarget],
        folder: pathlib.Path,
        classes: ClassMap,
        channels: int,
        alpha: float,
        show: Callable[[np.ndarray], bool] | None,
        clock: Callable[[], float],
    ):
        self.make_mask: Callable[[np.ndarray], np.ndarray] = predicted_ids
        self.done = 0
        self.begun = math.nan
        self.seconds = np.zeros(3)
        self.warnings: list[str] = []
        self._predict = predict
        self._source = video.source
        self._frames = iter(video)
        self._targets = targets
        self._folder = folder
        self._classes = classes
        self._channels = channels
        self._alpha = alpha
        self._show = show
        self._clock = clock

    def next_frame(self) -> bool:
        """Predicts and writes the next frame; returns whether to go on."""
        times = [self._clock()]
        frame = next(self._frames, None)
        if frame is None:
            return False
        times.append(self._clock())
        image = images.to_channels(frame, self._channels)
        probabilities = self._predict(image[..., 0] if self._channels == 1 else image)
        check_finite(probabilities, f"{self._source}, frame {self.done + 1}")
        ids = self.make_mask(probabilities)
        times.append(self._clock())
        overlay = self._write(frame, ids)
        times.append(self._clock())
        self.done += 1
        if self.done == 1:
            self.begun = times[-1]
        else:
            self.seconds += np.diff(times)
        if self._show is not None and overlay is not None and not self._show(overlay):
            return False
        return not self._is_full()

    def _write(self, frame: np.ndarray, ids: np.ndarray) -> np.ndarray | None:
        """Writes a frame; returns its overlay, None if nobody wants one."""
        overlay = None
        if self._show is not None or "overlay" in self._targets:
            overlay = pictures.overlay(frame, ids, self._classes, alpha=self._alpha)
        with _written_to(self._folder):
            if overlay is not None and "overlay" in self._targets:
                self._targets["overlay"].write(overlay)
            if "mask" in self._targets:
                self._targets["mask"].write(_mask_pixels(ids, self._classes))
            if self._targets and self.done % _FRAMES_BETWEEN_LOOKS_AT_THE_DISK == 0:
                _check_room(self._folder)
        return overlay

    def _is_full(self) -> bool:
        if not any(target.is_full() for target in self._targets.values()):
            return False
        self.warnings.append(
            f"{self._source}: ended after {self.done} frames, where the overlay reached the 2 GiB "
            "that an AVI of odd size may have. Crop the video to even width and height, or ask "
            "for masks only."
        )
        return True


def describe(result: VideoResult) -> str:
    """Returns the rates of a run as a table."""
    rows = [
        ("decode", result.decode_frames_per_sec),
        ("network", result.network_frames_per_sec),
        ("encode", result.encode_frames_per_sec),
        ("together", result.frames_per_sec),
        ("the video itself", result.video_frames_per_sec),
    ]
    return tables.table(
        [f"{result.frames} frame(s) of {result.width}x{result.height}", "frames/s"],
        [[name, "-" if math.isnan(rate) else f"{rate:.1f}"] for name, rate in rows],
    )


def make_window(title: str) -> Callable[[np.ndarray], bool]:
    """Returns a function that shows a picture in a window.

    It takes [H, W, 3] uint8, BGR, and returns whether to go on: not once q or Esc was pressed or
    the window was closed.

    Raises:
        UserError: If there is no screen, or this OpenCV has no windows.
    """
    # Without a screen, OpenCV's windows may end the whole process instead of raising an error.
    has_screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform.startswith("linux") and not has_screen:
        raise UserError(
            "`show` needs a screen, and neither DISPLAY nor WAYLAND_DISPLAY is set. Leave `show` "
            "out; the overlay can be watched as a file."
        )
    try:
        with _quiet():
            cv2.namedWindow(title, cv2.WINDOW_NORMAL)
    except (AttributeError, cv2.error) as error:
        raise UserError(
            "`show` needs an OpenCV with windows, and this one has none "
            "(opencv-python-headless). Install opencv-python in its place, or leave `show` out."
        ) from error

    def show(picture: np.ndarray) -> bool:
        cv2.imshow(title, picture)
        pressed = cv2.waitKey(1) & 0xFF
        is_open = cv2.getWindowProperty(title, cv2.WND_PROP_VISIBLE) >= 1
        if is_open and pressed not in (ord("q"), 27):
            return True
        if is_open:
            cv2.destroyWindow(title)
        return False

    return show


@dataclasses.dataclass(frozen=True)
class _Steps:
    """Numbers from 0, `most` at most; `len` is how many are expected, which may be wrong."""

    expected: int | None
    most: int | None

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(itertools.count(), self.most)

    def __len__(self) -> int:
        known = [count for count in (self.expected, self.most) if count is not None]
        if not known:
            raise TypeError("The number of frames is not known.")
        return min(known)


class _Writer:
    """An open cv2.VideoWriter, which reports nothing that fails."""

    def __init__(self, path: pathlib.Path, codec: Codec, size: tuple[int, int], rate: float):
        self._path = path
        self._has_whole_rate = codec == _OWN_CODEC
        self._rate = rate
        with _quiet():
            self._writer = cv2.VideoWriter(
                os.path.abspath(path),
                codec.backend,
                cv2.VideoWriter.fourcc(*codec.fourcc),
                rate,
                size,
            )
        self.is_open = self._writer.isOpened()

    def write(self, picture: np.ndarray) -> None:
        with _quiet():
            self._writer.write(picture)

    def close(self) -> None:
        with _quiet(), contextlib.suppress(cv2.error):
            self._writer.release()
        if self._has_whole_rate and self._rate != round(self._rate):
            _set_avi_rate(self._path, self._rate)


class _VideoTarget:
    """A video under way, which lies in a folder of its own until it is whole."""

    def __init__(self, path: pathlib.Path, codec: Codec, size: tuple[int, int], rate: float):
        self.path = path
        self._folder: NewFolder | None = None
        self._codec = codec
        self._size = size
        self._rate = rate
        self._writer: _Writer | None = None

    def open(self) -> None:
        self._folder = NewFolder(self.path)
        self._part = self._folder.path / f"video{self.path.suffix}"
        self._writer = _Writer(self._part, self._codec, self._size, self._rate)
        if not self._writer.is_open:
            raise UserError(
                f"{self.path}: cannot be written as a video. Look whether the folder can be "
                "written, or choose another `output_dir`."
            )

    def write(self, picture: np.ndarray) -> None:
        assert self._writer is not None  # `open` comes first.
        grey = picture.ndim == 2
        self._writer.write(cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR) if grey else picture)

    def is_full(self) -> bool:
        return self._codec == _OWN_CODEC and self._part.stat().st_size > _MOST_AVI_BYTES

    def finish(self, frames: int) -> None:
        assert self._writer is not None  # `open` comes first.
        self._writer.close()
        _check_room(self.path.parent)
        found = _count_frames(self._part)
        if found != frames:
            raise UserError(
                f"{self.path}: cannot be written: {found} of its {frames} frames could be read "
                "back, and it was removed. Look whether the disk is full or failing, or choose "
                "another `output_dir`."
            )
        self._part.replace(self.path)

    def discard(self) -> None:
        """Removes what is not finished."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()
        if self._folder is not None:
            self._folder.discard()


class _FolderTarget:
    """A folder of numbered PNG files under way, which has another name until it is whole."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._new: NewFolder | None = None
        self._written = 0

    def open(self) -> None:
        self._new = NewFolder(self.path)

    def write(self, pixels: np.ndarray) -> None:
        assert self._new is not None  # `open` comes first.
        images.write_png(self._new.path / f"{self._written:06d}.png", pixels)
        self._written += 1

    def is_full(self) -> bool:
        return False

    def finish(self, _: int) -> None:
        assert self._new is not None  # `open` comes first.
        if self.path.is_symlink() or self.path.is_file():
            self.path.unlink()
        elif self.path.is_dir():
            shutil.rmtree(self.path)
        self._new.commit()

    def discard(self) -> None:
        """Removes what is not finished."""
        if self._new is not None:
            self._new.discard()


def _make_overlay_target(
    stem: pathlib.Path, video: Video, _: ClassMap, rate: float
) -> _VideoTarget:
    suffix = pathlib.Path(video.source).suffix if camera_number(video.source) is None else ".mp4"
    size = (video.width, video.height)
    codec = choose_codec(suffix, stem.parent, size=size, frames_per_sec=rate)
    path = stem.with_name(f"{stem.name}_overlay{codec.suffix}")
    return _VideoTarget(path, codec, size, rate)


def _make_mask_target(
    stem: pathlib.Path, video: Video, classes: ClassMap, rate: float
) -> _VideoTarget | _FolderTarget:
    size = (video.width, video.height)
    if classes.values(np.zeros((1, 1), np.uint8)).dtype == np.uint8:
        for codec in _LOSSLESS_CODECS:
            if _keeps(codec, stem.parent, size, rate, exactly=True):
                path = stem.with_name(f"{stem.name}_masks{codec.suffix}")
                return _VideoTarget(path, codec, size, rate)
    return _FolderTarget(stem.with_name(f"{stem.name}_masks"))


def _mask_pixels(ids: np.ndarray, classes: ClassMap) -> np.ndarray:
    """Returns the mask values of `ids` [H, W] as OpenCV writes them.

    They are [H, W], or [H, W, 3] in BGR order; uint8 or uint16.
    """
    values = classes.values(ids)
    return values[..., ::-1] if classes.is_colour else values


def _check_request(outputs: Collection[str], most_frames: int | None) -> None:
    wrong = sorted(set(outputs) - set(OUTPUTS))
    if wrong:
        raise UserError(
            f"`outputs` holds {', '.join(wrong)}; of a video, {' and '.join(OUTPUTS)} can be "
            "written. Name one or both."
        )
    if most_frames is not None and most_frames < 1:
        raise UserError(
            f"`most_frames` ({most_frames}) must be at least 1; leave it out to predict all frames."
        )


def _check_free(path: pathlib.Path, source: str, overwrite: bool) -> None:
    """Raises UserError if `path` may not be written or replaced."""
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise UserError(
            f"{path}: exists already, and is not replaced without being asked. Move it, choose "
            "another `output_dir`, or set `overwrite`."
        )
    if os.path.exists(source) and path.exists() and path.samefile(source):
        raise UserError(
            f"{path}: is the video to predict, which would be replaced. Choose another "
            "`output_dir`."
        )
    if not path.is_dir():
        return
    others = [p.name for p in path.iterdir() if not re.fullmatch(r"\d{6,}\.png", p.name)]
    if others:
        raise UserError(
            f"{path}: holds {others[0]}, which is no mask of a video, so that the folder is not "
            "replaced. Move it, or choose another `output_dir`."
        )


def _readable_size(path: str) -> int:
    """Returns the bytes of the file at `path`.

    Raises:
        UserError: If it cannot be read.
    """
    way = f"Name a file ({', '.join(VIDEO_SUFFIXES)}), or a camera, such as camera:0."
    with os_errors(path, "cannot be read as a video", way), open_to_read(path) as file:
        return file.seek(0, os.SEEK_END)


def _capture(source: str | int) -> cv2.VideoCapture:
    """Returns what OpenCV makes of a path or the number of a camera, open or not."""
    with _quiet():
        if isinstance(source, str):
            # In threads of its own, FFmpeg would complain of damage when nothing holds it back.
            one_thread = [cv2.CAP_PROP_N_THREADS, 1]
            capture = cv2.VideoCapture(source, cv2.CAP_FFMPEG, one_thread)
            if capture.isOpened():
                return capture
        return cv2.VideoCapture(source)


def _read(capture: cv2.VideoCapture, expected: int | None) -> np.ndarray | None:
    """Returns the next frame that can be decoded, [H, W, 3] uint8 in BGR order, or None.

    Of a video where more are `expected` in all, damaged frames are left out.
    """
    # OpenCV 5.0 answers to a damaged frame as to the end, and goes on when asked again.
    for _ in range(min(expected or 1, _MOST_DAMAGED_FRAMES)):
        with _quiet(), contextlib.suppress(cv2.error):
            is_read, frame = capture.read()
            if is_read:
                return frame
    return None


def _frame_count(source: str, capture: cv2.VideoCapture) -> int | None:
    """Returns the number of frames that the header names, or None."""
    count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    is_count = camera_number(source) is None and 1 <= count < 2**31
    return round(count) if is_count else None


def _keeps(
    codec: Codec,
    folder: str | os.PathLike,
    size: tuple[int, int],
    rate: float,
    *,
    exactly: bool = False,
) -> bool:
    """Whether three frames written to a trial file are read back with count, size and rate.

    If `exactly`, their pixels must be the same, too.
    """
    width, height = size
    frames = np.random.default_rng(0).integers(0, 256, (3, height, width, 3), np.uint8)
    with _written_to(folder), scratch_folder(folder) as trial:
        path = trial / f"trial{codec.suffix}"
        writer = _Writer(path, codec, size, rate)
        if not writer.is_open:
            return False
        for frame in frames:
            writer.write(frame)
        writer.close()
        try:
            with open_video(path) as video:
                found_rate = video.frames_per_sec or 0.0
                found = np.array([frame[..., ::-1] for frame in video])
        except UserError:
            return False
    if found.shape != frames.shape or not math.isclose(found_rate, rate, rel_tol=1e-3):
        return False
    return not exactly or np.array_equal(found, frames)


def _count_frames(path: pathlib.Path) -> int:
    """Returns how many frames of the video at `path` can be decoded."""
    capture = _capture(os.path.abspath(path))
    with _quiet(), contextlib.suppress(cv2.error):
        count = sum(1 for _ in iter(capture.grab, False))
        capture.release()
        return count
    return 0


def _set_avi_rate(path: pathlib.Path, rate: float) -> None:
    """Stores `rate` in the header of the AVI at `path`.

    OpenCV 5.0's own writer rounds it to whole frames a second.
    """
    ratio = fractions.Fraction(rate).limit_denominator(1001)
    with open(path, "r+b") as file:
        header = file.read(4096)
        main, stream = header.find(b"avih"), header.find(b"strh")
        if min(main, stream) < 0:
            return
        # Both follow a tag and a length of 4 bytes: microseconds per frame, then in the stream's
        # header, after 20 bytes, the denominator and numerator of the rate.
        file.seek(main + 8)
        file.write(struct.pack("<I", round(1e6 / rate)))
        file.seek(stream + 28)
        file.write(struct.pack("<II", ratio.denominator, ratio.numerator))


def _check_room(folder: str | os.PathLike) -> None:
    """Raises OSError if no file can be written to `folder`; cv2.VideoWriter would not tell."""
    with tempfile.TemporaryFile(dir=str(folder)) as file:
        file.write(bytes(2**16))
        file.flush()


@contextlib.contextmanager
def _written_to(folder: str | os.PathLike) -> Iterator[None]:
    """Makes of an OSError of the block the UserError that `folder` cannot be written."""
    way = "What was not finished is removed. Make room or choose another `output_dir`."
    with os_errors(folder, "predictions cannot be written", way):
        yield


def _rate(frames: int, seconds: float) -> float:
    """Returns frames/s, NaN if there were none."""
    return frames / seconds if frames > 0 and seconds > 0 else math.nan


def _rate_warnings(video: Video, rate: float, overall: float) -> list[str]:
    """Returns warnings about the rate at which the written videos play."""
    warnings = []
    if video.frames_per_sec is None:
        warnings.append(
            f"{video.source}: does not tell its frame rate; what is written plays at {rate:g} "
            "frames/s."
        )
    if camera_number(video.source) is not None and overall < 0.9 * rate:
        warnings.append(
            f"{video.source}: {overall:.1f} frames/s could be predicted, so that what is written, "
            f"at {rate:g} frames/s, plays faster than it happened."
        )
    return warnings


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Holds back what OpenCV and FFmpeg write to standard error.

    Not all of it goes through OpenCV's log (seen on 5.0). What Python writes, as from the handler
    of a signal, is shown.
    """
    with _SCREEN:
        sys.stderr.flush()
        screen = os.dup(2)
        try:
            with open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), 2)
            with (
                os.fdopen(os.dup(screen), "w") as shown,
                contextlib.redirect_stderr(shown),
            ):
                yield
        finally:
            os.dup2(screen, 2)
            os.close(screen)
