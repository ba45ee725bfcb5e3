"""`--mode=find_rate`: a learning rate at which a network learns fast, by a short trial.

The rate rises from 1e-6 to 1 by one factor a step, and the loss of each step is noted, until it is
4 times its least. The run's folder keeps what it has; the network and the optimizer of the trial
are thrown away.

Source: Smith 2017, Cyclical Learning Rates for Training Neural Networks, arXiv:1506.01186.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from unet_core import console, optimizers, training
from unet_core.data import images
from unet_core.drawing import plots, tables
from unet_core.errors import UserError
from unet_core.inference.trained import build_network
from unet_core.runs import fine_tuning
from unet_core.runs.finished_run import check_used
from unet_core.runs.plan import Plan, prepare
from unet_core.runs.process import StopRequest
from unet_core.runs.train import explained, make_loop, train_data
from unet_core.settings import RunConfig
from unet_core.training.checkpoint_files import steps_in

LOWEST, HIGHEST = 1e-6, 1.0
_MEMORY = 0.9
_DIVERGED = 4.0
_FILES = ("find_rate.csv", "find_rate.png")


def find_rate(config: RunConfig, stop: StopRequest) -> None:
    """Trains some steps at rising rates, and writes `find_rate.csv` and `find_rate.png`."""
    check_used(config)
    plan = prepare(config, stop)
    if not plan.workers.is_chief or plan.workers.count > 1:
        raise UserError("`mode` find_rate works with one worker; leave `strategy` out.")
    with plan.run.locked():
        plan.run.claim(*(plan.run.path / name for name in _FILES))
        rates, losses = _try_rates(plan, config.search.find_rate_steps, stop)
        if stop():
            print("Stopped: nothing was written.")
            return
        smooth = smoothed(losses)
        rate = suggestion(rates, smooth)
        rows = {
            str(step): {"rate": r, "loss": loss, "smoothed": s}
            for step, (r, loss, s) in enumerate(zip(rates, losses, smooth, strict=True))
        }
        tables.write_csv(plan.run.path / "find_rate.csv", "step", rows)
        images.write_png(plan.run.path / "find_rate.png", _picture(rates, losses, smooth))
    if rate is None:
        print(
            "The loss has not fallen at any rate: try more --find_rate_steps, or look at the data."
        )
    else:
        print(
            f"Suggested: --learning_rate={rate:.2g}, a tenth of the rate at which the smoothed "
            "loss stopped falling."
        )
    print(f"The losses by rate are in {plan.run.path / _FILES[0]} and {_FILES[1]}.")


def smoothed(losses: Sequence[float]) -> list[float]:
    """Returns the exponential moving average of losses, each divided by the sum of its weights."""
    found, total = [], 0.0
    for number, loss in enumerate(losses, 1):
        total = _MEMORY * total + (1 - _MEMORY) * loss
        found.append(total / (1 - _MEMORY**number))
    return found


def suggestion(rates: Sequence[float], smooth: Sequence[float]) -> float | None:
    """Returns a tenth of the rate at which the smoothed loss stops falling; None if it never falls.

    It stops where, after its fastest fall, it is not lower within another tenth of the steps. What
    is lower later is noise of rates that are far too high. A tenth of the rate of the least loss is
    the rule of fastai (Howard & Gugger 2020, doi 10.3390/info11020108).
    """
    half = max(1, len(smooth) // 20)
    falls = [smooth[n - half] - smooth[n + half] for n in range(half, len(smooth) - half)]
    if not falls or max(falls) <= 0:
        return None
    least = half + int(np.argmax(falls))
    for step in range(least + 1, len(smooth)):
        if smooth[step] < smooth[least]:
            least = step
        elif step - least > 2 * half:
            break
    return rates[least] / 10


def _try_rates(plan: Plan, steps: int, stop: StopRequest) -> tuple[list[float], list[float]]:
    """Returns rates and losses of the steps until the loss diverged."""
    config = plan.config
    failures: list[UserError] = []
    with plan.strategy.scope():
        model = build_network(config)
        optimizer = optimizers.make_optimizer(config.optimization)
    stages = fine_tuning.Stages(model, config)
    if steps_in(plan.run.checkpoints):
        step = training.load_weights(plan.run.checkpoints, model)
        print(f"With the weights of step {step} of {plan.run.path}.")
    elif plan.initial_weights:
        plan.initial_weights.apply(model)
    growth = math.log(HIGHEST / LOWEST) / (steps - 1)
    loop = make_loop(
        plan, model, optimizer, lambda step: LOWEST * tf.exp(growth * tf.cast(step, tf.float32))
    )
    print(stages.begin(0))
    rates: list[float] = []
    losses: list[float] = []
    reports = loop.train(
        train_data(plan, failures, at_step=0),
        until_step=steps,
        report_every_steps=1,
        should_stop=stop,
    )
    bar = console.bar(total=steps, desc="Trying rates", unit="step", leave=False)
    with bar, contextlib.closing(reports), explained(plan, failures):
        try:
            for report in reports:
                rates.append(report.rate)
                losses.append(report.loss)
                bar.update()
                smooth = smoothed(losses)
                if smooth[-1] > _DIVERGED * min(smooth):
                    break
        except training.NonFiniteError:
            pass  # A rate that is too high.
    if not losses:
        raise UserError(
            f"The loss was not finite at the lowest rate, {LOWEST:g}. Look at the data, or choose "
            "`precision` float32."
        )
    return rates, losses


def _picture(
    rates: Sequence[float], losses: Sequence[float], smooth: Sequence[float]
) -> np.ndarray:
    """Returns the losses by the logarithm of the rate."""
    low, high = min(losses), max(*smooth, min(losses) + 1e-6)
    decades = round(math.log10(HIGHEST / LOWEST))
    across = [math.log10(rate / LOWEST) / decades for rate in rates]

    def up(values):
        return [(v - low) / (high - low) if v <= high else math.nan for v in values]

    return plots.curves(
        {"loss": (across, up(losses)), "smoothed": (across, up(smooth))},
        [(170, 170, 170), (0, 114, 178)],
        x_title="learning rate",
        y_title="loss",
        x_ticks={n / decades: f"1e{round(math.log10(LOWEST)) + n}" for n in range(decades + 1)},
        y_ticks={share: f"{low + share * (high - low):.3g}" for share in (0, 0.25, 0.5, 0.75, 1)},
    )
