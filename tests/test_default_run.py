"""The flagfile's own network and optimizer, too large for the quick tests."""

import numpy as np
import pytest
import tensorflow as tf
from helpers import forked

from unet_core.data import synthetic
from unet_core.training.checkpoints import folder_of


@pytest.mark.slow
class TestDefaultRun:
    def test_two_logical_devices_give_the_weights_of_one_after_two_steps(self, tmp_path):
        data_dir = tmp_path / "data"
        synthetic.write_dataset(data_dir, train_slices=5, test_slices=1, size=128)
        found = []
        for devices in (1, 2):
            run_dir = tmp_path / f"run{devices}"
            code, out = forked.program(
                "--flagfile=membrane.flags",
                f"--data_dir={data_dir}",
                f"--run_dir={run_dir}",
                "--precision=float32",
                # Later, rounding decides which ReLU is open, and batch norm spreads it.
                "--train_steps=2",
                "--schedule_steps=500",
                # The weights are looked at, not the scores: small crops, and no objects.
                "--crop_size=128",
                "--object_class=",
                "--tta=none",
                f"--logical_devices={devices}",
                f"--strategy={'none' if devices == 1 else 'mirrored'}",
            ).finish()
            assert code == 0, out
            prefix = folder_of(run_dir / "checkpoints", 2) / "state"
            found.append(tf.train.load_checkpoint(str(prefix)))
        one, two = found
        shapes = one.get_variable_to_shape_map()
        names = [name for name in shapes if name.startswith("parts/model/model/")]
        assert len(names) > 40
        # Of statistics of hundreds it is the relative deviation that counts.
        worst = max(
            (np.abs(one.get_tensor(n) - two.get_tensor(n)) / (1 + np.abs(one.get_tensor(n)))).max()
            for n in names
        )
        print(f"largest deviation of a weight: {worst:.2g}")
        assert worst <= 1e-5
