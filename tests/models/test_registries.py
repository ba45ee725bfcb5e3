"""What every encoder and every decoder is held to, with one another. A new entry of a registry is
tested here without a line of its own.
"""

import functools
import itertools
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import tiny_loop

from unet_core import losses, training
from unet_core.data.classes import ClassMap
from unet_core.data.intensities import Scaling
from unet_core.errors import UserError
from unet_core.export.export import export
from unet_core.inference.network import InferenceNetwork
from unet_core.inference.sliding_window import SlidingWindow
from unet_core.models.build import PADDINGS, full_size, make_network
from unet_core.models.decoders import DECODERS
from unet_core.models.encoders import ENCODERS
from unet_core.models.parts import layers_matching

# These are EfficientNet-B0 with more layers and channels: see test_applications.py.
SIZES = {f"efficientnet_b{size}" for size in range(1, 8)}
PAIRS = [names for names in itertools.product(ENCODERS, DECODERS) if names[0] not in SIZES]
# Their layers are those of others, and test_decoders.py has their values.
SLOW_DECODERS = ("unet_plus_plus", "fcn32s", "fcn16s", "fpn")
QUICK = ("mobilenet_v2", "transpose")
# An encoder of ours, one of Keras, and a decoder that resizes.
A_FEW = (("unet", "transpose"), QUICK, ("unet", "deeplab"))


def with_the_unets(encoder, decoder):
    """Whether one of the two is that of the U-Net."""
    return encoder == "unet" or decoder == "transpose"


def pair(encoder, decoder):
    """Returns the two as an argument of the tests, some of them slow."""
    is_slow = decoder in SLOW_DECODERS
    is_slow |= bool(ENCODERS[encoder].application) and (encoder, decoder) != QUICK
    return pytest.param(encoder, decoder, marks=[pytest.mark.exhaustive] if is_slow else [])


# Every encoder and every decoder is held to everything with the U-Net's other part, and to the most
# important with each of the other part.
everything = pytest.mark.parametrize(
    ("encoder", "decoder"), [pair(*names) for names in PAIRS if with_the_unets(*names)]
)


# What takes longest is tried by default with one of each kind.
one_of_each_kind = pytest.mark.parametrize(
    ("encoder", "decoder"),
    [
        pytest.param(*names, marks=[pytest.mark.exhaustive] * (names not in A_FEW))
        for names in PAIRS
        if with_the_unets(*names)
    ],
)


@pytest.fixture(autouse=True, scope="module")
def networks_of_keras():
    """Keras builds each of its networks once: it takes seconds, and they are only read."""
    with pytest.MonkeyPatch.context() as patch:
        for name in {e.application.name for e in ENCODERS.values() if e.application}:
            build = functools.partial(build_once, getattr(keras.applications, name))
            patch.setattr(keras.applications, name, build)
        yield
        build_once.cache_clear()


@functools.cache
def build_once(build, **kwargs):
    return build(**kwargs)


def make(encoder, decoder, **kwargs):
    """Returns a small network with biases and statistics that are none of the initial ones."""
    settings = {"classes": 3, "depth": 2, "base_filters": 4, **kwargs}
    model = make_network(encoder=encoder, decoder=decoder, **settings)
    rng = np.random.default_rng(1)
    for variable in model.variables:
        if variable.name in ("beta", "bias", "moving_mean"):
            variable.assign(rng.normal(0, 0.3, variable.shape))
        elif variable.name in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.5, 2, variable.shape))
    return model


def make_padded(encoder, decoder, padding, **kwargs):
    """As `make`; skips the test where the encoder or decoder refuses the padding."""
    try:
        return make(encoder, decoder, padding=padding, **kwargs)
    except UserError as refused:
        pytest.skip(str(refused))


def picture(height, width, channels=1, *, rows=1, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (rows, height, width, channels)).astype(np.uint8)


def make_stem(encoder, decoder):
    """As `make`, with a stem; skips the test where the encoder refuses one."""
    try:
        return make(encoder, decoder, stem_stride=2)
    except UserError as refused:
        pytest.skip(str(refused))


def random_kernels(model):
    """Returns the kernels that begin with random numbers."""
    return [
        layer.kernel
        for layer in model.layers
        if getattr(getattr(layer, "kernel_initializer", None), "seed", None) is not None
    ]


def check_gradients(model):
    """Checks that a loss of all logits reaches every trainable variable."""
    channels, rng = model.input_shape[-1], np.random.default_rng(2)
    images = picture(32, 32, channels, rows=2)
    with tf.GradientTape() as tape:
        outputs = tf.nest.flatten(model(images, training=True))
        loss = sum(tf.reduce_sum(tf.square(o - rng.normal(size=o.shape))) for o in outputs)
    variables = model.trainable_variables
    gradients = tape.gradient(loss, [variable.value for variable in variables])
    for variable, gradient in zip(variables, gradients, strict=True):
        assert gradient is not None, variable.path
        assert np.abs(gradient).max() > 0, variable.path


def check_copy(model):
    """Checks that the network for inference gives what the model gives."""
    network = InferenceNetwork(model)
    before, after = network.geometry.padding()
    images = picture(32, 16, model.input_shape[-1], rows=2)
    padded = np.pad(images, ((0, 0), *[(before, after)] * 2, (0, 0)), mode="reflect")
    logits = network.layers(padded)[:, :32, :16]
    np.testing.assert_allclose(logits, model(images), rtol=1e-3, atol=1e-3)


def check_windows(model):
    """Checks that overlapping windows give what one pass does; skips if they are blended."""
    network = InferenceNetwork(model)
    if network.geometry.halo is None:
        pytest.skip("The network looks everywhere: its windows are blended.")
    margin = network.geometry.halo + network.geometry.cut
    window_px = 2 * margin + 3 * network.geometry.stride
    image = picture(2 * window_px + 3, window_px + 5)[0]
    found = SlidingWindow(network, window_px=window_px)(image)
    np.testing.assert_allclose(found, SlidingWindow(network)(image), atol=1e-4)


def check_exports(model, tmp_path, sizes):
    """Checks that each format of an export gives what the package gives, for images of `sizes`."""
    pytest.importorskip("onnx", reason="the package onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    export(
        model,
        tmp_path / "e",
        classes=ClassMap.parse("0:a,1:b,2:c"),
        scaling=Scaling.parse("range"),
        settings={},
        step=1,
        formats=["saved_model", "keras", "onnx"],
    )
    window = SlidingWindow(InferenceNetwork(model))
    served = tf.saved_model.load(tmp_path / "e" / "saved_model").signatures["serving_default"]
    session = runtime.InferenceSession(
        tmp_path / "e" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    loaded = keras.saving.load_model(tmp_path / "e" / "model.keras", safe_mode=True)
    for height, width in sizes:
        images = picture(height, width, model.input_shape[-1])
        expected = window(images[0])
        # With random statistics the logits of deep networks are in the hundreds, of which rounding
        # is 1e-5: of a probability near 1/2 a quarter of a few of these.
        found = served(images=tf.constant(images))["probabilities"]
        np.testing.assert_allclose(found[0], expected, atol=3e-4)
        found, _ = session.run(None, {"images": images})
        np.testing.assert_allclose(found[0], expected, atol=3e-4)
        np.testing.assert_array_equal(loaded(images), model(images))


@everything
class TestNetwork:
    @pytest.mark.parametrize("padding", PADDINGS)
    @pytest.mark.parametrize("channels", [1, 3])
    def test_logits_have_the_size_of_the_image_whatever_it_is(
        self, encoder, decoder, padding, channels
    ):
        model = make_padded(encoder, decoder, padding, channels=channels)
        for height, width in ((37, 53), (5, 7), (1, 1), (16, 20)):
            logits = model(picture(height, width, channels, rows=2))
            assert logits.shape == (2, height, width, 3)
            assert logits.dtype == tf.float32
            assert np.isfinite(logits).all()

    def test_gradients_reach_every_trained_variable(self, encoder, decoder):
        check_gradients(make(encoder, decoder, normalization="batch", dropout=0.3))

    def test_equal_seeds_give_equal_weights_and_others_differ(self, encoder, decoder):
        one, same, other = (
            make_network(
                classes=2, encoder=encoder, decoder=decoder, depth=2, base_filters=4, seed=seed
            )
            for seed in (4, 4, 5)
        )
        for a, b in zip(one.variables, same.variables, strict=True):
            np.testing.assert_array_equal(a.numpy(), b.numpy())
        for a, c in zip(random_kernels(one), random_kernels(other), strict=True):
            assert not np.array_equal(a.numpy(), c.numpy()), a.path

    def test_kernels_of_one_network_differ(self, encoder, decoder):
        kernels = [kernel.numpy() for kernel in random_kernels(make(encoder, decoder))]
        assert kernels
        # Were a seed used twice, the smaller kernel of the two would begin as the larger one, up to
        # the scale.
        for two in itertools.combinations(map(np.ravel, kernels), 2):
            starts = (kernel[: min(4, *map(len, two))] for kernel in two)
            one, other = (start / np.abs(start).sum() for start in starts)
            assert not np.allclose(one, other, rtol=1e-3)

    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_precision_is_that_of_the_layers_and_variables_stay_float32(
        self, encoder, decoder, precision
    ):
        model = make(encoder, decoder, precision=precision, normalization="batch")
        convolutions = [layer for layer in model.layers if hasattr(layer, "kernel")]
        assert {layer.compute_dtype for layer in convolutions} == {precision}
        assert {variable.dtype for variable in model.trainable_variables} == {"float32"}
        assert model(picture(9, 9)).dtype == tf.float32

    @pytest.mark.parametrize(
        ("normalization", "activation"),
        [("group", "silu"), ("instance", "leaky_relu"), ("none", "leaky_relu"), ("none", "silu")],
    )
    def test_gradients_reach_every_variable_with_each_normalization_and_activation(
        self, encoder, decoder, normalization, activation
    ):
        check_gradients(make(encoder, decoder, normalization=normalization, activation=activation))

    def test_deep_supervision_reaches_every_variable_at_each_level(self, encoder, decoder):
        try:
            model = make(encoder, decoder, deep_supervision=True)
        except UserError as refused:
            pytest.skip(str(refused))
        outputs = model(picture(37, 53))
        sizes = [tuple(logits.shape[1:3]) for logits in outputs]
        assert sizes == [(-(-37 // s), -(-53 // s)) for s in (1, 2, 4, 8)][: len(sizes)]
        assert len(sizes) > 1
        np.testing.assert_array_equal(full_size(model)(picture(37, 53)), outputs[0])
        check_gradients(model)


@everything
class TestStem:
    def test_image_of_any_size_gives_logits_of_its_size(self, encoder, decoder):
        model = make_stem(encoder, decoder)
        for height, width in ((37, 53), (1, 1), (16, 24)):
            assert model(picture(height, width)).shape == (1, height, width, 3)
        check_gradients(model)

    def test_windows_equal_one_pass(self, encoder, decoder):
        check_windows(make_stem(encoder, decoder))


def train(encoder, decoder, strategy, *, precision="float32", frozen=""):
    """Trains three steps and returns the loss and the variables before and after, by path."""
    with strategy.scope():
        settings = {"classes": 2, "normalization": "batch", "dropout": 0.3, "precision": precision}
        model = make(encoder, decoder, **settings)
        optimizer = keras.optimizers.SGD(1e-3, momentum=0.9)
    for layer in layers_matching(model, frozen):
        layer.trainable = False
    before = {variable.path: variable.numpy() for variable in model.variables}
    loop = training.Loop(
        model,
        optimizer,
        loss=lambda logits, batch: losses.cross_entropy(batch[1], logits),
        strategy=strategy,
    )
    data = functools.partial(tiny_loop.batches, make=images_and_masks)
    reports = tiny_loop.run(loop, data, 3)
    return (
        reports[-1].loss,
        before,
        {variable.path: variable.numpy() for variable in model.variables},
    )


def images_and_masks(step, rows):
    images = picture(32, 32, rows=rows, seed=step)
    return images, (images[..., 0] > 127).astype(np.uint8)


class TestTraining:
    @pytest.mark.exhaustive
    @pytest.mark.parametrize(
        ("encoder", "decoder"), [names for names in PAIRS if with_the_unets(*names)]
    )
    def test_two_replicas_train_as_one(self, encoder, decoder, mirrored):
        (loss, _, one), (same, _, two) = (train(encoder, decoder, mirrored(n)) for n in (1, 2))
        np.testing.assert_allclose(loss, same, rtol=1e-5)
        for path, values in one.items():
            np.testing.assert_allclose(two[path], values, atol=1e-5, rtol=1e-5, err_msg=path)

    @one_of_each_kind
    def test_frozen_encoder_does_not_move_by_a_bit_in_bfloat16(self, encoder, decoder, mirrored):
        loss, before, after = train(
            encoder, decoder, mirrored(1), precision="bfloat16", frozen="encoder"
        )
        assert np.isfinite(loss)
        still = {path for path in before if np.array_equal(before[path], after[path])}
        # Dropout counts its calls, frozen or not.
        others = {path for path in before if path.startswith(("up", "head")) or "calls" in path}
        assert before.keys() - others <= still
        assert any(path.endswith("kernel") for path in others - still)


@everything
class TestInference:
    @pytest.mark.parametrize("padding", PADDINGS)
    def test_copy_equals_the_network(self, encoder, decoder, padding):
        check_copy(make_padded(encoder, decoder, padding, normalization="batch", dropout=0.3))

    @pytest.mark.parametrize("padding", PADDINGS)
    def test_windows_equal_one_pass(self, encoder, decoder, padding):
        model = make_padded(encoder, decoder, padding)
        check_windows(model)


@everything
class TestGeometry:
    @pytest.mark.parametrize("padding", PADDINGS)
    def test_pixels_outside_of_a_tile_reach_no_deeper_than_the_halo(
        self, encoder, decoder, padding
    ):
        network = InferenceNetwork(make_padded(encoder, decoder, padding, classes=2))
        halo, stride, cut = (getattr(network.geometry, n) for n in ("halo", "stride", "cut"))
        if halo is None:
            pytest.skip("The network looks everywhere.")
        around = stride * -(-(halo + cut + 16) // stride)
        inside = stride * -(-(2 * halo + 16) // stride)
        _, after = network.geometry.padding()
        size = cut + around + inside + around + after
        tile = slice(around, around + cut + inside + after)
        whole = picture(size, size)
        other = picture(size, size, seed=1)
        other[:, tile, tile] = whole[:, tile, tile]
        expected, changed, alone = (
            network.layers(images).numpy()[0, ..., 0]
            for images in (whole, other, whole[:, tile, tile])
        )
        assert expected.shape == (size - 2 * cut,) * 2
        assert alone.shape == (cut + inside + after - 2 * cut,) * 2
        kept = slice(halo, inside - halo)
        in_whole = slice(around + halo, around + inside - halo)
        np.testing.assert_allclose(alone[kept, kept], expected[in_whole, in_whole], atol=1e-4)
        np.testing.assert_allclose(changed[in_whole, in_whole], expected[in_whole, in_whole])

    def test_a_pixel_reaches_the_logits_around_it(self, encoder, decoder):
        model = make(encoder, decoder, classes=2)
        network = InferenceNetwork(model)
        size = 16 * network.geometry.stride
        images = picture(size, size)
        expected = network.layers(images).numpy()
        images[0, size // 2, size // 2] = 255 - images[0, size // 2, size // 2]
        rows, columns = np.nonzero(network.layers(images).numpy()[0, ..., 0] != expected[0, ..., 0])
        assert rows.size
        for places in (rows, columns):
            assert places.min() <= size // 2 <= places.max()


@one_of_each_kind
class TestExport:
    def test_every_format_gives_what_the_package_gives(self, encoder, decoder, tmp_path):
        model = make(encoder, decoder, normalization="batch", channels=3)
        check_exports(model, tmp_path, [(21, 30)])


class TestEveryPair:
    @pytest.mark.exhaustive
    @pytest.mark.parametrize(
        ("encoder", "decoder"), [names for names in PAIRS if not with_the_unets(*names)]
    )
    def test_learns_at_each_pixel_and_infers_as_it_learned(self, encoder, decoder):
        # An FCN adds scores of up to three strides, and ConvNeXt begins with 4.
        depth = 4 if decoder.startswith("fcn") else 2
        model = make(encoder, decoder, depth=depth, normalization="batch", channels=3)
        assert model(picture(37, 53, 3)).shape == (1, 37, 53, 3)
        check_copy(model)
        check_gradients(model)

    @pytest.mark.exhaustive
    @pytest.mark.parametrize(
        ("encoder", "decoder", "channels"),
        [(*names, 1 + 2 * (place % 2)) for place, names in enumerate(PAIRS)],
    )
    def test_exports_of_large_images_give_what_the_package_gives(
        self, encoder, decoder, channels, tmp_path
    ):
        depth = 4 if decoder.startswith("fcn") else 2
        model = make(encoder, decoder, depth=depth, normalization="batch", channels=channels)
        check_exports(model, tmp_path, [(97, 131), (256, 256), (512, 384)])


def test_names_are_read_without_tensorflow_and_numpy():
    code = (
        "import sys, unet_core.models.encoders as e, unet_core.models.decoders as d\n"
        "import unet_core.export as x\n"
        "print(*e.ENCODERS, *d.DECODERS)\n"
        "print({'tensorflow', 'numpy', 'keras'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names, loaded = done.stdout.splitlines()
    assert names.split() == [*ENCODERS, *DECODERS]
    assert loaded == "set()"
