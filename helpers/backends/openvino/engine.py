"""Compile BERT for the CPU, write it as a blob, load the blob, run it."""

import functools
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino as ov
from openvino import opset13 as op
from openvino.passes import ConstantFolding, Manager

from helpers.backends.base import BuiltEngine, Engine, Prepared
from helpers.backends.openvino.layers import PackedLayers, PaddedLayers
from helpers.batching import INPUT_NAMES, Batch
from helpers.bert_config import BertConfig
from helpers.bert_network import build_bert
from helpers.build_options import BuildOptions
from helpers.engine_card import EngineCard, EngineFacts
from helpers.errors import DemoBertError, UsageError, is_short_of_memory
from helpers.quantization import LARGEST, Quantization
from helpers.weights import BertWeights

DEVICE = "CPU"

#: Batches of a SQuAD file are padded to a multiple of so many tokens.
LENGTH_MULTIPLE = 16

#: OpenVINO's type for each precision of the card.
TYPES = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}

#: The form of the network in each layout.
LAYERS = {"padded": PaddedLayers, "packed": PackedLayers}

_OVERFLOW_NOTE = (
    "Note: int8 products overflow on this CPU (no VNNI): the engine rounds to int8 and multiplies in float, "
    "with int8's accuracy at fp32's speed"
)


def half_precision(core: ov.Core) -> str:
    """The half type that this CPU computes in: "bf16", "fp16", or "fp32" where it has neither."""
    capabilities = core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
    return "bf16" if "BF16" in capabilities else "fp16" if "FP16" in capabilities else "fp32"


def int8_overflows(core: ov.Core) -> bool:
    """Whether this CPU adds int8 products in 16 bits, which saturate (vpmaddubsw): x86 without VNNI does.

    OpenVINO does not tell, so a dense layer of the largest integers is tried.
    """
    largest, ones = int(LARGEST["int8"]), np.ones((1, 16, 64), np.float32)
    quantization = Quantization("int8", {"probe_input_amax": np.float32(largest)}, "the probe")
    hidden = op.parameter(ones.shape, np.float32)
    layers = PaddedLayers(None, 1, 1, quantization)  # one dense layer needs no configuration
    product = layers.dense(hidden, largest * ones[0], np.zeros(16, np.float32), "probe")
    model = ov.Model([op.result(product)], [hidden], "probe")
    sums = core.compile_model(model, DEVICE, {"INFERENCE_PRECISION_HINT": "f32"})(largest * ones)[0]
    return not np.allclose(sums, 64 * largest**2)


def compile_network(core: ov.Core, model: ov.Model, precision: str, multiply_in_float: bool) -> ov.CompiledModel:
    """Compile for this CPU, `precision` for what is not int8. `multiply_in_float`: int8 values, float products.

    The values are rounded alike; sums are off by float's own rounding. Kernels become float, too: the engine is as large
    as fp32's, and 7 % faster than one that unpacks int8 in each product.
    """
    settings = {"INFERENCE_PRECISION_HINT": TYPES[precision]}
    if multiply_in_float:
        passes = Manager()
        passes.register_pass(ConstantFolding())
        passes.run_passes(model)
        settings["LP_TRANSFORMS_MODE"] = False  # undocumented: leave FakeQuantize as it is
    return core.compile_model(model, DEVICE, settings)


class PreparedOpenVINO(Prepared):
    """Compiles BERT for this machine's CPU. One engine serves every batch size and length up to the largest.

    Raises UsageError for what this CPU or OpenVINO can't do.
    """

    def __init__(self, config: BertConfig, options: BuildOptions):
        super().__init__(config, options)
        self._core = ov.Core()
        check_options(self._core, options)

    def _build(self, weights: BertWeights, quantization: Quantization | None) -> BuiltEngine:
        core, options = self._core, self.options
        sizes = (options.max_batch_size, options.max_sequence_length)
        attention = quantization is not None and self._quantizes_attention(quantization)
        layers = LAYERS[options.layout](weights.config, *sizes, quantization, attention)
        build_bert(layers, weights.config, weights, options.megatron)
        precision = half_precision(core) if options.precision == "fp16" else options.precision
        precisions = [precision] if quantization is None else [quantization.kind, precision]
        overflows = quantization is not None and int8_overflows(core)
        model = layers.model(EngineFacts(precisions, weights.config).network_name())
        blob = compile_network(core, model, precision, overflows).export_model().getbuffer()
        device = core.get_property(DEVICE, "FULL_DEVICE_NAME")
        notes = [_OVERFLOW_NOTE] if overflows else []
        notes += [f"--fp16: this CPU's half type is {precision}"] if options.precision == "fp16" else []
        return BuiltEngine(blob, _build_number(), device, "layers", precisions, notes=notes)

    def _quantizes_attention(self, quantization: Quantization) -> bool:
        """Whether query and key meet in int8: where it is asked for; and where half precision asks for speed, not for
        float32's accuracy, and no training says what may be rounded."""
        calibrated_for_speed = not quantization.trained and self.options.precision != "fp32"
        return self.options.force_int8_multihead or calibrated_for_speed


def load(path: Path, card: EngineCard | None, throughput: bool, config: BertConfig | None = None) -> "OpenVINOEngine":
    """Load a blob. `throughput` trades the latency of one batch for the rate of many (`submit`).

    Without a card its network tells its precision, which has to be known before it is imported to be run; `config` is
    what the user says of it. Raises DemoBertError.
    """
    settings = {"PERFORMANCE_HINT": "THROUGHPUT" if throughput else "LATENCY"}
    for built_with in (card and card.backend_version, blob_facts(path).get("ov")):
        if built_with and built_with != _build_number():
            raise DemoBertError(
                f"{path} was built with OpenVINO {built_with}, this is {_build_number()}; build it again"
            )
    if card is None:
        card = _card_told_by(path, _import(path, settings), config)
    settings["INFERENCE_PRECISION_HINT"] = _type_of(path, card)
    compiled = _import(path, settings)
    _check_sizes(path, card, compiled)
    return OpenVINOEngine(card, compiled)


def _type_of(path: Path, card: EngineCard) -> str:
    if not card.precision:
        raise DemoBertError(f"{path} does not tell in what precision it was built; build it again")
    if card.precision[-1] not in TYPES:
        raise DemoBertError(f"{path} computes in {card.precision[-1]} by its card, openvino's never do; build it again")
    return TYPES[card.precision[-1]]


def _check_sizes(path: Path, card: EngineCard, compiled: ov.CompiledModel) -> None:
    named, served = (card.layout, card.max_batch_size, card.max_sequence_length), _blob_sizes(path, compiled)
    if named != served:
        raise DemoBertError(
            f"{path} serves layout, batch size and sequence length {served}, its card says {named}; build it again"
        )


def check_options(core: ov.Core, options: BuildOptions) -> None:
    """Raises UsageError for what this CPU or OpenVINO can't do."""
    if options.precision == "bf16" and "BF16" not in core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"):
        raise UsageError(
            "this CPU does not compute in bfloat16; take --fp16 (its own half type, if it has one) or fp32"
        )
    if options.quantize == "fp8":
        raise UsageError("--fp8 takes an NVIDIA GPU and a native TensorRT network; the CPU has --int8")
    if options.network != "auto":
        raise UsageError(f"--network {options.network} is a form of TensorRT's; the openvino backend has one form only")


class OpenVINORun:
    """A batch in one of OpenVINO's requests, which `release` takes back when the logits are there.

    Waiting for it, not being called back, keeps Python's lock out of OpenVINO's threads.
    """

    def __init__(self, request: ov.InferRequest, inputs: dict, release: Callable[[ov.InferRequest], object]):
        self._request, self._release = request, release
        self._inputs = inputs  # OpenVINO does not hold the arrays: this does
        request.start_async(inputs, share_inputs=True)

    def result(self) -> np.ndarray:
        self._request.wait()
        logits = self._request.get_output_tensor(0).data.copy()
        self._release(self._request)
        return logits


class OpenVINOEngine(Engine):
    """A compiled model and a request to run it."""

    def __init__(self, card: EngineCard, compiled: ov.CompiledModel):
        super().__init__(card)
        self._compiled = compiled
        self._request = compiled.create_infer_request()
        self._idle: list[ov.InferRequest] = []

    def _infer(self, batch: Batch) -> np.ndarray:
        self._request.infer(_inputs(batch), share_inputs=True)
        return self._request.get_output_tensor(0).data.copy()

    @functools.cached_property  # it is asked for with every batch
    def parallel_runs(self) -> int:
        # Two requests a stream: one runs while the other's input is prepared.
        return 2 * self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")

    def submit(self, batch: Batch) -> "OpenVINORun":
        self.check(batch)
        request = self._idle.pop() if self._idle else self._compiled.create_infer_request()
        return OpenVINORun(request, _inputs(batch), self._idle.append)

    def close(self) -> None:
        self._compiled = self._request = None
        self._idle.clear()

    def padded_length(self, length: int) -> int:
        # Every new length has kernels compiled for it (3 to 4 ms), and they work on blocks of 16 rows anyway.
        return min(-(-length // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, self.card.max_sequence_length)

    def timed_run(self, batch: Batch) -> Callable[[], float]:
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
        return (
            f"OpenVINO {_build_number()} on {self.card.device}: {self.card.layout}, {self.card.precisions}, "
            f"{threads} threads in {streams} streams, "
            f"batch size up to {self.card.max_batch_size}, sequence length up to {self.card.max_sequence_length}"
        )


def _inputs(batch: Batch) -> dict:
    return {name: np.ascontiguousarray(array) for name, array in batch.inputs().items()}


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
        if is_short_of_memory(error):
            raise MemoryError from error
        isa = blob_facts(path).get("isa", "another machine")
        raise DemoBertError(
            f"OpenVINO can't load the engine {path}: it is damaged, or built for another CPU ({isa}); build it again"
        ) from error


def _card_told_by(path: Path, compiled: ov.CompiledModel, config: BertConfig | None) -> EngineCard:
    """The card of a blob that has none. Raises DemoBertError where neither it nor `config` tells the tables' sizes."""
    layout, batch_size, length = _blob_sizes(path, compiled)
    facts = EngineFacts.told(path, compiled.get_property("NETWORK_NAME"), config)
    return EngineCard(
        backend="openvino",
        backend_version=_build_number(),
        device=compiled.get_property("EXECUTION_DEVICES")[0],
        layout=layout,
        network="layers",
        precision=facts.precision,
        batch_sizes=[batch_size],
        sequence_lengths=[length],
        config=facts.config,
        engine_bytes=path.stat().st_size,
    )


def _blob_sizes(path: Path, compiled: ov.CompiledModel) -> tuple[str, int, int]:
    """Layout, largest batch size and longest sequence, from the blob's inputs. Raises DemoBertError for others'."""
    names = [value.get_any_name() for value in compiled.inputs]
    largest = [[size.get_max_length() for size in value.get_partial_shape()] for value in compiled.inputs]
    if names == list(INPUT_NAMES["padded"]):
        return "padded", largest[0][0], largest[0][1]
    if names == list(INPUT_NAMES["packed"]):
        return "packed", largest[2][0] - 1, largest[3][0]
    raise DemoBertError(f"{path} is an OpenVINO blob, but not one of builder.py's: its inputs are {names}")
