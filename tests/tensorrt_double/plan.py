"""The double's plan: a real file with magic, version and checksum, holding JSON and the weights as they are."""

import hashlib
import json
import struct

import numpy as np

from tests.tensorrt_double.graph import Graph, Node, Tensor
from tests.tensorrt_double.numerics import Stored
from tests.tensorrt_double.shapes import Info

_MAGIC = b"TRTDOUBLE\x01"
_HEADER = struct.Struct("<10s16sQQ32s")


class BadPlan(ValueError):
    """Bytes that are no plan of this version: the reason, for the log."""


def dump(graph: Graph, facts: dict, version: str) -> bytes:
    """A plan. `facts` is what else the engine knows: JSON, with the profiles, flags and device."""
    arrays = []

    def plain(value):
        """What JSON can't say of a parameter: an array, by its place among `arrays`."""
        array = value.read() if isinstance(value, Stored) else value
        arrays.append(np.ascontiguousarray(array))
        dtype = value.dtype if isinstance(value, Stored) else None
        return {"dtype": dtype, "numpy": array.dtype.str, "size": array.size}

    nodes = [[n.kind, n.name, n.params, n.inputs, n.outputs, n.precision] for n in graph.nodes]
    tensors = [[t.name, t.node, t.info and t.info[:2], t.forced_type, t.dynamic_range] for t in graph.tensors]
    fields = {"facts": facts, "strongly_typed": graph.strongly_typed, "shape_type": graph.shape_type}
    fields |= {"nodes": nodes, "tensors": tensors, "inputs": graph.inputs, "outputs": graph.outputs, "name": graph.name}
    text = json.dumps(fields, default=plain).encode()
    body = b"".join([text, *arrays])
    return _HEADER.pack(_MAGIC, version.encode(), len(text), len(body), hashlib.sha256(body).digest()) + body


def load(data, version: str) -> tuple[Graph, dict]:
    """The network and the facts of a plan. Raises BadPlan."""
    data = memoryview(bytes(data))
    if len(data) < _HEADER.size:
        raise BadPlan("the plan is truncated")
    magic, written_by, text_size, size, digest = _HEADER.unpack_from(data)
    written_by = written_by.rstrip(b"\0").decode(errors="replace")
    if magic != _MAGIC:
        raise BadPlan("magic tag does not match: this is no serialized engine")
    if written_by != version:
        raise BadPlan(f"the plan was serialized by version {written_by}, this is {version}")
    body = data[_HEADER.size :]
    if len(body) != size or hashlib.sha256(body).digest() != digest:
        raise BadPlan("the plan is truncated or corrupt")
    fields = json.loads(bytes(body[:text_size]))
    return _graph(fields, body[text_size:]), fields["facts"]


def _graph(fields: dict, arrays: memoryview) -> Graph:
    nodes = [Node(*node) for node in fields["nodes"]]
    for node in nodes:
        for key, value in node.params.items():
            if isinstance(value, dict):
                array = np.frombuffer(arrays, value["numpy"], value["size"])
                arrays = arrays[array.nbytes :]
                stored = value["dtype"] and Stored(value["dtype"], array.size, lambda array=array: array)
                node.params[key] = stored or array
            elif isinstance(value, list):
                node.params[key] = tuple(value)
    tensors = [
        Tensor(name, node, info and Info(tuple(info[0]), info[1]), forced, span and tuple(span))
        for name, node, info, forced, span in fields["tensors"]
    ]
    names = ("strongly_typed", "shape_type")
    return Graph(*(fields[name] for name in names), nodes, tensors, *(fields[n] for n in ("inputs", "outputs", "name")))
