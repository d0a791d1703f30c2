"""Every output goes through helpers/outputs.py: links, nodes, locks, kills, and sets of files that belong together."""

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import outputs
from helpers.backends import load_engine, write_engine
from helpers.backends.base import BuiltEngine
from helpers.bert_config import BertConfig
from helpers.build_options import BuildOptions
from helpers.engine_card import EngineCard
from helpers.errors import DemoBertError
from helpers.outputs import (
    atomic_write,
    check_outputs,
    finish_pending,
    only_writer,
    place_of,
    write_json,
    write_together,
)
from tests.conftest import ROOT
from tests.kill_states import States, files_of, put

SQUAD = ROOT / "tests" / "data" / "squad_v1.1.json"
QUESTION = ["-p", "The tower was built in 1889.", "-q", "When?"]


def make_node(path: Path, kind: str) -> None:
    """Something that is no regular file, of this test's own."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(path))
    elif os.geteuid():
        pytest.skip("only root makes device nodes")
    else:
        os.mknod(path, (stat.S_IFCHR if kind == "character device" else stat.S_IFBLK) | 0o600, os.makedev(1, 3))


# -- what is no file is not replaced, and a link is followed


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("kind", ["pipe", "socket", "character device", "block device"])
def test_what_is_no_file_is_not_written(tmp_path, kind, linked):
    path, node = tmp_path / "out", tmp_path / ("node" if linked else "out")
    make_node(node, kind)
    if linked:
        path.symlink_to(node)
    before = node.lstat()
    for write in (lambda: write_json(path, 1), lambda: write_together({path: b"x", tmp_path / "other": b"y"})):
        with pytest.raises(DemoBertError, match="is a (named pipe|socket|device), not a file"):
            write()
    assert os.path.samestat(before, node.lstat()) and path.is_symlink() == linked
    assert {entry.name for entry in tmp_path.iterdir()} == {"out", node.name}


def output_commands(engine: Path, model: Path, folder: Path) -> dict[str, list]:
    """A command for each output flag, but for the output's path."""
    ask = ["inference.py", "-e", engine]
    squad = [*ask, "-sq", SQUAD]
    rows = folder / "rows.jsonl"
    rows.write_text('{"question": "When?", "context": "In 1889."}\n')
    time_it = ["perf.py", "-e", engine, "-s", 8, "-i", 1, "-w", 0]
    return {
        "builder -o": ["builder.py", "-pt", model, "-s", 16, "-o"],
        "-sq -o": [*squad, "-o"],
        "--n-best-output": [*squad, "-o", folder / "p.json", "--n-best-output"],
        "--null-odds-output": [*squad, "-o", folder / "p.json", "--null-odds-output"],
        "--json": [*ask, *QUESTION, "--json"],
        "--rows -o": [*ask, "--rows", rows, "-o"],
        "perf --json": [*time_it, "--json"],
        "perf --plot": [*time_it, "--plot"],
    }


FLAGS = (
    "builder -o",
    "-sq -o",
    "--n-best-output",
    "--null-odds-output",
    "--json",
    "--rows -o",
    "perf --json",
    "perf --plot",
)


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("flag", FLAGS)
def test_every_output_flag_leaves_nodes_and_links_alone(script, small_engine, small_model, tmp_path, flag):
    """A pipe is refused before anything is run; a link stays, and what it leads to is written; a dangling one makes it."""
    (tmp_path / "in").mkdir()
    command = output_commands(small_engine, small_model, tmp_path / "in")[flag]
    name = "out.jsonl" if flag == "--rows -o" else "out"
    os.mkfifo(tmp_path / name)
    result = script(*command, tmp_path / name)
    assert result.code == 1 and "is a named pipe, not a file" in result.error and "Reading" not in result.err
    os.unlink(tmp_path / name)
    (tmp_path / "far").mkdir()
    (tmp_path / name).symlink_to(tmp_path / "far" / "target.jsonl")
    for old in (None, b"before"):
        if old:
            (tmp_path / "far" / "target.jsonl").write_bytes(old)
        result = script(*command, tmp_path / name)
        assert result.code == 0 and (tmp_path / name).is_symlink(), result
        assert (tmp_path / "far" / "target.jsonl").stat().st_size > len(b"before")
    assert {entry.name for entry in (tmp_path / "far").iterdir()} == {"target.jsonl"}


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("odd", ["long", "long folder", "circle", "a file as folder"])
def test_names_that_no_file_can_have(script, small_engine, small_model, tmp_path, flag, odd):
    """Too long by themselves, or with what their temporary names add; links in a circle: one line."""
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "file").write_text("x")
    end = ".jsonl"
    path = {
        "long": tmp_path / ("n" * (250 - len(end)) + end),
        "long folder": tmp_path / ("n" * 300) / f"x{end}",
        "circle": tmp_path / "circle" / f"x{end}",
        "a file as folder": tmp_path / "file" / f"x{end}",
    }[odd]
    (tmp_path / "in").mkdir()
    result = script(*output_commands(small_engine, small_model, tmp_path / "in")[flag], path)
    why = re.search("too long|Too many levels|does not exist|Not a directory", result.error)
    assert result.code == 1 and why, result
    assert not result.out and "Reading" not in result.err, result  # said before anything is done
    assert {entry.name for entry in tmp_path.iterdir()} == {"circle", "file", "in"}


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("odd", ["long", "circle"])
@pytest.mark.parametrize(
    "command",
    [
        ["builder.py", "-o", "{out}", "-pt", "{odd}"],
        ["builder.py", "-o", "{out}", "-m", "{odd}", "-c", "{bundled}"],
        ["builder.py", "-o", "{out}", "-x", "{odd}", "-c", "{bundled}"],
        ["builder.py", "-o", "{out}", "-pt", "{bundled}", "-v", "{odd}"],
        ["builder.py", "-o", "{out}", "-pt", "{bundled}", "-c", "{odd}"],
        ["builder.py", "-o", "{out}", "-pt", "{bundled}", "-i", "-j", "{odd}"],
        ["builder.py", "-o", "{out}", "-pt", "{bundled}", "-i", "-p", "{odd}"],
        ["builder_varseqlen.py", "-o", "{out}", "--pickle", "{odd}", "-c", "{bundled}"],
        ["inference.py", "-e", "{odd}", *QUESTION],
        ["inference.py", "-e", "{engine}", "-pf", "{odd}", "-q", "When?"],
        ["inference.py", "-e", "{engine}", "-p", "a", "-qf", "{odd}"],
        ["inference.py", "-e", "{engine}", "-sq", "{odd}"],
        ["inference.py", "-e", "{engine}", "--rows", "{odd}.jsonl", "-o", "{out}.jsonl"],
        ["inference.py", "-e", "{engine}", *QUESTION, "-v", "{odd}"],
        ["inference.py", "-e", "{engine}", *QUESTION, "--trust-engine", "-c", "{odd}"],
        ["perf.py", "-e", "{odd}"],
        ["perf_varseqlen.py", "-e", "{odd}"],
        ["perf_varseqlen.py", "-e", "{engine}", "--lengths-from", "{odd}"],
    ],
)
def test_inputs_with_names_that_no_file_can_have(script, small_engine, small_model, tmp_path, command, odd):
    for name in ("circle", "circle.jsonl"):
        (tmp_path / name).symlink_to(tmp_path / name)
    places = {"odd": tmp_path / ("n" * 300 if odd == "long" else "circle"), "out": tmp_path / "out"}
    places |= {"bundled": small_model, "engine": small_engine}
    result = script(*(part.format(**places) for part in command))
    assert result.code in (1, 2) and result.error
    assert {entry.name for entry in tmp_path.iterdir()} == {"circle", "circle.jsonl"}


# -- inputs are not replaced


def test_outputs_may_not_replace_what_a_command_reads(script, small_engine, small_model, tmp_path):
    """Also under another name: by a link, by a hard link, as a file of a folder that is named."""
    engine = tmp_path / "copy.engine"
    for name, source in zip(EngineCard.set_of(engine), EngineCard.set_of(small_engine)):
        shutil.copy(source, name)
    tokenizer = EngineCard.tokenizer_path_for(engine)
    os.link(tokenizer, tmp_path / "hard")
    (tmp_path / "soft").symlink_to(EngineCard.path_for(engine))
    shutil.copytree(small_model, tmp_path / "model")
    before = files_of(tmp_path / "model") | {path.name: path.read_bytes() for path in EngineCard.set_of(engine)}
    vocabulary = tmp_path / "model" / "vocab.txt"
    for path in (engine, tokenizer, EngineCard.path_for(engine), tmp_path / "hard", tmp_path / "soft", vocabulary):
        named = ["-v", tmp_path / "model"]
        for flag in ("--json", "--plot"):
            more = named if path == vocabulary else []
            if not more:
                assert "would replace an input" in script("perf.py", "-e", engine, flag, path).error
        for command in ([*QUESTION, "--json"], ["-sq", SQUAD, "-o"], ["-sq", SQUAD, "--n-best-output"]):
            result = script("inference.py", "-e", engine, *named, *command, path)
            assert "would replace an input" in result.error, (path, command)
    lengths = ["perf_varseqlen.py", "-e", engine, "--lengths-from", SQUAD, "-v", vocabulary]
    assert "would replace an input" in script(*lengths, "--json", vocabulary).error
    result = script(
        "builder.py",
        "-m",
        tmp_path / "model" / "model",
        "-c",
        small_model,
        "-o",
        tmp_path / "model" / "model.safetensors",
    )
    assert "would replace an input" in result.error  # a checkpoint's prefix names all its files
    after = files_of(tmp_path / "model") | {path.name: path.read_bytes() for path in EngineCard.set_of(engine)}
    assert before == after


def test_two_outputs_of_one_file(tmp_path):
    (tmp_path / "a").write_text("x")
    os.link(tmp_path / "a", tmp_path / "b")
    with pytest.raises(DemoBertError, match="--two .* would replace the file of --one"):
        check_outputs({"--one": tmp_path / "a", "--two": tmp_path / "b"})


# -- one writer at a time; what killed ones leave

WRITE_SLOWLY = """
import sys, time
from helpers.outputs import atomic_write
with atomic_write(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    time.sleep(60)
"""


def slow_writer(path: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", WRITE_SLOWLY, str(path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    return process


def test_a_second_writer_is_told_of_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "_PATIENCE", 0.1)
    path = tmp_path / "out"
    process = slow_writer(path)
    try:
        with pytest.raises(DemoBertError, match="another process is writing"):
            write_json(path, 1)
        write_json(tmp_path / "other", 1)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert {entry.name for entry in tmp_path.iterdir()} > {"other", ".out.lock"} and not path.exists()
    write_json(path, 2)  # clears up after the dead
    assert {entry.name for entry in tmp_path.iterdir()} == {"out", "other"} and path.read_bytes() == b"2\n"


def test_a_writer_waits_for_one_that_is_nearly_done(tmp_path):
    path = tmp_path / "out"
    code = WRITE_SLOWLY.replace("60", "0.5")
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    write_json(path, 2)
    assert process.wait() == 0 and path.read_bytes() == b"2\n"
    process.stdout.close()


@pytest.mark.parametrize("signal_name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_leaves_no_temporary(tmp_path, signal_name):
    code = "from helpers import cli\ndef main(arguments):\n" + "\n".join(
        f"    {line}" for line in WRITE_SLOWLY.splitlines()
    )
    command = [sys.executable, "-c", f"{code}\ncli.run(main)", str(tmp_path / "out")]
    number = getattr(signal, signal_name)

    def as_usual():  # what runs the tests in the background may ignore it
        signal.signal(number, signal.SIG_DFL)

    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, preexec_fn=as_usual, **pipes)
    assert process.stdout.readline() == "writing\n"
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == 128 + number and not out and not err
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    """Files are written all the same; what another writer may still need is left."""

    def no_locks(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(outputs.fcntl, "flock", no_locks)
    (tmp_path / ".out.abcdefgh.tmp").write_text("another's")
    write_json(tmp_path / "out", 1)
    assert (tmp_path / "out").read_bytes() == b"1\n" and (tmp_path / ".out.abcdefgh.tmp").exists()


def test_the_lock_is_not_opened_through_what_others_put_there(tmp_path):
    (tmp_path / "victim").write_text("theirs")
    (tmp_path / ".out.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(DemoBertError, match="can't write"):
        write_json(tmp_path / "out", 1)
    os.unlink(tmp_path / ".out.lock")
    os.mkfifo(tmp_path / ".out.lock")
    write_json(tmp_path / "out", 1)
    assert (tmp_path / "victim").read_text() == "theirs"


def test_only_writer_is_entered_again_by_the_same_process(tmp_path):
    with only_writer(tmp_path / "out"), only_writer(tmp_path / "out"), atomic_write(tmp_path / "out") as file:
        file.write(b"x")
    assert files_of(tmp_path) == {"out": b"x"}


# -- sets of files: all old, all new, or finished by the next reader


def engine_contents(seed: int) -> tuple[BuiltEngine, BertConfig]:
    """An engine of no backend's: its card is all that is read of it."""
    return BuiltEngine(f"engine {seed}".encode() * 100, "1", "none", "native", ["fp32"]), BertConfig(
        48, 2, 3, 64, 100 + seed
    )


class Text:
    """A tokenizer, as far as `write_engine` wants one."""

    def __init__(self, seed: int):
        self.json = f"tokenizer {seed}".encode()
        self.sha256 = hashlib.sha256(self.json).hexdigest()


def write_set(path: Path, seed: int, tokenizer: bool = True) -> None:
    built, config = engine_contents(seed)
    write_engine(path, built, "openvino", BuildOptions(), config, Text(seed) if tokenizer else None)


def contents(seed: int, folder: Path, tokenizer: bool = True) -> dict[str, bytes]:
    write_set(folder / "x.engine", seed, tokenizer)
    return files_of(folder)


@pytest.mark.parametrize("first", ["with", "without", "none"])
@pytest.mark.parametrize("second", ["with", "without"])
def test_wherever_a_builder_is_killed_there_is_a_whole_set(tmp_path, first, second):
    """Between any two lines: the old files, or, once somebody looks, the new ones."""
    for name in ("old", "new", "x"):
        (tmp_path / name).mkdir()
    old = {} if first == "none" else contents(1, tmp_path / "old", first == "with")
    new = contents(2, tmp_path / "new", second == "with")
    folder, path = tmp_path / "x", tmp_path / "x" / "x.engine"
    put(folder, old)
    with States(folder) as states:
        write_set(path, 2, second == "with")
    assert files_of(folder) == new and len(states.found) > 8
    seen = set()
    for files in states.found:
        put(folder, files)
        finish_pending(path, EngineCard.set_of(path))
        left = {name: data for name, data in files_of(folder).items() if not name.startswith(".")}
        assert left in (old, new), sorted(files)
        seen.add(left == new)
        write_set(path, 3, tokenizer=False)  # and whatever was left is no hindrance to the next build
        assert set(files_of(folder)) == {"x.engine", "x.engine.json"}
    assert seen == {False, True}


def test_reading_an_engine_finishes_its_set(small_engine, tmp_path):
    """A reader that finds the set half in place puts the rest there."""
    names = [path.name for path in EngineCard.set_of(tmp_path / "x.engine")]
    temporaries = {}
    for name, source in zip(names, EngineCard.set_of(small_engine)):
        temporaries[name] = f".{name}.abcd_123.tmp"
        shutil.copy(source, tmp_path / temporaries[name])
    os.rename(tmp_path / temporaries[names[0]], tmp_path / names[0])  # the first had its place already
    (tmp_path / names[2]).write_text("{}")  # the old card
    (tmp_path / ".x.engine.pending").write_text(json.dumps(temporaries))
    assert load_engine(tmp_path / "x.engine", "padded").card.max_batch_size == 8
    assert {entry.name for entry in tmp_path.iterdir()} == set(names)


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize(
    "pending",
    ["", "{", "[]", "{}", '{"x.engine": null}', "[" * 100_000]
    + [
        json.dumps(dict.fromkeys(("x.engine", "x.engine.json", "x.engine.tokenizer.json"), name))
        for name in (7, "victim", "../victim", "")
    ]
    + [json.dumps({"x.engine": None, "x.engine.json": None, "x.engine.tokenizer.json": None, "victim": None})],
)
def test_a_pending_file_moves_nothing_but_its_set(script, small_engine, small_model, tmp_path, pending):
    """Anybody may have written it: it names temporary files of the set, or the set is refused."""
    for name, source in zip(EngineCard.set_of(tmp_path / "x.engine"), EngineCard.set_of(small_engine)):
        shutil.copy(source, name)
    (tmp_path / "victim").write_text("theirs")
    (tmp_path / ".x.engine.pending").write_text(pending)
    before = files_of(tmp_path)
    result = script("inference.py", "-e", tmp_path / "x.engine", *QUESTION)
    assert result.code == 1 and "is torn" in result.error and "build it again" in result.error
    assert files_of(tmp_path) == before
    assert script("builder.py", "-pt", small_model, "-s", 16, "-o", tmp_path / "x.engine").code == 0
    assert (tmp_path / "victim").read_text() == "theirs" and not (tmp_path / ".x.engine.pending").exists()


@pytest.mark.parametrize("failing", range(1, 4))
def test_files_are_written_all_or_none(tmp_path, monkeypatch, failing):
    """A disk that fails before the new files are whole leaves the old ones; later, the next one finishes the work."""
    paths = [tmp_path / name for name in "abc"]
    paths[0].write_bytes(b"old a")
    paths[2].write_bytes(b"old c")
    replace_file, calls = os.replace, []

    def failing_replace(*arguments):
        calls.append(arguments)
        if len(calls) == failing:
            raise OSError(28, "No space left on device")
        replace_file(*arguments)

    monkeypatch.setattr(outputs.os, "replace", failing_replace)
    with pytest.raises(DemoBertError, match="No space left"):
        write_together({paths[0]: b"new a", paths[1]: b"new b", paths[2]: None})
    monkeypatch.setattr(outputs.os, "replace", replace_file)
    finish_pending(paths[0], paths)
    expected = {"a": b"old a", "c": b"old c"} if failing == 1 else {"a": b"new a", "b": b"new b"}
    assert files_of(tmp_path) == expected
    write_together({paths[0]: b"new a", paths[1]: b"new b", paths[2]: None})
    assert files_of(tmp_path) == {"a": b"new a", "b": b"new b"}


def test_a_set_through_links(tmp_path):
    """Each file of it may be a link: it stays one."""
    (tmp_path / "far").mkdir()
    for path in EngineCard.set_of(tmp_path / "x.engine"):
        path.symlink_to(tmp_path / "far" / path.name)
    write_set(tmp_path / "x.engine", 1)
    assert all(path.is_symlink() for path in EngineCard.set_of(tmp_path / "x.engine"))
    assert set(files_of(tmp_path / "far")) == {path.name for path in EngineCard.set_of("x.engine")}


def test_wherever_a_builder_of_a_linked_engine_is_killed(tmp_path):
    """What is pending is looked for beside what the link leads to, by whoever takes its lock."""
    folder = tmp_path / "x"
    folder.mkdir()
    link, real = folder / "x.engine", folder / "real.engine"

    def put_back(files: dict[str, bytes]) -> None:
        put(folder, {name: data for name, data in files.items() if name != link.name})
        link.symlink_to(real)

    link.symlink_to(real)
    write_set(link, 1)
    old = files_of(folder)
    with States(folder) as states:
        write_set(link, 2)
    new = files_of(folder)
    assert old != new and len(states.found) > 3
    for files in states.found:
        put_back(files)
        with only_writer(link):
            pass
        finish_pending(link, EngineCard.set_of(link))
        assert {name: data for name, data in files_of(folder).items() if not name.startswith(".")} in (old, new)


def test_names_that_are_not_unicode(script, small_model, tmp_path):
    engine = os.path.join(os.fsencode(tmp_path), b"\xff.engine").decode("utf-8", "surrogateescape")
    assert script("builder.py", "-pt", small_model, "-s", 16, "-o", engine).code == 0
    assert load_engine(engine, "padded").card.max_sequence_length == 16


def test_a_tokenizer_s_link_goes_and_not_what_it_leads_to(tmp_path):
    (tmp_path / "shared.json").write_text("somebody's")
    EngineCard.tokenizer_path_for(tmp_path / "x.engine").symlink_to(tmp_path / "shared.json")
    write_set(tmp_path / "x.engine", 1, tokenizer=False)
    assert files_of(tmp_path).keys() == {"shared.json", "x.engine", "x.engine.json"}


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
@pytest.mark.parametrize("name", [".out.lock", ".out.abcdefgh.tmp", ".out.pending"])
def test_what_lies_in_the_way(tmp_path, name, kind):
    """One line that names it, or it is passed over; never a traceback, and what a link leads to stays."""
    (tmp_path / "victim").write_text("theirs")
    path = tmp_path / name
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(tmp_path / "victim")
    else:
        os.mkfifo(path)
    try:
        write_together({tmp_path / "out": b"new", tmp_path / "other": b"new"})
        assert (tmp_path / "out").read_bytes() == b"new"
    except DemoBertError as error:
        assert name in str(error)
    assert (tmp_path / "victim").read_text() == "theirs"


def test_a_user_s_file_with_a_name_like_a_temporary_one(tmp_path):
    (tmp_path / ".out.Original.tmp").write_text("mine")
    write_json(tmp_path / "out", 1)
    assert (tmp_path / ".out.Original.tmp").exists()


@pytest.mark.parametrize("kind", ["pipe", "link", "folder"])
def test_the_state_of_a_partial_output_is_not_written_through_what_is_there(script, small_engine, tmp_path, kind):
    rows, victim = tmp_path / "rows.jsonl", tmp_path / "victim"
    rows.write_text('{"question": "When?", "context": "In 1889."}\n')
    victim.write_text("theirs")
    for name in ("out.jsonl.partial.json.tmp", ".out.jsonl.partial.json.journal0.tmp"):
        path = tmp_path / name
        os.mkfifo(path) if kind == "pipe" else path.mkdir() if kind == "folder" else path.symlink_to(victim)
    result = script("inference.py", "-e", small_engine, "--rows", rows, "-o", tmp_path / "out.jsonl")
    assert result.code == 0 or (kind == "folder" and result.error)
    assert victim.read_text() == "theirs"


@pytest.mark.parametrize("name", ["out.jsonl.partial", "out.jsonl.partial.json"])
def test_a_partial_output_is_no_link(script, small_engine, tmp_path, name):
    """What it leads to would be cut."""
    rows, victim = tmp_path / "rows.jsonl", tmp_path / "victim"
    rows.write_text('{"question": "When?", "context": "In 1889."}\n')
    victim.write_text("")
    (tmp_path / name).symlink_to(victim)
    result = script("inference.py", "-e", small_engine, "--rows", rows, "-o", tmp_path / "out.jsonl")
    assert result.code == 1 and name in result.error and victim.read_text() == "" and (tmp_path / name).is_symlink()


def test_what_is_printed_is_not_written_over(small_engine, tmp_path):
    """A file that stdout goes to has two names, and renaming would lose what is printed."""
    for name in ("/dev/fd/1", "/proc/self/fd/1", str(tmp_path / "out")):
        command = [sys.executable, ROOT / "inference.py", "-e", small_engine, *QUESTION, "--json", name]
        with (tmp_path / "out").open("w") as out:
            result = subprocess.run(list(map(str, command)), stdout=out, stderr=subprocess.PIPE, text=True)
        assert result.returncode == 1 and "where this command prints to" in result.stderr


def test_builders_of_one_engine_one_after_another(small_model, tmp_path):
    """Two that are started together: both end well, one after the other, or the second is told; one whole set is left."""
    command = [sys.executable, ROOT / "builder.py", "-pt", small_model, "-o", tmp_path / "x.engine", "-s"]
    both = [
        subprocess.Popen(
            [*map(str, command), str(length)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        for length in (16, 32)
    ]
    errors = [process.communicate()[1] for process in both]
    codes = [process.returncode for process in both]
    assert 0 in codes and all(code == 0 or "another process is writing" in err for code, err in zip(codes, errors))
    assert load_engine(tmp_path / "x.engine", "padded").card.max_sequence_length in (16, 32)
    assert {entry.name for entry in tmp_path.iterdir()} == {path.name for path in EngineCard.set_of("x.engine")}


def test_place_of_says_what_is_wrong(tmp_path):
    assert place_of(tmp_path / "new") == Path(os.path.realpath(tmp_path / "new"))
    with pytest.raises(DemoBertError, match=r"--x: the folder .*/nowhere does not exist; create it first: mkdir -p"):
        place_of(tmp_path / "nowhere" / "x", "--x")
    with pytest.raises(DemoBertError, match="--x is a folder, not a file"):
        place_of(tmp_path, "--x")
