"""The double is held to NVIDIA's own modules: their API, release by release, and TensorRT-RTX's shape inference."""

import shutil

import pytest

from tests.tensorrt_double import VERSIONS, bindings, install, networks, rtx, test_plugins
from tests.tensorrt_double.harness import execute

pytestmark = pytest.mark.usefixtures("int8_norms_of_any_size")

_FETCH = "run tests/tensorrt_double/fetch_bindings.sh with this environment's Python"


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """`real(version)`: the real module's surface, loaded once."""
    known = {}

    def surface(version: str) -> dict:
        if bindings.extension(version) is None:
            pytest.skip(f"the real bindings of TensorRT {version} were not fetched: {_FETCH}")
        if version != "rtx-1.7.1" and shutil.which("gcc") is None:
            pytest.skip("no gcc to compile the stub libraries with")
        if version not in known:
            known[version] = bindings.real_surface(version, tmp_path_factory.mktemp("stubs"))
        return known[version]

    return surface


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("version", VERSIONS)
def test_everything_the_double_offers_is_in_the_real_module(version, real, monkeypatch):
    double = install(version, monkeypatch)
    offered = bindings.offered(double.module, version)
    assert len(offered["classes"]) > 35, "the double's classes were not found"
    assert bindings.mismatches(offered, real(version)) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_module_functions_and_types_are_the_real_ones(version, real, monkeypatch):
    module, surface = install(version, monkeypatch).module, real(version)
    for name in ("init_libnvinfer_plugins", "get_plugin_registry"):
        assert name in surface["functions"]
    types = {name for name in vars(module) if type(getattr(module, name)).__name__ == "DataType"}
    assert types and types <= set(surface["values"])


def test_the_check_notices_what_a_release_lacks(real, monkeypatch):
    """The comparison has teeth: the API of 10.16 offered as 11.4's, or 11.4's as 10.0's, is full of mismatches."""
    offered = bindings.offered(install("10.16.1", monkeypatch).module, "10.16.1")
    found = bindings.mismatches(offered, real("11.4.0"))
    for expected in (
        "BuilderFlag.FP16 = 0, really None",
        "BuilderFlag.REFIT_IDENTICAL = 20, really 19",
        "ITensor.set_dynamic_range does not exist",
        "ITensor.dtype can't be set",
        "IPluginRegistry.get_plugin_creator does not exist",
        "INetworkDefinition.add_quantize: needs ['input', 'scale', 'output_type'], the double ['input', 'scale']",
    ):
        assert expected in found
    offered = bindings.offered(install("11.4.0", monkeypatch).module, "11.4.0")
    found = bindings.mismatches(offered, real("10.0.1"))
    assert "there is no class IAttention" in found
    assert "INetworkDefinition.add_normalization_v2 does not exist" in found


def test_recorded_uses_are_checked_with_their_arguments(real):
    surface = real("10.16.1")
    good = {
        ("INetworkDefinition", "add_gather"): {(2, ("axis",)), (3, ())},
        ("IShuffleLayer", "reshape_dims="): {(0, ())},
        ("INetworkDefinition", "add_quantize"): {(2, ()), (3, ())},
    }
    assert bindings.uses_unknown(good, surface) == []
    for owner, name, form in (
        ("INetworkDefinition", "add_gather", (1, ("axis",))),
        ("INetworkDefinition", "add_gather", (2, ("axes",))),
        ("INetworkDefinition", "add_attention_v2", (5, ())),
        ("IConcatenationLayer", "axes=", (0, ())),
        ("ITensor", "is_network_input=", (0, ())),
    ):
        assert len(bindings.uses_unknown({(owner, name): {form}}, surface)) == 1, (owner, name, form)


@pytest.mark.parametrize("version", ["11.4.0", "rtx-1.7.1"])
def test_what_a_build_touches_is_in_the_real_module(version, real, monkeypatch):
    """How the backend's builds are checked too: record, then look every name and call up."""
    double = install(version, monkeypatch)
    network = double.module.Builder(double.module.Logger()).create_network(0)
    networks.every_layer(double.module, network)
    assert len(double.recorder.calls) > 40
    assert bindings.uses_unknown(double.recorder.calls, real(version)) == []


@pytest.mark.parametrize(("version", "interface"), [("8.6.1", 2), ("10.0.1", 2), ("10.16.1", 2), ("10.16.1", 3)])
@pytest.mark.parametrize("variant", ["padded", "megatron"])
def test_what_a_plugin_build_and_a_run_touch_is_in_the_real_module(version, interface, variant, real, monkeypatch, rng):
    double = install(version, monkeypatch)
    feeds = test_plugins.packed_feeds(rng, [3, 2])
    if variant == "padded":
        feeds = test_plugins.padded_feeds(rng, [3, 2], 4)
    block = test_plugins.Block(double.module, variant, interface, test_plugins.make_weights(rng))
    block.write()
    execute(double, block.engine(feeds), feeds)
    calls = double.recorder.calls
    assert {("IExecutionContext", "execute_async_v3"), ("PluginField", "__init__")} <= set(calls)
    assert bindings.uses_unknown(calls, real(version)) == []


_EVERY_LAYER = "tests.tensorrt_double.networks:every_layer"


@pytest.mark.parametrize("sizes", [(-1, -1), (2, -1), (3, 7)])
def test_inferred_shapes_and_types_equal_tensorrt_rtx(sizes):
    if rtx.real_module_folder() is None:
        pytest.skip(f"tensorrt_rtx was not fetched: {_FETCH}")
    assert rtx.compare(_EVERY_LAYER, list(sizes)) == []


def test_index_arithmetic_is_inferred_as_in_tensorrt_rtx():
    if rtx.real_module_folder() is None:
        pytest.skip(f"tensorrt_rtx was not fetched: {_FETCH}")
    assert rtx.compare("tests.tensorrt_double.networks:packed_attention") == []


def test_a_difference_from_tensorrt_rtx_would_be_seen():
    ours = rtx.describe_double(_EVERY_LAYER)
    assert len(ours) > 70, "the network is not what it was"
    theirs = rtx.describe_double(_EVERY_LAYER, [2, -1])
    assert rtx.differences(ours, theirs)
