"""Values as the double holds them: floats in float64 rounded to their type, integers in int64, booleans in bool."""

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tests.tensorrt_double.versions import TensorRTDoubleError

FLOATS = ("FLOAT", "HALF", "BF16")
INTEGERS = ("INT32", "INT64")
QUANTIZED = ("INT8", "FP8")

#: How a tensor of each type lies in device memory; bfloat16 as its bits.
STORAGE = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "BF16": np.uint16,
    "INT8": np.int8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "FP8": np.uint8,
}

#: Set to "half", weakly typed networks hold floats between layers in half, as an fp16 engine does that fuses nothing.
FLOATS_ENVIRONMENT = "TENSORRT_DOUBLE_FLOATS"

_LARGEST_FP8 = 448.0


def between_layers(array: np.ndarray) -> np.ndarray:
    """Floats of a weakly typed network, whose types are the builder's choice: as they are, or in half (above)."""
    return round_to(array, "HALF" if os.environ.get(FLOATS_ENVIRONMENT) == "half" else "FLOAT")


def round_to(array: np.ndarray, dtype: str) -> np.ndarray:
    """`array` rounded to `dtype`'s values, in the double's own representation.

    FLOAT stays in float64 on purpose: the double computes what an exact float32 network would mean. Integers out of
    their type's range are an error rather than a wrap-around.
    """
    if dtype == "FLOAT":
        return np.asarray(array, np.float64)
    if dtype == "HALF":
        with np.errstate(over="ignore"):
            return np.asarray(array, np.float64).astype(np.float16).astype(np.float64)
    if dtype == "BF16":
        return bfloat16_to_float(float_to_bfloat16(array))
    if dtype == "FP8":
        return _round_to_fp8(np.asarray(array, np.float64))
    if dtype == "BOOL":
        return np.asarray(array, np.bool_)
    values = np.asarray(array)
    limits = np.iinfo(STORAGE[dtype])
    if values.size and (values.min() < limits.min or values.max() > limits.max):
        raise TensorRTDoubleError(f"a value {values.min()}..{values.max()} does not fit {dtype}")
    return values.astype(np.int64)


def float_to_bfloat16(array) -> np.ndarray:
    """The bits (uint16) of the nearest bfloat16, ties to even."""
    bits = np.asarray(array, np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(array), 0x7FC0, rounded).astype(np.uint16)


def bfloat16_to_float(bits: np.ndarray) -> np.ndarray:
    """float64 values of bfloat16 bits."""
    return (np.asarray(bits, np.uint32) << 16).view(np.float32).astype(np.float64)


def _round_to_fp8(array: np.ndarray) -> np.ndarray:
    """Nearest E4M3 value (arXiv:2209.05433): 3 mantissa bits, exponents from -6, largest 448, which saturates."""
    magnitude = np.minimum(np.abs(array), _LARGEST_FP8)
    exponent = np.maximum(np.floor(np.log2(np.where(magnitude > 0, magnitude, 1.0))), -6.0)
    step = 2.0 ** (exponent - 3)
    return np.sign(array) * np.minimum(np.rint(magnitude / step) * step, _LARGEST_FP8)


def to_storage(array: np.ndarray, dtype: str) -> np.ndarray:
    """The array as it lies in device memory."""
    _refuse_fp8(dtype)
    return float_to_bfloat16(array) if dtype == "BF16" else np.ascontiguousarray(array, STORAGE[dtype])


def from_storage(array: np.ndarray, dtype: str) -> np.ndarray:
    """The double's representation of what lies in device memory."""
    _refuse_fp8(dtype)
    return bfloat16_to_float(array) if dtype == "BF16" else round_to(array, dtype)


def _refuse_fp8(dtype: str) -> None:
    if dtype == "FP8":
        raise TensorRTDoubleError(
            "FP8 weights, inputs and outputs are not played by the double; quantize in the network"
        )


@dataclass(frozen=True)
class Stored:
    """Weights of a network: how many of which type, and `read`, which gives them as they lie in memory."""

    dtype: str
    count: int
    read: Callable[[], np.ndarray]

    def values(self) -> np.ndarray:
        """The double's representation."""
        return from_storage(self.read(), self.dtype)
