"""Native networks, built by NVIDIA's own builder: TensorRT-RTX, which needs no GPU to build. It can't run them here."""

import importlib.util
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers import quantization
from helpers.backends import tensorrt_rtx
from helpers.backends.tensorrt import engine, module, plan_builder
from helpers.backends.tensorrt.native_layers import PaddedNativeLayers
from helpers.bert_config import BertConfig
from helpers.bert_network import build_bert
from helpers.build_options import BuildOptions
from helpers.errors import DemoBertError, UsageError
from helpers.weights import BertWeights, load_weights
from helpers.weights.canonical import expected_shapes
from tests.checkpoints import bert_weights, own_quantization
from tests.reference_bert import random_config, random_weights
from tests.tensorrt_double import rtx

pytestmark = pytest.mark.sampled(0.4)

if importlib.util.find_spec("tensorrt_rtx") is None and (folder := rtx.real_module_folder()):
    sys.path.append(str(folder))
trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install -r requirements-rtx.txt")

BUNDLED = Path(__file__).parent.parent / "models/bundled/bert_mini_squad11"
BASE = BertConfig(768, 12, 12, 3072, 30522)
LARGE = BertConfig(1024, 24, 16, 4096, 30522)
SMALL = BertConfig(64, 2, 4, 100, 200, 64)

#: builder.py's default workspace.
WORKSPACE_MIB = 2500

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


def shaped_weights(config: BertConfig) -> BertWeights:
    """Weights of the right shapes, made quickly. They differ, since the builder stores equal tensors once."""
    rng = np.random.default_rng(0)
    twin = small_twin(config)
    shapes = {name: tensor.shape for name, tensor in random_weights(twin, rng).items()}
    names = ("hidden_size", "intermediate_size", "vocab_size", "max_position_embeddings")
    sizes = {getattr(twin, name): getattr(config, name) for name in names}
    tensors = {}
    for name, shape in shapes.items():
        shape = tuple(sizes.get(size, size) for size in shape)
        tensors[name] = rng.random(shape, np.float32) * np.float32(0.04) - np.float32(0.02)
    return bert_weights(config, tensors, source="random")


def small_twin(config: BertConfig) -> BertConfig:
    """As deep as `config`, with sizes that tell the dimensions apart."""
    return BertConfig(48, config.num_hidden_layers, 4, 7, 101, 11, config.type_vocab_size)


def build(config, weights, **options):
    """An engine, and how long it took; printed for the README's table (pytest -s)."""
    options = BuildOptions(workspace_mib=WORKSPACE_MIB, **options)
    start = time.perf_counter()
    built = tensorrt_rtx.prepare(config, options).build(weights, own_quantization(weights, options.quantize))
    seconds = time.perf_counter() - start
    sizes = f"b {options.batch_sizes} s {options.sequence_lengths} targets {options.compute_capabilities or 'default'}"
    what = f"{config.num_hidden_layers} × {config.hidden_size} {'+'.join(built.precision)} {sizes}"
    print(f"\n{what}: {len(built.data) / 2**20:.1f} MiB in {seconds:.1f} s")
    return built


def with_ranges(config: BertConfig, weights: BertWeights, amax=4.0) -> BertWeights:
    """`weights` with a range for every tensor that a quantized network rounds; which one does not matter to a build."""
    names = []
    for i in range(config.num_hidden_layers):
        attention = f"l{i}_attention_self"
        for dense in (attention, f"l{i}_attention_output_dense", f"l{i}_intermediate_dense", f"l{i}_output_dense"):
            names += quantization.dense_input_names(dense)
        inputs = (*quantization.MATMUL_INPUTS, quantization.PROBABILITIES)
        names += [quantization.matmul_input_name(attention, which) for which in inputs]
    ranges = dict.fromkeys(names, np.float32(amax))
    channels = np.linspace(amax / 9, amax, config.hidden_size, dtype=np.float32)
    ranges |= dict.fromkeys(quantization.channel_range_names(config), channels)
    return replace(weights, ranges=ranges)


def is_encoder_kernel(name: str) -> bool:
    return name.startswith("l") and name.endswith("_kernel")


def check_size(built, weights, precision, profiles=1):
    """The plan holds each weight once, in the type asked for; what else it holds (code, graph) is small beside that."""
    kernels_too = built.precision[0] in ("int8", "fp8")
    stored = sum(
        tensor.size * (1 if kernels_too and is_encoder_kernel(name) else BYTES[precision])
        for name, tensor in weights.tensors.items()
    )
    # Beside the weights, 2 to 7 MiB a profile were seen with TensorRT-RTX 1.7.1.
    assert 0.97 * stored < len(built.data) < 1.02 * stored + profiles * (10 << 20)
    assert bytes(built.data[:4]) == module.RTX_PLAN_MAGIC


@pytest.fixture(scope="module")
def bundled():
    config = BertConfig.from_folder(BUNDLED)
    return config, load_weights(config, pytorch=BUNDLED)


@pytest.mark.parametrize("precision", BYTES)
def test_the_bundled_model_builds_in_every_precision(bundled, precision):
    config, weights = bundled
    built = build(config, weights, precision=precision)
    assert (built.network, built.precision, built.backend_version) == ("native", [precision], trt.__version__)
    check_size(built, weights, precision)


@pytest.mark.sampled(0.2, group="builds")
@pytest.mark.parametrize(
    "batch_sizes, lengths", [((1,), (384,)), ((1, 8), (128,)), ((1, 16), (128, 384))], ids=["static", "batches", "both"]
)
def test_bert_base_builds_for_one_and_several_sizes(batch_sizes, lengths):
    weights = shaped_weights(BASE)
    built = build(
        BASE,
        weights,
        precision="fp16",
        batch_sizes=batch_sizes,
        sequence_lengths=lengths,
        compute_capabilities=("8.9",),
    )
    check_size(built, weights, "fp16", profiles=len(batch_sizes) * len(lengths))


#: The base models of the other families (ELECTRA's smallest, whose embeddings are projected).
FAMILIES = {
    "roberta": BertConfig(768, 12, 12, 3072, 50265, 512, 1, 1e-5, model_type="roberta", first_position=2),
    "distilbert": BertConfig(768, 6, 12, 3072, 30522, 512, 1, model_type="distilbert"),
    "electra": BertConfig(256, 12, 4, 1024, 30522, 512, embedding_size=128, model_type="electra"),
    "albert": BertConfig(768, 12, 12, 3072, 30000, 512, embedding_size=128, model_type="albert", layer_groups=1),
}


@pytest.mark.sampled(0.2, group="builds")
@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_base_models_of_other_families_build(family, layout):
    config, rng = FAMILIES[family], np.random.default_rng(0)
    tensors = {
        name: rng.random(shape, np.float32) * np.float32(0.04) - np.float32(0.02)
        for name, shape in expected_shapes(config).items()
    }
    weights = bert_weights(config, tensors, "tanh" if family == "albert" else "erf")
    options = {"precision": "fp16", "sequence_lengths": (384,), "compute_capabilities": ("8.9",)}
    # Equal tensors are stored once: ALBERT's plan is as small as its checkpoint.
    check_size(build(config, weights, layout=layout, **options), weights, "fp16")


#: Layers with heads and feed-forward columns of their own numbers, down to one head and 64 columns.
PRUNED = BertConfig(
    384,
    4,
    6,
    1536,
    3000,
    num_attention_heads_per_layer=(1, 6, 3, 2),
    intermediate_size_per_layer=(64, 1536, 832, 192),
)


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("quantize", [None, "int8", "fp8"])
def test_pruned_models_build(quantize, layout):
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.random(shape, np.float32) * np.float32(0.04) for name, shape in expected_shapes(PRUNED).items()
    }
    weights = with_ranges(PRUNED, bert_weights(PRUNED, tensors))
    options = {"precision": "fp16", "quantize": quantize, "layout": layout, "sequence_lengths": (128,)}
    built = build(PRUNED, weights, compute_capabilities=("8.9",), **options)
    check_size(built, weights, "fp16")


@pytest.mark.sampled(0.2, group="builds")
def test_bert_large_builds():
    weights = shaped_weights(LARGE)
    check_size(build(LARGE, weights, precision="fp16", sequence_lengths=(384,)), weights, "fp16")


@pytest.mark.parametrize("precision", BYTES)
def test_the_bundled_model_builds_packed_in_every_precision(bundled, precision):
    config, weights = bundled
    options = {"precision": precision}
    built = build(config, weights, layout="packed", batch_sizes=(1, 32), sequence_lengths=(384,), **options)
    assert (built.network, built.precision) == ("native", [precision])
    check_size(built, weights, precision, profiles=2)


@pytest.mark.sampled(0.2, group="builds")
@pytest.mark.parametrize("config, batch_sizes", [(BASE, (1, 32)), (LARGE, (16,))], ids=["base", "large"])
def test_bert_builds_packed(config, batch_sizes):
    weights = shaped_weights(config)
    built = build(config, weights, precision="fp16", layout="packed", batch_sizes=batch_sizes, sequence_lengths=(384,))
    check_size(built, weights, "fp16", profiles=len(batch_sizes))


#: fp8 has to be asked for where the GPUs have it: TensorRT-RTX's own targets go back to 8.0.
QUANTIZED = {"int8": {"quantize": "int8"}, "fp8": {"quantize": "fp8", "compute_capabilities": ("8.9", "12.0")}}
LAYOUTS = {"padded": {}, "packed": {"layout": "packed"}}


@pytest.mark.sampled(0.2, group="builds")
@pytest.mark.parametrize(
    "rest, layout", [("fp16", "padded"), ("fp16", "packed"), ("fp32", "packed"), ("bf16", "padded")]
)
@pytest.mark.parametrize("kind", QUANTIZED)
def test_the_bundled_model_builds_quantized(bundled, kind, rest, layout):
    config, weights = bundled
    quantized = with_ranges(config, weights)
    sizes = {"batch_sizes": (1, 8), "sequence_lengths": (384,)}
    built = build(config, quantized, **QUANTIZED[kind], **LAYOUTS[layout], precision=rest, **sizes)
    assert (built.network, built.precision) == ("native", [kind, rest])
    check_size(built, weights, rest, profiles=2)


@pytest.mark.sampled(0.2, group="builds")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", QUANTIZED)
def test_bert_base_builds_quantized(kind, layout):
    weights = with_ranges(BASE, shaped_weights(BASE))
    built = build(BASE, weights, precision="fp16", sequence_lengths=(384,), **QUANTIZED[kind], **LAYOUTS[layout])
    check_size(built, weights, "fp16")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_int8_attention_builds(bundled, layout):
    config, weights = bundled
    weights = with_ranges(config, weights)
    built = build(config, weights, precision="fp16", quantize="int8", force_int8_multihead=True, **LAYOUTS[layout])
    check_size(built, weights, "fp16")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_megatron_s_residual_builds_in_int8(bundled, layout):
    config, weights = bundled
    weights = with_ranges(config, weights)
    check_size(
        build(config, weights, precision="fp16", quantize="int8", megatron=True, **LAYOUTS[layout]), weights, "fp16"
    )


@pytest.mark.sampled(0.2, group="builds")
def test_builders_calibrate_and_build(script, tmp_path):
    """One calibration serves int8 and fp8, padded and packed."""
    data = Path(__file__).parent / "data" / "squad_v1.1.json"
    common = ("-pt", BUNDLED, "--backend", "tensorrt_rtx", "-s", 64, "-j", data, "-n", 4, "--fp16")
    engine, fp8 = tmp_path / "bert.engine", ("--fp8", "--compute-capability", "8.9")
    first = script("builder.py", *common, "--int8", "-iln", "-o", engine)
    assert first.code == 0 and "int8+fp16 on NVIDIA GPUs" in first.out, first.err
    assert "Note: --force-int8-skipln has no effect on this engine: native networks" in first.err
    (cache,) = tmp_path.glob("*.calibration")
    for name, flags in (("builder.py", fp8), ("builder_varseqlen.py", ("--int8",)), ("builder_varseqlen.py", fp8)):
        again = script(name, *common, *flags, "-p", cache, "-o", engine)
        assert again.code == 0 and f"Ranges: calibration cache {cache} (" in again.err, again.err
        assert f"{flags[0][2:]}+fp16 on NVIDIA GPUs" in again.out
    refused = script("builder.py", *common, "--fp8", "-p", cache, "-o", tmp_path / "no.engine")
    assert refused.code == 2 and "--fp8 needs compute capability 8.9" in refused.error


@pytest.mark.parametrize("targets", [("8.6",), ("8.9",), ("12.0",), ("8.6", "8.9", "12.0")], ids=" ".join)
def test_the_targets_are_those_asked_for(targets):
    built = build(SMALL, shaped_weights(SMALL), sequence_lengths=(64,), compute_capabilities=targets)
    assert built.settings == {"compute_capabilities": " ".join(targets)}
    assert built.device == f"NVIDIA GPUs of compute capability {', '.join(targets)}"


def test_the_builder_is_told_of_every_target():
    builder = trt.Builder(module.logger_of(trt))
    config = builder.create_builder_config()
    plan_builder._set_targets(trt, config, BuildOptions(compute_capabilities=("8.6", "12.0", "7.5")))
    assert config.num_compute_capabilities == 3
    kinds = trt.ComputeCapability
    assert [config.get_compute_capability(i) for i in range(3)] == [kinds.SM86, kinds.SM120, kinds.SM75]


def test_turing_makes_the_plan_larger():
    """One code serves Ampere and later; Turing's comes beside it."""
    ampere, both = (
        build(SMALL, shaped_weights(SMALL), sequence_lengths=(64,), precision="fp16", compute_capabilities=targets)
        for targets in (("8.6",), ("7.5", "8.6"))
    )
    assert len(both.data) > len(ampere.data)


def test_a_target_that_rtx_does_not_know_is_refused():
    with pytest.raises(UsageError, match=r"can't build for compute capability 6\.1; it can for 7\.5, .*12\.0"):
        build(SMALL, shaped_weights(SMALL), sequence_lengths=(16,), compute_capabilities=("6.1",))


@pytest.mark.parametrize("target", ["8", "8.x", "", "sm_86", "8.6.1"])
def test_a_target_that_is_none_is_refused(target):
    with pytest.raises(UsageError, match="a compute capability is written like 8.6|can't build for"):
        build(SMALL, shaped_weights(SMALL), sequence_lengths=(16,), compute_capabilities=(target,))


def test_what_the_builder_refuses_ends_in_one_line():
    """bf16 does not exist on Turing: the builder's own reason is passed on."""
    with pytest.raises(DemoBertError, match="could not build the engine.*sm75") as caught:
        build(SMALL, shaped_weights(SMALL), sequence_lengths=(16,), precision="bf16", compute_capabilities=("7.5",))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("flags", [{"strict": True}, {"sparse": True}, {"strict": True, "precision": "fp16"}], ids=str)
def test_flags_that_rtx_has_are_accepted(flags):
    build(SMALL, shaped_weights(SMALL), sequence_lengths=(32,), **flags)


def test_distributive_independence_makes_one_profile():
    options = {"batch_sizes": (1, 4), "sequence_lengths": (16, 32), "precision": "fp16"}
    one = build(SMALL, shaped_weights(SMALL), distributive_independence=True, **options)
    four = build(SMALL, shaped_weights(SMALL), **options)
    assert len(one.data) < len(four.data)


def test_a_timing_cache_is_left_alone(tmp_path):
    """TensorRT-RTX has none: its functions for one do nothing since release 1.2."""
    path = tmp_path / "timing.cache"
    path.write_bytes(b"of another TensorRT")
    build(SMALL, shaped_weights(SMALL), sequence_lengths=(16,), timing_cache=str(path))
    assert path.read_bytes() == b"of another TensorRT"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"quantize": "int8"}, "random has no range l0_attention_self_query_input_amax: calibrate"),
        (
            {"quantize": "fp8"},
            "--fp8 needs compute capability 8.9; TensorRT-RTX builds for 8.0 too unless --compute-cap",
        ),
        ({"quantize": "fp8", "compute_capabilities": ("8.6",)}, "--fp8 needs compute capability 8.9; --compute"),
        ({"network": "plugin"}, "has no BERT plugins; use --network native"),
        ({"plugin_version": "v3"}, "has no v3 BERT plugins; use --network native"),
        ({"layout": "packed", "interleaved": True}, "--interleaved needs --int8"),
        ({"layout": "packed", "interleaved": True, "quantize": "int8"}, "has no BERT plugins; leave --interleaved out"),
    ],
    ids=str,
)
def test_what_rtx_can_not_do_is_said_in_one_line(options, message):
    with pytest.raises(DemoBertError, match=message):
        build(SMALL, shaped_weights(SMALL), sequence_lengths=(16,), **options)


def test_a_weight_beyond_float16_is_an_error():
    weights = shaped_weights(SMALL)
    weights.tensors["l1_output_dense_kernel"] = weights.tensors["l1_output_dense_kernel"] + 70000
    with pytest.raises(DemoBertError, match="over 65504"):
        build(SMALL, weights, sequence_lengths=(16,), precision="fp16")


# The network as NVIDIA's library infers it, before it is built.


def native_network(config, options, precision, gelu, seed):
    """(network, whatever has to outlive it) of random weights."""
    logger = module.logger_of(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    layers = PaddedNativeLayers(trt, network, logger, config, precision, plan_builder.input_shape(options))
    weights = bert_weights(config, random_weights(config, np.random.default_rng(seed)), gelu)
    build_bert(layers, weights.config, weights)
    return network, (builder, layers)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("precision", BYTES)
def test_every_activation_has_the_type_asked_for(seed, precision):
    """But for what is float32 in any network: what layer norms read, the logits, and sums of float16 products."""
    rng = np.random.default_rng(seed)
    config = random_config(rng)
    lengths = tuple(sorted({int(n) for n in rng.integers(1, config.max_position_embeddings + 1, 2)}))
    options = BuildOptions(batch_sizes=((1,), (1, 3))[seed % 2], sequence_lengths=lengths)
    network, kept = native_network(config, options, precision, ("erf", "tanh")[seed // 2], seed)
    inputs = {network.get_input(i).name: network.get_input(i) for i in range(network.num_inputs)}
    assert set(inputs) == {"input_ids", "segment_ids", "input_mask"}
    assert all(tensor.dtype == trt.int32 for tensor in inputs.values())
    assert network.num_outputs == 1 and network.get_output(0).name == "logits_out"
    assert network.get_output(0).dtype == trt.float32
    assert tuple(network.get_output(0).shape) == (*plan_builder.input_shape(options), 2)
    wanted = {"fp32": trt.float32, "fp16": trt.float16, "bf16": trt.bfloat16}[precision]
    floats = {trt.float32, trt.float16, trt.bfloat16}
    norm = "layernorm/(gamma|beta|normal|add(/left|/right)?)"
    in_float32 = re.compile(f".*{norm}|bert_embeddings/(word_segment|sum)(/left|/right)?|cls_squad_output/float32")
    products = re.compile(".*/matmul/(hidden|kernel|float32)")
    found = set()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        tensor = layer.get_output(0)
        if tensor.dtype in floats:
            of_float16 = precision == "fp16" and products.fullmatch(layer.name)
            expected = trt.float32 if in_float32.fullmatch(layer.name) or of_float16 else wanted
            assert tensor.dtype == expected, (layer.name, seed)
        found.add(layer.name)
    summed = [f"l0_{dense}/matmul/float32" for dense in ("intermediate_dense", "attention_self/query_key_value")]
    assert (found >= set(summed)) == (precision == "fp16") and "l0_output_layernorm/add" in found
    del kept


def test_there_is_one_attention_layer_for_each_of_bert_s():
    network, kept = native_network(SMALL, BuildOptions(sequence_lengths=(16,)), "fp16", "erf", 0)
    kinds = [network.get_layer(index).type for index in range(network.num_layers)]
    assert kinds.count(trt.LayerType.ATTENTION_INPUT) == SMALL.num_hidden_layers
    assert kinds.count(trt.LayerType.NORMALIZATION) == 1 + 2 * SMALL.num_hidden_layers
    names = [network.get_layer(index).name for index in range(network.num_layers)]
    assert len(set(names)) == len(names)
    del kept


# Loading, as far as that goes without a GPU.


@pytest.mark.parametrize("cut", [100, 0.5, -1], ids=["header", "half", "last byte"])
def test_a_truncated_plan_is_refused_in_one_line(cut):
    plan = bytes(build(SMALL, shaped_weights(SMALL), sequence_lengths=(16,)).data)
    cut = int(cut * len(plan)) if isinstance(cut, float) else cut
    logger = module.logger_of(trt)
    logger.start(verbose=False)
    with pytest.raises(DemoBertError, match="can't load bert.engine: it is damaged") as caught:
        engine.deserialize(trt, logger, trt.Runtime(logger), plan[:cut], "bert.engine")
    assert "\n" not in str(caught.value)
    # TensorRT's own reason is the cause, not the missing driver that follows every error on a machine without one.
    assert "cudaError" not in str(caught.value)


def test_a_plan_is_recognised_by_its_first_bytes(tmp_path):
    from helpers.backends import tensorrt

    path = tmp_path / "bert.engine"
    path.write_bytes(bytes(build(SMALL, shaped_weights(SMALL), sequence_lengths=(16,)).data))
    assert tensorrt_rtx.recognises(path) and not tensorrt.recognises(path)
    path.write_bytes(b"{}")
    assert not tensorrt_rtx.recognises(path) and not tensorrt.recognises(path)
