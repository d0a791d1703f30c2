"""Every family from Hugging Face's folder to an answer, by the scripts: tokenizer, engine, packed, int8, fine-tuning."""

import json
import pickle
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from helpers.answer_options import AnswerOptions
from helpers.answerer import Answerer, engine_tokenizer
from helpers.backends import load_engine
from helpers.bert_config import BertConfig
from tests.checkpoints import megatron_state, tensorflow_state, write_config, write_onnx, write_tensorflow
from tests.conftest import BUNDLED, ROOT
from tests.hugging_face_models import FAMILIES, random_model, save
from tests.reference_bert import random_weights
from tests.test_finetune import finetune  # noqa: F401, a fixture
from tests.tokenizer_folders import (
    legacy_byte_pairs,
    legacy_unigram_json,
    legacy_word_piece,
    unigram_vocabulary,
    word_pieces,
)

DATA = Path(__file__).parent / "data" / "squad_v1.1.json"

PASSAGE = "The tower was built in 1889 by Eiffel's company; its architect was Stephen Sauvestre, of Bonnétable."
QUESTION = "Who built the tower?"

#: float32 against float32 through other kernels, in logits of order one.
TOLERANCE = 1e-3

_UNIGRAM_CLASSES = {
    "albert": "AlbertTokenizer",
    "camembert": "CamembertTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
}

ALL = [model_type for names in FAMILIES.values() for model_type in names]


def tokenizer_folder(model_type: str, folder: Path) -> Path:
    """A tokenizer of the family's own kind, as transformers 4 left it."""
    if model_type == "roberta":
        return legacy_byte_pairs(folder, {})
    if model_type in _UNIGRAM_CLASSES:
        return legacy_unigram_json(
            folder, model_type, _UNIGRAM_CLASSES[model_type], *unigram_vocabulary(model_type), {}
        )
    return legacy_word_piece(folder, word_pieces(), {"do_lower_case": True}, model_type)


@pytest.fixture
def model_folder(tmp_path, rng):
    """`model_folder(model_type)`: a random model with its tokenizer, as transformers 5 saves both; and the two."""
    import transformers

    def make(model_type: str):
        tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_folder(model_type, tmp_path / "tokenizer"))
        wide = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48}
        if model_type != "distilbert":
            names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
            wide = dict(zip(names, wide.values())) | {"layer_norm_eps": 1e-5}
        if model_type in FAMILIES["roberta"]:
            wide |= {"pad_token_id": tokenizer.pad_token_id, "type_vocab_size": 1}
        if model_type in ("albert", "electra"):
            wide["embedding_size"] = 20
        model = random_model(model_type, rng, vocab_size=len(tokenizer), max_position_embeddings=130, **wide)
        folder = save(model, tmp_path / "model")
        tokenizer.save_pretrained(folder)
        return folder, model, tokenizer

    return make


def hugging_face_passage_logits(model, tokenizer) -> np.ndarray:
    """Start and end logits of the passage's tokens, [n, 2], by transformers alone."""
    import torch

    inputs = tokenizer(QUESTION, PASSAGE, return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs)
    logits = torch.stack([output.start_logits, output.end_logits], -1)[0].numpy()
    return logits[[index == 1 for index in inputs.sequence_ids(0)]]


def answerer(path, layout) -> Answerer:
    engine = load_engine(path, layout)
    return Answerer(engine, engine_tokenizer(path, engine.card), AnswerOptions())


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("model_type", ALL)
def test_from_a_saved_folder_to_an_answer(model_type, model_folder, script, tmp_path):
    folder, model, tokenizer = model_folder(model_type)
    wanted = hugging_face_passage_logits(model, tokenizer)
    answers = []
    for layout, suffix in (("padded", ""), ("packed", "_varseqlen")):
        built = tmp_path / layout
        built.mkdir()
        result = script(f"builder{suffix}.py", "-pt", folder, "-o", built / "bert.engine", "-s", 120, "-b", 2)
        assert result.code == 0 and "Tokenizer: " in result.err, result
        moved = tmp_path / f"{layout}_elsewhere"
        shutil.move(built, moved)
        if layout == "packed":
            shutil.rmtree(folder)
        names = {"bert.engine", "bert.engine.json", "bert.engine.tokenizer.json"}
        assert {path.name for path in moved.iterdir()} == names
        engine = moved / "bert.engine"
        answers.append(script(f"inference{suffix}.py", "-e", engine, "-p", PASSAGE, "-q", QUESTION))
        reply = answerer(engine, layout).ask(PASSAGE, QUESTION, with_tokens=True)
        np.testing.assert_allclose(reply.tokens.logits, wanted, atol=TOLERANCE, rtol=0)
        best = reply.answer
        assert best.text == PASSAGE[best.start_char : best.end_char] and f"Answer: '{best.text}'" in answers[-1].out
    assert answers[0].out.splitlines()[5:] == answers[1].out.splitlines()[5:]
    tokenizer_path = moved / "bert.engine.tokenizer.json"
    content = bytearray(tokenizer_path.read_bytes())
    content[len(content) // 2] ^= 1
    tokenizer_path.write_bytes(content)
    refused = script("inference_varseqlen.py", "-e", engine, "-p", PASSAGE, "-q", QUESTION)
    assert refused.code == 1 and "is not the tokenizer that the engine was built with" in refused.error


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("model_type", [names[0] for names in FAMILIES.values()])
def test_int8_by_calibration_stays_near_float(model_type, model_folder, script, tmp_path):
    folder, model, tokenizer = model_folder(model_type)
    wanted = hugging_face_passage_logits(model, tokenizer)
    engine = tmp_path / "int8.engine"
    flags = "-s", 120, "--int8", "-j", DATA, "-n", 20
    result = script("builder.py", "-pt", folder, "-o", engine, *flags)
    assert result.code == 0 and "int8" in result.out, result
    distance = answerer(engine, "padded").ask(PASSAGE, QUESTION, with_tokens=True).tokens.logits - wanted
    # Over eight draws of each family the root mean square was 0.007 to 0.027 of the logits' deviation, BERT's as others'.
    share = np.sqrt((distance**2).mean()) / wanted.std()
    assert 0 < share < 0.1


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("model_type", ALL)
def test_fine_tuning_for_int8_ends_in_a_folder_of_the_family(model_type, model_folder, finetune, script, tmp_path):  # noqa: F811
    import transformers

    folder, model, _ = model_folder(model_type)
    data = json.loads(DATA.read_text())
    data["data"] = data["data"][:1]
    few = tmp_path / "few.json"
    few.write_text(json.dumps(data))
    out = tmp_path / "trained"
    result = finetune("-pt", folder, "-j", few, "-o", out, "--qat", "--epochs", 0.5, "-s", 120, "-b", 4, "-n", 4)
    assert result.code == 0, result
    trained = transformers.AutoModelForQuestionAnswering.from_pretrained(out)
    assert type(trained) is type(model)
    texts = [PASSAGE, QUESTION]
    first, second = (transformers.AutoTokenizer.from_pretrained(path) for path in (folder, out))
    assert first(texts)["input_ids"] == second(texts)["input_ids"]
    for flags in (("-pt", out), ("-x", out / "model_fake_quant.onnx", "-c", out)):
        engine = tmp_path / "qat.engine"
        result = script("builder.py", *flags, "-o", engine, "-s", 120, "--int8")
        assert result.code == 0 and "quantization-aware training" in result.err, result
        assert answerer(engine, "padded").ask(PASSAGE, QUESTION).text


@pytest.mark.parametrize("model_type", ["roberta", "albert"])
def test_the_notebook_shows_their_answers(model_type, model_folder, script, tmp_path):
    from helpers import notebook

    engine = tmp_path / "bert.engine"
    assert script("builder.py", "-pt", model_folder(model_type)[0], "-o", engine, "-s", 120).code == 0
    answered = notebook.ask(notebook.open_engine(engine), PASSAGE, QUESTION)
    assert "<mark" in answered._repr_html_()
    assert all(
        picture.png.startswith(b"\x89PNG") for picture in (answered.runners_up(), answered.token_probabilities())
    )


@pytest.mark.parametrize("padding", [0, 2, 100])
def test_a_padding_id_that_texts_can_have_is_refused(padding, model_folder, script, tmp_path):
    """RoBERTa's positions leave out every token with that id, not the padding alone."""
    folder = model_folder("roberta")[0]
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"pad_token_id": padding}))
    result = script("builder.py", "-pt", folder, "-o", tmp_path / "bert.engine", "-s", 8)
    assert result.code == 1 and f"pad_token_id is {padding}, and the tokenizer's texts can have that id" in result.error


def test_another_kind_of_tokenizer_is_noted(model_folder, script, tmp_path):
    folder = model_folder("bert")[0]
    other = tokenizer_folder("roberta", tmp_path / "roberta")
    result = script("builder.py", "-pt", folder, "-o", tmp_path / "bert.engine", "-v", other / "vocab.json", "-s", 32)
    assert result.code == 0 and "Note: the tokenizer is a BPE, where a bert's usually is a WordPiece" in result.err


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_links_that_lead_nowhere_end_in_one_line(name, model_folder, script, tmp_path):
    folder = model_folder("bert")[0]
    for target in (name, "missing"):
        (folder / name).unlink()
        (folder / name).symlink_to(target)
        assert name in script("builder.py", "-pt", folder, "-o", tmp_path / "bert.engine").error


def regular_expression_that_blows_up(values: dict) -> dict:
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    return values | {"pre_tokenizer": split}


def huge_count(values: dict) -> dict:
    token = {"special": False, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return values | {"added_tokens": [token | {"id": 1 << 60, "content": "x"}]}


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("kind", ["folder", ".safetensors", ".bin", ".onnx"])
@pytest.mark.parametrize("model_type", [names[0] for names in FAMILIES.values()])
def test_what_is_wrong_ends_in_one_line(model_type, kind, model_folder, script, tmp_path):
    import torch

    folder, model, _ = model_folder(model_type)
    flags = ["-pt", folder]
    if kind == ".safetensors":
        flags = ["-pt", folder / "model.safetensors", "-c", folder]
    elif kind == ".bin":
        torch.save(model.state_dict(), tmp_path / "model.bin")
        flags = ["-pt", tmp_path / "model.bin", "-c", folder]
    elif kind == ".onnx":
        segments = model_type != "distilbert"
        flags = ["-x", write_onnx(tmp_path / "x.onnx", model, dynamo=False, segments=segments), "-c", folder]
    engine = tmp_path / "bert.engine"

    def refused() -> str:
        line = script("builder.py", *flags, "-o", engine, "-s", 32).error
        assert not list(tmp_path.glob("bert.engine*"))
        return line

    config, tokenizer = folder / "config.json", folder / "tokenizer.json"
    right, text = config.read_text(), tokenizer.read_text()
    inner = "hidden_dim" if model_type == "distilbert" else "intermediate_size"
    for key, change in ((inner, 3), ("vocab_size", 8), ("max_position_embeddings", -5)):
        config.write_text(json.dumps(json.loads(right) | {key: json.loads(right)[key] + change}))
        assert "misshapen" in refused()
    config.write_text(right)
    for damage in (regular_expression_that_blows_up, huge_count, lambda values: values | {"model": {"type": "BPE"}}):
        tokenizer.write_text(json.dumps(damage(json.loads(text))))
        assert "tokenizer" in refused()
    tokenizer.write_text('{"model":' + "[" * 200_000)
    assert "tokenizer" in refused()
    tokenizer.unlink()
    built = script("builder.py", *flags, "-o", engine, "-s", 32)
    assert built.code == 0 and "Note: no tokenizer in" in built.err
    asked = script("inference.py", "-e", engine, "-p", PASSAGE, "-q", QUESTION)
    assert asked.code == 1 and "name the model's with -v" in asked.error


def test_hugging_face_opens_the_bundled_model():
    import transformers

    model, found = transformers.AutoModelForQuestionAnswering.from_pretrained(BUNDLED, output_loading_info=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(BUNDLED)
    assert not any(found.values()) and len(tokenizer) == model.config.vocab_size
    assert tokenizer("The Tower É")["input_ids"] == tokenizer("the tower e")["input_ids"]


# README's table of checkpoints


def readme_commands() -> list[tuple[str, str]]:
    """(what checkpoint, command) of README's table "Your own checkpoint"."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Your own checkpoint")[2]
    return re.findall(r"^\| (.+?) \| `python3 (.+?)` \|$", section.partition("\n## ")[0], re.M)


COMMANDS = readme_commands()


@pytest.fixture
def checkpoints(model_folder, tmp_path, rng):
    """`checkpoints(what)`: for each checkpoint of a row of the table, what FOLDER and FILE stand for."""

    def files(kinds: list[str], folder, model):
        import torch

        state = model.state_dict()
        for kind in kinds:
            file = tmp_path / f"weights{kind}"
            if kind == ".safetensors":
                shutil.move(folder / "model.safetensors", file)
            else:
                torch.save({"state_dict": state} if kind == ".ckpt" else state, file)
            yield folder, file

    def of_google(write):
        folder = tmp_path / "google"
        folder.mkdir()
        config = BertConfig(32, 2, 2, 48, len(word_pieces()), 128)
        write_config(folder, config)
        (folder / "vocab.txt").write_text("\n".join(word_pieces()) + "\n", encoding="utf-8")
        write(folder, config, random_weights(config, rng))
        return folder, tmp_path / "statedict.pkl"

    def make(what: str):
        if kinds := re.findall(r"`(\.\w+)`", what):
            yield from files(kinds, *model_folder("bert")[:2])
        elif what.startswith("ONNX"):
            folder, model, _ = model_folder("roberta")
            yield folder, write_onnx(tmp_path / "model.onnx", model, dynamo=False)
        elif what.startswith("TensorFlow"):
            yield of_google(lambda folder, *model: write_tensorflow(folder / "model.ckpt", tensorflow_state(*model)))
        elif what.startswith("Megatron"):
            dump = lambda folder, *model: (tmp_path / "statedict.pkl").write_bytes(pickle.dumps(megatron_state(*model)))  # noqa: E731
            yield of_google(dump)
        else:
            for name in re.findall(r"[\w-]*(?:bert|electra)\w*", what.lower()):
                yield model_folder(name)[0], None

    return make


def test_readme_s_table_names_every_family_and_file():
    what = " ".join(what for what, _ in COMMANDS).lower()
    for name in (*ALL, ".safetensors", ".bin", ".pt", ".ckpt", "onnx", "tensorflow", "megatron"):
        assert name in what


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("what, command", COMMANDS, ids=[what[:12].strip() for what, _ in COMMANDS])
def test_readme_s_commands_for_a_checkpoint(what, command, checkpoints, script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    count = 0
    for folder, file in checkpoints(what):
        words = [word.replace("FOLDER", str(folder)).replace("FILE", str(file)) for word in shlex.split(command)]
        result = script(*words)
        assert result.code == 0 and "Tokenizer: " in result.err, result
        layout = "packed" if "varseqlen" in words[0] else "padded"
        asked = script(
            f"inference{'_varseqlen' * (layout == 'packed')}.py", "-e", "own.engine", "-p", PASSAGE, "-q", QUESTION
        )
        assert asked.code == 0 and "Answer: '" in asked.out, asked
        count += 1
    assert count == {"RoBERTa": 3, "`.safet": 4}.get(what[:7], 1)
