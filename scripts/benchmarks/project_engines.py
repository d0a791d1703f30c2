"""This project's engines as builder.py builds them, and NNCF's quantization of the same network.

All that the benchmarks ask of the helpers' building side stands here.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from helpers import calibrator, cli
from helpers.backends import backend_module, load_engine, write_engine
from helpers.backends.base import BuildOptions
from helpers.batching import PaddedBatch
from helpers.bert_config import BertConfig
from helpers.building import add_build_arguments, build_engine
from helpers.squad import read_squad
from helpers.tokenization import BertTokenizer, load_vocabulary
from helpers.weights import load_weights

#: What int8 is calibrated on, ours and NNCF's alike: windows of a SQuAD file, or, without one, random ones.
CALIBRATION_WINDOWS = 100
RANDOM_CALIBRATION_WINDOWS = 8

#: This engine's forms: what the tables call them → BuildOptions, as builder.py sets them for calibrated ranges.
FORMS = {"fp32": {}, "bf16": {"fp16": True}, "int8": {"fp16": True, "int8": True, "force_int8_multihead": True}}


class EngineBuilder:
    """Builds engines of the model folder `model` and writes them into `folder`.

    int8 is calibrated on windows of up to `length` tokens of the SQuAD file `calibration` (None: on random ids).
    """

    def __init__(self, model: Path, calibration: str | None, length: int, folder: Path):
        self.folder = folder
        self.config = BertConfig.from_folder(model)
        self.weights = load_weights(self.config, pytorch=model)
        if calibration is None:
            self.calibration = random_windows(self.config.vocab_size)
        else:
            examples = read_squad(calibration).examples
            self.calibration = calibrator.calibration_batches(
                examples, load_tokenizer(model), length, CALIBRATION_WINDOWS
            )

    @cached_property
    def quantized_weights(self):
        """The weights beside the ranges that calibration finds, as builder.py's default method does."""
        ranges = calibrator.calibrate(self.config, self.weights, "erf", False, self.calibration, calibrator.METHODS[0])
        return replace(self.weights, ranges={name: np.float32(amax) for name, amax in ranges.items()})

    def engine(self, form: str, length: int, batch_size: int, throughput: bool = False):
        """One of FORMS, built, written, loaded."""
        options = BuildOptions((batch_size,), (length,), **FORMS[form])
        weights = self.quantized_weights if form == "int8" else self.weights
        built = backend_module("openvino").build(self.config, weights, "erf", options)
        path = self.folder / f"{form}_{length}.engine"
        write_engine(path, built, "openvino", options, self.config, True, None)
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

        layers = PaddedLayers(self.config, batch_size, length)
        build_bert(layers, self.config, self.weights, "erf")
        return layers.model()


def build_engine_file(model, path: Path, layout: str, batch_size: int, length: int, half: bool) -> None:
    """An engine for up to these sizes, by the code of builder.py or builder_varseqlen.py."""
    parser = cli.Parser("")
    add_build_arguments(parser, layout)
    flags = ["-pt", model, "-o", path, "-b", batch_size, "-s", length, "--backend", "openvino", *["--fp16"] * half]
    build_engine(parser.parse_args([str(flag) for flag in flags]))


def timed_run(engine, batch) -> Callable:
    """A function that runs `batch` once."""
    return engine._timed_run(batch)


def load_tokenizer(model: Path, do_lower_case: bool = True) -> BertTokenizer:
    return BertTokenizer(load_vocabulary(model / "vocab.txt"), do_lower_case)


def random_windows(vocab_size: int) -> list[PaddedBatch]:
    """Windows of 128 random word pieces."""
    ids = np.random.default_rng(0).integers(0, vocab_size, (RANDOM_CALIBRATION_WINDOWS, 1, 128), np.int32)
    return [PaddedBatch(row, np.zeros_like(row), np.ones_like(row)) for row in ids]
