"""The TensorRT backend against the strict double: numbers, profiles, scripts, and mistakes that have to show.

Each network is built, written as a plan, loaded and run, on every release that the double plays; the logits are held
to the numpy reference. The double computes in float64, so fp32 networks agree to float32's rounding of the output.
"""

import json
import os
import subprocess
import sys
import threading
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.backends import backend_module, load_engine, write_engine
from helpers.backends.tensorrt import bert_plugins, native_layers, plan_builder, plugin_layers
from helpers.backends.tensorrt.network_writer import NetworkWriter
from helpers.batching import PaddedBatch
from helpers.bert_config import BertConfig
from helpers.bert_network import build_bert
from helpers.build_options import BuildOptions
from helpers.errors import DemoBertError, UsageError
from helpers.weights import load_weights
from tests.checkpoints import bert_weights, own_quantization
from tests.reference_bert import (
    gelu_of,
    random_config,
    random_inputs,
    random_weights,
    reference_logits,
    sigmoid_gelu,
)
from tests.tensorrt_double import VERSIONS, TensorRTDoubleError, bindings, install, rtx

ROOT = Path(__file__).resolve().parent.parent
BUNDLED = ROOT / "models" / "bundled" / "bert_mini_squad11"

RTX = "rtx-1.7.1"
#: (release, form of the network, plugin interface) that exist.
NETWORKS = [
    *((version, "native", None) for version in VERSIONS),
    *((version, "plugin", "deprecated") for version in ("8.6.1", "10.0.1", "10.16.1")),
    ("10.16.1", "plugin", "v3"),
]

#: Rounding of weights and activations to the type, in logits of order one: float16 has 11 bits, bfloat16 has 8. The
#: double rounds after each layer, as TensorRT may; seen were 4e-3 and 4e-2.
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 2e-1}


def backend_of(version):
    return "tensorrt_rtx" if version == RTX else "tensorrt"


def small_config(rng):
    """A random BERT of at most two layers; the plugins know no epsilon of the network's (see MAX_PLUGIN_EPSILON)."""
    config = random_config(rng)
    return replace(
        config,
        num_hidden_layers=min(2, config.num_hidden_layers),
        vocab_size=min(500, config.vocab_size),
        max_position_embeddings=max(16, min(64, config.max_position_embeddings)),
        layer_norm_eps=1e-12,
    )


def weights_of(config, rng):
    return bert_weights(config, random_weights(config, rng), source="random")


def write(path, version, config, weights, gelu="erf", **options):
    """Build with the backend and write engine and card, as builder.py does."""
    options = BuildOptions(**options)
    weights = replace(weights, config=replace(config, gelu=gelu))
    prepared = backend_module(backend_of(version)).prepare(config, options)
    built = prepared.build(weights, own_quantization(weights, options.quantize))
    return write_engine(path, built, backend_of(version), options, config)


def difference(engine, config, weights, gelu, batch_size, length, rng):
    """Largest difference of logits to the reference, padded rows and columns included."""
    inputs = random_inputs(config, rng, batch_size, length)
    logits = engine.run(PaddedBatch(*inputs))
    assert logits.shape == (batch_size, length, 2) and logits.dtype == np.float32
    return np.abs(logits - reference_logits(config, weights.tensors, gelu, *inputs)).max()


@pytest.fixture
def engine_path(tmp_path):
    return tmp_path / "bert.engine"


# Numbers


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("version, network, interface", NETWORKS)
@pytest.mark.parametrize("gelu", ["erf", "tanh"])
def test_logits_are_the_reference_s(version, network, interface, gelu, engine_path, monkeypatch, rng):
    install(version, monkeypatch)
    config = small_config(rng)
    weights = weights_of(config, rng)
    sizes = sorted({int(n) for n in rng.integers(1, config.max_position_embeddings + 1, 2)})
    options = {"batch_sizes": (1, 3), "sequence_lengths": tuple(sizes)}
    card = write(engine_path, version, config, weights, gelu, network=network, plugin_version=interface, **options)
    assert (card.network, card.precision) == (network, ["fp32"])
    engine = load_engine(engine_path, "padded")
    for batch_size in (1, 2, 3):
        for length in {1, sizes[0], max(1, sizes[-1] - 1), sizes[-1]}:
            worst = difference(engine, config, weights, gelu, batch_size, length, rng)
            assert worst < TOLERANCE["fp32"], (config, batch_size, length)
    engine.close()


@pytest.fixture(scope="module")
def bundled():
    config = BertConfig.from_folder(BUNDLED)
    return config, load_weights(config, pytorch=BUNDLED)


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("version, network, interface", NETWORKS)
def test_the_bundled_model_s_logits(version, network, interface, bundled, engine_path, monkeypatch, rng):
    install(version, monkeypatch)
    config, weights = bundled
    sizes = {"batch_sizes": (3,), "sequence_lengths": (17,)}
    write(engine_path, version, config, weights, network=network, plugin_version=interface, **sizes)
    engine = load_engine(engine_path, "padded")
    assert difference(engine, config, weights, "erf", 3, 17, rng) < TOLERANCE["fp32"]
    engine.close()


@pytest.mark.parametrize("version, network", [("8.6.1", "plugin"), ("8.6.1", "native"), ("11.4.0", "native")])
def test_batches_on_their_way_do_not_meet(version, network, engine_path, monkeypatch, rng):
    """More than there is memory for, of other shapes and profiles, asked for in any order, again, and after the end."""
    install(version, monkeypatch)
    config = replace(small_config(rng), max_position_embeddings=24)
    weights = weights_of(config, rng)
    write(engine_path, version, config, weights, network=network, batch_sizes=(1, 3), sequence_lengths=(8, 24))
    engine = load_engine(engine_path, "padded")
    batches = [
        PaddedBatch(*random_inputs(config, rng, int(rng.integers(1, 4)), int(rng.integers(1, 25)))) for _ in range(7)
    ]
    runs = [engine.submit(batch) for batch in batches[:5]]
    asked = rng.permutation(4).tolist()
    found = {index: runs[index].result() for index in asked[:2]}
    runs += [engine.submit(batch) for batch in batches[5:]]
    found |= {index: runs[index].result() for index in (*asked, 4)}
    engine.close()
    found |= {index: runs[index].result() for index in (5, 6)}
    for index, batch in enumerate(batches):
        reference = reference_logits(config, weights.tensors, "erf", *batch.inputs().values())
        np.testing.assert_allclose(found[index], reference, rtol=0, atol=TOLERANCE["fp32"])
    assert engine.parallel_runs == 2 and runs[0].result() is found[0]


class _Held:
    """An engine with two profiles, written by the double of a release, and what it is held to."""

    def __init__(self, path, rng, monkeypatch, version="8.6.1"):
        self.double, self.path, self._rng = install(version, monkeypatch), path, rng
        self.driver = sys.modules["pycuda.driver"]
        self.config = replace(small_config(rng), max_position_embeddings=24)
        self.weights = weights_of(self.config, rng)
        write(path, version, self.config, self.weights, batch_sizes=(1, 3), sequence_lengths=(8, 24))

    def load(self):
        return load_engine(self.path, "padded")

    def batch(self) -> PaddedBatch:
        sizes = int(self._rng.integers(1, 4)), int(self._rng.integers(1, 25))
        return PaddedBatch(*random_inputs(self.config, self._rng, *sizes))

    def is_right(self, batch, logits) -> bool:
        wanted = reference_logits(self.config, self.weights.tensors, "erf", *batch.inputs().values())
        return np.abs(logits - wanted).max() < TOLERANCE["fp32"]


@pytest.fixture
def held(engine_path, rng, monkeypatch):
    return _Held(engine_path, rng, monkeypatch)


@pytest.mark.parametrize("asked_for", [True, False])
def test_an_engine_that_nobody_has_is_freed(held, asked_for):
    """As in a notebook, where a cell is run again."""
    engine = held.load()
    run = engine.submit(held.batch())
    if asked_for:
        run.result()
    alive = weakref.ref(engine)
    del engine
    assert alive() is None and not held.double.gpu.allocations and not held.double.gpu.pagelocked
    run.result()


@pytest.mark.parametrize("number", range(1, 9))
def test_memory_that_ends_while_an_engine_is_loaded_is_given_back(held, number, monkeypatch):
    taken, whole = [], held.driver.mem_alloc

    def short(nbytes):
        taken.append(nbytes)
        if len(taken) == number:
            raise held.driver.MemoryError("cuMemAlloc failed: out of memory")
        return whole(nbytes)

    monkeypatch.setattr(held.driver, "mem_alloc", short)
    with pytest.raises(DemoBertError, match="out of memory"):
        held.load()
    assert len(taken) == number and not held.double.gpu.allocations


@pytest.mark.parametrize("error", [DemoBertError("refused"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
@pytest.mark.parametrize("step", ["bind", "upload", "enqueue", "download"])
def test_what_ends_half_way_costs_no_other_batch(step, error, held, monkeypatch):
    engine, batches = held.load(), [held.batch() for _ in range(5)]
    run = engine.submit(batches[0])
    with monkeypatch.context() as patch:

        def fail(*_):
            raise error

        patch.setattr(engine.session, step, fail)
        with pytest.raises(type(error)):
            engine.run(batches[1])
    assert held.is_right(batches[0], run.result()) and not held.double.gpu.stack
    assert all(held.is_right(batch, engine.run(batch)) for batch in batches)
    with monkeypatch.context() as patch:
        patch.setattr(engine.session, step, fail)
        with pytest.raises(type(error)):
            engine.run(batches[1])
    engine.close()
    assert not any(stream._queue for stream in held.double.gpu.streams.values())


def test_a_failure_is_that_of_its_own_batch(held, monkeypatch):
    engine, batches = held.load(), [held.batch() for _ in range(4)]
    run = engine.submit(batches[0])
    with monkeypatch.context() as patch:
        patch.setattr(
            held.driver.Event, "synchronize", lambda event: (_ for _ in ()).throw(held.driver.LogicError("x"))
        )
        for _ in range(2):
            with pytest.raises(DemoBertError, match="the GPU failed: x"):
                run.result()
    assert all(held.is_right(batch, engine.run(batch)) for batch in batches)
    with pytest.raises(DemoBertError, match="the GPU failed: x"):
        run.result()


def test_a_closed_engine_says_so(held):
    engine, batch = held.load(), held.batch()
    timed = engine.timed_run(batch)
    engine.close()
    for use in (engine.run, engine.submit, engine.timed_run, lambda _: timed()):
        with pytest.raises(DemoBertError, match="the engine was closed"):
            use(batch)


def test_threads_share_an_engine(held):
    """As LoadGen's: they submit one at a time, and wait for their own."""
    engine, lock, wrong = held.load(), threading.Lock(), []
    batches = [held.batch() for _ in range(5)]

    def work(batch):
        for _ in range(6):
            with lock:
                run = engine.submit(batch)
            if not held.is_right(batch, run.result()):
                wrong.append(batch)

    threads = [threading.Thread(target=work, args=(batch,)) for batch in batches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("formula, off", [("erf", 3e-5), ("tanh", 1e-12)])
def test_the_sigmoid_is_as_near_to_gelu_as_is_said(formula, off):
    x = np.linspace(-60, 60, 200_001)
    assert np.abs(sigmoid_gelu(x, formula) - gelu_of(x, formula)).max() < off


@pytest.mark.parametrize("gelu", ["erf", "tanh"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_gelu_is_the_formula_or_its_sigmoid(precision, gelu, engine_path, monkeypatch, rng):
    """Of float32 the formula itself; below it the sigmoid, near it for whatever GELU is given: here up to 60."""
    install("8.6.1", monkeypatch)
    config = BertConfig(128, 2, 2, int(rng.integers(20, 90)), 50, 16)
    weights = weights_of(config, rng)
    for i in range(2):
        weights.tensors[f"l{i}_intermediate_dense_bias"] = np.linspace(
            -60, 60, config.intermediate_size, dtype=np.float32
        )
    sizes = {"batch_sizes": (3,), "sequence_lengths": (9,)}
    write(engine_path, "8.6.1", config, weights, gelu, network="plugin", precision=precision, **sizes)
    engine = load_engine(engine_path, "padded")
    written = gelu if precision == "fp32" else lambda layer, x: sigmoid_gelu(x, gelu)
    assert difference(engine, config, weights, written, 3, 9, rng) < 2e-5
    assert difference(engine, config, weights, gelu, 3, 9, rng) < 2e-3
    engine.close()


@pytest.mark.parametrize("version, network, interface", NETWORKS)
def test_masks_of_every_length(version, network, interface, engine_path, monkeypatch, rng):
    install(version, monkeypatch)
    config, length = BertConfig(32, 1, 4, 40, 50, 16), 9
    weights = weights_of(config, rng)
    options = {"batch_sizes": (length,), "sequence_lengths": (length,)}
    write(engine_path, version, config, weights, network=network, plugin_version=interface, **options)
    ids, segments, _ = random_inputs(config, rng, length, length)
    mask = (np.arange(length) <= np.arange(length)[:, None]).astype(np.int32)
    logits = load_engine(engine_path, "padded").run(PaddedBatch(ids, segments, mask))
    reference = reference_logits(config, weights.tensors, "erf", ids, segments, mask)
    np.testing.assert_allclose(logits, reference, atol=TOLERANCE["fp32"])


def pack_rows(monkeypatch) -> None:
    """Has padded engines of any number of rows, and of any length, pack them."""
    monkeypatch.setattr(plan_builder, "MOST_PACKED_ROWS", {"fp16": 9, "int8": 9})
    monkeypatch.setattr(plan_builder, "SHORTEST_PACKED_ROWS", 1)


@pytest.mark.parametrize(
    "options, capability, packs",
    [
        ({}, (9, 0), True),
        ({"batch_sizes": (1, 2), "sequence_lengths": (128, 384)}, (9, 0), True),
        ({"batch_sizes": (3,)}, (9, 0), False),
        ({"sequence_lengths": (96, 384)}, (9, 0), False),
        ({"sequence_lengths": (385,)}, (9, 0), False),
        ({"precision": "fp32"}, (9, 0), False),
        ({"batch_sizes": (4,), "quantize": "int8", "force_int8_multihead": True}, (9, 0), True),
        ({"batch_sizes": (5,), "quantize": "int8", "force_int8_multihead": True}, (9, 0), False),
        ({"batch_sizes": (4,), "quantize": "int8"}, (9, 0), False),
        ({"layout": "packed"}, (9, 0), False),
        ({}, (8, 9), False),
        ({}, (10, 0), False),
    ],
    ids=str,
)
def test_which_engines_pack_their_rows(options, capability, packs):
    options = {"precision": "fp16", "sequence_lengths": (384,)} | options
    assert plan_builder._packs_rows(BuildOptions(**options), capability) == packs


@pytest.mark.parametrize(
    "version, interface", [(v, i) for v, form, i in NETWORKS if form == "plugin"], ids=lambda value: str(value)
)
@pytest.mark.parametrize("lengths", [1, 2])
def test_rows_through_the_packed_plugins(version, interface, lengths, engine_path, monkeypatch, rng):
    """On Hopper a padded half network's few rows are sequences of the packed plugins."""
    pack_rows(monkeypatch)
    install(version, monkeypatch, compute_capability=(9, 0))
    config = replace(small_config(rng), hidden_size=128, num_attention_heads=2)  # heads of 64
    weights = weights_of(config, rng)
    sizes = sorted({int(n) for n in rng.integers(2, config.max_position_embeddings + 1, lengths)})
    batches = (3,) if rng.integers(2) else (1, 3)
    options = {"network": "plugin", "plugin_version": interface, "precision": "fp16", "strict": True}
    if version == "10.16.1" and rng.integers(2):
        options["distributive_independence"] = True
    card = write(engine_path, version, config, weights, batch_sizes=batches, sequence_lengths=tuple(sizes), **options)
    assert (card.network, card.precision) == ("plugin", ["fp16", "fp32"])
    engine = load_engine(engine_path, "padded")
    for batch_size in (1, 2, 3):
        for length in {1, sizes[0], sizes[-1] - 1, sizes[-1]}:
            inputs = random_inputs(config, rng, batch_size, length)
            inputs[2][0] = 1  # a row without padding
            logits = engine.run(PaddedBatch(*inputs))
            off = np.abs(logits - reference_logits(config, weights.tensors, "erf", *inputs))[inputs[2] == 1]
            assert logits.shape == (batch_size, length, 2) and off.max() < TOLERANCE["fp16"], (batch_size, length)
    engine.close()


@pytest.mark.parametrize("version", [version for version in VERSIONS if version != "8.6.1"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision(version, precision, engine_path, monkeypatch, rng):
    install(version, monkeypatch)
    config = small_config(rng)
    weights = weights_of(config, rng)
    card = write(engine_path, version, config, weights, network="native", sequence_lengths=(16,), precision=precision)
    assert card.precision == [precision]
    worst = difference(load_engine(engine_path, "padded"), config, weights, "erf", 1, 16, rng)
    # Not so near either that the type can't have been used.
    assert 1e-6 < worst < TOLERANCE[precision], config


def test_each_release_gets_the_network_that_suits_it(engine_path, monkeypatch, rng):
    config = small_config(rng)
    expected = dict.fromkeys(("8.6.1", "10.0.1", "10.16.1"), "plugin") | dict.fromkeys(("11.4.0", RTX), "native")
    for version, network in expected.items():
        install(version, monkeypatch)
        card = write(engine_path, version, config, weights_of(config, rng), sequence_lengths=(8,))
        assert card.network == network


def test_a_model_whose_epsilon_matters_gets_the_native_network(engine_path, monkeypatch, rng):
    install("10.16.1", monkeypatch)
    config = replace(small_config(rng), layer_norm_eps=1e-3)
    weights = weights_of(config, rng)
    assert write(engine_path, "10.16.1", config, weights, sequence_lengths=(8,)).network == "native"
    assert difference(load_engine(engine_path, "padded"), config, weights, "erf", 1, 8, rng) < TOLERANCE["fp32"]
    with pytest.raises(UsageError, match="plugins ignore this model's layer_norm_eps, 0.001; use --network native"):
        write(engine_path, "10.16.1", config, weights, sequence_lengths=(8,), network="plugin")


@pytest.mark.parametrize(
    "options", [{"precision": "fp16"}, {"quantize": "int8", "force_int8_multihead": True}], ids=["fp16", "int8"]
)
def test_padded_plugins_take_heads_of_64_below_float32(options, engine_path, monkeypatch, rng):
    install("10.16.1", monkeypatch)
    config = replace(small_config(rng), hidden_size=96, num_attention_heads=int(rng.choice([2, 3, 4])))
    weights = weights_of(config, rng)
    with pytest.raises(
        UsageError, match="padded BERT plugins take heads of 64 below float32, this model's have .*native"
    ):
        write(engine_path, "10.16.1", config, weights, sequence_lengths=(8,), network="plugin", **options)
    fp32 = write(engine_path, "10.16.1", config, weights, sequence_lengths=(8,))
    fp16 = write(engine_path, "10.16.1", config, weights, sequence_lengths=(8,), precision="fp16")
    assert (fp32.network, fp16.network) == ("plugin", "native")


# Profiles


@pytest.mark.parametrize("version", VERSIONS)
def test_every_profile_is_used(version, engine_path, monkeypatch, rng):
    double = install(version, monkeypatch)
    config = replace(small_config(rng), max_position_embeddings=16)
    weights = weights_of(config, rng)
    write(engine_path, version, config, weights, batch_sizes=(1, 4), sequence_lengths=(8, 16))
    engine = load_engine(engine_path, "padded")
    used = []
    for batch_size, length in ((1, 8), (1, 16), (4, 8), (4, 16), (3, 9), (1, 1)):
        assert difference(engine, config, weights, "erf", batch_size, length, rng) < TOLERANCE["fp32"]
        used.append(engine.session.active_profile)
    assert used == [0, 1, 2, 3, 3, 0]
    assert [engine.padded_length(length) for length in (1, 8, 9, 16)] == [8, 8, 16, 16]
    assert "4 profiles" in engine.describe()
    assert ("IExecutionContext", "set_optimization_profile_async") in double.recorder.calls
    engine.close()
    engine.close()


def test_one_size_alone_makes_a_static_network(engine_path, monkeypatch, rng):
    install("10.16.1", monkeypatch)
    config = small_config(rng)
    weights = weights_of(config, rng)
    write(engine_path, "10.16.1", config, weights, batch_sizes=(3,), sequence_lengths=(8,))
    engine = load_engine(engine_path, "padded")
    # Fewer rows or columns than the network's are padded, and cut off again.
    for batch_size, length in ((3, 8), (1, 8), (2, 5)):
        assert difference(engine, config, weights, "erf", batch_size, length, rng) < TOLERANCE["fp32"]
    assert len(engine.session.profiles) == 1


def test_timing_runs_the_engine(engine_path, monkeypatch, rng):
    install("11.4.0", monkeypatch)
    config = small_config(rng)
    write(engine_path, "11.4.0", config, weights_of(config, rng), sequence_lengths=(8,))
    latencies = load_engine(engine_path, "padded").time(PaddedBatch(*random_inputs(config, rng, 1, 8)), 5, 2)
    assert latencies.shape == (5,) and (latencies > 0).all()


def test_the_timing_cache_is_written_and_read_back(engine_path, tmp_path, monkeypatch, rng):
    install("10.16.1", monkeypatch)
    config, cache = small_config(rng), tmp_path / "timing.cache"
    weights = weights_of(config, rng)
    for _ in range(2):
        write(engine_path, "10.16.1", config, weights, sequence_lengths=(8,), timing_cache=str(cache))
        assert cache.stat().st_size > 0
    nowhere = str(tmp_path / "no" / "cache")
    with pytest.raises(DemoBertError, match="the folder .* does not exist"):
        write(engine_path, "10.16.1", config, weights, sequence_lengths=(8,), timing_cache=nowhere)


# Plans that can't be loaded


@pytest.mark.parametrize("cut", [10, 0.5, -1])
def test_a_truncated_plan_without_a_card(cut, engine_path, monkeypatch, rng):
    install("10.16.1", monkeypatch)
    config = small_config(rng)
    write(engine_path, "10.16.1", config, weights_of(config, rng), sequence_lengths=(8,))
    plan = engine_path.read_bytes()
    engine_path.write_bytes(plan[: int(cut * len(plan)) if isinstance(cut, float) else cut])
    with pytest.raises(DemoBertError, match="can't load .*: it is damaged, or the plan of another version") as caught:
        backend_module("tensorrt").load(engine_path, None)
    assert "\n" not in str(caught.value)


def test_a_plan_without_a_card_tells_its_sizes(engine_path, monkeypatch, rng):
    install("10.16.1", monkeypatch)
    config = small_config(rng)
    write(engine_path, "10.16.1", config, weights_of(config, rng), batch_sizes=(1, 4), sequence_lengths=(8, 16))
    engine = backend_module("tensorrt").load(engine_path, None)
    card = engine.card
    assert (card.batch_sizes, card.sequence_lengths, card.network) == ([1, 4], [8, 16], "plugin")


def test_a_plan_of_another_release(engine_path, monkeypatch, rng):
    install("10.0.1", monkeypatch)
    config = small_config(rng)
    write(engine_path, "10.0.1", config, weights_of(config, rng), sequence_lengths=(8,))
    install("10.16.1", monkeypatch)
    with pytest.raises(DemoBertError, match="was built with tensorrt 10.0.1, this is 10.16.1"):
        load_engine(engine_path, "padded")
    with pytest.raises(DemoBertError, match="can't load"):
        backend_module("tensorrt").load(engine_path, None)


# Mistakes that have to show: each makes the build fail or the logits wrong.


def heads_swapped(monkeypatch):
    class Swapped(plugin_layers.PaddedPluginLayers):
        def query_key_value(self, hidden, kernel, bias, name):
            heads, size = self.config.num_attention_heads, self.config.head_size
            order = np.arange(3 * heads * size).reshape(3, heads, size)
            order[:, [0, 1]] = order[:, [1, 0]]
            return super().query_key_value(hidden, kernel[order.ravel()], bias[order.ravel()], name)

    monkeypatch.setattr("helpers.backends.tensorrt.plan_builder.PaddedPluginLayers", Swapped)


def heads_not_interleaved(monkeypatch):
    def query_key_value(self, hidden, kernel, bias, name):
        return self.dense(hidden, kernel, bias, name)

    monkeypatch.setattr(plugin_layers.PaddedPluginLayers, "query_key_value", query_key_value)


def unscaled(monkeypatch):
    monkeypatch.setattr(BertConfig, "attention_scale", 1.0)


def ids_not_transposed(monkeypatch):
    original = NetworkWriter.reshaped

    def reshaped(self, tensor, name, before=None, **other):
        return original(self, tensor, name, before=None if before == (1, 0) else before, **other)

    monkeypatch.setattr(NetworkWriter, "reshaped", reshaped)


def wrong_plugin_version(monkeypatch):
    versions = bert_plugins.PADDED_VERSIONS["deprecated"] | {bert_plugins.ATTENTION: "2"}
    monkeypatch.setitem(bert_plugins.PADDED_VERSIONS, "deprecated", versions)


def plugin_field_omitted(monkeypatch):
    original = bert_plugins.BertPlugins.create

    def create(self, plugin, name, fields):
        return original(self, plugin, name, [field for field in fields if field._name != "hidden_size"])

    monkeypatch.setattr(bert_plugins.BertPlugins, "create", create)


def mask_not_given(monkeypatch):
    monkeypatch.setattr(native_layers.PaddedNativeLayers, "_boolean_mask", lambda self, name: None)


def weights_not_kept(monkeypatch):
    original = NetworkWriter.weights

    def weights(self, array):
        found = original(self, np.array(array))
        self.keep.pop()
        return found

    monkeypatch.setattr(NetworkWriter, "weights", weights)


@pytest.mark.parametrize(
    "mistake, network",
    [
        (heads_swapped, "plugin"),
        (heads_not_interleaved, "plugin"),
        (unscaled, "native"),
        (ids_not_transposed, "plugin"),
        (wrong_plugin_version, "plugin"),
        (plugin_field_omitted, "plugin"),
        (mask_not_given, "native"),
        (weights_not_kept, "plugin"),
    ],
)
def test_a_mistake_would_be_seen(mistake, network, engine_path, monkeypatch):
    rng = np.random.default_rng(7)
    install("10.16.1", monkeypatch)
    config = BertConfig(32, 1, 4, 40, 50, 16)
    weights = weights_of(config, rng)

    def worst():
        write(engine_path, "10.16.1", config, weights, network=network, batch_sizes=(2,), sequence_lengths=(8,))
        return difference(load_engine(engine_path, "padded"), config, weights, "erf", 2, 8, rng)

    assert worst() < TOLERANCE["fp32"]
    mistake(monkeypatch)
    try:
        found = worst()
    except (DemoBertError, TensorRTDoubleError):
        return  # refused, by the backend or by the double: seen as well
    assert not found < 10 * TOLERANCE["fp32"]


def test_a_flag_that_tensorrt_11_lacks_would_be_seen(engine_path, monkeypatch, rng):
    from helpers.backends.tensorrt import plan_builder

    install("11.4.0", monkeypatch)
    original = plan_builder._builder_config

    def as_if_weakly_typed(trt, builder, options, weakly_typed):
        return original(trt, builder, options, weakly_typed=True)

    monkeypatch.setattr(plan_builder, "_builder_config", as_if_weakly_typed)
    config = small_config(rng)
    with pytest.raises(AttributeError, match="FP16"):
        write(engine_path, "11.4.0", config, weights_of(config, rng), sequence_lengths=(8,), precision="fp16")


# What the backend uses, held to NVIDIA's bindings; shapes and types, to TensorRT-RTX.


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("version", VERSIONS)
def test_all_that_the_backend_uses_is_in_the_real_module(version, engine_path, tmp_path, monkeypatch, rng):
    if bindings.extension(version) is None:
        pytest.skip(f"the bindings of TensorRT {version} were not fetched: tests/tensorrt_double/fetch_bindings.sh")
    double = install(version, monkeypatch)
    config = replace(small_config(rng), max_position_embeddings=16)
    weights = weights_of(config, rng)
    networks = [(network, interface) for release, network, interface in NETWORKS if release == version]
    for network, interface in networks:
        for gelu in ("erf", "tanh"):
            options = {"network": network, "plugin_version": interface, "strict": True, "sparse": True, "verbose": True}
            options |= {"workspace_mib": 100, "batch_sizes": (1, 2), "sequence_lengths": (8, 16)}
            write(engine_path, version, config, weights, gelu, **options, timing_cache=str(tmp_path / "cache"))
            engine = load_engine(engine_path, "padded")
            engine.time(PaddedBatch(*random_inputs(config, rng, 2, 16)), 2)
            engine.close()
    assert len(double.recorder.calls) > 40
    assert bindings.uses_unknown(double.recorder.calls, bindings.real_surface(version, tmp_path)) == []


def native_bert(trt, network, precision, gelu, batch_size, length):
    """Writes a native BERT into any module's network; for `rtx.compare`."""
    rng = np.random.default_rng(3)
    config = BertConfig(48, 2, 4, 56, 60, 32)
    layers = native_layers.PaddedNativeLayers(trt, network, None, config, precision, (batch_size, length))
    build_bert(layers, replace(config, gelu=gelu), weights_of(config, rng))
    return layers


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("precision, gelu", [("fp32", "erf"), ("fp16", "tanh"), ("bf16", "erf")])
@pytest.mark.parametrize("sizes", [(2, 8), (-1, 8), (-1, -1)], ids=str)
def test_shapes_and_types_are_those_that_tensorrt_rtx_infers(precision, gelu, sizes):
    if rtx.real_module_folder() is None:
        pytest.skip("TensorRT-RTX is not installed: pip install -r requirements-rtx.txt")
    assert rtx.compare("tests.test_tensorrt_engines:native_bert", [precision, gelu, *sizes]) == []


# The scripts, end to end, on the bundled model


def run_script(version, *arguments, capability="8.6"):
    command = [sys.executable, "-m", "tests.tensorrt_double", version, *map(str, arguments)]
    environment = dict(os.environ, TENSORRT_DOUBLE_COMPUTE_CAPABILITY=capability)
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.sampled(0.5)
@pytest.mark.parametrize("version", ["8.6.1", "11.4.0"])
def test_builder_inference_and_perf(version, engine_path, tmp_path):
    sizes = ("-b", 1, "-b", 2, "-s", 32, "-s", 64)
    built = run_script(version, "builder.py", "-pt", BUNDLED, "-o", engine_path, *sizes)
    assert built.returncode == 0, built.stderr
    assert f"Backend: tensorrt (tensorrt {version} runs on" in built.stderr
    passage = "TensorRT is a high performance deep learning inference platform"
    asked = run_script(version, "inference.py", "-e", engine_path, "-p", passage, "-q", "What is TensorRT?", "-b", 2)
    assert "deep learning inference platform" in asked.stdout.split("Answer:")[-1], asked.stderr
    report = tmp_path / "perf.json"
    flags = ("-b", 1, "-b", 2, "-s", 64, "-i", 1, "-w", 0, "--json", report)
    timed = run_script(version, "perf.py", "-e", engine_path, *flags)
    assert timed.returncode == 0, timed.stderr
    assert [row["batch_size"] for row in json.loads(report.read_text())["timings"]] == [1, 2]
