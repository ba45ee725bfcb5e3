"""Stages of fine-tuning on a small network; the flags are tried in tests/test_fine_tuning.py."""

import functools
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.tiny_loop import batches, squared_error

from unet_core import optimizers, training
from unet_core.errors import UserError
from unet_core.inference.trained import build_network
from unet_core.models.layers import FusedBatchNorm
from unet_core.runs import fine_tuning
from unet_core.settings import RunConfig
from unet_core.training.checkpoints import folder_of

AT, LAST = 3, 5
CONFIG = RunConfig.of(
    classes="0:membrane,255:cell",
    freeze=("encoder",),
    unfreeze_at_step=AT,
    unfrozen_learning_rate=2e-3,
    learning_rate=1e-2,
    schedule="constant",
    train_steps=LAST,
    schedule_steps=LAST,
    weight_decay=0.1,
)
FOR_GOOD = CONFIG.replace(unfreeze_at_step=None, unfrozen_learning_rate=None)


def make_model():
    """[B, 3] -> [B, 1], by layers that are named as those of a network."""
    make = functools.partial(keras.layers.Conv2D, kernel_size=1, dtype="float32")
    x = images = keras.Input((3,), name="images")
    x = keras.layers.Reshape((1, 1, 3), name="scale")(x)
    for seed, (name, filters) in enumerate((("down0_conv1", 4), ("up0_conv1", 3), ("head", 1))):
        initialiser = keras.initializers.HeNormal(seed=seed)
        bias = name == "head"
        x = make(filters, name=name, kernel_initializer=initialiser, use_bias=bias)(x)
        if name != "head":
            x = FusedBatchNorm(name=name.replace("conv", "norm"))(x)
            x = keras.layers.LeakyReLU(name=f"{name}_relu")(x)
    return keras.Model(images, keras.layers.Reshape((1,), name="logits")(x))


class Run:
    """A run with its checkpoints, restored from the last of them, as `--mode=train` has it."""

    def __init__(self, folder, strategy=None, config=CONFIG):
        strategy = strategy or tf.distribute.get_strategy()
        with strategy.scope():
            self.model = make_model()
            optimizer = optimizers.make_optimizer(config.optimization)
        self.stages = fine_tuning.Stages(self.model, config)
        self.loop = training.Loop(
            self.model,
            optimizer,
            loss=squared_error,
            strategy=strategy,
            schedule=fine_tuning.make_schedule(config),
            rate_factor=fine_tuning.make_rate_factor(config, self.model),
            clip_norm=0.5,
            ema_decay=0.5,
        )
        self.checkpoints = training.Checkpoints(folder, self.loop, keep=LAST)
        self.folder = folder
        self.said = [self.stages.begin(self.checkpoints.restore())]

    def train(self, until=LAST, **options):
        """Saves at every step; returns the reports."""
        reports = []
        for report in self.stages.train(
            self.loop,
            batches,
            until_step=LAST,
            report_every_steps=1,
            show=self.said.append,
            should_stop=lambda: self.loop.step >= until,
            **options,
        ):
            self.checkpoints.save()
            reports.append(report)
        return reports

    def state(self):
        """Returns variables of the model and of the optimizer, and averages, in their order."""
        variables = [*self.model.variables, *self.loop.optimizer.variables]
        return [v.numpy() for v in (*variables, *self.loop.state.values())]


def saved(run, step):
    """Returns the model's variables by path as the checkpoint of a step has them."""
    reader = tf.train.load_checkpoint(str(folder_of(run.folder, step) / "state"))
    return {
        variable.path: reader.get_tensor(f"parts/model/model/{place}/.ATTRIBUTES/VARIABLE_VALUE")
        for place, variable in enumerate(run.model.variables)
    }


def of_encoder(values):
    return {path: value for path, value in values.items() if path.startswith("down0")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run whose step was traced by others before each stage."""
    run = Run(tmp_path_factory.mktemp("undisturbed"))
    run.opened = []

    def opened(feed):
        run.opened.append(run.loop.step)
        run.loop.trace(feed)

    run.reports = run.train(opened=opened)
    return run


class TestStages:
    def test_frozen_layers_move_by_no_bit_until_the_step_and_all_move_after_it(self, undisturbed):
        before = of_encoder({v.path: v.numpy() for v in make_model().variables})
        # Kernel, scale, offset, mean and variance.
        assert len(before) == 5
        for step in range(1, AT + 1):
            found = of_encoder(saved(undisturbed, step))
            for path, value in before.items():
                np.testing.assert_array_equal(found[path], value, err_msg=path)
        found = of_encoder(saved(undisturbed, AT + 1))
        for path, value in before.items():
            assert not np.array_equal(found[path], value), path

    def test_their_averages_are_the_weights_themselves(self, undisturbed):
        model = make_model()
        training.load_weights(undisturbed.folder, model, step=AT)
        weights = saved(undisturbed, AT)
        for variable in model.variables:
            is_average = not np.array_equal(variable.numpy(), weights[variable.path])
            is_trained = variable.path.startswith(("up0", "head")) and "moving" not in variable.path
            assert is_average == is_trained, variable.path

    def test_retrace_once_and_say_what_is_trained(self, undisturbed):
        assert undisturbed.opened == [0, AT]
        assert undisturbed.loop.traces["train"] == 2
        # Kernels, scales and offsets, the last bias: 3 x 4 + 2 x 4 = 20, 4 x 3 + 2 x 3 = 18, 3 + 1.
        assert undisturbed.said == [
            "Network unet/transpose: 42 parameters, 20 frozen until step 3.",
            "Step 3: unfrozen, all 42 parameters are trained.",
        ]
        assert [report.step for report in undisturbed.reports] == [1, 2, 3, 4, 5]

    def test_rate_goes_on_scaled_from_the_step_on(self, undisturbed):
        rates = [report.rate for report in undisturbed.reports]
        assert rates == pytest.approx([1e-2] * AT + [2e-3] * (LAST - AT))

    def test_first_update_of_what_was_frozen_is_as_large_as_the_rate(self, undisturbed):
        # Adam's first update is rate x g / (|g| + epsilon'). If the optimizer had gone on counting,
        # it were 0.1 / sqrt(0.001) x sqrt(1 - 0.999^4) / (1 - 0.9^4) = 0.58 times that. Scale and
        # offset do not decay.
        before, after = (of_encoder(saved(undisturbed, step)) for step in (AT, AT + 1))
        for name in ("down0_norm1/gamma", "down0_norm1/beta"):
            moved = np.abs(after[name] - before[name])
            assert 0.95 * 2e-3 < moved.max() < 1.001 * 2e-3

    @pytest.mark.parametrize("step", [AT - 1, AT, AT + 1])
    def test_resumed_around_the_step_end_like_the_undisturbed_run(
        self, undisturbed, tmp_path, step
    ):
        shutil.copytree(folder_of(undisturbed.folder, step), folder_of(tmp_path, step))
        resumed = Run(tmp_path)
        assert resumed.loop.step == step
        assert resumed.said[0].endswith("until step 3." if step <= AT else "42 parameters.")
        resumed.train()
        for found, value in zip(resumed.state(), undisturbed.state(), strict=True):
            np.testing.assert_array_equal(found, value)

    @pytest.mark.slow
    def test_do_not_depend_on_the_replicas(self, undisturbed, mirrored, tmp_path):
        run = Run(tmp_path, mirrored(2))
        run.train()
        for found, value in zip(run.state(), undisturbed.state(), strict=True):
            np.testing.assert_allclose(found, value, atol=1e-5)

    def test_stopped_at_the_step_are_not_unfrozen_yet(self, tmp_path):
        run = Run(tmp_path)
        assert run.train(until=AT)[-1].stopping
        assert len(run.said) == 1
        assert len(run.model.trainable_variables) == 5

    def test_frozen_for_good_have_no_slots_and_no_averages(self, tmp_path):
        run = Run(tmp_path, config=FOR_GOOD)
        assert run.said == ["Network unet/transpose: 42 parameters, 20 frozen."]
        run.train(until=1)
        before = of_encoder({v.path: v.numpy() for v in make_model().variables})
        for path, value in of_encoder(saved(run, 1)).items():
            np.testing.assert_array_equal(value, before[path])
        # Two slots of each of the 5 variables that are trained, the count of steps and the rate.
        assert len(run.loop.optimizer.variables) == 2 * 5 + 2
        assert sum(name.startswith("average_") for name in run.loop.state) == 5
        assert Run(tmp_path, config=FOR_GOOD).loop.step == 1

    def test_nothing_frozen_is_said_too(self, tmp_path):
        run = Run(tmp_path, config=FOR_GOOD.replace(freeze=()))
        assert run.said == ["Network unet/transpose: 42 parameters."]


class TestRestart:
    @pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
    def test_brings_back_the_optimizer_as_it_was_made(self, name):
        def make():
            optimizer = optimizers.make_optimizer(CONFIG.replace(optimizer=name).optimization)
            variable = keras.Variable([1.0, 2.0])
            optimizer.build([variable])
            return optimizer, variable

        (used, variable), (new, _) = make(), make()
        used.apply([tf.constant([0.5, 0.25])], [variable])
        assert any(
            (a.numpy() != b.numpy()).any()
            for a, b in zip(*map(variables, (used, new)), strict=True)
        )
        fine_tuning.restart(used)
        for found, expected in zip(*map(variables, (used, new)), strict=True):
            np.testing.assert_array_equal(found.numpy(), expected.numpy())


def variables(optimizer):
    return optimizer.variables


class TestRateFactor:
    def test_is_that_of_the_encoder_alone(self):
        model = make_model()
        config = CONFIG.replace(encoder_learning_rate_factor=0.1)
        factor = fine_tuning.make_rate_factor(config, model)
        found = {v.path: factor(v) for v in model.trainable_variables}
        assert {path for path, value in found.items() if value == 0.1} == {
            path for path in found if path.startswith("down0")
        }
        assert set(found.values()) == {0.1, 1.0}
        assert fine_tuning.make_rate_factor(CONFIG, model) is None


class TestChecks:
    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"freeze": ()}, r"`unfreeze_at_step` \(3\) needs something that is frozen before"),
            ({"train_steps": 3}, r"`unfreeze_at_step` \(3\) must be less than `train_steps` \(3\)"),
            ({"unfreeze_at_step": None}, r"`unfrozen_learning_rate` \(0.002\) needs `unfreeze_at"),
            ({"learning_rate": 0.0}, r"`unfrozen_learning_rate` \(0.002\) needs a `learning_rate`"),
        ],
    )
    def test_settings_that_make_no_sense_together(self, changed, message):
        with pytest.raises(UserError, match=message):
            fine_tuning.check_settings(CONFIG.replace(**changed))
        fine_tuning.check_settings(CONFIG)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"freeze": ("down9*",)}, r"'down9\*'\) matches no layer .* down0_conv1, down0_conv2,"),
            ({"freeze": ("encoder", "")}, r"`freeze` \(''\) matches no layer"),
            ({"freeze": ("*",), "unfreeze_at_step": 3}, r"`freeze` \(\*\) leaves nothing to train"),
            (
                {"freeze": ("encoder",), "encoder_learning_rate_factor": 0.1},
                r"`encoder_learning_rate_factor` \(0.1\) is about the encoder, of which `freeze`",
            ),
        ],
    )
    def test_layers_that_are_not_there_or_all_there_are(self, settings, message):
        small = RunConfig.of(
            classes="0:membrane,255:cell", depth=2, base_filters=2, precision="float32", **settings
        )
        model = build_network(small)
        with pytest.raises(UserError, match=message):
            fine_tuning.Stages(model, small)


class TestBatchesAt:
    @pytest.mark.parametrize(
        ("step", "expected"), [(0, (4, 0)), (AT - 1, (4, 0)), (AT, (6, -6)), (AT + 1, (6, -6))]
    )
    def test_sample_after_sample_is_drawn_once(self, step, expected):
        # Steps 0 to 2 of 4 draw 0 to 11; step 3 begins at -6 + 3 x 6 = 12.
        config = CONFIG.replace(global_batch_size=4, unfrozen_batch_size=6)
        assert fine_tuning.batches_at(config, step) == expected

    def test_another_dataset_follows_the_step(self, tmp_path):
        run, seen = Run(tmp_path), []

        def noted(name):
            def dataset(start_step, context):
                seen.append((name, start_step))
                return batches(start_step, context)

            return dataset

        for _ in run.stages.train(
            run.loop,
            noted("frozen"),
            until_step=LAST,
            unfrozen=noted("all"),
            report_every_steps=1,
            show=lambda _: None,
        ):
            pass
        assert seen == [("frozen", 0), ("all", AT)]
