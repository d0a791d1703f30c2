"""The forms of SQuAD files that are read, and where an error says it is; ids from the file to the evaluators."""

import json

import pytest

from helpers.errors import DemoBertError
from helpers.squad import read_squad
from tests.test_evaluate import V1, V2, run

PASSAGE = "The old mill was built in 1822 by Ann Roe."


@pytest.fixture
def write(tmp_path):
    """`write(content, …)`: one JSON file, or, of several, JSON lines. Its name tells nothing of its form."""

    def write(*contents):
        path = tmp_path / "squad"
        path.write_text("\n".join(map(json.dumps, contents)), encoding="utf-8")
        return path

    return write


def question(**fields) -> dict:
    """A question with its answer; None takes a field out."""
    whole = {"id": "a", "question": "When?", "answers": [{"text": "1822", "answer_start": 26}]} | fields
    return {key: value for key, value in whole.items() if value is not None}


def squad(*questions) -> dict:
    return {"data": [{"title": "t", "paragraphs": [{"context": PASSAGE, "qas": list(questions)}]}]}


def row(**fields) -> dict:
    return {"context": PASSAGE, **question(**fields)}


def columns(*texts, **more) -> dict:
    return {"text": list(texts), "answer_start": [PASSAGE.index(text) for text in texts]} | more


def test_whole_numbers_are_ids_from_the_file_to_the_metrics(write, tmp_path, script, bundled_engine):
    data = write(squad(question(id=17), question(id=-3, question="Who built it?")))
    assert [example.question_id for example in read_squad(data).examples] == ["17", "-3"]
    predictions = tmp_path / "predictions.json"
    done = script("inference.py", "-e", bundled_engine, "-sq", data, "-o", predictions)
    assert done.code == 0 and json.loads(predictions.read_text()).keys() == {"17", "-3"}, done
    predictions.write_text('{"17": "1822", "-3": "1822"}')
    for evaluator, key in ((V1, "exact_match"), (V2, "exact")):
        done = run(evaluator, data, predictions)
        assert (done.returncode, done.stderr) == (0, "") and json.loads(done.stdout)[key] == 100
    odds = tmp_path / "odds.json"
    odds.write_text('{"17": -1, "-3": 5}')
    metrics = json.loads(run(V2, data, predictions, "--na-prob-file", odds).stdout)
    assert metrics["exact"] == 50 and metrics["best_exact_thresh"] == 5


@pytest.mark.parametrize("ids", [(17, "17"), ("17", 17), (17, 17)])
def test_a_number_and_its_text_are_one_id(write, ids):
    with pytest.raises(DemoBertError, match=r"qas\[1\]: the id '17' is there twice"):
        read_squad(write(squad(*(question(id=given) for given in ids))))


@pytest.mark.parametrize("key", ["guid", "qid"])
def test_other_names_of_the_id(write, key):
    data = read_squad(write(squad(question(id=None, **{key: "klue-1"}), question(**{key: "unused"}))))
    assert [example.question_id for example in data.examples] == ["klue-1", "a"]


def test_answers_in_columns(write):
    starts_missing = {"text": ["Ann", "Ann Roe"]}
    data = read_squad(write(squad(question(answers=columns("1822", "Ann")), question(id="b", answers=starts_missing))))
    assert [(example.answers, example.answer_starts) for example in data.examples] == [
        (("1822", "Ann"), (26, 34)),
        (("Ann", "Ann Roe"), (None, None)),
    ]
    assert not data.version_2


def test_empty_columns_say_that_a_question_has_no_answer(write):
    """Hugging Face's squad_v2 has no is_impossible; its empty lists are those of a test set where all are empty."""
    empty, said = question(id="b", answers=columns()), question(id="c", answers=columns(), is_impossible=False)
    data = read_squad(write(squad(question(answers=columns("1822")), empty, question(id="d", answers=[]))))
    assert data.version_2 and [example.is_impossible for example in data.examples] == [False, True, False]
    data = read_squad(write(squad(question(), empty, said)))
    assert data.version_2 and [example.is_impossible for example in data.examples] == [False, True, False]
    data = read_squad(write(squad(empty, question(id="d", answers=columns()))))
    assert not data.version_2 and not any(example.is_impossible for example in data.examples)


HEADER = {"header": {"dataset": "x", "split": "dev"}}
MRQA = {
    "id": "",
    "context": "[TLE] Mill [DOC] It was built in 1822, Roe said. In 1822!",
    "qas": [
        {
            "qid": "q1",
            "question": "When?",
            "answers": ["The 1822", "1823", "roe"],
            "detected_answers": [
                {"text": "1822", "char_spans": [[33, 36], [52, 55]], "token_spans": [[7, 7]]},
                {"text": "Roe", "char_spans": [[39, 41]]},
            ],
        },
        {"qid": "q2", "question": "Who?", "answers": ["Roe"]},
    ],
}


@pytest.mark.parametrize("header", [(HEADER,), ()])
def test_lines_of_mrqa(write, header):
    more = {"id": "", "context": PASSAGE, "qas": [{"qid": "q3", "question": "Who?", "answers": ["Ann Roe"]}]}
    data = read_squad(write(*header, MRQA, more))
    assert not data.version_2
    first, second, third = data.examples
    assert (first.question_id, first.passage, first.answers) == ("q1", MRQA["context"], ("The 1822", "1823", "roe"))
    assert first.answer_starts == (33, None, 39) and first.passage[33:37] == "1822"
    assert (second.answers, second.answer_starts) == (("Roe",), (None,))
    assert third.question_id == "q3" and [example.paragraph for example in data.examples] == [0, 0, 1]


@pytest.mark.parametrize(
    "detected", [5, {"text": ["1822"]}, [5], [{"text": "1822"}], [{"text": "1822", "char_spans": [[], []]}]]
)
def test_places_that_mrqa_does_not_give_are_unknown(write, detected):
    (example,) = read_squad(write(HEADER, row(answers=["1822"], detected_answers=detected))).examples
    assert (example.answers, example.answer_starts) == (("1822",), (None,))


@pytest.mark.parametrize("form", ["data", "lines", "one line"])
def test_rows_with_a_passage_each(write, form):
    rows = [
        row(answers=columns("1822")),
        row(id="b", answers=columns("Ann Roe")),
        row(id="c", context="Elsewhere.", answers=columns()),
        row(id="d"),
    ]
    rows = rows[:1] if form == "one line" else rows
    data = read_squad(write({"version": "x", "data": rows}) if form == "data" else write(*rows))
    assert [example.question_id for example in data.examples] == list("abcd")[: len(rows)]
    assert [example.paragraph for example in data.examples] == [0, 0, 1, 2][: len(rows)]
    assert (data.examples[0].answers, data.examples[0].answer_starts) == (("1822",), (26,))
    assert data.examples[-1].passage == PASSAGE and data.version_2 == (len(rows) > 1)


def test_lines_of_windows_with_a_mark_and_empty_lines(tmp_path):
    path = tmp_path / "squad.json"
    lines = ["", json.dumps(row()), "", json.dumps(row(id="b", question="a\u2028b"), ensure_ascii=False), ""]
    path.write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    assert [example.question for example in read_squad(path).examples] == ["When?", "a\u2028b"]
    path.write_text("\n".join(["", json.dumps(row()), "", "", json.dumps(row(id=None)), ""]))
    with pytest.raises(DemoBertError, match="line 5: id is missing"):
        read_squad(path)
    path.write_text("\n\n" + json.dumps(row(id=None)))
    with pytest.raises(DemoBertError, match="line 3: id is missing"):
        read_squad(path)


def test_a_header_beside_the_data_makes_no_line_of_them(write):
    assert read_squad(write({"header": {}, **squad(question())})).examples[0].question_id == "a"


@pytest.mark.parametrize("start", ["26", 26.0, True, None])
def test_a_start_that_is_no_whole_number_is_unknown(write, start):
    answers = [{"text": "1822", "answer_start": start}], {"text": ["1822"], "answer_start": [start]}
    data = read_squad(write(squad(*(question(id=number, answers=given) for number, given in enumerate(answers)))))
    assert [example.answer_starts for example in data.examples] == [(None,), (None,)]


def test_blank_text_is_read(write):
    data = read_squad(write(squad(question(question=" "))))
    assert data.examples[0].question == " "
    assert read_squad(write(row(context=""))).examples[0].passage == ""


@pytest.mark.parametrize(
    "contents, message",
    [
        ([squad(question(id=True))], r"data[0].paragraphs[0].qas[0].id is not text"),
        ([squad(question(), question(id=None))], r"data[0].paragraphs[0].qas[1].id is missing"),
        ([squad(question(id=None, guid=["x"]))], r"qas[0].guid is not text"),
        ([squad(question(answers=columns(text=None)))], r"qas[0].answers.text is not a list"),
        ([squad(question(answers={}))], r"qas[0].answers.text is missing"),
        ([squad(question(answers=columns("1822", answer_start=5)))], r"qas[0].answers.answer_start is not a list"),
        ([squad(question(answers=columns("1822", answer_start=[])))], r"qas[0].answers.answer_start has the length 0"),
        ([squad(question(answers=columns(text=["a", 5], answer_start=[0, 0])))], r"answers.text[1] is not text"),
        ([squad(question(answers=["a", {"text": "b"}]))], r"qas[0].answers[1] is not text"),
        ([squad(question(answers=["\ud800"]))], r"qas[0].answers[0] has half of a surrogate pair"),
        ([squad(question(answers=[{"text": "b"}, "a"]))], r"qas[0].answers[1] is not an object"),
        ([{"data": [row(), row(id="b", context=5)]}], r"data[1].context is not text"),
        ([{"data": [question()]}], r"data[0].context is missing"),
        ([{"data": [row(), {"context": "c", "qas": [{"qid": "1"}]}]}], r"data[1].qas[0].question is missing"),
        ([{"data": [{"paragraphs": [{"context": "c"}]}]}], r"data[0].paragraphs[0].qas is missing"),
        ([HEADER], "it has no questions"),
        ([HEADER, {"id": "", "context": "c", "qas": []}], "it has no questions"),
        ([HEADER, {"context": "c", "qas": [{"question": "q"}]}], r"line 2: qas[0].id is missing"),
        ([HEADER, MRQA, MRQA], r"line 3: qas[0]: the id 'q1' is there twice"),
        ([HEADER, MRQA, {"qas": []}], "line 3: context is missing"),
        ([row(), 5], "line 2 is not an object"),
        ([row(), row(id=None)], "line 2: id is missing"),
        ([row(), row()], "line 2: the id 'a' is there twice"),
        ([row(), {}], "line 2: paragraphs is missing"),
        ([{"x": 1}], "data is missing"),
        ([5], "the file is not an object"),
    ],
)
def test_errors_name_their_place(write, contents, message):
    path = write(*contents)
    with pytest.raises(DemoBertError) as caught:
        read_squad(path)
    assert message in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text, message",
    [
        (json.dumps(row()) + "\n{", "not JSON (line 2: "),
        (
            json.dumps(row(), indent=1) + "\n\nx",
            f"not JSON (line {len(json.dumps(row(), indent=1).splitlines()) + 2}: ",
        ),
        (json.dumps(row()) + "\n" + "[" * 100_000, "not JSON"),
        (" \n ", "not JSON (line 2: "),
    ],
)
def test_lines_that_are_not_json(tmp_path, text, message):
    path = tmp_path / "squad.jsonl"
    path.write_text(text)
    with pytest.raises(DemoBertError) as caught:
        read_squad(path)
    assert message in str(caught.value) and "\n" not in str(caught.value)
