import keras
import pytest

from unet_core.models.build import make_network
from unet_core.models.flops import forward_flops, work_of
from unet_core.models.stages import stages_of

layers = keras.layers


def stages(model, size=64):
    return stages_of(model, work_of(model, 1, size, size))


class TestStagesOf:
    @pytest.mark.parametrize("padding", ["same", "valid"])
    def test_of_a_unet_are_its_levels_down_and_up(self, padding):
        model = make_network(classes=2, depth=2, base_filters=2, padding=padding)
        found, of_outputs = stages(model)
        assert [(stage.name, stage.level) for stage in found] == [
            ("down0", 0),
            ("down1", 1),
            ("bottom", 2),
            ("up1", 1),
            ("up0", 0),
        ]
        assert of_outputs == [4]
        # The skips are those of down1 and down0.
        assert [sorted(stage.sources) for stage in found] == [[-1], [0], [1], [1, 2], [0, 3]]

    def test_hold_all_operations_and_all_weights(self):
        model = make_network(classes=3, depth=2, base_filters=2, normalization="batch")
        found, _ = stages(model)
        assert sum(stage.flops for stage in found) == forward_flops(model, 1, 64, 64)
        held = [layer for stage in found for layer in stage.layers_with_weights]
        assert sum(layer.count_params() for layer in held) == model.count_params()

    def test_of_keras_efficientnet_follow_its_strides(self):
        images = keras.Input((None, None, 3))
        model = keras.applications.EfficientNetB0(
            include_top=False, weights=None, input_tensor=images
        )
        found, _ = stages(model)
        # Squeeze and excitation, of 1x1 pixels, belongs to the stage it weighs.
        assert [stage.level for stage in found] == [0, 1, 2, 3, 4, 5]
        assert [stage.shape[1] for stage in found] == [64, 32, 16, 8, 4, 2]

    def test_layer_of_vectors_belongs_to_what_it_was_pooled_from(self):
        images = keras.Input((None, None, 4))
        x = layers.MaxPooling2D(2)(images)
        gate = layers.Dense(4)(layers.GlobalAveragePooling2D(keepdims=True)(x))
        model = keras.Model(images, layers.Multiply()([x, gate]))
        assert [stage.level for stage in stages(model)[0]] == [1]

    def test_every_output_has_its_stage(self):
        model = make_network(classes=2, depth=2, base_filters=2, deep_supervision=True)
        found, of_outputs = stages(model)
        assert [found[number].level for number in of_outputs] == list(range(len(of_outputs)))
