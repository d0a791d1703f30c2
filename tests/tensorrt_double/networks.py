"""Small networks that together use every layer the double plays, for the comparison with `tensorrt_rtx`."""

import numpy as np


class Constants:
    """Adds constants and keeps their arrays alive."""

    def __init__(self, network):
        self._network, self.arrays = network, []

    def __call__(self, array):
        self.arrays.append(np.array(array, order="C"))
        return self._network.add_constant(self.arrays[-1].shape, self.arrays[-1]).get_output(0)


def every_layer(trt, network, batch: int = -1, length: int = -1) -> list:
    """One of each layer, on inputs of static or dynamic (-1) sizes."""
    constant = Constants(network)
    inputs = {
        "x": network.add_input("x", trt.float32, (batch, length, 8)),
        "heads": network.add_input("heads", trt.float16, (batch, 2, length, 4)),
        "ids": network.add_input("ids", trt.int32, (batch, length)),
        "mask": network.add_input("mask", trt.bool, (batch, 1, 1, length)),
    }
    _pointwise(trt, network, inputs, constant)
    _contractions(trt, network, inputs, constant)
    _layouts(trt, network, inputs, constant)
    _shape_arithmetic(trt, network, inputs, constant)
    _attention(trt, network, inputs, constant)
    return constant.arrays


def _pointwise(trt, network, inputs, constant):
    x, ids = inputs["x"], inputs["ids"]
    row = constant(np.ones((1, 1, 8), np.float32))
    for op in ("SUM", "PROD", "SUB", "MIN", "POW", "LESS"):
        network.add_elementwise(x, row, getattr(trt.ElementWiseOperation, op))
    less = network.add_elementwise(ids, constant(np.int32([[3]])), trt.ElementWiseOperation.LESS).get_output(0)
    network.add_unary(less, trt.UnaryOperation.NOT)
    network.add_unary(x, trt.UnaryOperation.ERF)
    for kind in ("TANH", "SIGMOID", "GELU_ERF", "GELU_TANH"):
        network.add_activation(x, getattr(trt.ActivationType, kind))
    network.add_cast(ids, trt.float16)
    network.add_cast(x, trt.bfloat16)
    for output_type, back in ((trt.int8, trt.float32), (trt.fp8, trt.float16)):
        quantized = network.add_quantize(x, constant(np.float32(0.1)), output_type).get_output(0)
        network.add_dequantize(quantized, constant(np.float32(0.1)), back)
    per_channel = network.add_quantize(x, constant(np.full(8, 0.1, np.float32)), trt.int8)
    per_channel.axis = 2
    network.add_softmax(x).axes = 1 << 2


def _contractions(trt, network, inputs, constant):
    x, none, transpose = inputs["x"], trt.MatrixOperation.NONE, trt.MatrixOperation.TRANSPOSE
    network.add_matrix_multiply(x, none, constant(np.ones((1, 5, 8), np.float32)), transpose)
    network.add_matrix_multiply(x, none, x, transpose)
    scale, bias = (constant(np.ones((1, 1, 8), np.float32)) for _ in range(2))
    network.add_normalization_v2(x, scale, bias, 1 << 2)
    network.add_normalization(x, scale, bias, 1 << 2)
    network.add_reduce(x, trt.ReduceOperation.SUM, 1 << 2, True)
    network.add_reduce(x, trt.ReduceOperation.SUM, 1 << 1, False)
    pixels = network.add_shuffle(x)
    pixels.reshape_dims = (0, 0, 0, 1, 1)
    kernel, bias = np.ones((5, 8), np.float32), np.ones(5, np.float32)
    constant.arrays += [kernel, bias]
    network.add_convolution_nd(pixels.get_output(0), 5, (1, 1), kernel, bias)


def _layouts(trt, network, inputs, constant):
    x, ids, heads = inputs["x"], inputs["ids"], inputs["heads"]
    network.add_gather(constant(np.ones((30, 8), np.float32)), ids, 0)
    network.add_gather(x, constant(np.int32([0, 1])), 2)
    network.add_gather(x, constant(np.int32(0)), 1)
    split = network.add_shuffle(x)
    split.reshape_dims = (0, 0, 2, 4)
    split.second_transpose = (0, 2, 1, 3)
    merge = network.add_shuffle(heads)
    merge.first_transpose = (0, 2, 1, 3)
    merge.reshape_dims = (0, 0, -1)
    flat = network.add_shuffle(x)
    flat.reshape_dims = (-1, 8)
    network.add_slice(x, (0, 0, 0), (1, 1, 4), (1, 1, 2))
    for tensor in (x, ids, heads):
        network.add_concatenation([tensor, tensor])


def _shape_arithmetic(trt, network, inputs, constant):
    x, one = inputs["x"], constant(np.int64([1]))
    shape = network.add_shape(x).get_output(0)
    sizes = [network.add_slice(shape, (i,), (1,), (1,)).get_output(0) for i in range(3)]
    start = network.add_elementwise(sizes[1], one, trt.ElementWiseOperation.SUB).get_output(0)
    starts = network.add_concatenation([constant(np.int64([0])), start, constant(np.int64([0]))])
    ends = network.add_concatenation([sizes[0], one, sizes[2]])
    last = network.add_slice(x, (0, 0, 0), (1, 1, 1), (1, 1, 1))
    last.set_input(1, starts.get_output(0))
    last.set_input(2, ends.get_output(0))
    tokens = network.add_elementwise(sizes[0], sizes[1], trt.ElementWiseOperation.PROD).get_output(0)
    _slice(network, constant(np.arange(99, dtype=np.int32)), constant(np.int64([0])), tokens)
    network.add_cast(shape, trt.int32)
    network.add_gather(shape, constant(np.int32([2, 0])), 0)


def _attention(trt, network, inputs, constant):
    heads, norm = inputs["heads"], trt.AttentionNormalizationOp.SOFTMAX
    padded = network.add_attention_v2(heads, heads, heads, norm, trt.CausalMaskKind.NONE)
    padded.mask = inputs["mask"]
    padded.decomposable = True
    network.add_attention(heads, heads, heads, norm, False).decomposable = True
    tokens = network.add_shuffle(heads)
    tokens.first_transpose = (0, 2, 1, 3)
    tokens.reshape_dims = (-1, 2, 4)
    packed = network.add_attention_v2(*[tokens.get_output(0)] * 3, norm, trt.CausalMaskKind.NONE)
    cumulative = constant(np.int32([0, 3, 5]))
    packed.query_form = packed.key_value_form = trt.AttentionIOForm.PACKED_NHD
    packed.query_lengths = packed.key_value_lengths = cumulative
    for kind in (trt.int8, trt.fp8):
        rounded = network.add_attention_v2(heads, heads, heads, norm, trt.CausalMaskKind.NONE)
        rounded.decomposable = True
        rounded.normalization_quantize_to_type = kind
        rounded.normalization_quantize_scale = constant(np.float16(0.01))


def packed_attention(trt, network, heads: int = 2, size: int = 4) -> list:
    """Attention on packed tokens [T, 3, N, H], unpadded around it by index arithmetic in the network; output `out`.

    Inputs: tokens, cu_seqlens [B + 1], max_seqlen (its length is the longest sequence's).
    """
    constant, op = Constants(network), trt.ElementWiseOperation
    tokens = network.add_input("tokens", trt.float32, (-1, 3, heads, size))
    cumulative = network.add_input("cu_seqlens", trt.int32, (-1,))
    longest = network.add_input("max_seqlen", trt.int32, (-1,))
    total, bounds = (_length(network, tensor) for tensor in (tokens, cumulative))
    batch = network.add_elementwise(bounds, constant(np.int64([1])), op.SUB).get_output(0)
    starts = _slice(network, cumulative, constant(np.int64([0])), batch)
    ends = _slice(network, cumulative, constant(np.int64([1])), batch)
    columns = _shaped(network, _range(network, _length(network, longest), constant), (1, -1))
    start_rows = _shaped(network, starts, (-1, 1))
    last = network.add_elementwise(_cast(trt, network, total), constant(np.int32([1])), op.SUB).get_output(0)
    indices = network.add_elementwise(start_rows, columns, op.SUM).get_output(0)
    clipped = network.add_elementwise(indices, _shaped(network, last, (1, 1)), op.MIN).get_output(0)
    rows = network.add_gather(tokens, clipped, 0).get_output(0)  # [B, Smax, 3, N, H]
    parts = _shaped(network, rows, (0, 0, 0, 0, 0), (2, 0, 3, 1, 4))
    query, key, value = (network.add_gather(parts, constant(np.int32(i)), 0).get_output(0) for i in range(3))
    lengths = network.add_elementwise(ends, starts, op.SUB).get_output(0)
    mask = network.add_elementwise(columns, _shaped(network, lengths, (-1, 1)), op.LESS).get_output(0)
    scale = constant(np.full((1, 1, 1, 1), size**-0.5, np.float32))
    query = network.add_elementwise(query, scale, op.PROD).get_output(0)
    norm, none = trt.AttentionNormalizationOp.SOFTMAX, trt.CausalMaskKind.NONE
    attention = network.add_attention_v2(query, key, value, norm, none)
    attention.mask = _shaped(network, mask, (0, 1, 1, -1))
    attention.decomposable = True
    context = _shaped(network, attention.get_output(0), None, (0, 2, 1, 3))
    flat = _shaped(network, context, (-1, heads, size))
    index = _token_rows(trt, network, (total, starts, ends, _length(network, longest)), constant)
    output = network.add_gather(flat, index, 0).get_output(0)
    output.name = "out"
    network.mark_output(output)
    return constant.arrays


def _token_rows(trt, network, sizes, constant):
    """sequence · Smax + position of every token: its row among the padded ones, int32 [T]."""
    (total, starts, ends, longest), op = sizes, trt.ElementWiseOperation
    index = _range(network, total, constant)
    after = network.add_elementwise(_shaped(network, index, (-1, 1)), _shaped(network, ends, (1, -1)), op.LESS)
    passed = network.add_unary(after.get_output(0), trt.UnaryOperation.NOT).get_output(0)
    counts = network.add_cast(passed, trt.int32).get_output(0)
    sequence = network.add_reduce(counts, trt.ReduceOperation.SUM, 1 << 1, False).get_output(0)
    start = network.add_gather(starts, sequence, 0).get_output(0)
    position = network.add_elementwise(index, start, op.SUB).get_output(0)
    base = network.add_elementwise(sequence, _cast(trt, network, longest), op.PROD).get_output(0)
    return network.add_elementwise(base, position, op.SUM).get_output(0)


def _length(network, tensor):
    shape = network.add_shape(tensor).get_output(0)
    return network.add_slice(shape, (0,), (1,), (1,)).get_output(0)


def _cast(trt, network, tensor):
    return network.add_cast(tensor, trt.int32).get_output(0)


def _range(network, length, constant):
    """0, 1, 2…, int32, cut from a constant: 8.6 fills with floats only."""
    return _slice(network, constant(np.arange(99, dtype=np.int32)), constant(np.int64([0])), length)


def _slice(network, tensor, start, size):
    layer = network.add_slice(tensor, (0,), (1,), (1,))
    layer.set_input(1, start)
    layer.set_input(2, size)
    return layer.get_output(0)


def _shaped(network, tensor, dims, second=None):
    layer = network.add_shuffle(tensor)
    if dims is not None:
        layer.reshape_dims = dims
    if second is not None:
        layer.second_transpose = second
    return layer.get_output(0)
