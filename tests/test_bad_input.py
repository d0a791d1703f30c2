"""Bad input, script by script: one line on stderr, an exit code, nothing half-written (issue 2's list)."""

import builtins
import io
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from helpers import bert_config, files, tokenizer_files
from helpers.backends import load_engine
from helpers.batching import PaddedBatch
from helpers.engine_card import EngineCard, EngineFacts
from helpers.errors import DemoBertError
from helpers.outputs import write_json
from tests import checkpoints, fuzz_readers, fuzzing
from tests.conftest import BUNDLED
from tests.reference_bert import BertConfig, random_weights
from tests.test_weights import Payload

PASSAGE = "The tower was built in 1889 by Gustave Eiffel's company."
SMALL = BertConfig(48, 2, 3, 64, 101, 16)


@pytest.fixture
def engine(bundled_engine, tmp_path) -> Path:
    """A copy of the bundled engine, with card and tokenizer, free to be damaged."""
    copy = tmp_path / "copy.engine"
    for suffix in ("", ".json", ".tokenizer.json"):
        shutil.copy(f"{bundled_engine}{suffix}", f"{copy}{suffix}")
    return copy


def edit_card(engine, **changes) -> None:
    path = Path(f"{engine}.json")
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value != "REMOVE"}))


def ask(script, engine, *flags, passage=PASSAGE, question="When was the tower built?"):
    return script("inference.py", "-e", engine, "-p", passage, "-q", question, *flags)


# -- engines and cards


def test_the_copy_works(script, engine):
    """What the tests below damage is sound before."""
    result = ask(script, engine)
    assert result.code == 0 and "Answer: '1889'" in result.out, result


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("program", ["inference.py", "perf.py"])
@pytest.mark.parametrize("card", [True, False])
@pytest.mark.parametrize("damage", ["missing", "folder", "empty", "foreign", "truncated", "flipped"])
def test_engine_files(script, engine, damage, card, program):
    content = engine.read_bytes()
    engine.unlink()
    if damage == "folder":
        engine.mkdir()
    elif damage != "missing":
        flipped = bytearray(content)
        flipped[-1000:] = bytes(1000)  # the end of the network's description
        damaged = {
            "empty": b"",
            "foreign": b"ELF, or nearly" * 999,
            "truncated": content[: len(content) // 2],
            "flipped": flipped,
        }
        engine.write_bytes(damaged[damage])
    flags = (
        ["-p", PASSAGE, "-q", "When?", "-v", BUNDLED / "vocab.txt"] if program == "inference.py" else ["-s", 8, "-i", 1]
    )
    if not card:
        Path(f"{engine}.json").unlink()
        flags.append("--trust-engine")
    result = script(program, "-e", engine, *flags)
    message = {
        "missing": "not found",
        "folder": "is not a file",
        "empty": "is empty",
        "foreign": "its card says" if card else "is not an engine of any backend",
        "truncated": "its card says" if card else "is damaged",
        "flipped": "is not the engine that its card describes" if card else "is damaged",
    }
    assert result.code == 1 and engine.name in result.error and message[damage] in result.error


def test_truncated_by_little_without_a_card(script, engine):
    """Nothing but the last closing tags of the network's description is missing; the blob's own reader finds it."""
    engine.write_bytes(engine.read_bytes()[:-20])
    Path(f"{engine}.json").unlink()
    assert "engine" in script("perf.py", "-e", engine, "--trust-engine", "-s", 8, "-i", 1).error


def test_engine_of_another_version(script, engine):
    content = engine.read_bytes()
    version = content[:200].split(b"ov=")[1].split(b";")[0]
    other = version.replace(b"2026", b"2024")
    engine.write_bytes(content.replace(b"ov=" + version, b"ov=" + other, 1))
    Path(f"{engine}.json").unlink()
    assert f"built with OpenVINO {other.decode()}" in script("perf.py", "-e", engine, "--trust-engine", "-i", 1).error


def test_card_of_another_version(script, engine):
    edit_card(engine, backend_version="2024.1.0")
    assert "2024.1.0" in ask(script, engine).error


def test_blob_for_another_cpu(script, engine):
    content = engine.read_bytes()
    Path(f"{engine}.json").unlink()
    for other in (b"isa=Other", b"isa=\xff\xff\xff\xff\xff"):  # the second is not even text
        engine.write_bytes(content.replace(b"isa=Intel", other, 1))
        assert "another CPU" in script("perf.py", "-e", engine, "--trust-engine", "-i", 1).error


def test_somebody_else_s_blob(script, tmp_path):
    import openvino as ov
    from openvino import opset13 as op

    parameter = op.parameter([2], np.float32, name="x")
    blob = ov.Core().compile_model(ov.Model([op.relu(parameter)], [parameter]), "CPU").export_model()
    path = tmp_path / "other.engine"
    path.write_bytes(blob.getvalue())
    assert "not one of builder.py's" in script("perf.py", "-e", path, "--trust-engine", "-i", 1).error


@pytest.mark.parametrize("program", ["inference.py", "perf.py"])
def test_an_engine_without_its_card_is_not_loaded_unless_it_is_trusted(script, engine, program):
    """What is in an engine is run: one that nothing vouches for is not even opened."""
    Path(f"{engine}.json").unlink()
    flags = ["-p", PASSAGE, "-q", "When?"] if program == "inference.py" else ["-s", 8, "-i", 1]
    result = script(program, "-e", engine, *flags)
    assert result.code == 1 and "no engine card" in result.error and "--trust-engine" in result.error
    result = script(program, "-e", engine, *flags, "--trust-engine")
    assert result.code == 0 and "the engine itself tells: openvino, padded, fp32, batch size up to" in result.err


def test_a_card_leaves_nothing_to_trust(script, engine):
    result = ask(script, engine, "--trust-engine")
    assert result.code == 0 and "--trust-engine has no effect" in result.err
    result = ask(script, engine, "-c", BUNDLED)
    assert result.code == 2 and "-c has no effect" in result.error


def test_card_missing_needs_a_vocabulary(script, engine):
    Path(f"{engine}.json").unlink()
    result = ask(script, engine, "--trust-engine")
    assert result.code == 0 and "Answer: '1889'" in result.out
    Path(f"{engine}.tokenizer.json").unlink()
    result = ask(script, engine, "--trust-engine")
    assert result.code == 1 and "-v/--vocab-file" in result.error
    result = ask(script, engine, "--trust-engine", "-v", BUNDLED / "vocab.txt")
    assert result.code == 0 and "Answer: '1889'" in result.out


def test_a_card_without_a_tokenizer_does_not_turn_its_check_off(script, engine):
    """A null in the card says that there was none: not that any will do."""
    edit_card(engine, tokenizer_sha256=None)
    result = ask(script, engine)
    assert result.code == 1 and "built without a tokenizer" in result.error and "-v/--vocab-file" in result.error
    assert ask(script, engine, "-v", BUNDLED / "vocab.txt").code == 0


def test_a_trusted_engine_checks_ids_against_its_own_tables(engine):
    """Ids outside the vocabulary have no row in the table: what they would read is anybody's."""
    config = EngineCard.read(f"{engine}.json").config
    Path(f"{engine}.json").unlink()
    loaded = load_engine(engine, "padded", trust_engine=True)
    assert loaded.card.config == config and loaded.card.precision == ["fp32"]
    for ids, segments in ((config.vocab_size, 0), (-1, 0), (0, config.type_vocab_size)):
        batch = PaddedBatch(*(np.full((1, 4), value, np.int32) for value in (ids, segments, 1)))
        with pytest.raises(DemoBertError, match="id is outside the model's"):
            loaded.run(batch)


def test_what_a_trusted_engine_tells_is_held_against_the_model_named(engine, tmp_path):
    Path(f"{engine}.json").unlink()
    assert load_engine(engine, "padded", trust_engine=True, config_dir=BUNDLED).card.config.vocab_size
    values = json.loads((BUNDLED / "config.json").read_text())
    for table in ("vocab_size", "type_vocab_size", "max_position_embeddings"):
        (tmp_path / "config.json").write_text(json.dumps(values | {table: values[table] + 1}))
        with pytest.raises(DemoBertError, match=f"was built with {table} {values[table]}, the configuration of -c has"):
            load_engine(engine, "padded", trust_engine=True, config_dir=tmp_path)


@pytest.mark.parametrize(
    "name",
    ["bert", "[]", "7", "{}", '{"precision": ["fp32"]}', '{"precision": [], "config": {}}', "[" * 100_000]
    + ['{"precision": ["fp32"], "config": {"vocab_size": 1e999}}', '{"precision": 7, "config": null}'],
)
def test_an_engine_that_does_not_tell_its_tables(name):
    """Another program's engine, an older version's, or a hostile one's."""
    with pytest.raises(DemoBertError, match="does not tell the sizes of its tables; name the folder"):
        EngineFacts.told("x.engine", name, None)
    config = bert_config.BertConfig.from_folder(BUNDLED)
    assert EngineFacts.told("x.engine", name, config) == EngineFacts([], config)


def test_a_blob_without_its_precision_is_refused(script, tmp_path, monkeypatch):
    """In what precision a blob runs is decided where it is loaded: it would be another than it was built with."""
    monkeypatch.setattr(EngineFacts, "network_name", lambda self: "bert")  # as older versions called it
    engine = tmp_path / "older.engine"
    assert script("builder.py", "-pt", BUNDLED, "-o", engine, "-s", 16).code == 0
    assert script("perf.py", "-e", engine, "-s", 8, "-i", 1).code == 0
    Path(f"{engine}.json").unlink()
    result = script("perf.py", "-e", engine, "-s", 8, "-i", 1, "--trust-engine")
    assert result.code == 1 and "name the folder of the model's configuration with -c" in result.error
    result = script("perf.py", "-e", engine, "-s", 8, "-i", 1, "--trust-engine", "-c", BUNDLED)
    assert result.code == 1 and "does not tell in what precision it was built" in result.error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"{", "not JSON (line 1"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"{}", "lacks backend"),
        (b"[" * 100_000, "JSON"),
        (b'{"backend": "openvino"}', "lacks backend_version"),
        (b"1e999", "not a JSON object"),
        (b"[" + b"9" * 9999 + b"]", "JSON that can be read"),  # more digits than Python turns into a number
    ],
    ids=lambda value: value[:12],
)
def test_card_garbled(script, engine, content, message):
    Path(f"{engine}.json").write_bytes(content)
    result = ask(script, engine)
    assert result.code == 1 and "card" in result.error and message in result.error


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("backend", "cuda9000", "no backend 'cuda9000'"),
        ("backend", 3, "backend is not text"),
        ("backend_version", None, "backend_version is not text"),
        ("device", 3, "device is not text"),
        ("layout", ["padded"], "layout is not text"),
        ("layout", "packed", "its card says ('packed'"),
        ("layout", "round", "layout is 'round'"),
        ("network", {}, "network is not text"),
        ("precision", [], "precision is []"),
        ("precision", ["fp4"], "precision is ['fp4']"),
        ("precision", "fp32", "precision is 'fp32'"),
        ("precision", {"fp32": 1}, "precision is {"),
        ("precision", ["int8"], "int8 by its card"),
        ("batch_sizes", [], "batch_sizes is not"),
        ("batch_sizes", [0], "batch_sizes is not"),
        ("batch_sizes", [8, 1], "batch_sizes is not"),
        ("batch_sizes", ["8"], "batch_sizes is not"),
        ("batch_sizes", {"8": 8}, "batch_sizes is not"),
        ("batch_sizes", 8, "batch_sizes is not"),
        ("batch_sizes", [1, 1000], "its card says ('padded', 1000, 384)"),
        ("sequence_lengths", [512], "its card says ('padded', 8, 512)"),
        ("sequence_lengths", [True], "sequence_lengths is not"),
        ("sequence_lengths", [128, 8], "sequence_lengths is not"),
        ("config", {}, "lacks hidden_size"),
        ("config", {"hidden_size": 384}, "lacks num_hidden_layers"),
        ("config", 5, "not a JSON object"),
        ("tokenizer_sha256", "0" * 64, "is not the tokenizer that the engine was built with"),
        ("tokenizer_sha256", 7, "tokenizer_sha256 is not text"),
        ("engine_sha256", "0" * 64, "not the engine that its card describes"),
        ("engine_sha256", None, "engine_sha256 is not text"),
        ("engine_bytes", "many", "engine_bytes is not a whole number"),
        ("engine_bytes", 1, "its card says 1"),
        ("settings", [], "settings is not"),
        ("settings", {"INFERENCE_PRECISION_HINT": 32}, "settings is not"),
        ("device", "REMOVE", "lacks device"),
    ],
)
def test_card_fields(script, engine, field, value, message):
    edit_card(engine, **{field: value})
    result = ask(script, engine)
    assert result.code == 1 and message in result.error


# -- building


def build(script, tmp_path, *flags):
    return script("builder.py", "-o", tmp_path / "new.engine", "--backend", "openvino", *flags)


def assert_nothing_written(tmp_path, before=()):
    assert {path.name for path in tmp_path.iterdir() if "engine" in path.name} == set(before)


@pytest.fixture
def checkpoint(tmp_path, rng):
    """A folder with a small sound checkpoint, and its tensors by their names in the file."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    checkpoints.write_config(folder, SMALL)
    state = checkpoints.pytorch_state(SMALL, random_weights(SMALL, rng))
    checkpoints.write_safetensors(folder / "model.safetensors", state)
    return folder, state


def test_the_checkpoint_works(script, tmp_path, checkpoint):
    result = build(script, tmp_path, "-pt", checkpoint[0], "-s", 16)
    assert result.code == 0, result
    assert_nothing_written(tmp_path, ["new.engine", "new.engine.json"])


WORDS, QUERY = "bert.embeddings.word_embeddings.weight", "bert.encoder.layer.1.attention.self.query.weight"


@pytest.mark.parametrize("fault", ["missing", "extra", "misshapen", "nan", "truncated", "empty", "gone"])
def test_checkpoints(script, tmp_path, checkpoint, fault):
    folder, state = checkpoint
    path = folder / "model.safetensors"
    if fault == "missing":
        del state[QUERY]
    elif fault == "extra":
        state["bert.encoder.layer.2.attention.self.query.weight"] = state[QUERY]
    elif fault == "misshapen":
        state[WORDS] = state[WORDS][:-1].copy()
    elif fault == "nan":
        state[QUERY][3, 4] = np.nan
    checkpoints.write_safetensors(path, state)
    if fault == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif fault == "empty":
        path.write_bytes(b"")
    elif fault == "gone":
        path.unlink()
    (tmp_path / "new.engine").write_text("what was there before")
    result = build(script, tmp_path, "-pt", path, "-c", folder, "-s", 16)
    named = {
        "missing": "l1_attention_self_query_kernel",
        "extra": "l2_attention_self_query_kernel",
        "misshapen": "word_embeddings",
        "nan": "l1_attention_self_query_kernel",
    }
    assert named.get(fault, path.name) in result.error
    assert (tmp_path / "new.engine").read_text() == "what was there before"
    assert_nothing_written(tmp_path, ["new.engine"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": 5}, "multiple"),
        ({"num_hidden_layers": 3}, "l2_"),
        ({"num_hidden_layers": 1}, "extra: l1_"),
        ({"vocab_size": 100}, "word_embeddings"),
        ({"hidden_size": 51}, "shape"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": 1e9}, "hidden_size"),
        ({"hidden_size": "48"}, "hidden_size"),
        ({"hidden_size": 48.0}, "hidden_size"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be"),
        ({"hidden_size": 3 << 14}, "hidden_size must be"),
        ({"num_hidden_layers": 513}, "num_hidden_layers must be"),
        ({"num_attention_heads": 513}, "num_attention_heads must be"),
        ({"intermediate_size": 1 << 17}, "intermediate_size must be"),
        ({"vocab_size": 1 << 22}, "vocab_size must be"),
        ({"max_position_embeddings": 1 << 17}, "max_position_embeddings must be"),
        ({"type_vocab_size": 1 << 11}, "type_vocab_size must be"),
        ({"layer_norm_eps": -1e-12}, "layer_norm_eps"),
        ({"layer_norm_eps": 1.5}, "layer_norm_eps"),
        ({"layer_norm_eps": False}, "layer_norm_eps"),
        ({"layer_norm_eps": "1e-12"}, "layer_norm_eps"),
        ({"gelu": "quick"}, "gelu must be"),
        ({"do_lower_case": "yes"}, "do_lower_case must be"),
        ({"hidden_act": "relu"}, "relu"),
        ({"hidden_act": ["gelu"]}, "hidden_act"),
        ({"position_embedding_type": "relative_key"}, "absolute"),
    ],
)
def test_configurations(script, tmp_path, checkpoint, change, message):
    path = checkpoint[0] / "bert_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    result = build(script, tmp_path, "-pt", checkpoint[0], "-s", 16)
    assert message in result.error and checkpoint[0].name in result.error
    assert_nothing_written(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "JSON"), ("[]", "object"), ("{}", "lacks hidden_size"), (None, "no bert_config.json")],
)
def test_configuration_files(script, tmp_path, checkpoint, content, message):
    path = checkpoint[0] / "bert_config.json"
    path.unlink() if content is None else path.write_text(content)
    error = build(script, tmp_path, "-pt", checkpoint[0], "-s", 16).error
    assert message in error and str(checkpoint[0]) in error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("-b", "0"), "'0' is not a whole number"),
        (("-b", "1.5"), "'1.5' is not"),
        (("-s", "0"), "'0' is not a whole number"),
        (("-s", "-3"), "'-3'"),
        (("-s", "17"), "max_position_embeddings, 16"),
        (("-s", "1000000"), "max_position_embeddings, 16"),
        (("-s", "16", "--fp8"), "--fp8 takes an NVIDIA GPU and a native TensorRT network"),
        (("-s", "16", "--int8", "--fp8"), "exclude"),
        (("-s", "16", "--network", "native"), "--network native"),
        (("-s", "16", "-m", "model.ckpt"), "-m and -pt"),
        (("-s", "16", "--use-v3-plugins", "--use-deprecated-plugins"), "not allowed with"),
        (("-s", "16", "--unknown"), "--unknown"),
        (("-s", "16", "--output-fil", "x"), "--output-fil"),
    ],
)
def test_builder_arguments(script, tmp_path, checkpoint, flags, message):
    result = build(script, tmp_path, "-pt", checkpoint[0], *flags)
    assert result.code == 2 and message in result.error
    assert_nothing_written(tmp_path)


def test_builder_needs_a_checkpoint(script, tmp_path):
    assert "-m, -x or -pt" in build(script, tmp_path).error
    assert "--config-dir" in build(script, tmp_path, "-x", "model.onnx").error
    assert "does not exist: /nowhere" in build(script, tmp_path, "-pt", "/nowhere").error


def test_no_output_replaces_an_input(script, engine, tmp_path, checkpoint):
    folder, _ = checkpoint
    weights, squad, card = folder / "model.safetensors", tmp_path / "squad.json", Path(f"{engine}.json")
    shutil.copy(Path(__file__).parent / "data" / "squad_v1.1.json", squad)
    before = {path: path.read_bytes() for path in (weights, squad, card, engine)}
    for arguments in (
        ("builder.py", "-pt", folder, "-o", weights, "-s", 16),
        ("builder.py", "-pt", weights, "-o", weights, "-s", 16),
        ("inference.py", "-e", engine, "-sq", squad, "-o", squad),
        ("inference.py", "-e", engine, "-sq", squad, "-o", tmp_path / "a", "--n-best-output", tmp_path / "a"),
        ("inference.py", "-e", engine, "-sq", squad, "-o", card),
        ("perf.py", "-e", engine, "-s", 8, "-i", 1, "--json", card),
    ):
        assert "would replace" in script(*arguments).error
    assert before == {path: path.read_bytes() for path in before}


def unwritable_folder() -> str:
    """A folder that not even root can write into; tests often run as root."""
    return "/proc/self" if os.geteuid() == 0 else "/"


@pytest.mark.parametrize("place", ["nowhere", "unwritable", "folder"])
def test_outputs_that_can_not_be_written(script, tmp_path, checkpoint, bundled_engine, place):
    """Said of every output flag before anything is read or run."""
    path, message = {
        "nowhere": ("/nowhere/at/all/x", "mkdir -p /nowhere/at/all"),
        "unwritable": (f"{unwritable_folder()}/x", "can't write into"),
        "folder": (tmp_path, "is a folder"),
    }[place]
    result = script("builder.py", "-pt", checkpoint[0], "-s", 16, "-o", path, "--backend", "openvino")
    assert result.code == 1 and message in result.error and "Reading" not in result.err
    squad = Path(__file__).parent / "data" / "squad_v1.1.json"
    sound = ["-o", tmp_path / "p.json"]
    for flag in ("--output-prediction-file", "--n-best-output", "--null-odds-output"):
        result = script("inference.py", "-e", bundled_engine, "-sq", squad, *sound, flag, path)
        assert result.code == 1 and message in result.error and flag in result.error
    for flag in ("--json", "--plot"):
        result = script("perf.py", "-e", bundled_engine, "-i", 1, flag, path)
        assert result.code == 1 and message in result.error and "OpenVINO" not in result.err
    assert {entry.name for entry in tmp_path.iterdir()} == {"checkpoint"}


def test_a_folder_that_can_not_be_written_any_more(tmp_path, monkeypatch):
    """Between the check and the writing, the disk may fill: simulated."""

    def no_space(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "mkstemp", no_space)
    with pytest.raises(DemoBertError, match="can't write .*x.json: No space left"):
        write_json(tmp_path / "x.json", {})


def test_a_build_that_dies_leaves_what_was_there(script, tmp_path, checkpoint, monkeypatch):
    """The disk fills while the engine is written: simulated by an fsync that fails."""
    (tmp_path / "new.engine").write_text("before")

    def no_space(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    assert "No space left" in build(script, tmp_path, "-pt", checkpoint[0], "-s", 16).error
    assert (tmp_path / "new.engine").read_text() == "before"
    assert_nothing_written(tmp_path, ["new.engine"])


def test_a_pickle_that_runs_code_does_not(script, tmp_path, checkpoint):
    import torch

    marker = tmp_path / "ran"
    torch.save({"model": Payload(marker)}, tmp_path / "hostile.pt")
    result = build(script, tmp_path, "-pt", tmp_path / "hostile.pt", "-c", checkpoint[0], "-s", 16)
    assert result.code == 1 and "hostile.pt" in result.error and not marker.exists()
    assert_nothing_written(tmp_path)


def test_onnx_external_data_outside_its_folder(script, tmp_path, checkpoint, rng):
    import onnx

    model = checkpoints.hugging_face_model(SMALL, random_weights(SMALL, rng))
    path = checkpoints.write_onnx(tmp_path / "model.onnx", model, dynamo=False)
    (tmp_path / "secret").write_bytes(bytes(SMALL.vocab_size * SMALL.hidden_size * 4))
    proto = onnx.load(path)
    tensor = next(tensor for tensor in proto.graph.initializer if "word_embeddings" in tensor.name)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "model.onnx").write_bytes(proto.SerializeToString())
    result = build(script, tmp_path, "-x", inside / "model.onnx", "-c", checkpoint[0], "-s", 16)
    assert result.code == 1 and "outside" in result.error
    assert_nothing_written(tmp_path)


# -- vocabularies


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[PAD]\n[CLS]\n[SEP]\nthe\n", "lacks [UNK]"),
        ("[UNK]\n[SEP]\n", "lacks [CLS]"),
        ("[UNK]\n[CLS]\n", "lacks [SEP]"),
        ("[UNK]\n[CLS]\n[SEP]\nthe\n", "SHA-256"),
        ("", "empty"),
        (b"\xff\xfe", "UTF-8"),
        (None, "not found"),
    ],
)
def test_vocabularies(script, engine, tmp_path, content, message):
    path = tmp_path / "vocab.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    result = ask(script, engine, "-v", path)
    assert result.code == 1 and message in result.error


def test_vocabulary_of_another_size(script, engine, tmp_path, checkpoint):
    path = tmp_path / "vocab.txt"
    path.write_text("[UNK]\n[CLS]\n[SEP]\n" + "".join(f"{number}\n" for number in range(99)))
    result = build(script, tmp_path, "-pt", checkpoint[0], "-s", 16, "-v", path)
    assert "has 102 pieces, the model 101" in result.error
    path.write_text("[UNK]\n[CLS]\n[SEP]\n" + "".join(f"{number}\n" for number in range(30520)))
    edit_card(engine, tokenizer_sha256=None)
    Path(f"{engine}.tokenizer.json").unlink()
    assert "has 30523 pieces, the model 30522" in ask(script, engine, "-v", path).error


def test_a_vocabulary_of_too_many_lines(script, engine, monkeypatch):
    monkeypatch.setattr(tokenizer_files, "MAX_PIECES", 30521)
    assert "more than 30521 lines" in ask(script, engine, "-v", BUNDLED / "vocab.txt").error


# -- text


@pytest.mark.parametrize("suffix", ["", ".json", ".tokenizer.json"])
def test_files_that_may_not_be_read(script, engine, monkeypatch, suffix):
    """Simulated: root, as whom tests often run, may read everything."""
    path = Path(f"{engine}{suffix}")

    def forbidding(opened):
        def forbidden(file, *arguments, **options):
            if str(file) == str(path):
                raise PermissionError(13, "Permission denied")
            return opened(file, *arguments, **options)

        return forbidden

    monkeypatch.setattr(builtins, "open", forbidding(open))
    monkeypatch.setattr(Path, "open", forbidding(Path.open))
    error = ask(script, engine).error
    assert "Permission denied" in error and path.name in error


def test_text_files_that_can_not_be_read(script, engine, tmp_path, monkeypatch):
    path = tmp_path / "text"
    path.write_text(PASSAGE)
    monkeypatch.setattr(files, "MAX_TEXT_BYTES", 3 << 20)  # the bundled vocabulary is smaller, and is read first

    def asked():
        return script("inference.py", "-e", engine, "-pf", path, "-q", "When?")

    assert asked().code == 0
    os.truncate(path, (3 << 20) + 1)
    assert "larger than 3 MiB" in asked().error
    os.truncate(path, 20)
    opened = Path.open

    def damaged(self, *arguments, **options):
        if self == path and "encoding" in options:
            raise OSError(5, "Input/output error")
        return opened(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", damaged)
    assert "Input/output error" in asked().error


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("text", ["", " ", "\n\t \u3000", "\0", "\0\x01\u200b"])
def test_text_with_nothing_in_it(script, engine, text):
    assert "the passage" in ask(script, engine, passage=text).error
    assert "the question" in ask(script, engine, question=text).error


def test_text_that_is_not_utf8(script, engine, tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"caf\xe9")
    assert "UTF-8" in script("inference.py", "-e", engine, "-pf", path, "-q", "What?").error
    assert "UTF-8" in script("inference.py", "-e", engine, "-p", PASSAGE, "-qf", path).error
    assert "UTF-8" in ask(script, engine, passage="caf\udce9").error  # as argv holds it
    assert "UTF-8" in ask(script, engine, question="caf\udce9").error
    assert "not found" in script("inference.py", "-e", engine, "-pf", tmp_path / "none", "-q", "What?").error


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("filler", ["\0", "😀 ", "東京タワー ", "e\u0301 ", "\x1b[31m", "\u202e"])
def test_text_that_is_hard_is_answered(script, engine, filler):
    passage = filler * 5 + PASSAGE + filler * 5
    result = ask(script, engine, passage=passage, question=filler + "When was the tower built?")
    assert result.code == 0 and "Answer: '1889'" in result.out
    assert "\x1b" not in result.out and "\0" not in result.out


def test_an_answer_drives_no_terminal(script, engine):
    """The answer is an exact slice of the passage, whatever is in it; what is printed of it is harmless."""
    passage = PASSAGE.replace("Gustave Eiffel", "Gustave \x1b\n\0Eiffel")
    result = ask(script, engine, passage=passage, question="Who built the tower?")
    assert "Answer: 'Gustave    Eiffel" in result.out and "\x1b" not in result.out and "\0" not in result.out


def test_a_megabyte_of_text(script, engine, tmp_path):
    """Read, cut into windows and answered; the question as long as the passage is cut to --max-query-length."""
    path = tmp_path / "passage"
    # Words of over 100 letters are one token each ([UNK]): a megabyte of words that are short takes minutes.
    path.write_text(("long " * 4 + "o" * 480 + " ") * 2000 + ". " + PASSAGE)
    result = script("inference.py", "-e", engine, "-pf", path, "-q", "When was the tower built?", "-s", 128, "-b", 8)
    assert result.code == 0 and "Answer: '1889'" in result.out
    path.write_text("When was the tower built? " + "word " * 200_000)
    result = script("inference.py", "-e", engine, "-p", PASSAGE, "-qf", path)
    assert result.code == 0 and "Answer: " in result.out


def test_question_longer_than_the_window(script, engine):
    result = ask(script, engine, "-s", 20, question="word " * 40)
    assert result.code == 2 and "--max-query-length" in result.error
    assert ask(script, engine, "-s", 20, "--max-query-length", 10, question="word " * 40).code == 0


def typed(monkeypatch, text: bytes, terminal: bool = False):
    stdin = io.TextIOWrapper(io.BytesIO(text), "utf-8")
    stdin.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stdin", stdin)


def test_typed_questions(script, engine, monkeypatch):
    questions = "\n".join(["When was the tower built?", "", "Who built it?", "quit", "not asked"])
    typed(monkeypatch, questions.encode())
    result = script("inference.py", "-e", engine, "-p", PASSAGE)
    assert result.code == 0 and result.out.count("Answer: ") == 2 and "Answer: '1889'" in result.out
    assert result.out.count("Passage: ") == 1
    assert "the question is empty" in result.err and "not asked" not in result.out
    typed(monkeypatch, b"")
    assert script("inference.py", "-e", engine, "-p", PASSAGE).code == 0  # end of input, not an error
    typed(monkeypatch, b"caf\xe9\n")
    assert "what was typed is not UTF-8" in script("inference.py", "-e", engine, "-p", PASSAGE).error


def test_a_pasted_passage_ends_with_a_blank_line(script, engine, monkeypatch):
    lines = [
        "",
        "Berta Roe, a smith, lived in Linz.",
        PASSAGE,
        " ",
        "When was the tower built?",
        "Where did Berta Roe live?",
    ]
    typed(monkeypatch, "\n".join(lines).encode(), terminal=True)
    result = script("inference.py", "-e", engine)
    assert result.code == 0 and "Answer: '1889'" in result.out and "Answer: 'Linz'" in result.out
    assert f"Passage: {lines[1]} {lines[2]}\n" in result.out
    typed(monkeypatch, b"", terminal=True)
    assert script("inference.py", "-e", engine).code == 0


@pytest.mark.parametrize("flags", [(), ("-pf", "-")])
def test_what_is_piped_in_is_one_document(script, engine, monkeypatch, flags):
    document = f"Of towers.\n\n{PASSAGE}\n\nThe end.\n"
    typed(monkeypatch, b"\xef\xbb\xbf" + document.encode())
    result = script("inference.py", "-e", engine, *flags, "-q", "When was the tower built?", "--json", "-")
    (reply,) = [json.loads(line) for line in result.out.splitlines()]
    assert reply["answer"] == "1889" == document[reply["start_char"] : reply["end_char"]]
    typed(monkeypatch, document.encode())
    for more in ((), ("-qf", "-")):
        refused = script("inference.py", "-e", engine, *flags, *more)
        assert refused.code == 2 and "stdin" in refused.error or "piped in" in refused.error
    typed(monkeypatch, b"caf\xe9\n")
    assert "not UTF-8" in script("inference.py", "-e", engine, *flags, "-q", "x").error


# -- SQuAD files


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty"),
        ("{", "not JSON (line 1"),
        ("[1, 2]", "SQuAD"),
        ('{"data": 3}', "SQuAD"),
        ('{"data": []}', "SQuAD"),
        (
            '{"data": [{"paragraphs": [{"context": "a b", "qas": ['
            '{"id": "1", "question": "a?", "answers": []}, {"id": "1", "question": "b?", "answers": []}]}]}]}',
            "twice",
        ),
        ("[" * 100_000, "JSON"),
    ],
)
def test_squad_files(script, engine, tmp_path, content, message):
    squad, predictions = tmp_path / "squad.json", tmp_path / "predictions.json"
    squad.write_text(content)
    predictions.write_text("what was there before")
    result = script("inference.py", "-e", engine, "-sq", squad, "-o", predictions)
    assert result.code == 1 and message in result.error
    assert predictions.read_text() == "what was there before"


# -- sizes and flags of inference.py and perf.py

WINDOW_FLAGS = ("--max-query-length", "--max-answer-length", "--n-best-size", "--doc-stride")


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("-b", "0"), "'0' is not a whole number"),
        (("-s", "0"), "'0' is not a whole number"),
        (("-b", "9"), "batch size 9"),
        (("-s", "1000000"), "1000000"),
        (("--null-score-diff-threshold", "nan"), "'nan'"),
        (("--n-best-output", "x"), "-sq"),
        (("-o", "x"), "-sq"),
        (("--null-odds-output", "x"), "-sq"),
        (("-pf", "x"), "-p or with -pf"),
        (("-qf", "x"), "-q or with -qf"),
        *(((flag, "0"), "'0' is not a whole number") for flag in WINDOW_FLAGS),
        (("--nonsense",), "--nonsense"),
    ],
)
def test_inference_arguments(script, engine, flags, message):
    result = ask(script, engine, *flags)
    assert result.code == 2 and message in result.error


@pytest.mark.parametrize("flag", ["-p", "-pf", "-q", "-qf"])
def test_a_squad_file_excludes_other_text(script, engine, flag):
    result = script("inference.py", "-e", engine, "-sq", "x", flag, "y")
    assert result.code == 2 and "leave it out" in result.error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("-b", "0"), "'0' is not a whole number"),
        (("-b", "9"), "batch size 9"),
        (("-s", "0"), "'0' is not a whole number"),
        (("-s", "1000000"), "sequence length 1000000"),
        (("-i", "0"), "'0' is not a whole number"),
        (("-w", "-1"), "'-1' is not a whole number"),
        (("-r", "-1"), "'-1' is not a whole number"),
        (("-r", "many"), "'many' is not a whole number"),
        (("-d", "nan"), "'nan' is not a number of seconds"),
        (("-d", "-1"), "'-1' is not a number of seconds"),
        (("-x",), "-x"),
    ],
)
def test_perf_arguments(script, engine, flags, message):
    result = script("perf.py", "-e", engine, "-i", 1, *flags)
    assert message in result.error and "Running" not in result.out


@pytest.mark.parametrize("program", ["inference.py", "perf.py"])
def test_errors_are_one_line_that_drives_no_terminal(script, program):
    error = script(program, "-e", "no\nsuch\x1b[31m\rengine").error
    assert "no such [31m engine" in error and "\x1b" not in error and "\r" not in error


@pytest.mark.parametrize("program", ["builder.py", "inference.py", "perf.py"])
def test_help_explains_every_flag(script, program):
    result = script(program, "-h")
    assert result.code == 0 and "--verbose" in result.out


def test_verbose_shows_the_traceback(script, tmp_path):
    result = script("perf.py", "-e", tmp_path / "none", "--verbose")
    assert result.code == 1 and "Traceback" in result.err


def test_ctrl_c_ends_quietly(script, engine, monkeypatch):
    from helpers.backends.openvino.engine import OpenVINOEngine

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(OpenVINOEngine, "timed_run", interrupted)
    result = script("perf.py", "-e", engine, "-i", 1, "-s", 8)
    assert result.code == 130 and "Traceback" not in result.err


def test_too_little_memory_is_one_line(script, engine, monkeypatch):
    from helpers.backends.openvino.engine import OpenVINOEngine

    def no_memory(*_):
        raise MemoryError

    monkeypatch.setattr(OpenVINOEngine, "timed_run", no_memory)
    assert "not enough memory" in script("perf.py", "-e", engine, "-i", 1, "-s", 8).error


#: Kinds of files whose seeds are written in a moment: without TensorFlow, and without torch's exporter.
QUICK = ("safetensors", "shards", "pickled", "legacy", "megatron", "config", "cache", "engine", "cardless", "run")
QUICK += ("squad", "squad2", "predictions", "csv", "jsonl", "journal", "pending")


def test_every_reader_reads_or_refuses_what_is_damaged(rng, tmp_path):
    """100,000 rounds and more, of all kinds: bash scripts/fuzz.sh 600"""
    seeds, first = fuzz_readers.write_seeds(QUICK, tmp_path), int(rng.integers(1 << 32))
    outcomes = fuzzing.run_rounds(first, 200, seeds, fuzz_readers.one_round)
    assert not set(outcomes) & set(fuzzing.FAULTS) and len(outcomes) > 20, outcomes


def test_the_readers_fuzzer_finds_what_is_wrong(monkeypatch, tmp_path):
    """A traceback, and an engine that is loaded although nothing vouches for it."""
    seeds = fuzz_readers.write_seeds(("cardless",), tmp_path)
    for broken, outcome in ((lambda *_: None, "wrong"), (lambda *_: 1 / 0, "tracebacks")):
        monkeypatch.setattr(fuzz_readers, "load_engine", broken)
        assert outcome in fuzzing.run_rounds(0, 3, seeds, fuzz_readers.one_round), outcome
