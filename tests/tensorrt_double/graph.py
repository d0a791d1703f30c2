"""The recorded network: nodes and tensors, with shapes inferred on demand. It knows nothing of TensorRT's classes."""

import math
from dataclasses import dataclass, field

import numpy as np

from tests.tensorrt_double import implicit, layers
from tests.tensorrt_double.numerics import FLOATS, INTEGERS, between_layers, round_to
from tests.tensorrt_double.shapes import UNKNOWN, Info
from tests.tensorrt_double.versions import TensorRTDoubleError

#: Tensors of more elements are not followed by their values, which could be shapes.
_MAX_SHAPE_ELEMENTS = 64


@dataclass
class Node:
    """One layer: what kind, its parameters (names, numbers, tuples, weights), the ids of its inputs and outputs.

    `precision` is the type that it was asked to compute in.
    """

    kind: str
    name: str
    params: dict
    inputs: list[int | None]
    outputs: list[int] = field(default_factory=list)
    precision: str | None = None


@dataclass
class Tensor:
    """One tensor. `node` is its producer's index, None for a network input, which alone has a declared `info`.

    `forced_type` is what set_output_type asked for. `dynamic_range` is kept for implicit int8 (min, max).
    """

    name: str
    node: int | None = None
    info: Info | None = None
    forced_type: str | None = None
    dynamic_range: tuple[float, float] | None = None


@dataclass
class Graph:
    """A network. `inputs` and `outputs` are tensor ids."""

    strongly_typed: bool
    shape_type: str = "INT64"
    nodes: list[Node] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    name: str = "Unnamed Network 0"

    def __post_init__(self):
        self._set: set[int | None] = set()
        self._names = {("layer", node.name) for node in self.nodes} | {("tensor", t.name) for t in self.tensors}
        self.changed()

    def changed(self) -> None:
        """To be called after any change to an existing node: what was inferred may not hold any more."""
        self._infos: dict[int, Info] = {}
        self._inferred: dict[tuple, dict[int, Info]] = {}
        self._params: dict[int, dict] = {}
        self._folded: dict[int, list] = {}

    def add_input(self, name: str, dtype: str, shape: tuple[int, ...]) -> int:
        """A network input; returns its tensor id."""
        self._take_name(name, "input")
        self.tensors.append(Tensor(name, info=Info(shape, dtype)))
        self.inputs.append(len(self.tensors) - 1)
        return self.inputs[-1]

    def add_node(self, kind: str, params: dict, inputs: list[int | None], outputs: int = 1) -> Node:
        """A layer with `outputs` new tensors, named as TensorRT names them."""
        index = len(self.nodes)
        node = Node(kind, f"(Unnamed Layer* {index}) [{kind}]", params, inputs)
        for output in range(outputs):
            self.tensors.append(Tensor(f"{node.name}_output_{output}", node=index))
            node.outputs.append(len(self.tensors) - 1)
        self.nodes.append(node)
        self._names |= {("layer", node.name), *(("tensor", self.tensors[i].name) for i in node.outputs)}
        return node

    def rename(self, item: Node | Tensor, name: str) -> None:
        """Names a layer or a tensor. The real one logs an error and keeps a layer's old name where it is taken."""
        what = "tensor" if isinstance(item, Tensor) else "layer"
        self._names.discard((what, item.name))
        self._take_name(name, what)
        item.name = name

    def _take_name(self, name: str, what: str) -> None:
        key = ("layer" if what == "layer" else "tensor", name)
        if not name or key in self._names:
            raise TensorRTDoubleError(f"the {what} name {name!r} is empty or in use already")
        self._names.add(key)

    def set_input(self, node: Node, index: int, tensor: int | None) -> None:
        """Replaces an input of a layer, or sets an optional one."""
        node.inputs.extend([None] * (index + 1 - len(node.inputs)))
        node.inputs[index] = tensor
        self._set.add(tensor)
        self.node_changed(node)

    def node_changed(self, node: Node) -> None:
        """`changed`, but keeps what the newest node, the usual one, can't have touched: set_input gave it to no other."""
        self._inferred.clear()
        if self.nodes[-1] is node and self._set.isdisjoint(node.outputs):
            for output in node.outputs:
                self._infos.pop(output, None)
        else:
            self.changed()

    def info(self, tensor: int) -> Info:
        """Shape (-1 where it depends on the inputs), type and, for small integer tensors, value."""
        if tensor not in self._infos:
            self._infer([tensor], self._infos, {})
        return self._infos[tensor]

    def infer(self, input_shapes: dict[str, tuple[int, ...]]) -> dict[int, Info]:
        """Every tensor's info for given input shapes, by tensor id."""
        key = (len(self.tensors), *sorted(input_shapes.items()))
        if key not in self._inferred:
            infos: dict[int, Info] = {}
            self._infer(range(len(self.tensors)), infos, input_shapes)
            self._inferred[key] = infos
        return self._inferred[key]

    def consumers(self, tensor: int) -> list[Node]:
        """The nodes that read this tensor."""
        return [node for node in self.nodes if tensor in node.inputs]

    def _infer(self, wanted, infos: dict[int, Info], input_shapes: dict) -> None:
        stack = list(wanted)[::-1]
        while stack:
            if len(stack) > 2 * len(self.tensors) + 2:
                raise TensorRTDoubleError("the network has a cycle")
            tensor = stack[-1]
            if tensor in infos:
                stack.pop()
                continue
            record = self.tensors[tensor]
            if record.node is None:
                shape = tuple(input_shapes.get(record.name, record.info.shape))
                infos[tensor] = Info(shape, record.info.dtype)
                continue
            node = self.nodes[record.node]
            missing = [i for i in node.inputs if i is not None and i not in infos]
            if missing:
                stack.extend(missing)
            else:
                self._infer_node(node, infos)

    def _infer_node(self, node: Node, infos: dict[int, Info]) -> None:
        inputs = [None if i is None else infos[i] for i in node.inputs]
        try:
            found = layers.KINDS[node.kind].infer(node.params, inputs, self)
            value = _shape_value(node, inputs, found)
        except TensorRTDoubleError as error:
            raise TensorRTDoubleError(f"layer {node.name!r}: {error}") from None
        constant = node.kind != "shape" and all(info is None or info.constant for info in inputs)
        for output, (shape, dtype) in zip(node.outputs, found, strict=True):
            forced = self.tensors[output].forced_type
            # A real-valued tensor that implicit quantization stores as int8 still means real values.
            implicitly = forced == "INT8" and dtype in FLOATS
            infos[output] = Info(shape, dtype if implicitly else forced or dtype, value, constant)

    def execute(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs the network on inputs by name; outputs by name. Both are in the double's representation.

        What follows from constants alone is computed once.
        """
        infos = self.infer({name: value.shape for name, value in feeds.items()})
        values = {i: feeds[self.tensors[i].name] for i in self.inputs}
        for index in dict.fromkeys(self.tensors[i].node for i in infos):  # `infer` goes from producers to consumers
            if index is not None:
                outputs = self._folded[index] if index in self._folded else self._run_node(index, infos, values)
                values |= zip(self.nodes[index].outputs, outputs)
        return {self.tensors[i].name: values[i] for i in self.outputs}

    def _run_node(self, index: int, infos: dict[int, Info], values: dict[int, np.ndarray]) -> list:
        node = self.nodes[index]
        wanted = [infos[i] for i in node.outputs]
        try:
            inputs = implicit.inputs_of(self, node, [None if i is None else values[i] for i in node.inputs])
            if index not in self._params:
                self._params[index] = implicit.params_of(node)
            with np.errstate(all="ignore"):
                compute = layers.KINDS[node.kind].compute
                outputs = compute(self._params[index], inputs, [info.shape for info in wanted])
            outputs = outputs if isinstance(outputs, list) else [outputs]
            stored = [self._stored(node, info, value) for info, value in zip(wanted, outputs, strict=True)]
            stored = implicit.outputs_of(self, node, stored)
        except TensorRTDoubleError as error:
            raise TensorRTDoubleError(f"layer {node.name!r}: {error}") from None
        if all(info.constant for info in wanted):
            self._folded[index] = stored
        return stored

    def _stored(self, node: Node, info: Info, value: np.ndarray) -> np.ndarray:
        """The value as its tensor holds it; what the builder may keep wider (weak typing) is not rounded."""
        if value.shape != info.shape:
            raise TensorRTDoubleError(f"computed {value.shape}, inferred {info.shape}")
        if info.dtype in FLOATS and not self.strongly_typed and node.kind not in ("cast", "constant"):
            return between_layers(value)
        return round_to(value, info.dtype)


def _shape_value(node: Node, inputs: list, outputs: list) -> np.ndarray | None:
    """The value of a layer's one output as far as it follows from shapes alone; None for any other tensor."""
    kind, (shape, dtype) = layers.KINDS[node.kind], outputs[0]
    if not kind.makes_shapes or dtype not in INTEGERS or -1 in shape or math.prod(shape) > _MAX_SHAPE_ELEMENTS:
        return None
    if node.kind == "shape":
        return np.array([UNKNOWN if size == -1 else size for size in inputs[0].shape], object)
    values = [None if info is None else info.value for info in inputs]
    if any(info is not None and info.value is None for info in inputs):
        return None
    if node.kind == "elementwise":
        pairs = zip(*(np.broadcast_to(value, shape).ravel() for value in values))
        one = [[np.array(number) for number in pair] if UNKNOWN not in pair else None for pair in pairs]
        found = [UNKNOWN if pair is None else int(kind.compute(node.params, pair, [()])) for pair in one]
        return np.array(found, object).reshape(shape)
    if any(value is not None and UNKNOWN in value.ravel().tolist() for value in values[1:]) and node.kind == "slice":
        return np.full(shape, UNKNOWN, object)
    return kind.compute(implicit.params_of(node), values, [shape]).astype(object)
