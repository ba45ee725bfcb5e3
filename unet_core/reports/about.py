"""What a run is and what it ran on, kept in its folder as `about.json`.

note = RunNote(run.about, session, samples=samples, network=figures)
note.update(step)                          # at every save
note.update(step, ended="finished")
about = read_about(run.about)              # None if the run has none
"""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Callable
from typing import Annotated

import msgspec

from unet_core.files import read_json, write_json

_FORMAT = 1
_Count = Annotated[int, msgspec.Meta(ge=0)]


class Session(msgspec.Struct, kw_only=True):
    """One start of the program that trained the run.

    Attributes:
        command: What to type to start it so.
        began: When, UTC, as 2026-01-31 12:00:00.
        first_step: The step it went on from.
        last_step: The step of its last save.
        seconds: Up to then, scores and predictions included.
        ended: "finished", "trained" or "stopped"; empty while it runs, or if it was killed.
        versions: Of the programs, by name.
        hardware: In words, by title.
    """

    command: str
    began: str
    first_step: _Count
    last_step: _Count
    seconds: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    ended: str = ""
    versions: dict[str, str]
    hardware: dict[str, str]


class SampleOf(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One sample: its name, its size in pixels, and its group if it has one."""

    name: str
    width: _Count
    height: _Count
    group: str = ""


class Part(msgspec.Struct, kw_only=True):
    """The training images, or those held out.

    Attributes:
        samples: Each of them.
        class_pixels: Pixels of each class in their masks by name; None if not counted.
    """

    samples: list[SampleOf]
    class_pixels: dict[str, _Count] | None = None


class About(msgspec.Struct, kw_only=True):
    """What `about.json` holds.

    Attributes:
        format: Its format number.
        sessions: In their order.
        training: The images trained on.
        held_out: The images held out.
        network: What the network is and costs, in words, by title.
    """

    format: int = _FORMAT
    sessions: list[Session]
    training: Part
    held_out: Part
    network: dict[str, str]


class RunNote:
    """Keeps `about.json` up to date while a run trains.

    Args:
        path: The file; the sessions in it stay.
        session: This one.
        training: The images trained on.
        held_out: The images held out.
        network: What the network is and costs, in words, by title.
        clock: Seconds.

    Raises:
        UserError: If there is a file of this name that holds something else; it stays as it is.
        OSError: If it cannot be written.
    """

    def __init__(
        self,
        path: pathlib.Path,
        session: Session,
        *,
        training: Part,
        held_out: Part,
        network: dict[str, str],
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._path, self._session, self._clock = path, session, clock
        before = read_about(path)
        sessions = [*(before.sessions if before else ()), session]
        self._about = About(
            sessions=sessions, training=training, held_out=held_out, network=network
        )
        self._began = clock()
        self.update(session.first_step)

    def update(self, step: int, *, ended: str = "") -> None:
        """Writes how far the session has come.

        Raises:
            OSError: If it cannot be written.
        """
        self._session.last_step = step
        self._session.seconds = round(self._clock() - self._began, 1)
        self._session.ended = ended
        write_json(self._path, msgspec.to_builtins(self._about))


def read_about(path: pathlib.Path) -> About | None:
    """Returns what the `about.json` at `path` holds; None if there is none.

    Raises:
        UserError: If it cannot be read.
    """
    if not os.path.lexists(path):
        return None
    return read_json(
        path,
        About,
        what="what a run is and ran on",
        way="Move it away; the run and its report go on without what it tells.",
        formats=(_FORMAT,),
    )
