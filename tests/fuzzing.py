"""What the fuzzers share: worker processes of limited memory, seeds, and ways to damage a file.

Each runs `--rounds N` rounds, or as many as fit into `--seconds S`, and prints what came of them. A round that ends in a
traceback or takes longer than TIME_LIMIT, and a worker that dies, is named with its seed; the exit code is 1 then.
`--seed N --rounds 1` repeats a round.
"""

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from helpers.errors import DemoBertError, one_line

#: Seconds that a round may take.
TIME_LIMIT = 10.0

#: So many rounds of a worker are not timed.
_FIRST_ROUNDS = 50

#: Outcomes that are faults; all others are what should be.
FAULTS = ("tracebacks", "crashes", "too slow", "leftovers", "escapes", "wrong")

#: Rounds that one worker does in turn.
_ROUNDS_OF_A_WORKER = 1000

_NUMBERS = (0, 1, -1, 2, 1 << 20, 1 << 31, 1 << 33, 1 << 64, 10**400, 0.5, 1e308, -1e308, float("nan"), float("inf"))
_TEXTS = (
    "",
    " ",
    "\0",
    "▁",
    "##",
    "[UNK]",
    "</s>",
    "é",
    "\ud800",
    "x" * 5000,
    "(a+)+$",
    "(?=(a*)*)",
    "\\p{L}+",
    " {2,}",
)
_NAMES = (
    *("BertNormalizer", "Sequence", "Precompiled", "Replace", "Prepend", "Metaspace", "ByteLevel", "Split", "Digits"),
    *("WordPiece", "BPE", "Unigram", "WordLevel", "TemplateProcessing", "RobertaProcessing", "BertProcessing", "Strip"),
    *("BertTokenizer", "RobertaTokenizer", "AlbertTokenizer", "PreTrainedTokenizerFast", "NFKC", "Nmt", "Whitespace"),
)


def refused(error: DemoBertError) -> str:
    """The outcome of a refusal: it has to say something."""
    return "refused" if len(one_line(error, 1500)) > 10 else "tracebacks"


def _places(value, found: list) -> list:
    """(container, key) of everything in a JSON value; of a long list or object the first few."""
    entries = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    for key, item in entries[:12]:
        found.append((value, key))
        if isinstance(item, (dict, list)):
            _places(item, found)
    return found


def _odd_value(rng, old):
    """Something that could stand in the place of `old`."""
    pool = [None, True, False, [], {}, {"type": _NAMES[rng.integers(len(_NAMES))]}, [old], {"x": old}]
    kind = rng.integers(6)
    if kind == 0:
        return pool[rng.integers(len(pool))]
    if kind == 1:
        return _NUMBERS[rng.integers(len(_NUMBERS))]
    if kind == 2:
        return _NAMES[rng.integers(len(_NAMES))]
    if kind == 3 and isinstance(old, str) and old:
        place = rng.integers(len(old))
        return old[:place] + chr(rng.integers(1, 0xD7FF)) + old[place + 1 :]
    if kind == 4:
        deep = old
        for _ in range(int(rng.choice([3, 30, 150]))):
            deep = {"type": "Sequence", ("normalizers", "pretokenizers", "processors")[rng.integers(3)]: [deep]}
        return deep
    return _TEXTS[rng.integers(len(_TEXTS))]


def damage_json(rng, path: Path) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    for _ in range(rng.integers(1, 4)):
        places = _places(values, [])
        if not places:
            break
        container, key = places[rng.integers(len(places))]
        kind = rng.integers(4)
        if kind == 0 and isinstance(container, dict):
            del container[key]
        elif kind == 1 and isinstance(container, list):
            container.insert(key, json.loads(json.dumps(container[key])))
        else:
            container[key] = _odd_value(rng, container[key])
    path.write_text(json.dumps(values), encoding="utf-8")


def damage_bytes(rng, path: Path) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(rng.integers(1, 5)):
        place = int(rng.integers(len(data))) if data else 0
        kind = rng.integers(4)
        if kind == 0:
            del data[place : place + int(rng.integers(1, 200))]
        elif kind == 1:
            data[place:place] = bytes(rng.integers(0, 256, rng.integers(1, 9), np.uint8))
        elif kind == 2:
            data[place:place] = b"[" * int(rng.choice([1, 100, 200_000]))
        elif data:
            data[place] ^= 1 << rng.integers(8)
    path.write_bytes(data)


def run_rounds(first: int, count: int, seeds, one_round: Callable[..., str]) -> Counter:
    """Rounds in this process: what came of them → how many."""
    outcomes = Counter()
    with tempfile.TemporaryDirectory() as work:
        for seed in range(first, first + count):
            begin = time.process_time()  # not of other processes, which may take the machine's time
            try:
                outcome = one_round(seed, seeds, Path(work))
            except Exception as error:
                outcome = "tracebacks"
                print(f"round {seed}: {one_line(error, 300)}\n{traceback.format_exc()[-1500:]}", flush=True)
            # The first round of a worker imports what is read with.
            if time.process_time() - begin > TIME_LIMIT and seed > first + _FIRST_ROUNDS:
                outcome = "too slow"
            if outcome in FAULTS:
                print(f"round {seed}: {outcome}", flush=True)
            outcomes[outcome] += 1
    return outcomes


def _worker(first: int, count: int, seeds, one_round, memory: int, results) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    results.send(run_rounds(first, count, seeds, one_round))
    results.close()
    os._exit(0)  # how libraries take leave of their threads is not what is tried


def _in_a_worker(context, first: int, count: int, *more) -> Counter:
    """`run_rounds` in a process of its own; one that dies or hangs is a crash."""
    results, sender = context.Pipe(duplex=False)
    process = context.Process(target=_worker, args=(first, count, *more, sender))
    process.start()
    sender.close()
    try:
        outcomes = results.recv() if results.poll(TIME_LIMIT * 180) else None
    except EOFError:
        outcomes = None
    process.join(TIME_LIMIT)
    if process.is_alive() or process.exitcode or outcomes is None:
        process.kill()
        print(f"a worker hangs or died ({process.exitcode}) in rounds {first} to {first + count - 1}", flush=True)
        return Counter(crashes=1)
    return outcomes


def run(arguments, description: str, write_seeds: Callable, one_round: Callable[..., str], memory: int) -> int:
    """The command line of a fuzzer; its exit code.

    `write_seeds(folder)` writes what is damaged; `one_round(seed, seeds, work)` does one round in the folder `work` and
    says what came of it. Both are pickled. `memory`: bytes of address space that a worker may have.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, help="how many (default: 1000, or as many as fit into --seconds)")
    parser.add_argument("--seconds", type=float, help="end with the worker that ends after so many")
    parser.add_argument("--seed", type=int, default=int.from_bytes(np.random.bytes(4), "little"))
    args = parser.parse_args(arguments)
    rounds = args.rounds or (1000 if args.seconds is None else 1 << 40)
    print(f"first seed {args.seed}", flush=True)
    end, totals = time.monotonic() + (args.seconds or float("inf")), Counter()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as root:
        seeds, progress = write_seeds(Path(root)), tqdm(total=args.rounds, unit="round", mininterval=5)
        for first in range(args.seed, args.seed + rounds, _ROUNDS_OF_A_WORKER):
            count = min(_ROUNDS_OF_A_WORKER, args.seed + rounds - first)
            totals += _in_a_worker(context, first, count, seeds, one_round, memory)
            progress.update(count)
            if time.monotonic() > end:
                break
        progress.close()
    totals += Counter()
    faults = {name: totals[name] for name in FAULTS[:2]} | {name: totals[name] for name in FAULTS if totals[name]}
    others = {name: number for name, number in sorted(totals.items()) if name not in FAULTS}
    print(
        f"{sum(totals.values())} rounds: " + ", ".join(f"{number} {name}" for name, number in (others | faults).items())
    )
    return int(any(faults.values()))
