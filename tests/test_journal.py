"""Partial outputs: a run that is killed at any moment goes on to the same bytes, and touches nothing of others."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.errors import DemoBertError
from helpers.journal import Journal
from tests.conftest import ROOT
from tests.kill_states import States, files_of, put
from tests.stand_in import StandIn, random_rows, read_answers, write_rows, write_stand_in

FACTS = {"engine": "e", "options": {"n": 1}}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return write_stand_in(tmp_path_factory.mktemp("engine"))


@pytest.fixture
def folder(tmp_path):
    """Where outputs go, and nothing else is."""
    (tmp_path / "outputs").mkdir()
    return tmp_path / "outputs"


def squad_file(path: Path, rows: list[dict], **more) -> Path:
    paragraphs = [
        {"context": row["context"], "qas": [{"id": row["id"], "question": row["question"], "answers": []} | more]}
        for row in rows
    ]
    path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}), encoding="utf-8")
    return path


# -- killed, and gone on with


def command(kind: str, engine: Path, rows: list[dict], folder: Path) -> list:
    """A command that writes into `folder`, where "before" stood."""
    if kind == "squad":
        asked = squad_file(folder.parent / "asked.json", rows)
        more = ["--n-best-output", folder / "n_best.json", "--null-odds-output", folder / "odds.json"]
        return ["-e", engine, "-sq", asked, "-o", folder / "out.json", *more, "--n-best-size", 3]
    asked = write_rows(folder.parent / "asked.jsonl", rows)
    return ["-e", engine, "--rows", asked, "-o", folder / f"out.{kind}"]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "squad"])
def test_whatever_a_kill_leaves_is_gone_on_with(script, engine, folder, rng, kind):
    """To the same bytes and the same words on how many failed; the old output stays until then, and nothing after."""
    rows = random_rows(rng, 150, longest=12)
    rows[int(rng.integers(150))]["question"] = " "
    arguments = command(kind, engine, rows, folder)
    output = Path(arguments[5])
    output.write_bytes(b"before")
    with States(folder) as states:
        whole = script("tests.stand_in", *arguments)
    assert whole.code == (kind != "squad") and ", 1 failed: " in whole.out, whole
    result = files_of(folder)
    outputs = {"out.json", "n_best.json", "odds.json"} if kind == "squad" else {output.name}
    assert set(result) == outputs and len(states.found) > 10
    if kind == "squad":
        empty = {row["id"] for row in rows if row["question"] == " "}
        assert {key for key, text in json.loads(result["out.json"]).items() if not text} == empty
    for files in states.found:
        assert files[output.name] in (b"before", result[output.name])
        put(folder, files)
        again = script("tests.stand_in", *arguments)
        assert again.code == whole.code and files_of(folder) == result, (sorted(files), again)


def test_going_on_asks_only_the_rest(script, engine, folder, rng, monkeypatch):
    """Each chunk is asked once, said on stderr, counted in the last line; --fresh begins again."""
    rows = random_rows(rng, 64 * 3 + 5, longest=12)
    arguments = command("jsonl", engine, rows, folder)
    append, asked = Journal.append, []
    run = StandIn.run

    def counted(self, batch):
        asked.append(batch.batch_size)
        return run(self, batch)

    def killed(self, data, entries, *more):
        append(self, data, entries, *more)
        if entries:
            raise KeyboardInterrupt

    monkeypatch.setattr(StandIn, "run", counted)
    monkeypatch.setattr(Journal, "append", killed)
    for _ in range(2):
        assert script("tests.stand_in", *arguments).code == 130
    monkeypatch.setattr(Journal, "append", append)
    asked.clear()
    files = files_of(folder)
    result = script("tests.stand_in", *arguments)
    assert sum(asked) == 64 + 5 and "going on after question 128 (--fresh begins again)" in result.err
    assert f"Answered {len(rows)} questions (128 of them in runs before this one) in" in result.out
    put(folder, files)
    asked.clear()
    fresh = script("tests.stand_in", *arguments, "--fresh")
    assert fresh.code == 0 and sum(asked) == len(rows) and "going on" not in fresh.err and "before" not in fresh.out
    assert set(files_of(folder)) == {"out.jsonl"}


#: What a run that was killed half-way through leaves, for the tests below.
@pytest.fixture
def killed(script, engine, folder, rng, monkeypatch):
    """(arguments of the command, its rows, the files it left); `kind` "jsonl"."""
    rows = random_rows(rng, 140, longest=12)
    rows[int(rng.integers(64))]["question"] = None
    arguments = command("jsonl", engine, rows, folder)
    Path(arguments[5]).write_bytes(b"before")
    publish = Journal.publish
    append, appended = Journal.append, []

    def killing(self, *values):
        append(self, *values)
        appended.append(values)
        if len(appended) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "append", killing)
    assert script("tests.stand_in", *arguments).code == 130
    monkeypatch.setattr(Journal, "append", append)
    assert set(files_of(folder)) == {"out.jsonl", "out.jsonl.partial", "out.jsonl.partial.json"}
    assert Journal.publish is publish
    return arguments, rows, files_of(folder)


CHANGES = [
    "engine",
    "options",
    "threshold",
    "top-k",
    "cased",
    "row",
    "order",
    "fewer",
    "id",
    "context",
    "error",
    "fault",
]


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("change", CHANGES)
def test_another_command_is_refused(script, folder, killed, change, rng):
    arguments, rows, files = killed
    flags = {
        "options": ["--max-answer-length", 7],
        "threshold": ["--null-score-diff-threshold", 3],
        "top-k": ["--top-k", 2],
        "cased": ["--cased"],
    }.get(change, [])
    if change == "engine":
        other = folder.parent / "other"
        other.mkdir()
        arguments = ["-e", write_stand_in(other), *arguments[2:]]
        (other / "stand_in.engine").write_bytes(b"another")
    bad = next(number for number, row in enumerate(rows) if row["question"] is None)
    number = (bad + 2 + int(rng.integers(60))) % 64
    if change == "fault":
        del rows[bad]["question"]  # it is missing, and was not text
    elif change == "row":
        rows[number]["question"] += "?"
    elif change == "order":
        rows[number], rows[number + 1] = rows[number + 1], rows[number]
    elif change == "fewer":
        del rows[100:]
    elif change == "id":
        rows[number]["id"] += "x"
    elif change == "context":
        rows[number]["context"] += " "
    elif change == "error":
        rows[number]["question"] = None
    write_rows(folder.parent / "asked.jsonl", rows)
    result = script("tests.stand_in", *arguments, *flags)
    assert result.code == 1 and "--fresh throws it away and begins again" in result.error
    named = {"options": "options", "threshold": "options", "top-k": "output", "engine": "engine", "cased": "tokenizer"}
    assert named.get(change, "other questions") in result.error
    assert files_of(folder) == files
    result = script("tests.stand_in", *arguments, *flags, "--fresh")
    assert result.code == 1 and set(files_of(folder)) == {"out.jsonl"}
    assert [answer["id"] for answer in read_answers(folder / "out.jsonl")] == [row["id"] for row in rows]


def test_questions_after_those_answered_may_change(script, folder, killed):
    arguments, rows, _ = killed
    rows[-1]["question"] = "Who else?"
    write_rows(folder.parent / "asked.jsonl", [*rows, rows[-2]])  # not rows[0], which may be the one that fails
    assert ", 1 failed: " in script("tests.stand_in", *arguments).out
    answers = read_answers(folder / "out.jsonl")
    assert len(answers) == 141 and answers[139]["question"] == "Who else?"


STATES = [
    b"",
    b"{",
    b"[]",
    b"{}",
    b"\xff",
    b"[" * 100_000,
    *({name: value} for name in ("entries", "failed", "bytes") for value in (-1, 1.5, "1", None, True)),
    *({name: value} for name, value in (("facts", []), ("digest", 3), ("whole", 1), ("whole", None))),
    {"bytes": 1 << 40},
]


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("state", STATES, ids=range(len(STATES)))
def test_damaged_states_are_refused(script, folder, killed, state):
    arguments, _, files = killed
    path = folder / "out.jsonl.partial.json"
    path.write_bytes(json.dumps(json.loads(path.read_text()) | state).encode() if isinstance(state, dict) else state)
    before = files_of(folder)
    result = script("tests.stand_in", *arguments)
    assert result.code == 1 and "out.jsonl.partial" in result.error and "--fresh" in result.error, result
    assert files_of(folder) == before
    assert ", 1 failed: " in script("tests.stand_in", *arguments, "--fresh").out
    assert set(files_of(folder)) == {"out.jsonl"}


def test_a_squad_file_is_begun_again(script, engine, folder, rng):
    arguments = command("squad", engine, random_rows(rng, 100, longest=12), folder)
    with States(folder) as states:
        assert script("tests.stand_in", *arguments).code == 0
    result = files_of(folder)
    with_entries = next(files for files in states.found if b'"entries": 64' in files.get("out.json.partial.json", b""))
    put(folder, with_entries)
    assert "(64 of them in runs before this one)" in script("tests.stand_in", *arguments).out
    put(folder, with_entries)
    refused = script("tests.stand_in", *arguments, "--cased")
    assert "tokenizer" in refused.error and "--fresh" in refused.error and files_of(folder) == with_entries
    fresh = script("tests.stand_in", *arguments, "--fresh")
    assert fresh.code == 0 and "runs before" not in fresh.out and files_of(folder) == result


def test_a_table_that_was_empty_and_published_may_grow(script, engine, folder):
    asked = folder.parent / "asked.csv"
    asked.write_text("question,context\n")
    arguments = ["-e", engine, "--rows", asked, "-o", folder / "out.csv"]
    with States(folder) as states:
        assert script("tests.stand_in", *arguments).code == 0
    (left,) = [files for files in states.found if set(files) == {"out.csv", "out.csv.partial.json"}]
    put(folder, left)
    assert script("tests.stand_in", *arguments).code == 0 and set(files_of(folder)) == {"out.csv"}
    put(folder, left)
    asked.write_text("question,context\nWho?,Ann Roe.\n")
    assert "other questions: --fresh" in script("tests.stand_in", *arguments).error
    assert script("tests.stand_in", *arguments, "--fresh").code == 0 and len(read_answers(folder / "out.csv")) == 1


def test_a_partial_that_was_cut_or_changed_is_refused(script, folder, killed):
    arguments, _, files = killed
    partial = folder / "out.jsonl.partial"

    def zeroed():  # as a power cut can leave it
        partial.write_bytes(partial.read_bytes()[:-9] + bytes(9))

    for change in (lambda: os.truncate(partial, partial.stat().st_size - 1), partial.unlink, zeroed):
        put(folder, files)
        change()
        result = script("tests.stand_in", *arguments)
        assert result.code == 1 and "is damaged: --fresh" in result.error
    assert files_of(folder)["out.jsonl"] == b"before"


def test_another_command_leaves_what_a_published_run_left(script, engine, folder, rng):
    """It is refused, and takes nothing from the command whose run it was."""
    asked = write_rows(folder.parent / "asked.jsonl", random_rows(rng, 70, longest=12))
    arguments = ["-e", engine, "--rows", asked, "-o", folder / "out.jsonl"]
    with States(folder) as states:
        assert script("tests.stand_in", *arguments).code == 0
    (left,) = [files for files in states.found if set(files) == {"out.jsonl", "out.jsonl.partial.json"}]
    put(folder, left)
    assert "--fresh" in script("tests.stand_in", *arguments, "--top-k", 2).error
    result = script("tests.stand_in", *arguments)
    assert result.code == 0 and "was whole" in result.err and set(files_of(folder)) == {"out.jsonl"}


def test_what_a_published_run_leaves_is_not_taken_for_another_s(script, engine, folder, rng):
    """Killed between the last two steps, it has left its state only: other questions are asked all the same."""
    rows = random_rows(rng, 70, longest=12)
    arguments = command("jsonl", engine, rows, folder)
    with States(folder) as states:
        assert script("tests.stand_in", *arguments).code == 0
    (left,) = [files for files in states.found if set(files) == {"out.jsonl", "out.jsonl.partial.json"}]
    more = [*rows, rows[0] | {"id": "more"}]
    others = [rows[0] | {"question": "Who else?"}, *rows[1:]]
    for asked in (rows, more, others, rows[:-1]):
        put(folder, left)
        write_rows(folder.parent / "asked.jsonl", asked)
        result = script("tests.stand_in", *arguments)
        if asked is not rows:
            assert "begun with other questions: --fresh" in result.error and files_of(folder) == left
            result = script("tests.stand_in", *arguments, "--fresh")
        assert result.code == 0 and set(files_of(folder)) == {"out.jsonl"}, result
        answers = read_answers(folder / "out.jsonl")
        assert [(one["id"], one["question"]) for one in answers] == [(row["id"], row["question"]) for row in asked]


# -- what is not its own


@pytest.mark.parametrize("flags", [(), ("--fresh",)])
def test_a_foreign_file_is_never_overwritten(script, engine, folder, rng, flags):
    (folder / "out.jsonl.partial").write_bytes(b"somebody else's")
    before = files_of(folder)
    result = script("tests.stand_in", *command("jsonl", engine, random_rows(rng, 3), folder), *flags)
    assert result.code == 1 and "out.jsonl.partial is in the way, and not of this tool" in result.error
    assert files_of(folder) == before


def test_inputs_are_never_overwritten(script, engine, folder, rng):
    for name in ("out.jsonl", "out.jsonl.partial", "out.jsonl.partial.json"):
        asked = folder / name
        link = folder / "asked.jsonl"
        write_rows(asked, random_rows(rng, 3))
        link.unlink(missing_ok=True)
        link.symlink_to(asked)
        before = files_of(folder)
        result = script("tests.stand_in", "-e", engine, "--rows", link, "-o", folder / "out.jsonl")
        assert result.code == 1 and "would replace an input" in result.error and files_of(folder) == before
        asked.unlink()


@pytest.mark.parametrize("flags", [(), ("--fresh",)])
def test_two_at_once(script, engine, folder, rng, flags):
    """The second is refused; the first goes on as if nothing had been."""
    arguments = command("jsonl", engine, random_rows(rng, 3), folder)
    with Journal(folder / "out.jsonl", FACTS) as first:
        first.append(b"{}\n", 1, 0, "d")
        before = files_of(folder)
        result = script("tests.stand_in", *arguments, *flags)
        assert result.code == 1 and f"another process is writing {folder / 'out.jsonl'}" in result.error
        assert files_of(folder) == before
        first.append(b"[]\n", 1, 0, "d")
        first.publish()
    assert files_of(folder) == {"out.jsonl": b"{}\n[]\n"}


@pytest.mark.parametrize("third", [False, True])
@pytest.mark.parametrize("fresh", [False, True])
def test_the_first_ends_while_the_second_begins(folder, monkeypatch, fresh, third):
    """What the second has opened is then the output, which is not its own any more."""
    output = folder / "out.jsonl"
    first = Journal(output, FACTS)
    first.append(b"{}\n", 1, 0, "d")
    lock, others = Journal._lock, []

    def published(self):
        monkeypatch.setattr(Journal, "_lock", lock)
        first.publish()
        first.__exit__()
        if third:
            others.append(Journal(output, FACTS))
        self._lock()

    monkeypatch.setattr(Journal, "_lock", published)
    try:
        with Journal(output, FACTS, fresh) as second:
            assert second.is_empty
    except DemoBertError as error:
        assert "another process" in str(error)
    assert output.read_bytes() == b"{}\n"
    for other in others:
        other.append(b"[]\n", 1, 0, "d")
        other.publish()
        assert output.read_bytes() == b"[]\n"


def test_a_full_disk(script, engine, folder, rng):
    """Said in one line; with room again, the same command goes on."""
    rows = random_rows(rng, 300, longest=12)
    arguments = command("jsonl", engine, rows, folder)
    assert script("tests.stand_in", *arguments).code == 0
    whole = files_of(folder)
    put(folder, {})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole["out.jsonl"]) // 2, limits[1]))
    try:
        result = script("tests.stand_in", *arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.code == 1 and "can't write" in result.error
    assert "out.jsonl" not in files_of(folder)
    result = script("tests.stand_in", *arguments)
    assert "going on after question" in result.err and files_of(folder) == whole


# -- the class


def test_entries_count_when_they_are_appended(folder, rng):
    """Whatever was written after that is cut away."""
    output = folder / "out"
    written, entries, failed = b"", 0, 0
    for turn in range(20):
        with Journal(output, FACTS) as journal:
            assert (journal.entries, journal.failed, journal.digest) == (
                entries,
                failed,
                f"d{turn - 1}" if turn else "",
            )
            assert b"".join(journal.lines()) == written and journal.is_empty == (not written)
            data, count, bad = rng.bytes(int(rng.integers(1, 9))), int(rng.integers(5)), int(rng.integers(3))
            journal.append(data, count, bad, f"d{turn}")
        written, entries, failed = written + data, entries + count, failed + bad
        with open(f"{output}.partial", "ab") as file:
            file.write(rng.bytes(int(rng.integers(9))))
    with Journal(output, FACTS) as journal:
        journal.publish()
    assert files_of(folder) == {"out": written}


def test_a_full_disk_is_one_error(folder):
    """What could not be written is not tried again when the file is closed."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    journal = Journal(folder / "out", FACTS)
    journal.append(b"x" * 5000, 1, 0, "d")
    resource.setrlimit(resource.RLIMIT_FSIZE, (5500, limits[1]))
    try:
        with pytest.raises(DemoBertError, match="can't write .*out.partial: File too large"), journal:
            journal.append(b"y" * 1000, 1, 0, "e")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with Journal(folder / "out", FACTS) as journal:
        assert list(journal.lines()) == [b"x" * 5000]


def test_files_change_by_being_renamed(folder):
    """No kill finds a state or an output that is written in part."""
    output, state = folder / "out", folder / "out.partial.json"
    with Journal(output, FACTS) as journal, state.open() as before:
        text = before.read()
        journal.append(b"x", 1, 0, "d")
        before.seek(0)
        assert before.read() == text != state.read_text()
        partial = journal.path.stat()
        journal.publish()
    assert os.path.samestat(partial, output.stat()) and files_of(folder) == {"out": b"x"}


def test_facts_are_compared_as_json_holds_them(folder):
    with Journal(folder / "out", {"a": (1, 2), "b": {"x": None}}) as journal:
        journal.append(b"x", 1, 0, "")
    with Journal(folder / "out", {"a": [1, 2], "b": {"x": None}}) as journal:
        assert journal.entries == 1
    for facts, named in (({"a": [1, 3], "b": {"x": None}}, "a"), ({"a": [1, 2]}, "b"), ({}, "a, b")):
        with pytest.raises(DemoBertError, match=rf"another command \(not the same: {named}\): --fresh"):
            Journal(folder / "out", facts)


def test_a_name_that_can_not_be_written(folder):
    (folder / "out.partial").mkdir()
    with pytest.raises(DemoBertError, match="out.partial"):
        Journal(folder / "out", FACTS)


# -- the real thing


def killed_at_random(arguments: list, kills: int, longest: float, seed: int) -> int:
    """Run inference.py, killing it so often at random moments, then to its end; how many were alive to be killed."""
    moments = random.Random(seed)
    landed = 0
    start = list(map(str, [sys.executable, ROOT / "inference.py", *arguments]))
    for _ in range(kills):
        process = subprocess.Popen(start, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(moments.uniform(0, longest))
        process.send_signal(signal.SIGKILL)
        landed += process.wait() == -signal.SIGKILL
    done = subprocess.run(start, capture_output=True, text=True)
    assert done.returncode == 0, done
    return landed


@pytest.mark.sampled(0.4, group="slow")
@pytest.mark.parametrize("kind", ["jsonl", "squad"])
def test_killed_at_random(bundled_engine, folder, rng, kind):
    """SIGKILL while the real engine answers, at 5 random moments; of -sq, at 3."""
    rows = random_rows(rng, 150, longest=8)
    arguments = command(kind, bundled_engine, rows, folder)
    begin = time.perf_counter()
    assert killed_at_random(arguments, 0, 0, 0) == 0
    seconds = time.perf_counter() - begin
    result = files_of(folder)
    put(folder, {})
    kills = 5 if kind == "jsonl" else 3
    assert killed_at_random(arguments, kills, seconds, int(rng.integers(1 << 30))) > 0
    assert files_of(folder) == result


def test_ctrl_c_says_that_the_same_command_goes_on(script, engine, folder, rng, monkeypatch):
    asked = write_rows(folder.parent / "asked.jsonl", random_rows(rng, 200, longest=12))
    arguments = ["-e", engine, "--rows", asked, "-o", folder / "out.jsonl"]
    append = Journal.append

    def stopped(self, *entries):
        append(self, *entries)
        if self.entries >= 100:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "append", stopped)
    result = script("tests.stand_in", *arguments)
    assert result.code == 130 and "Stopped after question 128: the same command goes on" in result.err


def test_a_number_that_a_damaged_disk_has_changed_is_not_believed(tmp_path):
    """The count of questions would be the next run's, the count of failures its exit code."""
    with Journal(tmp_path / "out", FACTS) as journal:
        journal.append(b"one\ntwo\n", 2, 0, "digest")
    state = tmp_path / "out.partial.json"
    values = json.loads(state.read_text())
    for name, value in (("entries", 1), ("entries", 1 << 64), ("failed", 1), ("digest", "other"), ("seal", "0" * 64)):
        state.write_text(json.dumps(values | {name: value}))
        with pytest.raises(DemoBertError, match="is damaged: --fresh"):
            Journal(tmp_path / "out", FACTS)
    state.write_text(json.dumps(values))
    with Journal(tmp_path / "out", FACTS) as journal:
        assert journal.entries == 2
