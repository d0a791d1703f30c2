"""Model folders' tokenizers against AutoTokenizer: ids, offsets and pairs, as transformers 5 and 4 save them."""

import functools
import importlib
import json
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import long_texts, tokenization, tokenizer_files
from helpers.data_processing import make_features
from helpers.tokenization import Tokenizer
from helpers.tokenizer_files import ReadingOptions, find_tokenizer
from tests import tokenizer_folders as folders
from tests.tokenizer_folders import HARD_TEXTS, random_text, write_json

transformers = pytest.importorskip("transformers")

ADDED = ["[URL]", "hello-world", "ßpecial", "Up", "two words"]


def ours(folder, **options) -> Tokenizer:
    path = Path(folder) / "config.json"
    model = json.loads(path.read_text()) if path.exists() else {}
    return find_tokenizer(folder, None, ReadingOptions(model, **options)).tokenizer


def theirs(folder):
    """AutoTokenizer's. Its SentencePiece reader asks for a package that it then does not use."""
    from transformers import AutoTokenizer

    # The package has a function of the module's name: an import from it gives the one or the other.
    conversion = importlib.import_module("transformers.convert_slow_tokenizer")
    with mock.patch.object(conversion, "requires_backends", lambda *arguments: None):
        return AutoTokenizer.from_pretrained(str(folder))


def assert_same_tokens(got: Tokenizer, reference, texts) -> None:
    texts = [text for text in texts if not any(token in text for token in got.control_tokens)] + [""]
    expected = reference(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    for text, tokens, ids, offsets in zip(
        texts, got.encode_batch(texts), expected["input_ids"], expected["offset_mapping"], strict=True
    ):
        assert tokens.ids.tolist() == ids, repr(text)
        starts, ends = tokens.offsets.T
        assert (starts >= 0).all() and (starts <= ends).all() and (ends <= len(text)).all()
        assert (np.diff(starts) >= 0).all() and (np.diff(ends) >= 0).all()
        offsets = np.array(offsets, np.int64).reshape(-1, 2)
        if (np.diff(offsets, axis=0) >= 0).all():  # theirs may step back where marks are reordered
            np.testing.assert_array_equal(tokens.offsets, offsets, repr(text))


def assert_same_pair(got: Tokenizer, reference, question: str, passage: str) -> None:
    (feature,) = make_features(got.encode(question), got.encode(passage), got, 512, 500)
    expected = reference(question, passage)
    assert feature.input_ids.tolist() == expected["input_ids"]
    types = reference.backend_tokenizer.encode(question, passage).type_ids
    assert feature.segment_ids.tolist() == types
    first = expected.sequence_ids(0).index(1)
    assert feature.passage_position == first


BERT = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}


def modern(path: Path, name: str, model_type: str, added=(), **settings) -> Path:
    """As transformers 5 saves it."""
    tokenizer = getattr(transformers, name)(**settings)
    tokenizer.add_tokens(list(added))
    folders.start(path, model_type)
    tokenizer.save_pretrained(path)
    assert (path / "tokenizer.json").exists()
    return path


def vocabulary(lower=True) -> dict:
    return {piece: number for number, piece in enumerate(folders.word_pieces(lower))}


def unigram(model_type: str):
    return [tuple(item) for item in folders.unigram_vocabulary(model_type)[0]]


def byte_pairs() -> dict:
    vocab, merges = folders.byte_pairs()
    return {"vocab": vocab, "merges": merges}


def with_json_beside(path: Path) -> Path:
    """A folder of transformers 4 with the tokenizer.json that its fast tokenizers wrote."""
    theirs(path).backend_tokenizer.save(str(path / "tokenizer.json"))
    return path


RENAMED = {"cls_token": "[unused1]", "sep_token": "[unused2]"}


def renamed_pieces():
    return [dict(zip(("[CLS]", "[SEP]"), RENAMED.values())).get(piece, piece) for piece in folders.word_pieces()]


FOLDERS = {
    "uncased, 5": lambda path: modern(path, "BertTokenizer", "bert", vocab=vocabulary()),
    "cased, 5": lambda path: modern(path, "BertTokenizer", "bert", vocab=vocabulary(False), do_lower_case=False),
    "accents kept, 5": lambda path: modern(path, "BertTokenizer", "bert", vocab=vocabulary(), strip_accents=False),
    "CJK unsplit, 5": lambda path: modern(
        path, "BertTokenizer", "bert", vocab=vocabulary(), tokenize_chinese_chars=False
    ),
    "added, 5": lambda path: modern(path, "BertTokenizer", "bert", ADDED, vocab=vocabulary()),
    "distilbert, 5": lambda path: modern(path, "DistilBertTokenizer", "distilbert", vocab=vocabulary()),
    "electra, 5": lambda path: modern(path, "ElectraTokenizer", "electra", vocab=vocabulary()),
    "uncased, 4": lambda path: folders.legacy_word_piece(path, folders.word_pieces(), BERT),
    "uncased with json, 4": lambda path: with_json_beside(
        folders.legacy_word_piece(path, folders.word_pieces(), {**BERT, "tokenizer_class": "BertTokenizerFast"})
    ),
    "cased, 4": lambda path: folders.legacy_word_piece(
        path, folders.word_pieces(False), {**BERT, "do_lower_case": False}, "electra"
    ),
    "accents kept, 4": lambda path: folders.legacy_word_piece(
        path, folders.word_pieces(), {**BERT, "strip_accents": False}
    ),
    "CJK unsplit, 4": lambda path: folders.legacy_word_piece(
        path, folders.word_pieces(), {**BERT, "tokenize_chinese_chars": False}, "distilbert"
    ),
    "added, 4": lambda path: folders.legacy_word_piece(
        path, folders.word_pieces(), BERT, added={token: 1500 + i for i, token in enumerate(ADDED)}
    ),
    "added with json, 4": lambda path: with_json_beside(
        folders.legacy_word_piece(
            path, folders.word_pieces(), BERT, added={token: 1500 + i for i, token in enumerate(ADDED)}
        )
    ),
    "decoder, 4": lambda path: folders.legacy_word_piece(
        path,
        folders.word_pieces(),
        {
            **BERT,
            "additional_special_tokens": ["[URL]"],
            "added_tokens_decoder": {
                "1500": {"content": "[URL]", "lstrip": True, "normalized": False, "special": True},
                "1501": {"content": "Up", "single_word": True, "normalized": True, "special": False},
                "0": {"content": "[PAD]", "normalized": False, "special": True},
            },
        },
    ),
    "renamed, 4": lambda path: folders.legacy_word_piece(path, renamed_pieces(), {**BERT, **RENAMED}),
    "byte-level BPE, 5": lambda path: modern(path, "RobertaTokenizer", "roberta", ADDED, **byte_pairs()),
    "byte-level BPE with a space, 5": lambda path: modern(
        path, "RobertaTokenizer", "roberta", **byte_pairs(), add_prefix_space=True
    ),
    "byte-level BPE, 4": lambda path: folders.legacy_byte_pairs(path, {}),
    "byte-level BPE with a space, 4": lambda path: folders.legacy_byte_pairs(path, {"add_prefix_space": True}),
    "byte-level BPE untrimmed, 4": lambda path: folders.legacy_byte_pairs(path, {"trim_offsets": False}),
    "byte-level BPE with json, 4": lambda path: with_json_beside(folders.legacy_byte_pairs(path, {})),
    "xlm-roberta, 5": lambda path: modern(
        path,
        "XLMRobertaTokenizer",
        "xlm-roberta",
        ADDED,
        vocab=unigram("xlm-roberta"),
        _spm_precompiled_charsmap=folders.charsmap(),
    ),
    "xlm-roberta, 4": lambda path: folders.legacy_unigram_json(
        path, "xlm-roberta", "XLMRobertaTokenizer", *folders.unigram_vocabulary("xlm-roberta"), {}
    ),
    "xlm-roberta, sentencepiece": lambda path: folders.sentencepiece_folder(path, "xlm-roberta", None),
    "xlm-roberta, user-defined": lambda path: folders.sentencepiece_folder(
        path, "xlm-roberta", {"tokenizer_class": "XLMRobertaTokenizer"}, user_defined=True
    ),
    "camembert, 5": lambda path: modern(path, "CamembertTokenizer", "camembert", vocab=unigram("camembert")),
    "camembert, 4": lambda path: folders.legacy_unigram_json(
        path,
        "camembert",
        "CamembertTokenizer",
        *folders.unigram_vocabulary("camembert"),
        {"additional_special_tokens": ["<s>NOTUSED", "</s>NOTUSED"]},
    ),
    "camembert, sentencepiece": lambda path: folders.sentencepiece_folder(path, "camembert", {}),
    "albert, 5": lambda path: modern(
        path, "AlbertTokenizer", "albert", vocab=unigram("albert"), _spm_precompiled_charsmap=folders.charsmap()
    ),
    "albert cased, 5": lambda path: modern(
        path, "AlbertTokenizer", "albert", vocab=unigram("albert"), do_lower_case=False, keep_accents=True
    ),
    "albert, 4": lambda path: folders.legacy_unigram_json(
        path, "albert", "AlbertTokenizer", *folders.unigram_vocabulary("albert"), {"remove_space": True}
    ),
    "albert, sentencepiece": lambda path: folders.sentencepiece_folder(path, "albert", {"keep_accents": False}),
    "vocabulary only": lambda path: without_settings(folders.legacy_word_piece(path, folders.word_pieces(), {})),
    "json only": lambda path: without_settings(modern(path, "BertTokenizer", "bert", ADDED, vocab=vocabulary())),
    "vocab.json and merges.txt only": lambda path: without_settings(folders.legacy_byte_pairs(path, {})),
    "xlm-roberta's json only": lambda path: without_settings(
        modern(path, "XLMRobertaTokenizer", "xlm-roberta", ADDED, vocab=unigram("xlm-roberta"))
    ),
    "a gap between ids, 4": lambda path: folders.legacy_word_piece(
        path, folders.word_pieces(), BERT, added={"[URL]": 1505, "Up": 1507}
    ),
    "more special tokens, 5": lambda path: modern(
        path, "BertTokenizer", "bert", vocab=vocabulary(), extra_special_tokens=["[URL]"]
    ),
    "special tokens of its own, 4": lambda path: folders.legacy_word_piece(
        path, folders.word_pieces(), {**BERT, "url_token": "[URL]", "extra_special_tokens": {"up_token": "Up"}}
    ),
    "no mask": lambda path: without_settings(
        folders.legacy_word_piece(path, folders.word_pieces(), {}), {"mask_token": None, "pad_token": None}
    ),
    "roberta with xlm-roberta's": lambda path: folders.legacy_unigram_json(
        path, "roberta", "XLMRobertaTokenizerFast", *folders.unigram_vocabulary("xlm-roberta"), {}
    ),
    "as it is": lambda path: as_it_is(path, "PreTrainedTokenizerFast"),
    "as it is, with names": lambda path: as_it_is(path, "TokenizersBackend", pad_token="[PAD]", extra="[NEW]"),
}


def without_settings(path: Path, settings: dict | None = None) -> Path:
    """The folder with `settings` for all settings, or with none."""
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        (path / name).unlink(missing_ok=True)
    if settings:
        write_json(path / "tokenizer_config.json", settings)
    return path


def as_it_is(path: Path, name: str, extra: str | None = None, **settings) -> Path:
    """A tokenizer.json of nobody's class: XLM-RoBERTa's with a BERT's template, say."""
    vocab, unk = folders.unigram_vocabulary("albert")
    folders.legacy_unigram_json(path, "albert", name, vocab, unk, settings)
    if extra:
        values = json.loads((path / "tokenizer_config.json").read_text())
        write_json(path / "tokenizer_config.json", values | {"additional_special_tokens": [extra]})
    write_json(path / "config.json", {"model_type": "bert"})
    return path


@functools.cache
def _folder_root() -> Path:
    import tempfile

    return Path(tempfile.mkdtemp(prefix="demobert-tokenizers-"))


@pytest.fixture(scope="module", autouse=True)
def _cleared():
    yield
    shutil.rmtree(_folder_root())
    _folder_root.cache_clear()
    pair_of.cache_clear()


@functools.cache
def pair_of(name: str):
    """Ours and theirs of one of FOLDERS."""
    path = _folder_root() / name.replace(" ", "_").replace(",", "")
    FOLDERS[name](path)
    return ours(path), theirs(path)


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("name", FOLDERS)
def test_ids_and_offsets_are_hugging_face_s(name, rng):
    got, reference = pair_of(name)
    drawn = [random_text(rng) for _ in range(300)] + [random_text(rng, 3000)]
    placed = [f"{text[:20]}{token}{text[20:]} {token.lower()}x" for token in ADDED for text in drawn[:10]]
    assert_same_tokens(got, reference, HARD_TEXTS + drawn + placed)


@pytest.mark.parametrize("name", FOLDERS)
def test_pairs_are_put_together_as_hugging_face_does(name, rng):
    got, reference = pair_of(name)
    assert_same_pair(got, reference, "What is TensorRT?", "TensorRT is a platform. " + random_text(rng))


def scores(backend) -> list[float] | None:
    model = json.loads(backend.to_str())["model"]
    return [score for _, score in model["vocab"]] if model["type"] == "Unigram" else None


@pytest.mark.parametrize("name", FOLDERS)
def test_a_unigram_s_scores_are_hugging_face_s_to_the_last_bit(name):
    """And an engine's, from what it takes along."""
    got, reference = pair_of(name)
    expected = scores(reference.backend_tokenizer)
    assert scores(got._backend) == expected == scores(Tokenizer.from_bytes(got.json)._backend)


@pytest.mark.parametrize("class_name", ["AlbertTokenizerFast", "PreTrainedTokenizerFast"])
def test_words_that_can_be_cut_in_two_ways_as_good_as_each_other(class_name, tmp_path, rng, monkeypatch):
    """A word of two letters is a piece whose score is the letters' sum: a score's last bit decides.

    One class of transformers hands the scores to the library, the other lets it read tokenizer.json, which it does badly.
    """
    letters = [chr(0x4E00 + i) for i in range(600)]
    values = {letter: float(rng.uniform(-14, -2)) for letter in letters}
    words = [a + b for a, b in zip(letters[::2], letters[1::2])]
    values |= {word: values[word[0]] + values[word[1]] for word in words} | {"\u2581": -1.0}
    first, unk = folders.unigram_vocabulary("albert")
    pieces = [*first[:5], *(list(item) for item in values.items())]
    folders.legacy_unigram_json(tmp_path, "albert", class_name, pieces, unk, {})
    got, reference = ours(tmp_path), theirs(tmp_path)
    assert_same_tokens(got, reference, words)
    with monkeypatch.context() as patch:  # the other way to read them, which is what tells that this test can fail
        read = tokenization.scores_as_read
        patch.setattr(tokenizer_files, "scores_as_read", lambda model: model)
        if class_name == "AlbertTokenizerFast":
            patch.setattr(tokenization, "_with_hidden_control_tokens", lambda values: as_read(values, read))
        other = ours(tmp_path)
    assert [tokens.ids.tolist() for tokens in other.encode_batch(words)] != [
        tokens.ids.tolist() for tokens in got.encode_batch(words)
    ]


def as_read(values: dict, read) -> dict:
    return values | {"model": read(values["model"])}


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("name", FOLDERS)
def test_long_texts_have_the_tokens_of_the_whole(name, rng, monkeypatch):
    """In pieces, which the library never sees as one text; hard texts may be cut or refuse to be."""
    tokenizer, reference = pair_of(name)
    monkeypatch.setattr(tokenization, "LONGEST_WHOLE_TEXT", 2000)
    monkeypatch.setattr(long_texts, "_PIECE", int(rng.integers(700, 1500)))
    monkeypatch.setattr(long_texts, "_CONTEXT", 400)
    words = [word for text in folders.corpus() for word in text.split()]
    plain = " ".join(rng.choice(words, 3000))
    hard = " ".join([*rng.permutation([*HARD_TEXTS, *words[:300]] * 2), *(random_text(rng) for _ in range(50))])
    assert long_texts.encode_in_pieces(plain, tokenizer._encoded) is not None
    assert_same_tokens(tokenizer, reference, [plain, "short", hard])


def test_pieces_that_disagree_are_not_put_together(rng, monkeypatch):
    """A tokenizer whose tokens depend on all of the text."""
    monkeypatch.setattr(long_texts, "_PIECE", 1500)

    def encode(texts):
        ends = [np.cumsum([len(word) + 1 for word in text.split(" ")]) - 1 for text in texts]
        return [
            (np.full(len(end), len(text), np.int32), np.stack([end, end], axis=1)) for text, end in zip(texts, ends)
        ]

    text = " ".join(["word"] * 2000)
    assert long_texts.encode_in_pieces(text, encode) is None
    assert long_texts.encode_in_pieces("字" * 10_000, encode) is None  # there is no place to cut it


@pytest.mark.parametrize("name", FOLDERS)
def test_what_an_engine_takes_along_is_the_same(name):
    got, _ = pair_of(name)
    again = Tokenizer.from_bytes(got.json)
    assert again.json == got.json and again.describe() == got.describe()
    for text in HARD_TEXTS:
        assert (again.encode(text).ids == got.encode(text).ids).all()


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=60), name=st.sampled_from(sorted(FOLDERS)))
def test_any_text_in_any_folder(text, name):
    assert_same_tokens(*pair_of(name), [text])


def test_all_of_xquad():
    from tests.test_scripts import xquad

    data = json.loads(xquad().read_text(encoding="utf-8"))["data"]
    paragraphs = [paragraph for article in data for paragraph in article["paragraphs"]]
    texts = [paragraph["context"] for paragraph in paragraphs]
    texts += [question["question"] for paragraph in paragraphs for question in paragraph["qas"]]
    for name in ("uncased, 5", "cased, 4", "byte-level BPE, 5", "xlm-roberta, 4", "camembert, 5", "albert, 5"):
        assert_same_tokens(*pair_of(name), texts)


def test_special_tokens_written_in_a_text_are_text():
    """As with split_special_tokens, but for tokens that are not the model's own separators."""
    for name in FOLDERS:
        got, reference = pair_of(name)
        assert len(got.control_tokens) >= 3
        for token in got.control_tokens:
            text = f"see {token} here"
            number = reference.convert_tokens_to_ids(token)
            assert number not in got.encode(text).ids or number == reference.unk_token_id
            # A Unigram has them among its pieces, and takes them for text's even so.
            if not reference.extra_special_tokens and got.values["model"]["type"] != "Unigram":
                expected = reference(text, add_special_tokens=False, split_special_tokens=True)
                assert got.encode(text).ids.tolist() == expected["input_ids"]
