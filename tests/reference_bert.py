"""BERT for question answering in numpy float64, from the papers: the independent reference of these tests.

Attention: arXiv:1706.03762; BERT: arXiv:1810.04805; GELU: arXiv:1606.08415; layer normalisation: arXiv:1607.06450.
Shares nothing with the code under test but BertConfig and the canonical names of the tensors.
"""

import math

import numpy as np

from helpers.bert_config import BertConfig

_erf = np.vectorize(math.erf, otypes=[np.float64])


def reference_logits(config, tensors, gelu, input_ids, segment_ids, input_mask) -> np.ndarray:
    """Start and end logits, float64 [B, S, 2].

    `tensors` are canonical, `gelu` is "tanh" or "erf", the other three int [B, S]. Keys where the mask is 0 get
    exactly no weight; the logits at such positions are computed like any other.
    """
    weight = {name: np.asarray(tensor, np.float64) for name, tensor in tensors.items()}
    batch, length = input_ids.shape
    heads, size = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    keys = np.asarray(input_mask, bool)[:, None, None, :]

    def dense(x, name):
        return x @ weight[f"{name}_kernel"].T + weight[f"{name}_bias"]

    def normalise(x, name):
        mean = x.mean(-1, keepdims=True)
        variance = ((x - mean) ** 2).mean(-1, keepdims=True)
        scaled = (x - mean) / np.sqrt(variance + config.layer_norm_eps)
        return scaled * weight[f"{name}_gamma"] + weight[f"{name}_beta"]

    def split_heads(x):
        return x.reshape(batch, length, heads, size).transpose(0, 2, 1, 3)

    hidden = weight["bert_embeddings_word_embeddings"][input_ids]
    hidden = hidden + weight["bert_embeddings_token_type_embeddings"][segment_ids]
    hidden = hidden + weight["bert_embeddings_position_embeddings"][np.arange(length)]
    hidden = normalise(hidden, "bert_embeddings_layernorm")
    for i in range(config.num_hidden_layers):
        query, key, value = (
            split_heads(dense(hidden, f"l{i}_attention_self_{part}")) for part in ("query", "key", "value")
        )
        scores = np.einsum("bhqd,bhkd->bhqk", query, key) / math.sqrt(size)
        context = np.einsum("bhqk,bhkd->bhqd", masked_softmax(scores, keys), value)
        context = context.transpose(0, 2, 1, 3).reshape(batch, length, heads * size)
        hidden = normalise(hidden + dense(context, f"l{i}_attention_output_dense"), f"l{i}_attention_output_layernorm")
        inner = gelu_of(dense(hidden, f"l{i}_intermediate_dense"), gelu)
        hidden = normalise(hidden + dense(inner, f"l{i}_output_dense"), f"l{i}_output_layernorm")
    return hidden @ weight["cls_squad_output_weights"].T + weight["cls_squad_output_bias"]


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
    hidden, inner = config.hidden_size, config.intermediate_size

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
        for part in ("query", "key", "value"):
            dense(f"l{i}_attention_self_{part}", hidden, hidden)
        dense(f"l{i}_attention_output_dense", hidden, hidden)
        layer_norm(f"l{i}_attention_output_layernorm")
        dense(f"l{i}_intermediate_dense", inner, hidden)
        dense(f"l{i}_output_dense", hidden, inner)
        layer_norm(f"l{i}_output_layernorm")
    tensors["cls_squad_output_weights"] = normal((2, hidden), 1.0 / math.sqrt(hidden))
    tensors["cls_squad_output_bias"] = normal(2, 0.2)
    return tensors


def random_inputs(config: BertConfig, rng: np.random.Generator, batch: int, length: int) -> tuple:
    """(input_ids, segment_ids, input_mask), int32 [batch, length], each row with its own number of leading tokens."""
    input_ids = rng.integers(0, config.vocab_size, (batch, length), dtype=np.int32)
    segment_ids = rng.integers(0, config.type_vocab_size, (batch, length), dtype=np.int32)
    lengths = rng.integers(1, length + 1, (batch, 1))
    return input_ids, segment_ids, (np.arange(length) < lengths).astype(np.int32)
