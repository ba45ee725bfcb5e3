"""Fine-tuning by flags, through the door; tests/runs/test_fine_tuning.py has the details."""

import shutil

import numpy as np
import pytest
import tensorflow as tf
from helpers.program import MEMBRANE, check_refused, write_slices

from unet_core.training.checkpoints import folder_of

AT, LAST = 2, 4
TINY = [
    MEMBRANE,
    "--crop_size=16",
    "--base_filters=2",
    "--depth=1",
    "--global_batch_size=2",
    "--precision=float32",
    "--normalization=batch",
    "--dropout=0.2",
    "--weight_decay=0.1",
    "--clip_norm=0.5",
    "--ema_decay=0.5",
    "--deterministic",
    "--folds=3",
    "--fold=2",
    f"--train_steps={LAST}",
    "--eval_every_steps=100",
    "--checkpoint_every_steps=1",
    "--keep_checkpoints=9",
]
STAGES = [
    "--freeze=encoder",
    f"--unfreeze_at_step={AT}",
    "--unfrozen_learning_rate=1e-4",
    "--encoder_learning_rate_factor=0.5",
]
# The encoder's variables come first: two kernels each of `down0` and `bottom`, with the four
# vectors of a batch norm after each, and the calls of the dropout.
ENCODER = 2 * 2 * 5 + 1


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_slices(tmp_path_factory.mktemp("slices"))


@pytest.fixture
def start(door, data_dir):
    return lambda run_dir, *args: door(f"--data_dir={data_dir}", f"--run_dir={run_dir}", *args)


def saved(run_dir, step):
    """Returns everything that the checkpoint of a step holds, by name."""
    reader = tf.train.load_checkpoint(str(folder_of(run_dir / "checkpoints", step) / "state"))
    names = reader.get_variable_to_shape_map()
    return {n: reader.get_tensor(n) for n in names if n != "_CHECKPOINTABLE_OBJECT_GRAPH"}


def encoder_of(state):
    values = [state[f"parts/model/model/{n}/.ATTRIBUTES/VARIABLE_VALUE"] for n in range(ENCODER)]
    return [value for value in values if value.dtype == np.float32]


class TestFineTuning:
    def test_encoder_stands_still_until_it_is_unfrozen(self, start, tmp_path):
        code, out, err = start(tmp_path / "run", *TINY, *STAGES)
        assert code == 0, err
        # 3x3x1x2 + 3x3x2x2 + 3x3x2x4 + 3x3x4x4 weights, and 2 x (2 + 2 + 4 + 4) of batch norms.
        assert "447 parameters, 294 frozen until step 2.\n" in out
        assert "\nStep 2: unfrozen, all 447" in out
        first, before, after = (encoder_of(saved(tmp_path / "run", s)) for s in (1, AT, AT + 1))
        assert len(before) == ENCODER - 1
        for one, two, three in zip(first, before, after, strict=True):
            np.testing.assert_array_equal(one, two)
            assert not np.array_equal(two, three)
        # What has been learned by then depends on that step.
        longer = [f"--train_steps={LAST + 1}", "--unfreeze_at_step=1"]
        check_refused(start(tmp_path / "run", *TINY, *STAGES, *longer), "unfreeze_at_step (2 there")

    def test_batch_size_changes_with_the_stage_and_a_resumed_run_ends_alike(self, start, tmp_path):
        args = [*TINY, *STAGES, "--unfrozen_batch_size=4"]
        code, _, err = start(tmp_path / "whole", *args)
        assert code == 0, err
        folder = tmp_path / "parts" / "checkpoints"
        shutil.copytree(tmp_path / "whole", tmp_path / "parts")
        for step in (AT + 1, LAST):
            shutil.rmtree(folder_of(folder, step))
        code, _, err = start(tmp_path / "parts", *args)
        assert code == 0, err
        one, other = (saved(tmp_path / name, LAST) for name in ("whole", "parts"))
        for name, value in one.items():
            np.testing.assert_array_equal(other[name], value, err_msg=name)
        check_refused(start(tmp_path / "x", *TINY, "--unfrozen_batch_size=4"), "unfreeze_at_step")

    @pytest.mark.slow
    def test_runs_resumed_around_the_step_end_like_the_undisturbed_one(self, start, tmp_path):
        whole = tmp_path / "whole"
        code, _, err = start(whole, *TINY, *STAGES)
        assert code == 0, err
        expected = saved(whole, LAST)
        for step in (AT - 1, AT, AT + 1):
            resumed = shutil.copytree(whole, tmp_path / f"resumed{step}")
            for later in range(step + 1, LAST + 1):
                shutil.rmtree(folder_of(resumed / "checkpoints", later))
            code, out, err = start(resumed, *TINY, *STAGES)
            assert code == 0, err
            assert f"Going on from step {step} of" in out
            assert ("Step 2: unfrozen" in out) == (step <= AT)
            found = saved(resumed, LAST)
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                np.testing.assert_array_equal(found[name], value, err_msg=name)
            assert (resumed / "history.csv").read_text() == (whole / "history.csv").read_text()

    @pytest.mark.parametrize(
        ("args", "words"),
        [
            (["--freeze=down7*"], ["--freeze ('down7*')", "encoder or decoder", "down0_conv1,"]),
            (["--freeze=*"], ["--freeze (*)", "nothing to train"]),
            (["--unfreeze_at_step=2"], ["--unfreeze_at_step (2)", "--freeze"]),
            (
                ["--freeze=encoder", f"--unfreeze_at_step={LAST}"],
                [f"--unfreeze_at_step ({LAST})", f"--train_steps ({LAST})"],
            ),
            (
                ["--freeze=encoder", "--unfrozen_learning_rate=0.1"],
                ["--unfrozen_learning_rate (0.1)", "--unfreeze_at_step"],
            ),
            (["--depth=5"], ["--crop_size (16)", "--depth 5", "32x32", "at least 32"]),
            (["--depth=3", "--stem_stride=4"], ["--crop_size (16)", "--stem_stride 4", "32x32"]),
        ],
    )
    def test_mistake_is_one_message_and_no_run_begins(self, start, tmp_path, args, words):
        check_refused(start(tmp_path / "run", *TINY, *args), *words)
        assert not (tmp_path / "run" / "config.json").exists()
