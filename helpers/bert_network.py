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

    def own(i, part):
        """The weights of layer i go by the name of the first layer that has them: some families share them."""
        return f"l{config.layer_with_weights(i)}_{part}"

    def dense(hidden, i, part):
        name = own(i, part)
        return layers.dense(hidden, weights[f"{name}_kernel"], weights[f"{name}_bias"], f"l{i}_{part}")

    def add_and_normalise(branch, residual, i, part):
        name = own(i, part)
        return layers.add_and_normalise(branch, residual, weights[f"{name}_gamma"], weights[f"{name}_beta"], f"l{i}_{part}")

    def residual(normalised):
        return normalised.sum if pre_normalised else normalised.output

    normalised = layers.embeddings(
        word=weights["bert_embeddings_word_embeddings"],
        token_type=weights["bert_embeddings_token_type_embeddings"],
        position=weights["bert_embeddings_position_embeddings"],
        gamma=weights["bert_embeddings_layernorm_gamma"],
        beta=weights["bert_embeddings_layernorm_beta"],
        name="bert_embeddings",
    )
    if config.embedding_size is not None:
        kernel, bias = (weights[f"bert_embeddings_projection_{which}"] for which in ("kernel", "bias"))
        normalised = Normalised(layers.projection(normalised.output, kernel, bias, "bert_embeddings_projection"), None)
    for i in range(config.num_hidden_layers):
        parts = [own(i, f"attention_self_{part}") for part in ("query", "key", "value")]
        kernel, bias = (weights.stacked([f"{part}_{which}" for part in parts]) for which in ("kernel", "bias"))
        query_key_value = layers.query_key_value(normalised.output, kernel, bias, f"l{i}_attention_self")
        context = layers.attention(query_key_value, f"l{i}_attention_self")
        branch = dense(context, i, "attention_output_dense")
        normalised = add_and_normalise(branch, residual(normalised), i, "attention_output_layernorm")
        inner = layers.gelu(dense(normalised.output, i, "intermediate_dense"), config.gelu, f"l{i}_intermediate")
        branch = dense(inner, i, "output_dense")
        normalised = add_and_normalise(branch, residual(normalised), i, "output_layernorm")
    kernel, bias = weights["cls_squad_output_weights"], weights["cls_squad_output_bias"]
    layers.squad_output(normalised.output, kernel, bias, "cls_squad_output")
