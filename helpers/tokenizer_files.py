"""A model folder's tokenizer: what Hugging Face's AutoTokenizer (transformers 5) makes of the same folder.

From tokenizer.json where there is one, else from vocab.txt, vocab.json and merges.txt, or a SentencePiece model; with
what tokenizer_config.json, special_tokens_map.json, added_tokens.json and the model's configuration say. A class of
transformers takes the vocabulary from these files and builds the rest itself, by the settings (`_Reader`); a
tokenizer.json of no class is taken as it is.
"""

import base64
import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from helpers import tokenizer_json
from helpers.bert_config import CONFIG_NAMES
from helpers.engine_card import EngineCard
from helpers.errors import DemoBertError, UsageError, one_line
from helpers.families import FAMILIES
from helpers.files import read_json, read_limited
from helpers.sentencepiece_model import CONTROL, MAX_SENTENCEPIECE_BYTES, UNIGRAM, USER_DEFINED, read_sentencepiece
from helpers.tokenization import Tokenizer, backend, in_library, load_tokenizer, scores_as_read
from helpers.tokenizer_json import (
    ADDED_TOKEN_FLAGS,
    MAX_ADDED_CHARACTERS,
    MAX_ADDED_TOKENS,
    MAX_FILE_BYTES,
    MAX_PIECES,
    require,
)

JSON_NAME, WORD_PIECE_NAME, BPE_NAME, MERGES_NAME = "tokenizer.json", "vocab.txt", "vocab.json", "merges.txt"
SENTENCEPIECE_NAMES = ("sentencepiece.bpe.model", "spiece.model")
VOCABULARY_NAMES = (JSON_NAME, WORD_PIECE_NAME, BPE_NAME, *SENTENCEPIECE_NAMES)

SETTINGS_NAME, SPECIAL_NAME, ADDED_NAME = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
_SETTINGS_NAMES = (SETTINGS_NAME, SPECIAL_NAME, ADDED_NAME)

#: All that AutoTokenizer may need.
TOKENIZER_NAMES = (*VOCABULARY_NAMES, MERGES_NAME, *_SETTINGS_NAMES)

#: Characters of a word that WordPiece looks at: a longer one is [UNK] as a whole.
_HUGGING_FACE_WORD_LIMIT, _GOOGLE_WORD_LIMIT = 100, 200

#: A settings file larger than this is refused.
_MAX_SETTINGS_BYTES = 8 << 20

#: The control tokens: they have a place in a pair or none in a text at all.
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

#: Control tokens of a tokenizer.json beside which no file says what its special tokens are for.
_USUAL_CONTROL_TOKENS = {
    *("[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]", "<s>", "</s>", "<pad>", "<unk>", "<mask>", "<cls>", "<sep>")
}

#: What ends a line of vocab.txt for the library (Unicode's White_Space), besides its newline.
_WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"

#: Model type → the class that transformers reads its text with, unless a file names one.
_CLASS_OF_MODEL_TYPE = {
    "megatron-bert": "BertTokenizer",
    **{model_type: f"{family.class_prefix}Tokenizer" for model_type, family in FAMILIES.items()},
}

_AS_IT_IS = "as it is"

_FAMILY_OF_CLASS = {
    **dict.fromkeys(
        [f"{name}Tokenizer" for name in ("Bert", "DistilBert", "Electra", "LayoutLM", "Lxmert", "MobileBert")], "bert"
    ),
    **dict.fromkeys([f"{name}Tokenizer" for name in ("Roberta", "Bart", "Longformer", "LED")], "roberta"),
    "XLMRobertaTokenizer": "xlm-roberta",
    "CamembertTokenizer": "camembert",
    "AlbertTokenizer": "albert",
    **dict.fromkeys(("TokenizersBackend", "PreTrainedTokenizer", "MegatronBertTokenizer"), _AS_IT_IS),
}

#: Classes and settings whose words are split by a program that the library has not.
_SPLITTERS = {"BertJapaneseTokenizer": "MeCab", "RoFormerTokenizer": "Jieba", "PhobertTokenizer": "VnCoreNLP"}


@dataclass(frozen=True)
class FoundTokenizer:
    """A tokenizer; `source` says what decided how it reads text; `files` are those it came of, by their usual names."""

    tokenizer: Tokenizer
    source: str
    files: dict[str, Path]

    def describe(self) -> str:
        """ "Tokenizer: uncased WordPiece, 30522 pieces, from tokenizer_config.json" """
        source = self.source if self.source.startswith("guessed") else f"from {self.source}"
        return f"Tokenizer: {self.tokenizer.describe()}, {source}"

    def copies(self) -> dict[str, bytes]:
        """The files that a new model's folder needs: those that there are, and the settings, where they were guessed."""
        copies = {name: path.read_bytes() for name, path in self.files.items()}
        if SETTINGS_NAME not in copies and WORD_PIECE_NAME in copies and JSON_NAME not in copies:
            settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": self.tokenizer.lower_cases}
            copies[SETTINGS_NAME] = json.dumps(settings, indent=2).encode() + b"\n"
        return copies


@dataclass(frozen=True)
class ReadingOptions:
    """What is known of a tokenizer beside its own files.

    model             the values of the model's configuration file, and `model_file` its name
    lower_case        --uncased (True) or --cased (False); None: as the files say
    tensorflow        the checkpoint is TensorFlow's: its vocab.txt is read with Google's limit of a word's length
    has_segments      whether the model tells question and passage apart by segment ids
    say               told, in one line, what is worth knowing
    """

    model: dict
    model_file: str = "config.json"
    lower_case: bool | None = None
    tensorflow: bool = False
    has_segments: bool = True
    say: Callable[[str], object] = lambda message: None


def find_tokenizer(folder, vocab_file, options: ReadingOptions) -> FoundTokenizer | None:
    """The tokenizer of a model's folder, or of `vocab_file`: a vocab.txt, a tokenizer.json, a folder…; None: there is none.

    The settings are those beside `vocab_file`, if there are any, else the model's. Raises DemoBertError.
    """
    files = _files(Path(folder), vocab_file)
    vocabulary = next((name for name in VOCABULARY_NAMES if name in files), None)
    if vocabulary is None:
        if vocab_file is not None:
            raise DemoBertError(f"no tokenizer in {vocab_file}: it needs {' or '.join(VOCABULARY_NAMES)}")
        return None
    try:
        tokenizer, source = _Reader(files, options).read()
        return FoundTokenizer(tokenizer, source, files)
    except UsageError:
        raise
    except DemoBertError as error:
        raise DemoBertError(f"the tokenizer of {files[vocabulary]} can't be used: {error}") from None


def _files(folder: Path, vocab_file) -> dict[str, Path]:
    """Name → path of the tokenizer's files that there are. Raises DemoBertError where `vocab_file` is missing."""
    if vocab_file is not None and not Path(vocab_file).is_dir():
        path = Path(vocab_file)
        if not path.is_file():
            raise DemoBertError(f"vocabulary not found: {path}")
        beside = _present(path.parent)
        settings = beside if any(name in beside for name in _SETTINGS_NAMES) else _present(folder)
        name = _kind_of(path)
        found = {name: path} | (
            {MERGES_NAME: beside[MERGES_NAME]} if name == BPE_NAME and MERGES_NAME in beside else {}
        )
        return found | {name: settings[name] for name in _SETTINGS_NAMES if name in settings}
    return _present(folder if vocab_file is None else Path(vocab_file))


def _present(folder: Path) -> dict[str, Path]:
    found = {name: folder / name for name in TOKENIZER_NAMES if os.path.lexists(folder / name)}
    for name, path in found.items():
        # Passed over, it would leave what it says to a guess.
        require(path.is_file(), f"{name} is there, but it is no file, or a link to none: {path}")
    return found


def _kind_of(path: Path) -> str:
    """The name that a vocabulary's file has in a model's folder."""
    if path.suffix == ".model":
        return path.name if path.name in SENTENCEPIECE_NAMES else SENTENCEPIECE_NAMES[0]
    if path.suffix == ".json":
        return BPE_NAME if path.name == BPE_NAME else JSON_NAME
    return WORD_PIECE_NAME


def _settings_object(path: Path) -> dict:
    return _read_object(path, _MAX_SETTINGS_BYTES)


class _Settings:
    """What the settings files say, as transformers puts it together.

    values   tokenizer_config.json, over it special_tokens_map.json
    named    special token's name → its spelling, an added token (dict), or None
    extras   more special tokens; None: no file speaks of them
    added    added tokens by id
    """

    def __init__(self, files: dict[str, Path], in_json: list[dict]):
        values = _settings_object(files[SETTINGS_NAME]) if SETTINGS_NAME in files else {}
        if "additional_special_tokens" in values and not values.get("extra_special_tokens"):
            values["extra_special_tokens"] = values.pop("additional_special_tokens")
        self.values, self.added = values, {}
        decoder = values.get("added_tokens_decoder")
        if decoder is not None:
            self._read_decoder(decoder)
        else:
            self._read_special_tokens(files)
            self._read_added_tokens(files)
            self.added |= {token["id"]: _without_id(token) for token in in_json}
        by_content = {token["content"]: token for token in self.added.values()}
        self.named = {}
        for name, value in self._all_named().items():
            token = None if value is None else _token(name, value)
            self.named[name] = by_content.get(_content(token), token)
        self.extras = self._extras()

    def _read_decoder(self, decoder) -> None:
        require(isinstance(decoder, dict) and len(decoder) <= MAX_ADDED_TOKENS, "added_tokens_decoder is no object")
        for number, value in decoder.items():
            digits = number.isascii() and number.isdigit() and len(number) < 9
            require(digits, f"added_tokens_decoder: {number[:20]!r} is no id")
            token = tokenizer_json.added_token(value)
            self.added[tokenizer_json.whole(int(number), 0, MAX_PIECES - 1)] = token

    def _read_special_tokens(self, files) -> None:
        if SPECIAL_NAME not in files:
            return
        for key, value in _settings_object(files[SPECIAL_NAME]).items():
            if isinstance(value, dict) and key != "extra_special_tokens":
                value = value | {"special": True}
            elif key == "extra_special_tokens" and isinstance(value, list):
                before = self.values.get(key)
                value = [*(before if isinstance(before, list) else []), *value]
            self.values[key] = value

    def _read_added_tokens(self, files) -> None:
        if ADDED_NAME not in files:
            return
        tokens = _settings_object(files[ADDED_NAME])
        require(len(tokens) <= MAX_ADDED_TOKENS, f"{ADDED_NAME} has more than {MAX_ADDED_TOKENS} tokens")
        special = {_content(_token(name, value)) for name, value in self._all_named().items() if value is not None}
        special |= {_content(value) for value in self._extras() or []}
        for content, number in tokens.items():
            fits = type(number) is int and 0 <= number < MAX_PIECES
            require(fits, f"{ADDED_NAME}: the id of {content[:40]!r} is no whole number below {MAX_PIECES}")
            token = {"content": content, "special": content in special, "normalized": content not in special}
            self.added[number] = tokenizer_json.added_token(token)

    def _all_named(self) -> dict:
        """The special tokens of the usual names, and those of a model's own."""
        own = {
            name: value
            for name, value in self.values.items()
            if name.endswith("_token") and name not in _NAMED and isinstance(value, (str, dict))
        }
        extras = self.values.get("extra_special_tokens")
        named = {name: self.values[name] for name in _NAMED if name in self.values}
        return named | own | (extras if isinstance(extras, dict) else {})

    def _extras(self) -> list | None:
        for name in ("extra_special_tokens", "additional_special_tokens"):
            value = self.values.get(name)
            if name in self.values and not isinstance(value, dict) and not (value is None and name[0] == "a"):
                require(value is None or isinstance(value, list), f"{name} is no list")
                require(len(value or []) <= MAX_ADDED_TOKENS, f"{name} is too long")
                return [_token(name, token) for token in value or []]
        return None

    def flag(self, name: str, default):
        """A setting that is true or false, or `default`. Raises DemoBertError."""
        value = self.values.get(name, default)
        require(isinstance(value, bool) or value is default, f"{name} must be true or false, not {str(value)[:40]!r}")
        return value


def _token(name: str, value):
    """A special token of the settings: its spelling, or an added token. Raises DemoBertError."""
    if isinstance(value, dict):
        return tokenizer_json.added_token(value)
    try:
        return tokenizer_json.text(value)
    except DemoBertError as error:
        raise DemoBertError(f"{name} {error}") from None


def _content(token) -> str | None:
    return token["content"] if isinstance(token, dict) else token


def _without_id(token: dict) -> dict:
    return {name: value for name, value in token.items() if name != "id"}


def _special(content: str) -> dict:
    return tokenizer_json.added_token({"content": content, "special": True})


@dataclass(frozen=True)
class _Plan:
    """A tokenizer before its added tokens have ids.

    values     a canonical tokenizer.json without added tokens
    named      special token's name → spelling or added token; the class's own where no file names one
    extras     more special tokens
    template   names of `named`, or "A" and "B", with their segments; None: the post-processor of `values` is kept
    trimmed    as for tokenizer_json.post_processor
    """

    values: dict
    named: dict
    extras: list
    template: tuple | None = None
    trimmed: bool | None = None


class _Reader:
    """Reads one tokenizer. `source` is what decided how text is read."""

    def __init__(self, files: dict[str, Path], options: ReadingOptions):
        self.files, self.options = files, options
        self.stored = _stored_json(files[JSON_NAME], self._model_type) if JSON_NAME in files else None
        self.settings = _Settings(files, self.stored["added_tokens"] if self.stored else [])
        self.source = next(name for name in VOCABULARY_NAMES if name in files)
        self.sentencepiece = None

    def _model_type(self) -> str | None:
        """The kind of model in an old tokenizer.json, which does not say: its class's."""
        kinds = {"bert": "WordPiece", "roberta": "BPE"}
        settings = _settings_object(self.files[SETTINGS_NAME]) if SETTINGS_NAME in self.files else {}
        return kinds.get(_family(settings, self.options.model, self.files), "Unigram")

    def read(self) -> tuple[Tokenizer, str]:
        self.family = family = _family(self.settings.values, self.options.model, self.files)
        plan = self._as_it_is() if family == _AS_IT_IS else getattr(self, f"_{family.replace('-', '_')}")()
        tokenizer = self._finished(plan)
        lower = self.options.lower_case
        if lower is not None:
            # ALBERT's has been built accordingly; all but WordPiece refuse.
            tokenizer = tokenizer if family == "albert" else tokenizer.with_case(lower)
            self.source = "--uncased" if lower else "--cased"
        return tokenizer, self.source

    # -- the families

    def _bert(self) -> _Plan:
        named = self._named(unk="[UNK]", sep="[SEP]", pad="[PAD]", cls="[CLS]", mask="[MASK]")
        vocab = self._vocabulary("WordPiece", WORD_PIECE_NAME, self._word_pieces)
        normalizer = {
            "type": "BertNormalizer",
            "handle_chinese_chars": self.settings.flag("tokenize_chinese_chars", True),
            "strip_accents": self.settings.flag("strip_accents", None),
            "lowercase": self._lower_case(vocab),
        }
        model = {"type": "WordPiece", "vocab": vocab, "unk_token": _content(named["unk_token"])}
        googles = self.options.tensorflow and not self.stored and SETTINGS_NAME not in self.files
        model["max_input_chars_per_word"] = _GOOGLE_WORD_LIMIT if googles else _HUGGING_FACE_WORD_LIMIT
        template = (("cls_token", 0), ("A", 0), ("sep_token", 0), ("B", 1), ("sep_token", 1))
        values = self._checked(model, normalizer, {"type": "BertPreTokenizer"})
        return _Plan(values, named, self.settings.extras or [], template)

    def _roberta(self) -> _Plan:
        named = self._named(**_ROBERTA_TOKENS)
        model = {"type": "BPE", "vocab": self._vocabulary("BPE", BPE_NAME, lambda: _read_object(self.files[BPE_NAME]))}
        model["merges"] = self.stored["model"]["merges"] if self.stored else self._merges()
        space = self.settings.flag("add_prefix_space", False)
        values = self._checked(model, None, {"type": "ByteLevel", "add_prefix_space": space})
        template = (("cls_token", 0), ("A", 0), ("sep_token", 0), ("sep_token", 0), ("B", 0), ("sep_token", 0))
        trimmed = space if self.settings.flag("trim_offsets", True) else None
        return _Plan(values, named, self.settings.extras or [], template, trimmed)

    def _xlm_roberta(self) -> _Plan:
        named = self._named(**_ROBERTA_TOKENS)

        def pieces() -> list:
            first = [[_content(named[name]), 0.0] for name in ("bos_token", "pad_token", "eos_token", "unk_token")]
            return [*first, *self._sentencepieces()[3:], [_content(named["mask_token"]), 0.0]]

        vocab = self._vocabulary("Unigram", SENTENCEPIECE_NAMES[0], pieces)
        values = self._checked({"type": "Unigram", "unk_id": 3, "vocab": vocab}, self._charsmap(), self._metaspace())
        return _Plan(values, named, self._extras([]), _ROBERTA_PAIR)

    def _camembert(self) -> _Plan:
        named = self._named(**_ROBERTA_TOKENS)
        if isinstance(named["mask_token"], str):
            named["mask_token"] = _special(named["mask_token"]) | {"lstrip": True}
        unk, pad, mask = (_content(named[name]) for name in ("unk_token", "pad_token", "mask_token"))

        def pieces() -> list:
            first = [["<s>NOTUSED", 0.0], [pad, 0.0], ["</s>NOTUSED", 0.0], [unk, 0.0], ["<unk>NOTUSED", -100.0]]
            return [*first, *self._sentencepieces()[1:], [mask, 0.0]]

        vocab = self._vocabulary("Unigram", SENTENCEPIECE_NAMES[0], pieces)
        unk_id = next((number for number, (piece, _) in enumerate(vocab) if piece == unk), 0)
        values = self._checked(
            {"type": "Unigram", "unk_id": unk_id, "vocab": vocab}, self._charsmap(), self._metaspace()
        )
        unused = ["<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"]
        return _Plan(values, named, self._extras(unused), _ROBERTA_PAIR)

    def _albert(self) -> _Plan:
        named = self._named(bos="[CLS]", eos="[SEP]", unk="<unk>", sep="[SEP]", pad="<pad>", cls="[CLS]", mask="[MASK]")
        vocab = self._vocabulary("Unigram", SENTENCEPIECE_NAMES[1], self._sentencepieces)
        quotes = [{"type": "Replace", "pattern": {"String": quote}, "content": '"'} for quote in ("``", "''")]
        parts = [] if self.settings.flag("keep_accents", False) else [{"type": "NFKD"}, {"type": "StripAccents"}]
        lower = self.options.lower_case
        if lower if lower is not None else self.settings.flag("do_lower_case", True):
            parts.append({"type": "Lowercase"})
        charsmap = self._charsmap()
        normalizer = {"type": "Sequence", "normalizers": [*quotes, *parts, *([charsmap] if charsmap else [])]}
        values = self._checked({"type": "Unigram", "unk_id": 1, "vocab": vocab}, normalizer, self._metaspace())
        template = (("cls_token", 0), ("A", 0), ("sep_token", 0), ("B", 1), ("sep_token", 1))
        if self.stored and self.stored["post_processor"]:
            values, template = values | {"post_processor": self.stored["post_processor"]}, None
        return _Plan(values, named, self._extras([]), template)

    def _as_it_is(self) -> _Plan:
        if self.stored is None:
            raise DemoBertError(f"there is no {JSON_NAME}, and no file says which class of transformers reads it")
        if self.stored["model"]["type"] == "Unigram":
            self.stored |= {"model": scores_as_read(self.stored["model"])}
        return _Plan(self.stored, dict(self.settings.named), self.settings.extras or [])

    # -- what they are made of

    def _named(self, **defaults: str) -> dict:
        found = {f"{name}_token": token for name, token in defaults.items()} | self.settings.named
        for name in defaults.keys() - {"mask", "pad"}:
            require(found[f"{name}_token"] is not None, f"{SETTINGS_NAME} names no {name}_token")
        usual = {name: found[name] for name in _NAMED if name in found}
        return usual | found

    def _checked(self, model: dict, normalizer: dict | None, pre_tokenizer: dict) -> dict:
        return tokenizer_json.checked({"model": model, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer})

    def _vocabulary(self, kind: str, name: str, read: Callable):
        """The pieces of tokenizer.json, whose model must be of this kind, or of the file `name`."""
        if self.stored is not None:
            found = self.stored["model"]["type"]
            require(found == kind, f"its model is a {found}, and its class takes a {kind}")
            return self.stored["model"]["vocab"]
        if kind == "Unigram":
            name = next((other for other in SENTENCEPIECE_NAMES if other in self.files), name)
        require(name in self.files, f"this model's class needs {name} or {JSON_NAME}")
        return read()

    def _lower_case(self, vocab: dict) -> bool:
        """As the flags say, else the settings, else the configuration, else what the vocabulary looks like."""
        model = self.options.model.get("do_lower_case")
        if "do_lower_case" in self.settings.values:
            self.source = SETTINGS_NAME
            return self.settings.flag("do_lower_case", True)
        if isinstance(model, bool):
            self.source = self.options.model_file
            return model
        if self.stored is not None:
            self._note_on_the_case()
            return True
        self.source = f"guessed from {WORD_PIECE_NAME}"
        return not any(_has_capital(piece) for piece in vocab)

    def _note_on_the_case(self) -> None:
        parts = [part for part in tokenizer_json.components(self.stored["normalizer"]) if "lowercase" in part]
        if parts and not parts[0]["lowercase"] and self.options.lower_case is None:
            self.options.say(
                f"Note: {JSON_NAME} keeps capitals, but no {SETTINGS_NAME} says do_lower_case: "
                "read as transformers does, lower-cased; --cased overrules"
            )

    def _word_pieces(self) -> dict[str, int]:
        pieces = _lines(self.files[WORD_PIECE_NAME])
        ids: dict[str, int] = {}
        odd = None
        for number, piece in enumerate(pieces):
            piece = piece.rstrip(_WHITE_SPACE)
            if piece in ids and odd is None:
                odd = f"lists {one_line(repr(piece), 60)} twice (lines {ids[piece] + 1} and {number + 1}): the last counts"
            if not piece and odd is None:
                odd = f"has a blank line ({number + 1}), a piece that no word has"
            ids[piece] = number
        if odd:
            self.options.say(f"Note: {self.files[WORD_PIECE_NAME]} {odd}, as for Hugging Face")
        return ids

    def _merges(self) -> list[str]:
        if MERGES_NAME not in self.files:
            raise DemoBertError(f"{MERGES_NAME} is missing beside {BPE_NAME}: a byte-level BPE needs both")
        lines = [line.removesuffix("\r") for line in _lines(self.files[MERGES_NAME])]
        for number, line in enumerate(lines):
            two = line.startswith("#version") or line.count(" ") == 1
            require(two, f"line {number + 1} of {MERGES_NAME} is no merge of two pieces: {one_line(repr(line), 60)}")
        return [line for line in lines if not line.startswith("#version")]

    def _sentencepieces(self) -> list:
        path = next(self.files[name] for name in SENTENCEPIECE_NAMES if name in self.files)
        self.sentencepiece = read_sentencepiece(read_limited(path, "SentencePiece model", MAX_SENTENCEPIECE_BYTES))
        require(self.sentencepiece.kind == UNIGRAM, "it is not a Unigram model, and these families' are")
        return [[piece, score] for piece, score, _ in self.sentencepiece.pieces]

    def _charsmap(self) -> dict | None:
        if self.sentencepiece is not None:
            table = base64.b64encode(self.sentencepiece.charsmap).decode()
            return {"type": "Precompiled", "precompiled_charsmap": table} if table else None
        parts = tokenizer_json.components(self.stored["normalizer"])
        return next((part for part in parts if part["type"] == "Precompiled"), None)

    def _metaspace(self) -> dict:
        scheme = "always" if self.settings.flag("add_prefix_space", True) else "never"
        metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme}
        return {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]}

    def _extras(self, default: list) -> list:
        """The special tokens that have no name: the settings', else the SentencePiece model's, else the class's."""
        if self.sentencepiece is None or "extra_special_tokens" in self.settings.values:
            return default if self.settings.extras is None else self.settings.extras
        return [
            tokenizer_json.added_token({"content": piece, "special": kind == CONTROL, "normalized": False})
            for piece, _, kind in self.sentencepiece.pieces
            if kind in (CONTROL, USER_DEFINED)
        ]

    # -- added tokens and template

    def _finished(self, plan: _Plan) -> Tokenizer:
        """The plan with its added tokens: the library gives them ids, in the order in which transformers adds them."""
        values = plan.values
        library = backend(values | {"post_processor": None})
        in_library(library.add_tokens, [_for_library(token) for token in self._tokens_to_add(plan)])
        added = {token.content: number for number, token in library.get_added_tokens_decoder().items()}
        if plan.template is not None:
            self._require_in_vocabulary(plan, library)
            names = {name: _content(plan.named[name]) for name, _ in plan.template if name not in "AB"}
            template = [
                (names[name], library.token_to_id(names[name]), segment) if name in names else (name, None, segment)
                for name, segment in plan.template
            ]
        else:
            template = tokenizer_json.pair_template(values["post_processor"])
        control = self._control_tokens(plan, template)
        tokens = [
            {"id": number, **_described(token), "special": token.content in control}
            for number, token in sorted(library.get_added_tokens_decoder().items())
        ]
        self._note_on_ids(added)
        return Tokenizer(values | {"added_tokens": tokens, "post_processor": self._post_processor(plan, template)})

    def _tokens_to_add(self, plan: _Plan) -> list[dict]:
        tokens = list(plan.values["added_tokens"])
        known = {token["content"] for token in tokens}
        tokens = [_without_id(token) for token in tokens] + [token for _, token in sorted(self.settings.added.items())]
        known |= {token["content"] for token in tokens}
        named = {_content(token) for token in plan.named.values() if token is not None}
        new = [token for token in (*plan.named.values(), *plan.extras) if _content(token)]
        tokens += {json.dumps(token): token for token in new if _content(token) not in known}.values()
        characters = sum(len(_content(token)) for token in tokens)
        few = len(tokens) <= MAX_ADDED_TOKENS and characters <= MAX_ADDED_CHARACTERS
        require(few, f"it has more than {MAX_ADDED_TOKENS} added tokens, or {MAX_ADDED_CHARACTERS} letters of them")
        tokens = [_special(token) if isinstance(token, str) else dict(token) for token in tokens]
        for token in tokens:
            token["special"] = token["special"] or token["content"] in named
        return tokens

    def _require_in_vocabulary(self, plan: _Plan, library) -> None:
        """transformers would give a separator that the vocabulary lacks a new id, of no use to the model."""
        pieces = plan.values["model"]["vocab"]
        pieces = pieces if isinstance(pieces, dict) else {piece for piece, _ in pieces}
        declared = {token["content"] for token in self.settings.added.values()}
        names = dict.fromkeys(_content(plan.named[name]) for name, _ in plan.template if name not in "AB")
        missing = [token for token in names if token not in pieces and token not in declared]
        require(not missing, f"the vocabulary lacks {', '.join(missing)}, so it is not this model's")

    def _control_tokens(self, plan: _Plan, template: list | None) -> set[str]:
        control = {_content(plan.named.get(name)) for name in _NAMED} | {token for token, number, _ in template or []}
        special = {token["content"] for token in plan.values["added_tokens"] if token["special"]}
        return control | (special & _USUAL_CONTROL_TOKENS)

    def _note_on_ids(self, added: dict[str, int]) -> None:
        moved = [token for number, token in self.settings.added.items() if added.get(token["content"]) != number]
        if moved:
            content = moved[0]["content"]
            self.options.say(
                f"Note: the added token {one_line(repr(content), 60)} gets the id {added.get(content)}, "
                "not the one that its file says, as with transformers"
            )

    def _post_processor(self, plan: _Plan, template: list | None) -> dict | None:
        if template and not self._has_segments():
            template = [(token, number, 0) for token, number, _ in template]
        if plan.template is None and plan.values["post_processor"]:
            parts = tokenizer_json.components(plan.values["post_processor"])
            trimming = next((part["add_prefix_space"] for part in parts if part["type"] == "ByteLevel"), None)
            return tokenizer_json.post_processor(template, trimming)
        return tokenizer_json.post_processor(template, plan.trimmed)

    def _has_segments(self) -> bool:
        """Whether question and passage have segment ids of their own: as far as the model has, and the settings say.

        transformers 5 gives an ALBERT's texts none where transformers 4 did: what a model was saved with, it learned.
        """
        inputs = self.settings.values.get("model_input_names")
        if not self.options.has_segments or isinstance(inputs, list):
            return self.options.has_segments and "token_type_ids" in inputs
        version = str(self.options.model.get("transformers_version", ""))
        if self.family != "albert" or not version[:1].isdigit() or version.startswith(("2.", "3.", "4.")):
            return True
        self.options.say(
            f"Note: all segment ids are 0, as an ALBERT's are in transformers {one_line(version, 20)}, which saved this "
            "one; up to transformers 4 the passage's were 1 (model_input_names in tokenizer_config.json decides)"
        )
        return False


_ROBERTA_TOKENS = {
    "bos": "<s>",
    "eos": "</s>",
    "unk": "<unk>",
    "sep": "</s>",
    "pad": "<pad>",
    "cls": "<s>",
    "mask": "<mask>",
}

_ROBERTA_PAIR = (("bos_token", 0), ("A", 0), ("eos_token", 0), ("eos_token", 0), ("B", 0), ("eos_token", 0))


def named_tokenizer(path, card: EngineCard, beside: Path, say: Callable[[str], object]) -> Tokenizer:
    """The tokenizer that -v names, for an engine with this card and the tokenizer's file `beside`.

    It must come out as the one that the engine was built with, if the card knows that: read as it was beside the
    engine or in its folder, or as any of the builder's flags reads it. Raises DemoBertError.
    """
    first = None
    for tokenizer in _readings(path, card, beside, say):
        if card.tokenizer_sha256 in (None, tokenizer.sha256):
            return tokenizer
        first = first or tokenizer
    raise DemoBertError(
        f"the tokenizer of {path} is not the one the engine was built with (SHA-256 {first.sha256[:12]}…, "
        f"not {card.tokenizer_sha256[:12]}…): leave out --vocab-file, or name the original"
    )


def _readings(path, card: EngineCard, beside: Path, say: Callable[[str], object]) -> Iterator[Tokenizer]:
    """The tokenizers that `path` can be, likeliest first."""
    if _is_bare(path) and beside.exists() and not card.built_without_tokenizer:
        yield _with_vocabulary(load_tokenizer(beside, card.tokenizer_sha256), path)
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    config = next((folder / name for name in CONFIG_NAMES if (folder / name).is_file()), None)
    options = ReadingOptions(
        model=_settings_object(config) if config else {},
        model_file=config.name if config else "",
        has_segments=card.config.type_vocab_size > 1,
    )
    found = find_tokenizer(folder, path, replace(options, say=say))
    if card.tokenizer_sha256 is None:
        say(found.describe())
    yield found.tokenizer
    for tensorflow in (False, True):
        for lower_case in (None, True, False):
            with contextlib.suppress(UsageError):  # of a flag that the tokenizer has no use for
                again = replace(options, tensorflow=tensorflow, lower_case=lower_case)
                yield find_tokenizer(folder, path, again).tokenizer


def _with_vocabulary(tokenizer: Tokenizer, path) -> Tokenizer:
    """A WordPiece `tokenizer` with the pieces of another vocab.txt in place of its own. Raises DemoBertError."""
    model = tokenizer.values["model"]
    require(model["type"] == "WordPiece", f"{path} is a vocab.txt, and the engine's tokenizer a {model['type']}")
    reader = _Reader({WORD_PIECE_NAME: Path(path)}, ReadingOptions({}))
    values = tokenizer.values | {"model": model | {"vocab": reader._word_pieces()}}
    return Tokenizer(tokenizer_json.checked(values))


def _is_bare(path) -> bool:
    """Whether `path` is a vocab.txt without settings beside it."""
    path = Path(path)
    if not path.is_file() or _kind_of(path) != WORD_PIECE_NAME:
        return False
    return not any(name in _present(path.parent) for name in _SETTINGS_NAMES)


def _stored_json(path: Path, model_type: Callable) -> dict:
    values = read_json(path, "tokenizer", MAX_FILE_BYTES)
    typed = isinstance(values, dict) and isinstance(values.get("model"), dict) and "type" in values["model"]
    return tokenizer_json.checked(values, None if typed else model_type())


def _family(settings: dict, model: dict, files: dict) -> str:
    """Which of the families below reads the text. Raises DemoBertError, by its name, for a tokenizer not served here."""
    auto_map = settings.get("auto_map")
    if isinstance(auto_map, list) or (isinstance(auto_map, dict) and auto_map.get("AutoTokenizer")):
        raise DemoBertError(f"{SETTINGS_NAME} names code of its own (auto_map), which is not run here")
    splitter = settings.get("word_tokenizer_type")
    if splitter not in (None, "basic"):
        raise DemoBertError(f"its words are split by {str(splitter)[:40]}, which the tokenizers library has not")
    name = settings.get("tokenizer_class") or model.get("tokenizer_class")
    if name is None:
        model_type = model.get("model_type")
        name = _CLASS_OF_MODEL_TYPE.get(str(model_type), _class_of_files(files))
    require(isinstance(name, str), "tokenizer_class is not text")
    name = name.removesuffix("Fast")
    if name in _SPLITTERS:
        raise DemoBertError(f"{name} splits words by {_SPLITTERS[name]}, which the tokenizers library has not")
    if name not in _FAMILY_OF_CLASS:
        known = ", ".join(_FAMILY_OF_CLASS)
        raise DemoBertError(f"tokenizer_class {name[:60]!r} is not supported (supported: {known})")
    return _FAMILY_OF_CLASS[name]


def _class_of_files(files: dict) -> str:
    """The class where no file names one or the type of its model, as in Google's folders."""
    classes = {JSON_NAME: "TokenizersBackend", WORD_PIECE_NAME: "BertTokenizer", BPE_NAME: "RobertaTokenizer"}
    classes |= dict(zip(SENTENCEPIECE_NAMES, ("XLMRobertaTokenizer", "AlbertTokenizer")))
    return next(classes[name] for name in VOCABULARY_NAMES if name in files)


def _has_capital(piece: str) -> bool:
    """Evidence of a cased vocabulary. Tokens in brackets are none: [CLS], and <S> and <T> of Google's Chinese one."""
    bracketed = len(piece) > 2 and piece[0] + piece[-1] in ("[]", "<>")
    return not bracketed and any("A" <= char <= "Z" for char in piece)


def _lines(path: Path) -> list[str]:
    """The lines of a text file. Only "\\n" ends one: others, such as U+2028, are pieces of some models."""
    try:
        text = read_limited(path, "vocabulary", MAX_FILE_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DemoBertError(f"vocabulary is not UTF-8 text (byte {error.start}): {path}") from None
    lines = text.removesuffix("\n").split("\n")
    require(len(lines) <= MAX_PIECES, f"the vocabulary has more than {MAX_PIECES} lines: {path}")
    return lines


def _read_object(path: Path, limit: int = MAX_FILE_BYTES) -> dict:
    values = read_json(path, path.name, limit)
    require(isinstance(values, dict), f"{path.name} is not a JSON object")
    return values


def _for_library(token: dict):
    from tokenizers import AddedToken

    flags = {name: token[name] for name in ADDED_TOKEN_FLAGS}
    return AddedToken(token["content"], **flags)


def _described(token) -> dict:
    return {"content": token.content, **{name: getattr(token, name) for name in ADDED_TOKEN_FLAGS}}
