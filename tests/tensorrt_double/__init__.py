"""A strict stand-in for `tensorrt`, `tensorrt_rtx` and the little of `pycuda` that the engines use.

    double = install("10.16.1", monkeypatch)
    import tensorrt            # the double's
    double.recorder.calls      # what of the API was touched

What it offers is held to NVIDIA's own modules (bindings.py, rtx.py; fetch_bindings.sh gets them); so can a build be:
`bindings.uses_unknown(double.recorder.calls, bindings.real_surface(version, folder)) == []` says that everything the
build touched is in the real release, and `rtx.compare("module:function")` that every tensor of a network has the shape
and type that `tensorrt_rtx` infers.

Of the API of the version it plays it has what demoBERT uses, and no more: layers.py lists the layers. It checks every
argument, infers shapes like the builder, refuses what TensorRT would refuse (or silently misread) and computes networks
in numpy float64. From a shell:

    TENSORRT_DOUBLE_COMPUTE_CAPABILITY=8.6 python -m tests.tensorrt_double 10.16.1 builder.py -o …

With TENSORRT_DOUBLE_FLOATS=half weakly typed networks hold floats between layers in half (numerics.py).
"""

import ctypes
import os
import sys
import types
from dataclasses import dataclass, field

from tests.tensorrt_double.api import make_module, plugin_library_loader
from tests.tensorrt_double.classes import Recorder
from tests.tensorrt_double.cuda import Gpu, make_modules
from tests.tensorrt_double.versions import VERSIONS, TensorRTDoubleError

__all__ = ["VERSIONS", "Double", "TensorRTDoubleError", "install"]

_ENVIRONMENT = "TENSORRT_DOUBLE_COMPUTE_CAPABILITY"
_ALL_MODULES = ("tensorrt", "tensorrt_rtx", "pycuda", "pycuda.driver", "pycuda.autoinit")


@dataclass
class Double:
    """An installed double: its module, its GPU's state, and what of the API was touched."""

    module: types.ModuleType
    gpu: Gpu
    recorder: Recorder
    _saved: dict = field(default_factory=dict)

    def uninstall(self) -> None:
        """Puts back what `install` without monkeypatch replaced."""
        for name, module in self._saved["modules"].items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module
        ctypes.CDLL = self._saved["CDLL"]


def install(version: str, monkeypatch=None, compute_capability: tuple[int, int] | None | str = "environment") -> Double:
    """Puts the stand-ins into sys.modules, by pytest's monkeypatch if given; returns the double.

    `version` is a key of VERSIONS. `compute_capability` is that of the one GPU; None: there is none; by default what
    TENSORRT_DOUBLE_COMPUTE_CAPABILITY says ("8.6" or "none"), else (8, 6). The other TensorRT can't be imported.
    """
    played = VERSIONS[version]
    if compute_capability == "environment":
        text = os.environ.get(_ENVIRONMENT, "8.6")
        compute_capability = None if text == "none" else tuple(int(part) for part in text.split("."))
    gpu, recorder = Gpu(compute_capability), Recorder()
    module = make_module(played, gpu, recorder)
    modules = dict.fromkeys(_ALL_MODULES) | make_modules(gpu) | {played.module: module}
    double = Double(module, gpu, recorder)
    loader = plugin_library_loader(played)
    if monkeypatch is not None:
        for name, replacement in modules.items():
            monkeypatch.setitem(sys.modules, name, replacement)
        monkeypatch.setattr(ctypes, "CDLL", loader)
        return double
    double._saved = {"modules": {name: sys.modules.get(name) for name in modules}, "CDLL": ctypes.CDLL}
    sys.modules.update(modules)
    ctypes.CDLL = loader
    return double
