"""INetworkDefinition, ITensor and the layers: TensorRT's classes over the recorded graph."""

import math

from tests.tensorrt_double import plugins
from tests.tensorrt_double.classes import Native, new, private
from tests.tensorrt_double.graph import Graph
from tests.tensorrt_double.versions import TensorRTDoubleError


@private
class ITensor(Native):
    """A tensor of a network."""

    @property
    def _record(self):
        return self._network._graph.tensors[self._id]

    @property
    def name(self):
        """Its name; inputs and outputs must have names of their own."""
        return self._record.name

    @name.setter
    def name(self, value: "str"):
        if any(tensor.name == value for tensor in self._network._graph.tensors if tensor is not self._record):
            raise TensorRTDoubleError(f"the tensor name {value!r} is in use already")
        self._record.name = value

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
        if not (self.is_network_input or self.is_network_output):
            raise TensorRTDoubleError(f"{self.name}: only inputs' and outputs' types can be set")
        self._network._force_type(self._id, value)

    @property
    def is_network_input(self):
        """Whether it is a network input."""
        return self._id in self._network._graph.inputs

    @property
    def is_network_output(self):
        """Whether it is marked as an output."""
        return self._id in self._network._graph.outputs

    @property
    def is_shape_tensor(self):
        """Whether its value is known from shapes alone."""
        return self._network._graph.info(self._id).value is not None

    @property
    def dynamic_range(self):
        """(min, max) of implicit quantization, or None."""
        return self._record.dynamic_range

    @dynamic_range.setter
    def dynamic_range(self, value: "object"):
        self.set_dynamic_range(float(value[0]), float(value[1]))

    def set_dynamic_range(self, min: "float", max: "float"):
        """The range of implicit int8 quantization, symmetric."""
        if not (math.isfinite(max) and max > 0 and min == -max):
            raise TensorRTDoubleError(f"{self.name}: dynamic range {min}..{max} is not symmetric and positive")
        if self._network._graph.strongly_typed:
            raise TensorRTDoubleError("strongly typed networks take no dynamic ranges")
        self._record.dynamic_range = (min, max)
        return True

    def reset_dynamic_range(self):
        """Forgets the range."""
        self._record.dynamic_range = None

    def set_dimension_name(self, index: "int", name: "str"):
        """Names a dimension of an input; equal names mean equal sizes."""
        if not self.is_network_input or not 0 <= index < len(self.shape):
            raise TensorRTDoubleError(f"{self.name} has no input dimension {index}")
        self._network._dimension_names[self._id, index] = name

    @property
    def allowed_formats(self):
        """Bit mask of TensorFormats."""
        return self._network._formats.get(self._id, -1)

    @allowed_formats.setter
    def allowed_formats(self, value: "int"):
        known = sum(1 << int(m) for m in set(self._module.TensorFormat.__members__.values()))
        if value <= 0 or value & ~known or not (self.is_network_input or self.is_network_output):
            raise TensorRTDoubleError(f"{self.name}: formats {value:#b}")
        self._network._formats[self._id] = value

    def __eq__(self, other):
        return isinstance(other, ITensor) and self._network is other._network and self._id == other._id

    def __hash__(self):
        return hash((id(self._network), self._id))


class _Param:
    """Makes the properties that read and write a node's parameter."""

    @staticmethod
    def plain(key: str, annotation: str, doc: str) -> property:
        """A number, string or bool as it is."""

        def setter(self, value: annotation):
            self._set(key, value)

        return property(lambda self: self._node.params[key], setter, doc=doc)

    @staticmethod
    def enum(key: str, cls: str, doc: str) -> property:
        """An enum member, kept by name."""

        def setter(self, value: cls):
            self._set(key, value.name)

        return property(lambda self: getattr(getattr(self._module, cls), self._node.params[key]), setter, doc=doc)

    @staticmethod
    def dims(key: str, cls: str, doc: str) -> property:
        """Dims or a Permutation, kept as a tuple."""

        def setter(self, value: cls):
            self._set(key, tuple(value))

        def getter(self):
            value = self._node.params[key]
            return None if value is None else getattr(self._module, cls)(value)

        return property(getter, setter, doc=doc)


@private
class ILayer(Native):
    """A layer of a network. `_slots`: how many inputs it may be given."""

    _slots = 1

    def _set(self, key: str, value) -> None:
        self._node.params[key] = value
        self._network._graph.node_changed(self._node)

    @property
    def name(self):
        """Its name."""
        return self._node.name

    @name.setter
    def name(self, value: "str"):
        self._network._rename(self._node, value)

    @property
    def metadata(self):
        """Free text."""
        return self._network._metadata.get(id(self._node), "")

    @metadata.setter
    def metadata(self, value: "str"):
        self._network._metadata[id(self._node)] = value

    @property
    def type(self):
        """Its LayerType."""
        return getattr(self._module.LayerType, self._layer_type)

    @property
    def num_inputs(self):
        """How many inputs it has."""
        return len(self._node.inputs)

    @property
    def num_outputs(self):
        """How many outputs it has."""
        return len(self._node.outputs)

    def get_input(self, index: "int"):
        """An input, or None."""
        inputs = self._node.inputs
        return None if not 0 <= index < len(inputs) else self._network._tensor(inputs[index])

    def get_output(self, index: "int"):
        """An output. The real one answers None for a wrong index; the double raises."""
        if not 0 <= index < len(self._node.outputs):
            raise TensorRTDoubleError(f"{self.name} has no output {index}")
        return self._network._tensor(self._node.outputs[index])

    def set_input(self, index: "int", tensor: "ITensor"):
        """Replaces an input, or sets an optional one."""
        if not 0 <= index < self._slots:
            raise TensorRTDoubleError(f"{self.name} takes no input {index}")
        self._network._own([tensor])
        inputs = self._node.inputs
        inputs.extend([None] * (index + 1 - len(inputs)))
        inputs[index] = tensor._id
        self._network._graph.node_changed(self._node)

    @property
    def precision(self):
        """The DataType it is to compute in (weak typing)."""
        return getattr(self._module.DataType, self._node.precision or "FLOAT")

    @precision.setter
    def precision(self, value: "DataType"):
        self._network._require_weak("a layer's precision")
        self._node.precision = value.name

    @property
    def precision_is_set(self):
        """Whether `precision` was set."""
        return self._node.precision is not None

    def reset_precision(self):
        """Leaves the precision to the builder."""
        self._node.precision = None

    def set_output_type(self, index: "int", dtype: "DataType"):
        """The type of an output (weak typing)."""
        self._network._force_type(self.get_output(index)._id, dtype)

    def get_output_type(self, index: "int"):
        """The type of an output."""
        return self.get_output(index).dtype

    def output_type_is_set(self, index: "int"):
        """Whether `set_output_type` was called."""
        return self.get_output(index)._record.forced_type is not None

    def reset_output_type(self, index: "int"):
        """Leaves the type to the builder."""
        self.get_output(index)._record.forced_type = None
        self._network._graph.changed()


class IConstantLayer(ILayer):
    """Weights as a tensor."""

    _layer_type, _slots = "CONSTANT", 0

    @property
    def shape(self):
        """Its dimensions."""
        return self._module.Dims(self._node.params["shape"])


class IIdentityLayer(ILayer):
    """The input itself."""

    _layer_type = "IDENTITY"


class ICastLayer(ILayer):
    """Conversion to another type."""

    _layer_type = "CAST"
    to_type = _Param.enum("to_type", "DataType", "The type.")


class IGatherLayer(ILayer):
    """Rows chosen by indices."""

    _layer_type, _slots = "GATHER", 2
    axis = _Param.plain("axis", "int", "The axis to gather on.")
    num_elementwise_dims = _Param.plain("num_elementwise_dims", "int", "Leading dimensions walked together.")
    mode = _Param.enum("mode", "GatherMode", "What indices mean.")


class IElementWiseLayer(ILayer):
    """An operation on two tensors."""

    _layer_type, _slots = "ELEMENTWISE", 2
    op = _Param.enum("op", "ElementWiseOperation", "The operation.")


class IUnaryLayer(ILayer):
    """An operation on one tensor."""

    _layer_type = "UNARY"
    op = _Param.enum("op", "UnaryOperation", "The operation.")


class IActivationLayer(ILayer):
    """An activation function."""

    _layer_type = "ACTIVATION"
    type = _Param.enum("type", "ActivationType", "The function.")
    alpha = _Param.plain("alpha", "float", "First parameter.")
    beta = _Param.plain("beta", "float", "Second parameter.")


class IMatrixMultiplyLayer(ILayer):
    """A matrix product."""

    _layer_type, _slots = "MATRIX_MULTIPLY", 2
    op0 = _Param.enum("op0", "MatrixOperation", "How to take the first matrix.")
    op1 = _Param.enum("op1", "MatrixOperation", "How to take the second matrix.")


class ISoftMaxLayer(ILayer):
    """Softmax along one axis."""

    _layer_type = "SOFTMAX"
    axes = _Param.plain("axes", "int", "Bit mask of the one axis.")


class IShuffleLayer(ILayer):
    """Transpose, reshape, transpose."""

    _layer_type, _slots = "SHUFFLE", 2
    first_transpose = _Param.dims("first_transpose", "Permutation", "The first order.")
    reshape_dims = _Param.dims("reshape_dims", "Dims", "The new shape; 0 copies, -1 infers.")
    second_transpose = _Param.dims("second_transpose", "Permutation", "The second order.")
    zero_is_placeholder = _Param.plain("zero_is_placeholder", "bool", "Whether 0 copies a dimension.")


class IConvolutionLayer(ILayer):
    """A convolution, one group, no padding or dilation, stride 1."""

    _layer_type, _slots = "CONVOLUTION", 2
    num_output_maps = _Param.plain("num_output_maps", "int", "Output channels.")
    kernel_size_nd = _Param.dims("kernel_shape", "Dims", "The kernel's spatial size.")


class IFullyConnectedLayer(ILayer):
    """A dense layer over the last three dimensions."""

    _layer_type = "FULLY_CONNECTED"
    num_output_channels = _Param.plain("num_output_maps", "int", "Output channels.")


class INormalizationLayer(ILayer):
    """Normalisation over axes, scale and bias."""

    _layer_type, _slots = "NORMALIZATION", 3
    epsilon = _Param.plain("epsilon", "float", "Added to the variance.")
    axes = _Param.plain("axes", "int", "Bit mask of the axes.")
    num_groups = _Param.plain("num_groups", "int", "Channel groups.")
    compute_precision = _Param.enum("compute_precision", "DataType", "The type of the statistics.")
    is_v2 = property(lambda self: self._node.params["is_v2"], doc="Whether add_normalization_v2 made it.")


class IShapeLayer(ILayer):
    """A tensor's shape as a tensor."""

    _layer_type = "SHAPE"


class ISliceLayer(ILayer):
    """A strided part of a tensor."""

    _layer_type, _slots = "SLICE", 4
    start = _Param.dims("start", "Dims", "First element.")
    shape = _Param.dims("shape", "Dims", "Output size.")
    stride = _Param.dims("stride", "Dims", "Steps.")
    axes = _Param.dims("axes", "Dims", "The axes that the three stand for.")
    mode = _Param.enum("mode", "SampleMode", "What lies outside.")


class IConcatenationLayer(ILayer):
    """Tensors end to end."""

    _layer_type, _slots = "CONCATENATION", 64
    axis = _Param.plain("axis", "int", "The axis.")


class IReduceLayer(ILayer):
    """A sum, maximum… over axes."""

    _layer_type = "REDUCE"
    op = _Param.enum("op", "ReduceOperation", "The operation.")
    axes = _Param.plain("axes", "int", "Bit mask of the axes.")
    keep_dims = _Param.plain("keep_dims", "bool", "Whether the axes stay, of size 1.")


class IFillLayer(ILayer):
    """A tensor of evenly spaced numbers."""

    _layer_type, _slots = "FILL", 3
    shape = _Param.dims("shape", "Dims", "Output size.")
    operation = _Param.enum("operation", "FillOperation", "The operation.")
    alpha = _Param.plain("alpha", "float", "The first value.")
    beta = _Param.plain("beta", "float", "The step.")
    to_type = _Param.enum("to_type", "DataType", "The type.")


class ISelectLayer(ILayer):
    """One of two tensors, by a condition."""

    _layer_type, _slots = "SELECT", 3


class IQuantizeLayer(ILayer):
    """To int8 or fp8 by a constant scale."""

    _layer_type, _slots = "QUANTIZE", 2
    axis = _Param.plain("axis", "int", "The axis of a 1-D scale.")
    to_type = _Param.enum("to_type", "DataType", "The type.")


class IDequantizeLayer(ILayer):
    """Back from int8 or fp8."""

    _layer_type, _slots = "DEQUANTIZE", 2
    axis = _Param.plain("axis", "int", "The axis of a 1-D scale.")
    to_type = _Param.enum("to_type", "DataType", "The type.")


class ITopKLayer(ILayer):
    """The largest or smallest values and where they are."""

    _layer_type = "TOPK"
    op = _Param.enum("op", "TopKOperation", "Largest or smallest.")
    k = _Param.plain("k", "int", "How many.")
    axes = _Param.plain("axes", "int", "Bit mask of the one axis.")


class IUnsqueezeLayer(ILayer):
    """New axes of size 1."""

    _layer_type, _slots = "UNSQUEEZE", 2


class ISqueezeLayer(ILayer):
    """Axes of size 1 taken away."""

    _layer_type, _slots = "SQUEEZE", 2


class IPluginV2Layer(ILayer):
    """A plugin of the V2 interface."""

    _layer_type, _slots = "PLUGIN_V2", 8
    plugin = property(lambda self: self._network._plugins[id(self._node)], doc="The plugin.")


class IPluginV3Layer(ILayer):
    """A plugin of the V3 interface."""

    _layer_type, _slots = "PLUGIN_V3", 8
    plugin = property(lambda self: self._network._plugins[id(self._node)], doc="The plugin.")


class IAttentionOutputLayer(ILayer):
    """What an attention leaves in the list of layers; the real one has an input layer too."""

    _layer_type = "ATTENTION_OUTPUT"


@private
class IAttention(Native):
    """softmax(Q·Kᵀ)·V as one operation; the scale is the user's to apply."""

    def _set(self, key: str, value) -> None:
        self._node.params[key] = value
        self._network._graph.node_changed(self._node)

    def _optional(self, index: int):
        inputs = self._node.inputs
        return None if index >= len(inputs) else self._network._tensor(inputs[index])

    def _set_optional(self, index: int, tensor) -> None:
        inputs = self._node.inputs
        inputs.extend([None] * (index + 1 - len(inputs)))
        inputs[index] = None if tensor is None else tensor._id
        self._network._own([] if tensor is None else [tensor])
        self._network._graph.node_changed(self._node)

    @property
    def name(self):
        """Its name."""
        return self._node.name

    @name.setter
    def name(self, value: "str"):
        self._network._rename(self._node, value)

    @property
    def mask(self):
        """A mask broadcastable to the scores: boolean (true = attend) or added to them."""
        return self._optional(3)

    @mask.setter
    def mask(self, value: "ITensor|None"):
        self._set_optional(3, value)

    @property
    def query_lengths(self):
        """Cumulative lengths [B + 1] of packed queries."""
        return self._optional(4)

    @query_lengths.setter
    def query_lengths(self, value: "ITensor|None"):
        self._set_optional(4, value)

    @property
    def key_value_lengths(self):
        """Lengths [B], or cumulative lengths [B + 1] where packed."""
        return self._optional(5)

    @key_value_lengths.setter
    def key_value_lengths(self, value: "ITensor|None"):
        self._set_optional(5, value)

    @property
    def normalization_quantize_scale(self):
        """The step of the probabilities, where they are quantized: a constant."""
        return self._optional(6)

    @normalization_quantize_scale.setter
    def normalization_quantize_scale(self, value: "ITensor|None"):
        self._set_optional(6, value)

    @property
    def normalization_quantize_to_type(self):
        """The DataType that the probabilities are quantized to; FLOAT where they are not."""
        return getattr(self._module.DataType, self._node.params["quantize_to"] or "FLOAT")

    @normalization_quantize_to_type.setter
    def normalization_quantize_to_type(self, value: "DataType"):
        self._set("quantize_to", value.name)

    norm_op = _Param.enum("norm_op", "AttentionNormalizationOp", "Softmax or none.")
    decomposable = _Param.plain("decomposable", "bool", "Whether unfused layers will do.")
    causal_kind = _Param.enum("causal", "CausalMaskKind", "Causal masking.")
    query_form = _Param.enum("query_form", "AttentionIOForm", "Padded or packed queries.")
    key_value_form = _Param.enum("key_value_form", "AttentionIOForm", "Padded or packed keys and values.")

    @property
    def num_inputs(self):
        """How many inputs it has."""
        return len(self._node.inputs)

    @property
    def num_outputs(self):
        """One."""
        return 1

    def get_input(self, index: "int"):
        """An input, or None."""
        return self._optional(index)

    def get_output(self, index: "int"):
        """The context."""
        if index != 0:
            raise TensorRTDoubleError(f"attention has no output {index}")
        return self._network._tensor(self._node.outputs[0])


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

    def _add(self, cls: str, kind: str, tensors: list, outputs: int = 1, **params):
        graph: Graph = self._graph
        node = graph.add_node(kind, params, self._own(tensors), outputs)
        layer = new(getattr(self._module, cls), network=self, node=node)
        self._layers.append(layer)
        return layer

    def _rename(self, node, name: str) -> None:
        """Names a layer; the real one logs an error and keeps the old name where the new one is taken."""
        if not name or any(other.name == name for other in self._graph.nodes if other is not node):
            raise TensorRTDoubleError(f"the layer name {name!r} is empty or in use already")
        node.name = name

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
        """The network's name."""
        return self._name

    @name.setter
    def name(self, value: "str"):
        self._name = value

    @property
    def num_layers(self):
        """How many layers it has."""
        return len(self._layers)

    @property
    def num_inputs(self):
        """How many inputs it has."""
        return len(self._graph.inputs)

    @property
    def num_outputs(self):
        """How many outputs are marked."""
        return len(self._graph.outputs)

    @property
    def flags(self):
        """The creation flags, a bit mask."""
        return self._flags

    def get_flag(self, flag: "NetworkDefinitionCreationFlag"):
        """Whether a creation flag is set."""
        strong = flag.name == "STRONGLY_TYPED" and self._graph.strongly_typed
        return strong or bool(self._flags >> int(flag) & 1)

    def __len__(self):
        return len(self._layers)

    def __getitem__(self, index):
        return self._layers[index]

    def get_layer(self, index: "int"):
        """A layer by its index."""
        if not 0 <= index < len(self._layers):
            raise TensorRTDoubleError(f"no layer {index}")
        return self._layers[index]

    def get_input(self, index: "int"):
        """An input by its index."""
        return self._tensor(self._graph.inputs[index])

    def get_output(self, index: "int"):
        """An output by its index."""
        return self._tensor(self._graph.outputs[index])

    def add_input(self, name: "str", dtype: "DataType", shape: "Dims"):
        """A network input; -1 for a dimension that a profile sets."""
        if not name or any(self._graph.tensors[i].name == name for i in self._graph.inputs):
            raise TensorRTDoubleError(f"the input name {name!r} is empty or taken")
        if any(size < -1 or size == 0 for size in shape):
            raise TensorRTDoubleError(f"input {name}: shape {shape}")
        return self._tensor(self._graph.add_input(name, dtype.name, tuple(shape)))

    def mark_output(self, tensor: "ITensor"):
        """Makes a tensor a network output."""
        self._own([tensor])
        if tensor.is_network_output or tensor.is_network_input:
            raise TensorRTDoubleError(f"{tensor.name} is an input or an output already")
        self._graph.outputs.append(tensor._id)

    def unmark_output(self, tensor: "ITensor"):
        """Takes `mark_output` back."""
        self._graph.outputs.remove(tensor._id)

    def add_constant(self, shape: "Dims", weights: "Weights"):
        """Weights as a tensor; as many of them as the shape has elements."""
        if math.prod(shape) != weights._count or any(size < 0 for size in shape):
            raise TensorRTDoubleError(f"constant {shape} of {weights._count} weights")
        params = {"shape": tuple(shape), "dtype": weights._dtype, "weights": weights}
        return self._add("IConstantLayer", "constant", [], **params)

    def add_identity(self, input: "ITensor"):
        """The input itself."""
        return self._add("IIdentityLayer", "identity", [input])

    def add_cast(self, input: "ITensor", to_type: "DataType"):
        """Conversion to a type."""
        return self._add("ICastLayer", "cast", [input], to_type=to_type.name)

    def add_gather(self, input: "ITensor", indices: "ITensor", axis: "int"):
        """Rows of `input` along an axis."""
        params = {"axis": axis, "mode": "DEFAULT", "num_elementwise_dims": 0}
        return self._add("IGatherLayer", "gather", [input, indices], **params)

    def add_gather_v2(self, input: "ITensor", indices: "ITensor", mode: "GatherMode"):
        """Gather in a mode."""
        params = {"axis": 0, "mode": mode.name, "num_elementwise_dims": 0}
        return self._add("IGatherLayer", "gather", [input, indices], **params)

    def add_elementwise(self, input1: "ITensor", input2: "ITensor", op: "ElementWiseOperation"):
        """An operation on two tensors of one rank; dimensions of 1 stretch."""
        return self._add("IElementWiseLayer", "elementwise", [input1, input2], op=op.name)

    def add_unary(self, input: "ITensor", op: "UnaryOperation"):
        """An operation on one tensor."""
        return self._add("IUnaryLayer", "unary", [input], op=op.name)

    def add_activation(self, input: "ITensor", type: "ActivationType"):
        """An activation function."""
        return self._add("IActivationLayer", "activation", [input], type=type.name, alpha=0.0, beta=0.0)

    def add_matrix_multiply(self, input0: "ITensor", op0: "MatrixOperation", input1: "ITensor", op1: "MatrixOperation"):
        """A matrix product over the last two dimensions."""
        params = {"op0": op0.name, "op1": op1.name}
        return self._add("IMatrixMultiplyLayer", "matrix_multiply", [input0, input1], **params)

    def add_softmax(self, input: "ITensor"):
        """Softmax; the axis is set on the layer."""
        return self._add("ISoftMaxLayer", "softmax", [input], axes=0)

    def add_shuffle(self, input: "ITensor"):
        """Transposes and reshapes, set on the layer."""
        params = {"first_transpose": None, "reshape_dims": None, "second_transpose": None, "zero_is_placeholder": True}
        return self._add("IShuffleLayer", "shuffle", [input], **params)

    def add_convolution_nd(
        self,
        input: "ITensor",
        num_output_maps: "int",
        kernel_shape: "Dims",
        kernel: "Weights",
        bias: "Weights|None" = None,
    ):
        """A convolution over the last len(kernel_shape) dimensions."""
        params = {"num_output_maps": num_output_maps, "kernel_shape": tuple(kernel_shape)}
        params |= _weight_params("kernel", kernel) | _weight_params("bias", bias)
        return self._add("IConvolutionLayer", "convolution", [input], **params)

    def add_fully_connected(self, input: "ITensor", num_outputs: "int", kernel: "Weights", bias: "Weights|None" = None):
        """A dense layer over the last three dimensions."""
        params = {"num_output_maps": num_outputs} | _weight_params("kernel", kernel) | _weight_params("bias", bias)
        return self._add("IFullyConnectedLayer", "fully_connected", [input], **params)

    def add_normalization(self, input: "ITensor", scale: "ITensor", bias: "ITensor", axesMask: "int"):
        """Normalisation over the axes of a bit mask."""
        params = {"axes": axesMask, "epsilon": 1e-5, "num_groups": 1, "compute_precision": "FLOAT", "is_v2": False}
        return self._add("INormalizationLayer", "normalization", [input, scale, bias], **params)

    def add_normalization_v2(self, input: "ITensor", scale: "ITensor", bias: "ITensor", axesMask: "int"):
        """The same with per-channel scales of group norm."""
        params = {"axes": axesMask, "epsilon": 1e-5, "num_groups": 1, "compute_precision": "FLOAT", "is_v2": True}
        return self._add("INormalizationLayer", "normalization", [input, scale, bias], **params)

    def _add_attention(self, tensors: list, norm_op, causal: str):
        params = {"norm_op": norm_op.name, "decomposable": False, "causal": causal, "quantize_to": None}
        params |= {"query_form": "PADDED_BHND", "key_value_form": "PADDED_BHND"}
        node = self._add("IAttentionOutputLayer", "attention", tensors, **params)._node
        return new(self._module.IAttention, network=self, node=node)

    def add_attention(
        self, query: "ITensor", key: "ITensor", value: "ITensor", norm_op: "AttentionNormalizationOp", causal: "bool"
    ):
        """Attention over [B, N, S, H]."""
        return self._add_attention([query, key, value], norm_op, "UPPER_LEFT" if causal else "NONE")

    def add_attention_v2(
        self,
        query: "ITensor",
        key: "ITensor",
        value: "ITensor",
        norm_op: "AttentionNormalizationOp",
        causal_kind: "CausalMaskKind",
    ):
        """Attention over [B, N, S, H], or [T, N, H] where a form says so."""
        return self._add_attention([query, key, value], norm_op, causal_kind.name)

    def add_quantize(self, input: "ITensor", scale: "ITensor", output_type: "DataType" = None):
        """Quantization by a constant scale."""
        to_type = "INT8" if output_type is None else output_type.name
        return self._add("IQuantizeLayer", "quantize", [input, scale], axis=None, to_type=to_type)

    def add_dequantize(self, input: "ITensor", scale: "ITensor", output_type: "DataType" = None):
        """Back from quantized values."""
        to_type = "FLOAT" if output_type is None else output_type.name
        return self._add("IDequantizeLayer", "dequantize", [input, scale], axis=None, to_type=to_type)

    def add_shape(self, input: "ITensor"):
        """The input's dimensions."""
        return self._add("IShapeLayer", "shape", [input])

    def add_slice(self, input: "ITensor", start: "Dims", shape: "Dims", stride: "Dims"):
        """A strided part."""
        params = {"start": tuple(start), "shape": tuple(shape), "stride": tuple(stride)}
        return self._add("ISliceLayer", "slice", [input], **params, axes=None, mode="STRICT_BOUNDS")

    def add_concatenation(self, inputs: "list[ITensor]"):
        """Tensors end to end; the axis is set on the layer."""
        if not inputs:
            raise TensorRTDoubleError("nothing to concatenate")
        return self._add("IConcatenationLayer", "concatenation", inputs, axis=None)

    def add_reduce(self, input: "ITensor", op: "ReduceOperation", axes: "int", keep_dims: "bool"):
        """A sum, maximum… over the axes of a bit mask."""
        return self._add("IReduceLayer", "reduce", [input], op=op.name, axes=axes, keep_dims=keep_dims)

    def add_fill(self, shape: "Dims", op: "FillOperation", output_type: "DataType" = None):
        """Evenly spaced numbers."""
        to_type = "FLOAT" if output_type is None else output_type.name
        params = {"shape": tuple(shape), "operation": op.name, "to_type": to_type, "alpha": 0.0, "beta": 1.0}
        return self._add("IFillLayer", "fill", [], **params)

    def add_select(self, condition: "ITensor", then_input: "ITensor", else_input: "ITensor"):
        """One of two tensors, element by element."""
        return self._add("ISelectLayer", "select", [condition, then_input, else_input])

    def add_topk(self, input: "ITensor", op: "TopKOperation", k: "int", axes: "int"):
        """The k largest or smallest along one axis."""
        return self._add("ITopKLayer", "topk", [input], 2, op=op.name, k=k, axes=axes)

    def add_unsqueeze(self, input: "ITensor", axes: "ITensor"):
        """New axes of size 1."""
        return self._add("IUnsqueezeLayer", "unsqueeze", [input, axes])

    def add_squeeze(self, input: "ITensor", axes: "ITensor|None" = None):
        """Axes of size 1 taken away; without `axes`, all that are 1 in the network."""
        return self._add("ISqueezeLayer", "squeeze", [input] if axes is None else [input, axes])

    def _add_plugin(self, cls: str, inputs: list, plugin):
        params = dict(plugin._params)
        layer = self._add(cls, "plugin", inputs, plugins.output_count(params), **params)
        self._plugins[id(layer._node)] = plugin
        return layer

    def add_plugin_v2(self, inputs: "list[ITensor]", plugin: "IPluginV2"):
        """A plugin of the V2 interface."""
        return self._add_plugin("IPluginV2Layer", inputs, plugin)

    def add_plugin_v3(self, inputs: "list[ITensor]", shape_inputs: "list[ITensor]", plugin: "IPluginV3"):
        """A plugin of the V3 interface; the BERT plugins take no shape inputs."""
        if shape_inputs:
            raise TensorRTDoubleError("the BERT plugins take no shape inputs")
        return self._add_plugin("IPluginV3Layer", inputs, plugin)


def _weight_params(what: str, weights) -> dict:
    empty = weights is None or weights._count == 0
    return {
        what: None if empty else weights,
        f"{what}_count": 0 if empty else weights._count,
        f"{what}_type": None if empty else weights._dtype,
    }


def new_network(module, flags: int, strongly_typed: bool, shape_type: str):
    """An empty INetworkDefinition."""
    return new(
        module.INetworkDefinition,
        graph=Graph(strongly_typed, shape_type),
        flags=flags,
        name="",
        layers=[],
        metadata={},
        plugins={},
        formats={},
        dimension_names={},
    )


CLASSES = [
    ITensor,
    ILayer,
    *ILayer.__subclasses__(),
    IAttention,
    INetworkDefinition,
]
