"""The double of TensorRT itself: what it computes, what it refuses, its plans, its device memory."""

import gc
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.tensorrt_double import TensorRTDoubleError, install, networks
from tests.tensorrt_double.harness import creation_flags, execute, run, weak_flags
from tests.tensorrt_double.numerics import round_to

#: Float32 outputs of float64 computations of a few terms near 1: half a unit in the last place, with room for sums.
TOLERANCE = 1e-6


@pytest.fixture
def double(monkeypatch):
    """TensorRT 11.4's double: strongly typed, all native layers."""
    return install("11.4.0", monkeypatch)


def new_network(trt, flags=None):
    """A builder and an empty network."""
    builder = trt.Builder(trt.Logger())
    return builder, builder.create_network(creation_flags(trt) if flags is None else flags)


def build(trt, builder, network, *flags, profile=None):
    """The plan, with builder flags and one profile {input: (min, opt, max)}."""
    config = builder.create_builder_config()
    for flag in flags:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    if profile is not None:
        made = builder.create_optimization_profile()
        for name, shapes in profile.items():
            made.set_shape(name, *shapes)
        config.add_optimization_profile(made)
    return builder.build_serialized_network(network, config)


def constant(network, keep, array):
    """A constant whose array is kept in `keep`."""
    keep.append(np.array(array, order="C"))
    return network.add_constant(keep[-1].shape, keep[-1]).get_output(0)


# What layers compute. Each case writes one layer on float32 x [2, 3, 4], y [2, 3, 4], int32 ids [2, 3] (0 to 3), and
# gives what numpy says.


def _elementwise(op, expected):
    def write(trt, network, i, keep):
        return network.add_elementwise(i["x"], i["y"], getattr(trt.ElementWiseOperation, op))

    return write, expected


def _unary(op, expected):
    def write(trt, network, i, keep):
        return network.add_unary(i["x"], getattr(trt.UnaryOperation, op))

    return write, lambda x, y, ids: expected(x)


def _activation(op, expected):
    def write(trt, network, i, keep):
        return network.add_activation(i["x"], getattr(trt.ActivationType, op))

    return write, lambda x, y, ids: expected(x)


def _softmax(trt, network, i, keep):
    layer = network.add_softmax(i["x"])
    layer.axes = 1 << 2
    return layer


def _matrix_multiply(trt, network, i, keep):
    none, transpose = trt.MatrixOperation.NONE, trt.MatrixOperation.TRANSPOSE
    return network.add_matrix_multiply(i["x"], none, i["y"], transpose)


def _shuffle(trt, network, i, keep):
    layer = network.add_shuffle(i["x"])
    layer.first_transpose, layer.reshape_dims, layer.second_transpose = (1, 0, 2), (0, 2, 2, -1), (2, 0, 3, 1)
    return layer


def _normalization(trt, network, i, keep):
    scale = constant(network, keep, np.float32([[[1, 2, 3, 4]]]))
    bias = constant(network, keep, np.float32([[[4, 3, 2, 1]]]))
    layer = network.add_normalization(i["x"], scale, bias, 1 << 2)
    layer.epsilon = 1e-3
    return layer


def _expected_normalization(x, y, ids):
    scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-3)
    return scaled * [1, 2, 3, 4] + [4, 3, 2, 1]


def _gather(trt, network, i, keep):
    return network.add_gather(i["x"], i["ids"], 2)


def _slice(trt, network, i, keep):
    return network.add_slice(i["x"], (1, 0, 3), (1, 3, 2), (1, 1, -2))


def _concatenation(trt, network, i, keep):
    return network.add_concatenation([i["x"], i["y"], i["x"]])


def _reduce(trt, network, i, keep):
    return network.add_reduce(i["x"], trt.ReduceOperation.SUM, 1 << 1, False)


def _dense_by_convolution(trt, network, i, keep):
    pixels = network.add_shuffle(i["x"])
    pixels.reshape_dims = (2, 3, 4, 1, 1)
    keep += [np.arange(20, dtype=np.float32).reshape(5, 4), np.arange(5, dtype=np.float32)]
    return network.add_convolution_nd(pixels.get_output(0), 5, (1, 1), *keep[-2:])


def _expected_dense(x, y, ids):
    dense = x @ np.arange(20.0).reshape(5, 4).T + np.arange(5.0)
    return dense[..., None, None]


def _quantized(trt, network, i, keep):
    scale = constant(network, keep, np.float32(0.02))
    quantized = network.add_quantize(i["x"], scale, trt.int8).get_output(0)
    return network.add_dequantize(quantized, scale, trt.float32)


def _quantized_per_channel(trt, network, i, keep):
    scale = constant(network, keep, np.float32([0.01, 0.02, 0.5]))
    quantize = network.add_quantize(i["x"], scale, trt.int8)
    quantize.axis = 1
    dequantize = network.add_dequantize(quantize.get_output(0), scale, trt.float32)
    dequantize.axis = 1
    return dequantize


def _fp8(trt, network, i, keep):
    scale = constant(network, keep, np.float32(0.01))
    quantized = network.add_quantize(i["x"], scale, trt.fp8).get_output(0)
    return network.add_dequantize(quantized, scale, trt.float32)


def _expected_fp8(x, y, ids):
    step = float(np.float32(0.01))
    return round_to(x / step, "FP8") * step


def _bfloat16(trt, network, i, keep):
    """x · 1.375 in bfloat16, whose weights numpy has no type for: they come by pointer."""
    keep.append(np.array([0x3FB0], np.uint16))
    third = network.add_constant((1, 1, 1), trt.Weights(trt.bfloat16, keep[-1].ctypes.data, 1)).get_output(0)
    half = network.add_cast(i["x"], trt.bfloat16).get_output(0)
    product = network.add_elementwise(half, third, trt.ElementWiseOperation.PROD).get_output(0)
    return network.add_cast(product, trt.float32)


def _expected_bfloat16(x, y, ids):
    return round_to(round_to(x, "BF16") * 1.375, "BF16")


def _expected_quantized(scale):
    def expected(x, y, ids):
        step = np.asarray(scale, np.float32).astype(np.float64)
        return np.clip(np.rint(x / step), -128, 127) * step

    return expected


def _erf(x):
    return np.vectorize(math.erf)(x)


CASES = {
    "sum": _elementwise("SUM", lambda x, y, ids: x + y),
    "minimum": _elementwise("MIN", lambda x, y, ids: np.minimum(x, y)),
    "product": _elementwise("PROD", lambda x, y, ids: x * y),
    "difference": _elementwise("SUB", lambda x, y, ids: x - y),
    "less": _elementwise("LESS", lambda x, y, ids: x < y),
    "erf": _unary("ERF", _erf),
    "tanh": _activation("TANH", np.tanh),
    "gelu_erf": _activation("GELU_ERF", lambda x: x * (1 + _erf(x / np.sqrt(2))) / 2),
    "gelu_tanh": _activation("GELU_TANH", lambda x: x / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))),
    "softmax": (_softmax, lambda x, y, ids: np.exp(x) / np.exp(x).sum(-1, keepdims=True)),
    "matrix multiply": (_matrix_multiply, lambda x, y, ids: np.einsum("bik,bjk->bij", x, y)),
    "shuffle": (_shuffle, lambda x, y, ids: np.einsum("sbij->isjb", x.transpose(1, 0, 2).reshape(3, 2, 2, 2))),
    "normalization": (_normalization, _expected_normalization),
    "gather": (_gather, lambda x, y, ids: x[:, :, ids]),
    "slice": (_slice, lambda x, y, ids: x[1:, :, [3, 1]]),
    "concatenation": (_concatenation, lambda x, y, ids: np.concatenate([x, y, x])),
    "reduce": (_reduce, lambda x, y, ids: x.sum(1)),
    "dense by convolution": (_dense_by_convolution, _expected_dense),
    "int8": (_quantized, _expected_quantized(0.02)),
    "int8 per channel": (_quantized_per_channel, _expected_quantized([[[0.01], [0.02], [0.5]]])),
    "fp8": (_fp8, _expected_fp8),
    "bfloat16": (_bfloat16, _expected_bfloat16),
    "cast": (lambda trt, n, i, keep: n.add_cast(i["ids"], trt.float32), lambda x, y, ids: ids),
    "shape": (lambda trt, n, i, keep: n.add_shape(i["ids"]), lambda x, y, ids: np.array([2, 3])),
}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_layer_computes_what_numpy_does(case, dynamic, double, rng):
    write, expected = CASES[case]
    x, y = rng.uniform(-3, 3, (2, 2, 3, 4)).astype(np.float32)
    ids = rng.integers(0, 4, (2, 3)).astype(np.int32)
    feeds = {"x": x, "y": y, "ids": ids}
    axes = {"x": (0,), "y": (0,), "ids": (0,)} if dynamic and case != "dense by convolution" else None
    outputs = run(double, lambda *args: {"out": write(*args).get_output(0)}, feeds, axes)
    reference = expected(x.astype(np.float64), y.astype(np.float64), ids)
    assert outputs["out"].shape == reference.shape
    np.testing.assert_allclose(outputs["out"], reference, TOLERANCE, TOLERANCE)


@pytest.mark.parametrize("form", ["mask", "packed", "int8"])
def test_attention_layer(form, double, rng):
    """Against one sequence after another; only the rows of valid tokens are compared, for all that attend to them."""
    lengths, heads, size = rng.integers(1, 6, 3), 2, 4
    longest, tokens = int(lengths.max()), int(lengths.sum())
    padded = rng.standard_normal((3, 3, heads, longest, size)).astype(np.float32)
    valid = np.arange(longest) < lengths[:, None]
    feeds = dict(zip("qkv", padded))
    if form == "packed":
        feeds = {name: array.transpose(0, 2, 1, 3)[valid] for name, array in feeds.items()}
        feeds["lengths"] = np.r_[0, np.cumsum(lengths)].astype(np.int32)
    else:
        feeds["mask"] = valid[:, None, None, :]

    def write(trt, network, i, keep):
        softmax, none = trt.AttentionNormalizationOp.SOFTMAX, trt.CausalMaskKind.NONE
        layer = network.add_attention_v2(i["q"], i["k"], i["v"], softmax, none)
        layer.decomposable = True
        if form == "int8":
            layer.normalization_quantize_to_type = trt.int8
            layer.normalization_quantize_scale = constant(network, keep, np.float32(2**-7))
        if form != "packed":
            layer.mask = i["mask"]
        else:
            layer.query_form = layer.key_value_form = trt.AttentionIOForm.PACKED_NHD
            layer.query_lengths = layer.key_value_lengths = i["lengths"]
        return {"out": layer.get_output(0)}

    out = run(double, write, feeds)["out"]
    out = out if form == "packed" else out.transpose(0, 2, 1, 3)[valid]
    expected = []
    for query, key, value, length in zip(*padded.astype(np.float64), lengths):
        scores = np.exp(np.einsum("nqh,nkh->nqk", query[:, :length], key[:, :length]))
        probabilities = scores / scores.sum(-1, keepdims=True)
        if form == "int8":
            probabilities = np.minimum(np.rint(probabilities * 128), 127) / 128
        expected.append(np.einsum("nqk,nkh->qnh", probabilities, value[:, :length]))
    assert out.shape == (tokens, heads, size)
    np.testing.assert_allclose(out, np.concatenate(expected), TOLERANCE, TOLERANCE)


def test_shapes_made_in_the_network(double, rng):
    """As many of a constant's rows as an input has elements, from a place on that follows from its shape, too."""
    x, table = rng.standard_normal((2, 3)).astype(np.float32), rng.standard_normal((9, 4)).astype(np.float32)

    def write(trt, network, i, keep):
        shape = network.add_shape(i["x"]).get_output(0)
        rows, columns = (network.add_slice(shape, (k,), (1,), (1,)).get_output(0) for k in range(2))
        one, zero, width = (constant(network, keep, np.int64([n])) for n in (1, 0, 4))
        tokens = network.add_elementwise(rows, columns, trt.ElementWiseOperation.PROD).get_output(0)
        start = network.add_elementwise(columns, one, trt.ElementWiseOperation.SUB).get_output(0)
        layer = network.add_slice(constant(network, keep, table), (0, 0), (1, 4), (1, 1))
        layer.set_input(1, network.add_concatenation([start, zero]).get_output(0))
        layer.set_input(2, network.add_concatenation([tokens, width]).get_output(0))
        assert tuple(layer.get_output(0).shape) == (-1, 4)
        return {"out": layer.get_output(0)}

    np.testing.assert_array_equal(run(double, write, {"x": x}, {"x": (0, 1)})["out"], table[2:8])


def test_packed_attention_by_index_arithmetic(double, rng):
    """Unpadding around attention, in the network itself, against one sequence after another."""
    lengths, heads, size = rng.integers(1, 6, 4), 2, 4
    tokens = rng.standard_normal((lengths.sum(), 3, heads, size)).astype(np.float32)
    bounds = np.r_[0, np.cumsum(lengths)].astype(np.int32)
    feeds = {"tokens": tokens, "cu_seqlens": bounds, "max_seqlen": np.zeros(lengths.max(), np.int32)}
    trt = double.module
    builder, network = new_network(trt)
    keep = networks.packed_attention(trt, network, heads, size)
    least = {"tokens": (1, 3, heads, size), "cu_seqlens": (2,), "max_seqlen": (1,)}
    most = {"tokens": (20, 3, heads, size), "cu_seqlens": (5,), "max_seqlen": (5,)}
    profile = {name: (least[name], most[name], most[name]) for name in feeds}
    engine, messages = load(double, build(trt, builder, network, profile=profile))
    del keep
    out = execute(double, engine, feeds)["out"]
    for begin, end in zip(bounds, bounds[1:]):
        query, key, value = tokens[begin:end].astype(np.float64).transpose(1, 2, 0, 3)
        scores = np.exp(query @ key.swapaxes(1, 2) / np.sqrt(size))
        expected = (scores / scores.sum(-1, keepdims=True) @ value).swapaxes(0, 1)
        np.testing.assert_allclose(out[begin:end], expected, TOLERANCE, TOLERANCE)
    assert not messages


@pytest.mark.parametrize("version", ["8.6.1", "10.0.1"])
def test_versions_without_newer_layers_still_compute(version, monkeypatch, rng):
    double = install(version, monkeypatch)
    x, kernel = rng.standard_normal((2, 3, 4, 1, 1)), rng.standard_normal((5, 4))
    x, kernel = x.astype(np.float32), kernel.astype(np.float32)

    def write(trt, network, i, keep):
        return {"out": network.add_convolution_nd(i["x"], 5, (1, 1), kernel).get_output(0)}

    out = run(double, write, {"x": x})["out"]
    expected = np.einsum("oe,sbexy->sboxy", kernel.astype(np.float64), x)
    np.testing.assert_allclose(out, expected, TOLERANCE, TOLERANCE)


def test_rounding_to_types(rng):
    ties = 1 + np.arange(16) * 2.0**-8  # halves of bfloat16's steps
    values = np.r_[rng.standard_normal(1000) * 10.0 ** rng.integers(-6, 3, 1000), 0.0, -0.0, ties]
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(values).to(torch.float32)
    exact = tensor.numpy().astype(np.float64)
    for dtype, kind in (("HALF", torch.float16), ("BF16", torch.bfloat16), ("FP8", torch.float8_e4m3fn)):
        limited = np.clip(exact, -448, 448) if dtype == "FP8" else exact
        expected = torch.from_numpy(limited).to(torch.float32).to(kind).to(torch.float64).numpy()
        np.testing.assert_array_equal(round_to(limited, dtype), expected, dtype)


def test_a_strongly_typed_half_network_is_rounded(double, rng):
    """After each layer, not at the end alone."""
    x = rng.standard_normal(99).astype(np.float16)

    def write(trt, network, i, keep):
        third, product = constant(network, keep, np.float16([1 / 3])), i["x"]
        for _ in range(3):
            product = network.add_elementwise(product, third, trt.ElementWiseOperation.PROD).get_output(0)
        return {"out": product}

    third = np.float16(1 / 3)
    np.testing.assert_array_equal(run(double, write, {"x": x})["out"], x * third * third * third)


def test_floats_between_layers_in_half_where_that_is_asked_for(monkeypatch, rng):
    """Each layer's, before the next reads it; a weakly typed network has them in float64 otherwise."""
    double = install("8.6.1", monkeypatch)
    x = rng.standard_normal((3, 50)).astype(np.float32)

    def write(trt, network, inputs, keep):
        squares = network.add_elementwise(inputs["x"], inputs["x"], trt.ElementWiseOperation.PROD).get_output(0)
        return {"out": network.add_elementwise(squares, inputs["x"], trt.ElementWiseOperation.SUB).get_output(0)}

    exact = run(double, write, {"x": x}, flags=weak_flags(double.module))["out"]
    np.testing.assert_array_equal(exact, (np.float64(x) ** 2 - x).astype(np.float32))
    monkeypatch.setenv("TENSORRT_DOUBLE_FLOATS", "half")
    in_half = run(double, write, {"x": x}, flags=weak_flags(double.module))["out"]
    squares = (np.float64(x) ** 2).astype(np.float16).astype(np.float64)
    np.testing.assert_array_equal(in_half, (squares - x).astype(np.float16).astype(np.float32))


def test_shapes_follow_changes(double):
    """Those of the newest layer, of layers behind it, and of older layers that read it."""
    trt, keep = double.module, []
    _, network = new_network(trt)
    shuffle = network.add_shuffle(network.add_input("x", trt.float32, (3, 4)))
    assert tuple(shuffle.get_output(0).shape) == (3, 4)
    shuffle.reshape_dims = (2, 6)
    assert tuple(shuffle.get_output(0).shape) == (2, 6)
    behind = network.add_softmax(shuffle.get_output(0)).get_output(0)
    assert tuple(behind.shape) == (2, 6)
    shuffle.reshape_dims = (6, 2)
    assert tuple(behind.shape) == (6, 2)
    sizes, start = (constant(network, keep, np.int64(numbers)) for numbers in ([1, 1, 2], [1]))
    part = network.add_slice(behind, (0, 0), (1, 1), (1, 1))
    size = network.add_slice(sizes, (0,), (2,), (1,))
    part.set_input(2, size.get_output(0))
    assert tuple(part.get_output(0).shape) == (1, 1)
    size.set_input(1, start)
    assert tuple(part.get_output(0).shape) == (1, 2)


def test_a_network_that_changes_between_two_builds(double):
    """The second is refused for what it has become; only the profile's shapes tell."""
    trt, profile = double.module, {"x": ((3, 4), (3, 4), (3, 4))}
    builder, network, x = _network_with_x(trt)
    shuffle = network.add_shuffle(x)
    network.mark_output(shuffle.get_output(0))
    shuffle.reshape_dims = (-1, 6)
    build(trt, builder, network, profile=profile)
    shuffle.reshape_dims = (-1, 8)
    with pytest.raises(TensorRTDoubleError, match="can't reshape"):
        build(trt, builder, network, profile=profile)


# What it refuses. Each case is (version, what has to be in the message, a function that must fail).


def _network_with_x(trt):
    builder, network = new_network(trt)
    return builder, network, network.add_input("x", trt.float32, (-1, 4))


def refuse_mixed_types(trt):
    _, network, x = _network_with_x(trt)
    half = network.add_input("h", trt.float16, (-1, 4))
    return network.add_elementwise(x, half, trt.ElementWiseOperation.SUM).get_output(0).shape


def refuse_ranks(trt):
    _, network, x = _network_with_x(trt)
    row = network.add_input("r", trt.float32, (4,))
    return network.add_elementwise(x, row, trt.ElementWiseOperation.SUM).get_output(0).shape


def refuse_inner_dimensions(trt):
    _, network, x = _network_with_x(trt)
    other = network.add_input("o", trt.float32, (5, 3))
    none = trt.MatrixOperation.NONE
    return network.add_matrix_multiply(x, none, other, none).get_output(0).shape


def refuse_reshape(trt):
    _, network = new_network(trt)
    layer = network.add_shuffle(network.add_input("x", trt.float32, (3, 4)))
    layer.reshape_dims = (5, -1)
    return layer.get_output(0).shape


def refuse_weights_count(trt):
    _, network, _ = _network_with_x(trt)
    network.add_constant((3,), np.ones(4, np.float32))


def refuse_float64(trt):
    trt.Weights(np.ones(3))


def refuse_non_contiguous(trt):
    trt.Weights(np.ones((4, 3), np.float32).T)


def refuse_freed_weights(trt):
    builder, network, x = _network_with_x(trt)
    row = network.add_constant((1, 4), np.ones((1, 4), np.float32)).get_output(0)
    gc.collect()
    network.mark_output(network.add_elementwise(x, row, trt.ElementWiseOperation.SUM).get_output(0))
    build(trt, builder, network, profile={"x": ((1, 4), (2, 4), (2, 4))})


def refuse_changed_weights(trt):
    builder, network, x = _network_with_x(trt)
    array = np.ones((1, 4), np.float32)
    pointer = trt.Weights(trt.float32, array.ctypes.data, 4)
    row = network.add_constant((1, 4), pointer).get_output(0)
    array[:] = 2
    network.mark_output(network.add_elementwise(x, row, trt.ElementWiseOperation.SUM).get_output(0))
    build(trt, builder, network, profile={"x": ((1, 4), (2, 4), (2, 4))})


def refuse_no_output(trt):
    builder, network, _ = _network_with_x(trt)
    build(trt, builder, network, profile={"x": ((1, 4), (2, 4), (2, 4))})


def _identity_network(trt):
    builder, network, x = _network_with_x(trt)
    network.mark_output(network.add_shuffle(x).get_output(0))
    return builder, network


def refuse_no_profile(trt):
    build(trt, *_identity_network(trt))


def refuse_unset_input_in_profile(trt):
    build(trt, *_identity_network(trt), profile={})


def refuse_unknown_input_in_profile(trt):
    shapes = ((1, 4), (2, 4), (2, 4))
    build(trt, *_identity_network(trt), profile={"x": shapes, "z": shapes})


def refuse_profile_against_network(trt):
    build(trt, *_identity_network(trt), profile={"x": ((1, 5), (2, 5), (2, 5))})


def refuse_profile_order(trt):
    build(trt, *_identity_network(trt), profile={"x": ((3, 4), (2, 4), (2, 4))})


def refuse_profile_that_breaks_a_layer(trt):
    builder, network, x = _network_with_x(trt)
    other = network.add_input("y", trt.float32, (-1, 4))
    network.mark_output(network.add_elementwise(x, other, trt.ElementWiseOperation.SUM).get_output(0))
    build(trt, builder, network, profile={"x": ((1, 4), (2, 4), (3, 4)), "y": ((1, 4), (2, 4), (4, 4))})


def refuse_duplicate_input(trt):
    _, network, _ = _network_with_x(trt)
    network.add_input("x", trt.float32, (3,))


def refuse_duplicate_layer_name(trt):
    _, network, x = _network_with_x(trt)
    first, second = network.add_shuffle(x), network.add_shuffle(x)
    first.name = "same"
    second.name = "same"


def refuse_duplicate_tensor_name(trt):
    _, network, x = _network_with_x(trt)
    network.add_shuffle(x).get_output(0).name = "x"


def refuse_output_twice(trt):
    _, network, x = _network_with_x(trt)
    tensor = network.add_shuffle(x).get_output(0)
    network.mark_output(tensor)
    network.mark_output(tensor)


def refuse_wrong_output_index(trt):
    _, network, x = _network_with_x(trt)
    network.add_softmax(x).get_output(1)


def refuse_new_attribute(trt):
    _, network, x = _network_with_x(trt)
    network.add_concatenation([x, x]).axes = 1


def refuse_unknown_attribute(trt):
    trt.Builder(trt.Logger()).max_batch_size = 3


def refuse_float_for_int(trt):
    _, network, x = _network_with_x(trt)
    network.add_gather(x, x, 0.0)


def refuse_enum_for_int(trt):
    trt.Builder(trt.Logger()).create_network(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def refuse_shift_by_enum(trt):
    return 1 << trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED


def refuse_other_enum(trt):
    _, network, x = _network_with_x(trt)
    network.add_elementwise(x, x, trt.UnaryOperation.ABS)


def refuse_none_tensor(trt):
    _, network, _ = _network_with_x(trt)
    network.add_softmax(None)


def refuse_too_many_arguments(trt):
    _, network, x = _network_with_x(trt)
    network.add_softmax(x, 2)


def refuse_constructor(trt):
    trt.INetworkDefinition()


def refuse_gather_of_floats(trt):
    _, network, x = _network_with_x(trt)
    return network.add_gather(x, x, 0).get_output(0).shape


def refuse_slice_beyond_the_end(trt):
    _, network, x = _network_with_x(trt)
    return network.add_slice(x, (0, 2), (1, 3), (1, 1)).get_output(0).shape


def refuse_input_that_a_layer_does_not_take(trt):
    _, network, x = _network_with_x(trt)
    network.add_softmax(x).set_input(1, x)


def refuse_unplayed_operation(trt):
    _, network, x = _network_with_x(trt)
    return network.add_elementwise(x, x, trt.ElementWiseOperation.GREATER).get_output(0).shape


def refuse_convolution_of_other_type(trt):
    _, network = new_network(trt)
    pixels, kernel = network.add_input("p", trt.float32, (2, 4, 1, 1)), np.ones((3, 4), np.float16)
    return network.add_convolution_nd(pixels, 3, (1, 1), kernel).get_output(0).shape


def refuse_norm_of_other_type(trt):
    _, network, _ = _network_with_x(trt)
    half, scale = network.add_input("h", trt.float16, (2, 4)), np.ones((1, 4), np.float32)
    row = network.add_constant((1, 4), scale).get_output(0)
    return network.add_normalization_v2(half, row, row, 2).get_output(0).shape


def refuse_mask_and_packed(trt):
    _, network = new_network(trt)
    query = network.add_input("q", trt.float32, (5, 2, 4))
    layer = network.add_attention_v2(query, query, query, trt.AttentionNormalizationOp.SOFTMAX, trt.CausalMaskKind.NONE)
    layer.query_form = layer.key_value_form = trt.AttentionIOForm.PACKED_NHD
    return network.get_layer(0).get_output(0).shape


def refuse_missing_quantize_type(trt):
    _, network, x = _network_with_x(trt)
    network.add_quantize(x, x)


def refuse_variable_scale(trt):
    _, network, x = _network_with_x(trt)
    return network.add_quantize(x, network.add_input("s", trt.float32, ()), trt.int8).get_output(0).shape


def refuse_quantization_without_flag(trt):
    builder, network = new_network(trt, weak_flags(trt))
    step = np.float32([0.1])
    scale = network.add_constant((1,), trt.Weights(step)).get_output(0)
    network.mark_output(network.add_quantize(network.add_input("x", trt.float32, (2, 4)), scale).get_output(0))
    build(trt, builder, network)


def refuse_probabilities_without_scale(trt):
    builder, network = new_network(trt)
    heads = network.add_input("heads", trt.float32, (1, 2, 3, 4))
    layer = network.add_attention(heads, heads, heads, trt.AttentionNormalizationOp.SOFTMAX, False)
    layer.normalization_quantize_to_type = trt.int8
    network.mark_output(layer.get_output(0))
    build(trt, builder, network)


def refuse_implicit_batch(trt):
    trt.Builder(trt.Logger()).create_network(0)


def refuse_unknown_network_flag(trt):
    trt.Builder(trt.Logger()).create_network(1 << 7)


def refuse_fp16_flag_when_strong(trt):
    builder, network = new_network(trt)
    network.mark_output(network.add_shuffle(network.add_input("x", trt.float32, (2, 4))).get_output(0))
    build(trt, builder, network, "FP16")


def refuse_half_without_flag(trt):
    builder, network = new_network(trt, weak_flags(trt))
    layer = network.add_shuffle(network.add_input("x", trt.float32, (2, 4)))
    layer.precision = trt.float16
    network.mark_output(layer.get_output(0))
    build(trt, builder, network)


def refuse_precision_when_strong(trt):
    _, network, x = _network_with_x(trt)
    network.add_shuffle(x).precision = trt.float16


def refuse_missing_flag_11(trt):
    return trt.BuilderFlag.FP16


def refuse_dynamic_range_11(trt):
    _, _, x = _network_with_x(trt)
    x.set_dynamic_range(-1.0, 1.0)


def refuse_asymmetric_range(trt):
    _, network = new_network(trt, weak_flags(trt))
    network.add_input("x", trt.float32, (2,)).set_dynamic_range(-1.0, 2.0)


def refuse_tensor_of_another_network(trt):
    _, network, _ = _network_with_x(trt)
    network.add_shuffle(_network_with_x(trt)[2])


REFUSALS = [
    ("11.4.0", TensorRTDoubleError, "types differ", refuse_mixed_types),
    ("11.4.0", TensorRTDoubleError, "ranks differ", refuse_ranks),
    ("11.4.0", TensorRTDoubleError, "matrix multiply", refuse_inner_dimensions),
    ("11.4.0", TensorRTDoubleError, "can't reshape", refuse_reshape),
    ("11.4.0", TensorRTDoubleError, "4 weights", refuse_weights_count),
    ("11.4.0", TypeError, "float64", refuse_float64),
    ("11.4.0", TypeError, "contiguous", refuse_non_contiguous),
    ("11.4.0", TensorRTDoubleError, "freed", refuse_freed_weights),
    ("11.4.0", TensorRTDoubleError, "changed", refuse_changed_weights),
    ("11.4.0", TensorRTDoubleError, "no output", refuse_no_output),
    ("11.4.0", TensorRTDoubleError, "no optimization profile", refuse_no_profile),
    ("11.4.0", TensorRTDoubleError, "does not set", refuse_unset_input_in_profile),
    ("11.4.0", TensorRTDoubleError, "names z", refuse_unknown_input_in_profile),
    ("11.4.0", TensorRTDoubleError, "does not fit", refuse_profile_against_network),
    ("11.4.0", ValueError, "inconsistent", refuse_profile_order),
    ("11.4.0", TensorRTDoubleError, "do not broadcast", refuse_profile_that_breaks_a_layer),
    ("11.4.0", TensorRTDoubleError, "input name 'x' is empty or in use", refuse_duplicate_input),
    ("11.4.0", TensorRTDoubleError, "in use", refuse_duplicate_layer_name),
    ("11.4.0", TensorRTDoubleError, "in use", refuse_duplicate_tensor_name),
    ("11.4.0", TensorRTDoubleError, "output already", refuse_output_twice),
    ("11.4.0", TensorRTDoubleError, "no output 1", refuse_wrong_output_index),
    ("11.4.0", AttributeError, "axes", refuse_new_attribute),
    ("11.4.0", AttributeError, "max_batch_size", refuse_unknown_attribute),
    ("11.4.0", TypeError, "axis", refuse_float_for_int),
    ("11.4.0", TypeError, "flags", refuse_enum_for_int),
    ("11.4.0", TypeError, "unsupported", refuse_shift_by_enum),
    ("11.4.0", TypeError, "op", refuse_other_enum),
    ("11.4.0", TypeError, "input", refuse_none_tensor),
    ("11.4.0", TypeError, "too many", refuse_too_many_arguments),
    ("11.4.0", TypeError, "constructor", refuse_constructor),
    ("11.4.0", TensorRTDoubleError, "indices", refuse_gather_of_floats),
    ("11.4.0", TensorRTDoubleError, "slice leaves axis 1", refuse_slice_beyond_the_end),
    ("11.4.0", TensorRTDoubleError, "takes no input 1", refuse_input_that_a_layer_does_not_take),
    ("11.4.0", TensorRTDoubleError, "GREATER is not played", refuse_unplayed_operation),
    ("11.4.0", TensorRTDoubleError, "kernel is HALF, input FLOAT", refuse_convolution_of_other_type),
    ("11.4.0", TensorRTDoubleError, "types differ", refuse_norm_of_other_type),
    ("11.4.0", TensorRTDoubleError, "lengths", refuse_mask_and_packed),
    ("11.4.0", TypeError, "output_type", refuse_missing_quantize_type),
    ("11.4.0", TensorRTDoubleError, "constant", refuse_variable_scale),
    ("8.6.1", TensorRTDoubleError, "INT8", refuse_quantization_without_flag),
    ("10.16.1", TensorRTDoubleError, "a type and a scale", refuse_probabilities_without_scale),
    ("8.6.1", TensorRTDoubleError, "EXPLICIT_BATCH", refuse_implicit_batch),
    ("10.0.1", TensorRTDoubleError, "flags", refuse_unknown_network_flag),
    ("10.16.1", TensorRTDoubleError, "FP16", refuse_fp16_flag_when_strong),
    ("10.16.1", TensorRTDoubleError, "FP16", refuse_half_without_flag),
    ("10.16.1", TensorRTDoubleError, "strongly typed", refuse_precision_when_strong),
    ("11.4.0", AttributeError, "FP16", refuse_missing_flag_11),
    ("11.4.0", AttributeError, "set_dynamic_range", refuse_dynamic_range_11),
    ("10.16.1", TensorRTDoubleError, "symmetric", refuse_asymmetric_range),
    ("11.4.0", TensorRTDoubleError, "another network", refuse_tensor_of_another_network),
]


@pytest.mark.parametrize(("version", "error", "message", "case"), REFUSALS, ids=lambda v: getattr(v, "__name__", None))
def test_what_tensorrt_would_refuse(version, error, message, case, monkeypatch):
    trt = install(version, monkeypatch).module
    with pytest.raises(error, match=message):
        case(trt)


def _run_gather(trt, network, i, keep):
    return network.add_gather(i["x"], i["ids"], 0)


def _run_quantize(trt, network, i, keep):
    return network.add_quantize(i["x"], constant(network, keep, np.float32(0)), trt.int8)


def _run_masked_attention(trt, network, i, keep):
    heads = network.add_shuffle(i["x"])
    heads.reshape_dims = (1, 1, 2, 4)
    layer = network.add_attention(*[heads.get_output(0)] * 3, trt.AttentionNormalizationOp.SOFTMAX, False)
    layer.mask = constant(network, keep, np.zeros((1, 1, 1, 2), bool))
    return layer


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_run_gather, "an index 0..2 is outside 2 rows"),
        (_run_quantize, "scale must be positive"),
        (_run_masked_attention, "no key to attend to"),
    ],
)
def test_values_that_a_gpu_would_misread(write, message, double):
    feeds = {"x": np.ones((2, 4), np.float32), "ids": np.int32([0, 2])}
    with pytest.raises(TensorRTDoubleError, match=message):
        run(double, lambda *args: {"out": write(*args).get_output(0)}, feeds)


ABSENT = [
    ("8.6.1", "IQuantizeLayer", "to_type"),
    ("8.6.1", "IPluginRegistry", "get_creator"),
    ("10.0.1", "INetworkDefinition", "add_normalization_v2"),
    ("10.0.1", "INetworkDefinition", "add_attention"),
    ("10.16.1", "INetworkDefinition", "add_attention_v2"),
    ("11.4.0", "IPluginRegistry", "get_plugin_creator"),
    ("11.4.0", "ILayer", "set_output_type"),
    ("11.4.0", "IBuilderConfig", "num_compute_capabilities"),
    ("rtx-1.7.1", "INetworkDefinition", "add_plugin_v3"),
]


@pytest.mark.parametrize(("version", "owner", "name"), ABSENT)
def test_a_version_lacks_what_it_lacks(version, owner, name, monkeypatch):
    trt = install(version, monkeypatch).module
    assert not hasattr(getattr(trt, owner), name)


def test_the_other_tensorrt_can_not_be_imported(monkeypatch):
    install("rtx-1.7.1", monkeypatch)
    import tensorrt_rtx

    assert tensorrt_rtx.__version__ == "1.7.1"
    with pytest.raises(ImportError):
        import tensorrt  # noqa: F401


# Plans and the runtime


@pytest.fixture
def doubling(double):
    """(double, plan) of y = x + x on [1 to 3, 4] and, in a second profile, [4 to 6, 4]."""
    trt = double.module
    builder, network, x = _network_with_x(trt)
    tensor = network.add_elementwise(x, x, trt.ElementWiseOperation.SUM).get_output(0)
    tensor.name = "y"
    network.mark_output(tensor)
    config = builder.create_builder_config()
    for least, most in ((1, 3), (4, 6)):
        profile = builder.create_optimization_profile()
        profile.set_shape("x", (least, 4), (most, 4), (most, 4))
        config.add_optimization_profile(profile)
    return double, bytes(builder.build_serialized_network(network, config))


def load(double, plan):
    """The engine of a plan, and the messages logged."""
    trt, messages = double.module, []

    class Listener(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)

        def log(self, severity, msg):
            messages.append((severity, msg))

    return trt.Runtime(Listener()).deserialize_cuda_engine(plan), messages


def test_a_plan_runs_in_both_profiles(doubling, rng):
    double, plan = doubling
    engine, _ = load(double, plan)
    assert engine.num_optimization_profiles == 2
    assert [tuple(shape) for shape in engine.get_tensor_profile_shape("x", 1)] == [(4, 4), (6, 4), (6, 4)]
    for profile, rows in ((0, 2), (1, 5)):
        x = rng.standard_normal((rows, 4)).astype(np.float32)
        np.testing.assert_array_equal(execute(double, engine, {"x": x}, profile)["y"], x + x)


@pytest.mark.parametrize("damage", ["empty", "short", "cut", "flipped", "other version", "other GPU", "noise"])
def test_a_plan_that_does_not_fit_is_refused_and_logged(damage, doubling, monkeypatch):
    double, plan = doubling
    if damage == "other version":
        double = install("10.16.1", monkeypatch)
    if damage == "other GPU":
        double.gpu.compute_capability = (9, 0)
    flipped = bytearray(plan)
    flipped[len(plan) // 2] ^= 1
    plan = {
        "empty": b"",
        "short": plan[:20],
        "cut": plan[:-1],
        "flipped": bytes(flipped),
        "noise": os.urandom(len(plan)),
    }.get(damage, plan)
    engine, messages = load(double, plan)
    assert engine is None
    assert len(messages) == 1 and messages[0][0] is double.module.ILogger.ERROR


def test_a_machine_without_a_gpu(monkeypatch):
    trt = install("10.16.1", monkeypatch, compute_capability=None).module
    import pycuda.driver as cuda

    with pytest.raises(cuda.Error):
        cuda.init()
    with pytest.raises(TypeError, match="nullptr"):
        trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR))
    trt = install("rtx-1.7.1", monkeypatch, compute_capability=None).module
    builder, network = _identity_network(trt)
    plan = build(trt, builder, network, profile={"x": ((1, 4), (2, 4), (2, 4))})
    assert trt.Runtime(trt.Logger(trt.Logger.INTERNAL_ERROR)).deserialize_cuda_engine(plan) is None


def _context(double, plan):
    import pycuda.driver as cuda

    cuda.init()
    cuda.Device(0).retain_primary_context().push()
    engine, messages = load(double, plan)
    return cuda, engine.create_execution_context(), cuda.Stream(), messages


def test_shapes_and_profiles_out_of_range_are_refused(doubling):
    cuda, context, stream, messages = _context(*doubling)
    assert not context.set_input_shape("x", (4, 4))
    assert not context.set_input_shape("x", (2, 5))
    assert not context.set_input_shape("w", (2, 4))
    assert not context.set_optimization_profile_async(2, stream.handle)
    assert context.set_optimization_profile_async(1, stream.handle)
    assert not context.set_input_shape("x", (3, 4)), "less than the profile's smallest"
    assert context.set_optimization_profile_async(0, stream.handle)
    assert not context.execute_async_v3(stream.handle)
    assert len(messages) == 6
    assert context.set_input_shape("x", (2, 4)) and tuple(context.get_tensor_shape("y")) == (2, 4)
    assert not context.execute_async_v3(stream.handle)
    assert context.set_optimization_profile_async(1, stream.handle)
    assert not context.execute_async_v3(stream.handle)
    reasons = [message.split(": ", 1)[1] for _, message in messages[5:]]
    assert reasons == [
        "no shape is set for x",
        "no address is set for x, y",
        "no shape is set for x",  # a new profile forgets the shapes
    ]


@pytest.mark.parametrize(("version", "shared"), [("8.6.1", False), ("10.0.1", True)])
def test_contexts_that_share_a_profile(version, shared, monkeypatch):
    """In 8.6 a profile serves one context at a time; a second one has to be given another first."""
    double = install(version, monkeypatch)
    trt = double.module
    builder, network = _identity_network(trt)
    plan = build(trt, builder, network, profile={"x": ((1, 4), (2, 4), (2, 4))})
    cuda, first, stream, _ = _context(double, plan)
    second = first._engine.create_execution_context()
    assert second.set_input_shape("x", (2, 4)) is shared
    assert second.set_optimization_profile_async(0, stream.handle) is shared
    del first


def test_tensorrt_rtx_engines_are_for_the_gpus_they_were_built_for(monkeypatch):
    double = install("rtx-1.7.1", monkeypatch, compute_capability=(8, 9))
    trt = double.module
    builder, network = _identity_network(trt)
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    profile.set_shape("x", (1, 4), (2, 4), (2, 4))
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = 2
    assert config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    assert config.set_compute_capability(trt.ComputeCapability.SM120, 1)
    plan = builder.build_serialized_network(network, config)
    for capability, fits in (((8, 6), True), ((12, 0), True), ((8, 9), False)):
        double.gpu.compute_capability = capability
        engine, messages = load(double, plan)
        assert (engine is not None) is fits and bool(messages) is not fits


def test_device_memory_is_checked(doubling):
    cuda, context, stream, _ = _context(*doubling)
    x, y, small = cuda.mem_alloc(32), cuda.mem_alloc(32), cuda.mem_alloc(31)
    context.set_input_shape("x", (2, 4))
    context.set_tensor_address("x", int(x))
    with pytest.raises(cuda.LogicError):
        context.set_tensor_address("y", 12345)
    context.set_tensor_address("y", int(small))
    with pytest.raises(cuda.LogicError, match="leave an allocation"):
        context.execute_async_v3(stream.handle)
    context.set_tensor_address("y", int(y))
    with pytest.raises(cuda.LogicError, match="leave an allocation"):
        cuda.memcpy_htod_async(x, np.zeros(9, np.float32), stream)
    with pytest.raises(cuda.LogicError, match="pageable"):
        cuda.memcpy_dtoh_async(np.zeros(8, np.float32), y, stream)
    assert context.execute_async_v3(stream.handle)
    x.free()
    with pytest.raises(cuda.LogicError, match="freed"):
        stream.synchronize()
    with pytest.raises(cuda.LogicError, match="freed"):
        x.free()
    with pytest.raises(TypeError):
        cuda.mem_alloc(np.int64(8))
    address = int(y)
    del y
    gc.collect()
    with pytest.raises(cuda.LogicError, match="freed"):
        context.set_tensor_address("y", address)


def test_work_is_done_when_it_is_waited_for(doubling):
    cuda, context, stream, _ = _context(*doubling)
    host, x, y = cuda.pagelocked_empty((2, 4), np.float32), cuda.mem_alloc(32), cuda.mem_alloc(32)
    result, begin, end = cuda.pagelocked_empty((2, 4), np.float32), cuda.Event(), cuda.Event()
    host[:] = 1
    context.set_input_shape("x", host.shape)
    context.set_tensor_address("x", int(x))
    context.set_tensor_address("y", int(y))
    cuda.memcpy_htod_async(x, host, stream)
    host[:] = 3  # pinned memory is read when the copy runs: changing it before that is a race, made visible here
    begin.record(stream)
    assert context.execute_async_v3(stream.handle)
    end.record(stream)
    cuda.memcpy_dtoh_async(result, y, stream)
    assert not (result == 6).any(), "nothing has run yet"
    with pytest.raises(cuda.LogicError, match="not ready"):
        begin.time_till(end)
    stream.synchronize()
    assert (result == 6).all() and begin.time_till(end) >= 0


def test_calls_need_a_context(double):
    import pycuda.driver as cuda

    with pytest.raises(cuda.LogicError, match="cuInit"):
        cuda.Device(0)
    cuda.init()
    context = cuda.Device(0).retain_primary_context()
    with pytest.raises(cuda.LogicError, match="context"):
        cuda.mem_alloc(4)
    context.push()
    cuda.mem_alloc(4)
    cuda.Context.pop()
    with pytest.raises(cuda.LogicError, match="context"):
        cuda.Stream()
    context.detach()
    with pytest.raises(cuda.LogicError, match="detached"):
        context.push()


def test_timing_caches(monkeypatch):
    trt = install("10.16.1", monkeypatch).module
    builder, network = _identity_network(trt)
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("x", (1, 4), (2, 4), (2, 4))
    config.add_optimization_profile(profile)
    cache = config.create_timing_cache(b"")
    assert config.set_timing_cache(cache, False)
    builder.build_serialized_network(network, config)
    data = bytes(config.get_timing_cache().serialize())
    assert data
    assert config.set_timing_cache(config.create_timing_cache(data), False)
    other = install("11.4.0", monkeypatch).module
    config = other.Builder(other.Logger(other.Logger.INTERNAL_ERROR)).create_builder_config()
    assert not config.set_timing_cache(config.create_timing_cache(data), False)


def test_the_plan_is_readable_as_a_buffer_only(doubling):
    double, _ = doubling
    builder, network = _identity_network(double.module)
    memory = build(double.module, builder, network, profile={"x": ((1, 4), (2, 4), (2, 4))})
    assert memoryview(memory).nbytes == len(bytes(memory))
    for misuse in (len, iter, lambda plan: plan[:3]):
        with pytest.raises(TypeError):
            misuse(memory)


def test_what_is_touched_is_recorded(doubling):
    calls = doubling[0].recorder.calls
    assert (2, ("op",)) not in calls["INetworkDefinition", "add_elementwise"]
    assert (3, ()) in calls["INetworkDefinition", "add_elementwise"]
    assert ("ITensor", "name=") in calls


def test_severities_are_ordered_and_nothing_else(double):
    severity = double.module.ILogger.Severity
    assert severity.ERROR < severity.INFO and severity.VERBOSE >= double.module.Logger.VERBOSE
    for compare in (lambda: severity.ERROR < 2, lambda: double.module.DataType.FLOAT < double.module.DataType.HALF):
        with pytest.raises(TypeError):
            compare()


def test_a_script_runs_under_the_double(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, tensorrt as trt, pycuda.driver as cuda\n"
        "cuda.init()\n"
        "print(trt.__version__, cuda.Device(0).compute_capability(), sys.argv[1:], __name__)\n"
    )
    environment = dict(os.environ, TENSORRT_DOUBLE_COMPUTE_CAPABILITY="8.9", PYTHONPATH=str(ROOT))
    command = [sys.executable, "-m", "tests.tensorrt_double", "10.0.1", str(script), "-o", "x"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert result.stdout == "10.0.1 (8, 9) ['-o', 'x'] __main__\n", result.stderr
