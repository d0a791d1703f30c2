"""A stand-in for the little of `pycuda.driver` that the engine uses, stricter than a GPU.

Device memory is memory of its own behind integer addresses; bounds and lifetimes are checked at every use. Work that
is enqueued on a stream runs when somebody waits for it, so that results read too early are wrong every time.
"""

import threading
import time
import types
import weakref

import numpy as np

_GUARD = 1 << 20
_GARBAGE = 0xA5


class Error(Exception):
    """A CUDA driver error."""


class LogicError(Error):
    """A call that makes no sense in this state: a bad address, no current context, an event not recorded."""


class RuntimeError(Error):
    """A launch that failed."""


class MemoryError(Error):
    """Out of device memory."""


class Gpu:
    """The state of the one device: allocations, streams, contexts. `compute_capability` None: there is no GPU."""

    total_memory = 8 << 30

    def __init__(self, compute_capability: tuple[int, int] | None):
        self.compute_capability = compute_capability
        self.initialised = False
        self.allocations: dict[int, np.ndarray] = {}
        self.streams: dict[int, Stream] = {}
        self._stacks = threading.local()
        self.pagelocked: list[tuple[int, int]] = []
        self._next = 0x7F0000000000

    @property
    def stack(self) -> list:
        """This thread's contexts, the current one last."""
        return self._stacks.__dict__.setdefault("contexts", [])

    def allocate(self, nbytes: int) -> int:
        """A new allocation full of garbage; its address."""
        if sum(a.size for a in self.allocations.values()) + nbytes > self.total_memory:
            raise MemoryError(f"cuMemAlloc failed: out of memory ({nbytes} bytes)")
        address = self._next
        self._next += (nbytes + 2 * _GUARD) // _GUARD * _GUARD
        self.allocations[address] = np.full(nbytes, _GARBAGE, np.uint8)
        return address

    def memory(self, address: int, nbytes: int) -> np.ndarray:
        """The bytes [address, address + nbytes) as a writable array; LogicError unless one allocation has them."""
        for start, block in self.allocations.items():
            if start <= address < start + block.size:
                if address + nbytes > start + block.size:
                    raise LogicError(f"{nbytes} bytes at {address:#x} leave an allocation of {block.size} bytes")
                return block[address - start : address - start + nbytes]
        raise LogicError(f"invalid device address {address:#x}: never allocated, or freed")

    def require_context(self) -> None:
        """Raises LogicError without a current context."""
        if not self.stack:
            raise LogicError("invalid device context: push one first")

    def is_pagelocked(self, array: np.ndarray) -> bool:
        """Whether an array's memory came from pagelocked_empty."""
        start = array.__array_interface__["data"][0]
        return any(a <= start and start + array.nbytes <= a + size for a, size in self.pagelocked)


class Stream:
    """A queue of work that runs at synchronize()."""

    def __init__(self, gpu: Gpu):
        gpu.require_context()
        self._queue, self._lock = [], threading.Lock()
        self.handle = 0x5000 + 16 * len(gpu.streams)
        gpu.streams[self.handle] = self

    def enqueue(self, work) -> None:
        """Adds a function without arguments to the queue."""
        self._queue.append(work)

    def synchronize(self) -> None:
        """Runs everything that was enqueued, in order."""
        self.run_until(lambda: False)

    def run_until(self, reached) -> None:
        """Runs what was enqueued, in order, until reached() is true."""
        with self._lock:  # several threads may wait: what is first is done first
            while self._queue and not reached():
                self._queue.pop(0)()


class Event:
    """A mark in a stream."""

    def __init__(self, gpu: Gpu):
        gpu.require_context()
        self._gpu, self._stream, self._time = gpu, None, None

    def record(self, stream: Stream | None = None) -> "Event":
        """Marks the present end of the stream's queue."""
        if not isinstance(stream, Stream):
            raise LogicError("the double wants events on a stream of one's own")
        self._stream, self._time = stream, None
        stream.enqueue(lambda: setattr(self, "_time", time.perf_counter()))
        return self

    def synchronize(self) -> "Event":
        """Waits until the stream has come to the mark; what is behind it has not been done then."""
        if self._stream is None:
            raise LogicError("the event was never recorded")
        self._stream.run_until(lambda: self._time is not None)
        return self

    def time_till(self, event: "Event") -> float:
        """Milliseconds from this event to a later one; both must be done."""
        if self._time is None or event._time is None:
            raise LogicError("cuEventElapsedTime failed: not ready; synchronize first")
        return (event._time - self._time) * 1e3


class DeviceAllocation:
    """Device memory; int() is its address. It is freed with the object, as PyCUDA's."""

    def __init__(self, gpu: Gpu, address: int):
        self._gpu, self._address = gpu, address
        self._finalizer = weakref.finalize(self, gpu.allocations.pop, address, None)

    def __int__(self) -> int:
        if not self._finalizer.alive:
            raise LogicError("the allocation was freed")
        return self._address

    __index__ = __int__

    def free(self) -> None:
        """Frees the memory; a second time is an error."""
        if not self._finalizer.alive:
            raise LogicError("the allocation was freed already")
        self._finalizer()


class Context:
    """The device's primary context."""

    def __init__(self, gpu: Gpu):
        self._gpu, self._attached = gpu, True

    def push(self) -> None:
        """Makes it the current context."""
        if not self._attached:
            raise LogicError("the context was detached")
        self._gpu.stack.append(self)

    def detach(self) -> None:
        """Gives the context back; it can't be used any more."""
        if not self._attached:
            raise LogicError("the context was detached already")
        self._attached = False
        while self in self._gpu.stack:
            self._gpu.stack.remove(self)


def make_modules(gpu: Gpu) -> dict[str, types.ModuleType]:
    """The modules pycuda and pycuda.driver for this GPU."""
    package, driver = types.ModuleType("pycuda"), types.ModuleType("pycuda.driver")
    package.__path__, package.driver, package.VERSION = [], driver, (2024, 1)
    for cls in (Error, LogicError, RuntimeError, MemoryError, DeviceAllocation):
        setattr(driver, cls.__name__, cls)
    driver.Device = _device_class(gpu)
    driver.Context = _context_class(gpu)
    driver.Stream = _bound(Stream, gpu)
    driver.Event = _bound(Event, gpu)
    for function in _functions(gpu):
        setattr(driver, function.__name__, function)
    return {"pycuda": package, "pycuda.driver": driver}


def _bound(cls: type, gpu: Gpu) -> type:
    return type(cls.__name__, (cls,), {"__init__": lambda self, flags=0: cls.__init__(self, gpu)})


def _context_class(gpu: Gpu) -> type:
    def pop():
        gpu.require_context()
        gpu.stack.pop()

    return type("Context", (_bound(Context, gpu),), {"pop": staticmethod(pop)})


def _device_class(gpu: Gpu) -> type:
    context = _context_class(gpu)

    def require_init():
        if not gpu.initialised:
            raise LogicError("cuInit was not called: initialization error")

    class Device:
        """One CUDA device."""

        def __init__(self, number: int):
            require_init()
            if number != 0:
                raise LogicError("cuDeviceGet failed: invalid device ordinal")

        @staticmethod
        def count() -> int:
            require_init()
            return 1

        def name(self) -> str:
            return "TensorRT double"

        def compute_capability(self) -> tuple[int, int]:
            return gpu.compute_capability

        def retain_primary_context(self) -> Context:
            return context()

    return Device


def _functions(gpu: Gpu) -> list:
    def init(flags: int = 0) -> None:
        if gpu.compute_capability is None:
            raise RuntimeError("cuInit failed: no CUDA-capable device is detected")
        gpu.initialised = True

    def mem_alloc(nbytes: int) -> DeviceAllocation:
        gpu.require_context()
        if type(nbytes) is not int:
            raise TypeError(f"mem_alloc takes an int, not {type(nbytes).__name__}")
        if nbytes <= 0:
            raise LogicError("cuMemAlloc failed: invalid argument")
        return DeviceAllocation(gpu, gpu.allocate(nbytes))

    def pagelocked_empty(shape, dtype, order: str = "C", mem_flags: int = 0) -> np.ndarray:
        gpu.require_context()
        array = np.empty(shape, dtype, order)
        array.reshape(-1).view(np.uint8)[:] = _GARBAGE
        start = array.__array_interface__["data"][0]
        gpu.pagelocked.append((start, array.nbytes))
        weakref.finalize(array, gpu.pagelocked.remove, (start, array.nbytes))
        return array

    def host_bytes(array, what: str) -> np.ndarray:
        if not isinstance(array, np.ndarray) or not array.flags.c_contiguous:
            raise TypeError(f"{what} must be a contiguous numpy array")
        return array.reshape(-1).view(np.uint8)

    def memcpy_htod_async(dest, src, stream=None) -> None:
        gpu.require_context()
        data, address = host_bytes(src, "src"), int(dest)
        gpu.memory(address, data.size)
        if not gpu.is_pagelocked(src):
            data = data.copy()  # pageable memory is staged before the call returns
        _enqueue(stream, lambda: gpu.memory(address, data.size).__setitem__(slice(None), data))

    def memcpy_dtoh_async(dest, src, stream=None) -> None:
        gpu.require_context()
        data, address = host_bytes(dest, "dest"), int(src)
        if not gpu.is_pagelocked(dest):
            raise LogicError("memcpy_dtoh_async to pageable memory blocks; use pagelocked_empty")
        gpu.memory(address, data.size)
        _enqueue(stream, lambda: data.__setitem__(slice(None), gpu.memory(address, data.size)))

    return [
        init,
        mem_alloc,
        pagelocked_empty,
        memcpy_htod_async,
        memcpy_dtoh_async,
    ]


def _enqueue(stream, work) -> None:
    if not isinstance(stream, Stream):
        raise LogicError("the double wants copies on a stream of one's own")
    stream.enqueue(work)
