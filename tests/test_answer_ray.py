"""Files of questions spread over engines by Ray Data: inference.py's answers, deaths, runs that go on, bad files, ends."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed (requirements-dev.txt)")
if importlib.util.find_spec("ray") is None:  # its import takes seconds, and is not needed here
    pytest.skip("Ray is not installed (requirements-dev.txt)", allow_module_level=True)

import pyarrow.parquet as pq  # noqa: E402

from helpers.answer_options import AnswerOptions  # noqa: E402
from helpers.engine_card import EngineCard  # noqa: E402
from helpers.errors import DemoBertError, UsageError  # noqa: E402
from helpers.files import sha256_of  # noqa: E402
from helpers.journal import seal  # noqa: E402
from helpers.rows import QuestionRow  # noqa: E402
from helpers.squad import read_squad  # noqa: E402
from scripts.benchmarks import scaling  # noqa: E402
from scripts.scaling import engines, formats, inputs, planning  # noqa: E402
from scripts.scaling.cluster import shares  # noqa: E402
from scripts.scaling.ledger import LEDGER, Entry, Ledger  # noqa: E402
from tests.conftest import ROOT  # noqa: E402
from tests.listening import listeners  # noqa: E402
from tests.ray_deaths import deaths  # noqa: E402
from tests.stand_in import random_rows, write_rows  # noqa: E402
from tests.test_scripts import xquad  # noqa: E402

SCRIPT = ROOT / "scripts" / "answer_ray.py"


def command(script, engine, tables, output, *flags) -> list[str]:
    return [*map(str, [sys.executable, *script, "-e", engine, "--rows", tables, "-o", output, *flags])]


def answer(engine, tables, output, *flags, script=(SCRIPT,)) -> subprocess.CompletedProcess:
    """answer_ray.py in a process of its own: Ray is started once in one. Where it is started is no matter."""
    words = command(script, engine, tables, output, *flags)
    place = ROOT if script[0] == "-m" else Path(output).parent
    return subprocess.run(words, cwd=place, capture_output=True, text=True, timeout=600)


def write_parquet(path: Path, rows: list[dict], **options) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def descendants(root: int) -> dict[int, str]:
    """Process → its name, of all that `root` has started, and what they have."""
    parents, names = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, tail = path.read_text().rpartition(")")
        except OSError:
            continue
        if tail.split()[0] != "Z":
            pid = int(path.parent.name)
            parents[pid], names[pid] = int(tail.split()[1]), head.partition("(")[2]
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return {pid: names[pid] for pid in found - {root} if pid in names}


def ray_folders() -> set[Path]:
    return {path for folder in {"/tmp", os.environ.get("TMPDIR", "/tmp")} for path in Path(folder).glob("ray-????????")}


#: Rows whose passage is no text: each has its own error, and costs no other.
ODD = [{"id": "odd", "question": "q", "context": context} for context in (["x"], {"x": 1}, 5, True)]


# Real runs


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    """XQuAD's questions, some of them, or random ones where XQuAD is not here."""
    try:
        examples = random.sample(read_squad(xquad()).examples, 180)
    except pytest.skip.Exception:
        return random_rows(np.random.default_rng(), 180, odd=0)
    return [{"id": one.question_id, "question": one.question, "context": one.passage[:400]} for one in examples]


@pytest.fixture(scope="module")
def run(rows, small_engine, tmp_path_factory):
    """One run with all that can be asked of one: (its result, the tables, the answers, the folder of deaths)."""
    root = tmp_path_factory.mktemp("ray")
    tables, output, died = root / "tables", root / "answers", root / "deaths"
    for folder in (tables, died):
        folder.mkdir()
    for number in range(3):
        write_parquet(tables / f"part{number}.parquet", rows[60 * number : 60 * number + 60])
    write_rows(tables / "semi.csv", [*rows[:5], {"id": "empty", "question": " ", "context": "x"}], delimiter=";")
    once = [dict(rows[0], question="When? DIES ONCE"), *rows[:150]]
    write_rows(tables / "once.jsonl", once)
    write_rows(tables / "poison.jsonl", [*rows[:70], dict(rows[0], question="DIES ALWAYS"), *rows[:70]])
    (tables / "READER DIES.jsonl").write_bytes((tables / "once.jsonl").read_bytes())
    (tables / "broken.parquet").write_bytes((tables / "part0.parquet").read_bytes()[:-40])
    (tables / "empty.csv").write_bytes(b"")
    (tables / "no_columns.csv").write_bytes(b"a,b\n1,2\n")
    os.mkfifo(tables / "pipe.jsonl")
    (tables / "gone.jsonl").symlink_to(root / "nowhere")
    write_rows(root / "link's.jsonl", [*rows[:3], {"question": 3, "context": "x"}, *ODD, dict(rows[3], id=7)])
    (tables / "link.jsonl").symlink_to(root / "link's.jsonl")
    (tables / "_list.jsonl").write_bytes(b"no table\n")
    (tables / "notes.txt").write_bytes(b"no table\n")
    flags = ["--part-rows", 64, "--engines", min(2, len(os.sched_getaffinity(0))), "--top-k", 2]
    before = ray_folders()
    result = answer(small_engine, tables, output, *flags, script=("-m", "tests.ray_deaths", died))
    assert ray_folders() <= before
    return result, tables, output, died


SOUND = {"part0", "part1", "part2", "semi", "once", "link"}


@pytest.mark.parametrize("name", sorted(SOUND))
def test_the_answers_are_inference_py_s(run, script, small_engine, tmp_path, name):
    """To the byte: the same questions are sorted into batches together. One table's engine was killed in between."""
    _, tables, output, _ = run
    table = next(tables.glob(f"{name}.*"))
    if table.suffix == ".parquet":
        table = write_rows(tmp_path / "table.jsonl", pq.read_table(table).to_pylist())
    expected = tmp_path / "answers.jsonl"
    script("inference.py", "-e", small_engine, "--rows", table, "-o", expected, "--top-k", 2)
    assert (output / f"{name}.jsonl").read_bytes() == expected.read_bytes()


def test_deaths_cost_nothing_and_end(run):
    result, _, output, died = run
    assert deaths(died, "once") == 1 and deaths(died, "always") == deaths(died, "reader") == 3
    assert "has died and was started again: its questions were asked again" in result.stderr
    assert "poison.jsonl: a process died again and again over what follows row 64" in result.stderr
    assert "READER DIES.jsonl: a process died again and again over what follows row 0" in result.stderr


def test_bad_tables_are_said_and_left_out(run):
    result, tables, output, _ = run
    assert files_in(output) == {f"{name}.jsonl" for name in SOUND} | {LEDGER}
    assert result.returncode == 1 and "Traceback" not in result.stderr
    for said in (
        f"{tables}/broken.parquet is not a parquet file that can be read (",
        f"table of questions is empty: {tables}/empty.csv; it is left out",
        f"{tables}/no_columns.csv needs the columns question and context in its first line; there is: a,b",
        f"table of questions is not a file: {tables}/pipe.jsonl",
        f"table of questions not found: {tables}/gone.jsonl",
        f"{tables}/semi.csv: its fields are separated by ;",
    ):
        assert result.stderr.count(said) == 1, result.stderr
    (line,) = result.stdout.splitlines()
    assert line.startswith("Answered 340 questions of 6 of 13 files in ") and "6 failed, 7 files left out" in line
    lines = [line for line in result.stderr.splitlines() if "has died and was started again" not in line]
    assert len(lines) == 7 + 1, result.stderr  # what was left out; the CSV file's separator


@pytest.mark.sampled(0.4, group="slow")
def test_a_second_run_does_what_is_left(run, small_engine):
    """Parquet out beside them is another command's; a table that has changed, and one whose answers are gone, are done."""
    _, tables, output, _ = run
    before = {path.name: (path.stat().st_ino, path.read_bytes()) for path in output.glob("*.jsonl")}
    bad = [path for path in tables.iterdir() if path.stem not in SOUND]
    for path in bad:
        path.unlink()
    flags = ["--part-rows", 64, "--engines", 1, "--top-k", 2]
    result = answer(small_engine, tables, output, *flags)  # without Ray
    assert result.returncode == 1 and "6 of 6 files are answered already" in result.stderr
    assert result.stdout.startswith(
        "Answered 340 questions of 6 files (340 of them in runs before this one), 6 failed: "
    )
    refused = answer(small_engine, tables, output, *flags, "--doc-stride", 16)
    assert refused.returncode == 1 and "is of another command (not the same: options): --fresh" in refused.stderr
    (output / "part1.jsonl").unlink()
    with open(output / "part2.jsonl", "ab") as file:
        file.write(b"{}\n")
    table = pq.read_table(tables / "part0.parquet").to_pylist()[:9]
    write_parquet(tables / "part0.parquet", table)
    result = answer(small_engine, tables, output, *flags)
    after = {path.name: (path.stat().st_ino, path.read_bytes()) for path in output.glob("*.jsonl")}
    assert "part0.parquet is not what part0.jsonl was made from" in result.stderr
    assert "part2.jsonl is not what was written into it" in result.stderr and "3 of 6 files" in result.stderr
    assert {name for name in before if before[name] != after[name]} == {
        "part0.jsonl",
        "part1.jsonl",
        "part2.jsonl",
        LEDGER,
    }
    assert after["part1.jsonl"][1] == before["part1.jsonl"][1] and after["part2.jsonl"][1] == before["part2.jsonl"][1]
    assert after["part0.jsonl"][1] == b"".join(before["part0.jsonl"][1].splitlines(True)[:9])


@pytest.mark.sampled(0.4, group="slow")
def test_engines_that_die_while_they_are_loaded_end_the_run(rows, small_engine, tmp_path):
    table, died = write_rows(tmp_path / "x.jsonl", rows[:5]), tmp_path / "deaths"
    died.mkdir()
    (died / "loaders die").touch()
    result = answer(small_engine, table, tmp_path / "answers", "--engines", 1, script=("-m", "tests.ray_deaths", died))
    assert result.returncode == 1 and "3 processes were ended while they loaded the engine" in result.stderr
    assert deaths(died, "loader") == 3 and not list(Path(tempfile.gettempdir()).glob("demobert-loads-*"))


LOADING = """
import os, sys, tempfile, time
from scripts.scaling import engines
tempfile.tempdir = sys.argv[1]
with engines.counted_loads(sys.argv[2]):
    print("loading", flush=True)
    if sys.argv[3] == "die":
        os._exit(9)
    sys.stdin.read()
"""


def test_only_loads_that_end_their_process_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def loading(place: str, what: str) -> subprocess.Popen:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        process = subprocess.Popen([sys.executable, "-c", LOADING, tmp_path, place, what], env=environment, **pipes)
        assert process.stdout.readline() == "loading\n"
        return process

    for error in (None, DemoBertError("damaged")) * 4:
        with contextlib.suppress(DemoBertError), engines.counted_loads("place"):
            assert len(files_in(tmp_path)) == 1
            if error:
                raise error
        assert not files_in(tmp_path)
    others = [
        loading("place", "wait") for _ in range(engines.MOST_LOADS)
    ]  # in one place at once, as where cores are few
    dead = [loading("place", "die") for _ in range(engines.MOST_LOADS - 1)]
    assert [process.wait(60) for process in dead] == [9] * len(dead)
    assert loading("another place", "die").wait(60) == 9
    dead.append(loading("place", "die"))
    dead[-1].wait(60)
    with pytest.raises(DemoBertError, match="3 processes were ended while .* memory may be short"):
        engines.counted_loads("place").__enter__()
    with engines.counted_loads("place"):  # the next run begins anew
        pass
    for process in others:
        process.communicate("", timeout=60)
        assert process.returncode == 0
    assert len(files_in(tmp_path)) == 1
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with engines.counted_loads("place"):
        pass


@pytest.mark.sampled(0.4, group="slow")
def test_a_signal_ends_all_and_leaves_nothing_half_done(rows, small_engine, tmp_path):
    """Meanwhile nothing listens on another address than loopback."""
    table, output = write_rows(tmp_path / "long.jsonl", rows * 200), tmp_path / "answers"
    before = ray_folders()
    words = command([SCRIPT], small_engine, table, output, "--part-rows", 64, "--format", "parquet")
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not any(path.stat().st_size > 10_000 for path in output.glob(".long.parquet.*.tmp")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        started = descendants(process.pid)
        found = listeners({process.pid, *started})
        assert found and {address for address, _ in found} <= {"127.0.0.1", "::ffff:127.0.0.1"}
        assert {"raylet", "gcs_server"} <= set(started.values())
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (143, "", "")
    left = {pid for pid in started if Path(f"/proc/{pid}").exists() and descendants(1).get(pid) == started[pid]}
    assert not left and files_in(output) == set() and ray_folders() <= before


def test_where_there_is_no_cluster(small_engine, rows, tmp_path):
    table = write_rows(tmp_path / "table.jsonl", rows[:3])
    result = answer(small_engine, table, tmp_path / "answers", "--address", "auto")
    assert result.returncode == 1 and "there is no Ray cluster at auto" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr and result.stdout == ""


# Without Ray


@pytest.fixture
def settings(small_engine):
    card = EngineCard.read(EngineCard.path_for(small_engine))
    facts = {"engine": card.engine_sha256, "tokenizer": card.tokenizer_sha256}

    def make(form: str = "jsonl", **others):
        made = {"engine": str(small_engine), "facts": facts, "options": AnswerOptions(batch_size=2), "top_k": 2}
        return engines.EngineSettings(**made | {"form": form, "cores": 1, "run": os.urandom(4).hex(), **others})

    cores = os.sched_getaffinity(0)
    yield make
    engines.keep_to(cores)


def asked(actor, rows) -> tuple[dict, bytes]:
    head = {"share": 1.0, "notes": [], "facts": None, "failure": None}
    (table,) = actor(engines.travelling(0, 0, head, engines.packed_rows(rows)))
    (values,) = table.to_pylist()
    return json.loads(values["head"]), values["data"]


def test_parquet_holds_what_json_lines_hold(settings, tmp_path):
    rows = [
        QuestionRow("a", "Who?", "Ann built it."),
        QuestionRow(7, "When? [SEP]", "In 1790 — 😀."),
        QuestionRow(None, "x", None, DemoBertError("line 3: no \udcff passage")),
    ]
    (_, lines), (head, table) = (asked(engines.EngineActor(settings(form)), rows) for form in ("jsonl", "parquet"))
    assert (head["questions"], head["failed"], head["fatal"]) == (3, 1, None)
    assert head["notes"] == ["Note: [SEP] in a text is read as text, not as the model's own token"]
    with open(tmp_path / "x.parquet", "wb") as file:
        writer = formats.ParquetWriter(file)
        writer.write(table)
        writer.close()
    read = pq.read_table(tmp_path / "x.parquet").to_pylist()
    expected = [json.loads(line) for line in lines.splitlines()]
    assert [row["id"] for row in read] == ["a", "7", None]
    for row, fields in zip(read, expected):
        assert {name: row[name] for name in fields if name != "id"} == {k: v for k, v in fields.items() if k != "id"}
        assert all(row[name] is None for name in set(row) - set(fields))


@pytest.mark.parametrize("change", ["engine", "facts"])
def test_an_engine_that_is_another_ends_the_run(settings, change):
    others = {"engine": "/no/such.engine"} if change == "engine" else {"facts": {"engine": "0", "tokenizer": "0"}}
    head, data = asked(engines.EngineActor(settings(**others)), [QuestionRow("a", "Who?", "Ann.")])
    said = "engine not found" if change == "engine" else "is another engine than where the run was started"
    assert said in head["fatal"] and not data


def test_rows_travel_as_they_are():
    rows = [
        QuestionRow("a", "q", "p\udc80"),
        QuestionRow(None, None, None, DemoBertError("x")),
        QuestionRow(3, "", "p"),
    ]
    again = engines.unpacked_rows(engines.packed_rows(rows))
    assert [(row.question_id, row.question, row.passage, str(row.error)) for row in again] == [
        (row.question_id, row.question, row.passage, str(row.error)) for row in rows
    ]


def test_a_place_goes_with_its_process():
    first, second = (engines.claim_number("a-run", 2) for _ in range(2))
    assert [first[1], second[1], engines.claim_number("a-run", 2)[1]] == [0, 1, 0]
    second[0].close()
    assert engines.claim_number("a-run", 2)[1] == 1 and engines.claim_number("another", 2)[1] == 0
    first[0].close()


def test_hardware_threads_of_a_core_stay_together(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(engines, "_core_place", lambda core: (0, core % 4, core))
    assert engines.core_groups(2) == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert engines.core_groups(3) == [[0, 4, 1], [5, 2, 6]] and engines.core_groups(9) == [[0, 4, 1, 5, 2, 6, 3, 7]]


@pytest.mark.parametrize(
    "asked_for, machines, given",
    [
        ((None, None), [16], (8, 2)),
        ((None, None), [1], (1, 1)),
        ((4, None), [16], (4, 4)),
        ((None, 3), [16, 4], (6, 3)),
        ((5, None), [16, 4], (5, 4)),
        ((3, None), [2, 2], (3, 1)),
    ],
)
def test_cores_are_shared(asked_for, machines, given):
    assert shares(*asked_for, machines) == given


@pytest.mark.parametrize("asked_for, machines", [((9, 2), [16]), ((None, 5), [4, 4]), ((5, None), [4]), ((1, 1), [])])
def test_more_than_there_is_is_refused(asked_for, machines):
    with pytest.raises(UsageError, match="are more than the"):
        shares(*asked_for, machines)


# Reading tables


def read(path, batch_size: int = 1, part_rows: int = 64) -> list[inputs.Part]:
    return list(inputs.read_parts(path, batch_size, part_rows))


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_parts_hold_whole_groups_of_rows(rng, tmp_path, suffix):
    rows = random_rows(rng, 300, odd=0)
    path = tmp_path / f"x{suffix}"
    write_parquet(path, rows) if suffix == ".parquet" else write_rows(path, rows)
    for batch_size, part_rows, counts in (
        (1, 1, [64, 64, 64, 64, 44]),
        (1, 100, [128, 128, 44]),
        (4, 1, [128, 128, 44]),
    ):
        *parts, end = read(path, batch_size, part_rows)
        assert [len(part.rows) for part in parts] == counts
        assert [row.question_id for part in parts for row in part.rows] == [row["id"] for row in rows]
        assert end.facts == {"bytes": path.stat().st_size, "sha256": inputs.sha256_of(path)} and not end.rows
        assert parts[-1].share == 1 and 0 < parts[0].share < 1


def test_long_passages_make_short_parts(tmp_path):
    path = write_rows(tmp_path / "x.jsonl", [{"question": "q", "context": str(n) * 600_000} for n in range(8)])
    assert [len(part.rows) for part in read(path, part_rows=1000)] == [4, 4, 0]


def test_rows_of_parquet_fail_one_by_one(tmp_path):
    bytes_of_it = pa.array([b"q", b"\xff", None, b"q", b"q"], pa.binary())
    texts = pa.Array.from_buffers(pa.string(), 5, bytes_of_it.buffers())
    contexts = pa.array(["c", "c", "c", None, "c"]).dictionary_encode()
    path = tmp_path / "x.parquet"
    pq.write_table(
        pa.table({"id": pa.array([1, 2, None, 4, 5]), "question": texts, "context": contexts, "more": [0] * 5}), path
    )
    (part, end) = read(path)
    assert [row.error and str(row.error) for row in part.rows] == [
        *(None, "row 2: question is not UTF-8 text", "row 3: question is missing", "row 4: context is missing", None)
    ]
    assert [row.question_id for row in part.rows] == [1, None, None, 4, 5] and end.facts


def test_a_long_text_of_parquet_is_its_row_s_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "MAX_LINE_BYTES", 1 << 20)
    path = write_parquet(tmp_path / "x.parquet", [{"question": "q", "context": "c" * (1 << 20) + "!"}] * 2)
    assert {str(row.error) for row in read(path)[0].rows} == {f"row {n}: context is longer than 1 MiB" for n in (1, 2)}


@pytest.mark.parametrize(
    "columns, said",
    [
        ({"question": ["q"]}, "needs the columns question and context; there is: question"),
        ({"question": [1], "context": ["c"]}, "the column question holds int64, not text"),
        ({"question": ["q"], "context": [["c"]]}, "the column context holds list<"),
    ],
)
def test_a_parquet_file_of_other_columns_is_refused(tmp_path, columns, said):
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    (part,) = read(tmp_path / "x.parquet")
    assert said in part.failure and str(tmp_path / "x.parquet") in part.failure


def test_damaged_parquet_files_end_in_one_line(rng, tmp_path):
    path = write_parquet(tmp_path / "x.parquet", random_rows(rng, 200, odd=0), row_group_size=50)
    whole, sound = path.read_bytes(), 0
    for _ in range(60):
        data = bytearray(whole)
        for at in rng.integers(4, len(data), int(rng.integers(1, 4))):
            data[at] ^= int(rng.integers(1, 256))
        path.write_bytes(data[: int(rng.integers(1, len(data)))] if rng.random() < 0.2 else data)
        end = read(path)[-1]
        assert (end.failure is None) != (end.facts is None) and "\n" not in (end.failure or "")
        sound += end.failure is None
    assert sound < 60


def test_a_table_that_changes_meanwhile_fails(tmp_path):
    path = write_rows(tmp_path / "x.jsonl", [{"question": "q", "context": "c"}] * 100)
    parts = inputs.read_parts(path, 1, 1)
    next(parts)
    path.write_bytes(path.read_bytes() + b"\n")
    assert list(parts)[-1].failure == f"{path} was changed while it was read"


def test_no_tables(tmp_path):
    with pytest.raises(DemoBertError, match="there is no .jsonl, .csv, .parquet in this folder"):
        inputs.input_tables(tmp_path)
    with pytest.raises(UsageError, match="the name must end in .jsonl, .csv, .parquet"):
        inputs.input_tables(tmp_path / "x.txt")
    with pytest.raises(DemoBertError, match="table of questions not found"):
        inputs.input_tables(tmp_path / "x.csv")


def test_folders_that_are_called_like_tables_are_named(tmp_path, capsys):
    names = [f"{number}.parquet" for number in range(7)]
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / "8.csv").touch()
    assert inputs.input_tables(tmp_path) == [tmp_path / "8.csv"]
    said = capsys.readouterr().err
    assert "left out, since they are folders" in said and said.endswith(f"{tmp_path}/4.parquet, …\n")


# What is refused before Ray is started


@pytest.fixture
def tables(tmp_path) -> Path:
    folder = tmp_path / "tables"
    folder.mkdir()
    for name in ("a.jsonl", "b.csv"):
        write_rows(folder / name, [{"id": "x", "question": "When?", "context": "In 1889."}])
    return folder


def refusal(script, *arguments) -> str:
    result = script("scripts.answer_ray.py", *arguments)
    assert result.out == ""
    return result.error


def test_answers_that_are_in_the_way(script, small_engine, tables, tmp_path):
    flags = ["-e", small_engine, "--rows", tables, "-o"]
    assert "is the folder of the tables" in refusal(script, *flags, tables)
    assert "-o" in refusal(script, *flags, tmp_path / "no" / "folder") and not (tmp_path / "no").exists()
    (tmp_path / "file").write_bytes(b"")
    assert "is not a folder" in refusal(script, *flags, tmp_path / "file")
    output = tmp_path / "answers"
    output.mkdir()
    (output / "a.jsonl").write_bytes(b"mine")
    assert "a.jsonl is in the way, and not of this tool" in refusal(script, *flags, output, "--fresh")
    assert (output / "a.jsonl").read_bytes() == b"mine"
    (output / "a.jsonl").unlink()
    (output / LEDGER).symlink_to(tmp_path / "file")
    assert "is a link" in refusal(script, *flags, output)
    (output / LEDGER).unlink()
    (output / LEDGER).write_bytes(b"a list\nof another tool\n")
    assert "is not of this tool, or damaged" in refusal(script, *flags, output)
    write_rows(tables / "a.csv", [{"id": "x", "question": "When?", "context": "In 1889."}])
    assert "a.csv and a.jsonl would both be answered in" in refusal(script, *flags, tmp_path / "answers")


def test_flags_that_make_no_sense(script, small_engine, tables, tmp_path):
    flags = ["-e", small_engine, "--rows", tables, "-o", tmp_path / "answers"]
    for more, said in (
        (["--top-k", 3, "--n-best-size", 2], "--top-k 3 is over the 2 answers"),
        (["--address", "ray://127.0.0.1:10001"], "give HOST:PORT or auto"),
        (["--engines", 1000], "1000 engines of 1 cores each are more than the"),
        (["-s", 1000], "sequence length 1000 is over this engine's largest, 64"),
        (["--format", "csv"], "invalid choice"),
    ):
        result = script("scripts.answer_ray.py", *flags, *more)
        assert result.code == 2 and said in result.error


def test_an_engine_without_its_card(script, small_engine, tables, tmp_path):
    engine = shutil.copy(small_engine, tmp_path / "x.engine")
    assert "has no engine card" in refusal(script, "-e", engine, "--rows", tables, "-o", tmp_path / "answers")


# The list of what is answered


ENTRY = Entry("x.jsonl", 3, "0" * 64, "x.csv", 5, "1" * 64, {"engine": "2"}, 1, 0)


def test_a_torn_or_damaged_line_says_nothing(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.add(ENTRY)
    path = tmp_path / LEDGER
    line = path.read_bytes()
    for damage in (line[:-20], line.replace(b'"failed": 0', b'"failed": 1'), b"[]\n", b"[" * 10_000):
        path.write_bytes(line + damage)
        ledger = Ledger(tmp_path)
        assert ledger.entries == {"x.jsonl": ENTRY}
        ledger.add(Entry(**vars(ENTRY) | {"output": "y.jsonl"}))
        assert Ledger(tmp_path).entries.keys() == {"x.jsonl", "y.jsonl"}


# Measuring


@pytest.mark.parametrize("changed", [{"output": []}, {"facts": [1]}, {"failed": "x"}, {"output": "../x.jsonl"}])
def test_a_sealed_line_of_other_kinds_says_nothing(changed, tmp_path):
    """Whoever hands on a folder can seal what he likes."""
    values = vars(ENTRY) | changed
    (tmp_path / LEDGER).write_text(json.dumps(values | {"seal": seal(values)}) + "\n")
    assert Ledger(tmp_path).entries == {}


def test_answers_that_are_a_link_are_not_followed(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "x.jsonl").symlink_to(tmp_path / "victim")
    ledger = Ledger(tmp_path)
    ledger.add(ENTRY)
    with pytest.raises(DemoBertError, match="is in the way"):
        planning.left_to_do({tmp_path / "x.csv": tmp_path / "x.jsonl"}, ledger, ENTRY.facts, fresh=False)


@pytest.mark.parametrize("what", ["pipe", "dangling", "changed"])
def test_a_table_that_has_become_another_is_its_reader_s_to_refuse(what, tmp_path):
    table, output = tmp_path / "x.csv", tmp_path / "x.jsonl"
    table.write_text("question,context\n")
    output.write_text("{}\n")
    ledger = Ledger(tmp_path)
    sizes = {"output_bytes": 3, "output_sha256": sha256_of(output), "table": "x.csv", "table_bytes": 17}
    ledger.add(Entry(**vars(ENTRY) | sizes | {"table_sha256": sha256_of(table)}))
    assert planning.left_to_do({table: output}, ledger, ENTRY.facts, fresh=False) == []
    table.unlink()
    {"pipe": lambda: os.mkfifo(table), "dangling": lambda: table.symlink_to("nowhere"),
     "changed": lambda: table.write_text("question;context\n")}[what]()  # fmt: skip
    assert planning.left_to_do({table: output}, ledger, ENTRY.facts, fresh=False) == [table]


def test_no_table_s_answers_are_the_list():
    with pytest.raises(UsageError, match="would be the list of answered files"):
        planning.check_names({Path("_answered.csv"): Path("out") / LEDGER})


def test_what_is_counted():
    """Two engines, of 10 questions a second each while both work: from 2 s, when the second has ended its first part, to
    5 s, when the first has nothing left."""
    first = [(0.0, 1.0, 10), (1.0, 3.0, 20), (3.0, 5.0, 20)]
    second = [(1.5, 2.0, 5), (2.0, 6.0, 40), (6.0, 7.0, 10)]
    assert scaling.steady_rate([first, second]) == (20.0, 3.0)
    with pytest.raises(DemoBertError, match="no time in which all engines worked"):
        scaling.steady_rate([first, [(5.0, 6.0, 1), (6.0, 7.0, 1)]])


def test_efficiency_is_of_medians():
    runs = [
        {"engines": count, "questions_per_second": rate}
        for count, rate in ((1, 10), (4, 38), (1, 12), (4, 36), (1, 9), (4, 40))
    ]
    found = scaling.summary(runs, 4)
    assert (found["questions_per_second_of_one"], found["questions_per_second_of_all"]) == (10, 38)
    assert found["times"] == 3.8 and found["efficiency"] == 0.95 and found["efficiency_of_rounds"][0] == 0.95


def test_the_measurement_s_report(script, monkeypatch, small_engine, tmp_path):
    """Without Ray: engines of 10 questions a second, which lose a tenth of it where they are two."""
    (tmp_path / "squad.json").write_text((ROOT / "tests" / "data" / "squad_v1.1.json").read_text())

    @contextlib.contextmanager
    def started(args, settings):
        yield dataclasses.replace(settings, cores=1), 2

    def answered_parts(tables, settings, count, part_rows, verbose):
        (table,) = tables
        asked = len(table.read_text().splitlines())
        for number in range(asked // 10):
            begin = number // count * (1.0 if count == 1 else 1 / 0.9)
            engine = {"place": f"core {number % count}", "begin": begin, "end": begin + 1, "process": 1}
            yield mock.Mock(head={"failure": None, "engine": engine, "questions": 10})

    monkeypatch.setattr("scripts.scaling.preparing.started", started)
    monkeypatch.setattr("scripts.scaling.pipeline.answered_parts", answered_parts)
    flags = ["-e", small_engine, "--squad", tmp_path / "squad.json", "--questions", 100, "--rounds", 3]
    result = script("scripts.benchmark_ray.py", *flags, "--json", tmp_path / "x.json")
    assert (
        result.code == 0 and result.out == "10.0 questions/s of one engine, 18.0 of 2: 1.80 times, 90.0 % of 2 times\n"
    )
    report = json.loads((tmp_path / "x.json").read_text())
    assert [run["engines"] for run in report["runs"]].count(2) == 3 and report["cores_of_an_engine"] == 1
    assert report["machine"]["cores"] == len(os.sched_getaffinity(0)) and report["options"]["sequence_length"] == 64
    few = script("scripts.benchmark_ray.py", *flags[:4], "--questions", 20)
    assert "2 of 2 engines had work, the one with the least 2 parts" in few.error or "1 of 1 engines" in few.error
