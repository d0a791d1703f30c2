"""BertConfig: the shape of one BERT, read from bert_config.json (Google) or config.json (Hugging Face)."""

import math
from dataclasses import dataclass
from pathlib import Path

from helpers.errors import DemoBertError
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
}


@dataclass(frozen=True)
class BertConfig:
    """Sizes of one BERT. `gelu` is "tanh", "erf", or None where the file leaves it to the checkpoint's origin."""

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

    def __post_init__(self):
        for name, limit in _LIMITS.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
                raise DemoBertError(f"{name} must be a whole number from 1 to {limit}, not {value!r}")
        if self.hidden_size % self.num_attention_heads:
            raise DemoBertError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        epsilon = self.layer_norm_eps
        if not isinstance(epsilon, float) or not 0 < epsilon < 1:
            raise DemoBertError(f"layer_norm_eps must be a number between 0 and 1, not {epsilon!r}")
        if self.gelu not in (None, "tanh", "erf"):
            raise DemoBertError(f"gelu must be 'tanh' or 'erf', not {self.gelu!r}")

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def attention_scale(self) -> float:
        """1/√H of scaled dot-product attention (arXiv:1706.03762, equation 1)."""
        return 1.0 / math.sqrt(self.head_size)

    @classmethod
    def from_dict(cls, values: dict) -> "BertConfig":
        """From the keys of a config file or an engine card. Raises DemoBertError."""
        if not isinstance(values, dict):
            raise DemoBertError("the configuration is not a JSON object")
        required = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
        if missing := [name for name in required if name not in values]:
            raise DemoBertError(f"the configuration lacks {', '.join(missing)}")
        if values.get("position_embedding_type", "absolute") != "absolute":
            raise DemoBertError("only absolute position embeddings are supported")
        fields = {
            name: values[name] for name in (*_LIMITS, "layer_norm_eps", "gelu", "do_lower_case") if name in values
        }
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
    def from_folder(cls, folder) -> "BertConfig":
        """From `folder`/bert_config.json or `folder`/config.json, or from such a file itself. Raises DemoBertError."""
        path = find_config(folder)
        values = read_json(path, "model configuration")
        try:
            return cls.from_dict(values)
        except DemoBertError as error:
            raise DemoBertError(f"{path}: {error}") from None


def find_config(folder) -> Path:
    """`folder`/bert_config.json or `folder`/config.json; a path that is no folder, as it is. Raises DemoBertError."""
    path = Path(folder)
    if not path.is_dir():
        return path
    found = [path / name for name in CONFIG_NAMES if (path / name).is_file()]
    if not found:
        raise DemoBertError(f"no {' or '.join(CONFIG_NAMES)} in {path}; name its folder with --config-dir")
    return found[0]
