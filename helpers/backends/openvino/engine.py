"""Compile BERT for the CPU, write it as a blob, load the blob, run it."""

import queue
import time
from pathlib import Path
from typing import Callable, Sequence

import numpy as np
import openvino as ov

from helpers.backends.base import BuildOptions, BuiltEngine, Engine
from helpers.backends.openvino.layers import OpenVINOLayers
from helpers.batching import PaddedBatch
from helpers.bert_config import BertConfig
from helpers.bert_network import build_bert
from helpers.engine_card import EngineCard
from helpers.errors import DemoBertError, UsageError
from helpers.weights import BertWeights

DEVICE = "CPU"

#: OpenVINO's type for each precision of the card.
_TYPES = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


def half_precision(core: ov.Core) -> str:
    """The half type that this CPU computes in: "bf16", "fp16", or "fp32" where it has neither."""
    capabilities = core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
    return "bf16" if "BF16" in capabilities else "fp16" if "FP16" in capabilities else "fp32"


def build(config: BertConfig, weights: BertWeights, gelu: str, options: BuildOptions) -> BuiltEngine:
    """Compile BERT for this machine's CPU. One engine serves every batch size and length up to the largest."""
    _refuse_what_is_missing(options)
    core = ov.Core()
    layers = OpenVINOLayers(config, options.max_batch_size, options.max_sequence_length)
    build_bert(layers, config, weights, gelu)
    precision = half_precision(core) if options.fp16 else "fp32"
    settings = {"INFERENCE_PRECISION_HINT": _TYPES[precision]}
    blob = core.compile_model(layers.model(), DEVICE, settings).export_model().getbuffer()
    device = core.get_property(DEVICE, "FULL_DEVICE_NAME")
    return BuiltEngine(blob, _build_number(), device, "layers", [precision])


def load(path: Path, card: EngineCard | None, throughput: bool) -> "OpenVINOEngine":
    """Load a blob. `throughput` trades the latency of one batch for the rate of many (`run_all`)."""
    settings = {"PERFORMANCE_HINT": "THROUGHPUT" if throughput else "LATENCY"}
    for built_with in (card and card.backend_version, blob_facts(path).get("ov")):
        if built_with and built_with != _build_number():
            raise DemoBertError(f"{path} was built with OpenVINO {built_with}, this is {_build_number()}; build it again")
    if card is not None:
        settings["INFERENCE_PRECISION_HINT"] = _TYPES[card.precision[-1]]
    compiled = _import(path, settings)
    return OpenVINOEngine(card or _guess_card(path, compiled), compiled)


def _refuse_what_is_missing(options: BuildOptions) -> None:
    if options.int8 or options.fp8:
        raise UsageError(f"--{'int8' if options.int8 else 'fp8'} is not on the openvino backend yet; take --fp16 or fp32")
    if options.network != "auto":
        raise UsageError(f"--network {options.network} is a form of TensorRT's; the openvino backend has one form only")


class OpenVINOEngine(Engine):
    """A compiled model and a request to run it."""

    def __init__(self, card: EngineCard, compiled: ov.CompiledModel):
        super().__init__(card)
        self._compiled = compiled
        self._request = compiled.create_infer_request()

    def _infer(self, batch: PaddedBatch) -> np.ndarray:
        self._request.infer(_inputs(batch), share_inputs=True)
        return self._request.get_output_tensor(0).data.copy()

    def run_all(self, batches: Sequence[PaddedBatch], on_done: Callable[[int, np.ndarray], None]) -> None:
        requests = ov.AsyncInferQueue(self._compiled)
        finished = queue.SimpleQueue()  # callbacks come on OpenVINO's threads; on_done is called on this one
        requests.set_callback(lambda request, index: finished.put((index, request.get_output_tensor(0).data.copy())))
        for index, batch in enumerate(batches):
            self.check(batch)
            requests.start_async(_inputs(batch), index)  # copies the inputs: the batch is gone before the run ends
            while not finished.empty():
                on_done(*finished.get())
        requests.wait_all()
        while not finished.empty():
            on_done(*finished.get())

    def _timed_run(self, batch: PaddedBatch) -> Callable[[], float]:
        request = self._compiled.create_infer_request()
        for name, array in _inputs(batch).items():
            request.set_tensor(name, ov.Tensor(array, shared_memory=True))

        def run_once() -> float:
            start = time.perf_counter()
            request.infer()
            return (time.perf_counter() - start) * 1e3

        return run_once

    def describe(self) -> str:
        threads = self._compiled.get_property("INFERENCE_NUM_THREADS")
        streams = self._compiled.get_property("NUM_STREAMS")
        precision = "+".join(self.card.precision)
        return (
            f"OpenVINO {_build_number()} on {self.card.device}: {precision}, {threads} threads in {streams} streams, "
            f"batch size up to {self.card.max_batch_size}, sequence length up to {self.card.max_sequence_length}"
        )


def _inputs(batch: PaddedBatch) -> dict:
    arrays = {"input_ids": batch.input_ids, "segment_ids": batch.segment_ids, "input_mask": batch.input_mask}
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def blob_facts(path: Path) -> dict:
    """What a blob's header says of its origin: {"ov": OpenVINO's version, "isa": the CPU's instruction set}.

    The header (seen in OpenVINO 2026.4): 8 bytes of magic, uint32 version, uint64 length, then `key=value;…`.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(20)[12:], "little")
        text = file.read(min(length, 4096)).decode("ascii", "replace")
    return dict(fact.split("=", 1) for fact in text.split(";") if "=" in fact)


def _build_number() -> str:
    """ "2026.4.1" of "2026.4.1-22982-e213a147257-releases/2026/4"."""
    return ov.__version__.split("-")[0]


def _import(path: Path, settings: dict) -> ov.CompiledModel:
    try:
        return ov.Core().import_model(path.read_bytes(), DEVICE, settings)
    except OSError as error:
        raise DemoBertError(f"the engine {path} can't be read: {error.strerror}") from error
    except (RuntimeError, ValueError) as error:  # ValueError: a damaged string inside the blob
        isa = blob_facts(path).get("isa", "another machine")
        raise DemoBertError(
            f"OpenVINO can't load the engine {path}: it is damaged, or built for another CPU ({isa}); build it again"
        ) from error


def _guess_card(path: Path, compiled: ov.CompiledModel) -> EngineCard:
    """A card from what the blob itself tells; text is guessed to be lower-cased, as for most English BERTs."""
    names = [value.get_any_name() for value in compiled.inputs]
    if names != ["input_ids", "segment_ids", "input_mask"]:
        raise DemoBertError(f"{path} is an OpenVINO blob, but not one of builder.py's: its inputs are {names}")
    batch, length = compiled.inputs[0].get_partial_shape()
    types = {value: key for key, value in _TYPES.items()}
    precision = types.get(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name(), "fp32")
    return EngineCard(
        backend="openvino",
        backend_version=_build_number(),
        device=compiled.get_property("EXECUTION_DEVICES")[0],
        layout="padded",
        network="layers",
        precision=[precision],
        batch_sizes=[batch.get_max_length()],
        sequence_lengths=[length.get_max_length()],
        config=None,
        do_lower_case=True,
        vocab_file=None,
        vocab_sha256=None,
        engine_sha256="",
        engine_bytes=path.stat().st_size,
        settings={},
    )
