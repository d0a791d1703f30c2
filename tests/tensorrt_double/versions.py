"""The versions of TensorRT that the double plays, and, as data, what each of them lacks."""

from dataclasses import dataclass


class TensorRTDoubleError(RuntimeError):
    """A network, configuration or call that TensorRT would refuse, or compute something else from.

    The real API often answers None and logs; the double raises, so that the mistake is seen where it is made.
    """


@dataclass(frozen=True)
class Version:
    """One TensorRT. `key` is its row in the tables below; `registry` says which plugin interfaces it has."""

    name: str
    key: str
    module: str
    v2_plugins: bool = False
    v3_plugins: bool = False

    @property
    def library_major(self) -> int:
        """The number in libnvinfer_plugin.so.N."""
        return int(self.name.removeprefix("rtx-").split(".")[0])

    @property
    def weakly_typed(self) -> bool:
        """Whether networks may leave precisions to the builder."""
        return self.key in ("8.6", "10.0", "10.16")

    @property
    def shape_type(self) -> str:
        """The type of a shape layer's output."""
        return "INT32" if self.key == "8.6" else "INT64"


VERSIONS = {
    version.name: version
    for version in (
        Version("8.6.1", "8.6", "tensorrt", v2_plugins=True),
        Version("10.0.1", "10.0", "tensorrt", v2_plugins=True),
        Version("10.16.1", "10.16", "tensorrt", v2_plugins=True, v3_plugins=True),
        Version("11.4.0", "11.4", "tensorrt"),
        Version("rtx-1.7.1", "rtx", "tensorrt_rtx"),
    )
}

_FROM_10 = ("10.0", "10.16", "11.4", "rtx")
_FROM_10_16 = ("10.16", "11.4", "rtx")
_FROM_11 = ("11.4", "rtx")
_BEFORE_11 = ("8.6", "10.0", "10.16")

#: The versions that have a class, method, property or argument; what is not listed, all of them have.
ONLY_IN = {
    "IAttention": _FROM_10_16,
    "IAttention.key_value_form": _FROM_11,
    "IAttention.key_value_lengths": _FROM_11,
    "IAttention.query_form": _FROM_11,
    "IAttention.query_lengths": _FROM_11,
    "IAttentionOutputLayer": _FROM_10_16,
    "IBuilderConfig.num_compute_capabilities": ("rtx",),
    "IBuilderConfig.set_compute_capability": ("rtx",),
    "ILayer.precision": _BEFORE_11,
    "ILayer.reset_precision": _BEFORE_11,
    "ILayer.set_output_type": _BEFORE_11,
    "INetworkDefinition.add_attention": _FROM_10_16,
    "INetworkDefinition.add_attention_v2": _FROM_11,
    "INetworkDefinition.add_dequantize.output_type": _FROM_10,
    "INetworkDefinition.add_normalization_v2": _FROM_10_16,
    "INetworkDefinition.add_plugin_v2": ("8.6", "10.0", "10.16", "11.4"),
    "INetworkDefinition.add_plugin_v3": ("10.0", "10.16", "11.4"),
    "INetworkDefinition.add_quantize.output_type": _FROM_10,
    "IPluginRegistry.get_creator": _FROM_10,
    "IPluginRegistry.get_plugin_creator": _BEFORE_11,
    "IPluginV3": _FROM_10,
    "IPluginV3Layer": _FROM_10,
    "IPluginCreatorV3One": _FROM_10,
    "IQuantizeLayer.to_type": _FROM_10,
    "ITensor.dynamic_range": _BEFORE_11,
    "ITensor.reset_dynamic_range": _BEFORE_11,
    "ITensor.set_dynamic_range": _BEFORE_11,
    "Weights.__init__.count": _FROM_10,
    "Weights.__init__.ptr": _FROM_10,
}

#: Arguments that have a default in the double's signature, but none in these versions.
REQUIRED_IN = {
    "INetworkDefinition.add_dequantize.output_type": _FROM_11,
    "INetworkDefinition.add_quantize.output_type": _FROM_11,
}

#: Properties that can be read, but not set, in these versions.
READ_ONLY_IN = {"ITensor.dtype": _FROM_11}


def has(version: Version, name: str) -> bool:
    """Whether `version` has "Class", "Class.method" or "Class.method.argument"."""
    return version.key in ONLY_IN.get(name, (version.key,))
