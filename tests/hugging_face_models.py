"""Hugging Face's models of every family, with random sizes and weights: what the readers and networks are held to."""

from pathlib import Path

import numpy as np

#: Family → its `model_type`s, which differ in nothing but their names and tokenizers.
FAMILIES = {
    "bert": ["bert"],
    "roberta": ["roberta", "camembert", "xlm-roberta"],
    "distilbert": ["distilbert"],
    "electra": ["electra"],
    "albert": ["albert"],
}


def random_sizes(model_type: str, rng) -> dict:
    """The arguments of a configuration of small, odd sizes, as Hugging Face spells them.

    Not below four values in a row: of two, a layer norm tells the sign alone, and a last bit can turn that.
    """
    heads, head_size = int(rng.integers(1, 5)), int(rng.integers(4, 12))
    hidden, inner = heads * head_size, int(rng.integers(1, 60))
    layers = int(rng.integers(1, 4))
    sizes = {"vocab_size": int(rng.integers(20, 300)), "max_position_embeddings": int(rng.integers(12, 80))}
    if model_type == "distilbert":
        return sizes | {"dim": hidden, "n_layers": layers, "n_heads": heads, "hidden_dim": inner}
    sizes |= {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    sizes |= {"intermediate_size": inner, "type_vocab_size": int(rng.integers(1, 3))}
    sizes |= {"layer_norm_eps": float(rng.choice([1e-12, 1e-6, 1e-5]))}
    if model_type in FAMILIES["roberta"]:
        sizes["pad_token_id"] = int(rng.integers(0, 4))
    if model_type in ("electra", "albert"):  # the hidden size itself, too: ALBERT then still projects
        sizes["embedding_size"] = int(rng.choice([hidden, rng.integers(4, 40)]))
    if model_type == "albert":
        sizes |= {"num_hidden_groups": int(rng.integers(1, layers + 1)), "inner_group_num": int(rng.integers(1, 3))}
        sizes["hidden_act"] = str(rng.choice(["gelu_new", "gelu"]))
    return sizes


def random_model(model_type: str, rng, **sizes):
    """An …ForQuestionAnswering in float32, for inference, whose logits are of the order of one."""
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(model_type, **(sizes or random_sizes(model_type, rng)))
    model = transformers.AutoModelForQuestionAnswering.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = rng.standard_normal(parameter.shape).astype(np.float32)
            if parameter.dim() == 2:
                values *= 0.5 if "embeddings." in name else 1 / np.sqrt(parameter.shape[1])
            else:
                values = values * 0.2 + (1 if "norm" in name.lower() and name.endswith("weight") else 0)
            parameter.copy_(torch.from_numpy(np.asarray(values, np.float32)))
    return model


def logits_of(model, input_ids, segment_ids, input_mask) -> np.ndarray:
    """Float32 logits [B, S, 2] of int32 inputs [B, S]; padding gets the model's own padding id, as its tokenizer's."""
    import torch

    ids = np.where(input_mask, input_ids, model.config.pad_token_id or 0)
    inputs = {"input_ids": torch.tensor(ids).long(), "attention_mask": torch.tensor(input_mask).long()}
    if model.config.model_type != "distilbert":
        inputs["token_type_ids"] = torch.tensor(segment_ids).long()
    with torch.no_grad():
        output = model(**inputs)
    return torch.stack([output.start_logits, output.end_logits], dim=-1).numpy()


def save(model, folder) -> Path:
    """The folder of config.json and model.safetensors that Hugging Face writes."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    return Path(folder)
