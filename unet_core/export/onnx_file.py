"""A network as an ONNX graph, written node by node.

The converters were tried with TensorFlow 2.21, Keras 3.15 and NumPy 2.4. tf2onnx 1.17 needs half a
minute for a U-Net and turns TensorFlow's floor modulo into one that truncates, so that images whose
size is no multiple of the stride come back cropped, without an error; Keras' own ONNX export is
tf2onnx. A U-Net has ten kinds of layers, so they are written down, in
`unet_core.models.onnx_nodes`; the table `unet_core.models.layer_rules` says which nodes a layer is,
and there others are added. Needs the package `onnx`.
"""

from __future__ import annotations

import importlib.util
import pathlib
from collections.abc import Sequence

import keras
import numpy as np

from unet_core.conventions import MIDDLE, SPREAD
from unet_core.data.intensities import Scaling
from unet_core.errors import UserError
from unet_core.export import Format, Serving
from unet_core.inference.masks import Threshold, Thresholds
from unet_core.inference.network import InferenceNetwork
from unet_core.models.geometry import TileGeometry
from unet_core.models.layer_rules import rule_of
from unet_core.models.walk import calls

_OPSET = 17
_ROWS, _COLUMNS = (1, 2)


def check_installed() -> None:
    """Raises UserError if `onnx` is not installed."""
    if importlib.util.find_spec("onnx") is None:
        raise UserError(
            "Writing an ONNX file needs the package onnx; install it by "
            "`pip install 'unet_core[onnx]'`, or leave out this format."
        )


def write(model: keras.Model, folder: pathlib.Path, serving: Serving) -> None:
    """Writes model.onnx, in float32 whatever the precision."""
    names, threshold = serving.classes.names, serving.threshold
    proto = make_onnx(model, serving.scaling, names, threshold)
    (folder / "model.onnx").write_bytes(proto.SerializeToString())


ONNX = Format(write, check_installed)


def make_onnx(
    model: keras.Model,
    scaling: Scaling,
    names: Sequence[str],
    threshold: Threshold | Thresholds | None = None,
):
    """Returns an `onnx.ModelProto` from pixel values to probabilities and masks, in float32.

    Args:
        model: A network of `make_network`.
        scaling: How pixel values are scaled. With "range" of the type the input is uint8;
            otherwise it is float32, in the units of the files.
        names: The names of the classes, stored as metadata `class_names`, one a line.
        threshold: How masks are made of the probabilities of two classes or of those that may
            overlap; None is the most probable class.

    Input `images` [B, H, W, C]; outputs `probabilities` [B, H, W, classes] float32 and `masks`
    [B, H, W] uint8, the class ids, or of classes that may overlap [B, H, W, classes], 1 where each
    is.

    Raises:
        UserError: If `onnx` is not installed, or the network holds a layer whose class has no
            nodes in `layer_rules`.
    """
    check_installed()
    import onnx

    graph = _Graph()
    channels, logits_channels = model.input_shape[-1], model.output_shape[-1]
    network = InferenceNetwork(model, precision="float32")
    pixels = _scale(graph, scaling)
    sizes = {axis: graph.size("images", axis) for axis in (_ROWS, _COLUMNS)}
    for axis, size in sizes.items():
        indices = _indices(graph, size, network.geometry)
        pixels = graph.add("Gather", pixels, indices, axis=axis)
    x = graph.add("Transpose", pixels, perm=(0, 3, 1, 2))
    x = graph.add("Transpose", _run(graph, network.layers, x), perm=(0, 2, 3, 1))
    for axis, size in sizes.items():
        end = graph.add("Reshape", size, graph.constant([1]))
        x = graph.add("Slice", x, graph.constant([0]), end, graph.constant([axis]))
    overlapping = isinstance(threshold, Thresholds)
    if overlapping:
        graph.add("Sigmoid", x, output="probabilities")
    elif logits_channels == 1:
        halves = (graph.add("Sigmoid", graph.add("Neg", x)), graph.add("Sigmoid", x))
        graph.add("Concat", *halves, axis=3, output="probabilities")
    else:
        graph.add("Softmax", x, axis=3, output="probabilities")
    ids = _ids(graph, threshold)
    graph.add("Cast", ids, to=onnx.TensorProto.UINT8, output="masks")
    of_type = scaling == Scaling("range")
    kind = onnx.TensorProto.UINT8 if of_type else onnx.TensorProto.FLOAT
    value = onnx.helper.make_tensor_value_info
    sides = ["batch", "height", "width"]
    masks = [*sides, len(names)] if overlapping else sides
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            model.name,
            [value("images", kind, [*sides, channels])],
            [
                value("probabilities", onnx.TensorProto.FLOAT, [*sides, len(names)]),
                value("masks", onnx.TensorProto.UINT8, masks),
            ],
            graph.constants,
        ),
        producer_name="unet_core",
        opset_imports=[onnx.helper.make_opsetid("", _OPSET)],
        ir_version=8,
    )
    onnx.helper.set_model_props(proto, {"class_names": "\n".join(names)})
    onnx.checker.check_model(proto)
    return proto


def _ids(graph: _Graph, threshold: Threshold | Thresholds | None) -> str:
    """Adds the classes of "probabilities", in some type that can be cast."""
    if threshold is None:
        return graph.add("ArgMax", "probabilities", axis=3, keepdims=0)
    if isinstance(threshold, Thresholds):
        values = graph.constant(threshold.values, np.float32)
        return graph.add("Greater", "probabilities", values)
    own = graph.add("Gather", "probabilities", graph.constant(threshold.class_id), axis=3)
    above = graph.add("Greater", own, graph.constant(threshold.value, np.float32))
    return above if threshold.class_id == 1 else graph.add("Not", above)


class _Graph:
    """Nodes and constants in the making; tensors are their names."""

    def __init__(self):
        self.nodes, self.constants = [], []

    def add(self, operation: str, *inputs: str | int, output: str | None = None, **attributes):
        """Adds a node and returns its first output.

        Numbers among the inputs become int64 constants.
        """
        import onnx

        names = [self.constant(x) if isinstance(x, int) else x for x in inputs]
        output = output or f"{operation}_{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(operation, names, [output], **attributes))
        return output

    def constant(self, value, dtype=np.int64) -> str:
        """Adds an array and returns it."""
        import onnx

        name = f"constant_{len(self.constants)}"
        array = np.ascontiguousarray(np.asarray(value, dtype)).reshape(np.shape(value))
        self.constants.append(onnx.numpy_helper.from_array(array, name))
        return name

    def sorted(self, tensor: str, axis: int) -> str:
        """Returns `tensor` in rising order along an axis."""
        import onnx

        count = self.add("Reshape", self.size(tensor, axis), self.constant([1]))
        outputs = [f"TopK_{len(self.nodes)}", f"TopK_{len(self.nodes)}_indices"]
        self.nodes.append(
            onnx.helper.make_node("TopK", [tensor, count], outputs, axis=axis, largest=0)
        )
        return outputs[0]

    def size(self, tensor: str, axis: int) -> str:
        """Returns the length of an axis, an int64 scalar."""
        return self.add("Gather", self.add("Shape", tensor), self.constant(axis), axis=0)


def _scale(graph: _Graph, scaling: Scaling) -> str:
    """Adds what `Scaling` computes, from "images" to [B, H, W, C] float32."""
    import onnx

    single, double = onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE
    if scaling == Scaling("range"):
        return graph.add("Cast", "images", to=single)
    if scaling.form == "range":
        darkest, brightest = scaling.numbers
        apart = graph.add("Sub", "images", graph.constant(darkest, np.float32))
        factor = graph.constant(255 / (brightest - darkest), np.float32)
        return graph.add("Mul", apart, factor)
    if scaling.form == "fixed":
        mean, deviation = (graph.constant(number, np.float32) for number in scaling.numbers)
        return _standardised(graph, "images", mean, deviation, np.float32)
    exact = graph.add("Cast", "images", to=double)
    if scaling.form == "zscore":
        mean = graph.add("ReduceMean", exact, axes=(_ROWS, _COLUMNS))
        apart = graph.add("Sub", exact, mean)
        square = graph.add("Mul", apart, apart)
        variance = graph.add("ReduceMean", square, axes=(_ROWS, _COLUMNS))
        deviation = _or_one(graph, graph.add("Sqrt", variance))
        scaled = _standardised(graph, exact, mean, deviation, np.float64)
        return graph.add("Cast", scaled, to=single)
    low, high = _percentiles(graph, scaling.numbers)
    if scaling.min_max:
        least, greatest = _percentiles(graph, (0, 100))
        is_apart = graph.add("Less", low, high)
        low = graph.add("Where", is_apart, low, least)
        high = graph.add("Where", is_apart, high, greatest)
    spread = _or_one(graph, graph.add("Sub", high, low))
    factor = graph.add("Div", graph.constant(255, np.float64), spread)
    scaled = graph.add("Mul", graph.add("Sub", exact, low), factor)
    limits = (graph.constant(limit, np.float64) for limit in (0, 255))
    return graph.add("Cast", graph.add("Clip", scaled, *limits), to=single)


def _standardised(graph: _Graph, pixels: str, mean: str, deviation: str, dtype) -> str:
    apart = graph.add("Div", graph.add("Sub", pixels, mean), deviation)
    steps = graph.add("Mul", apart, graph.constant(SPREAD, dtype))
    return graph.add("Add", steps, graph.constant(MIDDLE, dtype))


def _percentiles(graph: _Graph, percents: Sequence[float]) -> list[str]:
    """Adds the percentiles [B, 1, 1, C] of each image and channel, as `np.percentile` does."""
    import onnx

    double, whole = onnx.TensorProto.DOUBLE, onnx.TensorProto.INT64
    flat = graph.add(
        "Reshape", graph.add("Transpose", "images", perm=(0, 3, 1, 2)), graph.constant([0, 0, -1])
    )
    count = graph.size(flat, 2)
    ordered = graph.add("Cast", graph.sorted(flat, 2), to=double)
    last = graph.add("Cast", graph.add("Sub", count, 1), to=double)
    found = []
    for percent in percents:
        position = graph.add("Mul", last, graph.constant(percent / 100, np.float64))
        below = graph.add("Floor", position)
        above = graph.add("Min", graph.add("Add", below, graph.constant(1, np.float64)), last)
        lower, upper = (
            graph.add("Gather", ordered, graph.add("Cast", index, to=whole), axis=2)
            for index in (below, above)
        )
        share = graph.add("Sub", position, below)
        step = graph.add("Mul", graph.add("Sub", upper, lower), share)
        value = graph.add("Add", lower, step)
        found.append(graph.add("Unsqueeze", value, graph.constant([_ROWS, _COLUMNS])))
    return found


def _or_one(graph: _Graph, spread: str) -> str:
    """Adds `spread` with 1 in place of 0."""
    zero, one = (graph.constant(value, np.float64) for value in (0, 1))
    return graph.add("Where", graph.add("Greater", spread, zero), spread, one)


def _indices(graph: _Graph, size: str, around: TileGeometry) -> str:
    """Adds the indices of an axis of `size` pixels that lead to it with its surroundings mirrored.

    As `unet_core.conventions.mirrored`, with nodes.
    """
    before, after = around.padding()
    excess = graph.add("Mod", graph.add("Neg", size), around.stride)
    end = graph.add("Add", graph.add("Add", size, excess), after)
    period = graph.add("Max", graph.add("Mul", graph.add("Sub", size, 1), 2), 1)
    index = graph.add("Mod", graph.add("Range", -before, end, 1), period)
    return graph.add(
        "Where", graph.add("Less", index, size), index, graph.add("Sub", period, index)
    )


def _run(graph: _Graph, network: keras.Model, images: str) -> str:
    """Adds the layers of `network`, from scaled [B, C, H, W] to logits [B, K, H, W]."""
    tensors = {id(network.inputs[0]): images}
    for call in calls(network):
        rule = rule_of(call.layer).onnx
        if rule is None:
            raise UserError(
                f"{call.layer.name!r} ({type(call.layer).__name__}) cannot be written as ONNX: its "
                "class has no nodes in `unet_core.models.layer_rules`. Leave this format out of "
                "`formats`, or add them there."
            )
        inputs = [tensors[id(tensor)] for tensor in call.inputs]
        try:
            tensors[id(call.outputs[0])] = rule(graph, call.layer, *inputs)
        except ValueError as error:
            raise UserError(f"{error} Leave the format onnx out of `formats`.") from error
    return tensors[id(network.outputs[0])]
