"""How a process ends: closed and full streams, files and memory that are too small, signals; each in one line."""

import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest

from helpers.backends import load_engine
from helpers.batching import PackedBatch, PaddedBatch
from helpers.errors import DemoBertError, is_short_of_memory
from tests.conftest import ROOT

SQUAD = ROOT / "tests" / "data" / "squad_v1.1.json"


def shell(command: str, **limits) -> subprocess.CompletedProcess:
    """A script, in a shell that closes or redirects its streams; `limits`: of resource, in bytes."""

    def limit():
        for name, value in limits.items():
            resource.setrlimit(getattr(resource, name), (value, value))

    full = f"{sys.executable} {command}"
    return subprocess.run(["bash", "-c", full], cwd=ROOT, preexec_fn=limit, capture_output=True, text=True, timeout=300)


def commands(engine, model, folder) -> dict[str, str]:
    rows = folder / "rows.jsonl"
    rows.write_text('{"question": "When?", "context": "In 1889."}\n')
    ask = f"inference.py -e {engine}"
    return {
        "answer": f"{ask} -p In 1889. -q When?",
        "json": f"{ask} -p In 1889. -q When? --json -",
        "rows": f"{ask} --rows {rows} -o -",
        "squad": f"{ask} -sq {SQUAD} -o {folder}/p.json",
        "help": "inference.py -h",
        "perf": f"perf.py -e {engine} -s 8 -i 1",
        "build": f"builder.py -pt {model} -s 16 -o {folder}/new.engine",
        "evaluate": f"squad/evaluate-v1.1.py {SQUAD} {folder}/given.json",
    }


KINDS = ("answer", "json", "rows", "squad", "help", "perf", "build", "evaluate")


@pytest.fixture
def given(small_engine, small_model, tmp_path) -> dict[str, str]:
    (tmp_path / "given.json").write_text("{}")
    return commands(small_engine, small_model, tmp_path)


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize(
    ("kind", "stream"),
    [*((kind, ">/dev/full") for kind in KINDS), *((kind, ">&-") for kind in ("answer", "rows", "help", "evaluate"))],
)
def test_what_can_not_be_shown_is_a_failure(given, kind, stream):
    """Whoever reads the exit code must not believe that there was an answer."""
    result = shell(f"{given[kind]} {stream}")
    lines = result.stderr.splitlines()
    reason = "Bad file descriptor" if stream == ">&-" else "No space left on device"
    assert result.returncode == 1 and lines[-1].endswith(f"error: stdout can't be written: {reason}"), result
    assert sum("error" in line for line in lines) == 1 and "Traceback" not in result.stderr


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize(
    ("kind", "streams"), [("answer", "<&-"), ("rows", "2>&-"), ("perf", "<&- 2>&-"), ("rows", "2>/dev/full")]
)
def test_other_streams_are_not_needed(given, kind, streams):
    result = shell(f"{given[kind]} {streams}")
    assert result.returncode == 0 and result.stdout, result


def test_closed_streams_do_not_become_files(given, tmp_path):
    """The first files opened would be stdin, stdout and stderr: notes would be written into them."""
    result = shell(f"{given['squad']} <&- >&- 2>&-")
    assert result.returncode == 1 and (tmp_path / "p.json").read_text().startswith("{")


@pytest.mark.parametrize("kind", ["rows", "help"])
def test_a_reader_that_goes(given, kind):
    result = shell(f"{given[kind]} | true; exit ${{PIPESTATUS[0]}}")
    assert result.returncode in (0, 1) and "Traceback" not in result.stderr and "error" not in result.stderr, result


def test_nothing_on_stdin(given, small_engine):
    result = shell(f"inference.py -e {small_engine} -q When? <&-")
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1, result


@pytest.mark.parametrize("kind", ["squad", "build"])
def test_files_that_may_not_grow(given, tmp_path, kind):
    """`ulimit -f`: as on a full disk, nothing is left, and nothing that was there is lost."""
    names = {"squad": "p.json", "build": "new.engine"}
    (tmp_path / names[kind]).write_bytes(b"before")
    before = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}
    result = shell(given[kind], RLIMIT_FSIZE=64)
    assert result.returncode == 1 and "File too large" in result.stderr.splitlines()[-1], result
    assert "Traceback" not in result.stderr
    left = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir() if ".partial" not in entry.name}
    assert left == before


@pytest.mark.sampled(0.4)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
@pytest.mark.parametrize("kind", ["build", "squad", "rows to a file", "cache"])
def test_a_disk_that_fills(small_engine, small_model, tmp_path, kind):
    """A real one of 20 MB, mounted for these processes alone: one line, nothing left, nothing lost."""
    disk = tmp_path / "disk"
    disk.mkdir()
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "When?", "context": "In 1889."}\n' * 400)
    python, out = sys.executable, disk / "out.jsonl"
    command = {
        "build": f"{python} builder.py -pt {small_model} -s 16 -o {out}",
        "squad": f"{python} inference.py -e {small_engine} -sq {SQUAD} -o {out}",
        "rows to a file": f"{python} inference.py -e {small_engine} --rows {rows} -o {out}",
        "cache": f"{python} builder.py -pt {small_model} -s 16 -o {tmp_path}/new.engine -i -j {SQUAD} -n 1 -p {disk}/cache",
    }[kind]
    room = "16M" if kind == "build" else "30M"  # some, or none at all
    fill = f"head -c {room} /dev/zero >{disk}/rest 2>/dev/null; "
    inside = (
        f"mount -t tmpfs -o size=20m none {disk} && echo before >{out} && {fill} {command}; echo code $?; "
        f"cat {out}; ls -A {disk}"
    )
    result = subprocess.run(["unshare", "-m", "bash", "-c", inside], cwd=ROOT, capture_output=True, text=True)
    if "code" not in result.stdout:
        pytest.skip(f"no mount for this process alone: {result.stderr[-200:]}")
    last = result.stderr.splitlines()[-1]
    assert "No space left on device" in last and ": error: " in last and "Traceback" not in result.stderr, result
    lines = result.stdout.splitlines()
    assert lines[0] == "code 1" and lines[1] == "before", result
    left = set(lines[2:]) - {"rest", "out.jsonl", "out.jsonl.partial", "out.jsonl.partial.json"}
    assert not left, result


@pytest.mark.parametrize("mebibytes", [300, 400, 500])
def test_memory_that_is_short(given, mebibytes):
    """Never "damaged", never a traceback: one line that says that memory is short; or an answer, where it is enough."""
    result = shell(given["answer"], RLIMIT_AS=mebibytes << 20)
    last = result.stderr.splitlines()[-1:]
    aborted = "ABORT" in result.stderr or result.returncode < 0 or result.returncode > 2  # by the C library itself
    assert aborted or result.returncode == 0 or "not enough memory" in last[0], result
    assert "damaged" not in result.stderr and ("Traceback" not in result.stderr or aborted)


@pytest.mark.parametrize(
    ("error", "is_short"),
    [
        (MemoryError(), True),
        (SystemError("error return without exception set"), True),
        (RuntimeError("Exception from src/core/src/runtime/allocator.cpp:79:\nstd::bad_alloc"), True),
        (RuntimeError("[CPU] Subgraph node with name 'x' can't alloc"), True),
        (RuntimeError("can't start new thread"), True),
        (ImportError("libx.so: failed to map segment from shared object"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("Check 'x' failed"), False),
        (ValueError("bad alloc"), False),
        (OSError(28, "No space left on device"), False),
    ],
)
def test_how_short_memory_is_recognised(error, is_short):
    assert is_short_of_memory(error) == is_short


ODD_INPUTS = [
    [[1, 2], [3, 4]],
    "text",
    b"text",
    None,
    7,
    object(),
    np.array([["a"]]),
    np.array([[None]]),
    np.ones((2, 2)),
    np.ones((2, 2), np.int64),
    np.ones((2, 2), ">i4"),
    np.ones((2, 2), bool),
    np.ones((), np.int32),
    np.ones((0, 2), np.int32),
    np.ones((2, 0), np.int32),
    np.ones((2, 2, 2), np.int32),
    np.ones(2, np.int32),
    {"input_ids": 1},
]


@pytest.mark.parametrize("odd", range(len(ODD_INPUTS)))
def test_an_engine_takes_arrays_only(small_engine, odd):
    """Lists, text and objects in the place of each input: said in one line."""
    engine, sound = load_engine(small_engine, "padded"), np.ones((2, 2), np.int32)
    for place in range(3):
        inputs = [sound] * 3
        inputs[place] = ODD_INPUTS[odd]
        with pytest.raises(DemoBertError):
            engine.run(PaddedBatch(*inputs))
        with pytest.raises(DemoBertError):
            engine.time(PaddedBatch(*inputs), 1)
    for odd_batch in (ODD_INPUTS[odd], PackedBatch(*[ODD_INPUTS[odd]] * 4)):
        with pytest.raises(DemoBertError):
            engine.run(odd_batch)


def test_packed_engines_take_arrays_only(script, small_model, tmp_path):
    path = tmp_path / "packed.engine"
    assert script("builder_varseqlen.py", "-pt", small_model, "-s", 16, "-o", path, "--backend", "openvino").code == 0
    engine, ids = load_engine(path, "packed"), np.ones(4, np.int32)
    sound = [ids, np.zeros(4, np.int32), np.array([0, 4], np.int32), np.zeros(4, np.int32)]
    engine.run(PackedBatch(*sound))
    for place in range(4):
        for odd in ODD_INPUTS:
            if isinstance(odd, np.ndarray) and odd.dtype == np.int32 and odd.ndim == 1:
                continue
            with pytest.raises(DemoBertError):
                engine.run(PackedBatch(*sound[:place], odd, *sound[place + 1 :]))


def test_a_folder_that_a_plain_user_may_not_write(given, small_model, tmp_path):
    """One line, and nothing changed. Root gives up what lets it write everywhere; the folder is somebody else's."""
    folder = tmp_path / "readonly"
    folder.mkdir()
    (folder / "p.json").write_bytes(b"before")
    before = {entry.name: entry.read_bytes() for entry in folder.iterdir()}
    folder.chmod(0o555)
    prefix = []
    if os.geteuid() == 0:
        if not shutil.which("setpriv"):
            pytest.skip("no setpriv, by which root becomes a plain user")
        os.chown(folder, 65534, 65534)
        prefix = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
    engine = given["answer"].split()[2]
    for script, flags, output in (
        ("inference.py", ["-e", engine, "-sq", SQUAD, "-o"], "p.json"),
        ("inference.py", ["-e", engine, "-p", "In 1889.", "-q", "When?", "--json"], "new.json"),
        ("builder.py", ["-pt", small_model, "-s", "16", "-o"], "new.engine"),
        ("perf.py", ["-e", engine, "-i", "1", "--json"], "new.json"),
    ):
        command = [*prefix, sys.executable, ROOT / script, *flags, folder / output]
        result = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT)
        assert result.returncode == 1 and "Permission denied" in result.stderr.splitlines()[-1], result
        assert "Traceback" not in result.stderr
        assert {entry.name: entry.read_bytes() for entry in folder.iterdir()} == before
