"""BERT for question answering (arXiv:1810.04805), layer by layer, in the words of `NetworkLayers`.

This is the only place where the network is written down; each backend translates the words into its own layers.
"""

from helpers.bert_config import BertConfig
from helpers.network_layers import NetworkLayers, Normalised
from helpers.weights import BertWeights


def build_bert(layers: NetworkLayers, config: BertConfig, weights: BertWeights, pre_normalised: bool = False) -> None:
    """Write BERT into `layers`: embeddings (→ projection) → N × (attention, feed-forward) → start and end logits.

    `config.gelu` is known. Weights are canonical (`helpers/weights/canonical.py`); fine-tuning hands over a mapping of
    its own with torch's tensors, and layers that compute at once. `pre_normalised` is Megatron's BERT (arXiv:1909.08053,
    figure 7b): the residual goes around the layer norms, not through them.
    """
    normalised = _embeddings(layers, config, weights)
    for i in range(config.num_hidden_layers):
        normalised = _encoder_layer(layers, config, weights, i, normalised, pre_normalised)
    kernel, bias = weights["cls_squad_output_weights"], weights["cls_squad_output_bias"]
    layers.squad_output(normalised.output, kernel, bias, "cls_squad_output")


def _embeddings(layers: NetworkLayers, config: BertConfig, weights: BertWeights) -> Normalised:
    """The sum of three tables' rows, normalised; of some families (ELECTRA, ALBERT) then projected to the hidden size."""
    normalised = layers.embeddings(
        word=weights["bert_embeddings_word_embeddings"],
        token_type=weights["bert_embeddings_token_type_embeddings"],
        position=weights["bert_embeddings_position_embeddings"],
        gamma=weights["bert_embeddings_layernorm_gamma"],
        beta=weights["bert_embeddings_layernorm_beta"],
        name="bert_embeddings",
    )
    if config.embedding_size is None:
        return normalised
    kernel, bias = (weights[f"bert_embeddings_projection_{which}"] for which in ("kernel", "bias"))
    return Normalised(layers.projection(normalised.output, kernel, bias, "bert_embeddings_projection"), None)


def _encoder_layer(
    layers: NetworkLayers, config: BertConfig, weights: BertWeights, i: int, before: Normalised, pre_normalised: bool
) -> Normalised:
    """Layer i: self-attention, then feed-forward, each added to what it read and normalised."""
    own = f"l{config.layer_with_weights(i)}"  # in ALBERT layers share the weights of the first of them

    def dense(hidden, part):
        return layers.dense(hidden, weights[f"{own}_{part}_kernel"], weights[f"{own}_{part}_bias"], f"l{i}_{part}")

    def add_and_normalise(branch, before, part):
        residual = before.sum if pre_normalised else before.output
        gamma, beta = weights[f"{own}_{part}_gamma"], weights[f"{own}_{part}_beta"]
        return layers.add_and_normalise(branch, residual, gamma, beta, f"l{i}_{part}")

    parts = [f"{own}_attention_self_{part}" for part in ("query", "key", "value")]
    kernel, bias = (weights.stacked([f"{part}_{which}" for part in parts]) for which in ("kernel", "bias"))
    query_key_value = layers.query_key_value(before.output, kernel, bias, f"l{i}_attention_self")
    heads = kernel.shape[0] // (3 * config.head_size)  # a pruned model's layers have fewer, each its own number
    context = layers.attention(query_key_value, heads, f"l{i}_attention_self")
    attended = add_and_normalise(dense(context, "attention_output_dense"), before, "attention_output_layernorm")
    inner = layers.gelu(dense(attended.output, "intermediate_dense"), config.gelu, f"l{i}_intermediate")
    return add_and_normalise(dense(inner, "output_dense"), attended, "output_layernorm")
