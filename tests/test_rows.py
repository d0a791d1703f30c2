"""Tables of questions: what is read of JSON lines and CSV, what becomes of bad rows, what is written."""

import csv
import io
import json
import sys

import pytest

from helpers import rows as rows_module
from helpers.answer_options import AnswerOptions
from helpers.rows import CsvLines, JsonLines, RowsFile
from tests.stand_in import answerer, random_rows, read_answers, write_rows, write_stand_in

GOOD = {"id": "good", "question": "Who built it?", "context": "Ann Roe built the mill."}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return write_stand_in(tmp_path_factory.mktemp("engine"))


@pytest.fixture
def ask(script, engine, tmp_path):
    """`ask(table, "out.csv", flags…)`: (what the script printed and returned, the file of answers)."""

    def ask(table, name="answers.jsonl", *flags):
        output = tmp_path / name
        return script("tests.stand_in", "-e", engine, "--rows", table, "-o", output, *flags), output

    return ask


@pytest.fixture
def table(tmp_path):
    """`table("name.csv", content)`: a file with these bytes."""

    def table(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return table


def piped(monkeypatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), "utf-8"))


def read(path):
    said = []
    rows = RowsFile(str(path), said.append)
    return list(rows), said, rows.has_ids


def expected(rows: list[dict], options=AnswerOptions(), top_k=1) -> list[dict]:
    """What each row must get: it is asked by itself."""
    alone, results = answerer(options), []
    for row in rows:
        reply = alone.ask(row["context"], row["question"], top_k).to_dict()
        del reply["seconds"]
        results.append({"id": row["id"]} | reply)
    return results


# -- the whole way


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_every_row_gets_what_it_gets_alone(ask, tmp_path, rng, form):
    """More rows than a chunk has, with all that is hard to carry, in order; the CSV output equals the JSON lines."""
    rows = random_rows(rng, int(rng.integers(150, 250)))
    asked = write_rows(tmp_path / f"asked.{form}", rows)
    result, output = ask(asked)
    assert result.code == 0, result
    answers = read_answers(output)
    assert answers == expected(rows)
    for row, answer in zip(rows, answers, strict=True):
        assert row["context"][answer["start_char"] : answer["end_char"]] == answer["answer"] != ""
    last = result.out.splitlines()[-1]
    assert last.startswith(f"Answered {len(rows)} questions in ") and last.endswith(f", 0 failed: {output}")
    top_k = int(rng.integers(2, 6))
    for name, k in (("answers.csv", 1), ("top.csv", top_k)):
        result, output = ask(asked, name, "--top-k", k)
        assert result.code == 0
        wanted = [answer | {"error": ""} for answer in expected(rows, top_k=k)]
        for answer in wanted:
            answer["n_best"] = json.dumps(answer["n_best"], ensure_ascii=False)
            if k == 1:
                del answer["n_best"]
        assert read_answers(output) == [{name: str(value) for name, value in answer.items()} for answer in wanted]
    assert len(json.loads(read_answers(output)[0]["n_best"])) == top_k or len(rows[0]["context"].split()) < 3


def test_no_answer(ask, tmp_path, rng):
    # A passage of one word has fewer texts to choose from than are listed: "no answer" is among them.
    rows = [*random_rows(rng, 20), {"id": "short", "question": "Who?", "context": "she"}]
    result, output = ask(write_rows(tmp_path / "asked.jsonl", rows), "none.jsonl", "--null-score-diff-threshold=-1e9")
    assert result.code == 0 and all(answer["answer"] == "" for answer in read_answers(output))
    assert all(answer["start_char"] == answer["end_char"] == 0 for answer in read_answers(output))
    _, output = ask(tmp_path / "asked.jsonl", "none.csv", "--null-score-diff-threshold=-1e9", "--top-k", 20)
    best = [[one["text"] for one in json.loads(answer["n_best"])] for answer in read_answers(output)]
    assert not any(answer["answer"] for answer in read_answers(output)) and any("" in texts for texts in best)
    for flags in ((), ("--null-score-diff-threshold", 1e9)):
        _, output = ask(tmp_path / "asked.jsonl", "some.jsonl", "--top-k", 20, *flags)
        answers = read_answers(output)
        assert all(answer["answer"] for answer in answers)
        assert any("" in [one["text"] for one in answer["n_best"]] for answer in answers) == bool(flags)


def test_through_pipes(script, engine, tmp_path, monkeypatch, rng):
    """stdin and stdout hold JSON lines; what is for people goes to stderr."""
    rows = random_rows(rng, 100)
    data = write_rows(tmp_path / "asked.jsonl", rows).read_bytes()
    piped(monkeypatch, data + b"{}\n")
    result = script("tests.stand_in", "-e", engine, "--rows", "-", "-o", "-")
    *answers, failed = map(json.loads, result.out.strip("\n").split("\n"))
    assert answers == expected(rows) and failed == {"error": "line 101: question is missing"}
    assert result.code == 1 and result.err.splitlines()[-1].endswith(", 1 failed: -")
    assert [path.name for path in tmp_path.iterdir()] == ["asked.jsonl"]


def test_the_packed_script_says_the_same(script, bundled_engine, tmp_path, rng):
    import builder_varseqlen
    from tests.conftest import BUNDLED

    packed = tmp_path / "packed.engine"
    builder_varseqlen.main(f"-pt {BUNDLED} -o {packed} -b 8 -s 384 --backend openvino".split())
    asked = write_rows(tmp_path / "asked.csv", [*random_rows(rng, 30), GOOD | {"question": ""}])
    outputs = [tmp_path / "padded.csv", tmp_path / "packed.csv"]
    for name, engine, output in zip(("inference.py", "inference_varseqlen.py"), (bundled_engine, packed), outputs):
        flags = "-b", 8, "--top-k", 2, "--null-score-diff-threshold", 20
        result = script(name, "-e", engine, "--rows", asked, "-o", output, *flags)
        assert result.code == 1 and ", 1 failed: " in result.out, result
    texts = [[(row["id"], row["question"], row["answer"], row["error"]) for row in read_answers(o)] for o in outputs]
    assert texts[0] == texts[1] and len(texts[0]) == 31


# -- JSON lines


def test_json_lines_are_read(table):
    lines = [
        b'\xef\xbb\xbf{"question": "a?", "context": "b", "id": 7}\r\n',
        b"\r\n  \n",
        b'{"context": "b\\n\\u00a0", "question": "\xc3\xa9?", "id": null, "more": [1, {"x": 2}]}\n',
        b'{"context": "b", "question": "a?", "id": ""}',
    ]
    rows, said, _ = read(table("a.jsonl", b"".join(lines)))
    assert [(row.question_id, row.question, row.passage, row.error) for row in rows] == [
        (7, "a?", "b", None),
        (None, "é?", "b\n\u00a0", None),
        ("", "a?", "b", None),
    ]
    assert not said


BAD_LINES = [
    (b"{", "not JSON ("),
    (b"question,context", "not JSON ("),
    (b"[" * 100_000, "not JSON ("),
    (b'{"a":' * 100_000, "not JSON ("),
    (b"9" * 9999, "not JSON ("),
    (b"[1, 2]", "not a JSON object"),
    (b"null", "not a JSON object"),
    (b'"question"', "not a JSON object"),
    (b'{"question": "caf\xe9", "context": "b"}', "not UTF-8"),
    (b"\xff\xfe{\0}\0", "not UTF-8"),
    (b'{"context": "b"}', "question is missing"),
    (b'{"question": "b"}', "context is missing"),
    (b'{"question": null, "context": "b"}', "question is not text"),
    (b'{"question": "a", "context": ["b"]}', "context is not text"),
    (b'{"question": 7, "context": "b"}', "question is not text"),
    (b'{"question": "", "context": "b"}', "the question is empty"),
    (b'{"question": "a", "context": " \\n"}', "the passage is empty"),
    (b'{"question": "\\u0000", "context": "b"}', "the question has no readable"),
    (b'{"question": "\\ud800", "context": "b"}', "the question is not valid UTF-8"),
    (b'{"question": "a", "context": "\\udfff"}', "the passage is not valid UTF-8"),
    (b'{"question": "a", "context": "b", "id": true}', "the id is neither text nor a whole number"),
    (b'{"question": "a", "context": "b", "id": 1.5}', "the id is neither text nor a whole number"),
    (b'{"question": "a", "context": "b", "id": {"x": 1}}', "the id is neither text nor a whole number"),
    (b'{"question": "a", "context": "b", "id": "\\ud800"}', "the id is not valid UTF-8"),
    (b"\0", "not JSON ("),
]


@pytest.mark.parametrize("name", ["answers.jsonl", "answers.csv"])
def test_bad_lines_of_json(ask, table, name):
    """Each gets a line with its number and what is wrong; the good ones between them are answered."""
    good = json.dumps(GOOD).encode()
    lines = [part for line, _ in BAD_LINES for part in (line, good)]
    result, output = ask(table("asked.jsonl", b"\n".join(lines)), name)
    answers = read_answers(output)
    assert len(answers) == len(lines)
    for number, ((_, message), bad, sound) in enumerate(zip(BAD_LINES, answers[::2], answers[1::2], strict=True)):
        assert message in bad["error"] and not bad.get("answer") and len(bad["error"]) < 300, bad
        if not message.startswith("the question") and not message.startswith("the passage"):
            assert bad["error"].startswith(f"line {2 * number + 1}: ")
        assert sound["id"] == "good" and sound["answer"] and not sound.get("error")
    assert result.code == 1 and f"Answered {len(BAD_LINES)} questions" in result.out
    assert result.out.splitlines()[-1].endswith(f", {len(BAD_LINES)} failed: {output}")


@pytest.mark.parametrize("number", [0, -7, 10**30, "", "0", "null"])
def test_ids_are_kept_as_they_are(ask, table, number):
    asked = table("asked.jsonl", json.dumps({"question": "Who?", "context": "Ann.", "id": number}))
    assert read_answers(ask(asked)[1])[0]["id"] == number
    assert read_answers(ask(asked, "answers.csv")[1])[0]["id"] == str(number)


def test_a_bad_row_keeps_its_id_and_its_question(ask, table):
    _, output = ask(table("asked.jsonl", '{"id": 3, "question": "a?"}\n{"id": "x", "context": "b", "question": " "}\n'))
    assert read_answers(output) == [
        {"id": 3, "question": "a?", "error": "line 1: context is missing"},
        {"id": "x", "question": " ", "error": "the question is empty"},
    ]


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_lines_that_are_too_long(ask, tmp_path, table, monkeypatch, form):
    monkeypatch.setattr(rows_module, "MAX_LINE_BYTES", 200)
    good = {"question": "Who?", "context": "Ann Roe."}
    long = {"question": "What?", "context": "long " * 100}
    asked = write_rows(tmp_path / f"asked.{form}", [good, long, good, good | {"question": ""}], ("question", "context"))
    result, output = ask(asked)
    assert result.code == 1, result
    first, error, third, empty = read_answers(output)
    assert first["answer"] == third["answer"] != ""
    assert (
        error["error"].startswith("line 3 (row 3): " if form == "csv" else "line 2: ")
        and "longer than" in error["error"]
    )
    assert "empty" in empty["error"]


@pytest.mark.parametrize("length", [199, 200, 201, 400, 401])
def test_the_longest_line(table, monkeypatch, length):
    monkeypatch.setattr(rows_module, "MAX_LINE_BYTES", 200)
    line = b'{"question": "a", "context": "b"}'
    rows, _, _ = read(table("a.jsonl", line + b" " * (length - len(line) - 1) + b"\n" + line))
    assert [row.error is None for row in rows] == [length <= 200, True]


# -- CSV


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_is_read(tmp_path, rng, delimiter, mark):
    """In any order, with other columns, with quotes, separators and line ends in the texts."""
    rows = random_rows(rng, 50)
    for row in rows:
        row["more"] = str(rng.choice(['x"y', "", "1\n2", f"a{delimiter}b"]))
    columns = rng.permutation(["id", "question", "context"]).tolist() + ["more"]
    path = write_rows(tmp_path / "a.csv", rows, columns, delimiter)
    path.write_bytes(mark + path.read_bytes())
    read_rows, said, has_ids = read(path)
    assert [(row.question_id, row.question, row.passage) for row in read_rows] == [
        (row["id"], row["question"], row["context"]) for row in rows
    ]
    assert has_ids and not any(row.error for row in read_rows)
    name = {";": [f"{path}: its fields are separated by ;"], "\t": [f"{path}: its fields are separated by tabs"]}
    assert said == name.get(delimiter, [])


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_answers_are_separated_as_the_questions_are(ask, table, delimiter, mark):
    rows = [["ID", " Question", "CONTEXT "], ["7", "Who?", 'Ann, "A." Roe;\tshe.']]
    text = "".join(delimiter.join('"' + field.replace('"', '""') + '"' for field in row) + "\r\n" for row in rows)
    result, output = ask(table("asked.csv", mark + text), "answers.csv")
    written = output.read_text(encoding="utf-8")
    assert result.code == 0 and written.startswith(f"{mark}id{delimiter}question{delimiter}answer{delimiter}")
    (answer,) = csv.DictReader(io.StringIO(written.removeprefix("\ufeff"), newline=""), delimiter=delimiter)
    assert answer["id"] == "7" and answer["question"] == "Who?" and answer["answer"] in rows[1][2]


def test_csv_without_ids(ask, table):
    asked = table("asked.csv", "context, question \n\nAnn Roe.,Who?\n\n")
    assert read(asked)[2] is False
    _, output = ask(asked, "answers.csv")
    assert next(csv.reader(output.open(newline="")))[0] == "question" and len(read_answers(output)) == 1
    _, output = ask(asked)
    assert "id" not in read_answers(output)[0]
    _, output = ask(table("asked.jsonl", '{"question": "Who?", "context": "Ann."}\n{"question": 1}'), "json.csv")
    first, failed = read_answers(output)  # JSON lines may have ids further down
    assert list(first)[0] == "id" and first["id"] == "" and failed["answer"] == "" != failed["error"]


BAD_CSV = [
    ("x,Who?", "line 2 (row 2): 2 fields, the first line has 3"),
    ("x,Who?,Ann,more", "line 2 (row 2): 4 fields, the first line has 3"),
    ("x,,Ann", "the question is empty"),
    ("x,Who?, ", "the passage is empty"),
    (b"x,caf\xe9,Ann", "the question is not valid UTF-8"),
    (b"x,Who?,caf\xe9", "the passage is not valid UTF-8"),
    (b"x\xe9,Who?,Ann", "line 2 (row 2): the id is not valid UTF-8"),
    ('x,"Who"?,Ann', "line 2 (row 2): not CSV"),
    ('x,Who?,"Ann', "lines 2 to 3 (row 2): not CSV"),
    ("x,Wh\ro?,Ann", "line 2 (row 2): not CSV"),
]


@pytest.mark.parametrize(("line", "message"), BAD_CSV)
@pytest.mark.parametrize("name", ["answers.jsonl", "answers.csv"])
def test_bad_lines_of_csv(ask, table, line, message, name):
    line = line if isinstance(line, bytes) else line.encode()
    good = b'y,"Who, if any?","Ann\n""A."" Roe"\n'
    swallowed = b'z,"lost, with the row above it",x\n' if "to 3" in message else b""
    result, output = ask(table("asked.csv", b"id,question,context\n" + line + b"\n" + swallowed + good), name)
    bad, sound = read_answers(output)
    assert bad["error"].startswith(message) and not bad.get("answer")
    lost = "not CSV" in message or "the id" in message
    assert bad.get("id", "") == ("" if lost else "x")
    assert sound["id"] == "y" and sound["question"] == "Who, if any?" and sound["answer"]
    assert result.code == 1 and ", 1 failed: " in result.out


def test_a_quote_that_is_never_closed(ask, table):
    result, output = ask(table("asked.csv", 'question,context\nWho?,Ann\nWho?,"Roe\n\nWho?,Ann\n'))
    assert result.code == 1
    first, failed = read_answers(output)
    assert first["answer"] == "Ann" and failed["error"].startswith(
        "lines 3 to 5 (row 3): not CSV (unexpected end of data)"
    )


def test_errors_name_the_line_where_a_row_begins(table):
    rows, _, _ = read(table("a.csv", 'question,context\n"a\nb\nc",d\ne\n\nf\n'))
    assert [str(row.error).split(":")[0] for row in rows] == ["None", "line 5 (row 3)", "line 7 (row 4)"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "Questions,Context\nWho?,Ann",
            "needs the columns question and context in its first line; there is: Questions,C",
        ),
        ("question;id\nWho?;1", "needs the columns question and context"),
        ("\nquestion,context", "there is: none"),
        ("id,question,context,id\n1,2,3,4", "has the column id twice"),
        ("question,context,question\n1,2,3", "has the column question twice"),
        ("question,context\n1,2".encode("utf-16"), "is UTF-16: save it as UTF-8"),
        ("question,context\n1,2".encode("utf-16-be"), "needs the columns"),
        (b"\xfe\xff" + "question,context\n1,2".encode("utf-16-be"), "is UTF-16: save it as UTF-8"),
        ("question,context\rWho?,Ann\r", "first line"),
        ("x" * 200_000, "needs the columns"),
        (b"\x89PNG\r\n\x1a\n\0\0", "needs the columns"),
        ("", "is empty"),
    ],
)
def test_csv_files_that_are_none(ask, table, tmp_path, content, message):
    result, output = ask(table("asked.csv", content))
    assert result.code == 1 and message in result.error and len(result.error) < 600
    assert {path.name for path in tmp_path.iterdir()} == {"asked.csv"}


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_files_that_are_not_there(ask, tmp_path, form):
    assert "table of questions not found" in ask(tmp_path / f"none.{form}")[0].error
    (tmp_path / f"folder.{form}").mkdir()
    assert "table of questions is not a file" in ask(tmp_path / f"folder.{form}")[0].error


def test_a_header_alone(ask, table):
    result, output = ask(table("asked.csv", "question,context\n"), "answers.csv")
    assert result.code == 0 and ", 0 failed" in result.out and read_answers(output) == []
    assert output.read_text().startswith("question,answer,")


def test_the_estimate_of_how_many_there_are(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", [GOOD] * 1000)
    rows = RowsFile(str(path))
    assert rows.estimated_total(0) is None
    for _ in range(100):
        next(iter(rows))
    assert rows.estimated_total(100) == 1000


def test_what_is_no_text_is_replaced():
    """A question that is not Unicode stands in the output beside its error."""
    row = rows_module._json_row(b'{"question": "\\ud800"}', 1)
    for form in (JsonLines(), CsvLines(False, 1)):
        assert "?" in form.line(row, row.error).decode("utf-8")
