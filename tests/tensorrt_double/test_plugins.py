"""The plugins' meaning: one BERT layer written by hand with them, in every layout, against plain numpy."""

import sys

import numpy as np
import pytest

from tests.tensorrt_double import TensorRTDoubleError, install
from tests.tensorrt_double.harness import execute, run, weak_flags

pytestmark = pytest.mark.usefixtures("int8_norms_of_any_size")

HIDDEN, HEADS, VOCABULARY, POSITIONS = 8, 2, 11, 7
HEAD = HIDDEN // HEADS

#: Float32 outputs of float64 sums of some ten terms near 1.
TOLERANCE = 1e-5

EMBEDDINGS = "CustomEmbLayerNormPluginDynamic"
ATTENTION = "CustomQKVToContextPluginDynamic"
ADD_NORM = "CustomSkipLayerNormPluginDynamic"

#: variant: (versions as IPluginV2, versions as IPluginV3) of embeddings, attention, add + norm.
VERSIONS = {
    "padded": (("1", "1", "1"), ("6", "4", "5")),
    "packed": (("2", "2", "2"), ("4", "5", "6")),
    "interleaved": (("2", "3", "3"), ("4", "6", "7")),
    "megatron": (("3", "3", "4"), ("5", "6", "8")),
}


def make_weights(rng) -> dict:
    """Random weights of one layer, float32."""
    shapes = {
        "word": (VOCABULARY, HIDDEN),
        "token_type": (2, HIDDEN),
        "position": (POSITIONS, HIDDEN),
        "qkv_kernel": (3 * HIDDEN, HIDDEN),
        "qkv_bias": (3 * HIDDEN,),
        "kernel": (HIDDEN, HIDDEN),
        "bias": (HIDDEN,),
    }
    shapes |= dict.fromkeys(("gamma0", "beta0", "gamma1", "beta1"), (HIDDEN,))
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def normalise(x, gamma, beta):
    return (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True) * gamma + beta


#: The range of every real tensor in the tests of int8, and its step; the step of attention's probabilities.
RANGE = 9.0
STEP, PROBABILITY_STEP = np.float64(np.float32(RANGE) / np.float32(127)), np.float64(np.float32(1) / np.float32(127))


def int8(values, step=STEP):
    """Multiples -128 to 127 of `step`."""
    return np.clip(np.rint(values / step), -128, 127) * step


def as_they_are(values, step=None):
    return values


def reference(weights: dict, ids, segments, valid: int, pre_norm_residual: bool = False, **rounding):
    """(layer's output [T, E], sum before its norm) of one sequence, attending to its first `valid` tokens.

    `attention` and `norm` are `int8` where those plugins are, `dense` too: its inputs, its kernel by rows.
    """
    attention, norm, dense = (rounding.get(which, as_they_are) for which in ("attention", "norm", "dense"))
    probability_step = rounding.get("probability_step", PROBABILITY_STEP)

    def product(x, kernel):
        return dense(x) @ dense(kernel, np.abs(kernel).max(1, keepdims=True) / 127).T

    w = {name: array.astype(np.float64) for name, array in weights.items()}
    total = w["word"][ids] + w["token_type"][segments] + w["position"][: len(ids)]
    hidden = normalise(total, w["gamma0"], w["beta0"])
    query, key, value = np.split(attention(product(hidden, w["qkv_kernel"]) + w["qkv_bias"]), 3, -1)
    context = []
    for head in range(HEADS):
        part = slice(head * HEAD, (head + 1) * HEAD)
        scores = np.exp(query[:, part] @ key[:valid, part].T / np.sqrt(HEAD))
        weights = attention(scores / scores.sum(-1, keepdims=True), probability_step)
        context.append(weights @ value[:valid, part])
    branch = product(attention(np.concatenate(context, -1)), w["kernel"]) + w["bias"]
    total = norm(branch) + norm(total if pre_norm_residual else hidden)
    return norm(normalise(total, w["gamma1"], w["beta1"])), norm(total)


class Block:
    """Writes the layer with plugins into a network of TensorRT before 11."""

    def __init__(self, trt, variant: str, interface: int, weights: dict, **changes):
        self.trt, self.variant, self.interface = trt, variant, interface
        self.weights, self.changes, self.keep = weights, changes, []
        self.int8_dense = False
        self.versions = VERSIONS[variant][interface - 2]
        trt.init_libnvinfer_plugins(trt.Logger(), "")
        self.builder = trt.Builder(trt.Logger())
        self.network = self.builder.create_network(weak_flags(trt))

    def plugin(self, name: str, version: str, inputs: list, fields: dict):
        """A plugin layer; fields are numbers (INT32) or arrays (FLOAT32), changed as the test asks."""
        trt, made = self.trt, []
        fields = {key: value for key, value in (fields | self.changes.get(name, {})).items() if value is not None}
        for key, value in fields.items():
            integer = isinstance(value, int)
            array = np.array(value, np.int32 if integer else np.float32)
            kind = trt.PluginFieldType.INT32 if integer else trt.PluginFieldType.FLOAT32
            self.keep.append(array)
            made.append(trt.PluginField(key, array, kind))
        collection, registry = trt.PluginFieldCollection(made), trt.get_plugin_registry()
        if self.interface == 2:
            plugin = registry.get_plugin_creator(name, version, "").create_plugin(name, collection)
            return self.network.add_plugin_v2(inputs, plugin)
        creator = registry.get_creator(name, version, "")
        plugin = creator.create_plugin(name, collection, trt.TensorRTPhase.BUILD)
        return self.network.add_plugin_v3(inputs, [], plugin)

    def dense(self, tensor, kernel, bias):
        self.keep += [np.ascontiguousarray(kernel), np.ascontiguousarray(bias)]
        layer = self.network.add_convolution_nd(tensor, len(bias), (1, 1), self.keep[-2], self.keep[-1])
        if self.int8_dense:
            layer.precision = self.trt.int8
            layer.set_output_type(0, self.trt.float32)
        return layer.get_output(0)

    def transposed(self, tensor, order):
        layer = self.network.add_shuffle(tensor)
        layer.second_transpose = order
        return layer.get_output(0)

    def inputs(self, batch: int) -> list:
        int32, add = self.trt.int32, self.network.add_input
        if self.variant == "padded":
            made = [add(name, int32, (batch, -1)) for name in ("input_ids", "segment_ids", "input_mask")]
            return [self.transposed(tensor, (1, 0)) for tensor in made]
        return [add(name, int32, (-1,)) for name in ("input_ids", "segment_ids", "cu_seqlens", "max_seqlen")]

    def embeddings(self, inputs: list):
        w = self.weights
        fields = {
            "bert_embeddings_layernorm_beta": w["beta0"],
            "bert_embeddings_layernorm_gamma": w["gamma0"],
            "bert_embeddings_word_embeddings": w["word"],
            "bert_embeddings_token_type_embeddings": w["token_type"],
            "bert_embeddings_position_embeddings": w["position"],
            "output_fp16": 0,
        }
        if self.variant == "padded":
            fields["mha_type_id"] = 0
        return self.plugin(EMBEDDINGS, self.versions[0], inputs, fields)

    def attention(self, tensor, mask, inputs: list):
        kernel, bias = self.weights["qkv_kernel"], self.weights["qkv_bias"]
        fields = {"hidden_size": HIDDEN, "num_heads": HEADS}
        extra = []
        if self.interleaved:
            extra = inputs[2:]
        else:
            kernel = kernel.reshape(3, HEADS, HEAD, HIDDEN).transpose(1, 0, 2, 3).reshape(3 * HIDDEN, HIDDEN)
            bias = bias.reshape(3, HEADS, HEAD).transpose(1, 0, 2).reshape(-1)
            fields |= {"type_id": 0, "has_mask": 1}
            extra = [mask] if self.variant == "padded" else [mask, *inputs[2:]]
            if self.variant == "packed":
                fields["var_seqlen"] = 1
        projected = self.dense(tensor, kernel, bias)
        return self.plugin(ATTENTION, self.versions[1], [projected, *extra], fields).get_output(0)

    def add_norm(self, branch, residual):
        fields = {"beta": self.weights["beta1"], "gamma": self.weights["gamma1"]}
        if not self.interleaved:
            fields |= {"ld": HIDDEN, "type_id": 0}
        return self.plugin(ADD_NORM, self.versions[2], [branch, residual], fields)

    @property
    def interleaved(self) -> bool:
        return self.variant in ("interleaved", "megatron")

    def write(self, batch: int = -1) -> None:
        """The whole layer; outputs `out` and, for Megatron, `sum`."""
        inputs = self.inputs(batch)
        embeddings = self.embeddings(inputs)
        hidden, second = (embeddings.get_output(i) for i in range(2))
        residual = second if self.variant == "megatron" else hidden
        if self.interleaved:
            hidden, residual = (self.transposed(tensor, (2, 1, 0, 3)) for tensor in (hidden, residual))
        context = self.attention(hidden, second, inputs)
        branch = self.dense(context, self.weights["kernel"], self.weights["bias"])
        norm = self.add_norm(branch, residual)
        for index, name in enumerate(["out", "sum"][: norm.num_outputs]):
            norm.get_output(index).name = name
            self.network.mark_output(norm.get_output(index))

    def set_ranges(self) -> None:
        """A range for every real-valued tensor; numbers stay exact where nothing reads or writes int8."""
        for index in range(self.network.num_layers):
            layer = self.network.get_layer(index)
            for output in (layer.get_output(i) for i in range(layer.num_outputs)):
                if output.dtype == self.trt.float32:
                    output.set_dynamic_range(-RANGE, RANGE)

    def engine(self, feeds: dict, flags=None):
        """Built for exactly these inputs, with INT8 where the plugins are of no other type."""
        flags = flags if flags is not None else ("INT8",) if self.interleaved else ()
        trt = self.trt
        if "INT8" in flags:
            self.set_ranges()
        config, profile = self.builder.create_builder_config(), self.builder.create_optimization_profile()
        for flag in flags:
            config.set_flag(getattr(trt.BuilderFlag, flag))
        for name, array in feeds.items():
            profile.set_shape(name, *[array.shape] * 3)
        config.add_optimization_profile(profile)
        plan = self.builder.build_serialized_network(self.network, config)
        return trt.Runtime(trt.Logger()).deserialize_cuda_engine(plan)


def padded_feeds(rng, lengths, longest: int) -> dict:
    shape = (len(lengths), longest)
    return {
        "input_ids": rng.integers(0, VOCABULARY, shape).astype(np.int32),
        "segment_ids": rng.integers(0, 2, shape).astype(np.int32),
        "input_mask": (np.arange(longest) < np.array(lengths)[:, None]).astype(np.int32),
    }


def packed_feeds(rng, lengths) -> dict:
    tokens = int(sum(lengths))
    return {
        "input_ids": rng.integers(0, VOCABULARY, tokens).astype(np.int32),
        "segment_ids": rng.integers(0, 2, tokens).astype(np.int32),
        "cu_seqlens": np.r_[0, np.cumsum(lengths)].astype(np.int32),
        # Only its length counts.
        "max_seqlen": rng.integers(0, 99, max(lengths)).astype(np.int32),
    }


CHOICES = [(v, i) for v, i in (("8.6.1", 2), ("10.0.1", 2), ("10.16.1", 2), ("10.16.1", 3))]


@pytest.mark.parametrize(("version", "interface"), CHOICES)
def test_padded_layer(version, interface, monkeypatch, rng):
    """Every row, those of padding tokens included: only keys are masked."""
    double, weights = install(version, monkeypatch), make_weights(rng)
    lengths, longest = rng.integers(1, POSITIONS + 1, 3), POSITIONS
    feeds = padded_feeds(rng, lengths, longest)
    block = Block(double.module, "padded", interface, weights)
    block.write()
    out = execute(double, block.engine(feeds), feeds)["out"]
    assert out.shape == (longest, 3, HIDDEN, 1, 1)
    for row, length in enumerate(lengths):
        expected, _ = reference(weights, feeds["input_ids"][row], feeds["segment_ids"][row], length)
        np.testing.assert_allclose(out[:, row, :, 0, 0], expected, TOLERANCE, TOLERANCE)


@pytest.mark.parametrize("variant", ["packed", "interleaved", "megatron"])
@pytest.mark.parametrize(("version", "interface"), CHOICES)
def test_packed_layer(variant, version, interface, monkeypatch, rng):
    double, weights = install(version, monkeypatch), make_weights(rng)
    feeds = packed_feeds(rng, rng.integers(1, POSITIONS + 1, 4))
    block = Block(double.module, variant, interface, weights)
    block.write()
    outputs = execute(double, block.engine(feeds), feeds)
    bounds = feeds["cu_seqlens"]
    for begin, end in zip(bounds, bounds[1:]):
        ids, segments = feeds["input_ids"][begin:end], feeds["segment_ids"][begin:end]
        rounding = {} if variant == "packed" else {"attention": int8, "norm": int8}
        expected = reference(weights, ids, segments, end - begin, variant == "megatron", **rounding)
        for name, values in zip(outputs, expected, strict=False):
            out = outputs[name]
            rows = out[:, :, 0, 0] if variant == "packed" else out[0, :, :, 0].T
            np.testing.assert_allclose(rows[begin:end], values, TOLERANCE, TOLERANCE)
    assert list(outputs) == (["out", "sum"] if variant == "megatron" else ["out"])


def _run_padded(double, rng, changes=None, feeds=None):
    weights = make_weights(rng)
    feeds = feeds or padded_feeds(rng, [3, 2], 4)
    block = Block(double.module, "padded", 2, weights, **(changes or {}))
    block.write()
    return block, weights, feeds, lambda: execute(double, block.engine(feeds, ()), feeds)["out"]


INT8_CASES = [
    ({ATTENTION: {"type_id": 2}, EMBEDDINGS: {"mha_type_id": 2}}, False, {"attention": int8}),
    ({ADD_NORM: {"type_id": 2}}, False, {"norm": int8}),
    ({}, True, {"dense": int8}),
    (
        {ATTENTION: {"type_id": 2, "dq_probs": 0.05}, EMBEDDINGS: {"mha_type_id": 2}, ADD_NORM: {"type_id": 2}},
        True,
        {"attention": int8, "norm": int8, "dense": int8, "probability_step": np.float64(np.float32(0.05))},
    ),
]


@pytest.mark.parametrize(("changes", "int8_dense", "rounding"), INT8_CASES, ids=["attention", "norm", "dense", "all"])
@pytest.mark.parametrize("variant", ["padded", "packed"])
@pytest.mark.parametrize(("version", "interface"), CHOICES)
def test_int8_where_a_type_or_a_precision_says_so(
    changes, int8_dense, rounding, variant, version, interface, monkeypatch, rng
):
    """And nowhere else, though every tensor has a range."""
    double, weights = install(version, monkeypatch), make_weights(rng)
    changes = {name: fields for name, fields in changes.items() if variant == "padded" or name != EMBEDDINGS}
    feeds = padded_feeds(rng, [4], 4) if variant == "padded" else packed_feeds(rng, [4])
    block = Block(double.module, variant, interface, weights, **changes)
    block.int8_dense = int8_dense
    block.write()
    out = execute(double, block.engine(feeds, ("INT8",)), feeds)["out"].reshape(4, HIDDEN)
    ids, segments = (feeds[name].ravel() for name in ("input_ids", "segment_ids"))
    expected, _ = reference(weights, ids, segments, 4, **rounding)
    np.testing.assert_allclose(out, expected, TOLERANCE, TOLERANCE)
    exact, _ = reference(weights, ids, segments, 4)
    assert np.abs(exact - expected).max() > 100 * TOLERANCE


def test_int8_needs_the_flag_and_ranges(monkeypatch, rng):
    trt, feeds = install("8.6.1", monkeypatch).module, packed_feeds(rng, [3, 2])

    def block(variant, int8_dense, **changes):
        made = Block(trt, variant, 2, make_weights(rng), **changes)
        made.int8_dense = int8_dense
        made.write()
        made.set_ranges = lambda: None
        return made

    asking = [("interleaved", False, {}), ("packed", True, {}), ("packed", False, {ATTENTION: {"type_id": 2}})]
    for variant, int8_dense, changes in asking:
        with pytest.raises(TensorRTDoubleError, match="Missing scale and zero-point for tensor"):
            block(variant, int8_dense, **changes).engine(feeds, ("INT8",))
        with pytest.raises(TensorRTDoubleError, match="the builder flag INT8"):
            block(variant, int8_dense, **changes).engine(feeds, ())


@pytest.mark.parametrize("told", [False, True])
def test_what_an_int8_dense_layer_writes(told, monkeypatch, rng):
    """Int8, where it has a range and no other type is asked for."""
    double = install("8.6.1", monkeypatch)
    kernel, x = rng.uniform(-1, 1, (4, 5)).astype(np.float32), rng.uniform(-1, 1, (1, 5, 3, 1)).astype(np.float32)

    def write(trt, network, inputs, keep):
        keep += [kernel, np.zeros(4, np.float32)]
        inputs["x"].set_dynamic_range(-1, 1)
        layer = network.add_convolution_nd(inputs["x"], 4, (1, 1), *keep)
        layer.precision = trt.int8
        layer.get_output(0).set_dynamic_range(-0.5, 0.5)
        if told:
            layer.set_output_type(0, trt.float32)
        return {"out": network.add_shuffle(layer.get_output(0)).get_output(0)}

    out = run(double, write, {"x": x}, flags=weak_flags(double.module), builder_flags=["INT8"])["out"]
    step = np.abs(kernel.astype(np.float64)).max(1, keepdims=True) / 127
    rounded = int8(x.astype(np.float64), np.float64(np.float32(1) / np.float32(127)))
    exact = np.einsum("oc,bchw->bohw", int8(kernel.astype(np.float64), step), rounded)
    expected = exact if told else int8(exact, np.float64(np.float32(0.5) / np.float32(127)))
    np.testing.assert_allclose(out, expected, TOLERANCE, TOLERANCE)


def test_a_kernel_has_a_scale_for_each_channel(monkeypatch, rng):
    """Of channels of very different size, one of them all zeros, each keeps its 127 steps."""
    double, sizes = install("10.16.1", monkeypatch), np.float32([1e-3, 1, 0, 50])
    kernel = rng.uniform(-1, 1, (4, 5)).astype(np.float32) * sizes[:, None]
    x = rng.uniform(-2, 2, (1, 5, 3, 1)).astype(np.float32)

    def write(trt, network, inputs, keep):
        keep += [kernel, np.zeros(4, np.float32)]
        inputs["x"].set_dynamic_range(-1.5, 1.5)
        layer = network.add_convolution_nd(inputs["x"], 4, (1, 1), *keep)
        layer.precision = trt.int8
        return {"out": layer.get_output(0)}

    out = run(double, write, {"x": x}, flags=weak_flags(double.module), builder_flags=["INT8"])["out"]
    step = np.maximum(np.abs(kernel.astype(np.float64)).max(1, keepdims=True), 1e-9) / 127
    rounded = int8(x.astype(np.float64), np.float64(np.float32(1.5) / np.float32(127)))
    expected = np.einsum("oc,bchw->bohw", int8(kernel.astype(np.float64), step), rounded)
    np.testing.assert_allclose(out, expected, TOLERANCE)


def test_layers_that_the_double_does_not_compute_in_int8(monkeypatch, rng):
    double = install("10.16.1", monkeypatch)

    def write(trt, network, inputs, keep):
        inputs["x"].set_dynamic_range(-1.0, 1.0)
        layer = network.add_unary(inputs["x"], trt.UnaryOperation.ERF)
        layer.precision = trt.int8
        return {"out": layer.get_output(0)}

    with pytest.raises(TensorRTDoubleError, match="does not compute unary layers in int8"):
        run(double, write, {"x": np.ones(3, np.float32)}, flags=weak_flags(double.module), builder_flags=["INT8"])


@pytest.mark.parametrize("written, read", [(0, 2), (2, 0)])
def test_a_mask_is_read_as_it_was_written(written, read, monkeypatch, rng):
    changes = {EMBEDDINGS: {"mha_type_id": written}, ATTENTION: {"type_id": read}}
    block = Block(install("10.16.1", monkeypatch).module, "padded", 2, make_weights(rng), **changes)
    block.write()
    with pytest.raises(TensorRTDoubleError, match=f"type_id {read}, its mask is of {written}"):
        block.engine(padded_feeds(rng, [3, 2], 4), ("INT8",))


def test_a_tensor_told_to_be_int8_is_quantized_by_its_range(monkeypatch, rng):
    double = install("10.16.1", monkeypatch)
    x = rng.uniform(-3, 3, (4, 5)).astype(np.float32)

    def write(trt, network, inputs, keep):
        first = network.add_shuffle(inputs["x"])
        first.set_output_type(0, trt.int8)
        first.get_output(0).set_dynamic_range(-2.0, 2.0)
        assert first.get_output(0).dtype == trt.int8
        return {"out": network.add_shuffle(first.get_output(0)).get_output(0)}

    out = run(double, write, {"x": x}, flags=weak_flags(double.module), builder_flags=["INT8"])["out"]
    step = 2.0 / 127
    expected = np.clip(np.rint(x.astype(np.float64) / step), -128, 127) * step
    np.testing.assert_allclose(out, expected, TOLERANCE, TOLERANCE)


def test_head_order_matters(monkeypatch, rng):
    """The check above has teeth: a kernel left as [3, N, H] gives another answer from the padded plugin."""
    double = install("10.16.1", monkeypatch)
    weights = make_weights(rng)
    feeds = padded_feeds(rng, [4], 4)
    block = Block(double.module, "padded", 2, weights)
    order = np.arange(3 * HIDDEN).reshape(HEADS, 3, HEAD).transpose(1, 0, 2).ravel()
    block.weights = weights | {"qkv_kernel": weights["qkv_kernel"][order], "qkv_bias": weights["qkv_bias"][order]}
    block.write()
    out = execute(double, block.engine(feeds, ()), feeds)["out"][:, 0, :, 0, 0]
    expected, _ = reference(weights, feeds["input_ids"][0], feeds["segment_ids"][0], 4)
    assert np.abs(out - expected).max() > 1e-2


FIELD_MISTAKES = [
    (EMBEDDINGS, {"output_fp16": None}, "misses the field output_fp16"),
    (EMBEDDINGS, {"mha_type_id": None}, "misses the field mha_type_id"),
    (EMBEDDINGS, {"bert_embeddings_word_embeddings": None}, "misses the field bert_embeddings_word"),
    (EMBEDDINGS, {"word_embeddings": np.ones(8)}, "no field word_embeddings"),
    (EMBEDDINGS, {"bert_embeddings_layernorm_beta": 3}, "is INT32, must be FLOAT32"),
    (EMBEDDINGS, {"bert_embeddings_layernorm_gamma": np.ones(7)}, "different lengths"),
    (EMBEDDINGS, {"bert_embeddings_word_embeddings": np.ones(9)}, "no multiple"),
    (EMBEDDINGS, {"output_fp16": 2}, "must be one of"),
    (ATTENTION, {"num_heads": 3}, "3 heads"),
    (ATTENTION, {"has_mask": None}, "misses the field has_mask"),
    (ATTENTION, {"has_mask": 0}, "takes 1 inputs"),
    (ATTENTION, {"hidden_size": 16}, "must end in"),
    (ATTENTION, {"var_seqlen": 1}, "no field var_seqlen"),
    (ATTENTION, {"type_id": 1}, "FP16"),
    (ATTENTION, {"dq_probs": 1}, "must be FLOAT32"),
    (ADD_NORM, {"ld": 4}, "ld 4"),
    (ADD_NORM, {"ld": None}, "misses the field ld"),
    (ADD_NORM, {"type_id": 5}, "must be one of"),
    (ADD_NORM, {"bias": np.ones(3)}, "bias"),
]


@pytest.mark.parametrize(("plugin", "change", "message"), FIELD_MISTAKES)
def test_wrong_fields_are_refused(plugin, change, message, monkeypatch, rng):
    double = install("10.16.1", monkeypatch)
    with pytest.raises(TensorRTDoubleError, match=message):
        _run_padded(double, rng, {plugin: change})[3]()


def test_a_bias_of_add_norm_is_added(monkeypatch, rng):
    double, bias = install("10.16.1", monkeypatch), rng.standard_normal(HIDDEN).astype(np.float32)
    _, weights, feeds, compute = _run_padded(double, rng, {ADD_NORM: {"bias": bias}})
    with_bias = weights | {"bias": weights["bias"] + bias}
    expected, _ = reference(with_bias, feeds["input_ids"][0], feeds["segment_ids"][0], 3)
    np.testing.assert_allclose(compute()[:, 0, :, 0, 0], expected, TOLERANCE, TOLERANCE)


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("input_ids", [0, 1, 2, VOCABULARY], "outside the 11 word"),
        ("input_ids", [0, -1, 2, 3], "outside the 11 word"),
        ("segment_ids", [0, 1, 2, 0], "outside the 2 token_type"),
        ("input_mask", [1, 0, 1, 0], "leading tokens"),
        ("input_mask", [0, 0, 0, 0], "leading tokens"),
        ("input_mask", [2, 1, 0, 0], "leading tokens"),
    ],
)
def test_inputs_that_the_plugins_misread_are_refused(name, row, message, monkeypatch, rng):
    double, feeds = install("10.16.1", monkeypatch), padded_feeds(rng, [3, 2], 4)
    feeds[name][1] = row
    with pytest.raises(TensorRTDoubleError, match=message):
        _run_padded(double, rng, feeds=feeds)[3]()


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("cu_seqlens", [0, 3, 6], "do not describe 5 tokens"),
        ("cu_seqlens", [1, 3, 5], "do not describe 5 tokens"),
        ("cu_seqlens", [0, 6, 5], "do not describe 5 tokens"),
        ("max_seqlen", [0, 0], "longer than max_seqlen"),
    ],
)
def test_packed_inputs_that_contradict_each_other_are_refused(name, values, message, monkeypatch, rng):
    double, feeds = install("8.6.1", monkeypatch), packed_feeds(rng, [3, 2])
    feeds[name] = np.int32(values)
    block = Block(double.module, "packed", 2, make_weights(rng))
    block.write()
    with pytest.raises(TensorRTDoubleError, match=message):
        execute(double, block.engine(feeds), feeds)


def test_forgotten_transposes_change_the_answer(monkeypatch, rng):
    """Square inputs, so that nothing but the numbers can tell."""
    double, weights, feeds = install("10.16.1", monkeypatch), make_weights(rng), padded_feeds(rng, [4, 4, 4, 4], 4)
    answers = []
    for order in ((1, 0), (0, 1)):
        block = Block(double.module, "padded", 2, weights)
        block.transposed = lambda tensor, _, order=order: Block.transposed(block, tensor, order)
        block.write()
        answers.append(execute(double, block.engine(feeds), feeds)["out"])
    expected, _ = reference(weights, feeds["input_ids"][1], feeds["segment_ids"][1], 4)
    assert np.abs(answers[0][:, 1, :, 0, 0] - expected).max() < TOLERANCE * 10
    assert np.abs(answers[1][:, 1, :, 0, 0] - expected).max() > 1e-2


def test_registries(monkeypatch):
    trt = install("10.0.1", monkeypatch).module
    assert trt.get_plugin_registry().get_plugin_creator(ATTENTION, "1", "") is None, "not initialised yet"
    trt.init_libnvinfer_plugins(trt.Logger(), "")
    registry = trt.get_plugin_registry()
    assert type(registry.get_plugin_creator(ATTENTION, "1", "")) is type(registry.get_creator(ATTENTION, "1", ""))
    for version, namespace in (("4", ""), ("1", "bert")):
        assert registry.get_creator(ATTENTION, version, namespace) is None
    assert [registry.get_creator(ADD_NORM, str(n), "") is not None for n in range(6)] == [False, *[True] * 4, False]
    trt = install("10.16.1", monkeypatch).module
    trt.init_libnvinfer_plugins(trt.Logger(), "")
    registry = trt.get_plugin_registry()
    assert registry.get_plugin_creator(ATTENTION, "4", "") is None
    assert type(registry.get_creator(ATTENTION, "4", "")) is trt.IPluginCreatorV3One
    for version in ("11.4.0", "rtx-1.7.1"):
        trt = install(version, monkeypatch).module
        trt.init_libnvinfer_plugins(trt.Logger(), "")
        found = [trt.get_plugin_registry().get_creator(ATTENTION, str(n), "") for n in range(1, 7)]
        assert found == [None] * 6


def test_freed_fields_are_noticed(monkeypatch):
    trt = install("10.16.1", monkeypatch).module
    trt.init_libnvinfer_plugins(trt.Logger(), "")
    fields = [trt.PluginField("beta", np.ones(4, np.float32), trt.PluginFieldType.FLOAT32)]
    creator = trt.get_plugin_registry().get_plugin_creator(ADD_NORM, "3", "")
    with pytest.raises(TensorRTDoubleError, match="freed"):
        creator.create_plugin("x", trt.PluginFieldCollection(fields))


def test_the_plugin_library(monkeypatch):
    import ctypes

    install("8.6.1", monkeypatch)
    ctypes.CDLL("libnvinfer_plugin.so.8", mode=ctypes.RTLD_GLOBAL)
    with pytest.raises(OSError):
        ctypes.CDLL("libnvinfer_plugin.so.10", mode=ctypes.RTLD_GLOBAL)
    assert sys.modules["tensorrt"].__version__ == "8.6.1"
