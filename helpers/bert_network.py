"""BERT for question answering (arXiv:1810.04805), layer by layer, in the words of `NetworkLayers`.

This is the only place where the network is written down; each backend translates the words into its own layers.
"""

from helpers.bert_config import BertConfig
from helpers.network_layers import NetworkLayers
from helpers.weights import BertWeights


def build_bert(layers: NetworkLayers, config: BertConfig, weights: BertWeights, pre_normalised: bool = False) -> None:
    """Write BERT into `layers`: embeddings → N × (attention, feed-forward) → start and end logits.

    `config.gelu` is known. Weights are canonical (`helpers/weights/canonical.py`); fine-tuning hands over a mapping of
    its own with torch's tensors, and layers that compute at once. `pre_normalised` is Megatron's BERT (arXiv:1909.08053,
    figure 7b): the residual goes around the layer norms, not through them.
    """

    def dense(hidden, name):
        return layers.dense(hidden, weights[f"{name}_kernel"], weights[f"{name}_bias"], name)

    def add_and_normalise(branch, residual, name):
        return layers.add_and_normalise(branch, residual, weights[f"{name}_gamma"], weights[f"{name}_beta"], name)

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
    for i in range(config.num_hidden_layers):
        parts = [f"l{i}_attention_self_{part}" for part in ("query", "key", "value")]
        kernel, bias = (weights.stacked([f"{part}_{which}" for part in parts]) for which in ("kernel", "bias"))
        query_key_value = layers.query_key_value(normalised.output, kernel, bias, f"l{i}_attention_self")
        context = layers.attention(query_key_value, f"l{i}_attention_self")
        branch = dense(context, f"l{i}_attention_output_dense")
        normalised = add_and_normalise(branch, residual(normalised), f"l{i}_attention_output_layernorm")
        inner = layers.gelu(dense(normalised.output, f"l{i}_intermediate_dense"), config.gelu, f"l{i}_intermediate")
        branch = dense(inner, f"l{i}_output_dense")
        normalised = add_and_normalise(branch, residual(normalised), f"l{i}_output_layernorm")
    kernel, bias = weights["cls_squad_output_weights"], weights["cls_squad_output_bias"]
    layers.squad_output(normalised.output, kernel, bias, "cls_squad_output")
