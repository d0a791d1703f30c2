"""Checkpoints for tests: canonical tensors written in every format that users have, by the formats' own writers."""

import contextlib
import io
import json
import logging
import os
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from helpers.bert_config import BertConfig
from helpers.quantization import Quantization
from helpers.weights import BertWeights

_DENSE = {
    "attention_self_query": "attention.self.query",
    "attention_self_key": "attention.self.key",
    "attention_self_value": "attention.self.value",
    "attention_output_dense": "attention.output.dense",
    "intermediate_dense": "intermediate.dense",
    "output_dense": "output.dense",
}


def names(config) -> list[tuple[str, str, str]]:
    """(canonical, PyTorch's, TensorFlow's) name of every tensor, written out apart from the readers' own maps."""
    rows = []
    for table in ("word_embeddings", "token_type_embeddings", "position_embeddings"):
        rows.append((f"bert_embeddings_{table}", f"bert.embeddings.{table}.weight", f"bert/embeddings/{table}"))
    norms = [("bert_embeddings_layernorm", "bert.embeddings.LayerNorm", "bert/embeddings/LayerNorm")]
    for i in range(config.num_hidden_layers):
        torch_layer, tf_layer = f"bert.encoder.layer.{i}", f"bert/encoder/layer_{i}"
        for canonical, module in _DENSE.items():
            scope = f"{tf_layer}/{module.replace('.', '/')}"
            rows.append((f"l{i}_{canonical}_kernel", f"{torch_layer}.{module}.weight", f"{scope}/kernel"))
            rows.append((f"l{i}_{canonical}_bias", f"{torch_layer}.{module}.bias", f"{scope}/bias"))
        for part in ("attention.output", "output"):
            canonical, scope = f"l{i}_{part.replace('.', '_')}_layernorm", f"{tf_layer}/{part.replace('.', '/')}"
            norms.append((canonical, f"{torch_layer}.{part}.LayerNorm", f"{scope}/LayerNorm"))
    for canonical, module, scope in norms:
        rows.append((f"{canonical}_gamma", f"{module}.weight", f"{scope}/gamma"))
        rows.append((f"{canonical}_beta", f"{module}.bias", f"{scope}/beta"))
    rows.append(("cls_squad_output_weights", "qa_outputs.weight", "cls/squad/output_weights"))
    rows.append(("cls_squad_output_bias", "qa_outputs.bias", "cls/squad/output_bias"))
    return rows


def write_config(folder, config, name: str = "bert_config.json", gelu: str = "gelu") -> Path:
    """`config` as Google or Hugging Face write it: `gelu` is the file's `hidden_act`."""
    values = {key: value for key, value in asdict(config).items() if key not in ("gelu", "do_lower_case")}
    path = Path(folder) / name
    path.write_text(json.dumps(values | {"hidden_act": gelu, "model_type": "bert"}), encoding="utf-8")
    return path


def pytorch_state(config, tensors) -> dict[str, np.ndarray]:
    """`tensors` under the names of Hugging Face's BertForQuestionAnswering."""
    return {name: tensors[canonical] for canonical, name, _ in names(config)}


def write_safetensors(path, state, dtype: str = "float32") -> Path:
    """`state` by safetensors' own writer, in any of torch's floating-point types."""
    import torch
    from safetensors.torch import save_file

    save_file(_torch_state(state, getattr(torch, dtype)), str(path), metadata={"format": "pt"})
    return Path(path)


def write_pickled(path, state, dtype: str = "float32", legacy: bool = False, key: str | None = None) -> Path:
    """`state` by torch.save; `legacy`: as torch before 1.6; `key`: under this key of an outer dict."""
    import torch

    state = _torch_state(state, getattr(torch, dtype))
    torch.save({key: state} if key else state, path, _use_new_zipfile_serialization=not legacy)
    return Path(path)


def write_folder(folder, config, state, shards: int = 1, pickled: bool = False) -> Path:
    """A Hugging Face folder: config.json and one file, or `shards` files and their index."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, config, "config.json")
    stem, suffix, write = "model", ".safetensors", write_safetensors
    if pickled:
        stem, suffix, write = "pytorch_model", ".bin", write_pickled
    if shards == 1:
        write(folder / f"{stem}{suffix}", state)
        return folder
    weight_map = {}
    for number in range(shards):
        part = dict(list(state.items())[number::shards])
        shard = f"{stem}-{number + 1:05}-of-{shards:05}{suffix}"
        write(folder / shard, part)
        weight_map |= dict.fromkeys(part, shard)
    index = {"metadata": {"total_size": sum(array.nbytes for array in state.values())}, "weight_map": weight_map}
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def _torch_state(state, dtype) -> dict:
    import torch

    return {name: torch.tensor(np.asarray(array)).to(dtype) for name, array in state.items()}


def tensorflow_state(config, tensors) -> dict[str, np.ndarray]:
    """`tensors` under Google's names, kernels [in, out]."""
    return {name: tensors[key].T if name.endswith("/kernel") else tensors[key] for key, _, name in names(config)}


def write_tensorflow(prefix, state) -> str:
    """`state` by TensorFlow's own checkpoint writer; returns the prefix."""
    tf = _tensorflow()
    keys = sorted(state)
    values = [tf.constant(np.ascontiguousarray(state[key])) for key in keys]
    tf.raw_ops.SaveV2(prefix=str(prefix), tensor_names=keys, shape_and_slices=[""] * len(keys), tensors=values)
    return str(prefix)


def _tensorflow():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    return tf


def hugging_face_model(config, tensors, dtype: str = "float32", gelu: str = "erf"):
    """Hugging Face's BertForQuestionAnswering with these weights, for inference; attention "eager" in its words."""
    import torch
    import transformers

    hf_config = transformers.BertConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        max_position_embeddings=config.max_position_embeddings,
        type_vocab_size=config.type_vocab_size,
        layer_norm_eps=config.layer_norm_eps,
        hidden_act={"erf": "gelu", "tanh": "gelu_new"}[gelu],
        attn_implementation="eager",
        pad_token_id=None,
    )
    model = transformers.BertForQuestionAnswering(hf_config)
    for i, layer in enumerate(model.bert.encoder.layer):
        _cut(layer, config.num_attention_heads_per_layer, config.intermediate_size_per_layer, i)
    model = model.to(getattr(torch, dtype)).eval()
    model.load_state_dict(_torch_state(pytorch_state(config, tensors), getattr(torch, dtype)), strict=True)
    return model


def _cut(layer, heads: tuple | None, inner: tuple | None, i: int) -> None:
    """Hugging Face's layer `i` of a pruned model: its dense layers at their smaller sizes."""
    import torch

    if heads is not None:
        width, size = heads[i] * layer.attention.self.attention_head_size, layer.output.dense.out_features
        for part in ("query", "key", "value"):
            setattr(layer.attention.self, part, torch.nn.Linear(size, width))
        layer.attention.output.dense = torch.nn.Linear(width, size)
    if inner is not None:
        size = layer.output.dense.out_features
        layer.intermediate.dense, layer.output.dense = torch.nn.Linear(size, inner[i]), torch.nn.Linear(inner[i], size)


def hugging_face_logits(model, input_ids, segment_ids, input_mask) -> np.ndarray:
    """The model's logits [B, S, 2] for int32 inputs [B, S], in its own floating-point type."""
    import torch

    with torch.no_grad():
        output = model(
            input_ids=torch.tensor(input_ids).long(),
            token_type_ids=torch.tensor(segment_ids).long(),
            attention_mask=torch.tensor(input_mask).long(),
        )
    return torch.stack([output.start_logits, output.end_logits], dim=-1).numpy()


def write_onnx(
    path, model, *, dynamo: bool, length: int = 6, dynamic: bool = True, segments: bool = True, **options
) -> Path:
    """`model` by torch.onnx.export, with the dynamo or the TorchScript exporter; `dynamic`: any batch and length."""
    import torch

    inputs = {name: torch.ones(2, length, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    if segments:
        inputs["token_type_ids"] = torch.zeros(2, length, dtype=torch.long)
    if dynamic and dynamo:
        sizes = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("length", min=2, max=length + 1)}
        options["dynamic_shapes"] = dict.fromkeys(inputs, sizes)
    elif dynamic:
        outputs = ("start_logits", "end_logits")
        options["dynamic_axes"] = {name: {0: "batch", 1: "length"} for name in (*inputs, *outputs)}
    with _quiet():
        torch.onnx.export(
            model,
            (),
            str(path),
            kwargs=inputs,
            input_names=list(inputs),
            output_names=["start_logits", "end_logits"],
            dynamo=dynamo,
            **options,
        )
    return Path(path)


@contextlib.contextmanager
def _quiet():
    """The exporters narrate; a test's output should be its own."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def megatron_state(config, tensors) -> dict[str, np.ndarray]:
    """`tensors` under NVIDIA Megatron-LM's names: query, key and value stacked, every norm before its layer."""
    state = {}

    def put(name, *canonicals, kinds=("weight:kernel", "bias:bias")):
        for theirs, ours in (kind.split(":") for kind in kinds):
            state[f"{name}.{theirs}"] = np.concatenate([tensors[f"{canonical}_{ours}"] for canonical in canonicals])

    norm = ("weight:gamma", "bias:beta")
    for theirs, ours in (("word", "word"), ("position", "position"), ("tokentype", "token_type")):
        name = f"language_model.embedding.{theirs}_embeddings.weight"
        state[name] = tensors[f"bert_embeddings_{ours}_embeddings"]
    before = "bert_embeddings_layernorm"
    for i in range(config.num_hidden_layers):
        layer, attention = f"language_model.transformer.layers.{i}", f"l{i}_attention_self"
        put(f"{layer}.input_layernorm", before, kinds=norm)
        put(f"{layer}.attention.query_key_value", *(f"{attention}_{part}" for part in ("query", "key", "value")))
        put(f"{layer}.attention.dense", f"l{i}_attention_output_dense")
        put(f"{layer}.post_attention_layernorm", f"l{i}_attention_output_layernorm", kinds=norm)
        put(f"{layer}.mlp.dense_h_to_4h", f"l{i}_intermediate_dense")
        put(f"{layer}.mlp.dense_4h_to_h", f"l{i}_output_dense")
        before = f"l{i}_output_layernorm"
    put("language_model.transformer.final_layernorm", before, kinds=norm)
    state["qa_outputs.weight"] = tensors["cls_squad_output_weights"]
    state["qa_outputs.bias"] = tensors["cls_squad_output_bias"]
    return state


def bert_weights(
    config: BertConfig, tensors: dict, gelu: str = "erf", ranges: dict | None = None, source: str = "test"
):
    """`tensors` as a checkpoint's reader hands them over, GELU's formula settled."""
    return BertWeights(tensors, replace(config, gelu=gelu), source, ranges or {})


def own_quantization(weights: BertWeights, kind: str | None) -> Quantization | None:
    """The ranges that `weights` themselves hold, for a network of `kind`; None: a float network."""
    return Quantization(kind, weights.ranges, weights.source) if kind else None
