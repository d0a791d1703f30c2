"""INetworkDefinition, ITensor and the layers: TensorRT's classes over the recorded graph, made of layers.py's rows."""

import inspect
import math
import re

from tests.tensorrt_double.classes import Native, new, private
from tests.tensorrt_double.graph import Graph
from tests.tensorrt_double.layers import LAYERS, Layer
from tests.tensorrt_double.versions import TensorRTDoubleError


@private
class ITensor(Native):
    """A tensor of a network."""

    @property
    def _record(self):
        return self._network._graph.tensors[self._id]

    def _is_input_or_output(self) -> bool:
        return self._id in self._network._graph.inputs + self._network._graph.outputs

    @property
    def name(self):
        """Its name; inputs and outputs must have names of their own."""
        return self._record.name

    @name.setter
    def name(self, value: "str"):
        self._network._graph.rename(self._record, value)

    @property
    def shape(self):
        """Its dimensions, -1 where they depend on the inputs."""
        return self._module.Dims(self._network._graph.info(self._id).shape)

    @property
    def dtype(self):
        """Its DataType."""
        inferred = self._network._graph.info(self._id).dtype
        return getattr(self._module.DataType, self._record.forced_type or inferred)

    @dtype.setter
    def dtype(self, value: "DataType"):
        if not self._is_input_or_output():
            raise TensorRTDoubleError(f"{self.name}: only inputs' and outputs' types can be set")
        self._network._force_type(self._id, value)

    @property
    def dynamic_range(self):
        """(min, max) of implicit quantization, or None."""
        return self._record.dynamic_range

    def set_dynamic_range(self, min: "float", max: "float"):
        """The range of implicit int8 quantization, symmetric."""
        if not (math.isfinite(max) and max > 0 and min == -max):
            raise TensorRTDoubleError(f"{self.name}: dynamic range {min}..{max} is not symmetric and positive")
        self._network._require_weak("a dynamic range")
        self._record.dynamic_range = (min, max)
        return True

    def reset_dynamic_range(self):
        """Undoes set_dynamic_range."""
        self._record.dynamic_range = None

    def __eq__(self, other):
        return isinstance(other, ITensor) and self._network is other._network and self._id == other._id

    def __hash__(self):
        return hash((id(self._network), self._id))


@private
class ILayer(Native):
    """A layer of a network: a node of the graph."""

    @property
    def name(self):
        """Its name."""
        return self._node.name

    @name.setter
    def name(self, value: "str"):
        self._network._graph.rename(self._node, value)

    def get_output(self, index: "int"):
        """An output. The real one answers None for a wrong index; the double raises."""
        if not 0 <= index < len(self._node.outputs):
            raise TensorRTDoubleError(f"{self.name} has no output {index}")
        return self._network._tensor(self._node.outputs[index])

    @property
    def type(self):
        """Its LayerType."""
        return getattr(self._module.LayerType, self._row.layer_type or self._row.kind.upper())

    @property
    def num_outputs(self):
        """How many outputs it has."""
        return len(self._node.outputs)

    def set_input(self, index: "int", tensor: "ITensor"):
        """Replaces an input, or sets an optional one."""
        if not 0 <= index < self._slots:
            raise TensorRTDoubleError(f"{self.name} takes no input {index}")
        self._network._graph.set_input(self._node, index, self._network._own([tensor])[0])

    @property
    def precision(self):
        """The DataType it is to compute in (weak typing)."""
        return getattr(self._module.DataType, self._node.precision or "FLOAT")

    @precision.setter
    def precision(self, value: "DataType"):
        self._network._require_weak("a layer's precision")
        self._node.precision = value.name

    def reset_precision(self):
        """Leaves the precision to the builder."""
        self._node.precision = None

    def set_output_type(self, index: "int", dtype: "DataType"):
        """The type of an output (weak typing)."""
        self._network._force_type(self.get_output(index)._id, dtype)


@private
class IAttention(Native):
    """softmax(Q·Kᵀ)·V as one operation; the scale is the user's to apply."""

    name, get_output = ILayer.name, ILayer.get_output


def _plain(value):
    """An argument as the graph keeps it: it knows nothing of TensorRT's classes."""
    if hasattr(value, "_stored"):  # Weights
        return value._stored
    return tuple(value) if hasattr(value, "__len__") else getattr(value, "name", value)


def _parameter(key: str, kind: str) -> property:
    """The property of a layer's parameter: a number as it is, an enum by its name in the graph, dims as a tuple."""

    def get(self):
        value, cls = self._node.params[key], getattr(self._module, kind, None)
        if cls is None or value is None:
            return value
        return cls.__members__[value] if isinstance(value, str) else cls(value)

    def set_(self, value: kind):
        self._node.params[key] = _plain(value)
        self._network._graph.node_changed(self._node)

    return property(get, set_, doc=f"The parameter {key}.")


def _optional_input(key: str, index: int) -> property:
    """The property of an optional input."""

    def get(self):
        inputs = self._node.inputs
        return self._network._tensor(inputs[index]) if index < len(inputs) else None

    def set_(self, value: "ITensor|None"):
        tensor = None if value is None else self._network._own([value])[0]
        self._network._graph.set_input(self._node, index, tensor)

    return property(get, set_, doc=f"The input {key}.")


def _arguments(text: str) -> list[inspect.Parameter]:
    """`axis: int, bias: Weights|None = None` as parameters."""
    found = re.findall(r"(\w+): ([\w\[\]|]+)( = None)?", text)
    kind, empty = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty
    return [inspect.Parameter(n, kind, annotation=a, default=None if d else empty) for n, a, d in found]


def _inputs_of(row: Layer) -> list[str]:
    """The arguments that are single tensors, and so the layer's inputs, in order."""
    return [p.name for p in _arguments(next(iter(row.adders.values()))) if p.annotation == "ITensor"]


def _settable(row: Layer) -> dict[str, property]:
    members, index = {}, len(_inputs_of(row))
    for parameter in _arguments(row.settable):
        if parameter.annotation == "ITensor":
            members[parameter.name], index = _optional_input(parameter.name, index), index + 1
        else:
            members[parameter.name] = _parameter(parameter.name, parameter.annotation)
    return members


def _layer_class(row: Layer) -> type:
    members = {} if row.handle else _settable(row)
    return type(row.cls, (ILayer,), members | {"_row": row, "_slots": len(_inputs_of(row)) + row.optional})


def _adder(name: str, row: Layer):
    """The method of INetworkDefinition that adds a row's layer."""

    def add(self, **arguments):
        tensors = arguments.pop("inputs", None) or [arguments.pop(n) for n in _inputs_of(row) if n in arguments]
        kept = {n: value if n in ("plugin", "shape_inputs") else _plain(value) for n, value in arguments.items()}
        params = row.defaults | row.params(**kept)
        node = self._graph.add_node(row.kind, params, self._own(tensors), row.outputs(params))
        self._layers.append(new(getattr(self._module, row.cls), network=self, node=node))
        return new(getattr(self._module, row.handle), network=self, node=node) if row.handle else self._layers[-1]

    this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    add.__name__, add.__doc__ = name, f"Adds a layer of the kind {row.kind}."
    add.__signature__ = inspect.Signature([this, *_arguments(row.adders[name])])
    return add


@private
class INetworkDefinition(Native):
    """A network: layers are added, outputs marked, and the builder makes an engine of it."""

    def _tensor(self, tensor_id: int | None):
        return None if tensor_id is None else new(self._module.ITensor, network=self, id=tensor_id)

    def _own(self, tensors: list) -> list[int]:
        """The tensors' ids; they must be of this network."""
        if any(tensor._network is not self for tensor in tensors):
            raise TensorRTDoubleError("a tensor of another network")
        return [tensor._id for tensor in tensors]

    def _require_weak(self, what: str) -> None:
        if self._graph.strongly_typed:
            raise TensorRTDoubleError(f"{what} can't be set in a strongly typed network")

    def _force_type(self, tensor_id: int, dtype) -> None:
        self._require_weak("a tensor's type")
        graph, record = self._graph, self._graph.tensors[tensor_id]
        if record.node is None:
            record.info = record.info._replace(dtype=dtype.name)
            graph.changed()
        else:
            record.forced_type = dtype.name
            graph.node_changed(graph.nodes[record.node])

    @property
    def name(self):
        """Its name, which its engine has as well."""
        return self._graph.name

    @name.setter
    def name(self, value: "str"):
        self._graph.name = value

    @property
    def num_layers(self):
        """How many layers it has."""
        return len(self._layers)

    def get_layer(self, index: "int"):
        """A layer by its index."""
        if not 0 <= index < len(self._layers):
            raise TensorRTDoubleError(f"no layer {index}")
        return self._layers[index]

    def add_input(self, name: "str", dtype: "DataType", shape: "Dims"):
        """A network input; -1 for a dimension that a profile sets."""
        if any(size < -1 or size == 0 for size in shape):
            raise TensorRTDoubleError(f"input {name}: shape {shape}")
        return self._tensor(self._graph.add_input(name, dtype.name, tuple(shape)))

    def mark_output(self, tensor: "ITensor"):
        """Makes a tensor a network output."""
        self._own([tensor])
        if tensor._is_input_or_output():
            raise TensorRTDoubleError(f"{tensor.name} is an input or an output already")
        self._graph.outputs.append(tensor._id)


def new_network(module, strongly_typed: bool, shape_type: str):
    """An empty INetworkDefinition."""
    return new(module.INetworkDefinition, graph=Graph(strongly_typed, shape_type), layers=[])


for _row in LAYERS:
    for _name in _row.adders:
        setattr(INetworkDefinition, _name, _adder(_name, _row))
    for _name, _member in _settable(_row).items() if _row.handle == "IAttention" else ():
        setattr(IAttention, _name, _member)

CLASSES = [ITensor, ILayer, *map(_layer_class, LAYERS), IAttention, INetworkDefinition]
