"""One passage and its questions: what is printed, what --json writes; no answer; flags that say nothing."""

import builtins
import contextlib
import io
import itertools
import json
import os
import pty
import shutil
import subprocess
import sys

import pytest

import inference_c
import inference_varseqlen
from helpers import asking
from helpers.backends.base import Engine
from helpers.cli import Parser
from helpers.errors import DemoBertError
from helpers.inference_flags import add_inference_arguments, check_inference_arguments
from tests.conftest import ROOT
from tests.stand_in import StandIn, answerer, random_rows, random_text, read_answers, write_stand_in
from tests.test_journal import squad_file

PASSAGE = "The tower was built in 1889 by Gustave Eiffel's company."


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return write_stand_in(tmp_path_factory.mktemp("engine"))


@pytest.fixture
def ask(script, engine):
    return lambda *flags: script("tests.stand_in", "-e", engine, *flags)


def objects(text: str) -> list[dict]:
    return [json.loads(line) for line in text.removesuffix("\n").split("\n")]


def without_seconds(reply: dict) -> dict:
    assert reply["seconds"] >= 0
    return {key: value for key, value in reply.items() if key != "seconds"}


def expected(passage, questions, top_k=1, **options) -> list[dict]:
    alone = answerer(asking.AnswerOptions(**options))
    return [without_seconds(alone.ask(passage, question, top_k).to_dict()) for question in questions]


def typed(monkeypatch, lines, terminal=True):
    """Lines typed at the prompt; an exception is raised at its turn."""
    lines = iter(lines)
    stdin = io.TextIOWrapper(io.BytesIO(b""), "utf-8")
    stdin.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stdin", stdin)

    def read(prompt=""):
        line = next(lines, EOFError())
        if isinstance(line, (BaseException, type)):
            raise line
        return line

    monkeypatch.setattr(builtins, "input", read)


# -- --json


@pytest.mark.parametrize("given", ["words", "files", "prompt"])
def test_json(ask, tmp_path, rng, monkeypatch, given):
    """The same objects for every way to give the texts, to a file beside what is printed, or alone to stdout."""
    passage = random_text(rng, 200)
    questions = [" ".join(random_text(rng, 6).split()) for _ in range(1 if given == "words" else 4)]
    flags = ["-p", *passage.split(" "), "-q", *questions[0].split(" ")]
    if given == "files":
        (tmp_path / "p").write_bytes(passage.encode())
        (tmp_path / "q").write_bytes(("\n".join(questions) + "\n\n").encode())
        questions = [line for line in "\n".join(questions).splitlines() if line.strip()]
        flags = ["-pf", tmp_path / "p", "-qf", tmp_path / "q"]
    elif given == "prompt":
        flags = ["-p", passage]
    top_k = int(rng.integers(1, 5))
    if given == "prompt":
        typed(monkeypatch, questions)
    written = ask(*flags, "--json", tmp_path / "out.jsonl", "--top-k", top_k)
    if given == "prompt":
        typed(monkeypatch, [*questions[:2], " ", *questions[2:], "exit", "never asked"])
    alone = ask(*flags, "--json", "-", "--top-k", top_k)
    assert written.code == alone.code == 0, (written, alone)
    for text in ((tmp_path / "out.jsonl").read_text(encoding="utf-8"), alone.out):
        replies = objects(text)
        assert [without_seconds(reply) for reply in replies] == expected(passage, questions, top_k)
        for reply in replies:
            assert passage[reply["start_char"] : reply["end_char"]] == reply["answer"] == reply["n_best"][0]["text"]
            assert reply["windows"] > 1 or len(passage) < 300
            assert list(reply) == [
                *("question", "answer", "probability", "start_char", "end_char", "start_logit", "end_logit"),
                *("null_odds", "windows", "seconds", "n_best"),
            ]
    assert written.out.count("Answer: ") == len(questions) and "Answer" not in alone.out


def test_the_file_of_json_is_whole_or_not_at_all(ask, tmp_path, monkeypatch):
    """One question that can't be asked, an engine that fails, Ctrl-C while questions that were given are answered."""
    out, questions = tmp_path / "out.jsonl", tmp_path / "q"
    out.write_text("before")
    questions.write_text("Who?\n\x01\nWhen?\n")
    flags = "-p", PASSAGE, "-qf", questions, "--json"
    result = ask(*flags, out)
    assert result.code == 1 and "the question has no readable" in result.error
    assert len(objects(ask(*flags, "-").out)) == 1  # what a pipe has got, it has got
    questions.write_text("Who?\nWhy?\nWhen?\n")
    run, left = Engine.run, []
    for error, code in ((KeyboardInterrupt(), 130), (DemoBertError("it broke"), 1)):

        def failing(self, batch, error=error):
            left.append(1)
            if len(left) % 2 == 0:
                raise error
            return run(self, batch)

        monkeypatch.setattr(Engine, "run", failing)
        assert ask(*flags, out).code == code
    assert out.read_text() == "before" and {path.name for path in tmp_path.iterdir()} == {"out.jsonl", "q"}


@pytest.mark.parametrize("end", [KeyboardInterrupt, EOFError, "quit", " EXIT "])
def test_the_end_of_a_conversation_writes_what_was_answered(ask, tmp_path, monkeypatch, end):
    out = tmp_path / "out.jsonl"
    typed(monkeypatch, [PASSAGE, "", "Who?", "\x01", "When?", end])
    result = ask("--json", out)
    assert result.code == (130 if end is KeyboardInterrupt else 0) and "Traceback" not in result.err
    assert [without_seconds(one) for one in read_answers(out)] == expected(PASSAGE, ["Who?", "When?"])
    assert "the question has no readable" in result.err


def test_ctrl_c_while_a_question_is_answered(ask, tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    typed(monkeypatch, ["Who?", "When?"])
    run, left = Engine.run, []

    def interrupted(self, batch):
        left.append(1)
        if len(left) == 2:
            raise KeyboardInterrupt
        return run(self, batch)

    monkeypatch.setattr(Engine, "run", interrupted)
    assert ask("-p", PASSAGE, "--json", out).code == 130
    assert [one["question"] for one in read_answers(out)] == ["Who?"]


def test_json_that_can_not_be_written(ask, tmp_path):
    (tmp_path / "p").write_text(PASSAGE)
    for path, message in (
        (tmp_path, "is a folder"),
        ("/nowhere/at/all/x", "mkdir -p"),
        (tmp_path / "p", "would replace an input"),
    ):
        result = ask("-pf", tmp_path / "p", "-q", "Who?", "--json", path)
        assert result.code == 1 and message in result.error and "--json" in result.error
    assert (tmp_path / "p").read_text() == PASSAGE


def test_a_dash_is_a_file_of_no_name(ask, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(objects(ask("-p", PASSAGE, "-q", "Who?", "--json", "-").out)) == 1
    assert not list(tmp_path.iterdir())


# -- what is printed


def test_the_runners_up_are_printed(ask):
    (reply,) = expected(PASSAGE, ["Who?"], 4)
    out = ask("-p", PASSAGE, "-q", "Who?", "--top-k", 4).out.splitlines()
    best, *others = reply["n_best"]
    assert out[5:7] == [f"Answer: '{best['text']}'", f"With probability: {best['probability'] * 100:.3f}"]
    assert out[7:] == [f"Runner-up: '{other['text']}', {other['probability'] * 100:.3f}" for other in others]
    for flags in ((), ("--top-k", 1)):
        assert len(ask("-p", PASSAGE, "-q", "Who?", *flags).out.splitlines()) == 7


def test_the_runners_up_of_no_answer(ask):
    (reply,) = expected(PASSAGE, ["Who?"], 20, null_score_diff_threshold=-1e9)
    out = ask("-p", PASSAGE, "-q", "Who?", "--top-k", 3, "--null-score-diff-threshold=-1e9").out.splitlines()
    texts = [one for one in reply["n_best"] if one["text"]][:2]
    assert out[5] == "Answer: (none)" and [line.rpartition(",")[0] for line in out[7:]] == [
        f"Runner-up: '{one['text']}'" for one in texts
    ]
    out = ask("-p", PASSAGE, "-q", "Who?", "--top-k", 20, "--null-score-diff-threshold=1e9").out.splitlines()
    assert out[5].startswith("Answer: '") and len(out) == 6 + 20


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\u00a0b", "a\u00a0b"),
        ("👨\u200d👩\u200d👧", "👨\u200d👩\u200d👧"),
        ("two   spaces", "two   spaces"),
        ("soft\u00adhyphen", "soft\u00adhyphen"),
        ("é e\u0301 東京", "é e\u0301 東京"),
        ("\u200fעברית\u200e", "\u200fעברית\u200e"),
        ("a\x1b[31mb", "a [31mb"),
        ("a\tb\nc\rd\x00e\x7ff\x9bg", "a b c d e f g"),
        ("a\u2028b\u2029c\u202ed\u2066e", "a b c d e"),
    ],
)
def test_texts_are_printed_as_they_are(ask, text, shown):
    """But for what would drive a terminal; --json has even that."""
    passage = f"x {text} y"
    result = ask("-p", passage, "-q", f"What {text}?", "--top-k", 20, "--n-best-size", 20)
    assert result.out.startswith(f"Passage: x {shown} y\nQuestion: What {shown}?\n")
    replies = expected(passage, [f"What {text}?"], 20)[0]["n_best"]
    printed = [line.split("'", 1)[1].rsplit("'", 1)[0] for line in result.out.split("\n") if "'" in line]
    replaced = {ord(char): " " for char in "\x1b\t\n\r\x00\x7f\x9b\u2028\u2029\u202e\u2066"}
    assert printed == [reply["text"].translate(replaced) for reply in replies]
    (reply,) = objects(ask("-p", passage, "-q", f"What {text}?", "--json", "-").out)
    assert reply["question"] == f"What {text}?" and reply["answer"] == replies[0]["text"]


@pytest.mark.parametrize("size", [(80, 24), (81, 25), (10, 5)])
def test_the_passage_is_printed_once_and_fits_a_screen(ask, tmp_path, monkeypatch, rng, size):
    monkeypatch.setenv("COLUMNS", str(size[0]))
    monkeypatch.setenv("LINES", str(size[1]))
    assert shutil.get_terminal_size() == size
    room = max(size[0] * size[1], 200)
    (tmp_path / "q").write_text("Who?\nWhen?\nWhere?\n")
    for length in (room - 1, room, room + 1, room + 2, 3 * room):
        passage = "".join(rng.choice(list("abc d"), length - 2).tolist()).join("xy")
        (tmp_path / "p").write_text(passage)
        result = ask("-pf", tmp_path / "p", "-qf", tmp_path / "q")
        assert result.out.count("Passage: ") == 1 and result.out.count("Answer: ") == 3
        shown = result.out.split("\n")[0].removeprefix("Passage: ")
        if length <= room:
            assert shown == passage
        else:
            head, middle, tail = shown.split(" … ")
            left_out = int(middle.removeprefix("(").removesuffix(" characters)"))
            assert passage.startswith(head) and passage.endswith(tail) and len(head) == len(tail)
            assert len(head) + left_out + len(tail) == length and room - 1 <= 2 * len(head) <= room


def test_a_control_token_in_a_text_is_said_once(ask, tmp_path, monkeypatch):
    (tmp_path / "q").write_text("What is [SEP]?\nWhat is [CLS]?\n")
    for flags in (("-p", PASSAGE), ("-p", "The [SEP] token")):
        assert ask(*flags, "-qf", tmp_path / "q").err.count("is read as text, not as the model's own token") == 1
    assert "is read as text" not in ask("-p", PASSAGE, "-q", "Who?").err


# -- no answer


@pytest.mark.parametrize("threshold", ["-1e9", "1e9", None])
def test_no_answer_for_every_way_to_ask(ask, tmp_path, rng, threshold, monkeypatch):
    """Rows have a test of their own."""
    rows = random_rows(rng, 10, longest=10, odd=0)
    flags = [] if threshold is None else [f"--null-score-diff-threshold={threshold}"]
    is_none = threshold == "-1e9"
    texts = ["-p", PASSAGE, "-q", "Who?"]
    printed = ask(*texts, *flags)
    assert ("\nAnswer: (none)\n" in printed.out) == is_none and ("\nAnswer: '" in printed.out) != is_none
    (reply,) = objects(ask(*texts, *flags, "--json", "-", "--top-k", 500, "--n-best-size", 500).out)
    assert (reply["answer"] == "") == is_none
    assert ("" in [one["text"] for one in reply["n_best"]]) == bool(flags)
    if is_none:
        assert reply["start_char"] == reply["end_char"] == 0 and 0 < reply["probability"] < 1
        assert reply["null_odds"] == pytest.approx(
            reply["start_logit"] + reply["end_logit"] - max(one["start_logit"] + one["end_logit"] for one in reply["n_best"] if one["text"])
        )  # fmt: skip
    typed(monkeypatch, ["Who?"])
    assert ("\nAnswer: (none)\n" in ask("-p", PASSAGE, *flags).out) == is_none
    for version_2 in (False, True):
        asked = squad_file(tmp_path / "asked.json", rows, **({"is_impossible": False} if version_2 else {}))
        outputs = ["-o", tmp_path / "out.json", "--n-best-output", tmp_path / "n.json"]
        odds = tmp_path / "odds.json"
        sizes = "--n-best-size", 500, "--null-odds-output", odds
        assert ask("-sq", asked, *outputs, *sizes, *flags).code == 0
        predictions, n_best = (json.loads((tmp_path / name).read_text()) for name in ("out.json", "n.json"))
        assert list(predictions) == list(n_best) == [row["id"] for row in rows]
        limit = float(threshold) if flags else 0 if version_2 else float("inf")
        for key, null_odds in json.loads(odds.read_text()).items():
            assert (predictions[key] == "") == (null_odds > limit)
            assert ("" in [one["text"] for one in n_best[key]]) == (version_2 or bool(flags))


# -- flags

#: A value for each flag, and what it is for.
FLAGS = {
    "-p": ["x"],
    "-pf": ["FILE"],
    "-q": ["x"],
    "-qf": ["FILE"],
    "--json": ["FILE"],
    "--top-k": ["2"],
    "--rows": ["FILE.jsonl"],
    "-sq": ["FILE"],
    "-o": ["FILE.csv"],
    "--n-best-output": ["FILE"],
    "--null-odds-output": ["FILE"],
    "--fresh": [],
}
WAYS = {
    "one": {"-p", "-pf", "-q", "-qf", "--json", "--top-k"},
    "-sq": {"-sq", "-o", "--n-best-output", "--null-odds-output", "--fresh"},
    "--rows": {"--rows", "-o", "--top-k", "--fresh"},
}


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(FLAGS, 2)))
def test_pairs_of_flags(script, first, second):
    """What has no effect on what is asked is refused before anything is loaded."""
    way = next((flag for flag in (first, second) if flag in WAYS), "one")
    flags = {first: FLAGS[first], second: FLAGS[second]}
    if way == "--rows":
        flags |= {"-o": FLAGS["-o"]}
    result = script(
        "inference.py", "-e", "no such engine", *[part for flag in flags.items() for part in (flag[0], *flag[1])]
    )
    is_sound = {first, second} <= WAYS[way] and {first, second} not in ({"-p", "-pf"}, {"-q", "-qf"})
    if is_sound:
        assert result.code == 1 and "no such engine" in result.error or "FILE" in result.error, result
    else:
        assert result.code == 2 and any(flag in result.error for flag in (first, second)), result
        assert any(word in result.error for word in ("leave it out", "needs", "not both"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rows", "a.jsonl"], "--rows needs -o FILE.jsonl or FILE.csv"),
        (["--rows", "a.json", "-o", "b.csv"], "--rows a.json: the name must end in .jsonl or .csv"),
        (["--rows", "a.csv", "-o", "b.tsv"], "-o b.tsv: the name must end in .jsonl or .csv"),
        (["--rows", "a.csv", "-o", "b"], "-o b: the name must end"),
        (["--rows", "-", "-o", "-", "--fresh"], "stdout keeps nothing"),
        (["--rows", "a.csv", "-o", "b.csv", "--top-k", "21"], "--top-k 21 is over the 20"),
        (["-p", "x", "-q", "y", "--top-k", "3", "--n-best-size", "2"], "--top-k 3 is over the 2"),
        (["-p", "x", "--top-k", "0"], "'0' is not a whole number"),
        (["-p", "x", "--null-score-diff-threshold", "inf"], "'inf' is not a number"),
        (["-pf", "-", "-qf", "-"], "can't both come by stdin"),
    ],
)
@pytest.mark.parametrize("name", ["inference.py", "inference_varseqlen.py", "inference_c.py"])
def test_flags_that_contradict_each_other(script, name, flags, message):
    result = script(name, "-e", "no such engine", *flags)
    assert result.code == 2 and message in result.error


@pytest.mark.parametrize("layout", ["padded", "packed", None])
def test_the_scripts_share_their_flags(layout):
    parser = Parser("x")
    add_inference_arguments(parser, layout)
    args = ["-e", "x", "--rows", "a.csv", "-o", "b.CSV", "--top-k", "20", "--fresh"]
    check_inference_arguments(parser.parse_args(args))
    others = [module.parse(args) for module in (inference_varseqlen, inference_c)]
    assert all(vars(parser.parse_args(args)).items() <= vars(other).items() for other in others)


def test_the_engine_runs_as_few_batches_as_there_are(ask, tmp_path, rng, monkeypatch):
    """-b counts for every way to ask."""
    rows = random_rows(rng, 64, longest=10, odd=0)
    asked = squad_file(tmp_path / "asked.json", rows)
    batches, run = [], StandIn.run
    monkeypatch.setattr(StandIn, "run", lambda self, batch: batches.append(batch.batch_size) or run(self, batch))
    assert ask("-sq", asked, "-o", tmp_path / "out.json", "-b", 4).code == 0
    assert batches == [4] * 16


def test_only_line_ends_end_a_question(ask, tmp_path):
    """Form feeds and Unicode's line separators stand in texts copied from elsewhere; str.splitlines cuts at them."""
    asked = tmp_path / "questions"
    asked.write_bytes("Who?\r\nWhen\x0cwas it?\u2028Where was it?\rWhy\n\n".encode())
    replies = objects(ask("-p", PASSAGE, "-qf", asked, "--json", "-").out)
    assert [reply["question"] for reply in replies] == ["Who?", "When\x0cwas it?\u2028Where was it?", "Why"]


@pytest.mark.parametrize("to_terminal", [True, False])
def test_a_long_line_is_pasted_whole_or_refused(bundled_engine, tmp_path, to_terminal):
    """A terminal gives 4095 bytes of a line to a program that reads lines; stdout gets no prompt where it is no terminal."""
    passage, answers = "filler word " * 500 + "Ann Roe built it in 1901.", tmp_path / "a.jsonl"
    output = answers if to_terminal else "-"
    command = [sys.executable, ROOT / "inference.py", "-e", bundled_engine, "-q", "Who built it?", "--json", output]
    terminal, end = pty.openpty()
    out = end if to_terminal else subprocess.PIPE
    process = subprocess.Popen(command, stdin=end, stdout=out, stderr=end, text=True)
    os.close(end)
    said = ""
    while "ends it" not in said:
        said += os.read(terminal, 1000).decode()
    os.write(terminal, f"{passage}\n\n".encode())
    with contextlib.suppress(OSError):  # the end of a terminal
        while piece := os.read(terminal, 4096):
            said += piece.decode(errors="replace")
    printed, _ = process.communicate(timeout=60)
    os.close(terminal)
    if to_terminal:
        (reply,) = objects(answers.read_text())
        assert reply["answer"] == passage[reply["start_char"] : reply["end_char"]] and reply["start_char"] >= 6000
    else:
        assert process.returncode == 1 and "cuts lines at 4095 bytes" in said and printed == ""
