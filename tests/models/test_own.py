import itertools
import textwrap

import pytest

from unet_core.errors import UserError
from unet_core.models.own import make_own_network

GOOD = """
    import keras

    def make_network(*, classes, channels, precision, seed):
        images = keras.Input((None, None, channels))
        logits = keras.layers.Conv2D(1 if classes == 2 else classes, 3, padding="same")(images)
        return keras.Model(images, logits)
"""
_numbers = itertools.count()


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Writes a module and makes the network of its `make_network`."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(source, *, function="make_network", **kwargs):
        name = f"own_{next(_numbers)}"
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        settings = {"classes": 2, "channels": 1, "precision": "float32", "seed": 0, **kwargs}
        return make_own_network(f"{name}:{function}", **settings)

    return make


def changed(before, after):
    assert before in GOOD
    return GOOD.replace(before, after)


class TestMakeOwnNetwork:
    @pytest.mark.parametrize("classes", [2, 3])
    def test_returns_what_the_function_makes(self, make, classes):
        model = make(GOOD, classes=classes, channels=3)
        assert model.input_shape == (None, None, None, 3)
        assert model.output_shape == (None, None, None, 1 if classes == 2 else 3)

    def test_network_that_halves_works_with_the_layers_that_pad_and_crop(self, make):
        source = """
            import keras
            from unet_core.models.layers import CropLike, MirrorPad

            def make_network(*, classes, channels, precision, seed):
                images = keras.Input((None, None, channels))
                x = MirrorPad(depth=1, valid=False)(images)
                x = keras.layers.MaxPooling2D(2)(x)
                x = keras.layers.Conv2DTranspose(1, 2, strides=2)(x)
                return keras.Model(images, CropLike()([x, images]))
        """
        assert make(source).output_shape == (None, None, None, 1)

    def test_module_that_is_not_there_is_named(self):
        with pytest.raises(UserError, match=r"`network` \(nowhere.at_all:f\).*nowhere.*PYTHONPATH"):
            make_own_network("nowhere.at_all:f", classes=2, channels=1, precision="float32", seed=0)

    @pytest.mark.parametrize(
        ("source", "words"),
        [
            ("import not_installed_here", "cannot be imported .*line 1: No module named"),
            ("x = 1 / 0", "cannot be imported .ZeroDivisionError in .*line 1: division by zero"),
            ("def make_network(:", "cannot be imported .SyntaxError"),
            ("raise SystemExit(3)", "cannot be imported .SystemExit in .*line 1: 3"),
            ("", "make_network is not there in .*own_"),
            ("make_network = 3", "make_network is no function in .*own_"),
            ("def make_network(): pass", "cannot be called as .*classes"),
            ("def make_network(images, **_): pass", "cannot be called as .*missing.*'images'"),
            ("def make_network(**_):\n    return 1 / 0", "raised ZeroDivisionError in .*line 2"),
            ("def make_network(**_): pass", "Expected a keras.Model. Received a NoneType"),
        ],
        ids=str,
    )
    def test_function_that_fails_is_one_message(self, make, source, words):
        with pytest.raises(UserError, match=words):
            make(source)

    def test_error_inside_of_keras_names_the_line_of_the_function(self, make):
        source = changed('padding="same"', 'padding="sam"')
        with pytest.raises(UserError, match=r"raised ValueError in .*own_\d+.py, line 6"):
            make(source)

    @pytest.mark.parametrize(
        ("before", "after", "words"),
        [
            ("(None, None, channels)", "(64, 64, channels)", "images of any size .*64, 64, 1"),
            ("(None, None, channels)", "(None, None, 4)", "and 1 channel.*None, None, 4"),
            ("1 if classes == 2 else classes", "2", r"logits \[B, H, W, 1\]. .*None, 2\)"),
            ("3, padding", "3, dtype='float16', padding", "logits in float32. Received float16"),
            ('padding="same"', 'padding="valid"', "Received 95x129 for an image of 97x131"),
            ("(images, logits)", "(images, [logits, logits])", "one output. .* 1 and 2"),
            ("(images, logits)", "(images, keras.layers.Flatten()(logits))", r"logits \[B, H"),
        ],
    )
    def test_network_that_breaks_the_contract_is_named(self, make, before, after, words):
        with pytest.raises(UserError, match=words):
            make(changed(before, after))

    def test_network_that_takes_only_some_sizes_is_refused(self, make):
        source = """
            import keras

            def make_network(*, classes, channels, precision, seed):
                images = keras.Input((None, None, channels))
                x = keras.layers.MaxPooling2D(2)(images)
                x = keras.layers.UpSampling2D(2)(x)
                return keras.Model(images, x)
        """
        with pytest.raises(UserError, match="Received 96x130 for an image of 97x131"):
            make(source)
        joined = "keras.layers.Conv2D(1, 1)(keras.layers.Concatenate()([images, x]))"
        with pytest.raises(UserError, match=r"does not take one of 97x131.*MirrorPad"):
            make(source.replace("(images, x)", f"(images, {joined})"))

    def test_model_whose_layers_are_not_connected_is_refused(self, make):
        source = """
            import keras

            class Mine(keras.Model):
                pass

            def make_network(**_):
                return Mine()
        """
        with pytest.raises(UserError, match=r"Expected a functional model.*Mine"):
            make(source)

    def test_layer_that_cannot_be_copied_is_named(self, make):
        source = """
            import keras

            class Twice(keras.layers.Layer):
                def __init__(self, net):
                    super().__init__()
                    self.net = net

                def call(self, x):
                    return self.net(x)

                def get_config(self):
                    return {"net": 1, "more": 2}

            def make_network(*, classes, channels, precision, seed):
                images = keras.Input((None, None, channels))
                return keras.Model(images, Twice(keras.layers.Conv2D(1, 1))(images))
        """
        with pytest.raises(UserError, match=r"can be copied. .*Twice.*get_config"):
            make(source)
