"""What each layer computes, in numpy: float64 for floats, int64 for integers, each output rounded to its type."""

import math

import numpy as np

from tests.tensorrt_double import implicit
from tests.tensorrt_double.numerics import FLOATS, INTEGERS, from_storage, round_to
from tests.tensorrt_double.shapes import UNKNOWN, axes_of, slice_dims, softmax_axes
from tests.tensorrt_double.versions import TensorRTDoubleError

#: Layers whose small integer outputs may be used as shapes.
_SHAPE_KINDS = ("constant", "identity", "cast", "gather", "elementwise", "shuffle", "shape", "slice", "concatenation")
_SHAPE_KINDS += ("reduce", "unsqueeze", "squeeze", "select", "unary")
_MAX_SHAPE_ELEMENTS = 64

_RUN = {}


def run(kind: str):
    """Registers the computation of one kind of layer: (params, inputs, output shapes) → outputs."""

    def register(function):
        _RUN[kind] = function
        return function

    return register


def execute(graph, feeds: dict[str, np.ndarray], watch=None) -> dict[str, np.ndarray]:
    """Runs the network: outputs by name, in the double's representation. `watch(tensor id, value)` sees every tensor.

    `feeds` are the inputs by name, already in that representation.
    """
    infos = graph.infer({name: value.shape for name, value in feeds.items()})
    values = {i: feeds[graph.tensors[i].name] for i in graph.inputs}
    for node in graph.ordered():
        inputs = implicit.inputs_of(graph, node, [None if i is None else values[i] for i in node.inputs])
        try:
            outputs = compute(node.kind, implicit.params_of(node), inputs, [infos[i].shape for i in node.outputs])
            outputs = [_stored(graph, node, infos[i], value) for i, value in zip(node.outputs, outputs, strict=True)]
            values |= zip(node.outputs, implicit.outputs_of(graph, node, outputs))
        except TensorRTDoubleError as error:
            raise TensorRTDoubleError(f"layer {node.name!r}: {error}") from None
        for output in node.outputs:
            if watch:
                watch(output, values[output])
    return {graph.tensors[i].name: values[i] for i in graph.outputs}


def compute(kind: str, params: dict, inputs: list, shapes: list) -> list[np.ndarray]:
    """One layer's outputs."""
    with np.errstate(all="ignore"):
        result = _RUN[kind](params, inputs, shapes)
    return result if isinstance(result, list) else [result]


def _stored(graph, node, info, value: np.ndarray) -> np.ndarray:
    """The value as its tensor holds it; what the builder may keep wider (weak typing) is not rounded."""
    if value.shape != info.shape:
        raise TensorRTDoubleError(f"computed {value.shape}, inferred {info.shape}")
    if info.dtype in FLOATS and not graph.strongly_typed and node.kind not in ("cast", "constant"):
        return np.asarray(value, np.float64)
    return round_to(value, info.dtype)


def shape_value(kind: str, params: dict, inputs: list, outputs: list) -> np.ndarray | None:
    """The value of a layer's one output as far as it follows from shapes alone; None for any other tensor."""
    (shape, dtype), *others = outputs
    small = -1 not in shape and math.prod(shape) <= _MAX_SHAPE_ELEMENTS
    if kind not in _SHAPE_KINDS or others or dtype not in (*INTEGERS, "BOOL") or not small:
        return None
    if kind == "shape":
        return np.array([UNKNOWN if size == -1 else size for size in inputs[0].shape], object)
    values = [None if info is None else info.value for info in inputs]
    if any(info is not None and value is None for info, value in zip(inputs, values)):
        return None
    if any(info is not None and info.dtype in FLOATS for info in inputs):
        return None
    if kind == "cast":
        return values[0]
    if kind in ("elementwise", "select", "unary", "reduce") and any(UNKNOWN in v.ravel().tolist() for v in values):
        return _partial(kind, params, values, shape)
    (result,) = compute(kind, params, [None if v is None else _plain(v) for v in values], [shape])
    return np.asarray(result, object) if result.dtype != object else result


def _plain(value: np.ndarray) -> np.ndarray:
    """An object array of known numbers as integers; one with unknowns as it is."""
    return value if UNKNOWN in value.ravel().tolist() else value.astype(np.int64)


def _partial(kind: str, params: dict, values: list, shape: tuple) -> np.ndarray:
    """Elementwise layers where some elements are unknown: those that depend on one stay unknown."""
    if kind != "elementwise":
        return np.full(shape, UNKNOWN, object)
    first, second = (np.broadcast_to(value, shape).ravel() for value in values)
    result = np.empty(len(first), object)
    for i, (a, b) in enumerate(zip(first, second)):
        known = a is not UNKNOWN and b is not UNKNOWN
        result[i] = int(_OPERATIONS[params["op"]](np.int64(a), np.int64(b))) if known else UNKNOWN
    return result.reshape(shape)


@run("constant")
def _constant(params, inputs, shapes):
    weights = params["weights"]
    array = weights if isinstance(weights, np.ndarray) else weights._read()
    return from_storage(array, params["dtype"]).reshape(shapes[0])


@run("identity")
def _identity(params, inputs, shapes):
    return inputs[0]


@run("cast")
def _cast(params, inputs, shapes):
    integer = params["to_type"] in (*INTEGERS, "UINT8")
    return np.trunc(inputs[0]) if integer and inputs[0].dtype == np.float64 else inputs[0]


@run("gather")
def _gather(params, inputs, shapes):
    data, indices = inputs
    axis = params["axis"]
    if any(index is UNKNOWN for index in indices.ravel()):
        return np.full(shapes[0], UNKNOWN, object)
    indices = indices.astype(np.int64)
    if indices.size and (indices.min() < 0 or indices.max() >= data.shape[axis]):
        raise TensorRTDoubleError(f"an index {indices.min()}..{indices.max()} is outside {data.shape[axis]} rows")
    if params["mode"] == "ELEMENT":
        return np.take_along_axis(data, indices, axis)
    if params["num_elementwise_dims"]:
        count = shapes[0][0]
        data = np.broadcast_to(data, (count, *data.shape[1:]))
        indices = np.broadcast_to(indices, (count, *indices.shape[1:]))
        return np.stack([np.take(d, i, axis - 1) for d, i in zip(data, indices)])
    return np.take(data, indices, axis)


def _divide(a, b):
    if a.dtype == np.float64:
        return a / b
    return np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))


_OPERATIONS = {
    "SUM": np.add,
    "PROD": np.multiply,
    "MAX": np.maximum,
    "MIN": np.minimum,
    "SUB": np.subtract,
    "DIV": _divide,
    "POW": np.power,
    "FLOOR_DIV": np.floor_divide,
    "AND": np.logical_and,
    "OR": np.logical_or,
    "XOR": np.logical_xor,
    "EQUAL": np.equal,
    "GREATER": np.greater,
    "LESS": np.less,
}


@run("elementwise")
def _elementwise(params, inputs, shapes):
    first, second = inputs
    integer_division = params["op"] in ("DIV", "FLOOR_DIV") and second.dtype != np.float64
    if integer_division and not second.all():
        raise TensorRTDoubleError("integer division by zero")
    return _OPERATIONS[params["op"]](first, second)


def _erf(x: np.ndarray) -> np.ndarray:
    return np.fromiter(map(math.erf, x.ravel().tolist()), np.float64, x.size).reshape(x.shape)


_UNARY = {
    "EXP": np.exp,
    "LOG": np.log,
    "SQRT": np.sqrt,
    "RECIP": np.reciprocal,
    "ABS": np.abs,
    "NEG": np.negative,
    "SIN": np.sin,
    "COS": np.cos,
    "TAN": np.tan,
    "SINH": np.sinh,
    "COSH": np.cosh,
    "ASIN": np.arcsin,
    "ACOS": np.arccos,
    "ATAN": np.arctan,
    "ASINH": np.arcsinh,
    "ACOSH": np.arccosh,
    "ATANH": np.arctanh,
    "CEIL": np.ceil,
    "FLOOR": np.floor,
    "ERF": _erf,
    "NOT": np.logical_not,
    "SIGN": np.sign,
    "ROUND": np.rint,
    "ISINF": np.isinf,
    "ISNAN": np.isnan,
}


@run("unary")
def _unary(params, inputs, shapes):
    return _UNARY[params["op"]](inputs[0]).reshape(shapes[0])


_ACTIVATIONS = {
    "RELU": lambda x: np.maximum(x, 0),
    "SIGMOID": lambda x: 1 / (1 + np.exp(-x)),
    "TANH": np.tanh,
    "GELU_ERF": lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
    "GELU_TANH": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}


@run("activation")
def _activation(params, inputs, shapes):
    if params["type"] not in _ACTIVATIONS:
        raise TensorRTDoubleError(f"activation {params['type']} is not played by the double")
    return np.asarray(_ACTIVATIONS[params["type"]](inputs[0])).reshape(shapes[0])


@run("matrix_multiply")
def _matrix_multiply(params, inputs, shapes):
    first, second = (
        np.swapaxes(value, -1, -2) if params[op] == "TRANSPOSE" else value for value, op in zip(inputs, ("op0", "op1"))
    )
    first = first[..., None, :] if params["op0"] == "VECTOR" else first
    second = second[..., None] if params["op1"] == "VECTOR" else second
    return np.matmul(first, second).reshape(shapes[0])


def softmax(scores: np.ndarray, axis: int) -> np.ndarray:
    """exp(x) / Σ exp(x) along an axis, computed without overflow."""
    weights = np.exp(scores - scores.max(axis, keepdims=True))
    return weights / weights.sum(axis, keepdims=True)


@run("softmax")
def _softmax(params, inputs, shapes):
    rank = inputs[0].ndim
    return softmax(inputs[0], axes_of(softmax_axes(params, rank), rank, "softmax")[0])


@run("shuffle")
def _shuffle(params, inputs, shapes):
    first, second = params["first_transpose"], params["second_transpose"]
    value = inputs[0] if first is None else inputs[0].transpose(first)
    if second is None:
        return value.reshape(shapes[0])
    between = [0] * len(second)
    for position, axis in enumerate(second):
        between[axis] = shapes[0][position]
    return value.reshape(between).transpose(second)


def _windows(data: np.ndarray, window: tuple) -> np.ndarray:
    spatial = tuple(range(data.ndim - len(window), data.ndim))
    return np.lib.stride_tricks.sliding_window_view(data, window, axis=spatial)


def _weights(params, what: str, shape) -> np.ndarray | float:
    weights = params[what]
    if params[f"{what}_count"] == 0:
        return 0.0
    array = weights if isinstance(weights, np.ndarray) else weights._read()
    return from_storage(array, params[f"{what}_type"]).reshape(shape)


@run("convolution")
def _convolution(params, inputs, shapes):
    window = params["kernel_shape"]
    data = inputs[0]
    channel = data.ndim - len(window) - 1
    maps = params["num_output_maps"]
    dynamic = len(inputs) > 1 and inputs[1] is not None
    kernel = inputs[1] if dynamic else _weights(params, "kernel", (maps, data.shape[channel], *window))
    # [..., C, spatial, window] · [M, C, window]; batch dimensions come first, maps take the channels' place.
    axes = [channel, *range(data.ndim, data.ndim + len(window))]
    product = np.tensordot(_windows(data, window), kernel, (axes, range(1, 2 + len(window))))
    product = np.moveaxis(product, -1, channel)
    return product + _weights(params, "bias", (maps, *[1] * len(window)))


@run("fully_connected")
def _fully_connected(params, inputs, shapes):
    outputs = params["num_output_maps"]
    flat = inputs[0].reshape(*inputs[0].shape[:-3], -1)
    product = flat @ _weights(params, "kernel", (outputs, -1)).T + _weights(params, "bias", (outputs,))
    return product.reshape(shapes[0])


@run("normalization")
def _normalization(params, inputs, shapes):
    data, scale, bias = inputs
    axes = tuple(axes_of(params["axes"], data.ndim, "normalization"))
    mean = data.mean(axes, keepdims=True)
    variance = ((data - mean) ** 2).mean(axes, keepdims=True)
    return (data - mean) / np.sqrt(variance + params["epsilon"]) * scale + bias


def attend(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, bias=0.0, normalise: bool = True, rounded=lambda x: x
) -> np.ndarray:
    """softmax(Q·Kᵀ + bias)·V over the last two axes; a row with nothing to attend to is an error.

    `rounded` is what quantization makes of the weights of V.
    """
    scores = query @ np.swapaxes(key, -1, -2) + bias
    if normalise and scores.size and np.isneginf(scores.max(-1)).any():
        raise TensorRTDoubleError("attention: a query has no key to attend to")
    return rounded(softmax(scores, -1) if normalise else scores) @ value


def sequences(lengths: np.ndarray, tokens: int) -> list[slice]:
    """The token ranges of cumulative lengths; they must start at 0, grow, and end at the number of tokens."""
    bounds = [int(bound) for bound in lengths]
    grows = all(a < b for a, b in zip(bounds, bounds[1:]))
    if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != tokens or not grows:
        raise TensorRTDoubleError(f"cumulative lengths {bounds} do not describe {tokens} tokens")
    return [slice(a, b) for a, b in zip(bounds, bounds[1:])]


@run("attention")
def _attention(params, inputs, shapes):
    query, key, value = inputs[:3]
    mask, query_lengths, key_lengths, scale = (inputs[3:] + [None] * 4)[:4]
    normalise = params["norm_op"] == "SOFTMAX"

    def rounded(weights):
        return weights if scale is None else quantized(weights, scale, params["quantize_to"]) * scale

    if params["causal"] != "NONE":
        raise TensorRTDoubleError("causal attention is not played by the double")
    if params["query_form"] == "PACKED_NHD":
        result = np.empty(shapes[0])
        queries, keys = sequences(query_lengths, len(query)), sequences(key_lengths, len(key))
        for ours, theirs in zip(queries, keys, strict=True):
            parts = (np.swapaxes(part, 0, 1) for part in (query[ours], key[theirs], value[theirs]))
            result[ours] = np.swapaxes(attend(*parts, normalise=normalise, rounded=rounded), 0, 1)
        return result
    bias = 0.0
    if mask is not None:
        bias = np.where(mask, 0.0, -np.inf) if mask.dtype == np.bool_ else mask
    if key_lengths is not None:
        valid = np.arange(key.shape[2]) < np.asarray(key_lengths)[:, None, None, None]
        bias = bias + np.where(valid, 0.0, -np.inf)
    return attend(query, key, value, bias, normalise, rounded)


def _spread(scale: np.ndarray, axis: int | None, rank: int) -> np.ndarray:
    if (scale <= 0).any():
        raise TensorRTDoubleError("a quantization scale must be positive")
    if scale.size == 1 or axis is None:
        return scale.reshape(())
    return scale.reshape([-1 if dimension == axis else 1 for dimension in range(rank)])


def quantized(values: np.ndarray, scale: np.ndarray, dtype: str) -> np.ndarray:
    """values / scale as the nearest value of INT8 or FP8, ties to even; what is beyond the type's range saturates."""
    scaled = values / scale
    return np.clip(np.rint(scaled), -128, 127) if dtype == "INT8" else round_to(scaled, dtype)


@run("quantize")
def _quantize(params, inputs, shapes):
    return quantized(inputs[0], _spread(inputs[1], params["axis"], inputs[0].ndim), params["to_type"])


@run("dequantize")
def _dequantize(params, inputs, shapes):
    return inputs[0] * _spread(inputs[1], params["axis"], inputs[0].ndim)


@run("shape")
def _shape(params, inputs, shapes):
    return np.array(inputs[0].shape, np.int64)


@run("slice")
def _slice(params, inputs, shapes):
    values = [None if value is None else _AsInfo(value) for value in inputs[1:4]]
    start, size, stride = slice_dims(params, [None, *values])
    stops = (a + n * s for a, n, s in zip(start, size, stride))
    return inputs[0][tuple(slice(a, b if b >= 0 else None, s) for a, b, s in zip(start, stops, stride))]


class _AsInfo:
    """A shape tensor at run time, as `slice_dims` reads it."""

    def __init__(self, value: np.ndarray):
        self.value, self.dtype, self.shape, self.rank = value, "INT64", value.shape, value.ndim


@run("concatenation")
def _concatenation(params, inputs, shapes):
    axis = max(0, inputs[0].ndim - 3) if params["axis"] is None else params["axis"]
    return np.concatenate(inputs, axis)


_REDUCTIONS = {"SUM": np.sum, "PROD": np.prod, "MAX": np.max, "MIN": np.min, "AVG": np.mean}


@run("reduce")
def _reduce(params, inputs, shapes):
    axes = tuple(axes_of(params["axes"], inputs[0].ndim, "reduce"))
    result = np.asarray(_REDUCTIONS[params["op"]](inputs[0], axis=axes, keepdims=params["keep_dims"]))
    return result if inputs[0].dtype == np.float64 else np.trunc(result)


@run("fill")
def _fill(params, inputs, shapes):
    alpha, beta = (list(inputs) + [None] * 3)[1:3]
    alpha = params["alpha"] if alpha is None else alpha
    beta = [params["beta"]] if beta is None else beta
    total = alpha + sum((step * index for step, index in zip(beta, np.indices(shapes[0]))), np.zeros(shapes[0]))
    return np.trunc(total) if params["to_type"] in INTEGERS else total


@run("select")
def _select(params, inputs, shapes):
    return np.where(*inputs)


@run("unsqueeze")
def _unsqueeze(params, inputs, shapes):
    return inputs[0].reshape(shapes[0])


run("squeeze")(_unsqueeze)


@run("topk")
def _topk(params, inputs, shapes):
    (axis,) = axes_of(params["axes"], inputs[0].ndim, "top-k")
    sign = -1 if params["op"] == "MAX" else 1
    order = np.argsort(sign * inputs[0], axis, kind="stable")
    indices = np.take(order, np.arange(params["k"]), axis)
    return [np.take_along_axis(inputs[0], indices, axis), indices]
