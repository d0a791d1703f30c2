"""What every backend implements: `Prepared` (builds an engine) and `Engine` (runs one)."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from helpers.batching import BATCH_OF_LAYOUT, Batch, PackedBatch
from helpers.bert_config import BertConfig
from helpers.build_options import BuildOptions
from helpers.engine_card import EngineCard
from helpers.errors import DemoBertError, UsageError
from helpers.quantization import Quantization
from helpers.weights import BertWeights


@dataclass(frozen=True)
class BuiltEngine:
    """A compiled network and what its card has to say. `precision`, `network`, `settings`: see EngineCard.

    `notes`: what whoever builds it should know, a line each.
    """

    data: bytes | memoryview
    backend_version: str
    device: str
    network: str
    precision: list
    settings: dict = field(default_factory=dict)
    notes: list = field(default_factory=list)


class Prepared(ABC):
    """What a backend's `prepare` returns: it has seen what is to be built, and that device and release can do it."""

    def __init__(self, config: BertConfig, options: BuildOptions):
        self.config = config
        self.options = options

    def build(self, weights: BertWeights, quantization: Quantization | None = None) -> BuiltEngine:
        """Build the engine; `quantization` is of the kind that `options.quantize` asks for. Raises DemoBertError."""
        kind = quantization and quantization.kind
        if kind != self.options.quantize:
            raise UsageError(f"the options ask for {self.options.quantize} ranges, and those of {kind} are given")
        return self._build(weights, quantization)

    @abstractmethod
    def _build(self, weights: BertWeights, quantization: Quantization | None) -> BuiltEngine:
        """`build`, checked."""


class Run:
    """A batch that the engine has run."""

    def __init__(self, logits: np.ndarray):
        self._logits = logits

    def result(self) -> np.ndarray:
        return self._logits


class Engine(ABC):
    """A loaded engine. Not thread-safe: one engine per thread."""

    def __init__(self, card: EngineCard):
        self.card = card

    @abstractmethod
    def _infer(self, batch: Batch) -> np.ndarray:
        """Run one checked batch of the engine's layout; logits float32 [B, S, 2], or packed [T, 2]."""

    def run(self, batch: Batch) -> np.ndarray:
        """Start and end logits of one batch, float32 [B, S, 2], or [T, 2] of a packed engine.

        Raises DemoBertError if the batch is not of the engine's layout, is not well formed, or does not fit.
        """
        self.check(batch)
        return self._infer(batch)

    #: How many submitted batches it works on at once.
    parallel_runs = 1

    def submit(self, batch: Batch) -> "Run":
        """Begin to run one batch; its logits, as `run` gives them, are the result of what is returned.

        An engine that can't do several at once runs it now. Raises DemoBertError, here or with the result.
        """
        return Run(self.run(batch))

    def close(self) -> None:  # noqa: B027 (most need nothing)
        """Let go of the device and the memory; the engine can't be used afterwards."""

    def padded_length(self, length: int) -> int:
        """The length to pad a batch to whose longest row has `length` tokens; engines of fixed lengths round it up."""
        return length

    def time(
        self,
        batch: Batch,
        iterations: int,
        warm_up_runs: int = 0,
        duration: float = 0.0,
        on_run: Callable[[], object] = lambda: None,
    ) -> np.ndarray:
        """Latencies in ms of running `batch` again and again, float64 [n].

        At least `iterations` runs, and as many more as fit into `duration` seconds, after `warm_up_runs` that do
        not count. Copies of the inputs to the device are not timed, where there are any. `on_run` is called after
        each run, outside the time taken.
        """
        self.check(batch)
        run_once = self.timed_run(batch)
        for _ in range(warm_up_runs):
            run_once()
            on_run()
        latencies = []
        end = time.perf_counter() + duration
        while len(latencies) < iterations or time.perf_counter() < end:
            latencies.append(run_once())
            on_run()
        return np.array(latencies)

    @abstractmethod
    def timed_run(self, batch: Batch) -> Callable[[], float]:
        """A function that runs `batch` once and returns the ms it took."""

    @abstractmethod
    def describe(self) -> str:
        """One line for people: backend, device, precision, sizes."""

    def check(self, batch: Batch) -> None:
        """Raises DemoBertError unless `batch` is well formed and fits the engine's sizes and embedding tables."""
        card = self.card
        wanted = BATCH_OF_LAYOUT[card.layout]
        if not isinstance(batch, wanted):
            given = type(batch).__name__
            raise DemoBertError(f"this is a {card.layout} engine: it takes a {wanted.__name__}, not a {given}")
        batch.check()
        _check_sizes(batch, card)
        _check_ids(batch.input_ids, "token", card.config.vocab_size)
        _check_ids(batch.segment_ids, "segment", card.config.type_vocab_size)


def _check_sizes(batch: Batch, card: EngineCard) -> None:
    if batch.sequence_length > card.max_sequence_length:
        raise DemoBertError(
            f"sequence length {batch.sequence_length} is over this engine's longest, "
            f"{card.max_sequence_length}; rebuild it with -s {batch.sequence_length}"
        )
    if isinstance(batch, PackedBatch) and batch.token_count > card.max_tokens:
        raise DemoBertError(
            f"{batch.token_count} tokens are over this engine's most, {card.max_tokens} "
            f"({card.max_batch_size} × {card.max_sequence_length}); rebuild it with a larger -b"
        )
    check_batch_size(batch.batch_size, card)


def check_batch_size(batch_size: int, card: EngineCard) -> None:
    """Raises DemoBertError for more sequences than the engine takes at once."""
    if batch_size > card.max_batch_size:
        raise DemoBertError(
            f"batch size {batch_size} is over this engine's largest, {card.max_batch_size}; "
            f"rebuild it with -b {batch_size}"
        )


def _check_ids(ids: np.ndarray, kind: str, table_size: int) -> None:
    if ids.min() < 0 or ids.max() >= table_size:
        raise DemoBertError(f"a {kind} id is outside the model's {table_size}: {ids.min()} to {ids.max()}")
