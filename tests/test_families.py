"""RoBERTa, DistilBERT, ELECTRA and ALBERT beside BERT: every backend's logits against Hugging Face's float32."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from helpers import calibrator
from helpers.backends import backend_module, load_engine
from helpers.batching import packed_batch, padded_batch
from helpers.bert_config import BertConfig
from helpers.build_options import BuildOptions
from helpers.errors import DemoBertError
from helpers.weights import BertWeights, load_weights
from helpers.weights.canonical import expected_shapes
from helpers.weights.pytorch_names import canonical_name, pytorch_name
from tests.checkpoints import write_onnx
from tests.hugging_face_models import FAMILIES, logits_of, random_model, random_sizes, save
from tests.tensorrt_double import VERSIONS, install
from tests.test_packed import build_engine
from tests.test_tensorrt_engines import NETWORKS, write

#: float32 against float32 through other kernels, in logits of order one.
CPU_TOLERANCE = 1e-3

#: The double computes in float64: what is left is Hugging Face's own float32.
DOUBLE_TOLERANCE = 1e-4

ALL = sorted(FAMILIES)


def texts(config: BertConfig, padding_id: int, rng, lengths) -> list:
    """Windows of random tokens, as far as batching looks at them. No text has the padding's id."""
    ids = np.setdiff1d(np.arange(config.vocab_size), [padding_id]).astype(np.int32)
    return [
        SimpleNamespace(
            length=int(length),
            input_ids=rng.choice(ids, int(length)),
            segment_ids=rng.integers(0, config.type_vocab_size, int(length), dtype=np.int32),
        )
        for length in lengths
    ]


def read(model, folder) -> tuple[BertConfig, BertWeights]:
    """A model through its folder, as builder.py reads it."""
    folder = save(model, folder)
    config = BertConfig.from_folder(folder, answers_questions=True)
    weights = load_weights(config, pytorch=folder)
    return weights.config, weights


def expected(model, features) -> list:
    batch = padded_batch(features)
    logits = logits_of(model, batch.input_ids, batch.segment_ids, batch.input_mask)
    return [logits[row, : feature.length] for row, feature in enumerate(features)]


def difference(engine, features, wanted) -> float:
    """The largest difference of the engine's logits to those wanted, over all of the text."""
    if engine.card.layout == "padded":
        logits = [row[: feature.length] for row, feature in zip(engine.run(padded_batch(features)), features)]
    else:
        logits = np.split(engine.run(packed_batch(features)), np.cumsum([feature.length for feature in features])[:-1])
    return max(float(np.abs(ours - theirs).max()) for ours, theirs in zip(logits, wanted, strict=True))


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("family", ALL)
def test_the_cpu_s_logits_are_hugging_face_s(family, tmp_path, rng):
    for number in range(10):
        model = random_model(FAMILIES[family][number % len(FAMILIES[family])], rng)
        config, weights = read(model, tmp_path / str(number))
        longest = config.max_position_embeddings
        folder = tmp_path / f"{number}.engines"
        folder.mkdir()
        model_and_sizes = config, weights.tensors
        engines = [
            build_engine(folder, *model_and_sizes, layout, 9, longest, config.gelu) for layout in ("padded", "packed")
        ]
        for count in (1, int(rng.integers(2, 10))):
            lengths = rng.integers(1, longest + 1, count)
            lengths[0] = rng.choice([1, longest])
            features = texts(config, model.config.pad_token_id, rng, lengths)
            wanted = expected(model, features)
            for engine in engines:
                assert difference(engine, features, wanted) < CPU_TOLERANCE, (config, lengths, engine.card.layout)


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_native_networks_logits_are_hugging_face_s(layout, family, version, tmp_path, monkeypatch, rng):
    model = random_model(str(rng.choice(FAMILIES[family])), rng)
    install(version, monkeypatch)  # not before: transformers looks for tensorrt when it is imported, and at its spec
    check_network(model, layout, version, "native", None, tmp_path, rng)


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("version, interface", [(v, i) for v, network, i in NETWORKS if network == "plugin"])
@pytest.mark.parametrize("family", ["roberta", "distilbert", "electra"])
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_plugin_networks_logits_are_hugging_face_s(layout, family, version, interface, tmp_path, monkeypatch, rng):
    """Where embeddings have the hidden size, the embedding plugin says it all: positions begin elsewhere in its table."""
    model_type = str(rng.choice(FAMILIES[family]))
    sizes = random_sizes(model_type, rng)
    if "layer_norm_eps" in sizes:
        sizes["layer_norm_eps"] = 1e-12  # the plugins know no other
    if "embedding_size" in sizes:
        sizes["embedding_size"] = sizes["hidden_size"]
    model = random_model(model_type, rng, **sizes)
    install(version, monkeypatch)
    check_network(model, layout, version, "plugin", interface, tmp_path, rng)


def check_network(model, layout, version, network, interface, folder, rng):
    config, weights = read(model, folder / "model")
    longest = config.max_position_embeddings
    options = {"layout": layout, "batch_sizes": (1, 4), "sequence_lengths": (longest,)}
    path = folder / "bert.engine"
    write(path, version, config, weights, config.gelu, network=network, plugin_version=interface, **options)
    engine = load_engine(path, layout)
    assert engine.card.network == network
    for lengths in ([longest], rng.integers(1, longest + 1, 4)):
        features = texts(config, model.config.pad_token_id, rng, [longest, *lengths[1:]])
        assert difference(engine, features, expected(model, features)) < DOUBLE_TOLERANCE, (config, lengths)
    engine.close()


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("family", ALL)
def test_native_int8_stays_near_float(family, version, tmp_path, monkeypatch, rng):
    """Calibrated ranges, by layer also where layers share their weights; a projection is not rounded."""
    model_type = FAMILIES[family][0]
    sizes = random_sizes(model_type, rng)
    wide = {"dim": 48, "n_heads": 3, "hidden_dim": 96}
    if model_type != "distilbert":
        wide = {"hidden_size": 48, "num_attention_heads": 3, "intermediate_size": 96, "layer_norm_eps": 1e-5}
    if "embedding_size" in sizes:
        wide["embedding_size"] = 20
    model = random_model(model_type, rng, **sizes | wide)
    config, weights = read(model, tmp_path / "model")
    longest = config.max_position_embeddings
    windows = texts(config, model.config.pad_token_id, rng, rng.integers(2, longest + 1, 20))
    ranges = calibrator.calibrate(weights, False, [padded_batch([window]) for window in windows], "percentile")
    weights.ranges = {name: np.float32(amax) for name, amax in ranges.items()}
    install(version, monkeypatch)
    path = tmp_path / "bert.engine"
    card = write(
        path, version, config, weights, config.gelu, network="native", quantize="int8", sequence_lengths=(longest,)
    )
    assert card.precision[0] == "int8"
    engine = load_engine(path, "padded")
    features = texts(config, model.config.pad_token_id, rng, [longest])
    wanted = expected(model, features)
    off = engine.run(padded_batch(features))[0] - wanted[0]
    share = np.sqrt((off**2).mean()) / wanted[0].std()
    assert 0 < share < 0.4  # over 100 draws up to 0.12
    engine.close()


@pytest.mark.parametrize("model_type", ["albert", "electra"])
def test_a_projection_takes_the_native_network_and_says_why(model_type, tmp_path, monkeypatch, rng):
    sizes = random_sizes(model_type, rng)
    config, weights = read(
        random_model(model_type, rng, **sizes | {"embedding_size": sizes["hidden_size"] + 3}), tmp_path
    )
    install("10.0.1", monkeypatch)
    built = backend_module("tensorrt").prepare(config, BuildOptions(sequence_lengths=(8,))).build(weights)
    assert built.network == "native" and any("embeddings" in note for note in built.notes), built.notes
    with pytest.raises(DemoBertError, match="use --network native"):
        backend_module("tensorrt").prepare(config, BuildOptions(sequence_lengths=(8,), network="plugin"))


@pytest.mark.parametrize("family", ALL)
def test_names_and_their_inverse(family, tmp_path, rng):
    """Every tensor that Hugging Face names has a place, and goes back to the very same name."""
    for model_type in FAMILIES[family]:
        model = random_model(model_type, rng)
        config, weights = read(model, tmp_path / model_type)
        state = {name: value.numpy() for name, value in model.state_dict().items()}
        names = {canonical_name(name, config): name for name in state}
        added = {"bert_embeddings_token_type_embeddings"} if model_type == "distilbert" else set()
        assert names.keys() | added == expected_shapes(config).keys()
        assert {pytorch_name(name, config) for name in names} == set(state)
        for name, tensor in weights.tensors.items():
            if name in names:
                stored = state[names[name]]
                first = config.first_position if name.endswith("position_embeddings") else 0
                np.testing.assert_array_equal(tensor, stored[first:])


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize(
    "wrapper", ["model.", "module.", "_orig_mod.", "module.model.", "_orig_mod.module.", "model.model."]
)
@pytest.mark.parametrize("family", ALL)
def test_wrappers_are_looked_through(family, wrapper, tmp_path, rng):
    import torch

    model = random_model(FAMILIES[family][0], rng)
    config, weights = read(model, tmp_path / "plain")
    folder = tmp_path / "wrapped"
    folder.mkdir()
    state = {f"{wrapper}{name}": value for name, value in model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, folder / "last.ckpt")
    wrapped = load_weights(config, pytorch=folder)
    assert wrapped.source.endswith("last.ckpt") or wrapped.source == str(folder)
    for name, tensor in weights.tensors.items():
        np.testing.assert_array_equal(wrapped[name], tensor)


def test_layers_share_their_weights_in_memory_too(tmp_path, rng):
    sizes = {"num_hidden_layers": 6, "num_hidden_groups": 2, "inner_group_num": 1, "num_attention_heads": 1}
    model = random_model("albert", rng, hidden_size=4, embedding_size=2, intermediate_size=3, vocab_size=20, **sizes)
    config, weights = read(model, tmp_path)
    assert [config.layer_with_weights(i) for i in range(6)] == [0, 0, 0, 3, 3, 3]
    assert {name.partition("_")[0] for name in weights.tensors if name.startswith("l")} == {"l0", "l3"}


def values_of(model_type, rng) -> dict:
    return random_model(model_type, rng).config.to_dict()


@pytest.mark.parametrize(
    "change, words",
    [
        ({"model_type": "deberta-v2"}, "model_type deberta-v2 is not supported; these are: bert, roberta"),
        ({"model_type": 7}, "model_type 7 is not supported"),
        ({"model_type": []}, "model_type .. is not supported"),
        ({"model_type": {"a": 1}}, "is not supported"),
        (
            {"architectures": ["BertForSequenceClassification"]},
            "this is a BertForSequenceClassification: it answers no",
        ),
        ({"position_embedding_type": "relative_key"}, "absolute position embeddings"),
        ({"is_decoder": True}, "is_decoder"),
        ({"hidden_act": "relu"}, "hidden_act 'relu' is not supported"),
    ],
)
def test_what_a_model_is_is_said_before_its_tensors_are_read(change, words, tmp_path, rng):
    values = {"architectures": ["BertForQuestionAnswering"], **values_of("bert", rng), **change}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(DemoBertError, match=words):
        BertConfig.from_folder(tmp_path, answers_questions=True)


@pytest.mark.parametrize(
    "model_type, change, words",
    [
        ("albert", {"num_hidden_groups": 9}, "num_hidden_groups 9 is over num_hidden_layers"),
        ("albert", {"num_hidden_groups": 0}, "num_hidden_groups must be a whole number from 1"),
        ("albert", {"inner_group_num": "2"}, "inner_group_num must be a whole number"),
        ("albert", {"inner_group_num": 10**6}, "num_hidden_layers must be"),
        ("albert", {"embedding_size": None}, "embedding_size must be"),
        ("electra", {"embedding_size": -4}, "embedding_size must be"),
        ("roberta", {"pad_token_id": None}, "pad_token_id must be"),
        ("roberta", {"pad_token_id": 10**5}, "max_position_embeddings must be"),
        ("roberta", {"max_position_embeddings": True}, "max_position_embeddings must be"),
        ("distilbert", {"dim": "x"}, "hidden_size must be"),
    ],
)
def test_sizes_that_make_no_sense_are_named(model_type, change, words, tmp_path, rng):
    (tmp_path / "config.json").write_text(json.dumps(values_of(model_type, rng) | change))
    with pytest.raises(DemoBertError, match=words):
        BertConfig.from_folder(tmp_path)


def test_bert_s_keys_mean_nothing_where_a_family_has_its_own(tmp_path, rng):
    values = values_of("distilbert", rng)
    strays = {"hidden_act": "gelu_new", "intermediate_size": 7, "hidden_size": 9}
    (tmp_path / "config.json").write_text(json.dumps(values | strays))
    config = BertConfig.from_folder(tmp_path)
    sizes = values["dim"], values["hidden_dim"]
    assert (config.gelu, config.hidden_size, config.intermediate_size) == (None, *sizes)


@pytest.mark.parametrize("model_type", ["roberta", "albert"])
def test_onnx_of_a_model_inside_another_module(model_type, tmp_path, rng):
    import torch

    model = random_model(model_type, rng)
    config, weights = read(model, tmp_path)

    class Wrapper(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, input_ids, attention_mask):
            output = self.inner(input_ids=input_ids, attention_mask=attention_mask)
            return output.start_logits, output.end_logits

    path = write_onnx(tmp_path / "model.onnx", Wrapper(), dynamo=False, segments=False)
    for name, tensor in load_weights(config, onnx=path).tensors.items():
        np.testing.assert_array_equal(tensor, weights[name], err_msg=name)


def test_a_configuration_without_model_type_goes_by_its_architecture(tmp_path, rng):
    values = values_of("roberta", rng) | {"architectures": ["RobertaForQuestionAnswering"]}
    del values["model_type"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert BertConfig.from_folder(tmp_path).model_type == "roberta"


def test_bert_s_own_configuration_has_no_room_for_other_families_keys(tmp_path, rng):
    values = values_of("bert", rng) | {"embedding_size": 3, "first_position": 2, "layer_groups": 1}
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = BertConfig.from_folder(tmp_path)
    assert (config.embedding_size, config.first_position, config.layer_groups) == (None, 0, None)
    assert BertConfig.from_dict(vars(replace(config, gelu="erf"))) == replace(config, gelu="erf")


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize(
    "model_type, dynamo",
    # dynamo takes its time; the families between these two have nothing of their own in a graph.
    [*((names[0], False) for names in FAMILIES.values()), ("roberta", True), ("albert", True)],
)
def test_onnx_exports(model_type, dynamo, tmp_path, rng):
    model = random_model(model_type, rng)
    config, weights = read(model, tmp_path)
    path = write_onnx(tmp_path / "model.onnx", model, dynamo=dynamo, segments=model_type != "distilbert")
    exported = load_weights(config, onnx=path)
    assert exported.config == config
    for name, tensor in weights.tensors.items():
        np.testing.assert_array_equal(exported[name], tensor, err_msg=name)


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_onnx_runtime_s_dynamic_int8_is_refused_by_what_it_is(model_type, tmp_path, rng):
    quantization = pytest.importorskip("onnxruntime.quantization")
    model = random_model(model_type, rng)
    config, _ = read(model, tmp_path)
    path = write_onnx(tmp_path / "model.onnx", model, dynamo=False)
    quantization.quantize_dynamic(path, tmp_path / "int8.onnx")
    with pytest.raises(DemoBertError, match="quantized for ONNX Runtime .dynamic int8"):
        load_weights(config, onnx=tmp_path / "int8.onnx")


# Fine-tuning


def network_and_batch(model_type, folder, rng):
    """A float network of torch, as fine-tuning has it, and a batch of text for it."""
    from helpers.finetuning.checkpoint import to_torch
    from helpers.finetuning.network import Network

    sizes = random_sizes(model_type, rng)
    sizes |= {
        name: 4 * sizes[name] for name in ("dim", "hidden_size", "hidden_dim", "intermediate_size") if name in sizes
    }
    model = random_model(model_type, rng, **sizes)
    config, weights = read(model, folder)
    features = texts(config, model.config.pad_token_id, rng, rng.integers(1, config.max_position_embeddings + 1, 4))
    return model, Network(config, to_torch(weights, "cpu")), features


@pytest.mark.parametrize("model_type", [name for names in FAMILIES.values() for name in names])
def test_a_trained_model_goes_back_to_its_family(model_type, tmp_path, rng):
    import torch
    import transformers

    from helpers.finetuning.checkpoint import write_model
    from helpers.finetuning.training import trained_names

    model, network, features = network_and_batch(model_type, tmp_path / "start", rng)
    for name in trained_names(network, embeddings=True):
        network.weights[name] += 0.02 * torch.randn_like(network.weights[name])
    folder = tmp_path / "trained"
    folder.mkdir()
    write_model(folder, network, {}, json.loads((tmp_path / "start" / "config.json").read_text()))
    trained, info = transformers.AutoModelForQuestionAnswering.from_pretrained(folder, output_loading_info=True)
    assert type(trained) is type(model) and not any(info.values()), info
    logits = network.run(padded_batch(features))[0].numpy()
    for row, wanted in enumerate(expected(trained.eval(), features)):
        np.testing.assert_allclose(logits[row, : len(wanted)], wanted, atol=CPU_TOLERANCE)


@pytest.mark.parametrize("model_type", [names[0] for names in FAMILIES.values()])
def test_int8_and_sparse_training_serve_every_family(model_type, tmp_path, rng):
    """Ranges by layer, also where layers share their weights, through safetensors and ONNX; kernels are 2:4 sparse."""
    from helpers.finetuning import preparing
    from helpers.finetuning.checkpoint import all_ranges, write_model
    from helpers.finetuning.onnx_export import write_onnx
    from helpers.weights.sparsity import sparse_2_4_kernels

    _, network, features = network_and_batch(model_type, tmp_path / "start", rng)
    batches = [padded_batch(features)]
    preparing.prune_encoder(network, batches)
    measured = preparing.measured_ranges(network, batches)
    network.input_ranges = preparing.rounded_ranges(network, measured)
    ranges = all_ranges(network, preparing.measured_ranges(network, batches))
    folder = tmp_path / "trained"
    folder.mkdir()
    write_model(folder, network, ranges, json.loads((tmp_path / "start" / "config.json").read_text()))
    tensors = {name: tensor.detach().numpy() for name, tensor in network.weights.items()}
    write_onnx(folder / "model.onnx", network.config, tensors, ranges)
    config = BertConfig.from_folder(folder, answers_questions=True)
    for weights in (load_weights(config, pytorch=folder), load_weights(config, onnx=folder / "model.onnx")):
        assert ranges.keys() <= weights.ranges.keys()
        for i in range(config.num_hidden_layers):
            assert f"l{i}_output_dense_kernel_amax" in weights.ranges
        for name, amax in ranges.items():
            np.testing.assert_array_equal(weights.ranges[name], amax)
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(weights[name], tensor)
        assert not sparse_2_4_kernels(weights)[1]
