import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from unet_core import losses, training
from unet_core.errors import UserError
from unet_core.models.build import make_network
from unet_core.models.recomputation import Recomputed
from unet_core.runs import liveness
from unet_core.training import devices

SIZE = 32
NETWORKS = {
    "batch norm, dropout": dict(normalization="batch", dropout=0.3),
    "bfloat16": dict(normalization="batch", precision="bfloat16"),
    "stem, instance norm": dict(normalization="instance", stem_stride=2),
    "deep supervision, residual": dict(
        encoder="residual", normalization="group", deep_supervision=True
    ),
    "attention, valid": dict(decoder="upsample", padding="valid", dropout=0.3),
}


def batches(channels, *_, size=SIZE):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, size, size, channels)).astype(np.uint8)
    masks = (images[..., 0] > 127).astype(np.uint8)
    return tf.data.Dataset.from_tensor_slices((images, masks)).batch(4, drop_remainder=True)


def cross_entropy(logits, batch):
    loss = losses.parse("cross_entropy")
    loss = losses.deeply_supervised(loss) if isinstance(logits, list) else loss
    return loss(batch[1], logits)


def make_loop(settings, *, recompute, replicas=1, **of_loop):
    strategy = tf.distribute.get_strategy()
    if replicas > 1:
        strategy = devices.make_strategy("mirrored", range(replicas))
    with strategy.scope():
        model = make_network(**{"classes": 2, "depth": 2, "base_filters": 4, **settings})
        optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
        trained = Recomputed(model, size=SIZE) if recompute else model
    loop = training.Loop(
        trained, optimizer, loss=cross_entropy, strategy=strategy, clip_norm=1.0, **of_loop
    )
    return model, loop


def train(settings, **how):
    """Returns the losses of the steps and all variables after them."""
    model, loop = make_loop(settings, **how)
    # Whole batches: a step may hold several.
    data = functools.partial(batches, settings.get("channels", 1))
    if how.get("replicas", 1) > 1:
        data = data()
    reports = list(loop.train(data, until_step=3, report_every_steps=1))
    return [report.loss for report in reports], [v.numpy() for v in model.variables]


def check_equal(settings, *, bound=1e-6, **how):
    expected, found = (train(settings, recompute=recompute, **how) for recompute in (False, True))
    np.testing.assert_allclose(found[0], expected[0], rtol=bound)
    for one, other in zip(expected[1], found[1], strict=True):
        np.testing.assert_allclose(other, one, rtol=bound, atol=bound)
    # It has trained, and what a call changes has been changed.
    fresh = [v.numpy() for v in make_loop(settings, recompute=False)[0].variables]
    assert sum((a != b).any() for a, b in zip(fresh, found[1], strict=True)) > 0.9 * len(fresh)


class TestRecomputed:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_trains_the_same_variables(self, name):
        check_equal(NETWORKS[name])

    @pytest.mark.slow
    def test_does_so_with_stochastic_depth(self):
        # Batch norm over few pixels makes much of the order in which gradients are added.
        check_equal(dict(encoder="efficientnet_b0", channels=3, depth=3), bound=1e-4)

    def test_does_so_in_micro_batches(self):
        check_equal(NETWORKS["batch norm, dropout"], micro_batches=3)

    def test_does_so_on_two_replicas(self):
        check_equal(NETWORKS["batch norm, dropout"], replicas=2)

    def test_does_so_compiled_by_xla(self):
        check_equal(NETWORKS["batch norm, dropout"], bound=1e-5, jit_compile=True)

    @pytest.mark.parametrize("normalization", ["none", "batch"])
    def test_needs_less_memory(self, normalization):
        settings = dict(depth=4, base_filters=16, normalization=normalization)
        peaks = []
        for recompute in (False, True):
            _, loop = make_loop(settings, recompute=recompute)
            feed = loop.feed(functools.partial(batches, 1, size=96))
            peaks.append(liveness.peak_bytes(loop.trace(feed), unfolds=False))
        assert peaks[1] < 0.65 * peaks[0]

    def test_is_the_network_outside_training(self):
        model, _ = make_loop(NETWORKS["batch norm, dropout"], recompute=False)
        images = next(iter(batches(1)))[0]
        found = Recomputed(model, size=SIZE)(images)
        np.testing.assert_array_equal(found, model(images, training=False))


def own_network(*layers):
    images = x = keras.Input((None, None, 1))
    for layer in (*layers, keras.layers.MaxPooling2D(2), keras.layers.UpSampling2D(2)):
        x = layer(x)
    return keras.Model(images, keras.layers.Conv2D(1, 1)(x))


class TestFormsOfNetworks:
    @pytest.mark.parametrize("form", ["sequential", "list of one output", "mixed policy"])
    def test_give_the_losses_that_they_give_without(self, form):
        def make():
            keras.utils.set_random_seed(3)
            layers = [
                keras.layers.Conv2D(4, 3, padding="same", activation="relu"),
                keras.layers.MaxPooling2D(2),
                keras.layers.UpSampling2D(2),
                keras.layers.Conv2D(1, 1, dtype="float32"),
            ]
            if form == "sequential":
                return keras.Sequential([keras.Input((None, None, 1)), *layers])
            images = x = keras.Input((None, None, 1))
            for layer in layers:
                x = layer(x)
            model = keras.Model(images, [x] if form == "list of one output" else x)
            if form == "mixed policy":
                model.dtype_policy = keras.DTypePolicy("mixed_bfloat16")
            return model

        # Floats that 16 bits do not hold.
        data = batches(1).map(lambda images, masks: (tf.cast(images, tf.float32) + 0.123, masks))
        found = []
        for wrap in (lambda model: model, functools.partial(Recomputed, size=SIZE)):
            loop = training.Loop(wrap(make()), keras.optimizers.SGD(1e-4), loss=cross_entropy)
            reports = loop.train(data, until_step=3, report_every_steps=1)
            found.append([report.loss for report in reports])
        np.testing.assert_allclose(found[0], found[1], rtol=1e-6)

    def test_layers_called_in_several_stages_are_refused(self):
        shared = keras.layers.ReLU()
        images = keras.Input((None, None, 1))
        x = keras.layers.MaxPooling2D(2)(shared(images))
        logits = keras.layers.Conv2D(1, 1)(keras.layers.UpSampling2D(2)(shared(x)))
        with pytest.raises(UserError, match="called in several stages"):
            Recomputed(keras.Model(images, logits), size=SIZE)

    def test_training_outside_a_graph_is_refused(self):
        model = Recomputed(own_network(keras.layers.Conv2D(4, 3, padding="same")), size=SIZE)
        with pytest.raises(UserError, match=r"within a `tf\.function`"):
            model(np.zeros((1, SIZE, SIZE, 1), np.float32), training=True)


class AddsLoss(keras.layers.Layer):
    def call(self, inputs):
        self.add_loss(tf.reduce_mean(inputs))
        return inputs


class Noise(keras.layers.Layer):
    def call(self, inputs):
        return inputs + tf.random.normal(tf.shape(inputs))


class TestOthersLayers:
    @pytest.mark.parametrize(
        "layer",
        [
            keras.layers.Dropout(0.5),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(3, activity_regularizer="l2"),
            AddsLoss(),
            Noise(),
        ],
        ids=lambda layer: layer.name,
    )
    def test_that_would_be_wrong_are_refused(self, layer):
        model = Recomputed(own_network(keras.layers.Conv2D(4, 3, padding="same"), layer), size=SIZE)
        loop = training.Loop(model, keras.optimizers.SGD(0.1), loss=cross_entropy)
        with pytest.raises(UserError, match="`recompute`") as caught:
            next(loop.train(functools.partial(batches, 1), until_step=1))
        assert layer.name in str(caught.value)

    def test_may_have_a_state_that_stays(self):
        frozen = keras.layers.BatchNormalization(trainable=False)
        model = own_network(keras.layers.Normalization(mean=100, variance=99), frozen)
        loop = training.Loop(
            Recomputed(model, size=SIZE), keras.optimizers.SGD(0.1), loss=cross_entropy
        )
        (report,) = loop.train(functools.partial(batches, 1), until_step=1)
        assert np.isfinite(report.loss)
