"""`--mode=find_batch`: the largest batch whose training step fits into memory. Needs no data."""

from __future__ import annotations

import dataclasses

import keras
import tensorflow as tf

from unet_core.errors import UserError
from unet_core.inference.trained import build_network
from unet_core.runs import process, step_memory
from unet_core.runs.finished_run import check_used
from unet_core.runs.process import StopRequest
from unet_core.runs.summary import with_classes
from unet_core.settings import RunConfig
from unet_core.training import devices

_MEASURED = (1, 2, 4, 8)
_KEPT_FREE = 0.1
_MOST = 4096
_MEGABYTE = 1e6


@dataclasses.dataclass(frozen=True)
class Memory:
    """What a training step needs by the number of its examples: a line through what was measured.

    Attributes:
        each: Bytes of one example more.
        fixed: Bytes of the step without examples.
    """

    each: float
    fixed: float

    @classmethod
    def of(cls, measured: dict[int, int]) -> Memory:
        """Returns the line through the two largest batches that were measured."""
        (few, less), (many, more) = sorted(measured.items())[-2:]
        each = max((more - less) / (many - few), 1.0)
        return cls(each, more - each * many)

    def largest(self, room: float) -> int:
        """Returns the largest batch that fits into so many bytes; 0 if none does."""
        return min(max(int((room - self.fixed) // self.each), 0), _MOST)


def find_batch(config: RunConfig, stop: StopRequest) -> None:
    """Measures training steps of a few sizes, and says which is the largest that fits.

    Raises:
        UserError: If the system does not tell its memory, or one example does not fit.
    """
    check_used(config)
    config = with_classes(config)
    process.prepare_devices(config.training, stop, strategy="none")
    if config.network.precision == "auto":
        config = config.replace(precision=devices.choose_precision()[0])
    meter = step_memory.Meter()
    to_spare = step_memory.room()
    if not meter.of or to_spare is None:
        raise UserError(
            "This system does not tell how much memory it has to spare. Double `global_batch_size` "
            "by hand until a step fails."
        )
    room = (1 - _KEPT_FREE) * to_spare
    measured: dict[int, int] = {}
    for rows in _MEASURED:
        if len(measured) > 1 and Memory.of(measured).largest(room) < rows:
            break
        one = config.replace(global_batch_size=rows, micro_batches=1)
        try:
            step_memory.Trial(build_network(one), one).run()
        except tf.errors.ResourceExhaustedError:
            break
        finally:
            keras.backend.clear_session()
        measured[rows] = meter.peak()
        print(f"{rows:5d} example(s): {measured[rows] / _MEGABYTE:,.0f} MB", flush=True)
        if stop():
            print("Stopped.")
            return
    if not measured:
        raise UserError(
            f"A step of one example of `crop_size` {config.data.crop_size} does not fit into "
            "memory. Take smaller crops or a smaller network."
        )
    if len(measured) == 1:
        print("\nTwo do not fit. Largest batch on one device: --global_batch_size=1.")
        return
    memory = Memory.of(measured)
    found = max(memory.largest(room), max(measured))
    each, fixed, spare = (n / _MEGABYTE for n in (memory.each, memory.fixed, room))
    print(
        f"\nEach example takes {each:,.0f} MB beside {fixed:,.0f} MB; {spare:,.0f} MB are to "
        f"spare, a tenth kept free.\nLargest batch on one device: --global_batch_size={found}. A "
        "larger one goes on by --micro_batches (gradient accumulation)."
    )
