"""The float network with its inner tensors as outputs: what helpers/calibrator.py takes ranges of."""

from collections.abc import Iterator

import numpy as np
import openvino as ov
from openvino import opset13 as op

from helpers import quantization
from helpers.backends.openvino.engine import DEVICE
from helpers.backends.openvino.layers import PaddedLayers
from helpers.batching import PaddedBatch
from helpers.bert_network import build_bert
from helpers.weights import BertWeights


class ObservingLayers(PaddedLayers):
    """PaddedLayers in float32 whose quantizable tensors are outputs: `observed`, the range's name → tensor.

    The ranges of query, key and value's input are one tensor's: `l<i>_attention_self_query_input_amax` stands for three.
    """

    def _make_inputs(self, max_batch_size, max_sequence_length):
        super()._make_inputs(max_batch_size, max_sequence_length)
        self.observed = {}

    def model(self) -> ov.Model:
        return ov.Model([op.result(tensor) for tensor in self.observed.values()], self._inputs, "observed_bert")

    def query_key_value(self, hidden, kernel, bias, name):
        self.observed[quantization.dense_input_names(name)[0]] = hidden
        query, key, value = super().query_key_value(hidden, kernel, bias, name)
        # The query's weights hold 1/√H, which other networks apply after the tensor that is quantized.
        scale = op.constant(np.float32(self._config.attention_scale))
        for which, tensor in zip(quantization.MATMUL_INPUTS, (op.divide(query, scale), key, value)):
            self.observed[quantization.matmul_input_name(name, which)] = tensor
        return query, key, value

    def _probabilities(self, scores, name):
        probabilities = super()._probabilities(scores, name)
        self.observed[quantization.matmul_input_name(name, quantization.PROBABILITIES)] = probabilities
        return probabilities

    def dense(self, hidden, kernel, bias, name):
        self.observed[quantization.dense_input_names(name)[0]] = hidden
        return super().dense(hidden, kernel, bias, name)

    def add_and_normalise(self, branch, residual, gamma, beta, name):
        self.observed[quantization.branch_name(name)] = branch
        self.observed[quantization.residual_name(name)] = residual
        return super().add_and_normalise(branch, residual, gamma, beta, name)

    def squad_output(self, hidden, kernel, bias, name):
        self.observed[quantization.FINAL_NAME] = hidden


def observe(weights: BertWeights, pre_normalised: bool, batches: list[PaddedBatch]) -> Iterator[dict[str, np.ndarray]]:
    """Run the float32 network on batches of one row without padding; yield each one's tensors, float32, by range name.

    The arrays are valid until the next are asked for.
    """
    layers = ObservingLayers(weights.config, 1, max(batch.sequence_length for batch in batches))
    build_bert(layers, weights.config, weights, pre_normalised)
    compiled = ov.Core().compile_model(layers.model(), DEVICE, {"INFERENCE_PRECISION_HINT": "f32"})
    request = compiled.create_infer_request()
    for batch in batches:
        request.infer(batch.inputs(), share_inputs=True)
        yield {name: request.get_output_tensor(i).data for i, name in enumerate(layers.observed)}
