"""What structured pruning costs and gains: F1 on a SQuAD file, and latency in turn, of one model in several sizes.

Every model is calibrated on the same text; engines are those of builder.py. scripts/benchmark_pruning.py runs it.
"""

import tempfile
import warnings
from pathlib import Path

import numpy as np

from helpers import cli
from helpers.answer_options import AnswerOptions
from helpers.answerer import Answerer
from helpers.benchmark import random_batch
from helpers.errors import UsageError
from helpers.finetuning.structured_pruning import encoder_flops
from helpers.outputs import atomic_write, check_outputs, write_json
from helpers.pictures import new_figure
from helpers.squad import read_squad
from scripts.benchmarks import hugging_face
from scripts.benchmarks.latency import run_in_turn
from scripts.benchmarks.onnx_export import OnnxExport
from scripts.benchmarks.peers import machine
from scripts.benchmarks.project_engines import EngineBuilder
from scripts.benchmarks.throughput import answer_with_engine, mean_f1

FORMS = ("fp32", "int8")
LENGTHS = (128, 384)

#: The peer's name in the tables.
PEER = "ONNX Runtime, dynamic int8"


def benchmark(args) -> None:
    """What scripts/benchmark_pruning.py was asked for. Raises DemoBertError."""
    check_outputs({"--json": args.json, "--picture": args.picture}, (args.squad, args.calibration, *args.models))
    warnings.filterwarnings("ignore")  # the peer's packages, between the lines of the tables
    lengths = sorted(set(args.sequence_length or LENGTHS))
    with tempfile.TemporaryDirectory(prefix="demobert-pruned-") as folder:
        builders = _builders(args, lengths[-1], Path(folder))
        latencies = {length: _latencies(args, builders, length, Path(folder)) for length in lengths}
        f1 = _f1(args, builders, lengths[-1])
    rows = _rows(builders, latencies, f1, lengths)
    peer = {str(length): latencies[length][PEER] for length in lengths if args.peer}
    print(table(rows, peer))
    if args.picture:
        _draw(rows, lengths[-1], args.picture)
    if args.json:
        write_json(args.json, {"machine": machine(), "rows": rows, PEER: peer})


def _builders(args, length: int, folder: Path) -> dict[str, EngineBuilder]:
    """Name of the model → its builder; models of one name are told apart by number."""
    found = {}
    for number, model in enumerate(args.models):
        own = folder / str(number)
        own.mkdir()
        name = model.name if model.name not in found else f"{model.name} ({number})"
        found[name] = EngineBuilder(model, args.calibration, length, own)
        positions = found[name].model.config.max_position_embeddings
        if length > positions:
            raise UsageError(f"-s {length} is over max_position_embeddings of {model}, {positions}")
    return found


def _latencies(args, builders: dict, length: int, folder: Path) -> dict:
    """(model, form) → median ms of one window of `length` tokens, and PEER's; all of them in turn."""
    runs = {}
    for name, builder in builders.items():
        for form in FORMS:
            engine = builder.engine(form, length, 1)
            batch = random_batch(engine.card, 1, length, seed=length)
            runs[name, form] = engine.timed_run(batch)
    if args.peer:
        runs[PEER] = OnnxExport(hugging_face.load(args.models[0]), batch, folder).onnxruntime_run(int8=True)
    return {name: float(np.median(values)) for name, values in run_in_turn(runs, args.iterations).items()}


def _f1(args, builders: dict, length: int) -> dict:
    """(model, form) → F1 in percent."""
    data, found = read_squad(args.squad), {}
    for name, builder in builders.items():
        for form in FORMS:
            cli.note(f"Answering {len(data.examples)} questions: {name}, {form}")
            engine = builder.engine(form, length, 8, throughput=True)
            answerer = Answerer(engine, builder.model.tokenizer(), AnswerOptions(batch_size=8, sequence_length=length))
            found[name, form] = mean_f1(answer_with_engine(answerer, data), data)
            engine.close()
    return found


def _rows(builders: dict, latencies: dict, f1: dict, lengths: list[int]) -> list[dict]:
    whole, rows = next(iter(builders)), []
    flops = {name: encoder_flops(builder.weights.config, lengths[-1]) for name, builder in builders.items()}
    for name, builder in builders.items():
        config = builder.weights.config
        for form in FORMS:
            ms = {str(length): latencies[length][name, form] for length in lengths}
            share = {str(length): ms[str(length)] / latencies[length][whole, form] for length in lengths}
            row = {"model": name, "form": form, "speed": flops[whole] / flops[name], "f1": f1[name, form], "ms": ms}
            sizes = {"heads": sum(config.heads_by_layer), "columns": sum(config.inner_sizes_by_layer)}
            rows.append(row | sizes | {"share": share})
    return rows


def table(rows: list[dict], peer: dict) -> str:
    """Markdown: a line each model and form; latencies, and their share of the whole model's in the same form."""
    lengths = list(rows[0]["ms"])
    heads = [f"{length} tokens, ms | of the whole model's" for length in lengths]
    lines = [f"| model | FLOPs | heads | columns | form | F1 | {' | '.join(heads)} |"]
    lines.append("| --- | ---: | ---: | ---: | --- |" + " ---: |" * (1 + 2 * len(lengths)))
    for row in rows:
        sizes = f"1 / {row['speed']:.2f} | {row['heads']} | {row['columns']}"
        times = " | ".join(f"{row['ms'][length]:.2f} | {row['share'][length]:.2f}" for length in lengths)
        lines.append(f"| {row['model']} | {sizes} | {row['form']} | {row['f1']:.2f} | {times} |")
    if peer:
        times = " | ".join(f"{peer[length]:.2f} |" for length in lengths)
        lines.append(f"| {PEER} | | | | | | {times} |")
    return "\n".join(lines)


def _draw(rows: list[dict], length: int, path) -> None:
    figure, axes = new_figure(6, 4, "--picture")
    for form in FORMS:
        points = [(row["ms"][str(length)], row["f1"], row["speed"]) for row in rows if row["form"] == form]
        axes.plot([ms for ms, _, _ in points], [f1 for _, f1, _ in points], marker="o", label=form)
        for ms, f1, speed in points:
            axes.annotate(f"{speed:.3g} ×", (ms, f1), textcoords="offset points", xytext=(4, -10), fontsize=8)
    axes.set(xlabel=f"ms, one window of {length} tokens", ylabel="F1", xscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=100)
