"""The plugin network with its dense layers as other layers of TensorRT 8.6, to compare their times:

    python scripts/gpu_checking/dense_forms.py FORM builder.py ARGUMENTS…

FORM is fully_connected, matrix_product, cublas, or float_sums: a convolution that gives float32, of which TensorRT 8.6 has
kernels that add up in float32; what reads it rounds it to half.

"cublas" is for padded fp16: NVIDIA's plugin for products, which calls cuBLASLt and knows no bias. Add + norm and NVIDIA's
plugin for GELU, of its tanh formula, add it; query, key and value stay a convolution. The project writes them as 1×1 convolutions (docs/tensorrt.md has what the others took).
"""

import functools
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":  # the process's own run, whose path begins with this file's folder
    sys.path[0] = str(ROOT)

from helpers.backends.tensorrt.bert_plugins import ADD_AND_NORM
from helpers.backends.tensorrt.plugin_layers import PluginWriter


def fully_connected(self, hidden, kernel, bias):
    """TensorRT's own layer of that name, which went with TensorRT 10. `hidden` is [S, B, E, 1, 1] or [T, E, 1, 1]."""
    return self.network.add_fully_connected(hidden, kernel.shape[0], self.weights(kernel), self.weights(bias))


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


def cublas_dense(self, hidden, kernel, bias, name):
    """The product alone; whatever reads it adds the bias, kept until then."""
    self.bias = bias
    half = self._integer("type_id", 1)
    fields = [self._integer("out_dims", kernel.shape[0]), half, self._floats("W", kernel)]
    return self.output(_own_plugin(self, "CustomFCPluginDynamic", name, fields, hidden), name)


def plugin_gelu(self, hidden, formula, name):
    fields = [self._integer("type_id", 1), self._floats("bias", self.bias)]
    return self.output(_own_plugin(self, "CustomGeluPluginDynamic", name, fields, hidden), f"{name}/gelu")


def _own_plugin(self, plugin: str, name: str, fields: list, hidden):
    creator = self.trt.get_plugin_registry().get_plugin_creator(plugin, "1", "")
    made = creator.create_plugin(name, self.trt.PluginFieldCollection(fields))
    return self.network.add_plugin_v2([hidden], made)


def use_cublas(writer) -> None:
    own_plugin = writer._plugin

    def with_bias(self, plugin, name, fields, inputs):
        if plugin == ADD_AND_NORM:
            fields = [*fields, self._floats("bias", self.bias)]
        return own_plugin(self, plugin, name, fields, inputs)

    writer.dense, writer.gelu, writer._plugin = cublas_dense, plugin_gelu, with_bias


def use_float_sums(writer) -> None:
    own_dense = writer._dense

    def dense(self, hidden, kernel, bias, name, consumer):
        tensor = own_dense(self, hidden, kernel, bias, name, consumer)
        layer = self.network.get_layer(self.network.num_layers - 1)
        layer.precision = self.trt.float16
        layer.set_output_type(0, self.trt.float32)
        return tensor

    writer._dense = dense


def use_layer(layer, writer) -> None:
    writer._convolution = layer


FORMS = {
    "fully_connected": functools.partial(use_layer, fully_connected),
    "matrix_product": functools.partial(use_layer, matrix_product),
    "cublas": use_cublas,
    "float_sums": use_float_sums,
}


def main(form: str, script: str, *arguments: str) -> None:
    FORMS[form](PluginWriter)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
