"""Int8 in TensorRT's plugin networks, through the double: implicit quantization, held to fake quantization in numpy.

The double and the reference round at the same places, both in float64: they agree to float32's rounding of the logits,
but where a value lies so near to the middle of two steps that they round it differently. Their values differ by up to
1e-8 (GELU's constants are float32, the plugins have no epsilon), steps are some 0.03, so that one batch in some 1000
meets one, and is off by a step's worth, 3e-3 or so. Hence every engine runs three batches, and the median counts: a
mistake would show in all of them.
"""

import itertools
import pickle
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from helpers import quantization
from helpers.backends import load_engine
from helpers.backends.tensorrt import bert_plugins, plan_builder, plugin_layers
from helpers.batching import PackedBatch, PaddedBatch
from helpers.bert_config import BertConfig
from helpers.errors import DemoBertError, UsageError
from tests.checkpoints import bert_weights, megatron_state, pytorch_state, write_config, write_folder
from tests.conftest import BUNDLED, ROOT
from tests.reference_bert import (
    channels_of,
    fake_int8,
    fake_quantizer,
    random_inputs,
    random_weights,
    reference_logits,
    sigmoid_gelu,
    smoothed,
)
from tests.tensorrt_double import TensorRTDoubleError, api, bindings, install, plugins
from tests.test_tensorrt_engines import NETWORKS, TOLERANCE, pack_rows, write
from tests.test_tensorrt_packed import packed, sequences

pytestmark = [pytest.mark.sampled(0.4), pytest.mark.usefixtures("int8_norms_of_any_size")]

#: (release, plugin interface) that have the plugins.
PLUGINS = [(version, interface) for version, network, interface in NETWORKS if network == "plugin"]
#: Heads of 64, the only ones that padded plugins take below float32.
CONFIG = BertConfig(128, 2, 2, 40, 50, 16, layer_norm_eps=1e-12)
LENGTHS = [7, 12, 1]

PADDED = {"batch_sizes": (3,), "sequence_lengths": (12,)}
PACKED = PADDED | {"layout": "packed"}
INTERLEAVED = PACKED | {"interleaved": True}
MEGATRON = INTERLEAVED | {"megatron": True}
FORMS = {"padded": PADDED, "packed": PACKED, "interleaved": INTERLEAVED, "Megatron": MEGATRON}

#: What leaves no float of the encoder between attention, add + norm and the dense layers.
ALL_INT8 = {"force_int8_skipln": True, "force_int8_multihead": True}


@pytest.fixture
def engine_path(tmp_path):
    return tmp_path / "bert.engine"


@pytest.fixture
def built(monkeypatch):
    """What the double was last asked to build: `graph` and `facts`."""
    seen, check = SimpleNamespace(), api._check_build

    def note(module, network, *rest):
        seen.graph, seen.facts = network._graph, check(module, network, *rest)
        return seen.facts

    monkeypatch.setattr(api, "_check_build", note)
    return seen


class Case:
    """A random model, three batches in the layout of `options`, and a range for each place that quantization has.

    With `by_channel` those of the channels that a layer norm puts out, and of kernels, too.
    """

    def __init__(self, rng, options: dict, gelu: str = "erf", config: BertConfig = CONFIG, by_channel: bool = False):
        self.config, self.options, self.gelu = config, options, gelu
        self.megatron = options.get("megatron", False)
        self.tensors = random_weights(config, rng)
        if options.get("layout") == "packed":
            self.batches = [packed(config, rng, LENGTHS) for _ in range(3)]
        else:
            self.batches = [PaddedBatch(*random_inputs(config, rng, 3, 12)) for _ in range(3)]
        self.ranges = self.observed(rng)
        self.channels = self.observed_channels(rng) if by_channel else {}
        if by_channel:
            self.ranges |= {f"{dense}_input_channel_amax": largest for dense, largest in self.channels.items()}
            self.ranges |= self.of_kernels(rng)

    def observed(self, rng) -> dict:
        """The largest value at each place of the float network, times a factor: some ranges clip, none is another's."""
        largest = {}

        def note(name, values):
            if not name.endswith("_kernel_amax"):
                largest[name] = max(largest.get(name, 0.0), np.abs(values).max())
            return values

        for batch in self.batches:
            self.logits(batch, note)
        factors = {re.sub("query|key|value", "", name): rng.uniform(0.7, 1.2) for name in largest}
        return {name: np.float32(amax * factors[re.sub("query|key|value", "", name)]) for name, amax in largest.items()}

    def of_kernels(self, rng) -> dict:
        """By output channel, some of what is there clipped; of a few kernels none."""
        kernels = {name: kernel for name, kernel in self.tensors.items() if re.match(r"l\d+_.*_kernel$", name)}
        largest = {name: np.abs(kernel).max(1, keepdims=True) for name, kernel in kernels.items() if rng.random() < 0.8}
        return {f"{name}_amax": amax * rng.uniform(0.6, 1, amax.shape).astype("f4") for name, amax in largest.items()}

    def observed_channels(self, rng) -> dict:
        """The largest value of each channel in the first batch, times a factor; of a few it is far out, one has none."""
        seen = {}
        self.logits(self.batches[0], lambda name, values: seen.setdefault(name, values))
        found = channels_of(seen)
        for largest in found.values():
            largest *= rng.uniform(0.7, 1.2) * rng.choice([1, 1, 1, 5], len(largest))
            largest[rng.integers(len(largest))] = 0
        return found

    def logits(self, batch, quantize=lambda name, values: values, gelu=None) -> np.ndarray:
        """The reference's: [B, S, 2], or [T, 2] sequence by sequence."""
        common = self.config, self.tensors, gelu or self.gelu
        if isinstance(batch, PaddedBatch):
            inputs = batch.input_ids, batch.segment_ids, batch.input_mask
            return reference_logits(*common, *inputs, self.megatron, quantize)
        parts = [(batch.input_ids[None, part], batch.segment_ids[None, part]) for part in sequences(batch)]
        found = [reference_logits(*common, *part, np.ones_like(part[0]), self.megatron, quantize)[0] for part in parts]
        return np.concatenate(found)

    def expected(self, batch) -> np.ndarray:
        """The reference's logits with fake quantization where this form of the network is to be int8."""
        packed_ = self.options.get("layout") == "packed"
        attention = packed_ or self.options.get("force_int8_multihead", False)
        norms = packed_ or self.options.get("force_int8_skipln", False)

        def places(name):
            if "quantizer" not in name:
                return True  # dense layers: kernels, inputs
            return attention if "_attention_self_" in name else norms

        ranges = self.effective_ranges()
        kernels = {name: amax for name, amax in ranges.items() if name.endswith("_kernel_amax")}
        rounded = fake_quantizer("int8", {name: ranges[name] for name in ranges.keys() - kernels}, places)

        def quantize(name, values):
            if name in kernels:  # clipped; then the builder takes the largest value left in each channel
                values = np.clip(values, -kernels[name], kernels[name])
            return rounded(name, values)

        # An int8 layer norm has rounded what it puts out by one range already.
        quantize = quantize if norms else smoothed(quantize, self.tensors, self.channels, ranges)
        return self.logits(batch, quantize, self.rounded_gelu)

    def rounded_gelu(self, layer: int, x: np.ndarray) -> np.ndarray:
        """GELU by a sigmoid, of what is rounded by the range of its output, or by 3; not where that is under 1.5."""
        amax = float(self.effective_ranges()[f"l{layer}_output_dense_input_amax"])
        return sigmoid_gelu(fake_int8(x, max(3.0, amax)) if amax >= 1.5 else x, self.gelu)

    def effective_ranges(self) -> dict:
        """What the plugin network makes of the ranges, in words of docs/architecture.md's table."""
        found = dict(self.ranges)
        for i in range(self.config.num_hidden_layers):
            fused = [f"l{i}_attention_self_{which}_input_quantizer_amax" for which in ("qv_a", "qv_b", "av_b")]
            found |= dict.fromkeys(fused, max(found.get(name, 0) for name in fused))
            found.setdefault(f"l{i}_attention_self_av_a_input_quantizer_amax", np.float32(1))
            found.setdefault(f"l{i}_output_dense_input_amax", np.float32(10))
            inputs = [f"l{i}_attention_self_{which}_input_amax" for which in ("query", "key", "value")]
            found |= dict.fromkeys(inputs, max(found[name] for name in inputs))
            if not self.megatron:  # the residual is what the dense layer before it read
                found[f"l{i}_attention_output_add_residual_input_quantizer_amax"] = found[inputs[0]]
                feed_forward = f"l{i}_output_add_residual_input_quantizer_amax"
                found[feed_forward] = found[f"l{i}_intermediate_dense_input_amax"]
        return found

    def write(self, path, version, interface):
        weights = bert_weights(self.config, self.tensors, self.gelu, self.ranges, "model.onnx")
        options = self.options | {"quantize": "int8", "plugin_version": interface}
        return write(path, version, self.config, weights, self.gelu, **options)

    def worst(self, path, version="10.16.1", interface=None) -> float:
        """The largest difference of the engine's logits to the reference's, in the median batch."""
        self.write(path, version, interface)
        engine = load_engine(path, self.options.get("layout", "padded"))
        found = self.distance(engine.run)
        engine.close()
        return found

    def distance(self, run) -> float:
        """The largest difference of what `run(batch)` answers for tokens to `expected`, in the median batch."""
        tokens = [batch.input_mask == 1 if isinstance(batch, PaddedBatch) else ... for batch in self.batches]
        pairs = zip(self.batches, tokens, strict=True)
        return np.median([np.abs(run(batch) - self.expected(batch))[valid].max() for batch, valid in pairs])


# Numbers


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("version, interface", PLUGINS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
@pytest.mark.parametrize("multihead", [False, True], ids=["", "imh"])
@pytest.mark.parametrize("skipln", [False, True], ids=["", "iln"])
@pytest.mark.parametrize("by_channel", [False, True], ids=["", "channels"])
@pytest.mark.parametrize("hopper", [False, True], ids=["", "hopper"])
def test_padded(
    version, interface, precision, strict, multihead, skipln, by_channel, hopper, engine_path, built, monkeypatch, rng
):
    pack_rows(monkeypatch)
    install(version, monkeypatch, compute_capability=(9, 0) if hopper else (8, 6))
    forced = {"force_int8_skipln": skipln, "force_int8_multihead": multihead}
    gelu = str(rng.choice(["erf", "tanh"]))
    case = Case(rng, PADDED | forced | {"precision": precision, "strict": strict}, gelu, by_channel=by_channel)
    assert case.worst(engine_path, version, interface) < TOLERANCE["fp32"]
    # Not the float network's answer either.
    assert case.distance(case.logits) > 1e-3

    constrained = {"PREFER_PRECISION_CONSTRAINTS", "DIRECT_IO", "REJECT_EMPTY_ALGORITHMS"} if strict else set()
    assert set(built.facts["flags"]) - {"TF32"} == {"INT8"} | ({"FP16"} if precision == "fp16" else set()) | constrained
    half, float_type = (1, "HALF") if precision == "fp16" else (0, "FLOAT")
    plugins = {node.params["family"]: node.params for node in built.graph.nodes if node.kind == "plugin"}
    assert plugins["attention"]["type_id"] == (2 if multihead else half)
    packed_rows = hopper and precision == "fp16"
    assert plugins["embeddings"].get("mha_type_id") == (None if packed_rows else plugins["attention"]["type_id"])
    assert plugins["attention"].get("var_seqlen") == (1 if packed_rows else None)
    assert plugins["add_norm"]["type_id"] == (2 if skipln else half)
    assert plugins["embeddings"]["output_fp16"] == half
    assert built.graph.info(built.graph.outputs[0]).shape == (3, 12, 2, 1, 1)
    outputs = {node.name: built.graph.tensors[node.outputs[0]].forced_type for node in built.graph.nodes}
    assert outputs["l0_attention_output_dense"] == outputs["l1_output_dense"] == (None if skipln else float_type)
    assert outputs["l0_attention_self/query_key_value"] == (None if multihead else float_type)
    assert outputs["l0_intermediate_dense"] is None
    ranges = {tensor.name: tensor.dynamic_range for tensor in built.graph.tensors}
    shares = {name: amax for name, amax in ranges.items() if name.endswith("/input/shares")}
    evened = [f"l{i}_{dense}/input/shares" for i in range(2) for dense in ("attention_self", "intermediate_dense")]
    assert shares == (dict.fromkeys(evened, (-1, 1)) if by_channel and not skipln else {})
    # What is evened out first must not be rounded by one range.
    assert (ranges["l0_output_layernorm"] is None) == (ranges["bert_embeddings"] is None) == bool(shares)


@pytest.mark.parametrize("version, interface", PLUGINS)
@pytest.mark.parametrize("form", ["packed", "interleaved", "Megatron"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_packed(version, interface, form, precision, engine_path, built, monkeypatch, rng):
    install(version, monkeypatch)
    case = Case(rng, FORMS[form] | {"precision": precision}, gelu=str(rng.choice(["erf", "tanh"])))
    assert case.worst(engine_path, version, interface) < TOLERANCE["fp32"]
    assert case.distance(case.logits) > 1e-3
    assert built.graph.info(built.graph.outputs[0]).shape == (2, -1, 1, 1)
    plugins = [node.params for node in built.graph.nodes if node.kind == "plugin"]
    embeddings, *others = [(params["family"], params["variant"], params.get("type_id")) for params in plugins]
    assert embeddings == ("embeddings", "megatron" if form == "Megatron" else "packed", None)
    assert plugins[0]["output_fp16"] == 1
    typed, interleaved = ("packed", 2), ("interleaved", None)
    attention, norm = (typed, typed) if form == "packed" else (interleaved, interleaved)
    norms = [("add_norm", *kind) for kind in ([("megatron", None)] * 3 + [norm] if form == "Megatron" else [norm] * 4)]
    attention = "attention", *attention
    assert others == [attention, *norms[:2], attention, *norms[2:]]


@pytest.mark.parametrize("form", FORMS)
def test_what_computes_in_which_precision(form, engine_path, built, monkeypatch, rng):
    install("10.16.1", monkeypatch)
    Case(rng, FORMS[form] | {"precision": "fp16"}, "tanh").write(engine_path, "10.16.1", None)
    for node in built.graph.nodes:
        expected = None
        if node.kind == "convolution":
            expected = "HALF" if node.name == "cls_squad_output" else "INT8"
        assert node.precision == expected, node.name
        graph = built.graph
        if re.match(r"l\d_intermediate/", node.name):
            # GELU's parts: int8 is what the last gives, as what the first reads is, and nothing in between.
            (output,) = (graph.tensors[i] for i in node.outputs)
            last = node.name.endswith("/gelu")
            assert (output.forced_type == "INT8", output.dynamic_range is not None) == (last, last), node.name


def test_one_layer_of_megatron(engine_path, monkeypatch, rng):
    """Its one feed-forward norm is the last: the network has embeddings, one norm with a sum, and one without."""
    install("10.16.1", monkeypatch)
    assert Case(rng, MEGATRON, config=replace(CONFIG, num_hidden_layers=1)).worst(engine_path) < TOLERANCE["fp32"]


# Ranges

_LAYER = r"l(\d)_"

#: The table of docs/architecture.md: a range's name → the tensor that it belongs to, {i} its layer, {before} what made its input.
TABLE = {
    _LAYER + "attention_self_(query|key|value)_input_amax": "{before}",
    _LAYER + "attention_self_(qv_a|qv_b|av_b)_input_quantizer_amax": "l{i}_attention_self/query_key_value",
    _LAYER + "attention_output_dense_input_amax": "l{i}_attention_self",
    _LAYER + "attention_output_add_local_input_quantizer_amax": "l{i}_attention_output_dense",
    _LAYER + "attention_output_add_residual_input_quantizer_amax": "{before}/sum",
    _LAYER + "intermediate_dense_input_amax": "l{i}_attention_output_layernorm",
    _LAYER + "output_dense_input_amax": "l{i}_intermediate/gelu",
    _LAYER + "output_add_local_input_quantizer_amax": "l{i}_output_dense",
    _LAYER + "output_add_residual_input_quantizer_amax": "l{i}_attention_output_layernorm/sum",
    "bert_encoder_final_input_quantizer_amax": "l1_output_layernorm",
}


def tensor_of(name: str) -> str | None:
    for pattern, tensor in TABLE.items():
        if found := re.fullmatch(pattern, name):
            i = int(found.group(1)) if found.groups() else 0
            return tensor.format(i=i, before=f"l{i - 1}_output_layernorm" if i else "bert_embeddings")
    return None


RANGES = sorted(
    f"l{i}_{place}"
    for i, place in itertools.product(
        (0, 1),
        [f"attention_self_{part}_input_amax" for part in ("query", "key", "value")]
        + [f"attention_self_{part}_input_quantizer_amax" for part in ("qv_a", "qv_b", "av_b", "av_a")]
        + ["attention_output_dense_input_amax", "intermediate_dense_input_amax", "output_dense_input_amax"]
        + [f"{part}_add_local_input_quantizer_amax" for part in ("attention_output", "output")]
        + [f"{part}_add_residual_input_quantizer_amax" for part in ("attention_output", "output")],
    )
) + ["bert_encoder_final_input_quantizer_amax"]


def dynamic_ranges(graph) -> dict:
    return {tensor.name: tensor.dynamic_range[1] for tensor in graph.tensors if tensor.dynamic_range}


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("form", FORMS)
def test_each_range_lands_on_its_tensor(form, name, engine_path, built, monkeypatch, rng):
    install("10.16.1", monkeypatch)
    case = Case(rng, FORMS[form] | ALL_INT8)
    assert set(case.ranges) == set(RANGES)
    before = [case.expected(batch) for batch in case.batches]
    for i in (0, 1):  # alike, so that each of the three makes a difference
        qkv = [f"l{i}_attention_self_{which}_input_quantizer_amax" for which in ("qv_a", "qv_b", "av_b")]
        case.ranges |= dict.fromkeys(qkv, max(case.ranges[each] for each in qkv))
    case.write(engine_path, "10.16.1", None)
    first, steps = dynamic_ranges(built.graph), probability_steps(built.graph)
    # Few steps: the answer has to change, by more than the tolerance.
    case.ranges[name] = np.float32(8 * case.ranges[name])
    assert case.worst(engine_path) < TOLERANCE["fp32"]
    second, changed = dynamic_ranges(built.graph), probability_steps(built.graph)
    tensor, landed = tensor_of(name), {each for each in first if first[each] != second[each]}
    if name.endswith("av_a_input_quantizer_amax"):
        assert landed == set() and sum(a != b for a, b in zip(steps, changed)) == 1
        np.testing.assert_allclose(changed[int(name[1])], case.ranges[name] / 127, rtol=1e-6)
        return
    assert steps == changed
    if "_add_residual_" in name and not case.megatron:
        assert landed == set()  # without Megatron's sums the residual is a tensor with a range of its own
        return
    shuffled = {"bert_embeddings", "bert_embeddings/sum"} if form in ("interleaved", "Megatron") else set()
    alike = {f"{tensor}/interleaved"} if tensor in shuffled else set()
    if tensor.endswith("/gelu"):  # what it reads has the same range, from 3 on
        alike = {f"{tensor.partition('/')[0]}_dense"} & first.keys()
    assert landed == {tensor} | alike
    assert second[tensor] == case.ranges[name] == np.float32(8) * np.float32(first[tensor])
    assert all(np.abs(case.expected(batch) - old).max() > TOLERANCE["fp32"] for batch, old in zip(case.batches, before))


def probability_steps(graph) -> list:
    """dq_probs of each layer."""
    return [node.params.get("dq_probs") for node in graph.nodes if node.params.get("family") == "attention"]


@pytest.mark.parametrize("form", FORMS)
def test_every_real_tensor_that_has_a_range_is_named_as_the_caches_of_tensorrt_name_it(
    form, engine_path, built, monkeypatch, rng
):
    install("8.6.1", monkeypatch)
    Case(rng, FORMS[form] | ALL_INT8).write(engine_path, "8.6.1", None)
    named = set(quantization.tensor_ranges(CONFIG.num_hidden_layers))
    own = "/interleaved", "/mask", "_intermediate_dense"
    found = {name for name in dynamic_ranges(built.graph) if not name.endswith(own)}
    assert found == (named if form == "Megatron" else {name for name in named if not name.endswith("/sum")})
    assert {name: tensor_of(range_) for name, names in quantization.tensor_ranges(2).items() for range_ in names} == {
        name: name for name in named
    }


@pytest.mark.parametrize("form", FORMS)
def test_ranges_that_may_be_missing(form, engine_path, monkeypatch, rng):
    """A GELU's output then has 10, the probabilities 1; where only floats are read, no range is needed."""
    install("10.16.1", monkeypatch)
    case = Case(rng, FORMS[form])
    optional = ["_output_dense_input_amax", "av_a_input_quantizer_amax"]
    if form == "padded":
        optional += ["qv_a_input_quantizer_amax", "qv_b_input_quantizer_amax", "av_b_input_quantizer_amax"]
        optional += ["_add_local_input_quantizer_amax", "final_input_quantizer_amax"]
    if form != "Megatron":
        optional.append("_add_residual_input_quantizer_amax")
    full = dict(case.ranges)
    for name in full:
        if name.endswith(tuple(optional)) and "attention_output_dense" not in name:
            del case.ranges[name]
    assert len(case.ranges) < len(full)
    assert case.worst(engine_path) < TOLERANCE["fp32"]


@pytest.mark.parametrize(
    "options, missing, named",
    [
        (PADDED, "_self_(query|key|value)_input_amax", "l0_attention_self_query_input_amax"),
        (PADDED, "attention_output_dense_input_amax", "l0_attention_output_dense_input_amax"),
        (PADDED, "intermediate_dense_input_amax", "l0_intermediate_dense_input_amax"),
        (PADDED | ALL_INT8, "(qv_a|qv_b|av_b)_input", "l0_attention_self_qv_a_input_quantizer_amax"),
        (PADDED | ALL_INT8, "l1_output_add_local", "l1_output_add_local_input_quantizer_amax"),
        (PADDED | ALL_INT8, "final", "bert_encoder_final_input_quantizer_amax"),
        (PACKED, "attention_output_add_local", "l0_attention_output_add_local_input_quantizer_amax"),
        (INTERLEAVED, "_self_(query|key|value)_input_amax", "l0_attention_self_query_input_amax"),
        (MEGATRON, "l0_attention_output_add_residual", "l0_attention_output_add_residual_input_quantizer_amax"),
        (MEGATRON, "l1_output_add_residual", "l1_output_add_residual_input_quantizer_amax"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_missing_range_is_named(options, missing, named, engine_path, monkeypatch, rng):
    install("10.16.1", monkeypatch)
    case = Case(rng, options)
    case.ranges = {name: amax for name, amax in case.ranges.items() if not re.search(missing, name)}
    with pytest.raises(DemoBertError, match=f"model.onnx has no range {named}: calibrate") as caught:
        case.write(engine_path, "10.16.1", None)
    assert "\n" not in str(caught.value) and not engine_path.exists()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "channel"])
def test_kernels_are_clipped_to_the_ranges_of_training(form, per_channel, engine_path, monkeypatch, rng):
    """Then the builder, which takes each channel's largest value, has scales that are no coarser."""
    install("10.16.1", monkeypatch)
    case = Case(rng, FORMS[form])
    unclipped = case.ranges
    for name, kernel in case.tensors.items():
        if name.endswith("_kernel"):
            largest = np.abs(kernel).max(1, keepdims=True) if per_channel else np.abs(kernel).max()
            case.ranges = case.ranges | {f"{name}_amax": np.float32(0.8) * largest}
    case.write(engine_path, "10.16.1", None)
    engine = load_engine(engine_path, case.options.get("layout", "padded"))
    assert case.distance(engine.run) < TOLERANCE["fp32"]
    case.ranges = unclipped
    assert case.distance(engine.run) > 10 * TOLERANCE["fp32"]


def test_a_range_of_0_is_refused(engine_path, monkeypatch, rng):
    install("10.16.1", monkeypatch)
    case = Case(rng, PADDED)
    case.ranges["l1_intermediate_dense_input_amax"] = np.float32(0)
    with pytest.raises(DemoBertError, match="the range l1_intermediate_dense_input_amax is 0"):
        case.write(engine_path, "10.16.1", None)


# What fits which release and GPU


@pytest.mark.parametrize("form", FORMS)
def test_int8_add_and_norm_has_kernels_of_two_widths(form, engine_path, monkeypatch, rng):
    """The others are refused: TensorRT would build them, and fail at the first run, as the double does."""
    install("8.6.1", monkeypatch)
    assert bert_plugins.INT8_NORM_SIZES == (768, 1024)
    for module in (plan_builder, plugins):
        monkeypatch.setattr(module, "INT8_NORM_SIZES", bert_plugins.INT8_NORM_SIZES)
    case = Case(rng, FORMS[form] | {"network": "plugin", "force_int8_skipln": form == "padded"})
    with pytest.raises(UsageError, match="hidden sizes of 768 and 1024, this model's is 128; use --network native"):
        case.write(engine_path, "8.6.1", None)
    monkeypatch.setattr(plan_builder, "INT8_NORM_SIZES", (128,))
    case.write(engine_path, "8.6.1", None)
    engine = load_engine(engine_path, case.options.get("layout", "padded"))
    with pytest.raises(TensorRTDoubleError, match="unsupported hidden layer size: 128"):
        engine.run(case.batches[0])


@pytest.mark.parametrize(
    "version, options, capability, message",
    [
        ("10.16.1", PADDED | {"force_int8_multihead": True}, (7, 2), "-imh needs compute capability 7.5; this GPU is"),
        ("10.16.1", PADDED | {"force_int8_skipln": True}, (7, 0), "-iln needs compute capability 7.2; this GPU is"),
        ("10.16.1", INTERLEAVED, (7, 0), "packed BERT plugins need compute capability 7.2; this GPU has 7.0"),
        ("11.4.0", INTERLEAVED, (8, 6), "tensorrt 11.4.0 has no BERT plugins; leave --interleaved out"),
        ("11.4.0", PADDED | {"network": "plugin"}, (8, 6), "tensorrt 11.4.0 has no BERT plugins; use --network native"),
        ("10.16.1", MEGATRON | {"interleaved": False, "network": "plugin"}, (8, 6), "add --interleaved"),
        ("10.16.1", INTERLEAVED | {"precision": "bf16"}, (8, 6), "the BERT plugins have no bf16"),
    ],
    ids=str,
)
def test_what_a_release_or_a_gpu_can_not_do(version, options, capability, message, engine_path, monkeypatch, rng):
    install(version, monkeypatch, capability)
    with pytest.raises(UsageError, match=message) as caught:
        Case(rng, options).write(engine_path, version, None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("version", ["8.6.1", "10.16.1"])
def test_the_card_says_what_it_computes_in(form, version, engine_path, monkeypatch, rng):
    install(version, monkeypatch)
    for precision, found in (("fp32", ["int8", "fp32"]), ("fp16", ["int8", "fp16", "fp32"])):
        card = Case(rng, FORMS[form] | {"precision": precision}).write(engine_path, version, None)
        assert (card.network, card.precision) == ("plugin", found)


# Mistakes that have to show


def smallest_of_the_fused(monkeypatch):
    def amax(self, *names):
        return min(float(self.ranges[name]) for name in names)

    monkeypatch.setattr(quantization.Quantization, "amax", amax)


def names_of_another(monkeypatch, change):
    original = plugin_layers.tensor_ranges
    monkeypatch.setattr(plugin_layers, "tensor_ranges", lambda count: change(original(count)))


def ranges_of_the_branches_exchanged(monkeypatch):
    first, second = "l0_attention_output_dense", "l0_output_dense"
    names_of_another(monkeypatch, lambda found: found | {first: found[second], second: found[first]})


def norms_ranges_exchanged(monkeypatch):
    first, second = "l0_attention_output_layernorm", "l0_output_layernorm"
    names_of_another(monkeypatch, lambda found: found | {first: found[second], second: found[first]})


def probabilities_scale_not_divided(monkeypatch):
    monkeypatch.setattr(quantization.Quantization, "largest", 1.0)


def probabilities_scale_not_given(monkeypatch):
    monkeypatch.setattr(plugin_layers, "PROBABILITIES", "none")


def kernels_by_head(monkeypatch):
    by_head = plugin_layers.PluginWriter._by_head
    monkeypatch.setattr(plugin_layers.InterleavedPluginLayers, "_by_head", by_head)


def kernels_not_by_head(monkeypatch):
    monkeypatch.setattr(plugin_layers.PluginWriter, "_by_head", lambda self, array: array)


def dense_layers_in_float(monkeypatch):
    original = plugin_layers.PluginWriter._dense

    def dense(self, *arguments):
        tensor = original(self, *arguments)
        self.network.get_layer(self.network.num_layers - 1).reset_precision()
        return tensor

    monkeypatch.setattr(plugin_layers.PluginWriter, "_dense", dense)


def mask_of_another_type(monkeypatch):
    original = plugin_layers.PaddedPluginLayers._make_inputs

    def make_inputs(self, *sizes):
        original(self, *sizes)
        self.own_fields[plugin_layers.EMBEDDINGS] = {"mha_type_id": 0}

    monkeypatch.setattr(plugin_layers.PaddedPluginLayers, "_make_inputs", make_inputs)


def residual_normalised(monkeypatch):
    original = plugin_layers.PluginWriter.add_and_normalise

    def add_and_normalise(self, *arguments):
        found = original(self, *arguments)
        return found._replace(sum=found.output)

    monkeypatch.setattr(plugin_layers.PluginWriter, "add_and_normalise", add_and_normalise)


def embeddings_sum_not_used(monkeypatch):
    original = plugin_layers.InterleavedPluginLayers._embedded

    def embedded(self, layer, name):
        found = original(self, layer, name)
        return found._replace(sum=found.output)

    monkeypatch.setattr(plugin_layers.InterleavedPluginLayers, "_embedded", embedded)


def plugins_of_the_other_residual(monkeypatch):
    changed = {bert_plugins.ADD_AND_NORM: "3"}
    monkeypatch.setattr(
        bert_plugins, "MEGATRON_VERSIONS", {"deprecated": bert_plugins.MEGATRON_VERSIONS["deprecated"] | changed}
    )
    monkeypatch.setattr("helpers.backends.tensorrt.plan_builder.MEGATRON_VERSIONS", bert_plugins.MEGATRON_VERSIONS)


@pytest.mark.parametrize(
    "mistake, form",
    [
        (smallest_of_the_fused, "padded"),
        (ranges_of_the_branches_exchanged, "padded"),
        (norms_ranges_exchanged, "padded"),
        (norms_ranges_exchanged, "interleaved"),
        (probabilities_scale_not_divided, "packed"),
        (probabilities_scale_not_given, "interleaved"),
        (kernels_by_head, "interleaved"),
        (kernels_not_by_head, "packed"),
        (dense_layers_in_float, "padded"),
        (mask_of_another_type, "padded"),
        (residual_normalised, "Megatron"),
        (embeddings_sum_not_used, "Megatron"),
        (plugins_of_the_other_residual, "Megatron"),
    ],
)
def test_a_mistake_would_be_seen(mistake, form, engine_path, monkeypatch):
    install("10.16.1", monkeypatch)
    case = Case(np.random.default_rng(5), FORMS[form] | ALL_INT8)
    assert case.worst(engine_path) < TOLERANCE["fp32"]
    mistake(monkeypatch)
    try:
        found = case.worst(engine_path)
    except (DemoBertError, TensorRTDoubleError, TypeError):
        return  # refused, by the backend, by the double, or by pybind11: seen as well
    assert not found < 10 * TOLERANCE["fp32"]


# Through the scripts


def test_megatron_s_pickle_with_ranges_of_training(script, tmp_path, engine_path, monkeypatch, rng):
    install("8.6.1", monkeypatch)
    case = Case(rng, MEGATRON)
    ranges = dict(case.ranges)
    ranges["l1_output_layernorm_output_quantizer_amax"] = ranges.pop(quantization.FINAL_NAME)
    (tmp_path / "bert.pickle").write_bytes(pickle.dumps(megatron_state(case.config, case.tensors) | ranges))
    write_config(tmp_path, case.config)
    files = ("--pickle", tmp_path / "bert.pickle", "-c", tmp_path, "-o", engine_path)
    flags = ("--int8", "--megatron", "-il", "--gelu", case.gelu, "-b", 3, "-s", 12)
    result = script("builder_varseqlen.py", *files, *flags)
    assert result.code == 0, result.err
    assert "int8+fp32 on TensorRT double" in result.out
    assert case.distance(load_engine(engine_path, "packed").run) < TOLERANCE["fp32"]


def test_one_calibration_serves_every_network_and_tensorrt_s_own_cache_does_too(
    script, tmp_path, engine_path, built, monkeypatch, rng
):
    install("10.16.1", monkeypatch)
    vocabulary = (BUNDLED / "vocab.txt").read_bytes()
    config = replace(CONFIG, vocab_size=len(vocabulary.splitlines()), max_position_embeddings=32)
    folder = write_folder(tmp_path / "model", config, pytorch_state(config, random_weights(config, rng)))
    (folder / "vocab.txt").write_bytes(vocabulary)
    common = ("-pt", folder, "-o", engine_path, "-b", 2, "-s", 32, "--int8")
    text = ("-j", ROOT / "tests" / "data" / "squad_v1.1.json", "-n", 3)
    cache = tmp_path / "calibration.cache"
    assert script("builder.py", *common, *text, "-p", cache, "-iln", "-imh").code == 0
    padded_ranges, engine = dynamic_ranges(built.graph), load_engine(engine_path, "padded")
    inputs = [random_inputs(config, rng, 2, 32) for _ in range(3)]
    padded = [engine.run(PaddedBatch(*each))[each[2].astype(bool)] for each in inputs]

    assert script("builder_varseqlen.py", *common, *text, "-p", cache, "-il").code == 0
    interleaved = dynamic_ranges(built.graph)
    assert {name: amax for name, amax in interleaved.items() if not name.endswith("/interleaved")} == {
        name: amax for name, amax in padded_ranges.items() if not name.endswith("/mask")
    }
    engine = load_engine(engine_path, "packed")
    differences = []
    for (ids, segments, mask), logits in zip(inputs, padded):
        tokens = mask.astype(bool)
        bounds, longest = np.cumsum([0, *mask.sum(1)], dtype=np.int32), np.zeros(mask.sum(1).max(), np.int32)
        found = engine.run(PackedBatch(ids[tokens], segments[tokens], bounds, longest))
        differences.append(np.abs(found - logits).max())
    assert np.median(differences) < TOLERANCE["fp32"]

    scales = {name: np.array(amax / 127, ">f4").tobytes().hex() for name, amax in padded_ranges.items()}
    lines = ["TRT-8601-EntropyCalibration2", *(f"{name}: {scale}" for name, scale in scales.items())]
    (tmp_path / "tensorrt.cache").write_text("\n".join(lines) + "\n")
    assert script("builder.py", *common, *text, "-p", tmp_path / "tensorrt.cache", "-iln", "-imh").code == 0
    assert dynamic_ranges(built.graph) == pytest.approx(padded_ranges, rel=1e-6)


# What the backend uses, held to NVIDIA's bindings


@pytest.mark.parametrize("version, interface", PLUGINS)
def test_all_that_int8_uses_is_in_the_real_module(version, interface, engine_path, tmp_path, monkeypatch, rng):
    if bindings.extension(version) is None:
        pytest.skip(f"the bindings of TensorRT {version} were not fetched: tests/tensorrt_double/fetch_bindings.sh")
    double = install(version, monkeypatch)
    for form, forced in itertools.product(FORMS.values(), ({}, ALL_INT8)):
        Case(rng, form | forced | {"strict": True}).write(engine_path, version, interface)
    assert ("ITensor", "set_dynamic_range") in double.recorder.calls
    assert bindings.uses_unknown(double.recorder.calls, bindings.real_surface(version, tmp_path)) == []
