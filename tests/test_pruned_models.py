"""Pruned models, each layer with heads and feed-forward columns of its own number: every engine computes what torch does."""

from dataclasses import replace

import numpy as np
import pytest

from helpers.backends import backend_module, load_engine, write_engine
from helpers.batching import PackedBatch, PaddedBatch
from helpers.bert_config import BertConfig
from helpers.build_options import BuildOptions
from helpers.errors import DemoBertError, UsageError
from helpers.quantization import Quantization, range_names
from helpers.weights import load_weights
from helpers.weights.canonical import expected_shapes
from scripts.benchmarks import hugging_face
from tests import checkpoints
from tests.reference_bert import fake_quantizer, random_inputs, random_weights, reference_logits
from tests.tensorrt_double import install
from tests.test_tensorrt_engines import NETWORKS, write
from tests.test_tensorrt_int8 import FORMS, PLUGINS, Case
from tests.test_tensorrt_native_int8 import is_dense

pytestmark = pytest.mark.usefixtures("int8_norms_of_any_size")

#: The issue's bound; what float32 engines differ by is some 1e-5 of logits near one.
TOLERANCE = 1e-3


def pruned_config(rng, **changed) -> BertConfig:
    """Heads of 64 as TensorRT's plugins want them; no two layers alike, one of them down to one head, one to 64 columns."""
    layers = int(rng.integers(2, 5))
    heads = rng.permutation([1, *(1 + rng.permutation(5)[: layers - 1] + 1)])
    inner = 64 * rng.permutation([1, *(1 + rng.permutation(8)[: layers - 1] + 1)])
    sizes = {
        "hidden_size": 64 * int(heads.max() + rng.integers(0, 2)),
        "num_hidden_layers": layers,
        "intermediate_size": int(inner.max()) + 64,
        "vocab_size": int(rng.integers(40, 400)),
        "max_position_embeddings": int(rng.integers(16, 64)),
        "num_attention_heads_per_layer": tuple(map(int, heads)),
        "intermediate_size_per_layer": tuple(map(int, inner)),
    }
    sizes["num_attention_heads"] = sizes["hidden_size"] // 64
    return BertConfig(**sizes | changed)


def packed_of(inputs) -> tuple[PackedBatch, np.ndarray]:
    """The tokens of padded rows as a packed batch, and where they were."""
    ids, segments, mask = inputs
    tokens, lengths = mask.astype(bool), mask.sum(1)
    bounds = np.cumsum([0, *lengths], dtype=np.int32)
    return PackedBatch(ids[tokens], segments[tokens], bounds, np.zeros(lengths.max(), np.int32)), tokens


def worst(path, layout: str, inputs, expected: np.ndarray) -> float:
    """The largest difference of an engine's logits at tokens to `expected` [B, S, 2]."""
    batch, tokens = packed_of(inputs)
    engine = load_engine(path, layout)
    logits = engine.run(batch) if layout == "packed" else engine.run(PaddedBatch(*inputs))[tokens]
    engine.close()
    return np.abs(logits - expected[tokens]).max()


# The checkpoint


def test_sizes_are_those_of_the_configuration(rng, tmp_path):
    config = pruned_config(rng)
    tensors = random_weights(config, rng)
    assert {name: tensor.shape for name, tensor in tensors.items()} == expected_shapes(config)
    folder = checkpoints.write_folder(tmp_path / "model", config, checkpoints.pytorch_state(config, tensors))
    read = load_weights(BertConfig.from_folder(folder), pytorch=folder)
    assert replace(read.config, gelu=None) == config == BertConfig.from_dict(vars(config))


@pytest.mark.parametrize("name", ["num_attention_heads_per_layer", "intermediate_size_per_layer"])
def test_tensors_of_other_sizes_are_refused(name, rng, tmp_path, script):
    config = pruned_config(rng)
    state = checkpoints.pytorch_state(config, random_weights(config, rng))
    sizes = list(getattr(config, name))
    layer = int(rng.integers(len(sizes)))
    sizes[layer] += 1 if sizes[layer] == 1 else -1
    other = replace(config, **{name: tuple(sizes)})
    for wrong in (other, replace(config, **{name: None})):
        folder = checkpoints.write_folder(tmp_path / "model", wrong, state)
        error = script("builder.py", "-pt", folder, "-o", tmp_path / "a.engine", "-s", 16).error
        assert "misshapen: l" in error and " instead of " in error


@pytest.mark.parametrize(
    "sizes", [[1], [0, 1, 1], [1, 1, 9], [1, True, 1], [1, 1.0, 1], "111", {"0": 1}, 3, [1] * 10**5]
)
def test_sizes_that_make_no_sense_are_refused_in_one_line(sizes):
    values = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 8}
    values |= {"intermediate_size": 8, "vocab_size": 9}
    for name in ("num_attention_heads_per_layer", "intermediate_size_per_layer"):
        with pytest.raises(DemoBertError, match=f"{name} must be 3 whole numbers from 1 to 8, one a layer") as error:
            BertConfig.from_dict(values | {name: sizes})
        assert len(str(error.value)) < 300
        with pytest.raises(DemoBertError, match="share their weights"):
            BertConfig.from_dict(values | {name: [1, 1, 1], "layer_groups": 1})


@pytest.mark.parametrize("kind", ["onnx", "pt"])
def test_other_formats_are_read(kind, rng, tmp_path):
    config = pruned_config(rng, layer_norm_eps=1e-12)
    tensors = random_weights(config, rng)
    if kind == "pt":
        state = checkpoints.pytorch_state(config, tensors)
        read = load_weights(config, pytorch=checkpoints.write_pickled(tmp_path / "model.pt", state))
    else:
        model = checkpoints.hugging_face_model(config, tensors)
        read = load_weights(config, onnx=checkpoints.write_onnx(tmp_path / "model.onnx", model, dynamo=False))
    assert all(np.allclose(read[name], tensor, atol=1e-6) for name, tensor in tensors.items())


def test_the_benchmarks_load_it_as_hugging_face_s(rng, tmp_path):
    config = pruned_config(rng)
    tensors = random_weights(config, rng)
    folder = checkpoints.write_folder(tmp_path / "model", config, checkpoints.pytorch_state(config, tensors))
    inputs = random_inputs(config, rng, 2, 16)
    found = checkpoints.hugging_face_logits(hugging_face.load(folder), *inputs)[inputs[2].astype(bool)]
    expected = reference_logits(config, tensors, "erf", *inputs)[inputs[2].astype(bool)]
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


# OpenVINO


@pytest.mark.parametrize("round_", range(2))
def test_openvino_engines_compute_what_torch_does(round_, rng, tmp_path, script):
    head_size = int(rng.choice([64, 64, 32, 20]))  # the CPU takes any
    config = pruned_config(rng)
    config = replace(config, hidden_size=config.num_attention_heads * head_size)
    tensors, longest = random_weights(config, rng), config.max_position_embeddings
    folder = checkpoints.write_folder(tmp_path / "model", config, checkpoints.pytorch_state(config, tensors))
    inputs = random_inputs(config, rng, 5, longest)
    expected = checkpoints.hugging_face_logits(checkpoints.hugging_face_model(config, tensors), *inputs)
    np.testing.assert_allclose(expected, reference_logits(config, tensors, "erf", *inputs), atol=TOLERANCE)
    for layout, builder in (("padded", "builder.py"), ("packed", "builder_varseqlen.py")):
        path = tmp_path / f"{layout}.engine"
        flags = ("-b", 5, "-s", longest, "--backend", "openvino")
        result = script(builder, "-pt", folder, "-o", path, *flags)
        assert result.code == 0, result
        assert worst(path, layout, inputs, expected) < TOLERANCE
        assert load_engine(path, layout).card.config == replace(config, gelu="erf")


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_openvino_in_int8_and_half_precision(layout, precision, rng, tmp_path):
    """Near the float logits, and near NumPy's fake quantization by less than that is off."""
    config = pruned_config(rng)
    tensors, longest = random_weights(config, rng), config.max_position_embeddings
    inputs = random_inputs(config, rng, 5, longest)
    seen = {}
    expected = reference_logits(config, tensors, "erf", *inputs, quantize=lambda n, v: seen.setdefault(n, v))
    ranges = {name: np.float32(np.abs(seen[name]).max()) for name in range_names(config)}
    weights = checkpoints.bert_weights(config, tensors, ranges=ranges)
    sizes = {"batch_sizes": (5,), "sequence_lengths": (longest,), "layout": layout, "precision": precision}
    for quantize, bound in (("int8", 0.35), (None, 0.15)):
        prepared = backend_module("openvino").prepare(config, BuildOptions(quantize=quantize, **sizes))
        built = prepared.build(weights, quantize and Quantization(quantize, ranges, "a test"))
        path = tmp_path / f"{quantize}.engine"
        write_engine(path, built, "openvino", prepared.options, weights.config)
        assert worst(path, layout, inputs, expected) < bound


# TensorRT, by its double


@pytest.mark.sampled(0.5)
@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("version, network, interface", NETWORKS)
def test_tensorrt_networks_compute_what_numpy_does(version, network, interface, layout, rng, tmp_path, monkeypatch):
    install(version, monkeypatch)
    config = pruned_config(rng)
    weights, longest = checkpoints.bert_weights(config, random_weights(config, rng)), config.max_position_embeddings
    path, inputs = tmp_path / "bert.engine", random_inputs(config, rng, 3, longest)
    options = {"layout": layout, "batch_sizes": (3,), "sequence_lengths": (longest,)}
    card = write(path, version, config, weights, network=network, plugin_version=interface, **options)
    assert (card.network, card.config.num_attention_heads_per_layer) == (network, config.num_attention_heads_per_layer)
    expected = reference_logits(config, weights.tensors, "erf", *inputs)
    assert worst(path, layout, inputs, expected) < TOLERANCE


@pytest.mark.sampled(0.5)
@pytest.mark.parametrize("version, interface", PLUGINS)
@pytest.mark.parametrize("form", FORMS)
def test_int8_plugin_networks(form, version, interface, rng, tmp_path, monkeypatch):
    install(version, monkeypatch)
    multihead = {"force_int8_multihead": True} if form == "padded" else {}
    case = Case(rng, FORMS[form] | multihead, config=pruned_config(rng))
    assert case.worst(tmp_path / "bert.engine", version, interface) < TOLERANCE


@pytest.mark.sampled(0.5)
@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("version", ["8.6.1", "10.16.1", "11.4.0"])
def test_int8_native_networks(version, layout, rng, tmp_path, monkeypatch):
    install(version, monkeypatch)
    config = pruned_config(rng)
    case = Case(rng, {"layout": layout} if layout == "packed" else {}, config=config)
    weights = checkpoints.bert_weights(config, case.tensors, ranges=case.ranges)
    sizes = {"batch_sizes": (3,), "sequence_lengths": (12,), "layout": layout, "network": "native"}
    write(tmp_path / "bert.engine", version, config, weights, quantize="int8", **sizes)
    engine = load_engine(tmp_path / "bert.engine", layout)
    wanted = fake_quantizer("int8", case.effective_ranges(), is_dense)
    found = [np.abs(engine.run(batch) - case.logits(batch, wanted)).max() for batch in case.batches]
    assert np.median(found) < TOLERANCE


def test_interleaved_plugins_take_whole_groups_of_channels(rng, tmp_path, monkeypatch):
    install("10.16.1", monkeypatch)
    config = BertConfig(96, 2, 4, 128, 50, 16, num_attention_heads_per_layer=(4, 1))
    weights = checkpoints.bert_weights(config, random_weights(config, rng))
    options = {"layout": "packed", "interleaved": True, "quantize": "int8", "sequence_lengths": (16,)}
    with pytest.raises(UsageError, match="channels in groups of 32, not those of 1 heads of 24"):
        write(tmp_path / "bert.engine", "10.16.1", config, weights, **options)


def test_a_megatron_checkpoint_may_be_pruned(rng, tmp_path):
    import pickle

    config = pruned_config(rng)
    tensors = random_weights(config, rng)
    path = tmp_path / "model.pickle"
    path.write_bytes(pickle.dumps(checkpoints.megatron_state(config, tensors)))
    read = load_weights(config, megatron=path)
    assert all(np.array_equal(read[name], tensor) for name, tensor in tensors.items())
