"""The tokenizer beside an engine: builders write it, the set moves, -v is held to it."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.bert_config import BertConfig
from helpers.engine_card import EngineCard
from tests import tokenizer_folders as folders
from tests.checkpoints import pytorch_state, write_folder
from tests.reference_bert import random_weights
from tests.tokenizer_folders import write_json

SIZES = BertConfig(32, 1, 2, 48, 1500, 48)
QUESTION = ("-p", "The tower was built in 1889 by Gustave Eiffel.", "-q", "When was it built?")


def model(folder: Path, rng, config: BertConfig = SIZES, pieces=None, settings=None, added=None) -> Path:
    """A random model of one layer, with a vocabulary of BERT's."""
    write_folder(folder, config, pytorch_state(config, random_weights(config, rng)))
    values = json.loads((folder / "config.json").read_text())
    folders.legacy_word_piece(folder.parent / "tokenizer", pieces or folders.word_pieces(), settings or {}, added=added)
    for path in (folder.parent / "tokenizer").iterdir():
        if path.name != "config.json" and (settings is not None or path.name == "vocab.txt"):
            shutil.copy(path, folder)
    write_json(folder / "config.json", values | {"model_type": "bert"})
    return folder


@pytest.fixture
def built(script, tmp_path, rng):
    """(the model's folder, its engine) after `build(*flags, **what model() takes)`."""

    def build(*flags, **options):
        folder = tmp_path / "model"
        shutil.rmtree(folder, ignore_errors=True)
        model(folder, rng, **options)
        engine = tmp_path / "x.engine"
        result = script("builder.py", "-pt", folder, "-o", engine, "-s", 48, "--backend", "openvino", *flags)
        return folder, engine, result

    return build


def ask(script, engine, *flags, question=QUESTION):
    return script("inference.py", "-e", engine, *question, *flags)


def test_an_engine_moved_elsewhere_answers_without_its_model(script, built, tmp_path):
    folder, engine, result = built(settings={"do_lower_case": True})
    assert "Tokenizer: uncased WordPiece, 1500 pieces, from tokenizer_config.json" in result.err
    before = ask(script, engine)
    assert before.code == 0, before.err
    shutil.rmtree(folder)
    (tmp_path / "other").mkdir()
    for path in tmp_path.glob("x.engine*"):
        shutil.move(path, tmp_path / "other")
    assert sorted(os.listdir(tmp_path / "other")) == ["x.engine", "x.engine.json", "x.engine.tokenizer.json"]
    after = ask(script, tmp_path / "other" / "x.engine")
    assert after.code == 0 and after.out.splitlines()[-2:] == before.out.splitlines()[-2:]


def test_a_tokenizer_that_is_changed_or_missing_is_refused(script, built, rng):
    _, engine, _ = built(settings={})
    path = EngineCard.tokenizer_path_for(engine)
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1
    path.write_bytes(data)
    assert "is not the tokenizer that the engine was built with" in ask(script, engine).error
    path.unlink()
    assert "name the model's with -v/--vocab-file" in ask(script, engine).error


def test_v_is_held_to_the_card(script, built, tmp_path):
    """A folder, its vocab.txt, a bare copy of that and tokenizer.json are the same; another vocabulary is not."""
    folder, engine, _ = built(settings={"do_lower_case": True, "strip_accents": False})
    bare, other = tmp_path / "bare" / "words.txt", tmp_path / "other.txt"
    bare.parent.mkdir()
    shutil.copy(folder / "vocab.txt", bare)
    other.write_text(
        (folder / "vocab.txt").read_text(encoding="utf-8").replace("\nthe\n", "\nzzthe\n"), encoding="utf-8"
    )
    saved = tmp_path / "saved.json"
    shutil.copy(EngineCard.tokenizer_path_for(engine), saved)
    for same in (folder, folder / "vocab.txt", bare, saved):
        result = ask(script, engine, "-v", same)
        assert result.code == 0, result.err
    assert "not the one the engine was built with" in ask(script, engine, "-v", other).error
    EngineCard.tokenizer_path_for(engine).unlink()
    for same in (folder, folder / "vocab.txt", saved):
        assert ask(script, engine, "-v", same).code == 0
    assert "not the one the engine was built with" in ask(script, engine, "-v", bare).error


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize(
    "flags, lower, description",
    [
        ((), False, "cased WordPiece, 1500 pieces, guessed from vocab.txt"),
        (("--uncased",), False, "uncased WordPiece, 1500 pieces, from --uncased"),
        (("--cased",), True, "cased WordPiece, 1500 pieces, from --cased"),
        ((), True, "uncased WordPiece, 1500 pieces, guessed from vocab.txt"),
    ],
    ids=range(4),
)
def test_case_on_the_builders(script, built, flags, lower, description):
    folder, engine, result = built(*flags, pieces=folders.word_pieces(lower))
    assert f"Tokenizer: {description}\n" in result.err
    assert ask(script, engine).code == 0
    assert ask(script, engine, "-v", folder).code == 0  # whatever the flags were
    assert ask(script, engine, "--cased").code == 0


def test_both_cases_exclude_each_other(script, tmp_path):
    for name in ("builder.py", "builder_varseqlen.py"):
        result = script(name, "-pt", tmp_path, "-o", tmp_path / "x", "--cased", "--uncased")
        assert result.code == 2 and "not allowed with" in result.error


def test_case_is_not_for_a_byte_level_bpe(script, tmp_path, rng):
    vocab, _ = folders.byte_pairs()
    config = replace(SIZES, vocab_size=len(vocab), type_vocab_size=1)
    folder, bpe = tmp_path / "model", folders.legacy_byte_pairs(tmp_path / "bpe", {})
    write_folder(folder, config, pytorch_state(config, random_weights(config, rng)))
    for path in bpe.iterdir():
        if path.name != "config.json":
            shutil.copy(path, folder)
    engine = tmp_path / "x.engine"
    build = ("builder.py", "-pt", folder, "-o", engine, "-s", 48, "--backend", "openvino")
    result = script(*build, "--cased")
    assert result.code == 2 and "--cased is for WordPiece" in result.error
    result = script(*build)
    assert f"Tokenizer: byte-level BPE, {len(vocab)} pieces, from vocab.json\n" in result.err
    assert ask(script, engine).code == 0
    assert "--cased is for WordPiece" in ask(script, engine, "--cased").error


def test_added_tokens_beyond_the_table(script, built):
    _, engine, result = built(settings={"do_lower_case": True}, added={"[URL]": 1500})
    assert "none for the added tokens [URL]: a text with one of them can't be answered" in result.err
    assert "1500 pieces and 1 added" in result.err
    assert ask(script, engine).code == 0
    refused = ask(script, engine, question=("-p", "See [URL] now.", "-q", "Where?"))
    assert refused.code == 1 and "1500" in refused.error


def test_added_tokens_in_a_resized_table(script, built):
    config = replace(SIZES, vocab_size=1501)
    _, engine, result = built(config=config, settings={"do_lower_case": True}, added={"[URL]": 1500})
    assert "Note:" not in result.err
    assert ask(script, engine, question=("-p", "See [URL] now.", "-q", "Where?")).code == 0


def test_a_longer_table_builds_with_a_note(built):
    _, _, result = built(config=replace(SIZES, vocab_size=1777), settings={})
    assert result.code == 0 and "the model's table has 1777 rows, 277 more than its vocabulary" in result.err


def test_one_row_of_segments(script, built):
    _, engine, _ = built(config=replace(SIZES, type_vocab_size=1), settings={})
    assert ask(script, engine).code == 0


def test_a_control_token_in_a_text_is_said_to_be_text(script, built):
    _, engine, _ = built(settings={})
    result = ask(script, engine, question=("-p", "The [SEP] tower [SEP].", "-q", "What?"))
    assert result.code == 0 and result.err.count("Note: [SEP] in a text is read as text") == 1


def test_a_model_without_a_tokenizer(script, built, tmp_path, rng):
    folder, engine, _ = built(settings={})
    assert EngineCard.tokenizer_path_for(engine).exists()
    for name in ("vocab.txt", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.move(folder / name, tmp_path)
    result = script("builder.py", "-pt", folder, "-o", engine, "-s", 48, "--backend", "openvino")
    assert result.code == 0 and "the engine will need -v to answer" in result.err
    assert not EngineCard.tokenizer_path_for(engine).exists()  # the one of the engine before
    assert EngineCard.read(EngineCard.path_for(engine)).tokenizer_sha256 is None
    assert "name the model's with -v" in ask(script, engine).error
    result = ask(script, engine, "-v", tmp_path / "vocab.txt")
    assert result.code == 0 and "Tokenizer: " in result.err


def test_outputs_may_not_replace_the_tokenizer(script, built, tmp_path):
    folder, engine, _ = built(settings={})
    path = EngineCard.tokenizer_path_for(engine)
    result = script("inference.py", "-e", engine, "-sq", tmp_path / "q.json", "-o", path)
    assert "would replace an input" in result.error
    result = script("builder.py", "-pt", folder, "-o", engine, "-v", path, "--backend", "openvino")
    assert "would replace an input" in result.error
