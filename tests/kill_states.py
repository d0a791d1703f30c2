"""What a kill can leave in a folder, found by looking at it between any two lines of the code that writes."""

import shutil
import sys
from pathlib import Path

from tests.conftest import ROOT

#: The code that touches the files of a run.
WRITERS = {str(ROOT / "helpers" / name) for name in ("journal.py", "outputs.py", "asking_many.py")}


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def put(folder: Path, files: dict[str, bytes]) -> None:
    """Make the folder hold these files, and no others."""
    shutil.rmtree(folder)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)


class States:
    """All that a kill can leave in a folder: what lies there at each line of the code that writes."""

    def __init__(self, folder: Path):
        self.folder, self.found = folder, [files_of(folder)]

    def __enter__(self) -> "States":
        self._before = sys.gettrace()
        sys.settrace(lambda frame, *_: self._look if frame.f_code.co_filename in WRITERS else None)
        return self

    def __exit__(self, *_) -> None:
        sys.settrace(self._before)

    def _look(self, *_):
        if (files := files_of(self.folder)) != self.found[-1]:
            self.found.append(files)
        return self._look
