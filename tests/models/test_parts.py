"""Which layers are the encoder's, the decoder's, and those that a pattern names."""

import keras
import pytest

from unet_core.models.build import make_network
from unet_core.models.decoders import DECODERS
from unet_core.models.encoders import ENCODERS
from unet_core.models.parts import layers_matching, layers_with_variables

# EfficientNets whose layers are named as those of B0.
LARGER = [f"b{size}" for size in range(1, 8)]


def names(layers):
    return [layer.name for layer in layers]


def make_small(**kwargs):
    return make_network(classes=2, depth=2, base_filters=2, **kwargs)


class TestParts:
    @pytest.mark.parametrize(
        ("encoder", "decoder"),
        [
            *(("unet", decoder) for decoder in DECODERS),
            *((e, "transpose") for e in ENCODERS if e != "unet" and e[-2:] not in LARGER),
        ],
    )
    def test_every_layer_with_weights_is_of_one_of_them_or_the_head(self, encoder, decoder):
        model = make_small(encoder=encoder, decoder=decoder)
        parts = [set(names(layers_matching(model, part))) for part in ("encoder", "decoder")]
        assert all(parts)
        assert not parts[0] & parts[1]
        others = {layer.name for layer in model.layers if layer.weights} - parts[0] - parts[1]
        # An FCN sums the scores of its decoder.
        assert others == (set() if decoder.startswith("fcn") else {"head"})

    def test_of_the_unet_by_hand(self):
        model = make_small()
        stages = ("down0", "down1", "bottom")
        expected = [f"{stage}_conv{number}" for stage in stages for number in (1, 2)]
        assert names(layers_matching(model, "encoder")) == expected
        decoder = [f"up{n}_{part}" for n in (1, 0) for part in ("grow", "conv1", "conv2")]
        assert names(layers_matching(model, "decoder")) == decoder


class TestPatterns:
    @pytest.mark.parametrize(
        ("pattern", "expected"),
        [
            ("down0_conv1", ["down0_conv1"]),
            ("down?_conv2", ["down0_conv2", "down1_conv2"]),
            ("*[0]_conv1", ["down0_conv1", "up0_conv1"]),
            ("head", ["head"]),
            # Without weights, or of another case, or not there.
            ("down0_pool", []),
            ("DOWN0_conv1", []),
            ("encoders", []),
            ("", []),
        ],
    )
    def test_are_those_of_file_names(self, pattern, expected):
        assert names(layers_matching(make_small(), pattern)) == expected

    def test_find_layers_of_a_model_inside(self):
        inner = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="one")], name="vgg")
        outer = keras.Sequential([inner, keras.layers.Dense(2, name="up0"), keras.layers.ReLU()])
        assert names(layers_with_variables(outer)) == ["vgg", "one", "up0"]
        assert names(layers_matching(outer, "o*")) == ["one"]
        assert names(layers_matching(outer, "encoder")) == ["vgg"]
