"""demoBERT's table on one GPU: every size, batch and precision by build/perf, with and without CUDA graphs.

Beside it, in the same run, PyTorch and the dense products alone. One engine has a profile for each batch size: most of a
build is the loading of thousands of kernels to be timed, which all profiles share.
"""

import contextlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from helpers.bert_config import BertConfig
from helpers.errors import DemoBertError
from helpers.files import read_json
from scripts.benchmarks.random_model import RANDOM_SIZES
from scripts.gpu_checking import checkpoints, torch_models
from scripts.gpu_checking.networks import PTQ, Network, build_command
from scripts.gpu_checking.record import OutOfTime

ROOT = Path(__file__).resolve().parents[2]

#: demoBERT's.
BATCHES = (1, 2, 4, 8, 12, 16, 24, 32, 64, 128)

#: How often the builder times each kernel: of the largest batches once takes long enough to be told from noise.
TIMING_ITERATIONS = 2

#: Batch sizes whose layers are timed one by one.
PROFILED = (1, 8, 128)

SIZES = (("large", 384), ("base", 384), ("large", 128), ("base", 128))

_INT8 = ("--network", "plugin", *PTQ)

#: The lines of the table. Ranges are those of a QAT checkpoint, of random weights: the time does not depend on them.
KINDS = (
    Network("int8", (*_INT8, "-iln", "-imh"), checkpoint="qat"),
    Network("fp16", ("--network", "plugin", "--fp16"), checkpoint="qat"),
    Network("packed int8", _INT8, layout="packed", checkpoint="qat"),
    Network("interleaved int8", (*_INT8, "-il"), layout="packed", checkpoint="qat"),
    Network("Megatron sparse int8", (*_INT8, "-il", "--megatron", "-sp"), layout="packed", checkpoint="megatron"),
    Network("native fp16", ("--network", "native", "--fp16"), checkpoint="qat"),
)


@dataclass(frozen=True)
class Place:
    """Where the engines of one model are made."""

    model: str
    config: BertConfig
    length: int
    batches: tuple

    def __str__(self) -> str:
        return f"{self.model} × {self.length} × {self.batches[0]} to {self.batches[-1]}"


def fill(suite) -> None:
    """Every step of the table, the most telling first. Raises OutOfTime where the minutes are over."""
    for model, length in SIZES:
        place = Place(model, sizes_of(suite.args)[model], length, BATCHES)
        measure(suite, place, [kind for kind in KINDS if suite.wanted(f"{place}, {kind.name}")])


def measure(suite, place: Place, kinds: list) -> None:
    """All engines of one place are built, several at once; then each is timed with the GPU to itself, and goes."""
    missing = [kind for kind in kinds if suite.record.result(f"table: {place}, {kind.name}") is None]
    try:
        with ThreadPoolExecutor(suite.args.jobs) as pool:
            list(pool.map(lambda kind: build(suite, place, kind), missing))
        for number, kind in enumerate(missing):
            if engine_of(suite, place, kind).is_file():
                suite.record.step(f"table: {place}, {kind.name}", engine_times, suite, place, kind)
            if number == 0:
                beside(suite, place)  # on the same machine in the same minutes
    finally:  # large ones fill a disk
        for kind in missing:
            engine = engine_of(suite, place, kind)
            for path in engine.parent.glob(f"{engine.name}*"):
                path.unlink()
    if not missing:
        beside(suite, place)


def beside(suite, place: Place) -> None:
    """What the engines are held against: the floor, which is cheap to measure, and PyTorch."""
    for name, work in (("products", torch_models.product_times), ("PyTorch", torch_models.model_times)):
        for batch in place.batches:
            key = f"table: {place.model} × {place.length}, {name} × {batch}"
            if suite.wanted(key):
                suite.record.step(key, _facts_and, work, suite, place, batch)


def _facts_and(work, suite, place: Place, batch: int) -> dict:
    times = {name: {str(batch): row} for name, row in work(suite, place, batch).items()}
    return {"model": place.model, "tokens": place.length, "times": times}


def sizes_of(args) -> dict:
    """Name → BertConfig."""
    return RANDOM_SIZES if args.layers is None else {
        name: replace(config, num_hidden_layers=args.layers) for name, config in RANDOM_SIZES.items()
    }  # fmt: skip


def engine_of(suite, place: Place, kind: Network) -> Path:
    return suite.work / f"{place.model}-{place.length}-{kind.name.replace(' ', '_')}.engine"


def build(suite, place: Place, kind: Network) -> None:
    """One engine for all batches of `place`; what the record of another machine tells of is built again."""
    key = f"build: {place}, {kind.name}"
    suite.record.forget(key)
    with contextlib.suppress(OutOfTime):
        suite.record.step(key, _build, suite, place, kind)


def _build(suite, place: Place, kind: Network) -> dict:
    engine, paths = engine_of(suite, place, kind), model_checkpoints(suite, place)
    sizes = {"batch": place.batches, "length": [place.length]}
    extra = ("-w", suite.args.workspace, "--timing-iterations", TIMING_ITERATIONS)
    command = build_command(suite.args.engine_python, ROOT, kind, paths, engine, sizes, extra)
    suite.run(command, Path(command[1]).name)
    return {"mib": round(engine.stat().st_size / 2**20, 1)}


def engine_times(suite, place: Place, kind: Network) -> dict:
    """The figures of build/perf with and without CUDA graphs; TensorRT's own of the layers are a step of their own."""
    engine = engine_of(suite, place, kind)
    graph, stream = (perf(suite, engine, place, flags) for flags in (["--enable_graph"], []))
    suite.record.step(f"layers: {place}, {kind.name}", layers, suite, engine, kind, place)
    times = {f"{kind.name}, CUDA graph": graph, kind.name: stream}
    return {"model": place.model, "tokens": place.length, "times": times}


def layers(suite, engine: Path, kind: Network, place: Place) -> dict:
    """Batch size → TensorRT's own time of each kind of layer (layer_times.py)."""
    batches = [batch for batch in place.batches if batch in PROFILED]
    program = ROOT / "scripts" / "gpu_checking" / "layer_times.py"
    command = [suite.args.engine_python, program, engine, kind.layout, place.length, *batches]
    return json.loads(suite.run(command, program.name).splitlines()[-1]) if batches else {}


def perf(suite, engine: Path, place: Place, flags: list) -> dict:
    """Batch size → build/perf's figures, or the reason why there are none; a batch that fails costs only itself."""
    try:
        return _perf(suite, engine, place.length, place.batches, flags)
    except DemoBertError:
        found = {}
        for batch in place.batches:
            try:
                found |= _perf(suite, engine, place.length, (batch,), flags)
            except DemoBertError as error:
                found[str(batch)] = {"error": str(error)}
        return found


def _perf(suite, engine: Path, length: int, batches: tuple, flags: list) -> dict:
    output = engine.with_name(engine.name + ".perf.json")
    command = [perf_program(suite.args), "-e", engine, "-s", length, "-i", suite.args.iterations, "--json", output]
    command += [word for batch in batches for word in ("-b", batch)]
    suite.run([*command, *flags], "build/perf", LD_LIBRARY_PATH=libraries(suite.args))
    timings = read_json(output, "output of build/perf")["timings"]
    names = ("average_ms", "median_ms", "percentile_95_ms", "percentile_99_ms", "sentences_per_second")
    return {str(timing["batch_size"]): {name: timing[name] for name in names} for timing in timings}


def perf_program(args) -> Path:
    """build/perf: the one named, the one that travelled, or the repository's."""
    travelled = args.folder / f"tensorrt-{args.tensorrt}" / "build" / "perf"
    return args.perf or (travelled if travelled.is_file() else ROOT / "build" / "perf")


def libraries(args) -> str:
    """Where build/perf finds TensorRT's libraries."""
    travelled = args.folder.resolve() / f"tensorrt-{args.tensorrt}" / "libraries"
    return os.pathsep.join(filter(None, [str(travelled), os.environ.get("LD_LIBRARY_PATH")]))


def model_checkpoints(suite, place: Place) -> dict:
    """The random checkpoints of one size, written when they are first asked for."""
    folder = suite.work / f"{place.model}-{place.config.num_hidden_layers}"
    megatron = replace(place.config, gelu="tanh")
    with suite.lock:  # engines that are built at once have one checkpoint
        return {
            "qat": checkpoints.write_random_qat(folder / "qat", place.config),
            "megatron": checkpoints.write_random_megatron(folder / "megatron" / "weights.pickle", megatron),
            "vocabulary": suite.checkpoints["vocabulary"],
        }
