"""`--profile`: TensorFlow's profile of steps 10 to 20 of a run, for TensorBoard."""

from __future__ import annotations

import pathlib

import tensorflow as tf

from unet_core import console

FIRST, LAST = 10, 20


class StepProfile:
    """Takes the profile while a run trains; one that is there already is left alone.

    Args:
        events: The folder of the event files; the profile comes into `plugins/profile` there.
        start: The step the run goes on from.
    """

    def __init__(self, events: pathlib.Path, start: int):
        self._events = events
        self._is_running = False
        folder = events / "plugins" / "profile"
        self._is_wanted = not any(folder.glob("*"))
        if not self._is_wanted:
            console.say(f"--profile: {folder} holds one already.")
        elif start > FIRST:
            self._is_wanted = False
            console.say(f"--profile: steps {FIRST} to {LAST} are past, so none is taken.")

    def at(self, step: int) -> None:
        """Begins or ends the profile; to be called at least at every tenth step."""
        if step == FIRST and self._is_wanted:
            tf.profiler.experimental.start(str(self._events))
            self._is_running, self._is_wanted = True, False
        elif step >= LAST:
            self.close()

    def close(self) -> None:
        """Ends the profile and writes it, if one is being taken."""
        if self._is_running:
            self._is_running = False
            tf.profiler.experimental.stop()
