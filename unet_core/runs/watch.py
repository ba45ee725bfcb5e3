"""What worker 0 looks at while a run trains, beside its scores; nothing of the training changes.

watch = Watch(plan, model, loop, network, batches, start)
with contextlib.closing(watch):
    watch.begin()
    watch.opened(feed)                           # before the first step
    for report in reports:
        watch.reported(report, logger, evaluates=...)
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf

from unet_core import training
from unet_core.inference.network import InferenceNetwork
from unet_core.reports.training_logger import TrainingLogger
from unet_core.runs.alarms import Alarms
from unet_core.runs.outlook import Outlook
from unet_core.runs.plan import Plan
from unet_core.runs.step_profile import StepProfile
from unet_core.runs.weight_histograms import WeightHistograms
from unet_core.training.feed import Feed


class Watch:
    """Memory and time that training needs, alarms, histograms and a profile.

    Args:
        plan: What the run does.
        model: Its network.
        loop: The loop that trains it.
        network: The copy for inference.
        batches: (step) -> the dataset of the training batches from that step on.
        start: The step the run goes on from.

    Attributes:
        alarms: To be asked at evaluations, with the evaluated weights in `network`.
    """

    def __init__(
        self,
        plan: Plan,
        model: keras.Model,
        loop: training.Loop,
        network: InferenceNetwork,
        batches: Callable[[int], tf.data.Dataset],
        start: int,
    ):
        self.alarms = Alarms(plan, network)
        self._plan = plan
        self._start = start
        self._outlook = Outlook(plan, model, loop)
        self._histograms = WeightHistograms(plan, model, loop, batches)
        self._profile: StepProfile | None = None

    def begin(self) -> None:
        """Begins the profile, if one is asked for."""
        if self._plan.config.training.profile:
            self._profile = StepProfile(self._plan.run.events, self._start)

    def opened(self, feed: Feed) -> None:
        """Says what a step needs of memory; to be called before the first one on `feed`."""
        self._outlook.say_memory(feed)

    def reported(self, report: training.Report, logger: TrainingLogger, *, evaluates: bool) -> None:
        """Says what is new at a report; `evaluates` is whether an evaluation follows."""
        if self._profile:
            self._profile.at(report.step)
        self._outlook.say_time(report)
        if evaluates and self._histograms.is_due(report.step):
            self._histograms.write(report.step, logger)

    def close(self) -> None:
        """Ends what is being taken."""
        if self._profile:
            self._profile.close()
