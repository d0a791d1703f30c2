"""This project's engines as builder.py builds them, and NNCF's quantization of the same network.

All that the benchmarks ask of the helpers' building side stands here.
"""

from functools import cached_property
from pathlib import Path

import numpy as np

from helpers import calibrator
from helpers.backends import backend_module, load_engine, write_engine
from helpers.batching import PaddedBatch
from helpers.build_options import CALIBRATION_METHODS, BuildOptions
from helpers.building import build_folder
from helpers.model_folder import ModelFolder
from helpers.quantization import Quantization
from helpers.squad import read_squad
from helpers.weights import load_weights

#: What int8 is calibrated on, ours and NNCF's alike: windows of a SQuAD file, or, without one, random ones.
CALIBRATION_WINDOWS = 100
RANDOM_CALIBRATION_WINDOWS = 8

#: This engine's forms: what the tables call them → BuildOptions, as builder.py sets them.
FORMS = {"fp32": {}, "bf16": {"precision": "fp16"}, "int8": {"precision": "fp16", "quantize": "int8"}}


class EngineBuilder:
    """Builds engines of the model folder `model` and writes them into `folder`.

    int8 is calibrated on windows of up to `length` tokens of the SQuAD file `calibration` (None: on random ids).
    """

    def __init__(self, model: Path, calibration: str | None, length: int, folder: Path):
        self.folder = folder
        self.model = ModelFolder.open(model)
        self.weights = load_weights(self.model.config, pytorch=model)
        if calibration is None:
            self.calibration = random_windows(self.model.config.vocab_size)
        else:
            examples, tokenizer = read_squad(calibration).examples, self.model.tokenizer()
            self.calibration = calibrator.calibration_batches(examples, tokenizer, length, CALIBRATION_WINDOWS)

    @cached_property
    def quantization(self) -> Quantization:
        """The ranges that calibration finds by builder.py's default method."""
        ranges = calibrator.calibrate(self.weights, False, self.calibration, CALIBRATION_METHODS[0])
        ranges = {name: np.float32(amax) for name, amax in ranges.items()}
        return Quantization("int8", ranges, "the benchmark's calibration")

    def engine(self, form: str, length: int, batch_size: int, throughput: bool = False):
        """One of FORMS, built, written, loaded."""
        options = BuildOptions((batch_size,), (length,), **FORMS[form])
        prepared = backend_module("openvino").prepare(self.model.config, options)
        built = prepared.build(self.weights, self.quantization if options.quantize else None)
        path = self.folder / f"{form}_{length}.engine"
        write_engine(path, built, "openvino", options, self.weights.config)
        return load_engine(path, options.layout, throughput)

    def nncf_engine(self, length: int, batch_size: int, throughput: bool = False):
        """NNCF's quantization (its preset for transformers, SmoothQuant among it) of the float network, rest in bf16."""
        import nncf
        import openvino

        from helpers.backends.openvino.engine import TYPES, OpenVINOEngine, half_precision

        windows = nncf.Dataset([batch.inputs() for batch in self.calibration])
        model = nncf.quantize(
            self._float_model(length, batch_size),
            windows,
            subset_size=len(self.calibration),
            model_type=nncf.ModelType.TRANSFORMER,
        )
        core, hint = openvino.Core(), "THROUGHPUT" if throughput else "LATENCY"
        settings = {"INFERENCE_PRECISION_HINT": TYPES[half_precision(core)], "PERFORMANCE_HINT": hint}
        return OpenVINOEngine(self.engine("bf16", length, batch_size).card, core.compile_model(model, "CPU", settings))

    def _float_model(self, length: int, batch_size: int):
        """The network as an openvino.Model."""
        from helpers.backends.openvino.layers import PaddedLayers
        from helpers.bert_network import build_bert

        layers = PaddedLayers(self.weights.config, batch_size, length)
        build_bert(layers, self.weights.config, self.weights)
        return layers.model()


def build_engine_file(model, path: Path, layout: str, batch_size: int, length: int, half: bool) -> None:
    """An engine for up to these sizes, by the code of builder.py or builder_varseqlen.py."""
    options = BuildOptions((batch_size,), (length,), layout, precision="fp16" if half else "fp32")
    build_folder(model, path, options, "openvino")


def random_windows(vocab_size: int) -> list[PaddedBatch]:
    """Windows of 128 random word pieces."""
    ids = np.random.default_rng(0).integers(0, vocab_size, (RANDOM_CALIBRATION_WINDOWS, 1, 128), np.int32)
    return [PaddedBatch(row, np.zeros_like(row), np.ones_like(row)) for row in ids]
