"""The recorded network: nodes and tensors, with shapes inferred on demand. It knows nothing of TensorRT's classes."""

from dataclasses import dataclass, field

import numpy as np

from tests.tensorrt_double import execute, shapes
from tests.tensorrt_double.numerics import FLOATS
from tests.tensorrt_double.shapes import Info
from tests.tensorrt_double.versions import TensorRTDoubleError


@dataclass
class Node:
    """One layer: what kind, its parameters (names, numbers, tuples, arrays), the ids of its inputs and outputs.

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

    def __post_init__(self):
        self._infos: dict[int, Info] = {}

    def add_input(self, name: str, dtype: str, shape: tuple[int, ...]) -> int:
        """A network input; returns its tensor id."""
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
        return node

    def changed(self) -> None:
        """To be called after any change to an existing node: what was inferred may not hold any more."""
        self._infos.clear()

    def node_changed(self, node: Node) -> None:
        """`changed`, but keeps what the newest node (the usual one) can't have touched."""
        if self.nodes and self.nodes[-1] is node and not any(self.consumers(output) for output in node.outputs):
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
        infos: dict[int, Info] = {}
        self._infer(range(len(self.tensors)), infos, input_shapes)
        return infos

    def ordered(self) -> list[Node]:
        """The nodes so that each follows those it reads."""
        order, done = [], set()
        for node in self.nodes:
            stack = [node]
            while stack:
                top = stack[-1]
                waiting = [p for p in self._producers(top) if id(p) not in done and p is not top]
                if len(stack) > len(self.nodes):
                    raise TensorRTDoubleError(f"{top.name}: the network has a cycle")
                if waiting:
                    stack.extend(waiting)
                    continue
                stack.pop()
                if id(top) not in done:
                    done.add(id(top))
                    order.append(top)
        return order

    def _producers(self, node: Node) -> list[Node]:
        found = [self.tensors[i].node for i in node.inputs if i is not None]
        return [self.nodes[i] for i in found if i is not None]

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
            found = shapes.infer(node.kind, node.params, inputs, self)
            value = execute.shape_value(node.kind, node.params, inputs, found)
        except TensorRTDoubleError as error:
            raise TensorRTDoubleError(f"layer {node.name!r}: {error}") from None
        constant = node.kind != "shape" and all(info is None or info.constant for info in inputs)
        for output, (shape, dtype) in zip(node.outputs, found, strict=True):
            forced = self.tensors[output].forced_type
            # A real-valued tensor that implicit quantization stores as int8 still means real values.
            implicit = forced == "INT8" and dtype in FLOATS
            infos[output] = Info(shape, dtype if implicit else forced or dtype, value, constant)

    def consumers(self, tensor: int) -> list[Node]:
        """The nodes that read this tensor."""
        return [node for node in self.nodes if tensor in node.inputs]


def weights_array(value) -> np.ndarray:
    """The array of a weights parameter: already one (in a plan), or the memory a trt.Weights points at."""
    return value if isinstance(value, np.ndarray) else value._read()
