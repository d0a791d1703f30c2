"""Latency beside the peers: one batch of random ids, every engine in its turn, medians and ratios."""

import time
from pathlib import Path

import numpy as np

from helpers import cli
from helpers.benchmark import random_batch
from helpers.errors import DemoBertError
from scripts.benchmarks import hugging_face
from scripts.benchmarks.onnx_export import OnnxExport
from scripts.benchmarks.project_engines import FORMS, EngineBuilder
from scripts.benchmarks.turns import turns

#: Each peer runs this often in its turn, after one run that only wakes its threads.
RUNS_PER_TURN = 2

#: The engines are built for sequences of at least so many tokens, and serve shorter ones, too.
BUILT_LENGTH = 384


def measure_latency(args, builder: EngineBuilder, torch_model, length: int, folder: Path) -> dict:
    """Medians of every peer at one length, printed as a table and returned."""
    sizes = max(length, BUILT_LENGTH), args.batch_size
    engines = {f"this engine, {form}": builder.engine(form, *sizes) for form in FORMS}
    batch = random_batch(engines["this engine, fp32"].card, args.batch_size, length, seed=length)
    runs = {name: engine.timed_run(batch) for name, engine in engines.items()}
    peers = {"NNCF, int8": lambda: builder.nncf_engine(*sizes).timed_run(batch)}
    peers |= hugging_face.latency_peers(torch_model, batch)
    peers |= OnnxExport(torch_model, batch, folder).latency_peers()
    for name, prepare in wanted(args.peers, peers).items():
        cli.note(f"Preparing {name}")
        runs[name] = prepare()
    latencies = run_in_turn(runs, args.iterations)
    return {"sequence_length": length, "rows": print_table(latencies, args.batch_size, length)}


def wanted(words: list | None, peers: dict) -> dict:
    """Those of `peers`, by their names, that `--peers` names, upper or lower case. Raises DemoBertError for none."""
    found = {
        name: peer for name, peer in peers.items() if not words or any(word.lower() in name.lower() for word in words)
    }
    if not found:
        raise DemoBertError(f"--peers {' '.join(words)} names none of: {'; '.join(peers)}")
    return found


def run_in_turn(runs: dict, iterations: int) -> dict:
    """Name → latencies in ms, at least `iterations` of each."""
    from tqdm import tqdm

    latencies = {name: [] for name in runs}
    rounds = -(-iterations // RUNS_PER_TURN)
    cli.note(f"Timing {len(runs)} engines in turn")
    for _, name in tqdm(turns(runs, rounds), total=rounds * len(runs), unit="turn", leave=False, disable=None):
        run = runs[name]
        run()
        latencies[name] += [wall_clock_ms(run) for _ in range(RUNS_PER_TURN)]
    return latencies


def wall_clock_ms(run) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


def precision_of(name: str) -> str:
    """Which of this engine's forms a peer is held to, by what follows the comma in its name."""
    precision = name.split(", ")[1]
    return "int8" if "int8" in precision else precision


def print_table(latencies: dict, batch_size: int, length: int) -> list[dict]:
    """Print medians, and each peer's ratio to this engine at the peer's precision (above 1: the peer is faster)."""
    medians = {name: float(np.median(values)) for name, values in latencies.items()}
    ours = {form: medians[f"this engine, {form}"] for form in FORMS}
    runs = len(next(iter(latencies.values())))
    print(f"\nbatch size {batch_size}, sequence length {length}; median of {runs} runs each, in turn\n")
    print(f"| {'engine':30} | median ms | 5th percentile ms | this engine's median is |")
    print(f"| {'-' * 30} | --------: | ----------------: | ----------------------: |")
    rows = []
    for name, median in medians.items():
        fifth = float(np.percentile(latencies[name], 5))
        ratio = None if name.startswith("this") else ours[precision_of(name)] / median
        print(f"| {name:30} | {median:9.2f} | {fifth:17.2f} | {f'{ratio:.2f} ×' if ratio else '':>23} |")
        rows.append({"engine": name, "median_ms": median, "percentile_5_ms": fifth, "ratio": ratio})
    half, full = ours["int8"] / ours["bf16"], ours["int8"] / ours["fp32"]
    print(f"\nint8 takes {half:.2f} × this engine's bf16, {full:.2f} × its fp32")
    return rows
