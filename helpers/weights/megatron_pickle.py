"""Megatron's pickled weights (`--pickle`): a dict, name → array, with Q, K and V stacked, and ranges of QAT."""

import re

from helpers.errors import DemoBertError, one_line
from helpers.weights.canonical import StoredCheckpoint, StoredTensor
from helpers.weights.plain_pickle import read_plain_pickle

_PREFIX = re.compile(r"^(?:(?:module|model|state_dict|language_model|bert|encoder|transformer)_)*")
_LAYER = re.compile(r"^(?:layers?_|l)([0-9]{1,6})_(.+)$")

#: Not part of the SQuAD network, or of no use to it: `scale` is in the ranges; a layer norm computes in floats.
_SKIPPED = re.compile(
    r"scale|(?:^|_)(?:pooler|lm_head|binary_head|cls_predictions|cls_seq_relationship|position_ids|rng_state|optimizer"
    r"|checkpoint_version|iteration|args)(?:_|$)|_layernorm_(?:in|out)put_quantizer_amax$"
)

_PARTS = ("query", "key", "value")

#: Canonical name of a dense layer → what it is called: demoBERT's names, then Megatron-LM's.
_DENSE = {
    **{f"attention_self_{part}": (f"attention_self_{part}",) for part in _PARTS},
    "attention_self": ("attention_query_key_value", "attention_self_query_key_value", "self_attention_query_key_value"),
    "attention_output_dense": ("attention_output_dense", "attention_dense", "self_attention_dense"),
    "intermediate_dense": ("intermediate_dense", "intermediate_dense_act", "mlp_dense_h_to_4h"),
    "output_dense": ("output_dense", "mlp_dense_4h_to_h"),
}
_NORMS = {
    "attention_output_layernorm": ("attention_output_layernorm", "post_attention_layernorm"),
    "output_layernorm": ("output_layernorm",),
    "input_layernorm": ("input_layernorm",),
}
_DENSE_KINDS = {
    **dict.fromkeys(("weight", "kernel"), "kernel"),
    "bias": "bias",
    **dict.fromkeys(("input_quantizer_amax", "input_amax"), "input_amax"),
    **dict.fromkeys(("weight_quantizer_amax", "kernel_amax", "weight_amax"), "kernel_amax"),
}
_NORM_KINDS = {"weight": "gamma", "gamma": "gamma", "bias": "beta", "beta": "beta"}
_QUANTIZERS = {
    **{f"attention_self_{name}": f"attention_self_{name}" for name in ("qv_a", "qv_b", "av_a", "av_b")},
    **{
        f"attention_self_matmul_{sparse}": f"attention_self_{dense}"
        for sparse, dense in {"q": "qv_a", "k": "qv_b", "v": "av_b", "a": "av_a"}.items()
    },
    **{
        f"{output}_add_{side}": f"{output}_add_{side}"
        for output in ("attention_output", "output")
        for side in ("local", "residual")
    },
}
_LAYER_NAMES = {
    **{
        f"{alias}_{theirs}": f"{module}_{ours}"
        for kinds, modules in ((_DENSE_KINDS, _DENSE), (_NORM_KINDS, _NORMS))
        for module, aliases in modules.items()
        for alias in aliases
        for theirs, ours in kinds.items()
    },
    **{f"{theirs}_input_quantizer_amax": f"{ours}_input_quantizer_amax" for theirs, ours in _QUANTIZERS.items()},
}
_OTHER_NAMES = {
    **{
        f"{embeddings}_{theirs}_embeddings{end}": f"bert_embeddings_{ours}_embeddings{amax}"
        for embeddings in ("embedding", "embeddings")
        for theirs, ours in (
            ("word", "word"),
            ("position", "position"),
            ("token_type", "token_type"),
            ("tokentype", "token_type"),
        )
        for end, amax in (("", ""), ("_weight", ""), ("_weight_quantizer_amax", "_amax"), ("_amax", "_amax"))
    },
    **{
        f"{embeddings}_layernorm_{theirs}": f"bert_embeddings_layernorm_{ours}"
        for embeddings in ("embedding", "embeddings")
        for theirs, ours in _NORM_KINDS.items()
    },
    "final_input_quantizer_amax": "bert_encoder_final_input_quantizer_amax",
    "cls_squad_output_weights": "cls_squad_output_weights",
    "cls_squad_output_bias": "cls_squad_output_bias",
    "qa_outputs_weight": "cls_squad_output_weights",
    "qa_outputs_bias": "cls_squad_output_bias",
    "qa_outputs_input_quantizer_amax": "cls_squad_output_input_amax",
    "qa_outputs_weight_quantizer_amax": "cls_squad_output_weights_amax",
}


def load_megatron(path) -> StoredCheckpoint:
    """The BERT in a Megatron pickle; the code that a pickle can hold is not run. Raises DemoBertError.

    Names are demoBERT's (canonical or PyTorch's, dotted or flattened) or Megatron-LM's. In Megatron's pre-normalised
    layers the norm before a layer is the canonical one after the layer before it; that before the first, the embeddings'.
    """
    checkpoint = StoredCheckpoint(source=str(path), gelu="tanh")
    stored = {name: (flat_name(name), tensor) for name, tensor in read_plain_pickle(path).items()}
    layers = [int(layer[1]) for flat, _ in stored.values() if (layer := _LAYER.match(flat))]
    last = max(layers, default=0)
    for name, (flat, tensor) in stored.items():
        known = canonical_name(flat, last)
        if known is None:
            checkpoint.extra += [] if _SKIPPED.search(flat) else [name]
        else:
            _add(checkpoint, known, tensor)
    return checkpoint


def flat_name(name: str) -> str:
    """`module.bert.encoder.layer.3.output.dense.weight` → `layer_3_output_dense_weight`."""
    return _PREFIX.sub("", re.sub(r"[._]+", "_", name.lower()))


def canonical_name(flat: str, last: int) -> str | None:
    """The canonical name of `flat_name(…)`, or None where it is not one of BERT's; `last` is the last layer's number.

    Q, K and V in one are `l<i>_attention_self_{kernel,bias,input_amax,kernel_amax}`.
    """
    if flat == f"l{last}_output_layernorm_output_quantizer_amax":
        return "bert_encoder_final_input_quantizer_amax"
    if flat.startswith("final_layernorm_"):
        flat = f"l{last}_output_layernorm_{flat.removeprefix('final_layernorm_')}"
    layer = _LAYER.match(flat)
    if layer is None:
        return _OTHER_NAMES.get(flat)
    i, known = int(layer[1]), _LAYER_NAMES.get(layer[2])
    if known and known.startswith("input_layernorm_"):
        before = f"l{i - 1}_output_layernorm" if i else "bert_embeddings_layernorm"
        return known.replace("input_layernorm", before)
    return known and f"l{i}_{known}"


def _add(checkpoint: StoredCheckpoint, known: str, tensor: StoredTensor) -> None:
    stacked = re.fullmatch(r"(l[0-9]+_attention_self)_(kernel|bias|input_amax|kernel_amax)", known)
    if stacked is None:
        checkpoint.add(known, tensor)
        return
    for number, part in enumerate(_PARTS):
        third = tensor if _is_shared(tensor, stacked[2]) else _third(checkpoint.source, known, tensor, number)
        checkpoint.add(f"{stacked[1]}_{part}_{stacked[2]}", third)


def _is_shared(tensor: StoredTensor, kind: str) -> bool:
    """Whether Q, K and V have one range."""
    return kind.endswith("_amax") and all(size == 1 for size in tensor.shape)


def _third(source: str, known: str, tensor: StoredTensor, number: int) -> StoredTensor:
    if not tensor.shape or tensor.shape[0] % 3:
        raise DemoBertError(
            one_line(
                f"{source} can't be used: {known} {list(tensor.shape)} is no stack of query, key and value (3E rows)"
            )
        )
    size = tensor.shape[0] // 3
    return StoredTensor((size, *tensor.shape[1:]), lambda: tensor.read()[number * size : (number + 1) * size])
