"""BERT's layers in OpenVINO's opset: activations are [B, S, E], every size but E is known only at run time."""

import numpy as np
import openvino as ov
from openvino import opset13 as op

from helpers.backends.base import NetworkLayers
from helpers.bert_config import BertConfig

#: Added to the score of a padded key: e^-30000 is 0 in every float type, and -30000 is exact enough in all of them.
MASKED_SCORE = -30000.0


class OpenVINOLayers(NetworkLayers):
    """Collects BERT as an `openvino.Model` with int32 inputs [1..max_batch, 1..max_length] and logits [B, S, 2]."""

    def __init__(self, config: BertConfig, max_batch_size: int, max_sequence_length: int):
        self._config = config
        shape = ov.PartialShape([ov.Dimension(1, max_batch_size), ov.Dimension(1, max_sequence_length)])
        self._input_ids = _parameter("input_ids", shape)
        self._segment_ids = _parameter("segment_ids", shape)
        self._input_mask = _parameter("input_mask", shape)
        self._mask_scores = self._scores_of_masked_keys()
        self._logits = None

    def model(self) -> ov.Model:
        """The finished network, after `squad_output`."""
        return ov.Model([self._logits], [self._input_ids, self._segment_ids, self._input_mask], "bert")

    def embeddings(self, word, token_type, position, gamma, beta, name):
        axis = _int64(0)
        length = op.gather(op.shape_of(self._input_ids), _int64([1]), axis)
        words = op.gather(_constant(word, f"{name}_word"), self._input_ids, axis)
        token_types = op.gather(_constant(token_type, f"{name}_token_type"), self._segment_ids, axis)
        positions = op.slice(_constant(position, f"{name}_position"), _int64([0]), length, _int64([1]), _int64([0]))
        return self._normalise(op.add(op.add(words, token_types), positions), gamma, beta, f"{name}_layernorm")

    def query_key_value(self, hidden, kernel, bias, name):
        # Three products beat one and a split: nothing has to be copied apart. Scaling the query's weights scales the
        # scores by 1/√H, at no cost when the network runs.
        scales = (self._config.attention_scale, 1, 1)
        parts = zip(("query", "key", "value"), np.split(kernel, 3), np.split(bias, 3), scales)
        return [self.dense(hidden, part * np.float32(scale), offset * np.float32(scale), f"{name}_{which}") for which, part, offset, scale in parts]

    def attention(self, query_key_value, name):
        query, key, value = (self._heads(part) for part in query_key_value)
        scores = op.add(op.matmul(query, key, False, True), self._mask_scores)
        context = op.matmul(op.softmax(scores, -1), value, False, False, name=f"{name}_context")
        tokens_first = op.transpose(context, _int64([0, 2, 1, 3]))
        return op.reshape(tokens_first, _int64([0, 0, self._config.hidden_size]), special_zero=True)

    def dense(self, hidden, kernel, bias, name):
        product = op.matmul(hidden, _constant(kernel, f"{name}_kernel"), False, True, name=name)
        return op.add(product, _constant(bias.reshape(1, 1, -1), f"{name}_bias"))

    def gelu(self, hidden, formula, name):
        return op.gelu(hidden, formula, name=name)

    def add_and_normalise(self, branch, residual, gamma, beta, name):
        return self._normalise(op.add(branch, residual), gamma, beta, name)

    def squad_output(self, hidden, kernel, bias, name):
        self._logits = op.result(self.dense(hidden, kernel, bias, name))
        self._logits.output(0).set_names({"logits_out"})

    def _heads(self, part):
        """[B, S, E] → [B, N, S, H]."""
        config = self._config
        split = op.reshape(part, _int64([0, 0, config.num_attention_heads, config.head_size]), special_zero=True)
        return op.transpose(split, _int64([0, 2, 1, 3]))

    def _normalise(self, hidden, gamma, beta, name):
        epsilon = self._config.layer_norm_eps
        normal = op.mvn(hidden, _int64([-1]), True, epsilon, "inside_sqrt", name=name)
        scaled = op.multiply(normal, _constant(gamma.reshape(1, 1, -1), f"{name}_gamma"))
        return op.add(scaled, _constant(beta.reshape(1, 1, -1), f"{name}_beta"))

    def _scores_of_masked_keys(self):
        """0 for a real token, MASKED_SCORE for padding, [B, 1, 1, S] to be added to every query's scores."""
        is_padding = op.subtract(op.constant(np.float32(1)), op.convert(self._input_mask, "f32"))
        return op.unsqueeze(op.multiply(is_padding, op.constant(np.float32(MASKED_SCORE))), _int64([1, 2]))


def _parameter(name: str, shape: ov.PartialShape):
    parameter = op.parameter(shape, np.int32, name=name)
    parameter.output(0).set_names({name})
    return parameter


def _constant(values: np.ndarray, name: str):
    return op.constant(np.ascontiguousarray(values, np.float32), name=name)


def _int64(values):
    return op.constant(np.array(values, np.int64))
