"""An output that takes long: it grows beside its name, is gone on with after a kill, and is renamed when it is whole.

`<output>.partial` holds what is done, `<output>.partial.json` how much of it counts, and of which command it is.
"""

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from helpers.cli import note
from helpers.errors import DemoBertError
from helpers.files import read_json
from helpers.outputs import json_bytes, place_of

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

#: A state file is this large at most.
_MAX_STATE_BYTES = 1 << 20


class Journal:
    """The partial output of a command. `facts` are what its content follows from, as JSON holds them.

    entries     how many entries count, `failed` of them without an answer
    digest      what the caller has made of the input up to there
    published   a run that was killed at its very end has written the output: `discard` is all that is left to do

    An entry counts when `append` has returned; what a kill has left of later ones is cut away. Raises DemoBertError where
    another process writes it, where it is another command's (unless `fresh` throws it away), or damaged.
    """

    def __init__(self, output, facts: dict, fresh: bool = False):
        self.output = place_of(output)
        self.path, self._state_path = self.paths_for(output)
        self._facts = json.loads(json.dumps(facts))
        self.entries, self.failed, self.digest = 0, 0, ""
        self._bytes, self._is_whole, self.published = 0, False, False
        self._content = hashlib.sha256()
        for path in (self.path, self._state_path):
            place_of(path, "the partial output")
            if os.path.islink(path):  # it would be what the link leads to that is cut
                raise DemoBertError(f"{path} is a link, and not of this tool: name another output, or remove it")
        was_there = self.path.exists()
        if was_there and self.path.stat().st_size and not self._state_path.exists():
            raise DemoBertError(f"{self.path} is in the way, and not of this tool: name another output, or remove it")
        try:
            self._file = open(self.path, "ab")  # noqa: SIM115 (as long as this is)
        except OSError as error:
            raise DemoBertError(f"can't write {self.path}: {error.strerror}") from error
        try:
            self._lock()
            self._begin(fresh, was_there)
        except BaseException:
            self._file.close()
            raise

    @staticmethod
    def paths_for(output) -> tuple[Path, Path]:
        """The partial output and its state."""
        place = os.path.realpath(output) if os.path.islink(output) else output  # it is renamed within its folder
        return Path(f"{place}.partial"), Path(f"{place}.partial.json")

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind=None, *exception) -> None:
        if kind is KeyboardInterrupt:
            note(f"Stopped after question {self.entries}: the same command goes on from there ({self.path})")
        with contextlib.suppress(OSError):  # what did not go to a full disk does not go there now
            self._file.close()

    @property
    def is_empty(self) -> bool:
        return self._bytes == 0

    def append(self, data: bytes, entries: int, failed: int, digest: str) -> None:
        """Add so many entries, after which the input's digest is `digest`. Raises DemoBertError."""
        try:
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            raise DemoBertError(f"can't write {self.path}: {error.strerror}") from error
        self._bytes += len(data)
        self._content.update(data)
        self.entries, self.failed, self.digest = self.entries + entries, self.failed + failed, digest
        self._write_state()

    def lines(self) -> Iterator[bytes]:
        """What counts of the partial output, line by line."""
        with open(self.path, "rb") as file:
            yield from file

    def publish(self) -> None:
        """The partial output becomes the output: its last step. Raises DemoBertError."""
        try:
            os.fsync(self._file.fileno())
            self._is_whole = True
            self._write_state()
            os.replace(self.path, self.output)
        except OSError as error:
            raise DemoBertError(f"can't write {self.output}: {error.strerror}") from error
        self._state_path.unlink(missing_ok=True)

    def discard(self) -> None:
        """The output has been written: it is needed no more."""
        if not self.published:
            # A kill between the next lines leaves an empty one.
            self.entries, self.failed, self._bytes = 0, 0, 0
            self._content = hashlib.sha256()
            self._write_state()
        self.path.unlink(missing_ok=True)
        self._state_path.unlink(missing_ok=True)

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = self.path.exists() and os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
        except BlockingIOError:
            is_ours = False
        except OSError:  # a file system without locks
            return
        if not is_ours:  # or it was, and has just made an output of what was opened here
            raise DemoBertError(f"another process is writing {self.output}: wait for it, or name another output")

    def _begin(self, fresh: bool, was_there: bool) -> None:
        try:
            if self._state_path.exists() and not fresh:
                self._go_on(was_there)
            self._cut()
        except DemoBertError:
            if not was_there:  # opening it has made it
                self.path.unlink(missing_ok=True)
            raise

    def _go_on(self, was_there: bool) -> None:
        state = self._read_state()
        if state["facts"] != self._facts:
            both = self._facts | state["facts"]
            names = [name for name in both if state["facts"].get(name, self) != self._facts.get(name, self)]
            raise DemoBertError(
                f"{self.path} is of another command (not the same: {', '.join(names)}): "
                "--fresh throws it away and begins again"
            )
        self.entries, self.failed, self.digest = state["entries"], state["failed"], state["digest"]
        self._bytes = state["bytes"]
        self.published = state["whole"] and not was_there and self.output.exists()
        if self.published:
            self.path.unlink(missing_ok=True)  # opening it has made it
        elif not self._holds(state["content"]):
            raise DemoBertError(f"{self.path} is damaged: --fresh throws it away and begins again")

    def _holds(self, content: str) -> bool:
        """Whether the partial output begins with what counts, whose SHA-256 is `content`."""
        left = self._bytes
        with open(self.path, "rb") as file:
            while block := file.read(min(left, 1 << 20)):
                self._content.update(block)
                left -= len(block)
        return not left and self._content.hexdigest() == content

    def _read_state(self) -> dict:
        try:
            state = read_json(self._state_path, "the state of a partial output", _MAX_STATE_BYTES)
        except DemoBertError as error:
            raise DemoBertError(f"{error}: --fresh throws it away and begins again") from None
        kinds = {"facts": dict, "entries": int, "failed": int, "digest": str, "content": str}
        kinds |= {"bytes": int, "whole": bool}
        sound = isinstance(state, dict) and all(type(state.get(name)) is kind for name, kind in kinds.items())
        if not sound or state.pop("seal", None) != seal(state):
            raise DemoBertError(f"{self._state_path} is damaged: --fresh throws it away and begins again")
        return state

    def _cut(self) -> None:
        if not self.published:
            self._file.truncate(self._bytes)
            self._write_state()

    def _write_state(self) -> None:
        state = {"facts": self._facts, "entries": self.entries, "failed": self.failed, "digest": self.digest}
        state |= {"bytes": self._bytes, "content": self._content.hexdigest(), "whole": self._is_whole}
        state["seal"] = seal(state)
        # Of one name, since there is only one writer; never through what somebody has put there.
        new = self._state_path.parent / f".{self._state_path.name}.journal0.tmp"
        try:
            new.unlink(missing_ok=True)
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
                file.write(json_bytes(state))
            os.replace(new, self._state_path)
        except OSError as error:
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)
            raise DemoBertError(f"can't write {self._state_path}: {error.strerror}") from error


def seal(state: dict) -> str:
    """SHA-256 of a state or an entry: a number that a damaged disk has changed would be believed."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode("ascii")).hexdigest()


class Stdout:
    """Entries that go to stdout as they come, with nothing to go on with."""

    def __init__(self):
        self.entries, self.failed, self.published, self.is_empty = 0, 0, False, True

    def __enter__(self) -> "Stdout":
        return self

    def __exit__(self, *exception) -> None:
        pass

    def append(self, data: bytes, entries: int, failed: int, digest: str) -> None:
        """As `Journal.append`."""
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        self.entries, self.failed = self.entries + entries, self.failed + failed

    def publish(self) -> None:
        """Nothing is left to do."""
