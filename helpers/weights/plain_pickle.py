"""Pickles of names and arrays, read without unpickling: an interpreter of the opcodes that can't call anything.

It is the stack machine that Python's pickletools documents, over plain values and records (`_Call`). A pickle's
"globals" are looked up in a table of the functions by which numpy and torch rebuild arrays; none of them is ever
called: the bytes that they would be given are found and checked here. Any other name, opcode or argument ends in a
DemoBertError. Memory grows with the file only: sizes are checked against the bytes that are there.
"""

import codecs
import io
import math
import mmap
import pickletools
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helpers.errors import DemoBertError, one_line
from helpers.files import require_file
from helpers.weights.canonical import StoredTensor

#: The checkpoint of a BERT with 48 layers and every range has about 100 thousand; each may cost some hundred bytes.
_MAX_OPCODES = 1_000_000

#: That BERT has about 3000 tensors and ranges.
_MAX_NAMES = 20_000

#: Of each of the five pickles in a torch storage, which have some 20.
_MAX_STORAGE_OPCODES = 100

#: numpy's own limit is 64 (32 before numpy 2); a BERT has two.
_MAX_DIMENSIONS = 8

_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
_GLOBALS = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    **{(module, "_reconstruct"): "array" for module in _MULTIARRAY},
    **{(module, "scalar"): "scalar" for module in _MULTIARRAY},
    **{(module, "_frombuffer"): "buffer" for module in _NUMERIC},
    ("_codecs", "encode"): "encode",
    ("collections", "OrderedDict"): "dict",
    ("torch._utils", "_rebuild_tensor"): "tensor",
    ("torch._utils", "_rebuild_tensor_v2"): "tensor",
    ("torch._utils", "_rebuild_parameter"): "parameter",
    ("torch.storage", "_load_from_bytes"): "storage",
}
#: Types of torch's storages, in a torch.save() within the pickle; bfloat16 has no numpy type.
_STORAGES = {
    ("torch", "DoubleStorage"): "<f8",
    ("torch", "FloatStorage"): "<f4",
    ("torch", "HalfStorage"): "<f2",
    ("torch", "BFloat16Storage"): "bfloat16",
    ("torch", "LongStorage"): "<i8",
    ("torch", "IntStorage"): "<i4",
    ("torch", "ByteStorage"): "|u1",
    ("torch", "BoolStorage"): "|b1",
}
#: Kind and size in bytes of the types that arrays may have: no objects, no records.
_DTYPE = re.compile(r"f[248]|[iu][1248]|b1")

_LITERALS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_ARGUMENTS = re.compile(r"(?:INT|LONG[14]?|FLOAT|STRING|UNICODE|BIN(?!PUT|GET|PERSID)\w+|SHORT_BIN\w+|BYTEARRAY8)$")
_MARK = object()


class _Refused(Exception):
    """The reason why a pickle is not read."""


@dataclass(frozen=True, eq=False)
class _Global:
    """A name of a table above, standing for what the pickle means by it."""

    kind: str


@dataclass(eq=False)
class _Call:
    """A call that the pickle asks for, recorded; `state` is what it would pass to __setstate__."""

    kind: str
    arguments: tuple
    state: object = None


@dataclass(frozen=True, eq=False)
class _Storage:
    """The values of a torch storage: `dtype` of _STORAGES, `count` of them, little-endian."""

    dtype: str
    count: int
    data: memoryview


def read_plain_pickle(path) -> dict[str, StoredTensor]:
    """Name → tensor of a pickled dict (protocols 0 to 5) of numpy or torch arrays, or of numbers. Nothing in it runs.

    Names of nested dicts are joined with dots; what is no tensor, such as a text, is left out. Raises DemoBertError.
    """
    path = require_file(path, "checkpoint")
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            value = _Machine(content, _GLOBALS).run()
        return dict(_tensors(path, value))
    except _Refused as error:
        raise DemoBertError(
            one_line(f"{path} is not a pickle of plain names and arrays: {error}; nothing of it was run", 400)
        ) from error
    except OSError as error:
        raise DemoBertError(f"checkpoint can't be read: {path}: {error.strerror}") from error


class _Machine:
    """One pickle after the other of `file`, which is an mmap or BytesIO: their reads allocate what is there at most."""

    def __init__(self, file, names: dict, limit: int = _MAX_OPCODES, persistent: bool = False):
        self._file, self._names, self._limit, self._persistent = file, names, limit, persistent
        self._encoded = {}  # by the text's id: the text, which so keeps its id, and its bytes

    def run(self):
        """The value of the next pickle. Raises _Refused."""
        self._stack, self._memo = [], {}
        try:
            for _ in range(self._limit):
                name, argument = self._next()
                if name == "STOP":
                    return self._stack.pop()
                self._execute(name, argument)
        except _Refused:
            raise
        # Whatever damage makes of the readers of pickletools, and a stack or memo that lacks what is taken from it.
        except (
            ValueError,
            IndexError,
            KeyError,
            TypeError,
            AttributeError,
            OverflowError,
            MemoryError,
            RecursionError,
        ) as error:
            raise _Refused(f"it is damaged ({type(error).__name__}: {one_line(error, 80)})") from error
        raise _Refused(f"it has more than {self._limit} opcodes")

    def _next(self) -> tuple:
        code = self._file.read(1)
        if not code:
            raise _Refused("it is cut short")
        opcode = pickletools.code2op.get(code.decode("latin-1"))
        if opcode is None:
            raise _Refused(f"it is damaged (opcode {code!r})")
        if opcode.name == "STRING":  # Python 2's, with escapes for bytes, which pickletools takes for ASCII
            return opcode.name, codecs.escape_decode(self._file.readline().strip()[1:-1])[0].decode("latin-1")
        return opcode.name, opcode.arg.reader(self._file) if opcode.arg else None

    def _execute(self, name: str, argument) -> None:
        if name in _LITERALS:
            self._stack.append(_LITERALS[name])
        elif _ARGUMENTS.match(name):
            self._stack.append(argument)
        else:
            action = getattr(self, f"_do_{name.lower()}", None)
            if action is None:
                raise _Refused(f"it uses {name}, which arrays have no use for")
            action(argument)

    def _taken(self, count: int) -> list:
        """The `count` topmost values, taken off the stack."""
        if len(self._stack) < count:
            raise IndexError("the stack is too short")
        taken = self._stack[len(self._stack) - count :]
        del self._stack[len(self._stack) - count :]
        return taken

    def _marked(self) -> list:
        """The values above the topmost mark, taken off the stack with it."""
        taken = []
        while (value := self._stack.pop()) is not _MARK:
            taken.append(value)
        return taken[::-1]

    def _do_proto(self, version: int) -> None:
        if not 0 <= version <= 5:
            raise _Refused(f"its protocol is {version}, not 0 to 5")

    def _do_frame(self, size) -> None:
        """Frames only help reading ahead."""

    def _do_mark(self, _) -> None:
        self._stack.append(_MARK)

    def _do_pop(self, _) -> None:
        self._stack.pop()

    def _do_pop_mark(self, _) -> None:
        self._marked()

    def _do_dup(self, _) -> None:
        self._stack.append(self._stack[-1])

    def _do_put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    _do_binput = _do_long_binput = _do_put

    def _do_memoize(self, _) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _do_get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    _do_binget = _do_long_binget = _do_get

    def _do_empty_tuple(self, _) -> None:
        self._stack.append(())

    def _do_tuple(self, _) -> None:
        self._stack.append(tuple(self._marked()))

    def _do_tuple1(self, _) -> None:
        self._stack.append(tuple(self._taken(1)))

    def _do_tuple2(self, _) -> None:
        self._stack.append(tuple(self._taken(2)))

    def _do_tuple3(self, _) -> None:
        self._stack.append(tuple(self._taken(3)))

    def _do_empty_list(self, _) -> None:
        self._stack.append([])

    def _do_list(self, _) -> None:
        self._stack.append(self._marked())

    def _do_append(self, _) -> None:
        self._extend(self._taken(1))

    def _do_appends(self, _) -> None:
        self._extend(self._marked())

    def _extend(self, values: list) -> None:
        if not isinstance(self._stack[-1], list):
            raise _Refused("it appends to what is no list")
        self._stack[-1].extend(values)

    def _do_empty_dict(self, _) -> None:
        self._stack.append({})

    def _do_dict(self, _) -> None:
        values = self._marked()
        self._stack.append({})
        self._update(values)

    def _do_setitem(self, _) -> None:
        self._update(self._taken(2))

    def _do_setitems(self, _) -> None:
        self._update(self._marked())

    def _update(self, values: list) -> None:
        if not isinstance(self._stack[-1], dict):
            raise _Refused("it sets items of what is no dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, (str, bytes, int)):  # the hash of a deep tuple overflows C's stack
                raise _Refused("a key is neither a text nor a number")
            self._stack[-1][key] = value

    def _do_global(self, argument: str) -> None:
        self._push_global(*argument.split(" ", 1))

    def _do_stack_global(self, _) -> None:
        self._push_global(*self._taken(2))

    def _push_global(self, module, name) -> None:
        # Exact names: nothing is imported, and "os.system" is no attribute of anything.
        if not (isinstance(module, str) and isinstance(name, str)) or (module, name) not in self._names:
            raise _Refused(f"it asks for {one_line(module, 60)}.{one_line(name, 60)}")
        self._stack.append(_Global(self._names[module, name]))

    def _do_reduce(self, _) -> None:
        function, arguments = self._taken(2)
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise _Refused("it calls what is no function of numpy's or torch's")
        if function.kind == "dict":
            if arguments not in ((), ([],)):
                raise _Refused("an OrderedDict has arguments")
            self._stack.append({})
        elif function.kind == "encode":
            self._stack.append(self._latin1(*arguments))
        else:
            self._stack.append(_Call(function.kind, arguments))

    def _latin1(self, text: str, codec: str) -> bytes:
        """How protocols 0 to 2 write bytes. Asked again for the same text, it gives the same bytes: no memory bomb."""
        if codec != "latin1" or not isinstance(text, str):
            raise _Refused("bytes are not written as Latin 1")
        if id(text) not in self._encoded:
            self._encoded[id(text)] = text, text.encode("latin-1")
        return self._encoded[id(text)][1]

    def _do_build(self, _) -> None:
        called, state = self._taken(2)
        if isinstance(called, dict) and state == {}:  # the attributes of an OrderedDict
            self._stack.append(called)
            return
        if not isinstance(called, _Call) or called.kind not in ("array", "dtype") or called.state is not None:
            raise _Refused("it sets the state of what is no array")
        called.state = state
        self._stack.append(called)

    def _do_binpersid(self, _) -> None:
        if not self._persistent:
            raise _Refused("it refers to objects outside of it (persistent ids)")
        self._stack.append(_Call("persistent", tuple(self._taken(1))))


# --- what the records stand for --------------------------------------------------------------------------------------


def _tensors(path: Path, root):
    """(name, tensor) of all arrays in `root` and the dicts in it."""
    if not isinstance(root, dict):
        raise _Refused("it holds no dict")
    todo, seen = [("", root)], 0
    while todo:
        prefix, values = todo.pop()
        for key, value in values.items():
            seen += 1
            if not isinstance(key, str):
                continue
            name = f"{prefix}{key}"
            if seen > _MAX_NAMES or len(name) > 2000:  # a dict within itself, or the same many times over
                raise _Refused("its dicts are nested without end")
            if isinstance(value, dict):
                todo.append((f"{name}.", value))
            elif isinstance(value, (_Call, int, float)):
                yield name, _stored(path, name, value)


def _stored(path: Path, name: str, value) -> StoredTensor:
    try:
        if isinstance(value, (int, float)):
            number = np.float64(value)
            return StoredTensor((), lambda: number)
        return _tensor(path, name, value)
    except _Refused as error:
        raise _Refused(f"{one_line(name, 100)}: {error}") from error
    except (ValueError, IndexError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise _Refused(f"{one_line(name, 100)} is damaged ({one_line(error, 80)})") from error


def _tensor(path: Path, name: str, call: _Call) -> StoredTensor:
    if call.kind == "parameter":
        call = call.arguments[0]
    if isinstance(call, _Call) and call.kind == "tensor":
        return _torch_tensor(path, name, *call.arguments[:4])
    if not isinstance(call, _Call) or call.kind not in ("array", "scalar", "buffer"):
        raise _Refused("it is no array")
    if call.kind == "scalar":
        dtype, data = call.arguments
        return _numpy_array(path, name, data, dtype, (), "C")
    if call.kind == "buffer":
        data, dtype, shape, order = call.arguments
        return _numpy_array(path, name, data, dtype, shape, order)
    if not isinstance(call.state, tuple):
        raise _Refused("an array has no contents")
    shape, dtype, fortran, data = call.state[-4:]
    return _numpy_array(path, name, data, dtype, shape, "F" if fortran else "C")


def _numpy_array(path, name, data, dtype, shape, order) -> StoredTensor:
    dtype = _numpy_dtype(dtype)
    _check_shape(shape)
    if not isinstance(data, (bytes, bytearray, str)) or order not in ("C", "F"):
        raise _Refused("an array has no bytes")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise _Refused(f"an array of shape {list(shape)} has {len(data)} bytes")
    if isinstance(data, str) and len(data) != len(data.encode("latin-1", "ignore")):
        raise _Refused("an array's bytes are a text")

    def read():
        _check_float(path, name, dtype)
        content = data.encode("latin-1") if isinstance(data, str) else data  # bytes of Python 2 are texts here
        return np.frombuffer(content, dtype).reshape(shape, order=order)

    return StoredTensor(shape, read)


def _numpy_dtype(call) -> np.dtype:
    if not isinstance(call, _Call) or call.kind != "dtype":
        raise _Refused("an array has no type")
    text = call.arguments[0]
    text = text.decode("latin-1") if isinstance(text, bytes) else text
    if not isinstance(text, str) or not _DTYPE.fullmatch(text):
        raise _Refused(f"an array's type is {one_line(text, 20)!r}, not a number")
    order = call.state[1] if isinstance(call.state, tuple) else "="
    if order not in ("<", ">", "|", "="):
        raise _Refused("an array has no byte order")
    return np.dtype(f"{order}{text}")


def _check_shape(shape) -> None:
    # type() and not isinstance(): True is an int.
    if not isinstance(shape, tuple) or len(shape) > _MAX_DIMENSIONS or any(type(size) is not int for size in shape):
        raise _Refused("an array's shape is no tuple of integers")
    if any(not 0 <= size < 1 << 48 for size in shape):
        raise _Refused(f"an array has the shape {one_line(shape, 100)}")


def _check_float(path, name: str, dtype) -> None:
    if dtype.kind != "f":
        raise DemoBertError(one_line(f"{path}: {name} can't be read: its type is {dtype}, not a floating-point type"))


def _torch_tensor(path, name, storage, offset, shape, strides) -> StoredTensor:
    values = _torch_storage(storage)
    _check_shape(shape)
    _check_shape(strides)
    _check_shape((offset,))
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if math.prod(shape) > values.count or last >= values.count:
        raise _Refused(f"a tensor of shape {list(shape)} is larger than its storage")

    def read():
        bits = values.dtype == "bfloat16"
        dtype = np.dtype("<u2" if bits else values.dtype)
        _check_float(path, name, np.dtype("<f4") if bits else dtype)
        flat = np.frombuffer(values.data, dtype)[offset:]
        steps = [stride * dtype.itemsize for stride in strides]
        view = np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False)
        # bfloat16 is the upper half of float32.
        return (view.astype(np.uint32) << 16).view(np.float32) if bits else view

    return StoredTensor(shape, read)


def _torch_storage(call) -> _Storage:
    """The storage in the bytes that torch.storage._load_from_bytes would unpickle: torch.save() before torch 1.6.

    That is five pickles (a magic number, the version, the machine, the storage, the keys), the count, the values.
    """
    if not isinstance(call, _Call) or call.kind != "storage":
        raise _Refused("a tensor has no storage")
    (saved,) = call.arguments
    content = io.BytesIO(saved)
    machine = _Machine(content, _STORAGES, _MAX_STORAGE_OPCODES, persistent=True)
    magic, _, system, stored, keys = (machine.run() for _ in range(5))
    if magic != 0x1950A86A20F9469CFC6C or system.get("little_endian") is not True:
        raise _Refused("a storage is not torch's, or of a big-endian machine")
    if not isinstance(stored, _Call) or not isinstance(stored.arguments[0], tuple) or len(keys) != 1:
        raise _Refused("a storage is damaged")
    what, kind, _, _, count, *view = stored.arguments[0]
    if what != "storage" or not isinstance(kind, _Global) or any(part is not None for part in view):
        raise _Refused("a storage is damaged")
    data = memoryview(saved)[content.tell() + 8 :]
    itemsize = 2 if kind.kind == "bfloat16" else np.dtype(kind.kind).itemsize
    if type(count) is not int or count * itemsize != len(data):
        raise _Refused(f"a storage of {one_line(count, 30)} values has {len(data)} bytes")
    return _Storage(kind.kind, count, data)
