"""Where else a run is written down: a tracker of one's own, by `--tracker=my_module:make_tracker`.

`make_tracker(config, run_dir) -> tracker` is called once when training begins or goes on, with the
settings by name and the run's folder. A tracker has three methods:

`scalars(step, values)`  {name: number}, with each report and evaluation: train/loss, held_out/...
`artifact(path)`         a file of the finished run: scores, history, pictures
`close()`                at the end, however training has ended
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from unet_core import console
from unet_core.own_code import OwnFunction, described
from unet_core.settings import RunConfig

SIGNATURE = "make_my_tracker(config, run_dir)"
_METHODS = ("scalars", "artifact", "close")


class Tracking:
    """Calls a tracker, whose failures are warned of and do not end a training.

    Args:
        config: The settings; without a `tracker` nothing is called.
        run_dir: The folder of the run.

    Raises:
        UserError: If the tracker cannot be made.
    """

    def __init__(self, config: RunConfig, run_dir: pathlib.Path):
        self._tracker: Any = None
        self._warned = False
        name = config.training.tracker
        if name:
            values = config.stored()
            own = OwnFunction.load("tracker", name, SIGNATURE, values, str(run_dir))
            tracker = own(values, str(run_dir))
            lacking = [each for each in _METHODS if not callable(getattr(tracker, each, None))]
            if lacking:
                raise own.refusal(
                    f"must return a tracker, with the methods {', '.join(_METHODS)}. Received "
                    f"{type(tracker).__name__}, which has no {lacking[0]}."
                )
            self._tracker = tracker

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, *_: Any) -> None:
        self._call("close")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Hands on the numbers of a step."""
        self._call("scalars", step, dict(values))

    def artifacts(self, *paths: pathlib.Path) -> None:
        """Hands on those of the files that there are."""
        for path in paths:
            if path.is_file():
                self._call("artifact", str(path))

    def _call(self, method: str, *args: Any) -> None:
        if self._tracker is None:
            return
        try:
            getattr(self._tracker, method)(*args)
        except Exception as error:
            if not self._warned:
                console.warn(
                    f"--tracker: {method} raised {described(error)}. Training goes on; further "
                    "failures are not shown."
                )
            self._warned = True
