"""demoBERT's benchmark: a grid of models, precisions, lengths and batch sizes → a table, a CSV file, a plot.

inference_benchmark.sh runs it. Every engine that is missing is built, from checkpoints that are downloaded where they
are missing; every point of the grid is timed by a process of its own, so that one that fails takes no other with it.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":  # the process's own run, whose path begins with this file's folder
    sys.path[0] = str(ROOT)

from helpers import cli
from helpers.engine_card import EngineCard
from helpers.errors import DemoBertError, UsageError
from helpers.files import check_outputs
from helpers.random_model import RANDOM_SIZES, write_random_model
from scripts.benchmarks.table import GridRow, report

FINE_TUNED = ROOT / "models" / "fine-tuned"
BUNDLED = ROOT / "models" / "bundled" / "bert_mini_squad11"
QAT = FINE_TUNED / "bert_pyt_onnx_large_qa_squad11_amp_fake_quant_v1" / "bert_large_v1_1_fake_quant.onnx"
MEGATRON = (
    FINE_TUNED / "bert_pyt_statedict_megatron_sparse_int8qat_v21.03.0" / "bert_pyt_statedict_megatron_sparse_int8_qat"
)

#: What of INT8 input and output each architecture's plugins have: -iln for add + norm, -imh for attention.
INT8_FLAGS = {
    "Volta": (),
    "Xavier": ("-iln",),
    "Turing": ("-iln", "-imh"),
    "Ampere": ("-iln", "-imh"),
    "Hopper": ("-iln", "-imh"),
}

#: 2:4 sparse kernels need Ampere's Tensor Cores or newer ones.
SPARSE = ("Ampere", "Hopper")

LENGTHS = (128, 384)


@dataclass(frozen=True)
class Scale:
    """How much is measured by default."""

    batch_sizes: tuple
    iterations: int
    warm_up_runs: int


GPU_SCALE = Scale((1, 2, 4, 8, 12, 16, 24, 32, 64, 128), 1000, 100)
CPU_SCALE = Scale((1, 2, 4, 8), 20, 3)  # some ten minutes on two cores


@dataclass(frozen=True)
class GridEngine:
    """One engine of the grid.

    model, precision   what it is called
    lengths            sequence lengths that it is timed at
    max_length         the one that it is built for
    builder            script and flags, but sizes and output
    downloads          scripts, with their words, that bring what it is built from
    random_size        a key of RANDOM_SIZES, where it is built from random weights
    """

    model: str
    precision: str
    lengths: tuple
    max_length: int
    builder: tuple
    downloads: tuple = ()
    random_size: str | None = None

    @property
    def packed(self) -> bool:
        return self.builder[0] == "builder_varseqlen.py"

    def path(self, folder: Path) -> Path:
        name = f"{self.model}_{self.precision}_{self.max_length}.engine".lower()
        return folder / re.sub(r"[^a-z0-9.-]+", "_", name)


def parse(arguments):
    parser = cli.Parser(
        "Time demoBERT's grid of models: bash scripts/inference_benchmark.sh --gpu CPU. Missing engines are built and "
        "missing checkpoints downloaded first. Ends with a Markdown table, a CSV file and a plot."
    )
    parser.add_argument(
        "--gpu", required=True, choices=(*INT8_FLAGS, "CPU"),
        help="the GPU's architecture, or CPU for the embedded engine",
    )  # fmt: skip
    number = {"type": cli.positive_int, "action": "append", "metavar": "N"}
    parser.add_argument(
        "-b", "--batch-size", **number,
        help=f"repeatable (default: {_words(GPU_SCALE.batch_sizes)}; CPU: {_words(CPU_SCALE.batch_sizes)})",
    )  # fmt: skip
    parser.add_argument("-s", "--sequence-length", **number, help=f"repeatable (default: {_words(LENGTHS)})")
    parser.add_argument(
        "-i", "--iterations", type=cli.positive_int, metavar="N",
        help=f"runs to time (default: {GPU_SCALE.iterations}; CPU: {CPU_SCALE.iterations})",
    )  # fmt: skip
    parser.add_argument(
        "-w", "--warm-up-runs", type=cli.non_negative_int, metavar="N",
        help=f"runs before that (default: {GPU_SCALE.warm_up_runs}; CPU: {CPU_SCALE.warm_up_runs})",
    )  # fmt: skip
    word = {"action": "append", "metavar": "WORD"}
    parser.add_argument("--model", **word, help="only models whose name holds this word, such as large; repeatable")
    parser.add_argument("--precision", **word, help="only precisions of this name, such as int8; repeatable")
    parser.add_argument(
        "--perf", metavar="FILE", help="the program that times (default: build/perf where it is built, else perf.py)"
    )
    parser.add_argument(
        "-o", "--output", metavar="PREFIX", help="writes PREFIX.md, .csv, .png and .log (default: benchmark/<gpu>)"
    )
    parser.add_argument("--engines", metavar="DIR", help="where engines are kept (default: engines/benchmark/<gpu>)")
    parser.add_argument("--rebuild", action="store_true", help="build engines that are there again")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, and do nothing")
    cli.add_verbose(parser)
    args = parser.parse_args(arguments)
    scale = CPU_SCALE if args.gpu == "CPU" else GPU_SCALE
    args.batch_size = sorted(set(args.batch_size or scale.batch_sizes))
    args.sequence_length = tuple(sorted(set(args.sequence_length or LENGTHS)))
    args.iterations = args.iterations or scale.iterations
    args.warm_up_runs = scale.warm_up_runs if args.warm_up_runs is None else args.warm_up_runs
    args.engines = Path(args.engines or ROOT / "engines" / "benchmark" / args.gpu)
    args.perf = Path(args.perf) if args.perf else _default_perf()
    return args


def _words(numbers) -> str:
    return " ".join(map(str, numbers))


def _default_perf() -> Path:
    built = ROOT / "build" / "perf"
    return built if os.access(built, os.X_OK) else ROOT / "perf.py"


def main(arguments) -> int:
    args = parse(arguments)
    engines = [engine for engine in grid(args) if _is_wanted(args, engine)]
    if not engines:
        raise UsageError("--model and --precision leave nothing to measure")
    if args.dry_run:
        print_commands(args, engines)
        return 0
    if args.output is None:
        args.output = ROOT / "benchmark" / args.gpu
        args.output.parent.mkdir(exist_ok=True)
    outputs = {ending: Path(f"{args.output}.{ending}") for ending in ("md", "csv", "png", "log")}
    check_outputs({f"--output ({ending})": path for ending, path in outputs.items()})
    args.engines.mkdir(parents=True, exist_ok=True)
    rows: list[GridRow] = []
    try:
        with open(outputs["log"], "w", encoding="utf-8") as log:
            measure(args, engines, rows, log)
    finally:  # hours of figures outlive a Ctrl-C
        if rows:
            report(rows, heading(args), outputs)
    return 0 if any(row.error is None for row in rows) else 1


def heading(args) -> str:
    return f"{args.gpu}, {args.perf.name}, {args.iterations} iterations after {args.warm_up_runs} warm-ups"


def grid(args) -> list[GridEngine]:
    """Every engine that `--gpu` asks for."""
    return cpu_grid(args.sequence_length) if args.gpu == "CPU" else gpu_grid(args.gpu, args.sequence_length)


def cpu_grid(lengths: tuple) -> list[GridEngine]:
    """The bundled model and BERT-base (random weights), each engine for all lengths."""
    calibration = ("-j", str(ROOT / "tests" / "data" / "squad_v1.1.json"), "-n", "8")  # ranges do not change the speed
    precisions = {"fp32": (), "fp16": ("--fp16",), "int8": ("--int8", "--fp16", *calibration)}
    random_base = ROOT / "engines" / "benchmark" / "bert_base_random"
    models = {"bundled model": (BUNDLED, None), "BERT-base (random)": (random_base, "base")}
    max_length = max(*LENGTHS, *lengths)
    engines = []
    for model, (folder, random_size) in models.items():
        for precision, flags in precisions.items():
            builder = ("builder.py", "--backend", "openvino", "-pt", str(folder), *flags)
            engines.append(GridEngine(model, precision, lengths, max_length, builder, (), random_size))
    return engines


def gpu_grid(architecture: str, lengths: tuple) -> list[GridEngine]:
    """BERT-base and BERT-large in FP16 and INT8, Megatron with sparse weights where they help: an engine per length."""
    engines = []
    for length in lengths:
        for size in ("base", "large"):
            engines += _bert(architecture, size, length)
        if architecture in SPARSE:
            engines.append(_megatron(length))
    return engines


def _bert(architecture: str, size: str, length: int) -> list[GridEngine]:
    # A checkpoint of 384 tokens serves any length; NGC's of 128 tokens is the one for shorter windows.
    trained = 128 if length <= 128 else 384
    folder = FINE_TUNED / f"bert_tf_ckpt_{size}_qa_squad2_amp_{trained}_v19.03.1"
    checkpoint = ("-m", str(folder / "model.ckpt"), "-c", str(folder))
    download = ("download_model.sh", size, str(trained), "v2")
    int8 = ("--int8", "--fp16", "--strict", *INT8_FLAGS[architecture])
    if size == "large":  # NVIDIA's QAT checkpoint, with the configuration and vocabulary of the other
        quantized = ("-x", str(QAT), "-c", str(folder))
        downloads = (download, ("download_model.sh", "pyt", "v1_1"))
    else:
        quantized = (*checkpoint, "-j", str(ROOT / "squad" / "train-v1.1.json"), "-n", "100")
        downloads = (download, ("download_squad.sh", "v1_1"))
    model, build = f"BERT-{size}", ("builder.py", "--backend", "tensorrt")
    return [
        GridEngine(model, "fp16", (length,), length, (*build, *checkpoint, "--fp16"), (download,)),
        GridEngine(model, "int8", (length,), length, (*build, *quantized, *int8), downloads),
    ]


def _megatron(length: int) -> GridEngine:
    folder = FINE_TUNED / "bert_tf_ckpt_large_qa_squad2_amp_384_v19.03.1"
    flags = ("--pickle", str(MEGATRON), "-c", str(folder), "--fp16", "--int8", "--strict", "-il", "--megatron", "-sp")
    weights = ("download_model.sh", "pyt", "megatron-large", "int8-qat", "sparse")
    downloads = (("download_model.sh", "384", "v2"), weights)
    builder = ("builder_varseqlen.py", "--backend", "tensorrt", *flags)
    return GridEngine("Megatron-large sparse", "int8", (length,), length, builder, downloads)


def _is_wanted(args, engine: GridEngine) -> bool:
    named = not args.model or any(word.lower() in engine.model.lower() for word in args.model)
    return named and (not args.precision or engine.precision in [word.lower() for word in args.precision])


def build_command(args, engine: GridEngine) -> list[str]:
    if args.gpu == "CPU":  # one engine serves all batch sizes; a TensorRT engine has a profile for each
        batch_sizes = [max(*CPU_SCALE.batch_sizes, *args.batch_size)]
    else:
        batch_sizes = args.batch_size
    sizes = [word for size in batch_sizes for word in ("-b", str(size))]
    script, *flags = engine.builder
    if args.gpu != "CPU":
        flags += ["-tcf", str(args.engines / "timing.cache")]
    output = ["-o", str(engine.path(args.engines)), *sizes, "-s", str(engine.max_length)]
    return [sys.executable, str(ROOT / script), *flags, *output]


def perf_command(args, engine: GridEngine, length: int, batch_size: int, figures) -> list[str]:
    program = [str(args.perf)]
    if args.perf.suffix == ".py":
        name = "perf_varseqlen.py" if engine.packed else "perf.py"
        program = [sys.executable, str(args.perf.with_name(name))]
    elif args.gpu != "CPU":
        program.append("--enable_graph")
    sizes = ["-b", batch_size, "-s", length, "-i", args.iterations, "-w", args.warm_up_runs]
    return [*program, "-e", str(engine.path(args.engines)), *map(str, sizes), "--json", str(figures)]


def download_command(words: tuple) -> list[str]:
    return ["bash", str(ROOT / "scripts" / words[0]), *words[1:]]


def print_commands(args, engines: list[GridEngine]) -> None:
    """What would be run, as a shell would read it."""
    for engine in engines:
        for words in engine.downloads:
            print(shlex.join(download_command(words)))
        print(shlex.join(build_command(args, engine)))
        for length in engine.lengths:
            for batch_size in args.batch_size:
                print(shlex.join(perf_command(args, engine, length, batch_size, "figures.json")))


def measure(args, engines: list[GridEngine], rows: list[GridRow], log) -> None:
    """Build what is missing and time every point; append its row, or the reason why there is no time."""
    from tqdm import tqdm

    total = sum(len(engine.lengths) for engine in engines) * len(args.batch_size)
    with tqdm(total=total, unit="point", disable=None) as progress, tempfile.TemporaryDirectory() as folder:
        for engine in engines:
            progress.set_postfix_str(f"building {engine.model} {engine.precision}")
            error = _attempt(lambda: prepare(args, engine, log))
            precision = engine.precision if error else _precision(engine.path(args.engines))
            for length in engine.lengths:
                for batch_size in args.batch_size:
                    point = GridRow(engine.model, precision, length, batch_size)
                    progress.set_postfix_str(f"{engine.model} {precision}, {length} tokens, batch size {batch_size}")
                    figures = Path(folder) / "figures.json"
                    command = perf_command(args, engine, length, batch_size, figures)
                    failed = error or _attempt(lambda: run(command, log))
                    rows.append(point.failed(failed) if failed else point.timed(figures))
                    progress.update()
            failures = [row for row in rows if row.error and (row.model, row.precision) == (engine.model, precision)]
            with progress.external_write_mode():
                for reason in dict.fromkeys(row.error for row in failures):
                    cli.note(f"{engine.model}, {precision}: {reason}")


def prepare(args, engine: GridEngine, log) -> None:
    """Bring the engine's checkpoint and build it, unless it is there. Raises DemoBertError."""
    path = engine.path(args.engines)
    if not args.rebuild and _serves(path, args, engine):
        return
    for words in engine.downloads:
        run(download_command(words), log)
    if engine.random_size:
        folder = engine.builder[engine.builder.index("-pt") + 1]
        write_random_model(folder, RANDOM_SIZES[engine.random_size], BUNDLED / "vocab.txt")
    run(build_command(args, engine), log)


def _serves(path: Path, args, engine: GridEngine) -> bool:
    """Whether the engine is there and large enough."""
    card_path = EngineCard.path_for(path)
    if not (path.exists() and card_path.exists()):
        return False
    card = EngineCard.read(card_path)
    return card.max_batch_size >= args.batch_size[-1] and card.max_sequence_length >= engine.max_length


def run(command: list[str], log) -> None:
    """Run a command, its output into the log. Raises DemoBertError with its last line where it fails."""
    log.write(f"\n$ {shlex.join(command)}\n")
    log.flush()
    ended = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    log.write(ended.stdout)
    log.flush()
    if ended.returncode:
        lines = ended.stdout.strip().splitlines() or [f"exit code {ended.returncode}, and not a word"]
        raise DemoBertError(lines[-1])


def _attempt(work) -> str | None:
    """Do `work()`; returns in one line why it failed, or None."""
    try:
        work()
    except (DemoBertError, OSError) as error:
        return cli.one_line(error)
    return None


def _precision(path: Path) -> str:
    """What the engine computes in, as its card says: on a CPU, --fp16 may mean bf16."""
    return "+".join(EngineCard.read(EngineCard.path_for(path)).precision)


if __name__ == "__main__":
    sys.argv[0] = "inference_benchmark.sh"  # the name that its user called it by
    cli.run(main)
