"""What answer_ray.py does: which tables are to be answered, all of them by Ray, each one's answers written as it comes."""

import contextlib
import hashlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

from tqdm import tqdm

from helpers import cli
from helpers.engine_card import EngineCard
from helpers.errors import DemoBertError
from helpers.outputs import atomic_write, check_outputs, only_writer
from scripts.scaling.inputs import input_tables
from scripts.scaling.ledger import LEDGER, Entry, Ledger
from scripts.scaling.planning import check_names, left_to_do, output_folder, output_of
from scripts.scaling.preparing import engine_settings, started


def answer_files(args) -> int:
    """Answer the tables that `args` name; the exit code is 1 where a row or a table failed. Raises DemoBertError."""
    settings = engine_settings(args)
    tables = input_tables(args.rows)
    folder = output_folder(args.output, args.rows)
    outputs = {table: output_of(table, folder, args.format) for table in tables}
    check_names(outputs)
    with only_writer(folder / LEDGER, "the list of answered files"):
        check_outputs({str(path): path for path in outputs.values()}, (*tables, *EngineCard.set_of(args.engine)))
        ledger = Ledger(folder)
        facts = settings.facts | {"options": asdict(settings.options), "top_k": settings.top_k}
        waiting = left_to_do(outputs, ledger, facts, args.fresh)
        run = Run(args, settings, ledger, facts, outputs)
        if waiting:
            run.answer(waiting)
        print(run.summary(), flush=True)
    return int(run.failed > 0 or run.failed_tables > 0)


class TableFailed(DemoBertError):
    """A table that can't be answered to its end; the others can."""


@dataclass
class Run:
    """One run: what it works on, and what has become of it so far.

    failed          rows without an answer, of the tables of earlier runs, too, whose answers are in the folder
    failed_tables   tables without a file of answers
    """

    args: object
    settings: object
    ledger: Ledger
    facts: dict
    outputs: dict[Path, Path]
    answered: int = 0
    seconds: float = 0.0
    failed_tables: int = 0

    @property
    def failed(self) -> int:
        return sum(entry.failed for entry in self._entries())

    def _entries(self) -> list[Entry]:
        names = [output.name for output in self.outputs.values()]
        return [entry for name in names if (entry := self.ledger.entries.get(name)) and entry.output_sha256]

    def answer(self, tables: list[Path]) -> None:
        """Answer these tables, and enter those that are whole. Raises DemoBertError."""
        with started(self.args, self.settings) as (settings, engines):
            from scripts.scaling.pipeline import answered_parts

            stream = answered_parts(tables, settings, engines, self.args.part_rows, self.args.verbose)
            start = time.perf_counter()
            with contextlib.closing(stream), Progress(tables) as progress:
                left = list(range(len(tables)))
                for number, parts in groupby(progress.watch(stream), key=lambda part: part.table):
                    left.remove(number)
                    self._write(tables[number], parts)
            self.seconds = time.perf_counter() - start
            for number in left:
                self._fail(tables[number], _lost(0))

    def _write(self, table: Path, parts: Iterator) -> None:
        """Write one table's answers; what it has failed of is said. Raises DemoBertError."""
        from scripts.scaling.formats import WRITERS

        output = self.outputs[table]
        try:
            with atomic_write(output) as file, _Hashed(file) as hashed:
                writer = WRITERS[self.settings.form](hashed)
                whole = _Whole(writer)
                whole.take(parts)
                writer.close()
                facts = {"table_bytes": whole.facts["bytes"], "table_sha256": whole.facts["sha256"]}
                made = {"output": output.name, "output_bytes": hashed.bytes, "output_sha256": hashed.sha256}
                counts = {"questions": whole.questions, "failed": whole.failed}
                self.ledger.add(Entry(**made, table=table.name, **facts, facts=self.facts, **counts))
            self.answered += whole.questions - whole.failed
        except TableFailed as error:
            self._fail(table, str(error))

    def _fail(self, table: Path, reason: str) -> None:
        self.failed_tables += 1
        place = "" if str(table) in reason else f"{table}: "
        cli.note(f"{place}{cli.one_line(reason)}; it is left out")

    def summary(self) -> str:
        """What there is to say at the end, in one line."""
        done, count = self._entries(), len(self.outputs)
        total = sum(entry.questions - entry.failed for entry in done)
        earlier = f" ({total - self.answered} of them in runs before this one)" if total > self.answered else ""
        rate = (
            f" in {self.seconds:.1f} s, {self.answered / self.seconds:.1f} questions per second" if self.seconds else ""
        )
        left = f", {self.failed_tables} files left out" if self.failed_tables else ""
        files = f"{count - self.failed_tables} of {count} files" if left else f"{count} files"
        return f"Answered {total} questions of {files}{earlier}{rate}, {self.failed} failed{left}: {self.args.output}"


class _Whole:
    """Writes the parts of a table, which must be all that there are, each once."""

    def __init__(self, writer):
        self._writer, self.questions, self.failed, self.facts = writer, 0, 0, None

    def take(self, parts: Iterator) -> None:
        """Raises TableFailed where one is missing, or the table could not be read."""
        ended = False
        for expected, part in enumerate(parts):
            if part.head["failure"] is not None:
                raise TableFailed(part.head["failure"])
            if part.part != expected:
                raise TableFailed(_lost(self.questions))
            if part.data:
                self._writer.write(part.data)
            self.questions += part.head["questions"]
            self.failed += part.head["failed"]
            ended, self.facts = part.ends_table, part.head["facts"]
        if not ended:
            raise TableFailed(_lost(self.questions))


def _lost(after: int) -> str:
    return (
        f"a process died again and again over what follows row {after}, or failed in a way that it should not "
        "(--verbose shows what Ray says)"
    )


class _Hashed:
    """A file that is only written to, its `bytes` and `sha256` counted meanwhile.

    When the block ends it takes what it is given, and drops it: a parquet writer that is given up writes at its own end.
    """

    def __init__(self, file):
        self._file, self._digest, self.bytes, self.closed = file, hashlib.sha256(), 0, False

    def __enter__(self) -> "_Hashed":
        return self

    def __exit__(self, *exception) -> None:
        self._file = None

    def write(self, data) -> int:
        if self._file is None:
            return len(data)
        self._digest.update(data)
        self.bytes += len(memoryview(data).cast("B"))
        return self._file.write(data)

    def flush(self) -> None:
        """Whoever has opened the file flushes it."""

    def tell(self) -> int:
        return self.bytes

    def close(self) -> None:
        """Whoever has opened the file closes it."""

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


class Progress:
    """A bar on stderr, where that is a terminal: questions, and how many there are by the bytes read so far."""

    def __init__(self, tables: list[Path]):
        self._sizes = [_size(table) for table in tables]
        self._bar = tqdm(unit="question", disable=None)
        self._processes: dict[str, int] = {}
        self._said: set[str] = set()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception) -> None:
        self._bar.close()

    def watch(self, parts: Iterator) -> Iterator:
        """The same parts; what is to be said of them is said, once."""
        for part in parts:
            engine = part.head.get("engine")
            if engine and self._processes.setdefault(engine["place"], engine["process"]) != engine["process"]:
                self._processes[engine["place"]] = engine["process"]
                cli.note(
                    f"The engine on {engine['place']} has died and was started again: its questions were asked again"
                )
            for note in part.head["notes"]:
                if note not in self._said:
                    self._said.add(note)
                    cli.note(note)
            read = sum(self._sizes[: part.table]) + self._sizes[part.table] * part.head["share"]
            done = self._bar.n + part.head["questions"]
            self._bar.total = round(done * sum(self._sizes) / read) if read else None
            self._bar.set_postfix_str(f"file {part.table + 1} of {len(self._sizes)}", refresh=False)
            self._bar.update(part.head["questions"])
            yield part


def _size(table: Path) -> int:
    try:
        return table.stat().st_size
    except OSError:  # whoever reads it says so
        return 0
