"""The BERT plugins by their documented meaning: the plugins' own READMEs, as docs/tensorrt.md gathers them.

Three families (embeddings, attention, add + layer norm), each in several variants, which version numbers name.
"""

from typing import NamedTuple

import numpy as np

from tests.tensorrt_double.compute import attend, sequences
from tests.tensorrt_double.implicit import is_int8_plugin, to_steps
from tests.tensorrt_double.numerics import FLOATS
from tests.tensorrt_double.shapes import require, require_type
from tests.tensorrt_double.versions import TensorRTDoubleError, Version


class Creator(NamedTuple):
    """One entry of the plugin registry. `interface` is 2 (IPluginV2) or 3 (IPluginV3)."""

    name: str
    version: str
    interface: int
    family: str
    variant: str


class Field(NamedTuple):
    """What a plugin expects of one field. `length` is 1, or None for an array whose length depends on the others."""

    type: str
    required: bool = True
    length: int | None = None
    allowed: tuple = ()


def _flag(required: bool = True) -> Field:
    return Field("INT32", required, 1, (0, 1))


def _type_id() -> Field:
    return Field("INT32", True, 1, (0, 1, 2))


_EMBEDDING_NAMES = ("word_embeddings", "token_type_embeddings", "position_embeddings")
_EMBEDDINGS = {f"bert_embeddings_{name}": Field("FLOAT32") for name in _EMBEDDING_NAMES}
_EMBEDDINGS |= {f"bert_embeddings_layernorm_{name}": Field("FLOAT32") for name in ("beta", "gamma")}
_EMBEDDINGS["output_fp16"] = _flag()
_ATTENTION = {"hidden_size": Field("INT32", True, 1), "num_heads": Field("INT32", True, 1)}
_ATTENTION["dq_probs"] = Field("FLOAT32", False, 1)
_TYPED_ATTENTION = _ATTENTION | {"type_id": _type_id(), "has_mask": _flag()}
_NORM = {"beta": Field("FLOAT32"), "gamma": Field("FLOAT32")}
_TYPED_NORM = _NORM | {"type_id": _type_id(), "bias": Field("FLOAT32", False), "ld": Field("INT32", True, 1)}

#: Fields by family and variant.
FIELDS = {
    ("embeddings", "padded"): _EMBEDDINGS
    | {"mha_type_id": Field("INT32", True, 1, (0, 1, 2)), "full_mask": _flag(required=False)},
    ("embeddings", "packed"): _EMBEDDINGS,
    ("embeddings", "megatron"): _EMBEDDINGS,
    ("attention", "padded"): _TYPED_ATTENTION,
    ("attention", "packed"): _TYPED_ATTENTION
    | {"var_seqlen": Field("INT32", True, 1, (1,)), "use_int8_scale_max": _flag(required=False)},
    ("attention", "interleaved"): _ATTENTION | {"use_int8_scale_max": _flag(required=False)},
    ("add_norm", "padded"): _TYPED_NORM,
    ("add_norm", "packed"): _TYPED_NORM,
    ("add_norm", "interleaved"): _NORM,
    ("add_norm", "megatron"): _NORM,
}

_NAMES = {
    "embeddings": "CustomEmbLayerNormPluginDynamic",
    "attention": "CustomQKVToContextPluginDynamic",
    "add_norm": "CustomSkipLayerNormPluginDynamic",
}

#: (family, variant): version as IPluginV2, version as IPluginV3.
_VERSIONS = {
    ("embeddings", "padded"): ("1", "6"),
    ("embeddings", "packed"): ("2", "4"),
    ("embeddings", "megatron"): ("3", "5"),
    ("attention", "padded"): ("1", "4"),
    ("attention", "packed"): ("2", "5"),
    ("attention", "interleaved"): ("3", "6"),
    ("add_norm", "padded"): ("1", "5"),
    ("add_norm", "packed"): ("2", "6"),
    ("add_norm", "interleaved"): ("3", "7"),
    ("add_norm", "megatron"): ("4", "8"),
}


def creators(version: Version) -> list[Creator]:
    """The BERT plugins that this version of TensorRT registers."""
    found = []
    for (family, variant), (v2, v3) in _VERSIONS.items():
        if version.v2_plugins:
            found.append(Creator(_NAMES[family], v2, 2, family, variant))
        if version.v3_plugins:
            found.append(Creator(_NAMES[family], v3, 3, family, variant))
    return found


def plugin_params(creator: Creator, fields: list[tuple[str, str, np.ndarray]]) -> dict:
    """A plugin's parameters from its fields (name, PluginFieldType, data): checked, scalars as numbers."""
    where = f"{creator.name} version {creator.version}"
    expected = FIELDS[creator.family, creator.variant]
    names = [name for name, _, _ in fields]
    require(len(set(names)) == len(names), f"{where}: a field is given twice: {names}")
    unknown = [name for name in names if name not in expected]
    require(not unknown, f"{where} has no field {', '.join(unknown)}")
    missing = [name for name, field in expected.items() if field.required and name not in names]
    require(not missing, f"{where} misses the field {', '.join(missing)}")
    params = {"family": creator.family, "variant": creator.variant, "interface": creator.interface}
    for name, dtype, data in fields:
        params[name] = _field_value(expected[name], dtype, data, f"{where}, field {name}")
    _check_sizes(params, where)
    return params


def _field_value(field: Field, dtype: str, data: np.ndarray, where: str):
    require(dtype == field.type, f"{where} is {dtype}, must be {field.type}")
    require(data.dtype == {"INT32": np.int32, "FLOAT32": np.float32}[dtype], f"{where}: {dtype}, but {data.dtype} data")
    if field.length is None:
        require(data.size > 0, f"{where} is empty")
        return data.ravel().copy()
    require(data.size == field.length, f"{where} has {data.size} values, must have {field.length}")
    value = data.ravel()[0].item()
    require(not field.allowed or value in field.allowed, f"{where} is {value}, must be one of {field.allowed}")
    return value


def _check_sizes(params: dict, where: str) -> None:
    if params["family"] == "attention":
        sizes = params["hidden_size"], params["num_heads"]
        require(min(sizes) > 0 and sizes[0] % sizes[1] == 0, f"{where}: hidden size {sizes[0]}, {sizes[1]} heads")
        return
    prefix = "bert_embeddings_layernorm_" if params["family"] == "embeddings" else ""
    size = params[f"{prefix}beta"].size
    require(params[f"{prefix}gamma"].size == size, f"{where}: beta and gamma have different lengths")
    require(params.get("ld", size) == size, f"{where}: ld {params.get('ld')}, but beta has {size} values")
    bias = params.get("bias")
    require(bias is None or bias.size == size, f"{where}: bias does not have {size} values")
    for name in _EMBEDDING_NAMES if params["family"] == "embeddings" else ():
        require(params[f"bert_embeddings_{name}"].size % size == 0, f"{where}: {name} is no multiple of {size}")


def required_flags(params: dict) -> list[str]:
    """Builder flags of which one must be set for the plugin's types."""
    if params.get("type_id") == 1:
        return ["FP16"]
    if is_int8_plugin(params):
        return ["INT8"]
    return ["FP16", "INT8"] if params.get("output_fp16") else []


def output_count(params: dict) -> int:
    """How many outputs the plugin has."""
    return 2 if params["family"] == "embeddings" or params["variant"] == "megatron" else 1


def _same_dims(first: tuple, second: tuple) -> bool:
    return len(first) == len(second) and all(a == b or -1 in (a, b) for a, b in zip(first, second))


def _int32(infos: list, names: tuple) -> None:
    for info, name in zip(infos, names):
        require_type(info, ("INT32",), name)


def infer(params, inputs, graph):
    """(shape, dtype) of each output."""
    return _INFER[params["family"]](params, inputs)


def _infer_embeddings(params, inputs):
    size = params["bert_embeddings_layernorm_beta"].size
    dtype = "HALF" if params["output_fp16"] else "FLOAT"
    positions = params["bert_embeddings_position_embeddings"].size // size
    if params["variant"] == "padded":
        require(len(inputs) == 3, f"embeddings take 3 inputs, not {len(inputs)}")
        _int32(inputs, ("ids", "segments", "mask"))
        shape = inputs[0].shape
        same = all(_same_dims(shape, info.shape) for info in inputs[1:])
        require(len(shape) == 2 and same, f"ids, segments and mask must be [S, B]: {[i.shape for i in inputs]}")
        require(shape[0] <= positions, f"{shape[0]} tokens, but {positions} position embeddings")
        return [(shape + (size, 1, 1), dtype), (shape[1:], "INT32")]
    require(len(inputs) == 4, f"packed embeddings take 4 inputs, not {len(inputs)}")
    _int32(inputs, ("ids", "segments", "cu_seqlens", "max_seqlen"))
    require(all(info.rank == 1 for info in inputs), f"packed inputs have rank 1: {[i.shape for i in inputs]}")
    require(_same_dims(inputs[0].shape, inputs[1].shape), "ids and segments have different lengths")
    output = (inputs[0].shape + (size, 1, 1), dtype)
    sequences_ = -1 if inputs[2].shape[0] == -1 else inputs[2].shape[0] - 1
    return [output, output if params["variant"] == "megatron" else ((sequences_,), "INT32")]


def _infer_attention(params, inputs):
    size, variant = params["hidden_size"], params["variant"]
    lead = {"padded": 2, "packed": 1, "interleaved": None}[variant]
    masks = int(params.get("has_mask", 0))
    count = 1 + masks + (0 if variant == "padded" else 2)
    require(len(inputs) == count, f"{variant} attention takes {count} inputs, not {len(inputs)}")
    data = inputs[0]
    require_type(data, FLOATS, "attention's input")
    _int32(inputs[1:], ("mask", "cu_seqlens", "max_seqlen") if masks else ("cu_seqlens", "max_seqlen"))
    require(all(info.rank == 1 for info in inputs[1:]), f"attention's inputs: {[i.shape for i in inputs]}")
    if variant == "interleaved":
        fits = data.rank == 4 and data.shape[0] == 1 and data.shape[1] == 3 * size and data.shape[3] == 1
        require(fits, f"interleaved attention takes [1, {3 * size}, T, 1], not {data.shape}")
        return [((1, size, data.shape[2], 1), data.dtype)]
    require(data.rank == lead + 3, f"{variant} attention's input has rank {lead + 3}, not {data.shape}")
    require(data.shape[lead:] == (3 * size, 1, 1), f"attention's input must end in {(3 * size, 1, 1)}: {data.shape}")
    if masks and variant == "padded":
        require(_same_dims(inputs[1].shape, data.shape[1:2]), f"mask {inputs[1].shape} for {data.shape}")
    return [(data.shape[:lead] + (size, 1, 1), "HALF" if params["type_id"] == 1 else "FLOAT")]


def _infer_add_norm(params, inputs):
    require(len(inputs) == 2, f"add + norm takes 2 inputs, not {len(inputs)}")
    branch, residual = inputs
    size = params["beta"].size
    require_type(branch, FLOATS, "the branch")
    require_type(residual, FLOATS, "the residual")
    require(_same_dims(branch.shape, residual.shape), f"branch {branch.shape}, residual {residual.shape}")
    if params["variant"] in ("interleaved", "megatron"):
        fits = branch.rank == 4 and branch.shape[0] == 1 and branch.shape[1] == size and branch.shape[3] == 1
        require(fits, f"interleaved add + norm takes [1, {size}, T, 1], not {branch.shape}")
        dtype = branch.dtype
    else:
        lead = {"padded": 2, "packed": 1}[params["variant"]]
        fits = branch.rank == lead + 3 and branch.shape[lead:] == (size, 1, 1)
        require(fits, f"{params['variant']} add + norm of {size} can't take {branch.shape}")
        dtype = "HALF" if params["type_id"] == 1 else "FLOAT"
    return [(branch.shape, dtype)] * output_count(params)


_INFER = {"embeddings": _infer_embeddings, "attention": _infer_attention, "add_norm": _infer_add_norm}


def compute(params, inputs, shapes):
    """The outputs."""
    return _RUN[params["family"]](params, inputs)


def _normalise(values: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """Layer norm over the last axis; these plugins add no epsilon to speak of."""
    centred = values - values.mean(-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(-1, keepdims=True))
    if not deviation.all():
        raise TensorRTDoubleError("layer norm of a constant row: the plugin would divide by zero")
    return centred / deviation * gamma.astype(np.float64) + beta.astype(np.float64)


def _rows(params, name: str, ids: np.ndarray) -> np.ndarray:
    table = params[f"bert_embeddings_{name}"].reshape(-1, params["bert_embeddings_layernorm_beta"].size)
    if ids.size and (ids.min() < 0 or ids.max() >= len(table)):
        raise TensorRTDoubleError(f"an id {ids.min()}..{ids.max()} is outside the {len(table)} {name}")
    return table.astype(np.float64)[ids]


def _valid_lengths(mask: np.ndarray) -> np.ndarray:
    """Leading valid tokens of each column of a [S, B] mask; holes, other values and empty rows are errors."""
    if not np.isin(mask, (0, 1)).all() or (np.diff(mask, axis=0) > 0).any() or not mask[0].all():
        raise TensorRTDoubleError("the mask must be ones on each sequence's leading tokens, then zeros")
    return mask.sum(0)


#: The packed embeddings plugins leave what is behind unwritten (embLayerNormVarSeqlenPlugin.cpp; TensorRT#2948).
MOST_EMBEDDED = 384


def _run_embeddings(params, inputs):
    ids, segments = inputs[:2]
    if params["variant"] == "padded":
        positions = np.broadcast_to(np.arange(len(ids))[:, None], ids.shape)
        second = _valid_lengths(inputs[2])
    else:
        ranges = _checked_sequences(inputs[2], inputs[3], len(ids))
        if len(inputs[3]) > MOST_EMBEDDED:
            raise TensorRTDoubleError(
                f"packed embeddings write {MOST_EMBEDDED} tokens of a sequence, not {len(inputs[3])}"
            )
        positions = np.concatenate([np.arange(part.stop - part.start) for part in ranges])
        second = np.array([part.stop - part.start for part in ranges])
        positions, behind = _behind(positions, len(ids), 0), len(positions)
    total = _rows(params, "word_embeddings", ids) + _rows(params, "token_type_embeddings", segments)
    total = total + _rows(params, "position_embeddings", positions)
    names = (f"bert_embeddings_layernorm_{name}" for name in ("gamma", "beta"))
    normalised = _normalise(total, *(params[name] for name in names))
    if params["variant"] != "padded":
        normalised[behind:] = np.nan
    second = total[..., None, None] if params["variant"] == "megatron" else second
    return [normalised[..., None, None], second]


def _checked_sequences(cumulative: np.ndarray, longest: np.ndarray, tokens: int) -> list[slice]:
    """The sequences' token ranges, some perhaps empty; none may be longer than `longest`, whose length is what counts.

    Tokens behind them are of no sequence: what the plugins leave of those is nothing that was written.
    """
    ranges = sequences(cumulative, tokens, shortest=0, exact=False)
    if max(part.stop - part.start for part in ranges) > len(longest):
        raise TensorRTDoubleError(f"a sequence is longer than max_seqlen, {len(longest)}")
    return ranges


#: An int8 attention's step of the probabilities where the field `dq_probs` is not given.
_DQ_PROBS = np.float32(1) / np.float32(127)


def _heads(tokens: np.ndarray, params: dict) -> tuple[np.ndarray, ...]:
    """Query, key, value [N, T, H] of one sequence's [T, 3E], heads laid out as the variant wants."""
    heads = params["num_heads"]
    length, size = len(tokens), params["hidden_size"] // heads
    if params["variant"] == "interleaved":
        return tuple(tokens.reshape(length, 3, heads, size).transpose(1, 2, 0, 3))
    return tuple(tokens.reshape(length, heads, 3, size).transpose(2, 1, 0, 3))


def _attend(tokens: np.ndarray, params: dict, valid: int) -> np.ndarray:
    """[T, 3E] → [T, E]: scaled dot-product attention of one sequence over its first `valid` tokens.

    In int8 the probabilities are rounded to multiples of `dq_probs`.
    """
    query, key, value = _heads(tokens, params)

    def rounded(weights):
        return to_steps(weights, params.get("dq_probs", _DQ_PROBS)) if is_int8_plugin(params) else weights

    context = attend(query / np.sqrt(query.shape[-1]), key[:, :valid], value[:, :valid], rounded=rounded)
    return np.swapaxes(context, 0, 1).reshape(len(tokens), params["hidden_size"])


def _run_attention(params, inputs):
    data = inputs[0]
    if params["variant"] == "padded":
        length, batch = data.shape[:2]
        valid = inputs[1] if params["has_mask"] else np.full(batch, length)
        columns = [_attend(data[:, i, :, 0, 0], params, int(valid[i])) for i in range(batch)]
        return [np.stack(columns, 1)[..., None, None]]
    interleaved = params["variant"] == "interleaved"
    tokens = data[0, :, :, 0].T if interleaved else data[:, :, 0, 0]
    ranges = _checked_sequences(inputs[-2], inputs[-1], len(tokens))
    if not interleaved and params["has_mask"]:
        lengths = [part.stop - part.start for part in ranges]
        require(list(inputs[1]) == lengths, f"the attention mask {inputs[1]} does not fit the lengths {lengths}")
    context = np.concatenate(
        [_attend(tokens[part], params, part.stop - part.start) for part in ranges if part.stop > part.start]
    )
    context = _behind(context, len(tokens), np.nan)
    return [context.T[None, :, :, None] if interleaved else context[:, :, None, None]]


def _behind(values: np.ndarray, tokens: int, value: float) -> np.ndarray:
    """`values` of the sequences' tokens, and `value` of those behind."""
    return np.concatenate([values, np.full((tokens - len(values), *values.shape[1:]), value, values.dtype)])


#: Hidden sizes of the int8 kernels: with another the plugin builds, and its run fails (8.6.0 on an H100).
INT8_NORM_SIZES = (768, 1024)


def _run_add_norm(params, inputs):
    size = params["beta"].size
    if is_int8_plugin(params) and size not in INT8_NORM_SIZES:
        raise TensorRTDoubleError(f"SkipLayerNormDQQ - FATAL: unsupported hidden layer size: {size}")
    total = inputs[0] + inputs[1]
    interleaved = params["variant"] in ("interleaved", "megatron")
    rows = total[0, :, :, 0].T if interleaved else total[..., 0, 0]
    if "bias" in params:
        rows = rows + params["bias"].astype(np.float64)
    normalised = _normalise(rows, params["gamma"], params["beta"])
    normalised = normalised.T[None, :, :, None] if interleaved else normalised[..., None, None]
    return [normalised, total][: output_count(params)]


_RUN = {"embeddings": _run_embeddings, "attention": _run_attention, "add_norm": _run_add_norm}
