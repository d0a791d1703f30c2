"""Adding layers to a TensorRT network: what the plugin network and the native network have in common."""

import numpy as np

from helpers.backends.tensorrt.module import explain
from helpers.batching import INPUT_NAMES
from helpers.errors import DemoBertError
from helpers.network_layers import Tensor


class NetworkWriter:
    """Adds named layers to a TensorRT network.

    `keep` holds every array whose memory a `trt.Weights` points at: TensorRT reads it when the engine is built.
    """

    def __init__(self, trt, network, logger):
        self.trt = trt
        self.network = network
        self.logger = logger
        self.keep = []

    def output(self, layer, name: str, index: int = 0) -> Tensor:
        """Names `layer` and its output, hands on the output. Raises DemoBertError where TensorRT refused the layer.

        A second output's name is its own; the layer is named by the first.
        """
        if layer is None:
            raise self.refused(f"layer {name}")
        if index == 0:
            layer.name = name
        tensor = layer.get_output(index)
        tensor.name = name
        return tensor

    def network_inputs(self, layout: str, shape: tuple) -> list[Tensor]:
        """The network's inputs, int32, each of `shape`: [B, S], or [n] of a packed network."""
        return [self.network.add_input(name, self.trt.int32, shape) for name in INPUT_NAMES[layout]]

    def refused(self, what: str) -> DemoBertError:
        return explain(self.logger, f"TensorRT refused the {what}")

    def weights(self, array: np.ndarray):
        """`array` as trt.Weights, in its own type, kept alive."""
        array = np.ascontiguousarray(array)
        self.keep.append(array)
        return self.trt.Weights(array)

    def constant(self, array: np.ndarray, name: str) -> Tensor:
        """`array` as it is, shape and type."""
        return self.output(self.network.add_constant(array.shape, self.weights(array)), name)

    def integers(self, values, name: str, dtype=np.int32) -> Tensor:
        return self.constant(np.asarray(values, dtype), name)

    def shape_type(self, shape: Tensor):
        """The numpy type of a shape tensor: int64 from TensorRT 10 on, int32 before."""
        return np.int32 if shape.dtype == self.trt.int32 else np.int64

    def int32(self, shape: Tensor, name: str) -> Tensor:
        """A shape tensor as int32, which it is already before TensorRT 10."""
        if shape.dtype == self.trt.int32:
            return shape
        return self.output(self.network.add_cast(shape, self.trt.int32), name)

    def part(self, tensor: Tensor, start: Tensor, size: Tensor, name: str) -> Tensor:
        """`size` entries of a 1-D tensor from `start` on, both shape tensors [1]."""
        layer = self.network.add_slice(tensor, (0,), (1,), (1,))
        if layer is not None:
            layer.set_input(1, start)
            layer.set_input(2, size)
        return self.output(layer, name)

    def first(self, values, size: Tensor, name: str) -> Tensor:
        """As many of `values` as the shape tensor `size` [1] says, int32. Cut from a constant: 8.6 fills with floats only."""
        zero = self.integers([0], f"{name}/zero", self.shape_type(size))
        return self.part(self.integers(values, f"{name}/all"), zero, size, name)

    def dimension(self, tensor: Tensor, axis: int, name: str) -> Tensor:
        """One size of a tensor: a shape tensor [1]."""
        shape = self.output(self.network.add_shape(tensor), f"{name}/shape")
        return self.output(self.network.add_slice(shape, (axis,), (1,), (1,)), name)

    def gathered(self, tensor: Tensor, indices: Tensor, name: str) -> Tensor:
        """Entries of `tensor` along its first axis."""
        return self.output(self.network.add_gather(tensor, indices, 0), name)

    def summed(self, tensor: Tensor, axis: int, name: str) -> Tensor:
        """Sums over one axis, which goes."""
        return self.output(self.network.add_reduce(tensor, self.trt.ReduceOperation.SUM, 1 << axis, False), name)

    def column(self, tensor: Tensor, name: str) -> Tensor:
        return self.reshaped(tensor, name, shape=(-1, 1))

    def as_row(self, tensor: Tensor, name: str) -> Tensor:
        return self.reshaped(tensor, name, shape=(1, -1))

    def sequence_of(self, tokens: Tensor, ends: Tensor, name: str) -> Tensor:
        """The sequence of each token: as many lie before it as end at or before it. `tokens` are 0, 1, 2…; int32 [T]."""
        column, row = self.column(tokens, f"{name}/token_column"), self.as_row(ends, f"{name}/end_row")
        before = self.elementwise(column, row, "LESS", f"{name}/before_end")
        ended = self.unary(before, "NOT", f"{name}/ended")
        ended = self.output(self.network.add_cast(ended, self.trt.int32), f"{name}/ended_int32")
        return self.summed(ended, 1, f"{name}/sequence")

    def joined(self, tensors: list[Tensor], name: str) -> Tensor:
        """Tensors of one or two axes, along the first."""
        return self.output(self.network.add_concatenation(tensors), name)

    def elementwise(self, left: Tensor, right: Tensor, operation: str, name: str) -> Tensor:
        kind = getattr(self.trt.ElementWiseOperation, operation)
        return self.output(self.network.add_elementwise(left, right, kind), name)

    def unary(self, tensor: Tensor, operation: str, name: str) -> Tensor:
        return self.output(self.network.add_unary(tensor, getattr(self.trt.UnaryOperation, operation)), name)

    def activation(self, tensor: Tensor, kind: str, name: str) -> Tensor:
        return self.output(self.network.add_activation(tensor, getattr(self.trt.ActivationType, kind)), name)

    def reshaped(self, tensor: Tensor, name: str, before=None, shape=None, after=None) -> Tensor:
        """Transpose by `before`, reshape to `shape` (0 keeps that dimension, -1 is inferred), transpose by `after`."""
        layer = self.network.add_shuffle(tensor)
        if layer is not None:
            if before is not None:
                layer.first_transpose = before
            if shape is not None:
                layer.reshape_dims = shape
            if after is not None:
                layer.second_transpose = after
        return self.output(layer, name)

    def composed_gelu(self, x: Tensor, formula: str, constant, name: str) -> Tensor:
        """GELU (arXiv:1606.08415) in elementwise layers, in the forms that the builder recognises and fuses.

        `constant(value, name)` makes a tensor that broadcasts against `x`.
        """

        def binary(operation, left, right, part):
            return self.elementwise(left, right, operation, f"{name}/{part}")

        if formula == "erf":
            scaled = binary("PROD", x, constant(np.sqrt(0.5), f"{name}/rsqrt2"), "x_rsqrt2")
            squashed = self.unary(scaled, "ERF", f"{name}/erf")
        else:
            cubed = binary("POW", x, constant(3.0, f"{name}/three"), "cube")
            cubed = binary("PROD", cubed, constant(0.044715, f"{name}/c"), "c_cube")
            inner = binary("SUM", x, cubed, "sum")
            inner = binary("PROD", inner, constant(np.sqrt(2.0 / np.pi), f"{name}/sqrt2_pi"), "inner")
            squashed = self.activation(inner, "TANH", f"{name}/tanh")
        shifted = binary("SUM", squashed, constant(1.0, f"{name}/one"), "one_plus")
        halved = binary("PROD", shifted, constant(0.5, f"{name}/half"), "cdf")
        return binary("PROD", x, halved, "gelu")
