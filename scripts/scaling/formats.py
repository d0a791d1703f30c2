"""Answers as they travel and as they are written: JSON lines, or parquet with the same fields."""

import json
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

_N_BEST = {"text": pa.string(), "probability": pa.float64(), "start_char": pa.int64(), "end_char": pa.int64()}
_N_BEST |= {"start_logit": pa.float64(), "end_logit": pa.float64()}

#: The columns of a parquet file of answers: the fields of JSON lines. A column has one type, so ids are texts here.
SCHEMA = pa.schema(
    {"id": pa.string(), "question": pa.string(), "answer": pa.string(), "probability": pa.float64()}
    | {"start_char": pa.int64(), "end_char": pa.int64(), "start_logit": pa.float64(), "end_logit": pa.float64()}
    | {"null_odds": pa.float64(), "windows": pa.int64()}
    | {"n_best": pa.list_(pa.struct(_N_BEST)), "error": pa.string()}
)


def encoded(lines: Iterable[bytes], form: str) -> bytes:
    """JSON lines as they are, or, for parquet, as a table in Arrow's stream format."""
    if form == "jsonl":
        return b"".join(lines)
    records = [json.loads(line) for line in lines]
    for record in records:
        record["id"] = None if record.get("id") is None else str(record["id"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, SCHEMA) as stream:
        stream.write_table(pa.Table.from_pylist(records, SCHEMA))
    return sink.getvalue().to_pybytes()


class JsonlWriter:
    """Writes what `encoded` gives to a binary file."""

    def __init__(self, file):
        self._file = file

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def close(self) -> None:
        """Nothing is left to do."""


class ParquetWriter:
    """As JsonlWriter: one row group for each piece."""

    def __init__(self, file):
        self._writer = pq.ParquetWriter(file, SCHEMA)

    def write(self, data: bytes) -> None:
        with pa.ipc.open_stream(data) as stream:
            self._writer.write_table(stream.read_all())

    def close(self) -> None:
        self._writer.close()


WRITERS = {"jsonl": JsonlWriter, "parquet": ParquetWriter}
