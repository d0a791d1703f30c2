"""The check of a tokenizer.json that nobody vouches for, before the `tokenizers` library sees any of it.

`checked` brings the file into one canonical form: the components that BERTs' tokenizers are made of and no others, each
field there, of its type and in bounds; the post-processor as one template; no truncation, padding or decoder. What is
left can be given to the library, which itself takes any size, any regular expression and any text put in for a letter.
"""

import base64
import binascii
import json
from collections.abc import Callable

import numpy as np

from helpers.errors import DemoBertError

#: A tokenizer.json larger than this is refused before it is read; XLM-RoBERTa's has 17 MB.
MAX_FILE_BYTES = 64 << 20

#: Above any BERT that exists (`bert_config` has the same limit for the embedding table).
MAX_PIECES = 1 << 21

#: Over all pieces: the library keeps some 100 bytes for each character of a Unigram's.
_MAX_PIECE_CHARACTERS = 1 << 24

#: Of one piece or added token.
_MAX_PIECE_LENGTH = 1024

#: The library takes a second for some 3,000 of them.
MAX_ADDED_TOKENS, MAX_ADDED_CHARACTERS = 1 << 13, 1 << 18

#: A greedy search tries every piece of a word: its time grows with the square of this.
_MAX_CHARACTERS_PER_WORD = 1000

#: Components of one kind, Sequences included, and how deep Sequences lie in each other.
_MAX_COMPONENTS, _MAX_DEPTH = 16, 4

#: Special tokens of a pair's template.
_MAX_TEMPLATE = 16

#: SentencePiece's own tables of normalisation have 240 kB, and 18 letters in place of one (U+FDFA) at most.
_MAX_CHARSMAP_BYTES, _MAX_REPLACEMENT_BYTES, _MAX_TRIE_LEVELS = 1 << 20, 128, 64

#: The regular expressions of BERTs' tokenizers. No other is run: one can take longer than anybody waits.
_REGULAR_EXPRESSIONS = (" {2,}", r"\s+", r"\s{2,}", r"\n+", r"[^\S\n]+")

_BEHAVIORS = ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")

_REQUIRED = object()

ADDED_TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def require(holds, fault: str) -> None:
    """Raises DemoBertError with `fault` unless `holds`."""
    if not holds:
        raise DemoBertError(fault)


def _boolean(value):
    require(isinstance(value, bool), f"must be true or false, not {_shown(value)}")
    return value


def _optional_boolean(value):
    return None if value is None else _boolean(value)


def text(value, longest: int = _MAX_PIECE_LENGTH) -> str:
    """`value`, if it is text of at most `longest` characters without half a surrogate pair. Raises DemoBertError."""
    require(isinstance(value, str), f"must be text, not {_shown(value)}")
    require(len(value) <= longest, f"is longer than {longest} characters: {_shown(value)}")
    require(value.isascii() or not any("\ud800" <= char <= "\udfff" for char in value), "has half a surrogate pair")
    return value


def _optional_text(value):
    return None if value is None else text(value)


def _short_text(value):
    return text(value, 4)


def _one_character(value):
    require(len(text(value)) == 1, f"must be one character, not {_shown(value)}")
    return value


def _one_of(*choices: str) -> Callable:
    def check(value):
        require(isinstance(value, str) and value in choices, f"must be one of {', '.join(choices)}: {_shown(value)}")
        return value

    return check


def whole(value, smallest: int, largest: int) -> int:
    """`value`, if it is a whole number in these bounds. Raises DemoBertError."""
    fits = type(value) is int and smallest <= value <= largest
    require(fits, f"must be a whole number from {smallest} to {largest}, not {_shown(value)}")
    return value


def _piece_id(value) -> int:
    return whole(value, 0, MAX_PIECES - 1)


def _pattern(value) -> dict:
    require(isinstance(value, dict) and len(value) == 1, f"is no pattern: {_shown(value)}")
    ((kind, what),) = value.items()
    require(kind in ("String", "Regex"), f"is no pattern: {_shown(value)}")
    require(text(what), "is empty")
    known = kind == "String" or what in _REGULAR_EXPRESSIONS
    require(known, f"has the regular expression {_shown(what)}, which no BERT's tokenizer has")
    return {kind: what}


def _charsmap(value) -> str:
    """SentencePiece's normalisation table (base64): a double-array trie (darts-clone's), and the texts it leads to.

    The library follows the trie without looking at its end, so every place that can be reached is looked at here.
    """
    try:
        data = base64.b64decode(text(value, 2 * _MAX_CHARSMAP_BYTES), validate=True)
    except (binascii.Error, ValueError):
        raise DemoBertError("is not base64") from None
    size = int.from_bytes(data[:4], "little")
    require(4 <= size <= min(len(data) - 4, _MAX_CHARSMAP_BYTES) and size % 4 == 0, "is damaged or too large")
    units = np.frombuffer(data, "<u4", size // 4, 4).astype(np.int64)
    replacements = data[4 + size :]
    try:
        replacements.decode("utf-8")
    except UnicodeDecodeError:
        raise DemoBertError("is damaged: its texts are not UTF-8") from None
    longest = max(map(len, replacements.split(b"\0")))
    require(longest <= _MAX_REPLACEMENT_BYTES, "puts in texts longer than any letter's")
    _check_trie(units, np.frombuffer(replacements, np.uint8))
    return value


def _check_trie(units: np.ndarray, replacements: np.ndarray) -> None:
    """Follow every path of the trie `units` (int64), level by level. Raises DemoBertError where one leaves it."""
    seen = np.zeros(len(units), bool)
    waiting = _children(units[:1], 0)
    for _ in range(_MAX_TRIE_LEVELS):
        require((waiting | 255 < len(units)).all(), "is damaged: its trie ends too early")
        waiting = np.unique(waiting)
        waiting = waiting[~seen[waiting]]
        seen[waiting] = True
        if not len(waiting):
            return
        parts = np.array_split(waiting, len(waiting) // 1024 + 1)
        waiting = np.concatenate([_next_level(units, replacements, part) for part in parts])
    raise DemoBertError("has longer keys than any letter")


def _next_level(units: np.ndarray, replacements: np.ndarray, bases: np.ndarray) -> np.ndarray:
    byte = np.arange(1, 256)
    places = bases[:, None] ^ byte
    match = units[places] & 0x800000FF == byte
    places = places[match]
    below = _children(units[places], places)
    leaves = below[units[places] >> 8 & 1 == 1]
    require((leaves < len(units)).all(), "is damaged: its trie ends too early")
    starts = units[leaves] & 0x7FFFFFFF
    inside = (starts < len(replacements)).all() and (replacements[starts] & 0xC0 != 0x80).all()
    require(inside, "is damaged: it leads to no text")
    return below


def _children(units: np.ndarray, places):
    return places ^ (units >> 10 << ((units & 1 << 9) >> 6))


def _token_and_id(value) -> list:
    require(isinstance(value, list) and len(value) == 2, f"is no token with its id: {_shown(value)}")
    return [text(value[0]), _piece_id(value[1])]


#: Type → field → (its check, its default). "Sequence" is dealt with apart.
_NORMALIZERS = {
    "BertNormalizer": {
        "clean_text": (_boolean, True),
        "handle_chinese_chars": (_boolean, True),
        "strip_accents": (_optional_boolean, None),
        "lowercase": (_boolean, True),
    },
    **{name: {} for name in ("Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "StripAccents")},
    "Strip": {"strip_left": (_boolean, True), "strip_right": (_boolean, True)},
    "Prepend": {"prepend": (_short_text, _REQUIRED)},
    "Replace": {"pattern": (_pattern, _REQUIRED), "content": (_short_text, _REQUIRED)},
    "Precompiled": {"precompiled_charsmap": (_charsmap, _REQUIRED)},
}

_BYTE_LEVEL = {"add_prefix_space": (_boolean, True), "trim_offsets": (_boolean, True), "use_regex": (_boolean, True)}

_PRE_TOKENIZERS = {
    **{name: {} for name in ("BertPreTokenizer", "UnicodeScripts", "Whitespace", "WhitespaceSplit")},
    "ByteLevel": _BYTE_LEVEL,
    "CharDelimiterSplit": {"delimiter": (_one_character, _REQUIRED)},
    "Digits": {"individual_digits": (_boolean, False)},
    "Metaspace": {
        "replacement": (_one_character, "▁"),
        "prepend_scheme": (_one_of("always", "first", "never"), "always"),
        "split": (_boolean, True),
    },
    "Punctuation": {"behavior": (_one_of(*_BEHAVIORS), "Isolated")},
    "Split": {
        "pattern": (_pattern, _REQUIRED),
        "behavior": (_one_of(*_BEHAVIORS), _REQUIRED),
        "invert": (_boolean, False),
    },
}

_POST_PROCESSORS = {
    "BertProcessing": {"sep": (_token_and_id, _REQUIRED), "cls": (_token_and_id, _REQUIRED)},
    "ByteLevel": _BYTE_LEVEL,
    "RobertaProcessing": {
        "sep": (_token_and_id, _REQUIRED),
        "cls": (_token_and_id, _REQUIRED),
        "trim_offsets": (_boolean, True),
        "add_prefix_space": (_boolean, True),
    },
    "TemplateProcessing": {"pair": (lambda value: value, _REQUIRED), "special_tokens": (lambda value: value, {})},
}


def checked(values, model_type: str | None = None) -> dict:
    """The canonical form of the JSON value of a tokenizer.json; `model_type` is for old ones, whose model names none.

    Its `post_processor` is the template of a pair, under a ByteLevel where offsets are trimmed, or None. Raises
    DemoBertError for the first thing that does not belong into a BERT's tokenizer.
    """
    require(isinstance(values, dict), "it is not a JSON object")
    require(isinstance(values.get("model"), dict), "it has no model")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": checked_added_tokens(values.get("added_tokens")),
        "normalizer": checked_normalizer(values.get("normalizer")),
        "pre_tokenizer": _component("pre_tokenizer", values.get("pre_tokenizer"), _PRE_TOKENIZERS, "pretokenizers"),
        "post_processor": _checked_post_processor(values.get("post_processor")),
        "decoder": None,
        "model": checked_model(values["model"], model_type),
    }


def to_bytes(values: dict) -> bytes:
    """A canonical tokenizer as the bytes of its file: the same tokenizer has the same bytes."""
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode("utf-8") + b"\n"


def checked_added_tokens(values) -> list[dict]:
    """The added tokens, by id. Raises DemoBertError."""
    values = [] if values is None else values
    require(isinstance(values, list) and len(values) <= MAX_ADDED_TOKENS, "added_tokens is no list, or too long")
    tokens = [
        {"id": _named("an added token's id", _piece_id, _get(value, "id")), **added_token(value)} for value in values
    ]
    characters = sum(len(token["content"]) for token in tokens)
    require(characters <= MAX_ADDED_CHARACTERS, f"added_tokens has more than {MAX_ADDED_CHARACTERS} letters")
    tokens.sort(key=lambda token: token["id"])
    for key in ("id", "content"):
        seen = [token[key] for token in tokens]
        require(len(set(seen)) == len(seen), f"two added tokens have the same {key}")
    return tokens


def added_token(value) -> dict:
    """One added token without its id, its flags filled in as the library does. Raises DemoBertError."""
    require(isinstance(value, dict), f"an added token is no object: {_shown(value)}")
    content = _named("an added token's content", text, value.get("content"))
    require(content, "an added token is empty")
    flags = {}
    for name in ("special", *ADDED_TOKEN_FLAGS[:-1]):
        default = name == "normalized" and not flags["special"]
        flags[name] = _named(f"{name} of the added token {content!r}", _boolean, value.get(name, default))
    return {"content": content, **{name: flags[name] for name in ADDED_TOKEN_FLAGS}}


def checked_normalizer(value) -> dict | None:
    """Raises DemoBertError, also for one that can make a text grow without end."""
    normalizer = _component("normalizer", value, _NORMALIZERS, "normalizers")
    parts = list(components(normalizer))
    for part in parts:
        if part["type"] == "Replace":
            ((kind, pattern),) = part["pattern"].items()
            grows = len(part["content"]) > (len(pattern) if kind == "String" else 1)
            require(not grows, "normalizer: a Replace puts in more than it takes out")
    for name in ("Precompiled", "Prepend"):
        require(sum(part["type"] == name for part in parts) <= 1, f"normalizer: it has more than one {name}")
    return normalizer


def components(value: dict | None):
    """A checked normalizer or pre-tokenizer, or the parts of a Sequence, in their order."""
    if value is None:
        return
    if value["type"] != "Sequence":
        yield value
        return
    for part in next(field for name, field in value.items() if name != "type"):
        yield from components(part)


def _component(what: str, value, known: dict, parts_name: str, depth: int = 0) -> dict | None:
    """A normalizer, pre-tokenizer or post-processor of `known` types, its fields in their order."""
    if value is None and depth == 0:
        return None
    require(isinstance(value, dict), f"{what}: {_shown(value)} is no object")
    kind = value.get("type")
    require(depth <= _MAX_DEPTH, f"{what}: Sequences lie too deep in each other")
    if kind == "Sequence":
        parts = value.get(parts_name)
        few = isinstance(parts, list) and len(parts) <= _MAX_COMPONENTS
        require(few, f"{what}: a Sequence without a list of at most {_MAX_COMPONENTS} parts")
        found = {"type": kind, parts_name: [_component(what, part, known, parts_name, depth + 1) for part in parts]}
        require(depth or sum(1 for _ in components(found)) <= _MAX_COMPONENTS, f"{what}: it has too many parts")
        return found
    supported = isinstance(kind, str) and kind in known
    require(supported, f"{what}: the type {_shown(kind)} is not supported (supported: {', '.join(known)})")
    if kind == "Metaspace":
        value = _of_old_metaspace(value)
    found = {"type": kind}
    for name, (check, default) in known[kind].items():
        require(name in value or default is not _REQUIRED, f"{what}: {kind} lacks {name}")
        found[name] = _named(f"{what}: {name}", check, value.get(name, default))
    return found


def _of_old_metaspace(value: dict) -> dict:
    """tokenizers before 0.15 said add_prefix_space instead of prepend_scheme."""
    if "prepend_scheme" in value or "add_prefix_space" not in value:
        return value
    return value | {"prepend_scheme": "always" if value["add_prefix_space"] is True else "never"}


def _named(name: str, check: Callable, value):
    try:
        return check(value)
    except DemoBertError as error:
        raise DemoBertError(f"{name} {error}") from None


def _get(value, name: str):
    return value.get(name) if isinstance(value, dict) else None


def _checked_post_processor(value) -> dict | None:
    found = _component("post_processor", value, _POST_PROCESSORS, "processors")
    template, trimming = None, None
    for part in components(found):
        if part["type"] == "ByteLevel":
            trimming = part if part["trim_offsets"] else trimming
            continue
        require(template is None, "post_processor: it has two templates")
        template = _template(part)
        if part.get("trim_offsets"):
            trimming = part
    return post_processor(template, trimming and trimming["add_prefix_space"])


def post_processor(template: list | None, trimmed: bool | None = None) -> dict | None:
    """The canonical post-processor. `template` is a pair's: (token, id, segment) of special tokens, and ("A", None,
    segment) and ("B", None, segment) of the texts; None: none is known. `trimmed`: None keeps the spaces that offsets
    of a byte-level BPE have, else they are trimmed, all but that of add_prefix_space, as `trimmed` says.
    """
    if template is None:
        return None

    def piece(token: str, token_id: int | None, segment: int) -> dict:
        if token_id is None:
            return {"Sequence": {"id": token, "type_id": segment}}
        return {"SpecialToken": {"id": token, "type_id": segment}}

    single = [entry for entry in template if entry[1] is None][:1]
    special = {token: token_id for token, token_id, _ in template if token_id is not None}
    processor = {
        "type": "TemplateProcessing",
        "single": [piece(*entry) for entry in single],
        "pair": [piece(*entry) for entry in template],
        "special_tokens": {
            token: {"id": token, "ids": [token_id], "tokens": [token]} for token, token_id in special.items()
        },
    }
    if trimmed is None:
        return processor
    byte_level = {"type": "ByteLevel", "add_prefix_space": trimmed, "trim_offsets": True, "use_regex": True}
    return {"type": "Sequence", "processors": [byte_level, processor]}


def pair_template(processor: dict | None) -> list | None:
    """The template of a canonical post-processor, as `post_processor` takes it."""
    for part in components(processor):
        if part["type"] == "TemplateProcessing":
            return _template(part)
    return None


def _template(part: dict) -> list:
    if part["type"] in ("BertProcessing", "RobertaProcessing"):
        cls, sep = tuple(part["cls"]), tuple(part["sep"])
        if part["type"] == "BertProcessing":
            return [(*cls, 0), ("A", None, 0), (*sep, 0), ("B", None, 1), (*sep, 1)]
        return [(*cls, 0), ("A", None, 0), (*sep, 0), (*sep, 0), ("B", None, 0), (*sep, 0)]
    pair, special = part["pair"], part["special_tokens"]
    require(isinstance(pair, list) and len(pair) <= _MAX_TEMPLATE, "post_processor: its pair is no list, or too long")
    require(isinstance(special, dict), "post_processor: special_tokens is no object")
    template = [entry for piece in pair for entry in _template_piece(piece, special)]
    texts = [token for token, token_id, _ in template if token_id is None]
    require(texts == ["A", "B"], "post_processor: a pair must be A and then B, once each")
    return template


def _template_piece(piece, special: dict) -> list:
    require(isinstance(piece, dict) and len(piece) == 1, f"post_processor: {_shown(piece)} is no part of a pair")
    ((kind, value),) = piece.items()
    segment = _named("post_processor: type_id", lambda value: whole(value, 0, 1023), _get(value, "type_id"))
    name = _named("post_processor: id", text, _get(value, "id"))
    if kind == "Sequence":
        return [(name, None, segment)]
    require(kind == "SpecialToken", f"post_processor: {_shown(kind)} is no part of a pair")
    ids, tokens = _get(special.get(name), "ids"), _get(special.get(name), "tokens")
    known = isinstance(ids, list) and isinstance(tokens, list) and 1 <= len(ids) == len(tokens) <= _MAX_TEMPLATE
    require(known, f"post_processor: special_tokens does not say what {name!r} is")
    ids = [_named("post_processor: ids", _piece_id, value) for value in ids]
    return [(_named("post_processor: tokens", text, token), id, segment) for token, id in zip(tokens, ids)]


def checked_model(model: dict, model_type: str | None = None) -> dict:
    """A model in its canonical form: pieces by their ids. Raises DemoBertError."""
    kind = model.get("type", model_type)
    kinds = {"WordPiece": _word_piece, "BPE": _bpe, "Unigram": _unigram}
    known = isinstance(kind, str) and kind in kinds
    require(known, f"model: the type {_shown(kind)} is not supported (supported: {', '.join(kinds)})")
    return {"type": kind, **kinds[kind](model)}


def _word_piece(model: dict) -> dict:
    vocab = _vocab(model.get("vocab"))
    unk = _named("model: unk_token", text, model.get("unk_token", "[UNK]"))
    require(unk in vocab, f"model: the vocabulary lacks {unk}, so it is not this model's")
    limit = model.get("max_input_chars_per_word", 100)
    check = lambda value: whole(value, 1, _MAX_CHARACTERS_PER_WORD)  # noqa: E731
    return {
        "unk_token": unk,
        "continuing_subword_prefix": _named("model: prefix", _short_text, model.get("continuing_subword_prefix", "##")),
        "max_input_chars_per_word": _named("model: max_input_chars_per_word", check, limit),
        "vocab": vocab,
    }


def _bpe(model: dict) -> dict:
    vocab = _vocab(model.get("vocab"))
    require(model.get("dropout") in (None, 0), "model: dropout makes the pieces a matter of chance")
    unk = _named("model: unk_token", _optional_text, model.get("unk_token"))
    require(unk is None or unk in vocab, f"model: the vocabulary lacks {unk!r}, its unk_token")
    affixes = {
        name: _named(f"model: {name}", _short_text, model.get(name) or "")
        for name in ("continuing_subword_prefix", "end_of_word_suffix")
    }
    flags = {
        name: _named(f"model: {name}", _boolean, model.get(name, False))
        for name in ("fuse_unk", "byte_fallback", "ignore_merges")
    }
    merges = _merges(model.get("merges"), vocab, affixes["continuing_subword_prefix"])
    return {"dropout": None, "unk_token": unk, **affixes, **flags, "vocab": vocab, "merges": merges}


def _merges(values, vocab: dict, prefix: str) -> list:
    require(isinstance(values, list), "model: merges is no list")
    require(len(values) <= MAX_PIECES, f"model: it has more than {MAX_PIECES} merges")
    merges = []
    for value in values:
        pair = value.split(" ") if isinstance(value, str) else value
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], str)):
            raise DemoBertError(f"model: {_shown(value)} is no merge of two pieces")
        left, right = pair
        if not right.startswith(prefix):
            raise DemoBertError(f"model: the merge of {_shown(left)} and {_shown(right)} lacks the prefix {prefix!r}")
        if not (left in vocab and right in vocab and left + right[len(prefix) :] in vocab):
            merge = f"{_shown(left)} and {_shown(right)}"
            raise DemoBertError(f"model: the vocabulary lacks a piece of the merge of {merge}, or what it makes")
        merges.append([left, right])
    return merges


def _vocab(values) -> dict:
    """Piece → id, in the order of the ids."""
    require(isinstance(values, dict) and values, "model: vocab is no object of pieces and ids")
    require(len(values) <= MAX_PIECES, f"model: it has more than {MAX_PIECES} pieces")
    _check_pieces(values)
    for piece, number in values.items():
        if not (type(number) is int and 0 <= number < MAX_PIECES):
            raise DemoBertError(f"model: the id of the piece {_shown(piece)} is no whole number below {MAX_PIECES}")
    require(len(set(values.values())) == len(values), "model: two pieces have the same id")
    return dict(sorted(values.items(), key=lambda item: item[1]))


def _unigram(model: dict) -> dict:
    values = model.get("vocab")
    require(isinstance(values, list) and values, "model: vocab is no list of pieces and scores")
    require(len(values) <= MAX_PIECES, f"model: it has more than {MAX_PIECES} pieces")
    vocab = []
    for value in values:
        fits = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and value[0]
        # Written so that NaN, too, does not fit.
        if not (fits and type(value[1]) in (int, float) and abs(value[1]) < 1e30):
            raise DemoBertError(f"model: {_shown(value)} is no piece with its score")
        vocab.append([value[0], float(value[1])])
    _check_pieces([piece for piece, _ in vocab])
    unk = model.get("unk_id")
    if unk is not None:
        unk = _named("model: unk_id", lambda value: whole(value, 0, len(vocab) - 1), unk)
    fallback = _named("model: byte_fallback", _boolean, model.get("byte_fallback", False))
    return {"unk_id": unk, "vocab": vocab, "byte_fallback": fallback}


def _check_pieces(pieces) -> None:
    lengths = [len(piece) for piece in pieces]
    long = max(lengths) > _MAX_PIECE_LENGTH or sum(lengths) > _MAX_PIECE_CHARACTERS
    require(not long, f"model: a piece is longer than {_MAX_PIECE_LENGTH} characters, or all are too long together")
    try:
        "".join(pieces).encode("utf-8")
    except UnicodeEncodeError:
        raise DemoBertError("model: a piece has half a surrogate pair") from None


def _shown(value) -> str:
    shown = repr(value) if isinstance(value, (str, int, float, bool, type(None))) else type(value).__name__
    return shown if len(shown) <= 60 else f"{shown[:56]} ..."
