"""The small types: Dims, Permutation, Weights, loggers, host memory, plugin fields."""

import ctypes
import os
import sys
import weakref

import numpy as np

from tests.tensorrt_double.classes import Native, private
from tests.tensorrt_double.numerics import STORAGE, Stored
from tests.tensorrt_double.versions import TensorRTDoubleError

#: The types that numpy has, too; weights of the others come by pointer.
_NUMPY_TYPES = {np.dtype(storage): name for name, storage in STORAGE.items() if name not in ("BF16", "FP8")}


class Memory:
    """Memory that somebody else owns, as TensorRT sees it: a pointer. Reading it notices if it was freed or changed."""

    def __init__(self, address: int, nbytes: int, owner: np.ndarray | None, what: str):
        self.address, self.nbytes, self._what = address, nbytes, what
        self._owner = None if owner is None else weakref.ref(owner)
        self._digest = hash(self._bytes())

    def _bytes(self) -> bytes:
        if not self.nbytes:
            return b""
        if not os.path.exists("/proc/self/mem"):
            return ctypes.string_at(self.address, self.nbytes)
        # Through the kernel, so that an address which is gone is an error and not a crash.
        with open("/proc/self/mem", "rb", buffering=0) as memory:
            try:
                data = os.pread(memory.fileno(), self.nbytes, self.address)
            except OSError:
                data = b""
        if len(data) != self.nbytes:
            raise TensorRTDoubleError(f"{self._what}: the memory at {self.address:#x} is gone")
        return data

    def read(self) -> bytes:
        """The bytes. Raises TensorRTDoubleError when the array they belong to is gone or they changed since."""
        if self._owner is not None and self._owner() is None:
            raise TensorRTDoubleError(f"{self._what}: the array was freed before TensorRT read it; keep it alive")
        data = self._bytes()
        if hash(data) != self._digest:
            raise TensorRTDoubleError(f"{self._what}: the memory changed since it was handed over; was it freed?")
        return data


def _owner_of(array: np.ndarray) -> np.ndarray:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def array_memory(array: np.ndarray, what: str) -> Memory:
    """The memory of a contiguous array, which keeps belonging to the array."""
    if not array.flags.c_contiguous:
        raise TypeError(f"{what}: the array is not contiguous")
    return Memory(array.__array_interface__["data"][0], array.nbytes, _owner_of(array), what)


class Dims(Native):
    """Dimensions of a tensor, at most 8."""

    MAX_DIMS = 8

    def __init__(self, shape: "object" = ()):
        sizes = tuple(shape)
        if len(sizes) > self.MAX_DIMS:
            raise ValueError(f"{len(sizes)} dimensions, at most {self.MAX_DIMS}")
        if any(isinstance(size, (bool, float)) or not hasattr(size, "__index__") for size in sizes):
            raise TypeError(f"dimensions must be whole numbers: {sizes}")
        self._sizes = tuple(int(size) for size in sizes)

    def __len__(self):
        return len(self._sizes)

    def __getitem__(self, index):
        return self._sizes[index]

    def __eq__(self, other):
        return self._sizes == (other._sizes if isinstance(other, Dims) else tuple(other))

    def __str__(self):
        return str(self._sizes)

    __repr__ = __str__


class Permutation(Native):
    """An order of axes."""

    def __init__(self, arg0: "object" = ()):
        self._order = tuple(int(axis) for axis in arg0)

    def __len__(self):
        return len(self._order)

    def __getitem__(self, index):
        return self._order[index]

    def __str__(self):
        return str(self._order)

    __repr__ = __str__


class Weights(Native):
    """A pointer to weights: the numpy array behind it has to outlive the build."""

    def __init__(self, type: "DataType|ndarray" = None, ptr: "int" = None, count: "int" = None, a: "ndarray" = None):
        array = type if isinstance(type, np.ndarray) else a
        data_types = self._module.DataType
        if array is not None:
            name = _NUMPY_TYPES.get(array.dtype)
            if name not in data_types.__members__:
                raise TypeError(f"TensorRT {self._version.name} has no type for {array.dtype} weights")
            memory = array_memory(array, f"{name} weights {array.shape}")
        else:
            if (ptr is None) != (count is None) or (ptr == 0 and count):
                raise TypeError("weights take a type, a pointer and a count")
            name = (data_types.FLOAT if type is None else type).name
            memory = Memory(ptr or 0, (count or 0) * np.dtype(STORAGE[name]).itemsize, None, f"{name} weights")
        item = np.dtype(STORAGE[name])
        self._stored = Stored(name, memory.nbytes // item.itemsize, lambda: np.frombuffer(memory.read(), item))


class ILogger(Native):
    """Takes messages; users derive from it."""

    def __init__(self):
        pass

    def log(self, severity: "object", msg: "str"):
        """Takes one message."""
        raise NotImplementedError("ILogger.log")


class Logger(ILogger):
    """Prints messages from a severity on (lower is more severe)."""

    def __init__(self, min_severity: "object" = None):
        self._min_severity = self._module.ILogger.Severity.WARNING if min_severity is None else min_severity

    def log(self, severity: "object", msg: "str"):
        """Prints one message to stderr."""
        if int(severity) <= int(self._min_severity):
            print(f"[TRT] [{severity.name[0]}] {msg}", file=sys.stderr)


class IHostMemory(Native, bytes):
    """Memory of TensorRT's, readable through the buffer protocol and by nothing else."""

    def __bool__(self):
        return True

    def __len__(self):
        raise TypeError("object of type 'IHostMemory' has no len()")

    def __getitem__(self, index):
        raise TypeError("'IHostMemory' object is not subscriptable")

    def __iter__(self):
        raise TypeError("'IHostMemory' object is not iterable")


class PluginField(Native):
    """A named value for a plugin: a pointer, so its array has to live until the plugin is made."""

    def __init__(self, name: "str" = "", data: "ndarray" = None, type: "PluginFieldType" = None):
        self._name = name
        self._type = self._module.PluginFieldType.UNKNOWN if type is None else type
        self._array_type = None if data is None else data.dtype
        self._memory = None if data is None else array_memory(data, f"plugin field {name}")

    @property
    def name(self):
        """The field's name."""
        return self._name

    def _values(self) -> tuple[str, str, np.ndarray]:
        if self._memory is None:
            raise TensorRTDoubleError(f"plugin field {self._name} has no data")
        return self._name, self._type.name, np.frombuffer(self._memory.read(), self._array_type)


class PluginFieldCollection(Native):
    """A list of fields."""

    def __init__(self, arg0: "list[PluginField]" = ()):
        self._fields = list(arg0)

    def __iter__(self):
        return iter(self._fields)


@private
class ITimingCache(Native):
    """What the builder learnt about kernels' times; the double learns nothing."""

    def serialize(self):
        """The cache as IHostMemory."""
        return bytes.__new__(self._module.IHostMemory, self._data)


CLASSES = [
    Dims,
    Permutation,
    Weights,
    ILogger,
    Logger,
    private(IHostMemory),
    PluginField,
    PluginFieldCollection,
    ITimingCache,
]
