"""Starts scripts/serve.sh's server for tests and measurements, and asks it over HTTP.

The server is that of .venv-serve, which scripts/test.sh fills.
"""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

from tests.conftest import ROOT

#: The Python of the environment that has the server.
PYTHON = ROOT / ".venv-serve" / "bin" / "python"

#: Seconds that a server gets to start, on a machine that is busy.
PATIENCE = 180


def missing() -> str | None:
    """Why no server can be started here; None: it can."""
    if not PYTHON.exists():
        return "there is no .venv-serve (scripts/test.sh makes it)"
    find = [PYTHON, "-c", "import importlib.util as u, sys; sys.exit(u.find_spec('pytriton') is None)"]
    return "nvidia-pytriton is not in .venv-serve (requirements-serve.txt)" if subprocess.run(find).returncode else None


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on just now."""
    with contextlib.ExitStack() as held:
        listeners = [held.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in listeners]


class Server:
    """serve.py as a process, until `stop`. `lines` are what it has printed, as it comes."""

    def __init__(self, *arguments, page: bool = False, address: str = "127.0.0.1", python=PYTHON):
        self.http, self.grpc, self.metrics, self.page = free_ports(4)
        flags = {"http": self.http, "grpc": self.grpc, "metrics": self.metrics}
        words = [f"--{name}-port={port}" for name, port in flags.items()]
        words += ["--page", f"--page-port={self.page}"] if page else []
        command = [python, ROOT / "scripts" / "serving" / "serve.py", *arguments, *words, f"--address={address}"]
        self.process = subprocess.Popen(
            [str(word) for word in command],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, pattern: str, times: int = 1) -> None:
        """Until it has said so. Fails where it ends before, or takes too long."""
        end = time.monotonic() + PATIENCE
        while len(re.findall(pattern, self.text)) < times:
            assert self.process.poll() is None or self._reader.is_alive(), self.text
            assert time.monotonic() < end, self.text
            time.sleep(0.05)

    def wait_until_ready(self) -> "Server":
        self.wait_for("Ask it:")
        return self

    def triton(self) -> int:
        """The process of tritonserver itself."""
        (pid,) = children(self.process.pid)
        return pid

    def backends(self) -> list[int]:
        """The processes of its Python backend."""
        return children(self.triton())

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it as a user would; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            self.process.wait(PATIENCE)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self._reader.join(10)
        return self.process.returncode


@contextlib.contextmanager
def serving(*arguments, **settings):
    """A server that answers, until the block ends."""
    server = Server(*arguments, **settings)
    try:
        yield server.wait_until_ready()
    finally:
        server.stop()


def children(pid: int) -> list[int]:
    found = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, file.read_text().split())
    return found


def body_of(passage, question, parameters: dict | None = None) -> bytes:
    """A request of the KServe protocol, for one question or for lists of them."""
    texts = {"passage": passage, "question": question}
    inputs = []
    for name, data in texts.items():
        data = data if isinstance(data, list) else [data]
        inputs.append({"name": name, "shape": [len(data), 1], "datatype": "BYTES", "data": data})
    return json.dumps({"inputs": inputs, "parameters": parameters or {}}).encode("utf-8")


class Client:
    """Asks over one connection, as long as it holds."""

    def __init__(self, port: int, model: str = "bert_qa", timeout: float = PATIENCE):
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
        self._path = f"/v2/models/{model}/infer"

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exception) -> None:
        self._connection.close()

    def request(self, method: str, path: str, body: bytes | None = None, headers: dict | None = None):
        """(status, headers, body) of any request."""
        self._connection.request(method, path, body, headers or {})
        response = self._connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()

    def post(self, body: bytes, headers: dict | None = None):
        """(status, reply) of a question's request."""
        status, _, data = self.request("POST", self._path, body, headers)
        return status, json.loads(data)

    def send(self, body: bytes) -> None:
        """Ask, and wait for no answer."""
        self._connection.request("POST", self._path, body)

    def ask(self, passage, question, **parameters) -> dict:
        """{output: its values}. Fails where it is refused."""
        status, reply = self.post(body_of(passage, question, parameters))
        assert status == 200, reply
        return {output["name"]: output["data"] for output in reply["outputs"]}


def ask(port: int, passage, question, **parameters) -> dict:
    """Over a connection of its own: none is left, which the server would wait for when it ends."""
    with Client(port) as client:
        return client.ask(passage, question, **parameters)


def post(port: int, body: bytes, headers: dict | None = None):
    with Client(port) as client:
        return client.post(body, headers)


def compare(port: int, data, wanted: dict, clients: int) -> list[str]:
    """Ask the questions of a SQuAD file by so many clients; those whose answers are not `wanted`, {id: text}."""
    examples, different, lock = iter(data.examples), [], threading.Lock()

    def run():
        with Client(port) as client:
            while True:
                with lock:
                    example = next(examples, None)
                if example is None:
                    return
                outputs = client.ask(example.passage, example.question)
                answer, start, end = outputs["answer"][0], outputs["start"][0], outputs["end"][0]
                if answer != wanted[example.question_id] or example.passage[start:end] != answer:
                    different.append(example.question_id)

    threads = [threading.Thread(target=run) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return different
