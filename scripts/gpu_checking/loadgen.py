"""BERT-large, packed, in int8, asked by MLPerf's LoadGen: `gpu_check.sh --suite loadgen`.

Windows as long as those of the SQuAD file, of random tokens: the weights are random. The GPU must have nothing else to
do; the engines are built before the first is asked.
"""

import contextlib
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from helpers.errors import DemoBertError
from helpers.files import read_json
from scripts.gpu_checking.networks import Network
from scripts.gpu_checking.record import OutOfTime
from scripts.gpu_checking.table import KINDS, Place, build_engine, remove, sizes_of

ROOT = Path(__file__).resolve().parents[2]

LENGTH = 384

#: MLPerf's bound of BERT's Server scenario, ms.
LATENCY_BOUND = 130

#: Whole runs that mlperf.py makes at most for one scenario, the short ones of the search in between counted in.
_MOST_RUNS = 10


@dataclass(frozen=True)
class Question:
    """One engine, of so many windows of full length at once, and the scenario that it is asked in."""

    kind: Network
    scenario: str
    batch: int

    def __str__(self) -> str:
        return f"large, {self.kind.name}, {self.scenario}"

    @property
    def key(self) -> str:
        return f"loadgen: {self}"


(_PACKED,) = (kind for kind in KINDS if kind.name == "packed int8")

QUESTIONS = (Question(_PACKED, "Offline", 256), Question(_PACKED, "Server", 64))


def measure(suite) -> None:
    """Every rate. Raises OutOfTime where the minutes are over."""
    missing = [one for one in QUESTIONS if suite.wanted(one.key) and suite.record.result(one.key) is None]
    with ThreadPoolExecutor(suite.args.jobs) as pool:
        list(pool.map(lambda one: build(suite, one), missing))
    for one in missing:
        engine = engine_of(suite, one)
        if engine.is_file():
            suite.record.step(one.key, ask, suite, one)
            remove(engine)


def engine_of(suite, one: Question) -> Path:
    return suite.work / f"loadgen_{one.kind.name.replace(' ', '_')}_{one.batch}.engine"


def build(suite, one: Question) -> None:
    with contextlib.suppress(OutOfTime):
        suite.make(engine_of(suite, one), f"build: {one.key}", _build, suite, one)


def _build(suite, one: Question) -> dict:
    place = Place("large", sizes_of(suite.args)["large"], LENGTH, (one.batch,))
    vocabulary = ("-v", suite.checkpoints["vocabulary"])  # LoadGen's samples are cut by it
    return build_engine(suite, place, one.kind, engine_of(suite, one), vocabulary)


def ask(suite, one: Question) -> dict:
    """LoadGen's verdict, samples/s and latencies. Raises DemoBertError where it could not be asked."""
    program, seconds = ROOT / "scripts" / "mlperf.py", suite.args.loadgen_seconds
    with tempfile.TemporaryDirectory(prefix="loadgen-", dir=suite.work) as folder:
        output = Path(folder) / "figures.json"
        command = [suite.args.engine_python, program, "-e", engine_of(suite, one), "--lengths", suite.squad]
        command += ["-b", one.batch, "--scenario", one.scenario, "-o", Path(folder) / "logs", "--json", output]
        command += ["--min-duration", seconds, "--search-duration", seconds / 6]
        if one.scenario == "Server":
            command += ["--latency-bound", LATENCY_BOUND]
        try:
            with suite.alone():
                suite.run(command, program.name, seconds=300 + _MOST_RUNS * seconds)
        except DemoBertError:
            if not output.is_file():  # a run that is INVALID has figures, and an exit code of 1
                raise
        (result,) = read_json(output, "output of mlperf.py")["results"]
    return {name: result[name] for name in ("valid", "rate", "target", "bound_ms", "samples", "percentiles")}
