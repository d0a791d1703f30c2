"""What each layer computes, in numpy: float64 for floats, int64 for integers.

Each function is a kind of layer's (layers.py): it takes a node's parameters (weights as arrays), its inputs' values and
its outputs' shapes, and returns its output, or the list of its outputs.
"""

import math

import numpy as np

from tests.tensorrt_double.numerics import INTEGERS, round_to
from tests.tensorrt_double.shapes import Info, axes_of, concatenation_axis, slice_dims, softmax_axis
from tests.tensorrt_double.versions import TensorRTDoubleError


def constant(params, inputs, shapes):
    return params["weights"].reshape(shapes[0])


def cast(params, inputs, shapes):
    integer = params["to_type"] in (*INTEGERS, "UINT8")
    return np.trunc(inputs[0]) if integer and inputs[0].dtype == np.float64 else inputs[0]


def gather(params, inputs, shapes):
    (data, indices), axis = inputs, params["axis"]
    indices = indices.astype(np.int64)
    if indices.size and (indices.min() < 0 or indices.max() >= data.shape[axis]):
        raise TensorRTDoubleError(f"an index {indices.min()}..{indices.max()} is outside {data.shape[axis]} rows")
    return np.take(data, indices, axis)


_ELEMENTWISE = {
    "SUM": np.add,
    "PROD": np.multiply,
    "MIN": np.minimum,
    "SUB": np.subtract,
    "POW": np.power,
    "LESS": np.less,
}


def elementwise(params, inputs, shapes):
    return _ELEMENTWISE[params["op"]](*inputs)


def _erf(x: np.ndarray) -> np.ndarray:
    return np.fromiter(map(math.erf, x.ravel().tolist()), np.float64, x.size).reshape(x.shape)


def unary(params, inputs, shapes):
    return {"ERF": _erf, "NOT": np.logical_not}[params["op"]](inputs[0])


_ACTIVATIONS = {
    "TANH": np.tanh,
    "SIGMOID": lambda x: 0.5 + 0.5 * np.tanh(x / 2),
    "GELU_ERF": lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
    "GELU_TANH": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}


def activation(params, inputs, shapes):
    return _ACTIVATIONS[params["type"]](inputs[0])


def matrix_multiply(params, inputs, shapes):
    ops = (params["op0"], params["op1"])
    return np.matmul(*(np.swapaxes(v, -1, -2) if op == "TRANSPOSE" else v for v, op in zip(inputs, ops)))


def softmax(params, inputs, shapes):
    return normalised_exponentials(inputs[0], softmax_axis(params, inputs[0].ndim))


def normalised_exponentials(scores: np.ndarray, axis: int) -> np.ndarray:
    """exp(x) / Σ exp(x) along an axis, computed without overflow."""
    weights = scores - scores.max(axis, keepdims=True)
    np.exp(weights, out=weights)
    weights /= weights.sum(axis, keepdims=True)
    return weights


def shuffle(params, inputs, shapes):
    first, second = params["first_transpose"], params["second_transpose"]
    value = inputs[0] if first is None else inputs[0].transpose(first)
    if second is None:
        return value.reshape(shapes[0])
    between = [0] * len(second)
    for position, axis in enumerate(second):
        between[axis] = shapes[0][position]
    return value.reshape(between).transpose(second)


def convolution(params, inputs, shapes):
    """By a kernel of 1 × 1: a dense layer over the channels, the third axis from the end."""
    data, maps, bias = np.moveaxis(inputs[0], -3, -1), params["num_output_maps"], params["bias"]
    product = data.reshape(-1, data.shape[-1]) @ params["kernel"].reshape(maps, -1).T
    if bias is not None and bias.size:
        product += bias
    return np.moveaxis(product.reshape(*data.shape[:-1], maps), -1, -3)


def normalization(params, inputs, shapes):
    data, scale, bias = inputs
    axes = tuple(axes_of(params["axesMask"], data.ndim, "normalization"))
    centred = data - data.mean(axes, keepdims=True)
    variance = (centred**2).mean(axes, keepdims=True)
    return centred / np.sqrt(variance + params["epsilon"]) * scale + bias


def attend(query: np.ndarray, key: np.ndarray, value: np.ndarray, bias=0.0, rounded=lambda x: x) -> np.ndarray:
    """softmax(Q·Kᵀ + bias)·V over the last two axes; a row with nothing to attend to is an error.

    `rounded` is what quantization makes of the weights of V.
    """
    scores = query @ np.swapaxes(key, -1, -2) + bias
    if scores.size and np.isneginf(scores.max(-1)).any():
        raise TensorRTDoubleError("attention: a query has no key to attend to")
    return rounded(normalised_exponentials(scores, -1)) @ value


def sequences(lengths: np.ndarray, tokens: int, shortest: int = 1, exact: bool = True) -> list[slice]:
    """The token ranges of cumulative lengths; they must start at 0, grow, and end at the number of tokens, or before."""
    bounds = [int(bound) for bound in lengths]
    grows = all(a + shortest <= b for a, b in zip(bounds, bounds[1:]))
    ends = bounds[-1] == tokens if exact else bounds[-1] <= tokens
    if len(bounds) < 2 or bounds[0] != 0 or not ends or not grows:
        raise TensorRTDoubleError(f"cumulative lengths {bounds} do not describe {tokens} tokens")
    return [slice(a, b) for a, b in zip(bounds, bounds[1:])]


def attention(params, inputs, shapes):
    query, key, value, mask, query_lengths, key_lengths, scale = inputs + [None] * (7 - len(inputs))

    def rounded(weights):
        return (
            weights if scale is None else _quantized(weights, scale, params["normalization_quantize_to_type"]) * scale
        )

    if params["query_form"] == "PADDED_BHND":
        return attend(query, key, value, 0.0 if mask is None else np.where(mask, 0.0, -np.inf), rounded)
    result = np.empty(shapes[0])
    for ours, theirs in zip(sequences(query_lengths, len(query)), sequences(key_lengths, len(key)), strict=True):
        parts = (np.swapaxes(part, 0, 1) for part in (query[ours], key[theirs], value[theirs]))
        result[ours] = np.swapaxes(attend(*parts, rounded=rounded), 0, 1)
    return result


def _spread(scale: np.ndarray, axis: int | None, rank: int) -> np.ndarray:
    if (scale <= 0).any():
        raise TensorRTDoubleError("a quantization scale must be positive")
    if scale.size == 1 or axis is None:
        return scale.reshape(())
    return scale.reshape([-1 if dimension == axis else 1 for dimension in range(rank)])


def _quantized(values: np.ndarray, scale: np.ndarray, dtype: str) -> np.ndarray:
    """values / scale as the nearest value of INT8 or FP8, ties to even; what is beyond the type's range saturates."""
    scaled = values / scale
    return np.clip(np.rint(scaled), -128, 127) if dtype == "INT8" else round_to(scaled, dtype)


def quantize(params, inputs, shapes):
    return _quantized(inputs[0], _spread(inputs[1], params["axis"], inputs[0].ndim), params["to_type"])


def dequantize(params, inputs, shapes):
    return inputs[0] * _spread(inputs[1], params["axis"], inputs[0].ndim)


def shape(params, inputs, shapes):
    return np.array(inputs[0].shape, np.int64)


def slice_(params, inputs, shapes):
    tensors = [None if value is None else Info(value.shape, "INT64", value) for value in inputs[1:]]
    start, size, stride = slice_dims(params, [None, *tensors])
    stops = (a + n * s for a, n, s in zip(start, size, stride))
    return inputs[0][tuple(slice(a, b if b >= 0 else None, s) for a, b, s in zip(start, stops, stride))]


def concatenation(params, inputs, shapes):
    return np.concatenate(inputs, concatenation_axis(inputs))


def reduce(params, inputs, shapes):
    axes = tuple(axes_of(params["axes"], inputs[0].ndim, "reduce"))
    return inputs[0].sum(axes, keepdims=params["keep_dims"])
