"""Native TensorRT networks in int8 and fp8: what the double computes of them is what a numpy fake quantization does.

Quantize and dequantize layers round alike in every release, so that each release's network is held to one reference.
"""

from dataclasses import replace

import numpy as np
import pytest

from helpers.backends import load_engine
from helpers.batching import PackedBatch, PaddedBatch
from helpers.bert_config import BertConfig
from helpers.engine_card import EngineCard
from helpers.errors import DemoBertError, UsageError
from helpers.quantization import GELU_RANGE
from tests.checkpoints import bert_weights
from tests.reference_bert import (
    channels_of,
    fake_quantizer,
    random_inputs,
    random_weights,
    reference_logits,
    smoothed,
)
from tests.tensorrt_double import VERSIONS, bindings, install, rtx
from tests.test_tensorrt_engines import BUNDLED, ROOT, RTX, run_script, write
from tests.test_tensorrt_packed import built_graphs

pytestmark = pytest.mark.sampled(0.4)

#: Heads of 16, so that 1/√H is exact: where it is not, a query in the middle of two steps may fall to either side.
CONFIG = BertConfig(64, 2, 4, 100, 101, 24, layer_norm_eps=1e-12)
LENGTH = 13

#: (release, type); TensorRT 8.6 has no fp8.
KINDS = [(version, kind) for version in VERSIONS for kind in ("int8", "fp8") if (version, kind) != ("8.6.1", "fp8")]

#: The double computes in float64 with the reference's own steps: what is left is the float32 of the logits. But TensorRT
#: 8.6's GELU has float32 constants, and one value in a million lies so near to the middle of two steps that this has it
#: fall to the other one. That spoils its own row, by some 1e-3; a mistake would show in all three. So the median row counts.
TOLERANCE = 1e-6

#: With the rest in half precision some values fall to the next step, of amax / 127, in fp8 of a sixteenth of the value.
#: That is rounding as random as quantization's own, which moves logits by up to 0.05 (int8) and 0.15 (fp8), and adds to
#: it; seen were 0.07 and 0.16.
HALF_TOLERANCE = {"int8": 0.15, "fp8": 0.4}

ATTENTION_INPUTS = tuple(f"{which}_input_quantizer_amax" for which in ("qv_a", "qv_b", "av_a", "av_b"))
#: Ranges of tensors that native networks leave in their own type.
SUMS = ("add_local_input_quantizer_amax", "add_residual_input_quantizer_amax", "final_input_quantizer_amax")


def is_dense(name: str) -> bool:
    return not name.endswith(ATTENTION_INPUTS + SUMS)


def is_multiplied(name: str) -> bool:
    """With -imh."""
    return not name.endswith(SUMS)


@pytest.fixture
def model(rng):
    """(tensors, inputs, ranges): a random BERT, three rows, and each activation's largest value on them."""
    tensors, inputs = random_weights(CONFIG, rng), random_inputs(CONFIG, rng, 3, LENGTH)
    ranges = {}

    def observe(name, values):
        if not name.endswith("_kernel_amax"):
            ranges[name] = np.float32(np.abs(values).max())
        return values

    reference_logits(CONFIG, tensors, "erf", *inputs, quantize=observe)
    return tensors, inputs, ranges


def reference(model, kind, places=is_dense, **changed):
    """Logits of the fake-quantized reference. The fused query, key and value are rounded by the largest range."""
    tensors, inputs, ranges = model
    ranges = ranges | changed
    for i in range(CONFIG.num_hidden_layers):
        names = [f"l{i}_attention_self_{part}_input_amax" for part in ("query", "key", "value")]
        ranges |= dict.fromkeys(names, max(ranges[name] for name in names))
    return reference_logits(CONFIG, tensors, "erf", *inputs, quantize=fake_quantizer(kind, ranges, places))


def engine_of(path, version, model, layout="padded", changed=None, **options):
    """An engine of `model` and its card. Native where nothing else is said."""
    tensors, _, ranges = model
    sizes = {"batch_sizes": (3,), "sequence_lengths": (LENGTH,), "layout": layout}
    if version == RTX and options.get("quantize") == "fp8":
        options["compute_capabilities"] = ("8.9",)
    weights = bert_weights(CONFIG, tensors, ranges=ranges | (changed or {}), source="a test")
    card = write(path, version, CONFIG, weights, **{"network": "native"} | sizes | options)
    return load_engine(path, layout), card


def differences(engine, model, expected) -> np.ndarray:
    """Of the logits at tokens, [T, 2]."""
    _, (ids, segments, mask), _ = model
    tokens = mask.astype(bool)
    if engine.card.layout == "padded":
        return (engine.run(PaddedBatch(ids, segments, mask)) - expected)[tokens]
    lengths = mask.sum(1)
    bounds = np.cumsum([0, *lengths], dtype=np.int32)
    batch = PackedBatch(ids[tokens], segments[tokens], bounds, np.zeros(lengths.max(), np.int32))
    return engine.run(batch) - expected[tokens]


def largest(engine, model, expected) -> float:
    """The largest difference of a logit. Rows may be of one token, whose attention nothing changes: so for what has to differ."""
    return np.abs(differences(engine, model, expected)).max()


def worst(engine, model, expected) -> float:
    """The largest difference of a logit, in the median row: for what has to be equal."""
    _, _, mask = model[1]
    by_token = np.abs(differences(engine, model, expected)).max(1)
    return np.median([row.max() for row in np.split(by_token, np.cumsum(mask.sum(1))[:-1])])


@pytest.fixture
def engine_path(tmp_path):
    return tmp_path / "bert.engine"


@pytest.fixture
def installed(monkeypatch):
    """Plays a release on a GPU that has every type."""

    def play(version):
        return install(version, monkeypatch, (8, 9))

    return play


# Numbers


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("version, kind", KINDS)
def test_logits_are_the_fake_quantized_reference_s(version, kind, layout, model, engine_path, installed):
    installed(version)
    expected, floats = reference(model, kind), reference(model, kind, lambda name: False)
    for sizes in ({}, {"batch_sizes": (1, 3), "sequence_lengths": (LENGTH, 24) if layout == "padded" else (24,)}):
        engine, card = engine_of(engine_path, version, model, layout, quantize=kind, **sizes)
        assert (card.network, card.precision) == ("native", [kind, "fp32"])
        assert worst(engine, model, expected) < TOLERANCE
        # Rounding shows: this is not the float network.
        assert largest(engine, model, floats) > 1e-3
        engine.close()


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("version, kind", KINDS)
def test_channels_are_evened_out_in_int8(version, kind, layout, model, engine_path, installed):
    tensors, inputs, ranges = model
    seen = {}
    reference_logits(CONFIG, tensors, "erf", *inputs, quantize=lambda name, values: seen.setdefault(name, values))
    channels = channels_of(seen)
    more = {f"{dense}_input_channel_amax": largest for dense, largest in channels.items()}
    plain = reference(model, kind)
    quantize = smoothed(fake_quantizer("int8", ranges, is_dense), tensors, channels, ranges)
    expected = reference_logits(CONFIG, tensors, "erf", *inputs, quantize=quantize) if kind == "int8" else plain
    installed(version)
    engine, _ = engine_of(engine_path, version, model, layout, more, quantize=kind)
    assert worst(engine, model, expected) < TOLERANCE
    assert kind == "fp8" or largest(engine, model, plain) > 1e-4
    engine.close()
    if version != "8.6.1":  # weakly typed: no half types to tell
        engine, _ = engine_of(engine_path, version, model, layout, more, quantize=kind, precision="fp16")
        assert 1e-6 < worst(engine, model, expected) < HALF_TOLERANCE[kind]
        engine.close()


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("half", ["fp16", "bf16"])
@pytest.mark.parametrize("version, kind", KINDS)
def test_the_rest_in_half_precision(version, kind, half, layout, model, engine_path, installed):
    installed(version)
    if version == "8.6.1" and half == "bf16":
        pytest.skip("TensorRT 8.6 has no bfloat16")
    engine, card = engine_of(engine_path, version, model, layout, quantize=kind, precision=half)
    weakly_typed = version == "8.6.1"
    assert card.precision == ([kind, half, "fp32"] if weakly_typed else [kind, half])
    found = worst(engine, model, reference(model, kind))
    # The double lets weakly typed networks compute in more than the flags allow.
    assert found < TOLERANCE if weakly_typed else 1e-6 < found < HALF_TOLERANCE[kind]
    engine.close()


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("version", VERSIONS)
def test_int8_attention(version, layout, model, engine_path, installed):
    installed(version)
    engine, _ = engine_of(engine_path, version, model, layout, quantize="int8", force_int8_multihead=True)
    assert worst(engine, model, reference(model, "int8", is_multiplied)) < TOLERANCE
    assert largest(engine, model, reference(model, "int8")) > 1e-4
    engine.close()


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("version, kind", [("10.0.1", "fp8"), ("8.6.1", "int8"), ("11.4.0", "int8"), (RTX, "fp8")])
def test_megatron_s_residual(version, kind, layout, model, engine_path, installed):
    tensors, inputs, _ = model
    installed(version)
    ranges, floats = {}, {"pre_normalised": True}
    reference_logits(CONFIG, tensors, "erf", *inputs, **floats, quantize=lambda name, x: ranges.setdefault(name, x))
    ranges = {name: np.float32(np.abs(x).max()) for name, x in ranges.items() if not name.endswith("_kernel_amax")}
    quantize = fake_quantizer(kind, ranges, is_dense)
    engine, _ = engine_of(engine_path, version, (tensors, inputs, ranges), layout, megatron=True, quantize=kind)
    expected = reference_logits(CONFIG, tensors, "erf", *inputs, **floats, quantize=quantize)
    assert worst(engine, model, expected) < TOLERANCE
    engine.close()
    engine, _ = engine_of(engine_path, version, model, layout, megatron=True)
    expected = reference_logits(CONFIG, tensors, "erf", *inputs, **floats)
    assert worst(engine, model, expected) < 1e-4  # fp32, as in test_tensorrt_engines
    engine.close()


# Ranges


def table(model) -> list[str]:
    """Every range of a layer, kernels' included."""
    tensors, inputs, _ = model
    names = []
    reference_logits(CONFIG, tensors, "erf", *inputs, quantize=lambda name, values: names.append(name) or values)
    return [name for name in names if not name.startswith("l0_")]


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_each_range_lands_on_its_tensor(kind, model, engine_path, installed):
    """Changed alone, it changes the logits as the reference's do; ranges of what stays in float change nothing."""
    installed("11.4.0")
    baseline = reference(model, kind)
    for name in table(model):
        # Three times as coarse a step, and never the largest possible change, which would hide where it landed.
        if name.endswith("_kernel_amax"):
            kernel = model[0][name.removesuffix("_amax")]
            changed = {name: np.float32(0.4) * np.abs(kernel).max(1, keepdims=True)}
        else:
            # A third, or where the fused tensor takes the largest of its three ranges, three times as much.
            factor = 3.0 if "_self_" in name and not name.endswith(ATTENTION_INPUTS) else 0.4
            changed = {name: np.float32(factor) * model[2][name]}
        expected = reference(model, kind, **changed)
        engine, _ = engine_of(engine_path, "11.4.0", model, changed=changed, quantize=kind)
        assert worst(engine, model, expected) < TOLERANCE, name
        # A power of two is no finer or coarser in fp8, whose steps grow with the values: 3 and 0.4 are none.
        assert (largest(engine, model, baseline) > 1e-4) == is_dense(name), name
        engine.close()


@pytest.mark.parametrize("version", ["8.6.1", "10.16.1", "11.4.0"])
@pytest.mark.parametrize("which", ATTENTION_INPUTS)
def test_each_range_of_attention_lands_on_its_tensor(which, version, model, engine_path, installed):
    """TensorRT 8.6 has matmul and softmax, 10.16 its first attention layer, 11.4 the second."""
    installed(version)
    changed = {f"l1_attention_self_{which}": np.float32(0.4) * model[2][f"l1_attention_self_{which}"]}
    options = {"quantize": "int8", "force_int8_multihead": True}
    engine, _ = engine_of(engine_path, version, model, changed=changed, **options)
    assert worst(engine, model, reference(model, "int8", is_multiplied, **changed)) < TOLERANCE
    assert largest(engine, model, reference(model, "int8", is_multiplied)) > 1e-4
    engine.close()


def test_a_kernel_s_range_of_a_whole_tensor(model, engine_path, installed):
    installed("11.4.0")
    name = "l1_intermediate_dense_kernel_amax"
    changed = {name: np.abs(model[0][name.removesuffix("_amax")]).max()}
    engine, _ = engine_of(engine_path, "11.4.0", model, changed=changed, quantize="int8")
    assert worst(engine, model, reference(model, "int8", **changed)) < TOLERANCE
    engine.close()


def test_a_gelu_without_a_range_gets_gelu10(model, engine_path, installed):
    installed("11.4.0")
    tensors, inputs, ranges = model
    names = {f"l{i}_output_dense_input_amax": np.float32(GELU_RANGE) for i in range(CONFIG.num_hidden_layers)}
    without = {name: value for name, value in ranges.items() if name not in names}
    engine, _ = engine_of(engine_path, "11.4.0", (tensors, inputs, without), quantize="int8")
    assert worst(engine, model, reference(model, "int8", **names)) < TOLERANCE
    engine.close()


def test_a_channel_of_next_to_nothing_builds_in_fp16(model, engine_path, installed):
    """Its step would be 0 in float16, and TensorRT takes none that is not positive."""
    installed("11.4.0")
    tensors, inputs, ranges = model
    kernel = tensors["l0_intermediate_dense_kernel"].copy()
    kernel[3], kernel[4] = 1e-9, 0
    model = (tensors | {"l0_intermediate_dense_kernel": kernel}, inputs, ranges)
    nonzero = np.maximum(np.abs(kernel).max(1), np.float32(1e-9))  # the reference divides by what it is given
    engine, _ = engine_of(engine_path, "11.4.0", model, quantize="int8", precision="fp16")
    expected = reference(model, "int8", l0_intermediate_dense_kernel_amax=nonzero)
    assert worst(engine, model, expected) < HALF_TOLERANCE["int8"]
    engine.close()


@pytest.mark.parametrize("missing", ["l1_attention_self_query", "l0_attention_output_dense", "l1_intermediate_dense"])
def test_a_missing_range_is_named(missing, model, engine_path, installed):
    installed("11.4.0")
    tensors, inputs, ranges = model
    without = {name: value for name, value in ranges.items() if not name.startswith(missing[:-5])}
    with pytest.raises(DemoBertError, match=f"a test has no range {missing}_input_amax: calibrate"):
        engine_of(engine_path, "11.4.0", (tensors, inputs, without), quantize="int8")
    assert not engine_path.exists()


# The network


@pytest.mark.parametrize("version, kind", KINDS)
def test_one_pair_of_layers_on_each_side_of_each_dense(version, kind, model, engine_path, installed, monkeypatch):
    installed(version)
    graphs = built_graphs(monkeypatch)
    engine_of(engine_path, version, model, quantize=kind)[0].close()
    (graph,) = graphs
    names = {node.name: node for node in graph.nodes if node.kind == "quantize"}
    layers = range(CONFIG.num_hidden_layers)
    parts = ("attention_self/query_key_value", "attention_output_dense", "intermediate_dense", "output_dense")
    sides = ("input", "kernel")
    assert set(names) == {f"l{i}_{part}/{side}/quantized" for i in layers for part in parts for side in sides}
    for name, node in names.items():
        assert node.params["to_type"] == kind.upper()
        assert node.params["axis"] == (1 if name.endswith("/kernel/quantized") else None), name
        (dequantize,) = graph.consumers(node.outputs[0])
        assert dequantize.kind == "dequantize" and dequantize.params["axis"] == node.params["axis"]
        (product,) = graph.consumers(dequantize.outputs[0])
        assert product.kind == "matrix_multiply"


@pytest.mark.parametrize("version", VERSIONS)
def test_the_int8_flag_is_set_where_typing_is_weak_only(version, model, engine_path, installed):
    double = installed(version)
    engine, _ = engine_of(engine_path, version, model, quantize="int8", strict=True)
    assert (("IBuilderConfig", "set_flag") in double.recorder.calls) or version != "8.6.1"
    assert hasattr(double.module.BuilderFlag, "INT8") == (version in ("8.6.1", "10.0.1", "10.16.1"))
    engine.close()


def test_fp8_takes_the_native_network_by_itself(model, engine_path, installed):
    installed("10.16.1")
    engine, card = engine_of(engine_path, "10.16.1", model, quantize="fp8", network="auto")
    assert card.network == "native"
    engine.close()
    with pytest.raises(UsageError, match="the BERT plugins do not compute in FP8; use --network native"):
        engine_of(engine_path, "10.16.1", model, quantize="fp8", network="plugin")


def test_fp8_is_refused_where_it_is_not(model, engine_path, installed, monkeypatch):
    installed("8.6.1")
    with pytest.raises(UsageError, match="TensorRT 8.6.1 quantizes to int8 only; --fp8 takes TensorRT 10 or newer"):
        engine_of(engine_path, "8.6.1", model, quantize="fp8")
    install("11.4.0", monkeypatch, (8, 6))
    with pytest.raises(UsageError, match="--fp8 needs compute capability 8.9; this GPU is"):
        engine_of(engine_path, "11.4.0", model, quantize="fp8")


# The scripts, end to end, on the bundled model


@pytest.mark.parametrize(
    "version, suffix, flags",
    [("10.16.1", "", ("--fp8", "--fp16")), ("11.4.0", "_varseqlen", ("--int8", "--fp16"))],
)
def test_a_calibrated_engine_answers(version, suffix, flags, engine_path):
    data = ROOT / "tests" / "data" / "squad_v1.1.json"
    common = ("-o", engine_path, "-s", 64, "-j", data, "-n", 4)
    built = run_script(version, f"builder{suffix}.py", "-pt", BUNDLED, *common, *flags, capability="8.9")
    assert built.returncode == 0, built.stderr
    card = EngineCard.read(EngineCard.path_for(engine_path))
    assert (card.network, card.precision[0]) == ("native", flags[0][2:])
    passage = "TensorRT is a high performance deep learning inference platform"
    question = ("-p", passage, "-q", "What is TensorRT?")
    asked = run_script(version, f"inference{suffix}.py", "-e", engine_path, *question, capability="8.9")
    assert "deep learning inference platform" in asked.stdout.split("Answer:")[-1], asked.stderr


# What the backend uses, held to NVIDIA's bindings; shapes and types, to TensorRT-RTX.


@pytest.mark.parametrize("version", VERSIONS)
def test_all_that_quantization_uses_is_in_the_real_module(version, model, engine_path, tmp_path, installed):
    if bindings.extension(version) is None:
        pytest.skip(f"the bindings of TensorRT {version} were not fetched: tests/tensorrt_double/fetch_bindings.sh")
    double = installed(version)
    for options in ({"quantize": "int8", "force_int8_multihead": True}, {"quantize": "fp8", "layout": "packed"}):
        if version != "8.6.1" or options["quantize"] == "int8":
            engine_of(engine_path, version, model, **options)[0].close()
    assert ("INetworkDefinition", "add_quantize") in double.recorder.calls
    assert bindings.uses_unknown(double.recorder.calls, bindings.real_surface(version, tmp_path)) == []


def quantized_bert(trt, network, kind, precision, layout, quantize_attention):
    """Writes a quantized native BERT into any module's network; for `rtx.compare`."""
    from helpers.backends.tensorrt.native_layers import PaddedNativeLayers
    from helpers.backends.tensorrt.native_packed import PackedNativeLayers
    from helpers.bert_network import build_bert
    from helpers.quantization import Quantization

    rng = np.random.default_rng(3)
    tensors, inputs, ranges = random_weights(CONFIG, rng), random_inputs(CONFIG, rng, 2, 8), {}
    reference_logits(CONFIG, tensors, "erf", *inputs, quantize=lambda name, values: ranges.setdefault(name, values))
    channels = {f"{dense}_input_channel_amax": largest for dense, largest in channels_of(ranges).items()}
    ranges = {
        name: np.float32(np.abs(x).max()) for name, x in ranges.items() if not name.endswith("_kernel_amax")
    } | channels
    common = (trt, network, None, CONFIG, precision)
    quantized = (Quantization(kind, ranges, "a test"), quantize_attention)
    if layout == "padded":
        layers = PaddedNativeLayers(*common, (-1, -1), *quantized)
    else:
        layers = PackedNativeLayers(*common, (96, 24), *quantized)
    build_bert(layers, replace(CONFIG, gelu="erf"), bert_weights(CONFIG, tensors))
    return layers


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("quantize_attention", [False, True])
@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("kind, precision", [("int8", "fp16"), ("int8", "fp32"), ("fp8", "bf16"), ("fp8", "fp16")])
def test_shapes_and_types_are_those_that_tensorrt_rtx_infers(kind, precision, layout, quantize_attention):
    if rtx.real_module_folder() is None:
        pytest.skip("TensorRT-RTX is not installed: pip install -r requirements-rtx.txt")
    arguments = [kind, precision, layout, quantize_attention]
    assert rtx.compare("tests.test_tensorrt_native_int8:quantized_bert", arguments) == []
