"""What is said of a training before its first step and after the first that were timed.

outlook = Outlook(plan, model, loop)
outlook.say_memory(feed)    # before the first step
outlook.say_time(report)    # at each report; the first that is timed prints a line
"""

from __future__ import annotations

import keras
import tensorflow as tf

from unet_core import console, training
from unet_core.reports.page import duration
from unet_core.runs import step_memory
from unet_core.runs.plan import Plan
from unet_core.runs.step_memory import megabytes
from unet_core.training.feed import Feed


class Outlook:
    """Says whether a step will fit into memory, and when training will end.

    Args:
        plan: What the run does.
        model: The network.
        loop: The loop that trains it, with all variables made.
    """

    def __init__(self, plan: Plan, model: keras.Model, loop: training.Loop):
        self._config = plan.config
        self._workers = plan.workers.count
        self._model = model
        self._loop = loop
        self._is_said = False

    def say_memory(self, feed: Feed) -> None:
        """Traces the step; prints what it needs beside what is free, as a warning if it is more."""
        on_gpu = bool(tf.config.list_logical_devices("GPU"))
        replicas = self._loop.strategy.num_replicas_in_sync // self._workers
        graph = self._loop.trace(feed)
        needed = step_memory.estimate(
            graph, self._model, self._loop.optimizer, self._config, replicas=replicas
        )
        there, total = _there(on_gpu), needed.on_device if on_gpu else needed.total
        if there is None:
            return
        if not on_gpu:
            # Made already, and so not part of what is free.
            there += needed.weights + needed.optimizer
        where = "GPU" if on_gpu else "machine"
        text = (
            f"A training step needs about {megabytes(total)}; the {where} has {megabytes(there)} "
            "for it"
        )
        if total <= there:
            console.say(f"{text}.")
            return
        settings = self._config.training
        recompute = "" if settings.recompute else " or give --recompute"
        console.warn(
            f"{text}. It may run out of memory: lower --global_batch_size "
            f"({settings.global_batch_size}) or --crop_size ({self._config.data.crop_size}), or "
            f"raise --micro_batches ({settings.micro_batches}){recompute}; "
            "--mode=find_batch finds what fits."
        )

    def say_time(self, report: training.Report) -> None:
        """Prints when training will end at this speed, and the memory in use; once."""
        left = self._config.training.train_steps - report.step
        if self._is_said or not left or report.step_ms != report.step_ms:
            return
        self._is_said = True
        text = (
            f"Step {report.step}: at {report.step_ms:,.0f} ms a step the other {left} take about "
            f"{duration(left * report.step_ms / 1000)}, evaluations not counted"
        )
        if used := step_memory.in_use():
            text += f"; {megabytes(used[0])} {used[1]}"
        console.say(f"{text}.")


def _there(on_gpu: bool) -> int | None:
    """Returns the bytes of the GPU, or those free on this machine; None if it does not tell."""
    if not on_gpu:
        return step_memory.available()
    try:
        return step_memory.room()
    except (tf.errors.OpError, RuntimeError):
        # TensorFlow makes devices anew to tell it, and refuses that if they are other ones.
        return None
