"""The `tensorrt` (or `tensorrt_rtx`) module, its logger and its plugins: loaded when asked for, not before."""

import ctypes
import functools
import importlib
import sys
from dataclasses import dataclass

from helpers.errors import DemoBertError, missing_package, one_line

#: How the CUDA runtime says that there is no driver.
_NO_DRIVER = "cudaError 35"


#: First bytes of TensorRT-RTX's plans. TensorRT's own differ in the first letter, by release.
RTX_PLAN_MAGIC = b"vtrt"


@dataclass(frozen=True)
class Flavour:
    """One of the two TensorRTs: same API, other module, other reach.

    backend         its name on the command line and in the engine card
    module          the Python module
    requirements    the file that installs it
    portable        builds without a GPU, for several compute capabilities (TensorRT-RTX)
    """

    backend: str
    module: str
    requirements: str
    portable: bool


TENSORRT = Flavour("tensorrt", "tensorrt", "requirements-gpu.txt", portable=False)
TENSORRT_RTX = Flavour("tensorrt_rtx", "tensorrt_rtx", "requirements-rtx.txt", portable=True)


def load(flavour: Flavour):
    """The TensorRT module. Raises DemoBertError, in one line, where it is missing or can't be loaded."""
    try:
        return importlib.import_module(flavour.module)
    except ModuleNotFoundError as error:
        if error.name != flavour.module:
            raise unloadable(flavour.module, error) from error
        raise missing_package(flavour.module, f"-r {flavour.requirements}", f"--backend {flavour.backend}") from error
    except Exception as error:  # a library that is missing or too old: ImportError, OSError, RuntimeError by release
        raise unloadable(flavour.module, error) from error


def unloadable(package: str, error: Exception) -> DemoBertError:
    return DemoBertError(f"the package {package} is installed but can't be loaded: {one_line(error)}")


@functools.cache
def logger_of(trt):
    """The logger of a TensorRT module: one a process, since TensorRT keeps to the first that it is given.

    `.errors` holds the error messages, each in one line, since `.start(verbose)`; `verbose` passes everything on to
    stderr. TensorRT's errors become the text of a DemoBertError, so that they are not printed twice.
    """

    class Logger(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)
            self.start(verbose=False)

        def start(self, verbose: bool) -> None:
            self.verbose = verbose
            self.errors = []

        def log(self, severity, msg):
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                # Without a driver TensorRT-RTX follows each error by this one, which only hides the cause.
                if not (self.errors and _NO_DRIVER in msg):
                    self.errors.append(one_line(msg))
            if self.verbose:
                print(f"[{trt.__name__}] {severity.name}: {msg}", file=sys.stderr)

    return Logger()


def explain(logger, what: str, index: int = 0) -> DemoBertError:
    """The error for `what`, with one of TensorRT's own messages as the reason: the first (the cause), or `index`."""
    reason = logger.errors[index] if logger.errors else "it gave no reason; see --verbose"
    return DemoBertError(f"{what}: {reason}")


def plugin_registry(trt, logger):
    """The registry with TensorRT's own plugins in it; None where TensorRT has no plugins to load."""
    if not hasattr(trt, "init_libnvinfer_plugins"):
        return None
    for library in _plugin_libraries(trt):
        try:
            # Symbols of the plugin library must be visible to libnvinfer, which looks creators up by name.
            ctypes.CDLL(library, mode=getattr(ctypes, "RTLD_GLOBAL", 0))
            break
        except OSError:
            continue  # the Python package may have loaded it from its own folder already
    trt.init_libnvinfer_plugins(logger, "")
    return trt.get_plugin_registry()


def _plugin_libraries(trt) -> list[str]:
    major = trt.__version__.split(".")[0]
    if sys.platform == "win32":
        return [f"nvinfer_plugin_{major}.dll", "nvinfer_plugin.dll"]
    return [f"libnvinfer_plugin.so.{major}", "libnvinfer_plugin.so"]


def plan_magic(path) -> bytes:
    """The first four bytes of a file."""
    with open(path, "rb") as file:
        return file.read(len(RTX_PLAN_MAGIC))
