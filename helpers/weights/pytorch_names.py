"""PyTorch's names of BERT's tensors and quantization ranges → canonical names; ONNX exports keep them too.

Other families' names are first turned into BERT's, by helpers/families.py. Ranges may have BERT's names in any family:
layers that share their weights have ranges of their own.
"""

import re
from functools import lru_cache

from helpers.bert_config import BertConfig
from helpers.families import FAMILIES

#: What wraps a model's names: torch's DataParallel, training frameworks, torch.compile; of whole names, any module.
_OUTERMOST = "|".join(sorted({re.escape(family.prefix) for family in FAMILIES.values()}))
_WRAPPERS = re.compile(rf"^(?:\w+\.){{0,8}}?(?={_OUTERMOST}|qa_outputs\.)|^(?:(?:module|model|_orig_mod)\.)+")
_CANONICAL_LAYER = re.compile(r"^l([0-9]+)_(.+)$")
_LAYER = re.compile(r"^encoder\.layer\.([0-9]{1,6})\.(.+)$")

#: Not part of the SQuAD network: pooler, pre-training heads, position_ids and such buffers.
_SKIPPED = re.compile(
    r"(?:^|\.)(?:pooler|cls|lm_head|position_ids|token_type_ids|predictions|sop_classifier|discriminator_predictions"
    r"|generator_predictions|generator_lm_head|vocab_transform|vocab_layer_norm|vocab_projector)(?:\.|$)"
)

#: What no network here makes use of: a scale that the range implies; the range of a layer norm's input (NVIDIA ModelOpt
#: takes it of every norm). Other state of a quantizer, such as ModelOpt's `_pre_quant_scale`, changes what is computed.
_QUANTIZER_STATE = re.compile(r"_quantizer\._scale$|\.LayerNorm\.input_quantizer\._amax$")

_EMBEDDINGS = ("word_embeddings", "token_type_embeddings", "position_embeddings")
_DENSE = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
_LAYER_NORM = ("attention.output.LayerNorm", "output.LayerNorm")

#: What reads a layer norm's output has a range for each channel, too: this project's own, nobody else writes it.
_AFTER_NORM = ("attention.self", "intermediate.dense")

#: Inputs of the attention matmuls, as sparse QAT models name them → as dense ones do.
_MATMUL_QUANTIZERS = {"matmul_q": "qv_a", "matmul_k": "qv_b", "matmul_v": "av_b", "matmul_a": "av_a"}
#: NVIDIA ModelOpt's quantizers of the same tensors (its plugins for Hugging Face's attention).
_MODELOPT_QUANTIZERS = {"q_bmm": "qv_a", "k_bmm": "qv_b", "v_bmm": "av_b", "p_bmm": "av_a"}
_TENSOR_QUANTIZERS = (
    *(f"attention.self.{name}" for name in _MATMUL_QUANTIZERS.values()),
    "attention.output.add_local",
    "attention.output.add_residual",
    "output.add_local",
    "output.add_residual",
)


def _flat(name: str) -> str:
    return name.replace(".", "_").lower()


def _layer_names() -> dict[str, str]:
    """Name within a layer → canonical name without its `l<i>_`."""
    names = {}
    for module in _DENSE:
        names[f"{module}.weight"] = f"{_flat(module)}_kernel"
        names[f"{module}.bias"] = f"{_flat(module)}_bias"
        names[f"{module}._input_quantizer._amax"] = f"{_flat(module)}_input_amax"
        names[f"{module}._weight_quantizer._amax"] = f"{_flat(module)}_kernel_amax"
    for module in _LAYER_NORM:
        names |= _layer_norm_names(module, _flat(module))
    for module in _AFTER_NORM:
        names[f"{module}._input_quantizer._channel_amax"] = f"{_flat(module)}_input_channel_amax"
    for theirs, ours in _MODELOPT_QUANTIZERS.items():
        names[f"attention.self.{theirs}_quantizer._amax"] = f"attention_self_{ours}_input_quantizer_amax"
    for tensor in _TENSOR_QUANTIZERS:
        names[f"{tensor}_input_quantizer._amax"] = f"{_flat(tensor)}_input_quantizer_amax"
    return names


def _layer_norm_names(module: str, name: str) -> dict[str, str]:
    # gamma and beta are what PyTorch's first ports of TensorFlow checkpoints kept.
    gammas = {f"{module}.weight": f"{name}_gamma", f"{module}.gamma": f"{name}_gamma"}
    return gammas | {f"{module}.bias": f"{name}_beta", f"{module}.beta": f"{name}_beta"}


#: ModelOpt's names of a dense layer's quantizers → those of its forerunner, pytorch-quantization.
_MODELOPT_MODULE = re.compile(r"\.(input|weight)_quantizer\._amax$")

_LAYER_NAMES = _layer_names()
_OTHER_NAMES = {
    **{f"embeddings.{table}.weight": f"bert_embeddings_{table}" for table in _EMBEDDINGS},
    **{f"embeddings.{table}._weight_quantizer._amax": f"bert_embeddings_{table}_amax" for table in _EMBEDDINGS},
    **_layer_norm_names("embeddings.LayerNorm", "bert_embeddings_layernorm"),
    "embeddings_project.weight": "bert_embeddings_projection_kernel",
    "embeddings_project.bias": "bert_embeddings_projection_bias",
    "encoder.final_input_quantizer._amax": "bert_encoder_final_input_quantizer_amax",
    "qa_outputs.weight": "cls_squad_output_weights",
    "qa_outputs.bias": "cls_squad_output_bias",
    "qa_outputs._input_quantizer._amax": "cls_squad_output_input_amax",
    "qa_outputs._weight_quantizer._amax": "cls_squad_output_weights_amax",
}


def canonical_name(name: str, config: BertConfig | None = None) -> str | None:
    """The canonical name of a PyTorch parameter or range, or None where it is not one of the model's.

    `bert.encoder.layer.3.output.dense.weight` → `l3_output_dense_kernel`; the prefixes `module.`, `model.`, `_orig_mod.`
    and `bert.` (or its family's) may be there or not. `config` says the family; None: BERT.
    """
    name = _WRAPPERS.sub("", name, count=1)
    if config is not None and config.model_type != "bert":
        name = _bert_name(name, config)
    name = name.removeprefix("bert.")
    name = _MODELOPT_MODULE.sub(r"._\1_quantizer._amax", name)
    layer = _LAYER.match(name)
    if layer is None:
        return _OTHER_NAMES.get(name)
    inner = layer[2].replace(".dense_act.", ".dense.")
    for sparse, dense in _MATMUL_QUANTIZERS.items():
        inner = inner.replace(f".{sparse}_input_quantizer.", f".{dense}_input_quantizer.")
    known = _LAYER_NAMES.get(inner)
    return known and f"l{int(layer[1])}_{known}"


def _bert_name(name: str, config: BertConfig) -> str:
    """The name that BERT has for a tensor of another family, prefixes aside; any other as it is."""
    family = FAMILIES[config.model_type]
    name = name.removeprefix(family.prefix)
    path, rest, i = "", name, None
    if layer := _layer_pattern(family.layer).match(name):
        places = {key: int(value) for key, value in layer.groupdict().items() if key != "rest"}
        i = places["i"] if "i" in places else config.layer_at(**places)
        path, rest = f"encoder.layer.{i}.", layer["rest"]
        if i is None:
            return name
    for theirs, ours in family.modules.items():
        if rest.startswith(f"{theirs}."):
            return f"{path}{ours}{rest.removeprefix(theirs)}"
    return path + rest


@lru_cache
def _layer_pattern(layer: str) -> re.Pattern:
    """What matches the names below a family's `layer` path: its numbers, and the `rest`."""
    numbers = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[0-9]{1,6})", re.escape(layer))
    return re.compile(rf"^{numbers}\.(?P<rest>.+)$")


def pytorch_name(name: str, config: BertConfig | None = None) -> str:
    """The name that Hugging Face's …ForQuestionAnswering and NVIDIA's QAT exports have for a canonical one.

    The inverse of `canonical_name`: `l3_output_dense_kernel` → `bert.encoder.layer.3.output.dense.weight`. With `config`
    tensors have their family's names; ranges always have BERT's.
    """
    layer = _CANONICAL_LAYER.match(name)
    names, inner = (_LAYER_NAMES, layer[2]) if layer else (_OTHER_NAMES, name)
    found = next(theirs for theirs, ours in names.items() if ours == inner)  # the first: "weight" before "gamma"
    path = f"encoder.layer.{layer[1]}." if layer else ""
    prefix = "bert."
    if config is not None and not name.endswith("_amax"):
        prefix, path, found = _family_name(path and int(layer[1]), found, config)
    full = path + found
    return full if full.startswith("qa_outputs.") else f"{prefix}{full}"


def _family_name(layer: int | str, name: str, config: BertConfig) -> tuple[str, str, str]:
    """Prefix, path and name of BERT's `name` in the family; `layer` is its layer's number, or "" outside of layers."""
    family = FAMILIES[config.model_type]
    module, dot, kind = name.rpartition(".")
    module = next((theirs for theirs, ours in family.modules.items() if ours == module), module)
    path = ""
    if layer != "":
        group, inner = config.place_in_groups(layer) if family.shares_layers else (None, None)
        path = family.layer.format(i=layer, group=group, inner=inner) + "."
    return family.prefix, path, module + dot + kind


def is_skipped(name: str) -> bool:
    """Whether a parameter is known not to belong to the SQuAD network."""
    return bool(_SKIPPED.search(name) or _QUANTIZER_STATE.search(name))
