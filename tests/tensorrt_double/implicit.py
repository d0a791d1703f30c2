"""Implicit int8, TensorRT's until 11: tensors have dynamic ranges, and some layers read and write them as int8.

Which, is TensorRT's choice among what flags and ranges allow. The double's answers have to follow from the network: it
takes int8 just where a layer's precision or a plugin's type says so. Such a layer rounds what it reads, and a plugin
what it writes too, to the 256 steps of each tensor's range; a convolution's kernel is rounded by its own largest value
in each output channel. What an int8 convolution writes is rounded where it has a range and is told no other type: TensorRT
8.6.0 on an H200 does so, whoever reads it (a range far too narrow showed it).
"""

import numpy as np

from tests.tensorrt_double.numerics import FLOATS, Stored
from tests.tensorrt_double.versions import TensorRTDoubleError

#: The layers that the double computes in int8 when their precision says so.
_DENSE = "convolution"


def rounded(values: np.ndarray, amax) -> np.ndarray:
    """The nearest of the multiples -128 to 127 of amax / 127, a float32; ties to even. `amax` broadcasts."""
    return to_steps(values, np.float32(amax) / np.float32(127))


def to_steps(values: np.ndarray, step) -> np.ndarray:
    """The nearest of the multiples -128 to 127 of `step`."""
    step = np.asarray(step, np.float64)
    return np.clip(np.rint(values / step), -128, 127) * step


def is_int8_plugin(params: dict) -> bool:
    """Whether a plugin takes and gives int8."""
    if params["family"] == "embeddings":
        return False
    return params.get("type_id") == 2 or params["variant"] in ("interleaved", "megatron")


def inputs_of(graph, node, values: list) -> list:
    """What a layer sees of its inputs: rounded, where it reads int8."""
    if node.precision != "INT8" and not _is_int8_plugin_node(node):
        return values
    return [v if v is None else _seen(graph.tensors[i], graph.info(i), v) for i, v in zip(node.inputs, values)]


def outputs_of(graph, node, values: list) -> list:
    """What a layer leaves of its outputs: rounded, where it writes int8."""
    tensors = [(graph.tensors[i], graph.info(i)) for i in node.outputs]
    if _is_int8_plugin_node(node):
        return [_seen(tensor, info, value) for (tensor, info), value in zip(tensors, values)]
    return [_seen(*pair, value) if _writes_int8(node, pair[0]) else value for pair, value in zip(tensors, values)]


def _writes_int8(node, tensor) -> bool:
    if tensor.forced_type is None:
        return node.precision == "INT8" and tensor.dynamic_range is not None
    return tensor.forced_type == "INT8"


def params_of(node) -> dict:
    """A layer's parameters to compute with: weights as arrays, a dense layer's kernel rounded where it is of int8."""
    params = {key: value.values() if isinstance(value, Stored) else value for key, value in node.params.items()}
    if node.precision == "INT8" and node.kind == _DENSE:
        kernel = params["kernel"].reshape(params["num_output_maps"], -1)
        largest = np.abs(kernel).max(1, keepdims=True)
        params["kernel"] = rounded(kernel, np.where(largest > 0, largest, 1))
    return params


def check(graph) -> None:
    """Raises TensorRTDoubleError for int8 without a range: the real builder warns, and takes another type instead."""
    needing = [tensor for tensor in graph.tensors if tensor.forced_type == "INT8"]
    for node in graph.nodes:
        if node.precision == "INT8" and node.kind != _DENSE:
            raise TensorRTDoubleError(f"{node.name}: the double does not compute {node.kind} layers in int8")
        plugin = _is_int8_plugin_node(node)
        ids = node.inputs + node.outputs if plugin else node.inputs if node.precision == "INT8" else []
        needing += [graph.tensors[i] for i in ids if i is not None and graph.info(i).dtype in FLOATS]
    missing = sorted({tensor.name for tensor in needing if tensor.dynamic_range is None})
    if missing:
        raise TensorRTDoubleError(f"Missing scale and zero-point for tensor {', '.join(missing[:5])}")
    if any(graph.tensors[i].forced_type == "INT8" for i in graph.outputs):
        raise TensorRTDoubleError("implicitly quantized outputs are not played by the double")


def _is_int8_plugin_node(node) -> bool:
    return node.kind == "plugin" and is_int8_plugin(node.params)


def _seen(tensor, info, value):
    return rounded(value, tensor.dynamic_range[1]) if info.dtype in FLOATS else value
