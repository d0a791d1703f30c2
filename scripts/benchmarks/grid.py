"""demoBERT's benchmark: a grid of models, precisions, lengths and batch sizes → a table, a CSV file, a plot.

inference_benchmark.sh runs it. Every engine that is missing is built, from checkpoints that are downloaded where they
are missing; every point of the grid is timed by a process of its own, so that one that fails takes no other with it.
"""

import os
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
from helpers.outputs import check_outputs
from scripts.benchmarks.grid_engines import BUNDLED, INT8_FLAGS, LENGTHS, GridEngine, grid
from scripts.benchmarks.random_model import RANDOM_SIZES, write_random_model
from scripts.benchmarks.table import GridRow, redraw, report


@dataclass(frozen=True)
class Scale:
    """How much is measured by default."""

    batch_sizes: tuple
    iterations: int
    warm_up_runs: int


GPU_SCALE = Scale((1, 2, 4, 8, 12, 16, 24, 32, 64, 128), 1000, 100)
CPU_SCALE = Scale((1, 2, 4, 8), 20, 3)  # some ten minutes on two cores


def parse(arguments):
    args = _parser().parse_args(arguments)
    scale = CPU_SCALE if args.gpu == "CPU" else GPU_SCALE
    args.batch_size = sorted(set(args.batch_size or scale.batch_sizes))
    args.sequence_length = tuple(sorted(set(args.sequence_length or LENGTHS)))
    args.iterations = args.iterations or scale.iterations
    args.warm_up_runs = scale.warm_up_runs if args.warm_up_runs is None else args.warm_up_runs
    args.engines = Path(args.engines or ROOT / "engines" / "benchmark" / (args.gpu or ""))
    args.perf = Path(args.perf) if args.perf else _default_perf()
    return args


def _parser() -> cli.Parser:
    parser = cli.Parser(
        "Time demoBERT's grid of models: bash scripts/inference_benchmark.sh --gpu CPU. Missing engines are built and "
        "missing checkpoints downloaded first. Ends with a Markdown table, a CSV file and a plot."
    )
    task = parser.add_mutually_exclusive_group(required=True)
    gpu = "the GPU's architecture, or CPU for the embedded engine"
    task.add_argument("--gpu", choices=(*INT8_FLAGS, "CPU"), help=gpu)
    redrawn = "time nothing: draw the plot of such a CSV file anew, beside it or as -o's .png"
    task.add_argument("--redraw", metavar="CSV", help=redrawn)
    _add_scale_arguments(parser)
    add, word = parser.add_argument, {"action": "append", "metavar": "WORD"}
    add("--model", **word, help="only models whose name holds this word, such as large; repeatable")
    add("--precision", **word, help="only precisions of this name, such as int8; repeatable")
    add("--perf", metavar="FILE", help="the program that times (default: build/perf where it is built, else perf.py)")
    output = "writes PREFIX.md, .csv, .png and .log (default: benchmark/<gpu>)"
    add("-o", "--output", metavar="PREFIX", help=output)
    add("--engines", metavar="DIR", help="where engines are kept (default: engines/benchmark/<gpu>)")
    add("--rebuild", action="store_true", help="build engines that are there again")
    add("--dry-run", action="store_true", help="print the commands, and do nothing")
    cli.add_verbose(parser)
    return parser


def _add_scale_arguments(parser: cli.Parser) -> None:
    """How much is measured."""
    number = {"type": cli.positive_int, "metavar": "N"}
    sizes = f"repeatable (default: {_words(GPU_SCALE.batch_sizes)}; CPU: {_words(CPU_SCALE.batch_sizes)})"
    parser.add_argument("-b", "--batch-size", **number, action="append", help=sizes)
    lengths = f"repeatable (default: {_words(LENGTHS)})"
    parser.add_argument("-s", "--sequence-length", **number, action="append", help=lengths)
    iterations = f"runs to time (default: {GPU_SCALE.iterations}; CPU: {CPU_SCALE.iterations})"
    parser.add_argument("-i", "--iterations", **number, help=iterations)
    warm_up_runs = f"runs before that (default: {GPU_SCALE.warm_up_runs}; CPU: {CPU_SCALE.warm_up_runs})"
    parser.add_argument("-w", "--warm-up-runs", type=cli.non_negative_int, metavar="N", help=warm_up_runs)


def _words(numbers) -> str:
    return " ".join(map(str, numbers))


def _default_perf() -> Path:
    built = ROOT / "build" / "perf"
    return built if os.access(built, os.X_OK) else ROOT / "perf.py"


def main(arguments) -> int:
    args = parse(arguments)
    if args.redraw:
        redraw_plot(args)
        return 0
    engines = [engine for engine in grid(args.gpu, args.sequence_length) if _is_wanted(args, engine)]
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


def redraw_plot(args) -> None:
    """--redraw. Raises DemoBertError."""
    source = Path(args.redraw)
    picture = Path(f"{args.output}.png") if args.output else source.with_suffix(".png")
    check_outputs({"the plot": picture}, [source])
    if not args.dry_run:
        redraw(source, picture)


def heading(args) -> str:
    return f"{args.gpu}, {args.perf.name}, {args.iterations} iterations after {args.warm_up_runs} warm-ups"


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
    return EngineCard.read(EngineCard.path_for(path)).precisions


if __name__ == "__main__":
    sys.argv[0] = "inference_benchmark.sh"  # the name that its user called it by
    cli.run(main)
