"""What settings of several rooms must have in common before a run begins."""

from __future__ import annotations

from unet_core.data import pipeline
from unet_core.errors import UserError
from unet_core.models.encoders import ENCODERS
from unet_core.settings import RunConfig


def check_replicas(config: RunConfig, replicas: int) -> None:
    """Checks what depends on the number of replicas.

    Raises:
        UserError: If batch size, compilation and network do not fit it.
    """
    settings = config.training
    pipeline.check_global_batch_size(settings.global_batch_size, replicas, settings.micro_batches)
    network = config.network
    has_batch_norm = network.normalization == "batch" or ENCODERS[network.encoder].batch_norm
    if settings.jit_compile and has_batch_norm and replicas > 1:
        raise UserError(
            "`jit_compile` cannot be combined with batch norm (`normalization` 'batch', or that of "
            f"the `encoder` {network.encoder}) on several replicas: XLA cannot compile statistics "
            "that replicas share. Leave one of them out."
        )
    if settings.jit_compile and settings.deterministic:
        raise UserError(
            "`jit_compile` cannot be combined with `deterministic`: XLA has no deterministic "
            "gradient of max pooling. Leave one of them out."
        )
