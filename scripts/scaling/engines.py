"""An engine in a process of its own, as Ray's actor: parts of tables in, their answers out."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pyarrow as pa

from helpers.answer_options import AnswerOptions
from helpers.errors import DemoBertError, one_line
from helpers.rows import JsonLines, QuestionRow
from scripts.scaling.formats import encoded

#: What travels, a part a row: the table's number, the part's number in it, what is to know of the part, its content.
COLUMNS = pa.schema({"table": pa.int64(), "part": pa.int64(), "head": pa.large_string(), "data": pa.large_binary()})


def travelling(table: int, part: int, head: dict, data: bytes) -> pa.Table:
    """A part as Ray Data takes it: one row of COLUMNS. `head` is what JSON holds."""
    return pa.table([[table], [part], [json.dumps(head)], [data]], schema=COLUMNS)


def passage_of(row: QuestionRow) -> str | None:
    """None where it is no text: a table may hold anything there, and such a row has its error already."""
    return row.passage if isinstance(row.passage, str) else None


def packed_rows(rows: list[QuestionRow]) -> bytes:
    """Rows as JSON, each passage once: questions that follow each other are often about the same one."""
    passages: dict = {}
    values = [
        (
            row.question_id,
            row.question,
            passages.setdefault(passage_of(row), len(passages)),
            row.error and str(row.error),
        )
        for row in rows
    ]
    # A table of JSON lines may hold halves of surrogate pairs; what becomes of them is the engine's side to say.
    return json.dumps([list(passages), values], ensure_ascii=False).encode("utf-8", "surrogatepass")


def unpacked_rows(data: bytes) -> list[QuestionRow]:
    """The inverse of `packed_rows`."""
    passages, values = json.loads(data.decode("utf-8", "surrogatepass"))
    return [
        QuestionRow(key, question, passages[passage], None if error is None else DemoBertError(error))
        for key, question, passage, error in values
    ]


#: So often an engine's loading may end its process, in one place, before the run is given up.
MOST_LOADS = 3


@dataclass(frozen=True)
class EngineSettings:
    """What all engines of a run have in common.

    engine    its path, the same on all machines; `facts` are its SHA-256 and its tokenizer's, which must be the same, too
    cores     cores of each engine; None: it runs on a GPU
    run       a name that no other run has
    """

    engine: str
    facts: dict
    options: AnswerOptions
    top_k: int
    form: str
    cores: int | None
    run: str


class EngineActor:
    """Answers parts. What ends the run, such as an engine that can't be loaded, is the answer to all of them.

    Ray calls it with a table of COLUMNS that has one row, and takes such a table.
    """

    def __init__(self, settings: EngineSettings):
        self._settings, self._answerer, self._fatal = settings, None, None
        try:
            self._place = self._take_place()
            with counted_loads(f"{settings.run}, {self._place}"):
                self._open()
        except (DemoBertError, MemoryError) as error:
            self._fatal = str(error) or "not enough memory for the engine"

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        (values,) = table.to_pylist()
        head, data, begin = json.loads(values["head"]), b"", time.time()
        head |= {"questions": 0, "failed": 0, "fatal": self._fatal}
        if values["data"] and self._fatal is None:
            try:
                data = self._answer(unpacked_rows(values["data"]), head)
            except (DemoBertError, MemoryError) as error:
                head["fatal"] = str(error) or "not enough memory for this engine and batch size"
            head["engine"] = {"place": self._place, "process": os.getpid(), "begin": begin, "end": time.time()}
        yield travelling(values["table"], values["part"], head, data)

    def _take_place(self) -> str:
        """Keep to cores, or to the GPU that Ray has given this process; what tells it from the others' places."""
        machine = socket.gethostname()
        if self._settings.cores is None:
            return f"{machine}, GPU {os.environ.get('CUDA_VISIBLE_DEVICES', '')}"
        groups = core_groups(self._settings.cores)
        self._claim, number = claim_number(self._settings.run, len(groups))
        keep_to(groups[number])
        return f"{machine}, cores {','.join(map(str, groups[number]))}"

    def _open(self) -> None:
        from helpers.answerer import Answerer  # after `_take_place`: OpenVINO counts its cores, CUDA its devices
        from helpers.asking_many import ControlTokens

        settings = self._settings
        self._answerer = Answerer.open(settings.engine, settings.options, throughput=True)
        card = self._answerer.engine.card
        if settings.facts != {"engine": card.engine_sha256, "tokenizer": self._answerer.tokenizer.sha256}:
            raise DemoBertError(f"{self._place}: {settings.engine} is another engine than where the run was started")
        self._found: list[str] = []
        self._control_tokens = ControlTokens(self._answerer.tokenizer, self._found.append)

    def _answer(self, rows: list[QuestionRow], head: dict) -> bytes:
        for row in rows:
            if row.error is None:
                self._control_tokens.look(row.passage, row.question)
        asked = (row.error or (row.passage, row.question) for row in rows)
        replies = list(chain.from_iterable(self._answerer.ask_in_chunks(asked, self._settings.top_k)))
        head["questions"], head["failed"] = len(rows), sum(isinstance(reply, DemoBertError) for reply in replies)
        head["notes"] += [one_line(note) for note in self._found]
        self._found.clear()
        return encoded(map(JsonLines().line, rows, replies), self._settings.form)


@contextlib.contextmanager
def counted_loads(place: str) -> Iterator[None]:
    """Load an engine within it. Raises DemoBertError where processes that began that in `place` ended while they did.

    Ray starts another one for each that ends, for ever: of engines that have answered something it is to do that. Each
    process has a file that it locks: one that nobody holds any more is of a process that has died.
    """
    name = hashlib.sha256(place.encode()).hexdigest()[:32]
    folder = Path(tempfile.gettempdir()) / f"demobert-loads-{name}"  # a run's name is random: it is nobody else's
    died = [path for path in _files_of(folder) if not _is_held(path)]
    if len(died) >= MOST_LOADS:
        shutil.rmtree(folder, ignore_errors=True)
        raise DemoBertError(f"{len(died)} processes were ended while they loaded the engine; memory may be short")
    own = None
    with contextlib.suppress(OSError):  # where nothing can be written, nothing is counted
        folder.mkdir(mode=0o700, exist_ok=True)
        own, _ = tempfile.mkstemp(dir=folder)
        fcntl.flock(own, fcntl.LOCK_EX)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if own is not None:
            os.close(own)


def _files_of(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _is_held(path: Path) -> bool:
    """Whether the process that has locked the file lives."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # it is locked, or gone meanwhile
        return True
    return False


def core_groups(size: int) -> list[list[int]]:
    """The cores that this process may use in groups of `size`; one group of all of them where they are fewer.

    Hardware threads of one core stay together: as another engine's, each would take the other's time.
    """
    cores = sorted(os.sched_getaffinity(0), key=_core_place)
    groups = [cores[first : first + size] for first in range(0, len(cores) - size + 1, size)]
    return groups or [cores]


def _core_place(core: int) -> tuple[int, int, int]:
    """(socket, core in it, hardware thread), as far as the system tells."""
    topology = Path(f"/sys/devices/system/cpu/cpu{core}/topology")
    try:
        package, number = (int((topology / name).read_text()) for name in ("physical_package_id", "core_id"))
    except (OSError, ValueError):
        return 0, core, core
    return package, number, core


def claim_number(run: str, count: int) -> tuple[socket.socket, int]:
    """A number under `count` that no other process of the run on this machine has, and what holds it as long as it lives.

    A name in Linux's abstract namespace belongs to one socket, and goes with its process, however that ends: the process
    that takes its place gets the number of the one that was killed. Where all are taken, it shares the first.
    """
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    for number in range(count):
        try:
            claim.bind(f"\0demobert-{run}-{number}")
            return claim, number
        except OSError:
            continue
    return claim, 0


def keep_to(cores: list[int]) -> None:
    """Let all threads of this process, and those that they will start, run on these cores only."""
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setaffinity(int(thread), cores)
        except OSError:  # it has just ended
            continue
