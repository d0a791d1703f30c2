"""scripts/serve.sh without Triton: its arguments, its Docker command, and how it keeps a server running, by a stand-in."""

import csv
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.serving.contents import CONTENTS, Contents
from scripts.serving.supervisor import Log
from tests.conftest import ROOT
from tests.test_shell_scripts import error_of, shell
from tests.triton_server import Server


@pytest.fixture
def docker(tmp_path, monkeypatch):
    """The stand-in as `docker`, first on the path; what it is to do goes into its file `mode`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "docker"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT / "tests" / "docker_double.py"} {folder} "$@"\n')
    program.chmod(0o755)
    (folder / "mode").write_text("")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@pytest.fixture
def repository(tmp_path) -> Path:
    """As far as serve.sh looks at one."""
    folder = tmp_path / 'models, "mine"'
    folder.mkdir()
    contents = Contents(
        "bert", [CONTENTS], ["numpy", "openvino==1.2"], False, ["--backend-config=tensorrt,plugins=x.so"]
    )
    (folder / CONTENTS).write_bytes(contents.to_bytes())
    return folder


def asked(docker) -> list[list[str]]:
    """(process, arguments…) of each start of the stand-in."""
    return [line.split("\0") for line in (docker / "asked").read_text().splitlines()]


def start(repository, *arguments) -> Server:
    return Server("--repository", repository, "--docker", "triton:1-py3", *arguments, python=sys.executable)


def gone(pid: int) -> bool:
    path = Path(f"/proc/{pid}/stat")
    return not path.exists() or path.read_text().rpartition(")")[2].split()[0] == "Z"


def test_docker_s_command(repository, docker):
    words = ["--repository", repository, "--docker", "registry.example:5000/a/triton:25.08-py3"]
    ports = ["--http-port", 1, "--grpc-port", 2, "--metrics-port", 3, "--exit-timeout", 7]
    result = shell(ROOT / "scripts" / "serve.sh", *words, *ports, "--dry-run")
    assert result.returncode == 0 and result.stderr == "", result
    command = shlex.split(result.stdout)
    assert command[:3] == ["docker", "run", "--rm"] and "--gpus=all" not in command and "--stop-timeout=17" in command
    assert [word for word in command if word.startswith("--publish=")] == [
        "--publish=127.0.0.1:1:8000",
        "--publish=127.0.0.1:2:8001",
        "--publish=127.0.0.1:3:8002",
    ]
    (mount,) = (word.removeprefix("--mount=") for word in command if word.startswith("--mount="))
    (fields,) = csv.reader([mount], strict=True)  # as Go's reader takes it apart
    assert fields == ["type=bind", f"source={repository}", "target=/models", "readonly"]
    assert "--env=PACKAGES=numpy openvino==1.2" in command
    inside = command[command.index("registry.example:5000/a/triton:25.08-py3") + 1 :]
    assert inside[:4] == ["bash", "-c", 'pip install --quiet $PACKAGES && exec "$@"', "bash"]
    assert inside[4] == "tritonserver" and "--model-repository=/models" in inside
    assert "--backend-config=tensorrt,plugins=x.so" in inside and "--exit-timeout-secs=7" in inside
    assert any(word.startswith("--http-restricted-api=shared-memory,model-repository,") for word in inside)
    assert any(word.startswith("--grpc-restricted-protocol=shared-memory,model-repository,") for word in inside)
    assert not (docker / "asked").exists()


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("image", ["a b", "Mine", "a:b:c", "a:", "/a", "-v", "a$(id)", "a\nb", ""])
def test_what_is_no_image(repository, docker, image):
    result = shell(ROOT / "scripts" / "serve.sh", "--repository", repository, f"--docker={image}", "--dry-run")
    assert "--docker" in error_of(result, code=2) and result.stdout == "" and len(result.stderr.splitlines()) == 1


def test_a_key_is_never_the_same(repository, docker):
    words = [ROOT / "scripts" / "serve.sh", "--repository", repository, "--docker", "triton", "--dry-run"]
    keys = {word.split("=")[-1] for _ in range(2) for word in shlex.split(shell(*words).stdout) if "restricted" in word}
    assert len(keys) == 2 and all(len(key) >= 40 for key in keys)


def test_it_says_where_it_is_and_ends_when_it_is_told_to(repository, docker):
    server = start(repository).wait_until_ready()
    child = int(asked(docker)[0][0])
    assert f"HTTP:    http://127.0.0.1:{server.http}/v2/models/bert_qa" in server.text
    assert '"a warning"' in server.text and "starting" not in server.text
    assert server.stop() == 0 and gone(child)
    assert server.lines[-1] == "stopping: what is in flight is finished first; once more ends it at once"


def test_the_example_is_a_command(repository, docker):
    server = start(repository).wait_until_ready()
    server.wait_for("When was the tower built")
    server.stop()
    example = server.text.partition("Ask it:\n")[2].partition("stopping")[0]
    words = shlex.split(example)
    assert words[:3] == ["curl", "-s", f"http://127.0.0.1:{server.http}/v2/models/bert_qa/infer"]
    assert {tensor["name"] for tensor in json.loads(words[4])["inputs"]} == {"passage", "question"}


@pytest.mark.parametrize("mode, reason", [("fails", "the engine is damaged"), ("no image", "docker: no such image")])
def test_a_server_that_can_t_start_says_why_in_one_line(repository, docker, mode, reason):
    (docker / "mode").write_text(mode)
    server = start(repository)
    server.process.wait(60)
    server.stop()
    assert server.process.returncode == 1 and len(asked(docker)) == 1
    assert server.lines[-1] == f"serve.sh: error: the server could not start: {reason}"


def test_a_process_of_the_server_that_dies(repository, docker):
    server = start(repository).wait_until_ready()
    (first,) = (int(words[0]) for words in asked(docker))
    (victim,) = server.backends()
    os.kill(victim, signal.SIGSEGV)
    server.wait_for("the server answers again")
    assert f"the backend process {victim} died (signal 11, SIGSEGV)" in server.text and gone(first)
    assert len(asked(docker)) == 2 and server.stop() == 0


def test_a_server_that_dies_again_and_again(repository, docker):
    (docker / "mode").write_text("dies")
    server = start(repository)
    server.process.wait(60)
    server.stop()
    assert server.process.returncode == 1 and len(asked(docker)) == 3
    assert server.text.count("the server died (exit code 7)") == 3
    assert server.lines[-1] == "serve.sh: error: the server died 3 times within 60 seconds: it is given up"


@pytest.mark.parametrize("mode, code", [("hangs", 0), ("cut off", 0)])
def test_what_was_in_flight_at_the_end(repository, docker, mode, code):
    """A server that hangs when all is done is killed soon; one that gives up is said to have lost something."""
    (docker / "mode").write_text(mode)
    server = start(repository, "--exit-timeout", 100).wait_until_ready()
    child, began = int(asked(docker)[0][0]), time.monotonic()
    assert server.stop() == code and time.monotonic() - began < 60 and gone(child)
    assert "what was still in flight, if anything was, is lost" in server.lines[-1]


def test_a_second_signal_ends_it_at_once(repository, docker):
    (docker / "mode").write_text("hangs")
    server = start(repository, "--exit-timeout", 100).wait_until_ready()
    server.process.send_signal(signal.SIGINT)
    server.wait_for("stopping")
    pids, began = {server.triton(), *server.backends()}, time.monotonic()
    assert server.stop(signal.SIGTERM) == 130 and time.monotonic() - began < 4
    assert all(map(gone, pids))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_end_that_is_asked_for_before_there_is_a_server(repository, docker, tmp_path, monkeypatch, number):
    """While the engine is exported, here by a program that takes its time."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / "x.engine").write_text("x")
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import subprocess, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from scripts.serving import serve\n"
        "run = subprocess.run\n"
        "def sleeping(command, **settings):\n"
        "    return run(['sh', '-c', 'echo exporting; exec sleep 1000'])\n"
        "serve.subprocess.run = sleeping\n"
        "serve.cli.run(serve.main)\n"
    )
    command = [sys.executable, slow, "-e", tmp_path / "x.engine"]
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "exporting\n"
    assert [path for path in tmp_path.iterdir() if path.name.startswith("demobert-serve-")]
    time.sleep(0.5)  # until it waits for what it has started
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    process.stdout.close()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("demobert-serve-")]


def test_no_docker_is_one_line(repository, tmp_path, monkeypatch):
    (tmp_path / "none").mkdir()
    command = [
        sys.executable,
        ROOT / "scripts" / "serving" / "serve.py",
        "--repository",
        repository,
        "--docker",
        "triton",
    ]
    environment = os.environ | {"PATH": str(tmp_path / "none")}
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment, timeout=60)
    assert "can't run docker: No such file or directory" in error_of(result)


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize(
    "arguments, said",
    [
        (("--nonsense",), "unrecognized arguments: --nonsense"),
        (("-e", "x", "--repository", "y"), "not both"),
        (("--repository", "y", "--instances", "2"), "leave those flags out"),
        (("--repository", "y", "--latency"), "leave those flags out"),
        (("--address", "localhost"), "is not an IPv4 address"),
        (("--address", "::1"), "is not an IPv4 address"),
        (("--http-port", "0"), "is not a port from 1 to 65535"),
        (("--grpc-port", "65536"), "is not a port from 1 to 65535"),
        (("--page-port", "1e3"), "is not a port from 1 to 65535"),
        (("--http-port", "8001"), "must differ"),
        (("--page", "--page-port", "8002"), "must differ"),
        (("--n-best-size", "0"), "is not a whole number of at least 1"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_installed(arguments, said):
    result = shell(ROOT / "scripts" / "serve.sh", *arguments)
    assert said in error_of(result, code=2) and len(result.stderr.splitlines()) == 1 and result.stdout == ""


def test_what_is_not_there_is_said_before_anything_is_installed(tmp_path, small_engine):
    script = ROOT / "scripts" / "serve.sh"
    result = shell(script, "-e", tmp_path / "nowhere.engine")
    assert "engine not found" in error_of(result) and len(result.stderr.splitlines()) == 1 and result.stdout == ""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = shell(script, "-e", small_engine, "--http-port", port)
    assert f"127.0.0.1:{port} can't be listened on" in error_of(result) and len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "lines, reason",
    [
        ([], "odd bytes"),
        (['E1127 20:00:00.1 7 x.cc:1] "no room"', 'I1127 20:00:00.1 7 x.cc:1] "end"'], '"no room"'),
        (["E1127 20:00:00.1 7 x.cc:1] \"failed to load 'a' version 1: Invalid: Error: x\\n\\nAt:\\n  /p\""], "x"),
    ],
)
def test_reasons(lines, reason):
    said = []
    log = Log(said.append, verbose=False)
    log.read(f"{line}\n".encode() for line in [*lines, "\x1b[2J odd bytes"])
    assert log.reason().endswith(reason) and said[-1] == " [2J odd bytes"  # nothing drives the terminal
