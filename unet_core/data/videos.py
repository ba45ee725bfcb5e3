"""Videos by PyAV, and cameras by OpenCV: frames with their times, read and written.

with open_video("cells.mp4") as video:
    for frame in video: ...                          # frame.pixels [H, W, 3] uint8, RGB
writer = VideoWriter("out/cells_overlay.mp4", (96, 64), frames_per_sec=25, lossless=False)
writer.write(pixels, frame)                          # is shown when that frame is
writer.commit()                                      # takes its name; or `writer.discard()`
"""

from __future__ import annotations

import contextlib
import fractions
import itertools
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import av
import cv2
import numpy as np

from unet_core.errors import UserError, reason_of
from unet_core.files import open_to_read, os_errors
from unet_core.temporary import NewFile

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
ERRORS = (OSError, av.FFmpegError)
"""What a video that cannot be read or written raises."""

_ASSUMED_FRAMES_PER_SEC = fractions.Fraction(25)
# What claims more is a clock's tick, not a rate of frames.
_MOST_FRAMES_PER_SEC = 1000
# More than 8K has; a damaged header may name any size, and a frame of it would fill the memory.
_MOST_PIXELS = 2**26
# It divides the usual rates, also 30000/1001; MPEG-4 takes no finer one.
_TICKS_PER_SEC = 60000
_WAY = f"Name a file ({', '.join(VIDEO_SUFFIXES)}), or a camera, such as camera:0."


class Frame(NamedTuple):
    """A picture of a video.

    Attributes:
        pixels: [H, W, 3] uint8, RGB, turned as players show it.
        start: Seconds from the first frame.
        duration: Seconds until the next one.
    """

    pixels: np.ndarray
    start: fractions.Fraction
    duration: fractions.Fraction


class Video:
    """An open video or camera; iterating gives its frames once, see `Frame`.

    Args:
        source: Its path, or `camera:0`.
        frames: All but the first.
        first: The first.
        count: How many there are according to its header.
        rate: Of them, in a second.
        look_back: Takes the number of frames at their end; returns a sentence if they ended before
            they should.

    Attributes:
        source: Its path, or `camera:0`.
        width: Columns of a frame.
        height: Rows of a frame.
        frames: How many there are according to its header; None if it does not say.
        frames_per_sec: Its rate, the mean one if it varies; None if it is not known.
        problem: A complete sentence, once the frames have ended before they should; else None.
    """

    def __init__(
        self,
        source: str,
        frames: Iterator[Frame],
        first: Frame,
        count: int | None = None,
        rate: fractions.Fraction | None = None,
        look_back: Callable[[int], str | None] = lambda _: None,
    ):
        self.source = source
        self.height, self.width = first.pixels.shape[:2]
        self.frames = count
        self.frames_per_sec = float(rate) if rate else None
        self.problem: str | None = None
        self._frames = itertools.chain([first], frames)
        self._look_back = look_back

    def __iter__(self) -> Iterator[Frame]:
        given = 0
        for frame in self._frames:
            height, width = frame.pixels.shape[:2]
            if (height, width) != (self.height, self.width):
                self.problem = (
                    f"{self.source}: frame {given + 1} is {width}x{height} and the frames before "
                    f"it are {self.width}x{self.height}; the {given} before it are predicted. Cut "
                    "the video there, and predict the rest apart."
                )
                return
            given += 1
            yield frame
        self.problem = self._look_back(given)


class VideoWriter:
    """A video that is being written; it takes its name by `commit`, see `NewFile`.

    Args:
        path: Its name; ".mkv" if it is lossless, else ".mp4".
        size: (width, height) in pixels, also odd.
        frames_per_sec: About how many frames come, for the codec; each is shown at its time.
        lossless: FFV1, of [H, W] uint8 or uint16 or of [H, W, 3] uint8, RGB, which is read back
            as it is. Else H.264 of [H, W, 3] uint8, or MPEG-4 where there is no H.264.

    Raises (and so do the methods):
        OSError, av.FFmpegError: If it cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        size: tuple[int, int],
        *,
        frames_per_sec: float,
        lossless: bool,
    ):
        self.path = pathlib.Path(path)
        self._size = size
        self._rate = fractions.Fraction(frames_per_sec).limit_denominator(1001)
        self._lossless = lossless
        self._durations: dict[int, int] = {}
        self._stream: av.VideoStream | None = None
        self._last = -1
        self._file = NewFile(self.path)
        kind = "matroska" if lossless else "mp4"
        self._container = av.open(self._file.file, "w", format=kind)

    def write(self, pixels: np.ndarray, at: Frame) -> None:
        """Adds a picture, which is shown at the time of the frame `at`."""
        if self._stream is None:
            self._stream = self._make_stream(pixels)
        grey = "gray" if pixels.dtype == np.uint8 else "gray16le"
        kind = "rgb24" if pixels.ndim == 3 else grey
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=kind)
        picture.time_base = fractions.Fraction(1, _TICKS_PER_SEC)
        self._last = max(round(at.start * _TICKS_PER_SEC), self._last + 1)
        picture.pts = self._last
        self._durations[self._last] = max(round(at.duration * _TICKS_PER_SEC), 1)
        self._mux(picture)

    def commit(self) -> None:
        """Gives the video its name."""
        self._mux(None)
        self._container.close()
        self._file.commit()

    def discard(self) -> None:
        """Removes what has not been committed."""
        with contextlib.suppress(*ERRORS, ValueError):
            self._container.close()
        self._file.discard()

    def _make_stream(self, pixels: np.ndarray) -> av.VideoStream:
        codec, options = "ffv1", {"level": "3", "slicecrc": "1"}
        kind = "bgr0" if pixels.ndim == 3 else ("gray" if pixels.dtype == np.uint8 else "gray16le")
        if not self._lossless:
            has_h264 = "libx264" in av.codecs_available
            # Frames out of order, "bf", would make an MP4 of a varying rate too short.
            codec, options = ("libx264", {"crf": "18", "bf": "0"}) if has_h264 else ("mpeg4", {})
            # Colour of half the resolution, which every player shows, is for even sizes.
            is_even = not any(side % 2 for side in self._size)
            kind = "yuv420p" if is_even or not has_h264 else "yuv444p"
        stream = self._container.add_stream(codec, rate=self._rate, options=options)
        stream.width, stream.height = self._size
        stream.pix_fmt = kind
        stream.codec_context.time_base = fractions.Fraction(1, _TICKS_PER_SEC)
        return stream

    def _mux(self, picture: av.VideoFrame | None) -> None:
        assert self._stream is not None  # There is a first frame.
        for packet in self._stream.encode(picture):
            packet.duration = self._durations.pop(packet.pts, 0)
            self._container.mux(packet)


def is_video(path: str | os.PathLike) -> bool:
    """Whether the name of `path` is that of a video."""
    return pathlib.Path(path).suffix.lower() in VIDEO_SUFFIXES


def camera_number(text: str) -> int | None:
    """Returns the number in `camera:0`, or None if `text` is of another form."""
    match = re.fullmatch(r"camera:(\d{1,4})", text)
    return int(match[1]) if match else None


@contextlib.contextmanager
def open_video(
    source: str | os.PathLike, *, clock: Callable[[], float] = time.monotonic
) -> Iterator[Video]:
    """Opens a video file, or a camera by `camera:0`.

    Args:
        source: Which.
        clock: Tells the seconds at which a camera gave a frame.

    Raises:
        UserError: If the file cannot be read, is no video that can be decoded, or holds no frame;
            if there is no such camera, or it gives no picture.
    """
    source = os.fspath(source)
    camera = camera_number(source)
    with _open_file(source) if camera is None else _open_camera(source, camera, clock) as video:
        yield video


@contextlib.contextmanager
def _open_file(source: str) -> Iterator[Video]:
    with contextlib.ExitStack() as stack:
        with os_errors(source, "cannot be read as a video", _WAY):
            file = stack.enter_context(open_to_read(source))
        size = f"{os.fstat(file.fileno()).st_size} bytes"
        advice = "Copy it again, or convert it to MP4."
        try:
            # A list of other files is no video: of them, none is opened.
            closed = {"protocol_whitelist": "none"}
            container = stack.enter_context(av.open(file, options=closed, metadata_errors="ignore"))
        except (*ERRORS, ValueError) as error:
            raise UserError(
                f"{source}: cannot be decoded as a video ({size}; {reason_of(error)}): it is "
                f"damaged, cut short, or of a kind that is not read. {advice}"
            ) from error
        if not container.streams.video:
            raise UserError(f"{source}: holds sound or text and no pictures ({size}). {advice}")
        stream = container.streams.video[0]
        pixels = stream.codec_context.width * stream.codec_context.height
        if pixels > _MOST_PIXELS:
            raise UserError(
                f"{source}: has {pixels} pixels in a frame; at most {_MOST_PIXELS} are decoded. "
                "Scale it down or cut it."
            )
        stream.thread_type = "AUTO"
        rates = stream.guessed_rate, stream.average_rate
        rate = next((r for r in rates if r and 0 < r <= _MOST_FRAMES_PER_SEC), None)
        reading = _Reading(source, container, stream, rate or _ASSUMED_FRAMES_PER_SEC)
        frames = reading.frames()
        first = next(frames, None)
        if first is None:
            raise UserError(f"{source}: holds no frame that can be decoded ({size}). {advice}")
        yield Video(source, frames, first, reading.count, rate, reading.look_back)


class _Reading:
    """The frames of a file as they are decoded, and what was found on the way.

    Attributes:
        count: How many there are according to the header, or None.
    """

    def __init__(
        self,
        source: str,
        container: av.container.InputContainer,
        stream: av.VideoStream,
        rate: fractions.Fraction,
    ):
        self._source = source
        self._container = container
        self._stream = stream
        self._rate = rate
        # An AVI of a varying rate counts the ticks of its clock as frames.
        is_of_ticks = container.format.name == "avi" and stream.average_rate != stream.guessed_rate
        self.count = None if is_of_ticks else stream.frames or None
        self._damage: list[str] = []
        # Frames that the header counts and that are not shown, as before the start of a cut video.
        self._hidden = 0
        self._end = fractions.Fraction(0)

    def frames(self) -> Iterator[Frame]:
        """Gives frames with times from 0; of the rate where the video tells none."""
        first: fractions.Fraction | None = None
        due = fractions.Fraction(0)
        for frame in self._decoded():
            told = None if frame.pts is None else frame.pts * frame.time_base
            first = told if first is None else first
            start = due if told is None or first is None else told - first
            start = max(start, fractions.Fraction(0))
            duration = frame.duration * frame.time_base if frame.duration else 1 / self._rate
            due = start + duration
            self._end = due + (first or 0)
            yield Frame(_turned(frame), start, duration)

    def _decoded(self) -> Iterator[av.VideoFrame]:
        """Gives the frames that can be decoded; notes why others cannot be."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except ERRORS as error:
                packet = None
                self._damage.append(reason_of(error))
            if packet is None:
                return
            self._hidden += packet.is_discard
            try:
                yield from packet.decode()
            except ERRORS as error:
                self._damage.append(reason_of(error))

    def look_back(self, given: int) -> str | None:
        """Returns a sentence if there should have been more than the `given` frames."""
        count = (self.count or 0) - self._hidden
        # Sound may be longer; where there is none, the length is that of the pictures.
        is_alone = len(self._container.streams) == 1 and not self._stream.frames
        seconds = (self._container.duration or 0) / 1e6 if is_alone else 0.0
        if given < count:
            found = f"its header names {count} frames and {given} could be decoded"
        elif float(self._end) < seconds - 2 / float(self._rate):
            end = float(self._end)
            found = f"its header names {seconds:.1f} s and {end:.1f} s could be decoded"
        elif self._damage:
            places = f"{len(self._damage)} place(s) ({self._damage[0]})"
            found = f"is damaged in {places} and {given} frames could be decoded"
        else:
            return None
        return (
            f"{self._source}: {found}; these are predicted. If a player shows more, the file is "
            "damaged there: copy it again or convert it anew."
        )


def _turned(frame: av.VideoFrame) -> np.ndarray:
    """Returns the pixels of a frame as players show them, [H, W, 3] uint8, RGB."""
    pixels = frame.to_ndarray(format="rgb24")
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return pixels
    # Column x and row y are shown at column a*x + c*y and row b*x + d*y, from the edges inwards.
    a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), np.int32)
    if abs(a) < abs(b):
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(pixels[:: 1 if d >= 0 else -1, :: 1 if a >= 0 else -1])


@contextlib.contextmanager
def _open_camera(source: str, number: int, clock: Callable[[], float]) -> Iterator[Video]:

    def ended(given: int) -> str:
        return (
            f"{source}: gave no more frames after {given}; look at its cable, and whether another "
            "program has taken it."
        )

    # PyAV's wheels come without cameras (18.1).
    with _quiet_opencv():
        capture = cv2.VideoCapture(number)
        try:
            frames = _seen(capture, clock)
            first = next(frames, None)
            if first is None:
                raise UserError(
                    f"{source}: there is no such camera, or it gives no picture. Plug it in, close "
                    "other programs that use it, or try another number, such as camera:0."
                )
            rate = capture.get(cv2.CAP_PROP_FPS)
            known = fractions.Fraction(rate) if 0 < rate <= _MOST_FRAMES_PER_SEC else None
            yield Video(source, frames, first, None, known, ended)
        finally:
            capture.release()


def _seen(capture: cv2.VideoCapture, clock: Callable[[], float]) -> Iterator[Frame]:
    """Gives what a camera sees, at the times when it gave it."""
    begun: float | None = None
    start = fractions.Fraction(0)
    while (picture := capture.read()[1]) is not None:
        now = clock()
        begun = now if begun is None else begun
        before, start = start, fractions.Fraction(now - begun).limit_denominator(_TICKS_PER_SEC)
        duration = start - before or 1 / _ASSUMED_FRAMES_PER_SEC
        yield Frame(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), start, duration)


@contextlib.contextmanager
def _quiet_opencv() -> Iterator[None]:
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)
