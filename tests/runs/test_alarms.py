"""Warnings about one class everywhere, and about channels that are 0 everywhere."""

import keras
import numpy as np
import pytest
from helpers.program import TINY, write_slices

from unet_core.inference.network import InferenceNetwork
from unet_core.models.build import make_network
from unet_core.runs.alarms import _of_dead, constant_prediction, dead_shares, middle


class TestConstantPrediction:
    @pytest.mark.parametrize(
        ("confusion", "found"),
        [
            # Rows are the truth, columns what is predicted.
            ([[0, 5], [0, 7]], "b"),
            ([[5, 0], [7, 0]], "a"),
            ([[5, 0], [6, 1]], None),
            # 4 of 1000 pixels of a class that are found are as good as none.
            ([[900, 0], [996, 4]], "a"),
            # The truth is one class too: the prediction is right, or all wrong with no sign of why.
            ([[5, 0], [0, 0]], None),
        ],
    )
    def test_of_two_classes(self, confusion, found):
        assert constant_prediction(np.array(confusion), ["a", "b"]) == found

    @pytest.mark.parametrize(
        ("confusion", "found"),
        [
            # Of each class, rows are whether it is there, columns whether it is predicted.
            ([[[9, 0], [3, 0]], [[8, 0], [4, 0]]], "no class"),
            ([[[0, 9], [0, 3]], [[8, 0], [4, 0]]], "a"),
            ([[[9, 0], [3, 0]], [[7, 1], [4, 0]]], None),
            ([[[12, 0], [0, 0]], [[12, 0], [0, 0]]], None),
        ],
    )
    def test_of_classes_that_may_overlap(self, confusion, found):
        assert constant_prediction(np.array(confusion), ["a", "b"]) == found


def network_of(bias):
    """A convolution of weights 0, so that its channels are relu(bias) everywhere."""
    inputs = keras.Input((None, None, 1))
    x = keras.layers.Conv2D(len(bias), 3, padding="same", name="one")(inputs)
    x = keras.layers.ReLU()(x)
    outputs = keras.layers.Conv2D(1, 1, name="logits")(x)
    model = keras.Model(inputs, outputs)
    model.get_layer("one").set_weights([np.zeros((3, 3, 1, len(bias))), np.array(bias)])
    return InferenceNetwork(model)


class TestDeadShares:
    def test_are_the_channels_that_are_0_everywhere(self):
        # relu(-1) = relu(0) = 0, relu(2) = 2: two of three. ReLU has moved into the convolution.
        found = dead_shares(network_of([-1.0, 0.0, 2.0]), np.zeros((8, 8), np.uint8))
        assert found == {"one": (2, 3)}

    def test_channel_that_lives_at_one_pixel_is_not_dead(self):
        network = network_of([0.0, 0.0])
        kernel = np.zeros((3, 3, 1, 2))
        kernel[1, 1, 0, 0] = 1.0
        network.model.get_layer("one").set_weights([kernel, np.zeros(2)])
        network.refresh()
        image = np.zeros((8, 8), np.uint8)
        image[3, 5] = 1
        assert dead_shares(network, image) == {"one": (1, 2)}

    @pytest.mark.parametrize("padding", ["same", "valid"])
    def test_of_images_that_are_no_multiple_of_the_stride(self, padding):
        network = InferenceNetwork(
            make_network(classes=2, base_filters=2, depth=2, padding=padding)
        )
        for shape in ((3, 30), (45, 66)):
            shares = dead_shares(network, np.full(shape, 90, np.uint8))
            # Two convolutions with ReLU at each of two levels down and up, and at the bottom.
            assert len(shares) >= 10


class TestText:
    def test_names_layers_that_are_dead_altogether(self):
        assert "all channels of b are 0" in _of_dead({"a": (0, 8), "b": (2, 2)})

    def test_counts_more_than_half(self):
        assert _of_dead({"a": (5, 8), "b": (1, 4)}) is None
        assert "7 of 12 channels" in _of_dead({"a": (6, 8), "b": (1, 4)})

    def test_says_nothing_of_a_network_without_relu(self):
        assert _of_dead({}) is None


def test_middle_is_cut_evenly():
    image = np.arange(30).reshape(5, 6)
    # (5 - 3) // 2 = 1 row and (6 - 3) // 2 = 1 column are left before it.
    assert np.array_equal(middle(image, 3), image[1:4, 1:4])
    assert middle(image, 9).shape == (5, 6)


class TestRun:
    def test_that_predicts_one_class_is_told_so_once(self, door, tmp_path):
        slices = write_slices(tmp_path, test_slices=0)
        # Steps this large end in weights that name one class, whatever the image.
        much = ["--optimizer=sgd", "--learning_rate=100", "--clip_norm=1", "--schedule=constant"]
        run = f"--run_dir={tmp_path / 'run'}"
        code, _, err = door(f"--data_dir={slices}", run, *TINY, *much, "--train_steps=6")
        assert code == 0
        said = [line for line in err.splitlines() if "on the held-out images" in line]
        assert len(said) == 1
        assert "WARNING: step" in said[0]
        history = (tmp_path / "run" / "history.csv").read_text().splitlines()
        column = history[0].split(",").index("held_out/recall/membrane")
        # More than one evaluation was so.
        recalls = [float(line.split(",")[column]) for line in history[1:]]
        assert sum(recall in (0, 1) for recall in recalls) > 1
