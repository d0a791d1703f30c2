"""demoBERT's table on one GPU: every size, batch and precision by build/perf, with and without CUDA graphs.

Beside it, in the same run, PyTorch and the dense products alone. Most of a build is one core's work, the loading of
thousands of kernels to be timed, again for each profile: so an engine has one profile, and many are built at once. Then
each is timed with the GPU to itself.
"""

import contextlib
import json
import os
import sys
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
from scripts.gpu_checking.record_form import GRAPH, TIMES

ROOT = Path(__file__).resolve().parents[2]

#: demoBERT's batch sizes, the most telling first. Those of one packed engine stand together: it is tuned for the last. A
#: padded engine of one batch size has fixed shapes, and fills up what is smaller: so each size has its own.
BATCHES = ((8,), (64, 128), (24, 32), (12, 16), (1,), (2, 4))

#: How often the builder times each kernel: of the largest batches once takes long enough to be told from noise.
TIMING_ITERATIONS = 2

#: Batch sizes whose layers are timed one by one.
PROFILED = (1, 8, 128)

SIZES = (("large", 384), ("base", 384), ("large", 128), ("base", 128))

#: The builder's optimization level. At 3, TensorRT's own, a build takes twice as long; the one engine that was built at both
#: was as fast (BERT-large, packed int8, 8 × 384 on an H200: 3.171 and 3.176 ms).
LEVEL = 1

_PLUGIN = ("--network", "plugin", "--optimization-level", str(LEVEL))
_INT8 = (*_PLUGIN, *PTQ)
_FP16 = (*_PLUGIN, "--fp16", "--strict")  # else the builder times float32's kernels, too, ten times as slow

#: The lines of the table. Ranges are those of a QAT checkpoint, of random weights: the time does not depend on them.
KINDS = (
    Network("int8", (*_INT8, "-iln", "-imh"), checkpoint="qat"),
    Network("fp16", _FP16, checkpoint="qat"),
    Network("packed int8", _INT8, layout="packed", checkpoint="qat"),
    Network("interleaved int8", (*_INT8, "-il"), layout="packed", checkpoint="qat"),
    Network("Megatron sparse int8", (*_INT8, "-il", "--megatron", "-sp"), layout="packed", checkpoint="megatron"),
)

#: What might be faster: flags of the builder, or layers written otherwise (other_forms.py), and for which of the lines
#: above.
_WAYS = (
    ("GELU by erf", (), "gelu_erf", ("fp16", "packed int8")),
    ("GELU by a short sigmoid", (), "gelu_short", ("fp16", "packed int8")),
    ("half before GELU", (), "gelu_in_half", ("packed int8", "interleaved int8")),
    ("rows packed", (), "packed_rows", ("int8", "fp16")),
    ("matrix products", (), "matrix_product", ("fp16",)),
    ("rows together", (), "rows_together", ("int8", "fp16")),
    ("products but before GELU", (), "products_but_gelu", ("fp16",)),
    ("such products, rows together", (), "rows_together+products_but_gelu", ("fp16",)),
    ("float norms", (), "float_norms", ("fp16",)),
    ("norm layers", (), "norm_layers", ("fp16",)),
    *((f"level {n}", ("--optimization-level", str(n)), None, ("fp16", "packed int8")) for n in (0, 2, 3, 5)),
)

TRIED = (
    *(
        replace(kind, name=f"{kind.name}, {way}", flags=(*kind.flags, *flags), form=form)
        for way, flags, form, names in _WAYS
        for kind in KINDS
        if kind.name in names
    ),
    Network("packed fp16", _FP16, layout="packed", checkpoint="qat"),
    Network("native fp16", ("--network", "native", "--fp16"), checkpoint="qat"),
)

#: Where that is tried.
TRIED_AT = (("large", 384, (8,)), ("large", 384, (4,)), ("large", 384, (128,)), ("base", 384, (1,)))


@dataclass(frozen=True)
class Place:
    """Where the engines of one model are made."""

    model: str
    config: BertConfig
    length: int
    batches: tuple

    def __str__(self) -> str:
        first, last = self.batches[0], self.batches[-1]
        return f"{self.model} × {self.length} × {first}" + (f" to {last}" if last != first else "")


@dataclass(frozen=True)
class Task:
    """One engine, and where its figures stand in the record."""

    place: Place
    kind: Network
    part: str = "table"

    def __str__(self) -> str:
        return f"{self.place}, {self.kind.name}"

    @property
    def key(self) -> str:
        return f"{self.part}: {self}"


def fill(suite) -> None:
    """Every step of the table, the most telling first. Raises OutOfTime where the minutes are over."""
    sizes = sizes_of(suite.args)
    for model, length in SIZES:
        suite.record.check_time()
        places = [Place(model, sizes[model], length, batches) for batches in BATCHES]
        measure(suite, [task for place in places for kind in KINDS for task in tasks_of(place, kind)])
        beside(suite, places)  # on the same machine in the same minutes


def tasks_of(place: Place, kind: Network) -> list[Task]:
    """The engines for the batch sizes of one place."""
    groups = [place.batches] if kind.layout == "packed" else [(batch,) for batch in place.batches]
    return [Task(replace(place, batches=batches), kind) for batches in groups]


def try_out(suite) -> None:
    """What might be faster, each beside the table's own engine of the same run. Raises OutOfTime."""
    sizes = sizes_of(suite.args)
    places = [Place(model, sizes[model], length, batches) for model, length, batches in TRIED_AT]
    names = {tried.name.partition(",")[0] for tried in TRIED}
    kinds = [*(kind for kind in KINDS if kind.name in names), *TRIED]
    measure(suite, [Task(place, kind, "tried") for place in places for kind in kinds])


def measure(suite, tasks: list[Task]) -> None:
    """So many engines as jobs are built at once; then each is timed with the GPU to itself, and goes."""
    missing = [task for task in tasks if suite.wanted(str(task)) and suite.record.result(task.key) is None]
    for first in range(0, len(missing), suite.args.jobs):
        wave = missing[first : first + suite.args.jobs]
        suite.record.check_time()
        try:
            with ThreadPoolExecutor(len(wave)) as pool:
                list(pool.map(lambda task: build(suite, task), wave))
            for task in wave:
                if engine_of(suite, task).is_file():
                    suite.record.step(task.key, engine_times, suite, task)
        finally:
            for task in wave:
                remove(engine_of(suite, task))


def beside(suite, places: list[Place]) -> None:
    """What the engines are held against: the floor, which is cheap to measure, and PyTorch, compiled for many batches at once."""
    cells = [(place, batch) for place in places for batch in place.batches]
    for place, batch in cells:
        _beside(suite, "products", product_times, place, batch)
    with ThreadPoolExecutor(suite.args.jobs) as pool:
        list(pool.map(lambda cell: _beside(suite, "PyTorch", torch_times, *cell), cells))


def _beside(suite, name: str, work, place: Place, batch: int) -> None:
    key = f"table: {place.model} × {place.length}, {name} × {batch}"
    if suite.wanted(key):
        with contextlib.suppress(OutOfTime):
            suite.record.step(key, _facts_and, work, suite, place, batch)


def _facts_and(work, suite, place: Place, batch: int) -> dict:
    times = {name: {str(batch): row} for name, row in work(suite, place, batch).items()}
    return {"model": place.model, "tokens": place.length, "times": times}


def product_times(suite, place: Place, batch: int) -> dict:
    with suite.alone():
        return torch_models.product_times(suite, place, batch)


def torch_times(suite, place: Place, batch: int) -> dict:
    """PyTorch's times by a process of its own (torch_times.py), which waits for others before it is timed."""
    program = ROOT / "scripts" / "gpu_checking" / "torch_times.py"
    command = [sys.executable, program, torch_models.DEVICE, place.model, place.config.num_hidden_layers]
    command += [place.length, batch, suite.args.iterations, suite.timing_lock]
    if suite.args.no_compile:
        command.append("--no-compile")
    return json.loads(suite.run(command, program.name, TORCHINDUCTOR_COMPILE_THREADS="1").splitlines()[-1])


def sizes_of(args) -> dict:
    """Name → BertConfig."""
    return RANDOM_SIZES if args.layers is None else {
        name: replace(config, num_hidden_layers=args.layers) for name, config in RANDOM_SIZES.items()
    }  # fmt: skip


def engine_of(suite, task: Task) -> Path:
    return suite.work / f"{task.key.replace(' ', '_').replace(':', '')}.engine"


def build(suite, task: Task) -> None:
    """The engine of `task`; what the record of another machine tells of is built again."""
    key = f"build: {task}"
    suite.record.forget(key)
    with contextlib.suppress(OutOfTime):
        suite.record.step(key, build_engine, suite, task.place, task.kind, engine_of(suite, task))


def remove(engine: Path) -> None:
    """The engine, and what lies beside it: large ones fill a disk."""
    for path in engine.parent.glob(f"{engine.name}*"):
        path.unlink()


def build_engine(suite, place: Place, kind: Network, engine: Path, extra=()) -> dict:
    """An engine of random weights, tuned for the last batch of `place`: {"mib": its size}. Raises DemoBertError."""
    sizes = {"batch": [place.batches[-1]], "length": [place.length]}
    extra = ("-w", suite.args.workspace, "--timing-iterations", TIMING_ITERATIONS, *extra)
    paths = model_checkpoints(suite, place)
    command = build_command(suite.args.engine_python, ROOT, kind, paths, engine, sizes, extra)
    suite.run(command, Path(command[1]).name)
    return {"mib": round(engine.stat().st_size / 2**20, 1)}


def engine_times(suite, task: Task) -> dict:
    """The figures of build/perf with and without CUDA graphs; TensorRT's own of the layers are a step of their own."""
    engine, place, name = engine_of(suite, task), task.place, task.kind.name
    with suite.alone():
        graph, stream = (perf(suite, engine, place, flags) for flags in (["--enable_graph"], []))
        if any(batch in PROFILED for batch in place.batches):
            suite.record.step(f"layers: {task}", layers, suite, engine, task)
    times = {f"{name}{GRAPH}": graph, name: stream}
    return {"model": place.model, "tokens": place.length, "times": times}


def layers(suite, engine: Path, task: Task) -> dict:
    """Batch size → TensorRT's own time of each kind of layer (layer_times.py)."""
    batches = [batch for batch in task.place.batches if batch in PROFILED]
    program = ROOT / "scripts" / "gpu_checking" / "layer_times.py"
    command = [suite.args.engine_python, program, engine, task.kind.layout, task.place.length, *batches]
    return json.loads(suite.run(command, program.name).splitlines()[-1])


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
    names = (*TIMES, "sentences_per_second")
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
    with suite.locked(suite.work / "checkpoints.lock"):  # engines that are built at once have one checkpoint
        return {
            "qat": checkpoints.write_random_qat(folder / "qat", place.config),
            "megatron": checkpoints.write_random_megatron(folder / "megatron" / "weights.pickle", megatron),
            "vocabulary": suite.checkpoints["vocabulary"],
        }
