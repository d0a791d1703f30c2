"""scripts/benchmarks, but for the grid: entry points, turns, tables, Hugging Face's recipe. Nothing is timed."""

import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from helpers.bert_config import BertConfig
from helpers.errors import DemoBertError
from helpers.squad import read_squad
from scripts import benchmark_peers
from scripts.benchmarks import hugging_face, latency, packing, peers, pruned, stride, throughput
from scripts.benchmarks.project_engines import build_engine_file
from scripts.benchmarks.turns import turns
from tests.checkpoints import pytorch_state, write_folder
from tests.conftest import BUNDLED, ROOT
from tests.reference_bert import random_weights

SQUAD = ROOT / "tests" / "data" / "squad_v1.1.json"


@pytest.mark.parametrize(
    "name", ["benchmark_peers", "benchmark_packing", "benchmark_stride", "benchmark_pruning", "benchmark_cpp"]
)
def test_commands_are_run_by_their_paths_from_anywhere(name, tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), "-h"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0 and result.stdout.startswith(f"usage: {name}.py "), result
    module = importlib.import_module(f"scripts.{name}")
    assert callable(module.parse) and callable(module.main)


def test_all_take_their_turn_in_every_round(rng):
    ways = {f"way {number}": None for number in range(int(rng.integers(1, 6)))}
    taken = list(turns(ways, 4, pause=0))
    for number in range(4):
        assert sorted(name for round_, name in taken if round_ == number) == sorted(ways)
    assert [number for number, _ in taken] == sorted(number for number, _ in taken)


def test_what_is_deleted_has_no_more_turns():
    ways = {"good": None, "bad": None}
    taken = []
    for number, name in turns(ways, 3, pause=0):
        taken.append((number, name))
        if name == "bad":
            del ways["bad"]
    assert sorted(taken) == [(0, "bad"), (0, "good"), (1, "good"), (2, "good")]


def test_latency_is_compared_at_equal_precision(capsys):
    ours = {f"this engine, {form}": [ms] for form, ms in (("fp32", 8.0), ("bf16", 4.0), ("int8", 2.0))}
    peers = {"Hugging Face SDPA, bf16": [16.0, 4.0, 8.0], "ONNX Runtime, dynamic int8": [1.0]}
    rows = {row["engine"]: row for row in latency.print_table(ours | peers, 1, 128)}
    assert rows["Hugging Face SDPA, bf16"]["ratio"] == 0.5 and rows["Hugging Face SDPA, bf16"]["median_ms"] == 8
    assert rows["ONNX Runtime, dynamic int8"]["ratio"] == 2 and rows["this engine, fp32"]["ratio"] is None
    printed = capsys.readouterr().out
    assert "| Hugging Face SDPA, bf16        |      8.00 |              4.40 |                  0.50 × |" in printed
    assert "int8 takes 0.50 × this engine's bf16, 0.25 × its fp32" in printed


def test_words_that_fit_no_peer_are_refused(monkeypatch):
    sides = {"this engine, fp32": None, "NNCF, int8": None}
    monkeypatch.setattr(throughput, "engine_sides", lambda *_: sides)
    monkeypatch.setattr(throughput, "torch_sides", lambda *_: {})
    args = SimpleNamespace(squad=SQUAD, questions=2, peers=["onnx", "jax"], rounds=1)
    with pytest.raises(DemoBertError, match="--peers onnx jax names none of: this engine, fp32; NNCF, int8"):
        throughput.measure_throughput(args, None, None, Path("model"), 64)


@pytest.mark.parametrize(
    "squad, said", [([], ["rounds without", "questions without"]), (["--squad", "x"], ["iterations with"])]
)
def test_flags_of_the_other_benchmark_are_said_to_have_no_effect(squad, said, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(peers, "benchmark", asked.append)
    benchmark_peers.main([*squad, "-i", "4", "--rounds", "2", "--questions", "9"])
    assert [line for line in capsys.readouterr().err.splitlines() if "Note" in line] == [
        f"Note: --{flag} --squad".replace(" with", " has no effect with") for flag in said
    ]
    assert (asked[0].iterations, asked[0].rounds) == (4, 2)
    benchmark_peers.main(squad)
    assert (asked[1].iterations, asked[1].rounds) == (30, 3) and "Note" not in capsys.readouterr().err


def test_throughput_is_compared_at_equal_precision(capsys):
    seconds = {"this engine, bf16": [2.0, 1.0, 9.0], "Hugging Face, bf16": [8.0], "Hugging Face, fp32": [16.0]}
    report = throughput.print_table(seconds, dict.fromkeys(seconds, 90.0), 100)
    assert [row["questions_per_second"] for row in report["rows"]] == [50, 12.5, 6.25]
    assert [row["ratio"] for row in report["rows"]] == [None, 4, None]  # nothing of ours in fp32 was run
    assert "| Hugging Face, bf16     |       12.50 | 90.00 |     4.00 × as fast |" in capsys.readouterr().out


def test_packing_is_held_to_the_best_that_is_filled(capsys):
    seconds = {"filled, -b 1": [4.0], "filled, -b 8": [2.0], "packed, -b 1": [0.5]}
    rows = packing.print_table(seconds, dict.fromkeys(seconds, 80.0), 10, 1000)
    assert [row["times_filled"] for row in rows] == [0.5, 1, 4]
    assert "| packed, -b 1   |       20.00 |     2000 | 80.00 |     4.00 |" in capsys.readouterr().out


def test_joined_paragraphs_keep_each_answer_at_its_place(rng, tmp_path):
    data = read_squad(SQUAD)
    passages = {example.paragraph: example.passage for example in data.examples}
    lengths = {paragraph: int(rng.integers(1, 100)) for paragraph in passages}
    for tokens in (0, int(rng.integers(1, sum(lengths.values()) + 50))):
        documents = stride.joined(data, lengths, tokens)
        stride.write_squad(tmp_path / "documents.json", documents)
        documents = read_squad(tmp_path / "documents.json")
        assert [example.question_id for example in documents.examples] == [e.question_id for e in data.examples]
        for example, before in zip(documents.examples, data.examples):
            assert before.passage in example.passage and example.answers == before.answers
            for text, start in zip(example.answers, example.answer_starts):
                assert example.passage[start : start + len(text)] == text
        texts = list({example.paragraph: example.passage for example in documents.examples}.values())
        assert "\n\n".join(texts) == "\n\n".join(passages.values())
        sizes = [sum(lengths[part] for part in passages if passages[part] in text) for text in texts]
        assert len(texts) == len(passages) if tokens == 0 else len(texts) == 1 or min(sizes) >= tokens


def test_questions_are_spread_evenly():
    data = read_squad(SQUAD)
    assert stride.spread(data, None) == stride.spread(data, 1000) == data
    assert stride.spread(data, 2).examples == [data.examples[0], data.examples[len(data.examples) // 2]]


@pytest.mark.sampled(0.4, group="slow")
def test_strides_are_held_against_the_first(tmp_path, capsys):
    """A document of some windows, answered by inference.py itself."""
    figures = tmp_path / "figures.json"
    flags = ["--squad", SQUAD, "--tokens", 100, "--doc-stride", 16, "--doc-stride", 384, "--questions", 4]
    engine = tmp_path / "short.engine"
    build_engine_file(BUNDLED, engine, "padded", 8, 64, half=False)
    stride.main([*map(str, flags), "-e", str(engine), "--json", str(figures)])
    (table,) = json.loads(figures.read_text())["tables"]
    first, second = table["rows"]
    assert (table["documents"], table["questions"], first["stride"], second["stride"]) == (1, 4, 16, 384)
    assert first["windows"] > second["windows"] > 4
    assert first["tokens_computed_per_token"] > second["tokens_computed_per_token"] > 1
    assert first["f1_less_first"] == first["standard_error"] == 0
    assert second["f1_less_first"] == pytest.approx(second["f1"] - first["f1"])
    printed = capsys.readouterr().out
    assert "4 questions, 1 documents of 118 tokens on average" in printed and "|    384 |" in printed


def test_a_difference_has_its_standard_error():
    mean, error = stride.difference([1.0, 0.5, 0.0, 0.5], [0.0, 0.5, 0.0, 0.5])
    assert mean == 25 and error == pytest.approx(25)
    assert stride.difference([1.0], [0.0]) == (100, 0)


def test_strides_need_gold_answers_and_an_engine(tmp_path, script):
    result = script("scripts.benchmark_stride", "--squad", ROOT / "tests" / "data" / "squad_v2.0.json")
    assert "has no gold answer: give a SQuAD v1.1 file" in result.error and result.code == 1
    result = script("scripts.benchmark_stride", "--squad", SQUAD, "-e", tmp_path / "none.engine")
    assert "engine card not found" in result.error and result.code == 1


def test_f1_is_squad_s():
    data = read_squad(SQUAD)
    golds = {example.question_id: example.answers[0] for example in data.examples}
    assert throughput.mean_f1(golds, data) == 100
    wrong = golds | {data.examples[0].question_id: ""}
    assert throughput.mean_f1(wrong, data) == pytest.approx(100 * (1 - 1 / len(data.examples)))


def test_the_best_span_is_in_the_passage_in_order_and_short(rng):
    size = 60
    starts, ends = rng.permutation(size).astype(np.float32), rng.permutation(size).astype(np.float32)
    in_passage = [bool(place >= 10) for place in range(size)]
    score, start, end = hugging_face._best_span(starts, ends, in_passage)
    allowed = [
        starts[first] + ends[last]
        for first in range(10, size)
        for last in range(first, min(first + hugging_face.MAX_ANSWER_LENGTH, size))
        if starts[first] >= size - hugging_face.N_BEST and ends[last] >= size - hugging_face.N_BEST
    ]
    assert score == max(allowed, default=-np.inf)
    assert not allowed or (score == starts[start] + ends[end] and 10 <= start <= end < start + 30)


def test_hugging_face_s_recipe_answers_in_short_windows():
    """Of 128 tokens, the overlap of its default would take all."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    data = read_squad(SQUAD)
    answers = hugging_face.answer_squad(hugging_face.load(BUNDLED), BUNDLED / "vocab.txt", data, length=128)
    assert throughput.mean_f1(answers, data) > 80


@pytest.mark.sampled(0.4, group="slow")
def test_pruned_models_are_held_to_the_whole_one(tmp_path, script, rng, capsys):
    """Two small random models, one of them with fewer heads and columns: their sizes, FLOPs and times' shares."""
    vocabulary = (BUNDLED / "vocab.txt").read_text(encoding="utf-8")
    whole = BertConfig(48, 2, 3, 128, len(vocabulary.splitlines()), 64)
    small = replace(whole, num_attention_heads_per_layer=(2, 1), intermediate_size_per_layer=(128, 64))
    folders = []
    for name, config in (("whole", whole), ("small", small)):
        folders.append(write_folder(tmp_path / name, config, pytorch_state(config, random_weights(config, rng))))
        (folders[-1] / "vocab.txt").write_text(vocabulary, encoding="utf-8")
    figures, picture = tmp_path / "figures.json", tmp_path / "picture.png"
    flags = ["--squad", SQUAD, "--calibration", SQUAD, "-s", 24, "-s", 32, "-i", 2, "--json", figures]
    result = script("scripts.benchmark_pruning", *folders, *flags, "--picture", picture)
    assert result.code == 0, result.err
    rows = json.loads(figures.read_text())["rows"]
    assert [(row["model"], row["form"], row["heads"], row["columns"]) for row in rows] == [
        *(("whole", form, 6, 256) for form in pruned.FORMS),
        *(("small", form, 3, 192) for form in pruned.FORMS),
    ]
    per_head, per_column = 8 * 48 * 16 + 4 * 32 * 16, 4 * 48
    speed = (6 * per_head + 256 * per_column) / (3 * per_head + 192 * per_column)
    assert [row["speed"] for row in rows] == pytest.approx([1, 1, speed, speed])
    assert all(
        row["share"][length] == row["ms"][length] / rows[i % 2]["ms"][length]
        for i, row in enumerate(rows)
        for length in ("24", "32")
    )
    assert picture.read_bytes().startswith(b"\x89PNG") and "| small | 1 / " in result.out
    assert "| ONNX Runtime, dynamic int8 | | | | | | 9.00 | |" in pruned.table(rows, {"24": 9.0, "32": 8.0})
