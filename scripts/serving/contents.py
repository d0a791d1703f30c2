"""The file in an exported repository that says what the export wrote. Standard library only."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from helpers.errors import DemoBertError
from helpers.files import read_json
from helpers.outputs import json_bytes

#: Its name: by it an export is known, to the next export and to serve.sh.
CONTENTS = "demobert_export.json"


@dataclass(frozen=True)
class Contents:
    """What serve.sh and the next export have to know of one.

    name        what the models' names begin with
    files       what was written, as paths from the repository's root
    packages    what Python has to have installed, as pip takes it
    gpu         whether it needs an NVIDIA GPU
    arguments   tritonserver's, for this repository
    """

    name: str
    files: list[str] = field(default_factory=list)
    packages: list[str] = field(default_factory=list)
    gpu: bool = False
    arguments: list[str] = field(default_factory=list)

    def to_bytes(self) -> bytes:
        return json_bytes(dataclasses.asdict(self))

    @property
    def question_answering(self) -> str:
        """The name of the model that answers questions."""
        return f"{self.name}_qa"

    @property
    def engine(self) -> str | None:
        """The name of the model that Triton's TensorRT backend runs; None: there is none."""
        name = f"{self.name}_engine"
        return name if f"{name}/config.pbtxt" in self.files else None


def read_contents(path) -> Contents:
    """Of the exported repository `path`. Raises DemoBertError for other folders."""
    file = Path(path) / CONTENTS
    if not file.is_file():
        raise DemoBertError(f"{path} is no repository of export_triton.py: it has no {CONTENTS}")
    values = read_json(file, "list of an export's files")
    lists = ("files", "packages", "arguments")
    if (
        isinstance(values, dict)
        and set(values) == set(Contents.__dataclass_fields__)
        and isinstance(values["name"], str)
        and isinstance(values["gpu"], bool)
        and all(isinstance(values[name], list) for name in lists)
        and all(isinstance(item, str) for name in lists for item in values[name])
    ):
        return Contents(**values)
    raise DemoBertError(f"{file} is no list of an export's files")
