"""Tables through engines by Ray Data: read, answered, and handed back part by part, in order."""

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from helpers.errors import DemoBertError, one_line
from scripts.scaling.engines import EngineActor, EngineSettings, packed_rows, travelling
from scripts.scaling.inputs import read_parts

#: A part whose process dies is tried so many times more. Then it is left out: it is what kills.
_RETRIES = 2

#: Tables that are read at once. One would do where they are long; where they are short, the next one is ready.
_READERS = 2

#: Parts that wait for an engine or are in it. Ray Data hands out parts some ten times a second.
_PARTS_OF_AN_ENGINE = {"cpu": 2, "gpu": 4}


@dataclass(frozen=True)
class AnsweredPart:
    """A part's answers, as `formats.encoded` gives them; no answers at the end of a table.

    table, part   the table's number in the run, the part's number in the table, both from 0
    head          what is to know of it: `Part`'s share, notes, facts and failure; "questions" in it, "failed" of them;
                  "engine": its place and process, when it began and ended, in seconds of the system's clock
    """

    table: int
    part: int
    head: dict
    data: bytes

    @property
    def ends_table(self) -> bool:
        return self.head["facts"] is not None or self.head["failure"] is not None


def answered_parts(
    tables: list[Path], settings: EngineSettings, engines: int, part_rows: int, verbose: bool = False
) -> Iterator[AnsweredPart]:
    """The parts of all tables, table by table, in order. Ray must be running.

    A part is missing where the process that worked on it died again and again. Raises DemoBertError where an engine
    can't be loaded, or fails.
    """
    import ray

    _set_context(ray.data, verbose)
    answers = _answers(ray.data, tables, settings, engines, part_rows)
    try:
        for table in answers.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for values in table.to_pylist():
                values["head"] = json.loads(values["head"])
                if fatal := values["head"]["fatal"]:
                    raise DemoBertError(fatal)
                yield AnsweredPart(**values)
    except ray.exceptions.RayError as error:
        raise DemoBertError(f"Ray has ended the run: {one_line(error, 500)}") from error


def _answers(data, tables: list[Path], settings: EngineSettings, engines: int, part_rows: int):
    """What Ray is to do, as a ray.data.Dataset of `engines.COLUMNS`; it does it when the dataset is read."""
    paths = [{"table": number, "path": os.path.abspath(path)} for number, path in enumerate(tables)]
    sizes = {"batch_size": settings.options.batch_size, "part_rows": part_rows}
    on_gpu = settings.cores is None
    waiting = _PARTS_OF_AN_ENGINE["gpu" if on_gpu else "cpu"]
    one = {"batch_size": 1, "batch_format": "pyarrow"}
    # Readers are no load to speak of, and must run although engines have all the cores.
    parts = data.from_items(paths, override_num_blocks=len(paths)).map_batches(
        read_table, fn_kwargs=sizes, num_cpus=0, concurrency=_READERS, max_retries=_RETRIES, **one
    )
    return parts.map_batches(
        EngineActor,
        fn_constructor_args=(settings,),
        compute=data.ActorPoolStrategy(size=engines, max_tasks_in_flight_per_actor=waiting),
        num_cpus=0 if on_gpu else settings.cores,
        num_gpus=1 if on_gpu else None,
        max_restarts=-1,
        max_task_retries=_RETRIES,
        **one,
    )


def read_table(batch: pa.Table, batch_size: int, part_rows: int) -> Iterator[pa.Table]:
    """The parts of the one table that `batch` names, as they travel. Runs in a process of Ray's."""
    (values,) = batch.to_pylist()
    for number, part in enumerate(read_parts(values["path"], batch_size, part_rows)):
        head = {"share": part.share, "notes": part.notes, "facts": part.facts, "failure": part.failure}
        yield travelling(values["table"], number, head, packed_rows(part.rows) if part.rows else b"")


def _set_context(data, verbose: bool) -> None:
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.target_max_block_size = 1  # a block for each part: Ray would put small ones together for one engine
    context.max_errored_blocks = -1  # who reads sees what is missing, and of which table
    with contextlib.suppress(AttributeError):  # of some releases
        context.print_on_execution_start = False
    if not verbose:
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
