"""SQuAD's metrics against values worked out by hand, and the evaluators as scripts."""

import importlib.util
import json
import os
import random
import subprocess
import sys
from fractions import Fraction
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from helpers.precision_recall import histogram, precision_recall, write_pictures
from helpers.squad import SquadExample, exact_match, normalise_answer, token_f1

ROOT = Path(__file__).parent.parent
V1, V2 = ROOT / "squad/evaluate-v1.1.py", ROOT / "squad/evaluate-v2.0.py"
V1_DATA, V2_DATA = ROOT / "tests/data/squad_v1.1.json", ROOT / "tests/data/squad_v2.0.json"


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem.replace("-", "_").replace(".", "_"), path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


evaluate_v2 = load(V2)


def run(script, *arguments):
    return subprocess.run([sys.executable, script, *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The  Grey\tHills.", "grey hills"),
        ("an apple, a day", "apple day"),
        ("theatre and antler", "theatre and antler"),
        ("the-end", "theend"),  # punctuation goes first, so this "the" is no word
        ("“Zoë”", "“zoë”"),  # only ASCII punctuation
        ("$5.00", "500"),
        ("The", ""),
        ("", ""),
        ("a\u00a0b", "b"),
    ],
)
def test_normalise(text, expected):
    assert normalise_answer(text) == expected


@pytest.mark.parametrize(
    "prediction, gold, exact, f1",
    [
        ("The Grey Hills!", "grey hills", 1, 1.0),
        ("in the grey hills", "Grey Hills", 0, 0.8),  # precision 2/3, recall 1
        ("one two three four", "two", 0, 0.4),  # 1/4, 1
        ("dog dog cat", "dog cat cat", 0, 2 / 3),  # the bag has one dog and one cat in common
        ("red", "blue", 0, 0.0),
        ("", "blue", 0, 0.0),
    ],
)
def test_metrics_by_hand(prediction, gold, exact, f1):
    assert exact_match(prediction, gold) == exact
    assert token_f1(prediction, gold) == pytest.approx(f1, abs=1e-12)
    assert token_f1(gold, prediction) == pytest.approx(f1, abs=1e-12)


V1_PREDICTIONS = {
    "l1": "in 1874",  # 1 1
    "l2": "Marta Olsen, an engineer",  # 0 4/5: marta olsen engineer
    "l3": "whale oil.",  # 1 1
    "c1": "Paris",  # 0 0
    "c2": "forty guests",  # 1 1
    "r1": "Grey Hills",  # 1 1
    "r2": "the town of Ashby",  # 0 1/2: town of ashby
    "r3": "",  # 0 0
}


def test_v1_by_hand(write):
    done = run(V1, V1_DATA, write("p.json", V1_PREDICTIONS))
    assert (done.returncode, done.stderr) == (0, "")
    scores = json.loads(done.stdout)
    assert list(scores) == ["exact_match", "f1"]
    assert scores["exact_match"] == pytest.approx(100 * 4 / 8)
    assert scores["f1"] == pytest.approx(100 * (4 + 0.8 + 0.5) / 8)


def test_v1_threshold(write):
    predictions = write("p.json", V1_PREDICTIONS)
    passed, failed = run(V1, V1_DATA, predictions, "66.2"), run(V1, V1_DATA, predictions, "66.3")  # F1 is 66.25
    lines = passed.stdout.splitlines()
    assert lines[0] == "&&&& PASSED TensorRT BERT Squad Accuracy matches reference." and passed.returncode == 0
    assert failed.stdout.startswith("&&&& FAILED") and failed.returncode == 1
    assert json.loads(lines[1]) == json.loads(failed.stdout.splitlines()[1])


def test_v1_missing_prediction_counts_nothing(write):
    some = {key: text for key, text in V1_PREDICTIONS.items() if key != "l1"}
    done = run(V1, V1_DATA, write("p.json", some))
    assert done.returncode == 0 and len(done.stderr.splitlines()) == 1 and "l1" in done.stderr
    assert json.loads(done.stdout)["exact_match"] == pytest.approx(100 * 3 / 8)


def test_v1_refuses_questions_without_answers(write):
    done = run(V1, V2_DATA, write("p.json", {"b1": "", "b2": "", "b3": "", "b4": ""}))
    assert done.returncode == 1 and "evaluate-v2.0.py" in done.stderr and len(done.stderr.splitlines()) == 1


V2_PREDICTIONS = {"b1": "Weber", "b2": "1931", "b3": "Karl Weber", "b4": ""}  # F1 2/3, 1, 0, 1; EM 0, 1, 0, 1


def test_v2_by_hand(write, tmp_path):
    done = run(V2, V2_DATA, write("p.json", V2_PREDICTIONS), "--out-file", tmp_path / "out.json")
    assert (done.returncode, done.stderr) == (0, "")
    metrics = json.loads(done.stdout)
    expected = {
        "exact": 100 * 2 / 4,
        "f1": 100 * (2 / 3 + 1 + 0 + 1) / 4,
        "total": 4,
        "HasAns_exact": 50,
        "HasAns_f1": 100 * (2 / 3 + 1) / 2,
        "HasAns_total": 2,
        "NoAns_exact": 50,
        "NoAns_f1": 50,
        "NoAns_total": 2,
    }
    assert metrics == pytest.approx(expected) and list(metrics) == list(expected)
    assert json.loads((tmp_path / "out.json").read_text()) == metrics


def test_v2_thresholds_by_hand(write):
    # Surest first: b2 (right), b3 (unanswerable, answered), b1 (F1 2/3), b4 (answered "").
    no_answer = write("n.json", {"b1": 0.5, "b2": -1.0, "b3": 0.25, "b4": 9})
    done = run(V2, V2_DATA, write("p.json", V2_PREDICTIONS), "--na-prob-file", no_answer, "--na-prob-thresh", "0.25")
    metrics = json.loads(done.stdout)
    # Above 0.25 are b1 (has an answer: now 0) and b4 (none: 1); b2 stays 1, b3 stays 0.
    assert metrics["exact"] == metrics["f1"] == pytest.approx(50)
    assert (metrics["HasAns_f1"], metrics["NoAns_f1"]) == (50, 50)
    # Nothing answered: 2 right. + b2: 3. + b3: 2. + b1: 2 exact, 2 2/3 F1. The best is after b2.
    assert (metrics["best_exact"], metrics["best_exact_thresh"]) == (75, -1.0)
    assert (metrics["best_f1"], metrics["best_f1_thresh"]) == (75, -1.0)


def test_v2_empty_after_normalisation(write):
    """Gold answers of articles alone don't count; a prediction of them equals "no answer"."""
    answers = [{"text": "the"}, {"text": "a dog"}]
    question = {"id": "1", "question": "q", "is_impossible": False, "answers": answers}
    data = write("d.json", {"data": [{"paragraphs": [{"context": "a dog", "qas": [question]}]}]})
    assert json.loads(run(V2, data, write("p.json", {"1": "the"})).stdout)["f1"] == 0
    assert json.loads(run(V2, data, write("p.json", {"1": "dog"})).stdout)["f1"] == 100
    done = run(V2, V2_DATA, write("p.json", {**V2_PREDICTIONS, "b3": "The."}))
    assert json.loads(done.stdout)["NoAns_exact"] == 100


def test_v2_missing_prediction_counts_nothing(write):
    done = run(V2, V2_DATA, write("p.json", {key: text for key, text in V2_PREDICTIONS.items() if key != "b4"}))
    assert done.returncode == 0 and len(done.stderr.splitlines()) == 1 and "b4" in done.stderr
    metrics = json.loads(done.stdout)
    assert metrics["total"] == 4 and metrics["NoAns_exact"] == 0


@pytest.mark.parametrize("draw", range(20))
def test_v2_best_threshold_is_the_best_of_all_thresholds(draw, rng):
    source = random.Random(int(rng.integers(1 << 32)))
    words = ["red", "blue", "green", "the", ""]

    def text():
        return " ".join(source.choices(words, k=2)).strip()

    examples, predictions, no_answer = [], {}, {}
    for number in range(source.randint(1, 12)):
        answers = tuple(source.choices(["red blue", "green"], k=source.randint(0, 2)))
        examples.append(SquadExample(str(number), "q", "p", 0, answers, not answers))
        # "the" alone is an answer given, for the official threshold, and none, for the score: left out here.
        prediction = text()
        predictions[str(number)] = prediction if normalise_answer(prediction) else ""
        no_answer[str(number)] = source.random()  # no ties
    metrics = evaluate_v2.evaluate(examples, predictions, no_answer)
    for name in ("exact", "f1"):
        by_threshold = {
            threshold: evaluate_v2.evaluate(examples, predictions, no_answer, threshold)[name]
            for threshold in chain([-1.0], no_answer.values())
        }
        assert metrics[f"best_{name}"] == pytest.approx(max(by_threshold.values()))
        if metrics[f"best_{name}_thresh"] != 0.0:  # 0.0: nothing answered is best
            assert by_threshold[metrics[f"best_{name}_thresh"]] == pytest.approx(metrics[f"best_{name}"])


PICTURES = ["na_prob_hist_hasAns.png", "na_prob_hist_noAns.png", "pr_exact.png", "pr_f1.png", "pr_oracle.png"]


def test_v2_average_precision_by_hand(write, tmp_path):
    # By no-answer score: b2 (right); b3 (unanswerable) and b1 (F1 2/3) tie, and the later one's point counts; b4.
    no_answer = write("n.json", {"other": -5, "b1": 0.5, "b2": -1.0, "b3": 0.5, "b4": 9})
    arguments = V2, V2_DATA, write("p.json", V2_PREDICTIONS), "--na-prob-file", no_answer
    done = run(*arguments, "-p", tmp_path / "new" / "pictures", "-o", tmp_path / "out.json")
    assert (done.returncode, done.stderr) == (0, "")
    metrics = json.loads(done.stdout)
    average_precisions = {
        "pr_exact_ap": 100 * (1 / 1 * 1 / 2),  # (precision 1/1, recall 1/2), (1/3, 1/2), (1/4, 1/2)
        "pr_f1_ap": 100 * (1 / 1 * 1 / 2 + (5 / 3) / 3 * (5 / 6 - 1 / 2)),  # the second has precision 5/9, recall 5/6
        "pr_oracle_ap": 100 * (1 / 1 * 1 / 2 + 2 / 3 * (1 - 1 / 2)),  # (1/1, 1/2), (2/3, 1), (2/4, 1)
    }
    assert {key: metrics[key] for key in average_precisions} == pytest.approx(average_precisions, rel=1e-14)
    assert json.loads((tmp_path / "out.json").read_text()) == metrics
    assert list(metrics)[-7:] == [*list(json.loads(run(*arguments).stdout))[-4:], *average_precisions]
    pictures = sorted((tmp_path / "new" / "pictures").iterdir())
    assert [path.name for path in pictures] == PICTURES
    assert len({path.read_bytes() for path in pictures}) == 5
    for path in pictures:
        assert path.read_bytes().startswith(b"\x89PNG") and path.read_bytes().endswith(b"IEND\xaeB`\x82")


@pytest.mark.parametrize("draw", range(20))
def test_average_precision_is_the_sum_over_all_thresholds(draw, rng):
    """Precision and recall of each threshold on their own: of what is answered at it, with ties all or none."""
    count = int(rng.integers(1, 40))
    ids = [str(number) for number in range(count)]
    answerable = dict(zip(ids, (rng.random(count) < 0.6).tolist()))
    answerable[ids[0]] = True
    scores = dict(zip(ids, rng.choice([0, 0.25, 0.4, 1], count).tolist()))
    no_answer = {key: int(rng.integers(-6, 6)) / 4 for key in [*rng.permutation(ids).tolist(), "elsewhere"]}
    expected, recall_before = Fraction(0), Fraction(0)
    for threshold in sorted({no_answer[key] for key in ids}):
        given = [key for key in ids if no_answer[key] <= threshold]
        right = sum(Fraction(scores[key]) for key in given if answerable[key])
        recall = right / sum(answerable.values())
        expected += right / len(given) * (recall - recall_before)
        recall_before = recall
    curve = precision_recall(scores, answerable, no_answer)
    assert curve.average_precision == pytest.approx(float(100 * expected), rel=1e-12)
    assert len(curve.precisions) == len(curve.recalls) == 1 + len({no_answer[key] for key in ids})
    assert (curve.precisions[0], curve.recalls[0]) == (1, 0)
    assert curve.recalls[-1] == pytest.approx(float(recall_before))


def test_a_histogram_counts_every_score_once(rng):
    scores = rng.normal(size=500).tolist()
    span = min(scores), max(scores)
    counts, _ = np.histogram(scores, 20, span)
    assert histogram(scores, span) == pytest.approx(counts / 500)
    assert histogram([0, 0.049, 0.05, 0.5, 1.0], (0, 1)) == [0.4, 0.2, *[0] * 8, 0.2, *[0] * 8, 0.2]


def _span_of_histograms(folder, no_answer, monkeypatch) -> set:
    """What the axes of both histograms cover."""
    seen = set()

    def spy(scores, span):
        seen.add(span)
        return histogram(scores, span)

    monkeypatch.setattr("helpers.precision_recall.histogram", spy)
    ids = [str(number) for number in range(len(no_answer))]
    answerable = {key: number % 2 == 0 for number, key in enumerate(ids)}
    zeros = dict.fromkeys(ids, 0.0)
    write_pictures(folder, zeros, zeros, answerable, dict(zip(ids, no_answer)))
    return seen


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize(
    "no_answer, span",
    [
        ([0.25, 1], (0, 1)),
        ([-3.5, 0.5, 8], (-3.5, 8)),  # null odds
        ([0.5, 1.5], (0.5, 1.5)),
        ([7, 7], (6.5, 7.5)),
        ([10**299, 10**299], (0.999e299, 1.001e299)),
    ],
)
def test_histograms_cover_all_scores(tmp_path, no_answer, span, monkeypatch):
    (seen,) = _span_of_histograms(tmp_path, no_answer, monkeypatch)
    assert seen == pytest.approx(span)


def test_questions_of_one_kind_have_no_pictures_of_the_other(write, tmp_path):
    data = json.loads(V2_DATA.read_text(encoding="utf-8"))
    for paragraph in (paragraph for article in data["data"] for paragraph in article["paragraphs"]):
        paragraph["qas"] = [question for question in paragraph["qas"] if question["is_impossible"]]
    no_answer = write("n.json", {"b3": 0.25, "b4": 0.5})
    done = run(V2, write("d.json", data), write("p.json", V2_PREDICTIONS), "-n", no_answer, "-p", tmp_path / "p")
    assert (done.returncode, done.stderr) == (0, "") and "_ap" not in done.stdout
    assert [path.name for path in (tmp_path / "p").iterdir()] == ["na_prob_hist_noAns.png"]


def test_pictures_that_cannot_be_drawn(write, tmp_path):
    predictions, ids = write("p.json", V2_PREDICTIONS), ("b1", "b2", "b3", "b4")
    no_answer = write("n.json", dict.fromkeys(ids, 0.5))
    (tmp_path / "file").write_text("")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "pr_f1.png").symlink_to(no_answer)
    far = write("far.json", dict(zip(ids, (1e308, -1e308, 0, 0))))
    cases = [
        (("-p", tmp_path / "new"), 2, "--na-prob-file"),
        (("-n", no_answer, "-p", tmp_path / "file"), 1, "can't create the folder"),
        (("-n", no_answer, "-p", tmp_path / "file" / "below"), 1, "can't create the folder"),
        (("-n", no_answer, "-p", taken), 1, "pr_f1.png would replace an input"),
        (
            ("-n", no_answer, "-p", tmp_path / "o", "-o", tmp_path / "o" / "pr_exact.png"),
            1,
            "would replace the file of",
        ),
        (("-n", far, "-p", tmp_path / "far"), 1, "from -1e+308 to 1e+308 are too large"),
        (("-n", write("huge.json", dict.fromkeys(ids, 10**400)), "-p", tmp_path / "far"), 1, "not a finite number"),
    ]
    for flags, code, message in cases:
        done = run(V2, V2_DATA, predictions, *flags)
        assert (done.returncode, done.stdout) == (code, "") and message in done.stderr, done
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "new").exists() and not list((tmp_path / "far").iterdir())
    assert [path.name for path in taken.iterdir()] == ["pr_f1.png"]
    assert json.loads(no_answer.read_text()) == dict.fromkeys(ids, 0.5)


def test_matplotlib_is_imported_for_pictures_only(write, tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ImportError('hidden')")
    no_answer = write("n.json", dict.fromkeys(("b1", "b2", "b3", "b4"), 0.5))
    command = [sys.executable, V2, V2_DATA, write("p.json", V2_PREDICTIONS), "--na-prob-file", no_answer]
    hidden = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=hidden)
    assert done.returncode == 0 and "best_f1" in done.stdout, done
    done = subprocess.run([*command, "-p", tmp_path / "p"], capture_output=True, text=True, env=hidden)
    assert done.returncode == 1 and "--out-image-dir needs the package matplotlib" in done.stderr, done
    assert done.stdout == "" and not list((tmp_path / "p").iterdir())


@pytest.mark.parametrize("script, data", [(V1, V1_DATA), (V2, V2_DATA)])
@pytest.mark.parametrize(
    "predictions, message",
    [
        ("[]", "not a JSON object"),
        ('{"l1": 5}', "prediction for 'l1' is not text"),
        ("{", "not JSON"),
        ("", "empty"),
    ],
)
def test_bad_predictions(script, data, predictions, message, write):
    done = run(script, data, write("p.json", predictions))
    assert done.returncode == 1 and done.stdout == "" and message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "no_answer, message",
    [
        ([], "not a JSON object"),
        ({"b1": "x", "b2": 0, "b3": 0, "b4": 0}, "'b1' is not a finite number"),
        ('{"b1": NaN, "b2": 0, "b3": 0, "b4": 0}', "'b1' is not a finite number"),
        ({"b1": True, "b2": 0, "b3": 0, "b4": 0}, "'b1' is not a finite number"),
        ({"b1": 0}, "lacks 3 questions, 'b2' first"),
    ],
)
def test_bad_no_answer_file(no_answer, message, write):
    done = run(V2, V2_DATA, write("p.json", V2_PREDICTIONS), "--na-prob-file", write("n.json", no_answer))
    assert done.returncode == 1 and done.stdout == "" and message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_bad_files_and_arguments(write, tmp_path):
    predictions = write("p.json", V2_PREDICTIONS)
    cases = [
        ([V1], 2),
        ([V1, V1_DATA], 2),
        ([V1, V1_DATA, predictions, "ninety"], 2),
        ([V1, V1_DATA, tmp_path / "none.json"], 1),
        ([V1, predictions, predictions], 1),
        ([V2, V2_DATA, predictions, "--na-prob", "x"], 2),
        ([V2, V2_DATA, predictions, "--out-file", tmp_path / "none" / "out.json"], 1),
    ]
    for arguments, code in cases:
        done = run(*arguments)
        assert done.returncode == code and done.stdout == "", arguments
        assert len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize("script", [V1, V2])
def test_help(script):
    done = run(script, "-h")
    assert done.returncode == 0 and "PREDICTIONS" in done.stdout
