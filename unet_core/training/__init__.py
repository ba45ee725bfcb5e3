"""The training loop: steps, replicas, schedules, checkpoints, summaries.

Nothing here knows of images or segmentation.

    from unet_core import training

    loop = training.Loop(model, optimizer, loss=my_loss, strategy=strategy)
    checkpoints = training.Checkpoints(directory, loop, keep=3)
    checkpoints.restore()

    for report in loop.train(my_dataset, until_step=10_000, report_every_steps=100):
        print(report.step, report.loss, report.examples_per_sec)
        checkpoints.save()
"""

from unet_core.training import controls, schedules
from unet_core.training.checkpoints import Checkpoints
from unet_core.training.controls import Controls
from unet_core.training.evaluated import train_evaluated
from unet_core.training.loading import load_weights
from unet_core.training.loop import Loop
from unet_core.training.means import Mean
from unet_core.training.parts import Part
from unet_core.training.report import NonFiniteError, Report
from unet_core.training.summaries import SummaryWriter
from unet_core.training.workers import Workers

__all__ = [
    "Checkpoints",
    "Controls",
    "Loop",
    "Mean",
    "NonFiniteError",
    "Part",
    "Report",
    "SummaryWriter",
    "Workers",
    "controls",
    "load_weights",
    "schedules",
    "train_evaluated",
]
