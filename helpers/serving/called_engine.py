"""An engine that is another model of the same Triton server, which batches what several callers ask of it."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

from helpers.backends.base import Engine
from helpers.batching import Batch, PackedBatch, PaddedBatch
from helpers.engine_card import EngineCard
from helpers.errors import DemoBertError

OUTPUT = "logits_out"


@dataclass(frozen=True)
class CalledModel:
    """The Triton model that runs an engine.

    lengths   padded: the lengths that its profiles take, ascending
    rows      padded: of a plan that takes one shape only, its rows; else None
    """

    name: str
    lengths: list[int] = field(default_factory=list)
    rows: int | None = None


class CalledEngine(Engine):
    """An `Engine` that runs as another Triton model; its card lies where the engine's own would.

    A packed batch goes there as a request for each sequence: Triton packs them again, with what others ask meanwhile.
    """

    def __init__(self, card: EngineCard, model: CalledModel):
        super().__init__(card)
        self._model = model
        self._threads = ThreadPoolExecutor(card.max_batch_size) if card.layout == "packed" else None

    @classmethod
    def of(cls, path, model: CalledModel) -> "CalledEngine":
        """By the card of the engine that would be at `path`. Raises DemoBertError."""
        return cls(EngineCard.read(EngineCard.path_for(Path(path))), model)

    def close(self) -> None:
        if self._threads:
            self._threads.shutdown()

    def padded_length(self, length: int) -> int:
        """Profiles have one length each: the shortest that holds `length` tokens; `length` itself where none does."""
        return min((own for own in self._model.lengths if own >= length), default=length)

    def _infer(self, batch: Batch) -> np.ndarray:
        if not isinstance(batch, PackedBatch):
            return self._padded(batch)
        sequences = [
            {"input_ids": batch.input_ids[None, first:last], "segment_ids": batch.segment_ids[None, first:last]}
            for first, last in itertools.pairwise(batch.cu_seqlens)
        ]
        return np.concatenate([logits.reshape(-1, 2) for logits in self._threads.map(self._call, sequences)])

    def _padded(self, batch: PaddedBatch) -> np.ndarray:
        rows, length = batch.input_ids.shape
        wide = self.padded_length(length)
        missing = (self._model.rows or rows) - rows

        def padded(array):
            columns = np.pad(array, ((0, 0), (0, wide - length)))
            return np.concatenate([columns, np.repeat(columns[:1], missing, axis=0)])

        logits = self._call({name: padded(array) for name, array in batch.inputs().items()})
        return logits.reshape(rows + missing, wide, 2)[:rows, :length]

    def _call(self, inputs: dict) -> np.ndarray:
        request = pb_utils.InferenceRequest(
            model_name=self._model.name,
            requested_output_names=[OUTPUT],
            inputs=[pb_utils.Tensor(name, np.ascontiguousarray(array)) for name, array in inputs.items()],
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        )
        response = request.exec()
        if response.has_error():
            raise DemoBertError(f"the model {self._model.name} failed: {response.error().message()}")
        return pb_utils.get_output_tensor_by_name(response, OUTPUT).as_numpy()

    def timed_run(self, batch):
        raise NotImplementedError("times of a called engine are the server's: its metrics tell them")

    def describe(self) -> str:
        card = self.card
        return f"the Triton model {self._model.name}: {card.backend} {card.backend_version}, {card.layout}"
