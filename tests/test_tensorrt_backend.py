"""The TensorRT backend without TensorRT or a GPU: profiles, padding, bfloat16, what is said of what is missing.

The networks' numbers are test_tensorrt_engines.py's business, NVIDIA's builder test_tensorrt_rtx_builds.py's.
"""

import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.backends import tensorrt, tensorrt_rtx
from helpers.backends.tensorrt import engine, gpu, module, plan_builder
from helpers.backends.tensorrt.bert_plugins import find_plugins
from helpers.backends.tensorrt.native_layers import bfloat16_bits
from helpers.backends.tensorrt.plan_builder import Profile
from helpers.batching import PaddedBatch
from helpers.bert_config import BertConfig
from helpers.build_options import BuildOptions
from helpers.engine_card import EngineCard
from helpers.errors import DemoBertError, UsageError

CONFIG = BertConfig(48, 1, 4, 64, 100, 64)
A10 = gpu.Gpu("NVIDIA A10", (8, 6))


def card(**changes):
    values = EngineCard("tensorrt", "10.16.1", str(A10), "padded", "plugin", ["fp32"], [1], [16], CONFIG)
    return replace(values, **changes)


@pytest.fixture
def fake(monkeypatch):
    """Stand-ins for `tensorrt` and `pycuda.driver`, with no more than what is looked at before an engine is touched."""

    class ILogger:
        ERROR, INTERNAL_ERROR = "error", "internal error"

    class CudaError(Exception):
        pass

    class Device:
        capability, devices = (8, 6), 1

        def __init__(self, index):
            pass

        name = staticmethod(lambda: "NVIDIA A10")
        count = staticmethod(lambda: Device.devices)
        compute_capability = staticmethod(lambda: Device.capability)

    trt = types.ModuleType("tensorrt")
    trt.__version__, trt.ILogger, trt.BuilderFlag = "10.16.1", ILogger, types.SimpleNamespace()
    driver = types.ModuleType("pycuda.driver")
    driver.init, driver.Device, driver.Error = lambda: None, Device, CudaError
    pycuda = types.ModuleType("pycuda")
    pycuda.driver = driver
    for name, stand_in in (("tensorrt", trt), ("tensorrt_rtx", trt), ("pycuda", pycuda), ("pycuda.driver", driver)):
        monkeypatch.setitem(sys.modules, name, stand_in)
    return types.SimpleNamespace(trt=trt, driver=driver, monkeypatch=monkeypatch)


def one_line(caught):
    text = str(caught.value)
    assert "\n" not in text
    return text


# Optimization profiles


def test_one_profile_for_each_batch_size_and_length_ascending():
    options = BuildOptions(batch_sizes=(1, 8), sequence_lengths=(64, 128))
    expected = [Profile(1, 64), Profile(1, 128), Profile(8, 64), Profile(8, 128)]
    assert plan_builder.profiles_for(options) == expected
    assert plan_builder.input_shape(options) == (-1, -1)


@pytest.mark.parametrize(
    "batch_sizes, lengths, independent, shape",
    [
        ((3,), (128,), False, (3, 128)),
        ((3,), (128,), True, (3, 128)),
        ((1, 3), (128,), False, (-1, 128)),
        ((3,), (64, 128), False, (-1, -1)),
        ((3,), (64, 128), True, (3, 128)),
        ((1, 3), (64, 128), True, (-1, 128)),
    ],
)
def test_dimensions_are_static_where_one_size_is_served(batch_sizes, lengths, independent, shape):
    options = BuildOptions(batch_sizes=batch_sizes, sequence_lengths=lengths, distributive_independence=independent)
    assert plan_builder.input_shape(options) == shape
    if independent:
        assert plan_builder.profiles_for(options) == [Profile(3, 128)]


# Padding to a profile


def session_with(*profiles):
    session = engine.Session.__new__(engine.Session)
    session.profiles = list(profiles)
    return session


def test_the_profile_with_the_least_padding_is_taken():
    session = session_with(Profile(1, 64), Profile(8, 64), Profile(1, 128), Profile(8, 128))
    best = {(1, 10): 0, (1, 64): 0, (2, 64): 1, (1, 65): 2, (8, 128): 3, (9, 1): None, (1, 129): None}
    assert {size: session.profile_for(*size) for size in best} == best


def test_a_shorter_profile_goes_before_one_of_fewer_rows():
    session = session_with(Profile(1, 128), Profile(8, 64))
    assert [session.profile_for(1, length) for length in (64, 65)] == [1, 0]


def test_the_profiles_order_in_the_plan_does_not_matter():
    session = session_with(Profile(8, 128), Profile(1, 128), Profile(8, 64), Profile(1, 64))
    assert [session.profile_for(*size) for size in ((1, 10), (2, 10), (1, 65), (2, 65))] == [3, 2, 1, 0]


@pytest.mark.parametrize("seed", range(5))
def test_inputs_are_padded_with_masked_columns_and_whole_rows(seed):
    rng = np.random.default_rng(seed)
    rows, length = rng.integers(1, 5), rng.integers(1, 9)
    ids, segments = rng.integers(1, 9, (2, rows, length), dtype=np.int32)
    batch = PaddedBatch(ids, segments, np.ones_like(ids))
    padded = engine._padded_inputs(batch, rows + 2, length + 3)
    for name, array in padded.items():
        assert array.shape == (rows + 2, length + 3) and array.dtype == np.int32
        assert (array[:rows, :length] == getattr(batch, name)).all()
        assert not array[:, length:].any()
    # Rows without a token would divide by zero in softmax.
    assert padded["input_mask"][:, 0].all()


# bfloat16


@pytest.mark.parametrize("seed", range(3))
def test_bfloat16_rounds_to_nearest_even(seed):
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 1 << 32, 100_000, dtype=np.uint32)
    ties = (bits & 0xFFFF0000) | 0x8000
    values = np.concatenate([bits, ties]).view(np.float32)
    values = values[np.isfinite(values)]
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()
    np.testing.assert_array_equal(bfloat16_bits(values), expected)


def test_bfloat16_keeps_nan_and_infinity():
    values = np.array([np.nan, -np.nan, np.inf, -np.inf], np.float32)
    back = (bfloat16_bits(values).astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(back, [np.nan, np.nan, np.inf, -np.inf])


# What is missing, in one line


def test_a_missing_package_is_named_with_its_requirements_file(monkeypatch):
    for backend, name in ((tensorrt, "tensorrt"), (tensorrt_rtx, "tensorrt_rtx")):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(DemoBertError) as caught:
            backend.prepare(CONFIG, BuildOptions())
        file = {"tensorrt": "requirements-gpu.txt", "tensorrt_rtx": "requirements-rtx.txt"}[name]
        assert one_line(caught).endswith(f"needs the package {name}, which is not installed: pip install -r {file}")
        usable, reason = backend.usable()
        assert not usable and reason == f"{name} is not installed"


@pytest.mark.parametrize("error", ["OSError", "ImportError", "RuntimeError"])
def test_a_package_that_does_not_load_is_told_from_one_that_is_missing(tmp_path, monkeypatch, error):
    (tmp_path / "tensorrt.py").write_text(f"raise {error}('libnvinfer.so.10:\\ncannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(DemoBertError, match="installed but can't be loaded: libnvinfer.so.10: cannot open") as caught:
        tensorrt.load("bert.engine", card())
    one_line(caught)


@pytest.mark.parametrize(
    "driver_is_there, message", [(True, "pip install pycuda"), (False, "no NVIDIA GPU answers .NVIDIA's driver is not")]
)
def test_pycuda_is_asked_for_where_there_is_a_driver(fake, driver_is_there, message):
    fake.monkeypatch.setitem(sys.modules, "pycuda", None)
    fake.monkeypatch.delitem(sys.modules, "pycuda.driver")
    fake.monkeypatch.setattr(gpu, "_has_driver", lambda: driver_is_there)
    with pytest.raises(DemoBertError, match=message) as caught:
        tensorrt.load("bert.engine", card())
    one_line(caught)


@pytest.mark.parametrize(
    "driver_is_there, message",
    [(True, "the package pycuda is installed but can't be loaded: undefined symbol"), (False, "no NVIDIA GPU answers")],
)
def test_a_pycuda_that_does_not_load(fake, tmp_path, driver_is_there, message):
    (tmp_path / "pycuda").mkdir()
    (tmp_path / "pycuda/__init__.py").touch()
    (tmp_path / "pycuda/driver.py").write_text("raise ImportError('undefined symbol: cuArrayCreate_v2')")
    fake.monkeypatch.syspath_prepend(tmp_path)
    for name in ("pycuda", "pycuda.driver"):
        fake.monkeypatch.delitem(sys.modules, name)
    fake.monkeypatch.setattr(gpu, "_has_driver", lambda: driver_is_there)
    with pytest.raises(DemoBertError, match=message):
        tensorrt.load("bert.engine", card())


def no_device(fake):
    fake.driver.Device.devices = 0


def no_driver(fake):
    def init():
        raise fake.driver.Error("cuInit failed:\nno CUDA-capable device is detected")

    fake.driver.init = init


@pytest.mark.parametrize("happens", [no_device, no_driver])
def test_without_a_gpu(fake, happens):
    happens(fake)
    for act in (
        lambda: tensorrt.load("bert.engine", card()),
        lambda: tensorrt_rtx.load("bert.engine", card(backend="tensorrt_rtx")),
        lambda: tensorrt.prepare(CONFIG, BuildOptions()),
    ):
        with pytest.raises(DemoBertError, match="no NVIDIA GPU answers .*--backend openvino runs on the CPU") as caught:
            act()
        one_line(caught)
    usable, reason = tensorrt.usable()
    assert not usable and "no NVIDIA GPU answers" in reason


def test_usable_where_both_are_there(fake):
    assert tensorrt.usable() == (True, "tensorrt 10.16.1 runs on NVIDIA A10 (compute capability 8.6)")


# Engines that do not fit


def test_a_plan_of_another_version(fake):
    with pytest.raises(DemoBertError, match="built with tensorrt 8.6.1, this is 10.16.1.*build it again") as caught:
        tensorrt.load("bert.engine", card(backend_version="8.6.1"))
    one_line(caught)


@pytest.mark.parametrize("device", ["NVIDIA L4 (compute capability 8.9)", "NVIDIA A10 (compute capability 8.9)"])
def test_a_plan_for_another_gpu(fake, device):
    with pytest.raises(DemoBertError, match="was built for .*this GPU is NVIDIA A10 .compute capability 8.6."):
        tensorrt.load("bert.engine", card(device=device))


@pytest.mark.parametrize(
    "targets, capability, fits",
    [
        ("", (8, 0), True),
        ("", (12, 0), True),
        ("", (7, 5), False),
        ("8.9 12.0", (8, 9), True),
        ("8.9 12.0", (8, 6), False),
    ],
)
def test_rtx_plans_fit_their_targets(fake, targets, capability, fits):
    fake.driver.Device.capability = capability
    try:
        tensorrt_rtx.load("/nonexistent/bert.engine", card(settings={"compute_capabilities": targets}))
    except DemoBertError as error:
        # The file is opened only after the GPU was found to fit.
        assert ("No such file" in str(error)) == fits


def test_an_engine_that_can_not_be_read(fake):
    with pytest.raises(DemoBertError, match="the engine /nonexistent/bert.engine can't be read: No such file"):
        tensorrt.load("/nonexistent/bert.engine", card())


# Flags that do not fit


@pytest.mark.parametrize(
    "capability, options, message",
    [
        ((7, 0), {"quantize": "int8", "force_int8_multihead": True}, "-imh needs compute capability 7.5; this GPU is"),
        ((7, 2), {"quantize": "int8", "force_int8_multihead": True}, "-imh needs compute capability 7.5"),
        ((7, 0), {"quantize": "int8", "force_int8_skipln": True}, "-iln needs compute capability 7.2"),
        ((8, 6), {"quantize": "fp8"}, "--fp8 needs compute capability 8.9"),
        ((8, 6), {"compute_capabilities": ("8.6",)}, "--compute-capability is TensorRT-RTX's"),
        ((8, 6), {"distributive_independence": True}, "TensorRT 10.16.1 has no --distributive_independence"),
        ((8, 6), {"network": "native", "plugin_version": "v3"}, "--network native has no plugins"),
        ((8, 6), {"network": "plugin"}, "tensorrt 10.16.1 has no BERT plugins; use --network native"),
        ((8, 6), {"plugin_version": "deprecated"}, "tensorrt 10.16.1 has no deprecated BERT plugins"),
    ],
)
def test_flags_that_this_machine_or_release_can_not_serve(fake, capability, options, message):
    fake.driver.Device.capability = capability
    with pytest.raises(UsageError, match=message) as caught:
        tensorrt.prepare(CONFIG, BuildOptions(**options))
    one_line(caught)


# Plugins by registry


class Registry:
    """Has the creators of `names`, as (plugin, version)."""

    def __init__(self, names, v2=True, v3=True):
        self.names = names
        if v2:
            self.get_plugin_creator = self.find
        if v3:
            self.get_creator = self.find

    def find(self, plugin, version, namespace):
        return (plugin, version) if (plugin, version) in self.names else None


V2 = {("CustomEmbLayerNormPluginDynamic", "1"), ("CustomQKVToContextPluginDynamic", "1")}
V2 |= {("CustomSkipLayerNormPluginDynamic", "1")}
V3 = {("CustomEmbLayerNormPluginDynamic", "6"), ("CustomQKVToContextPluginDynamic", "4")}
V3 |= {("CustomSkipLayerNormPluginDynamic", "5")}
WEAK, STRONG = types.SimpleNamespace(FP16=0), types.SimpleNamespace()


@pytest.mark.parametrize(
    "names, interfaces, asked, found",
    [
        (V2 | V3, (True, True), None, "deprecated"),
        (V2 | V3, (True, True), "v3", "v3"),
        (V2, (True, False), None, "deprecated"),
        (V2, (True, False), "v3", None),
        (V2, (True, True), "v3", None),
        (V3, (True, True), None, "v3"),
        (V3, (True, True), "deprecated", None),
        (set(list(V2)[1:]), (True, True), None, None),
    ],
)
def test_the_plugin_interface_is_the_one_asked_for_or_the_first_that_is_whole(names, interfaces, asked, found):
    trt = types.SimpleNamespace(BuilderFlag=WEAK)
    plugins = find_plugins(trt, Registry(names, *interfaces), asked)
    assert (plugins and plugins.interface) == found


def test_a_release_without_weak_typing_gets_no_plugins_whatever_its_registry_holds():
    assert find_plugins(types.SimpleNamespace(BuilderFlag=STRONG), Registry(V2 | V3), None) is None


# TensorRT's log


class LogSource:
    ERROR, INTERNAL_ERROR, WARNING = (types.SimpleNamespace(name=name) for name in ("ERROR", "INTERNAL", "WARNING"))


def test_the_first_error_is_the_reason_and_a_missing_driver_does_not_hide_it(capsys):
    trt = types.ModuleType("tensorrt")
    trt.ILogger = type("ILogger", (LogSource,), {})
    logger = module.logger_of(trt)
    assert module.logger_of(trt) is logger
    logger.log(LogSource.WARNING, "slow")
    logger.log(LogSource.ERROR, "the\ncause")
    logger.log(LogSource.ERROR, "cudaError 35: no driver")
    logger.log(LogSource.INTERNAL_ERROR, "what follows")
    assert str(module.explain(logger, "no engine")) == "no engine: the cause"
    assert str(module.explain(logger, "no engine", index=-1)) == "no engine: what follows"
    assert capsys.readouterr() == ("", "")
    logger.start(verbose=True)
    assert "gave no reason" in str(module.explain(logger, "no engine"))
    logger.log(LogSource.WARNING, "slow")
    assert "WARNING: slow" in capsys.readouterr().err
