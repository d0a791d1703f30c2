"""What the scripts do when all is well: from a checkpoint to an answer, to F1, to a latency table."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers.answer_options import AnswerOptions
from helpers.answerer import Answerer
from helpers.backends import load_engine
from helpers.backends.base import Engine
from helpers.batching import PaddedBatch
from helpers.bert_config import BertConfig
from helpers.files import read_json
from helpers.model_folder import ModelFolder
from helpers.outputs import write_json
from helpers.squad import read_squad
from helpers.tokenization import load_tokenizer
from helpers.weights import load_weights
from tests import checkpoints
from tests.checkpoints import write_config
from tests.conftest import BUNDLED, ROOT

README_PASSAGE = (
    "TensorRT is a high performance deep learning inference platform that delivers low latency and high throughput for "
    "apps such as recommenders, speech and image/video on NVIDIA GPUs. It includes parsers to import models, and plugins "
    "to support novel ops and layers before applying optimizations for inference. Today NVIDIA is open-sourcing parsers "
    "and plugins in TensorRT so that the deep learning community can customize and extend these components to take "
    "advantage of powerful TensorRT optimizations for your apps."
)
DATA = Path(__file__).parent / "data"
XQUAD = "dev-xquad-en-v1.1.json"


def xquad() -> Path:
    """XQuAD's English file, which is not in this repository: that of DEMOBERT_XQUAD, or under squad/."""
    path = Path(os.environ.get("DEMOBERT_XQUAD") or ROOT / "squad" / XQUAD)
    if not path.exists():
        pytest.skip(f"{path} is not there: DEMOBERT_XQUAD names another place of {XQUAD}")
    return path


class HuggingFaceEngine(Engine):
    """Hugging Face's BertForQuestionAnswering behind the engine's interface: same windows, same choice of answers."""

    def __init__(self, card):
        super().__init__(card)
        self._model = checkpoints.hugging_face_model(card.config, load_weights(card.config, pytorch=BUNDLED).tensors)

    def _infer(self, batch: PaddedBatch) -> np.ndarray:
        return checkpoints.hugging_face_logits(self._model, batch.input_ids, batch.segment_ids, batch.input_mask)

    def timed_run(self, batch):
        raise NotImplementedError

    def describe(self):
        return "Hugging Face"


def test_the_readme_s_question(script, bundled_engine):
    result = script("inference.py", "-e", bundled_engine, "-p", *README_PASSAGE.split(), "-q", "What is TensorRT?")
    lines = result.out.splitlines()
    assert lines[0] == f"Passage: {README_PASSAGE}" and lines[1] == "Question: What is TensorRT?"
    assert (
        lines[2] == lines[4] == "-" * 24
        and lines[3].startswith("Running inference in ")
        and "Sentences/Sec" in lines[3]
    )
    assert (
        lines[5] == "Answer: 'a high performance deep learning inference platform'"
    )  # what Hugging Face says with this model
    assert 0 < float(lines[6].removeprefix("With probability: ")) <= 100


@pytest.fixture(scope="module")
def some_of_xquad():
    """Every 20th question of XQuAD."""
    data = read_squad(xquad())
    return type(data)(data.examples[::20], data.version_2)


@pytest.fixture(scope="module")
def hugging_face_answers(some_of_xquad, bundled_engine):
    card = load_engine(bundled_engine, "padded").card
    tokenizer = ModelFolder.open(BUNDLED).tokenizer()
    return Answerer(HuggingFaceEngine(card), tokenizer).answer_squad(some_of_xquad)


@pytest.mark.parametrize("half", [False, True])
def test_answers_of_real_questions_are_hugging_face_s(request, some_of_xquad, hugging_face_answers, half):
    """The same text as Hugging Face float32 over the same windows; in half precision nearly always."""
    path = request.getfixturevalue("bundled_half_engine" if half else "bundled_engine")
    engine = load_engine(path, "padded", throughput=True)
    tokenizer = ModelFolder.open(BUNDLED).tokenizer()
    ours = Answerer(engine, tokenizer, AnswerOptions(batch_size=2)).answer_squad(some_of_xquad)
    differing = [key for key, result in hugging_face_answers.items() if ours[key].text != result.text]
    assert len(differing) <= (6 if half else 0), differing


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_squad_v1_file(script, bundled_engine, tmp_path, batch_size):
    squad, predictions, n_best = DATA / "squad_v1.1.json", tmp_path / "p.json", tmp_path / "n.json"
    result = script(
        "inference.py",
        "-e",
        bundled_engine,
        "-sq",
        squad,
        "-o",
        predictions,
        "--n-best-output",
        n_best,
        "-b",
        batch_size,
    )
    assert result.code == 0 and str(predictions) in result.out and "questions per second" in result.out
    answers = json.loads(predictions.read_text(encoding="utf-8"))
    examples = {example.question_id: example for example in read_squad(squad).examples}
    assert answers.keys() == examples.keys()
    for key, runners_up in json.loads(n_best.read_text(encoding="utf-8")).items():
        passage = examples[key].passage
        assert runners_up[0]["text"] == answers[key]
        assert all(passage[item["start_char"] : item["end_char"]] == item["text"] for item in runners_up)
        assert sum(item["probability"] for item in runners_up) == pytest.approx(1.0)
    evaluated = evaluate("evaluate-v1.1.py", squad, predictions, "60")
    assert evaluated.stdout.splitlines()[0] == "&&&& PASSED TensorRT BERT Squad Accuracy matches reference."
    assert evaluate("evaluate-v1.1.py", squad, predictions, "100.1").returncode == 1


@pytest.mark.sampled(0.4, group="slow")
@pytest.mark.parametrize("real", [False, True])
def test_json_of_one_question_is_the_n_best_of_the_file(script, bundled_engine, tmp_path, real):
    """Some of XQuAD's questions, or all of the small file's, asked one by one: what -sq finds for all of them."""
    squad, n_best, answers = xquad() if real else DATA / "squad_v1.1.json", tmp_path / "n.json", tmp_path / "a.jsonl"
    if real:
        articles = [article | {"paragraphs": article["paragraphs"][:1]} for article in read_json(squad, "it")["data"]]
        squad = tmp_path / "some.json"
        write_json(squad, {"version": "1.1", "data": articles[::12]})
    flags = "-e", bundled_engine, "-sq", squad, "-o", tmp_path / "p.json", "--n-best-output", n_best
    assert script("inference.py", *flags).code == 0
    together = read_json(n_best, "n-best")
    for example in read_squad(squad).examples:
        texts = "-p", example.passage, "-q", example.question
        assert script("inference.py", "-e", bundled_engine, *texts, "--top-k", 20, "--json", answers).code == 0
        alone = json.loads(answers.read_text(encoding="utf-8"))
        expected = together.pop(example.question_id)
        assert alone["n_best"][0] == {key: alone["answer" if key == "text" else key] for key in expected[0]}
        for ours, theirs in zip(alone["n_best"][:3], expected):  # of float sums in another order, perhaps
            assert ours["text"] == theirs["text"] and ours["start_char"] == theirs["start_char"]
            assert ours["probability"] == pytest.approx(theirs["probability"], abs=1e-4)
            assert ours["start_logit"] == pytest.approx(theirs["start_logit"], abs=1e-4)
    assert not together


def test_a_squad_v2_file(script, bundled_engine, tmp_path):
    squad, predictions, odds = DATA / "squad_v2.0.json", tmp_path / "p.json", tmp_path / "odds.json"
    outputs = ["-o", predictions, "--null-odds-output", odds]
    thresholds = {"-1000": set(), "1000": set()}
    for threshold in thresholds:
        flags = ["--null-score-diff-threshold", threshold]
        assert script("inference.py", "-e", bundled_engine, "-sq", squad, *outputs, *flags).code == 0
        thresholds[threshold] = set(json.loads(predictions.read_text()).values())
    assert thresholds["-1000"] == {""} and "" not in thresholds["1000"]
    assert json.loads(odds.read_text()).keys() == json.loads(predictions.read_text()).keys()
    evaluated = evaluate("evaluate-v2.0.py", squad, predictions, "--na-prob-file", odds)
    assert evaluated.returncode == 0 and "best_f1_thresh" in evaluated.stdout


def evaluate(name: str, *arguments):
    command = [sys.executable, ROOT / "squad" / name, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_windows_follow_the_flags(script, bundled_engine):
    flags = ["-s", 40, "--doc-stride", 16, "--max-answer-length", 3, "--n-best-size", 1]
    result = script("inference.py", "-e", bundled_engine, "-p", README_PASSAGE, "-q", "What is TensorRT?", *flags)
    assert result.code == 0
    answer = next(line for line in result.out.splitlines() if line.startswith("Answer: "))
    assert len(answer.split()) <= 4 and "With probability: 100.000" in result.out  # one answer has all the probability


def test_questions_from_a_file(script, bundled_engine, tmp_path):
    (tmp_path / "passage").write_text(README_PASSAGE)
    (tmp_path / "questions").write_text("What is TensorRT?\n\nWhat does it include?\n")
    result = script("inference.py", "-e", bundled_engine, "-pf", tmp_path / "passage", "-qf", tmp_path / "questions")
    assert result.code == 0 and result.out.count("Answer: ") == 2


def test_perf_reports_writes_and_plots(script, bundled_engine, tmp_path):
    figures, picture = tmp_path / "perf.json", tmp_path / "perf.png"
    sizes = ["-b", 1, "-b", 3, "-s", 16, "-i", 4, "-w", 1, "--json", figures, "--plot", picture]
    result = script("perf.py", "-e", bundled_engine, *sizes)
    assert result.code == 0, result
    for size in (1, 3):
        assert f"Running 4 iterations with Batch Size: {size}" in result.out
    for word in ("Total Time", "Average Time", "95th Percentile", "99th Percentile", "Sentences/Sec"):
        assert result.out.count(word) == 2
    timings = json.loads(figures.read_text())["timings"]
    for timing, size in zip(timings, (1, 3), strict=True):
        assert timing["batch_size"] == size and timing["iterations"] == 4 and timing["sequence_length"] == 16
        assert timing["median_ms"] <= timing["percentile_95_ms"] <= timing["percentile_99_ms"]
        assert timing["sentences_per_second"] == pytest.approx(size * 1000 / timing["average_ms"])
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_perf_goes_on_for_the_duration(script, bundled_engine, tmp_path):
    figures = tmp_path / "perf.json"
    script("perf.py", "-e", bundled_engine, "-s", 8, "-i", 1, "-w", 0, "-d", 0.5, "--json", figures)
    timing = json.loads(figures.read_text())["timings"][0]
    assert timing["iterations"] > 1 and timing["total_ms"] > 250  # the rest is spent between the runs


def test_perf_without_a_card_says_what_it_takes_it_for(script, bundled_engine, tmp_path):
    lone = tmp_path / "lone.engine"
    lone.write_bytes(bundled_engine.read_bytes())
    result = script("perf.py", "-e", lone, "-s", 8, "-i", 1, "--trust-engine")
    assert result.code == 0 and "batch size up to 8, sequence length up to 384" in result.err


def test_builder_says_what_has_no_effect(script, tmp_path):
    flags = [
        "-t",
        "-w",
        "100",
        "-tcf",
        "cache",
        "-iln",
        "-imh",
        "-g",
        "-j",
        "squad.json",
        "-n",
        "5",
        "-p",
        "cache",
        "--distributive_independence",
        "--use-v3-plugins",
    ]
    engine = tmp_path / "x.engine"
    result = script("builder.py", "-pt", BUNDLED, "-o", engine, "--backend", "openvino", "-sp", *flags)
    assert result.code == 0, result
    for flag in (
        *("--strict", "--workspace-size", "--timing-cache-file", "--force-int8-skipln", "--force-int8-multihead"),
        *("--force-fc2-gemm", "--squad-json", "--calib-num", "--calib-path", "--distributive_independence"),
        "--use-v3-plugins",
    ):
        assert f"Note: {flag} has no effect" in result.err
    assert "Sparsity: 0 of 36 kernels are 2:4 sparse" in result.err


def test_the_card_says_what_the_blob_can_not(bundled_engine, bundled_half_engine):
    from helpers.backends.openvino.engine import half_precision

    card = json.loads(Path(f"{bundled_engine}.json").read_text())
    assert card["backend"] == "openvino" and card["layout"] == "padded" and card["precision"] == ["fp32"]
    assert card["batch_sizes"] == [8] and card["sequence_lengths"] == [384]
    tokenizer = load_tokenizer(f"{bundled_engine}.tokenizer.json", card["tokenizer_sha256"])
    assert tokenizer.json == ModelFolder.open(BUNDLED).tokenizer().json
    assert card["config"]["hidden_size"] == 384 and card["config"]["gelu"] == "erf"
    import openvino

    half = json.loads(Path(f"{bundled_half_engine}.json").read_text())
    assert half["precision"] == [half_precision(openvino.Core())]


def test_builder_says_which_half_type_it_took(script, tmp_path):
    engine = tmp_path / "x.engine"
    result = script("builder.py", "-pt", BUNDLED, "-o", engine, "--fp16", "--backend", "openvino")
    precision = json.loads(Path(f"{engine}.json").read_text())["precision"][0]
    assert precision in ("bf16", "fp16", "fp32") and f"half type is {precision}" in result.err


def test_gelu_can_be_chosen(script, tmp_path):
    logits = []
    for formula in ("erf", "tanh"):
        engine = tmp_path / f"{formula}.engine"
        script("builder.py", "-pt", BUNDLED, "-o", engine, "--gelu", formula, "-s", 16, "--backend", "openvino")
        ids = np.arange(1000, 1016, dtype=np.int32)[None]
        logits.append(load_engine(engine, "padded").run(PaddedBatch(ids, ids * 0, ids * 0 + 1)))
    assert 1e-5 < np.abs(logits[0] - logits[1]).max() < 0.1


def test_cased_text_is_recognised_by_the_vocabulary(tmp_path):
    write_config(tmp_path, BertConfig(48, 1, 3, 64, 5, 16))
    for pieces, lower in (
        ("[UNK]\n[CLS]\n[SEP]\nthe\n##é\n", True),
        ("[UNK]\n[CLS]\n[SEP]\n<S>\n<T>\n", True),  # Google's Chinese vocabulary
        ("[UNK]\n[CLS]\n[SEP]\nthe\nThe\n", False),
    ):
        (tmp_path / "vocab.txt").write_text(pieces, encoding="utf-8")
        assert ModelFolder.open(tmp_path).tokenizer().lower_cases is lower


def test_nothing_heavy_is_imported_before_it_is_needed():
    """-h answers without OpenVINO, torch, TensorFlow or ONNX: a machine that lacks them can still ask."""
    code = (
        "import sys, builder, builder_varseqlen, inference, inference_varseqlen, perf, perf_varseqlen; "
        "heavy = {'openvino', 'torch', 'tensorflow', 'onnx', 'tensorrt', 'matplotlib', 'pycuda'} & set(sys.modules); "
        "sys.exit(' '.join(heavy) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


def test_quickstart_answers_and_can_be_run_again():
    """The set-up that README.md names, in the environment that these tests run in, from another folder."""
    if Path(sys.prefix) != ROOT / ".venv":
        pytest.skip("the tests do not run in this repository's .venv")
    command = ["bash", str(ROOT / "scripts" / "quickstart.sh")]
    result = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=300)
    assert (
        result.returncode == 0 and "Answer: 'a high performance deep learning inference platform'" in result.stdout
    ), result


def test_bf16_is_taken_or_refused_but_never_replaced(script, tmp_path):
    import openvino

    engine = tmp_path / "x.engine"
    result = script("builder.py", "-pt", BUNDLED, "-o", engine, "--bf16", "--backend", "openvino")
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert result.code == 0 and json.loads(Path(f"{engine}.json").read_text())["precision"] == ["bf16"]
    else:
        assert result.code == 2 and "bfloat16" in result.error
    assert "exclude" in script("builder.py", "-pt", BUNDLED, "-o", engine, "--bf16", "--fp16").error
