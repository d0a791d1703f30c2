"""Word pieces and offsets of BERT's own vocabulary against Hugging Face's tokenizer; vocabularies that are refused."""

import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from helpers.bert_config import BertConfig
from helpers.errors import DemoBertError, UsageError
from helpers.tokenization import Tokenizer, check_table, load_tokenizer
from helpers.tokenizer_files import ReadingOptions, find_tokenizer
from tests.conftest import BUNDLED
from tests.tokenizer_folders import HARD_TEXTS, word_piece_values

VOCABULARY = BUNDLED / "vocab.txt"
CONFIG = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=30522)

_TOKENIZERS = {}


def read(path, lower=None, notes=None, **options):
    say = (lambda message: None) if notes is None else notes.append
    return find_tokenizer(path.parent, path, ReadingOptions({}, lower_case=lower, say=say, **options)).tokenizer


def tokenizers(do_lower_case):
    """Ours and Hugging Face's, made once (hypothesis does not like fixtures of function scope)."""
    if do_lower_case not in _TOKENIZERS:
        from transformers import BertTokenizer

        reference = BertTokenizer(str(VOCABULARY), do_lower_case=do_lower_case)
        _TOKENIZERS[do_lower_case] = read(VOCABULARY, do_lower_case), reference
    return _TOKENIZERS[do_lower_case]


def assert_agrees(text, do_lower_case):
    ours, reference = tokenizers(do_lower_case)
    expected = reference(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    got = ours.encode(text)
    assert got.ids.tolist() == expected["input_ids"]
    starts, ends = got.offsets.T
    assert (starts >= 0).all() and (starts <= ends).all() and (ends <= len(text)).all()
    assert (np.diff(starts) >= 0).all() and (np.diff(ends) >= 0).all()
    theirs = np.array(expected["offset_mapping"]).reshape(-1, 2)
    if (np.diff(theirs, axis=0) >= 0).all():  # theirs may step back where marks are reordered
        np.testing.assert_array_equal(got.offsets, theirs)


def test_hugging_face_reads_the_same_vocabulary():
    ours, reference = tokenizers(True)
    assert reference.get_vocab() == ours.values["model"]["vocab"] and ours.size == ours.base_size == 30522
    template = ours.template
    assert template.head.tolist() == [reference.cls_token_id] and template.size == 3
    assert template.middle.tolist() == template.tail.tolist() == [reference.sep_token_id]


@pytest.mark.parametrize("do_lower_case", [True, False])
@pytest.mark.parametrize("text", HARD_TEXTS, ids=range(len(HARD_TEXTS)))
def test_agrees_with_hugging_face_on_hard_texts(text, do_lower_case):
    assert_agrees(text, do_lower_case)


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=60), do_lower_case=st.booleans())
@example(text="\u302fa\u0301\u0323", do_lower_case=True)
def test_agrees_with_hugging_face_on_any_text(text, do_lower_case):
    assert_agrees(text.replace("[", "("), do_lower_case)  # special tokens: the next but one test


@pytest.mark.parametrize("draw", range(3))
def test_agrees_with_hugging_face_on_mixed_scripts(draw, rng):
    source = random.Random(int(rng.integers(1 << 32)))
    words = " ".join(HARD_TEXTS).split()
    text = "".join(source.choice(words) + source.choice([" ", "", "\0", "\u0301", "\u200d", "\n"]) for _ in range(2000))
    assert_agrees(text, do_lower_case=True)


def test_special_tokens_in_a_text_are_text():
    ours, _ = tokenizers(True)
    assert sorted(ours.control_tokens) == ["[CLS]", "[MASK]", "[PAD]", "[SEP]", "[UNK]"]
    for written in ours.control_tokens:
        assert ours.added[written] not in ours.encode(f"see {written} here").ids


def test_a_megabyte_of_text():
    ours, _ = tokenizers(True)
    assert len(ours.encode("x" * (1 << 20)).ids) == 1
    text = "péce of wørk 字 " * (1 << 16)
    tokens = ours.encode(text)
    assert len(tokens) % (1 << 16) == 0 and tokens.offsets[-1, 1] == len(text) - 1
    per_repeat = len(tokens) >> 16
    np.testing.assert_array_equal(tokens.ids[-per_repeat:], tokens.ids[:per_repeat])


def test_a_batch_equals_one_by_one():
    ours, _ = tokenizers(True)
    texts = [text * repeat for repeat in range(1, 90) for text in HARD_TEXTS]  # more than one chunk
    assert len(texts) > 1024
    for text, tokens in zip(texts, ours.encode_batch(texts), strict=True):
        alone = ours.encode(text)
        assert tokens.text == text and (tokens.ids == alone.ids).all() and (tokens.offsets == alone.offsets).all()


@pytest.mark.parametrize("text", ["caf\udce9", "\ud83d", "a\udfffb"], ids=range(3))
def test_text_that_is_not_utf8_is_one_error(text):
    with pytest.raises(DemoBertError, match="^the question is not valid UTF-8"):
        tokenizers(True)[0].encode(text, "question")


def write(tmp_path, content):
    path = tmp_path / "vocab.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "empty"),
        ("[CLS]\n[SEP]\nhello\n", r"lacks \[UNK\]"),
        ("[UNK]\n[SEP]\nhello\n", r"lacks \[CLS\]"),
        ("[UNK]\n[CLS]\nhello\n", r"lacks \[SEP\]"),
        (b"[UNK]\n[CLS]\n[SEP]\n\xff\n", "not UTF-8"),
    ],
    ids=range(5),
)
def test_unusable_vocabulary(tmp_path, content, message):
    with pytest.raises(DemoBertError, match=message) as caught:
        read(write(tmp_path, content))
    assert "\n" not in str(caught.value)


def test_missing_vocabulary(tmp_path):
    with pytest.raises(DemoBertError, match="not found"):
        read(tmp_path / "vocab.txt")


@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("end", [False, True])
def test_small_vocabulary_without_pad(tmp_path, newline, end):
    pieces = ["[UNK]", "[CLS]", "[SEP]", "hello", "a\u2028b", "\u0085x", "##o"]
    path = write(tmp_path, newline.join(pieces) + (newline if end else ""))
    tokenizer = read(path, True)
    assert tokenizer.values["model"]["vocab"] == {piece: number for number, piece in enumerate(pieces)}
    assert tokenizer.base_size == 7 and tokenizer.describe() == "uncased WordPiece, 7 pieces"
    assert tokenizer.encode("Hello helloo there").ids.tolist() == [3, 3, 6, 0]


@pytest.mark.parametrize(
    "lines, note",
    [
        (["[UNK]", "[CLS]", "[SEP]", "a", "b", "a"], "lists 'a' twice (lines 4 and 6): the last counts"),
        (["[UNK]", "[CLS]", "[SEP]", "", "b "], "has a blank line (4)"),
        (["[UNK]", "[CLS]", "[SEP]", "b", ""], "has a blank line (5)"),
        (["[UNK]", "[CLS]", "[SEP]", "b", "\u3000", "c"], "has a blank line (5)"),
    ],
    ids=range(4),
)
def test_duplicate_and_blank_lines_are_taken_as_hugging_face_takes_them(tmp_path, lines, note):
    from transformers import BertTokenizer

    path, notes = write(tmp_path, "".join(f"{line}\n" for line in lines)), []
    tokenizer = read(path, True, notes)
    reference = BertTokenizer(str(path))
    base = {piece: number for piece, number in reference.get_vocab().items() if piece not in ("[PAD]", "[MASK]")}
    assert tokenizer.values["model"]["vocab"] == base
    assert len(notes) == 1 and note in notes[0] and notes[0].startswith("Note: ")
    assert tokenizer.encode("a b c").ids.tolist() == reference("a b c", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("table", [30522, 30528, 30592, 31522, 30521, 2])
def test_an_embedding_table_of_another_size(table):
    config, tokenizer = dataclasses.replace(CONFIG, vocab_size=table), tokenizers(True)[0]
    if table < 30522:
        with pytest.raises(DemoBertError, match=f"30522 pieces, the model {table}"):
            check_table(tokenizer, config)
        return
    notes = check_table(tokenizer, config)
    assert notes == (
        []
        if table == 30522
        else [f"Note: the model's table has {table} rows, {table - 30522} more than its vocabulary"]
    )


def test_case_can_be_overruled_for_word_pieces_only():
    lower, upper = (tokenizers(case)[0] for case in (True, False))
    assert lower.with_case(False).json == upper.json and upper.with_case(True).sha256 == lower.sha256
    assert lower.describe() == "uncased WordPiece, 30522 pieces" and upper.describe().startswith("cased")
    values = word_piece_values({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2}, normalizer=None)
    with pytest.raises(UsageError, match="--cased is for WordPiece"):
        Tokenizer(values).with_case(False)


def test_word_length_limits(tmp_path):
    """Hugging Face's where its files are read, Google's where a TensorFlow checkpoint has nothing but a vocab.txt."""
    path = write(tmp_path, "[UNK]\n[CLS]\n[SEP]\nx\n##x\n")
    word = "x" * 150
    assert read(path, True).encode(word).ids.tolist() == [0]
    assert read(path, True, tensorflow=True).encode(word).ids.tolist() == [3] + [4] * 149
    assert read(path, True, tensorflow=True).encode("x" * 201).ids.tolist() == [0]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    assert read(path, tensorflow=True).encode(word).ids.tolist() == [0]


def test_an_engine_s_tokenizer_changed_by_one_byte_is_refused(tmp_path, rng):
    path, tokenizer = tmp_path / "x.tokenizer.json", tokenizers(True)[0]
    path.write_bytes(tokenizer.json)
    assert load_tokenizer(path, tokenizer.sha256).json == tokenizer.json
    data = bytearray(tokenizer.json)
    data[rng.integers(len(data))] ^= 1 << rng.integers(7)
    Path(path).write_bytes(data)
    with pytest.raises(DemoBertError, match="is not the tokenizer that the engine was built with"):
        load_tokenizer(path, tokenizer.sha256)
