"""Word pieces and offsets against Hugging Face's tokenizer; vocabularies that must be refused."""

import dataclasses
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from helpers.bert_config import BertConfig
from helpers.engine_card import EngineCard
from helpers.errors import DemoBertError
from helpers.tokenization import BertTokenizer, check_same_vocabulary, check_vocabulary, load_vocabulary

VOCABULARY = Path(__file__).parent.parent / "models/bundled/bert_mini_squad11/vocab.txt"
CONFIG = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=30522)

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
    "don't (stop)—it's $5.00 @ 3€! ¿que?",
    "العربية हिन्दी ไทย עברית क्‍ष",
    "\U0001d165\U0001d16d \U00020000\U0002a6df",
    "",
    " \n\t ",
]


@pytest.fixture(scope="module")
def vocabulary():
    return load_vocabulary(VOCABULARY)


_TOKENIZERS = {}


def tokenizers(do_lower_case):
    """Ours and Hugging Face's, made once (hypothesis does not like fixtures of function scope)."""
    if do_lower_case not in _TOKENIZERS:
        from transformers import BertTokenizerFast

        reference = BertTokenizerFast(str(VOCABULARY), do_lower_case=do_lower_case)
        _TOKENIZERS[do_lower_case] = BertTokenizer(load_vocabulary(VOCABULARY), do_lower_case), reference
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
    assert reference.get_vocab() == ours.vocabulary.ids
    assert [ours.cls_id, ours.sep_id] == [reference.cls_token_id, reference.sep_token_id]


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
    for written in ("[CLS]", "[SEP]", "[PAD]", "[MASK]"):
        assert ours.vocabulary.ids[written] not in ours.encode(f"see {written} here").ids


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


@pytest.mark.parametrize("text", ["caf\udce9", "\ud83d", "a\udfffb"])
def test_text_that_is_not_utf8_is_one_error(text):
    with pytest.raises(DemoBertError, match="^the question is not valid UTF-8"):
        tokenizers(True)[0].encode(text, "question")


def test_without_the_package_the_error_names_it(monkeypatch, vocabulary):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DemoBertError, match="pip install tokenizers"):
        BertTokenizer(vocabulary, True)


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
        ("[UNK]\n[CLS]\n[SEP]\na\nb\na\n", r"'a' twice \(lines 4 and 6\)"),
        ("[UNK]\n[CLS]\n[SEP]\n\na\n", "line 4 of the vocabulary is empty"),
        (b"[UNK]\n[CLS]\n[SEP]\n\xff\n", "not UTF-8"),
    ],
)
def test_unusable_vocabulary(tmp_path, content, message):
    with pytest.raises(DemoBertError, match=message) as caught:
        load_vocabulary(write(tmp_path, content))
    assert "\n" not in str(caught.value)


def test_missing_vocabulary(tmp_path):
    with pytest.raises(DemoBertError, match="not found"):
        load_vocabulary(tmp_path / "vocab.txt")


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("end", ["", "\n"])
def test_small_vocabulary_without_pad(tmp_path, newline, end):
    pieces = ["[UNK]", "[CLS]", "[SEP]", "hello", "a\u2028b", "\u0085", "##o"]
    vocabulary = load_vocabulary(write(tmp_path, newline.join(pieces) + (newline if end else "")))
    assert vocabulary.ids == {piece: number for number, piece in enumerate(pieces)}
    assert vocabulary.size == 7
    assert BertTokenizer(vocabulary, True).encode("Hello helloo there").ids.tolist() == [3, 3, 6, 0]


@pytest.mark.parametrize("table", [30522, 30528, 30528 + 8, 30592, 30521, 30520, 30523, 30720, 21128])
def test_vocabulary_size(vocabulary, table):
    config = dataclasses.replace(CONFIG, vocab_size=table)
    if table in (30522, 30528, 30592):  # itself; rounded up to 8; rounded up to 64 and 128
        check_vocabulary(vocabulary, config)
    else:
        with pytest.raises(DemoBertError, match=f"30522 pieces, the model {table}"):
            check_vocabulary(vocabulary, config)


def test_the_engine_s_vocabulary(vocabulary, tmp_path):
    def card(sha256):
        return EngineCard(
            "openvino", "1", "CPU", "padded", "layers", ["fp32"], [1], [128], CONFIG, True, "v.txt", sha256, "", 0, {}
        )

    check_same_vocabulary(vocabulary, card(vocabulary.sha256))
    check_same_vocabulary(vocabulary, card(None))
    swapped = VOCABULARY.read_text(encoding="utf-8").replace("\ncat\n", "\nzzcat\n")
    other = load_vocabulary(write(tmp_path, swapped))
    assert other.size == vocabulary.size
    with pytest.raises(DemoBertError, match="not the one the engine was built with.*leave out --vocab-file"):
        check_same_vocabulary(other, card(vocabulary.sha256))
