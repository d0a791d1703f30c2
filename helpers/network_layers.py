"""The words that BERT is written in: `bert_network.py` speaks no others, and each backend translates them."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np

#: Whatever a backend calls the output of a layer.
Tensor = Any


class Normalised(NamedTuple):
    """A layer norm's output, and the sum that was normalised: the next residual of pre-normalised networks.

    `sum` is None where a backend's layer does not hand it out, which then is built for post-normalised networks only.
    """

    output: Tensor
    sum: Tensor


class NetworkLayers(ABC):
    """What BERT needs of an engine's layer vocabulary.

    A backend creates its own inputs and output (names and shapes: docs/architecture.md, "Contracts"), keeps activations
    in whatever layout and type it likes, and hands them on as opaque tensors. `name` is the canonical name of the
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
        """Sum of the three embeddings of every token ([V, E], [types, E], [P, E]), layer-normalised.

        E is the hidden size, but where a projection follows.
        """

    @abstractmethod
    def projection(self, hidden: Tensor, kernel: np.ndarray, bias: np.ndarray, name: str) -> Tensor:
        """hidden · kernelᵀ + bias: embeddings of a size of their own to the hidden size; in no network quantized."""

    @abstractmethod
    def query_key_value(self, hidden: Tensor, kernel: np.ndarray, bias: np.ndarray, name: str) -> Tensor:
        """The three projections at once: kernel [3·N·H, E] is query, key, value stacked, each [N·H, E]; bias [3·N·H]."""

    @abstractmethod
    def attention(self, query_key_value: Tensor, heads: int, name: str) -> Tensor:
        """softmax(Q·Kᵀ/√H)·V in every head over each sequence's own tokens (arXiv:1706.03762); heads concatenated, N·H."""

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
