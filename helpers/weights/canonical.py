"""Canonical names and shapes of a BERT's tensors, and the check that every checkpoint ends with."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from helpers.bert_config import BertConfig
from helpers.errors import ERROR_LENGTH, DemoBertError, one_line

#: How many names of one kind an error lists before it only counts the rest.
_MAX_LISTED = 4


TOKEN_TYPES = "bert_embeddings_token_type_embeddings"
POSITIONS = "bert_embeddings_position_embeddings"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is still in its file: nothing is read, and nothing allocated, before its shape is checked.

    `shape` is what the file states; `read()` returns a floating-point array of that shape or raises DemoBertError.
    """

    shape: tuple
    read: Callable[[], np.ndarray]

    def transposed(self) -> "StoredTensor":
        """The same tensor with its dimensions reversed ([in, out] ↔ [out, in])."""
        return StoredTensor(self.shape[::-1], lambda: self.read().T)

    def rows_from(self, first: int) -> "StoredTensor":
        """The rows of a matrix from `first` on."""
        return StoredTensor((self.shape[0] - first, *self.shape[1:]), lambda: self.read()[first:])


@dataclass
class StoredCheckpoint:
    """What a reader found. `tensors` and `ranges` are keyed by canonical names; `extra` are names it does not know.

    `source` names the file, for messages; `gelu` is "tanh" or "erf": what the checkpoint's origin means by GELU.
    """

    source: str
    gelu: str
    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    ranges: dict[str, StoredTensor] = field(default_factory=dict)
    extra: list[str] = field(default_factory=list)

    def add(self, name: str, tensor: StoredTensor) -> None:
        """Keep `tensor` under its canonical name, `<tensor>_amax` among the ranges. DemoBertError on a second one."""
        kept = self.ranges if name.endswith("_amax") else self.tensors
        if name in kept:
            raise DemoBertError(f"{self.source} can't be used: it holds {name} twice")
        kept[name] = tensor


def expected_shapes(config: BertConfig) -> dict[str, tuple]:
    """Name → shape of every tensor of `config`'s BERT with a SQuAD head; dense kernels are [out, in].

    Layers that share their weights have them under the name of the first.
    """
    hidden, width = config.hidden_size, config.table_width
    shapes = {
        "bert_embeddings_word_embeddings": (config.vocab_size, width),
        TOKEN_TYPES: (config.type_vocab_size, width),
        POSITIONS: (config.max_position_embeddings, width),
        **_layer_norm("bert_embeddings_layernorm", width),
    }
    if config.embedding_size is not None:
        shapes |= _dense("bert_embeddings_projection", hidden, width)
    for i in range(config.num_hidden_layers):
        if config.layer_with_weights(i) != i:
            continue
        heads, inner = config.heads_by_layer[i] * config.head_size, config.inner_sizes_by_layer[i]
        for part in ("query", "key", "value"):
            shapes |= _dense(f"l{i}_attention_self_{part}", heads, hidden)
        shapes |= _dense(f"l{i}_attention_output_dense", hidden, heads)
        shapes |= _layer_norm(f"l{i}_attention_output_layernorm", hidden)
        shapes |= _dense(f"l{i}_intermediate_dense", inner, hidden)
        shapes |= _dense(f"l{i}_output_dense", hidden, inner)
        shapes |= _layer_norm(f"l{i}_output_layernorm", hidden)
    return shapes | {"cls_squad_output_weights": (2, hidden), "cls_squad_output_bias": (2,)}


def name_of_weights(name: str, config: BertConfig) -> str:
    """The name under which a tensor's values are kept: of layers that share theirs, the first one's."""
    layer = re.match(r"l([0-9]+)_", name)
    if layer is None or int(layer[1]) >= config.num_hidden_layers:
        return name
    return f"l{config.layer_with_weights(int(layer[1]))}_{name.removeprefix(layer[0])}"


def _dense(name: str, out_size: int, in_size: int) -> dict[str, tuple]:
    return {f"{name}_kernel": (out_size, in_size), f"{name}_bias": (out_size,)}


def _layer_norm(name: str, size: int) -> dict[str, tuple]:
    return {f"{name}_gamma": (size,), f"{name}_beta": (size,)}


def check_shapes(tensors: Mapping, config: BertConfig, source: str, extra: Iterable[str] = ()) -> None:
    """Raises one DemoBertError that lists what is missing, extra or misshapen in `tensors` (anything with `.shape`)."""
    expected = expected_shapes(config)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    _complain(
        source,
        missing=[name for name in expected if name not in found],
        extra=sorted([name for name in found if name not in expected] + list(extra)),
        misshapen=[
            f"{name} {list(found[name])} instead of {list(shape)}"
            for name, shape in expected.items()
            if found.get(name, shape) != shape
        ],
    )


def check_finite(arrays: Mapping[str, np.ndarray], source: str) -> None:
    """Raises one DemoBertError that lists the arrays with NaN or infinite values."""
    _complain(source, not_finite=[name for name, array in arrays.items() if not _is_finite(array)])


def check_weights(tensors: Mapping[str, np.ndarray], config: BertConfig, source: str) -> None:
    """The final check of a checkpoint: every tensor `config` asks for, no other, in its shape, finite.

    Raises DemoBertError, in one line, with `source` and the names at fault.
    """
    check_shapes(tensors, config, source)
    check_finite(tensors, source)


def _is_finite(array: np.ndarray) -> bool:
    # The sum is finite only if all values are; it spares the array of booleans in nearly every case.
    with np.errstate(all="ignore"):
        return bool(np.isfinite(array.sum(dtype=np.float64)) or np.isfinite(array).all())


def _complain(source: str, **faults: list) -> None:
    listed = [f"{kind.replace('_', ' ')}: {_cut(names)}" for kind, names in faults.items() if names]
    if listed:
        hint = "" if "not_finite" in faults else "; is this checkpoint the one the configuration belongs to?"
        raise DemoBertError(one_line(f"{source} can't be used: {'; '.join(listed)}{hint}", ERROR_LENGTH))


def _cut(names: list) -> str:
    shown = [str(name)[:150] for name in names[:_MAX_LISTED]]
    rest = len(names) - len(shown)
    return ", ".join(shown) + (f" ... and {rest} more" if rest else "")
