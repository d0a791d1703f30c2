"""The two interfaces every backend implements: NetworkLayers (to build) and Engine (to run)."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from helpers.batching import BATCH_OF_LAYOUT, Batch, PackedBatch, PaddedBatch
from helpers.engine_card import EngineCard
from helpers.errors import DemoBertError

#: Whatever a backend calls the output of a layer.
Tensor = Any


@dataclass(frozen=True)
class BuildOptions:
    """What builder.py was asked for, as far as it concerns a backend. Sizes are ascending, without repeats."""

    batch_sizes: tuple = (1,)
    sequence_lengths: tuple = (128,)
    layout: str = "padded"
    fp16: bool = False
    int8: bool = False
    fp8: bool = False
    strict: bool = False
    workspace_mib: int | None = None
    sparse: bool = False
    timing_cache: str | None = None
    distributive_independence: bool = False
    force_int8_skipln: bool = False
    force_int8_multihead: bool = False
    plugin_version: str | None = None
    network: str = "auto"
    verbose: bool = False
    bf16: bool = False
    compute_capabilities: tuple = ()
    interleaved: bool = False
    megatron: bool = False

    @property
    def max_batch_size(self) -> int:
        return self.batch_sizes[-1]

    @property
    def max_sequence_length(self) -> int:
        return self.sequence_lengths[-1]


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


class Normalised(NamedTuple):
    """A layer norm's output, and the sum that was normalised: the next residual of pre-normalised networks.

    `sum` is None where a backend's layer does not hand it out, which then is built for post-normalised networks only.
    """

    output: Tensor
    sum: Tensor


class NetworkLayers(ABC):
    """What BERT needs of an engine's layer vocabulary; `bert_network.py` speaks no other words.

    A backend creates its own inputs and output (names and shapes: design.md, "Contracts"), keeps activations in
    whatever layout and type it likes, and hands them on as opaque tensors. `name` is the canonical name of the
    weights (`l0_attention_self`, `l0_output_dense`…), which names the layers and finds quantization ranges.
    Dense kernels are float32 [out, in], biases [out].
    """

    @abstractmethod
    def embeddings(
        self,
        word: np.ndarray,
        token_type: np.ndarray,
        position: np.ndarray,
        gamma: np.ndarray,
        beta: np.ndarray,
        name: str,
    ) -> Normalised:
        """Sum of the three embeddings of every token ([V, E], [types, E], [P, E]), layer-normalised."""

    @abstractmethod
    def query_key_value(self, hidden: Tensor, kernel: np.ndarray, bias: np.ndarray, name: str) -> Tensor:
        """The three projections at once: kernel [3E, E] is query, key, value stacked; bias [3E]."""

    @abstractmethod
    def attention(self, query_key_value: Tensor, name: str) -> Tensor:
        """softmax(Q·Kᵀ/√H)·V in every head over each sequence's own tokens (arXiv:1706.03762); heads concatenated."""

    @abstractmethod
    def dense(self, hidden: Tensor, kernel: np.ndarray, bias: np.ndarray, name: str) -> Tensor:
        """hidden · kernelᵀ + bias."""

    @abstractmethod
    def gelu(self, hidden: Tensor, formula: str, name: str) -> Tensor:
        """GELU (arXiv:1606.08415): x·Φ(x), with Φ by "erf", or by the paper's "tanh" approximation."""

    @abstractmethod
    def add_and_normalise(
        self, branch: Tensor, residual: Tensor, gamma: np.ndarray, beta: np.ndarray, name: str
    ) -> Normalised:
        """Layer normalisation (arXiv:1607.06450) of branch + residual."""

    @abstractmethod
    def squad_output(self, hidden: Tensor, kernel: np.ndarray, bias: np.ndarray, name: str) -> None:
        """A dense to start and end logits, marked as the network's output `logits_out`."""


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

    def run_all(self, batches: Sequence[Batch], on_done: Callable[[int, np.ndarray], None]) -> None:
        """Run many batches as fast as the device can; `on_done(index, logits)` is called once for each, in any order."""
        for index, batch in enumerate(batches):
            on_done(index, self.run(batch))

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
        run_once = self._timed_run(batch)
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
    def _timed_run(self, batch: Batch) -> Callable[[], float]:
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
        if any(array.dtype != np.int32 for array in batch.inputs().values()):
            raise DemoBertError("inputs must be int32")
        if card.layout == "packed":
            _check_packed(batch)
        else:
            _check_padded(batch)
        _check_sizes(batch, card)
        if card.config is not None:
            _check_ids(batch.input_ids, "token", card.config.vocab_size)
            _check_ids(batch.segment_ids, "segment", card.config.type_vocab_size)


def _check_padded(batch: PaddedBatch) -> None:
    shapes = {array.shape for array in batch.inputs().values()}
    if len(shapes) != 1 or batch.input_ids.ndim != 2 or batch.input_ids.size == 0:
        raise DemoBertError(f"inputs must be three equal, non-empty [batch, sequence] arrays, not {sorted(shapes)}")
    mask = batch.input_mask
    if not np.isin(mask, (0, 1)).all() or (np.diff(mask, axis=1) > 0).any() or not mask[:, 0].all():
        raise DemoBertError("the input mask must be ones on each row's leading tokens, then zeros")


def _check_packed(batch: PackedBatch) -> None:
    for name, array in batch.inputs().items():
        if array.ndim != 1 or array.size == 0:
            shape = list(array.shape)
            raise DemoBertError(f"{name} must be an array of one dimension, not empty, and has the shape {shape}")
    tokens, starts = batch.token_count, batch.cu_seqlens.astype(np.int64)
    if len(batch.segment_ids) != tokens:
        raise DemoBertError(f"there are {tokens} input_ids and {len(batch.segment_ids)} segment_ids")
    if len(starts) < 2:
        raise DemoBertError("cu_seqlens must hold at least two numbers: where a sequence begins and where it ends")
    if starts[0] != 0:
        raise DemoBertError(f"cu_seqlens must start at 0, not at {starts[0]}")
    lengths = np.diff(starts)
    if (lengths < 0).any():
        where = int((lengths < 0).argmax())
        raise DemoBertError(f"cu_seqlens must ascend: {starts[where]} is followed by {starts[where + 1]}")
    if (lengths == 0).any():
        raise DemoBertError(f"sequence {int((lengths == 0).argmax())} has no tokens (cu_seqlens repeats a number)")
    if starts[-1] != tokens:
        raise DemoBertError(f"cu_seqlens must end at the number of tokens, {tokens}, not at {starts[-1]}")
    if lengths.max() > batch.sequence_length:
        raise DemoBertError(f"max_seqlen has the length {batch.sequence_length}, a sequence has {lengths.max()} tokens")


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
