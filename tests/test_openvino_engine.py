"""The CPU engine's numbers: against Hugging Face float32 and the numpy float64 reference, through every format."""

import re
from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from helpers.backends import backend_module, load_engine
from helpers.backends.openvino.engine import check_options, half_precision, int8_overflows
from helpers.batching import PaddedBatch
from helpers.bert_config import BertConfig
from helpers.build_options import BuildOptions
from helpers.errors import DemoBertError, UsageError
from helpers.quantization import Quantization
from helpers.weights import load_weights
from tests import checkpoints
from tests.conftest import BUNDLED
from tests.reference_bert import random_config, random_inputs, random_weights, reference_logits

#: Issue 2's bound for float32; measured differences are around 1e-5, logits around 1 to 10.
FLOAT32_TOLERANCE = 1e-3

FORMATS = ("tensorflow", "safetensors", "pt", "folder", "onnx-torchscript", "onnx-dynamo")


def write_checkpoint(kind: str, folder, config, tensors) -> list:
    """The flags of builder.py for a checkpoint of this kind, written into `folder`."""
    checkpoints.write_config(folder, config)
    if kind == "tensorflow":
        return [
            "-m",
            checkpoints.write_tensorflow(folder / "model.ckpt", checkpoints.tensorflow_state(config, tensors)),
        ]
    state = checkpoints.pytorch_state(config, tensors)
    if kind == "safetensors":
        return ["-pt", checkpoints.write_safetensors(folder / "weights.safetensors", state)]
    if kind == "pt":
        return ["-pt", checkpoints.write_pickled(folder / "weights.pt", state)]
    if kind == "folder":
        return ["-pt", checkpoints.write_folder(folder / "hf", config, state)]
    model = checkpoints.hugging_face_model(config, tensors)
    return ["-x", checkpoints.write_onnx(folder / "model.onnx", model, dynamo=kind == "onnx-dynamo")]


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("round_", range(2))
def test_random_models_equal_both_references(kind, round_, rng, tmp_path, script):
    config = random_config(rng)
    tensors = random_weights(config, rng)
    flags = write_checkpoint(kind, tmp_path, config, tensors)
    longest = config.max_position_embeddings
    engine_path = tmp_path / "model.engine"
    result = script(
        "builder.py", *flags, "-c", tmp_path, "-o", engine_path, "-b", 9, "-s", longest, "--backend", "openvino"
    )
    assert result.code == 0, result
    engine = load_engine(engine_path, "padded")
    gelu = "tanh" if kind == "tensorflow" else "erf"
    assert engine.card.config.gelu == gelu
    model = checkpoints.hugging_face_model(config, tensors, gelu=gelu)
    for batch, length in (
        (1, 1),
        (int(rng.integers(1, 10)), int(rng.integers(1, longest + 1))),
        (9, min(longest, 33)),
        (1, longest),
    ):
        inputs = random_inputs(config, rng, batch, length)
        logits = engine.run(PaddedBatch(*inputs))
        assert logits.shape == (batch, length, 2) and logits.dtype == np.float32
        np.testing.assert_allclose(
            logits, reference_logits(config, tensors, gelu, *inputs), atol=FLOAT32_TOLERANCE, rtol=0
        )
        np.testing.assert_allclose(
            logits, checkpoints.hugging_face_logits(model, *inputs), atol=FLOAT32_TOLERANCE, rtol=0
        )


@pytest.fixture(scope="module")
def bundled():
    config = BertConfig.from_folder(BUNDLED)
    return config, load_weights(config, pytorch=BUNDLED).tensors


def test_the_bundled_model_equals_both_references(bundled, bundled_engine, rng):
    config, tensors = bundled
    engine = load_engine(bundled_engine, "padded")
    model = checkpoints.hugging_face_model(config, tensors)
    for batch, length in ((1, 384), (8, int(rng.integers(2, 200))), (3, 1)):
        inputs = random_inputs(config, rng, batch, length)
        logits = engine.run(PaddedBatch(*inputs))
        np.testing.assert_allclose(
            logits, reference_logits(config, tensors, "erf", *inputs), atol=FLOAT32_TOLERANCE, rtol=0
        )
        np.testing.assert_allclose(
            logits, checkpoints.hugging_face_logits(model, *inputs), atol=FLOAT32_TOLERANCE, rtol=0
        )


def test_half_precision_is_near(bundled, bundled_half_engine, rng):
    config, tensors = bundled
    engine = load_engine(bundled_half_engine, "padded")
    inputs = random_inputs(config, rng, 4, 120)
    difference = np.abs(engine.run(PaddedBatch(*inputs)) - reference_logits(config, tensors, "erf", *inputs))
    # bf16 keeps 8 bits: each of ~50 roundings of values near 1 may be off by 2⁻⁹, and they add up like a random walk.
    bound = {"fp32": FLOAT32_TOLERANCE, "bf16": 0.35, "fp16": 0.05}[engine.card.precision[0]]
    assert difference.max() < bound


def test_padding_changes_nothing(bundled_engine, bundled, rng):
    engine = load_engine(bundled_engine, "padded")
    input_ids, segment_ids, _ = random_inputs(bundled[0], rng, 2, 90)
    alone = engine.run(PaddedBatch(input_ids[:, :50], segment_ids[:, :50], np.ones((2, 50), np.int32)))
    mask = np.repeat((np.arange(90) < 50).astype(np.int32)[None], 2, 0)
    padded = engine.run(PaddedBatch(input_ids, segment_ids, mask))
    np.testing.assert_allclose(padded[:, :50], alone, atol=1e-4, rtol=0)  # other block sizes, other order of sums


def test_what_is_submitted_gives_what_run_gives(bundled_engine, bundled, rng):
    engine = load_engine(bundled_engine, "padded", throughput=True)
    sizes = [(int(rng.integers(1, 5)), int(rng.integers(1, 60))) for _ in range(20)]
    batches = [PaddedBatch(*random_inputs(bundled[0], rng, *size)) for size in sizes]
    runs = [engine.submit(batch) for batch in batches]
    for batch, run in zip(batches, runs):
        np.testing.assert_allclose(run.result(), engine.run(batch), atol=1e-5, rtol=0)


def test_times_are_of_the_batch_asked_for(bundled_engine, bundled, rng):
    engine = load_engine(bundled_engine, "padded")
    latencies = engine.time(PaddedBatch(*random_inputs(bundled[0], rng, 1, 8)), iterations=5, warm_up_runs=1)
    assert latencies.shape == (5,) and (latencies > 0).all()


def batch_of(ids=None, segments=None, mask=None, shape=(1, 4)):
    ones = np.ones(shape, np.int32)
    return PaddedBatch(
        ones if ids is None else np.array(ids),
        ones * 0 if segments is None else np.array(segments),
        ones if mask is None else np.array(mask),
    )


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (batch_of(shape=(9, 4)), "batch size 9"),
        (batch_of(shape=(1, 385)), "sequence length 385"),
        (batch_of(ids=np.array([[1, 2, 3, 30522]], np.int32)), "token id"),
        (batch_of(ids=np.array([[1, 2, 3, -1]], np.int32)), "token id"),
        (batch_of(segments=np.array([[0, 0, 2, 0]], np.int32)), "segment id"),
        (batch_of(mask=np.array([[1, 0, 1, 0]], np.int32)), "mask"),
        (batch_of(mask=np.array([[0, 0, 0, 0]], np.int32)), "mask"),
        (batch_of(mask=np.array([[2, 1, 1, 0]], np.int32)), "mask"),
        (batch_of(mask=np.array([[1, 1, -1, -1]], np.int32)), "mask"),
        (batch_of(mask=np.array([[1, 1, 1]], np.int32)), "three equal"),
        (batch_of(shape=(1, 0)), "non-empty"),
        (batch_of(shape=(4,)), "three equal"),
        (batch_of(segments=np.array([[0, 0, -1, 0]], np.int32)), "segment id"),
        (batch_of(ids=np.array([[1.0, 2.0, 3.0, 4.0]])), "int32"),
    ],
)
def test_batches_that_do_not_fit(bundled_engine, batch, message):
    engine = load_engine(bundled_engine, "padded")
    for run in (engine.run, engine.submit, lambda batch: engine.time(batch, 1)):
        with pytest.raises(DemoBertError, match=message):
            run(batch)


def test_what_the_backend_can_not_do_is_refused(rng):
    config = BertConfig(48, 1, 3, 64, 101, 16)
    for options, message in (
        (BuildOptions(quantize="fp8"), "fp8"),
        (BuildOptions(network="plugin"), "--network plugin"),
    ):
        with pytest.raises(UsageError, match=message):
            backend_module("openvino").prepare(config, options)


def test_ranges_of_another_kind_than_the_options_are_refused(rng):
    config = BertConfig(48, 1, 3, 64, 101, 16)
    weights = checkpoints.bert_weights(config, random_weights(config, rng))
    for asked, given in (("int8", None), (None, "int8"), ("int8", "fp8")):
        prepared = backend_module("openvino").prepare(config, BuildOptions(quantize=asked))
        with pytest.raises(UsageError, match=f"ask for {asked} ranges, and those of {given} are given"):
            prepared.build(weights, given and Quantization(given, {}, "a test"))


class Cpu:
    """Stands in for an OpenVINO core on a CPU with these capabilities."""

    def __init__(self, *capabilities):
        self._capabilities = list(capabilities)

    def get_property(self, device, name):
        assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
        return self._capabilities


def test_the_half_type_is_one_that_the_cpu_has():
    assert half_precision(Cpu("FP32", "FP16", "BF16")) == "bf16"
    assert half_precision(Cpu("FP32", "FP16")) == "fp16"
    assert half_precision(Cpu("FP32", "INT8")) == "fp32"
    check_options(Cpu("FP32", "BF16"), BuildOptions(precision="bf16"))
    with pytest.raises(UsageError, match="bfloat16"):
        check_options(Cpu("FP32", "FP16"), BuildOptions(precision="bf16"))


def test_int8_overflows_where_the_cpu_has_no_vnni():
    cpuinfo = Path("/proc/cpuinfo")
    flags = re.search("^flags.*", cpuinfo.read_text() if cpuinfo.exists() else "", re.MULTILINE)
    if flags is None:
        pytest.skip("only Linux on x86 tells a CPU's flags")
    has_vnni = not {"avx512_vnni", "avx_vnni"}.isdisjoint(flags[0].split())
    assert int8_overflows(ov.Core()) == (not has_vnni)
