"""What a run of many steps found out, in a JSON file that is written after each: machines that are lent are taken back.

A step that is in the file is not done again, unless it failed; a step that fails is in it with its reason, and the
next one begins.
"""

import threading
import time
import traceback
from pathlib import Path

from helpers import cli
from helpers.errors import DemoBertError
from helpers.files import read_json
from helpers.outputs import write_json


class OutOfTime(Exception):
    """The minutes that were granted are over."""


class Record:
    """The steps of the JSON file `path`: key → {"seconds", and "result" or "error"}; and facts of the machine."""

    def __init__(self, path: Path, minutes: float | None = None):
        self.path = Path(path)
        self.content = read_json(self.path, "record of steps") if self.path.is_file() else {}
        if not isinstance(self.content, dict) or not isinstance(self.content.setdefault("steps", {}), dict):
            raise DemoBertError(f"{self.path} is not a record of steps")
        self._lock = threading.Lock()
        self.end = time.monotonic() + 60 * minutes if minutes else None

    def check_time(self) -> None:
        """Raises OutOfTime where there is none left."""
        _ = self.seconds_left

    @property
    def seconds_left(self) -> float:
        """Raises OutOfTime where there are none."""
        left = self.end - time.monotonic() if self.end else 24 * 3600.0
        if left <= 0:
            raise OutOfTime
        return left

    def note(self, **facts) -> None:
        with self._lock:
            self.content.update(facts)
            write_json(self.path, self.content)

    def forget(self, key: str) -> None:
        """A step that has to be done again."""
        with self._lock:
            self.content["steps"].pop(key, None)

    def result(self, key: str):
        """What the step found, or None where it was not done or failed."""
        return self.content["steps"].get(key, {}).get("result")

    def step(self, key: str, work, *arguments):
        """`work(*arguments)`, unless its result is there; returns it, or None where it fails."""
        if self.result(key) is not None:
            return self.result(key)
        self.check_time()
        cli.note(f"{key} …")
        started, entry = time.monotonic(), {}
        try:
            entry["result"] = work(*arguments)
        except DemoBertError as error:
            entry["error"] = cli.one_line(str(error))
        except OutOfTime:
            raise
        except Exception as error:  # a mistake in one step must not cost the others on a machine that is lent
            where = traceback.extract_tb(error.__traceback__)[-1]
            entry["error"] = f"{type(error).__name__}: {cli.one_line(str(error))} ({where.name}, line {where.lineno})"
        entry["seconds"] = round(time.monotonic() - started, 1)
        cli.note(f"{key}: {entry.get('error') or 'done'} in {entry['seconds']} s")
        with self._lock:
            self.content["steps"][key] = entry
            write_json(self.path, self.content)
        return entry.get("result")
