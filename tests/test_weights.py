"""Checkpoints: every format gives the same canonical tensors, and whatever is wrong with a file ends in one line."""

import itertools
import json
import os
import pickle
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.bert_config import BertConfig
from helpers.errors import DemoBertError, UsageError
from helpers.weights import BertWeights, load_weights
from helpers.weights.canonical import check_weights, expected_shapes
from helpers.weights.sparsity import sparse_2_4_kernels
from tests.checkpoints import (
    hugging_face_model,
    names,
    pytorch_state,
    tensorflow_state,
    write_config,
    write_folder,
    write_onnx,
    write_pickled,
    write_safetensors,
    write_tensorflow,
)
from tests.reference_bert import random_weights

ROOT = Path(__file__).resolve().parent.parent

#: The feed-forward is as wide as the model: all kernels are square, so no shape betrays one that is not turned.
CONFIG = BertConfig(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=16,
    vocab_size=29,
    max_position_embeddings=7,
    type_vocab_size=3,
)
SEED = int(np.random.SeedSequence().generate_state(1)[0])
TENSORS = random_weights(CONFIG, np.random.default_rng(SEED))
QUERY = "bert.encoder.layer.1.attention.self.query.weight"


def state(**changes) -> dict:
    """The PyTorch state dict of TENSORS, with changes."""
    return pytorch_state(CONFIG, TENSORS) | changes


def assert_same(weights: BertWeights, gelu: str, tensors=TENSORS) -> None:
    assert weights.config.gelu == gelu
    assert set(weights.tensors) == set(tensors), SEED
    for name, expected in tensors.items():
        array = weights[name]
        assert array.dtype == np.float32 and array.flags["C_CONTIGUOUS"], name
        np.testing.assert_array_equal(array, expected, err_msg=f"{name}, seed {SEED}")


def error_of(config=CONFIG, **checkpoint) -> str:
    """The error of loading a checkpoint, which must be a DemoBertError of one line."""
    with pytest.raises(DemoBertError) as caught:
        load_weights(config, **checkpoint)
    message = str(caught.value)
    assert message and "\n" not in message and len(message) < 2000
    return message


# --- every format, the same tensors ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tensorflow_prefix(tmp_path_factory) -> str:
    variables = tensorflow_state(CONFIG, TENSORS)
    extras = {
        "global_step": np.array(8144),
        "bert/pooler/dense/kernel": np.eye(16, dtype=np.float32),
        "bert/pooler/dense/bias": np.ones(16, np.float32),
        "bert/encoder/layer_0/output/dense/kernel/adam_m": np.ones((16, 16), np.float32),
        "bert/embeddings/LayerNorm/beta/adam_v": np.ones(16, np.float32),
        "cls/predictions/output_bias": np.ones(29, np.float32),
        "cls/seq_relationship/output_weights": np.ones((2, 16), np.float32),
    }
    return write_tensorflow(tmp_path_factory.mktemp("tensorflow") / "model.ckpt-8144", variables | extras)


def test_tensorflow(tensorflow_prefix):
    assert_same(load_weights(CONFIG, tensorflow=tensorflow_prefix), "tanh")


@pytest.mark.sampled(0.4, group="slow")
def test_tensorflow_starts_quietly(tensorflow_prefix):
    """In a process of its own: TensorFlow greets on its first import only."""
    script = "import os; from helpers.weights.tensorflow_checkpoint import load_tensorflow as load\n"
    script += f"load({tensorflow_prefix!r}).tensors['cls_squad_output_bias'].read()\n"
    script += "assert 'TF_CPP_MIN_LOG_LEVEL' not in os.environ"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_tensorflow_file_stands_for_its_prefix(tensorflow_prefix):
    assert_same(load_weights(CONFIG, tensorflow=f"{tensorflow_prefix}.index"), "tanh")


def test_tensorflow_half_is_widened(tmp_path):
    halves = {name: array.astype(np.float16) for name, array in tensorflow_state(CONFIG, TENSORS).items()}
    widened = {name: array.astype(np.float16).astype(np.float32) for name, array in TENSORS.items()}
    assert_same(load_weights(CONFIG, tensorflow=write_tensorflow(tmp_path / "half", halves)), "tanh", widened)


def rounded(dtype: str) -> dict:
    """TENSORS as `dtype` keeps them, widened again by torch."""
    import torch

    half = getattr(torch, dtype)
    return {name: torch.tensor(array).to(half).to(torch.float32).numpy() for name, array in TENSORS.items()}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt"])
def test_pytorch_file(tmp_path, dtype, suffix):
    write = write_safetensors if suffix == ".safetensors" else write_pickled
    path = write(tmp_path / f"model{suffix}", state(), dtype)
    assert_same(load_weights(CONFIG, pytorch=path), "erf", rounded(dtype))


def test_pytorch_legacy_pickle(tmp_path):
    assert_same(load_weights(CONFIG, pytorch=write_pickled(tmp_path / "old.bin", state(), legacy=True)), "erf")


def test_pytorch_under_a_model_key_with_prefixes(tmp_path):
    renamed = {f"module.{name}": array for name, array in state().items()}
    assert_same(load_weights(CONFIG, pytorch=write_pickled(tmp_path / "model.pt", renamed, key="model")), "erf")


def test_pytorch_without_prefix_and_with_old_layer_norm_names(tmp_path):
    def old(name):
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        return name.removeprefix("bert.")

    renamed = {old(name): array for name, array in state().items()}
    assert_same(load_weights(CONFIG, pytorch=write_safetensors(tmp_path / "old.safetensors", renamed)), "erf")


def test_pytorch_heads_and_buffers_are_skipped(tmp_path):
    extras = {
        "bert.pooler.dense.weight": np.eye(16),
        "bert.embeddings.position_ids": np.arange(7)[None],
        "cls.predictions.bias": np.ones(29),
        "cls.seq_relationship.weight": np.ones((2, 16)),
    }
    assert_same(load_weights(CONFIG, pytorch=write_safetensors(tmp_path / "a.safetensors", state(**extras))), "erf")


def test_safetensors_is_known_by_its_content(tmp_path):
    assert_same(load_weights(CONFIG, pytorch=write_safetensors(tmp_path / "model.bin", state())), "erf")


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("shards", [1, 3])
def test_hugging_face_folder(tmp_path, shards, pickled):
    folder = write_folder(tmp_path / "model", CONFIG, state(), shards, pickled)
    assert BertConfig.from_folder(folder) == CONFIG
    assert_same(load_weights(CONFIG, pytorch=folder), "erf")


def test_hugging_face_cache_links_into_its_blobs(tmp_path):
    folder = write_folder(tmp_path / "snapshots" / "0abc", CONFIG, state(), shards=2)
    (tmp_path / "blobs").mkdir()
    for number, path in enumerate(folder.glob("*.safetensors")):
        path.rename(tmp_path / "blobs" / str(number))
        path.symlink_to(f"../../blobs/{number}")
    assert_same(load_weights(CONFIG, pytorch=folder), "erf")


TORCHSCRIPT = [
    {"opset_version": 11},
    {"opset_version": 17, "dynamic": False},
    {"opset_version": 17, "do_constant_folding": False},
    {"opset_version": 20},
]
DYNAMO = [
    {"opset_version": 18},
    {"opset_version": 20, "optimize": False, "dynamic": False},
    # Attention is one operator here, and the positions are folded into a constant: all of them at the full length.
    {"opset_version": 23, "dynamic": False, "length": CONFIG.max_position_embeddings},
]


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("gelu", ["erf", "tanh"])
@pytest.mark.parametrize("options", TORCHSCRIPT, ids=str)
def test_onnx_of_the_torchscript_exporter(tmp_path, options, gelu):
    model = hugging_face_model(CONFIG, TENSORS, gelu=gelu)
    assert_same(load_weights(CONFIG, onnx=write_onnx(tmp_path / "m.onnx", model, dynamo=False, **options)), gelu)


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("options,gelu", list(zip(DYNAMO, ["tanh", "erf", "erf"], strict=True)), ids=str)
def test_onnx_of_the_dynamo_exporter(tmp_path, options, gelu):
    model = hugging_face_model(CONFIG, TENSORS, gelu=gelu)
    assert_same(load_weights(CONFIG, onnx=write_onnx(tmp_path / "m.onnx", model, dynamo=True, **options)), gelu)


@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx_that_shares_equal_tensors(tmp_path, dynamo):
    """An exporter stores equal tensors once, under one owner's name: here all biases, all gammas, two kernels."""
    tensors = dict(TENSORS)
    for name, array in TENSORS.items():
        if name.endswith("_bias") and array.size == 16 or name.endswith("_beta"):
            tensors[name] = np.zeros(16, np.float32)
        elif name.endswith("_gamma"):
            tensors[name] = np.ones(16, np.float32)
    tensors["l1_output_dense_kernel"] = tensors["l0_attention_self_value_kernel"]
    path = write_onnx(tmp_path / "m.onnx", hugging_face_model(CONFIG, tensors), dynamo=dynamo)
    assert_same(load_weights(CONFIG, onnx=path), "erf", tensors)


@pytest.fixture(scope="module")
def onnx_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    return write_onnx(path, hugging_face_model(CONFIG, TENSORS), dynamo=False, opset_version=17)


def edited(source, target, edit) -> str:
    """A copy of an ONNX model, after `edit(model)`."""
    import onnx

    model = onnx.load(source)
    edit(model)
    target.write_bytes(model.SerializeToString())
    return target


def rename_initializers(model, new_name) -> None:
    renamed = {tensor.name: new_name(tensor.name) for tensor in model.graph.initializer}
    for tensor in model.graph.initializer:
        tensor.name = renamed[tensor.name]
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]


def test_onnx_with_all_initializers_renamed(tmp_path):
    count = itertools.count()
    path = write_onnx(tmp_path / "m.onnx", hugging_face_model(CONFIG, TENSORS), dynamo=False, opset_version=20)
    edited(path, path, lambda model: rename_initializers(model, lambda _: f"t{next(count)}"))
    assert_same(load_weights(CONFIG, onnx=path), "erf")


def test_onnx_kernels_that_are_turned_but_named(tmp_path, onnx_path):
    """A kernel stored [in, out] under PyTorch's name: square, so that only its use tells how it lies."""
    owners = {TENSORS[key].T.tobytes(): name for key, name, _ in names(CONFIG) if key.endswith(("kernel", "weights"))}

    def name_kernels(model):
        by_name = {tensor.name: owners.get(tensor.raw_data, tensor.name) for tensor in model.graph.initializer}
        assert QUERY in by_name.values()
        rename_initializers(model, by_name.get)

    assert_same(load_weights(CONFIG, onnx=edited(onnx_path, tmp_path / "m.onnx", name_kernels)), "erf")


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "double", "typed", "typed float16", "external"])
def test_onnx_ways_to_store_a_tensor(tmp_path, onnx_path, kind):
    import onnx
    from onnx import TensorProto, helper

    types = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16, "double": TensorProto.DOUBLE}
    element = types.get(kind.removeprefix("typed "), TensorProto.FLOAT)
    dtype = {"typed": "float32", "external": "float32", "double": "float64"}.get(kind, kind.removeprefix("typed "))

    def store(model):
        for tensor in model.graph.initializer:
            if tensor.data_type == TensorProto.FLOAT:
                array = onnx.numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(element))
                raw = array.tobytes() if "typed" not in kind else array.astype(np.float64).flatten()
                tensor.CopyFrom(helper.make_tensor(tensor.name, element, array.shape, raw, raw="typed" not in kind))

    path = edited(onnx_path, tmp_path / "m.onnx", store)
    if kind == "external":
        options = {"save_as_external_data": True, "location": "weights.data", "size_threshold": 0}
        onnx.save(onnx.load(path), path, **options)
        assert (tmp_path / "weights.data").stat().st_size >= 4 * sum(t.size for t in TENSORS.values())
    assert_same(load_weights(CONFIG, onnx=path), "erf", rounded(dtype))


# --- quantization ranges -----------------------------------------------------------------------------------------


def qat_ranges(sparse: bool) -> tuple[dict, dict]:
    """(PyTorch name → range, canonical name → range) of one layer and the encoder's end, as docs/architecture.md has them."""
    layer, dense = "bert.encoder.layer.1", "dense_act" if sparse else "dense"
    q, k, v, a = ("matmul_q", "matmul_k", "matmul_v", "matmul_a") if sparse else ("qv_a", "qv_b", "av_b", "av_a")
    pairs = {
        f"{layer}.attention.self.query._input_quantizer": "l1_attention_self_query_input_amax",
        f"{layer}.attention.self.value._weight_quantizer": "l1_attention_self_value_kernel_amax",
        f"{layer}.attention.self.{q}_input_quantizer": "l1_attention_self_qv_a_input_quantizer_amax",
        f"{layer}.attention.self.{k}_input_quantizer": "l1_attention_self_qv_b_input_quantizer_amax",
        f"{layer}.attention.self.{v}_input_quantizer": "l1_attention_self_av_b_input_quantizer_amax",
        f"{layer}.attention.self.{a}_input_quantizer": "l1_attention_self_av_a_input_quantizer_amax",
        f"{layer}.attention.output.dense._input_quantizer": "l1_attention_output_dense_input_amax",
        f"{layer}.attention.output.add_local_input_quantizer": "l1_attention_output_add_local_input_quantizer_amax",
        f"{layer}.output.add_residual_input_quantizer": "l1_output_add_residual_input_quantizer_amax",
        f"{layer}.intermediate.{dense}._input_quantizer": "l1_intermediate_dense_input_amax",
        f"{layer}.intermediate.{dense}._weight_quantizer": "l1_intermediate_dense_kernel_amax",
        f"{layer}.output.dense._input_quantizer": "l1_output_dense_input_amax",
        f"{layer}.output.add_local_input_quantizer": "l1_output_add_local_input_quantizer_amax",
        "bert.encoder.final_input_quantizer": "bert_encoder_final_input_quantizer_amax",
    }
    values = np.random.default_rng(SEED).uniform(0.5, 9, len(pairs)).astype(np.float32)
    ranges = dict(zip(pairs, (np.array(value) for value in values), strict=True))
    ranges[f"{layer}.intermediate.{dense}._weight_quantizer"] = np.linspace(0, 1, 16, dtype=np.float32)[:, None]
    by_name = {f"{quantizer}._amax": amax for quantizer, amax in ranges.items()}
    return by_name, {pairs[quantizer]: amax for quantizer, amax in ranges.items()}


def assert_ranges(weights: BertWeights, expected: dict) -> None:
    assert set(weights.ranges) == set(expected)
    for name, amax in expected.items():
        assert weights.ranges[name].dtype == np.float32 and weights.ranges[name].shape == amax.shape, name
        np.testing.assert_array_equal(weights.ranges[name], amax)


@pytest.mark.parametrize("sparse", [False, True])
def test_pytorch_quantization_ranges(tmp_path, sparse):
    by_name, expected = qat_ranges(sparse)
    plain = state()
    if sparse:
        plain = {name.replace("intermediate.dense.", "intermediate.dense_act."): value for name, value in plain.items()}
    plain |= {"bert.encoder.layer.0.output.dense._input_quantizer._scale": np.ones(1)}
    weights = load_weights(CONFIG, pytorch=write_pickled(tmp_path / "qat.pt", plain | by_name, key="model"))
    assert_same(weights, "erf")
    assert_ranges(weights, expected)


@pytest.mark.parametrize("activation,gelu", [("Erf", "erf"), ("Tanh", "tanh")])
def test_onnx_with_names_and_ranges_of_qat(tmp_path, activation, gelu):
    """As NVIDIA's export: PyTorch's names, kernels turned in the graph after quantize and dequantize."""
    from onnx import helper, numpy_helper

    by_name, expected = qat_ranges(False)
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in (state() | by_name).items()]
    nodes = [
        helper.make_node("QuantizeLinear", [QUERY, "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]),
        helper.make_node("Transpose", ["dq"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "turned"], ["y"]),
        helper.make_node(activation, ["y"], ["z"]),
    ]
    path = tmp_path / "qat.onnx"
    graph = helper.make_graph(nodes, "qat", [], [], initializers)
    path.write_bytes(helper.make_model(graph).SerializeToString())
    weights = load_weights(CONFIG, onnx=path)
    assert_same(weights, gelu)
    assert_ranges(weights, expected)


@pytest.mark.parametrize("amax", [np.nan, -1.0, 1e30, 1e-30, np.ones(3), np.ones((16, 16))], ids=str)
def test_ranges_that_make_no_sense(tmp_path, amax):
    name = "bert.encoder.layer.0.output.dense._weight_quantizer._amax"
    path = write_safetensors(tmp_path / "a.safetensors", state(**{name: np.array(amax)}))
    assert "l0_output_dense_kernel_amax" in error_of(pytorch=path)


def test_ranges_of_channels(tmp_path):
    """This project's own: of the inputs that layer norms put out."""
    amax = {"attention.self": np.arange(16) / np.float32(8), "intermediate.dense": np.ones(16)}
    named = {f"bert.encoder.layer.0.{module}._input_quantizer._channel_amax": value for module, value in amax.items()}
    weights = load_weights(CONFIG, pytorch=write_safetensors(tmp_path / "a.safetensors", state(**named)))
    assert_ranges(
        weights, {f"l0_{module.replace('.', '_')}_input_channel_amax": value for module, value in amax.items()}
    )


@pytest.mark.parametrize(
    "amax", [1.0, np.ones(1), np.ones(15), np.ones((16, 1)), np.full(16, -1), np.full(16, 1e30)], ids=str
)
def test_ranges_of_channels_that_make_no_sense(tmp_path, amax):
    name = "bert.encoder.layer.0.attention.self._input_quantizer._channel_amax"
    path = write_safetensors(tmp_path / "a.safetensors", state(**{name: np.array(amax)}))
    assert "l0_attention_self_input_channel_amax" in error_of(pytorch=path)


def test_ranges_of_channels_of_no_layer(tmp_path):
    name = "bert.encoder.layer.7.intermediate.dense._input_quantizer._channel_amax"
    path = write_safetensors(tmp_path / "a.safetensors", state(**{name: np.ones(16)}))
    assert "l7_intermediate_dense_input_channel_amax" in error_of(pytorch=path)


# --- contents that don't fit -------------------------------------------------------------------------------------


def write_as(kind: str, folder, tensors: dict) -> dict:
    """`tensors` in one format; what load_weights takes."""
    if kind == "tensorflow":
        known = [row for row in names(CONFIG) if row[0] in tensors]
        variables = {tf: tensors[key].T if tf.endswith("/kernel") else tensors[key] for key, _, tf in known}
        return {"tensorflow": write_tensorflow(folder / "model.ckpt", variables)}
    arrays = {name: tensors[key] for key, name, _ in names(CONFIG) if key in tensors}
    if kind == "onnx":
        from onnx import helper, numpy_helper

        initializers = [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in arrays.items()]
        path = folder / "model.onnx"
        path.write_bytes(helper.make_model(helper.make_graph([], "g", [], [], initializers)).SerializeToString())
        return {"onnx": path}
    write = write_safetensors if kind == "safetensors" else write_pickled
    return {"pytorch": write(folder / f"model.{kind}", arrays)}


KINDS = ["tensorflow", "safetensors", "pt", "onnx"]


@pytest.mark.parametrize("kind", KINDS)
def test_missing_tensors_are_named(tmp_path, kind):
    absent = {"l0_output_dense_bias", "bert_embeddings_layernorm_beta"}
    kept = {name: array for name, array in TENSORS.items() if name not in absent}
    message = error_of(**write_as(kind, tmp_path, kept))
    assert "missing: bert_embeddings_layernorm_beta, l0_output_dense_bias;" in message


@pytest.mark.parametrize("kind", KINDS)
def test_misshapen_tensors_are_named(tmp_path, kind):
    message = error_of(**write_as(kind, tmp_path, TENSORS | {"l1_output_dense_kernel": np.ones((16, 15), np.float32)}))
    assert "misshapen: l1_output_dense_kernel [16, 15] instead of [16, 16];" in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_that_are_not_finite_are_named(tmp_path, kind, value):
    broken = TENSORS["l1_output_dense_kernel"].copy()
    broken[3, 5] = value
    message = error_of(**write_as(kind, tmp_path, TENSORS | {"l1_output_dense_kernel": broken}))
    assert "not finite: l1_output_dense_kernel" in message


def test_float64_beyond_float32_is_not_finite(tmp_path):
    large = TENSORS["cls_squad_output_bias"].astype(np.float64) * 1e300
    path = write_safetensors(tmp_path / "a.safetensors", state(**{"qa_outputs.bias": large}), "float64")
    assert "not finite: cls_squad_output_bias" in error_of(pytorch=path)


def test_unknown_tensors_are_extra(tmp_path):
    path = write_safetensors(tmp_path / "a.safetensors", state(**{"bert.encoder.adapter.weight": np.ones(3)}))
    assert "extra: bert.encoder.adapter.weight;" in error_of(pytorch=path)


def test_unknown_variables_are_extra(tmp_path):
    variables = tensorflow_state(CONFIG, TENSORS) | {"bert/encoder/adapter/kernel": np.ones(3, np.float32)}
    message = error_of(tensorflow=write_tensorflow(tmp_path / "model.ckpt", variables))
    assert "extra: bert/encoder/adapter/kernel;" in message


def test_two_names_of_one_tensor(tmp_path):
    path = write_safetensors(tmp_path / "a.safetensors", state(**{QUERY.removeprefix("bert."): np.ones((16, 16))}))
    assert "l1_attention_self_query_kernel twice" in error_of(pytorch=path)


@pytest.mark.parametrize(
    "change,fault",
    [
        ({"num_hidden_layers": 1}, "extra: l1_attention_output_dense_bias"),
        ({"num_hidden_layers": 3}, "missing: l2_attention_self_query_kernel"),
        ({"hidden_size": 32}, "misshapen: bert_embeddings_word_embeddings [29, 16] instead of [29, 32]"),
        ({"intermediate_size": 64}, "misshapen: l0_intermediate_dense_kernel [16, 16] instead of [64, 16]"),
        ({"vocab_size": 30}, "misshapen: bert_embeddings_word_embeddings [29, 16] instead of [30, 16]"),
        ({"max_position_embeddings": 6}, "bert_embeddings_position_embeddings [7, 16] instead of [6, 16]"),
        ({"type_vocab_size": 2}, "bert_embeddings_token_type_embeddings [3, 16] instead of [2, 16]"),
    ],
)
@pytest.mark.parametrize("kind", ["tensorflow", "safetensors", "onnx"])
def test_config_that_contradicts_the_checkpoint(tensorflow_prefix, onnx_path, tmp_path, kind, change, fault):
    if kind == "safetensors":
        checkpoint = {"pytorch": write_safetensors(tmp_path / "a.safetensors", state())}
    else:
        checkpoint = {"onnx": onnx_path} if kind == "onnx" else {"tensorflow": tensorflow_prefix}
    message = error_of(replace(CONFIG, **change), **checkpoint)
    assert fault in message and "configuration" in message


def test_long_lists_are_cut():
    with pytest.raises(DemoBertError, match=r"missing: .*, .*, .*, .* \.\.\. and 35 more") as caught:
        check_weights({}, CONFIG, "model")
    assert len(expected_shapes(CONFIG)) == 39 and len(str(caught.value)) < 400


def test_an_export_for_one_length_says_what_it_lost(tmp_path):
    path = write_onnx(
        tmp_path / "m.onnx", hugging_face_model(CONFIG, TENSORS), dynamo=True, dynamic=False, length=5, opset_version=20
    )
    assert "bert_embeddings_position_embeddings [5, 16] instead of [7, 16]" in error_of(onnx=path)


def test_integer_tensors_are_refused(tmp_path):
    import torch
    from safetensors.torch import save_file

    tensors = {name: torch.tensor(np.ascontiguousarray(array)) for name, array in state().items()}
    tensors[QUERY] = torch.ones(16, 16, dtype=torch.int8)
    save_file(tensors, tmp_path / "a.safetensors")
    torch.save(tensors, tmp_path / "a.pt")
    for name in ("a.safetensors", "a.pt"):
        assert QUERY in (message := error_of(pytorch=tmp_path / name)) and "floating-point" in message


def test_integer_variables_are_refused(tmp_path):
    kernel = "bert/encoder/layer_1/attention/self/query/kernel"
    variables = tensorflow_state(CONFIG, TENSORS) | {kernel: np.ones((16, 16), np.int32)}
    message = error_of(tensorflow=write_tensorflow(tmp_path / "model.ckpt", variables))
    assert kernel in message and "floating-point" in message


@pytest.mark.parametrize("content", [5, [np.ones(3)]], ids=str)
def test_a_pt_without_a_state_dict(tmp_path, content):
    import torch

    torch.save([torch.tensor(array) for array in content] if isinstance(content, list) else content, tmp_path / "a.pt")
    assert "no state dict" in error_of(pytorch=tmp_path / "a.pt")


# --- files that are not there, or not whole ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tensorflow", "pytorch", "onnx"])
@pytest.mark.parametrize("path", ["absent", "NUL\0in it", "x" * 300])
def test_paths_that_name_nothing(tmp_path, kind, path):
    error_of(**{kind: f"{tmp_path}/{path}"})


@pytest.mark.parametrize("name", ["a.safetensors", "a.bin", "a.pt", "a.onnx", "a.index"])
@pytest.mark.parametrize("content", [b"", b"\0", b"not a checkpoint\n" * 40, b"PK\3\4 neither" * 9], ids=len)
def test_foreign_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    kind = {"onnx": "onnx", "index": "tensorflow"}.get(name.split(".")[1], "pytorch")
    assert name in error_of(**{kind: tmp_path / name})


def test_folders_without_a_checkpoint(tmp_path):
    write_config(tmp_path, CONFIG)
    assert "model.safetensors" in error_of(pytorch=tmp_path)
    assert "not a file" in error_of(onnx=tmp_path)
    assert "prefix" in error_of(tensorflow=tmp_path)


def test_one_checkpoint_has_to_be_named(tmp_path):
    with pytest.raises(UsageError):
        load_weights(CONFIG)
    with pytest.raises(UsageError):
        load_weights(CONFIG, pytorch=tmp_path, onnx=tmp_path)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.97, 1.0])
@pytest.mark.parametrize("kind", ["safetensors", "pt", "legacy.pt", "onnx", "external"])
def test_truncated_files(tmp_path, onnx_path, kind, share):
    path, checkpoint = tmp_path / f"model.{kind}", {}
    if kind == "safetensors":
        checkpoint["pytorch"] = write_safetensors(path, state())
    elif kind.endswith("pt"):
        checkpoint["pytorch"] = write_pickled(path, state(), legacy=kind != "pt")
    else:
        checkpoint["onnx"] = edited(onnx_path, tmp_path / "model.onnx", lambda model: None)
    if kind == "external":
        import onnx

        options = {"save_as_external_data": True, "location": path.name, "size_threshold": 0}
        onnx.save(onnx.load(onnx_path), tmp_path / "model.onnx", **options)
    load_weights(CONFIG, **checkpoint)
    cut = path if path.exists() else tmp_path / "model.onnx"
    os.truncate(cut, min(int(cut.stat().st_size * share), cut.stat().st_size - 1))
    error_of(**checkpoint)


@pytest.mark.parametrize("part", ["index", "data-00000-of-00001"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_truncated_tensorflow_checkpoint(tmp_path, part, share):
    prefix = write_tensorflow(tmp_path / "model.ckpt", tensorflow_state(CONFIG, TENSORS))
    size = os.path.getsize(f"{prefix}.{part}")
    os.truncate(f"{prefix}.{part}", min(int(size * share), size - 1))
    assert "model.ckpt" in error_of(tensorflow=prefix)


@pytest.mark.parametrize("part", ["index", "data-00000-of-00001"])
def test_tensorflow_checkpoint_with_a_file_missing(tmp_path, part):
    prefix = write_tensorflow(tmp_path / "model.ckpt", tensorflow_state(CONFIG, TENSORS))
    os.remove(f"{prefix}.{part}")
    assert "model.ckpt" in error_of(tensorflow=prefix)


@pytest.mark.parametrize("package,kind", [("torch", "pt"), ("tensorflow", "tensorflow")])
def test_packages_that_are_not_installed(tmp_path, monkeypatch, package, kind):
    checkpoint = write_as(kind, tmp_path, TENSORS)
    monkeypatch.setitem(sys.modules, package, None)
    assert f"needs the package {package}" in error_of(**checkpoint)


def test_safetensors_needs_no_torch(tmp_path, monkeypatch):
    path = write_safetensors(tmp_path / "a.safetensors", state(), "bfloat16")
    expected = rounded("bfloat16")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert_same(load_weights(CONFIG, pytorch=path), "erf", expected)


# --- hostile files -----------------------------------------------------------------------------------------------


class Payload:
    """Unpickled in earnest, it creates a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("form", ["zip", "legacy", "plain"])
def test_a_pickle_that_runs_code_does_not(tmp_path, form):
    import torch

    path, marker = tmp_path / "model.pt", tmp_path / "ran"
    content = {name: torch.tensor(array) for name, array in state().items()} | {"extra": Payload(marker)}
    if form == "plain":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    message = error_of(pytorch=path)
    assert "run code" in message and not marker.exists()
    # The payload is a real one: without weights_only it runs.
    if form == "zip":
        torch.load(path, weights_only=False)
        assert marker.exists()


def safetensors_with(path, change, **tensors) -> str:
    """A sound .safetensors file, its header replaced by `change(header)` (a dict or raw bytes)."""
    write_safetensors(path, state(**tensors))
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = change(json.loads(content[8 : 8 + size]))
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + size :])
    return path


UNREADABLE = "a.safetensors can't be read as .safetensors: "


def with_entry(**fields):
    return lambda header: header | {QUERY: header[QUERY] | fields}


HEADERS = {
    "out of range": lambda header: header | {"x": {"dtype": "F32", "shape": [9], "data_offsets": [10**6, 10**6 + 36]}},
    "overlap": lambda header: header | {"x": dict(header[QUERY])},
    "terabytes": with_entry(shape=[1 << 20, 1 << 20]),
    "terabytes, offsets too": with_entry(shape=[1 << 20, 1 << 20], data_offsets=[0, 1 << 42]),
    "other size": with_entry(shape=[16, 15]),
    "negative shape": with_entry(shape=[-16, -16]),
    "fractions": with_entry(shape=[16.0, 16.0]),
    "backwards": lambda header: with_entry(data_offsets=header[QUERY]["data_offsets"][::-1])(header),
    "three offsets": with_entry(data_offsets=[0, 1, 2]),
    "no dtype": with_entry(dtype=None),
    "unknown dtype": with_entry(dtype="F33"),
    "shape is text": with_entry(shape="1616"),
    "a list": lambda header: [header],
    "an entry is a number": lambda header: header | {"x": 5},
    "hole": lambda header: {name: entry for name, entry in header.items() if name != QUERY},
    "named twice": lambda header: json.dumps(header).replace(QUERY.replace("query", "key"), QUERY).encode(),
    "not UTF-8": lambda header: json.dumps(header).encode()[:-1] + b', "\xff": {}}',
    "deep": lambda header: b'{"a":' + b"[" * 200_000,
    "huge number": lambda header: json.dumps(header | {"x": 0}).encode().replace(b'"x": 0', b'"x": ' + b"9" * 9999),
}


@pytest.mark.parametrize("fault", HEADERS)
def test_safetensors_headers_that_lie(tmp_path, fault):
    assert UNREADABLE in error_of(pytorch=safetensors_with(tmp_path / "a.safetensors", HEADERS[fault]))


def test_safetensors_with_more_dimensions_than_numpy_has(tmp_path):
    name = QUERY.replace("weight", "_input_quantizer._amax")

    def stretched(header):
        return header | {name: header[name] | {"shape": [1] * 100}}

    path = safetensors_with(tmp_path / "a.safetensors", stretched, **{name: np.ones(1)})
    assert f"{name} can't be read" in error_of(pytorch=path)


def test_safetensors_with_bytes_to_spare(tmp_path):
    path = write_safetensors(tmp_path / "a.safetensors", state())
    with open(path, "ab") as file:
        file.write(b"\0")
    assert UNREADABLE in error_of(pytorch=path)


@pytest.mark.parametrize("size", [1 << 20, 100_000_001, 1 << 40, (1 << 64) - 1])
def test_safetensors_header_length_that_lies(tmp_path, size):
    path = write_safetensors(tmp_path / "a.safetensors", state())
    with open(path, "r+b") as file:
        file.write(struct.pack("<Q", size))
    assert UNREADABLE in error_of(pytorch=path)


@pytest.mark.parametrize("where", ["../secret.safetensors", "absolute", "link", "sub/../link", "", "."])
def test_shards_outside_the_folder(tmp_path, where):
    folder = write_folder(tmp_path / "model", CONFIG, state(), shards=2)
    outside = write_safetensors(tmp_path / "secret.safetensors", state())
    (folder / "sub").mkdir()
    (folder / "link").symlink_to(outside)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], str(outside) if where == "absolute" else where)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    error_of(pytorch=folder)


@pytest.mark.parametrize(
    "index",
    [
        [],
        {},
        {"weight_map": []},
        {"weight_map": {"a": 5}},
        {"weight_map": {"a": "model.safetensors.index.json"}},
        {"weight_map": {"a": "absent.safetensors"}},
        {"weight_map": {"not in it": "shard.safetensors"}},
    ],
    ids=str,
)
def test_shard_indices_that_make_no_sense(tmp_path, index):
    write_safetensors(tmp_path / "shard.safetensors", state())
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    error_of(pytorch=tmp_path)


def external(model, **entries) -> None:
    """Point one tensor at external data."""
    from onnx import TensorProto

    tensor = next(tensor for tensor in model.graph.initializer if list(tensor.dims) == [16, 16])
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)


@pytest.mark.parametrize("where", ["../secret", "absolute", "link", "linked/secret", "sub/../inside", "", "."])
def test_external_data_outside_the_folder(tmp_path, onnx_path, where):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(bytes(1024))
    (folder / "inside").write_bytes(bytes(1024))
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "linked").symlink_to(tmp_path)
    location = str(tmp_path / "secret") if where == "absolute" else where
    path = edited(onnx_path, folder / "m.onnx", lambda model: external(model, location=location))
    assert "external data" in error_of(onnx=path)


def test_external_data_in_a_folder_below_is_followed(tmp_path, onnx_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "data").write_bytes(bytes(1024))
    (tmp_path / "link").symlink_to("sub/data")
    for location in ("sub/data", "link"):
        path = edited(onnx_path, tmp_path / "m.onnx", lambda model, where=location: external(model, location=where))
        kernels = [array for name, array in load_weights(CONFIG, onnx=path).tensors.items() if name.endswith("kernel")]
        assert sum(not array.any() for array in kernels) == 1


@pytest.mark.parametrize(
    "entries,fault",
    [
        ({"offset": "8"}, "1016 bytes are there"),
        ({"offset": "-8", "length": "1024"}, "ends before"),
        ({"offset": "1024"}, "0 bytes are there"),
        ({"length": "1023"}, "1023 bytes are there"),
        ({"length": str(1 << 50)}, "bytes are there"),
        ({"offset": "two"}, "can't be read"),
        ({"offset": str(1 << 70), "length": "1024"}, "ends before"),
    ],
    ids=str,
)
def test_external_data_that_is_not_there(tmp_path, onnx_path, entries, fault):
    (tmp_path / "data").write_bytes(bytes(1024))
    path = edited(onnx_path, tmp_path / "m.onnx", lambda model: external(model, location="data", **entries))
    message = error_of(onnx=path)
    assert fault in message and path.name in message


def test_onnx_without_a_graph(tmp_path):
    import onnx

    path = tmp_path / "m.onnx"
    path.write_bytes(onnx.ModelProto(ir_version=8, producer_name="nobody").SerializeToString())
    assert "has no graph" in error_of(onnx=path)


def test_onnx_of_more_than_protobuf_can_hold(tmp_path, onnx_path, monkeypatch):
    from helpers.weights import onnx_model

    monkeypatch.setattr(onnx_model, "_MAX_MODEL_BYTES", onnx_path.stat().st_size - 1)
    assert "external data" in error_of(onnx=onnx_path)


@pytest.mark.parametrize("fault", ["not a floating-point type", "255 values are there"])
def test_onnx_tensors_of_other_values(tmp_path, onnx_path, fault):
    from onnx import TensorProto

    def change(model):
        tensor = next(tensor for tensor in model.graph.initializer if list(tensor.dims) == [16, 16])
        tensor.ClearField("raw_data")
        if fault.startswith("not"):
            tensor.data_type = TensorProto.INT32
            tensor.int32_data[:] = [1] * 256
        else:
            tensor.float_data[:] = [1.0] * 255

    assert fault in error_of(onnx=edited(onnx_path, tmp_path / "m.onnx", change))


@pytest.mark.parametrize("form", ["no product", "one operand"])
def test_onnx_with_attention_of_an_unknown_form(tmp_path, onnx_path, form):
    from onnx import helper

    def change(model):
        constants = {tensor.name for tensor in model.graph.initializer}
        products = [n for n in model.graph.node if n.op_type == "MatMul" and not constants & set(n.input)]
        assert len(products) == 2 * CONFIG.num_hidden_layers
        for number, product in enumerate(products[::2]):  # each Q·Kᵀ
            if form == "one operand":
                model.graph.node.append(helper.make_node("Sum", product.input, [f"sum{number}"]))
                product.input[:] = [f"sum{number}"] * 2
            else:
                product.op_type = "Einsum"
                products[2 * number + 1].op_type = "Einsum"

    message = error_of(onnx=edited(onnx_path, tmp_path / "m.onnx", change))
    assert "form that is not known" in message and "m.onnx" in message


@pytest.mark.parametrize("where", ["inline", "typed", "external"])
@pytest.mark.parametrize("dims", [[1 << 21, 1 << 21], [1 << 62, 1 << 62], [-1, 16], [0, 16], [], [16]], ids=str)
def test_onnx_dimensions_that_lie(tmp_path, onnx_path, dims, where):
    (tmp_path / "data").write_bytes(bytes(1024))

    def claim(model):
        if where == "external":
            external(model, location="data")
        for tensor in model.graph.initializer:
            if list(tensor.dims) == [16, 16]:
                tensor.dims[:] = dims
                if where == "typed":
                    tensor.ClearField("raw_data")
                    tensor.float_data[:] = [0.0] * 256

    message = error_of(onnx=edited(onnx_path, tmp_path / "m.onnx", claim))
    assert ("has the dimensions" in message) == (min(dims, default=0) < 0)


@pytest.mark.parametrize("shape", [(4, 4), (1 << 30, 1 << 11)])
def test_onnx_sizes_are_checked_where_the_config_agrees(tmp_path, onnx_path, shape):
    """Shapes that the config asks for, data that are not there: nothing may be allocated for them."""
    from helpers.weights.onnx_model import load_onnx

    def claim(model):
        for tensor in model.graph.initializer:
            tensor.dims[:] = shape if len(tensor.dims) == 2 else tensor.dims

    path = edited(onnx_path, tmp_path / "m.onnx", claim)
    with pytest.raises(DemoBertError, match="its shape needs"):
        load_onnx(path).tensors["bert_embeddings_word_embeddings"].read()


@pytest.mark.parametrize("shape", [(1 << 20, 1 << 20), (16, 16)])
def test_pt_whose_tensors_are_views_of_little(tmp_path, shape):
    """One stored number, expanded to terabytes by its strides: refused by its shape, before it is copied."""
    import torch

    tensors = {name: torch.tensor(array) for name, array in state().items()}
    tensors[QUERY] = torch.ones(1, 1).expand(shape)
    torch.save(tensors, tmp_path / "a.pt")
    if shape == (16, 16):
        assert (load_weights(CONFIG, pytorch=tmp_path / "a.pt")["l1_attention_self_query_kernel"] == 1).all()
    else:
        assert "misshapen" in error_of(pytorch=tmp_path / "a.pt")


def test_pt_entry_larger_than_its_file(tmp_path, monkeypatch):
    """The archive's directory is believed only as far as the file goes; torch would allocate what it says."""
    import torch

    path = write_pickled(tmp_path / "a.pt", state())
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\1\2")  # the directory's first entry; its uncompressed size is at byte 24
    content[entry + 24 : entry + 28] = struct.pack("<I", 0x7FFFFFFF)
    path.write_bytes(content)
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("torch was asked to load it"))
    error_of(pytorch=path)


def test_onnx_that_names_a_tensor_twice(tmp_path, onnx_path):
    def repeat(model):
        again = model.graph.initializer.add()
        again.CopyFrom(model.graph.initializer[0])
        again.name = f"module.{again.name}"

    assert "twice" in error_of(onnx=edited(onnx_path, tmp_path / "m.onnx", repeat))


def test_names_with_line_breaks_stay_on_one_line(tmp_path):
    error_of(pytorch=write_safetensors(tmp_path / "a.safetensors", state(**{"a\nb\x1b[31m" * 99: np.ones(1)})))


def test_onnx_names_that_are_not_utf8(tmp_path, onnx_path):
    content = onnx_path.read_bytes()
    for name in (b"bert.embeddings.LayerNorm.weight", b"input_ids", b"MatMul", b"external"):
        if name == b"external":
            content = edited(onnx_path, tmp_path / "e.onnx", lambda m: external(m, location=name.decode())).read_bytes()
        assert name in content
        (tmp_path / "m.onnx").write_bytes(content.replace(name, b"\xff" + name[1:]))
        error_of(onnx=tmp_path / "m.onnx")


# --- damage at random ---------------------------------------------------------------------------------------------

FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
#: Most of a file is numbers, in which a flipped byte does little; half of the damage goes to its two ends.
PLACES = st.one_of(st.integers(0, 4000), st.integers(-4000, -1), st.integers())
FLIPS = st.lists(st.tuples(PLACES, st.integers(1, 255)), min_size=0, max_size=6)


def damage(path, content: bytes, flips, cut) -> None:
    damaged = bytearray(content)
    for place, mask in flips:
        damaged[place % len(damaged)] ^= mask
    path.write_bytes(damaged[: cut % (len(damaged) + 1)] if cut is not None else damaged)


def load_or_explain(**checkpoint) -> None:
    try:
        weights = load_weights(CONFIG, **checkpoint)
    except DemoBertError as error:
        assert "\n" not in str(error)
    else:
        check_weights(weights.tensors, CONFIG, "fuzz")


@pytest.fixture(scope="module")
def damaged_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


@FUZZ
@given(flips=FLIPS, cut=st.none() | st.integers(0))
def test_damaged_safetensors(damaged_folder, flips, cut):
    path = damaged_folder / "a.safetensors"
    if not (whole := damaged_folder / "whole.safetensors").exists():
        write_safetensors(whole, state())
    damage(path, whole.read_bytes(), flips, cut)
    load_or_explain(pytorch=path)


@pytest.mark.parametrize("legacy", [False, True])
@FUZZ
@given(flips=FLIPS, cut=st.none() | st.integers(0))
def test_damaged_pt(damaged_folder, legacy, flips, cut):
    path = damaged_folder / "a.pt"
    if not (whole := damaged_folder / f"whole{legacy}.pt").exists():
        write_pickled(whole, state(), legacy=legacy)
    damage(path, whole.read_bytes(), flips, cut)
    load_or_explain(pytorch=path)


@FUZZ
@given(flips=FLIPS, cut=st.none() | st.integers(0))
def test_damaged_onnx(damaged_folder, onnx_path, flips, cut):
    path = damaged_folder / "a.onnx"
    damage(path, onnx_path.read_bytes(), flips, cut)
    load_or_explain(onnx=path)


@pytest.mark.parametrize("part", ["index", "data-00000-of-00001"])
@settings(FUZZ, max_examples=25)
@given(flips=FLIPS, cut=st.none() | st.integers(0))
def test_damaged_tensorflow_checkpoint(damaged_folder, tensorflow_prefix, part, flips, cut):
    parts = ("index", "data-00000-of-00001")
    for each in parts:
        with open(f"{tensorflow_prefix}.{each}", "rb") as file:
            damage(damaged_folder / f"model.ckpt.{each}", file.read(), *((flips, cut) if each == part else ((), None)))
    load_or_explain(tensorflow=damaged_folder / "model.ckpt")


# --- sparsity ----------------------------------------------------------------------------------------------------


def test_sparse_2_4_kernels():
    tensors = dict(TENSORS)
    pruned = tensors["l0_output_dense_kernel"].copy().reshape(-1, 4)
    keep = np.argsort(np.abs(pruned), axis=1)[:, 2:]
    mask = np.zeros(pruned.shape, bool)
    np.put_along_axis(mask, keep, True, axis=1)
    sparse = (pruned * mask).reshape(16, 16)
    tensors["l0_output_dense_kernel"] = sparse
    # Pruned along `out` is not pruned along `in`.
    tensors["l0_intermediate_dense_kernel"] = sparse.T
    almost = sparse.copy()
    almost[15, 12:15] = 1
    tensors["l1_output_dense_kernel"] = almost
    names_of_sparse, others = sparse_2_4_kernels(BertWeights(tensors, CONFIG, "test"))
    assert names_of_sparse == ["l0_output_dense_kernel"]
    assert sorted(others + names_of_sparse) == sorted(name for name in TENSORS if name.endswith("_kernel"))


def test_kernels_of_other_widths_are_not_sparse():
    weights = BertWeights({"l0_output_dense_kernel": np.zeros((4, 6), np.float32)}, CONFIG, "test")
    assert sparse_2_4_kernels(weights) == ([], ["l0_output_dense_kernel"])
