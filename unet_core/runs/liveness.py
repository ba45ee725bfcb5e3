"""Peak of the memory of a traced graph, by liveness: a tensor is there from its op to its last use.

The ops are taken in the order in which they were traced, which is close to that in which they run:
forward pass, loss, backward pass. Whatever a gradient reads is kept until then, without a rule for
any layer. What TensorFlow does not allocate anew is not counted: views, and what an op writes into
the buffer of an input that nobody else reads. The latter stands for the fused kernels as well:
a convolution with bias and ReLU keeps one tensor, fused or not.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import tensorflow as tf

# The functions that an op runs: one of them, or one after the other.
_CALLS = {
    "PartitionedCall": ("f",),
    "StatefulPartitionedCall": ("f",),
    "While": ("body",),
    "StatelessWhile": ("body",),
    "If": ("then_branch", "else_branch"),
    "StatelessIf": ("then_branch", "else_branch"),
}
# A variable is read where it lies; constants and inputs of a function are those of others.
_NOT_MADE = {"Const", "Placeholder", "ReadVariableOp"}
_VIEWS = {
    *("Identity", "IdentityN", "Reshape", "Squeeze", "ExpandDims", "StopGradient"),
    *("PreventGradient", "EnsureShape"),
}
# They ask for the buffer of an input (`forward_input` in TensorFlow's kernels).
_IN_PLACE = {
    *("Relu", "ReluGrad", "Relu6", "Relu6Grad", "LeakyRelu", "LeakyReluGrad", "Elu", "EluGrad"),
    *("Sigmoid", "SigmoidGrad", "Tanh", "TanhGrad", "Softplus", "SoftplusGrad", "BiasAdd"),
    *("Add", "AddV2", "AddN", "Sub", "Mul", "RealDiv", "DivNoNan", "Neg", "Abs", "Sign", "Square"),
    *("Sqrt", "Rsqrt", "Exp", "Log", "Pow", "Maximum", "Minimum", "Softmax", "LogSoftmax"),
}
_GRADIENTS = {"Conv2DBackpropFilter", "Conv2DBackpropInput"}
_WORKING_SET = 32 << 20


def count_ops(graph: tf.Graph) -> int:
    """Returns the number of ops, those of the functions that it calls included."""
    operations = graph.get_operations()
    inner = sum(count_ops(inner) for op in operations for inner in _functions_of(graph, op))
    return len(operations) + inner


def peak_bytes(graph: tf.Graph, *, unfolds: bool) -> int:
    """Returns the largest sum of the tensors that are there at once, without variables.

    Args:
        graph: The graph of a traced function. Of several replicas the first one's ops count.
        unfolds: Whether the gradients of convolutions copy each pixel's window first, as
            TensorFlow's own kernels for CPUs do (`conv_grad_filter_ops.cc`), but not oneDNN's.
    """
    walk = _Walk(graph)
    peak = 0
    for op in graph.get_operations():
        if _is_of_another_replica(op):
            continue
        functions = _functions_of(graph, op)
        inner = max((peak_bytes(each, unfolds=unfolds) for each in functions), default=0)
        walk.make(op)
        # The two gradients of a layer run at once, each with windows of its own.
        windows = 2 * _windows(op) if unfolds and op.type in _GRADIENTS else 0
        peak = max(peak, walk.live + inner + windows)
        walk.release(op)
    return peak


class _Walk:
    """Buffers of one graph while its ops are taken in turn.

    Attributes:
        live: Bytes of those that are there.
    """

    def __init__(self, graph: tf.Graph):
        self.live = 0
        # The same tensor may be read several times by one op, and is then read once.
        self._reads = Counter(
            name for op in graph.get_operations() for name in {t.name for t in op.inputs}
        )
        # What is returned is there to the end.
        self._reads.update(tensor.name for tensor in getattr(graph, "outputs", ()))
        self._buffer: dict[str, str] = {}
        self._readers: Counter[str] = Counter()
        self._size: dict[str, int] = {}

    def make(self, op: tf.Operation) -> None:
        """Gives each output a buffer: none, that of an input, or its own."""
        if op.type in _NOT_MADE:
            return
        inputs = [self._buffer.get(tensor.name) for tensor in op.inputs]
        for place, tensor in enumerate(op.outputs):
            size = _bytes(tensor)
            if op.type in _VIEWS:
                found = inputs[min(place, len(inputs) - 1)]
                if found is None:
                    continue
            else:
                found = self._taken_over(op, size) or tensor.name
            if found not in self._size:
                self._size[found] = size
                self.live += size
            self._buffer[tensor.name] = found
            self._readers[found] += self._reads[tensor.name]

    def release(self, op: tf.Operation) -> None:
        """Frees what nobody reads after `op`."""
        for name in {tensor.name for tensor in op.inputs}:
            if (found := self._buffer.get(name)) is not None:
                self._readers[found] -= 1
                self._free(found)
        for tensor in op.outputs:
            if (found := self._buffer.get(tensor.name)) is not None:
                self._free(found)

    def _taken_over(self, op: tf.Operation, size: int) -> str | None:
        """Returns the buffer of an input of this size that `op` is the last to read."""
        if op.type not in _IN_PLACE:
            return None
        names = {tensor.name for tensor in op.inputs}
        found = Counter(self._buffer[name] for name in names if name in self._buffer)
        return next(
            (b for b, n in found.items() if self._size[b] == size and self._readers[b] == n), None
        )

    def _free(self, found: str) -> None:
        if not self._readers[found]:
            self.live -= self._size.pop(found, 0)


def _bytes(tensor: tf.Tensor) -> int:
    """Returns the bytes of `tensor`; 0 if its shape is not known while tracing."""
    if not tensor.shape.is_fully_defined():
        return 0
    return math.prod(tensor.shape) * tensor.dtype.size


def _windows(op: tf.Operation) -> int:
    """Returns the bytes of the windows that a gradient of a convolution copies at once.

    They are those of as many images as fit into the cache, and of one at the least.
    """
    kernel = op.outputs[0] if op.type == "Conv2DBackpropFilter" else op.inputs[1]
    gradient = op.inputs[2]
    if not (kernel.shape.is_fully_defined() and gradient.shape.is_fully_defined()):
        return 0
    images, height, width, filters = gradient.shape
    each = math.prod(kernel.shape[:3])
    unit = height * width * (each + filters) + each * filters
    at_once = min(images, -(-_WORKING_SET // (unit * kernel.dtype.size)))
    return at_once * height * width * each * kernel.dtype.size


def _functions_of(graph: tf.Graph, op: tf.Operation) -> Iterator[tf.Graph]:
    for name in _CALLS.get(op.type, ()):
        # TensorFlow 2.21 has no public way from the name of a function to its graph.
        found = graph._get_function(op.get_attr(name).name)
        if found is not None and hasattr(found, "graph"):
            yield found.graph


def _is_of_another_replica(op: tf.Operation) -> bool:
    device = tf.DeviceSpec.from_string(op.device) if op.device else None
    return device is not None and bool(device.device_index)
