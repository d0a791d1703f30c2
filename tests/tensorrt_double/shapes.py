"""What the builder infers of each layer's outputs: shapes and types, as TensorRT's API reference states them.

A dimension of -1 is not known yet. Each function is a kind of layer's (layers.py): it takes a node's parameters, its
inputs' infos and the graph, and returns (shape, dtype) of every output, or raises TensorRTDoubleError.
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
    shape = []
    for a, b in zip(first, second):
        require(a == b or 1 in (a, b) or -1 in (a, b), f"{what}: {first} and {second} do not broadcast")
        shape.append(a if b == 1 else b if a == 1 else max(a, b))
    return tuple(shape)


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


def _same(first: int, second: int, what: str) -> None:
    require(-1 in (first, second) or first == second, f"{what} differ: {first} and {second}")


def _played(what: str, choice: str, known: str) -> str:
    """`choice`, which must be among `known`: the double plays no more of TensorRT than demoBERT uses."""
    require(choice in known.split(), f"{what} {choice} is not played by the double")
    return choice


def constant(params, inputs, graph):
    return [(params["shape"], params["weights"].dtype)]


def cast(params, inputs, graph):
    require_type(inputs[0], (*FLOATS, *INTEGERS, "BOOL", "UINT8"), "cast's input")
    require(params["to_type"] in (*FLOATS, *INTEGERS, "BOOL", "UINT8"), f"cast to {params['to_type']}")
    return [(inputs[0].shape, params["to_type"])]


def gather(params, inputs, graph):
    (data, indices), axis = inputs, params["axis"]
    require_type(indices, INTEGERS, "gather's indices")
    require(0 <= axis < data.rank, f"gather axis {axis} is outside {data.shape}")
    shape = data.shape[:axis] + indices.shape + data.shape[axis + 1 :]
    require(len(shape) <= 8, f"{shape} has more than 8 dimensions")
    return [(shape, data.dtype)]


def elementwise(params, inputs, graph):
    op = _played("elementwise", params["op"], "SUM PROD MIN SUB POW LESS")
    shape = broadcast(inputs[0].shape, inputs[1].shape, f"elementwise {op}")
    dtype = common_type(inputs, graph, f"elementwise {op}")
    allowed = FLOATS if op == "POW" else (*FLOATS, *INTEGERS, "INT8")
    require(dtype in allowed, f"elementwise {op} of {dtype}")
    return [(shape, "BOOL" if op == "LESS" else dtype)]


def unary(params, inputs, graph):
    op = _played("unary", params["op"], "ERF NOT")
    require_type(inputs[0], ("BOOL",) if op == "NOT" else FLOATS, f"unary {op}'s input")
    return [(inputs[0].shape, inputs[0].dtype)]


def activation(params, inputs, graph):
    kind = _played("activation", params["type"], "TANH SIGMOID GELU_ERF GELU_TANH")
    require_type(inputs[0], FLOATS, f"activation {kind}'s input")
    return [(inputs[0].shape, inputs[0].dtype)]


def matrix_multiply(params, inputs, graph):
    dtype = common_type(inputs, graph, "matrix multiply")
    require(dtype in FLOATS, f"matrix multiply of {dtype}")
    sides = []
    for info, op in zip(inputs, (params["op0"], params["op1"])):
        _played("matrix multiply", op, "NONE TRANSPOSE")
        require(info.rank >= 2, f"matrix multiply {op} of {info.shape}")
        sides.append(info.shape[-2:] if op == "NONE" else info.shape[-2:][::-1])
    (rows, inner), (other, columns) = sides
    require(-1 in (inner, other) or inner == other, f"matrix multiply: {inputs[0].shape} by {inputs[1].shape}")
    return [(broadcast(*(info.shape[:-2] for info in inputs), "matrix multiply") + (rows, columns), dtype)]


def softmax(params, inputs, graph):
    require_type(inputs[0], FLOATS, "softmax's input")
    softmax_axis(params, inputs[0].rank)
    return [(inputs[0].shape, inputs[0].dtype)]


def softmax_axis(params: dict, rank: int) -> int:
    """The one axis of the mask, by default the third from the end, as the API reference states."""
    axes = axes_of(params["axes"] or 1 << max(0, rank - 3), rank, "softmax")
    require(len(axes) == 1, "softmax takes one axis")
    return axes[0]


def shuffle(params, inputs, graph):
    shape = _permuted(inputs[0].shape, params["first_transpose"], "first_transpose")
    if len(inputs) > 1 and inputs[1] is not None:
        dims = _known_dims(inputs[1], "reshape")
        unknown = -1 in shape or -1 in dims
        require(unknown or math.prod(shape) == math.prod(dims), f"can't reshape {shape} to {dims}")
        shape = dims
    elif params["reshape_dims"] is not None:
        shape = _reshaped(shape, params["reshape_dims"])
    return [(_permuted(shape, params["second_transpose"], "second_transpose"), inputs[0].dtype)]


def _permuted(shape: tuple, order: tuple | None, what: str) -> tuple:
    if order is None:
        return shape
    require(sorted(order) == list(range(len(shape))), f"{what} {order} is no permutation of rank {len(shape)}")
    return tuple(shape[axis] for axis in order)


def _reshaped(shape: tuple, target: tuple) -> tuple:
    """Shuffle's reshape: 0 copies a dimension, one -1 takes what is left."""
    require(target.count(-1) <= 1 and all(size >= -1 for size in target), f"reshape to {target}")
    copied = [axis for axis, size in enumerate(target) if size == 0]
    require(all(axis < len(shape) for axis in copied), f"reshape {target}: nothing to copy from {shape}")
    result = [shape[axis] if size == 0 else size for axis, size in enumerate(target)]
    # Dimensions copied from the same place cancel, which resolves a -1 even while they are unknown.
    left = [size for axis, size in enumerate(shape) if axis not in copied]
    old, new = math.prod(left), math.prod(size for size in target if size > 0)
    if -1 not in left and -1 in target:
        require(new > 0 and old % new == 0, f"can't reshape {shape} to {target}")
        result[target.index(-1)] = old // new
    elif -1 not in left:
        require(old == new, f"can't reshape {shape} to {target}")
    return tuple(result)


def convolution(params, inputs, graph):
    data, maps, window = inputs[0], params["num_output_maps"], params["kernel_shape"]
    kernel, bias = params["kernel"], params["bias"]
    require_type(data, (*FLOATS, "INT8"), "convolution's input")
    require(window == (1, 1), f"convolution: the double plays kernels of 1 × 1, not {window}")
    require(data.rank >= 4, f"convolution of {data.shape} with kernel {window}")
    channels = data.shape[-3]
    require(channels > 0, f"convolution needs a known number of channels, not {data.shape}")
    expected = maps * channels
    require(kernel.count == expected, f"convolution kernel has {kernel.count} weights, {expected} needed")
    require(bias is None or bias.count in (0, maps), f"convolution bias has weights for {maps} maps alone")
    for what, given in (("kernel", kernel), ("bias", bias)):
        wrong = graph.strongly_typed and given is not None and given.count and given.dtype != data.dtype
        require(not wrong, f"convolution {what} is {given and given.dtype}, input {data.dtype}")
    return [(data.shape[:-3] + (maps,) + data.shape[-2:], data.dtype)]


def normalization(params, inputs, graph):
    data, scale, bias = inputs
    require_type(data, FLOATS, "normalization's input")
    axes_of(params["axesMask"], data.rank, "normalization")
    require(scale.shape == bias.shape, f"normalization: scale {scale.shape}, bias {bias.shape}")
    require(broadcast(data.shape, scale.shape, "normalization") == data.shape, f"scale {scale.shape} of {data.shape}")
    common_type(inputs, graph, "normalization")
    return [(data.shape, data.dtype)]


def attention(params, inputs, graph):
    query, key, value, mask, query_lengths, key_lengths, scale = inputs + [None] * (7 - len(inputs))
    _played("attention norm", params["norm_op"], "SOFTMAX")
    _played("causal attention", params["causal_kind"], "NONE")
    _quantized_probabilities(params["normalization_quantize_to_type"], scale)
    packed = params["query_form"] == "PACKED_NHD"
    require(packed == (params["key_value_form"] == "PACKED_NHD"), "query and key/value forms differ")
    dtype = common_type([query, key, value], graph, "attention")
    require(dtype in FLOATS, f"attention of {dtype}")
    rank = 3 if packed else 4
    require(all(i.rank == rank for i in (query, key, value)), f"attention's inputs must have rank {rank}")
    _same(query.shape[-1], key.shape[-1], "attention: head sizes of query and key")
    _same(key.shape[1], value.shape[1], "attention: heads of key and value")
    _same(query.shape[1], key.shape[1], "attention: heads of query and key")
    _same(key.shape[-3 if packed else -2], value.shape[-3 if packed else -2], "attention: lengths of key and value")
    if packed:
        require(mask is None, "packed attention takes lengths, not a mask")
        for lengths in (query_lengths, key_lengths):
            require(lengths is not None and lengths.rank == 1, "packed attention needs 1-D cumulative lengths")
            require_type(lengths, ("INT32",), "attention lengths")
    else:
        require(query_lengths is key_lengths is None, "the double takes lengths for packed attention only")
        _same(query.shape[0], key.shape[0], "attention: batches of query and key")
        scores = (*query.shape[:3], key.shape[2])
        _attention_mask(mask, scores)
    return [(query.shape[:-1] + value.shape[-1:], dtype)]


def _attention_mask(mask: Info | None, scores: tuple) -> None:
    if mask is not None:
        require_type(mask, ("BOOL",), "attention mask")
        require(broadcast(scores, mask.shape, "attention mask") == scores, f"mask {mask.shape} of scores {scores}")


def _quantized_probabilities(kind: str | None, scale: Info | None) -> None:
    # The two are set one after the other, and shapes may be asked for between; the builder asks for both.
    if kind is None or scale is None:
        return
    require(kind in QUANTIZED, f"attention's probabilities can't be quantized to {kind}")
    require(scale.constant and scale.shape in ((), (1,)), "the probabilities' scale must be one build-time constant")
    require_type(scale, FLOATS, "the probabilities' scale")


def quantize(params, inputs, graph):
    data, scale = inputs
    require_type(data, FLOATS, "quantize's input")
    _scale(params["axis"], data, scale)
    require(params["to_type"] in QUANTIZED, f"quantize to {params['to_type']}")
    return [(data.shape, params["to_type"])]


def dequantize(params, inputs, graph):
    data, scale = inputs
    require_type(data, QUANTIZED, "dequantize's input")
    _scale(params["axis"], data, scale)
    require(params["to_type"] in FLOATS, f"dequantize to {params['to_type']}")
    return [(data.shape, params["to_type"])]


def _scale(axis: int | None, data: Info, scale: Info) -> None:
    require(scale.constant, "the scale must be a build-time constant")
    require_type(scale, FLOATS, "the scale")
    if scale.shape in ((), (1,)):
        return
    require(axis is not None, f"a scale of {scale.shape} needs an axis")
    require(0 <= axis < data.rank, f"axis {axis} is outside {data.shape}")
    require(scale.shape == (data.shape[axis],), f"scale {scale.shape} on axis {axis} of {data.shape}")


def shape(params, inputs, graph):
    return [((inputs[0].rank,), graph.shape_type)]


def slice_(params, inputs, graph):
    data, (start, size, stride) = inputs[0], slice_dims(params, inputs)
    require(len(start) == len(size) == len(stride) == data.rank, f"slice of {data.shape}: {start}, {size}, {stride}")
    for axis in range(data.rank):
        if -1 not in (data.shape[axis], start[axis], size[axis]) and size[axis] > 0:
            last = start[axis] + (size[axis] - 1) * stride[axis]
            inside = 0 <= start[axis] < data.shape[axis] and 0 <= last < data.shape[axis]
            require(inside, f"slice leaves axis {axis} of {data.shape}: {start}, {size}, {stride}")
    require(all(s >= -1 for s in size), f"slice size {size}")
    return [(tuple(size), data.dtype)]


def slice_dims(params: dict, inputs: list) -> list:
    """start, size and stride of a slice, each from its tensor (inputs 1 to 3) or its static dimensions."""
    tensors = dict(zip(("start", "shape", "stride"), inputs[1:]))
    return [
        params[name] if tensors.get(name) is None else _known_dims(tensors[name], f"slice {name}")
        for name in ("start", "shape", "stride")
    ]


def _known_dims(info: Info, what: str) -> tuple:
    """The dimensions that a shape tensor holds, -1 where unknown."""
    require_type(info, INTEGERS, what)
    require(info.rank == 1 and info.shape[0] >= 0, f"{what} must be a 1-D shape tensor, not {info.shape}")
    require(info.value is not None, f"{what} is not a shape tensor: its values depend on the inputs' values")
    return tuple(-1 if value is UNKNOWN else int(value) for value in info.value)


def concatenation_axis(inputs: list) -> int:
    """The third axis from the end, or the first: the default, and the double plays no other."""
    return max(0, len(inputs[0].shape) - 3)


def concatenation(params, inputs, graph):
    require(bool(inputs), "nothing to concatenate")
    dtype, axis = common_type(inputs, graph, "concatenation"), concatenation_axis(inputs)
    require(len({info.rank for info in inputs}) == 1, f"concatenation of {[i.shape for i in inputs]}")
    found = []
    for dimension, sizes in enumerate(zip(*(info.shape for info in inputs))):
        if dimension == axis:
            found.append(-1 if -1 in sizes else sum(sizes))
        else:
            require(len({*sizes} - {-1}) <= 1, f"concatenation: dimensions {dimension} differ: {sizes}")
            found.append(max(sizes))
    return [(tuple(found), dtype)]


def reduce(params, inputs, graph):
    _played("reduce", params["op"], "SUM")
    require_type(inputs[0], (*FLOATS, *INTEGERS), "reduce's input")
    axes = axes_of(params["axes"], inputs[0].rank, "reduce")
    kept = [1 if axis in axes else size for axis, size in enumerate(inputs[0].shape)]
    left = [size for axis, size in enumerate(inputs[0].shape) if axis not in axes]
    return [(tuple(kept if params["keep_dims"] else left), inputs[0].dtype)]
