"""Tokenizer files that are missing, wrong or hostile: one line that says what is wrong, in no time."""

import base64
import json
import struct
import time

import numpy as np
import pytest

from helpers import tokenizer_json
from helpers.errors import DemoBertError, one_line
from helpers.tokenization import Tokenizer, in_library
from helpers.tokenizer_files import ReadingOptions, find_tokenizer
from tests import fuzz_tokenizers
from tests import tokenizer_folders as folders
from tests.tokenizer_folders import write_json

VOCAB = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3}


def refusal(folder, model_type="bert", vocab_file=None) -> str:
    """The one line that refuses a folder's tokenizer; it must not take long."""
    start = time.perf_counter()
    with pytest.raises(DemoBertError) as caught:
        find_tokenizer(folder, vocab_file, ReadingOptions({"model_type": model_type}))
    assert time.perf_counter() - start < 10
    return one_line(caught.value)


# -- what is missing, or is not served


def test_missing_merges(tmp_path):
    folder = folders.legacy_byte_pairs(tmp_path / "x", {})
    (folder / "merges.txt").unlink()
    assert "merges.txt is missing beside vocab.json" in refusal(folder, "roberta")


def test_a_folder_without_a_tokenizer(tmp_path):
    assert find_tokenizer(tmp_path, None, ReadingOptions({})) is None
    assert "it needs tokenizer.json or vocab.txt" in refusal(tmp_path, vocab_file=tmp_path)


@pytest.mark.parametrize(
    "model_type, needed",
    [("roberta", "needs vocab.json or tokenizer.json"), ("albert", "needs spiece.model or tokenizer.json")],
)
def test_the_vocabulary_of_another_family(tmp_path, model_type, needed):
    folder = folders.legacy_word_piece(tmp_path / "x", VOCAB, {})
    (folder / "tokenizer_config.json").unlink()
    assert needed in refusal(folder, model_type)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"tokenizer_class": "BertJapaneseTokenizer"}, "BertJapaneseTokenizer splits words by MeCab"),
        ({"word_tokenizer_type": "sudachi"}, "split by sudachi"),
        ({"tokenizer_class": "RoFormerTokenizerFast"}, "splits words by Jieba"),
        ({"tokenizer_class": "GPT2Tokenizer"}, "tokenizer_class 'GPT2Tokenizer' is not supported (supported: Bert"),
        ({"tokenizer_class": ["x"]}, "tokenizer_class is not text"),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, "there is no tokenizer.json"),
        ({"auto_map": {"AutoTokenizer": ["mine.Tokenizer", None]}}, "code of its own (auto_map)"),
        ({"do_lower_case": "yes"}, "do_lower_case must be true or false"),
        ({"strip_accents": 1}, "strip_accents must be true or false"),
        ({"cls_token": None}, "names no cls_token"),
        ({"sep_token": "[NOWHERE]"}, "the vocabulary lacks [NOWHERE]"),
        ({"sep_token": 7}, "sep_token must be text"),
        ({"unk_token": "x" * 5000}, "is longer than"),
        ({"added_tokens_decoder": {"-1": {"content": "x"}}}, "'-1' is no id"),
        ({"added_tokens_decoder": {"9999999": {"content": "x"}}}, "must be a whole number from 0"),
        ({"added_tokens_decoder": {"9": {"content": 7}}}, "content must be text"),
        ({"additional_special_tokens": {"a": 1}, "extra_special_tokens": 7}, "is no list"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else None,
)
def test_settings_that_can_not_be_followed(tmp_path, settings, message):
    folder = folders.legacy_word_piece(tmp_path / "x", VOCAB, {})
    (folder / "special_tokens_map.json").unlink()
    values = json.loads((folder / "tokenizer_config.json").read_text())
    write_json(folder / "tokenizer_config.json", values | settings)
    assert message in refusal(folder)


def test_added_tokens_of_any_number_are_refused(tmp_path):
    folder = folders.legacy_word_piece(tmp_path / "x", VOCAB, {}, added={f"t{i}": 4 + i for i in range(1 << 16)})
    assert "added_tokens.json has more than" in refusal(folder)
    write_json(folder / "added_tokens.json", {"x": 1e9})
    assert "the id of 'x' is no whole number" in refusal(folder)


@pytest.mark.parametrize("data", [b"\x00", b"\xff" * 99, b"\x0a\xff\xff\xff\xff\x0f", b"not a model"], ids=range(4))
def test_a_damaged_sentencepiece_model(tmp_path, data):
    folder = folders.sentencepiece_folder(tmp_path / "x", "xlm-roberta", {})
    (folder / "sentencepiece.bpe.model").write_bytes(data)
    assert "not a SentencePiece model" in refusal(folder, "xlm-roberta")


# -- a hostile tokenizer.json


def deep(levels: int) -> dict:
    value = {"type": "NFC"}
    for _ in range(levels):
        value = {"type": "Sequence", "normalizers": [value]}
    return value


def charsmap(change) -> dict:
    """A Precompiled whose trie `change` has worked on."""
    data = folders.charsmap()
    (size,) = struct.unpack_from("<I", data)
    units = np.frombuffer(data, "<u4", size // 4, 4).copy()
    change(units)
    damaged = data[:4] + units.tobytes() + data[4 + size :]
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(damaged).decode()}


def far_away(units) -> None:
    units[0] = 0x1FFFFF << 10 | 1 << 9


def beyond_the_text(units) -> None:
    units[units >> 31 == 1] = 0xFFFFFF00


EXPLODING = {"type": "Replace", "pattern": {"String": "a"}, "content": "aaaa"}
CATASTROPHIC = {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"normalizer": deep(5)}, "too deep"),
        ({"normalizer": deep(400)}, "too deep"),
        ({"normalizer": EXPLODING}, "puts in more than it takes out"),
        ({"normalizer": CATASTROPHIC}, "the regular expression '(a+)+$'"),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 17}}, "at most 16 parts"),
        ({"normalizer": {"type": "Python"}}, "the type 'Python' is not supported"),
        ({"normalizer": charsmap(far_away)}, "trie ends too early"),
        ({"normalizer": charsmap(beyond_the_text)}, "leads to no text"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "damaged or too large"),
        ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "x*x*x*y"}, "behavior": "Removed"}}, "regular"),
        ({"pre_tokenizer": None}, "does not split at spaces"),
        ({"pre_tokenizer": {"type": "Metaspace", "replacement": "xx"}}, "one character"),
        ({"post_processor": None}, "how a question and a passage are put together"),
        ({"post_processor": {"type": "BertProcessing", "sep": ["x", -1], "cls": ["y", 1]}}, "whole number from 0"),
        ({"post_processor": {"type": "TemplateProcessing", "pair": [], "special_tokens": {}}}, "A and then B"),
        ({"model": {"type": "WordPiece", "vocab": {"[UNK]": 0, "x": 1 << 40}}}, "the id of the piece 'x'"),
        ({"model": {"type": "WordPiece", "vocab": {"[UNK]": 0, "x": 0}}}, "two pieces have the same id"),
        ({"model": {"type": "WordPiece", "vocab": {"x": 0}}}, "lacks [UNK]"),
        ({"model": {"type": "WordPiece", "vocab": VOCAB, "max_input_chars_per_word": 1 << 40}}, "from 1 to 1000"),
        ({"model": {"type": "WordPiece", "vocab": VOCAB | {"x" * 2000: 9}}}, "longer than 1024"),
        ({"model": {"type": "WordPiece", "vocab": VOCAB | {"\ud800": 9}}}, "half a surrogate pair"),
        ({"model": {"type": "WordLevel", "vocab": VOCAB}}, "'WordLevel' is not supported"),
        ({"model": {"type": "BPE", "vocab": VOCAB, "merges": ["a b"]}}, "lacks a piece of the merge"),
        ({"model": {"type": "BPE", "vocab": VOCAB, "merges": ["a"]}}, "no merge of two pieces"),
        ({"model": {"type": "BPE", "vocab": VOCAB, "merges": [], "dropout": 0.5}}, "a matter of chance"),
        ({"model": {"type": "Unigram", "vocab": [["a", float("nan")]]}}, "no piece with its score"),
        ({"model": {"type": "Unigram", "vocab": [["", 0.0]]}}, "no piece with its score"),
        ({"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 1}}, "unk_id must be"),
        ({"model": []}, "it has no model"),
        ({"added_tokens": [{"id": 9, "content": "x"}] * 2}, "two added tokens have the same id"),
        ({"added_tokens": [{"id": 1 << 40, "content": "x"}]}, "an added token's id must be"),
        ({"added_tokens": [{"id": 9, "content": ""}]}, "an added token is empty"),
        ({"added_tokens": {"x": 9}}, "added_tokens is no list"),
    ],
    ids=range(33),
)
def test_a_hostile_tokenizer_json(tmp_path, changes, message):
    values = folders.word_piece_values(VOCAB) | changes
    folder = folders.start(tmp_path / "x", "bert")
    write_settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    write_json(folder / "tokenizer_config.json", write_settings)
    (folder / "tokenizer.json").write_text(json.dumps(values))
    assert message in refusal(folder)
    with pytest.raises(DemoBertError, match="^it can't be used"):
        Tokenizer.from_bytes((folder / "tokenizer.json").read_bytes(), "it")


@pytest.mark.parametrize("data", [b"[" * 10**6, b'{"a":' * 10**5, b"\xff", b"{", b"1" * 10**5, b""], ids=range(6))
def test_no_json(tmp_path, data):
    folder = folders.start(tmp_path / "x", "bert")
    (folder / "tokenizer.json").write_bytes(data)
    assert "tokenizer" in refusal(folder)


def test_a_file_too_large(tmp_path, monkeypatch):
    folder = folders.legacy_word_piece(tmp_path / "x", VOCAB, {})
    with open(folder / "tokenizer.json", "wb") as file:
        file.truncate(tokenizer_json.MAX_FILE_BYTES + 1)
    assert "larger than 64 MiB" in refusal(folder)


def test_numbers_that_would_take_minutes(tmp_path):
    """Each within the limits of its file's size, and refused before the slow step (`refusal` looks at the clock)."""
    folder = folders.start(tmp_path / "spaces", "xlm-roberta")
    (folder / "sentencepiece.bpe.model").write_bytes(bytes(30 << 20))
    assert "it is not a SentencePiece model" in refusal(folder, "xlm-roberta")
    own = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), *((f"u{number}", 0.0, 4) for number in range(20000))]
    (folder / "sentencepiece.bpe.model").write_bytes(folders.sentencepiece_model(own))
    assert "more than 8192 added tokens" in refusal(folder, "xlm-roberta")
    for settings in (
        {f"x{number}_token": f"[x{number}]" for number in range(20000)},
        {"extra_special_tokens": [f"[x{number}]" for number in range(20000)]},
        {"extra_special_tokens": [f"{number:0>900}" for number in range(8000)]},
    ):
        folder = folders.legacy_word_piece(tmp_path / "settings", VOCAB, settings)
        assert "too long" in (line := refusal(folder)) or "more than 8192 added tokens" in line


def test_a_line_that_is_no_merge(tmp_path):
    folder = folders.legacy_byte_pairs(tmp_path / "x", {})
    with open(folder / "merges.txt", "a") as file:
        file.write("one\n")
    lines = len((folder / "merges.txt").read_text().splitlines())
    assert f"line {lines} of merges.txt is no merge of two pieces: 'one'" in refusal(folder, "roberta")


def test_a_class_that_takes_another_model(tmp_path):
    folder = folders.start(tmp_path / "x", "roberta")
    write_json(folder / "tokenizer.json", folders.word_piece_values(VOCAB))
    assert "its model is a WordPiece, and its class takes a BPE" in refusal(folder, "roberta")


def test_a_panic_of_the_library_is_one_error():
    class PanicException(BaseException):
        """As pyo3's: no Exception."""

    def panics():
        raise PanicException("index out of bounds:\n the len is 1")

    with pytest.raises(DemoBertError, match="can't use this tokenizer: index out of bounds: the len is 1$"):
        in_library(panics)
    with pytest.raises(KeyboardInterrupt):
        in_library(lambda: (_ for _ in ()).throw(KeyboardInterrupt()))


def test_random_damage_is_read_or_refused(rng):
    """20,000 rounds: python -m tests.fuzz_tokenizers --rounds 20000"""
    assert fuzz_tokenizers.main(["--rounds", "300", "--seed", str(rng.integers(1 << 32))]) == 0
