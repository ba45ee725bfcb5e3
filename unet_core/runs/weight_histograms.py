"""Histograms of weights and gradients for TensorBoard, computed apart from the training.

histograms = WeightHistograms(plan, model, loop)
histograms.write(step, logger)     # at evaluations
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from unet_core import training
from unet_core.inference.trained import build_network
from unet_core.reports.training_logger import TrainingLogger
from unet_core.runs.plan import Plan


class WeightHistograms:
    """Writes how the trained weights are distributed, and their gradients of one batch.

    The gradients are those of the next training batch (its first micro-batch), by a copy of the
    network, so that no variable of the training is written, nor its feed asked. Of the training
    they differ in what replicas share: the copy is one, with all rows.

    Args:
        plan: What the run does.
        model: Its network.
        loop: The loop that trains it.
        batches: (step) -> the dataset of the training batches from that step on.
    """

    def __init__(
        self,
        plan: Plan,
        model: keras.Model,
        loop: training.Loop,
        batches: Callable[[int], tf.data.Dataset],
    ):
        self._plan = plan
        self._model = model
        self._loop = loop
        self._batches = batches
        self._copy: keras.Model | None = None
        self._trained: list[bool] = []
        self._gradients: Any = None

    def is_due(self, step: int) -> bool:
        """Returns whether the evaluation at `step` is one of those that are asked for."""
        settings = self._plan.config.training
        every = settings.histograms_every_evaluations * settings.eval_every_steps
        return bool(every) and step % every == 0

    def write(self, step: int, logger: TrainingLogger) -> None:
        """Writes the histograms of the weights as they are after `step`."""
        trained = [variable for variable in self._model.variables if variable.trainable]
        values = {f"weights/{variable.path}": variable.value for variable in trained}
        found = self._gradients_of(next(iter(self._batches(step))))
        # A variable that the loss does not depend on has none.
        values |= {
            f"gradients/{variable.path}": gradient
            for variable, gradient in zip(trained, found, strict=True)
            if gradient is not None
        }
        logger.write_histograms(step, values)

    def _gradients_of(self, batch: Any) -> list[tf.Tensor | None]:
        if self._copy is None:
            self._copy = build_network(self._plan.config)
        for ours, theirs in zip(self._copy.layers, self._model.layers, strict=True):
            ours.trainable = theirs.trainable
        for ours, theirs in zip(self._copy.variables, self._model.variables, strict=True):
            ours.assign(theirs.value)
        trained = [variable.trainable for variable in self._model.variables]
        if self._gradients is None or trained != self._trained:
            # Traced anew where layers were unfrozen.
            self._trained, self._gradients = trained, tf.function(self._compute)
        scale = self._loop.state["loss_scale"].numpy()
        return self._gradients(batch, tf.constant(scale, tf.float32))

    def _compute(self, batch: Any, scale: tf.Tensor) -> list[tf.Tensor | None]:
        copy = self._copy
        assert copy is not None
        pairs = zip(copy.variables, self._trained, strict=True)
        variables = [variable.value for variable, is_trained in pairs if is_trained]
        with tf.GradientTape() as tape:
            logits = copy(batch.image, training=True)
            loss = tf.reduce_mean(self._plan.loss(batch.mask, logits, batch.weights))
            # Scaled as in training: small gradients of float16 would be 0.
            scaled = scale * (loss + sum(copy.losses, tf.constant(0.0)))
        gradients = tape.gradient(scaled, variables)
        return [None if each is None else tf.convert_to_tensor(each) / scale for each in gradients]
