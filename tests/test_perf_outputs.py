"""build/perf at the edges of the system: what it may write, who else writes it, how it ends.

Nodes are made in private folders; of the machine's own only /dev/full and /dev/null are written.
"""

import contextlib
import fcntl
import functools
import json
import os
import signal
import socket
import stat
import subprocess
import time
from pathlib import Path

import pytest

from helpers import outputs
from helpers.errors import DemoBertError
from helpers.outputs import only_writer, write_json
from tests.conftest import ROOT
from tests.cpp_build import Built

#: Short: two batches of a tiny model.
SHORT = ("-b", "1", "-b", "2", "-s", "4", "-i", "2", "-w", "0")

#: The user and the group of nobody.
NOBODY = 65534

SHIM_HEADERS = "\n".join(
    f"#include <{name}>" for name in ("cerrno", "cstdlib", "dlfcn.h", "pthread.h", "sys/syscall.h", "unistd.h")
)

#: What is put before the C library, to make it behave as that of another system.
SHIMS = {
    "no locks": "int flock(int, int) { errno = ENOLCK; return -1; }",
    "slow locks": "int flock(int file, int how) { sleep(2); return syscall(SYS_flock, file, how); }",
    "slow disk": "int fsync(int) { sleep(60); return 0; }",
    "few threads": """
        int pthread_create(pthread_t* thread, const pthread_attr_t* with, void* (*run)(void*), void* given) noexcept {
            static int left = atoi(getenv("THREADS"));
            void* real = dlsym(RTLD_NEXT, "pthread_create");
            return left-- > 0 ? reinterpret_cast<decltype(&pthread_create)>(real)(thread, with, run, given) : EAGAIN;
        }""",
}


@pytest.fixture
def run(built, tiny):
    return functools.partial(built.perf, "-e", tiny[2], *SHORT)


@pytest.fixture
def with_shim(tmp_path_factory, monkeypatch):
    """`with_shim(name)` lets the processes that are started have one of SHIMS."""

    def preload(name: str) -> None:
        folder = tmp_path_factory.mktemp("shim")
        source = f'{SHIM_HEADERS}\nextern "C" {{\n{SHIMS[name]}\n}}\n'
        (folder / "shim.cpp").write_text(source)
        command = ["g++", "-shared", "-fPIC", "-o", folder / "shim.so", folder / "shim.cpp"]
        subprocess.run(command, check=True, capture_output=True)
        monkeypatch.setenv("LD_PRELOAD", f"{os.environ.get('LD_PRELOAD', '')} {folder / 'shim.so'}".strip())

    return preload


@contextlib.contextmanager
def started(command, **options):
    """A process that ends with the test, also where that fails."""
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def sanitized(built: Built) -> bool:
    return "sanitized" in built.folder.name


def refusal(result: subprocess.CompletedProcess) -> str:
    """The one line of a refusal that came before anything was timed."""
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("perf: error: ") and result.stdout == "", result
    return lines[0]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def wait_for_names(folder: Path, count: int) -> None:
    """Until so many files are in a folder: an output, its lock, its temporary."""
    end = time.monotonic() + 60
    while len(names(folder)) != count:
        assert time.monotonic() < end, names(folder)
        time.sleep(0.02)


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_device(path: Path) -> None:
    """A private /dev/null."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes device nodes")


def make_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path may have 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (make_fifo, "a named pipe"),
        (make_device, "a device"),
        (make_socket, "a socket"),
        (Path.mkdir, "a folder"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("linked", [False, True], ids=["itself", "by a link"])
def test_what_is_no_file_is_not_replaced(run, tmp_path, make, kind, linked):
    node = tmp_path / "node"
    make(node)
    before = node.lstat()
    named = tmp_path / "link" if linked else node
    if linked:
        named.symlink_to("node")
    assert refusal(run("--json", named, code=1)) == f"perf: error: --json is {kind}, not a file: {named}"
    assert os.path.samestat(node.lstat(), before) and named.is_symlink() == linked
    assert names(tmp_path) == {"node", named.name}


@pytest.mark.parametrize("there", [True, False], ids=["to a file", "to nothing yet"])
@pytest.mark.parametrize("absolute", [True, False], ids=["absolute", "relative"])
def test_a_link_stays_and_its_target_is_written(run, tmp_path, there, absolute):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "here").mkdir()
    target = tmp_path / "elsewhere" / "report.json"
    if there:
        target.write_text("old")
    link, second = tmp_path / "here" / "link", tmp_path / "here" / "second"
    link.symlink_to(target if absolute else "../elsewhere/report.json")
    second.symlink_to("link")
    run("--json", second)
    assert link.is_symlink() and second.is_symlink() and not target.is_symlink()
    assert len(json.loads(target.read_text())["timings"]) == 2
    assert names(tmp_path / "here") == {"link", "second"} and names(tmp_path / "elsewhere") == {"report.json"}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("n" * 300, "File name too long"),
        ("n" * 250, "File name too long"),  # it is not, but the temporary's name is
        ("d/" * 3000 + "x", "File name too long"),
        ("loop", "Too many levels of symbolic links"),
        ("loop/x.json", "Too many levels of symbolic links"),
        ("file/x.json", "Not a directory"),
        ("file/", "Not a directory"),
        ("nowhere/x.json", "does not exist; create it first"),
        ("nowhere/", "does not exist; create it first"),
        ("dangling", "does not exist; create it first"),
        ("", "'' is not the name of a file"),
    ],
)
def test_paths_that_lead_nowhere(run, tmp_path, monkeypatch, path, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("pool")
    (tmp_path / "pool").symlink_to("loop")
    (tmp_path / "file").write_text("text")
    (tmp_path / "dangling").symlink_to("nowhere/report.json")
    line = refusal(run(f"--json={path}", code=1 if path else 2))
    assert message in line and len(line) < 1600
    assert names(tmp_path) == {"loop", "pool", "file", "dangling"}


@pytest.mark.parametrize("suffix", ["", ".json", ".tokenizer.json"])
@pytest.mark.parametrize("way", ["itself", "hard link", "link", "another path"])
def test_the_engine_s_files_are_not_replaced(run, tiny, tmp_path, suffix, way):
    path = tmp_path / "x.engine"
    for name in ("", ".json"):
        Path(f"{path}{name}").write_bytes(Path(f"{tiny[2]}{name}").read_bytes())
    Path(f"{path}.tokenizer.json").write_text("{}")
    input_, other = Path(f"{path}{suffix}"), tmp_path / "other"
    before = input_.read_bytes()
    if way == "hard link":
        other.hardlink_to(input_)
    elif way == "link":
        other.symlink_to(input_)
    named = {"itself": input_, "another path": tmp_path / ".." / tmp_path.name / input_.name}.get(way, other)
    line = refusal(run("-e", path, "--json", named, code=1))
    assert line == f"perf: error: --json {named} would replace an input; name another file"
    assert input_.read_bytes() == before


def test_the_name_of_a_card_that_is_not_there_is_an_input_s(run, tiny, tmp_path):
    path = tmp_path / "bare.engine"
    path.write_bytes(tiny[2].read_bytes())
    assert "would replace an input" in refusal(run("-e", path, "--trust-engine", f"--json={path}.json", code=1))
    assert names(tmp_path) == {"bare.engine"}


@pytest.mark.parametrize("output", ["vocab.txt", "bert_config.json", "config.json"])
@pytest.mark.parametrize("by", ["folder", "file"])
def test_the_model_of_c_is_not_replaced(run, tiny, tmp_path, output, by):
    engine = tmp_path / "bare.engine"
    engine.write_bytes(tiny[2].read_bytes())
    model = tmp_path / "model"
    model.mkdir()
    (model / "vocab.txt").write_text("[PAD]")
    (model / "bert_config.json").write_text((tiny[2].parent / "bert_config.json").read_text())
    named = model if by == "folder" else model / "bert_config.json"
    protected = by == "folder" or output == named.name
    flags = ["-e", engine, "--trust-engine", "-c", named, "--json", model / output]
    result = run(*flags, code=1 if protected else 0)
    if protected:
        assert "would replace an input" in refusal(result)
        assert (model / "vocab.txt").read_text() == "[PAD]"


def test_others_may_read_what_the_umask_lets_them(run, tmp_path):
    for mask, mode in ((0o027, 0o640), (0o000, 0o666)):
        before = os.umask(mask)
        try:
            run("--json", tmp_path / f"{mask}.json")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / f"{mask}.json").stat().st_mode) == mode


def test_what_killed_writers_left_goes_with_the_next_write(run, tmp_path):
    stale = {".x.json.abcdefgh.tmp", ".x.json.ab_def01.tmp", ".x.json.lock"}
    others = {
        ".x.json.short.tmp",
        ".x.json.abcdefghi.tmp",
        ".y.json.abcdefgh.tmp",
        "x.json.abcdefgh.tmp",
        ".x.json.a.c.e.g.tmp",
    }
    for name in stale | others:
        (tmp_path / name).write_text("some bytes")
    run("--json", tmp_path / "x.json")
    assert names(tmp_path) == others | {"x.json"}


def test_temporaries_that_a_list_still_speaks_of_stay(run, tmp_path):
    """helpers/outputs.py writes `.NAME.pending` where files are whole and about to be renamed."""
    left = {".x.json.abcdefgh.tmp", ".x.json.pending"}
    for name in left:
        (tmp_path / name).write_text("some bytes")
    run("--json", tmp_path / "x.json")
    assert names(tmp_path) == left | {"x.json"}


@contextlib.contextmanager
def held(path: Path):
    """Python's side of the lock."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


@pytest.mark.sampled(0.4, group="slow")
def test_a_lock_that_has_lost_its_name_is_none(built, tiny, tmp_path, with_shim):
    """Whoever had it has removed it, and a third process has made another one meanwhile: that is waited for, too."""
    with_shim("slow locks")
    path, lock = tmp_path / "x.json", tmp_path / ".x.json.lock"
    command = [built.folder / "perf", "-e", tiny[2], "-s", "4", "-i", "1", "--json", path]
    with started(command, stdout=subprocess.PIPE, text=True) as process:
        with contextlib.ExitStack() as third:
            with held(lock):
                assert any("Throughput" in line for line in iter(process.stdout.readline, ""))
                time.sleep(0.5)  # it has opened the lock
                lock.unlink()
                third.enter_context(held(lock))
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(4)
            assert names(tmp_path) == {".x.json.lock"}
            lock.unlink()
        assert process.wait(60) == 0
    assert names(tmp_path) == {"x.json"}


@pytest.mark.sampled(0.4, group="slow")
def test_the_second_writer_does_not_wait_for_ever(run, tmp_path):
    (tmp_path / "x.json").write_text("old")
    with held(tmp_path / ".x.json.lock"):
        start = time.monotonic()
        result = run("--json", tmp_path / "x.json", code=1)
        assert 10 <= time.monotonic() - start < 60
    line = f"perf: error: another process is writing {tmp_path / 'x.json'}: wait for it, or name another file"
    assert result.stderr.splitlines()[-1] == line and "Throughput" in result.stdout
    assert names(tmp_path) == {"x.json", ".x.json.lock"} and (tmp_path / "x.json").read_text() == "old"


def test_python_and_cpp_take_turns(built, tiny, tmp_path, with_shim, monkeypatch):
    """Each knows the other's lock."""
    path = tmp_path / "x.json"
    command = [built.folder / "perf", "-e", tiny[2], "-s", "4", "-i", "1", "--json", path]
    with started(command, stdout=subprocess.PIPE, text=True) as process:
        with only_writer(path):
            assert any("Throughput" in line for line in iter(process.stdout.readline, ""))
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1)
            assert names(tmp_path) == {".x.json.lock"}
        assert process.wait(60) == 0 and json.loads(path.read_text())["timings"]
    with_shim("slow disk")
    monkeypatch.setattr(outputs, "_PATIENCE", 0.5)
    with started(command, stdout=subprocess.DEVNULL) as process:
        wait_for_names(tmp_path, 3)
        with pytest.raises(DemoBertError, match="another process is writing .*x.json: wait for it"):
            write_json(path, {})
        process.kill()
    write_json(path, {})  # and what the killed one left goes
    assert names(tmp_path) == {"x.json"} and json.loads(path.read_text()) == {}


def test_a_file_system_without_locks(run, tmp_path, with_shim):
    """It is written all the same, and nobody's temporary is taken away: its writer may live."""
    with_shim("no locks")
    (tmp_path / ".x.json.abcdefgh.tmp").write_text("some bytes")
    run("--json", tmp_path / "x.json")
    assert names(tmp_path) == {"x.json", ".x.json.abcdefgh.tmp"}


def test_many_writers_at_once_leave_one_whole_file(built, tiny, tmp_path):
    command = [built.folder / "perf", "-e", tiny[2], "-s", "4", "-i", "1", "--json", tmp_path / "x.json"]
    running = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(6)]
    for process in running:
        assert process.communicate(timeout=120)[1].count(b"\n") == 1 and process.returncode == 0
    assert names(tmp_path) == {"x.json"} and json.loads((tmp_path / "x.json").read_text())["timings"]


@pytest.fixture
def shell(built, tiny, tmp_path):
    """`shell(redirections, flags…)` runs perf as a shell does."""

    def run_in_shell(redirections: str, *flags, before: str = "", **options) -> subprocess.CompletedProcess:
        script = f'{before}exec "$0" "$@" {redirections}'
        command = ["bash", "-c", script, str(built.folder / "perf"), *map(str, flags or ("-e", tiny[2], *SHORT))]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, **options)

    return run_in_shell


@pytest.mark.parametrize(
    ("redirection", "reason"),
    [(">&-", "Bad file descriptor"), (">/dev/full", "No space left on device"), (">&- <&-", "Bad file descriptor")],
)
@pytest.mark.parametrize("help_", [True, False], ids=["-h", "a run"])
def test_a_stdout_that_takes_nothing(shell, redirection, reason, help_):
    result = shell(redirection, *(["-h"] if help_ else []))
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == f"perf: error: can't write to stdout: {reason}"
    assert result.stderr.count("perf: error: ") == 1


@pytest.mark.parametrize("redirection", [">&-", ">/dev/full", ">&- 2>&-", "<&- >&- 2>&-"])
def test_the_file_is_written_where_stdout_takes_nothing(shell, tiny, tmp_path, redirection):
    """And holds nothing that was meant for stdout or stderr: no file takes their numbers."""
    result = shell(redirection, "-e", tiny[2], *SHORT, "--json", "x.json")
    assert result.returncode == 1 and names(tmp_path) == {"x.json"}
    assert len(json.loads((tmp_path / "x.json").read_text())["timings"]) == 2


def test_closed_streams_get_a_place(built, tiny, tmp_path):
    """Else what is opened next would: a GPU's device node, to which the report would be written."""
    command = [built.folder / "perf", "-e", tiny[2], "-s", "4", "-d", "3600", "--json", "x.json"]
    in_shell = ["bash", "-c", 'exec "$0" "$@" <&- >&- 2>&-', *command]
    with started(in_shell, cwd=tmp_path) as process:
        streams, end = [Path(f"/proc/{process.pid}/fd/{number}") for number in range(3)], time.monotonic() + 30
        found: set[str] = set()
        while found != {"/dev/null"} and time.monotonic() < end:
            time.sleep(0.1)
            found = {os.readlink(stream) if stream.is_symlink() else "closed" for stream in streams}
        assert found == {"/dev/null"}


def test_closed_streams_that_nobody_needs(shell):
    assert shell("<&-").returncode == 0
    result = shell("2>&-")
    assert result.returncode == 0 and result.stdout.count("Throughput") == 2
    assert shell("2>&-", "-e", "nowhere.engine").returncode == 1
    assert shell(">&- 2>&-", "--nonsense").returncode == 2


def test_a_closed_pipe_ends_it_quietly(built, tiny):
    for flags in (("-h",), ("-e", tiny[2], *SHORT), ("-e", tiny[2], "-b", 1, "-d", 3600)):
        read, write = os.pipe()
        os.close(read)
        command = [built.folder / "perf", *map(str, flags)]
        result = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
        os.close(write)
        assert result.returncode == 1 and "error" not in result.stderr, result


def test_a_limit_of_file_sizes(shell, tiny, tmp_path):
    (tmp_path / "x.json").write_text("old")
    result = shell("", "-e", tiny[2], *SHORT, "-b", 3, "-b", 4, "--json", "x.json", before="ulimit -f 1; ")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == "perf: error: can't write x.json: File too large"
    assert names(tmp_path) == {"x.json"} and (tmp_path / "x.json").read_text() == "old"
    # Of stdout, too, which is a file of more than this limit.
    with (tmp_path / "out").open("wb") as out:
        out.write(bytes(1024))
        out.flush()
        command = ["bash", "-c", 'ulimit -f 1; exec "$0" -h', built_perf(shell)]
        result = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True)
    assert (result.returncode, result.stderr) == (1, "perf: error: can't write to stdout: File too large\n")


def built_perf(shell) -> str:
    return shell("", before='echo "$0"; exit; ').stdout.strip()


ENDING = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
@pytest.mark.parametrize("moment", ["while it times", "while it writes"])
def test_a_signal_leaves_nothing_behind(built, tiny, tmp_path, with_shim, number, moment):
    flags = ["-d", "3600"]
    if moment == "while it writes":
        with_shim("slow disk")
        flags = ["-i", "1"]
    (tmp_path / "x.json").write_text("old")
    command = [built.folder / "perf", "-e", tiny[2], "-s", "4", *flags, "--json", tmp_path / "x.json"]
    # Whoever runs the tests in the background may ignore it.
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with started(command, preexec_fn=functools.partial(signal.signal, number, signal.SIG_DFL), **pipes) as process:
        assert process.stdout.readline().startswith("Running")
        wait_for_names(tmp_path, 3 if moment == "while it writes" else 1)
        process.send_signal(number)
        errors = process.communicate(timeout=30)[1]
    assert process.returncode == ENDING[number] and "error" not in errors
    assert names(tmp_path) == {"x.json"} and (tmp_path / "x.json").read_text() == "old"


def test_what_nohup_ignores_stays_ignored(built, tiny):
    command = [built.folder / "perf", "-e", tiny[2], "-s", "4", "-d", "2"]
    ignore = functools.partial(signal.signal, signal.SIGHUP, signal.SIG_IGN)
    with started(command, stdout=subprocess.PIPE, text=True, preexec_fn=ignore) as process:
        assert process.stdout.readline().startswith("Running")
        process.send_signal(signal.SIGHUP)
        assert "Throughput" in process.communicate(timeout=60)[0]
    assert process.returncode == 0


def test_short_memory_is_one_line_that_says_so(built, shell):
    if sanitized(built):
        pytest.skip("a sanitizer takes all addresses that there are")
    failed = 0
    for kibibytes in (30_000, 60_000, 120_000, 200_000, 300_000, 450_000, 1_200_000):
        result = shell("", before=f"ulimit -v {kibibytes}; ")
        if result.returncode == 0:
            continue
        failed += 1
        assert result.returncode == 1 and result.stderr.count("perf: error: ") == 1, (kibibytes, result)
        lines = result.stderr.splitlines()
        assert "memory" in lines[-1] and len(lines) <= 2, (kibibytes, result)
    assert failed == 6


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_threads_that_can_t_be_started(run, with_shim, threads, monkeypatch):
    """They need memory for their stacks. The first is perf's own, the others are OpenVINO's."""
    with_shim("few threads")
    monkeypatch.setenv("THREADS", str(threads))
    result = run(code=1)
    assert "memory" in refusal(result)


def test_a_folder_that_a_plain_user_may_not_write(built, tmp_path_factory):
    if os.getuid() != 0:
        pytest.skip("only root becomes another user")
    if sanitized(built):
        pytest.skip("its libraries are root's alone")
    folder = Path(subprocess.run(["mktemp", "-d"], check=True, capture_output=True, text=True).stdout.strip())
    try:
        folder.chmod(0o755)
        subprocess.run(["cp", built.folder / "perf", folder], check=True)
        for mode in (0o555, 0o755):
            (folder / "out").mkdir(exist_ok=True)
            (folder / "out").chmod(mode)
            command = ["./perf", "-e", "x.engine", "--json", "out/x.json"]
            result = subprocess.run(command, capture_output=True, text=True, cwd=folder, user=NOBODY, group=NOBODY)
            assert refusal(result) == "perf: error: --json: can't write out/x.json: Permission denied"
    finally:
        subprocess.run(["rm", "-r", folder], check=True)


def test_every_signal_and_stream_has_its_line_in_the_same_place():
    """perf.cpp decides nothing of its end: that is process.cpp's."""
    text = (ROOT / "infer_c" / "perf.cpp").read_text(encoding="utf-8")
    assert not [word for word in ("exit(", "signal(", "fwrite", "ofstream", "std::printf", "mkstemp") if word in text]
