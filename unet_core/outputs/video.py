"""Videos and cameras, predicted frame by frame.

result = predict_video(
    predictor, "cells.mov", "out/cells",    # -> out/cells_overlay.mp4 and out/cells_masks.mkv
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
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping

import cv2
import numpy as np

from unet_core.data import images
from unet_core.data.classes import ClassMap
from unet_core.data.videos import ERRORS, Frame, Video, VideoWriter, open_video
from unet_core.drawing import pictures, tables
from unet_core.errors import UserError
from unet_core.files import os_errors
from unet_core.inference.masks import mask_pixels, suffixes_of_classes, usual_rule
from unet_core.inference.predictor import check_finite

OUTPUTS = ("mask", "overlay")

# A codec is set up for it, where the video tells no rate.
_ASSUMED_FRAMES_PER_SEC = 25.0


@dataclasses.dataclass(frozen=True)
class VideoResult:
    """What became of a video.

    Rates are in frames/s and leave out the first frame, for which codecs are set up and the network
    is compiled; NaN if there was no other.

    Attributes:
        frames: Frames predicted.
        width: Columns of each.
        height: Rows of each.
        video_frames_per_sec: The rate at which the written videos play, the mean one if it varies.
        frames_per_sec: The rate of the whole run.
        decode_frames_per_sec: The rate of decoding alone; of a camera, waiting for it.
        network_frames_per_sec: The rate of converting the pixels and predicting alone.
        encode_frames_per_sec: The rate of drawing and writing alone.
        is_whole: Whether the video was predicted to its end.
        outputs: The finished files.
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
    is_whole: bool
    outputs: tuple[pathlib.Path, ...]
    warnings: tuple[str, ...]


def predict_video(
    predict: Callable[[np.ndarray], np.ndarray],
    source: str,
    output_path_stem: str | os.PathLike,
    *,
    classes: ClassMap,
    channels: int,
    alpha: float,
    outputs: Collection[str] = OUTPUTS,
    make_mask: Callable[[np.ndarray], np.ndarray] | None = None,
    show: Callable[[np.ndarray], bool] | None = None,
    most_frames: int | None = None,
    overwrite: bool = False,
    claim: Callable[[], object] = lambda: None,
    progress: Callable = iter,
    should_stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.perf_counter,
) -> VideoResult:
    """Predicts each frame of a video and writes its overlays and masks as videos.

    Each frame is shown at the time of the source's, of a camera at the time when it was seen.
    `<stem>_overlay.mp4` is H.264, or MPEG-4 where there is no H.264. `<stem>_masks.mkv` holds the
    mask values of the class map and loses nothing (FFV1); of classes that may overlap there is
    `<stem>_masks_<class>.mkv` for each, 255 where it is. Nothing has these names before it is
    finished.

    Args:
        predict: [H, W] (one channel) or [H, W, 3] (RGB) uint8 to probabilities [H, W, C] float32.
        source: A video file, or `camera:0`.
        output_path_stem: Where to write; the folder is made if need be.
        classes: The meaning of the C probabilities.
        channels: 1 or 3, as the network expects.
        alpha: Opacity of the classes in the overlay, from 0 to 1.
        outputs: Any of "mask" and "overlay".
        make_mask: [H, W, C] probabilities to [H, W] class ids, a `MaskRule` for example; None is
            the usual.
        show: Takes each overlay, [H, W, 3] uint8 in BGR order, and returns whether to go on.
        most_frames: Frames after which to end; None for all.
        overwrite: Whether finished outputs of that name may be replaced.
        claim: Called before the first output takes its name.
        progress: Wraps the numbers of the frames; their count has a length if it is known.
        should_stop: Asked before every frame. What is done by then is finished and kept.
        clock: Tells the seconds.

    Raises:
        UserError: As `open_video`; if an output exists and `overwrite` is not set, or cannot be
            written, or what `predict` returns is not finite, of which nothing is left then; or if
            `outputs` or `most_frames` is wrong.
    """
    _check_request(outputs, most_frames)
    stem = pathlib.Path(output_path_stem)
    warnings = []
    with contextlib.ExitStack() as stack:
        video = stack.enter_context(open_video(source))
        writers = _open_writers(stack, output_paths(stem, outputs, classes), video, overwrite)
        run = _Run(predict, video, writers, stem.parent, classes, channels, alpha, show, clock)
        run.make_mask = make_mask or run.make_mask
        for _ in progress(_Steps(video.frames, most_frames)):
            if should_stop():
                warnings.append(
                    f"{source}: stopped after {run.done} frame(s), as asked; what was done is "
                    "kept, and replaced when it is predicted again."
                )
                break
            if not run.next_frame():
                break
        ended = clock()
        written = []
        if run.done:
            with _written_to(stem.parent):
                claim()
            for writer in writers.values():
                with _written_to(stem.parent):
                    writer.commit()
                written.append(writer.path)
    if video.problem:
        warnings.append(video.problem)
    decode, network, encode = (_rate(run.done - 1, spent) for spent in run.seconds)
    return VideoResult(
        frames=run.done,
        width=video.width,
        height=video.height,
        video_frames_per_sec=_rate(run.done, float(run.length)),
        frames_per_sec=_rate(run.done - 1, ended - run.begun),
        decode_frames_per_sec=decode,
        network_frames_per_sec=network,
        encode_frames_per_sec=encode,
        is_whole=run.is_at_end,
        outputs=tuple(written),
        warnings=tuple(warnings),
    )


def output_paths(
    stem: pathlib.Path, outputs: Collection[str], classes: ClassMap
) -> dict[str, pathlib.Path]:
    """Returns the files that `predict_video` writes, by what their names end in."""
    found = {name: f"{name}.mkv" for name in _mask_names(classes) if "mask" in outputs}
    if "overlay" in outputs:
        found["overlay"] = "overlay.mp4"
    return {name: stem.with_name(f"{stem.name}_{end}") for name, end in found.items()}


def _mask_names(classes: ClassMap) -> list[str]:
    """Returns what the names of the videos of masks end in: one, or one for each class."""
    return suffixes_of_classes("masks", classes) if classes.overlapping else ["masks"]


def _open_writers(
    stack: contextlib.ExitStack,
    paths: Mapping[str, pathlib.Path],
    video: Video,
    overwrite: bool,
) -> dict[str, VideoWriter]:
    """Opens the files of `output_paths`; `stack` removes what is not finished."""
    writers = {}
    for output, path in paths.items():
        with _written_to(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            _check_free(path, video.source, overwrite)
            writers[output] = VideoWriter(
                path,
                (video.width, video.height),
                frames_per_sec=video.frames_per_sec or _ASSUMED_FRAMES_PER_SEC,
                lossless=output != "overlay",
            )
        stack.callback(writers[output].discard)
    return writers


class _Run:
    """Predicts and writes one frame after another.

    Attributes:
        make_mask: From probabilities to class ids.
        done: Frames so far.
        is_at_end: Whether these are all.
        begun: When the first frame was done; NaN before.
        length: Seconds of video so far.
        seconds: Of decoding, predicting and writing, all frames but the first.
    """

    def __init__(
        self,
        predict: Callable[[np.ndarray], np.ndarray],
        video: Video,
        writers: Mapping[str, VideoWriter],
        folder: pathlib.Path,
        classes: ClassMap,
        channels: int,
        alpha: float,
        show: Callable[[np.ndarray], bool] | None,
        clock: Callable[[], float],
    ):
        self.make_mask: Callable[[np.ndarray], np.ndarray] = usual_rule(classes)
        self.done = 0
        self.is_at_end = False
        self.begun = math.nan
        self.length = fractions.Fraction(0)
        self.seconds = np.zeros(3)
        self._predict = predict
        self._source = video.source
        self._frames = iter(video)
        self._writers = writers
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
            self.is_at_end = True
            return False
        times.append(self._clock())
        image = images.to_channels(frame.pixels, self._channels)
        probabilities = self._predict(image[..., 0] if self._channels == 1 else image)
        check_finite(probabilities, f"{self._source}, frame {self.done + 1}")
        ids = self.make_mask(probabilities)
        times.append(self._clock())
        overlay = self._write(frame, ids)
        times.append(self._clock())
        self.done += 1
        self.length = frame.start + frame.duration
        if self.done == 1:
            self.begun = times[-1]
        else:
            self.seconds += np.diff(times)
        return self._show is None or overlay is None or self._show(overlay)

    def _write(self, frame: Frame, ids: np.ndarray) -> np.ndarray | None:
        """Writes a frame; returns its overlay, BGR, None if nobody wants one."""
        overlay = None
        if self._show is not None or "overlay" in self._writers:
            overlay = pictures.overlay(frame.pixels, ids, self._classes, alpha=self._alpha)
        with _written_to(self._folder):
            if overlay is not None and "overlay" in self._writers:
                self._writers["overlay"].write(overlay[..., ::-1], frame)
            pixels = mask_pixels(ids, self._classes, "values").values()
            for name, of_name in zip(_mask_names(self._classes), pixels, strict=True):
                if name in self._writers:
                    self._writers[name].write(of_name, frame)
        return overlay


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


@contextlib.contextmanager
def _written_to(folder: str | os.PathLike) -> Iterator[None]:
    """Makes of an OSError of the block the UserError that `folder` cannot be written."""
    way = "What was not finished is removed. Make room or choose another `output_dir`."
    with os_errors(folder, "predictions cannot be written", way, kinds=ERRORS):
        yield


def _rate(frames: int, seconds: float) -> float:
    """Returns frames/s, NaN if there were none."""
    return frames / seconds if frames > 0 and seconds > 0 else math.nan
