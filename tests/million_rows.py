"""Answers a table of many short rows with a stand-in for the engine, and says how much memory that takes.

    python3 -m tests.million_rows --rows 1000000

prints the peak of the process's memory when 1 %, 10 % and all of the rows are answered, and the seconds.
"""

import argparse
import contextlib
import io
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np

from helpers.journal import Journal
from tests import stand_in

#: Rows are made of so many texts, again and again with other numbers.
_TEXTS = 1000


def write_table(path: Path, count: int, rng) -> None:
    rows = stand_in.random_rows(rng, min(count, _TEXTS), longest=12)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            row = rows[number % len(rows)]
            row = {"id": number, "question": row["question"], "context": f"{row['context']} {number}"}
            file.write(json.dumps(row) + "\n")


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1 << 20)


def main(arguments) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--form", choices=["jsonl", "csv"], default="jsonl", help="of the answers")
    parser.add_argument("--seed", type=int, default=int.from_bytes(np.random.bytes(4), "little"))
    args = parser.parse_args(arguments)
    waiting = [max(args.rows // 100, 1), max(args.rows // 10, 1), args.rows]
    append, begin = Journal.append, time.perf_counter()

    def counted(self, *values):
        append(self, *values)
        while waiting and self.entries >= waiting[0]:
            seconds = time.perf_counter() - begin
            print(f"{waiting.pop(0)} rows: {peak_mib():.0f} MiB at most, {seconds:.1f} s", flush=True)

    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        asked = folder / "asked.jsonl"
        write_table(asked, args.rows, np.random.default_rng(args.seed))
        print(f"seed {args.seed}, before the first: {peak_mib():.0f} MiB", flush=True)
        begin = time.perf_counter()
        engine, output = stand_in.write_stand_in(folder), folder / f"answers.{args.form}"
        flags = ["-e", engine, "--rows", asked, "-o", output, "-b", 4]
        quiet = contextlib.redirect_stderr(io.StringIO())  # the progress bar
        with quiet, mock.patch.object(Journal, "append", counted):
            return stand_in.main(list(map(str, flags)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
