"""BERT in TensorRT's own layers, strongly typed: TensorRT 10.x, 11.x and TensorRT-RTX (8.6: weakly typed).

Activations are [B, S, E] in the network's type, shapes may be dynamic in B and S; packed ones (native_packed.py) are
[T, E]. All but the inputs, the positions and attention is the same for both.
"""

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from helpers.backends.tensorrt.network_writer import NetworkWriter
from helpers.bert_config import BertConfig
from helpers.errors import DemoBertError, UsageError
from helpers.network_layers import NetworkLayers, Normalised, Tensor
from helpers.quantization import MATMUL_INPUTS, PROBABILITIES, Quantization, QuantizedDense, matmul_input_name

#: Added to the scores of padding: e^-10000 is 0 in every type, and -10000 fits float16.
_MASKED_SCORE = -10000.0

_NUMPY_TYPES = {"fp32": np.float32, "fp16": np.float16}


def bfloat16_bits(array: np.ndarray) -> np.ndarray:
    """float32 → the bits of bfloat16 as uint16, rounded to nearest, ties to even (IEEE 754); NaN stays NaN."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(array), 0x7FC0, rounded).astype(np.uint16)


def knows_fp8(trt) -> bool:
    """Whether quantize layers have a type to choose: from TensorRT 10 on, int8 or fp8; before, int8 is the only one."""
    return hasattr(trt.IQuantizeLayer, "to_type")


@dataclass(frozen=True)
class QueryKeyValue:
    """Query, key and value, each [B, N, S, H]; for the fused attention of packed networks [T, N, H]."""

    query: Tensor
    key: Tensor
    value: Tensor


class NativeWriter(NetworkWriter, NetworkLayers):
    """What the padded and the packed native network have in common.

    `precision` is "fp32", "fp16" or "bf16": the type of weights, constants and activations, which have rank `rank`; sums
    before a layer norm, and the norm itself, are float32 in any network.
    With `quantization` the encoder's dense layers multiply int8 or fp8: both sides of each product pass a quantize and
    a dequantize layer, activations by one scale, kernels by one for each output channel, and the builder takes the
    product to where it can be computed in that type. `quantize_attention`: so do both products of attention.

    A subclass adds the inputs for its `sizes`, `input_mask` [B, S] (int32 or bool) among them, and says where a token
    stands.
    """

    rank: int

    def __init__(
        self,
        trt,
        network,
        logger,
        config: BertConfig,
        precision: str,
        sizes: tuple[int, int],
        quantization: Quantization | None = None,
        quantize_attention: bool = False,
    ):
        NetworkWriter.__init__(self, trt, network, logger)
        if precision == "bf16" and not hasattr(trt, "bfloat16"):
            raise UsageError(f"TensorRT {trt.__version__} has no bfloat16; use --fp16")
        self.config = config
        self.precision = precision
        self.type = {"fp32": trt.float32, "fp16": trt.float16, "bf16": getattr(trt, "bfloat16", None)}[precision]
        self.quantization = quantization
        self.quantize_attention = quantize_attention
        self._attention_mask = None
        self._make_inputs(*sizes)

    @abstractmethod
    def _make_inputs(self, *sizes: int) -> None:
        """Makes the network's inputs, and what positions and attention need of them."""

    @abstractmethod
    def _positions(self, table: np.ndarray, name: str) -> Tensor:
        """The row of `table` [P, E] for each token's position, in a shape that broadcasts over the activations."""

    # Constants

    def _weights_in(self, precision: str, array: np.ndarray):
        """float32 array → trt.Weights."""
        if precision == "bf16":
            bits = bfloat16_bits(array)
            self.keep.append(bits)
            return self.trt.Weights(self.trt.bfloat16, bits.ctypes.data, bits.size)
        if precision == "fp16" and np.abs(array).max() > np.finfo(np.float16).max:
            raise DemoBertError("a weight is over 65504, which float16 can't hold; build in fp32 or bf16")
        return self.weights(array.astype(_NUMPY_TYPES[precision]))

    def _constant(self, array, shape: tuple, name: str, precision: str | None = None) -> Tensor:
        """A constant, in the network's type unless `precision` is another."""
        weights = self._weights_in(precision or self.precision, np.asarray(array, np.float32))
        return self.output(self.network.add_constant(shape, weights), name)

    def _row(self, vector: np.ndarray, name: str, precision: str | None = None) -> Tensor:
        """`vector` [n] as a constant [(1,) 1, n] that broadcasts over the activations."""
        return self._constant(vector, (*(1,) * (self.rank - 1), vector.size), name, precision)

    def _scalar(self, value: float, rank: int, name: str) -> Tensor:
        return self._constant(value, (1,) * rank, name)

    # Words of NetworkLayers

    def embeddings(self, word, token_type, position, gamma, beta, name):
        words = self._gather(word, self.input_ids, f"{name}/word")
        segments = self._gather(token_type, self.segment_ids, f"{name}/token_type")
        total = self._sum(words, segments, f"{name}/word_segment")
        total = self._sum(total, self._positions(position, f"{name}/position"), f"{name}/sum")
        return Normalised(self._layer_norm(total, gamma, beta, f"{name}/layernorm"), total)

    def projection(self, hidden, kernel, bias, name):
        return self._dense(hidden, kernel, bias, name, ranges=None)

    def query_key_value(self, hidden, kernel, bias, name):
        """Side by side, [B, S, 3·N·H]."""
        return self._dense(hidden, kernel, bias, f"{name}/query_key_value", ranges=name)

    def attention(self, query_key_value, heads, name):
        query, key, value = self._attention_inputs(self._split_heads(query_key_value, heads, name), 4, name)
        attend = self._fused_attention if hasattr(self.trt, "IAttention") else self._plain_attention
        context = attend(query, key, value, name)
        shape = (0, 0, heads * self.config.head_size)
        return self.reshaped(context, f"{name}/context", before=(0, 2, 1, 3), shape=shape)

    def dense(self, hidden, kernel, bias, name):
        return self._dense(hidden, kernel, bias, name, ranges=name)

    def gelu(self, hidden, formula, name):
        kind = f"GELU_{formula.upper()}"
        if hasattr(self.trt.ActivationType, kind):
            return self.activation(hidden, kind, f"{name}/gelu")
        return self.composed_gelu(hidden, formula, lambda value, part: self._scalar(value, self.rank, part), name)

    def add_and_normalise(self, branch, residual, gamma, beta, name):
        total = self._sum(branch, residual, f"{name}/add")
        return Normalised(self._layer_norm(total, gamma, beta, name), total)

    def squad_output(self, hidden, kernel, bias, name):
        # Of values in the network's type, as any other: TensorRT-RTX has no products of float32 values for Turing.
        logits = self._float32(self._dense(hidden, kernel, bias, name, ranges=None), f"{name}/float32")
        logits.name = "logits_out"
        self.network.mark_output(logits)

    # Parts

    def _dense(self, hidden: Tensor, kernel: np.ndarray, bias: np.ndarray, name: str, ranges: str | None) -> Tensor:
        """hidden · kernelᵀ + bias; in a quantized network by the ranges of `ranges`, None: in the network's type."""
        quantized = None
        if self.quantization is not None and ranges is not None:
            quantized = self.quantization.dense(ranges, kernel)
            hidden, kernel = self._quantized_input(hidden, quantized, name), quantized.kernel
        weight = self._constant(kernel, (*(1,) * (self.rank - 2), *kernel.shape), f"{name}/kernel")
        if quantized is not None:
            weight = self._quantized(weight, quantized.kernel_amax, f"{name}/kernel", axis=self.rank - 2)
        in_float16 = self.precision == "fp16" and quantized is None
        product = (self._summed_in_float32 if in_float16 else self._product)(hidden, weight, f"{name}/matmul")
        return self.elementwise(product, self._row(bias, f"{name}/bias"), "SUM", name)

    def _product(self, hidden: Tensor, weight: Tensor, name: str) -> Tensor:
        """hidden · weightᵀ."""
        none, transpose = self.trt.MatrixOperation.NONE, self.trt.MatrixOperation.TRANSPOSE
        return self.output(self.network.add_matrix_multiply(hidden, none, weight, transpose), name)

    def _summed_in_float32(self, hidden: Tensor, weight: Tensor, name: str) -> Tensor:
        """hidden · weightᵀ of float16 values, float16, summed in float32.

        Left to itself the builder may take kernels that sum in float16, as TensorRT 8.6 did on an H100: the bundled
        model's logits were off by 0.05. Casts around the product ask for float32 sums. The builder knows that pattern,
        and makes one kernel of it, which reads and writes float16 (NVIDIA's documentation of TensorRT, "Control of
        Computational Precision").
        """
        hidden, weight = self._float32(hidden, f"{name}/hidden"), self._float32(weight, f"{name}/kernel")
        product = self._product(hidden, weight, f"{name}/float32")
        return self.output(self.network.add_cast(product, self.type), name)

    def _float32(self, tensor: Tensor, name: str) -> Tensor:
        """`tensor` in float32; `name` for where it has to be cast."""
        if tensor.dtype == self.trt.float32:
            return tensor
        return self.output(self.network.add_cast(tensor, self.trt.float32), name)

    def _sum(self, left: Tensor, right: Tensor, name: str) -> Tensor:
        """left + right in float32: what a layer norm reads. Its kernel adds and normalises, and need not round between.

        In a float16 network this takes the bundled model's logits from 0.023 off float32 to 0.015 (simulated).
        """
        left, right = self._float32(left, f"{name}/left"), self._float32(right, f"{name}/right")
        return self.elementwise(left, right, "SUM", name)

    def _quantized_input(self, hidden: Tensor, quantized: QuantizedDense, name: str) -> Tensor:
        """A dense layer's input, rounded: each channel by its own limit, or all by one range."""
        if quantized.limits is not None:
            inverse = self._row(1 / quantized.limits, f"{name}/input/inverse")
            hidden = self.elementwise(hidden, inverse, "PROD", f"{name}/input/shares")
        return self._quantized(hidden, quantized.input_amax, f"{name}/input")

    def _quantized(self, tensor: Tensor, amax, name: str, axis: int | None = None) -> Tensor:
        """`tensor` rounded to the quantized type and back; `amax` is one range, or one for each entry of `axis`."""
        scale = self._scale(amax, f"{name}/scale")
        down, up = (getattr(self.trt, self.quantization.kind),), (self.type,)
        if not knows_fp8(self.trt):
            down = up = ()  # before there was more than int8 and float32, the layers took no types
        layers = self.network.add_quantize, self.network.add_dequantize
        for add, types, part in zip(layers, (down, up), ("quantized", "dequantized")):
            layer = add(tensor, scale, *types)
            if layer is not None and axis is not None:
                layer.axis = axis
            tensor = self.output(layer, f"{name}/{part}")
        return tensor

    def _scale(self, amax, name: str) -> Tensor:
        """The steps of ranges, a constant in the network's type, which is the one that the layers take."""
        steps = self.quantization.steps(amax)
        if self.precision == "fp16":
            # A kernel's channel of next to nothing; finer steps than this its weights do not have in float16 either.
            steps = np.maximum(steps, np.float32(np.finfo(np.float16).smallest_subnormal))
        return self._constant(steps, np.shape(steps), name)

    def _gather(self, table: np.ndarray, ids: Tensor, name: str) -> Tensor:
        """Rows of `table` [V, E] by `ids` ([B, S], say): [B, S, E]."""
        rows = self._constant(table, table.shape, f"{name}/table")
        return self.gathered(rows, ids, name)

    def _split_heads(self, stacked: Tensor, heads: int, name: str) -> QueryKeyValue:
        """[B, S, 3·N·H], query, key and value side by side → each as [B, N, S, H]."""
        shape = (0, 0, 3, heads, self.config.head_size)
        split = self.reshaped(stacked, f"{name}/heads", shape=shape, after=(2, 0, 3, 1, 4))
        return self._parts(split, 0, name)

    def _parts(self, heads: Tensor, axis: int, name: str) -> QueryKeyValue:
        """Query, key and value of `heads`, where they are entries 0, 1 and 2 of `axis`."""
        parts = ("query", "key", "value")
        return QueryKeyValue(*(self._part(heads, axis, index, f"{name}/{part}") for index, part in enumerate(parts)))

    def _part(self, heads: Tensor, axis: int, index: int, name: str) -> Tensor:
        return self.output(self.network.add_gather(heads, self.integers(index, f"{name}/index"), axis), name)

    def _scaled(self, query: Tensor, rank: int, name: str) -> Tensor:
        """query / √H: scaling it, not the scores, is what fused kernels expect, and keeps fp16 scores in range."""
        scale = self._scalar(self.config.attention_scale, rank, f"{name}/scale")
        return self.elementwise(query, scale, "PROD", f"{name}/scaled_query")

    def _attention_inputs(self, query_key_value: QueryKeyValue, rank: int, name: str) -> list[Tensor]:
        """The scaled query, key and value, quantized where attention is."""
        parts = self._scaled(query_key_value.query, rank, name), query_key_value.key, query_key_value.value
        if not self.quantize_attention:
            return list(parts)
        factors = (self.config.attention_scale, 1, 1)  # the range is that of the query before it is scaled
        return [
            self._quantized(part, factor * self.quantization.amax(matmul_input_name(name, which)), f"{name}/{which}")
            for part, factor, which in zip(parts, factors, MATMUL_INPUTS)
        ]

    def _probability_range(self, name: str) -> float:
        return self.quantization.amax(matmul_input_name(name, PROBABILITIES))

    def _quantize_probabilities(self, layer, name: str) -> None:
        """Tell an attention layer to quantize its probabilities."""
        layer.normalization_quantize_to_type = getattr(self.trt, self.quantization.kind)
        layer.normalization_quantize_scale = self._scale(self._probability_range(name), f"{name}/{PROBABILITIES}/scale")

    def _fused_attention(self, query: Tensor, key: Tensor, value: Tensor, name: str) -> Tensor:
        """softmax(query · keyᵀ over the tokens of the mask) · value by TensorRT's attention layer: [B, N, S, H]."""
        trt, network = self.trt, self.network
        softmax = trt.AttentionNormalizationOp.SOFTMAX
        if hasattr(network, "add_attention_v2"):
            layer = network.add_attention_v2(query, key, value, softmax, trt.CausalMaskKind.NONE)
        else:
            layer = network.add_attention(query, key, value, softmax, False)
        if layer is not None:
            layer.mask = self._mask(lambda: self._boolean_mask("attention_mask"))
            layer.decomposable = True  # head sizes without a fused kernel fall back to matmul and softmax
            if self.quantize_attention:
                self._quantize_probabilities(layer, name)
        return self.output(layer, f"{name}/attention")

    def _plain_attention(self, query: Tensor, key: Tensor, value: Tensor, name: str) -> Tensor:
        """The same in matmul, softmax, matmul, which the builder fuses where it can."""
        none, transpose = self.trt.MatrixOperation.NONE, self.trt.MatrixOperation.TRANSPOSE
        scores = self.network.add_matrix_multiply(query, none, key, transpose)
        scores = self.output(scores, f"{name}/attention/scores")
        mask = self._mask(lambda: self._additive_mask("attention_mask"))
        masked = self.elementwise(scores, mask, "SUM", f"{name}/attention/masked_scores")
        layer = self.network.add_softmax(masked)
        if layer is not None:
            layer.axes = 1 << 3
        probabilities = self.output(layer, f"{name}/attention/probabilities")
        if self.quantize_attention:
            probabilities = self._quantized(probabilities, self._probability_range(name), f"{name}/{PROBABILITIES}")
        context = self.network.add_matrix_multiply(probabilities, none, value, none)
        return self.output(context, f"{name}/attention")

    def _mask(self, make) -> Tensor:
        """The attention mask: made once, shared by all layers."""
        if self._attention_mask is None:
            self._attention_mask = make()
        return self._attention_mask

    def _boolean_mask(self, name: str) -> Tensor:
        """input_mask [B, S] → bool [B, 1, 1, S], true where there is a token."""
        mask = self.output(self.network.add_cast(self.input_mask, self.trt.bool), f"{name}/bool")
        return self.reshaped(mask, name, shape=(0, 1, 1, -1))

    def _additive_mask(self, name: str) -> Tensor:
        """input_mask [B, S] → 0 on tokens, _MASKED_SCORE on padding, [B, 1, 1, S]."""
        mask = self.output(self.network.add_cast(self.input_mask, self.type), f"{name}/cast")
        mask = self.reshaped(mask, f"{name}/heads", shape=(0, 1, 1, -1))
        missing = self.elementwise(self._scalar(1.0, 4, f"{name}/one"), mask, "SUB", f"{name}/missing")
        return self.elementwise(missing, self._scalar(_MASKED_SCORE, 4, f"{name}/score"), "PROD", name)

    def _layer_norm(self, tensor: Tensor, gamma: np.ndarray, beta: np.ndarray, name: str) -> Tensor:
        """Layer normalisation over the last dimension of a float32 `tensor`; the result is in the network's type."""
        network = self.network
        add = network.add_normalization_v2 if hasattr(network, "add_normalization_v2") else network.add_normalization
        scale, shift = self._row(gamma, f"{name}/gamma", "fp32"), self._row(beta, f"{name}/beta", "fp32")
        layer = add(tensor, scale, shift, 1 << (self.rank - 1))
        if layer is not None:
            layer.epsilon = self.config.layer_norm_eps
        if self.precision == "fp32":
            return self.output(layer, name)
        return self.output(network.add_cast(self.output(layer, f"{name}/normal"), self.type), name)


class PaddedNativeLayers(NativeWriter):
    """NetworkLayers for padded input in native layers. `sizes` are the input's dimensions [B, S], -1 where dynamic."""

    rank = 3

    def _make_inputs(self, batch_size: int, sequence_length: int) -> None:
        self.sequence_length = sequence_length
        self.input_ids, self.segment_ids, self.input_mask = self.network_inputs("padded", (batch_size, sequence_length))

    def _positions(self, table: np.ndarray, name: str) -> Tensor:
        """The first S rows of `table` [P, E], as [1, S, E]."""
        length, hidden_size = self.sequence_length, table.shape[1]
        if length > 0:
            return self._constant(table[:length], (1, length, hidden_size), name)
        rows = self._constant(table, (1, *table.shape), f"{name}/table")
        # The start shape is a placeholder: the shape tensor of the second input replaces it.
        layer = self.network.add_slice(rows, (0, 0, 0), (1, 1, hidden_size), (1, 1, 1))
        if layer is not None:
            layer.set_input(2, self._position_shape(hidden_size, f"{name}/shape"))
        return self.output(layer, name)

    def _position_shape(self, hidden_size: int, name: str) -> Tensor:
        """The shape tensor [1, S, E]."""
        length = self.dimension(self.input_ids, 1, f"{name}/length")
        dtype = self.shape_type(length)
        one, width = self.integers([1], f"{name}/one", dtype), self.integers([hidden_size], f"{name}/width", dtype)
        return self.joined([one, length, width], name)
