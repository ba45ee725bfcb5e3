"""From the settings of a run to its parts: network, loss, metrics, optimizer, schedule,
augmentation.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from unet_core import losses, metrics
from unet_core.config import RunConfig
from unet_core.data.augment import Recipe
from unet_core.data.classes import ClassMap
from unet_core.errors import UserError
from unet_core.models import build
from unet_core.training import schedules


def make_network(config: RunConfig, classes: ClassMap) -> keras.Model:
    """Returns the network, its weights drawn from the seed. `config.precision` is resolved."""
    return build.make_network(
        classes=len(classes),
        channels=config.channels,
        depth=config.depth,
        base_filters=config.base_filters,
        padding=config.padding,
        decoder=config.decoder,
        batch_norm=config.batch_norm,
        dropout=config.dropout,
        precision=config.precision,
        seed=config.seed,
    )


def make_loss(config: RunConfig, classes: ClassMap) -> losses.Loss:
    """Returns the loss of (masks, logits).

    Raises:
        UserError: If the loss, a class or the number of class weights is wrong.
    """
    if config.class_weights and config.class_balance != "none":
        raise UserError(
            f"`class_weights` ({config.class_weights}) and `class_balance` "
            f"({config.class_balance}) both weigh the classes; leave one of them out."
        )
    if config.class_weights and len(config.class_weights) != len(classes):
        raise UserError(
            f"`class_weights` ({config.class_weights}) must be one number for each of the "
            f"{len(classes)} classes "
            f"{', '.join(classes.names)}."
        )
    return losses.parse(
        config.loss,
        # Weight maps hold them already.
        class_weights=None if config.border_weight else config.class_weights or None,
        overlap_classes=[classes.index(name) for name in config.overlap_classes] or None,
        focal_gamma=config.focal_gamma,
        tversky_alpha=config.tversky_alpha,
        tversky_beta=config.tversky_beta,
    )


def count_confusion(logits: tf.Tensor, batch: tuple[Any, ...]) -> dict[str, tf.Tensor]:
    """Returns the additive counts of a batch (images, masks), as the loop wants them."""
    return {"confusion": metrics.confusion_matrix(batch[1], logits)}


def make_optimizer(config: RunConfig) -> keras.optimizers.Optimizer:
    """Returns the optimizer; its rate is the loop's business, its decay that of kernels only."""
    decay = config.weight_decay or None
    if config.optimizer == "sgd":
        optimizer = keras.optimizers.SGD(
            config.learning_rate,
            momentum=config.momentum,
            nesterov=config.momentum > 0,
            weight_decay=decay,
        )
    else:
        optimizer = keras.optimizers.AdamW(
            config.learning_rate, weight_decay=config.weight_decay, epsilon=config.adam_epsilon
        )
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def make_schedule(config: RunConfig) -> schedules.Schedule:
    """Returns the learning rate by step, laid out for `config.schedule_steps`.

    Raises:
        UserError: If the warm-up does not end before the schedule does.
    """
    if config.schedule == "constant":
        return schedules.constant(config.learning_rate)
    if config.schedule == "step":
        return schedules.step_decay(
            config.learning_rate, every_steps=config.decay_every_steps, factor=config.decay_factor
        )
    if config.schedule == "polynomial":
        return schedules.polynomial(
            config.learning_rate, total_steps=config.schedule_steps, power=config.polynomial_power
        )
    if config.warmup_steps >= config.schedule_steps:
        raise UserError(
            f"`warmup_steps` ({config.warmup_steps}) must be less than the schedule's "
            f"{config.schedule_steps} steps; "
            "lower it, or give a longer --schedule_steps."
        )
    return schedules.cosine(
        config.learning_rate, total_steps=config.schedule_steps, warmup_steps=config.warmup_steps
    )


def make_recipe(config: RunConfig) -> Recipe:
    """Returns the augmentation: the preset, with what the settings override."""
    names = [field.name for field in dataclasses.fields(Recipe)]
    overrides = {n: getattr(config, n) for n in names if getattr(config, n) is not None}
    return dataclasses.replace(Recipe.preset(config.augment), **overrides)
