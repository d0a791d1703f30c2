"""Timing an engine: random inputs, the loop, its report, JSON, plot. Shared by perf.py and perf_varseqlen.py."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from tqdm import tqdm

from helpers.backends.base import Engine, check_batch_size
from helpers.batching import Batch, PackedBatch, PaddedBatch
from helpers.engine_card import EngineCard
from helpers.outputs import atomic_write, check_outputs, input_files, write_json
from helpers.pictures import new_figure

DEFAULT_SEQUENCE_LENGTH = 128


@dataclass(frozen=True)
class Timing:
    """Latencies of one batch size, in ms; `sentences_per_second` counts every row of the batch.

    `tokens` are those computed: B·S of a padded batch, the sum of the lengths of a packed one. `padding_saved` is the
    share of B·S that a batch filled to S would have computed for nothing, 0 to 1.
    """

    batch_size: int
    sequence_length: int
    iterations: int
    total_ms: float
    average_ms: float
    median_ms: float
    percentile_95_ms: float
    percentile_99_ms: float
    sentences_per_second: float
    tokens: int
    tokens_per_second: float
    padding_saved: float

    @classmethod
    def of(cls, latencies: np.ndarray, batch_size: int, sequence_length: int, tokens: int) -> "Timing":
        """From single latencies in ms, float64 [n]."""
        total = float(latencies.sum())
        median, percentile_95, percentile_99 = np.percentile(latencies, (50, 95, 99))
        return cls(
            batch_size=batch_size,
            sequence_length=sequence_length,
            iterations=len(latencies),
            total_ms=total,
            average_ms=total / len(latencies),
            median_ms=float(median),
            percentile_95_ms=float(percentile_95),
            percentile_99_ms=float(percentile_99),
            sentences_per_second=batch_size * len(latencies) / total * 1e3,
            tokens=tokens,
            tokens_per_second=tokens * len(latencies) / total * 1e3,
            padding_saved=1.0 - tokens / (batch_size * sequence_length),
        )

    def report(self) -> str:
        return (
            f"    Total Time: {self.total_ms:.3f} ms for {self.iterations} iterations\n"
            f"    Average Time: {self.average_ms:.3f} ms    Median Time: {self.median_ms:.3f} ms\n"
            f"    95th Percentile Time: {self.percentile_95_ms:.3f} ms    "
            f"99th Percentile Time: {self.percentile_99_ms:.3f} ms\n"
            f"    Throughput: {self.sentences_per_second:.3f} Sentences/Sec"
        )

    def token_report(self) -> str:
        filled = self.batch_size * self.sequence_length
        return (
            f"    Tokens: {self.tokens}, {self.tokens_per_second:.0f} Tokens/Sec    "
            f"Padding saved: {100 * self.padding_saved:.1f} % of {self.batch_size} × {self.sequence_length} = {filled}"
        )


def random_batch(card: EngineCard, batch_size: int, sequence_length: int, seed: int) -> PaddedBatch:
    """Full rows of random word pieces; the second half of each is the passage's segment."""
    shape = (batch_size, sequence_length)
    input_ids = np.random.default_rng(seed).integers(0, card.config.vocab_size, shape, np.int32)
    segment_ids = np.broadcast_to(_segments(card, sequence_length), shape).copy()
    return PaddedBatch(input_ids, segment_ids, np.ones(shape, np.int32))


def random_packed_batch(card: EngineCard, lengths: Sequence[int], seed: int) -> PackedBatch:
    """Sequences of random word pieces, of these lengths, end to end."""
    input_ids = np.random.default_rng(seed).integers(0, card.config.vocab_size, sum(lengths), np.int32)
    segment_ids = np.concatenate([_segments(card, length) for length in lengths])
    cu_seqlens = np.cumsum([0, *lengths], dtype=np.int32)
    return PackedBatch(input_ids, segment_ids, cu_seqlens, np.zeros(max(lengths), np.int32))


def spread_lengths(lengths: Sequence[int], count: int, seed: int) -> list[int]:
    """`count` lengths that are distributed as `lengths` are: the middles of `count` equal parts, in random order."""
    middles = (np.arange(count) + 0.5) / count
    chosen = np.quantile(np.asarray(lengths), middles, method="nearest")
    return np.random.default_rng(seed).permutation(chosen).tolist()


def _segments(card: EngineCard, length: int) -> np.ndarray:
    segments = np.zeros(length, np.int32)
    if card.config.type_vocab_size > 1:
        segments[length // 2 :] = 1
    return segments


def check_benchmark_outputs(args) -> None:
    """Say what can't be written before anything is timed. Raises DemoBertError."""
    named = args.config_dir, getattr(args, "lengths_from", None), getattr(args, "vocab_file", None)
    inputs = [file for path in named for file in input_files(path)]
    check_outputs({"--json": args.json, "--plot": args.plot}, (*EngineCard.set_of(args.engine), *inputs))


def default_sequence_length(args, card: EngineCard) -> int:
    return args.sequence_length or min(DEFAULT_SEQUENCE_LENGTH, card.max_sequence_length)


def asked_batch_sizes(args, card: EngineCard) -> list[int]:
    """The sizes of -b. Raises DemoBertError for one over the engine's largest, before memory is taken for it."""
    sizes = args.batch_size or [1]
    check_batch_size(max(sizes), card)
    return sizes


def time_batches(args, engine: Engine, batches: Sequence[Batch], sequence_length: int) -> None:
    """Time each batch, print its report, write --json and --plot. Raises DemoBertError for a batch that won't fit."""
    for batch in batches:  # a size that does not fit ends the run before the first is timed
        engine.check(batch)
    timings = []
    for batch in batches:
        print(f"Running {args.iterations} iterations with Batch Size: {batch.batch_size}", flush=True)
        latencies = _latencies(engine, batch, args.iterations, args.warm_up_runs, args.duration)
        timings.append(Timing.of(latencies, batch.batch_size, sequence_length, batch.input_ids.size))
        print(timings[-1].report(), flush=True)
        if engine.card.layout == "packed":
            print(timings[-1].token_report(), flush=True)
    if args.json:
        write_json(args.json, as_json(engine, timings))
    if args.plot:
        title = f"{engine.card.backend}, {engine.card.precisions}, length {sequence_length}"
        plot(timings, title, args.plot)


def _latencies(engine: Engine, batch: Batch, iterations: int, warm_up_runs: int, duration: float) -> np.ndarray:
    """Latencies of one batch, with a progress bar where somebody watches. See Engine.time for the arguments."""
    expected = iterations + warm_up_runs if not duration else None
    with tqdm(total=expected, unit="run", leave=False, disable=None) as progress:
        return engine.time(batch, iterations, warm_up_runs, duration, progress.update)


def as_json(engine: Engine, timings: list[Timing]) -> dict:
    """The report as plain values: the engine's card, its description, and a row for each batch size."""
    return {"engine": engine.describe(), "card": asdict(engine.card), "timings": [asdict(timing) for timing in timings]}


def plot(timings: list[Timing], title: str, path) -> None:
    """Latency percentiles against batch size, written to `path` as PNG."""
    timings = sorted(timings, key=lambda timing: timing.batch_size)
    batch_sizes = [timing.batch_size for timing in timings]
    figure, axes = new_figure(7, 4.5, "--plot")
    for name, label in (
        ("percentile_99_ms", "99th percentile"),
        ("percentile_95_ms", "95th percentile"),
        ("median_ms", "median"),
    ):
        axes.plot(batch_sizes, [getattr(timing, name) for timing in timings], marker="o", label=label)
    axes.set(xlabel="batch size", ylabel="latency (ms)", title=title, xticks=batch_sizes)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150)
