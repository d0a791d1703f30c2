"""A torch network as an engine, so that questions are answered, and measured, by the scripts' own loop."""

import time

import torch

from helpers.backends.base import Engine
from helpers.batching import PaddedBatch
from helpers.engine_card import EngineCard
from helpers.finetuning.network import Network


class TorchEngine(Engine):
    """`network` behind the interface of an engine: padded batches of any size up to the limits given."""

    def __init__(self, network: Network, max_batch_size: int, max_sequence_length: int, do_lower_case: bool):
        self._network = network
        super().__init__(
            EngineCard(
                backend="torch",
                backend_version=torch.__version__,
                device=str(network.device),
                layout="padded",
                network="layers",
                precision=["bf16" if network.half else "fp32"],
                batch_sizes=[max_batch_size],
                sequence_lengths=[max_sequence_length],
                config=network.config,
                do_lower_case=do_lower_case,
                vocab_file=None,
                vocab_sha256=None,
                engine_sha256=None,
                engine_bytes=0,
                settings={},
            )
        )

    def _infer(self, batch: PaddedBatch):
        with torch.inference_mode():
            return self._network.run(batch)[0].cpu().numpy()

    def _timed_run(self, batch: PaddedBatch):
        def run_once() -> float:
            start = time.perf_counter()
            self._infer(batch)
            return 1000.0 * (time.perf_counter() - start)

        return run_once

    def describe(self) -> str:
        return f"torch {self.card.backend_version}, {self.card.precision[0]} on {self.card.device}"
