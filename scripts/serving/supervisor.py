"""Keeps Triton's server running: waits until it answers, starts it again when one of its processes dies, ends it.

Triton itself does not start a process of its Python backend again, and 24.10 says that it is ready all the same. Standard
library only.
"""

import collections
import contextlib
import ctypes
import http.client
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from helpers.errors import DemoBertError, harmless, one_line
from scripts.serving.tritonserver import Command, Place

#: Seconds from one look at the processes to the next.
_BETWEEN_LOOKS = 0.25

#: Seconds that a server whose model has lost a process gets for what its other processes work on.
_RESTART_GRACE = 5

#: A server that dies so often within so many seconds is given up.
_DEATHS, _DEATHS_WITHIN = 3, 60

#: What Triton says when it has waited for what is in flight; then it waits for dead processes, too, for ever.
_UNLOADING = "All models are stopped, unloading models"

#: Lines of its log that are kept to say why it could not start.
_LINES_KEPT = 500

#: What Triton says on machines without a GPU at every start, and at every end.
_CHATTER = re.compile("pinned system memory|CudaDriverHelper|Failed to initialize NVML|DCGM unable|Signal .* received")

#: A line of Triton's log: its level, its text.
_LINE = re.compile(r"([IWEF])\d{4} [\d:.]+ \d+ \S+\] ?(.*)")

#: Loaded now: little may be done between fork and exec, where threads are about.
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


class Log:
    """The server's output: warnings and errors are passed on to `say`, all of it where `verbose`."""

    def __init__(self, say: Callable[[str], object], verbose: bool):
        self._say, self._verbose = say, verbose
        self._lines: collections.deque = collections.deque(maxlen=_LINES_KEPT)
        self.unloading = threading.Event()

    def read(self, stream) -> None:
        """All lines of a stream, until it ends."""
        for data in stream:
            line = data.decode("utf-8", "replace").rstrip()
            self._lines.append(line)
            if _UNLOADING in line:
                self.unloading.set()
            if self._verbose or not self._is_chatter(line):
                self._say(harmless(line))

    def reason(self) -> str:
        """Why the server could not start, as far as its log tells, in one line."""
        for line in self._lines:
            if found := re.search(r"failed to load '[^']*' version \d+: \w+: (.*)", line):
                cause = found[1].removesuffix('"').partition("\\n\\nAt:")[0]
                return one_line(re.sub(r"^\w+: ", "", cause), 500)
        errors = [found[2] for line in self._lines if (found := _LINE.match(line)) and found[1] in "EF"]
        return one_line([*self._lines, *errors][-1] if self._lines else "it does not say why", 500)

    def _is_chatter(self, line: str) -> bool:
        found = _LINE.match(line)
        return not line or line[0] in "+|" or (found and found[1] == "I") or bool(_CHATTER.search(line))


class Supervisor:
    """One server. `say` is told what becomes of it, a line each.

    `stop_asked` may be set by a signal's handler: the server then finishes what is in flight, and `run` returns.
    """

    def __init__(self, command: Command, place: Place, say: Callable[[str], object], verbose: bool, exit_timeout: int):
        self._command, self._place, self._say, self._verbose = command, place, say, verbose
        self._exit_timeout = exit_timeout
        self._deaths: collections.deque = collections.deque(maxlen=_DEATHS)
        self.stop_asked = threading.Event()
        self.hurry = threading.Event()

    def run(self, when_ready: Callable[[], object]) -> None:
        """Start the server, call `when_ready` once it answers, keep it running until asked to stop.

        Raises DemoBertError where it can't be started, or dies again and again.
        """
        while not self.stop_asked.is_set():
            self._start()
            try:
                if self._wait_until_ready():
                    when_ready()
                    when_ready = self._say_again
                    self._watch()
            finally:
                # Whatever ends this function, nothing of the server is left.
                self._stop(self._exit_timeout + 5 if self.stop_asked.is_set() else _RESTART_GRACE)

    def _say_again(self) -> None:
        self._say("the server answers again")

    def _died(self, what: str, lost: str) -> None:
        """Say it. Raises DemoBertError where that happens again and again."""
        self._say(f"{what}: {lost}")
        self._deaths.append(time.monotonic())
        if len(self._deaths) == _DEATHS and self._deaths[-1] - self._deaths[0] < _DEATHS_WITHIN:
            raise DemoBertError(f"the server died {_DEATHS} times within {_DEATHS_WITHIN} seconds: it is given up")
        self._say("starting the server again")

    def _start(self) -> None:
        command = self._command
        try:
            # A session of its own: Ctrl-C is for this process, which ends the server as it wants to be ended.
            self._process = subprocess.Popen(
                command.words,
                cwd=command.folder,
                env=command.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        except OSError as error:
            raise DemoBertError(f"can't run {command.words[0]}: {error.strerror}") from error
        self._log = Log(self._say, self._verbose)
        self._reader = threading.Thread(target=self._log.read, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    def _wait_until_ready(self) -> bool:
        """Whether it answers; False: it was asked to stop before. Raises DemoBertError where it ended."""
        while not self.stop_asked.wait(0.1):
            if self._process.poll() is not None:
                self._reader.join(5)
                raise DemoBertError(f"the server could not start: {self._log.reason()}")
            if is_ready(self._place):
                return True
        return False

    def _watch(self) -> None:
        """Until it is asked to stop, or one of the server's processes has died. Raises DemoBertError; see `_died`."""
        backends = _children(self._process.pid)
        while not self.stop_asked.wait(_BETWEEN_LOOKS):
            if (code := self._process.poll()) is not None:
                status = -code if code < 0 else code << 8
                return self._died(
                    f"the server died ({_how(status)})", "what it was asked, and had not answered, is lost"
                )
            for pid in backends:
                if (status := _status_of_dead(pid)) is not None:
                    lost = "the questions that it worked on, and that waited, are lost, and who asked them is told so"
                    return self._died(f"the backend process {pid} died ({_how(status)})", lost)

    def _stop(self, patience: float) -> None:
        """End the server within `patience` seconds: it finishes what is in flight first."""
        if self._process.poll() is None:
            self._process.terminate()
            end = time.monotonic() + patience
            while self._process.poll() is None and time.monotonic() < end and not self.hurry.is_set():
                if self._log.unloading.wait(0.1):
                    end = min(end, time.monotonic() + _RESTART_GRACE)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        self._process.wait(0.1)
            self._process.kill()
        self._process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # what it has started goes with it
        self._reader.join(_RESTART_GRACE)
        if self.stop_asked.is_set() and self._process.returncode:
            self._say("the server was ended before it was done: what was still in flight, if anything was, is lost")


def is_ready(place: Place) -> bool:
    """Whether the server there says that it is ready."""
    host = "127.0.0.1" if place.address == "0.0.0.0" else place.address
    connection = http.client.HTTPConnection(host, place.http_port, timeout=5)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _end_with_parent() -> None:
    """In the child: whatever ends this process, the server does not stay behind."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _children(pid: int) -> list[int]:
    """The processes that process `pid` has started, and that are there."""
    return [int(path.name) for path in Path("/proc").glob("[0-9]*") if _stat(path)[1:2] == [str(pid)]]


def _stat(process: Path) -> list[str]:
    """The fields of /proc/…/stat after the program's name: state, parent, …, last the exit code; [] where it is gone."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _status_of_dead(pid: int) -> int | None:
    """How process `pid` ended, as waitpid says it; 0 where that can't be known; None: it lives."""
    fields = _stat(Path(f"/proc/{pid}"))
    if not fields:
        return 0
    return int(fields[-1]) if fields[0] in "ZX" else None


def _how(status: int) -> str:
    number = status & 0x7F
    if number:
        name = signal.Signals(number).name if number in set(signal.Signals) else ""
        return f"signal {number}{name and f', {name}'}"
    return f"exit code {status >> 8}"
