"""Throughput beside the peers: questions per second and F1 over one SQuAD file, every engine in its turn."""

import copy
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from helpers import cli
from helpers.answer_options import AnswerOptions
from helpers.answerer import Answerer, predicted_text
from helpers.squad import SquadData, read_squad, token_f1
from scripts.benchmarks import hugging_face
from scripts.benchmarks.latency import wanted
from scripts.benchmarks.project_engines import FORMS, EngineBuilder
from scripts.benchmarks.turns import turns


def measure_throughput(args, builder: EngineBuilder, torch_model, model: Path, length: int) -> dict:
    """Questions per second and F1 of all sides, printed as a table and returned."""
    data = read_squad(args.squad)
    if args.questions:  # spread over the file, so that its lengths stay representative
        step = max(len(data.examples) // args.questions, 1)
        data = replace(data, examples=data.examples[::step][: args.questions])
    sides = engine_sides(args, builder, length) | torch_sides(torch_model, model, length)
    answers = {name: prepare() for name, prepare in wanted(args.peers, sides).items()}
    seconds, f1 = answer_in_turn(answers, data, args.rounds)
    return print_table(seconds, f1, len(data.examples))


def engine_sides(args, builder: EngineBuilder, length: int) -> dict:
    """Name → a function that builds one of this project's or NNCF's engines and returns (SquadData) → answers."""
    sizes, tokenizer = (length, args.batch_size), builder.model.tokenizer()

    def side(build) -> partial:
        engine = build(*sizes, throughput=True)
        return partial(answer_with_engine, Answerer(engine, tokenizer, AnswerOptions(batch_size=args.batch_size)))

    builds = {f"this engine, {form}": partial(builder.engine, form) for form in FORMS}
    builds["NNCF, int8"] = builder.nncf_engine
    return {name: partial(side, build) for name, build in builds.items()}


def torch_sides(torch_model, model: Path, length: int) -> dict:
    """Name → a function that returns (SquadData) → answers, by Hugging Face's recipe."""
    import torch

    def side(dtype) -> partial:
        converted = copy.deepcopy(torch_model).to(dtype)
        # AutoTokenizer opens what has a config.json; Google's folders have a vocab.txt and another name for that.
        text = model if (model / "config.json").is_file() else model / "vocab.txt"
        return partial(hugging_face.answer_squad, converted, text, length=length)

    return {
        f"Hugging Face, {precision}": partial(side, dtype)
        for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    }


def answer_with_engine(answerer: Answerer, data: SquadData) -> dict[str, str]:
    return {key: predicted_text(reply) for key, reply in answerer.answer_squad(data).items()}


def answer_in_turn(sides: dict, data: SquadData, rounds: int) -> tuple[dict, dict]:
    """(name → seconds of each round, name → F1)."""
    seconds, f1 = {name: [] for name in sides}, {}
    for number, name in turns(sides, rounds):
        cli.note(f"Round {number + 1} of {rounds}: {name}")
        start = time.perf_counter()
        answers = sides[name](data)
        seconds[name].append(time.perf_counter() - start)
        f1[name] = mean_f1(answers, data)
    return seconds, f1


def mean_f1(answers: dict[str, str], data: SquadData) -> float:
    """SQuAD's F1, 0 to 100."""
    scores = [max(token_f1(answers[e.question_id], gold) for gold in e.answers) for e in data.examples]
    return 100 * float(np.mean(scores))


def print_table(seconds: dict, f1: dict, questions: int) -> dict:
    """Print and return questions per second, from the median over the rounds, and the ratios at equal precision."""
    rates = {name: questions / float(np.median(values)) for name, values in seconds.items()}
    print(f"\n{questions} questions, median of {len(next(iter(seconds.values())))} rounds, in turn\n")
    print(f"| {'engine':22} | questions/s | F1    | this engine is     |")
    print(f"| {'-' * 22} | ----------: | ----: | -----------------: |")
    rows = []
    for name, rate in rates.items():
        ours = rates.get(f"this engine, {name.split(', ')[1]}")
        ratio = ours / rate if ours and not name.startswith("this") else None
        print(f"| {name:22} | {rate:11.2f} | {f1[name]:5.2f} | {f'{ratio:.2f} × as fast' if ratio else '':>18} |")
        rows.append({"engine": name, "questions_per_second": rate, "f1": f1[name], "ratio": ratio})
    return {"questions": questions, "rows": rows}
