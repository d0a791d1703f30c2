"""Text → word pieces (arXiv:1609.08144) with character offsets into the original text, as BERT was trained on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helpers.bert_config import BertConfig
from helpers.engine_card import EngineCard
from helpers.errors import DemoBertError, missing_package
from helpers.files import read_text, sha256_of

CLS, SEP, UNK = "[CLS]", "[SEP]", "[UNK]"

#: A word of more characters than this is [UNK] as a whole (BERT's own limit); keeps the greedy search linear.
MAX_CHARACTERS_PER_WORD = 100

#: Above any BERT that exists (`bert_config` has the same limit for the embedding table).
_MAX_VOCABULARY = 1 << 21

#: Embedding tables are padded up to one of these multiples for the tensor cores (NVIDIA's: 30522 → 30528).
_TABLE_MULTIPLES = (8, 64, 128)

#: How many texts are encoded at once: bounds the memory that the encodings of a whole SQuAD file take.
_ENCODE_AT_ONCE = 1024


@dataclass(frozen=True)
class Vocabulary:
    """The word pieces of one model: `ids` maps a piece to its id, which is its line number in `path` from 0."""

    path: Path
    sha256: str
    ids: dict[str, int]

    @property
    def size(self) -> int:
        return len(self.ids)


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


def load_vocabulary(path) -> Vocabulary:
    """Read a vocab.txt: UTF-8, one piece a line. Raises DemoBertError where it can't be a BERT vocabulary."""
    path = Path(path)
    # Only "\n" ends a line: str.splitlines would also break at U+2028 or U+0085, which are pieces of some models.
    pieces = read_text(path, "vocabulary").removesuffix("\n").split("\n")
    if len(pieces) > _MAX_VOCABULARY:
        raise DemoBertError(f"the vocabulary has more than {_MAX_VOCABULARY} lines: {path}")
    ids: dict[str, int] = {}
    for number, piece in enumerate(pieces):
        if not piece:
            raise DemoBertError(f"line {number + 1} of the vocabulary is empty; it needs one piece a line: {path}")
        if piece in ids:
            raise DemoBertError(
                f"the vocabulary lists {piece!r} twice (lines {ids[piece] + 1} and {number + 1}): {path}"
            )
        ids[piece] = number
    if missing := [piece for piece in (CLS, SEP, UNK) if piece not in ids]:
        raise DemoBertError(f"the vocabulary lacks {', '.join(missing)}, so it is not BERT's: {path}")
    return Vocabulary(path, sha256_of(path), ids)


def check_vocabulary(vocabulary: Vocabulary, config: BertConfig) -> None:
    """Raises DemoBertError unless the vocabulary has the size of the model's embedding table.

    A table may be the vocabulary's size rounded up to a multiple of 8, 64 or 128, for speed.
    """
    size, table = vocabulary.size, config.vocab_size
    if table not in (size, *(-(-size // multiple) * multiple for multiple in _TABLE_MULTIPLES)):
        raise DemoBertError(
            f"the vocabulary {vocabulary.path} has {size} pieces, the model {table}: "
            "name the model's own with --vocab-file"
        )


def check_same_vocabulary(vocabulary: Vocabulary, card: EngineCard) -> None:
    """Raises DemoBertError if the engine was built with other word pieces. A card that names none is not checked."""
    if card.vocab_sha256 is not None and vocabulary.sha256 != card.vocab_sha256:
        raise DemoBertError(
            f"the vocabulary {vocabulary.path} is not the one the engine was built with "
            f"(SHA-256 {vocabulary.sha256[:12]}…, not {card.vocab_sha256[:12]}…): "
            "leave out --vocab-file, or name the original"
        )


class BertTokenizer:
    """BERT's tokenizer: clean, lower-case (`do_lower_case`: and strip accents), split, then greedy word pieces.

    Gives what Hugging Face's BertTokenizerFast gives for the text itself. A "[SEP]" or "[MASK]" written in a text is
    text, as in Google's code: a passage can't place separators.
    """

    def __init__(self, vocabulary: Vocabulary, do_lower_case: bool):
        try:
            from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
        except ImportError as error:
            raise missing_package("tokenizers", "tokenizers", "reading text") from error
        self.vocabulary = vocabulary
        self.do_lower_case = do_lower_case
        self.cls_id = vocabulary.ids[CLS]
        self.sep_id = vocabulary.ids[SEP]
        word_piece = models.WordPiece(vocabulary.ids, unk_token=UNK, max_input_chars_per_word=MAX_CHARACTERS_PER_WORD)
        self._tokenizer = Tokenizer(word_piece)
        self._tokenizer.normalizer = normalizers.BertNormalizer(
            clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=do_lower_case
        )
        self._tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()

    def encode(self, text: str, what: str = "text") -> TokenizedText:
        """`text` as word pieces, none added. Raises DemoBertError, naming it `what`, if it is not valid Unicode."""
        return self.encode_batch([text], what)[0]

    def encode_batch(self, texts: Sequence[str], what: str = "text") -> list[TokenizedText]:
        """Many texts at once, on all cores."""
        for text in texts:
            _check_unicode(text, what)
        encoded = []
        for first in range(0, len(texts), _ENCODE_AT_ONCE):
            some = texts[first : first + _ENCODE_AT_ONCE]
            encodings = self._tokenizer.encode_batch(some, add_special_tokens=False)
            encoded += [_tokenized(text, encoding) for text, encoding in zip(some, encodings)]
        return encoded


def _check_unicode(text: str, what: str) -> None:
    # Bytes that are not UTF-8 arrive from the command line, and "\ud800" from JSON, as unpaired surrogates.
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DemoBertError(f"the {what} is not valid UTF-8 (at character {error.start + 1})") from None


def _tokenized(text: str, encoding) -> TokenizedText:
    offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    # A guard: answers are slices of the text, so offsets must not go back whatever the normaliser moved.
    offsets = np.minimum(np.maximum.accumulate(offsets, axis=0), len(text))
    return TokenizedText(text, np.array(encoding.ids, dtype=np.int32), offsets)
