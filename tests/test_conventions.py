"""What all rooms agree on is the same in NumPy, TensorFlow and ONNX."""

import numpy as np
import pytest
import tensorflow as tf

from unet_core.conventions import MIDDLE, SPREAD, mirrored
from unet_core.data.intensities import Scaling
from unet_core.export import onnx_file
from unet_core.models.build import make_network
from unet_core.models.geometry import TileGeometry


class TestMirrored:
    @pytest.mark.parametrize("size", [1, 2, 3, 7])
    def test_numpy_and_tensorflow_give_the_reflection_of_numpy_pad(self, size):
        index = np.arange(-12, size + 15)
        expected = np.pad(np.arange(size), (12, 15), mode="reflect")
        np.testing.assert_array_equal(mirrored(index, size, np), expected)
        found = mirrored(tf.constant(index, tf.int32), size, tf)
        np.testing.assert_array_equal(found, expected)
        found = mirrored(tf.constant(index, tf.int32), tf.constant(size), tf)
        np.testing.assert_array_equal(found, expected)

    @pytest.mark.parametrize("size", [1, 2, 3, 7])
    @pytest.mark.parametrize("geometry", [TileGeometry(3, 4, 0), TileGeometry(0, 8, 5, 4)])
    def test_nodes_of_onnx_give_the_same(self, size, geometry):
        onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")
        runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
        graph, value = onnx_file._Graph(), onnx.helper.make_tensor_value_info
        found = onnx_file._indices(graph, "size", geometry)
        proto = onnx.helper.make_model(
            onnx.helper.make_graph(
                graph.nodes,
                "indices",
                [value("size", onnx.TensorProto.INT64, [])],
                [value(found, onnx.TensorProto.INT64, [None])],
                graph.constants,
            ),
            opset_imports=[onnx.helper.make_opsetid("", onnx_file._OPSET)],
            ir_version=8,
        )
        session = runtime.InferenceSession(
            proto.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        (indices,) = session.run(None, {"size": np.array(size, np.int64)})
        before, after = geometry.padding()
        whole = size + -size % geometry.stride
        expected = mirrored(np.arange(-before, whole + after), size, np)
        np.testing.assert_array_equal(indices, expected)


class TestPixelValues:
    def test_network_maps_the_middle_to_0_and_a_spread_more_to_1(self):
        scale = make_network(classes=2, depth=1, base_filters=1).get_layer("scale")
        found = scale(np.array([0, MIDDLE, MIDDLE + SPREAD, 255], np.float32))
        np.testing.assert_allclose(found, [-2, 0, 1, 2], atol=1e-6)

    def test_fixed_intensities_are_what_the_network_maps_to_their_deviations(self):
        scaled = Scaling.parse("fixed:100,20")(np.array([[[60], [100], [120]]], np.uint8))
        np.testing.assert_allclose((scaled.ravel() - MIDDLE) / SPREAD, [-2, 0, 1], atol=1e-6)
