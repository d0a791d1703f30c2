"""TensorRT's BERT plugins (TensorRT 8.6 to 10.x): their names, their versions by layout, and how they are made.

Names, versions and fields: the README files of NVIDIA's plugins (github.com/NVIDIA/TensorRT, folder plugin).
"""

from dataclasses import dataclass

EMBEDDINGS = "CustomEmbLayerNormPluginDynamic"
ATTENTION = "CustomQKVToContextPluginDynamic"
ADD_AND_NORM = "CustomSkipLayerNormPluginDynamic"

#: What the tables call the last add + norm of Megatron's networks: the same plugin, in the version without the sum.
LAST_ADD_AND_NORM = f"{ADD_AND_NORM}, without the sum"

#: Plugin → its version in padded networks, by plugin interface.
PADDED_VERSIONS = {
    "deprecated": {EMBEDDINGS: "1", ATTENTION: "1", ADD_AND_NORM: "1"},
    "v3": {EMBEDDINGS: "6", ATTENTION: "4", ADD_AND_NORM: "5"},
}

#: The same in packed networks,
PACKED_VERSIONS = {
    "deprecated": {EMBEDDINGS: "2", ATTENTION: "2", ADD_AND_NORM: "2"},
    "v3": {EMBEDDINGS: "4", ATTENTION: "5", ADD_AND_NORM: "6"},
}

#: in packed networks of interleaved int8,
INTERLEAVED_VERSIONS = {
    "deprecated": {EMBEDDINGS: "2", ATTENTION: "3", ADD_AND_NORM: "3"},
    "v3": {EMBEDDINGS: "4", ATTENTION: "6", ADD_AND_NORM: "7"},
}

#: and in those of Megatron's BERT, whose plugins hand out the sum that they normalised.
MEGATRON_VERSIONS = {
    "deprecated": {EMBEDDINGS: "3", ATTENTION: "3", ADD_AND_NORM: "4", LAST_ADD_AND_NORM: "3"},
    "v3": {EMBEDDINGS: "5", ATTENTION: "6", ADD_AND_NORM: "8", LAST_ADD_AND_NORM: "7"},
}

#: The padded attention plugin's half and int8 kernels are of this head size. It picks them by the length alone: with
#: other heads it builds, and fails when it runs (seen with TensorRT 8.6.0 on an H100).
PADDED_HEAD_SIZE = 64

#: The add + norm plugins' int8 kernels are of these hidden sizes, in every version. With others the plugin builds, and
#: fails when it runs ("SkipLayerNormDQQ - FATAL: unsupported hidden layer size"; seen with TensorRT 8.6.0 on an H100).
INT8_NORM_SIZES = (768, 1024)

#: Tokens of a sequence that the packed embeddings plugins write, by their source: they start so many blocks at most, and
#: leave what is behind as it was (github.com/NVIDIA/TensorRT/issues/2948). Attention alone would take 512.
MAX_PACKED_LENGTH = 384

#: Heads that the packed attention plugin has kernels for, by NVIDIA's word (github.com/NVIDIA/TensorRT/issues/3298).
MAX_PACKED_HEAD_SIZE = 64

#: Of padded engines whose rows are packed, by what attention is computed in: rows up to which the packed attention plugin
#: splits a sequence among processors on Hopper, a row being two sequences (`unrollList` in its source), and the shortest of
#: the lengths for which it does. The padded plugin gives a whole row of a head to one (8.6.0 on an H200: 0.9 to 1.0 ms of 24
#: layers of BERT-large × 384 × 1, packed 0.27).
MOST_PACKED_ROWS = {"fp16": 2, "int8": 4}
SHORTEST_PACKED_ROWS = 97

#: The interleaved format holds so many channels side by side (TensorRT's kCHW32).
INTERLEAVED_CHANNELS = 32

#: The plugins' field `type_id`.
TYPE_IDS = {"fp32": 0, "fp16": 1, "int8": 2}


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
        name = ADD_AND_NORM if plugin == LAST_ADD_AND_NORM else plugin
        if self.interface == "deprecated":
            return registry.get_plugin_creator(name, version, "") if hasattr(registry, "get_plugin_creator") else None
        return registry.get_creator(name, version, "") if hasattr(registry, "get_creator") else None

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

    `versions` is one of the tables above.

    Networks of these plugins are weakly typed, which TensorRT 11 no longer is, whatever its registry holds.
    """
    if registry is None or not hasattr(trt.BuilderFlag, "FP16"):
        return None
    for candidate in (interface,) if interface else ("deprecated", "v3"):
        plugins = BertPlugins(trt, registry, candidate, versions[candidate])
        if plugins.complete:
            return plugins
    return None
