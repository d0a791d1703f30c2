"""What packing gains: questions and tokens per second of a SQuAD file, by one model in one precision, three ways.

    filled    every window padded to the longest, as an engine of fixed shapes has to
    sorted    padded engine, dynamic shapes, windows of like length together: padded by next to nothing
    packed    windows end to end

The ways take turns, round by round, so that the machine's moods hit all alike; the figures are medians of the rounds.
scripts/benchmark_packing.py runs it.
"""

import tempfile
import time
from pathlib import Path

import numpy as np

from helpers.answer_options import AnswerOptions
from helpers.answerer import Answerer
from helpers.backends import load_engine
from helpers.model_folder import ModelFolder
from helpers.outputs import place_of, write_json
from helpers.squad import SquadData, read_squad
from scripts.benchmarks.project_engines import build_engine_file
from scripts.benchmarks.throughput import answer_with_engine, mean_f1
from scripts.benchmarks.turns import turns


def benchmark(args) -> None:
    """What scripts/benchmark_packing.py was asked for. Raises DemoBertError."""
    if args.json:
        place_of(args.json, "--json")
    data = read_squad(args.squad)
    data = SquadData(data.examples[:: args.every], data.version_2)
    sizes = sorted(set(args.batch_size or [1, 8]))
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(answerers(args, sizes, Path(folder)), data, args.rounds)
    if args.json:
        facts = {"model": str(args.model), "fp16": args.fp16, "questions": len(data.examples)}
        write_json(args.json, facts | {"rows": rows})


def answerers(args, sizes: list[int], folder: Path) -> dict[str, Answerer]:
    """Every way at every batch size, by one padded engine and one packed."""
    ways = {}
    for layout, names in (("padded", ("filled", "sorted")), ("packed", ("packed",))):
        path = folder / f"{layout}.engine"
        build_engine_file(args.model, path, layout, max(sizes[-1], 8), args.sequence_length, args.fp16)
        for size in sizes:
            for name in names:
                ways[f"{name}, -b {size}"] = answerer(args, path, layout, size, filled=name == "filled")
    return ways


def answerer(args, path: Path, layout: str, batch_size: int, filled: bool) -> Answerer:
    engine = load_engine(path, layout, throughput=True)
    if filled:  # rows as an engine of one shape would have them
        engine.padded_length = lambda length: args.sequence_length
    return Answerer(engine, ModelFolder.open(args.model).tokenizer(), AnswerOptions(batch_size=batch_size))


def measure(ways: dict, data: SquadData, rounds: int) -> list[dict]:
    """Answer the questions in every way, `rounds` times after a first that does not count; print and return a table."""
    from tqdm import tqdm

    seconds, f1 = {name: [] for name in ways}, {}
    total = (rounds + 1) * len(ways)
    for number, name in tqdm(turns(ways, rounds + 1), total=total, unit="turn", disable=None):
        start = time.perf_counter()
        answers = answer_with_engine(ways[name], data)
        if number:
            seconds[name].append(time.perf_counter() - start)
        f1[name] = mean_f1(answers, data)
    tokens = sum(next(iter(ways.values())).window_lengths(data))
    print(f"\n{len(data.examples)} questions, {tokens} tokens without padding; median of {rounds} rounds, in turn\n")
    return print_table(seconds, f1, len(data.examples), tokens)


def print_table(seconds: dict, f1: dict, questions: int, tokens: int) -> list[dict]:
    """Print and return rates, from the median over the rounds, and how they stand to the best of "filled"."""
    print(f"| {'windows':14} | questions/s | tokens/s | F1    | × filled |")
    print(f"| {'-' * 14} | ----------: | -------: | ----: | -------: |")
    medians = {name: float(np.median(times)) for name, times in seconds.items()}
    filled = min(median for name, median in medians.items() if name.startswith("filled"))
    rows = []
    for name, median in medians.items():
        row = {"questions_per_second": questions / median, "tokens_per_second": tokens / median}
        row |= {"f1": f1[name], "times_filled": filled / median}
        print(
            f"| {name:14} | {row['questions_per_second']:11.2f} | {row['tokens_per_second']:8.0f} "
            f"| {row['f1']:5.2f} | {row['times_filled']:8.2f} |"
        )
        rows.append({"windows": name, **row})
    return rows
