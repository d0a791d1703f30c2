"""Timing an engine: random inputs, the loop's report, JSON, plot."""

from dataclasses import asdict, dataclass

import numpy as np
from tqdm import tqdm

from helpers.backends.base import Engine
from helpers.batching import PaddedBatch
from helpers.engine_card import EngineCard
from helpers.errors import missing_package
from helpers.files import atomic_write

#: Ids to draw from where an engine without a card does not tell its vocabulary: fewer than any BERT has.
_SAFE_VOCAB_SIZE = 100


@dataclass(frozen=True)
class Timing:
    """Latencies of one batch size, in ms; `sentences_per_second` counts every row of the batch."""

    batch_size: int
    sequence_length: int
    iterations: int
    total_ms: float
    average_ms: float
    median_ms: float
    percentile_95_ms: float
    percentile_99_ms: float
    sentences_per_second: float

    @classmethod
    def of(cls, latencies: np.ndarray, batch_size: int, sequence_length: int) -> "Timing":
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
        )

    def report(self) -> str:
        return (
            f"    Total Time: {self.total_ms:.3f} ms for {self.iterations} iterations\n"
            f"    Average Time: {self.average_ms:.3f} ms    Median Time: {self.median_ms:.3f} ms\n"
            f"    95th Percentile Time: {self.percentile_95_ms:.3f} ms    "
            f"99th Percentile Time: {self.percentile_99_ms:.3f} ms\n"
            f"    Throughput: {self.sentences_per_second:.3f} Sentences/Sec"
        )


def random_batch(card: EngineCard, batch_size: int, sequence_length: int, seed: int) -> PaddedBatch:
    """Full rows of random word pieces; the second half of each is the passage's segment."""
    random = np.random.default_rng(seed)
    vocab_size = card.config.vocab_size if card.config else _SAFE_VOCAB_SIZE
    shape = (batch_size, sequence_length)
    segments = np.zeros(shape, np.int32)
    if card.config is None or card.config.type_vocab_size > 1:
        segments[:, sequence_length // 2 :] = 1
    return PaddedBatch(random.integers(0, vocab_size, shape, np.int32), segments, np.ones(shape, np.int32))


def time_batch(engine: Engine, batch: PaddedBatch, iterations: int, warm_up_runs: int, duration: float) -> Timing:
    """Time one batch on `engine`, with a progress bar where somebody watches. See Engine.time for the arguments."""
    expected = iterations + warm_up_runs if not duration else None
    with tqdm(total=expected, unit="run", leave=False, disable=None) as progress:
        latencies = engine.time(batch, iterations, warm_up_runs, duration, progress.update)
    return Timing.of(latencies, batch.batch_size, batch.sequence_length)


def as_json(engine: Engine, timings: list[Timing]) -> dict:
    """The report as plain values: the engine's card, its description, and a row for each batch size."""
    return {"engine": engine.describe(), "card": asdict(engine.card), "timings": [asdict(timing) for timing in timings]}


def plot(timings: list[Timing], title: str, path) -> None:
    """Latency percentiles against batch size, written to `path` as PNG."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_package("matplotlib", "matplotlib", "--plot") from error
    timings = sorted(timings, key=lambda timing: timing.batch_size)
    batch_sizes = [timing.batch_size for timing in timings]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
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
