"""What the builder infers of each layer's outputs: shapes and types, as TensorRT's API reference states them.

A dimension of -1 is not known yet. Each function takes a node's parameters and its inputs' infos and returns
(shape, dtype) for every output, or raises TensorRTDoubleError.
"""

import math
from typing import NamedTuple

import numpy as np

from tests.tensorrt_double.numerics import FLOATS, INTEGERS, QUANTIZED
from tests.tensorrt_double.versions import TensorRTDoubleError


class Info(NamedTuple):
    """What is known of a tensor. `value`: of a small integer tensor, UNKNOWN where it depends on the inputs."""

    shape: tuple[int, ...]
    dtype: str
    value: np.ndarray | None = None
    constant: bool = False

    @property
    def rank(self) -> int:
        """How many dimensions it has."""
        return len(self.shape)


class _Unknown:
    """An element of a shape tensor that is not known before the inputs' shapes are."""

    def __repr__(self):
        return "?"


UNKNOWN = _Unknown()

_RULES = {}


def rule(kind: str):
    """Registers the inference of one kind of layer."""

    def register(function):
        _RULES[kind] = function
        return function

    return register


def infer(kind: str, params: dict, inputs: list, graph) -> list[tuple[tuple[int, ...], str]]:
    """(shape, dtype) of each output of a layer. `graph` says whether types are strong and what a shape's type is."""
    return _RULES[kind](params, inputs, graph)


def require(condition: bool, message: str) -> None:
    """Raises TensorRTDoubleError with `message` unless `condition`."""
    if not condition:
        raise TensorRTDoubleError(message)


def require_type(info: Info, allowed, what: str) -> None:
    """Raises TensorRTDoubleError unless the tensor's type is among `allowed`."""
    require(info.dtype in allowed, f"{what} is {info.dtype}, must be {' or '.join(allowed)}")


def broadcast(first: tuple, second: tuple, what: str) -> tuple:
    """The shape of two tensors of one rank, where 1 stretches; TensorRT aligns no ranks by itself."""
    require(len(first) == len(second), f"{what}: ranks differ: {first} and {second}")
    return tuple(_broadcast_dimension(a, b, f"{what}: {first} and {second}") for a, b in zip(first, second))


def _broadcast_dimension(a: int, b: int, what: str) -> int:
    if a == b or b == 1:
        return a
    if a == 1:
        return b
    require(-1 in (a, b), f"{what} do not broadcast")
    return max(a, b)


def common_type(infos: list[Info], graph, what: str) -> str:
    """The type of tensors that have to agree. Weakly typed networks may mix float types; the builder converts."""
    types = {info.dtype for info in infos}
    if len(types) == 1:
        return types.pop()
    require(not graph.strongly_typed and types <= set(FLOATS), f"{what}: types differ: {', '.join(sorted(types))}")
    return "FLOAT"


def axes_of(mask: int, rank: int, what: str) -> list[int]:
    """Axes of a bit mask."""
    require(0 < mask < 1 << rank, f"{what}: axes mask {mask:#b} does not fit rank {rank}")
    return [axis for axis in range(rank) if mask >> axis & 1]


def known_dims(info: Info, what: str) -> tuple:
    """The dimensions that a shape tensor holds, -1 where unknown."""
    require_type(info, INTEGERS, what)
    require(info.rank == 1 and info.shape[0] >= 0, f"{what} must be a 1-D shape tensor, not {info.shape}")
    require(info.value is not None, f"{what} is not a shape tensor: its values depend on the inputs' values")
    return tuple(-1 if value is UNKNOWN else int(value) for value in info.value)


def _permuted(shape: tuple, order: tuple | None, what: str) -> tuple:
    if order is None:
        return shape
    require(sorted(order) == list(range(len(shape))), f"{what} {order} is no permutation of rank {len(shape)}")
    return tuple(shape[axis] for axis in order)


@rule("constant")
def _constant(params, inputs, graph):
    return [(params["shape"], params["dtype"])]


@rule("identity")
def _identity(params, inputs, graph):
    return [(inputs[0].shape, inputs[0].dtype)]


@rule("cast")
def _cast(params, inputs, graph):
    require_type(inputs[0], (*FLOATS, *INTEGERS, "BOOL", "UINT8"), "cast's input")
    require(params["to_type"] in (*FLOATS, *INTEGERS, "BOOL", "UINT8"), f"cast to {params['to_type']}")
    return [(inputs[0].shape, params["to_type"])]


@rule("gather")
def _gather(params, inputs, graph):
    data, indices = inputs
    axis, mode, elementwise = params["axis"], params["mode"], params["num_elementwise_dims"]
    require_type(indices, INTEGERS, "gather's indices")
    if mode == "DEFAULT":
        require(0 <= axis < data.rank, f"gather axis {axis} is outside {data.shape}")
        require(elementwise in (0, 1) and elementwise <= axis, f"{elementwise} elementwise dimensions, axis {axis}")
        lead = broadcast(data.shape[:elementwise], indices.shape[:elementwise], "gather's elementwise dimensions")
        shape = lead + data.shape[elementwise:axis] + indices.shape[elementwise:] + data.shape[axis + 1 :]
    elif mode == "ELEMENT":
        require(data.rank == indices.rank and 0 <= axis < data.rank, "gather ELEMENT needs equal ranks")
        shape = indices.shape
    else:
        raise TensorRTDoubleError(f"gather mode {mode} is not played by the double")
    require(len(shape) <= 8, f"{shape} has more than 8 dimensions")
    return [(shape, data.dtype)]


_LOGICAL = ("AND", "OR", "XOR")
_COMPARISONS = ("EQUAL", "GREATER", "LESS")


@rule("elementwise")
def _elementwise(params, inputs, graph):
    op = params["op"]
    shape = broadcast(inputs[0].shape, inputs[1].shape, f"elementwise {op}")
    dtype = common_type(inputs, graph, f"elementwise {op}")
    if op in _LOGICAL:
        require(dtype == "BOOL", f"elementwise {op} needs BOOL, not {dtype}")
    elif op in _COMPARISONS:
        require(dtype != "BOOL" or op == "EQUAL", f"elementwise {op} of BOOL")
        return [(shape, "BOOL")]
    else:
        allowed = FLOATS if op == "POW" else (*FLOATS, *INTEGERS, "INT8")
        require(dtype in allowed, f"elementwise {op} of {dtype}")
    return [(shape, dtype)]


@rule("unary")
def _unary(params, inputs, graph):
    op = params["op"]
    if op == "NOT":
        require_type(inputs[0], ("BOOL",), "unary NOT's input")
    elif op in ("ABS", "NEG", "SIGN"):
        require_type(inputs[0], (*FLOATS, *INTEGERS, "INT8"), f"unary {op}'s input")
    else:
        require_type(inputs[0], FLOATS, f"unary {op}'s input")
    return [(inputs[0].shape, "BOOL" if op in ("ISINF", "ISNAN") else inputs[0].dtype)]


@rule("activation")
def _activation(params, inputs, graph):
    allowed = (*FLOATS, "INT32", "INT64", "INT8") if params["type"] == "RELU" else FLOATS
    require_type(inputs[0], allowed, f"activation {params['type']}'s input")
    return [(inputs[0].shape, inputs[0].dtype)]


@rule("matrix_multiply")
def _matrix_multiply(params, inputs, graph):
    dtype = common_type(inputs, graph, "matrix multiply")
    require(dtype in FLOATS, f"matrix multiply of {dtype}")
    leads, kept, inner = [], [], []
    for info, op, left in zip(inputs, (params["op0"], params["op1"]), (True, False)):
        vector = op == "VECTOR"
        require(info.rank >= 1 + (not vector), f"matrix multiply {op} of {info.shape}")
        leads.append(info.shape[: -1 if vector else -2])
        if vector:
            inner.append(info.shape[-1])
            continue
        rows, columns = info.shape[-2:] if op == "NONE" else info.shape[-2:][::-1]
        kept.append(rows if left else columns)
        inner.append(columns if left else rows)
    require(-1 in inner or inner[0] == inner[1], f"matrix multiply: {inputs[0].shape} by {inputs[1].shape}")
    return [(broadcast(leads[0], leads[1], "matrix multiply") + tuple(kept), dtype)]


@rule("softmax")
def _softmax(params, inputs, graph):
    require_type(inputs[0], FLOATS, "softmax's input")
    rank = inputs[0].rank
    require(len(axes_of(softmax_axes(params, rank), rank, "softmax")) == 1, "softmax takes one axis")
    return [(inputs[0].shape, inputs[0].dtype)]


def softmax_axes(params: dict, rank: int) -> int:
    """The axes mask, by default the third axis from the end, as the API reference states."""
    return params["axes"] or 1 << max(0, rank - 3)


@rule("shuffle")
def _shuffle(params, inputs, graph):
    shape = _permuted(inputs[0].shape, params["first_transpose"], "first_transpose")
    if len(inputs) > 1 and inputs[1] is not None:
        target = known_dims(inputs[1], "reshape dimensions")
        unknown = inputs[1].value is not None and any(value is UNKNOWN for value in inputs[1].value)
        shape = target if unknown else _reshaped(shape, target, params["zero_is_placeholder"])
    elif params["reshape_dims"] is not None:
        shape = _reshaped(shape, params["reshape_dims"], params["zero_is_placeholder"])
    return [(_permuted(shape, params["second_transpose"], "second_transpose"), inputs[0].dtype)]


def _reshaped(shape: tuple, target: tuple, zero_is_placeholder: bool) -> tuple:
    """Shuffle's reshape: 0 copies a dimension, one -1 takes what is left."""
    result = list(target)
    if zero_is_placeholder:
        for axis in [axis for axis, size in enumerate(target) if size == 0]:
            require(axis < len(shape), f"reshape {target}: no dimension {axis} to copy from {shape}")
            result[axis] = shape[axis]
    copied = [axis for axis, size in enumerate(target) if size == 0 and zero_is_placeholder]
    require(target.count(-1) <= 1 and all(size >= -1 for size in target), f"reshape to {target}")
    # Dimensions copied from the same place cancel, which resolves a -1 even while they are unknown.
    old = math.prod(size for axis, size in enumerate(shape) if axis not in copied)
    new = math.prod(size for axis, size in enumerate(result) if axis not in copied and target[axis] != -1)
    unknown = any(size == -1 for axis, size in enumerate(shape) if axis not in copied)
    if -1 in target:
        if not unknown:
            require(new > 0 and old % new == 0, f"can't reshape {shape} to {target}")
            result[target.index(-1)] = old // new
    else:
        require(unknown or old == new, f"can't reshape {shape} to {target}")
    return tuple(result)


@rule("convolution")
def _convolution(params, inputs, graph):
    data, maps, window = inputs[0], params["num_output_maps"], params["kernel_shape"]
    require_type(data, (*FLOATS, "INT8"), "convolution's input")
    require(len(window) in (2, 3), f"convolution kernel {window} must have 2 or 3 dimensions")
    require(data.rank >= len(window) + 2, f"convolution of {data.shape} with kernel {window}")
    channel = data.rank - len(window) - 1
    channels = data.shape[channel]
    require(channels > 0, f"convolution needs a known number of channels, not {data.shape}")
    if len(inputs) > 1 and inputs[1] is not None:
        require(params["kernel_count"] == 0, "convolution: both kernel weights and a kernel tensor are set")
        require(inputs[1].shape == (maps, channels, *window), f"kernel tensor {inputs[1].shape}")
        count = maps * channels * math.prod(window)
    else:
        count = params["kernel_count"]
    expected = maps * channels * math.prod(window)
    require(count == expected, f"convolution kernel has {count} weights, {expected} needed for {data.shape}")
    require(params["bias_count"] in (0, maps), f"convolution bias has {params['bias_count']} weights, not {maps}")
    if graph.strongly_typed:
        for what in ("kernel", "bias"):
            given = params[f"{what}_type"]
            wrong = params[f"{what}_count"] and given != data.dtype
            require(not wrong, f"convolution {what} is {given}, input {data.dtype}")
    spatial = tuple(-1 if size == -1 else size - k + 1 for size, k in zip(data.shape[channel + 1 :], window))
    require(all(size == -1 or size > 0 for size in spatial), f"kernel {window} is larger than {data.shape}")
    return [(data.shape[:channel] + (maps,) + spatial, data.dtype)]


@rule("fully_connected")
def _fully_connected(params, inputs, graph):
    data = inputs[0]
    require(data.rank >= 4, f"fully connected needs three dimensions to contract, not {data.shape}")
    inner = math.prod(data.shape[-3:])
    require(-1 not in data.shape[-3:], f"fully connected of {data.shape}")
    require(params["kernel_count"] == inner * params["num_output_maps"], f"kernel has {params['kernel_count']} weights")
    require(params["bias_count"] in (0, params["num_output_maps"]), f"bias has {params['bias_count']} weights")
    return [(data.shape[:-3] + (params["num_output_maps"], 1, 1), data.dtype)]


@rule("normalization")
def _normalization(params, inputs, graph):
    data, scale, bias = inputs
    require_type(data, FLOATS, "normalization's input")
    axes_of(params["axes"], data.rank, "normalization")
    require(scale.shape == bias.shape, f"normalization: scale {scale.shape}, bias {bias.shape}")
    require(broadcast(data.shape, scale.shape, "normalization") == data.shape, f"scale {scale.shape} of {data.shape}")
    common_type(inputs, graph, "normalization")
    require(params["num_groups"] == 1, "normalization groups are not played by the double")
    return [(data.shape, data.dtype)]


@rule("attention")
def _attention(params, inputs, graph):
    query, key, value = inputs[:3]
    mask, query_lengths, key_lengths, scale = (inputs[3:] + [None] * 4)[:4]
    _quantized_probabilities(params, scale)
    packed = params["query_form"] == "PACKED_NHD"
    require(packed == (params["key_value_form"] == "PACKED_NHD"), "query and key/value forms differ")
    dtype = common_type([query, key, value], graph, "attention")
    require(dtype in FLOATS, f"attention of {dtype}")
    rank = 3 if packed else 4
    require(all(i.rank == rank for i in (query, key, value)), f"attention's inputs must have rank {rank}")
    require(packed or query_lengths is None, "query lengths are for packed queries")
    require(mask is None or params["causal"] == "NONE", "attention takes a mask or a causal kind, not both")
    heads = 1
    _same(query.shape[-1], key.shape[-1], "attention: head sizes of query and key")
    _same(key.shape[heads], value.shape[heads], "attention: heads of key and value")
    _same(query.shape[heads], key.shape[heads], "attention: heads of query and key")
    if packed:
        require(mask is None, "packed attention takes lengths, not a mask")
        for lengths in (query_lengths, key_lengths):
            require(lengths is not None and lengths.rank == 1, "packed attention needs 1-D cumulative lengths")
            require_type(lengths, ("INT32",), "attention lengths")
        _same(key.shape[0], value.shape[0], "attention: tokens of key and value")
        return [(query.shape[:2] + value.shape[-1:], dtype)]
    _same(query.shape[0], key.shape[0], "attention: batches of query and key")
    _same(key.shape[2], value.shape[2], "attention: lengths of key and value")
    if mask is not None:
        require_type(mask, ("BOOL", dtype), "attention mask")
        scores = (*query.shape[:3], key.shape[2])
        require(broadcast(scores, mask.shape, "attention mask") == scores, f"mask {mask.shape} of scores {scores}")
    if key_lengths is not None:
        require_type(key_lengths, ("INT32",), "key/value lengths")
        require(key_lengths.rank == 1, "key/value lengths must have rank 1")
    return [(query.shape[:3] + value.shape[-1:], dtype)]


def _quantized_probabilities(params: dict, scale: Info | None) -> None:
    kind = params["quantize_to"]
    # The two are set one after the other, and shapes may be asked for between; the builder asks for both.
    if kind is None or scale is None:
        return
    require(kind in QUANTIZED, f"attention's probabilities can't be quantized to {kind}")
    require(scale.constant and scale.shape in ((), (1,)), "the probabilities' scale must be one build-time constant")
    require_type(scale, FLOATS, "the probabilities' scale")


def _same(first: int, second: int, what: str) -> None:
    require(-1 in (first, second) or first == second, f"{what} differ: {first} and {second}")


def _scale(params, data, scale, graph) -> None:
    require(scale.constant, "the scale must be a build-time constant")
    require_type(scale, FLOATS, "the scale")
    if params["axis"] is None or scale.rank == 0 or scale.shape == (1,):
        require(scale.rank == 0 or scale.shape == (1,), f"a scale of {scale.shape} needs an axis")
        return
    require(0 <= params["axis"] < data.rank, f"axis {params['axis']} is outside {data.shape}")
    fits = scale.shape == (data.shape[params["axis"]],)
    require(fits, f"scale {scale.shape} on axis {params['axis']} of {data.shape}")


@rule("quantize")
def _quantize(params, inputs, graph):
    data, scale = inputs[:2]
    require_type(data, FLOATS, "quantize's input")
    _scale(params, data, scale, graph)
    require(params["to_type"] in QUANTIZED, f"quantize to {params['to_type']}")
    return [(data.shape, params["to_type"])]


@rule("dequantize")
def _dequantize(params, inputs, graph):
    data, scale = inputs[:2]
    require_type(data, QUANTIZED, "dequantize's input")
    _scale(params, data, scale, graph)
    require(params["to_type"] in FLOATS, f"dequantize to {params['to_type']}")
    return [(data.shape, params["to_type"])]


@rule("shape")
def _shape(params, inputs, graph):
    return [((inputs[0].rank,), graph.shape_type)]


def slice_dims(params: dict, inputs: list) -> list:
    """start, size and stride of a slice, each from its tensor (inputs 1 to 3) or its static dimensions."""
    extra = (list(inputs[1:4]) + [None] * 3)[:3]
    names = ("start", "shape", "stride")
    return [params[n] if e is None else known_dims(e, f"slice {n}") for n, e in zip(names, extra)]


@rule("slice")
def _slice(params, inputs, graph):
    data = inputs[0]
    require(params["axes"] is None, "slice axes are not played by the double")
    require(params["mode"] == "STRICT_BOUNDS", f"slice mode {params['mode']} is not played by the double")
    start, size, stride = slice_dims(params, inputs)
    require(len(start) == len(size) == len(stride) == data.rank, f"slice of {data.shape}: {start}, {size}, {stride}")
    for axis in range(data.rank):
        if -1 not in (data.shape[axis], start[axis], size[axis]) and size[axis] > 0:
            last = start[axis] + (size[axis] - 1) * stride[axis]
            inside = 0 <= start[axis] < data.shape[axis] and 0 <= last < data.shape[axis]
            require(inside, f"slice leaves axis {axis} of {data.shape}: {start}, {size}, {stride}")
    require(all(s >= -1 for s in size), f"slice size {size}")
    return [(tuple(size), data.dtype)]


@rule("concatenation")
def _concatenation(params, inputs, graph):
    dtype = common_type(inputs, graph, "concatenation")
    rank = inputs[0].rank
    axis = max(0, rank - 3) if params["axis"] is None else params["axis"]
    require(all(i.rank == rank for i in inputs), f"concatenation of {[i.shape for i in inputs]}")
    require(0 <= axis < rank, f"concatenation axis {axis} of {inputs[0].shape}")
    shape = list(inputs[0].shape)
    for info in inputs[1:]:
        for other in range(rank):
            if other != axis:
                _same(shape[other], info.shape[other], f"concatenation: dimensions {other}")
                shape[other] = max(shape[other], info.shape[other])
    sizes = [info.shape[axis] for info in inputs]
    shape[axis] = -1 if -1 in sizes else sum(sizes)
    return [(tuple(shape), dtype)]


@rule("reduce")
def _reduce(params, inputs, graph):
    require_type(inputs[0], (*FLOATS, *INTEGERS), "reduce's input")
    axes = axes_of(params["axes"], inputs[0].rank, "reduce")
    kept = [(1 if axis in axes else size) for axis, size in enumerate(inputs[0].shape)]
    shape = kept if params["keep_dims"] else [s for axis, s in enumerate(inputs[0].shape) if axis not in axes]
    return [(tuple(shape), inputs[0].dtype)]


@rule("fill")
def _fill(params, inputs, graph):
    require(params["operation"] == "LINSPACE", f"fill {params['operation']} is not played by the double")
    dims, alpha, beta = (list(inputs) + [None] * 3)[:3]
    shape = params["shape"] if dims is None else known_dims(dims, "fill dimensions")
    require(params["to_type"] in ("FLOAT", *INTEGERS), f"fill of {params['to_type']}")
    require((alpha is None) == (beta is None), "fill takes both alpha and beta as tensors, or neither")
    if alpha is None:
        require(len(shape) == 1, f"fill LINSPACE with static alpha and beta needs rank 1, not {shape}")
        return [(shape, params["to_type"])]
    require(alpha.rank == 0, f"fill: alpha must be a scalar, not {alpha.shape}")
    require(beta.rank == 1 and beta.shape == (len(shape),), f"fill: beta {beta.shape} for rank {len(shape)}")
    require(alpha.dtype == beta.dtype == params["to_type"], f"fill {params['to_type']}: {alpha.dtype}, {beta.dtype}")
    return [(shape, params["to_type"])]


@rule("select")
def _select(params, inputs, graph):
    condition, then, otherwise = inputs
    require_type(condition, ("BOOL",), "select's condition")
    dtype = common_type([then, otherwise], graph, "select")
    return [(broadcast(broadcast(condition.shape, then.shape, "select"), otherwise.shape, "select"), dtype)]


def _constant_axes(info: Info, rank: int, what: str) -> list[int]:
    require(info.constant and info.value is not None, f"{what}: axes must be a constant tensor")
    require_type(info, INTEGERS, f"{what}'s axes")
    require(info.rank <= 1, f"{what}: axes must have rank 1")
    axes = sorted(int(axis) + (rank if axis < 0 else 0) for axis in np.ravel(info.value))
    require(len(set(axes)) == len(axes) and all(0 <= a < rank for a in axes), f"{what}: axes {axes} of rank {rank}")
    return axes


@rule("unsqueeze")
def _unsqueeze(params, inputs, graph):
    rank = inputs[0].rank + math.prod(inputs[1].shape)
    axes = _constant_axes(inputs[1], rank, "unsqueeze")
    rest = iter(inputs[0].shape)
    return [(tuple(1 if axis in axes else next(rest) for axis in range(rank)), inputs[0].dtype)]


@rule("squeeze")
def _squeeze(params, inputs, graph):
    if len(inputs) == 1:
        return [(tuple(size for size in inputs[0].shape if size != 1), inputs[0].dtype)]
    axes = _constant_axes(inputs[1], inputs[0].rank, "squeeze")
    require(all(inputs[0].shape[axis] in (1, -1) for axis in axes), f"squeeze axes {axes} of {inputs[0].shape}")
    return [(tuple(s for axis, s in enumerate(inputs[0].shape) if axis not in axes), inputs[0].dtype)]


@rule("topk")
def _topk(params, inputs, graph):
    require_type(inputs[0], (*FLOATS, *INTEGERS), "top-k's input")
    axes = axes_of(params["axes"], inputs[0].rank, "top-k")
    require(len(axes) == 1, "top-k takes one axis")
    size = inputs[0].shape[axes[0]]
    require(params["k"] >= 1 and (size == -1 or params["k"] <= size), f"top {params['k']} of {size}")
    shape = inputs[0].shape[: axes[0]] + (params["k"],) + inputs[0].shape[axes[0] + 1 :]
    return [(shape, inputs[0].dtype), (shape, "INT32")]
