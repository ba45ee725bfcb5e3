"""`--mode=overfit`: whether network, loss and data fit together: one batch is learned by heart.

The first batch of training crops is repeated, without dropout, weight decay and averages, until the
mean Dice of its classes is above 0.99. Nothing is written.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from unet_core import console, optimizers
from unet_core.conventions import IGNORED
from unet_core.errors import UserError
from unet_core.inference.trained import build_network
from unet_core.runs import fine_tuning
from unet_core.runs.alarms import faint
from unet_core.runs.finished_run import check_used, required
from unet_core.runs.plan import Plan, prepare
from unet_core.runs.process import StopRequest
from unet_core.runs.train import explained, make_loop, train_data
from unet_core.settings import RunConfig
from unet_core.training import schedules

ENOUGH = 0.99
_FALLEN = 0.95


def overfit(config: RunConfig, stop: StopRequest) -> None:
    """Learns one batch by heart, or says what is wrong.

    Raises:
        UserError: If the mean Dice of the batch stays below 0.99.
    """
    check_used(config)
    steps = config.search.overfit_steps
    plain: dict[str, Any] = dict(dropout=0.0, weight_decay=0.0, ema_decay=0.0, schedule="constant")
    # A folder that is not there: a run of the same name may have other settings.
    nowhere = os.path.join(required(config, "run_dir"), "overfit")
    without = {name: RunConfig()[name] for name in _OF_SCHEDULES}
    plan = prepare(config.replace(run_dir=nowhere, **without, **plain), stop)
    failures: list[UserError] = []
    with explained(plan, failures):
        batch = next(_first_batch(plan, failures))
    loss, dice = _learn(plan, batch, steps, stop)
    if stop():
        print("Stopped.")
        return
    best = max(dice)
    if best > ENOUGH:
        print(
            f"The batch is learned by heart: mean Dice {best:.4f} after {len(dice)} steps, loss "
            f"{loss[0]:.4f} to {loss[-1]:.4f}. Network, loss and data fit together."
        )
        return
    raise UserError(
        f"One batch of {len(batch[1])} crops was not learned by heart in {len(dice)} steps: mean "
        f"Dice {best:.4f} at best, loss {loss[0]:.4f} to {loss[-1]:.4f}. {_reason(batch, loss)}"
    )


# Settings that belong to a schedule; a constant one uses none.
_OF_SCHEDULES = (
    *("schedule_steps", "warmup_steps", "final_rate", "decay_every_steps", "decay_factor"),
    *("decay_rate", "polynomial_power", "restarts", "rate_from_step"),
)


def _first_batch(plan: Plan, failures: list[UserError]) -> Iterator[Any]:
    """Gives the first batch of the first replica, as arrays."""
    context = tf.distribute.InputContext()
    yield from train_data(plan, failures, at_step=0)(0, context).as_numpy_iterator()


def _learn(
    plan: Plan, batch: tuple[np.ndarray, ...], steps: int, stop: StopRequest
) -> tuple[list[float], list[float]]:
    """Returns loss and mean Dice of each step, until the Dice is enough."""
    config = plan.config
    with plan.strategy.scope():
        model = build_network(config)
        optimizer = optimizers.make_optimizer(config.optimization)
    if plan.initial_weights:
        plan.initial_weights.apply(model)
    stages = fine_tuning.Stages(model, config)
    loop = make_loop(plan, model, optimizer, schedules.constant(config.optimization.learning_rate))
    print(stages.begin(0))
    present = [name for n, name in enumerate(plan.classes.names) if (batch[1] == n).any()]
    losses: list[float] = []
    dice: list[float] = []

    def same(*_: object) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensors(tf.nest.map_structure(tf.constant, batch)).repeat()

    reports = loop.train(same, until_step=steps, report_every_steps=1, should_stop=stop)
    bar = console.bar(total=steps, desc="Learning one batch", unit="step", leave=False)
    with bar, contextlib.closing(reports), explained(plan, []):
        for report in reports:
            losses.append(report.loss)
            dice.append(float(np.mean([report.means[f"dice/{name}"] for name in present])))
            bar.set_postfix_str(f"loss {losses[-1]:.4f}, mean Dice {dice[-1]:.4f}", refresh=False)
            bar.update()
            if dice[-1] > ENOUGH:
                break
    return losses, dice


def _reason(batch: tuple[np.ndarray, ...], losses: list[float]) -> str:
    """Returns what is wrong, or most likely so."""
    image, mask = batch[:2]
    if len(set(np.unique(mask)) - {IGNORED}) < 2:
        return (
            "All its pixels are of one class: draw crops that hold others, by `foreground_share`."
        )
    if text := faint([image]):
        return f"The likely cause: {text}"
    if losses[-1] > _FALLEN * losses[0]:
        return (
            "The loss has not fallen: try another `learning_rate`, which the mode find_rate "
            "suggests, and look at images and masks by `preview`."
        )
    return (
        "The loss falls: give it more `overfit_steps`. If it ends there too, look at images and "
        "masks by `preview` (do they belong together?), or take a larger network (`base_filters`, "
        "`depth`), without `stem_stride` where objects are one or two pixels wide."
    )
