"""Packed TensorRT engines: every network that a release can build, against the strict double, held to the reference.

The reference computes one sequence after another, so that it knows nothing of packing.
"""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from helpers.backends import backend_module, load_engine
from helpers.backends.tensorrt import bert_plugins, native_packed, plan_builder, plugin_layers
from helpers.backends.tensorrt import engine as tensorrt_engine
from helpers.backends.tensorrt.native_packed import PackedNativeLayers
from helpers.backends.tensorrt.plan_builder import Profile
from helpers.batching import PackedBatch, PaddedBatch
from helpers.bert_config import BertConfig
from helpers.bert_network import build_bert
from helpers.build_options import BuildOptions
from helpers.engine_card import EngineCard
from helpers.errors import DemoBertError, UsageError
from tests.reference_bert import random_inputs, reference_logits
from tests.tensorrt_double import VERSIONS, TensorRTDoubleError, api, bindings, install, rtx
from tests.test_tensorrt_engines import BUNDLED, NETWORKS, RTX, TOLERANCE, run_script, small_config, weights_of, write

pytestmark = pytest.mark.sampled(0.5)

#: Of an fp32 engine, between two ways to pack the same sequences: what the issue allows. The double's float64 is far
#: inside; what could differ is a token that sees another sequence's.
PACKING_TOLERANCE = 1e-5

#: One layer of two small heads: 32 sequences of 384 tokens then pass through the double in about a second.
SMALL = BertConfig(16, 1, 2, 24, 60, 384, layer_norm_eps=1e-12)


def packed(config, rng, lengths) -> PackedBatch:
    """Random tokens in sequences of `lengths`. What max_seqlen holds must not matter, so it holds anything."""
    tokens = int(sum(lengths))
    return PackedBatch(
        rng.integers(0, config.vocab_size, tokens, dtype=np.int32),
        rng.integers(0, config.type_vocab_size, tokens, dtype=np.int32),
        np.cumsum([0, *lengths], dtype=np.int32),
        rng.integers(-9, 999, int(max(lengths)), dtype=np.int32),
    )


def sequences(batch: PackedBatch) -> list:
    """The token range of each sequence."""
    return [slice(begin, end) for begin, end in itertools.pairwise(batch.cu_seqlens)]


def subset(batch: PackedBatch, order) -> PackedBatch:
    """Sequences of `batch`, by index, as a batch of their own."""
    chosen = [sequences(batch)[index] for index in order]
    lengths = [part.stop - part.start for part in chosen]
    ids, segments = (np.concatenate([array[part] for part in chosen]) for array in (batch.input_ids, batch.segment_ids))
    return PackedBatch(ids, segments, np.cumsum([0, *lengths], dtype=np.int32), np.zeros(max(lengths), np.int32))


def reference(config, weights, gelu, batch: PackedBatch) -> np.ndarray:
    """Logits [T, 2] in float64, sequence by sequence."""
    parts = [(batch.input_ids[None, part], batch.segment_ids[None, part]) for part in sequences(batch)]
    return np.concatenate(
        [reference_logits(config, weights.tensors, gelu, *part, np.ones_like(part[0]))[0] for part in parts]
    )


def difference(engine, config, weights, gelu, batch: PackedBatch) -> float:
    logits = engine.run(batch)
    assert logits.shape == (len(batch.input_ids), 2) and logits.dtype == np.float32
    return np.abs(logits - reference(config, weights, gelu, batch)).max()


def built_graphs(monkeypatch) -> list:
    """The double's graph of each network that is built from now on."""
    graphs, check = [], api._check_build
    monkeypatch.setattr(api, "_check_build", lambda *args: graphs.append(args[1]._graph) or check(*args))
    return graphs


@pytest.fixture
def engine_path(tmp_path):
    return tmp_path / "bert.engine"


# Numbers


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("version, network, interface", NETWORKS)
@pytest.mark.parametrize("gelu", ["erf", "tanh"])
def test_logits_are_the_reference_s(version, network, interface, gelu, engine_path, monkeypatch, rng):
    install(version, monkeypatch)
    config = small_config(rng)
    weights, longest = weights_of(config, rng), config.max_position_embeddings
    options = {"layout": "packed", "batch_sizes": (1, 7), "sequence_lengths": (longest,)}
    card = write(engine_path, version, config, weights, gelu, network=network, plugin_version=interface, **options)
    assert (card.network, card.layout, card.precision) == (network, "packed", ["fp32"])
    engine = load_engine(engine_path, "packed")
    for lengths in ([longest], [1], rng.integers(1, longest + 1, 7), [1, longest, 1]):
        worst = difference(engine, config, weights, gelu, packed(config, rng, lengths))
        assert worst < TOLERANCE["fp32"], (config, lengths)
    engine.close()


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("version, network, interface", NETWORKS)
def test_what_a_sequence_is_packed_with_does_not_matter(version, network, interface, engine_path, monkeypatch, rng):
    """Up to 32 sequences of 1 to 384 tokens: shuffled, and in two batches, each gets the logits that it got before."""
    install(version, monkeypatch)
    weights = weights_of(SMALL, rng)
    options = {"layout": "packed", "batch_sizes": (8, 32), "sequence_lengths": (384,)}
    write(engine_path, version, SMALL, weights, network=network, plugin_version=interface, **options)
    engine = load_engine(engine_path, "packed")
    count = int(rng.integers(2, 33))
    batch = packed(SMALL, rng, rng.integers(1, 385, count))
    logits = engine.run(batch)
    np.testing.assert_allclose(logits, reference(SMALL, weights, "erf", batch), atol=TOLERANCE["fp32"])
    order, cut = rng.permutation(count), int(rng.integers(1, count))
    expected = np.concatenate([logits[sequences(batch)[index]] for index in order])
    shuffled = engine.run(subset(batch, order))
    np.testing.assert_allclose(shuffled, expected, atol=PACKING_TOLERANCE)
    regrouped = np.concatenate([engine.run(subset(batch, part)) for part in (order[:cut], order[cut:])])
    np.testing.assert_allclose(regrouped, expected, atol=PACKING_TOLERANCE)


@pytest.mark.parametrize("version, network, interface", NETWORKS)
def test_packed_and_padded_engines_agree(version, network, interface, engine_path, tmp_path, monkeypatch, rng):
    install(version, monkeypatch)
    config, length = replace(small_config(rng), max_position_embeddings=24), 24
    weights, kind = weights_of(config, rng), {"network": network, "plugin_version": interface}
    sizes = {"batch_sizes": (5,), "sequence_lengths": (length,)}
    write(engine_path, version, config, weights, layout="packed", **kind, **sizes)
    write(tmp_path / "padded.engine", version, config, weights, **kind, **sizes)
    ids, segments, mask = random_inputs(config, rng, 5, length)
    padded = load_engine(tmp_path / "padded.engine", "padded").run(PaddedBatch(ids, segments, mask))
    tokens = mask.astype(bool)
    bounds = np.cumsum([0, *mask.sum(1)], dtype=np.int32)
    longest = np.zeros(mask.sum(1).max(), np.int32)
    logits = load_engine(engine_path, "packed").run(PackedBatch(ids[tokens], segments[tokens], bounds, longest))
    np.testing.assert_allclose(logits, padded[tokens], atol=TOLERANCE["fp32"])


@pytest.mark.parametrize("version", ["8.6.1", "10.16.1"])
def test_the_two_orders_of_logits(version, engine_path, monkeypatch, rng):
    """demoBERT's, and the one in which Triton can hand them back to requests."""
    install(version, monkeypatch)
    config = small_config(rng)
    weights = weights_of(config, rng)
    options = {"layout": "packed", "batch_sizes": (4,), "sequence_lengths": (16,), "network": "plugin"}
    batch = packed(config, rng, rng.integers(1, 17, 4))
    shapes = []
    for by_token in (False, True):
        write(engine_path, version, config, weights, **options, logits_by_token=by_token)
        engine = load_engine(engine_path, "packed")
        shapes.append(tuple(engine.session.engine.get_tensor_shape("logits_out")))
        assert difference(engine, config, weights, "erf", batch) < TOLERANCE["fp32"]
        engine.close()
    assert shapes == [(2, -1, 1, 1), (-1, 2, 1, 1)]


@pytest.mark.parametrize("version", [version for version in VERSIONS if version != "8.6.1"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision(version, precision, engine_path, monkeypatch, rng):
    install(version, monkeypatch)
    config = small_config(rng)
    weights = weights_of(config, rng)
    options = {"layout": "packed", "batch_sizes": (4,), "sequence_lengths": (16,), "precision": precision}
    assert write(engine_path, version, config, weights, network="native", **options).precision == [precision]
    batch = packed(config, rng, rng.integers(1, 17, 4))
    worst = difference(load_engine(engine_path, "packed"), config, weights, "erf", batch)
    # Not so near either that the type can't have been used.
    assert 1e-6 < worst < TOLERANCE[precision], config


@pytest.mark.parametrize("version, interface", [("8.6.1", "deprecated"), ("10.16.1", "deprecated"), ("10.16.1", "v3")])
def test_half_precision_plugins(version, interface, engine_path, monkeypatch, rng):
    """The double rounds strongly typed networks only; here the plugins' own types tell."""
    install(version, monkeypatch)
    graphs = built_graphs(monkeypatch)
    config = small_config(rng)
    weights = weights_of(config, rng)
    options = {"layout": "packed", "batch_sizes": (4,), "sequence_lengths": (16,), "precision": "fp16"}
    card = write(engine_path, version, config, weights, plugin_version=interface, **options)
    assert (card.precision, card.network) == (["fp16", "fp32"], "plugin")
    plugins = [node.params for node in graphs[0].nodes if node.kind == "plugin"]
    assert {params.get("output_fp16", params.get("type_id")) for params in plugins} == {1}
    assert {params["variant"] for params in plugins} == {"packed"}
    batch = packed(config, rng, rng.integers(1, 17, 4))
    assert difference(load_engine(engine_path, "packed"), config, weights, "erf", batch) < TOLERANCE["fp16"]


# Forms of the network


@pytest.mark.parametrize("version, forms", [("11.4.0", ["PACKED_NHD"]), (RTX, ["PACKED_NHD", "PADDED_BHND"])])
def test_fused_packed_attention_is_used_where_the_builder_has_it(version, forms, engine_path, monkeypatch, rng):
    install(version, monkeypatch)
    graphs = built_graphs(monkeypatch)
    config = small_config(rng)
    write(engine_path, version, config, weights_of(config, rng), layout="packed", sequence_lengths=(8,))
    kinds = [{node.params["query_form"] for node in graph.nodes if node.kind == "attention"} for graph in graphs]
    assert kinds == [{form} for form in forms]


def test_without_a_kernel_the_network_unpads_around_attention(engine_path, monkeypatch, rng):
    """TensorRT 11 too has kernels for some types, head sizes and GPUs only."""
    install("11.4.0", monkeypatch)
    original = api._missing_kernel
    monkeypatch.setattr(api, "_missing_kernel", lambda graph, version: original(graph, VERSIONS[RTX]))
    config = small_config(rng)
    weights = weights_of(config, rng)
    write(engine_path, "11.4.0", config, weights, layout="packed", batch_sizes=(3,), sequence_lengths=(9,))
    engine = load_engine(engine_path, "packed")
    batch = packed(config, rng, rng.integers(1, 10, 3))
    assert difference(engine, config, weights, "erf", batch) < TOLERANCE["fp32"]


def test_a_build_that_fails_in_every_form_says_why_in_one_line(engine_path, monkeypatch, rng):
    install("11.4.0", monkeypatch)
    monkeypatch.setattr(api, "_missing_kernel", lambda graph, version: "out of\nkernels")
    config = small_config(rng)
    with pytest.raises(DemoBertError, match="could not build the engine: .*out of kernels") as caught:
        write(engine_path, "11.4.0", config, weights_of(config, rng), layout="packed", sequence_lengths=(8,))
    assert "\n" not in str(caught.value) and not engine_path.exists()


@pytest.mark.parametrize(
    "version, options, capability, network",
    [
        ("10.16.1", {"precision": "fp16"}, (8, 6), "plugin"),
        ("8.6.1", {"precision": "fp16"}, (7, 2), "plugin"),
        # The plugin's fused kernels are of half precision and int8.
        ("10.16.1", {}, (8, 6), "native"),
        ("10.16.1", {"network": "plugin"}, (8, 6), "plugin"),
        ("10.16.1", {"precision": "fp16"}, (7, 0), "native"),
        ("10.16.1", {"precision": "bf16"}, (8, 6), "native"),
        ("11.4.0", {"precision": "fp16"}, (8, 6), "native"),
    ],
    ids=str,
)
def test_the_network_that_suits_the_release_and_the_gpu(
    version, options, capability, network, engine_path, monkeypatch, rng
):
    install(version, monkeypatch, capability)
    config = small_config(rng)
    weights = weights_of(config, rng)
    card = write(engine_path, version, config, weights, layout="packed", sequence_lengths=(8,), **options)
    assert card.network == network


WIDE = BertConfig(144, 1, 2, 24, 60, 600, layer_norm_eps=1e-12)


@pytest.mark.parametrize(
    "changes, options, capability, message",
    [
        ({}, {}, (7, 0), "packed BERT plugins need compute capability 7.2; this GPU has 7.0; use --network native"),
        ({}, {}, (8, 6), "heads of up to 64, this model's have 72; use --network native"),
        ({"num_attention_heads": 4}, {"sequence_lengths": (385,)}, (8, 6), "sequences of up to 384 tokens; use"),
        ({"num_attention_heads": 4, "layer_norm_eps": 1e-3}, {}, (8, 6), "ignore this model's layer_norm_eps, 0.001"),
    ],
    ids=["GPU", "heads", "length", "epsilon"],
)
def test_what_packed_plugins_can_not_do(changes, options, capability, message, engine_path, monkeypatch, rng):
    install("10.16.1", monkeypatch, capability)
    config = replace(WIDE, **changes)
    weights = weights_of(config, rng)
    options = {"layout": "packed", "precision": "fp16", "sequence_lengths": (8,)} | options
    with pytest.raises(UsageError, match=message):
        write(engine_path, "10.16.1", config, weights, network="plugin", **options)
    assert write(engine_path, "10.16.1", config, weights, **options).network == "native"


def test_packed_plugins_of_longer_sequences_than_they_write(engine_path, monkeypatch, rng):
    """As builder.py once built them: refused when they are loaded; and the double does not play what is not written."""
    install("10.16.1", monkeypatch)
    config = replace(WIDE, num_attention_heads=4)
    weights = weights_of(config, rng)
    options = {"layout": "packed", "precision": "fp16", "network": "plugin", "sequence_lengths": (385,)}
    with monkeypatch.context() as patch:
        patch.setattr(plan_builder, "MAX_PACKED_LENGTH", 512)
        write(engine_path, "10.16.1", config, weights, **options)
    with pytest.raises(
        DemoBertError, match="of 385 tokens, of which packed BERT plugins leave those behind the first 384"
    ):
        load_engine(engine_path, "packed")
    monkeypatch.setattr(tensorrt_engine, "MAX_PACKED_LENGTH", 512)
    engine = load_engine(engine_path, "packed")
    engine.run(packed(config, rng, [384]))
    with pytest.raises(TensorRTDoubleError, match="packed embeddings write 384 tokens of a sequence, not 385"):
        engine.run(packed(config, rng, [385]))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"interleaved": True}, "--interleaved needs --int8"),
        ({"interleaved": True, "quantize": "int8", "network": "native"}, "no plugins; leave --interleaved out"),
        (
            {"megatron": True, "quantize": "int8", "network": "plugin"},
            "interleaved ones: add --interleaved; use --network",
        ),
    ],
)
def test_flags_that_need_another(options, message, monkeypatch):
    install("10.16.1", monkeypatch)
    with pytest.raises(UsageError, match=message):
        backend_module("tensorrt").prepare(SMALL, BuildOptions(layout="packed", **options))


# Profiles


def test_one_profile_for_each_batch_size():
    options = BuildOptions(layout="packed", batch_sizes=(1, 8), sequence_lengths=(384,))
    assert plan_builder.profiles_for(options) == [Profile(1, 384), Profile(8, 384)]
    assert plan_builder.profiles_for(replace(options, distributive_independence=True)) == [Profile(8, 384)]
    assert plan_builder.profile_shapes(Profile(8, 384), "packed") == {
        "input_ids": ((1,), (3072,)),
        "segment_ids": ((1,), (3072,)),
        "cu_seqlens": ((2,), (9,)),
        "max_seqlen": ((1,), (384,)),
    }


@pytest.mark.parametrize("version, network, interface", NETWORKS)
def test_the_smallest_profile_that_holds_the_batch_is_used(version, network, interface, engine_path, monkeypatch, rng):
    install(version, monkeypatch)
    config = replace(small_config(rng), max_position_embeddings=16)
    weights = weights_of(config, rng)
    options = {"layout": "packed", "batch_sizes": (1, 3, 6), "sequence_lengths": (16,)}
    write(engine_path, version, config, weights, network=network, plugin_version=interface, **options)
    engine = load_engine(engine_path, "packed")
    used = []
    for count in (1, 2, 3, 4, 6, 1):
        batch = packed(config, rng, rng.integers(1, 17, count))
        assert difference(engine, config, weights, "erf", batch) < TOLERANCE["fp32"]
        used.append(engine.session.active_profile)
    assert used == [0, 1, 1, 2, 2, 0]
    # A filled profile: every token of the budget.
    assert difference(engine, config, weights, "erf", packed(config, rng, [16] * 6)) < TOLERANCE["fp32"]
    assert "3 profiles" in engine.describe()


def test_timing_runs_the_engine(engine_path, monkeypatch, rng):
    install("11.4.0", monkeypatch)
    options = {"layout": "packed", "batch_sizes": (2,), "sequence_lengths": (8,)}
    write(engine_path, "11.4.0", SMALL, weights_of(SMALL, rng), **options)
    latencies = load_engine(engine_path, "packed").time(packed(SMALL, rng, [3, 8]), 5, 2)
    assert latencies.shape == (5,) and (latencies > 0).all()


# Loading, and batches that do not fit


@pytest.mark.parametrize("network", ["plugin", "native"])
def test_a_packed_plan_without_a_card_tells_its_sizes(network, engine_path, monkeypatch, rng):
    install("10.16.1", monkeypatch)
    config = small_config(rng)
    weights = weights_of(config, rng)
    options = {"layout": "packed", "batch_sizes": (1, 4), "sequence_lengths": (16,), "network": network}
    write(engine_path, "10.16.1", config, weights, **options)
    with pytest.raises(DemoBertError, match="is a packed engine, run it with inference_varseqlen.py"):
        load_engine(engine_path, "padded")
    engine = backend_module("tensorrt").load(engine_path, None)
    card = engine.card
    found = (card.layout, card.batch_sizes, card.sequence_lengths, card.network)
    assert found == ("packed", [1, 4], [16], network)
    assert difference(engine, config, weights, "erf", packed(config, rng, [16, 1, 7])) < TOLERANCE["fp32"]


def batch_of(ids, bounds, longest):
    ids = np.array(ids, np.int32)
    return PackedBatch(ids, np.zeros_like(ids), np.array(bounds, np.int32), np.zeros(longest, np.int32))


@pytest.mark.parametrize(
    "batch",
    [
        batch_of([1] * 4, [1, 4], 4),
        batch_of([1] * 4, [0, 3, 2, 4], 4),
        batch_of([1] * 4, [0, 2, 5], 4),
        batch_of([1] * 4, [0, 2, 2, 4], 4),
        batch_of([1] * 9, [0, 9], 9),
        batch_of([1] * 9, [0, 4, 9], 4),
        batch_of([1] * 4, [0, 1, 2, 3, 4], 1),
        batch_of([1] * 25, [0, 8, 16, 24, 25], 8),
        batch_of([1, 60], [0, 2], 2),
        PaddedBatch(*np.ones((3, 1, 4), np.int32)),
    ],
    ids=["start", "descending", "end", "empty", "long", "max_seqlen", "sequences", "tokens", "id", "padded"],
)
def test_a_batch_that_does_not_fit_is_refused_before_the_gpu_sees_it(batch, engine_path, monkeypatch, rng):
    double = install("10.16.1", monkeypatch)
    options = {"layout": "packed", "batch_sizes": (3,), "sequence_lengths": (8,)}
    write(engine_path, "10.16.1", SMALL, weights_of(SMALL, rng), network="plugin", **options)
    engine = load_engine(engine_path, "packed")
    with pytest.raises(DemoBertError) as caught:
        engine.run(batch)
    assert "\n" not in str(caught.value)
    assert ("IExecutionContext", "set_input_shape") not in double.recorder.calls


# Mistakes that have to show: each makes the build fail or the logits wrong.


def positions_run_on(monkeypatch):
    """Position embeddings by the token's place in the batch, not in its sequence."""

    def positions(self, table, name):
        return self._gather(table, self._range(self.input_ids, 24, f"{name}/all"), name)

    monkeypatch.setattr(PackedNativeLayers, "_positions", positions)


def mask_not_given(monkeypatch):
    monkeypatch.setattr(PackedNativeLayers, "_boolean_mask", lambda self, name: None)


def slots_not_clipped(monkeypatch):
    original = PackedNativeLayers.elementwise

    def elementwise(self, left, right, operation, name):
        return left if operation == "MIN" else original(self, left, right, operation, name)

    monkeypatch.setattr(PackedNativeLayers, "elementwise", elementwise)


def tokens_not_put_back(monkeypatch):
    original = PackedNativeLayers._unpad

    def unpad(self, *arguments):
        original(self, *arguments)
        self.slot_of_token = self._range(self.input_ids, 24, "wrong")

    monkeypatch.setattr(PackedNativeLayers, "_unpad", unpad)


def padded_plugin_versions(monkeypatch):
    monkeypatch.setattr(plan_builder, "PACKED_VERSIONS", bert_plugins.PADDED_VERSIONS)


def heads_not_interleaved(monkeypatch):
    def query_key_value(self, hidden, kernel, bias, name):
        return self.dense(hidden, kernel, bias, name)

    monkeypatch.setattr(plugin_layers.PackedPluginLayers, "query_key_value", query_key_value)


def var_seqlen_not_asked_for(monkeypatch):
    original = plugin_layers.PackedPluginLayers._integer

    def integer(self, name, value):
        return original(self, name, 0 if name == "var_seqlen" else value)

    monkeypatch.setattr(plugin_layers.PackedPluginLayers, "_integer", integer)


def logits_not_transposed(monkeypatch):
    from helpers.backends.tensorrt import engine

    monkeypatch.setattr(engine.Session, "gives_starts_first", False)


@pytest.mark.parametrize(
    "mistake, network",
    [
        (positions_run_on, "native"),
        (mask_not_given, "native"),
        (slots_not_clipped, "native"),
        (tokens_not_put_back, "native"),
        (padded_plugin_versions, "plugin"),
        (heads_not_interleaved, "plugin"),
        (var_seqlen_not_asked_for, "plugin"),
        (logits_not_transposed, "plugin"),
    ],
)
def test_a_mistake_would_be_seen(mistake, network, engine_path, monkeypatch):
    rng = np.random.default_rng(7)
    install("10.16.1", monkeypatch)
    config = BertConfig(32, 1, 4, 40, 50, 24, layer_norm_eps=1e-12)
    weights, batch = weights_of(config, rng), packed(config, rng, [3, 8, 1, 5])

    def worst():
        options = {"layout": "packed", "batch_sizes": (4,), "sequence_lengths": (8,)}
        write(engine_path, "10.16.1", config, weights, network=network, **options)
        return difference(load_engine(engine_path, "packed"), config, weights, "erf", batch)

    assert worst() < TOLERANCE["fp32"]
    mistake(monkeypatch)
    try:
        found = worst()
    except (DemoBertError, TensorRTDoubleError):
        return  # refused, by the backend or by the double: seen as well
    assert not found < 10 * TOLERANCE["fp32"]


# What the backend uses, held to NVIDIA's bindings; shapes and types, to TensorRT-RTX.


@pytest.mark.parametrize("version", VERSIONS)
def test_all_that_the_backend_uses_is_in_the_real_module(version, engine_path, tmp_path, monkeypatch, rng):
    if bindings.extension(version) is None:
        pytest.skip(f"the bindings of TensorRT {version} were not fetched: tests/tensorrt_double/fetch_bindings.sh")
    double = install(version, monkeypatch)
    config = small_config(rng)
    weights = weights_of(config, rng)
    for network, interface in [(network, interface) for release, network, interface in NETWORKS if release == version]:
        options = {"layout": "packed", "batch_sizes": (1, 2), "sequence_lengths": (8,), "network": network}
        write(engine_path, version, config, weights, plugin_version=interface, **options)
        engine = load_engine(engine_path, "packed")
        engine.time(packed(config, rng, [3, 8]), 2)
        engine.close()
    assert bindings.uses_unknown(double.recorder.calls, bindings.real_surface(version, tmp_path)) == []


def packed_native_bert(trt, network, precision, gelu, fused):
    """Writes a packed native BERT into any module's network; for `rtx.compare`."""
    rng = np.random.default_rng(3)
    config = BertConfig(48, 2, 4, 56, 60, 32)
    form = native_packed.FusedPackedNativeLayers if fused else native_packed.PackedNativeLayers
    layers = form(trt, network, None, config, precision, (128, 32))
    build_bert(layers, replace(config, gelu=gelu), weights_of(config, rng))
    return layers


@pytest.mark.parametrize("precision, gelu", [("fp32", "erf"), ("fp16", "tanh"), ("bf16", "erf")])
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "unpadding"])
def test_shapes_and_types_are_those_that_tensorrt_rtx_infers(precision, gelu, fused):
    if rtx.real_module_folder() is None:
        pytest.skip("TensorRT-RTX is not installed: pip install -r requirements-rtx.txt")
    assert rtx.compare("tests.test_tensorrt_packed:packed_native_bert", [precision, gelu, fused]) == []


# The scripts, end to end, on the bundled model


@pytest.mark.parametrize("version, flags, network", [("8.6.1", ("--fp16",), "plugin"), ("11.4.0", (), "native")])
def test_builder_inference_and_perf_varseqlen(version, flags, network, engine_path, tmp_path):
    built = run_script(version, "builder_varseqlen.py", "-pt", BUNDLED, "-o", engine_path, "-b", 2, "-s", 48, *flags)
    assert built.returncode == 0, built.stderr
    card = json.loads(EngineCard.path_for(engine_path).read_text())
    assert (card["layout"], card["network"], card["batch_sizes"]) == ("packed", network, [2])
    passage = "TensorRT is a high performance deep learning inference platform"
    question = ("-p", passage, "-q", "What is TensorRT?", "-b", 2)
    asked = run_script(version, "inference_varseqlen.py", "-e", engine_path, *question)
    assert "deep learning inference platform" in asked.stdout.split("Answer:")[-1], asked.stderr
    report = tmp_path / "perf.json"
    sizes = ("-b", 1, "-b", 2, "-s", 16, "-i", 1, "-w", 0)
    timed = run_script(version, "perf_varseqlen.py", "-e", engine_path, *sizes, "--json", report)
    assert timed.returncode == 0, timed.stderr
    assert [row["batch_size"] for row in json.loads(report.read_text())["timings"]] == [1, 2]
