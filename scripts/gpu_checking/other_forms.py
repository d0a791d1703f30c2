"""The plugin network with some of its layers written otherwise, to compare times and logits:

    python scripts/gpu_checking/other_forms.py FORM[+FORM…] builder.py ARGUMENTS…

matrix_product     dense layers as TensorRT's matrix products, which cuBLASLt computes, and sums; not as 1×1 convolutions
products_but_gelu  the same but for the one before GELU, which a convolution computes in one with it
gelu_short         GELU by a sigmoid of fewer terms, at most 3e-4 off: a hundredth of int8's steps, half of one of fp16's at 1
gelu_erf           GELU by erf or tanh; not by a sigmoid
gelu_in_half       int8: the dense layer before GELU gives half; not int8
float_norms        add + norm in float32, and what it adds; what reads it rounds it to half
norm_layers        add + norm as a sum and TensorRT's normalization layer, which computes in float32; not by the plugin
packed_rows        padded fp16 engines of any number of rows go through the packed plugins, on any GPU; not only of few on
                   Hopper
rows_together      the same, each row one sequence: tokens are moved together first; not two, of its tokens and of its padding
"""

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":  # the process's own run, whose path begins with this file's folder
    sys.path[0] = str(ROOT)

import numpy as np

from helpers.backends.tensorrt import plan_builder, plugin_layers
from helpers.backends.tensorrt.bert_plugins import TYPE_IDS
from helpers.backends.tensorrt.plugin_layers import PluginWriter, RowsPluginLayers, TypedPluginWriter
from helpers.network_layers import Normalised

#: a + b x²: GELU's sigmoid without the last term, which needs no bound either (2.8e-4).
GELU_SHORT = (1.60031416, 0.06940179)


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


def use_products(writer) -> None:
    writer._convolution = matrix_product


def use_products_but_for_gelu(writer) -> None:
    convolution, own_dense = writer._convolution, writer._dense

    def dense(self, hidden, kernel, bias, name, consumer):
        self._convolution = convolution.__get__(self) if consumer is None else matrix_product.__get__(self)
        return own_dense(self, hidden, kernel, bias, name, consumer)

    writer._dense = dense


def use_short_sigmoid(writer) -> None:
    own_gelu, plugin_layers.TANH_SIGMOID = writer.sigmoid_gelu, GELU_SHORT

    def sigmoid_gelu(self, x, formula, constant, name):
        return own_gelu(self, x, "tanh", constant, name)  # whose coefficients are two, and unbounded

    writer.sigmoid_gelu = sigmoid_gelu


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


def use_norm_layers(writer) -> None:
    def add_and_normalise(self, branch, residual, gamma, beta, name):
        total = self.elementwise(branch, residual, "SUM", f"{name}/add")
        axis = self.rank - 3  # the channels', the last one of what is normalised
        rows = self.reshaped(total, f"{name}/rows", shape=(*(0,) * axis, -1))
        row = (*(1,) * axis, -1)
        scale, shift = (
            self.constant(np.float32(array).reshape(row), f"{name}/{part}")
            for array, part in ((gamma, "gamma"), (beta, "beta"))
        )
        layer = self.network.add_normalization(rows, scale, shift, 1 << axis)
        layer.epsilon = self.config.layer_norm_eps
        normal = self.output(layer, f"{name}/normal")
        return Normalised(self.reshaped(normal, name, shape=(*(0,) * axis, -1, 1, 1)), total)

    writer.add_and_normalise = add_and_normalise


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


class RowsTogether(RowsPluginLayers):
    """Rows of a fixed shape whose tokens are moved together, so that each is one sequence; padding is of none, at the end."""

    def _packed_inputs(self, batch_size, sequence_length):
        self.shape = batch_size, sequence_length
        padded_ids, segments, mask = self.network_inputs("padded", self.shape)
        count = batch_size * sequence_length
        self.tokens = self.summed(mask, 1, "rows/tokens")
        before = np.tril(np.ones((batch_size + 1, batch_size)), -1)  # of bound k the rows before it
        lengths = self.as_row(self.tokens, "rows/tokens_row")
        self.bounds = self.summed(self._of("PROD", lengths, before, "rows/each_before"), 1, "rows/bounds")
        ends = self._at(self.bounds, np.arange(1, batch_size + 1), "rows/ends")
        places = self.integers(np.arange(count), "rows/places")
        row = self._of("MIN", self.sequence_of(places, ends, "rows"), batch_size - 1, "rows/row_of")
        column = self.elementwise(places, self.gathered(self.bounds, row, "rows/start_of"), "SUB", "rows/column")
        first = self._of("PROD", row, sequence_length, "rows/first")
        source = self._of("MIN", self.elementwise(first, column, "SUM", "rows/from"), count - 1, "rows/source")
        flat = [self.reshaped(one, f"rows/{one.name}", shape=(-1,)) for one in (padded_ids, segments)]
        moved = [self.gathered(one, source, f"{one.name}/together") for one in flat]
        return [*moved, self.bounds, self.integers(np.zeros(sequence_length), "rows/row")]

    def _ordered(self, logits, name):
        """Back to where the rows were; padding has its row's last token's. A row has one at least."""
        batch_size, length = self.shape
        last = self.column(self._of("SUB", self.tokens, 1, "rows/last"), "rows/last_column")
        columns = self._of("MIN", last, np.arange(length)[None], "rows/columns")
        starts = self.column(self._at(self.bounds, np.arange(batch_size), "rows/starts"), "rows/starts_column")
        places = self.elementwise(starts, columns, "SUM", "rows/target")
        back = self.gathered(logits, self.reshaped(places, "rows/targets", shape=(-1,)), f"{name}/back")
        return self.reshaped(back, name, shape=(batch_size, length, 2, 1, 1))

    def _of(self, operation: str, tensor, values, name: str):
        """`tensor`, and integers that broadcast against it."""
        rank = len(tensor.shape)
        values = np.reshape(values, (1,) * (rank - np.ndim(values)) + np.shape(values))
        return self.elementwise(tensor, self.integers(values, f"{name}/with"), operation, name)

    def _at(self, tensor, places: np.ndarray, name: str):
        return self.gathered(tensor, self.integers(places, f"{name}/places"), name)


def move_rows_together(writer) -> None:
    pack_rows(writer)
    plan_builder.RowsPluginLayers = RowsTogether


FORMS = {
    "matrix_product": use_products,
    "products_but_gelu": use_products_but_for_gelu,
    "gelu_short": use_short_sigmoid,
    "float_norms": use_float_norms,
    "norm_layers": use_norm_layers,
    "gelu_erf": use_erf,
    "gelu_in_half": use_half_before_gelu,
    "packed_rows": pack_rows,
    "rows_together": move_rows_together,
}


def main(forms: str, script: str, *arguments: str) -> None:
    for form in forms.split("+"):
        FORMS[form](PluginWriter)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
