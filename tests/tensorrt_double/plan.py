"""The double's plan: a real file with magic, version and checksum, holding JSON and an npz of the weights."""

import hashlib
import io
import json
import struct

import numpy as np

from tests.tensorrt_double.graph import Graph, Node, Tensor, weights_array
from tests.tensorrt_double.shapes import Info

_MAGIC = b"TRTDOUBLE\x01"
_HEADER = struct.Struct("<10s16sQQ32s")


class BadPlan(ValueError):
    """Bytes that are no plan of this version: the reason, for the log."""


def dump(graph: Graph, facts: dict, version: str) -> bytes:
    """A plan. `facts` is what else the engine knows: JSON, with the profiles, flags and device."""
    arrays, nodes = {}, []
    for index, node in enumerate(graph.nodes):
        params = {}
        for key, value in node.params.items():
            if key in ("weights", "kernel", "bias") and value is not None and not isinstance(value, np.ndarray):
                value = weights_array(value)
            if isinstance(value, np.ndarray):
                arrays[f"{index}.{key}"] = value
                value = {"array": f"{index}.{key}"}
            params[key] = value
        nodes.append([node.kind, node.name, params, node.inputs, node.outputs, node.precision])
    tensors = [[t.name, t.node, t.info and t.info[:2], t.forced_type, t.dynamic_range] for t in graph.tensors]
    text = json.dumps(
        {
            "facts": facts,
            "strongly_typed": graph.strongly_typed,
            "shape_type": graph.shape_type,
            "nodes": nodes,
            "tensors": tensors,
            "inputs": graph.inputs,
            "outputs": graph.outputs,
        }
    ).encode()
    weights = io.BytesIO()
    np.savez(weights, **arrays)
    body = text + weights.getvalue()
    digest = hashlib.sha256(body).digest()
    return _HEADER.pack(_MAGIC, version.encode(), len(text), len(body), digest) + body


def load(data, version: str) -> tuple[Graph, dict]:
    """The network and the facts of a plan. Raises BadPlan."""
    data = bytes(data)
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
    fields = json.loads(body[:text_size])
    with np.load(io.BytesIO(body[text_size:]), allow_pickle=False) as arrays:
        return _graph(fields, arrays), fields["facts"]


def _graph(fields: dict, arrays) -> Graph:
    nodes = []
    for kind, name, params, inputs, outputs, precision in fields["nodes"]:
        for key, value in params.items():
            if isinstance(value, dict):
                params[key] = arrays[value["array"]]
            elif isinstance(value, list):
                params[key] = tuple(value)
        nodes.append(Node(kind, name, params, inputs, outputs, precision))
    tensors = [
        Tensor(name, node, info and Info(tuple(info[0]), info[1]), forced, span and tuple(span))
        for name, node, info, forced, span in fields["tensors"]
    ]
    return Graph(fields["strongly_typed"], fields["shape_type"], nodes, tensors, fields["inputs"], fields["outputs"])
