"""demoBERT's own form of BERT: TensorRT's BERT plugins between 1×1 convolutions (TensorRT 8.6 to 10.x).

Activations are [S, B, E, 1, 1], packed ones [T, E, 1, 1]: the plugins want the tokens first, and a dense layer is a 1×1
convolution over E.
Plugin names, versions, fields and layouts: NVIDIA's plugin documentation, as shared/spec/tensorrt.md gathers it.
"""

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from helpers.backends.base import NetworkLayers, Normalised
from helpers.backends.tensorrt.network_writer import PACKED_INPUTS, PADDED_INPUTS, NetworkWriter
from helpers.bert_config import BertConfig
from helpers.errors import UsageError

EMBEDDINGS = "CustomEmbLayerNormPluginDynamic"
ATTENTION = "CustomQKVToContextPluginDynamic"
ADD_AND_NORM = "CustomSkipLayerNormPluginDynamic"

#: Plugin → its version in padded networks, by plugin interface.
PADDED_VERSIONS = {
    "deprecated": {EMBEDDINGS: "1", ATTENTION: "1", ADD_AND_NORM: "1"},
    "v3": {EMBEDDINGS: "6", ATTENTION: "4", ADD_AND_NORM: "5"},
}

#: The same in packed networks (whose int8 versions take the interleaved layout, and are others).
PACKED_VERSIONS = {
    "deprecated": {EMBEDDINGS: "2", ATTENTION: "2", ADD_AND_NORM: "2"},
    "v3": {EMBEDDINGS: "4", ATTENTION: "5", ADD_AND_NORM: "6"},
}

#: What the packed attention plugin has kernels for, by NVIDIA's word (github.com/NVIDIA/TensorRT/issues/3298).
MAX_PACKED_LENGTH = 512
MAX_PACKED_HEAD_SIZE = 64

#: The plugins' field `type_id`.
TYPE_IDS = {"fp32": 0, "fp16": 1}


@dataclass(frozen=True)
class BertPlugins:
    """The BERT plugins of one registry, by one interface: "deprecated" (IPluginV2) or "v3" (IPluginV3)."""

    trt: object
    registry: object
    interface: str
    versions: dict

    def creator(self, plugin: str):
        """The creator of `plugin`, or None."""
        registry, version = self.registry, self.versions[plugin]
        if self.interface == "deprecated":
            return registry.get_plugin_creator(plugin, version, "") if hasattr(registry, "get_plugin_creator") else None
        return registry.get_creator(plugin, version, "") if hasattr(registry, "get_creator") else None

    @property
    def complete(self) -> bool:
        return all(self.creator(plugin) is not None for plugin in self.versions)

    def create(self, plugin: str, name: str, fields: list):
        """A plugin object from PluginFields, or None where TensorRT refuses them."""
        collection = self.trt.PluginFieldCollection(fields)
        if self.interface == "deprecated":
            return self.creator(plugin).create_plugin(name, collection)
        return self.creator(plugin).create_plugin(name, collection, self.trt.TensorRTPhase.BUILD)

    def add(self, network, inputs: list, plugin_object):
        """The plugin as a layer of `network`."""
        if self.interface == "deprecated":
            return network.add_plugin_v2(inputs, plugin_object)
        return network.add_plugin_v3(inputs, [], plugin_object)


def find_plugins(trt, registry, interface: str | None, versions: dict = PADDED_VERSIONS) -> BertPlugins | None:
    """The BERT plugins by `interface` ("deprecated" or "v3"; None: the first that the registry has); None: not there.

    `versions` is PADDED_VERSIONS or PACKED_VERSIONS.

    Networks of these plugins are weakly typed, which TensorRT 11 no longer is, whatever its registry holds.
    """
    if registry is None or not hasattr(trt.BuilderFlag, "FP16"):
        return None
    for candidate in (interface,) if interface else ("deprecated", "v3"):
        plugins = BertPlugins(trt, registry, candidate, versions[candidate])
        if plugins.complete:
            return plugins
    return None


class PluginWriter(NetworkWriter, NetworkLayers):
    """What the padded and the packed plugin network have in common.

    `precision` is "fp32" or "fp16": the type that the plugins work in; the builder picks the convolutions' types. A
    subclass adds the network's inputs, `inputs`, and says what the plugins of its layout take besides.

    rank              of the activations
    own_fields        plugin → integer fields that only this layout has
    attention_inputs  what the attention plugin takes after the mask
    """

    rank: int

    def __init__(self, trt, network, logger, config: BertConfig, plugins: BertPlugins, precision: str):
        NetworkWriter.__init__(self, trt, network, logger)
        if precision not in TYPE_IDS:
            raise UsageError(f"the BERT plugins have no {precision}; use --fp16 or --network native")
        self.config = config
        self.plugins = plugins
        self.type_id = TYPE_IDS[precision]
        self.attention_mask = None
        self.own_fields = {}
        self.attention_inputs = ()

    @abstractmethod
    def _embedding_inputs(self, name: str) -> list:
        """What the embeddings plugin takes."""

    # Words of NetworkLayers

    def embeddings(self, word, token_type, position, gamma, beta, name):
        fields = [
            self._floats("bert_embeddings_layernorm_beta", beta),
            self._floats("bert_embeddings_layernorm_gamma", gamma),
            self._floats("bert_embeddings_word_embeddings", word),
            self._floats("bert_embeddings_token_type_embeddings", token_type),
            self._floats("bert_embeddings_position_embeddings", position),
            self._integer("output_fp16", int(self.type_id == TYPE_IDS["fp16"])),
        ]
        layer = self._plugin(EMBEDDINGS, name, fields, self._embedding_inputs(name))
        # The second output is the mask in the form that the attention plugin wants for its type and length.
        self.attention_mask = self.output(layer, name, index=1)
        return Normalised(self.output(layer, name, index=0), None)

    def query_key_value(self, hidden, kernel, bias, name):
        config = self.config
        heads, size = config.num_attention_heads, config.head_size
        # The plugin reads each head's query, key and value side by side: [3, N, H, …] → [N, 3, H, …].
        kernel = kernel.reshape(3, heads, size, -1).transpose(1, 0, 2, 3).reshape(kernel.shape)
        bias = bias.reshape(3, heads, size).transpose(1, 0, 2).reshape(bias.shape)
        return self.dense(hidden, kernel, bias, f"{name}/query_key_value")

    def attention(self, query_key_value, name):
        fields = [
            self._integer("type_id", self.type_id),
            self._integer("hidden_size", self.config.hidden_size),
            self._integer("num_heads", self.config.num_attention_heads),
            self._integer("has_mask", 1),
        ]
        inputs = [query_key_value, self.attention_mask, *self.attention_inputs]
        return self.output(self._plugin(ATTENTION, name, fields, inputs), name)

    def dense(self, hidden, kernel, bias, name):
        outputs = kernel.shape[0]
        layer = self.network.add_convolution_nd(hidden, outputs, (1, 1), self.weights(kernel), self.weights(bias))
        return self.output(layer, name)

    def gelu(self, hidden, formula, name):
        shape = (1,) * self.rank

        def constant(value, part):
            return self.output(self.network.add_constant(shape, self.weights(np.full(shape, value, np.float32))), part)

        return self.composed_gelu(hidden, formula, constant, name)

    def add_and_normalise(self, branch, residual, gamma, beta, name):
        fields = [
            self._integer("ld", self.config.hidden_size),
            self._floats("beta", beta),
            self._floats("gamma", gamma),
            self._integer("type_id", self.type_id),
        ]
        return Normalised(self.output(self._plugin(ADD_AND_NORM, name, fields, [branch, residual]), name), None)

    def squad_output(self, hidden, kernel, bias, name):
        logits = self.dense(hidden, kernel, bias, name)
        # Padded: the batch first, [B, S, 2, 1, 1]. Packed: all start logits, then all end logits, [2, T, 1, 1].
        logits = self.reshaped(logits, f"{name}/transposed", after=(1, 0, *range(2, self.rank)))
        logits.name = "logits_out"
        self.network.mark_output(logits)
        logits.dtype = self.trt.float32  # an output's type can be set, a tensor's between layers can't

    # Parts

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


class PluginLayers(PluginWriter):
    """NetworkLayers for padded input through the BERT plugins.

    `batch_size` and `sequence_length` are the input's dimensions, -1 where dynamic; the rest: see PluginWriter.
    """

    rank = 5

    def __init__(self, trt, network, logger, config, plugins, precision: str, batch_size: int, sequence_length: int):
        super().__init__(trt, network, logger, config, plugins, precision)
        shape = (batch_size, sequence_length)
        self.inputs = [network.add_input(name, trt.int32, shape) for name in PADDED_INPUTS]
        self.own_fields = {EMBEDDINGS: {"mha_type_id": self.type_id}}

    def _embedding_inputs(self, name):
        return [self.reshaped(tensor, f"{name}/{tensor.name}", before=(1, 0)) for tensor in self.inputs]


class PackedPluginLayers(PluginWriter):
    """NetworkLayers for packed input through the BERT plugins: ids, segments [T], cu_seqlens [B+1], max_seqlen [Smax].

    Of max_seqlen the plugins read the length alone, the longest sequence's, by which attention chooses its kernel.
    """

    rank = 4

    def __init__(self, trt, network, logger, config, plugins, precision: str):
        super().__init__(trt, network, logger, config, plugins, precision)
        self.inputs = [network.add_input(name, trt.int32, (-1,)) for name in PACKED_INPUTS]
        self.own_fields = {ATTENTION: {"var_seqlen": 1}}
        self.attention_inputs = self.inputs[2:]

    def _embedding_inputs(self, name):
        return self.inputs
