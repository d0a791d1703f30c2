"""What has been answered into a folder, and from what: a list that only grows, so that a killed run can be gone on with.

`_answered.jsonl` in the folder has a line for each file of answers. It is written before the file gets its name: a line
whose file is not there, or is another, says nothing.
"""

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from helpers.errors import DemoBertError
from helpers.files import sha256_of
from helpers.journal import seal
from helpers.outputs import place_of

#: Tools that read a folder of tables leave out what begins with an underscore.
LEDGER = "_answered.jsonl"

#: A line of it is this long at most, in bytes.
_LONGEST_LINE = 1 << 16


@dataclass(frozen=True)
class Entry:
    """A file of answers: its name, bytes and SHA-256; its table's; what else it follows from; how many rows, and failures.

    output_sha256 ""   the file is not to be relied on: a run that answers it anew has begun
    """

    output: str
    output_bytes: int
    output_sha256: str
    table: str
    table_bytes: int
    table_sha256: str
    facts: dict
    questions: int
    failed: int


class Ledger:
    """The list of a folder. There must be no other writer. Raises DemoBertError where it is none of this tool's."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._path = folder / LEDGER
        if os.path.islink(self._path):
            raise DemoBertError(f"{self._path} is a link, and not of this tool: remove it, or name another folder")
        place_of(self._path, "the list of answered files")
        self.entries: dict[str, Entry] = {}
        if self._path.exists():
            self._read()

    def add(self, entry: Entry) -> None:
        """Add an entry, on the disk when this returns; the last one of an output counts. Raises DemoBertError."""
        values = asdict(entry)
        line = json.dumps(values | {"seal": seal(values)}).encode("ascii") + b"\n"
        try:
            handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            with open(handle, "ab") as file:
                file.write(self._line_end + line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DemoBertError(f"can't write {self._path}: {error.strerror}") from error
        self._line_end = b""
        self.entries[entry.output] = entry

    def is_whole(self, name: str) -> bool:
        """Whether the file of answers is there as its entry says."""
        entry, path = self.entries[name], self.folder / name
        try:
            return path.stat().st_size == entry.output_bytes and sha256_of(path) == entry.output_sha256
        except OSError:
            return False

    #: What a kill has left of a line is ended before the next one.
    _line_end = b""

    def _read(self) -> None:
        read, sound, line = 0, 0, b""
        try:
            with open(self._path, "rb") as file:
                while line_read := file.readline(_LONGEST_LINE):
                    line, read = line_read, read + 1
                    if entry := _entry(line):
                        self.entries[entry.output], sound = entry, sound + 1
        except OSError as error:
            raise DemoBertError(f"can't read {self._path}: {error.strerror}") from error
        self._line_end = b"" if line.endswith(b"\n") or not line else b"\n"
        if read > 1 and not sound:
            raise DemoBertError(f"{self._path} is not of this tool, or damaged: remove it, or name another folder")


def _entry(line: bytes) -> Entry | None:
    """The entry of a line; None for what is left of one, or damaged."""
    try:
        values = json.loads(line)
        sealed = values.pop("seal")
        entry = Entry(**values) if sealed == seal(values) else None
        return entry if entry and _is_sound(entry) else None
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return None


def _is_sound(entry: Entry) -> bool:
    """Whether it is what this tool writes: whoever gave the folder could seal another."""
    kinds = {field.name: field.type for field in fields(Entry)}
    sound = all(type(getattr(entry, name)) is kind for name, kind in kinds.items())
    return sound and entry.output == Path(entry.output).name
