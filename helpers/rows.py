"""Tables of questions, JSON lines or CSV, row by row: read from a file or a pipe, answers written in either form."""

import codecs
import csv
import io
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from helpers.answerer import Reply
from helpers.errors import ERROR_LENGTH, DemoBertError, one_line
from helpers.files import require_file
from helpers.tokenization import check_text

#: A line longer than this, in bytes, is none of a table.
MAX_LINE_BYTES = 1 << 26

#: What separates a CSV file's fields: a comma, or what spreadsheets write where the comma is the decimal point.
_DELIMITERS = (",", ";", "\t")

#: The columns of a CSV file of answers, after the question's id where there are ids.
_COLUMNS = (
    *("question", "answer", "probability", "start_char", "end_char", "start_logit", "end_logit", "null_odds"),
    *("windows", "n_best", "error"),
)


@dataclass(frozen=True)
class QuestionRow:
    """One row: a question and its passage ("context"), the id that it has, or None; or what is wrong with it."""

    question_id: str | int | None
    question: str | None
    passage: str | None
    error: DemoBertError | None = None


class RowsFile:
    """The rows of a .jsonl or .csv file, or, of "-", the JSON lines that come by stdin. Iterate over it once.

    has_ids   whether a row may have an id
    dialect   what separates a CSV file's fields, after a byte order mark where there is one: "," for JSON lines
    Raises DemoBertError for a file that can't be read, or lacks a column.
    """

    def __init__(self, path: str, say=lambda message: None):
        self._file = sys.stdin.buffer if path == "-" else open_binary(path)
        self._size = 0 if path == "-" else os.fstat(self._file.fileno()).st_size
        self.has_ids, self.dialect = True, ","
        if Path(path).suffix.lower() == ".csv":
            self._rows = self._csv_rows(path, say)
        else:
            self._rows = (_json_row(line, number) for number, line in _lines(self._file))

    def __iter__(self) -> Iterator[QuestionRow]:
        return self._rows

    def estimated_total(self, read: int) -> int | None:
        """How many rows there are, going by the bytes of those `read`; None: nobody knows."""
        place = self._file.tell() if self._size else 0
        return round(read * self._size / place) if place else None

    def _csv_rows(self, path: str, say) -> Iterator[QuestionRow]:
        csv.field_size_limit(MAX_LINE_BYTES)
        lines = _TextLines(self._file)
        header, delimiter = _header(lines, path)
        if delimiter != ",":
            say(f"{path}: its fields are separated by {'tabs' if delimiter == chr(9) else delimiter}")
        self.has_ids, self.dialect = "id" in header, lines.byte_order_mark + delimiter
        return _rows_of(lines, delimiter, header)


def open_binary(path):
    """`path`, opened for reading bytes. Raises DemoBertError."""
    try:
        return require_file(path, "table of questions").open("rb")
    except OSError as error:
        raise DemoBertError(f"the table of questions can't be read: {path}: {error.strerror}") from error


def _header(lines: "_TextLines", path: str) -> tuple[list[str], str]:
    """A CSV file's columns and what separates them. Raises DemoBertError."""
    try:
        line = next(lines, "")
        return _columns(line, path)
    except csv.Error as error:  # a line that is too long, or the line ends of old Macs
        raise DemoBertError(f"{path}: the first line is not CSV ({error})") from error


def _columns(line: str, path: str) -> tuple[list[str], str]:
    if line.startswith(("\udcff\udcfe", "\udcfe\udcff")):
        raise DemoBertError(f"{path} is UTF-16: save it as UTF-8")
    for delimiter in _DELIMITERS:
        columns = [name.strip().lower() for name in next(csv.reader([line], delimiter=delimiter), [])]
        if {"question", "context"} <= set(columns):
            break
    else:
        names = one_line(line, 200) or "none"
        raise DemoBertError(f"{path} needs the columns question and context in its first line; there is: {names}")
    if twice := next((name for name in ("id", "question", "context") if columns.count(name) > 1), None):
        raise DemoBertError(f"{path} has the column {twice} twice")
    return columns, delimiter


def _rows_of(lines: "_TextLines", delimiter: str, columns: list[str]) -> Iterator[QuestionRow]:
    """The rows below the header of a CSV file."""
    reader, number = csv.reader(lines, delimiter=delimiter, strict=True), 1
    while True:
        first = lines.number + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            fields = error
        if fields:
            number += 1
            place = f"line {first}" if lines.number == first else f"lines {first} to {lines.number}"
            yield _csv_row(fields, columns, f"{place} (row {number})")


def _csv_row(fields: list[str] | csv.Error, columns: list[str], place: str) -> QuestionRow:
    if isinstance(fields, csv.Error):
        return _fault(f"{place}: not CSV ({fields}): is a quote not closed, or not doubled?")
    if len(fields) != len(columns):
        row = _fault(
            f"{place}: {len(fields)} fields, the first line has {len(columns)}: put texts with separators into quotes"
        )
        # A field too many or too few comes after the first one.
        return _checked_id(replace(row, question_id=fields[0]), place) if columns[0] == "id" else row
    values = dict(zip(columns, fields))
    return _checked_id(QuestionRow(values.get("id"), values["question"], values["context"]), place)


def _json_row(line: bytes | None, number: int) -> QuestionRow:
    place = f"line {number}"
    if line is None:
        return _fault(f"{place}: longer than {MAX_LINE_BYTES >> 20} MiB")
    try:
        values = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return _fault(f"{place}: not UTF-8 text")
    except (RecursionError, ValueError) as error:
        return _fault(f"{place}: not JSON ({one_line(error, 100)})")
    if not isinstance(values, dict):
        return _fault(f"{place}: not a JSON object with question and context")
    return row_of(values, place)


def row_of(values: dict, place: str) -> QuestionRow:
    """The row that has these fields; `place` says where it stands, for what may be wrong with it."""
    row = QuestionRow(values.get("id"), values.get("question"), values.get("context"))
    for name in ("question", "context"):
        if not isinstance(values.get(name), str):
            fault = "not text" if name in values else "missing"
            row = replace(row, error=row.error or DemoBertError(f"{place}: {name} is {fault}"))
    return _checked_id(row, place)


def _checked_id(row: QuestionRow, place: str) -> QuestionRow:
    if row.question_id is None or type(row.question_id) is int:
        return row
    try:
        if not isinstance(row.question_id, str):
            raise DemoBertError("the id is neither text nor a whole number")
        check_text(row.question_id, "id")
    except DemoBertError as error:
        return replace(row, question_id=None, error=row.error or DemoBertError(f"{place}: {error}"))
    return row


def _fault(message: str) -> QuestionRow:
    return QuestionRow(None, None, None, DemoBertError(message))


def _next_line(file) -> bytes | None:
    """The next line of a table, b"" at its end; None for one that is too long, which is not kept in memory."""
    line = file.readline(MAX_LINE_BYTES + 1)
    if len(line) <= MAX_LINE_BYTES:
        return line
    while line and not line.endswith(b"\n"):
        line = file.readline(MAX_LINE_BYTES)
    return None


def _lines(file) -> Iterator[tuple[int, bytes | None]]:
    """(number, line) for each that is not blank; None for a line that is too long."""
    number = 0
    while (line := _next_line(file)) != b"":
        number += 1
        if line and number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line is None or line.strip():
            yield number, line


class _TextLines:
    """The lines of a CSV file, blank ones too, the last one's `number`. One that is too long is a csv.Error."""

    def __init__(self, file):
        self._file, self.number, self.byte_order_mark = file, 0, ""

    def __iter__(self) -> "_TextLines":
        return self

    def __next__(self) -> str:
        line = _next_line(self._file)
        if line == b"":
            raise StopIteration
        self.number += 1
        if line is None:
            raise csv.Error(f"longer than {MAX_LINE_BYTES >> 20} MiB")
        if self.number == 1 and line.startswith(codecs.BOM_UTF8):
            self.byte_order_mark, line = "\ufeff", line.removeprefix(codecs.BOM_UTF8)
        return line.decode("utf-8", "surrogateescape")  # what is not UTF-8 is its row's fault, and found there


class JsonLines:
    """Answers as JSON lines."""

    header = b""

    def line(self, row: QuestionRow, reply: Reply | DemoBertError) -> bytes:
        return json_line(_id(row) | _fields(row, reply))


class CsvLines:
    """Answers as CSV: a column `id` where the questions have ids, `n_best` (JSON) where there is more than one.

    `dialect` is the questions' own (`RowsFile.dialect`): who wrote them so reads answers so.
    """

    def __init__(self, has_ids: bool, top_k: int, dialect: str = ","):
        left_out = set() if top_k > 1 else {"n_best"}
        self._delimiter = dialect[-1]
        self._columns = ["id"] * has_ids + [name for name in _COLUMNS if name not in left_out]
        self.header = dialect[:-1].encode("utf-8") + self._csv(self._columns)

    def line(self, row: QuestionRow, reply: Reply | DemoBertError) -> bytes:
        values = _id(row) | _fields(row, reply)
        if "n_best" in values:
            values["n_best"] = json.dumps(values["n_best"], ensure_ascii=False)
        return self._csv([values.get(name, "") for name in self._columns])

    def _csv(self, fields: list) -> bytes:
        text = io.StringIO()
        csv.writer(text, delimiter=self._delimiter).writerow(fields)
        return text.getvalue().encode("utf-8", "replace")


def json_line(values: dict) -> bytes:
    """One object as a line of JSON."""
    return json.dumps(values, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def _id(row: QuestionRow) -> dict:
    return {} if row.question_id is None else {"id": row.question_id}


def _fields(row: QuestionRow, reply: Reply | DemoBertError) -> dict:
    if not isinstance(reply, DemoBertError):
        return reply.to_dict()
    question = {"question": row.question} if isinstance(row.question, str) else {}
    return question | {"error": one_line(reply, ERROR_LENGTH)}
