"""demoBERT's own form of BERT: TensorRT's BERT plugins between 1×1 convolutions (TensorRT 8.6 to 10.x).

A dense layer is a 1×1 convolution over E. Activations are [S, B, E, 1, 1], packed ones [T, E, 1, 1], since the plugins
want the tokens first; interleaved ones [1, E, T, 1].

Int8 is TensorRT's implicit quantization: a tensor's dynamic range says what int8 would mean, a layer's precision that
it is wanted (and --strict that it is not the builder's to choose). Kernels are rounded by the builder itself, by the
largest value of each output channel.
"""

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from helpers.backends.tensorrt.bert_plugins import (
    ADD_AND_NORM,
    ATTENTION,
    EMBEDDINGS,
    LAST_ADD_AND_NORM,
    TYPE_IDS,
    BertPlugins,
)
from helpers.backends.tensorrt.network_writer import NetworkWriter
from helpers.bert_config import BertConfig
from helpers.errors import UsageError
from helpers.network_layers import NetworkLayers, Normalised
from helpers.quantization import PROBABILITIES, Quantization, QuantizedDense, matmul_input_name, tensor_ranges

#: p(z) = a + b z + c z², z = x² of at most 48: the largest difference of x · sigmoid(x · p(x²)) to GELU's x · Φ(x) is
#: smallest with these (2.6e-5; Nelder and Mead's search from the Taylor series of Φ's log odds). Without a bound p would end
#: up negative: at 124 and above.
ERF_SIGMOID = (1.59501577, 0.0740112924, -0.000703033618)
LARGEST_SQUARE = 48.0

#: The formula with tanh is just that: (1 + tanh(y)) / 2 = sigmoid(2 y), so p(z) = 2 √(2/π) (1 + 0.044715 z).
TANH_SIGMOID = (2 * np.sqrt(2 / np.pi), 2 * np.sqrt(2 / np.pi) * 0.044715)

#: The least range of what GELU reads in int8: beyond, on its left, GELU is within 0.0041 of 0, a sixth of that range's step.
GELU_INPUT_RANGE = 3.0

#: The least range of what GELU gives with which it reads int8, too: with half the range its steps are half of what it reads.
LEAST_GELU_RANGE = GELU_INPUT_RANGE / 2

#: What is said of a model whose embeddings are projected.
NO_PROJECTION = "the BERT plugins take embeddings of the hidden size, this model's are projected to it"


@dataclass(frozen=True)
class Int8:
    """The ranges of an int8 network, and which plugins take and give int8 too: attention, add + norm."""

    quantization: Quantization
    attention: bool
    add_and_norm: bool


class PluginWriter(NetworkWriter, NetworkLayers):
    """What the plugin networks have in common.

    `precision` is "fp32" or "fp16": the type that the plugins work in where `int8` does not say otherwise; the builder
    picks the convolutions' types, unless `strict`. A subclass adds the network's inputs, for padded input of `sizes`
    [B, S], -1 where dynamic, and says what its layout asks for.

    rank              of the activations
    head_transpose    what brings the logits into the order of the output
    token_transpose   the same with each token's two logits side by side, as Triton's TensorRT backend can hand them back
    own_fields        plugin → integer fields that only some layouts have
    """

    rank: int
    head_transpose: tuple
    token_transpose: tuple

    def __init__(
        self,
        trt,
        network,
        logger,
        config: BertConfig,
        precision: str,
        sizes: tuple[int, int],
        plugins: BertPlugins,
        int8: Int8 | None = None,
        strict: bool = False,
        logits_by_token: bool = False,
    ):
        NetworkWriter.__init__(self, trt, network, logger)
        self.last_transpose = self.token_transpose if logits_by_token else self.head_transpose
        if precision not in ("fp32", "fp16"):
            raise UsageError(f"the BERT plugins have no {precision}; use --fp16 or --network native")
        self.config = config
        self.plugins = plugins
        self.int8 = int8
        self.float_type = trt.float16 if precision == "fp16" else trt.float32
        self.half_embeddings = precision == "fp16"
        self.strict = strict
        self.attention_type = TYPE_IDS["int8" if int8 and int8.attention else precision]
        self.norm_type = TYPE_IDS["int8" if int8 and int8.add_and_norm else precision]
        self.ranges_of = tensor_ranges(config.num_hidden_layers)
        self.own_fields = {}
        self._make_inputs(*sizes)

    @abstractmethod
    def _make_inputs(self, batch_size: int, sequence_length: int) -> None:
        """Sets `inputs` to the network's, and what else the layout asks for. Packed inputs have no fixed sizes."""

    @abstractmethod
    def _embedding_inputs(self, name: str) -> list:
        """What the embeddings plugin takes."""

    @abstractmethod
    def _embedded(self, layer, name: str) -> Normalised:
        """What the embeddings plugin gives."""

    @abstractmethod
    def _attention_inputs(self) -> list:
        """What the attention plugin takes beside query, key and value."""

    # Words of NetworkLayers

    def embeddings(self, word, token_type, position, gamma, beta, name):
        fields = [
            self._floats("bert_embeddings_layernorm_beta", beta),
            self._floats("bert_embeddings_layernorm_gamma", gamma),
            self._floats("bert_embeddings_word_embeddings", word),
            self._floats("bert_embeddings_token_type_embeddings", token_type),
            self._floats("bert_embeddings_position_embeddings", position),
            self._integer("output_fp16", int(self.half_embeddings)),
        ]
        return self._embedded(self._plugin(EMBEDDINGS, name, fields, self._embedding_inputs(name)), name)

    def projection(self, hidden, kernel, bias, name):
        raise UsageError(NO_PROJECTION)

    def query_key_value(self, hidden, kernel, bias, name):
        hidden, kernel = self._for_int8(hidden, kernel, name)
        kernel, bias = self._by_head(kernel), self._by_head(bias)
        return self._dense(hidden, kernel, bias, f"{name}/query_key_value", self.attention_type)

    def attention(self, query_key_value, heads, name):
        fields = [
            self._integer("hidden_size", heads * self.config.head_size),
            self._integer("num_heads", heads),
        ]
        int8 = self.attention_type == TYPE_IDS["int8"]
        probabilities = matmul_input_name(name, PROBABILITIES)
        if int8 and probabilities in self.int8.quantization.ranges:  # else the plugin takes 1 / 127
            scale = self.int8.quantization.amax(probabilities) / self.int8.quantization.largest
            fields.append(self._floats("dq_probs", np.array([scale])))
        layer = self._plugin(ATTENTION, name, fields, [query_key_value, *self._attention_inputs()])
        context = self.output(layer, name)
        if int8:
            self._require_ranges(query_key_value, context)
        return context

    def dense(self, hidden, kernel, bias, name):
        consumer = self.norm_type if name.endswith("_output_dense") else None  # add + norm, or GELU
        return self._dense(*self._for_int8(hidden, kernel, name), bias, name, consumer)

    def gelu(self, hidden, formula, name):
        shape = (1,) * self.rank

        def constant(value, part):
            return self.constant(np.full(shape, value, np.float32), part)

        if self.int8 is None and self.float_type == self.trt.float32:
            return self.composed_gelu(hidden, formula, constant, name)
        result = self.sigmoid_gelu(hidden, formula, constant, name)
        if self.int8:
            self._in_int8(hidden, result)
        return result

    def _in_int8(self, hidden, result) -> None:
        """Has GELU give int8, and read it where its output's range allows: nothing else is written to memory then.

        GELU's slope is at most 1.13: rounded by the range of what it gives, 3 or more, what it reads adds an error of at most
        1.13 times that of rounding its output; by the least range, of twice that. Nothing in between has a range, so that
        the builder can't round it.
        """
        amax = result.dynamic_range[1]
        if amax >= LEAST_GELU_RANGE:
            amax = max(GELU_INPUT_RANGE, amax)
            hidden.set_dynamic_range(-amax, amax)
        self.network.get_layer(self.network.num_layers - 1).set_output_type(0, self.trt.int8)

    def sigmoid_gelu(self, x, formula, constant, name):
        """As `composed_gelu`, in fewer instructions than erf and tanh take: below float32's steps it makes no difference."""

        def binary(operation, left, right, part):
            return self.elementwise(left, right, operation, f"{name}/{part}")

        square = binary("PROD", x, x, "square")
        if formula == "erf":
            square = binary("MIN", square, constant(LARGEST_SQUARE, f"{name}/largest"), "bounded")
        coefficients = ERF_SIGMOID if formula == "erf" else TANH_SIGMOID
        *lower, factor = (constant(value, f"{name}/{part}") for part, value in zip("abc", coefficients))
        for power, coefficient in reversed(list(enumerate(lower))):  # Horner's scheme
            factor = binary("SUM", binary("PROD", square, factor, f"times_{power}"), coefficient, f"plus_{power}")
        share = self.activation(binary("PROD", x, factor, "log_odds"), "SIGMOID", f"{name}/cdf")
        return binary("PROD", x, share, "gelu")

    def add_and_normalise(self, branch, residual, gamma, beta, name):
        last = name == f"l{self.config.num_hidden_layers - 1}_output_layernorm"
        plugin = LAST_ADD_AND_NORM if last and LAST_ADD_AND_NORM in self.plugins.versions else ADD_AND_NORM
        fields = [self._floats("beta", beta), self._floats("gamma", gamma)]
        layer = self._plugin(plugin, name, fields, [branch, residual])
        output = self.output(layer, name)
        total = self.output(layer, f"{name}/sum", index=1) if layer.num_outputs > 1 else None
        if self.norm_type == TYPE_IDS["int8"]:
            self._require_ranges(branch, residual, output, *([] if total is None else [total]))
        return Normalised(output, total)

    def squad_output(self, hidden, kernel, bias, name):
        layer = self._convolution(hidden, kernel, bias)
        logits = self.output(layer, name)
        if self.int8:  # of two channels: int8 would save nothing, and cost the answer
            layer.precision = self.float_type
        logits = self._ordered(logits, f"{name}/transposed")
        logits.name = "logits_out"
        self.network.mark_output(logits)
        logits.dtype = self.trt.float32  # an output's type can be set, a tensor's between layers can't

    # Parts

    def _ordered(self, logits, name: str):
        """The logits in the order of the network's output."""
        return self.reshaped(logits, name, after=self.last_transpose)

    def output(self, layer, name: str, index: int = 0):
        """Names the layer and its output, and sets the output's dynamic range, where it has one."""
        tensor = super().output(layer, name, index)
        if self.int8:
            amax = self.int8.quantization.known(*self.ranges_of.get(name, ()))
            if amax is not None:
                tensor.set_dynamic_range(-amax, amax)
        return tensor

    def _require_ranges(self, *tensors) -> None:
        """Raises DemoBertError where one of the tensors of an int8 layer has no range."""
        for tensor in tensors:
            if tensor.dynamic_range is None:
                self.int8.quantization.amax(*self.ranges_of[tensor.name])  # names what is missing

    def _convolution(self, hidden, kernel, bias):
        return self.network.add_convolution_nd(
            hidden, kernel.shape[0], (1, 1), self.weights(kernel), self.weights(bias)
        )

    def _dense(self, hidden, kernel, bias, name, consumer: int | None):
        """A dense layer, in int8 where the network is; `consumer`: the type id of the plugin that reads it, or None."""
        layer = self._convolution(hidden, kernel, bias)
        tensor = self.output(layer, name)
        if self.int8:
            self._require_ranges(hidden)
            layer.precision = self.trt.int8
            if consumer not in (None, TYPE_IDS["int8"]):  # the plugin would not read int8: the output need not be
                layer.set_output_type(0, self.float_type)
        elif self.strict:  # else float32's kernels are timed, too: at large batches that takes most of a build
            layer.precision = self.float_type
            layer.set_output_type(0, self.float_type)
        return tensor

    def _for_int8(self, hidden, kernel, name):
        """What an int8 dense layer is to multiply; in float both as they are.

        Channels are evened out where their ranges are known, and the layer norm before them gives floats: what it gives in
        int8 has been rounded by one range already. The kernel is within the ranges that training gave it: the builder's
        own scales then are no coarser.
        """
        if self.int8 is None:
            return hidden, kernel
        quantization = self.int8.quantization
        if self.norm_type != TYPE_IDS["int8"] and quantization.evens_out(name):
            dense = quantization.dense(name, kernel)
            return self._shares(hidden, dense, name), dense.kernel
        amax = quantization.kernel(name, kernel)[:, None]
        return hidden, np.clip(kernel, -amax, amax)

    def _shares(self, hidden, dense: QuantizedDense, name: str):
        """Each channel of `hidden` [..., E, 1, 1] as a share of its limit, between -1 and 1.

        Whatever else reads `hidden` reads floats. So it loses its range: the builder could round it by that, before the
        channels are even.
        """
        inverse = (1 / dense.limits).reshape(*(1,) * (self.rank - 3), -1, 1, 1)
        shares = self.elementwise(
            hidden, self.constant(inverse, f"{name}/input/inverse"), "PROD", f"{name}/input/shares"
        )
        hidden.reset_dynamic_range()
        shares.set_dynamic_range(-dense.input_amax, dense.input_amax)
        return shares

    def _by_head(self, array):
        """Each head's query, key and value side by side, as the plugin reads them: [3, N, H, …] → [N, 3, H, …]."""
        size = self.config.head_size
        return array.reshape(3, len(array) // (3 * size), size, -1).transpose(1, 0, 2, 3).reshape(array.shape)

    def _plugin(self, plugin: str, name: str, fields: list, inputs: list):
        fields = fields + [self._integer(*field) for field in self.own_fields.get(plugin, {}).items()]
        plugin_object = self.plugins.create(plugin, name, fields)
        if plugin_object is None:
            raise self.refused(f"plugin {plugin} of {name}")
        return self.plugins.add(self.network, inputs, plugin_object)

    def _floats(self, name: str, array: np.ndarray):
        array = np.ascontiguousarray(array, np.float32).ravel()
        self.keep.append(array)
        return self.trt.PluginField(name, array, self.trt.PluginFieldType.FLOAT32)

    def _integer(self, name: str, value: int):
        array = np.array([value], np.int32)
        self.keep.append(array)
        return self.trt.PluginField(name, array, self.trt.PluginFieldType.INT32)


class TypedPluginWriter(PluginWriter):
    """The plugins that are told their types: those of padded networks, and of packed ones that are not interleaved."""

    def _make_inputs(self, batch_size, sequence_length):
        self.attention_mask = None
        self.own_fields = {
            ATTENTION: {"type_id": self.attention_type, "has_mask": 1},
            ADD_AND_NORM: {"type_id": self.norm_type, "ld": self.config.hidden_size},
        }

    def _embedded(self, layer, name):
        # The second output is the mask in the form that the attention plugin wants for its type and length.
        self.attention_mask = self.output(layer, f"{name}/mask", index=1)
        if self.int8:  # TensorRT asks for a range of whatever an int8 plugin reads; of integers it makes no use
            self.attention_mask.set_dynamic_range(-1.0, 1.0)
        return Normalised(self.output(layer, name), None)

    def _attention_inputs(self):
        return [self.attention_mask]


class PaddedPluginLayers(TypedPluginWriter):
    """NetworkLayers for padded input through the BERT plugins."""

    rank = 5
    head_transpose = token_transpose = (1, 0, 2, 3, 4)  # the batch first: [B, S, 2, 1, 1]

    def _make_inputs(self, batch_size, sequence_length):
        super()._make_inputs(batch_size, sequence_length)
        self.inputs = self.network_inputs("padded", (batch_size, sequence_length))
        self.own_fields |= {EMBEDDINGS: {"mha_type_id": self.attention_type}}

    def _embedding_inputs(self, name):
        return [self.reshaped(tensor, f"{name}/{tensor.name}", before=(1, 0)) for tensor in self.inputs]


class PackedPluginLayers(TypedPluginWriter):
    """NetworkLayers for packed input through the BERT plugins: ids, segments [T], cu_seqlens [B+1], max_seqlen [Smax].

    Of max_seqlen the plugins read the length alone, the longest sequence's, by which attention chooses its kernel.
    In int8 attention and add + norm are int8 too: the packed attention plugin has fused kernels for that and fp16 only.
    """

    rank = 4
    head_transpose = (1, 0, 2, 3)  # all start logits, then all end logits: [2, T, 1, 1]
    token_transpose = (0, 1, 2, 3)  # [T, 2, 1, 1]

    def _make_inputs(self, batch_size, sequence_length):
        super()._make_inputs(batch_size, sequence_length)
        self.inputs = self._packed_inputs(batch_size, sequence_length)
        self.half_embeddings = self.half_embeddings or self.int8 is not None
        self.own_fields[ATTENTION]["var_seqlen"] = 1

    def _packed_inputs(self, batch_size: int, sequence_length: int) -> list:
        """What the plugins take as inputs: ids, segments, cu_seqlens, max_seqlen."""
        return self.network_inputs("packed", (-1,))

    def _embedding_inputs(self, name):
        return self.inputs

    def _attention_inputs(self):
        return [self.attention_mask, *self.inputs[2:]]


class RowsPluginLayers(PackedPluginLayers):
    """NetworkLayers for padded input through the packed plugins, where they are faster than the padded ones.

    A row is two sequences, its tokens and its padding, of which nothing is read: that one may have no token. `most_rows`
    bounds B. Attention and add + norm are int8 where `int8` says so, as in padded networks.
    """

    def __init__(self, *arguments, most_rows: int, **settings):
        self.most_rows = most_rows
        super().__init__(*arguments, **settings)

    def _packed_inputs(self, batch_size, sequence_length):
        self.shape = batch_size, sequence_length
        self.padded_ids, segments, mask = self.network_inputs("padded", self.shape)
        ids, segments = (self.reshaped(one, f"rows/{one.name}", shape=(-1,)) for one in (self.padded_ids, segments))
        return [ids, segments, self._bounds(mask, "rows"), self._row("rows/row")]

    def _row(self, name: str):
        """As many numbers as a row has tokens: nothing else of them is read."""
        length = self.shape[1]
        if length > 0:
            return self.integers(np.zeros(length), name)
        return self.gathered(self.padded_ids, self.integers(0, f"{name}/0"), name)

    def _bounds(self, mask, name: str):
        """Where each row begins, where its padding does, and where all ends: int32 [2 B + 1]."""
        tokens = self.summed(mask, 1, f"{name}/tokens")
        numbers = np.arange(2 * self.most_rows + 1)
        rows, is_padding = numbers // 2, numbers % 2
        size = None if self.shape[0] > 0 else self._number_of_bounds(mask, f"{name}/size")
        places = self._first(rows * is_padding, size, f"{name}/places")  # of the others no row's tokens are asked
        tokens = self.gathered(tokens, places, f"{name}/of_each")
        tokens = self.elementwise(tokens, self._first(is_padding, size, f"{name}/is_padding"), "PROD", f"{name}/before")
        starts = self._first(rows * max(1, self.shape[1]), size, f"{name}/rows")
        if self.shape[1] < 0:
            length = self.int32(self.dimension(mask, 1, f"{name}/length"), f"{name}/length_int32")
            starts = self.elementwise(starts, length, "PROD", f"{name}/starts")
        return self.elementwise(starts, tokens, "SUM", f"{name}/bounds")

    def _number_of_bounds(self, mask, name: str):
        """2 B + 1, a shape tensor [1]."""
        rows = self.dimension(mask, 0, f"{name}/rows")
        twice = self.elementwise(rows, rows, "SUM", f"{name}/twice")
        return self.elementwise(twice, self.integers([1], f"{name}/1", self.shape_type(rows)), "SUM", name)

    def _first(self, values: np.ndarray, size, name: str):
        """As many of `values` as the shape tensor `size` says, or all; int32."""
        return self.integers(values, name) if size is None else self.first(values, size, name)

    def _ordered(self, logits, name):
        """[B S, 2, 1, 1] → [B, S, 2, 1, 1]."""
        if self.shape[1] > 0:
            return self.reshaped(logits, name, shape=(-1, self.shape[1], 2, 1, 1))
        shape = self.output(self.network.add_shape(self.padded_ids), f"{name}/rows")
        rest = self.integers([2, 1, 1], f"{name}/rest", self.shape_type(shape))
        layer = self.network.add_shuffle(logits)
        if layer is not None:
            layer.set_input(1, self.joined([shape, rest], f"{name}/shape"))
        return self.output(layer, name)


class InterleavedPluginLayers(PluginWriter):
    """NetworkLayers for packed input through the plugins of interleaved int8, activations [1, E, T, 1].

    With the versions of Megatron's BERT, the plugins hand out the sums that they normalise.
    """

    rank = 4
    head_transpose = (1, 2, 0, 3)  # all start logits, then all end logits: [2, T, 1, 1]
    token_transpose = (2, 1, 0, 3)  # [T, 2, 1, 1]

    def _make_inputs(self, batch_size, sequence_length):
        self.inputs = self.network_inputs("packed", (-1,))
        self.half_embeddings = True

    def _embedding_inputs(self, name):
        return self.inputs

    def _embedded(self, layer, name):
        hidden = self._interleaved(self.output(layer, name), name)
        if LAST_ADD_AND_NORM not in self.plugins.versions:
            return Normalised(hidden, None)  # the second output is the mask, which these plugins do without
        return Normalised(hidden, self._interleaved(self.output(layer, f"{name}/sum", index=1), f"{name}/sum"))

    def _attention_inputs(self):
        return self.inputs[2:]

    def _by_head(self, array):
        return array  # these plugins read all of query, then of key, then of value: as the kernels are stacked

    def _interleaved(self, tensor, name):
        """[T, E, 1, 1] → [1, E, T, 1], of the same range."""
        self.ranges_of[f"{name}/interleaved"] = self.ranges_of[name]
        return self.reshaped(tensor, f"{name}/interleaved", after=(2, 1, 0, 3))
