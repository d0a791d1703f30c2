"""BERT for question answering in numpy float64, from the papers: the independent reference of these tests.

Attention: arXiv:1706.03762; BERT: arXiv:1810.04805; GELU: arXiv:1606.08415; layer normalisation: arXiv:1607.06450;
Megatron's order of norm and residual: arXiv:1909.08053; quantization: arXiv:2004.09602, arXiv:2209.05433.
Shares nothing with the code under test but BertConfig and the canonical names of tensors and ranges.
"""

import math
import re

import ml_dtypes
import numpy as np

from helpers.bert_config import BertConfig

_erf = np.vectorize(math.erf, otypes=[np.float64])

#: Every finite E4M3 number, ascending: ml_dtypes itself would round float64 to float32 first, and ties after that.
_E4M3 = np.unique(np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64))
_E4M3 = _E4M3[np.isfinite(_E4M3)]


def reference_logits(
    config, tensors, gelu, input_ids, segment_ids, input_mask, pre_normalised=False, quantize=lambda name, value: value
) -> np.ndarray:
    """Start and end logits, float64 [B, S, 2].

    `tensors` are canonical, `gelu` is "tanh" or "erf", or a function of a layer's number and what its GELU reads, the
    other three are int [B, S]. Keys where the mask is 0 get exactly no weight; the logits at such positions are
    computed like any other. `pre_normalised`: Megatron's BERT, whose sub-layers read a layer norm of the stream, and add
    what they find to the stream itself. `quantize(name, value)` replaces the values at each place that has a range, by
    the range's name; kernels are [out, in].
    """
    weight = {name: np.asarray(tensor, np.float64) for name, tensor in tensors.items()}
    batch, length = input_ids.shape
    size = config.hidden_size // config.num_attention_heads
    keys = np.asarray(input_mask, bool)[:, None, None, :]

    def dense(x, name):
        kernel = quantize(f"{name}_kernel_amax", weight[f"{name}_kernel"])
        return quantize(f"{name}_input_amax", x) @ kernel.T + weight[f"{name}_bias"]

    def normalise(x, name):
        mean = x.mean(-1, keepdims=True)
        variance = ((x - mean) ** 2).mean(-1, keepdims=True)
        scaled = (x - mean) / np.sqrt(variance + config.layer_norm_eps)
        return scaled * weight[f"{name}_gamma"] + weight[f"{name}_beta"]

    def split_heads(x):
        return x.reshape(batch, length, -1, size).transpose(0, 2, 1, 3)

    def attend(x, name):
        def entering(which, values):
            return quantize(f"{name}_{which}_input_quantizer_amax", values)

        query, key, value = (split_heads(dense(x, f"{name}_{part}")) for part in ("query", "key", "value"))
        scores = np.einsum("bhqd,bhkd->bhqk", entering("qv_a", query), entering("qv_b", key)) / math.sqrt(size)
        weights = entering("av_a", masked_softmax(scores, keys))
        context = np.einsum("bhqk,bhkd->bhqd", weights, entering("av_b", value))
        return context.transpose(0, 2, 1, 3).reshape(batch, length, -1)

    def add(branch, residual, name):
        branch = quantize(f"{name}_add_local_input_quantizer_amax", branch)
        return branch + quantize(f"{name}_add_residual_input_quantizer_amax", residual)

    # What goes on to the next sub-layer (`hidden`), and what its result is added to (`stream`): the same in BERT's own
    # order, where each sum is normalised; Megatron's stream is never normalised but for reading.
    stream = weight["bert_embeddings_word_embeddings"][input_ids]
    stream = stream + weight["bert_embeddings_token_type_embeddings"][segment_ids]
    stream = stream + weight["bert_embeddings_position_embeddings"][np.arange(length)]
    hidden = normalise(stream, "bert_embeddings_layernorm")
    for i in range(config.num_hidden_layers):
        branch = dense(attend(hidden, f"l{i}_attention_self"), f"l{i}_attention_output_dense")
        stream = add(branch, stream if pre_normalised else hidden, f"l{i}_attention_output")
        hidden = normalise(stream, f"l{i}_attention_output_layernorm")
        inner = dense(hidden, f"l{i}_intermediate_dense")
        inner = gelu(i, inner) if callable(gelu) else gelu_of(inner, gelu)
        branch = dense(inner, f"l{i}_output_dense")
        stream = add(branch, stream if pre_normalised else hidden, f"l{i}_output")
        hidden = normalise(stream, f"l{i}_output_layernorm")
    hidden = quantize("bert_encoder_final_input_quantizer_amax", hidden)
    return hidden @ weight["cls_squad_output_weights"].T + weight["cls_squad_output_bias"]


def fake_int8(values: np.ndarray, amax, lowest: int = -128) -> np.ndarray:
    """The nearest of the multiples `lowest` to 127 of amax / 127, ties to even; `amax` broadcasts against `values`."""
    step = np.float64(np.float32(amax) / np.float32(127))  # engines hold it in float32
    return np.clip(np.round(values / step), lowest, 127) * step


def fake_fp8(values: np.ndarray, amax) -> np.ndarray:
    """The nearest E4M3 multiple of amax / 448; what is beyond amax becomes amax."""
    step = np.float64(np.float32(amax) / np.float32(448))
    scaled = values / step
    between = (_E4M3[1:] + _E4M3[:-1]) / 2
    # In the middle of two the even one: zero has the even index 126, and neighbours' mantissas differ by one.
    below, above = (np.searchsorted(between, scaled, side) for side in ("left", "right"))
    return _E4M3[np.where(below % 2 == 0, below, above)] * step


def fake_quantizer(kind: str, ranges: dict, places=lambda name: True):
    """A `quantize` of reference_logits: to "int8" or "fp8", at the places that `places` says yes to.

    Kernels without a range take their own largest value in each row.
    """
    rounded = {"int8": fake_int8, "fp8": fake_fp8}[kind]

    def quantize(name, values):
        if not places(name):
            return values
        if name.endswith("_kernel_amax"):
            amax = ranges.get(name, np.abs(values).max(1))
            return rounded(values, np.broadcast_to(np.ravel(amax), len(values))[:, None])
        return rounded(values, np.float64(ranges[name]))

    return quantize


def channels_of(seen: dict) -> dict:
    """Each dense layer that reads a layer norm → the largest values of its input's channels, float32 [in].

    `seen`: values [B, S, in] by the names that `quantize` of reference_logits is given.
    """
    ends = ("_query_input_amax", "_intermediate_dense_input_amax")
    return {
        name.removesuffix("_input_amax").removesuffix("_query"): np.float32(np.abs(values).max((0, 1)))
        for name, values in seen.items()
        if name.endswith(ends)
    }


def smoothed(quantize, tensors: dict, channels: dict, ranges: dict):
    """`quantize` of reference_logits in int8, where dense inputs are evened out by the ranges of their channels.

    SmoothQuant (arXiv:2211.10438), equation 4, with α = 0.75, scaled so that no channel exceeds 1. `channels`: dense layer
    ("l<i>_attention_self": query, key and value in one) → largest values [in]. Neither factor is taken back: their
    product is 1. They are float32, as engines hold them. A kernel that has a range in `ranges` is clipped to it first,
    and so are the ranges of channels to their tensor's.
    """
    limits = {}
    for dense, largest in channels.items():
        kernels = [tensors[name] for name in tensors if re.fullmatch(f"{dense}(_query|_key|_value)?_kernel", name)]
        weights = np.abs(np.concatenate(kernels)).max(0).astype(np.float64)
        whole = [ranges[name] for name in ranges if re.fullmatch(f"{dense}(_query|_key|_value)?_input_amax", name)]
        largest = np.minimum(np.float64(largest), max(whole, default=np.inf))
        inputs = np.maximum(largest, 1e-5 * largest.max())
        shares = inputs**0.75 / np.maximum(weights, 1e-5 * weights.max()) ** 0.25
        limits[dense] = np.float32(shares * (inputs / shares).max())

    def quantize_smoothed(name, values):
        place = re.fullmatch("(.*?)(?:_query|_key|_value)?_(input|kernel)_amax", name)
        dense, kind = place.groups() if place else (None, None)
        if dense not in limits:
            return quantize(name, values)
        if kind == "kernel":
            amax = np.reshape(ranges.get(name, np.inf), (-1, 1))
            evened = np.float32(np.clip(values, -amax, amax)) * limits[dense]
            return fake_int8(evened, np.abs(evened).max(1, keepdims=True), lowest=-127)
        return fake_int8(values * np.float64(1 / limits[dense]), 1.0)

    return quantize_smoothed


def masked_softmax(scores: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Softmax over the last axis of what `keep` (broadcast) allows; the rest weighs exactly 0."""
    scores = np.where(keep, scores, -np.inf)
    exponentials = np.exp(scores - scores.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def gelu_of(x: np.ndarray, formula: str) -> np.ndarray:
    """x·Φ(x), with Φ exact ("erf") or as the paper approximates it ("tanh")."""
    if formula == "erf":
        return 0.5 * x * (1.0 + _erf(x / math.sqrt(2.0)))
    if formula == "tanh":
        return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
    raise ValueError(formula)


def sigmoid_gelu(x: np.ndarray, formula: str) -> np.ndarray:
    """GELU as x·σ(x·p(x²)), as plugin networks below float32 compute it: "erf" within 3e-5, "tanh" the same."""
    if formula == "erf":
        square = np.minimum(x * x, 48.0)
        odds = x * (1.59501577 + square * (0.0740112924 - 0.000703033618 * square))
    else:
        odds = 2 * math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)
    return x / (1.0 + np.exp(-np.clip(odds, -700, 700)))


def random_config(rng: np.random.Generator) -> BertConfig:
    """A BERT of odd sizes: 1 to 5 layers, hidden 48 to 320, heads of 8 to 64, feed-forward other than 4×."""
    head_size = int(rng.choice([8, 12, 16, 20, 24, 32, 40, 48, 56, 64]))
    heads = int(rng.integers(-(-48 // head_size), 320 // head_size + 1))
    hidden = head_size * heads
    inner = int(rng.integers(24, 700))
    return BertConfig(
        hidden_size=hidden,
        num_hidden_layers=int(rng.integers(1, 6)),
        num_attention_heads=heads,
        # A square feed-forward, whose orientation no shape gives away, is worth having often.
        intermediate_size=hidden if rng.random() < 0.25 else inner + (inner == 4 * hidden),
        vocab_size=int(np.exp(rng.uniform(np.log(101), np.log(40_000)))),
        max_position_embeddings=int(rng.choice([7, 64, 130, 384, 512])),
        type_vocab_size=int(rng.integers(1, 4)),
        layer_norm_eps=float(rng.choice([1e-12, 1e-7, 1e-5, 1e-3])),
    )


def random_weights(config: BertConfig, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Canonical float32 tensors with magnitudes like those of trained models; no two alike, none trivial."""
    hidden, head_size = config.hidden_size, config.hidden_size // config.num_attention_heads

    def normal(shape, deviation, mean=0.0):
        return (mean + deviation * rng.standard_normal(shape)).astype(np.float32)

    def dense(name, out_size, in_size):
        # 1/√in keeps activations near one at any width; trained models lie a little above their 0.02 start.
        tensors[f"{name}_kernel"] = normal((out_size, in_size), 1.0 / math.sqrt(in_size))
        tensors[f"{name}_bias"] = normal(out_size, 0.2)

    def layer_norm(name):
        tensors[f"{name}_gamma"] = normal(hidden, 0.15, 0.9)
        tensors[f"{name}_beta"] = normal(hidden, 0.15)

    tensors = {
        "bert_embeddings_word_embeddings": normal((config.vocab_size, hidden), 0.05),
        "bert_embeddings_token_type_embeddings": normal((config.type_vocab_size, hidden), 0.03),
        "bert_embeddings_position_embeddings": normal((config.max_position_embeddings, hidden), 0.03),
    }
    layer_norm("bert_embeddings_layernorm")
    for i in range(config.num_hidden_layers):
        heads = (config.num_attention_heads_per_layer or {i: config.num_attention_heads})[i] * head_size
        inner = (config.intermediate_size_per_layer or {i: config.intermediate_size})[i]
        for part in ("query", "key", "value"):
            dense(f"l{i}_attention_self_{part}", heads, hidden)
        dense(f"l{i}_attention_output_dense", hidden, heads)
        layer_norm(f"l{i}_attention_output_layernorm")
        dense(f"l{i}_intermediate_dense", inner, hidden)
        dense(f"l{i}_output_dense", hidden, inner)
        layer_norm(f"l{i}_output_layernorm")
    tensors["cls_squad_output_weights"] = normal((2, hidden), 1.0 / math.sqrt(hidden))
    tensors["cls_squad_output_bias"] = normal(2, 0.2)
    return tensors


def random_inputs(config: BertConfig, rng: np.random.Generator, batch: int, length: int) -> tuple:
    """(input_ids, segment_ids, input_mask), int32 [batch, length], each row with its own number of leading tokens.

    One of several rows has half of them at least: with a token in each, attention is 1 whatever queries and keys are.
    """
    input_ids = rng.integers(0, config.vocab_size, (batch, length), dtype=np.int32)
    segment_ids = rng.integers(0, config.type_vocab_size, (batch, length), dtype=np.int32)
    lengths = rng.integers(1, length + 1, (batch, 1))
    if batch > 1:
        lengths[rng.integers(batch)] = rng.integers((length + 1) // 2, length + 1)
    return input_ids, segment_ids, (np.arange(length) < lengths).astype(np.int32)
