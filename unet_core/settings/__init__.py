"""Every setting once, by room: its default, range, help, and what uses it.

Pure Python: neither TensorFlow nor NumPy is imported, so that `--help` and mistakes in flags are
answered at once.

from unet_core.settings import RunConfig

config = RunConfig.of(data_dir="data/mine", classes="0:background,255:nucleus")
config.data.crop_size, config["crop_size"]
"""

from unet_core.settings.run_config import (
    FIELDS,
    KINDS,
    ROOM_OF,
    ROOMS,
    RunConfig,
    binding_settings,
)

__all__ = ["FIELDS", "KINDS", "ROOMS", "ROOM_OF", "RunConfig", "binding_settings"]
