"""The plugin network with its dense layers as other layers of TensorRT 8.6, to compare their times:

    python scripts/gpu_checking/dense_forms.py fully_connected|matrix_product builder.py ARGUMENTS…

The project writes them as 1×1 convolutions (docs/tensorrt.md has what the others took).
"""

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":  # the process's own run, whose path begins with this file's folder
    sys.path[0] = str(ROOT)


def fully_connected(self, hidden, kernel, bias):
    """TensorRT's own layer of that name, which went with TensorRT 10. `hidden` is [S, B, E, 1, 1] or [T, E, 1, 1]."""
    return self.network.add_fully_connected(hidden, kernel.shape[0], self.weights(kernel), self.weights(bias))


def matrix_product(self, hidden, kernel, bias):
    """A product and a sum. `hidden` is [S, B, E, 1, 1] or [T, E, 1, 1]; so is the output of the layer returned."""
    network = self.network
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
        for index in range(network.num_layers - 5, network.num_layers):
            network.get_layer(index).precision = self.float_type
    return shaped(total.get_output(0), (*tokens, kernel.shape[0], 1, 1))


FORMS = {"fully_connected": fully_connected, "matrix_product": matrix_product}


def main(form: str, script: str, *arguments: str) -> None:
    from helpers.backends.tensorrt.plugin_layers import PluginWriter

    PluginWriter._convolution = FORMS[form]
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
