"""How the rate of answers grows with the engines: one engine and many, fed by Ray Data, in turn on one machine.

What is counted: the questions that are answered from when the last engine has ended its first part until the first engine
has ended its last one, a part that lies partly in that time by its share. So all engines are at work in it; Ray's start,
the engines' loading and the end, when some have nothing left, do not count; reading, travelling and waiting do.
scripts/benchmark_ray.py runs it.
"""

import dataclasses
import json
import os
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from itertools import cycle, islice
from pathlib import Path

from helpers import cli
from helpers.errors import DemoBertError
from helpers.outputs import check_outputs, write_json
from helpers.squad import read_squad
from scripts.benchmarks.turns import turns
from scripts.scaling.flags import PART_ROWS

#: Of each engine: fewer parts, and the time in which all engines work is no time.
_FEWEST_PARTS = 3


def parse(arguments):
    parser = cli.Parser("Questions per second of many engines beside one's, as answer_ray.py feeds them.")
    cli.add_engine(parser)
    number = {"type": cli.positive_int, "metavar": "N"}
    parser.add_argument(
        "--squad", required=True, metavar="FILE", help="SQuAD file whose questions are asked, over and over"
    )
    engines = "engines to hold against one (default: as many as there are groups of cores, or GPUs)"
    parser.add_argument("--engines", **number, help=engines)
    parser.add_argument("--cores", **number, help="cores of each engine on a CPU, of the one, too (default: 2)")
    parser.add_argument("--questions", **number, default=4000, help="questions for each engine in each run")
    parser.add_argument("--rounds", **number, default=3, help="runs of each, in turn")
    parser.add_argument(
        "--part-rows", **number, default=PART_ROWS // 2, help="questions that an engine is given at once"
    )
    parser.add_argument("-b", "--batch-size", **number, help="windows that run at once (default: as of inference.py)")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON")
    cli.add_verbose(parser)
    return parser.parse_args(arguments)


def main(arguments) -> None:
    args = parse(arguments)
    check_outputs({"--json": args.json}, (args.squad, args.engine))
    from scripts.scaling.preparing import engine_settings, started  # after the arguments: they take numpy and more

    settings = engine_settings(with_answer_options(args))
    rows = rows_of(args.squad)
    with tempfile.TemporaryDirectory(prefix="demobert-ray-") as folder, started(args, settings) as (settings, engines):
        if engines < 2:
            raise DemoBertError("this machine has room for one engine only: there is nothing to hold against it")
        ways = {"one": 1, "all": engines}
        runs = []
        for number, name in turns(ways, args.rounds):
            cli.note(f"Round {number + 1} of {args.rounds}, engines: {ways[name]}")
            table = write_table(Path(folder) / f"{name}.jsonl", rows, args.questions * ways[name])
            runs.append({"round": number + 1, **measured(table, settings, ways[name], args)})
    report = {
        "engine": str(args.engine),
        "squad": str(args.squad),
        "machine": machine(),
        "cores_of_an_engine": settings.cores,
    }
    report |= {"options": dataclasses.asdict(settings.options), "part_rows": args.part_rows, **summary(runs, engines)}
    show(report)
    if args.json:
        write_json(args.json, report)


def with_answer_options(args):
    """`args` with all that `engine_settings` asks of a command line, as answer_ray.py has it by default."""
    from scripts.scaling.flags import add_scaling_arguments

    parser = cli.Parser("")
    add_scaling_arguments(parser)
    defaults = parser.parse_args(["-e", "", "--rows", "", "-o", ""])
    for name, value in vars(defaults).items():
        if not hasattr(args, name):
            setattr(args, name, value)
    return args


def rows_of(path) -> list[dict]:
    """The questions of a SQuAD file as rows of a table."""
    examples = read_squad(path).examples
    return [{"id": one.question_id, "question": one.question, "context": one.passage} for one in examples]


def write_table(path: Path, rows: list[dict], count: int) -> Path:
    """`count` rows, the given ones over and over, as JSON lines."""
    if not path.exists():
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in islice(cycle(rows), count))
    return path


def measured(table: Path, settings, engines: int, args) -> dict:
    """The rate of so many engines over a table. Raises DemoBertError where a part is lost, or there are too few."""
    from scripts.scaling.pipeline import answered_parts

    parts, asked = defaultdict(list), 0
    for part in answered_parts([table], settings, engines, args.part_rows, args.verbose):
        if part.head["failure"]:
            raise DemoBertError(part.head["failure"])
        if engine := part.head.get("engine"):
            parts[engine["place"]].append((engine["begin"], engine["end"], part.head["questions"]))
            asked += part.head["questions"]
    if asked != args.questions * engines:
        raise DemoBertError(f"{asked} of {args.questions * engines} questions came back: an engine has died")
    fewest = min(map(len, parts.values()), default=0)
    if len(parts) != engines or fewest < _FEWEST_PARTS:
        raise DemoBertError(
            f"{len(parts)} of {engines} engines had work, the one with the least {fewest} parts: ask for more --questions, "
            "or smaller --part-rows"
        )
    rate, seconds = steady_rate(parts.values())
    return {"engines": engines, "questions_per_second": rate, "seconds": seconds, "places": sorted(parts)}


def steady_rate(engines: Iterable[list[tuple[float, float, int]]]) -> tuple[float, float]:
    """(questions per second, seconds) of the time in which all engines work, of each one's parts: (begin, end, questions).

    Times in seconds. Raises DemoBertError where there is no such time.
    """
    engines = [sorted(parts) for parts in engines]
    start = max(parts[0][1] for parts in engines)
    end = min(parts[-1][1] for parts in engines)
    if end <= start:
        raise DemoBertError("there was no time in which all engines worked: ask for more --questions")
    counted = sum(
        questions * max(0.0, min(last, end) - max(first, start)) / (last - first)
        for parts in engines
        for first, last, questions in parts
        if last > first
    )
    return counted / (end - start), end - start


def summary(runs: list[dict], engines: int) -> dict:
    """Medians of the rounds, and how near to `engines` times one's rate all engines' is: 1 is as many times as fast."""
    rates = {
        name: [run["questions_per_second"] for run in runs if run["engines"] == count]
        for name, count in (("one", 1), ("all", engines))
    }
    one, many = (statistics.median(rates[name]) for name in ("one", "all"))
    of_rounds = [many / one / engines for one, many in zip(rates["one"], rates["all"])]
    medians = {"questions_per_second_of_one": one, "questions_per_second_of_all": many}
    return {"engines": engines, **medians, "times": many / one, "efficiency": many / one / engines} | {
        "efficiency_of_rounds": of_rounds,
        "runs": runs,
    }


def machine() -> dict:
    """The processor, and the cores that this process may use, by the hardware threads that share one."""
    from scripts.scaling.engines import core_groups

    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return {"processor": name, "cores": len(os.sched_getaffinity(0)), "neighbours": core_groups(2)}


def show(report: dict) -> None:
    print(
        f"{report['questions_per_second_of_one']:.1f} questions/s of one engine, "
        f"{report['questions_per_second_of_all']:.1f} of {report['engines']}: {report['times']:.2f} times, "
        f"{100 * report['efficiency']:.1f} % of {report['engines']} times",
        flush=True,
    )
