"""The families of models that are BERT under other names: what sets each apart from BERT, as data.

A family differs in the names of its configuration's keys and of its tensors, in where its positions begin, in whether it
has segments, in the size of its embeddings, and in layers that share their weights (Hugging Face's transformers,
`models/<model_type>`). All of that is settled here and in helpers/weights/, so that the network is written once.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from helpers.errors import DemoBertError, one_line

#: What Hugging Face's classes for this task are called, after the family.
_TASK = "ForQuestionAnswering"

#: When embeddings are projected to the hidden size.
ALWAYS, WHERE_SIZES_DIFFER = "always", "where sizes differ"

#: Keys of BertConfig's own, which mean nothing in a model's file.
_OURS = {"model_type", "first_position", "layer_groups", "layers_per_group"}

#: Above any size that a configuration has; BertConfig has limits of its own for each.
_MOST = 1 << 21


@dataclass(frozen=True)
class Family:
    """One `model_type`, where it differs from BERT.

    class_prefix       what Hugging Face's classes begin with (`RobertaForQuestionAnswering`)
    prefix             what the names of its encoder's tensors begin with (`roberta.`)
    fields             its configuration's keys → BERT's
    defaults           what its configuration means by a key that it lacks
    fixed              what its configuration can't change
    modules            its modules → BERT's; those of a layer are named from the layer on
    layer              the path of layer {i}; ALBERT's is that of {group} and {inner}
    skips_padding_id   positions begin after the padding's id, not at 0 (RoBERTa, arXiv:1907.11692)
    tokenizer          the library's model that its text is usually cut by
    projects           its embeddings, of a size of their own, are projected to the hidden size: ALWAYS, or WHERE_SIZES_DIFFER
                       (None: it has one size)
    """

    class_prefix: str
    prefix: str
    fields: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, object] = field(default_factory=dict)
    fixed: Mapping[str, object] = field(default_factory=dict)
    modules: Mapping[str, str] = field(default_factory=dict)
    layer: str = "encoder.layer.{i}"
    skips_padding_id: bool = False
    tokenizer: str = "WordPiece"
    projects: str | None = None

    @property
    def shares_layers(self) -> bool:
        return "{group}" in self.layer

    @property
    def has_segments(self) -> bool:
        """Whether its checkpoints have a table of segments, if only of one row."""
        return "type_vocab_size" not in self.fixed

    def key_of(self, bert_key: str) -> str:
        """Its configuration's key for one of BERT's."""
        return next((theirs for theirs, ours in self.fields.items() if ours == bert_key), bert_key)


_BERT = Family("Bert", "bert.")

_ROBERTA_DEFAULTS = {"pad_token_id": 1}

FAMILIES = {
    "bert": _BERT,
    "roberta": Family("Roberta", "roberta.", defaults=_ROBERTA_DEFAULTS, skips_padding_id=True, tokenizer="BPE"),
    "camembert": Family(
        "Camembert", "roberta.", defaults=_ROBERTA_DEFAULTS, skips_padding_id=True, tokenizer="Unigram"
    ),
    "xlm-roberta": Family(
        "XLMRoberta", "roberta.", defaults=_ROBERTA_DEFAULTS, skips_padding_id=True, tokenizer="Unigram"
    ),
    "distilbert": Family(
        "DistilBert",
        "distilbert.",
        fields={
            "dim": "hidden_size",
            "n_layers": "num_hidden_layers",
            "n_heads": "num_attention_heads",
            "hidden_dim": "intermediate_size",
            "activation": "hidden_act",
        },
        fixed={"type_vocab_size": 1, "layer_norm_eps": 1e-12},
        modules={
            "attention.q_lin": "attention.self.query",
            "attention.k_lin": "attention.self.key",
            "attention.v_lin": "attention.self.value",
            "attention.out_lin": "attention.output.dense",
            "sa_layer_norm": "attention.output.LayerNorm",
            "ffn.lin1": "intermediate.dense",
            "ffn.lin2": "output.dense",
            "output_layer_norm": "output.LayerNorm",
        },
        layer="transformer.layer.{i}",
    ),
    "electra": Family("Electra", "electra.", defaults={"embedding_size": 128}, projects=WHERE_SIZES_DIFFER),
    "albert": Family(
        "Albert",
        "albert.",
        defaults={"embedding_size": 128, "num_hidden_groups": 1, "inner_group_num": 1, "hidden_act": "gelu_new"},
        modules={
            "attention.query": "attention.self.query",
            "attention.key": "attention.self.key",
            "attention.value": "attention.self.value",
            "attention.dense": "attention.output.dense",
            "attention.LayerNorm": "attention.output.LayerNorm",
            "ffn": "intermediate.dense",
            "ffn_output": "output.dense",
            "full_layer_layer_norm": "output.LayerNorm",
            "encoder.embedding_hidden_mapping_in": "embeddings_project",
        },
        layer="encoder.albert_layer_groups.{group}.albert_layers.{inner}",
        tokenizer="Unigram",
        projects=ALWAYS,
    ),
}


def family_of(values: Mapping) -> str:
    """The key of FAMILIES that a configuration belongs to; one that does not say is BERT's, or its architecture's.

    Raises DemoBertError for a `model_type` that is none of them.
    """
    model_type = values.get("model_type")
    if model_type is None:
        for name, family in FAMILIES.items():
            if any(
                re.match(rf"{family.class_prefix}(For|Model)", architecture) for architecture in _architectures(values)
            ):
                return name
        return "bert"
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        shown = one_line(repr(model_type), 60).strip("'")
        raise DemoBertError(f"model_type {shown} is not supported; these are: {', '.join(FAMILIES)}")
    return model_type


def check_answers_questions(values: Mapping) -> None:
    """Raises DemoBertError where a configuration says that its checkpoint is of another task; most files say so."""
    found = _architectures(values)
    if found and not any(name.endswith(_TASK) for name in found):
        shown = one_line(found[0], 100)
        raise DemoBertError(f"this is a {shown}: it answers no questions; a …{_TASK} is needed")


def _architectures(values: Mapping) -> list[str]:
    found = values.get("architectures")
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


def bert_values(values: Mapping) -> dict:
    """The values of a model's configuration file as `BertConfig` takes them. Raises DemoBertError."""
    model_type = family_of(values)
    family = FAMILIES[model_type]
    # Where a family has its own key for something, BERT's means nothing to it.
    known = {name: value for name, value in values.items() if name not in _OURS | set(family.fields.values())}
    renamed = {family.fields.get(name, name): value for name, value in known.items()}
    found = {**family.defaults, **renamed, **family.fixed}
    if found.get("is_decoder"):
        raise DemoBertError("is_decoder is set: attention to earlier tokens only is not supported")
    own = {"model_type": model_type, "embedding_size": None}
    if family.skips_padding_id:
        own["first_position"] = _whole(found, "pad_token_id", 0) + 1
        positions = _whole(found, "max_position_embeddings", 1) if "max_position_embeddings" in found else 512
        own["max_position_embeddings"] = positions - own["first_position"]
    if family.projects == ALWAYS or (family.projects and found["embedding_size"] != found.get("hidden_size")):
        own["embedding_size"] = _whole(found, "embedding_size", 1)
    if family.shares_layers:
        own |= _shared_layers(found)
    return found | own


def _shared_layers(found: Mapping) -> dict:
    """ALBERT's groups (arXiv:1909.11942): a group of `inner_group_num` layers comes again and again."""
    repeats, groups = _whole(found, "num_hidden_layers", 1), _whole(found, "num_hidden_groups", 1)
    inner = _whole(found, "inner_group_num", 1)
    if groups > repeats:
        raise DemoBertError(f"num_hidden_groups {groups} is over num_hidden_layers, {repeats}")
    return {"num_hidden_layers": repeats * inner, "layer_groups": groups, "layers_per_group": inner}


def _whole(values: Mapping, name: str, least: int) -> int:
    value = values.get(name)
    if type(value) is not int or not least <= value <= _MOST:
        raise DemoBertError(f"{name} must be a whole number from {least} to {_MOST}, not {one_line(repr(value), 60)}")
    return value
