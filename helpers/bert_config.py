"""BertConfig: the shape of one BERT, read from bert_config.json (Google) or config.json (Hugging Face)."""

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from helpers.errors import DemoBertError, one_line
from helpers.families import FAMILIES, bert_values, check_answers_questions
from helpers.files import read_json

CONFIG_NAMES = ("bert_config.json", "config.json")

#: `hidden_act` → the formula of GELU; None: "gelu" alone means tanh in Google's code and erf in Hugging Face's.
_GELU_BY_ACTIVATION = {
    "gelu": None,
    "gelu_python": "erf",
    "gelu_new": "tanh",
    "gelu_fast": "tanh",
    "gelu_pytorch_tanh": "tanh",
}

#: Above any BERT that exists; keeps a hostile config from asking for terabytes.
_LIMITS = {
    "hidden_size": 1 << 14,
    "num_hidden_layers": 512,
    "num_attention_heads": 512,
    "intermediate_size": 1 << 16,
    "vocab_size": 1 << 21,
    "max_position_embeddings": 1 << 16,
    "type_vocab_size": 1 << 10,
    "first_position": 1 << 16,
    "layers_per_group": 512,
}

#: What may be None, and what may be 0.
_OPTIONAL_LIMITS = {"embedding_size": 1 << 14, "layer_groups": 512}
_FROM_ZERO = ("first_position",)

#: What a pruned model has in each layer → what its unpruned one has in all of them.
PER_LAYER = {
    "num_attention_heads_per_layer": "num_attention_heads",
    "intermediate_size_per_layer": "intermediate_size",
}


@dataclass(frozen=True)
class BertConfig:
    """Sizes of one BERT, and where its checkpoint differs from Google's (helpers/families.py).

    max_position_embeddings   the positions that tokens can have
    gelu                      "tanh", "erf", or None where the file leaves it to the checkpoint's origin
    embedding_size            of embeddings that are projected to the hidden size; None: they have that, and are not
    model_type                whose names the checkpoint's tensors have, a key of FAMILIES
    first_position            rows of the checkpoint's position table before the first token's
    …_per_layer               heads and feed-forward columns of each layer of a pruned model, whose other sizes, that of a head
                              too, are those that it had before; None: all are there
    layer_groups              groups of `layers_per_group` layers that share their weights (ALBERT, arXiv:1909.11942);
                              None: every layer has its own
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    gelu: str | None = None
    do_lower_case: bool | None = None
    embedding_size: int | None = None
    model_type: str = "bert"
    first_position: int = 0
    layer_groups: int | None = None
    layers_per_group: int = 1
    num_attention_heads_per_layer: tuple[int, ...] | None = None
    intermediate_size_per_layer: tuple[int, ...] | None = None

    def __post_init__(self):
        for name, limit in (_LIMITS | _OPTIONAL_LIMITS).items():
            value, least = getattr(self, name), 0 if name in _FROM_ZERO else 1
            if value is None and name in _OPTIONAL_LIMITS:
                continue
            if type(value) is not int or not least <= value <= limit:
                raise DemoBertError(f"{name} must be a whole number from {least} to {limit}, not {value!r}")
        if not isinstance(self.model_type, str) or self.model_type not in FAMILIES:
            raise DemoBertError(f"model_type must be one of {', '.join(FAMILIES)}, not {self.model_type!r}")
        if self.hidden_size % self.num_attention_heads:
            raise DemoBertError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        for name, whole in PER_LAYER.items():
            self._check_per_layer(name, getattr(self, whole))
        epsilon = self.layer_norm_eps
        if not isinstance(epsilon, float) or not 0 < epsilon < 1:
            raise DemoBertError(f"layer_norm_eps must be a number between 0 and 1, not {epsilon!r}")
        if self.gelu not in (None, "tanh", "erf"):
            raise DemoBertError(f"gelu must be 'tanh' or 'erf', not {self.gelu!r}")

    def _check_per_layer(self, name: str, largest: int) -> None:
        """Raises DemoBertError unless the sizes `name` are None, or one of 1 to `largest` for each layer."""
        sizes, count = getattr(self, name), self.num_hidden_layers
        if sizes is None:
            return
        if self.layer_groups is not None:
            raise DemoBertError(f"{name} is set, but these layers share their weights")
        whole = isinstance(sizes, tuple) and len(sizes) == count and all(type(size) is int for size in sizes)
        if not whole or not all(1 <= size <= largest for size in sizes):
            shown = one_line(repr(list(sizes) if isinstance(sizes, tuple) else sizes), 100)
            raise DemoBertError(f"{name} must be {count} whole numbers from 1 to {largest}, one a layer, not {shown}")

    @property
    def heads_by_layer(self) -> tuple[int, ...]:
        """How many attention heads each layer has."""
        return self.num_attention_heads_per_layer or (self.num_attention_heads,) * self.num_hidden_layers

    @property
    def inner_sizes_by_layer(self) -> tuple[int, ...]:
        """How many feed-forward columns each layer has."""
        return self.intermediate_size_per_layer or (self.intermediate_size,) * self.num_hidden_layers

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def attention_scale(self) -> float:
        """1/√H of scaled dot-product attention (arXiv:1706.03762, equation 1)."""
        return 1.0 / math.sqrt(self.head_size)

    @property
    def table_width(self) -> int:
        """The size of the embedding tables' rows."""
        return self.embedding_size or self.hidden_size

    def place_in_groups(self, layer: int) -> tuple[int, int]:
        """The group of a layer that shares its weights, and its place within the group, as Hugging Face counts them."""
        repeat, inner = divmod(layer, self.layers_per_group)
        repeats = self.num_hidden_layers // self.layers_per_group
        return int(repeat / (repeats / self.layer_groups)), inner

    def layer_with_weights(self, layer: int) -> int:
        """The first layer that has the weights of `layer`: itself, but where layers share them."""
        return layer if self.layer_groups is None else self.layer_at(*self.place_in_groups(layer))

    def layer_at(self, group: int, inner: int) -> int | None:
        """The first layer with the weights of a place in a group; None: there is no such place."""
        return _layers_by_place(self).get((group, inner))

    @classmethod
    def from_dict(cls, values: dict) -> "BertConfig":
        """From the keys of an engine card, or of a BERT's configuration file. Raises DemoBertError."""
        if not isinstance(values, dict):
            raise DemoBertError("the configuration is not a JSON object")
        required = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
        if missing := [name for name in required if name not in values]:
            raise DemoBertError(f"the configuration lacks {', '.join(missing)}")
        if values.get("position_embedding_type", "absolute") != "absolute":
            raise DemoBertError("only absolute position embeddings are supported")
        if values.get("pruned_heads"):
            raise DemoBertError(f"pruned_heads is not supported: {' and '.join(PER_LAYER)} say what each layer has")
        fields = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        fields |= {name: tuple(fields[name]) for name in PER_LAYER if isinstance(fields.get(name), list)}
        if "hidden_act" in values:
            activation = values["hidden_act"]
            if not isinstance(activation, str) or activation not in _GELU_BY_ACTIVATION:
                known = ", ".join(_GELU_BY_ACTIVATION)
                raise DemoBertError(f"hidden_act {activation!r} is not supported (supported: {known})")
            fields.setdefault("gelu", _GELU_BY_ACTIVATION[activation])
        if not isinstance(fields.get("do_lower_case"), (bool, type(None))):
            raise DemoBertError(f"do_lower_case must be true or false, not {fields['do_lower_case']!r}")
        return cls(**fields)

    @classmethod
    def from_folder(cls, folder, answers_questions: bool = False) -> "BertConfig":
        """From `folder`/bert_config.json or `folder`/config.json, or from such a file itself. Raises DemoBertError.

        `answers_questions`: the file belongs to a checkpoint that is to answer questions as it is.
        """
        path = find_config(folder)
        values = read_json(path, "model configuration")
        try:
            if not isinstance(values, dict):
                raise DemoBertError("the configuration is not a JSON object")
            values = bert_values(values)
            if answers_questions:
                check_answers_questions(values)
            return cls.from_dict(values)
        except DemoBertError as error:
            raise DemoBertError(f"{path}: {error}") from None


@lru_cache
def _layers_by_place(config: BertConfig) -> dict[tuple[int, int], int]:
    """`BertConfig.place_in_groups` → the first layer that has it."""
    places: dict[tuple[int, int], int] = {}
    for i in range(config.num_hidden_layers):
        places.setdefault(config.place_in_groups(i), i)
    return places


def find_config(folder) -> Path:
    """`folder`/bert_config.json or `folder`/config.json; a path that is no folder, as it is. Raises DemoBertError."""
    path = Path(folder)
    if not path.is_dir():
        return path
    found = [path / name for name in CONFIG_NAMES if (path / name).is_file()]
    if not found:
        raise DemoBertError(f"no {' or '.join(CONFIG_NAMES)} in {path}; name its folder with --config-dir")
    return found[0]
