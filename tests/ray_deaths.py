"""scripts/answer_ray.py with engines that some questions kill, as the system kills them where memory is short.

    python3 -m tests.ray_deaths FOLDER ARGUMENTS…

A question with DIES ONCE kills the first engine that is asked it, one with DIES ALWAYS each; the file "loaders die" in
FOLDER kills each that is loaded. FOLDER gets an empty file for each death. A table whose path has READER DIES in it kills who reads it.
"""

import os
import signal
import sys
import tempfile
from pathlib import Path
from unittest import mock

from helpers import cli
from scripts import answer_ray
from scripts.scaling import pipeline
from scripts.scaling.engines import EngineActor

#: Where deaths are entered; processes of Ray's inherit it.
_FOLDER = "DEMOBERT_TEST_DEATHS"


def die(kind: str) -> None:
    """The end of this process, by a signal that it can't catch."""
    handle, _ = tempfile.mkstemp(prefix=f"{kind}.", dir=os.environ[_FOLDER])
    os.close(handle)
    os.kill(os.getpid(), signal.SIGKILL)


def deaths(folder, kind: str) -> int:
    return len(list(Path(folder).glob(f"{kind}.*")))


class Mortal(EngineActor):
    """Dies of questions, after it has answered them: nobody has the answers then."""

    def _open(self):
        if (Path(os.environ[_FOLDER]) / "loaders die").exists():
            die("loader")
        super()._open()

    def __call__(self, table):
        answers = list(super().__call__(table))
        data = table["data"][0].as_py()
        if b"DIES ALWAYS" in data:
            die("always")
        if b"DIES ONCE" in data and not deaths(os.environ[_FOLDER], "once"):
            die("once")
        yield from answers


def read_table(batch, batch_size: int, part_rows: int):
    if "READER DIES" in batch["path"][0].as_py():
        die("reader")
    yield from pipeline_read_table(batch, batch_size, part_rows)


pipeline_read_table = pipeline.read_table


def main(arguments) -> int:
    os.environ[_FOLDER] = os.path.abspath(arguments[0])
    with mock.patch.object(pipeline, "EngineActor", Mortal), mock.patch.object(pipeline, "read_table", read_table):
        return answer_ray.main(arguments[1:])


if __name__ == "__main__":
    from tests import ray_deaths  # Ray's processes import it by this name

    sys.argv[0] = "answer_ray.py"
    cli.run(ray_deaths.main)
