"""Files that a checkpoint names: only ever in its own folder."""

import os
from pathlib import Path

from helpers.errors import DemoBertError, one_line
from helpers.files import require_file


def file_inside(folder: Path, name: str, what: str) -> Path:
    """`folder`/`name`, if that is a file inside `folder`, links followed. Raises DemoBertError, naming `what`.

    Hugging Face's cache keeps the files of `<model>/snapshots/<revision>` as links into `<model>/blobs`, which
    counts as inside.
    """
    outside = DemoBertError(one_line(f"{what} is outside the model's folder {folder}: {name!r}"))
    relative = Path(name)
    if not name or "\\" in name or "\0" in name or relative.is_absolute() or ".." in relative.parts:
        raise outside
    path = require_file(folder / relative, what)
    home = Path(os.path.realpath(folder))
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    if not any(Path(os.path.realpath(path)).is_relative_to(place) for place in allowed):
        raise outside
    return path
