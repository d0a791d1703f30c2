"""The plugin network with some of its layers written otherwise, to compare times and logits:

    python scripts/gpu_checking/other_forms.py FORM builder.py ARGUMENTS…

matrix_product   dense layers as TensorRT's matrix products, which cuBLASLt computes, and sums; not as 1×1 convolutions
float_sums       as convolutions that give float32, of which TensorRT 8.6 has kernels that add up in float32; what reads it
                 rounds it to half
gelu_sigmoid     GELU as x · sigmoid(x · p(x²)), at most 3e-5 off the erf formula: fewer instructions than erf takes
gelu_short       the same with a shorter p, at most 3e-4 off: a hundredth of int8's steps, half of one of fp16's
gelu_in_int8     int8: the dense layer before GELU gives int8, too, of GELU's own range
packed_rows      padded fp16 engines of any number of rows go through the packed plugins, on any GPU; not only of few on Hopper
"""

import functools
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":  # the process's own run, whose path begins with this file's folder
    sys.path[0] = str(ROOT)

from helpers.backends.tensorrt import plan_builder
from helpers.backends.tensorrt.plugin_layers import PluginWriter

#: p(z) = a + b z + c z², z = x² of at most 48: the largest difference of x · sigmoid(x · p(x²)) to x · Φ(x) is smallest
#: with these (2.6e-5; Nelder and Mead's search from the Taylor series of Φ's log odds). Without a bound p would end up
#: negative: at 124 and above.
GELU_SIGMOID = (1.59501577, 0.0740112924, -0.000703033618)
LARGEST_SQUARE = 48.0

#: The same without c, which needs no bound (2.8e-4).
GELU_SHORT = (1.60031416, 0.06940179)

#: GELU of the tanh formula is just that: 2 √(2/π) (1 + 0.044715 z).
GELU_TANH = (1.5957691216, 0.0713548163)


def matrix_product(self, hidden, kernel, bias):
    """A product and a sum. `hidden` is [S, B, E, 1, 1] or [T, E, 1, 1]; so is the output of the layer returned."""
    network, first = self.network, self.network.num_layers
    tokens = (0,) * (self.rank - 3)  # the axes before the channels, as they are
    ones = (1,) * (self.rank - 4)

    def shaped(tensor, shape):
        layer = network.add_shuffle(tensor)
        layer.reshape_dims = shape
        return layer

    rows = shaped(hidden, (*tokens, -1)).get_output(0)
    columns = network.add_constant((*ones, *kernel.shape), self.weights(kernel)).get_output(0)
    kinds = self.trt.MatrixOperation
    product = network.add_matrix_multiply(rows, kinds.NONE, columns, kinds.TRANSPOSE).get_output(0)
    row = network.add_constant((*ones, 1, kernel.shape[0]), self.weights(bias)).get_output(0)
    total = network.add_elementwise(product, row, self.trt.ElementWiseOperation.SUM)
    if self.strict and self.int8 is None:
        for index in range(first, network.num_layers):
            network.get_layer(index).precision = self.float_type
    return shaped(total.get_output(0), (*tokens, kernel.shape[0], 1, 1))


def use_layer(layer, writer) -> None:
    writer._convolution = layer


def use_float_sums(writer) -> None:
    own_dense = writer._dense

    def dense(self, hidden, kernel, bias, name, consumer):
        tensor = own_dense(self, hidden, kernel, bias, name, consumer)
        layer = self.network.get_layer(self.network.num_layers - 1)
        layer.precision = self.trt.float16
        layer.set_output_type(0, self.trt.float32)
        return tensor

    writer._dense = dense


def sigmoid_gelu(self, coefficients, x, formula, constant, name):
    """As NetworkWriter's: a tensor of GELU(x), whose last layer is the network's last."""

    def binary(operation, left, right, part):
        return self.elementwise(left, right, operation, f"{name}/{part}")

    if formula == "tanh":
        coefficients = GELU_TANH
    square = binary("PROD", x, x, "square")
    if len(coefficients) > 2:
        square = binary("MIN", square, constant(LARGEST_SQUARE, f"{name}/most"), "clipped")
    *lower, highest = (constant(value, f"{name}/{part}") for part, value in zip("abc", coefficients))
    for power, coefficient in zip("21", reversed(lower)):  # Horner's scheme
        highest = binary("PROD", square, highest, f"times_{power}")
        highest = binary("SUM", highest, coefficient, f"plus_{power}")
    share = self.activation(binary("PROD", x, highest, "log_odds"), "SIGMOID", f"{name}/cdf")
    return binary("PROD", x, share, "gelu")


def use_sigmoid(coefficients, writer) -> None:
    writer.composed_gelu = functools.partialmethod(sigmoid_gelu, coefficients)


def use_int8_before_gelu(writer) -> None:
    own_gelu = writer.gelu

    def gelu(self, hidden, formula, name):
        result = own_gelu(self, hidden, formula, name)
        if self.int8:
            hidden.set_dynamic_range(*result.dynamic_range)
        return result

    writer.gelu = gelu


def pack_rows(writer) -> None:
    plan_builder._packs_rows = lambda options, capability: options.layout == "padded"


FORMS = {
    "packed_rows": pack_rows,
    "matrix_product": functools.partial(use_layer, matrix_product),
    "float_sums": use_float_sums,
    "gelu_sigmoid": functools.partial(use_sigmoid, GELU_SIGMOID),
    "gelu_short": functools.partial(use_sigmoid, GELU_SHORT),
    "gelu_in_int8": use_int8_before_gelu,
}


def main(form: str, script: str, *arguments: str) -> None:
    FORMS[form](PluginWriter)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
