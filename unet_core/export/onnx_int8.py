"""A network as an ONNX graph that computes in 8-bit integers.

    find_probabilities = open_onnx("exported/model_int8.onnx")
    probabilities = find_probabilities(pixels)        # [H, W, C] as in files -> [H, W, classes]

It is the graph of `unet_core.export.onnx_file`, quantized after training by `onnxruntime`: QDQ
format, int8 weights with a scale for each channel, uint8 activations whose least and greatest
values are those of the calibration images. Scaling of intensities, mirrored margins and
probabilities stay float. The library's own pre-processing is left out: batch norm is folded
already, and with it the same nodes are quantized (seen on 1.32). Needs the packages `onnx` and
`onnxruntime`.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
from collections.abc import Callable, Sequence

import keras
import numpy as np

from unet_core.errors import UserError
from unet_core.export import Format, Serving
from unet_core.export.onnx_file import make_onnx

INT8_FILE = "model_int8.onnx"
# With pooling, concatenation and ReLU what lies between convolutions is passed on in 8 bits too.
_QUANTIZED = ["Conv", "ConvTranspose", "MaxPool", "Concat", "Relu"]


def check_installed() -> None:
    """Raises UserError if `onnx` or `onnxruntime` is not installed."""
    missing = [name for name in ("onnx", "onnxruntime") if not importlib.util.find_spec(name)]
    if missing:
        raise UserError(
            f"Writing an ONNX file in int8 needs the package {' and '.join(missing)}; install "
            "what it needs by `pip install 'unet_core[onnx]'`, or leave out this format."
        )


def write(model: keras.Model, folder: pathlib.Path, serving: Serving) -> None:
    """Writes model_int8.onnx, whose inputs and outputs are those of model.onnx."""
    from onnxruntime import quantization

    proto = make_onnx(model, serving.scaling, serving.classes.names, serving.threshold)
    # Nodes are chosen by their names.
    for node in proto.graph.node:
        node.name = node.output[0]
    # Else it advises to run the pre-processing.
    proto.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    quantization.quantize_static(
        proto,
        folder / INT8_FILE,
        _make_reader(serving.calibration, _input_type(proto)),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=_QUANTIZED,
        per_channel=True,
        weight_type=quantization.QuantType.QInt8,
        activation_type=quantization.QuantType.QUInt8,
        # Of two classes they are put together by a concatenation, which is to stay exact.
        nodes_to_exclude=["probabilities"],
    )


ONNX_INT8 = Format(write, check_installed, is_calibrated=True)


def open_onnx(path: str | os.PathLike) -> Callable[[np.ndarray], np.ndarray]:
    """Returns what computes the probabilities of one image by an ONNX file of this package.

    Args:
        path: The file.

    Returns:
        A function of [H, W, C] pixel values as in image files, which gives [H, W, classes] float32.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
    dtype = np.uint8 if session.get_inputs()[0].type == "tensor(uint8)" else np.float32

    def find_probabilities(pixels: np.ndarray) -> np.ndarray:
        batch = pixels[np.newaxis].astype(dtype, copy=False)
        return session.run(["probabilities"], {"images": batch})[0][0]

    return find_probabilities


def _input_type(proto) -> np.dtype:
    import onnx

    element = proto.graph.input[0].type.tensor_type.elem_type
    return onnx.helper.tensor_dtype_to_np_dtype(element)


def _make_reader(images: Sequence[np.ndarray], dtype: np.dtype):
    """Returns what hands `images` to the quantization, one at a time."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self._images = iter(images)

        def get_next(self):
            image = next(self._images, None)
            if image is None:
                return None
            return {"images": image[np.newaxis].astype(dtype, copy=False)}

    return Reader()
