"""Compares networks written into the double with the same networks in NVIDIA's own `tensorrt_rtx`, tensor by tensor.

The real module is loaded in a subprocess, because this process may have the double under the same name, and because
its native library should not live in the test runner.
"""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def real_module_folder() -> Path | None:
    """Where the `tensorrt_rtx` package is (the environment, or DEMOBERT_TENSORRT_RTX), None where it is nowhere."""
    if folder := os.environ.get("DEMOBERT_TENSORRT_RTX"):
        return Path(folder) if (Path(folder) / "tensorrt_rtx").is_dir() else None
    cached = Path(sys.prefix) / "bindings" / "tensorrt_rtx"
    if (cached / "tensorrt_rtx").is_dir():
        return cached
    spec = importlib.util.find_spec("tensorrt_rtx") if sys.modules.get("tensorrt_rtx") is None else None
    return Path(spec.origin).parents[1] if spec and spec.origin else None


def describe(network) -> list[dict]:
    """Each layer's kind and each output's shape and type, for any module's INetworkDefinition.

    An attention's input layer is left out: its tensors are TensorRT's own affair.
    """
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    return [
        {"layer": layer.name, "type": _kind(network, layer), "outputs": _outputs(layer)}
        for layer in layers
        if _kind(network, layer) != "ATTENTION_INPUT"
    ]


def _kind(network, layer) -> str:
    # An activation layer's `type` is its function: the base class knows the layer's.
    kind = layer.type
    return "ACTIVATION" if type(kind).__name__ == "ActivationType" else kind.name


def _outputs(layer) -> list:
    tensors = [layer.get_output(i) for i in range(layer.num_outputs)]
    return [[list(tensor.shape), tensor.dtype.name] for tensor in tensors]


def describe_double(target: str, arguments: list | None = None) -> list[dict]:
    """`describe` of what the function "module:name" puts into the double's network."""
    from tests.tensorrt_double import install

    double, write = install("rtx-1.7.1"), _function(target)
    try:
        network = double.module.Builder(double.module.Logger()).create_network(0)
        keep = write(double.module, network, *arguments or [])
        found = describe(network)
        del keep
        return found
    finally:
        double.uninstall()


def describe_real(target: str, arguments: list | None = None) -> list[dict]:
    """`describe` of what the function "module:name" puts into the real network (see `compare`)."""
    folder = real_module_folder()
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(folder), str(ROOT)]))
    command = [sys.executable, "-m", "tests.tensorrt_double.rtx", target, json.dumps(arguments or [])]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    if result.returncode:
        raise RuntimeError(f"tensorrt_rtx: {result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def _function(target: str):
    module, name = target.split(":")
    return getattr(importlib.import_module(module), name)


def compare(target: str, arguments: list | None = None) -> list[str]:
    """Where the double's inference and NVIDIA's differ, for the network that a function writes; empty is good.

    `target` is "package.module:function"; it is called as function(trt, network, *arguments), with JSON arguments, and
    returns whatever has to stay alive (the weights' arrays).
    """
    return differences(describe_double(target, arguments), describe_real(target, arguments))


def differences(ours: list[dict], theirs: list[dict]) -> list[str]:
    """What differs, one line each; empty when every tensor agrees."""
    if len(ours) != len(theirs):
        return [f"{len(ours)} layers in the double, {len(theirs)} in tensorrt_rtx"]
    return [
        f"{a['layer']} ({a['type']} {a['outputs']}) is {b['layer']} ({b['type']} {b['outputs']}) in tensorrt_rtx"
        for a, b in zip(ours, theirs)
        if (a["type"], a["outputs"]) != (b["type"], b["outputs"])
    ]


def _main(target: str, arguments: str) -> None:
    import tensorrt_rtx as trt

    write = _function(target)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    keep = write(trt, network, *json.loads(arguments))
    print(json.dumps(describe(network)))
    del keep


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2])
