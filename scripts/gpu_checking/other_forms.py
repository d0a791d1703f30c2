"""The plugin network with some of its layers written otherwise, to compare times and logits:

    python scripts/gpu_checking/other_forms.py FORM builder.py ARGUMENTS…

matrix_product   dense layers as TensorRT's matrix products, which cuBLASLt computes, and sums; not as 1×1 convolutions
float_norms      add + norm in float32, and what it adds; what reads it rounds it to half
gelu_erf         GELU by erf or tanh; not by a sigmoid
gelu_in_half     int8: the dense layer before GELU gives half; not int8
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
from helpers.backends.tensorrt.bert_plugins import TYPE_IDS
from helpers.backends.tensorrt.plugin_layers import PluginWriter, TypedPluginWriter


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


def use_float_norms(writer) -> None:
    own_inputs, own_dense = TypedPluginWriter._make_inputs, writer._dense

    def make_inputs(self, batch_size, sequence_length):
        self.norm_type, self.half_embeddings = TYPE_IDS["fp32"], False
        own_inputs(self, batch_size, sequence_length)

    def dense(self, hidden, kernel, bias, name, consumer):
        tensor = own_dense(self, hidden, kernel, bias, name, consumer)
        if consumer == TYPE_IDS["fp32"]:
            layer = self.network.get_layer(self.network.num_layers - 1)
            layer.precision = self.float_type
            layer.set_output_type(0, self.trt.float32)
        return tensor

    TypedPluginWriter._make_inputs, writer._dense = make_inputs, dense


def use_erf(writer) -> None:
    writer.sigmoid_gelu = writer.composed_gelu


def use_half_before_gelu(writer) -> None:
    own_gelu = writer.gelu

    def gelu(self, hidden, formula, name):
        result = own_gelu(self, hidden, formula, name)
        hidden.reset_dynamic_range()
        return result

    writer.gelu = gelu


def pack_rows(writer) -> None:
    plan_builder._packs_rows = lambda options, capability: options.layout == "padded"


FORMS = {
    "matrix_product": functools.partial(use_layer, matrix_product),
    "float_norms": use_float_norms,
    "gelu_erf": use_erf,
    "gelu_in_half": use_half_before_gelu,
    "packed_rows": pack_rows,
}


def main(form: str, script: str, *arguments: str) -> None:
    FORMS[form](PluginWriter)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
