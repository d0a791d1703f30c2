"""What answer_ray.py does: which tables are to be answered, all of them by Ray, each one's answers written as it comes."""

import contextlib
import hashlib
import importlib.util
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

from tqdm import tqdm

from helpers import cli
from helpers.answer_options import AnswerOptions
from helpers.answerer import engine_tokenizer, fitted_options
from helpers.backends import card_of
from helpers.engine_card import EngineCard
from helpers.errors import DemoBertError, UsageError, missing_package
from helpers.files import sha256_of
from helpers.outputs import atomic_write, check_outputs, only_writer
from helpers.tokenization import check_table
from scripts.scaling.inputs import input_tables
from scripts.scaling.ledger import LEDGER, Entry, Ledger


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


def engine_settings(args):
    """What the engines of the run have in common, found out without loading one. Raises DemoBertError."""
    _check_packages()
    from scripts.scaling.engines import EngineSettings  # once it is known that its packages are there

    card = card_of(args.engine, cli.note)
    tokenizer = engine_tokenizer(args.engine, card)
    check_table(tokenizer, card.config)
    asked = AnswerOptions(**{name: getattr(args, name) for name in AnswerOptions.__dataclass_fields__})
    on_gpu = card.backend != "openvino"
    if on_gpu and args.cores:
        raise UsageError(f"--cores has no effect: {args.engine} runs on a GPU")
    return EngineSettings(
        engine=os.path.abspath(args.engine),
        facts={"engine": card.engine_sha256, "tokenizer": tokenizer.sha256},
        options=fitted_options(asked, card),
        top_k=args.top_k,
        form=args.format,
        cores=None if on_gpu else args.cores or 0,
        run=secrets.token_hex(8),
    )


def _check_packages() -> None:
    for name in ("pyarrow", "pandas", "ray"):  # Ray is imported later: it reads its settings then
        if importlib.util.find_spec(name) is None:
            raise missing_package(name, "-r requirements-ray.txt", "answer_ray.py")


def output_folder(path, tables) -> Path:
    """The folder for the answers, made where there is none. Raises DemoBertError."""
    folder = Path(path)
    if folder.is_dir() and os.path.isdir(tables) and os.path.samefile(folder, tables):
        raise UsageError(f"-o {path} is the folder of the tables: its answers would be the next run's questions")
    try:
        folder.mkdir(exist_ok=True)
    except FileExistsError as error:
        raise DemoBertError(f"-o {path} is not a folder") from error
    except OSError as error:
        raise DemoBertError(f"-o: can't make the folder {path}: {error.strerror}") from error
    return folder


def output_of(table: Path, folder: Path, form: str) -> Path:
    """Where a table's answers go: its own name, but for the end."""
    return folder / f"{table.stem}.{form}"


def check_names(outputs: dict[Path, Path]) -> None:
    """Raises UsageError where two tables would have the same file of answers."""
    seen: dict[Path, Path] = {}
    for table, output in outputs.items():
        if other := seen.get(output):
            raise UsageError(f"{other.name} and {table.name} would both be answered in {output}: rename one of them")
        seen[output] = table


def left_to_do(outputs: dict[Path, Path], ledger: Ledger, facts: dict, fresh: bool) -> list[Path]:
    """The tables that have no answers yet, or no longer; what is left out, or done again, is said.

    Raises DemoBertError where a file is in the way, or holds the answers of another engine or of other options.
    """
    waiting, done = [], 0
    for table, output in outputs.items():
        entry = ledger.entries.get(output.name)
        if entry is None and os.path.lexists(output):
            raise DemoBertError(f"{output} is in the way, and not of this tool: name another folder, or remove it")
        if entry is None or not entry.output_sha256 or fresh or not output.exists():
            waiting.append(table)
        elif not ledger.is_whole(output.name):
            cli.note(f"{output} is not what was written into it: {table.name} is answered anew")
            waiting.append(table)
        elif entry.facts != facts:
            both = facts | entry.facts
            names = [name for name in both if entry.facts.get(name, ledger) != facts.get(name, ledger)]
            raise DemoBertError(
                f"{output} is of another command (not the same: {', '.join(names)}): --fresh answers all anew, another "
                "folder keeps both"
            )
        elif (entry.table, entry.table_bytes, entry.table_sha256) != _table_facts(table):
            cli.note(f"{table} is not what {output.name} was made from: it is answered anew")
            waiting.append(table)
        else:
            done += 1
    if fresh:
        _forget(outputs, ledger)
    if done:
        cli.note(f"{done} of {len(outputs)} files are answered already (--fresh answers them anew)")
    return waiting


def _table_facts(table: Path) -> tuple[str, int, str]:
    try:
        return table.name, table.stat().st_size, sha256_of(table)
    except OSError as error:
        raise DemoBertError(f"the table of questions can't be read: {table}: {error.strerror}") from error


def _forget(outputs: dict[Path, Path], ledger: Ledger) -> None:
    """Enter that the old answers count no more: a run that is killed before it has new ones is gone on with."""
    for output in outputs.values():
        entry = ledger.entries.get(output.name)
        if entry is not None and entry.output_sha256:
            ledger.add(Entry(**asdict(entry) | {"output_sha256": ""}))


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
            with atomic_write(output) as file:
                hashed = _Hashed(file)
                writer = WRITERS[self.settings.form](hashed)
                whole = _Whole(writer)
                whole.take(parts)
                writer.close()
                file.flush()
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
        rate = f" in {self.seconds:.1f} s, {self.answered / self.seconds:.1f} questions per second" if self.seconds else ""
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
    """A file that is only written to, its `bytes` and `sha256` counted meanwhile."""

    def __init__(self, file):
        self._file, self._digest, self.bytes, self.closed = file, hashlib.sha256(), 0, False

    def write(self, data) -> int:
        self._digest.update(data)
        self.bytes += len(memoryview(data).cast("B"))
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

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
                cli.note(f"The engine on {engine['place']} has died and was started again: its questions were asked again")
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


@contextlib.contextmanager
def started(args, settings) -> Iterator[tuple]:
    """Ray, running: (the settings with the cores that each engine has, how many engines there are)."""
    import dataclasses

    from scripts.scaling.cluster import ray_running, shares

    on_gpu = settings.cores is None
    with ray_running(args.address, on_gpu, args.verbose) as machines:
        if on_gpu:
            there = int(sum(machine.get("GPU", 0) for machine in machines))
            if not there or (args.engines or 0) > there:
                raise UsageError(f"{args.engines or 1} engines need a GPU each, and Ray sees {there}")
            yield settings, args.engines or there
            return
        engines, cores = shares(args.engines, args.cores, [int(machine.get("CPU", 0)) for machine in machines])
        if args.verbose:
            cli.note(f"{engines} engines of {cores} cores each")
        yield dataclasses.replace(settings, cores=cores), engines
