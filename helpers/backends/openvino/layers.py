"""BERT's layers in OpenVINO's opset: activations [B, S, E] or [1, T, E], every size but E known only at run time.

Packed tokens are one long row: over [T, E], in int8 networks, OpenVINO rewrites a layer norm's multiply and add as a
subtraction, which would divide by gamma; over [1, T, E] it keeps them, as in padded networks.
"""

import hashlib
from abc import abstractmethod
from dataclasses import dataclass, replace

import numpy as np
import openvino as ov
from openvino import opset13 as op

from helpers.batching import INPUT_NAMES
from helpers.bert_config import BertConfig
from helpers.network_layers import NetworkLayers, Normalised
from helpers.quantization import (
    GELU_MINIMUM,
    MATMUL_INPUTS,
    Quantization,
    QuantizedDense,
    is_gelu_output,
    matmul_input_name,
    to_int8,
)

#: Added to the score of a padded key: e^-30000 is 0 in every float type, and -30000 is exact enough in all of them.
MASKED_SCORE = -30000.0


#: More than any activation.
_BEYOND_ALL = 1e30


@dataclass(frozen=True)
class _Kernel:
    """A dense layer's kernel [out, in] as a product takes it: in int8 of `steps` [out], or, where they are None, in float.

    The product's input comes in units of `unit`, raised by `raised_by`.
    """

    values: np.ndarray
    steps: np.ndarray | None = None
    unit: float = 1.0
    raised_by: float = 0.0

    def split(self, count: int) -> list["_Kernel"]:
        """As so many kernels of as many rows each."""
        steps = [None] * count if self.steps is None else np.split(self.steps, count)
        return [replace(self, values=part, steps=step) for part, step in zip(np.split(self.values, count), steps)]


class OpenVINOLayers(NetworkLayers):
    """Collects BERT as an `openvino.Model`. The layouts differ in inputs, positions and attention, and in no more.

    With `quantization` (int8) the encoder's dense layers multiply integers: a FakeQuantize on the input, int8 constants
    per output channel for the kernel, which OpenVINO fuses into VNNI's products. With `quantize_attention` query and
    key meet in int8, too, where their ranges are known, which pays from some 300 tokens on.
    """

    def __init__(
        self,
        config: BertConfig,
        max_batch_size: int,
        max_sequence_length: int,
        quantization: Quantization | None = None,
        quantize_attention: bool = False,
    ):
        self._config = config
        self._quantization = quantization
        self._quantize_attention = quantize_attention
        self._inputs = []
        self._shared_kernels = {}
        self._logits = None
        self._make_inputs(max_batch_size, max_sequence_length)

    def model(self, name: str = "bert") -> ov.Model:
        """The finished network, after `squad_output`."""
        return ov.Model([self._logits], self._inputs, name)

    def embeddings(self, word, token_type, position, gamma, beta, name):
        axis = _int64(0)
        words = op.gather(_constant(word, f"{name}_word"), self._input_ids, axis)
        token_types = op.gather(_constant(token_type, f"{name}_token_type"), self._segment_ids, axis)
        positions = self._positions(_constant(position, f"{name}_position"))
        total = op.add(op.add(words, token_types), positions)
        return Normalised(self._normalise(total, gamma, beta, f"{name}_layernorm"), total)

    def projection(self, hidden, kernel, bias, name):
        projected = self._product(hidden, _Kernel(kernel), bias, name)
        if self._quantization is None:
            return projected
        # Between a dense layer that something else reads too, a multiplication by channel and a FakeQuantize, OpenVINO
        # 2026.4 takes the first channel's factor for all. Not so with a step between, if one that does nothing.
        return op.clamp(projected, -_BEYOND_ALL, _BEYOND_ALL)

    def query_key_value(self, hidden, kernel, bias, name):
        # Three products beat one and a split: nothing has to be copied apart. Scaling the query's weights scales the
        # scores by 1/√H, at no cost when the network runs.
        factors = (self._config.attention_scale, 1, 1)
        hidden, kernel = self._quantized(hidden, kernel, name)
        parts = zip(("query", "key", "value"), kernel.split(3), np.split(bias, 3), factors)
        query, key, value = (
            self._product(hidden, part, offset, f"{name}_{which}", factor) for which, part, offset, factor in parts
        )
        if self._quantize_attention:
            query = self._attention_input(query, name, 0, self._config.attention_scale)
            key = self._attention_input(key, name, 1)
        return query, key, value

    def dense(self, hidden, kernel, bias, name):
        return self._product(*self._quantized(hidden, kernel, name), bias, name)

    def gelu(self, hidden, formula, name):
        return op.gelu(hidden, formula, name=name)

    def add_and_normalise(self, branch, residual, gamma, beta, name):
        total = op.add(branch, residual)
        return Normalised(self._normalise(total, gamma, beta, name), total)

    def squad_output(self, hidden, kernel, bias, name):
        self._logits = op.result(self._output(self._product(hidden, _Kernel(kernel), bias, name)))
        self._logits.output(0).set_names({"logits_out"})

    @abstractmethod
    def _make_inputs(self, max_batch_size: int, max_sequence_length: int) -> None:
        """Makes the network's inputs, by `_parameter`, and what positions and attention need of them."""

    @abstractmethod
    def _positions(self, table):
        """The rows of the position table [P, E] that belong to the tokens, in a shape to be added to theirs."""

    def _output(self, logits):
        """The logits in the shape of the engine's output."""
        return logits

    def _parameter(self, name: str, *dimensions: ov.Dimension):
        parameter = op.parameter(ov.PartialShape(list(dimensions)), np.int32, name=name)
        parameter.output(0).set_names({name})
        self._inputs.append(parameter)
        return parameter

    def _product(self, hidden, kernel: "_Kernel", bias, name, factor: float = 1.0):
        """(kernel.unit · (hidden - kernel.raised_by) · kernelᵀ + bias) · factor."""
        factor = np.float32(factor)
        if kernel.steps is None:
            weight = self._kernel(kernel.values * factor, f"{name}_kernel")
        else:
            integers, scale = to_int8(kernel.values, kernel.steps[:, None]), kernel.steps * np.float32(kernel.unit)
            if kernel.raised_by:
                bias = bias - kernel.raised_by * integers.sum(1, dtype=np.float64) * scale
            integers = self._kernel(integers, f"{name}_kernel")
            weight = op.multiply(op.convert(integers, "f32"), _constant(scale[:, None] * factor, f"{name}_step"))
        product = op.matmul(hidden, weight, False, True, name=name)
        return op.add(product, self._last_axis(bias * factor, f"{name}_bias"))

    def _kernel(self, values: np.ndarray, name: str):
        """A constant; the one that is there where layers share their weights: the engine then holds them once."""
        values = np.ascontiguousarray(values)
        if self._config is None or self._config.layer_groups is None:  # None: a network of one layer, to try it out
            return op.constant(values, name=name)
        key = (values.shape, hashlib.sha256(values).digest())
        if key not in self._shared_kernels:
            self._shared_kernels[key] = op.constant(values, name=name)
        return self._shared_kernels[key]

    def _quantized(self, hidden, kernel, name) -> tuple:
        """A dense layer's input, rounded to int8 in a quantized network, and its kernel as a _Kernel."""
        if self._quantization is None:
            return hidden, _Kernel(kernel)
        quantized = self._quantization.dense(name, kernel)
        steps = self._quantization.steps(quantized.kernel_amax)
        if is_gelu_output(name):
            hidden, raised_by = self._rounded_gelu(hidden, quantized.input_amax, name)
            return hidden, _Kernel(quantized.kernel, steps, raised_by=raised_by)
        return self._rounded_input(hidden, quantized, name), _Kernel(quantized.kernel, steps, quantized.input_amax)

    def _rounded_input(self, hidden, quantized: QuantizedDense, name):
        """A dense layer's input (no GELU's), divided by its range and rounded.

        Each channel is divided by its own range where they are known. OpenVINO rounds in the kernel of that
        multiplication, in any float type; a FakeQuantize alone it computes by an operation of its own, in float32. A
        multiplication by one number would be moved into the FakeQuantize, so the first is another, by its last bit.
        """
        if quantized.limits is None:
            inverse = np.full(quantized.kernel.shape[1], 1 / quantized.input_amax, np.float32)
        else:
            inverse = 1 / quantized.limits
        inverse[0] = np.nextafter(inverse[0], np.float32(0))
        shares = op.multiply(hidden, self._last_axis(inverse, f"{name}_input_inverse"))
        return _rounded(shares, *self._even_limits(1.0), f"{name}_input")

    def _rounded_gelu(self, hidden, amax: float, name) -> tuple:
        """A GELU's output, rounded, and what it is raised by.

        That is never below -0.17, so it takes its 256 steps between there and its range: twice as fine as even ones. It
        is raised so that they begin at 0, which the bias takes back: without a zero point OpenVINO does more of the
        layer in one kernel (2 % of BERT-base's time, with AMX).
        """
        step = (amax + GELU_MINIMUM) / 255
        lowest = -np.rint(GELU_MINIMUM / step) * step  # a whole number of steps, so that 0 stays exact
        return _rounded(hidden, lowest, lowest + 255 * step, f"{name}_input", raised_by=-lowest), -lowest

    def _attention_input(self, part, name, which: int, factor: float = 1.0):
        """Query or key, rounded to int8 for their product where its range is known; `factor`: what scales the values."""
        amax = self._quantization.known(matmul_input_name(name, MATMUL_INPUTS[which]))
        if amax is None:
            return part
        return _rounded(part, *self._even_limits(amax * factor), f"{name}_{MATMUL_INPUTS[which]}")

    def _even_limits(self, amax):
        """Lowest and highest value of 256 steps of amax / 127, one of them on 0."""
        step = amax / self._quantization.largest
        return -128 * step, 127 * step

    def _attention(self, query_key_value, heads: int, mask_scores, name):
        """Attention within each row of query, key and value [B, S, N·H], `mask_scores` added to the scores; as large."""
        query, key, value = (self._heads(part, heads) for part in query_key_value)
        scores = op.add(op.matmul(query, key, False, True), mask_scores)
        context = op.matmul(self._probabilities(scores, name), value, False, False, name=f"{name}_context")
        tokens_first = op.transpose(context, _int64([0, 2, 1, 3]))
        return op.reshape(tokens_first, _int64([0, 0, heads * self._config.head_size]), special_zero=True)

    def _probabilities(self, scores, name):
        return op.softmax(scores, -1, name=f"{name}_probabilities")

    def _heads(self, part, heads: int):
        """[B, S, N·H] → [B, N, S, H]."""
        split = op.reshape(part, _int64([0, 0, heads, self._config.head_size]), special_zero=True)
        return op.transpose(split, _int64([0, 2, 1, 3]))

    def _normalise(self, hidden, gamma, beta, name):
        epsilon = self._config.layer_norm_eps
        normal = op.mvn(hidden, _int64([-1]), True, epsilon, "inside_sqrt", name=name)
        scaled = op.multiply(normal, self._last_axis(gamma, f"{name}_gamma"))
        return op.add(scaled, self._last_axis(beta, f"{name}_beta"))

    def _last_axis(self, values, name):
        """A constant along the last axis, of the activations' rank: so OpenVINO sees that it can be fused."""
        return _constant(values.reshape(1, 1, -1), name)


class PaddedLayers(OpenVINOLayers):
    """int32 inputs [1..max_batch, 1..max_length], activations [B, S, E], logits [B, S, 2]."""

    def _make_inputs(self, max_batch_size, max_sequence_length):
        shape = ov.Dimension(1, max_batch_size), ov.Dimension(1, max_sequence_length)
        self._input_ids, self._segment_ids, input_mask = (
            self._parameter(name, *shape) for name in INPUT_NAMES["padded"]
        )
        self._mask_scores = _scores_of_masked_keys(input_mask)

    def attention(self, query_key_value, heads, name):
        return self._attention(query_key_value, heads, self._mask_scores, name)

    def _positions(self, table):
        length = op.gather(op.shape_of(self._input_ids), _int64([1]), _int64(0))
        return op.slice(table, _int64([0]), length, _int64([1]), _int64([0]))


class PackedLayers(OpenVINOLayers):
    """int32 inputs [T], [T], [B + 1], [Smax], activations [1, T, E], logits [T, 2].

    Only attention looks at sequences: query, key and value are gathered into [B, Smax] for it, and its output is
    gathered back, by indices that the network computes from `cu_seqlens` once, for all layers.
    """

    def _make_inputs(self, max_batch_size, max_sequence_length):
        tokens = ov.Dimension(1, max_batch_size * max_sequence_length)
        input_ids = self._parameter("input_ids", tokens)
        segment_ids = self._parameter("segment_ids", tokens)
        self._input_ids, self._segment_ids = (op.unsqueeze(ids, _int64(0)) for ids in (input_ids, segment_ids))
        cu_seqlens = self._parameter("cu_seqlens", ov.Dimension(2, max_batch_size + 1))
        max_seqlen = self._parameter("max_seqlen", ov.Dimension(1, max_sequence_length))

        token_count, longest = op.shape_of(input_ids, "i32"), op.shape_of(max_seqlen, "i32")
        starts = _slice(cu_seqlens, 0, -1)
        ends = _slice(cu_seqlens, 1, np.iinfo(np.int32).max)
        token, column = _range(token_count), op.unsqueeze(_range(longest), _int64(0))
        ended = op.less_equal(op.unsqueeze(ends, _int64(0)), op.unsqueeze(token, _int64(1)))  # [T, B]
        sequence = op.reduce_sum(op.convert(ended, "i32"), _int64(1))
        self._position = op.subtract(token, op.gather(starts, sequence, _int64(0)))
        self._row_of_token = op.add(op.multiply(sequence, longest), self._position)
        # Columns beyond a sequence's end show some other token, which the mask hides.
        last = op.subtract(token_count, _int32([1]))
        self._token_of_row = op.minimum(op.add(op.unsqueeze(starts, _int64(1)), column), last)
        lengths = op.unsqueeze(op.subtract(ends, starts), _int64(1))
        self._mask_scores = _scores_of_masked_keys(op.less(column, lengths))

    def attention(self, query_key_value, heads, name):
        rows = [op.gather(op.squeeze(part, _int64(0)), self._token_of_row, _int64(0)) for part in query_key_value]
        context = self._attention(rows, heads, self._mask_scores, name)
        flat = op.reshape(context, _int64([-1, heads * self._config.head_size]), special_zero=False)
        return op.unsqueeze(op.gather(flat, self._row_of_token, _int64(0)), _int64(0))

    def _positions(self, table):
        return op.unsqueeze(op.gather(table, self._position, _int64(0)), _int64(0))

    def _output(self, logits):
        return op.squeeze(logits, _int64(0))


def _scores_of_masked_keys(mask):
    """0 for a real token, MASKED_SCORE for padding: [B, S] → [B, 1, 1, S], to be added to every query's scores."""
    is_padding = op.subtract(op.constant(np.float32(1)), op.convert(mask, "f32"))
    return op.unsqueeze(op.multiply(is_padding, op.constant(np.float32(MASKED_SCORE))), _int64([1, 2]))


def _rounded(tensor, lowest: float, highest: float, name: str, raised_by: float = 0.0):
    """`tensor` rounded to the 256 even steps from `lowest` to `highest`, and clipped to them; then `raised_by` is added."""
    limits = lowest, highest, lowest + raised_by, highest + raised_by
    return op.fake_quantize(tensor, *(_constant([[limit]], f"{name}_limit") for limit in limits), 256, name=name)


def _range(count):
    """0, 1, … up to `count` [1], int32."""
    zero = _int32(0)
    return op.range(zero, op.squeeze(count, _int64(0)), _int32(1), "i32")


def _slice(vector, first: int, stop: int):
    return op.slice(vector, _int32([first]), _int32([stop]), _int32([1]), _int32([0]))


def _constant(values, name: str):
    return op.constant(np.ascontiguousarray(values, np.float32), name=name)


def _int32(values):
    return op.constant(np.array(values, np.int32))


def _int64(values):
    return op.constant(np.array(values, np.int64))
