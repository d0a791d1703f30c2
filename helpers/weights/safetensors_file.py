"""Reading .safetensors with numpy alone, bfloat16 included, without trusting the header.

The format (its documentation, "Format"): 8 bytes, the header's length as an unsigned little-endian integer; the
header, JSON: name → {dtype, shape, data_offsets: [begin, end) within what follows}; then the tensors' bytes,
little-endian, row-major, without holes.
"""

import json
import math
from pathlib import Path

import numpy as np

from helpers.errors import DemoBertError
from helpers.files import require_file
from helpers.weights.canonical import StoredTensor, one_line

#: The reference implementation's own limit.
_MAX_HEADER_BYTES = 100_000_000

_FLOATS = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<u2"}
_ITEM_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64}
_ITEM_BITS |= {"F16": 16, "BF16": 16, "F32": 32, "F64": 64}


def read_safetensors(path) -> dict[str, StoredTensor]:
    """Name → tensor of a .safetensors file; the data are read when a tensor is. Raises DemoBertError."""
    path = require_file(path, "checkpoint")
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
            if size < 8 or header_size > min(_MAX_HEADER_BYTES, size - 8):
                raise DemoBertError(f"its header claims {header_size} bytes in a file of {size}")
            header = json.loads(file.read(header_size).decode("utf-8"), object_pairs_hook=_unique)
        start = 8 + header_size
        return _tensors(path, header, start, size - start)
    except OSError as error:
        raise DemoBertError(f"checkpoint can't be read: {path}: {error.strerror}") from error
    except (DemoBertError, ValueError, RecursionError) as error:
        raise DemoBertError(one_line(f"{path} is not a whole .safetensors file: {error}")) from error


def _unique(pairs: list) -> dict:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise DemoBertError("its header names a tensor twice")
    return values


def _tensors(path: Path, header, start: int, data_size: int) -> dict[str, StoredTensor]:
    if not isinstance(header, dict):
        raise DemoBertError("its header is not a JSON object")
    entries = {name: _entry(name, value) for name, value in header.items() if name != "__metadata__"}
    end = 0
    for name, (_, _, offsets) in sorted(entries.items(), key=lambda item: item[1][2]):
        if offsets[0] != end:
            raise DemoBertError(f"the data of {name} overlap others or leave a hole")
        end = offsets[1]
    if end != data_size:
        raise DemoBertError(f"its tensors take {end} bytes, but {data_size} are there")
    return {
        name: StoredTensor(shape, _reader(path, name, dtype, shape, start + offsets[0]))
        for name, (dtype, shape, offsets) in entries.items()
    }


def _entry(name: str, value) -> tuple[str, tuple, tuple]:
    """(dtype, shape, (begin, end)) of one header entry, consistent with itself."""
    if not isinstance(value, dict) or not isinstance(value.get("dtype"), str):
        raise DemoBertError(f"{name} has no dtype")
    dtype, shape, offsets = value["dtype"], value.get("shape"), value.get("data_offsets")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise DemoBertError(f"{name} has no sound shape and data_offsets")
    bits = _ITEM_BITS.get(dtype)
    # Types that are not known here can't be one of BERT's tensors; if one is, its reader says so.
    if bits is not None and math.prod(shape) * bits != 8 * (offsets[1] - offsets[0]):
        raise DemoBertError(f"{name} has {offsets[1] - offsets[0]} bytes for {dtype} {shape}")
    return dtype, tuple(shape), tuple(offsets)


def _are_sizes(values) -> bool:
    return isinstance(values, list) and len(values) <= 64 and all(type(v) is int and 0 <= v < 1 << 63 for v in values)


def _reader(path: Path, name: str, dtype: str, shape: tuple, offset: int):
    def read() -> np.ndarray:
        if dtype not in _FLOATS:
            raise DemoBertError(one_line(f"{path}: {name} has the type {dtype}, not a floating-point type"))
        try:
            count = math.prod(shape)
            values = np.fromfile(path, _FLOATS[dtype], count, offset=offset) if count else np.empty(0, _FLOATS[dtype])
        except OSError as error:
            raise DemoBertError(f"checkpoint can't be read: {path}: {error.strerror}") from error
        if values.size != count:
            raise DemoBertError(f"checkpoint was cut short while it was read: {path}")
        return (widen_bfloat16(values) if dtype == "BF16" else values).reshape(shape)

    return read


def widen_bfloat16(bits: np.ndarray) -> np.ndarray:
    """bfloat16 as its 16 bits → float32: bfloat16 is float32's upper half."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
