"""The fine-tuned network as ONNX with NVIDIA's names: PyTorch's for the weights, `…_quantizer._amax` for the ranges.

It runs as it is (ONNX Runtime) and computes what was trained: Q/DQ pairs on the inputs and kernels of the encoder's
dense layers, their steps taken from the ranges in the graph. Ranges of tensors that nothing rounds are initializers
without a node: `builder.py -x` hands them to TensorRT's plugins.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from helpers import quantization
from helpers.bert_config import BertConfig
from helpers.bert_network import build_bert
from helpers.errors import DemoBertError
from helpers.network_layers import NetworkLayers, Normalised
from helpers.outputs import atomic_write
from helpers.weights.pytorch_names import pytorch_name

#: Gelu came with 20; the IR version of that opset's first release.
_OPSET, _IR_VERSION = 20, 9

_MASKED_SCORE = np.float32(-30000.0)


def write_onnx(path: Path, config: BertConfig, weights: dict[str, np.ndarray], ranges: dict[str, np.ndarray]) -> None:
    """Write the int8 network, whole or not at all.

    Inputs input_ids, attention_mask, token_type_ids, int64 [B, S]; outputs start_logits, end_logits, float32 [B, S].
    `weights` and `ranges` are canonical, float32. Raises DemoBertError if the model is over ONNX's 2 GiB.
    """
    layers = _OnnxLayers(config, weights | ranges)
    build_bert(layers, config, _Names(weights))
    try:
        content = layers.model().SerializeToString()
    except ValueError as error:  # protobuf's limit of one message
        raise DemoBertError(f"{path}: the model is over 2 GiB, more than an ONNX file can have") from error
    with atomic_write(path) as file:
        file.write(content)


class _Stack(NamedTuple):
    """Stands for tensors one below the other."""

    names: list[str]
    shape: tuple[int]


class _Names:
    """Stands for the weights in `build_bert`: the name of each, as the graph has it."""

    def __init__(self, weights: dict[str, np.ndarray]):
        self._weights = weights

    def __getitem__(self, name: str) -> str:
        return pytorch_name(name)

    def stacked(self, names: list[str]) -> _Stack:
        return _Stack([self[name] for name in names], (sum(len(self._weights[name]) for name in names),))


class _OnnxLayers(NetworkLayers):
    """Collects nodes. Tensors are their names in the graph; activations are [B, S, E]."""

    def __init__(self, config: BertConfig, tensors: dict[str, np.ndarray]):
        self._config = config
        self._nodes, self._initializers = [], {}
        self._range_of = {}  # kernel → its range, both by their names in the graph
        for name, tensor in tensors.items():
            self._initializers[pytorch_name(name)] = np.asarray(tensor, np.float32)
            if f"{name}_amax" in tensors:
                self._range_of[pytorch_name(name)] = pytorch_name(f"{name}_amax")

    def model(self):
        """The onnx.ModelProto, after `squad_output`."""
        from onnx import TensorProto, helper, numpy_helper

        shape = ["batch", "sequence"]
        inputs = ("input_ids", "attention_mask", "token_type_ids")
        graph = helper.make_graph(
            self._nodes,
            "bert",
            [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in inputs],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("start_logits", "end_logits")],
            [numpy_helper.from_array(array, name) for name, array in self._initializers.items()],
        )
        opset = helper.make_opsetid("", _OPSET)
        settings = {"opset_imports": [opset], "ir_version": _IR_VERSION, "producer_name": "squad/finetune.py"}
        return helper.make_model(graph, **settings)

    def embeddings(self, word, token_type, position, gamma, beta, name):
        length = self._node("Slice", self._node("Shape", "input_ids"), self._int64([1]), self._int64([2]))
        positions = self._node("Slice", position, self._int64([0]), length, self._int64([0]))
        words, token_types = self._node("Gather", word, "input_ids"), self._node("Gather", token_type, "token_type_ids")
        total = self._node("Add", self._node("Add", words, token_types), positions)
        masked = self._node("Sub", self._float(1.0), self._node("Cast", "attention_mask", to=1))
        scores = self._node("Mul", masked, self._float(_MASKED_SCORE))
        self._mask_scores = self._node("Unsqueeze", scores, self._int64([1, 2]))
        return Normalised(self._normalise(total, gamma, beta), total)

    def projection(self, hidden, kernel, bias, name):
        return self._product(hidden, kernel, bias)

    def query_key_value(self, hidden, kernel, bias, name):
        parts = zip(("query", "key", "value"), kernel.names, bias.names, strict=True)
        return [self.dense(hidden, part, offset, f"{name}_{which}") for which, part, offset in parts]

    def attention(self, query_key_value, heads, name):
        sizes = [0, 0, heads, self._config.head_size]
        query, key, value = (self._node("Reshape", part, self._int64(sizes)) for part in query_key_value)
        query = self._node("Transpose", query, perm=[0, 2, 1, 3])
        query = self._node("Mul", query, self._float(self._config.attention_scale))
        key = self._node("Transpose", key, perm=[0, 2, 3, 1])
        scores = self._node("Add", self._node("MatMul", query, key), self._mask_scores)
        probabilities = self._node("Softmax", scores, axis=-1)
        context = self._node("MatMul", probabilities, self._node("Transpose", value, perm=[0, 2, 1, 3]))
        context = self._node("Transpose", context, perm=[0, 2, 1, 3])
        return self._node("Reshape", context, self._int64([0, 0, heads * self._config.head_size]))

    def dense(self, hidden, kernel, bias, name):
        rounded = self._rounded_input(hidden, pytorch_name(quantization.dense_input_names(name)[0]))
        return self._product(rounded, self._rounded_kernel(kernel), bias)

    def gelu(self, hidden, formula, name):
        return self._node("Gelu", hidden, approximate={"erf": "none", "tanh": "tanh"}[formula])

    def add_and_normalise(self, branch, residual, gamma, beta, name):
        total = self._node("Add", branch, residual)
        return Normalised(self._normalise(total, gamma, beta), total)

    def squad_output(self, hidden, kernel, bias, name):
        logits = self._product(hidden, kernel, bias)
        for index, output in enumerate(("start_logits", "end_logits")):
            self._node("Gather", logits, self._constant(np.int64(index)), output=output, axis=2)

    def _node(self, operator: str, *inputs: str, output: str | None = None, **attributes) -> str:
        from onnx import helper

        output = output or f"{operator}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [output], name=f"node_{len(self._nodes)}", **attributes))
        return output

    def _constant(self, array) -> str:
        array = np.asarray(array)
        name = f"constant_{len(self._initializers)}"
        self._initializers[name] = array
        return name

    def _float(self, value: float) -> str:
        return self._constant(np.float32(value))

    def _int64(self, values: list[int]) -> str:
        return self._constant(np.array(values, np.int64))

    def _rounded_input(self, hidden: str, amax: str) -> str:
        # Without the Clip an int8 of -128 would stand for a value beyond the range.
        clipped = self._node("Clip", hidden, self._node("Neg", amax), amax)
        step = self._node("Div", amax, self._float(quantization.LARGEST["int8"]))
        scale = step, self._constant(np.int8(0))
        return self._node("DequantizeLinear", self._node("QuantizeLinear", clipped, *scale), *scale)

    def _rounded_kernel(self, kernel: str) -> str:
        steps = self._node("Div", self._range_of[kernel], self._float(quantization.LARGEST["int8"]))
        steps = self._node("Reshape", steps, self._int64([-1]))
        scale = steps, self._constant(np.zeros(len(self._initializers[kernel]), np.int8))
        return self._node("DequantizeLinear", self._node("QuantizeLinear", kernel, *scale, axis=0), *scale, axis=0)

    def _product(self, hidden: str, kernel: str, bias: str) -> str:
        return self._node("Add", self._node("MatMul", hidden, self._node("Transpose", kernel, perm=[1, 0])), bias)

    def _normalise(self, total: str, gamma: str, beta: str) -> str:
        return self._node("LayerNormalization", total, gamma, beta, axis=-1, epsilon=self._config.layer_norm_eps)
