"""Writes the tokenizers of model folders, trained on the repository's own text, as transformers 5 and 4 save them."""

import base64
import functools
import json
import shutil
import struct
import unicodedata
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from helpers import tokenizer_json
from tests.conftest import ROOT

HARD_TEXTS = [
    "What is TensorRT?",
    "TensorRT是一个深度学习推理平台。日本語も한국어도",
    "각 각 ㄱㅏ",
    "naïve café Ünïcödé İstanbul straße ǅ ﬁne",
    "e\u0301te\u0301 \u0301abc a\u0323\u0302x \u302e\u302fx q\u0307\u0323",
    "emoji 😀👨‍👩‍👧 flags 🇫🇷🇩🇪 thumbs 👍🏽",
    "a\0b\x07 c\u200bd \ufeffe \ufffd f",
    "tabs\tnew\nlines\r\n\u00a0\u2003\u2028\u3000 end",
    "x" * 100 + " " + "y" * 101,
    "don't (stop)—it's $5.00 @ 3€! ¿que? ``quoted'' text",
    "العربية हिन्दी ไทย עברית क्‍ष",
    "\U0001d165\U0001d16d \U00020000\U0002a6df ①②Ａｂｃ ﷺ",
    "  two  spaces   three ",
    "",
    " \n\t ",
]

#: First and last code points of what random texts are drawn from.
_SCRIPTS = [
    (0x20, 0x7E),
    (0x00, 0x1F),
    (0x7F, 0x17F),
    (0x300, 0x36F),
    (0x370, 0x4FF),
    (0x590, 0x6FF),
    (0x900, 0x97F),
    (0xE00, 0xE7F),
    (0x1100, 0x11FF),
    (0x1E00, 0x1EFF),
    (0x2000, 0x206F),
    (0x3000, 0x30FF),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3),
    (0xFB00, 0xFB4F),
    (0xFE00, 0xFE0F),
    (0xFF00, 0xFFEF),
    (0x1D100, 0x1D1FF),
    (0x1F1E6, 0x1F1FF),
    (0x1F300, 0x1F64F),
    (0x20000, 0x2A6DF),
]

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def random_text(rng, length: int = 40) -> str:
    """Runs of letters of many scripts, with spaces, marks, joiners and control characters between them."""
    text = ""
    while len(text) < length:
        first, last = _SCRIPTS[rng.integers(len(_SCRIPTS))]
        run = "".join(chr(point) for point in rng.integers(first, last + 1, rng.integers(1, 6)))
        text += run + ["", "", " ", "  ", "\u0301", "\u200d", "\n", "'s "][rng.integers(8)]
    return text


@functools.cache
def corpus() -> list[str]:
    paths = ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))
    lines = [line for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    return lines + HARD_TEXTS * 5


@functools.cache
def word_pieces(lower: bool = True) -> tuple[str, ...]:
    """A vocabulary, in the order of its ids."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=1500, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    return tuple(sorted(tokenizer.get_vocab(), key=tokenizer.token_to_id))


@functools.cache
def byte_pairs() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A byte-level BPE's vocabulary and merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=ROBERTA_SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


@functools.cache
def sentence_pieces() -> tuple[tuple[str, float], ...]:
    """Pieces and scores of a Unigram, without special tokens."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=900, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    # Without the runs of one letter: pieces of 14 and of 15 of it give several splits of the same score, and which is
    # taken depends on the last bit of the scores, which the library's JSON reader rounds.
    tokenizer.train_from_iterator([line for line in corpus() if "xxx" not in line], trainer)
    return tuple(
        (piece, score) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"] if piece != "<unk>"
    )


@functools.cache
def charsmap() -> bytes:
    """A SentencePiece table of normalisation: some letters → their NFKC, in a double-array trie as darts-clone has it.

    Each node has a block of 256 places of its own; its value lies at the block's first.
    """
    letters = [chr(point) for point in (*range(0x2460, 0x2470), *range(0xFF21, 0xFF5B), 0xFB01, 0x3000, 0xA0, 0xFDFA)]
    texts, nodes = b"", [{}]
    values: dict[int, int] = {}
    for letter in letters:
        node = 0
        for byte in letter.encode():
            if byte not in nodes[node]:
                nodes[node][byte] = len(nodes)
                nodes.append({})
            node = nodes[node][byte]
        values[node] = len(texts)
        texts += unicodedata.normalize("NFKC", letter).encode() + b"\0"
    units = np.zeros(256 * (len(nodes) + 1), np.uint32)

    def unit(place: int, node: int, label: int) -> int:
        return label | (node in values) << 8 | (place ^ 256 * (node + 1)) << 10

    units[0] = unit(0, 0, 0)
    for node, children in enumerate(nodes):
        block = 256 * (node + 1)
        for byte, child in children.items():
            units[block + byte] = unit(block + byte, child, byte)
        if node in values:
            units[block] = values[node] | 1 << 31
    return struct.pack("<I", units.nbytes) + units.astype("<u4").tobytes() + texts


def sentencepiece_model(pieces: list[tuple[str, float, int]], table: bytes = b"") -> bytes:
    """A SentencePiece model of (piece, score, type), as sentencepiece_model.proto says."""

    def varint(value: int) -> bytes:
        return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)

    def field(number: int, data: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(data)) + data

    data = b""
    for piece, score, kind in pieces:
        content = (
            field(1, piece.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score) + varint(3 << 3) + varint(kind)
        )
        data += field(1, content)
    data += field(2, varint(3 << 3) + varint(1) + varint(40 << 3) + varint(0))
    return data + field(3, field(1, b"nmt_nfkc") + field(2, table))


def write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def start(folder: Path, model_type: str, **values) -> Path:
    """An empty folder of a model of this type."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_json(folder / "config.json", {"model_type": model_type, **values})
    return folder


def legacy_word_piece(folder: Path, pieces, settings: dict, model_type: str = "bert", added=None) -> Path:
    """vocab.txt and its settings, as transformers 4 saved a slow BertTokenizer."""
    start(folder, model_type)
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    special = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL))
    special |= {name: token for name, token in settings.items() if name in special}
    write_json(folder / "special_tokens_map.json", special)
    write_json(folder / "tokenizer_config.json", {**special, "tokenizer_class": "BertTokenizer", **settings})
    if added:
        write_json(folder / "added_tokens.json", added)
    return folder


def legacy_byte_pairs(folder: Path, settings: dict) -> Path:
    """vocab.json, merges.txt and settings, as transformers 4 saved a RobertaTokenizer."""
    start(folder, "roberta")
    vocab, merges = byte_pairs()
    write_json(folder / "vocab.json", vocab)
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    mask = {"__type": "AddedToken", "content": "<mask>", "lstrip": True, "normalized": True, "rstrip": False}
    names = {"bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>", "unk_token": "<unk>"}
    values = {**names, "pad_token": "<pad>", "mask_token": {**mask, "single_word": False}}
    write_json(folder / "tokenizer_config.json", {**values, "tokenizer_class": "RobertaTokenizer", **settings})
    token = {name: value for name, value in values["mask_token"].items() if name != "__type"}
    write_json(folder / "special_tokens_map.json", {**values, "mask_token": token})
    return folder


def legacy_unigram_json(folder: Path, model_type: str, name: str, vocab: list, unk: int, settings: dict) -> Path:
    """tokenizer.json as transformers 4 saved a converted SentencePiece model."""
    start(folder, model_type)
    tokenizer = Tokenizer(models.Unigram([tuple(item) for item in vocab], unk_id=unk))
    table = normalizers.Precompiled(charsmap())
    tokenizer.normalizer = normalizers.Sequence([table, normalizers.Replace(" ", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    ids = {piece: number for number, (piece, _) in reversed(list(enumerate(vocab)))}
    cls, sep = ("[CLS]", "[SEP]") if model_type == "albert" else ("<s>", "</s>")
    pair = f"{cls} $A {sep} $B:1 {sep}:1" if model_type == "albert" else f"{cls} $A {sep} {sep} $B {sep}"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", pair=pair, special_tokens=[(cls, ids[cls]), (sep, ids[sep])]
    )
    tokenizer.add_special_tokens([piece for piece in ids if piece[0] + piece[-1] in ("<>", "[]") and len(piece) > 2])
    values = json.loads(tokenizer.to_str())
    values["normalizer"]["normalizers"][1]["pattern"] = {"Regex": " {2,}"}
    write_json(folder / "tokenizer.json", values)
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": name, **settings})
    return folder


def unigram_vocabulary(model_type: str) -> tuple[list, int]:
    """The pieces and scores of a tokenizer of this family, and the unknown piece's id."""
    rest = [list(item) for item in sentence_pieces()]
    if model_type == "albert":
        first = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
        return [[piece, 0.0] for piece in first] + rest, 1
    if model_type == "camembert":
        first = ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>"]
    else:
        first = ["<s>", "<pad>", "</s>", "<unk>"]
    return [[piece, 0.0] for piece in first] + rest + [["<mask>", 0.0]], 3


def sentencepiece_folder(folder: Path, model_type: str, settings: dict | None, user_defined: bool = False) -> Path:
    """A SentencePiece model, and no tokenizer.json."""
    start(folder, model_type)
    if model_type == "albert":
        first = [("<pad>", 0.0, 3), ("<unk>", 0.0, 2), ("[CLS]", 0.0, 3), ("[SEP]", 0.0, 3), ("[MASK]", 0.0, 4)]
    else:
        first = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    if user_defined:
        first.append(("(own)", 0.0, 4))
    pieces = first + [(piece, float(np.float32(score)), 1) for piece, score in sentence_pieces()]
    name = "spiece.model" if model_type == "albert" else "sentencepiece.bpe.model"
    (folder / name).write_bytes(sentencepiece_model(pieces, charsmap()))
    if settings is not None:
        write_json(folder / "tokenizer_config.json", settings)
    return folder


def word_piece_values(vocab: dict[str, int], lower: bool = True, **changes) -> dict:
    """A canonical tokenizer of BERT's with this vocabulary; `changes` are of its JSON, before the check."""
    values = {
        "model": {"type": "WordPiece", "vocab": vocab},
        "normalizer": {"type": "BertNormalizer", "lowercase": lower},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "BertProcessing",
            "sep": ["[SEP]", vocab["[SEP]"]],
            "cls": ["[CLS]", vocab["[CLS]"]],
        },
    }
    return tokenizer_json.checked(values | changes)


def charsmap_text() -> str:
    return base64.b64encode(charsmap()).decode()
