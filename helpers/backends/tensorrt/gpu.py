"""NVIDIA's GPU and driver, by way of PyCUDA: loaded when asked for, not before."""

import ctypes
import importlib
import sys
from dataclasses import dataclass

from helpers.backends.tensorrt.module import unloadable
from helpers.errors import DemoBertError, missing_package, one_line


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU: its name as the driver spells it, and its compute capability (major, minor)."""

    name: str
    compute_capability: tuple

    def __str__(self) -> str:
        major, minor = self.compute_capability
        return f"{self.name} (compute capability {major}.{minor})"


def rtx_supports(capability: tuple) -> bool:
    """Whether TensorRT-RTX 1.7 runs on GPUs of this compute capability: not on Hopper (9.0), nor on B200's 10.x."""
    return capability in ((7, 5), (8, 0), (8, 6), (8, 9)) or capability >= (12, 0)


def cuda_driver():
    """`pycuda.driver`, initialised. Raises DemoBertError where PyCUDA or a GPU is missing."""
    try:
        driver = importlib.import_module("pycuda.driver")
    except ModuleNotFoundError as error:
        if not _has_driver():  # whoever has no GPU need not build PyCUDA to be told so
            raise _no_gpu("NVIDIA's driver is not installed") from error
        raise missing_package("pycuda", "pycuda", "running on an NVIDIA GPU") from error
    except Exception as error:  # linked to a driver (libcuda) that is missing, or built for another CUDA
        raise (unloadable("pycuda", error) if _has_driver() else _no_gpu(error)) from error
    try:
        driver.init()
        count = driver.Device.count()
    except driver.Error as error:
        raise _no_gpu(error) from error
    if not count:
        raise _no_gpu("no device found")
    return driver


def _has_driver() -> bool:
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def _no_gpu(error) -> DemoBertError:
    return DemoBertError(
        f"no NVIDIA GPU answers ({one_line(error)}); an engine built with --backend openvino runs on the CPU"
    )


def gpu(driver, index: int = 0) -> Gpu:
    """GPU `index` of this machine, by `cuda_driver()`."""
    device = driver.Device(index)
    return Gpu(device.name(), tuple(device.compute_capability()))
