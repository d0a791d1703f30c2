"""Text → word pieces with character offsets into the original text, by the model's own tokenizer.

A `Tokenizer` is made of a canonical tokenizer.json (helpers/tokenizer_json.py), which an engine has beside it; what a
model's folder says of its tokenizer becomes one in helpers/tokenizer_files.py.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from helpers import tokenizer_json
from helpers.bert_config import BertConfig
from helpers.errors import DemoBertError, UsageError, one_line
from helpers.families import FAMILIES
from helpers.files import read_limited, require_file
from helpers.long_texts import LONGEST_WHOLE_TEXT, Encoded, encode_in_pieces
from helpers.tokenizer_json import components

#: How many texts are encoded at once: bounds the memory that the encodings of a whole SQuAD file take.
_ENCODE_AT_ONCE = 1024


@dataclass(frozen=True)
class TokenizedText:
    """A text as word pieces.

    ids      int32 [n]
    offsets  int64 [n, 2]: token i comes from text[offsets[i, 0]:offsets[i, 1]]; both columns never descend
    """

    text: str
    ids: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class PairTemplate:
    """What stands around question and passage: `head` question `middle` passage `tail`, each int32 [n], n ≥ 0.

    `head_segments`… are the segment ids of those, `question_segment` and `passage_segment` of the texts' tokens.
    """

    head: np.ndarray
    middle: np.ndarray
    tail: np.ndarray
    head_segments: np.ndarray
    middle_segments: np.ndarray
    tail_segments: np.ndarray
    question_segment: int
    passage_segment: int

    @property
    def size(self) -> int:
        """The number of special tokens."""
        return len(self.head) + len(self.middle) + len(self.tail)

    @classmethod
    def of(cls, entries: list) -> "PairTemplate":
        """From `tokenizer_json.pair_template`."""
        first, second = (next(i for i, entry in enumerate(entries) if entry[:2] == (name, None)) for name in "AB")
        parts = entries[:first], entries[first + 1 : second], entries[second + 1 :]
        ids = [np.array([entry[1] for entry in part], np.int32) for part in parts]
        segments = [np.array([entry[2] for entry in part], np.int32) for part in parts]
        return cls(*ids, *segments, entries[first][2], entries[second][2])


class Tokenizer:
    """A model's tokenizer: gives the ids and offsets that Hugging Face's gives.

    `values` is a canonical tokenizer.json with a template of pairs; its special tokens ("[SEP]", "</s>", "<mask>") are
    text where a text has them, so that a passage can't place separators. Raises DemoBertError for what the library
    does not take.
    """

    def __init__(self, values: dict):
        self.values = values
        self.json = tokenizer_json.to_bytes(values)
        self.sha256 = hashlib.sha256(self.json).hexdigest()
        entries = tokenizer_json.pair_template(values["post_processor"])
        if entries is None:
            raise DemoBertError("the tokenizer does not say how a question and a passage are put together")
        self.template = PairTemplate.of(entries)
        self._backend = backend(_with_hidden_control_tokens(values))
        self._backend.encode_special_tokens = True
        pieces = values["model"]["vocab"]
        self.base_size = 1 + max(pieces.values()) if isinstance(pieces, dict) else len(pieces)
        self.added = {token["content"]: token["id"] for token in values["added_tokens"]}
        self.size = max(self.base_size, *(number + 1 for number in self.added.values()), 0)

    @classmethod
    def from_bytes(cls, data: bytes, what="the tokenizer") -> "Tokenizer":
        """From a tokenizer.json that says all itself, such as an engine's. Raises DemoBertError naming it `what`."""
        try:
            return cls(tokenizer_json.checked(json.loads(data)))
        except DemoBertError as error:
            raise DemoBertError(f"{what} can't be used: {error}") from None
        except (RecursionError, ValueError) as error:
            raise DemoBertError(f"{what} is not JSON that can be read ({one_line(error, 200)})") from None

    @property
    def unknown_id(self) -> int | None:
        """The id of what the vocabulary has no pieces for."""
        model = self.values["model"]
        return model["unk_id"] if model["type"] == "Unigram" else model["vocab"].get(model["unk_token"])

    def piece(self, number: int) -> str | None:
        """The piece or added token with this id; None: there is none."""
        piece = self._backend.id_to_token(number)
        return piece and piece.strip()  # control tokens have spaces around them there

    @property
    def control_tokens(self) -> list[str]:
        """The tokens that are text where a text has them."""
        return [token["content"] for token in self.values["added_tokens"] if token["special"]]

    @property
    def lower_cases(self) -> bool:
        return any(_lower_cases(part) for part in components(self.values["normalizer"]))

    def describe(self) -> str:
        """ "uncased WordPiece, 30522 pieces" """
        model = self.values["model"]
        parts = [part["type"] for part in components(self.values["pre_tokenizer"])]
        kind = "byte-level BPE" if model["type"] == "BPE" and "ByteLevel" in parts else model["type"]
        if model["type"] == "WordPiece":
            kind = f"{'uncased' if self.lower_cases else 'cased'} {kind}"
        control = self.control_tokens
        outside = sum(number >= self.base_size for token, number in self.added.items() if token not in control)
        return f"{kind}, {len(model['vocab'])} pieces" + (f" and {outside} added" if outside else "")

    def with_case(self, lower: bool) -> "Tokenizer":
        """The same, but reading lower-cased text or not. Raises UsageError where it is not WordPiece's to say."""
        values = json.loads(self.json)
        changed = [part for part in components(values["normalizer"]) if part["type"] == "BertNormalizer"]
        if not changed:
            flag = "--uncased" if lower else "--cased"
            raise UsageError(f"{flag} is for WordPiece; this tokenizer ({self.describe()}) says itself what it reads")
        for part in changed:
            part["lowercase"] = lower
        return Tokenizer(values)

    def encode(self, text: str, what: str = "text") -> TokenizedText:
        """`text` as word pieces, none added. Raises DemoBertError, naming it `what`, if it is not valid Unicode."""
        return self.encode_batch([text], what)[0]

    def encode_batch(self, texts: Sequence[str], what: str = "text") -> list[TokenizedText]:
        """Many texts at once, on all cores."""
        for text in texts:
            check_text(text, what)
        tokenized = {index: self._long(text) for index, text in enumerate(texts) if len(text) > LONGEST_WHOLE_TEXT}
        others = [index for index in range(len(texts)) if index not in tokenized]
        for first in range(0, len(others), _ENCODE_AT_ONCE):
            some = others[first : first + _ENCODE_AT_ONCE]
            encoded = self._encoded([texts[index] for index in some])
            tokenized |= {index: _tokenized(texts[index], *one) for index, one in zip(some, encoded)}
        return [tokenized[index] for index in range(len(texts))]

    def _encoded(self, texts: Sequence[str]) -> list[Encoded]:
        encodings = in_library(self._backend.encode_batch, texts, add_special_tokens=False)
        return [
            (np.array(encoding.ids, np.int32), np.array(encoding.offsets, np.int64).reshape(-1, 2))
            for encoding in encodings
        ]

    def _long(self, text: str) -> TokenizedText:
        return _tokenized(text, *(encode_in_pieces(text, self._encoded) or self._encoded([text])[0]))


#: These leave no space in what the model sees.
_SPLIT_AT_SPACES = {"BertPreTokenizer", "ByteLevel", "Metaspace", "Whitespace", "WhitespaceSplit"}


def _with_hidden_control_tokens(values: dict) -> dict:
    """A canonical tokenizer whose model can't find its control tokens in any text: spelled with spaces around them.

    The library skips them as added tokens, but a Unigram has "</s>" among its pieces all the same, and finds it.
    """
    control = {token["content"] for token in values["added_tokens"] if token["special"]}
    if not any(part["type"] in _SPLIT_AT_SPACES for part in components(values["pre_tokenizer"])):
        raise DemoBertError("its pre_tokenizer does not split at spaces, as those of BERTs do")

    def hidden(piece: str | None) -> str | None:
        return f" {piece} " if piece in control else piece

    model = dict(values["model"])
    if model["type"] == "Unigram":
        model["vocab"] = [
            entry if entry[0] not in control else [hidden(entry[0]), entry[1]] for entry in model["vocab"]
        ]
    else:
        model["vocab"] = {hidden(piece): number for piece, number in model["vocab"].items()}
        model["unk_token"] = hidden(model["unk_token"])
        if len(model["vocab"]) != len(values["model"]["vocab"]):
            raise DemoBertError("it has a control token with spaces around it, too")
    if merged := next(
        (pair for pair in model.get("merges", ()) if any(hidden(piece) != piece for piece in _of(pair))), 0
    ):
        raise DemoBertError(f"a merge makes a control token ({one_line(' + '.join(merged), 80)})")
    tokens = [token | {"content": hidden(token["content"])} for token in values["added_tokens"]]
    return values | {"model": model, "added_tokens": tokens}


def _of(merge: list) -> tuple:
    return (*merge, "".join(merge))


def backend(values: dict):
    """The library's tokenizer of a canonical tokenizer.json's values. Raises DemoBertError.

    A Unigram is handed its scores as they are: the library reads one of seven from JSON as a float's neighbour, which
    tells where two ways to cut a word are as good as each other.
    """
    found, model = _as_read(values), values["model"]
    if model["type"] == "Unigram":
        from tokenizers.models import Unigram

        pieces = list(map(tuple, model["vocab"]))
        found.model = in_library(Unigram, pieces, unk_id=model["unk_id"], byte_fallback=model["byte_fallback"])
    return found


def scores_as_read(model: dict) -> dict:
    """A Unigram's model with the scores that the library itself reads from JSON, where a class has it read that."""
    return model | {"vocab": json.loads(_as_read({"added_tokens": [], "model": model}).to_str())["model"]["vocab"]}


def _as_read(values: dict):
    """What the library makes of a tokenizer.json of these values. Raises DemoBertError."""
    from tokenizers import Tokenizer as Backend

    return in_library(Backend.from_str, tokenizer_json.to_bytes(values).decode("utf-8"))


def in_library(function, *arguments, **named):
    """Call into the library. Its errors are of the bare class Exception, its panics not even of that: DemoBertError."""
    try:
        return function(*arguments, **named)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        raise DemoBertError(f"the tokenizers library can't use this tokenizer: {one_line(error, 300)}") from None


def load_tokenizer(path, sha256: str | None = None) -> Tokenizer:
    """The tokenizer beside an engine. `sha256` is what the engine's card says; None: it says nothing.

    Raises DemoBertError for a file that is not the one that was written with the engine.
    """
    data = read_limited(require_file(path, "the engine's tokenizer"), "tokenizer", tokenizer_json.MAX_FILE_BYTES)
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise DemoBertError(
            f"{path} is not the tokenizer that the engine was built with, or is damaged: "
            "copy the original, or build the engine again"
        )
    return Tokenizer.from_bytes(data, f"the engine's tokenizer {path}")


def check_table(tokenizer: Tokenizer, config: BertConfig) -> list[str]:
    """Notes on where the tokenizer's size differs from that of the model's embedding table.

    Raises DemoBertError for a table without room for the vocabulary, or segment ids that it lacks.
    """
    table, notes = config.vocab_size, []
    if tokenizer.base_size > table:
        raise DemoBertError(
            f"the vocabulary has {tokenizer.base_size} pieces, the model {table}: "
            "it is another model's; name the model's own with --vocab-file"
        )
    if segments := _segments(tokenizer.template) - set(range(config.type_vocab_size)):
        raise DemoBertError(f"the tokenizer gives segment {max(segments)}, the model has {config.type_vocab_size}")
    _check_padding(tokenizer, config)
    if note := _note_on_the_kind(tokenizer, config):
        notes.append(note)
    control = tokenizer.control_tokens
    beyond = [token for token, number in tokenizer.added.items() if number >= table and token not in control]
    if beyond:
        notes.append(
            f"Note: the model's table has {table} rows, none for the added tokens {one_line(', '.join(beyond), 100)}: "
            "a text with one of them can't be answered"
        )
    elif table > tokenizer.size:
        notes.append(f"Note: the model's table has {table} rows, {table - tokenizer.size} more than its vocabulary")
    return notes


def _check_padding(tokenizer: Tokenizer, config: BertConfig) -> None:
    """Raises DemoBertError where a text can have the padding's id in a family whose positions leave padding out.

    RoBERTa's positions count the ids that are not `pad_token_id`; engines count all. Both are the same unless that id
    comes up in a window.
    """
    if not config.first_position:
        return
    padding, template = config.first_position - 1, tokenizer.template
    token = next((token for token in tokenizer.values["added_tokens"] if token["id"] == padding), None)
    in_template = padding in np.concatenate((template.head, template.middle, template.tail))
    is_never_in_text = padding >= tokenizer.base_size if token is None else token["special"]
    if in_template or tokenizer.unknown_id == padding or not is_never_in_text:
        raise DemoBertError(
            f"the configuration's pad_token_id is {padding}, and the tokenizer's texts can have that id "
            f"({one_line(repr(tokenizer.piece(padding)), 60)}), whose positions the model does not count: "
            "is this tokenizer the model's own?"
        )


def _note_on_the_kind(tokenizer: Tokenizer, config: BertConfig) -> str | None:
    kind, usual = tokenizer.values["model"]["type"], FAMILIES[config.model_type].tokenizer
    if kind == usual:
        return None
    return f"Note: the tokenizer is a {kind}, where a {config.model_type}'s usually is a {usual}: is it this model's?"


def _segments(template: PairTemplate) -> set[int]:
    special = np.concatenate((template.head_segments, template.middle_segments, template.tail_segments))
    return {template.question_segment, template.passage_segment, *special.tolist()}


def _lower_cases(part: dict) -> bool:
    return part["type"] == "Lowercase" or (part["type"] == "BertNormalizer" and part["lowercase"])


def check_text(text: str, what: str) -> None:
    """Raises DemoBertError, naming it `what`, for what is not Unicode text."""
    if not isinstance(text, str):
        raise DemoBertError(f"the {what} is not text")
    # Bytes that are not UTF-8 arrive from the command line, and "\ud800" from JSON, as unpaired surrogates.
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DemoBertError(f"the {what} is not valid UTF-8 (at character {error.start + 1})") from None


def _tokenized(text: str, ids: np.ndarray, offsets: np.ndarray) -> TokenizedText:
    # A guard: answers are slices of the text, so offsets must not go back whatever the normaliser moved.
    return TokenizedText(text, ids, np.minimum(np.maximum.accumulate(offsets, axis=0), len(text)))
