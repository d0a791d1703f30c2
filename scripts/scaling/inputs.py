"""Tables of questions: which files they are, and their rows, cut into parts that can be answered apart from each other."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from helpers import cli
from helpers.answerer import Row, taken_together
from helpers.errors import DemoBertError, UsageError, one_line
from helpers.files import require_file, sha256_of
from helpers.rows import MAX_LINE_BYTES, QuestionRow, RowsFile, row_of
from scripts.scaling.engines import passage_of

#: What a table is called.
SUFFIXES = (".jsonl", ".csv", ".parquet")

#: Rows that are read from a parquet file at once: few, since each may be as long as a line of a table may.
_PARQUET_ROWS = 64

#: A part with so many characters is not made longer.
_PART_CHARACTERS = 1 << 20


def input_tables(path) -> list[Path]:
    """The tables that `--rows` names, in the order of their names. Raises DemoBertError where there is none.

    Files whose names begin with a dot or an underscore are no tables: those are lists and left-overs of tools.
    """
    path = Path(path)
    if not os.path.isdir(path):
        if path.suffix.lower() not in SUFFIXES:
            raise UsageError(f"--rows {path}: the name must end in {', '.join(SUFFIXES)}, which says what is in it")
        return [require_file(path, "table of questions")]
    try:
        names = sorted(os.listdir(path))
    except OSError as error:
        raise DemoBertError(f"--rows: can't read the folder {path}: {error.strerror}") from error
    tables = [path / name for name in names if name[0] not in "._" and Path(name).suffix.lower() in SUFFIXES]
    folders = dict.fromkeys(table for table in tables if table.is_dir())
    if folders:  # as Spark writes a table; one at a time can be named
        left_out = ", ".join(one_line(folder) for folder in list(folders)[:5]) + ", …" * (len(folders) > 5)
        cli.note(f"Note: left out, since they are folders, which --rows can name one by one: {left_out}")
    tables = [table for table in tables if table not in folders]
    if not tables:
        raise DemoBertError(f"--rows {path}: there is no {', '.join(SUFFIXES)} in this folder")
    return tables


@dataclass
class Part:
    """Some rows of a table, or what ends it.

    rows      none at the end
    share     how much of the table has been read with it, 0 to 1
    notes     what the user should know of the table, in a line each
    facts     at the end of a table: its "bytes" and "sha256"
    failure   at the end of a table that can't be read to its end: why
    """

    rows: list[QuestionRow] = field(default_factory=list)
    share: float = 1.0
    notes: list[str] = field(default_factory=list)
    facts: dict | None = None
    failure: str | None = None


def read_parts(path, batch_size: int, part_rows: int) -> Iterator[Part]:
    """A table in parts, one at a time in memory; the last has no rows, but `facts` or a `failure`.

    Cut only where inference.py sorts other rows into batches (of `batch_size` windows), so that the answers are the same.
    """
    try:
        before = _identity(require_file(path, "table of questions"))
        facts = {"bytes": before[0], "sha256": sha256_of(path)}
        notes: list[str] = []
        with _open_rows(path, notes.append) as (rows, share):
            for some in _parts(rows, batch_size, part_rows):
                yield Part(some, share(), notes[:])
                notes.clear()
        if _identity(path) != before:
            raise DemoBertError(f"{path} was changed while it was read")
        yield Part(notes=notes, facts=facts)
    except DemoBertError as error:
        yield Part(failure=str(error))
    except OSError as error:
        yield Part(failure=f"the table of questions can't be read: {path}: {error.strerror or error}")


def _identity(path) -> tuple[int, int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ino


def _parts(rows: Iterable[QuestionRow], batch_size: int, part_rows: int) -> Iterator[list[QuestionRow]]:
    """Rows that are sorted into batches together, and more of them, until there are `part_rows`, or many characters."""
    read: list[QuestionRow] = []

    def texts() -> Iterator[Row]:
        for row in rows:
            read.append(row)
            yield row.error or (row.passage, row.question)

    waiting = texts()
    while taken_together(waiting, batch_size):
        if len(read) >= part_rows or sum(len(passage_of(row) or "") for row in read) >= _PART_CHARACTERS:
            yield read[:]
            read.clear()
    if read:
        yield read[:]


@contextlib.contextmanager
def _open_rows(path, say: Callable[[str], object]) -> Iterator[tuple[Iterable[QuestionRow], Callable[[], float]]]:
    """(the rows of a table, what tells how much of it has been read). Raises DemoBertError."""
    if Path(path).suffix.lower() == ".parquet":
        with _ParquetRows(path) as rows:
            yield rows, rows.share
        return
    read, table = 0, RowsFile(str(path), say)

    def counted() -> Iterator[QuestionRow]:
        nonlocal read
        for row in table:
            read += 1
            yield row

    def share() -> float:
        total = table.estimated_total(read)
        return min(read / total, 1.0) if total else 1.0

    yield counted(), share


class _ParquetRows:
    """The rows of a parquet file, with the columns question, context and, where there is one, id.

    Raises DemoBertError for a file that is damaged, or lacks a column.
    """

    def __init__(self, path):
        self._path, self._read = path, 0

    def __enter__(self) -> "_ParquetRows":
        import pyarrow as pa
        import pyarrow.parquet as pq

        # What a damaged file makes of pyarrow's readers; OSError, which it is at times, is no error of the disk then.
        self._errors = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError)
        require_file(self._path, "table of questions")
        with self._damage():
            self._file = pq.ParquetFile(self._path)
            self._total = self._file.metadata.num_rows
            schema = self._file.schema_arrow
        self._check_columns(schema, pa.types)
        return self

    def __exit__(self, *exception) -> None:
        with contextlib.suppress(Exception):
            self._file.close()

    def share(self) -> float:
        return min(self._read / self._total, 1.0) if self._total else 1.0

    def __iter__(self) -> Iterator[QuestionRow]:
        batches = self._batches()
        while True:
            with self._damage():
                columns = next(batches, None)
            if columns is None:
                return
            for values in zip(*columns.values()):
                self._read += 1
                yield _parquet_row(dict(zip(columns, values)), f"row {self._read}")

    def _batches(self) -> Iterator[dict[str, list]]:
        """Column → values, texts as bytes: what is not UTF-8 is its row's fault, not the file's."""
        import pyarrow as pa

        for batch in self._file.iter_batches(_PARQUET_ROWS, columns=self._columns):
            columns = {}
            for name, column in zip(batch.schema.names, batch.columns):
                if pa.types.is_dictionary(column.type):
                    column = column.dictionary_decode()
                columns[name] = (column.cast(pa.large_binary()) if _is_text(column.type) else column).to_pylist()
            yield columns

    def _check_columns(self, schema, types) -> None:
        names = schema.names
        for name in ("question", "context"):
            if name not in names:
                there = one_line(", ".join(names), 200) or "none"
                raise DemoBertError(f"{self._path} needs the columns question and context; there is: {there}")
            kind = schema.field(name).type if names.count(name) == 1 else None
            kind = kind.value_type if kind is not None and types.is_dictionary(kind) else kind
            if kind is not None and not _is_text(kind):
                raise DemoBertError(f"{self._path}: the column {name} holds {one_line(kind, 100)}, not text")
        self._columns = [name for name in ("id", "question", "context") if name in names]
        if twice := next((name for name in self._columns if names.count(name) > 1), None):
            raise DemoBertError(f"{self._path} has the column {twice} twice")

    @contextlib.contextmanager
    def _damage(self):
        try:
            yield
        except self._errors as error:
            said = one_line(error, 200)
            raise DemoBertError(f"{self._path} is not a parquet file that can be read ({said})") from error


def _is_text(kind) -> bool:
    import pyarrow as pa

    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _parquet_row(values: dict, place: str) -> QuestionRow:
    for name, value in values.items():
        if isinstance(value, bytes) and len(value) > MAX_LINE_BYTES:
            return _fault(f"{place}: {name} is longer than {MAX_LINE_BYTES >> 20} MiB")
        try:
            values[name] = value.decode("utf-8") if isinstance(value, bytes) else value
        except UnicodeDecodeError:
            return _fault(f"{place}: {name} is not UTF-8 text")
    # A null is nothing: a column that has them is a field that is missing in such rows.
    return row_of({name: value for name, value in values.items() if value is not None}, place)


def _fault(message: str) -> QuestionRow:
    return QuestionRow(None, None, None, DemoBertError(message))
